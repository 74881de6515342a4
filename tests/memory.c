/* Memory runs out: whatever allocation fails, the call says so (or does
   without), nothing leaks, nothing hangs, and everything can be used
   afterwards. Each story is told with its 1st, 2nd, 3rd... allocation failing,
   until one is told in which none fails. */
#include "test.h"

#define CONC_MALLOC(n) test_malloc(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"

static bool enough; /* of memory: the story is told without a failure */

/* What a call may return. */
static bool fine(long long rc) {
  if (rc == -ENOMEM) CHECK(!enough);
  return rc >= 0 ? true : rc == -ENOMEM ? false : (TEST_FAIL("%lld", rc), 0);
}

static void tell(void (*story)(void)) {
  long n, left, before;
  enough = true;
  story();
  enough = false;
  before = test_blocks;
  for (n = 1, left = 0; left == 0; n++) {
    __atomic_store_n(&test_fail_at, n, __ATOMIC_RELAXED);
    story();
    left = __atomic_exchange_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    if (left < 0) left = 0;
    if (test_blocks != before)
      TEST_FAIL("%ld blocks left when allocation %ld fails",
                test_blocks - before, n);
  }
  CHECK(n > 2); /* it does allocate */
  enough = true;
  story();
}

/* --- threads, coroutines, descriptors --- */

static int ends[2];
static conc_event never;

static void *nothing(void *arg) { return arg; }

static void *nap(void *arg) {
  int rc = conc_sleep(1e-4);
  return rc == 0 ? arg : NULL;
}
static void *wait_for_descriptor(void *arg) {
  return fine(conc_wait_fd(ends[0], CONC_READ, 5)) ? arg : NULL;
}
static void *wait_in_vain(void *arg) {
  return conc_event_wait(&never, 1e-4) == -ETIMEDOUT ? arg : NULL;
}

static void *main_coroutine(void *arg) {
  enum { N = 40 };
  conc_fn *kinds[] = {nap, wait_for_descriptor, wait_in_vain, nothing};
  conc_task t[N];
  bool started[N];
  memset(t, 0, sizeof t);
  for (int i = 0; i < N; i++) {
    t[i].target = kinds[i % 4];
    t[i].arg = t;
    t[i].stack_size = i % 8 == 0 ? 2 * CONC_STACK_SIZE : 0;
    started[i] = fine(conc_coro_start(&t[i]));
  }
  for (int i = 0; i < N; i++) {
    if (!started[i]) {
      CHECK_EQ(conc_join(&t[i], 0), -EINVAL);
      started[i] = fine(conc_coro_start(&t[i])); /* there is memory now */
      CHECK(started[i]);
    }
    if (fine(conc_join(&t[i], 5)) && i % 4 != 1)
      CHECK(conc_result(&t[i]) == t);
  }
  return arg;
}

static void run_coroutines(void) {
  conc_task t;
  int x;
  memset(&t, 0, sizeof t);
  t.target = nothing;
  CHECK_EQ(conc_thread_start(&t), 0); /* needs none of our memory */
  CHECK_EQ(conc_join(&t, 5), 0);
  memset(&t, 0, sizeof t);
  t.target = main_coroutine;
  t.arg = &x;
  if (fine(conc_run(&t))) CHECK(conc_result(&t) == &x);
}

TEST(coroutines_do_without_memory_or_say_so) {
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  tell(run_coroutines);
  close(ends[0]);
  close(ends[1]);
}

static void connect_and_listen(void) {
  int fd = conc_listen("localhost:0"), client, server;
  struct sockaddr_in a;
  socklen_t size = sizeof a;
  char address[32];
  if (!fine(fd)) return;
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&a, &size), 0);
  snprintf(address, sizeof address, "localhost:%d", ntohs(a.sin_port));
  client = conc_connect(address, 5);
  if (fine(client)) {
    server = conc_accept(fd, 5);
    CHECK(server >= 0);
    CHECK_EQ(conc_close(server), 0);
    CHECK_EQ(conc_close(client), 0);
  }
  CHECK_EQ(conc_close(fd), 0);
}
TEST(addresses_need_memory_or_say_so) { tell(connect_and_listen); }

/* --- queues --- */

