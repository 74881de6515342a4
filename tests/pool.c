/* Pools of threads and of processes: what is common to both, what threads do
   for each other, and what a process that dies takes with it. */
#include "test.h"

#define CONC_MALLOC test_malloc
#define CONC_REALLOC test_realloc
#define CONC_FREE test_free
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"

#define NO_FORK \
  if (TEST_TSAN) SKIP("ThreadSanitizer knows no threads after a fork")

#define MUST(condition)                                               \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: in the child: %s\n", __FILE__, __LINE__, \
              #condition);                                            \
      _exit(99);                                                      \
    }                                                                 \
  } while (0)

static int slow(int n) { return TEST_TSAN || TEST_ASAN ? n / 10 : n; }

static conc_pool pool_of(int kind, size_t workers) {
  conc_pool p;
  memset(&p, 0, sizeof p);
  p.kind = kind;
  p.workers = workers;
  return p;
}

static conc_task job_of(conc_fn *fn, void *arg, size_t size) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = fn;
  t.arg = arg;
  t.size = size;
  return t;
}

static void finish(conc_pool *p) {
  CHECK_EQ(conc_pool_close(p), 0);
  CHECK_EQ(conc_pool_join(p, CONC_FOREVER), 0);
}

static void *square(void *arg) {
  long *n = (long *)arg;
  *n *= *n;
  return (void *)*n;
}

/* --- what threads do ----------------------------------------------------- */

static void threads_run_each_job_once(size_t workers, size_t n) {
  conc_pool p = pool_of(CONC_THREAD, workers);
  long *values = (long *)malloc(n * sizeof *values);
  conc_task *jobs = (conc_task *)malloc(n * sizeof *jobs);
  CHECK_EQ(conc_pool_start(&p), 0);
  for (size_t i = 0; i < n; i++) {
    values[i] = (long)i;
    jobs[i] = job_of(square, &values[i], sizeof values[i]);
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  for (size_t i = 0; i < n; i++) {
    CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    CHECK_EQ(values[i], (long)(i * i));
    CHECK_EQ((long)(intptr_t)conc_result(&jobs[i]), (long)(i * i));
  }
  finish(&p);
  free(jobs);
  free(values);
}

TEST(threads_run_each_job_once) {
  for (size_t workers = 1; workers <= 40; workers += 13)
    threads_run_each_job_once(workers, (size_t)slow(20000));
}

/* Rounds so short that the workers rest and are woken in between. */
TEST(threads_that_rest_are_woken) {
  conc_pool p = pool_of(CONC_THREAD, 3);
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < slow(3000); round++) {
    long values[5];
    conc_task jobs[5];
    for (int i = 0; i < 1 + round % 5; i++) {
      values[i] = i;
      jobs[i] = job_of(square, &values[i], sizeof values[i]);
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    for (int i = 0; i < 1 + round % 5; i++)
      CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    if (round % 7 == 0) usleep(100);
  }
  finish(&p);
}

static conc_pool *the_pool;

typedef struct fib {
  conc_task task;
  int n;
  long sum;
} fib;

static void *run_fib(void *arg) {
  fib *f = (fib *)arg;
  fib a, b;
  if (f->n < 2) {
    f->sum = f->n;
    return NULL;
  }
  a.task = job_of(run_fib, &a, 0);
  b.task = job_of(run_fib, &b, 0);
  a.n = f->n - 1;
  b.n = f->n - 2;
  CHECK_EQ(conc_pool_submit(the_pool, &a.task), 0);
  CHECK_EQ(conc_pool_submit(the_pool, &b.task), 0);
  if (f->n % 3 == 0) { /* not the latest first */
    CHECK_EQ(conc_join(&a.task, CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&b.task, CONC_FOREVER), 0);
  } else if (f->n % 3 == 1) {
    conc_task *both[2] = {&a.task, &b.task};
    CHECK_EQ(conc_gather(both, 2, CONC_FOREVER), 0);
  } else {
    conc_task *both[2] = {&a.task, &b.task};
    CHECK_EQ(conc_wait(both, 2, CONC_ALL, CONC_FOREVER), 2);
  }
  CHECK(conc_current() == &f->task);
  f->sum = a.sum + b.sum;
  return NULL;
}

TEST(jobs_wait_for_jobs_on_any_number_of_threads) {
  for (size_t workers = 1; workers <= 4; workers++) {
    conc_pool p = pool_of(CONC_THREAD, workers);
    fib f;
    the_pool = &p;
    CHECK_EQ(conc_pool_start(&p), 0);
    f.task = job_of(run_fib, &f, 0);
    f.n = TEST_TSAN || TEST_ASAN ? 15 : 20;
    CHECK_EQ(conc_pool_submit(&p, &f.task), 0);
    CHECK_EQ(conc_pool_close(&p), 0); /* its own jobs may submit */
    CHECK_EQ(conc_join(&f.task, CONC_FOREVER), 0);
    CHECK_EQ(f.sum, f.n == 20 ? 6765 : 610);
    CHECK_EQ(conc_pool_join(&p, CONC_FOREVER), 0);
  }
}

/* All threads wait for jobs when the one comes that lets them go on. */
static conc_event go;

static void *await_go(void *arg) {
  CHECK_EQ(conc_event_wait(&go, CONC_FOREVER), 0);
  return arg;
}
static void *join_it(void *arg) {
  CHECK_EQ(conc_join((conc_task *)arg, CONC_FOREVER), 0);
  return arg;
}
static void *set_go(void *arg) {
  conc_event_set(&go);
  return arg;
}

TEST(a_thread_that_waits_for_a_job_runs_those_that_come) {
  for (int round = 0; round < slow(300); round++) {
    conc_pool p = pool_of(CONC_THREAD, 2);
    conc_task waits = job_of(await_go, NULL, 0);
    conc_task joins = job_of(join_it, &waits, 0);
    conc_task sets = job_of(set_go, NULL, 0);
    conc_event_clear(&go);
    CHECK_EQ(conc_pool_start(&p), 0);
    CHECK_EQ(conc_pool_submit(&p, &waits), 0);
    CHECK_EQ(conc_pool_submit(&p, &joins), 0);
    if (round % 2) usleep(300);
    CHECK_EQ(conc_pool_submit(&p, &sets), 0);
    CHECK_EQ(conc_join(&joins, CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&sets, CONC_FOREVER), 0);
    finish(&p);
  }
}

/* --- cancelling ---------------------------------------------------------- */

static conc_event begun;

static void *sleep_long(void *arg) {
  conc_event_set(&begun);
  *(int *)arg = conc_sleep(100);
  return NULL;
}

static void *mark(void *arg) {
  *(int *)arg = 1;
  return NULL;
}

TEST(a_cancelled_job_that_has_not_begun_never_runs) {
  conc_pool p = pool_of(CONC_THREAD, 1);
  int slept = 1, ran[3] = {0, 0, 0};
  conc_task a = job_of(sleep_long, &slept, sizeof slept);
  conc_task b[3];
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_submit(&p, &a), 0);
  CHECK_EQ(conc_event_wait(&begun, CONC_FOREVER), 0);
  for (int i = 0; i < 3; i++) {
    b[i] = job_of(mark, &ran[i], sizeof ran[i]);
    CHECK_EQ(conc_pool_submit(&p, &b[i]), 0);
  }
  CHECK_EQ(conc_cancel(&b[1]), 0);
  CHECK_EQ(conc_cancel(&a), 0); /* that runs: its wait ends */
  CHECK_EQ(conc_join(&a, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(slept, -ECANCELED);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_join(&b[i], CONC_FOREVER), i == 1 ? -ECANCELED : 0);
    CHECK_EQ(ran[i], i != 1);
  }
  CHECK_EQ(conc_cancel(&a), -ESRCH);
  finish(&p);
}

