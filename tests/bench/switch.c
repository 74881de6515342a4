/* What a coroutine costs: to switch, to make, to keep.
 *
 *   switch [--quick] [FILTER]       only rows whose name contains FILTER
 *
 * Peers: Boost.Context's jump_fcontext (libboost-context-dev) and the C
 * library's swapcontext, in the same loop; Python's asyncio for the sleepers,
 * libev (libev-dev) for timers.
 * Everything runs on one CPU. "bare" is the switch alone, as the peers are;
 * the other rows of conc.h go through its public functions, with its
 * scheduler.
 *
 *   switch        two contexts take turns; ns from one to the other
 *   yield         n tasks yield in turn; ns for each
 *   create        one coroutine from its start to its end, stack reused
 *   generator     ns from asking for a value to having it
 *   tree          the same for a tree of 2^16 - 1 nodes: one generator that
 *                 recurses; and one for each node, delegating to its children
 *   sleepers      n tasks sleep 0..100 ms each: ms until the last has ended
 *   timers        a million: ns to insert one, to cancel one of all, in any
 *                 order, and to hear of one of all when they are due
 *   memory        resident bytes of a task that waits, or was only started;
 *                 a million that sleep at once: bytes, and ms to get there and
 *                 to cancel them all
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>
#ifndef NO_EV
#include <ev.h>
#endif

enum { STACK = 65536 };

static long scaled(long n) { return bench_quick ? n / 20 : n; }

static void *map_memory(size_t n, size_t size) {
  void *p = mmap(NULL, n * size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    perror("switch: memory");
    exit(1);
  }
  return p;
}

/* --- two contexts that take turns --------------------------------------- */

static long turns; /* of each of the two */

#ifndef NO_BOOST
/* Boost.Context's C interface, which its headers keep to themselves. */
typedef struct transfer {
  void *context;
  void *data;
} transfer;
extern void *make_fcontext(void *stack_top, size_t size, void (*)(transfer));
extern transfer jump_fcontext(void *to, void *data);

static void boost_peer(transfer t) {
  for (;;) t = jump_fcontext(t.context, NULL);
}

static double boost_switch(void) {
  unsigned char *stack = (unsigned char *)map_memory(1, STACK);
  transfer t = {make_fcontext(stack + STACK, STACK, boost_peer), NULL};
  double start = bench_now();
  for (long i = 0; i < turns; i++) t = jump_fcontext(t.context, NULL);
  start = bench_now() - start;
  munmap(stack, STACK);
  return start * 1e9 / (double)(2 * turns);
}
#endif

static ucontext_t ucontexts[2];

static void ucontext_peer(void) {
  for (;;) swapcontext(&ucontexts[1], &ucontexts[0]);
}

static double ucontext_switch(void) {
  unsigned char *stack = (unsigned char *)map_memory(1, STACK);
  long n = turns / 20;
  double start;
  getcontext(&ucontexts[1]);
  ucontexts[1].uc_stack.ss_sp = stack;
  ucontexts[1].uc_stack.ss_size = STACK;
  makecontext(&ucontexts[1], ucontext_peer, 0);
  start = bench_now();
  for (long i = 0; i < n; i++) swapcontext(&ucontexts[0], &ucontexts[1]);
  start = bench_now() - start;
  munmap(stack, STACK);
  return start * 1e9 / (double)(2 * n);
}

static conc__fiber fibers[2];

static void fiber_peer(void) {
  for (;;) conc__fiber_switch(&fibers[1], &fibers[0], false);
}

static double bare_switch(void) {
  unsigned char *stack = (unsigned char *)map_memory(1, STACK);
  double start;
  conc__fiber_init_thread(&fibers[0]);
  conc__fiber_init(&fibers[1], stack, STACK, fiber_peer);
  start = bench_now();
  for (long i = 0; i < turns; i++)
    conc__fiber_switch(&fibers[0], &fibers[1], false);
  start = bench_now() - start;
  munmap(stack, STACK);
  return start * 1e9 / (double)(2 * turns);
}

/* --- n tasks that yield -------------------------------------------------- */

/* Starts n tasks of one kind from within a loop; yields until they ended. */
typedef struct crowd {
  conc_task main;
  conc_fn *target;
  size_t n;
  long turns; /* of each */
  size_t begun, ended;
  bool dismiss; /* the measurement is over */
  double start, result;
  conc_task *tasks;
} crowd;

