/* What a wait is. No wake-up is lost and none comes twice, wherever the waiter
   or the waker is stopped; and what waiting costs.

   Two sides, one of which waits and one of which wakes it, are each a thread,
   or a coroutine of its own loop. CONC__POINT stands before each of their
   steps that the other one may meet. A round lets one side go on to its i-th
   point, then the other to its j-th, then the first to its end, then both; a
   scenario is done for all i and j, both ways round, or, if that takes longer
   than PARK_SECONDS (0.04, per scenario and way), for as many as there is time
   for, in an order that covers them evenly. */
#include "test.h"

static void test_point(void);
static double test_spin_seconds(void);
#define CONC__POINT() test_point()
#define CONC_SPIN_SECONDS test_spin_seconds()
#include "inside.h"

#include <semaphore.h>
#include "trace.h"

#include <sys/prctl.h>
#include <sys/syscall.h>


enum { ENDED, RUNNING, STOPPED };
enum { NEVER_STOPS = -1 };

typedef int step(void);

typedef struct side {
  step *prepare, *run; /* before each round, if not NULL; in it */
  bool coroutine;
  step *next;          /* which of them is asked for; NULL: to end */
  int rc;              /* what it returned */
  conc_task task, inner;
  sem_t go;
  int id; /* of its thread */
  int points, stop_at, state;
  int passed; /* points, in the last round */
} side;

enum { WAITER, WAKER, OTHER, SIDES };
static side sides[SIDES];
static sem_t changed;
static double patience; /* before it a sleep may end by itself: a timeout */
static __thread side *running;

static double spin; /* 0: a thread sleeps at once */
static __thread int spins; /* how often a thread asked for it */
static double test_spin_seconds(void) {
  spins++;
  return spin;
}

static void test_point(void) {
  side *s = running;
  int error = errno;
  if (s == NULL || s->points++ != LOAD(s->stop_at)) return;
  STORE(s->state, STOPPED);
  sem_post(&changed);
  while (sem_wait(&s->go) != 0) {
  }
  errno = error;
}

static void *side_main(void *arg) {
  side *s = (side *)arg;
  STORE(s->id, (int)syscall(SYS_gettid));
  for (;;) {
    while (sem_wait(&s->go) != 0) {
    }
    if (s->next == NULL) return NULL;
    running = s->next == s->run ? s : NULL;
    s->rc = s->next();
    running = NULL;
    /* What woke it has been taken, and no timer is left behind. */
    CHECK_EQ(LOAD(conc__self()->word) & ~CONC__POKED, 0);
    CHECK(!s->coroutine || ((conc__coro *)conc__self())->timer == 0);
    STORE(s->state, ENDED);
    sem_post(&changed);
  }
}

static void *side_loop(void *arg) {
  side *s = (side *)arg;
  memset(&s->inner, 0, sizeof s->inner);
  s->inner.target = side_main;
  s->inner.arg = s;
  conc_run(&s->inner); /* -ECANCELED, if that was the scenario */
  return NULL;
}

static conc_task *task_of(side *s) {
  return s->coroutine ? &s->inner : &s->task;
}

static void side_start(side *s, bool coroutine) {
  CHECK_EQ(sem_init(&s->go, 0, 0), 0);
  s->coroutine = coroutine;
  s->id = 0;
  memset(&s->task, 0, sizeof s->task);
  s->task.target = coroutine ? side_loop : side_main;
  s->task.arg = s;
  CHECK_EQ(conc_thread_start(&s->task), 0);
  while (LOAD(s->id) == 0) sched_yield();
}

static void side_end(side *s) {
  s->next = NULL;
  sem_post(&s->go);
  conc_join(&s->task, CONC_FOREVER);
  CHECK_EQ(sem_destroy(&s->go), 0);
}

/* Until it has stopped, has ended, or sleeps: then it is RUNNING. */
static int await(side *s) {
  double late = test_now() + 10 * test_slow();
  int sleeps = 0;
  while (LOAD(s->state) == RUNNING && sleeps < 2) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 20000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    if (sem_timedwait(&changed, &t) == 0) continue;
    sleeps = asleep(s->id) && test_now() > patience ? sleeps + 1 : 0;
    if (test_now() > late) TEST_FAIL("it neither ends nor sleeps");
  }
  return LOAD(s->state);
}

static int proceed(side *s, int stop_at) {
  STORE(s->stop_at, stop_at);
  STORE(s->state, RUNNING);
  sem_post(&s->go);
  return await(s);
}

static void begin(side *s, step *next, int stop_at) {
  s->points = 0;
  s->next = next;
  proceed(s, stop_at);
}

/* Until all have ended; one that has stopped goes on. */
static void finish(const char *what, int i, int j) {
  double late = test_now() + 10 * test_slow();
  for (int k = 0; k < SIDES; k++)
    while (LOAD(sides[k].state) != ENDED) {
      for (int l = 0; l < SIDES; l++)
        if (LOAD(sides[l].state) == STOPPED) proceed(&sides[l], NEVER_STOPS);
      await(&sides[k]);
      if (test_now() > late) TEST_FAIL("%s: lost at %d, %d", what, i, j);
    }
}

