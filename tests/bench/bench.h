/* What the benchmarks share: a clock, medians, pinning, children, rows.
 *
 * Every benchmark prints its rows in one way, a line for each contender, with
 * tabs between these:
 *
 *   row SECTION NAME UNIT higher|lower conc|peer|limit CONTENDER SAMPLES
 *
 * where the samples, one of each round, have spaces between them, and there is
 * none if the contender is not here. rows.awk reads that: it works out
 * medians, quartiles and ratios for table.awk, which prints them, and for
 * page.awk, which draws them. Whatever else a benchmark prints is a note. */
#ifndef BENCH_H
#define BENCH_H

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static inline double bench_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline int bench_compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Sorts the values; the one that the share p of them does not exceed. NAN,
   which stands for "not measured", if there are none or one is NAN. */
static inline double bench_percentile(double *values, size_t n, double p) {
  for (size_t i = 0; i < n; i++)
    if (isnan(values[i])) return NAN;
  if (n == 0) return NAN;
  qsort(values, n, sizeof *values, bench_compare);
  return values[(size_t)(p * (double)(n - 1) + 0.5)];
}

static inline double bench_median(double *values, size_t n) {
  return bench_percentile(values, n, 0.5);
}

/* --- where to run --- */

/* The CPUs that the program was started on; asked before anything pins. */
static inline const cpu_set_t *bench_cpus(void) {
  static cpu_set_t all;
  if (CPU_COUNT(&all) == 0) sched_getaffinity(0, sizeof all, &all);
  return &all;
}

/* Pins the caller to the i-th of these CPUs, modulo their number; i < 0 lets
   it run on all. What it starts afterwards inherits that. */
static inline void bench_pin(int i) {
  cpu_set_t set = *bench_cpus();
  int seen = 0;
  if (i >= 0) i %= CPU_COUNT(&set);
  for (size_t cpu = 0; cpu < CPU_SETSIZE && i >= 0; cpu++)
    if (CPU_ISSET(cpu, &set) && seen++ != i) CPU_CLR(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

/* fork() with a child that never outlives us. */
static inline pid_t bench_fork(void) {
  pid_t parent = getpid(), pid;
  fflush(NULL);
  pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
  }
  return pid;
}

/* Calls measure(arg) in a child, so that it starts from clean memory and its
   threads end with it; what it returns, or NAN if the child died. */
static inline double bench_in_child(double (*measure)(void *), void *arg) {
  double value = NAN;
  int ends[2];
  pid_t pid;
  if (pipe(ends) != 0) return NAN;
  pid = bench_fork();
  if (pid == 0) {
    value = measure(arg);
    _exit(write(ends[1], &value, sizeof value) != (ssize_t)sizeof value);
  }
  close(ends[1]);
  if (pid > 0 && read(ends[0], &value, sizeof value) < (ssize_t)sizeof value)
    value = NAN;
  close(ends[0]);
  if (pid > 0) waitpid(pid, NULL, 0);
  return value;
}

/* --- what the arguments ask for --- */

enum { BENCH_RUNS = 9, BENCH_QUICK = 3, BENCH_MOST = 8 };
static const char *bench_section = "";
static const char *bench_filter = ""; /* only rows with this in their names */
static bool bench_quick;
static int bench_rounds = BENCH_RUNS; /* of a contest */

/* Reads [--quick] [FILTER], and names the section that all rows belong to. */
static inline void bench_begin(int argc, char **argv, const char *section) {
  bench_section = section;
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--quick") == 0) bench_quick = true;
    else bench_filter = argv[i];
  if (bench_quick) bench_rounds = BENCH_QUICK;
  bench_cpus();
}

static inline bool bench_wanted(const char *row) {
  return strstr(row, bench_filter) != NULL;
}

/* Whether rows that take long are left out: in a quick run, unless they are
   asked for by name. */
static inline bool bench_hurries(void) {
  return bench_quick && *bench_filter == 0;
}

/* --- output --- */

/* Prints what one contender of a row has shown, in each of several rounds, so
   that the reader sees how much they differ. A round that is NAN is left out.
   A contender that is not installed has none.

   A contender whose name begins with "conc" is ours. The first of a row is the
   one that is compared with the peers. A name that begins with "limit: " is of
   no peer: it does less, so nothing can be had for less. All others are peers.
   What is counted in a second is better when it is more. All else is time or
   memory, of which less is better. */
static inline void bench_print(const char *row, const char *unit,
                               const char *who, const double *samples,
                               size_t n) {
  size_t size = strlen(unit);
  bool more = size >= 2 && strcmp(unit + size - 2, "/s") == 0;
  bool limit = strncmp(who, "limit: ", 7) == 0;
  const char *role = strncmp(who, "conc", 4) == 0 ? "conc"
                     : limit                      ? "limit"
                                                  : "peer";
  printf("row\t%s\t%s\t%s\t%s\t%s\t%s\t", bench_section, row, unit,
         more ? "higher" : "lower", role, limit ? who + 7 : who);
  for (size_t i = 0; i < n; i++)
    if (!isnan(samples[i])) printf("%.6g ", samples[i]);
  putchar('\n');
  fflush(stdout);
}

/* --- contenders --- */

typedef struct bench_contender {
  const char *name;
  double (*measure)(void); /* NULL: not installed */
} bench_contender;

/* Measures the contenders in rounds, so that a drift of the machine meets all
   of them. */
static inline void bench_contest(const char *row, const char *unit,
                                 const bench_contender *c, int n) {
  double runs[BENCH_MOST][BENCH_RUNS];
  if (!bench_wanted(row)) return;
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < n; i++)
      runs[i][r] = c[i].measure == NULL ? NAN : c[i].measure();
  for (int i = 0; i < n; i++)
    bench_print(row, unit, c[i].name, runs[i], (size_t)bench_rounds);
}

/* ROW("lock, alone", "ns", {"pthread", pthread_alone}, ...); */
#define ROW(row, unit, ...)                                           \
  do {                                                                \
    const bench_contender all[] = {__VA_ARGS__};                      \
    bench_contest(row, unit, all, (int)(sizeof all / sizeof *all));   \
  } while (0)

#endif
