/* multiprocessing.Pool of the Python tutorials (in Chinese) that these
   examples follow: five tasks for four processes, so the fifth waits until one
   of the others is done.
     cc pool.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *long_time_task(void *name) {
  int n = *(int *)name;
  double start = conc_now();
  printf("Run task %d (%d)...\n", n, (int)getpid());
  fflush(stdout); /* before the task is over, not when the worker ends */
  srand((unsigned)(getpid() + n));
  conc_sleep(3.0 * rand() / RAND_MAX * second);
  printf("Task %d runs %.2f seconds.\n", n, conc_now() - start);
  fflush(stdout);
  return NULL;
}

int main(void) {
  conc_pool p = {.workers = 4};
  conc_task tasks[5] = {{0}};
  int names[5];
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
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
