/* conc_wait_signal and conc_stop_on_signals, from threads and coroutines. */
#include "inside.h"
#include "tasks.h"

static const int both[] = {SIGUSR1, SIGUSR2};
static const int usr2 = SIGUSR2;

TEST(only_blocked_signals_can_be_waited_for) {
  static const int wrong[] = {SIGUSR1, 12345};
  CHECK_EQ(conc_wait_signal(both, 2, 0), -EINVAL);
  CHECK_EQ(conc_wait_signal(both, 0, 0), -EINVAL);
  CHECK_EQ(conc_wait_signal(wrong, 2, 0), -EINVAL);
  CHECK_EQ(conc_block_signals(wrong, 2), -EINVAL);
  CHECK_EQ(conc_block_signals(both, 0), -EINVAL);
  CHECK_EQ(conc_block_signals(both, 1), 0);
  CHECK_EQ(conc_wait_signal(both, 2, 0), -EINVAL);
  CHECK_EQ(conc_wait_signal(both, 1, 0), -ETIMEDOUT);
}

static void *pending(void *arg) {
  struct sigaction handler;
  sigset_t before, after;
  double begin = conc_now();
  CHECK_EQ(conc_block_signals(both, 2), 0);
  pthread_sigmask(SIG_BLOCK, NULL, &before);
  CHECK_EQ(conc_wait_signal(both, 2, 0), -ETIMEDOUT);
  CHECK_EQ(conc_wait_signal(both, 2, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - begin > 0.04);
  kill(getpid(), SIGUSR1);
  CHECK_EQ(conc_wait_signal(&usr2, 1, 0), -ETIMEDOUT); /* another one */
  CHECK_EQ(conc_wait_signal(both, 2, 0), SIGUSR1);
  kill(getpid(), SIGUSR2);
  kill(getpid(), SIGUSR1);
  CHECK_EQ(conc_wait_signal(both, 2, 5) + conc_wait_signal(both, 2, 5),
           SIGUSR1 + SIGUSR2);
  raise(SIGUSR2); /* to the thread */
  CHECK_EQ(conc_wait_signal(both, 2, 5), SIGUSR2);
  CHECK_EQ(conc_wait_signal(both, 2, 0), -ETIMEDOUT);
  CHECK_EQ(sigaction(SIGUSR1, NULL, &handler), 0); /* nothing left behind */
  CHECK(handler.sa_handler == SIG_DFL);
  pthread_sigmask(SIG_BLOCK, NULL, &after);
  for (int i = 1; i < 32; i++)
    CHECK_EQ(sigismember(&before, i), sigismember(&after, i));
  return arg;
}
TEST_BOTH(a_pending_signal_is_told_and_nothing_is_left_behind, pending)

static void *wait_usr2(void *arg) {
  (void)arg;
  return (void *)(intptr_t)conc_wait_signal(&usr2, 1, 25);
}
static void *wake(void *arg) {
  conc_task t;
  CHECK_EQ(conc_block_signals(both, 2), 0);
  for (int i = 0; i < 20; i++) {
    start(arg ? conc_coro_start : conc_thread_start, &t, wait_usr2, NULL);
    for (int j = 0; j < i % 4 * 10; j++) conc_yield_now();
    if (i % 3 == 0) {
      CHECK_EQ(conc_cancel(&t), 0);
      CHECK_EQ(conc_join(&t, 20), -ECANCELED);
      if (conc_result(&t) != NULL) /* else it has never begun */
        CHECK_EQ((intptr_t)conc_result(&t), -ECANCELED);
    } else {
      kill(getpid(), SIGUSR2);
      CHECK_EQ(conc_join(&t, 20), 0);
      CHECK_EQ((intptr_t)conc_result(&t), SIGUSR2);
    }
  }
  return NULL;
}
TEST_BOTH(who_waits_is_woken_or_cancelled, wake)

/* Each signal is told to one of those who wait. */
static void *many(void *arg) {
  conc_task t[8];
  CHECK_EQ(conc_block_signals(both, 2), 0);
  for (int i = 0; i < 8; i++)
    start(arg && i % 2 ? conc_coro_start : conc_thread_start, &t[i], wait_usr2,
          NULL);
  for (int i = 0; i < 8; i++) {
    sigset_t set;
    CHECK_EQ(kill(getpid(), SIGUSR2), 0);
    do { /* those that are pending count as one */
      CHECK_EQ(conc_sleep(0.001), 0);
      sigpending(&set);
    } while (sigismember(&set, SIGUSR2));
  }
  for (int i = 0; i < 8; i++) {
    CHECK_EQ(conc_join(&t[i], 20), 0);
    CHECK_EQ((intptr_t)conc_result(&t[i]), SIGUSR2);
  }
  CHECK_EQ(conc_wait_signal(&usr2, 1, 0), -ETIMEDOUT);
  return NULL;
}
TEST_BOTH(each_of_many_gets_one, many)

/* A child and its parent signal each other in turn. */
enum { TURNS = 200 };
static void *ping(void *arg) {
  double slow = 20 * test_slow();
  pid_t parent = getpid(), child = fork();
  if (child == 0) {
    for (int i = 0; i < TURNS; i++) {
      if (conc_wait_signal(both, 1, slow) != SIGUSR1) _exit(1);
      kill(parent, SIGUSR2);
    }
    _exit(0);
  }
  for (int i = 0; i < TURNS; i++) {
    kill(child, SIGUSR1);
    CHECK_EQ(conc_wait_signal(&usr2, 1, slow), SIGUSR2);
  }
  {
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
  return arg;
}
TEST(processes_signal_each_other) {
  CHECK_EQ(conc_block_signals(both, 2), 0);
  ping(NULL);
  if (!CONC_HAVE_TSAN) run(ping, NULL); /* it cannot fork in a fiber */
}

/* --- conc_stop_on_signals --- */

/* The handlers of both are as in a new program. */
static bool nothing_is_caught(void) {
  struct sigaction a, b;
  CHECK_EQ(sigaction(SIGINT, NULL, &a), 0);
  CHECK_EQ(sigaction(SIGTERM, NULL, &b), 0);
  return a.sa_handler == SIG_DFL && b.sa_handler == SIG_DFL;
}

/* The clean-up waits, without a loop, after one wait has failed. */
static void *serve_until_stopped(void *arg) {
  kill(getpid(), SIGINT);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_sleep(0.001), 0);
  CHECK_EQ(conc_sleep(0.001), 0);
  return arg;
}
TEST(a_signal_cancels_the_main_coroutine) {
  conc_task t = task_of(serve_until_stopped, NULL);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
    CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), -EBUSY);
    CHECK_EQ(conc_run(&t), -ECANCELED);
    CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0);
    CHECK(nothing_is_caught());
  }
  CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0); /* nothing to undo */
}

