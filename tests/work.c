/* Queues that lease their messages: whose a message is, when it comes back,
   in what order, and what is told of it. From inside, for the lists of those
   that wait. */
#include "inside.h"
#include "served.h"
#include "tasks.h"

#define AS_WORK(queue) ((conc__work *)(queue))

/* Waits until so many wait on a list. */
static void until_waiting(conc_queue *q, const struct conc__waitlist *list,
                          int n) {
  int found;
  do {
    sched_yield();
    found = 0;
    conc__mutex_lock(conc__work_guard(AS_WORK(q)));
    for (conc__waiter *w = list->first; w != NULL; w = w->next) found++;
    conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  } while (found < n);
}

static conc_queue *queue_of(conc_queue_opts o) {
  conc_queue *q = conc_queue_new(&o);
  CHECK(q != NULL);
  return q;
}

static conc_queue *leasing(void) {
  conc_queue_opts o = {.lease = 60};
  return queue_of(o);
}

static void put(conc_queue *q, const char *text) {
  CHECK_EQ(conc_put(q, text, strlen(text), 0), 0);
}

/* Takes one that is there, and says which. */
static const char *get(conc_queue *q) {
  static __thread char text[64];
  ssize_t n = conc_get(q, text, sizeof text - 1, 0);
  if (n < 0) return n == -ETIMEDOUT ? "empty" : n == -EPIPE ? "ended" : "?";
  text[n] = 0;
  return text;
}

static const char *get_leased(conc_queue *q, conc_lease *lease) {
  static __thread char text[64];
  ssize_t n = conc_get_leased(q, lease, text, sizeof text - 1, 0);
  if (n < 0) return n == -ETIMEDOUT ? "empty" : n == -EPIPE ? "ended" : "?";
  text[n] = 0;
  return text;
}

static conc_queue_counts counts(conc_queue *q) {
  conc_queue_counts c;
  CHECK_EQ(conc_queue_stats(q, &c), 0);
  return c;
}

/* As if so many seconds had passed for all that waits for its time. */
static void let_time_pass(conc_queue *q, double seconds) {
  conc__work *w = AS_WORK(q);
  conc__order *orders[2] = {&w->delayed, &w->expiring};
  uint64_t span = (uint64_t)(seconds * 1e9);
  conc__mutex_lock(conc__work_guard(AS_WORK(q)));
  for (int i = 0; i < 2; i++) {
    conc__letter *l, *all = NULL;
    while ((l = conc__order_first(orders[i])) != NULL) {
      conc__order_remove(orders[i], l);
      l->key = l->key > span ? l->key - span : 0;
      if (i == 1 && l->floor != UINT64_MAX)
        l->floor = l->floor > span ? l->floor - span : 0;
      if (i == 1 && l->ceiling != UINT64_MAX) l->ceiling -= span;
      l->next = all;
      all = l;
    }
    while (all != NULL) {
      l = all;
      all = l->next;
      conc__order_insert(orders[i], l);
    }
  }
  if (w->bury_at > span) w->bury_at -= span;
  conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
}

/* --- options --- */

TEST(options_that_make_no_sense_are_refused) {
  double nan = strtod("nan", NULL);
  conc_queue *q = leasing();
  conc_queue_opts all[] = {
      {.lease = -1},
      {.lease = nan},
      {.max_lease = 1},
      {.lease = 1, .max_lease = -1},
      {.max_deliveries = 1},
      {.lease = 1, .max_deliveries = -1},
      {.lease = 1, .dead_letters = q},
      {.retry_delay = 1},
      {.lease = 1, .retry_delay = nan},
      {.priorities = -1},
      {.priorities = 257},
      {.dedup = -1},
      {.name = "/conc", .shared = true, .lease = 1},
      {.max_total = 15, .lease = 1},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    errno = 0;
    CHECK(conc_queue_new(&all[i]) == NULL);
    CHECK_EQ(errno, EINVAL);
  }
  conc_queue_free(q);
}

TEST(a_plain_queue_has_none_of_it) {
  conc_queue *q = conc_queue_new(NULL);
  conc_queue_counts c;
  conc_lease lease;
  conc_value *v;
  char byte = 0;
  CHECK_EQ(conc_put_after(q, "", 0, 1, 0), -ENOTSUP);
  CHECK_EQ(conc_put_priority(q, "", 0, 0, 0), -ENOTSUP);
  CHECK_EQ(conc_put_once(q, "id", "", 0, 0), -ENOTSUP);
  CHECK_EQ(conc_queue_stats(q, &c), -ENOTSUP);
  CHECK_EQ(conc_queue_holders(q, NULL, 0), -ENOTSUP);
  CHECK_EQ(conc_get_leased(q, &lease, &byte, 1, 0), -ENOTSUP);
  CHECK(lease.queue == NULL);
  CHECK_EQ(conc_get_value_leased(q, &lease, &v, 0), -ENOTSUP);
  CHECK(lease.queue == NULL && v == NULL);
  conc_queue_free(q);
}

/* --- leases --- */

TEST(what_was_got_is_done_or_comes_back) {
  conc_queue *q = leasing();
  conc_lease a = {NULL, 0, 0}, b = {NULL, 0, 0};
  put(q, "one"), put(q, "two"), put(q, "three");
  CHECK_STR(get_leased(q, &a), "one");
  CHECK_STR(get_leased(q, &b), "two");
  CHECK(a.queue == q && a.id != 0 && b.id != a.id);
  CHECK_EQ(conc_lease_deliveries(&a), 1);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_EQ(counts(q).leased, 2);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  CHECK(a.queue == NULL && a.id == 0);
  CHECK_EQ(conc_lease_done(&a), -EINVAL);
  CHECK_EQ(conc_lease_done(&b), 0);
  CHECK_STR(get_leased(q, &a), "one"); /* before the third: its place */
  CHECK_EQ(conc_lease_deliveries(&a), 2);
  CHECK_STR(get_leased(q, &b), "three");
  CHECK_STR(get(q), "empty");
  CHECK_EQ(conc_lease_done(&b), 0);
  CHECK_EQ(conc_lease_done(&a), 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  CHECK_EQ(counts(q).put, 3);
  CHECK_EQ(counts(q).got, 4);
  CHECK_EQ(counts(q).done, 3);
  CHECK_EQ(counts(q).returned, 1);
  conc_queue_free(q);
}

TEST(task_done_ends_the_lease_that_was_got_last) {
  conc_queue *q = leasing();
  conc_lease lease;
  CHECK_EQ(conc_task_done(q), -EINVAL);
  put(q, "one"), put(q, "two"), put(q, "three");
  CHECK_STR(get(q), "one");
  CHECK_STR(get(q), "two");
  CHECK_STR(get_leased(q, &lease), "three");
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_task_done(q), 0); /* two */
  CHECK_EQ(AS_WORK(q)->leased_count, 1);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

static void *take_two(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  CHECK_STR(get(q), "one");
  CHECK_STR(get(q), "two");
  return NULL;
}
static int coro_in_loop(conc_task *t) { return conc_run(t); }

/* A thread and a coroutine, which both are tasks. */
static void ends_with(int (*how)(conc_task *)) {
  conc_queue *q = leasing();
  conc_task t;
  conc_lease lease;
  put(q, "one"), put(q, "two"), put(q, "three");
  start(how, &t, take_two, q);
  if (how != coro_in_loop) CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_qsize(q), 3); /* before the join returned */
  CHECK_EQ(conc_task_done(q), -EINVAL); /* they were not ours */
  CHECK_STR(get_leased(q, &lease), "one");
  CHECK_EQ(conc_lease_deliveries(&lease), 2);
  CHECK_STR(get(q), "two");
  CHECK_STR(get_leased(q, &lease), "three");
  CHECK_EQ(conc_lease_deliveries(&lease), 1);
  conc_queue_free(q);
}
TEST(what_a_thread_has_leased_comes_back_when_it_ends) {
  ends_with(conc_thread_start);
}
TEST(what_a_coroutine_has_leased_comes_back_when_it_ends) {
  ends_with(coro_in_loop);
}

