/* Pools of threads and of processes: what is common to both, what threads do
   for each other, and what a process that dies takes with it.

   CPython's test._test_multiprocessing (3.13), and which test here does the
   same, by the first words of its name. "-": makes no sense in C.

   _TestPool
     test_apply                  apply_on
     test_map, test_map_chunksize, test_map_no_failfast, test_empty_iterable
                                 map_on
     test_map_async              - (the task that maps may be a coroutine)
     test_starmap, ..._async     - (an item is a struct of the arguments)
     test_map_async_callbacks    callbacks_of
     test_map_unplicklable       - (bytes can always be sent)
     test_map_handle_iterable_exception, and imap's
                                 - (an array cannot fail); imap_on: left early
     test_async                  apply_on, coroutines_wait_for_jobs
     test_async_timeout          waits_for
     test_imap                   imap_on
     test_imap_unordered         imap_on
     test_make_pool              apply_on (0 workers is the number of CPUs)
     test_terminate              terminate_on
     test_context, test_enter    - (close and join are called)
     test_traceback              - (conc_exitcode; the status of a job)
     test_wrapped_exception      apply_on (conc_set_status)
     test_release_task_refs      - (the harness counts allocations)
     test_resource_warning       - (likewise)
   _TestPoolWorkerErrors
     test_async_error_callback   callbacks_of
     test_unpickleable_result    -
   _TestPoolWorkerLifetime
     test_pool_worker_lifetime   workers_are_replaced
     ..._early_close             workers_are_replaced
     test_pool_maxtasksperchild_invalid - (unsigned)
     test_worker_finalization_...  a_worker_ends_as_a_process_does
   */
#include "test.h"

/* A worker that is to die before the n-th step that others may meet. */
static long die_in;
static void step(void);
#define CONC__POINT() step()
#include "inside.h"

static void step(void) {
  if (die_in > 0 && --die_in == 0) kill(getpid(), SIGKILL);
}

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

/* A deque's owner pushes a few and pops them while thieves come and go: so its
   pops pass a fence, or none, and both changes happen under way. */
enum { DEQUE_TASKS = 4, THIEVES = 2 };
static conc__deque deque;
static conc_task deque_tasks[DEQUE_TASKS];
static int deque_taken[DEQUE_TASKS], thieves_come, thieves_end;

/* Lines of the cache that all write to, so that what the owner writes next
   stays in its store buffer for a while. */
static struct { int value; char pad[60]; } far_lines[32];
static void delay_stores(void) {
  for (int i = 0; i < 32; i++) CONC__STORE_RELAXED(&far_lines[i].value, i);
}

static void deque_take(const conc_task *t) {
  if (t != NULL)
    __atomic_add_fetch(&deque_taken[t - deque_tasks], 1, __ATOMIC_SEQ_CST);
}

static void *steal_some(void *arg) {
  while (!CONC__LOAD(&thieves_end)) {
    if (CONC__LOAD(&thieves_come))
      deque_take(conc__deque_steal(&deque));
    delay_stores();
  }
  return arg;
}

/* The owner pushes and pops jobs while thieves come and go, so that it
   changes between its cheap and its careful way. A job that both take, or
   nobody, is noticed. */
TEST(a_job_is_popped_or_stolen_once) {
  conc_task thieves[THIEVES];
  int arrivals = 0, guests = 0, since = 0;
  pthread_once(&conc__pool_once, conc__pool_init_once);
  for (int i = 0; i < THIEVES; i++) {
    thieves[i] = job_of(steal_some, NULL, 0);
    CHECK_EQ(conc_thread_start(&thieves[i]), 0);
  }
  for (int round = 0; arrivals < slow(100); round++) {
    int n = 1 + round % DEQUE_TASKS;
    int seen = CONC__LOAD(&deque.guests) != 0;
    arrivals += seen > guests || (!conc__fence_is_light && round % 500 == 0);
    since = seen == guests ? since + 1 : 0;
    guests = seen;
    /* They come when the owner is at ease, for a moment only. */
    CONC__STORE(&thieves_come, seen ? since < 50 : since > 50);
    for (int i = 0; i < n; i++) {
      CONC__STORE(&deque_taken[i], 0);
      if (conc__deque_is_full(&deque)) CHECK_EQ(conc__deque_grow(&deque), 0);
      conc__deque_push(&deque, &deque_tasks[i]);
    }
    if (round % 3 == 0) { /* the last is asked for by its name */
      deque_take(conc__deque_pop(&deque, &deque_tasks[n - 1]));
      CHECK(conc__deque_pop(&deque, &thieves[0]) == NULL);
    }
    while (!conc__deque_is_empty(&deque)) {
      delay_stores();
      deque_take(conc__deque_pop(&deque, NULL));
    }
    for (int i = 0; i < n; i++) {
      while (CONC__LOAD(&deque_taken[i]) == 0) continue; /* a thief is late */
      CHECK_EQ(CONC__LOAD(&deque_taken[i]), 1);
    }
  }
  CONC__STORE(&thieves_end, 1);
  for (int i = 0; i < THIEVES; i++)
    CHECK_EQ(conc_join(&thieves[i], CONC_FOREVER), 0);
  CHECK_EQ(CONC__LOAD(&deque.guests) & ~CONC__FENCED, 0);
  conc__deque_free(&deque);
}

/* A thief comes at the very moment of a pop: the thief must see the pop, or
   the pop the thief, by the thief's fence if it is the first, or else by the
   pop's own. Without a fence both have the second job within some thousand
   rounds. */
static int deque_round, deque_robbed;
static void spin_for(const int *flag, int value) {
  for (int n = 1; CONC__LOAD(flag) != value; n++)
    if (n % 1000 == 0)
      sched_yield();
    else
      conc__pause();
}
static void *steal_both(void *arg) {
  for (int round = 1; round <= *(int *)arg; round++) {
    spin_for(&deque_round, round);
    for (int i = 0; i < round / 2 % 4; i++) conc__pause();
    for (int i = 0; i < 2; i++) deque_take(conc__deque_steal(&deque));
    delay_stores(); /* has the lines for the next round */
    CONC__STORE(&deque_robbed, round);
  }
  return arg;
}

