/* A program in which each task hangs in another way, for gdb.sh. When all do,
   it calls all_hang(), where a debugger stops it; with an argument the main
   coroutine crashes instead. With CONC_STATIC it has its own conc.h; with
   SECOND there is second.c, too. */
#ifdef CONC_STATIC
#define CONC_IMPLEMENTATION /* else it is linked with conc.o */
#endif
#include "conc.h"
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static conc_lock ledger;
static conc_event never;
static conc_sem slots;
static conc_queue *tasks;
static conc_value *order;
static int ends[2];
static int reached; /* how many tasks are about to hang */

void all_hang(void);
int second_file(void);

__attribute__((noinline)) void all_hang(void) {
  __asm__ __volatile__("" ::: "memory");
}

/* Frames that the compiler cannot fold. */
__attribute__((noinline)) static int outer(int (*what)(int), int number) {
  volatile int local = number * 2;
  reached++;
  return what(local) + local;
}

__attribute__((noinline)) static int want_lock(int twice) {
  return conc_lock_acquire(&ledger, CONC_FOREVER) + twice;
}

__attribute__((noinline)) static int want_queue(int twice) {
  char c;
  return (int)conc_get(tasks, &c, 1, CONC_FOREVER) + twice;
}

__attribute__((noinline)) static int want_time(int twice) {
  return conc_sleep(1e6) + twice;
}

__attribute__((noinline)) static int want_bytes(int twice) {
  char c;
  return (int)conc_read(ends[0], &c, 1, CONC_FOREVER) + twice;
}

__attribute__((noinline)) static int keep_lock(int twice) {
  conc_lock_acquire(&ledger, CONC_FOREVER);
  return conc_event_wait(&never, CONC_FOREVER) + twice;
}

static void *in_turn(void *arg) {
  int (*what)(int) = NULL;
  memcpy(&what, arg, sizeof what);
  return outer(what, 21) == 1 ? arg : NULL;
}

/* A generator that delegates to another one, which sleeps. */
static void *inner_steps(void *arg) {
  conc_yield(arg, NULL);
  outer(want_time, 4);
  return arg;
}

static void *steps(void *arg) {
  conc_gen inner;
  memset(&inner, 0, sizeof inner);
  inner.target = inner_steps;
  conc_yield_from(&inner, NULL);
  return arg;
}

__attribute__((noinline)) static int resume(int twice) {
  conc_gen gen;
  void *value;
  memset(&gen, 0, sizeof gen);
  gen.target = steps;
  conc_gen_next(&gen, &value);
  return conc_gen_next(&gen, &value) + twice;
}

static conc_task all[8];

__attribute__((noinline)) static int want_end(int twice) {
  return conc_join(&all[3], CONC_FOREVER) + twice; /* the sleeper */
}

__attribute__((noinline)) static int want_any(int twice) {
  conc_task *both[2];
  both[0] = &all[0];
  both[1] = &all[3];
  return (int)conc_wait(both, 2, CONC_ALL, CONC_FOREVER) + twice;
}

static void *thread(void *arg) {
  conc_sem_acquire(&slots, CONC_FOREVER);
  return arg;
}

__attribute__((noinline)) static int compute(int twice) {
  all_hang();
  return twice;
}

__attribute__((noinline)) static int crash(int twice) {
  volatile int *volatile nowhere = (int *)(uintptr_t)16;
  return *nowhere + twice;
}

static void *run(void *arg) {
  static int (*const whats[8])(int) = {keep_lock, want_lock, want_queue,
                                       want_time, want_bytes, resume,
                                       want_end, want_any};
  static const char *const names[8] = {"keeper", "taker",     "getter",
                                       "sleeper", "reader",   "generating",
                                       NULL,      "collector"};
  int i;
  for (i = 0; i < 8; i++) {
    all[i].target = in_turn;
    all[i].arg = (void *)(uintptr_t)&whats[i];
    all[i].name = names[i];
    conc_coro_start(&all[i]);
  }
  while (reached < 9) conc_yield_now();
  while (*(struct conc__waiter *volatile *)&slots.waiters.first == NULL)
    conc_yield_now(); /* the thread is on its way there */
  for (i = 0; i < 100; i++) conc_yield_now();
  outer(arg != NULL ? crash : compute, 3);
  return arg;
}

int main(int argc, char **argv) {
  static conc_task worker, main_task;
  static conc_queue_opts opts;
  ledger.name = "ledger";
  never.name = "never";
  slots.name = "slots";
  opts.name = "tasks";
  opts.capacity = 5;
  tasks = conc_queue_new(&opts);
  conc_build(&order, "{s(id)s[sN]sy#}", "point", 7, 2.5, "list", "it's",
             "raw", "a\0b", (size_t)3);
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  worker.target = thread;
  worker.name = "Worker";
  if (conc_thread_start(&worker) != 0) return 1;
  main_task.target = run;
  main_task.name = "first";
  main_task.arg = argc > 1 ? argv : NULL;
#ifdef SECOND
  if (second_file() != 0) return 1;
#endif
  return conc_run(&main_task) + (ends[0] < 0); /* no jump */
}
