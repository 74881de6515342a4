/* A message of a manager leaves its queue when its reader has it, and stays
   for everybody when it does not; what no reader may receive is refused at the
   put; a proxy finds its queue again, and keeps its timeouts. */
#include "inside.h"
#include "served.h"

#include <sys/mman.h>

static void serve(served *s, size_t max) {
  *s = nobody();
  s->server.max_message = max;
  serve_queue(s, conc_queue_new(NULL));
}

static conc_queue *join_with(const served *s, conc_manager *m, size_t max) {
  *m = client_of(s);
  m->max_message = max;
  return join(m);
}

/* As if the server was Python's, which forgets what it has sent. */
static void forget_that_it_confirms(conc_queue *q) {
  conc__ident *ident = (conc__ident *)(uintptr_t)((conc__proxy *)q)->ident;
  ident->confirms = ident->own = false;
}

static void expect(conc_queue *q, const char *text) {
  char buf[64];
  CHECK_EQ(conc_get(q, buf, sizeof buf, 10 * test_slow()), strlen(text));
  CHECK(memcmp(buf, text, strlen(text)) == 0);
}

static void until_size(conc_queue *q, ssize_t n) {
  double limit = test_now() + 10 * test_slow();
  while (conc_qsize(q) != n) {
    CHECK(test_now() < limit);
    conc_sleep(1e-3);
  }
}

/* --- refused --- */

TEST(what_a_get_refuses_stays_for_everybody_at_its_place) {
  served s;
  conc_manager a, b;
  conc_queue *qa, *qb;
  conc_value *v = NULL;
  char buf[16];
  int n = 0;
  serve(&s, 0);
  qa = join_as_client(&s, &a);
  qb = join_as_client(&s, &b);
  CHECK_EQ(conc_put(qa, "0123456789", 10, 20), 0);
  CHECK_EQ(conc_put_build(qa, 1, "(i)", 7), 0);
  CHECK_EQ(conc_put(qa, "last", 4, 20), 0);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_get(qa, buf, 9, 1), -EMSGSIZE);
    CHECK_EQ(conc_get_many(qa, buf, 4, 4, 1), -EMSGSIZE);
    CHECK_EQ(conc_get_many(qa, buf, 12, 1, 1), -EMSGSIZE);
    CHECK_EQ(conc_qsize(s.queue), 3);
    CHECK_EQ(conc_qsize(qb), 3);
  }
  expect(qb, "0123456789");
  CHECK_EQ(conc_get(qa, buf, 16, 1), -EBADMSG);
  CHECK_EQ(conc_get_many(qa, buf, 4, 4, 1), -EBADMSG);
  CHECK_EQ(conc_get_value(qb, &v, 20), 0);
  CHECK_EQ(conc_parse(v, "(i)", &n), 0);
  conc_value_free(v);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  expect(qb, "last");
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  end(&s);
}

/* What conc_get_parse finds of another shape is there for `other`, and before
   the message that comes behind it. */
static void parse_refuses(conc_queue *q, conc_queue *other) {
  int n = 0;
  unsigned m = 0;
  long large = 0;
  char buf[8];
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put(q, "raw", 3, 20), 0);
    CHECK_EQ(conc_put_build(q, 1, "(il)", 7, -(1L << 30)), 0);
    CHECK_EQ(conc_put(q, "last", 4, 20), 0);
    CHECK_EQ(conc_get_parse(q, 1, "s", NULL), -EINVAL);
    CHECK_EQ(conc_get_parse(q, 1, "q", NULL), -EINVAL);
    CHECK_EQ(conc_get_parse(q, 1, "i", &n), -EBADMSG);
    CHECK_EQ(conc_get_parse(q, 0, "i", &n), -EBADMSG);
    CHECK_EQ(conc_qsize(q), 3);
    CHECK_EQ(conc_get(other, buf, sizeof buf, 20), 3);
    CHECK_EQ(conc_get_parse(q, 1, "(iii)", &n, &n, &n), -EBADMSG);
    CHECK_EQ(conc_get_parse(q, 1, "(iI)", &n, &m), -ERANGE);
    CHECK_EQ(conc_get_parse(other, 1, "(i)", &n), -EBADMSG);
    CHECK(n == 0 && m == 0);
    CHECK_EQ(conc_get_parse(other, 1, "(il)", &n, &large), 0);
    CHECK(n == 7 && large == -(1L << 30));
    expect(other, "last");
    CHECK_EQ(conc_qsize(q), 0);
    n = 0;
  }
}

