/* A manager's server and peers that mean it ill, or mean it well and are many:
   what one client may cost the others, what may be asked without the key, what
   is told to whom, and what is left on the disk and in children. */
#include "test.h"

/* Allocations of exactly so many bytes: copies of a message. */
static size_t copy_size; /* atomic, both */
static int copies;

static void *malloc_noting(size_t size) {
  if (size == LOAD(copy_size)) __atomic_add_fetch(&copies, 1, __ATOMIC_RELAXED);
  return test_malloc(size);
}

/* The yields of threads that work beside a loop. */
#include <sched.h>
static int ways_given; /* atomic */
static int note_yield(void);
#define sched_yield() note_yield()

#define CONC_MALLOC(n) malloc_noting(n)
#define CONC_REALLOC(p, n) test_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#include "inside.h"
#include "served.h"

#include <dirent.h>
#include <sys/resource.h>

static int note_yield(void) {
  if (conc__this.gives_way)
    __atomic_add_fetch(&ways_given, 1, __ATOMIC_RELAXED);
  return (sched_yield)();
}

/* `s` is zeroed, or has options. */
static void serve(served *s) {
  serve_queue(s, conc_queue_new(NULL));
  /* So that the id of "q" is known to the requests below. */
  memset(s->server.state->server.number, 0, 6);
}

/* --- keys --- */

TEST(a_server_without_a_key_does_not_start_unless_that_is_meant) {
  static const char *const addresses[] = {NULL, "", ":0", "127.0.0.1:0", "0"};
  char path[64];
  conc_manager m, c;
  for (size_t i = 0; i < 5; i++) {
    memset(&m, 0, sizeof m);
    m.address = addresses[i];
    CHECK_EQ(conc_manager_start(&m), -EINVAL);
    CHECK_EQ(conc_manager_serve_forever(&m), -EINVAL);
    m.authkey = "";
    CHECK_EQ(conc_manager_start(&m), -EINVAL);
    CHECK(m.state == NULL);
    m.no_auth = true;
    CHECK_EQ(conc_manager_start(&m), 0);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
  }
  snprintf(path, sizeof path, "/tmp/conc-server-%d.sock", (int)getpid());
  memset(&m, 0, sizeof m);
  memset(&c, 0, sizeof c);
  m.address = c.address = path;
  CHECK_EQ(conc_manager_start(&m), 0);
  CHECK_EQ(conc_manager_connect(&c, 5), 0);
  CHECK_EQ(conc_manager_shutdown(&c), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  m.authkey_size = c.authkey_size = 3; /* of nothing */
  CHECK_EQ(conc_manager_start(&m), -EINVAL);
  CHECK_EQ(conc_manager_connect(&c, 1), -EINVAL);
}

TEST(random_keys_differ_and_are_texts) {
  char a[65], b[65], odd[34];
  served s = nobody();
  CHECK_EQ(conc_manager_random_key(a, 32), -EINVAL);
  CHECK_EQ(a[0], 0);
  CHECK_EQ(conc_manager_random_key(a, 0), -EINVAL);
  CHECK_EQ(conc_manager_random_key(a, sizeof a), 0);
  CHECK_EQ(conc_manager_random_key(b, sizeof b), 0);
  CHECK_EQ(conc_manager_random_key(odd, sizeof odd), 0);
  CHECK_EQ(strspn(a, "0123456789abcdef"), 64);
  CHECK_EQ(strspn(b, "0123456789abcdef"), 64);
  CHECK_EQ(strspn(odd, "0123456789abcdef"), 33);
  CHECK(a[64] == 0 && odd[33] == 0 && strcmp(a, b) != 0);
  s.server.authkey = a;
  serve(&s);
  s.client = client_of(&s);
  CHECK_EQ(conc_manager_connect(&s.client, 5), -EACCES);
  s.client.authkey = a;
  CHECK_EQ(conc_manager_connect(&s.client, 5), 0);
  end(&s);
}

/* A server without the key that lets others answer for it. */
typedef struct thief {
  int listener;
  char address[64];
} thief;

static void thief_open(thief *t) {
  t->listener = conc_listen(NULL);
  CHECK(t->listener >= 0);
  CHECK(conc_address(t->listener, t->address, sizeof t->address) > 0);
}

typedef struct victim {
  conc_task task;
  conc_manager m;
  int rc;
} victim;

static void *connect_to_it(void *arg) {
  victim *v = (victim *)arg;
  v->rc = conc_manager_connect(&v->m, 10 * test_slow());
  return NULL;
}

static void victim_start(victim *v, const char *address) {
  memset(v, 0, sizeof *v);
  v->m.address = address;
  v->m.authkey = "abc";
  v->task.target = connect_to_it;
  v->task.arg = v;
  CHECK_EQ(conc_thread_start(&v->task), 0);
}

static size_t receive(int fd, char *buf) {
  size_t size;
  CHECK_EQ(conc_read_exactly(fd, buf, 4, 10), 4);
  size = (size_t)(unsigned char)buf[3];
  CHECK_EQ(conc_read_exactly(fd, buf + 4, size, 10), (ssize_t)size);
  return size + 4;
}

TEST(a_process_does_not_answer_its_own_challenge) {
  char buf[300], challenge[300];
  size_t n;
  victim a, b;
  thief t;
  int first, second;
  thief_open(&t);
  victim_start(&a, t.address);
  first = conc_accept(t.listener, 5);
  memcpy(buf, "\0\0\0\x1f#CHALLENGE#01234567890123456789", 35);
  CHECK_EQ(conc_write(first, buf, 35, 5), 35);
  receive(first, buf); /* its answer: whatever that is, it is welcome */
  CHECK_EQ(conc_write(first, "\0\0\0\11#WELCOME#", 13, 5), 13);
  n = receive(first, challenge);
  /* Now it should show that it knows the key; another client does. */
  victim_start(&b, t.address);
  second = conc_accept(t.listener, 5);
  CHECK_EQ(conc_write(second, challenge, n, 5), (ssize_t)n);
  CHECK_EQ(conc_read(second, buf, sizeof buf, 10), 0); /* it says nothing */
  CHECK_EQ(conc_join(&b.task, 10), 0);
  CHECK_EQ(b.rc, -EACCES);
  close(first), close(second), close(t.listener);
  CHECK_EQ(conc_join(&a.task, 10), 0);
  CHECK(a.rc < 0);
}

TEST(a_process_does_not_answer_its_own_server_for_another) {
  char challenge[300];
  size_t n;
  served s = nobody();
  victim a;
  thief t;
  int with_server, with_client;
  serve(&s);
  join_as_client(&s, &s.client); /* by itself it may */
  thief_open(&t);
  with_server = conc_connect(conc_manager_address(&s.server), 5);
  n = receive(with_server, challenge);
  victim_start(&a, t.address);
  with_client = conc_accept(t.listener, 5);
  CHECK_EQ(conc_write(with_client, challenge, n, 5), (ssize_t)n);
  CHECK_EQ(conc_read(with_client, challenge, sizeof challenge, 10), 0);
  CHECK_EQ(conc_join(&a.task, 10), 0);
  CHECK_EQ(a.rc, -EACCES);
  close(with_server), close(with_client), close(t.listener);
  end(&s);
}

/* --- those that have not shown a key --- */

TEST(silent_connections_take_no_clients_place) {
  served s = nobody();
  conc_manager second, third;
  int silent[3];
  s.server.max_clients = 2;
  s.server.handshake_timeout = 60;
  serve(&s);
  for (int i = 0; i < 3; i++) {
    char buf[256];
    silent[i] = conc_connect(conc_manager_address(&s.server), 5);
    CHECK(conc_read(silent[i], buf, sizeof buf, 5) > 0); /* it was accepted */
  }
  CHECK_EQ(conc_put(join_as_client(&s, &s.client), "x", 1, 5), 0);
  second = third = client_of(&s);
  CHECK_EQ(conc_manager_connect(&second, 10), 0);
  CHECK_EQ(conc_manager_connect(&third, 0.1), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&second), 0);
  CHECK_EQ(conc_manager_connect(&third, 10), 0);
  CHECK_EQ(conc_manager_shutdown(&third), 0);
  for (int i = 0; i < 3; i++) close(silent[i]);
  end(&s);
}

