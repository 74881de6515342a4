/* The queue between processes: what it promises, and that none of it depends
 * on how a process ends. From inside, for the cells. The tests run over each
 * way of waiting, and those that make sense within a process over the local
 * queue, too.
 *
 *   QUEUE_KILLS=10000     so many children are killed in a test (default 300)
 *   QUEUE_SECONDS=60      for the tests that kill at every instruction
 */
#include "test.h"

#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"
#include "step.h"
#include <sys/resource.h>

#define GET(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define SET(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define ADD(x, v) __atomic_add_fetch(&(x), (v), __ATOMIC_ACQ_REL)

/* A child has no test of its own: it tells by its exit code. */
#define MUST(condition)                                               \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: in the child: %s\n", __FILE__, __LINE__, \
              #condition);                                            \
      _exit(99);                                                      \
    }                                                                 \
  } while (0)

enum { LOCAL, RING = CONC_QUEUE_RING, PIPE = CONC_QUEUE_PIPE };
static int kind;

#define TEST_SHARED(name)                     \
  static void name(void);                     \
  TEST(name##_ring) { kind = RING, name(); }  \
  TEST(name##_pipe) { kind = PIPE, name(); }  \
  static void name(void)
#define TEST_ALL(name)                          \
  static void name(void);                       \
  TEST(name##_local) { kind = LOCAL, name(); }  \
  TEST(name##_ring) { kind = RING, name(); }    \
  TEST(name##_pipe) { kind = PIPE, name(); }    \
  static void name(void)

static conc_queue *make(size_t capacity, size_t max_bytes) {
  conc_queue_opts o;
  conc_queue *q;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  o.max_bytes = max_bytes;
  o.shared = kind != LOCAL;
  o.backend = kind;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  return q;
}
static conc__cells_queue *cells(conc_queue *q) {
  return (conc__cells_queue *)q;
}
static conc__cell *cell(conc_queue *q, uint32_t i) {
  return conc__cell_at(cells(q), CONC__AT(0, i));
}

static void reap(pid_t pid, int want) {
  int status = 0;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), want);
}
static pid_t start(void (*run)(void *), void *arg) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    alarm((unsigned)(25 * test_slow()));
    run(arg);
    _exit(0);
  }
  return pid;
}
static void fill(unsigned char *p, size_t size, unsigned number) {
  for (size_t i = 0; i < size; i++) p[i] = (unsigned char)(number * 7 + i);
}
static int rounds(int n) { return CONC_HAVE_TSAN ? n / 10 + 1 : n; }

/* Until so many wait on a side. */
static void until_waiting(conc_queue *q, int side, unsigned n) {
  struct conc__cells_side *it = &cells(q)->cells->sides[side];
  while (GET(it->sleepers) + GET(it->pollers) < n) usleep(100);
}

/* --- messages --- */

TEST_ALL(every_size_up_to_the_limit) {
  static const size_t limits[] = {1, 40, 41, 100, 1100, 1101, 5000};
  static unsigned char in[5001], out[5000];
  for (size_t k = 0; k < sizeof limits / sizeof *limits; k++) {
    size_t max = limits[k];
    conc_queue *q = make(3, max);
    for (size_t size = 0; size <= max; size++) {
      fill(in, size, (unsigned)size);
      CHECK_EQ(conc_put(q, in, size, 0), 0);
      CHECK_EQ(conc_peek_size(q), size);
      if (size > 0) CHECK_EQ(conc_get(q, out, size - 1, 0), -EMSGSIZE);
      CHECK_EQ(conc_qsize(q), 1);
      CHECK_EQ(conc_get(q, out, size, 0), size);
      CHECK(memcmp(in, out, size) == 0);
    }
    CHECK_EQ(conc_put(q, in, max + 1, 0), -EMSGSIZE);
    CHECK_EQ(conc_put(q, NULL, 0, 0), 0);
    CHECK_EQ(conc_get(q, NULL, 0, 0), 0);
    CHECK_EQ(conc_peek_size(q), -ETIMEDOUT);
    CHECK_EQ(conc_get(q, NULL, 0, 0), -ETIMEDOUT);
    conc_queue_free(q);
  }
}

TEST_ALL(as_many_as_the_capacity_and_no_more) {
  for (size_t capacity = 1; capacity <= 9; capacity++) {
    conc_queue *q = make(capacity, 8);
    uint64_t n = 0, next = 0, m;
    for (int lap = 0; lap < 20; lap++) {
      for (size_t i = 0; i < capacity; i++, n++) {
        CHECK_EQ(conc_qsize(q), i);
        CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
      }
      CHECK_EQ(conc_put(q, &n, sizeof n, 0), -ETIMEDOUT);
      CHECK_EQ(conc_put(q, &n, sizeof n, 0.001), -ETIMEDOUT);
      for (size_t i = 0; i < capacity; i++, next++) {
        CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
        CHECK_EQ(m, next);
      }
      CHECK_EQ(conc_get(q, &m, sizeof m, 0), -ETIMEDOUT);
      CHECK_EQ(conc_get(q, &m, sizeof m, 0.001), -ETIMEDOUT);
      n++, next++;
      m = n - 1; /* not from the first cell again */
      CHECK_EQ(conc_put(q, &m, sizeof m, 0), 0);
      CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
    }
    conc_queue_free(q);
  }
}

TEST_SHARED(what_cannot_be_made_says_why) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.backend = kind;
  o.capacity = (size_t)INT32_MAX + 1;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
  o.capacity = 0;
  o.max_bytes = (size_t)INT32_MAX + 1;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
  o.max_bytes = 1;
  for (long n = 1; n < 100; n++) {
    conc_queue *q;
    test_fail_at = n;
    q = conc_queue_new(&o);
    if (q != NULL) {
      CHECK(n > 2);
      test_fail_at = 0;
      conc_queue_free(q);
      return;
    }
    CHECK_EQ(errno, ENOMEM);
    CHECK_EQ(test_blocks, 0);
  }
  TEST_FAIL("it never succeeds");
}

