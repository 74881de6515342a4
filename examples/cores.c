/* The busy loops of the documents: in Python as many threads as there are
   CPUs fill one of them; "用C来改写相同的死循环，直接可以把全部核心跑满".
     cc cores.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static conc_event stop;

static void *loop(void *arg) {
  unsigned x = 0;
  while (!conc_event_is_set(&stop)) x = x ^ 1;
  return x > 1 ? arg : NULL;
}

int main(void) {
  const char *scale = getenv("TIME_SCALE");
  const int count = conc_cpu_count();
  conc_task *t = (conc_task *)calloc((size_t)count, sizeof *t);
  if (t == NULL) return 1;

  clock_t used = clock();
  double start = conc_now();
  for (int i = 0; i < count; i++) {
    t[i].target = loop;
    if (conc_thread_start(&t[i]) != 0) return 1;
  }
  conc_sleep(5 * (scale ? atof(scale) : 1));
  conc_event_set(&stop);
  for (int i = 0; i < count; i++) conc_join(&t[i], CONC_FOREVER);
  free(t);

  printf("%d CPUs, %d threads: %.0f%%\n", count, count,
         100.0 * (double)(clock() - used) / CLOCKS_PER_SEC /
             (conc_now() - start));
  return 0;
}
