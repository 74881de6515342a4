/* What a server bounds, counts and tells: bytes of a queue, of a client and of
   all, handshakes of one address, machines that have vanished, the end with a
   deadline, and the file of a unix socket. */
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sched.h>
#endif

/* What happens between bind() and listen(): see the tests of .mode. */
static void (*before_listen)(void);
static int in_line; /* connections that wait to be accepted, unless 0 */
static int listen_and_tell(int fd, int n) {
  if (before_listen != NULL) before_listen();
  return listen(fd, in_line > 0 ? in_line : n);
}
#define listen(fd, n) listen_and_tell(fd, n)

#include "inside.h"
#include "served.h"
#include "tasks.h"

/* --- bytes of a queue --- */

static conc_queue *queue_of(size_t capacity, size_t max_total) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  o.max_total = max_total;
  return conc_queue_new(&o);
}

TEST(a_queue_holds_so_many_bytes) {
  static char bytes[4096];
  conc_queue *q = queue_of(0, 1000);
  conc_queue_opts o;
  size_t n = 0;
  CHECK_EQ(conc_put(q, bytes, 993, 0), -EMSGSIZE);
  CHECK_EQ(conc_put(q, bytes, 992, 0), 0);
  CHECK_EQ(conc_put(q, bytes, 0, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, bytes, 4096, 0), 992);
  while (conc_put(q, bytes, 93, 0) == 0) n++;
  CHECK_EQ(n, 9); /* of 104 each */
  CHECK_EQ(conc_put(q, bytes, 56, 0), 0);
  CHECK_EQ(conc_put(q, bytes, 0, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, bytes, 4096, 0), 93);
  CHECK_EQ(conc_put(q, bytes, 93, 0), 0);
  while (n-- > 0) CHECK(conc_get(q, bytes, 4096, 0) > 0);
  CHECK_EQ(conc_get(q, bytes, 4096, 0), 93);
  /* The first so many of several. */
  CHECK_EQ(conc_put_many(q, bytes, 93, 20, 0), 9);
  CHECK_EQ(conc_put_many(q, bytes, 93, 20, 0.01), -ETIMEDOUT);
  conc_queue_free(q);
  /* Messages are bounded as well. */
  q = queue_of(2, 1000);
  CHECK_EQ(conc_put_many(q, bytes, 93, 20, 0), 2);
  conc_queue_free(q);
  CHECK(queue_of(0, 15) == NULL && errno == EINVAL);
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.max_total = 1000;
  CHECK(conc_queue_new(&o) == NULL && errno == EINVAL);
}

/* What is large lies elsewhere, and what came back may; it counts as well. */
TEST(what_is_large_and_what_comes_back_counts) {
  static char bytes[100000];
  conc_queue *q = queue_of(0, 300000);
  conc_value *v = NULL;
  int n;
  for (int i = 0; i < 2; i++)
    CHECK_EQ(conc_put(q, bytes, sizeof bytes, 0), 0);
  CHECK_EQ(conc_put(q, bytes, sizeof bytes, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, bytes, 10, 0), -EMSGSIZE);
  CHECK_EQ(conc_get_parse(q, 0, "i", &n), -EBADMSG); /* got, and put back */
  CHECK_EQ(conc_put(q, bytes, sizeof bytes, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, bytes, sizeof bytes, 0), sizeof bytes);
  CHECK_EQ(conc_put(q, bytes, sizeof bytes, 0), 0);
  CHECK_EQ(conc_put(q, bytes, sizeof bytes, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get_value(q, &v, 0), 0);
  conc_value_free(v);
  CHECK_EQ(conc_get(q, bytes, sizeof bytes, 0), sizeof bytes);
  CHECK_EQ(AS_FIFO(q)->put_bytes, AS_FIFO(q)->got_bytes);
  /* Small ones: all of it is free again. */
  CHECK_EQ(conc_put(q, bytes, 50000, 0), 0);
  CHECK_EQ(conc_get_parse(q, 0, "i", &n), -EBADMSG);
  CHECK_EQ(conc_get(q, bytes, sizeof bytes, 0), 50000);
  CHECK_EQ(AS_FIFO(q)->put_bytes, AS_FIFO(q)->got_bytes);
  conc_queue_free(q);
}

typedef struct putter {
  conc_task task;
  conc_queue *queue;
  size_t size;
  int rc;
} putter;

static void *put_bytes(void *arg) {
  static char bytes[1000];
  putter *p = (putter *)arg;
  p->rc = conc_put(p->queue, bytes, p->size, 60);
  return NULL;
}

static int putters_of(conc_queue *q) {
  conc__mutex *guard = conc__fifo_get_guard(AS_FIFO(q));
  conc__waiter *w;
  int n = 0;
  conc__mutex_lock(guard);
  for (w = AS_FIFO(q)->putters.first; w != NULL; w = w->next) n++;
  conc__mutex_unlock(guard);
  return n;
}

static void put_later(putter *p, conc_queue *q, size_t size) {
  int before = putters_of(q);
  memset(p, 0, sizeof *p);
  p->queue = q;
  p->size = size;
  p->rc = 1;
  start(conc_thread_start, &p->task, put_bytes, p);
  UNTIL(putters_of(q) > before);
}

TEST(a_message_that_goes_makes_room_for_several_and_none_is_forgotten) {
  static char bytes[1000];
  conc_queue *q = queue_of(0, 1000);
  putter large, small[4];
  CHECK_EQ(conc_put(q, bytes, 92, 0), 0); /* 104 */
  CHECK_EQ(conc_put(q, bytes, 888, 0), 0); /* 896: all of it */
  put_later(&large, q, 500);
  for (int i = 0; i < 4; i++) put_later(&small[i], q, 16);
  /* That is no room for the first; while it waits the others do. */
  CHECK_EQ(conc_get(q, bytes, 1000, 0), 92);
  conc_sleep(0.05);
  CHECK_EQ(putters_of(q), 5);
  CHECK_EQ(conc_qsize(q), 1);
  /* It leaves: then there is room for all of them. */
  CHECK_EQ(conc_cancel(&large.task), 0);
  conc_join(&large.task, 20);
  CHECK_EQ(large.rc, -ECANCELED);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&small[i].task, 20), 0);
  CHECK_EQ(conc_qsize(q), 5);
  CHECK_EQ(putters_of(q), 0);
  /* One large message goes: room for many small ones. */
  CHECK_EQ(conc_put(q, bytes, 0, 0), 0);
  CHECK_EQ(conc_put(q, bytes, 0, 0), -ETIMEDOUT);
  for (int i = 0; i < 4; i++) put_later(&small[i], q, 200);
  CHECK_EQ(conc_get(q, bytes, 1000, 0), 888);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&small[i].task, 20), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(small[i].rc, 0);
  CHECK_EQ(conc_qsize(q), 9);
  /* Closed: nobody waits any more. */
  put_later(&large, q, 900);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_join(&large.task, 20), 0);
  CHECK_EQ(large.rc, -EPIPE);
  conc_queue_free(q);
}

typedef struct traffic {
  conc_task task;
  conc_queue *queue;
  unsigned long long seed;
  size_t sum, count;
} traffic;

enum { TRAFFIC = 4000, PUTTERS = 3 };

static void *put_random(void *arg) {
  static char bytes[1000];
  traffic *t = (traffic *)arg;
  for (int i = 0; i < TRAFFIC; i++) {
    size_t size = test_random_of(&t->seed) % 900;
    if (test_random_of(&t->seed) % 4 != 0) size %= 40;
    CHECK_EQ(conc_put(t->queue, bytes, size, 30 * test_slow()), 0);
    t->sum += size;
  }
  return NULL;
}

