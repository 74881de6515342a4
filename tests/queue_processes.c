/* The queue between processes: what it promises, and that none of it depends
 * on how a process ends. From inside, for the cells. The tests run over each
 * way of waiting, and those that make sense within a process over the local
 * queue, too.
 *
 *   QUEUE_KILLS=10000     so many children are killed in a test (default 300)
 *   QUEUE_SECONDS=60      for the tests that kill at every instruction
 *
 * CPython's test._test_multiprocessing (3.13), and which test here does the
 * same, by the first words of its name. "-": makes no sense in C.
 *
 *   _TestQueue
 *     test_put                    as_many_as_the_capacity, a_timeout_is_kept,
 *                                 who_sleeps_is_woken
 *     test_get                    the same
 *     test_fork                   threads_fork_while_they_use_it (there is no
 *                                 feeder thread whose buffer could come along)
 *     test_qsize                  as_many_as_the_capacity
 *     test_task_done              many_to_many_exactly_once (JoinableQueue:
 *                                 every queue has task_done and join)
 *     test_no_import_lock_...     -
 *     test_timeout                a_timeout_is_kept
 *     test_queue_feeder_...       - (put puts: there is no feeder; what cannot
 *                                 be pickled is an error of put)
 *     test_closed_queue_empty_... a_closed_queue_drains (closed is -EPIPE, for
 *                                 all; in Python for the process that closed)
 *     test_closed_queue_put_...   the same
 *   _TestSimpleQueue
 *     test_empty                  as_many_as_the_capacity
 *     test_close                  a_closed_queue_drains
 *     test_closed                 the same
 *   _TestJoinableQueue of older versions is _TestQueue.test_task_done
 *   Python's pages warn that a killed process may leave its queue corrupted:
 *   nothing_is_lost_with_the_killed, no_instruction_of_...
 */
#include "inside.h"
#include "child.h"
#include "step.h"
#include <sys/resource.h>

/* A child has no test of its own: it tells by its exit code. */
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

static pid_t start(void (*run)(void *), void *arg) {
  pid_t pid = begin_child();
  if (pid == 0) {
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
  while (LOAD(it->sleepers) + LOAD(it->pollers) < n) usleep(100);
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

TEST_ALL(many_at_once) {
  conc_queue *q = make(8, 8);
  uint32_t in[20], out[20];
  for (uint32_t i = 0; i < 20; i++) in[i] = i;
  for (int lap = 0; lap < 10; lap++) {
    CHECK_EQ(conc_put_many(q, in, 4, 20, lap % 2), 8);
    CHECK_EQ(conc_put_many(q, in, 4, 3, 0), -ETIMEDOUT);
    CHECK_EQ(conc_get_many(q, out, 4, 5, 0), 5);
    CHECK_EQ(conc_put(q, in, 3, 0), 0);
    CHECK_EQ(conc_put_many(q, in + 8, 4, 2, 0), 2);
    CHECK_EQ(conc_get_many(q, out + 5, 4, 15, 0), 3);
    CHECK_EQ(conc_get_many(q, out + 8, 4, 15, 1), -EMSGSIZE);
    CHECK_EQ(conc_get(q, out + 8, 4, 0), 3);
    CHECK_EQ(conc_get_many(q, out + 8, 8, 1, 1), -EMSGSIZE);
    CHECK_EQ(conc_get_many(q, out + 8, 4, 15, 1), 2);
    CHECK_EQ(conc_get_many(q, out, 4, 15, 0), -ETIMEDOUT);
    CHECK(memcmp(in, out, 40) == 0);
    CHECK_EQ(conc_get_many(q, out, 4, 0, 0), 0);
    CHECK_EQ(conc_put_many(q, in, 9, 1, 0), -EMSGSIZE);
  }
  conc_queue_free(q);
}

/* Options that cannot be, and then each allocation fails in turn: the queue
   is not made, errno says why, and nothing is left allocated. */
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
  o.backend = CONC_QUEUE_PIPE + 1;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
  o.backend = kind;
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
    CHECK_CHILD(conc_put_value(q[1], v, 20) == 0);
    conc_value_free(v);
  }
  CHECK_CHILD(rc == -EPIPE);
  CHECK_CHILD(conc_queue_close(q[1]) == 0);
}

/* A child sends back what it gets: typed values, texts, bytes. What does
   not fit, or is asked for as another type, stays in the queue. */
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
    CHECK_EQ(cells(q)->stashed, 0); /* it is there for all processes */
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
  CHECK_CHILD(conc_get((conc_queue *)arg, &n, sizeof n, 20) == sizeof n &&
              n == 5);
}
static void put_one(void *arg) {
  int n = 5;
  CHECK_CHILD(conc_put((conc_queue *)arg, &n, sizeof n, 20) == 0);
}
static void get_closed(void *arg) {
  int n;
  CHECK_CHILD(conc_get((conc_queue *)arg, &n, sizeof n, CONC_FOREVER) ==
              -EPIPE);
}
static void put_closed(void *arg) {
  int n = 5;
  CHECK_CHILD(conc_put((conc_queue *)arg, &n, sizeof n, CONC_FOREVER) ==
              -EPIPE);
}

/* Wake-ups that come 20 ms late are late each time; what a machine with other
   things to do delays is not. */
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
  if (!CONC_HAVE_TSAN) CHECK(late < waits - waits / 10);
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
  while ((rc = conc_put(q, &n, sizeof n, 20)) == 0) ADD_FETCH(*count, 1);
  CHECK_CHILD(rc == -EPIPE);
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
static int *ticks; /* shared */
static bool stop_ticking;

