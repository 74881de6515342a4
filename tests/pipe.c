/* Message pipes: bounds, ends, descriptors, several writers, killed writers.
   What test._test_multiprocessing expects of Connection, and where it is:
     _TestConnection
     test_connection          a_child_echoes..., a_message_too_long_stays,
                              poll_tells... (in Python a message too long is
                              gone), values_travel_as_python_sends_them
     test_duplex_false        one_way...
     test_spawn_close         a_child_echoes... (closes right after the start)
     test_sendbytes           its offsets are pointer arithmetic in C
     test_fd_transfer         descriptors_are_passed
     test_large_fd_transfer   descriptors_are_passed (numbers above 256)
     test_missing_fd_transfer a_descriptor_and_a_message_are_told_apart
     test_context             C has no with statement for them
     _TestPoll
     test_empty_string        poll_tells...
     test_strings             strings_come_one_by_one
     test_boundaries          poll_takes_nothing_away
     test_dont_merge          strings_come_one_by_one */
#include "test.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>

/* Where `shaken`, others are let in between any two steps. */
static int shaken;
static void point(void) {
  if (shaken) sched_yield();
}
#define CONC__POINT() point()
#include "inside.h"
#include "tasks.h"

static void close2(int a, int b) {
  CHECK_EQ(conc_close(a), 0);
  CHECK_EQ(conc_close(b), 0);
}

static void *sizes(void *arg) {
  static const size_t lengths[] = {0,     1,     2,      1008,   1009,
                                   32767, 32768, 32769,  100000, 3000000};
  unsigned char *out = (unsigned char *)malloc(3000000);
  unsigned char *in = (unsigned char *)malloc(3000001);
  int a, b;
  for (int i = 0; i < 3000000; i++) out[i] = (unsigned char)test_random();
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK(fcntl(a, F_GETFD) & fcntl(b, F_GETFD) & FD_CLOEXEC);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    size_t n = lengths[i];
    CHECK_EQ(conc_send(a, out, n, 5), 0);
    CHECK_EQ(conc_send(b, out + 1, n > 0 ? n - 1 : 0, 5), 0); /* both ways */
    CHECK_EQ(conc_poll(b, 0), n);
    if (n > 0) CHECK_EQ(conc_recv(b, in, n - 1, 0), -EMSGSIZE);
    CHECK_EQ(conc_recv(b, in, i % 2 ? n : n + 1, 0), n);
    CHECK(memcmp(in, out, n) == 0);
    CHECK_EQ(conc_recv(b, in, n, 0), -ETIMEDOUT);
    CHECK_EQ(conc_recv(a, in, n, 0), n > 0 ? n - 1 : 0);
    CHECK(n == 0 || memcmp(in, out + 1, n - 1) == 0);
  }
  close2(a, b);
  free(out), free(in);
  return arg;
}
TEST_BOTH(messages_of_any_size_keep_their_bounds, sizes)

static void *too_long(void *arg) {
  char buf[8] = "";
  int a, b;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK_EQ(conc_send(a, "four", 4, 5), 0);
  CHECK_EQ(conc_send(a, "ab", 2, 5), 0);
  CHECK_EQ(conc_recv(b, buf, 3, 5), -EMSGSIZE);
  CHECK_EQ(conc_recv(b, NULL, 0, 5), -EMSGSIZE);
  CHECK_EQ(conc_recv(b, buf, 4, 5), 4);
  CHECK_STR(buf, "four");
  CHECK_EQ(conc_recv(b, buf, 4, 5), 2);
  close2(a, b);
  return arg;
}
TEST_BOTH(a_message_too_long_stays, too_long)