static void *foreign(void *arg) {
  CHECK_STR(get((conc_queue *)arg), "one");
  return NULL;
}
TEST(what_a_foreign_thread_has_leased_comes_back_when_it_ends) {
  conc_queue *q = leasing();
  pthread_t t;
  put(q, "one");
  CHECK_EQ(pthread_create(&t, NULL, foreign, q), 0);
  CHECK_EQ(pthread_join(t, NULL), 0);
  CHECK_STR(get(q), "one");
  CHECK_EQ(conc_task_done(q), 0);
  conc_queue_free(q);
}

static void *take_and_exit(void *arg) {
  get((conc_queue *)arg);
  pthread_exit(NULL);
  return NULL;
}
TEST(what_a_thread_has_leased_that_exits_in_the_middle_comes_back) {
  conc_queue *q = leasing();
  conc_task t;
  put(q, "one");
  start(conc_thread_start, &t, take_and_exit, q);
  conc_join(&t, CONC_FOREVER);
  CHECK_STR(get(q), "one");
  conc_queue_free(q);
}

static void *take_one(void *arg) {
  CHECK_STR(get((conc_queue *)arg), "one");
  return NULL;
}
TEST(what_a_job_has_leased_comes_back_when_it_ends) {
  conc_queue *q = leasing();
  conc_pool pool;
  conc_task t = task_of(take_one, q);
  memset(&pool, 0, sizeof pool);
  put(q, "one");
  CHECK_EQ(conc_pool_start(&pool), 0);
  CHECK_EQ(conc_pool_submit(&pool, &t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_STR(get(q), "one");
  CHECK_EQ(conc_pool_close(&pool), 0);
  CHECK_EQ(conc_pool_join(&pool, CONC_FOREVER), 0);
  conc_queue_free(q);
}

/* --- time --- */

TEST(max_lease_ends_the_lease_of_a_task_that_lives) {
  conc_queue_opts o = {.lease = 1, .max_lease = 100};
  conc_queue *q = queue_of(o);
  conc_lease a, b;
  put(q, "one"), put(q, "two");
  CHECK_STR(get_leased(q, &a), "one");
  let_time_pass(q, 50);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_STR(get_leased(q, &b), "two");
  let_time_pass(q, 51);
  CHECK_EQ(conc_qsize(q), 1); /* the first, and not the second */
  CHECK_EQ(conc_lease_done(&a), -ESTALE);
  CHECK(a.queue == NULL);
  CHECK_STR(get_leased(q, &a), "one");
  CHECK_EQ(a.deliveries, 2);
  CHECK_EQ(conc_lease_done(&a), 0);
  CHECK_EQ(conc_lease_done(&b), 0);
  conc_queue_free(q);
}

static void *end_a_lost_one(void *lease) {
  CHECK_EQ(conc_lease_done((conc_lease *)lease), -ESTALE);
  return NULL;
}

/* A lease that was handed over is lost: who has it is told so, and who got it
   goes on with what it has. */
TEST(a_lease_that_another_task_has_lost_is_told_once) {
  conc_queue_opts o = {.lease = 1, .max_lease = 100};
  conc_queue *q = queue_of(o);
  conc_lease a, b;
  conc_task t;
  put(q, "one"), put(q, "two");
  CHECK_STR(get_leased(q, &a), "one");
  CHECK_STR(get_leased(q, &b), "two");
  CHECK_EQ(conc_lease_extend(&a, 500), 0);
  let_time_pass(q, 101);
  CHECK_EQ(conc_qsize(q), 1);
  start(conc_thread_start, &t, end_a_lost_one, &b);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_lease_done(&a), -ESTALE);
  conc_queue_free(q);
}

TEST(extending_a_lease_makes_it_longer) {
  conc_queue_opts o = {.lease = 1, .max_lease = 100};
  conc_queue *q = queue_of(o);
  conc_lease a, none = {NULL, 0, 0};
  put(q, "one");
  CHECK_STR(get_leased(q, &a), "one");
  let_time_pass(q, 50);
  CHECK_EQ(conc_lease_extend(&a, 1), 0); /* max_lease anew */
  let_time_pass(q, 90);
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_lease_extend(&a, 500), 0); /* longer than that */
  let_time_pass(q, 400);
  CHECK_EQ(conc_qsize(q), 0);
  let_time_pass(q, 101);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_EQ(conc_lease_extend(&a, 1), -ESTALE);
  CHECK(a.queue == q);
  CHECK_EQ(conc_lease_extend(&none, 1), -EINVAL);
  CHECK_EQ(conc_lease_extend(&a, strtod("nan", NULL)), -EINVAL);
  conc_queue_free(q);
}

/* The one that was lost is told, once, and no other lease is ended for it. */
TEST(task_done_for_a_lost_lease_ends_no_other) {
  conc_queue_opts o = {.lease = 1, .max_lease = 100};
  conc_queue *q = queue_of(o);
  conc_lease a;
  put(q, "one"), put(q, "two"), put(q, "three");
  CHECK_STR(get_leased(q, &a), "one");
  CHECK_STR(get(q), "two");
  CHECK_EQ(conc_lease_extend(&a, 1000), 0);
  let_time_pass(q, 101); /* two is lost, one is not */
  CHECK_EQ(conc_task_done(q), -ESTALE);
  CHECK_EQ(AS_WORK(q)->leased_count, 1);
  CHECK_EQ(conc_task_done(q), 0); /* one */
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_STR(get(q), "two");
  CHECK_STR(get_leased(q, &a), "three");
  let_time_pass(q, 101);
  CHECK_EQ(conc_lease_done(&a), -ESTALE); /* told: so not again */
  CHECK_EQ(conc_task_done(q), -ESTALE);   /* two */
  CHECK_EQ(conc_task_done(q), -EINVAL);
  conc_queue_free(q);
}

TEST(of_many_lost_leases_the_youngest_thousand_are_known) {
  conc_queue_opts o = {.lease = 1, .max_lease = 100};
  conc_queue *q = queue_of(o);
  for (int i = 0; i < 1500; i++) put(q, "x");
  for (int i = 0; i < 1500; i++) CHECK_STR(get(q), "x");
  let_time_pass(q, 101);
  UNTIL(conc_qsize(q) == 1500); /* a call moves a thousand */
  for (int i = 0; i < 1000; i++) CHECK_EQ(conc_task_done(q), -ESTALE);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_qsize(q), 1500);
  conc_queue_free(q);
}

TEST(what_is_put_for_later_is_got_then_at_its_place) {
  conc_queue_opts o = {.priorities = 1};
  conc_queue *q = queue_of(o);
  CHECK_EQ(conc_put_after(q, "later", 5, 100, 0), 0);
  CHECK_EQ(conc_put_after(q, "last", 4, 200, 0), 0);
  CHECK_EQ(conc_put_after(q, "soon", 4, 50, 0), 0);
  CHECK_EQ(conc_put_after(q, "now", 3, -1, 0), 0);
  CHECK_EQ(conc_put_after(q, "", 0, CONC_FOREVER, 0), -EINVAL);
  CHECK_EQ(conc_put_after(q, "", 0, strtod("nan", NULL), 0), -EINVAL);
  put(q, "also now");
  CHECK_EQ(counts(q).delayed, 3);
  CHECK_STR(get(q), "now");
  let_time_pass(q, 150);
  CHECK_EQ(conc_qsize(q), 3);
  CHECK_STR(get(q), "later");
  CHECK_STR(get(q), "soon");
  CHECK_STR(get(q), "also now");
  CHECK_STR(get(q), "empty");
  let_time_pass(q, 51);
  CHECK_STR(get(q), "last");
  conc_queue_free(q);
}

static void *get_one_late(void *arg) {
  char text[8];
  CHECK_EQ(conc_get((conc_queue *)arg, text, sizeof text, CONC_FOREVER), 1);
  CHECK_EQ(conc_task_done((conc_queue *)arg), 0);
  return NULL;
}

/* Nothing but the time wakes them: one of those that wait keeps it, and hands
   that on; an earlier time wakes it. */
