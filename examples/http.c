/* A small HTTP/1.1 server: a handler for conc_serve. Connections are kept,
   requests may be pipelined. It uses one CPU; echo.c uses all.
     cc -O2 http.c -pthread && ./a.out :8080
     wrk -c 100 -d 5 http://127.0.0.1:8080/
   Without an address it is its own client, and ends. */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PATIENCE 60.0 /* seconds, with a client that says nothing */

static int listener;

/* Whether a line of the header, all of which ends with an empty line, says so:
   has(header, "connection", "close"). */
static bool has(const char *header, const char *name, const char *value) {
  const char *line = strstr(header, "\r\n");
  size_t n = strlen(name);
  for (; line != NULL; line = strstr(line, "\r\n")) {
    line += 2;
    if (strncasecmp(line, name, n) == 0 && line[n] == ':') {
      line += n + 1;
      line += strspn(line, " \t");
      if (strncasecmp(line, value, strlen(value)) == 0) return true;
    }
  }
  return false;
}

/* Answers one request, of which `header` is all. Whether the connection is to
   be kept. */
static bool answer(int fd, const char *header) {
  const char *status = "200 OK", *body = "Hello, world!\n";
  bool get = strncmp(header, "GET ", 4) == 0;
  bool head = strncmp(header, "HEAD ", 5) == 0;
  const char *path = strchr(header, ' ');
  const char *end = strstr(header, "\r\n");
  bool old = end - header > 8 && strncmp(end - 8, "HTTP/1.0", 8) == 0;
  bool keep = !has(header, "connection", "close") &&
              (!old || has(header, "connection", "keep-alive"));
  char reply[512];
  int n;
  if (!get && !head) {
    status = "501 Not Implemented";
    body = "Only GET and HEAD.\n";
    keep = false; /* a body may follow that we do not read */
  } else if (strncmp(path, " / ", 3) != 0) {
    status = "404 Not Found";
    body = "There is only /.\n";
  }
  n = snprintf(reply, sizeof reply,
               "HTTP/1.1 %s\r\nContent-Type: text/plain\r\n"
               "Content-Length: %zu\r\nConnection: %s\r\n\r\n%s",
               status, strlen(body), keep ? "keep-alive" : "close",
               head ? "" : body);
  return conc_write(fd, reply, (size_t)n, PATIENCE) == n && keep;
}

static void talk_http(int fd, void *arg) {
  conc_stream s = {.fd = fd};
  char header[4096]; /* so long may it be */
  (void)arg;
  for (;;) {
    ssize_t n = conc_stream_read_until(&s, "\r\n\r\n", 4, header,
                                       sizeof header - 1, PATIENCE);
    char *end;
    header[n > 0 ? n : 0] = 0;
    end = strstr(header, "\r\n\r\n");
    if (end == NULL) break; /* it is too long, or there is no more */
    end[2] = 0;
    if (!answer(fd, header)) break;
  }
  conc_stream_close(&s, 0);
}

static void *serve(void *arg) {
  conc_set_status(conc_serve(listener, talk_http, NULL, 0));
  return arg;
}

/* Sends three requests at once, and prints what comes back. */
static int ask(void) {
  static const char requests[] =
      "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
      "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n"
      "GET /more HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  char address[32], buf[256];
  ssize_t n;
  int fd;

  conc_address(listener, address, sizeof address);
  fd = conc_connect(address, 5);
  if (fd < 0) return fd;
  conc_write(fd, requests, sizeof requests - 1, 5);
  while ((n = conc_read(fd, buf, sizeof buf, 5)) > 0)
    fwrite(buf, 1, (size_t)n, stdout);
  conc_close(fd);
  return (int)n;
}

int main(int argc, char **argv) {
  conc_task server = {.target = serve};
  int rc;
  listener = conc_listen(argc > 1 ? argv[1] : NULL);
  if (listener < 0) {
    fprintf(stderr, "cannot listen: %s\n", conc_strerror(listener));
    return 1;
  }
  if (argc > 1) return conc_run(&server) != 0; /* each client a coroutine */

  conc_thread_start(&server); /* each client a thread */
  rc = ask();
  conc_cancel(&server);
  conc_join(&server, CONC_FOREVER);
  conc_close(listener);
  return rc;
}
