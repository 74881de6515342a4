/* os.fork() of the documents. C's own fork() works with conc.h, too; but so
   the child is a task, with a name, and can be joined.
     cc fork.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <unistd.h>

static void *child(void *arg) {
  printf("I am child process (%d) and my parent is %d.\n", (int)getpid(),
         (int)getppid());
  return arg;
}

int main(void) {
  conc_task t = {.target = child};
  printf("Process (%d) start...\n", (int)getpid());
  if (conc_process_start(&t) != 0) return 1;
  printf("I (%d) just created a child process (%d).\n", (int)getpid(),
         (int)conc_pid(&t));
  return conc_join(&t, CONC_FOREVER) != 0;
}
