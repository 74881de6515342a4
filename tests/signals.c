/* conc_wait_signal, from threads and coroutines. */
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

TEST_MAIN
