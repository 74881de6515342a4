/* Programs as they run: the lines of two at once, each in a coroutine, as they
   come; and the end of one that does not want to end, with grace.
     cc lines.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static void *follow(void *arg) {
  int me = *(int *)arg;
  const char *const argv[] = {"sh", "-c", "echo begins; echo ends", NULL};
  conc_popen p = {.argv = argv, .std_out = CONC_PIPE};
  char line[100];
  if (conc_popen_start(&p) != 0) return NULL;
  while (conc_popen_read_line(&p, line, sizeof line, 10.0) > 0)
    printf("Program %d %s", me, line);
  printf("Program %d returned %d\n", me, conc_popen_wait(&p, 10.0));
  conc_popen_close(&p);
  return arg;
}

/* It ignores SIGTERM: so it is killed a moment later. What its shell started
   is of its group, and ends with it. */
static void stop(void) {
  const char *const argv[] = {
      "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done", NULL};
  conc_popen p = {.argv = argv, .std_out = CONC_PIPE, .new_group = true};
  char line[100];
  if (conc_popen_start(&p) != 0) return;
  if (conc_popen_read_line(&p, line, sizeof line, 10.0) > 0)
    printf("It is %s", line);
  if (conc_popen_stop(&p, 0.1) == -ECHILD)
    printf("It was killed: %s\n", conc_exitcode(&p.task) == -9 ? "yes" : "no");
  conc_popen_close(&p);
}

static void *run(void *arg) {
  int number[] = {1, 2};
  conc_task t[2] = {{.target = follow, .arg = &number[0]},
                    {.target = follow, .arg = &number[1]}};
  conc_task *both[] = {&t[0], &t[1]};
  conc_coro_start(&t[0]);
  conc_coro_start(&t[1]);
  conc_gather(both, 2, CONC_FOREVER);
  stop();
  return arg;
}

int main(void) {
  conc_task t = {.target = run};
  return conc_run(&t);
}
