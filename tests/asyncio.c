/* asyncio's expectations of locks and queues: coroutines of one loop, in the
   order in which they come, and cancelled at the same moment as woken.
   tests/tasks.c has those of tasks, groups and time limits.

   CPython 3.13's test_asyncio, and which test here does the same, by the first
   words of its name ("-": nothing to test in C):

   test_locks.py, repr and the like         -
   LockTests
     lock, lock_by_with_statement,
     release_not_acquired, release_no_waiters,
     context_manager                        sync.c
     acquire                                a_lock_is_had_in_order
     acquire_cancel, cancel_race            a_cancelled_waiter_does_not_hold_up
     cancel_release_race                    one_release_is_one_lock
     finished_waiter_cancelled              a_waiter_that_is_cancelled_while
   EventTests
     wait, wait_on_set, clear               sync.c
     wait_cancel, clear_with_waiters        an_event_wakes_those_who_wait
   ConditionTests
     wait, wait_for, notify, notify_all,
     notify_unacquired, wait_unacquired     sync.c
     wait_cancel, cancelled_error_wakeup    a_cancelled_wait_has_the_lock
     wait_cancel_contested,
     wait_cancel_after_notify,
     cancelled_error_re_aquire              a_notified_waiter_that_is_cancelled
     cancelled_wakeup, ..._relock           a_notify_is_not_lost
     (wait_for, notify_all)_unacquired,
     context_manager                        sync.c
     explicit_lock, ambiguous_loops         -
     timeout_in_block                       sync.c
   SemaphoreTests
     initial_value_zero, semaphore, value,
     release_not_acquired, ..._no_waiters   sync.c
     acquire                                a_semaphore_is_had_in_order
     acquire_cancel, ..._before_awoken,
     acquire_hang                           a_semaphore_passes_over_who_is
     acquire_no_hang                        a_semaphore_is_not_taken_by_who_is
     acquire_fifo_order, 2, 3, 4            a_semaphore_is_had_in_order; who
                                            comes first has it first, but a
                                            running task may come before one
                                            that is woken (differs from 2)
   BarrierTests                             sync.c
     filling_tasks_cancel_one               differs: a_barrier_is_broken_for
   test_queues.py
     empty, full, order, maxsize,
     (non)blocking_get, (non)blocking_put,
     get_with_putters, ...                  queue.c, core.c
     get_cancelled_race, cancelled_getters  a_cancelled_getter_takes_nothing
     get_with_waiting_putters,
     put_with_waiting_getters,
     why_are_(getters, putters)_waiting     a_queue_of_one_passes_everything
     get_cancel_drop_(one, many)            a_message_is_not_lost_with_a_getter
     put_cancel_drop, put_cancelled...,
     cancelled_put...                       a_cancelled_putter_puts_nothing
     float_maxsize                          -
     LifoQueue, PriorityQueue               - (queues keep the order)
     task_done..., join_empty_queue         queue.c (all_who_join)
     shutdown_empty, ..._nonempty           queue.c (closing_ends)
     shutdown_immediate...                  - (close, then get what is there)
   test_waitfor.py                          differs: conc_join with a timeout
                                            leaves the task alone, tasks.c;
                                            conc_timeout cancels, tasks.c
   test_tasks.py, current_task, names       each_coroutine_is_its_own_current;
                                            all else: tasks.c */
#include "test.h"

#include "../conc.h"

enum { MANY = 8 };

/* A coroutine that takes one of the things, and notes the order. */
typedef struct actor {
  conc_task task;
  int rc; /* of its wait */
  char got;
} actor;

static conc_lock lock;
static conc_event event;
static conc_cond cond;
static conc_sem sem;
static conc_queue *queue;
static actor actors[MANY];
static char order[64];
static size_t count;

static void note(char name) {
  order[count++] = name;
  order[count] = 0;
}

static void let_all_run(void) {
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_yield_now(), 0);
}

static void begin(void) {
  memset(&lock, 0, sizeof lock);
  memset(&event, 0, sizeof event);
  memset(&cond, 0, sizeof cond);
  memset(&sem, 0, sizeof sem);
  memset(actors, 0, sizeof actors);
  order[count = 0] = 0;
}

