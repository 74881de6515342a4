/* multiprocessing.Value and Array of Python's documentation: a number and an
   array in memory that two processes share, under a lock that they share.
     cc shared_value.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

typedef struct values {
  conc_lock lock;
  double num;
  int arr[10];
  int counter;
} values;

static values *shared;

static void *f(void *arg) {
  CONC_WITH(&shared->lock) {
    shared->num = 3.1415927;
    for (int i = 0; i < 10; i++) shared->arr[i] = -shared->arr[i];
  }
  return arg;
}

static void *count(void *arg) {
  for (int i = 0; i < 10000; i++)
    CONC_WITH(&shared->lock) shared->counter++;
  return arg;
}

int main(void) {
  conc_task p = {.target = f};
  conc_task counters[4] = {{.target = count}, {.target = count},
                           {.target = count}, {.target = count}};
  /* Before the processes start, which inherit it. */
  shared = (values *)conc_shared_alloc(sizeof *shared);
  if (shared == NULL || conc_lock_init_shared(&shared->lock) != 0) return 1;
  for (int i = 0; i < 10; i++) shared->arr[i] = i;

  conc_process_start(&p);
  if (conc_join(&p, CONC_FOREVER) != 0) return 1;
  printf("%.7f\n", shared->num);
  for (int i = 0; i < 10; i++)
    printf("%s%d%s", i ? ", " : "[", shared->arr[i], i < 9 ? "" : "]\n");

  for (int i = 0; i < 4; i++) conc_process_start(&counters[i]);
  for (int i = 0; i < 4; i++)
    if (conc_join(&counters[i], CONC_FOREVER) != 0) return 1;
  printf("%d\n", shared->counter);
  conc_shared_free(shared);
  return 0;
}
