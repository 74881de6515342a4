/* Locks, event, condition, semaphore, barrier, once, CONC_WITH, from inside:
   this program has its own implementation, to see who waits. Tasks are threads
   and coroutines mixed. SYNC_STEPS is how many steps each random test makes
   (default 10000).

   CPython's Lib/test/lock_tests.py (3.13), and which test here does the same,
   by the first words of its name. Python's own waits are by sleeping, ours
   until the tasks are seen to wait. "-": makes no sense in C.

   BaseLockTests, for conc_lock, conc_rlock, and conc_rwlock written
     test_constructor            all: a zeroed struct is ready
     test_repr, test_locked_repr a_plain_lock_is_not (conc_lock_locked)
     test_acquire_destroy        a_rwlock_reports_misuse; else nothing to do
     test_acquire_release        a_lock_that_is_held_is_refused
     test_try_acquire            a_lock_that_is_held_is_refused
     test_try_acquire_contended  a_lock_that_is_held_is_refused
     test_acquire_contended      all_who_wait_for_a_lock
     test_with                   with_releases_on_every_way_out (and C++: ...
                                 when_an_exception_is_thrown)
     test_thread_leak            locks_serve_foreign_threads
     test_timeout                a_lock_that_is_held_is_refused; a negative
                                 timeout tries once, a huge one waits
     test_weakref_...            -
   LockTests
     test_reacquire              differs: -EDEADLK, a_plain_lock_is_not
     test_different_thread       differs: -EPERM, a_lock_that_is_held (an
                                 event or a semaphore does what Python's can)
     test_state_after_timeout    a_lock_that_is_held_is_refused
     test_at_fork_reinit         - (>>contract, Fork); so for events
   RLockTests
     test_reacquire              a_recursive_lock_is_released
     test_release_unacquired     a_recursive_lock_is_released
     test_release_save_unacq...  a_condition_is_waited_for_by_the_owner_only
     test_recursion_count        a_condition_wakes_as_many (.depth)
     test_different_thread       a_lock_that_is_held_is_refused
     test__is_owned              a_recursive_lock_is_released, by the errors
   EventTests
     test_is_set, test_repr      an_event_is_set_and_cleared
     test_notify                 an_event_wakes_all_also_a_second_time
     test_timeout                an_event_that_is_not_set
     test_set_and_clear          who_was_woken_by_a_set
   ConditionTests, for a recursive lock at depth 1, 2 and 3
     test_acquire                a condition has no lock of its own
     test_unacquired_wait        a_condition_is_waited_for_by_the_owner_only
     test_unacquired_notify      differs: allowed, same test
     test_notify                 a_condition_wakes_as_many
     test_timeout                a_condition_takes_the_lock_again
     test_waitfor, ..._timeout   a_condition_is_waited_for_until
   BaseSemaphoreTests
     test_constructor            - (the value is unsigned)
     test_acquire                a_semaphore_has_a_value
     test_acquire_destroy        - (nothing to destroy)
     test_acquire_contended      a_contended_semaphore_counts
     test_multirelease           a_contended_semaphore_counts
     test_try_acquire            a_semaphore_has_a_value
     test_try_acquire_contended  a_semaphore_is_tried_by_many
     test_acquire_timeout        a_semaphore_has_a_value
     test_default_value          differs: 0, a_semaphore_has_a_value
     test_with                   with_releases_on_every_way_out
   SemaphoreTests, BoundedSemaphoreTests
     test_release_unacquired     a_semaphore_has_a_value
     test_repr                   a_semaphore_has_a_value (conc_sem_value)
   BarrierTests
     test_constructor            a_barrier_needs_parties
     test_barrier, ..._10        a_barrier_is_passed_in_lockstep
     test_wait_return            a_barrier_is_passed_in_lockstep
     test_action                 a_barrier_is_passed_in_lockstep
     test_abort                  a_barrier_is_broken, a_barrier_works_again
     test_reset                  a_reset_lets, a_barrier_works_again
     test_abort_and_reset        a_barrier_works_again
     test_timeout                a_barrier_is_broken_for_all
     test_default_timeout        - (each wait has its own)
     test_single_thread          a_barrier_needs_parties
     test_repr                   a_barrier_is_broken (conc_barrier_n_waiting)

   Lib/test/_test_multiprocessing.py: the same classes between processes, for
   threads and coroutines; with processes they are in tests/shared.c: "S".

   _TestLock                     S: tasks_of_several_processes_exclude,
                                 errors_between_processes_are
     test_lock                   a_lock_that_is_held_is_refused
     test_rlock                  a_recursive_lock_is_released
     test_lock_context           with_releases_on_every_way_out
   _TestSemaphore                S: a_semaphore_lets_as_many_go
     test_semaphore              a_semaphore_has_a_value
     test_bounded_semaphore      a_semaphore_has_a_value
     test_timeout                a_semaphore_has_a_value
   _TestCondition                S: a_notify_lets_as_many_processes_go
     test_notify, ..._n          a_condition_wakes_as_many
     test_notify_all             a_condition_wakes_as_many (the last phase);
                                 a_condition_takes_the_lock_again (in time)
     test_timeout                a_condition_takes_the_lock_again
     test_waitfor, ..._timeout   a_condition_is_waited_for_until
     test_wait_result            a_condition_takes_the_lock_again; interrupted
                                 by a signal: - (no wait is)
   _TestEvent                    S: a_set_lets_all_processes_go
     test_event                  an_event_is_set_and_cleared, an_event_that_is,
                                 an_event_wakes_all
     test_repr                   an_event_is_set_and_cleared
   _TestBarrier                  S: processes_pass_a_barrier; and as
                                 BarrierTests above
     test_thousand               a_barrier_is_passed_in_lockstep
*/
#include "inside.h"
#include "tasks.h"

#include <pthread.h>

/* --- a crew: tasks that run one function, every other one a coroutine ---- */

typedef struct crew crew;
typedef struct member {
  crew *of;
  int index;
  unsigned long long seed; /* of its own random numbers */
} member;
struct crew {
  void (*body)(void *arg, member *me);
  void *arg;
  int n, threads, begun, ended;
  conc_task host, task[16];
  member members[16];
  conc_event started;
};

static unsigned pick(member *me, unsigned below) {
  return test_random_of(&me->seed) % below;
}

static void *crew_member(void *arg) {
  member *me = (member *)arg;
  ADD_FETCH(me->of->begun, 1);
  me->of->body(me->of->arg, me);
  ADD_FETCH(me->of->ended, 1);
  return NULL;
}

static void *crew_loop(void *arg) {
  crew *c = (crew *)arg;
  for (int i = c->threads; i < c->n; i++)
    CHECK_EQ(conc_coro_start(&c->task[i]), 0);
  conc_event_set(&c->started);
  for (int i = c->threads; i < c->n; i++) conc_join(&c->task[i], CONC_FOREVER);
  return NULL;
}

static void *crew_host(void *arg) {
  run(crew_loop, arg);
  return NULL;
}

static void crew_start(crew *c, int n, void (*body)(void *, member *),
                       void *arg) {
  memset(c, 0, sizeof *c);
  c->body = body;
  c->arg = arg;
  c->n = n;
  c->threads = (n + 1) / 2;
  for (int i = 0; i < n; i++) {
    c->members[i].of = c;
    c->members[i].index = i;
    c->members[i].seed = test_random() * 0x9e3779b97f4a7c15ULL;
    c->task[i].target = crew_member;
    c->task[i].arg = &c->members[i];
  }
  for (int i = 0; i < c->threads; i++)
    CHECK_EQ(conc_thread_start(&c->task[i]), 0);
  c->host.target = crew_host;
  c->host.arg = c;
  CHECK_EQ(conc_thread_start(&c->host), 0);
  CHECK_EQ(conc_event_wait(&c->started, CONC_FOREVER), 0);
  UNTIL(LOAD(c->begun) == n);
}

static void crew_join(crew *c) {
  for (int i = 0; i < c->n; i++) {
    int rc = conc_join(&c->task[i], CONC_FOREVER);
    CHECK(rc == 0 || rc == -ECANCELED);
  }
  CHECK_EQ(conc_join(&c->host, CONC_FOREVER), 0);
}

static void crew_run(int n, void (*body)(void *, member *), void *arg) {
  crew c;
  crew_start(&c, n, body, arg);
  crew_join(&c);
}

/* How many wait in a list, for a test to know that it may go on. */
static int waiting(const void *object, const struct conc__waitlist *list) {
  conc__mutex *guard = conc__mutex_of(object);
  int n = 0;
  conc__mutex_lock(guard);
  for (conc__waiter *w = list->first; w != NULL; w = w->next) n++;
  conc__mutex_unlock(guard);
  return n;
}
#define WAITING(object) waiting(object, &(object)->waiters)

/* --- locks, as Python tests both of its own ------------------------------ */

/* conc_lock, conc_rlock, and conc_rwlock for writing, in the same tests. */
typedef struct kind {
  int (*acquire)(void *, double);
  int (*release)(void *);
} kind;
static int lock_acquire(void *l, double t) {
  return conc_lock_acquire((conc_lock *)l, t);
}
static int lock_release(void *l) { return conc_lock_release((conc_lock *)l); }
static int rlock_acquire(void *l, double t) {
  return conc_rlock_acquire((conc_rlock *)l, t);
}
static int rlock_release(void *l) {
  return conc_rlock_release((conc_rlock *)l);
}
static int write_acquire(void *l, double t) {
  return conc_rwlock_write_acquire((conc_rwlock *)l, t);
}
static int rwlock_release(void *l) {
  return conc_rwlock_release((conc_rwlock *)l);
}
static const kind kinds[] = {{lock_acquire, lock_release},
                             {rlock_acquire, rlock_release},
                             {write_acquire, rwlock_release}};
#define KINDS 3

typedef struct any_lock {
  const kind *k;
  union {
    conc_lock lock;
    conc_rlock rlock;
    conc_rwlock rwlock;
  } u;
  int refused, got, inside;
} any_lock;

