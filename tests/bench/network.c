/* A queue over the network, against Redis, beanstalkd, Python's own manager
 * and a bare echo.
 *
 *   network [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * TCP over loopback; the server on one CPU and all clients on another, or,
 * where a row says so, both on one. The contenders take turns in short rounds.
 * The limit is a bare echo: the same message sizes, no queue, no protocol. Of
 * Redis it is LPUSH and RPOP, and BRPOP where a client waits.
 *
 *   one client       put and get in turn, each awaited: pairs/s
 *   pipelined        100 puts awaited together, then 100 gets: pairs/s; with
 *                    64 KiB 8 of each, and MB/s of items through the queue
 *   clients          n connections, each one call at a time: pairs/s
 *   wake-up          from another client's put to the answer of a blocked get
 *   waiters          1,000 blocked gets, one item at a time
 *   python client    Python's own client, unmodified: connect() and so on
 *   timeouts         1,000 gets that wait 1 s at once: how late the answers
 *   sessions         connect, authenticate, put, get, close: a second
 *   memory           the server's resident bytes a connection
 *   idle             the server's CPU time while its clients say nothing
 *
 * Peers that are not installed are "not here", and a line says so:
 * redis-server and libhiredis-dev (-DNO_HIREDIS), beanstalkd, python3 ($PYTHON
 * names another). The load generator speaks Python's protocol in ready-made
 * requests, after a real handshake; Redis gets its requests from it, too,
 * which is kinder to it than hiredis is.
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "network_load.h"
#include <sys/resource.h>
#ifndef NO_HIREDIS
#include <hiredis/hiredis.h>
#endif

enum { CROWD = 1000 };
static double span = 0.25; /* seconds of one measurement */

static peer peers[] = {{"limit: bare echo", ECHO, 0, 0, false, ""},
                       {"limit: bare echo that spins", SPIN, 0, 0, false, ""},
                       {"Redis", REDIS, 0, 0, false, ""},
                       {"beanstalkd", BEANS, 0, 0, false, ""},
                       {"Python", PYTHON, 0, 0, false, ""},
                       {"conc", CONC, 0, 0, false, ""}};

static void start_peers(const char *which, int cpu) {
  for (protocol k = ECHO; k <= CONC; k++)
    if (strchr(which, "ESRBPC"[k]) != NULL) start_peer(&peers[k], cpu);
}

static void stop_peers(void) {
  for (protocol k = ECHO; k <= CONC; k++) stop_server(&peers[k]);
}

/* --- contenders ---------------------------------------------------------- */

typedef struct contender {
  const char *name;
  double (*measure)(struct contender *);
  peer *p;
  load *l;
  python_client *python;
  double runs[BENCH_RUNS];
} contender;

static contender who(const char *name, double (*measure)(contender *), peer *p,
                     python_client *python) {
  contender c;
  memset(&c, 0, sizeof c);
  c.name = name;
  c.measure = measure;
  c.p = p;
  c.python = python;
  return c;
}

/* Contenders without a way to measure them do not take part. */
static void compare(const char *row, const char *unit, contender *c, int n) {
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < n; i++)
      if (c[i].measure != NULL) c[i].runs[r] = c[i].measure(&c[i]);
  for (int i = 0; i < n; i++)
    if (c[i].measure != NULL)
      bench_print(row, unit, c[i].name, c[i].runs, (size_t)bench_rounds);
}

/* The same for the four queues, of which measure() says how one does. Several
   values at once, a row each. */
enum { VALUES_MOST = 3, QUEUES = 4 };
static const protocol queue_peers[QUEUES] = {CONC, REDIS, BEANS, PYTHON};