/* --- scenarios --- */

static conc_event event;
static conc_lock lock;
static conc_cond cond;
static conc_queue *queue; /* of one place */
static int flag, ends[2];
static double limit; /* of the waits */
static double round_began;
static int waited; /* what the wait returned */

typedef struct scenario {
  const char *name;
  step *prepare[SIDES], *run[SIDES]; /* OTHER's may be missing */
  void (*check)(void);               /* after each round */
  bool once; /* it must be cancelled; else, without OTHER, it must not */
} scenario;

static int reset(void) {
  char c;
  conc_event_clear(&event);
  while (conc_get(queue, &c, 1, 0) == 1) conc_task_done(queue);
  flag = 0;
  return 0;
}
static void check_nothing(void) {}

static int wait_event(void) { return conc_event_wait(&event, limit); }
static int wake_event(void) { return conc_event_set(&event); }
static void check_event(void) {
  CHECK(event.waiters.first == NULL && conc_event_is_set(&event));
}

/* The waiter may free what it has waited for. */
static int wait_event_and_free(void) {
  int rc = conc_event_wait(&event, limit);
  memset(&event, 0xa5, sizeof event);
  return rc;
}
static int new_event(void) { /* that somebody has waited for: not in vain */
  memset(&event, 0, sizeof event);
  return conc_event_wait(&event, 1e-6) == -ETIMEDOUT ? 0 : -1;
}

/* A loop of its own for each wait: it may end, and be freed, while the waker
   has not yet returned. */
static void *wait_event_in_loop(void *arg) {
  *(int *)arg = wait_event();
  return NULL;
}
static int wait_loop(void) {
  int rc = 1;
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = wait_event_in_loop;
  t.arg = &rc;
  if (conc__this.loop != NULL) return wait_event();
  CHECK_EQ(conc_run(&t), 0);
  return rc;
}

static int take_lock(void) { return conc_lock_acquire(&lock, CONC_FOREVER); }
static int wait_lock(void) {
  int rc = conc_lock_acquire(&lock, limit);
  return rc != 0 ? rc : conc_lock_release(&lock);
}
static int wait_lock_and_free(void) {
  int rc = wait_lock();
  memset(&lock, 0xa5, sizeof lock);
  return rc;
}
static int take_new_lock(void) {
  memset(&lock, 0, sizeof lock);
  return take_lock();
}
static int wake_lock(void) { return conc_lock_release(&lock); }
static int hand_lock(void) { /* by when the waiter has lost its patience */
  while (conc_now() < round_began + 0.7e-3) sched_yield();
  return conc_lock_release(&lock);
}
static int barge_lock(void) {
  int rc = conc_lock_release(&lock);
  if (rc == 0) rc = conc_lock_acquire(&lock, CONC_FOREVER);
  return rc != 0 ? rc : conc_lock_release(&lock);
}
static void check_lock(void) {
  CHECK(lock.waiters.first == NULL && !conc_lock_locked(&lock));
}

static int wait_cond(void) {
  int rc = conc_lock_acquire(&lock, CONC_FOREVER);
  if (rc != 0) return rc; /* cancelled before it had it */
  while (rc == 0 && !flag) rc = conc_cond_wait(&cond, &lock, limit);
  flag = 0;
  CHECK_EQ(conc_lock_release(&lock), 0);
  return rc;
}
static int wake_cond(void) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  flag = 1;
  CHECK_EQ(conc_lock_release(&lock), 0);
  return conc_cond_notify(&cond, 1);
}
static void check_cond(void) {
  CHECK(cond.waiters.first == NULL);
  check_lock();
}

static int wait_get(void) {
  char c;
  ssize_t n = conc_get(queue, &c, 1, limit);
  return n == 1 ? 0 : (int)n;
}
static int wake_put(void) { return conc_put(queue, "x", 1, CONC_FOREVER); }
static void check_get(void) { /* it was got, or is still there */
  CHECK_EQ(conc_qsize(queue), waited == 0 ? 0 : 1);
  CHECK(AS_FIFO(queue)->getters.first == NULL);
}

static int fill(void) {
  reset();
  return conc_put(queue, "x", 1, 0);
}
static int wait_put(void) { return conc_put(queue, "y", 1, limit); }
static int wake_get(void) {
  char c;
  return conc_get(queue, &c, 1, CONC_FOREVER) == 1 ? 0 : -1;
}
static void check_put(void) {
  CHECK_EQ(conc_qsize(queue), waited == 0 ? 1 : 0);
  CHECK(AS_FIFO(queue)->putters.first == NULL);
}

static int wait_done(void) { return conc_queue_join(queue, limit); }
static int wake_done(void) { return conc_task_done(queue); }
static void check_done(void) {
  CHECK(AS_FIFO(queue)->joiners.first == NULL);
  CHECK_EQ(conc_task_done(queue), -EINVAL);
  conc_put(queue, "x", 1, 0); /* for the next reset to count */
}