/* All are let in at one moment, and one has the place. */
TEST(those_that_authenticate_at_one_moment_have_the_places_one_by_one) {
  enum { MANY = 6 };
  served s = nobody();
  victim v[MANY];
  int done = 0;
  s.server.max_clients = 1;
  serve(&s);
  for (int i = 0; i < MANY; i++)
    victim_start(&v[i], conc_manager_address(&s.server));
  while (done < MANY) {
    done = 0;
    for (int i = 0; i < MANY; i++) {
      if (conc_join(&v[i].task, 0) != 0) continue;
      done++;
      CHECK_EQ(v[i].rc, 0);
      if (v[i].m.state != NULL) CHECK_EQ(conc_manager_shutdown(&v[i].m), 0);
    }
    conc_sleep(1e-3);
  }
  end(&s);
}

TEST(an_old_silent_connection_makes_room_for_a_client) {
  served s = nobody();
  char buf[256];
  int silent[2];
  s.server.max_handshakes = 2;
  s.server.handshake_timeout = 600;
  serve(&s);
  for (int i = 0; i < 2; i++) {
    silent[i] = conc_connect(conc_manager_address(&s.server), 5);
    CHECK(conc_read(silent[i], buf, sizeof buf, 5) > 0);
  }
  CHECK_EQ(conc_put(join_as_client(&s, &s.client), "x", 1, 5), 0);
  CHECK_EQ(conc_read(silent[0], buf, sizeof buf, 10), 0);
  close(silent[0]), close(silent[1]);
  end(&s);
}

/* A server that cannot accept does not burn the CPU or forget its clients. */
TEST(a_server_without_descriptors_goes_on_with_its_clients) {
  served s = nobody();
  conc_queue *q;
  struct rlimit old, low;
  int spare[64], waiting[8], n = 0;
  struct timespec before, after;
  double used;
  serve(&s);
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  for (int i = 0; i < 8; i++) {
    waiting[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(waiting[i] >= 0);
  }
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  low = old;
  low.rlim_cur = 64;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  while (n < 64 && (spare[n] = open("/dev/null", O_RDONLY)) >= 0) n++;
  for (int i = 0; i < 8; i++) {
    struct sockaddr_storage a;
    socklen_t size = (socklen_t)sizeof a;
    CHECK_EQ(getsockname(s.server.state->server.listener,
                         (struct sockaddr *)&a, &size), 0);
    CHECK_EQ(connect(waiting[i], (struct sockaddr *)&a, size), 0);
  }
  CHECK_EQ(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before), 0);
  for (int i = 0; i < 10; i++) {
    char buf[4];
    CHECK_EQ(conc_put(q, "y", 1, 5), 0);
    CHECK_EQ(conc_get(q, buf, 4, 5), 1);
    conc_sleep(0.02);
  }
  CHECK_EQ(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after), 0);
  used = (double)(after.tv_sec - before.tv_sec) +
         (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
  CHECK(used < 0.15 * test_slow());
  while (n > 0) close(spare[--n]);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  for (int i = 0; i < 8; i++) { /* they are heard now */
    char buf[256];
    CHECK(conc_read(waiting[i], buf, sizeof buf, 10) > 0);
    close(waiting[i]);
  }
  end(&s);
}

/* --- requests, one by one --- */

static conc__peer *peer_of(served *s) {
  conc__peer *p;
  CHECK_EQ(conc__peer_get(s->client.state, &p, conc_now() + 5), 0);
  return p;
}

/* Sends a request, and returns the kind of its reply; the text of its value
   goes to `text`. NULL: the connection was closed. */
static const char *ask(conc__peer *p, const void *data, size_t size,
                       char text[400]) {
  static char kind[32];
  const unsigned char *payload;
  const char *word;
  conc_value *v;
  size_t n;
  if (conc__channel_send(&p->channel, data, size, conc_now() + 5) != 0)
    return NULL;
  if (conc__channel_receive(&p->channel, (size_t)1 << 24, &payload, &n,
                            conc_now() + 5) != 0)
    return NULL;
  CHECK_EQ(conc__pickle_decode(payload, n, &conc__pickle_reply_limits, &v,
                               NULL), 0);
  word = conc_value_str(conc_value_item(v, 0), NULL);
  CHECK(word != NULL && strlen(word) < sizeof kind);
  memcpy(kind, word, strlen(word) + 1);
  /* In protocol 2 it is bytes, as Python 2 wants it. */
  word = (const char *)conc_value_bytes(conc_value_item(v, 1), &n);
  if (word != NULL) snprintf(text, 400, "%.*s", (int)n, word);
  else conc_value_text(conc_value_item(v, 1), text, 400);
  CHECK(conc__utf8_valid((unsigned char *)text, strlen(text)));
  conc_value_free(v);
  return kind;
}

