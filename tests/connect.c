/* Addresses: names that are looked up, several addresses of one, paths; and
   what accept and connect do when there are no descriptors left. */
#include "test.h"

#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#include <netdb.h>
#include <sys/socket.h>
static int ask_option(int fd, int level, int option, void *value,
                      socklen_t *size);
static int look_up(const char *host, const char *port,
                   const struct addrinfo *hints, struct addrinfo **info);
static void forget(struct addrinfo *info);
#define getaddrinfo look_up
#define freeaddrinfo forget
#define getsockopt ask_option
#include "inside.h"
#include "tasks.h"
#undef getaddrinfo
#undef freeaddrinfo
#undef getsockopt

#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/un.h>

/* A name server: "two" has two addresses, nobody listens at the first; "slow"
   answers when it is told to. */
static conc_event asked, may_answer;
static struct addrinfo answers[2];
static struct sockaddr_in places[2];

static int look_up(const char *host, const char *port,
                   const struct addrinfo *hints, struct addrinfo **info) {
  if (strcmp(host, "two") != 0 && strcmp(host, "slow") != 0)
    return getaddrinfo(host, port, hints, info);
  if (hints->ai_flags & AI_NUMERICHOST) return EAI_NONAME;
  if (host[0] == 's') {
    CHECK_EQ(conc_event_set(&asked), 0);
    CHECK_EQ(conc_event_wait(&may_answer, CONC_FOREVER), 0);
    return getaddrinfo("127.0.0.1", port, hints, info);
  }
  memset(answers, 0, sizeof answers);
  memset(places, 0, sizeof places);
  for (int i = 0; i < 2; i++) {
    places[i].sin_family = AF_INET;
    places[i].sin_port = htons((uint16_t)atoi(port));
    places[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK + (i == 0));
    answers[i].ai_family = AF_INET;
    answers[i].ai_socktype = SOCK_STREAM;
    answers[i].ai_addr = (struct sockaddr *)&places[i];
    answers[i].ai_addrlen = sizeof places[i];
  }
  answers[0].ai_next = &answers[1];
  *info = answers;
  return 0;
}
static void forget(struct addrinfo *info) {
  if (info != answers) freeaddrinfo(info);
}

/* Makes of an address the same one by another name. */
static void rename_host(int fd, const char *host, char address[64]) {
  char text[64];
  CHECK(conc_address(fd, text, sizeof text) > 0);
  snprintf(address, 64, "%s%s", host, strrchr(text, ':'));
}

static void *try_two(void *arg) {
  char address[64], other[64];
  int listener = conc_listen(NULL), fd, accepted;
  rename_host(listener, "two", address);
  fd = conc_connect(address, 10);
  CHECK(fd >= 0);
  accepted = conc_accept(listener, 10);
  CHECK(accepted >= 0);
  conc_close(accepted), conc_close(fd), conc_close(listener);
  CHECK_EQ(conc_connect(address, 10), -ECONNREFUSED); /* both */
  listener = conc_listen("two:0"); /* the first */
  if (listener == -EADDRNOTAVAIL) return arg; /* only Linux has it always */
  rename_host(listener, "127.0.0.2", other);
  CHECK(conc_address(listener, address, sizeof address) > 0);
  CHECK_STR(address, other);
  conc_close(listener);
  return arg;
}
TEST_BOTH(each_address_of_a_name_is_tried_in_turn, try_two)

static int connected;
static void *connect_slowly(void *address) {
  connected = conc_connect((char *)address, CONC_FOREVER);
  return NULL;
}
static void *while_it_is_looked_up(void *arg) {
  conc_task t = {0};
  char address[64];
  int listener = conc_listen(NULL);
  rename_host(listener, "slow", address);
  t.target = connect_slowly;
  t.arg = address;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_event_wait(&asked, CONC_FOREVER), 0); /* this one goes on */
  CHECK_EQ(conc_sleep(0.001), 0);
  CHECK(conc_is_alive(&t));
  CHECK_EQ(conc_event_set(&may_answer), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(connected >= 0);
  conc_close(connected), conc_close(listener);
  return arg;
}
TEST(a_name_is_looked_up_outside_of_the_loop) {
  run(while_it_is_looked_up, NULL);
}

static void *cancel_while_it_is_looked_up(void *arg) {
  conc_task t = {0};
  t.target = connect_slowly;
  t.arg = (void *)"slow:1";
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_event_wait(&asked, CONC_FOREVER), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(connected, -ECANCELED);
  return arg;
}
TEST(a_look_up_can_be_cancelled) {
  long before = test_blocks;
  run(cancel_while_it_is_looked_up, NULL);
  CHECK_EQ(conc_event_set(&may_answer), 0);
  while (__atomic_load_n(&test_blocks, __ATOMIC_ACQUIRE) > before)
    usleep(1000);
}

static void *no_addresses(void *arg) {
  static const char *const wrong[] = {
      "127.0.0.1",     "127.0.0.1:",     ":", "127.0.0.1:-1", "127.0.0.1: 1",
      "127.0.0.1:+80", "127.0.0.1:65536", "http", "[::1]"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    CHECK_EQ(conc_connect(wrong[i], 1), -EINVAL);
    CHECK_EQ(conc_listen(wrong[i]), -EINVAL);
    CHECK_EQ(conc_datagram_open(wrong[i]), -EINVAL);
  }
  return arg;
}
TEST_BOTH(what_is_no_address_is_refused, no_addresses)

