/* conc_serve: connections, each with a handler, in coroutines and threads:
   limits, cancellation, and going on without descriptors or memory. */
#include "inside.h"
#include "tasks.h"

#include <sys/resource.h>
#include <sys/socket.h>

/* What a test serves, and what its handlers have seen. */
typedef struct site {
  conc_task task;
  int listener;
  void (*handler)(int fd, void *arg);
  size_t limit;
  int result; /* of conc_serve */
  int begun;
  conc_event go;
  int now, most, all, cancelled;
  char address[64];
} site;

static void *serve(void *arg) {
  site *s = (site *)arg;
  STORE(s->begun, 1);
  s->result = conc_serve(s->listener, s->handler, s, s->limit);
  return NULL;
}

/* Serves beside the caller, in a coroutine if that is one, or a thread. */
static void open_site(site *s, void (*handler)(int fd, void *arg),
                      size_t limit, bool coroutine) {
  memset(s, 0, sizeof *s);
  s->handler = handler;
  s->limit = limit;
  s->listener = conc_listen(NULL);
  CHECK(s->listener >= 0);
  CHECK(conc_address(s->listener, s->address, sizeof s->address) > 0);
  start(coroutine ? conc_coro_start : conc_thread_start, &s->task, serve, s);
  UNTIL(LOAD(s->begun));
}
static void end_site(site *s, int result) {
  CHECK_EQ(conc_event_set(&s->go), 0);
  conc_join(&s->task, 20 * test_slow());
  CHECK(!conc_is_alive(&s->task));
  CHECK_EQ(s->result, result);
  CHECK_EQ(LOAD(s->now), 0); /* no handler is left */
}
static void close_site(site *s) {
  CHECK_EQ(conc_cancel(&s->task), 0);
  end_site(s, -ECANCELED);
  CHECK_EQ(conc_close(s->listener), 0);
}

static void enter(site *s) {
  int now = ADD_FETCH(s->now, 1), most = LOAD(s->most);
  ADD_FETCH(s->all, 1);
  while (now > most &&
         !__atomic_compare_exchange_n(&s->most, &most, now, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
  }
}
static void leave(site *s, int fd) {
  CHECK_EQ(conc_close(fd), 0);
  ADD_FETCH(s->now, -1);
}

static void echo(int fd, void *arg) {
  site *s = (site *)arg;
  char buf[100];
  ssize_t n;
  enter(s);
  do n = conc_read(fd, buf, sizeof buf, 20);
  while (n > 0 && conc_write(fd, buf, (size_t)n, 20) == n);
  if (n == -ECANCELED) ADD_FETCH(s->cancelled, 1);
  leave(s, fd);
}

static int connect_to(const site *s) {
  int fd = conc_connect(s->address, 20);
  CHECK(fd >= 0);
  return fd;
}
/* Lets nobody else run meanwhile, needs no memory, and no other descriptor. */
static void connect_at_once(const site *s, int fd) {
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  CHECK_EQ(getsockname(s->listener, (struct sockaddr *)&address, &size), 0);
  CHECK_EQ(connect(fd, (struct sockaddr *)&address, size), 0);
}
/* Sends a line, and gets it back. */
static void talk(int fd) {
  char reply[6] = "";
  CHECK_EQ(conc_write(fd, "hello", 5, 20), 5);
  CHECK_EQ(conc_read_exactly(fd, reply, 5, 20), 5);
  CHECK_STR(reply, "hello");
}
static void is_closed(int fd) {
  char c;
  CHECK_EQ(conc_read(fd, &c, 1, 20), 0);
  CHECK_EQ(conc_close(fd), 0);
}

static void *many_clients(void *arg) {
  int fds[40];
  site s;
  open_site(&s, echo, 0, arg != NULL);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 40; i++) fds[i] = connect_to(&s);
    for (int i = 0; i < 40; i++) talk(fds[i]);
    for (int i = 0; i < 40; i++) CHECK_EQ(conc_close(fds[i]), 0);
  }
  UNTIL(LOAD(s.now) == 0);
  CHECK_EQ(s.all, 120);
  close_site(&s);
  CHECK_EQ(s.cancelled, 0);
  return NULL;
}
TEST_BOTH(every_connection_has_its_handler_and_all_talk_at_once, many_clients)