TEST(those_that_wait_get_what_becomes_due) {
  enum { GETTERS = 5 };
  conc_queue *q = leasing();
  conc_task t[GETTERS];
  CHECK_EQ(conc_put_after(q, "x", 1, 1000, 0), 0);
  for (int i = 0; i < GETTERS; i++)
    start(conc_thread_start, &t[i], get_one_late, q);
  until_waiting(q, &AS_WORK(q)->getters, GETTERS);
  for (int i = 0; i < GETTERS; i++)
    CHECK_EQ(conc_put_after(q, "x", 1, 0.02 * (GETTERS - i), 0), 0);
  for (int i = 0; i < GETTERS; i++) CHECK_EQ(conc_join(&t[i], 30), 0);
  CHECK_EQ(counts(q).delayed, 1);
  CHECK(AS_WORK(q)->keeper == NULL);
  conc_queue_free(q);
}

static void *keep_it(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  CHECK_STR(get(q), "x");
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_task_done(q), -ESTALE);
  return NULL;
}

/* Each kind of waiter sees to the time, if no other one does. */
TEST(a_lease_expires_while_only_others_wait) {
  conc_queue_opts o = {.capacity = 1, .lease = 1, .max_lease = 0.02,
                       .max_deliveries = 1};
  for (int kind = 0; kind < 2; kind++) {
    conc_queue *q = queue_of(o);
    conc_task t;
    put(q, "x");
    start(conc_thread_start, &t, keep_it, q);
    UNTIL(counts(q).got == 1);
    if (kind == 0) CHECK_EQ(conc_queue_join(q, 30), 0);
    else CHECK_EQ(conc_put(q, "y", 1, 30), 0);
    CHECK_EQ(counts(q).dead, 1);
    CHECK_EQ(conc_cancel(&t), 0);
    conc_join(&t, CONC_FOREVER);
    conc_queue_free(q);
  }
}

static void *get_or_not(void *arg) {
  char text[8];
  ssize_t n = conc_get((conc_queue *)arg, text, sizeof text, CONC_FOREVER);
  CHECK(n == 1 || n == -ECANCELED);
  return n == 1 ? arg : NULL;
}
/* Returns false if the keeper may not have been cancelled before that time. */
static bool cancels_the_keeper(double delay) {
  conc_queue *q = leasing();
  conc_task t[2];
  double begun;
  bool in_time;
  int keeper;
  for (int i = 0; i < 2; i++) {
    start(conc_thread_start, &t[i], get_or_not, q);
    until_waiting(q, &AS_WORK(q)->getters, i + 1);
  }
  begun = conc_now();
  CHECK_EQ(conc_put_after(q, "x", 1, delay, 0), 0);
  conc__mutex_lock(conc__work_guard(AS_WORK(q)));
  const conc__waiter *w = AS_WORK(q)->keeper;
  keeper = w != NULL && w->actor == t[1].actor;
  conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  conc_cancel(&t[keeper]);
  conc_join(&t[keeper], CONC_FOREVER);
  in_time = conc_now() - begun < delay;
  if (!in_time) conc_cancel(&t[1 - keeper]);
  conc_join(&t[1 - keeper], CONC_FOREVER);
  if (in_time) {
    CHECK(t[keeper].result == NULL && t[1 - keeper].result != NULL);
    CHECK_EQ(counts(q).returned, 1);
  }
  conc_queue_free(q);
  return in_time;
}
TEST(the_keeper_of_the_time_may_be_cancelled) {
  double delay = 0.05;
  for (; !cancels_the_keeper(delay); delay *= 4) CHECK(delay < 10);
}

/* The host has let a guest in, and is told to end before it has heard it: at
   the lock for descriptors, which the host takes for the guest's wire. */
TEST(a_guest_that_comes_at_the_end_does_not_hold_it_up) {
  conc_queue_opts o = {.shared = true, .lease = 60};
  conc_queue *q = queue_of(o);
  conc__house *house = AS_WORK(q)->house;
  long before;
  int gate[2], status;
  char byte = 0;
  pid_t pid;
  NEEDS_FORK;
  CHECK_EQ(pipe(gate), 0);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_CHILD(read(gate[0], &byte, 1) == 1);
    int rc = conc_put(q, "x", 1, CONC_FOREVER);
    CHECK_CHILD(rc == -EOWNERDEAD || rc == -ECONNRESET);
    _exit(0);
  }
  before = LOAD(test_blocks);
  conc__own_fds_lock();
  CHECK_EQ(write(gate[1], "x", 1), 1);
  /* The visitor and its holder: after these comes the lock. */
  UNTIL(LOAD(test_blocks) >= before + 2);
  CHECK_EQ(conc_cancel(&house->root), 0);
  conc__own_fds_unlock();
  conc_queue_free(q);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  close(gate[0]), close(gate[1]);
}

/* --- retries and dead letters --- */

TEST(what_came_back_waits_longer_each_time) {
  conc_queue_opts o = {.lease = 60, .retry_delay = 10};
  conc_queue *q = queue_of(o);
  double least = 10;
  put(q, "x");
  for (int i = 0; i < 9; i++) {
    conc_lease a;
    uint64_t now, due;
    CHECK_STR(get_leased(q, &a), "x");
    now = conc__due_now();
    CHECK_EQ(conc_lease_release(&a, -1), 0);
    due = conc__order_due(&AS_WORK(q)->delayed);
    CHECK(due >= now + (uint64_t)(least * 1e9));
    CHECK(due <= now + (uint64_t)(least * 1.25e9 + 10e9));
    CHECK_STR(get(q), "empty");
    let_time_pass(q, least * 1.25 + 20);
    if (i < 6) least *= 2;
  }
  CHECK_EQ((int)least, 640);
  CHECK_STR(get(q), "x");
  conc_queue_free(q);
}

TEST(a_released_message_waits_as_long_as_was_said) {
  conc_queue *q = leasing();
  conc_lease a;
  put(q, "x"), put(q, "y");
  CHECK_STR(get_leased(q, &a), "x");
  CHECK_EQ(conc_lease_release(&a, CONC_FOREVER), -EINVAL);
  CHECK_EQ(conc_lease_release(&a, strtod("nan", NULL)), -EINVAL);
  CHECK(a.queue == q);
  CHECK_EQ(conc_lease_release(&a, 100), 0);
  CHECK_STR(get(q), "y");
  CHECK_STR(get(q), "empty");
  let_time_pass(q, 101);
  CHECK_STR(get(q), "x");
  conc_queue_free(q);
}

static void check_dead(conc_queue *dead, const char *message, const char *why,
                       const char *by) {
  conc_value *v;
  const char *w, *b;
  const void *m;
  size_t size;
  double when;
  int deliveries;
  CHECK_EQ(conc_get_value(dead, &v, 0), 0);
  CHECK_EQ(conc_parse(v, "{s:y#,s:s,s:d,s:i,s:s}", "message", &m, &size, "why",
                      &w, "when", &when, "deliveries", &deliveries, "by", &b),
           0);
  CHECK_EQ(size, strlen(message));
  CHECK(memcmp(m, message, size) == 0);
  CHECK_STR(w, why);
  CHECK_STR(b, by);
  CHECK_EQ(deliveries, 2);
  CHECK(when > 1.6e9 && when < (double)time(NULL) + 2);
  conc_value_free(v);
}