static int wait_sleep(void) { return conc_sleep(limit); }
static int wait_fd(void) {
  int rc = conc_wait_fd(ends[0], CONC_READ, limit);
  return rc == CONC_READ ? 0 : rc;
}
static int wake_fd(void) { return write(ends[1], "x", 1) == 1 ? 0 : -1; }

/* Both want a guard: one may be about to sleep for it, at each step of the
   other one's release. */
static conc__mutex guard;
static int use_guard(void) {
  for (int i = 0; i < 2; i++) {
    conc__mutex_lock(&guard);
    CHECK_EQ(flag++, 0);
    CONC__POINT();
    flag--;
    conc__mutex_unlock(&guard);
  }
  return 0;
}
static void check_guard(void) { CHECK(!conc__mutex_is_held(&guard)); }
static void check_fd(void) {
  char c;
  CHECK_EQ(read(ends[0], &c, 1), 1);
}
static int wake_cancel(void) { return conc_cancel(task_of(&sides[WAITER])); }

/* After a round, by the waiter: its loop has nothing more to do, and a
   cancellation that came and was not delivered is there. */
static int none_is_left(void) {
  conc__loop *loop = conc__this.loop;
  if (loop != NULL) {
    CHECK_EQ(loop->ready.count, 0);
    CHECK(CONC__LOAD(&loop->inbox.first) == NULL);
    CHECK_EQ(loop->timers.count, 0);
    CHECK_EQ(loop->fds.waited, 0);
  }
  return conc_yield_now();
}

/* One round; how far the sides came is in their points. */
static void round_of(const scenario *s, int first, int i, int second, int j) {
  bool three = s->run[OTHER] != NULL;
  int n = three ? SIDES : WAKER + 1;
  int cancelled = s->once || three;
  for (int k = 0; k < n; k++)
    if (s->prepare[k] != NULL) {
      begin(&sides[k], s->prepare[k], NEVER_STOPS);
      finish("prepare", k, 0);
      CHECK_EQ(sides[k].rc, 0);
    }
  round_began = test_now();
  patience = limit < 1 ? round_began + limit + 0.2e-3 : 0;
  if (three) begin(&sides[WAITER], s->run[WAITER], NEVER_STOPS);
  begin(&sides[first], s->run[first], i);
  begin(&sides[second], s->run[second], j);
  if (LOAD(sides[first].state) == STOPPED) proceed(&sides[first], NEVER_STOPS);
  finish(s->name, i, j);
  waited = sides[WAITER].rc;
  for (int k = 0; k < n; k++) sides[k].passed = sides[k].points;
  if (waited == -ECANCELED)
    cancelled--;
  else if (waited != 0 && !(limit < 1 && waited == -ETIMEDOUT))
    TEST_FAIL("%s: %s at %d, %d", s->name, conc_strerror(waited), i, j);
  for (int k = WAKER; k < n; k++) CHECK_EQ(sides[k].rc, 0);
  begin(&sides[WAITER], none_is_left, NEVER_STOPS);
  finish("the end", i, j);
  CHECK_EQ(sides[WAITER].rc, cancelled ? -ECANCELED : 0);
  s->check();
}

/* So many points does a side have, whatever the other one does: of the rounds
   in which one of the two stops. */
static int count_points(const scenario *s, int first, int second, int most) {
  int n = 0;
  for (int i = 0; i <= n && i < most; i++) {
    round_of(s, first, i, second, NEVER_STOPS);
    if (sides[first].passed > n) n = sides[first].passed;
    round_of(s, second, NEVER_STOPS, first, i);
    if (sides[first].passed > n) n = sides[first].passed;
  }
  return n < most ? n : most;
}

static unsigned common_divisor(unsigned a, unsigned b) {
  return b == 0 ? a : common_divisor(b, a % b);
}

static void all_rounds(const scenario *s, int first, int second) {
  double end = test_now() + test_asked("PARK_SECONDS", 0.04 * test_slow());
  unsigned n = (unsigned)count_points(s, first, second, 60) + 1;
  unsigned m = (unsigned)count_points(s, second, first, 60) + 1;
  unsigned stride = n * m * 5 / 8 + 1; /* it comes to each of them once */
  unsigned k;
  while (common_divisor(n * m, stride) != 1) stride++;
  for (k = 0; k < n * m && test_now() < end; k++) {
    unsigned at = k * stride % (n * m);
    round_of(s, first, (int)(at / m), second, (int)(at % m));
  }
  if (getenv("PARK_SECONDS"))
    printf("%s: %u of %u x %u\n", s->name, k, n, m);
}

