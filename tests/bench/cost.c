/* What hostile values cost: time against size, for each codec.
 *
 *   cost [--quick] [FILTER]         only inputs whose name contains FILTER
 *
 * Each row is an input of cost.h and what is done with it, at four sizes, each
 * twice the one before: nanoseconds for each byte at the largest one (of what
 * is read, or written), and by which factor the time has grown for a doubling
 * of the bytes, on the average of the three. More than 2.2 is marked, and
 * makes the program fail: a peer could keep a server busy with few bytes.
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

enum { SIZES = 4, RUNS = 7 };

/* The best of several runs; each does the step so often that it takes 2 ms. */
static double measure(const cost_case *c, int step, const cost_input *in,
                      const conc_value *a, const conc_value *b, size_t written,
                      size_t *grown) {
  double best = 1e9;
  int run, i, times = 1;
  for (run = 0; run < RUNS; run++) {
    double start = cost_now(), took;
    for (i = 0; i < times; i++)
      if (cost_step(c, step, in, a, b, written, grown) != 0) return NAN;
    took = cost_now() - start;
    if (took < 0.002 && times < 100000) {
      times *= took < 0.0002 ? 10 : 2;
      run = -1;
      continue;
    }
    if (took / times < best) best = took / times;
  }
  return best;
}

int main(int argc, char **argv) {
  const char *filter = "";
  size_t least = 1 << 13;
  int i, step, k, dear = 0;
  for (i = 1; i < argc; i++)
    if (strcmp(argv[i], "--quick") == 0) least = 1 << 12;
    else filter = argv[i];
  /* The system's pages are not what is measured. */
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  puts("what hostile values cost: ns/byte, and growth for each doubling");
  for (i = 0; i < COST_CASES; i++) {
    const cost_case *c = &cost_cases[i];
    double took[COST_STEPS][SIZES];
    size_t bytes[COST_STEPS][SIZES];
    if (strstr(c->name, filter) == NULL) continue;
    for (k = 0; k < SIZES; k++) {
      size_t n = least << k;
      cost_input in = {malloc(n + 20000), 0, n + 20000};
      conc_value *a = NULL, *b = NULL;
      size_t written;
      char few[8];
      c->write(&in, n);
      if (c->json) {
        conc_json_loads(&a, in.data, in.size, NULL);
        conc_json_loads(&b, in.data, in.size, NULL);
      } else {
        conc_pickle_loads(&a, in.data, in.size);
        conc_pickle_loads(&b, in.data, in.size);
      }
      written = (size_t)conc_value_text(a, few, sizeof few);
      if (a == NULL) printf("  %s: refused at %zu bytes\n", c->name, n);
      for (step = 0; step < COST_STEPS; step++)
        took[step][k] = a == NULL ? NAN
                                  : measure(c, step, &in, a, b, written,
                                            &bytes[step][k]);
      conc_value_free(a);
      conc_value_free(b);
      free(in.data);
    }
    for (step = 0; step < COST_STEPS; step++) {
      char name[100];
      /* against the bytes, should they not have doubled */
      double growth = pow(took[step][3] / took[step][0],
                          1 / log2((double)bytes[step][3] /
                                   (double)bytes[step][0]));
      snprintf(name, sizeof name, "%s: %s", c->name, cost_steps[step]);
      if (isnan(growth)) continue;
      /* what does not grow, like a set of one number, is not of this kind */
      if (bytes[step][3] < bytes[step][0] * 4) continue;
      if (took[step][3] < took[step][0] * 2) continue;
      bench_row(name, took[step][3] / (double)bytes[step][3] * 1e9, "ns");
      printf("  x %.2f%s", growth, growth > 2.2 ? "  MORE THAN LINEAR" : "");
      dear += growth > 2.2;
      bench_end();
    }
  }
  return dear > 0;
}