/* Laps are numbers of 31 bits, which begin anew some day. */
TEST_SHARED(laps_wrap_around) {
  for (size_t capacity = 1; capacity <= 4; capacity++) {
    conc_queue *q = make(capacity, 8);
    uint32_t lap = 0x7ffffffe;
    uint64_t m;
    for (uint32_t i = 0; i < capacity; i++)
      cell(q, i)->word = CONC__CELL(lap, 0, CONC__CELL_FREE);
    cells(q)->cells->head = cells(q)->cells->tail = CONC__AT(lap, 0);
    cells(q)->cells->done = (uint64_t)lap * capacity;
    for (uint64_t n = 0; n < 5 * capacity; n++) {
      for (uint64_t i = 0; i < capacity; i++)
        CHECK_EQ((m = n + i, conc_put(q, &m, sizeof m, 0)), 0);
      CHECK_EQ(conc_put(q, &m, sizeof m, 0), -ETIMEDOUT);
      CHECK_EQ(conc_qsize(q), capacity);
      CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
      for (uint64_t i = 0; i < capacity; i++) {
        CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
        CHECK_EQ(m, n + i);
        CHECK_EQ(conc_task_done(q), 0);
      }
      CHECK_EQ(conc_get(q, &m, sizeof m, 0), -ETIMEDOUT);
      CHECK_EQ(conc_task_done(q), -EINVAL);
      CHECK_EQ(conc_queue_join(q, 0), 0);
      m = 0;
      CHECK_EQ(conc_put(q, &m, sizeof m, 0), 0);
      CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
      CHECK_EQ(conc_task_done(q), 0);
    }
    conc_queue_free(q);
  }
}

/* A slow process may set them back to any earlier position. */
TEST_SHARED(head_and_tail_are_only_hints) {
  conc_queue *q = make(5, 8);
  uint64_t m, put = 0, got = 0, positions[200];
  for (size_t i = 0; i < 200; i++) {
    conc__cells *c = cells(q)->cells;
    positions[i] = c->tail;
    CHECK_EQ(conc_put(q, &put, sizeof put, 0), 0);
    put++;
    if (put - got < 1 + i % 5) continue;
    for (size_t k = 0; k <= i; k++) {
      c->tail = positions[k];
      if (k <= got) c->head = positions[k];
      CHECK_EQ(conc_qsize(q), put - got);
      if (put - got == 5) continue;
      c->tail = positions[k];
      CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
    }
    c->tail = positions[i / 2];
    c->head = positions[got / 2];
    CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
    CHECK_EQ(m, got);
    got++;
  }
  conc_queue_free(q);
}

