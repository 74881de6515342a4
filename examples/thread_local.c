/* ThreadLocal of the Python tutorials (in Chinese) that these examples
   follow: one global variable whose attributes each thread has for itself.
     cc thread_local.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static conc_local local_school;

static void process_student(void) {
  /* The student of the current thread. */
  const char *std = (const char *)conc_local_get(&local_school, "student");
  printf("Hello, %s (in %s)\n", std, conc_name(NULL));
}

static void *process_thread(void *name) {
  conc_local_set(&local_school, "student", name);
  process_student();
  return NULL;
}

int main(void) {
  conc_task t1 = {
      .target = process_thread, .arg = (void *)"Alice", .name = "Thread-A"};
  conc_task t2 = {
      .target = process_thread, .arg = (void *)"Bob", .name = "Thread-B"};
  conc_thread_start(&t1);
  conc_thread_start(&t2);
  if (conc_join(&t1, CONC_FOREVER) != 0) return 1;
  if (conc_join(&t2, CONC_FOREVER) != 0) return 1;
  conc_local_free(&local_school);
  return 0;
}
