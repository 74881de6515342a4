/* Memory runs out: whatever allocation fails, the call says so (or does
   without), nothing leaks, nothing hangs, and everything can be used
   afterwards. Each story is told with its 1st, 2nd, 3rd... allocation failing,
   until one is told in which none fails. */
#include "test.h"

static void *allocate(void *old, size_t size);
#define CONC_MALLOC(n) allocate(NULL, n)
#define CONC_REALLOC(p, n) allocate(p, n)
#define CONC_FREE(p) test_free(p)
#include <netdb.h>
static int look_up(const char *host, const char *port,
                   const struct addrinfo *hints, struct addrinfo **info);
#define getaddrinfo look_up
#include "inside.h"
#undef getaddrinfo

static void (*at_failure)(void); /* if not NULL: there is no memory from now */
static bool exhausted;

static void *allocate(void *old, size_t size) {
  void *block = exhausted ? NULL : test_realloc(old, size);
  if (block != NULL || at_failure == NULL || exhausted) return block;
  exhausted = true;
  at_failure();
  return NULL;
}

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

/* A name server that answers when it is told to. */
static conc_event may_answer;
static int asked;

static int look_up(const char *host, const char *port,
                   const struct addrinfo *hints, struct addrinfo **info) {
  if (strcmp(host, "slow") == 0) {
    if (hints->ai_flags & AI_NUMERICHOST) return EAI_NONAME;
    __atomic_add_fetch(&asked, 1, __ATOMIC_RELEASE);
    CHECK_EQ(conc_event_wait(&may_answer, CONC_FOREVER), 0);
    host = "127.0.0.1";
  }
  return getaddrinfo(host, port, hints, info);
}

TEST(a_name_that_is_resolved_too_late_is_forgotten) {
  long before = test_blocks;
  int rounds;
  for (rounds = 0; rounds < 200; rounds++) {
    double timeout = rounds % 2 ? 0.01 : 1e-4; /* about when it answers, too */
    if (rounds >= 10) conc_event_set(&may_answer);
    CHECK(conc_connect("slow:1", timeout) < 0);
  }
  while (__atomic_load_n(&test_blocks, __ATOMIC_ACQUIRE) > before)
    usleep(1000);
  CHECK(__atomic_load_n(&asked, __ATOMIC_ACQUIRE) > 0);
}

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

/* A value was got and cannot be decoded; meanwhile others have filled the
   ring, and there is no memory for a larger one. */
static conc_queue *full;
static size_t full_got, filled;

static void fill(void) {
  char data[100];
  if (AS_FIFO(full)->got == full_got) return; /* it was not got */
  memset(data, 'x', sizeof data);
  for (; conc_put(full, data, 100, 0) == 0; filled++) {
  }
  for (; conc_put(full, data, 0, 0) == 0; filled++) {
  }
}

/* Tries to get, with the n-th allocation failing and all later ones. */
static void get_in_vain(long n) {
  conc_value *v = NULL;
  full_got = AS_FIFO(full)->got;
  at_failure = fill;
  __atomic_store_n(&test_fail_at, n, __ATOMIC_RELAXED);
  conc_get_value(full, &v, 0);
  __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
  at_failure = NULL;
  conc_value_free(v);
}

static void value_comes_back(long n, bool twice, bool is_drained) {
  char buf[100];
  conc_value *v;
  size_t i;
  int a = 0;
  full = conc_queue_new(NULL);
  CHECK_EQ(conc_put_build(full, 0, "(isi)", 1, "two", 3), 0);
  CHECK_EQ(conc_put_build(full, 0, "i", 4), 0);
  filled = 0;
  get_in_vain(n);
  if (filled > 0) {
    CHECK_EQ(conc_qsize(full), 2 + filled);
    CHECK_EQ(conc_peek_size(full), -EBADMSG);
    CHECK_EQ(conc_get(full, buf, 100, 0), -EBADMSG);
    exhausted = false;
    if (twice) get_in_vain(n);
    CHECK_EQ(conc_qsize(full), 2 + filled);
  }
  exhausted = false;
  if (filled > 0 && is_drained) {
    CHECK_EQ(conc_get_value(full, &v, 0), 0);
    CHECK_EQ(conc_value_size(v), 3);
    conc_value_free(v);
    CHECK_EQ(conc_get_parse(full, 0, "i", &a), 0);
    CHECK_EQ(a, 4);
    for (i = 0; conc_get(full, buf, 100, 0) >= 0; i++) {
    }
    CHECK_EQ(i, filled);
  }
  conc_queue_free(full);
}

TEST(a_value_that_comes_back_to_a_full_ring_is_not_lost) {
  size_t times = 0;
  for (long n = 1; n < 20; n++)
    for (int how = 0; how < 4; how++) {
      value_comes_back(n, how & 1, how & 2);
      times += filled > 0;
    }
  CHECK(times > 0);
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
  if (conc_get(q, buf, 8, 5) != 5) { /* whoever failed, it is still there */
    CHECK(!enough);
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

/* What a client asked for and cannot take is there for its next get, in the
   order in which it was put. */
TEST(a_reply_that_there_is_no_memory_for_is_not_lost) {
  enum { LARGE = 300000 };
  char *data = (char *)calloc(1, LARGE);
  conc_manager server, client;
  conc_queue *local = conc_queue_new(NULL), *q;
  long failures = 0;
  memset(&server, 0, sizeof server);
  memset(&client, 0, sizeof client);
  server.no_auth = true;
  CHECK_EQ(conc_manager_register_queue(&server, "q", local), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  client.address = conc_manager_address(&server);
  CHECK_EQ(conc_manager_connect(&client, 5), 0);
  q = conc_manager_get(&client, "q");
  CHECK(q != NULL);
  for (int kind = 0; kind < 6; kind++) {
    long left = 0;
    for (long n = 1; left == 0; n++) {
      ssize_t rc = -1, size = kind % 2 ? LARGE : 10;
      conc_value *v = NULL;
      int number = 0;
      for (int again = 0; rc < 0; again++) {
        if (again == 0) {
          if (kind == 4)
            CHECK_EQ(conc_put_build(local, 0, "(is)", 7, "seven"), 0);
          else
            CHECK_EQ(conc_put(local, data, (size_t)size, 0), 0);
          CHECK_EQ(conc_put_build(local, 0, "i", 8), 0);
          __atomic_store_n(&test_fail_at, n, __ATOMIC_RELAXED);
        }
        if (kind < 2)
          rc = conc_get(q, data, (size_t)size, 5);
        else if (kind < 5)
          rc = conc_get_value(q, &v, 5);
        else
          rc = conc_get_many(q, data, (size_t)size, 1, 5);
        if (again == 0)
          left = __atomic_exchange_n(&test_fail_at, 0, __ATOMIC_RELAXED);
        if (left < 0) left = 0;
        if (rc >= 0) break;
        failures++;
        CHECK_EQ(again, 0); /* there is memory now */
        fine_remotely(rc);
        CHECK_EQ(conc_qsize(q), 2);
      }
      if (kind == 4) CHECK_EQ(conc_value_size(v), 2);
      if (kind < 2) CHECK_EQ(rc, size);
      if (kind == 2 || kind == 3) CHECK_EQ(conc_value_size(v), size);
      conc_value_free(v);
      CHECK_EQ(conc_get_parse(q, 5, "i", &number), 0);
      CHECK_EQ(number, 8);
    }
  }
  CHECK(failures > 20);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  conc_queue_free(local);
  free(data);
}

TEST_MAIN
