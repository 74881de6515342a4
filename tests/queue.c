/* The local queue at its edges: sizes, the ring's wrap-around, closing, and
   those who wait in vain. From inside, for the ring and the lists. */
#include "inside.h"
#include "tasks.h"

/* Waits until so many wait. */
static void until_waiting(conc_queue *q, const struct conc__waitlist *list,
                          int n) {
  int found;
  do {
    sched_yield();
    found = 0;
    conc__fifo_lock(AS_FIFO(q));
    for (conc__waiter *w = list->first; w != NULL; w = w->next) found++;
    conc__fifo_unlock(AS_FIFO(q));
  } while (found < n);
}

static void fill(unsigned char *p, size_t size, unsigned number) {
  for (size_t i = 0; i < size; i++) p[i] = (unsigned char)(number * 7 + i);
}

TEST(sizes_from_nothing_to_the_limit_are_kept) {
  conc_queue_opts o = {.max_bytes = 1000};
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
  enum { PLACES = 512 / CONC__ENTRY_HEAD };
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
      CHECK_EQ(q->ops->unget(q, &m, NULL), 0);
    }
    size = first * 13 % 200;
    fill(in, size, first++);
    CHECK_EQ(conc_get(q, out, sizeof out, 0), size);
    CHECK(memcmp(in, out, size) == 0);
    CHECK_EQ(conc_qsize(q), 1);
    CHECK(AS_FIFO(q)->ring.size <= 1024);
    at = (AS_FIFO(q)->got_at & 511) / CONC__ENTRY_HEAD;
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
    CHECK_EQ(AS_FIFO(q)->ring.size, 512);
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
  static unsigned char data[50000];
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 40; i++)
      CHECK_EQ(conc_put(q, data, sizeof data, 0), 0);
    CHECK(AS_FIFO(q)->ring.size >= 2000000);
    for (int i = 0; i < 40; i++)
      CHECK_EQ(conc_get(q, data, sizeof data, 0), sizeof data);
    CHECK_EQ(conc_get(q, data, sizeof data, 0), -ETIMEDOUT);
    CHECK(AS_FIFO(q)->ring.size <= 65536);
  }
  conc_queue_free(q);
}

/* The block that a large message lay in is the next one's; but not for ever. */
TEST(what_a_large_message_leaves_is_used_again) {
  enum { LESS = CONC__ENTRY_LARGE, SIZE = LESS + LESS / 8 };
  static unsigned char data[SIZE];
  conc_queue *q = conc_queue_new(NULL);
  long before;
  CHECK_EQ(conc_put(q, data, SIZE, 0), 0);
  CHECK_EQ(conc_get(q, data, SIZE, 0), SIZE);
  test_fail_at = 1;
  CHECK_EQ(conc_put(q, data, SIZE, 0), 0);
  CHECK_EQ(conc_get(q, data, SIZE, 0), SIZE);
  CHECK_EQ(conc_put(q, data, LESS, 0), 0);
  CHECK_EQ(test_fail_at, 1);
  test_fail_at = 0;
  CHECK_EQ(conc_get(q, data, SIZE, 0), LESS);
  before = test_blocks;
  for (int i = 0; i < 40; i++) CHECK_EQ(conc_put(q, data, SIZE, 0), 0);
  for (int i = 0; i < 40; i++) CHECK_EQ(conc_get(q, data, SIZE, 0), SIZE);
  CHECK(test_blocks > before + 20);
  CHECK_EQ(conc_get(q, data, SIZE, 0), -ETIMEDOUT);
  CHECK(test_blocks <= before + (long)(CONC__BLOCKS_FEW / SIZE));
  conc_queue_free(q); /* all of it, or this test fails */
}

/* A large message lies in a block beside the ring, among small ones in it. */
enum { LARGE = 300000 };
static size_t size_among(unsigned i) { /* on both sides of the bound */
  const size_t sizes[] = {LARGE, 65536, 65535, i};
  return sizes[i % 4];
}