TEST(a_pop_and_a_thief_see_each_other) {
  int rounds = slow(40000);
  conc_task thief = job_of(steal_both, &rounds, 0), *t;
  if (conc_cpu_count() < 2) SKIP("one CPU");
  pthread_once(&conc__pool_once, conc__pool_init_once);
  CHECK_EQ(conc_thread_start(&thief), 0);
  for (int round = 1; round <= rounds; round++) {
    CONC__STORE(&deque.guests,
                !conc__fence_is_light || round % 2 ? CONC__FENCED : 0u);
    for (int i = 0; i < 2; i++) {
      CONC__STORE(&deque_taken[i], 0);
      if (conc__deque_is_full(&deque)) CHECK_EQ(conc__deque_grow(&deque), 0);
      conc__deque_push(&deque, &deque_tasks[i]);
    }
    CONC__STORE(&deque_round, round);
    delay_stores();
    deque_take(conc__deque_pop(&deque, NULL));
    spin_for(&deque_robbed, round);
    while ((t = conc__deque_pop(&deque, NULL)) != NULL) deque_take(t);
    for (int i = 0; i < 2; i++) CHECK_EQ(CONC__LOAD(&deque_taken[i]), 1);
  }
  CHECK_EQ(conc_join(&thief, CONC_FOREVER), 0);
  conc__deque_free(&deque);
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


/* --- both kinds ---------------------------------------------------------- */

static void *add_one(void *arg) {
  ++*(long *)arg;
  return NULL;
}

static void *fail_if_odd(void *arg) {
  long *n = (long *)arg;
  if (*n % 2) conc_set_status(-EIO);
  *n = -*n;
  return (void *)*n;
}

static void *slow_square(void *arg) {
  long *n = (long *)arg;
  conc_sleep(*n % 10 == 0 ? 0.01 : 0);
  *n *= *n;
  return NULL;
}

static void *sleep_a_bit(void *arg) {
  conc_sleep(*(double *)arg);
  return NULL;
}

/* CPython's test_apply, test_async, test_async_error_callback. */
static void apply(int kind) {
  conc_pool p = pool_of(kind, 3);
  long n = 7, m[2] = {2, 3};
  conc_task job = job_of(square, &n, sizeof n);
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_start(&p), -EBUSY);
  CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), 0);
  CHECK_EQ(n, 49);
  CHECK_EQ((long)(intptr_t)conc_result(&job), 49);
  CHECK_EQ(conc_exitcode(&job), CONC_NO_EXITCODE);
  CHECK(!conc_is_alive(&job));
  CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), 0); /* once more */
  CHECK_EQ(n, 49 * 49);
  for (int i = 0; i < 2; i++) {
    job = job_of(fail_if_odd, &m[i], sizeof m[i]);
    CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), i ? -EIO : 0);
    CHECK_EQ(m[i], i ? -3 : -2);
  }
  job = job_of(NULL, NULL, 0);
  CHECK_EQ(conc_pool_submit(&p, &job), -EINVAL);
  finish(&p);
  CHECK_EQ(conc_pool_submit(&p, &job), -EINVAL);
}
TEST(apply_on_threads) { apply(CONC_THREAD); }
TEST(apply_on_processes) { NEEDS_FORK; apply(CONC_PROCESS); }

/* test_async_timeout, and submitting to a pool that is closed. */
/* .size 0: what .arg is, a number or what stood there at the start. */
static char already_there[] = "there";
static void *pass_on(void *arg) { return arg; }
static void as_it_is(int kind) {
  conc_pool p = pool_of(kind, 2);
  conc_task number = job_of(pass_on, (void *)(uintptr_t)1234567, 0);
  conc_task pointer = job_of(pass_on, already_there, 0);
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_apply(&p, &number, CONC_FOREVER), 0);
  CHECK((uintptr_t)conc_result(&number) == 1234567);
  CHECK_EQ(conc_pool_apply(&p, &pointer, CONC_FOREVER), 0);
  CHECK(conc_result(&pointer) == already_there);
  finish(&p);
}
TEST(an_argument_without_a_size_is_passed_to_threads) {
  as_it_is(CONC_THREAD);
}
TEST(an_argument_without_a_size_is_passed_to_processes) {
  NEEDS_FORK;
  as_it_is(CONC_PROCESS);
}

static void timeouts(int kind) {
  conc_pool p = pool_of(kind, 2);
  double bit = 0.2;
  conc_task job = job_of(sleep_a_bit, &bit, sizeof bit);
  conc_task more = job;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_submit(&p, &job), 0);
  CHECK_EQ(conc_pool_submit(&p, &job), -EBUSY);
  CHECK_EQ(conc_join(&job, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_join(&job, 0), -ETIMEDOUT);
  CHECK_EQ(conc_pool_join(&p, 0.01), -EINVAL); /* not closed */
  CHECK_EQ(conc_pool_close(&p), 0);
  CHECK_EQ(conc_pool_submit(&p, &more), -EPIPE);
  CHECK_EQ(conc_pool_join(&p, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_join(&job, CONC_FOREVER), 0);
  CHECK_EQ(conc_pool_join(&p, CONC_FOREVER), 0);
  CHECK_EQ(conc_pool_join(&p, 0), -EINVAL);
}
TEST(waits_for_threads_time_out) { timeouts(CONC_THREAD); }
TEST(waits_for_processes_time_out) { NEEDS_FORK; timeouts(CONC_PROCESS); }

/* test_map, test_map_chunksize, test_map_no_failfast, test_empty_iterable,
   test_map_handle_iterable_exception. */
static void map(int kind) {
  static const size_t sizes[] = {0, 1, 2, 3, 100, 1000, 4097};
  conc_pool p = pool_of(kind, 3);
  long *items = (long *)malloc(4097 * sizeof *items);
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_map(&p, NULL, items, sizeof *items, 1), -EINVAL);
  CHECK_EQ(conc_pool_map(&p, square, items, 0, 1), -EINVAL);
  for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
    for (p.chunk = 0; p.chunk < 300; p.chunk = p.chunk * 5 + 7) {
      for (size_t i = 0; i < sizes[k]; i++) items[i] = (long)i;
      CHECK_EQ(conc_pool_map(&p, square, items, sizeof *items, sizes[k]), 0);
      for (size_t i = 0; i < sizes[k]; i++)
        CHECK_EQ(items[i], (long)i * (long)i);
    }
  for (size_t i = 0; i < 100; i++) items[i] = (long)i;
  CHECK_EQ(conc_pool_map(&p, fail_if_odd, items, sizeof *items, 100), -EIO);
  for (long i = 0; i < 100; i++) CHECK_EQ(items[i], -i); /* all have run */
  finish(&p);
  CHECK_EQ(conc_pool_map(&p, square, items, sizeof *items, 1), -EINVAL);
  free(items);
}
TEST(map_on_threads) { map(CONC_THREAD); }
TEST(map_on_processes) { NEEDS_FORK; map(CONC_PROCESS); }

/* Items that are larger than a slot, than a chunk, than what fits at once. */
static void *reverse(void *arg) {
  char *bytes = (char *)arg;
  for (size_t i = 0, n = 100000; i < n / 2; i++) {
    char c = bytes[i];
    bytes[i] = bytes[n - 1 - i];
    bytes[n - 1 - i] = c;
  }
  return NULL;
}

/* Sixty items, of which only three fit into the memory for arguments at one
   time, are reversed by map and by single jobs. Each must come back whole;
   one that can never fit is refused. */
