/* What it costs that work survives: a message is put, got under a lease, and
 * done.
 *
 *   leases [--quick] [FILTER]       only rows whose name contains FILTER
 *
 *   n clients     each makes one call at a time: a put, a get, a done, and
 *                 waits for each answer
 *   pipelined     100 puts are awaited together, then 100 gets, then 100
 *                 dones. Of Redis one XREADGROUP and one XACK are for all
 *   no network    tasks of the process that has the queue
 *   memory        the server's resident bytes for each message that is leased,
 *                 above its own
 *
 * Peers, in the same run, over TCP as well: beanstalkd, without a log and with
 * one (-b): -f0 waits for the disk at each, -f1000 does not for a second, -F
 * never does; and Redis streams (XADD, XREADGROUP, XACK), without and with an
 * append-only file: appendfsync always, everysec, no. What lies in the disk
 * lies in this directory.
 *
 * The server is on one CPU and all clients are on another. A bare client,
 * which is the same program for all servers, sends prepared bytes from one
 * thread; to conc.h it speaks Python's protocol. The last row of each group is
 * conc.h's own client: a task for each, all on one thread; and the calls for
 * many where it is pipelined. */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "network_peers.h"
#include <sys/stat.h>

enum { CLIENTS_MOST = 1000, TOGETHER = 100, SIZE = 200 };
enum { PUTTING, GETTING, ENDING };
static double seconds = 0.3; /* of each measurement */
static char folder[80], path[100];
static const char text[SIZE] = "a message";

/* What is measured. */
static int clients;
static size_t together; /* calls of a kind that are awaited together */
static const char *journal; /* NULL: none */
static double journal_sync;
static const char *beans_log; /* of beanstalkd; NULL: no log */
static const char *redis_log; /* appendfsync; NULL: no file */

/* Of many clients each is to have some rounds. */
static double span(void) { return clients > 16 ? 3 * seconds : seconds; }

static void clean(void) {
  char command[400];
  snprintf(command, sizeof command, "rm -rf %s %s/b %s/r", path, folder,
           folder);
  if (system(command) != 0) abort();
}

/* --- servers --- */

static conc_queue *make_queue(void) {
  conc_queue_opts o = {.lease = 60};
  o.journal = journal;
  o.journal_sync = journal_sync;
  return conc_queue_new(&o);
}

static void serve(int at) {
  char address[32];
  conc_manager m = {.authkey = KEY};
  conc_queue *q = make_queue();
  m.max_handshakes = m.max_handshakes_per_address = 2 * CLIENTS_MOST;
  snprintf(address, sizeof address, "127.0.0.1:%d", at);
  m.address = address;
  if (q != NULL && conc_manager_register_queue(&m, "get_task_queue", q) == 0)
    conc_manager_serve_forever(&m);
}

static void run_beanstalkd(int at) {
  char number[16], in[100];
  snprintf(number, sizeof number, "%d", at);
  snprintf(in, sizeof in, "%s/b", folder);
  if (beans_log == NULL)
    execlp("beanstalkd", "beanstalkd", "-l", "127.0.0.1", "-p", number,
           (char *)NULL);
  mkdir(in, 0700);
  execlp("beanstalkd", "beanstalkd", "-l", "127.0.0.1", "-p", number, "-b", in,
         beans_log, (char *)NULL);
}

static void run_redis_streams(int at) {
  char number[16], in[100];
  snprintf(number, sizeof number, "%d", at);
  snprintf(in, sizeof in, "%s/r", folder);
  mkdir(in, 0700);
  execlp("redis-server", "redis-server", "--port", number, "--bind",
         "127.0.0.1", "--save", "", "--requirepass", KEY, "--maxclients",
         "12000", "--dir", in, "--appendonly",
         redis_log != NULL ? "yes" : "no", "--appendfsync",
         redis_log != NULL ? redis_log : "no", (char *)NULL);
}

