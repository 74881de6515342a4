/* Reading exactly, buffered streams, from threads and from coroutines. What
   asyncio's test_streams expects of StreamReader and StreamWriter is here
   under:
     test_read, _eof, _zero_size               reads_what_is_there...
     test_readexactly, _eof, _zero_or_less     exactly...
     test_readline, _line_byte_by_byte, _nolimit, _eof, _empty_eof,
     _read_byte_count                          lines_...
     test_readuntil_multi_chunk, _multi_chunk_1, _eof, _separator,
     _multi_separator_negative_offset          a_separator_...
     test_readline_limit, _limit_with_existing_data, test_readuntil_limit_
     found_sep                                 a_line_that_is_too_long...
     test_exception_cancel                     a_read_that_fails...
     test_drain_raises                         after_the_peer... */
#include "inside.h"
#include "tasks.h"

static void pair(int fds[2]) {
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
}
static void say(int fd, const char *text) {
  CHECK_EQ(conc_write(fd, text, strlen(text), 5), strlen(text));
}

static void *exactly(void *arg) {
  char buf[16];
  int fds[2];
  for (int kind = 0; kind < 2; kind++) { /* sockets, pipes */
    if (kind == 0) pair(fds);
    else CHECK_EQ(pipe(fds), 0);
    say(fds[1], "abcdefgh");
    CHECK_EQ(conc_read_exactly(fds[0], buf, 3, 5), 3);
    CHECK(memcmp(buf, "abc", 3) == 0);
    CHECK_EQ(conc_read_exactly(fds[0], buf, 0, 0), 0);
    CHECK_EQ(conc_read_exactly(fds[0], buf, 5, 5), 5);
    CHECK(memcmp(buf, "defgh", 5) == 0);
    CHECK_EQ(conc_read_exactly(fds[0], buf, 1, 0), -ETIMEDOUT);
    say(fds[1], "xy");
    close(fds[1]);
    CHECK_EQ(conc_read_exactly(fds[0], buf, 3, 5), 2); /* then the end */
    CHECK(memcmp(buf, "xy", 2) == 0);
    CHECK_EQ(conc_read_exactly(fds[0], buf, 3, 5), 0);
    close(fds[0]);
  }
  CHECK_EQ(conc_read_exactly(-1, buf, 3, 5), -EBADF);
  return arg;
}
TEST_BOTH(exactly_so_many_bytes_come_from_a_descriptor, exactly)

