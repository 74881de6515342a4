/* conc_select: several queues, tasks, events and descriptors in one wait, from
   threads and coroutines; queues of this process, shared, and of a server. */
#include "test.h"

#include "../conc.h"
#include "tasks.h"

#include <sys/resource.h>
#include <sys/socket.h>

/* What the tests may look at from outside alone: so each is a sentence about
   the results of the calls. */

static conc_case get_case(conc_queue *q, int *n) {
  conc_case c;
  memset(&c, 0, sizeof c);
  c.get = q;
  c.buf = n;
  c.size = sizeof *n;
  return c;
}
static conc_case put_case(conc_queue *q, const int *n) {
  conc_case c;
  memset(&c, 0, sizeof c);
  c.put = q;
  c.data = n;
  c.size = sizeof *n;
  return c;
}
static conc_case event_case(conc_event *event) {
  conc_case c;
  memset(&c, 0, sizeof c);
  c.event = event;
  return c;
}
static conc_case join_case(conc_task *task) {
  conc_case c;
  memset(&c, 0, sizeof c);
  c.join = task;
  return c;
}
static conc_case fd_case(int fd, int events) {
  conc_case c;
  memset(&c, 0, sizeof c);
  c.fd = fd;
  c.events = events;
  return c;
}
static conc_queue *bounded(size_t capacity, bool shared) {
  conc_queue_opts o;
  conc_queue *q;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  o.shared = shared;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  return q;
}
static void put_int(conc_queue *q, int n) {
  CHECK_EQ(conc_put(q, &n, sizeof n, 20), 0);
}

/* A helper in a thread or in a coroutine, as the caller is. */
static bool in_loop; /* the test runs in a coroutine */
static void begin(conc_task *t, conc_fn *fn, void *arg) {
  start(in_loop ? conc_coro_start : conc_thread_start, t, fn, arg);
}
static void end(conc_task *t) { CHECK_EQ(conc_join(t, 20), 0); }

/* Each of these in a thread with threads, and in a coroutine with coroutines
   of its loop. */
