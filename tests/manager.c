/* The manager against itself and against peers that do not keep to the
   protocol: before and after the handshake. From inside, for the handshake. */
#include "inside.h"
#include "idle.h"
#include "served.h"
#include "tasks.h"

#include <sys/ioctl.h>

/* How many malformed frames: MANAGER_FRAMES, or a number that is soon done. */
static int frames(int usual) {
  return (int)test_asked("MANAGER_FRAMES", usual);
}

static void serve_with(served *s, double handshake_timeout, size_t max) {
  *s = nobody();
  s->server.max_message = max;
  s->server.handshake_timeout = handshake_timeout;
  serve_queue(s, conc_queue_new(NULL));
}

static void serve(served *s, double handshake_timeout) {
  serve_with(s, handshake_timeout, 0);
}

/* A server and a client in one process, and every call of a queue at the
   client's end: each must return what it does for a local one. */
TEST(a_proxy_is_a_queue_like_any_other) {
  served s;
  conc_manager m;
  conc_queue *q;
  conc_value *v;
  const conc_value *part;
  char buf[16];
  int n = 0;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  CHECK(conc_manager_get(&m, "q") == q);
  CHECK(conc_manager_get(&m, "other") == NULL && errno == ENOENT);
  CHECK_EQ(conc_get(q, buf, 16, 0), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, buf, 16, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, "bytes", 5, CONC_FOREVER), 0);
  CHECK_EQ(conc_put_build(q, 1, "(is)", 7, "seven"), 0);
  CHECK_EQ(conc_qsize(q), 2);
  CHECK_EQ(conc_get(q, buf, 2, 1), -EMSGSIZE); /* it stays */
  CHECK_EQ(conc_get(q, buf, 16, 20), 5);
  CHECK_EQ(conc_get(q, buf, 16, 1), -EBADMSG); /* so does this */
  CHECK_EQ(conc_get_value(q, &v, 20), 0);
  CHECK_EQ(conc_parse(v, "(iO)", &n, &part), 0);
  CHECK_EQ(n, 7);
  conc_value_free(v);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 5), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* Whose buffers are given back each time. */
TEST(a_connection_is_used_again_after_a_large_message) {
  enum { LARGE = 300000 };
  char *data = (char *)calloc(1, LARGE);
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 0; i < 5; i++) {
    data[LARGE - 1] = (char)i;
    CHECK_EQ(conc_put(q, data, LARGE, 5), 0);
    data[LARGE - 1] = -1;
    CHECK_EQ(conc_get(q, data, LARGE, 5), LARGE);
    CHECK_EQ(data[LARGE - 1], i);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
  free(data);
}

