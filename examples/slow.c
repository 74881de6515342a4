/* What keeps the others waiting: in asyncio's debug mode a warning tells of a
   callback that takes over 0.1 s (loop.slow_callback_duration). Here a task
   computes for too long, which is told while it does; and two threads want a
   lock that a third one holds for long.
     cc slow.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <string.h>

static conc_lock prices = {.name = "prices"};
static conc_event noticed;

/* Called by a thread of the library. */
static void tell(const conc_slow_turn *turn, void *arg) {
  const char *name = (const char *)arg;
  if (turn->ended || turn->task == NULL || strcmp(turn->task, name) != 0)
    return; /* on a busy machine any turn may be slow */
  printf("%s keeps the loop of %s waiting\n", turn->task, turn->thread);
  fflush(stdout);
  conc_event_set(&noticed);
}

/* It should call conc_yield_now() every now and then. */
static void *crunch(void *arg) {
  while (!conc_event_is_set(&noticed)) continue;
  return arg;
}

static void *buy(void *arg) {
  CONC_WITH(&prices) conc_yield_now();
  return arg;
}

static void contend(void) {
  static char report[10000];
  conc_task buyers[2] = {{.target = buy}, {.target = buy}};
  char *line, *end;
  conc_contention_start();
  CONC_WITH(&prices) {
    conc_thread_start(&buyers[0]);
    conc_thread_start(&buyers[1]);
    conc_sleep(0.5);
  }
  for (int i = 0; i < 2; i++) conc_join(&buyers[i], CONC_FOREVER);
  conc_report(report, sizeof report);
  conc_contention_stop();
  line = strstr(report, "contention: lock"); /* how often, and how long */
  end = line != NULL ? strchr(line, ',') : NULL;
  if (end != NULL) printf("%.*s\n", (int)(end - line), line);
}

int main(void) {
  static char name[] = "crunch";
  conc_task t = {.target = crunch, .name = name};
  conc_slow_turns(0.1, tell, name);
  conc_run(&t);
  conc_slow_turns(0, NULL, NULL);
  contend();
  return 0;
}