#define TEST_EACH(name)                                                       \
  static void name##_body(void);                                              \
  static void *name##_run(void *arg) {                                        \
    name##_body();                                                            \
    return arg;                                                               \
  }                                                                           \
  TEST(name) {                                                                \
    in_loop = false;                                                          \
    name##_body();                                                            \
    in_loop = true;                                                           \
    run(name##_run, NULL);                                                    \
  }                                                                           \
  static void name##_body(void)

/* --- what can be done at once --- */

TEST_EACH(what_can_be_done_is_done) {
  conc_queue *a = conc_queue_new(NULL), *b = bounded(1, false);
  conc_event e;
  conc_case c[4];
  int got = 0, seven = 7;
  memset(&e, 0, sizeof e);
  CHECK_EQ(conc_select(NULL, 0, 0), -ETIMEDOUT);
  CHECK_EQ(conc_select(NULL, 0, 0.001), -ETIMEDOUT);
  memset(c, 0, sizeof c); /* cases that are switched off */
  CHECK_EQ(conc_select(c, 4, 0.001), -ETIMEDOUT);
  c[1] = get_case(a, &got);
  CHECK_EQ(conc_select(c, 4, 0), -ETIMEDOUT);
  CHECK_EQ(conc_select(c, 4, 0.001), -ETIMEDOUT);
  put_int(a, 5);
  CHECK_EQ(conc_select(c, 4, 0), 1);
  CHECK_EQ(got, 5);
  CHECK_EQ(c[1].result, (ssize_t)sizeof got);
  c[3] = put_case(b, &seven);
  CHECK_EQ(conc_select(c, 4, 1), 3);
  CHECK_EQ(c[3].result, 0);
  CHECK_EQ(conc_qsize(b), 1);
  CHECK_EQ(conc_select(c, 4, 0.001), -ETIMEDOUT); /* b is full */
  c[0] = event_case(&e);
  CHECK_EQ(conc_select(c, 4, 0.001), -ETIMEDOUT);
  conc_event_set(&e);
  CHECK_EQ(conc_select(c, 4, 0), 0);
  CHECK_EQ(c[0].result, 0);
  CHECK_EQ(conc_get(b, &got, sizeof got, 0), (ssize_t)sizeof got);
  CHECK_EQ(got, 7);
  conc_queue_free(a);
  conc_queue_free(b);
}

TEST(a_case_is_one_thing) {
  conc_queue *a = conc_queue_new(NULL);
  conc_event e;
  conc_case c[2];
  int n = 0;
  memset(&e, 0, sizeof e);
  c[0] = get_case(a, &n);
  c[0].event = &e;
  c[1] = get_case(a, &n);
  put_int(a, 1);
  CHECK_EQ(conc_select(c, 2, 1), -EINVAL);
  c[0] = fd_case(0, 64);
  CHECK_EQ(conc_select(c, 2, 1), -EINVAL);
  CHECK_EQ(conc_qsize(a), 1);
  conc_queue_free(a);
}

/* An error is a result: the case is done by it. */
TEST_EACH(errors_are_results) {
  conc_queue *a = conc_queue_new(NULL), *b = conc_queue_new(NULL);
  conc_task never;
  conc_case c[2];
  char text[2];
  int one = 1, fds[2];
  memset(c, 0, sizeof c);
  c[0] = put_case(a, &one);
  conc_queue_close(a);
  CHECK_EQ(conc_select(c, 1, 20), 0);
  CHECK_EQ(c[0].result, -EPIPE);
  c[0] = get_case(a, &one);
  CHECK_EQ(conc_select(c, 1, 20), 0);
  CHECK_EQ(c[0].result, -EPIPE);
  CHECK_EQ(conc_put(b, "long", 4, 0), 0);
  c[0] = get_case(b, &one);
  c[0].buf = text;
  c[0].size = sizeof text;
  CHECK_EQ(conc_select(c, 1, 20), 0);
  CHECK_EQ(c[0].result, -EMSGSIZE);
  CHECK_EQ(conc_qsize(b), 1);
  memset(&never, 0, sizeof never);
  c[0] = join_case(&never);
  CHECK_EQ(conc_select(c, 1, 20), 0);
  CHECK_EQ(c[0].result, -EINVAL);
  CHECK_EQ(pipe(fds), 0);
  close(fds[0]);
  close(fds[1]);
  c[0] = fd_case(fds[0], CONC_READ);
  CHECK_EQ(conc_select(c, 1, 20), 0);
  CHECK_EQ(c[0].result, -EBADF);
  conc_queue_free(a);
  conc_queue_free(b);
}

TEST_EACH(typed_values_are_put_and_got) {
  conc_queue *a = bounded(1, false);
  conc_value *v, *got = NULL;
  conc_case c[1];
  int n, m;
  CHECK_EQ(conc_build(&v, "(ii)", 3, 4), 0);
  memset(c, 0, sizeof c);
  c[0].put = a;
  c[0].value = v;
  CHECK_EQ(conc_select(c, 1, 1), 0);
  CHECK_EQ(c[0].result, 0);
  CHECK_EQ(conc_select(c, 1, 0.001), -ETIMEDOUT);
  conc_value_free(v);
  memset(c, 0, sizeof c);
  c[0].get = a;
  c[0].out = &got;
  CHECK_EQ(conc_select(c, 1, 1), 0);
  CHECK_EQ(c[0].result, 0);
  CHECK_EQ(conc_parse(got, "(ii)", &n, &m), 0);
  CHECK_EQ(n * 10 + m, 34);
  conc_value_free(got);
  conc_queue_free(a);
}

/* --- what comes later --- */

typedef struct later {
  conc_queue *q;
  conc_event *e;
  int fd;
} later;

/* Lets the select begin to wait; if it has not yet, no harm. */
static void *do_later(void *arg) {
  later *l = (later *)arg;
  conc_sleep(0.005);
  if (l->q != NULL) put_int(l->q, 9);
  if (l->e != NULL) conc_event_set(l->e);
  if (l->fd > 0) CHECK_EQ(write(l->fd, "x", 1), 1);
  return NULL;
}
static void *get_later(void *arg) {
  int n;
  conc_sleep(0.005);
  CHECK_EQ(conc_get((conc_queue *)arg, &n, sizeof n, 20), (ssize_t)sizeof n);
  return NULL;
}
static void *close_later(void *arg) {
  conc_sleep(0.005);
  CHECK_EQ(conc_queue_close((conc_queue *)arg), 0);
  return NULL;
}

/* Every kind of thing, each waited for together with all the others. */
TEST_EACH(each_kind_wakes) {
  conc_queue *a = conc_queue_new(NULL), *b = bounded(1, false);
  conc_queue *shared = bounded(1, true), *full = bounded(1, true);
  conc_event e;
  conc_task t;
  conc_case c[8];
  later l;
  int n = 0, one = 1, fds[2];
  char byte;
  memset(&e, 0, sizeof e);
  CHECK_EQ(pipe(fds), 0);
  put_int(b, 0);
  put_int(full, 0);
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < 8; i++) {
      memset(&l, 0, sizeof l);
      c[0] = get_case(a, &n);
      c[1] = put_case(b, &one);
      c[2] = event_case(&e);
      c[3] = fd_case(fds[0], CONC_READ);
      c[4] = get_case(shared, &n);
      c[5] = put_case(full, &one);
      memset(&c[6], 0, sizeof c[6]);
      if (i == 6) continue;
      if (i == 7)
        c[7] = join_case(&t);
      else
        memset(&c[7], 0, sizeof c[7]);
      if (round == 1) /* alone, or with nothing but what has no descriptor */
        for (int k = 0; k < 8; k++)
          if (k != i && (k >= 3 || i >= 3)) memset(&c[k], 0, sizeof c[k]);
      if (i == 0) l.q = a;
      if (i == 2) l.e = &e;
      if (i == 3) l.fd = fds[1];
      if (i == 4) l.q = shared;
      if (i == 1 || i == 5)
        begin(&t, get_later, i == 1 ? b : full);
      else
        begin(&t, do_later, &l);
      CHECK_EQ(conc_select(c, 8, 20), i);
      end(&t);
      if (i == 0 || i == 4) {
        CHECK_EQ(c[i].result, (ssize_t)sizeof n);
        CHECK_EQ(n, 9);
        n = 0;
      } else if (i == 3) {
        CHECK_EQ(c[i].result, CONC_READ);
        CHECK_EQ(read(fds[0], &byte, 1), 1);
      } else {
        CHECK_EQ(c[i].result, 0);
      }
      conc_event_clear(&e);
      CHECK_EQ(conc_qsize(a), 0);
      CHECK_EQ(conc_qsize(b), 1);
      CHECK_EQ(conc_qsize(shared), 0);
      CHECK_EQ(conc_qsize(full), 1);
    }
  conc_queue_free(a);
  conc_queue_free(b);
  conc_queue_free(shared);
  conc_queue_free(full);
  close(fds[0]);
  close(fds[1]);
}

