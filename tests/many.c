/* Many messages in one trip to a manager: put, got, fetched in advance; and
   where they are when a client ends, dies, or does not use them. */
#include "test.h"

#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#include <sys/socket.h>
static ssize_t count_send(int fd, const void *data, size_t size, int flags);
#define send count_send
#include "inside.h"
#include "served.h"
#include "tasks.h"
#undef send

/* What this process sends is counted: words, which have four bytes, apart. */
static long sent, words;
static ssize_t count_send(int fd, const void *data, size_t size, int flags) {
  if (size == 4) ADD_FETCH(words, 1);
  else ADD_FETCH(sent, 1);
  return send(fd, data, size, flags);
}

static void serve(served *s, size_t capacity) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  *s = nobody();
  serve_queue(s, conc_queue_new(&o));
}

static conc_queue *join_fetching(const served *s, conc_manager *m, size_t n) {
  *m = client_of(s);
  m->prefetch = n;
  return join(m);
}

static void expect(conc_queue *q, const char *text) {
  char buf[64];
  CHECK_EQ(conc_get(q, buf, sizeof buf, 10 * test_slow()), strlen(text));
  CHECK(memcmp(buf, text, strlen(text)) == 0);
}

/* Numbers from..to - 1 are in the queue, in this order, and nothing else. */
static void expect_numbers(conc_queue *q, int from, int to) {
  int n;
  for (; from < to; from++) {
    CHECK_EQ(conc_get(q, &n, sizeof n, 10 * test_slow()), sizeof n);
    CHECK_EQ(n, from);
  }
  CHECK_EQ(conc_qsize(q), 0);
}

static void put_numbers(conc_queue *q, int count) {
  for (int i = 0; i < count; i++) CHECK_EQ(conc_put(q, &i, sizeof i, 20), 0);
}

static void until_size(conc_queue *q, ssize_t n) {
  UNTIL(conc_qsize(q) == n);
}

/* As if the client had been killed: its connection ends without a word. */
static void die(conc__peer *p) {
  CHECK(p != NULL);
  shutdown(p->channel.fd, SHUT_RDWR);
}

/* --- put and got --- */

TEST(many_are_one_trip) {
  enum { N = 10000 };
  int *numbers = (int *)calloc(N, sizeof *numbers);
  served s;
  conc_manager m;
  conc_queue *q;
  long before;
  serve(&s, 0);
  for (int i = 0; i < N; i++) numbers[i] = i;
  for (int reconnect = 0; reconnect < 2; reconnect++) {
    m = client_of(&s);
    m.reconnect = reconnect;
    q = join(&m);
    before = LOAD(sent);
    CHECK_EQ(conc_put_many(q, numbers, sizeof *numbers, N, 5), N);
    CHECK(LOAD(sent) - before <= 4); /* a request and its reply */
    CHECK_EQ(conc_qsize(s.queue), N);
    memset(numbers, 0, N * sizeof *numbers);
    before = LOAD(sent);
    CHECK_EQ(conc_get_many(q, numbers, sizeof *numbers, N, 5), N);
    CHECK(LOAD(sent) - before <= 4);
    for (int i = 0; i < N; i++) CHECK_EQ(numbers[i], i);
    CHECK_EQ(conc_qsize(q), 0);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
  }
  free(numbers);
  end(&s);
}

TEST(many_of_any_size_are_moved) {
  enum { ALL = 3 << 20 };
  static const size_t sizes[] = {0, 1, 255, 256, 70000, 300000, 1 << 20};
  char *data = (char *)malloc(ALL), *copy = (char *)malloc(ALL);
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 0; i < ALL; i++) data[i] = (char)(i * 7 + (i >> 8));
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    size_t n = sizes[i] > 1000 ? 3 : 10, got = 0;
    memset(copy, 0, ALL);
    CHECK_EQ(conc_put_many(q, data, sizes[i], n, 5), n);
    CHECK_EQ(conc_qsize(s.queue), n);
    while (got < n) {
      ssize_t more = conc_get_many(q, copy + got * sizes[i], sizes[i],
                                   n - got, 5);
      CHECK(more > 0);
      got += (size_t)more;
    }
    CHECK(memcmp(data, copy, n * sizes[i]) == 0);
    CHECK_EQ(conc_qsize(s.queue), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  free(data), free(copy);
  end(&s);
}