static conc_task *start(int i, conc_fn *fn) {
  actors[i].task.target = fn;
  actors[i].task.arg = &actors[i];
  CHECK_EQ(conc_coro_start(&actors[i].task), 0);
  return &actors[i].task;
}

/* What its wait returned. */
static int join(int i) {
  int rc = conc_join(&actors[i].task, 30);
  CHECK_EQ(rc, actors[i].rc == -ECANCELED ? -ECANCELED : 0);
  return actors[i].rc;
}

static char letter(const actor *a) { return (char)('A' + (a - actors)); }

static void in_a_loop(conc_fn *fn) {
  conc_task t = {0};
  t.target = fn;
  begin();
  CHECK_EQ(conc_run(&t), 0);
}

/* --- who runs ------------------------------------------------------------ */

static void *tell_name(void *arg) {
  actor *a = (actor *)arg;
  for (int i = 0; i < 3; i++) {
    CHECK(conc_current() == &a->task);
    note(conc_name(NULL)[5]); /* of "Task-2" */
    CHECK_EQ(i == 1 ? conc_sleep(1e-4) : conc_yield_now(), 0);
  }
  CHECK(conc_current() == &a->task);
  return arg;
}

static void *do_nothing(void *arg) { return arg; }

static void *interleave(void *arg) {
  conc_task *self = conc_current();
  CHECK_STR(conc_name(NULL), "Task-1");
  for (int i = 0; i < 2; i++) start(i, tell_name);
  actors[2].task.name = "other";
  CHECK_STR(conc_name(start(2, do_nothing)), "other");
  CHECK_STR(conc_name(&actors[1].task), "Task-3");
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(join(i), 0);
    CHECK(conc_current() == self);
  }
  CHECK(strncmp(order, "2323", 4) == 0 && strlen(order) == 6);
  return arg;
}

TEST(each_coroutine_is_its_own_current_task) { in_a_loop(interleave); }

/* --- locks --------------------------------------------------------------- */

static void *lock_it(void *arg) {
  actor *a = (actor *)arg;
  a->rc = conc_lock_acquire(&lock, CONC_FOREVER);
  if (a->rc != 0) return NULL;
  note(letter(a));
  a->rc = conc_event_wait(&event, CONC_FOREVER);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return NULL;
}

static void *locks_in_order(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, 0), 0);
  for (int i = 0; i < 3; i++) start(i, lock_it);
  let_all_run();
  CHECK_STR(order, "");
  conc_event_set(&event);
  CHECK_EQ(conc_lock_release(&lock), 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(join(i), 0);
  CHECK_STR(order, "ABC");
  CHECK(!conc_lock_locked(&lock));
  return arg;
}

TEST(a_lock_is_had_in_order) { in_a_loop(locks_in_order); }

static void *cancel_a_waiter(void *arg) {
  start(0, lock_it);
  let_all_run();
  start(1, lock_it);
  start(2, lock_it);
  let_all_run();
  CHECK_STR(order, "A");
  CHECK_EQ(conc_cancel(&actors[1].task), 0);
  CHECK_EQ(join(1), -ECANCELED);
  conc_event_set(&event);
  CHECK_EQ(conc_cancel(&actors[2].task), 0); /* while A is woken */
  CHECK_EQ(join(0), 0);
  join(2);
  CHECK(strcmp(order, "A") == 0 || strcmp(order, "AC") == 0);
  CHECK(!conc_lock_locked(&lock));
  return arg;
}

TEST(a_cancelled_waiter_does_not_hold_up_the_next) {
  in_a_loop(cancel_a_waiter);
}

static void *cancel_and_release(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, 0), 0);
  for (int i = 0; i < 3; i++) start(i, lock_it);
  let_all_run();
  CHECK_EQ(conc_cancel(&actors[0].task), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  CHECK_EQ(join(0), -ECANCELED); /* if not at the lock, then at the event */
  let_all_run();
  CHECK(strcmp(order, "B") == 0 || strcmp(order, "AB") == 0);
  CHECK(conc_is_alive(&actors[1].task)); /* it keeps it until the event */
  CHECK_EQ(conc_cancel(&actors[2].task), 0);
  CHECK_EQ(join(2), -ECANCELED);
  conc_event_set(&event);
  CHECK_EQ(join(1), 0);
  CHECK(!conc_lock_locked(&lock));
  return arg;
}

