/* generator_1 and generator_2 of the Python tutorials (in Chinese) that these
   examples follow: a generator that adds up what it is sent, and one that
   delegates to it.
     cc generator.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static void *number(intptr_t n) { return (void *)n; }

static void *generator_1(void *arg) {
  intptr_t total = 0;
  (void)arg;
  for (;;) {
    void *x;
    if (conc_yield(NULL, &x) != 0) return NULL; /* closed */
    if (x == NULL) {
      printf("加 None\n");
      break;
    }
    printf("加 %ld\n", (long)(intptr_t)x);
    total += (intptr_t)x;
  }
  return number(total);
}

static void *generator_2(void *arg) { /* the delegating one */
  (void)arg;
  for (;;) {
    conc_gen inner = {.target = generator_1};
    void *total;
    if (conc_yield_from(&inner, &total) != 0) return NULL;
    printf("加和总数是: %ld\n", (long)(intptr_t)total);
  }
}

static int send_all(conc_gen *g) {
  conc_gen_next(g, NULL); /* to its first conc_yield */
  conc_gen_send(g, number(2), NULL);
  conc_gen_send(g, number(3), NULL);
  return conc_gen_send(g, NULL, NULL);
}

int main(void) {
  conc_gen g1 = {.target = generator_1};
  conc_gen g2 = {.target = generator_2};

  if (send_all(&g1) == -EPIPE)
    printf("StopIteration: %ld\n", (long)(intptr_t)conc_gen_result(&g1));

  send_all(&g2); /* goes on with the next sum */
  return conc_gen_close(&g2);
}
