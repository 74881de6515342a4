/* What the Python tutorials (in Chinese) that these examples follow do before
   they come to ThreadLocal: a global dict, whose key is the current thread,
   spares passing the student to every function. Compare thread_local.c, where
   the library keeps the dict.
     cc global_dict.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

typedef struct student {
  const char *name;
} student;

/* Python's dict guards itself; in C that takes a lock. */
static struct {
  conc_task *thread;
  student *value;
} global_dict[16];
static size_t entries;
static conc_lock lock;

static void dict_set(conc_task *thread, student *value) {
  conc_lock_acquire(&lock, CONC_FOREVER);
  if (entries < sizeof global_dict / sizeof *global_dict) {
    global_dict[entries].thread = thread;
    global_dict[entries++].value = value;
  }
  conc_lock_release(&lock);
}

static student *dict_get(conc_task *thread) {
  student *value = NULL;
  conc_lock_acquire(&lock, CONC_FOREVER);
  for (size_t i = 0; i < entries; i++)
    if (global_dict[i].thread == thread) value = global_dict[i].value;
  conc_lock_release(&lock);
  return value;
}

static void do_task_1(void) {
  /* Nobody passed std: it is looked up by the current thread. */
  student *std = dict_get(conc_current());
  printf("task 1 of %s (in %s)\n", std->name, conc_name(NULL));
}

static void do_task_2(void) {
  student *std = dict_get(conc_current());
  printf("task 2 of %s (in %s)\n", std->name, conc_name(NULL));
}

static void *std_thread(void *name) {
  student std = {(const char *)name};
  dict_set(conc_current(), &std);
  do_task_1();
  do_task_2();
  return NULL;
}

int main(void) {
  conc_task t1 = {
      .target = std_thread, .arg = (void *)"Alice", .name = "Thread-A"};
  conc_task t2 = {
      .target = std_thread, .arg = (void *)"Bob", .name = "Thread-B"};
  conc_thread_start(&t1);
  conc_thread_start(&t2);
  if (conc_join(&t1, CONC_FOREVER) != 0) return 1;
  if (conc_join(&t2, CONC_FOREVER) != 0) return 1;
  return 0;
}
