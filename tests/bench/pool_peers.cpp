// pool_peers WHAT THREADS TRIES: prints what one operation costs another
// library, the best of so many tries.
// Its own program, because they are of C++ and start threads of their own.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#ifndef NO_TBB
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <tbb/task_group.h>
#endif
#ifndef NO_UV
#include <uv.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

static const int jobs = 100000, fib_jobs = 28656;
static double now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
__attribute__((noinline)) static void nothing(int i) {
  __asm__ volatile("" : : "r"(i) : "memory");
}

#ifndef NO_TBB
static double tbb_empty() {
  tbb::task_group g;
  double start = now();
  for (int i = 0; i < jobs; i++) g.run([] { nothing(0); });
  g.wait();
  return (now() - start) * 1e9 / jobs;
}
static long tbb_fib_of(int n) {
  if (n < 2) return n;
  long a, b;
  tbb::task_group g;
  g.run([&a, n] { a = tbb_fib_of(n - 1); });
  b = tbb_fib_of(n - 2);
  g.wait();
  return a + b;
}
static double tbb_fib() {
  double start = now();
  if (tbb_fib_of(22) != 17711) exit(1);
  return (now() - start) * 1e9 / fib_jobs;
}
static double tbb_for() {
  double start = now();
  tbb::parallel_for(
      tbb::blocked_range<int>(0, jobs, 1),
      [](const tbb::blocked_range<int> &r) {
        for (int i = r.begin(); i < r.end(); i++) nothing(i);
      },
      tbb::simple_partitioner());
  return (now() - start) * 1e9 / jobs;
}
#endif

#ifndef NO_UV
static double uv_empty() {
  static std::vector<uv_work_t> work(jobs);
  uv_loop_t *loop = uv_default_loop();
  double start = now();
  for (int i = 0; i < jobs; i++)
    uv_queue_work(loop, &work[(size_t)i], [](uv_work_t *) { nothing(0); },
                  [](uv_work_t *, int) {});
  uv_run(loop, UV_RUN_DEFAULT);
  return (now() - start) * 1e9 / jobs;
}
#endif

#ifdef _OPENMP
static long gomp_fib_of(int n) {
  if (n < 2) return n;
  long a, b;
#pragma omp task shared(a)
  a = gomp_fib_of(n - 1);
  b = gomp_fib_of(n - 2);
#pragma omp taskwait
  return a + b;
}
static double gomp_fib() {
  long sum = 0;
  double start = now();
#pragma omp parallel
#pragma omp single
  sum = gomp_fib_of(22);
  if (sum != 17711) exit(1);
  return (now() - start) * 1e9 / fib_jobs;
}
static double gomp_for() {
  double start = now();
#pragma omp parallel for schedule(dynamic, 1)
  for (int i = 0; i < jobs; i++) nothing(i);
  return (now() - start) * 1e9 / jobs;
}
#endif

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  int threads = atoi(argv[2]);
  double best = 1e9;
  setenv("UV_THREADPOOL_SIZE", argv[2], 1);
#ifndef NO_TBB
  tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                            (size_t)threads);
#endif
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
  for (int i = 0; i < atoi(argv[3]); i++) {
    double (*measure)() = nullptr;
#ifndef NO_TBB
    if (!strcmp(argv[1], "tbb-empty")) measure = tbb_empty;
    if (!strcmp(argv[1], "tbb-fib")) measure = tbb_fib;
    if (!strcmp(argv[1], "tbb-for")) measure = tbb_for;
#endif
#ifndef NO_UV
    if (!strcmp(argv[1], "uv-empty")) measure = uv_empty;
#endif
#ifdef _OPENMP
    if (!strcmp(argv[1], "gomp-fib")) measure = gomp_fib;
    if (!strcmp(argv[1], "gomp-for")) measure = gomp_for;
#endif
    if (!measure) return 1;
    double value = measure();
    if (value < best) best = value;
  }
  printf("%g\n", best);
  return 0;
}