TEST(large_arguments_travel_to_processes_and_back) {
  conc_pool p = pool_of(CONC_PROCESS, 2);
  size_t size = 100000, n = 60;
  char *items = (char *)malloc(n * size);
  conc_task jobs[60];
  conc_task big = job_of(reverse, items, 350001);
  NEEDS_FORK;
  p.max_bytes = 350000; /* three of them */
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < 2; round++) {
    for (size_t i = 0; i < n * size; i++) items[i] = (char)(i % size * 7 + i);
    if (round == 0) {
      p.chunk = 1;
      CHECK_EQ(conc_pool_map(&p, reverse, items, size, n), 0);
    } else {
      for (size_t i = 0; i < n; i++) {
        jobs[i] = job_of(reverse, items + i * size, size);
        CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
      }
      for (size_t i = 0; i < n; i++)
        CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    }
    for (size_t i = 0; i < n; i++)
      for (size_t k = 0; k < size; k += 501) {
        size_t from = i * size + size - 1 - k;
        CHECK_EQ(items[i * size + k], (char)(from % size * 7 + from));
      }
  }
  CHECK_EQ(conc_pool_submit(&p, &big), -EMSGSIZE);
  finish(&p);
  free(items);
}

/* test_imap, test_imap_unordered, and their handle_iterable_exception. */
static void imap(int kind) {
  conc_pool p = pool_of(kind, 3);
  long items[200];
  conc_imap it;
  void *item;
  int seen[200] = {0};
  CHECK_EQ(conc_pool_start(&p), 0);
  for (long i = 0; i < 200; i++) items[i] = i;
  CHECK_EQ(conc_pool_imap(&it, &p, slow_square, items, sizeof *items, 200), 0);
  for (long i = 0; i < 200; i++) {
    CHECK_EQ(conc_imap_next(&it, &item, CONC_FOREVER), 0);
    CHECK(item == &items[i]);
    CHECK_EQ(items[i], i * i);
  }
  CHECK_EQ(conc_imap_next(&it, &item, CONC_FOREVER), -EPIPE);
  CHECK_EQ(conc_imap_next(&it, &item, CONC_FOREVER), -EPIPE);
  conc_imap_end(&it);
  for (long i = 0; i < 200; i++) items[i] = i;
  CHECK_EQ(conc_pool_imap_unordered(&it, &p, fail_if_odd, items,
                                    sizeof *items, 200), 0);
  for (int i = 0; i < 200; i++) {
    int rc = conc_imap_next(&it, &item, CONC_FOREVER);
    long at = (long *)item - items;
    CHECK_EQ(rc, at % 2 ? -EIO : 0);
    CHECK_EQ(items[at], -at);
    CHECK_EQ(seen[at]++, 0);
  }
  CHECK_EQ(conc_imap_next(&it, &item, CONC_FOREVER), -EPIPE);
  /* Left early, and nothing to do. */
  CHECK_EQ(conc_pool_imap(&it, &p, slow_square, items, sizeof *items, 200), 0);
  CHECK_EQ(conc_imap_next(&it, &item, CONC_FOREVER), 0);
  conc_imap_end(&it);
  CHECK_EQ(conc_pool_imap_unordered(&it, &p, square, items, 8, 0), 0);
  CHECK_EQ(conc_imap_next(&it, &item, CONC_FOREVER), -EPIPE);
  finish(&p);
  CHECK_EQ(conc_pool_imap(&it, &p, square, items, sizeof *items, 2), -EINVAL);
}
TEST(imap_on_threads) { imap(CONC_THREAD); }
TEST(imap_on_processes) { NEEDS_FORK; imap(CONC_PROCESS); }

/* test_terminate: jobs that wait are dropped, those that run are stopped. */
static void terminate(int kind) {
  for (int round = 0; round < slow(200); round++) {
    conc_pool p = pool_of(kind, 2);
    double longer = 100;
    conc_task jobs[300];
    double start = test_now();
    int failed = 0;
    CHECK_EQ(conc_pool_start(&p), 0);
    for (int i = 0; i < 300; i++) {
      jobs[i] = job_of(sleep_a_bit, &longer, sizeof longer);
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    usleep((unsigned)(test_random() % 2000 * (unsigned)(round % 2)));
    CHECK_EQ(conc_pool_terminate(&p), 0);
    CHECK_EQ(conc_pool_terminate(&p), 0);
    CHECK_EQ(conc_pool_join(&p, CONC_FOREVER), 0);
    for (int i = 0; i < 300; i++) /* whether it had begun or not */
      failed += conc_join(&jobs[i], CONC_FOREVER) == -ECANCELED;
    CHECK_EQ(failed, 300);
    CHECK(test_now() - start < 20);
  }
}
TEST(terminate_on_threads) { terminate(CONC_THREAD); }
TEST(terminate_on_processes) { NEEDS_FORK; terminate(CONC_PROCESS); }

/* Python's callback and error_callback. */
static int told, told_failures;
static void tell(conc_task *task, int status, void *result) {
  CHECK_EQ(status != 0, *(long *)task->arg % 2 != 0);
  CHECK((long)(intptr_t)result == *(long *)task->arg);
  __atomic_add_fetch(&told, 1, __ATOMIC_RELAXED);
  if (status) __atomic_add_fetch(&told_failures, 1, __ATOMIC_RELAXED);
}
static void callbacks(int kind) {
  conc_pool p = pool_of(kind, 2);
  long values[100];
  conc_task jobs[100];
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 100; i++) {
    values[i] = i;
    jobs[i] = job_of(fail_if_odd, &values[i], sizeof values[i]);
    jobs[i].callback = tell;
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  for (int i = 0; i < 100; i++) {
    CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), i % 2 ? -EIO : 0);
    CHECK(__atomic_load_n(&told, __ATOMIC_RELAXED) > 0);
  }
  finish(&p);
  CHECK_EQ(told, 100);
  CHECK_EQ(told_failures, 50);
}
/* A hundred jobs, every other one of which fails. Each callback has been
   called, with the right status, before its job can be joined. */
TEST(callbacks_of_threads) { callbacks(CONC_THREAD); }
TEST(callbacks_of_processes) { NEEDS_FORK; callbacks(CONC_PROCESS); }

/* Mixtures: a coroutine waits for jobs of both kinds. */
static conc_pool near_pool, far_pool;
static void *gather_both(void *arg) {
  long values[40];
  conc_task jobs[40], *tasks[40];
  conc_completed completed;
  conc_task *t;
  int n = 0;
  for (int i = 0; i < 40; i++) {
    values[i] = i;
    jobs[i] = job_of(slow_square, &values[i], sizeof values[i]);
    tasks[i] = &jobs[i];
    CHECK_EQ(conc_pool_submit(i % 2 ? &near_pool : &far_pool, &jobs[i]), 0);
  }
  if (arg == NULL) {
    CHECK_EQ(conc_gather(tasks, 40, CONC_FOREVER), 0);
  } else {
    CHECK_EQ(conc_as_completed(&completed, tasks, 40, CONC_FOREVER), 0);
    while (conc_completed_next(&completed, &t) == 0) n++;
    CHECK_EQ(n, 40);
  }
  for (int i = 0; i < 40; i++) CHECK_EQ(values[i], i * i);
  for (int i = 0; i < 40; i++) {
    CHECK_EQ(conc_pool_submit(i % 2 ? &near_pool : &far_pool, &jobs[i]), 0);
    CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    CHECK_EQ(values[i], i * i * i * i);
  }
  return NULL;
}
TEST(coroutines_wait_for_jobs_of_both_kinds) {
  conc_task main_task = job_of(gather_both, NULL, 0);
  NEEDS_FORK;
  near_pool = pool_of(CONC_THREAD, 2);
  far_pool = pool_of(CONC_PROCESS, 2);
  CHECK_EQ(conc_pool_start(&near_pool), 0);
  CHECK_EQ(conc_pool_start(&far_pool), 0);
  CHECK_EQ(conc_run(&main_task), 0);
  main_task.arg = &main_task;
  CHECK_EQ(conc_run(&main_task), 0);
  gather_both(NULL);
  gather_both(&main_task);
  finish(&near_pool);
  finish(&far_pool);
}

