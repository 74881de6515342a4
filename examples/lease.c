/* What happens to a task whose worker is killed? Another worker does it: a
   queue that leases what it hands out, and three processes that work for it.
   One of them is killed in the middle of a task.
     cc lease.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <signal.h>
#include <stdio.h>

#define TASKS 8

static conc_queue *tasks, *results;

typedef struct result {
  int n, square, deliveries;
} result;

static void *work(void *arg) {
  conc_lease lease;
  int n;
  while (conc_get_leased(tasks, &lease, &n, sizeof n, CONC_FOREVER) > 0) {
    result r = {n, n * n, conc_lease_deliveries(&lease)};
    if (n == 5 && r.deliveries == 1) raise(SIGKILL); /* as kill -9 would */
    conc_put(results, &r, sizeof r, CONC_FOREVER);
    conc_lease_done(&lease);
  }
  return arg;
}

int main(void) {
  conc_queue_opts leased = {.shared = true, .lease = 60};
  conc_queue_opts shared = {.shared = true};
  conc_task workers[3] = {0};
  result all[TASKS + 1], r;
  int killed = 0;
  tasks = conc_queue_new(&leased);
  results = conc_queue_new(&shared);
  if (tasks == NULL || results == NULL) return 1;
  for (int i = 0; i < 3; i++) {
    workers[i].target = work;
    conc_process_start(&workers[i]);
  }
  for (int n = 1; n <= TASKS; n++)
    conc_put(tasks, &n, sizeof n, CONC_FOREVER);
  conc_queue_join(tasks, CONC_FOREVER); /* until all are done */
  conc_queue_close(tasks);              /* the workers get -EPIPE, and end */
  for (int i = 0; i < 3; i++) {
    conc_join(&workers[i], CONC_FOREVER);
    if (conc_exitcode(&workers[i]) == -SIGKILL) killed++;
  }
  for (int i = 0; i < TASKS; i++) {
    if (conc_get(results, &r, sizeof r, 0) < 0) return 1;
    all[r.n] = r;
  }
  for (int n = 1; n <= TASKS; n++)
    printf("%d * %d = %d%s\n", n, n, all[n].square,
           all[n].deliveries > 1 ? " (its first worker was killed)" : "");
  printf("%d worker was killed, and no task was lost\n", killed);
  conc_queue_free(tasks);
  conc_queue_free(results);
  return killed != 1;
}
