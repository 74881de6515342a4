/* What a queue on a Redis costs, and what conc.h adds to that.
 *
 *   redis [--quick] [FILTER]        only rows whose name contains FILTER
 *
 * A round is a put, a get under a lease, and a done: three answers. Peers, in
 * the same run, at the same server over TCP: hiredis that sends the same
 * commands by hand (XADD, XREADGROUP, and a script that checks whose the
 * message is); LPUSH and BRPOP, which lose what their getter had; redis-py's
 * loop, with XACK and XDEL; and conc.h's own manager. The server keeps nothing
 * on a disk. It has a CPU of its own if there are two. */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"

#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#ifndef NO_HIREDIS
#include <hiredis/hiredis.h>
#define THEIRS(name) name
#else
#define THEIRS(name) NULL
#endif

enum { BATCH = 256, CLIENTS_MOST = 16, SIZE = 200 };
static double seconds = 0.25; /* of each measurement */
static char folder[64], address[64], our_own[64];
static int port;
static pid_t server;
static int clients = 1;
static const char text[SIZE] = "a message";

static double end_at;
static long rounds[CLIENTS_MOST];
static bool failed;

/* --- the server --- */

static bool reach_port(void) {
  struct sockaddr_in a = {.sin_family = AF_INET};
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  bool there;
  a.sin_port = htons((uint16_t)port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  there = connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
  close(fd);
  return there;
}

static bool begin_server(void) {
  char number[16];
  port = 20000 + (int)getpid() % 12000;
  snprintf(number, sizeof number, "%d", port);
  snprintf(address, sizeof address, "redis://127.0.0.1:%d", port);
  snprintf(folder, sizeof folder, "/tmp/conc-bench-redis-%d", (int)getpid());
  if (mkdir(folder, 0700) != 0) return false;
  server = bench_fork();
  if (server == 0) {
    char log[80];
    snprintf(log, sizeof log, "%s/log", folder);
    if (freopen(log, "w", stdout) == NULL) _exit(1);
    bench_pin(1);
    execlp("redis-server", "redis-server", "--port", number, "--save", "",
           "--dir", folder, "--maxclients", "20000", (char *)NULL);
    _exit(127);
  }
  for (int i = 0; i < 500; i++) {
    if (waitpid(server, NULL, WNOHANG) != 0) return server = 0, false;
    if (reach_port()) return true;
    usleep(10000);
  }
  return false;
}

static void end_server(void) {
  char command[100];
  if (server > 0) kill(server, SIGKILL), waitpid(server, NULL, 0);
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  if (system(command) != 0) perror(folder);
}

/* --- rounds of all clients --- */

static double run_clients(conc_fn *fn) {
  conc_task tasks[CLIENTS_MOST];
  double began = conc_now();
  long sum = 0;
  memset(tasks, 0, sizeof tasks);
  end_at = began + seconds;
  for (int i = 0; i < clients; i++) {
    tasks[i].target = fn;
    tasks[i].arg = &rounds[i];
    if (conc_thread_start(&tasks[i]) != 0) return NAN;
  }
  for (int i = 0; i < clients; i++) conc_join(&tasks[i], CONC_FOREVER);
  for (int i = 0; i < clients; i++) sum += rounds[i];
  return failed ? NAN : (double)sum / (conc_now() - began);
}

/* --- conc.h --- */

static conc_manager manager; /* the client of all threads of a measurement */
static conc_queue *queue;
static bool batches, leases = true;

static int round_of(conc_queue *q) {
  static _Thread_local char many[BATCH * SIZE];
  conc_lease lease = {0};
  char got[SIZE];
  int rc;
  if (batches) {
    for (size_t at = 0; at < BATCH;) {
      ssize_t n = conc_put_many(q, many + at * SIZE, SIZE, BATCH - at, 10);
      if (n < 0) return (int)n;
      at += (size_t)n;
    }
    for (size_t at = 0; at < BATCH;) {
      ssize_t n = conc_get_many(q, many + at * SIZE, SIZE, BATCH - at, 10);
      if (n < 0) return (int)n;
      at += (size_t)n;
    }
    return 0;
  }
  rc = conc_put(q, text, SIZE, 10);
  if (!leases) return rc < 0 ? rc : (int)conc_get(q, got, SIZE, 10);
  if (rc == 0) rc = (int)conc_get_leased(q, &lease, got, SIZE, 10);
  return rc < 0 ? rc : conc_lease_done(&lease);
}

static void *our_client(void *arg) {
  long *n = (long *)arg;
  int rc = 0;
  while (conc_now() < end_at && (rc = round_of(queue)) >= 0) ++*n;
  if (rc < 0) {
    fprintf(stderr, "%s: %s\n", manager.address, conc_strerror(rc));
    failed = true;
  }
  return NULL;
}

static double our_rounds(void *arg) {
  const char *name = (const char *)arg;
  double value;
  bench_pin(0);
  manager.address = strchr(name, '@') != NULL ? our_own : address;
  manager.authkey = "abc";
  if (conc_manager_connect(&manager, 10) != 0) return NAN;
  queue = conc_manager_get(&manager, leases && !batches ? "leased" : "plain");
  if (queue == NULL) return NAN;
  value = run_clients(our_client);
  conc_manager_shutdown(&manager);
  return value;
}

static double conc_over_redis(void) {
  return bench_in_child(our_rounds, (void *)(uintptr_t)"redis");
}

static double conc_manager_alone(void) {
  return bench_in_child(our_rounds, (void *)(uintptr_t)"@");
}

/* Serves both queues, at the Redis or by itself: our_own. */
static pid_t begin_queues(bool at_redis) {
  conc_queue_opts o = {.lease = 60};
  int ends[2];
  pid_t pid;
  if (pipe(ends) != 0) return -1;
  pid = bench_fork();
  if (pid == 0) {
    conc_manager m = {.address = at_redis ? address : "127.0.0.1:0",
                      .authkey = "abc"};
    const char *at = "redis";
    int rc = conc_manager_register_queue(&m, "leased", conc_queue_new(&o));
    bench_pin(1);
    if (rc == 0)
      rc = conc_manager_register_queue(&m, "plain", conc_queue_new(NULL));
    if (rc == 0) rc = conc_manager_start(&m);
    if (rc != 0) fprintf(stderr, "%s: %s\n", m.address, conc_strerror(rc));
    if (rc != 0) _exit(1);
    if (!at_redis) at = conc_manager_address(&m);
    if (write(ends[1], at, strlen(at) + 1) < 1) _exit(1);
    for (;;) pause();
  }
  close(ends[1]);
  if (read(ends[0], our_own, sizeof our_own) < 1) pid = -1;
  close(ends[0]);
  return pid;
}

#ifndef NO_HIREDIS

/* --- hiredis --- */

static redisContext *hiredis(void) {
  redisContext *c = redisConnect("127.0.0.1", port);
  if (c == NULL || c->err) return NULL;
  return c;
}

static bool asks(redisReply *r) { /* whether it is no error */
  bool good = r != NULL && r->type != REDIS_REPLY_ERROR;
  if (!good) fprintf(stderr, "hiredis: %s\n", r != NULL ? r->str : "no reply");
  if (r != NULL) freeReplyObject(r);
  return good;
}
#define ASKS(...) asks((redisReply *)redisCommand(__VA_ARGS__))

/* Done, by the one who has it alone. */
static const char done_script[] =
    "local p = redis.call('XPENDING', KEYS[1], 'conc', ARGV[1], ARGV[1], 1)\n"
    "if #p == 0 or p[1][2] ~= ARGV[2] then return 0 end\n"
    "redis.call('XACK', KEYS[1], 'conc', ARGV[1])\n"
    "return redis.call('XDEL', KEYS[1], ARGV[1])\n";

/* The id of the n-th message of an answer of XREADGROUP; NULL: none. */
static const redisReply *id_in(const redisReply *r, size_t n) {
  if (r == NULL || r->type != REDIS_REPLY_ARRAY || r->elements < 1)
    return NULL;
  r = r->element[0]->element[1];
  return n < r->elements ? r->element[n]->element[0] : NULL;
}

static bool stream_round(redisContext *c, const char *me, const char *sha) {
  redisReply *r;
  const redisReply *id;
  bool good = ASKS(c, "XADD {h} * d %b", text, (size_t)SIZE);
  if (!good) return false;
  r = (redisReply *)redisCommand(
      c, "XREADGROUP GROUP conc %s COUNT 1 BLOCK 10000 STREAMS {h} >", me);
  id = id_in(r, 0);
  good = id != NULL &&
         ASKS(c, "EVALSHA %s 1 {h} %b %s", sha, id->str, id->len, me);
  if (r != NULL) freeReplyObject(r);
  return good;
}

static bool stream_batch(redisContext *c, const char *me) {
  size_t got = 0;
  for (int i = 0; i < BATCH; i++)
    redisAppendCommand(c, "XADD {h} * d %b", text, (size_t)SIZE);
  for (int i = 0; i < BATCH; i++) {
    void *r = NULL;
    if (redisGetReply(c, &r) != REDIS_OK || !asks((redisReply *)r))
      return false;
  }
  while (got < BATCH) { /* each get frees those of the one before it */
    const char *words[BATCH + 3];
    size_t sizes[BATCH + 3], n = 0;
    redisReply *r = (redisReply *)redisCommand(
        c, "XREADGROUP GROUP conc %s COUNT %d BLOCK 10000 STREAMS {h} >", me,
        BATCH - (int)got);
    const redisReply *id;
    for (; (id = id_in(r, n)) != NULL; n++) {
      words[n + 3] = id->str;
      sizes[n + 3] = id->len;
    }
    if (n == 0) return false;
    words[0] = "XACK", words[1] = "{h}", words[2] = "conc";
    sizes[0] = 4, sizes[1] = 3, sizes[2] = 4;
    redisAppendCommandArgv(c, (int)n + 3, words, sizes);
    words[1] = "XDEL", words[2] = "{h}";
    sizes[1] = 4, sizes[2] = 3;
    redisAppendCommandArgv(c, (int)n + 2, words + 1, sizes + 1);
    freeReplyObject(r);
    for (int i = 0; i < 2; i++) {
      void *answer = NULL;
      if (redisGetReply(c, &answer) != REDIS_OK ||
          !asks((redisReply *)answer))
        return false;
    }
    got += n;
  }
  return true;
}

static void *stream_client(void *arg) {
  long *n = (long *)arg;
  redisContext *c = hiredis();
  redisReply *r;
  char me[16], sha[64];
  snprintf(me, sizeof me, "c%d", (int)(n - rounds));
  if (c == NULL) return failed = true, (void *)NULL;
  r = (redisReply *)redisCommand(c, "SCRIPT LOAD %s", done_script);
  snprintf(sha, sizeof sha, "%s", r != NULL ? r->str : "");
  if (r != NULL) freeReplyObject(r);
  while (conc_now() < end_at &&
         (batches ? stream_batch(c, me) : stream_round(c, me, sha)))
    ++*n;
  if (conc_now() < end_at) failed = true;
  redisFree(c);
  return NULL;
}

static bool list_round(redisContext *c) {
  bool good = ASKS(c, "LPUSH h %b", text, (size_t)SIZE);
  return good && ASKS(c, "BRPOP h 10");
}

static bool list_batch(redisContext *c) {
  const char *words[BATCH + 2] = {"LPUSH", "h"};
  size_t sizes[BATCH + 2] = {5, 1};
  for (int i = 0; i < BATCH; i++) words[i + 2] = text, sizes[i + 2] = SIZE;
  return asks((redisReply *)redisCommandArgv(c, BATCH + 2, words, sizes)) &&
         ASKS(c, "RPOP h %d", BATCH);
}

static void *list_client(void *arg) {
  long *n = (long *)arg;
  redisContext *c = hiredis();
  if (c == NULL) return failed = true, (void *)NULL;
  while (conc_now() < end_at && (batches ? list_batch(c) : list_round(c)))
    ++*n;
  if (conc_now() < end_at) failed = true;
  redisFree(c);
  return NULL;
}

static double their_rounds(void *arg) {
  redisContext *c = hiredis();
  if (c == NULL || !ASKS(c, "DEL {h} h") ||
      !ASKS(c, "XGROUP CREATE {h} conc 0 MKSTREAM"))
    return NAN;
  redisFree(c);
  bench_pin(0);
  return run_clients(*(const char *)arg == 's' ? stream_client : list_client);
}

static double hiredis_streams(void) {
  return bench_in_child(their_rounds, (void *)(uintptr_t)"streams");
}

static double hiredis_lists(void) {
  return bench_in_child(their_rounds, (void *)(uintptr_t)"lists");
}
#endif

/* --- redis-py --- */

static const char in_python[] =
    "import redis, sys, time\n"
    "r = redis.Redis(port=int(sys.argv[1])); n = 0; q = '{p}'\n"
    "r.delete(q); r.xgroup_create(q, 'conc', '0', mkstream=True)\n"
    "began = time.monotonic(); end = began + float(sys.argv[2])\n"
    "while time.monotonic() < end:\n"
    "    r.xadd(q, {'d': b'x' * 200})\n"
    "    m = r.xreadgroup('conc', 'py', {q: '>'}, count=1, block=1000)\n"
    "    key, fields = m[0][1][0]\n"
    "    r.xack(q, 'conc', key); r.xdel(q, key); n += 1\n"
    "print(n / (time.monotonic() - began))\n";

static double redis_py(void) {
  char command[2000];
  double value = NAN;
  FILE *p;
  if (clients > 1 || batches) return NAN;
  snprintf(command, sizeof command, "taskset -c 0 %s -c \"%s\" %d %g 2>&1",
           getenv("PYTHON_REDIS") != NULL ? getenv("PYTHON_REDIS")
                                          : "/usr/bin/python3",
           in_python, port, seconds);
  p = popen(command, "r");
  if (p == NULL || fscanf(p, "%lf", &value) != 1) value = NAN;
  if (p != NULL && pclose(p) != 0) value = NAN;
  return value;
}

/* --- many that wait --- */

enum { WAITERS = 10000 };

static double resident(pid_t pid) { /* KiB */
  char path[64], line[200];
  double kib = NAN;
  FILE *file;
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  file = fopen(path, "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL)
    if (sscanf(line, "VmRSS: %lf", &kib) == 1) break;
  if (file != NULL) fclose(file);
  return kib;
}

static int descriptors(pid_t pid) {
  char command[80];
  int n = -1;
  FILE *p;
  snprintf(command, sizeof command, "ls /proc/%d/fd | wc -l", (int)pid);
  p = popen(command, "r");
  if (p == NULL || fscanf(p, "%d", &n) != 1) n = -1;
  if (p != NULL) pclose(p);
  return n;
}

/* What 10,000 blocked getters cost, in memory that is shared with the children
   that have them. */
enum { CONNECTIONS, OF_CLIENT, OF_SERVER, COSTS };
static double *waiting; /* COSTS of conc.h, then of hiredis */

static void note_waiters(double *costs, const double *before,
                         const double *after, int connections) {
  costs[CONNECTIONS] = connections;
  costs[OF_CLIENT] = (after[0] - before[0]) / WAITERS;
  costs[OF_SERVER] = (after[1] - before[1]) / WAITERS;
}

static void *wait_for_one(void *arg) {
  char got[SIZE];
  (void)arg;
  if (conc_get(queue, got, SIZE, CONC_FOREVER) >= 0) failed = true;
  return NULL;
}

static void *wait_for_many(void *arg) {
  static conc_task tasks[WAITERS];
  double before[2], after[2];
  int connections = descriptors(server);
  (void)arg;
  before[0] = resident(getpid()), before[1] = resident(server);
  for (int i = 0; i < WAITERS; i++) {
    tasks[i].target = wait_for_one;
    tasks[i].stack_size = 16384;
    if (conc_coro_start(&tasks[i]) != 0) failed = true;
  }
  conc_sleep(1);
  after[0] = resident(getpid()), after[1] = resident(server);
  connections = descriptors(server) - connections;
  if (!failed) note_waiters(waiting, before, after, connections);
  for (int i = 0; i < WAITERS; i++) conc_cancel(&tasks[i]);
  for (int i = 0; i < WAITERS; i++) conc_join(&tasks[i], CONC_FOREVER);
  return NULL;
}

static double our_waiters(void *arg) {
  conc_task t = {.target = wait_for_many};
  (void)arg;
  manager.address = address;
  if (conc_manager_connect(&manager, 10) != 0) return NAN;
  queue = conc_manager_get(&manager, "leased");
  if (queue == NULL) return NAN;
  conc_run(&t);
  conc_manager_shutdown(&manager);
  fflush(stdout);
  return 0;
}

#ifndef NO_HIREDIS
static double their_waiters(void *arg) {
  static redisContext *all[WAITERS];
  struct rlimit limit;
  double before[2], after[2];
  int connections = descriptors(server);
  (void)arg;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  before[0] = resident(getpid()), before[1] = resident(server);
  for (int i = 0; i < WAITERS; i++) {
    int done = 0;
    all[i] = hiredis();
    if (all[i] == NULL) return NAN;
    redisAppendCommand(all[i], "BRPOP none 0");
    while (!done)
      if (redisBufferWrite(all[i], &done) != REDIS_OK) return NAN;
  }
  usleep(500000);
  after[0] = resident(getpid()), after[1] = resident(server);
  note_waiters(waiting + COSTS, before, after,
               descriptors(server) - connections);
  fflush(stdout);
  return 0;
}
#endif

static void rows_of_waiters(void) {
  static const char *const names[COSTS] = {
      "10,000 blocked getters, connections", "10,000 blocked getters, client",
      "10,000 blocked getters, server"};
  double own[COSTS][BENCH_RUNS], theirs[COSTS][BENCH_RUNS];
  int n = bench_rounds;
  if (!bench_wanted("10,000 blocked getters")) return;
  waiting = (double *)mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (waiting == (double *)MAP_FAILED) return;
  for (int r = 0; r < n; r++) {
    for (int i = 0; i < 2 * COSTS; i++) waiting[i] = NAN;
    bench_in_child(our_waiters, NULL);
#ifndef NO_HIREDIS
    bench_in_child(their_waiters, NULL);
#endif
    for (int i = 0; i < COSTS; i++) {
      own[i][r] = waiting[i];
      theirs[i][r] = waiting[COSTS + i];
    }
  }
  for (int i = 0; i < COSTS; i++) {
    const char *unit = i == CONNECTIONS ? "sockets" : "KiB each";
    bench_print(names[i], unit, "conc", own[i], (size_t)n);
    bench_print(names[i], unit, "hiredis", theirs[i], (size_t)n);
  }
}

int main(int argc, char **argv) {
  struct rlimit limit;
  bench_begin(argc, argv, "A queue on a Redis");
  bench_rounds = bench_quick ? BENCH_QUICK : 5;
  if (bench_quick) seconds = 0.05;
  getrlimit(RLIMIT_NOFILE, &limit); /* the server inherits it */
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (!begin_server()) {
    printf("redis: there is no redis-server\n");
    end_server();
    return 0;
  }
  if (begin_queues(true) < 0 || begin_queues(false) < 0) {
    end_server();
    return 1;
  }
  printf("a queue on a Redis; a round is a put, a get and a done\n");
  ROW("one at a time", "rounds/s", {"conc", conc_over_redis},
      {"hiredis, streams", THEIRS(hiredis_streams)}, {"redis-py", redis_py},
      {"limit: LPUSH, BRPOP, which lose", THEIRS(hiredis_lists)},
      {"conc, its own manager", conc_manager_alone});
  clients = CLIENTS_MOST;
  ROW("16 threads", "rounds/s", {"conc", conc_over_redis},
      {"hiredis, streams", THEIRS(hiredis_streams)},
      {"limit: LPUSH, BRPOP, which lose", THEIRS(hiredis_lists)},
      {"conc, its own manager", conc_manager_alone});
  clients = 1;
  batches = true;
  ROW("256 at once", "batches/s", {"conc", conc_over_redis},
      {"hiredis, streams", THEIRS(hiredis_streams)},
      {"limit: LPUSH, RPOP, which lose", THEIRS(hiredis_lists)},
      {"conc, its own manager", conc_manager_alone});
  batches = false;
  rows_of_waiters();
  end_server();
  return 0;
}
