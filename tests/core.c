/* Locks, events, conditions, threads, coroutines, descriptors, queues: each
   behaviour from threads and from coroutines, and mixed. */
#include "test.h"

#include "../conc.h"
#include "tasks.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

/* --- locks ------------------------------------------------------------- */

typedef struct counter {
  conc_lock lock;
  long value;
  int rounds;
} counter;

static void *count(void *arg) {
  counter *c = (counter *)arg;
  for (int i = 0; i < c->rounds; i++) {
    CHECK_EQ(conc_lock_acquire(&c->lock, CONC_FOREVER), 0);
    long seen = c->value;
    if (i % 16 == 0) conc_yield_now(); /* others run while it is held */
    c->value = seen + 1;
    CHECK_EQ(conc_lock_release(&c->lock), 0);
  }
  return NULL;
}

static void *count_in_a_loop(void *arg) {
  conc_task t[4];
  for (int i = 0; i < 4; i++) start(conc_coro_start, &t[i], count, arg);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}

static void *loop_of_counters(void *arg) {
  run(count_in_a_loop, arg);
  return NULL;
}

TEST(a_lock_excludes_threads_and_coroutines_from_each_other) {
  counter c = {{0}, 0, 3000};
  conc_task t[4];
  for (int i = 0; i < 4; i++)
    start(conc_thread_start, &t[i], i < 2 ? count : loop_of_counters, &c);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(c.value, 10 * 3000);
  CHECK(!conc_lock_locked(&c.lock));
}