TEST(large_messages_keep_their_place_among_small_ones) {
  enum { N = 40 };
  static unsigned char in[LARGE], out[LARGE];
  conc_queue_opts few = {.capacity = 3};
  conc_queue *q = conc_queue_new(NULL), *full = conc_queue_new(&few);
  conc_value *v, *w;
  char *text;
  int number;
  CHECK(q != NULL && full != NULL);
  for (unsigned round = 0; round < 3; round++) {
    for (unsigned i = 0; i < N; i++) {
      size_t size = size_among(i);
      fill(in, size, i);
      CHECK_EQ(conc_put(q, in, size, 0), 0);
    }
    CHECK(AS_FIFO(q)->ring.size < (size_t)LARGE * 8);
    for (unsigned i = 0; i < N; i++) {
      size_t size = size_among(i);
      fill(in, size, i);
      CHECK_EQ(conc_peek_size(q), size);
      if (size > 0) CHECK_EQ(conc_get(q, out, size - 1, 0), -EMSGSIZE);
      CHECK_EQ(conc_get(q, out, sizeof out, 0), size);
      CHECK(memcmp(in, out, size) == 0);
    }
  }
  /* What is refused is still the caller's; what is full keeps nothing. */
  for (unsigned i = 0; i < 3; i++) {
    fill(in, LARGE, i);
    CHECK_EQ(conc_put(full, in, LARGE, 0), 0);
  }
  CHECK_EQ(conc_put(full, in, LARGE, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put(full, in, LARGE, 0.01), -ETIMEDOUT);
  /* Several at once. */
  CHECK_EQ(conc_put_many(q, in, 100000, 3, 0), 3);
  CHECK_EQ(conc_get_many(q, out, 100000, 3, 0), 3);
  CHECK(memcmp(in, out, LARGE) == 0);
  CHECK_EQ(conc_put_many(full, in, 100000, 3, 0), -ETIMEDOUT);
  /* A value, whose buffer the queue keeps; what is no value goes back. */
  text = (char *)malloc(LARGE);
  CHECK(text != NULL);
  memset(text, 't', LARGE);
  CHECK_EQ(conc_build(&v, "(s#,i)", text, (size_t)LARGE, 7), 0);
  CHECK_EQ(conc_put_value(q, v, 0), 0);
  CHECK_EQ(conc_get(q, out, sizeof out, 0), -EBADMSG);
  CHECK_EQ(conc_get_parse(q, 0, "i", &number), -EBADMSG);
  CHECK_EQ(conc_put_value(q, v, 0), 0);
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_get_value(q, &w, 0), 0);
    CHECK(conc_value_equal(v, w));
    conc_value_free(w);
  }
  CHECK_EQ(conc_put_value(q, v, 0), 0);
  conc_value_free(v);
  free(text);
  CHECK_EQ(conc_put(q, "small", 5, 0), 0);
  conc_queue_free(q); /* with what is in it */
  conc_queue_free(full);
}

