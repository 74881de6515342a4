/* multiprocessing.Process of the Python tutorials (in Chinese) that these
   examples follow: starts a process and waits for its end.
     cc process.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <unistd.h>

/* What the child process runs. */
static void *run_proc(void *name) {
  printf("Run child process %s (%d)...\n", (const char *)name, (int)getpid());
  return NULL;
}

int main(void) {
  conc_task p = {.target = run_proc, .arg = (void *)"test"};
  printf("Parent process %d.\n", (int)getpid());
  printf("Child process will start.\n");
  conc_process_start(&p);
  if (conc_join(&p, CONC_FOREVER) != 0) return 1;
  printf("Child process end.\n");
  return conc_exitcode(&p);
}