/* Whether the server of a peer answers, which is started here. */
static bool begin_peer(peer *p) {
  double end = bench_now() + 5;
  clean();
  see_all_cpus = true;
  p->port = free_port();
  p->pid = bench_fork();
  if (p->pid == 0) {
    settle(SERVER_CPU);
    quiet(0);
    if (p->speaks == CONC) serve(p->port);
    else if (p->speaks == BEANS) run_beanstalkd(p->port);
    else run_redis_streams(p->port);
    _exit(127);
  }
  settle(CLIENT_CPU);
  while (bench_now() < end) {
    int fd = connect_to(p->port);
    if (fd >= 0) {
      close(fd);
      if (p->speaks != CONC || learn_id(p)) return true;
    }
    if (waitpid(p->pid, NULL, WNOHANG) == p->pid) break;
    usleep(2000);
  }
  p->pid = 0;
  return false;
}

static void end_peer(peer *p) {
  stop_server(p);
  clean();
}

/* --- the bare client --- */

typedef struct bare {
  int fd, phase;
  size_t replies; /* that are to come in this phase */
  bytes in, ids;  /* ids: of what is to be ended, as the end names them */
  bytes out;
} bare;

static void encode_one(bytes *b, const peer *p, int phase) {
  static const char add[] =
      "*5\r\n$4\r\nXADD\r\n$1\r\nq\r\n$1\r\n*\r\n$1\r\nd\r\n$200\r\n";
  char head[160];
  size_t at;
  if (p->speaks == CONC) {
    if (phase != ENDING) {
      encode_call(b, p->id, phase == PUTTING ? PUT : GET, SIZE);
      return;
    }
    at = frame_begin(b);
    append(b, "(", 1);
    append_str(b, p->id);
    append_str(b, "task_done");
    append(b, ")}t.", 4);
    frame_end(b, at);
  } else if (phase == PUTTING) {
    int n = snprintf(head, sizeof head, "put 0 0 60 %d\r\n", SIZE);
    if (p->speaks == REDIS) append(b, add, sizeof add - 1);
    else append(b, head, (size_t)n);
    append(b, text, SIZE);
    append(b, "\r\n", 2);
  } else if (p->speaks == BEANS) {
    append(b, "reserve\r\n", 9);
  }
}

static size_t encode_group(char *to, size_t room) {
  return (size_t)snprintf(
      to, room,
      "*9\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n$1\r\ng\r\n$1\r\nc\r\n"
      "$5\r\nCOUNT\r\n$%d\r\n%zu\r\n$7\r\nSTREAMS\r\n$1\r\nq\r\n$1\r\n>\r\n",
      (int)snprintf(NULL, 0, "%zu", together), together);
}

/* Prepares what a phase sends, and how many replies it has. What ends messages
   names them, but to conc.h, which ends the last one that came. */
static void prepare(bare *c, const peer *p, int phase) {
  char head[200];
  size_t n = 0;
  c->phase = phase;
  c->replies = together;
  c->out.size = 0;
  if (phase == GETTING) c->ids.size = 0; /* Redis names what was put, too */
  if (p->speaks == REDIS && phase != PUTTING) {
    c->replies = 1;
    n = phase == GETTING
            ? encode_group(head, sizeof head)
            : (size_t)snprintf(
                  head, sizeof head,
                  "*%zu\r\n$4\r\nXACK\r\n$1\r\nq\r\n$1\r\ng\r\n",
                  together + 3);
    append(&c->out, head, n);
  }
  if (phase == ENDING && p->speaks != CONC) {
    append(&c->out, c->ids.data, c->ids.size);
    c->ids.size = 0;
    return;
  }
  if (n == 0)
    for (size_t i = 0; i < together; i++) encode_one(&c->out, p, phase);
}

/* The size of the reply that p begins with; 0: it is not whole; -1: it is no
   good one. */
static ssize_t redis_reply(const char *p, size_t n, bytes *ids) {
  const size_t before = ids->size;
  size_t at = 0;
  for (long left = 1; left > 0; left--) {
    const char *end = (const char *)memchr(p + at, '\n', n - at);
    char head[24];
    char kind = p[at];
    long k;
    if (at >= n || end == NULL) return ids->size = before, 0;
    if (kind == '-') return -1;
    k = strtol(p + at + 1, NULL, 10);
    at = (size_t)(end + 1 - p);
    if (kind == '*' && k > 0) left += k;
    if (kind != '$' || k < 0) continue;
    if (n - at < (size_t)k + 2) return ids->size = before, 0;
    if (p[at] >= '0' && p[at] <= '9') {
      append(ids, head, (size_t)snprintf(head, sizeof head, "$%ld\r\n", k));
      append(ids, p + at, (size_t)k + 2);
    }
    at += (size_t)k + 2;
  }
  return (ssize_t)at;
}