static void *exactly_of_stream(void *arg) {
  conc_stream s = {0};
  char buf[16];
  int fds[2];
  pair(fds);
  s.fd = fds[0];
  say(fds[1], "abc");
  CHECK_EQ(conc_stream_read_exactly(&s, buf, 5, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_stream_read_exactly(&s, buf, 0, 0), 0);
  say(fds[1], "defg"); /* nothing was lost */
  CHECK_EQ(conc_stream_read_exactly(&s, buf, 5, 5), 5);
  CHECK(memcmp(buf, "abcde", 5) == 0);
  shutdown(fds[1], SHUT_WR);
  CHECK_EQ(conc_stream_read_exactly(&s, buf, 5, 5), 2); /* the partial */
  CHECK(memcmp(buf, "fg", 2) == 0);
  CHECK_EQ(conc_stream_read_exactly(&s, buf, 5, 5), 0);
  CHECK_EQ(conc_stream_close(&s, 5), 0);
  close(fds[1]);
  return arg;
}
TEST_BOTH(exactly_so_many_bytes_of_a_stream_and_a_short_read_is_kept,
          exactly_of_stream)

static void *read_some(void *arg) {
  static char large[10000];
  conc_stream s = {0};
  char buf[16];
  int fds[2];
  pair(fds);
  s.fd = fds[0];
  CHECK_EQ(conc_stream_read(&s, buf, sizeof buf, 0), -ETIMEDOUT);
  CHECK_EQ(conc_stream_read(&s, buf, 0, 0), 0);
  say(fds[1], "abcdef");
  CHECK_EQ(conc_stream_read(&s, buf, 4, 5), 4);
  CHECK(memcmp(buf, "abcd", 4) == 0);
  CHECK_EQ(conc_stream_read(&s, buf, sizeof buf, 0), 2);
  CHECK(memcmp(buf, "ef", 2) == 0);
  say(fds[1], "straight");
  CHECK_EQ(conc_stream_read(&s, large, sizeof large, 5), 8);
  CHECK(memcmp(large, "straight", 8) == 0);
  close(fds[1]);
  CHECK_EQ(conc_stream_read(&s, buf, sizeof buf, 5), 0);
  CHECK_EQ(conc_stream_read(&s, buf, sizeof buf, 5), 0);
  CHECK_EQ(conc_stream_close(&s, 5), 0);
  return arg;
}
TEST_BOTH(reads_what_is_there_and_zero_at_the_end, read_some)

static void *lines(void *arg) {
  static const char text[] = "one\n\n\0zero\nlong line\nlast";
  conc_stream s = {0};
  char buf[16];
  int fds[2];
  pair(fds);
  s.fd = fds[0];
  CHECK_EQ(conc_stream_read_line(&s, buf, 0, 0), -EINVAL);
  CHECK_EQ(conc_stream_read_until(&s, "", 0, buf, 9, 0), -EINVAL);
  CHECK_EQ(conc_write(fds[1], text, sizeof text - 1, 5), sizeof text - 1);
  CHECK_EQ(conc_stream_read_line(&s, buf, sizeof buf, 5), 4);
  CHECK_STR(buf, "one\n");
  CHECK_EQ(conc_stream_read_line(&s, buf, sizeof buf, 5), 1);
  CHECK_STR(buf, "\n");
  CHECK_EQ(conc_stream_read_line(&s, buf, sizeof buf, 5), 6);
  CHECK(memcmp(buf, "\0zero\n", 7) == 0);
  CHECK_EQ(conc_stream_read_line(&s, buf, 10, 5), -EMSGSIZE);
  CHECK_STR(buf, "");
  CHECK_EQ(conc_stream_read_line(&s, buf, 11, 5), 10); /* it stayed */
  CHECK_STR(buf, "long line\n");
  CHECK_EQ(conc_stream_read_line(&s, buf, 16, 0.01), -ETIMEDOUT);
  close(fds[1]);
  CHECK_EQ(conc_stream_read_line(&s, buf, 16, 5), 4);
  CHECK_STR(buf, "last");
  CHECK_EQ(conc_stream_read_line(&s, buf, 16, 5), 0);
  CHECK_STR(buf, "");
  CHECK_EQ(conc_stream_close(&s, 5), 0);
  return arg;
}
TEST_BOTH(lines_come_whole_the_last_without_an_end, lines)

static void *too_long(void *arg) {
  conc_stream s = {0};
  char buf[16];
  int fds[2];
  pair(fds);
  s.fd = fds[0];
  say(fds[1], "0123456789"); /* no separator, and more may come */
  CHECK_EQ(conc_stream_read_until(&s, "--", 2, buf, 10, 5), -EMSGSIZE);
  CHECK_EQ(conc_stream_read_until(&s, "--", 2, buf, 11, 0), -ETIMEDOUT);
  say(fds[1], "--");
  CHECK_EQ(conc_stream_read_until(&s, "--", 2, buf, 11, 5), -EMSGSIZE);
  CHECK_EQ(conc_stream_read_until(&s, "--", 2, buf, 12, 5), 12);
  CHECK(memcmp(buf, "0123456789--", 12) == 0);
  close(fds[1]);
  CHECK_EQ(conc_stream_close(&s, 5), 0);
  return arg;
}
TEST_BOTH(a_line_that_is_too_long_stays, too_long)

/* The model: the whole text at once. The text comes in pieces of random
   sizes, its separators overlap, and are cut by the pieces. */
typedef struct feed {
  conc_task task; /* first: it is a task */
  int fd;
  const char *text;
  size_t size;
  unsigned seed;
} feed;
static void *feed_in_pieces(void *arg) {
  feed *f = (feed *)arg;
  for (size_t at = 0, n; at < f->size; at += n) {
    f->seed = f->seed * 1664525u + 1013904223u;
    n = 1 + (f->seed >> 16) % 9;
    if ((f->seed >> 28) == 0) n += 9000;
    if (n > f->size - at) n = f->size - at;
    CHECK_EQ(conc_write(f->fd, f->text + at, n, CONC_FOREVER), n);
    CHECK_EQ(conc_yield_now(), 0);
  }
  CHECK_EQ(shutdown(f->fd, SHUT_WR), 0);
  return NULL;
}
static void *pieces(void *arg) {
  enum { SIZE = 60000 };
  char *text = (char *)malloc(SIZE + 1), *buf = (char *)malloc(SIZE + 1);
  const char *separators[] = {"\n", "ab", "aab", "abab", "aaaa", "\r\n\r\n"};
  for (int round = 0; round < 12; round++) {
    const char *separator = separators[round % 6];
    size_t n = strlen(separator), at = 0;
    conc_stream s = {0};
    feed f;
    int fds[2];
    for (int i = 0; i < SIZE; i++)
      text[i] = round < 6 || i % 3000 < 4
                    ? separator[test_random() % n]
                    : "ab\nxyz"[test_random() % 6];
    text[SIZE] = 0;
    pair(fds);
    memset(&f, 0, sizeof f);
    f.task.target = feed_in_pieces;
    f.task.arg = &f;
    f.fd = fds[1];
    f.text = text;
    f.size = SIZE;
    f.seed = test_random();
    s.fd = fds[0];
    CHECK_EQ(arg ? conc_coro_start(&f.task) : conc_thread_start(&f.task), 0);
    for (;;) {
      char *end = strstr(text + at, separator);
      size_t length = end ? (size_t)(end - text) + n - at : SIZE - at;
      ssize_t got = conc_stream_read_until(&s, separator, n, buf, SIZE + 1,
                                           20);
      CHECK_EQ(got, length);
      CHECK(memcmp(buf, text + at, length) == 0);
      at += length;
      if (got == 0) break;
      if (test_random() % 8 == 0 && at < SIZE) { /* and mixed with others */
        size_t some = test_random() % 50;
        if (some > SIZE - at) some = SIZE - at;
        CHECK_EQ(conc_stream_read_exactly(&s, buf, some, 20), some);
        CHECK(memcmp(buf, text + at, some) == 0);
        at += some;
      }
    }
    CHECK_EQ(at, SIZE);
    CHECK_EQ(conc_join(&f.task, 20), 0);
    CHECK_EQ(conc_stream_close(&s, 5), 0);
    close(fds[1]);
  }
  free(text), free(buf);
  return NULL;
}
TEST(a_separator_is_found_wherever_the_pieces_are_cut) {
  pieces(NULL);
  run(pieces, (void *)1);
}

/* --- writing --- */

static size_t pending(int fd) { /* bytes that can be read */
  static char buf[1 << 20];
  ssize_t n = recv(fd, buf, sizeof buf, MSG_PEEK | MSG_DONTWAIT);
  return n < 0 ? 0 : (size_t)n;
}
static void *write_buffered(void *arg) {
  conc_stream s = {0};
  char buf[32];
  int fds[2];
  pair(fds);
  s.fd = fds[0];
  s.high_water = 10;
  CHECK_EQ(conc_stream_flush(&s, 0), 0);
  CHECK_EQ(conc_stream_write(&s, NULL, 0, 0), 0);
  CHECK_EQ(conc_stream_write(&s, "01234", 5, 0), 0);
  CHECK_EQ(conc_stream_write(&s, "56789", 5, 0), 0);
  CHECK_EQ(pending(fds[1]), 0); /* gathered */
  CHECK_EQ(conc_stream_write(&s, "abc", 3, 5), 0);
  CHECK_EQ(pending(fds[1]), 10); /* above the mark: sent */
  CHECK_EQ(conc_stream_flush(&s, 5), 0);
  CHECK_EQ(conc_read_exactly(fds[1], buf, 13, 5), 13);
  CHECK(memcmp(buf, "0123456789abc", 13) == 0);
  CHECK_EQ(conc_stream_write(&s, "end", 3, 0), 0);
  CHECK_EQ(conc_stream_close(&s, 5), 0); /* which flushes */
  CHECK_EQ(s.fd, -1);
  CHECK_EQ(conc_read_exactly(fds[1], buf, 13, 5), 3);
  close(fds[1]);
  return arg;
}
TEST_BOTH(what_is_written_goes_out_at_the_mark_or_by_flush, write_buffered)

/* The peer reads nothing until the writer has told that it must wait. */
static void *back_pressure(void *arg) {
  static char block[1000];
  conc_stream s = {0};
  size_t written = 0, got = 0, most;
  int fds[2], rc;
  pair(fds);
  s.fd = fds[0];
  s.high_water = 4000;
  for (;;) {
    for (size_t i = 0; i < sizeof block; i++)
      block[i] = (char)((written + i) * 7 / 5);
    rc = conc_stream_write(&s, block, sizeof block, 0.01);
    if (rc != 0) break;
    written += sizeof block;
  }
  CHECK_EQ(rc, -ETIMEDOUT);
  most = conc__buffer_count(&s.out);
  CHECK(most > 0 && most <= 4000 + sizeof block);
  CHECK_EQ(conc_stream_flush(&s, 0.01), -ETIMEDOUT);
  CHECK(pending(fds[1]) > 0);
  while (got < written) { /* all of it comes, in order, and nothing twice */
    ssize_t n = conc_read(fds[1], block, sizeof block, 0);
    if (n == -ETIMEDOUT) {
      CHECK_EQ(conc_stream_flush(&s, 5), 0);
      continue;
    }
    CHECK(n > 0);
    for (ssize_t i = 0; i < n; i++)
      CHECK_EQ(block[i], (char)((got + (size_t)i) * 7 / 5));
    got += (size_t)n;
  }
  CHECK_EQ(got, written);
  CHECK_EQ(conc_stream_flush(&s, 5), 0);
  CHECK_EQ(pending(fds[1]), 0);
  CHECK_EQ(conc_stream_close(&s, 5), 0);
  close(fds[1]);
  return arg;
}
TEST_BOTH(a_writer_waits_when_the_reader_does_not_read, back_pressure)

static void *peer_gone(void *arg) {
  conc_stream s = {0};
  int fds[2];
  pair(fds);
  close(fds[1]);
  s.fd = fds[0];
  CHECK_EQ(conc_stream_write(&s, "abc", 3, 5), 0);
  CHECK_EQ(conc_stream_flush(&s, 5), -EPIPE);
  CHECK_EQ(conc_stream_write(&s, "abc", 3, 5), -EPIPE);
  CHECK_EQ(conc_stream_close(&s, 5), -EPIPE); /* and is closed */
  CHECK_EQ(fcntl(fds[0], F_GETFD), -1);
  return arg;
}
TEST_BOTH(after_the_peer_has_gone_writes_fail, peer_gone)

static conc_stream shared;
static void *read_for_ever(void *arg) {
  char buf[100];
  (void)arg;
  return (void *)(intptr_t)conc_stream_read_exactly(&shared, buf, 100,
                                                    CONC_FOREVER);
}
static void *cancel_reader(void *arg) {
  conc_task t = {0};
  char buf[100];
  int fds[2];
  pair(fds);
  memset(&shared, 0, sizeof shared);
  shared.fd = fds[0];
  t.target = read_for_ever;
  CHECK_EQ(arg ? conc_coro_start(&t) : conc_thread_start(&t), 0);
  say(fds[1], "0123456789");
  while (pending(fds[0]) > 0) conc_sleep(0.001); /* it has taken them */
  CHECK_EQ(conc_stream_read(&shared, buf, 1, 0), -ETIMEDOUT); /* its turn */
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, 20), -ECANCELED);
  CHECK_EQ((intptr_t)conc_result(&t), -ECANCELED);
  CHECK_EQ(conc_stream_read_exactly(&shared, buf, 10, 5), 10);
  CHECK(memcmp(buf, "0123456789", 10) == 0);
  CHECK_EQ(conc_stream_close(&shared, 5), 0);
  close(fds[1]);
  return NULL;
}
TEST(a_read_that_fails_has_read_nothing) {
  cancel_reader(NULL);
  run(cancel_reader, (void *)1);
}