/* --- typed values --- */

static void echo_values(void *arg) {
  conc_queue **q = (conc_queue **)arg;
  conc_value *v;
  int rc;
  while ((rc = conc_get_value(q[0], &v, 20)) == 0) {
    MUST(conc_put_value(q[1], v, 20) == 0);
    conc_value_free(v);
  }
  MUST(rc == -EPIPE);
  MUST(conc_queue_close(q[1]) == 0);
}

TEST_SHARED(values_travel) {
  conc_queue *q[2];
  conc_value *v;
  char text[100];
  int n = 0;
  double d;
  pid_t pid;
  q[0] = make(4, 3000);
  q[1] = make(4, 3000);
  pid = start(echo_values, q);
  CHECK_EQ(conc_put_build(q[0], 1, "(is)", 7, "seven"), 0);
  CHECK_EQ(conc_get(q[1], text, sizeof text, 20), -EBADMSG);
  CHECK_EQ(conc_peek_size(q[1]), -EBADMSG);
  CHECK_EQ(conc_get_value(q[1], &v, 20), 0);
  CHECK_EQ(conc_value_type(v), CONC_TUPLE);
  conc_value_free(v);
  CHECK_EQ(conc_put_build(q[0], 1, "s", "a text"), 0);
  CHECK_EQ(conc_get(q[1], text, 5, 20), -EMSGSIZE);
  CHECK_EQ(conc_peek_size(q[1]), 6);
  CHECK_EQ(conc_get(q[1], text, sizeof text, 20), 6);
  CHECK(memcmp(text, "a text", 6) == 0);
  CHECK_EQ(conc_put(q[0], "bytes", 5, 1), 0);
  CHECK_EQ(conc_get(q[1], text, 5, 20), 5);
  CHECK_EQ(conc_put_build(q[0], 1, "(id)", 3, 0.5), 0);
  CHECK_EQ(conc_get_parse(q[1], 20, "(id)", &n, &d), 0);
  CHECK(n == 3 && d == 0.5);
  CHECK_EQ(conc_queue_close(q[0]), 0);
  CHECK_EQ(conc_get_value(q[1], &v, 20), -EPIPE);
  reap(pid, 0);
  conc_queue_free(q[0]);
  conc_queue_free(q[1]);
}

TEST_SHARED(a_value_without_memory_is_not_lost) {
  conc_queue *q = make(4, 1000);
  conc_value *v;
  int n;
  CHECK_EQ(conc_put_build(q, 0, "[iii]", 1, 2, 3), 0);
  CHECK_EQ(conc_put_build(q, 0, "i", 4), 0);
  for (long at = 1;; at++) {
    int rc;
    test_fail_at = at;
    rc = conc_get_value(q, &v, 0);
    if (rc == 0) break;
    CHECK_EQ(rc, -ENOMEM);
    test_fail_at = 0;
    CHECK_EQ(conc_qsize(q), 2);
    CHECK_EQ(conc_peek_size(q), -EBADMSG);
  }
  test_fail_at = 0;
  CHECK_EQ(conc_value_type(v), CONC_LIST);
  conc_value_free(v);
  CHECK_EQ(conc_get_parse(q, 0, "i", &n), 0);
  CHECK_EQ(n, 4);
  CHECK_EQ(conc_get(q, NULL, 0, 0), -ETIMEDOUT);
  conc_queue_free(q);
}

/* --- waiting --- */