static void *get_random(void *arg) {
  traffic *t = (traffic *)arg;
  char bytes[1000];
  ssize_t n;
  while ((n = conc_get(t->queue, bytes, 1000, 30 * test_slow())) >= 0) {
    t->sum += (size_t)n;
    t->count++;
    CHECK(LOAD(AS_FIFO(t->queue)->ring.size) <= 1024);
  }
  CHECK_EQ(n, -EPIPE);
  return NULL;
}

TEST(many_pass_through_a_queue_of_few_bytes) {
  conc_queue *q = queue_of(0, 1000);
  traffic in[PUTTERS], out[2];
  size_t sum = 0;
  for (int i = 0; i < 2; i++) {
    memset(&out[i], 0, sizeof out[i]);
    out[i].queue = q;
    start(conc_thread_start, &out[i].task, get_random, &out[i]);
  }
  for (int i = 0; i < PUTTERS; i++) {
    memset(&in[i], 0, sizeof in[i]);
    in[i].queue = q;
    in[i].seed = test_random();
    start(conc_thread_start, &in[i].task, put_random, &in[i]);
  }
  for (int i = 0; i < PUTTERS; i++) {
    CHECK_EQ(conc_join(&in[i].task, CONC_FOREVER), 0);
    sum += in[i].sum;
  }
  CHECK_EQ(conc_queue_close(q), 0);
  for (int i = 0; i < 2; i++)
    CHECK_EQ(conc_join(&out[i].task, CONC_FOREVER), 0);
  CHECK_EQ(out[0].count + out[1].count, PUTTERS * TRAFFIC);
  CHECK_EQ(out[0].sum + out[1].sum, sum);
  conc_queue_free(q);
}

/* --- what is told --- */

/* Written by the server's thread, in its turn; read when it has been woken. */
typedef struct diary {
  conc_manager_report events[64];
  char client[64][80], text[64][200];
  int fd; /* of the client that has connected last, at the server */
  int count; /* atomic */
} diary;

static void note(conc_manager *m, const conc_manager_report *event, void *arg) {
  diary *d = (diary *)arg;
  conc_manager_counts counts;
  int i = d->count;
  CHECK(m->log_arg == arg);
  CHECK_EQ(conc_manager_stats(m, &counts), 0);
  if (i == 64) return;
  if (event->kind == CONC_MANAGER_CONNECT)
    d->fd = m->state->server.clients->channel.fd;
  d->events[i] = *event;
  snprintf(d->client[i], sizeof d->client[i], "%s", event->client);
  snprintf(d->text[i], sizeof d->text[i], "%s", event->text);
  d->events[i].client = d->client[i];
  d->events[i].text = d->text[i];
  STORE(d->count, i + 1);
}

/* The first event of a kind from number *at on; it waits for that. */
static const conc_manager_report *read_diary(diary *d, conc_manager_news kind,
                                            int *at) {
  for (;; ++*at) {
    UNTIL(LOAD(d->count) > *at);
    if (d->events[*at].kind == kind) return &d->events[(*at)++];
  }
}

static bool says(const conc_manager_report *event, const char *word) {
  return strstr(event->text, word) != NULL;
}

static void keep_diary(served *s, diary *d) {
  memset(d, 0, sizeof *d);
  s->server.log = note;
  s->server.log_arg = d;
}

static conc_manager_counts counts_of(const served *s) {
  conc_manager_counts counts;
  CHECK_EQ(conc_manager_stats(&s->server, &counts), 0);
  return counts;
}

static conc__peer *peer_of(served *s) {
  conc__peer *p;
  CHECK_EQ(conc__peer_get(s->client.state, &p, conc_now() + 20), 0);
  return p;
}

static void own_address(const conc__peer *p, char *text, size_t size) {
  CHECK(conc_address(p->channel.fd, text, size) > 0);
}

TEST(a_server_tells_of_its_clients) {
  static diary d;
  served s = nobody();
  conc_manager wrong; /* or another one */
  const conc_manager_report *e;
  char mine[80], byte;
  conc__peer *p;
  int at = 0;
  keep_diary(&s, &d);
  s.server.max_clients = 2; /* one stays, and others come and go */
  serve_queue(&s, conc_queue_new(NULL));
  /* A wrong key. */
  wrong = client_of(&s);
  wrong.authkey = "wrong";
  CHECK_EQ(conc_manager_connect(&wrong, 10), -EACCES);
  e = read_diary(&d, CONC_MANAGER_REFUSE, &at);
  CHECK_EQ(e->error, -EACCES);
  CHECK(says(e, "keys differ") && strncmp(e->client, "127.0.0.1:", 10) == 0);
  CHECK_EQ(counts_of(&s).refused_key, 1);
  /* No handshake at all. */
  {
    int fd = conc_connect(conc_manager_address(&s.server), 5);
    CHECK_EQ(conc_write(fd, "\0\0\0\1x", 5, 5), 5);
    e = read_diary(&d, CONC_MANAGER_REFUSE, &at);
    close(fd);
  }
  CHECK_EQ(counts_of(&s).refused_key, 2);
  /* A client that comes, takes a message, and dies. */
  CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
  join_as_client(&s, &s.client);
  e = read_diary(&d, CONC_MANAGER_CONNECT, &at);
  CHECK_EQ(e->error, 0);
  UNTIL(counts_of(&s).clients == 1);
  /* A second one, and a third that must wait. */
  wrong = client_of(&s);
  CHECK_EQ(conc_manager_connect(&wrong, 5 * test_slow()), 0);
  {
    int fd = conc_connect(conc_manager_address(&s.server), 5);
    read_diary(&d, CONC_MANAGER_FULL, &at);
    close(fd);
  }
  CHECK_EQ(conc_manager_shutdown(&wrong), 0);
  at = 0;
  p = peer_of(&s);
  own_address(p, mine, sizeof mine);
  do e = read_diary(&d, CONC_MANAGER_CONNECT, &at);
  while (strcmp(e->client, mine) != 0);
  conc__peer_put(s.client.state, p);
  CHECK_EQ(conc_get(conc_manager_get(&s.client, "q"), &byte, 1, 5), 1);
  p = peer_of(&s);
  CHECK(p->held);
  p->held = false; /* it says nothing more */
  conc__peer_close(p);
  do e = read_diary(&d, CONC_MANAGER_LEAVE, &at);
  while (strcmp(e->client, mine) != 0);
  CHECK(says(e, "goes back"));
  UNTIL(counts_of(&s).returned == 1);
  CHECK_EQ(conc_get(s.queue, &byte, 1, 5), 1);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  end(&s);
  e = read_diary(&d, CONC_MANAGER_DRAIN, &at);
  e = read_diary(&d, CONC_MANAGER_END, &at);
  CHECK_EQ(e->error, 0);
  CHECK_STR(e->client, "");
}

/* --- what is counted --- */

static void *get_one(void *queue) {
  char buf[8];
  CHECK_EQ(conc_get((conc_queue *)queue, buf, 8, 60), 3);
  return NULL;
}

