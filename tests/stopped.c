/* A process that is stopped (SIGSTOP) in the middle of a call, wherever that
   is, keeps no other one beyond its time limit; nor do those that wait cost
   anything, or touch what they have let go. From inside, to stop a child at
   each step that it makes in memory that is shared. */
#include "test.h"

static void test_point(void);
#define CONC__POINT() test_point()
#include "inside.h"
#include "primitives.h"
#include "tasks.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

static __thread int steps_left = -1; /* < 0: it is not to be stopped */

static void test_point(void) {
  if (steps_left >= 0 && steps_left-- == 0) raise(SIGSTOP);
}

/* What the processes share. */
typedef struct table {
  primitives each;
  conc_lock condlock;
  unsigned ready, count;
} table;

static table *all;
static primitives *its; /* the first of that */

static int nothing(void *arg) {
  (void)arg;
  return 0;
}

static void lay(void) {
  if (its == NULL) all = (table *)conc_shared_alloc(sizeof *all);
  CHECK(all != NULL);
  memset(all, 0, sizeof *all);
  its = &all->each;
  share(its, 1, 2);
  CHECK_EQ(conc_lock_init_shared(&all->condlock), 0);
}

/* --- stopped at any step -------------------------------------------------- */

/* What a child does, to be stopped in; and what is tried then. All is as new
   for each step. */
static void do_lock(void) {
  if (conc_lock_acquire(&its->lock, 0.01) == 0) conc_lock_release(&its->lock);
}
static void do_read(void) {
  if (conc_rwlock_read_acquire(&its->rwlock, 0.01) == 0)
    conc_rwlock_release(&its->rwlock);
}
static void do_write(void) {
  if (conc_rwlock_write_acquire(&its->rwlock, 0.01) == 0)
    conc_rwlock_release(&its->rwlock);
}
static void do_rwlock(void) {
  do_read();
  do_write();
  do_read();
}
static void do_wait(void) {
  CHECK_CHILD(conc_lock_acquire(&its->lock, 0.01) == 0);
  conc_cond_wait(&its->cond, &its->lock, 0.001);
  conc_lock_release(&its->lock);
}
static void do_notify(void) {
  conc_cond_notify(&its->cond, 1);
  conc_cond_notify_all(&its->cond);
}
static void do_barrier(void) {
  conc_barrier_wait(&its->barrier, 0.001);
  conc_barrier_reset(&its->barrier);
}
static void do_sem(void) {
  if (conc_sem_acquire(&its->sem, 0.001) == 0) conc_sem_release(&its->sem, 1);
}
static void do_event(void) {
  conc_event_wait(&its->event, 0.001);
  conc_event_set(&its->event);
  conc_event_clear(&its->event);
}
static void do_once(void) { conc_once_run(&its->once, nothing, NULL, 0.001); }

/* A condition with a lock that the stopped one does not want. */
static void try_cond(void) {
  CHECK_EQ(conc_lock_acquire(&all->condlock, 1), 0);
  conc_cond_wait(&its->cond, &all->condlock, 0.001);
  conc_cond_notify(&its->cond, 1);
  conc_cond_notify_all(&its->cond);
  CHECK_EQ(conc_lock_release(&all->condlock), 0);
}

