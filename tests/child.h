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

/* An address that no other program is given. A server that ends and begins
   anew finds its port free there, and until then nobody else answers. */
TEST_FN const char *private_address(void) {
  static char text[32] = "127.0.0.1:0"; /* other systems have this one only */
#ifdef __linux__
  const unsigned pid = (unsigned)getpid();
  snprintf(text, sizeof text, "127.%u.%u.%u:0", 1 + pid / 65536 % 254,
           pid / 256 % 256, pid % 256);
#endif
  return text;
}

#endif