TEST(a_server_counts) {
  served s = nobody();
  conc_manager_counts c;
  conc_queue *q;
  conc_task t;
  char buf[8];
  int silent;
  memset(&c, 1, sizeof c);
  CHECK_EQ(conc_manager_stats(&s.server, &c), -EINVAL);
  CHECK(c.requests == 0 && c.memory_most == 0);
  serve_queue(&s, conc_queue_new(NULL));
  c = counts_of(&s);
  CHECK(c.clients == 0 && c.clients_ever == 0 && c.connections_ever == 0);
  q = join_as_client(&s, &s.client);
  c = counts_of(&s);
  CHECK(c.clients >= 1 && c.clients_ever >= 1 && c.requests >= 1);
  CHECK_EQ(c.connections_ever, c.clients_ever);
  CHECK(c.bytes_in > 0 && c.bytes_out > 0);
  for (int i = 0; i < 5; i++) CHECK_EQ(conc_put(q, "abc", 3, 5), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_get(q, buf, 8, 5), 3);
  CHECK_EQ(counts_of(&s).puts, 5);
  CHECK_EQ(counts_of(&s).gets, 4);
  CHECK(counts_of(&s).requests >= c.requests + 9);
  CHECK(counts_of(&s).memory_most >= CONC__IO_BUFFER);
  CHECK_EQ(conc_get(q, buf, 8, 5), 3);
  CHECK_EQ(counts_of(&s).waiting, 0);
  start(conc_thread_start, &t, get_one, q);
  UNTIL(counts_of(&s).waiting == 1);
  CHECK(counts_of(&s).memory < CONC__IO_BUFFER); /* it is lent nothing */
  CHECK_EQ(conc_put(s.queue, "abc", 3, 5), 0);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(counts_of(&s).waiting, 0);
  silent = conc_connect(conc_manager_address(&s.server), 5);
  UNTIL(counts_of(&s).handshakes == 1);
  close(silent);
  UNTIL(counts_of(&s).handshakes == 0);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  UNTIL(counts_of(&s).clients == 0);
  CHECK_EQ(counts_of(&s).memory, 0);
  end(&s);
  CHECK_EQ(conc_manager_stats(&s.server, &c), -EINVAL);
}

/* It is made by conc_manager_connect. What a client asks the server itself for
   goes over it, too, and does not end it. */
TEST(a_client_of_one_task_has_one_connection) {
  served s = nobody();
  conc_queue *q, *other = conc_queue_new(NULL);
  char buf[8];
  CHECK_EQ(conc_manager_register_queue(&s.server, "other", other), 0);
  CHECK_EQ(conc_manager_register_types(&s.server), 0);
  serve_queue(&s, conc_queue_new(NULL));
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(q, "abc", 3, 5), 0);
  CHECK(conc_manager_get(&s.client, "other") != NULL);
  CHECK(conc_manager_get(&s.client, "none") == NULL && errno == ENOENT);
  CHECK(conc_manager_lock(&s.client, "Lock") != NULL);
  CHECK_EQ(conc_get(q, buf, 8, 5), 3);
  CHECK_EQ(counts_of(&s).connections_ever, 1);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  end(&s);
  conc_queue_free(other);
}

/* What is put or got in one trip, or by a key, counts as if it were alone. */
TEST(many_count_one_by_one) {
  served s = nobody();
  conc_queue *q;
  conc__peer *p;
  char buf[32];
  serve_queue(&s, conc_queue_new(NULL));
  s.client = client_of(&s);
  s.client.reconnect = 5 * test_slow();
  q = join(&s.client);
  CHECK_EQ(conc_put(q, "one", 3, 5), 0); /* by a key */
  CHECK_EQ(conc_put_many(q, "twotenfew", 3, 3, 5), 3);
  CHECK_EQ(counts_of(&s).puts, 4);
  CHECK_EQ(conc_get(q, buf, 3, 5), 3);
  CHECK_EQ(conc_get_many(q, buf, 3, 10, 5), 3);
  CHECK(memcmp(buf, "twotenfew", 9) == 0);
  CHECK_EQ(counts_of(&s).gets, 4);
  CHECK_EQ(counts_of(&s).returned, 0);
  /* The client dies with three that it has not confirmed. */
  p = peer_of(&s);
  CHECK(p->held);
  p->held = false;
  conc__peer_close(p);
  UNTIL(counts_of(&s).returned == 3);
  CHECK_EQ(conc_get_many(s.queue, buf, 3, 10, 5), 3);
  CHECK(memcmp(buf, "twotenfew", 9) == 0);
  end(&s);
}

TEST(a_late_handshake_is_counted) {
  static diary d;
  served s = nobody();
  char buf[256];
  int at = 0, fd;
  keep_diary(&s, &d);
  s.server.handshake_timeout = 0.05;
  serve_queue(&s, conc_queue_new(NULL));
  fd = conc_connect(conc_manager_address(&s.server), 5);
  while (conc_read(fd, buf, sizeof buf, 20) > 0) {
  }
  close(fd);
  CHECK(says(read_diary(&d, CONC_MANAGER_REFUSE, &at), ".handshake_timeout"));
  CHECK_EQ(counts_of(&s).refused_late, 1);
  end(&s);
}

/* --- bytes of clients --- */

