/* The loop: timers, descriptors and their reuse, close-on-exec, very many
   coroutines. From inside, for exact deadlines. */
#include "inside.h"
#include "tasks.h"

/* Lets the other coroutines run until each of them waits. */
static void settle(void) {
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_yield_now(), 0);
}

/* --- timers --- */

enum { SLEEPERS = CONC_HAVE_TSAN ? 2000 : 10000 };
typedef struct sleeper {
  conc_task task; /* first: a sleeper is a task */
  double deadline;
  bool woken, cancelled;
} sleeper;
static double last_deadline;

/* As conc_sleep, but until a time that the test knows exactly. */
static void *sleep_until(void *arg) {
  sleeper *s = (sleeper *)arg;
  conc__actor *self = conc__self();
  bool slept = false; /* else it came too late to have a place */
  for (;;) {
    if (conc__take_cancel(self)) {
      s->cancelled = true;
      return NULL;
    }
    if (conc_now() >= s->deadline) break;
    self->ops->park(self, CONC__POKED, s->deadline);
    slept = true;
  }
  if (slept && s->deadline < last_deadline)
    TEST_FAIL("woken %g s too late", last_deadline - s->deadline);
  if (slept) last_deadline = s->deadline;
  s->woken = true;
  return NULL;
}

static void *sleep_at_random(void *arg) {
  sleeper *s = (sleeper *)calloc(SLEEPERS, sizeof *s);
  conc__loop *loop = conc__this.loop;
  double begin = conc_now() + 0.3 * test_slow(); /* most sleep by then */
  int cancelled = 0;
  bool all_asleep;
  (void)arg;
  for (int i = 0; i < SLEEPERS; i++) {
    start(conc_coro_start, &s[i].task, sleep_until, &s[i]);
    s[i].deadline = begin + 0.3 * (test_random() % 5000 / 5000.0);
  }
  settle();
  all_asleep = loop->timers.count == SLEEPERS;
  for (int i = 0; i < SLEEPERS; i += 1 + (int)(test_random() % 5)) {
    conc_cancel(&s[i].task); /* or it has ended */
    if (i % 7 == 0) settle();
  }
  for (int i = 0; i < SLEEPERS; i++) {
    int rc = conc_join(&s[i].task, CONC_FOREVER);
    CHECK_EQ(rc, s[i].cancelled ? -ECANCELED : 0);
    CHECK(s[i].woken != s[i].cancelled);
    cancelled += s[i].cancelled;
  }
  CHECK(cancelled > 0 || !all_asleep);
  CHECK_EQ(loop->timers.count, 0);
  free(s);
  return NULL;
}
TEST(ten_thousand_sleepers_wake_in_the_order_of_their_deadlines) {
  run(sleep_at_random, NULL);
}

/* Against a plain list, with a clock of its own that crawls and jumps. */
enum { TIMERS = 400, TIMER_ROUNDS = CONC_HAVE_TSAN ? 10000 : 40000 };
static const double spans[] = {0, 1e-6, 1e-4, 0.01, 1, 60, 86400, 1e100};
#define ROUNDING 2e-9 /* of a time in a timer, and of a double */
static conc__coro timed[TIMERS];
static conc_task timed_task; /* of all: never run */
static double deadlines[TIMERS]; /* 0: not set */

static double some_span(unsigned kinds) {
  return spans[test_random() % kinds] * (test_random() % 1001 / 1000.0);
}

/* Makes one wait, near another one, perhaps at the very same time, or not. */
static void set_timer(conc__loop *loop, int i, double now) {
  double near = deadlines[test_random() % TIMERS];
  double far = now + some_span(8);
  deadlines[i] = test_random() % 2 && near >= now ? near + some_span(3) : far;
  timed[i].actor.word = CONC__PARKED;
  timed[i].actor.task = &timed_task;
  conc__timers_add(&loop->timers, &timed[i], deadlines[i]);
  CHECK(timed[i].timer != 0);
}

