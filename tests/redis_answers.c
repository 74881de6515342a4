/* A Redis that gives odd answers, ends in the middle, is silent, slow, old,
   hostile, killed, or has lost its keys: what each call says of that, in time,
   and that the queue goes on afterwards. */
#include "test.h"

#include "../conc.h"
#include "odd.h"

static double soon(void) { return 10 * test_slow(); }

/* A Redis, an odd one before it, a manager that has made the queue "q", and a
   client that has it through the odd one. */
typedef struct stage {
  redis real;
  odd between;
  conc_manager server, client;
  conc_queue *own, *q;
} stage;

static void begin(stage *s, const char *lines, double lease,
                  double reconnect) {
  conc_queue_opts o;
  NEEDS_REDIS;
  memset(s, 0, sizeof *s);
  memset(&o, 0, sizeof o);
  o.lease = lease;
  redis_begin(&s->real, lines);
  odd_begin(&s->between, &s->real);
  s->own = conc_queue_new(&o);
  s->server.address = s->real.address;
  CHECK_EQ(conc_manager_register_queue(&s->server, "q", s->own), 0);
  CHECK_EQ(conc_manager_start(&s->server), 0);
  s->client.address = s->between.address;
  s->client.reconnect = reconnect;
  s->client.timeout = 0.5 + 0.3 * test_slow();
  CHECK_EQ(conc_manager_connect(&s->client, soon()), 0);
  s->q = conc_manager_get(&s->client, "q");
  CHECK(s->q != NULL);
}

static void end(stage *s) {
  CHECK_EQ(conc_manager_shutdown(&s->client), 0);
  CHECK_EQ(conc_manager_shutdown(&s->server), 0);
  conc_queue_free(s->own);
  odd_end(&s->between);
  redis_end(&s->real);
}

/* One more client, at that address, with options of its own. */
static conc_queue *join_as(conc_manager *m, const char *address,
                           size_t max_message, size_t replicas) {
  conc_queue *q;
  memset(m, 0, sizeof *m);
  m->address = address;
  m->max_message = max_message;
  m->replicas = replicas;
  m->timeout = soon();
  CHECK_EQ(conc_manager_connect(m, soon()), 0);
  q = conc_manager_get(m, "q");
  CHECK(q != NULL);
  return q;
}

static void expect(conc_queue *q, const char *text) {
  char buf[64];
  ssize_t n = conc_get(q, buf, sizeof buf, soon());
  if (n < 0) TEST_FAIL("no \"%s\": %s", text, conc_strerror((int)n));
  CHECK_EQ(n, strlen(text));
  CHECK(memcmp(buf, text, strlen(text)) == 0);
}

/* The queue works, and is empty: nothing came twice. A call that finds a dead
   connection, or what is left of an odd answer, may say so. With a lease
   nothing is said to the server afterwards, so that it is the next call that
   gets an odd answer. */
static void goes_on(stage *s) {
  char buf[64];
  ssize_t n;
  int rc = 0;
  odd_next(&s->between, "", AS_IT_IS, NULL);
  for (int i = 0; i < 5; i++) {
    rc = conc_put(s->q, "goes on", 7, soon());
    if (rc != -EPIPE && rc != -ECONNRESET && rc != -EPROTO) break;
  }
  CHECK_EQ(rc, 0);
  do n = conc_get(s->q, buf, sizeof buf, soon());
  while (n == -EPIPE || n == -ECONNRESET);
  CHECK_EQ(n, 7);
  CHECK(memcmp(buf, "goes on", 7) == 0);
  conc_task_done(s->q);
}

/* Checks that what follows took no longer than that; a machine with other
   things to do may take a little longer. */
#define WITHIN(seconds, call)                     \
  do {                                            \
    const double began_ = conc_now();             \
    call;                                         \
    CHECK(conc_now() - began_ < (seconds) * test_slow() + 3); \
  } while (0)

/* --- what a server says --- */

/* What a put returns that is answered so: once; and as long as it tries. */
static const struct saying {
  const char *text;
  int once, always;
} sayings[] = {
    {"-LOADING Redis is loading the dataset in memory", 0, -EAGAIN},
    {"-READONLY You can't write against a read only replica.", 0, -EROFS},
    {"-MASTERDOWN Link with MASTER is down", 0, -EAGAIN},
    {"-CLUSTERDOWN The cluster is down", 0, -EAGAIN},
    {"-TRYAGAIN Multiple keys request during rehashing of slot", 0, -EAGAIN},
    {"-BUSY Redis is busy running a script.", 0, -EAGAIN},
    {"-OOM command not allowed when used memory > 'maxmemory'.", -ENOSPC,
     -ENOSPC},
    {"-NOREPLICAS Not enough good replicas to write.", -ENOLINK, -ENOLINK},
    {"-NOAUTH Authentication required.", -EACCES, -EACCES},
    {"-WRONGPASS invalid username-password pair", -EACCES, -EACCES},
    {"-NOPERM this user has no permissions to run the command", -EACCES,
     -EACCES},
    {"-WRONGTYPE Operation against a key holding the wrong kind of value",
     -EBADMSG, -EBADMSG},
    {"-MISCONF Redis is configured to save RDB snapshots", -EIO, -EIO},
    {"-MOVED 8000 127.0.0.1:1", -EPROTO, -EPROTO},
    {"-ASK 8000 127.0.0.1:1", -EPROTO, -EPROTO},
    {"-ERR no such thing", -EPROTO, -EPROTO},
    {"-", -EPROTO, -EPROTO},
};