static void any_init(any_lock *a, int k) {
  memset(a, 0, sizeof *a);
  a->k = &kinds[k];
}
static int any_acquire(any_lock *a, double t) {
  return a->k->acquire(&a->u, t);
}
static int any_release(any_lock *a) { return a->k->release(&a->u); }
static int any_waiting(any_lock *a) {
  return a->k == &kinds[2] ? WAITING(&a->u.rwlock) : WAITING(&a->u.lock);
}

static void refuse(void *arg, member *me) {
  any_lock *a = (any_lock *)arg;
  double start = conc_now();
  (void)me;
  CHECK_EQ(any_acquire(a, 0), -ETIMEDOUT);
  CHECK_EQ(any_acquire(a, -100), -ETIMEDOUT);
  CHECK_EQ(any_acquire(a, 0.02), -ETIMEDOUT);
  CHECK(conc_now() - start >= 0.02);
  CHECK_EQ(any_release(a), -EPERM);
  ADD_FETCH(a->refused, 1);
}

TEST(a_lock_that_is_held_is_refused_in_time_and_has_an_owner) {
  for (int k = 0; k < KINDS; k++) {
    any_lock a;
    any_init(&a, k);
    CHECK_EQ(any_release(&a), -EPERM);
    CHECK_EQ(any_acquire(&a, 0), 0);
    crew_run(4, refuse, &a);
    CHECK_EQ(a.refused, 4);
    CHECK_EQ(any_release(&a), 0); /* those who gave up left it in order */
    CHECK_EQ(any_release(&a), -EPERM);
    CHECK_EQ(any_acquire(&a, 0), 0);
    CHECK_EQ(any_release(&a), 0);
    CHECK_EQ(any_acquire(&a, 1e100), 0);
    CHECK_EQ(any_release(&a), 0);
    CHECK_EQ(any_acquire(&a, 5), 0);
    CHECK_EQ(any_release(&a), 0);
  }
}

static void take_in_turn(void *arg, member *me) {
  any_lock *a = (any_lock *)arg;
  (void)me;
  CHECK_EQ(any_acquire(a, CONC_FOREVER), 0);
  CHECK_EQ(ADD_FETCH(a->inside, 1), 1);
  conc_yield_now();
  ADD_FETCH(a->inside, -1);
  ADD_FETCH(a->got, 1);
  CHECK_EQ(any_release(a), 0);
}

TEST(all_who_wait_for_a_lock_get_it_one_by_one) {
  for (int k = 0; k < KINDS; k++)
    for (int round = 0; round < 20; round++) {
      any_lock a;
      crew c;
      any_init(&a, k);
      CHECK_EQ(any_acquire(&a, 0), 0);
      crew_start(&c, 6, take_in_turn, &a);
      UNTIL(any_waiting(&a) == 6);
      CHECK_EQ(a.got, 0);
      CHECK_EQ(any_release(&a), 0);
      crew_join(&c);
      CHECK_EQ(a.got, 6);
    }
}

static void *foreign(void *arg) {
  any_lock *a = (any_lock *)arg;
  CHECK_EQ(any_acquire(a, CONC_FOREVER), 0);
  a->got++;
  CHECK_EQ(any_release(a), 0);
  return NULL;
}

TEST(locks_serve_foreign_threads) {
  for (int k = 0; k < KINDS; k++) {
    any_lock a;
    pthread_t id[15];
    any_init(&a, k);
    for (int i = 0; i < 15; i++)
      CHECK_EQ(pthread_create(&id[i], NULL, foreign, &a), 0);
    for (int i = 0; i < 15; i++) CHECK_EQ(pthread_join(id[i], NULL), 0);
    CHECK_EQ(a.got, 15);
  }
}