static void *take_any(void *arg) {
  get((conc_queue *)arg);
  return NULL;
}
TEST(what_comes_back_too_often_is_a_dead_letter) {
  conc_queue *dead = conc_queue_new(NULL);
  conc_queue_opts o = {.lease = 60, .max_lease = 100, .max_deliveries = 2,
                       .dead_letters = dead};
  conc_queue *q = queue_of(o);
  conc_lease a;
  put(q, "one");
  for (int i = 0; i < 2; i++) {
    conc_task t = task_of(take_any, q);
    t.name = "worker \xff";
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  check_dead(dead, "one", "ended", "worker ?");
  put(q, "two");
  for (int i = 0; i < 2; i++) {
    CHECK_STR(get(q), "two");
    let_time_pass(q, 101);
  }
  CHECK_STR(get(q), "empty");
  check_dead(dead, "two", "expired", "MainThread");
  put(q, "");
  for (int i = 0; i < 2; i++) {
    CHECK_STR(get_leased(q, &a), "");
    CHECK_EQ(conc_lease_release(&a, 0), 0);
  }
  check_dead(dead, "", "released", "MainThread");
  CHECK_EQ(counts(q).dead, 3);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
  conc_queue_free(dead);
}

TEST(a_dead_letter_that_is_a_value_is_one) {
  conc_queue *dead = conc_queue_new(NULL);
  conc_queue_opts o = {.lease = 60, .max_deliveries = 1, .dead_letters = dead};
  conc_queue *q = queue_of(o);
  conc_value *v;
  conc_lease a;
  const char *text;
  int n;
  CHECK_EQ(conc_put_build(q, 0, "(is)", 7, "seven"), 0);
  CHECK_EQ(conc_get_value_leased(q, &a, &v, 0), 0);
  conc_value_free(v);
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  CHECK_EQ(conc_get_value(dead, &v, 0), 0);
  CHECK_EQ(conc_parse(conc_value_get(v, "message"), "(is)", &n, &text), 0);
  CHECK_EQ(n, 7);
  CHECK_STR(text, "seven");
  conc_value_free(v);
  conc_queue_free(q);
  conc_queue_free(dead);
}

TEST(dead_letters_wait_for_room_and_are_dropped_where_there_is_none) {
  conc_queue_opts d = {.capacity = 1};
  conc_queue *dead = queue_of(d);
  conc_queue_opts o = {.lease = 60, .max_deliveries = 1, .dead_letters = dead};
  conc_queue *q = queue_of(o);
  conc_value *v;
  conc_lease a;
  for (int i = 0; i < 3; i++) {
    put(q, "x");
    CHECK_STR(get_leased(q, &a), "x");
    CHECK_EQ(conc_lease_release(&a, 0), 0);
  }
  CHECK_EQ(conc_qsize(dead), 1);
  CHECK_EQ(counts(q).dying, 2);
  CHECK_EQ(counts(q).dead, 1);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get_value(dead, &v, 0), 0);
  conc_value_free(v);
  CHECK_EQ(counts(q).dying, 2); /* it is not tried all the time */
  let_time_pass(q, 1);
  CHECK_EQ(counts(q).dying, 2); /* this call tries it, */
  CHECK_EQ(counts(q).dying, 1); /* and this one sees it */
  CHECK_EQ(conc_qsize(dead), 1);
  CHECK_EQ(conc_queue_close(dead), 0);
  let_time_pass(q, 1);
  counts(q);
  CHECK_EQ(counts(q).dying, 0);
  CHECK_EQ(counts(q).dead, 3);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
  conc_queue_free(dead);
}

/* A large message is copied without the guard: meanwhile its lease may end,
   and the message with it. */
TEST(a_message_that_dies_while_it_is_copied_stays_until_then) {
  static char large[CONC__ENTRY_LARGE];
  conc_queue *dead = conc_queue_new(NULL);
  conc_queue_opts o = {.lease = 60, .max_lease = 100, .max_deliveries = 1,
                       .dead_letters = dead};
  conc_queue *q = queue_of(o);
  conc__letter *l;
  conc_lease a;
  CHECK_EQ(conc_put(q, large, sizeof large, 0), 0);
  CHECK_EQ(conc_get_leased(q, &a, large, sizeof large, 0), sizeof large);
  conc__mutex_lock(conc__mutex_of(q));
  l = conc__work_find(AS_WORK(q), a.id);
  l->copying++;
  conc__mutex_unlock(conc__mutex_of(q));
  let_time_pass(q, 101);
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_qsize(dead), 1);
  CHECK_EQ(l->state, CONC__LETTER_GONE);
  conc__letter_free(l); /* as the get does */
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
  conc_queue_free(dead);
}

/* --- priorities and ids --- */

TEST(priorities_are_served_in_order_and_each_in_its_own) {
  conc_queue_opts o = {.lease = 60, .priorities = 256};
  conc_queue *q = queue_of(o);
  conc_lease a;
  char text[8];
  put(q, "plain 1");
  for (int p = 255; p >= 0; p -= 17) {
    for (int i = 0; i < 2; i++) {
      snprintf(text, sizeof text, "%d.%d", p, i);
      CHECK_EQ(conc_put_priority(q, text, strlen(text), p, 0), 0);
    }
  }
  put(q, "plain 2");
  CHECK_EQ(conc_put_priority(q, "", 0, 256, 0), -EINVAL);
  CHECK_EQ(conc_put_priority(q, "", 0, -1, 0), -EINVAL);
  CHECK_STR(get_leased(q, &a), "0.0");
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  for (int p = 0; p < 255; p += 17)
    for (int i = 0; i < 2; i++) {
      snprintf(text, sizeof text, "%d.%d", p, i);
      CHECK_STR(get(q), text);
    }
  CHECK_STR(get(q), "plain 1");
  CHECK_STR(get(q), "255.0");
  CHECK_STR(get(q), "255.1");
  CHECK_STR(get(q), "plain 2");
  CHECK_STR(get(q), "empty");
  conc_queue_free(q);
}

TEST(an_id_that_is_known_is_put_once) {
  conc_queue_opts o = {.dedup = 1000};
  conc_queue *q = queue_of(o);
  char id[1026];
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < 1000; i++) {
      snprintf(id, sizeof id, "id %d", i);
      CHECK_EQ(conc_put_once(q, id, id, strlen(id), 0), 0);
    }
  CHECK_EQ(conc_qsize(q), 1000);
  CHECK_EQ(counts(q).put, 1000);
  CHECK_STR(get(q), "id 0");
  CHECK_EQ(conc_put_once(q, "id 0", "x", 1, 0), 0); /* done or not */
  CHECK_EQ(conc_qsize(q), 999);
  conc__mutex_lock(conc__work_guard(AS_WORK(q)));
  AS_WORK(q)->known.oldest->until = 1; /* its time is over */
  conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  CHECK_EQ(conc_put_once(q, "id 0", "x", 1, 0), 0);
  CHECK_EQ(conc_put_once(q, "id 1", "x", 1, 0), 0);
  CHECK_EQ(conc_qsize(q), 1000);
  CHECK_EQ(conc_put_once(q, "", "x", 1, 0), 0);
  CHECK_EQ(conc_put_once(q, "", "x", 1, 0), 0);
  CHECK_EQ(conc_qsize(q), 1001);
  CHECK_EQ(conc_put_once(q, NULL, "x", 1, 0), -EINVAL);
  memset(id, 'x', 1025);
  id[1025] = 0;
  CHECK_EQ(conc_put_once(q, id, "x", 1, 0), -EINVAL);
  CHECK_EQ(conc_put_once(q, id + 1, "x", 1, 0), 0);
  conc_queue_free(q);
}

/* A put is not kept waiting by all ids whose time has come. */
TEST(ids_are_forgotten_bit_by_bit) {
  conc_queue_opts o = {.dedup = 1000};
  conc_queue *q = queue_of(o);
  conc__put_ids *ids = &AS_WORK(q)->known;
  const size_t n = 2 * CONC__MOVES_MOST;
  conc__put_id *k;
  char id[20];
  for (size_t i = 0; i < n; i++) {
    snprintf(id, sizeof id, "id %zu", i);
    CHECK_EQ(conc_put_once(q, id, id, strlen(id), 0), 0);
  }
  conc__mutex_lock(conc__work_guard(AS_WORK(q)));
  for (k = ids->oldest; k != NULL; k = k->newer) k->until = 1;
  conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  CHECK_EQ(conc_put_once(q, id, "again", 5, 0), 0);
  CHECK_EQ(ids->count, CONC__MOVES_MOST + 1);
  CHECK_EQ(conc_qsize(q), (ssize_t)n + 1);
  CHECK_EQ(conc_put_once(q, id, "again", 5, 0), 0);
  CHECK_EQ(ids->count, 1);
  CHECK_EQ(conc_qsize(q), (ssize_t)n + 1);
  conc_queue_free(q);
}

