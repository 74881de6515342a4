/* Who has a turn, and when. In asyncio only an await that waits lets the others
   run; here queues and descriptors do so too, every now and then, though they
   have what is asked for. Code that makes no such call yields by itself.
     cc turns.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static conc_queue *queue;
static int ticks; /* of one loop's coroutines: no lock is needed */

static void *tick(void *arg) {
  for (int i = 1; i <= 3; i++) {
    conc_sleep(0.001);
    printf("tick %d\n", i);
    ticks++;
  }
  return arg;
}

/* The queue is never empty when it is asked, and never full: no call waits. */
static void *carry(void *arg) {
  int n = 0;
  while (ticks < 3) {
    conc_put(queue, &n, sizeof n, CONC_FOREVER);
    conc_get(queue, &n, sizeof n, CONC_FOREVER);
  }
  printf("carried\n");
  return arg;
}

/* Neither a free lock nor arithmetic lets the others run. */
static void *compute(void *arg) {
  unsigned n = 1;
  while (ticks < 3) {
    for (int i = 0; i < 1000; i++) n = n * 1664525u + 1013904223u;
    conc_yield_now();
  }
  printf("computed%s\n", n == 0 ? "?" : "");
  return arg;
}

static void *run(void *arg) {
  conc_fn *const fns[] = {carry, compute};
  for (int i = 0; i < 2; i++) {
    conc_task t[2] = {{.target = tick}, {.target = fns[i]}};
    conc_task *both[] = {&t[0], &t[1]};
    ticks = 0;
    conc_coro_start(&t[0]);
    conc_coro_start(&t[1]);
    conc_gather(both, 2, CONC_FOREVER);
  }
  return arg;
}

int main(void) {
  conc_task t = {.target = run};
  int rc;
  queue = conc_queue_new(NULL);
  rc = conc_run(&t);
  conc_queue_free(queue);
  return rc;
}