static void check_expired(conc__loop *loop, double now) {
  double last = 0, least = 1e101;
  size_t expired = 0, pending = 0;
  for (; loop->ready.count > 0; expired++) {
    size_t first = loop->ready.first++ & (loop->ready.size - 1);
    conc__coro *co = (conc__coro *)loop->ready.items[first]; /* it has no stack */
    double *at = &deadlines[co - timed];
    loop->ready.count--;
    CHECK_EQ(co->timer, 0);
    CHECK(*at <= now && *at >= last - ROUNDING);
    last = *at;
    *at = 0;
  }
  for (int i = 0; i < TIMERS; i++)
    if (deadlines[i] > 0) {
      pending++;
      if (deadlines[i] < least) least = deadlines[i];
    }
  CHECK_EQ(loop->timers.count, pending);
  CHECK(least >= last - ROUNDING);
  CHECK(least >= now - ROUNDING || expired == CONC__LOOP_BATCH / 2);
  if (pending > 0)
    CHECK((double)conc__timers_first(&loop->timers)->time / CONC__TIMER_UNIT <=
          least + ROUNDING);
}

/* Random timers are set, removed and let expire, in the loop's heap and in
   a plain array. After each step both must agree on what has expired, in
   which order, and on what comes first. */
TEST(timers_agree_with_a_list) {
  conc__loop *loop = (conc__loop *)calloc(1, sizeof *loop);
  double now = test_random() % 1000000 + 0.5;
  loop->batch_size = CONC__LOOP_BATCH;
  for (; loop->alive < TIMERS; loop->alive++)
    CHECK_EQ(conc__loop_reserve(loop), 0);
  for (int round = 0; round < TIMER_ROUNDS; round++) {
    int i = (int)(test_random() % TIMERS);
    if (deadlines[i] <= 0) {
      set_timer(loop, i, now);
    } else if (test_random() % 3 == 0) {
      conc__timers_remove(&loop->timers, &timed[i]);
      CHECK_EQ(timed[i].timer, 0);
      deadlines[i] = 0;
    } else if (test_random() % 2) {
      double at = deadlines[i];
      now = at > now && at < 1e9 ? at : now + some_span(7);
      for (size_t before = TIMERS + 1; loop->timers.count < before;) {
        before = loop->timers.count;
        conc__timers_expire(loop, now);
        check_expired(loop, now);
      }
    } else {
      now += some_span(4);
      conc__timers_expire(loop, now);
      check_expired(loop, now);
    }
  }
  test_free(loop->ready.items);
  test_free(loop->timers.places);
  test_free(loop->timers.links);
  free(loop);
}

/* A timer is not starved by coroutines that never wait, nor they by it. */
static int turns;
static void *yield_for_ever(void *arg) {
  do turns++;
  while (conc_yield_now() == 0);
  return arg;
}
static void *sleep_among_busy(void *arg) {
  static conc_task t[50];
  (void)arg;
  for (int i = 0; i < 50; i++)
    start(conc_coro_start, &t[i], yield_for_ever, NULL);
  for (int i = 0; i < 20; i++) {
    double before = conc_now();
    int seen = turns;
    CHECK_EQ(conc_sleep(1e-3), 0);
    CHECK(conc_now() - before < 5 * test_slow());
    CHECK(turns > seen);
  }
  return NULL; /* which cancels them */
}
TEST(a_timer_is_heard_among_busy_coroutines) { run(sleep_among_busy, NULL); }

static void *set_flag(void *flag) {
  *(bool *)flag = true;
  return NULL;
}
static void *sleep_a_moment(void *arg) {
  bool flag = false;
  conc_task t;
  int n;
  start(conc_coro_start, &t, set_flag, &flag);
  for (n = 0; n < 1000 && !flag; n++) CHECK_EQ(conc_sleep(1e-12), 0);
  CHECK(flag);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  return arg;
}
TEST(a_sleep_however_short_lets_others_run) { run(sleep_a_moment, NULL); }

/* --- a join of what was just started --- */

typedef struct just_started {
  conc_task *parent;
  int order;  /* how many had begun when it began */
  int rounds; /* that it goes before it ends */
  bool cancels;
  bool waited; /* its parent was on a list when it began */
} just_started;