static void a_put_waits(double reconnect) {
  static char bytes[600000];
  static diary d;
  served s = nobody();
  const conc_manager_report *e;
  conc_queue *q;
  int at = 0;
  keep_diary(&s, &d);
  /* A request of 600,000 bytes comes in, into 1 MiB; it may not be kept. */
  s.server.max_client_memory = 1190000;
  serve_queue(&s, queue_of(1, 0));
  s.client = client_of(&s);
  s.client.reconnect = reconnect; /* if it does, a put has a key */
  q = join(&s.client);
  CHECK_EQ(conc_put(q, bytes, 150000, 5 * test_slow()), 0);
  CHECK_EQ(conc_put(q, bytes, 150000, 0), -ETIMEDOUT); /* it does not wait */
  CHECK_EQ(conc_put(q, bytes, 50000, 0.05), -ETIMEDOUT);
  CHECK_EQ(counts_of(&s).refused_memory, 0);
  CHECK_EQ(conc_put(q, bytes, sizeof bytes, 20), -ENOMEM);
  e = read_diary(&d, CONC_MANAGER_LIMIT, &at);
  CHECK(e->error == -ENOMEM && says(e, ".max_client_memory"));
  CHECK(says(e, "1200000 bytes"));
  CHECK_EQ(counts_of(&s).refused_memory, 1);
  CHECK_EQ(conc_put(q, bytes, 100, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_get(s.queue, bytes, sizeof bytes, 5), 150000);
  CHECK_EQ(conc_put(q, bytes, 100, 5), 0);
  end(&s);
}

TEST(a_put_that_waits_must_have_room) {
  a_put_waits(0);
  a_put_waits(20 * test_slow());
}

static void *put_two(void *queue) {
  static char bytes[200000];
  CHECK_EQ(conc_put_many((conc_queue *)queue, bytes, 100000, 2, 60), 1);
  return NULL;
}

/* Many that wait keep their request: that takes memory of the server. */
TEST(what_many_keep_while_they_wait_is_counted) {
  served s = nobody();
  conc_task t;
  char *buf = (char *)malloc(100000);
  serve_queue(&s, queue_of(1, 0));
  CHECK_EQ(conc_put(s.queue, "x", 1, 5), 0);
  start(conc_thread_start, &t, put_two, join_as_client(&s, &s.client));
  UNTIL(counts_of(&s).waiting == 1);
  UNTIL(counts_of(&s).memory >= 200000);
  CHECK_EQ(conc_get(s.queue, buf, 1, 5), 1);
  CHECK_EQ(conc_join(&t, 20 * test_slow()), 0);
  UNTIL(counts_of(&s).memory < CONC__IO_BUFFER);
  CHECK_EQ(counts_of(&s).puts, 1);
  CHECK_EQ(conc_get(s.queue, buf, 100000, 5), 100000);
  free(buf);
  end(&s);
}

/* The text of the error that a raw client gets. */
static void error_text(conc__peer *p, char *text, size_t size) {
  const unsigned char *payload;
  const conc_value *error;
  conc_value *v;
  size_t n;
  CHECK_EQ(conc__channel_receive(&p->channel, (size_t)1 << 24, &payload, &n,
                                 conc_now() + 20 * test_slow()), 0);
  CHECK_EQ(conc__pickle_decode(payload, n, &conc__pickle_reply_limits, &v,
                               NULL), 0);
  error = conc_value_item(v, 1);
  n = (size_t)snprintf(text, size, "%s", conc__object_name(error));
  conc_value_text(conc__recipe_arguments(error), text + n, size - n);
  conc_value_free(v);
}

static void send_zeros(conc__peer *p, size_t size) {
  static char bytes[1 << 16];
  while (size > 0) {
    size_t n = size < sizeof bytes ? size : sizeof bytes;
    CHECK_EQ(conc_write(p->channel.fd, bytes, n, 20 * test_slow()), n);
    size -= n;
  }
}

/* Begins a request of so many bytes, and sends a part of it. */
static void begin_request(conc__peer *p, size_t size, size_t part) {
  unsigned char head[4];
  for (int i = 0; i < 4; i++) head[i] = (unsigned char)(size >> (24 - 8 * i));
  CHECK_EQ(conc_write(p->channel.fd, head, 4, 5), 4);
  send_zeros(p, part);
}

TEST(requests_of_all_clients_have_a_bound) {
  enum { MIB = 1 << 20 };
  static diary d;
  served s = nobody();
  const conc_manager_report *e;
  conc__peer *p[3];
  conc_queue *q;
  char text[400], buf[8];
  size_t before;
  int at = 0;
  keep_diary(&s, &d);
  s.server.max_memory = 10 * MIB;
  serve_queue(&s, conc_queue_new(NULL));
  q = join_as_client(&s, &s.client);
  for (int i = 0; i < 3; i++) p[i] = peer_of(&s);
  /* More than there is at all. */
  begin_request(p[0], 20 * MIB, 65536);
  error_text(p[0], text, sizeof text);
  CHECK(strstr(text, "MemoryError") != NULL);
  CHECK(strstr(text, ".max_memory of the manager") != NULL);
  e = read_diary(&d, CONC_MANAGER_LIMIT, &at);
  CHECK(e->error == -ENOMEM && says(e, ".max_memory"));
  /* Two large ones have come halfway: there is no room for a third. */
  before = counts_of(&s).bytes_in;
  begin_request(p[1], 4 * MIB, 3 * MIB);
  UNTIL(counts_of(&s).bytes_in >= before + 3 * MIB);
  before = counts_of(&s).bytes_in;
  begin_request(p[2], 4 * MIB, 3 * MIB);
  UNTIL(counts_of(&s).bytes_in >= before + 3 * MIB ||
        counts_of(&s).refused_memory > 1);
  CHECK(counts_of(&s).memory_most <= 12 * MIB);
  /* What is small goes on. */
  CHECK_EQ(conc_put(q, "x", 1, 5 * test_slow()), 0);
  CHECK_EQ(conc_get(q, buf, 8, 5 * test_slow()), 1);
  for (int i = 1; i < 3; i++) conc__peer_close(p[i]);
  UNTIL(counts_of(&s).memory < MIB);
  /* The rest of the first one's request goes by, and it is served. */
  send_zeros(p[0], 20 * MIB - 65536);
  conc__peer_put(s.client.state, p[0]);
  CHECK_EQ(conc_put(q, "x", 1, 20 * test_slow()), 0);
  CHECK_EQ(counts_of(&s).memory_most < 13 * MIB, true);
  end(&s);
}

/* A request is refused if its buffer, which doubles, would be above the bound;
   and is not if it has its place already, and only has to come. */
TEST(a_request_that_fits_into_what_is_left_comes_in) {
  enum { MIB = 1 << 20 };
  static char bytes[6 * MIB];
  for (int all = 0; all < 2; all++) {
    served s = nobody();
    conc_queue *q;
    *(all ? &s.server.max_memory : &s.server.max_client_memory) = 10 * MIB;
    serve_queue(&s, conc_queue_new(NULL));
    q = join_as_client(&s, &s.client);
    CHECK_EQ(conc_put(q, bytes, sizeof bytes, 20 * test_slow()), 0);
    CHECK_EQ(counts_of(&s).refused_memory, 0);
    CHECK(counts_of(&s).memory_most <= 10 * MIB);
    end(&s);
  }
}

/* Sends a request, whose reply it does not read. */
static void ask_and_leave(conc__peer *p, const char *id, const char *method) {
  conc_value *v;
  void *data;
  size_t n;
  CHECK_EQ(conc_build(&v, "(ss(){})", id, method), 0);
  CHECK_EQ(conc_pickle_dumps(v, 4, &data, &n), 0);
  CHECK_EQ(conc__channel_send(&p->channel, data, n, conc_now() + 5), 0);
  conc_free(data);
  conc_value_free(v);
}

/* One of them whose reply is not a large one. */
static conc__peer *refused_of(conc__peer **p, int n) {
  unsigned char head[4] = {0, 1, 0, 0};
  while (n-- > 0) {
    conc_wait_fd(p[n]->channel.fd, CONC_READ, 20 * test_slow());
    recv(p[n]->channel.fd, head, sizeof head, MSG_PEEK | MSG_DONTWAIT);
    if (head[1] == 0) return p[n];
  }
  CHECK_EQ(n, 0); /* none was refused */
  return NULL;
}

/* At a unix socket: the system keeps little of what is not read there. */
static const char *little_path(void) {
  static char path[64];
  snprintf(path, sizeof path, "/tmp/conc_limits.%d", (int)getpid());
  return path;
}

/* Many clients ask for a large message each, and read nothing. What there is
   no room for stays in its queue. */
TEST(replies_with_messages_have_a_bound) {
  enum { MIB = 1 << 20, PEERS = 24 };
  static char bytes[MIB];
  for (int waits = 0; waits < 2; waits++) {
    served s = nobody();
    conc__peer *p[PEERS];
    conc_queue *q;
    char text[400], id[64];
    s.server.address = little_path();
    s.server.max_memory = 16 * MIB;
    serve_queue(&s, conc_queue_new(NULL));
    q = join_as_client(&s, &s.client);
    snprintf(id, sizeof id, "%s", ((conc__proxy *)q)->ident->text);
    for (int i = 0; i < PEERS; i++) p[i] = peer_of(&s);
    if (waits) {
      for (int i = 0; i < PEERS; i++) ask_and_leave(p[i], id, "get");
      UNTIL(counts_of(&s).waiting == PEERS);
    }
    for (int i = 0; i < PEERS; i++)
      CHECK_EQ(conc_put(s.queue, bytes, MIB, 5), 0);
    if (!waits)
      for (int i = 0; i < PEERS; i++) ask_and_leave(p[i], id, "get");
    UNTIL(counts_of(&s).gets + counts_of(&s).refused_memory >= PEERS);
    CHECK(counts_of(&s).refused_memory >= PEERS / 2);
    CHECK(counts_of(&s).gets >= 4);
    CHECK(counts_of(&s).memory_most <= 16 * MIB);
    /* What is small goes on; for a large one there is no room. */
    CHECK_EQ(conc_qsize(q), conc_qsize(s.queue));
    CHECK_EQ(conc_get(q, bytes, MIB, 0), -ENOMEM);
    CHECK_EQ(conc_put(q, "x", 1, 5), 0);
    error_text(refused_of(p, PEERS), text, sizeof text);
    CHECK(strstr(text, ".max_memory of the manager") != NULL);
    for (int i = 0; i < PEERS; i++) conc__peer_close(p[i]);
    UNTIL(counts_of(&s).memory < MIB);
    UNTIL(conc_qsize(s.queue) == PEERS + 1);
    for (int i = 0; i < PEERS; i++)
      CHECK_EQ(conc_get(q, bytes, MIB, 5 * test_slow()), MIB);
    CHECK_EQ(conc_get(q, bytes, MIB, 5), 1);
    end(&s);
  }
}

/* Of our own clients, too, whatever they want; and many at one time. */
TEST(a_get_of_a_client_of_ours_has_a_bound) {
  enum { MIB = 1 << 20 };
  static char bytes[2 * MIB];
  for (int all = 0; all < 2; all++) {
    served s = nobody();
    conc_value *v = NULL;
    conc_queue *q;
    *(all ? &s.server.max_memory : &s.server.max_client_memory) = 2 * MIB;
    serve_queue(&s, conc_queue_new(NULL));
    q = join_as_client(&s, &s.client);
    for (int i = 0; i < 2; i++)
      CHECK_EQ(conc_put(s.queue, bytes, MIB, 5), 0);
    CHECK_EQ(conc_get(q, bytes, sizeof bytes, 5), -ENOMEM);
    CHECK_EQ(conc_get_value(q, &v, 5), -ENOMEM);
    CHECK_EQ(conc_get_many(q, bytes, MIB, 2, 5), -ENOMEM);
    CHECK_EQ(conc_qsize(s.queue), 2);
    CHECK_EQ(counts_of(&s).refused_memory, 3);
    CHECK(counts_of(&s).memory_most < MIB);
    CHECK_EQ(conc_get(s.queue, bytes, sizeof bytes, 0), MIB);
    CHECK_EQ(conc_get(s.queue, bytes, sizeof bytes, 0), MIB);
    CHECK_EQ(conc_put(s.queue, bytes, 300000, 5), 0);
    CHECK_EQ(conc_get(q, bytes, sizeof bytes, 5), 300000);
    end(&s);
  }
}

/* Each of many clients asks for a copy of the same list. */
TEST(replies_that_are_copies_have_a_bound) {
  enum { MIB = 1 << 20, PEERS = 24 };
  served s = nobody();
  conc__peer *p[PEERS], *one;
  conc_value *reply;
  const conc_value *result;
  conc_queue *q;
  char *bytes = (char *)calloc(1, MIB), text[400], id[64];
  bool lost;
  s.server.address = little_path();
  s.server.max_memory = 16 * MIB;
  CHECK_EQ(conc_manager_register_types(&s.server), 0);
  serve_queue(&s, conc_queue_new(NULL));
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc__peer_function(s.client.state, "create", "list", &reply,
                               &result, NULL, &lost, conc_now() + 5),
           0);
  snprintf(id, sizeof id, "%s",
           conc_value_str(conc_value_item(result, 0), NULL));
  conc_value_free(reply);
  for (int i = 0; i < PEERS; i++) p[i] = peer_of(&s);
  {
    conc_value *v;
    void *data;
    size_t n;
    const unsigned char *payload;
    CHECK_EQ(conc_build(&v, "(ss(y#){})", id, "append", bytes, (size_t)MIB),
             0);
    CHECK_EQ(conc_pickle_dumps(v, 4, &data, &n), 0);
    CHECK_EQ(conc__channel_send(&p[0]->channel, data, n, conc_now() + 5), 0);
    CHECK_EQ(conc__channel_receive(&p[0]->channel, MIB, &payload, &n,
                                   conc_now() + 20 * test_slow()),
             0);
    conc_free(data);
    conc_value_free(v);
  }
  for (int i = 0; i < PEERS; i++)
    ask_and_leave(p[i], id, i % 2 ? "#GETVALUE" : "__str__");
  UNTIL(counts_of(&s).refused_memory >= 6);
  /* One at a time may be above it, while it is made. */
  CHECK(counts_of(&s).memory_most <= 32 * MIB);
  CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  CHECK_EQ(conc_qsize(q), 1);
  one = refused_of(p, PEERS);
  error_text(one, text, sizeof text);
  CHECK(strstr(text, "MemoryError") != NULL);
  CHECK(strstr(text, ".max_memory of the manager") != NULL);
  /* What a method takes out comes, whatever there is left. */
  ask_and_leave(one, id, "pop");
  {
    const unsigned char *payload;
    size_t n;
    CHECK_EQ(conc__channel_receive(&one->channel, 2 * MIB, &payload, &n,
                                   conc_now() + 20 * test_slow()),
             0);
    CHECK(n > MIB);
  }
  for (int i = 0; i < PEERS; i++) conc__peer_close(p[i]);
  UNTIL(counts_of(&s).memory < MIB);
  free(bytes);
  end(&s);
}

