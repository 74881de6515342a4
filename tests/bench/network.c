/* A queue over the network, against Redis, beanstalkd, Python's own manager and
 * a bare echo.
 *
 *   network [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * TCP over loopback; the server on one CPU and all clients on another, or,
 * where a row says so, both on one. The contenders take turns in short rounds;
 * a row is the median of its rounds, and is compared with the bare echo (the
 * limit: the same message sizes, no queue, no protocol) and with Redis
 * (redis-server, LPUSH and RPOP; BRPOP where a client waits).
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
 * At the end there is a table of all of it: conc.h, the peers, and how many
 * times conc.h is as good as Redis, whether more or less is better.
 *
 * Peers that are not installed are "not here", and a line says so: redis-server
 * and libhiredis-dev (-DNO_HIREDIS), beanstalkd, python3 ($PYTHON names
 * another). The load generator speaks
 * Python's protocol in ready-made requests, after a real handshake; Redis gets
 * its requests from it, too, which is kinder to it than hiredis is.
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "network_load.h"
#include <sys/resource.h>
#ifndef NO_HIREDIS
#include <hiredis/hiredis.h>
#endif

enum { ROUNDS_MOST = 9, CROWD = 1000 };
static int rounds = 5;
static double span = 0.25; /* seconds of one measurement */
static bool quick;
static const char *filter = "";

static peer peers[] = {{"bare echo", ECHO, 0, 0, false, ""},
                       {"bare echo that spins", SPIN, 0, 0, false, ""},
                       {"Redis", REDIS, 0, 0, false, ""},
                       {"beanstalkd", BEANS, 0, 0, false, ""},
                       {"Python", PYTHON, 0, 0, false, ""},
                       {"conc", CONC, 0, 0, false, ""}};

static bool wanted(const char *name) { return strstr(name, filter) != NULL; }

static void start_peers(const char *which, int cpu) {
  for (protocol k = ECHO; k <= CONC; k++)
    if (strchr(which, "ESRBPC"[k]) != NULL) start_peer(&peers[k], cpu);
}

static void stop_peers(void) {
  for (protocol k = ECHO; k <= CONC; k++) stop_server(&peers[k]);
}

/* --- the table ----------------------------------------------------------- */

typedef struct table_row {
  char name[56];
  const char *unit;
  bool less; /* is better */
  double values[CONC + 1];
} table_row;

static table_row table[64];
static size_t table_rows;

/* Enters a value into the row of this name. */
static void note(const char *name, const char *unit, bool less, protocol who,
                 double value) {
  table_row *r = table;
  while (r < table + table_rows && strcmp(r->name, name) != 0) r++;
  if (r == table + table_rows) {
    if (++table_rows > sizeof table / sizeof *table) abort();
    snprintf(r->name, sizeof r->name, "%s", name);
    r->unit = unit;
    r->less = less;
    for (protocol k = ECHO; k <= CONC; k++) r->values[k] = NAN;
  }
  r->values[who] = value;
}

static void print_cell(double value) {
  if (isnan(value)) printf(" %10s", "-");
  else printf(value < 100 ? " %10.3g" : " %10.0f", value);
}

static void print_table(void) {
  static const protocol order[] = {CONC, REDIS, BEANS, PYTHON, ECHO};
  if (table_rows == 0) return;
  printf("\n%-46s %10s %10s %10s %10s %10s  %s\n", "Table", "conc", "Redis",
         "beanstalkd", "Python", "bare echo", "conc/Redis");
  for (size_t i = 0; i < table_rows; i++) {
    const table_row *r = &table[i];
    double conc = r->values[CONC], redis = r->values[REDIS];
    int width = printf("%s, %s", r->name, r->unit);
    printf("%*s", width < 46 ? 46 - width : 0, "");
    for (size_t k = 0; k < sizeof order / sizeof *order; k++)
      print_cell(r->values[order[k]]);
    if (isnan(conc) || isnan(redis) || (r->less && conc <= 0))
      printf("           -\n");
    else printf("     %6.2fx\n", r->less ? redis / conc : conc / redis);
  }
}

