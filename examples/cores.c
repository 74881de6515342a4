/* The busy loops of the Python tutorials (in Chinese) that these examples
   follow: in Python as many threads as there are CPUs fill one of them;
   written in C, say the tutorials, the same loop fills all of them.
     cc cores.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */
static conc_event stop;

static void *loop(void *arg) {
  unsigned x = 0;
  while (!conc_event_is_set(&stop)) x = x ^ 1;
  return x > 1 ? arg : NULL;
}

int main(void) {
  const int count = conc_cpu_count();
  conc_task *t = (conc_task *)calloc((size_t)count, sizeof *t);
  if (t == NULL) return 1;
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));

  clock_t used = clock();
  double start = conc_now();
  for (int i = 0; i < count; i++) {
    t[i].target = loop;
    conc_thread_start(&t[i]);
  }
  conc_sleep(5 * second);
  conc_event_set(&stop);
  for (int i = 0; i < count; i++)
    if (conc_join(&t[i], CONC_FOREVER) != 0) return 1;
  free(t);

  printf("%d CPUs, %d threads: %.0f%%\n", count, count,
         100.0 * (double)(clock() - used) / CLOCKS_PER_SEC /
             (conc_now() - start));
  return 0;
}
