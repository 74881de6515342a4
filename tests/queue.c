/* The local queue at its edges: sizes, the ring's wrap-around, closing, and
   those who wait in vain. From inside, for the ring and the lists. */
#include "test.h"

#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"

static void start(conc_task *t, conc_fn *target, void *arg) {
  memset(t, 0, sizeof *t);
  t->target = target;
  t->arg = arg;
}
static void start_thread(conc_task *t, conc_fn *target, void *arg) {
  start(t, target, arg);
  CHECK_EQ(conc_thread_start(t), 0);
}

/* Waits until so many wait. */
static void until_waiting(conc_queue *q, const struct conc__waitlist *list,
                          int n) {
  int found;
  do {
    sched_yield();
    found = 0;
    conc__queue_lock(q);
    for (conc__waiter *w = list->first; w != NULL; w = w->next) found++;
    conc__queue_unlock(q);
  } while (found < n);
}

static void fill(unsigned char *p, size_t size, unsigned number) {
  for (size_t i = 0; i < size; i++) p[i] = (unsigned char)(number * 7 + i);
}

TEST(sizes_from_nothing_to_the_limit_are_kept) {
  conc_queue_opts o = {0, 1000, NULL};
  conc_queue *q = conc_queue_new(&o);
  static unsigned char in[1001], out[1000];
  for (size_t size = 0; size <= 1000; size++) {
    fill(in, size, (unsigned)size);
    CHECK_EQ(conc_put(q, in, size, 0), 0);
  }
  CHECK_EQ(conc_put(q, in, 1001, 0), -EMSGSIZE);
  CHECK_EQ(conc_put(q, NULL, 0, 0), 0);
  CHECK_EQ(conc_qsize(q), 1002);
  for (size_t size = 0; size <= 1000; size++) {
    fill(in, size, (unsigned)size);
    CHECK_EQ(conc_peek_size(q), size);
    if (size > 0) CHECK_EQ(conc_get(q, out, size - 1, 0), -EMSGSIZE);
    CHECK_EQ(conc_get(q, out, size, 0), size);
    CHECK(memcmp(in, out, size) == 0);
  }
  CHECK_EQ(conc_get(q, NULL, 0, 0), 0);
  CHECK_EQ(conc_peek_size(q), -ETIMEDOUT);
  conc_queue_free(q);
}

/* At least one message stays in, so that the ring does not begin anew. */
TEST(messages_wrap_around_the_ring_at_every_offset) {
  conc_queue *q = conc_queue_new(NULL);
  static unsigned char in[200], out[200];
  enum { PLACES = 512 / CONC__SLOT_HEAD };
  static bool seen[PLACES];
  unsigned first = 0, last = 0, offsets = 0;
  for (int i = 0; i < 200000 && offsets < PLACES; i++) {
    size_t size = last * 13 % 200, at;
    fill(in, size, last++);
    CHECK_EQ(conc_put(q, in, size, 0), 0);
    if (last - first < 2) continue;
    if (i % 3 == 0) { /* one comes back, before the others */
      conc__message m;
      size = first * 13 % 200;
      CHECK_EQ(conc_get(q, out, sizeof out, 0), size);
      m.data = out;
      m.size = size;
      m.kind = CONC__RAW;
      CHECK_EQ(q->ops->unget(q, &m), 0);
    }
    size = first * 13 % 200;
    fill(in, size, first++);
    CHECK_EQ(conc_get(q, out, sizeof out, 0), size);
    CHECK(memcmp(in, out, size) == 0);
    CHECK_EQ(conc_qsize(q), 1);
    CHECK(q->ring_size <= 1024);
    at = (q->got_at & 511) / CONC__SLOT_HEAD;
    if (!seen[at]) seen[at] = true, offsets++;
  }
  CHECK_EQ(offsets, PLACES);
  conc_queue_free(q);
}

TEST(the_ring_grows_wherever_it_begins) {
  static unsigned char in[700], out[700];
  for (size_t lead = 0; lead < 440; lead++) {
    conc_queue *q = conc_queue_new(NULL);
    CHECK_EQ(conc_put(q, in, lead, 0), 0);
    fill(in, 20, 1);
    CHECK_EQ(conc_put(q, in, 20, 0), 0);
    CHECK_EQ(conc_get(q, out, sizeof out, 0), lead); /* a hole in front */
    fill(in, 50, 2);
    CHECK_EQ(conc_put(q, in, 50, 0), 0); /* across the end, sometimes */
    CHECK_EQ(q->ring_size, 512);
    fill(in, 700, 3);
    CHECK_EQ(conc_put(q, in, 700, 0), 0); /* it grows */
    for (unsigned k = 1; k <= 3; k++) {
      size_t size = k == 1 ? 20 : k == 2 ? 50 : 700;
      fill(in, size, k);
      CHECK_EQ(conc_get(q, out, sizeof out, 0), size);
      CHECK(memcmp(in, out, size) == 0);
    }
    conc_queue_free(q);
  }
}

