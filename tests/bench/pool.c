/* What a pool costs for each job.
 *
 *   pool [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * Peers, in the same run: TBB, libuv, libgomp (pool_peers.cpp, a program of
 * its own beside this one), and Python's multiprocessing.Pool.
 *
 *   empty   100,000 jobs that do nothing, submitted by one thread that is
 *           not of the pool, ns each until all are done
 *   fib     fork/join: fib(22), each call starts one job and waits for it, ns
 *           per job; with 1 thread and with 2
 *   for     100,000 items by map in chunks of one, ns per chunk
 *   trip    one trivial job for a process, submit to join, p50, while both
 *           sides spin; and when it sleeps
 *   map     items/s of 8 bytes through processes by map in its own chunks
 *   each    items/s as jobs of their own, one by one
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"

enum { JOBS = 100000, FIB = 22, FIB_JOBS = 28656 };
static int runs = 25;
static const char *filter = "", *self;

static void *nothing(void *arg) { return arg; }
static void *add_one(void *arg) {
  ++*(long *)arg;
  return NULL;
}

static conc_pool pool;
static void open_pool(int kind, size_t workers) {
  memset(&pool, 0, sizeof pool);
  pool.kind = kind;
  pool.workers = workers;
  if (conc_pool_start(&pool) != 0) exit(1);
}
static void close_pool(void) {
  conc_pool_close(&pool);
  conc_pool_join(&pool, CONC_FOREVER);
}

/* --- threads ------------------------------------------------------------- */

static double empty(void) {
  enum { WINDOW = 4096 }; /* conc_tasks, each used again after its end */
  static conc_task jobs[WINDOW];
  double start;
  memset(jobs, 0, sizeof jobs);
  for (int i = 0; i < WINDOW; i++) jobs[i].target = nothing;
  start = bench_now();
  for (int i = 0; i < JOBS; i++) {
    conc_task *job = &jobs[i % WINDOW];
    if (i >= WINDOW) conc_join(job, CONC_FOREVER);
    conc_pool_submit(&pool, job);
  }
  for (int i = 0; i < WINDOW; i++) conc_join(&jobs[i], CONC_FOREVER);
  return (bench_now() - start) * 1e9 / JOBS;
}

typedef struct fib {
  conc_task task;
  int n;
  long sum;
} fib;

static void *run_fib(void *arg) {
  fib *f = arg, a = {.task = {.target = run_fib}}, b;
  if (f->n < 2) {
    f->sum = f->n;
    return NULL;
  }
  a.task.arg = &a;
  a.n = f->n - 1;
  b.n = f->n - 2;
  conc_pool_submit(&pool, &a.task);
  run_fib(&b);
  conc_join(&a.task, CONC_FOREVER);
  f->sum = a.sum + b.sum;
  return NULL;
}
static double fork_join(void) {
  fib f = {.task = {.target = run_fib}, .n = FIB};
  double start = bench_now();
  f.task.arg = &f;
  conc_pool_apply(&pool, &f.task, CONC_FOREVER);
  if (f.sum != 17711) exit(1);
  return (bench_now() - start) * 1e9 / FIB_JOBS;
}

static double parallel_for(void) {
  static char items[JOBS];
  double start = bench_now();
  pool.chunk = 1;
  if (conc_pool_map(&pool, nothing, items, 1, JOBS) != 0) exit(1);
  return (bench_now() - start) * 1e9 / JOBS;
}

/* --- processes ----------------------------------------------------------- */

static double trip_pause;
static double trip(void) {
  enum { N = 5000 };
  static double times[N];
  long value = 0;
  conc_task job = {.target = add_one, .arg = &value, .size = sizeof value};
  int n = trip_pause > 0 ? N / 25 : N;
  for (int i = 0; i < n; i++) {
    double start;
    if (trip_pause > 0) conc_sleep(trip_pause);
    start = bench_now();
    conc_pool_apply(&pool, &job, CONC_FOREVER);
    times[i] = bench_now() - start;
  }
  return bench_median(times, (size_t)n) * 1e6;
}

static double map(void) {
  enum { N = 4000000 };
  static long items[N];
  double start = bench_now();
  if (conc_pool_map(&pool, add_one, items, sizeof *items, N) != 0) exit(1);
  return N / (bench_now() - start);
}