TEST(a_message_of_another_shape_stays_at_every_distance) {
  conc_queue_opts shared;
  conc_queue *q = conc_queue_new(NULL);
  int n;
  served s;
  conc_manager a, b;
  conc_queue *qa, *qb;
  parse_refuses(q, q);
  conc_queue_free(q);
  memset(&shared, 0, sizeof shared);
  shared.shared = true;
  q = conc_queue_new(&shared);
  parse_refuses(q, q);
  conc_queue_free(q);
  serve(&s, 0);
  qa = join_as_client(&s, &a);
  qb = join_as_client(&s, &b);
  parse_refuses(qa, qb);
  parse_refuses(s.queue, qa);
  /* From a server that forgets it comes back to this client only. */
  forget_that_it_confirms(qa);
  parse_refuses(qa, qa);
  CHECK_EQ(conc_put_build(s.queue, 1, "s", "text"), 0);
  CHECK_EQ(conc_get_parse(qa, 1, "i", &n), -EBADMSG);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  expect(qb, "text");
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  end(&s);
}

/* A reply that the client does not read is no delivery. */
TEST(a_message_that_is_above_a_readers_limit_stays) {
  enum { LARGE = 300000 };
  char *data = (char *)calloc(1, LARGE);
  served s;
  conc_manager small, large;
  conc_queue *qs, *ql;
  conc_value *v;
  serve(&s, 0);
  qs = join_with(&s, &small, 100000);
  ql = join_as_client(&s, &large);
  CHECK_EQ(conc_put(s.queue, data, LARGE, 1), 0);
  CHECK_EQ(conc_get(qs, data, LARGE, 1), -EMSGSIZE);
  CHECK_EQ(conc_get_value(qs, &v, 1), -EMSGSIZE);
  CHECK_EQ(conc_get_many(qs, data, LARGE, 1, 1), -EMSGSIZE);
  until_size(s.queue, 1);
  CHECK_EQ(conc_get(ql, data, LARGE, 5), LARGE);
  CHECK_EQ(conc_manager_shutdown(&small), 0);
  CHECK_EQ(conc_manager_shutdown(&large), 0);
  end(&s);
  free(data);
}

