/* Every way in which a task can end: pthread_exit() and pthread_cancel() in
   every kind of task; and whom a cancellation reaches: a thread inside of
   conc_run, a loop at its end, a group that has failed. From inside, for the
   allocator that counts. */
#include "inside.h"
#include "tasks.h"

#include <sys/mman.h>

static int load(int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static void store(int *p, int n) { __atomic_store_n(p, n, __ATOMIC_RELEASE); }

/* --- pthread_exit and pthread_cancel --- */

static void *exits(void *arg) {
  pthread_exit(arg);
  return NULL;
}
static void *exits_and_fails(void *arg) {
  CHECK_EQ(conc_set_status(-EIO), 0);
  pthread_exit(arg);
  return NULL;
}
static int called;
static void count_call(conc_task *t, int status, void *result) {
  CHECK(status == t->status && result == t->result);
  called++;
}
TEST(pthread_exit_ends_a_thread_as_a_return_does) {
  int x;
  conc_task t = task_of(exits, &x);
  t.callback = count_call;
  for (int i = 1; i <= 3; i++) {
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK(conc_result(&t) == &x && !conc_is_alive(&t) && called == i);
    CHECK_EQ(conc_cancel(&t), -ESRCH);
  }
  start(conc_thread_start, &t, exits_and_fails, &x);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -EIO);
  CHECK(conc_result(&t) == &x);
}

/* Without memory for the helper the task ends all the same. */
static void *exits_without_memory(void *arg) {
  conc_local *local = (conc_local *)arg;
  CHECK_EQ(conc_local_set(local, "x", arg), 0);
  test_fail_at = 1;
  pthread_exit(arg);
  return NULL;
}
TEST(pthread_exit_needs_no_memory) {
  static conc_local local;
  conc_task t;
  start(conc_thread_start, &t, exits_without_memory, &local);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
  test_fail_at = 0;
  conc_local_free(&local);
}

