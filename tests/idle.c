/* Tasks that wait for a queue between processes cost nothing, however many
   they are: of the threads of a process one looks around, and of the
   coroutines of a loop. From inside, to see which. */
#include "test.h"

#include "inside.h"
#include "tasks.h"

#include <sys/resource.h>

enum { THREADS = 200, COROUTINES = 1000 };

static conc_queue *idle_queue;
static unsigned got, in_time;

static conc_queue *make(const char *name) {
  conc_queue_opts o;
  conc_queue *q;
  memset(&o, 0, sizeof o);
  o.capacity = 4096;
  o.max_bytes = 16;
  o.shared = true;
  o.name = name;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  got = in_time = 0;
  return q;
}

static struct conc__cells_side *side(int which) {
  return &((conc__cells_queue *)idle_queue)->cells->sides[which];
}

/* How many tasks follow the one that looks. */
static unsigned followers(int which) {
  const unsigned *word = &side(which)->word;
  conc__mutex *guard = conc__mutex_of(word);
  const conc__waiter *v;
  unsigned n = 0;
  conc__mutex_lock(guard);
  v = conc__followers[conc__sentry_bucket(word)].first;
  for (; v != NULL; v = v->next) n += ((const conc__follower *)v)->word == word;
  conc__mutex_unlock(guard);
  return n;
}

static void until_following(int which, unsigned n) {
  double end = test_now() + 10 * test_slow();
  while (followers(which) != n) {
    CHECK(test_now() < end);
    conc_sleep(1e-3);
  }
}

static long switches(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_nvcsw;
}

static void *get_one(void *arg) {
  char c;
  CHECK_EQ(conc_get(idle_queue, &c, 1, CONC_FOREVER), 1);
  ADD_FETCH(got, 1);
  return arg;
}

static void *get_in_vain(void *arg) {
  char c;
  double limit = *(double *)arg;
  int rc = (int)conc_get(idle_queue, &c, 1, limit);
  CHECK_EQ(rc, limit < CONC_FOREVER ? -ETIMEDOUT : -ECANCELED);
  ADD_FETCH(in_time, 1);
  return NULL;
}

/* --- threads --- */

TEST(of_many_threads_at_a_shared_queue_one_looks) {
  static conc_task t[THREADS], soon, never;
  static double limits[] = {0.05, CONC_FOREVER};
  double end;
  long before;
  int i;
  if (!CONC_HAVE_FUTEX) SKIP("threads look by turns");
  idle_queue = make(NULL);
  for (i = 0; i < THREADS; i++) {
    t[i].stack_size = 65536;
    t[i].target = get_one;
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  until_following(CONC__GETTERS, THREADS - 1);
  /* Until those that follow sleep, too, which is a little later. */
  end = test_now() + 10 * test_slow();
  do {
    CHECK(test_now() < end);
    before = switches();
    usleep(100000);
  } while (switches() - before >= THREADS);
  /* Those that follow keep their time, and are cancelled. */
  start(conc_thread_start, &soon, get_in_vain, &limits[0]);
  start(conc_thread_start, &never, get_in_vain, &limits[1]);
  CHECK_EQ(conc_join(&soon, 10), 0);
  until_following(CONC__GETTERS, THREADS);
  CHECK_EQ(conc_cancel(&never), 0);
  CHECK_EQ(conc_join(&never, 10), -ECANCELED);
  CHECK_EQ(in_time, 2);
  for (i = 0; i < THREADS; i++)
    CHECK_EQ(conc_put(idle_queue, "x", 1, 1), 0);
  for (i = 0; i < THREADS; i++)
    CHECK_EQ(conc_join(&t[i], 20 * test_slow()), 0);
  CHECK_EQ(got, THREADS);
  CHECK_EQ(followers(CONC__GETTERS), 0);
  CHECK_EQ(LOAD(side(CONC__GETTERS)->sleepers), 0);
  conc_queue_free(idle_queue);
}

/* --- coroutines --- */

/* One message at a time: the others sleep on. */
static void *many_coroutines(void *arg) {
  static conc_task t[COROUTINES];
  int i;
  memset(t, 0, sizeof t);
  for (i = 0; i < COROUTINES; i++) {
    t[i].target = get_one;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  until_following(CONC__GETTERS, COROUTINES - 1);
  for (i = 0; i < COROUTINES; i++) {
    double end = test_now() + 10 * test_slow();
    CHECK_EQ(conc_put(idle_queue, "x", 1, 1), 0);
    while (got <= (unsigned)i) {
      CHECK(test_now() < end);
      conc_sleep(0);
    }
    if (i < COROUTINES - 1)
      until_following(CONC__GETTERS, (unsigned)(COROUTINES - 2 - i));
  }
  for (i = 0; i < COROUTINES; i++) CHECK_EQ(conc_join(&t[i], 10), 0);
  return arg;
}

TEST(a_message_wakes_one_of_many_coroutines) {
  conc_task t;
  idle_queue = make(NULL);
  memset(&t, 0, sizeof t);
  t.target = many_coroutines;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(got, COROUTINES);
  CHECK_EQ(LOAD(side(CONC__GETTERS)->pollers), 0);
  conc_queue_free(idle_queue);
}

/* The coroutine that looks cannot run, for its loop is busy: a thread has the
   message nevertheless. */
static void *busy_loop(void *arg) {
  conc_task *getter = (conc_task *)arg;
  double end;
  getter->target = get_one;
  CHECK_EQ(conc_coro_start(getter), 0);
  while (LOAD(side(CONC__GETTERS)->pollers) == 0) conc_sleep(0);
  until_following(CONC__GETTERS, 3);
  CHECK_EQ(conc_put(idle_queue, "x", 1, 1), 0);
  end = test_now() + 10 * test_slow();
  while (LOAD(got) == 0) CHECK(test_now() < end); /* without a switch */
  for (int i = 0; i < 4; i++)
    CHECK_EQ(conc_put(idle_queue, "x", 1, 1), 0);
  CHECK_EQ(conc_join(getter, 10), 0);
  return NULL;
}

TEST(a_thread_does_not_wait_for_the_turn_of_a_loop) {
  static conc_task loop, getter, t[4];
  if (!CONC_HAVE_FUTEX) SKIP("threads look by turns");
  idle_queue = make(NULL);
  loop.target = busy_loop;
  loop.arg = &getter;
  for (int i = 0; i < 4; i++) start(conc_thread_start, &t[i], get_one, NULL);
  CHECK_EQ(conc_run(&loop), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], 10), 0);
  CHECK_EQ(got, 5);
  conc_queue_free(idle_queue);
}