static void compare_queues(const char *const *rows, const char *const *units,
                           int values, void (*measure)(peer *, double *)) {
  double all[VALUES_MOST][QUEUES][BENCH_RUNS], once[VALUES_MOST];
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < QUEUES; i++) {
      for (int v = 0; v < values; v++) once[v] = NAN;
      measure(&peers[queue_peers[i]], once);
      for (int v = 0; v < values; v++) all[v][i][r] = once[v];
    }
  for (int v = 0; v < values; v++)
    for (int i = 0; i < QUEUES; i++)
      bench_print(rows[v], units[v], peers[queue_peers[i]].name, all[v][i],
                  (size_t)bench_rounds);
}

/* --- one client, one call at a time -------------------------------------- */

/* Reads one reply: blocking at once, or after looking for it for 50 us. */
static bool await_bare(const peer *p, conn *c) {
  double end = p->speaks == SPIN ? bench_now() + SPIN_SECONDS : 0;
  while (c->left > 0) {
    int flags = end > 0 && bench_now() < end ? MSG_DONTWAIT : 0;
    if (!receive(p, c, flags)) return false;
  }
  return true;
}

static double one_bare(contender *c) {
  bytes b[2] = {{NULL, 0, 0}, {NULL, 0, 0}};
  double start, now;
  long pairs = 0;
  bool ok = true;
  conn session;
  if (!open_conn(c->p, &session)) return NAN;
  encode(&b[0], c->p, PUT, 16);
  encode(&b[1], c->p, GET, 16);
  start = bench_now();
  do {
    for (int i = 0; i < 2 && ok; i++)
      ok = send_requests(c->p, &session, &b[i], 1) &&
           await_bare(c->p, &session) && confirm(c->p, &session);
    pairs++;
    now = bench_now();
  } while (ok && now < start + span);
  close_conn(&session);
  free(b[0].data);
  free(b[1].data);
  return ok ? (double)pairs / (now - start) : NAN;
}

#ifndef NO_HIREDIS
static bool redis_ok(redisContext *r, const char *command) {
  redisReply *reply =
      (redisReply *)redisCommand(r, command, "x16-bytes-long.x", (size_t)16);
  bool ok = reply != NULL && reply->type != REDIS_REPLY_ERROR &&
            reply->type != REDIS_REPLY_NIL;
  if (reply != NULL) freeReplyObject(reply);
  return ok;
}

static double one_hiredis(contender *c) {
  double start, now;
  long pairs = 0;
  redisContext *r;
  bool ok;
  if (c->p->pid == 0) return NAN;
  r = redisConnect("127.0.0.1", c->p->port);
  ok = r != NULL && r->err == 0 && redis_ok(r, "AUTH " KEY);
  start = bench_now();
  do {
    ok = ok && redis_ok(r, "LPUSH q %b") && redis_ok(r, "RPOP q");
    pairs++;
    now = bench_now();
  } while (ok && now < start + span);
  if (r != NULL) redisFree(r);
  return ok ? (double)pairs / (now - start) : NAN;
}
#else
static double one_hiredis(contender *c) {
  (void)c;
  return NAN;
}
#endif

static double one_python(contender *c) {
  double answer[3];
  ask_python(c->python, "pairs", span, answer);
  return answer[0];
}

/* --- conc.h's own client, in a child --- */

static bool client_connect(conc_manager *m, const peer *p, char *address,
                           size_t size) {
  memset(m, 0, sizeof *m);
  snprintf(address, size, "127.0.0.1:%d", p->port);
  m->address = address;
  m->authkey = KEY;
  return conc_manager_connect(m, 5.0) == 0;
}

static bool client_pair(conc_queue *q) {
  char item[16] = "x16-bytes-long.";
  return conc_put(q, item, sizeof item, 5.0) == 0 &&
         conc_get(q, item, sizeof item, 5.0) == (ssize_t)sizeof item;
}