TEST(a_request_above_max_message_is_told_of) {
  static diary d;
  served s = nobody();
  conc__peer *p;
  char text[400];
  int at = 0;
  keep_diary(&s, &d);
  s.server.max_message = 4096;
  serve_queue(&s, conc_queue_new(NULL));
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  begin_request(p, 5000, 100);
  error_text(p, text, sizeof text);
  CHECK(strstr(text, ".max_message") != NULL);
  CHECK(says(read_diary(&d, CONC_MANAGER_LIMIT, &at), ".max_message"));
  CHECK_EQ(counts_of(&s).refused_message, 1);
  conc__peer_close(p);
  end(&s);
}

/* A function of the program. */
static int answer(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  (void)args, (void)kwds, (void)arg;
  return conc_build(result, "i", 42);
}

/* What create replies, as Python shows it: what is wrong. */
static void create_in_vain(served *s, const char *name, char *text,
                           size_t size) {
  const unsigned char *payload;
  conc__peer *p;
  conc_value *v;
  size_t n;
  CHECK_EQ(conc__peer_open(s->client.state, &p, conc_now() + 20), 0);
  CHECK_EQ(conc__request_str(&p->channel.out, NULL, "create", name), 0);
  CHECK_EQ(conc__channel_flush(&p->channel, &n, conc_now() + 20), 0);
  CHECK_EQ(conc__channel_receive(&p->channel, (size_t)1 << 24, &payload, &n,
                                 conc_now() + 20 * test_slow()), 0);
  CHECK_EQ(conc__pickle_decode(payload, n, &conc__pickle_reply_limits, &v,
                               NULL), 0);
  conc_value_text(v, text, size);
  conc_value_free(v);
  conc__peer_close(p);
}

TEST(clients_make_so_many_objects_and_no_more) {
  static const char words[] =
      "no room for another object: .max_objects of the manager";
  static diary d;
  served s = nobody();
  const conc_manager_report *e;
  conc_value *v = NULL;
  conc__peer *p;
  conc_list *list;
  conc_dict *dict;
  conc_lock own;
  char text[400];
  size_t at_byte = 0;
  int at = 0;
  memset(&own, 0, sizeof own);
  keep_diary(&s, &d);
  s.server.max_objects = 2;
  CHECK_EQ(conc_manager_register_types(&s.server), 0);
  CHECK_EQ(conc_manager_register_lock(&s.server, "own", &own), 0);
  CHECK_EQ(conc_manager_register(&s.server, "answer", answer, NULL), 0);
  serve_queue(&s, conc_queue_new(NULL));
  join_as_client(&s, &s.client);
  list = conc_manager_list(&s.client, "list");
  dict = conc_manager_dict(&s.client, "dict");
  CHECK(list != NULL && dict != NULL);
  CHECK_EQ(counts_of(&s).refused_objects, 0);
  errno = 0;
  CHECK(conc_manager_list(&s.client, "list") == NULL && errno == ENOMEM);
  e = read_diary(&d, CONC_MANAGER_LIMIT, &at);
  CHECK(e->error == -ENOMEM && says(e, ".max_objects"));
  errno = 0;
  CHECK(conc_manager_event(&s.client, "Event") == NULL && errno == ENOMEM);
  CHECK_EQ(counts_of(&s).refused_objects, 2);
  /* As Python is told, by each way to an object. */
  create_in_vain(&s, "list", text, sizeof text);
  CHECK(strstr(text, "MemoryError: ") != NULL && strstr(text, words) != NULL);
  create_in_vain(&s, "answer", text, sizeof text);
  CHECK(strstr(text, "MemoryError") != NULL);
  p = peer_of(&s);
  CHECK_EQ(conc__request_begin(&p->channel.out, &at_byte, 4,
                               ((conc__data *)(void *)dict)->proxy.ident->text,
                               "__iter__"), 0);
  CHECK_EQ(conc__pickle_put_op(&p->channel.out, CONC__OP_EMPTY_TUPLE), 0);
  CHECK_EQ(conc__request_end(&p->channel.out, at_byte), 0);
  CHECK_EQ(conc__channel_flush(&p->channel, &at_byte, conc_now() + 20), 0);
  error_text(p, text, sizeof text);
  CHECK(strstr(text, "MemoryError") != NULL && strstr(text, words) != NULL);
  conc__peer_close(p);
  CHECK_EQ(counts_of(&s).refused_objects, 5);
  /* What makes no object goes on, and what the program has does not count. */
  CHECK(conc_manager_lock(&s.client, "own") != NULL);
  CHECK_EQ(conc_list_clear(list), 0);
  CHECK_EQ(conc_manager_call(&s.client, "answer", NULL, &v, 20), 0);
  conc_value_free(v);
  CHECK_EQ(conc_manager_register_list(&s.server, "late", NULL), 0);
  /* They go: there is room for others. */
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  join_as_client(&s, &s.client);
  CHECK(conc_manager_event(&s.client, "Event") != NULL);
  CHECK(conc_manager_event(&s.client, "Event") != NULL);
  CHECK(conc_manager_event(&s.client, "Event") == NULL);
  end(&s);
}