TEST(a_wrong_key_is_refused_on_either_side_and_the_server_goes_on) {
  served s;
  conc_manager m, wrong;
  serve(&s, 0);
  for (int i = 0; i < 20; i++) {
    memset(&wrong, 0, sizeof wrong);
    wrong.address = conc_manager_address(&s.server);
    wrong.authkey = i % 2 ? "abd" : "";
    CHECK_EQ(conc_manager_connect(&wrong, 5), -EACCES);
  }
  CHECK_EQ(conc_put(join_as_client(&s, &m), "x", 1, 20), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(many_are_moved_through_a_manager) {
  served s;
  conc_manager m;
  conc_queue *q;
  int in[5] = {1, 2, 3, 4, 5}, out[5] = {0};
  char text[8];
  serve(&s, 0);
  q = join_as_client(&s, &m);
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 5, 20), 5);
  CHECK_EQ(conc_put_build(q, 1, "s", "sixth"), 0);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 2, 20), 2);
  CHECK_EQ(conc_get_many(q, out + 2, sizeof *out, 5, 20), 3);
  CHECK(memcmp(in, out, sizeof in) == 0);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, 5, 1), -EMSGSIZE);
  CHECK_EQ(conc_get_many(q, text, 5, 5, 20), 1); /* it stayed as it was */
  CHECK(memcmp(text, "sixth", 5) == 0);
  CHECK_EQ(conc_get_many(q, text, 5, 5, 0), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(a_connection_that_says_nothing_is_closed) {
  served s;
  char buf[256];
  int fd;
  serve(&s, 0.2);
  fd = conc_connect(conc_manager_address(&s.server), 1);
  CHECK(fd >= 0);
  CHECK(conc_read(fd, buf, sizeof buf, 5) > 0); /* the challenge */
  CHECK_EQ(conc_read(fd, buf, sizeof buf, 10), 0);
  close(fd);
  end(&s);
}

static void *get_one(void *queue) {
  char buf[8];
  CHECK_EQ(conc_get((conc_queue *)queue, buf, 8, 60), 1);
  return NULL;
}

/* It has time for a connection of its own, too. */
TEST(what_is_done_is_joined_at_once_whatever_the_timeout) {
  served s;
  conc_manager m;
  conc_queue *q;
  conc_task t = {.target = get_one};
  int rc = -1;
  serve(&s, 0);
  t.arg = q = join_as_client(&s, &m);
  for (int i = 0; i < 20 && rc != 0; i++) rc = conc_queue_join(q, 0);
  CHECK_EQ(rc, 0);
  CHECK_EQ(conc_thread_start(&t), 0);
  while (!somebody_waits(s.queue)) conc_sleep(1e-3);
  CHECK_EQ(conc_queue_join(q, 2 * test_slow()), 0);
  CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  CHECK_EQ(conc_join(&t, 5), 0);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

static void *get_and_die(void *arg) {
  conc_manager m;
  char buf[8];
  CHECK_EQ(conc_get(join_as_client((served *)arg, &m), buf, 8, 60),
           -ECANCELED);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  return NULL;
}

TEST(a_getter_whose_client_has_gone_takes_no_item) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 0; i < 20; i++) {
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = get_and_die;
    t.arg = &s;
    CHECK_EQ(conc_thread_start(&t), 0);
    while (!somebody_waits(s.queue))
      conc_sleep(0.001); /* until its get waits in the server */
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
    while (somebody_waits(s.queue))
      conc_sleep(0.001); /* until it is taken off */
    CHECK_EQ(conc_put(q, "x", 1, 20), 0);
    CHECK_EQ(conc_get(q, buf, 8, 5), 1);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* A connection for methods; what is written there is up to the test. */
static int raw_connection(conc_manager *client) {
  conc__peer *peer;
  int fd;
  CHECK_EQ(conc__peer_get(client->state, &peer, conc_now() + 5), 0);
  fd = dup(peer->channel.fd);
  /* conc__peer_close would shut it down. */
  conc__fd_close_own(&peer->channel.fd);
  conc__peer_close(peer);
  return fd;
}

/* Writes a request for the queue "q" of the client's server, whose id no test
   knows in advance, into p; `rest` begins with the name of the method. Returns
   its size. */
static size_t raw_request(conc_manager *client, void *p, int protocol,
                          const char *rest, size_t size) {
  const conc__proxy *q = (const conc__proxy *)conc_manager_get(client, "q");
  const char *id = q->ident->text;
  unsigned char *b = (unsigned char *)p;
  const size_t n = strlen(id);
  memcpy(b, "\0\0\0\0\x80\0(X\0\0\0", 12);
  b[3] = (unsigned char)(8 + n + size);
  b[5] = (unsigned char)protocol;
  b[8] = (unsigned char)n;
  memcpy(b + 12, id, n);
  memcpy(b + 12 + n, rest, size);
  CHECK(8 + n + size < 256);
  return 12 + n + size;
}
enum { RAW = 260 };
#define RAW_REQUEST(client, p, protocol, rest)                                \
  raw_request(client, p, protocol, rest, sizeof(rest) - 1)
#define RAW_GET "X\3\0\0\0get)}t."

static bool until_closed(int fd) {
  char buf[64];
  ssize_t n;
  do n = conc_read(fd, buf, sizeof buf, 10);
  while (n > 0);
  return n == 0 || n == -ECONNRESET;
}

/* What was encoded for an old Python, which then did not get it. */
TEST(what_comes_back_is_as_it_was_put) {
  static const char bad[] = "\xff\xff\xff\xf0x"; /* no length */
  served s;
  conc_manager m;
  char buf[8];
  int fd;
  serve(&s, 0);
  join_as_client(&s, &m);
  CHECK_EQ(conc_put(s.queue, "\xff\0x", 3, 1), 0);
  for (int i = 0; i < 2; i++) {
    char both[RAW];
    size_t n = RAW_REQUEST(&m, both, 2, RAW_GET);
    memcpy(both + n, bad, sizeof bad - 1);
    fd = raw_connection(&m);
    CHECK(write(fd, both, n + sizeof bad - 1) > 0);
    CHECK(until_closed(fd));
    close(fd);
    CHECK_EQ(conc_peek_size(s.queue), 3);
  }
  CHECK_EQ(conc_get(s.queue, buf, 8, 5), 3);
  CHECK(memcmp(buf, "\xff\0x", 3) == 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- a server that answers when it is told to --- */

enum { FAKES = 4 };

typedef struct fake_part {
  struct fake *fake;
  int fd;
} fake_part;
typedef struct fake {
  int listener;
  char address[64];
  conc_task task, parts[FAKES];
  int asked;         /* for a message, or to take one */
  conc_event answer; /* is sent, or its second half */
  fake_part part[FAKES];
} fake;

/* A channel of that socket. */
static void channel_init(conc__channel *ch, int fd) {
  memset(ch, 0, sizeof *ch);
  ch->fd = fd;
  conc__channel_begin(ch);
}

static void *fake_serve(void *arg) {
  static const char none[] = "\0\0\0\x12\x80\2(X\7\0\0\0#RETURNNt.";
  static const char id[] =
      "\0\0\0\x1a\x80\2(X\7\0\0\0#RETURN(X\1\0\0\0" "1)tt.";
  static const char item[] = "\0\0\0\x18\x80\3(X\7\0\0\0#RETURNC\5hellot.";
  fake_part *part = (fake_part *)arg;
  fake *f = part->fake;
  conc__key key = {"abc", 3, false};
  const unsigned char *p;
  size_t size;
  conc__channel ch;
  channel_init(&ch, part->fd);
  CHECK_EQ(conc__auth_serve(&ch, &key, conc__deadline(5)), 0);
  while (conc__channel_receive(&ch, 4096, &p, &size, CONC__NEVER) == 0) {
    bool get = memmem(p, size, "get", 3), put = memmem(p, size, "put", 3);
    const char *reply = get ? item : memmem(p, size, "create", 6) ? id : none;
    size_t all = 4 + (size_t)(unsigned char)reply[3];
    size_t half = get ? all / 2 : 0;
    if (half > 0) CHECK_EQ(conc_write(part->fd, reply, half, 5), half);
    if (get || put) {
      __atomic_add_fetch(&f->asked, 1, __ATOMIC_RELEASE);
      CHECK_EQ(conc_event_wait(&f->answer, 20), 0);
    }
    conc_write(part->fd, reply + half, all - half, 5);
  }
  conc__channel_free(&ch);
  conc_close(part->fd);
  return NULL;
}

static void *fake_main(void *arg) {
  fake *f = (fake *)arg;
  int n;
  for (n = 0; (f->part[n].fd = conc_accept(f->listener, CONC_FOREVER)) >= 0;
       n++) {
    CHECK(n < FAKES - 1);
    f->part[n].fake = f;
    f->parts[n].target = fake_serve;
    f->parts[n].arg = &f->part[n];
    CHECK_EQ(conc_thread_start(&f->parts[n]), 0);
  }
  while (n-- > 0) CHECK_EQ(conc_join(&f->parts[n], CONC_FOREVER), 0);
  return NULL;
}

static conc_queue *fake_start(fake *f, conc_manager *client) {
  conc_queue *q;
  memset(f, 0, sizeof *f);
  f->listener = conc_listen(NULL);
  CHECK(f->listener >= 0);
  CHECK(conc_address(f->listener, f->address, sizeof f->address) > 0);
  f->task.target = fake_main;
  f->task.arg = f;
  CHECK_EQ(conc_thread_start(&f->task), 0);
  memset(client, 0, sizeof *client);
  client->address = f->address;
  client->authkey = "abc";
  CHECK_EQ(conc_manager_connect(client, 5), 0);
  q = conc_manager_get(client, "q");
  CHECK(q != NULL);
  return q;
}

static void fake_end(fake *f, conc_manager *client) {
  CHECK_EQ(conc_manager_shutdown(client), 0);
  conc_cancel(&f->task);
  conc_join(&f->task, CONC_FOREVER);
  close(f->listener);
}

static void until_asked(fake *f, int times) {
  while (__atomic_load_n(&f->asked, __ATOMIC_ACQUIRE) < times)
    conc_sleep(1e-4);
}

static void *get_in_vain(void *queue) {
  char buf[8];
  CHECK_EQ(conc_get((conc_queue *)queue, buf, 8, 60), -ECANCELED);
  return NULL;
}

TEST(a_message_of_which_a_cancelled_get_had_a_part_is_the_next_ones) {
  fake f;
  conc_manager m;
  conc_queue *q = fake_start(&f, &m);
  conc_task t = {.target = get_in_vain, .arg = q};
  char buf[8];
  CHECK_EQ(conc_thread_start(&t), 0);
  until_asked(&f, 1);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  conc_event_set(&f.answer);
  CHECK_EQ(conc_get(q, buf, 8, 5), 5);
  CHECK(memcmp(buf, "hello", 5) == 0);
  CHECK_EQ(f.asked, 1);
  fake_end(&f, &m);
}

/* A request that comes while another one is served that waits, but not in a
   queue of this process. */
TEST(a_request_that_is_sent_ahead_to_a_relay_is_answered) {
  fake f;
  conc_manager m, relay, client;
  conc_queue *q = fake_start(&f, &m);
  char reply[64], put[RAW];
  size_t size, n;
  int fd;
  memset(&relay, 0, sizeof relay);
  relay.no_auth = true;
  CHECK_EQ(conc_manager_register_queue(&relay, "q", q), 0);
  CHECK_EQ(conc_manager_start(&relay), 0);
  memset(&client, 0, sizeof client);
  client.address = conc_manager_address(&relay);
  CHECK_EQ(conc_manager_connect(&client, 5), 0);
  fd = raw_connection(&client);
  n = RAW_REQUEST(&client, put, 4, "X\3\0\0\0putK\7\x85}t.");
  CHECK_EQ(conc_write(fd, put, n, 5), n);
  until_asked(&f, 1);
  CHECK_EQ(conc_write(fd, put, n, 5), n);
  conc_sleep(0.05); /* it comes, or not: either is to be answered */
  conc_event_set(&f.answer);
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_read_exactly(fd, reply, 4, 10), 4);
    size = (size_t)(unsigned char)reply[3];
    CHECK_EQ(conc_read_exactly(fd, reply, size, 10), size);
  }
  close(fd);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&relay), 0);
  fake_end(&f, &m);
}