static void *stop_itself(void *arg) {
  CHECK_EQ(conc_stop_on_signals(conc_current(), both, 2), 0);
  CHECK(nothing_is_caught()); /* these it was not asked for */
  kill(getpid(), SIGUSR2);
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_set_status(0), 0);
  CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0);
  return arg;
}
TEST_BOTH(the_signals_and_the_task_may_be_others, stop_itself)

/* The main thread sleeps in poll(), where only a descriptor wakes it. */
static void *signal_later(void *arg) {
  conc_sleep(0.02); /* it most likely sleeps by then; if not, no harm */
  kill(getpid(), SIGTERM);
  return arg;
}
TEST(a_main_thread_that_reads_is_cancelled) {
  conc_task t;
  int fds[2];
  char byte;
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
  start(conc_thread_start, &t, signal_later, NULL);
  CHECK_EQ(conc_read(fds[0], &byte, 1, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_read(fds[0], &byte, 1, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0);
  close(fds[0]);
  close(fds[1]);
}

TEST(what_cannot_be_caught_or_is_ignored) {
  static const int kill_too[] = {SIGUSR1, SIGKILL};
  static const int many[9] = {SIGUSR1};
  struct sigaction action;
  CHECK_EQ(conc_stop_on_signals(conc_current(), kill_too, 2), -EINVAL);
  CHECK_EQ(conc_stop_on_signals(conc_current(), many, 9), -EINVAL);
  CHECK_EQ(sigaction(SIGUSR1, NULL, &action), 0);
  CHECK(action.sa_handler == SIG_DFL);
  signal(SIGINT, SIG_IGN); /* as under nohup, or in the background */
  CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
  CHECK_EQ(sigaction(SIGINT, NULL, &action), 0);
  CHECK(action.sa_handler == SIG_IGN);
  CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0);
  CHECK_EQ(sigaction(SIGINT, NULL, &action), 0);
  CHECK(action.sa_handler == SIG_IGN);
  CHECK_EQ(sigaction(SIGTERM, NULL, &action), 0);
  CHECK(action.sa_handler == SIG_DFL);
}

/* Children that die. Each says by a byte that it has come so far. */
static int said[2];

static void say(void) { CHECK_EQ(write(said[1], "x", 1), 1); }

static void *never_ends(void *arg) {
  conc_scope shield;
  say();
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  say();
  conc_shield(&shield);
  conc_sleep(CONC_FOREVER); /* a clean-up that hangs */
  return arg;
}
static void first_and_second(void) {
  conc_task t = task_of(never_ends, NULL);
  CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
  conc_run(&t);
}
static void not_running(void) {
  conc_task t = task_of(never_ends, NULL);
  CHECK_EQ(conc_stop_on_signals(&t, NULL, 0), 0);
  say();
  conc_sleep(CONC_FOREVER);
}
/* A child of the one that made the call has its own fate. */
static void forked_once_more(void) {
  pid_t child;
  int how;
  CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
  child = fork();
  if (child == 0) {
    say();
    for (;;) pause();
  }
  CHECK_EQ(conc_sleep(0.001), 0);
  kill(child, SIGTERM);
  CHECK_EQ(waitpid(child, &how, 0), child);
  CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGTERM);
  CHECK_EQ(conc_sleep(0.001), 0); /* it was not cancelled */
  /* And it may make a call of its own. */
  child = fork();
  if (child == 0) {
    CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
    kill(getpid(), SIGTERM);
    CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
    CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0);
    CHECK(nothing_is_caught());
    _exit(0);
  }
  CHECK_EQ(waitpid(child, &how, 0), child);
  CHECK_EQ(how, 0);
  _exit(0);
}

