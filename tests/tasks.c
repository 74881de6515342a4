/* Several tasks at once, of both kinds: wait, gather, as_completed, time
   limits, shields, groups; and who is told of a cancellation.

   What CPython 3.13 tests in test_asyncio, and where it is tested here ("-":
   nothing to test in C, as there are no exceptions, messages, tracebacks,
   futures, context variables, reprs or loops to be given):

   test_tasks.py, Base...Tests
     task_basics, current_task...           asyncio.c, each_coroutine_is
     task_set_name..., bare_create_named... asyncio.c, the same
     cancel, cancel_task_catching, cancel_yield, sleep_cancel,
     task_cancel_(sleeping_task, waiter_future)
                                            a_cancelled_task_ends_so; core.c,
                                            every_wait_can_be_cancelled_once
     cancel_task_ignoring, uncancel_basic   a_swallowed_cancel_stays_swallowed
     uncancel_structured_blocks             a_cancel_is_not_a_time_limit
     uncancel_resets_must_cancel            differs: what is pending stays
     cancelling, ...level_preserved         - (there is no count)
     cancel_current_task                    a_task_may_cancel_itself
     cancel_at_end                          differs: a_cancel_that_comes_too
     cancel_inner_future, yield_future_passes_cancel,
     cancel_both_task_and_inner_future      a_join_of_a_cancelled_task
     cancel_awaited_task                    a_cancelled_join_leaves_its_task
     cancel_with_..._before_starting_task   core.c
     baseexception_during_cancel            any_clean_up_may_be_cancelled
     task_awaits_on_itself, wait_errors, wait_invalid_args,
     as_completed_invalid_args              wait_refuses_what_cannot_be_awaited
     (wait, as_completed)_duplicate_coroutines,
     duplicate_coroutines (gather)          differs: who_is_named_twice_counts
     wait, wait_really_done, wait_concurrent_complete,
     wait_with_iterator..., wait_generator  wait_tells_the_order_of_finish
     wait_first_completed                   wait_for_the_first
     wait_first_exception..., wait_with_exception   wait_for_the_first_failure
     wait_with_timeout                      wait_runs_out
     yield_wait_does_not_shield_cancel      wait_is_cancelled
     as_completed, ..._reverse_wait, ..._concurrent,
     ..._same_tasks_in_as_out               completed_tells_the_order_of_finish
     as_completed_with_(unused_)timeout,
     ..._resume_iterator                    completed_runs_out_and_goes_on
     sleep, sleep_zero                      core.c, loop.c
     sleep_when_delay_is_nan                differs: a_sleep_of_no_number
     shield_result, ..._cancel_outer, ..._effect,
     ..._cancel_inner, ..._exception        a_shield_holds_back_a_cancel
     shield_gather, gather_shield           a_shielded_gather_goes_on
     cancel_gather_1, cancel_gather_2,
     cancellation_broadcast                 gather_is_cancelled
     success, exception_marking (gather)    gather_keeps_the_order
     one_exception, one_cancellation        gather_ends_at_the_first_failure
     return_exceptions,
     result_exception_(success, one_cancellation)   failures_stay_in_place
     constructor_empty_sequence...          wait_refuses... (n = 0)
     log_destroyed_pending_task             core.c, what_is_left_when_the_loop
     (current_task, ...)_no_running_loop    core.c, coroutines_run_in_order
     context_1 to 6, get_context            thread.c (conc_local)
     run_coroutine_threadsafe...            - (a coroutine belongs to the
                                            thread that starts it)
     all others                             -
   test_taskgroups.py
     01, 02, 25                             a_group_waits_for_all
     03                                     a_cancelled_member_is_no_failure
     04, 07, cancel_children_on_child_error a_failure_cancels_the_group
     08                                     differs: a_cancelled_leave; what
                                            else failed its members tell
     09, 10 (the body fails)                no_time_cancels_the_group
     11, 12, 13, 14, nested_groups_both_cancelled   nested_groups_end_together
     15, 16, cancellation                   a_cancelled_leave_cancels_the_group
     17, 18, 19                             (the body is not cancelled: what it
                                            starts then is -ECANCELED)
     20, 20a, 21a, 22, 23, 24               the_first_failure_is_told
     error_and_cancel                       a_cancel_is_not_lost_to_a_failure
     no_create_task_after_failure, finished a_group_that_fails_takes_no_more
     coro_closed_when_tg_closed             a_start_that_fails_leaves_the_group
     all others                             -
   test_timeouts.py
     basic, at_basic, zero, in_the_past,
     outer_task_is_not_cancelled            a_time_limit_ends_a_wait
     nested_timeouts, ..._concurrent, ..._loop_busy   time_limits_nest
     waiter_cancelled, foreign_cancel...,
     cancel_in_timeout_after_cancellation   a_cancel_is_not_a_time_limit
     timeout_not_called, (at_)disabled, timeout_zero_sleep_zero,
     timeout_in_the_past_sleep_zero         no_wait_no_limit
     timeout_after_cancellation, nested_timeout_in_finally   clean_up_may_wait
     timeout_taskgroup                      a_time_limit_ends_a_group
     already_entered, double_enter, not_entered, finished
                                            scopes_end_in_reverse_order
     reschedule                             - (end it, and begin another)
     all others                             - */
#include "inside.h"
#include "tasks.h"

#include <sys/mman.h>
#include <sys/socket.h>

static void *number(ssize_t n) { return (void *)(intptr_t)n; }

/* --- tasks of both kinds --- */

static unsigned kinds; /* on a loop every other task is a coroutine */

static int start_any(conc_task *t) {
  if (conc__this.loop != NULL && kinds++ % 2 == 0) return conc_coro_start(t);
  return conc_thread_start(t);
}
static void begin(conc_task *t, conc_fn *target, void *arg) {
  memset(t, 0, sizeof *t);
  t->target = target;
  t->arg = arg;
  CHECK_EQ(start_any(t), 0);
}

/* Every test runs in the main thread, in coroutines, and in a thread. */
static void *in_a_task(void *arg) {
  conc_fn *target;
  memcpy(&target, arg, sizeof target);
  return target(NULL);
}
static void everywhere(conc_fn *target) {
  conc_task t;
  target(NULL);
  for (int i = 0; i < 2; i++) {
    memset(&t, 0, sizeof t);
    t.target = in_a_task;
    t.arg = &target;
    kinds = (unsigned)i;
    CHECK_EQ(conc_run(&t), 0);
  }
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}

/* To begin a thread takes Valgrind 20 ms. */
static int rounds(int n) { return test_wrapped("valgrind") ? n / 10 : n; }