/* All, or those for which there is room, and these are the first. */
TEST(of_many_those_are_put_for_which_there_is_room) {
  char text[30], got[30];
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 10);
  q = join_as_client(&s, &m);
  for (int i = 0; i < 30; i++) text[i] = (char)('a' + i);
  CHECK_EQ(conc_put_many(q, text, 1, 30, 20), 10);
  CHECK_EQ(conc_put_many(q, text, 1, 30, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put_many(q, text, 1, 30, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_get_many(q, got, 1, 4, 20), 4);
  CHECK_EQ(conc_put_many(q, text + 10, 1, 20, 20), 4);
  CHECK_EQ(conc_get_many(q, got + 4, 1, 26, 20), 10);
  CHECK(memcmp(text, got, 14) == 0);
  CHECK_EQ(conc_get_many(q, got, 1, 30, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_put_many(q, text, 1, 0, 20), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

typedef struct caller {
  conc_task task;
  conc_queue *queue;
  char buf[8];
  ssize_t result;
} caller;

static void *call_get(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_get_many(c->queue, c->buf, 1, 8, CONC_FOREVER);
  return NULL;
}
static void *call_put(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_put_many(c->queue, "cd", 1, 2, CONC_FOREVER);
  return NULL;
}

TEST(many_are_waited_for_and_a_wait_can_be_cancelled) {
  served s;
  conc_manager m;
  caller c;
  serve(&s, 2);
  c.queue = join_as_client(&s, &m);
  for (int i = 0; i < 2; i++) {
    start(conc_thread_start, &c.task, call_get, &c);
    UNTIL(somebody_waits(s.queue));
    if (i == 0) CHECK_EQ(conc_cancel(&c.task), 0);
    else CHECK_EQ(conc_put_many(s.queue, "ab", 1, 2, 1), 2);
    CHECK_EQ(conc_join(&c.task, CONC_FOREVER), i == 0 ? -ECANCELED : 0);
    if (i == 0) CHECK_EQ(c.result, -ECANCELED);
    else CHECK(c.result == 1 || c.result == 2);
    if (i == 0) UNTIL(!somebody_waits(s.queue));
  }
  if (c.result == 1) expect(s.queue, "b");
  CHECK_EQ(conc_put_many(s.queue, "ab", 1, 2, 1), 2);
  start(conc_thread_start, &c.task, call_put, &c);
  conc_sleep(0.05);
  expect(s.queue, "a");
  CHECK_EQ(conc_join(&c.task, CONC_FOREVER), 0);
  CHECK_EQ(c.result, 1);
  expect(s.queue, "b");
  expect(s.queue, "c");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* A text stays one, and a message of another size stays where it is. */
static void half_taken(served *s, bool confirmed) {
  char buf[64];
  conc_manager m;
  conc_queue *q = join_as_client(s, &m);
  conc_value *v = NULL;
  CHECK_EQ(conc_put(s->queue, "aaa", 3, 1), 0);
  CHECK_EQ(conc_put_build(s->queue, 1, "s", "bbb"), 0);
  CHECK_EQ(conc_put(s->queue, "ccc", 3, 1), 0);
  CHECK_EQ(conc_put(s->queue, "other", 5, 1), 0);
  CHECK_EQ(conc_put(s->queue, "ddd", 3, 1), 0);
  CHECK_EQ(conc_get_many(q, buf, 3, 8, 20), 3);
  CHECK(memcmp(buf, "aaabbbccc", 9) == 0);
  CHECK_EQ(conc_qsize(s->queue), 2);
  if (confirmed) {
    CHECK_EQ(conc_get_many(q, buf, 3, 8, 1), -EMSGSIZE);
    CHECK_EQ(conc_qsize(s->queue), 2);
    expect(q, "other");
  } else {
    die(m.state->client.idle);
    until_size(s->queue, 5);
    expect(s->queue, "aaa");
    CHECK_EQ(conc_get_value(s->queue, &v, 1), 0);
    CHECK_EQ(conc_value_type(v), CONC_STR);
    conc_value_free(v);
    expect(s->queue, "ccc");
    expect(s->queue, "other");
  }
  expect(s->queue, "ddd");
  CHECK_EQ(conc_qsize(s->queue), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
}

TEST(many_that_were_got_are_confirmed_together_or_come_back_to_their_places) {
  served s;
  serve(&s, 0);
  for (int i = 0; i < 10; i++) half_taken(&s, i % 2);
  end(&s);
}

/* Of large ones a thread copies each, and all of them into the reply; and what
   they lay in is freed by one. */
TEST(many_that_are_large_are_confirmed_or_come_back_too) {
  enum { N = 4, SIZE = 3 << 20 };
  char *data = (char *)malloc(SIZE), *all = (char *)malloc(N * SIZE);
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int dies = 0; dies < 2; dies++) {
    for (int i = 0; i < N; i++) {
      memset(data, 'a' + i, SIZE);
      CHECK_EQ(conc_put(i % 2 ? q : s.queue, data, SIZE, 20), 0);
    }
    memset(all, 0, N * SIZE);
    CHECK_EQ(conc_get_many(q, all, SIZE, N + 1, 20 * test_slow()), N);
    for (int i = 0; i < N; i++) {
      memset(data, 'a' + i, SIZE);
      CHECK(memcmp(data, all + (size_t)i * SIZE, SIZE) == 0);
    }
    if (dies) {
      die(m.state->client.idle);
      until_size(s.queue, N);
      for (int i = 0; i < N; i++) {
        CHECK_EQ(conc_get(s.queue, all, SIZE, 5), SIZE);
        memset(data, 'a' + i, SIZE);
        CHECK(memcmp(data, all, SIZE) == 0);
      }
    }
    CHECK_EQ(conc_qsize(s.queue), 0);
    if (!dies) CHECK_EQ(conc_qsize(q), 0); /* it confirms them */
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  free(data);
  free(all);
  end(&s);
}

TEST(many_without_memory_are_not_lost) {
  char buf[300];
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 1; i < 60; i++) {
    ssize_t n;
    size_t left;
    CHECK_EQ(conc_put_many(s.queue, buf, 100, 3, 1), 3);
    __atomic_store_n(&test_fail_at, i, __ATOMIC_RELAXED);
    n = conc_get_many(q, buf, 100, 3, 2);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    left = (size_t)(n > 0 ? 3 - n : 3);
    until_size(s.queue, (ssize_t)left);
    while (left-- > 0) CHECK_EQ(conc_get(s.queue, buf, 100, 1), 100);
    __atomic_store_n(&test_fail_at, i, __ATOMIC_RELAXED);
    n = conc_put_many(q, buf, 100, 3, 2);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    left = (size_t)conc_qsize(s.queue);
    CHECK(n == -ECONNRESET || left == (size_t)(n > 0 ? n : 0));
    while (left-- > 0) CHECK_EQ(conc_get(s.queue, buf, 100, 1), 100);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* What is no such request is answered, and does no harm. */
static void ask_for(conc_manager *m, conc_queue *q, const char *method,
                    const char *format, ...) {
  conc__proxy *proxy = (conc__proxy *)q;
  conc__buffer *out;
  conc__exchange c;
  conc__calling call;
  conc_value *v;
  va_list ap;
  size_t i;
  int rc = 0;
  va_start(ap, format);
  CHECK_EQ(conc__build_va(&v, format, ap), 0);
  va_end(ap);
  conc__call_begin(&call, m->state, 0, conc_now() + 5);
  CHECK_EQ(conc__exchange_begin(&c, proxy, proxy->ident, method, &call), 0);
  out = &c.peer->channel.out;
  rc = conc__pickle_put_op(out, CONC__OP_MARK);
  for (i = 0; rc == 0 && i < conc_value_size(v); i++)
    rc = conc__pickle_encode(out, conc_value_item(v, i), 4);
  if (rc == 0) rc = conc__pickle_put_op(out, CONC__OP_TUPLE);
  CHECK_EQ(conc__exchange_end(&c, proxy, rc), -EPROTO);
  CHECK(!c.broken);
  conc_value_free(v);
}

TEST(what_is_no_request_for_many_is_refused) {
  char key[CONC__KEY_SIZE + 1] = {0};
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  ask_for(&m, q, CONC__METHOD_PUT_MANY, "(NdIIy#)", 0.0, 3u, 2u, "12345",
          (size_t)5);
  ask_for(&m, q, CONC__METHOD_PUT_MANY, "(NdIIy#)", 0.0, 0u, 1u, "",
          (size_t)0);
  ask_for(&m, q, CONC__METHOD_PUT_MANY, "(NdIIy#)", 0.0, 100000u, 0u, "",
          (size_t)0);
  ask_for(&m, q, CONC__METHOD_PUT_MANY, "(NdiIy#)", 0.0, -1, 1u, "1",
          (size_t)1);
  ask_for(&m, q, CONC__METHOD_PUT_MANY, "(y#dIIy#)", key, sizeof key - 1, 0.0,
          1u, 1u, "1", (size_t)1);
  ask_for(&m, q, CONC__METHOD_PUT_MANY, "(N)");
  ask_for(&m, q, CONC__METHOD_PUT, "(sds)", "key", 0.0, "text");
  ask_for(&m, q, CONC__METHOD_PUT, "(Nss)", "later", "text");
  ask_for(&m, q, CONC__METHOD_DONE, "(i)", 7);
  ask_for(&m, q, CONC__METHOD_DONE, "()");
  ask_for(&m, q, CONC__METHOD_GET_MANY, "(diiiii)", 0.0, 0, 9, 9, 9, 9);
  ask_for(&m, q, CONC__METHOD_GET_MANY, "(diii)", 0.0, 0, 9, 9);
  CHECK_EQ(conc_qsize(s.queue), 0);
  CHECK_EQ(conc_put_many(q, "ab", 1, 2, 20), 2);
  CHECK_EQ(conc_qsize(s.queue), 2);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- fetched in advance --- */

TEST(what_was_fetched_in_advance_needs_no_trip) {
  served s;
  conc_manager m;
  conc_queue *q;
  long before;
  serve(&s, 0);
  q = join_fetching(&s, &m, 16);
  put_numbers(s.queue, 64);
  before = LOAD(sent);
  expect_numbers(q, 0, 64);
  CHECK(LOAD(sent) - before <= 2 * 4 + 2); /* and the qsize */
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(what_was_fetched_is_at_its_place_again_when_the_client_ends) {
  served s;
  conc_manager m;
  conc_queue *q;
  int n;
  serve(&s, 0);
  for (int taken = 1; taken <= 8; taken++) {
    q = join_fetching(&s, &m, 8);
    put_numbers(s.queue, 10);
    for (int i = 0; i < taken; i++) {
      CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
      CHECK_EQ(n, i);
    }
    CHECK_EQ(conc_qsize(s.queue), 2);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    until_size(s.queue, 10 - taken);
    expect_numbers(s.queue, taken, 10);
  }
  end(&s);
}

/* Only the last that it had may come a second time. */
TEST(what_was_fetched_is_at_its_place_again_when_the_client_dies) {
  served s;
  conc_manager m;
  conc_queue *q;
  int n;
  serve(&s, 0);
  for (int taken = 1; taken < 8; taken++) {
    q = join_fetching(&s, &m, 8);
    put_numbers(s.queue, 10);
    for (int i = 0; i < taken; i++)
      CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
    die(((conc__proxy *)q)->ahead);
    until_size(s.queue, 10 - taken + 1);
    /* The client notices, and does not hand over what is not its own. */
    CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
    CHECK_EQ(n, taken - 1);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    until_size(s.queue, 10 - taken);
    expect_numbers(s.queue, taken, 10);
  }
  end(&s);
}

TEST(what_was_fetched_and_is_not_used_is_given_back) {
  served s;
  conc_manager m;
  conc_queue *q;
  int n;
  serve(&s, 0);
  q = join_fetching(&s, &m, 8);
  for (int i = 0; i < 2; i++) {
    put_numbers(s.queue, 10);
    CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
    CHECK_EQ(n, 0);
    CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
    CHECK_EQ(n, 1);
    CHECK_EQ(conc_qsize(s.queue), 2);
    until_size(s.queue, 8); /* after a second */
    expect_numbers(s.queue, 2, 10);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(what_was_fetched_and_does_not_suit_is_given_back) {
  served s;
  conc_manager m;
  conc_queue *q;
  conc_value *v = NULL;
  char buf[16];
  serve(&s, 0);
  q = join_fetching(&s, &m, 8);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put(s.queue, "a", 1, 1), 0);
    CHECK_EQ(conc_put(s.queue, "0123456789", 10, 1), 0);
    CHECK_EQ(conc_put_build(s.queue, 1, "(ii)", 1, 2), 0);
    CHECK_EQ(conc_put(s.queue, "last", 4, 1), 0);
    CHECK_EQ(conc_get(q, buf, 10, 20), 1);
    CHECK_EQ(conc_qsize(s.queue), 2); /* the pair does not come as bytes */
    CHECK_EQ(conc_get(q, buf, 9, 1), -EMSGSIZE);
    CHECK_EQ(conc_qsize(s.queue), 3);
    expect(q, "0123456789");
    CHECK_EQ(conc_get(q, buf, 16, 1), -EBADMSG);
    CHECK_EQ(conc_qsize(s.queue), 2);
    CHECK_EQ(conc_get_value(q, &v, 20), 0);
    CHECK_EQ(conc_value_size(v), 2);
    conc_value_free(v);
    CHECK_EQ(conc_get_many(q, buf, 4, 4, 20), 1);
    CHECK_EQ(conc_qsize(s.queue), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(a_server_that_ends_keeps_what_was_fetched_and_not_taken) {
  served s;
  conc_manager m;
  conc_queue *q;
  char address[128];
  int n;
  serve(&s, 0);
  for (int taken = 1; taken < 6; taken++) {
    snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
    q = join_fetching(&s, &m, 8);
    m.address = address; /* the server's own text goes with it */
    put_numbers(s.queue, 8);
    for (int i = 0; i < taken; i++)
      CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
    CHECK_EQ(conc_manager_shutdown(&s.server), 0);
    CHECK(conc_get(q, &n, sizeof n, 0.1) < 0);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    expect_numbers(s.queue, taken - 1, 8); /* the last was not confirmed */
    CHECK_EQ(conc_manager_register_queue(&s.server, "q", s.queue), 0);
    CHECK_EQ(conc_manager_start(&s.server), 0);
  }
  end(&s);
}

/* Several tasks, and every message once. */
enum { EACH = 2000, GETTERS = 4 };
static unsigned char seen[EACH];
static void *get_all(void *arg) {
  int n;
  while (conc_get((conc_queue *)arg, &n, sizeof n, 10 * test_slow()) > 0) {
    if (n < 0) break;
    CHECK_EQ(ADD_FETCH(seen[n], 1), 1);
  }
  return NULL;
}

TEST(what_several_tasks_fetch_comes_once) {
  served s;
  conc_manager m;
  conc_queue *q;
  conc_task t[GETTERS];
  int last = -1;
  serve(&s, 0);
  q = join_fetching(&s, &m, 8);
  for (int i = 0; i < GETTERS; i++)
    start(conc_thread_start, &t[i], get_all, q);
  put_numbers(s.queue, EACH);
  for (int i = 0; i < EACH; i++) UNTIL(LOAD(seen[i]) == 1);
  for (int i = 0; i < GETTERS; i++)
    CHECK_EQ(conc_put(s.queue, &last, sizeof last, 1), 0);
  /* One of them may have fetched the ends of others: these go back. */
  for (int i = 0; i < GETTERS; i++)
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  end(&s);
}

TEST(a_child_has_nothing_of_what_its_parent_has_fetched) {
  served s;
  conc_manager m;
  conc_queue *q;
  int n, status;
  pid_t pid;
  NEEDS_FORK;
  serve(&s, 0);
  q = join_fetching(&s, &m, 4);
  put_numbers(s.queue, 10);
  CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
  pid = fork();
  if (pid == 0) {
    for (int i = 4; i < 7; i++) { /* it fetches its own, and gives one back */
      CHECK_CHILD(conc_get(q, &n, sizeof n, 5) == sizeof n);
      CHECK_CHILD(n == i);
    }
    CHECK_CHILD(conc_manager_shutdown(&m) == 0);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  until_size(s.queue, 3);
  for (int i = 1; i < 4; i++) {
    CHECK_EQ(conc_get(q, &n, sizeof n, 20), sizeof n);
    CHECK_EQ(n, i);
  }
  expect_numbers(q, 7, 10);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST_MAIN
