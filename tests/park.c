/* What a wait is: wake-ups are never lost, a cancellation is delivered once,
 * deadlines, fairness, and what waiting costs. */
#include "core.h"
#include <math.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>

/* --- wake-ups, instruction by instruction ---

   A child process has a waiter and a waker. This process steps one of them
   through its call, stops it after k instructions, lets the other one do its
   whole call, or fall asleep in it, and then lets the first one go on. For
   all k, both must end. */

static struct shared {
  int prepare, go[2], prepared; /* the round that is asked for */
  int began[2], ended[2];       /* the round that each is in */
  int id[2];                    /* their thread ids */
  int result;                   /* of the waiter's call */
} *shared;

static conc_event event, gate;
static conc_lock lock;
static conc_cond cond;
static conc_queue *queue;
static conc_task waiter_task;
static int flag, ends[2];

/* What the two do; each says begin() where the interesting part begins. */
static void begin(int who) {
  int round = GET(shared->prepare);
  SET(shared->began[who], round);
}
static void prepare_nothing(void) {}

static int wait_event(void) {
  int rc;
  begin(0);
  rc = conc_event_wait(&event, CONC_FOREVER);
  conc_event_clear(&event);
  return rc;
}
static void wake_event(void) {
  begin(1);
  conc_event_set(&event);
}

static void prepare_lock(void) { conc_lock_acquire(&lock, CONC_FOREVER); }
static int wait_lock(void) {
  int rc;
  begin(0);
  rc = conc_lock_acquire(&lock, CONC_FOREVER);
  return rc != 0 ? rc : conc_lock_release(&lock);
}
static void wake_lock(void) {
  begin(1);
  conc_lock_release(&lock);
}

static int wait_cond(void) {
  int rc = conc_lock_acquire(&lock, CONC_FOREVER);
  begin(0);
  while (rc == 0 && !flag) rc = conc_cond_wait(&cond, &lock, CONC_FOREVER);
  flag = 0;
  conc_lock_release(&lock);
  return rc;
}
static void wake_cond(void) {
  begin(1);
  conc_lock_acquire(&lock, CONC_FOREVER);
  flag = 1;
  conc_lock_release(&lock);
  conc_cond_notify(&cond, 1);
}

static int wait_get(void) {
  char byte;
  begin(0);
  return (int)conc_get(queue, &byte, 1, CONC_FOREVER) - 1;
}
static void wake_put(void) {
  begin(1);
  conc_put(queue, "x", 1, CONC_FOREVER);
}

static void prepare_full(void) { conc_put(queue, "x", 1, 0); }
static int wait_put(void) {
  char byte;
  int rc;
  begin(0);
  rc = conc_put(queue, "y", 1, CONC_FOREVER);
  return rc != 0 ? rc : (int)conc_get(queue, &byte, 1, 0) - 1;
}
static void wake_get(void) {
  char byte;
  begin(1);
  conc_get(queue, &byte, 1, 0);
}

static void *coro_event(void *arg) {
  *(int *)arg = wait_event();
  return NULL;
}
static int wait_coro(void) {
  int rc = -1;
  run(coro_event, &rc);
  return rc;
}

static int wait_sleep(void) {
  begin(0);
  return conc_sleep(CONC_FOREVER) == -ECANCELED ? conc_yield_now() : -1;
}
static int wait_fd(void) {
  begin(0);
  if (conc_wait_fd(ends[0], CONC_READ, CONC_FOREVER) != -ECANCELED) return -1;
  return conc_yield_now();
}
static void *coro_fd(void *arg) {
  *(int *)arg = wait_fd();
  return NULL;
}
static conc_task coro_task; /* static: the waker may be inside conc_cancel */
static int wait_coro_fd(void) {
  int rc = -1;
  coro_task = task_of(coro_fd, &rc);
  conc_run(&coro_task);
  return rc;
}
static int wait_cancelled_get(void) {
  char byte;
  begin(0);
  if (conc_get(queue, &byte, 1, CONC_FOREVER) != -ECANCELED) return -1;
  return conc_yield_now();
}
static void wake_cancel(void) {
  begin(1);
  conc_cancel(&waiter_task);
}
static void wake_cancel_coro(void) {
  while (GET(shared->began[0]) != GET(shared->prepare)) sched_yield();
  begin(1);
  conc_cancel(&coro_task);
}

typedef struct scenario {
  void (*prepare)(void);
  int (*wait)(void);
  void (*wake)(void);
} scenario;

static void *waiter_main(void *arg) {
  const scenario *s = (const scenario *)arg;
  SET(shared->id[0], thread_id());
  for (int round = 1;; round++) {
    while (GET(shared->go[0]) < round) {
    }
    SET(shared->result, s->wait());
    SET(shared->ended[0], round);
  }
  return NULL;
}
static void *waker_main(void *arg) {
  const scenario *s = (const scenario *)arg;
  SET(shared->id[1], thread_id());
  for (int round = 1;; round++) {
    while (GET(shared->prepare) < round) {
    }
    s->prepare();
    SET(shared->prepared, round);
    while (GET(shared->go[1]) < round) {
    }
    s->wake();
    SET(shared->ended[1], round);
  }
  return NULL;
}
/* The process that is looked at. */
static void subject(scenario *s) {
  const conc_queue_opts one = {1, 0, NULL};
  conc_task waker;
  queue = conc_queue_new(&one);
  if (!queue || pipe(ends) != 0) _exit(1);
  thread(&waiter_task, waiter_main, s);
  thread(&waker, waker_main, s);
  pause();
  _exit(0);
}

static int child;
static double give_up;

