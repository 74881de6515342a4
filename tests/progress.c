/* conc_progress: what it writes to a terminal, to a file, or not at all. */
#include "test.h"
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "inside.h"

static void line_is(const conc_progress *p, size_t done, double seconds,
                    double rate, size_t width, const char *expected) {
  char line[CONC__PROGRESS_LINE];
  size_t n = conc__progress_line(p, done, p->start + seconds, rate, width,
                                 line);
  line[n] = 0;
  CHECK_STR(line, expected);
  CHECK(width == 0 || n <= width);
}

/* In the manner of tqdm.format_meter(ascii=True). */
TEST(lines_are_like_those_of_tqdm) {
  conc_progress p = {0};
  p.start = 1000;
  line_is(&p, 7, 3, 2.5, 0, "7it [00:03,  2.50it/s]");
  line_is(&p, 7, 3, 0, 0, "7it [00:03, ?it/s]");
  p.total = 10;
  line_is(&p, 0, 0, 0, 0, "  0%|          | 0/10 [00:00<?, ?it/s]");
  line_is(&p, 5, 2, 2.5, 0, " 50%|#####     | 5/10 [00:02<00:02,  2.50it/s]");
  line_is(&p, 10, 4, 2.5, 0,
          "100%|##########| 10/10 [00:04<00:00,  2.50it/s]");
  line_is(&p, 11, 4, 2.5, 0, "11it [00:04,  2.50it/s]"); /* too many */
  line_is(&p, 1, 90, 0.01, 0,
          " 10%|#         | 1/10 [01:30<15:00, 100.00s/it]");
  p.total = 1000;
  p.name = "pages";
  p.unit = "B";
  line_is(&p, 256, 4000, 0.05, 0,
          "pages:  26%|##5       | 256/1000 [1:06:40<4:08:00, 20.00s/B]");
  line_is(&p, 500, 10, 50, 60,
          "pages:  50%|#######       | 500/1000 [00:10<00:10, 50.00B/s]");
  line_is(&p, 520, 10, 50, 60,
          "pages:  52%|#######2      | 520/1000 [00:10<00:09, 50.00B/s]");
}

TEST(a_narrow_line_is_cut) {
  conc_progress p = {0};
  p.start = 1000;
  p.total = 10;
  for (size_t width = 1; width < 300; width++) {
    char line[CONC__PROGRESS_LINE];
    size_t n = conc__progress_line(&p, 5, 1001, 5, width, line);
    CHECK(n <= width && n > 0);
    CHECK(n == width || width > 100); /* as wide as it may be */
  }
}

/* As tqdm with unit_scale, but with the i of 1,024. */
TEST(numbers_are_scaled) {
  conc_progress p = {0};
  p.start = 1000;
  p.scale = 1024;
  line_is(&p, 7, 3, 2.5, 0, "7B [00:03, 2.50B/s]");
  line_is(&p, 999, 3, 0, 0, "999B [00:03, ?B/s]");
  line_is(&p, 1000, 3, 999.6, 0, "0.98KiB [00:03, 0.98KiB/s]");
  line_is(&p, 1536, 3, 1e6, 0, "1.50KiB [00:03, 977KiB/s]");
  p.total = (size_t)100 << 20;
  line_is(&p, (size_t)42 << 20, 2, 21 << 20, 0,
          " 42%|####2     | 42.0MiB/100MiB [00:02<00:02, 21.0MiB/s]");
  p.scale = 1000;
  p.unit = "rows";
  p.total = 2000000;
  line_is(&p, 1570000, 2, 0.5, 0,
          " 78%|#######8  | 1.57Mrows/2.00Mrows [00:02<238:53:20, "
          " 2.00s/rows]");
  if (sizeof(size_t) == 8) {
    p.total = 0;
    line_is(&p, SIZE_MAX, 3, 0, 0, "18.4Erows [00:03, ?rows/s]");
  }
}

