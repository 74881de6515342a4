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
static int tries = 9; /* of each round, of which the best counts */
static const char *self;

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
  snprintf(command, sizeof command, "%s_peers %s %d %d 2>/dev/null", self, what,
           threads, tries);
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
           "      n = %d\n"
           "      a = now(); p.map(add_one, range(n), %s)\n"
           "      print(n / (now() - a))\n"
           "EOF\n",
           name ? name : "python3", what, bench_quick ? 5000 : 50000,
           strcmp(what, "each") ? "None" : "1");
  return ask(command);
}

/* --- rows ---------------------------------------------------------------- */

/* What a round of each contender measures. */
static struct {
  int kind;
  size_t workers;
  double (*measure)(void);
  bool more; /* is better */
  const char *what;
} now;

static double ours(void) {
  double best = NAN;
  open_pool(now.kind, now.workers);
  for (int i = 0; i < tries; i++) {
    double value = now.measure();
    if (isnan(best) || (now.more ? value > best : value < best)) best = value;
  }
  close_pool();
  return best;
}

static double peer_called(const char *library) {
  char what[60];
  snprintf(what, sizeof what, "%s-%s", library, now.what);
  return peer(what, (int)now.workers);
}
static double by_tbb(void) { return peer_called("tbb"); }
static double by_uv(void) { return peer_called("uv"); }
static double by_gomp(void) { return peer_called("gomp"); }
static double by_python(void) { return python(now.what); }

static void measure(int kind, size_t workers, double (*how)(void), bool more,
                    const char *what) {
  now.kind = kind;
  now.workers = workers;
  now.measure = how;
  now.more = more;
  now.what = what;
}

int main(int argc, char **argv) {
  self = argv[0];
  bench_begin(argc, argv, "Pools");
  if (bench_quick) tries = 3;
  measure(CONC_THREAD, 2, empty, false, "empty");
  ROW("empty job from outside, 2 threads", "ns", {"conc", ours},
      {"TBB", by_tbb}, {"libuv", by_uv});
  measure(CONC_THREAD, 1, fork_join, false, "fib");
  ROW("fork/join (fib), 1 thread", "ns", {"conc", ours}, {"TBB", by_tbb},
      {"libgomp", by_gomp});
  measure(CONC_THREAD, 2, fork_join, false, "fib");
  ROW("fork/join (fib), 2 threads", "ns", {"conc", ours}, {"TBB", by_tbb},
      {"libgomp", by_gomp});
  measure(CONC_THREAD, 2, parallel_for, false, "for");
  ROW("parallel for, chunks of one, 2 threads", "ns", {"conc", ours},
      {"TBB", by_tbb}, {"libgomp", by_gomp});
  tries = 1; /* each is many */
  measure(CONC_PROCESS, 1, trip, false, "trip");
  ROW("trip to a process and back, p50", "us", {"conc", ours},
      {"Python", by_python});
  trip_pause = 0.002;
  ROW("trip when both sleep, p50", "us", {"conc", ours});
  measure(CONC_PROCESS, 2, map, true, "map");
  ROW("map over 2 processes", "items/s", {"conc", ours},
      {"Python", by_python});
  measure(CONC_PROCESS, 2, each, true, "each");
  ROW("each item a job, 2 processes", "items/s", {"conc", ours},
      {"Python", by_python});
  return 0;
}