/* Lines of several writers, threads and coroutines, read by several. */
enum { TALKERS = 4, LINES = CONC_HAVE_TSAN ? 500 : 5000 };
static conc_stream from, to;
static long heard[TALKERS], wrong;
static void *talk(void *arg) {
  char line[300];
  for (int i = 0; i < LINES; i++) {
    int n = snprintf(line, sizeof line, "%d %d %*d\n", (int)(intptr_t)arg, i,
                     i % 200 + 1, 7);
    CHECK_EQ(conc_stream_write(&to, line, (size_t)n, 20), 0);
    if (i % 100 == 0) CHECK_EQ(conc_yield_now(), 0);
  }
  CHECK_EQ(conc_stream_flush(&to, 20), 0);
  return NULL;
}
static void *hear(void *arg) {
  char line[300];
  for (;;) {
    int who, i, width;
    ssize_t n = conc_stream_read_line(&from, line, sizeof line, 20);
    CHECK(n >= 0);
    if (n == 0) return arg;
    if (sscanf(line, "%d %d %d", &who, &i, &width) != 3 || width != 7 ||
        line[n - 1] != '\n')
      __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
    else
      __atomic_add_fetch(&heard[who], i + 1, __ATOMIC_RELAXED);
  }
}
static void start_four(conc_task t[4], intptr_t first,
                       int (*begin)(conc_task *)) {
  memset(t, 0, 4 * sizeof *t);
  for (int i = 0; i < 4; i++) {
    t[i].target = i < 2 ? talk : hear;
    t[i].arg = (void *)(first + i);
    CHECK_EQ(begin(&t[i]), 0);
  }
}
static void *half_of_them(void *arg) {
  conc_task t[4];
  start_four(t, 0, conc_coro_start);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], 25), 0);
  return arg;
}
static void *a_thread(void *arg) {
  run(half_of_them, arg);
  return NULL;
}
TEST(lines_of_many_writers_come_whole_to_many_readers) {
  conc_task loop = {0}, t[4];
  int fds[2];
  pair(fds);
  to.fd = fds[0];
  from.fd = fds[1];
  to.high_water = 3000;
  loop.target = a_thread;
  CHECK_EQ(conc_thread_start(&loop), 0);
  start_four(t, 2, conc_thread_start);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], 25), 0);
  for (long sum = 0; sum < 4L * LINES * (LINES + 1) / 2;) {
    CHECK_EQ(conc_sleep(0.001), 0);
    CHECK_EQ(__atomic_load_n(&wrong, __ATOMIC_RELAXED), 0);
    sum = 0;
    for (int i = 0; i < TALKERS; i++)
      sum += __atomic_load_n(&heard[i], __ATOMIC_RELAXED);
  }
  /* Closed when the loop has ended: it may still tell the poller that nobody
     waits for them now. */
  CHECK_EQ(shutdown(to.fd, SHUT_WR), 0);
  for (int i = 2; i < 4; i++) CHECK_EQ(conc_join(&t[i], 25), 0);
  CHECK_EQ(conc_join(&loop, 25), 0);
  CHECK_EQ(conc_stream_close(&to, 5), 0);
  for (int i = 0; i < TALKERS; i++)
    CHECK_EQ(heard[i], (long)LINES * (LINES + 1) / 2);
  CHECK_EQ(conc_stream_close(&from, 5), 0);
}