#define TEST_EVERYWHERE(name)                                                 \
  static void *name##_body(void *arg);                                        \
  TEST(name) { everywhere(name##_body); }                                     \
  static void *name##_body(void *arg)

/* Waits to be let go, or for a cancellation. */
typedef struct job {
  conc_task task;
  conc_event go;
  int status;      /* to end with */
  double clean_up; /* seconds */
  bool swallow;
  bool begun, cancelled, cleaned;
} job;

static void *job_main(void *arg) {
  job *j = (job *)arg;
  int rc;
  __atomic_store_n(&j->begun, true, __ATOMIC_RELEASE);
  rc = conc_event_wait(&j->go, CONC_FOREVER);
  if (rc == -ECANCELED) {
    j->cancelled = true;
    if (j->clean_up > 0) CHECK_EQ(conc_sleep(j->clean_up), 0);
    j->cleaned = true;
    if (j->swallow) CHECK_EQ(conc_set_status(0), 0);
  } else {
    CHECK_EQ(rc, 0);
  }
  if (j->status != 0) CHECK_EQ(conc_set_status(j->status), 0);
  return j;
}
static void await_begin(job *j) {
  while (!__atomic_load_n(&j->begun, __ATOMIC_ACQUIRE))
    if (conc__this.loop == NULL) sched_yield();
    else CHECK_EQ(conc_yield_now(), 0);
}
/* n jobs that all wait; and pointers to their tasks. */
static job *begin_jobs(size_t n, conc_task **tasks) {
  job *jobs = (job *)calloc(n + 1, sizeof *jobs);
  for (size_t i = 0; i < n; i++) {
    begin(&jobs[i].task, job_main, &jobs[i]);
    if (tasks) tasks[i] = &jobs[i].task;
  }
  for (size_t i = 0; i < n; i++) await_begin(&jobs[i]);
  return jobs;
}
static void finish(job *j) {
  conc_event_set(&j->go);
  CHECK_EQ(conc_join(&j->task, CONC_FOREVER), j->status);
}
static void end_jobs(job *jobs, size_t n) {
  for (size_t i = 0; i < n; i++) {
    conc_event_set(&jobs[i].go);
    conc_join(&jobs[i].task, CONC_FOREVER);
  }
  free(jobs);
}

/* Lets jobs go in an order of its own, each after the end of the last. */
typedef struct director {
  conc_task task;
  job *jobs;
  size_t n, order[40];
} director;
static void *direct(void *arg) {
  director *d = (director *)arg;
  for (size_t i = 0; i < d->n; i++) finish(&d->jobs[d->order[i]]);
  return NULL;
}
static void shuffle(size_t *order, size_t n) {
  for (size_t i = 0; i < n; i++) {
    size_t j = test_random() % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
}

static void await_park(conc_task *t) {
  conc__actor *actor;
  while ((actor = CONC__LOAD(&t->actor)) == NULL ||
         !(CONC__LOAD(&actor->word) & CONC__PARKED))
    if (conc__this.loop == NULL) sched_yield();
    else CHECK_EQ(conc_yield_now(), 0);
}

/* Cancels a task once it waits for something other than a job's event. */
typedef struct assassin {
  conc_task task;
  conc_task *victim;
  conc_event *done; /* to wait for before, or NULL */
} assassin;
static void *assassinate(void *arg) {
  assassin *a = (assassin *)arg;
  if (a->done) CHECK_EQ(conc_event_wait(a->done, CONC_FOREVER), 0);
  await_park(a->victim);
  CHECK_EQ(conc_cancel(a->victim), 0);
  return NULL;
}
static void hire(assassin *a) {
  memset(a, 0, sizeof *a);
  a->victim = conc_current();
  begin(&a->task, assassinate, a);
}
/* The caller was cancelled, and was meant to be. */
static void forgive(assassin *a) {
  CHECK(conc_current()->was_cancelled);
  CHECK_EQ(conc_set_status(0), 0);
  CHECK(!conc_current()->was_cancelled);
  CHECK_EQ(conc_join(&a->task, CONC_FOREVER), 0);
}

/* --- wait --- */

TEST_EVERYWHERE(wait_tells_the_order_of_finish) {
  for (int round = 0; round < rounds(30); round++) {
    conc_task *tasks[40];
    director d;
    memset(&d, 0, sizeof d);
    d.n = 1 + test_random() % 30;
    d.jobs = begin_jobs(d.n, tasks);
    shuffle(d.order, d.n);
    begin(&d.task, direct, &d);
    CHECK_EQ(conc_wait(tasks, d.n, CONC_ALL, CONC_FOREVER), d.n);
    for (size_t i = 0; i < d.n; i++) {
      /* Those that were first may have ended before the wait. */
      CHECK(!conc_is_alive(tasks[i]));
      CHECK(conc_result(tasks[i]) == tasks[i]);
    }
    CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    free(d.jobs);
  }
  return arg;
}

/* The same in steps, so that each ends during the wait: exact order. */
TEST_EVERYWHERE(wait_for_the_first) {
  for (int round = 0; round < rounds(20); round++) {
    conc_task *tasks[20];
    size_t n = 1 + test_random() % 20, order[20];
    job *jobs = begin_jobs(n, tasks);
    shuffle(order, n);
    for (size_t i = 0; i < n; i++) {
      conc_task *next = &jobs[order[i]].task;
      conc_task *before[20];
      size_t k = i;
      director d;
      memset(&d, 0, sizeof d);
      d.jobs = jobs;
      d.n = 1;
      d.order[0] = order[i];
      memcpy(before, tasks, sizeof before);
      CHECK_EQ(conc_wait(tasks + i, n - i, CONC_FIRST, 0), 0);
      CHECK(memcmp(before, tasks, n * sizeof *tasks) == 0);
      begin(&d.task, direct, &d);
      CHECK_EQ(conc_wait(tasks + i, n - i, CONC_FIRST, CONC_FOREVER), 1);
      CHECK(tasks[i] == next); /* then the others as they were */
      for (size_t j = i; j < n; j++)
        if (before[j] != next) CHECK(tasks[++k] == before[j]);
      CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    }
    free(jobs);
  }
  return arg;
}

/* All at once from as many threads: none is lost, none is told twice. */
TEST_EVERYWHERE(wait_counts_each_once) {
  for (int round = 0; round < rounds(100); round++) {
    conc_task *tasks[6];
    job *jobs = begin_jobs(6, tasks);
    size_t done = 0;
    for (int i = 0; i < 6; i++) conc_event_set(&jobs[i].go);
    while (done < 6) {
      double timeout = round % 3 == 0 ? CONC_FOREVER : 1e-5 * (round % 10);
      int until = round % 2 == 0 ? CONC_FIRST : CONC_ALL;
      ssize_t n = conc_wait(tasks + done, 6 - done, until, timeout);
      CHECK(n >= 0 && (size_t)n + done <= 6);
      CHECK(n > 0 || timeout < 1);
      for (ssize_t i = 0; i < n; i++) {
        CHECK(conc_result(tasks[done]) == tasks[done]);
        memset(tasks[done], 0, sizeof(conc_task)); /* freed, as it were */
        for (size_t k = 0; k < done; k++) CHECK(tasks[k] != tasks[done]);
        done++;
      }
      if (n == 0 && conc__this.loop != NULL) conc_yield_now();
    }
    free(jobs);
  }
  return arg;
}

TEST_EVERYWHERE(wait_for_the_first_failure) {
  conc_task *tasks[12];
  director d;
  memset(&d, 0, sizeof d);
  d.jobs = begin_jobs(12, tasks);
  d.jobs[5].status = -EIO;
  d.n = 3;
  d.order[0] = 9, d.order[1] = 2, d.order[2] = 5;
  begin(&d.task, direct, &d);
  CHECK_EQ(conc_wait(tasks, 12, CONC_FIRST_FAILURE, CONC_FOREVER), 3);
  CHECK(tasks[2] == &d.jobs[5].task || tasks[1] == &d.jobs[5].task ||
        tasks[0] == &d.jobs[5].task);
  CHECK_EQ(conc_join(&d.jobs[5].task, 0), -EIO);
  /* One that has failed already; and none that does. */
  CHECK_EQ(conc_wait(tasks, 12, CONC_FIRST_FAILURE, CONC_FOREVER), 3);
  CHECK_EQ(conc_wait(tasks + 3, 9, CONC_FIRST_FAILURE, 1e-3), 0);
  for (int i = 0; i < 12; i++) conc_event_set(&d.jobs[i].go);
  CHECK_EQ(conc_wait(tasks + 3, 9, CONC_FIRST_FAILURE, CONC_FOREVER), 9);
  CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
  end_jobs(d.jobs, 12);
  return arg;
}

TEST_EVERYWHERE(wait_runs_out) {
  conc_task *tasks[10];
  job *jobs = begin_jobs(10, tasks);
  double start = conc_now();
  CHECK_EQ(conc_wait(tasks, 10, CONC_ALL, 0.01), 0);
  CHECK(conc_now() - start >= 0.01);
  finish(&jobs[7]);
  finish(&jobs[3]); /* both before the call: in the order given */
  CHECK_EQ(conc_wait(tasks, 10, CONC_ALL, 0.01), 2);
  CHECK(tasks[0] == &jobs[3].task && tasks[1] == &jobs[7].task);
  CHECK(tasks[2] == &jobs[0].task && tasks[9] == &jobs[9].task);
  CHECK_EQ(conc_wait(tasks, 10, CONC_ALL, 0), 2);
  CHECK_EQ(conc_wait(tasks, 10, CONC_FIRST, 0), 2);
  end_jobs(jobs, 10);
  return arg;
}

TEST_EVERYWHERE(wait_is_cancelled) {
  for (int until = CONC_FIRST; until <= CONC_ALL; until++) {
    conc_task *tasks[10];
    job *jobs = begin_jobs(10, tasks);
    assassin a;
    finish(&jobs[4]);
    hire(&a);
    CHECK_EQ(conc_wait(tasks + (until == CONC_FIRST ? 5 : 0),
                       until == CONC_FIRST ? 5 : 10, until, CONC_FOREVER),
             -ECANCELED);
    if (until != CONC_FIRST) CHECK(tasks[0] == &jobs[4].task);
    forgive(&a);
    for (int i = 0; i < 10; i++) CHECK(!jobs[i].cancelled);
    end_jobs(jobs, 10);
  }
  return arg;
}

/* Nine jobs that wait and one more task, which was never started, or is the
   caller; then no memory. Each call fails before it has waited for, or
   cancelled, any of the nine. */
TEST_EVERYWHERE(wait_refuses_what_cannot_be_awaited) {
  conc_task *tasks[10], fresh;
  conc_completed c;
  job *jobs = begin_jobs(9, tasks);
  memset(&fresh, 0, sizeof fresh);
  CHECK_EQ(conc_wait(tasks, 0, CONC_ALL, CONC_FOREVER), 0);
  CHECK_EQ(conc_gather(tasks, 0, CONC_FOREVER), 0);
  CHECK_EQ(conc_wait(tasks, 9, CONC_FIRST - 1, 0), -EINVAL);
  CHECK_EQ(conc_wait(tasks, 9, CONC_ALL + 1, 0), -EINVAL);
  for (int i = 0; i < 2; i++) {
    int error = i == 0 ? -EINVAL : -EDEADLK;
    tasks[9] = i == 0 ? &fresh : conc_current();
    if (!conc_current()->kind->joinable) error = -EINVAL;
    CHECK_EQ(conc_wait(tasks, 10, CONC_FIRST, CONC_FOREVER), error);
    CHECK_EQ(conc_gather(tasks, 10, CONC_FOREVER), error);
    CHECK_EQ(conc_as_completed(&c, tasks, 10, CONC_FOREVER), error);
  }
  test_fail_at = 1;
  CHECK_EQ(conc_wait(tasks, 9, CONC_FIRST, CONC_FOREVER), -ENOMEM);
  test_fail_at = 1;
  CHECK_EQ(conc_gather(tasks, 9, CONC_FOREVER), -ENOMEM);
  test_fail_at = 1;
  CHECK_EQ(conc_as_completed(&c, tasks, 9, CONC_FOREVER), -ENOMEM);
  for (int i = 0; i < 9; i++) CHECK(!jobs[i].cancelled);
  tasks[1] = tasks[0]; /* twice the same */
  conc_event_set(&jobs[0].go);
  CHECK_EQ(conc_wait(tasks, 2, CONC_ALL, CONC_FOREVER), 2);
  end_jobs(jobs, 9);
  return arg;
}

TEST_EVERYWHERE(who_is_named_twice_counts_twice) {
  conc_task *tasks[3], *t;
  conc_completed c;
  job *jobs = begin_jobs(2, tasks);
  tasks[2] = tasks[0];
  CHECK_EQ(conc_as_completed(&c, tasks, 3, CONC_FOREVER), 0);
  finish(&jobs[0]);
  CHECK_EQ(conc_wait(tasks, 3, CONC_FIRST, CONC_FOREVER), 2);
  CHECK(tasks[0] == &jobs[0].task && tasks[1] == &jobs[0].task);
  CHECK(tasks[2] == &jobs[1].task);
  finish(&jobs[1]);
  CHECK_EQ(conc_gather(tasks, 3, CONC_FOREVER), 0);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_completed_next(&c, &t), 0);
    CHECK(t == &jobs[i == 2].task);
  }
  CHECK_EQ(conc_completed_next(&c, &t), -EPIPE);
  free(jobs);
  return arg;
}

/* As gather's return_exceptions. */
TEST_EVERYWHERE(failures_stay_in_place) {
  static const int ends[] = {0, -EIO, 0, -ENOENT, -ECANCELED};
  conc_task *tasks[5];
  director d;
  memset(&d, 0, sizeof d);
  d.jobs = begin_jobs(5, tasks);
  d.n = 4;
  d.order[0] = 3, d.order[1] = 0, d.order[2] = 1, d.order[3] = 2;
  for (int i = 0; i < 4; i++) d.jobs[i].status = ends[i];
  begin(&d.task, direct, &d);
  CHECK_EQ(conc_cancel(tasks[4]), 0);
  CHECK_EQ(conc_wait(tasks, 5, CONC_ALL, CONC_FOREVER), 5);
  CHECK(!conc_current()->was_cancelled);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(conc_join(&d.jobs[i].task, 0), ends[i]);
    CHECK(conc_result(&d.jobs[i].task) == &d.jobs[i]);
  }
  CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
  free(d.jobs);
  return arg;
}