/* The getter is taken off its list, the client goes, and then the getter is
   woken: too late to be cancelled. */
TEST(a_getter_whose_client_has_just_gone_takes_no_item) {
  served s;
  conc_manager m;
  char buf[8], get[RAW];
  size_t n;
  serve(&s, 0);
  join_as_client(&s, &m);
  n = RAW_REQUEST(&m, get, 4, RAW_GET);
  for (int i = 0; i < 50; i++) {
    int fd = raw_connection(&m);
    conc__mutex *guard = conc__fifo_put_guard(AS_FIFO(s.queue));
    conc__waiter *w;
    CHECK_EQ(conc_write(fd, get, n, 5), n);
    while (!somebody_waits(s.queue)) sched_yield();
    conc__mutex_lock(guard);
    w = conc__waitlist_take(&AS_FIFO(s.queue)->getters);
    conc__mutex_unlock(guard);
    CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
    close(fd);
    if (i % 2) conc_sleep(1e-3); /* the server may see it before */
    conc__wake_all(w);
    CHECK_EQ(conc_get(s.queue, buf, 8, 5), 1);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

static void send_and_leave(int fd, const unsigned char *p, size_t n) {
  char buf[512];
  ssize_t got;
  CHECK(n == 0 || send(fd, p, n, MSG_NOSIGNAL) >= 0 || errno == EPIPE ||
        errno == ECONNRESET);
  shutdown(fd, SHUT_WR);
  do got = conc_read(fd, buf, sizeof buf, 10); /* until it is closed */
  while (got > 0);
  if (got == -ETIMEDOUT) {
    printf("not closed after:");
    for (size_t i = 0; i < n; i++) printf(" %02x", p[i]);
    printf("\n");
  }
  CHECK(got == 0 || got == -ECONNRESET);
  close(fd);
}

/* A server that ends takes back what its client has not read. */
TEST(what_a_client_does_not_read_is_there_when_the_server_has_ended) {
  enum { LARGE = 8 << 20 };
  char *data = (char *)calloc(1, LARGE), get[RAW];
  size_t n;
  served s;
  conc_manager m;
  int fd;
  serve(&s, 0);
  join_as_client(&s, &m);
  CHECK_EQ(conc_put(s.queue, data, LARGE, 1), 0);
  fd = raw_connection(&m);
  n = RAW_REQUEST(&m, get, 4, RAW_GET);
  CHECK_EQ(conc_write(fd, get, n, 5), n);
  while (conc_qsize(s.queue) > 0) conc_sleep(1e-3);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK_EQ(conc_peek_size(s.queue), LARGE);
  close(fd);
  conc_queue_free(s.queue);
  free(data);
}

/* Nor is a length believed where there is no limit of messages. */
TEST(a_frame_may_claim_any_length) {
  static const unsigned char lengths[][9] = {
      "\xff\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\xff\xff\xff\xff\xf4",
      "\x7f\xff\xff\xff\xff\xff\xff\xff", "\x80\0\0\0\0\0\0\0",
      "\x3f\xff\xff\xff\xff\xff\xff\xff"};
  served s;
  conc_manager m;
  serve_with(&s, 0, SIZE_MAX);
  join_as_client(&s, &m);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    unsigned char p[64];
    int fd = raw_connection(&m);
    memset(p, 'x', sizeof p);
    memset(p, 0xff, 4);
    memcpy(p + 4, lengths[i], 8);
    memcpy(p + 12, "\x80\4B\0\0\0\x10", 7); /* of bytes, so many */
    send_and_leave(fd, p, sizeof p);
  }
  CHECK_EQ(conc_put(conc_manager_get(&m, "q"), "x", 1, 5), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

static void *authenticate(void *fd) {
  conc__key key = {"abc", 3, false};
  conc__channel ch;
  channel_init(&ch, *(int *)fd);
  CHECK_EQ(conc__auth_connect(&ch, &key, conc_now() + 20), 0);
  conc__channel_free(&ch);
  return NULL;
}

/* It costs no trip of its own. */
TEST(a_client_sends_its_challenge_along_with_its_answer) {
  enum { ANSWER = 4 + 8 + 32, ALL = ANSWER + 4 + 11 + CONC__CHALLENGE_SIZE };
  unsigned char p[ALL], answer[4 + CONC__DIGEST_MAX] = {0};
  conc__key key = {"abc", 3, false};
  conc_task t = {.target = authenticate};
  int fds[2], n;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
  t.arg = &fds[1];
  CHECK_EQ(conc_thread_start(&t), 0);
  memset(p, 'r', sizeof p);
  memcpy(p, "\0\0\0\x3b#CHALLENGE#{sha256}", 23);
  CHECK_EQ(conc_write(fds[0], p, 63, 5), 63);
  CHECK_EQ(conc_read_exactly(fds[0], p, ALL, 5), ALL);
  CHECK(memcmp(p + ANSWER, "\0\0\0\x3b#CHALLENGE#", 15) == 0);
  n = conc__auth_answer(&key, p + ANSWER + 15, CONC__CHALLENGE_SIZE,
                        answer + 4);
  answer[3] = (unsigned char)n;
  CHECK_EQ(conc_write(fds[0], "\0\0\0\11#WELCOME#", 13, 5), 13);
  CHECK_EQ(conc_write(fds[0], answer, 4 + (size_t)n, 5), 4 + n);
  CHECK_EQ(conc_join(&t, 20), 0);
  close(fds[0]);
  close(fds[1]);
}

TEST(little_is_read_from_who_has_not_authenticated) {
  conc__channel ch;
  conc__key key = {"abc", 3, false};
  unsigned char p[8192];
  size_t i;
  int fds[2], left = 0;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  for (i = 0; i < sizeof p; i += 64) { /* small frames, none an answer */
    memset(p + i, 'x', 64);
    memcpy(p + i, "\0\0\0\x3c", 4);
  }
  CHECK_EQ(write(fds[0], p, sizeof p), sizeof p);
  channel_init(&ch, fds[1]);
  CHECK_EQ(conc__auth_serve(&ch, &key, conc__deadline(5)), -EACCES);
  CHECK_EQ(ioctl(fds[1], FIONREAD, &left), 0);
  CHECK(left >= (int)sizeof p - 1024);
  conc__channel_free(&ch);
  /* Nor is a length believed. */
  channel_init(&ch, fds[1]);
  while (left > 0) left -= (int)read(fds[1], p, sizeof p);
  CHECK_EQ(write(fds[0], "\0\1\0\0", 4), 4);
  CHECK(conc__auth_serve(&ch, &key, conc__deadline(5)) < 0);
  CHECK(ch.in.capacity <= 1024);
  conc__channel_free(&ch);
  close(fds[0]);
  close(fds[1]);
}

TEST(the_default_options_are_as_documented) {
  served s;
  serve(&s, 0);
  CHECK(s.server.state->handshake_timeout == 5.0);
  CHECK_EQ(s.server.state->max_message, (size_t)64 << 20);
  end(&s);
}

/* --- malformed frames ----------------------------------------------------- */

/* A frame that may be cut off, too long, changed in a bit, or anything. */
static size_t malform(unsigned char *p, size_t size, int how) {
  size_t i;
  switch (how) {
    case 0: return test_random() % size; /* truncated */
    case 1: /* oversized */
      p[test_random() % 4] = (unsigned char)test_random();
      return size;
    case 2: /* bit-flipped */
      p[test_random() % size] ^= (unsigned char)(1u << test_random() % 8);
      return size;
    default: /* random */
      size = 1 + test_random() % 200;
      for (i = 0; i < size; i++) p[i] = (unsigned char)test_random();
      if (test_random() % 2) memcpy(p, "\0\0\0", 3);
      return size;
  }
}

TEST(malformed_frames_before_the_handshake_disturb_nobody) {
  static const unsigned char answer[] =
      "\0\0\0\x28{sha256}0123456789abcdef0123456789abcdef";
  unsigned char p[256];
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 0; i < frames(4000); i++) {
    int fd = conc_connect(conc_manager_address(&s.server), 5);
    CHECK(fd >= 0);
    memcpy(p, answer, sizeof answer - 1);
    send_and_leave(fd, p, malform(p, sizeof answer - 1, i % 4));
    if (i % 100 == 0) CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

TEST(malformed_frames_after_the_handshake_disturb_nobody) {
  unsigned char p[RAW], request[RAW];
  size_t n;
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  n = RAW_REQUEST(&m, request, 4, "X\3\0\0\0put(]K\1aK\2t}t.");
  for (int i = 0; i < frames(6000); i++) {
    conc__peer *peer;
    size_t size = n;
    CHECK_EQ(conc__peer_get(m.state, &peer, conc_now() + 5), 0);
    memcpy(p, request, size);
    size = malform(p, size, i % 4);
    send_and_leave(dup(peer->channel.fd), p, size);
    conc__peer_close(peer);
    if (i % 100 == 0) CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- waits at a server --- */

static void *get_idly(void *arg) {
  char c;
  CHECK_EQ(conc_get((conc_queue *)arg, &c, 1, CONC_FOREVER), -ECANCELED);
  return arg;
}
static void *wait_idly(void *arg) {
  CHECK_EQ(conc_event_wait((conc_event *)arg, 60), -ECANCELED);
  return arg;
}
/* What two tasks spend that wait for what a server has, and the server. */
static void idle_at_server(int (*how)(conc_task *), conc_queue *proxy,
                           conc_event *event) {
  conc_task getter, waiter;
  double spent;
  start(how, &getter, get_idly, proxy);
  start(how, &waiter, wait_idly, event);
  spent = spent_idly(idle_limit());
  CHECK_EQ(conc_cancel(&getter), 0);
  CHECK_EQ(conc_join(&getter, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_cancel(&waiter), 0);
  CHECK_EQ(conc_join(&waiter, CONC_FOREVER), -ECANCELED);
  if (spent > idle_limit())
    TEST_FAIL("a second's wait took %.3f s of the CPU", spent);
}
static conc_queue *idle_proxy;
static conc_event *idle_event;
static void *idle_coroutines(void *arg) {
  idle_at_server(conc_coro_start, idle_proxy, idle_event);
  return arg;
}
TEST(tasks_that_wait_for_a_server_take_no_time) {
  conc_manager server, client;
  conc_queue *q = conc_queue_new(NULL);
  conc_event unset;
  if (TEST_TSAN || TEST_ASAN || test_wrapped("valgrind"))
    SKIP("a tool's own threads take some");
  memset(&server, 0, sizeof server);
  memset(&client, 0, sizeof client);
  memset(&unset, 0, sizeof unset);
  CHECK(q != NULL);
  server.address = "127.0.0.1:0";
  server.authkey = client.authkey = "abc";
  CHECK_EQ(conc_manager_register_queue(&server, "queue", q), 0);
  CHECK_EQ(conc_manager_register_event(&server, "event", &unset), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  client.address = conc_manager_address(&server);
  CHECK_EQ(conc_manager_connect(&client, 60), 0);
  idle_proxy = conc_manager_get(&client, "queue");
  idle_event = conc_manager_event(&client, "event");
  CHECK(idle_proxy != NULL && idle_event != NULL);
  idle_at_server(conc_thread_start, idle_proxy, idle_event);
  run(idle_coroutines, NULL);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  conc_queue_free(q);
}

TEST_MAIN