/* Cancelled by one thread while another waits: a job has run, or it never
   does. */
enum { RACERS = 64 };
static conc_task racers[RACERS];
static void *cancel_racers(void *arg) {
  for (int i = 0; i < RACERS; i++)
    if (i % 2) {
      int rc = conc_cancel(&racers[i]);
      CHECK(rc == 0 || rc == -ESRCH);
    }
  return arg;
}
static void cancel_race(int kind, int rounds) {
  conc_pool p = pool_of(kind, 2);
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < rounds; round++) {
    conc_task canceller = job_of(cancel_racers, NULL, 0);
    long values[RACERS];
    for (int i = 0; i < RACERS; i++) {
      values[i] = i;
      racers[i] = job_of(add_one, &values[i], sizeof(long));
      CHECK_EQ(conc_pool_submit(&p, &racers[i]), 0);
    }
    CHECK_EQ(conc_thread_start(&canceller), 0);
    for (int i = 0; i < RACERS; i++) {
      int rc = conc_join(&racers[i], CONC_FOREVER);
      CHECK(rc == 0 || (rc == -ECANCELED && i % 2));
      CHECK_EQ(values[i], i + (rc == 0));
    }
    CHECK_EQ(conc_join(&canceller, CONC_FOREVER), 0);
  }
  finish(&p);
}
TEST(cancelling_meets_threads) { cancel_race(CONC_THREAD, slow(1000)); }
TEST(cancelling_meets_processes) {
  NEEDS_FORK;
  cancel_race(CONC_PROCESS, slow(200));
}

/* Each call of a pool that waits is cancelled while it does. It returns
   -ECANCELED, its jobs have ended or run on as the manual says, and the pool
   is as it was. */
typedef struct waiting {
  conc_pool *pool;
  int call, rc, again;
  double items[8];
} waiting;
static void *wait_in_pool(void *arg) {
  waiting *w = (waiting *)arg;
  double *items = w->items;
  conc_task job = job_of(sleep_a_bit, items, sizeof *items);
  conc_imap it;
  void *item;
  if (w->call < 2) {
    CHECK_EQ((w->call ? conc_pool_imap : conc_pool_imap_unordered)(
                 &it, w->pool, sleep_a_bit, items, sizeof *items, 8), 0);
    w->rc = conc_imap_next(&it, &item, CONC_FOREVER);
    CHECK(item == NULL);
    w->again = conc_imap_next(&it, &item, 0);
    conc_imap_end(&it);
  } else if (w->call == 2) {
    w->rc = conc_pool_map(w->pool, sleep_a_bit, items, sizeof *items, 8);
    w->again = -ETIMEDOUT;
  } else if (w->call == 3) {
    w->rc = conc_pool_apply(w->pool, &job, CONC_FOREVER);
    w->again = conc_join(&job, 0);
    conc_cancel(&job);
    CHECK_EQ(conc_join(&job, CONC_FOREVER), -ECANCELED);
  } else {
    CHECK_EQ(conc_pool_submit(w->pool, &job), 0);
    CHECK_EQ(conc_pool_close(w->pool), 0);
    w->rc = conc_pool_join(w->pool, CONC_FOREVER);
    w->again = conc_pool_join(w->pool, 0);
    CHECK_EQ(conc_pool_terminate(w->pool), 0);
    CHECK_EQ(conc_join(&job, CONC_FOREVER), -ECANCELED);
    CHECK_EQ(conc_pool_join(w->pool, CONC_FOREVER), 0);
  }
  return NULL;
}
static void *cancel_waiting(void *arg) {
  conc_task t = job_of(wait_in_pool, arg, 0);
  bool in_loop = conc_coro_start(&t) == 0;
  if (!in_loop) CHECK_EQ(conc_thread_start(&t), 0);
  if (!in_loop) wait_parked(&t); /* one that has not begun would never do so */
  CHECK_EQ(conc_sleep(0.02), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  conc_join(&t, CONC_FOREVER);
  return NULL;
}
static void cancelled_waits(int kind) {
  for (int call = 0; call < 5; call++)
    for (int coro = 0; coro < 2; coro++) {
      conc_pool p = pool_of(kind, 2);
      waiting w = {&p, call, 0, 0, {100, 100, 100, 100, 100, 100, 100, 100}};
      conc_task t = job_of(cancel_waiting, &w, 0);
      long n = 3;
      conc_task job = job_of(square, &n, sizeof n);
      CHECK_EQ(conc_pool_start(&p), 0);
      if (coro) CHECK_EQ(conc_run(&t), 0);
      else cancel_waiting(&w);
      CHECK_EQ(w.rc, -ECANCELED);
      CHECK_EQ(w.again, -ETIMEDOUT);
      if (call == 4) continue; /* it has been joined */
      CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), 0);
      CHECK_EQ(n, 9);
      finish(&p);
    }
}
TEST(waits_for_threads_are_cancelled) { cancelled_waits(CONC_THREAD); }
TEST(waits_for_processes_are_cancelled) {
  NEEDS_FORK;
  cancelled_waits(CONC_PROCESS);
}

static int items_begun;
static void *sleep_in_item(void *arg) {
  __atomic_add_fetch(&items_begun, 1, __ATOMIC_SEQ_CST);
  conc_sleep(20);
  return arg;
}
static void *map_in_pool(void *arg) {
  long items[4] = {0};
  conc_set_status(conc_pool_map((conc_pool *)arg, sleep_in_item, items,
                                sizeof *items, 4));
  return NULL;
}
/* The cancellation is for the item that runs; those behind it in its chunk do
   not begin. */
TEST(a_cancelled_map_leaves_out_the_rest_of_a_chunk) {
  conc_pool p = pool_of(CONC_THREAD, 1);
  conc_task t = job_of(map_in_pool, &p, 0);
  p.chunk = 4;
  items_begun = 0;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_thread_start(&t), 0);
  while (LOAD(items_begun) == 0) usleep(100);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, 10), -ECANCELED);
  CHECK_EQ(LOAD(items_begun), 1);
  finish(&p);
}

/* --- jobs that end their thread ------------------------------------------ */