static void be_cancelled(void *arg, member *me) {
  any_lock *a = (any_lock *)arg;
  (void)me;
  CHECK_EQ(any_acquire(a, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(any_acquire(a, 0.001), -ETIMEDOUT); /* once */
  CHECK_EQ(any_release(a), -EPERM);
}

TEST(who_waits_for_a_lock_can_be_cancelled) {
  for (int k = 0; k < KINDS; k++)
    for (int round = 0; round < 10; round++) {
      any_lock a;
      crew c;
      any_init(&a, k);
      CHECK_EQ(any_acquire(&a, 0), 0);
      crew_start(&c, 4, be_cancelled, &a);
      if (round % 2) UNTIL(any_waiting(&a) == 4);
      for (int i = 0; i < 4; i++) CHECK_EQ(conc_cancel(&c.task[i]), 0);
      crew_join(&c);
      CHECK_EQ(any_waiting(&a), 0);
      CHECK_EQ(any_release(&a), 0);
      CHECK_EQ(any_acquire(&a, 0), 0);
      CHECK_EQ(any_release(&a), 0);
    }
}

/* Whoever drops the last reference frees the lock, at once. */
typedef struct shared {
  any_lock a;
  int references;
} shared;

static void drop(void *arg, member *me) {
  shared *s = (shared *)arg;
  int left;
  (void)me;
  CHECK_EQ(any_acquire(&s->a, CONC_FOREVER), 0);
  left = --s->references;
  CHECK_EQ(any_release(&s->a), 0);
  if (left == 0) free(s);
}

TEST(whoever_releases_a_lock_last_may_free_it) {
  for (int k = 0; k < KINDS; k++)
    for (int round = 0; round < 100; round++) {
      shared *s = (shared *)calloc(1, sizeof *s);
      crew c;
      any_init(&s->a, k);
      s->references = 8;
      CHECK_EQ(any_acquire(&s->a, 0), 0);
      crew_start(&c, 8, drop, s);
      CHECK_EQ(any_release(&s->a), 0);
      crew_join(&c);
    }
}

TEST(a_plain_lock_is_not_recursive_and_tells_whether_it_is_held) {
  conc_lock l = {0};
  CHECK(!conc_lock_locked(&l));
  CHECK_EQ(conc_lock_acquire(&l, CONC_FOREVER), 0);
  CHECK(conc_lock_locked(&l));
  CHECK_EQ(conc_lock_acquire(&l, CONC_FOREVER), -EDEADLK);
  CHECK_EQ(conc_lock_acquire(&l, 0), -EDEADLK);
  CHECK_EQ(conc_lock_release(&l), 0);
  CHECK(!conc_lock_locked(&l));
}

/* --- conc_rlock ---------------------------------------------------------- */

static void try_rlock(void *arg, member *me) {
  any_lock *a = (any_lock *)arg;
  int rc = conc_rlock_acquire(&a->u.rlock, 0);
  (void)me;
  if (rc == 0)
    CHECK_EQ(conc_rlock_release(&a->u.rlock), 0);
  else
    CHECK_EQ(rc, -ETIMEDOUT), a->refused++;
}

static int others_are_refused(any_lock *a) {
  a->refused = 0;
  crew_run(1, try_rlock, a);
  return a->refused;
}

/* One owner goes up and down through the levels; at each, another task asks
   whether it is refused. A level too many or too few lets it in. */
TEST(a_recursive_lock_is_released_as_often_as_it_was_acquired) {
  any_lock a;
  conc_rlock *r = &a.u.rlock;
  any_init(&a, 1);
  CHECK(!conc_lock_locked(&r->lock));
  CHECK_EQ(conc_rlock_acquire(r, 0), 0);
  CHECK_EQ(conc_rlock_acquire(r, 0), 0);
  CHECK_EQ(conc_rlock_acquire(r, CONC_FOREVER), 0);
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK(others_are_refused(&a));
  CHECK_EQ(conc_rlock_acquire(r, 1), 0);
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK(others_are_refused(&a));
  CHECK(conc_lock_locked(&r->lock));
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK(!others_are_refused(&a));
  CHECK_EQ(conc_rlock_release(r), -EPERM);
  CHECK(!conc_lock_locked(&r->lock));
  /* All levels given back by the wrong function: the next owner starts from
     nothing. */
  CHECK_EQ(conc_rlock_acquire(r, 0), 0);
  CHECK_EQ(conc_rlock_acquire(r, 0), 0);
  CHECK_EQ(conc_lock_release(&r->lock), 0);
  CHECK_EQ(conc_rlock_release(r), -EPERM);
  CHECK_EQ(conc_rlock_acquire(r, 0), 0);
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK(!conc_lock_locked(&r->lock));
  /* The first level was acquired by the wrong function. */
  CHECK_EQ(conc_lock_acquire(&r->lock, 0), 0);
  CHECK_EQ(conc_rlock_acquire(r, 0), 0);
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK(others_are_refused(&a));
  CHECK_EQ(conc_rlock_release(r), 0);
  CHECK(!conc_lock_locked(&r->lock));
}

/* The task's memory of what it reads is older than the lock that is there
   now: the release is refused, and the other reader stays. */
static void read_and_go(void *arg, member *me) {
  (void)me;
  CHECK_EQ(conc_rwlock_read_acquire((conc_rwlock *)arg, 0), 0);
}

TEST(what_was_read_at_an_address_before_is_not_given_back) {
  conc_rwlock rw;
  memset(&rw, 0, sizeof rw);
  CHECK_EQ(conc_rwlock_read_acquire(&rw, 0), 0);
  memset(&rw, 0, sizeof rw);
  CHECK_EQ(conc_rwlock_release(&rw), -EPERM);
  crew_run(1, read_and_go, &rw);
  CHECK_EQ(conc_rwlock_release(&rw), -EPERM);
  CHECK_EQ(conc_rwlock_write_acquire(&rw, 0), -ETIMEDOUT);
  memset(&rw, 0, sizeof rw);
  CHECK_EQ(conc_rwlock_write_acquire(&rw, 0), 0);
  CHECK_EQ(conc_rwlock_release(&rw), 0);
}

/* --- conc_event ---------------------------------------------------------- */

typedef struct gate {
  conc_event event, again;
  int first, second, late;
} gate;

static void wait_twice(void *arg, member *me) {
  gate *g = (gate *)arg;
  (void)me;
  CHECK_EQ(conc_event_wait(&g->event, CONC_FOREVER), 0);
  ADD_FETCH(g->first, 1);
  CHECK_EQ(conc_event_wait(&g->event, CONC_FOREVER), 0);
  ADD_FETCH(g->second, 1);
}

static void wait_in_time(void *arg, member *me) {
  gate *g = (gate *)arg;
  double start = conc_now();
  (void)me;
  CHECK_EQ(conc_event_wait(&g->event, 0), -ETIMEDOUT);
  CHECK_EQ(conc_event_wait(&g->event, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - start >= 0.05);
  ADD_FETCH(g->late, 1);
}

static void wait_set(void *arg, member *me) {
  gate *g = (gate *)arg;
  (void)me;
  CHECK_EQ(conc_event_wait(&g->event, 0), 0);
  CHECK_EQ(conc_event_wait(&g->event, 0.05), 0);
  ADD_FETCH(g->first, 1);
}

static void wait_once(void *arg, member *me) {
  gate *g = (gate *)arg;
  (void)me;
  CHECK_EQ(conc_event_wait(&g->event, 20), 0);
  ADD_FETCH(g->first, 1);
}

TEST(an_event_is_set_and_cleared) {
  conc_event e = {0};
  for (int i = 0; i < 2; i++) {
    CHECK(!conc_event_is_set(&e));
    CHECK_EQ(conc_event_set(&e), 0);
    CHECK(conc_event_is_set(&e));
    CHECK_EQ(conc_event_set(&e), 0);
    CHECK(conc_event_is_set(&e));
    CHECK_EQ(conc_event_clear(&e), 0);
    CHECK(!conc_event_is_set(&e));
    CHECK_EQ(conc_event_clear(&e), 0);
  }
}

TEST(an_event_wakes_all_also_a_second_time) {
  gate g;
  memset(&g, 0, sizeof g);
  for (int round = 0; round < 20; round++) {
    crew c;
    g.first = g.second = 0;
    crew_start(&c, 5, wait_twice, &g);
    UNTIL(WAITING(&g.event) == 5);
    CHECK_EQ(g.first, 0);
    conc_event_set(&g.event);
    crew_join(&c);
    CHECK_EQ(g.first, 5);
    CHECK_EQ(g.second, 5);
    conc_event_clear(&g.event);
  }
}

TEST(an_event_that_is_not_set_is_awaited_for_the_time_given) {
  gate g;
  memset(&g, 0, sizeof g);
  crew_run(5, wait_in_time, &g);
  CHECK_EQ(g.late, 5);
  conc_event_set(&g.event);
  crew_run(5, wait_set, &g);
  CHECK_EQ(g.first, 5);
}

TEST(who_was_woken_by_a_set_does_not_mind_a_clear) {
  for (int round = 0; round < 50; round++) {
    gate g;
    crew c;
    memset(&g, 0, sizeof g);
    crew_start(&c, 5, wait_once, &g);
    UNTIL(WAITING(&g.event) == 5);
    conc_event_set(&g.event);
    conc_event_clear(&g.event);
    crew_join(&c);
    CHECK_EQ(g.first, 5);
  }
}

/* --- conc_cond, with a plain and with a recursive lock ------------------- */

typedef struct stage {
  conc_rlock rlock;
  conc_cond cond;
  int depth;   /* levels to hold while waiting */
  double wait; /* its timeout */
  int phase, ready, first[8], second[8], woken, state;
} stage;

static void stage_enter(stage *s) {
  for (int i = 0; i < s->depth; i++)
    CHECK_EQ(conc_rlock_acquire(&s->rlock, CONC_FOREVER), 0);
}

static void stage_leave(stage *s) {
  for (int i = 0; i < s->depth; i++)
    CHECK_EQ(conc_rlock_release(&s->rlock), 0);
}

static void wait_in_phases(void *arg, member *me) {
  stage *s = (stage *)arg;
  (void)me;
  for (int i = 0; i < 2; i++) {
    stage_enter(s);
    CHECK_EQ(conc_cond_wait(&s->cond, &s->rlock.lock, CONC_FOREVER), 0);
    CHECK_EQ(s->rlock.lock.depth, s->depth - 1);
    ++*(i == 0 ? &s->first[s->phase] : &s->second[s->phase]);
    ADD_FETCH(s->woken, 1);
    stage_leave(s);
  }
}

static void notify_phase(stage *s, size_t n, int phase, int woken) {
  /* As a plain lock or a recursive one: nothing is left of the others'
     levels. */
  CHECK_EQ(phase == 2 ? conc_lock_acquire(&s->rlock.lock, CONC_FOREVER)
                      : conc_rlock_acquire(&s->rlock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_notify(&s->cond, n), 0);
  CHECK_EQ(LOAD(s->woken), woken); /* nobody goes on before the release */
  s->phase = phase;
  CHECK_EQ(conc_rlock_release(&s->rlock), 0);
}

TEST(a_condition_wakes_as_many_as_it_is_told_in_order) {
  for (int round = 0; round < 40; round++) {
    stage s;
    crew c;
    memset(&s, 0, sizeof s);
    s.depth = 1 + round % 3;
    crew_start(&c, 5, wait_in_phases, &s);
    UNTIL(WAITING(&s.cond) == 5);
    notify_phase(&s, 3, 1, 0);
    UNTIL(LOAD(s.woken) == 3 && WAITING(&s.cond) == 5);
    CHECK_EQ(s.first[1], 3);
    notify_phase(&s, 5, 2, 3); /* two in their first wait, three in the next */
    UNTIL(LOAD(s.woken) == 8 && WAITING(&s.cond) == 2);
    CHECK_EQ(s.first[2], 2);
    CHECK_EQ(s.second[2], 3);
    notify_phase(&s, SIZE_MAX, 3, 8);
    crew_join(&c);
    CHECK_EQ(s.second[3], 2);
    CHECK_EQ(conc_rlock_release(&s.rlock), -EPERM);
  }
}

static void wait_in_vain(void *arg, member *me) {
  stage *s = (stage *)arg;
  double start = conc_now();
  (void)me;
  stage_enter(s);
  CHECK_EQ(conc_cond_wait(&s->cond, &s->rlock.lock, s->wait), s->state);
  CHECK(s->state == -ECANCELED || conc_now() - start >= s->wait);
  CHECK_EQ(s->rlock.lock.depth, s->depth - 1);
  CHECK(conc_lock_locked(&s->rlock.lock));
  stage_leave(s);
}

TEST(a_condition_takes_the_lock_again_on_timeout_and_cancellation) {
  for (int depth = 1; depth < 4; depth++) {
    stage s;
    crew c;
    memset(&s, 0, sizeof s);
    s.depth = depth;
    s.wait = 0.05;
    s.state = -ETIMEDOUT;
    crew_run(5, wait_in_vain, &s);
    s.wait = CONC_FOREVER;
    s.state = -ECANCELED;
    crew_start(&c, 5, wait_in_vain, &s);
    UNTIL(WAITING(&s.cond) == 5);
    CHECK_EQ(conc_rlock_acquire(&s.rlock, CONC_FOREVER), 0);
    for (int i = 0; i < 5; i++) CHECK_EQ(conc_cancel(&c.task[i]), 0);
    UNTIL(WAITING(&s.cond) == 0); /* they want the lock, which we hold */
    CHECK_EQ(conc_rlock_release(&s.rlock), 0);
    crew_join(&c);
    CHECK_EQ(WAITING(&s.cond), 0);
  }
}

TEST(a_condition_is_waited_for_by_the_owner_only_and_notified_by_anybody) {
  stage s;
  memset(&s, 0, sizeof s);
  CHECK_EQ(conc_cond_wait(&s.cond, &s.rlock.lock, CONC_FOREVER), -EPERM);
  CHECK_EQ(conc_cond_notify(&s.cond, 1), 0);
  CHECK_EQ(conc_cond_notify_all(&s.cond), 0);
  CHECK_EQ(conc_rlock_acquire(&s.rlock, 0), 0);
  CHECK_EQ(conc_cond_wait(&s.cond, &s.rlock.lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(&s.rlock), 0);
}

static bool state_is_4(void *arg) {
  stage *s = (stage *)arg;
  CHECK(conc__lock_is_mine(&s->rlock.lock, conc__self()->id));
  return s->state == 4;
}

static void wait_for_4(void *arg, member *me) {
  stage *s = (stage *)arg;
  int rc;
  (void)me;
  stage_enter(s);
  rc = conc_cond_wait_for(&s->cond, &s->rlock.lock, state_is_4, s, s->wait);
  CHECK_EQ(rc, s->wait < 1 ? -ETIMEDOUT : 0);
  CHECK_EQ(s->state, s->wait < 1 ? 3 : 4);
  stage_leave(s);
}

static void count_up(stage *s, int n) {
  for (int i = 0; i < n; i++) {
    CHECK_EQ(conc_rlock_acquire(&s->rlock, CONC_FOREVER), 0);
    s->state++;
    conc_cond_notify_all(&s->cond);
    CHECK_EQ(conc_rlock_release(&s->rlock), 0);
    if (s->state < 4) UNTIL(WAITING(&s->cond) == 2);
  }
}

TEST(a_condition_is_waited_for_until_a_predicate_holds) {
  stage s;
  crew c;
  double start;
  for (int round = 0; round < 20; round++) {
    memset(&s, 0, sizeof s);
    s.depth = 2;
    s.wait = CONC_FOREVER;
    crew_start(&c, 2, wait_for_4, &s);
    UNTIL(WAITING(&s.cond) == 2);
    count_up(&s, 4);
    crew_join(&c);
  }
  memset(&s, 0, sizeof s);
  s.depth = 2;
  s.wait = 0.5; /* generous: three steps must fit into it */
  s.state = 3;
  start = conc_now();
  crew_start(&c, 2, wait_for_4, &s);
  conc_cond_notify_all(&s.cond);
  crew_join(&c);
  CHECK(conc_now() - start >= 0.5);
}

/* --- conc_rwlock --------------------------------------------------------- */

typedef struct library {
  conc_rwlock rwlock;
  const char *plan; /* what each member does: 'r' or 'w' */
  int expect[16];   /* what acquiring returns to each */
  int readers, writers, entered, may_leave;
  char log[16];
} library;

/* Members come one after the other, each when the one before waits; all stay
   until they may leave. */
static void visit(void *arg, member *me) {
  library *l = (library *)arg;
  bool write = l->plan[me->index] == 'w';
  int rc;
  UNTIL(WAITING(&l->rwlock) == me->index);
  rc = write ? conc_rwlock_write_acquire(&l->rwlock, CONC_FOREVER)
             : conc_rwlock_read_acquire(&l->rwlock, CONC_FOREVER);
  CHECK_EQ(rc, l->expect[me->index]);
  if (rc != 0) return;
  ADD_FETCH(*(write ? &l->writers : &l->readers), 1);
  CHECK(write ? LOAD(l->writers) == 1 && LOAD(l->readers) == 0
              : LOAD(l->writers) == 0);
  l->log[ADD_FETCH(l->entered, 1) - 1] = l->plan[me->index];
  UNTIL(LOAD(l->may_leave) >= LOAD(l->entered));
  ADD_FETCH(*(write ? &l->writers : &l->readers), -1);
  CHECK_EQ(conc_rwlock_release(&l->rwlock), 0);
}

/* Readers r and writers w come in the order of the plan while we write.
   They must be let in batch by batch, neighbouring readers together, and
   nobody before one that came earlier. */
TEST(a_rwlock_serves_in_order_and_readers_together) {
  for (int round = 0; round < 20; round++) {
    library l;
    crew c;
    memset(&l, 0, sizeof l);
    l.plan = "rrwrrrwwr";
    CHECK_EQ(round % 2 ? conc_rwlock_write_acquire(&l.rwlock, 0)
                       : conc_rwlock_write_acquire(&l.rwlock, 1), 0);
    crew_start(&c, 9, visit, &l);
    UNTIL(WAITING(&l.rwlock) == 9);
    CHECK_EQ(l.entered, 0);
    CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
    /* Each batch is in, and all of it, before any of it may leave. */
    UNTIL(LOAD(l.entered) == 2);
    CHECK_EQ(WAITING(&l.rwlock), 7);
    CHECK_EQ(conc_rwlock_read_acquire(&l.rwlock, 0), -ETIMEDOUT);
    STORE(l.may_leave, 2);
    UNTIL(LOAD(l.entered) == 3);
    CHECK_EQ(WAITING(&l.rwlock), 6);
    STORE(l.may_leave, 3);
    UNTIL(LOAD(l.entered) == 6);
    CHECK_EQ(WAITING(&l.rwlock), 3);
    STORE(l.may_leave, 6);
    UNTIL(LOAD(l.entered) == 7);
    CHECK_EQ(WAITING(&l.rwlock), 2);
    STORE(l.may_leave, 7);
    UNTIL(LOAD(l.entered) == 8);
    STORE(l.may_leave, 9);
    crew_join(&c);
    CHECK_STR(l.log, "rrwrrrwwr");
    CHECK_EQ(l.rwlock.word, 0);
  }
}

/* We read; a writer, two readers, a writer and a reader wait, in this
   order. The first writer is cancelled: the two readers must be let in at
   once, beside us, and the last one not before the second writer has had
   its turn or gives up. */
TEST(a_writer_that_gives_up_lets_the_readers_behind_it_in) {
  for (int round = 0; round < 50; round++) {
    library l;
    crew c;
    memset(&l, 0, sizeof l);
    l.plan = "wrrwr";
    l.expect[0] = l.expect[3] = -ECANCELED;
    CHECK_EQ(conc_rwlock_read_acquire(&l.rwlock, 0), 0);
    crew_start(&c, 5, visit, &l);
    UNTIL(WAITING(&l.rwlock) == 5);
    CHECK_EQ(conc_cancel(&c.task[0]), 0);
    UNTIL(LOAD(l.entered) == 2); /* while we still read */
    CHECK_EQ(WAITING(&l.rwlock), 2);
    STORE(l.may_leave, 3);
    UNTIL(LOAD(l.readers) == 0);
    CHECK_EQ(WAITING(&l.rwlock), 2);
    if (round % 2) {
      CHECK_EQ(conc_cancel(&c.task[3]), 0);
      UNTIL(LOAD(l.entered) == 3);
      CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
    } else {
      l.expect[3] = 0;
      STORE(l.may_leave, 4);
      CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
    }
    crew_join(&c);
    CHECK_EQ(l.rwlock.word, 0);
  }
}

static void write_late(void *arg, member *me) {
  library *l = (library *)arg;
  if (me->index == 0) {
    CHECK_EQ(conc_rwlock_write_acquire(&l->rwlock, 0.05), -ETIMEDOUT);
  } else { /* come while the writer waits, or after it: either way get in */
    CHECK_EQ(conc_rwlock_read_acquire(&l->rwlock, CONC_FOREVER), 0);
    CHECK_EQ(conc_rwlock_release(&l->rwlock), 0);
  }
}

TEST(a_writer_that_is_late_lets_the_readers_behind_it_in) {
  library l;
  memset(&l, 0, sizeof l);
  CHECK_EQ(conc_rwlock_read_acquire(&l.rwlock, 0), 0);
  for (int round = 0; round < 5; round++) crew_run(4, write_late, &l);
  CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
  CHECK_EQ(l.rwlock.word, 0);
}

TEST(a_rwlock_is_handed_to_patient_waiters) {
  for (int round = 0; round < 20; round++) {
    library l;
    crew c;
    memset(&l, 0, sizeof l);
    l.plan = round % 2 ? "wr" : "rr";
    l.may_leave = round % 2 ? 2 : 0;
    CHECK_EQ(conc_rwlock_write_acquire(&l.rwlock, 0), 0);
    crew_start(&c, 2, visit, &l);
    UNTIL(WAITING(&l.rwlock) == 2);
    conc_sleep(2 * CONC__LOCK_PATIENCE);
    CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
    if (round % 2) { /* it is theirs, one after the other */
      CHECK_EQ(conc_rwlock_write_acquire(&l.rwlock, 10), 0);
      CHECK_EQ(l.entered, 2);
    } else { /* or at once */
      CHECK_EQ(conc_rwlock_write_acquire(&l.rwlock, 0), -ETIMEDOUT);
      CHECK_EQ(l.rwlock.word, CONC__READ_FLAG + 2 * CONC__READ_ONE);
      STORE(l.may_leave, 2);
      CHECK_EQ(conc_rwlock_write_acquire(&l.rwlock, 10), 0);
    }
    CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
    crew_join(&c);
  }
}

/* Each holds it until the other has it, too, or wants it: for readers it is
   never free. */
static void hog_rwlock(void *arg, member *me) {
  library *l = (library *)arg;
  bool write = l->plan[0] == 'w';
  while (!LOAD(l->may_leave)) {
    int before = LOAD(l->entered);
    CHECK_EQ(write ? conc_rwlock_write_acquire(&l->rwlock, CONC_FOREVER)
                   : conc_rwlock_read_acquire(&l->rwlock, CONC_FOREVER), 0);
    ADD_FETCH(l->entered, 1);
    for (int i = 0; i < 20 && !write && LOAD(l->entered) == before + 1; i++)
      conc_yield_now();
    if (pick(me, 4) == 0) conc_yield_now();
    CHECK_EQ(conc_rwlock_release(&l->rwlock), 0);
  }
}

TEST(neither_readers_nor_writers_starve) {
  for (int write = 0; write < 2; write++) {
    library l;
    crew c;
    memset(&l, 0, sizeof l);
    l.plan = write ? "w" : "r";
    crew_start(&c, 4, hog_rwlock, &l);
    for (int i = 0; i < 200; i++) {
      CHECK_EQ(write ? conc_rwlock_read_acquire(&l.rwlock, 20)
                     : conc_rwlock_write_acquire(&l.rwlock, 20), 0);
      CHECK_EQ(conc_rwlock_release(&l.rwlock), 0);
    }
    STORE(l.may_leave, 1);
    crew_join(&c);
    CHECK_EQ(l.rwlock.word, 0);
  }
}

static void release_wrongly(void *arg, member *me) {
  (void)me;
  CHECK_EQ(conc_rwlock_release((conc_rwlock *)arg), -EPERM);
}

/* Released by nobody, by others, once too often; acquired again by the task
   that has it, or by one that has more than are remembered. Each misuse is
   told, and none changes whose it is. */
TEST(a_rwlock_reports_misuse) {
  conc_rwlock l = {0}, more[6];
  memset(more, 0, sizeof more);
  CHECK_EQ(conc_rwlock_release(&l), -EPERM);
  CHECK_EQ(conc_rwlock_write_acquire(&l, 0), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&l, CONC_FOREVER), -EDEADLK);
  CHECK_EQ(conc_rwlock_read_acquire(&l, CONC_FOREVER), -EDEADLK);
  crew_run(2, release_wrongly, &l);
  CHECK_EQ(conc_rwlock_release(&l), 0);
  CHECK_EQ(conc_rwlock_release(&l), -EPERM);
  CHECK_EQ(conc_rwlock_read_acquire(&l, 0), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&l, CONC_FOREVER), -EDEADLK);
  CHECK_EQ(conc_rwlock_read_acquire(&l, CONC_FOREVER), -EDEADLK);
  crew_run(2, release_wrongly, &l);
  CHECK_EQ(conc_rwlock_release(&l), 0);
  CHECK_EQ(conc_rwlock_release(&l), -EPERM);
  /* More than are remembered: they work all the same. */
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < 6; i++)
      CHECK_EQ(conc_rwlock_read_acquire(&more[i], 0), 0);
    CHECK_EQ(conc_rwlock_read_acquire(&more[3], 0), -EDEADLK);
    for (int i = 0; i < 6; i++)
      CHECK_EQ(conc_rwlock_release(&more[round ? i : 5 - i]), 0);
    for (int i = 0; i < 6; i++)
      CHECK_EQ(conc_rwlock_release(&more[i]), -EPERM);
  }
  /* One that is forgotten, not released, and another one in its place. */
  CHECK_EQ(conc_rwlock_read_acquire(&l, 0), 0);
  memset(&l, 0, sizeof l);
  CHECK_EQ(conc_rwlock_read_acquire(&l, 0), 0);
  CHECK_EQ(conc_rwlock_release(&l), 0);
  CHECK_EQ(conc_rwlock_release(&l), -EPERM);
}

/* --- conc_sem ------------------------------------------------------------ */

typedef struct parking {
  conc_sem sem;
  int rc, order[16], passed, entered, refused, inside;
} parking;

static void park_in_order(void *arg, member *me) {
  parking *p = (parking *)arg;
  UNTIL(WAITING(&p->sem) == me->index);
  CHECK_EQ(conc_sem_acquire(&p->sem, CONC_FOREVER), 0);
  p->order[ADD_FETCH(p->entered, 1) - 1] = me->index;
  ADD_FETCH(p->passed, 1);
}

TEST(a_semaphore_lets_in_as_many_as_are_released_in_order) {
  for (int round = 0; round < 20; round++) {
    parking p;
    crew c;
    memset(&p, 0, sizeof p);
    crew_start(&c, 10, park_in_order, &p);
    UNTIL(WAITING(&p.sem) == 10);
    CHECK_EQ(conc_sem_acquire(&p.sem, 0), -ETIMEDOUT);
    for (int i = 0; i < 4; i++) {
      CHECK_EQ(conc_sem_release(&p.sem, 1), 0);
      /* What is released is theirs, not for whoever comes by. */
      CHECK_EQ(conc_sem_acquire(&p.sem, 0), -ETIMEDOUT);
      UNTIL(LOAD(p.passed) == i + 1);
      CHECK_EQ(p.order[i], i);
    }
    CHECK_EQ(conc_sem_release(&p.sem, 3), 0);
    UNTIL(LOAD(p.passed) == 7);
    CHECK_EQ(WAITING(&p.sem), 3);
    CHECK_EQ(conc_sem_value(&p.sem), 0);
    CHECK_EQ(conc_sem_release(&p.sem, 5), 0);
    crew_join(&c);
    CHECK_EQ(conc_sem_value(&p.sem), 2);
  }
}

static void acquire_twice(void *arg, member *me) {
  parking *p = (parking *)arg;
  (void)me;
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_sem_acquire(&p->sem, CONC_FOREVER), 0);
    ADD_FETCH(p->passed, 1);
  }
}