TEST(each_error_of_a_server_is_an_error_of_the_call) {
  stage s;
  begin(&s, "", 60, 5);
  for (size_t i = 0; i < sizeof sayings / sizeof *sayings; i++) {
    const struct saying *it = &sayings[i];
    char line[200], got[16];
    int rc;
    snprintf(line, sizeof line, "%s\r\n", it->text);
    odd_next(&s.between, "{q}", ANSWER, line);
    rc = conc_put(s.q, "x", 1, soon());
    if (rc != it->once) TEST_FAIL("%s: %s", it->text, conc_strerror(rc));
    CHECK_EQ(odd_met(&s.between), 1);
    if (rc == 0) {
      CHECK_EQ(conc_get(s.q, got, sizeof got, soon()), 1);
      CHECK_EQ(conc_task_done(s.q), 0);
    }
    odd_always(&s.between, "{q}", ANSWER, line);
    WITHIN(5, rc = conc_put(s.q, "x", 1, 0.2));
    if (rc != it->always) TEST_FAIL("always %s: %d", it->text, rc);
    goes_on(&s);
  }
  CHECK_EQ(conc_qsize(s.q), 0);
  end(&s);
}

TEST(a_get_outlives_what_a_server_refuses_for_now) {
  static const char *const passing[] = {
      "-LOADING Redis is loading the dataset in memory\r\n",
      "-READONLY You can't write against a read only replica.\r\n",
      "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n",
      "-NOGROUP No such key '{q}' or consumer group 'conc'\r\n",
      "-CLUSTERDOWN Hash slot not served\r\n",
      "-BUSY Redis is busy running a script.\r\n",
      "*-1\r\n",
  };
  stage s;
  begin(&s, "", 0, 5);
  for (size_t i = 0; i < sizeof passing / sizeof *passing; i++) {
    CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
    odd_next(&s.between, "XREADGROUP", ANSWER, passing[i]);
    expect(s.q, "x");
    goes_on(&s);
  }
  end(&s);
}

static char *deep(void) { /* ten thousand arrays, one in the other */
  enum { DEPTH = 10000 };
  static char text[4 * DEPTH + 5];
  for (int i = 0; i < DEPTH; i++) memcpy(text + 4 * i, "*1\r\n", 4);
  memcpy(text + 4 * DEPTH, ":7\r\n", 5);
  return text;
}

/* What is no answer, or none to such a request. */
TEST(what_makes_no_sense_ends_the_connection_alone) {
  const char *const all[] = {
      "hello\r\n",
      "\r\n",
      ":7seven\r\n",
      ":99999999999999999999999\r\n",
      "$99999999999\r\n",
      "$9223372036854775807\r\nx",
      "$-5\r\n",
      "$3\r\nabcdef\r\n",
      "*2147483647\r\n",
      "*-7\r\n",
      "*99999999999999999999\r\n",
      "*3\r\n$1\r\na\r\n:1\r\n+b\r\n",
      "*0\r\n",
      "%1\r\n+a\r\n+b\r\n",
      deep(),
  };
  stage s;
  begin(&s, "", 60, 0);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    int rc;
    odd_next(&s.between, "{q}", ANSWER, all[i]);
    WITHIN(10, rc = conc_put(s.q, "x", 1, soon()));
    CHECK_EQ(odd_met(&s.between), 1);
    if (rc != -EPROTO) TEST_FAIL("%.20s: %s", all[i], conc_strerror(rc));
    goes_on(&s);
    odd_always(&s.between, "XREADGROUP", ANSWER, all[i]);
    WITHIN(10, rc = (int)conc_get(s.q, &rc, sizeof rc, 0.3));
    if (rc != -EPROTO && rc != -ETIMEDOUT && rc != -EMSGSIZE)
      TEST_FAIL("get %.20s: %s", all[i], conc_strerror(rc));
    goes_on(&s);
  }
  end(&s);
}

/* An answer that is short by some bytes keeps the call waiting for them, no
   longer than its timeout. */
TEST(an_answer_that_is_not_whole_is_waited_for_in_time) {
  static const char *const all[] = {"$1", "$5\r\nab", "-LOAD",
                                    "*1\r\n*1\r\n*1\r\n"};
  stage s;
  begin(&s, "", 60, 0);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    int rc;
    odd_next(&s.between, "{q}", ANSWER, all[i]);
    /* Longer than .timeout, so that the connection is given up. */
    WITHIN(8, rc = conc_put(s.q, "x", 1, 0.4 * test_slow()));
    if (rc != -ECONNRESET && rc != -EPROTO) TEST_FAIL("%s: %d", all[i], rc);
    goes_on(&s);
  }
  end(&s);
}