/* Five clients, of which two are served. The third is connected, by the
   system, and has its turn when one of the first leaves, and not before. */
static void *limited(void *arg) {
  int fds[5];
  site s;
  open_site(&s, echo, 2, arg != NULL);
  for (int i = 0; i < 5; i++) fds[i] = connect_to(&s);
  talk(fds[0]), talk(fds[1]);
  CHECK_EQ(conc_write(fds[2], "hello", 5, 20), 5);
  CHECK_EQ(conc_wait_fd(fds[2], CONC_READ, 0.05), -ETIMEDOUT);
  for (int i = 0; i < 5; i++) {
    talk(fds[i]);
    if (i == 2) { /* and the answer to what it sent before */
      char rest[5];
      CHECK_EQ(conc_read_exactly(fds[i], rest, 5, 20), 5);
    }
    CHECK_EQ(conc_close(fds[i]), 0);
  }
  UNTIL(LOAD(s.now) == 0);
  CHECK_EQ(s.all, 5);
  CHECK_EQ(s.most, 2);
  close_site(&s);
  return NULL;
}
TEST_BOTH(no_more_than_the_limit_are_served_at_one_time, limited)

/* Handlers wait for their clients when the server is cancelled: each is told,
   has time to clean up, and only then does conc_serve return. */
static void clean_up_slowly(int fd, void *arg) {
  site *s = (site *)arg;
  char c;
  enter(s);
  if (conc_read(fd, &c, 1, 20) == -ECANCELED) {
    CHECK_EQ(conc_event_wait(&s->go, 20), 0);
    ADD_FETCH(s->cancelled, 1);
  }
  leave(s, fd);
}
static void *cancelled(void *arg) {
  int fds[3];
  site s;
  open_site(&s, clean_up_slowly, 0, arg != NULL);
  for (int i = 0; i < 3; i++) fds[i] = connect_to(&s);
  UNTIL(LOAD(s.all) == 3);
  CHECK_EQ(conc_sleep(0.01), 0); /* each waits for its client by now */
  CHECK_EQ(conc_cancel(&s.task), 0);
  CHECK_EQ(conc_join(&s.task, 0.05), -ETIMEDOUT); /* for they clean up */
  end_site(&s, -ECANCELED);
  CHECK_EQ(s.cancelled, 3);
  for (int i = 0; i < 3; i++) is_closed(fds[i]);
  CHECK_EQ(conc_close(s.listener), 0);
  return NULL;
}
TEST_BOTH(a_server_that_is_cancelled_cancels_its_handlers, cancelled)

/* It is at its limit, and does not accept, when it is cancelled. */
static void *cancelled_at_the_limit(void *arg) {
  site s;
  int fd;
  open_site(&s, echo, 1, arg != NULL);
  fd = connect_to(&s);
  talk(fd);
  close_site(&s);
  CHECK_EQ(s.cancelled, 1);
  is_closed(fd);
  return NULL;
}
TEST_BOTH(a_server_at_its_limit_is_cancelled, cancelled_at_the_limit)

static void *time_is_out(void *arg) {
  conc_scope limit;
  int listener = conc_listen(NULL);
  (void)arg;
  conc_timeout(&limit, 0.02);
  CHECK_EQ(conc_serve(listener, echo, NULL, 0), -ECANCELED);
  CHECK_EQ(conc_scope_end(&limit), -ETIMEDOUT);
  CHECK_EQ(conc_close(listener), 0);
  return NULL;
}
TEST_BOTH(a_time_limit_ends_a_server, time_is_out)

/* Fifty clients are connected before a server begins, so that it can accept
   them all without a wait. The first handler cancels it: that comes about
   soon, as handlers have their turn between two that are accepted. */