/* A request as text of protocol 0 to 2, which is what the tests write. */
#define ASK(p, literal) ask(p, literal, sizeof literal - 1, text)

static bool ends_with(const char *text, const char *tail) {
  size_t n = strlen(text), m = strlen(tail);
  return n >= m && strcmp(text + n - m, tail) == 0;
}

TEST(what_is_no_request_is_answered_and_the_connection_goes_on) {
  served s = nobody();
  char text[400];
  conc__peer *p;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  CHECK(strcmp(ASK(p, "x"), "#TRACEBACK") == 0);
  CHECK(ends_with(text, "this is no pickle\n"));
  CHECK(strcmp(ASK(p, "K\1."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "TypeError: ", 11) == 0);
  CHECK(strcmp(ASK(p, "(K\1K\2t."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "ValueError: not enough values", 29) == 0);
  CHECK(strcmp(ASK(p, "(K\1K\2K\3K\4K\5t."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "ValueError: too many values", 27) == 0);
  CHECK(strcmp(ASK(p, "(NX\3\0\0\0get)}t."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "KeyError", 8) == 0);
  CHECK(strcmp(ASK(p, "(X\1\0\0\0" "1K\1)}t."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "AttributeError", 14) == 0);
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\3\0\0\0getK\1}t."),
               "#TRACEBACK") == 0);
  CHECK(strncmp(text, "TypeError", 9) == 0);
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\3\0\0\0get))t."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "TypeError", 9) == 0);
  /* A list is as good as a tuple, as it is for Python's *args. */
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\3\0\0\0put(K\7l}t."), "#RETURN") == 0);
  /* A NUL does not make another name of it. */
  CHECK(strcmp(ASK(p, "(X\3\0\0\0" "1\0xX\3\0\0\0get)}t."),
               "#TRACEBACK") == 0);
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\5\0\0\0get\0x)}t."),
               "#TRACEBACK") == 0);
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\3\0\0\0get)}t."), "#RETURN") == 0);
  CHECK(strcmp(text, "7") == 0);
  CHECK(ASK(p, "") == NULL); /* EOFError: Python hangs up */
  conc__peer_close(p);
  end(&s);
}

TEST(a_class_that_is_refused_is_named) {
  served s = nobody();
  char text[400];
  conc__peer *p;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\3\0\0\0putcos\nsystem\n)R\x85}t."),
               "#TRACEBACK") == 0);
  CHECK(strcmp(text, "UnpicklingError: only data is accepted, not code: "
                     "os.system\n") == 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  conc__peer_close(p);
  end(&s);
}

/* Each text that shows what a client has sent, with a name of two-byte
   characters at every offset: what is cut must still be a str. */
TEST(no_text_is_cut_in_a_character) {
  static const char *const forms[][2] = {
      {"(X\16\0\0\0" "000000000000.1X", ")}t."}, /* a method */
      {"(X", "X\3\0\0\0get)}t."},  /* an object */
  };
  served s = nobody();
  char text[400], data[400];
  conc__peer *p;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  for (int form = 0; form < 2; form++)
    for (int first = 0; first < 3; first++) {
      size_t n = form == 0 ? 21 : 2, name = (size_t)first + 120;
      memcpy(data, forms[form][0], n);
      memcpy(data + n, "\0\0\0\0", 4);
      data[n] = (char)name;
      n += 4;
      memset(data + n, 'x', (size_t)first);
      for (int i = 0; i < 60; i++)
        memcpy(data + n + first + 2 * i, "\xd1\x8b", 2);
      n += name;
      memcpy(data + n, forms[form][1], form == 0 ? 4 : 12);
      n += form == 0 ? 4 : 12;
      /* ask() looks for halves of characters. */
      CHECK(strcmp(ask(p, data, n, text), "#TRACEBACK") == 0);
      CHECK(strstr(text, "\xd1\x8b") != NULL && ends_with(text, "\n"));
    }
  CHECK_EQ(conc__text_room("abc", 3), 3);
  CHECK_EQ(conc__text_room("ab\xd1\x8b", 3), 2);
  CHECK_EQ(conc__text_room("ab\xd1\x8b", 4), 4);
  CHECK_EQ(conc__text_room("\xf0\x9f\x98\x80z", 3), 0);
  conc__peer_close(p);
  end(&s);
}

/* Calls a function of the server with a request that is written out. */
static const char *call(served *s, const void *data, size_t size, char *text) {
  conc__peer *p;
  const char *kind;
  CHECK_EQ(conc__peer_open(s->client.state, &p, conc_now() + 5), 0);
  kind = ask(p, data, size, text);
  conc__peer_close(p);
  return kind;
}
#define CALL(literal) call(&s, literal, sizeof literal - 1, text)

TEST(functions_of_the_server_count_their_arguments) {
  served s = nobody();
  char text[400];
  serve(&s);
  join_as_client(&s, &s.client);
  CHECK(strcmp(CALL("(NX\6\0\0\0createX\1\0\0\0q\x85}t."), "#RETURN") == 0);
  CHECK(strcmp(CALL("(NX\6\0\0\0createX\1\0\0\0qK\1\x86}t."),
               "#TRACEBACK") == 0);
  CHECK(strcmp(text, "TypeError: q() takes 0 positional arguments but 1 was "
                     "given\n") == 0);
  CHECK(strcmp(CALL("(NX\6\0\0\0createX\1\0\0\0q\x85}X\1\0\0\0kK\1st."),
               "#TRACEBACK") == 0);
  CHECK(strcmp(text, "TypeError: q() got an unexpected keyword argument "
                     "'k'\n") == 0);
  CHECK(strcmp(CALL("(NX\6\0\0\0create)}t."), "#TRACEBACK") == 0);
  CHECK(strcmp(CALL("(NX\6\0\0\0createX\3\0\0\0q\0z\x85}t."),
               "#TRACEBACK") == 0);
  CHECK(strcmp(CALL("(NX\5\0\0\0dummyK\1\x85}t."), "#TRACEBACK") == 0);
  CHECK(strcmp(CALL("(NX\5\0\0\0dummy)}t."), "#RETURN") == 0);
  CHECK(strcmp(CALL("(NX\x11\0\0\0number_of_objects)}t."), "#RETURN") == 0);
  CHECK(strcmp(text, "1") == 0);
  CHECK(strcmp(CALL("(NX\5\0\0\0other)}t."), "#TRACEBACK") == 0);
  CHECK(strcmp(text, "AssertionError: 'other' unrecognized\n") == 0);
  CHECK(strcmp(CALL("x"), "#TRACEBACK") == 0);
  end(&s);
}