/* --- connections that end --- */

TEST(a_put_whose_connection_ends_says_so) {
  static const odd_way ways[] = {LOSE_REQUEST, LOSE_ANSWER, HALF};
  stage s;
  begin(&s, "", 0, 0);
  for (int i = 0; i < 3; i++) {
    odd_next(&s.between, "{q}", ways[i], NULL);
    CHECK_EQ(conc_put(s.q, "x", 1, soon()), -ECONNRESET);
    if (ways[i] != LOSE_REQUEST) expect(s.q, "x"); /* it was carried out */
    goes_on(&s);
  }
  end(&s);
}

TEST(with_reconnect_a_put_whose_answer_was_lost_counts_once) {
  static const odd_way ways[] = {LOSE_REQUEST, LOSE_ANSWER, HALF};
  stage s;
  begin(&s, "", 0, 20);
  for (int round = 0; round < 4; round++)
    for (int i = 0; i < 3; i++) {
      char text[16];
      int n = snprintf(text, sizeof text, "%d.%d", round, i);
      odd_next(&s.between, "{q}", ways[i], NULL);
      CHECK_EQ(conc_put(s.q, text, (size_t)n, soon()), 0);
      CHECK_EQ(odd_met(&s.between), 1);
      expect(s.q, text);
      goes_on(&s); /* there is no second one before this */
    }
  CHECK_EQ(conc_qsize(s.q), 0);
  end(&s);
}

TEST(with_reconnect_many_whose_answer_was_lost_count_once) {
  static const odd_way ways[] = {LOSE_REQUEST, LOSE_ANSWER, HALF};
  enum { N = 50 };
  int in[N], out;
  stage s;
  begin(&s, "", 0, 20);
  for (int i = 0; i < N; i++) in[i] = i;
  for (int i = 0; i < 3; i++) {
    size_t at = 0;
    odd_next(&s.between, "{q}", ways[i], NULL);
    s.between.skip = i;
    while (at < N) {
      ssize_t n = conc_put_many(s.q, in + at, sizeof *in, 10, soon());
      if (n < 0) TEST_FAIL("at %d: %s", (int)at, conc_strerror((int)n));
      at += (size_t)n;
    }
    CHECK_EQ(odd_met(&s.between), 1);
    for (int k = 0; k < N; k++) {
      CHECK_EQ(conc_get(s.q, &out, sizeof out, soon()), sizeof out);
      CHECK_EQ(out, k);
    }
    goes_on(&s);
  }
  end(&s);
}

/* A server that is full for a moment: what many say that they have put is what
   is there, so that the rest can be put again. */
TEST(many_are_put_as_far_as_they_say) {
  int in[3] = {0, 1, 2};
  stage s;
  begin(&s, "", 0, 0);
  for (int skip = 0; skip < 3; skip++) {
    ssize_t n, there;
    odd_next(&s.between, "{q}", ANSWER, "-OOM used memory > 'maxmemory'\r\n");
    s.between.skip = skip;
    n = conc_put_many(s.q, in, sizeof *in, 3, soon());
    odd_next(&s.between, "", AS_IT_IS, NULL);
    there = conc_qsize(s.q);
    CHECK_EQ(there, n < 0 ? 0 : n);
    for (int out, k = 0; k < there; k++) {
      CHECK_EQ(conc_get(s.q, &out, sizeof out, soon()), sizeof out);
      CHECK_EQ(out, k);
    }
    goes_on(&s);
  }
  end(&s);
}

/* More than go in one trip, of which one trip was carried out, and the answer
   to the next one is lost: an error says so. */
TEST(many_of_which_some_are_not_known_are_no_number) {
  enum { N = 3000 };
  static int in[N];
  stage s;
  begin(&s, "", 0, 0);
  odd_next(&s.between, "{q}", LOSE_ANSWER, NULL);
  s.between.skip = 1;
  CHECK_EQ(conc_put_many(s.q, in, sizeof *in, N, soon()), -ECONNRESET);
  REDIS_SAYS("2048", &s.real, "XLEN {q}");
  end(&s);
}

/* The first of them have their replica, the next ones do not: what one call
   says that it has put is what is there by it. */
TEST(many_have_their_replicas_or_an_error_says_so) {
  enum { N = 3000 };
  static int in[N];
  conc_manager m;
  conc_queue *q;
  stage s;
  begin(&s, "", 0, 0);
  q = join_as(&m, s.between.address, 0, 1);
  odd_next(&s.between, "WAIT", ANSWER, ":1\r\n");
  CHECK_EQ(conc_put_many(q, in, sizeof *in, N, 0.2), 1024);
  REDIS_SAYS("1024", &s.real, "XLEN {q}");
  CHECK_EQ(conc_put_many(q, in + 1024, sizeof *in, 10, 0.2), -ENOLINK);
  REDIS_SAYS("1034", &s.real, "XLEN {q}");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* What was handed out by an answer that did not come is got again. */
TEST(a_get_whose_answer_was_lost_loses_nothing) {
  static const odd_way ways[] = {LOSE_REQUEST, LOSE_ANSWER, HALF};
  stage s;
  begin(&s, "", 0.5 * test_slow(), 20);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
    odd_next(&s.between, "XREADGROUP", ways[i], NULL);
    expect(s.q, "x");
    CHECK_EQ(conc_task_done(s.q), 0);
    CHECK_EQ(conc_queue_join(s.q, soon()), 0);
  }
  end(&s);
}