static crowd crew; /* one at a time; tasks find it here */

static void start_crowd(void) {
  /* Fresh memory, so that the tasks count in what is resident. */
  crew.tasks = (conc_task *)map_memory(crew.n, sizeof *crew.tasks);
  for (size_t i = 0; i < crew.n; i++) {
    crew.tasks[i].target = crew.target;
    crew.tasks[i].arg = (void *)(uintptr_t)i;
    conc_coro_start(&crew.tasks[i]);
  }
}

static void await_crowd(void) {
  for (size_t i = 0; i < crew.n; i++) conc_join(&crew.tasks[i], CONC_FOREVER);
  munmap(crew.tasks, crew.n * sizeof *crew.tasks);
}

static double run_crowd(conc_fn *main_target) {
  crew.main.target = main_target;
  crew.begun = crew.ended = 0;
  crew.dismiss = false;
  if (conc_run(&crew.main) != 0) return NAN;
  return crew.result;
}

static double run_crowd_of(size_t n, conc_fn *target, conc_fn *main_target,
                           void *arg) {
  crew.n = n;
  crew.target = target;
  crew.main.arg = arg;
  return run_crowd(main_target);
}

/* The clock runs from when the last has begun to when the first has ended:
   in between every yield goes through all n. */
static void *yielder(void *arg) {
  (void)arg;
  if (++crew.begun == crew.n) crew.start = bench_now();
  while (crew.begun < crew.n) conc_yield_now();
  for (long i = 0; i < crew.turns; i++) conc_yield_now();
  if (crew.ended++ == 0) crew.result = bench_now() - crew.start;
  return NULL;
}

static void *yield_main(void *arg) {
  (void)arg;
  start_crowd();
  await_crowd();
  crew.result *= 1e9 / ((double)crew.turns * (double)crew.n);
  return NULL;
}

static double conc_yields(size_t n) {
  crew.turns = scaled(n < 10 ? 10000000 : n < 10000 ? 20000 : 200);
  return run_crowd_of(n, yielder, yield_main, NULL);
}

static double conc_two(void) { return conc_yields(2); }

#ifndef NO_BOOST
/* The least that a round through n of them can cost with Boost: an array of
   contexts and no scheduler; main jumps to each and back, so two jumps. */
static double boost_yields(size_t n) {
  size_t size = 16384 + 64; /* not all in the same cache sets */
  unsigned char *stacks = (unsigned char *)map_memory(n, size);
  void **contexts = (void **)calloc(n, sizeof *contexts);
  long rounds = scaled(n < 10 ? 5000000 : n < 10000 ? 10000 : 100);
  double start = 0;
  if (contexts == NULL) exit(1);
  for (size_t i = 0; i < n; i++)
    contexts[i] = make_fcontext(stacks + (i + 1) * size, size, boost_peer);
  for (long r = -1; r < rounds; r++) { /* the first touches the stacks */
    if (r == 0) start = bench_now();
    for (size_t i = 0; i < n; i++)
      contexts[i] = jump_fcontext(contexts[i], NULL).context;
  }
  start = bench_now() - start;
  munmap(stacks, n * size);
  free(contexts);
  return start * 1e9 / ((double)rounds * (double)n);
}
#endif

/* --- making them --------------------------------------------------------- */

static void *nothing(void *arg) { return arg; }

static void *create_main(void *arg) {
  long n = scaled(5000000);
  conc_task t = {0};
  double start;
  (void)arg;
  t.target = nothing;
  start = bench_now();
  for (long i = 0; i < n; i++) {
    conc_coro_start(&t);
    conc_join(&t, CONC_FOREVER);
  }
  crew.result = (bench_now() - start) * 1e9 / (double)n;
  return NULL;
}

/* Many started before the first runs, as a server would. */
static void *create_batch_main(void *arg) {
  enum { BATCH = 64 };
  long rounds = scaled(5000000) / BATCH;
  conc_task *t = (conc_task *)calloc(BATCH, sizeof *t);
  double start = bench_now();
  (void)arg;
  if (t == NULL) exit(1);
  for (long r = 0; r < rounds; r++) {
    for (int i = 0; i < BATCH; i++) {
      t[i].target = nothing;
      conc_coro_start(&t[i]);
    }
    for (int i = 0; i < BATCH; i++) conc_join(&t[i], CONC_FOREVER);
  }
  crew.result = (bench_now() - start) * 1e9 / (double)(rounds * BATCH);
  free(t);
  return NULL;
}