/* Columns as a terminal counts them. */
TEST(columns_are_those_of_a_terminal) {
  conc_progress p = {0};
  char line[CONC__PROGRESS_LINE];
  size_t columns, n;
  p.start = 1000;
  p.total = 10;
  p.name = "\xe4\xb8\x8b\xe8\xbd\xbd"; /* two letters of Chinese */
  line_is(&p, 5, 2, 2.5, 0,
          "\xe4\xb8\x8b\xe8\xbd\xbd:  50%|#####     | 5/10 [00:02<00:02, "
          " 2.50it/s]");
  for (size_t width = 1; width < 120; width++) {
    n = conc__progress_line(&p, 5, 1002, 2.5, width, line);
    line[n] = 0;
    conc__columns_cut(line, n, SIZE_MAX, &columns);
    /* A letter of two columns is not cut in half. */
    CHECK(columns == width || (width <= 3 && columns == (width & ~1u)));
    CHECK(conc__utf8_valid((unsigned char *)line, n));
  }
  CHECK_EQ(conc__columns_cut("e\xcc\x81t\xc3\xa9", 6, 9, &columns), 6);
  CHECK_EQ(columns, 3); /* the accent stands on its letter */
  CHECK_EQ(conc__columns_cut("\xff\xfe", 2, 9, &columns), 2);
  CHECK_EQ(columns, 2);
}

TEST(the_total_may_change_under_way) {
  conc_progress p = {0};
  p.off = true;
  p.total = 10;
  CHECK_EQ(conc_progress_update(&p, 5), 0);
  CHECK_EQ(conc_progress_total(&p, 20), 0);
  CHECK_EQ(p.total, 20);
  CHECK_EQ(conc_progress_close(&p), 0);
}

static ssize_t read_all(int fd, char *text, size_t size) {
  ssize_t n = 0, got;
  while ((got = conc_read(fd, text + n, size - 1 - (size_t)n, 0)) > 0)
    n += got;
  text[n] = 0;
  return n;
}

/* The bar is written to a pipe, as to a log. It gets the first line and the
   last one, others only when the interval is over, and never a carriage
   return. */
TEST(a_log_gets_whole_lines_now_and_then) {
  conc_progress p = {0};
  char text[4096];
  int fds[2];
  CHECK_EQ(pipe(fds), 0);
  p.total = 100;
  p.fd = fds[1];
  for (int i = 0; i < 50; i++) CHECK_EQ(conc_progress_update(&p, 1), 0);
  CHECK(read_all(fds[0], text, sizeof text) > 0);
  CHECK_STR(text, "  1%|1         | 1/100 [00:00<?, ?it/s]\n"); /* the first */
  CHECK_EQ(conc_progress_update(&p, 50), 0);
  CHECK_EQ(read_all(fds[0], text, sizeof text), 0);
  CHECK_EQ(conc_progress_close(&p), 0);
  CHECK(read_all(fds[0], text, sizeof text) > 0);
  CHECK(strncmp(text, "100%|##########| 100/100 [00:0", 30) == 0);
  CHECK(text[strlen(text) - 1] == '\n' && !strchr(text, '\r'));
  p.interval = 1e-9; /* as new: from 0 again, and now each time */
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_progress_update(&p, 1), 0);
    CHECK_EQ(conc_sleep(0.001), 0);
  }
  CHECK(read_all(fds[0], text, sizeof text) > 0);
  CHECK(strstr(text, "| 1/100 [") && strstr(text, "| 2/100 [") &&
        strstr(text, "| 3/100 ["));
  CHECK_EQ(conc_progress_close(&p), 0);
  CHECK(read_all(fds[0], text, sizeof text) > 0);
  p.width = 20; /* as asked, and cut */
  CHECK_EQ(conc_progress_update(&p, 1), 0);
  CHECK_EQ(read_all(fds[0], text, sizeof text), 20 + 1);
  CHECK_EQ(conc_progress_close(&p), 0);
  close(fds[0]), close(fds[1]);
}