/* What was asked twice, and found to be done, may have been done by another
   one: so it is not known. */
TEST(with_reconnect_a_done_whose_answer_was_lost_is_done) {
  static const odd_way ways[] = {LOSE_REQUEST, LOSE_ANSWER, HALF};
  stage s;
  begin(&s, "", 60, 20);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
    expect(s.q, "x");
    odd_next(&s.between, "EVALSHA", ways[i], NULL);
    CHECK_EQ(conc_task_done(s.q),
             ways[i] == LOSE_REQUEST ? 0 : -ECONNRESET);
    CHECK_EQ(conc_queue_join(s.q, soon()), 0);
    CHECK_EQ(conc_qsize(s.q), 0);
  }
  end(&s);
}

/* --- silence --- */

/* A server that says nothing is given up after .timeout; so a get may hear of
   that, or not. */
TEST(a_server_that_is_silent_costs_a_call_its_timeout_and_little_more) {
  char buf[8];
  stage s;
  int rc;
  begin(&s, "", 60, 0);
  odd_always(&s.between, "{q}", SILENCE, NULL);
  WITHIN(2, CHECK_EQ(conc_put(s.q, "x", 1, 0.1), -ECONNRESET));
  for (int i = 0; i < 2; i++) {
    WITHIN(2, rc = (int)conc_get(s.q, buf, sizeof buf, i * 0.1));
    CHECK(rc == -ETIMEDOUT || rc == -ECONNRESET);
  }
  WITHIN(2, CHECK(conc_qsize(s.q) < 0));
  WITHIN(2, CHECK(conc_queue_join(s.q, 0.1) < 0));
  end(&s);
}

TEST(a_server_that_is_stopped_delays_nobody_for_longer) {
  char buf[8];
  stage s;
  int rc;
  begin(&s, "", 60, 20);
  CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
  expect(s.q, "x");
  CHECK_EQ(kill(s.real.pid, SIGSTOP), 0);
  WITHIN(3, rc = conc_put(s.q, "x", 1, 0.2));
  CHECK_EQ(rc, -ECONNRESET);
  WITHIN(3, rc = (int)conc_get(s.q, buf, sizeof buf, 0.2));
  CHECK(rc == -ETIMEDOUT || rc == -ECONNRESET);
  WITHIN(4, rc = (int)conc_qsize(s.q));
  CHECK(rc < 0);
  CHECK_EQ(kill(s.real.pid, SIGCONT), 0);
  redis_until(&s.real, "PONG", "PING");
  for (int i = 0; i < 2 && (i == 0 || conc_qsize(s.q) > 0); i++)
    conc_get(s.q, buf, sizeof buf, 0.5); /* the first put may be carried out */
  end(&s);
}

TEST(answers_that_come_byte_by_byte_are_understood) {
  char in[300], out[300];
  stage s;
  begin(&s, "", 60, 0);
  odd_always(&s.between, "", DRIP, NULL);
  memset(in, '\r', sizeof in);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(conc_put(s.q, in, sizeof in, soon()), 0);
    CHECK_EQ(conc_get(s.q, out, sizeof out, soon()), sizeof out);
    CHECK(memcmp(in, out, sizeof in) == 0);
    CHECK_EQ(conc_task_done(s.q), 0);
  }
  CHECK_EQ(conc_qsize(s.q), 0);
  end(&s);
}

/* --- who is let in --- */

#define HELLO(kind, version)                                             \
  "*14\r\n$6\r\nserver\r\n" kind "\r\n$7\r\nversion\r\n" version         \
  "\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:5\r\n$4\r\nmode\r\n"            \
  "$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n" \
  "*0\r\n"

TEST(a_server_that_is_too_old_is_refused) {
  static const struct {
    const char *hello;
    int rc;
  } all[] = {
      {HELLO("$5\r\nredis", "$5\r\n6.0.9"), -ENOTSUP},
      {HELLO("$5\r\nredis", "$5\r\n6.2.0"), 0},
      {HELLO("$5\r\nredis", "$6\r\n10.0.0"), 0},
      {HELLO("$6\r\nvalkey", "$5\r\n7.2.0"), 0},
      {HELLO("$6\r\nvalkey", "$5\r\n8.1.1"), 0},
      {HELLO("$6\r\nvalkey", "$5\r\n7.0.0"), -ENOTSUP},
      {"-ERR unknown command `HELLO`, with args beginning with: `2`\r\n",
       -ENOTSUP},
  };
  stage s;
  begin(&s, "", 0, 0);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    conc_manager m;
    memset(&m, 0, sizeof m);
    m.address = s.between.address;
    odd_always(&s.between, "HELLO", ANSWER, all[i].hello);
    CHECK_EQ(conc_manager_connect(&m, soon()), all[i].rc);
    CHECK(odd_met(&s.between) >= 1);
    if (all[i].rc == 0) CHECK_EQ(conc_manager_shutdown(&m), 0);
  }
  odd_next(&s.between, "", AS_IT_IS, NULL);
  end(&s);
}