static double conc_create(void) { return run_crowd(create_main); }
static double conc_create_batch(void) { return run_crowd(create_batch_main); }

#ifndef NO_BOOST
static void boost_once(transfer t) { jump_fcontext(t.context, NULL); }

static double boost_create(void) {
  unsigned char *stack = (unsigned char *)map_memory(1, STACK);
  long n = scaled(5000000);
  double start = bench_now();
  for (long i = 0; i < n; i++)
    jump_fcontext(make_fcontext(stack + STACK, STACK, boost_once), NULL);
  start = bench_now() - start;
  munmap(stack, STACK);
  return start * 1e9 / (double)n;
}
#endif

/* --- generators ---------------------------------------------------------- */

static long items;

#ifndef NO_BOOST
static void boost_counter(transfer t) {
  for (uintptr_t i = 0;; i++) t = jump_fcontext(t.context, (void *)i);
}

static double boost_generator(void) {
  unsigned char *stack = (unsigned char *)map_memory(1, STACK);
  transfer t = {make_fcontext(stack + STACK, STACK, boost_counter), NULL};
  uintptr_t sum = 0;
  double start = bench_now();
  for (long i = 0; i < items; i++) {
    t = jump_fcontext(t.context, NULL);
    sum += (uintptr_t)t.data;
  }
  start = bench_now() - start;
  munmap(stack, STACK);
  return sum == 0 ? NAN : start * 1e9 / (double)items;
}
#endif

static void *counter(void *arg) {
  for (uintptr_t i = 0; conc_yield((void *)i, NULL) == 0; i++) continue;
  return arg;
}

/* Takes all values, or `items` of them. */
static double take(conc_fn *target, void *arg) {
  conc_gen g = {0};
  uintptr_t sum = 0;
  void *value;
  long n = 0;
  double start;
  g.target = target;
  g.arg = arg;
  start = bench_now();
  for (; n < items && conc_gen_next(&g, &value) == 0; n++)
    sum += (uintptr_t)value;
  start = bench_now() - start;
  conc_gen_close(&g);
  return sum == 0 ? NAN : start * 1e9 / (double)n;
}

static double conc_generator(void) { return take(counter, NULL); }

static void *delegator(void *arg) {
  conc_gen inner = {0};
  inner.target = arg == NULL ? counter : delegator;
  inner.arg = arg == NULL ? NULL : (void *)((uintptr_t)arg - 1);
  conc_yield_from(&inner, NULL);
  return NULL;
}

static double conc_delegated(void) { return take(delegator, (void *)9); }

static void *tree(void *depth) {
  uintptr_t n = (uintptr_t)depth;
  if (n == 0) return NULL;
  for (int child = 0; child < 2; child++) {
    conc_gen g = {0};
    g.target = tree;
    g.arg = (void *)(n - 1);
    conc_yield_from(&g, NULL);
    if (child == 0) conc_yield(depth, NULL);
  }
  return NULL;
}

static void *recursive_tree(void *depth) {
  if (depth == NULL) return NULL;
  recursive_tree((void *)((uintptr_t)depth - 1));
  conc_yield(depth, NULL);
  return recursive_tree((void *)((uintptr_t)depth - 1));
}

static double conc_tree(void) { return take(tree, (void *)16); }
static double conc_recursive(void) {
  return take(recursive_tree, (void *)16);
}

/* --- many that sleep ----------------------------------------------------- */

static void *sleeper(void *arg) {
  conc_sleep((double)((uintptr_t)arg * 7919 % 100000) * 1e-6);
  return NULL;
}

static void *sleep_main(void *arg) {
  (void)arg;
  crew.start = bench_now();
  start_crowd();
  await_crowd();
  crew.result = (bench_now() - crew.start) * 1e3;
  return NULL;
}

static double conc_sleepers(void *n) {
  return run_crowd_of(*(size_t *)n, sleeper, sleep_main, NULL);
}

static double asyncio_sleepers(void) {
  const char *program =
      "python3 -c 'import asyncio, time\n"
      "async def main():\n"
      "  await asyncio.gather(*(asyncio.sleep(i * 7919 % 100000 / 1e6)\n"
      "                         for i in range(100000)))\n"
      "t = time.monotonic()\n"
      "asyncio.run(main())\n"
      "print((time.monotonic() - t) * 1e3)' 2>/dev/null";
  FILE *f = popen(program, "r");
  double ms = NAN;
  if (f != NULL && fscanf(f, "%lf", &ms) != 1) ms = NAN;
  if (f != NULL) pclose(f);
  return ms;
}

