/* inside.h: the implementation, for tests that look inside. It is static,
 * checks its own rules, and allocates by test.h, so that a test only passes if
 * all is freed.
 * An option of conc.h that a test wants otherwise is defined before. */
#ifndef TEST_INSIDE_H
#define TEST_INSIDE_H
#include "test.h"
#ifndef CONC_MALLOC
#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#endif
#ifndef CONC_CHECKED
#define CONC_CHECKED
#endif
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"
#ifndef EREMOTEIO
#define EREMOTEIO CONC__EREMOTEIO
#endif

/* Whether the ends of processes are seen by pidfds: the system, or what the
   program runs in, may refuse them. */
TEST_FN bool test_has_pidfds(void) {
#if CONC_HAVE_PIDFD
  return syscall(SYS_pidfd_open, -1, 0) < 0 && errno == EINVAL;
#else
  return false;
#endif
}
#endif