TEST(clients_may_end_the_server_unless_that_is_switched_off) {
  served s = nobody();
  char text[400];
  s.server.no_shutdown = true;
  serve(&s);
  join_as_client(&s, &s.client);
  CHECK(strcmp(CALL("(NX\10\0\0\0shutdown)}t."), "#TRACEBACK") == 0);
  CHECK(strncmp(text, "PermissionError", 15) == 0);
  CHECK_EQ(conc_put(conc_manager_get(&s.client, "q"), "x", 1, 5), 0);
  end(&s);
  memset(&s, 0, sizeof s);
  serve(&s);
  join_as_client(&s, &s.client);
  CHECK(strcmp(CALL("(NX\10\0\0\0shutdown)}t."), "#RETURN") == 0);
  CHECK_EQ(conc_join(&s.server.state->server.thread, 10), 0);
  end(&s);
}

TEST(what_can_be_registered_can_be_asked_for) {
  served s = nobody();
  char name[300];
  memset(name, 'n', sizeof name);
  serve(&s);
  name[256] = 0;
  CHECK_EQ(conc_manager_register_queue(&s.server, name, s.queue),
           -ENAMETOOLONG);
  name[255] = 0;
  CHECK_EQ(conc_manager_register_queue(&s.server, name, s.queue), 0);
  CHECK_EQ(conc_manager_register_queue(&s.server, "a\xff", s.queue), -EINVAL);
  CHECK_EQ(conc_manager_register_queue(&s.server, "", s.queue), -EINVAL);
  CHECK_EQ(conc_manager_register_queue(&s.server, NULL, s.queue), -EINVAL);
  CHECK_EQ(conc_manager_register_queue(&s.server, "x", NULL), -EINVAL);
  join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(conc_manager_get(&s.client, name), "x", 1, 5), 0);
  name[255] = 'n', name[256] = 0;
  CHECK(conc_manager_get(&s.client, name) == NULL && errno == ENAMETOOLONG);
  CHECK(conc_manager_get(&s.client, NULL) == NULL && errno == EINVAL);
  end(&s);
}

TEST(a_request_that_is_too_long_is_refused_and_the_connection_goes_on) {
  enum { LONG = 3 << 20 };
  static char data[LONG];
  served s = nobody();
  char text[400];
  conc__peer *p;
  s.server.max_message = 100000;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  CHECK(strcmp(ask(p, data, sizeof data, text), "#ERROR") == 0);
  CHECK(strstr(text, "ValueError") != NULL);
  CHECK(strcmp(ASK(p, "(X\16\0\0\0" "000000000000.1X\5\0\0\0qsize)}t."), "#RETURN") == 0);
  CHECK(strcmp(text, "0") == 0);
  conc__peer_close(p);
  end(&s);
}

TEST(a_queue_that_is_full_or_empty_says_so) {
  conc_queue_opts one = {.capacity = 1};
  static char large[2 << 20];
  conc_queue *full = conc_queue_new(&one), *q;
  served s = nobody();
  serve(&s);
  CHECK_EQ(conc_manager_register_queue(&s.server, "full", full), 0);
  join_as_client(&s, &s.client);
  q = conc_manager_get(&s.client, "full");
  CHECK_EQ(conc_put(q, large, sizeof large, 5), 0);
  CHECK_EQ(conc_put(q, "x", 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, large, sizeof large, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, "x", 1, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, large, sizeof large, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_get(q, large, sizeof large, 5), (ssize_t)sizeof large);
  CHECK_EQ(conc_get(q, large, sizeof large, 0), -ETIMEDOUT);
  end(&s);
  conc_queue_free(full);
}

/* --- what one client costs the others --- */

/* A frame of 2 MiB in pieces of 64 bytes, with the session between them over:
   the bytes move a few times, when the memory doubles, and there is never much
   more of it than has come. */
TEST(a_frame_that_drips_is_not_copied_for_each_drop) {
  enum { FRAME = 2 << 20, DROP = 64 };
  conc__manager_data m;
  conc__client c;
  conc__session s;
  const unsigned char *payload, *before = NULL;
  char drop[DROP] = {0};
  size_t size = 0, sent = 0;
  int fds[2], moves = 0, have;
  memset(&m, 0, sizeof m);
  memset(&c, 0, sizeof c);
  memset(&s, 0, sizeof s);
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  c.channel.fd = fds[1];
  conc__channel_begin(&c.channel);
  s.client = &c;
  s.manager = &m;
  while (sent < FRAME) {
    CHECK_EQ(write(fds[0], sent == 0 ? "\0\x1f\xff\xfc" : drop,
                   sent == 0 ? 4 : DROP), sent == 0 ? 4 : DROP);
    sent += sent == 0 ? 4 : DROP;
    conc__session_lend(&s);
    have = conc__channel_next(&c.channel, FRAME, &payload, &size);
    CHECK_EQ(have, 0);
    CHECK(conc__channel_read(&c.channel, size) > 0);
    conc__session_return(&s);
    CHECK(c.channel.in.capacity <= 2 * (sent + 2 * CONC__IO_BUFFER));
    if (sent > 2 * CONC__REST_SMALL) moves += c.channel.in.data != before;
    before = c.channel.in.data;
  }
  CHECK(moves <= 12);
  CHECK_EQ(conc__channel_next(&c.channel, FRAME, &payload, &size), 1);
  CHECK_EQ(size, FRAME - 4);
  conc__channel_free(&c.channel);
  while (m.server.spare_count > 0)
    conc__buffer_free(&m.server.spare[--m.server.spare_count]);
  close(fds[0]), close(fds[1]);
}

typedef struct flood {
  conc_task writer, reader;
  int fd;
  const void *data;
  size_t size;
  bool stop; /* atomic */
} flood;

static void *flood_write(void *arg) {
  flood *f = (flood *)arg;
  while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED))
    if (conc_write(f->fd, f->data, f->size, 1) < 0) break;
  return NULL;
}