/* Puts so many bytes, and is refused: in these words. */
static void put_in_vain(conc__peer *p, size_t size, char *text, size_t room) {
  static char bytes[1000];
  conc_value *v;
  void *data;
  size_t n;
  CHECK_EQ(conc_build(&v, "(ss(y#){})", "000000000000.1", "put", bytes, size),
           0);
  CHECK_EQ(conc_pickle_dumps(v, 4, &data, &n), 0);
  CHECK_EQ(conc__channel_send(&p->channel, data, n, conc_now() + 5), 0);
  error_text(p, text, room);
  conc_free(data);
  conc_value_free(v);
}

TEST(a_put_that_is_refused_is_told_by_which_bound) {
  for (int shorter = 0; shorter < 2; shorter++) {
    served s = nobody();
    conc_queue_opts o;
    conc__peer *p;
    char text[400];
    memset(&o, 0, sizeof o);
    o.max_total = 1000;
    o.max_bytes = shorter ? 500 : 0;
    serve_queue(&s, conc_queue_new(&o));
    memset(s.server.state->server.number, 0, 6);
    join_as_client(&s, &s.client);
    p = peer_of(&s);
    put_in_vain(p, 993, text, sizeof text);
    CHECK(strstr(text, shorter ? "it has 993 bytes, .max_bytes of the queue "
                                 "is 500"
                               : "it has 993 bytes, .max_total of the queue "
                                 "lets through 992") != NULL);
    conc__peer_put(s.client.state, p);
    end(&s);
  }
}

TEST(the_bound_of_a_queues_bytes_is_told_to_its_clients) {
  static char bytes[1000];
  served s = nobody();
  conc_queue *q;
  serve_queue(&s, queue_of(0, 1000));
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(q, bytes, 993, 5), -EMSGSIZE);
  CHECK_EQ(conc_put(q, bytes, 992, 5), 0);
  CHECK_EQ(conc_put(q, bytes, 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, bytes, 1000, 5), 992);
  CHECK_EQ(conc_put(q, bytes, 1, 0), 0);
  end(&s);
}

/* It sends requests, and reads none of their replies: what the server takes
   from it is what the system keeps of the replies, and little more; the others
   are served. */
TEST(a_client_that_does_not_read_is_not_read) {
  static const char size_of[] =
      "\0\0\0\x22(X\16\0\0\0" "000000000000.1X\5\0\0\0qsize)}t.";
  static char many[1000 * (sizeof size_of - 1)];
  const size_t one = sizeof size_of - 1;
  served s = nobody();
  conc_manager_counts before, after;
  conc_manager other;
  conc_queue *q;
  conc__peer *p;
  char buf[8];
  ssize_t n;
  int small = 4096;
  for (size_t i = 0; i < 1000; i++) memcpy(many + i * one, size_of, one);
  serve_queue(&s, conc_queue_new(NULL));
  memset(s.server.state->server.number, 0, 6);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  setsockopt(p->channel.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  other = client_of(&s);
  q = join(&other);
  /* Until nothing is taken for a while. */
  do n = conc_write(p->channel.fd, many, sizeof many, 0.5 * test_slow());
  while (n == sizeof many);
  before = counts_of(&s);
  CHECK(before.memory < 16 * CONC__IO_BUFFER);
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(conc_put(q, "abc", 3, 5 * test_slow()), 0);
    CHECK_EQ(conc_get(q, buf, 8, 5 * test_slow()), 3);
  }
  after = counts_of(&s);
  CHECK_EQ(after.gets, before.gets + 20);
  CHECK(after.bytes_in < before.bytes_in + 65536);
  CHECK(after.memory < 16 * CONC__IO_BUFFER);
  conc__peer_close(p);
  CHECK_EQ(conc_manager_shutdown(&other), 0);
  end(&s);
}

/* --- handshakes of one address --- */

/* A socket at another address of this machine, which Linux has many of. */
static int connect_from(const char *from, const served *s) {
  struct sockaddr_in a;
  struct sockaddr_storage to;
  socklen_t size = (socklen_t)sizeof to;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  memset(&a, 0, sizeof a);
  a.sin_family = AF_INET;
  CHECK_EQ(inet_pton(AF_INET, from, &a.sin_addr), 1);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0)
    SKIP("there is one address only");
  CHECK_EQ(getsockname(s->server.state->server.listener,
                       (struct sockaddr *)&to, &size), 0);
  CHECK_EQ(connect(fd, (struct sockaddr *)&to, size), 0);
  return fd;
}

/* Whether the server answers such a connection by a handshake, and not by its
   end. */
static bool is_let_in(int fd) {
  char buf[256];
  return conc_read(fd, buf, sizeof buf, 20 * test_slow()) > 0;
}

TEST(an_address_has_so_many_handshakes_at_one_time) {
  static diary d;
  served s = nobody();
  const conc_manager_report *e;
  int fd[3], other, at = 0;
  keep_diary(&s, &d);
  s.server.max_handshakes_per_address = 2;
  s.server.handshake_timeout = 600;
  serve_queue(&s, conc_queue_new(NULL));
  for (int i = 0; i < 2; i++) {
    fd[i] = connect_from("127.0.0.2", &s);
    CHECK(is_let_in(fd[i]));
  }
  fd[2] = connect_from("127.0.0.2", &s);
  CHECK(!is_let_in(fd[2]));
  e = read_diary(&d, CONC_MANAGER_REFUSE, &at);
  CHECK(says(e, ".max_handshakes_per_address"));
  CHECK(strncmp(e->client, "127.0.0.2:", 10) == 0);
  CHECK_EQ(counts_of(&s).refused_address, 1);
  other = connect_from("127.0.0.3", &s);
  CHECK(is_let_in(other));
  close(fd[2]);
  /* One of them goes: there is a place. */
  close(fd[0]);
  UNTIL(counts_of(&s).handshakes == 2);
  fd[0] = connect_from("127.0.0.2", &s);
  CHECK(is_let_in(fd[0]));
  close(fd[0]), close(fd[1]), close(other);
  join_as_client(&s, &s.client);
  end(&s);
}