static void *tick(void *arg) {
  (void)arg;
  while (!stop_ticking) {
    ADD_FETCH(*ticks, 1);
    conc_sleep(0.001);
  }
  return NULL;
}
static void *echo_in_loop(void *arg) {
  int n;
  (void)arg;
  while (conc_get(shared_queue, &n, sizeof n, 20) == 4)
    CHECK_CHILD(conc_put(shared_back, &n, sizeof n, 20) == 0);
  return NULL;
}
static void *loop_main(void *arg) {
  conc_task t[9];
  memset(t, 0, sizeof t);
  (void)arg;
  for (int i = 0; i < 9; i++) {
    t[i].target = i == 0 ? tick : echo_in_loop;
    CHECK_CHILD(conc_coro_start(&t[i]) == 0);
  }
  for (int i = 1; i < 9; i++) CHECK_CHILD(conc_join(&t[i], CONC_FOREVER) == 0);
  stop_ticking = true;
  CHECK_CHILD(conc_join(&t[0], 20) == 0);
  return NULL;
}
static void loop_child(void *arg) {
  conc_task t;
  (void)arg;
  memset(&t, 0, sizeof t);
  t.target = loop_main;
  CHECK_CHILD(conc_run(&t) == 0);
}
/* Eight coroutines of a child wait at a queue, beside one that counts
   ticks. All messages come back once; when all eight sleep, the ticks must
   go on. */
TEST_SHARED(coroutines_wait_and_their_loop_goes_on) {
  int n, count = rounds(2000);
  bool seen[2000] = {false};
  pid_t pid;
  ticks = (int *)conc_shared_alloc(sizeof *ticks);
  shared_queue = make(3, 8);
  shared_back = make(3, 8);
  pid = start(loop_child, NULL);
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
    if (i == got && i % 64 == 0) { /* all sleep, and the loop does not */
      until_waiting(shared_queue, CONC__GETTERS, 8);
      n = LOAD(*ticks);
      while (LOAD(*ticks) < n + 3) usleep(100);
    }
  }
  CHECK_EQ(conc_queue_close(shared_queue), 0);
  reap(pid, 0);
  conc_queue_free(shared_queue);
  conc_queue_free(shared_back);
  conc_shared_free(ticks);
}

static void *wait_in_vain(void *arg) {
  int n = 0;
  if (*(int *)arg == CONC__GETTERS)
    CHECK_EQ(conc_get(shared_queue, &n, sizeof n, CONC_FOREVER), -ECANCELED);
  else
    CHECK_EQ(conc_put(shared_queue, &n, sizeof n, CONC_FOREVER), -ECANCELED);
  return NULL;
}
static void *cancel_waits(void *arg) {
  struct conc__cells_side *sides = cells(shared_queue)->cells->sides;
  int n = 1;
  (void)arg;
  for (int k = 0; k < rounds(200); k++) {
    int side = k / 2 % 2 ? CONC__PUTTERS : CONC__GETTERS;
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = wait_in_vain;
    t.arg = &side;
    if (side == CONC__PUTTERS)
      CHECK_EQ(conc_put(shared_queue, &n, sizeof n, 0), 0);
    CHECK_EQ(conc_coro_start(&t), 0);
    while (k % 2 && LOAD(sides[side].pollers) == 0) conc_sleep(0);
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, 20), -ECANCELED);
    CHECK_EQ(LOAD(sides[side].pollers) + LOAD(sides[side].sleepers), 0);
    if (side == CONC__PUTTERS)
      CHECK_EQ(conc_get(shared_queue, &n, sizeof n, 0), 4);
    CHECK_EQ(conc_qsize(shared_queue), 0);
  }
  return NULL;
}
TEST_SHARED(a_coroutine_that_waits_is_cancelled) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = cancel_waits;
  shared_queue = make(1, 8);
  CHECK_EQ(conc_run(&t), 0);
  conc_queue_free(shared_queue);
}

/* --- many processes --- */

