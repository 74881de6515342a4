/* idle.h: what waits cost. After conc.h or inside.h, and test.h. */
#ifndef TEST_IDLE_H
#define TEST_IDLE_H
#include "test.h"

#include <sys/resource.h>

/* Seconds of the CPU that this process has spent. */
TEST_FN double cpu_seconds(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
         (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
}

/* The most that waits may spend in a second, together. An emulated CPU takes
   some times as long for everything. */
TEST_FN double idle_limit(void) {
  return 0.02 * (test_slow() < 5 ? test_slow() : 5);
}

/* What the process spends in a second in which all its tasks wait. Of several
   seconds the best one: in the first, some may still be on their way to their
   waits. A wait that spins spends all of each. */
TEST_FN double spent_idly(double limit) {
  double least = 1e9;
  for (int i = 0; i < 5 && least > limit; i++) {
    double before;
    CHECK_EQ(conc_sleep(0.1), 0);
    before = cpu_seconds();
    CHECK_EQ(conc_sleep(1), 0);
    before = cpu_seconds() - before;
    if (before < least) least = before;
  }
  return least;
}
#endif