TEST(a_timeout_may_be_anything) {
  conc_queue_opts one = {.capacity = 1};
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
    w[i].task = task_of(work, &w[i]);
    if (i % 2) start(conc_thread_start, &w[i].loop, in_a_loop, &w[i]);
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
  conc_queue_opts one = {.capacity = 1};
  for (int round = 0; round < 20; round++) {
    conc_queue *q = conc_queue_new(&one);
    static worker w[6];
    char c;
    memset(w, 0, sizeof w);
    if (round % 2) {
      CHECK_EQ(conc_put(q, "x", 1, 0), 0);
      employ(w, 6, q, work_put, &AS_FIFO(q)->putters);
    } else {
      employ(w, 6, q, work_get, &AS_FIFO(q)->getters);
    }
    CHECK_EQ(conc_queue_close(q), 0);
    dismiss(w, 6);
    for (int i = 0; i < 6; i++) CHECK_EQ(w[i].result, -EPIPE);
    CHECK_EQ(conc_queue_close(q), 0); /* again */
    CHECK_EQ(conc_qsize(q), round % 2); /* what was in is still in */
    if (round % 2) CHECK_EQ(conc_get(q, &c, 1, 0), 1);
    CHECK_EQ(conc_get(q, &c, 1, 0), -EPIPE);
    CHECK_EQ(conc_peek_size(q), -EPIPE);
    CHECK(AS_FIFO(q)->getters.first == NULL &&
          AS_FIFO(q)->putters.first == NULL);
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
    employ(w, 4, q, work_get, &AS_FIFO(q)->getters);
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
  conc_queue_opts one = {.capacity = 1};
  conc_queue *q = conc_queue_new(&one);
  static worker w[2];
  char buf[64];
  memset(w, 0, sizeof w);
  CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  w[0].size = w[1].size = 1;
  employ(w, 2, q, work_put, &AS_FIFO(q)->putters);
  conc__fifo_lock(AS_FIFO(q));
  void *ring = AS_FIFO(q)->ring.data;
  AS_FIFO(q)->ring.data = NULL; /* as after a burst: the next put needs
                                   memory */
  AS_FIFO(q)->ring.size = 0;
  AS_FIFO(q)->got = AS_FIFO(q)->put;
  AS_FIFO(q)->got_at = AS_FIFO(q)->got_at_seen = AS_FIFO(q)->put_at;
  __atomic_store_n(&test_fail_at, 1, __ATOMIC_RELAXED);
  conc__fifo_unlock(AS_FIFO(q));
  CONC_FREE(ring);
  conc__fifo_pass(conc__fifo_get_guard(AS_FIFO(q)), &AS_FIFO(q)->putters);
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
  employ(w, 6, q, join_queue, &AS_FIFO(q)->joiners);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_get(q, &c, 1, 0), 1);
    until_waiting(q, &AS_FIFO(q)->joiners, 6);
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
    start(conc_coro_start, &t[i], put_many, arg);
  }
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}
static void *put_from_a_loop(void *arg) {
  run(put_from_coroutines, arg);
  return NULL;
}

TEST(a_queue_never_has_more_than_its_capacity) {
  conc_queue_opts o = {.capacity = CAPACITY};
  conc_queue *q = conc_queue_new(&o);
  conc_task t[4];
  start(conc_thread_start, &t[0], watch_size, q);
  start(conc_thread_start, &t[1], put_many, q);
  start(conc_thread_start, &t[2], put_from_a_loop, q);
  start(conc_thread_start, &t[3], put_many, q);
  for (int i = 1; i < 4; i++) CHECK_EQ(conc_join(&t[i], 60), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_join(&t[0], 60), 0);
  CHECK(most <= CAPACITY);
  conc_queue_free(q);
}

/* --- many at once --- */

typedef struct record {
  int number;
  char text[9]; /* so that a record is no multiple of a word */
} record;

/* 25 records and room for 10: each call moves what it can and says how
   many. The round from 1 to 10 begins at every place of the ring. */
TEST(many_are_moved_at_once_as_far_as_there_is_room) {
  conc_queue_opts o = {.capacity = 10, .max_bytes = sizeof(record)};
  conc_queue *q = conc_queue_new(&o);
  static record in[25], out[25];
  ssize_t first = 0, last = 0;
  for (int i = 0; i < 25; i++) in[i].number = i, in[i].text[8] = (char)i;
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 0, 0), 0);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 0, 0), 0);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 5, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put_many(q, in, sizeof *in + 1, 5, 0), -EMSGSIZE);
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 25, 0), 10);
  CHECK_EQ(conc_put_many(q, in + 10, sizeof *in, 15, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 3, 0), 3);
  CHECK_EQ(conc_put_many(q, in + 10, sizeof *in, 15, 0), 3);
  CHECK_EQ(conc_get_many(q, out + 3, sizeof *out, 22, 0), 10);
  CHECK(memcmp(in, out, 13 * sizeof *in) == 0);
  for (int i = 1; i <= 10; i++) { /* wherever the ring begins */
    CHECK_EQ(conc_put_many(q, in, sizeof *in, (size_t)i, 0), i);
    CHECK_EQ(conc_qsize(q), i);
    memset(out, 1, sizeof out);
    CHECK_EQ(conc_get_many(q, out, sizeof *out, 25, 0), i);
    CHECK(memcmp(in, out, (size_t)i * sizeof *in) == 0);
    last += i;
  }
  while (conc_task_done(q) == 0) first++;
  CHECK_EQ(first, 13 + last);
  CHECK_EQ(conc_put_many(q, NULL, 0, 3, 0), 3);
  CHECK_EQ(conc_get_many(q, NULL, 0, 3, 0), 3);
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 2, 0), 2);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 2, 1), -EPIPE);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 3, 1), 2);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 3, 1), -EPIPE);
  conc_queue_free(q);
}