static double child_pairs(void *arg) {
  const peer *p = (const peer *)arg;
  double start, now;
  long pairs = 0;
  char address[32];
  conc_manager m;
  conc_queue *q;
  bool ok;
  settle(CLIENT_CPU);
  if (!client_connect(&m, p, address, sizeof address)) return NAN;
  q = conc_manager_get(&m, "get_task_queue");
  ok = q != NULL && client_pair(q);
  start = bench_now();
  do {
    ok = ok && client_pair(q);
    pairs++;
    now = bench_now();
  } while (ok && now < start + span);
  conc_manager_shutdown(&m);
  return ok ? (double)pairs / (now - start) : NAN;
}

static double one_conc(contender *c) {
  return c->p->pid > 0 ? bench_in_child(child_pairs, c->p) : NAN;
}

/* `late`: conc.h is pinned to the one CPU when it has seen that there are
   more, as when all others are busy: does it find out? For conc.h alone. */
static void rows_of_one_client(const char *row, int cpu, bool late) {
  peer *echo = &peers[ECHO], *redis = &peers[REDIS], *python = &peers[PYTHON];
  peer *conc = &peers[CONC];
  python_client to_python, to_conc;
  if (!bench_wanted(row)) return;
  see_all_cpus = cpu == SERVER_CPU || late;
  start_peers(cpu == SERVER_CPU ? "ESRBPC" : late ? "EC" : "ERBPC", cpu);
  to_python = start_python_client(python);
  to_conc = start_python_client(conc);
  {
    contender c[] = {
        who("conc with a conc client", one_conc, conc, NULL),
        who("conc with a Python client", one_python, conc, &to_conc),
        who("conc with a bare client", one_bare, conc, NULL),
        who(peers[ECHO].name, one_bare, echo, NULL),
        who(peers[SPIN].name, one_bare, &peers[SPIN], NULL),
        who("Redis", one_hiredis, redis, NULL),
        who("Python", one_python, python, &to_python),
        who("beanstalkd", one_bare, &peers[BEANS], NULL)};
    if (cpu != SERVER_CPU) c[4].measure = NULL; /* it is hopeless on one */
    if (late) c[5].measure = c[6].measure = c[7].measure = NULL;
    compare(row, "pairs/s", c, (int)(sizeof c / sizeof *c));
  }
  stop_python_client(&to_python);
  stop_python_client(&to_conc);
  stop_peers();
  see_all_cpus = true;
}

/* --- many calls under way ------------------------------------------------ */

static double through_load(contender *c) {
  double pairs = run_load(c->l, span);
  /* Of 64 KiB it is the megabytes that count. */
  return c->l->depth == 8 ? pairs * 65536 / 1e6 : pairs;
}

typedef struct shape {
  const char *row, *unit;
  size_t connections, depth, item;
} shape;

/* What the slowest client gets, of what it should. */
static void print_fairness(const shape *s, const load *l) {
  char name[80];
  double share;
  long least = l->conns[0].pairs, sum = 0;
  for (size_t i = 0; i < l->n; i++) {
    sum += l->conns[i].pairs;
    if (l->conns[i].pairs < least) least = l->conns[i].pairs;
  }
  share = (double)least * (double)s->connections / (double)sum;
  snprintf(name, sizeof name, "%s, the slowest one's share", s->row);
  bench_print(name, "of the average", "conc", &share, 1);
}

/* Redis is driven by the generator here, not by hiredis: it is faster so. */
static void rows_of_load(const shape *s, bool with_python) {
  static const protocol order[] = {CONC, REDIS, BEANS, ECHO, PYTHON};
  contender c[5];
  load loads[5];
  int n = with_python ? 5 : 4;
  if (!bench_wanted(s->row)) return;
  start_peers(with_python ? "ERBPC" : "ERBC", SERVER_CPU);
  memset(c, 0, sizeof c);
  for (int i = 0; i < n; i++) {
    c[i].p = &peers[order[i]];
    c[i].name = c[i].p->name;
    c[i].measure = through_load;
    c[i].l = &loads[i];
    open_load(&loads[i], c[i].p, s->connections, s->depth, s->item);
  }
  compare(s->row, s->unit, c, n);
  if (s->depth == 1 && !loads[0].failed) print_fairness(s, &loads[0]);
  for (int i = 0; i < n; i++) close_load(&loads[i]);
  stop_peers();
}

