/* What the benchmarks share: a clock, medians, pinning, children, rows.
 *
 * A row is one line: name, value, unit, and how it compares with peers that
 * the same run measured: "2.10x of Redis" is the value divided by Redis's. */
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

/* --- output --- */

static inline void bench_row(const char *name, double value,
                             const char *unit) {
  const char *format =
      value < 100 ? "  %-50s %10.3g %-8s" : "  %-50s %10.0f %-8s";
  if (isnan(value)) printf("  %-50s %10s %-8s", name, "not here", "");
  else printf(format, name, value, unit);
}

/* Appends a comparison to the row. */
static inline void bench_of(double value, double peer, const char *name) {
  if (!isnan(value) && !isnan(peer) && peer != 0)
    printf("  %6.2fx of %s", value / peer, name);
}

static inline void bench_end(void) {
  putchar('\n');
  fflush(stdout);
}

/* --- contenders --- */

enum { BENCH_RUNS = 9, BENCH_MOST = 6 };
static const char *bench_filter = ""; /* only rows with this in their names */

typedef struct bench_contender {
  const char *name;
  double (*measure)(void); /* NULL: not installed */
} bench_contender;

/* Measures the contenders in rounds, so that a drift of the machine meets all
   of them; every median is compared with those before it. */
static inline void bench_contest(const char *row, const char *unit,
                                 const bench_contender *c, int n) {
  double runs[BENCH_MOST][BENCH_RUNS], median[BENCH_MOST];
  char name[80];
  if (strstr(row, bench_filter) == NULL) return;
  for (int r = 0; r < BENCH_RUNS; r++)
    for (int i = 0; i < n; i++)
      runs[i][r] = c[i].measure == NULL ? NAN : c[i].measure();
  for (int i = 0; i < n; i++) {
    median[i] = bench_median(runs[i], BENCH_RUNS);
    snprintf(name, sizeof name, "%s: %s", row, c[i].name);
    bench_row(name, median[i], unit);
    for (int k = 0; k < i; k++) bench_of(median[i], median[k], c[k].name);
    bench_end();
  }
}

/* ROW("lock, alone", "ns", {"pthread", pthread_alone}, ...); */
#define ROW(row, unit, ...)                                           \
  do {                                                                \
    const bench_contender all[] = {__VA_ARGS__};                      \
    bench_contest(row, unit, all, (int)(sizeof all / sizeof *all));   \
  } while (0)

#endif