static void *poll_it(void *arg) {
  double before;
  int a, b;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK_EQ(conc_poll(a, 0), -ETIMEDOUT);
  CHECK_EQ(conc_poll(a, -1), -ETIMEDOUT);
  before = conc_now();
  CHECK_EQ(conc_poll(a, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - before > 0.04);
  CHECK_EQ(conc_send(b, "", 0, 5), 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_poll(a, 5), 0);
  CHECK_EQ(conc_wait_fd(a, CONC_READ, 5), CONC_READ);
  CHECK_EQ(conc_send(b, "abc", 3, 5), 0);
  CHECK_EQ(conc_recv(a, NULL, 0, 5), 0);
  CHECK_EQ(conc_poll(a, CONC_FOREVER), 3);
  CHECK_EQ(conc_close(b), 0);
  CHECK_EQ(conc_poll(a, 0), 3); /* it is still there */
  CHECK_EQ(conc_recv(a, &before, sizeof before, 0), 3);
  CHECK_EQ(conc_poll(a, 0), -EPIPE);
  CHECK_EQ(conc_recv(a, NULL, 0, 0), -EPIPE);
  CHECK_EQ(conc_send(a, "x", 1, 5), -EPIPE);
  CHECK_EQ(conc_close(a), 0);
  CHECK_EQ(conc_poll(-1, 0), -EBADF);
  CHECK_EQ(conc_send(-1, "x", 1, 0), -EBADF);
  return arg;
}
TEST_BOTH(poll_tells_a_message_or_the_end, poll_it)

static void *reset(void *arg) {
  char buf[4];
  int a, b;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK_EQ(conc_send(a, "not", 3, 5), 0);
  CHECK_EQ(conc_send(b, "yes", 3, 5), 0);
  CHECK_EQ(conc_close(b), 0); /* with a message that it never received */
  CHECK_EQ(conc_recv(a, buf, 4, 5), 3);
  CHECK(memcmp(buf, "yes", 3) == 0);
  CHECK_EQ(conc_recv(a, buf, 4, 5), -EPIPE);
  CHECK_EQ(conc_close(a), 0);
  return arg;
}
TEST_BOTH(what_was_sent_comes_though_the_sender_did_not_receive_all, reset)

static void *one_way(void *arg) {
  char c;
  int r, w;
  CHECK_EQ(conc_pipe_one_way(&r, &w), 0);
  CHECK_EQ(conc_send(w, "1", 1, 5), 0);
  CHECK_EQ(conc_recv(r, &c, 1, 5), 1);
  CHECK_EQ(conc_send(r, "2", 1, 5), -EPIPE);
  CHECK_EQ(conc_recv(w, &c, 1, 5), -EPIPE);
  CHECK_EQ(conc_poll(w, 5), -EPIPE);
  CHECK_EQ(conc_recv(r, &c, 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_close(w), 0);
  CHECK_EQ(conc_recv(r, &c, 1, 5), -EPIPE);
  CHECK_EQ(conc_close(r), 0);
  CHECK_EQ(conc_pipe_one_way(&r, &w), 0);
  CHECK_EQ(conc_close(r), 0);
  CHECK_EQ(conc_send(w, "1", 1, 5), -EPIPE);
  CHECK_EQ(conc_close(w), 0);
  return arg;
}
TEST_BOTH(one_way_goes_one_way, one_way)

/* A full pipe: the sender waits, whether the messages are short or long. */
static void *full(void *arg) {
  static char data[40000];
  int a, b;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  for (size_t size = 0; size <= 40000; size += 20000) {
    int n = 0;
    while (conc_send(a, data, size, 0) == 0) n++;
    CHECK(n > 1);
    CHECK(size < 40000 || n < 30); /* not without limit */
    CHECK_EQ(conc_send(a, data, size, 0.01), -ETIMEDOUT);
    for (; n > 0; n--) CHECK_EQ(conc_recv(b, data, size, 5), size);
    CHECK_EQ(conc_poll(b, 0), -ETIMEDOUT);
    CHECK_EQ(conc_send(a, data, size, 5), 0);
    CHECK_EQ(conc_recv(b, data, size, 5), size);
  }
  close2(a, b);
  return arg;
}
TEST_BOTH(a_sender_waits_while_the_pipe_is_full, full)

static void *recv_one(void *arg) {
  char c;
  return (void *)(intptr_t)conc_recv(*(int *)arg, &c, 1, CONC_FOREVER);
}
static void *cancel_it(void *arg) {
  conc_task t;
  char c;
  int a, b;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  for (int i = 0; i < 50; i++) {
    start(arg ? conc_coro_start : conc_thread_start, &t, recv_one, &b);
    for (int j = 0; j < i % 5; j++) conc_yield_now();
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, 20), -ECANCELED);
    CHECK_EQ(conc_send(a, "x", 1, 5), 0); /* it took nothing with it */
    CHECK_EQ(conc_recv(b, &c, 1, 5), 1);
  }
  close2(a, b);
  return NULL;
}
TEST(a_receiver_can_be_cancelled) {
  cancel_it(NULL);
  run(cancel_it, (void *)1);
}