static void *quit(void *arg) {
  if (arg != NULL) ++*(long *)arg;
  pthread_exit((void *)7);
  return arg;
}
static void jobs_quit(int kind) {
  conc_pool p = pool_of(kind, 2);
  conc_task jobs[40];
  long values[40];
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 40; i++) {
    values[i] = i;
    jobs[i] = job_of(i % 2 ? quit : square, &values[i], sizeof(long));
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  for (int i = 0; i < 40; i++) {
    CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    CHECK_EQ(values[i], i % 2 ? i + 1 : i * i);
    if (i % 2 && kind == CONC_THREAD)
      CHECK_EQ((long)(intptr_t)conc_result(&jobs[i]), 7);
  }
  CHECK_EQ(conc_pool_map(&p, quit, values, sizeof(long), 40), -ECHILD);
  CHECK_EQ(conc_pool_map(&p, square, values, sizeof(long), 40), 0);
  finish(&p);
}
TEST(jobs_of_threads_may_end_their_thread) { jobs_quit(CONC_THREAD); }
TEST(jobs_of_processes_may_end_their_thread) {
  NEEDS_FORK;
  jobs_quit(CONC_PROCESS);
}

static conc_pool *pool_of_quitters;
static void *wait_for_a_quitter(void *arg) {
  long n = 0;
  conc_task *upper = (conc_task *)arg;
  *upper = job_of(quit, NULL, 0);
  if (conc_pool_submit(pool_of_quitters, upper) == 0)
    n = conc_join(upper, CONC_FOREVER);
  return (void *)n;
}
/* The upper job runs on the stack of the lower one, since there is but one
   thread: both are gone, and the thread is replaced. */
TEST(a_job_that_waited_below_one_that_ends_its_thread_has_failed) {
  conc_pool p = pool_of(CONC_THREAD, 1);
  pool_of_quitters = &p;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 20; i++) {
    conc_task upper, lower = job_of(wait_for_a_quitter, &upper, 0);
    long n = i;
    conc_task after = job_of(square, &n, sizeof n);
    CHECK_EQ(conc_pool_submit(&p, &lower), 0);
    CHECK_EQ(conc_join(&lower, CONC_FOREVER), -ECHILD);
    CHECK_EQ(conc_join(&upper, CONC_FOREVER), 0);
    CHECK_EQ((long)(intptr_t)conc_result(&upper), 7);
    CHECK_EQ(conc_pool_apply(&p, &after, CONC_FOREVER), 0);
    CHECK_EQ(n, i * i);
  }
  finish(&p);
}

static void *guard_of(void *arg) {
  size_t *size = (size_t *)arg;
#if CONC__LINUX
  pthread_attr_t attr;
  CHECK_EQ(pthread_getattr_np(pthread_self(), &attr), 0);
  CHECK_EQ(pthread_attr_getguardsize(&attr, size), 0);
  pthread_attr_destroy(&attr);
#else
  *size = CONC__GUARD_SIZE;
#endif
  return NULL;
}
TEST(a_thread_that_replaces_one_has_the_same_guard) {
  conc_pool p = pool_of(CONC_THREAD, 1);
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 3; i++) {
    size_t size = 0;
    conc_task job = job_of(guard_of, &size, sizeof size);
    conc_task last = job_of(quit, NULL, 0);
    CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), 0);
    CHECK(size >= CONC__GUARD_SIZE);
    CHECK_EQ(conc_pool_apply(&p, &last, CONC_FOREVER), 0);
  }
  finish(&p);
}

static pthread_t thread_of_job;
static int job_is_there;
static void *wait_to_be_cancelled(void *arg) {
  thread_of_job = pthread_self();
  STORE(job_is_there, 1);
  for (;;) pause();
  return arg;
}
TEST(a_job_may_be_met_by_pthread_cancel) {
  if (TEST_ASAN) SKIP("AddressSanitizer does not see that such a stack ends");
  conc_pool p = pool_of(CONC_THREAD, 2);
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 10; i++) {
    conc_task job = job_of(wait_to_be_cancelled, NULL, 0);
    long n = 4;
    conc_task after = job_of(square, &n, sizeof n);
    STORE(job_is_there, 0);
    CHECK_EQ(conc_pool_submit(&p, &job), 0);
    while (!LOAD(job_is_there)) usleep(100);
    CHECK_EQ(pthread_cancel(thread_of_job), 0);
    CHECK_EQ(conc_join(&job, CONC_FOREVER), -ECANCELED);
    CHECK_EQ(conc_pool_apply(&p, &after, CONC_FOREVER), 0);
  }
  finish(&p);
}

/* The pool is closed, or terminated, while jobs end their threads. */
TEST(a_pool_ends_while_jobs_end_their_threads) {
  for (int round = 0; round < slow(100); round++) {
    conc_pool p = pool_of(CONC_THREAD, 3);
    conc_task jobs[30];
    CHECK_EQ(conc_pool_start(&p), 0);
    for (int i = 0; i < 30; i++) {
      jobs[i] = job_of(quit, NULL, 0);
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    if (round % 2) CHECK_EQ(conc_pool_terminate(&p), 0);
    finish(&p);
    for (int i = 0; i < 30; i++) {
      int rc = conc_join(&jobs[i], 0);
      CHECK(rc == 0 || (round % 2 && rc == -ECANCELED));
    }
  }
}

/* --- a pool in a child --------------------------------------------------- */

/* Waits until both workers have begun: AddressSanitizer's own locks do not
   survive a fork while a thread begins. */
static conc_barrier both_begun;
static void *wait_for_both(void *arg) {
  CHECK(conc_barrier_wait(&both_begun, CONC_FOREVER) >= 0);
  return arg;
}
static void let_begin(conc_pool *p) {
  conc_task waits[2], *tasks[2];
  if (p->kind != CONC_THREAD) return;
  both_begun.parties = 2;
  for (int i = 0; i < 2; i++) {
    waits[i] = job_of(wait_for_both, NULL, 0);
    tasks[i] = &waits[i];
    CHECK_EQ(conc_pool_submit(p, &waits[i]), 0);
  }
  CHECK_EQ(conc_gather(tasks, 2, CONC_FOREVER), 0);
}
static void *gather_in_child(void *arg) {
  conc_pool *p = (conc_pool *)arg;
  double longer = 0.3;
  conc_task jobs[4], *tasks[4];
  pid_t pid;
  int status;
  for (int i = 0; i < 4; i++) {
    jobs[i] = job_of(sleep_a_bit, &longer, sizeof longer);
    tasks[i] = &jobs[i];
    CHECK_EQ(conc_pool_submit(p, &jobs[i]), 0);
  }
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    conc_task more = job_of(sleep_a_bit, &longer, sizeof longer);
    CHECK_CHILD(conc_wait(tasks, 2, CONC_ALL, CONC_FOREVER) == 2);
    for (int i = 0; i < 4; i++)
      CHECK_CHILD(conc_join(&jobs[i], CONC_FOREVER) == -ECHILD);
    CHECK_CHILD(!conc_is_alive(&jobs[3]));
    CHECK_CHILD(conc_cancel(&jobs[3]) == -ESRCH);
    CHECK_CHILD(conc_pool_submit(p, &more) == -ECHILD);
    CHECK_CHILD(conc_pool_map(p, square, NULL, 8, 1) == -ECHILD);
    CHECK_CHILD(conc_pool_close(p) == 0);
    CHECK_CHILD(conc_pool_join(p, CONC_FOREVER) == 0);
    CHECK_CHILD(conc_pool_start(p) == 0); /* one of its own */
    CHECK_CHILD(conc_pool_apply(p, &more, CONC_FOREVER) == 0);
    CHECK_CHILD(conc_pool_close(p) == 0);
    CHECK_CHILD(conc_pool_join(p, CONC_FOREVER) == 0);
    _exit(0);
  }
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK_EQ(status, 0);
  return NULL;
}