TEST(one_release_is_one_lock) { in_a_loop(cancel_and_release); }

static void *release_and_cancel(void *arg) {
  conc_event_set(&event);
  CHECK_EQ(conc_lock_acquire(&lock, 0), 0);
  start(0, lock_it);
  start(1, lock_it);
  let_all_run();
  CHECK_EQ(conc_lock_release(&lock), 0); /* wakes A, which has not run yet */
  CHECK_EQ(conc_cancel(&actors[0].task), 0);
  conc_join(&actors[0].task, 30); /* it has the lock or the cancellation */
  CHECK_EQ(join(1), 0);
  CHECK(strcmp(order, "B") == 0 || strcmp(order, "AB") == 0);
  CHECK(!conc_lock_locked(&lock));
  return arg;
}

TEST(a_waiter_that_is_cancelled_while_it_is_woken_does_not_keep_the_lock) {
  in_a_loop(release_and_cancel);
}

/* --- events and conditions ----------------------------------------------- */

static void *wait_for_event(void *arg) {
  actor *a = (actor *)arg;
  a->rc = conc_event_wait(&event, CONC_FOREVER);
  note(letter(a));
  return NULL;
}

static void *set_and_clear(void *arg) {
  for (int i = 0; i < 3; i++) start(i, wait_for_event);
  let_all_run();
  CHECK_EQ(conc_cancel(&actors[1].task), 0);
  CHECK_EQ(join(1), -ECANCELED);
  CHECK_EQ(conc_event_set(&event), 0);
  CHECK_EQ(conc_event_clear(&event), 0);
  CHECK_EQ(join(0), 0);
  CHECK_EQ(join(2), 0);
  CHECK_STR(order, "BAC");
  CHECK_EQ(conc_event_wait(&event, 0), -ETIMEDOUT);
  return arg;
}

TEST(an_event_wakes_those_who_wait_whatever_comes_next) {
  in_a_loop(set_and_clear);
}

static int state;

/* Takes what there is until there is -1. */
static void *consume(void *arg) {
  actor *a = (actor *)arg;
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  for (;;) {
    while (state == 0 && a->rc == 0)
      a->rc = conc_cond_wait(&cond, &lock, CONC_FOREVER);
    if (a->rc != 0 || state < 0) break;
    state--;
    note(letter(a));
  }
  CHECK_EQ(conc_lock_release(&lock), 0); /* it has it, however it ended */
  return NULL;
}

static void *cancel_a_wait(void *arg) {
  state = 0;
  start(0, consume);
  let_all_run();
  CHECK_EQ(conc_cancel(&actors[0].task), 0);
  CHECK_EQ(join(0), -ECANCELED);
  CHECK(!conc_lock_locked(&lock));
  return arg;
}

TEST(a_cancelled_wait_has_the_lock_when_it_returns) {
  in_a_loop(cancel_a_wait);
}

static void *cancel_a_notified(void *arg) {
  for (int late = 0; late < 2; late++) {
    begin();
    state = 0;
    start(0, consume);
    let_all_run();
    CHECK_EQ(conc_lock_acquire(&lock, 0), 0);
    state = -1;
    CHECK_EQ(conc_cond_notify(&cond, 1), 0);
    if (late) let_all_run(); /* now it waits for the lock */
    CHECK_EQ(conc_cancel(&actors[0].task), 0);
    let_all_run();
    CHECK(conc_is_alive(&actors[0].task)); /* never without the lock */
    CHECK_EQ(conc_lock_release(&lock), 0);
    join(0);
    CHECK(!conc_lock_locked(&lock));
  }
  return arg;
}

TEST(a_notified_waiter_that_is_cancelled_has_the_lock_all_the_same) {
  in_a_loop(cancel_a_notified);
}