/* --- processes --- */

static int ends[2];
static void *echo(void *arg) {
  char *buf = (char *)malloc(1 << 24);
  (void)arg;
  conc_close(ends[0]);
  for (;;) {
    ssize_t n = conc_recv(ends[1], buf, 1 << 24, CONC_FOREVER);
    if (n < 0) break;
    CHECK_EQ(conc_send(ends[1], buf, (size_t)n, CONC_FOREVER), 0);
  }
  free(buf);
  conc_close(ends[1]);
  return NULL;
}
static void *with_child(void *arg) {
  conc_task p;
  char *big = (char *)malloc(1 << 24), *back = (char *)malloc(1 << 24);
  CHECK_EQ(conc_pipe(&ends[0], &ends[1]), 0);
  start(conc_process_start, &p, echo, NULL);
  CHECK_EQ(conc_close(ends[1]), 0);
  for (int i = 0; i < 100; i++) {
    CHECK_EQ(conc_send(ends[0], "hello", (size_t)(i % 6), 5), 0);
    CHECK_EQ(conc_recv(ends[0], back, 5, 20), i % 6);
    CHECK(memcmp(back, "hello", (size_t)(i % 6)) == 0);
  }
  memset(big, 'X', 1 << 24);
  CHECK_EQ(conc_send(ends[0], big, 1 << 24, 20), 0);
  CHECK_EQ(conc_recv(ends[0], back, 1 << 24, 20), 1 << 24);
  CHECK(memcmp(big, back, 1 << 24) == 0);
  CHECK_EQ(shutdown(ends[0], SHUT_WR), 0); /* tells the child to end */
  CHECK_EQ(conc_recv(ends[0], back, 5, 20), -EPIPE);
  CHECK_EQ(conc_join(&p, 20), 0);
  CHECK_EQ(conc_exitcode(&p), 0);
  CHECK_EQ(conc_close(ends[0]), 0);
  free(big), free(back);
  return arg;
}
TEST_BOTH(a_child_echoes_what_it_is_sent, with_child)

static const char *const strings[] = {"hello", "", "a", "b", "", "bye", "",
                                      "lop"};
static void *send_strings(void *arg) {
  conc_close(ends[0]);
  for (int i = 0; i < 8; i++)
    CHECK_EQ(conc_send(ends[1], strings[i], strlen(strings[i]), 5), 0);
  return arg;
}
static void *receive_strings(void *arg) {
  conc_task p;
  CHECK_EQ(conc_pipe(&ends[0], &ends[1]), 0);
  CHECK_EQ(conc_poll(ends[0], 0.01), -ETIMEDOUT);
  start(conc_process_start, &p, send_strings, NULL);
  CHECK_EQ(conc_close(ends[1]), 0);
  for (int i = 0; i < 8; i++) {
    char buf[8] = "";
    CHECK_EQ(conc_poll(ends[0], 20), strlen(strings[i]));
    CHECK_EQ(conc_poll(ends[0], 0), strlen(strings[i]));
    CHECK_EQ(conc_recv(ends[0], buf, 8, 0), strlen(strings[i]));
    CHECK_STR(buf, strings[i]);
  }
  CHECK_EQ(conc_recv(ends[0], NULL, 0, 20), -EPIPE);
  CHECK_EQ(conc_join(&p, 20), 0);
  CHECK_EQ(conc_close(ends[0]), 0);
  return arg;
}
TEST_BOTH(strings_come_one_by_one, receive_strings)