static int beginnings;

static void *begin_and_look(void *arg) {
  just_started *s = (just_started *)arg;
  s->order = beginnings++;
  s->waited = s->parent->actor->waiting != NULL ||
              conc__this.loop->timers.count > 0;
  if (s->cancels) CHECK_EQ(conc_cancel(s->parent), 0);
  for (int i = 0; i < s->rounds; i++) CHECK_EQ(conc_yield_now(), 0);
  return arg;
}

/* With more than one round the join has to wait after all. */
static void *join_at_once(void *arg) {
  just_started s[3];
  conc_task t[3];
  memset(s, 0, sizeof s);
  beginnings = 0;
  for (int i = 0; i < 3; i++) {
    s[i].parent = conc_current();
    start(conc_coro_start, &t[i], begin_and_look, &s[i]);
  }
  CHECK_EQ(conc_join(&t[2], CONC_FOREVER), 0);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(s[i].order, i);
    CHECK(!s[i].waited);
    CHECK_EQ(conc_join(&t[i], 0), 0);
  }
  s[0].rounds = 10 * CONC__LOOP_BATCH; /* it has the time */
  start(conc_coro_start, &t[0], begin_and_look, &s[0]);
  CHECK_EQ(conc_join(&t[0], 0), -ETIMEDOUT);
  CHECK_EQ(conc_join(&t[0], 1e-9), -ETIMEDOUT);
  CHECK(s[0].waited); /* with a limit it waits from the start */
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), 0);
  /* What it was woken for comes first; the cancellation is kept. */
  s[0].rounds = 0;
  s[0].cancels = true;
  start(conc_coro_start, &t[0], begin_and_look, &s[0]);
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), 0);
  CHECK_EQ(conc_yield_now(), -ECANCELED);
  s[0].rounds = 3;
  start(conc_coro_start, &t[0], begin_and_look, &s[0]);
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), 0);
  CHECK_EQ(conc_set_status(0), 0);
  /* One that is there already ends the join before anything runs. */
  s[0].cancels = false;
  start(conc_coro_start, &t[0], begin_and_look, &s[0]);
  CHECK_EQ(conc_cancel(conc_current()), 0);
  beginnings = 0;
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), -ECANCELED);
  CHECK_EQ(beginnings, 0);
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), 0);
  CHECK_EQ(conc_set_status(0), 0);
  return arg;
}
TEST(a_join_first_lets_run_what_was_just_started) {
  run(join_at_once, NULL);
}

/* --- very many --- */

static void *wait_for_event(void *arg) {
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), 0);
  return arg;
}

static void *very_many(void *arg) {
  int n = *(int *)arg;
  conc_task *t = (conc_task *)calloc((size_t)n, sizeof *t);
  static conc_event event;
  for (int i = 0; i < n; i++)
    start(conc_coro_start, &t[i], wait_for_event, &event);
  settle();
  conc_event_set(&event);
  for (int i = 0; i < n; i++) {
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
    CHECK(conc_result(&t[i]) == &event);
  }
  free(t);
  return NULL;
}
TEST(a_hundred_thousand_coroutines_wait_at_once) {
  /* Where a guard page splits the mapping, the kernel allows 65,530. */
  int n = 100000;
  void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!CONC_HAVE_GUARD_INSTALL || madvise(page, 4096, 102) != 0) n = 20000;
  if (CONC_HAVE_ASAN || test_wrapped("valgrind")) n = 5000;
  if (CONC_HAVE_TSAN) n = 1000;
  if (sizeof(void *) < 8 && n > 10000) n = 10000; /* as many addresses */
  munmap(page, 4096);
  run(very_many, &n);
}

/* --- descriptors --- */

typedef struct waiting {
  conc_task task;
  int fd, events, rc;
  double timeout;
} waiting;

