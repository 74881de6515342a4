/* child.h: children that a test forks itself. */
#ifndef TEST_CHILD_H
#define TEST_CHILD_H
#include "test.h"

/* fork(). A child that hangs ends before the test is given up. */
TEST_FN pid_t begin_child(void) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) alarm((unsigned)(25 * test_slow()));
  return pid;
}

/* Waits for a child, and checks its exit code, or the negative number of the
   signal that has killed it. */
TEST_FN void reap(pid_t pid, int want) {
  int status = 0;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), want);
}

#endif