TEST_EACH(a_close_wakes) {
  conc_queue *a = conc_queue_new(NULL), *b = bounded(1, false);
  conc_queue *s = bounded(1, true);
  conc_task t;
  conc_case c[2];
  int n = 0;
  put_int(b, 0);
  c[0] = get_case(a, &n);
  c[1] = put_case(b, &n);
  begin(&t, close_later, b);
  CHECK_EQ(conc_select(c, 2, 20), 1);
  CHECK_EQ(c[1].result, -EPIPE);
  end(&t);
  begin(&t, close_later, a);
  memset(&c[1], 0, sizeof c[1]);
  CHECK_EQ(conc_select(c, 2, 20), 0);
  CHECK_EQ(c[0].result, -EPIPE);
  end(&t);
  c[0] = get_case(s, &n);
  begin(&t, close_later, s);
  CHECK_EQ(conc_select(c, 2, 20), 0);
  CHECK_EQ(c[0].result, -EPIPE);
  end(&t);
  conc_queue_free(a);
  conc_queue_free(b);
  conc_queue_free(s);
}

/* An event that is set, and cleared at once, has let its waiters go. */
static unsigned woken;
static void *set_and_clear(void *arg) {
  conc_event *e = (conc_event *)arg;
  conc_sleep(0.005);
  while (!LOAD(woken)) {
    conc_event_set(e);
    conc_event_clear(e);
    conc_sleep(0.0005); /* for one that came late */
  }
  return NULL;
}
TEST_EACH(an_event_that_was_set_for_a_moment_wakes) {
  conc_event e;
  conc_task t;
  conc_case c[1];
  memset(&e, 0, sizeof e);
  c[0] = event_case(&e);
  STORE(woken, 0u);
  begin(&t, set_and_clear, &e);
  CHECK_EQ(conc_select(c, 1, 20), 0);
  STORE(woken, 1u);
  end(&t);
}