/* --- blocked gets -------------------------------------------------------- */

/* One blocked get, then a put from another connection; p50 from the put to
   the get's answer. For an echo: a message there and back, the same way. */
static double wake_up(const peer *p, double pause) {
  enum { TIMES = 100 };
  double took[TIMES];
  size_t n = 0, times = bench_quick ? 30 : TIMES;
  bytes put = {NULL, 0, 0}, get = {NULL, 0, 0};
  conn getter, putter;
  bool ok = open_conn(p, &getter) && open_conn(p, &putter), queue = true;
  encode(&put, p, PUT, 16);
  encode(&get, p, GET_WAIT, 16);
  if (p->speaks <= SPIN) queue = false;
  for (size_t i = 0; ok && i < times; i++) {
    double start, rest = bench_now() + pause;
    if (queue) ok = send_requests(p, &getter, &get, 1);
    if (pause >= 1e-3) usleep((useconds_t)(pause * 1e6));
    while (bench_now() < rest) continue;
    start = bench_now();
    ok = ok && send_requests(p, queue ? &putter : &getter, &put, 1) &&
         await_bare(p, &getter);
    took[n++] = (bench_now() - start) * 1e6;
    ok = ok && (!queue || await_bare(p, &putter)) && confirm(p, &getter);
  }
  if (p->pid > 0) {
    close_conn(&getter);
    close_conn(&putter);
  }
  free(put.data);
  free(get.data);
  return ok ? bench_median(took, n) : NAN;
}

static double wake_up_rested(contender *c) { return wake_up(c->p, 1e-3); }
static double wake_up_busy(contender *c) { return wake_up(c->p, 25e-6); }

static void rows_of_wake_up(const char *row, int cpu,
                            double (*measure)(contender *)) {
  contender c[] = {who("conc", measure, &peers[CONC], NULL),
                   who("Redis", measure, &peers[REDIS], NULL),
                   who("beanstalkd", measure, &peers[BEANS], NULL),
                   who("Python", measure, &peers[PYTHON], NULL),
                   who(peers[ECHO].name, measure, &peers[ECHO], NULL)};
  if (!bench_wanted(row)) return;
  start_peers("ERBPC", cpu);
  compare(row, "us", c, 5);
  stop_peers();
}

/* CPU time that a process has used, all threads. */
static double cpu_seconds(pid_t pid) {
  struct timespec t;
  clockid_t clock;
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0)
    return NAN;
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool all_ask(load *l, request what) {
  bytes b = {NULL, 0, 0};
  encode(&b, l->p, what, 16);
  for (size_t i = 0; i < l->n && !l->failed; i++)
    l->failed = !send_requests(l->p, &l->conns[i], &b, 1);
  free(b.data);
  return !l->failed;
}

typedef struct waiters {
  double answers, cpu_us; /* for each item */
  size_t served;          /* different clients that got one */
} waiters;

/* Puts items one at a time; whoever gets one waits again. */
static bool put_to_waiters(load *l, conn *putter, int items, waiters *w) {
  struct epoll_event events[16];
  for (int i = 0; i < items; i++) {
    int n = 0;
    if (!call(l->p, putter, PUT, 16)) return false;
    while (n == 0) {
      n = epoll_wait(l->ep, events, 16, 5000);
      if (n <= 0) return false;
      for (int k = 0; k < n; k++) {
        conn *c = (conn *)events[k].data.ptr;
        if (!receive(l->p, c, MSG_DONTWAIT)) return false;
        if (c->left > 0) { /* a part of the answer */
          n = 0;
          continue;
        }
        w->answers++;
        if (c->pairs++ == 0) w->served++;
      }
    }
    for (int k = 0; k < n; k++) {
      conn *c = (conn *)events[k].data.ptr;
      bytes b = {NULL, 0, 0};
      if (!confirm(l->p, c)) return false;
      encode(&b, l->p, GET_WAIT, 16);
      if (!send_requests(l->p, c, &b, 1)) return false;
      free(b.data);
    }
  }
  return true;
}