TEST(a_contended_semaphore_counts_in_phases) { /* test_acquire_contended */
  for (size_t many = 0; many < 2; many++) {    /* and test_multirelease */
    parking p;
    crew c;
    memset(&p, 0, sizeof p);
    p.sem.value = 7;
    CHECK_EQ(conc_sem_acquire(&p.sem, 0), 0);
    crew_start(&c, 10, acquire_twice, &p);
    UNTIL(LOAD(p.passed) == 6 && WAITING(&p.sem) > 0);
    for (int i = 0; i < (many ? 1 : 7); i++)
      CHECK_EQ(conc_sem_release(&p.sem, many ? 7 : 1), 0);
    UNTIL(LOAD(p.passed) == 13);
    for (int i = 0; i < (many ? 1 : 6); i++)
      CHECK_EQ(conc_sem_release(&p.sem, many ? 6 : 1), 0);
    UNTIL(LOAD(p.passed) == 19);
    CHECK_EQ(conc_sem_acquire(&p.sem, 0), -ETIMEDOUT);
    CHECK_EQ(conc_sem_release(&p.sem, 1), 0);
    crew_join(&c);
    CHECK_EQ(p.passed, 20);
    CHECK_EQ(conc_sem_value(&p.sem), 0);
  }
}

/* Three semaphores, from 0, from 2, and from 3 with the bound 3, each up to
   its edges. A release beyond an edge must change nothing. */
