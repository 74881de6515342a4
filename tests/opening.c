/* A process that is stopped while it makes memory with a name keeps no other
   one that opens the name: the wait has a bound, and can be cancelled. From
   inside, for a shorter bound. */
#define CONC__OPEN_WAIT 0.3
#include "test.h"

#include "inside.h"
#include "tasks.h"

#include <signal.h>
#include <sys/wait.h>

static char name[64];
static unsigned began;

static int stop_here(void *memory, void *arg) {
  (void)memory;
  (void)arg;
  raise(SIGSTOP);
  return 0;
}

static void *open_it(void *arg) {
  void *memory;
  ADD_FETCH(began, 1);
  memory = conc_shared_open(name, 100, NULL, NULL);
  int rc = memory == NULL ? errno : 0;
  conc_shared_free(memory);
  (void)arg;
  return (void *)(intptr_t)rc;
}

TEST(an_opener_that_is_stopped_in_init_keeps_no_other) {
  conc_queue_opts o;
  conc_task t;
  int status;
  double before;
  pid_t pid;
  NEEDS_FORK;
  snprintf(name, sizeof name, "conc-opening-%d", (int)getpid());
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    void *memory = conc_shared_open(name, 100, stop_here, NULL);
    CHECK_CHILD(memory != NULL);
    raise(SIGSTOP);
    conc_shared_free(memory);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
  CHECK(WIFSTOPPED(status));
  before = test_now();
  CHECK_EQ((intptr_t)open_it(NULL), ETIMEDOUT);
  CHECK(test_now() - before >= 0.29);
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.name = name;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, ETIMEDOUT);
  do { /* again if its time was over before the cancel came */
    STORE(began, 0);
    start(conc_thread_start, &t, open_it, NULL);
    while (LOAD(began) == 0) usleep(100);
    conc_cancel(&t);
    conc_join(&t, CONC_FOREVER);
  } while ((intptr_t)conc_result(&t) == ETIMEDOUT);
  CHECK_EQ((intptr_t)conc_result(&t), ECANCELED);
  memset(&t, 0, sizeof t);
  t.target = open_it;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ((intptr_t)conc_result(&t), ETIMEDOUT);
  /* It goes on, and all is as if nothing had been. */
  kill(pid, SIGCONT);
  CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
  CHECK(WIFSTOPPED(status));
  CHECK_EQ((intptr_t)open_it(NULL), 0);
  kill(pid, SIGCONT);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
}

TEST_MAIN