/* --- timers -------------------------------------------------------------- */

enum { TIMERS = 1000000 };
enum { INSERT, CANCEL, EXPIRE, STEPS };

typedef struct timers {
  double at[TIMERS]; /* 0 to 1 */
  unsigned order[TIMERS];
  double ns[2][STEPS][BENCH_RUNS];
} timers;

static double per_timer(double seconds) { return seconds * 1e9 / TIMERS; }

/* Whoever sets or ends a timer has just had to do with its owner: the watcher
   that holds libev's, the coroutine whose is ours. So these are brought into
   the cache before the clock runs, a batch of them at a time. */
enum { TIMERS_AT_ONCE = 64 };

static void touch(const void *owner, size_t size) {
  for (size_t at = 0; at < size; at += 64)
    (void)((const volatile char *)owner)[at];
}

#ifndef NO_EV
static void on_timer(struct ev_loop *loop, ev_timer *t, int events) {
  (void)loop, (void)t, (void)events;
}

static void ev_timers(timers *t, int run) {
  struct ev_loop *loop = ev_loop_new(0);
  ev_timer *all = (ev_timer *)calloc(TIMERS, sizeof *all);
  double start, insert = 0, cancel = 0;
  if (loop == NULL || all == NULL) exit(1);
  for (int i = 0; i < TIMERS; i++)
    ev_timer_init(&all[i], on_timer, 100 + t->at[i], 0);
  for (int n = 0; n < TIMERS; n += TIMERS_AT_ONCE) {
    int end = n + TIMERS_AT_ONCE;
    for (int i = n; i < end; i++) touch(&all[i], sizeof *all);
    start = bench_now();
    for (int i = n; i < end; i++) ev_timer_start(loop, &all[i]);
    insert += bench_now() - start;
  }
  for (int n = 0; n < TIMERS; n += TIMERS_AT_ONCE) {
    int end = n + TIMERS_AT_ONCE;
    for (int i = n; i < end; i++) touch(&all[t->order[i]], sizeof *all);
    start = bench_now();
    for (int i = n; i < end; i++) ev_timer_stop(loop, &all[t->order[i]]);
    cancel += bench_now() - start;
  }
  for (int i = 0; i < TIMERS; i++) {
    ev_timer_set(&all[i], t->at[i] * 1e-3, 0);
    ev_timer_start(loop, &all[i]);
  }
  usleep(2000);
  start = bench_now();
  ev_run(loop, EVRUN_NOWAIT);
  t->ns[0][EXPIRE][run] = per_timer(bench_now() - start);
  t->ns[0][INSERT][run] = per_timer(insert);
  t->ns[0][CANCEL][run] = per_timer(cancel);
  free(all);
  ev_loop_destroy(loop);
}
#endif

/* The loop's own functions: a task for each would count, too. */
static void conc_timers(timers *t, int run) {
  conc__loop *loop = (conc__loop *)calloc(1, sizeof *loop);
  conc__coro *all = (conc__coro *)map_memory(TIMERS, sizeof *all);
  conc_task task = {0};
  double start, base = bench_now(), insert = 0, cancel = 0;
  if (loop == NULL) exit(1);
  loop->batch_size = CONC__LOOP_BATCH; /* as in a loop that is fast */
  for (; loop->alive < TIMERS; loop->alive++) conc__loop_reserve(loop);
  for (int i = 0; i < TIMERS; i++) {
    all[i].actor.word = CONC__PARKED;
    all[i].actor.task = &task;
  }
  for (int n = 0; n < TIMERS; n += TIMERS_AT_ONCE) {
    int end = n + TIMERS_AT_ONCE;
    for (int i = n; i < end; i++) touch(&all[i], sizeof *all);
    start = bench_now();
    if (n > 0) conc__timers_expire(loop, base);
    for (int i = n; i < end; i++)
      conc__timers_add(&loop->timers, &all[i], base + 100 + t->at[i]);
    insert += bench_now() - start;
  }
  for (int n = 0; n < TIMERS; n += TIMERS_AT_ONCE) {
    int end = n + TIMERS_AT_ONCE;
    for (int i = n; i < end; i++) touch(&all[t->order[i]], sizeof *all);
    start = bench_now();
    for (int i = n; i < end; i++)
      conc__timers_remove(&loop->timers, &all[t->order[i]]);
    cancel += bench_now() - start;
  }
  base = bench_now();
  for (int i = 0; i < TIMERS; i++) {
    if (i % 256 == 1) conc__timers_expire(loop, base);
    conc__timers_add(&loop->timers, &all[i], base + t->at[i] * 1e-3);
  }
  start = bench_now();
  while (loop->timers.count > 0) conc__timers_expire(loop, base + 1);
  t->ns[1][EXPIRE][run] = per_timer(bench_now() - start);
  t->ns[1][INSERT][run] = per_timer(insert);
  t->ns[1][CANCEL][run] = per_timer(cancel);
  munmap(all, TIMERS * sizeof *all);
  free(loop->ready.items);
  free(loop->timers.places);
  free(loop->timers.links);
  free(loop);
}