/* Returns false if the child has ended before that step. */
static bool stop_at(void (*act)(void), void (*attempt)(void), int step) {
  int status;
  double began;
  pid_t pid;
  lay();
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    steps_left = step;
    act();
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
  if (!WIFSTOPPED(status)) {
    CHECK_EQ(status, 0);
    return false;
  }
  began = test_now();
  attempt();
  if (test_now() - began > 5 * test_slow())
    TEST_FAIL("stopped at step %d: %.3f s", step, test_now() - began);
  CHECK_EQ(kill(pid, SIGKILL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  attempt();
  return true;
}

#define STOPPED(name, act, attempt)                                           \
  TEST(name) {                                                                \
    int step = 0;                                                             \
    NEEDS_FORK;                                                               \
    while (stop_at(act, attempt, step)) step++;                               \
    CHECK(step > 0);                                                          \
    conc_shared_free(its);                                                    \
  }

STOPPED(a_process_stopped_at_a_lock_stops_nobody, do_lock, do_lock)
STOPPED(a_process_stopped_at_a_rwlock_stops_nobody, do_rwlock, do_rwlock)
STOPPED(a_process_stopped_at_a_condition_stops_nobody, do_wait, try_cond)
STOPPED(a_process_stopped_in_a_notify_stops_nobody, do_notify, try_cond)
STOPPED(a_process_stopped_at_a_barrier_stops_nobody, do_barrier, do_barrier)
STOPPED(a_process_stopped_at_a_semaphore_stops_nobody, do_sem, do_sem)
STOPPED(a_process_stopped_at_an_event_stops_nobody, do_event, do_event)
STOPPED(a_process_stopped_at_a_once_stops_nobody, do_once, do_once)

/* --- waiting costs nothing ------------------------------------------------ */

enum { MANY = 300 };

static void *want_lock(void *arg) {
  ADD_FETCH(all->ready, 1);
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), 0);
  ADD_FETCH(all->count, 1);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  return arg;
}
static void *want_event(void *arg) {
  ADD_FETCH(all->ready, 1);
  CHECK_EQ(conc_event_wait(&its->event, CONC_FOREVER), 0);
  ADD_FETCH(all->count, 1);
  return arg;
}
static void *want_cond(void *arg) {
  CHECK_EQ(conc_lock_acquire(&all->condlock, CONC_FOREVER), 0);
  ADD_FETCH(all->ready, 1);
  CHECK_EQ(conc_cond_wait(&its->cond, &all->condlock, CONC_FOREVER), 0);
  ADD_FETCH(all->count, 1);
  CHECK_EQ(conc_lock_release(&all->condlock), 0);
  return arg;
}
static void *want_sem(void *arg) {
  ADD_FETCH(all->ready, 1);
  CHECK_EQ(conc_sem_acquire(&its->sem, CONC_FOREVER), 0);
  ADD_FETCH(all->count, 1);
  return arg;
}
static void *want_read(void *arg) {
  ADD_FETCH(all->ready, 1);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, CONC_FOREVER), 0);
  ADD_FETCH(all->count, 1);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  return arg;
}
static void *want_barrier(void *arg) {
  ADD_FETCH(all->ready, 1);
  CHECK(conc_barrier_wait(&its->barrier, CONC_FOREVER) >= 0);
  ADD_FETCH(all->count, 1);
  return arg;
}

static long switches(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_nvcsw;
}

/* Many threads wait; in a while of that they hardly ever run. */
static void many_wait(conc_fn *what) {
  static conc_task tasks[MANY];
  long before;
  int i;
  double end;
  lay();
  its->sem.shared = 0;
  its->barrier.parties = MANY + 1;
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), 0);
  for (i = 0; i < MANY; i++) {
    tasks[i].stack_size = 65536;
    tasks[i].target = what;
    CHECK_EQ(conc_thread_start(&tasks[i]), 0);
  }
  UNTIL(LOAD(all->ready) == MANY);
  /* Until all follow the one that looks; a machine with other things to do
     takes longer. */
  end = test_now() + 5 * test_slow();
  do {
    CHECK(test_now() < end);
    before = switches();
    usleep(100000);
    before = switches() - before;
  } while (before > MANY);
  CHECK_EQ(LOAD(all->count), 0);
  /* Each lets all go, one after the other or at once. */
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  CHECK_EQ(conc_event_set(&its->event), 0);
  CHECK_EQ(conc_sem_release(&its->sem, MANY), 0);
  CHECK_EQ(conc_cond_notify_all(&its->cond), 0);
  if (what == want_barrier)
    CHECK(conc_barrier_wait(&its->barrier, CONC_FOREVER) >= 0);
  for (i = 0; i < MANY; i++)
    CHECK_EQ(conc_join(&tasks[i], CONC_FOREVER), 0);
  CHECK_EQ(LOAD(all->count), MANY);
}

