/* multiprocessing.Pipe of Python's documentation: a child process sends a
   value to its parent.
     cc pipe.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static int parent_end, child_end;

static void *f(void *arg) {
  conc_value *value;
  (void)arg;
  conc_close(parent_end); /* so that each end is open in one process */
  if (conc_build(&value, "[iNs]", 42, "hello") != 0) return (void *)1;
  conc_pipe_send_value(child_end, value, CONC_FOREVER);
  conc_value_free(value);
  conc_close(child_end);
  return NULL;
}

int main(void) {
  conc_task p = {.target = f};
  conc_value *value;
  char text[80];
  if (conc_pipe(&parent_end, &child_end) != 0) return 1;
  conc_process_start(&p);
  conc_close(child_end);
  while (conc_pipe_recv_value(parent_end, &value, CONC_FOREVER) == 0) {
    conc_value_text(value, text, sizeof text);
    printf("%s\n", text); /* prints "[42, None, 'hello']" */
    conc_value_free(value);
  }
  conc_close(parent_end);
  return conc_join(&p, CONC_FOREVER);
}
