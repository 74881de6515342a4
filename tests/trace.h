/* trace.h: runs a process or a thread instruction by instruction. After
   test.h. */
#include <stdbool.h>
#include <sys/ptrace.h>

/* Whether a thread sleeps in the kernel. */
TEST_FN bool asleep(int id) {
  char path[64], text[512], *end;
  ssize_t n;
  int fd;
  snprintf(path, sizeof path, "/proc/%d/stat", id);
  if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) return true; /* or guess */
  n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  end = strrchr(text, ')'); /* a name may have anything in it */
  return end == NULL || end[2] == 'S';
}

enum { TRACE_ASLEEP = -1, TRACE_LOST = -2 };

/* Until the traced thread has stopped or ended: its status. Or it sleeps, if
   it may; or it does neither. */
TEST_FN int trace_stops(int id, bool may_sleep) {
  double late = test_now() + 10 * test_slow();
  int sleeps = 0, tries = 0, status = 0, got;
  while ((got = waitpid(id, &status, __WALL | WNOHANG)) == 0) {
    if (++tries < 30) continue;
    if (may_sleep) sleeps = asleep(id) ? sleeps + 1 : 0;
    if (sleeps > 2) return TRACE_ASLEEP;
    if (test_now() > late) return TRACE_LOST;
    sched_yield();
  }
  if (got != id) TEST_FAIL("nobody to wait for");
  return status;
}

/* What ptrace() takes first: glibc has a type for it. */
#ifdef __GLIBC__
typedef enum __ptrace_request trace_request;
#else
typedef int trace_request;
#endif

TEST_FN void trace_go(trace_request how, int id) {
  if (ptrace(how, id, 0, 0) != 0) TEST_FAIL("cannot go on");
}