static void *wait_for(void *arg) {
  waiting *w = (waiting *)arg;
  w->rc = conc_wait_fd(w->fd, w->events, w->timeout);
  return NULL;
}
static void wait_in_background(waiting *w, int fd, int events,
                               double timeout) {
  memset(w, 0, sizeof *w);
  w->fd = fd;
  w->events = events;
  w->timeout = timeout;
  w->rc = 1000;
  start(conc_coro_start, &w->task, wait_for, w);
  settle();
}
static void expect(waiting *w, int rc) {
  CHECK_EQ(conc_join(&w->task, 10), 0);
  CHECK_EQ(w->rc, rc);
}

static void fill_socket(int fd) {
  char data[4096];
  memset(data, 0, sizeof data);
  while (send(fd, data, sizeof data, MSG_DONTWAIT) > 0) {
  }
}
static size_t empty_socket(int fd) {
  char data[4096];
  size_t sum = 0;
  ssize_t n;
  while ((n = recv(fd, data, sizeof data, MSG_DONTWAIT)) > 0) sum += (size_t)n;
  return sum;
}

static void *wait_twice(void *arg) {
  waiting r, s, w, both;
  int fds[2];
  (void)arg;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  fill_socket(fds[0]);
  for (int round = 0; round < 50; round++) {
    wait_in_background(&r, fds[0], CONC_READ, CONC_FOREVER);
    wait_in_background(&w, fds[0], CONC_WRITE, CONC_FOREVER);
    wait_in_background(&s, fds[0], CONC_READ, 1e-3);
    expect(&s, -ETIMEDOUT); /* it leaves the others as they are */
    CHECK_EQ(r.rc, 1000);
    CHECK_EQ(w.rc, 1000);
    if (round % 2) { /* the reader first: the writer waits on */
      CHECK_EQ(write(fds[1], "x", 1), 1);
      expect(&r, CONC_READ);
      CHECK_EQ(conc_wait_fd(fds[0], CONC_WRITE, 0), -ETIMEDOUT);
      settle();
      CHECK_EQ(w.rc, 1000);
      CHECK(empty_socket(fds[1]) > 0);
      expect(&w, CONC_WRITE);
    } else {
      CHECK(empty_socket(fds[1]) > 0);
      expect(&w, CONC_WRITE);
      settle();
      CHECK_EQ(r.rc, 1000);
      CHECK_EQ(write(fds[1], "x", 1), 1);
      expect(&r, CONC_READ);
    }
    wait_in_background(&both, fds[0], CONC_READ | CONC_WRITE, 5);
    expect(&both, CONC_READ | CONC_WRITE);
    CHECK_EQ(empty_socket(fds[0]), 1);
    fill_socket(fds[0]);
  }
  /* Both are told of the end. */
  wait_in_background(&r, fds[0], CONC_READ, CONC_FOREVER);
  wait_in_background(&w, fds[0], CONC_WRITE, CONC_FOREVER);
  close(fds[1]);
  expect(&r, CONC_READ);
  expect(&w, CONC_WRITE);
  CHECK_EQ(conc_close(fds[0]), 0);
  return NULL;
}
TEST(one_descriptor_is_waited_for_to_read_and_to_write) {
  run(wait_twice, NULL);
}

/* The number of a closed descriptor is given out again at once. */
static void *reuse(void *arg) {
  waiting old, other, young;
  int a[2], b[2];
  (void)arg;
  for (int round = 0; round < 200; round++) {
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
    wait_in_background(&old, a[0], CONC_READ, CONC_FOREVER);
    wait_in_background(&other, a[0], CONC_READ, CONC_FOREVER);
    CHECK_EQ(conc_close(a[0]), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, b), 0);
    CHECK_EQ(b[0], a[0]);
    wait_in_background(&young, b[0], CONC_READ, CONC_FOREVER);
    expect(&old, -EBADF);
    expect(&other, -EBADF);
    settle();
    CHECK_EQ(young.rc, 1000); /* the other one's end is not its business */
    CHECK_EQ(write(b[1], "x", 1), 1);
    expect(&young, CONC_READ);
    /* Nobody waits: close() will do. */
    close(a[1]);
    close(b[0]);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
    wait_in_background(&young, a[0], CONC_READ, CONC_FOREVER);
    CHECK_EQ(write(a[1], "x", 1), 1);
    expect(&young, CONC_READ);
    close(a[0]);
    close(a[1]);
    close(b[1]);
  }
  return NULL;
}
TEST(a_descriptor_number_may_be_used_again) { run(reuse, NULL); }