static void get_one(void *arg) {
  int n;
  MUST(conc_get((conc_queue *)arg, &n, sizeof n, 20) == sizeof n && n == 5);
}
static void put_one(void *arg) {
  int n = 5;
  MUST(conc_put((conc_queue *)arg, &n, sizeof n, 20) == 0);
}
static void get_closed(void *arg) {
  int n;
  MUST(conc_get((conc_queue *)arg, &n, sizeof n, CONC_FOREVER) == -EPIPE);
}
static void put_closed(void *arg) {
  int n = 5;
  MUST(conc_put((conc_queue *)arg, &n, sizeof n, CONC_FOREVER) == -EPIPE);
}

/* So often that wake-ups that come 20 ms late would not fit in. */
TEST_SHARED(who_sleeps_is_woken) {
  conc_queue *q = make(2, 8);
  pid_t pids[6];
  int n = 5, waits = rounds(100);
  double start_at = test_now(), late = 0;
  for (int k = 0; k < waits; k++) {
    for (int i = 0; i < 6; i++) pids[i] = start(get_one, q);
    until_waiting(q, CONC__GETTERS, 6);
    start_at = test_now();
    for (int i = 0; i < 6; i++) CHECK_EQ(conc_put(q, &n, sizeof n, 20), 0);
    for (int i = 0; i < 6; i++) reap(pids[i], 0);
    late += test_now() - start_at > 0.02;
    CHECK_EQ(conc_qsize(q), 0);
  }
  if (!CONC_HAVE_TSAN) CHECK(late < waits / 2);
  for (int k = 0; k < waits; k++) {
    CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
    CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
    for (int i = 0; i < 6; i++) pids[i] = start(put_one, q);
    until_waiting(q, CONC__PUTTERS, 6);
    for (int i = 0; i < 8; i++) CHECK_EQ(conc_get(q, &n, sizeof n, 20), 4);
    for (int i = 0; i < 6; i++) reap(pids[i], 0);
    CHECK_EQ(conc_qsize(q), 0);
  }
  CHECK_EQ(cells(q)->cells->sides[0].sleepers, 0);
  CHECK_EQ(cells(q)->cells->sides[1].pollers, 0);
  conc_queue_free(q);
}

TEST_ALL(a_closed_queue_drains) {
  conc_queue *q = make(3, 8);
  int n = 1;
  CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
  CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_put(q, &n, sizeof n, 0), -EPIPE);
  CHECK_EQ(conc_peek_size(q), 4);
  CHECK_EQ(conc_get(q, &n, sizeof n, 1), 4);
  CHECK_EQ(conc_get(q, &n, sizeof n, 1), 4);
  CHECK_EQ(conc_get(q, &n, sizeof n, 1), -EPIPE);
  CHECK_EQ(conc_get(q, &n, sizeof n, 0), -EPIPE);
  CHECK_EQ(conc_peek_size(q), -EPIPE);
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  conc_queue_free(q);
}

TEST_SHARED(closing_wakes_all) {
  pid_t pids[8];
  int n = 1;
  for (int k = 0; k < rounds(50); k++) {
    conc_queue *empty = make(1, 8), *full = make(1, 8);
    CHECK_EQ(conc_put(full, &n, sizeof n, 0), 0);
    for (int i = 0; i < 8; i++)
      pids[i] = i % 2 ? start(get_closed, empty) : start(put_closed, full);
    until_waiting(empty, CONC__GETTERS, 4);
    until_waiting(full, CONC__PUTTERS, 4);
    CHECK_EQ(conc_queue_close(empty), 0);
    CHECK_EQ(conc_queue_close(full), 0);
    for (int i = 0; i < 8; i++) reap(pids[i], 0);
    CHECK_EQ(conc_get(full, &n, sizeof n, 0), 4);
    CHECK_EQ(conc_queue_join(full, 0), -ETIMEDOUT);
    CHECK_EQ(conc_task_done(full), 0);
    CHECK_EQ(conc_queue_join(full, 0), 0);
    conc_queue_free(empty);
    conc_queue_free(full);
  }
}

/* Whoever closes it: what putters put before they found it closed comes out
   before the getter does. */
