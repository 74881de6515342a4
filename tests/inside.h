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

/* Until the task sleeps in a wait. */
TEST_FN void wait_parked(conc_task *t) {
  for (;;) {
    conc__actor *actor = CONC__LOAD(&t->actor);
    if (actor != NULL && actor != CONC__NEVER_BEGIN &&
        (CONC__LOAD(&actor->word) & CONC__PARKED))
      return;
    CHECK(conc_is_alive(t));
    conc_yield_now();
  }
}

#endif