/* The time is that of the call, whatever wakes it in between. */
TEST_EACH(a_select_runs_out) {
  conc_queue *a = conc_queue_new(NULL), *s = bounded(1, true);
  conc_case c[2];
  int n;
  double begun = conc_now();
  c[0] = get_case(a, &n);
  c[1] = get_case(s, &n);
  CHECK_EQ(conc_select(c, 2, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - begun >= 0.05);
  conc_queue_free(a);
  conc_queue_free(s);
}

/* --- cancellation --- */

static conc_case waiting[4];
static bool select_begun;
static void *select_all(void *arg) {
  __atomic_store_n(&select_begun, true, __ATOMIC_RELEASE);
  return (void *)(intptr_t)conc_select(waiting, 4, *(double *)arg);
}
TEST_EACH(a_select_is_cancelled_and_takes_nothing) {
  conc_queue *a = conc_queue_new(NULL), *s = bounded(1, true);
  double long_time = 20;
  conc_event e;
  conc_task t;
  int n, fds[2];
  memset(&e, 0, sizeof e);
  CHECK_EQ(pipe(fds), 0);
  for (int i = 0; i < 8; i++) {
    memset(waiting, 0, sizeof waiting);
    waiting[0] = get_case(a, &n);
    if (i & 1) waiting[1] = get_case(s, &n);
    if (i & 2) waiting[2] = fd_case(fds[0], CONC_READ);
    if (i & 4) waiting[3] = event_case(&e);
    select_begun = false;
    begin(&t, select_all, &long_time);
    UNTIL(__atomic_load_n(&select_begun, __ATOMIC_ACQUIRE));
    for (int k = 0; k < i * 20; k++) conc_yield_now();
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, 20), -ECANCELED);
    CHECK_EQ((intptr_t)conc_result(&t), -ECANCELED);
    put_int(a, 1); /* nobody is on its list any more */
    CHECK_EQ(conc_qsize(a), 1);
    CHECK_EQ(conc_get(a, &n, sizeof n, 0), (ssize_t)sizeof n);
  }
  close(fds[0]);
  close(fds[1]);
  conc_queue_free(a);
  conc_queue_free(s);
}

TEST_EACH(a_time_limit_ends_a_select) {
  conc_queue *a = conc_queue_new(NULL);
  conc_scope limit;
  conc_case c[1];
  int n;
  c[0] = get_case(a, &n);
  conc_timeout(&limit, 0.01);
  CHECK_EQ(conc_select(c, 1, 20), -ECANCELED);
  CHECK_EQ(conc_scope_end(&limit), -ETIMEDOUT);
  conc_queue_free(a);
}

/* --- exactly one, and nothing lost --- */

/* Many messages through several queues, to some that select and to some that
   get: each arrives once. A wake-up that a select did not use must have come
   to another task, or the test hangs. */