static void *poll_only(void *arg) {
  CHECK_EQ(conc_poll(ends[0], 20), 5);
  return arg;
}
TEST(poll_takes_nothing_away) {
  conc_task p;
  char buf[8] = "";
  CHECK_EQ(conc_pipe_one_way(&ends[0], &ends[1]), 0);
  start(conc_process_start, &p, poll_only, NULL);
  CHECK_EQ(conc_send(ends[1], "first", 5, 5), 0);
  CHECK_EQ(conc_send(ends[1], "second", 6, 5), 0);
  CHECK_EQ(conc_join(&p, 20), 0);
  CHECK_EQ(conc_exitcode(&p), 0);
  CHECK_EQ(conc_recv(ends[0], buf, 8, 0), 5);
  CHECK_STR(buf, "first");
  close2(ends[0], ends[1]);
}

TEST(values_travel_as_python_sends_them) {
  conc_value *out = NULL, *in = NULL;
  int a, b;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK_EQ(conc_build(&out, "(ids)", 1, 2.25, "hello"), 0);
  CHECK_EQ(conc_pipe_send_value(a, out, 5), 0);
  CHECK_EQ(conc_pipe_recv_value(b, &in, 5), 0);
  CHECK(conc_value_equal(in, out));
  conc_value_free(in);
  CHECK_EQ(conc_pipe_recv_value(b, &in, 0), -ETIMEDOUT);
  CHECK(in == NULL);
  CHECK_EQ(conc_send(a, "what", 4, 5), 0); /* no value */
  CHECK(conc_pipe_recv_value(b, &in, 5) < 0);
  CHECK_EQ(conc_poll(b, 0), -ETIMEDOUT);
  conc_value_free(out);
  close2(a, b);
}

/* --- descriptors --- */

static void *open_there(void *arg) {
  int fd = conc_recv_fd(ends[1], 20);
  CHECK(fd >= 0);
  CHECK_EQ(conc_write(fd, "foo", 3, 5), 3);
  return arg;
}
static void *pass(void *arg) {
  char name[] = "/tmp/conc-pipe-XXXXXX", buf[8] = "";
  int fd = mkstemp(name), high;
  conc_task p;
  CHECK(fd >= 0);
  unlink(name);
  high = fcntl(fd, F_DUPFD_CLOEXEC, 300);
  CHECK(high >= 300);
  CHECK_EQ(conc_pipe(&ends[0], &ends[1]), 0);
  start(conc_process_start, &p, open_there, NULL);
  CHECK_EQ(conc_send_fd(ends[0], high, 5), 0);
  CHECK_EQ(conc_join(&p, 20), 0);
  CHECK_EQ(conc_exitcode(&p), 0);
  CHECK_EQ(pread(fd, buf, 8, 0), 3);
  CHECK_STR(buf, "foo");
  CHECK_EQ(close(high), 0);
  CHECK_EQ(close(fd), 0);
  close2(ends[0], ends[1]);
  return arg;
}
TEST_BOTH(descriptors_are_passed, pass)

