/* conc_interval, conc_limiter, conc_broadcast. */
#include "test.h"

#include "../conc.h"
#include "tasks.h"

/* --- conc_interval --- */

/* The ticks are multiples of the interval, counted from the first call: what
   is late is not added up. */
static void *tick(void *arg) {
  conc_interval t;
  double begun, first;
  int ticks = 0, missed = 0;
  memset(&t, 0, sizeof t);
  CHECK_EQ(conc_interval_next(&t), -EINVAL);
  t.seconds = 0.01;
  begun = conc_now();
  conc_interval_left(&t); /* begins it */
  first = t.next;
  CHECK(first >= begun + 0.01);
  while (ticks + missed < 20) {
    int rc = conc_interval_next(&t);
    CHECK(rc >= 0);
    missed += rc;
    ticks++;
    conc_sleep(0.003); /* the work */
  }
  /* 20 ticks are 0.2 s; with a drift of the work it would be 0.26 s. */
  CHECK(conc_now() - begun >= 0.2);
  first += 0.01 * (ticks + missed);
  CHECK(t.next > first - 1e-6 && t.next < first + 1e-6);
  return arg;
}
TEST_BOTH(ticks_do_not_drift, tick)

static void *miss(void *arg) {
  conc_interval t;
  memset(&t, 0, sizeof t);
  t.seconds = 0.01;
  conc_interval_left(&t); /* begins it */
  conc_sleep(0.055);
  CHECK(conc_interval_left(&t) <= 0);
  CHECK(conc_interval_next(&t) >= 4); /* five are due, and come as one */
  return arg;
}
TEST_BOTH(ticks_that_were_missed_come_as_one, miss)

static void *be_cancelled(void *arg) {
  conc_interval t;
  memset(&t, 0, sizeof t);
  t.seconds = 100;
  CHECK_EQ(conc_interval_next(&t), -ECANCELED);
  CHECK(conc_interval_left(&t) > 0); /* it still comes */
  CHECK_EQ(conc_set_status(0), 0);
  return arg;
}
TEST(an_interval_is_cancelled) {
  conc_task t;
  start(conc_thread_start, &t, be_cancelled, NULL);
  CHECK_EQ(conc_cancel(&t), 0);
  /* Unless it was cancelled before it began. */
  CHECK(conc_join(&t, 20) == 0 || conc_join(&t, 20) == -ECANCELED);
}

/* --- conc_limiter --- */

static void *limit(void *arg) {
  conc_limiter l;
  double begun = conc_now();
  memset(&l, 0, sizeof l);
  CHECK_EQ(conc_limiter_acquire(&l, 1, 0), -EINVAL);
  l.rate = 100;
  l.burst = 5;
  CHECK_EQ(conc_limiter_acquire(&l, 6, CONC_FOREVER), -EINVAL);
  CHECK_EQ(conc_limiter_acquire(&l, 5, 0), 0); /* the burst */
  for (int i = 0; i < 10; i++)
    CHECK_EQ(conc_limiter_acquire(&l, 1, CONC_FOREVER), 0);
  CHECK(conc_now() - begun >= 0.1);
  CHECK_EQ(conc_limiter_acquire(&l, 0, 0), 0);
  return arg;
}
TEST_BOTH(a_limiter_lets_so_many_through, limit)

/* What was refused, or cancelled, has taken nothing. */
static void *limited(void *limiter) {
  CHECK_EQ(conc_limiter_acquire((conc_limiter *)limiter, 1, CONC_FOREVER),
           -ECANCELED);
  return NULL;
}
static void *give_back(void *arg) {
  conc_limiter l;
  conc_task t;
  double full;
  memset(&l, 0, sizeof l);
  l.rate = 0.01; /* one in a hundred seconds */
  CHECK_EQ(conc_limiter_acquire(&l, 1, 0), 0);
  full = l.full_at;
  CHECK_EQ(conc_limiter_acquire(&l, 1, 50), -ETIMEDOUT); /* at once */
  CHECK(l.full_at <= full);
  start(conc_coro_start, &t, limited, &l);
  conc_yield_now();
  CHECK(l.full_at > full + 99);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, 20), -ECANCELED);
  CHECK(l.full_at < full + 1);
  return arg;
}
TEST(what_was_not_allowed_is_given_back) { run(give_back, NULL); }

/* One that is cancelled leaves a gap; who comes then is behind those that came
   before: else two would be let through at the same time. */
static void *pass_at_last(void *limiter) {
  CHECK_EQ(conc_limiter_acquire((conc_limiter *)limiter, 1, CONC_FOREVER), 0);
  return NULL;
}
static void *leave_a_gap(void *arg) {
  conc_limiter l;
  conc_task t[2];
  double begun = conc_now();
  memset(&l, 0, sizeof l);
  l.rate = 10;
  CHECK_EQ(conc_limiter_acquire(&l, 1, 0), 0);
  start(conc_coro_start, &t[0], limited, &l);
  conc_yield_now();
  start(conc_coro_start, &t[1], pass_at_last, &l);
  conc_yield_now();
  CHECK_EQ(conc_cancel(&t[0]), 0);
  CHECK_EQ(conc_join(&t[0], 20), -ECANCELED);
  CHECK_EQ(conc_limiter_acquire(&l, 1, CONC_FOREVER), 0);
  CHECK(conc_now() - begun > 0.299);
  CHECK_EQ(conc_join(&t[1], 0), 0);
  return arg;
}
TEST(a_gap_is_not_filled_twice) { run(leave_a_gap, NULL); }

