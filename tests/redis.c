/* What is true of a queue at every distance: in this process, behind a
   manager, and on a Redis. Each test is one body for all of them; behind them
   come the few that only Redis has. From inside, so that all must be freed. */
#include "inside.h"
#include "distance.h"
#include "leased.h"

static double soon(void) { return 10 * test_slow(); }

static void fill(unsigned char *p, size_t size, unsigned number) {
  for (size_t i = 0; i < size; i++) p[i] = (unsigned char)(number * 7 + i);
}

/* --- messages --- */

EVERYWHERE(messages_of_all_sizes_arrive) {
  enum { MOST = 1 << 20 };
  static const size_t sizes[] = {0,    1,    2,     13,    63,    64,     255,
                                 1000, 4095, 16384, 65536, 70001, 300000, MOST};
  enum { N = sizeof sizes / sizeof *sizes };
  static unsigned char in[MOST], out[MOST];
  distance d;
  distance_begin(&d, kind, leasing(0), false);
  for (unsigned i = 0; i < N; i++) {
    fill(in, sizes[i], i);
    CHECK_EQ(conc_put(d.q, in, sizes[i], soon()), 0);
  }
  CHECK_EQ(conc_qsize(d.q), N);
  for (unsigned i = 0; i < N; i++) {
    if (sizes[i] > 0)
      CHECK_EQ(conc_get(d.q, out, sizes[i] - 1, soon()), -EMSGSIZE);
    fill(in, sizes[i], i);
    CHECK_EQ(conc_get(d.q, out, sizes[i], soon()), sizes[i]);
    CHECK(memcmp(in, out, sizes[i]) == 0);
  }
  CHECK_EQ(conc_qsize(d.q), 0);
  distance_end(&d);
}

EVERYWHERE(messages_keep_their_order) {
  distance d;
  int got = -1;
  distance_begin(&d, kind, leasing(0), false);
  for (int i = 0; i < 300; i++)
    CHECK_EQ(conc_put(d.q, &i, sizeof i, soon()), 0);
  for (int i = 0; i < 300; i++) {
    CHECK_EQ(conc_get(d.q, &got, sizeof got, soon()), sizeof got);
    CHECK_EQ(got, i);
  }
  distance_end(&d);
}

/* What a get refuses stays, at its place, for all. */
EVERYWHERE(what_does_not_suit_stays_at_its_place) {
  distance d;
  conc_manager m;
  conc_queue *other;
  conc_value *v;
  char buf[16];
  int n = 0;
  distance_begin(&d, kind, leasing(0), false);
  other = distance_client(&d, &m);
  put(d.q, "0123456789");
  CHECK_EQ(conc_put_build(d.q, soon(), "(i)", 7), 0);
  put(d.q, "last");
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_get(d.q, buf, 9, soon()), -EMSGSIZE);
    CHECK_EQ(conc_get_many(d.q, buf, 4, 4, soon()), -EMSGSIZE);
    CHECK_EQ(conc_qsize(other), 3);
  }
  expect(other, "0123456789", NULL);
  CHECK_EQ(conc_get(d.q, buf, 16, soon()), -EBADMSG);
  CHECK_EQ(conc_get_parse(d.q, soon(), "(ii)", &n, &n), -EBADMSG);
  CHECK_EQ(conc_get_value(other, &v, soon()), 0);
  CHECK_EQ(conc_parse(v, "(i)", &n), 0);
  conc_value_free(v);
  CHECK_EQ(n, 7);
  expect(d.q, "last", NULL);
  distance_client_end(&d, &m);
  distance_end(&d);
}

EVERYWHERE(values_arrive_as_they_were) {
  distance d;
  conc_value *v;
  char text[200];
  distance_begin(&d, kind, leasing(0), false);
#define TRAVELS(want, ...)                              \
  CHECK_EQ(conc_put_build(d.q, soon(), __VA_ARGS__), 0); \
  CHECK_EQ(conc_get_value(d.q, &v, soon()), 0);          \
  conc_value_text(v, text, sizeof text);                \
  CHECK_STR(text, want);                                \
  conc_value_free(v)
  TRAVELS("7", "i", 7);
  TRAVELS("-2.5", "d", -2.5);
  TRAVELS("text", "s", "text");
  TRAVELS("", "s", "");
  TRAVELS("b'a\\x00b'", "y#", "a\0b", (size_t)3);
  TRAVELS("[1, 'two', -3.0]", "[isd]", 1, "two", -3.0);
  TRAVELS("{'a': [1, [2]], 'b': 3}", "{s[i[i]]si}", "a", 1, 2, "b", 3);
#undef TRAVELS
  put(d.q, "bytes");
  CHECK_EQ(conc_get_value(d.q, &v, soon()), 0);
  CHECK_EQ(conc_value_size(v), 5);
  CHECK(memcmp(conc_value_bytes(v, NULL), "bytes", 5) == 0);
  conc_value_free(v);
  distance_end(&d);
}

