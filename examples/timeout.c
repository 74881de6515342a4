/* asyncio.timeout and signal.sigwait of Python: a thread works until its time
   is out; main waits for Ctrl-C or SIGTERM, and ends in good order.
     cc timeout.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *work(void *arg) {
  conc_scope limit;
  conc_timeout(&limit, 10 * second); /* for all its waits together */
  if (conc_sleep(second) == 0) {
    printf("The first step is done.\n");
    conc_sleep(CONC_FOREVER); /* the second one never ends */
  }
  if (conc_scope_end(&limit) == -ETIMEDOUT) printf("The time is out.\n");
  kill(getpid(), SIGTERM); /* if nobody has pressed Ctrl-C */
  return arg;
}

int main(void) {
  const int signals[] = {SIGINT, SIGTERM};
  conc_task t = {.target = work};
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  conc_block_signals(signals, 2); /* first, as threads inherit it */
  conc_thread_start(&t);
  int got = conc_wait_signal(signals, 2, CONC_FOREVER);
  conc_cancel(&t); /* after Ctrl-C it still waits */
  conc_join(&t, CONC_FOREVER);
  printf("Ended by %s.\n", got == SIGINT ? "Ctrl-C" : "SIGTERM");
  return got < 0;
}