/* --- gather --- */

TEST_EVERYWHERE(gather_keeps_the_order) {
  for (int round = 0; round < rounds(20); round++) {
    conc_task *tasks[40];
    director d;
    memset(&d, 0, sizeof d);
    d.n = test_random() % 30;
    d.jobs = begin_jobs(d.n, tasks);
    shuffle(d.order, d.n);
    begin(&d.task, direct, &d);
    CHECK_EQ(conc_gather(tasks, d.n, CONC_FOREVER), 0);
    for (size_t i = 0; i < d.n; i++)
      CHECK(conc_result(tasks[i]) == &d.jobs[i]);
    CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    free(d.jobs);
  }
  return arg;
}

/* All but those that have finished were cancelled, and have cleaned up. */
static void check_cancelled(job *jobs, size_t n) {
  for (size_t i = 0; i < n; i++) {
    CHECK(!conc_is_alive(&jobs[i].task));
    if (conc_event_is_set(&jobs[i].go)) continue;
    CHECK(jobs[i].cancelled && jobs[i].cleaned);
    CHECK_EQ(conc_join(&jobs[i].task, 0), jobs[i].swallow ? 0 : -ECANCELED);
  }
}

TEST_EVERYWHERE(gather_ends_at_the_first_failure) {
  for (size_t n = 3; n < 20; n += 8) {
    conc_task *tasks[20];
    director d;
    memset(&d, 0, sizeof d);
    d.jobs = begin_jobs(n, tasks);
    for (size_t i = 0; i < n; i++) d.jobs[i].clean_up = 2e-3;
    d.jobs[0].swallow = true;
    d.jobs[2].status = -EIO;
    d.n = 2;
    d.order[0] = 1, d.order[1] = 2;
    begin(&d.task, direct, &d);
    CHECK_EQ(conc_gather(tasks, n, CONC_FOREVER), -EIO);
    check_cancelled(d.jobs, n);
    CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    CHECK_EQ(conc_gather(tasks + 1, n - 1, CONC_FOREVER), -EIO);
    free(d.jobs);
    d.jobs = begin_jobs(n, tasks); /* one is cancelled */
    CHECK_EQ(conc_cancel(tasks[1]), 0);
    CHECK_EQ(conc_gather(tasks, n, CONC_FOREVER), -ECANCELED);
    CHECK(!conc_current()->was_cancelled);
    check_cancelled(d.jobs, n);
    free(d.jobs);
  }
  return arg;
}

TEST_EVERYWHERE(gather_runs_out) {
  conc_task *tasks[10];
  job *jobs = begin_jobs(10, tasks);
  double start = conc_now();
  jobs[3].clean_up = 0.02;
  finish(&jobs[5]);
  CHECK_EQ(conc_gather(tasks, 10, 0.01), -ETIMEDOUT);
  CHECK(conc_now() - start >= 0.03);
  check_cancelled(jobs, 10);
  free(jobs);
  return arg;
}

/* The caller of gather is cancelled: all ten jobs are, and have cleaned up
   when it returns. A second cancellation, during that, is kept for its next
   wait. */
TEST_EVERYWHERE(gather_is_cancelled) {
  conc_task *tasks[10];
  job *jobs = begin_jobs(10, tasks);
  assassin a, b;
  jobs[3].clean_up = 0.02;
  hire(&a);
  CHECK_EQ(conc_gather(tasks, 10, CONC_FOREVER), -ECANCELED);
  check_cancelled(jobs, 10);
  forgive(&a);
  free(jobs);
  /* Once more while it waits for the clean-up: that is for the next wait. */
  jobs = begin_jobs(10, tasks);
  jobs[3].clean_up = 0.1;
  memset(&b, 0, sizeof b);
  b.victim = conc_current();
  b.done = &jobs[10].go;
  begin(&b.task, assassinate, &b);
  hire(&a);
  conc_event_set(&jobs[10].go);
  CHECK_EQ(conc_gather(tasks, 10, CONC_FOREVER), -ECANCELED);
  check_cancelled(jobs, 10);
  if (CONC__LOAD(&conc__self()->word) & CONC__POKED)
    CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_set_status(0), 0);
  for (int i = 0; i < 2; i++) {
    int rc = conc_join(i == 0 ? &a.task : &b.task, CONC_FOREVER);
    if (rc == -ECANCELED) /* it came as late as this */
      rc = conc_join(i == 0 ? &a.task : &b.task, CONC_FOREVER);
    CHECK_EQ(rc, 0);
  }
  CHECK_EQ(conc_set_status(0), 0);
  free(jobs);
  return arg;
}

/* --- as completed --- */

TEST_EVERYWHERE(completed_tells_the_order_of_finish) {
  for (int round = 0; round < rounds(30); round++) {
    conc_task *tasks[40], *t;
    conc_completed c;
    director d;
    size_t i;
    memset(&d, 0, sizeof d);
    d.n = test_random() % 30;
    d.jobs = begin_jobs(d.n, tasks);
    shuffle(d.order, d.n);
    CHECK_EQ(conc_as_completed(&c, tasks, d.n, CONC_FOREVER), 0);
    memset(tasks, 0, sizeof tasks);
    begin(&d.task, direct, &d);
    for (i = 0; i < d.n; i++) {
      CHECK_EQ(conc_completed_next(&c, &t), 0);
      CHECK(t == &d.jobs[d.order[i]].task);
      CHECK(conc_result(t) == t);
    }
    CHECK_EQ(conc_completed_next(&c, &t), -EPIPE);
    CHECK_EQ(conc_completed_next(&c, &t), -EPIPE);
    conc_completed_end(&c);
    CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    free(d.jobs);
  }
  return arg;
}

TEST_EVERYWHERE(what_has_completed_may_be_freed) {
  for (int round = 0; round < rounds(100); round++) {
    conc_task *tasks[5], *t;
    conc_completed c;
    for (int i = 0; i < 5; i++) {
      job *j = (job *)calloc(1, sizeof *j);
      j->go.word = CONC__SET;
      begin(&j->task, job_main, j);
      tasks[i] = &j->task;
    }
    CHECK_EQ(conc_as_completed(&c, tasks, 5, CONC_FOREVER), 0);
    while (conc_completed_next(&c, &t) == 0) {
      memset(t, 1, sizeof *t);
      free(t);
    }
  }
  return arg;
}

/* Two at the same ten jobs: c has a time limit, d is cancelled in between.
   Each is told of the jobs in the order of their ends, whatever failed
   before. */