EVERYWHERE(many_are_moved_at_once) {
  enum { N = 1000 };
  static int in[N], out[N];
  distance d;
  ssize_t n;
  distance_begin(&d, kind, leasing(0), false);
  for (int i = 0; i < N; i++) in[i] = i;
  for (int at = 0; at < N; at += (int)n) {
    n = conc_put_many(d.q, in + at, sizeof *in, (size_t)(N - at), soon());
    CHECK(n > 0);
  }
  CHECK_EQ(conc_qsize(d.q), N);
  for (int at = 0; at < N; at += (int)n) {
    n = conc_get_many(d.q, out + at, sizeof *out, (size_t)(N - at), soon());
    CHECK(n > 0);
  }
  CHECK(memcmp(in, out, sizeof in) == 0);
  CHECK_EQ(conc_get_many(d.q, out, sizeof *out, N, 0), -ETIMEDOUT);
  distance_end(&d);
}

/* --- bounds and waits --- */

EVERYWHERE(timeouts_are_kept) {
  conc_queue_opts o = leasing(0);
  distance d;
  double began;
  char buf[8];
  o.capacity = 2;
  distance_begin(&d, kind, o, false);
  expect_none(d.q, 0);
  began = conc_now();
  expect_none(d.q, 0.15);
  CHECK(conc_now() - began >= 0.14);
  CHECK(conc_now() - began < 3 * test_slow());
  put(d.q, "a");
  put(d.q, "b");
  CHECK_EQ(conc_put(d.q, "c", 1, 0), -ETIMEDOUT);
  began = conc_now();
  CHECK_EQ(conc_put(d.q, "c", 1, 0.15), -ETIMEDOUT);
  CHECK(conc_now() - began >= 0.14);
  CHECK(conc_now() - began < 3 * test_slow());
  CHECK_EQ(conc_put_many(d.q, "c", 1, 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_qsize(d.q), 2);
  CHECK_EQ(conc_get(d.q, buf, sizeof buf, 0), 1);
  CHECK_EQ(conc_put_many(d.q, "cd", 1, 2, soon()), 1);
  expect(d.q, "b", NULL);
  expect(d.q, "c", NULL);
  expect_none(d.q, 0);
  distance_end(&d);
}

EVERYWHERE(a_message_above_the_bound_is_refused) {
  conc_queue_opts o = leasing(0);
  static char large[1001];
  distance d;
  o.max_bytes = 1000;
  distance_begin(&d, kind, o, false);
  CHECK_EQ(conc_put(d.q, large, 1001, 0), -EMSGSIZE);
  CHECK_EQ(conc_put(d.q, large, 1000, soon()), 0);
  CHECK_EQ(conc_qsize(d.q), 1);
  distance_end(&d);
}

typedef struct waiting {
  conc_queue *q;
  int begun;
  int rc;
} waiting;

static void *wait_get(void *arg) {
  waiting *w = (waiting *)arg;
  char buf[8];
  STORE(w->begun, 1);
  w->rc = (int)conc_get(w->q, buf, sizeof buf, CONC_FOREVER);
  return NULL;
}

static void *wait_put(void *arg) {
  waiting *w = (waiting *)arg;
  STORE(w->begun, 1);
  w->rc = conc_put(w->q, "late", 4, CONC_FOREVER);
  return NULL;
}

static void *wait_join(void *arg) {
  waiting *w = (waiting *)arg;
  STORE(w->begun, 1);
  w->rc = conc_queue_join(w->q, CONC_FOREVER);
  return NULL;
}

/* A thread that waits in fn by now, or nearly so. */
static void begin_wait(conc_task *t, waiting *w, conc_queue *q, conc_fn *fn) {
  memset(w, 0, sizeof *w);
  w->q = q;
  start(conc_thread_start, t, fn, w);
  while (!LOAD(w->begun)) usleep(100);
  usleep(15000);
}

EVERYWHERE(those_that_wait_are_woken) {
  conc_queue_opts o = leasing(0);
  distance d;
  conc_manager m;
  conc_queue *other;
  conc_task t;
  waiting w;
  o.capacity = 1;
  distance_begin(&d, kind, o, false);
  other = distance_client(&d, &m);
  begin_wait(&t, &w, d.q, wait_get);
  put(other, "now");
  CHECK_EQ(conc_join(&t, soon()), 0);
  CHECK_EQ(w.rc, 3);
  put(other, "full");
  begin_wait(&t, &w, d.q, wait_put);
  expect(other, "full", NULL);
  CHECK_EQ(conc_join(&t, soon()), 0);
  CHECK_EQ(w.rc, 0);
  expect(other, "late", NULL);
  distance_client_end(&d, &m);
  distance_end(&d);
}

/* Nothing is lost by it: what comes afterwards is for others. */
EVERYWHERE(waits_are_cancelled) {
  conc_fn *const all[] = {wait_get, wait_put, wait_join};
  conc_queue_opts o = leasing(0);
  distance d;
  o.capacity = 1;
  distance_begin(&d, kind, o, false);
  for (int round = 0; round < 4; round++)
    for (int i = 0; i < 3; i++) {
      conc_task t;
      waiting w;
      if (i == 1) put(d.q, "full");
      begin_wait(&t, &w, d.q, all[i]);
      CHECK_EQ(conc_cancel(&t), 0);
      CHECK_EQ(conc_join(&t, soon()), -ECANCELED);
      CHECK_EQ(w.rc, -ECANCELED);
      if (i == 2) expect(d.q, "full", NULL);
    }
  put(d.q, "kept");
  expect(d.q, "kept", NULL);
  CHECK_EQ(conc_qsize(d.q), 0);
  distance_end(&d);
}

/* A get is cancelled while its message may be on its way. */
EVERYWHERE(a_get_that_is_cancelled_loses_nothing) {
  distance d;
  conc_manager m;
  conc_queue *other;
  distance_begin(&d, kind, leasing(0), false);
  other = distance_client(&d, &m);
  for (int i = 0; i < 40; i++) {
    conc_task t;
    waiting w;
    memset(&w, 0, sizeof w);
    w.q = d.q;
    start(conc_thread_start, &t, wait_get, &w);
    while (!LOAD(w.begun)) usleep(100);
    usleep((useconds_t)(test_random() % 1000));
    put(other, "once");
    if (test_random() % 2 == 0) usleep((useconds_t)(test_random() % 500));
    conc_cancel(&t);
    conc_join(&t, soon());
    if (w.rc != 4) {
      CHECK_EQ(w.rc, -ECANCELED);
      expect(i % 2 ? d.q : other, "once", NULL);
    }
    CHECK_EQ(conc_qsize(other), 0);
  }
  distance_client_end(&d, &m);
  distance_end(&d);
}

EVERYWHERE(join_waits_until_all_is_done) {
  distance d;
  conc_task t;
  waiting w;
  distance_begin(&d, kind, leasing(60), false);
  CHECK_EQ(conc_queue_join(d.q, soon()), 0);
  for (int i = 0; i < 3; i++) put(d.q, "x");
  CHECK_EQ(conc_queue_join(d.q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_queue_join(d.q, 0.02), -ETIMEDOUT);
  begin_wait(&t, &w, d.q, wait_join);
  for (int i = 0; i < 3; i++) {
    expect(d.q, "x", NULL);
    CHECK_EQ(conc_join(&t, 0.01), -ETIMEDOUT);
    CHECK_EQ(conc_task_done(d.q), 0);
  }
  CHECK_EQ(conc_join(&t, soon()), 0);
  CHECK_EQ(w.rc, 0);
  CHECK_EQ(conc_task_done(d.q), -EINVAL);
  distance_end(&d);
}

/* A client's queue cannot be closed. */
FAR_AWAY(a_client_closes_nothing) {
  distance d;
  distance_begin(&d, kind, leasing(0), false);
  CHECK_EQ(conc_queue_close(d.q), -ENOTSUP);
  CHECK_EQ(conc_peek_size(d.q), -ENOTSUP);
  put(d.q, "goes on");
  expect(d.q, "goes on", NULL);
  distance_end(&d);
}

/* --- many tasks --- */

enum { CROWD = 4, EACH = 100 };
typedef struct crowd {
  conc_queue *q;
  int number;
  int *got; /* by message */
} crowd;

static void *crowd_put(void *arg) {
  crowd *c = (crowd *)arg;
  for (int i = 0; i < EACH; i++) {
    int message = c->number * EACH + i;
    CHECK_EQ(conc_put(c->q, &message, sizeof message, soon()), 0);
  }
  return NULL;
}

static void *crowd_get(void *arg) {
  crowd *c = (crowd *)arg;
  int last[CROWD] = {-1, -1, -1, -1}, message;
  for (;;) {
    CHECK_EQ(conc_get(c->q, &message, sizeof message, soon()), sizeof message);
    if (message < 0) return NULL;
    ADD_FETCH(c->got[message], 1);
    CHECK(message > last[message / EACH]); /* of one putter, in its order */
    last[message / EACH] = message;
  }
}

EVERYWHERE(many_threads_put_and_get_each_message_once) {
  distance d;
  conc_task putters[CROWD], getters[CROWD];
  crowd all[CROWD];
  static int got[CROWD * EACH];
  const int end = -1;
  distance_begin(&d, kind, leasing(0), false);
  for (int i = 0; i < CROWD; i++) {
    all[i].q = d.q;
    all[i].number = i;
    all[i].got = got;
    start(conc_thread_start, &getters[i], crowd_get, &all[i]);
    start(conc_thread_start, &putters[i], crowd_put, &all[i]);
  }
  for (int i = 0; i < CROWD; i++)
    CHECK_EQ(conc_join(&putters[i], CONC_FOREVER), 0);
  for (int i = 0; i < CROWD; i++)
    CHECK_EQ(conc_put(d.q, &end, sizeof end, soon()), 0);
  for (int i = 0; i < CROWD; i++)
    CHECK_EQ(conc_join(&getters[i], CONC_FOREVER), 0);
  for (int i = 0; i < CROWD * EACH; i++) CHECK_EQ(got[i], 1);
  distance_end(&d);
}

enum { COROUTINES = 100 };
typedef struct herd {
  distance *d;
  conc_queue *other;
  int seen[COROUTINES];
  int most; /* connections */
} herd;

static void *herd_get(void *arg) {
  herd *h = (herd *)arg;
  int n = -1;
  ssize_t size = conc_get(h->d->q, &n, sizeof n, soon());
  if (size == -ECANCELED) return NULL;
  CHECK_EQ(size, sizeof n);
  CHECK(n >= 0 && n < COROUTINES);
  h->seen[n]++;
  return NULL;
}

static void *herd_main(void *arg) {
  herd *h = (herd *)arg;
  static conc_task tasks[COROUTINES];
  for (int i = 0; i < COROUTINES; i++)
    start(conc_coro_start, &tasks[i], herd_get, h);
  conc_sleep(0.05);
  if (h->d->kind == ON_REDIS) {
    const char *info = strstr(redis_say(&h->d->at, "INFO clients"),
                              "connected_clients:");
    CHECK(info != NULL);
    h->most = atoi(info + 18);
  }
  for (int i = 0; i < COROUTINES; i++)
    CHECK_EQ(conc_put(h->other, &i, sizeof i, soon()), 0);
  for (int i = 0; i < COROUTINES; i++)
    CHECK_EQ(conc_join(&tasks[i], CONC_FOREVER), 0);
  return NULL;
}

/* A hundred coroutines wait, and do not need as many connections. */
EVERYWHERE(coroutines_wait_together) {
  distance d;
  conc_manager m;
  static herd h;
  distance_begin(&d, kind, leasing(0), false);
  h.d = &d;
  h.other = distance_client(&d, &m);
  run(herd_main, &h);
  for (int i = 0; i < COROUTINES; i++) CHECK_EQ(h.seen[i], 1);
  CHECK(h.most < 20);
  distance_client_end(&d, &m);
  distance_end(&d);
}

/* Every second one is cancelled while messages come: the others get all. */
static void *herd_cancelled(void *arg) {
  herd *h = (herd *)arg;
  static conc_task tasks[COROUTINES];
  int seen = 0, left = 0, n;
  for (int i = 0; i < COROUTINES; i++)
    start(conc_coro_start, &tasks[i], herd_get, h);
  conc_sleep(0.05);
  for (int i = 0; i < COROUTINES; i++) {
    if (i % 2 == 0) conc_cancel(&tasks[i]);
    CHECK_EQ(conc_put(h->other, &i, sizeof i, soon()), 0);
  }
  for (int i = 1; i < COROUTINES; i += 2)
    CHECK_EQ(conc_join(&tasks[i], CONC_FOREVER), 0);
  for (int i = 0; i < COROUTINES; i += 2) {
    int rc = conc_join(&tasks[i], CONC_FOREVER);
    CHECK(rc == 0 || rc == -ECANCELED);
  }
  for (int i = 0; i < COROUTINES; i++) seen += h->seen[i];
  for (; seen < COROUTINES; seen++, left++) {
    CHECK_EQ(conc_get(h->other, &n, sizeof n, soon()), sizeof n);
    h->seen[n]++;
  }
  CHECK(left <= COROUTINES / 2);
  return NULL;
}

EVERYWHERE(some_of_many_coroutines_are_cancelled) {
  distance d;
  conc_manager m;
  static herd h;
  distance_begin(&d, kind, leasing(0), false);
  h.d = &d;
  h.other = distance_client(&d, &m);
  run(herd_cancelled, &h);
  for (int i = 0; i < COROUTINES; i++) CHECK_EQ(h.seen[i], 1);
  CHECK_EQ(conc_qsize(h.other), 0);
  distance_client_end(&d, &m);
  distance_end(&d);
}

static void *tick(void *arg) {
  int *ticks = (int *)arg;
  while (conc_sleep(0.002) == 0) ++*ticks;
  return NULL;
}

static void *loop_main(void *arg) {
  distance *d = (distance *)arg;
  conc_task t;
  int ticks = 0;
  start(conc_coro_start, &t, tick, &ticks);
  expect_none(d->q, 0.2);
  CHECK(ticks > 2); /* a hundred, where nothing else is done */
  put(d->q, "a");
  expect(d->q, "a", NULL);
  conc_cancel(&t);
  conc_join(&t, CONC_FOREVER);
  return NULL;
}

EVERYWHERE(a_loop_goes_on_while_a_coroutine_waits) {
  distance d;
  distance_begin(&d, kind, leasing(0), false);
  run(loop_main, &d);
  distance_end(&d);
}

/* --- forks --- */

FAR_AWAY(a_child_has_its_own_connections) {
  distance d;
  pid_t pid;
  int ends[2];
  char c;
  NEEDS_FORK;
  distance_begin(&d, kind, leasing(0), false);
  CHECK_EQ(pipe(ends), 0);
  put(d.q, "before");
  expect(d.q, "before", NULL);
  put(d.q, "to the child");
  pid = begin_child();
  if (pid == 0) {
    char buf[64];
    CHECK_CHILD(conc_get(d.q, buf, sizeof buf, soon()) == 12);
    CHECK_CHILD(write(ends[1], "x", 1) == 1);
    for (int i = 0; i < 20; i++)
      CHECK_CHILD(conc_put(d.q, "to the parent", 13, soon()) == 0);
    CHECK_CHILD(conc_manager_shutdown(&d.client) == 0);
    _exit(0);
  }
  CHECK_EQ(read(ends[0], &c, 1), 1);
  for (int i = 0; i < 20; i++) expect(d.q, "to the parent", NULL);
  reap(pid, 0);
  close(ends[0]), close(ends[1]);
  put(d.q, "after");
  expect(d.q, "after", NULL);
  distance_end(&d);
}

FAR_AWAY(a_child_may_come_while_its_parent_waits) {
  distance d;
  conc_task t;
  waiting w;
  pid_t pid;
  NEEDS_FORK;
  distance_begin(&d, kind, leasing(0), false);
  begin_wait(&t, &w, d.q, wait_get);
  pid = begin_child();
  if (pid == 0) {
    char buf[8];
    CHECK_CHILD(conc_get(d.q, buf, sizeof buf, 0.05) == -ETIMEDOUT);
    CHECK_CHILD(conc_put(d.q, "child's", 7, soon()) == 0);
    CHECK_CHILD(conc_manager_shutdown(&d.client) == 0);
    _exit(0);
  }
  CHECK_EQ(conc_join(&t, soon()), 0);
  CHECK_EQ(w.rc, 7);
  reap(pid, 0);
  distance_end(&d);
}

/* --- leases --- */

EVERYWHERE(what_was_got_is_done_or_comes_back) {
  distance d;
  conc_lease a, b;
  distance_begin(&d, kind, leasing(60), false);
  put(d.q, "a");
  put(d.q, "b");
  expect(d.q, "a", &a);
  CHECK_EQ(conc_lease_deliveries(&a), 1);
  expect(d.q, "b", &b);
  CHECK_EQ(conc_qsize(d.q), 0);
  expect_none(d.q, 0);
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  CHECK_EQ(conc_lease_release(&a, 0), -EINVAL);
  expect(d.q, "a", &a);
  CHECK_EQ(conc_lease_deliveries(&a), 2);
  CHECK_EQ(conc_lease_extend(&a, 100), 0);
  CHECK_EQ(conc_lease_done(&a), 0);
  CHECK_EQ(conc_lease_done(&b), 0);
  CHECK_EQ(conc_lease_done(&b), -EINVAL);
  CHECK_EQ(conc_queue_join(d.q, soon()), 0);
  distance_end(&d);
}

EVERYWHERE(task_done_ends_the_lease_that_was_got_last) {
  distance d;
  conc_lease a;
  distance_begin(&d, kind, leasing(60), false);
  CHECK_EQ(conc_task_done(d.q), -EINVAL);
  put(d.q, "a");
  put(d.q, "b");
  expect(d.q, "a", &a);
  expect(d.q, "b", NULL);
  CHECK_EQ(conc_task_done(d.q), 0);
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  expect(d.q, "a", NULL);
  CHECK_EQ(conc_task_done(d.q), 0);
  CHECK_EQ(conc_task_done(d.q), -EINVAL);
  CHECK_EQ(conc_queue_join(d.q, soon()), 0);
  distance_end(&d);
}

static void *get_and_end(void *arg) {
  expect((conc_queue *)arg, "job", NULL);
  return NULL;
}

EVERYWHERE(what_a_task_has_leased_comes_back_when_it_ends) {
  distance d;
  conc_lease lease;
  conc_task t;
  distance_begin(&d, kind, leasing(60), false);
  put(d.q, "job");
  start(conc_thread_start, &t, get_and_end, d.q);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  expect(d.q, "job", &lease);
  CHECK_EQ(conc_lease_deliveries(&lease), 2);
  CHECK_EQ(conc_lease_release(&lease, 0), 0);
  run(get_and_end, d.q);
  expect(d.q, "job", &lease);
  CHECK_EQ(conc_lease_deliveries(&lease), 4);
  CHECK_EQ(conc_lease_done(&lease), 0);
  distance_end(&d);
}

/* A job that lasts longer than its lease is not done twice while its task
   lives. */
EVERYWHERE(a_task_that_lives_keeps_its_lease) {
  double lease = 0.15 * test_slow();
  bool kept = false;
  /* The thread that says that it lives may not run for so long: then with more
     time. */
  for (; !kept; lease *= 3) {
    char buf[8];
    distance d;
    conc_manager m;
    conc_queue *other;
    conc_lease a;
    CHECK(lease < 10 * test_slow());
    distance_begin(&d, kind, leasing(lease), false);
    other = distance_client(&d, &m);
    put(d.q, "long");
    expect(d.q, "long", &a);
    kept = conc_get(other, buf, sizeof buf, 3 * lease) == -ETIMEDOUT &&
           conc_lease_done(&a) == 0;
    if (kept) CHECK_EQ(conc_queue_join(other, soon()), 0);
    distance_client_end(&d, &m);
    distance_end(&d);
  }
}

EVERYWHERE(a_lease_that_is_too_long_ends) {
  conc_queue_opts o = leasing(0.2);
  distance d;
  conc_manager m;
  conc_queue *other;
  conc_lease a, b;
  int rc;
  o.max_lease = 0.2;
  distance_begin(&d, kind, o, false);
  other = distance_client(&d, &m);
  put(d.q, "hangs");
  expect(d.q, "hangs", &a);
  do { /* again if this one was too slow itself */
    expect(other, "hangs", &b); /* waits for that */
    CHECK(conc_lease_deliveries(&b) >= 2);
    rc = conc_lease_extend(&b, 100);
  } while (rc == -ESTALE);
  CHECK_EQ(rc, 0);
  CHECK_EQ(conc_lease_done(&a), -ESTALE);
  CHECK_EQ(conc_lease_done(&b), 0);
  CHECK_EQ(conc_queue_join(other, soon()), 0);
  distance_client_end(&d, &m);
  distance_end(&d);
}

FAR_AWAY(what_a_killed_process_has_leased_comes_back) {
  distance d;
  conc_lease lease;
  pid_t pid;
  int ends[2];
  char c;
  NEEDS_FORK;
  distance_begin(&d, kind, leasing(0.8 * test_slow()), false);
  CHECK_EQ(pipe(ends), 0);
  put(d.q, "job");
  pid = begin_child();
  if (pid == 0) {
    char buf[8];
    CHECK_CHILD(conc_get(d.q, buf, sizeof buf, soon()) == 3);
    CHECK_CHILD(write(ends[1], "x", 1) == 1);
    pause();
  }
  CHECK_EQ(read(ends[0], &c, 1), 1);
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  expect(d.q, "job", &lease);
  CHECK_EQ(conc_lease_deliveries(&lease), 2);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_queue_join(d.q, soon()), 0);
  close(ends[0]), close(ends[1]);
  distance_end(&d);
}

EVERYWHERE(a_released_message_waits_as_long_as_was_said) {
  distance d;
  conc_lease a;
  double began;
  distance_begin(&d, kind, leasing(60), false);
  put(d.q, "a");
  put(d.q, "b");
  expect(d.q, "a", &a);
  began = conc_now();
  CHECK_EQ(conc_lease_release(&a, 0.8), 0);
  CHECK_EQ(conc_lease_release(&a, 0.8), -EINVAL);
  expect(d.q, "b", NULL);
  CHECK_EQ(conc_task_done(d.q), 0);
  expect(d.q, "a", &a);
  CHECK(conc_now() - began >= 0.78);
  CHECK_EQ(conc_lease_deliveries(&a), 2);
  CHECK_EQ(conc_lease_done(&a), 0);
  distance_end(&d);
}

EVERYWHERE(what_comes_back_too_often_is_a_dead_letter) {
  conc_queue_opts o = leasing(60);
  const char *message;
  conc_value *v;
  conc_lease a;
  distance d;
  int n = 0;
  o.max_deliveries = 2;
  distance_begin(&d, kind, o, true);
  put(d.q, "bytes");
  CHECK_EQ(conc_put_build(d.q, soon(), "(is)", 7, "seven"), 0);
  for (int i = 0; i < 2; i++) {
    expect(d.q, "bytes", &a);
    CHECK_EQ(conc_lease_deliveries(&a), i + 1);
    CHECK_EQ(conc_lease_release(&a, 0), 0);
  }
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_get_value_leased(d.q, &a, &v, soon()), 0);
    conc_value_free(v);
    CHECK_EQ(conc_lease_release(&a, 0), 0);
  }
  expect_none(d.q, 0);
  CHECK_EQ(conc_queue_join(d.q, soon()), 0);
  CHECK_EQ(conc_get_value(d.dead, &v, soon()), 0);
  CHECK_EQ(conc_value_size(conc_value_get(v, "message")), 5);
  CHECK_STR(conc_value_str(conc_value_get(v, "why"), NULL), "released");
  CHECK_EQ(conc_parse(conc_value_get(v, "deliveries"), "i", &n), 0);
  CHECK_EQ(n, 2);
  conc_value_free(v);
  CHECK_EQ(conc_get_value(d.dead, &v, soon()), 0);
  CHECK_EQ(conc_parse(conc_value_get(v, "message"), "(is)", &n, &message), 0);
  CHECK_STR(message, "seven");
  conc_value_free(v);
  distance_end(&d);
}

