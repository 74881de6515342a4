/* A program with 10,000 tasks, a deadlock, an inverted order of locks and names
   that look like markup, for inspect.sh to look at by a browser. Prints the
   port of its page, and ends when its standard input does.
     inspect [TASKS] */
#include "../../conc.h"
#include <stdio.h>
#include <stdlib.h>

static conc_lock accounts = {.name = "accounts"}, ledger = {.name = "ledger"};
static conc_lock audit = {.name = "audit"};
static conc_lock left = {.name = "left"}, right = {.name = "right"};
static conc_event held[3];
static conc_queue *orders;
static int many = 10000;

/* Both have one, and then want the other. */
static void *want_right(void *arg) {
  conc_lock_acquire(&left, CONC_FOREVER);
  conc_event_set(&held[0]);
  conc_event_wait(&held[1], CONC_FOREVER);
  if (conc_lock_acquire(&right, CONC_FOREVER) == 0) conc_lock_release(&right);
  conc_lock_release(&left);
  return arg;
}

static void *want_left(void *arg) {
  conc_lock_acquire(&right, CONC_FOREVER);
  conc_event_set(&held[1]);
  conc_event_wait(&held[0], CONC_FOREVER);
  if (conc_lock_acquire(&left, CONC_FOREVER) == 0) conc_lock_release(&left);
  conc_lock_release(&right);
  return arg;
}

static void *hold(void *arg) {
  conc_lock_acquire(&audit, CONC_FOREVER);
  conc_event_set(&held[2]);
  conc_sleep(CONC_FOREVER);
  conc_lock_release(&audit);
  return arg;
}

static void *want(void *arg) {
  conc_event_wait(&held[2], CONC_FOREVER);
  if (conc_lock_acquire(&audit, CONC_FOREVER) == 0) conc_lock_release(&audit);
  return arg;
}

static void *nap(void *arg) {
  conc_sleep(1000);
  return arg;
}

static void *get(void *arg) {
  char c;
  conc_get(orders, &c, 1, CONC_FOREVER);
  return arg;
}

static void invert(void) {
  CONC_WITH(&accounts) CONC_WITH(&ledger) {}
  CONC_WITH(&ledger) CONC_WITH(&accounts) {}
}

static void *crowd(void *arg) {
  conc_task *t = (conc_task *)calloc((size_t)many, sizeof *t);
  char c;
  for (int i = 0; t != NULL && i < many; i++) {
    t[i].target = i % 3 ? nap : get;
    if (i == many - 1) t[i].name = "client <em>1</em>";
    t[i].stack_size = 16384;
    conc_coro_start(&t[i]);
  }
  while (conc_read(0, &c, 1, CONC_FOREVER) > 0) continue;
  exit(0);
  return arg;
}

int main(int argc, char **argv) {
  conc_queue_opts named = {.name = "orders"};
  conc_task t[] = {{.target = want_right, .name = "Thread-A"},
                   {.target = want_left, .name = "Thread-B"},
                   {.target = hold, .name = "Auditor"},
                   {.target = want, .name = "Clerk-1"},
                   {.target = want, .name = "Clerk-2"}};
  conc_task root = {.target = crowd, .name = "crowd"};
  int port = conc_inspect(argc > 2 ? argv[2] : "");
  if (port < 0) {
    fprintf(stderr, "no page: %s\n", conc_strerror(port));
    return 1;
  }
  if (argc > 1) many = atoi(argv[1]);
  orders = conc_queue_new(&named);
  invert();
  for (int i = 0; i < 5; i++) conc_thread_start(&t[i]);
  printf("%d\n", port);
  fflush(stdout);
  return conc_run(&root);
}