static int connect_as(const char *address, const char *key) {
  conc_manager m;
  int rc;
  memset(&m, 0, sizeof m);
  m.address = address;
  m.authkey = key;
  rc = conc_manager_connect(&m, soon());
  if (rc == 0) CHECK_EQ(conc_manager_shutdown(&m), 0);
  return rc;
}

TEST(a_password_is_asked_for) {
  char address[200];
  conc_manager m;
  redis r;
  NEEDS_REDIS;
  redis_begin_port(&r, "");
  CHECK_EQ(connect_as(r.address, NULL), 0);
  CHECK_EQ(connect_as(r.address, "any"), 0); /* it asks for none */
  REDIS_SAYS("OK", &r, "ACL SETUSER anna on >p@ss ~* &* +@all");
  /* One of any bytes. */
  REDIS_SAYS("OK", &r,
             "ACL SETUSER zoe on ~* &* +@all #" /* of "a\0b", by SHA-256 */
             "59b271ae1bbcb1d31d41929817f4b16f"
             "b439eb4f31520b5ad1d5ce98920a7138");
  memset(&m, 0, sizeof m);
  snprintf(address, sizeof address, "redis://zoe@127.0.0.1:%d", r.port);
  m.address = address;
  m.authkey = "a\0b";
  m.authkey_size = 3;
  CHECK_EQ(conc_manager_connect(&m, soon()), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  REDIS_SAYS("OK", &r, "CONFIG SET requirepass secret");
  CHECK_EQ(connect_as(r.address, NULL), -EACCES);
  CHECK_EQ(connect_as(r.address, "wrong"), -EACCES);
  CHECK_EQ(connect_as(r.address, "secret"), 0);
  snprintf(address, sizeof address, "redis://:secret@127.0.0.1:%d", r.port);
  CHECK_EQ(connect_as(address, NULL), 0);
  snprintf(address, sizeof address, "redis://anna:p%%40ss@127.0.0.1:%d/3",
           r.port);
  CHECK_EQ(connect_as(address, NULL), 0);
  snprintf(address, sizeof address, "redis://anna:wrong@127.0.0.1:%d",
           r.port);
  CHECK_EQ(connect_as(address, NULL), -EACCES);
  redis_end(&r);
}

TEST(addresses_that_make_no_sense_are_refused) {
  static const char *const all[] = {
      "redis://",     "redis://h:65536",    "redis://h:1x",
      "redis://h/x",  "redis://h/-1",       "redis+unix://",
      "redis://a@",   "redis://h:1/0?what", "redis://h?db=x",
      "redis://h,,g", "redis://h/1?cluster", "redis://h,g",
      "redis://h%",   "redis://a%4:b@h",     "redis://:a%zz@h",
      "redis://:a%00@h", "redis://h?sentinel=%4g",
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (connect_as(all[i], NULL) != -EINVAL)
      TEST_FAIL("%s: %d", all[i], connect_as(all[i], NULL));
  CHECK(connect_as("redis://127.0.0.1:1", NULL) == -ECONNREFUSED);
}

TEST(a_name_that_is_not_there_is_not_found) {
  stage s;
  begin(&s, "", 0, 0);
  CHECK(conc_manager_get(&s.client, "nothing") == NULL);
  CHECK_EQ(errno, ENOENT);
  end(&s);
}

/* --- what others do to the keys --- */

TEST(keys_of_another_kind_and_groups_that_vanish) {
  stage s;
  begin(&s, "", 60, 5);
  CHECK_EQ(conc_put(s.q, "made", 4, soon()), 0);
  expect(s.q, "made");
  CHECK_EQ(conc_task_done(s.q), 0);
  REDIS_SAYS("1", &s.real, "XGROUP DESTROY {q} conc");
  CHECK_EQ(conc_put(s.q, "a", 1, soon()), 0);
  expect(s.q, "a");
  CHECK_EQ(conc_task_done(s.q), 0);
  REDIS_SAYS("OK", &s.real, "SCRIPT FLUSH");
  CHECK_EQ(conc_put(s.q, "b", 1, soon()), 0);
  expect(s.q, "b");
  CHECK_EQ(conc_task_done(s.q), 0);
  REDIS_SAYS("1", &s.real, "DEL {q}");
  CHECK_EQ(conc_put(s.q, "c", 1, soon()), 0);
  expect(s.q, "c");
  CHECK_EQ(conc_task_done(s.q), 0);
  REDIS_SAYS("1", &s.real, "DEL {q}");
  REDIS_SAYS("OK", &s.real, "SET {q} x");
  CHECK_EQ(conc_put(s.q, "d", 1, soon()), -EBADMSG);
  REDIS_SAYS("1", &s.real, "DEL {q}");
  CHECK_EQ(conc_put(s.q, "e", 1, soon()), 0);
  expect(s.q, "e");
  CHECK_EQ(conc_task_done(s.q), 0);
  end(&s);
}

/* What others have put into the stream that no message can be. */
TEST(entries_that_are_no_messages_do_not_stop_the_queue) {
  char buf[64];
  stage s;
  ssize_t n;
  begin(&s, "", 0, 0);
  redis_say(&s.real, "XADD {q} * what this");
  redis_say(&s.real, "XADD {q} * p \"not a pickle\"");
  redis_say(&s.real, "XADD {q} * d first d second more fields");
  redis_say(&s.real, "XADD {q} * d last");
  for (int i = 0; i < 20; i++) {
    conc_value *v = NULL;
    n = conc_get(s.q, buf, sizeof buf, soon());
    if (n == 4 && memcmp(buf, "last", 4) == 0) break;
    if (n == -EBADMSG && conc_get_value(s.q, &v, soon()) == 0)
      conc_value_free(v);
    CHECK(i < 19);
  }
  end(&s);
}

TEST(connections_that_a_server_ends_are_made_anew) {
  stage s;
  begin(&s, "", 60, 20);
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
    redis_say(&s.real, "CLIENT KILL TYPE normal");
    expect(s.q, "x");
    redis_say(&s.real, "CLIENT KILL TYPE normal");
    CHECK_EQ(conc_task_done(s.q), 0);
  }
  CHECK_EQ(conc_queue_join(s.q, soon()), 0);
  end(&s);
}

static void *put_one(void *arg) {
  return conc_put((conc_queue *)arg, "late", 4, soon()) == 0 ? arg : NULL;
}

TEST(a_server_that_is_started_again_is_waited_for) {
  conc_task t;
  stage s;
  begin(&s, "appendonly yes\nappendfsync always", 60, 20);
  CHECK_EQ(conc_put(s.q, "early", 5, soon()), 0);
  redis_kill(&s.real);
  start(conc_thread_start, &t, put_one, s.q);
  usleep(100000);
  redis_run(&s.real);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(conc_result(&t) == s.q);
  expect(s.q, "early");
  expect(s.q, "late");
  CHECK_EQ(conc_task_done(s.q), 0);
  CHECK_EQ(conc_task_done(s.q), 0);
  end(&s);
}

/* The server takes no writes for a while. A call that has no time to wait for
   that must not leave it for another one, which is not there. */
TEST(a_call_that_had_little_time_says_nothing_of_the_server) {
  conc_queue *own = conc_queue_new(NULL), *q;
  conc_manager server, m;
  char address[100];
  redis r;
  NEEDS_REDIS;
  redis_begin_port(&r, "");
  memset(&server, 0, sizeof server);
  server.address = r.address;
  CHECK_EQ(conc_manager_register_queue(&server, "q", own), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  snprintf(address, sizeof address, "redis://127.0.0.1:%d,127.0.0.1:1?cluster",
           r.port);
  q = join_as(&m, address, 0, 0);
  CHECK_EQ(conc_put(q, "a", 1, soon()), 0);
  REDIS_SAYS("OK", &r, "CLIENT PAUSE 60000 WRITE");
  CHECK(conc_put(q, "b", 1, 0.1) < 0);
  REDIS_SAYS("OK", &r, "CLIENT UNPAUSE");
  CHECK_EQ(conc_put(q, "c", 1, soon()), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  conc_queue_free(own);
  redis_end(&r);
}

/* --- what is bounded --- */

/* A reply of a million parts, of which the last one never comes. */
static char *endless(void) {
  enum { PARTS = (1 << 20) - 1 };
  char *text = (char *)malloc(4 * (size_t)PARTS + 20);
  int head = snprintf(text, 20, "*%d\r\n", PARTS + 1);
  for (size_t i = 0; i < PARTS; i++)
    memcpy(text + head + 4 * i, ":7\r\n", 4);
  text[(size_t)head + 4 * (size_t)PARTS] = 0;
  return text;
}

TEST(a_reply_that_never_ends_is_given_up) {
  char *text = endless(), got[8];
  conc_manager m;
  conc_queue *q;
  stage s;
  begin(&s, "", 60, 0);
  q = join_as(&m, s.between.address, 1000, 0);
  odd_next(&s.between, "{q}", ANSWER, text);
  CHECK_EQ(conc_put(q, "x", 1, soon()), -EPROTO);
  odd_always(&s.between, "XREADGROUP", ANSWER, text);
  CHECK_EQ(conc_get(q, got, sizeof got, soon()), -EPROTO);
  odd_next(&s.between, "", AS_IT_IS, NULL);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  goes_on(&s);
  end(&s);
  free(text);
}

/* Together they are longer than a reply may be: so they come by fewer. */
TEST(long_messages_come_by_fewer) {
  enum { N = 28, SIZE = 3 << 19 };
  char *many = (char *)calloc(N, SIZE);
  conc_manager m;
  conc_queue *q;
  stage s;
  begin(&s, "", 0, 0);
  q = join_as(&m, s.real.address, 2 << 20, 0);
  for (int i = 0; i < N; i++) {
    many[0] = (char)i;
    CHECK_EQ(conc_put(q, many, SIZE, soon()), 0);
  }
  for (ssize_t n, at = 0; at < N; at += n) {
    n = conc_get_many(q, many, SIZE, (size_t)(N - at), soon());
    if (n <= 0) TEST_FAIL("at %d: %s", (int)at, conc_strerror((int)n));
    CHECK(n < N);
    for (int i = 0; i < n; i++) CHECK_EQ(many[(size_t)i * SIZE], at + i);
  }
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
  free(many);
}

/* A full server takes no messages; but what it has can be got, and dealt
   with. */
TEST(what_a_full_server_has_can_be_done) {
  stage s;
  begin(&s, "", 0, 0);
  goes_on(&s);
  CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
  REDIS_SAYS("OK", &s.real, "CONFIG SET maxmemory 1");
  CHECK_EQ(conc_put(s.q, "y", 1, soon()), -ENOSPC);
  expect(s.q, "x");
  CHECK_EQ(conc_task_done(s.q), 0);
  CHECK_EQ(conc_queue_join(s.q, soon()), 0);
  REDIS_SAYS("OK", &s.real, "CONFIG SET maxmemory 0");
  end(&s);
}

/* What has arrived is told by few commands: the server has little time. */
TEST(many_that_have_arrived_are_told_together) {
  enum { N = 256 };
  int all[N] = {0};
  const char *calls;
  stage s;
  begin(&s, "", 0, 0);
  for (ssize_t n, at = 0; at < N; at += n)
    CHECK((n = conc_put_many(s.q, all + at, sizeof *all, (size_t)(N - at),
                             soon())) > 0);
  for (ssize_t n, at = 0; at < N; at += n)
    CHECK((n = conc_get_many(s.q, all, sizeof *all, (size_t)(N - at),
                             soon())) > 0);
  for (int i = 0; i < N; i++) CHECK_EQ(conc_task_done(s.q), 0);
  CHECK_EQ(conc_queue_join(s.q, soon()), 0);
  REDIS_SAYS("0", &s.real, "XLEN {q}");
  calls = strstr(redis_say(&s.real, "INFO commandstats"), "cmdstat_xack:");
  CHECK(calls != NULL);
  CHECK(atoi(calls + sizeof "cmdstat_xack:calls=" - 1) < N / 8);
  end(&s);
}

/* A get without a lease takes a message for good. If the server hears of that
   so late that it has sent it to another one meanwhile, it ends all the
   same. */
TEST(what_has_arrived_ends_whoever_was_sent_it_since) {
  char line[100];
  const char *id;
  stage s;
  begin(&s, "", 0, 0);
  CHECK_EQ(conc_put(s.q, "x", 1, soon()), 0);
  id = redis_say(&s.real, "XRANGE {q} - +");
  id += strspn(id, "(");
  snprintf(line, sizeof line, "XCLAIM {q} conc other 0 %.*s JUSTID",
           (int)strcspn(id, " "), id);
  odd_always(&s.between, "\r\n$1\r\n2\r\n$3\r\n{q}\r\n", ANSWER,
             "-BUSY it runs a script\r\n"); /* of two keys: this alone */
  expect(s.q, "x");
  redis_say(&s.real, "%s", line);
  REDIS_SAYS("1", &s.real, "XLEN {q}");
  odd_next(&s.between, "", AS_IT_IS, NULL);
  redis_until(&s.real, "0", "XLEN {q}");
  CHECK_EQ(conc_task_done(s.q), 0);
  CHECK_EQ(conc_queue_join(s.q, soon()), 0);
  end(&s);
}

/* --- dead letters --- */

/* Queues that become known after the manager has started: "mortal", whose
   messages are delivered once, and "letters", where they go to then. */
typedef struct cemetery {
  stage s;
  conc_queue *dead, *own; /* the server's */
  conc_queue *q, *letters; /* the client's */
} cemetery;

/* Afterwards a message was got, and is to be given back. */
static void begin_mortal(cemetery *c, conc_lease *lease) {
  conc_queue_opts o;
  char got[8];
  begin(&c->s, "", 0, 0);
  memset(&o, 0, sizeof o);
  c->dead = conc_queue_new(NULL);
  o.lease = 60;
  o.max_deliveries = 1;
  o.dead_letters = c->dead;
  c->own = conc_queue_new(&o);
  CHECK_EQ(conc_manager_register_queue(&c->s.server, "mortal", c->own),
           -EINVAL);
  CHECK_EQ(conc_manager_register_queue(&c->s.server, "letters", c->dead), 0);
  CHECK_EQ(conc_manager_register_queue(&c->s.server, "mortal", c->own), 0);
  CHECK_EQ(conc_manager_register_queue(&c->s.server, "letters", c->own),
           -EEXIST);
  c->q = conc_manager_get(&c->s.client, "mortal");
  c->letters = conc_manager_get(&c->s.client, "letters");
  CHECK(c->q != NULL && c->letters != NULL);
  CHECK_EQ(conc_put(c->q, "x", 1, soon()), 0);
  CHECK_EQ(conc_get_leased(c->q, lease, got, sizeof got, soon()), 1);
}

/* There is one letter. */
static void end_mortal(cemetery *c) {
  conc_value *v;
  CHECK_EQ(conc_queue_join(c->q, soon()), 0);
  CHECK_EQ(conc_get_value(c->letters, &v, soon()), 0);
  CHECK_EQ(conc_value_size(conc_value_get(v, "message")), 1);
  conc_value_free(v);
  CHECK_EQ(conc_get_value(c->letters, &v, 0), -ETIMEDOUT);
  end(&c->s);
  conc_queue_free(c->own);
  conc_queue_free(c->dead);
}

/* A task that waits for a message. */
typedef struct waiting {
  conc_task task;
  conc_queue *q;
  char got[16];
  ssize_t n;
} waiting;

static void *wait_for_one(void *arg) {
  waiting *w = (waiting *)arg;
  w->n = conc_get(w->q, w->got, sizeof w->got, 3 * soon());
  if (w->n >= 0) CHECK_EQ(conc_task_done(w->q), 0);
  return NULL;
}

/* A message comes back for the last time to a getter that goes on waiting. It
   is a dead letter then, and does not wait until that one has another. */
TEST(a_dead_letter_does_not_wait_for_the_next_message) {
  cemetery c;
  waiting w;
  conc_queue_opts o;
  conc_value *v;
  begin(&c.s, "", 0, 0);
  memset(&o, 0, sizeof o);
  c.dead = conc_queue_new(NULL);
  o.lease = 0.8 + 0.2 * test_slow();
  o.max_deliveries = 1;
  o.dead_letters = c.dead;
  c.own = conc_queue_new(&o);
  CHECK_EQ(conc_manager_register_queue(&c.s.server, "letters", c.dead), 0);
  CHECK_EQ(conc_manager_register_queue(&c.s.server, "mortal", c.own), 0);
  c.q = conc_manager_get(&c.s.client, "mortal");
  c.letters = conc_manager_get(&c.s.client, "letters");
  CHECK(c.q != NULL && c.letters != NULL);
  /* Another process has it, and never says a word again. */
  redis_say(&c.s.real, "XGROUP CREATE {mortal} conc 0 MKSTREAM");
  CHECK(strchr(redis_say(&c.s.real, "XADD {mortal} * d lost"), '-') != NULL);
  CHECK(strstr(redis_say(&c.s.real, "XREADGROUP GROUP conc dead STREAMS "
                                    "{mortal} >"), "lost") != NULL);
  memset(&w, 0, sizeof w);
  w.q = c.q;
  start(conc_thread_start, &w.task, wait_for_one, &w);
  CHECK_EQ(conc_get_value(c.letters, &v, 2 * soon()), 0);
  CHECK_EQ(conc_value_size(conc_value_get(v, "message")), 4);
  CHECK_STR(conc_value_str(conc_value_get(v, "why"), NULL), "expired");
  conc_value_free(v);
  CHECK_EQ(conc_put(c.q, "new", 3, soon()), 0);
  CHECK_EQ(conc_join(&w.task, CONC_FOREVER), 0);
  CHECK_EQ(w.n, 3);
  end(&c.s);
  conc_queue_free(c.own);
  conc_queue_free(c.dead);
}

/* Its queue is told after the letter was put. If that fails, all is tried
   again: the letter is there already. */
TEST(a_dead_letter_is_put_once) {
  cemetery c;
  conc_lease a;
  begin_mortal(&c, &a);
  odd_next(&c.s.between, "$4\r\ndead\r\n", ANSWER, "-OOM it is full\r\n");
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  CHECK_EQ(conc_queue_join(c.q, soon()), 0);
  CHECK_EQ(odd_met(&c.s.between), 1);
  end_mortal(&c);
}

/* The lease is made longer; then the connection ends with the letter, and the
   next one before it has greeted. */
TEST(a_dead_letter_outlives_its_connection) {
  cemetery c;
  conc_lease a;
  begin_mortal(&c, &a);
  odd_next(&c.s.between, "", LOSE_REQUEST, NULL);
  c.s.between.skip = 1;
  STORE(c.s.between.times, 2);
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  while (odd_met(&c.s.between) < 2) usleep(1000);
  end_mortal(&c);
}

/* A letter of bytes is a pickle there, for JSON has no bytes. */
TEST(a_dead_letter_of_bytes_is_no_JSON) {
  cemetery c;
  conc_lease a;
  char got[8];
  conc_manager m;
  conc_queue *q;
  begin_mortal(&c, &a);
  CHECK_EQ(conc_lease_done(&a), 0);
  memset(&m, 0, sizeof m);
  m.address = c.s.real.address;
  m.format = CONC_FORMAT_JSON;
  CHECK_EQ(conc_manager_connect(&m, soon()), 0);
  q = conc_manager_get(&m, "mortal");
  CHECK(q != NULL);
  CHECK_EQ(conc_put(q, "x", 1, soon()), 0);
  CHECK_EQ(conc_get_leased(q, &a, got, sizeof got, soon()), 1);
  CHECK_EQ(conc_lease_release(&a, 0), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end_mortal(&c);
}

TEST_MAIN