/* A putter's messages: its number above, a count from 0 below. */
static void put_batches(void *arg) {
  uint32_t number = *(const uint32_t *)arg << 24, next = 0, items[17];
  uint32_t all = (uint32_t)rounds(20000);
  while (next < all) {
    size_t n = next % 17 + 1;
    ssize_t put;
    if (n > all - next) n = all - next;
    for (size_t i = 0; i < n; i++) items[i] = number | (next + (uint32_t)i);
    put = conc_put_many(shared_queue, items, 4, n, 20);
    CHECK_CHILD(put > 0 && (size_t)put <= n);
    next += (uint32_t)put;
  }
}
TEST_SHARED(batches_of_several_putters_keep_their_order) {
  uint32_t items[23], next[2] = {0, 0}, number[2] = {0, 1};
  uint32_t all = (uint32_t)rounds(20000);
  pid_t pids[2];
  shared_queue = make(16, 8);
  for (int i = 0; i < 2; i++) pids[i] = start(put_batches, &number[i]);
  while (next[0] + next[1] < 2 * all) {
    ssize_t n = conc_get_many(shared_queue, items, 4,
                              (next[0] + next[1]) % 23 + 1, 20);
    CHECK(n > 0);
    for (ssize_t i = 0; i < n; i++) {
      CHECK(items[i] >> 24 < 2);
      CHECK_EQ(items[i] & 0xffffff, next[items[i] >> 24]++);
    }
  }
  for (int i = 0; i < 2; i++) reap(pids[i], 0);
  CHECK_EQ(conc_get_many(shared_queue, items, 4, 1, 0), -ETIMEDOUT);
  conc_queue_free(shared_queue);
}

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
    CHECK_CHILD(conc_put(c->q, data, size, 20) == 0);
  }
}
static void crowd_get(void *arg) {
  const crowd *c = (const crowd *)arg;
  int last[SIDES] = {-1, -1, -1}, head[2];
  unsigned char data[300], want[300];
  ssize_t n;
  while ((n = conc_get(c->q, data, sizeof data, 20)) > 0) {
    memcpy(head, data, sizeof head);
    CHECK_CHILD(head[0] >= 0 && head[0] < SIDES);
    CHECK_CHILD(head[1] > last[head[0]] && head[1] < c->messages);
    last[head[0]] = head[1];
    CHECK_CHILD(n == (ssize_t)sizeof head + head[1] * 7 % 290);
    fill(want, (size_t)n, (unsigned)head[1]);
    CHECK_CHILD(memcmp(data + 8, want + 8, (size_t)n - 8) == 0);
    CHECK_CHILD(ADD_FETCH(c->seen[head[0] * c->messages + head[1]], 1) == 1);
    CHECK_CHILD(conc_task_done(c->q) == 0);
  }
  CHECK_CHILD(n == -EPIPE);
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

/* Children of many threads that use the queue at the moment of the fork. */
static bool fork_stop;
static conc_queue *fork_queue;
static void *put_and_get(void *arg) {
  int n = 1;
  (void)arg;
  while (!LOAD(fork_stop)) {
    CHECK_EQ(conc_put(fork_queue, &n, sizeof n, 20), 0);
    CHECK_EQ(conc_get(fork_queue, &n, sizeof n, 20), 4);
  }
  return NULL;
}
static void put_and_get_some(void *arg) {
  int n = 2;
  (void)arg;
  for (int i = 0; i < 50; i++) {
    CHECK_CHILD(conc_put(fork_queue, &n, sizeof n, 20) == 0);
    CHECK_CHILD(conc_get(fork_queue, &n, sizeof n, 20) == 4);
  }
}
TEST_SHARED(threads_fork_while_they_use_it) {
  conc_task t[3];
  memset(t, 0, sizeof t);
  fork_stop = false;
  fork_queue = make(4, 4);
  for (int i = 0; i < 3; i++) {
    t[i].target = put_and_get;
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < rounds(100); i++)
    reap(start(put_and_get_some, NULL), 0);
  STORE(fork_stop, true);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], 20), 0);
  CHECK_EQ(conc_qsize(fork_queue), 0);
  conc_queue_free(fork_queue);
}

static void get_nothing(void *arg) {
  CHECK_CHILD(conc_get((conc_queue *)arg, NULL, 0, 1) == -ETIMEDOUT);
}
TEST_SHARED(who_waits_uses_no_cpu) {
  conc_queue *q = make(1, 1);
  pid_t pid = start(get_nothing, q);
  struct rusage use;
  int status = 1;
  CHECK_EQ(wait4(pid, &status, 0, &use), pid);
  CHECK_EQ(status, 0);
  CHECK(use.ru_utime.tv_sec + use.ru_stime.tv_sec == 0);
  if (!CONC_HAVE_TSAN && !CONC_HAVE_ASAN && !test_wrapped("valgrind"))
    CHECK(use.ru_utime.tv_usec + use.ru_stime.tv_usec < 100000);
  conc_queue_free(q);
}

/* Who has the last message, or has joined, may free the queue at once, while
   the other's call has not returned yet. */
static void *put_last(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  int n = 5;
  usleep(test_random() % 300);
  CHECK_EQ(conc_put(q, &n, sizeof n, 20), 0);
  return NULL;
}
static void *end_last(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  usleep(test_random() % 300);
  CHECK_EQ(conc_task_done(q), 0);
  return NULL;
}
TEST_SHARED(who_has_the_last_may_free_the_queue) {
  for (int i = 0; i < rounds(200); i++) {
    conc_queue *q = make(2, 8);
    pthread_t thread;
    int n = 0;
    CHECK(pthread_create(&thread, NULL, put_last, q) == 0);
    CHECK_EQ(conc_get(q, &n, sizeof n, 20), 4);
    if (i % 2) {
      conc_queue_free(q);
      CHECK(pthread_join(thread, NULL) == 0);
      continue;
    }
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(pthread_create(&thread, NULL, end_last, q) == 0);
    CHECK_EQ(conc_queue_join(q, 20), 0);
    conc_queue_free(q);
    CHECK(pthread_join(thread, NULL) == 0);
  }
}

/* A putter that sleeps has marked the message that must be got first. A getter
   that cannot take it leaves the mark, for the one that can. */
TEST_SHARED(a_message_that_is_refused_is_awaited_still) {
  conc_queue *q = make(1, 64);
  char text[8];
  unsigned seen;
  int n = 0;
  CHECK_EQ(conc_put_build(q, 0, "s", "text"), 0);
  cell(q, 0)->word |= CONC__CELL_AWAITED;
  CHECK_EQ(conc_get_parse(q, 0, "i", &n), -EBADMSG);
  seen = cells(q)->cells->sides[CONC__PUTTERS].word;
  CHECK_EQ(conc_get(q, text, sizeof text, 0), 4);
  CHECK_EQ(cells(q)->cells->sides[CONC__PUTTERS].word, seen + 1);
  conc_queue_free(q);
}

/* --- by name --- */