static ssize_t beans_reply(const char *p, size_t n, bytes *ids) {
  const char *end = (const char *)memchr(p, '\n', n);
  unsigned long long id;
  size_t at, size;
  char line[40];
  if (end == NULL) return 0;
  at = (size_t)(end + 1 - p);
  if (sscanf(p, "RESERVED %llu %zu", &id, &size) == 2) {
    at += size + 2;
    if (n < at) return 0;
    append(ids, line, (size_t)snprintf(line, sizeof line, "delete %llu\r\n",
                                       id));
    return (ssize_t)at;
  }
  return strncmp(p, "INSERTED", 8) == 0 || strncmp(p, "DELETED", 7) == 0
             ? (ssize_t)at
             : -1;
}

static ssize_t conc_reply(const unsigned char *p, size_t n) {
  size_t size = 4;
  if (n < 19) return 0;
  size += (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
  if (memcmp(p + 11, "#RETURN", 7) != 0) return -1;
  return n < size ? 0 : (ssize_t)size;
}

/* Takes the replies that have come. False: the connection is of no use. */
static bool take_replies(bare *c, const peer *p) {
  size_t at = 0;
  while (c->replies > 0 && at < c->in.size) {
    const unsigned char *from = c->in.data + at;
    size_t n = c->in.size - at;
    ssize_t k = p->speaks == CONC    ? conc_reply(from, n)
                : p->speaks == BEANS ? beans_reply((const char *)from, n,
                                                   &c->ids)
                                     : redis_reply((const char *)from, n,
                                                   &c->ids);
    if (k < 0) return false;
    if (k == 0) break;
    at += (size_t)k;
    c->replies--;
  }
  c->in.size -= at;
  memmove(c->in.data, c->in.data + at, c->in.size);
  return true;
}

static bool receive_some(bare *c, const peer *p, int flags) {
  static unsigned char buffer[1 << 17];
  ssize_t k = recv(c->fd, buffer, sizeof buffer, flags);
  if (k < 0 && errno == EAGAIN) return true;
  if (k <= 0) return false;
  append(&c->in, buffer, (size_t)k);
  append(&c->in, "", 1); /* ends what is read as a text */
  c->in.size--;
  return take_replies(c, p);
}

static bool ask_bare(bare *c, const peer *p, const char *text_of) {
  c->replies = 1;
  if (!send_all(c->fd, text_of, strlen(text_of))) return false;
  while (c->replies > 0)
    if (!receive_some(c, p, 0)) return false;
  return true;
}

static bool open_bare(bare *c, const peer *p, bool first) {
  memset(c, 0, sizeof *c);
  c->fd = open_session(p);
  if (c->fd < 0) return false;
  return p->speaks != REDIS || !first ||
         ask_bare(c, p, "XGROUP CREATE q g $ MKSTREAM\r\n");
}

static bool next_phase(bare *c, const peer *p, int phase) {
  prepare(c, p, phase);
  return send_all(c->fd, c->out.data, c->out.size);
}

/* Rounds a second of all connections. */
static double run_bare(const peer *p) {
  static bare all[CLIENTS_MOST];
  struct epoll_event events[256];
  int ep = epoll_create1(0);
  double began, end;
  long rounds = 0;
  for (int i = 0; i < clients; i++) {
    if (!open_bare(&all[i], p, i == 0)) return NAN;
    memset(events, 0, sizeof *events);
    events->events = EPOLLIN;
    events->data.ptr = &all[i];
    epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, events);
  }
  began = bench_now();
  end = began + span();
  for (int i = 0; i < clients; i++)
    if (!next_phase(&all[i], p, PUTTING)) return NAN;
  while (bench_now() < end) {
    int n = epoll_wait(ep, events, 256, 1000);
    for (int i = 0; i < n; i++) {
      bare *c = (bare *)events[i].data.ptr;
      if (!receive_some(c, p, MSG_DONTWAIT)) return NAN;
      if (c->replies > 0) continue;
      if (c->phase == ENDING) rounds += (long)together;
      if (!next_phase(c, p, c->phase == ENDING ? PUTTING : c->phase + 1))
        return NAN;
    }
  }
  return (double)rounds / (bench_now() - began);
}