/* What a wait that ran out had told the poller must not be heard by whoever
   waits for that number later: the file may live on in a duplicate. */
static void *reuse_after_timeout(void *arg) {
  waiting w;
  int a[2], b[2], copy;
  (void)arg;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
  CHECK_EQ(conc_wait_fd(a[0], CONC_READ, 1e-3), -ETIMEDOUT);
  copy = dup(a[0]);
  close(a[0]);
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, b), 0);
  CHECK_EQ(b[0], a[0]);
  wait_in_background(&w, b[0], CONC_READ, 0.05);
  CHECK_EQ(write(a[1], "x", 1), 1);
  expect(&w, -ETIMEDOUT);
  close(b[0]);
  close(b[1]);
  close(a[1]);
  close(copy);
  return NULL;
}
TEST(a_wait_that_ran_out_leaves_nothing_with_the_poller) {
  run(reuse_after_timeout, NULL);
}

/* Reading again after a short read waits without asking the kernel: it may
   have been wrong, or the descriptor another one meanwhile. */
typedef struct reading {
  conc_task task;
  int fd;
  ssize_t n;
} reading;

static void *read_some(void *arg) {
  reading *r = (reading *)arg;
  char buf[16];
  r->n = conc_read(r->fd, buf, sizeof buf, 10);
  return NULL;
}
static void read_in_background(reading *r, int fd) {
  memset(r, 0, sizeof *r);
  r->fd = fd;
  r->n = 1000;
  start(conc_coro_start, &r->task, read_some, r);
  settle();
}
static void expect_read(reading *r, ssize_t n) {
  CHECK_EQ(conc_join(&r->task, 20), 0);
  CHECK_EQ(r->n, n);
}
/* A read that waited and was short, and so a descriptor that counts as
   empty. */
static void read_all(int fd, int other) {
  for (int i = 0; i < 2; i++) {
    reading r;
    read_in_background(&r, fd);
    CHECK_EQ(r.n, 1000);
    CHECK_EQ(write(other, "xyz", 3), 3);
    expect_read(&r, 3);
  }
}

static void *keep_busy(void *stop) {
  while (!*(bool *)stop) CHECK_EQ(conc_yield_now(), 0);
  return NULL;
}

static void *read_again(void *among_others) {
  conc_task busy;
  bool stop = false;
  reading r;
  waiting w;
  int a[2], b[2], copy;
  if (among_others != NULL) start(conc_coro_start, &busy, keep_busy, &stop);
  for (int round = 0; round < 100; round++) {
    int type = round % 2 ? SOCK_DGRAM : SOCK_STREAM;
    /* More than it seemed; the end. */
    CHECK_EQ(socketpair(AF_UNIX, type, 0, a), 0);
    read_all(a[0], a[1]);
    CHECK_EQ(write(a[1], "a", 1), 1);
    CHECK_EQ(write(a[1], "b", 1), 1);
    read_in_background(&r, a[0]);
    expect_read(&r, type == SOCK_DGRAM ? 1 : 2);
    if (type == SOCK_STREAM) {
      CHECK_EQ(write(a[1], "c", 1), 1);
      CHECK_EQ(shutdown(a[1], SHUT_WR), 0);
    }
    read_in_background(&r, a[0]);
    expect_read(&r, 1);
    if (type == SOCK_STREAM) {
      read_in_background(&r, a[0]);
      expect_read(&r, 0);
    }
    CHECK_EQ(conc_close(a[0]), 0);
    close(a[1]);
    /* Another one of the same number, which has something already. */
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
    read_all(a[0], a[1]);
    copy = dup(a[0]);
    close(a[0]);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, b), 0);
    CHECK_EQ(b[0], a[0]);
    CHECK_EQ(write(b[1], "x", 1), 1);
    read_in_background(&r, b[0]);
    expect_read(&r, 1);
    /* What the duplicate hears is nothing to it. */
    CHECK_EQ(write(a[1], "x", 1), 1);
    wait_in_background(&w, b[0], CONC_READ, 1e-3);
    expect(&w, -ETIMEDOUT);
    read_in_background(&r, b[0]);
    CHECK_EQ(write(a[1], "x", 1), 1);
    settle();
    CHECK_EQ(r.n, 1000);
    CHECK_EQ(write(b[1], "xy", 2), 2);
    expect_read(&r, 2);
    close(a[1]);
    close(b[1]);
    close(b[0]);
    close(copy);
    /* None any more; and one that is always ready. */
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
    read_all(a[0], a[1]);
    close(a[0]);
    read_in_background(&r, a[0]);
    expect_read(&r, -EBADF);
    CHECK_EQ(open("Makefile", O_RDONLY | O_CLOEXEC), a[0]);
    read_in_background(&r, a[0]);
    expect_read(&r, 16);
    close(a[0]);
    close(a[1]);
  }
  stop = true;
  if (among_others != NULL) CHECK_EQ(conc_join(&busy, CONC_FOREVER), 0);
  return NULL;
}
TEST(a_short_read_does_not_hide_what_there_is) {
  bool yes = true;
  run(read_again, NULL);
  run(read_again, &yes);
}