/* --- delays, ids, counts --- */

EVERYWHERE(what_is_put_for_later_comes_then) {
  distance d;
  double began;
  distance_begin(&d, kind, leasing(60), false);
  began = conc_now();
  CHECK_EQ(conc_put_after(d.q, "later", 5, 0.8, soon()), 0);
  CHECK_EQ(conc_put_after(d.q, "later still", 11, 0.9, soon()), 0);
  CHECK_EQ(conc_put_after(d.q, "at once", 7, 0, soon()), 0);
  expect(d.q, "at once", NULL);
  CHECK_EQ(conc_task_done(d.q), 0);
  expect_none(d.q, 0);
  CHECK_EQ(conc_queue_join(d.q, 0), -ETIMEDOUT);
  expect(d.q, "later", NULL);
  CHECK(conc_now() - began >= 0.78);
  CHECK_EQ(conc_task_done(d.q), 0);
  expect(d.q, "later still", NULL);
  CHECK(conc_now() - began >= 0.88);
  CHECK_EQ(conc_task_done(d.q), 0);
  CHECK_EQ(conc_queue_join(d.q, soon()), 0);
  distance_end(&d);
}

EVERYWHERE(an_id_that_is_known_is_put_once) {
  conc_queue_opts o = leasing(0);
  distance d;
  o.dedup = 1000;
  distance_begin(&d, kind, o, false);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put_once(d.q, "id 1", "x", 1, soon()), 0);
    CHECK_EQ(conc_put_once(d.q, "id 2", "y", 1, soon()), 0);
  }
  CHECK_EQ(conc_qsize(d.q), 2);
  expect(d.q, "x", NULL);
  CHECK_EQ(conc_put_once(d.q, "id 1", "x", 1, soon()), 0); /* done or not */
  expect(d.q, "y", NULL);
  expect_none(d.q, 0);
  CHECK_EQ(conc_put_once(d.q, NULL, "x", 1, soon()), -EINVAL);
  distance_end(&d);
}

