/* Forks out of a process that is busy in every corner of the library: each
   child can use all of it, and nothing hangs. From inside, to see that nobody
   who stayed behind is left on a list. */
#include "test.h"

static void test_point(void);
#define CONC__POINT() test_point()
#include "inside.h"

#include <signal.h>

/* Who can be held up waits at its next step, as long as there is a reason. */
static __thread bool can_be_held_up;
static int held_up;

static void test_point(void) {
  while (can_be_held_up && __atomic_load_n(&held_up, __ATOMIC_ACQUIRE))
    sched_yield();
}

/* --- what a child does ---------------------------------------------------- */

/* A child has no test of its own: it tells by its exit status. */
typedef struct used {
  conc_lock lock;
  conc_cond cond;
  conc_event event;
  conc_queue *queue;
  int turns;
} used;

static conc_local local = {.destructor = free};
static conc_rlock rlock;
static conc_rwlock rwlock;
static conc_sem sem = {.value = 3, .bound = 3};

/* What has an owner, held for a moment by whoever comes by. */
static void use_owned(bool careful) {
  int rc = conc_rlock_acquire(&rlock, 5);
  if (careful) CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  if (rc == 0 || rc == -EOWNERDEAD) {
    CHECK_CHILD(conc_rlock_acquire(&rlock, 0) == 0);
    CHECK_CHILD(conc_rlock_release(&rlock) == 0);
    CHECK_CHILD(conc_rlock_release(&rlock) == 0);
  }
  rc = conc_rwlock_read_acquire(&rwlock, 5);
  if (careful) CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  if (rc == 0 || rc == -EOWNERDEAD)
    CHECK_CHILD(conc_rwlock_release(&rwlock) == 0);
  rc = conc_rwlock_write_acquire(&rwlock, 5);
  if (careful) CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  if (rc == 0 || rc == -EOWNERDEAD)
    CHECK_CHILD(conc_rwlock_release(&rwlock) == 0);
}

static bool is_full(void *arg) { return ((used *)arg)->turns == 10; }

static void *use_some(void *arg) {
  used *u = (used *)arg;
  char buf[8];
  for (int i = 0; i < 5; i++) {
    CHECK_CHILD(conc_lock_acquire(&u->lock, 5) == 0);
    u->turns++;
    CHECK_CHILD(conc_cond_notify_all(&u->cond) == 0);
    CHECK_CHILD(conc_lock_release(&u->lock) == 0);
    CHECK_CHILD(conc_put(u->queue, "child", 5, 5) == 0);
    CHECK_CHILD(conc_get(u->queue, buf, 8, 5) == 5);
    CHECK_CHILD(conc_sleep(0.0001) == 0);
    use_owned(true);
    CHECK_CHILD(conc_local_set(&local, i % 2 ? "odd" : "even", strdup("x")) ==
                0);
    CHECK_CHILD(conc_local_has(&local, "even"));
  }
  CHECK_CHILD(conc_local_delete(&local, "odd") == 0);
  return arg;
}

static void *use_loop(void *arg) {
  conc_task t = {.target = use_some, .arg = arg};
  int fds[2];
  char c;
  CHECK_CHILD(pipe(fds) == 0);
  CHECK_CHILD(conc_coro_start(&t) == 0);
  CHECK_CHILD(conc_write(fds[1], "x", 1, 5) == 1);
  CHECK_CHILD(conc_read(fds[0], &c, 1, 5) == 1);
  CHECK_CHILD(conc_join(&t, 5) == 0);
  return arg;
}

/* Everything there is, from a thread or a coroutine. */
static void use_everything(void) {
  used u;
  conc_task t, root;
  memset(&u, 0, sizeof u);
  memset(&t, 0, sizeof t);
  memset(&root, 0, sizeof root);
  u.queue = conc_queue_new(NULL);
  t.target = use_some;
  t.arg = &u;
  CHECK_CHILD(conc_thread_start(&t) == 0);
  if (conc__this.loop == NULL) {
    root.target = use_loop;
    root.arg = &u;
    CHECK_CHILD(conc_run(&root) == 0);
  } else {
    use_loop(&u);
  }
  CHECK_CHILD(conc_lock_acquire(&u.lock, 5) == 0);
  CHECK_CHILD(conc_cond_wait_for(&u.cond, &u.lock, is_full, &u, 5) == 0);
  CHECK_CHILD(conc_lock_release(&u.lock) == 0);
  CHECK_CHILD(conc_join(&t, 5) == 0);
  CHECK_CHILD(conc_result(&t) == &u);
  conc_event_set(&u.event);
  CHECK_CHILD(conc_event_wait(&u.event, 5) == 0);
  conc_queue_free(u.queue);
}