TEST(without_memory_nothing_is_lost) {
  conc_stream s = {0};
  char buf[8];
  int fds[2];
  pair(fds);
  s.fd = fds[0];
  say(fds[1], "abc\n");
  test_fail_at = 1;
  CHECK_EQ(conc_stream_read_line(&s, buf, sizeof buf, 5), -ENOMEM);
  CHECK_EQ(conc_stream_read_line(&s, buf, sizeof buf, 5), 4);
  CHECK_STR(buf, "abc\n");
  test_fail_at = 1;
  CHECK_EQ(conc_stream_write(&s, "xyz", 3, 5), -ENOMEM);
  CHECK_EQ(conc_stream_write(&s, "abc", 3, 5), 0);
  CHECK_EQ(conc_stream_flush(&s, 5), 0);
  CHECK_EQ(conc_read(fds[1], buf, sizeof buf, 5), 3);
  CHECK(memcmp(buf, "abc", 3) == 0);
  CHECK_EQ(conc_stream_close(&s, 5), 0);
  close(fds[1]);
}

/* --- random exchanges --- */

/* Bytes go through a connection, one way or both, by random calls of random
   sizes, and a third one cancels those who wait. Which byte is at an offset is
   known. So who reads knows after each call, failed or not, what must have
   come, and who writes, what must be in the buffer. */