EVERYWHERE(what_there_is_is_counted) {
  distance d;
  conc_queue_counts c;
  conc_lease a;
  distance_begin(&d, kind, leasing(60), false);
  for (int i = 0; i < 3; i++) put(d.q, "x");
  CHECK_EQ(conc_put_after(d.q, "later", 5, 100, soon()), 0);
  expect(d.q, "x", &a);
  CHECK_EQ(conc_queue_stats(d.q, &c), 0);
  CHECK_EQ(c.ready, 2);
  CHECK_EQ(c.leased, 1);
  CHECK_EQ(c.delayed, 1);
  CHECK_EQ(conc_qsize(d.q), 2);
  CHECK_EQ(conc_lease_done(&a), 0);
  CHECK_EQ(conc_queue_stats(d.q, &c), 0);
  CHECK_EQ(c.leased, 0);
  distance_end(&d);
}

/* --- of a Redis alone --- */

/* What lies there is what other programs read and write. */
TEST(what_lies_there_is_plain) {
  distance d;
  conc_manager json;
  conc_queue *q;
  conc_value *v;
  char text[64];
  distance_begin(&d, ON_REDIS, leasing(0), false);
  CHECK_EQ(d.client.format, CONC_FORMAT_PICKLE);
  put(d.q, "bytes");
  CHECK_EQ(conc_put_build(d.q, soon(), "[is]", 7, "seven"), 0);
  memset(&json, 0, sizeof json);
  json.address = d.address;
  json.format = CONC_FORMAT_JSON;
  CHECK_EQ(conc_manager_connect(&json, soon()), 0);
  q = conc_manager_get(&json, "q");
  CHECK(q != NULL);
  CHECK_EQ(conc_put_build(q, soon(), "[is]", 7, "seven"), 0);
  CHECK(strstr(redis_say(&d.at, "XRANGE {q} - +"), "(d bytes)") != NULL);
  CHECK(strstr(redis_say(&d.at, "XRANGE {q} - +"), "(p \x80\x04") != NULL);
  CHECK(strstr(redis_say(&d.at, "XRANGE {q} - +"), "(j [7") != NULL);
  expect(d.q, "bytes", NULL);
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_get_value(d.q, &v, soon()), 0);
    conc_value_text(v, text, sizeof text);
    CHECK_STR(text, "[7, 'seven']");
    conc_value_free(v);
  }
  redis_say(&d.at, "XADD {q} * d \"of another\"");
  redis_say(&d.at, "XADD {q} * j \"{\\\"a\\\": [1, null]}\"");
  expect(q, "of another", NULL);
  CHECK_EQ(conc_get_value(q, &v, soon()), 0);
  conc_value_text(v, text, sizeof text);
  CHECK_STR(text, "{'a': [1, None]}");
  conc_value_free(v);
  CHECK_EQ(conc_manager_shutdown(&json), 0);
  distance_end(&d);
}

