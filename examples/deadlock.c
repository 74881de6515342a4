/* The deadlock that the Python tutorials (in Chinese) that these examples
   follow warn of: two threads hold a lock each and want the other's. It is
   found and named, and one of the two is told.
     cc deadlock.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static conc_lock a = {.name = "a"}, b = {.name = "b"};
static conc_barrier both = {.parties = 2}; /* let it go wrong every time */

static void *take_both(void *first_is_a) {
  conc_lock *first = first_is_a ? &a : &b;
  conc_lock *second = first_is_a ? &b : &a;
  char report[200];
  conc_lock_acquire(first, CONC_FOREVER);
  conc_barrier_wait(&both, CONC_FOREVER);
  if (conc_lock_acquire(second, CONC_FOREVER) == -EDEADLK) {
    conc_deadlock_report(report, sizeof report);
    printf("%s\n", report);
  } else {
    printf("somebody has both locks\n");
    conc_lock_release(second);
  }
  conc_lock_release(first);
  return NULL;
}

int main(void) {
  conc_task t1 = {.target = take_both, .arg = &a, .name = "Thread-A"};
  conc_task t2 = {.target = take_both, .arg = NULL, .name = "Thread-B"};
  conc_thread_start(&t1);
  conc_thread_start(&t2);
  if (conc_join(&t1, CONC_FOREVER) != 0) return 1;
  if (conc_join(&t2, CONC_FOREVER) != 0) return 1;
  return 0;
}
