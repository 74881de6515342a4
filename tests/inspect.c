/* The page of a running program: what it serves, and what it refuses; hostile
   and slow clients; its beginning and its end. A browser looks at it in
   tests/interop/inspect.sh. */
#define CONC__INSPECT_SECONDS 1.0
#include "inside.h"

enum { ROOM = 1 << 22 };
static char answer[ROOM + 1], *body;
static size_t body_size;

/* --- a client --- */

static int call(int port) {
  char address[64];
  int fd;
  snprintf(address, sizeof address, "127.0.0.1:%d", port);
  fd = conc_connect(address, 10 * test_slow());
  if (fd < 0) TEST_FAIL("cannot connect: %d", fd);
  return fd;
}

static void say(int fd, const char *text) {
  CHECK_EQ(conc_write(fd, text, strlen(text), 10), strlen(text));
}

/* Reads an answer, whose body `body` is then. Its status; 0 at the end; -1: it
   is not whole. */
static int hear(int fd, bool head) {
  size_t n = 0, size;
  char *at;
  body = NULL;
  for (;;) {
    ssize_t got = conc_read(fd, answer + n, 1, 20 * test_slow());
    if (got <= 0) return 0;
    n++;
    answer[n] = 0;
    if (n >= 4 && memcmp(answer + n - 4, "\r\n\r\n", 4) == 0) break;
    CHECK(n < 4096);
  }
  CHECK(strncmp(answer, "HTTP/1.1 ", 9) == 0);
  at = strstr(answer, "\r\nContent-Length: ");
  CHECK(at != NULL);
  size = (size_t)atol(at + 18);
  CHECK(size < ROOM - n);
  if (!head &&
      conc_read_exactly(fd, answer + n, size, 20 * test_slow()) !=
          (ssize_t)size)
    return -1;
  body = answer + n;
  body_size = size;
  body[head ? 0 : size] = 0;
  return atoi(answer + 9);
}

static int get(int fd, const char *path) {
  char text[256];
  snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n",
           path);
  say(fd, text);
  return hear(fd, false);
}

/* A client that comes, asks, hears and goes. */
static int ask(int port, const char *request) {
  int fd = call(port), status;
  say(fd, request);
  status = hear(fd, strncmp(request, "HEAD", 4) == 0);
  conc_close(fd);
  return status;
}

static int begin(void) {
  int port = conc_inspect("");
  if (port <= 0) TEST_FAIL("no page: %d", port);
  return port;
}

static void end(void) { CHECK_EQ(conc_inspect(NULL), 0); }

/* --- what is served --- */

static conc_lock lock = {.name = "acc\"ou\\nts\n"};

static void *want(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return arg;
}

static conc_value *json(void) {
  conc_value *v = NULL;
  size_t where = 0;
  int rc = conc_json_loads(&v, body, body_size, &where);
  if (rc != 0) TEST_FAIL("%d at %zu: %s", rc, where, body);
  return v;
}

