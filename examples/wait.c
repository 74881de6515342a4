/* asyncio.wait of the Python tutorials (in Chinese) that these examples
   follow, once by yield from and once by await: 2 s and 3 s at once are 3 s.
     cc wait.c -pthread && ./a.out */

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

static void *async_main(void *arg) {
  conc_task t1 = {.target = taskIO_1};
  conc_task t2 = {.target = taskIO_2};
  conc_task *tasks[] = {&t1, &t2};
  ssize_t done;
  (void)arg;
  conc_coro_start(&t1);
  conc_coro_start(&t2);
  done = conc_wait(tasks, 2, CONC_ALL, CONC_FOREVER);
  for (ssize_t i = 0; i < done; i++) /* in the order in which they finished */
    printf("协程无序返回值：%s\n", (char *)conc_result(tasks[i]));
  return NULL;
}

int main(void) {
  conc_task run = {.target = async_main};
  double start;
  int rc;

  setvbuf(stdout, NULL, _IOLBF, 0);
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  start = conc_now();
  rc = conc_run(&run);
  printf("所有IO任务总耗时%.5f秒\n", (conc_now() - start) / second);
  return rc;
}
