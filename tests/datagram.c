/* Datagrams: UDP and unix, from threads and coroutines; addresses. */
#include "inside.h"
#include "tasks.h"

/* Two sockets, what one sends the other gets, and can answer. */
static void talk(int a, int b) {
  char at_a[128], at_b[128], from[128], buf[100];
  CHECK(conc_address(a, at_a, sizeof at_a) > 0);
  CHECK(conc_address(b, at_b, sizeof at_b) > 0);
  CHECK_EQ(conc_datagram_receive(b, buf, 100, NULL, 0, 0), -ETIMEDOUT);
  CHECK_EQ(conc_datagram_send(a, "one", 3, at_b, 5), 0);
  CHECK_EQ(conc_datagram_send(a, "", 0, at_b, 5), 0);
  CHECK_EQ(conc_datagram_send(a, "three", 5, at_b, 5), 0);
  CHECK_EQ(conc_datagram_receive(b, buf, 100, from, sizeof from, 5), 3);
  CHECK(memcmp(buf, "one", 3) == 0);
  CHECK_STR(from, at_a);
  CHECK_EQ(conc_datagram_receive(b, buf, 100, from, 3, 5), 0);
  CHECK_STR(from, ""); /* it did not fit */
  CHECK_EQ(conc_datagram_receive(b, buf, 100, NULL, 0, 5), 5);
  CHECK_EQ(conc_datagram_send(b, "answer", 6, at_a, 5), 0);
  CHECK_EQ(conc_datagram_receive(a, buf, 3, NULL, 0, 5), -EMSGSIZE);
  CHECK_EQ(conc_datagram_receive(a, buf, 3, NULL, 0, 0), -ETIMEDOUT);
}

static void *udp(void *arg) {
  static char large[70000];
  char text[128], host[128];
  int a = conc_datagram_open(NULL), b = conc_datagram_open("127.0.0.1:0");
  int any = conc_datagram_open(":0");
  CHECK(a >= 0 && b >= 0 && any >= 0);
  CHECK(fcntl(a, F_GETFD) & FD_CLOEXEC);
  CHECK_EQ(conc_address(any, text, 4), conc_address(a, host, 128) - 2);
  CHECK_STR(text, "0.0");
  talk(a, b);
  talk(b, a);
  talk(a, a); /* and with itself */
  /* A name is resolved, and the port alone is enough. */
  CHECK(conc_address(b, text, sizeof text) > 0);
  snprintf(host, sizeof host, "localhost%s", strchr(text, ':'));
  CHECK_EQ(conc_datagram_send(any, "x", 1, host, 10), 0);
  CHECK_EQ(conc_datagram_receive(b, host, 100, NULL, 0, 5), 1);
  CHECK_EQ(conc_datagram_send(any, "x", 1, strchr(text, ':') + 1, 10), 0);
  CHECK_EQ(conc_datagram_receive(b, host, 100, NULL, 0, 5), 1);
  CHECK_EQ(conc_datagram_open(text), -EADDRINUSE);
  CHECK_EQ(conc_datagram_open("nonsense"), -EINVAL);
  CHECK_EQ(conc_datagram_send(a, "x", 1, "nonsense", 5), -EINVAL);
  CHECK_EQ(conc_datagram_send(a, large, sizeof large, text, 5),
           -EMSGSIZE);
  CHECK_EQ(conc_datagram_send(-1, "x", 1, text, 5), -EBADF);
  CHECK_EQ(conc_datagram_receive(-1, host, 1, NULL, 0, 5), -EBADF);
  CHECK_EQ(conc_address(-1, text, sizeof text), -EBADF);
  CHECK_STR(text, "");
  CHECK_EQ(conc_close(a), 0);
  CHECK_EQ(conc_close(b), 0);
  CHECK_EQ(conc_close(any), 0);
  a = conc_datagram_open("[::1]:0");
  if (a >= 0) { /* the machine may have no IPv6 */
    b = conc_datagram_open("[::1]:0");
    talk(a, b);
    conc_close(a), conc_close(b);
  }
  return arg;
}
TEST_BOTH(udp_datagrams_keep_their_bounds_and_tell_who_sent_them, udp)