static char queue_name[64];
static conc_queue *make_named(size_t capacity) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  o.max_bytes = 8;
  o.name = queue_name;
  o.shared = true;
  o.backend = kind;
  return conc_queue_new(&o);
}
static void named_echo(void *arg) {
  conc_queue *q = make_named(3);
  int n = 0;
  (void)arg;
  CHECK_CHILD(q != NULL);
  CHECK_CHILD(conc_get(q, &n, sizeof n, 20) == 4 && n == 7);
  CHECK_CHILD(conc_task_done(q) == 0);
  n = 8;
  CHECK_CHILD(conc_put(q, &n, sizeof n, 20) == 0);
  conc_queue_free(q);
}
TEST_SHARED(strangers_meet_by_name) {
  conc_queue *q;
  int n = 7;
  pid_t pid;
  snprintf(queue_name, sizeof queue_name, "conc-test-%d", (int)getpid());
  pid = start(named_echo, NULL); /* whoever comes first makes it */
  q = make_named(3);
  CHECK(q != NULL);
  CHECK(make_named(4) == NULL);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(conc_put(q, &n, sizeof n, 20), 0);
  reap(pid, 0);
  CHECK_EQ(conc_get(q, &n, sizeof n, 0), 4);
  CHECK_EQ(n, 8);
  CHECK_EQ(conc_get(q, &n, sizeof n, 0.01), -ETIMEDOUT);
  conc_queue_free(q);
}

/* Coroutines that wait for a queue with a name: they cost nothing, and each
   message of another process wakes one of them. */
enum { NAMED_WAITERS = 200 };
static conc_queue *named_queue;
static int named_got, *named_go;
static double named_use;
static double cpu_used(void) {
  struct rusage use;
  getrusage(RUSAGE_SELF, &use);
  return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}
static void *named_get(void *arg) {
  int n = 0;
  CHECK_EQ(conc_get(named_queue, &n, sizeof n, 20), 4);
  named_got += n;
  return arg;
}
static void put_all_named(void *arg) {
  conc_queue *q = make_named(3);
  int n = 1;
  (void)arg;
  CHECK_CHILD(q != NULL);
  while (!LOAD(*named_go)) usleep(1000);
  for (int i = 0; i < NAMED_WAITERS; i++)
    CHECK_CHILD(conc_put(q, &n, sizeof n, 20) == 0);
  conc_queue_free(q);
}
static void *named_main(void *arg) {
  static conc_task t[NAMED_WAITERS];
  double begin_at;
  memset(t, 0, sizeof t);
  for (int i = 0; i < NAMED_WAITERS; i++) {
    t[i].target = named_get;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  conc_sleep(0.05);
  begin_at = cpu_used();
  conc_sleep(0.2);
  named_use = cpu_used() - begin_at;
  STORE(*named_go, 1);
  for (int i = 0; i < NAMED_WAITERS; i++) CHECK_EQ(conc_join(&t[i], 20), 0);
  return arg;
}
TEST_SHARED(coroutines_wait_for_a_name) {
  conc_task t;
  pid_t pid;
  NEEDS_FORK;
  memset(&t, 0, sizeof t);
  named_got = 0;
  named_go = (int *)conc_shared_alloc(sizeof *named_go);
  snprintf(queue_name, sizeof queue_name, "conc-coro-%d", (int)getpid());
  pid = start(put_all_named, NULL);
  named_queue = make_named(3);
  CHECK(named_queue != NULL);
  t.target = named_main;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(named_got, NAMED_WAITERS);
  CHECK_EQ(conc_qsize(named_queue), 0);
  reap(pid, 0);
  conc_queue_free(named_queue);
  conc_shared_free(named_go);
  if (CONC_HAVE_FUTEX && !CONC_HAVE_TSAN && !CONC_HAVE_ASAN &&
      !test_wrapped("valgrind"))
    CHECK(named_use < 0.1); /* if each looked every 2 ms, it would be more */
  if (getenv("QUEUE_SECONDS")) printf("%g s of CPU\n", named_use);
}

/* --- processes that are killed --- */

/* Leaves a cell as a process does that is killed while it has claimed it. */
static void claim(conc_queue *q, uint32_t i, unsigned state) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    unsigned self = conc__registry_self(cells(q)->registry);
    cell(q, i)->word =
        CONC__CELL(CONC__CELL_LAP(cell(q, i)->word), self, state);
    kill(getpid(), SIGKILL);
  }
  reap(pid, -SIGKILL);
}

/* A getter dies after it has given up its message's block, which is another
   message's then: so the first one counts as received. */
TEST_SHARED(a_block_that_was_given_up_is_not_read_again) {
  conc_queue *q = make(4, 2000);
  char m[2000] = "";
  NEEDS_FORK;
  CHECK_EQ(conc_put(q, m, 500, 0), 0);
  claim(q, 0, CONC__CELL_READING);
  *conc__block_owner(cells(q), *conc__cell_block(cell(q, 0))) = 0;
  CHECK_EQ(conc_put(q, m, 600, 0), 0);
  CHECK_EQ(*conc__cell_block(cell(q, 1)), *conc__cell_block(cell(q, 0)));
  CHECK_EQ(conc_put(q, m, 8, 0), 0);
  CHECK_EQ(conc_get(q, m, sizeof m, 5), 600);
  CHECK_EQ(conc_get(q, m, sizeof m, 5), 8);
  CHECK_EQ(conc_get(q, m, sizeof m, 0), -ETIMEDOUT);
  conc_queue_free(q);
}

/* All blocks have an owner, and each of these claims is over: processes were
   killed between their claims and their messages. */
TEST_SHARED(blocks_of_the_dead_are_used_again) {
  conc_queue *q = make(4, 2000);
  char m[2000] = "";
  for (size_t i = 0; i < cells(q)->all; i++)
    *conc__block_owner(cells(q), i) = conc__block_claim(CONC__AT(7, 1), 7);
  cells(q)->cells->blocks = (unsigned)cells(q)->all;
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_put(q, m, 500, 0), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_get(q, m, sizeof m, 0), 500);
  conc_queue_free(q);
}