/* --- join --- */

static void *join_it(void *arg) {
  CHECK_EQ(conc_queue_join(idle_queue, CONC_FOREVER), 0);
  ADD_FETCH(got, 1);
  return arg;
}
static void *join_in_vain(void *arg) {
  CHECK_EQ(conc_queue_join(idle_queue, 10), -ECANCELED);
  return arg;
}

static void *joiners(void *arg) {
  static conc_task t[100], c;
  long before;
  int i;
  memset(t, 0, sizeof t);
  memset(&c, 0, sizeof c);
  CHECK_EQ(conc_put(idle_queue, "x", 1, 1), 0);
  for (i = 0; i < 100; i++) {
    t[i].target = join_it;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  c.target = join_in_vain;
  CHECK_EQ(conc_coro_start(&c), 0);
  until_following(CONC__JOINERS, 100);
  for (i = 0;; i++) {
    before = switches();
    CHECK_EQ(conc_sleep(0.2), 0);
    if (CONC_HAVE_TSAN || test_wrapped("valgrind")) break;
    if (switches() - before < 60) break; /* each 2 ms it would be 100 */
    CHECK(i < 10);
  }
  CHECK_EQ(conc_cancel(&c), 0);
  CHECK_EQ(conc_join(&c, 10), -ECANCELED);
  CHECK_EQ(got, 0);
  CHECK_EQ(conc_task_done(idle_queue), 0);
  for (i = 0; i < 100; i++) CHECK_EQ(conc_join(&t[i], 10), 0);
  CHECK_EQ(LOAD(side(CONC__JOINERS)->pollers), 0);
  return arg;
}

TEST(coroutines_that_join_a_shared_queue_do_not_poll) {
  char name[64];
  for (int named = 0; named < 2; named++) {
    conc_task t;
    snprintf(name, sizeof name, "conc-idle-%d", (int)getpid());
    if (named && !CONC_HAVE_FUTEX) break;
    idle_queue = make(named ? name : NULL);
    memset(&t, 0, sizeof t);
    t.target = joiners;
    CHECK_EQ(conc_run(&t), 0);
    CHECK_EQ(got, 100);
    conc_queue_free(idle_queue);
  }
}

TEST_MAIN