/* Forks, lets the child do `work`, and waits for it. Its exit status, or
   1000 + signal: 1014 is one that hung. */
static int in_child(void (*work)(void *), void *arg) {
  int status = 0;
  pid_t pid = (fflush(NULL), fork());
  if (pid == 0) {
    alarm(20);
    work(arg);
    _exit(0);
  }
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* --- the busy parent ------------------------------------------------------ */

enum { BUSY = 8 };
typedef struct busy {
  conc_task threads[BUSY];
  conc_lock locks[2];
  conc_cond cond;
  conc_event event;
  conc_queue *queues[2];
  conc_manager server;
  bool stop;
} busy;

static bool goes_on(busy *b) {
  return !__atomic_load_n(&b->stop, __ATOMIC_RELAXED);
}

static void *hammer(void *arg) {
  busy *b = (busy *)arg;
  char buf[64] = {0};
  for (unsigned i = 0; goes_on(b); i++) {
    conc_lock *lock = &b->locks[i % 2];
    if (conc_lock_acquire(lock, 0.01) != 0) continue;
    if (i % 7 == 0) conc_cond_wait(&b->cond, lock, 0.0002);
    if (i % 5 == 0) conc_cond_notify(&b->cond, 1);
    conc_lock_release(lock);
    conc_put(b->queues[i % 2], buf, i % 64, 0.001);
    conc_get(b->queues[i % 2], buf, sizeof buf, 0.001);
    use_owned(false);
    if (conc_sem_acquire(&sem, 0.001) == 0) conc_sem_release(&sem, 1);
    if (i % 3 == 0) conc_event_set(&b->event);
    if (i % 3 == 1) conc_event_wait(&b->event, 0.0001);
    if (i % 3 == 2) conc_event_clear(&b->event);
  }
  return NULL;
}

static void *hammer_loop(void *arg) {
  busy *b = (busy *)arg;
  conc_task t[4];
  memset(t, 0, sizeof t);
  while (goes_on(b)) {
    for (int i = 0; i < 4; i++) {
      t[i].target = i < 2 ? hammer : use_some;
      t[i].arg = b;
    }
    t[2].target = t[3].target = hammer;
    for (int i = 0; i < 4; i++) CHECK_EQ(conc_coro_start(&t[i]), 0);
    for (int i = 0; i < 4; i++) conc_join(&t[i], 60);
  }
  return NULL;
}

static void *hammer_in_loop(void *arg) {
  conc_task root = {.target = hammer_loop, .arg = arg};
  CHECK_EQ(conc_run(&root), 0);
  return NULL;
}

static void *start_and_join(void *arg) {
  busy *b = (busy *)arg;
  while (goes_on(b)) {
    used u;
    conc_task t;
    memset(&u, 0, sizeof u);
    memset(&t, 0, sizeof t);
    u.queue = conc_queue_new(NULL);
    t.target = use_some;
    t.arg = &u;
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, 60), 0);
    conc_queue_free(u.queue);
  }
  return NULL;
}

