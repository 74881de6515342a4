/* Threads of the Python tutorials (in Chinese) that these examples follow:
   one with a name, beside the main thread, which is called MainThread.
     cc thread.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

/* The code of the new thread. */
static void *loop(void *arg) {
  printf("thread %s is running...\n", conc_name(NULL));
  for (int n = 1; n <= 5; n++) {
    printf("thread %s >>> %d\n", conc_name(NULL), n);
    conc_sleep(second);
  }
  printf("thread %s ended.\n", conc_name(NULL));
  return arg;
}

int main(void) {
  conc_task t = {.target = loop, .name = "LoopThread"};
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  printf("thread %s is running...\n", conc_name(NULL));
  conc_thread_start(&t);
  if (conc_join(&t, CONC_FOREVER) != 0) return 1;
  printf("thread %s ended.\n", conc_name(NULL));
  return 0;
}