TEST_EVERYWHERE(completed_runs_out_and_goes_on) {
  conc_task *tasks[10], *t = NULL;
  conc_completed c, d;
  assassin a;
  job *jobs = begin_jobs(10, tasks);
  CHECK_EQ(conc_as_completed(&c, tasks, 10, 0.02), 0);
  CHECK_EQ(conc_as_completed(&d, tasks, 10, CONC_FOREVER), 0);
  finish(&jobs[3]);
  CHECK_EQ(conc_completed_next(&c, &t), 0);
  CHECK(t == &jobs[3].task);
  CHECK_EQ(conc_completed_next(&c, &t), -ETIMEDOUT);
  finish(&jobs[5]);
  CHECK_EQ(conc_completed_next(&c, &t), 0);
  CHECK(t == &jobs[5].task);
  CHECK_EQ(conc_completed_next(&c, &t), -ETIMEDOUT);
  conc_completed_end(&c); /* before d, which began later */
  CHECK_EQ(conc_completed_next(&c, &t), -EPIPE);
  CHECK_EQ(conc_completed_next(&d, &t), 0);
  CHECK(t == &jobs[3].task);
  CHECK_EQ(conc_completed_next(&d, &t), 0);
  CHECK(t == &jobs[5].task);
  hire(&a);
  CHECK_EQ(conc_completed_next(&d, &t), -ECANCELED);
  forgive(&a);
  finish(&jobs[0]);
  CHECK_EQ(conc_completed_next(&d, &t), 0);
  CHECK(t == &jobs[0].task);
  conc_completed_end(&d);
  end_jobs(jobs, 10);
  return arg;
}

/* Tasks that finish while the caller waits for something else wake nobody. */
static conc_lock lock;
static void *hold_lock(void *arg) {
  director *d = (director *)arg;
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  conc_event_set(&d->jobs[d->n].go); /* held */
  direct(d);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return NULL;
}
TEST_EVERYWHERE(other_waits_are_not_disturbed) {
  for (int round = 0; round < rounds(50); round++) {
    conc_task *tasks[10], *t;
    conc_completed c;
    director d;
    size_t i;
    memset(&d, 0, sizeof d);
    d.n = 10;
    d.jobs = begin_jobs(d.n, tasks);
    shuffle(d.order, d.n);
    CHECK_EQ(conc_as_completed(&c, tasks, d.n, CONC_FOREVER), 0);
    begin(&d.task, hold_lock, &d);
    CHECK_EQ(conc_event_wait(&d.jobs[d.n].go, CONC_FOREVER), 0);
    CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
    for (i = 0; i < d.n; i++) {
      CHECK_EQ(conc_completed_next(&c, &t), 0);
      CHECK(t == &d.jobs[d.order[i]].task);
    }
    CHECK_EQ(conc_lock_release(&lock), 0);
    conc_completed_end(&c);
    CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    free(d.jobs);
  }
  return arg;
}

static void *next_of_another(void *arg) {
  conc_task *t;
  CHECK_EQ(conc_completed_next((conc_completed *)arg, &t), -EPERM);
  return NULL;
}
TEST_EVERYWHERE(completed_belongs_to_one_task) {
  conc_task *tasks[1], t;
  conc_completed c;
  job *jobs = begin_jobs(1, tasks);
  CHECK_EQ(conc_as_completed(&c, tasks, 1, CONC_FOREVER), 0);
  for (int i = 0; i < 2; i++) {
    begin(&t, next_of_another, &c);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  conc_completed_end(&c);
  end_jobs(jobs, 1);
  return arg;
}

/* --- cancellation --- */

TEST_EVERYWHERE(a_cancelled_task_ends_so) {
  job *jobs = begin_jobs(4, NULL);
  jobs[1].clean_up = 1e-3; /* clean-up may wait */
  jobs[2].status = -EIO;   /* the later word counts */
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_cancel(&jobs[i].task), 0);
    CHECK_EQ(conc_join(&jobs[i].task, CONC_FOREVER),
             i == 2 ? -EIO : -ECANCELED);
    CHECK(jobs[i].cleaned && conc_result(&jobs[i].task) == &jobs[i]);
  }
  CHECK_EQ(conc_set_status(1), -EINVAL);
  end_jobs(jobs, 4);
  return arg;
}

TEST_EVERYWHERE(a_swallowed_cancel_stays_swallowed) {
  job *jobs = begin_jobs(2, NULL);
  for (int i = 0; i < 2; i++) {
    jobs[i].swallow = true;
    jobs[i].clean_up = 1e-3;
    CHECK_EQ(conc_cancel(&jobs[i].task), 0);
    CHECK_EQ(conc_join(&jobs[i].task, CONC_FOREVER), 0);
    CHECK(jobs[i].cancelled && conc_result(&jobs[i].task) == &jobs[i]);
  }
  end_jobs(jobs, 2);
  return arg;
}

static void *sets_status_first(void *arg) {
  CHECK_EQ(conc_set_status(-EIO), 0);
  conc_event_wait((conc_event *)arg, CONC_FOREVER);
  return NULL;
}
TEST_EVERYWHERE(a_cancel_after_the_status_counts) {
  for (int i = 0; i < 4; i++) {
    conc_event event;
    conc_task t;
    memset(&event, 0, sizeof event);
    begin(&t, sets_status_first, &event);
    await_park(&t);
    if (i < 2) conc_event_set(&event);
    else CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), i < 2 ? -EIO : -ECANCELED);
  }
  return arg;
}

TEST_EVERYWHERE(a_task_may_cancel_itself) {
  CHECK_EQ(conc_cancel(conc_current()), 0);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_sleep(1e-4), 0);
  CHECK_EQ(conc_set_status(0), 0);
  return arg;
}

TEST_EVERYWHERE(a_cancelled_join_leaves_its_task) {
  job *jobs = begin_jobs(1, NULL);
  assassin a;
  hire(&a);
  CHECK_EQ(conc_join(&jobs[0].task, CONC_FOREVER), -ECANCELED);
  forgive(&a);
  CHECK(!jobs[0].cancelled && conc_is_alive(&jobs[0].task));
  end_jobs(jobs, 1);
  return arg;
}

static void *joins_another(void *arg) {
  CHECK_EQ(conc_join((conc_task *)arg, CONC_FOREVER), -ECANCELED);
  return NULL;
}
TEST_EVERYWHERE(a_join_of_a_cancelled_task_is_no_cancel) {
  for (int both = 0; both < 2; both++) {
    conc_task joiner;
    job *jobs = begin_jobs(1, NULL);
    begin(&joiner, joins_another, &jobs[0].task);
    await_park(&joiner);
    if (both) CHECK_EQ(conc_cancel(&joiner), 0);
    if (both) CHECK_EQ(conc_join(&joiner, CONC_FOREVER), -ECANCELED);
    CHECK_EQ(conc_cancel(&jobs[0].task), 0);
    if (!both) CHECK_EQ(conc_join(&joiner, CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&jobs[0].task, CONC_FOREVER), -ECANCELED);
    free(jobs);
  }
  return arg;
}

static void *cancels_itself_last(void *arg) {
  CHECK_EQ(conc_cancel(conc_current()), 0);
  return arg;
}
TEST_EVERYWHERE(a_cancel_that_comes_too_late_changes_nothing) {
  conc_task t;
  begin(&t, cancels_itself_last, &t);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(conc_result(&t) == &t);
  CHECK_EQ(conc_cancel(&t), -ESRCH);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  return arg;
}

static void *cleans_up_in_two_steps(void *arg) {
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_event_set((conc_event *)arg), 0);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED); /* the second one */
  CHECK_EQ(conc_sleep(1e-3), 0);                  /* and no more */
  return NULL;
}
TEST_EVERYWHERE(any_clean_up_may_be_cancelled) {
  conc_event event;
  conc_task t;
  memset(&event, 0, sizeof event);
  begin(&t, cleans_up_in_two_steps, &event);
  await_park(&t);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_event_wait(&event, CONC_FOREVER), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  return arg;
}

TEST_EVERYWHERE(a_sleep_of_no_number_of_seconds_waits) {
  volatile double zero = 0;
  conc_scope s;
  conc_timeout(&s, 1e-3);
  CHECK_EQ(conc_sleep(zero / zero), -ECANCELED);
  CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
  return arg;
}

/* --- scopes --- */

/* Each kind of wait. */
enum { WAIT_KINDS = 7 };
static int pipe_ends[2];
static int some_wait(int kind, job *never) {
  conc_task *tasks[1];
  conc_completed c;
  char byte;
  int rc;
  tasks[0] = &never->task;
  switch (kind) {
    case 0: return conc_sleep(CONC_FOREVER);
    case 1: return conc_event_wait(&never->go, CONC_FOREVER);
    case 2: return conc_join(&never->task, CONC_FOREVER);
    case 3: return (int)conc_wait(tasks, 1, CONC_ALL, CONC_FOREVER);
    case 4: return (int)conc_read(pipe_ends[0], &byte, 1, CONC_FOREVER);
    case 5: return conc_wait_fd(pipe_ends[0], CONC_READ, 60);
    default:
      CHECK_EQ(conc_as_completed(&c, tasks, 1, CONC_FOREVER), 0);
      rc = conc_completed_next(&c, &tasks[0]);
      conc_completed_end(&c);
      return rc;
  }
}