enum { PERIOD = 65521, MOST = 300000, ROOM = MOST + 8 };
enum { A_SOCKET, A_PIPE, A_CONNECTION };
static unsigned char known[PERIOD + ROOM], unknown[PERIOD + ROOM];
typedef struct channel {
  int kind;
  bool quits; /* the reader, before the end */
  size_t offered, given; /* by calls begun; to the system, at least */
  size_t least, most;    /* of what may come in the end */
} channel;
typedef struct side {
  conc_task task; /* first: it is a task */
  conc_stream *stream;
  channel *flow;
  bool closes; /* nobody else uses the stream */
  int begun, cancels, told;
  unsigned long long seed;
  size_t at;
} side;
static unsigned char heaps[4][ROOM];
static side sides[4];

static void make_known(void) {
  for (size_t i = 0; i < sizeof known; i++) {
    size_t n = i % PERIOD; /* many separators, or none for long */
    known[i] = i != n ? known[n]
               : n % 7000 < 1000
                   ? (unsigned char)("ab\n"[test_random() % 3])
                   : (unsigned char)('c' + test_random() % 20);
    unknown[i] = (unsigned char)~known[i];
  }
}
static unsigned pick(side *s, unsigned n) {
  return test_random_of(&s->seed) % n;
}
static size_t some_size(side *s) {
  static const unsigned edges[] = {1, 1024, 4096, 8192, 65536, 131072};
  unsigned kind = pick(s, 16);
  if (kind < 6) return pick(s, 20);
  if (kind < 12) return pick(s, 3000);
  if (kind < 15) return edges[pick(s, 6)] - 1 + pick(s, 3);
  return pick(s, pick(s, 12) == 0 ? MOST : 20000);
}
static double some_time(side *s) {
  unsigned kind = pick(s, 3);
  return kind == 0 ? 0 : kind == 1 ? pick(s, 100) * 1e-6 : CONC_FOREVER;
}