#if CONC_HAVE_PTHREAD_CANCEL
static pthread_t thread_id;
static int ready;
static void *waits_for_pthread_cancel(void *arg) {
  thread_id = pthread_self();
  store(&ready, 1);
  for (;;) usleep(1000);
  return arg;
}
TEST(pthread_cancel_ends_a_thread) {
  conc_task t;
  start(conc_thread_start, &t, waits_for_pthread_cancel, NULL);
  UNTIL(load(&ready));
  CHECK_EQ(pthread_cancel(thread_id), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK(conc_result(&t) == NULL);
}

/* A thread that opens files and closes them, under guards of the library, is
   not ended there: neither is a guard left held, nor a file left behind. */
static void *makes_shared_memory(void *arg) {
  for (;;) {
    void *memory = conc_shared_alloc(100);
    void *named = conc_shared_open((const char *)arg, 100, NULL, NULL);
    CHECK(memory != NULL && named != NULL);
    conc_shared_free(memory);
    conc_shared_free(named);
    pthread_testcancel();
  }
  return NULL;
}

TEST(pthread_cancel_leaves_no_guard_held) {
  char name[40];
  NEEDS_FORK;
  snprintf(name, sizeof name, "conc-ended-%d", (int)getpid());
  for (int i = 0; i < 150; i++) {
    pthread_t thread;
    void *memory, *named;
    CHECK_EQ(pthread_create(&thread, NULL, makes_shared_memory, name), 0);
    usleep((unsigned)(i * 13 % 400));
    CHECK_EQ(pthread_cancel(thread), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    memory = conc_shared_alloc(100);
    named = conc_shared_open(name, 100, NULL, NULL);
    CHECK(memory != NULL && named != NULL);
    conc_shared_free(memory);
    conc_shared_free(named);
  }
}

#if !defined(__cplusplus) && !TEST_ASAN
static void *sleeps_in_a_loop(void *arg) {
  conc_event *cleaned = (conc_event *)arg;
  thread_id = pthread_self();
  store(&ready, 1);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  conc_event_set(cleaned);
  return NULL;
}
static void *runs(void *arg) {
  conc_task t = task_of(sleeps_in_a_loop, arg);
  conc_run(&t);
  TEST_FAIL("the loop was left");
  return NULL;
}
#endif
/* The loop is met in its poller; its coroutines clean up. */
TEST(pthread_cancel_ends_a_loop) {
#if defined(__cplusplus)
  SKIP("C++ unwinds otherwise");
#elif TEST_ASAN
  SKIP("AddressSanitizer does not see what is left");
#else
  conc_event cleaned = {0};
  conc_task t;
  start(conc_thread_start, &t, runs, &cleaned);
  UNTIL(load(&ready));
  usleep(2000);
  CHECK_EQ(pthread_cancel(thread_id), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK(conc_event_is_set(&cleaned));
#endif
}
#endif

static void *fails_late(void *arg) {
  int rc = conc_sleep(CONC_FOREVER);
  CHECK_EQ(rc, -ECANCELED);
  return arg;
}
TEST(a_member_that_exits_is_missed_by_no_group) {
  conc_group g = {0};
  conc_task a = task_of(exits, NULL), b = task_of(exits_and_fails, NULL);
  conc_task c = task_of(fails_late, NULL);
  CHECK_EQ(conc_group_start(&g, &a, conc_thread_start), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  CHECK_EQ(conc_group_start(&g, &c, conc_thread_start), 0);
  CHECK_EQ(conc_group_start(&g, &b, conc_thread_start), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  CHECK_EQ(conc_join(&c, 0), -ECANCELED);
}

/* Scopes and read locks of the thread are on its stack, which is gone; the
   destructors of its locals may wait all the same. */
static void wait_a_little(void *value) {
  CHECK_EQ(conc_sleep(1e-3), 0);
  ++*(int *)value;
}
static void *exits_in_scopes(void *arg) {
  conc_local *local = (conc_local *)arg;
  static int destroyed;
  conc_scope a, b;
  destroyed = 0;
  CHECK_EQ(conc_local_set(local, "x", &destroyed), 0);
  conc_timeout(&a, 1e-9);
  conc_shield(&b);
  pthread_exit(&destroyed);
  return NULL;
}
TEST(pthread_exit_leaves_scopes) {
  conc_local local;
  conc_task t;
  memset(&local, 0, sizeof local);
  local.destructor = wait_a_little;
  start(conc_thread_start, &t, exits_in_scopes, &local);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(*(int *)conc_result(&t), 1);
  conc_local_free(&local);
}

static conc_once once;
static int entered;
static int exits_once(void *arg) {
  store(&entered, 1);
  UNTIL(load((int *)arg));
  pthread_exit(NULL);
  return 0;
}
static int counts_once(void *arg) { return ++*(int *)arg; }
static void *runs_once(void *arg) {
  conc_once_run(&once, exits_once, arg, CONC_FOREVER);
  TEST_FAIL("it went on");
  return NULL;
}
static void *runs_once_well(void *arg) {
  CHECK_EQ(conc_once_run(&once, counts_once, arg, CONC_FOREVER), 0);
  return arg;
}
TEST(a_once_is_run_by_the_next_if_its_thread_exits) {
  int go = 0, n = 0;
  conc_task a, b;
  pthread_t foreign;
  start(conc_thread_start, &a, runs_once, &go);
  UNTIL(load(&entered));
  start(conc_thread_start, &b, runs_once_well, &n);
  wait_parked(&b);
  store(&go, 1);
  CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  CHECK_EQ(n, 1);
  memset(&once, 0, sizeof once);
  CHECK_EQ(pthread_create(&foreign, NULL, runs_once, &go), 0);
  CHECK_EQ(pthread_join(foreign, NULL), 0);
  CHECK_EQ(conc_once_run(&once, counts_once, &n, CONC_FOREVER), 0);
  CHECK_EQ(n, 2);
}
static conc_once *shared_once;
static int exits_at_once(void *arg) {
  pthread_exit(arg);
  return 0;
}
static void *runs_shared_once(void *arg) {
  conc_once_run(shared_once, exits_at_once, arg, CONC_FOREVER);
  return NULL;
}
TEST(a_shared_once_is_run_by_the_next_if_its_thread_exits) {
  int n = 0;
  conc_task t;
  shared_once = (conc_once *)conc_shared_alloc(sizeof *shared_once);
  CHECK_EQ(conc_once_init_shared(shared_once), 0);
  start(conc_thread_start, &t, runs_shared_once, NULL);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_once_run(shared_once, counts_once, &n, 5.0), 0);
  CHECK_EQ(n, 1);
  conc_shared_free(shared_once);
}

/* The library's destructor is called in the first round of them, and this one
   ends the process in the second: so no handler of atexit() is called. */
static pthread_key_t second_round;
static void end_in_second_round(void *value) {
  if (value == &second_round) _exit(0);
  pthread_setspecific(second_round, &second_round);
}

/* In memory that the parent alone has, and the pipe on which the child waits
   until its parent is in the function once more. */
static conc_once *parents_once;
static int again[2];
static pid_t left_behind;

static int forks_once(void *arg) {
  left_behind = fork();
  if (left_behind == 0) {
    char c;
    close(again[1]);
    if (read(again[0], &c, 1) != 0) _exit(1); /* its end */
    pthread_key_create(&second_round, end_in_second_round);
    pthread_setspecific(second_round, arg);
    pthread_exit(NULL);
  }
  return -EIO;
}
static int lets_child_go(void *arg) {
  int status = -1;
  close(again[1]);
  CHECK(waitpid(left_behind, &status, 0) == left_behind);
  return status == 0 ? 0 : arg == NULL ? -EIO : -EINVAL;
}
static int runs_it_inside(void *arg) {
  return conc_once_run(shared_once, lets_child_go, arg, 5.0);
}
/* The child ends in the function of a once that is its parent's again. Inside
   of what that is run now, says nothing to the child. */
TEST(a_child_follows_no_pointer_of_its_parent_out_of_a_shared_once) {
  int here = 0;
  shared_once = (conc_once *)conc_shared_alloc(sizeof *shared_once);
  CHECK_EQ(conc_once_init_shared(shared_once), 0);
  CHECK(pipe(again) == 0);
  CHECK_EQ(conc_once_run(shared_once, forks_once, &here, 5.0), -EIO);
  parents_once = (conc_once *)mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(parents_once != MAP_FAILED);
  CHECK_EQ(conc_once_run(parents_once, runs_it_inside, NULL, 5.0), 0);
  munmap(parents_once, 1 << 16);
  close(again[0]);
  conc_shared_free(shared_once);
}

TEST(a_shared_once_needs_memory_for_a_note_and_no_more) {
  int n = 0;
  shared_once = (conc_once *)conc_shared_alloc(sizeof *shared_once);
  CHECK_EQ(conc_once_init_shared(shared_once), 0);
  test_fail_at = 1;
  CHECK_EQ(conc_once_run(shared_once, counts_once, &n, 5.0), -ENOMEM);
  test_fail_at = 0;
  CHECK_EQ(n, 0);
  CHECK_EQ(conc_once_run(shared_once, counts_once, &n, 5.0), 0);
  CHECK_EQ(n, 1);
  conc_shared_free(shared_once);
}

/* --- coroutines --- */

#ifndef __cplusplus /* which unwinds a coroutine, and then the whole thread,
                       without the handlers of C */
typedef struct house {
  conc_task tasks[4], inner;
  int how, cleaned;
} house;
static void *cleans_up(void *arg) {
  house *h = (house *)arg;
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_sleep(1e-3), 0);
  h->cleaned++;
  return NULL;
}
static void *exits_in_a_loop(void *arg) {
  house *h = (house *)arg;
  conc_scope s;
  conc_timeout(&s, 60);
  for (int i = 0; i < 3; i++)
    start(conc_coro_start, &h->tasks[i], cleans_up, h);
  h->tasks[3] = task_of(exits, NULL);
  if (h->how == 1) h->tasks[3].stack_size = CONC_STACK_SIZE * 4;
  CHECK_EQ(conc_sleep(1e-3), 0);
  if (h->how == 2) pthread_exit(h);
  CHECK_EQ(conc_coro_start(&h->tasks[3]), 0);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  return NULL;
}
static void *runs_exits(void *arg) {
  house *h = (house *)arg;
  conc_task t = task_of(exits_in_a_loop, h);
  conc_run(&t);
  TEST_FAIL("it went on");
  return NULL;
}
TEST(pthread_exit_of_a_coroutine_ends_its_loop_and_its_thread) {
  if (TEST_ASAN || TEST_TSAN) SKIP("the sanitizers do not see what is left");
  for (int how = 0; how < 3; how++) {
    house h;
    conc_task t;
    pthread_t foreign;
    memset(&h, 0, sizeof h);
    h.how = how;
    start(conc_thread_start, &t, runs_exits, &h);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_EQ(h.cleaned, 3);
    if (how != 2) CHECK_EQ(conc_join(&h.tasks[3], 0), -ECHILD);
    for (int i = 0; i < 3; i++)
      CHECK_EQ(conc_join(&h.tasks[i], 0), -ECANCELED);
    CHECK(conc_result(&t) == (how == 2 ? &h : NULL));
    CHECK_EQ(pthread_create(&foreign, NULL, runs_exits, &h), 0);
    CHECK_EQ(pthread_join(foreign, NULL), 0);
    CHECK_EQ(h.cleaned, 6);
  }
}

/* The same while the loop waits for its last tasks, which it has cancelled. */
static void *exits_when_cancelled(void *arg) {
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  pthread_exit(arg);
  return NULL;
}
static void *leaves_one_that_exits(void *arg) {
  house *h = (house *)arg;
  for (int i = 0; i < 3; i++)
    start(conc_coro_start, &h->tasks[i], i == 1 ? exits_when_cancelled
                                                : cleans_up, h);
  CHECK_EQ(conc_yield_now(), 0);
  return NULL;
}
static void *runs_what_exits_late(void *arg) {
  conc_task t = task_of(leaves_one_that_exits, arg);
  conc_run(&t);
  TEST_FAIL("it went on");
  return NULL;
}
TEST(pthread_exit_ends_a_loop_that_is_ending) {
  house h;
  conc_task t;
  if (TEST_ASAN || TEST_TSAN) SKIP("the sanitizers do not see what is left");
  memset(&h, 0, sizeof h);
  start(conc_thread_start, &t, runs_what_exits_late, &h);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(h.cleaned, 2);
  for (int i = 0; i < 3; i++)
    CHECK_EQ(conc_join(&h.tasks[i], 0), i == 1 ? -ECHILD : -ECANCELED);
}
#endif

TEST(pthread_exit_ends_a_process) {
  NEEDS_FORK;
  conc_task t;
  start(conc_process_start, &t, exits, (void *)7);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 0);
}

static void *starts_a_process_that_exits(void *arg) {
  conc_task t;
  start(conc_process_start, &t, exits, arg);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 0);
  return NULL;
}
TEST(pthread_exit_ends_a_process_of_a_coroutine) {
  NEEDS_FORK;
  if (TEST_ASAN) SKIP("AddressSanitizer does not see what is left");
  run(starts_a_process_that_exits, (void *)7);
}

/* --- a thread inside of conc_run --- */

typedef struct inside {
  int rc, run, after, swallow, waits;
  conc_event begun;
  conc_task rest;
} inside;
static void *sleeps(void *arg) {
  inside *in = (inside *)arg;
  if (in->waits) CHECK_EQ(conc_sleep(1e-3), 0);
  conc_event_set(&in->begun);
  in->rc = conc_sleep(CONC_FOREVER);
  if (in->swallow) conc_set_status(0);
  return NULL;
}
static void *runs_a_loop(void *arg) {
  inside *in = (inside *)arg;
  conc_task t = task_of(sleeps, in);
  in->run = conc_run(&t);
  in->after = conc_sleep(1e-3);
  return NULL;
}
TEST(conc_cancel_reaches_the_main_coroutine_of_a_loop) {
  for (int i = 0; i < 200; i++) {
    inside in;
    conc_task t;
    memset(&in, 0, sizeof in);
    in.swallow = i % 2;
    in.waits = i / 2 % 2;
    start(conc_thread_start, &t, runs_a_loop, &in);
    CHECK_EQ(conc_event_wait(&in.begun, CONC_FOREVER), 0);
    if (i / 4 % 2) usleep(300);
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), in.swallow ? 0 : -ECANCELED);
    CHECK_EQ(in.rc, -ECANCELED);
    CHECK_EQ(in.run, in.swallow ? 0 : -ECANCELED);
    CHECK_EQ(in.after, 0); /* it came once */
  }
}
/* A foreign thread, the main one here. */
static void *cancels_main(void *arg) {
  inside *in = (inside *)arg;
  CHECK_EQ(conc_event_wait(&in->begun, CONC_FOREVER), 0);
  CHECK_EQ(conc_cancel((conc_task *)in->rest.arg), 0);
  return NULL;
}
TEST(conc_cancel_reaches_the_loop_of_a_foreign_thread) {
  inside in;
  conc_task t;
  memset(&in, 0, sizeof in);
  in.rest.arg = conc_current();
  start(conc_thread_start, &t, cancels_main, &in);
  runs_a_loop(&in);
  CHECK(in.run == -ECANCELED && in.rc == -ECANCELED && in.after == 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}
TEST(a_job_inside_of_a_loop_is_cancelled) {
  conc_pool pool;
  inside in;
  conc_task t = task_of(runs_a_loop, &in);
  memset(&pool, 0, sizeof pool);
  memset(&in, 0, sizeof in);
  pool.kind = CONC_THREAD;
  pool.workers = 1;
  CHECK_EQ(conc_pool_start(&pool), 0);
  CHECK_EQ(conc_pool_submit(&pool, &t), 0);
  CHECK_EQ(conc_event_wait(&in.begun, CONC_FOREVER), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK(in.run == -ECANCELED && in.after == 0);
  conc_pool_close(&pool);
  CHECK_EQ(conc_pool_join(&pool, CONC_FOREVER), 0);
}
TEST(a_group_with_a_thread_inside_of_a_loop_is_left) {
  conc_group g = {0};
  inside in;
  conc_task t = task_of(runs_a_loop, &in);
  memset(&in, 0, sizeof in);
  CHECK_EQ(conc_group_start(&g, &t, conc_thread_start), 0);
  CHECK_EQ(conc_event_wait(&in.begun, CONC_FOREVER), 0);
  CHECK_EQ(conc_group_leave(&g, 0), -ETIMEDOUT);
  CHECK_EQ(in.run, -ECANCELED);
}
static void *naps(void *arg) {
  CHECK_EQ(conc_sleep(2e-3), 0);
  return arg;
}
TEST(a_time_limit_ends_a_loop) {
  inside in;
  conc_scope limit, shield;
  memset(&in, 0, sizeof in);
  conc_timeout(&limit, 5e-3);
  runs_a_loop(&in);
  CHECK(in.run == -ECANCELED && in.after == 0);
  CHECK_EQ(conc_scope_end(&limit), -ETIMEDOUT);
  CHECK(!conc_current()->was_cancelled);
  /* A shield keeps both away. */
  memset(&in, 0, sizeof in);
  conc_timeout(&limit, 1e-9);
  CHECK_EQ(conc_cancel(conc_current()), 0);
  conc_shield(&shield);
  run(naps, NULL);
  CHECK_EQ(conc_scope_end(&shield), 0);
  CHECK_EQ(conc_sleep(1), -ECANCELED);
  conc_set_status(0);
  CHECK_EQ(conc_scope_end(&limit), 0);
}

/* The main coroutine has finished: what comes now is for the thread. */
static void *cleans_slowly(void *arg) {
  inside *in = (inside *)arg;
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  conc_event_set(&in->begun);
  CHECK_EQ(conc_sleep(5e-3), 0);
  return NULL;
}
static void *leaves_one(void *arg) {
  inside *in = (inside *)arg;
  start(conc_coro_start, &in->rest, cleans_slowly, in);
  CHECK_EQ(conc_sleep(1e-3), 0);
  return NULL;
}
static void *runs_and_waits(void *arg) {
  inside *in = (inside *)arg;
  conc_task t = task_of(leaves_one, in);
  in->run = conc_run(&t);
  in->after = conc_sleep(CONC_FOREVER);
  return NULL;
}
TEST(a_cancel_during_the_last_clean_up_stays_pending) {
  inside in;
  conc_task t;
  memset(&in, 0, sizeof in);
  start(conc_thread_start, &t, runs_and_waits, &in);
  CHECK_EQ(conc_event_wait(&in.begun, CONC_FOREVER), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK(in.run == 0 && in.after == -ECANCELED);
}

/* --- the end of a loop --- */

static conc_task late[40];
static int late_count, late_rc;
static void *sleeps_for_ever(void *arg) {
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  return arg;
}
static void *ends_at_once(void *arg) {
  CHECK_EQ(conc_yield_now(), 0);
  return arg;
}
/* It may use coroutines while it cleans up; what it leaves is cancelled. */
static void *starts_at_the_end(void *arg) {
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  start(conc_coro_start, &late[0], ends_at_once, NULL);
  start(conc_coro_start, &late[1], sleeps_for_ever, NULL);
  CHECK_EQ(conc_join(&late[0], CONC_FOREVER), 0);
  conc_set_status(0);
  return arg;
}
static void *starts_another(void *arg) {
  conc_task *t = &late[late_count];
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  *t = task_of(starts_another, arg);
  late_rc = conc_coro_start(t);
  if (late_rc == 0 && ++late_count < 39) conc_sleep(1e-3);
  return arg;
}
static void *leaves(void *arg) {
  static conc_task t;
  start(conc_coro_start, &t, arg != NULL ? starts_another : starts_at_the_end,
        NULL);
  CHECK_EQ(conc_yield_now(), 0);
  return NULL;
}
TEST(what_is_started_at_the_end_of_a_loop_is_cancelled) {
  run(leaves, NULL);
  CHECK_EQ(conc_join(&late[0], 0), 0);
  CHECK_EQ(conc_join(&late[1], 0), -ECANCELED);
}
TEST(a_loop_that_is_never_done_takes_no_more_at_last) {
  run(leaves, &late);
  CHECK_EQ(late_rc, -ECANCELED);
  CHECK(late_count >= 1 && late_count < 39);
  CHECK_EQ(conc_join(&late[late_count], 0), -EINVAL);
}

/* --- groups --- */

static void *ends(void *arg) { return arg; }
TEST(a_member_may_be_started_again_and_freed) {
  for (int i = 0; i < 50; i++) {
    conc_group g = {0};
    conc_task a = task_of(ends, NULL);
    conc_task *b = (conc_task *)test_malloc(sizeof *b);
    *b = task_of(ends, NULL);
    CHECK_EQ(conc_group_start(&g, &a, conc_thread_start), 0);
    CHECK_EQ(conc_group_start(&g, b, conc_thread_start), 0);
    CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
    CHECK_EQ(conc_group_start(&g, &a, conc_thread_start), 0);
    CHECK_EQ(conc_join(b, CONC_FOREVER), 0);
    CHECK_EQ(conc_group_start(&g, b, conc_thread_start), 0);
    CHECK_EQ(conc_join(b, CONC_FOREVER), 0);
    memset(b, 0x5a, sizeof *b);
    test_free(b);
    CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&a, 0), 0);
    CHECK(g.count == 0 && g.first == NULL);
  }
}

/* Members fail, end, are joined and freed, while the group is cancelled and
   left. */
typedef struct leaf {
  conc_task task;
  int i;
} leaf;
static void *any_end(void *arg) {
  leaf *l = (leaf *)arg;
  if (l->i % 3 == 0 && conc_sleep(l->i % 2 * 1e-4) != 0) return NULL;
  if (l->i % 7 == 0) conc_set_status(-EIO);
  if (l->i % 5 == 0 && l->i % 7 != 0) conc_sleep(CONC_FOREVER);
  return NULL;
}
static void *joins_and_frees(void *arg) {
  leaf *l = (leaf *)arg;
  conc_join(&l->task, CONC_FOREVER);
  memset(l, 0x5a, sizeof *l);
  test_free(l);
  return NULL;
}
static void *fills_a_group(void *arg) {
  int rounds = TEST_TSAN || TEST_ASAN ? 30 : 150;
  for (int r = 0; r < rounds; r++) {
    conc_group g = {0};
    conc_task joiners[12];
    int n = 0, rc;
    for (int i = 0; i < 12; i++) {
      leaf *l = (leaf *)test_malloc(sizeof *l);
      l->task = task_of(any_end, l);
      l->i = r + i;
      rc = conc_group_start(&g, &l->task,
                            arg != NULL && i % 2 ? conc_coro_start
                                                 : conc_thread_start);
      if (rc != 0) {
        CHECK_EQ(rc, -ECANCELED);
        test_free(l);
      } else {
        start(conc_thread_start, &joiners[n++], joins_and_frees, l);
      }
    }
    rc = conc_group_leave(&g, r % 2 ? CONC_FOREVER : 1e-4);
    CHECK(rc == -EIO || rc == -ETIMEDOUT);
    for (int i = 0; i < n; i++) CHECK_EQ(conc_join(&joiners[i], 60), 0);
  }
  return NULL;
}
TEST_BOTH(members_end_while_their_group_is_cancelled, fills_a_group)

/* 100,000 members, which are cancelled by one failure. */
static void *fails(void *arg) {
  conc_set_status(-EIO);
  return arg;
}
static bool guard_install_works(void) {
  void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  bool works = madvise(page, 4096, 102) == 0;
  munmap(page, 4096);
  return works;
}
static void *a_large_group(void *arg) {
  /* Where a guard splits the mapping, the kernel allows 65,530. */
  int n = TEST_TSAN || TEST_ASAN ? 3000
          : CONC_HAVE_GUARD_INSTALL && guard_install_works() ? 100000
                                                             : 20000;
  conc_task *t = (conc_task *)calloc((size_t)n, sizeof *t);
  conc_group g = {0};
  double before = conc_now();
  for (int i = 0; i < n; i++) {
    t[i].target = i == n - 1 ? fails : sleeps_for_ever;
    CHECK_EQ(conc_group_start(&g, &t[i], conc_coro_start), 0);
  }
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), -EIO);
  CHECK(conc_now() - before < 20 * test_slow());
  free(t);
  return arg;
}
TEST(a_large_group_is_left) { run(a_large_group, NULL); }