TEST_EVERYWHERE(a_time_limit_ends_a_wait) {
  job *never = begin_jobs(1, NULL);
  CHECK_EQ(pipe(pipe_ends), 0);
  for (int kind = 0; kind < WAIT_KINDS; kind++)
    for (int i = 0; i < 3; i++) {
      conc_scope s;
      double seconds = i == 0 ? 5e-3 : i == 1 ? 0 : -1;
      double start = conc_now();
      conc_timeout(&s, seconds);
      CHECK_EQ(some_wait(kind, never), -ECANCELED);
      CHECK(conc_now() - start >= seconds);
      CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
      CHECK(!conc_current()->was_cancelled);
      conc_timeout(&s, 60); /* the wait's own limit is the shorter one */
      CHECK_EQ(conc_wait_fd(pipe_ends[0], CONC_READ, 1e-3), -ETIMEDOUT);
      CHECK_EQ(conc_event_wait(&never->go, 1e-3), -ETIMEDOUT);
      CHECK_EQ(conc_sleep(1e-3), 0);
      CHECK_EQ(conc_scope_end(&s), 0);
    }
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  end_jobs(never, 1);
  return arg;
}

TEST_EVERYWHERE(no_wait_no_limit) {
  conc_scope s;
  conc_timeout(&s, 0);
  CHECK_EQ(conc_scope_end(&s), 0);
  conc_timeout(&s, CONC_FOREVER);
  CHECK_EQ(conc_sleep(1e-3), 0);
  CHECK_EQ(conc_scope_end(&s), 0);
  conc_timeout(&s, 1e-3);
  while (conc_yield_now() == 0) continue;
  CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
  CHECK_EQ(conc_yield_now(), 0);
  return arg;
}

TEST_EVERYWHERE(time_limits_nest) {
  conc_scope outer, inner;
  for (int i = 0; i < 2; i++) { /* the inner one is the shorter; the outer */
    double start = conc_now();
    conc_timeout(&outer, i == 0 ? 60 : 5e-3);
    conc_timeout(&inner, i == 1 ? 60 : 5e-3);
    CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
    CHECK_EQ(conc_sleep(1e-3), 0);
    CHECK_EQ(conc_scope_end(&inner), i == 0 ? -ETIMEDOUT : 0);
    CHECK_EQ(conc_sleep(1e-3), 0);
    CHECK_EQ(conc_scope_end(&outer), i == 1 ? -ETIMEDOUT : 0);
    CHECK(conc_now() - start < 30);
  }
  conc_timeout(&outer, 2e-3); /* both are out: one after the other */
  conc_timeout(&inner, 1e-3);
  for (double until = conc_now() + 3e-3; conc_now() < until;) continue;
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&inner), -ETIMEDOUT);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&outer), -ETIMEDOUT);
  return arg;
}

TEST_EVERYWHERE(a_cancel_is_not_a_time_limit) {
  conc_scope s;
  assassin a;
  hire(&a);
  conc_timeout(&s, 60);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&s), 0);
  forgive(&a);
  conc_timeout(&s, 0); /* both: the cancel first, and both are told */
  CHECK_EQ(conc_cancel(conc_current()), 0);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK(conc_current()->was_cancelled && !s.expired);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
  CHECK_EQ(conc_sleep(1e-4), 0);
  CHECK_EQ(conc_set_status(0), 0);
  return arg;
}

TEST_EVERYWHERE(clean_up_may_wait) {
  conc_scope s, inner;
  conc_timeout(&s, 1e-3);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_sleep(2e-3), 0);
  conc_timeout(&inner, 1e-3);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&inner), -ETIMEDOUT);
  CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
  return arg;
}

TEST_EVERYWHERE(scopes_end_in_reverse_order) {
  conc_scope a, b;
  conc_timeout(&a, 1);
  conc_shield(&b);
  CHECK_EQ(conc_scope_end(&a), -EPERM);
  CHECK_EQ(conc_scope_end(&b), 0);
  CHECK_EQ(conc_scope_end(&b), -EPERM);
  CHECK_EQ(conc_scope_end(&a), 0);
  CHECK_EQ(conc_scope_end(&a), -EPERM);
  return arg;
}

TEST_EVERYWHERE(a_shield_holds_back_a_cancel) {
  job *never = begin_jobs(1, NULL);
  conc_scope out, s, in;
  CHECK_EQ(pipe(pipe_ends), 0);
  for (int kind = 0; kind < WAIT_KINDS; kind++) {
    conc_timeout(&out, 1e-4);
    conc_shield(&s);
    CHECK_EQ(conc_cancel(conc_current()), 0);
    conc_timeout(&in, 3e-3); /* inside of it one works */
    CHECK_EQ(some_wait(kind, never), -ECANCELED);
    CHECK_EQ(conc_scope_end(&in), -ETIMEDOUT);
    CHECK_EQ(conc_sleep(1e-3), 0);
    CHECK_EQ(conc_yield_now(), 0);
    CHECK_EQ(conc_event_wait(&never->go, 1e-3), -ETIMEDOUT);
    CHECK_EQ(conc_wait_fd(pipe_ends[0], CONC_READ, 1e-3), -ETIMEDOUT);
    CHECK_EQ(conc_scope_end(&s), 0);
    CHECK_EQ(some_wait(kind, never), -ECANCELED); /* the cancel */
    CHECK(conc_current()->was_cancelled && !out.expired);
    CHECK_EQ(some_wait(kind, never), -ECANCELED); /* the limit */
    CHECK_EQ(conc_scope_end(&out), -ETIMEDOUT);
    CHECK_EQ(conc_set_status(0), 0);
  }
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  end_jobs(never, 1);
  return arg;
}

/* Cancelled again and again from a thread while it waits behind a shield. */
static void *cancel_all_the_time(void *arg) {
  job *j = (job *)arg;
  await_begin(j);
  for (int i = 0; i < 2000; i++) conc_cancel((conc_task *)j->task.arg);
  conc_event_set(&j->go);
  return NULL;
}
TEST_EVERYWHERE(a_shield_holds_back_many) {
  job *jobs = begin_jobs(1, NULL);
  conc_scope s;
  conc_task t;
  jobs[0].task.arg = conc_current();
  memset(&t, 0, sizeof t);
  t.target = cancel_all_the_time;
  t.arg = jobs;
  conc_shield(&s);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&jobs[0].task, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_scope_end(&s), 0);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_sleep(1e-4), 0);
  CHECK_EQ(conc_set_status(0), 0);
  free(jobs);
  return arg;
}

/* What it gathers is not cancelled either. */
TEST_EVERYWHERE(a_shielded_gather_goes_on) {
  conc_task *tasks[3];
  director d;
  conc_scope s;
  memset(&d, 0, sizeof d);
  d.jobs = begin_jobs(3, tasks);
  d.n = 3;
  for (size_t i = 0; i < 3; i++) d.order[i] = i;
  conc_shield(&s);
  CHECK_EQ(conc_cancel(conc_current()), 0);
  begin(&d.task, direct, &d);
  CHECK_EQ(conc_gather(tasks, 3, CONC_FOREVER), 0);
  CHECK_EQ(conc_scope_end(&s), 0);
  for (int i = 0; i < 3; i++) CHECK(!d.jobs[i].cancelled);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_set_status(0), 0);
  CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
  free(d.jobs);
  return arg;
}

/* --- groups --- */

static job *begin_group(conc_group *g, size_t n) {
  job *jobs = (job *)calloc(n + 1, sizeof *jobs);
  memset(g, 0, sizeof *g);
  for (size_t i = 0; i < n; i++) {
    jobs[i].task.target = job_main;
    jobs[i].task.arg = &jobs[i];
    CHECK_EQ(conc_group_start(g, &jobs[i].task, start_any), 0);
  }
  for (size_t i = 0; i < n; i++) await_begin(&jobs[i]);
  return jobs;
}

TEST_EVERYWHERE(a_group_waits_for_all) {
  conc_group g;
  memset(&g, 0, sizeof g);
  CHECK_EQ(conc_group_leave(&g, 0), 0);
  for (int round = 0; round < rounds(20); round++) {
    director d;
    memset(&d, 0, sizeof d);
    d.n = 10;
    d.jobs = begin_group(&g, d.n);
    shuffle(d.order, d.n);
    CHECK_EQ(conc_group_start(&g, &d.jobs[3].task, start_any), -EBUSY);
    begin(&d.task, direct, &d);
    CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
    for (size_t i = 0; i < d.n; i++)
      CHECK(conc_result(&d.jobs[i].task) == &d.jobs[i]);
    CHECK_EQ(conc_join(&d.task, CONC_FOREVER), 0);
    free(d.jobs);
  }
  return arg;
}

TEST_EVERYWHERE(a_failure_cancels_the_group) {
  for (int round = 0; round < rounds(20); round++) {
    conc_group g;
    job *jobs = begin_group(&g, 8);
    for (int i = 0; i < 8; i++) jobs[i].clean_up = 1e-3;
    jobs[6].status = -EIO;
    finish(&jobs[2]);
    CHECK_EQ(conc_cancel(&jobs[4].task), 0); /* that is no failure */
    CHECK_EQ(conc_join(&jobs[4].task, CONC_FOREVER), -ECANCELED);
    finish(&jobs[6]); /* at once: not only when the group is left */
    for (int i = 0; i < 8; i++) conc_join(&jobs[i].task, CONC_FOREVER);
    check_cancelled(jobs, 8);
    CHECK_EQ(conc_group_start(&g, &jobs[0].task, start_any), -ECANCELED);
    CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
    CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
    free(jobs);
  }
  return arg;
}