static double each(void) {
  enum { N = 100000 };
  static conc_task jobs[N];
  static long items[N];
  double start;
  memset(jobs, 0, sizeof jobs);
  for (int i = 0; i < N; i++) {
    jobs[i].target = add_one;
    jobs[i].arg = &items[i];
    jobs[i].size = sizeof items[i];
  }
  start = bench_now();
  for (int i = 0; i < N; i++) conc_pool_submit(&pool, &jobs[i]);
  for (int i = 0; i < N; i++) conc_join(&jobs[i], CONC_FOREVER);
  return N / (bench_now() - start);
}

/* --- peers --------------------------------------------------------------- */

/* What a program prints; NAN if there is none. */
static double ask(const char *command) {
  double value = NAN;
  FILE *f = popen(command, "r");
  if (f == NULL) return NAN;
  if (fscanf(f, "%lf", &value) != 1) value = NAN;
  pclose(f);
  return value;
}

static double peer(const char *what, int threads) {
  char command[512];
  snprintf(command, sizeof command, "%s_peers %s %d 2>/dev/null", self, what,
           threads);
  return ask(command);
}

static double python(const char *what) {
  const char *name = getenv("PYTHON");
  char command[900];
  snprintf(command, sizeof command,
           "%s - 2>/dev/null <<'EOF'\n"
           "from multiprocessing import Pool\n"
           "from time import perf_counter as now\n"
           "def add_one(n): return n + 1\n"
           "if __name__ == '__main__':\n"
           "  with Pool(2) as p:\n"
           "    p.map(add_one, range(10))\n"
           "    if '%s' == 'trip':\n"
           "      t = []\n"
           "      for i in range(500):\n"
           "        a = now(); p.apply(add_one, (i,)); t.append(now() - a)\n"
           "      print(sorted(t)[250] * 1e6)\n"
           "    else:\n"
           "      a = now(); p.map(add_one, range(200000), %s)\n"
           "      print(200000 / (now() - a))\n"
           "EOF\n",
           name ? name : "python3", what, strcmp(what, "each") ? "None" : "1");
  return ask(command);
}

/* --- rows ---------------------------------------------------------------- */

static double best(double (*measure)(void), bool highest) {
  double values[64];
  for (int i = 0; i < runs; i++) values[i] = measure();
  qsort(values, (size_t)runs, sizeof *values, bench_compare);
  return values[highest ? runs - 1 : 0];
}

static bool wanted(const char *name) { return strstr(name, filter) != NULL; }

static void row(const char *name, int kind, size_t workers,
                double (*measure)(void), const char *unit, bool highest,
                const char *what, const char *const *peers) {
  double value;
  char title[80];
  snprintf(title, sizeof title, "%s: conc.h", name);
  if (!wanted(name)) return;
  open_pool(kind, workers);
  value = best(measure, highest);
  close_pool();
  bench_row(title, value, unit);
  bench_end();
  for (; *peers != NULL; peers++) {
    char command[60];
    double other;
    if (strcmp(*peers, "Python") == 0) {
      other = python(what);
    } else {
      snprintf(command, sizeof command, "%s-%s", *peers, what);
      other = peer(command, (int)workers);
    }
    snprintf(title, sizeof title, "%s: %s", name, *peers);
    bench_row(title, other, unit);
    if (!isnan(other)) printf("  conc.h is %.2fx of it", value / other);
    bench_end();
  }
}

int main(int argc, char **argv) {
  static const char *const all[] = {"tbb", "uv", NULL};
  static const char *const tasks[] = {"tbb", "gomp", NULL};
  static const char *const python_only[] = {"Python", NULL};
  static const char *const nobody[] = {NULL};
  self = argv[0];
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--quick") == 0) runs = 7;
    else filter = argv[i];
  row("empty job from outside, 2 threads", CONC_THREAD, 2, empty, "ns", false,
      "empty", all);
  row("fork/join (fib), 1 thread", CONC_THREAD, 1, fork_join, "ns", false,
      "fib", tasks);
  row("fork/join (fib), 2 threads", CONC_THREAD, 2, fork_join, "ns", false,
      "fib", tasks);
  row("parallel for, chunks of one, 2 threads", CONC_THREAD, 2, parallel_for,
      "ns", false, "for", tasks);
  row("trip to a process and back, p50", CONC_PROCESS, 1, trip, "us", false,
      "trip", python_only);
  trip_pause = 0.002;
  row("trip when both sleep, p50", CONC_PROCESS, 1, trip, "us", false, "trip",
      nobody);
  row("map over 2 processes", CONC_PROCESS, 2, map, "items/s", true, "map",
      python_only);
  row("each item a job, 2 processes", CONC_PROCESS, 2, each, "items/s", true,
      "each", python_only);
  return 0;
}
