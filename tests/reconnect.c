/* A server that is not there, that ends, hangs, is started anew, or whose
   network fails: which calls are made again, and that none counts twice. */
#include "inside.h"
#include "network.h"
#include "served.h"
#include "tasks.h"

#include <sys/mman.h>

static void took(double start, double timeout) {
  CHECK(test_now() - start < timeout + 0.5 + 3 * test_slow());
}

static void expect(conc_queue *q, const char *text) {
  char buf[64];
  CHECK_EQ(conc_get(q, buf, sizeof buf, 10 * test_slow()), strlen(text));
  CHECK(memcmp(buf, text, strlen(text)) == 0);
}

static void serve_at(served *s, size_t capacity, const char *address) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  *s = nobody();
  s->server.address = address;
  serve_queue(s, conc_queue_new(&o));
}

static void serve(served *s, size_t capacity) {
  serve_at(s, capacity, private_address());
}

/* The same queue at the same address, by a server that is a new one. */
static void serve_anew(served *s, const char *address) {
  s->server.address = address;
  s->server.authkey = "abc";
  CHECK_EQ(conc_manager_register_queue(&s->server, "q", s->queue), 0);
  CHECK_EQ(conc_manager_start(&s->server), 0);
}

static conc_queue *join_through(const network *n, conc_manager *m,
                                double reconnect) {
  memset(m, 0, sizeof *m);
  m->address = n->address;
  m->authkey = "abc";
  m->reconnect = reconnect;
  return join(m);
}

/* --- what an error means --- */

TEST(a_call_that_was_refused_is_told_apart_from_one_without_an_answer) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  serve_at(&s, 2, socket_path());
  network_begin(&n, &s);
  q = join_through(&n, &m, 0);
  CHECK_EQ(conc_put(q, "a", 1, 20), 0);
  STORE(n.fault, LOSE_REPLY);
  CHECK_EQ(conc_put(q, "b", 1, 1), -ECONNRESET); /* it was carried out */
  CHECK_EQ(conc_qsize(s.queue), 2);
  CHECK_EQ(conc_put(q, "c", 1, 1), -EPIPE); /* it was not */
  CHECK_EQ(conc_get(q, buf, 8, 1), -EPIPE);
  STORE(n.fault, FLOWS);
  CHECK_EQ(conc_put(q, "c", 1, 0), -ETIMEDOUT); /* there is no room */
  CHECK_EQ(conc_qsize(s.queue), 2);
  STORE(n.fault, LOSE_REQUEST);
  CHECK_EQ(conc_task_done(q), -ECONNRESET);
  STORE(n.fault, FLOWS);
  CHECK_EQ(conc_qsize(q), 2);
  STORE(n.fault, LOSE_REPLY);
  CHECK_EQ(conc_get(q, buf, 8, 1), -ECONNRESET); /* and nothing is taken */
  STORE(n.fault, FLOWS);
  expect(q, "a");
  expect(q, "b");
  network_end(&n);
  CHECK_EQ(conc_put(q, "d", 1, 1), -EPIPE); /* on an old connection */
  CHECK_EQ(conc_put(q, "d", 1, 1), -ENOENT); /* there is no such socket */
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(a_queue_that_is_closed_says_so) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  serve(&s, 0);
  m = client_of(&s);
  m.reconnect = 10;
  q = join(&m);
  CHECK_EQ(conc_queue_close(s.queue), 0);
  CHECK_EQ(conc_put(q, "a", 1, 1), -EPIPE);
  CHECK_EQ(conc_get(q, buf, 8, 1), -EPIPE);
  CHECK_EQ(conc_put_many(q, "ab", 1, 2, 1), -EPIPE);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- it is tried again --- */

typedef struct caller {
  conc_task task;
  conc_manager *manager;
  conc_queue *queue;
  const char *text;
  char buf[8];
  ssize_t result;
} caller;

static void *call_put(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_put(c->queue, c->text, strlen(c->text), 20 * test_slow());
  return NULL;
}
static void *call_get(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_get(c->queue, c->buf, sizeof c->buf, 20 * test_slow());
  return NULL;
}
static void *call_connect(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_manager_connect(c->manager, 20 * test_slow());
  return NULL;
}
static void begin(caller *c, conc_fn *fn, conc_manager *m, conc_queue *q,
                  const char *text) {
  memset(c, 0, sizeof *c);
  c->manager = m;
  c->queue = q;
  c->text = text;
  start(conc_thread_start, &c->task, fn, c);
}
static ssize_t result(caller *c) {
  CHECK_EQ(conc_join(&c->task, CONC_FOREVER), 0);
  return c->result;
}