/* On a server of its own: Python's would hand items to the dead. */
static waiters measure_waiters(peer *p, size_t n) {
  waiters w = {0, 0, 0}, none = {NAN, NAN, 0};
  int items = bench_quick ? 100 : 300;
  conn putter;
  load l;
  bool ok;
  start_peer(p, SERVER_CPU);
  open_load(&l, p, n, 1, 16);
  ok = !l.failed && open_conn(p, &putter) && all_ask(&l, GET_WAIT);
  if (ok) {
    usleep(300000); /* until all wait */
    w.cpu_us = cpu_seconds(p->pid);
    ok = put_to_waiters(&l, &putter, items, &w);
    w.cpu_us = (cpu_seconds(p->pid) - w.cpu_us) * 1e6 / items;
    w.answers /= items;
    close_conn(&putter);
  }
  close_load(&l);
  stop_server(p);
  return ok ? w : none;
}

static void values_of_waiters(peer *p, double *values) {
  waiters one = measure_waiters(p, 1), many = measure_waiters(p, CROWD);
  values[0] = many.answers;
  values[1] = many.cpu_us;
  values[2] = one.cpu_us;
}

static void rows_of_waiters(void) {
  static const char *const rows[] = {"waiters, 1000, answered by one item",
                                     "waiters, 1000, server's CPU an item",
                                     "waiters, one, server's CPU an item"};
  static const char *const units[] = {"clients", "us", "us"};
  if (bench_wanted("waiters"))
    compare_queues(rows, units, 3, values_of_waiters);
}

/* --- timeouts ------------------------------------------------------------ */

static size_t collect_lateness(load *l, double *late) {
  struct epoll_event events[256];
  size_t n = 0;
  while (n < l->n) {
    int k = epoll_wait(l->ep, events, 256, 5000);
    double now = bench_now();
    if (k <= 0) return 0;
    for (int i = 0; i < k; i++) {
      conn *c = (conn *)events[i].data.ptr;
      if (!receive(l->p, c, MSG_DONTWAIT)) return 0;
      if (c->left == 0) late[n++] = (now - c->sent_at - 1) * 1e3;
    }
  }
  return n;
}

static void values_of_timeouts(peer *p, double *values) {
  double late[CROWD];
  size_t n = 0;
  load l;
  start_peer(p, SERVER_CPU);
  open_load(&l, p, CROWD, 1, 16);
  if (all_ask(&l, GET_1_SECOND)) n = collect_lateness(&l, late);
  close_load(&l);
  stop_server(p);
  values[0] = bench_percentile(late, n, 0.5);
  values[1] = n > 0 ? late[n - 1] : NAN;
}

static void rows_of_timeouts(void) {
  static const char *const rows[] = {"timeouts, 1000 of 1 s, late by",
                                     "timeouts, 1000 of 1 s, the last is late"};
  static const char *const units[] = {"ms", "ms"};
  if (bench_wanted("timeouts"))
    compare_queues(rows, units, 2, values_of_timeouts);
}

/* --- sessions ------------------------------------------------------------ */

static double sessions_bare(contender *c) {
  double start = bench_now(), now;
  long n = 0;
  conn session;
  do {
    if (!open_conn(c->p, &session) || !call(c->p, &session, PUT, 16) ||
        !call(c->p, &session, GET, 16))
      return NAN;
    close_conn(&session);
    n++;
    now = bench_now();
  } while (now < start + span);
  return (double)n / (now - start);
}

static double sessions_python(contender *c) {
  double answer[3];
  ask_python(c->python, "sessions", span, answer);
  return answer[0];
}

