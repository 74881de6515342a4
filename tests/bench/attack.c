/* What fifty honest clients of a manager notice of one that means it ill.
 *
 *   attack [--quick] [FILTER]       only attacks whose name contains FILTER
 *
 * A server in one process, fifty clients in another: each puts and gets, one
 * call after the other, and rests for some milliseconds. Quiet and attack take
 * turns, ROUNDS times, with the same server and clients: a machine that others
 * use, too, is as slow in the one as in the other. A row is the time of a put
 * with its get that 99 in 100 do not exceed, while one attack runs; its limit
 * is the same in the quiet turn right before it. Asked: within 2x.
 *
 *   drip             10 bytes at a time into a frame of 60 MiB
 *   upload           puts of 60 MiB, meant well
 *   pipeliner        requests without end; its replies are read
 *   large numbers    puts of 6,000 numbers of 9,800 digits
 *   poison           requests that are none, or name classes
 *   silent           connections that say nothing, ever more
 *   wrong keys       handshakes that fail, one after the other
 *   no reader        requests without end; its replies are not read
 *   EMFILE           more connections than the server has descriptors
 *
 * The attackers, and the thread that takes away what they put, would be on
 * other machines. Here they only get what the others leave of the CPUs
 * (SCHED_IDLE), and let the others run after each call that they make, for
 * Linux may leave even such a one the CPU until the next tick (4 ms) while the
 * server waits for it: so what they cost is what they make the server do.
 * Nothing is bound to a CPU. An attacker is killed after each turn, and a
 * while is given to the server to have done with what it left.
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <sched.h>
#include <sys/resource.h>

#define KEY "attack"
enum { CLIENTS = 50, SAMPLES = 200000, ROUNDS = 5 };
static double span = 0.6; /* seconds of one turn */
static char address[64]; /* of the server */

/* The calling thread runs when no other wants to. */
static void run_last(void) {
  conc_current(); /* the library knows the thread */
  conc__this.gives_way = true;
#ifdef SCHED_IDLE
  struct sched_param p = {0};
  if (sched_setscheduler(0, SCHED_IDLE, &p) == 0) return;
#endif
  if (setpriority(PRIO_PROCESS, 0, 19) != 0) _exit(1);
}

/* --- the server --- */

/* What is put into "bin" is thrown away, as a reader would. */
static void *empty_bin(void *bin) {
  conc_value *v;
  run_last();
  while (conc_get_value((conc_queue *)bin, &v, CONC_FOREVER) == 0)
    conc_value_free(v);
  return NULL;
}

/* In a child. Writes its address to a pipe, and serves until it is killed. */
static pid_t start_server(rlim_t descriptors) {
  int ends[2];
  ssize_t n;
  pid_t pid;
  if (pipe(ends) != 0) return -1;
  pid = bench_fork();
  if (pid == 0) {
    struct rlimit files = {descriptors, descriptors};
    conc_manager m = {.address = "127.0.0.1:0", .authkey = KEY};
    conc_queue_opts few = {.capacity = 4};
    conc_task emptier = {.target = empty_bin};
    if (descriptors > 0) m.max_handshakes = 10000;
    if (descriptors > 0 && setrlimit(RLIMIT_NOFILE, &files) != 0) _exit(1);
    conc_manager_register_queue(&m, "q", conc_queue_new(NULL));
    emptier.arg = conc_queue_new(&few);
    conc_manager_register_queue(&m, "bin", (conc_queue *)emptier.arg);
    if (conc_manager_start(&m) != 0) _exit(1);
    if (write(ends[1], conc_manager_address(&m), 63) < 0) _exit(1);
    if (conc_thread_start(&emptier) != 0) _exit(1);
    for (;;) pause();
  }
  close(ends[1]);
  n = read(ends[0], address, sizeof address - 1);
  close(ends[0]);
  return n > 0 ? pid : -1;
}

static void stop(pid_t pid) {
  if (pid <= 0) return;
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
}

/* --- the honest --- */

typedef struct crowd {
  conc_manager m;
  conc_queue *q;
  double *took; /* of `n` pairs, in us */
  size_t n;
  double until;
  bool failed;
} crowd;

static void *honest(void *arg) {
  crowd *c = (crowd *)arg;
  char item[16] = "x16-bytes-long.";
  unsigned random = (unsigned)(uintptr_t)&item >> 4;
  while (!c->failed && bench_now() < c->until) {
    double t = bench_now();
    if (conc_put(c->q, item, sizeof item, 20) != 0 ||
        conc_get(c->q, item, sizeof item, 20) < 0)
      c->failed = true;
    if (c->n < SAMPLES) c->took[c->n++] = (bench_now() - t) * 1e6;
    random = random * 1103515245u + 12345u;
    conc_sleep(0.01 + 0.01 * (random >> 16 & 1023) / 1024);
  }
  return NULL;
}