/* --- contenders ---------------------------------------------------------- */

typedef struct contender {
  const char *name;
  double (*measure)(struct contender *);
  peer *p;
  load *l;
  python_client *python;
  double runs[ROUNDS_MOST], median;
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

/* Whether what is measured of a peer stands for it in the table. */
static bool is_noted(const contender *c) {
  return strcmp(c->name, c->p->name) == 0 ||
         strcmp(c->name, "conc with a conc client") == 0;
}

/* The row's medians, compared with the contenders called "bare echo" and
   "Redis". */
static void print_rows(const char *row, const char *unit, contender *c,
                       int n) {
  char name[128];
  for (int i = 0; i < n; i++) {
    if (c[i].measure == NULL) continue;
    if (is_noted(&c[i]))
      note(row, unit, strcmp(unit, "us") == 0, c[i].p->speaks, c[i].median);
    snprintf(name, sizeof name, "%s: %s", row, c[i].name);
    bench_row(name, c[i].median, unit);
    for (int k = 0; k < n; k++)
      if (k != i && (strcmp(c[k].name, "bare echo") == 0 ||
                     strcmp(c[k].name, "Redis") == 0))
        bench_of(c[i].median, c[k].median, c[k].name);
    bench_end();
  }
}

/* Contenders without a way to measure them do not take part. */
static void compare(const char *row, const char *unit, contender *c, int n) {
  for (int r = 0; r < rounds; r++)
    for (int i = 0; i < n; i++)
      if (c[i].measure != NULL) c[i].runs[r] = c[i].measure(&c[i]);
  for (int i = 0; i < n; i++)
    c[i].median = bench_median(c[i].runs, (size_t)rounds);
  print_rows(row, unit, c, n);
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
  if (!wanted(row)) return;
  see_all_cpus = cpu == SERVER_CPU || late;
  start_peers(cpu == SERVER_CPU ? "ESRBPC" : late ? "EC" : "ERBPC", cpu);
  to_python = start_python_client(python);
  to_conc = start_python_client(conc);
  {
    contender c[] = {
        who("bare echo", one_bare, echo, NULL),
        who("bare echo that spins", one_bare, &peers[SPIN], NULL),
        who("Redis", one_hiredis, redis, NULL),
        who("Python", one_python, python, &to_python),
        who("conc with a Python client", one_python, conc, &to_conc),
        who("conc with a bare client", one_bare, conc, NULL),
        who("conc with a conc client", one_conc, conc, NULL),
        who("beanstalkd", one_bare, &peers[BEANS], NULL)};
    if (cpu != SERVER_CPU) c[1].measure = NULL; /* it is hopeless on one */
    if (late) c[2].measure = c[3].measure = c[7].measure = NULL;
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

static void print_fairness(const shape *s, const load *l) {
  long least = l->conns[0].pairs, sum = 0;
  for (size_t i = 0; i < l->n; i++) {
    sum += l->conns[i].pairs;
    if (l->conns[i].pairs < least) least = l->conns[i].pairs;
  }
  printf("  %-50s %10.2f of the average\n", "  conc's slowest client",
         (double)least * (double)s->connections / (double)sum);
}

/* Redis is driven by the generator here, not by hiredis: it is faster so. */
static void rows_of_load(const shape *s, bool with_python) {
  static const protocol order[] = {ECHO, REDIS, CONC, BEANS, PYTHON};
  contender c[5];
  load loads[5];
  int n = with_python ? 5 : 4;
  if (!wanted(s->row)) return;
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
  if (s->depth == 1 && !loads[2].failed) print_fairness(s, &loads[2]);
  for (int i = 0; i < n; i++) close_load(&loads[i]);
  stop_peers();
}

/* --- blocked gets -------------------------------------------------------- */

/* One blocked get, then a put from another connection; p50 from the put to
   the get's answer. For an echo: a message there and back, the same way. */
static double wake_up(const peer *p, double pause) {
  enum { TIMES = 400 };
  double took[TIMES];
  size_t n = 0, times = quick ? 100 : TIMES;
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
  contender c[] = {who("bare echo", measure, &peers[ECHO], NULL),
                   who("Redis", measure, &peers[REDIS], NULL),
                   who("beanstalkd", measure, &peers[BEANS], NULL),
                   who("Python", measure, &peers[PYTHON], NULL),
                   who("conc", measure, &peers[CONC], NULL)};
  int all = rounds;
  if (!wanted(row)) return;
  rounds = 1; /* each is many */
  start_peers("ERBPC", cpu);
  compare(row, "us", c, 5);
  stop_peers();
  rounds = all;
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
  int items = quick ? 100 : 500;
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

static void rows_of_waiters(void) {
  static const protocol order[] = {REDIS, BEANS, PYTHON, CONC};
  char name[128];
  if (!wanted("waiters")) return;
  for (int i = 0; i < 4; i++) {
    peer *p = &peers[order[i]];
    waiters one = measure_waiters(p, 1), many = measure_waiters(p, CROWD);
    snprintf(name, sizeof name, "waiters, 1000, answered by one item: %s",
             p->name);
    bench_row(name, many.answers, "clients");
    if (!isnan(many.answers)) printf("  %zu in turn", many.served);
    bench_end();
    note("waiters, 1000, server's CPU an item", "us", true, p->speaks,
         many.cpu_us);
    snprintf(name, sizeof name, "waiters, 1000, server's CPU an item: %s",
             p->name);
    bench_row(name, many.cpu_us, "us");
    bench_of(many.cpu_us, one.cpu_us, "with one waiter");
    bench_end();
  }
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

static void rows_of_timeouts(void) {
  static const protocol order[] = {REDIS, BEANS, PYTHON, CONC};
  double late[CROWD], half;
  char name[128];
  load l;
  if (!wanted("timeouts")) return;
  for (int i = 0; i < 4; i++) {
    peer *p = &peers[order[i]];
    size_t n = 0;
    start_peer(p, SERVER_CPU);
    open_load(&l, p, CROWD, 1, 16);
    if (all_ask(&l, GET_1_SECOND)) n = collect_lateness(&l, late);
    close_load(&l);
    stop_server(p);
    snprintf(name, sizeof name, "timeouts, 1000 of 1 s, late by: %s", p->name);
    half = bench_percentile(late, n, 0.5);
    note("timeouts, 1000 of 1 s, late by", "ms", true, p->speaks, half);
    bench_row(name, half, "ms");
    if (n > 0) printf("  the last by %.3g ms", late[n - 1]);
    bench_end();
  }
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
  if (!wanted("sessions")) return;
  start_peers("RBPC", SERVER_CPU);
  to_python = start_python_client(python);
  to_conc = start_python_client(conc);
  {
    contender c[] = {
        who("Redis", sessions_bare, redis, NULL),
        who("beanstalkd", sessions_bare, &peers[BEANS], NULL),
        who("Python", sessions_python, python, &to_python),
        who("Python with a bare client", sessions_bare, python, NULL),
        who("conc with a Python client", sessions_python, conc, &to_conc),
        who("conc with a bare client", sessions_bare, conc, NULL),
        who("conc with a conc client", sessions_conc, conc, NULL)};
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
  double own[3], ours[3];
  python_client c;
  char name[128];
  if (!wanted("python client")) return;
  start_peers("PC", SERVER_CPU);
  c = start_python_client(&peers[PYTHON]);
  ask_python(&c, "latency", quick ? 3 : 7, own);
  stop_python_client(&c);
  c = start_python_client(&peers[CONC]);
  ask_python(&c, "latency", quick ? 20 : 100, ours);
  stop_python_client(&c);
  stop_peers();
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, "python client, %s: Python", calls[i]);
    bench_row(name, own[i], "ms");
    bench_end();
    snprintf(name, sizeof name, "python client, %s: conc", calls[i]);
    bench_row(name, ours[i], "ms");
    bench_of(ours[i], own[i], "Python");
    bench_end();
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

static void print_memory(const peer *p, size_t n, const char *what,
                         double bytes_of_one) {
  char name[128];
  snprintf(name, sizeof name, "memory of a connection %s", what);
  note(name, "KiB", true, p->speaks, bytes_of_one / 1024);
  snprintf(name, sizeof name, "memory, %zu connections %s: %s", n, what,
           p->name);
  bench_row(name, bytes_of_one / 1024, "KiB");
  bench_end();
}

static void rows_of_memory(void) {
  static const protocol order[] = {REDIS, BEANS, PYTHON, CONC};
  if (!wanted("memory")) return;
  for (int i = 0; i < 4; i++) {
    peer *p = &peers[order[i]];
    /* Python has a thread for each; a tenth of them tells as much. */
    size_t n = quick || p->speaks == PYTHON ? 1000 : 10000;
    double before, idle = NAN, blocked = NAN;
    load warm, l;
    start_peer(p, CLIENT_CPU); /* one CPU: the handshakes take less time */
    open_load(&warm, p, 10, 1, 16);
    run_load(&warm, 0.05);
    close_load(&warm);
    usleep(50000);
    before = resident(p->pid);
    open_load(&l, p, n, 1, 16);
    /* Redis gives its first buffers back after two seconds. */
    if (p->speaks == REDIS && p->pid > 0) usleep(quick ? 0 : 3000000);
    if (!l.failed) idle = (resident(p->pid) - before) / (double)n;
    if (all_ask(&l, GET_WAIT)) {
      usleep(500000);
      blocked = (resident(p->pid) - before) / (double)n;
    }
    close_load(&l);
    stop_server(p);
    print_memory(p, n, "idle", idle);
    print_memory(p, n, "that wait", blocked);
  }
}

static void rows_of_idle(void) {
  static const protocol order[] = {REDIS, BEANS, PYTHON, CONC};
  char name[128];
  if (!wanted("idle, after traffic")) return;
  for (int i = 0; i < 4; i++) {
    peer *p = &peers[order[i]];
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
    note("idle, after traffic", "ms CPU/s", true, p->speaks, used);
    snprintf(name, sizeof name, "idle, after traffic: %s", p->name);
    bench_row(name, used, "ms CPU/s");
    bench_end();
  }
}

/* --- all of it ----------------------------------------------------------- */

static void prepare(int argc, char **argv) {
  struct rlimit files;
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--quick") == 0) quick = true;
    else filter = argv[i];
  if (quick) {
    rounds = 3;
    span = 0.1;
  }
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
  puts("Network");
  prepare(argc, argv);
  rows_of_one_client("one client, two CPUs", SERVER_CPU, false);
  rows_of_one_client("one client, one CPU", CLIENT_CPU, false);
  rows_of_one_client("one client, one CPU late", CLIENT_CPU, true);
  for (int i = 0; i < 4; i++) rows_of_load(&pipelined[i], false);
  for (int i = 0; i < 3; i++) rows_of_load(&crowds[i], true);
  rows_of_wake_up("wake-up, two CPUs", SERVER_CPU, wake_up_rested);
  rows_of_wake_up("wake-up, one CPU", CLIENT_CPU, wake_up_rested);
  rows_of_wake_up("wake-up, two CPUs, no rest", SERVER_CPU, wake_up_busy);
  rows_of_waiters();
  rows_of_python_client();
  rows_of_timeouts();
  rows_of_sessions();
  rows_of_memory();
  rows_of_idle();
  print_table();
  return 0;
}