TEST(the_page_and_what_is_beside_it) {
  static const char *const keys[] = {"version", "now", "cpu_seconds",
                                     "deadlock", "lock_names", "lock_order",
                                     "inverted_lock_order"};
  int port = begin(), fd = call(port);
  conc_value *v;
  size_t i, size;
  CHECK_EQ(get(fd, "/"), 200);
  CHECK(strstr(answer, "Content-Type: text/html; charset=utf-8\r\n") != NULL);
  CHECK(strstr(answer, "Connection: keep-alive\r\n") != NULL);
  CHECK(strstr(answer, "default-src 'none'") != NULL);
  CHECK(strncmp(body, "<!doctype html>\n", 16) == 0);
  CHECK_STR(body + body_size - 8, "</html>\n");
  /* Nothing comes from outside. */
  CHECK(strstr(body, "src=") == NULL && strstr(body, "import") == NULL);
  CHECK(strstr(strstr(body, "http:") + 1, "http") == NULL); /* one: of SVG */
  size = body_size;
  CHECK_EQ(get(fd, "/report"), 200);
  CHECK(strstr(body, "thread conc-inspect: runs a loop") != NULL);
  CHECK_EQ(get(fd, "/report.json"), 200);
  CHECK(strstr(answer, "Content-Type: application/json\r\n") != NULL);
  v = json();
  CHECK(conc_value_get(v, "threads") != NULL);
  conc_value_free(v);
  CHECK_EQ(get(fd, "/process.json"), 200);
  v = json();
  for (i = 0; i < sizeof keys / sizeof *keys; i++)
    CHECK(conc_value_get(v, keys[i]) != NULL);
  CHECK_STR(conc_value_str(conc_value_get(v, "version"), NULL),
            conc_version());
  conc_value_free(v);
  CHECK_EQ(get(fd, "/none"), 404);
  CHECK_EQ(get(fd, "/?a=b"), 200);
  say(fd, "HEAD / HTTP/1.1\r\nhOsT: 127.0.0.1:80\r\n\r\n");
  CHECK_EQ(hear(fd, true), 200);
  CHECK_EQ(body_size, size);
  /* Two at once, then the last. */
  say(fd, "GET /report HTTP/1.1\r\nHost: [::1]\r\n\r\n"
          "GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n");
  CHECK_EQ(hear(fd, false), 200);
  CHECK_EQ(hear(fd, false), 404);
  say(fd, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Close\r\n\r\n");
  CHECK_EQ(hear(fd, false), 200);
  CHECK(strstr(answer, "Connection: close\r\n") != NULL);
  CHECK_EQ(hear(fd, false), 0);
  conc_close(fd);
  CHECK_EQ(ask(port, "GET / HTTP/1.0\r\n\r\n"), 200);
  CHECK_EQ(ask(port, "GET / HTTP/1.0\n\n"), 200);
  end();
}

/* The order that was inverted is told by the numbers of names. */
TEST(the_order_of_locks) {
  conc_lock a = {.name = "a"}, b = {.name = "b\xff"};
  int port, fd;
  CHECK_EQ(conc_lock_acquire(&a, 1), 0);
  CHECK_EQ(conc_lock_acquire(&b, 1), 0);
  CHECK_EQ(conc_lock_release(&b), 0);
  CHECK_EQ(conc_lock_release(&a), 0);
  CHECK_EQ(conc_lock_acquire(&b, 1), 0);
  CHECK_EQ(conc_lock_acquire(&a, 1), 0);
  CHECK_EQ(conc_lock_release(&a), 0);
  CHECK_EQ(conc_lock_release(&b), 0);
  port = begin();
  fd = call(port);
  CHECK_EQ(get(fd, "/process.json"), 200);
  CHECK(strstr(body, "\"lock_names\": [\"a\", \"b?\"]") != NULL);
  CHECK(strstr(body, "\"lock_order\": [0, 1]") != NULL);
  CHECK(strstr(body, "\"inverted_lock_order\": [1, 0]") != NULL);
  conc_close(fd);
  end();
}

/* --- /metrics: a parser of Prometheus' format --- */

static bool is_name(const char *s, size_t n) {
  size_t i;
  for (i = 0; i < n; i++)
    if (!(s[i] >= 'a' && s[i] <= 'z') && s[i] != '_' &&
        !(i > 0 && s[i] >= '0' && s[i] <= '9'))
      return false;
  return n > 0;
}

/* Checks {a="b",c="d"}, and returns what follows. */
static char *labels(char *at) {
  CHECK(*at++ == '{');
  for (;;) {
    size_t n = strcspn(at, "=");
    CHECK(is_name(at, n));
    at += n;
    CHECK(at[0] == '=' && at[1] == '"');
    for (at += 2; *at != '"'; at++) {
      CHECK(*at != 0 && *at != '\n');
      if (*at == '\\') {
        at++;
        CHECK(*at == '\\' || *at == '"' || *at == 'n');
      }
    }
    at++;
    if (*at != ',') break;
    at++;
  }
  CHECK(*at == '}');
  return at + 1;
}

/* A metric has its HELP, its TYPE, then its rows, no two of them alike. */
static void check_metrics(char *text) {
  static char rows[200][600], names[100][64];
  size_t count = 0, metrics = 0, i;
  char *line, *next, *name = NULL, *value, *rest;
  CHECK(body_size > 0 && text[body_size - 1] == '\n');
  for (line = text; *line != 0; line = next + 1) {
    next = strchr(line, '\n');
    *next = 0;
    if (strncmp(line, "# HELP ", 7) == 0) {
      size_t n = strcspn(line + 7, " ");
      CHECK(is_name(line + 7, n) && n < 64);
      memcpy(names[metrics], line + 7, n);
      names[metrics][n] = 0;
      name = names[metrics];
      for (i = 0; i < metrics; i++) CHECK(strcmp(names[i], name) != 0);
      metrics++;
      line = next + 1;
      next = strchr(line, '\n');
      CHECK(next != NULL && strncmp(line, "# TYPE ", 7) == 0);
      *next = 0;
      CHECK(strncmp(line + 7, name, n) == 0 && line[7 + n] == ' ');
      CHECK(strcmp(line + 8 + n, strstr(name, "_total") ? "counter"
                                                        : "gauge") == 0);
      continue;
    }
    CHECK(name != NULL && strncmp(line, name, strlen(name)) == 0);
    value = line + strlen(name);
    if (*value == '{') value = labels(value);
    CHECK(*value == ' ');
    *value++ = 0;
    CHECK(strtod(value, &rest) >= 0 && rest > value && *rest == 0);
    for (i = 0; i < count; i++) CHECK(strcmp(rows[i], line) != 0);
    CHECK(count < 200);
    snprintf(rows[count++], sizeof rows[0], "%s", line);
  }
  CHECK(metrics > 5);
}

/* The number in a row; -1: there is none. */
static double metric(const char *row) {
  char line[200];
  const char *at;
  snprintf(line, sizeof line, "\n%s", row);
  at = strstr(body, line);
  return at != NULL ? strtod(at + strlen(line), NULL) : -1;
}

TEST(metrics) {
  conc_task t[2] = {{.target = want}, {.target = want}};
  int port = begin(), fd, i;
  CHECK_EQ(conc_lock_acquire(&lock, 1), 0);
  for (i = 0; i < 2; i++) CHECK_EQ(conc_thread_start(&t[i]), 0);
  fd = call(port);
  /* The label is of the JSON, in which a control character is a "?". */
  do CHECK_EQ(get(fd, "/metrics"), 200);
  while (metric("conc_waiters{name=\"acc\\\"ou\\\\nts?\",what=\"lock\"} ") !=
         2);
  CHECK(strstr(answer, "text/plain; version=0.0.4") != NULL);
  CHECK(metric("conc_waiting_tasks{what=\"lock\"} ") == 2);
  CHECK(metric("conc_tasks{kind=\"thread\",state=\"waits\"} ") >= 2);
  CHECK(metric("conc_loop_tasks{loop=\"conc-inspect\"} ") == 2);
  CHECK(metric("conc_deadlock_found ") == 0);
  CHECK(metric("process_cpu_seconds_total ") > 0);
  check_metrics(body);
  CHECK_EQ(conc_lock_release(&lock), 0);
  for (i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  conc_close(fd);
  end();
}

/* Labels are cut between characters, and what is alike is added up. */
TEST(rows_of_metrics) {
  static const char ox[] = "\xe2\x82\xac"; /* a character of three bytes */
  conc__buffer b = {NULL, 0, 0, 0};
  conc__metrics m = {NULL, 0, NULL, 0, 0};
  char text[1000] = "", row[512] = "", number[32];
  int i;
  m.out = &b;
  for (i = 0; i < 300; i++) strcat(text, ox);
  conc__metric_label(row, "a", text);
  conc__metric_label(row, "b", text);
  CHECK(strlen(row) < sizeof row);
  for (i = 3; row[i] != '"'; i += 3) CHECK(memcmp(row + i, ox, 3) == 0);
  conc__metric_add(&m, row, 1);
  conc__metric_add(&m, row, 2.5);
  for (i = 0; i < 1200; i++) {
    snprintf(number, sizeof number, "a=\"%d\"", i);
    conc__metric_add(&m, number, 1);
  }
  CHECK(m.count <= CONC__METRIC_ROWS + 2);
  conc__metric_end(&m, "conc_x", "gauge", "X.");
  CHECK_EQ(m.rc, 0);
  CHECK_EQ(conc__buffer_append(&b, "", 1), 0);
  body = (char *)b.data;
  CHECK(strstr(body, "} 3.500\n") != NULL);
  CHECK(metric("conc_x ") == 1200 - CONC__METRIC_ROWS);
  conc__buffer_free(&b);
  CONC_FREE(m.rows);
}

/* --- what is refused --- */

TEST(bad_requests) {
  static const struct { int status; const char *text; } rows[] = {
      {400, "GET / HTTP/1.1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"},
      {400, "\r\n\r\n"},
      {400, "GET\r\n\r\n"},
      {400, "GET /\r\n\r\n"},
      {400, "GET  / HTTP/1.1\r\n\r\n"},
      {400, "GET / HTTP/1.1 \r\n\r\n"},
      {400, "GET x HTTP/1.1\r\n\r\n"},
      {400, "GET http://localhost/ HTTP/1.1\r\n\r\n"},
      {400, "GET / HTTQ/1.1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\nHost localhost\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n: x\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\nA: b\rHost: localhost\r\n\r\n"},
      {400, "GET /trace?seconds=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {400, "GET /trace?seconds=61 HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {400, "GET /trace?seconds=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {400, "GET /trace?seconds= HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {400, "GET /trace?x HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {405, "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {405, "get / HTTP/1.1\r\nHost: localhost\r\n\r\n"},
      {413, "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"},
      {413, "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {505, "GET / HTTP/2.0\r\n\r\n"},
      {200, "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"},
  };
  static char large[20000];
  int port = begin(), fd;
  size_t i;
  for (i = 0; i < sizeof rows / sizeof *rows; i++) {
    fd = call(port);
    say(fd, rows[i].text);
    if (hear(fd, false) != rows[i].status)
      TEST_FAIL("%s for: %s", answer, rows[i].text);
    if (rows[i].status != 200) CHECK_EQ(hear(fd, false), 0);
    if (rows[i].status == 405) CHECK(strstr(answer, "\r\nAllow: GET") != NULL);
    conc_close(fd);
  }
  /* A zero byte. */
  fd = call(port);
  CHECK_EQ(conc_write(fd, "GET / HTTP/1.1\r\nA\0:\r\n\r\n", 23, 1), 23);
  CHECK_EQ(hear(fd, false), 400);
  conc_close(fd);
  /* Too long, in one line and in many. */
  memset(large, 'a', sizeof large - 1);
  memcpy(large, "GET /", 5);
  CHECK_EQ(ask(port, large), 431);
  strcpy(large + 3000, " HTTP/1.1\r\n\r\n");
  CHECK_EQ(ask(port, large), 414);
  strcpy(large, "GET / HTTP/1.1\r\n");
  while (strlen(large) < 10000) strcat(large, "a: b\r\n");
  CHECK_EQ(ask(port, large), 431);
  end();
}

/* Whatever comes, there is an end to it. */
TEST(garbage) {
  static const char good[] =
      "GET /process.json?x=y HTTP/1.1\r\nHost: [::1]:80\r\n"
      "Connection: close\r\nContent-Length: 0\r\nSec-Fetch-Site: none\r\n"
      "\r\nHEAD /metrics HTTP/1.0\r\n\r\n";
  int port = begin(), i, n;
  for (i = 0; i < 300; i++) {
    char text[sizeof good];
    size_t size = sizeof good - 1;
    int fd = call(port);
    memcpy(text, good, sizeof good);
    for (n = (int)(test_random() % 4); n >= 0; n--)
      text[test_random() % size] =
          n % 2 ? (char)test_random() : "\r\n :[]?\0/"[test_random() % 9];
    if (test_random() % 3 == 0) size = test_random() % size;
    (void)conc_write(fd, text, size, 10); /* it may have been refused */
    shutdown(fd, SHUT_WR);
    while (conc_read(fd, answer, ROOM, 20 * test_slow()) > 0) continue;
    conc_close(fd);
  }
  CHECK_EQ(ask(port, "GET / HTTP/1.0\r\n\r\n"), 200);
  end();
}

TEST(hosts) {
  static const struct { int status; const char *host; } rows[] = {
      {200, "localhost"}, {200, "LocalHost:8080"}, {200, "127.0.0.1"},
      {200, "192.168.1.7:80"}, {200, "[::1]:80"}, {200, "[fe80::1]"},
      {200, "Box.Example:8080"},
      {403, "evil.example"}, {403, "localhost.evil.example"},
      {403, "127.0.0.1.evil.example"}, {403, ""}, {403, "[::1].evil"},
      {403, "[]"}, {403, "[evil]"}, {403, "localhost:80a"}, {403, ":80"},
      {403, "evil.example:80"},
  };
  conc_inspect_opts opts = {.address = "localhost:0", .host = "box.example"};
  int port = conc_inspect_start(&opts);
  char text[200];
  size_t i;
  CHECK(port > 0);
  for (i = 0; i < sizeof rows / sizeof *rows; i++) {
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n",
             rows[i].host);
    if (ask(port, text) != rows[i].status)
      TEST_FAIL("%s for: %s", answer, rows[i].host);
  }
  /* What another site's page asks for; a link on it may lead here. */
  CHECK_EQ(ask(port, "GET /trace HTTP/1.1\r\nHost: localhost\r\n"
                     "Sec-Fetch-Site: cross-site\r\n\r\n"), 403);
  CHECK_EQ(ask(port, "GET / HTTP/1.1\r\nHost: localhost\r\n"
                     "Sec-Fetch-Site: cross-site\r\n\r\n"), 200);
  end();
}

TEST(addresses) {
  static const char *const far_ones[] = {":0", "*:0", "0.0.0.0:0", "[::]:0"};
  static char name[300];
  conc_inspect_opts opts = {.anywhere = true};
  char address[64];
  int taken, port;
  size_t i;
  for (i = 0; i < sizeof far_ones / sizeof *far_ones; i++)
    CHECK_EQ(conc_inspect(far_ones[i]), -EINVAL);
  CHECK_EQ(conc_inspect("/tmp/conc-inspect-none"), -EINVAL);
  CHECK_EQ(conc_inspect("127.0.0.1:x"), -EINVAL);
  memset(name, 'a', sizeof name - 1);
  opts.host = name;
  CHECK_EQ(conc_inspect_start(&opts), -EINVAL);
  opts.host = NULL;
  opts.address = ":0";
  port = conc_inspect_start(&opts);
  CHECK(port > 0);
  CHECK_EQ(ask(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), 200);
  CHECK_EQ(conc_inspect_start(NULL), -EBUSY);
  CHECK_EQ(conc_inspect(""), -EBUSY);
  end();
  end(); /* of none */
  taken = conc_listen("127.0.0.1:0");
  CHECK(taken >= 0);
  CHECK(conc_address(taken, address, sizeof address) > 0);
  CHECK_EQ(conc_inspect(address), -EADDRINUSE);
  conc_close(taken);
  port = conc_inspect_start(NULL);
  CHECK(port > 0);
  end();
  snprintf(address, sizeof address, "127.0.0.1:%d", port);
  CHECK_EQ(conc_connect(address, 5), -ECONNREFUSED);
}

/* --- hostile and slow clients --- */

/* One sends half a request, one nothing, one does not take what it asked
   for. */
TEST(slow_clients) {
  static const char half[] = "GET / HTTP/1.1\r\nHost: local";
  static const char want_it[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  int port = begin(), slow = call(port), idle = call(port);
  int deaf = call(port), i;
  char c;
  say(slow, half);
  for (i = 0; i < 100000; i++) /* until it is not read any more */
    if (conc_write(deaf, want_it, sizeof want_it - 1, 0) < 0) break;
  CHECK_EQ(ask(port, want_it), 200); /* meanwhile others are served */
  CHECK_EQ(hear(slow, false), 408);
  CHECK_EQ(hear(slow, false), 0);
  CHECK_EQ(conc_read(idle, &c, 1, 20 * test_slow()), 0);
  conc_close(slow);
  conc_close(idle);
  /* When its connection is gone, writing to it fails. */
  for (i = 0; i < 2000 * test_slow(); i++) {
    ssize_t n = conc_write(deaf, "x", 1, 0);
    if (n < 0 && n != -ETIMEDOUT) break;
    usleep(10000);
  }
  CHECK(i < 2000 * test_slow());
  conc_close(deaf);
  end();
}

/* How many tasks the page's loop has, by the report that was heard. */
static long page_tasks(void) {
  const char *at = strstr(body, "thread conc-inspect: runs a loop (tasks ");
  CHECK(at != NULL);
  return atol(at + 40);
}

/* Those that are too many wait until others have gone. */
TEST(many_clients) {
  int port = begin(), fds[CONC__INSPECT_CLIENTS + 8], i;
  for (i = 0; i < CONC__INSPECT_CLIENTS + 8; i++) {
    fds[i] = call(port);
    CHECK_EQ(get(fds[i], "/report"), 200);
    CHECK(page_tasks() <= CONC__INSPECT_CLIENTS + 1);
  }
  while (i-- > 0) conc_close(fds[i]);
  end();
}

static void *nap(void *arg) {
  conc_sleep(1000);
  return arg;
}

/* Many tasks, and then a client that wants them: ThreadSanitizer has no room
   for more. */
enum { MANY = TEST_TSAN ? 1000 : 10000 };
static void *crowd(void *arg) {
  static conc_task t[MANY];
  int port = *(int *)arg, fd, i;
  for (i = 0; i < MANY; i++) {
    t[i].target = nap;
    t[i].stack_size = 16384;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  conc_sleep(0);
  fd = call(port);
  CHECK_EQ(get(fd, "/metrics"), 200);
  CHECK(metric("conc_waiting_tasks{what=\"sleep\"} ") == (double)MANY);
  check_metrics(body);
  CHECK_EQ(get(fd, "/report.json"), 200);
  conc_value_free(json());
  conc_close(fd);
  return arg;
}

TEST(many_tasks) {
  int port = begin();
  conc_task t = {.target = crowd, .arg = &port};
  CHECK_EQ(conc_run(&t), 0);
  end();
}

/* --- traces --- */

TEST(a_trace_to_download) {
  int port = begin(), fd = call(port);
  conc_value *v;
  double until = conc_now() + 20 * test_slow();
  say(fd, "HEAD /trace HTTP/1.1\r\nHost: localhost\r\n\r\n");
  CHECK_EQ(hear(fd, true), 200);
  CHECK_EQ(get(fd, "/trace?seconds=0.1"), 200);
  v = json();
  CHECK(conc_value_size(v) > 2);
  conc_value_free(v);
  CHECK(strstr(body, "conc-inspect") != NULL);
  /* What was sent meanwhile is the next request. */
  say(fd, "GET /trace?seconds=0.1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
          "GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n");
  CHECK_EQ(hear(fd, false), 200);
  CHECK_EQ(hear(fd, false), 404);
  CHECK_EQ(conc_trace_start("/dev/null", 0), 0);
  CHECK_EQ(get(fd, "/trace?seconds=0.1"), 409);
  CHECK(conc_trace_stop() >= 0);
  /* A client that goes ends its trace. */
  say(fd, "GET /trace?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n");
  while (CONC__LOAD(&conc__trace.state) != CONC__TRACE_ON) usleep(1000);
  conc_close(fd);
  while (conc_trace_start("/dev/null", 0) == -EBUSY) {
    CHECK(conc_now() < until);
    usleep(1000);
  }
  CHECK(conc_trace_stop() >= 0);
  end();
}

/* --- the end, and other processes --- */

TEST(it_ends_while_clients_are_there) {
  int port = begin(), idle = call(port), traced = call(port);
  char address[64];
  CHECK_EQ(get(idle, "/"), 200);
  say(traced, "GET /trace?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n");
  while (CONC__LOAD(&conc__trace.state) != CONC__TRACE_ON) usleep(1000);
  end();
  CHECK_EQ(hear(idle, false), 0);
  CHECK_EQ(hear(traced, false), 0);
  CHECK_EQ(conc_trace_stop(), -EINVAL);
  conc_close(idle);
  conc_close(traced);
  snprintf(address, sizeof address, "127.0.0.1:%d", port);
  CHECK_EQ(conc_inspect(address), port); /* again at once */
  end();
}

/* A child has no page, and none of its parent's descriptors: the page ends
   although the child lives. */
TEST(after_a_fork) {
  int port = begin(), fd = call(port), go[2], there[2], status;
  pid_t pid;
  char address[64], c;
  NEEDS_FORK;
  CHECK_EQ(get(fd, "/"), 200);
  CHECK_EQ(pipe(go), 0);
  CHECK_EQ(pipe(there), 0);
  pid = fork();
  if (pid == 0) {
    int own;
    close(go[1]);
    own = conc_inspect("");
    CHECK_CHILD(own > 0 && own != port);
    CHECK_CHILD(write(there[1], "", 1) == 1);
    CHECK_CHILD(ask(own, "GET / HTTP/1.0\r\n\r\n") == 200);
    CHECK_CHILD(conc_inspect(NULL) == 0);
    CHECK_CHILD(conc_inspect(NULL) == 0);
    CHECK_CHILD(read(go[0], &c, 1) == 0);
    _exit(0);
  }
  CHECK_EQ(read(there[0], &c, 1), 1);
  CHECK_EQ(get(fd, "/report"), 200);
  end();
  CHECK_EQ(conc_read(fd, &c, 1, 10 * test_slow()), 0);
  snprintf(address, sizeof address, "127.0.0.1:%d", port);
  CHECK_EQ(conc_connect(address, 5), -ECONNREFUSED);
  CHECK_EQ(waitpid(pid, &status, WNOHANG), 0);
  conc_close(fd);
  close(go[0]);
  close(go[1]);
  close(there[0]);
  close(there[1]);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
}

/* Whichever allocation fails, the program has a page, or nothing is left. */
TEST(no_memory) {
  static const char *const paths[] = {"/", "/report.json", "/process.json",
                                      "/metrics", "/trace?seconds=0.001"};
  int port, n, fd, status;
  size_t i;
  for (n = 1;; n++) {
    STORE(test_fail_at, n);
    port = conc_inspect("");
    if (LOAD(test_fail_at) > 0) break; /* not so many are made */
    STORE(test_fail_at, 0);
    if (port > 0) end();
    else CHECK_EQ(port, -ENOMEM);
    CHECK(n < 1000);
  }
  STORE(test_fail_at, 0);
  CHECK(port > 0);
  for (i = 0; i < sizeof paths / sizeof *paths; i++)
    for (n = 1;; n++) {
      bool all;
      fd = call(port);
      STORE(test_fail_at, n);
      status = get(fd, paths[i]);
      all = LOAD(test_fail_at) > 0;
      STORE(test_fail_at, 0);
      if (status != 200 && status != 503 && status > 0)
        TEST_FAIL("%s: %d", paths[i], status);
      if (status == 200 && body_size == 0) TEST_FAIL("%s is empty", paths[i]);
      conc_close(fd);
      if (all) break;
    }
  CHECK_EQ(ask(port, "GET / HTTP/1.0\r\n\r\n"), 200);
  end();
}

TEST_MAIN