/* What came back lies besides the ring. A process dies while it gets that, or
   while it brings something back. */
TEST_SHARED(what_came_back_survives_its_getter) {
  conc_queue *q = make(4, 2000);
  uint32_t spare = (uint32_t)cells(q)->count;
  conc__message message;
  char m[2000] = "";
  NEEDS_FORK;
  message.data = m;
  message.size = 500;
  message.kind = CONC__RAW;
  CHECK_EQ(conc__cells_put_back(cells(q), &message), 0);
  claim(q, spare, CONC__CELL_READING);
  claim(q, spare + 1, CONC__CELL_BUSY);
  CHECK_EQ(conc_get(q, m, sizeof m, 5), 500);
  CHECK_EQ(conc_get(q, m, sizeof m, 0), -ETIMEDOUT);
  CHECK_EQ(conc_qsize(q), 0);
  for (uint32_t i = 0; i < CONC__CELLS_SPARE; i++)
    CHECK_EQ(CONC__CELL_STATE(cell(q, spare + i)->word), CONC__CELL_FREE);
  conc_queue_free(q);
}

/* A process that is stopped while it has a claim, and lives: no other one waits
   beyond its timeout, and what lies behind the claim can be had. */
static void claim_and_stop(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  unsigned self = conc__registry_self(cells(q)->registry);
  STORE(cell(q, 1)->word, CONC__CELL(0, self, CONC__CELL_BUSY));
  raise(SIGSTOP);
}
TEST_SHARED(who_is_stopped_holds_nobody) {
  conc_queue *q = make(4, 2000);
  char m[2000] = "";
  double begin_at;
  int status = 0;
  pid_t pid;
  CHECK_EQ(conc_put(q, m, 500, 0), 0);
  pid = start(claim_and_stop, q);
  CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
  CHECK(WIFSTOPPED(status));
  begin_at = test_now();
  CHECK_EQ(conc_put(q, m, 600, 1), 0);
  CHECK_EQ(conc_qsize(q), 3);
  CHECK_EQ(conc_get(q, m, sizeof m, 1), 500);
  CHECK_EQ(conc_peek_size(q), 600);
  CHECK_EQ(conc_get(q, m, sizeof m, 1), 600);
  CHECK_EQ(conc_peek_size(q), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, m, sizeof m, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 0.05), -ETIMEDOUT);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_put(q, m, 8, 1), 0);
  CHECK_EQ(conc_put(q, m, 8, 0.05), -ETIMEDOUT); /* its cell is next */
  CHECK(test_now() - begin_at < 5 * test_slow());
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_get(q, m, 8, 1), 8);
  CHECK_EQ(conc_put(q, m, 8, 1), 0);
  conc_queue_free(q);
}

/* A process dies between its claim of a cell and its message, at each of
   the cells, before or after it moves the tail. The others must get all
   older and newer messages, and have the cell back. */
TEST_SHARED(a_message_half_put_is_skipped) {
  for (uint32_t at = 0; at < 8; at++)
    for (int hint = 0; hint < 2; hint++) {
      conc_queue *q = make(4, 8);
      uint64_t n = 0, got = 0, m;
      for (; n < at; n++) {
        CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
        if (n >= 2) CHECK_EQ((got++, conc_get(q, &m, sizeof m, 0)), 8);
      }
      claim(q, at % 4, CONC__CELL_BUSY);
      if (hint)
        cells(q)->cells->tail =
            conc__at_next(cells(q), CONC__AT(at / 4, at % 4));
      /* It takes a place as long as there are older ones. */
      for (m = n, n = got + 4 - (n > got); m < n; m++)
        CHECK_EQ(conc_put(q, &m, sizeof m, 0), 0);
      CHECK_EQ(conc_put(q, &n, sizeof n, 0), -ETIMEDOUT);
      for (; got < n; got++) {
        CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
        CHECK_EQ(m, got);
      }
      CHECK_EQ(conc_get(q, &m, sizeof m, 0), -ETIMEDOUT);
      CHECK_EQ(conc_qsize(q), 0);
      for (int i = 0; i < 4; i++) CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
      CHECK_EQ(conc_put(q, &n, sizeof n, 0), -ETIMEDOUT);
      for (uint64_t i = 0; i < n + 4; i++) CHECK_EQ(conc_task_done(q), 0);
      CHECK_EQ(conc_task_done(q), -EINVAL);
      CHECK_EQ(conc_queue_join(q, 0), 0);
      conc_queue_free(q);
    }
}

TEST_SHARED(a_message_half_got_goes_to_another) {
  for (unsigned which = 0; which < 16; which++) {
    conc_queue *q = make(4, 8);
    uint64_t n, m, seen = 0;
    for (n = 0; n < 4; n++) CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
    for (uint32_t i = 0; i < 4; i++)
      if (which >> i & 1) claim(q, i, CONC__CELL_READING);
    if (which % 2) CHECK_EQ(conc_put(q, &n, sizeof n, 0), -ETIMEDOUT);
    CHECK_EQ(conc_qsize(q), 4);
    CHECK_EQ(conc_peek_size(q), 8);
    for (int i = 0; i < 4; i++) {
      CHECK_EQ(conc_get(q, &m, sizeof m, 0), 8);
      CHECK(m < 4 && !(seen >> m & 1));
      seen |= 1u << m;
    }
    CHECK_EQ(conc_get(q, &m, sizeof m, 0), -ETIMEDOUT);
    CHECK_EQ(conc_qsize(q), 0);
    CHECK_EQ(conc_queue_close(q), 0);
    CHECK_EQ(conc_get(q, &m, sizeof m, 0), -EPIPE);
    conc_queue_free(q);
  }
}