enum { QUEUES = 3, MESSAGES = 600 };
typedef struct flow {
  conc_queue *q[QUEUES];
  conc_event stop;
  unsigned got, sum;
} flow;

static void *flow_put(void *arg) {
  flow *f = (flow *)arg;
  for (int i = 1; i <= MESSAGES; i++) put_int(f->q[i % QUEUES], i);
  return NULL;
}
static void flow_count(flow *f, int n) {
  __atomic_add_fetch(&f->sum, (unsigned)n, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&f->got, 1u, __ATOMIC_RELAXED) == 2 * MESSAGES)
    conc_event_set(&f->stop);
}
static void *flow_select(void *arg) {
  flow *f = (flow *)arg;
  conc_case c[QUEUES + 1];
  int n[QUEUES];
  ssize_t i;
  for (i = 0; i < QUEUES; i++) c[i] = get_case(f->q[i], &n[i]);
  c[QUEUES] = event_case(&f->stop);
  while ((i = conc_select(c, QUEUES + 1, 20)) != QUEUES) {
    CHECK(i >= 0 && i < QUEUES);
    CHECK_EQ(c[i].result, (ssize_t)sizeof *n);
    flow_count(f, n[i]);
  }
  return NULL;
}
static void *flow_get(void *arg) {
  flow *f = (flow *)arg;
  int n;
  ssize_t rc;
  while ((rc = conc_get(f->q[0], &n, sizeof n, 20)) >= 0) flow_count(f, n);
  CHECK_EQ(rc, -EPIPE);
  return NULL;
}
static void flow_test(bool shared, size_t capacity) {
  flow f;
  conc_task t[6];
  memset(&f, 0, sizeof f);
  for (int i = 0; i < QUEUES; i++)
    f.q[i] = bounded(capacity, shared && i > 0);
  for (int i = 0; i < 3; i++) begin(&t[i], flow_select, &f);
  begin(&t[3], flow_get, &f);
  for (int i = 4; i < 6; i++) begin(&t[i], flow_put, &f);
  CHECK_EQ(conc_event_wait(&f.stop, 20), 0);
  for (int i = 0; i < 3; i++) end(&t[i]);
  CHECK_EQ(conc_queue_close(f.q[0]), 0);
  for (int i = 3; i < 6; i++) end(&t[i]);
  CHECK_EQ(f.got, 2 * MESSAGES);
  CHECK_EQ(f.sum, MESSAGES * (MESSAGES + 1));
  for (int i = 0; i < QUEUES; i++) conc_queue_free(f.q[i]);
}
TEST_EACH(each_message_is_taken_once) {
  flow_test(false, 0);
  flow_test(false, 1);
  flow_test(false, 4);
}
TEST_EACH(each_message_of_shared_queues_is_taken_once) {
  flow_test(true, 1);
  flow_test(true, 4);
}

/* Puts by selects into queues that are full most of the time. */
static void *flow_select_put(void *arg) {
  flow *f = (flow *)arg;
  conc_case c[QUEUES];
  for (int i = 1; i <= MESSAGES; i++) {
    ssize_t k;
    for (k = 0; k < QUEUES; k++) c[k] = put_case(f->q[k], &i);
    k = conc_select(c, QUEUES, 20);
    CHECK(k >= 0);
    CHECK_EQ(c[k].result, 0);
  }
  return NULL;
}
TEST_EACH(each_message_is_put_once) {
  flow f;
  conc_task t[6];
  for (int shared = 0; shared < 2; shared++) {
    memset(&f, 0, sizeof f);
    for (int i = 0; i < QUEUES; i++) f.q[i] = bounded(1, shared && i == 1);
    for (int i = 0; i < 2; i++) begin(&t[i], flow_select_put, &f);
    for (int i = 2; i < 4; i++) begin(&t[i], flow_select, &f);
    CHECK_EQ(conc_event_wait(&f.stop, 20), 0);
    for (int i = 0; i < 4; i++) end(&t[i]);
    CHECK_EQ(f.sum, MESSAGES * (MESSAGES + 1));
    for (int i = 0; i < QUEUES; i++) {
      CHECK_EQ(conc_qsize(f.q[i]), 0);
      conc_queue_free(f.q[i]);
    }
  }
}