/* Whether a call has failed as it may: cancelled as often as somebody did, or
   too late; and not if it had no need to wait. */
static bool gave_up(side *s, ssize_t rc, double timeout, bool need_not_wait) {
  if (rc != -ECANCELED && rc != -ETIMEDOUT) return false;
  if (rc == -ETIMEDOUT) CHECK(timeout < CONC_FOREVER && !need_not_wait);
  else STORE(s->told, s->told + 1);
  CHECK(s->told <= LOAD(s->cancels));
  rc = conc_yield_now();
  if (rc == -ECANCELED) STORE(s->told, s->told + 1);
  else CHECK_EQ(rc, 0);
  return true;
}
/* The last cancel is told, too. */
static void *settle(side *s) {
  if (LOAD(s->cancels) != s->told) {
    CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
    STORE(s->told, s->told + 1);
  }
  CHECK_EQ(conc_set_status(0), 0);
  return NULL;
}

/* Returns whether there may be more. */
static bool read_once(side *s) {
  conc_stream *in = s->stream;
  unsigned char *buf = heaps[s - sides];
  size_t start = s->at % PERIOD, size = some_size(s);
  size_t held = conc__buffer_count(&in->in);
  size_t given = LOAD(s->flow->given), least = size, most = size, came = 0;
  double timeout = some_time(s);
  unsigned call = pick(s, held == 0 ? 7 : 4);
  bool is_raw = call >= 4, too_long = false, ready = false, there;
  ssize_t rc;
  if (is_raw && size == 0) size = least = most = 1;
  memcpy(buf, unknown + start, size + 1);
  if (call == 2 || call == 3) {
    unsigned char line[8] = {'\n'};
    size_t n = call == 3 ? 1 : 1 + pick(s, 6);
    const unsigned char *end;
    if (call == 2) memcpy(line, known + start + some_size(s), n);
    if (call == 3 && size > 0) least = --size;
    end = (const unsigned char *)memmem(known + start, size, line, n);
    too_long = end == NULL;
    if (!too_long) least = (size_t)(end - (known + start)) + n;
    most = least;
    if (call == 2)
      rc = conc_stream_read_until(in, line, n, buf, size, timeout);
    else {
      rc = conc_stream_read_line(in, (char *)buf, size + 1, timeout);
      CHECK_EQ(buf[rc < 0 ? 0 : rc], 0);
      buf[rc < 0 ? 0 : rc] = unknown[start + (rc < 0 ? 0 : (size_t)rc)];
    }
  } else if (call == 1) {
    rc = conc_stream_read_exactly(in, buf, size, timeout);
  } else if (call == 5) {
    rc = conc_read_exactly(s->stream->fd, buf, size, timeout);
  } else {
    if (least > 1) least = 1;
    rc = call == 6 ? conc_wait_fd(in->fd, CONC_READ, timeout) : CONC_READ;
    ready = call == 6 && rc == CONC_READ;
    if (ready) timeout = 0;
    if (rc == CONC_READ)
      rc = is_raw ? conc_read(in->fd, buf, size, timeout)
                  : conc_stream_read(in, buf, size, timeout);
  }
  /* A network may take its time. */
  there = ready || held >= least ||
          (s->flow->kind != A_CONNECTION && given >= s->at + least);
  if (rc < 0) {
    if (rc == -EMSGSIZE) CHECK(too_long);
    else CHECK(held < least && gave_up(s, rc, timeout, there));
    if (call == 5) /* an unknown part has come: what is it? */
      while (came < size && buf[came] == known[start + came]) came++;
    CHECK(came < size || size == 0);
    if (rc == -EMSGSIZE) CHECK(LOAD(s->flow->offered) >= s->at + size);
  } else {
    came = (size_t)rc;
    CHECK(came < least || (came <= most && !too_long));
  }
  CHECK(memcmp(buf, known + start, came) == 0);
  CHECK(memcmp(buf + came, unknown + start + came, size + 1 - came) == 0);
  s->at += came;
  CHECK(s->at <= LOAD(s->flow->offered));
  return rc < 0 || came >= least;
}
static void *reads_at_random(void *arg) {
  side *s = (side *)arg;
  conc_stream *in = s->stream;
  STORE(s->begun, 1);
  while (read_once(s))
    if (s->flow->quits && pick(s, 30) == 0) break;
  if (!s->flow->quits) { /* it was the end, and stays that */
    char more;
    ssize_t rc;
    do rc = conc_stream_read(in, &more, 1, CONC_FOREVER);
    while (gave_up(s, rc, CONC_FOREVER, false));
    CHECK_EQ(rc, 0);
  }
  if (s->closes) CHECK_EQ(conc_stream_close(in, 0), 0);
  return settle(s);
}

