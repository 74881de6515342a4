/* wait_with_progress of the Python tutorials (in Chinese) that these
   examples follow: asyncio.as_completed with tqdm's bar.
     async def wait_with_progress(coros):
         for f in tqdm.tqdm(asyncio.as_completed(coros), total=len(coros)):
             await f
     cc progress.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>

enum { PAGES = 40 };
static double second = 1; /* TIME_SCALE=0.01 makes it shorter */

static void *download(void *arg) {
  conc_sleep((double)((intptr_t)arg * 7 % PAGES) * 0.1 * second);
  return arg;
}

static int wait_with_progress(conc_task **tasks, size_t n) {
  conc_progress bar = {.total = n, .name = "pages"};
  conc_completed completed;
  conc_task *t;
  int rc = conc_as_completed(&completed, tasks, n, CONC_FOREVER);
  conc_progress_update(&bar, 0); /* shows it */
  while (rc == 0 && (rc = conc_completed_next(&completed, &t)) == 0)
    conc_progress_update(&bar, 1);
  conc_progress_close(&bar);
  return rc == -EPIPE ? 0 : rc; /* that was the last */
}

static void *async_main(void *arg) {
  static conc_task pages[PAGES];
  conc_task *tasks[PAGES];
  for (intptr_t i = 0; i < PAGES; i++) {
    pages[i].target = download;
    pages[i].arg = (void *)i;
    conc_coro_start(&pages[i]);
    tasks[i] = &pages[i];
  }
  conc_set_status(wait_with_progress(tasks, PAGES));
  printf("%d pages\n", PAGES);
  return arg;
}

int main(void) {
  conc_task run = {.target = async_main};
  if (getenv("TIME_SCALE")) second = atof(getenv("TIME_SCALE"));
  return conc_run(&run);
}