static void *ask_manager(void *arg) {
  busy *b = (busy *)arg;
  conc_manager m;
  conc_queue *q;
  char buf[8];
  memset(&m, 0, sizeof m);
  m.address = conc_manager_address(&b->server);
  CHECK_EQ(conc_manager_connect(&m, 20), 0);
  q = conc_manager_get(&m, "q");
  CHECK(q != NULL);
  while (goes_on(b)) {
    /* The others fill and empty it, too. */
    conc_put(q, "asked", 5, 0.01);
    conc_get(q, buf, sizeof buf, 0.01);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  return NULL;
}

static void be_busy(busy *b) {
  void *(*const work[BUSY])(void *) = {hammer,         hammer,
                                       hammer,         hammer_in_loop,
                                       hammer_in_loop, start_and_join,
                                       start_and_join, ask_manager};
  memset(b, 0, sizeof *b);
  for (int i = 0; i < 2; i++) {
    conc_queue_opts o = {.capacity = 2};
    b->queues[i] = conc_queue_new(&o);
  }
  b->server.no_auth = true;
  CHECK_EQ(conc_manager_register_queue(&b->server, "q", b->queues[0]), 0);
  CHECK_EQ(conc_manager_start(&b->server), 0);
  for (int i = 0; i < BUSY; i++) {
    b->threads[i].target = work[i];
    b->threads[i].arg = b;
    CHECK_EQ(conc_thread_start(&b->threads[i]), 0);
  }
}

static void rest(busy *b) {
  __atomic_store_n(&b->stop, true, __ATOMIC_RELAXED);
  for (int i = 0; i < BUSY; i++) CHECK_EQ(conc_join(&b->threads[i], 60), 0);
  CHECK_EQ(conc_manager_shutdown(&b->server), 0);
  for (int i = 0; i < 2; i++) conc_queue_free(b->queues[i]);
  conc_local_free(&local);
}

/* In the child: its own use of everything, and what the parent's threads left
   behind. */
static void use_what_is_left(void *arg) {
  busy *b = (busy *)arg;
  char buf[64];
  for (int i = 0; i < 2; i++) {
    int rc = conc_lock_acquire(&b->locks[i], 5);
    CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
    CHECK_CHILD(conc_lock_release(&b->locks[i]) == 0);
    CHECK_CHILD(conc_lock_acquire(&b->locks[i], 0) == 0); /* once */
    CHECK_CHILD(conc_lock_release(&b->locks[i]) == 0);
    while (conc_get(b->queues[i], buf, sizeof buf, 0) >= 0) {
    }
    CHECK_CHILD(AS_FIFO(b->queues[i])->getters.first == NULL);
    CHECK_CHILD(AS_FIFO(b->queues[i])->putters.first == NULL);
    CHECK_CHILD(conc_put(b->queues[i], "x", 1, 0) == 0);
    CHECK_CHILD(conc_get(b->queues[i], buf, sizeof buf, 0) == 1);
    CHECK_CHILD(b->locks[i].waiters.first == NULL);
  }
  CHECK_CHILD(b->cond.waiters.first == NULL);
  CHECK_CHILD(b->event.waiters.first == NULL);
  for (int i = 0; i < BUSY; i++) {
    CHECK_CHILD(!conc_is_alive(&b->threads[i]));
    CHECK_CHILD(conc_join(&b->threads[i], 5) == -ECHILD);
  }
  use_everything();
  CHECK_CHILD(conc_manager_shutdown(&b->server) == 0);
}

/* What cannot do it. */
static void skip_where_children_have_no_threads(void) {
  if (TEST_TSAN)
    SKIP("ThreadSanitizer has no threads in a child of a process with them");
  if (test_wrapped("qemu"))
    SKIP("qemu-user has no threads in a child of a process with them");
}

static int rounds(int usual) {
  return (int)test_asked("FORK_ROUNDS", usual);
}

TEST(a_child_of_a_busy_process_can_use_everything) {
  static busy b;
  skip_where_children_have_no_threads();
  be_busy(&b);
  for (int i = 0; i < rounds(60); i++) {
    int status = in_child(use_what_is_left, &b);
    CHECK_EQ(status, 0);
    if (status != 0) break;
  }
  rest(&b);
}

/* --- forks from a loop ---------------------------------------------------- */

typedef struct shared {
  conc_event go;
  conc_lock lock;
  conc_queue *queue;
  int woken, lost; /* by coroutines that came along */
} shared;

static void *wait_for_go(void *arg) {
  shared *s = (shared *)arg;
  int rc = conc_lock_acquire(&s->lock, CONC_FOREVER);
  if (rc == -EOWNERDEAD) s->lost++;
  CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  s->woken++;
  CHECK_CHILD(conc_lock_release(&s->lock) == 0);
  CHECK_CHILD(conc_event_wait(&s->go, CONC_FOREVER) == 0);
  s->woken++;
  return NULL;
}

/* Holds the lock for ever, or rather until it is told to go. */
static void *hold(void *arg) {
  shared *s = (shared *)arg;
  CHECK_CHILD(conc_lock_acquire(&s->lock, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_put(s->queue, "held", 4, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_event_wait(&s->go, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_lock_release(&s->lock) == 0);
  return NULL;
}

static bool has_waiters(shared *s, int n) {
  conc__waiter *w;
  conc__mutex_lock(conc__mutex_of(&s->lock));
  for (w = s->lock.waiters.first; w != NULL; w = w->next) n--;
  conc__mutex_unlock(conc__mutex_of(&s->lock));
  return n <= 0;
}

static void *fork_here(void *arg) {
  shared *s = (shared *)arg;
  conc_task holder = {.target = hold, .arg = s};
  conc_task waiters[3], *joined = &holder;
  int status, fds[2];
  char buf[8];
  pid_t pid;
  memset(waiters, 0, sizeof waiters);
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(conc_thread_start(&holder), 0);
  CHECK_EQ(conc_get(s->queue, buf, sizeof buf, 5), 4);
  for (int i = 0; i < 3; i++) {
    waiters[i].target = wait_for_go;
    waiters[i].arg = s;
    CHECK_EQ(conc_coro_start(&waiters[i]), 0);
  }
  while (!has_waiters(s, 3)) conc_yield_now();
  pid = (fflush(NULL), fork());
  if (pid == 0) {
    alarm(20);
    CHECK_CHILD(conc_join(joined, 5) == -ECHILD);
    use_everything();
    conc_event_set(&s->go);
    for (int i = 0; i < 3; i++) CHECK_CHILD(conc_join(&waiters[i], 5) == 0);
    CHECK_CHILD(s->woken == 6);
    CHECK_CHILD(s->lost == 1); /* one has heard that the owner is gone */
    _exit(0);
  }
  conc_event_set(&s->go);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&waiters[i], 5), 0);
  CHECK_EQ(s->woken, 6);
  CHECK_EQ(s->lost, 0);
  CHECK_EQ(conc_join(&holder, 5), 0);
  /* The loop's poller is its own still: this needs it. */
  CHECK_EQ(conc_read(fds[0], buf, 1, 0.01), -ETIMEDOUT);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  close(fds[0]);
  close(fds[1]);
  return NULL;
}

TEST(coroutines_come_along_and_their_locks_owner_does_not) {
  skip_where_children_have_no_threads();
  for (int i = 0; i < 20; i++) {
    shared s;
    conc_task root = {.target = fork_here, .arg = &s};
    memset(&s, 0, sizeof s);
    s.queue = conc_queue_new(NULL);
    CHECK_EQ(conc_run(&root), 0);
    conc_queue_free(s.queue);
  }
}

/* A thread waits in front of a coroutine, was woken, and stays behind before
   it looked: what it was woken for is there for the coroutine. */
enum { A_MESSAGE, ROOM, A_LOCK, READING };

typedef struct behind {
  int kind;
  conc_queue *queue;
  conc_lock lock;
  conc_rwlock rwlock;
} behind;

static conc__waiter *first_waiter(behind *b) {
  return b->kind == A_MESSAGE ? AS_FIFO(b->queue)->getters.first
         : b->kind == ROOM    ? AS_FIFO(b->queue)->putters.first
         : b->kind == A_LOCK  ? b->lock.waiters.first
                              : b->rwlock.waiters.first;
}

static conc__mutex *waiters_guard(behind *b) {
  return b->kind == A_MESSAGE ? conc__fifo_put_guard(AS_FIFO(b->queue))
         : b->kind == ROOM    ? conc__fifo_get_guard(AS_FIFO(b->queue))
         : b->kind == A_LOCK  ? conc__mutex_of(&b->lock)
                              : conc__mutex_of(&b->rwlock);
}

/* There are so many, and the first one sleeps. */
static bool are_waiting(behind *b, int n) {
  conc__waiter *w;
  bool yes;
  conc__mutex_lock(waiters_guard(b));
  w = first_waiter(b);
  yes = w != NULL && (__atomic_load_n(&w->actor->word, __ATOMIC_ACQUIRE) &
                      CONC__PARKED);
  for (; w != NULL; w = w->next) n--;
  conc__mutex_unlock(waiters_guard(b));
  return yes && n <= 0;
}

static void *wait_behind(void *arg) {
  behind *b = (behind *)arg;
  char buf[8];
  can_be_held_up = conc__self()->ops == &conc__thread_class;
  if (b->kind == A_MESSAGE) CHECK_CHILD(conc_get(b->queue, buf, 8, 20) == 1);
  if (b->kind == ROOM) CHECK_CHILD(conc_put(b->queue, "y", 1, 20) == 0);
  if (b->kind == A_LOCK) {
    CHECK_CHILD(conc_lock_acquire(&b->lock, 20) == 0);
    CHECK_CHILD(conc_lock_release(&b->lock) == 0);
  }
  if (b->kind == READING) {
    CHECK_CHILD(conc_rwlock_write_acquire(&b->rwlock, 20) == 0);
    CHECK_CHILD(conc_rwlock_release(&b->rwlock) == 0);
  }
  return NULL;
}

/* Wakes the first, without handing it a lock. */
static void wake_one(behind *b) {
  char buf[8];
  if (b->kind >= A_LOCK) first_waiter(b)->since = conc_now() + 100;
  if (b->kind == A_MESSAGE) CHECK_EQ(conc_put(b->queue, "x", 1, 9), 0);
  if (b->kind == ROOM) CHECK_EQ(conc_get(b->queue, buf, 8, 9), 1);
  if (b->kind == A_LOCK) CHECK_EQ(conc_lock_release(&b->lock), 0);
  if (b->kind == READING) CHECK_EQ(conc_rwlock_release(&b->rwlock), 0);
}

static void *fork_behind(void *arg) {
  behind *b = (behind *)arg;
  conc_task thread = {.target = wait_behind, .arg = b};
  conc_task coroutine = {.target = wait_behind, .arg = b};
  int status;
  pid_t pid;
  CHECK_EQ(conc_lock_acquire(&b->lock, 0), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&b->rwlock, 0), 0);
  CHECK_EQ(conc_thread_start(&thread), 0);
  while (!are_waiting(b, 1)) conc_yield_now();
  CHECK_EQ(conc_coro_start(&coroutine), 0);
  while (!are_waiting(b, 2)) conc_yield_now();
  __atomic_store_n(&held_up, 1, __ATOMIC_RELEASE);
  wake_one(b);
  pid = (fflush(NULL), fork());
  if (pid == 0) {
    alarm(20);
    CHECK_CHILD(conc_join(&coroutine, 5) == 0);
    _exit(0);
  }
  __atomic_store_n(&held_up, 0, __ATOMIC_RELEASE);
  if (b->kind < A_LOCK) wake_one(b);
  CHECK_EQ(conc_join(&thread, 10), 0);
  CHECK_EQ(conc_join(&coroutine, 10), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  return NULL;
}

TEST(what_somebody_was_woken_for_who_stays_behind_is_not_left_there) {
  conc_queue_opts one = {.capacity = 1};
  skip_where_children_have_no_threads();
  for (int i = 0; i < 40; i++) {
    behind b;
    conc_task root = {.target = fork_behind, .arg = &b};
    memset(&b, 0, sizeof b);
    b.kind = i % 4;
    b.queue = conc_queue_new(&one);
    if (b.kind == ROOM) CHECK_EQ(conc_put(b.queue, "x", 1, 0), 0);
    CHECK_EQ(conc_run(&root), 0);
    conc_queue_free(b.queue);
  }
}

/* --- who owns what in the child ------------------------------------------ */

typedef struct owners {
  conc_lock mine, other;
  conc_rlock deep;
  conc_rwlock written, read;
  conc_once once;
  conc_barrier barrier;
  conc_task parts[3];
  conc_event held, go;
} owners;

static int hold_once(void *arg) {
  owners *o = (owners *)arg;
  conc_event_set(&o->held);
  CHECK_EQ(conc_event_wait(&o->go, CONC_FOREVER), 0);
  return 0;
}

static int do_once(void *arg) { return *(int *)arg += 1; }

static void *come_to_barrier(void *arg) {
  CHECK_EQ(conc_barrier_wait(&((owners *)arg)->barrier, CONC_FOREVER), -EPIPE);
  return NULL;
}

static void *own_other(void *arg) {
  owners *o = (owners *)arg;
  CHECK_EQ(conc_lock_acquire(&o->other, CONC_FOREVER), 0);
  CHECK_EQ(conc_rlock_acquire(&o->deep, CONC_FOREVER), 0);
  CHECK_EQ(conc_rlock_acquire(&o->deep, CONC_FOREVER), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&o->written, CONC_FOREVER), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&o->read, CONC_FOREVER), 0);
  CHECK_EQ(conc_once_run(&o->once, hold_once, o, CONC_FOREVER), 0);
  CHECK_EQ(conc_rwlock_release(&o->read), 0);
  CHECK_EQ(conc_rwlock_release(&o->written), 0);
  CHECK_EQ(conc_rlock_release(&o->deep), 0);
  CHECK_EQ(conc_rlock_release(&o->deep), 0);
  CHECK_EQ(conc_lock_release(&o->other), 0);
  return NULL;
}