static int start_with(const char *address, conc_queue_opts o) {
  conc_manager m;
  conc_queue *q = conc_queue_new(&o);
  int rc;
  CHECK(q != NULL);
  memset(&m, 0, sizeof m);
  m.address = address;
  CHECK_EQ(conc_manager_register_queue(&m, "q", q), 0);
  rc = conc_manager_start(&m);
  conc_manager_shutdown(&m);
  conc_queue_free(q);
  return rc;
}

TEST(what_Redis_does_not_have_is_refused) {
  conc_queue_opts o = leasing(60);
  conc_manager m;
  redis r;
  NEEDS_REDIS;
  redis_begin(&r, "");
  CHECK_EQ(start_with(r.address, o), 0);
  o.priorities = 2;
  CHECK_EQ(start_with(r.address, o), -ENOTSUP);
  o.priorities = 0;
  o.max_total = 1000;
  CHECK_EQ(start_with(r.address, o), -ENOTSUP);
  o.max_total = 0;
  o.objects = CONC_PASS;
  CHECK_EQ(start_with(r.address, o), -ENOTSUP);
  o.objects = 0;
  o.max_deliveries = 2;
  o.dead_letters = conc_queue_new(NULL); /* nobody knows it there */
  CHECK_EQ(start_with(r.address, o), -EINVAL);
  conc_queue_free(o.dead_letters);
  memset(&m, 0, sizeof m);
  m.address = r.address;
  CHECK_EQ(conc_manager_serve_forever(&m), -ENOTSUP);
  redis_end(&r);
}