static void *flood_read(void *arg) {
  flood *f = (flood *)arg;
  char buf[4096];
  while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED))
    if (conc_read(f->fd, buf, sizeof buf, 0.2) == 0) break;
  return NULL;
}

static void flood_begin(flood *f, served *s, const void *data, size_t size) {
  conc__peer *p = peer_of(s);
  memset(f, 0, sizeof *f);
  f->fd = dup(p->channel.fd);
  conc__fd_close_own(&p->channel.fd); /* conc__peer_close would shut it down */
  conc__peer_close(p);
  f->data = data;
  f->size = size;
  f->writer.target = flood_write;
  f->reader.target = flood_read;
  f->writer.arg = f->reader.arg = f;
  CHECK_EQ(conc_thread_start(&f->writer), 0);
  CHECK_EQ(conc_thread_start(&f->reader), 0);
}

static void flood_end(flood *f) {
  __atomic_store_n(&f->stop, true, __ATOMIC_RELAXED);
  shutdown(f->fd, SHUT_RDWR);
  CHECK_EQ(conc_join(&f->writer, 20), 0);
  CHECK_EQ(conc_join(&f->reader, 20), 0);
  close(f->fd);
}

/* Requests without a pause, for which nobody waits: between them another
   client's come through, many times a second. */
TEST(a_client_that_sends_without_end_does_not_keep_others_waiting) {
  static char many[1000 * 38];
  served s = nobody();
  conc_manager other;
  conc_queue *q;
  flood f;
  int puts = 0;
  double end_at;
  for (int i = 0; i < 1000; i++)
    memcpy(many + i * 38, "\0\0\0\x22(X\16\0\0\0" "000000000000.1X\5\0\0\0qsize)}t.", 38);
  serve(&s);
  join_as_client(&s, &s.client);
  other = client_of(&s);
  CHECK_EQ(conc_manager_connect(&other, 5), 0);
  q = conc_manager_get(&other, "q");
  flood_begin(&f, &s, many, sizeof many);
  end_at = conc_now() + 0.4 * test_slow();
  while (conc_now() < end_at || puts < 10) {
    CHECK_EQ(conc_put(q, "x", 1, 2 * test_slow()), 0);
    puts++;
  }
  CHECK(conc_now() < end_at + 4 * test_slow());
  flood_end(&f);
  CHECK_EQ(conc_manager_shutdown(&other), 0);
  end(&s);
}

/* The server's loop is held while a client sends 2,000 requests for the size
   of a queue ahead, and another one a put: their replies tell how many of them
   came before it. */
TEST(a_client_has_its_turn_between_the_requests_of_another_one) {
  static const char size_of[] =
      "\0\0\0\x22(X\16\0\0\0" "000000000000.1X\5\0\0\0qsize)}t.";
  static const char put[] =
      "\0\0\0\x22(X\16\0\0\0" "000000000000.1X\3\0\0\0putK\7\x85}t.";
  enum { MANY = 2000, BEFORE = 500 };
  served s = nobody();
  conc__mutex *guard;
  conc__peer *p, *other;
  const unsigned char *reply;
  size_t n, before = 0;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  other = peer_of(&s);
  guard = conc__mutex_of(&s.server.state->objects);
  conc__mutex_lock(guard);
  for (int i = 0; i < MANY; i++)
    CHECK_EQ(conc_write(p->channel.fd, size_of, sizeof size_of - 1, 5),
             sizeof size_of - 1);
  CHECK_EQ(conc_write(other->channel.fd, put, sizeof put - 1, 5),
           sizeof put - 1);
  conc__mutex_unlock(guard);
  for (int i = 0; i < MANY; i++) {
    CHECK_EQ(conc__channel_receive(&p->channel, 4096, &reply, &n,
                                   conc_now() + 10 * test_slow()), 0);
    CHECK(n == 18 && reply[14] == 'K');
    before += reply[15] == 0;
  }
  CHECK(before < BEFORE);
  conc__peer_close(p);
  conc__peer_close(other);
  end(&s);
}

/* An empty frame means "confirmed" only where something was handed out. */
TEST(an_empty_frame_before_a_message_ends_the_connection) {
  served s = nobody();
  conc__peer *p;
  char byte;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  CHECK_EQ(conc_write(p->channel.fd, "\0\0\0\0", 4, 20), 4);
  CHECK_EQ(conc_read(p->channel.fd, &byte, 1, 10 * test_slow()), 0);
  conc__peer_close(p);
  end(&s);
}

/* A request of many large numbers is read by a thread, and arrives. While no
   thread is to be had it waits, and others are served. */