/* Runs fn in a child, which gets the signal each time that it has said
   something; returns how it has ended. ThreadSanitizer may hold a signal back
   until there is another one: there they come until it has ended. */
static int dies(void (*fn)(void), int number, int times) {
  char byte;
  pid_t child;
  int how;
  CHECK_EQ(pipe(said), 0);
  child = fork();
  if (child == 0) {
    fn();
    _exit(99);
  }
  for (int i = 0; i < (TEST_TSAN ? 1 : times); i++) {
    CHECK_EQ(read(said[0], &byte, 1), 1);
    kill(child, number);
  }
  while (TEST_TSAN && waitpid(child, &how, WNOHANG) == 0) {
    usleep(10000);
    kill(child, number);
  }
  if (!TEST_TSAN) CHECK_EQ(waitpid(child, &how, 0), child);
  close(said[0]);
  close(said[1]);
  return how;
}

TEST(a_second_signal_ends_at_once) {
  int how = dies(first_and_second, SIGINT, 2);
  CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGINT);
  how = dies(first_and_second, SIGTERM, 2);
  CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGTERM);
}
/* It comes, and at once the call is undone: the task is cancelled, or the
   process ends as it would without the call. */
static void caught_and_undone(void) {
  CHECK_EQ(conc_stop_on_signals(conc_current(), NULL, 0), 0);
  kill(getpid(), SIGTERM);
  CHECK_EQ(conc_stop_on_signals(NULL, NULL, 0), 0);
  _exit(conc_sleep(1) == -ECANCELED ? 0 : 98);
}
TEST(a_signal_that_was_caught_is_not_lost) {
  if (TEST_TSAN) SKIP("ThreadSanitizer delays signals");
  for (int i = 0; i < 200; i++) {
    int how = dies(caught_and_undone, 0, 0);
    CHECK(how == 0 || (WIFSIGNALED(how) && WTERMSIG(how) == SIGTERM));
  }
}
TEST(a_signal_for_a_task_that_does_not_run_ends_at_once) {
  if (TEST_TSAN) SKIP("ThreadSanitizer delays signals");
  int how = dies(not_running, SIGTERM, 1);
  CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGTERM);
}
TEST(a_forked_child_is_not_stopped_by_its_parents_call) {
  if (TEST_TSAN) SKIP("ThreadSanitizer delays signals");
  CHECK_EQ(dies(forked_once_more, 0, 0), 0);
}

TEST_MAIN