/* Nor is a loop by all that a client had when it ended. */
TEST(the_leases_of_a_holder_come_back_bit_by_bit) {
  conc_queue_opts o = {.lease = 1000};
  conc_queue *q = queue_of(o);
  const size_t n = CONC__MOVES_MOST + 10;
  conc__holder *h;
  for (size_t i = 0; i < n; i++) CHECK_EQ(conc_put(q, &i, sizeof i, 0), 0);
  for (size_t i = 0, k; i < n; i++) {
    CHECK_EQ(conc_get(q, &k, sizeof k, 0), sizeof k);
    CHECK_EQ(k, i);
  }
  h = conc__holder_own();
  CHECK(h != NULL);
  CHECK(conc__holder_end_some(h));
  CHECK_EQ(counts(q).leased, 10);
  CHECK(!conc__holder_end_some(h));
  CHECK_EQ(counts(q).leased, 0);
  CHECK_EQ(conc_qsize(q), (ssize_t)n);
  CHECK(h->stakes == NULL && !conc__holder_end_some(h));
  conc_queue_free(q);
}

TEST(a_known_id_needs_no_room) {
  conc_queue_opts o = {.capacity = 1, .dedup = 1000};
  conc_queue *q = queue_of(o);
  CHECK_EQ(conc_put_once(q, "a", "x", 1, 0), 0);
  CHECK_EQ(conc_put_once(q, "a", "x", 1, 0), 0);
  CHECK_EQ(conc_put_once(q, "b", "x", 1, 0), -ETIMEDOUT);
  CHECK_STR(get(q), "x");
  CHECK_EQ(conc_put_once(q, "b", "x", 1, 0), 0); /* it was not noted */
  CHECK_EQ(conc_qsize(q), 1);
  conc_queue_free(q);
}

/* --- without a lease --- */

TEST(without_a_lease_a_get_takes_the_message_for_good) {
  conc_queue_opts o = {.priorities = 2};
  conc_queue *q = queue_of(o);
  conc_lease a;
  char byte;
  put(q, "one"), put(q, "two");
  CHECK_EQ(conc_get_leased(q, &a, &byte, 1, 0), -ENOTSUP);
  CHECK_STR(get(q), "one");
  CHECK_EQ(AS_WORK(q)->total, 1);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), 0); /* counts, as of a plain queue */
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

/* --- sizes, values, many --- */

TEST(messages_of_all_sizes_come_back_as_they_were) {
  static unsigned char in[300000], out[300000];
  size_t sizes[] = {0, 1, 100, CONC__ENTRY_LARGE - 1, CONC__ENTRY_LARGE,
                    sizeof in};
  for (int leases = 0; leases < 2; leases++) {
    conc_queue_opts o = {.lease = leases * 60.0, .priorities = 1};
    conc_queue *q = queue_of(o);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      conc_lease a;
      for (size_t k = 0; k < sizes[i]; k++)
        in[k] = (unsigned char)(i + k * 7);
      CHECK_EQ(conc_put(q, in, sizes[i], 0), 0);
      CHECK_EQ(conc_peek_size(q), sizes[i]);
      if (sizes[i] > 0)
        CHECK_EQ(conc_get(q, out, sizes[i] - 1, 0), -EMSGSIZE);
      if (leases) {
        CHECK_EQ(conc_get_leased(q, &a, out, sizeof out, 0), sizes[i]);
        CHECK_EQ(conc_lease_release(&a, 0), 0);
      }
      memset(out, 0, sizeof out);
      CHECK_EQ(conc_get(q, out, sizes[i], 0), sizes[i]);
      CHECK(memcmp(in, out, sizes[i]) == 0);
      if (leases) CHECK_EQ(conc_task_done(q), 0);
    }
    CHECK_EQ(conc_peek_size(q), -ETIMEDOUT);
    CHECK_EQ(AS_WORK(q)->total, 0);
    CHECK_EQ(AS_WORK(q)->bytes, 0);
    conc_queue_free(q);
  }
}

TEST(a_value_that_is_not_taken_was_never_got) {
  for (int leases = 0; leases < 2; leases++) {
    conc_queue_opts o = {.lease = leases * 60.0, .priorities = 1};
    conc_queue *q = queue_of(o);
    conc_value *v;
    char byte;
    int n;
    CHECK_EQ(conc_put_build(q, 0, "(is)", 1, "one"), 0);
    CHECK_EQ(conc_put_build(q, 0, "i", 2), 0);
    CHECK_EQ(conc_get_parse(q, 0, "i", &n), -EBADMSG);
    CHECK_EQ(conc_get(q, &byte, 1, 0), -EBADMSG);
    CHECK_EQ(counts(q).got, 0);
    CHECK_EQ(conc_task_done(q), leases ? -EINVAL : 0);
    CHECK_EQ(conc_get_value(q, &v, 0), 0);
    CHECK_EQ(conc_value_size(v), 2);
    conc_value_free(v);
    CHECK_EQ(conc_get_parse(q, 0, "i", &n), 0);
    CHECK_EQ(n, 2);
    CHECK_EQ(counts(q).got, 2);
    CHECK_EQ(counts(q).leased, leases ? 2 : 0);
    conc_queue_free(q);
  }
}

TEST(many_are_got_and_put_at_once) {
  conc_queue *q = leasing();
  int in[10], out[10];
  for (int i = 0; i < 10; i++) in[i] = i;
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 10, 0), 10);
  put(q, "x");
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 4, 0), 4);
  CHECK_EQ(conc_get_many(q, out + 4, sizeof *out, 20, 0), 6);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 1, 0), -EMSGSIZE);
  CHECK(memcmp(in, out, sizeof in) == 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done_many(q, 0), 0);
  CHECK_EQ(conc_task_done_many(q, 2), 2);
  CHECK_EQ(conc_task_done_many(q, 10), 4);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_task_done_many(q, 1), -EINVAL);
  CHECK_EQ(counts(q).done, 10);
  conc_queue_free(q);
}

/* It is each of them that conc_task_done would have ended: one that was lost
   counts for one, and no other is ended in its place. */
TEST(of_many_that_are_done_those_that_were_lost_are_not) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.lease = 60;
  o.max_lease = 0.4;
  conc_queue *q = conc_queue_new(&o);
  conc_lease first, last;
  char buf[8];
  for (int i = 0; i < 3; i++) put(q, "x");
  CHECK_EQ(conc_get_leased(q, &first, buf, 8, 0), 1);
  CHECK_EQ(conc_lease_extend(&first, 60), 0);
  CHECK_EQ(conc_get(q, buf, 8, 0), 1);
  CHECK_EQ(conc_get_leased(q, &last, buf, 8, 0), 1);
  CHECK_EQ(conc_lease_extend(&last, 60), 0);
  while (counts(q).ready == 0) conc_sleep(0.001);
  CHECK_EQ(conc_task_done_many(q, 2), 1);
  CHECK_EQ(counts(q).done, 1);
  CHECK_EQ(conc_task_done_many(q, 2), 1);
  CHECK_EQ(conc_lease_done(&first), -ESTALE);
  CHECK_EQ(conc_get(q, buf, 8, 0), 1);
  while (counts(q).ready == 0) conc_sleep(0.001);
  CHECK_EQ(conc_task_done_many(q, 2), -ESTALE);
  conc_queue_free(q);
}