TEST(a_descriptor_and_a_message_are_told_apart) {
  struct stat one, two;
  char c;
  int a, b, fd;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK_EQ(conc_send_fd(a, -1, 5), -EBADF);
  CHECK_EQ(conc_send_fd(a, 999, 5), -EBADF);
  CHECK_EQ(conc_poll(b, 0), -ETIMEDOUT);
  CHECK_EQ(conc_send(a, "x", 1, 5), 0);
  CHECK_EQ(conc_send_fd(a, 1, 5), 0);
  CHECK_EQ(conc_recv_fd(b, 5), -EBADMSG);
  CHECK_EQ(conc_recv(b, &c, 1, 5), 1);
  CHECK_EQ(conc_poll(b, 5), 0);
  CHECK_EQ(conc_recv(b, &c, 1, 5), -EBADMSG);
  fd = conc_recv_fd(b, 5);
  CHECK(fd > 2 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
  CHECK(fstat(1, &one) == 0 && fstat(fd, &two) == 0);
  CHECK(one.st_ino == two.st_ino && one.st_dev == two.st_dev);
  close(fd);
  CHECK_EQ(send(a, "nonsense", 8, 0), 8); /* somebody else writes */
  CHECK_EQ(conc_recv(b, &c, 1, 5), -EPROTO);
  CHECK_EQ(conc_recv(b, &c, 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_send_fd(a, 1, 5), 0); /* and what nobody takes is closed */
  close2(a, b);
}

/* --- what a stranger sends --- */

/* A packet with that head, `inside` bytes and n copies of a descriptor. In a
   stream all packets have the same size. */
static void forge(int pipe, uint64_t size, uint32_t kind, size_t inside,
                  int fd, int n) {
  static union {
    struct cmsghdr head;
    char space[2048];
  } control;
  static char bytes[40000];
  conc__packet head;
  struct iovec parts[2];
  struct msghdr m;
  memset(&m, 0, sizeof m);
  memset(&control, 0, sizeof control);
  head.size = size;
  head.kind = kind;
  head.magic = CONC__PACKET_MAGIC;
  parts[0].iov_base = &head;
  parts[0].iov_len = sizeof head;
  parts[1].iov_base = bytes;
  if (!CONC_HAVE_SEQPACKET) inside = CONC__PACKET_DATA;
  parts[1].iov_len = inside;
  m.msg_iov = parts;
  m.msg_iovlen = 2;
  if (n > 0) {
    m.msg_control = &control;
    m.msg_controllen = CMSG_SPACE((size_t)n * sizeof fd);
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN((size_t)n * sizeof fd);
    for (int i = 0; i < n; i++)
      memcpy(CMSG_DATA(&control.head) + (size_t)i * sizeof fd, &fd, sizeof fd);
  }
  CHECK_EQ(sendmsg(pipe, &m, 0), sizeof head + inside);
}
static int count_open(void) {
  int n = 0;
  for (int fd = 0; fd < 2000; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

/* Each of them would stay open for ever: nobody knows its number. */
TEST(descriptors_that_nobody_asked_for_are_closed) {
  static const int counts[] = {1, 2, 3, 4, 100, 253};
  static char out[100000];
  conc_value *v;
  int a, b, before;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  before = count_open();
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
    int n = counts[i], fd;
    forge(a, 5, CONC__PACKET_MESSAGE, 5, 1, n);
    CHECK_EQ(conc_poll(b, 0), 5);
    CHECK_EQ(conc_recv(b, out, 4, 0), -EMSGSIZE);
    CHECK_EQ(conc_recv_fd(b, 0), -EBADMSG);
    CHECK_EQ(conc_recv(b, out, 5, 0), 5);
    forge(a, 100000, CONC__PACKET_MESSAGE, CONC__PACKET_DATA, 1, n);
    CHECK_EQ(conc_recv(b, out, sizeof out, 0), -EPROTO);
    forge(a, 0, CONC__PACKET_DESCRIPTOR, 0, 1, n);
    CHECK_EQ(conc_recv(b, out, sizeof out, 0), -EBADMSG);
    fd = conc_recv_fd(b, 0);
    CHECK(fd >= 0 && close(fd) == 0);
    if (CONC_HAVE_SEQPACKET) { /* in a stream there is something behind all */
      forge(a, 0, CONC__PACKET_DESCRIPTOR, 7, 1, n);
      CHECK_EQ(conc_recv_fd(b, 0), -EPROTO);
    }
    forge(a, 1, CONC__PACKET_MESSAGE, 1, 1, n);
    CHECK(conc_pipe_recv_value(b, &v, 0) < 0);
    CHECK_EQ(conc_recv(b, out, 1, 0), -ETIMEDOUT);
    CHECK_EQ(count_open(), before);
  }
  close2(a, b);
}

/* A head that speaks of more than there is ends in an error at once, and does
   not stand in the way of what comes after it. */
TEST(a_message_that_is_not_there_is_refused) {
  static char out[100000];
  conc_value *v;
  int a, b, ends_of[2], file;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK(pipe(ends_of) == 0);
  file = conc__file_open();
  CHECK(file >= 0 && ftruncate(file, 1000) == 0);
  /* Elsewhere a file cannot be asked before its packet is taken, so what is
     too long for the reader stays. */
  const uint64_t endless = CONC__PACKET_SHOWN ? (uint64_t)1 << 60 : 35000;
  for (int i = 0; i < 9; i++) {
    uint64_t size = i % 3 == 0 ? endless : i % 3 == 1 ? 34000 : 70000;
    if (i / 3 == 0) forge(a, size, CONC__PACKET_MESSAGE, 10, -1, 0);
    if (i / 3 == 1) forge(a, size, CONC__PACKET_MESSAGE, 10, ends_of[0], 1);
    if (i / 3 == 2)
      forge(a, size, CONC__PACKET_MESSAGE, CONC__PACKET_DATA, file, 1);
    CHECK_EQ(conc_send(a, "next", 4, 0), 0);
    if (i == 7) { /* 1,232 bytes were to be in the file */
      CHECK_EQ(conc_recv(b, out, sizeof out, 0), -EPROTO);
    } else if (i % 2) {
      CHECK_EQ(conc_pipe_recv_value(b, &v, 0), -EPROTO);
    } else {
      CHECK_EQ(conc_recv(b, out, sizeof out, 0), -EPROTO);
    }
    CHECK_EQ(conc_recv(b, out, 4, 0), 4);
  }
  if (CONC_HAVE_SEQPACKET) {
    forge(a, 5, CONC__PACKET_MESSAGE, 6, -1, 0); /* more than it says */
    CHECK_EQ(conc_recv(b, out, sizeof out, 0), -EPROTO);
  }
  forge(a, 5, 77, 5, -1, 0); /* of no kind */
  CHECK_EQ(conc_recv_fd(b, 0), -EPROTO);
  forge(a, 5, CONC__PACKET_DESCRIPTOR, 0, 1, 1);
  CHECK_EQ(conc_recv_fd(b, 0), -EPROTO);
  CHECK_EQ(conc_recv(b, out, 4, 0), -ETIMEDOUT);
  close2(ends_of[0], ends_of[1]);
  close(file);
  close2(a, b);
}

TEST(without_a_free_descriptor_a_message_stays) {
  static char large[40000];
  struct rlimit old, low;
  int a, b, fd;
  CHECK_EQ(conc_pipe(&a, &b), 0);
  CHECK_EQ(conc_send_fd(a, 1, 5), 0);
  CHECK_EQ(conc_send(a, large, sizeof large, 5), 0);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  low = old;
  low.rlim_cur = (rlim_t)(a > b ? a : b) + 1;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  CHECK_EQ(conc_recv_fd(b, 5), -EMFILE);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  fd = conc_recv_fd(b, 5);
  CHECK(fd >= 0);
  close(fd);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  CHECK_EQ(conc_recv(b, large, sizeof large, 5), -EMFILE);
  CHECK_EQ(conc_send(a, large, sizeof large, 5), -EMFILE);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  CHECK_EQ(conc_recv(b, large, sizeof large, 5), sizeof large);
  CHECK_EQ(conc_poll(b, 0), -ETIMEDOUT);
  close2(a, b);
}

/* --- many writers, readers, and kills --- */

enum { MOST = 50000 };
typedef struct message {
  unsigned who, number, size, check;
  unsigned char data[MOST];
} message;

static unsigned check_of(const message *m) {
  unsigned sum = m->who * 31 + m->number * 17 + m->size;
  for (unsigned i = 0; i < m->size; i++) sum = sum * 33 + m->data[i];
  return sum;
}
static void make(message *m, unsigned who, unsigned number, unsigned seed) {
  m->who = who;
  m->number = number;
  seed = seed * 2654435761u + number * 40503u;
  m->size = seed >> 16;
  m->size %= (seed & 15) == 0 ? MOST : 60; /* few are long */
  memset(m->data, (int)(seed >> 8 & 255), m->size);
  m->check = check_of(m);
}
static int send_message(int fd, const message *m) {
  return conc_send(fd, m, offsetof(message, data) + m->size, CONC_FOREVER);
}
/* Receives one: its size, or the error; it must be whole. */
static ssize_t recv_message(int fd, message *m, double timeout) {
  ssize_t n = conc_recv(fd, m, sizeof *m, timeout);
  if (n < 0) return n;
  CHECK_EQ(n, offsetof(message, data) + m->size);
  CHECK_EQ(m->check, check_of(m));
  return n;
}

enum { WRITERS = 4, MESSAGES = CONC_HAVE_TSAN || CONC_HAVE_ASAN ? 500 : 3000 };
static unsigned last[1 << 16], seen[1 << 16];
static void *write_some(void *arg) {
  message *m = (message *)malloc(sizeof *m);
  for (unsigned i = 1; i <= MESSAGES; i++) {
    make(m, (unsigned)(uintptr_t)arg, i, 1);
    CHECK_EQ(send_message(ends[1], m), 0);
  }
  free(m);
  return NULL;
}
static void *write_from_loop(void *arg) {
  conc_task t;
  start(conc_coro_start, &t, write_some, arg);
  write_some((char *)arg + 1);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  return NULL;
}
static void *write_two(void *arg) {
  run(write_from_loop, arg);
  return NULL;
}
static conc_lock count_guard;
static void *read_some(void *arg) {
  message *m = (message *)malloc(sizeof *m);
  while (recv_message(ends[0], m, 25) >= 0)
    CONC_WITH(&count_guard) seen[m->who]++;
  free(m);
  return arg;
}
TEST(many_writers_and_readers_mix_nothing) {
  conc_task p[2], r[2];
  CHECK_EQ(conc_pipe_one_way(&ends[0], &ends[1]), 0);
  start(conc_process_start, &p[0], write_some, NULL);
  start(conc_process_start, &p[1], write_two, (void *)1);
  for (int i = 0; i < 2; i++) start(conc_thread_start, &r[i], read_some, NULL);
  write_some((void *)3);
  CHECK_EQ(conc_close(ends[1]), 0); /* the end comes when all have ended */
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&p[i], 25), 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_exitcode(&p[i]), 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&r[i], 25), 0);
  for (int i = 0; i < WRITERS; i++) CHECK_EQ(seen[i], MESSAGES);
  CHECK_EQ(conc_close(ends[0]), 0);
}