TEST(a_semaphore_has_a_value_a_bound_and_limits) {
  conc_sem zero = {0}, two, bounded;
  double start;
  memset(&two, 0, sizeof two);
  two.value = 2;
  bounded = two;
  bounded.value = bounded.bound = 3;
  CHECK_EQ(conc_sem_value(&zero), 0);
  CHECK_EQ(conc_sem_acquire(&zero, 0), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(&zero, 0), -EINVAL);
  CHECK_EQ(conc_sem_release(&zero, 1), 0); /* unbounded: anybody may */
  CHECK_EQ(conc_sem_release(&zero, SIZE_MAX), -EOVERFLOW);
  CHECK_EQ(conc_sem_release(&zero, SIZE_MAX / 2), -EOVERFLOW);
  CHECK_EQ(conc_sem_value(&zero), 1);
  CHECK_EQ(conc_sem_release(&zero, SIZE_MAX / 2 - 1), 0);
  CHECK_EQ(conc_sem_value(&zero), SIZE_MAX / 2);
  CHECK_EQ(conc_sem_release(&zero, 1), -EOVERFLOW);
  CHECK_EQ(conc_sem_acquire(&zero, 0), 0);

  CHECK_EQ(conc_sem_acquire(&two, 0), 0);
  CHECK_EQ(conc_sem_acquire(&two, 0.005), 0);
  CHECK_EQ(conc_sem_acquire(&two, 0), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(&two, 1), 0);
  CHECK_EQ(conc_sem_acquire(&two, 0.005), 0);
  start = conc_now();
  CHECK_EQ(conc_sem_acquire(&two, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - start >= 0.05);
  CHECK_EQ(conc_sem_release(&two, 1), 0); /* nobody waits any more */
  CHECK_EQ(conc_sem_value(&two), 1);

  CHECK_EQ(conc_sem_release(&bounded, 1), -EOVERFLOW);
  CHECK_EQ(conc_sem_acquire(&bounded, 0), 0);
  CHECK_EQ(conc_sem_acquire(&bounded, 0), 0);
  CHECK_EQ(conc_sem_release(&bounded, 3), -EOVERFLOW);
  CHECK_EQ(conc_sem_value(&bounded), 1);
  CHECK_EQ(conc_sem_release(&bounded, 2), 0);
  CHECK_EQ(conc_sem_release(&bounded, 1), -EOVERFLOW);
  CHECK_EQ(conc_sem_value(&bounded), 3);
  bounded.value = 5; /* more than the bound, to begin with */
  CHECK_EQ(conc_sem_release(&bounded, 1), -EOVERFLOW);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_sem_acquire(&bounded, 0), 0);
  CHECK_EQ(conc_sem_release(&bounded, 1), 0);
  CHECK_EQ(conc_sem_release(&bounded, 1), -EOVERFLOW);
}

static void acquire_when_told(void *arg, member *me) {
  parking *p = (parking *)arg;
  (void)me;
  UNTIL(LOAD(p->inside));
  CHECK_EQ(conc_sem_acquire(&p->sem, CONC_FOREVER), 0);
}

TEST(a_semaphore_is_looked_at_again_under_its_guard) {
  parking p;
  conc__mutex *guard;
  crew c;
  memset(&p, 0, sizeof p);
  guard = conc__mutex_of(&p.sem);
  CHECK_EQ(conc_sem_acquire(&p.sem, 0.001), -ETIMEDOUT);
  CHECK_EQ(p.sem.value, CONC__SEM_WAITERS); /* nobody waits any more */
  crew_start(&c, 1, acquire_when_told, &p);
  conc__mutex_lock(guard);
  STORE(p.inside, 1);
  /* It has seen that, and wants the guard. */
  UNTIL(LOAD(guard->word) & CONC__MUTEX_WANTED);
  STORE(p.sem.value, (size_t)1); /* as a release does that came first */
  conc__mutex_unlock(guard);
  crew_join(&c);
  CHECK_EQ(conc_sem_value(&p.sem), 0);
}

static void try_twice(void *arg, member *me) {
  parking *p = (parking *)arg;
  (void)me;
  for (int i = 0; i < 2; i++)
    ADD_FETCH(*(conc_sem_acquire(&p->sem, 0) == 0 ? &p->passed : &p->refused),
              1);
}

TEST(a_semaphore_is_tried_by_many) {
  parking p;
  memset(&p, 0, sizeof p);
  p.sem.value = 4;
  CHECK_EQ(conc_sem_acquire(&p.sem, 0), 0);
  crew_run(5, try_twice, &p);
  CHECK_EQ(p.passed, 3);
  CHECK_EQ(p.refused, 7);
}

static void give_up(void *arg, member *me) {
  parking *p = (parking *)arg;
  int rc;
  (void)me;
  rc = conc_sem_acquire(&p->sem, CONC_FOREVER);
  CHECK(rc == 0 || rc == -ECANCELED);
  ADD_FETCH(*(rc == 0 ? &p->passed : &p->refused), 1);
}

TEST(what_a_cancelled_task_did_not_take_from_a_semaphore_is_not_lost) {
  for (int round = 0; round < 100; round++) {
    parking p;
    crew c;
    int taken = 0;
    memset(&p, 0, sizeof p);
    p.sem.bound = round % 2 ? 6 : 0;
    crew_start(&c, 6, give_up, &p);
    UNTIL(WAITING(&p.sem) == 6);
    CHECK_EQ(conc_cancel(&c.task[round % 6]), 0);
    for (int i = 0; i < 6; i++) {
      CHECK_EQ(conc_sem_release(&p.sem, 1), 0);
      if (i == round % 5) conc_cancel(&c.task[5 - round % 6]);
    }
    crew_join(&c);
    while (conc_sem_acquire(&p.sem, 0) == 0) taken++;
    CHECK_EQ(p.passed + taken, 6);
    CHECK_EQ(taken, p.refused);
    CHECK(p.refused <= 2);
  }
}

static void release_last(void *arg, member *me) {
  (void)me;
  CHECK_EQ(conc_sem_release((conc_sem *)arg, 1), 0);
}

TEST(whoever_acquired_what_was_released_last_may_free_the_semaphore) {
  for (int round = 0; round < 300; round++) {
    conc_sem *s = (conc_sem *)calloc(1, sizeof *s);
    crew c;
    crew_start(&c, 2, release_last, s);
    CHECK_EQ(conc_sem_acquire(s, CONC_FOREVER), 0);
    CHECK_EQ(conc_sem_acquire(s, CONC_FOREVER), 0);
    free(s);
    crew_join(&c);
  }
}

/* --- conc_barrier -------------------------------------------------------- */

typedef struct meeting {
  conc_barrier barrier, second;
  int rounds, before, after, actions, index[16];
  int passed, broken, later, action_rc, in_action;
  double timeout;
  conc_event go_on;
} meeting;