/* Of other queues it counts as conc_task_done does. */
TEST(many_are_done_without_a_lease) {
  conc_queue *q = conc_queue_new(NULL);
  CHECK_EQ(conc_put_many(q, "abcd", 1, 4, 0), 4);
  CHECK_EQ(conc_task_done_many(q, 3), 3);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_task_done_many(q, 3), 1);
  CHECK_EQ(conc_task_done_many(q, 3), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

/* --- room, closing --- */

static void *put_one(void *arg) {
  CHECK_EQ(conc_put((conc_queue *)arg, "x", 1, CONC_FOREVER), 0);
  return NULL;
}
TEST(what_is_leased_or_delayed_takes_room) {
  conc_queue_opts o = {.capacity = 2, .lease = 60};
  conc_queue *q = queue_of(o);
  conc_task t;
  conc_lease a;
  put(q, "one");
  CHECK_EQ(conc_put_after(q, "two", 3, 1000, 0), 0);
  CHECK_STR(get_leased(q, &a), "one");
  CHECK_EQ(conc_put(q, "x", 1, 0), -ETIMEDOUT);
  start(conc_thread_start, &t, put_one, q);
  until_waiting(q, &AS_WORK(q)->putters, 1);
  CHECK_EQ(conc_lease_done(&a), 0);
  CHECK_EQ(conc_join(&t, 30), 0);
  CHECK_EQ(conc_qsize(q), 1);
  conc_queue_free(q);
}

TEST(a_bound_of_bytes_lets_as_many_put_as_there_is_room_for) {
  enum { PUTTERS = 3 };
  conc_queue_opts o = {.max_total = 1000, .lease = 60};
  conc_queue *q = queue_of(o);
  conc_task t[PUTTERS];
  static char large[900];
  conc_lease a;
  CHECK_EQ(conc_put(q, large, 993, 0), -EMSGSIZE);
  CHECK_EQ(conc_put(q, large, 900, 0), 0);
  CHECK_EQ(conc_get_leased(q, &a, large, 900, 0), 900);
  CHECK_EQ(conc_put(q, large, 100, 0), -ETIMEDOUT);
  for (int i = 0; i < PUTTERS; i++)
    start(conc_thread_start, &t[i], put_one, q);
  for (int i = 0; i < PUTTERS; i++) CHECK_EQ(conc_join(&t[i], 30), 0);
  CHECK_EQ(conc_lease_done(&a), 0);
  CHECK_EQ(AS_WORK(q)->bytes, PUTTERS * CONC__ENTRY_COUNT(1));
  conc_queue_free(q);
}

static void *get_until_the_end(void *arg) {
  char text[8];
  ssize_t n;
  size_t count = 0;
  while ((n = conc_get((conc_queue *)arg, text, 8, CONC_FOREVER)) >= 0) {
    CHECK_EQ(conc_task_done((conc_queue *)arg), 0);
    count++;
  }
  CHECK_EQ(n, -EPIPE);
  return (void *)count;
}
TEST(a_closed_queue_is_got_empty_and_what_comes_back_too) {
  conc_queue *q = leasing();
  conc_task t[3];
  conc_lease a;
  size_t all = 0;
  put(q, "one");
  CHECK_STR(get_leased(q, &a), "one");
  put(q, "two");
  CHECK_EQ(conc_put_after(q, "three", 5, 0.05, 0), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_put(q, "x", 1, 0), -EPIPE);
  for (int i = 0; i < 3; i++)
    start(conc_thread_start, &t[i], get_until_the_end, q);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_join(&t[i], 30), 0);
    all += (size_t)t[i].result;
  }
  CHECK_EQ(all, 2);
  CHECK_STR(get(q), "ended");
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  CHECK_STR(get(q), "one");
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

/* --- seen --- */

static void *take_three(void *arg) {
  for (int i = 0; i < 3; i++) get((conc_queue *)arg);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  return NULL;
}
TEST(the_leases_are_told_by_holder) {
  conc_queue *q = leasing();
  conc_queue_holder h[3];
  conc_task t = task_of(take_three, q);
  for (int i = 0; i < 5; i++) put(q, "x");
  CHECK_EQ(conc_queue_holders(q, h, 3), 0);
  get(q);
  t.name = "worker";
  CHECK_EQ(conc_thread_start(&t), 0);
  UNTIL(conc_queue_holders(q, NULL, 0) == 2);
  UNTIL(counts(q).leased == 4);
  memset(h, 0x55, sizeof h);
  CHECK_EQ(conc_queue_holders(q, h, 1), 2);
  CHECK_EQ((unsigned char)h[1].name[0], 0x55);
  CHECK_EQ(conc_queue_holders(q, h, 3), 2);
  CHECK_STR(h[0].name, "worker");
  CHECK_EQ(h[0].leases, 3);
  CHECK_STR(h[1].name, "MainThread");
  CHECK_EQ(h[1].leases, 1);
  CHECK(h[0].silence <= 0 && h[1].silence <= 0);
  CHECK_EQ(conc_cancel(&t), 0);
  conc_join(&t, CONC_FOREVER);
  CHECK_EQ(conc_queue_holders(q, h, 3), 1);
  conc_queue_free(q);
}

TEST(the_age_of_the_oldest_and_the_rates_are_told) {
  conc_queue *q = leasing();
  conc_queue_counts c;
  for (int i = 0; i < 100; i++) put(q, "x");
  for (int i = 0; i < 50; i++) get(q), conc_task_done(q);
  conc__mutex_lock(conc__work_guard(AS_WORK(q))); /* ten seconds ago */
  for (conc__letter *l = AS_WORK(q)->ready[0].first; l != NULL; l = l->next)
    l->since -= 100;
  AS_WORK(q)->put_rate.since -= 50;
  AS_WORK(q)->done_rate.since -= 25;
  conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  c = counts(q);
  CHECK(c.oldest >= 10 && c.oldest < 13);
  CHECK(c.put_rate > 10 && c.put_rate <= 20);
  CHECK(c.done_rate > 4 && c.done_rate < 7);
  conc_queue_free(q);
  q = leasing();
  CHECK(counts(q).oldest <= 0 && counts(q).put_rate <= 0);
  conc_queue_free(q);
}

/* --- connections --- */

/* A client of conc.h that does not know of leases. */
static conc_queue *join_as_older(const served *s, conc_manager *m) {
  conc_queue *q = join_as_client(s, m);
  conc__ident *ident = (conc__ident *)(uintptr_t)((conc__proxy *)q)->ident;
  q->leases = ident->leases = ident->works = false;
  return q;
}

/* A client that asks as Python's do: by get and task_done, and no message is
   confirmed. Its only task uses one connection, as a thread of Python. */
static conc_queue *join_as_python(const served *s, conc_manager *m) {
  conc_queue *q = join_as_older(s, m);
  conc__ident *ident = (conc__ident *)(uintptr_t)((conc__proxy *)q)->ident;
  ident->confirms = ident->own = false;
  return q;
}

/* As if the clients had been silent for so long. */
static void let_silence_pass(conc_queue *q, double seconds) {
  conc__mutex_lock(conc__work_guard(AS_WORK(q)));
  for (conc__stake *s = AS_WORK(q)->stakes; s != NULL; s = s->after)
    if (LOAD(s->holder->seen) != UINT64_MAX)
      ADD_FETCH(s->holder->seen, -(uint64_t)(seconds * 1e9));
  conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  let_time_pass(q, seconds);
}

TEST(what_a_connection_has_leased_comes_back_when_it_ends) {
  served s = nobody();
  conc_manager a, b;
  conc_queue *qa, *qb;
  conc_queue_holder h;
  char text[8];
  serve_queue(&s, leasing());
  qa = join_as_python(&s, &a);
  qb = join_as_python(&s, &b);
  put(s.queue, "one"), put(s.queue, "two");
  CHECK_EQ(conc_task_done(qa), -EINVAL);
  CHECK_EQ(conc_get(qa, text, 8, 1), 3);
  CHECK(memcmp(text, "one", 3) == 0);
  CHECK_EQ(conc_qsize(qb), 1);
  CHECK_EQ(conc_task_done(qb), -EINVAL); /* it is another one's */
  CHECK_EQ(conc_queue_holders(s.queue, &h, 1), 1);
  CHECK(strchr(h.name, ':') != NULL);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  UNTIL(conc_qsize(s.queue) == 2);
  CHECK_EQ(conc_get(qb, text, 8, 1), 3);
  CHECK(memcmp(text, "one", 3) == 0);
  CHECK_EQ(conc_task_done(qb), 0);
  CHECK_EQ(conc_get(qb, text, 8, 1), 3);
  CHECK_EQ(conc_task_done(qb), 0);
  CHECK_EQ(conc_task_done(qb), -EINVAL);
  CHECK_EQ(conc_queue_join(qb, 5), 0);
  CHECK_EQ(counts(s.queue).returned, 1);
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  end(&s);
}