TEST(a_burst_gives_its_memory_back) {
  conc_queue *q = conc_queue_new(NULL);
  static unsigned char data[100000];
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 20; i++)
      CHECK_EQ(conc_put(q, data, sizeof data, 0), 0);
    CHECK(q->ring_size >= 2000000);
    for (int i = 0; i < 20; i++)
      CHECK_EQ(conc_get(q, data, sizeof data, 0), sizeof data);
    CHECK_EQ(conc_get(q, data, sizeof data, 0), -ETIMEDOUT);
    CHECK(q->ring_size <= 65536);
  }
  conc_queue_free(q);
}

TEST(a_timeout_may_be_anything) {
  conc_queue_opts one = {1, 0, NULL};
  conc_queue *q = conc_queue_new(&one);
  char c;
  CHECK_EQ(conc_get(q, &c, 1, -5), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, &c, 1, -1e300), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, &c, 1, 1e-12), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  CHECK_EQ(conc_put(q, "x", 1, 1e-12), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, "x", 1, -1), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, &c, 1, 1e18), 1);
  conc_queue_free(q);
}

/* --- those who wait --- */

typedef struct worker {
  conc_queue *queue;
  ssize_t result;
  conc_task task, loop;
  char buf[64];
  size_t size; /* of the buffer that it gets into */
} worker;

static void *work_get(void *arg) {
  worker *w = (worker *)arg;
  w->result = conc_get(w->queue, w->buf, w->size, CONC_FOREVER);
  return NULL;
}
static void *work_put(void *arg) {
  worker *w = (worker *)arg;
  w->result = conc_put(w->queue, w->buf, w->size, CONC_FOREVER);
  return NULL;
}
static void *in_a_loop(void *arg) {
  conc_run(&((worker *)arg)->task);
  return NULL;
}

/* Every second worker is a coroutine. */
static void employ(worker *w, int n, conc_queue *q, conc_fn *work,
                   struct conc__waitlist *list) {
  for (int i = 0; i < n; i++) {
    w[i].queue = q;
    start(&w[i].task, work, &w[i]);
    if (i % 2)
      start_thread(&w[i].loop, in_a_loop, &w[i]);
    else
      CHECK_EQ(conc_thread_start(&w[i].task), 0);
    until_waiting(q, list, i + 1);
  }
}
static void dismiss(worker *w, int n) {
  for (int i = 0; i < n; i++)
    CHECK_EQ(conc_join(i % 2 ? &w[i].loop : &w[i].task, 10), 0);
}

TEST(closing_ends_all_who_wait) {
  conc_queue_opts one = {1, 0, NULL};
  for (int round = 0; round < 20; round++) {
    conc_queue *q = conc_queue_new(&one);
    static worker w[6];
    char c;
    memset(w, 0, sizeof w);
    if (round % 2) {
      CHECK_EQ(conc_put(q, "x", 1, 0), 0);
      employ(w, 6, q, work_put, &q->putters);
    } else {
      employ(w, 6, q, work_get, &q->getters);
    }
    CHECK_EQ(conc_queue_close(q), 0);
    dismiss(w, 6);
    for (int i = 0; i < 6; i++) CHECK_EQ(w[i].result, -EPIPE);
    CHECK_EQ(conc_queue_close(q), 0); /* again */
    CHECK_EQ(conc_qsize(q), round % 2); /* what was in is still in */
    if (round % 2) CHECK_EQ(conc_get(q, &c, 1, 0), 1);
    CHECK_EQ(conc_get(q, &c, 1, 0), -EPIPE);
    CHECK_EQ(conc_peek_size(q), -EPIPE);
    CHECK(q->getters.first == NULL && q->putters.first == NULL);
    conc_queue_free(q);
  }
}