/* A put that waits for replicas says if they do not have it in time. */
TEST(replicas_are_waited_for) {
  redis master, replica;
  conc_manager m;
  conc_queue *q;
  char line[64];
  NEEDS_REDIS;
  redis_begin_port(&master, "");
  CHECK_EQ(start_with(master.address, leasing(0)), 0);
  memset(&m, 0, sizeof m);
  m.address = master.address;
  m.replicas = 1;
  m.timeout = 0.8;
  CHECK_EQ(conc_manager_connect(&m, soon()), 0);
  q = conc_manager_get(&m, "q");
  CHECK(q != NULL);
  CHECK_EQ(conc_put(q, "alone", 5, soon()), -ENOLINK);
  expect(q, "alone", NULL); /* it is there, all the same */
  CHECK_EQ(conc_manager_shutdown(&m), 0);

  snprintf(line, sizeof line, "replicaof 127.0.0.1 %d", master.port);
  redis_begin(&replica, line);
  redis_until(&master, "1", "WAIT 1 100");
  m.timeout = soon();
  CHECK_EQ(conc_manager_connect(&m, soon()), 0);
  q = conc_manager_get(&m, "q");
  CHECK(q != NULL);
  CHECK_EQ(conc_put(q, "two", 3, soon()), 0);
  CHECK(strstr(redis_say(&replica, "XRANGE {q} - +"), "(d two)") != NULL);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  redis_end(&replica);
  redis_end(&master);
}

