/* The two downloads of the Python tutorials (in Chinese) that these examples
   follow, in two threads: together they take as long as the longer of them.
     cc download_threads.c -pthread && ./a.out */

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

int main(void) {
  conc_task t1 = {.target = download, .arg = (void *)"Python从入门到住院.pdf"};
  conc_task t2 = {.target = download, .arg = (void *)"Peking Hot.avi"};
  double start = conc_now();
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  srand((unsigned)time(NULL));
  conc_thread_start(&t1);
  conc_thread_start(&t2);
  if (conc_join(&t1, CONC_FOREVER) != 0) return 1;
  if (conc_join(&t2, CONC_FOREVER) != 0) return 1;
  printf("总共耗费了%.3f秒\n", (conc_now() - start) / second);
  return 0;
}