/* What fails changes nothing: the message is there as before, or is not. */
static void fill_and_drain(void) {
  static char big[3000], got[3000];
  conc_queue *q = conc_queue_new(NULL);
  conc_value *v;
  bool number_last;
  ssize_t n = 0;
  if (q == NULL) {
    CHECK(!enough && errno == ENOMEM);
    return;
  }
  for (size_t i = 0; i < 30; i++) {
    memset(big, (int)i, i * 100);
    if (fine(conc_put(q, big, i * 100, 0))) n++;
    CHECK_EQ(conc_qsize(q), n);
  }
  if (fine(conc_put_build(q, 0, "(isd)", 1, "two", 3.0))) n++;
  if (fine(conc_build(&v, "[s{s:i}]", "text", "key", 5))) {
    if (fine(conc_put_value(q, v, 0))) n++;
    conc_value_free(v);
  }
  if ((number_last = fine(conc_put_build(q, 0, "i", 7)))) n++;
  CHECK_EQ(conc_qsize(q), n);
  if (enough) CHECK_EQ(n, 33);
  for (ssize_t i = 0; i < n; i++) {
    ssize_t size = conc_peek_size(q);
    int number = 0;
    if (size >= 0 && i % 2) {
      CHECK_EQ(conc_get(q, got, sizeof got, 0), size);
      if (size > 0) CHECK_EQ(got[0], got[size - 1]);
    } else if (n - i > 1 || !number_last) {
      if (!fine(conc_get_value(q, &v, 0))) {
        CHECK(v == NULL);
        CHECK_EQ(conc_qsize(q), n - i);
        CHECK_EQ(conc_get_value(q, &v, 0), 0); /* there is memory now */
      }
      if (size >= 0) CHECK_EQ(conc_value_size(v), size);
      conc_value_free(v);
    } else if (!fine(conc_get_parse(q, 0, "i", &number))) {
      CHECK_EQ(conc_qsize(q), 1);
      CHECK_EQ(conc_get_parse(q, 0, "i", &number), 0);
    }
  }
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  conc_queue_free(q);
}
TEST(a_queue_keeps_its_messages_when_there_is_no_memory) {
  tell(fill_and_drain);
}

/* The last message leaves, and its memory with it; it comes back if it cannot
   be decoded. */
TEST(a_large_message_that_cannot_be_decoded_is_not_lost) {
  enum { SIZE = 200000 };
  char *data = (char *)calloc(1, SIZE);
  conc_queue *q = conc_queue_new(NULL);
  conc_value *v;
  CHECK_EQ(conc_put(q, data, SIZE, 0), 0);
  for (long n = 1; n < 20; n++) {
    int rc;
    __atomic_store_n(&test_fail_at, n, __ATOMIC_RELAXED);
    rc = conc_get_value(q, &v, 0);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    if (rc == 0) {
      CHECK_EQ(conc_value_size(v), SIZE);
      CHECK_EQ(conc_put_value(q, v, 0), 0);
      conc_value_free(v);
    } else {
      CHECK_EQ(rc, -ENOMEM);
    }
    CHECK_EQ(conc_qsize(q), 1);
  }
  free(data);
  conc_queue_free(q);
}

/* --- a manager and its client --- */

/* A server without memory hangs up: -EPROTO, if it does so at once. */
static bool fine_remotely(long long rc) {
  if (rc >= 0) return true;
  CHECK(!enough);
  if (rc != -ENOMEM && rc != -EPIPE && rc != -ECONNRESET && rc != -EPROTO)
    TEST_FAIL("%s", conc_strerror((int)rc));
  return false;
}

static void serve_and_ask(void) {
  double began = test_now();
  conc_manager server, client;
  conc_queue *local = conc_queue_new(NULL), *q = NULL;
  char buf[8];
  memset(&server, 0, sizeof server);
  memset(&client, 0, sizeof client);
  server.authkey = client.authkey = "key";
  if (local == NULL) {
    CHECK(!enough);
    return;
  }
  while (!fine(conc_manager_register_queue(&server, "q", local))) {
  }
  while (!fine_remotely(conc_manager_start(&server))) {
  }
  client.address = conc_manager_address(&server);
  while (!fine_remotely(conc_manager_connect(&client, 5))) {
  }
  while ((q = conc_manager_get(&client, "q")) == NULL)
    fine_remotely(-errno);
  while (!fine_remotely(conc_put(q, "bytes", 5, 5))) {
  }
  while (conc_qsize(local) > 1) /* one that failed was carried out */
    CHECK_EQ(conc_get(local, buf, 8, 0), 5);
  while (!fine_remotely(conc_qsize(q))) {
  }
  if (conc_get(q, buf, 8, 5) != 5) {
    CHECK(!enough);
    if (conc_qsize(local) == 0) conc_put(local, "bytes", 5, 0);
    CHECK_EQ(conc_get(q, buf, 8, 5), 5);
  }
  while (!fine_remotely(conc_put_build(q, 5, "(is)", 7, "seven"))) {
  }
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  conc_queue_free(local);
  CHECK(test_now() - began < 4 * test_slow());
}
TEST(a_manager_and_its_client_do_without_memory_or_say_so) {
  tell(serve_and_ask);
}

TEST_MAIN
