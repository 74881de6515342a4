/* crowd.c: many clients on one queue, each with a manager of its own, one
 * half of them coroutines of one thread, the other half threads.
 *
 *   crowd ADDRESS AUTHKEY CLIENTS ROUNDS
 *
 * Every client puts and gets ROUNDS items in turn. All items that were got
 * are printed, a line each: whoever put them, together they are every item
 * once. crowd.py does the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../conc.h"

#define ITEM 64

static char **args;
static long clients, rounds;

typedef struct client {
  conc_task task;
  long number;
  char (*got)[ITEM];
  const char *failed; /* what did */
  int rc;
} client;

/* argv strings are read-only here; the task says in .failed what failed. */
static void *be_client(void *arg) {
  client *c = (client *)arg;
  conc_manager m = {0};
  conc_queue *q;
  m.address = args[1];
  m.authkey = args[2];
  c->failed = "connect";
  if ((c->rc = conc_manager_connect(&m, 60)) < 0) return NULL;
  c->failed = "get_task_queue";
  q = conc_manager_get(&m, "get_task_queue");
  for (long i = 0; q && i < rounds; i++) {
    char item[ITEM];
    ssize_t size;
    snprintf(item, sizeof item, "c-%ld-%ld", c->number, i);
    c->failed = "put";
    if ((c->rc = conc_put(q, item, strlen(item), 60)) < 0) break;
    c->failed = "get";
    size = conc_get(q, c->got[i], ITEM - 1, 60);
    if ((c->rc = (int)size) < 0) break;
    c->got[i][size] = 0;
    c->failed = i + 1 == rounds ? NULL : "end";
  }
  conc_manager_shutdown(&m);
  return NULL;
}

static void start_all(client *c, long n, int start(conc_task *)) {
  for (long i = 0; i < n; i++) {
    int rc = start(&c[i].task);
    if (rc == 0) continue; /* from now on the rest is the task's */
    c[i].rc = rc;
    c[i].failed = "start";
  }
}

static void *be_loop(void *arg) {
  client *c = (client *)arg;
  start_all(c, clients / 2, conc_coro_start);
  for (long i = 0; i < clients / 2; i++) conc_join(&c[i].task, CONC_FOREVER);
  return NULL;
}

int main(int argc, char **argv) {
  client *all;
  conc_task loop = {0};
  int failed = 0;
  if (argc != 5) return 2;
  args = argv;
  clients = atol(argv[3]);
  rounds = atol(argv[4]);
  all = (client *)calloc((size_t)clients, sizeof *all);
  for (long i = 0; i < clients; i++) {
    all[i].number = i;
    all[i].task.target = be_client;
    all[i].task.arg = &all[i];
    all[i].got = (char(*)[ITEM])calloc((size_t)rounds, ITEM);
  }
  start_all(all + clients / 2, clients - clients / 2, conc_thread_start);
  loop.target = be_loop;
  loop.arg = all;
  if (conc_run(&loop) < 0) failed = 1;
  for (long i = clients / 2; i < clients; i++)
    conc_join(&all[i].task, CONC_FOREVER);
  for (long i = 0; i < clients; i++) {
    if (all[i].failed) {
      failed = 1;
      fprintf(stderr, "client %ld: %s: %s\n", i, all[i].failed,
              conc_strerror(all[i].rc));
    }
    for (long j = 0; j < rounds; j++) printf("%s\n", all[i].got[j]);
    free(all[i].got);
  }
  free(all);
  return failed;
}
