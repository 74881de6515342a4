/* task_worker.py of the Python tutorials (in Chinese) that these examples
   follow: takes tasks from the queue of a master, which may be task_master.c
   or Python, and puts the results on another.
     cc task_worker.c -pthread && ./a.out [ADDRESS [AUTHKEY]] */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

int main(int argc, char **argv) {
  conc_manager m = {.address = argc > 1 ? argv[1] : "127.0.0.1:5000",
                    .authkey = argc > 2 ? argv[2] : "abc"};
  const char *colon = strrchr(m.address, ':');
  int rc;

  setvbuf(stdout, NULL, _IOLBF, 0);
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  printf("Connect to server %.*s...\n",
         (int)(colon ? colon - m.address : (long)strlen(m.address)),
         m.address);
  rc = conc_manager_connect(&m, 5);
  if (rc < 0) {
    fprintf(stderr, "cannot connect to %s: %s\n", m.address,
            rc == -EACCES ? "the authentication key is wrong"
                          : conc_strerror(rc));
    return 1;
  }

  conc_queue *task = conc_manager_get(&m, "get_task_queue");
  conc_queue *result = conc_manager_get(&m, "get_result_queue");
  if (task == NULL || result == NULL) {
    fprintf(stderr, "no such queue: %s\n", conc_strerror(errno));
    return 1;
  }

  for (int i = 0; i < 10; i++) {
    int n;
    rc = conc_get_parse(task, second, "i", &n);
    if (rc == -ETIMEDOUT) {
      printf("task queue is empty.\n");
      continue;
    }
    if (rc < 0) break;
    printf("run task %d * %d...\n", n, n);
    char r[100];
    snprintf(r, sizeof r, "%d * %d = %lld", n, n, (long long)n * n);
    conc_sleep(second);
    rc = conc_put_build(result, CONC_FOREVER, "s", r);
    if (rc == 0) rc = conc_task_done(task);
    if (rc < 0) break;
  }
  /* A master that has all its results leaves: that is no failure. */
  if (rc < 0 && rc != -ETIMEDOUT)
    printf("the master has gone (%s).\n", conc_strerror(rc));

  conc_manager_shutdown(&m);
  printf("worker exit.\n");
  return 0;
}
