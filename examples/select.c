/* Go's select: a worker waits for jobs, for a signal to stop, and for room
   where its results go to, in one call. Exactly one of these is done at a
   time.
     cc select.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static conc_queue *jobs, *results;
static conc_event stop;

/* Squares numbers. It takes a job only when it has got rid of the last result,
   and stops at any moment: in the middle of either wait. */
static void *work(void *arg) {
  int n = 0;
  conc_case c[3] = {{0}};
  c[2].event = &stop;
  for (;;) {
    c[0].get = jobs; /* to be switched off by NULL, see below */
    c[0].buf = &n;
    c[0].size = sizeof n;
    if (conc_select(c, 3, CONC_FOREVER) != 0) break;
    n *= n;
    c[0].get = NULL; /* now there is a result to put, and no job to get */
    c[1].put = results;
    c[1].data = &n;
    c[1].size = sizeof n;
    if (conc_select(c, 3, CONC_FOREVER) != 1) break;
    c[1].put = NULL;
  }
  printf("The worker has stopped.\n");
  return arg;
}

int main(void) {
  conc_queue_opts one = {.capacity = 1};
  conc_task t = {.target = work};
  int i, n;
  jobs = conc_queue_new(NULL);
  results = conc_queue_new(&one);
  if (jobs == NULL || results == NULL || conc_thread_start(&t) != 0) return 1;
  for (i = 1; i <= 5; i++) conc_put(jobs, &i, sizeof i, CONC_FOREVER);
  for (i = 1; i <= 3; i++) {
    if (conc_get(results, &n, sizeof n, 5.0) < 0) return 1;
    printf("%d\n", n);
  }
  /* Nobody takes the other results: the worker waits for room. */
  conc_event_set(&stop);
  conc_join(&t, CONC_FOREVER);
  conc_queue_free(jobs);
  conc_queue_free(results);
  return 0;
}