/* Nobody reads for a while, several wait, one waits in another way. */
static void *read_and_wait(void *arg) {
  reading r[2];
  waiting w;
  int fds[2];
  (void)arg;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  for (int round = 0; round < 100; round++) {
    read_all(fds[0], fds[1]);
    for (int i = 0; i < 4; i++) {
      CHECK_EQ(write(fds[1], "x", 1), 1);
      settle();
      if (round % 4 == i) conc_sleep(1e-5);
    }
    read_in_background(&r[0], fds[0]);
    expect_read(&r[0], 4);
    read_in_background(&r[0], fds[0]);
    if (round % 3 == 0) read_in_background(&r[1], fds[0]);
    if (round % 3 == 1) conc_sleep(1e-5);
    wait_in_background(&w, fds[0], CONC_READ, 1e-4);
    expect(&w, -ETIMEDOUT);
    CHECK_EQ(r[0].n, 1000);
    wait_in_background(&w, fds[0], CONC_READ, 10);
    CHECK_EQ(write(fds[1], "x", 1), 1);
    expect(&w, CONC_READ);
    if (round % 3 == 0) {
      settle();
      CHECK((r[0].n == 1) + (r[1].n == 1) == 1);
      CHECK_EQ(write(fds[1], "x", 1), 1);
      expect_read(&r[1], 1);
    }
    expect_read(&r[0], 1);
  }
  CHECK_EQ(conc_close(fds[0]), 0);
  close(fds[1]);
  return NULL;
}
TEST(who_reads_and_who_waits_do_not_miss_each_other) {
  run(read_and_wait, NULL);
}

/* What a poller cannot take is always ready; what is closed, never. */
static void *wait_for_odd_ones(void *arg) {
  char buf[16];
  int fd = open("Makefile", O_RDONLY | O_CLOEXEC);
  (void)arg;
  CHECK(fd >= 0);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_wait_fd(fd, CONC_READ, 1), CONC_READ);
    CHECK_EQ(conc_wait_fd(fd, CONC_READ | CONC_WRITE, 1),
             CONC_READ | CONC_WRITE);
    CHECK_EQ(conc_read(fd, buf, sizeof buf, 1), sizeof buf);
  }
  CHECK_EQ(conc_close(fd), 0);
  CHECK_EQ(conc_close(fd), -EBADF);
  CHECK_EQ(conc_close(-1), -EBADF);
  CHECK_EQ(conc_wait_fd(fd, CONC_READ, 1), -EBADF);
  CHECK_EQ(conc_wait_fd(fd, CONC_READ, 0), -EBADF);
  CHECK_EQ(conc_read(fd, buf, sizeof buf, 1), -EBADF);
  CHECK_EQ(conc_write(fd, buf, sizeof buf, 1), -EBADF);
  CHECK_EQ(conc_accept(fd, 1), -EBADF);
  return NULL;
}
TEST(files_are_always_ready_and_closed_descriptors_never) {
  run(wait_for_odd_ones, NULL);
  wait_for_odd_ones(NULL); /* and in a thread */
}