static void *want_other(void *arg) {
  CHECK_CHILD(conc_lock_acquire(&((owners *)arg)->other, 5) == 0);
  return arg;
}

/* Of each kind: what another thread owned is free, and says so once. */
static void look_at_kinds(owners *o) {
  int did = 0;
  CHECK_CHILD(conc_rlock_acquire(&o->deep, 0) == -EOWNERDEAD);
  CHECK_CHILD(conc_rlock_release(&o->deep) == 0);
  CHECK_CHILD(conc_rlock_release(&o->deep) == -EPERM);
  CHECK_CHILD(conc_rwlock_read_acquire(&o->written, 0) == -EOWNERDEAD);
  CHECK_CHILD(conc_rwlock_release(&o->written) == 0);
  CHECK_CHILD(conc_rwlock_write_acquire(&o->written, 0) == 0);
  CHECK_CHILD(conc_rwlock_release(&o->written) == 0);
  /* Readers do no harm. */
  CHECK_CHILD(conc_rwlock_write_acquire(&o->read, 0) == 0);
  CHECK_CHILD(conc_rwlock_release(&o->read) == 0);
  CHECK_CHILD(conc_once_run(&o->once, do_once, &did, 0) == 0);
  CHECK_CHILD(conc_once_run(&o->once, do_once, &did, 0) == 0);
  CHECK_CHILD(did == 1);
  CHECK_CHILD(conc_barrier_wait(&o->barrier, 5) == -EPIPE);
  CHECK_CHILD(conc_barrier_reset(&o->barrier) == 0);
  CHECK_CHILD(conc_barrier_wait(&o->barrier, 0) == -ETIMEDOUT);
}