/* Returns whether it may write more. */
static bool write_once(side *s) {
  conc_stream *out = s->stream;
  channel *f = s->flow;
  size_t size = some_size(s), before = conc__buffer_count(&out->out), after;
  size_t high = out->high_water ? out->high_water : 65536;
  double timeout = some_time(s);
  unsigned call = pick(s, before == 0 ? 20 : 18);
  const unsigned char *data = known + s->at % PERIOD;
  ssize_t rc;
  if (call >= 18) { /* past the buffer */
    if (size == 0 || call == 19) size = 1;
    STORE(f->offered, s->at + size);
    rc = call == 18 ? CONC_WRITE : conc_wait_fd(out->fd, CONC_WRITE, timeout);
    if (rc != CONC_WRITE) return gave_up(s, rc, timeout, false);
    if (call == 19) timeout = 0;
    rc = conc_write(out->fd, data, size, timeout);
    if (rc < 0) { /* an unknown part has been written */
      CHECK(rc != -ETIMEDOUT || call == 18);
      f->least = s->at;
      f->most = s->at + size - 1;
      CHECK(gave_up(s, rc, timeout, false) || f->quits);
      return false;
    }
    CHECK_EQ(rc, size);
    s->at += size;
  } else if (call < 15) {
    STORE(f->offered, s->at + size);
    rc = conc_stream_write(out, data, size, timeout);
    after = conc__buffer_count(&out->out);
    if (rc == 0) {
      CHECK_EQ(after, before >= high ? size : before + size);
      s->at += size;
    } else {
      CHECK(before >= high && after <= before);
    }
  } else {
    rc = conc_stream_flush(out, timeout);
    after = conc__buffer_count(&out->out);
    CHECK(rc == 0 ? after == 0 : after <= before);
  }
  after = conc__buffer_count(&out->out);
  if (rc < 0 && !gave_up(s, rc, timeout, false)) {
    CHECK(f->quits && (rc == -EPIPE || rc == -ECONNRESET));
    CHECK_EQ(after, 0);
    CHECK_EQ(conc_stream_write(out, "x", 1, timeout), rc); /* for ever */
    CHECK_EQ(conc_stream_flush(out, timeout), rc);
    return false;
  }
  if (rc < 0) CHECK(after > 0);
  STORE(f->given, s->at - after);
  return true;
}
static void *writes_at_random(void *arg) {
  side *s = (side *)arg;
  conc_stream *out = s->stream;
  channel *f = s->flow;
  int steps = (int)pick(s, pick(s, 8) == 0 ? 100 : 12);
  bool broken = false, gives_up = s->closes && pick(s, 2) == 0;
  double timeout = some_time(s);
  int rc = 0;
  STORE(s->begun, 1);
  f->most = (size_t)-1;
  while (steps-- > 0 && !broken) broken = !write_once(s);
  if (!broken && !gives_up) {
    do rc = conc_stream_flush(out, timeout);
    while (gave_up(s, rc, timeout, false));
    CHECK(rc == 0 || f->quits);
  }
  if (!broken) {
    f->most = s->at;
    f->least = s->at - conc__buffer_count(&out->out);
  }
  if (s->closes) {
    rc = conc_stream_close(out, timeout);
    if (gave_up(s, rc, timeout, false)) f->most--;
    else if (rc == 0 && !broken) f->least = f->most;
    else CHECK(rc == 0 || f->quits);
  } else {
    CHECK_EQ(shutdown(out->fd, SHUT_WR), 0);
  }
  return settle(s);
}