static void check_time(const char *what, int k) {
  if (test_now() > give_up) TEST_FAIL("%s, stopped at instruction %d", what, k);
}
/* Lets a stopped thread do one instruction. 0 if that put it to sleep. */
static int step(int id) {
  int status, asleep = 0;
  if (ptrace(PTRACE_SINGLESTEP, id, 0, 0) != 0) TEST_FAIL("cannot step");
  for (int tries = 0;; tries++) {
    int got = waitpid(id, &status, __WALL | WNOHANG);
    if (got == id && WIFSTOPPED(status)) return 1;
    if (got != 0) TEST_FAIL("the child died: %x", status);
    if (tries < 50) continue;
    /* Twice, since a step can be slow. */
    asleep = thread_state(child, id) == 'S' ? asleep + 1 : 0;
    if (asleep > 2) return 0;
    check_time("a step does not end", tries);
  }
}
/* Stops the running thread. */
static void stop(int id) {
  int status;
  if (ptrace(PTRACE_INTERRUPT, id, 0, 0) != 0 ||
      waitpid(id, &status, __WALL) != id || !WIFSTOPPED(status))
    TEST_FAIL("cannot stop the thread");
}

/* One round: `who` is stopped after k instructions. Returns whether it had
   not ended by then. */
static int round_of(int who, int k, int round, int may_fall_asleep) {
  int other = !who, id = shared->id[who], in_time = 1, stopped = 1, i;
  give_up = test_now() + 10 * test_slow();
  SET(shared->prepare, round);
  while (GET(shared->prepared) < round) check_time("not prepared", k);
  stop(id); /* it spins on its go */
  SET(shared->go[who], round);
  while (GET(shared->began[who]) < round && stopped) stopped = step(id);
  for (i = 0; i < k && stopped; i++) {
    if (GET(shared->ended[who]) == round) break;
    stopped = step(id);
  }
  in_time = GET(shared->ended[who]) < round;
  if (!stopped && !may_fall_asleep) TEST_FAIL("the waker sleeps at %d", i);
  SET(shared->go[other], round);
  for (int asleep = 0; asleep < 3 && GET(shared->ended[other]) < round;) {
    int now = GET(shared->began[other]) == round &&
              thread_state(child, shared->id[other]) == 'S';
    asleep = now ? asleep + 1 : 0;
    check_time("the other one neither ends nor sleeps", i);
  }
  if (!stopped) { /* it sleeps in its step, or has been woken in it */
    int status;
    while (waitpid(id, &status, __WALL | WNOHANG) == 0)
      check_time("the wake-up of a sleeper was lost", i);
  }
  if (ptrace(PTRACE_CONT, id, 0, 0) != 0) TEST_FAIL("cannot continue");
  while (GET(shared->ended[0]) < round || GET(shared->ended[1]) < round)
    check_time("a wake-up was lost", i);
  if (GET(shared->result) != 0)
    TEST_FAIL("the wait returned %d at %d", shared->result, i);
  return in_time;
}

/* All k for one scenario, in an order that covers the range evenly as far as
   the time goes. */
static void step_through(void (*prepare)(void), int (*wait)(void),
                         void (*wake)(void)) {
  scenario s = {prepare, wait, wake};
  int failed = 0;
  if (has_tsan()) SKIP("ThreadSanitizer cannot be stepped through");
  if (has_valgrind()) SKIP("valgrind cannot be stepped through");
  shared = (struct shared *)mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  child = fork();
  if (child == 0) subject(&s);
  UNTIL(GET(shared->id[0]) && GET(shared->id[1]));
  for (int who = 0; who < 2; who++)
    failed |= ptrace(PTRACE_SEIZE, shared->id[who], 0, 0) != 0;
  if (!failed) {
    static int last = 0;
    int round = 0, n, k;
    for (int who = 0; who < 2; who++) {
      double end = test_now() + 0.35 * test_slow();
      for (n = 32; round_of(who, n, ++round, who == 0); n *= 2) {
        if (n > 1 << 20) TEST_FAIL("it never ends");
      }
      k = (int)(test_random() % (unsigned)n);
      for (last = 0; last < n && test_now() < end; last++) {
        round_of(who, k, ++round, who == 0);
        k = (k + (n * 5 / 8 | 1)) % n; /* odd, and n a power of two: all */
      }
    }
  }
  kill(child, SIGKILL);
  while (waitpid(-1, NULL, __WALL) > 0) {
  }
  munmap(shared, sizeof *shared);
  if (failed) SKIP("ptrace is not permitted");
}

TEST(an_event_is_never_missed_wherever_its_setter_or_waiter_stops) {
  step_through(prepare_nothing, wait_event, wake_event);
}
TEST(a_lock_is_never_missed_wherever_its_releaser_or_waiter_stops) {
  step_through(prepare_lock, wait_lock, wake_lock);
}
TEST(a_notify_is_never_missed_wherever_either_side_stops) {
  step_through(prepare_nothing, wait_cond, wake_cond);
}
TEST(a_message_is_never_missed_wherever_its_putter_or_getter_stops) {
  step_through(prepare_nothing, wait_get, wake_put);
}
TEST(room_in_a_queue_is_never_missed_wherever_either_side_stops) {
  step_through(prepare_full, wait_put, wake_get);
}
TEST(a_coroutine_is_woken_wherever_the_thread_or_its_loop_stops) {
  step_through(prepare_nothing, wait_coro, wake_event);
}
TEST(a_sleeping_thread_is_cancelled_once_wherever_either_side_stops) {
  step_through(prepare_nothing, wait_sleep, wake_cancel);
}
TEST(a_polling_thread_is_cancelled_once_wherever_either_side_stops) {
  step_through(prepare_nothing, wait_fd, wake_cancel);
}
TEST(a_getting_thread_is_cancelled_once_wherever_either_side_stops) {
  step_through(prepare_nothing, wait_cancelled_get, wake_cancel);
}
