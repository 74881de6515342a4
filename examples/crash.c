/* What the Python tutorials (in Chinese) that these examples follow say of
   processes: one that crashes harms neither its parent nor the others. A
   worker dies by a wild pointer, the others go on, and the master replaces it.
   Not so with threads.
     cc crash.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static conc_event *crashed; /* in memory that all processes share */

static void *work(void *wild) {
  if (wild != NULL) *(volatile int *)wild = 1;
  conc_event_wait(crashed, CONC_FOREVER); /* what follows is done after it */
  printf("%s has done its work.\n", conc_name(NULL));
  return NULL;
}

static void *master(void *with_threads) {
  conc_task w[] = {{.target = work, .name = "Worker-1"},
                   {.target = work, .arg = (void *)16, .name = "Worker-2"},
                   {.target = work, .name = "Worker-3"}};
  conc_task *first[] = {&w[0], &w[1], &w[2]};
  for (int i = 0; i < 3; i++)
    (with_threads ? conc_thread_start : conc_process_start)(&w[i]);
  if (conc_wait(first, 3, CONC_FIRST, CONC_FOREVER) < 0) return (void *)2;
  printf("%s has crashed: %d.\n", first[0]->name, conc_exitcode(first[0]));
  first[0]->arg = NULL;
  first[0]->name = "Its replacement";
  conc_process_start(first[0]);
  conc_event_set(crashed);
  for (int i = 0; i < 3; i++)
    if (conc_join(&w[i], CONC_FOREVER) != 0) return (void *)2;
  return NULL;
}

int main(void) {
  conc_task process = {.target = master, .arg = (void *)"with threads"};
  crashed = (conc_event *)conc_shared_alloc(sizeof *crashed);
  if (crashed == NULL || conc_event_init_shared(crashed) != 0) return 1;
  if (master(NULL) != NULL) return 1;

  /* Threads share their memory, so nothing in it can be trusted any more: the
     signal ends them all, the master too. We see it from another process. */
  conc_event_clear(crashed);
  conc_process_start(&process);
  conc_join(&process, CONC_FOREVER); /* -ECHILD */
  printf("The process of the threads has crashed: %d.\n",
         conc_exitcode(&process));
  conc_shared_free(crashed);
  return 0;
}