static void look_at_all(void *arg) {
  owners *o = (owners *)arg;
  look_at_kinds(o);
  CONC_WITH(&o->other) CHECK_CHILD(0 && "a block that must not run");
  else CHECK_CHILD(errno == EOWNERDEAD);
  CHECK_CHILD(!conc_lock_locked(&o->other));
}

static void look_at_owners(void *arg) {
  owners *o = (owners *)arg;
  conc_task t = {.target = want_other, .arg = o};
  CHECK_CHILD(conc_lock_acquire(&o->mine, 0) == -EDEADLK); /* still mine */
  CHECK_CHILD(conc_lock_release(&o->mine) == 0);
  CHECK_CHILD(conc_lock_acquire(&o->other, 0) == -EOWNERDEAD); /* and taken */
  CHECK_CHILD(conc_lock_acquire(&o->other, 0) == -EDEADLK);
  CHECK_CHILD(conc_lock_release(&o->other) == 0);
  CHECK_CHILD(conc_thread_start(&t) == 0);
  CHECK_CHILD(conc_join(&t, 5) == 0);
  CHECK_CHILD(conc_result(&t) == o);
}

static void fork_again(void *arg) {
  owners *o = (owners *)arg;
  CHECK_CHILD(conc_lock_acquire(&o->other, 0) == -EOWNERDEAD);
  /* What it holds is mine, not gone. */
  CHECK_CHILD(in_child(look_at_owners, o) == CHECK_CHILD_FAILED);
  CHECK_CHILD(conc_lock_release(&o->other) == 0);
}