static double child_sessions(void *arg) {
  double start, now;
  long n = 0;
  settle(CLIENT_CPU);
  start = bench_now();
  do {
    char address[32];
    conc_manager m;
    conc_queue *q;
    if (!client_connect(&m, (const peer *)arg, address, sizeof address))
      return NAN;
    q = conc_manager_get(&m, "get_task_queue");
    if (q == NULL || !client_pair(q)) return NAN;
    conc_manager_shutdown(&m);
    n++;
    now = bench_now();
  } while (now < start + span);
  return (double)n / (now - start);
}

static double sessions_conc(contender *c) {
  return c->p->pid > 0 ? bench_in_child(child_sessions, c->p) : NAN;
}

static void rows_of_sessions(void) {
  peer *redis = &peers[REDIS], *python = &peers[PYTHON], *conc = &peers[CONC];
  python_client to_python, to_conc;
  if (!bench_wanted("sessions")) return;
  start_peers("RBPC", SERVER_CPU);
  to_python = start_python_client(python);
  to_conc = start_python_client(conc);
  {
    contender c[] = {
        who("conc with a conc client", sessions_conc, conc, NULL),
        who("conc with a Python client", sessions_python, conc, &to_conc),
        who("conc with a bare client", sessions_bare, conc, NULL),
        who("Redis", sessions_bare, redis, NULL),
        who("beanstalkd", sessions_bare, &peers[BEANS], NULL),
        who("Python", sessions_python, python, &to_python),
        who("Python with a bare client", sessions_bare, python, NULL)};
    compare("sessions", "/s", c, (int)(sizeof c / sizeof *c));
  }
  stop_python_client(&to_python);
  stop_python_client(&to_conc);
  stop_peers();
}

/* --- Python's own client ------------------------------------------------- */

static void rows_of_python_client(void) {
  static const char *const calls[] = {"connect()", "get_task_queue()",
                                      "put of 60000 bytes"};
  double own[3][BENCH_RUNS], ours[3][BENCH_RUNS], once[3];
  size_t n = (size_t)bench_rounds;
  python_client to_python, to_conc;
  char name[128];
  if (!bench_wanted("python client")) return;
  start_peers("PC", SERVER_CPU);
  to_python = start_python_client(&peers[PYTHON]);
  to_conc = start_python_client(&peers[CONC]);
  for (size_t r = 0; r < n; r++) {
    ask_python(&to_conc, "latency", bench_quick ? 10 : 50, once);
    for (int i = 0; i < 3; i++) ours[i][r] = once[i];
    ask_python(&to_python, "latency", bench_quick ? 1 : 5, once);
    for (int i = 0; i < 3; i++) own[i][r] = once[i];
  }
  stop_python_client(&to_python);
  stop_python_client(&to_conc);
  stop_peers();
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, "python client, %s", calls[i]);
    bench_print(name, "ms", "conc", ours[i], n);
    bench_print(name, "ms", "Python", own[i], n);
  }
}

/* --- memory, and doing nothing ------------------------------------------- */

static double resident(pid_t pid) {
  char path[64];
  double pages = NAN;
  FILE *f;
  snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
  f = fopen(path, "r");
  if (f != NULL && fscanf(f, "%*f %lf", &pages) != 1) pages = NAN;
  if (f != NULL) fclose(f);
  return pages * (double)sysconf(_SC_PAGESIZE);
}