/* The scenario with the waiter as thread and as coroutine. */
static void play(const scenario *s, double timeout) {
  conc_queue_opts one = {.capacity = 1};
  int n = s->run[OTHER] ? SIDES : WAKER + 1;
  int a = s->run[OTHER] ? OTHER : WAITER;
  prctl(PR_SET_TIMERSLACK, 1);
  CHECK_EQ(sem_init(&changed, 0, 0), 0);
  CHECK_EQ(pipe(ends), 0);
  queue = conc_queue_new(&one);
  limit = timeout;
  for (int kind = 0; kind < 3; kind++) { /* threads, one of each, coroutines */
    for (int k = 0; k < n; k++) {
      sides[k].prepare = s->prepare[k];
      sides[k].run = s->run[k];
      side_start(&sides[k], kind > (k == WAITER ? 0 : 1));
    }
    all_rounds(s, a, WAKER);
    all_rounds(s, WAKER, a);
    for (int k = 0; k < n; k++) side_end(&sides[k]);
  }
  conc_queue_free(queue);
  close(ends[0]);
  close(ends[1]);
}

#define NO_OTHER(a, b) {a, b, NULL}
static const scenario an_event = {"event", NO_OTHER(reset, NULL),
                                  NO_OTHER(wait_event, wake_event),
                                  check_event, false};
static const scenario a_lock = {"lock", NO_OTHER(NULL, take_lock),
                                NO_OTHER(wait_lock, wake_lock), check_lock,
                                false};
static const scenario a_barged_lock = {"barged lock",
                                       NO_OTHER(NULL, take_lock),
                                       NO_OTHER(wait_lock, barge_lock),
                                       check_lock, false};
static const scenario a_handed_lock = {"handed lock",
                                       NO_OTHER(NULL, take_lock),
                                       NO_OTHER(wait_lock, hand_lock),
                                       check_lock, false};
static const scenario a_cond = {"condition", NO_OTHER(reset, NULL),
                                NO_OTHER(wait_cond, wake_cond), check_cond,
                                false};
static const scenario a_get = {"get", NO_OTHER(reset, NULL),
                               NO_OTHER(wait_get, wake_put), check_get,
                               false};
static const scenario a_put = {"put", NO_OTHER(fill, NULL),
                               NO_OTHER(wait_put, wake_get), check_put,
                               false};
static const scenario a_guard = {"guard", NO_OTHER(reset, NULL),
                                 NO_OTHER(use_guard, use_guard), check_guard,
                                 false};
static const scenario a_fd = {"descriptor", NO_OTHER(reset, NULL),
                              NO_OTHER(wait_fd, wake_fd), check_fd, false};

TEST(a_release_of_a_guard_is_never_missed) { play(&a_guard, CONC_FOREVER); }
TEST(an_event_is_never_missed) { play(&an_event, CONC_FOREVER); }
TEST(an_event_and_a_timeout_exclude_each_other) { play(&an_event, 0.3e-3); }
TEST(an_event_wakes_a_loop_that_then_ends) {
  static const scenario s = {"loop", NO_OTHER(reset, NULL),
                             NO_OTHER(wait_loop, wake_event), check_event,
                             false};
  play(&s, CONC_FOREVER);
}
TEST(an_event_may_be_freed_by_its_waiter) {
  static const scenario s = {"freed event", NO_OTHER(new_event, NULL),
                             NO_OTHER(wait_event_and_free, wake_event),
                             check_nothing, false};
  play(&s, CONC_FOREVER);
}
TEST(a_lock_may_be_freed_by_its_last_owner) {
  static const scenario s = {"freed lock", NO_OTHER(NULL, take_new_lock),
                             NO_OTHER(wait_lock_and_free, wake_lock),
                             check_nothing, false};
  play(&s, CONC_FOREVER);
}
TEST(a_lock_is_never_missed) { play(&a_lock, CONC_FOREVER); }
TEST(a_lock_and_a_timeout_exclude_each_other) { play(&a_lock, 0.3e-3); }
TEST(a_lock_that_is_taken_again_at_once_is_never_missed) {
  play(&a_barged_lock, CONC_FOREVER);
}
TEST(a_lock_that_is_handed_over_is_never_missed) {
  play(&a_handed_lock, CONC_FOREVER);
}
TEST(a_lock_is_handed_over_or_not_when_the_time_is_out) {
  play(&a_handed_lock, 0.75e-3);
}
TEST(a_notify_is_never_missed) { play(&a_cond, CONC_FOREVER); }
TEST(a_notify_and_a_timeout_exclude_each_other) { play(&a_cond, 0.3e-3); }
TEST(a_message_is_never_missed) { play(&a_get, CONC_FOREVER); }
TEST(a_message_is_got_or_stays_when_the_time_is_out) { play(&a_get, 0.3e-3); }
TEST(room_in_a_queue_is_never_missed) { play(&a_put, CONC_FOREVER); }
TEST(a_put_is_done_or_not_when_the_time_is_out) { play(&a_put, 0.3e-3); }
TEST(a_ready_descriptor_is_never_missed) { play(&a_fd, CONC_FOREVER); }
TEST(a_descriptor_and_a_timeout_exclude_each_other) { play(&a_fd, 0.3e-3); }
TEST(the_last_task_done_is_never_missed) {
  static const scenario s = {"task_done", NO_OTHER(fill, NULL),
                             NO_OTHER(wait_done, wake_done), check_done,
                             false};
  play(&s, CONC_FOREVER);
}