/* Who waits already when the other one dies. */
TEST_SHARED(who_waits_for_the_dead_goes_on) {
  for (int k = 0; k < 4; k++) {
    conc_queue *q = make(2, 8);
    int n = 5;
    double begin;
    pid_t pid;
    if (k == 0) { /* a putter behind a putter */
      claim(q, 0, CONC__CELL_BUSY);
      CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
    } else if (k == 1) { /* behind a getter */
      CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
      CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
      claim(q, 0, CONC__CELL_READING);
    }
    begin = test_now();
    pid = start(k < 2 ? put_one : get_one, q);
    if (k == 1) { /* its message is got, by another one */
      CHECK_EQ(conc_get(q, &n, sizeof n, 20), 4);
      CHECK_EQ(conc_get(q, &n, sizeof n, 20), 4);
    } else if (k > 1) {
      until_waiting(q, CONC__GETTERS, 1);
      if (k == 2) { /* a getter behind a putter */
        claim(q, 0, CONC__CELL_BUSY);
        CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
      } else { /* behind a getter, who took the wake-up with it */
        cell(q, 0)->word = 0;
        CHECK_EQ(conc_put(q, &n, sizeof n, 0), 0);
        claim(q, 0, CONC__CELL_READING);
      }
    }
    reap(pid, 0);
    CHECK(test_now() - begin < 5 * test_slow());
    conc_queue_free(q);
  }
}

TEST_SHARED(a_join_does_not_wait_for_the_dead) {
  conc_queue *q = make(2, 8);
  claim(q, 0, CONC__CELL_BUSY);
  CHECK_EQ(conc_queue_join(q, 20), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_qsize(q), 0);
  conc_queue_free(q);
}

/* Putters and getters of a queue are killed one after the other, at any
   moment, and others take their place; then all of them at once. A message
   names its putter, and what number it is. Getters have them copied to where
   the parent looks when it has killed one, for a message that had been got and
   was not noted yet. */
enum { HANDS = 6, LIVES = 64, EACH = 1 << 15 };
typedef struct hand {
  unsigned char data[600];
  unsigned life; /* of a putter; 0: it is a getter */
} hand;
typedef struct killed {
  conc_queue *q;
  hand hands[HANDS];
  unsigned put[LIVES]; /* how many of its messages each life has put */
  unsigned got;
  unsigned char noted[LIVES][EACH];
} killed;
static killed *game;

static size_t killed_size(const unsigned *head) {
  return 8 + (head[0] * 31 + head[1] * 7) % 500 * (head[1] % 5 == 0);
}
static void killed_child(void *arg) {
  hand *mine = (hand *)arg;
  unsigned char data[600];
  unsigned head[2] = {0, 0};
  for (;;) {
    if (mine->life == 0) {
      ssize_t n = conc_get(game->q, mine->data, sizeof mine->data,
                           CONC_FOREVER);
      memcpy(head, mine->data, sizeof head);
      CHECK_CHILD(head[0] < LIVES && head[1] < EACH);
      CHECK_CHILD(n == (ssize_t)killed_size(head));
      fill(data, (size_t)n, head[0] ^ head[1]);
      CHECK_CHILD(memcmp(data + 8, mine->data + 8, (size_t)n - 8) == 0);
      ADD_FETCH(game->noted[head[0]][head[1]], 1);
      ADD_FETCH(game->got, 1);
    } else {
      size_t size;
      head[0] = mine->life;
      size = killed_size(head);
      fill(data, size, head[0] ^ head[1]);
      memcpy(data, head, sizeof head);
      CHECK_CHILD(conc_put(game->q, data, size, CONC_FOREVER) == 0);
      STORE(game->put[mine->life], ++head[1]);
      if (head[1] > EACH / 2) usleep(100);
      CHECK_CHILD(head[1] < EACH);
    }
  }
}
static void kill_some(int kills) {
  unsigned life = 0, candidates[LIVES + HANDS][2], n = 0, all = 0, head[2];
  unsigned char data[600];
  pid_t pids[HANDS];
  ssize_t size;
  conc_queue *q = make(1 + test_random() % 8, 600);
  game->q = q;
  /* What was got in an earlier game counts no more: lives begin anew. */
  memset(game->hands, 0, sizeof game->hands);
  for (int i = 0; i < HANDS; i++) {
    game->hands[i].life = i % 2 ? ++life : 0;
    pids[i] = start(killed_child, &game->hands[i]);
  }
  for (int k = 0; k < kills + HANDS; k++) {
    int i = k < kills ? (int)(test_random() % HANDS) : k - kills;
    double until = test_now() + (test_random() % 256) * 1e-6;
    hand *his = &game->hands[i];
    if (k < kills)
      while (test_now() < until) {
      }
    kill(pids[i], SIGKILL);
    reap(pids[i], -SIGKILL);
    if (his->life == 0) memcpy(candidates[n++], his->data, 8);
    if (k >= kills) continue;
    his->life = i % 2 ? ++life : 0;
    pids[i] = start(killed_child, his);
    if (k % 8 == 0) { /* they all go on */
      unsigned got = LOAD(game->got);
      until = test_now() + 10 * test_slow();
      while (LOAD(game->got) < got + 20)
        if (test_now() > until) TEST_FAIL("they are stuck");
    }
  }
  while ((size = conc_get(q, data, sizeof data, 0)) > 0) {
    memcpy(head, data, sizeof head);
    CHECK_EQ(size, killed_size(head));
    game->noted[head[0]][head[1]]++;
  }
  CHECK_EQ(size, -ETIMEDOUT);
  CHECK_EQ(conc_qsize(q), 0);
  for (unsigned i = 0; i < n; i++) {
    unsigned char *noted;
    memcpy(head, candidates[i], sizeof head);
    noted = &game->noted[head[0] % LIVES][head[1] % EACH];
    /* A message that was not put does not count, if an old one was copied. */
    if (head[0] > 0 && *noted == 0 && head[1] <= game->put[head[0]])
      *noted = 1;
  }
  for (unsigned i = 1; i <= life; i++) {
    for (unsigned k = 0; k < EACH && k <= game->put[i]; k++) {
      if (k < game->put[i] && game->noted[i][k] != 1)
        TEST_FAIL("message %u of putter %u was got %d times", k, i,
                  game->noted[i][k]);
      CHECK(game->noted[i][k] <= 1);
      all += game->noted[i][k];
    }
    memset(game->noted[i], 0, game->put[i] + 1);
  }
  memset(game->put, 0, sizeof game->put);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  while (all-- > 0) CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  for (size_t i = 0; i < q->capacity; i++)
    CHECK_EQ(conc_put(q, data, 600, 0), 0);
  CHECK_EQ(conc_put(q, data, 600, 0), -ETIMEDOUT);
  conc_queue_free(q);
}
static int kills_asked(void) { return (int)test_asked("QUEUE_KILLS", 300); }
TEST_SHARED(nothing_is_lost_with_the_killed) {
  game = (killed *)conc_shared_alloc(sizeof *game);
  CHECK(game != NULL);
  for (int k = kills_asked(); k > 0; k -= 50) kill_some(k < 50 ? k : 50);
  conc_shared_free(game);
}