/* One coroutine waits for a job while another forks. */
static conc_pool *shared_pool;
static pid_t main_pid;
static void *join_across_fork(void *arg) {
  double longer = 0.2;
  conc_task job = job_of(sleep_a_bit, &longer, sizeof longer);
  conc_task other = job, *both[2] = {&job, &other};
  int rc;
  CHECK_EQ(conc_pool_submit(shared_pool, &job), 0);
  CHECK_EQ(conc_pool_submit(shared_pool, &other), 0);
  rc = arg != NULL ? conc_join(&job, CONC_FOREVER)
                   : conc_gather(both, 2, CONC_FOREVER);
  if (getpid() != main_pid) {
    CHECK_CHILD(rc == -ECHILD);
    CHECK_CHILD(conc_join(&other, CONC_FOREVER) == -ECHILD);
    return NULL;
  }
  CHECK_EQ(rc, 0);
  CHECK_EQ(conc_join(&other, CONC_FOREVER), 0);
  return NULL;
}
static void *fork_in_loop(void *arg) {
  conc_task a = job_of(join_across_fork, &a, 0);
  conc_task b = job_of(join_across_fork, NULL, 0);
  pid_t pid;
  int status;
  CHECK_EQ(conc_coro_start(&a), 0);
  CHECK_EQ(conc_coro_start(&b), 0);
  conc_sleep(0.01);
  pid = fork();
  CHECK(pid >= 0);
  CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  if (pid == 0) _exit(0);
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK_EQ(status, 0);
  return arg;
}
static void in_child(int kind) {
  conc_pool p = pool_of(kind, 2);
  conc_task t = job_of(fork_in_loop, NULL, 0);
  CHECK_EQ(conc_pool_start(&p), 0);
  let_begin(&p);
  gather_in_child(&p);
  shared_pool = &p;
  main_pid = getpid();
  CHECK_EQ(conc_run(&t), 0);
  finish(&p);
}
TEST(a_child_finds_its_parents_threads_ended) {
  NEEDS_FORK;
  in_child(CONC_THREAD);
}
TEST(a_child_finds_its_parents_workers_ended) {
  NEEDS_FORK;
  in_child(CONC_PROCESS);
}

/* A job that forks: the child's thread ends after it. */
static void *fork_inside(void *arg) {
  pid_t pid = fork();
  int status;
  if (pid == 0) return NULL;
  CHECK(pid > 0);
  CHECK(waitpid(pid, &status, 0) == pid);
  *(int *)arg = status;
  return NULL;
}
static void forking_job(int kind) {
  conc_pool p = pool_of(kind, 2);
  int status = -1;
  conc_task t = job_of(fork_inside, &status, sizeof status);
  CHECK_EQ(conc_pool_start(&p), 0);
  let_begin(&p);
  CHECK_EQ(conc_pool_apply(&p, &t, CONC_FOREVER), 0);
  CHECK_EQ(status, 0);
  finish(&p);
}
TEST(a_job_of_a_thread_may_fork) { NEEDS_FORK; forking_job(CONC_THREAD); }
TEST(a_job_of_a_process_may_fork) { NEEDS_FORK; forking_job(CONC_PROCESS); }

/* --- how processes die --------------------------------------------------- */

static void *exit_seven(void *arg) { _exit(7); return arg; }
static void *do_abort(void *arg) {
  signal(SIGABRT, SIG_DFL);
  abort();
  return arg;
}
static void *kill_myself(void *arg) {
  kill(getpid(), SIGKILL);
  return arg;
}

TEST(a_worker_that_dies_fails_only_its_job) {
  conc_fn *const ways[3] = {exit_seven, do_abort, kill_myself};
  const int codes[3] = {7, -SIGABRT, -SIGKILL};
  conc_pool p = pool_of(CONC_PROCESS, 2);
  NEEDS_FORK;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < 5; round++) {
    long values[6];
    conc_task jobs[6];
    for (int i = 0; i < 6; i++) {
      values[i] = i;
      jobs[i] = job_of(i % 2 ? ways[i / 2] : square, &values[i], sizeof(long));
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
      CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), i % 2 ? -ECHILD : 0);
      CHECK_EQ(values[i], i % 2 ? i : i * i);
      CHECK_EQ(conc_exitcode(&jobs[i]), i % 2 ? codes[i / 2]
                                              : CONC_NO_EXITCODE);
    }
  }
  finish(&p);
}

/* Dies until the file that it makes is there: with retries it succeeds. */
static char marker[64];
static void *die_twice(void *arg) {
  long n = *(long *)arg;
  char name[96];
  *(long *)arg = 99; /* half done */
  for (int i = 0; i < 2; i++) {
    int fd;
    snprintf(name, sizeof name, "%s.%d", marker, i);
    fd = open(name, O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) _exit(3);
  }
  *(long *)arg = n + 1;
  return NULL;
}
TEST(a_job_is_run_again_as_often_as_retries_says) {
  NEEDS_FORK;
  snprintf(marker, sizeof marker, "/tmp/conc-pool-%d", (int)getpid());
  for (unsigned retries = 1; retries < 4; retries++) {
    conc_pool p = pool_of(CONC_PROCESS, 2);
    long n = 5;
    conc_task job = job_of(die_twice, &n, sizeof n);
    char name[96];
    p.retries = retries;
    CHECK_EQ(conc_pool_start(&p), 0);
    CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER),
             retries < 2 ? -ECHILD : 0);
    CHECK_EQ(n, retries < 2 ? 5 : 6);
    CHECK_EQ(conc_exitcode(&job), retries < 2 ? 3 : CONC_NO_EXITCODE);
    finish(&p);
    for (int i = 0; i < 2; i++) {
      snprintf(name, sizeof name, "%s.%d", marker, i);
      unlink(name);
    }
  }
}