TEST(a_child_owns_what_its_thread_owned_and_nothing_else) {
  owners o;
  conc_task t = {.target = own_other, .arg = &o};
  skip_where_children_have_no_threads();
  memset(&o, 0, sizeof o);
  CHECK_EQ(conc_lock_acquire(&o.mine, 0), 0);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_event_wait(&o.held, CONC_FOREVER), 0);
  o.barrier.parties = 4;
  for (int i = 0; i < 3; i++) {
    o.parts[i].target = come_to_barrier;
    o.parts[i].arg = &o;
    CHECK_EQ(conc_thread_start(&o.parts[i]), 0);
  }
  while (conc_barrier_n_waiting(&o.barrier) < 3) conc_yield_now();
  CHECK_EQ(in_child(look_at_owners, &o), 0);
  CHECK_EQ(in_child(look_at_all, &o), 0);
  CHECK(freopen("/dev/null", "w", stderr) != NULL); /* a grandchild fails */
  CHECK_EQ(in_child(fork_again, &o), 0);
  conc_event_set(&o.go);
  CHECK_EQ(conc_barrier_abort(&o.barrier), 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&o.parts[i], 5), 0);
  CHECK_EQ(conc_join(&t, 5), 0);
  CHECK_EQ(conc_lock_release(&o.mine), 0);
}

