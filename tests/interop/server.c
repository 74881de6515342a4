/* server.c: a manager that serves a few queues to the scripts here.
 *
 *   server ADDRESS AUTHKEY
 *
 * Prints the address that it is bound to and serves until its input ends;
 * then it takes everything down, so that a leak checker can look. */
#include <stdio.h>
#include <unistd.h>

#include "../../conc.h"

static conc_queue *serve(conc_manager *m, const char *name, size_t capacity) {
  conc_queue_opts opts = {0};
  conc_queue *q;
  opts.capacity = capacity;
  opts.name = name;
  q = conc_queue_new(&opts);
  if (q) conc_manager_register_queue(m, name, q);
  return q;
}

int main(int argc, char **argv) {
  conc_manager m = {0};
  conc_queue *q[3];
  char ignored;
  int rc;
  if (argc != 3) return 2;
  m.address = argv[1];
  m.authkey = argv[2];
  q[0] = serve(&m, "get_task_queue", 0);
  q[1] = serve(&m, "get_result_queue", 0);
  q[2] = serve(&m, "get_small_queue", 2);
  rc = conc_manager_start(&m);
  if (rc < 0) {
    fprintf(stderr, "server: %s: %s\n", argv[1], conc_strerror(rc));
    return 1;
  }
  printf("%s\n", conc_manager_address(&m));
  fflush(stdout);
  while (read(0, &ignored, 1) > 0) continue;
  rc = conc_manager_shutdown(&m);
  for (int i = 0; i < 3; i++) conc_queue_free(q[i]);
  return rc < 0;
}