/* --- cancellation --- */

static void cancel_alone(const char *name, step *wait) {
  scenario s = {name, NO_OTHER(reset, NULL), {NULL, NULL, NULL},
                check_nothing, true};
  s.run[WAITER] = wait;
  s.run[WAKER] = wake_cancel;
  play(&s, CONC_FOREVER);
}
TEST(a_sleep_is_cancelled_once) { cancel_alone("sleep", wait_sleep); }
TEST(a_wait_for_a_descriptor_is_cancelled_once) {
  cancel_alone("poll", wait_fd);
}
TEST(a_get_is_cancelled_once) { cancel_alone("get", wait_get); }

static void cancel_too(const scenario *with) {
  scenario s = *with;
  s.run[OTHER] = wake_cancel;
  play(&s, CONC_FOREVER);
}
TEST(an_event_and_a_cancellation_both_arrive) { cancel_too(&an_event); }
TEST(a_lock_and_a_cancellation_both_arrive) { cancel_too(&a_lock); }
TEST(a_handed_lock_and_a_cancellation_both_arrive) {
  cancel_too(&a_handed_lock);
}
TEST(a_notify_and_a_cancellation_both_arrive) { cancel_too(&a_cond); }
TEST(a_message_and_a_cancellation_both_arrive) { cancel_too(&a_get); }
TEST(room_in_a_queue_and_a_cancellation_both_arrive) { cancel_too(&a_put); }
TEST(a_ready_descriptor_and_a_cancellation_both_arrive) { cancel_too(&a_fd); }

/* What wakes a polling thread is a descriptor of its own, which it may not
   close before a canceller, who has made up his mind, has written to it: the
   number may be another's by then. */
static conc_task polling;
static int polling_id;

static void *poll_once(void *arg) {
  int rc;
  STORE(polling_id, 1);
  rc = conc_wait_fd(ends[0], CONC_READ, CONC_FOREVER);
  CHECK(rc == CONC_READ || rc == -ECANCELED);
  return arg;
}
static int cancel_polling(void) {
  int rc = conc_cancel(&polling);
  return rc == -ESRCH ? 0 : rc;
}

/* A thread waits for a descriptor; another one that cancels it is stopped
   before its i-th step, while the first ends of itself. From the decision
   to wake it to the write, the descriptor for that must stay open: else the
   write would go to whatever has its number by then. */
TEST(a_thread_that_ends_while_it_is_cancelled_keeps_its_waker_open) {
  bool stopped = true, decided = false;
  CHECK_EQ(sem_init(&changed, 0, 0), 0);
  CHECK_EQ(pipe(ends), 0);
  sides[WAKER].run = cancel_polling;
  side_start(&sides[WAKER], false);
  for (int i = 0; stopped; i++) {
    conc__actor *actor;
    bool now = false;
    int fd;
    char c;
    memset(&polling, 0, sizeof polling);
    STORE(polling_id, 0);
    polling.target = poll_once;
    CHECK_EQ(conc_thread_start(&polling), 0);
    while (LOAD(polling_id) == 0) sched_yield();
    actor = LOAD(polling.actor);
    while (!(LOAD(actor->word) & CONC__POLLING)) sched_yield();
    fd = ((conc__thread *)((char *)actor - offsetof(conc__thread, actor)))
             ->waker[1];
    __atomic_fetch_or(&actor->word, 0u, __ATOMIC_ACQ_REL); /* was read */
    CHECK(fd >= 0);
    begin(&sides[WAKER], cancel_polling, i);
    stopped = LOAD(sides[WAKER].state) == STOPPED;
    if (stopped && !decided) decided = now = LOAD(actor->word) & CONC__POKED;
    CHECK_EQ(write(ends[1], "x", 1), 1);
    if (now) { /* the first stop after the decision: before the write */
      for (int k = 0; k < 100; k++, usleep(100))
        CHECK(fcntl(fd, F_GETFD) >= 0);
    }
    finish("cancel", i, 0);
    CHECK(conc_join(&polling, CONC_FOREVER) <= 0);
    CHECK_EQ(read(ends[0], &c, 1), 1);
  }
  CHECK(decided);
  side_end(&sides[WAKER]);
  close(ends[0]);
  close(ends[1]);
}

/* --- instruction by instruction ---

   Without trust in where the points are: a child process has the two sides,
   and this one, its tracer, stops one of them after k instructions, lets the
   other one end or fall asleep, and then both go on. */

static struct traced {
  int id[2], go;
} *traced;
static const scenario *traced_scenario;
static bool at_mark[2]; /* before or after its run */

