/* leases.c: a manager that serves a queue which leases its messages.
 *
 *   leases ADDRESS AUTHKEY LEASE [JOURNAL]
 *
 * Prints the address that it is bound to and serves until its input ends;
 * then it prints what went through the queue, and what is dead. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../conc.h"

int main(int argc, char **argv) {
  conc_manager m = {0};
  conc_queue_opts opts = {0};
  conc_queue *q, *dead;
  conc_queue_counts n;
  char ignored;
  int rc;
  if (argc != 4 && argc != 5) return 2;
  m.address = argv[1];
  m.authkey = argv[2];
  dead = conc_queue_new(NULL);
  opts.lease = atof(argv[3]);
  opts.max_deliveries = 5;
  opts.dead_letters = dead;
  opts.journal = argv[4]; /* or NULL */
  q = conc_queue_new(&opts);
  if (q == NULL) {
    perror(argv[4]);
    return 1;
  }
  conc_manager_register_queue(&m, "get_queue", q);
  conc_manager_register_queue(&m, "get_dead", dead);
  rc = conc_manager_start(&m);
  if (rc < 0) {
    fprintf(stderr, "leases: %s: %s\n", argv[1], conc_strerror(rc));
    return 1;
  }
  printf("%s\n", conc_manager_address(&m));
  fflush(stdout);
  while (read(0, &ignored, 1) > 0) continue;
  conc_queue_stats(q, &n);
  printf("put %d got %d done %d returned %d dead %d left %d\n", (int)n.put,
         (int)n.got, (int)n.done, (int)n.returned, (int)n.dead,
         (int)(n.ready + n.delayed + n.leased + n.dying));
  rc = conc_manager_shutdown(&m);
  conc_queue_free(q);
  conc_queue_free(dead);
  return rc < 0;
}