static void *paths(void *arg) {
  enum { LONGEST = sizeof(((struct sockaddr_un *)0)->sun_path) - 1 };
  char path[LONGEST + 2], text[LONGEST + 2];
  int listener, fd, accepted;
  memset(path, 'x', sizeof path);
  CHECK(snprintf(path, sizeof path, "/tmp/conc-%d-", (int)getpid()) > 0);
  path[strlen(path)] = 'x';
  path[LONGEST] = 0;
  listener = conc_listen(path);
  CHECK(listener >= 0);
  CHECK_EQ(conc_address(listener, text, sizeof text), LONGEST);
  CHECK_STR(text, path);
  fd = conc_connect(path, 10);
  CHECK(fd >= 0);
  CHECK_EQ(conc_address(fd, text, sizeof text), 0); /* it has no name */
  accepted = conc_accept(listener, 10);
  CHECK(accepted >= 0);
  conc_close(accepted), conc_close(fd), conc_close(listener);
  unlink(path);
  path[LONGEST] = 'x'; /* one more is too many */
  path[LONGEST + 1] = 0;
  CHECK_EQ(conc_listen(path), -EINVAL);
  CHECK_EQ(conc_connect(path, 1), -EINVAL);
  CHECK_EQ(conc_datagram_open(path), -EINVAL);
  CHECK_EQ(conc_listen("/no/such/folder"), -ENOENT);
  CHECK_EQ(conc_connect("/no/such/folder", 1), -ENOENT);
  return arg;
}
TEST_BOTH(a_path_may_be_so_long_and_no_longer, paths)

/* A file that is no socket is left alone. */
static void *other_file(void *arg) {
  char path[] = "/tmp/conc-connect-XXXXXX";
  int fd = mkstemp(path);
  CHECK(fd >= 0);
  CHECK_EQ(conc_listen(path), -EADDRINUSE);
  CHECK_EQ(access(path, F_OK), 0);
  CHECK_EQ(conc_connect(path, 1), -ECONNREFUSED);
  close(fd);
  unlink(path);
  return arg;
}
TEST_BOTH(a_file_that_is_no_socket_is_left_alone, other_file)

static void *no_descriptors(void *arg) {
  struct rlimit before, few;
  char address[64];
  int listener = conc_listen(NULL), fd, accepted;
  CHECK(conc_address(listener, address, sizeof address) > 0);
  fd = conc_connect(address, 10);
  CHECK(fd >= 0);
  CHECK_EQ(conc_wait_fd(listener, CONC_READ, 10), CONC_READ);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  few = before;
  few.rlim_cur = 0; /* none, of those that are not open yet */
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  CHECK_EQ(conc_accept(listener, 10), -EMFILE);
  CHECK_EQ(conc_connect(address, 10), -EMFILE);
  CHECK_EQ(conc_listen(NULL), -EMFILE);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  accepted = conc_accept(listener, 10); /* it is still there */
  CHECK(accepted >= 0);
  conc_close(accepted), conc_close(fd), conc_close(listener);
  return arg;
}
TEST(without_descriptors_a_connection_stays_in_line) {
  if (test_wrapped("valgrind")) SKIP("Valgrind keeps the limit by itself");
  no_descriptors(NULL);
  run(no_descriptors, NULL);
}

/* macOS does not tell whether a socket listens. */
static bool tells_nothing;
static int ask_option(int fd, int level, int option, void *value,
                      socklen_t *size) {
  if (!tells_nothing || option != SO_ACCEPTCONN)
    return getsockopt(fd, level, option, value, size);
  errno = ENOPROTOOPT;
  return -1;
}

static int foreign; /* a socket that is not of conc_listen */
static void *accept_one(void *fd) {
  *(int *)fd = conc_accept(foreign, 0.1);
  return NULL;
}
static void *two_accept(void *arg) {
  conc_task t[2];
  int fds[2], client;
  char address[64];
  memset(t, 0, sizeof t);
  foreign = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(foreign >= 0);
  snprintf(address, sizeof address, "/tmp/conc-connect-%d", (int)getpid());
  {
    struct sockaddr_un a;
    memset(&a, 0, sizeof a);
    a.sun_family = AF_UNIX;
    strcpy(a.sun_path, address);
    CHECK_EQ(conc_accept(foreign, 10), -EINVAL); /* it does not listen yet */
    CHECK_EQ(bind(foreign, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_EQ(listen(foreign, 5), 0);
  }
  for (int i = 0; i < 2; i++) {
    t[i].target = accept_one;
    t[i].arg = &fds[i];
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  CHECK_EQ(conc_sleep(0.001), 0); /* both wait */
  client = conc_connect(address, 10);
  CHECK(client >= 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], 10), 0);
  CHECK((fds[0] >= 0) != (fds[1] >= 0));
  CHECK_EQ(fds[0] >= 0 ? fds[1] : fds[0], -ETIMEDOUT);
  conc_close(fds[0] >= 0 ? fds[0] : fds[1]);
  conc_close(client), conc_close(foreign);
  unlink(address);
  return arg;
}
TEST(of_two_who_accept_one_has_the_connection) {
  run(two_accept, NULL);
  tells_nothing = true;
  run(two_accept, NULL);
}

/* Which UndefinedBehaviorSanitizer looks at. */
static void *write_nothing(void *arg) {
  int fds[2];
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(conc_write(fds[1], NULL, 0, 10), 0);
  CHECK_EQ(conc_read_exactly(fds[0], NULL, 0, 10), 0);
  close(fds[0]), close(fds[1]);
  return arg;
}
TEST_BOTH(nothing_needs_no_buffer, write_nothing)

TEST_MAIN