static void *crowd_main(void *arg) {
  crowd *c = (crowd *)arg;
  conc_task t[CLIENTS];
  memset(t, 0, sizeof t);
  for (int i = 0; i < CLIENTS; i++) {
    t[i].target = honest;
    t[i].arg = c;
    if (conc_coro_start(&t[i]) != 0) c->failed = true;
  }
  for (int i = 0; i < CLIENTS; i++) conc_join(&t[i], CONC_FOREVER);
  return NULL;
}

/* One round of the crowd: the p99, or NAN. */
static double measure(crowd *c, double seconds) {
  conc_task root = {.target = crowd_main, .arg = c};
  c->n = 0;
  c->until = bench_now() + seconds;
  if (conc_run(&root) != 0 || c->failed) return NAN;
  return bench_percentile(c->took, c->n, 0.99);
}

/* --- the attackers, each in a child --- */

/* A connection that has authenticated; what is sent there is up to us. */
static int session(conc_manager *m) {
  conc__peer *p;
  int fd;
  memset(m, 0, sizeof *m);
  m->address = address;
  m->authkey = KEY;
  if (conc_manager_connect(m, 10) != 0) _exit(1);
  if (conc__peer_get(m->state, &p, conc_now() + 10) != 0) _exit(1);
  fd = dup(p->channel.fd);
  if (fd < 0) _exit(1);
  return fd;
}

static void *read_all(void *fd) {
  static char buf[1 << 16];
  while (conc_read(*(int *)fd, buf, sizeof buf, CONC_FOREVER) > 0) {
  }
  return NULL;
}

static void reader(int *fd) {
  static conc_task t;
  t.target = read_all;
  t.arg = fd;
  conc_thread_start(&t);
}

/* Writes all of it, in pieces. False: the connection has ended. */
static bool send_pieces(int fd, const void *data, size_t size) {
  const char *p = (const char *)data;
  while (size > 0) {
    size_t n = size < 65536 ? size : 65536;
    if (conc_write(fd, p, n, CONC_FOREVER) <= 0) return false;
    p += n;
    size -= n;
    sched_yield();
  }
  return true;
}

static void send_for_ever(int fd, const void *data, size_t size) {
  while (send_pieces(fd, data, size)) {
  }
  for (;;) pause();
}

/* A frame of n bytes, all of them 'x', behind what begins it. */
static unsigned char *frame(const void *begin, size_t size, size_t n) {
  unsigned char *p = (unsigned char *)malloc(n + 4);
  if (p == NULL) _exit(1);
  memset(p, 'x', n + 4);
  for (int i = 0; i < 4; i++) p[i] = (unsigned char)(n >> (24 - 8 * i));
  memcpy(p + 4, begin, size);
  return p;
}

static void drip(void) {
  conc_manager m;
  int fd = session(&m);
  size_t size = (size_t)60 << 20;
  unsigned char *p = frame("", 0, size);
  conc__set_nodelay(fd);
  /* Most of it is there already when it begins to drip. */
  if (!send_pieces(fd, p, size - (4 << 20))) _exit(1);
  for (size_t at = size - (4 << 20); at + 10 < size; at += 10)
    if (!send_pieces(fd, p + at, 10)) break;
  for (;;) pause();
}

static void upload(void) {
  conc_manager m;
  size_t size = (size_t)60 << 20;
  char *p = (char *)malloc(size);
  conc_queue *q;
  session(&m);
  q = conc_manager_get(&m, "bin");
  memset(p, 'x', size);
  while (conc_put(q, p, size, CONC_FOREVER) == 0) {
  }
}

/* The begin of a request: PROTO, a mark, the id of a queue, and the name of a
   method. How many bytes it has. */
static size_t begin_request(unsigned char *p, conc_manager *m,
                            const char *queue, const char *method) {
  const conc__proxy *proxy = (const conc__proxy *)conc_manager_get(m, queue);
  const char *texts[2];
  size_t n = 3;
  if (proxy == NULL) _exit(1);
  texts[0] = conc__proxy_ident(proxy)->text;
  texts[1] = method;
  memcpy(p, "\x80\4(", 3);
  for (int i = 0; i < 2; i++) {
    size_t size = strlen(texts[i]);
    memcpy(p + n, "X\0\0\0", 5);
    p[n + 1] = (unsigned char)size;
    memcpy(p + n + 5, texts[i], size);
    n += 5 + size;
  }
  return n;
}

/* Requests for the size of a queue, as many as fit. */
static unsigned char sizes[96000];
static size_t fill_sizes(conc_manager *m) {
  unsigned char one[200] = {0, 0, 0, 0};
  size_t n = 4 + begin_request(one + 4, m, "q", "qsize"), all = 0;
  memcpy(one + n, ")}t.", 4);
  n += 4;
  one[3] = (unsigned char)(n - 4);
  for (; all + n <= sizeof sizes; all += n) memcpy(sizes + all, one, n);
  return all;
}