/* A put of many that are made at the same time. */
typedef struct put_beside {
  conc_task task;
  conc_queue *q;
  int rc;
} put_beside;

static void *put_beside_others(void *arg) {
  put_beside *p = (put_beside *)arg;
  p->rc = conc_put(p->q, "beside", 6, soon());
  return NULL;
}

/* There is no replica, so each wait lasts until its time is over. If one of
   them began when the one before it has ended, the later ones had no time for
   their own. */
TEST(waits_for_replicas_do_not_wait_for_each_other) {
  enum { TASKS = 16 };
  put_beside all[TASKS];
  redis real;
  conc_manager m;
  conc_queue *q;
  NEEDS_REDIS;
  redis_begin(&real, "");
  CHECK_EQ(start_with(real.address, leasing(0)), 0);
  memset(&m, 0, sizeof m);
  memset(all, 0, sizeof all);
  m.address = real.address;
  m.replicas = 1;
  m.timeout = 1 * test_slow();
  CHECK_EQ(conc_manager_connect(&m, soon()), 0);
  q = conc_manager_get(&m, "q");
  CHECK(q != NULL);
  for (int i = 0; i < TASKS; i++) {
    all[i].q = q;
    start(conc_thread_start, &all[i].task, put_beside_others, &all[i]);
  }
  for (int i = 0; i < TASKS; i++) {
    CHECK_EQ(conc_join(&all[i].task, CONC_FOREVER), 0);
    CHECK_EQ(all[i].rc, -ENOLINK);
  }
  CHECK_EQ(conc_qsize(q), TASKS);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  redis_end(&real);
}

