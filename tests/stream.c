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
#include "test.h"

#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"

static void pair(int fds[2]) {
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
}
static void say(int fd, const char *text) {
  CHECK_EQ(conc_write(fd, text, strlen(text), 5), strlen(text));
}
static void run(conc_fn *target, void *arg) {
  conc_task t = {0};
  t.target = target;
  t.arg = arg;
  CHECK_EQ(conc_run(&t), 0);
}
/* The same test as a thread and as a coroutine. */
#define BOTH(name, function) \
  TEST(name) {               \
    function(NULL);          \
    run(function, NULL);     \
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
BOTH(exactly_so_many_bytes_come_from_a_descriptor, exactly)

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
BOTH(exactly_so_many_bytes_of_a_stream_and_a_short_read_is_kept,
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
BOTH(reads_what_is_there_and_zero_at_the_end, read_some)

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
BOTH(lines_come_whole_the_last_without_an_end, lines)

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
BOTH(a_line_that_is_too_long_stays, too_long)

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
BOTH(what_is_written_goes_out_at_the_mark_or_by_flush, write_buffered)

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
  most = conc__bytes_count(&s.out);
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
BOTH(a_writer_waits_when_the_reader_does_not_read, back_pressure)

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
BOTH(after_the_peer_has_gone_writes_fail, peer_gone)

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
  CHECK_EQ(conc_stream_close(&to, 5), 0);
  for (int i = 2; i < 4; i++) CHECK_EQ(conc_join(&t[i], 25), 0);
  CHECK_EQ(conc_join(&loop, 25), 0);
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

TEST_MAIN