/* A pipe that blocks, and two coroutines that are woken for one byte, or for
   the room of one page: the other one goes on waiting, and so its loop. */
static int shared_pipe[2];
static ssize_t moved[2];
static void *read_shared(void *arg) {
  char byte;
  *(ssize_t *)arg = conc_read(shared_pipe[0], &byte, 1, 0.05);
  return NULL;
}
static void *write_shared(void *arg) {
  static char page[4096];
  *(ssize_t *)arg = conc_write(shared_pipe[1], page, sizeof page, 0.05);
  return NULL;
}
static void two_at_once(conc_fn *fn) {
  conc_task t[2];
  for (int i = 0; i < 2; i++) start(conc_coro_start, &t[i], fn, &moved[i]);
  settle();
  if (fn == read_shared) {
    CHECK_EQ(write(shared_pipe[1], "x", 1), 1);
  } else {
    static char page[4096];
    CHECK_EQ(read(shared_pipe[0], page, sizeof page), sizeof page);
  }
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], 10), 0);
  CHECK((moved[0] > 0) != (moved[1] > 0));
  CHECK_EQ(moved[0] > 0 ? moved[1] : moved[0], -ETIMEDOUT);
}
static void *share_pipe(void *arg) {
  static char zeros[65536];
  CHECK_EQ(pipe(shared_pipe), 0);
  two_at_once(read_shared);
  CHECK_EQ(fcntl(shared_pipe[1], F_SETFL, O_NONBLOCK), 0);
  while (write(shared_pipe[1], zeros, sizeof zeros) > 0) continue;
  while (write(shared_pipe[1], zeros, 1) > 0) continue;
  CHECK_EQ(fcntl(shared_pipe[1], F_SETFL, 0), 0);
  two_at_once(write_shared);
  close(shared_pipe[0]), close(shared_pipe[1]);
  return arg;
}
TEST(a_blocking_pipe_that_two_coroutines_use_does_not_block_the_loop) {
  run(share_pipe, NULL);
}

/* A pipe whose reader has gone; no signal may kill us in a socket's case. */
static void *write_to_nobody(void *arg) {
  int fds[2];
  (void)arg;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  close(fds[1]);
  CHECK_EQ(conc_write(fds[0], "x", 1, 1), -EPIPE);
  CHECK_EQ(conc_close(fds[0]), 0);
  return NULL;
}
TEST(writing_to_a_socket_that_nobody_reads_is_an_error) {
  run(write_to_nobody, NULL);
  write_to_nobody(NULL);
}

/* More than poll's stack has room for, all at once and one by one. */
static void *wait_for_many(void *arg) {
  enum { N = 150 };
  static waiting w[N];
  static int fds[N][2];
  (void)arg;
  for (int i = 0; i < N; i++) {
    CHECK_EQ(pipe(fds[i]), 0);
    wait_in_background(&w[i], fds[i][0], CONC_READ, CONC_FOREVER);
  }
  for (int k = 0; k < N; k++) {
    int i = k * 7 % N;
    CHECK_EQ(write(fds[i][1], "x", 1), 1);
    expect(&w[i], CONC_READ);
  }
  for (int i = 0; i < N; i++) close(fds[i][0]), close(fds[i][1]);
  return NULL;
}
TEST(many_descriptors_are_waited_for_at_once) { run(wait_for_many, NULL); }

/* --- conc_offload --- */