/* A group that waits for a task that waits for the group's leaver. */
static conc_task *leaver;
static void *joins_the_leaver(void *arg) {
  (void)arg;
  conc_set_status(conc_join(leaver, CONC_FOREVER));
  return NULL;
}
static void *leaves_in_a_circle(void *arg) {
  conc_group g = {0};
  conc_task t = task_of(joins_the_leaver, NULL);
  int rc;
  leaver = conc_current();
  CHECK_EQ(conc_group_start(&g, &t, conc_thread_start), 0);
  rc = conc_group_leave(&g, CONC_FOREVER);
  CHECK(rc == -EDEADLK);
  return arg;
}
TEST(a_group_in_a_circle_is_a_deadlock) {
  conc_task t;
  start(conc_thread_start, &t, leaves_in_a_circle, NULL);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}

/* --- one outcome --- */

typedef struct race {
  conc_event event;
  int rc, again;
  double timeout;
} race;
static void *waits_once(void *arg) {
  race *r = (race *)arg;
  r->rc = conc_event_wait(&r->event, r->timeout);
  conc_set_status(0);
  r->again = conc_sleep(0);
  return NULL;
}
static void spin(unsigned n) {
  for (unsigned i = 0; i < n; i++) __asm__ volatile("" ::: "memory");
}
/* A cancel, a timeout and a set at the same moment: the cancellation comes
   once, at this wait or at the next; the set is never lost. */