static void rows_of_timers(void) {
  static const char *const steps[] = {"insert", "cancel", "expire"};
  size_t there = 0; /* rounds of libev */
  timers *t;
  if (!bench_wanted("timers")) return;
  t = (timers *)calloc(1, sizeof *t);
  if (t == NULL) exit(1);
  srand(1);
  for (unsigned i = 0; i < TIMERS; i++) {
    unsigned other = (unsigned)rand() % (i + 1);
    t->at[i] = (double)rand() / RAND_MAX;
    t->order[i] = t->order[other];
    t->order[other] = i;
  }
  for (int run = 0; run < bench_rounds; run++) {
#ifndef NO_EV
    ev_timers(t, run);
    there = (size_t)bench_rounds;
#endif
    conc_timers(t, run);
  }
  for (int i = 0; i < STEPS; i++) {
    char name[80];
    snprintf(name, sizeof name, "timers, %s", steps[i]);
    bench_print(name, "ns", "conc", t->ns[1][i], (size_t)bench_rounds);
    bench_print(name, "ns", "libev", t->ns[0][i], there);
  }
  free(t);
}

/* --- memory -------------------------------------------------------------- */

static double resident(void) {
  double pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (f != NULL && fscanf(f, "%*f %lf", &pages) != 1) pages = 0;
  if (f != NULL) fclose(f);
  return pages * (double)sysconf(_SC_PAGESIZE);
}

static void *idler(void *arg) {
  (void)arg;
  crew.begun++;
  while (!crew.dismiss) conc_sleep(0.2);
  return NULL;
}

static void *memory_main(void *run) {
  double before = resident();
  start_crowd();
  if (run != NULL)
    while (crew.begun < crew.n) conc_yield_now();
  crew.result = (resident() - before) / (double)crew.n;
  crew.dismiss = true;
  await_crowd();
  return NULL;
}

/* The conc_task is counted too: the caller has to have it. */
static double conc_memory(void *run) {
  return run_crowd_of(100000, idler, memory_main, run);
}

/* A million that sleep at once, each on a guarded stack of its own. */
enum { ASLEEP_BYTES, ASLEEP_MS, AWAKE_MS, MILLION };
static void *sleep_long(void *arg) {
  crew.begun++;
  conc_sleep(1e6);
  return arg;
}

static void *million_main(void *results) {
  double before = resident(), bytes, slept;
  crew.start = bench_now();
  start_crowd();
  while (crew.begun < crew.n) conc_yield_now();
  slept = bench_now();
  bytes = (resident() - before) / (double)crew.n;
  for (size_t i = 0; i < crew.n; i++) conc_cancel(&crew.tasks[i]);
  await_crowd();
  crew.result = ((double *)results)[ASLEEP_BYTES] = bytes;
  ((double *)results)[ASLEEP_MS] = (slept - crew.start) * 1e3;
  ((double *)results)[AWAKE_MS] = (bench_now() - slept) * 1e3;
  return NULL;
}

/* Into MILLION results, in memory that is shared with the parent. */
static double conc_million(void *results) {
  return run_crowd_of(1000000, sleep_long, million_main, results);
}

/* The limit: the system's first touch of one page in each of a million slots,
   without guards. */
static double touch_million(void *arg) {
  size_t n = 1000000, slot = 65536 + (size_t)sysconf(_SC_PAGESIZE);
  unsigned char *p = (unsigned char *)map_memory(n, slot);
  double start = bench_now();
  (void)arg;
  for (size_t i = 0; i < n; i++) p[(i + 1) * slot - 1] = 1;
  return (bench_now() - start) * 1e3;
}