static conc_event go, begun;
static void *block(void *arg) {
  usleep(1000);
  return arg;
}
static void *block_until_go(void *arg) {
  while (!conc_event_is_set(&go)) usleep(1000);
  return arg;
}
static void *sleep_long(void *arg) {
  conc_event_set(&begun);
  *(int *)arg = conc_sleep(100);
  return arg;
}
static void *offload_some(void *arg) {
  for (intptr_t i = 1; i < 10; i++)
    CHECK(conc_offload(block, (void *)i) == (void *)i);
  return arg;
}
static void *offload_wait(void *arg) {
  return conc_offload(block_until_go, arg);
}
static void *offload_sleep(void *arg) {
  return conc_offload(sleep_long, arg);
}
static void *offload_main(void *arg) {
  conc_task some[20], waits, sleeps;
  int slept = 1;
  start(conc_coro_start, &waits, offload_wait, NULL);
  for (int i = 0; i < 20; i++)
    start(conc_coro_start, &some[i], offload_some, NULL);
  for (int i = 0; i < 20; i++) CHECK_EQ(conc_join(&some[i], CONC_FOREVER), 0);
  conc_event_set(&go); /* only the one coroutine has waited so long */
  CHECK_EQ(conc_join(&waits, CONC_FOREVER), 0);
  start(conc_coro_start, &sleeps, offload_sleep, &slept);
  CHECK_EQ(conc_event_wait(&begun, CONC_FOREVER), 0);
  CHECK_EQ(conc_cancel(&sleeps), 0);
  CHECK_EQ(conc_join(&sleeps, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(slept, -ECANCELED);
  return arg;
}
TEST(offload_blocks_only_the_coroutine_that_calls_it) {
  run(offload_main, NULL);
  CHECK(conc_offload(block, &go) == &go);
}

/* --- what a child of exec would see --- */

static char foreign[256]; /* descriptors that were open before */

static int list_open(void) {
  int n = 0;
  for (int fd = 0; fd < 256; fd++) {
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0 || foreign[fd]) continue;
    if (!(flags & FD_CLOEXEC)) TEST_FAIL("descriptor %d is inherited", fd);
    n++;
  }
  return n;
}

static void *poll_for_ever(void *arg) {
  return conc_wait_fd(*(int *)arg, CONC_READ, CONC_FOREVER) > 0 ? arg : NULL;
}

static void *look_at_descriptors(void *arg) {
  conc_manager *server = (conc_manager *)arg, client;
  conc_task thread;
  conc_queue *q;
  int fds[2], listener, there, here;
  char buf[4], path[64];
  memset(&client, 0, sizeof client);
  client.address = conc_manager_address(server);
  CHECK_EQ(conc_manager_connect(&client, 5), 0);
  q = conc_manager_get(&client, "q");
  CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  CHECK_EQ(conc_get(q, buf, 4, 5), 1);
  snprintf(path, sizeof path, "/tmp/conc-loop-%d.sock", (int)getpid());
  listener = conc_listen(path);
  CHECK(listener >= 0);
  here = conc_connect(path, 5);
  there = conc_accept(listener, 5);
  CHECK(here >= 0 && there >= 0);
  CHECK_EQ(pipe(fds), 0);
  foreign[fds[0]] = foreign[fds[1]] = 1;
  start(conc_thread_start, &thread, poll_for_ever, &fds[0]);
  CHECK_EQ(conc_sleep(0.02), 0); /* it has its waker by then, or soon after */
  /* This loop's, the server's loop's, a listener each, both ends of both
     connections, at least. */
  int pollers = CONC_HAVE_EPOLL && conc__call_may(CONC__CALL_EPOLL) ? 2 : 0;
  CHECK(list_open() >= pollers + 2 + 2 + 4);
  CHECK_EQ(write(fds[1], "x", 1), 1);
  CHECK_EQ(conc_join(&thread, 5), 0);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  conc_close(listener), conc_close(here), conc_close(there);
  close(fds[0]), close(fds[1]);
  unlink(path);
  return NULL;
}

TEST(no_descriptor_of_ours_is_inherited) {
  conc_manager server;
  conc_queue *q = conc_queue_new(NULL);
  for (int fd = 0; fd < 256; fd++) foreign[fd] = fcntl(fd, F_GETFD) >= 0;
  memset(&server, 0, sizeof server);
  server.no_auth = true;
  CHECK_EQ(conc_manager_register_queue(&server, "q", q), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  run(look_at_descriptors, &server);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  CHECK_EQ(list_open(), 0);
  conc_queue_free(q);
}

TEST_MAIN
