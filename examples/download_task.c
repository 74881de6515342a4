/* The two downloads of the Python tutorials (in Chinese) that these examples
   follow, by a "subclass" of the thread: a struct that begins with a task, and
   a run() that gets it.
     cc download_task.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

typedef struct download_task {
  conc_task task;
  const char *filename;
} download_task;

static void *run(void *arg) {
  const download_task *self = (const download_task *)arg;
  int time_to_download = 5 + rand() % 6;
  printf("开始下载%s...\n", self->filename);
  conc_sleep(time_to_download * second);
  printf("%s下载完成! 耗费了%d秒\n", self->filename, time_to_download);
  return NULL;
}

int main(void) {
  download_task t1 = {{.target = run, .arg = &t1}, "Python从入门到住院.pdf"};
  download_task t2 = {{.target = run, .arg = &t2}, "Peking Hot.avi"};
  double start = conc_now();
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  srand((unsigned)time(NULL));
  conc_thread_start(&t1.task);
  conc_thread_start(&t2.task);
  if (conc_join(&t1.task, CONC_FOREVER) != 0) return 1;
  if (conc_join(&t2.task, CONC_FOREVER) != 0) return 1;
  printf("总共耗费了%.2f秒.\n", (conc_now() - start) / second);
  return 0;
}