TEST(a_large_request_is_read_beside_the_loop) {
  enum { NUMBERS = 60, BYTES = 4000 };
  static char put[NUMBERS * (BYTES + 5) + 64];
  served s = nobody();
  char text[400];
  conc_value *v;
  conc__peer *p, *busy;
  size_t n = 0, readers;
  serve(&s);
  join_as_client(&s, &s.client);
  p = peer_of(&s);
  memcpy(put, "\x80\4(X\16\0\0\0" "000000000000.1X\3\0\0\0put(](", 33);
  n = 33;
  for (int i = 0; i < NUMBERS; i++) {
    memcpy(put + n, "\x8b\xa0\x0f\0\0", 5); /* LONG4 of 4,000 bytes */
    memset(put + n + 5, 0x5a + i % 16, BYTES);
    n += 5 + BYTES;
  }
  memcpy(put + n, "et}t.", 5);
  n += 5;
  CHECK(n > CONC__READING_LARGE);
  readers = s.server.state->server.aside.value;
  CHECK(readers >= 1 && readers <= CONC__ASIDE_MAX);
  for (size_t i = 0; i < readers; i++)
    CHECK_EQ(conc_sem_acquire(&s.server.state->server.aside, 5), 0);
  busy = peer_of(&s);
  CHECK_EQ(conc__channel_send(&busy->channel, put, n, conc_now() + 5), 0);
  for (int i = 0; i < 3; i++)
    CHECK_EQ(conc_qsize(conc_manager_get(&s.client, "q")), 0);
  CHECK_EQ(conc_wait_fd(busy->channel.fd, CONC_READ, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(&s.server.state->server.aside, readers), 0);
  STORE(ways_given, 0);
  CHECK(strcmp(ask(p, put, n, text), "#RETURN") == 0);
  CHECK(LOAD(ways_given) > 0);
  CHECK_EQ(conc_get_value(s.queue, &v, 5), 0);
  conc_value_free(v);
  conc__peer_close(busy);
  CHECK_EQ(conc_get_value(s.queue, &v, 5), 0);
  CHECK_EQ(conc_value_size(v), NUMBERS);
  conc_value_free(v);
  /* One that is wrong, too. */
  put[n - 2] = 'e';
  CHECK(strcmp(ask(p, put, n, text), "#TRACEBACK") == 0);
  conc__peer_close(p);
  end(&s);
}

/* What a thread does beside a loop it does in pieces, and lets others run
   between them; any other thread does not. */
static int ways_of(const void *pickle, size_t size, bool gives_way) {
  int before = LOAD(ways_given);
  conc_value *v;
  void *again;
  size_t n;
  conc_current();
  conc__this.gives_way = gives_way;
  CHECK_EQ(conc_pickle_loads(&v, pickle, size), 0);
  CHECK_EQ(conc_pickle_dumps(v, 4, &again, &n), 0);
  conc__this.gives_way = false;
  conc_value_free(v);
  test_free(again);
  return LOAD(ways_given) - before;
}

TEST(large_work_beside_a_loop_gives_way) {
  enum { PARTS = 50000, LARGE = 20, BYTES = 3 * 131072 };
  static char pickle[LARGE * (BYTES + 5) + 8];
  size_t n = 4;
  memcpy(pickle, "\x80\4](", 4);
  for (int i = 0; i < PARTS; i++, n += 2) memcpy(pickle + n, "K\7", 2);
  memcpy(pickle + n, "e.", 2);
  CHECK_EQ(ways_of(pickle, n + 2, false), 0);
  /* Read, laid out, and written: in steps. */
  CHECK(ways_of(pickle, n + 2, true) >= 3 * (int)(PARTS / CONC__PIECE_STEPS));
  n = 4;
  for (int i = 0; i < LARGE; i++, n += 5 + BYTES) {
    memcpy(pickle + n, "B\0\0\6\0", 5);
    memset(pickle + n + 5, 'x', BYTES);
  }
  memcpy(pickle + n, "e.", 2);
  CHECK_EQ(ways_of(pickle, n + 2, false), 0);
  /* Copied in pieces, and written one by one. */
  CHECK(ways_of(pickle, n + 2, true) >= LARGE * BYTES / (int)CONC__PIECE / 2);
}

/* A large message is copied by a thread, in both directions: while none is to
   be had, others are served, and it arrives as soon as there is one. */
static void *get_large(void *arg) {
  static char out[CONC__COPY_LARGE + 1000];
  return conc_get((conc_queue *)arg, out, sizeof out, 20) == sizeof out
             ? NULL
             : arg;
}

static bool has_getter(conc_queue *q) {
  conc__mutex *guard = conc__fifo_put_guard((conc__fifo *)q);
  bool yes;
  conc__mutex_lock(guard);
  yes = ((conc__fifo *)q)->getters.first != NULL;
  conc__mutex_unlock(guard);
  return yes;
}

/* In the third round the get waits in the queue before there is a message. */
TEST(a_large_message_is_copied_beside_the_loop) {
  static char large[CONC__COPY_LARGE + 1000];
  served s = nobody();
  conc_sem *sem;
  size_t readers;
  serve(&s);
  join_as_client(&s, &s.client);
  sem = &s.server.state->server.aside;
  readers = sem->value;
  for (int i = 0; i < 3; i++) {
    conc_queue *q = conc_manager_get(&s.client, "q");
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = get_large;
    t.arg = q;
    for (size_t k = 0; k < readers; k++) CHECK_EQ(conc_sem_acquire(sem, 5), 0);
    if (i > 0) CHECK_EQ(conc_thread_start(&t), 0);
    while (i == 2 && !has_getter(s.queue)) conc_yield_now();
    memset(large, 'a' + i, sizeof large);
    CHECK_EQ(conc_put(s.queue, large, sizeof large, 0), 0);
    if (i == 0) CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, 0.05), -ETIMEDOUT);
    CHECK_EQ(conc_qsize(q), 1); /* it is there still; the loop answers */
    STORE(ways_given, 0);
    CHECK_EQ(conc_sem_release(sem, readers), 0);
    CHECK_EQ(conc_join(&t, 20), 0);
    /* Once out of the queue, and once into the reply. */
    CHECK(LOAD(ways_given) >= 2 * (int)(sizeof large / CONC__PIECE));
    CHECK(conc_result(&t) == NULL);
    CHECK_EQ(conc_qsize(q), 0);
  }
  STORE(ways_given, 0);
  CHECK_EQ(conc_put(conc_manager_get(&s.client, "q"), large, sizeof large, 20),
           0);
  CHECK(LOAD(ways_given) > 0);
  CHECK_EQ(conc_peek_size(s.queue), sizeof large);
  end(&s);
}

/* The thread that reads a large request makes of its item what a queue keeps:
   so the loop neither encodes nor copies what is put with a key, or what is put
   back. */