/* A select that was woken for one queue, and takes from another one, leaves
   the message to the getter behind it. Forced: the select is first on both
   lists, and both messages come before it runs. */
static conc_queue *two_queues[2];
static void *select_two(void *arg) {
  conc_case c[2];
  int n[2];
  for (int i = 0; i < 2; i++) c[i] = get_case(two_queues[i], &n[i]);
  CHECK(conc_select(c, 2, 20) >= 0);
  return arg;
}
static void *get_one(void *queue) {
  int n;
  CHECK_EQ(conc_get((conc_queue *)queue, &n, sizeof n, 20),
           (ssize_t)sizeof n);
  return NULL;
}
static void *pass_on(void *arg) {
  conc_task s, g[2];
  for (int i = 0; i < 2; i++) two_queues[i] = conc_queue_new(NULL);
  for (int round = 0; round < 20; round++) {
    start(conc_coro_start, &s, select_two, NULL);
    conc_yield_now();
    for (int i = 0; i < 2; i++)
      start(conc_coro_start, &g[i], get_one, two_queues[i]);
    conc_yield_now();
    /* One of them each is for the select; it takes one of the two. */
    put_int(two_queues[0], 1);
    put_int(two_queues[1], 1);
    CHECK_EQ(conc_join(&s, 20), 0);
    /* The getter of the other one has the other message; one is left. */
    conc_yield_now();
    conc_yield_now();
    CHECK_EQ(conc_is_alive(&g[0]) + conc_is_alive(&g[1]), 1);
    CHECK_EQ(conc_qsize(two_queues[0]) + conc_qsize(two_queues[1]), 0);
    put_int(two_queues[conc_is_alive(&g[0]) ? 0 : 1], 1);
    for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&g[i], 20), 0);
  }
  for (int i = 0; i < 2; i++) conc_queue_free(two_queues[i]);
  return arg;
}
TEST(a_wake_up_that_a_select_does_not_use_is_passed_on) { run(pass_on, NULL); }

/* Two queues that never run dry are served alike. */
TEST_EACH(no_case_is_left_out) {
  conc_queue *q[3];
  conc_case c[3];
  int n, times[3] = {0, 0, 0};
  for (int i = 0; i < 3; i++) q[i] = conc_queue_new(NULL);
  for (int i = 0; i < 3; i++)
    for (int k = 0; k < 300; k++) put_int(q[i], k);
  for (int i = 0; i < 3; i++) c[i] = get_case(q[i], &n);
  for (int k = 0; k < 300; k++) times[conc_select(c, 3, 0)]++;
  for (int i = 0; i < 3; i++) {
    CHECK(times[i] > 50); /* 100 are expected, 50 are six deviations off */
    conc_queue_free(q[i]);
  }
}

/* A hundred cases, which take memory. */
TEST_EACH(there_may_be_many_cases) {
  enum { MANY = 100 };
  conc_queue *q[MANY];
  conc_case c[MANY];
  conc_task t;
  later l;
  int n[MANY];
  memset(&l, 0, sizeof l);
  for (int i = 0; i < MANY; i++) {
    q[i] = conc_queue_new(NULL);
    c[i] = get_case(q[i], &n[i]);
  }
  for (int i = 0; i < MANY; i += 33) {
    l.q = q[i];
    begin(&t, do_later, &l);
    CHECK_EQ(conc_select(c, MANY, 20), i);
    CHECK_EQ(n[i], 9);
    end(&t);
  }
  for (int i = 0; i < MANY; i++) conc_queue_free(q[i]);
}

/* --- other processes --- */

