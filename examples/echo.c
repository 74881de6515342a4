/* An echo server that uses every CPU: a process for each, with a loop of its
   own, and a coroutine for each connection.
     cc echo.c -pthread && ./a.out :7007
   Without an address it is its own client, and ends. */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>

#define PATIENCE 60.0 /* seconds, with a client that says nothing */

static int listener; /* the same in all processes, for it is inherited */

static void echo(int fd, void *arg) {
  char buf[2048];
  ssize_t n;
  (void)arg;
  do n = conc_read(fd, buf, sizeof buf, PATIENCE);
  while (n > 0 && conc_write(fd, buf, (size_t)n, PATIENCE) == n);
  conc_close(fd);
}

static void *serve(void *arg) {
  conc_set_status(conc_serve(listener, echo, NULL, 0));
  return arg;
}

static void *run_loop(void *arg) {
  conc_task main = {.target = serve};
  return conc_run(&main) == 0 ? arg : (void *)1; /* the exit code */
}

/* A client, in a thread: the calls are the same. */
static int talk(void) {
  char address[32], line[64], reply[64];
  conc_address(listener, address, sizeof address);
  for (int client = 1; client <= 3; client++) {
    int fd = conc_connect(address, 5);
    for (int n = 1; n <= 2; n++) {
      int size =
          snprintf(line, sizeof line, "line %d of client %d", n, client);
      if (conc_write(fd, line, (size_t)size, 5) != size) return 1;
      if (conc_read_exactly(fd, reply, (size_t)size, 5) != size) return 1;
      printf("%.*s\n", size, reply);
    }
    conc_close(fd);
  }
  return 0;
}

int main(int argc, char **argv) {
  int n = conc_cpu_count(), rc = 0;
  conc_task *loops = (conc_task *)calloc((size_t)n, sizeof *loops);
  listener = conc_listen(argc > 1 ? argv[1] : NULL);
  if (listener < 0 || loops == NULL) {
    fprintf(stderr, "cannot listen: %s\n", conc_strerror(listener));
    return 1;
  }
  for (int i = 0; i < n; i++) {
    loops[i].target = run_loop;
    loops[i].daemon = true; /* ends with us, however we end */
    conc_process_start(&loops[i]);
  }
  if (argc == 1) {
    rc = talk();
    for (int i = 0; i < n; i++) conc_terminate(&loops[i]);
  }
  for (int i = 0; i < n; i++) conc_join(&loops[i], CONC_FOREVER);
  free(loops);
  return rc;
}