static void pipeliner(void) {
  conc_manager m;
  int fd = session(&m);
  reader(&fd);
  send_for_ever(fd, sizes, fill_sizes(&m));
}

static void no_reader(void) {
  conc_manager m;
  int fd = session(&m);
  send_for_ever(fd, sizes, fill_sizes(&m));
}

static void large_numbers(void) {
  enum { NUMBERS = 6000, BYTES = 4060 };
  unsigned char head[200], *p, *at;
  conc_manager m;
  int fd = session(&m);
  size_t n = begin_request(head, &m, "bin", "put"), all;
  memcpy(head + n, "(](", 3); /* a tuple of a list */
  n += 3;
  all = n + NUMBERS * (BYTES + 5) + 5;
  p = frame(head, n, all);
  at = p + 4 + n;
  reader(&fd);
  for (int i = 0; i < NUMBERS; i++, at += 5 + BYTES)
    memcpy(at, "\x8b\xdc\x0f\0\0", 5);
  memcpy(at, "et}t.", 5);
  send_for_ever(fd, p, all + 4);
}

static void poison(void) {
  static const char bad[][40] = {
      "\0\0\0\1x", "\0\0\0\3K\1.",
      "\0\0\0\x1f(X\1\0\0\0" "1X\3\0\0\0putcos\nsystem\n)R.",
      "\0\0\0\6(NNNN."};
  static const size_t sizes_of[] = {5, 7, 35, 10};
  static unsigned char data[57 * 500];
  size_t n = 0;
  conc_manager m;
  int fd = session(&m);
  reader(&fd);
  for (int i = 0; i < 2000; n += sizes_of[i++ % 4])
    memcpy(data + n, bad[i % 4], sizes_of[i % 4]);
  send_for_ever(fd, data, n);
}

/* As many connections as this process may have; the oldest makes room. */
static void hold_connections(size_t most) {
  int *fds = (int *)malloc(most * sizeof *fds);
  size_t i = 0;
  memset(fds, -1, most * sizeof *fds);
  for (;; i = (i + 1) % most) {
    if (fds[i] >= 0) close(fds[i]);
    fds[i] = conc_connect(address, 1);
    if (fds[i] < 0) usleep(10000);
    sched_yield();
  }
}

static void silent(void) { hold_connections(500); }
static void exhaust(void) { hold_connections(400); }

static void wrong_keys(void) {
  for (;;) {
    conc_manager m = {.address = address, .authkey = "wrong"};
    conc_manager_connect(&m, 1);
    sched_yield();
  }
}

/* --- all of it --- */

/* The crowd beside an attacker, from a moment after its start. */
static double measure_attack(crowd *c, void (*attack)(void)) {
  double p99;
  pid_t attacker = bench_fork();
  if (attacker == 0) {
    run_last();
    attack();
    _exit(0);
  }
  usleep(200000);
  p99 = attacker < 0 ? NAN : measure(c, span);
  stop(attacker);
  return p99;
}

static void row(crowd *c, const char *name, void (*attack)(void),
                rlim_t descriptors) {
  double p99[ROUNDS], quiet[ROUNDS];
  char title[80];
  pid_t server;
  if (!bench_wanted(name)) return;
  server = start_server(descriptors);
  memset(&c->m, 0, sizeof c->m);
  c->m.address = address;
  c->m.authkey = KEY;
  c->failed = server < 0 || conc_manager_connect(&c->m, 10) != 0;
  c->q = c->failed ? NULL : conc_manager_get(&c->m, "q");
  if (c->q == NULL) c->failed = true;
  for (int i = 0; i < ROUNDS; i++) {
    p99[i] = quiet[i] = NAN;
    if (!c->failed) measure(c, 0.2); /* all have their connections, and rest */
    if (!c->failed) quiet[i] = measure(c, span);
    if (!c->failed) p99[i] = measure_attack(c, attack);
  }
  stop(server);
  if (c->m.state != NULL) conc_manager_shutdown(&c->m);
  snprintf(title, sizeof title, "p99 of 50 clients: %s", name);
  bench_print(title, "us", "conc, attacked", p99, ROUNDS);
  bench_print(title, "us", "limit: in quiet", quiet, ROUNDS);
}

int main(int argc, char **argv) {
  static crowd c;
  bench_begin(argc, argv, "Attack");
  if (bench_quick) span = 0.2;
  signal(SIGPIPE, SIG_IGN);
  c.took = (double *)malloc(SAMPLES * sizeof *c.took);
  if (c.took == NULL) return 1;
  row(&c, "drip", drip, 0);
  row(&c, "upload of 60 MiB", upload, 0);
  row(&c, "pipeliner", pipeliner, 0);
  row(&c, "large numbers", large_numbers, 0);
  row(&c, "poison", poison, 0);
  row(&c, "silent", silent, 0);
  row(&c, "wrong keys", wrong_keys, 0);
  row(&c, "no reader", no_reader, 0);
  row(&c, "EMFILE", exhaust, 100);
  free(c.took);
  return 0;
}