static void values_of_memory(peer *p, double *values) {
  /* Python has a thread for each; a tenth of them tells as much. */
  size_t n = bench_quick || p->speaks == PYTHON ? 1000 : 10000;
  double before;
  load warm, l;
  start_peer(p, CLIENT_CPU); /* one CPU: the handshakes take less time */
  open_load(&warm, p, 10, 1, 16);
  run_load(&warm, 0.05);
  close_load(&warm);
  usleep(50000);
  before = resident(p->pid);
  open_load(&l, p, n, 1, 16);
  /* Redis gives its first buffers back after two seconds. */
  if (p->speaks == REDIS && p->pid > 0) usleep(bench_quick ? 0 : 3000000);
  if (!l.failed)
    values[0] = (resident(p->pid) - before) / (double)n / 1024;
  if (all_ask(&l, GET_WAIT)) {
    usleep(500000);
    values[1] = (resident(p->pid) - before) / (double)n / 1024;
  }
  close_load(&l);
  stop_server(p);
}

static void rows_of_memory(void) {
  static const char *const rows[] = {"memory of a connection, idle",
                                     "memory of a connection that waits"};
  static const char *const units[] = {"KiB", "KiB"};
  if (bench_wanted("memory")) compare_queues(rows, units, 2, values_of_memory);
}

static void values_of_idle(peer *p, double *values) {
  double used = NAN;
  load l;
  start_peer(p, SERVER_CPU);
  open_load(&l, p, 10, 1, 16);
  if (!isnan(run_load(&l, 0.1))) {
    usleep(10000);
    used = cpu_seconds(p->pid);
    usleep(500000);
    used = (cpu_seconds(p->pid) - used) / 0.5 * 1e3;
  }
  close_load(&l);
  stop_server(p);
  values[0] = used;
}

static void rows_of_idle(void) {
  static const char *const row = "idle, CPU in a second after traffic";
  static const char *const unit = "ms";
  if (bench_wanted(row)) compare_queues(&row, &unit, 1, values_of_idle);
}

/* --- all of it ----------------------------------------------------------- */

static void prepare(int argc, char **argv) {
  struct rlimit files;
  bench_begin(argc, argv, "Network");
  bench_rounds = bench_quick ? BENCH_QUICK : 5;
  if (bench_quick) span = 0.05;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max; /* ten thousand connections */
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGPIPE, SIG_IGN);
  if (CPU_COUNT(bench_cpus()) < 2)
    puts("  (there is one CPU: read \"two CPUs\" as one)");
  bench_pin(CLIENT_CPU);
}

int main(int argc, char **argv) {
  static const shape pipelined[] = {
      {"pipelined, 16 B, 1 connection", "pairs/s", 1, 100, 16},
      {"pipelined, 16 B, 4 connections", "pairs/s", 4, 100, 16},
      {"pipelined, 1 KiB, 4 connections", "pairs/s", 4, 100, 1024},
      {"pipelined, 64 KiB, 4 connections", "MB/s", 4, 8, 65536}};
  static const shape crowds[] = {{"clients, 10", "pairs/s", 10, 1, 16},
                                 {"clients, 100", "pairs/s", 100, 1, 16},
                                 {"clients, 1000", "pairs/s", 1000, 1, 16}};
  prepare(argc, argv);
  rows_of_one_client("one client, two CPUs", SERVER_CPU, false);
  rows_of_one_client("one client, one CPU", CLIENT_CPU, false);
  if (bench_hurries()) {
    rows_of_load(&pipelined[1], false);
    rows_of_load(&pipelined[3], false);
    rows_of_load(&crowds[1], false);
    return 0;
  }
  rows_of_one_client("one client, one CPU late", CLIENT_CPU, true);
  for (int i = 0; i < 4; i++) rows_of_load(&pipelined[i], false);
  for (int i = 0; i < 3; i++) rows_of_load(&crowds[i], true);
  rows_of_wake_up("wake-up, two CPUs", SERVER_CPU, wake_up_rested);
  rows_of_wake_up("wake-up, one CPU", CLIENT_CPU, wake_up_rested);
  rows_of_wake_up("wake-up, two CPUs, no rest", SERVER_CPU, wake_up_busy);
  rows_of_sessions();
  rows_of_waiters();
  rows_of_python_client();
  rows_of_timeouts();
  rows_of_memory();
  rows_of_idle();
  return 0;
}