static void *traced_main(void *arg) {
  const scenario *s = traced_scenario;
  int k = (int)((side *)arg - sides);
  int id = (int)syscall(SYS_gettid);
  STORE(traced->id[k], id);
  while (!LOAD(traced->go)) usleep(100);
  for (;;) {
    if (k == WAKER)
      for (int i = 0; i < 2; i++)
        if (s->prepare[i] != NULL && s->prepare[i]() != 0) _exit(2);
    syscall(SYS_tgkill, getpid(), id, SIGSTOP);
    sides[k].rc = s->run[k]();
    if (sides[k].rc != (s->once && k == WAITER ? -ECANCELED : 0)) _exit(3);
    syscall(SYS_tgkill, getpid(), id, SIGSTOP);
  }
}
static void *traced_loop(void *arg) {
  side *s = (side *)arg;
  memset(&s->inner, 0, sizeof s->inner);
  s->inner.target = traced_main;
  s->inner.arg = s;
  conc_run(&s->inner);
  return NULL;
}

/* Until a side has stopped. False if it sleeps instead. */
static bool traced_stops(int k, bool may_sleep) {
  int status = trace_stops(traced->id[k], may_sleep);
  if (status == TRACE_LOST)
    TEST_FAIL("%s: the %s was not woken", traced_scenario->name,
              k == WAITER ? "waiter" : "waker");
  if (status == TRACE_ASLEEP) return false;
  if (!WIFSTOPPED(status)) TEST_FAIL("it died: %x", status);
  at_mark[k] = WSTOPSIG(status) == SIGSTOP;
  return true;
}
static void traced_go(trace_request how, int k) {
  trace_go(how, traced->id[k]);
}

/* Whether the first side could do k instructions before it ended or slept. */
static bool traced_round(int first, int k) {
  bool stopped[2] = {true, true};
  bool early;
  for (int i = 0; i < 2; i++) traced_go(PTRACE_CONT, i);
  for (int i = 0; i < 2; i++) traced_stops(i, false);
  at_mark[first] = false;
  for (int i = 0; i < k && stopped[first] && !at_mark[first]; i++) {
    traced_go(PTRACE_SINGLESTEP, first);
    stopped[first] = traced_stops(first, true);
  }
  early = stopped[first] && !at_mark[first];
  traced_go(PTRACE_CONT, !first);
  stopped[!first] = traced_stops(!first, true);
  /* A sleeper's step ends when it is woken; then it goes on. */
  if (!stopped[first]) traced_stops(first, false);
  while (!at_mark[first]) {
    traced_go(PTRACE_CONT, first);
    traced_stops(first, false);
  }
  if (!stopped[!first]) traced_stops(!first, false);
  return early;
}

