/* The two downloads of the Python tutorials (in Chinese) that these examples
   follow, in two processes: together they take as long as the longer of them.
     cc download_processes.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *download_task(void *filename) {
  int time_to_download;
  srand((unsigned)getpid());
  printf("启动下载进程，进程号[%d].\n", (int)getpid());
  printf("开始下载%s...\n", (char *)filename);
  fflush(stdout);
  time_to_download = 5 + rand() % 6;
  conc_sleep(time_to_download * second);
  printf("%s下载完成! 耗费了%d秒\n", (char *)filename, time_to_download);
  return NULL;
}

int main(void) {
  double start = conc_now();
  conc_task p1 = {.target = download_task,
                  .arg = (void *)"Python从入门到住院.pdf"};
  conc_task p2 = {.target = download_task, .arg = (void *)"Peking Hot.avi"};
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  conc_process_start(&p1);
  conc_process_start(&p2);
  if (conc_join(&p1, CONC_FOREVER) != 0) return 1;
  if (conc_join(&p2, CONC_FOREVER) != 0) return 1;
  printf("总共耗费了%.2f秒.\n", (conc_now() - start) / second);
  return 0;
}
