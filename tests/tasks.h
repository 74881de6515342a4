/* tasks.h: tasks as the tests start them. After conc.h or inside.h. */
#ifndef TEST_TASKS_H
#define TEST_TASKS_H
#include "test.h"

/* A task that is to call fn(arg). */
TEST_FN conc_task task_of(conc_fn *fn, void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = fn;
  t.arg = arg;
  return t;
}
/* Makes the task anew and starts it, by the function for its kind. */
TEST_FN void start(int (*how)(conc_task *), conc_task *t, conc_fn *fn,
                   void *arg) {
  *t = task_of(fn, arg);
  CHECK_EQ(how(t), 0);
}
/* Calls fn(arg) in a coroutine, on a loop of its own, and waits for it. */
TEST_FN void run(conc_fn *fn, void *arg) {
  conc_task t = task_of(fn, arg);
  CHECK_EQ(conc_run(&t), 0);
}
/* A test that calls fn(NULL) in a thread, then fn(something) in a coroutine.
 */
#define TEST_BOTH(name, fn)                                                   \
  TEST(name) {                                                                \
    fn(NULL);                                                                 \
    run(fn, (void *)1);                                                       \
  }
/* Lets others run until something has come about; if it never does, the test
 * hangs and fails. */
#define UNTIL(condition)                                                      \
  for (int tries_ = 0; !(condition); tries_++) let_others_run(tries_)
TEST_FN void let_others_run(int tries) {
  if (tries >= 50) usleep(20); /* a machine with other things to do */
  conc_yield_now();
}
#endif