TEST(what_was_read_beside_the_loop_is_kept_by_the_queue) {
  static char large[CONC__COPY_LARGE + 1007], got[sizeof large];
  const conc__message back = {large, sizeof large, CONC__RAW, NULL};
  served s = nobody();
  conc_queue *q;
  for (size_t i = 0; i < sizeof large; i++) large[i] = (char)(i * 7 % 125);
  serve(&s);
  s.client = client_of(&s);
  s.client.reconnect = 20 * test_slow(); /* so its puts have keys */
  q = join(&s.client);
  STORE(copy_size, sizeof large);
  CHECK_EQ(conc_put(q, large, sizeof large, 20 * test_slow()), 0);
  CHECK_EQ(copies, 0);
  CHECK_EQ(q->ops->unget(q, &back, NULL), 0);
  CHECK_EQ(copies, 0);
  CHECK_EQ(conc_qsize(s.queue), 2);
  for (int i = 0; i < 2; i++) {
    memset(got, 0, sizeof got);
    CHECK_EQ(conc_get(s.queue, got, sizeof got, 0), sizeof got);
    CHECK(memcmp(got, large, sizeof got) == 0);
  }
  end(&s);
}

/* --- the file of a unix socket --- */

static void in_a_folder(char *folder, size_t size) {
  snprintf(folder, size, "/tmp/conc-server-%d", (int)getpid());
  CHECK_EQ(mkdir(folder, 0700), 0);
  CHECK_EQ(chdir(folder), 0);
}

static bool reached(const char *address) {
  conc_manager m;
  memset(&m, 0, sizeof m);
  m.address = address;
  if (conc_manager_connect(&m, 5) != 0) return false;
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  return true;
}

TEST(a_server_removes_its_own_socket_file_and_no_other) {
  char folder[64], other[80];
  conc_manager a = {0}, b = {0};
  int fd;
  in_a_folder(folder, sizeof folder);
  a.address = b.address = "./x.sock";
  CHECK_EQ(conc_manager_start(&a), 0);
  CHECK_EQ(conc_manager_start(&b), -EADDRINUSE);
  CHECK(conc_manager_address(&a)[0] == '/');
  /* Its file is taken away, and another server's is in its place. */
  CHECK_EQ(unlink("x.sock"), 0);
  CHECK_EQ(conc_manager_start(&b), 0);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  CHECK(reached("./x.sock"));
  /* From another folder, where a file has the name that it was started by. */
  snprintf(other, sizeof other, "%s/other", folder);
  CHECK_EQ(mkdir(other, 0700), 0);
  CHECK_EQ(chdir(other), 0);
  fd = open("x.sock", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  close(fd);
  CHECK(reached(conc_manager_address(&b)));
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  CHECK_EQ(access("x.sock", F_OK), 0);
  CHECK_EQ(access("../x.sock", F_OK), -1);
  CHECK_EQ(unlink("x.sock"), 0);
  CHECK_EQ(chdir("/"), 0);
  CHECK_EQ(rmdir(other), 0);
  CHECK_EQ(rmdir(folder), 0);
}

static const char *stale_path;
static int stale_starts; /* atomic: that have gone well */
static conc_event stale_go;

static void *start_at_stale(void *listener) {
  int fd;
  CHECK_EQ(conc_event_wait(&stale_go, CONC_FOREVER), 0);
  fd = conc_listen(stale_path);
  *(int *)listener = fd;
  if (fd >= 0) __atomic_add_fetch(&stale_starts, 1, __ATOMIC_RELAXED);
  else CHECK_EQ(fd, -EADDRINUSE);
  return NULL;
}

TEST(one_of_those_that_find_a_dead_servers_file_has_it) {
  enum { STARTERS = 4, ROUNDS = 60 };
  char folder[64];
  if (!CONC_HAVE_FLOCK) return;
  in_a_folder(folder, sizeof folder);
  stale_path = "./stale.sock";
  for (int round = 0; round < ROUNDS; round++) {
    conc_task t[STARTERS];
    int fds[STARTERS], live = -1, fd = conc_listen(stale_path);
    CHECK(fd >= 0);
    close(fd); /* the file stays */
    stale_starts = 0;
    conc_event_clear(&stale_go);
    for (int i = 0; i < STARTERS; i++) {
      memset(&t[i], 0, sizeof t[i]);
      t[i].target = start_at_stale;
      t[i].arg = &fds[i];
      CHECK_EQ(conc_thread_start(&t[i]), 0);
    }
    conc_event_set(&stale_go);
    for (int i = 0; i < STARTERS; i++) CHECK_EQ(conc_join(&t[i], 20), 0);
    CHECK_EQ(stale_starts, 1);
    for (int i = 0; i < STARTERS; i++)
      if (fds[i] >= 0) live = fds[i];
    fd = conc_connect(stale_path, 1); /* and it is reached there */
    CHECK(fd >= 0);
    close(fd);
    close(live);
    CHECK_EQ(unlink("stale.sock"), 0);
  }
  CHECK_EQ(chdir("/"), 0);
  CHECK_EQ(rmdir(folder), 0);
}

TEST(nothing_in_brackets_is_no_address) {
  CHECK_EQ(conc_listen("[]:0"), -EINVAL);
  CHECK_EQ(conc_connect("[]:80", 1), -EINVAL);
}

/* --- children --- */

static int sockets_open(void) {
  int n = 0;
  for (int fd = 3; fd < 256; fd++) {
    struct stat st;
    n += fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
  }
  return n;
}

/* The child lives until a pipe is closed, and has no socket of either side. */
TEST(a_forked_child_has_neither_the_servers_sockets_nor_the_clients) {
  NEEDS_FORK;
  served s = nobody();
  s.server.address = private_address();
  char address[128], buf[8];
  conc_queue *q;
  int go[2], ready[2], raw;
  pid_t child;
  serve(&s);
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  raw = conc_connect(conc_manager_address(&s.server), 5);
  CHECK(conc_read(raw, address, sizeof address, 5) > 0);
  CHECK_EQ(pipe(go), 0);
  CHECK_EQ(pipe(ready), 0);
  child = fork();
  if (child == 0) {
    close(go[1]);
    close(raw);
    CHECK_CHILD(sockets_open() == 0);
    CHECK_CHILD(write(ready[1], "x", 1) == 1);
    CHECK_CHILD(read(go[0], buf, 1) == 0);
    /* Its own proxies have connections of their own; and both ends can be
       shut down in it. */
    CHECK_CHILD(conc_manager_shutdown(&s.client) == 0);
    CHECK_CHILD(conc_manager_shutdown(&s.server) == 0);
    _exit(0);
  }
  CHECK(child > 0);
  CHECK_EQ(read(ready[0], buf, 1), 1);
  snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
  CHECK_EQ(conc_get(q, buf, sizeof buf, 5), 1);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK_EQ(conc_read(raw, buf, sizeof buf, 10), 0); /* its end is seen */
  close(raw);
  /* The address is free, though the child lives. */
  s.server.address = address;
  CHECK_EQ(conc_manager_start(&s.server), 0);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  close(go[0]), close(go[1]);
  close(ready[0]), close(ready[1]);
  CHECK_EQ(waitpid(child, &raw, 0), child);
  CHECK_EQ(raw, 0);
  conc_queue_free(s.queue);
}

static int drops; /* of objects of the class below */

static void count_drop(conc__object *o) {
  (void)o;
  drops++;
}

/* The server's thread may be changing an object at the fork: so the child,
   which has no such thread, does not touch what objects are made of. */
TEST(a_forked_child_drops_no_object_of_its_parents_server) {
  static const conc__class counted = {NULL, "counted",  NULL, 0,
                                      NULL, count_drop, NULL, NULL};
  NEEDS_FORK;
  served s = nobody();
  int status;
  pid_t child;
  drops = 0;
  serve(&s);
  CHECK_EQ(conc__names_add_object(&s.server.state->objects, "counted",
                                  &counted, NULL, NULL), 0);
  child = fork();
  if (child == 0) {
    CHECK_CHILD(conc_manager_shutdown(&s.server) == 0);
    CHECK_CHILD(s.server.state == NULL);
    CHECK_CHILD(drops == 0);
    _exit(0);
  }
  CHECK(child > 0);
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(drops, 0);
  end(&s);
  CHECK_EQ(drops, 1);
}

typedef struct getter {
  conc_queue *q;
  pid_t child;
} getter;

static void *get_until_forked(void *arg) {
  getter *g = (getter *)arg;
  char buf[8];
  ssize_t n = conc_get(g->q, buf, sizeof buf, 60);
  if (g->child == 0) _exit(n == -EPIPE ? 0 : 1); /* it has come along */
  CHECK_EQ(n, 1);
  return NULL;
}

static void *fork_beside_a_getter(void *arg) {
  served *s = (served *)arg;
  getter g = {join_as_client(s, &s->client), -1};
  conc_task t;
  int status;
  memset(&t, 0, sizeof t);
  t.target = get_until_forked;
  t.arg = &g;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_sleep(0.05), 0); /* until it waits, or soon does */
  g.child = fork();
  if (g.child == 0) {
    conc_join(&t, 20);
    _exit(2);
  }
  CHECK_EQ(waitpid(g.child, &status, 0), g.child);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_put(s->queue, "x", 1, 5), 0);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_manager_shutdown(&s->client), 0);
  return NULL;
}