static void *notify_and_cancel(void *arg) {
  for (int late = 0; late < 2; late++) {
    begin();
    state = 0;
    start(0, consume);
    start(1, consume);
    let_all_run();
    CHECK_EQ(conc_lock_acquire(&lock, 0), 0);
    state++;
    CHECK_EQ(conc_cond_notify(&cond, 1), 0);
    if (late) let_all_run();
    CHECK_EQ(conc_cancel(&actors[0].task), 0);
    CHECK_EQ(conc_lock_release(&lock), 0);
    for (int i = 0; i < 100 && state != 0; i++) conc_yield_now();
    CHECK_EQ(state, 0); /* somebody has it */
    CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
    state = -1;
    CHECK_EQ(conc_cond_notify_all(&cond), 0);
    CHECK_EQ(conc_lock_release(&lock), 0);
    join(0);
    CHECK_EQ(join(1), 0);
  }
  return arg;
}

TEST(a_notify_is_not_lost_with_who_is_cancelled) {
  in_a_loop(notify_and_cancel);
}

/* --- semaphores ---------------------------------------------------------- */

static void *acquire_it(void *arg) {
  actor *a = (actor *)arg;
  a->rc = conc_sem_acquire(&sem, CONC_FOREVER);
  if (a->rc == 0) note(letter(a));
  return NULL;
}

