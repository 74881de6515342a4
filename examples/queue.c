/* The writer and the reader of the Python tutorials (in Chinese) that these
   examples follow: two processes and a queue. The reader never ends by itself,
   so it is terminated.
     cc queue.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *write_all(void *queue) {
  conc_queue *q = (conc_queue *)queue;
  srand((unsigned)getpid());
  printf("Process to write: %d\n", (int)getpid());
  for (char value = 'A'; value <= 'C'; value++) {
    printf("Put %c to queue...\n", value);
    fflush(stdout);
    conc_put(q, &value, 1, CONC_FOREVER);
    conc_sleep(rand() / (double)RAND_MAX * second);
  }
  return NULL;
}

static void *read_all(void *queue) {
  conc_queue *q = (conc_queue *)queue;
  char value;
  printf("Process to read: %d\n", (int)getpid());
  while (conc_get(q, &value, 1, CONC_FOREVER) == 1) {
    printf("Get %c from queue.\n", value);
    fflush(stdout);
    conc_task_done(q);
  }
  return NULL;
}

int main(void) {
  conc_queue_opts between_processes = {.shared = true};
  conc_queue *q = conc_queue_new(&between_processes);
  conc_task writer = {.target = write_all, .arg = q};
  conc_task reader = {.target = read_all, .arg = q};
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  if (q == NULL) return 1;
  conc_process_start(&writer);
  conc_process_start(&reader);
  if (conc_join(&writer, CONC_FOREVER) != 0) return 1;
  /* The tutorials terminate the reader at once, and so may lose what it has
     not read yet. Better: wait until it is done with every item. */
  conc_queue_join(q, CONC_FOREVER);
  conc_terminate(&reader);
  conc_join(&reader, CONC_FOREVER);
  conc_queue_free(q);
  return conc_exitcode(&reader) != -SIGTERM;
}