/* --- killed at every instruction --- */

typedef struct stepped {
  conc_queue *q, *other;
  uint64_t data[40]; /* what a get copies */
  int done;
} stepped;
static stepped *step;
/* Bytes: the limit of the queue, of a message there, and of one that is put
   while it is stepped. Above 104 of 2,000 they lie in blocks. */
static size_t step_max = 96, step_short = 8, step_long = 96;

/* So that neither the dynamic linker nor the registry is stepped through. */
static void step_prepare(void) {
  char byte = 0;
  conc__registry_self(cells(step->q)->registry);
  conc_put(step->other, &byte, 1, 0);
  conc_get(step->other, &byte, 1, 0);
  conc_task_done(step->other);
  conc__cells_wake(cells(step->other), CONC__GETTERS, 1);
}
static int step_put(void *arg) {
  uint64_t m[40];
  int rc;
  (void)arg;
  memset(m, 0, sizeof m);
  m[0] = 100;
  rc = conc_put(step->q, m, step_long, 0);
  STORE(step->done, 1);
  return rc;
}
static int step_get(void *arg) {
  (void)arg;
  if (conc_get(step->q, step->data, sizeof step->data, 0) !=
      (ssize_t)step_short)
    return -1;
  STORE(step->done, 1);
  return 0;
}
static int step_task_done(void *arg) {
  int rc = conc_task_done(step->q);
  (void)arg;
  STORE(step->done, 1);
  return rc;
}
/* The numbers in the queue, in order but for the first of them, which may have
   been half got; how many. */
static int step_drain(uint64_t *numbers) {
  uint64_t m[40];
  int count = 0;
  ssize_t n;
  while ((n = conc_get(step->q, m, sizeof m, 0)) > 0) {
    CHECK(count < 4);
    numbers[count++] = m[0];
    if (m[0] != 1 || count == 1) continue;
    memmove(numbers + 1, numbers, (size_t)(count - 1) * sizeof *numbers);
    numbers[0] = 1;
  }
  for (int i = 1; i < count; i++) CHECK(numbers[i] > numbers[i - 1]);
  CHECK(n == -ETIMEDOUT || n == -EPIPE);
  CHECK_EQ(conc_qsize(step->q), 0);
  return count;
}
/* There is as much room as ever, and so many messages were put. */
static void step_finish(int unfinished) {
  uint64_t m[40];
  memset(m, 0, sizeof m);
  for (int i = 0; i < 4; i++) {
    m[0] = (uint64_t)i + 1;
    CHECK_EQ(conc_put(step->q, m, step_long, 0), 0);
  }
  CHECK_EQ(conc_put(step->q, m, step_long, 0), -ETIMEDOUT);
  CHECK_EQ(step_drain(m), 4);
  for (int i = 0; i < unfinished + 4; i++) {
    CHECK_EQ(conc_queue_join(step->q, 0), -ETIMEDOUT);
    CHECK_EQ(conc_task_done(step->q), 0);
  }
  CHECK_EQ(conc_task_done(step->q), -EINVAL);
  CHECK_EQ(conc_queue_join(step->q, 0), 0);
}
/* A new queue, some laps old and with so many messages. */
static void step_begin(long k, uint64_t messages) {
  uint64_t m[40];
  memset(m, 0, sizeof m);
  step->done = 0;
  memset(step->data, 0, sizeof step->data);
  step->q = make(4, step_max);
  for (long i = 0; i < k % 7; i++) {
    CHECK_EQ(conc_put(step->q, "", 1, 0), 0);
    CHECK_EQ(conc_get(step->q, m, sizeof m, 0), 1);
    CHECK_EQ(conc_task_done(step->q), 0);
  }
  for (m[0] = 1; m[0] <= messages; m[0]++)
    CHECK_EQ(conc_put(step->q, m, step_short, 0), 0);
}

