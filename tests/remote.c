/* Locks, events, conditions, semaphores and barriers of a manager, from C
   clients: what they do is what those of this process do. The server is one of
   this process, or one of Python. */
#include "inside.h"
#include "child.h"
#include "network.h"
#include "python.h"
#include "served.h"
#include "tasks.h"

#include <signal.h>
#include <sys/wait.h>

/* The server's own, under these names. */
typedef struct own {
  served s;
  conc_lock lock;
  conc_rlock rlock;
  conc_event event;
  conc_cond cond, rcond;
  conc_sem sem;
  conc_barrier barrier;
} own;

/* ... and two clients, which are `a` and `b`. */
typedef struct both {
  own o;
  conc_manager a, b;
} both;

static void serve_own_at(own *o, const char *address) {
  conc_manager *m = &o->s.server;
  memset(o, 0, sizeof *o);
  m->address = address;
  o->sem.value = 1;
  o->sem.bound = 2;
  o->barrier.parties = 2;
  CHECK_EQ(conc_manager_register_types(m), 0);
  CHECK_EQ(conc_manager_register_lock(m, "lock", &o->lock), 0);
  CHECK_EQ(conc_manager_register_rlock(m, "rlock", &o->rlock), 0);
  CHECK_EQ(conc_manager_register_event(m, "event", &o->event), 0);
  CHECK_EQ(conc_manager_register_sem(m, "sem", &o->sem), 0);
  CHECK_EQ(conc_manager_register_barrier(m, "barrier", &o->barrier), 0);
  CHECK_EQ(conc_manager_register_cond(m, "cond", &o->cond, "lock"), 0);
  CHECK_EQ(conc_manager_register_cond(m, "rcond", &o->rcond, "rlock"), 0);
  serve_queue(&o->s, conc_queue_new(NULL));
}

static void serve_own(own *o) { serve_own_at(o, NULL); }

static void join_client(const own *o, conc_manager *m) {
  *m = client_of(&o->s);
  CHECK_EQ(conc_manager_connect(m, 5 * test_slow()), 0);
}

static void serve_both(both *t) {
  serve_own(&t->o);
  join_client(&t->o, &t->a);
  join_client(&t->o, &t->b);
}

/* What a thread has for its locks it has until it ends: the main thread's. */
static void end_clients(void) { conc_local_free(&conc__remote_owners); }

static void end_both(both *t) {
  CHECK_EQ(conc_manager_shutdown(&t->a), 0);
  CHECK_EQ(conc_manager_shutdown(&t->b), 0);
  end(&t->o.s);
  end_clients();
}

/* A time limit that is not reached. */
static double long_time(void) { return 15 * test_slow(); }

#define UNTIL_WAITS(object, many) \
  until_waits(&(object), &(object).waiters, many)

/* The lock is acquired, of which `want` tells, and released. */
#define PASSES(want, lock, timeout)                  \
  (CHECK_EQ(conc_lock_acquire(lock, timeout), want), \
   CHECK_EQ(conc_lock_release(lock), 0))

/* A client that knows the address alone. */
static conc_manager client_at(const char *address) {
  conc_manager m;
  memset(&m, 0, sizeof m);
  m.address = address;
  m.authkey = "abc";
  return m;
}

/* --- threads of a client --- */

/* One call, in a thread of its own. */
typedef struct call {
  conc_task task; /* first */
  const void *object;
  conc_lock *lock; /* of a condition; it is held during the wait */
  double timeout;
  int rc;
} call;

static void *acquire(void *arg) {
  call *c = (call *)arg;
  c->rc = conc_lock_acquire((conc_lock *)(uintptr_t)c->object, c->timeout);
  if (c->rc == 0 || c->rc == -EOWNERDEAD)
    CHECK_EQ(conc_lock_release((conc_lock *)(uintptr_t)c->object), 0);
  return NULL;
}
static void *acquire_sem(void *arg) {
  call *c = (call *)arg;
  c->rc = conc_sem_acquire((conc_sem *)(uintptr_t)c->object, c->timeout);
  return NULL;
}
static void *wait_event(void *arg) {
  call *c = (call *)arg;
  c->rc = conc_event_wait((conc_event *)(uintptr_t)c->object, c->timeout);
  return NULL;
}
static void *wait_barrier(void *arg) {
  call *c = (call *)arg;
  c->rc = conc_barrier_wait((conc_barrier *)(uintptr_t)c->object, c->timeout);
  return NULL;
}
static void *wait_cond(void *arg) {
  call *c = (call *)arg;
  CHECK_EQ(conc_lock_acquire(c->lock, long_time()), 0);
  c->rc = conc_cond_wait((conc_cond *)(uintptr_t)c->object, c->lock,
                         c->timeout);
  CHECK_EQ(conc_lock_acquire(c->lock, 0), -EDEADLK); /* it has it again */
  CHECK_EQ(conc_lock_release(c->lock), 0);
  return NULL;
}

static void begin(call *c, conc_fn *fn, const void *object, conc_lock *lock,
                  double timeout) {
  memset(c, 0, sizeof *c);
  c->object = object;
  c->lock = lock;
  c->timeout = timeout;
  start(conc_thread_start, &c->task, fn, c);
}

/* One that waits without an end. It waits when this returns. */
#define BEGIN_WAIT(c, fn, object, lock, at)         \
  (begin(c, fn, object, lock, CONC_FOREVER), UNTIL_WAITS(at, 1))

static int result(call *c) {
  CHECK_EQ(conc_join(&c->task, long_time()), 0);
  return c->rc;
}

static void cancel(call *c) {
  CHECK_EQ(conc_cancel(&c->task), 0);
  CHECK_EQ(conc_join(&c->task, long_time()), -ECANCELED);
  CHECK_EQ(c->rc, -ECANCELED);
}

static void notify(conc_lock *lock, conc_cond *cond) {
  CHECK_EQ(conc_lock_acquire(lock, long_time()), 0);
  CHECK_EQ(conc_cond_notify(cond, 1), 0);
  CHECK_EQ(conc_lock_release(lock), 0);
}

/* Whether the call waits cannot be seen at a server of Python: what is to wake
   it is done until it has. */
#define WAKES(c, what)                                               \
  do {                                                               \
    do what;                                                         \
    while (conc_join(&(c)->task, 0.1) == -ETIMEDOUT);                \
    CHECK_EQ(result(c), 0);                                          \
  } while (0)