TEST_EVERYWHERE(a_cancelled_leave_cancels_the_group) {
  conc_group g;
  job *jobs = begin_group(&g, 8);
  assassin a;
  jobs[3].clean_up = 0.01;
  jobs[5].swallow = true;
  hire(&a);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -ECANCELED);
  check_cancelled(jobs, 8);
  forgive(&a);
  free(jobs);
  return arg;
}

TEST_EVERYWHERE(a_cancelled_member_is_no_failure) {
  conc_group g;
  job *jobs = begin_group(&g, 3);
  CHECK_EQ(conc_cancel(&jobs[1].task), 0);
  CHECK_EQ(conc_join(&jobs[1].task, CONC_FOREVER), -ECANCELED);
  CHECK(conc_is_alive(&jobs[0].task) && conc_is_alive(&jobs[2].task));
  finish(&jobs[0]);
  finish(&jobs[2]);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  free(jobs);
  return arg;
}

TEST_EVERYWHERE(no_time_cancels_the_group) {
  for (int i = 0; i < 2; i++) {
    conc_group g;
    job *jobs = begin_group(&g, 3);
    jobs[1].clean_up = 1e-3;
    CHECK_EQ(conc_group_leave(&g, -i), -ETIMEDOUT);
    check_cancelled(jobs, 3);
    free(jobs);
  }
  return arg;
}

TEST_EVERYWHERE(a_cancel_is_not_lost_to_a_failure) {
  conc_group g;
  job *jobs = begin_group(&g, 2);
  jobs[0].status = -EIO;
  jobs[1].clean_up = 0.02;
  finish(&jobs[0]);
  CHECK_EQ(conc_cancel(conc_current()), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  if (!conc_current()->was_cancelled) /* the clean-up was faster */
    CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK(conc_current()->was_cancelled);
  CHECK_EQ(conc_set_status(0), 0);
  check_cancelled(jobs + 1, 1);
  free(jobs);
  return arg;
}

/* A member that has a group of its own. */
typedef struct family {
  conc_task task;
  conc_group group;
  job *jobs;
  conc_event complete;
  int rc;
} family;
static void *parent_main(void *arg) {
  family *f = (family *)arg;
  f->jobs = begin_group(&f->group, 2);
  CHECK_EQ(conc_event_set(&f->complete), 0);
  f->rc = conc_group_leave(&f->group, CONC_FOREVER);
  return NULL;
}
TEST_EVERYWHERE(nested_groups_end_together) {
  conc_group g;
  family f;
  job *jobs = begin_group(&g, 2);
  memset(&f, 0, sizeof f);
  f.task.target = parent_main;
  f.task.arg = &f;
  CHECK_EQ(conc_group_start(&g, &f.task, start_any), 0);
  CHECK_EQ(conc_event_wait(&f.complete, CONC_FOREVER), 0);
  jobs[0].status = -EIO;
  jobs[1].clean_up = 1e-3;
  finish(&jobs[0]);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  CHECK_EQ(f.rc, -ECANCELED);
  CHECK_EQ(conc_join(&f.task, 0), -ECANCELED);
  check_cancelled(f.jobs, 2);
  check_cancelled(jobs + 1, 1);
  free(f.jobs);
  free(jobs);
  return arg;
}

TEST_EVERYWHERE(a_time_limit_ends_a_group) {
  for (int i = 0; i < 2; i++) {
    conc_group g;
    conc_scope s;
    job *jobs = begin_group(&g, 8);
    jobs[3].clean_up = 0.01;
    conc_timeout(&s, i == 0 ? 60 : 5e-3);
    CHECK_EQ(conc_group_leave(&g, i == 1 ? 60 : 5e-3),
             i == 0 ? -ETIMEDOUT : -ECANCELED);
    CHECK_EQ(conc_scope_end(&s), i == 1 ? -ETIMEDOUT : 0);
    check_cancelled(jobs, 8);
    free(jobs);
  }
  return arg;
}

TEST_EVERYWHERE(the_first_failure_is_told) {
  for (int round = 0; round < rounds(50); round++) {
    conc_group g;
    job *jobs = begin_group(&g, 3);
    jobs[0].status = -EIO;
    jobs[1].status = -ENOENT; /* its clean-up fails, too */
    finish(&jobs[0]);
    CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
    CHECK_EQ(conc_join(&jobs[1].task, 0), -ENOENT);
    check_cancelled(jobs + 2, 1);
    free(jobs);
  }
  return arg;
}

/* Members add members while others fail: nobody is left running. */
typedef struct member {
  conc_task task;
  conc_group *group;
  int depth;
} member;
enum { MEMBERS = 64 };
static member members[MEMBERS];
static unsigned members_count;
static void *member_main(void *arg);
static int add_member(conc_group *g, int depth) {
  member *m = &members[__atomic_fetch_add(&members_count, 1u,
                                          __ATOMIC_RELAXED)];
  memset(m, 0, sizeof *m);
  m->task.target = member_main;
  m->task.arg = m;
  m->group = g;
  m->depth = depth;
  return conc_group_start(g, &m->task, start_any);
}
static unsigned failing; /* one of so many members fails */
static void *member_main(void *arg) {
  member *m = (member *)arg;
  for (int i = 0; i < 2 && m->depth > 0; i++) {
    int rc = add_member(m->group, m->depth - 1);
    CHECK(rc == 0 || rc == -ECANCELED);
  }
  if ((unsigned)(m - members) % failing == failing - 1) conc_set_status(-EIO);
  else if (m->depth == 0) conc_sleep(CONC_FOREVER);
  return NULL;
}
TEST_EVERYWHERE(a_group_that_fails_takes_no_more) {
  for (int round = 0; round < rounds(60); round++) {
    conc_group g;
    bool fails = round % 4 > 0;
    memset(&g, 0, sizeof g);
    members_count = 0;
    failing = fails ? (unsigned)(2 + round % 13) : 1000;
    CHECK_EQ(add_member(&g, 3), 0);
    CHECK_EQ(conc_group_leave(&g, fails ? CONC_FOREVER : 2e-3),
             fails ? -EIO : -ETIMEDOUT);
    for (unsigned i = 0; i < members_count; i++)
      CHECK(!conc_is_alive(&members[i].task));
  }
  return arg;
}

static conc_task *first_of(conc_group *g) {
  conc_task *first;
  conc__group_enter(g);
  first = g->first;
  conc__group_exit(g);
  return first;
}
static void *leaves_its_own(void *arg) {
  while (first_of((conc_group *)arg) != conc_current())
    CHECK_EQ(conc_sleep(1e-4), 0);
  CHECK_EQ(conc_group_leave((conc_group *)arg, CONC_FOREVER), -EDEADLK);
  return NULL;
}
TEST_EVERYWHERE(a_member_cannot_leave) {
  conc_group g;
  conc_task t;
  memset(&g, 0, sizeof g);
  memset(&t, 0, sizeof t);
  t.target = leaves_its_own;
  t.arg = &g;
  CHECK_EQ(conc_group_start(&g, &t, start_any), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  return arg;
}

TEST_EVERYWHERE(a_start_that_fails_leaves_the_group_as_it_was) {
  conc_group g;
  conc_task t;
  memset(&g, 0, sizeof g);
  memset(&t, 0, sizeof t);
  CHECK_EQ(conc_group_start(&g, &t, start_any), -EINVAL);
  if (conc__this.loop == NULL) {
    t.target = job_main;
    CHECK_EQ(conc_group_start(&g, &t, conc_coro_start), -EPERM);
  }
  CHECK(t.group == NULL);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  return arg;
}

/* --- groups of processes --- */

static void *kill_myself(void *arg) {
  raise(SIGKILL);
  return arg;
}
static void *sleep_for_ever(void *arg) {
  conc_sleep(CONC_FOREVER);
  return arg;
}
TEST_EVERYWHERE(a_process_that_is_killed_cancels_its_group) {
  conc_group g;
  conc_task t;
  job *jobs;
  NEEDS_FORK;
  jobs = begin_group(&g, 2);
  memset(&t, 0, sizeof t);
  t.target = kill_myself;
  CHECK_EQ(conc_group_start(&g, &t, conc_process_start), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -ECHILD);
  check_cancelled(jobs, 2);
  free(jobs);
  return arg;
}
TEST_EVERYWHERE(the_first_failure_is_told_of_a_group_with_a_process) {
  conc_group g;
  conc_task t;
  job *jobs;
  NEEDS_FORK;
  jobs = begin_group(&g, 1);
  jobs[0].status = -EIO;
  memset(&t, 0, sizeof t);
  t.target = sleep_for_ever;
  CHECK_EQ(conc_group_start(&g, &t, conc_process_start), 0);
  finish(&jobs[0]);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  CHECK_EQ(conc_join(&t, 0), -ECHILD); /* its SIGTERM */
  free(jobs);
  return arg;
}
/* Say, with what a join of a process has returned. */
TEST_EVERYWHERE(any_failure_cancels_the_group) {
  conc_group g;
  job *jobs = begin_group(&g, 2);
  jobs[0].status = -ECHILD;
  finish(&jobs[0]);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -ECHILD);
  check_cancelled(jobs, 2);
  free(jobs);
  return arg;
}

/* In the child those members that stayed behind have ended, and those that
   are here go on. */
TEST_EVERYWHERE(a_group_is_left_in_a_fork) {
  conc_group g;
  job *jobs;
  int status;
  pid_t pid;
  NEEDS_FORK;
  jobs = begin_group(&g, 4); /* on a loop two are coroutines */
  pid = fork();
  for (int i = 0; i < 4; i++) conc_event_set(&jobs[i].go);
  if (pid == 0) {
    CHECK_CHILD(conc_group_leave(&g, CONC_FOREVER) == -ECHILD);
    for (int i = 0; i < 4; i++)
      CHECK_CHILD(conc_join(&jobs[i].task, 0) ==
                  (jobs[i].task.kind == &conc__coro_kind ? 0 : -ECHILD));
    _exit(0);
  }
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  free(jobs);
  return arg;
}

/* --- many --- */

static void *nothing(void *arg) {
  conc_yield_now();
  return arg;
}
static void *gather_many(void *arg) {
  enum { N = CONC_HAVE_TSAN ? 1000 : 20000 };
  conc_task *t = (conc_task *)calloc(N, sizeof *t);
  conc_task **tasks = (conc_task **)calloc(N, sizeof *tasks);
  conc_completed c;
  conc_task *next;
  for (int i = 0; i < N; i++) {
    tasks[i] = &t[i];
    t[i].target = nothing;
    t[i].arg = &t[i];
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  if (arg == NULL) {
    CHECK_EQ(conc_gather(tasks, N, CONC_FOREVER), 0);
  } else {
    CHECK_EQ(conc_as_completed(&c, tasks, N, CONC_FOREVER), 0);
    for (int i = 0; i < N; i++) {
      CHECK_EQ(conc_completed_next(&c, &next), 0);
      CHECK(next == &t[i]);
    }
    CHECK_EQ(conc_completed_next(&c, &next), -EPIPE);
  }
  for (int i = 0; i < N; i++) CHECK(conc_result(tasks[i]) == &t[i]);
  free(t);
  free(tasks);
  return NULL;
}
TEST(many_thousands_are_awaited_at_once) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = gather_many;
  CHECK_EQ(conc_run(&t), 0);
  t.arg = &t;
  CHECK_EQ(conc_run(&t), 0);
}

/* All coroutines wait for tasks that wait: that is told, as for a join. */
static void *wait_for_ever(void *arg) {
  conc_event never;
  memset(&never, 0, sizeof never);
  never.name = "never";
  conc_event_wait(&never, CONC_FOREVER);
  return arg;
}
static void *gather_for_ever(void *arg) {
  static conc_task t[2];
  conc_task *tasks[2];
  for (int i = 0; i < 2; i++) {
    memset(&t[i], 0, sizeof t[i]);
    t[i].target = wait_for_ever;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
    tasks[i] = &t[i];
  }
  CHECK_EQ(conc_gather(tasks, 2, CONC_FOREVER), -ECANCELED);
  return arg;
}
TEST(a_gather_of_those_that_wait_for_ever_is_a_deadlock) {
  conc_task t;
  char text[2048];
  if (access("/proc/self/stat", R_OK) != 0) SKIP("no /proc");
  if (TEST_TSAN) SKIP("it has a thread of its own");
  if (test_wrapped("qemu")) SKIP("the emulator's /proc knows no threads");
  memset(&t, 0, sizeof t);
  t.target = gather_for_ever;
  CHECK_EQ(conc_run(&t), -EDEADLK);
  conc_deadlock_report(text, sizeof text);
  CHECK(strstr(text, "waits for several tasks") != NULL);
}

/* --- fork --- */

/* In the child those that other threads ran have ended, and waits for them
   return; and the waits of other threads are gone. */
static void *other_waits(void *arg) {
  conc_task **tasks = (conc_task **)arg, *t;
  conc_completed c;
  CHECK_EQ(conc_as_completed(&c, tasks, 3, CONC_FOREVER), 0);
  CHECK_EQ(conc_completed_next(&c, &t), 0);
  CHECK_EQ(conc_gather(tasks, 3, CONC_FOREVER), 0);
  conc_completed_end(&c);
  return NULL;
}
/* Of three threads one has finished; the caller waits for all, and so does
   another thread. In a forked child the other two are gone: its waits must
   end, with -ECHILD, while those of the parent go on. */
TEST_EVERYWHERE(a_fork_ends_the_waits) {
  conc_task *tasks[3], *t, other;
  conc_completed c;
  job *jobs = (job *)calloc(3, sizeof *jobs);
  int status;
  pid_t pid;
  for (int i = 0; i < 3; i++) {
    jobs[i].task.target = job_main;
    jobs[i].task.arg = &jobs[i];
    CHECK_EQ(conc_thread_start(&jobs[i].task), 0);
    tasks[i] = &jobs[i].task;
  }
  for (int i = 0; i < 3; i++) await_begin(&jobs[i]);
  finish(&jobs[2]);
  CHECK_EQ(conc_as_completed(&c, tasks, 3, CONC_FOREVER), 0);
  memset(&other, 0, sizeof other);
  other.target = other_waits;
  other.arg = tasks;
  CHECK_EQ(conc_thread_start(&other), 0);
  await_park(&other);
  pid = fork();
  if (pid == 0) {
    for (int i = 0; i < 3; i++) CHECK_EQ(conc_completed_next(&c, &t), 0);
    CHECK_EQ(conc_completed_next(&c, &t), -EPIPE);
    CHECK_EQ(conc_wait(tasks, 3, CONC_ALL, CONC_FOREVER), 3);
    CHECK_EQ(conc_gather(tasks, 3, CONC_FOREVER), -ECHILD);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK_EQ(conc_completed_next(&c, &t), 0);
  CHECK(t == &jobs[2].task);
  conc_completed_end(&c);
  for (int i = 0; i < 2; i++) finish(&jobs[i]);
  CHECK_EQ(conc_join(&other, CONC_FOREVER), 0);
  free(jobs);
  return arg;
}

/* --- very many are cancelled at once --- */

enum { PAIRS = 50, WAYS = 5 };
static conc_lock held;
static conc_event never;
static conc_queue *empty;
static int pairs[PAIRS][2];

static void *wait_in_one_of_many_ways(void *arg) {
  size_t i = (size_t)(uintptr_t)arg;
  char c;
  switch (i % WAYS) {
  case 0: return number(conc_get(empty, &c, 1, CONC_FOREVER));
  case 1: return number(conc_lock_acquire(&held, CONC_FOREVER));
  case 2: return number(conc_event_wait(&never, 1e6));
  case 3: return number(conc_sleep(1e6));
  default:
    return number(conc_read(pairs[i / WAYS % PAIRS][0], &c, 1, CONC_FOREVER));
  }
}

static void *cancel_very_many(void *arg) {
  size_t n = *(size_t *)arg, i;
  conc_task *t = (conc_task *)calloc(n, sizeof *t);
  CHECK_EQ(conc_lock_acquire(&held, 0), 0);
  for (i = 0; i < PAIRS; i++)
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]), 0);
  for (i = 0; i < n; i++) {
    t[i].target = wait_in_one_of_many_ways;
    t[i].arg = (void *)(uintptr_t)i;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (i = 0; i < 3; i++) CHECK_EQ(conc_yield_now(), 0);
  for (i = 0; i < n; i++) CHECK(conc_is_alive(&t[i]));
  for (i = 0; i < n; i++) CHECK_EQ(conc_cancel(&t[i]), 0);
  for (i = 0; i < n; i++) {
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), -ECANCELED);
    CHECK(conc_result(&t[i]) == number(-ECANCELED));
  }
  CHECK_EQ(conc_lock_release(&held), 0);
  CHECK(!conc_lock_locked(&held));
  CHECK_EQ(conc_put(empty, "x", 1, 0), 0); /* nobody is there to take it */
  CHECK_EQ(conc_qsize(empty), 1);
  for (i = 0; i < PAIRS; i++) close(pairs[i][0]), close(pairs[i][1]);
  free(t);
  return NULL;
}

