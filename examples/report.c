/* Where a program hangs. Go prints its goroutines at SIGQUIT (Ctrl-\), asyncio
   has all_tasks(); here it is a report, of threads and coroutines alike. This
   program has two faults: a thread sleeps with a lock, and a queue is waited
   for that nobody fills.
     cc report.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static conc_lock accounts = {.name = "accounts"};
static conc_event has_lock;
static conc_queue *orders;

static void *clerk(void *arg) {
  CONC_WITH(&accounts) {
    conc_event_set(&has_lock);
    conc_sleep(1000);
  }
  return arg;
}

static void *auditor(void *arg) {
  conc_event_wait(&has_lock, CONC_FOREVER);
  CONC_WITH(&accounts) printf("never\n");
  return arg;
}

static void *shop(void *arg) {
  char order[20];
  conc_get(orders, order, sizeof order, CONC_FOREVER);
  return arg;
}

static void *watch(void *arg) {
  static char report[10000];
  conc_task t = {.target = shop, .name = "shop"};
  conc_coro_start(&t);
  conc_sleep(0.5);
  conc_report(report, sizeof report);
  printf("%s", report);
  fflush(stdout);
  /* Or at any time, while it runs: Ctrl-\ prints the same to stderr. */
  conc_report_on_signal(SIGQUIT);
  _exit(arg != NULL); /* joined, it would hang */
}

int main(void) {
  conc_task a = {.target = clerk, .name = "clerk"};
  conc_task b = {.target = auditor, .name = "auditor"};
  conc_task w = {.target = watch, .name = "watch"};
  conc_queue_opts opts = {.name = "orders"};
  orders = conc_queue_new(&opts);
  conc_thread_start(&a);
  conc_thread_start(&b);
  return conc_run(&w);
}