TEST(an_address_fails_so_often_in_a_second) {
  static diary d;
  served s = nobody();
  conc_manager wrong;
  int fd, at = 0;
  double began;
  keep_diary(&s, &d);
  s.server.max_failures = 3;
  serve_queue(&s, conc_queue_new(NULL));
  wrong = client_of(&s);
  wrong.authkey = "wrong";
  began = conc_now();
  for (int i = 0; i < 3; i++)
    CHECK_EQ(conc_manager_connect(&wrong, 20), -EACCES);
  UNTIL(counts_of(&s).refused_key == 3);
  /* Others are not in its way. */
  fd = connect_from("127.0.0.2", &s);
  CHECK(is_let_in(fd));
  close(fd);
  fd = conc_connect(conc_manager_address(&s.server), 5);
  if (conc_now() - began > 0.9) SKIP("this machine is too slow");
  CHECK(!is_let_in(fd));
  close(fd);
  CHECK(says(read_diary(&d, CONC_MANAGER_REFUSE, &at), "keys differ"));
  do CHECK_EQ(d.events[at].kind, CONC_MANAGER_REFUSE);
  while (!says(read_diary(&d, CONC_MANAGER_REFUSE, &at), ".max_failures"));
  CHECK(counts_of(&s).refused_failures >= 1);
  /* In a second all is forgotten. */
  conc_sleep(1.1);
  join_as_client(&s, &s.client);
  end(&s);
}

/* 800 connections from one address that say nothing, and room for 8 of them at
   a time: to wait for each a second would take 100. */
TEST(a_flood_from_one_address_does_not_keep_others_out) {
  enum { FLOOD = 800 };
  static int flood[FLOOD];
  static diary d;
  served s = nobody();
  conc__channel ch;
  conc__key key = {"abc", 3, false};
  double began;
  int at = 0;
  keep_diary(&s, &d);
  s.server.max_handshakes = 8;
  s.server.handshake_timeout = 600;
  serve_queue(&s, conc_queue_new(NULL));
  for (int i = 0; i < FLOOD; i++) flood[i] = connect_from("127.0.0.2", &s);
  began = conc_now();
  memset(&ch, 0, sizeof ch);
  ch.fd = connect_from("127.0.0.3", &s);
  conc__channel_begin(&ch);
  CHECK_EQ(conc__auth_connect(&ch, &key, conc_now() + 15 * test_slow()), 0);
  CHECK(conc_now() - began < 15 * test_slow());
  CHECK(counts_of(&s).refused_full > FLOOD / 2);
  CHECK(says(read_diary(&d, CONC_MANAGER_REFUSE, &at), ".max_handshakes"));
  CHECK(strncmp(d.client[0], "127.0.0.2:", 10) == 0);
  conc__channel_close(&ch);
  for (int i = 0; i < FLOOD; i++) close(flood[i]);
  end(&s);
}

static conc_event refused_one, refused_go;
static void hold_after_refusal(conc_manager *m, const conc_manager_report *e,
                               void *arg) {
  (void)m, (void)arg;
  if (e->kind != CONC_MANAGER_REFUSE || conc_event_is_set(&refused_one)) return;
  conc_event_set(&refused_one);
  while (!conc_event_is_set(&refused_go)) usleep(1000); /* all of the loop */
}

/* Several are accepted in one go: so one of them makes room for the next one
   before its coroutine has begun. */
TEST(one_that_has_not_begun_makes_room) {
  served s = nobody();
  conc__channel ch;
  conc__key key = {"abc", 3, false};
  int flood, next;
  s.server.max_handshakes = 1;
  s.server.handshake_timeout = 600;
  s.server.log = hold_after_refusal;
  serve_queue(&s, conc_queue_new(NULL));
  close(connect_from("127.0.0.2", &s));
  CHECK_EQ(conc_event_wait(&refused_one, 20 * test_slow()), 0);
  flood = connect_from("127.0.0.2", &s);
  next = connect_from("127.0.0.3", &s);
  conc_event_set(&refused_go);
  for (int i = 0; i < 2; i++) {
    memset(&ch, 0, sizeof ch);
    ch.fd = i == 0 ? next : connect_from("127.0.0.3", &s);
    conc__channel_begin(&ch);
    CHECK_EQ(conc__auth_connect(&ch, &key, conc_now() + 15 * test_slow()), 0);
    conc__channel_close(&ch);
  }
  close(flood);
  end(&s);
}

/* --- machines that vanish --- */

static int tcp_option(int fd, int option) {
  int value = -1;
  socklen_t size = (socklen_t)sizeof value;
  getsockopt(fd, IPPROTO_TCP, option, &value, &size);
  return value;
}

TEST(both_sides_ask_whether_the_other_lives) {
  static diary d;
  served s = nobody();
  conc__peer *p;
  int at = 0;
  keep_diary(&s, &d);
  s.server.keepalive = 120;
  serve_queue(&s, conc_queue_new(NULL));
  s.client = client_of(&s);
  CHECK_EQ(conc_manager_connect(&s.client, 5 * test_slow()), 0);
  p = peer_of(&s);
  if (CONC__TCP_KEEPIDLE < 0 || CONC__TCP_KEEPCNT < 0)
    SKIP("the system cannot be told how long");
  CHECK_EQ(tcp_option(p->channel.fd, CONC__TCP_KEEPIDLE), 30);
  CHECK_EQ(tcp_option(p->channel.fd, CONC__TCP_KEEPINTVL), 10);
  CHECK_EQ(tcp_option(p->channel.fd, CONC__TCP_KEEPCNT), 3);
  read_diary(&d, CONC_MANAGER_CONNECT, &at);
  CHECK_EQ(tcp_option(d.fd, CONC__TCP_KEEPIDLE), 60);
  CHECK_EQ(tcp_option(d.fd, CONC__TCP_KEEPINTVL), 20);
  if (CONC__TCP_USER_TIMEOUT >= 0)
    CHECK_EQ(tcp_option(d.fd, CONC__TCP_USER_TIMEOUT), 120000);
  conc__peer_close(p);
  end(&s);
}

/* The network goes away under a connection that has a message which is not
   confirmed: within its time the message is back. */
TEST(a_machine_that_has_vanished_is_noticed) {
#ifdef __linux__
  static diary d;
  served s = nobody();
  const conc_manager_report *e;
  char byte;
  int at = 0;
  if (TEST_TSAN) SKIP("it needs a network of its own");
  if (geteuid() != 0 || unshare(CLONE_NEWNET) != 0)
    SKIP("it needs a network of its own, and so root");
  if (system("ip link set lo up 2>/dev/null") != 0) SKIP("there is no ip(8)");
  keep_diary(&s, &d);
  s.server.keepalive = 3;
  serve_queue(&s, conc_queue_new(NULL));
  CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
  CHECK_EQ(conc_get(join_as_client(&s, &s.client), &byte, 1, 5), 1);
  CHECK_EQ(system("ip link set lo down"), 0);
  do e = read_diary(&d, CONC_MANAGER_LEAVE, &at);
  while (!says(e, "goes back"));
  CHECK(e->error == -ETIMEDOUT || e->error == -EHOSTUNREACH ||
        e->error == -ENETUNREACH);
  CHECK_EQ(conc_get(s.queue, &byte, 1, 5), 1);
  end(&s);
#else
  SKIP("it needs a network of its own");
#endif
}

/* --- connections that come at once --- */

#define COMERS 64

typedef struct comer {
  conc_task task;
  conc_manager client;
} comer;

static conc_event comers_held, comers_go;

/* The server accepts nobody meanwhile. */
static void hold_comers(conc_manager *m, const conc_manager_report *e,
                        void *arg) {
  (void)m, (void)arg;
  if (e->kind != CONC_MANAGER_CONNECT) return;
  conc_event_set(&comers_held);
  while (!conc_event_is_set(&comers_go)) usleep(1000); /* all of the loop */
}

static void *come(void *arg) {
  static int ok, failed;
  comer *c = (comer *)arg;
  if (conc_manager_connect(&c->client, 60 * test_slow()) != 0) return &failed;
  return conc_manager_shutdown(&c->client) == 0 ? &ok : &failed;
}