static void put_until_closed(void *arg) {
  conc_queue *q = ((conc_queue **)arg)[0];
  long *count = ((long **)arg)[1];
  int n = 0, rc;
  while ((rc = conc_put(q, &n, sizeof n, 20)) == 0) ADD(*count, 1);
  MUST(rc == -EPIPE);
}
TEST_SHARED(nothing_is_put_after_the_end) {
  long *count = (long *)conc_shared_alloc(sizeof *count);
  pid_t pids[3];
  for (int k = 0; k < rounds(200); k++) {
    conc_queue *q = make(1 + test_random() % 5, 4);
    void *arg[2];
    long got = 0, n = (long)(test_random() % 50);
    int m;
    arg[0] = q;
    arg[1] = count;
    *count = 0;
    for (int i = 0; i < 3; i++) pids[i] = start(put_until_closed, arg);
    for (; got < n; got++) CHECK_EQ(conc_get(q, &m, sizeof m, 20), 4);
    CHECK_EQ(conc_queue_close(q), 0);
    while ((n = conc_get(q, &m, sizeof m, 20)) == 4) got++;
    CHECK_EQ(n, -EPIPE);
    for (int i = 0; i < 3; i++) reap(pids[i], 0);
    CHECK_EQ(got, *count);
    CHECK_EQ(conc_get(q, &m, sizeof m, 0), -EPIPE);
    for (; got > 0; got--) CHECK_EQ(conc_task_done(q), 0);
    CHECK_EQ(conc_task_done(q), -EINVAL);
    CHECK_EQ(conc_queue_join(q, 0), 0);
    conc_queue_free(q);
  }
  conc_shared_free(count);
}