static int note_action(void *arg) {
  meeting *m = (meeting *)arg;
  m->actions++; /* before others are told that it runs */
  CHECK_EQ(ADD_FETCH(m->in_action, 1), 1);
  CHECK_EQ(conc_barrier_wait(&m->barrier, CONC_FOREVER), -EDEADLK);
  if (m->go_on.name != NULL) conc_event_wait(&m->go_on, CONC_FOREVER);
  ADD_FETCH(m->in_action, -1);
  return m->action_rc;
}

static void meeting_init(meeting *m, int parties) {
  memset(m, 0, sizeof *m);
  m->barrier.parties = m->second.parties = parties;
  m->barrier.arg = m;
  m->timeout = CONC_FOREVER;
}

static void meet(void *arg, member *me) {
  meeting *m = (meeting *)arg;
  (void)me;
  for (int i = 0; i < m->rounds; i++) {
    int index;
    ADD_FETCH(m->before, 1);
    CHECK_EQ(LOAD(m->after), i * m->barrier.parties);
    index = conc_barrier_wait(&m->barrier, CONC_FOREVER);
    CHECK(index >= 0 && index < m->barrier.parties);
    ADD_FETCH(m->index[index], 1);
    ADD_FETCH(m->after, 1);
    CHECK_EQ(LOAD(m->before), (i + 1) * m->barrier.parties);
    if (m->barrier.action != NULL) CHECK(m->actions > i);
    CHECK(conc_barrier_wait(&m->second, CONC_FOREVER) >= 0);
  }
}

TEST(a_barrier_is_passed_in_lockstep) {
  for (int action = 0; action < 2; action++)
    for (int parties = 1; parties < 10; parties += 4) {
      meeting m;
      meeting_init(&m, parties);
      m.rounds = parties == 5 ? 1000 : 200; /* test_thousand */
      if (action) m.barrier.action = note_action;
      crew_run(parties, meet, &m);
      for (int i = 0; i < parties; i++) CHECK_EQ(m.index[i], m.rounds);
      CHECK_EQ(m.actions, action ? m.rounds : 0);
      CHECK_EQ(conc_barrier_n_waiting(&m.barrier), 0);
      CHECK(!conc_barrier_broken(&m.barrier));
    }
}

TEST(a_barrier_needs_parties) {
  conc_barrier b = {0};
  CHECK_EQ(conc_barrier_wait(&b, CONC_FOREVER), -EINVAL);
  b.parties = -1;
  CHECK_EQ(conc_barrier_wait(&b, CONC_FOREVER), -EINVAL);
  b.parties = 1;
  CHECK_EQ(conc_barrier_wait(&b, CONC_FOREVER), 0);
  CHECK_EQ(conc_barrier_wait(&b, 0), 0);
}

/* Waits, and counts what came of it. */
static int come(meeting *m) {
  int rc = conc_barrier_wait(&m->barrier, m->timeout);
  if (rc >= 0) ADD_FETCH(m->passed, 1);
  else if (rc == -EPIPE) ADD_FETCH(m->broken, 1);
  else ADD_FETCH(m->later, 1);
  return rc;
}
static void come_once(void *arg, member *me) {
  (void)me;
  come((meeting *)arg);
}

/* Four of five wait; the barrier is broken in one of four ways. All of them
   are told, once, and only the one that was cancelled is told that. After a
   reset five pass. */
TEST(a_barrier_is_broken_for_all_by_abort_timeout_and_cancellation) {
  for (int round = 0; round < 60; round++) {
    meeting m;
    crew c;
    meeting_init(&m, 5);
    crew_start(&c, 4, come_once, &m);
    UNTIL(conc_barrier_n_waiting(&m.barrier) == 4);
    CHECK(!conc_barrier_broken(&m.barrier));
    if (round % 4 == 0)
      CHECK_EQ(conc_barrier_abort(&m.barrier), 0);
    else if (round % 4 == 1)
      CHECK_EQ(conc_cancel(&c.task[round % 3]), 0);
    else if (round % 4 == 2)
      m.barrier.parties = 6, CHECK_EQ(conc_barrier_wait(&m.barrier, 0),
                                      -ETIMEDOUT);
    else
      m.barrier.parties = 6, CHECK_EQ(conc_barrier_wait(&m.barrier, 0.002),
                                      -ETIMEDOUT);
    crew_join(&c);
    CHECK_EQ(m.broken, round % 4 == 1 ? 3 : 4);
    CHECK_EQ(m.later, round % 4 == 1 ? 1 : 0);
    CHECK(conc_barrier_broken(&m.barrier));
    CHECK_EQ(conc_barrier_n_waiting(&m.barrier), 0);
    CHECK_EQ(conc_barrier_wait(&m.barrier, CONC_FOREVER), -EPIPE);
    /* After a reset it is as new. */
    CHECK_EQ(conc_barrier_reset(&m.barrier), 0);
    CHECK(!conc_barrier_broken(&m.barrier));
    m.barrier.parties = 5;
    crew_run(5, come_once, &m);
    CHECK_EQ(m.passed, 5);
  }
}

TEST(a_reset_lets_those_who_wait_go_and_the_barrier_works_on) {
  for (int round = 0; round < 30; round++) {
    meeting m;
    crew c;
    meeting_init(&m, 5);
    crew_start(&c, 4, come_once, &m);
    UNTIL(conc_barrier_n_waiting(&m.barrier) == 4);
    CHECK_EQ(conc_barrier_reset(&m.barrier), 0);
    crew_join(&c);
    CHECK_EQ(m.broken, 4);
    CHECK(!conc_barrier_broken(&m.barrier));
    crew_run(5, come_once, &m);
    CHECK_EQ(m.passed, 5);
  }
}

/* One of five leaves the first meeting early and aborts or resets the
   second, in which the others already wait; then all meet again. */
static void abort_or_reset(void *arg, member *me) {
  meeting *m = (meeting *)arg;
  int index = conc_barrier_wait(&m->barrier, CONC_FOREVER);
  (void)me;
  CHECK(index >= 0);
  if (index == 2) {
    if (m->rounds) UNTIL(conc_barrier_n_waiting(&m->barrier) == 4);
    if (m->rounds)
      conc_barrier_reset(&m->barrier);
    else
      conc_barrier_abort(&m->barrier);
  } else {
    come(m);
  }
  if (conc_barrier_wait(&m->second, CONC_FOREVER) == 2)
    conc_barrier_reset(&m->barrier);
  CHECK(conc_barrier_wait(&m->second, CONC_FOREVER) >= 0);
  CHECK(conc_barrier_wait(&m->barrier, CONC_FOREVER) >= 0);
  ADD_FETCH(m->after, 1);
}

TEST(a_barrier_works_again_after_abort_and_reset) {
  for (int round = 0; round < 30; round++) {
    meeting m;
    meeting_init(&m, 5);
    m.rounds = round % 2;
    crew_run(5, abort_or_reset, &m);
    CHECK_EQ(m.passed, 0);
    CHECK_EQ(m.broken, 4);
    CHECK_EQ(m.after, 5);
  }
}

TEST(a_failing_action_breaks_the_barrier) {
  for (int round = 0; round < 20; round++) {
    meeting m;
    meeting_init(&m, 5);
    m.barrier.action = note_action;
    m.action_rc = -EIO;
    crew_run(5, come_once, &m);
    CHECK_EQ(m.actions, 1);
    CHECK_EQ(m.broken, 4);
    CHECK_EQ(m.later, 1); /* -EIO, for who ran it */
    CHECK(conc_barrier_broken(&m.barrier));
    conc_barrier_reset(&m.barrier);
    m.action_rc = 3; /* not an error, and not an index */
    crew_run(5, come_once, &m);
    CHECK_EQ(m.passed, 5);
  }
}

/* While the action runs: those of this generation pass whatever happens to
   them, those who come for the next one wait. */
static void come_all(void *arg, member *me) {
  meeting *m = (meeting *)arg;
  if (me->index >= 3) UNTIL(LOAD(m->in_action) == 1);
  come(m);
}

TEST(who_comes_while_the_action_runs_belongs_to_the_next_generation) {
  for (int round = 0; round < 60; round++) {
    meeting m;
    crew c;
    int what = round % 4;
    meeting_init(&m, 3);
    m.barrier.action = note_action;
    m.go_on.name = "go on";
    crew_start(&c, 6, come_all, &m);
    /* The three of the next generation wait for the action, uncounted. */
    UNTIL(WAITING(&m.barrier) == 3);
    CHECK_EQ(conc_barrier_n_waiting(&m.barrier), 0);
    CHECK_EQ(m.actions, 1);
    if (what == 1) m.action_rc = -EIO;
    if (what == 2) conc_barrier_abort(&m.barrier);
    if (what == 3) conc_barrier_reset(&m.barrier);
    conc_event_set(&m.go_on);
    crew_join(&c);
    CHECK_EQ(m.passed, what == 0 ? 6 : what == 1 ? 0 : 3);
    CHECK_EQ(m.broken, what == 0 ? 0 : what == 1 ? 5 : 3);
    CHECK_EQ(m.actions, what == 0 ? 2 : 1);
    CHECK_EQ(conc_barrier_broken(&m.barrier), what == 1 || what == 2);
  }
}

static void come_in_order(void *arg, member *me) {
  meeting *m = (meeting *)arg;
  UNTIL(conc_barrier_n_waiting(&m->barrier) == me->index);
  CHECK_EQ(come(m), me->index);
}

TEST(once_all_have_come_to_a_barrier_no_cancellation_counts) {
  for (int round = 0; round < 20; round++) {
    meeting m;
    crew c;
    meeting_init(&m, 5);
    m.barrier.action = note_action;
    m.go_on.name = "go on";
    crew_start(&c, 5, come_in_order, &m);
    UNTIL(LOAD(m.in_action) == 1);
    for (int i = 0; i < 4; i++) CHECK_EQ(conc_cancel(&c.task[i]), 0);
    conc_event_set(&m.go_on);
    crew_join(&c);
    CHECK_EQ(m.passed, 5);
  }
}

/* One who has taken himself off the list, and is about to say so, is still
   counted: when the last one comes meanwhile, the barrier must break all the
   same. What he says then concerns his own generation only. */