/* --- conc.h's client --- */

static double begin_at, end_at;
static conc_barrier all_have, all_begin;
static long rounds_of[CLIENTS_MOST];
static bool failed;
static char address[32];
static conc_queue *near; /* NULL: the queue is far */
static conc_manager far;

static int round_of(conc_queue *q) {
  conc_lease lease = {0};
  char got[SIZE];
  int rc = conc_put(q, text, SIZE, 10);
  if (rc == 0) rc = (int)conc_get_leased(q, &lease, got, sizeof got, 10);
  return rc < 0 ? rc : conc_lease_done(&lease);
}

static bool rounds_together(conc_queue *q) {
  char all[TOGETHER * SIZE];
  const ssize_t n = (ssize_t)together;
  for (size_t i = 0; i < together; i++) memcpy(all + i * SIZE, text, SIZE);
  return conc_put_many(q, all, SIZE, together, 10) == n &&
         conc_get_many(q, all, SIZE, together, 10) == n &&
         conc_task_done_many(q, together) == n;
}

static int begin(void *arg) {
  (void)arg;
  begin_at = conc_now();
  end_at = begin_at + span();
  return 0;
}

/* The time begins when each has had a lease at the same time, and so has a
   connection. */
static bool begin_together(conc_queue *q) {
  conc_lease lease = {0};
  char got[SIZE];
  bool ok = conc_put(q, text, SIZE, 10) == 0 &&
            conc_get_leased(q, &lease, got, sizeof got, 10) == SIZE;
  ok = conc_barrier_wait(&all_have, 20) >= 0 && ok &&
       conc_lease_done(&lease) == 0;
  return conc_barrier_wait(&all_begin, 20) >= 0 && ok;
}

static void *our_client(void *arg) {
  long *n = (long *)arg;
  conc_queue *q = near != NULL ? near
                               : conc_manager_get(&far, "get_task_queue");
  bool ok = q != NULL && begin_together(q);
  while (ok && conc_now() < end_at) {
    ok = together > 1 ? rounds_together(q) : round_of(q) == 0;
    if (ok) *n += (long)together;
  }
  if (!ok) failed = true;
  return NULL;
}

static void *all_clients(void *arg) {
  static conc_task tasks[CLIENTS_MOST];
  for (int i = 0; i < clients; i++) {
    tasks[i].target = our_client;
    tasks[i].arg = &rounds_of[i];
    if ((arg != NULL ? conc_coro_start(&tasks[i])
                     : conc_thread_start(&tasks[i])) != 0)
      abort();
  }
  for (int i = 0; i < clients; i++) conc_join(&tasks[i], CONC_FOREVER);
  return NULL;
}

static double run_ours(void) {
  long sum = 0;
  bool coroutines = near == NULL && clients > 1;
  conc_task t = {.target = all_clients, .arg = coroutines ? &t : NULL};
  all_have.parties = all_begin.parties = clients;
  all_begin.action = begin;
  if (coroutines) conc_run(&t);
  else all_clients(NULL);
  for (int i = 0; i < clients; i++) sum += rounds_of[i];
  return failed ? NAN : (double)sum / (conc_now() - begin_at);
}

static double ours_near(void *arg) {
  double value;
  (void)arg;
  clean();
  near = make_queue();
  value = near != NULL ? run_ours() : NAN;
  conc_queue_free(near);
  clean();
  return value;
}

static double ours_far(void *arg) {
  peer *p = (peer *)arg;
  double value = NAN;
  if (!begin_peer(p)) return NAN;
  snprintf(address, sizeof address, "127.0.0.1:%d", p->port);
  far.address = address;
  far.authkey = KEY;
  if (conc_manager_connect(&far, 5) == 0) value = run_ours();
  conc_manager_shutdown(&far);
  end_peer(p);
  return value;
}

static double bare_far(void *arg) {
  peer *p = (peer *)arg;
  double value = begin_peer(p) ? run_bare(p) : NAN;
  end_peer(p);
  return value;
}

/* --- memory --- */

