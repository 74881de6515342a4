/* Two downloads in two processes: they take as long as the longer of them.
   TIME_SCALE=0.01 makes the seconds shorter.
     cc download_processes.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double scale = 1;

static void *download_task(void *filename) {
  int time_to_download;
  srand((unsigned)getpid());
  printf("Download process %d starts.\n", (int)getpid());
  printf("Downloading %s...\n", (const char *)filename);
  fflush(stdout);
  time_to_download = 5 + rand() % 6;
  conc_sleep(time_to_download * scale);
  printf("%s is there. It took %d seconds.\n", (const char *)filename,
         time_to_download);
  return NULL;
}

int main(void) {
  double start = conc_now();
  conc_task p1 = {.target = download_task,
                  .arg = (void *)"Python from zero to hospital.pdf"};
  conc_task p2 = {.target = download_task, .arg = (void *)"Peking Hot.avi"};
  if (getenv("TIME_SCALE") != NULL) scale = atof(getenv("TIME_SCALE"));
  if (conc_process_start(&p1) != 0 || conc_process_start(&p2) != 0) return 1;
  conc_join(&p1, CONC_FOREVER);
  conc_join(&p2, CONC_FOREVER);
  printf("All of it took %.2f seconds.\n", (conc_now() - start) / scale);
  return 0;
}
