/* yield and yield from of the Python tutorials (in Chinese) that these
   examples follow: one generator gives away the list, the other one its items.
     cc yield_from.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

typedef const char *const *list; /* ends with NULL */

static void *each(void *titles) {
  for (list t = (list)titles; *t != NULL; t++)
    if (conc_yield((void *)(uintptr_t)*t, NULL) != 0) break; /* closed */
  return NULL;
}

static void *generator_1(void *titles) {
  conc_yield(titles, NULL);
  return NULL;
}

static void *generator_2(void *titles) {
  conc_gen items = {.target = each, .arg = titles};
  conc_yield_from(&items, NULL);
  return NULL;
}

int main(void) {
  const char *titles[] = {"Python", "Java", "C++", NULL};
  conc_gen g1 = {.target = generator_1, .arg = titles};
  conc_gen g2 = {.target = generator_2, .arg = titles};
  void *title = NULL;
  while (conc_gen_next(&g1, &title) == 0) {
    printf("生成器1: [");
    for (list t = (list)title; *t != NULL; t++)
      printf("'%s'%s", *t, t[1] != NULL ? ", " : "]\n");
  }
  while (conc_gen_next(&g2, &title) == 0)
    printf("生成器2: %s\n", (char *)title);
  return 0;
}