/* --- conc_broadcast --- */

static conc_queue *bounded(size_t capacity) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  return conc_queue_new(&o);
}
static int got(conc_queue *q) {
  int n = -1;
  return conc_get(q, &n, sizeof n, 0) < 0 ? -1 : n;
}

static void *drop(void *arg) {
  conc_broadcast b;
  conc_queue *q[3];
  memset(&b, 0, sizeof b);
  CHECK_EQ(conc_broadcast_put(&b, "x", 1, 0), 0); /* nobody */
  for (int i = 0; i < 3; i++) {
    q[i] = bounded(i == 2 ? 0 : (size_t)i + 1);
    CHECK_EQ(conc_broadcast_subscribe(&b, q[i]), 0);
    CHECK_EQ(conc_broadcast_subscribe(&b, q[i]), -EEXIST);
  }
  for (int n = 1; n <= 3; n++)
    CHECK_EQ(conc_broadcast_put(&b, &n, sizeof n, 1), 3);
  CHECK_EQ(b.lost, 3);
  CHECK_EQ(got(q[0]), 3); /* the newest */
  CHECK_EQ(got(q[1]), 2);
  CHECK_EQ(got(q[1]), 3);
  for (int n = 1; n <= 3; n++) CHECK_EQ(got(q[2]), n);
  CHECK_EQ(conc_queue_close(q[0]), 0); /* passed over */
  CHECK_EQ(conc_broadcast_unsubscribe(&b, q[1]), 0);
  CHECK_EQ(conc_broadcast_unsubscribe(&b, q[1]), -ENOENT);
  CHECK_EQ(conc_broadcast_put(&b, "four", 4, 1), 1);
  CHECK_EQ(conc_qsize(q[1]), 0);
  CHECK_EQ(conc_broadcast_unsubscribe(&b, q[0]), 0);
  CHECK_EQ(conc_broadcast_unsubscribe(&b, q[2]), 0);
  for (int i = 0; i < 3; i++) conc_queue_free(q[i]);
  return arg;
}
TEST_BOTH(slow_subscribers_lose_the_oldest, drop)

/* With .blocks nothing is lost. */
static void *take_all(void *queue) {
  int n, expected = 0;
  while (conc_get((conc_queue *)queue, &n, sizeof n, 20) >= 0)
    CHECK_EQ(n, ++expected);
  CHECK_EQ(expected, 100);
  return NULL;
}
static void *block(void *arg) {
  conc_broadcast b;
  conc_queue *q[3];
  conc_task t[3];
  int n;
  memset(&b, 0, sizeof b);
  b.blocks = true;
  for (int i = 0; i < 3; i++) {
    q[i] = bounded(1);
    CHECK_EQ(conc_broadcast_subscribe(&b, q[i]), 0);
    start(arg == NULL ? conc_thread_start : conc_coro_start, &t[i], take_all,
          q[i]);
  }
  for (n = 1; n <= 100; n++)
    CHECK_EQ(conc_broadcast_put(&b, &n, sizeof n, 20), 3);
  CHECK_EQ(b.lost, 0);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_queue_close(q[i]), 0);
    CHECK_EQ(conc_join(&t[i], 20), 0);
  }
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_broadcast_unsubscribe(&b, q[i]), 0);
    conc_queue_free(q[i]);
  }
  return arg;
}
TEST_BOTH(a_broadcast_may_wait_for_the_slow, block)

/* A subscriber that leaves while a put waits for it lets that go on. */
static conc_broadcast waiting;
static void *put_two(void *arg) {
  int n = 2;
  CHECK_EQ(conc_broadcast_put(&waiting, &n, sizeof n, 20), 1);
  return arg;
}
static void *leave(void *arg) {
  conc_queue *q[2];
  conc_task t;
  int n = 1;
  memset(&waiting, 0, sizeof waiting);
  waiting.blocks = true;
  for (int i = 0; i < 2; i++) {
    q[i] = bounded(i == 0 ? 1 : 5);
    CHECK_EQ(conc_broadcast_subscribe(&waiting, q[i]), 0);
  }
  CHECK_EQ(conc_broadcast_put(&waiting, &n, sizeof n, 20), 2);
  CHECK_EQ(conc_broadcast_put(&waiting, &n, sizeof n, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_qsize(q[1]), 1);
  start(arg == NULL ? conc_thread_start : conc_coro_start, &t, put_two, NULL);
  UNTIL(conc_is_alive(&t)); /* whether it waits already does not matter */
  for (int i = 0; i < 50; i++) conc_yield_now();
  CHECK_EQ(conc_broadcast_unsubscribe(&waiting, q[0]), 0);
  conc_queue_free(q[0]);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_qsize(q[1]), 2);
  CHECK_EQ(conc_broadcast_unsubscribe(&waiting, q[1]), 0);
  conc_queue_free(q[1]);
  return arg;
}
TEST_BOTH(a_subscriber_may_leave_while_a_put_waits_for_it, leave)

TEST_MAIN