/* --- rows ---------------------------------------------------------------- */

#ifdef NO_BOOST
#define boost_switch NULL
#define boost_create NULL
#define boost_generator NULL
#define boost_round NULL
#else
static size_t boost_n;
static double boost_round(void) { return boost_yields(boost_n); }
#endif
static size_t conc_n;
static double conc_round(void) { return conc_yields(conc_n); }

static void rows_of_yield(size_t n) {
  char row[80];
#ifndef NO_BOOST
  boost_n = n;
#endif
  conc_n = n;
  snprintf(row, sizeof row, "yield, %zu tasks", n);
  ROW(row, "ns", {"conc_yield_now", conc_round},
      {"Boost, bare, no scheduler", boost_round});
}

static bool million_fits(const char *row) {
  if (bench_quick) return false;
  if ((double)sysconf(_SC_AVPHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) > 8e9)
    return true;
  printf("  %s, 1000000: not here, they want 8 GB of memory\n", row);
  return false;
}

static size_t sleeping;
static double own_sleepers(void) {
  return bench_in_child(conc_sleepers, &sleeping);
}

static void rows_of_sleepers(void) {
  /* asyncio takes seconds; that is not what a quick run is to wait for. */
  if (bench_hurries()) return;
  sleeping = 100000;
  ROW("sleepers, 100000 x 0..100 ms", "ms", {"conc", own_sleepers},
      {"asyncio", asyncio_sleepers});
  sleeping = 1000000;
  if (million_fits("sleepers"))
    ROW("sleepers, 1000000 x 0..100 ms", "ms", {"conc", own_sleepers});
}

static void rows_of_million(void) {
  double touched[BENCH_RUNS], own[MILLION][BENCH_RUNS];
  double *results = (double *)mmap(NULL, MILLION * sizeof *results,
                                   PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  size_t n = 5; /* each takes long */
  if (results == (double *)MAP_FAILED) return;
  for (size_t r = 0; r < n; r++) {
    double good = bench_in_child(conc_million, results);
    for (int i = 0; i < MILLION; i++)
      own[i][r] = isnan(good) ? NAN : results[i];
    touched[r] = bench_in_child(touch_million, NULL);
  }
  munmap(results, MILLION * sizeof *results);
  bench_print("memory, 1000000 asleep, each", "bytes", "conc",
              own[ASLEEP_BYTES], n);
  bench_print("1000000 until all are asleep", "ms", "conc", own[ASLEEP_MS], n);
  bench_print("1000000 until all are asleep", "ms",
              "limit: a page touched for each", touched, n);
  bench_print("1000000 cancelled until all have ended", "ms", "conc",
              own[AWAKE_MS], n);
}

static double memory_started(void) { return bench_in_child(conc_memory, NULL); }
static double memory_waits(void) {
  static int yes = 1;
  return bench_in_child(conc_memory, &yes);
}

static void rows_of_memory(void) {
  if (bench_hurries()) return;
  ROW("memory, started, has not run yet", "bytes", {"conc", memory_started});
  ROW("memory, waits", "bytes", {"conc", memory_waits});
  if (bench_wanted("memory") && million_fits("memory")) rows_of_million();
}

int main(int argc, char **argv) {
  bench_begin(argc, argv, "Coroutines");
  bench_pin(0);
  turns = scaled(20000000);
  items = scaled(20000000);
  ROW("switch between two", "ns", {"conc, bare", bare_switch},
      {"Boost jump_fcontext", boost_switch}, {"swapcontext", ucontext_switch},
      {"conc_yield_now", conc_two});
  rows_of_yield(2);
  rows_of_yield(1000);
  rows_of_yield(100000);
  ROW("create, run, end, one by one", "ns", {"conc", conc_create},
      {"Boost make_fcontext", boost_create});
  ROW("create, run, end, 64 at once", "ns", {"conc", conc_create_batch},
      {"Boost make_fcontext", boost_create});
  ROW("generator", "ns", {"conc_gen_next", conc_generator},
      {"Boost jump_fcontext, bare", boost_generator},
      {"conc, 10 times delegated", conc_delegated});
  ROW("tree of generators", "ns", {"conc, flat", conc_generator},
      {"conc, one generator recurses", conc_recursive},
      {"conc_yield_from", conc_tree});
  rows_of_sleepers();
  rows_of_timers();
  rows_of_memory();
  return 0;
}