static void trace(const scenario *s, bool coroutine) {
  conc_queue_opts one = {.capacity = 1};
  bool refused = false, stopped[2];
  pid_t child;
  if (CONC_HAVE_ASAN || CONC_HAVE_TSAN) SKIP("a sanitizer has its own steps");
  if (test_wrapped("valgrind")) SKIP("not under valgrind");
  traced = (struct traced *)mmap(NULL, sizeof *traced, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(traced != MAP_FAILED);
  traced_scenario = s;
  limit = CONC_FOREVER;
  child = fork();
  if (child == 0) {
    queue = conc_queue_new(&one);
    for (int k = 0; k < 2; k++) {
      side *it = &sides[k];
      it->coroutine = coroutine && k == WAITER;
      it->task.target = it->coroutine ? traced_loop : traced_main;
      it->task.arg = it;
      if (conc_thread_start(&it->task) != 0) _exit(4);
    }
    for (;;) pause();
  }
  for (int k = 0; k < 2; k++) {
    while (LOAD(traced->id[k]) == 0) usleep(100);
    if (ptrace(PTRACE_SEIZE, traced->id[k], 0, PTRACE_O_EXITKILL) != 0)
      refused = true;
  }
  if (!refused) {
    STORE(traced->go, 1);
    for (int k = 0; k < 2; k++) {
      traced_stops(k, false);
      traced_go(PTRACE_CONT, k);
      stopped[k] = traced_stops(k, k == WAITER);
    }
    if (!stopped[WAITER]) traced_stops(WAITER, false);
    for (int first = 0; first < 2; first++) {
      double end = test_now() + test_asked("PARK_SECONDS", 0.15);
      int n = 16, i, k = 0;
      while (traced_round(first, n) && n < 1 << 16) n *= 2;
      for (i = 0; i < n && test_now() < end; i++) {
        traced_round(first, k);
        k = (k + (n * 5 / 8 | 1)) % n; /* odd, n a power of two: all of them */
      }
      if (getenv("PARK_SECONDS"))
        printf("%s: %d of %d instructions\n", s->name, i, n);
    }
  }
  kill(child, SIGKILL);
  while (waitpid(-1, NULL, __WALL) > 0) {
  }
  munmap(traced, sizeof *traced);
  if (refused) SKIP("ptrace is not permitted");
}

TEST(no_instruction_of_an_event_loses_a_thread) { trace(&an_event, false); }
TEST(no_instruction_of_an_event_loses_a_coroutine) { trace(&an_event, true); }
TEST(no_instruction_of_a_lock_loses_a_thread) { trace(&a_lock, false); }
TEST(no_instruction_of_a_lock_loses_a_coroutine) { trace(&a_lock, true); }
TEST(no_instruction_of_a_condition_loses_a_thread) { trace(&a_cond, false); }
TEST(no_instruction_of_a_queue_loses_a_thread) { trace(&a_get, false); }
TEST(no_instruction_of_a_queue_loses_a_coroutine) { trace(&a_get, true); }

/* --- order --- */

/* Eight wait, every second one as a coroutine of one loop, in a known order;
   then they are let go one by one. */
enum { CROWD = 8 };
typedef struct crowd {
  conc_fn *wait;   /* with a number, which it adds to `order` at last */
  step *let_go;    /* one of them */
  struct conc__waitlist *list;
  conc_task tasks[CROWD];
  int numbers[CROWD];
  conc_queue *starts; /* numbers of coroutines to be started */
} crowd;
static int order[CROWD], ordered;

static void add_to_order(void *number) {
  order[__atomic_fetch_add(&ordered, 1, __ATOMIC_ACQ_REL) % CROWD] =
      *(int *)number;
}

static int list_length(const crowd *c) {
  int n = 0;
  conc__mutexes_lock(); /* a queue has more than one */
  for (conc__waiter *w = c->list->first; w != NULL; w = w->next) n++;
  conc__mutexes_unlock();
  return n;
}

static void *crowd_loop(void *arg) {
  crowd *c = (crowd *)arg;
  int k;
  while (conc_get(c->starts, &k, sizeof k, CONC_FOREVER) > 0)
    CHECK_EQ(conc_coro_start(&c->tasks[k]), 0);
  for (k = 1; k < CROWD; k += 2)
    CHECK_EQ(conc_join(&c->tasks[k], CONC_FOREVER), 0);
  return NULL;
}
static void *crowd_thread(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = crowd_loop;
  t.arg = arg;
  CHECK_EQ(conc_run(&t), 0);
  return NULL;
}

static void wait_in_order(conc_fn *wait, step *let_go,
                          struct conc__waitlist *list) {
  static crowd c;
  conc_task loop;
  memset(&loop, 0, sizeof loop);
  loop.target = crowd_thread;
  loop.arg = &c;
  c.wait = wait;
  c.list = list;
  c.starts = conc_queue_new(NULL);
  CHECK_EQ(conc_thread_start(&loop), 0);
  for (int k = 0; k < CROWD; k++) {
    c.numbers[k] = k;
    c.tasks[k].target = wait;
    c.tasks[k].arg = &c.numbers[k];
    if (k % 2 == 0)
      CHECK_EQ(conc_thread_start(&c.tasks[k]), 0);
    else
      CHECK_EQ(conc_put(c.starts, &k, sizeof k, 0), 0);
    while (list_length(&c) <= k) sched_yield();
  }
  conc_queue_close(c.starts);
  usleep(1000); /* beyond the patience of a lock's waiter */
  for (int k = 0; k < CROWD; k++) {
    CHECK_EQ(let_go(), 0);
    while (LOAD(ordered) <= k) sched_yield();
  }
  for (int k = 0; k < CROWD; k += 2)
    CHECK_EQ(conc_join(&c.tasks[k], CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  for (int k = 0; k < CROWD; k++) CHECK_EQ(order[k], k);
  conc_queue_free(c.starts);
}

static void *order_lock(void *number) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  add_to_order(number);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return NULL;
}
static int release_once(void) {
  conc_lock_release(&lock); /* the others do it themselves */
  return 0;
}
TEST(a_lock_is_had_in_the_order_of_arrival) {
  take_lock();
  wait_in_order(order_lock, release_once, &lock.waiters);
}

static void *order_cond(void *number) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_wait(&cond, &lock, CONC_FOREVER), 0);
  add_to_order(number);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return NULL;
}
static int notify_one(void) { return conc_cond_notify(&cond, 1); }
TEST(a_condition_notifies_in_the_order_of_arrival) {
  wait_in_order(order_cond, notify_one, &cond.waiters);
}

static void *order_get(void *number) {
  char c;
  CHECK_EQ(conc_get(queue, &c, 1, CONC_FOREVER), 1);
  add_to_order(number);
  return NULL;
}
TEST(a_queue_serves_its_getters_in_the_order_of_arrival) {
  queue = conc_queue_new(NULL);
  wait_in_order(order_get, wake_put, &AS_FIFO(queue)->getters);
  conc_queue_free(queue);
}

static void *order_put(void *number) {
  CHECK_EQ(conc_put(queue, number, 1, CONC_FOREVER), 0);
  add_to_order(number);
  return NULL;
}
TEST(a_queue_serves_its_putters_in_the_order_of_arrival) {
  conc_queue_opts one = {.capacity = 1};
  queue = conc_queue_new(&one);
  fill();
  wait_in_order(order_put, wake_get, &AS_FIFO(queue)->putters);
  conc_queue_free(queue);
}