/* Two clients at a recursive lock. */
static void count_levels(conc_rlock *a, conc_rlock *b) {
  CHECK_EQ(conc_rlock_acquire(a, 0), 0);
  CHECK_EQ(conc_rlock_acquire(a, 0), 0);
  CHECK_EQ(conc_rlock_acquire(b, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(b), -EPERM);
  CHECK_EQ(conc_rlock_release(a), 0);
  CHECK_EQ(conc_rlock_acquire(b, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(a), 0);
  CHECK_EQ(conc_rlock_release(a), -EPERM);
  CHECK_EQ(conc_rlock_acquire(b, 0), 0);
  CHECK_EQ(conc_rlock_release(b), 0);
}

/* --- a server of ours --- */

TEST(a_lock_is_that_of_the_server_and_of_all_clients) {
  both t;
  serve_both(&t);
  conc_lock *a = conc_manager_lock(&t.a, "lock");
  conc_lock *b = conc_manager_lock(&t.b, "lock");
  CHECK(a != NULL && b != NULL && a != b);
  CHECK(conc_manager_lock(&t.a, "lock") == a);
  CHECK(&conc_manager_rlock(&t.a, "lock")->lock == a);
  CHECK(conc_manager_lock(&t.o.s.server, "lock") == &t.o.lock);
  CHECK_EQ(conc_lock_acquire(a, 0), 0);
  CHECK_EQ(conc_lock_acquire(a, 0), -EDEADLK);
  CHECK(conc_lock_locked(a) && conc_lock_locked(b));
  CHECK(conc_lock_locked(&t.o.lock));
  CHECK_EQ(conc_lock_acquire(b, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(b, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(&t.o.lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(b), -EPERM);
  CHECK_EQ(conc_lock_release(a), 0);
  CHECK_EQ(conc_lock_release(a), -EPERM);
  CHECK(!conc_lock_locked(a) && !conc_lock_locked(b));
  CHECK_EQ(conc_lock_acquire(&t.o.lock, 0), 0);
  call c;
  BEGIN_WAIT(&c, acquire, b, NULL, t.o.lock);
  CHECK_EQ(conc_lock_release(&t.o.lock), 0);
  CHECK_EQ(result(&c), 0);
  int held = 0;
  CONC_WITH(a) held = conc_lock_locked(b);
  CHECK_EQ(held, 1);
  CHECK(!conc_lock_locked(b));
  end_both(&t);
}

TEST(what_is_not_served_is_not_found) {
  both t;
  serve_both(&t);
  conc_manager unused;
  char text[300];
  memset(&unused, 0, sizeof unused);
  memset(text, 'x', sizeof text - 1);
  text[sizeof text - 1] = 0;
  CHECK(conc_manager_lock(&t.a, "none") == NULL && errno == ENOENT);
  CHECK(conc_manager_lock(&t.a, "event") == NULL && errno == ENOENT);
  CHECK(conc_manager_lock(&t.a, "sem") == NULL && errno == ENOENT);
  CHECK(conc_manager_lock(&t.a, "q") == NULL && errno == ENOENT);
  CHECK(conc_manager_sem(&t.a, "lock") == NULL && errno == ENOENT);
  CHECK(conc_manager_barrier(&t.a, "Barrier") == NULL && errno == ENOENT);
  CHECK(conc_manager_event(&t.o.s.server, "lock") == NULL && errno == ENOENT);
  CHECK(conc_manager_event(&t.o.s.server, "Event") == NULL && errno == ENOENT);
  CHECK(conc_manager_cond(&t.o.s.server, "q") == NULL && errno == ENOENT);
  CHECK(conc_manager_lock(&unused, "lock") == NULL && errno == EINVAL);
  CHECK(conc_manager_lock(&t.a, NULL) == NULL && errno == EINVAL);
  CHECK(conc_manager_lock(&t.a, text) == NULL && errno == ENAMETOOLONG);
  CHECK(conc_manager_cond_lock(&t.a, &t.o.cond) == NULL && errno == EINVAL);
  end_both(&t);
}

TEST(a_recursive_lock_counts_its_levels) {
  both t;
  serve_both(&t);
  CHECK(conc_manager_rlock(&t.o.s.server, "rlock") == &t.o.rlock);
  count_levels(conc_manager_rlock(&t.a, "rlock"),
               conc_manager_rlock(&t.b, "rlock"));
  end_both(&t);
}

TEST(an_event_wakes_other_clients) {
  both t;
  serve_both(&t);
  conc_event *a = conc_manager_event(&t.a, "event");
  conc_event *b = conc_manager_event(&t.b, "event");
  call c;
  CHECK(conc_manager_event(&t.o.s.server, "event") == &t.o.event);
  CHECK(!conc_event_is_set(a));
  CHECK_EQ(conc_event_wait(a, 0), -ETIMEDOUT);
  CHECK_EQ(conc_event_wait(a, 0.01), -ETIMEDOUT);
  BEGIN_WAIT(&c, wait_event, b, NULL, t.o.event);
  CHECK_EQ(conc_event_set(a), 0);
  CHECK_EQ(result(&c), 0);
  CHECK(conc_event_is_set(b) && conc_event_is_set(&t.o.event));
  CHECK_EQ(conc_event_wait(a, 0), 0);
  CHECK_EQ(conc_event_clear(b), 0);
  CHECK(!conc_event_is_set(a));
  end_both(&t);
}

TEST(a_semaphore_has_the_units_of_all_clients) {
  both t;
  serve_both(&t);
  conc_sem *a = conc_manager_sem(&t.a, "sem");
  conc_sem *b = conc_manager_sem(&t.b, "sem");
  call c;
  CHECK(conc_manager_sem(&t.o.s.server, "sem") == &t.o.sem);
  CHECK_EQ(conc_sem_value(a), 1);
  CHECK_EQ(conc_sem_acquire(a, 0), 0);
  CHECK_EQ(conc_sem_value(b), 0);
  CHECK_EQ(conc_sem_acquire(b, 0), -ETIMEDOUT);
  CHECK_EQ(conc_sem_acquire(b, 0.01), -ETIMEDOUT);
  BEGIN_WAIT(&c, acquire_sem, b, NULL, t.o.sem);
  CHECK_EQ(conc_sem_release(a, 1), 0); /* units are nobody's */
  CHECK_EQ(result(&c), 0);
  CHECK_EQ(conc_sem_release(a, 0), -EINVAL);
  CHECK_EQ(conc_sem_release(a, 2), 0);
  CHECK_EQ(conc_sem_value(b), 2);
  CHECK_EQ(conc_sem_release(b, 1), -EOVERFLOW);
  end_both(&t);
}

TEST(a_condition_is_waited_for_and_notified_over_the_network) {
  both t;
  serve_both(&t);
  conc_lock *la = conc_manager_lock(&t.a, "lock"), local;
  conc_lock *lb = conc_manager_lock(&t.b, "lock");
  conc_cond *a = conc_manager_cond(&t.a, "cond"), own_cond;
  conc_cond *b = conc_manager_cond(&t.b, "cond");
  call c[2];
  memset(&local, 0, sizeof local);
  memset(&own_cond, 0, sizeof own_cond);
  CHECK(conc_manager_cond(&t.o.s.server, "cond") == &t.o.cond);
  CHECK_EQ(conc_cond_wait(a, la, 0), -EPERM);
  CHECK_EQ(conc_lock_acquire(la, 0), 0);
  CHECK_EQ(conc_cond_wait(a, la, 0), -ETIMEDOUT);
  CHECK_EQ(conc_cond_wait(a, la, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_cond_wait(b, la, 0), -EINVAL); /* of another client */
  CHECK_EQ(conc_cond_wait(&own_cond, la, 0), -EINVAL);
  CHECK_EQ(conc_lock_acquire(&local, 0), 0);
  CHECK_EQ(conc_cond_wait(a, &local, 0), -EINVAL);
  CHECK_EQ(conc_lock_release(&local), 0);
  CHECK_EQ(conc_lock_acquire(la, 0), -EDEADLK);
  CHECK_EQ(conc_cond_notify(a, 1), 0); /* nobody waits */
  CHECK_EQ(conc_lock_release(la), 0);
  for (int i = 0; i < 2; i++)
    begin(&c[i], wait_cond, i ? a : b, i ? la : lb, CONC_FOREVER);
  UNTIL_WAITS(t.o.cond, 2);
  notify(la, a);
  UNTIL_WAITS(t.o.cond, 1);
  CHECK_EQ(conc_cond_notify_all(b), 0); /* without the lock */
  CHECK_EQ(result(&c[0]), 0);
  CHECK_EQ(result(&c[1]), 0);
  PASSES(0, la, 0);
  end_both(&t);
}

TEST(a_condition_gives_up_all_levels_of_its_lock) {
  both t;
  serve_both(&t);
  conc_rlock *la = conc_manager_rlock(&t.a, "rcond"); /* its lock */
  conc_rlock *lb = conc_manager_rlock(&t.b, "rlock");
  conc_cond *a = conc_manager_cond(&t.a, "rcond");
  call c;
  BEGIN_WAIT(&c, wait_cond, conc_manager_cond(&t.b, "rcond"), &lb->lock,
             t.o.rcond);
  CHECK_EQ(conc_rlock_acquire(la, long_time()), 0);
  CHECK_EQ(conc_rlock_acquire(la, 0), 0);
  CHECK_EQ(conc_cond_notify(a, 1), 0);
  CHECK_EQ(conc_cond_wait(a, &la->lock, 0.01), -ETIMEDOUT);
  CHECK_EQ(result(&c), 0);
  CHECK_EQ(conc_rlock_release(la), 0);
  CHECK_EQ(conc_rlock_acquire(lb, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(la), 0);
  CHECK_EQ(conc_rlock_acquire(lb, 0), 0);
  CHECK_EQ(conc_rlock_release(lb), 0);
  end_both(&t);
}

TEST(a_type_makes_an_object_each_time) {
  both t;
  serve_both(&t);
  conc_lock *one = conc_manager_lock(&t.a, "Lock");
  conc_lock *two = conc_manager_lock(&t.a, "RLock");
  conc_cond *cond = conc_manager_cond(&t.a, "Condition");
  conc_rlock *lock = conc_manager_cond_lock(&t.a, cond);
  conc_event *event = conc_manager_event(&t.a, "Event");
  conc_sem *sem = conc_manager_sem(&t.a, "BoundedSemaphore");
  CHECK(one != conc_manager_lock(&t.a, "Lock"));
  CHECK_EQ(conc_lock_acquire(one, 0), 0);
  CHECK_EQ(conc_lock_acquire(two, 0), 0);
  CHECK_EQ(conc_rlock_acquire(lock, 0), 0);
  CHECK_EQ(conc_cond_wait(cond, &lock->lock, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_cond_wait(cond, one, 0.01), -EPERM); /* it is not its lock */
  CHECK_EQ(conc_lock_release(one), 0);
  CHECK_EQ(conc_cond_notify(cond, 1), 0);
  CHECK_EQ(conc_rlock_release(lock), 0);
  CHECK_EQ(conc_lock_release(two), 0);
  CHECK(!conc_event_is_set(event));
  CHECK_EQ(conc_sem_acquire(sem, 0), 0);
  CHECK_EQ(conc_sem_release(sem, 1), 0);
  CHECK_EQ(conc_sem_release(sem, 1), -EOVERFLOW);
  end_both(&t);
}

TEST(a_barrier_lets_all_parties_go) {
  both t;
  serve_both(&t);
  conc_barrier *a = conc_manager_barrier(&t.a, "barrier");
  conc_barrier *b = conc_manager_barrier(&t.b, "barrier");
  call c;
  CHECK(conc_manager_barrier(&t.o.s.server, "barrier") == &t.o.barrier);
  CHECK_EQ(a->parties, 2);
  BEGIN_WAIT(&c, wait_barrier, b, NULL, t.o.barrier);
  CHECK_EQ(conc_barrier_n_waiting(a), 1);
  CHECK_EQ(conc_barrier_wait(a, long_time()), 1);
  CHECK_EQ(result(&c), 0);
  BEGIN_WAIT(&c, wait_barrier, b, NULL, t.o.barrier);
  CHECK_EQ(conc_barrier_abort(a), 0);
  CHECK_EQ(result(&c), -EPIPE);
  CHECK(conc_barrier_broken(a) && conc_barrier_broken(&t.o.barrier));
  CHECK_EQ(conc_barrier_wait(a, long_time()), -EPIPE);
  CHECK_EQ(conc_barrier_wait(a, 0), -EPIPE);
  CHECK_EQ(conc_barrier_reset(b), 0);
  CHECK(!conc_barrier_broken(a));
  CHECK_EQ(conc_barrier_wait(a, 0.01), -ETIMEDOUT);
  CHECK(conc_barrier_broken(b));
  end_both(&t);
}

/* --- ends --- */

/* Ends with what it has acquired. */
static void *acquire_and_end(void *arg) {
  call *c = (call *)arg;
  c->rc = conc_lock_acquire((conc_lock *)(uintptr_t)c->object, c->timeout);
  return NULL;
}

TEST(the_next_owner_is_told_of_a_task_that_has_ended) {
  both t;
  serve_both(&t);
  conc_lock *a = conc_manager_lock(&t.a, "lock");
  conc_lock *b = conc_manager_lock(&t.b, "lock");
  call c;
  for (int i = 0; i < 3; i++) {
    begin(&c, acquire_and_end, a, NULL, long_time());
    CHECK_EQ(result(&c), 0);
    /* Of another client, of the same one, of the program. */
    conc_lock *next = i == 0 ? b : i == 1 ? a : &t.o.lock;
    CHECK_EQ(conc_lock_acquire(next, long_time()), -EOWNERDEAD);
    CHECK_EQ(conc_lock_acquire(i == 0 ? a : b, 0), -ETIMEDOUT);
    CHECK_EQ(conc_lock_release(next), 0);
    PASSES(0, b, long_time());
  }
  begin(&c, acquire_and_end, a, NULL, long_time());
  CHECK_EQ(result(&c), 0);
  /* One that only notifies leaves it to be told. */
  CHECK_EQ(conc_cond_notify(conc_manager_cond(&t.b, "cond"), 1), 0);
  PASSES(-EOWNERDEAD, b, long_time());
  end_both(&t);
}

static void *coroutines(void *arg) {
  call *c = (call *)arg, inner[2];
  for (int i = 0; i < 2; i++) {
    inner[i] = *c;
    start(conc_coro_start, &inner[i].task, i ? acquire : acquire_and_end,
          &inner[i]);
  }
  for (int i = 0; i < 2; i++)
    CHECK_EQ(conc_join(&inner[i].task, long_time()), 0);
  CHECK_EQ(inner[0].rc, 0);
  CHECK_EQ(inner[1].rc, -EOWNERDEAD);
  return NULL;
}

TEST(coroutines_are_owners_of_their_own) {
  both t;
  serve_both(&t);
  call c;
  memset(&c, 0, sizeof c);
  c.object = conc_manager_lock(&t.a, "lock");
  c.timeout = long_time();
  run(coroutines, &c);
  end_both(&t);
}

/* Returns when the process stands still. */
static void stop(pid_t pid) {
  int status;
  CHECK_EQ(kill(pid, SIGSTOP), 0);
  CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
  CHECK(WIFSTOPPED(status));
}

/* A server in a child, which is stopped and goes on. */
typedef struct far {
  pid_t pid;
  char path[100];
  conc_manager client;
} far;

static void serve_far(far *f) {
  int fd[2];
  char byte;
  snprintf(f->path, sizeof f->path, "/tmp/conc-remote-%d", (int)getpid());
  CHECK_EQ(pipe(fd), 0);
  f->pid = begin_child();
  if (f->pid == 0) {
    static own o;
    o.s.server.address = f->path;
    o.s.server.authkey = "abc";
    o.barrier.parties = 2;
    CHECK_CHILD(
        conc_manager_register_lock(&o.s.server, "lock", &o.lock) == 0);
    CHECK_CHILD(
        conc_manager_register_cond(&o.s.server, "cond", &o.cond, "lock") == 0);
    CHECK_CHILD(
        conc_manager_register_event(&o.s.server, "event", &o.event) == 0);
    o.sem.value = 1;
    CHECK_CHILD(conc_manager_register_sem(&o.s.server, "sem", &o.sem) == 0);
    CHECK_CHILD(conc_manager_register_barrier(&o.s.server, "barrier",
                                              &o.barrier) == 0);
    CHECK_CHILD(conc_manager_start(&o.s.server) == 0);
    CHECK_CHILD(write(fd[1], "x", 1) == 1);
    for (;;) pause();
  }
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  close(fd[0]), close(fd[1]);
  f->client = client_at(f->path);
  CHECK_EQ(conc_manager_connect(&f->client, long_time()), 0);
}

static void end_far(far *f) {
  CHECK_EQ(conc_manager_shutdown(&f->client), 0);
  CHECK_EQ(kill(f->pid, SIGKILL), 0);
  reap(f->pid, -SIGKILL);
  unlink(f->path);
  end_clients();
}

/* A client in a process of its own, which has the lock when it writes a
   byte. */
static void in_child(const far *f, int fd, bool waits) {
  conc_manager m = client_at(f->path);
  conc_lock *lock;
  CHECK_CHILD(conc_manager_connect(&m, long_time()) == 0);
  lock = conc_manager_lock(&m, "lock");
  CHECK_CHILD(lock != NULL);
  CHECK_CHILD(conc_lock_acquire(lock, long_time()) == 0);
  CHECK_CHILD(write(fd, "x", 1) == 1);
  if (!waits)
    for (;;) pause();
  CHECK_CHILD(conc_cond_wait(conc_manager_cond(&m, "cond"), lock,
                             long_time()) == 0);
  CHECK_CHILD(conc_lock_release(lock) == 0);
  CHECK_CHILD(conc_manager_shutdown(&m) == 0);
  _exit(0);
}

TEST(two_processes_and_a_server) {
  far f;
  int fd[2];
  char byte;
  pid_t waits, holds;
  NEEDS_FORK;
  serve_far(&f);
  conc_lock *lock = conc_manager_lock(&f.client, "lock");
  conc_cond *cond = conc_manager_cond(&f.client, "cond");
  CHECK_EQ(pipe(fd), 0);
  waits = begin_child();
  if (waits == 0) in_child(&f, fd[1], true);
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  holds = begin_child(); /* and gets it when that one waits */
  if (holds == 0) in_child(&f, fd[1], false);
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  CHECK_EQ(conc_lock_acquire(lock, 0), -ETIMEDOUT);
  CHECK_EQ(kill(holds, SIGKILL), 0);
  reap(holds, -SIGKILL);
  CHECK_EQ(conc_lock_acquire(lock, long_time()), -EOWNERDEAD);
  CHECK_EQ(conc_cond_notify(cond, 1), 0);
  CHECK_EQ(conc_lock_release(lock), 0);
  reap(waits, 0);
  PASSES(0, lock, long_time());
  close(fd[0]), close(fd[1]);
  end_far(&f);
}

TEST(a_child_holds_none_of_its_parents_locks) {
  far f;
  pid_t pid;
  NEEDS_FORK;
  serve_far(&f);
  conc_lock *lock = conc_manager_lock(&f.client, "lock");
  CHECK_EQ(conc_lock_acquire(lock, 0), 0);
  pid = begin_child();
  if (pid == 0) {
    CHECK_CHILD(conc_lock_release(lock) == -EPERM);
    CHECK_CHILD(conc_lock_acquire(lock, 0.01) == -ETIMEDOUT);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(conc_lock_acquire(lock, 0), -EDEADLK);
  CHECK_EQ(conc_lock_release(lock), 0);
  pid = begin_child();
  if (pid == 0) {
    CHECK_CHILD(conc_lock_acquire(lock, long_time()) == 0);
    CHECK_CHILD(conc_lock_release(lock) == 0);
    CHECK_CHILD(conc_manager_shutdown(&f.client) == 0);
    _exit(0);
  }
  reap(pid, 0);
  PASSES(0, lock, long_time());
  end_far(&f);
}

/* --- waits that end --- */

TEST(what_is_cancelled_leaves_nothing_behind) {
  both t;
  serve_both(&t);
  conc_lock *a = conc_manager_lock(&t.a, "lock");
  conc_sem *sem = conc_manager_sem(&t.a, "sem");
  call c;
  CHECK_EQ(conc_lock_acquire(&t.o.lock, 0), 0);
  BEGIN_WAIT(&c, acquire, a, NULL, t.o.lock);
  cancel(&c);
  UNTIL_WAITS(t.o.lock, 0);
  CHECK_EQ(conc_lock_release(&t.o.lock), 0);
  PASSES(0, &t.o.lock, long_time());

  CHECK_EQ(conc_sem_acquire(&t.o.sem, 0), 0);
  BEGIN_WAIT(&c, acquire_sem, sem, NULL, t.o.sem);
  cancel(&c);
  UNTIL_WAITS(t.o.sem, 0);
  CHECK_EQ(conc_sem_release(&t.o.sem, 1), 0);
  CHECK_EQ(conc_sem_value(&t.o.sem), 1);

  BEGIN_WAIT(&c, wait_barrier, conc_manager_barrier(&t.a, "barrier"), NULL,
             t.o.barrier);
  cancel(&c);
  while (!conc_barrier_broken(&t.o.barrier)) conc_sleep(0.001);

  BEGIN_WAIT(&c, wait_event, conc_manager_event(&t.a, "event"), NULL,
             t.o.event);
  cancel(&c);
  UNTIL_WAITS(t.o.event, 0);
  end_both(&t);
}

TEST(a_cancelled_wait_for_a_condition_has_the_lock_again) {
  both t;
  serve_both(&t);
  call c;
  BEGIN_WAIT(&c, wait_cond, conc_manager_cond(&t.a, "cond"),
             conc_manager_lock(&t.a, "lock"), t.o.cond);
  CHECK_EQ(conc_lock_acquire(&t.o.lock, long_time()), 0);
  CHECK_EQ(conc_cancel(&c.task), 0);
  UNTIL_WAITS(t.o.cond, 0);
  CHECK_EQ(conc_join(&c.task, 0.05), -ETIMEDOUT); /* it waits for the lock */
  CHECK_EQ(conc_lock_release(&t.o.lock), 0);
  CHECK_EQ(conc_join(&c.task, long_time()), -ECANCELED);
  CHECK_EQ(c.rc, -ECANCELED);
  PASSES(0, &t.o.lock, long_time());
  end_both(&t);
}

/* --- what is on its way when its caller gives up --- */

/* A client, `a`, whose replies can be held back; and `b`, which has its own
   way to the server. */
typedef struct crossing {
  both t;
  network n;
} crossing;

static void begin_crossing(crossing *x) {
  serve_own_at(&x->t.o, socket_path());
  network_begin(&x->n, &x->t.o.s);
  x->t.a = client_at(x->n.address);
  CHECK_EQ(conc_manager_connect(&x->t.a, 5 * test_slow()), 0);
  join_client(&x->t.o, &x->t.b);
}

static void end_crossing(crossing *x) {
  CHECK_EQ(conc_manager_shutdown(&x->t.a), 0);
  CHECK_EQ(conc_manager_shutdown(&x->t.b), 0);
  network_end(&x->n);
  end(&x->t.o.s);
  end_clients();
}

/* The server has given the lock to `a`, which does not know it yet, and then
   gives up. It has not had it: so nobody is told that it has ended with it. */
TEST(a_lock_that_is_refused_is_free_as_if_it_had_not_been_given) {
  crossing x;
  begin_crossing(&x);
  own *o = &x.t.o;
  conc_lock *a = conc_manager_lock(&x.t.a, "lock");
  conc_lock *b = conc_manager_lock(&x.t.b, "lock");
  call c;
  for (int timed = 0; timed < 2; timed++) {
    CHECK_EQ(conc_lock_acquire(&o->lock, 0), 0);
    begin(&c, acquire, a, NULL, timed ? 0.5 : CONC_FOREVER);
    UNTIL_WAITS(o->lock, 1);
    STORE(x.n.fault, HOLD_REPLIES);
    CHECK_EQ(conc_lock_release(&o->lock), 0);
    UNTIL_WAITS(o->lock, 0);
    UNTIL(conc_lock_locked(&o->lock)); /* until the one that was woken has it */
    CHECK_EQ(conc_lock_acquire(b, 0), -ETIMEDOUT);
    if (timed) CHECK_EQ(result(&c), -ETIMEDOUT);
    else cancel(&c);
    PASSES(0, b, long_time());
    STORE(x.n.fault, FLOWS);
  }
  PASSES(0, a, long_time());
  end_crossing(&x);
}

/* An owner has ended, of which the refused reply has told: the next one hears
   of it. So it is if the reply comes after all. */
TEST(what_a_refused_reply_has_told_is_told_to_the_next) {
  crossing x;
  begin_crossing(&x);
  own *o = &x.t.o;
  conc_lock *a = conc_manager_lock(&x.t.a, "lock");
  conc_lock *b = conc_manager_lock(&x.t.b, "lock");
  call c;
  for (int arrives = 0; arrives < 2; arrives++) {
    conc__remote *r = (conc__remote *)(uintptr_t)b;
    CHECK_EQ(conc_lock_acquire(b, 0), 0);
    BEGIN_WAIT(&c, acquire, a, NULL, o->lock);
    STORE(x.n.fault, HOLD_REPLIES);
    shutdown(r->peer->channel.fd, SHUT_RDWR); /* its owner ends */
    UNTIL_WAITS(o->lock, 0);
    UNTIL(conc_lock_locked(&o->lock) &&
          !conc__owner_is_gone(LOAD(o->lock.word)));
    CHECK(conc_lock_release(b) != 0);
    CHECK_EQ(conc_lock_acquire(b, 0), -ETIMEDOUT);
    if (!arrives) {
      cancel(&c);
    } else {
      conc__remote_try t;
      conc__peer *p;
      STORE(x.n.fault, FLOWS);
      CHECK_EQ(result(&c), -EOWNERDEAD);
      /* The same for a reply that has begun to come. */
      CHECK_EQ(conc_lock_acquire(b, 0), 0);
      shutdown(r->peer->channel.fd, SHUT_RDWR);
      CHECK(conc_lock_release(b) != 0);
      memset(&t, 0, sizeof t);
      CHECK_EQ(conc__peer_get(x.t.a.state, &p, conc_now() + 5), 0);
      t.peer = p;
      conc__remote_request q = conc__remote_asks(CONC__METHOD_LOCK);
      r = (conc__remote *)(uintptr_t)a;
      CHECK_EQ(conc__remote_write(r, conc__remote_ident(r), p, &q), 0);
      size_t sent;
      CHECK_EQ(conc__channel_flush(&p->channel, &sent, CONC__NEVER), 0);
      p->asked = true;
      CHECK_EQ(conc_wait_fd(p->channel.fd, CONC_READ, long_time()), 1);
      conc__remote_give_up(r, &t, false);
    }
    STORE(x.n.fault, FLOWS);
    PASSES(-EOWNERDEAD, b, long_time());
    PASSES(0, b, long_time());
  }
  end_crossing(&x);
}

/* A notify, too, is for the next one that waits; and the one that was
   cancelled has the lock again, as one that no owner has left behind. */
TEST(a_notify_that_is_refused_is_for_the_next) {
  crossing x;
  begin_crossing(&x);
  own *o = &x.t.o;
  conc_lock *a = conc_manager_lock(&x.t.a, "lock");
  conc_lock *b = conc_manager_lock(&x.t.b, "lock");
  conc_cond *ca = conc_manager_cond(&x.t.a, "cond");
  conc_cond *cb = conc_manager_cond(&x.t.b, "cond");
  call first, next;
  int links;
  BEGIN_WAIT(&first, wait_cond, ca, a, o->cond);
  begin(&next, wait_cond, cb, b, CONC_FOREVER);
  UNTIL_WAITS(o->cond, 2);
  STORE(x.n.fault, HOLD_REPLIES);
  notify(&o->lock, &o->cond);
  UNTIL_WAITS(o->cond, 1);
  while (!conc_lock_locked(&o->lock)) conc_sleep(0.001);
  links = LOAD(x.n.links);
  CHECK_EQ(conc_cancel(&first.task), 0);
  CHECK_EQ(result(&next), 0);
  UNTIL(LOAD(x.n.links) > links); /* it asks for the lock, and gets it */
  STORE(x.n.fault, FLOWS);
  CHECK_EQ(conc_join(&first.task, long_time()), -ECANCELED);
  CHECK_EQ(first.rc, -ECANCELED);
  PASSES(0, b, long_time());
  end_crossing(&x);
}

TEST(a_wait_whose_time_is_out_waits_for_the_lock) {
  both t;
  serve_both(&t);
  call c;
  begin(&c, wait_cond, conc_manager_cond(&t.a, "cond"),
        conc_manager_lock(&t.a, "lock"), 0.1);
  UNTIL_WAITS(t.o.cond, 1);
  CHECK_EQ(conc_lock_acquire(&t.o.lock, long_time()), 0);
  /* Longer than after what it asks if the server is there. */
  CHECK_EQ(conc_join(&c.task, 2.5), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&t.o.lock), 0);
  CHECK_EQ(result(&c), -ETIMEDOUT);
  end_both(&t);
}

/* The call takes no longer than its timeout and a half second; and a while on
   a machine with other things to do. */
#define IN_TIME(want, seconds, call)                         \
  do {                                                       \
    double began = conc_now();                               \
    CHECK_EQ(call, want);                                    \
    CHECK(conc_now() - began < (seconds) + 0.5 + 3 * test_slow()); \
  } while (0)

/* Whether its last owner has released it is of no consequence. */
static void acquire_after_all(conc_lock *lock) {
  int rc = conc_lock_acquire(lock, long_time());
  CHECK(rc == 0 || rc == -EOWNERDEAD);
}

/* Only while the server stands still its client is impatient. */
static void halt(const far *f) {
  stop(f->pid);
  f->client.state->timeout = 0.5;
}
static void go_on(const far *f) {
  f->client.state->timeout = long_time();
  CHECK_EQ(kill(f->pid, SIGCONT), 0);
}

TEST(all_calls_return_when_the_server_is_stopped) {
  far f;
  NEEDS_FORK;
  serve_far(&f);
  conc_lock *lock = conc_manager_lock(&f.client, "lock");
  conc_cond *cond = conc_manager_cond(&f.client, "cond");
  conc_event *event = conc_manager_event(&f.client, "event");
  conc_sem *sem = conc_manager_sem(&f.client, "sem");
  conc_barrier *barrier = conc_manager_barrier(&f.client, "barrier");
  halt(&f);
  IN_TIME(-ETIMEDOUT, 0, conc_lock_acquire(lock, 0));
  IN_TIME(-ETIMEDOUT, 0.1, conc_lock_acquire(lock, 0.1));
  IN_TIME(-ETIMEDOUT, 0.1, conc_sem_acquire(sem, 0.1));
  IN_TIME(-ETIMEDOUT, 0.1, conc_event_wait(event, 0.1));
  IN_TIME(-ETIMEDOUT, 0.1, conc_barrier_wait(barrier, 0.1));
  IN_TIME(-ETIMEDOUT, 0.5, conc_event_set(event));
  IN_TIME(false, 0.5, conc_lock_locked(lock));
  call c;
  begin(&c, acquire, lock, NULL, CONC_FOREVER);
  CHECK_EQ(conc_join(&c.task, 0.1), -ETIMEDOUT);
  CHECK_EQ(conc_cancel(&c.task), 0);
  IN_TIME(-ECANCELED, 0, conc_join(&c.task, long_time()));
  go_on(&f);
  /* What the server has found when it went on is of no consequence. But the
     barrier was broken, and the set may have come. */
  CHECK_EQ(conc_sem_acquire(sem, long_time()), 0);
  CHECK_EQ(conc_sem_release(sem, 1), 0);
  acquire_after_all(lock);
  halt(&f);
  /* It asks once more if the server is there. */
  IN_TIME(-EPIPE, 1, conc_cond_wait(cond, lock, 0.1));
  CHECK_EQ(conc_lock_release(lock), -EPERM);
  go_on(&f);
  acquire_after_all(lock);
  halt(&f);
  IN_TIME(-ETIMEDOUT, 0.5, conc_lock_release(lock));
  CHECK_EQ(conc_lock_release(lock), -EPERM);
  go_on(&f);
  acquire_after_all(lock);
  CHECK_EQ(conc_lock_release(lock), 0);
  end_far(&f);
}

TEST(a_server_that_was_killed_and_started_anew_is_found) {
  far f, second;
  NEEDS_FORK;
  serve_far(&f);
  conc_lock *lock = conc_manager_lock(&f.client, "lock");
  conc_event *event = conc_manager_event(&f.client, "event");
  conc_cond *cond = conc_manager_cond(&f.client, "cond");
  conc_rlock *of = conc_manager_cond_lock(&f.client, cond);
  CHECK_EQ(conc_lock_acquire(lock, 0), 0);
  CHECK_EQ(kill(f.pid, SIGKILL), 0);
  reap(f.pid, -SIGKILL);
  CHECK(conc_event_set(event) < 0);
  unlink(f.path);
  serve_far(&second);
  CHECK_EQ(conc_event_set(event), 0);
  CHECK(conc_lock_release(lock) < 0); /* the one that has gone */
  CHECK_EQ(conc_lock_release(lock), -EPERM);
  PASSES(0, lock, long_time());
  CHECK_EQ(conc_rlock_acquire(of, long_time()), 0); /* by the condition */
  CHECK_EQ(conc_cond_wait(cond, &of->lock, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(of), 0);
  CHECK(conc_manager_cond_lock(&f.client, cond) == of);
  CHECK_EQ(conc_manager_shutdown(&second.client), 0);
  f.pid = second.pid;
  end_far(&f);
}

/* Releases the lock while the i-th allocation fails. */
static int fail_release(conc_lock *lock, long i) {
  conc__remote *r = (conc__remote *)(uintptr_t)lock;
  int rc;
  conc__buffer_free(&r->peer->channel.out); /* it is made anew */
  STORE(test_fail_at, i);
  rc = conc_lock_release(lock);
  STORE(test_fail_at, 0);
  return rc;
}

TEST(without_memory_nothing_is_held) {
  both t;
  serve_both(&t);
  conc_lock *a = NULL;
  int rc = -ENOMEM;
  for (long i = 1; a == NULL; i++) {
    STORE(test_fail_at, i);
    a = conc_manager_lock(&t.a, "lock");
    STORE(test_fail_at, 0);
  }
  for (long i = 1; rc != 0; i++) {
    STORE(test_fail_at, i);
    rc = conc_lock_acquire(a, long_time());
    STORE(test_fail_at, 0);
    if (rc == -EOWNERDEAD) CHECK_EQ(conc_lock_release(a), 0);
  }
  for (long i = 1; (rc = fail_release(a, i)) != 0; i++) {
    /* It cannot have been told. So its connection has ended. */
    CHECK_EQ(conc_lock_release(a), -EPERM);
    acquire_after_all(&t.o.lock);
    CHECK_EQ(conc_lock_release(&t.o.lock), 0);
    CHECK_EQ(conc_lock_acquire(a, long_time()), 0);
  }
  PASSES(0, &t.o.lock, long_time());
  end_both(&t);
}

TEST(without_memory_no_unit_is_lost) {
  both t;
  serve_both(&t);
  conc_sem *sem = conc_manager_sem(&t.a, "sem");
  int rc = -ENOMEM;
  for (long i = 1; rc != 0; i++) {
    double end = conc_now() + long_time();
    conc__peer *p = t.a.state->client.idle;
    if (p != NULL) conc__channel_free(&p->channel); /* it is made anew */
    STORE(test_fail_at, i);
    rc = conc_sem_acquire(sem, long_time());
    STORE(test_fail_at, 0);
    while (conc_sem_value(&t.o.sem) != (rc != 0)) {
      CHECK(conc_now() < end);
      conc_sleep(0.001);
    }
  }
  CHECK_EQ(conc_sem_release(sem, 1), 0);
  end_both(&t);
}

/* As a lost connection, this may cost the caller the lock, but nobody else. */
TEST(without_memory_a_wait_for_a_condition_ends) {
  both t;
  serve_both(&t);
  conc_lock *lock = conc_manager_lock(&t.a, "lock");
  conc_cond *cond = conc_manager_cond(&t.a, "cond");
  int rc = -ENOMEM;
  for (long i = 1; rc != -ETIMEDOUT; i++) {
    acquire_after_all(lock);
    STORE(test_fail_at, i);
    rc = conc_cond_wait(cond, lock, 0.001);
    STORE(test_fail_at, 0);
    if (conc_lock_release(lock) != 0) CHECK(rc != -ETIMEDOUT);
  }
  PASSES(0, &t.o.lock, long_time());
  end_both(&t);
}

/* A server that has sent a part of a reply, and no more. */
TEST(half_of_a_late_reply_holds_no_call_up) {
  both t;
  int fd[2];
  serve_both(&t);
  conc_lock *lock = conc_manager_lock(&t.a, "lock");
  conc__remote *r = (conc__remote *)(uintptr_t)lock;
  conc__peer *p = (conc__peer *)CONC_MALLOC(sizeof *p);
  memset(p, 0, sizeof *p);
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
  conc__set_nonblocking(fd[0]);
  CHECK_EQ(conc__own_fd_add(fd[0]), 0);
  p->channel.fd = fd[0];
  conc__channel_begin(&p->channel);
  p->asked = true;
  r->late = p;
  CHECK_EQ(write(fd[1], "x", 1), 1);
  IN_TIME(0, 0, conc_lock_acquire(lock, 0));
  CHECK(r->late == p);
  IN_TIME(0, 0, conc_lock_release(lock));
  close(fd[1]);
  CHECK_EQ(conc_lock_acquire(lock, 0), 0); /* it has seen the end */
  CHECK(r->late == NULL);
  CHECK_EQ(conc_lock_release(lock), 0);
  end_both(&t);
}

/* --- Python --- */

/* C clients and one of Python, at the primitives of this process. */
static void with_a_client_of(const char *program) {
  both t;
  call c;
  serve_both(&t);
  conc_lock *lock = conc_manager_lock(&t.a, "lock");
  conc_cond *cond = conc_manager_cond(&t.a, "cond");
  python p = begin_python(program, "remote.py", "client",
                          conc_manager_address(&t.o.s.server));
  CHECK_STR(hear(&p), "ready");
  SAYS("True", &p, "acquire lock");
  CHECK_EQ(conc_lock_acquire(lock, 0), -ETIMEDOUT);
  BEGIN_WAIT(&c, acquire, lock, NULL, t.o.lock);
  SAYS("None", &p, "release lock");
  CHECK_EQ(result(&c), 0);

  CHECK_EQ(conc_lock_acquire(lock, 0), 0);
  SAYS("False", &p, "acquire lock 0");
  SAYS("None", &p, "release lock"); /* Python's may be released by any */
  CHECK_EQ(conc_lock_release(lock), -EPERM);

  SAYS("True", &p, "acquire cond");
  tell(&p, "wait cond");
  UNTIL_WAITS(t.o.cond, 1);
  notify(lock, cond);
  CHECK_STR(hear(&p), "True");
  SAYS("None", &p, "release cond");
  BEGIN_WAIT(&c, wait_cond, cond, lock, t.o.cond);
  SAYS("True", &p, "acquire cond");
  SAYS("None", &p, "notify cond");
  SAYS("None", &p, "release cond");
  CHECK_EQ(result(&c), 0);

  tell(&p, "wait barrier");
  UNTIL_WAITS(t.o.barrier, 1);
  CHECK_EQ(conc_barrier_wait(conc_manager_barrier(&t.b, "barrier"),
                             long_time()), 1);
  CHECK_STR(hear(&p), "0");

  SAYS("True", &p, "acquire sem");
  CHECK_EQ(conc_sem_acquire(conc_manager_sem(&t.b, "sem"), 0), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(conc_manager_sem(&t.b, "sem"), 1), 0);
  SAYS("True", &p, "acquire sem");
  tell(&p, "wait event");
  UNTIL_WAITS(t.o.event, 1);
  CHECK_EQ(conc_event_set(conc_manager_event(&t.b, "event")), 0);
  CHECK_STR(hear(&p), "True");

  /* Ends: of a C task, of the Python process. */
  begin(&c, acquire_and_end, lock, NULL, long_time());
  CHECK_EQ(result(&c), 0);
  tell(&p, "acquire lock");
  CHECK(strstr(hear(&p), "RuntimeError: the owner of the lock has ended"));
  SAYS("True", &p, "acquire lock");
  end_python(&p);
  PASSES(-EOWNERDEAD, lock, long_time());
  end_both(&t);
}

TEST(clients_of_c_and_python_38_have_the_same_primitives) {
  with_python("3.8", with_a_client_of);
}
TEST(clients_of_c_and_python_311_have_the_same_primitives) {
  with_python("3.11", with_a_client_of);
}
TEST(clients_of_c_and_python_313_have_the_same_primitives) {
  with_python("3.13", with_a_client_of);
}

static void with_a_server_of(const char *program) {
  char path[100];
  call c;
  python p;
  snprintf(path, sizeof path, "/tmp/conc-remote-%d", (int)getpid());
  p = begin_python(program, "remote.py", "serve", path);
  CHECK_STR(hear(&p), "ready");
  conc_manager a = client_at(path), b = a;
  CHECK_EQ(conc_manager_connect(&a, long_time()), 0);
  CHECK_EQ(conc_manager_connect(&b, long_time()), 0);
  conc_lock *la = conc_manager_lock(&a, "lock");
  conc_lock *lb = conc_manager_lock(&b, "lock");
  CHECK_EQ(conc_lock_acquire(la, 0), 0);
  CHECK_EQ(conc_lock_acquire(la, 0), -EDEADLK);
  CHECK_EQ(conc_lock_acquire(lb, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(lb, 0.4), -ETIMEDOUT);
  CHECK(conc_lock_locked(lb));
  begin(&c, acquire, lb, NULL, CONC_FOREVER);
  CHECK_EQ(conc_join(&c.task, 0.6), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(la), 0);
  CHECK_EQ(result(&c), 0);
  CHECK(!conc_lock_locked(lb));

  /* What was cancelled has not the lock. */
  CHECK_EQ(conc_lock_acquire(la, long_time()), 0);
  begin(&c, acquire, lb, NULL, CONC_FOREVER);
  CHECK_EQ(conc_join(&c.task, 0.1), -ETIMEDOUT);
  CHECK_EQ(conc_cancel(&c.task), 0);
  IN_TIME(-ECANCELED, 0.5, conc_join(&c.task, long_time()));
  CHECK_EQ(conc_lock_release(la), 0);
  conc_sleep(0.3);
  PASSES(0, la, long_time());

  count_levels(conc_manager_rlock(&a, "rlock"),
               conc_manager_rlock(&b, "rlock"));

  conc_event *event = conc_manager_event(&a, "event");
  CHECK(conc_manager_event(&a, "bare") == event);
  CHECK_EQ(conc_event_wait(event, 0.05), -ETIMEDOUT);
  begin(&c, wait_event, event, NULL, CONC_FOREVER);
  CHECK_EQ(conc_event_set(conc_manager_event(&b, "event")), 0);
  CHECK_EQ(result(&c), 0);
  CHECK(conc_event_is_set(event));
  CHECK_EQ(conc_event_clear(event), 0);
  CHECK(!conc_event_is_set(event));

  conc_sem *sem = conc_manager_sem(&a, "sem");
  CHECK_EQ(conc_sem_acquire(sem, 0), 0);
  CHECK_EQ(conc_sem_acquire(sem, 0), 0);
  CHECK_EQ(conc_sem_acquire(sem, 0.3), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(sem, 1), 0);
  CHECK_EQ(conc_sem_release(sem, 1), 0);
  /* Python 3.8 does not tell it. */
  CHECK_EQ(conc_sem_value(sem), strstr(program, "3.8") != NULL ? 0 : 2);
  CHECK_EQ(conc_sem_release(sem, 1), -EOVERFLOW);

  conc_cond *cond = conc_manager_cond(&a, "cond");
  CHECK_EQ(conc_lock_acquire(la, 0), 0);
  CHECK_EQ(conc_cond_wait(cond, la, 0.4), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(lb, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(la), 0);
  begin(&c, wait_cond, conc_manager_cond(&b, "cond"), lb, CONC_FOREVER);
  CHECK_EQ(conc_join(&c.task, 0.1), -ETIMEDOUT);
  WAKES(&c, notify(la, cond));
  begin(&c, wait_cond, conc_manager_cond(&b, "cond"), lb, CONC_FOREVER);
  CHECK_EQ(conc_join(&c.task, 0.1), -ETIMEDOUT);
  WAKES(&c, CHECK_EQ(conc_cond_notify_all(cond), 0)); /* without the lock */
  begin(&c, wait_cond, conc_manager_cond(&b, "cond"), lb, CONC_FOREVER);
  CHECK_EQ(conc_join(&c.task, 0.1), -ETIMEDOUT);
  cancel(&c);
  PASSES(0, la, long_time());

  conc_cond *fresh = conc_manager_cond(&a, "Condition");
  conc_rlock *of = conc_manager_cond_lock(&a, fresh);
  CHECK_EQ(conc_rlock_acquire(of, 0), 0);
  CHECK_EQ(conc_cond_wait(fresh, &of->lock, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(of), 0);

  /* To a caller of ours this error says that it has the lock. */
  conc_lock *liar = conc_manager_lock(&a, "liar");
  CHECK_EQ(conc_lock_acquire(liar, 0), -EPROTO);
  CHECK_EQ(conc_lock_release(liar), -EPERM);
  CHECK_EQ(conc_sem_acquire(conc_manager_sem(&a, "liar"), 0), -EPROTO);

  conc_barrier *barrier = conc_manager_barrier(&a, "barrier");
  CHECK_EQ(barrier->parties, 2);
  begin(&c, wait_barrier, conc_manager_barrier(&b, "barrier"), NULL,
        CONC_FOREVER);
  while (conc_barrier_n_waiting(barrier) != 1) conc_sleep(0.001);
  CHECK_EQ(conc_barrier_wait(barrier, long_time()), 1);
  CHECK_EQ(result(&c), 0);
  begin(&c, wait_barrier, barrier, NULL, CONC_FOREVER);
  while (conc_barrier_n_waiting(barrier) != 1) conc_sleep(0.001);
  cancel(&c);
  CHECK(conc_barrier_broken(barrier));
  CHECK_EQ(conc_barrier_reset(barrier), 0);
  CHECK_EQ(conc_barrier_wait(barrier, 0.01), -ETIMEDOUT);

  /* Stopped: what the server takes for a call that has given up, when it goes
     on, is given back. */
  stop(p.pid);
  IN_TIME(-ETIMEDOUT, 0.1, conc_lock_acquire(la, 0.1));
  IN_TIME(-ETIMEDOUT, 0.1, conc_sem_acquire(sem, 0.1));
  CHECK_EQ(kill(p.pid, SIGCONT), 0);
  PASSES(0, la, long_time());
  CHECK_EQ(conc_manager_shutdown(&a), 0); /* settles the unit */
  PASSES(0, lb, long_time());
  sem = conc_manager_sem(&b, "sem");
  CHECK_EQ(conc_sem_acquire(sem, long_time()), 0);
  CHECK_EQ(conc_sem_acquire(sem, long_time()), 0);
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  end_python(&p);
  unlink(path);
  end_clients();
}

TEST(a_server_of_python_38_serves_c_clients) {
  with_python("3.8", with_a_server_of);
}
TEST(a_server_of_python_311_serves_c_clients) {
  with_python("3.11", with_a_server_of);
}
TEST(a_server_of_python_313_serves_c_clients) {
  with_python("3.13", with_a_server_of);
}

TEST_MAIN