/* How many connections Linux has dropped that had no place in a line, ever;
   -1: it does not tell. */
static long forgotten_connections(void) {
  static char names[4096], numbers[4096];
  char *name, *number, *more[2];
  FILE *f = fopen("/proc/net/netstat", "r");
  long n = -1;
  if (f == NULL) return -1;
  if (fgets(names, sizeof names, f) && fgets(numbers, sizeof numbers, f)) {
    name = strtok_r(names, " ", &more[0]);
    number = strtok_r(numbers, " ", &more[1]);
    while (name != NULL && number != NULL) {
      if (strcmp(name, "ListenOverflows") == 0) n = atol(number);
      name = strtok_r(NULL, " ", &more[0]);
      number = strtok_r(NULL, " ", &more[1]);
    }
  }
  fclose(f);
  return n;
}

/* Python's servers up to 3.12 have a line of 16. What has no place there is
   dropped, though the client believes that it is connected. */
TEST(a_connection_that_the_servers_system_has_forgotten_is_made_anew) {
  static comer comers[COMERS];
  served s = nobody();
  long before = forgotten_connections();
  double until = conc_now() + 5;
  in_line = 1;
  s.server.log = hold_comers;
  serve_queue(&s, conc_queue_new(NULL));
  in_line = 0;
  if (before < 0 || CONC__TCP_KEEPIDLE < 0)
    SKIP("the system does not tell what it has forgotten");
  for (int i = 0; i < COMERS; i++) {
    comers[i].client = client_of(&s);
    start(conc_thread_start, &comers[i].task, come, &comers[i]);
    if (i == 0) CHECK_EQ(conc_event_wait(&comers_held, 20 * test_slow()), 0);
  }
  while (forgotten_connections() < before + COMERS / 4 && conc_now() < until)
    conc_sleep(0.01);
  conc_event_set(&comers_go);
  for (int i = 0; i < COMERS; i++) {
    CHECK_EQ(conc_join(&comers[i].task, 25 * test_slow()), 0);
    CHECK_EQ(*(int *)conc_result(&comers[i].task), 0);
  }
  end(&s);
}

/* --- the end with a deadline --- */

static void *shut_down(void *arg) {
  static int rc;
  rc = conc_manager_shutdown((conc_manager *)arg);
  return &rc;
}

static int ended(conc_task *t) {
  CHECK_EQ(conc_join(t, 20 * test_slow()), 0);
  return *(int *)conc_result(t);
}

TEST(a_server_ends_when_its_clients_have_all_that_there_is) {
  static diary d;
  served s = nobody();
  conc_manager late;
  conc_task t;
  conc_queue *q;
  char buf[8], address[64];
  int at = 0;
  keep_diary(&s, &d);
  s.server.drain = 60;
  s.server.address = private_address();
  serve_queue(&s, conc_queue_new(NULL));
  q = join_as_client(&s, &s.client);
  late = client_of(&s);
  snprintf(address, sizeof address, "%s", late.address);
  late.address = address;
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_put(s.queue, "abc", 3, 1), 0);
  start(conc_thread_start, &t, shut_down, &s.server);
  read_diary(&d, CONC_MANAGER_DRAIN, &at);
  CHECK_EQ(conc_manager_connect(&late, 5), -ECONNREFUSED);
  CHECK_EQ(conc_get(q, buf, 8, 5), 3);
  CHECK_EQ(conc_put(q, "abcd", 4, 5), 0); /* puts go on, too */
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_get(q, buf, 8, 5), 3);
  CHECK_EQ(conc_get(q, buf, 8, 5), 4);
  /* The last one is not confirmed yet. */
  CHECK_EQ(conc_join(&t, 0.1), -ETIMEDOUT);
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(ended(&t), 0);
  CHECK_EQ(read_diary(&d, CONC_MANAGER_END, &at)->error, 0);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  conc_queue_free(s.queue);
}

TEST(a_server_does_not_wait_for_longer_than_it_is_told_to) {
  static diary d;
  served s = nobody();
  conc_task t;
  double began;
  int at = 0;
  keep_diary(&s, &d);
  s.server.drain = 0.2;
  serve_queue(&s, conc_queue_new(NULL));
  join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(s.queue, "abc", 3, 1), 0);
  began = conc_now();
  start(conc_thread_start, &t, shut_down, &s.server);
  CHECK_EQ(ended(&t), -ETIMEDOUT);
  CHECK(conc_now() - began >= 0.2);
  CHECK_EQ(read_diary(&d, CONC_MANAGER_END, &at)->error, -ETIMEDOUT);
  CHECK_EQ(conc_qsize(s.queue), 1);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  conc_queue_free(s.queue);
}

TEST(without_clients_nothing_is_waited_for) {
  served s = nobody();
  conc_task t;
  s.server.drain = 600;
  serve_queue(&s, conc_queue_new(NULL));
  join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(s.queue, "abc", 3, 1), 0);
  start(conc_thread_start, &t, shut_down, &s.server);
  CHECK_EQ(conc_join(&t, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  CHECK_EQ(ended(&t), 0);
  CHECK_EQ(conc_qsize(s.queue), 1);
  conc_queue_free(s.queue);
}

/* --- the file of a unix socket --- */

static char socket_path[80];
static int looks;

static int mode_of(const char *path) {
  struct stat st;
  return lstat(path, &st) == 0 ? (int)(st.st_mode & 0777) : -1;
}

/* Whether a process of another user may connect; negative errno. */
static int connect_as_nobody(void) {
  int status = 0;
  pid_t pid = fork();
  if (pid == 0) {
    struct sockaddr_un un;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(&un, 0, sizeof un);
    un.sun_family = AF_UNIX;
    snprintf(un.sun_path, sizeof un.sun_path, "%s", socket_path);
    if (setuid(65534) != 0) _exit(98);
    _exit(connect(fd, (struct sockaddr *)&un, sizeof un) == 0 ? 0 : errno);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 98);
  return -WEXITSTATUS(status);
}

static void look(void) {
  looks++;
  CHECK_EQ(mode_of(socket_path), 0600);
  if (geteuid() == 0) CHECK(connect_as_nobody() < 0);
}

TEST(the_file_of_a_unix_socket_has_its_mode_before_anyone_can_connect) {
  static const unsigned modes[] = {0600, 0660, 0666, 0};
  const mode_t old = umask(0);
  conc_manager m = {.no_auth = true};
  snprintf(socket_path, sizeof socket_path, "/tmp/conc-limits-%d.sock",
           (int)getpid());
  m.address = socket_path;
  m.mode = 0600;
  before_listen = look;
  CHECK_EQ(conc_manager_start(&m), 0);
  CHECK_EQ(looks, 1);
  before_listen = NULL;
  if (geteuid() == 0 && !TEST_TSAN)
    CHECK_EQ(connect_as_nobody(), -EACCES);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  /* Whatever the umask takes away. */
  umask(0077);
  for (int i = 0; modes[i] != 0; i++) {
    m.mode = modes[i];
    CHECK_EQ(conc_manager_start(&m), 0);
    CHECK_EQ(mode_of(socket_path), modes[i]);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
  }
  /* And by default what it leaves. */
  m.mode = 0;
  umask(0027);
  CHECK_EQ(conc_manager_start(&m), 0);
  CHECK_EQ(mode_of(socket_path), 0750);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  umask(old);
  m.mode = 01777;
  CHECK_EQ(conc_manager_start(&m), -EINVAL);
  m.mode = 0600;
  m.address = "127.0.0.1:0";
  CHECK_EQ(conc_manager_start(&m), -EINVAL);
  CHECK(m.state == NULL);
}

TEST_MAIN
