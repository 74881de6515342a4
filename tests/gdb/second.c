/* A second file with the implementation in it, which has its own threads. */
#define CONC_IMPLEMENTATION
#include "conc.h"

int second_file(void);

static conc_event asleep;

static void *sleep_long(void *arg) {
  conc_event_set(&asleep);
  conc_sleep(1e6);
  return arg;
}

int second_file(void) {
  static conc_task other;
  other.target = sleep_long;
  other.name = "Other";
  if (conc_thread_start(&other) != 0) return 1;
  return conc_event_wait(&asleep, CONC_FOREVER);
}