TEST(a_barrier_is_not_passed_by_the_last_when_another_has_just_given_up) {
  conc_barrier b = {0};
  unsigned before;
  b.parties = 2;
  before = b.generation;
  b.waiting = 1; /* but nobody is in the list */
  CHECK_EQ(conc_barrier_wait(&b, CONC_FOREVER), -EPIPE);
  CHECK(conc_barrier_broken(&b));
  conc_barrier_reset(&b);
  conc__barrier_end(&b, true, &before);
  CHECK(!conc_barrier_broken(&b));
}

static void come_and_free(void *arg, member *me) {
  meeting *m = (meeting *)arg;
  int rc = conc_barrier_wait(&m->barrier, CONC_FOREVER);
  CHECK(rc >= 0);
  (void)me;
  if (ADD_FETCH(m->passed, 1) == 4) free(m);
}

TEST(who_is_let_go_by_a_barrier_may_free_it) {
  for (int round = 0; round < 200; round++) {
    meeting *m = (meeting *)malloc(sizeof *m);
    meeting_init(m, 4);
    crew_run(4, come_and_free, m);
  }
}

/* --- conc_once ----------------------------------------------------------- */

typedef struct task_once {
  conc_once once;
  int calls, fail, done, failed, cancelled;
  bool inside, hold;
} task_once;

static int do_once(void *arg) {
  task_once *t = (task_once *)arg;
  CHECK(!t->inside);
  t->inside = true;
  CHECK(!t->done);
  CHECK_EQ(conc_once_run(&t->once, do_once, t, CONC_FOREVER), -EDEADLK);
  CHECK_EQ(conc_once_run(&t->once, do_once, t, 0), -EDEADLK);
  ADD_FETCH(t->calls, 1);
  while (LOAD(t->hold)) conc_yield_now();
  conc_yield_now();
  t->inside = false;
  if (t->fail-- > 0) return -EIO;
  t->done = 1;
  return 7; /* 0 and more is success */
}

static void do_it(void *arg, member *me) {
  task_once *t = (task_once *)arg;
  int rc = conc_once_run(&t->once, do_once, t, CONC_FOREVER);
  (void)me;
  CHECK(rc == 0 || rc == -EIO || rc == -ECANCELED);
  if (rc == 0) CHECK(t->done);
  if (rc == -EIO) ADD_FETCH(t->failed, 1);
  if (rc == -ECANCELED) ADD_FETCH(t->cancelled, 1);
}

TEST(once_is_once_and_all_wait_for_it) {
  for (int round = 0; round < 100; round++) {
    task_once t;
    crew c;
    memset(&t, 0, sizeof t);
    t.fail = round % 4;
    STORE(t.hold, true);
    crew_start(&c, 8, do_it, &t);
    if (round % 2) UNTIL(WAITING(&t.once) == 7);
    STORE(t.hold, false);
    crew_join(&c);
    CHECK_EQ(t.failed, round % 4); /* told to those who ran it only */
    CHECK_EQ(t.calls, round % 4 + 1);
    CHECK_EQ(conc_once_run(&t.once, do_once, &t, 0), 0);
    CHECK_EQ(t.calls, round % 4 + 1);
  }
}

TEST(if_all_fail_it_can_still_be_done) {
  task_once t;
  memset(&t, 0, sizeof t);
  t.fail = 8;
  crew_run(8, do_it, &t);
  CHECK_EQ(t.failed, 8);
  CHECK_EQ(conc_once_run(&t.once, do_once, &t, 0), 0);
  CHECK_EQ(t.calls, 9);
}

TEST(waiting_for_once_can_time_out_and_be_cancelled) {
  for (int round = 0; round < 30; round++) {
    task_once t;
    crew c;
    memset(&t, 0, sizeof t);
    t.fail = round % 2;
    STORE(t.hold, true);
    crew_start(&c, 4, do_it, &t);
    UNTIL(WAITING(&t.once) == 3);
    CHECK_EQ(conc_once_run(&t.once, do_once, &t, 0), -ETIMEDOUT);
    CHECK_EQ(conc_once_run(&t.once, do_once, &t, 0.001), -ETIMEDOUT);
    /* One of them runs it, and will not notice; the others give up. */
    for (int i = 0; i < 4; i++) CHECK_EQ(conc_cancel(&c.task[i]), 0);
    UNTIL(LOAD(t.cancelled) == 3);
    STORE(t.hold, false);
    crew_join(&c);
    CHECK_EQ(conc_once_run(&t.once, do_once, &t, 0), 0);
    CHECK_EQ(t.calls, 1 + round % 2);
  }
}

/* --- CONC_WITH ----------------------------------------------------------- */

static struct {
  conc_lock a, b;
  conc_rlock r;
  conc_rwlock rw;
  conc_sem sem;
} with;

static bool all_free(void) {
  return !conc_lock_locked(&with.a) && !conc_lock_locked(&with.b) &&
         !conc_lock_locked(&with.r.lock) && with.rw.word == 0 &&
         conc_sem_value(&with.sem) == 2;
}

static int leave_by(int way) {
  int i = 0;
  CONC_WITH(&with.a) {
    CHECK(conc_lock_locked(&with.a));
    CONC_WITH(&with.b) {
      CONC_WITH(&with.r) CONC_WITH(&with.r) CONC_WITH(&with.sem) {
        CHECK_EQ(with.r.lock.depth, 1);
        CHECK_EQ(conc_sem_value(&with.sem), 1);
        CONC_WITH_READ(&with.rw) {
          CHECK_EQ(conc_rwlock_write_acquire(&with.rw, 0), -EDEADLK);
          if (way == 1) return 1;
          if (way == 2) goto out;
        }
        CHECK_EQ(with.rw.word, 0);
        CONC_WITH_WRITE(&with.rw) {
          CHECK_EQ(conc_rwlock_read_acquire(&with.rw, 0), -EDEADLK);
          if (way == 3) return 3;
        } else {
          TEST_FAIL("the lock was free");
        }
      }
    }
    CHECK(!conc_lock_locked(&with.b));
  }
  CHECK(all_free());
  for (i = 0; i < 10; i++) {
    int here = 0;
    CONC_WITH(&with.b) {
      here = 1;
      if (way == 4) break; /* the block, not the loop */
      if (way == 5) continue;
      here = 2;
    }
    CHECK_EQ(here, way == 4 || way == 5 ? 1 : 2);
    CHECK(all_free());
  }
  return i;
out:
  CHECK(all_free());
  return 2;
}

TEST(with_releases_on_every_way_out) {
  memset(&with, 0, sizeof with);
  with.sem.value = 2;
  for (int way = 0; way < 6; way++) {
    CHECK_EQ(leave_by(way), way >= 1 && way <= 3 ? way : 10);
    CHECK(all_free());
  }
}

static int with_failing(conc_lock *l) {
  CONC_WITH(l) { TEST_FAIL("the lock cannot be had"); }
  CONC_WITH(l) {
    return 0;
  } else {
    return -errno;
  }
  return 1;
}

static void with_cancelled(void *arg, member *me) {
  (void)arg;
  (void)me;
  CONC_WITH(&with.r) {
    TEST_FAIL("the lock is held");
  } else {
    CHECK_EQ(errno, ECANCELED);
  }
  CONC_WITH(&with.sem) {
    conc_lock_acquire(&with.b, CONC_FOREVER);
    conc_lock_release(&with.b);
  } else {
    TEST_FAIL("the semaphore is free");
  }
}

TEST(with_skips_the_block_if_the_lock_cannot_be_had) {
  crew c;
  memset(&with, 0, sizeof with);
  with.sem.value = 2;
  CONC_WITH(&with.a) { CHECK_EQ(with_failing(&with.a), -EDEADLK); }
  CHECK(all_free());
  CHECK_EQ(conc_rlock_acquire(&with.r, 0), 0);
  crew_start(&c, 2, with_cancelled, NULL);
  UNTIL(WAITING(&with.r.lock) == 2);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_cancel(&c.task[i]), 0);
  crew_join(&c);
  CHECK_EQ(conc_rlock_release(&with.r), 0);
  CHECK(all_free());
}

#ifdef __cplusplus
TEST(with_releases_when_an_exception_is_thrown) {
  memset(&with, 0, sizeof with);
  with.sem.value = 2;
  try {
    CONC_WITH(&with.a) CONC_WITH(&with.r) CONC_WITH_READ(&with.rw) { throw 1; }
  } catch (int thrown) {
    CHECK_EQ(thrown, 1);
  }
  CHECK(all_free());
}
#endif

/* --- random operations, cancelled at random ------------------------------ */

/* A crew of 2 to 16 makes SYNC_STEPS random steps on one object, while this
   thread cancels at random. Each checks what must hold at any time, the test
   what must hold at the end. */
typedef struct arena {
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_sem sem;
  conc_cond full, empty;
  conc_event event[16];
  conc_barrier barrier;
  int n, steps;     /* how many members; steps of each */
  long count, a, b; /* guarded by what is tested */
  int inside, items;
  long used, passes, index[16];
  struct chore *chores;
  int n_chores;
} arena;

/* A timeout, and how to spend time inside. */
static double some_time(member *me) {
  static const double times[] = {0, 1e-5, 1e-3, 1, CONC_FOREVER, CONC_FOREVER};
  return times[pick(me, 6)];
}
static void some_work(member *me) {
  unsigned n = pick(me, 16);
  if (n < 3)
    conc_yield_now();
  else if (n == 3)
    conc_sleep(1e-5);
}
static bool had(int rc) {
  CHECK(rc == 0 || rc == -ETIMEDOUT || rc == -ECANCELED);
  return rc == 0;
}

static int steps_to_make(void) {
  return (int)test_asked("SYNC_STEPS", 10000);
}

static void storm(arena *s, void (*body)(void *, member *)) {
  crew c;
  s->n = 2 + (int)(test_random() % 15);
  s->steps = steps_to_make() / s->n + 1;
  crew_start(&c, s->n, body, s);
  while (LOAD(c.ended) < s->n) {
    conc_cancel(&c.task[test_random() % (unsigned)s->n]);
    for (unsigned i = test_random() % 8; i > 0; i--) conc_yield_now();
  }
  crew_join(&c);
}