static void *try_lock(void *arg) {
  conc_lock *l = (conc_lock *)arg;
  CHECK_EQ(conc_lock_acquire(l, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(l, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(l), -EPERM);
  return NULL;
}

TEST(a_lock_has_an_owner_and_timeouts) {
  conc_lock l = {0};
  conc_task t;
  CHECK_EQ(conc_lock_release(&l), -EPERM);
  CHECK_EQ(conc_lock_acquire(&l, 0), 0);
  CHECK_EQ(conc_lock_acquire(&l, CONC_FOREVER), -EDEADLK);
  start(conc_thread_start, &t, try_lock, &l);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release(&l), 0);
}

typedef struct hog {
  conc_lock lock;
  int stop;
} hog;

static void *hog_lock(void *arg) {
  hog *h = (hog *)arg;
  while (!__atomic_load_n(&h->stop, __ATOMIC_RELAXED)) {
    conc_lock_acquire(&h->lock, CONC_FOREVER);
    for (int i = 0; i < 1000; i++) __asm__ __volatile__("" ::: "memory");
    conc_lock_release(&h->lock);
  }
  return NULL;
}

TEST(a_lock_is_handed_to_a_patient_waiter) {
  hog h = {{0}, 0};
  conc_task t;
  start(conc_thread_start, &t, hog_lock, &h);
  for (int i = 0; i < 300; i++) {
    CHECK_EQ(conc_lock_acquire(&h.lock, 10), 0);
    CHECK_EQ(conc_lock_release(&h.lock), 0);
  }
  __atomic_store_n(&h.stop, 1, __ATOMIC_RELAXED);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}

/* --- events and conditions ---------------------------------------------- */

static void *set_event(void *arg) {
  conc_event_set((conc_event *)arg);
  return NULL;
}

TEST(an_event_wakes_and_may_be_freed_at_once) {
  for (int i = 0; i < 2000; i++) {
    conc_event *e = (conc_event *)calloc(1, sizeof *e);
    conc_task t;
    start(conc_thread_start, &t, set_event, e);
    CHECK_EQ(conc_event_wait(e, CONC_FOREVER), 0);
    free(e);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
}

typedef struct baton {
  conc_lock lock;
  conc_cond cond;
  int turn, rounds;
} baton;

static void *pass_baton(baton *b, int me) {
  for (int i = 0; i < b->rounds; i++) {
    CHECK_EQ(conc_lock_acquire(&b->lock, CONC_FOREVER), 0);
    while (b->turn != me)
      CHECK_EQ(conc_cond_wait(&b->cond, &b->lock, CONC_FOREVER), 0);
    b->turn = 1 - me;
    conc_cond_notify(&b->cond, 1);
    CHECK_EQ(conc_lock_release(&b->lock), 0);
  }
  return NULL;
}

static void *baton_0(void *arg) { return pass_baton((baton *)arg, 0); }
static void *baton_1(void *arg) { return pass_baton((baton *)arg, 1); }

TEST(a_condition_loses_no_notify_between_a_thread_and_a_coroutine) {
  baton b;
  conc_task t;
  memset(&b, 0, sizeof b);
  b.rounds = 5000;
  start(conc_thread_start, &t, baton_0, &b);
  run(baton_1, &b);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}

TEST(a_condition_times_out_with_the_lock_held) {
  baton b;
  memset(&b, 0, sizeof b);
  CHECK_EQ(conc_cond_wait(&b.cond, &b.lock, 0.01), -EPERM);
  CHECK_EQ(conc_lock_acquire(&b.lock, 0), 0);
  CHECK_EQ(conc_cond_wait(&b.cond, &b.lock, 0.01), -ETIMEDOUT);
  conc_cond_notify_all(&b.cond); /* nobody waits: it is not remembered */
  CHECK_EQ(conc_cond_wait(&b.cond, &b.lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&b.lock), 0);
}

/* --- tasks ---------------------------------------------------------------- */

static void *answer(void *arg) {
  CHECK_STR(conc_name(NULL), "LoopThread");
  CHECK_EQ(conc_join(conc_current(), 0), -EDEADLK);
  return arg;
}

TEST(a_thread_has_a_name_and_a_result) {
  conc_task t;
  int x;
  memset(&t, 0, sizeof t);
  CHECK_EQ(conc_join(&t, 0), -EINVAL);
  CHECK_EQ(conc_thread_start(&t), -EINVAL);
  t.target = answer;
  t.arg = &x;
  t.name = "LoopThread";
  CHECK_STR(conc_name(NULL), "MainThread");
  for (int i = 0; i < 100; i++) {
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK(conc_result(&t) == &x);
    CHECK(!conc_is_alive(&t));
  }
}

static void *wait_for_ever(void *arg) {
  conc_event never;
  int rc;
  memset(&never, 0, sizeof never);
  rc = conc_event_wait(&never, CONC_FOREVER);
  CHECK_EQ(rc, -ECANCELED);
  CHECK_EQ(conc_event_wait(&never, 0.001), -ETIMEDOUT); /* only once */
  return arg;
}

static void *sleep_for_ever(void *arg) {
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  return arg;
}

static void *read_for_ever(void *arg) {
  char c;
  CHECK_EQ(conc_read(*(int *)arg, &c, 1, CONC_FOREVER), -ECANCELED);
  return NULL;
}

static void *get_for_ever(void *arg) {
  char c;
  CHECK_EQ(conc_get((conc_queue *)arg, &c, 1, CONC_FOREVER), -ECANCELED);
  return NULL;
}

static void cancel_all(int (*how)(conc_task *), void *fd, void *queue) {
  conc_fn *waits[] = {wait_for_ever, sleep_for_ever, read_for_ever,
                      get_for_ever};
  for (int round = 0; round < 50; round++)
    for (int i = 0; i < 4; i++) {
      conc_task t;
      start(how, &t, waits[i], i == 2 ? fd : queue);
      if (round % 2) conc_yield_now(); /* so that it has begun, or not */
      CHECK_EQ(conc_cancel(&t), 0);
      CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
      CHECK_EQ(conc_cancel(&t), -ESRCH);
    }
}

typedef struct pair {
  int fds[2];
  conc_queue *queue;
} pair;

static void *cancel_coroutines(void *arg) {
  pair *p = (pair *)arg;
  cancel_all(conc_coro_start, &p->fds[0], p->queue);
  return NULL;
}

TEST(every_wait_can_be_cancelled_once) {
  pair p;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, p.fds), 0);
  p.queue = conc_queue_new(NULL);
  cancel_all(conc_thread_start, &p.fds[0], p.queue);
  run(cancel_coroutines, &p);
  conc_queue_free(p.queue);
  close(p.fds[0]);
  close(p.fds[1]);
}