static void *put_nine(void *queue) {
  conc_sleep(0.01);
  put_int((conc_queue *)queue, 9);
  return NULL;
}
TEST_EACH(a_process_wakes_a_select) {
  conc_queue *a = conc_queue_new(NULL), *s = bounded(4, true);
  conc_task p;
  conc_case c[3];
  int n = 0;
  c[0] = get_case(a, &n);
  c[1] = get_case(s, &n);
  memset(&c[2], 0, sizeof c[2]);
  start(conc_process_start, &p, put_nine, s);
  CHECK_EQ(conc_select(c, 3, 20), 1);
  CHECK_EQ(n, 9);
  memset(&c[1], 0, sizeof c[1]);
  c[2] = join_case(&p);
  CHECK_EQ(conc_select(c, 3, 20), 2);
  CHECK_EQ(c[2].result, 0);
  conc_queue_free(a);
  conc_queue_free(s);
}

/* By a name: processes have no descriptor in common. */
TEST_EACH(a_queue_with_a_name_wakes_a_select) {
  conc_queue_opts o;
  conc_queue *s, *a = conc_queue_new(NULL);
  conc_task p;
  conc_case c[2];
  char name[40];
  int n = 0;
  snprintf(name, sizeof name, "select-%d", (int)getpid());
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.name = name;
  s = conc_queue_new(&o);
  CHECK(s != NULL);
  c[0] = get_case(s, &n);
  c[1] = get_case(a, &n);
  for (int i = 0; i < 3; i++) {
    start(conc_process_start, &p, put_nine, s);
    CHECK_EQ(conc_select(c, 2, 20), 0);
    CHECK_EQ(n, 9);
    CHECK_EQ(conc_join(&p, 20), 0);
  }
  conc_queue_free(s);
  conc_queue_free(a);
}

/* A coroutine waits while its loop's thread forks: in the child it goes on. */
static void *select_in_child(void *arg) {
  conc_queue **q = (conc_queue **)arg;
  conc_case c[2];
  int n = 0;
  c[0] = get_case(q[0], &n);
  c[1] = get_case(q[1], &n);
  CHECK_EQ(conc_select(c, 2, 20), 1);
  CHECK_EQ(n, 4);
  return NULL;
}
static void *fork_beside(void *arg) {
  conc_queue *q[2];
  conc_task t;
  pid_t child;
  int how;
  q[0] = conc_queue_new(NULL);
  q[1] = conc_queue_new(NULL);
  start(conc_coro_start, &t, select_in_child, q);
  conc_yield_now();
  child = fork();
  put_int(q[1], 4); /* in both */
  CHECK_EQ(conc_join(&t, 20), 0);
  if (child == 0) _exit(0);
  CHECK_EQ(waitpid(child, &how, 0), child);
  CHECK_EQ(how, 0);
  conc_queue_free(q[0]);
  conc_queue_free(q[1]);
  return arg;
}
TEST(a_select_goes_on_in_a_fork) { run(fork_beside, NULL); }

/* A thread of the parent waits: in the child it is on no list any more. */
TEST(a_select_that_stays_behind_takes_nothing) {
  conc_queue *a = conc_queue_new(NULL);
  double long_time = 20;
  conc_task t;
  pid_t child;
  int n, how;
  memset(waiting, 0, sizeof waiting);
  waiting[0] = get_case(a, &n);
  start(conc_thread_start, &t, select_all, &long_time);
  conc_sleep(0.01); /* it most likely waits by then */
  child = fork();
  if (child == 0) {
    int m = 0, ok;
    put_int(a, 6);
    ok = conc_get(a, &m, sizeof m, 0) == (ssize_t)sizeof m && m == 6;
    _exit(ok ? 0 : 1);
  }
  CHECK_EQ(waitpid(child, &how, 0), child);
  CHECK_EQ(how, 0);
  put_int(a, 1);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ((intptr_t)conc_result(&t), 0);
  conc_queue_free(a);
}

/* --- a server's queues, and all else that is asked again and again --- */