static int step_round_put(long k) {
  uint64_t numbers[4];
  int count, early;
  step_begin(k, 2);
  early = step_kill(step_prepare, step_put, NULL, k);
  if (early >= 0) {
    count = step_drain(numbers);
    CHECK(count == 2 || (count == 3 && numbers[2] == 100));
    if (LOAD(step->done) || !early) CHECK_EQ(count, 3);
    step_finish(count);
  }
  conc_queue_free(step->q);
  return early;
}
static int step_round_get(long k) {
  uint64_t numbers[4];
  int count, early;
  step_begin(k, 4);
  early = step_kill(step_prepare, step_get, NULL, k);
  if (early >= 0) {
    count = step_drain(numbers);
    CHECK(count == 4 || (count == 3 && numbers[0] == 2));
    if (count == 3) CHECK_EQ(step->data[0], 1);
    if (LOAD(step->done) || !early) CHECK_EQ(count, 3);
    step_finish(4);
  }
  conc_queue_free(step->q);
  return early;
}
static int step_round_task_done(long k) {
  uint64_t numbers[4];
  int early;
  step_begin(k, 1);
  CHECK_EQ(step_drain(numbers), 1);
  early = step_kill(step_prepare, step_task_done, NULL, k);
  if (early >= 0) {
    int rc = conc_queue_join(step->q, 0);
    if (LOAD(step->done) || !early) CHECK_EQ(rc, 0);
    step_finish(rc == 0 ? 0 : 1);
  }
  conc_queue_free(step->q);
  return early;
}

/* While another one sleeps in a get, or in a put. */
static void sleep_get(void *arg) {
  (void)arg;
  CHECK_CHILD(conc_get(step->q, step->data, sizeof step->data, CONC_FOREVER) >
              0);
}
static void sleep_put(void *arg) {
  uint64_t m = 200;
  (void)arg;
  CHECK_CHILD(conc_put(step->q, &m, sizeof m, CONC_FOREVER) == 0);
}
static int step_round_wake_getter(long k) {
  uint64_t numbers[4], m = 101;
  int count, early;
  pid_t sleeper;
  step_begin(k, 0);
  sleeper = start(sleep_get, NULL);
  until_waiting(step->q, CONC__GETTERS, 1);
  early = step_kill(step_prepare, step_put, NULL, k);
  CHECK_EQ(conc_put(step->q, &m, sizeof m, 0), 0);
  reap(sleeper, 0);
  count = step_drain(numbers);
  if (step->data[0] == 100) CHECK(count == 1 && numbers[0] == 101);
  else CHECK(count == 0 && step->data[0] == 101 && !LOAD(step->done));
  step_finish(1 + count);
  conc_queue_free(step->q);
  return early;
}
static int step_round_wake_putter(long k) {
  uint64_t m;
  int early, status = 1, seen = 0;
  pid_t sleeper;
  step_begin(k, 4);
  sleeper = start(sleep_put, NULL);
  until_waiting(step->q, CONC__PUTTERS, 1);
  early = step_kill(step_prepare, step_get, NULL, k);
  while (seen != 0x3c + (LOAD(step->data[0]) ? seen & 2 : 2))
    if (conc_get(step->q, &m, sizeof m, 0) == 8) {
      m = m == 200 ? 5 : m;
      CHECK(m < 6 && !(seen >> m & 1));
      seen |= 1 << m;
    } else {
      sched_yield();
    }
  CHECK_EQ(waitpid(sleeper, &status, 0), sleeper);
  CHECK_EQ(status, 0);
  if (conc_get(step->q, &m, sizeof m, 0) == 8) {
    CHECK(m == 1 && !(seen & 2));
    seen |= 2;
  }
  CHECK(!LOAD(step->done) || !(seen & 2));
  step_finish(5);
  conc_queue_free(step->q);
  return early;
}

static void kill_everywhere(int (*round)(long k)) {
  long n;
  step = (stepped *)conc_shared_alloc(sizeof *step);
  if (CONC_HAVE_ASAN || CONC_HAVE_TSAN) SKIP("a sanitizer has its own steps");
  if (test_wrapped("valgrind")) SKIP("not under valgrind");
  step->other = make(1, 1);
  n = step_all(round, test_asked("QUEUE_SECONDS", 0.5));
  conc_queue_free(step->other);
  conc_shared_free(step);
  if (n < 0) SKIP("ptrace is not permitted");
  if (getenv("QUEUE_SECONDS"))
    printf("%s: %ld instructions\n", test_title, n);
}
TEST_SHARED(no_instruction_of_a_put_harms) { kill_everywhere(step_round_put); }
TEST_SHARED(no_instruction_of_a_get_harms) { kill_everywhere(step_round_get); }
static void kill_with_blocks(int (*round)(long k)) {
  step_max = 2000;
  step_short = step_long = 320;
  kill_everywhere(round);
}
TEST_SHARED(no_instruction_of_a_put_of_a_block_harms) {
  kill_with_blocks(step_round_put);
}
TEST_SHARED(no_instruction_of_a_get_of_a_block_harms) {
  kill_with_blocks(step_round_get);
}
TEST_SHARED(no_instruction_of_task_done_harms) {
  kill_everywhere(step_round_task_done);
}
TEST_SHARED(no_instruction_of_a_put_leaves_a_getter) {
  kill_everywhere(step_round_wake_getter);
}
TEST_SHARED(no_instruction_of_a_get_leaves_a_putter) {
  kill_everywhere(step_round_wake_putter);
}

TEST_MAIN
