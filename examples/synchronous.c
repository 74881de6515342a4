/* The synchronous code of the Python tutorials (in Chinese) that these
   examples follow: 2 s and 3 s are 5 s. In wait.c the same functions run as
   coroutines.
     cc synchronous.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *taskIO_1(void *arg) {
  (void)arg;
  printf("开始运行IO任务1...\n");
  conc_sleep(2 * second); /* let us say that it takes that long */
  printf("IO任务1已完成，耗时2s\n");
  return (void *)"taskIO_1";
}

static void *taskIO_2(void *arg) {
  (void)arg;
  printf("开始运行IO任务2...\n");
  conc_sleep(3 * second);
  printf("IO任务2已完成，耗时3s\n");
  return (void *)"taskIO_2";
}

int main(void) {
  double start;

  setvbuf(stdout, NULL, _IOLBF, 0);
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  start = conc_now();
  taskIO_1(NULL);
  taskIO_2(NULL);
  printf("所有IO任务总耗时%.5f秒\n", (conc_now() - start) / second);
  return 0;
}