static void *unix_sockets(void *arg) {
  char directory[] = "/tmp/conc-datagram-XXXXXX", one[64], two[64];
  int a, b, n = 0;
  CHECK(mkdtemp(directory) != NULL);
  snprintf(one, sizeof one, "%s/one", directory);
  snprintf(two, sizeof two, "%s/two", directory);
  a = conc_datagram_open(one), b = conc_datagram_open(two);
  CHECK(a >= 0 && b >= 0);
  talk(a, b);
  talk(b, a);
  CHECK_EQ(conc_datagram_open(two), -EADDRINUSE); /* somebody is there */
  /* A full queue: the sender waits, and goes on when there is room. */
  while (conc_datagram_send(a, "x", 1, two, 0) == 0) n++;
  CHECK(n > 0);
  CHECK_EQ(conc_datagram_send(a, "x", 1, two, 0.01), -ETIMEDOUT);
  for (char c; n > 0; n--)
    CHECK_EQ(conc_datagram_receive(b, &c, 1, NULL, 0, 0), 1);
  CHECK_EQ(conc_datagram_send(a, "x", 1, two, 5), 0);
  conc_close(b);
  CHECK_EQ(conc_datagram_send(a, "x", 1, two, 5), -ECONNREFUSED);
  b = conc_datagram_open(two); /* a stale file is replaced */
  CHECK(b >= 0);
  talk(a, b);
  conc_close(a), conc_close(b);
  CHECK_EQ(unlink(one), 0);
  CHECK_EQ(unlink(two), 0);
  CHECK_EQ(rmdir(directory), 0);
  return arg;
}
TEST_BOTH(unix_datagrams_wait_for_room, unix_sockets)

/* A server that answers, and clients, all coroutines of one loop. */
enum { CLIENTS = 20, ROUNDS = 50 };
static char server_at[64];
static void *serve(void *arg) {
  int fd = *(int *)arg;
  for (;;) {
    char buf[64], from[64];
    ssize_t n = conc_datagram_receive(fd, buf, 64, from, 64, CONC_FOREVER);
    if (n == -ECANCELED) return NULL;
    CHECK(n > 0);
    CHECK_EQ(conc_datagram_send(fd, buf, (size_t)n, from, 5), 0);
  }
}
static void *ask(void *arg) {
  int fd = conc_datagram_open(NULL);
  CHECK(fd >= 0);
  for (int i = 0; i < ROUNDS; i++) {
    int sent[2], got[2];
    sent[0] = (int)(intptr_t)arg;
    sent[1] = i;
    CHECK_EQ(conc_datagram_send(fd, sent, sizeof sent, server_at, 5), 0);
    CHECK_EQ(conc_datagram_receive(fd, got, sizeof got, NULL, 0, 20),
             sizeof got);
    CHECK(memcmp(sent, got, sizeof got) == 0);
  }
  CHECK_EQ(conc_close(fd), 0);
  return NULL;
}
static void *many(void *arg) {
  conc_task server = {0}, t[CLIENTS];
  int fd = conc_datagram_open(NULL);
  CHECK(conc_address(fd, server_at, sizeof server_at) > 0);
  server.target = serve;
  server.arg = &fd;
  CHECK_EQ(conc_coro_start(&server), 0);
  memset(t, 0, sizeof t);
  for (intptr_t i = 0; i < CLIENTS; i++) {
    t[i].target = ask;
    t[i].arg = (void *)i;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (int i = 0; i < CLIENTS; i++) CHECK_EQ(conc_join(&t[i], 25), 0);
  CHECK_EQ(conc_cancel(&server), 0);
  CHECK_EQ(conc_join(&server, 5), -ECANCELED);
  CHECK_EQ(conc_close(fd), 0);
  return arg;
}
TEST(a_server_answers_many_clients_in_one_loop) { run(many, NULL); }

TEST_MAIN
