/* task_master.py of the Python tutorials (in Chinese) that these examples
   follow: puts ten tasks on a queue that workers on other machines share, and
   prints the ten results.
     cc task_master.c -pthread
     ./a.out [--lease SECONDS] [--journal PATH] [--inspect ADDRESS]
             [ADDRESS [AUTHKEY]]
   With --lease a task whose worker is killed goes to another one. With
   --journal the tasks that are not done survive this program, too. With
   --inspect a browser shows what the program does: --inspect 127.0.0.1:8080 */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv) {
  conc_queue_opts opts = {0};
  const char *inspect = NULL;
  for (; argc > 2 && strncmp(argv[1], "--", 2) == 0; argc -= 2, argv += 2) {
    if (strcmp(argv[1], "--lease") == 0) opts.lease = atof(argv[2]);
    else if (strcmp(argv[1], "--inspect") == 0) inspect = argv[2];
    else opts.journal = argv[2];
  }
  conc_queue *task_queue = conc_queue_new(&opts);  /* tasks go out here */
  conc_queue *result_queue = conc_queue_new(NULL); /* results come back here */
  if (task_queue == NULL) {
    perror(opts.journal);
    return 1;
  }
  conc_manager manager = {.address = argc > 1 ? argv[1] : "127.0.0.1:5000",
                          .authkey = argc > 2 ? argv[2] : "abc"};
  int rc = conc_inspect(inspect); /* of NULL does nothing */
  if (rc < 0) {
    fprintf(stderr, "no page at %s: %s\n", inspect, conc_strerror(rc));
    return 1;
  }

  setvbuf(stdout, NULL, _IOLBF, 0);
  srand((unsigned)time(NULL));

  /* Both queues are shared over the network under a name. */
  conc_manager_register_queue(&manager, "get_task_queue", task_queue);
  conc_manager_register_queue(&manager, "get_result_queue", result_queue);
  rc = conc_manager_start(&manager);
  if (rc < 0) {
    fprintf(stderr, "cannot serve at %s: %s\n", manager.address,
            conc_strerror(rc));
    return 1;
  }

  conc_queue *task = conc_manager_get(&manager, "get_task_queue");
  conc_queue *result = conc_manager_get(&manager, "get_result_queue");

  for (int i = (int)conc_qsize(task); i < 10; i++) { /* 0: none is there */
    int n = rand() % 10001;
    printf("Put task %d...\n", n);
    conc_put_build(task, CONC_FOREVER, "i", n);
  }

  printf("Try get results...\n");
  for (int i = 0; i < 10 && rc == 0; i++) {
    char r[100];
    ssize_t size = conc_get(result, r, sizeof r - 1, 10);
    if (size < 0) {
      fprintf(stderr, "no result: %s\n", conc_strerror((int)size));
      rc = 1;
    } else {
      printf("Result: %.*s\n", (int)size, r);
    }
  }

  /* A worker says that its task is done after it has sent the result. Were that
     too late, the task would be another one's. */
  if (rc == 0 && opts.lease > 0) conc_queue_join(task, 10);

  conc_manager_shutdown(&manager);
  conc_queue_free(task_queue);
  conc_queue_free(result_queue);
  printf("master exit.\n");
  return rc;
}