/* Two threads receive values of very different sizes at one end: a value that
   comes in place of one that was looked at is larger than that, often. */
static unsigned values;
static void *read_values(void *arg) {
  conc_value *v;
  int rc;
  while ((rc = conc_pipe_recv_value(ends[0], &v, 25)) == 0) {
    size_t size = 0;
    const char *text = conc_value_str(v, &size);
    for (size_t i = 1; i < size; i++) CHECK_EQ(text[i], text[0]);
    conc_value_free(v);
    __atomic_fetch_add(&values, 1, __ATOMIC_RELAXED);
  }
  CHECK_EQ(rc, -EPIPE);
  return arg;
}
TEST(several_receivers_of_values_lose_none) {
  enum { LONG = 40000 };
  static char text[LONG];
  conc_task r[2];
  CHECK_EQ(conc_pipe_one_way(&ends[0], &ends[1]), 0);
  memset(text, 'x', sizeof text);
  shaken = 1;
  for (int i = 0; i < 2; i++)
    start(conc_thread_start, &r[i], read_values, NULL);
  for (unsigned i = 0; i < MESSAGES; i++) {
    conc_value *v = NULL;
    size_t size = i % 100 == 99 ? LONG : i % 3 == 2 ? 2000 : 5;
    CHECK_EQ(conc_build(&v, "s#", text, size), 0);
    CHECK_EQ(conc_pipe_send_value(ends[1], v, 25), 0);
    conc_value_free(v);
  }
  CHECK_EQ(conc_close(ends[1]), 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&r[i], 25), 0);
  CHECK_EQ(values, MESSAGES);
  CHECK_EQ(conc_close(ends[0]), 0);
}