TEST(a_hundred_thousand_that_wait_are_cancelled_at_once) {
  size_t n = CONC_HAVE_TSAN || CONC_HAVE_ASAN ? 2000 : (size_t)rounds(100000);
  void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  conc_task t;
  /* Where a guard page splits the mapping, the kernel allows 65,530. */
  if (n > 20000 &&
      (!CONC_HAVE_GUARD_INSTALL || madvise(page, 4096, 102) != 0))
    n = 20000;
  munmap(page, 4096);
  memset(&t, 0, sizeof t);
  t.target = cancel_very_many;
  t.arg = &n;
  empty = conc_queue_new(NULL);
  CHECK_EQ(conc_run(&t), 0);
  conc_queue_free(empty);
}

/* --- tasks that nobody joins --- */

static unsigned spawned_count; /* of those that have run */

static void *spawned(void *arg) {
  if (arg != NULL) conc_sleep(*(double *)arg);
  __atomic_add_fetch(&spawned_count, 1u, __ATOMIC_RELAXED);
  return NULL;
}

static unsigned spawned_so_far(void) {
  return __atomic_load_n(&spawned_count, __ATOMIC_RELAXED);
}

/* That they are freed, the harness finds out: it counts allocations. */
TEST_EVERYWHERE(a_spawned_task_runs_and_nobody_frees_it) {
  (void)arg;
  STORE(spawned_count, 0u);
  for (int i = 0; i < 100; i++) CHECK_EQ(conc_spawn(spawned, NULL), 0);
  UNTIL(spawned_so_far() == 100);
  return NULL;
}