TEST(a_message_of_another_size_ends_many) {
  conc_queue *q = conc_queue_new(NULL);
  int numbers[4] = {1, 2, 3, 4}, out[4];
  char c;
  int n = 0;
  CHECK_EQ(conc_put_many(q, numbers, sizeof *numbers, 2, 0), 2);
  CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  CHECK_EQ(conc_put(q, numbers, sizeof numbers, 0), 0);
  CHECK_EQ(conc_put_build(q, 0, "s", "four"), 0);
  CHECK_EQ(conc_put_build(q, 0, "i", 5), 0);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 4, 0), 2);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 4, 0), -EMSGSIZE);
  CHECK_EQ(conc_get(q, &c, 1, 0), 1);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 4, 0), -EMSGSIZE);
  CHECK_EQ(conc_get(q, out, sizeof out, 0), sizeof out);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 4, 0), 1);
  CHECK(memcmp(out, "four", 4) == 0);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 4, 0), -EBADMSG);
  CHECK_EQ(conc_get_parse(q, 0, "i", &n), 0);
  CHECK_EQ(n, 5);
  conc_queue_free(q);
}

/* As many messages as there is memory for are put. */
TEST(many_are_put_as_far_as_there_is_memory) {
  conc_queue *q = conc_queue_new(NULL);
  static char in[100][100], out[100][100];
  for (int i = 0; i < 100; i++) memset(in[i], i, 100);
  CHECK_EQ(conc_put_many(q, in, 100, 1, 0), 1);
  __atomic_store_n(&test_fail_at, 1, __ATOMIC_RELAXED);
  CHECK_EQ(conc_put_many(q, in + 1, 100, 99, 0), 3); /* 512 bytes in all */
  __atomic_store_n(&test_fail_at, 1, __ATOMIC_RELAXED);
  CHECK_EQ(conc_put_many(q, in + 4, 100, 96, 0), -ENOMEM);
  CHECK_EQ(conc_put_many(q, in + 4, 100, 96, 0), 96);
  CHECK_EQ(conc_get_many(q, out, 100, 100, 0), 100);
  CHECK(memcmp(in, out, sizeof in) == 0);
  conc_queue_free(q);
}

/* As many are woken as there are messages, or places. */
TEST(many_wake_many) {
  conc_queue_opts o = {.capacity = 4};
  for (int round = 0; round < 20; round++) {
    conc_queue *q = conc_queue_new(&o);
    static worker w[6];
    char buf[8];
    memset(w, 0, sizeof w);
    for (int i = 0; i < 6; i++) w[i].size = 1;
    if (round % 2) {
      CHECK_EQ(conc_put_many(q, "abcd", 1, 4, 0), 4);
      employ(w, 4, q, work_put, &AS_FIFO(q)->putters);
      CHECK_EQ(conc_get_many(q, buf, 1, 8, 0), 4);
      dismiss(w, 4);
      CHECK_EQ(conc_get_many(q, buf, 1, 8, 0), 4);
    } else {
      employ(w, 6, q, work_get, &AS_FIFO(q)->getters);
      CHECK_EQ(conc_put_many(q, "abc", 1, 3, 0), 3);
      while (conc_qsize(q) > 0) sched_yield();
      until_waiting(q, &AS_FIFO(q)->getters, 3);
      CHECK_EQ(conc_put_many(q, "abc", 1, 3, 0), 3);
      dismiss(w, 6);
    }
    CHECK_EQ(conc_qsize(q), 0);
    conc_queue_free(q);
  }
}

/* --- both sides at once --- */

enum { ITEMS = 20000, SIDES = 4 };

typedef struct traffic {
  conc_queue *queue;
  bool many, coroutine; /* how it is done */
  int number;           /* of the putter */
  size_t next[SIDES];   /* what the getter expects from each putter */
  size_t got;
} traffic;

