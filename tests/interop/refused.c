/* refused HOST:PORT AUTHKEY: a client with a small limit that gets a value for
 * each byte of its input, and prints what came of it: 0, or negative errno. */
#define CONC_IMPLEMENTATION
#include "../../conc.h"
#include <stdio.h>

int main(int argc, char **argv) {
  conc_manager m = {.max_message = 100000};
  conc_queue *q;
  if (argc != 3) return 2;
  m.address = argv[1];
  m.authkey = argv[2];
  if (conc_manager_connect(&m, 10) != 0) return 3;
  q = conc_manager_get(&m, "get_task_queue");
  if (q == NULL) return 4;
  while (getchar() != EOF) {
    conc_value *v = NULL;
    printf("%d\n", conc_get_value(q, &v, 10));
    fflush(stdout);
    conc_value_free(v);
  }
  return conc_manager_shutdown(&m) == 0 ? 0 : 5;
}