TEST(a_job_that_runs_too_long_is_killed_alone) {
  conc_pool p = pool_of(CONC_PROCESS, 2);
  double longer = 100, shorter = 0.001;
  conc_task slow_job = job_of(sleep_a_bit, &longer, sizeof longer);
  conc_task jobs[30];
  NEEDS_FORK;
  /* Far above what the short jobs take on a machine that is busy. */
  p.timeout = 1 * test_slow();
  p.retries = 3; /* not for this */
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < 1; round++) {
    CHECK_EQ(conc_pool_submit(&p, &slow_job), 0);
    for (int i = 0; i < 30; i++) {
      jobs[i] = job_of(sleep_a_bit, &shorter, sizeof shorter);
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    for (int i = 0; i < 30; i++)
      CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&slow_job, CONC_FOREVER), -ETIMEDOUT);
    CHECK_EQ(conc_exitcode(&slow_job), -SIGKILL);
  }
  finish(&p);
}

TEST(a_cancelled_job_of_a_process) {
  conc_pool p = pool_of(CONC_PROCESS, 1);
  double longer = 100;
  long values[400];
  conc_task running = job_of(sleep_a_bit, &longer, sizeof longer);
  conc_task jobs[400]; /* in slots, and behind them */
  NEEDS_FORK;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < 3; round++) {
    CHECK_EQ(conc_pool_submit(&p, &running), 0);
    for (int i = 0; i < 400; i++) {
      values[i] = i;
      jobs[i] = job_of(square, &values[i], sizeof(long));
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    for (int i = 0; i < 400; i += 3) CHECK_EQ(conc_cancel(&jobs[i]), 0);
    if (round > 0) usleep(20000);
    CHECK_EQ(conc_cancel(&running), 0);
    CHECK_EQ(conc_join(&running, CONC_FOREVER), -ECANCELED);
    for (int i = 0; i < 400; i++) {
      CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), i % 3 ? 0 : -ECANCELED);
      CHECK_EQ(values[i], i % 3 ? i * i : i);
    }
    CHECK_EQ(conc_cancel(&running), -ESRCH);
  }
  finish(&p);
}

/* _TestPoolWorkerLifetime: test_pool_worker_lifetime, and its early_close. */
static void *tell_pid(void *arg) {
  *(long *)arg = getpid();
  return NULL;
}
TEST(workers_are_replaced_after_so_many_jobs) {
  NEEDS_FORK;
  for (int early = 0; early < 2; early++) {
    conc_pool p = pool_of(CONC_PROCESS, 3);
    long pids[100];
    conc_task jobs[100];
    int fresh = 0;
    p.max_tasks_per_worker = 10;
    CHECK_EQ(conc_pool_start(&p), 0);
    for (int i = 0; i < 100; i++) {
      jobs[i] = job_of(tell_pid, &pids[i], sizeof(long));
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    if (early) finish(&p);
    for (int i = 0; i < 100; i++) {
      int count = 0, before = 0;
      CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
      CHECK_EQ(conc_pid(&jobs[i]), pids[i]);
      for (int k = 0; k < 100; k++) count += pids[k] == pids[i];
      for (int k = 0; k < i; k++) before += pids[k] == pids[i];
      CHECK(early || count <= 10 || i < 99);
      fresh += before == 0;
    }
    CHECK(fresh >= 10);
    if (!early) finish(&p);
  }
}

/* Python runs atexit handlers; here stdio is flushed, no more. */
static void *print_something(void *arg) {
  printf("from a worker");
  return arg;
}
TEST(a_worker_ends_as_a_process_does) {
  conc_pool p = pool_of(CONC_PROCESS, 1);
  conc_task job = job_of(print_something, NULL, 0);
  char text[64] = "";
  int fds[2], out;
  NEEDS_FORK;
  CHECK(pipe(fds) == 0);
  fflush(stdout);
  out = dup(1);
  dup2(fds[1], 1);
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), 0);
  finish(&p);
  dup2(out, 1);
  CHECK(read(fds[0], text, sizeof text - 1) > 0);
  CHECK_STR(text, "from a worker");
  close(out), close(fds[0]), close(fds[1]);
}

/* What the initializer sets is there, also in those that replace others. */
static long base;
static void *set_base(void *arg) {
  __atomic_store_n(&base, *(long *)arg, __ATOMIC_RELAXED);
  return NULL;
}
static void *add_base(void *arg) {
  *(long *)arg += __atomic_load_n(&base, __ATOMIC_RELAXED);
  return NULL;
}
static void initializer(int kind) {
  conc_pool p = pool_of(kind, 2);
  long items[50], hundred = 100;
  p.initializer = set_base;
  p.initializer_arg = &hundred;
  p.max_tasks_per_worker = 3;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 50; i++) items[i] = i;
  p.chunk = 1;
  CHECK_EQ(conc_pool_map(&p, add_base, items, sizeof *items, 50), 0);
  for (int i = 0; i < 50; i++) CHECK_EQ(items[i], i + 100);
  finish(&p);
}
TEST(threads_call_the_initializer) { initializer(CONC_THREAD); }
TEST(processes_call_the_initializer) { NEEDS_FORK; initializer(CONC_PROCESS); }

static void *submit_there(void *arg) {
  conc_task job = job_of(square, NULL, 0);
  (void)arg;
  return (void *)(intptr_t)conc_pool_submit(the_pool, &job);
}
TEST(a_job_of_a_process_cannot_submit_to_its_pool) {
  conc_pool p = pool_of(CONC_PROCESS, 1);
  conc_task job = job_of(submit_there, NULL, 0);
  NEEDS_FORK;
  the_pool = &p;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), 0);
  CHECK_EQ((intptr_t)conc_result(&job), -ECHILD);
  finish(&p);
}

TEST(a_pool_whose_workers_never_begin_fails_its_jobs) {
  conc_pool p = pool_of(CONC_PROCESS, 2);
  long n = 3;
  conc_task job = job_of(square, &n, sizeof n);
  NEEDS_FORK;
  p.initializer = exit_seven;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_apply(&p, &job, CONC_FOREVER), -ECHILD);
  CHECK_EQ(n, 3);
  finish(&p);
}

/* Jobs while a worker is killed every few milliseconds: each ends once, with
   its result or -ECHILD. */
typedef struct killer {
  conc_pool *pool;
  bool stop;
  int kills;
} killer;
static void *kill_now_and_then(void *arg) {
  killer *k = (killer *)arg;
  unsigned n = 0;
  while (!__atomic_load_n(&k->stop, __ATOMIC_ACQUIRE)) {
    conc__forkserver *fs = &k->pool->state->procs->server;
    conc__forkserver_kill(fs, n++ % fs->n);
    conc__forkserver_call(fs);
    k->kills++;
    usleep(5000);
  }
  return NULL;
}
static void *add_one_slowly(void *arg) {
  double end = conc_now() + 30e-6;
  while (conc_now() < end) ++*(long *)arg, --*(long *)arg;
  ++*(long *)arg;
  return NULL;
}
/* Jobs while fork servers are killed, one after the other, at any moment: in
   the midst of a fork, say, or of a report. Each server lives until it has a
   spare: it makes one before the first beat of its pulse. */