TEST(a_client_that_is_silent_for_too_long_loses_its_lease) {
  served s = nobody();
  conc_manager a, b;
  conc_queue *qa, *qb;
  char text[8];
  serve_queue(&s, leasing());
  qa = join_as_python(&s, &a);
  qb = join_as_python(&s, &b);
  put(s.queue, "one"), put(s.queue, "two");
  CHECK_EQ(conc_get(qa, text, 8, 1), 3);
  let_silence_pass(s.queue, 50);
  CHECK_EQ(conc_qsize(qa), 1); /* a sign of life */
  let_silence_pass(s.queue, 50);
  CHECK_EQ(conc_qsize(qb), 1); /* it has still got it */
  CHECK_EQ(conc_get(qa, text, 8, 1), 3);
  let_silence_pass(s.queue, 61);
  CHECK_EQ(conc_qsize(qb), 2);
  CHECK_EQ(conc_get(qb, text, 8, 1), 3);
  CHECK(memcmp(text, "one", 3) == 0);
  CHECK(conc_task_done(qa) < 0); /* told: it has lost two, */
  CHECK(conc_task_done(qa) < 0); /* and one */
  CHECK_EQ(conc_task_done(qb), 0);
  CHECK_EQ(counts(s.queue).done, 1);
  CHECK_EQ(conc_get(qa, text, 8, 1), 3);
  CHECK(memcmp(text, "two", 3) == 0);
  CHECK_EQ(conc_task_done(qa), 0);
  CHECK_EQ(conc_queue_join(s.queue, 0), 0);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  end(&s);
}

static void *get_far(void *arg) {
  char text[8];
  CHECK_EQ(conc_get((conc_queue *)arg, text, 8, 20), 3);
  return NULL;
}
/* It has been silent, for it waits. */
TEST(a_client_that_has_waited_for_long_gets_a_whole_lease) {
  served s = nobody();
  conc_manager a;
  conc_queue *qa;
  conc_task t;
  serve_queue(&s, leasing());
  qa = join_as_python(&s, &a);
  start(conc_thread_start, &t, get_far, qa);
  until_waiting(s.queue, &AS_WORK(s.queue)->getters, 1);
  let_silence_pass(s.queue, 1000);
  put(s.queue, "one");
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(counts(s.queue).leased, 1);
  let_silence_pass(s.queue, 59);
  CHECK_EQ(counts(s.queue).leased, 1);
  CHECK_EQ(conc_task_done(qa), 0);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  end(&s);
}

TEST(an_older_client_of_conc_is_refused_a_lease_in_words) {
  served s = nobody();
  conc_manager a;
  conc_queue *q;
  char text[8];
  int n;
  serve_queue(&s, leasing());
  q = join_as_older(&s, &a);
  CHECK_EQ(conc_put(q, "one", 3, 1), 0);
  n = (int)conc_get(q, text, 8, 1);
  CHECK(n < 0 && n != -ETIMEDOUT);
  n = (int)conc_get_many(q, text, 3, 2, 1);
  CHECK(n < 0 && n != -ETIMEDOUT);
  CHECK_EQ(counts(s.queue).ready, 1);
  CHECK_EQ(counts(s.queue).leased, 0);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  end(&s);
}

TEST(a_queue_that_delays_serves_clients_of_both_kinds) {
  conc_queue_opts o = {.max_bytes = 300000, .priorities = 2};
  for (int python = 0; python < 2; python++) {
    static char large[300000], out[300000];
    served s = nobody();
    conc_manager a;
    conc_queue *q;
    serve_queue(&s, queue_of(o));
    q = python ? join_as_python(&s, &a) : join_as_client(&s, &a);
    CHECK_EQ(conc_put(q, "plain", 5, 1), 0);
    CHECK_EQ(conc_put_priority(s.queue, large, sizeof large, 0, 1), 0);
    CHECK_EQ(conc_put_after(s.queue, "later", 5, 0.05, 0), 0);
    CHECK_EQ(conc_get(q, out, sizeof out, 20), sizeof large);
    CHECK_EQ(conc_get(q, out, sizeof out, 20), 5);
    CHECK(memcmp(out, "plain", 5) == 0);
    CHECK_EQ(conc_get(q, out, sizeof out, 20), 5);
    CHECK(memcmp(out, "later", 5) == 0);
    for (int i = 0; i < 3; i++) CHECK_EQ(conc_task_done(q), 0);
    CHECK(conc_task_done(q) < 0);
    CHECK_EQ(conc_queue_join(q, 5), 0);
    UNTIL(counts(s.queue).leased == 0);
    CHECK_EQ(AS_WORK(s.queue)->total, 0);
    CHECK_EQ(conc_manager_shutdown(&a), 0);
    end(&s);
  }
}

/* --- want of memory --- */

/* Puts, gets, ends of all kinds. What fails must fail by -ENOMEM, and what was
   put must be somewhere. */
static void live_through(long fail_at) {
  static char large[CONC__ENTRY_LARGE];
  conc_queue *dead = conc_queue_new(NULL);
  conc_queue_opts o = {.lease = 60, .max_lease = 100, .max_deliveries = 2,
                       .dead_letters = dead, .retry_delay = 1,
                       .priorities = 2, .dedup = 60};
  conc_queue *q;
  conc_queue_counts c;
  conc_lease a;
  conc_value *v = NULL;
  conc_task t;
  size_t put = 0;
  int rc;
  __atomic_store_n(&test_fail_at, fail_at, __ATOMIC_RELAXED);
  q = conc_queue_new(&o);
  if (q == NULL) {
    CHECK_EQ(errno, ENOMEM);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    conc_queue_free(dead);
    return;
  }
#define TRIED(call) (rc = (int)(call), CHECK(rc >= 0 || rc == -ENOMEM), rc)
  for (int i = 0; i < 20; i++) put += TRIED(conc_put(q, "x", 1, 0)) == 0;
  put += TRIED(conc_put(q, large, sizeof large, 0)) == 0;
  put += TRIED(conc_put_build(q, 0, "(is)", 1, "one")) == 0;
  put += TRIED(conc_put_priority(q, large, sizeof large, 0, 0)) == 0;
  put += TRIED(conc_put_after(q, "x", 1, 0.001, 0)) == 0;
  if (TRIED(conc_put_once(q, "id", "x", 1, 0)) == 0) {
    put++;
    CHECK(TRIED(conc_put_once(q, "id", "x", 1, 0)) <= 0);
  } else {
    put += TRIED(conc_put_once(q, "id", "x", 1, 0)) == 0;
  }
  for (int i = 0; i < 12; i++) {
    rc = (int)conc_get_leased(q, &a, large, sizeof large, 0);
    CHECK(rc >= 0 || rc == -ENOMEM || rc == -EBADMSG);
    if (rc < 0) continue;
    if (i % 3 == 0) CHECK_EQ(conc_lease_done(&a), 0), put--;
    if (i % 3 == 1) CHECK_EQ(conc_lease_release(&a, 0), 0);
  }
  let_time_pass(q, 101); /* the others expire */
  conc_qsize(q);
  do rc = conc_task_done(q);
  while (rc == -ESTALE);
  CHECK_EQ(rc, -EINVAL);
  if (TRIED(conc_get_value(q, &v, 0)) == 0) {
    conc_value_free(v);
    CHECK_EQ(conc_task_done(q), 0);
    put--;
  }
  t = task_of(take_any, q);
  rc = conc_thread_start(&t);
  CHECK(rc == 0 || rc == -ENOMEM);
  if (rc == 0) conc_join(&t, CONC_FOREVER);
  let_time_pass(q, 10);
  conc_qsize(q);
  __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
  let_time_pass(q, 10);
  conc_qsize(q); /* buries what could not be before */
  CHECK_EQ(conc_queue_stats(q, &c), 0);
  CHECK_EQ(c.dying, 0);
  CHECK_EQ(c.leased, 0);
  CHECK_EQ(c.dead, conc_qsize(dead));
  CHECK_EQ(c.ready + c.delayed + c.dead, put);
  CHECK_EQ(c.got, c.done + c.returned);
  conc_queue_free(q);
  conc_queue_free(dead);
}

TEST(no_memory_loses_nothing_at_any_allocation) {
  bool failed = true;
  for (long i = 1; failed; i++) {
    CHECK(i < 10000);
    live_through(i);
    failed = false;
    live_through(0);
    if (i < 400) failed = true;
  }
}

