/* An echo server that uses every CPU: a process for each, with a loop of its
   own, and a coroutine for each connection.
     cc echo.c -pthread && ./a.out :7007
   Without an address it is its own client, and ends. */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>

#define CONNECTIONS 1000 /* of each process; more have to wait their turn */
#define PATIENCE 60.0    /* seconds, with a client that says nothing */

static int listener; /* the same in all processes, for it is inherited */

static void echo(int fd) {
  char buf[2048];
  ssize_t n;
  do n = conc_read(fd, buf, sizeof buf, PATIENCE);
  while (n > 0 && conc_write(fd, buf, (size_t)n, PATIENCE) == n);
}

/* Of the coroutines of a loop one accepts, and has the next one do so while it
   serves its client. */
static void *serve(void *arg) {
  static conc_lock turn;
  for (;;) {
    int fd = -1;
    CONC_WITH(&turn) fd = conc_accept(listener, CONC_FOREVER);
    else return arg;
    if (fd < 0) {
      if (conc_sleep(0.1) != 0) return arg; /* out of descriptors, say */
    } else {
      echo(fd);
      conc_close(fd);
    }
  }
}

static void *start_all(void *arg) {
  static conc_task tasks[CONNECTIONS];
  conc_group group = {0};
  for (int i = 0; i < CONNECTIONS; i++) {
    tasks[i].target = serve;
    conc_group_start(&group, &tasks[i], conc_coro_start);
  }
  conc_group_leave(&group, CONC_FOREVER);
  return arg;
}

static void *run_loop(void *arg) {
  conc_task main = {.target = start_all};
  return conc_run(&main) == 0 ? arg : (void *)1; /* the exit code */
}

/* --- a client, in a thread: the calls are the same --- */

static int talk(void) {
  char address[32], line[64], reply[64];
  conc_address(listener, address, sizeof address);
  for (int client = 1; client <= 3; client++) {
    int fd = conc_connect(address, 5);
    if (fd < 0) return fd;
    for (int n = 1; n <= 2; n++) {
      size_t length = (size_t)snprintf(line, sizeof line,
                                       "line %d of client %d", n, client);
      ssize_t got = conc_write(fd, line, length, 5);
      if (got > 0) got = conc_read_exactly(fd, reply, length, 5);
      printf("%.*s\n", (int)got, got > 0 ? reply : "");
    }
    conc_close(fd);
  }
  return 0;
}

int main(int argc, char **argv) {
  int n = conc_cpu_count();
  conc_task *loops = (conc_task *)calloc((size_t)n, sizeof *loops);
  int rc = 0;

  listener = conc_listen(argc > 1 ? argv[1] : NULL);
  if (listener < 0 || loops == NULL) {
    fprintf(stderr, "cannot listen: %s\n", conc_strerror(listener));
    return 1;
  }
  for (int i = 0; i < n; i++) {
    loops[i].target = run_loop;
    loops[i].daemon = true; /* ends with us, however we end */
    if (conc_process_start(&loops[i]) != 0) return 1;
  }
  if (argc == 1) {
    rc = talk();
    for (int i = 0; i < n; i++) conc_terminate(&loops[i]);
  }
  for (int i = 0; i < n; i++) conc_join(&loops[i], CONC_FOREVER);
  free(loops);
  return rc != 0;
}