TEST(off_writes_nothing) {
  conc_progress p = {0};
  char text[16];
  int fds[2];
  CHECK_EQ(pipe(fds), 0);
  p.off = true;
  p.fd = fds[1];
  CHECK_EQ(conc_progress_update(&p, 1), 0);
  CHECK_EQ(conc_progress_close(&p), 0);
  CHECK_EQ(read_all(fds[0], text, sizeof text), 0);
  close(fds[1]);
  p.off = false;
  p.fd = fds[1];
  CHECK_EQ(conc_progress_update(&p, 1), -EBADF);
  CHECK_EQ(conc_progress_close(&p), -EBADF);
  close(fds[0]);
}

/* As standard error is to a service: nobody is killed by a log that ends. */
TEST(a_socket_that_nobody_reads_is_an_error) {
  conc_progress p = {0};
  int fds[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  close(fds[0]);
  p.fd = fds[1];
  CHECK_EQ(conc_progress_update(&p, 1), -EPIPE);
  CHECK_EQ(conc_progress_close(&p), -EPIPE);
  close(fds[1]);
}

/* A pseudo-terminal of 60 columns: each state is a carriage return and 59
   columns, the shorter last one is filled up, so that nothing of the one
   before is left. */
TEST(a_terminal_has_one_line_of_its_width) {
  conc_progress p = {0};
  struct winsize size;
  char text[4096];
  const char *at;
  int master = posix_openpt(O_RDWR | O_NOCTTY), fd, lines = 0;
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0)
    SKIP("there is no pseudo-terminal");
  fd = open(ptsname(master), O_RDWR | O_NOCTTY);
  if (fd < 0) SKIP("there is no pseudo-terminal");
  memset(&size, 0, sizeof size);
  size.ws_col = 60;
  CHECK_EQ(ioctl(master, TIOCSWINSZ, &size), 0);
  p.total = 1000;
  p.name = "x";
  p.fd = fd;
  p.interval = 1e-9;
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(conc_progress_update(&p, 100), 0);
    CHECK_EQ(conc_sleep(0.001), 0);
  }
  p.name = NULL;
  p.total = 0; /* a shorter line */
  CHECK_EQ(conc_progress_close(&p), 0);
  for (ssize_t n = 0, got; lines < 1; lines = strchr(text, '\n') != NULL) {
    CHECK((got = read(master, text + n, sizeof text - 1 - (size_t)n)) > 0);
    n += got;
    text[n] = 0;
  }
  lines = 0;
  for (at = text; *at == '\r' && at[1] != '\n'; lines++) {
    size_t n = strcspn(++at, "\r\n");
    CHECK_EQ(n, CONC_HAVE_WINSIZE ? 59 : 79); /* so that it does not wrap */
    if (lines < 10) CHECK(strncmp(at, "x: ", 3) == 0);
    else CHECK(strncmp(at, "1000it [", 8) == 0);
    at += n;
  }
  CHECK_EQ(lines, 11);
  CHECK_STR(at, "\r\n"); /* the terminal's newline */
  close(fd), close(master);
}

/* What a terminal shows after these bytes: rows of 60 columns. */
enum { ROWS = 8, COLUMNS = 60 };
typedef struct screen {
  char rows[ROWS][COLUMNS + 1];
  int row, column;
} screen;
static void screen_write(screen *s, const char *text) {
  for (; *text != 0; text++) {
    int up;
    if (*text == '\r') {
      s->column = 0;
    } else if (*text == '\n') {
      CHECK(++s->row < ROWS);
    } else if (sscanf(text, "\033[%dA", &up) == 1) {
      CHECK((s->row -= up) >= 0);
      text = strchr(text, 'A');
    } else {
      CHECK(s->column < COLUMNS - 1); /* it never wraps */
      s->rows[s->row][s->column++] = *text;
    }
  }
}

