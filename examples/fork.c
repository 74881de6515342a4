/* os.fork() of the Python tutorials (in Chinese) that these examples follow.
   C's own fork() works with conc.h, too; but a child started like this is a
   task: it has a name, and can be joined.
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
  conc_process_start(&t);
  printf("I (%d) just created a child process (%d).\n", (int)getpid(),
         (int)conc_pid(&t));
  return conc_join(&t, CONC_FOREVER) != 0;
}