static size_t resident(pid_t pid) {
  char name[64];
  unsigned long long pages = 0;
  FILE *f;
  snprintf(name, sizeof name, "/proc/%d/statm", (int)pid);
  f = fopen(name, "r");
  if (f == NULL || fscanf(f, "%*u %llu", &pages) != 1) pages = 0;
  if (f != NULL) fclose(f);
  return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

static size_t memory_messages;
static double memory_of(void *arg) {
  peer *p = (peer *)arg;
  double value = NAN;
  size_t before, i;
  bool ok;
  bare c;
  together = 1000;
  ok = begin_peer(p) && open_bare(&c, p, true);
  before = ok ? resident(p->pid) : 0;
  for (i = 0; ok && i < 2 * (memory_messages / together); i++) {
    ok = next_phase(&c, p, i % 2 ? GETTING : PUTTING);
    while (ok && c.replies > 0) ok = receive_some(&c, p, 0);
    c.ids.size = 0;
  }
  if (ok)
    value = (double)(resident(p->pid) - before) / (double)memory_messages -
            SIZE;
  end_peer(p);
  return value;
}

/* --- rows --- */

static peer peers[] = {{"beanstalkd", BEANS, 0, 0, false, ""},
                       {"Redis", REDIS, 0, 0, false, ""},
                       {"conc, a bare client", CONC, 0, 0, false, ""},
                       {"conc, its own client", CONC, 0, 0, false, ""}};
enum { CONTENDERS = sizeof peers / sizeof *peers };

/* The contenders take turns, so that a drift of the machine meets all. */
static void row(const char *how) {
  double values[CONTENDERS + 1][BENCH_RUNS];
  char name[100];
  size_t n = (size_t)bench_rounds;
  snprintf(name, sizeof name, "%s: %d client%s%s", how, clients,
           clients > 1 ? "s" : "", together > 1 ? ", pipelined" : "");
  if (!bench_wanted(name)) return;
  for (size_t r = 0; r < n; r++) {
    for (int i = 0; i < CONTENDERS; i++)
      values[i][r] = bench_in_child(
          i + 1 == CONTENDERS ? ours_far : bare_far, &peers[i]);
    values[CONTENDERS][r] =
        clients > 16 ? NAN : bench_in_child(ours_near, NULL);
  }
  for (int i = 0; i < CONTENDERS; i++)
    bench_print(name, "rounds/s", peers[i].name, values[i], n);
  if (clients <= 16)
    bench_print(name, "rounds/s", "conc, no network", values[CONTENDERS], n);
}

static void rows(const char *how, bool kept, double sync, const char *beans,
                 const char *redis) {
  static const int shapes[][2] = {
      {1, 1}, {16, 1}, {1000, 1}, {1, TOGETHER}, {16, TOGETHER}};
  journal = kept ? path : NULL;
  journal_sync = sync;
  beans_log = beans;
  redis_log = redis;
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    clients = shapes[i][0];
    together = (size_t)shapes[i][1];
    row(how);
  }
}

static void memory_rows(void) {
  double values[3][BENCH_RUNS];
  journal = beans_log = redis_log = NULL;
  journal_sync = 0;
  if (!bench_wanted("memory of a leased message")) return;
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < 3; i++)
      values[i][r] = bench_in_child(memory_of, &peers[i]);
  for (int i = 0; i < 3; i++)
    bench_print("memory of a leased message", "bytes", peers[i].name,
                values[i], (size_t)bench_rounds);
}

int main(int argc, char **argv) {
  bench_begin(argc, argv, "Leases");
  bench_rounds = bench_quick ? BENCH_QUICK : 5;
  if (bench_quick) seconds = 0.1;
  memory_messages = bench_quick ? 100000 : 300000;
  signal(SIGPIPE, SIG_IGN);
  snprintf(folder, sizeof folder, "conc-bench-leases-%d", (int)getpid());
  snprintf(path, sizeof path, "%s/journal", folder);
  if (mkdir(folder, 0700) != 0) return 1;
  printf("leases, in this directory; a round is a put, a get and a done\n");
  rows("no journal", false, 0, NULL, NULL);
  rows("always", true, 0, "-f0", "always");
  rows("every second", true, 1, "-f1000", "everysec");
  rows("never", true, CONC_FOREVER, "-F", "no");
  memory_rows();
  rmdir(folder);
  return 0;
}