TEST_EACH(queues_of_a_server_are_selected) {
  conc_manager m, client;
  conc_queue *a = conc_queue_new(NULL), *b = bounded(1, false);
  conc_queue *here = conc_queue_new(NULL);
  conc_task t;
  conc_case c[3];
  later l;
  int n = 0, five = 5;
  memset(&m, 0, sizeof m);
  memset(&client, 0, sizeof client);
  memset(&l, 0, sizeof l);
  m.address = "127.0.0.1:0";
  m.authkey = client.authkey = "select";
  CHECK_EQ(conc_manager_register_queue(&m, "a", a), 0);
  CHECK_EQ(conc_manager_register_queue(&m, "b", b), 0);
  CHECK_EQ(conc_manager_start(&m), 0);
  client.address = conc_manager_address(&m);
  CHECK_EQ(conc_manager_connect(&client, 20), 0);
  put_int(b, 0);
  c[0] = get_case(conc_manager_get(&client, "a"), &n);
  c[1] = put_case(conc_manager_get(&client, "b"), &five);
  c[2] = get_case(here, &n);
  CHECK_EQ(conc_select(c, 3, 0.01), -ETIMEDOUT);
  l.q = a;
  begin(&t, do_later, &l);
  CHECK_EQ(conc_select(c, 3, 20), 0);
  CHECK_EQ(n, 9);
  end(&t);
  begin(&t, get_later, b);
  CHECK_EQ(conc_select(c, 3, 20), 1);
  CHECK_EQ(c[1].result, 0);
  end(&t);
  CHECK_EQ(conc_qsize(b), 1);
  l.q = here;
  begin(&t, do_later, &l);
  CHECK_EQ(conc_select(c, 3, 20), 2);
  end(&t);
  CHECK_EQ(conc_qsize(a), 0);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(a);
  conc_queue_free(b);
  conc_queue_free(here);
}

TEST_EACH(a_queue_that_leases_is_selected) {
  conc_queue_opts o;
  conc_queue *q, *a = conc_queue_new(NULL);
  conc_task t;
  conc_case c[2];
  later l;
  int n = 0;
  memset(&o, 0, sizeof o);
  memset(&l, 0, sizeof l);
  o.lease = 20;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  c[0] = get_case(q, &n);
  c[1] = get_case(a, &n);
  l.q = q;
  begin(&t, do_later, &l);
  CHECK_EQ(conc_select(c, 2, 20), 0);
  CHECK_EQ(n, 9);
  CHECK_EQ(conc_task_done(q), 0);
  end(&t);
  conc_queue_free(q);
  conc_queue_free(a);
}

/* Not more descriptors than it may have may be polled: without that there is a
   pause between two looks. */
TEST(a_poll_that_fails_costs_no_time) {
  struct rlimit was, none;
  struct rusage begun, ended;
  conc_case c[2];
  int fd[2];
  double cpu;
  CHECK_EQ(pipe(fd), 0);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
  none = was;
  none.rlim_cur = 0;
  memset(c, 0, sizeof c);
  c[0].fd = fd[0];
  c[0].events = CONC_READ;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  CHECK_EQ(getrusage(RUSAGE_SELF, &begun), 0);
  CHECK_EQ(conc_select(c, 2, 0.5), -ETIMEDOUT);
  CHECK_EQ(getrusage(RUSAGE_SELF, &ended), 0);
  cpu = (double)(ended.ru_utime.tv_sec - begun.ru_utime.tv_sec +
                 ended.ru_stime.tv_sec - begun.ru_stime.tv_sec) +
        (double)(ended.ru_utime.tv_usec - begun.ru_utime.tv_usec +
                 ended.ru_stime.tv_usec - begun.ru_stime.tv_usec) / 1e6;
  CHECK(cpu < 0.1);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &was), 0);
  CHECK_EQ(write(fd[1], "x", 1), 1);
  CHECK_EQ(conc_select(c, 2, 5), 0);
  close(fd[0]);
  close(fd[1]);
}

TEST_MAIN