static void *one_outcome(void *arg) {
  int rounds = TEST_TSAN || TEST_ASAN ? 300 : 3000;
  int seen[3] = {0, 0, 0};
  for (int i = 0; i < rounds; i++) {
    race r;
    conc_task t = task_of(waits_once, &r);
    int cancelled;
    memset(&r, 0, sizeof r);
    r.timeout = i % 3 ? 2e-5 + i % 5 * 1e-5 : CONC_FOREVER;
    CHECK_EQ((arg != NULL ? conc_coro_start : conc_thread_start)(&t), 0);
    if (arg != NULL) conc_yield_now();
    spin((unsigned)(test_random() % 30000));
    cancelled = conc_cancel(&t);
    if (i % 2) conc_event_set(&r.event);
    CHECK_EQ(conc_join(&t, CONC_FOREVER) != 0 && cancelled != 0, 0);
    if (r.rc == -ECANCELED || t.status == -ECANCELED) {
      seen[0]++;
    } else {
      CHECK(r.rc == 0 || r.rc == -ETIMEDOUT);
      seen[r.rc == 0 ? 1 : 2]++;
    }
    if (r.rc == -ECANCELED) CHECK_EQ(r.again, 0);
    CHECK(cancelled == 0 || r.rc != -ECANCELED);
  }
  CHECK(seen[0] > 0);
  return NULL;
}
TEST_BOTH(a_cancel_a_timeout_and_an_end_have_one_outcome, one_outcome)

