/* leases.c: a manager that serves a queue which leases its messages.
 *
 *   leases ADDRESS AUTHKEY LEASE [JOURNAL]
 *
 * The queues that clients make there (Queue, JoinableQueue) lease as well.
 * Prints the address that it is bound to and serves until its input ends;
 * then it prints what went through the queue, and what is dead. */
#define CONC_IMPLEMENTATION
#define CONC_STATIC
#include "../../conc.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double seconds; /* of a lease */
static conc__class leased_type;

/* Makes the queue that is usual, and then the same that leases. */
static int make_leased(conc__session *s, conc__object *o,
                       const conc__request *r, char *text, size_t size) {
  int rc = conc__make_queue(s, o, r, text, size);
  conc_queue_opts opts = {0};
  if (rc != 0) return rc;
  opts.capacity = o->queue->capacity;
  opts.objects = o->queue->objects;
  opts.lease = seconds;
  conc_queue_free(o->queue);
  o->state = o->queue = conc_queue_new(&opts);
  return o->queue != NULL ? 0 : -ENOMEM;
}

/* A name that is taken stays what it is: so before all others. */
static int register_types(conc_manager *m) {
  conc__manager_data *data = conc__manager_make_state(m);
  if (data == NULL) return -ENOMEM;
  leased_type = conc__queue_type;
  leased_type.make = make_leased;
  conc__names_add(&data->objects, "Queue", &leased_type, NULL);
  conc__names_add(&data->objects, "JoinableQueue", &leased_type, NULL);
  return conc_manager_register_types(m);
}

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
  m.objects = CONC_PASS;
  seconds = atof(argv[3]);
  dead = conc_queue_new(NULL);
  opts.lease = seconds;
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
  rc = register_types(&m);
  if (rc == 0) rc = conc_manager_start(&m);
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