/* A coroutine that waits in a get comes along into the child of a fork: there
   its connection has ended, and in the parent it gets its message. */
TEST(a_get_that_came_along_into_a_child_ends_there) {
  NEEDS_FORK;
  served s = nobody();
  conc_task root;
  serve(&s);
  memset(&root, 0, sizeof root);
  root.target = fork_beside_a_getter;
  root.arg = &s;
  CHECK_EQ(conc_run(&root), 0);
  end(&s);
}

/* --- what is the library's own, and for how long --- */

enum { COMERS = 8, FORKS = 40 };

typedef struct comers {
  served s;
  conc_task tasks[COMERS];
  unsigned came; /* how often; atomic */
  bool stop;     /* atomic */
} comers;

/* Connects, gets what it puts, and leaves. */
static void *come_and_go(void *arg) {
  comers *c = (comers *)arg;
  char buf[8];
  while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
    conc_manager m = client_of(&c->s);
    conc_queue *q;
    CHECK_EQ(conc_manager_connect(&m, 20 * test_slow()), 0);
    q = conc_manager_get(&m, "q");
    CHECK_EQ(conc_put(q, "x", 1, 20), 0);
    CHECK_EQ(conc_get(q, buf, sizeof buf, 20), 1);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    __atomic_add_fetch(&c->came, 1u, __ATOMIC_RELAXED);
  }
  return NULL;
}

/* Both ends of each connection are made here, at any moment of a fork: what is
   between its birth and its entry would be found in a child. */
TEST(a_child_that_is_forked_while_clients_come_and_go_has_no_socket) {
  NEEDS_FORK;
  comers c;
  unsigned before = 0;
  memset(&c, 0, sizeof c);
  serve(&c.s);
  for (int i = 0; i < COMERS; i++) {
    c.tasks[i].target = come_and_go;
    c.tasks[i].arg = &c;
    CHECK_EQ(conc_thread_start(&c.tasks[i]), 0);
  }
  for (int i = 0; i < FORKS; i++) {
    pid_t child = fork();
    int status;
    if (child == 0) _exit(sockets_open());
    CHECK(child > 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
  /* The server and its clients go on. */
  before = __atomic_load_n(&c.came, __ATOMIC_RELAXED);
  while (__atomic_load_n(&c.came, __ATOMIC_RELAXED) < before + COMERS)
    conc_sleep(0.001);
  __atomic_store_n(&c.stop, true, __ATOMIC_RELAXED);
  for (int i = 0; i < COMERS; i++)
    CHECK_EQ(conc_join(&c.tasks[i], 60), 0);
  end(&c.s);
}

/* The program has made another file of a connection's number: that is not shut
   down, nor closed, and is in every child. */
TEST(a_number_that_has_become_another_files_is_left_alone) {
  NEEDS_FORK;
  served s = nobody();
  char buf[8];
  int pair[2], number, listener, status;
  pid_t child;
  conc_queue *q;
  serve(&s);
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc_put(q, "x", 1, 5), 0);
  number = s.client.state->client.idle->channel.fd;
  listener = s.server.state->server.listener;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  CHECK_EQ(dup2(pair[0], number), number);
  child = fork();
  if (child == 0) {
    CHECK_CHILD(write(number, "y", 1) == 1);
    CHECK_CHILD(fcntl(listener, F_GETFD) < 0);
    _exit(0);
  }
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(read(pair[1], buf, 1), 1);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  CHECK_EQ(write(number, "y", 1), 1);
  CHECK_EQ(read(pair[1], buf, 1), 1);
  close(number), close(pair[0]), close(pair[1]);
  end(&s);
}

TEST_MAIN