/* Writers are killed at random instants, others go on. Each counts what it
   has sent in memory that we see; that, and at most one message more, which
   it did not live to count, must come, whole and in order. */
TEST(killed_writers_leave_whole_messages) {
  enum { ALIVE = 2 };
  unsigned kills = (unsigned)test_asked(
      "PIPE_KILLS",
      CONC_HAVE_TSAN || CONC_HAVE_ASAN || test_slow() > 1 ? 300 : 4000);
  size_t size = (kills + ALIVE) * sizeof(unsigned);
  unsigned *sent = (unsigned *)mmap(NULL, size, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  message *m = (message *)malloc(sizeof *m);
  unsigned started = 0, killed = 0, whom[ALIVE], long_ones = 0;
  double begin = conc_now();
  pid_t pid[ALIVE] = {0};
  int r, w;
  CHECK(sent != MAP_FAILED && kills < 60000);
  CHECK_EQ(conc_pipe_one_way(&r, &w), 0);
  while (killed < kills && conc_now() - begin < 15 * test_slow()) {
    int k = (int)(test_random() % ALIVE);
    double until;
    for (int i = 0; i < ALIVE; i++)
      if (pid[i] == 0) {
        whom[i] = started++;
        pid[i] = fork();
        CHECK(pid[i] >= 0);
        if (pid[i] == 0) {
          unsigned who = whom[i];
          for (unsigned n = 1;; n++) {
            make(m, who, n, who);
            if (send_message(w, m) != 0) _exit(1);
            __atomic_store_n(&sent[who], n, __ATOMIC_RELAXED);
          }
        }
      }
    until = conc_now() + test_random() % 1000 * 1e-6;
    do {
      ssize_t n = recv_message(r, m, 0);
      CHECK(n > 0 || n == -ETIMEDOUT);
      if (n < 0) continue;
      CHECK_EQ(m->number, last[m->who] + 1);
      last[m->who]++;
      long_ones += m->size > CONC__PACKET_DATA;
    } while (conc_now() < until);
    kill(pid[k], SIGKILL);
    CHECK_EQ(waitpid(pid[k], NULL, 0), pid[k]);
    pid[k] = 0;
    killed++;
  }
  for (int i = 0; i < ALIVE; i++)
    if (pid[i] != 0) {
      kill(pid[i], SIGKILL);
      CHECK_EQ(waitpid(pid[i], NULL, 0), pid[i]);
    }
  CHECK_EQ(conc_close(w), 0);
  for (;;) {
    ssize_t n = recv_message(r, m, 20);
    if (n == -EPIPE) break;
    CHECK(n > 0);
    CHECK_EQ(m->number, last[m->who] + 1);
    last[m->who]++;
  }
  for (unsigned i = 0; i < started; i++)
    if (last[i] != sent[i]) CHECK_EQ(last[i], sent[i] + 1);
  CHECK(killed < 100 || long_ones > 0);
  CHECK_EQ(conc_close(r), 0);
  munmap(sent, size);
  free(m);
}

/* And killed readers: what they had not received, the next one receives. */
TEST(killed_readers_lose_at_most_what_they_had_received) {
  int kills = CONC_HAVE_TSAN || CONC_HAVE_ASAN || test_slow() > 1 ? 50 : 500;
  unsigned *got = (unsigned *)mmap(NULL, sizeof *got, PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  message *m = (message *)malloc(sizeof *m);
  unsigned number = 0;
  int r, w;
  CHECK_EQ(conc_pipe_one_way(&r, &w), 0);
  for (int i = 0; i < kills; i++) {
    double until = conc_now() + test_random() % 2000 * 1e-6;
    pid_t pid = fork();
    if (pid == 0) {
      unsigned most = (unsigned)i; /* each died with at most one uncounted */
      for (unsigned before = *got;; most = 0) {
        if (recv_message(r, m, CONC_FOREVER) < 0) _exit(1);
        if (m->number <= before || m->number > before + 1 + most) _exit(2);
        before = m->number;
        __atomic_store_n(got, before, __ATOMIC_RELAXED);
      }
    }
    while (conc_now() < until) {
      int rc;
      make(m, 0, number + 1, 9);
      rc = conc_send(w, m, offsetof(message, data) + m->size, 0.001);
      CHECK(rc == 0 || rc == -ETIMEDOUT);
      number += rc == 0;
    }
    kill(pid, SIGKILL);
    {
      int status;
      CHECK_EQ(waitpid(pid, &status, 0), pid);
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
  }
  while (recv_message(r, m, 0) > 0) CHECK_EQ(m->number > *got, 1);
  close2(r, w);
  munmap(got, sizeof *got);
  free(m);
}

TEST_MAIN