/* --- between a notify and the release ------------------------------------ */

typedef struct notice {
  conc_lock lock;
  conc_cond cond;
  conc_event waits;
  bool coroutine;
  int got, status;
} notice;

static void *await_notice(void *arg) {
  notice *n = (notice *)arg;
  CHECK_CHILD(conc_lock_acquire(&n->lock, CONC_FOREVER) == 0);
  conc_event_set(&n->waits);
  CHECK_CHILD(conc_cond_wait(&n->cond, &n->lock, CONC_FOREVER) == 0);
  n->got++;
  CHECK_CHILD(conc_lock_release(&n->lock) == 0);
  return NULL;
}

static void go_on_after_notice(void *arg) {
  notice *n = (notice *)arg;
  conc_task t = {.target = await_notice, .arg = n};
  CHECK_CHILD(conc_lock_release(&n->lock) == 0);
  for (int i = 0; n->coroutine && i < 1000 && n->got == 0; i++)
    conc_yield_now();
  CHECK_CHILD(n->got == n->coroutine); /* a thread has stayed in the parent */
  conc_event_clear(&n->waits);
  CHECK_CHILD(conc_thread_start(&t) == 0);
  CHECK_CHILD(conc_event_wait(&n->waits, 5) == 0);
  CHECK_CHILD(conc_lock_acquire(&n->lock, 5) == 0);
  CHECK_CHILD(conc_cond_notify(&n->cond, 1) == 0);
  CHECK_CHILD(conc_lock_release(&n->lock) == 0);
  CHECK_CHILD(conc_join(&t, 5) == 0);
  CHECK_CHILD(n->got == n->coroutine + 1);
}

static void *notify_and_fork(void *arg) {
  notice *n = (notice *)arg;
  conc_task t = {.target = await_notice, .arg = n};
  CHECK_EQ(n->coroutine ? conc_coro_start(&t) : conc_thread_start(&t), 0);
  CHECK_EQ(conc_event_wait(&n->waits, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_acquire(&n->lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_notify(&n->cond, 1), 0);
  n->status = in_child(go_on_after_notice, n);
  CHECK_EQ(conc_lock_release(&n->lock), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(n->got, 1);
  return NULL;
}

TEST(a_child_may_release_the_lock_that_its_parent_notified_under) {
  skip_where_children_have_no_threads();
  for (int coroutine = 0; coroutine < 2; coroutine++) {
    notice n;
    conc_task t = {.target = notify_and_fork, .arg = &n};
    memset(&n, 0, sizeof n);
    n.coroutine = coroutine != 0;
    if (coroutine)
      CHECK_EQ(conc_run(&t), 0);
    else
      notify_and_fork(&n);
    CHECK_EQ(n.status, 0);
  }
}

/* A task of a group forks before conc_group_start is done with it: in the child
   the one that was starting it is missing, and the stack on which it noted that
   may be another one's. */
static conc_event begun_in_group;

static int start_slowly(conc_task *t) {
  int rc = conc_thread_start(t);
  CHECK_EQ(conc_event_wait(&begun_in_group, CONC_FOREVER), 0);
  return rc;
}

static conc_task **note_of_starter, not_a_task;

static void *judge_the_end(void *task) {
  CHECK_CHILD(conc_join((conc_task *)task, CONC_FOREVER) == 0);
  CHECK_CHILD(*note_of_starter == &not_a_task);
  _exit(0);
}

static void *fork_before_it_is_started(void *task) {
  static conc_task judge;
  conc_task *t = (conc_task *)task;
  int status;
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    note_of_starter = t->sibling_link;
    *note_of_starter = &not_a_task; /* it is used for something else */
    judge.target = judge_the_end;
    judge.arg = task;
    CHECK_CHILD(conc_thread_start(&judge) == 0);
    return NULL;
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  conc_event_set(&begun_in_group);
  return NULL;
}

TEST(a_child_writes_nothing_for_who_started_its_task) {
  conc_group g;
  conc_task t = {.target = fork_before_it_is_started, .arg = &t};
  skip_where_children_have_no_threads();
  memset(&g, 0, sizeof g);
  CHECK_EQ(conc_group_start(&g, &t, start_slowly), 0);
  CHECK_EQ(conc_group_leave(&g, CONC_FOREVER), 0);
}

TEST_MAIN