/* The first getter cannot take what comes: the next one must be told. */
TEST(a_message_that_one_getter_cannot_take_goes_to_the_next) {
  for (int round = 0; round < 40; round++) {
    conc_queue *q = conc_queue_new(NULL);
    static worker w[4];
    memset(w, 0, sizeof w);
    w[0].size = w[1].size = w[2].size = 2;
    w[3].size = 3;
    employ(w, 4, q, work_get, &q->getters);
    if (round % 2) {
      CHECK_EQ(conc_put(q, "abc", 3, 0), 0);
      dismiss(w, 4);
      CHECK_EQ(w[3].result, 3);
      for (int i = 0; i < 3; i++) CHECK_EQ(w[i].result, -EMSGSIZE);
    } else { /* no bytes: none of them can */
      int n = 0;
      CHECK_EQ(conc_put_build(q, 0, "i", 7), 0);
      dismiss(w, 4);
      for (int i = 0; i < 4; i++) CHECK_EQ(w[i].result, -EBADMSG);
      CHECK_EQ(conc_get_parse(q, 0, "i", &n), 0);
      CHECK_EQ(n, 7);
    }
    CHECK_EQ(conc_qsize(q), 0);
    conc_queue_free(q);
  }
}

/* Likewise a putter for whose message there is no memory. */
TEST(room_that_one_putter_cannot_use_goes_to_the_next) {
  conc_queue_opts one = {1, 0, NULL};
  conc_queue *q = conc_queue_new(&one);
  static worker w[2];
  char buf[64];
  memset(w, 0, sizeof w);
  CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  w[0].size = w[1].size = 1;
  employ(w, 2, q, work_put, &q->putters);
  conc__queue_lock(q);
  CONC_FREE(q->ring); /* as after a burst: the next put needs memory */
  q->ring = NULL;
  q->ring_size = 0;
  q->got = q->put;
  q->got_at = q->got_at_seen = q->put_at;
  __atomic_store_n(&test_fail_at, 1, __ATOMIC_RELAXED);
  conc__queue_unlock(q);
  conc__queue_pass(conc__get_guard(q), &q->putters);
  dismiss(w, 2);
  CHECK_EQ(w[0].result, -ENOMEM);
  CHECK_EQ(w[1].result, 0);
  CHECK_EQ(conc_get(q, buf, 64, 0), 1);
  conc_queue_free(q);
}

static void *join_queue(void *arg) {
  worker *w = (worker *)arg;
  w->result = conc_queue_join(w->queue, CONC_FOREVER);
  return NULL;
}

TEST(all_who_join_a_queue_are_told) {
  conc_queue *q = conc_queue_new(NULL);
  static worker w[6];
  char c;
  memset(w, 0, sizeof w);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  employ(w, 6, q, join_queue, &q->joiners);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_get(q, &c, 1, 0), 1);
    until_waiting(q, &q->joiners, 6);
    CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
    CHECK_EQ(conc_task_done(q), 0);
  }
  dismiss(w, 6);
  for (int i = 0; i < 6; i++) CHECK_EQ(w[i].result, 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  conc_queue_free(q);
}

/* --- capacity --- */

enum { ROUNDS = 3000, CAPACITY = 3 };
static int most;

static void *watch_size(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  ssize_t n;
  for (;;) {
    char c;
    n = conc_qsize(q);
    if (n > most) most = (int)n;
    n = conc_get(q, &c, 1, CONC_FOREVER);
    if (n == -EPIPE) return NULL;
    CHECK_EQ(n, 1);
  }
}
static void *put_many(void *arg) {
  for (int i = 0; i < ROUNDS; i++)
    CHECK_EQ(conc_put((conc_queue *)arg, "x", 1, CONC_FOREVER), 0);
  return NULL;
}
static void *put_from_coroutines(void *arg) {
  conc_task t[3];
  for (int i = 0; i < 3; i++) {
    start(&t[i], put_many, arg);
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}
static void *put_from_a_loop(void *arg) {
  conc_task t;
  start(&t, put_from_coroutines, arg);
  CHECK_EQ(conc_run(&t), 0);
  return NULL;
}

TEST(a_queue_never_has_more_than_its_capacity) {
  conc_queue_opts o = {CAPACITY, 0, NULL};
  conc_queue *q = conc_queue_new(&o);
  conc_task t[4];
  start_thread(&t[0], watch_size, q);
  start_thread(&t[1], put_many, q);
  start_thread(&t[2], put_from_a_loop, q);
  start_thread(&t[3], put_many, q);
  for (int i = 1; i < 4; i++) CHECK_EQ(conc_join(&t[i], 60), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_join(&t[0], 60), 0);
  CHECK(most <= CAPACITY);
  conc_queue_free(q);
}

TEST_MAIN