/* --- what waiting costs --- */

static double cpu_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int one_wait(int how, double timeout) {
  char c;
  if (how == 0) return conc_event_wait(&event, timeout);
  if (how == 1) return conc_wait_fd(ends[0], CONC_READ, timeout);
  return (int)conc_get(queue, &c, 1, timeout);
}

/* A wait spins at most once, and not at all most of the times when that never
   pays. */
static void *wait_idly(void *arg) {
  for (int how = 0; how < 3; how++) {
    double before = cpu_time();
    spins = 0;
    CHECK_EQ(one_wait(how, 0.3), -ETIMEDOUT);
    CHECK(spins <= 1);
    CHECK(cpu_time() - before < 0.03 * test_slow());
    for (int i = 0; i < 200; i++) CHECK_EQ(one_wait(how, 0.5e-3), -ETIMEDOUT);
    CHECK(spins <= 30);
  }
  return arg;
}

static void prepare_to_wait_idly(void) {
  spin = 50e-6;
  queue = conc_queue_new(NULL);
  CHECK_EQ(pipe(ends), 0);
}
static void end_waiting_idly(void) {
  conc_queue_free(queue);
  close(ends[0]);
  close(ends[1]);
}

TEST(a_thread_that_waits_does_not_use_the_cpu) {
  prepare_to_wait_idly();
  wait_idly(NULL);
  end_waiting_idly();
}
TEST(a_loop_that_waits_does_not_use_the_cpu) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = wait_idly;
  prepare_to_wait_idly();
  CHECK_EQ(conc_run(&t), 0);
  end_waiting_idly();
}

/* It pays: then it is done again, after it was given up, too. */
static void *answer(void *arg) {
  char c;
  while (conc_read(((int *)arg)[0], &c, 1, CONC_FOREVER) == 1)
    CHECK_EQ(conc_write(((int *)arg)[1], &c, 1, CONC_FOREVER), 1);
  return NULL;
}
TEST(a_thread_tries_again_whether_spinning_pays) {
  const double end = test_now() + 10 * test_slow();
  int there[2], back[2], fds[2];
  conc_task t;
  char c = 0;
  prepare_to_wait_idly();
  if (conc_cpu_count() < 2) SKIP("one CPU");
  for (int i = 0; i < 20; i++)
    CHECK_EQ(one_wait(1, 0.1e-3), -ETIMEDOUT); /* it is given up */
  CHECK_EQ(pipe(there), 0);
  CHECK_EQ(pipe(back), 0);
  fds[0] = there[0];
  fds[1] = back[1];
  memset(&t, 0, sizeof t);
  t.target = answer;
  t.arg = fds;
  CHECK_EQ(conc_thread_start(&t), 0);
  spins = 0;
  /* While other programs have a CPU, the answer may be there before it is
     waited for. */
  for (int i = 0; i < 1000 || spins <= 20; i++) {
    CHECK(test_now() < end);
    CHECK_EQ(conc_write(there[1], &c, 1, CONC_FOREVER), 1);
    CHECK_EQ(conc_read(back[0], &c, 1, CONC_FOREVER), 1);
  }
  close(there[1]);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  close(there[0]);
  for (int k = 0; k < 2; k++) close(back[k]);
  end_waiting_idly();
}

TEST(on_one_cpu_nobody_spins) {
  cpu_set_t one;
  conc_task t;
  CPU_ZERO(&one);
  CHECK(sched_getcpu() >= 0);
  CPU_SET((unsigned)sched_getcpu(), &one);
  CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  prepare_to_wait_idly();
#if CONC__LINUX
  CHECK_EQ(conc_cpu_count(), 1);
  for (int how = 0; how < 3; how++) one_wait(how, 1e-3);
  CHECK_EQ(spins, 0);
#endif
  memset(&t, 0, sizeof t);
  t.target = order_put; /* and all works */
  t.arg = &spins;
  CHECK_EQ(conc_run(&t), 0);
  end_waiting_idly();
}

/* What is there at the first look would be there without a spin, too. */
TEST(a_spin_learns_from_what_it_has_waited_for_only) {
  unsigned failed = 2;
  conc__spin busy;
  conc_current();
  if (conc__cpus < 2) SKIP("nobody spins on one CPU");
  spin = 60;
  conc__spin_begin(&busy, &failed, CONC__NEVER);
  CHECK(conc__spin_again(&busy, 1));
  conc__spin_end(&busy, true);
  CHECK_EQ(failed, 2);
  conc__spin_begin(&busy, &failed, CONC__NEVER);
  for (int i = 0; i < 2; i++) CHECK(conc__spin_again(&busy, 1));
  conc__spin_end(&busy, true);
  CHECK_EQ(failed, 0);
  conc__spin_begin(&busy, &failed, CONC__NEVER);
  CHECK(conc__spin_again(&busy, 1));
  conc__spin_end(&busy, false);
  CHECK_EQ(failed, 1);
  spin = 0;
}

TEST_MAIN