TEST_SHARED(a_timeout_is_kept) {
  conc_queue *q = make(1, 8);
  int n = 0;
  double begin = conc_now();
  CHECK_EQ(conc_get(q, &n, sizeof n, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - begin >= 0.05);
  CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
  begin = conc_now();
  CHECK_EQ(conc_put(q, &n, sizeof n, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - begin >= 0.05);
  begin = conc_now();
  CHECK_EQ(conc_queue_join(q, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - begin >= 0.05);
  CHECK(conc_now() - begin < 5 * test_slow());
  conc_queue_free(q);
}

static void *get_cancelled(void *arg) {
  int n;
  CHECK_EQ(conc_get((conc_queue *)arg, &n, sizeof n, CONC_FOREVER),
           -ECANCELED);
  CHECK_EQ(conc_get((conc_queue *)arg, &n, sizeof n, 0), -ETIMEDOUT);
  return NULL;
}
TEST_ALL(a_wait_is_cancelled) {
  conc_queue *q = make(1, 8);
  for (int k = 0; k < rounds(50); k++) {
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = get_cancelled;
    t.arg = q;
    CHECK_EQ(conc_thread_start(&t), 0);
    if (k % 2 && kind != LOCAL) until_waiting(q, CONC__GETTERS, 1);
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, 20), -ECANCELED);
  }
  conc_queue_free(q);
}

/* --- coroutines --- */

static conc_queue *shared_queue, *shared_back;
static int ticks;
static bool stop_ticking;

static void *tick(void *arg) {
  (void)arg;
  while (!stop_ticking) {
    ticks++;
    conc_sleep(0.001);
  }
  return NULL;
}
static void *echo_in_loop(void *arg) {
  int n;
  (void)arg;
  while (conc_get(shared_queue, &n, sizeof n, 20) == 4)
    MUST(conc_put(shared_back, &n, sizeof n, 20) == 0);
  return NULL;
}
static void *loop_main(void *arg) {
  conc_task t[9];
  memset(t, 0, sizeof t);
  (void)arg;
  for (int i = 0; i < 9; i++) {
    t[i].target = i == 0 ? tick : echo_in_loop;
    MUST(conc_coro_start(&t[i]) == 0);
  }
  for (int i = 1; i < 9; i++) MUST(conc_join(&t[i], CONC_FOREVER) == 0);
  stop_ticking = true;
  MUST(conc_join(&t[0], 20) == 0);
  return NULL;
}
static void loop_child(void *arg) {
  conc_task t;
  (void)arg;
  memset(&t, 0, sizeof t);
  t.target = loop_main;
  MUST(conc_run(&t) == 0);
  MUST(ticks > 3);
}
TEST_SHARED(coroutines_wait_and_their_loop_goes_on) {
  int n, count = rounds(2000), waits = 0;
  bool seen[2000] = {false};
  double begin;
  pid_t pid;
  shared_queue = make(3, 8);
  shared_back = make(3, 8);
  pid = start(loop_child, NULL);
  begin = test_now();
  while (test_now() - begin < 0.05) sched_yield();
  for (int i = 0, got = 0; got < count;) {
    if (i < count && i - got < 5) {
      CHECK_EQ(conc_put(shared_queue, &i, sizeof i, 20), 0);
      i++;
      continue;
    }
    CHECK_EQ(conc_get(shared_back, &n, sizeof n, 20), 4);
    CHECK(n >= 0 && n < count && !seen[n]);
    seen[n] = true;
    got++;
    if (i == got && i % 64 == 0) { /* so that they sleep */
      until_waiting(shared_queue, CONC__GETTERS, 8);
      waits++;
    }
  }
  CHECK_EQ(conc_queue_close(shared_queue), 0);
  reap(pid, 0);
  conc_queue_free(shared_queue);
  conc_queue_free(shared_back);
}

/* --- many processes --- */

enum { SIDES = 3, MESSAGES = 20000 };
typedef struct crowd {
  conc_queue *q;
  unsigned char *seen; /* by message, shared */
  int number, messages;
} crowd;
static void crowd_put(void *arg) {
  const crowd *c = (const crowd *)arg;
  unsigned char data[300];
  for (int i = 0; i < c->messages; i++) {
    int head[2];
    size_t size = sizeof head + (size_t)(i * 7 % 290);
    fill(data, size, (unsigned)i);
    head[0] = c->number;
    head[1] = i;
    memcpy(data, head, sizeof head);
    MUST(conc_put(c->q, data, size, 20) == 0);
  }
}
static void crowd_get(void *arg) {
  const crowd *c = (const crowd *)arg;
  int last[SIDES] = {-1, -1, -1}, head[2];
  unsigned char data[300], want[300];
  ssize_t n;
  while ((n = conc_get(c->q, data, sizeof data, 20)) > 0) {
    memcpy(head, data, sizeof head);
    MUST(head[0] >= 0 && head[0] < SIDES);
    MUST(head[1] > last[head[0]] && head[1] < c->messages);
    last[head[0]] = head[1];
    MUST(n == (ssize_t)sizeof head + head[1] * 7 % 290);
    fill(want, (size_t)n, (unsigned)head[1]);
    MUST(memcmp(data + 8, want + 8, (size_t)n - 8) == 0);
    MUST(ADD(c->seen[head[0] * c->messages + head[1]], 1) == 1);
    MUST(conc_task_done(c->q) == 0);
  }
  MUST(n == -EPIPE);
}
static void meet(size_t capacity, size_t max_bytes, int messages) {
  crowd c[2 * SIDES];
  pid_t pids[2 * SIDES];
  size_t total = (size_t)(SIDES * messages);
  unsigned char *seen = (unsigned char *)conc_shared_alloc(total);
  conc_queue *q = make(capacity, max_bytes);
  for (int i = 0; i < 2 * SIDES; i++) {
    c[i].q = q;
    c[i].seen = seen;
    c[i].number = i;
    c[i].messages = messages;
    pids[i] = start(i < SIDES ? crowd_put : crowd_get, &c[i]);
  }
  for (int i = 0; i < SIDES; i++) reap(pids[i], 0);
  CHECK_EQ(conc_queue_join(q, 20), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  for (int i = SIDES; i < 2 * SIDES; i++) reap(pids[i], 0);
  for (size_t i = 0; i < total; i++) CHECK_EQ(seen[i], 1);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  conc_queue_free(q);
  conc_shared_free(seen);
}
TEST_SHARED(many_to_many_exactly_once_in_order) {
  meet(64, 300, rounds(MESSAGES));
  meet(64, 5000, rounds(MESSAGES)); /* in blocks */
}
TEST_SHARED(many_to_many_through_a_narrow_queue) {
  meet(1, 300, rounds(MESSAGES / 10));
  meet(2, 300, rounds(MESSAGES / 10));
}

TEST_MAIN