static void *traffic_put(void *arg) {
  traffic *t = (traffic *)arg;
  uint64_t items[7];
  for (size_t i = 0; i < ITEMS;) {
    size_t n = t->many ? i % 7 + 1 : 1;
    ssize_t put;
    if (n > ITEMS - i) n = ITEMS - i;
    for (size_t k = 0; k < n; k++)
      items[k] = (uint64_t)t->number << 32 | (i + k);
    put = t->many ? conc_put_many(t->queue, items, 8, n, CONC_FOREVER)
                  : conc_put(t->queue, items, 8, CONC_FOREVER);
    CHECK(put >= 0);
    i += t->many ? (size_t)put : 1;
  }
  return NULL;
}

/* Each getter sees the items of each putter in the order they were put. */
static void *traffic_get(void *arg) {
  traffic *t = (traffic *)arg;
  uint64_t items[5];
  for (;;) {
    ssize_t n = t->many ? conc_get_many(t->queue, items, 8, 5, CONC_FOREVER)
                        : conc_get(t->queue, items, 8, CONC_FOREVER);
    if (n == -EPIPE) return NULL;
    CHECK(n > 0);
    if (!t->many) n = 1;
    for (ssize_t k = 0; k < n; k++) {
      size_t *next = &t->next[items[k] >> 32];
      CHECK((uint32_t)items[k] >= *next);
      *next = (uint32_t)items[k] + (size_t)1;
      t->got++;
    }
  }
}
static void *traffic_loop(void *task) {
  CHECK_EQ(conc_run((conc_task *)task), 0);
  return NULL;
}

TEST(nothing_is_lost_or_overtaken_between_many_putters_and_getters) {
  static traffic t[2 * SIDES];
  for (size_t capacity = 0; capacity <= 64; capacity += capacity ? 21 : 1) {
    conc_queue_opts o = {.capacity = capacity};
    conc_queue *q = conc_queue_new(&o);
    conc_task tasks[2 * SIDES], loops[2 * SIDES];
    size_t got = 0;
    memset(t, 0, sizeof t);
    for (int i = 0; i < 2 * SIDES; i++) {
      t[i].queue = q;
      t[i].number = i / 2;
      t[i].many = i / 2 % 2;
      t[i].coroutine = i / 4;
      tasks[i] = task_of(i % 2 ? traffic_put : traffic_get, &t[i]);
      if (t[i].coroutine)
        start(conc_thread_start, &loops[i], traffic_loop, &tasks[i]);
      else CHECK_EQ(conc_thread_start(&tasks[i]), 0);
    }
    for (int put = 1; put >= 0; put--) {
      for (int i = put; i < 2 * SIDES; i += 2)
        CHECK_EQ(conc_join(t[i].coroutine ? &loops[i] : &tasks[i], 60), 0);
      CHECK_EQ(conc_queue_close(q), 0);
    }
    for (int i = 0; i < 2 * SIDES; i += 2) got += t[i].got;
    CHECK_EQ(got, (size_t)ITEMS * SIDES);
    conc_queue_free(q);
  }
}

/* The getter of the last message may free the queue at once: the put that it
   came from, and the get whose place a put took, do not touch it any more. */
typedef struct reply {
  conc_queue *request;
  int rounds;
} reply;
static void *answer(void *arg) {
  reply *r = (reply *)arg;
  for (int i = 0; i < r->rounds; i++) {
    conc_queue *back;
    CHECK_EQ(conc_get(r->request, &back, sizeof back, CONC_FOREVER),
             sizeof back);
    CHECK_EQ(conc_put(back, "done", 4, CONC_FOREVER), 0);
  }
  return NULL;
}

TEST(who_has_the_last_message_may_free_the_queue) {
  conc_queue_opts one = {.capacity = 1};
  reply r = {conc_queue_new(NULL), 20000};
  conc_task t;
  start(conc_thread_start, &t, answer, &r);
  for (int i = 0; i < r.rounds; i++) {
    conc_queue *back = conc_queue_new(&one);
    char text[8];
    CHECK_EQ(conc_put(r.request, &back, sizeof back, CONC_FOREVER), 0);
    CHECK_EQ(conc_get(back, text, sizeof text, CONC_FOREVER), 4);
    conc_queue_free(back);
  }
  CHECK_EQ(conc_join(&t, 10), 0);
  conc_queue_free(r.request);
}

TEST_MAIN