/* Whatever is short of memory, at either end. */
TEST(a_get_without_memory_loses_nothing) {
  static char buf[5000];
  served s;
  conc_manager m;
  conc_queue *q;
  bool done = false;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 1; !done; i++) {
    conc_value *v = NULL;
    ssize_t n;
    CHECK_EQ(conc_put(s.queue, buf, sizeof buf, 1), 0);
    __atomic_store_n(&test_fail_at, i, __ATOMIC_RELAXED);
    if (i % 2) {
      n = conc_get(q, buf, sizeof buf, 2);
    } else {
      n = conc_get_value(q, &v, 2);
      if (n == 0) n = (ssize_t)conc_value_size(v);
      conc_value_free(v);
    }
    done = i > 40 && __atomic_load_n(&test_fail_at, __ATOMIC_RELAXED) > 0;
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    if (n == sizeof buf) continue;
    CHECK(n < 0);
    until_size(s.queue, 1);
    CHECK_EQ(conc_get(s.queue, buf, sizeof buf, 1), sizeof buf);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- handed out, confirmed, given back --- */

/* Asks for a message as a client of ours does, and reads the reply. */
static int handed_out_long(conc_manager *m, conc_queue *q, char *head,
                           size_t room) {
  conc__exchange c;
  conc__calling call;
  conc__sink sink;
  const unsigned char *payload;
  size_t size;
  int fd;
  conc__sink_bytes(&sink, head, room);
  conc__call_begin(&call, m->state, 0, conc_now() + 5);
  CHECK_EQ(conc__exchange_begin(&c, (conc__proxy *)q,
                                ((conc__proxy *)q)->ident, CONC__METHOD_GET,
                                &call), 0);
  CHECK_EQ(conc__take_arguments(&c.peer->channel.out, &c, &sink, 5), 0);
  CHECK_EQ(conc__exchange_write(&c, (conc__proxy *)q, 0), 0);
  CHECK_EQ(conc__peer_exchange(m->state, c.peer, &payload, &size,
                               conc_now() + 5), 0);
  fd = dup(c.peer->channel.fd);
  conc__fd_close_own(&c.peer->channel.fd);
  conc__peer_close(c.peer); /* without a word */
  return fd;
}

static int handed_out(conc_manager *m, conc_queue *q, char *head) {
  return handed_out_long(m, q, head, 64);
}

TEST(a_message_comes_back_unless_more_is_heard_of_its_reader) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[64];
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 0; i < 40; i++) {
    const bool confirmed = i % 4 != 0;
    int fd;
    CHECK_EQ(conc_put(s.queue, "first", 5, 1), 0);
    CHECK_EQ(conc_put(s.queue, "second", 6, 1), 0);
    fd = handed_out(&m, q, buf);
    CHECK_EQ(conc_qsize(s.queue), 1);
    if (i % 4 == 1) CHECK_EQ(conc_write(fd, "\0\0\0\0", 4, 20), 4);
    if (i % 4 == 2) CHECK_EQ(conc_write(fd, "\0", 1, 20), 1); /* its begin */
    if (i % 4 == 3) CHECK_EQ(conc_write(fd, "\0\0\0\2\x80\4", 6, 20), 6);
    close(fd);
    if (!confirmed) until_size(s.queue, 2); /* before the second */
    else conc_sleep(2e-3);
    if (!confirmed) expect(s.queue, "first");
    expect(s.queue, "second");
    CHECK_EQ(conc_qsize(s.queue), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* The server serves a queue between processes: so what comes back is there for
   all of them, and not for the server's only. Short, in a block, and as long
   as it may be. */
TEST(what_comes_back_to_a_shared_queue_is_there_for_all_processes) {
  static char text[3000], copy[3000];
  const size_t sizes[] = {5, 1500, 2000};
  conc_queue_opts o;
  conc_manager m;
  conc_queue *q;
  served s;
  NEEDS_FORK;
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.capacity = 2;
  o.max_bytes = 2000;
  memset(text, 'x', sizeof text);
  for (size_t i = 0; i < 3; i++) {
    const conc__message old[2] = {{"old", 3, CONC__RAW, NULL},
                                  {"C\3mid", 5, CONC__PICKLED, NULL}};
    int fd, status;
    pid_t pid;
    s = nobody();
    serve_queue(&s, conc_queue_new(&o));
    q = join_as_client(&s, &m);
    CHECK_EQ(conc_put(s.queue, text, sizes[i], 1), 0);
    CHECK_EQ(conc_put(s.queue, "second", 6, 1), 0);
    fd = handed_out_long(&m, q, copy, sizeof copy);
    CHECK_EQ(conc_put(s.queue, "third", 5, 1), 0); /* in its cell */
    close(fd);
    until_size(s.queue, 3);
    CHECK_EQ(((conc__cells_queue *)s.queue)->stashed, 0);
    s.queue->ops->unget(s.queue, &old[1], NULL);
    s.queue->ops->unget(s.queue, &old[0], NULL);
    CHECK_EQ(conc_peek_size(s.queue), 3);
    CHECK_EQ(conc_qsize(s.queue), 5);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      CHECK_CHILD(conc_get(s.queue, copy, 3000, 0) == 3);
      CHECK_CHILD(conc_get(s.queue, copy, 3000, 0) == 3);
      CHECK_CHILD(memcmp(copy, "mid", 3) == 0);
      CHECK_CHILD(conc_get(s.queue, copy, 3000, 0) == (ssize_t)sizes[i]);
      CHECK_CHILD(memcmp(copy, text, sizes[i]) == 0);
      CHECK_CHILD(conc_get(s.queue, copy, 3000, 0) == 6);
      _exit(0);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    expect(s.queue, "third");
    CHECK_EQ(conc_qsize(s.queue), 0);
    CHECK_EQ(((conc__cells_queue *)s.queue)->cells->returned, 0);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    end(&s);
  }
}

/* A message that only this process can have comes back while a task of this
   process waits for one, sleeping or about to: that task gets it. */
static void *get_five(void *arg) {
  char out[8];
  return (void *)conc_get((conc_queue *)arg, out, sizeof out, 20);
}

TEST(what_comes_back_to_this_process_wakes_its_getter) {
  const int rounds = 300;
  struct conc__cells_side *getters;
  conc_queue_opts o;
  conc_queue *q;
  NEEDS_FORK;
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.capacity = 2;
  o.max_bytes = 4;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  getters = &((conc__cells_queue *)q)->cells->sides[CONC__GETTERS];
  for (int i = 0; i < rounds; i++) {
    const conc__message long_one = {"12345", 5, CONC__RAW, NULL};
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = get_five;
    t.arg = q;
    CHECK_EQ(conc_thread_start(&t), 0);
    if (i % 3 == 0)
      while (CONC__LOAD(&getters->sleepers) == 0 &&
             CONC__LOAD(&getters->pollers) == 0)
        conc_sleep(1e-4);
    else
      for (int k = i % 20; k > 0; k--) conc_yield_now();
    CHECK_EQ(q->ops->unget(q, &long_one, NULL), 0);
    CHECK_EQ(conc_join(&t, 20), 0);
    CHECK_EQ((intptr_t)conc_result(&t), 5);
  }
  conc_queue_free(q);
}

/* More than there are cells for are this process's; of those that are in the
   shared memory, a dead process's claim is taken from it. */
TEST(what_comes_back_is_not_lost_with_the_dead) {
  enum { ALL = CONC__CELLS_SPARE };
  conc_queue_opts o;
  conc_queue *q;
  conc__cells_queue *c;
  conc__message m;
  char buf[8];
  int status;
  pid_t pid;
  NEEDS_FORK;
  memset(&o, 0, sizeof o);
  o.shared = true;
  q = conc_queue_new(&o);
  c = (conc__cells_queue *)q;
  m.kind = CONC__RAW;
  m.data = buf;
  for (int i = 0; i <= ALL; i++) {
    m.size = (size_t)snprintf(buf, sizeof buf, "%d", i);
    CHECK_EQ(q->ops->unget(q, &m, NULL), 0);
  }
  CHECK_EQ(conc_qsize(q), ALL + 1);
  expect(q, "32"); /* it is in the stash */
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    for (int i = 0; i < 2; i++) {
      uint64_t *word = &conc__cell_at(c, c->all - 1 - (size_t)i)->word;
      *word = CONC__CELL(CONC__CELL_LAP(*word),
                         conc__registry_self(c->registry),
                         i == 0 ? CONC__CELL_READING : CONC__CELL_BUSY);
    }
    kill(getpid(), SIGKILL);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  conc__cells_recover_dead(c);
  for (int i = ALL - 1; i >= 0; i--) {
    snprintf(buf, sizeof buf, "%d", i);
    if (i != ALL - 2) expect(q, buf); /* that one was half put back */
  }
  CHECK_EQ(conc_get(q, buf, 8, 0), -ETIMEDOUT);
  CHECK_EQ(c->cells->returned, 0);
  conc_queue_free(q);
}

/* A getter that sleeps has what comes back. */
static void *give_back_later(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  const conc__message m = {"x", 1, CONC__RAW, NULL};
  /* Without futexes none sleeps: they look. */
  while (CONC_HAVE_FUTEX &&
         LOAD(((conc__cells_queue *)q)->cells->sides[0].sleepers) == 0)
    usleep(100);
  CHECK_EQ(q->ops->unget(q, &m, NULL), 0);
  return NULL;
}
TEST(who_sleeps_is_woken_by_what_comes_back) {
  conc_queue_opts o;
  conc_queue *q;
  memset(&o, 0, sizeof o);
  o.shared = true;
  q = conc_queue_new(&o);
  for (int i = 0; i < 50; i++) {
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = give_back_later;
    t.arg = q;
    CHECK_EQ(conc_thread_start(&t), 0);
    expect(q, "x");
    CHECK_EQ(conc_join(&t, 10), 0);
  }
  conc_queue_free(q);
}

/* The client is alive: it has what was sent to it. */
TEST(a_server_that_ends_takes_back_what_the_dead_had) {
  for (int i = 0; i < 2; i++) {
    served s;
    conc_manager m;
    char buf[64];
    int fd;
    serve(&s, 0);
    CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
    fd = handed_out(&m, join_as_client(&s, &m), buf);
    if (i == 1) close(fd);
    CHECK_EQ(conc_manager_shutdown(&s.server), 0);
    CHECK_EQ(conc_qsize(s.queue), i);
    if (i == 0) close(fd);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    conc_queue_free(s.queue);
  }
}

/* Whoever waits is served with what comes back. */
TEST(what_is_given_back_wakes_the_next_getter) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[64];
  int fd;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
  fd = handed_out(&m, q, buf);
  shutdown(fd, SHUT_WR);
  expect(q, "x");
  close(fd);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

enum { RETURNS, EXITS, DIES, SHUTS_DOWN };

static void get_and_go(const served *s, int how) {
  conc_manager m;
  expect(join_as_client(s, &m), "x");
  if (how == SHUTS_DOWN) CHECK_CHILD(conc_manager_shutdown(&m) == 0);
  if (how == EXITS) exit(0);
  if (how == DIES) raise(SIGKILL);
  _exit(0);
}

/* A program that ends by exit() has its message, without conc_manager_shutdown
   too; one that is killed has not said so. */
TEST(a_reader_that_exits_has_its_message_and_a_killed_one_may_not) {
  served s;
  int status;
  NEEDS_FORK;
  if (TEST_ASAN) SKIP("exit() in a child looks for leaks");
  serve(&s, 0);
  for (int how = EXITS; how <= SHUTS_DOWN; how++) {
    pid_t pid;
    CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
    pid = fork();
    if (pid == 0) get_and_go(&s, how);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    conc_sleep(20e-3);
    until_size(s.queue, how == DIES);
    if (how == DIES) expect(s.queue, "x");
  }
  end(&s);
}

typedef struct cancelled {
  conc_task task;
  conc_queue *queue;
  ssize_t n;
} cancelled;

static void *get_a_thing(void *arg) {
  cancelled *c = (cancelled *)arg;
  char buf[64];
  c->n = conc_get(c->queue, buf, sizeof buf, CONC_FOREVER);
  return NULL;
}

/* The message is put and the getter is cancelled at the same time: it has it,
   or it is in the queue. */
TEST(a_get_that_is_cancelled_while_its_reply_comes_loses_nothing) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[64];
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int i = 0; i < 300; i++) {
    cancelled c;
    memset(&c, 0, sizeof c);
    c.queue = q;
    c.task.target = get_a_thing;
    c.task.arg = &c;
    CHECK_EQ(conc_thread_start(&c.task), 0);
    while (!somebody_waits(s.queue)) conc_sleep(1e-4);
    CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
    for (int k = 0; k < i % 30 * 40; k++)
      __atomic_thread_fence(__ATOMIC_SEQ_CST);
    conc_cancel(&c.task);
    conc_join(&c.task, CONC_FOREVER);
    if (c.n == 1) CHECK_EQ(conc_qsize(s.queue), 0);
    else expect(s.queue, "x");
  }
  CHECK_EQ(conc_get(q, buf, 64, 0), -ETIMEDOUT);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* A child of the client holds nothing of it, so its death is heard of. */
TEST(a_killed_client_takes_nothing_though_its_child_lives) {
  served s;
  pid_t pid;
  int status, go[2];
  char x;
  NEEDS_FORK;
  serve(&s, 0);
  CHECK_EQ(pipe(go), 0);
  pid = fork();
  if (pid == 0) {
    conc_manager m;
    conc_queue *q = join_as_client(&s, &m);
    pid_t child = fork();
    if (child == 0) { /* until the test has ended */
      close(go[1]);
      while (read(go[0], &x, 1) > 0) {
      }
      _exit(0);
    }
    conc_get(q, &x, 1, CONC_FOREVER);
    _exit(1);
  }
  while (!somebody_waits(s.queue)) conc_sleep(1e-3);
  CHECK_EQ(kill(pid, SIGKILL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  while (somebody_waits(s.queue)) conc_sleep(1e-3);
  CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
  conc_sleep(10e-3);
  expect(s.queue, "x");
  close(go[0]);
  close(go[1]);
  end(&s);
}

static conc_queue *its_queue;

static void *wait_for_a_message(void *arg) {
  char x;
  *(ssize_t *)arg = conc_get(its_queue, &x, 1, 10);
  return NULL;
}

static void *fork_while_a_get_waits(void *arg) {
  served *s = (served *)arg;
  conc_task t = {.target = wait_for_a_message};
  ssize_t n = 0;
  int status;
  pid_t pid;
  t.arg = &n;
  CHECK_EQ(conc_coro_start(&t), 0);
  while (!somebody_waits(s->queue)) conc_sleep(1e-3);
  pid = fork();
  if (pid == 0) { /* the connection stayed with the parent */
    conc_join(&t, 10);
    _exit(n == -EPIPE ? 0 : 1);
  }
  while (waitpid(pid, &status, WNOHANG) == 0) conc_sleep(1e-3);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_put(s->queue, "x", 1, 1), 0);
  CHECK_EQ(conc_join(&t, 10), 0);
  CHECK_EQ(n, 1);
  return NULL;
}

TEST(a_get_that_came_along_into_a_child_reads_nothing_of_its_parents) {
  served s;
  conc_manager m;
  conc_task t = {.target = fork_while_a_get_waits};
  NEEDS_FORK;
  serve(&s, 0);
  its_queue = join_as_client(&s, &m);
  t.arg = &s;
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- a server that forgets what it has sent --- */

TEST(a_cancelled_get_from_a_server_that_forgets_is_taken_over) {
  served s;
  conc_manager m;
  conc_queue *q;
  cancelled c;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  forget_that_it_confirms(q);
  for (int i = 0; i < 4; i++) {
    memset(&c, 0, sizeof c);
    c.queue = q;
    c.task.target = get_a_thing;
    c.task.arg = &c;
    CHECK_EQ(conc_thread_start(&c.task), 0);
    while (!somebody_waits(s.queue)) conc_sleep(1e-3);
    CHECK_EQ(conc_cancel(&c.task), 0);
    CHECK_EQ(conc_join(&c.task, CONC_FOREVER), -ECANCELED);
    CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
    until_size(s.queue, 0); /* it is on its way to nobody */
    if (i < 3) expect(q, "x");
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  until_size(s.queue, 1); /* it was put back */
  expect(s.queue, "x");
  end(&s);
}

TEST(what_a_client_of_a_server_that_forgets_refused_is_put_back_at_its_end) {
  served s;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  serve(&s, 0);
  q = join_as_client(&s, &m);
  forget_that_it_confirms(q);
  CHECK_EQ(conc_put(q, "12345", 5, 20), 0);
  CHECK_EQ(conc_get(q, buf, 4, 1), -EMSGSIZE);
  CHECK_EQ(conc_qsize(s.queue), 0);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  expect(s.queue, "12345");
  end(&s);
}

/* A message of `size` bytes that the client cannot read is there for others,
   and so is what comes next. */
static void refuse_large(size_t size, size_t limit) {
  served s;
  conc_manager m;
  conc_queue *q;
  char *p = (char *)malloc(size), *back = (char *)malloc(size);
  serve(&s, 0);
  q = join_as_client(&s, &m);
  forget_that_it_confirms(q);
  m.state->max_message = limit;
  CHECK(p != NULL && back != NULL);
  for (size_t i = 0; i < size; i++) p[i] = (char)(i * 7 / 3);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_put(s.queue, p, size, 5), 0);
    CHECK_EQ(conc_get(q, back, size, 5), -EMSGSIZE);
    CHECK_EQ(conc_qsize(((conc__proxy *)q)->stash), 0);
    until_size(s.queue, 1);
    CHECK_EQ(conc_get(s.queue, back, size, 5), size);
    CHECK(memcmp(p, back, size) == 0);
    /* Both connections go on. */
    CHECK_EQ(conc_put(q, "x", 1, 5), 0);
    expect(q, "x");
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
  free(p), free(back);
}

TEST(what_is_above_the_limits_of_a_client_of_a_server_that_forgets_stays) {
  refuse_large(3000, 2000);
  for (size_t n = 65536 - 40; n < 65536 + 40; n += 13) refuse_large(n, 4000);
  refuse_large((size_t)3 << 20, 4000);
}

/* --- too long --- */

TEST(a_put_that_no_reader_may_get_is_refused_and_nothing_is_queued) {
  enum { LARGE = 200000 };
  char *data = (char *)calloc(1, LARGE);
  served s;
  conc_manager m, n;
  conc_queue *q, *r;
  conc__peer *idle;
  serve(&s, 100000);
  q = join_with(&s, &m, 150000);
  r = join_with(&s, &n, 50000);
  idle = m.state->client.idle;
  /* Above one's own limit, and above the server's, which is known. */
  CHECK_EQ(conc_put(q, data, LARGE, 1), -EMSGSIZE);
  CHECK_EQ(conc_put(q, data, 120000, 1), -EMSGSIZE);
  CHECK_EQ(conc_put(r, data, 60000, 1), -EMSGSIZE);
  CHECK_EQ(conc_put_many(q, data, 120000, 1, 1), -EMSGSIZE);
  CHECK(m.state->client.idle == idle); /* the connection was not given up */
  for (size_t i = 99800; i < 100100; i++) {
    int rc = conc_put(q, data, i, 1);
    CHECK(rc == 0 || rc == -EMSGSIZE);
    CHECK_EQ(conc_qsize(s.queue), rc == 0);
    if (rc == 0) CHECK_EQ(conc_get(q, data, LARGE, 20), i); /* what is put */
  }
  CHECK_EQ(conc_qsize(s.queue), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_manager_shutdown(&n), 0);
  end(&s);
  free(data);
}

TEST(the_bound_of_a_queue_is_told_to_its_clients) {
  conc_queue_opts o = {.max_bytes = 10};
  const conc__message back = {"12345678901", 11, CONC__RAW, NULL};
  char buf[16];
  served s;
  conc_manager m;
  conc_queue *q;
  s = nobody();
  serve_queue(&s, conc_queue_new(&o));
  q = join_as_client(&s, &m);
  CHECK_EQ(conc_put(s.queue, "12345678901", 11, 1), -EMSGSIZE);
  CHECK_EQ(conc_put(q, "12345678901", 11, 1), -EMSGSIZE);
  CHECK_EQ(conc_put_many(q, "12345678901", 11, 1, 1), -EMSGSIZE);
  CHECK_EQ(conc_put_build(q, 1, "s", "1234567890"), -EMSGSIZE);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_qsize(q), 0);
  /* Nor does it come back there: it stays with the client. */
  CHECK_EQ(q->ops->unget(q, &back, NULL), 0);
  CHECK_EQ(conc_qsize(s.queue), 0);
  CHECK_EQ(conc_get(q, buf, sizeof buf, 20), 11);
  CHECK_EQ(conc_put(q, "1234567890", 10, 20), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

static conc_value *nested(int depth) {
  char text[2 * 200 + 1];
  conc_value *v = NULL;
  memset(text, '[', (size_t)depth);
  memset(text + depth, ']', (size_t)depth);
  CHECK_EQ(conc_json_loads(&v, text, 2 * (size_t)depth, NULL), 0);
  return v;
}

TEST(every_value_can_be_put_and_got_however_deep) {
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 0);
  q = join_as_client(&s, &m);
  for (int round = 0; round < 2; round++) {
    for (int depth = 96; depth <= 100; depth++) {
      conc_value *v = nested(depth), *w = NULL;
      CHECK_EQ(conc_put_value(depth % 2 ? q : s.queue, v, 1), 0);
      CHECK_EQ(conc_get_value(q, &w, 20), 0);
      CHECK(conc_value_equal(v, w));
      conc_value_free(v);
      conc_value_free(w);
    }
    forget_that_it_confirms(q);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* What was put at the server itself is in nobody's way for ever. */
TEST(a_message_above_the_managers_limit_is_a_local_getters) {
  static char data[3000];
  served s;
  conc_manager m;
  conc_queue *q;
  serve(&s, 2000);
  q = join_as_client(&s, &m);
  CHECK_EQ(conc_put(s.queue, data, sizeof data, 1), 0);
  CHECK_EQ(conc_put(s.queue, "x", 1, 1), 0);
  CHECK_EQ(conc_get(q, data, sizeof data, 1), -EMSGSIZE);
  forget_that_it_confirms(q);
  CHECK_EQ(conc_get(q, data, sizeof data, 1), -EMSGSIZE);
  CHECK_EQ(conc_qsize(s.queue), 2);
  CHECK_EQ(conc_get(s.queue, data, sizeof data, 1), sizeof data);
  expect(q, "x");
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&s);
}

/* --- who is who --- */

TEST(a_proxy_finds_its_queue_at_a_server_that_was_started_anew) {
  conc_queue *q = conc_queue_new(NULL), *other = conc_queue_new(NULL);
  char address[128], buf[8];
  conc_manager s, m;
  conc_queue *r = NULL;
  memset(&m, 0, sizeof m);
  for (int i = 0; i < 4; i++) {
    memset(&s, 0, sizeof s);
    s.authkey = m.authkey = "abc";
    s.address = i > 0 ? address : NULL;
    if (i % 2)
      CHECK_EQ(conc_manager_register_queue(&s, "other", other), 0);
    if (i < 3) CHECK_EQ(conc_manager_register_queue(&s, "q", q), 0);
    CHECK_EQ(conc_manager_start(&s), 0);
    snprintf(address, sizeof address, "%s", conc_manager_address(&s));
    m.address = address;
    if (i == 0) {
      CHECK_EQ(conc_manager_connect(&m, 5), 0);
      r = conc_manager_get(&m, "q");
      CHECK(r != NULL);
    }
    if (i < 3) {
      CHECK_EQ(conc_put(r, "x", 1, 20), 0);
      CHECK_EQ(conc_qsize(r), 1);
      CHECK_EQ(conc_get(r, buf, 8, 20), 1);
      CHECK_EQ(conc_task_done(r), 0);
    } else { /* it has another one only */
      CHECK_EQ(conc_put(r, "x", 1, 1), -ENOENT);
      CHECK_EQ(conc_get(r, buf, 8, 1), -ENOENT);
      CHECK_EQ(conc_qsize(r), -ENOENT);
    }
    CHECK_EQ(conc_qsize(other), 0);
    CHECK_EQ(conc_manager_shutdown(&s), 0);
    conc_sleep(0.11); /* its connections are looked at before they are used */
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(q);
  conc_queue_free(other);
}

/* What a get did not take, and what a program that serves the proxy itself
   gives back, goes to the queue that has the name by then. */
TEST(what_is_put_back_finds_the_queue_of_a_server_that_was_started_anew) {
  conc_queue *q = conc_queue_new(NULL), *r;
  const conc__message back = {"back", 4, CONC__RAW, NULL};
  char address[128];
  conc_manager s, m;
  int n;
  for (int python = 0; python < 2; python++) {
    memset(&s, 0, sizeof s);
    memset(&m, 0, sizeof m);
    s.authkey = m.authkey = "abc";
    CHECK_EQ(conc_manager_register_queue(&s, "q", q), 0);
    CHECK_EQ(conc_manager_start(&s), 0);
    snprintf(address, sizeof address, "%s", conc_manager_address(&s));
    s.address = m.address = address;
    CHECK_EQ(conc_manager_connect(&m, 5 * test_slow()), 0);
    r = conc_manager_get(&m, "q");
    if (python) {
      forget_that_it_confirms(r);
      CHECK_EQ(conc_put_build(q, 1, "s", "text"), 0);
      CHECK_EQ(conc_get_parse(r, 1, "i", &n), -EBADMSG);
    }
    CHECK_EQ(conc_manager_shutdown(&s), 0);
    CHECK_EQ(conc_manager_register_queue(&s, "q", q), 0);
    CHECK_EQ(conc_manager_start(&s), 0);
    conc_sleep(0.11); /* its connections are looked at before they are used */
    if (!python) CHECK_EQ(r->ops->unget(r, &back, NULL), 0);
    if (!python) expect(q, "back");
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    if (python) expect(q, "text");
    CHECK_EQ(conc_qsize(q), 0);
    CHECK_EQ(conc_manager_shutdown(&s), 0);
  }
  conc_queue_free(q);
}

/* A relay serves the proxy of a queue. It ends just when its client goes: so
   the message's way back is a request to the other server, made in the midst
   of the end. */
TEST(a_relay_that_ends_gives_back_what_its_client_did_not_confirm) {
  served s;
  conc_manager m, n;
  conc_queue *q;
  char buf[64];
  serve(&s, 0);
  for (int i = 0; i < 20; i++) {
    conc_manager far;
    int fd[3];
    q = join_as_client(&s, &far);
    memset(&m, 0, sizeof m);
    memset(&n, 0, sizeof n);
    m.authkey = n.authkey = "abc";
    CHECK_EQ(conc_manager_register_queue(&m, "q", q), 0);
    CHECK_EQ(conc_manager_start(&m), 0);
    n.address = conc_manager_address(&m);
    CHECK_EQ(conc_manager_connect(&n, 5 * test_slow()), 0);
    q = conc_manager_get(&n, "q");
    for (int j = 0; j < 3; j++) CHECK_EQ(conc_put(q, "text", 4, 5), 0);
    for (int j = 0; j < 3; j++) fd[j] = handed_out(&n, q, buf);
    for (int j = 0; j < 3; j++) close(fd[j]);
    CHECK_EQ(conc_manager_shutdown(&m), 0);
    CHECK_EQ(conc_manager_shutdown(&n), 0);
    CHECK_EQ(conc_manager_shutdown(&far), 0);
    for (int j = 0; j < 3; j++) expect(s.queue, "text");
    CHECK_EQ(conc_qsize(s.queue), 0);
  }
  end(&s);
}

typedef struct asker {
  conc_task task;
  conc_manager *manager;
  conc_queue *queue;
} asker;

static void *ask(void *arg) {
  asker *a = (asker *)arg;
  a->queue = conc_manager_get(a->manager, "q");
  return NULL;
}

TEST(a_name_has_one_proxy_whoever_asks_at_the_same_time) {
  served s;
  serve(&s, 0);
  for (int round = 0; round < 10; round++) {
    conc_manager m;
    asker a[4];
    memset(&m, 0, sizeof m);
    memset(a, 0, sizeof a);
    m.address = conc_manager_address(&s.server);
    m.authkey = "abc";
    CHECK_EQ(conc_manager_connect(&m, 5), 0);
    for (int i = 0; i < 4; i++) {
      a[i].task.target = ask;
      a[i].task.arg = &a[i];
      a[i].manager = &m;
      CHECK_EQ(conc_thread_start(&a[i].task), 0);
    }
    for (int i = 0; i < 4; i++) {
      CHECK_EQ(conc_join(&a[i].task, CONC_FOREVER), 0);
      CHECK(a[i].queue != NULL && a[i].queue == a[0].queue);
    }
    CHECK_EQ(conc_manager_shutdown(&m), 0);
  }
  end(&s);
}

/* --- time --- */

/* Half a second longer than its timeout, at most; a machine with other things
   to do takes longer. */
static void took(double start, double timeout) {
  CHECK(test_now() - start < timeout + 0.5 + 3 * test_slow());
}

TEST(a_server_that_hangs_costs_a_call_its_timeout_and_little_more) {
  char *address = (char *)mmap(NULL, 64, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  conc_manager m = {.authkey = "abc"};
  conc_queue *q;
  char buf[8];
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
  m.address = address;
  CHECK_EQ(conc_manager_connect(&m, 5), 0);
  q = conc_manager_get(&m, "q");
  CHECK(q != NULL);
  CHECK_EQ(conc_put(q, "x", 1, 20), 0);
  expect(q, "x");
  CHECK_EQ(kill(pid, SIGSTOP), 0);
  CHECK_EQ(waitpid(pid, NULL, WUNTRACED), pid);
  m.state->timeout = 0.1;
  t = test_now();
  CHECK_EQ(conc_get(q, buf, 8, 0), -ETIMEDOUT);
  took(t, 0), t = test_now();
  CHECK_EQ(conc_qsize(q), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_task_done(q), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_queue_join(q, 0.1), -ETIMEDOUT);
  took(t, 0.1), t = test_now();
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  took(t, 0);
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  munmap(address, 64);
}

TEST_MAIN