/* --- coroutines ----------------------------------------------------------- */

static char order[64];

static void *note(void *arg) {
  strcat(order, (const char *)arg);
  conc_yield_now();
  strcat(order, (const char *)arg);
  return NULL;
}

static void *note_later(void *arg) {
  conc_sleep(*(const char *)arg == 'a' ? 0.03 : 0.01);
  strcat(order, (const char *)arg);
  return NULL;
}

static void *ordered(void *arg) {
  conc_task a, b;
  start(conc_coro_start, &a, note, (void *)"a");
  start(conc_coro_start, &b, note, (void *)"b");
  CHECK_EQ(conc_coro_start(&a), -EBUSY);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
  CHECK_STR(order, "abab");
  start(conc_coro_start, &a, note_later, (void *)"a");
  start(conc_coro_start, &b, note_later, (void *)"b");
  CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  CHECK_STR(order, "ababba");
  return arg;
}

TEST(coroutines_run_in_order_and_sleep_by_deadline) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = ordered;
  CHECK_EQ(conc_coro_start(&t), -EPERM); /* no loop */
  run(ordered, NULL);
}

static void *nap(void *arg) {
  conc_sleep(0.001 * (double)(test_random() % 20));
  ++*(int *)arg;
  return NULL;
}

static void *many(void *arg) {
  enum { N = 20000 };
  conc_task *t = (conc_task *)calloc(N, sizeof *t);
  for (int i = 0; i < N; i++) {
    t[i].target = nap;
    t[i].arg = arg;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (int i = 0; i < N; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(*(int *)arg, N);
  free(t);
  return NULL;
}

TEST(twenty_thousand_coroutines_sleep_at_once) {
  int n = 0;
  run(many, &n);
}

static int left_over;

static void *leaves(void *arg) {
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  left_over++;
  return arg;
}

static void *leave_some(void *arg) {
  static conc_task t[3];
  conc_task nested;
  for (int i = 0; i < 3; i++) start(conc_coro_start, &t[i], leaves, NULL);
  memset(&nested, 0, sizeof nested);
  nested.target = leaves;
  CHECK_EQ(conc_run(&nested), -EBUSY);
  conc_yield_now();
  return arg;
}

TEST(what_is_left_when_the_loop_ends_is_cancelled_and_awaited) {
  run(leave_some, NULL);
  CHECK_EQ(left_over, 3);
}

static void *deep(void *arg) {
  volatile char big[300 * 1024];
  for (size_t i = 0; i < sizeof big; i += 512) big[i] = (char)i;
  return big[512] == 0 ? arg : NULL;
}

static void *own_stack(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = deep;
  t.stack_size = 512 * 1024;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  return arg;
}

TEST(a_coroutine_may_ask_for_a_larger_stack) { run(own_stack, NULL); }

static void *floats(void *arg) {
  long double x = *(int *)arg;
  double y = *(int *)arg * 0.5;
  for (int i = 0; i < 1000; i++) {
    x = x * 1.0000001L;
    y = y + 0.25;
    conc_yield_now();
  }
  CHECK(x > (long double)*(int *)arg && x < (long double)*(int *)arg * 1.001L);
  CHECK(y >= *(int *)arg * 0.5 + 250 && y <= *(int *)arg * 0.5 + 250);
  return NULL;
}

static void *compute(void *arg) {
  int n[] = {1, 2, 3};
  conc_task t[3];
  for (int i = 0; i < 3; i++) start(conc_coro_start, &t[i], floats, &n[i]);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return arg;
}

TEST(floating_point_survives_switches) { run(compute, NULL); }

static void *overflow(void *arg) {
  volatile char frame[4096];
  void *below;
  frame[0] = 1;
  below = frame[0] ? overflow((char *)arg + frame[0]) : NULL;
  return frame[0] ? below : NULL; /* no tail call */
}

TEST(a_stack_overflow_hits_the_guard_page) {
  int status;
  pid_t pid = fork();
  if (pid == 0) {
    fclose(stderr); /* what a sanitizer has to say about it */
    run(overflow, NULL);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
}

/* --- descriptors ---------------------------------------------------------- */

static void *echo(void *arg) {
  int *fds = (int *)arg;
  char c;
  while (conc_read(fds[1], &c, 1, 10) == 1)
    CHECK_EQ(conc_write(fds[1], &c, 1, 10), 1);
  return NULL;
}

static void *ping(void *arg) {
  int *fds = (int *)arg;
  char c = 0;
  CHECK_EQ(conc_read(fds[0], &c, 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_read(fds[0], &c, 1, 0.01), -ETIMEDOUT);
  for (int i = 0; i < 2000; i++) {
    CHECK_EQ(conc_write(fds[0], "x", 1, 10), 1);
    CHECK_EQ(conc_read(fds[0], &c, 1, 10), 1);
  }
  CHECK_EQ(conc_close(fds[0]), 0);
  return NULL;
}

static void *both(void *arg) {
  conc_task e;
  start(conc_coro_start, &e, echo, arg);
  ping(arg);
  CHECK_EQ(conc_join(&e, CONC_FOREVER), 0);
  return NULL;
}

TEST(descriptors_are_read_and_written_from_threads_and_coroutines) {
  int fds[2];
  conc_task e;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  start(conc_thread_start, &e, echo, fds);
  run(ping, fds);
  CHECK_EQ(conc_join(&e, CONC_FOREVER), 0);
  close(fds[1]);
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  run(both, fds);
  close(fds[1]);
  CHECK_EQ(conc_wait_fd(-1, CONC_READ, 0), -EBADF);
  CHECK_EQ(conc_wait_fd(0, 0, 0), -EINVAL);
}

static void *wait_closed(void *arg) {
  CHECK_EQ(conc_wait_fd(*(int *)arg, CONC_READ, CONC_FOREVER), -EBADF);
  CHECK_EQ(conc_wait_fd(1 << 30, CONC_READ, 1), -EBADF);
  return NULL;
}

static void *close_waited(void *arg) {
  int *fds = (int *)arg;
  conc_task t;
  start(conc_coro_start, &t, wait_closed, &fds[0]);
  conc_yield_now();
  CHECK_EQ(conc_close(fds[0]), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  return NULL;
}

TEST(who_waits_for_a_descriptor_is_told_that_it_was_closed) {
  int fds[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  run(close_waited, fds);
  close(fds[1]);
}

static void *write_much(void *arg) {
  enum { SIZE = 1 << 20 };
  char *data = (char *)calloc(1, SIZE);
  CHECK_EQ(conc_write(((int *)arg)[0], data, SIZE, 10), SIZE);
  free(data);
  return NULL;
}

static void *half_close(void *arg) {
  int *fds = (int *)arg;
  char buf[4096];
  conc_task t;
  size_t n = 0;
  start(conc_coro_start, &t, write_much, fds);
  conc_yield_now();
  shutdown(fds[1], SHUT_WR); /* says nothing about the other direction */
  while (n < 1 << 20) {
    ssize_t got = conc_read(fds[1], buf, sizeof buf, 10);
    CHECK(got > 0);
    n += (size_t)got;
  }
  CHECK_EQ(conc_join(&t, 10), 0);
  return NULL;
}

TEST(a_writer_goes_on_when_its_peer_has_nothing_more_to_say) {
  int fds[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  run(half_close, fds);
  close(fds[0]);
  close(fds[1]);
}

/* A socket that does not listen yet. */
static int bound(const char *path) {
  struct sockaddr_un a;
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  memset(&a, 0, sizeof a);
  a.sun_family = AF_UNIX;
  snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
  CHECK_EQ(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
  return fd;
}

/* What is no address, an address where nobody listens, and the path of a
   unix socket that is in use, left over, or bound and about to listen: only
   the one left over may be replaced. */
TEST(addresses_are_checked_and_connections_refused) {
  int fd, client, accepted;
  char path[64];
  snprintf(path, sizeof path, "build/core-%d.sock", (int)getpid());
  CHECK_EQ(conc_listen("127.0.0.1:99999"), -EINVAL);
  CHECK_EQ(conc_listen("127.0.0.1:http"), -EINVAL);
  CHECK_EQ(conc_connect("127.0.0.1:1", 1), -ECONNREFUSED);
  CHECK_EQ(conc_connect(NULL, 1), -EINVAL); /* which port? */
  CHECK_EQ(conc_connect("", 1), -EINVAL);
  fd = conc_listen(path);
  CHECK(fd >= 0);
  CHECK_EQ(conc_listen(path), -EADDRINUSE);
  CHECK_EQ(conc_accept(fd, 0), -ETIMEDOUT); /* which it does not notice */
  client = conc_connect(path, 1);
  CHECK(client >= 0);
  accepted = conc_accept(fd, 1);
  CHECK(accepted >= 0);
  CHECK_EQ(conc_accept(fd, 0), -ETIMEDOUT);
  CHECK_EQ(conc_accept(fd, 0.01), -ETIMEDOUT);
  close(client);
  close(accepted);
  close(fd);
  fd = conc_listen(path); /* nobody listens: it is replaced */
  CHECK(fd >= 0);
  close(fd);
  unlink(path);
  fd = bound(path);
  CHECK_EQ(conc_listen(path), -EADDRINUSE); /* it is about to */
  close(fd);
  unlink(path);
}

/* --- queues --------------------------------------------------------------- */

TEST(a_queue_keeps_messages_and_order) {
  conc_queue_opts o = {.capacity = 2, .max_bytes = 8, .name = "q"};
  conc_queue *q = conc_queue_new(&o);
  char buf[16];
  CHECK_EQ(conc_get(q, buf, 16, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, "123456789", 9, 0), -EMSGSIZE);
  CHECK_EQ(conc_put(q, "abc", 3, 0), 0);
  CHECK_EQ(conc_put(q, NULL, 0, 0), 0);
  CHECK_EQ(conc_put(q, "x", 1, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_qsize(q), 2);
  CHECK_EQ(conc_peek_size(q), 3);
  CHECK_EQ(conc_get(q, buf, 2, 0), -EMSGSIZE);
  CHECK_EQ(conc_get(q, buf, 16, 0), 3);
  CHECK_EQ(conc_get(q, buf, 0, 0), 0);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  CHECK_EQ(conc_put(q, "z", 1, 0), 0);
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_put(q, "z", 1, 0), -EPIPE);
  CHECK_EQ(conc_get(q, buf, 16, 0), 1);
  CHECK_EQ(conc_get(q, buf, 16, CONC_FOREVER), -EPIPE);
  conc_queue_free(q);
}

TEST(a_queue_carries_typed_values) {
  conc_queue *q = conc_queue_new(NULL);
  conc_value *v;
  char buf[16];
  int n = 0;
  CHECK_EQ(conc_put_build(q, 0, "i", 7), 0);
  CHECK_EQ(conc_get(q, buf, 16, 0), -EBADMSG);
  CHECK_EQ(conc_get_parse(q, 0, "s", &v), -EINVAL);
  CHECK_EQ(conc_get_parse(q, 0, "(i)", &n), -EBADMSG);
  CHECK_EQ(conc_get_parse(q, 0, "i", &n), 0);
  CHECK_EQ(n, 7);
  CHECK_EQ(conc_put_build(q, 0, "s", "text"), 0);
  CHECK_EQ(conc_get(q, buf, 16, 0), 4);
  CHECK_EQ(conc_put(q, "raw", 3, 0), 0);
  CHECK_EQ(conc_get_value(q, &v, 0), 0);
  CHECK_EQ(conc_value_type(v), CONC_BYTES);
  CHECK_EQ(conc_put_value(q, v, 0), 0);
  conc_value_free(v);
  CHECK_EQ(conc_get(q, buf, 16, 0), 3);
  CHECK_EQ(conc_put_value(q, NULL, 0), -EINVAL); /* a look-up that failed */
  CHECK_EQ(conc_qsize(q), 0);
  conc_queue_free(q);
}

TEST(a_queue_agrees_with_a_model) {
  conc_queue *q = conc_queue_new(NULL);
  unsigned first = 0, last = 0;
  static unsigned char data[3000], got[3000];
  for (int i = 0; i < 20000; i++) {
    if (test_random() % 100 < (i / 2000 % 2 ? 40u : 60u)) {
      size_t size = last * 7919u % 3000;
      memset(data, (int)last, size);
      CHECK_EQ(conc_put(q, data, size, 0), 0);
      last++;
    } else if (first == last) {
      CHECK_EQ(conc_get(q, got, sizeof got, 0), -ETIMEDOUT);
    } else {
      size_t size = first * 7919u % 3000;
      memset(data, (int)first, size);
      CHECK_EQ(conc_get(q, got, sizeof got, 0), size);
      CHECK(memcmp(got, data, size) == 0);
      first++;
    }
  }
  CHECK_EQ(conc_qsize(q), last - first);
  conc_queue_free(q);
}

enum { ITEMS = 4000, PRODUCERS = 4 };
typedef struct traffic {
  conc_queue *queue;
  int number;
  unsigned char *seen;
} traffic;

static void *produce(void *arg) {
  traffic *t = (traffic *)arg;
  for (int i = 0; i < ITEMS; i++) {
    int item = t->number * ITEMS + i;
    CHECK_EQ(conc_put(t->queue, &item, sizeof item, CONC_FOREVER), 0);
  }
  return NULL;
}

static void *consume(void *arg) {
  traffic *t = (traffic *)arg;
  int item;
  ssize_t n;
  while ((n = conc_get(t->queue, &item, sizeof item, CONC_FOREVER)) > 0)
    CHECK_EQ(__atomic_fetch_add(&t->seen[item], 1, __ATOMIC_RELAXED), 0);
  CHECK_EQ(n, -EPIPE);
  return NULL;
}

static void *consume_in_a_loop(void *arg) {
  conc_task t[3];
  for (int i = 0; i < 3; i++) start(conc_coro_start, &t[i], consume, arg);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}

static void *loop_of_consumers(void *arg) {
  run(consume_in_a_loop, arg);
  return NULL;
}

TEST(many_producers_and_consumers_have_every_item_exactly_once) {
  conc_queue_opts o = {.capacity = 16};
  conc_queue *q = conc_queue_new(&o);
  static unsigned char seen[ITEMS * PRODUCERS];
  traffic p[PRODUCERS];
  conc_task t[PRODUCERS + 2];
  for (int i = 0; i < PRODUCERS + 2; i++) {
    traffic *each = &p[i % PRODUCERS];
    if (i < PRODUCERS) {
      each->queue = q;
      each->number = i;
      each->seen = seen;
    }
    start(conc_thread_start, &t[i],
          i < PRODUCERS    ? produce
          : i == PRODUCERS ? consume
                           : loop_of_consumers,
          each);
  }
  for (int i = 0; i < PRODUCERS; i++) CHECK_EQ(conc_join(&t[i], 60), 0);
  conc_queue_close(q);
  for (int i = PRODUCERS; i < PRODUCERS + 2; i++)
    CHECK_EQ(conc_join(&t[i], 60), 0);
  for (int i = 0; i < ITEMS * PRODUCERS; i++) CHECK_EQ(seen[i], 1);
  conc_queue_free(q);
}

static void *foreign(void *arg) {
  CHECK(strncmp(conc_name(NULL), "Dummy-", 6) == 0);
  return count(arg);
}

TEST(foreign_threads_need_no_registration) {
  counter c = {{0}, 0, 1000};
  pthread_t t[3];
  for (int i = 0; i < 3; i++)
    CHECK_EQ(pthread_create(&t[i], NULL, foreign, &c), 0);
  for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
  CHECK_EQ(c.value, 3000);
}

TEST_MAIN