TEST(of_many_that_wait_for_another_process_one_looks) {
  conc_fn *const fns[] = {want_lock, want_event, want_cond,
                          want_sem,  want_read,  want_barrier};
  if (!CONC_HAVE_FUTEX) SKIP("threads look by turns");
  for (size_t i = 0; i < sizeof fns / sizeof *fns; i++) many_wait(fns[i]);
  conc_shared_free(its);
}

/* The one that looks stayed in the parent: a child does not follow it. */
static bool has_sentry(const unsigned *word) {
  bool has;
  conc__mutex_lock(conc__mutex_of(word));
  has = conc__sentries[conc__sentry_bucket(word)] != NULL;
  conc__mutex_unlock(conc__mutex_of(word));
  return has;
}
TEST(a_forked_child_has_no_sentry_of_its_parent) {
  const unsigned *word;
  conc_task t;
  int status;
  pid_t pid;
  NEEDS_FORK;
  lay();
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), 0);
  word = &its->lock.claim.word;
  start(conc_thread_start, &t, want_lock, NULL);
  UNTIL(has_sentry(word));
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) _exit(has_sentry(word));
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  conc_shared_free(its);
}

/* The one that looks ends its wait: another one looks. And all that follow it
   are cancelled at once. */
static void *till(void *arg) {
  int rc = conc_lock_acquire(&its->lock, *(double *)arg);
  ADD_FETCH(all->count, 1);
  return (void *)(intptr_t)rc;
}
TEST(who_follows_keeps_its_time_and_is_cancelled) {
  static double soon = 0.08, never = CONC_FOREVER;
  conc_task t[20];
  int i, status;
  pid_t pid;
  NEEDS_FORK;
  lay();
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_CHILD(conc_lock_acquire(&its->lock, 0) == 0);
    STORE(all->ready, 1);
    pause();
  }
  UNTIL(LOAD(all->ready) == 1);
  for (i = 0; i < 20; i++)
    start(conc_thread_start, &t[i], till, i % 2 ? &soon : &never);
  for (i = 1; i < 20; i += 2) {
    CHECK_EQ(conc_join(&t[i], 10), 0);
    CHECK_EQ((int)(intptr_t)conc_result(&t[i]), -ETIMEDOUT);
  }
  for (i = 0; i < 10; i += 2) {
    CHECK_EQ(conc_cancel(&t[i]), 0);
    CHECK_EQ(conc_join(&t[i], 10), -ECANCELED);
  }
  CHECK_EQ(LOAD(all->count), 15);
  /* Then the owner dies: one is told, and leaves the lock with it. */
  CHECK_EQ(kill(pid, SIGKILL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  UNTIL(LOAD(all->count) == 16);
  for (i = 10; i < 20; i += 2) conc_cancel(&t[i]);
  for (i = 10; i < 20; i += 2) conc_join(&t[i], CONC_FOREVER);
  conc_shared_free(its);
}

/* --- what was let go may free it ------------------------------------------ */

typedef struct round {
  conc_lock lock;
  conc_cond cond;
  conc_event event;
  conc_sem sem;
  conc_barrier barrier;
  conc_rwlock rwlock;
  int go;
} round_of;

static round_of *now_used;

static void *gone_after_wait(void *arg) {
  round_of *r = now_used;
  bool shared = arg != NULL;
  int what = r->go;
  int rc = 0;
  if (what == 0) rc = conc_event_wait(&r->event, 10);
  if (what == 1) rc = conc_sem_acquire(&r->sem, 10);
  if (what == 2) rc = conc_barrier_wait(&r->barrier, 10) < 0;
  if (what == 3) {
    CHECK_EQ(conc_lock_acquire(&r->lock, 10), 0);
    STORE(r->go, -1);
    rc = conc_cond_wait(&r->cond, &r->lock, 10);
    /* Of the lock its release is the last. */
    CHECK_EQ(conc_lock_release(&r->lock), 0);
  }
  if (what == 4) rc = conc_rwlock_write_acquire(&r->rwlock, 10);
  CHECK_EQ(rc, 0);
  if (what == 2) return arg; /* either of the two may be the last */
  if (shared)
    conc_shared_free(r);
  else
    munmap(r, sizeof *r);
  return arg;
}

static void free_when_let_go(int what, bool shared) {
  round_of *r;
  conc_task t;
  if (shared)
    r = (round_of *)conc_shared_alloc(sizeof *r);
  else
    r = (round_of *)mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(r != NULL && r != (round_of *)MAP_FAILED);
  r->barrier.parties = 2;
  r->go = what;
  if (shared) {
    CHECK_EQ(conc_lock_init_shared(&r->lock), 0);
    CHECK_EQ(conc_cond_init_shared(&r->cond), 0);
    CHECK_EQ(conc_event_init_shared(&r->event), 0);
    CHECK_EQ(conc_sem_init_shared(&r->sem), 0);
    CHECK_EQ(conc_barrier_init_shared(&r->barrier), 0);
    CHECK_EQ(conc_rwlock_init_shared(&r->rwlock), 0);
  }
  now_used = r;
  if (what == 4) CHECK_EQ(conc_rwlock_read_acquire(&r->rwlock, 0), 0);
  start(conc_thread_start, &t, gone_after_wait, shared ? r : NULL);
  if (what == 3) {
    UNTIL(LOAD(r->go) == -1);
    CHECK_EQ(conc_lock_acquire(&r->lock, 10), 0);
    CHECK_EQ(conc_lock_release(&r->lock), 0);
    CHECK_EQ(conc_cond_notify_all(&r->cond), 0);
  }
  if (what == 0) CHECK_EQ(conc_event_set(&r->event), 0);
  if (what == 1) CHECK_EQ(conc_sem_release(&r->sem, 1), 0);
  if (what == 2) CHECK(conc_barrier_wait(&r->barrier, 10) >= 0);
  if (what == 4) CHECK_EQ(conc_rwlock_release(&r->rwlock), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  if (what != 2) return;
  if (shared)
    conc_shared_free(r);
  else
    munmap(r, sizeof *r);
}

TEST(who_was_let_go_last_may_free_it) {
  int rounds = (int)test_asked("STOPPED_ROUNDS", 300);
  for (int i = 0; i < rounds; i++)
    for (int what = 0; what < 5; what++)
      for (int shared = 0; shared < 2; shared++)
        free_when_let_go(what, shared);
}

/* Made anew right after a notify to all: those that it let go return. */
static void *wait_then_count(void *arg) {
  CHECK_EQ(conc_lock_acquire(&its->lock, 10), 0);
  ADD_FETCH(all->ready, 1);
  CHECK_EQ(conc_cond_wait(&its->cond, &its->lock, 10), 0);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  ADD_FETCH(all->count, 1);
  return arg;
}
TEST(a_condition_may_be_made_anew_when_all_have_been_notified) {
  int rounds = (int)test_asked("STOPPED_ROUNDS", 300);
  conc_task t[3];
  for (int i = 0; i < rounds; i++) {
    lay();
    for (int k = 0; k < 3; k++)
      start(conc_thread_start, &t[k], wait_then_count, NULL);
    UNTIL(LOAD(all->ready) == 3);
    CHECK_EQ(conc_lock_acquire(&its->lock, 10), 0);
    CHECK_EQ(conc_cond_notify_all(&its->cond), 0);
    if (i % 3 == 0)
      CHECK_EQ(conc_cond_init_shared(&its->cond), 0);
    else if (i % 3 == 1)
      memset(&its->cond, 0, sizeof its->cond);
    CHECK_EQ(conc_lock_release(&its->lock), 0);
    for (int k = 0; k < 3; k++) CHECK_EQ(conc_join(&t[k], CONC_FOREVER), 0);
    CHECK_EQ(LOAD(all->count), 3);
  }
  conc_shared_free(its);
}

TEST_MAIN
