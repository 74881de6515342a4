/* asyncio's way to end by Ctrl-C, and a group of connections: a server that
   ends in good order. Each connection is a task that nobody joins. The first
   Ctrl-C, or SIGTERM, cancels the server's task, and that one its connections;
   each of them says goodbye first. A second Ctrl-C ends the program at once.
     cc stop.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define ADDRESS "127.0.0.1:0"

static void *talk(void *arg) {
  int fd = (int)(intptr_t)arg;
  char line[100];
  conc_stream s = {.fd = fd};
  ssize_t n;
  while ((n = conc_stream_read_line(&s, line, sizeof line, CONC_FOREVER)) > 0)
    if (conc_stream_write(&s, line, (size_t)n, 5.0) != 0 ||
        conc_stream_flush(&s, 5.0) != 0)
      break;
  /* The wait above was cancelled, once: those that follow wait as usual. */
  if (n == -ECANCELED) conc_stream_write(&s, "goodbye\n", 8, 5.0);
  conc_stream_close(&s, 5.0);
  return NULL;
}

/* A client, so that the example needs no other program. */
static void *client(void *address) {
  char line[100];
  conc_stream s = {0};
  s.fd = conc_connect((char *)address, 5.0);
  conc_stream_write(&s, "hello\n", 6, 5.0);
  conc_stream_flush(&s, 5.0);
  conc_stream_read_line(&s, line, sizeof line, 5.0);
  printf("%s", line);
  kill(getpid(), SIGTERM); /* in place of the user's Ctrl-C */
  conc_stream_read_line(&s, line, sizeof line, 5.0);
  printf("%s", line);
  conc_stream_close(&s, 5.0);
  return NULL;
}

static void *serve(void *arg) {
  char address[100];
  conc_group connections = {0};
  conc_task c = {.target = client, .arg = address};
  int fd, listener = conc_listen(ADDRESS);
  if (listener < 0) return arg;
  if (conc_address(listener, address, sizeof address) < 0) return arg;
  conc_thread_start(&c);
  while ((fd = conc_accept(listener, CONC_FOREVER)) >= 0)
    conc_group_spawn(&connections, talk, (void *)(intptr_t)fd);
  conc_close(listener);
  conc_group_leave(&connections, 0); /* cancels them, and waits for them */
  conc_join(&c, CONC_FOREVER);
  printf("The server has ended: %s.\n", conc_strerror(fd));
  return arg;
}

int main(void) {
  conc_task t = {.target = serve};
  conc_stop_on_signals(conc_current(), NULL, 0);
  return conc_run(&t) == -ECANCELED ? 0 : 1;
}