static void *semaphore_in_order(void *arg) {
  CHECK_EQ(conc_sem_release(&sem, 1), 0);
  for (int i = 0; i < 3; i++) start(i, acquire_it);
  let_all_run();
  CHECK_STR(order, "A");
  start(3, acquire_it);
  CHECK_EQ(conc_sem_release(&sem, 2), 0);
  let_all_run();
  CHECK_STR(order, "ABC");
  CHECK_EQ(conc_sem_release(&sem, 1), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(join(i), 0);
  CHECK_STR(order, "ABCD");
  return arg;
}

TEST(a_semaphore_is_had_in_order) { in_a_loop(semaphore_in_order); }

static void *pass_over(void *arg) {
  for (int i = 0; i < 4; i++) start(i, acquire_it);
  let_all_run();
  CHECK_EQ(conc_cancel(&actors[0].task), 0);
  CHECK_EQ(conc_cancel(&actors[1].task), 0);
  CHECK_EQ(join(0), -ECANCELED);
  CHECK_EQ(join(1), -ECANCELED);
  CHECK_EQ(conc_sem_release(&sem, 1), 0);
  let_all_run();
  CHECK_STR(order, "C");
  CHECK_EQ(conc_sem_value(&sem), 0);
  CHECK(conc_is_alive(&actors[3].task));
  CHECK_EQ(conc_sem_release(&sem, 1), 0);
  CHECK_EQ(join(3), 0);
  return arg;
}

TEST(a_semaphore_passes_over_who_is_cancelled) { in_a_loop(pass_over); }

static void *release_then_cancel(void *arg) {
  actor *a = (actor *)arg;
  a->rc = conc_sem_acquire(&sem, CONC_FOREVER);
  CHECK_EQ(conc_yield_now(), 0);
  CHECK_EQ(conc_sem_release(&sem, 1), 0);
  CHECK_EQ(conc_cancel(&actors[1].task), 0);
  return NULL;
}

static void *no_hang(void *arg) {
  CHECK_EQ(conc_sem_release(&sem, 1), 0);
  start(0, release_then_cancel);
  start(1, acquire_it);
  CHECK_EQ(join(0), 0);
  conc_join(&actors[1].task, 30);
  /* Either it was cancelled, or it has the one that there is. */
  CHECK_EQ(conc_sem_acquire(&sem, 0), actors[1].rc == 0 ? -ETIMEDOUT : 0);
  return arg;
}

TEST(a_semaphore_is_not_taken_by_who_is_cancelled) { in_a_loop(no_hang); }

/* --- queues -------------------------------------------------------------- */

static void *get_it(void *arg) {
  actor *a = (actor *)arg;
  ssize_t n = conc_get(queue, &a->got, 1, CONC_FOREVER);
  a->rc = n == 1 ? 0 : (int)n;
  if (n == 1) note(a->got);
  return NULL;
}

static void *put_it(void *arg) {
  actor *a = (actor *)arg;
  char name = letter(a);
  a->rc = conc_put(queue, &name, 1, CONC_FOREVER);
  return NULL;
}

static void with_queue(size_t capacity, conc_fn *fn) {
  conc_queue_opts opts = {0};
  opts.capacity = capacity;
  queue = conc_queue_new(&opts);
  in_a_loop(fn);
  conc_queue_free(queue);
}

static void *cancel_a_getter(void *arg) {
  start(0, get_it);
  start(1, get_it);
  let_all_run();
  CHECK_EQ(conc_cancel(&actors[0].task), 0);
  CHECK_EQ(join(0), -ECANCELED);
  CHECK_EQ(conc_put(queue, "a", 1, 0), 0);
  CHECK_EQ(join(1), 0);
  CHECK_STR(order, "a");
  return arg;
}

TEST(a_cancelled_getter_takes_nothing) { with_queue(0, cancel_a_getter); }

static void *put_and_cancel_getters(void *arg) {
  char c;
  for (int i = 0; i < 3; i++) start(i, get_it);
  let_all_run();
  CHECK_EQ(conc_put(queue, "1", 1, 0), 0);
  CHECK_EQ(conc_put(queue, "2", 1, 0), 0);
  CHECK_EQ(conc_cancel(&actors[0].task), 0); /* which is woken by now */
  conc_join(&actors[0].task, 30);
  for (int i = 1; i < 3; i++)
    if (actors[0].rc != 0) CHECK_EQ(join(i), 0);
  let_all_run();
  CHECK_STR(order, "12"); /* whoever got them */
  CHECK_EQ(conc_get(queue, &c, 1, 0), -ETIMEDOUT);
  if (actors[0].rc == 0) {
    CHECK_EQ(conc_cancel(&actors[2].task), 0);
    CHECK_EQ(join(2), -ECANCELED);
    CHECK_EQ(join(1), 0);
  }
  return arg;
}

TEST(a_message_is_not_lost_with_a_getter_that_is_cancelled) {
  with_queue(0, put_and_cancel_getters);
}

static void *cancel_a_putter(void *arg) {
  char c;
  for (int i = 0; i < 3; i++) start(i, put_it);
  let_all_run();
  CHECK(!conc_is_alive(&actors[0].task));
  CHECK_EQ(conc_cancel(&actors[1].task), 0);
  CHECK_EQ(join(1), -ECANCELED);
  CHECK_EQ(conc_get(queue, &c, 1, 0), 1);
  CHECK_EQ(c, 'A');
  CHECK_EQ(join(2), 0);
  CHECK_EQ(conc_get(queue, &c, 1, 0), 1);
  CHECK_EQ(c, 'C');
  /* Room first, and then the cancellation: it is there, or can be put. */
  CHECK_EQ(conc_put(queue, "x", 1, 0), 0);
  actors[1].rc = 1;
  start(1, put_it);
  let_all_run();
  CHECK_EQ(conc_get(queue, &c, 1, 0), 1);
  CHECK_EQ(c, 'x');
  CHECK_EQ(conc_cancel(&actors[1].task), 0);
  conc_join(&actors[1].task, 30);
  if (actors[1].rc != 0) CHECK_EQ(conc_put(queue, "B", 1, 0), 0);
  CHECK_EQ(conc_get(queue, &c, 1, 0), 1);
  CHECK_EQ(c, 'B');
  CHECK_EQ(conc_qsize(queue), 0);
  return arg;
}

TEST(a_cancelled_putter_puts_nothing) { with_queue(1, cancel_a_putter); }

static void *produce(void *arg) {
  for (char c = 'a'; c <= 'z'; c++)
    CHECK_EQ(conc_put(queue, &c, 1, CONC_FOREVER), 0);
  return arg;
}

static void *consume_all(void *arg) {
  char c;
  for (int i = 0; i < 26; i++) {
    CHECK_EQ(conc_get(queue, &c, 1, CONC_FOREVER), 1);
    note(c);
  }
  return arg;
}

static void *pass_everything(void *arg) {
  for (int first = 0; first < 2; first++) { /* who comes first */
    begin();
    start(0, first == 0 ? produce : consume_all);
    start(1, first == 0 ? consume_all : produce);
    CHECK_EQ(join(0), 0);
    CHECK_EQ(join(1), 0);
    CHECK_STR(order, "abcdefghijklmnopqrstuvwxyz");
  }
  return arg;
}

TEST(a_queue_of_one_passes_everything) { with_queue(1, pass_everything); }

TEST_MAIN
