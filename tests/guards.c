/* No guard is held over a system call that waits: whoever waits for the guard
   would wait as long. From inside, to look at the guards in each poll(). */
#include "test.h"

#include <poll.h>

static int test_poll(struct pollfd *p, nfds_t n, int ms);
#define poll test_poll
#include "inside.h"
#undef poll
#include "tasks.h"

#include <sys/resource.h>

static conc__loop *watched; /* whose inbox is looked at, too; or NULL */
static int naps;            /* waits for a time only */
static void (*at_nap)(void);

static int test_poll(struct pollfd *p, nfds_t n, int ms) {
  if (ms == 0) return poll(p, n, ms);
  CHECK(!conc__mutex_is_held(&conc__shared_guard));
  CHECK(watched == NULL || !conc__mutex_is_held(&watched->inbox.guard));
  if (n == 0) {
    naps++;
    if (at_nap != NULL) at_nap();
  }
  return poll(p, n, ms);
}

/* --- a loop whose poller is lost, and without descriptors for another one */

static struct rlimit enough;

static void end_of_want(void) {
  if (naps == 3) CHECK_EQ(setrlimit(RLIMIT_NOFILE, &enough), 0);
}

static void *lose_poller(void *arg) {
  struct rlimit few = enough;
  few.rlim_cur = 3;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  watched = conc__this.loop;
  watched->poller.lost = true;
  at_nap = end_of_want;
  for (int i = 0; i < 1000 && watched->poller.lost; i++)
    CHECK_EQ(conc_sleep(0.001), 0);
  CHECK(!watched->poller.lost);
  watched = NULL;
  at_nap = NULL;
  return arg;
}

TEST(a_loop_without_descriptors_waits_for_some_without_its_guard) {
  conc_task t;
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &enough), 0);
  naps = 0;
  start(conc_run, &t, lose_poller, NULL);
  CHECK(naps >= 3);
}

/* --- a tracker that is a child, and slow -------------------------------- */

#if CONC__LINUX && defined(PR_SET_CHILD_SUBREAPER)
static pid_t tracker;
static void let_it_end(void) {
  if (naps == 3) CHECK_EQ(kill(tracker, SIGCONT), 0);
}

TEST(a_tracker_is_waited_for_without_the_guard) {
  char name[64];
  for (int slow = 0; slow < 2; slow++) {
    siginfo_t info;
    void *memory;
    int status;
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
    snprintf(name, sizeof name, "test-guards-%d", (int)getpid());
    memory = conc_shared_open(name, 4096, NULL, NULL);
    CHECK(memory != NULL);
    CHECK(conc__regions != NULL);
    tracker = conc__regions->tracker;
    CHECK(tracker > 0);
    CHECK_EQ(kill(tracker, SIGSTOP), 0);
    CHECK(waitpid(tracker, &status, WUNTRACED) == tracker);
    naps = 0;
    at_nap = slow ? NULL : let_it_end;
    conc_shared_free(memory);
    CHECK(naps >= 3);
    at_nap = NULL;
    if (!slow) (void)waitpid(tracker, NULL, 0); /* if 50 ms were too short */
    if (!slow) continue;
    /* It is kept for later, and the next call that drops memory has it. */
    CHECK_EQ(kill(tracker, SIGCONT), 0);
    CHECK_EQ(waitid(P_PID, (id_t)tracker, &info, WEXITED | WNOWAIT), 0);
    memory = conc_shared_open(name, 4096, NULL, NULL);
    CHECK(memory != NULL);
    CHECK(waitpid(tracker, NULL, WNOHANG) < 0 && errno == ECHILD);
    tracker = conc__regions->tracker;
    conc_shared_free(memory);
    (void)waitpid(tracker, NULL, 0);
  }
}
#endif

TEST_MAIN
