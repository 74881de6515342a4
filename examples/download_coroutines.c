/* The two downloads as coroutines of one thread: the same download() as in
   download_threads.c, and together they still take as long as the longer.
     cc download_coroutines.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *download(void *filename) {
  int time_to_download = 5 + rand() % 6;
  printf("开始下载%s...\n", (char *)filename);
  conc_sleep(time_to_download * second);
  printf("%s下载完成! 耗费了%d秒\n", (char *)filename, time_to_download);
  return NULL;
}

static void *async_main(void *arg) {
  conc_task t1 = {.target = download, .arg = (void *)"Python从入门到住院.pdf"};
  conc_task t2 = {.target = download, .arg = (void *)"Peking Hot.avi"};
  conc_task *tasks[] = {&t1, &t2};
  conc_coro_start(&t1);
  conc_coro_start(&t2);
  conc_set_status(conc_gather(tasks, 2, CONC_FOREVER));
  return arg;
}

int main(void) {
  conc_task run = {.target = async_main};
  double start = conc_now();
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  srand((unsigned)time(NULL));
  if (conc_run(&run) != 0) return 1;
  printf("总共耗费了%.3f秒\n", (conc_now() - start) / second);
  return 0;
}