TEST(several_bars_stand_below_each_other) {
  static screen s;
  conc_progress p[3];
  struct winsize size;
  char text[4096];
  ssize_t n = 0, got;
  int master = posix_openpt(O_RDWR | O_NOCTTY), fd;
  static const int order[] = {1, 0, 2}; /* in which they are closed */
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0)
    SKIP("there is no pseudo-terminal");
  if (!CONC_HAVE_WINSIZE) SKIP("a terminal does not tell its size");
  fd = open(ptsname(master), O_RDWR | O_NOCTTY);
  if (fd < 0) SKIP("there is no pseudo-terminal");
  memset(&size, 0, sizeof size);
  size.ws_col = COLUMNS;
  CHECK_EQ(ioctl(master, TIOCSWINSZ, &size), 0);
  memset(p, 0, sizeof p);
  for (int i = 0; i < 3; i++) {
    p[i].total = 10;
    p[i].fd = fd;
    p[i].interval = 1e-9;
    p[i].name = i == 0 ? "first" : i == 1 ? "second" : "third";
    if (i > 0) p[i].above = &p[i - 1];
  }
  for (int round = 0; round < 2; round++) { /* the second one below it */
    for (int i = 0; i < 3; i++)
      CHECK_EQ(conc_progress_update(&p[2 - i], (size_t)i + 1), 0);
    for (int i = 0; i < 3; i++)
      CHECK_EQ(conc_progress_close(&p[order[i]]), 0);
  }
  CHECK_EQ(write(fd, "$", 1), 1); /* what the program prints then */
  while (memchr(text, '$', (size_t)n) == NULL) {
    CHECK((got = read(master, text + n, sizeof text - 1 - (size_t)n)) > 0);
    n += got;
  }
  text[n] = 0;
  screen_write(&s, text);
  for (int i = 0; i < 6; i += 3) {
    CHECK(strncmp(s.rows[i], "first:  30%|", 12) == 0);
    CHECK(strncmp(s.rows[i + 1], "second:  20%|", 13) == 0);
    CHECK(strncmp(s.rows[i + 2], "third:  10%|", 12) == 0);
  }
  CHECK_STR(s.rows[6], "$");
  close(fd), close(master);
}

/* As in a child that was forked while another thread was at it. */
TEST(a_bar_that_is_never_drawn_does_not_hold_up_the_last_line) {
  conc_progress p;
  char text[256];
  int fds[2];
  double began = test_now();
  memset(&p, 0, sizeof p);
  CHECK_EQ(pipe(fds), 0);
  p.fd = fds[1];
  p.drawing = 1;
  CHECK_EQ(conc_progress_update(&p, 1), 0); /* it is passed over */
  CHECK_EQ(conc_progress_close(&p), 0);
  CHECK(test_now() - began < 10 * test_slow());
  CHECK(read(fds[0], text, sizeof text) > 0);
  close(fds[0]);
  close(fds[1]);
}

enum { THREADS = 4, STEPS = CONC_HAVE_TSAN ? 5000 : 50000 };
static conc_progress shared;
static void *steps(void *arg) {
  for (int i = 0; i < STEPS; i++)
    CHECK_EQ(conc_progress_update(&shared, 1), 0);
  return arg;
}
/* Four threads update one bar, which is written to a file. The sum is
   exact, and the lines are whole and never go back. */
TEST(many_threads_count_together) {
  conc_task t[THREADS];
  char name[] = "/tmp/conc-progress-XXXXXX", text[300];
  static char line[100];
  FILE *f;
  shared.fd = mkstemp(name);
  CHECK(shared.fd >= 0);
  unlink(name);
  shared.interval = 1e-4;
  shared.total = THREADS * STEPS;
  memset(t, 0, sizeof t);
  for (int i = 0; i < THREADS; i++) {
    t[i].target = steps;
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) CHECK_EQ(conc_join(&t[i], 25), 0);
  CHECK_EQ(shared.done, THREADS * STEPS);
  CHECK_EQ(conc_progress_close(&shared), 0);
  CHECK_EQ(lseek(shared.fd, 0, SEEK_SET), 0);
  f = fdopen(shared.fd, "r");
  for (long before = -1, done; fgets(text, sizeof text, f); before = done) {
    CHECK(strlen(text) < 100);
    strcpy(line, text); /* whole lines, in order */
    CHECK_EQ(sscanf(strchr(text, '|') + 12, "%ld/", &done), 1);
    CHECK(done >= before);
  }
  snprintf(text, sizeof text, "| %d/%d [", THREADS * STEPS, THREADS * STEPS);
  CHECK(strstr(line, text) != NULL);
  fclose(f);
}

TEST_MAIN
