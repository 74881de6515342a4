/* For gdb.sh: tasks of the other kinds, and objects in other states. */
#include "conc.h"
#include <string.h>
#include <unistd.h>

static conc_event never;
static conc_gen gen;
static conc_rwlock rwlock;
static conc_rlock rlock;
static conc_group group;
static conc_queue *leased;
static conc_task grouper, selecting, late, child, job;
static conc_pool pool;

void all_hang(void);

__attribute__((noinline)) void all_hang(void) {
  __asm__ __volatile__("" ::: "memory");
}

static void *waits(void *arg) {
  conc_event_wait(&never, CONC_FOREVER);
  return arg;
}

static void *sleeps(void *arg) {
  pause();
  return arg;
}

static void *steps(void *arg) {
  conc_yield(arg, NULL);
  conc_yield(arg, NULL);
  return arg;
}

static void *have_group(void *arg) {
  conc_group_spawn(&group, waits, NULL);
  conc_group_spawn(&group, waits, NULL);
  conc_group_leave(&group, CONC_FOREVER);
  return arg;
}

static void *select_one(void *arg) {
  conc_case c[2];
  memset(c, 0, sizeof c);
  c[0].event = &never;
  c[1].get = leased;
  conc_select(c, 2, CONC_FOREVER);
  return arg;
}

static void *run(void *arg) {
  void *value;
  int i;
  gen.target = steps;
  conc_gen_next(&gen, &value);
  grouper.target = have_group;
  grouper.name = "grouper";
  conc_coro_start(&grouper);
  selecting.target = select_one;
  selecting.name = "selecting";
  conc_coro_start(&selecting);
  for (i = 0; i < 10; i++) conc_yield_now();
  late.target = waits;
  late.name = "late";
  conc_coro_start(&late);
  conc_rwlock_read_acquire(&rwlock, CONC_FOREVER);
  conc_rlock_acquire(&rlock, CONC_FOREVER);
  conc_rlock_acquire(&rlock, CONC_FOREVER);
  all_hang();
  return arg;
}

int main(void) {
  static conc_task first;
  static conc_queue_opts opts;
  opts.lease = 5;
  leased = conc_queue_new(&opts);
  child.target = sleeps;
  child.daemon = true;
  if (conc_process_start(&child) != 0) return 1;
  pool.kind = CONC_THREAD;
  pool.workers = 1;
  if (conc_pool_start(&pool) != 0) return 1;
  job.target = waits;
  job.name = "the job";
  conc_pool_submit(&pool, &job);
  while (*(struct conc__waiter *volatile *)&never.waiters.first == NULL)
    conc_yield_now();
  first.target = run;
  return conc_run(&first);
}
