/* Kills a process at an instruction: ptrace steps it there. */
#ifndef STEP_H
#define STEP_H
#include "test.h"
#include <sys/ptrace.h>

/* In a child calls prepare(), then run(arg), and kills it at the k-th
   instruction of that unless it has returned, which must be 0. 1 if it was
   killed, 0 if not; -1: ptrace is not permitted. */
TEST_FN int step_kill(void (*prepare)(void), int (*run)(void *arg), void *arg,
                      long k) {
  int status = 0, early = 0;
  pid_t pid = fork();
  if (pid == 0) {
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) _exit(77);
    prepare();
    raise(SIGSTOP);
    _exit(run(arg) != 0 ? 99 : 0);
  }
  CHECK(pid > 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  if (WIFEXITED(status)) return -1;
  while (k-- > 0 && WIFSTOPPED(status)) {
    CHECK_EQ(ptrace(PTRACE_SINGLESTEP, pid, 0, 0), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
  }
  early = WIFSTOPPED(status);
  if (early) {
    CHECK_EQ(kill(pid, SIGKILL), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
  } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    TEST_FAIL("the child failed: %x", (unsigned)status);
  }
  return early;
}

/* Calls round(k) for every k from 0 until it returns 0, the instructions of
   what it steps, if there is so much time; else for some of them, spread. */
TEST_FN long step_all(int (*round)(long k), double seconds) {
  double end = test_now() + seconds;
  long n = 16, i, k = 0;
  int rc = 1;
  while ((rc = round(n)) > 0 && n < 1 << 20) n *= 2;
  if (rc < 0) return -1;
  for (i = 0; i < n && test_now() < end; i++) {
    round(k);
    k = (k + (n * 5 / 8 | 1)) % n; /* odd, n a power of two: all of them */
  }
  return i;
}
#endif