static int tried(ssize_t rc, long fail_at) {
  if (rc < 0 && rc != -ENOMEM && rc != -ECONNRESET)
    TEST_FAIL("%ld: %s", fail_at, conc_strerror((int)rc));
  return (int)rc;
}

/* Every call that fails for want of memory has done nothing, or all; only if
   there is none for the reply of the server, it is not known what became of a
   put or a done. */
static void live_through(long fail_at, const char *address) {
  static char large[20000];
  conc_manager m;
  conc_queue *q = NULL;
  int rc, put = 0, done = 0;
  memset(&m, 0, sizeof m);
  m.address = address;
  STORE(test_fail_at, fail_at);
#define TRIED(call) tried((ssize_t)(call), fail_at)
  if (TRIED(conc_manager_connect(&m, soon())) == 0) {
    q = conc_manager_get(&m, "q");
    CHECK(q != NULL || errno == ENOMEM || errno == ECONNRESET);
  }
  if (q != NULL) {
    conc_lease a;
    conc_value *v = NULL;
    put += TRIED(conc_put(q, large, sizeof large, soon())) == 0;
    put += TRIED(conc_put_build(q, soon(), "(is)", 1, "one")) == 0;
    for (int i = 0; i < put; i++) {
      rc = (int)conc_get_leased(q, &a, large, sizeof large, soon());
      if (rc == -EBADMSG) rc = conc_get_value_leased(q, &a, &v, soon());
      TRIED(rc);
      conc_value_free(v);
      v = NULL;
      if (rc < 0) continue;
      rc = conc_lease_done(&a); /* the lease may not have been made longer */
      if (rc != -ESTALE) done += TRIED(rc) == 0;
    }
    STORE(test_fail_at, 0);
    while (conc_queue_join(q, 0) != 0) { /* it comes back, or is still ours */
      if (conc_task_done(q) == 0) done++;
      if (conc_get_value_leased(q, &a, &v, 0.1) != 0) continue;
      conc_value_free(v);
      v = NULL;
      if (conc_lease_done(&a) == 0) done++;
    }
    CHECK(done >= put - 1); /* one may have been done, and not known */
    CHECK_EQ(conc_qsize(q), 0);
  }
  STORE(test_fail_at, 0);
  if (m.state != NULL) CHECK_EQ(conc_manager_shutdown(&m), 0);
}

TEST(no_memory_loses_nothing_on_Redis) {
  distance d;
  distance_begin(&d, ON_REDIS, leasing(0.2), false);
  for (long i = 1; i <= 60; i++) live_through(i, d.address);
  distance_end(&d);
}

TEST_MAIN
