/* multiprocessing.Pool of the documents: five tasks for four processes, so the
   fifth waits until one of the others is done.
     cc pool.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* TIME_SCALE=0.01 sleeps a hundredth as long. */
static double time_scale(void) {
  const char *scale = getenv("TIME_SCALE");
  return scale != NULL ? atof(scale) : 1;
}

static void *long_time_task(void *name) {
  int n = *(int *)name;
  double start = conc_now();
  printf("Run task %d (%d)...\n", n, (int)getpid());
  fflush(stdout); /* before the task is over, not when the worker ends */
  srand((unsigned)(getpid() + n));
  conc_sleep(3.0 * rand() / RAND_MAX * time_scale());
  printf("Task %d runs %.2f seconds.\n", n, conc_now() - start);
  fflush(stdout);
  return NULL;
}

int main(void) {
  conc_pool p = {.workers = 4};
  conc_task tasks[5] = {{0}};
  int names[5];
  printf("Parent process %d.\n", (int)getpid());
  if (conc_pool_start(&p) != 0) return 1;
  for (int i = 0; i < 5; i++) {
    names[i] = i;
    tasks[i].target = long_time_task;
    tasks[i].arg = &names[i];
    tasks[i].size = sizeof names[i];
    if (conc_pool_submit(&p, &tasks[i]) != 0) return 1;
  }
  printf("Waiting for all subprocesses done...\n");
  fflush(stdout);
  conc_pool_close(&p);
  if (conc_pool_join(&p, CONC_FOREVER) != 0) return 1;
  printf("All subprocesses done.\n");
  return 0;
}