/* A cancellation is for the job it was meant for, not for one that its thread
   runs meanwhile, and not for the next. */
static conc_task outer, inner;
static int outer_slept, inner_slept;

static void *be_inner(void *arg) {
  CHECK_EQ(conc_cancel(&outer), 0);
  CHECK(conc_current() == &inner);
  inner_slept = conc_sleep(0.001);
  return arg;
}
static void *be_outer(void *arg) {
  if (arg != NULL) CHECK_EQ(conc_sleep(0.001), 0); /* it is known to wait */
  CHECK_EQ(conc_pool_submit(the_pool, &inner), 0);
  CHECK_EQ(conc_join(&inner, CONC_FOREVER), 0);
  outer_slept = conc_sleep(100);
  return NULL;
}

TEST(a_cancellation_is_for_one_job_alone) {
  for (int round = 0; round < 20; round++) {
    conc_pool p = pool_of(CONC_THREAD, 1);
    the_pool = &p;
    CHECK_EQ(conc_pool_start(&p), 0);
    outer = job_of(be_outer, round % 2 ? &p : NULL, 0);
    inner = job_of(be_inner, NULL, 0);
    CHECK_EQ(conc_pool_apply(&p, &outer, CONC_FOREVER), -ECANCELED);
    CHECK_EQ(outer_slept, -ECANCELED);
    CHECK_EQ(inner_slept, 0);
    inner_slept = 1;
    inner = job_of(sleep_long, &inner_slept, sizeof inner_slept);
    conc_event_clear(&begun);
    CHECK_EQ(conc_pool_submit(&p, &inner), 0);
    CHECK_EQ(conc_event_wait(&begun, CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&inner, 0.001), -ETIMEDOUT);
    CHECK_EQ(conc_cancel(&inner), 0);
    CHECK_EQ(conc_join(&inner, CONC_FOREVER), -ECANCELED);
    finish(&p);
  }
}

TEST_MAIN