static void *is_coroutine(void *arg) {
  CONC__STORE((int *)arg, conc__is_coro(conc__self()) ? 1 : 2);
  return NULL;
}
static void *spawn_one(void *arg) {
  CHECK_EQ(conc_spawn(is_coroutine, arg), 0);
  UNTIL(CONC__LOAD((int *)arg) != 0);
  return NULL;
}
TEST(what_a_coroutine_spawns_is_one) {
  int kind = 0;
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = spawn_one;
  t.arg = &kind;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(kind, 1);
  kind = 0;
  spawn_one(&kind);
  CHECK_EQ(kind, 2);
  CHECK_EQ(conc_spawn(NULL, NULL), -EINVAL); /* and nothing is lost */
}

/* The loop's end cancels it, and awaits it. */
static void *spawn_and_leave(void *arg) {
  static double for_ever = CONC_FOREVER;
  CHECK_EQ(conc_spawn(spawned, &for_ever), 0);
  CHECK_EQ(conc_spawn(spawned, &for_ever), 0);
  conc_yield_now();
  return arg;
}
TEST(a_loop_ends_what_was_spawned_in_it) {
  conc_task t;
  STORE(spawned_count, 0u);
  memset(&t, 0, sizeof t);
  t.target = spawn_and_leave;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(spawned_so_far(), 2);
}

/* A task that its callback frees. */
static int detached_status;
static unsigned detached_ends;
static void free_detached(conc_task *task, int status, void *result) {
  (void)result;
  __atomic_store_n(&detached_status, status, __ATOMIC_RELAXED);
  memset(task, 0xa5, sizeof *task); /* so that a later touch shows */
  free(task);
  __atomic_add_fetch(&detached_ends, 1u, __ATOMIC_RELEASE);
}
static conc_task *detached_task(conc_fn *fn, void *arg) {
  conc_task *t = (conc_task *)calloc(1, sizeof *t);
  CHECK(t != NULL);
  t->target = fn;
  t->arg = arg;
  t->detached = true;
  t->callback = free_detached;
  return t;
}
static void *wait_for_event(void *event) {
  conc_event_wait((conc_event *)event, CONC_FOREVER);
  return NULL;
}

TEST_EVERYWHERE(a_detached_task_ends_by_its_callback) {
  conc_event go;
  conc_task *t = detached_task(wait_for_event, &go), *one[1];
  memset(&go, 0, sizeof go);
  detached_ends = 0;
  detached_status = 1;
  CHECK_EQ(start_any(t), 0);
  CHECK_EQ(conc_join(t, 0), -EINVAL);
  one[0] = t;
  CHECK_EQ(conc_wait(one, 1, CONC_ALL, 0), -EINVAL);
  CHECK_EQ(conc_gather(one, 1, 0), -EINVAL);
  CHECK(conc_is_alive(t));
  conc_event_set(&go);
  UNTIL(__atomic_load_n(&detached_ends, __ATOMIC_ACQUIRE) == 1);
  CHECK_EQ(detached_status, 0);
  return arg;
}

TEST(a_loop_is_not_run_for_a_detached_task) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = spawned;
  t.detached = true;
  CHECK_EQ(conc_run(&t), -EINVAL);
}

/* The case in which the target never runs: the callback is told all the
   same. */
static void *cancel_before_it_begins(void *arg) {
  conc_task *t = detached_task(spawned, NULL);
  conc_task own;
  (void)arg;
  detached_ends = 0;
  STORE(spawned_count, 0u);
  CHECK_EQ(conc_coro_start(t), 0);
  CHECK_EQ(conc_cancel(t), 0);
  UNTIL(__atomic_load_n(&detached_ends, __ATOMIC_ACQUIRE) == 1);
  CHECK_EQ(detached_status, -ECANCELED);
  CHECK_EQ(spawned_so_far(), 0);
  /* And of a task that is joined. */
  memset(&own, 0, sizeof own);
  own.target = spawned;
  own.arg = NULL;
  CHECK_EQ(conc_coro_start(&own), 0);
  CHECK_EQ(conc_cancel(&own), 0);
  CHECK_EQ(conc_join(&own, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(spawned_so_far(), 0);
  return NULL;
}
static int called_back;
static void count_call(conc_task *task, int status, void *result) {
  (void)task;
  (void)result;
  CHECK_EQ(status, -ECANCELED);
  called_back++;
}
static void *cancel_with_callback(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = spawned;
  t.callback = count_call;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  return arg;
}
TEST(a_task_that_never_began_calls_back) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = cancel_before_it_begins;
  CHECK_EQ(conc_run(&t), 0);
  STORE(spawned_count, 0u);
  called_back = 0;
  t.target = cancel_with_callback;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(called_back, 1);
  CHECK_EQ(spawned_so_far(), 0);
}

/* --- in a group --- */

/* Whether the group knows of no task. */
static bool is_empty(conc_group *g) {
  bool none;
  conc__group_enter(g);
  none = g->count == 0 && g->first == NULL && g->cancelled == NULL;
  conc__group_exit(g);
  return none;
}

/* A group as of a server that runs for years: each task that has ended is
   forgotten, though nobody leaves the group. */
TEST_EVERYWHERE(a_group_forgets_what_has_ended) {
  conc_group g;
  int n = rounds(1000);
  memset(&g, 0, sizeof g);
  STORE(spawned_count, 0u);
  for (int i = 0; i < n; i++)
    CHECK_EQ(conc_group_spawn(&g, spawned, NULL), 0);
  UNTIL(is_empty(&g));
  CHECK_EQ(spawned_so_far(), n);
  CHECK_EQ(conc_group_leave(&g, 0), 0);
  return arg;
}

TEST_EVERYWHERE(a_group_awaits_what_was_spawned_and_cancels_it) {
  static double for_ever = CONC_FOREVER, moment = 0.001;
  conc_group g;
  memset(&g, 0, sizeof g);
  STORE(spawned_count, 0u);
  for (int i = 0; i < 10; i++)
    CHECK_EQ(conc_group_spawn(&g, spawned, &moment), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  CHECK_EQ(spawned_so_far(), 10);
  for (int i = 0; i < 10; i++)
    CHECK_EQ(conc_group_spawn(&g, spawned, &for_ever), 0);
  CHECK_EQ(conc_group_leave(&g, 0), -ETIMEDOUT);
  return arg;
}

static void *fail_at_once(void *arg) {
  conc_set_status(-EIO);
  return arg;
}
TEST_EVERYWHERE(one_that_was_spawned_fails_and_its_group_with_it) {
  static double for_ever = CONC_FOREVER;
  conc_group g;
  memset(&g, 0, sizeof g);
  for (int i = 0; i < 10; i++)
    CHECK_EQ(conc_group_spawn(&g, spawned, &for_ever), 0);
  CHECK_EQ(conc_group_spawn(&g, fail_at_once, NULL), 0);
  UNTIL(__atomic_load_n(&g.failure, __ATOMIC_RELAXED) != 0);
  CHECK_EQ(conc_group_spawn(&g, spawned, NULL), -ECANCELED);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  return arg;
}

/* The start of a thread that ends at once: the one that starts it must not
   touch it any more. The start itself waits for the end here, so that the
   order is the worst one. */
static int start_and_await_end(conc_task *t) {
  unsigned before = __atomic_load_n(&detached_ends, __ATOMIC_ACQUIRE);
  int rc = conc_thread_start(t);
  UNTIL(__atomic_load_n(&detached_ends, __ATOMIC_ACQUIRE) != before);
  return rc;
}
TEST(a_task_may_be_gone_when_its_start_returns) {
  conc_group g;
  memset(&g, 0, sizeof g);
  detached_ends = 0;
  for (int i = 0; i < 10; i++)
    CHECK_EQ(conc_group_start(&g, detached_task(spawned, NULL),
                              start_and_await_end),
             0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  /* One that fails, and so has its group fail before its own start is over. */
  CHECK_EQ(conc_group_start(&g, detached_task(fail_at_once, NULL),
                            start_and_await_end),
           0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  CHECK(g.first == NULL && g.cancelled == NULL && g.count == 0);
}

static void *spawn_many(void *group) {
  for (int i = 0; i < rounds(300); i++)
    CHECK_EQ(conc_group_spawn((conc_group *)group, spawned, NULL), 0);
  return NULL;
}
TEST(many_threads_spawn_into_one_group) {
  conc_group g;
  memset(&g, 0, sizeof g);
  STORE(spawned_count, 0u);
  for (int i = 0; i < 4; i++)
    CHECK_EQ(conc_group_spawn(&g, spawn_many, &g), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  CHECK_EQ(spawned_so_far(), 4 * rounds(300));
}

/* A child has none of the threads of its parent: they end there, and call
   back. */
TEST(a_detached_task_that_stayed_behind_calls_back) {
  conc_event go;
  pid_t child;
  int how;
  memset(&go, 0, sizeof go);
  detached_ends = 0;
  CHECK_EQ(conc_thread_start(detached_task(wait_for_event, &go)), 0);
  child = fork();
  if (child == 0) {
    if (detached_ends != 1) _exit(1);
    _exit(detached_status == -ECHILD ? 0 : 2);
  }
  CHECK_EQ(waitpid(child, &how, 0), child);
  CHECK_EQ(how, 0);
  conc_event_set(&go);
  UNTIL(__atomic_load_n(&detached_ends, __ATOMIC_ACQUIRE) == 1);
}

TEST_MAIN