static void cancel_server(int fd, void *arg) {
  site *s = (site *)arg;
  enter(s);
  conc_cancel(&s->task);
  leave(s, fd);
}
static void *flood(void *arg) {
  int fds[50];
  site s;
  memset(&s, 0, sizeof s);
  s.handler = cancel_server;
  s.listener = conc_listen(NULL);
  conc_address(s.listener, s.address, sizeof s.address);
  for (int i = 0; i < 50; i++) fds[i] = connect_to(&s);
  start(conc_coro_start, &s.task, serve, &s);
  end_site(&s, -ECANCELED);
  CHECK(s.all > 0 && s.all < 10);
  for (int i = 0; i < 50; i++) CHECK_EQ(conc_close(fds[i]), 0);
  CHECK_EQ(conc_close(s.listener), 0);
  return arg;
}
TEST(handlers_have_their_turn_while_clients_come) { run(flood, NULL); }

/* From inside, for the moment between the start of a handler and its first
   step, in which a server is cancelled: its client is not left waiting. */
static void never(int fd, void *arg) {
  (void)arg;
  TEST_FAIL("the handler of %d has begun", fd);
}
static void *end_at_once(void *arg) {
  conc__service s;
  int fds[2];
  memset(&s, 0, sizeof s);
  s.handler = never;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  CHECK_EQ(conc__service_start(&s, fds[0]), 0);
  CHECK_EQ(conc__service_end(&s, true), -ECANCELED);
  is_closed(fds[1]);
  return arg;
}
TEST(a_handler_that_never_begins_leaves_no_connection) {
  run(end_at_once, NULL);
}

/* The listener is closed: the client that is served goes on, and when it has
   left, the server ends. */
static void *closed(void *arg) {
  site s;
  int fd;
  open_site(&s, echo, 0, true);
  fd = connect_to(&s);
  talk(fd);
  CHECK_EQ(conc_close(s.listener), 0);
  CHECK_EQ(conc_sleep(0.02), 0);
  CHECK(conc_is_alive(&s.task));
  talk(fd);
  CHECK_EQ(conc_close(fd), 0);
  end_site(&s, -EBADF);
  CHECK_EQ(s.cancelled, 0);
  return arg;
}
TEST(a_server_without_its_listener_ends_with_its_last_handler) {
  run(closed, NULL);
}

/* The same, but it is cancelled while it waits for that handler. */
static void *closed_and_cancelled(void *arg) {
  site s;
  int fd;
  open_site(&s, echo, 0, true);
  fd = connect_to(&s);
  talk(fd);
  CHECK_EQ(conc_close(s.listener), 0);
  CHECK_EQ(conc_sleep(0.02), 0);
  CHECK_EQ(conc_cancel(&s.task), 0);
  end_site(&s, -ECANCELED);
  CHECK_EQ(s.cancelled, 1);
  is_closed(fd);
  return arg;
}
TEST(a_server_that_waits_for_its_last_handler_is_cancelled) {
  run(closed_and_cancelled, NULL);
}

static void *wrong(void *arg) {
  int fds[2], listener = conc_listen(NULL);
  (void)arg;
  CHECK_EQ(conc_serve(listener, NULL, NULL, 0), -EINVAL);
  CHECK_EQ(conc_close(listener), 0);
  CHECK_EQ(conc_serve(listener, never, NULL, 0), -EBADF);
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(conc_serve(fds[0], never, NULL, 0), -ENOTSOCK);
  CHECK_EQ(conc_close(fds[0]), 0);
  CHECK_EQ(conc_close(fds[1]), 0);
  fds[0] = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_EQ(conc_serve(fds[0], never, NULL, 0), -EINVAL);
  CHECK_EQ(conc_close(fds[0]), 0);
  fds[0] = conc_datagram_open(NULL);
  CHECK_EQ(conc_serve(fds[0], never, NULL, 0), -EOPNOTSUPP);
  CHECK_EQ(conc_close(fds[0]), 0);
  return NULL;
}
TEST_BOTH(what_cannot_be_served_is_told_at_once, wrong)

/* A client is connected when this process may have no further descriptor. It
   is served once there may be more; the server has gone on meanwhile. */