TEST(a_call_waits_for_a_server_that_is_started_anew) {
  served s;
  conc_manager m;
  conc_queue *q;
  char address[128];
  caller put, get, connect;
  serve(&s, 0);
  snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
  m = client_of(&s);
  m.address = address;
  m.reconnect = 20 * test_slow();
  q = join(&m);
  s.client = client_of(&s);
  s.client.address = address;
  for (int i = 0; i < 3; i++) {
    begin(&get, call_get, &m, q, "");
    UNTIL(somebody_waits(s.queue));
    CHECK_EQ(conc_manager_shutdown(&s.server), 0);
    begin(&put, call_put, &m, q, "text");
    conc_sleep(0.03);
    CHECK(conc_is_alive(&put.task) && conc_is_alive(&get.task));
    if (i == 0) {
      CHECK_EQ(conc_manager_connect(&s.client, 1), -ECONNREFUSED);
      s.client.reconnect = 20 * test_slow();
      begin(&connect, call_connect, &s.client, NULL, "");
      conc_sleep(0.03);
    }
    serve_anew(&s, address);
    CHECK_EQ(result(&put), 0);
    CHECK_EQ(result(&get), 4);
    if (i == 0) CHECK_EQ(result(&connect), 0);
    CHECK_EQ(conc_qsize(s.queue), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(a_call_is_not_tried_for_longer_than_it_may_take) {
  served s;
  conc_manager m;
  conc_queue *q;
  char address[128];
  double t;
  serve(&s, 0);
  snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
  m = client_of(&s);
  m.address = address;
  m.reconnect = 0.2;
  q = join(&m);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  conc_sleep(0.11);
  t = test_now();
  CHECK_EQ(conc_put(q, "x", 1, CONC_FOREVER), -ECONNREFUSED);
  CHECK(test_now() - t > 0.19); /* and to the end of that */
  took(t, 0.2);
  m.reconnect = 100;
  t = test_now();
  CHECK_EQ(conc_put(q, "x", 1, 0.1), -ECONNREFUSED);
  took(t, 0.1);
  t = test_now();
  CHECK_EQ(conc_put(q, "x", 1, 0), -ECONNREFUSED);
  took(t, 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(s.queue);
}

static void *cancelled(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_put(c->queue, "x", 1, CONC_FOREVER);
  return NULL;
}

TEST(a_call_that_waits_for_its_server_can_be_cancelled) {
  served s;
  conc_manager m;
  conc_queue *q;
  caller c;
  char address[128];
  serve(&s, 0);
  snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
  m = client_of(&s);
  m.address = address;
  m.reconnect = 1000;
  q = join(&m);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  begin(&c, cancelled, &m, q, "");
  wait_parked(&c.task); /* one that has not begun would never do so */
  conc_sleep(0.2);
  CHECK(conc_is_alive(&c.task));
  CHECK_EQ(conc_cancel(&c.task), 0);
  CHECK_EQ(conc_join(&c.task, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(c.result, -ECANCELED);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(s.queue);
}

/* --- it counts once --- */

static void once(bool holds, int fault) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  caller c;
  char buf[8];
  serve_at(&s, 0, socket_path());
  network_begin(&n, &s);
  STORE(n.holds, holds);
  q = join_through(&n, &m, 20 * test_slow());
  CHECK_EQ(conc_put(q, "a", 1, 20), 0);
  STORE(n.fault, fault);
  begin(&c, call_put, &m, q, "b");
  UNTIL(LOAD(n.fault) == CUT);
  conc_sleep(0.05);
  CHECK(conc_is_alive(&c.task));
  CHECK_EQ(conc_qsize(s.queue), fault == LOSE_REPLY ? 2 : 1);
  STORE(n.fault, FLOWS);
  CHECK_EQ(result(&c), 0);
  CHECK_EQ(conc_qsize(s.queue), 2);
  expect(s.queue, "a");
  expect(s.queue, "b");
  CHECK_EQ(conc_put_many(q, "123", 1, 3, 5), 3);
  STORE(n.fault, fault); /* a second time */
  begin(&c, call_put, &m, q, "c");
  UNTIL(LOAD(n.fault) == CUT);
  STORE(n.fault, FLOWS);
  CHECK_EQ(result(&c), 0);
  CHECK_EQ(conc_qsize(s.queue), 4);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_get(s.queue, buf, 8, 0), 1);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

TEST(a_put_whose_reply_is_lost_counts_once) { once(false, LOSE_REPLY); }
TEST(a_put_whose_reply_is_lost_counts_once_though_the_server_hears_nothing) {
  once(true, LOSE_REPLY);
}
TEST(a_put_that_is_lost_on_the_way_counts_once) { once(false, LOSE_REQUEST); }

/* --- so does a change of what is no queue --- */

typedef struct changer {
  conc_task task;
  conc_list *list;
  conc_dict *dict;
  int number, result;
} changer;

/* Appends a number, or sets it as a key. */
static void *change(void *arg) {
  changer *c = (changer *)arg;
  conc_value *v;
  CHECK_EQ(conc_build(&v, "i", c->number), 0);
  c->result = c->list != NULL ? conc_list_append(c->list, v)
                              : conc_dict_set(c->dict, v, v);
  conc_value_free(v);
  return NULL;
}

static void change_once(int fault, bool reconnects) {
  served s;
  network n;
  conc_manager m;
  changer c;
  int i;
  serve_at(&s, 0, socket_path());
  CHECK_EQ(conc_manager_register_list(&s.server, "list", NULL), 0);
  CHECK_EQ(conc_manager_register_dict(&s.server, "dict", NULL), 0);
  network_begin(&n, &s);
  join_through(&n, &m, reconnects ? 20 * test_slow() : 0);
  memset(&c, 0, sizeof c);
  for (i = 0; i < 6; i++) {
    c.list = i % 2 == 0 ? conc_manager_list(&m, "list") : NULL;
    c.dict = i % 2 == 1 ? conc_manager_dict(&m, "dict") : NULL;
    CHECK(c.list != NULL || c.dict != NULL);
    c.number = i;
    /* So that there is a connection. */
    CHECK((c.list ? conc_list_len(c.list) : conc_dict_len(c.dict)) >= 0);
    STORE(n.fault, fault);
    start(conc_thread_start, &c.task, change, &c);
    UNTIL(LOAD(n.fault) == CUT);
    STORE(n.fault, FLOWS);
    CHECK_EQ(conc_join(&c.task, CONC_FOREVER), 0);
    CHECK_EQ(c.result, reconnects ? 0 : -ECONNRESET);
    if (c.list != NULL)
      CHECK_EQ(conc_list_len(c.list),
               reconnects || fault == LOSE_REPLY ? i / 2 + 1 : 0);
    else
      CHECK_EQ(conc_dict_len(c.dict),
               reconnects || fault == LOSE_REPLY ? i / 2 + 1 : 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

TEST(a_change_of_data_whose_reply_is_lost_counts_once) {
  change_once(LOSE_REPLY, true);
}
TEST(a_change_of_data_that_is_lost_on_the_way_counts_once) {
  change_once(LOSE_REQUEST, true);
}
TEST(without_reconnect_it_is_not_known_what_became_of_a_change) {
  change_once(LOSE_REPLY, false);
  change_once(LOSE_REQUEST, false);
}

static void *mend(void *arg) {
  network *n = (network *)arg;
  while (LOAD(n->fault) != CUT)
    if (conc_sleep(0.002) != 0) return NULL;
  STORE(n->fault, FLOWS);
  return NULL;
}

/* Wherever memory is lacking once, on the way or at the server, while the
   reply is lost: what cannot be noted is not carried out. */
TEST(a_put_counts_once_though_there_is_no_memory) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  serve_at(&s, 0, socket_path());
  network_begin(&n, &s);
  q = join_through(&n, &m, 20 * test_slow());
  CHECK_EQ(conc_qsize(q), 0);
  for (int i = 1; i <= 20; i++) {
    conc_task mender;
    ssize_t size;
    int rc;
    STORE(n.fault, LOSE_REPLY);
    start(conc_thread_start, &mender, mend, &n);
    STORE(test_fail_at, i);
    rc = conc_put(q, "a", 1, 20 * test_slow());
    STORE(test_fail_at, 0);
    conc_cancel(&mender);
    conc_join(&mender, CONC_FOREVER);
    STORE(n.fault, FLOWS);
    size = conc_qsize(s.queue);
    if (rc == -ECONNRESET) CHECK(size <= 1);
    else CHECK(size == (rc == 0) && (rc == 0 || rc == -ENOMEM));
    if (size > 0) CHECK_EQ(conc_get(s.queue, buf, 8, 0), 1);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

/* The server has carried it out and given the connection up, and the client
   hears of neither. It is told that it is not known, if no more comes within
   its timeout; but if the connection ends before, it asks again. */
TEST(a_put_whose_connection_has_gone_in_silence_is_asked_for_when_it_ends) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  caller c;
  double t;
  serve_at(&s, 0, socket_path());
  network_begin(&n, &s);
  q = join_through(&n, &m, 20 * test_slow());
  CHECK_EQ(conc_put(q, "a", 1, 20), 0);
  STORE(n.fault, SILENCE);
  begin(&c, call_put, &m, q, "b");
  UNTIL(LOAD(n.fault) == SILENT);
  conc_sleep(0.05);
  CHECK(conc_is_alive(&c.task));
  CHECK_EQ(conc_qsize(s.queue), 2);
  STORE(n.fault, FLOWS);
  CHECK_EQ(result(&c), 0);
  CHECK_EQ(conc_qsize(s.queue), 2);
  STORE(n.fault, SILENCE);
  t = test_now();
  CHECK_EQ(conc_put(q, "c", 1, 0.2 * test_slow()), -ECONNRESET);
  took(t, 0.2 * test_slow());
  CHECK_EQ(LOAD(n.fault), SILENT);
  CHECK_EQ(conc_qsize(s.queue), 3);
  STORE(n.fault, FLOWS);
  CHECK_EQ(conc_put(q, "d", 1, 5), 0);
  expect(s.queue, "a");
  expect(s.queue, "b");
  expect(s.queue, "c");
  expect(s.queue, "d");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

static void *call_many(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_put_many(c->queue, "12345", 1, 5, 20 * test_slow());
  return NULL;
}
static void *call_trips(void *arg) {
  caller *c = (caller *)arg;
  c->result =
      conc_put_many(c->queue, c->text, 1, 2 * 16384 + 3, 20 * test_slow());
  return NULL;
}
static void *call_done(void *arg) {
  caller *c = (caller *)arg;
  c->result = conc_task_done(c->queue);
  return NULL;
}

TEST(many_that_are_put_and_what_is_done_count_once_too) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  caller c;
  char buf[8];
  serve_at(&s, 0, socket_path());
  network_begin(&n, &s);
  memset(&m, 0, sizeof m);
  m.timeout = 20 * test_slow();
  m.address = n.address;
  m.authkey = "abc";
  m.reconnect = 20 * test_slow();
  q = join(&m);
  STORE(n.fault, LOSE_REPLY);
  begin(&c, call_many, &m, q, "");
  UNTIL(LOAD(n.fault) == CUT);
  STORE(n.fault, FLOWS);
  CHECK_EQ(result(&c), 5);
  CHECK_EQ(conc_qsize(s.queue), 5);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(conc_get(q, buf, 8, 5), 1);
    CHECK_EQ(buf[0], '1' + i);
    STORE(n.fault, LOSE_REPLY);
    begin(&c, call_done, &m, q, "");
    UNTIL(LOAD(n.fault) == CUT);
    STORE(n.fault, FLOWS);
    CHECK_EQ(result(&c), 0);
    CHECK_EQ(conc_queue_join(s.queue, 0), i == 4 ? 0 : -ETIMEDOUT);
  }
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

/* Of three trips the reply to the second is lost. With .reconnect that one
   counts once, and the third follows. Without, it is not known what came of
   it: so there is no count that says that its messages were not put. */
static void trips(double reconnect) {
  enum { TRIP = 16384 };
  static char data[2 * TRIP + 3];
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  ssize_t put;
  serve_at(&s, 0, socket_path());
  network_begin(&n, &s);
  q = join_through(&n, &m, reconnect);
  CHECK_EQ(conc_qsize(q), 0); /* now it has a connection */
  STORE(n.passes, 1);
  STORE(n.fault, LOSE_REPLY);
  if (reconnect > 0) {
    caller c;
    begin(&c, call_trips, &m, q, data);
    UNTIL(LOAD(n.fault) == CUT);
    conc_sleep(0.05);
    STORE(n.fault, FLOWS);
    put = result(&c);
    CHECK_EQ(put, sizeof data);
    CHECK_EQ(conc_qsize(s.queue), sizeof data);
  } else {
    put = conc_put_many(q, data, 1, sizeof data, 20 * test_slow());
    CHECK_EQ(put, -ECONNRESET);
    CHECK_EQ(conc_qsize(s.queue), 2 * TRIP);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

TEST(a_trip_whose_reply_is_lost_is_not_counted_as_not_put) { trips(0); }
TEST(a_trip_whose_reply_is_lost_counts_once) { trips(20 * test_slow()); }

static bool a_putter_waits(conc_queue *q) {
  bool yes;
  conc__mutex_lock(conc__fifo_get_guard(AS_FIFO(q)));
  yes = AS_FIFO(q)->putters.first != NULL;
  conc__mutex_unlock(conc__fifo_get_guard(AS_FIFO(q)));
  return yes;
}

/* The server waits for room on behalf of a connection that has gone, which it
   has not heard of: when the put comes again, it must not wait twice. */
TEST(a_put_that_waits_for_room_is_taken_over) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  caller c;
  serve_at(&s, 1, socket_path());
  network_begin(&n, &s);
  q = join_through(&n, &m, 20 * test_slow());
  CHECK_EQ(conc_put(q, "a", 1, 20), 0);
  for (int i = 0; i < 3; i++) {
    const char put[2] = {(char)('b' + i), 0}, first[2] = {(char)('a' + i), 0};
    bool holds = i < 2;
    STORE(n.holds, holds);
    begin(&c, call_put, &m, q, put);
    UNTIL(a_putter_waits(s.queue));
    STORE(n.fault, LOSE_NOW);
    UNTIL(LOAD(n.fault) == CUT);
    if (holds) UNTIL(LOAD(n.held) >= 0);
    STORE(n.fault, FLOWS);
    /* The server gives up the one that it thought was there. */
    if (holds) CHECK_EQ(conc_wait_fd(n.held, CONC_READ, 20 * test_slow()), 1);
    if (holds) conc_close(n.held);
    STORE(n.held, -1);
    UNTIL(a_putter_waits(s.queue));
    expect(s.queue, first);
    CHECK_EQ(result(&c), 0);
    CHECK_EQ(conc_qsize(s.queue), 1);
  }
  expect(s.queue, "d");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

/* It waits at another server, on behalf of a connection that has gone: what
   became of it there is not known, and the client is told so. */
TEST(what_a_relay_has_given_up_is_not_known) {
  served s, relay = nobody();
  network n;
  conc_manager far, m;
  conc_queue *q;
  caller c;
  serve(&s, 1);
  CHECK_EQ(conc_put(s.queue, "a", 1, 1), 0);
  relay.server.address = socket_path();
  serve_queue(&relay, join_as_client(&s, &far));
  network_begin(&n, &relay);
  STORE(n.holds, 1);
  q = join_through(&n, &m, 20 * test_slow());
  begin(&c, call_put, &m, q, "b");
  UNTIL(a_putter_waits(s.queue));
  STORE(n.fault, LOSE_NOW);
  UNTIL(LOAD(n.fault) == CUT && LOAD(n.held) >= 0);
  STORE(n.fault, FLOWS);
  CHECK_EQ(result(&c), -ECONNRESET);
  UNTIL(!a_putter_waits(s.queue));
  CHECK_EQ(conc_put(q, "b", 1, 0), -ETIMEDOUT);
  expect(s.queue, "a");
  CHECK_EQ(conc_put(q, "b", 1, 5), 0);
  expect(s.queue, "b");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&relay);
  CHECK_EQ(conc_manager_shutdown(&far), 0);
  end(&s);
}

TEST(of_a_server_that_has_ended_it_is_not_known_what_it_did) {
  served s;
  network n;
  conc_manager m;
  conc_queue *q;
  caller c;
  serve_at(&s, 0, socket_path());
  network_begin(&n, &s);
  q = join_through(&n, &m, 20 * test_slow());
  CHECK_EQ(conc_put(q, "a", 1, 20), 0);
  for (int i = 0; i < 2; i++) {
    STORE(n.fault, i == 0 ? LOSE_REPLY : LOSE_REQUEST);
    begin(&c, call_put, &m, q, "b");
    UNTIL(LOAD(n.fault) == CUT);
    CHECK_EQ(conc_manager_shutdown(&s.server), 0);
    serve_anew(&s, n.server);
    STORE(n.fault, FLOWS);
    CHECK_EQ(result(&c), -ECONNRESET);
    expect(s.queue, "a");
    if (i == 0) expect(s.queue, "b");
    CHECK_EQ(conc_qsize(s.queue), 0);
    CHECK_EQ(conc_put(q, "a", 1, 20), 0); /* the name is found again */
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  network_end(&n);
  end(&s);
}

/* What a server remembers is bounded. */
TEST(a_server_remembers_so_many_calls_and_no_more) {
  conc__receipts *all = (conc__receipts *)test_malloc(sizeof *all);
  unsigned char key[CONC__KEY_SIZE] = {0};
  conc__receipt *first = NULL;
  memset(all, 0, sizeof *all);
  for (unsigned i = 0; i < 3 * CONC__RECEIPT_MOST; i++) {
    conc__receipt *r;
    memcpy(key + CONC__KEY_SIZE - 8, &i, sizeof i);
    CHECK(conc__receipt_find(all, key) == NULL);
    r = conc__receipt_enter(all, key, NULL, true);
    if (i == 0) first = r;
    CHECK(conc__receipt_find(all, key) == r);
    conc__receipt_keep(all, r);
    CHECK(all->count <= CONC__RECEIPT_MOST);
  }
  CHECK_EQ(all->count, CONC__RECEIPT_MOST);
  CHECK(all->oldest != first);
  memset(key, 0, sizeof key);
  CHECK(conc__receipt_find(all, key) == NULL);
  conc__receipts_age(all, conc_now() + CONC__RECEIPT_KEPT + 1);
  CHECK_EQ(all->count, 0);
  conc__receipts_free(all);
}

/* A client that goes on has had its replies: nothing of it is kept. */
TEST(a_client_that_goes_on_costs_no_memory) {
  served s;
  conc_manager m;
  conc_queue *q;
  if (TEST_TSAN) SKIP("it looks at what is the server's thread's");
  serve(&s, 0);
  m = client_of(&s);
  m.reconnect = 1;
  q = join(&m);
  for (int i = 0; i < 100; i++) CHECK_EQ(conc_put(q, "x", 1, 20), 0);
  CHECK_EQ(conc_qsize(q), 100);
  CHECK_EQ(s.server.state->server.receipts->count, 0);
  CHECK_EQ(conc_put(q, "x", 1, 20), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  UNTIL(LOAD(s.server.state->server.clients_count) == 0);
  CHECK_EQ(s.server.state->server.receipts->count, 0);
  end(&s);
}

/* A child is another client than its parent: its calls have other numbers. */
TEST(a_child_does_not_use_its_parents_numbers) {
  served s;
  conc_manager m;
  conc_queue *q;
  int status;
  pid_t pid;
  NEEDS_FORK;
  serve(&s, 0);
  m = client_of(&s);
  m.reconnect = 5;
  q = join(&m);
  CHECK_EQ(conc_put(q, "x", 1, 20), 0);
  pid = fork();
  if (pid == 0) {
    for (int i = 0; i < 5; i++) CHECK_CHILD(conc_put(q, "x", 1, 5) == 0);
    _exit(0);
  }
  for (int i = 0; i < 5; i++) CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_qsize(s.queue), 11);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- a client that comes back --- */

#ifdef __linux__
/* The connection of a peer fails: the server hears that from the network, and
   the client when it uses it. */
static void fail(conc__peer *p) {
  struct sockaddr none;
  CHECK(p != NULL);
  memset(&none, 0, sizeof none);
  none.sa_family = AF_UNSPEC; /* this is to abort it */
  CHECK_EQ(connect(p->channel.fd, &none, sizeof none), 0);
}

static size_t away(const served *s) {
  return LOAD(s->server.state->server.away);
}

static void put_letters(conc_queue *q, const char *letters) {
  for (; *letters != 0; letters++) CHECK_EQ(conc_put(q, letters, 1, 20), 0);
}

static void expect_letters(conc_queue *q, const char *letters) {
  char buf[2] = {0};
  for (; *letters != 0; letters++) {
    CHECK_EQ(conc_get(q, buf, 1, 10 * test_slow()), 1);
    CHECK_EQ(buf[0], *letters);
  }
}

static conc_queue *join_again(const served *s, conc_manager *m,
                              double reconnect, size_t prefetch) {
  *m = client_of(s);
  m->reconnect = reconnect;
  m->prefetch = prefetch;
  return join(m);
}

/* The message that it had when the network failed is its own, and comes to
   nobody else, though the word for it was lost. */
TEST(a_client_that_comes_back_has_its_message_once) {
  served s = nobody();
  conc_manager m;
  conc_queue *q;
  char buf[8];
  s.server.max_clients = 2; /* one who asks for a queue needs two */
  serve_queue(&s, conc_queue_new(NULL));
  q = join_again(&s, &m, 20 * test_slow(), 0);
  put_letters(s.queue, "abcd");
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_get(q, buf, 8, 5 * test_slow()), 1);
    CHECK_EQ(buf[0], 'a' + i);
    fail(m.state->client.idle);
    UNTIL(away(&s) == 1);
    CHECK_EQ(conc_qsize(s.queue), 3 - i);
  }
  expect_letters(q, "d");
  UNTIL(away(&s) == 0);
  CHECK_EQ(conc_get(q, buf, 8, 0), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  end(&s);
}

/* What was handed out and has not arrived goes back when the client says so,
   and not only when it is waited for no longer. */
TEST(what_has_not_arrived_is_at_its_place_when_the_client_is_back) {
  served s;
  conc_manager m;
  conc_queue *q;
  conc__proxy *proxy;
  conc__peer *p;
  conc__calling call;
  conc__exchange c;
  conc__sink sink;
  char buf[8];
  size_t sent = 0;
  serve(&s, 0);
  q = join_again(&s, &m, 20 * test_slow(), 0);
  proxy = (conc__proxy *)q;
  put_letters(s.queue, "abc");
  expect_letters(q, "a");
  memset(&sink, 0, sizeof sink);
  sink.data = buf;
  sink.size = sizeof buf;
  sink.wants = CONC__WANTS_BYTES;
  conc__call_begin(&call, m.state, CONC__NEVER, CONC__NEVER);
  CHECK_EQ(conc__exchange_begin(&c, proxy, conc__proxy_ident(proxy),
                                CONC__METHOD_GET, &call),
           0);
  p = c.peer;
  CHECK_EQ(conc__take_arguments(&p->channel.out, &c, &sink, CONC__NEVER), 0);
  CHECK_EQ(conc__exchange_write(&c, proxy, 0), 0);
  p->unsure = true;
  p->held = false;
  CHECK_EQ(conc__channel_flush(&p->channel, &sent, CONC__NEVER), 0);
  CHECK_EQ(conc_wait_fd(p->channel.fd, CONC_READ, 20 * test_slow()), 1);
  CHECK_EQ(conc_qsize(s.queue), 1);
  fail(p);
  conc__peer_close(p);
  UNTIL(away(&s) == 1);
  CHECK_EQ(conc_qsize(s.queue), 1);
  CHECK_EQ(conc_put(q, "d", 1, 5), 0); /* any call says it */
  UNTIL(conc_qsize(s.queue) == 3);
  expect_letters(q, "bcd");
  CHECK(!LOAD(m.state->client.unsettled));
  CHECK_EQ(conc__peer_get(m.state, &p, conc_now() + 5), 0);
  conc__peer_close(p); /* that it had the last one was not known yet */
  CHECK_EQ(conc_get(q, buf, 8, 0), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  end(&s);
}

TEST(of_what_came_together_the_rest_goes_back) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  serve(&s, 0);
  for (int taken = 1; taken <= 4; taken++) {
    q = join_again(&s, &m, 20 * test_slow(), 4);
    put_letters(s.queue, "abcdef");
    for (int i = 0; i < taken; i++) {
      CHECK_EQ(conc_get(q, buf, 8, 20), 1);
      CHECK_EQ(buf[0], 'a' + i);
    }
    CHECK_EQ(conc_qsize(s.queue), 2);
    fail(taken < 4 ? ((conc__proxy *)q)->ahead : m.state->client.idle);
    UNTIL(away(&s) == 1);
    CHECK_EQ(conc_qsize(s.queue), 2);
    expect_letters(q, &"abcdef"[taken]);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    UNTIL(away(&s) == 0);
    CHECK_EQ(conc_qsize(s.queue), 0);
  }
  q = join_again(&s, &m, 20 * test_slow(), 0);
  put_letters(s.queue, "abcdef");
  CHECK_EQ(conc_get_many(q, buf, 1, 4, 20), 4);
  fail(m.state->client.idle);
  UNTIL(away(&s) == 1);
  CHECK_EQ(conc_get_many(q, buf, 1, 4, 20), 2);
  CHECK(memcmp(buf, "ef", 2) == 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  end(&s);
}

/* The server has not heard that the network has failed: the client tells it,
   and so it does not wait there for anything any more. */
TEST(a_client_that_comes_back_ends_what_it_has_left) {
  served s;
  conc_manager m;
  conc_queue *q;
  conc__peer *left, *told;
  conc_manager_counts counts;
  serve(&s, 0);
  q = join_again(&s, &m, 20 * test_slow(), 0);
  put_letters(s.queue, "ab");
  expect_letters(q, "a");
  left = m.state->client.idle;
  conc__held_leave(&m.state->client, left);
  m.state->client.idle = NULL;
  told = (conc__peer *)malloc(sizeof *told);
  *told = *left;
  told->next = NULL;
  STORE(m.state->client.unsettled, told);
  expect_letters(q, "b");
  CHECK_EQ(conc_wait_fd(left->channel.fd, CONC_READ, 20 * test_slow()), 1);
  CHECK(!conc__channel_has_begun(&left->channel)); /* it is its end */
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  UNTIL(conc_manager_stats(&s.server, &counts) == 0 && counts.clients == 0);
  conc__channel_close(&left->channel);
  free(left);
  end(&s);
}

/* For so long, and no longer. Nor is one waited for that has ended its
   connection; nor by a server that ends. */
TEST(a_client_that_does_not_come_back_is_not_waited_for) {
  served s;
  conc_manager m;
  conc_queue *q;
  double t;
  serve(&s, 0);
  q = join_again(&s, &m, 0.2, 0);
  put_letters(s.queue, "ab");
  expect_letters(q, "a");
  fail(m.state->client.idle);
  UNTIL(conc_qsize(s.queue) == 2);
  expect_letters(q, "ab");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  q = join_again(&s, &m, 500, 0);
  put_letters(s.queue, "ab");
  expect_letters(q, "a");
  shutdown(m.state->client.idle->channel.fd, SHUT_WR);
  UNTIL(conc_qsize(s.queue) == 2);
  CHECK_EQ(away(&s), 0);
  expect_letters(q, "a");
  fail(m.state->client.idle);
  UNTIL(away(&s) == 1);
  t = test_now();
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK(test_now() - t < 10 * test_slow());
  CHECK_EQ(conc_qsize(s.queue), 2);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(s.queue);
}

TEST(a_name_of_a_connection_is_read_whole_or_not_at_all) {
  static const char digits[] =
      "000102030405060708090a0b0c0d0e0f1011121314151617";
  static const struct {
    const char *before, *after;
    double patience;
  } cases[] = {{"Main|conc ", " 1500", 1.5},
               {"|conc ", " 99999999", 3600},
               {"|conc ", " 99999999999999999999", 0},
               {"|conc ", " 1x", 0},
               {"|conc ", "", 0},
               {"|conc 0", " 1000", 0},
               {"|conc", " 1000", 0},
               {"|conc x", " 1000", 0}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    conc__client c;
    char text[128];
    memset(&c, 0, sizeof c);
    snprintf(text, sizeof text, "%s%s%s", cases[i].before, digits,
             cases[i].after);
    conc__client_read_name(&c, text);
    CHECK(c.patience >= cases[i].patience && c.patience <= cases[i].patience);
    CHECK_EQ(c.named, cases[i].patience > 0);
    if (c.named)
      for (int j = 0; j < CONC__KEY_SIZE; j++) CHECK_EQ(c.name[j], j);
    snprintf(text, sizeof text, "|conc %.*s", (int)i * 8, digits);
    memset(&c, 0, sizeof c);
    conc__client_read_name(&c, text);
    CHECK(!c.named);
  }
}
#endif

/* --- a server that hangs --- */

/* Only the first has a connection, on which its request goes out. The others
   do not come so far: so it is known that they were not carried out. */
static void every_call_returns(conc_queue *q, conc_manager *m) {
  char buf[64];
  double t = test_now();
  CHECK_EQ(conc_put(q, "x", 1, 0.1), -ECONNRESET);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_put(q, "x", 1, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_put(q, "x", 1, 0), -ETIMEDOUT);
  took(t, 0), t = test_now();
  CHECK_EQ(conc_put_many(q, "xy", 1, 2, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_get(q, buf, 8, 0), -ETIMEDOUT);
  took(t, 0), t = test_now();
  CHECK_EQ(conc_get(q, buf, 8, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_get_many(q, buf, 1, 8, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_qsize(q), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_task_done(q), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_queue_join(q, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK(conc_manager_get(m, "other") == NULL);
  CHECK_EQ(errno, ETIMEDOUT);
  took(t, 0.2);
}

static void when_it_is_stopped(double reconnect, size_t prefetch) {
  char *address = (char *)mmap(NULL, 64, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  conc_manager m, late;
  conc_queue *q;
  double t;
  pid_t pid;
  NEEDS_FORK;
  CHECK(address != MAP_FAILED);
  pid = fork();
  if (pid == 0) {
    served s;
    serve(&s, 0);
    strcpy(address + 1, conc_manager_address(&s.server) + 1);
    STORE(address[0], conc_manager_address(&s.server)[0]);
    for (;;) pause();
  }
  while (!LOAD(address[0])) usleep(1000);
  memset(&m, 0, sizeof m);
  m.authkey = "abc";
  m.address = address;
  m.reconnect = reconnect;
  m.prefetch = prefetch;
  late = m;
  late.timeout = 0.1;
  late.handshake_timeout = 0.2;
  q = join(&m);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  if (prefetch > 0) expect(q, "x");
  if (prefetch > 0) expect(q, "x");
  while (prefetch > 0 && ((conc__proxy *)q)->ahead != NULL) expect(q, "x");
  CHECK_EQ(kill(pid, SIGSTOP), 0);
  CHECK_EQ(waitpid(pid, NULL, WUNTRACED), pid);
  m.state->timeout = 0.1;
  m.state->handshake_timeout = 0.2;
  every_call_returns(q, &m);
  t = test_now();
  CHECK_EQ(conc_manager_connect(&late, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  took(t, 1);
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  munmap(address, 64);
}

TEST(a_server_that_is_stopped_costs_a_call_its_timeout) {
  when_it_is_stopped(0, 0);
}
TEST(a_server_that_is_stopped_costs_a_call_that_tries_again_its_timeout) {
  when_it_is_stopped(10, 4);
}

/* Nobody reads what is sent, and nobody answers: a listener alone. */
TEST(a_listener_that_never_answers_costs_the_timeout) {
  char address[128];
  conc_manager m;
  double t;
  int fd = conc_listen("127.0.0.1:0");
  CHECK(fd >= 0);
  CHECK(conc_address(fd, address, sizeof address) > 0);
  for (int i = 0; i < 2; i++) {
    memset(&m, 0, sizeof m);
    m.address = address;
    m.authkey = "abc";
    m.reconnect = i * 10;
    t = test_now();
    CHECK_EQ(conc_manager_connect(&m, 0.1), -ETIMEDOUT);
    took(t, 0.1);
  }
  conc_close(fd);
}

/* --- a server of Python --- */

/* Starts it; *out is its address. False: there is no Python here. */
static bool start_python(conc_popen *p, const char *address, char out[64]) {
  static const char *argv[6];
  static char at[64];
  size_t n = 0;
  snprintf(at, sizeof at, "%s", address);
  argv[0] = getenv("PYTHON") != NULL ? getenv("PYTHON") : "python3";
  argv[1] = "tests/interop/reference_server.py";
  argv[2] = at;
  argv[3] = "abc";
  argv[4] = NULL;
  memset(p, 0, sizeof *p);
  p->argv = argv;
  p->std_in = p->std_out = CONC_PIPE;
  if (conc_popen_start(p) != 0) return false;
  while (n < 63 && conc_read(p->out, out + n, 1, 20 * test_slow()) == 1 &&
         out[n] != '\n')
    n++;
  CHECK(n > 1 && out[n] == '\n');
  out[n] = 0;
  return true;
}

TEST(a_server_of_python_that_is_started_anew_is_found_again) {
  conc_popen p;
  conc_manager m;
  conc_queue *q, *other;
  char address[64], again[64], buf[8];
  const conc__ident *before;
  if (access("tests/interop/reference_server.py", R_OK) != 0)
    SKIP("not in the repository");
  if (!start_python(&p, "127.0.0.1:0", address)) SKIP("there is no python3");
  memset(&m, 0, sizeof m);
  m.address = address;
  m.authkey = "abc";
  CHECK_EQ(conc_manager_connect(&m, 5), 0);
  q = conc_manager_get(&m, "get_task_queue");
  other = conc_manager_get(&m, "get_result_queue");
  CHECK(q != NULL && other != NULL);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put(q, "task", 4, 5), 0);
    CHECK_EQ(conc_put(other, "result", 6, 5), 0);
    expect(other, "result");
    expect(q, "task");
    CHECK_EQ(conc_put_many(q, "abc", 1, 3, 5), 3);
    CHECK_EQ(conc_get_many(q, buf, 1, 8, 5), 3);
    CHECK(memcmp(buf, "abc", 3) == 0);
    before = ((conc__proxy *)q)->ident;
    conc_kill(&p.task);
    conc_popen_wait(&p, CONC_FOREVER);
    conc_popen_close(&p);
    m.reconnect = 0;
    CHECK(conc_put(q, "lost", 4, 1) < 0);
    m.reconnect = i * 20;
    CHECK(start_python(&p, address, again));
    CHECK_STR(again, address);
    CHECK_EQ(conc_put(q, "task", 4, 5), 0);
    expect(q, "task");
    CHECK(((conc__proxy *)q)->ident != before); /* it was asked for */
    CHECK_EQ(conc_qsize(other), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_kill(&p.task);
  conc_popen_wait(&p, CONC_FOREVER);
  conc_popen_close(&p);
}

TEST_MAIN