static void storm_lock(void *arg, member *me) {
  arena *s = (arena *)arg;
  for (int i = 0; i < s->steps; i++)
    if (had(conc_lock_acquire(&s->lock, some_time(me)))) {
      long seen = s->count;
      some_work(me);
      s->count = seen + 1;
      ADD_FETCH(s->used, 1);
      CHECK_EQ(conc_lock_acquire(&s->lock, some_time(me)), -EDEADLK);
      CHECK_EQ(conc_lock_release(&s->lock), 0);
    } else {
      CHECK_EQ(conc_lock_release(&s->lock), -EPERM);
    }
}

TEST(random_steps_on_a_lock) {
  arena s;
  memset(&s, 0, sizeof s);
  storm(&s, storm_lock);
  CHECK_EQ(s.count, s.used);
  CHECK_EQ(s.lock.word & ~CONC__LOCK_WAITERS, 0);
  CHECK(s.lock.waiters.first == NULL);
}

/* At random deeper, out again, or waiting for the condition in between. */
static void storm_rlock(void *arg, member *me) {
  arena *s = (arena *)arg;
  int depth = 0;
  for (int i = 0; i < s->steps || depth > 0; i++) {
    unsigned what = pick(me, 8);
    if (i >= s->steps) what = 3;
    if (what < 3 && (depth > 0 || what == 0)) {
      if (had(conc_rlock_acquire(&s->rlock, some_time(me)))) {
        if (depth++ == 0) CHECK_EQ(ADD_FETCH(s->inside, 1), 1);
      } else {
        CHECK_EQ(depth, 0);
      }
    } else if (what < 6) {
      if (depth == 1) ADD_FETCH(s->inside, -1);
      CHECK_EQ(conc_rlock_release(&s->rlock), depth > 0 ? 0 : -EPERM);
      if (depth > 0) depth--;
    } else if (what == 6) {
      int rc;
      if (depth > 0) ADD_FETCH(s->inside, -1);
      rc = conc_cond_wait(&s->full, &s->rlock.lock, 1e-4 * (i % 3));
      if (depth > 0) {
        CHECK_EQ(ADD_FETCH(s->inside, 1), 1);
        had(rc);
        CHECK_EQ(s->rlock.lock.depth, depth - 1);
      } else {
        CHECK_EQ(rc, -EPERM);
      }
    } else {
      conc_cond_notify(&s->full, pick(me, 3));
      some_work(me);
    }
  }
}

TEST(random_steps_on_a_recursive_lock_and_a_condition) {
  arena s;
  memset(&s, 0, sizeof s);
  storm(&s, storm_rlock);
  CHECK_EQ(s.rlock.lock.word & ~CONC__LOCK_WAITERS, 0);
  CHECK(s.rlock.lock.waiters.first == NULL);
  CHECK(s.full.waiters.first == NULL);
}

static void storm_rwlock(void *arg, member *me) {
  arena *s = (arena *)arg;
  for (int i = 0; i < s->steps; i++)
    if (pick(me, 3) == 0) {
      if (!had(conc_rwlock_write_acquire(&s->rwlock, some_time(me)))) continue;
      CHECK_EQ(LOAD(s->inside), 0);
      s->a++;
      some_work(me);
      s->b++;
      CHECK_EQ(conc_rwlock_read_acquire(&s->rwlock, some_time(me)), -EDEADLK);
      CHECK_EQ(conc_rwlock_release(&s->rwlock), 0);
    } else {
      if (!had(conc_rwlock_read_acquire(&s->rwlock, some_time(me)))) continue;
      ADD_FETCH(s->inside, 1);
      CHECK_EQ(s->a, s->b);
      some_work(me);
      CHECK_EQ(s->a, s->b);
      CHECK_EQ(conc_rwlock_write_acquire(&s->rwlock, 1), -EDEADLK);
      ADD_FETCH(s->inside, -1);
      CHECK_EQ(conc_rwlock_release(&s->rwlock), 0);
    }
}

TEST(random_steps_on_a_rwlock) {
  arena s;
  memset(&s, 0, sizeof s);
  storm(&s, storm_rwlock);
  CHECK_EQ(s.rwlock.word, 0);
  CHECK(s.rwlock.waiters.first == NULL);
}

static void storm_sem(void *arg, member *me) {
  arena *s = (arena *)arg;
  for (int i = 0; i < s->steps; i++) {
    size_t n = 1;
    if (!had(conc_sem_acquire(&s->sem, some_time(me)))) continue;
    CHECK(ADD_FETCH(s->inside, 1) <= 4);
    some_work(me);
    if (pick(me, 4) == 0 && conc_sem_acquire(&s->sem, 0) == 0) {
      CHECK(ADD_FETCH(s->inside, 1) <= 4);
      n = 2;
    }
    CHECK(conc_sem_value(&s->sem) <= 4);
    CHECK_EQ(conc_sem_release(&s->sem, 5), -EOVERFLOW);
    ADD_FETCH(s->inside, -(int)n);
    CHECK_EQ(conc_sem_release(&s->sem, n), 0);
  }
}

TEST(random_steps_on_a_semaphore) {
  arena s;
  memset(&s, 0, sizeof s);
  s.sem.value = s.sem.bound = 1 + test_random() % 4;
  storm(&s, storm_sem);
  CHECK_EQ(conc_sem_value(&s.sem), s.sem.bound);
  CHECK(s.sem.waiters.first == NULL);
  CHECK_EQ(conc_sem_release(&s.sem, 1), -EOVERFLOW);
}

/* Makes and takes items of a small store. Each notify wakes one: a lost one
   is a hang. */
static void storm_cond(void *arg, member *me) {
  arena *s = (arena *)arg;
  bool make = me->index % 2 == 0;
  int left = s->steps;
  if (s->n % 2 != 0 && me->index == s->n - 1) return;
  while (left > 0) {
    int rc = 0;
    if (!had(conc_lock_acquire(&s->lock, some_time(me)))) continue;
    while (rc == 0 && (make ? s->items == 3 : s->items == 0))
      rc = conc_cond_wait(make ? &s->empty : &s->full, &s->lock,
                          some_time(me));
    if (had(rc)) {
      s->items += make ? 1 : -1;
      CHECK(s->items >= 0 && s->items <= 3);
      left--;
      conc_cond_notify(make ? &s->full : &s->empty, 1);
    }
    CHECK_EQ(conc_lock_release(&s->lock), 0);
  }
}

TEST(random_steps_on_conditions_lose_no_notify) {
  arena s;
  memset(&s, 0, sizeof s);
  storm(&s, storm_cond);
  CHECK_EQ(s.items, 0);
}

/* A token goes round; each waits for its own event. */
static void storm_event(void *arg, member *me) {
  arena *s = (arena *)arg;
  conc_event *mine = &s->event[me->index];
  for (int i = 0; i < s->steps; i++) {
    if (i > 0 || me->index > 0)
      while (!had(conc_event_wait(mine, some_time(me)))) {
      }
    CHECK(conc_event_is_set(mine) || (i == 0 && me->index == 0));
    conc_event_clear(mine);
    CHECK_EQ(s->count++, (long)i * s->n + me->index);
    conc_event_set(&s->event[(me->index + 1) % s->n]);
  }
}

TEST(random_steps_on_events_lose_no_set) {
  arena s;
  memset(&s, 0, sizeof s);
  storm(&s, storm_event);
}

static int count_pass(void *arg) {
  arena *s = (arena *)arg;
  CHECK_EQ(ADD_FETCH(s->inside, 1), 1);
  s->count++;
  CHECK_EQ(ADD_FETCH(s->inside, -1), 0);
  return s->count % 16 == 0 ? -EIO : 0;
}

static void storm_barrier(void *arg, member *me) {
  arena *s = (arena *)arg;
  for (int i = 0; i < s->steps; i++) {
    int rc = conc_barrier_wait(&s->barrier, some_time(me));
    CHECK(rc < s->barrier.parties);
    if (rc >= 0) {
      ADD_FETCH(s->index[rc], 1);
    } else if (rc == -EIO) {
      ADD_FETCH(s->passes, -1);
    } else {
      CHECK(rc == -EPIPE || rc == -ETIMEDOUT || rc == -ECANCELED);
      if (pick(me, 4) == 0) conc_barrier_abort(&s->barrier);
    }
    if (conc_barrier_broken(&s->barrier) && pick(me, 2) == 0)
      conc_barrier_reset(&s->barrier);
    CHECK(conc_barrier_n_waiting(&s->barrier) < s->barrier.parties);
  }
}

TEST(random_steps_on_a_barrier) {
  arena s;
  memset(&s, 0, sizeof s);
  s.barrier.parties = 1 + (int)(test_random() % 6);
  s.barrier.action = count_pass;
  s.barrier.arg = &s;
  storm(&s, storm_barrier);
  /* As often as the action succeeded, each index was given once. */
  s.passes += s.count;
  for (int i = 0; i < s.barrier.parties; i++) CHECK_EQ(s.index[i], s.passes);
  CHECK(s.barrier.waiters.first == NULL);
}

typedef struct chore {
  conc_once once;
  int works, done;
} chore;
typedef struct attempt {
  chore *what;
  member *me;
} attempt;

static int work_once(void *arg) {
  attempt *a = (attempt *)arg;
  CHECK_EQ(a->what->works++, 0);
  CHECK_EQ(a->what->done, 0);
  some_work(a->me);
  a->what->works--;
  if (pick(a->me, 3) > 0) return -EIO;
  a->what->done++;
  return 0;
}

static void storm_once(void *arg, member *me) {
  arena *s = (arena *)arg;
  for (int i = 0; i < s->n_chores;) {
    attempt a = {&s->chores[i], me};
    int rc = conc_once_run(&a.what->once, work_once, &a, some_time(me));
    if (rc == -EIO || !had(rc)) continue;
    CHECK_EQ(a.what->done, 1);
    i++;
  }
}

TEST(random_steps_on_once) {
  arena s;
  memset(&s, 0, sizeof s);
  s.n_chores = steps_to_make() / 20 + 1;
  s.chores = (chore *)calloc((size_t)s.n_chores, sizeof(chore));
  storm(&s, storm_once);
  for (int i = 0; i < s.n_chores; i++) {
    CHECK(s.chores[i].once.waiters.first == NULL);
    CHECK_EQ(s.chores[i].once.word, CONC__ONCE_DONE);
  }
  free(s.chores);
}

TEST_MAIN
