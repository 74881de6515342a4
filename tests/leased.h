/* leased.h: texts that go through a queue, and what is expected of it, with
 * leases or without. After conc.h or inside.h. */
#ifndef TEST_LEASED_H
#define TEST_LEASED_H
#include "test.h"

/* All defaults, but for the lease in seconds. */
TEST_FN conc_queue_opts leasing(double lease) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.lease = lease;
  return o;
}

TEST_FN void put(conc_queue *q, const char *text) {
  CHECK_EQ(conc_put(q, text, strlen(text), 10 * test_slow()), 0);
}

/* Takes one; waits for it. The lease may be NULL. */
TEST_FN void expect(conc_queue *q, const char *text, conc_lease *lease) {
  char buf[64];
  const double wait = 15 * test_slow();
  ssize_t n = lease != NULL ? conc_get_leased(q, lease, buf, 64, wait)
                            : conc_get(q, buf, 64, wait);
  if (n < 0)
    test_fail(__FILE__, __LINE__, "no \"%s\": %s", text,
              conc_strerror((int)n));
  CHECK_EQ(n, strlen(text));
  CHECK(memcmp(buf, text, strlen(text)) == 0);
}

TEST_FN void expect_none(conc_queue *q, double timeout) {
  char buf[64];
  CHECK_EQ(conc_get(q, buf, sizeof buf, timeout), -ETIMEDOUT);
}

TEST_FN conc_queue_counts counts(conc_queue *q) {
  conc_queue_counts c;
  CHECK_EQ(conc_queue_stats(q, &c), 0);
  return c;
}
#endif