static void *kill_servers(void *arg) {
  killer *k = (killer *)arg;
  conc__forkserver *fs = &k->pool->state->procs->server;
  while (!__atomic_load_n(&k->stop, __ATOMIC_ACQUIRE)) {
    unsigned seat = CONC__LOAD(&fs->shared->seat), pulse;
    double end = conc_now() + 20 * test_slow();
    usleep(test_random() % 3000);
    conc__forkserver_replace(fs);
    while (CONC__LOAD(&fs->shared->seat) == seat) {
      CHECK(conc_now() < end);
      usleep(200);
    }
    pulse = CONC__LOAD(&fs->shared->pulse);
    while (CONC__LOAD(&fs->shared->pulse) == pulse) {
      CHECK(conc_now() < end);
      conc__forkserver_call(fs);
      usleep(200);
    }
    __atomic_add_fetch(&k->kills, 1, __ATOMIC_RELAXED);
  }
  return NULL;
}

/* What a job does, and how often it has begun and ended, in shared memory. */
enum { BRIEF, NAPS, DIES, CANCELLED };
typedef struct deed {
  int what, begun, ended;
} deed;
static void *do_it(void *arg) {
  deed *d = (deed *)arg;
  __atomic_add_fetch(&d->begun, 1, __ATOMIC_RELAXED);
  if (d->what == NAPS) usleep(1000);
  if (d->what == DIES) _exit(7);
  while (d->what == CANCELLED) usleep(100000);
  __atomic_add_fetch(&d->ended, 1, __ATOMIC_RELAXED);
  return NULL;
}

TEST(no_job_is_lost_while_fork_servers_are_killed_at_random) {
  enum { JOBS = 16 };
  int kills = (int)test_asked("POOL_SERVERS", test_slow() > 1 ? 10 : 40);
  conc_pool p = pool_of(CONC_PROCESS, 3);
  killer k = {&p, false, 0};
  conc_task t = job_of(kill_servers, &k, 0), jobs[JOBS];
  deed *deeds;
  NEEDS_FORK;
  deeds = (deed *)conc_shared_alloc(JOBS * sizeof *deeds);
  CHECK(deeds != NULL);
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_thread_start(&t), 0);
  while (__atomic_load_n(&k.kills, __ATOMIC_RELAXED) < kills) {
    for (int i = 0; i < JOBS; i++) {
      deed d = {i % 8 == 6 ? DIES : i % 8 == 7 ? CANCELLED : i % 2, 0, 0};
      deeds[i] = d;
      jobs[i] = job_of(do_it, &deeds[i], 0);
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    for (int i = 0; i < JOBS; i++) {
      int what = deeds[i].what;
      if (what == CANCELLED) CHECK_EQ(conc_cancel(&jobs[i]), 0);
      CHECK_EQ(conc_join(&jobs[i], 60 * test_slow()),
               what == DIES        ? -ECHILD
               : what == CANCELLED ? -ECANCELED
                                   : 0);
      if (what != CANCELLED) CHECK_EQ(deeds[i].begun, 1);
      CHECK_EQ(deeds[i].ended, what == BRIEF || what == NAPS);
    }
  }
  __atomic_store_n(&k.stop, true, __ATOMIC_RELEASE);
  CHECK_EQ(conc_join(&t, 60 * test_slow()), 0);
  finish(&p);
  conc_shared_free(deeds);
}

static int ended_jobs;
static void count_end(conc_task *task, int status, void *result) {
  (void)task, (void)result;
  CHECK(status == 0 || status == -ECHILD);
  __atomic_add_fetch(&ended_jobs, 1, __ATOMIC_RELAXED);
}
static void crash(unsigned retries, bool with_callbacks) {
  enum { WINDOW = 1000 };
  int n = test_slow() > 1 ? 10000 : 100000, failed = 0;
  conc_pool p = pool_of(CONC_PROCESS, 3);
  static conc_task jobs[WINDOW];
  static long values[WINDOW];
  killer k = {&p, false, 0};
  conc_task t = job_of(kill_now_and_then, &k, 0);
  p.retries = retries;
  ended_jobs = 0;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_thread_start(&t), 0);
  for (int i = 0; i < n + WINDOW; i++) {
    int at = i % WINDOW;
    if (i >= WINDOW) {
      int rc = conc_join(&jobs[at], CONC_FOREVER);
      CHECK(rc == 0 || rc == -ECHILD);
      CHECK_EQ(values[at], i - WINDOW + (rc == 0));
      CHECK_EQ(conc_exitcode(&jobs[at]),
               rc == 0 ? CONC_NO_EXITCODE : -SIGKILL);
      failed += rc != 0;
    }
    if (i >= n) continue;
    values[at] = i;
    jobs[at] = job_of(add_one_slowly, &values[at], sizeof(long));
    if (with_callbacks) jobs[at].callback = count_end;
    CHECK_EQ(conc_pool_submit(&p, &jobs[at]), 0);
  }
  __atomic_store_n(&k.stop, true, __ATOMIC_RELEASE);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  finish(&p);
  CHECK_EQ(ended_jobs, with_callbacks ? n : 0);
  CHECK(failed <= k.kills);
  if (getenv("TEST_VERBOSE"))
    printf("%d jobs, %d kills, %d failed\n", n, k.kills, failed);
}
TEST(every_job_ends_once_while_workers_are_killed) {
  NEEDS_FORK;
  crash(0, false);
}
TEST(and_so_does_every_job_that_is_run_again) { NEEDS_FORK; crash(2, true); }

/* A worker dies before its n-th step after its first job has begun, for every
   n until there are no more: nobody else minds. */
static long *steps; /* in shared memory */
static void *die_before_step(void *arg) {
  die_in = __atomic_exchange_n(steps, 0, __ATOMIC_RELAXED);
  return add_one(arg);
}
static int die_at_step(long n, size_t workers, unsigned retries) {
  conc_pool p = pool_of(CONC_PROCESS, workers);
  long values[5];
  conc_task jobs[5];
  int failed = 0;
  p.retries = retries;
  *steps = n;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 5; i++) {
    values[i] = i;
    jobs[i] = job_of(i == 0 ? die_before_step : add_one, &values[i],
                     sizeof(long));
    if (i == 3 && n % 3 == 0) usleep(500); /* they may sleep by now */
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  for (int i = 0; i < 5; i++) {
    int rc = conc_join(&jobs[i], CONC_FOREVER);
    CHECK(rc == 0 || rc == -ECHILD);
    CHECK_EQ(values[i], i + (rc == 0));
    failed += rc != 0;
  }
  CHECK(failed <= 1 && (failed == 0 || retries == 0));
  finish(&p);
  return failed;
}
TEST(a_worker_may_be_killed_before_any_step) {
  int failed = 0;
  NEEDS_FORK;
  steps = (long *)conc_shared_alloc(sizeof *steps);
  CHECK(steps != NULL);
  for (long n = 1; n <= 40; n++) {
    failed += die_at_step(n, 1, 0);
    CHECK_EQ(die_at_step(n, 1, 1), 0);
    die_at_step(n, 2, 0);
  }
  CHECK(failed > 0);
  if (getenv("TEST_VERBOSE")) printf("%d failed\n", failed);
  conc_shared_free(steps);
}

TEST_MAIN
