/* Pool.map and Pool.imap of Python's multiprocessing: one function for every
   item of an array. map returns when all are done; imap tells the items one by
   one, in their order, while later ones are still at work.
     cc pool_map.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static void *square(void *item) { /* in a worker process, on a copy */
  int *n = (int *)item;
  *n *= *n;
  return NULL;
}

int main(void) {
  int n[] = {1, 2, 3, 4, 5, 6, 7, 8};
  conc_pool p = {.workers = 4};
  conc_imap squares;
  void *item;

  if (conc_pool_start(&p) != 0) return 1;
  if (conc_pool_map(&p, square, n, sizeof *n, 8) != 0) return 1;
  printf("map: %d to %d\n", n[0], n[7]);

  if (conc_pool_imap(&squares, &p, square, n, sizeof *n, 8) != 0) return 1;
  while (conc_imap_next(&squares, &item, CONC_FOREVER) == 0)
    printf("imap: %d\n", *(int *)item);
  conc_imap_end(&squares);

  conc_pool_close(&p);
  return conc_pool_join(&p, CONC_FOREVER);
}