/* --- starts that fail --- */

TEST(a_start_that_fails_leaves_nothing_of_the_last_run) {
  conc_task t;
  start(conc_thread_start, &t, fails, &t);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -EIO);
  CHECK_EQ(conc_coro_start(&t), -EPERM); /* there is no loop: not touched */
  CHECK_EQ(conc_join(&t, 0), -EIO);
  t.stack_size = (size_t)1 << 60;
  CHECK(conc_thread_start(&t) < 0);
  CHECK_EQ(conc_join(&t, 0), -EINVAL);
  CHECK(conc_result(&t) == NULL && !conc_is_alive(&t));
  t.stack_size = 0;
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -EIO);
  t.target = NULL;
  CHECK_EQ(conc_thread_start(&t), -EINVAL);
  CHECK_EQ(conc_join(&t, 0), -EINVAL);
  CHECK(conc_result(&t) == NULL);
}

/* --- a fork --- */

/* A callback of a task that was left behind starts threads, which get the
   stacks of the missing threads, with the tasks that lie there. */
static int calls;
static void *fills_its_stack(void *arg) {
  volatile char room[100000];
  memset((void *)(uintptr_t)room, 0x5a, sizeof room);
  return arg;
}
static void starts_threads(conc_task *t, int status, void *result) {
  conc_task threads[4];
  (void)t, (void)result;
  if (status != -ECHILD) return;
  for (int i = 0; i < 4; i++)
    start(conc_thread_start, &threads[i], fills_its_stack, NULL);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&threads[i], 20), 0);
  calls++;
}
static int begun;
static void *waits_for_go(void *go) {
  __atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
  return (void *)(intptr_t)conc_event_wait((conc_event *)go, CONC_FOREVER);
}
static void *has_tasks_on_its_stack(void *go) {
  conc_task t[3];
  conc_group g = {0};
  for (int i = 0; i < 3; i++) {
    t[i] = task_of(waits_for_go, go);
    t[i].callback = starts_threads;
    CHECK_EQ(conc_group_start(&g, &t[i], conc_thread_start), 0);
  }
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
  return NULL;
}
TEST(callbacks_in_a_forked_child_may_start_threads) {
  NEEDS_FORK;
  conc_task t[3];
  conc_event go = {0};
  int status;
  pid_t pid;
  for (int i = 0; i < 3; i++)
    start(conc_thread_start, &t[i], has_tasks_on_its_stack, &go);
  UNTIL(load(&begun) == 9);
  pid = fork();
  if (pid == 0) {
    CHECK_CHILD(calls == 9);
    for (int i = 0; i < 3; i++) CHECK_CHILD(conc_join(&t[i], 5) == -ECHILD);
    _exit(0);
  }
  conc_event_set(&go);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
}

TEST_MAIN
