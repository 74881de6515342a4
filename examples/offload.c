/* asyncio.to_thread of Python: a call that blocks runs in a thread, and the
   other coroutines of the loop go on. Called directly, this fgets() would stop
   the loop, and with it the coroutine that writes what fgets() waits for.
     cc offload.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <unistd.h>

static char line[80];

static void *read_line(void *file) { /* it knows nothing of coroutines */
  return fgets(line, sizeof line, (FILE *)file);
}

static void *reader(void *file) {
  if (conc_offload(read_line, file) != NULL) printf("Read: %s", line);
  return NULL;
}

static void *async_main(void *fds) {
  FILE *in = fdopen(((int *)fds)[0], "r"), *out = fdopen(((int *)fds)[1], "w");
  conc_task t = {.target = reader, .arg = in};
  conc_coro_start(&t);
  for (int i = 3; i > 0 && conc_sleep(0.1) == 0; i--) printf("%d...\n", i);
  fputs("hello\n", out);
  fclose(out); /* now the line is sent */
  conc_join(&t, CONC_FOREVER);
  fclose(in);
  return NULL;
}

int main(void) {
  int fds[2];
  conc_task run = {.target = async_main, .arg = fds};
  return pipe(fds) != 0 || conc_run(&run) != 0;
}