static void *no_descriptors(void *arg) {
  struct rlimit before, few;
  int first, second;
  site s;
  if (test_wrapped("valgrind"))
    SKIP("Valgrind closes a connection that it has accepted above the limit");
  open_site(&s, echo, 0, arg != NULL);
  first = connect_to(&s);
  talk(first);
  second = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  few = before;
  wait_parked(&s.task); /* an accept in vain has a number for a moment */
  few.rlim_cur = (rlim_t)dup(0); /* the lowest that is free */
  CHECK_EQ(close((int)few.rlim_cur), 0);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  connect_at_once(&s, second);
  CHECK_EQ(conc_sleep(0.03), 0);
  talk(first);
  CHECK_EQ(LOAD(s.all), 1);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  talk(second);
  CHECK_EQ(conc_close(first), 0);
  CHECK_EQ(conc_close(second), 0);
  UNTIL(LOAD(s.now) == 0);
  close_site(&s);
  return NULL;
}
TEST_BOTH(a_server_waits_for_a_descriptor, no_descriptors)

/* Each of the first allocations of a server fails in turn: the client is
   served all the same, a little later. */
static void *no_memory(void *arg) {
  for (int n = 1; n < 6; n++) {
    site s;
    int fd;
    open_site(&s, echo, 0, arg != NULL);
    CHECK_EQ(conc_sleep(0.01), 0); /* it waits for clients by now */
    fd = connect_to(&s);
    STORE(test_fail_at, n);
    UNTIL(LOAD(s.all) == 1);
    STORE(test_fail_at, 0);
    talk(fd);
    CHECK_EQ(conc_close(fd), 0);
    UNTIL(LOAD(s.now) == 0);
    close_site(&s);
  }
  return NULL;
}
TEST_BOTH(a_server_waits_for_memory, no_memory)

/* A client is accepted, but there is no memory for its handler; the server is
   cancelled before it tries again. */
static void *cancelled_without_memory(void *arg) {
  site s;
  int first, second;
  open_site(&s, echo, 0, arg != NULL);
  first = connect_to(&s);
  talk(first);
  second = socket(AF_INET, SOCK_STREAM, 0);
  STORE(test_fail_at, 1);
  connect_at_once(&s, second);
  UNTIL(LOAD(test_fail_at) == 0);
  close_site(&s);
  CHECK_EQ(s.all, 1);
  is_closed(first);
  is_closed(second);
  return NULL;
}
TEST_BOTH(a_server_is_cancelled_while_it_waits_for_memory,
          cancelled_without_memory)

/* Four servers at one listener: two threads, each with a loop, and two
   processes. A client that is connected is served by one of them. */
static void *serve_in_a_loop(void *arg) {
  run(serve, arg);
  return NULL;
}
TEST(several_loops_and_processes_serve_the_same_listener) {
  enum { CLIENTS = 60 };
  conc_task loops[2], processes[2];
  int fds[CLIENTS];
  static site s;
  NEEDS_FORK;
  memset(&s, 0, sizeof s);
  s.handler = echo;
  s.listener = conc_listen(NULL);
  conc_address(s.listener, s.address, sizeof s.address);
  for (int i = 0; i < 2; i++)
    start(conc_process_start, &processes[i], serve_in_a_loop, &s);
  for (int i = 0; i < 2; i++)
    start(conc_thread_start, &loops[i], serve_in_a_loop, &s);
  for (int round = 0; round < 5; round++) {
    for (int i = 0; i < CLIENTS; i++) fds[i] = connect_to(&s);
    for (int i = 0; i < CLIENTS; i++) talk(fds[i]);
    for (int i = 0; i < CLIENTS; i++) CHECK_EQ(conc_close(fds[i]), 0);
  }
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_terminate(&processes[i]), 0);
  for (int i = 0; i < 2; i++) conc_join(&processes[i], 20);
  UNTIL(LOAD(s.now) == 0);
  /* Only a connection that wakes them ends these two: by the listener. */
  CHECK_EQ(shutdown(s.listener, SHUT_RD), 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&loops[i], 20), 0);
  CHECK_EQ(s.result, -EINVAL);
  CHECK_EQ(conc_close(s.listener), 0);
}

TEST_MAIN
