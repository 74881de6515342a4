/* Values of a length that is known only at run time: made in one step, and
   walked through without recursion, however deep they are.
     cc values.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

/* Each part on a line of its own, by its depth. */
static void list(const conc_value *v) {
  conc_value_walk w;
  char text[100];
  int step;
  conc_value_walk_begin(&w, v);
  while ((step = conc_value_walk_next(&w)) != CONC_WALK_END) {
    if (step != CONC_WALK_LEAF) continue; /* a bracket */
    conc_value_text(w.value, text, sizeof text);
    printf("%*s%s\n", (int)(2 * w.depth), "", text);
  }
}

int main(void) {
  const double at[] = {0.5, 1.5, 2.5};
  const char *const tags[] = {"red", "round"};
  conc_value *ball = NULL, *balls = NULL;
  const conc_value *twice[2];
  char text[200];
  int rc = conc_build(&ball, "{s:i,s:[d*],s:(s*)}", "id", 7, "at",
                      sizeof at / sizeof *at, at, "tags",
                      sizeof tags / sizeof *tags, tags);
  twice[0] = twice[1] = ball;
  if (rc == 0) rc = conc_build(&balls, "[O*]", (size_t)2, twice);
  if (rc == 0) {
    conc_value_text(ball, text, sizeof text);
    printf("%s\n", text);
    list(balls);
  }
  conc_value_free(balls);
  conc_value_free(ball);
  return -rc;
}
