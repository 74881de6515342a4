/* What hostile values cost, roughly: tests/bench/cost.c measures it closely.
   Here sixteen times as many bytes may take a hundred times as long, in CPU time
   and in the best of several runs: what is quadratic takes 256 times as long.
   Of what is written, its own bytes count. */
#include "inside.h"
#include "bench/cost.h"

static double cpu_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Reads the input, and makes a value of it. */
static conc_value *value_of(const cost_case *c, cost_input *in, size_t n) {
  conc_value *v = NULL;
  in->size = 0;
  c->write(in, n);
  CHECK_EQ(c->json ? conc_json_loads(&v, in->data, in->size, NULL)
                   : conc_pickle_loads(&v, in->data, in->size), 0);
  return v;
}

/* The best time of a step. Only JSON may refuse a value, such as a set. */
static double best(const cost_case *c, int step, const cost_input *in,
                   const conc_value *a, const conc_value *b, size_t *grown) {
  double least = 1e9;
  char few[8];
  size_t written = (size_t)conc_value_text(a, few, sizeof few);
  int i;
  for (i = 0; i < 3; i++) {
    double start = cpu_now(), took;
    if (cost_step(c, step, in, a, b, written, grown) != 0) {
      CHECK(step == COST_JSON);
      *grown = 1;
      return 0;
    }
    took = cpu_now() - start;
    if (took < least) least = took;
  }
  return least;
}

/* How many times as much a byte costs in a large input as in a small one, for
   each step; 16 is quadratic. */
static void growth(const cost_case *c, cost_input *in, double out[COST_STEPS]) {
  double took[2][COST_STEPS];
  size_t bytes[2][COST_STEPS];
  int k, step;
  for (k = 0; k < 2; k++) {
    conc_value *a = value_of(c, in, k ? 32000 : 2000);
    conc_value *b = value_of(c, in, k ? 32000 : 2000);
    for (step = 0; step < COST_STEPS; step++)
      took[k][step] = best(c, step, in, a, b, &bytes[k][step]);
    conc_value_free(a);
    conc_value_free(b);
  }
  for (step = 0; step < COST_STEPS; step++) /* a clock's own steps: 20 us */
    out[step] = took[1][step] / (took[0][step] + 20e-6) *
                (double)bytes[0][step] / (double)bytes[1][step];
}

/* What a machine with other work makes slow is not slow three times. */
TEST(no_codec_is_far_from_linear) {
  enum { ROOM = 100000 };
  cost_input in = {(unsigned char *)malloc(ROOM), 0, ROOM};
  int i, step, tries;
  if (test_wrapped("valgrind")) SKIP("Valgrind's time says nothing");
  for (i = 0; i < COST_CASES; i++) {
    double least[COST_STEPS];
    for (tries = 0; tries < 3; tries++) {
      double now[COST_STEPS], most = 0;
      growth(&cost_cases[i], &in, now);
      for (step = 0; step < COST_STEPS; step++) {
        if (tries == 0 || now[step] < least[step]) least[step] = now[step];
        if (least[step] > most) most = least[step];
      }
      if (most <= 6) break;
    }
    for (step = 0; step < COST_STEPS; step++)
      if (least[step] > 6)
        TEST_FAIL("%s, %s: a byte costs %g times as much in 16 times as many",
                  cost_cases[i].name, cost_steps[step], least[step]);
  }
  free(in.data);
}

TEST_MAIN