/* The same of a server and its client. */
TEST(no_memory_in_a_server_loses_nothing) {
  served s = nobody();
  serve_queue(&s, leasing());
  put(s.queue, "x");
  for (long i = 1; i <= 60; i++) {
    conc_manager a;
    conc_queue *q = join_as_python(&s, &a);
    char text[8];
    int rc;
    __atomic_store_n(&test_fail_at, i, __ATOMIC_RELAXED);
    rc = (int)conc_get(q, text, 8, 0);
    if (rc == 1) rc = (int)conc_get(q, text, 8, 0.01);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    CHECK(rc <= 0);
    conc_manager_shutdown(&a);
    UNTIL(conc_qsize(s.queue) >= 1 && counts(s.queue).leased == 0);
    /* Such a client puts it again, if it cannot take it. */
    while (conc_qsize(s.queue) > 1)
      CHECK(conc_get(s.queue, text, 8, 0) == 1 &&
            conc_task_done(s.queue) == 0);
  }
  end(&s);
}

/* --- chaos --- */

enum { MESSAGES = TEST_TSAN ? 10000 : TEST_ASAN ? 30000 : 100000, CREWS = 5 };

static struct chaos {
  conc_queue *q;
  unsigned char got[MESSAGES], done[MESSAGES], told[MESSAGES];
  int all_done, ended, cancelled, late, released;
} chaos;

static unsigned chance(unsigned *seed, unsigned n) {
  *seed = *seed * 1103515245u + 12345u;
  return (*seed >> 8) % n;
}

/* One message, of which it has been told how often it was delivered. */
static void note(int n, int deliveries) {
  int before = ADD_FETCH(chaos.got[n], 1);
  unsigned char told = LOAD(chaos.told[n]);
  CHECK(n >= 0 && n < MESSAGES && deliveries >= 1);
  CHECK(deliveries <= 255 && before <= 255);
  while (told < deliveries &&
         !__atomic_compare_exchange_n(&chaos.told[n], &told,
                                      (unsigned char)deliveries, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
  }
}

/* Works for a while; then it ends, with what it has leased. Its first end may
   be that it is cancelled. */
static void *chaos_worker(void *arg) {
  unsigned seed = (unsigned)(uintptr_t)arg;
  for (;;) {
    conc_lease lease[3];
    int held = 0, want = 1 + (int)chance(&seed, 3), n[3];
    ssize_t rc = 0;
    for (; held < want; held++) {
      rc = conc_get_leased(chaos.q, &lease[held], &n[held], sizeof *n,
                           held == 0 ? CONC_FOREVER : 0);
      if (rc < 0) break;
      note(n[held], conc_lease_deliveries(&lease[held]));
    }
    if (rc == -EPIPE && held == 0) return NULL;
    if (rc == -ECANCELED) {
      ADD_FETCH(chaos.cancelled, 1);
      return NULL;
    }
    CHECK(rc >= 0 || rc == -EPIPE || rc == -ETIMEDOUT);
    if (chance(&seed, 100) == 0) {
      ADD_FETCH(chaos.ended, 1);
      return NULL;
    }
    if (chance(&seed, 300) == 0) conc_sleep(0.02); /* longer than it may */
    while (held-- > 0) {
      if (chance(&seed, 50) == 0) {
        rc = conc_lease_release(&lease[held], -(double)chance(&seed, 2));
        if (rc == 0) ADD_FETCH(chaos.released, 1);
      } else {
        rc = conc_lease_done(&lease[held]);
        if (rc == 0) {
          CHECK_EQ(ADD_FETCH(chaos.done[n[held]], 1), 1);
          if (ADD_FETCH(chaos.all_done, 1) == MESSAGES)
            CHECK_EQ(conc_queue_close(chaos.q), 0);
        }
      }
      CHECK(rc == 0 || rc == -ESTALE);
      if (rc == -ESTALE) ADD_FETCH(chaos.late, 1);
    }
  }
}

/* Coroutines and threads, again and again; some are cancelled. */
static void *chaos_coroutines(void *arg) {
  unsigned seed = (unsigned)(uintptr_t)arg;
  conc_task t[4];
  for (int i = 0; i < 4; i++)
    start(conc_coro_start, &t[i], chaos_worker,
          (void *)(uintptr_t)chance(&seed, 1 << 20));
  conc_sleep(chance(&seed, 20) * 1e-4);
  if (chance(&seed, 3) == 0) conc_cancel(&t[chance(&seed, 4)]);
  for (int i = 0; i < 4; i++) conc_join(&t[i], CONC_FOREVER);
  return NULL;
}
static void *chaos_crew(void *arg) {
  unsigned seed = (unsigned)(uintptr_t)arg * 7919;
  while (LOAD(chaos.all_done) < MESSAGES) {
    conc_task t;
    void *more = (void *)(uintptr_t)chance(&seed, 1 << 20);
    if ((uintptr_t)arg % 2 == 0) {
      run(chaos_coroutines, more);
      continue;
    }
    start(conc_thread_start, &t, chaos_worker, more);
    if (chance(&seed, 3) == 0) conc_cancel(&t);
    conc_join(&t, CONC_FOREVER);
  }
  return NULL;
}

TEST(whatever_ends_each_message_is_done_once_and_each_double_is_told) {
  conc_queue_opts o = {.capacity = 5000, .lease = 60, .max_lease = 0.01,
                       .retry_delay = 1e-4, .priorities = 3};
  conc_task crew[CREWS];
  conc_queue_counts c;
  size_t got = 0;
  memset(&chaos, 0, sizeof chaos);
  chaos.q = queue_of(o);
  for (int i = 0; i < CREWS; i++)
    start(conc_thread_start, &crew[i], chaos_crew, (void *)(uintptr_t)(i + 1));
  for (int i = 0; i < MESSAGES; i++) {
    int rc = i % 5 == 0
                 ? conc_put_priority(chaos.q, &i, sizeof i, i % 3, 60)
             : i % 7 == 0
                 ? conc_put_after(chaos.q, &i, sizeof i, (i % 10) * 1e-4, 60)
                 : conc_put(chaos.q, &i, sizeof i, 60);
    CHECK_EQ(rc, 0);
  }
  CHECK_EQ(conc_queue_join(chaos.q, 60 * test_slow()), 0);
  for (int i = 0; i < CREWS; i++) conc_join(&crew[i], CONC_FOREVER);
  c = counts(chaos.q);
  for (int i = 0; i < MESSAGES; i++) {
    CHECK_EQ(chaos.done[i], 1);
    CHECK_EQ(chaos.got[i], chaos.told[i]);
    got += chaos.got[i];
  }
  CHECK_EQ(c.put, MESSAGES);
  CHECK_EQ(c.done, MESSAGES);
  CHECK_EQ(c.got, got);
  CHECK_EQ(c.returned, got - MESSAGES);
  CHECK_EQ(c.ready + c.delayed + c.leased + c.dying, 0);
  CHECK(chaos.ended > 0 && chaos.released > 0);
  /* On a machine that is slow enough the others have done all before. */
  if (!TEST_ASAN && !TEST_TSAN) CHECK(chaos.cancelled > 0);
  conc_queue_free(chaos.q);
}

/* What a leased message costs besides its bytes. */
TEST(a_million_leases_take_little_memory) {
  enum { N = TEST_TSAN || TEST_ASAN ? 1 << 14 : 1000000 };
  conc_queue *q = leasing();
  uint64_t number;
  for (uint64_t i = 0; i < N; i++)
    CHECK_EQ(conc_put(q, &i, sizeof i, 0), 0);
  for (uint64_t i = 0; i < N; i++) {
    CHECK_EQ(conc_get(q, &number, sizeof number, 0), sizeof number);
    CHECK_EQ(number, i);
  }
  CHECK_EQ(counts(q).leased, N);
  /* A block of malloc has a head of 8 bytes and is a multiple of 16. */
  size_t letter = (sizeof(conc__letter) + 8 + 8 + 15) / 16 * 16 - 8;
  size_t bucket = AS_WORK(q)->buckets_size * sizeof(void *) / N;
  CHECK(letter + bucket <= 150);
  for (int i = 0; i < N; i++) CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

TEST_MAIN
