/* What hostile values cost: time against size, for each codec.
 *
 *   cost [--quick] [FILTER]         only inputs whose name contains FILTER
 *
 * Each row is an input of cost.h and what is done with it, at a size n (64 KiB)
 * and at 8n: nanoseconds of the thread's CPU for each byte at 8n (of what is
 * read, or written), and by which factor the time has grown for a doubling of
 * the bytes: (t(8n) / t(n)) ^ (1/3). 2 is linear, 4 is quadratic; what sorts
 * has 2.15 by its n * log n alone. More than 2.2 is marked, and makes the
 * program fail: a peer could keep a server busy with few bytes.
 *
 * A time is the least of several runs, in which n and 8n take turns: so what
 * disturbs one disturbs the other. Before each run other memory is read, so
 * that n has no cache which 8n has not. A row that looks dear is measured
 * again, five times at most, before it is believed. A byte that costs less
 * than a nanosecond is copied or compared, and what shows there is how fast
 * memory is: there only more than 3 is dear.
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include <malloc.h>

#include "bench.h"
#include "cost.h"

/* CPU time: what else runs here does not count. */
static double cost_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

enum { TIMES = 8, RUNS = 9, TRIES = 5 }; /* TIMES is three doublings */

/* One of the two sizes of a case. */
typedef struct cost_size {
  cost_input in;
  conc_value *a, *b;
  size_t written; /* bytes of its text */
  size_t bytes;   /* of one step */
  double best, runs[RUNS];
} cost_size;

static void size_begin(cost_size *s, const cost_case *c, size_t n) {
  char few[8];
  memset(s, 0, sizeof *s);
  s->in.room = n + 20000;
  s->in.data = malloc(s->in.room);
  c->write(&s->in, n);
  if (c->json) {
    conc_json_loads(&s->a, s->in.data, s->in.size, NULL);
    conc_json_loads(&s->b, s->in.data, s->in.size, NULL);
  } else {
    conc_pickle_loads(&s->a, s->in.data, s->in.size);
    conc_pickle_loads(&s->b, s->in.data, s->in.size);
  }
  if (s->a == NULL)
    printf("  %s: refused at %zu bytes\n", c->name, s->in.size);
  s->written = (size_t)conc_value_text(s->a, few, sizeof few);
}

static void size_end(cost_size *s) {
  conc_value_free(s->a);
  conc_value_free(s->b);
  free(s->in.data);
}

/* Puts other bytes into the caches nearest to the CPU. */
static void size_forget(void) {
  static volatile unsigned char other[4 << 20];
  size_t i;
  for (i = 0; i < sizeof other; i += 64) other[i]++;
}

/* One run; NAN if the step is refused. */
static double size_run(cost_size *s, const cost_case *c, int step) {
  double start;
  size_forget();
  start = cost_now();
  if (cost_step(c, step, &s->in, s->a, s->b, s->written, &s->bytes) != 0)
    return NAN;
  return cost_now() - start;
}

/* The best of several runs of each size, which take turns. */
static void measure(cost_size *s, const cost_case *c, int step) {
  int run, k;
  s[0].best = s[1].best = NAN;
  for (run = 0; run < RUNS * 2; run++) {
    double took;
    k = run % 2;
    took = size_run(&s[k], c, step);
    s[k].runs[run / 2] = took;
    if (!(took >= s[k].best)) s[k].best = took;
  }
}

/* Measures a step, and prints its row. Whether it is too dear, or is refused
   by another codec than JSON, which has no sets, for one. */
static int step_row(cost_size *s, const cost_case *c, int step) {
  char name[100];
  double growth = 0, most = 2.2;
  int i;
  for (i = 0; i < TRIES && !(i > 0 && growth <= most); i++) {
    double now;
    measure(s, c, step);
    if (isnan(s[1].best)) {
      if (step == COST_JSON) return 0;
      printf("  %s: %s: refused\n", c->name, cost_steps[step]);
      return 1;
    }
    /* what does not grow, like a set of one number, is not of this kind */
    if (s[1].bytes < s[0].bytes * 4) return 0;
    /* against the bytes, should they not be eight times as many */
    now = pow(s[1].best / s[0].best,
              1 / log2((double)s[1].bytes / (double)s[0].bytes));
    if (i == 0 || now < growth) growth = now;
    most = s[1].best / (double)s[1].bytes * 1e9 < 1 ? 3 : 2.2;
  }
  snprintf(name, sizeof name, "%s: %s", c->name, cost_steps[step]);
  /* The samples of a row are those of 8n. */
  for (i = 0; i < RUNS; i++) s[1].runs[i] *= 1e9 / (double)s[1].bytes;
  bench_print(name, "ns/byte", "conc", s[1].runs, RUNS);
  snprintf(name, sizeof name, "%s: %s, growth", c->name, cost_steps[step]);
  bench_print(name, "times", "conc", &growth, 1);
  if (growth > most)
    printf("  %s: x %.2f for twice the bytes: MORE THAN LINEAR\n", name, growth);
  return growth > most;
}

int main(int argc, char **argv) {
  size_t n = 1 << 16;
  int i, step, dear = 0;
  bench_begin(argc, argv, "What hostile values cost");
  if (bench_quick) n = 1 << 14;
  /* The system's pages are not what is measured. */
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  printf("what hostile values cost: CPU ns/byte at %zu KiB, and growth for\n"
         "each doubling: (t(8n) / t(n)) ^ (1/3), n = %zu KiB, the best of %d\n",
         n * TIMES >> 10, n >> 10, RUNS);
  for (i = 0; i < COST_CASES; i++) {
    const cost_case *c = &cost_cases[i];
    cost_size s[2];
    if (!bench_wanted(c->name)) continue;
    size_begin(&s[0], c, n);
    size_begin(&s[1], c, n * TIMES);
    for (step = 0; step < COST_STEPS && s[1].a != NULL; step++)
      dear += step_row(s, c, step);
    dear += s[0].a == NULL || s[1].a == NULL;
    size_end(&s[0]);
    size_end(&s[1]);
  }
  return dear > 0;
}