static void connect_at_random(int kind, int listener, int fds[2]) {
  char address[64];
  const int one = 1, small = 4608;
  if (kind == A_PIPE) {
    CHECK_EQ(pipe(fds), 0);
  } else if (kind == A_SOCKET) {
    pair(fds);
  } else {
    CHECK(conc_address(listener, address, sizeof address) > 0);
    fds[1] = conc_connect(address, 20);
    CHECK(fds[1] >= 0);
    fds[0] = conc_accept(listener, 20);
    CHECK(fds[0] >= 0);
  }
  for (int i = 0; i < 2; i++) {
    int flags = fcntl(fds[i], F_GETFL) & ~O_NONBLOCK;
    if (test_random() % 2) flags |= O_NONBLOCK;
    CHECK_EQ(fcntl(fds[i], F_SETFL, flags), 0);
    if (kind == A_CONNECTION) /* or small pieces wait for 40 ms */
      CHECK_EQ(setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one),
               0);
    else if (kind == A_SOCKET && test_random() % 2)
      CHECK_EQ(setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof small),
               0);
  }
}
static void exchange(int listener, bool in_loop) {
  static const size_t marks[] = {0, 1, 10, 4096, 100000};
  conc_stream ends[2];
  channel flows[2];
  int kind = (int)(test_random() % 3), fds[2], left, ways = 1;
  bool cancels = test_random() % 2;
  if (kind != A_PIPE && test_random() % 4 == 0) ways = 2;
  connect_at_random(kind, listener, fds);
  memset(sides, 0, sizeof sides);
  memset(ends, 0, sizeof ends);
  memset(flows, 0, sizeof flows);
  for (int i = 0; i < 2; i++) {
    ends[i].fd = fds[i];
    ends[i].high_water = marks[test_random() % 5];
    flows[i].kind = kind;
    flows[i].quits = ways == 1 && test_random() % 8 == 0;
  }
  for (int i = 0; i < 2 * ways; i++) { /* 0 reads from 1, 3 from 2 */
    side *s = &sides[i];
    s->stream = &ends[i % 2];
    s->flow = &flows[i / 2];
    s->closes = ways == 1;
    s->seed = (unsigned long long)test_random() << 32 | test_random();
    s->task.target = i == 0 || i == 3 ? reads_at_random : writes_at_random;
    s->task.arg = s;
    CHECK_EQ(in_loop && test_random() % 4 ? conc_coro_start(&s->task)
                                          : conc_thread_start(&s->task), 0);
  }
  for (left = 2 * ways; left > 0;) {
    side *s = &sides[test_random() % (unsigned)(2 * ways)];
    double wait = !cancels ? CONC_FOREVER : test_random() % 50 * 1e-6;
    for (left = 2 * ways; left > 0; left--)
      if (conc_is_alive(&sides[left - 1].task)) break;
    if (left > 0 && conc_join(&sides[left - 1].task, wait) == -ETIMEDOUT &&
        test_random() % 2 && LOAD(s->begun) && LOAD(s->told) == s->cancels) {
      int rc;
      STORE(s->cancels, s->cancels + 1);
      rc = conc_cancel(&s->task);
      CHECK(rc == 0 || rc == -ESRCH);
    }
  }
  for (int i = 0; i < 2 * ways; i++) {
    side *s = &sides[i];
    CHECK_EQ(conc_join(&s->task, 0), 0);
    if (s->task.target == reads_at_random && !s->flow->quits)
      CHECK(s->flow->least <= s->at && s->at <= s->flow->most);
    if (!s->closes && i < 2) CHECK_EQ(conc_stream_close(s->stream, 0), 0);
  }
}
static void *exchanges(void *arg) {
  int listener = conc_listen(NULL);
  int rounds = (int)test_asked("STREAM_ROUNDS", 2000) / (arg != NULL ? 1 : 4);
  CHECK(listener >= 0);
  signal(SIGPIPE, SIG_IGN); /* which pipes raise */
  make_known();
  if (TEST_TSAN || TEST_ASAN) rounds /= 10;
  while (rounds-- > 0) exchange(listener, arg != NULL);
  CHECK_EQ(conc_close(listener), 0);
  return NULL;
}
TEST(random_exchanges_between_threads_lose_nothing) { exchanges(NULL); }
TEST(random_exchanges_of_coroutines_lose_nothing) {
  run(exchanges, (void *)1);
}

TEST_MAIN
