/* Memory that processes share, and who of them is alive. */
/* Many open one name at once here; on a machine with other things to do, or
   under a sanitizer, the last of them may wait for longer than is usual. */
#define CONC__OPEN_WAIT 20.0
#include "inside.h"
#include "child.h"

#include <sys/stat.h>

/* A child has no test of its own: it tells by its exit code. */

/* In a child that begins here and does not return. */

static void await_zombie(pid_t pid) {
  siginfo_t info;
  CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
}

/* --- memory --- */

TEST(memory_is_zeroed_and_shared_with_children) {
  size_t n = 100000, i;
  unsigned char *p = (unsigned char *)conc_shared_alloc(n);
  unsigned char *q = (unsigned char *)conc_shared_alloc(1);
  pid_t pid;
  CHECK(p != NULL && q != NULL);
  for (i = 0; i < n; i++) CHECK_EQ(p[i], 0);
  pid = begin_child();
  if (pid == 0) {
    memset(p, 7, n);
    *q = 8;
    conc_shared_free(p);
    _exit(3);
  }
  reap(pid, 3);
  for (i = 0; i < n; i++) CHECK_EQ(p[i], 7);
  CHECK_EQ(*q, 8);
  conc_shared_free(p);
  conc_shared_free(q);
  conc_shared_free(NULL);
}

TEST(memory_that_cannot_be_had_says_why) {
  CHECK(conc_shared_alloc(0) == NULL);
  CHECK_EQ(errno, EINVAL);
  CHECK(conc_shared_alloc(SIZE_MAX) == NULL);
  CHECK_EQ(errno, ENOMEM);
  CHECK(conc_shared_alloc(SIZE_MAX / 4) == NULL);
  CHECK_EQ(errno, ENOMEM);
  test_fail_at = 1;
  CHECK(conc_shared_alloc(1) == NULL);
  CHECK_EQ(errno, ENOMEM);
}

TEST(a_child_may_free_all_and_begin_anew) {
  int *p = (int *)conc_shared_alloc(sizeof *p);
  pid_t pid = begin_child();
  if (pid == 0) {
    pid_t grandchild;
    int *q, status;
    conc_shared_free(p);
    q = (int *)conc_shared_alloc(sizeof *q);
    CHECK_CHILD(q != NULL && *q == 0);
    grandchild = fork();
    if (grandchild == 0) _exit(*q = 5);
    CHECK_CHILD(waitpid(grandchild, &status, 0) == grandchild && *q == 5);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(*p, 0);
  conc_shared_free(p);
}

static int stop_allocating;
static void *allocate(void *arg) {
  while (!LOAD(stop_allocating)) {
    void *p = conc_shared_alloc(1);
    CHECK(p != NULL);
    conc_shared_free(p);
  }
  return arg;
}

TEST(a_fork_may_come_while_threads_allocate) {
  conc_task t[2];
  if (TEST_TSAN) SKIP("ThreadSanitizer knows no threads after a fork");
  if (CONC_HAVE_ASAN) SKIP("AddressSanitizer's own allocator may hang then");
  memset(t, 0, sizeof t);
  for (int i = 0; i < 2; i++) {
    t[i].target = allocate;
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < 300; i++) {
    pid_t pid = begin_child();
    if (pid == 0) {
      void *p = conc_shared_alloc(1);
      CHECK_CHILD(p != NULL && conc__registry_self(conc__registry_of(p)) != 0);
      _exit(0);
    }
    reap(pid, 0);
  }
  STORE(stop_allocating, 1);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
}

/* --- who is alive --- */

typedef struct board {
  unsigned id, word, answer, count;
} board;

static board *shared;
static struct conc__registry *registry;

static void begin(void) {
  shared = (board *)conc_shared_alloc(sizeof *shared);
  CHECK(shared != NULL);
  registry = conc__registry_of(shared);
  CHECK(registry != NULL && registry == conc__registry_of(&shared->count));
}

static unsigned await_id(void) {
  while (LOAD(shared->id) == 0) sched_yield();
  return shared->id;
}

/* Its id, and it lives until it is killed. */
static pid_t begin_living(void) {
  pid_t pid;
  shared->id = 0;
  pid = begin_child();
  if (pid == 0) {
    STORE(shared->id, conc__registry_self(registry));
    for (;;) pause();
  }
  await_id();
  return pid;
}

TEST(no_memory_of_ours_has_no_registry) {
  int here = 0;
  CHECK(conc__registry_of(&here) == NULL);
  CHECK_EQ(errno, EINVAL);
}

TEST(the_living_are_told_from_the_dead) {
  unsigned me, id;
  pid_t pid;
  begin();
  me = conc__registry_self(registry);
  CHECK(me != 0 && me == conc__registry_self(registry));
  CHECK(!conc__registry_is_dead(registry, me));
  pid = begin_living();
  id = shared->id;
  CHECK(id != 0 && id != me);
  for (int i = 0; i < 100; i++) CHECK(!conc__registry_is_dead(registry, id));
  kill(pid, SIGKILL);
  await_zombie(pid);
  CHECK(conc__registry_is_dead(registry, id));
  reap(pid, -SIGKILL);
  CHECK(conc__registry_is_dead(registry, id));
  conc_shared_free(shared);
}

TEST(who_ends_is_dead_to_all_however_it_ended) {
  begin();
  for (int i = 0; i < 3; i++) {
    unsigned id;
    pid_t pid;
    shared->id = 0;
    pid = begin_child();
    if (pid == 0) {
      STORE(shared->id, conc__registry_self(registry));
      if (i == 1) raise(SIGTERM);
      if (i == 2) execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
      _exit(0);
    }
    id = await_id();
    await_zombie(pid);
    CHECK(conc__registry_is_dead(registry, id));
    reap(pid, i == 1 ? -SIGTERM : 0);
  }
  conc_shared_free(shared);
}

TEST(a_used_entry_is_another_process) {
  unsigned first, second;
  pid_t pid;
  begin();
#ifdef MADV_DONTFORK /* where that is denied two entries are tried */
  if (CONC__MADVISE(shared, 0, MADV_DONTFORK) != 0 && conc__open_locks())
    SKIP("an entry is passed over");
#endif
  pid = begin_living();
  first = shared->id;
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  STORE(registry->next, first % CONC__PROCESSES);
  pid = begin_living();
  second = shared->id;
  CHECK_EQ(first % CONC__PROCESSES, second % CONC__PROCESSES);
  CHECK(conc__registry_is_dead(registry, first));
  CHECK(!conc__registry_is_dead(registry, second));
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  conc_shared_free(shared);
}

/* An entry is used so often that its number begins again: no id is that of a
   claim which is done. */
TEST(no_process_has_the_number_of_a_claim_that_is_done) {
  pid_t pid;
  begin();
  for (unsigned i = 0; i < CONC__PROCESSES; i++)
    STORE(registry->uses[i], (CONC__PROCESS_ID >> 10) - 1);
  pid = begin_living();
  CHECK_EQ(shared->id >> 10, 1);
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  conc_shared_free(shared);
}

TEST(a_forked_child_is_somebody_else) {
  unsigned me;
  pid_t pid;
  begin();
  me = conc__registry_self(registry);
  pid = begin_child();
  if (pid == 0) {
    unsigned id = conc__registry_self(registry);
    CHECK_CHILD(id != 0 && id != me);
    CHECK_CHILD(!conc__registry_is_dead(registry, me));
    CHECK_CHILD(!conc__registry_is_dead(registry, id));
    shared->id = id;
    _exit(0);
  }
  reap(pid, 0);
  CHECK(conc__registry_is_dead(registry, shared->id));
  CHECK_EQ(conc__registry_self(registry), me);
  conc_shared_free(shared);
}

TEST(thousands_of_processes_follow_each_other) {
  int n = TEST_TSAN || TEST_ASAN ? 1500 : 5000;
  begin();
  for (int i = 0; i < n; i++) {
    pid_t pid = begin_child();
    if (pid == 0) _exit(conc__registry_self(registry) != 0 ? 0 : 1);
    reap(pid, 0);
  }
  conc_shared_free(shared);
}

TEST(too_many_processes_are_refused) {
  unsigned me;
  pid_t pid;
  begin();
  pid = begin_child();
  if (pid == 0) { /* as many in one */
    struct flock all;
    memset(&all, 0, sizeof all);
    all.l_type = F_WRLCK;
    all.l_len = CONC__PROCESSES;
    CHECK_CHILD(fcntl(conc__registry_local(registry)->fd, F_SETLK, &all) == 0);
    STORE(shared->id, 1);
    for (;;) pause();
  }
  await_id();
  CHECK_EQ(conc__registry_self(registry), 0);
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  me = conc__registry_self(registry);
  CHECK(me != 0);
  conc_shared_free(shared);
}

/* --- waiting --- */

static int await_word(unsigned *word, unsigned value, double timeout) {
  double deadline = conc__deadline(timeout);
  unsigned round = 0, seen;
  while ((seen = LOAD(*word)) != value) {
    int rc = conc__shared_wait(word, seen, deadline, &round);
    if (rc != 0) return rc;
  }
  return 0;
}

static void in_thread(conc_fn *fn, void *arg) { fn(arg); }
static void in_loop(conc_fn *fn, void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = fn;
  t.arg = arg;
  CHECK_EQ(conc_run(&t), 0);
}

enum { ROUNDS = 300 };

static void *answer(void *arg) {
  for (unsigned i = 1; i <= ROUNDS; i++) {
    CHECK_CHILD(await_word(&shared->word, i, CONC_FOREVER) == 0);
    STORE(shared->answer, i);
    conc__shared_wake(&shared->answer, 1);
  }
  return arg;
}
static void *ask(void *arg) {
  for (unsigned i = 1; i <= ROUNDS; i++) {
    STORE(shared->word, i);
    conc__shared_wake(&shared->word, 1);
    CHECK_EQ(await_word(&shared->answer, i, CONC_FOREVER), 0);
  }
  return arg;
}

TEST(processes_wake_each_other) {
  for (int kind = 0; kind < 4; kind++) {
    pid_t pid;
    begin();
    pid = begin_child();
    if (pid == 0) {
      (kind & 1 ? in_loop : in_thread)(answer, NULL);
      _exit(0);
    }
    (kind & 2 ? in_loop : in_thread)(ask, NULL);
    reap(pid, 0);
    conc_shared_free(shared);
  }
}

static void *time_out(void *arg) {
  double start = conc_now();
  CHECK_EQ(await_word(&shared->word, 1, 0), -ETIMEDOUT);
  CHECK_EQ(await_word(&shared->word, 1, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - start >= 0.05);
  return arg;
}

TEST(a_wait_between_processes_has_a_timeout) {
  begin();
  in_thread(time_out, NULL);
  in_loop(time_out, NULL);
  conc_shared_free(shared);
}

static void *wait_for_ever(void *rc) {
  STORE(shared->id, 1);
  *(int *)rc = await_word(&shared->word, 1, CONC_FOREVER);
  return NULL;
}

TEST(a_wait_between_processes_is_cancelled) {
  conc_task t;
  int rc = 0;
  begin();
  memset(&t, 0, sizeof t);
  t.target = wait_for_ever;
  t.arg = &rc;
  CHECK_EQ(conc_thread_start(&t), 0);
  await_id();
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(rc, -ECANCELED);
  conc_shared_free(shared);
}

static void *cancel_other(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = wait_for_ever;
  t.arg = arg;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_sleep(0.01), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(*(int *)arg, -ECANCELED);
  return NULL;
}

TEST(a_wait_of_a_coroutine_between_processes_is_cancelled) {
  int rc = 0;
  begin();
  in_loop(cancel_other, &rc);
  conc_shared_free(shared);
}

static void *expire(void *arg) {
  conc_scope s;
  conc_timeout(&s, 0.01);
  CHECK_EQ(await_word(&shared->word, 1, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
  return arg;
}

TEST(a_time_limit_ends_a_wait_between_processes) {
  begin();
  in_thread(expire, NULL);
  in_loop(expire, NULL);
  conc_shared_free(shared);
}

/* --- primitives --- */

/* All that processes share in the tests below. */
typedef struct table {
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_sem sem, bounded;
  conc_cond cond;
  conc_event event, go;
  conc_barrier barrier;
  conc_once once;
  unsigned ready, done, ran;
  long counter;
  size_t numbers;
} table;

static table *its;

static void lay(void) {
  its = (table *)conc_shared_alloc(sizeof *its);
  CHECK(its != NULL);
  its->sem.value = 1;
  its->bounded.value = 2;
  its->bounded.bound = 3;
  its->barrier.parties = 3;
  CHECK_EQ(conc_lock_init_shared(&its->lock), 0);
  CHECK_EQ(conc_rlock_init_shared(&its->rlock), 0);
  CHECK_EQ(conc_rwlock_init_shared(&its->rwlock), 0);
  CHECK_EQ(conc_sem_init_shared(&its->sem), 0);
  CHECK_EQ(conc_sem_init_shared(&its->bounded), 0);
  CHECK_EQ(conc_cond_init_shared(&its->cond), 0);
  CHECK_EQ(conc_event_init_shared(&its->event), 0);
  CHECK_EQ(conc_event_init_shared(&its->go), 0);
  CHECK_EQ(conc_barrier_init_shared(&its->barrier), 0);
  CHECK_EQ(conc_once_init_shared(&its->once), 0);
}

static void add(unsigned *n) { __atomic_add_fetch(n, 1, __ATOMIC_ACQ_REL); }
static void await_count(unsigned *n, unsigned value) {
  while (LOAD(*n) < value) usleep(100);
}

/* A child that does this as a thread or as a coroutine, then lives on. */
static pid_t begin_doing(conc_fn *fn, bool coroutine) {
  unsigned ready = LOAD(its->ready);
  pid_t pid = begin_child();
  if (pid == 0) {
    (coroutine ? in_loop : in_thread)(fn, NULL);
    _exit(0);
  }
  await_count(&its->ready, ready + 1);
  return pid;
}
static void end(pid_t pid) {
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
}
static void stay(void) {
  add(&its->ready);
  conc_sleep(CONC_FOREVER);
}

TEST(only_shared_memory_can_be_made_so) {
  table t;
  memset(&t, 0, sizeof t);
  t.barrier.parties = 1;
  CHECK_EQ(conc_lock_init_shared(&t.lock), -EINVAL);
  CHECK_EQ(conc_rlock_init_shared(&t.rlock), -EINVAL);
  CHECK_EQ(conc_rwlock_init_shared(&t.rwlock), -EINVAL);
  CHECK_EQ(conc_sem_init_shared(&t.sem), -EINVAL);
  CHECK_EQ(conc_cond_init_shared(&t.cond), -EINVAL);
  CHECK_EQ(conc_event_init_shared(&t.event), -EINVAL);
  CHECK_EQ(conc_barrier_init_shared(&t.barrier), -EINVAL);
  CHECK_EQ(conc_once_init_shared(&t.once), -EINVAL);
  lay();
  its->barrier.parties = 0;
  CHECK_EQ(conc_barrier_init_shared(&its->barrier), -EINVAL);
  its->sem.value = (size_t)1 << 30;
  CHECK_EQ(conc_sem_init_shared(&its->sem), -EINVAL);
  conc_shared_free(its);
}

/* --- exclusion --- */

enum { PROCESSES = 3, TASKS = 3, TURNS = 400 };

static int take(int what) {
  switch (what) {
  case 0: return conc_lock_acquire(&its->lock, CONC_FOREVER);
  case 1: return conc_rlock_acquire(&its->rlock, 30);
  case 2: return conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER);
  default: return conc_sem_acquire(&its->sem, 30);
  }
}
static int give(int what) {
  switch (what) {
  case 0: return conc_lock_release(&its->lock);
  case 1: return conc_rlock_release(&its->rlock);
  case 2: return conc_rwlock_release(&its->rwlock);
  default: return conc_sem_release(&its->sem, 1);
  }
}

static void *count_up(void *what) {
  for (int i = 0; i < TURNS; i++) {
    long seen;
    CHECK_CHILD(take((int)(intptr_t)what) == 0);
    if (i % 8 == 0 && (intptr_t)what == 1) CHECK_CHILD(take(1) == 0);
    seen = its->counter;
    if (i % 16 == 0) conc_yield_now();
    its->counter = seen + 1;
    if (i % 8 == 0 && (intptr_t)what == 1) CHECK_CHILD(give(1) == 0);
    CHECK_CHILD(give((int)(intptr_t)what) == 0);
  }
  return NULL;
}

static void *count_up_all(void *what) {
  conc_task t[TASKS];
  memset(t, 0, sizeof t);
  for (int i = 0; i < TASKS; i++) {
    t[i].target = count_up;
    t[i].arg = what;
    if (conc__this.loop != NULL) CHECK_CHILD(conc_coro_start(&t[i]) == 0);
    else CHECK_CHILD(conc_thread_start(&t[i]) == 0);
  }
  for (int i = 0; i < TASKS; i++)
    CHECK_CHILD(conc_join(&t[i], CONC_FOREVER) == 0);
  return NULL;
}

TEST(tasks_of_several_processes_exclude_each_other) {
  for (intptr_t what = 0; what < 4; what++) {
    pid_t pids[PROCESSES];
    lay();
    for (int i = 0; i < PROCESSES; i++) {
      pids[i] = begin_child();
      if (pids[i] == 0) {
        (i & 1 ? in_loop : in_thread)(count_up_all, (void *)what);
        _exit(0);
      }
    }
    for (int i = 0; i < PROCESSES; i++) reap(pids[i], 0);
    CHECK_EQ(its->counter, PROCESSES * TASKS * TURNS);
    CHECK(!conc_lock_locked(&its->lock));
    conc_shared_free(its);
  }
}

/* --- errors, as between threads --- */

static void *misuse(void *arg) {
  conc_lock here;
  memset(&here, 0, sizeof here);
  CHECK_EQ(conc_lock_release(&its->lock), -EPERM);
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), 0);
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), -EDEADLK);
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), -EDEADLK);
  CHECK(conc_lock_locked(&its->lock));
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  CHECK_EQ(conc_lock_release(&its->lock), -EPERM);

  CHECK_EQ(conc_rlock_release(&its->rlock), -EPERM);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_rlock_acquire(&its->rlock, 0), 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_rlock_release(&its->rlock), 0);
  CHECK_EQ(conc_rlock_release(&its->rlock), -EPERM);
  CHECK(!conc_lock_locked(&its->rlock.lock));

  CHECK_EQ(conc_rwlock_release(&its->rwlock), -EPERM);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), -EDEADLK);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 1), -EDEADLK);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0), -EDEADLK);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 1), -EDEADLK);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), -EPERM);

  CHECK_EQ(conc_sem_value(&its->bounded), 2);
  CHECK_EQ(conc_sem_release(&its->bounded, 2), -EOVERFLOW);
  CHECK_EQ(conc_sem_release(&its->bounded, 0), -EINVAL);
  CHECK_EQ(conc_sem_release(&its->bounded, 1), 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_sem_acquire(&its->bounded, 0), 0);
  CHECK_EQ(conc_sem_acquire(&its->bounded, 0), -ETIMEDOUT);
  CHECK_EQ(conc_sem_acquire(&its->bounded, 0.002), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(&its->bounded, 2), 0);
  CHECK_EQ(conc_sem_value(&its->bounded), 2);
  CHECK_EQ(conc_sem_release(&its->sem, ((size_t)1 << 30) - 1), -EOVERFLOW);

  CHECK(!conc_event_is_set(&its->event));
  CHECK_EQ(conc_event_clear(&its->event), 0);
  CHECK_EQ(conc_event_wait(&its->event, 0), -ETIMEDOUT);
  CHECK_EQ(conc_event_wait(&its->event, 0.002), -ETIMEDOUT);
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_event_set(&its->event), 0);
    CHECK_EQ(conc_event_set(&its->event), 0);
    CHECK(conc_event_is_set(&its->event));
    CHECK_EQ(conc_event_wait(&its->event, 0), 0);
    CHECK_EQ(conc_event_clear(&its->event), 0);
    CHECK(!conc_event_is_set(&its->event));
  }

  CHECK_EQ(conc_cond_wait(&its->cond, &its->lock, 0), -EPERM);
  CHECK_EQ(conc_cond_wait(&its->cond, &here, 0), -EPERM);
  CHECK_EQ(conc_lock_acquire(&here, 0), 0);
  CHECK_EQ(conc_cond_wait(&its->cond, &here, 0), -EINVAL);
  CHECK_EQ(conc_lock_release(&here), 0);
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), 0);
  CHECK_EQ(conc_cond_notify(&its->cond, 1), 0);
  CHECK_EQ(conc_cond_wait(&its->cond, &its->lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_cond_wait(&its->cond, &its->lock, 0.002), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&its->lock), 0);

  CHECK_EQ(conc_barrier_wait(&its->barrier, 0.002), -ETIMEDOUT);
  CHECK(conc_barrier_broken(&its->barrier));
  CHECK_EQ(conc_barrier_wait(&its->barrier, 1), -EPIPE);
  CHECK_EQ(conc_barrier_reset(&its->barrier), 0);
  CHECK(!conc_barrier_broken(&its->barrier));
  CHECK_EQ(conc_barrier_n_waiting(&its->barrier), 0);
  return arg;
}

TEST(errors_between_processes_are_those_between_threads) {
  lay();
  in_thread(misuse, NULL);
  in_loop(misuse, NULL);
  conc_shared_free(its);
}

static void *hold_all(void *arg) {
  CHECK_CHILD(conc_lock_acquire(&its->lock, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_rlock_acquire(&its->rlock, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_rlock_acquire(&its->rlock, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER) == 0);
  stay();
  return arg;
}

static void *meet_a_holder(void *arg) {
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(&its->lock, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&its->lock), -EPERM);
  CHECK_EQ(conc_rlock_acquire(&its->rlock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(&its->rlock), -EPERM);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), -EPERM);
  return arg;
}

static void *inherit(void *arg) {
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), -EOWNERDEAD);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  CHECK_EQ(conc_lock_acquire(&its->lock, 0), 0);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  CHECK_EQ(conc_rlock_acquire(&its->rlock, 0), -EOWNERDEAD);
  CHECK_EQ(conc_rlock_acquire(&its->rlock, 0), 0);
  CHECK_EQ(conc_rlock_release(&its->rlock), 0);
  CHECK_EQ(conc_rlock_release(&its->rlock), 0);
  CHECK_EQ(conc_rlock_release(&its->rlock), -EPERM);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 5), -EOWNERDEAD);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), 0);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  return arg;
}

TEST(what_the_dead_held_says_so_once) {
  for (int kind = 0; kind < 4; kind++) {
    pid_t pid;
    lay();
    pid = begin_doing(hold_all, kind & 1);
    (kind & 2 ? in_loop : in_thread)(meet_a_holder, NULL);
    end(pid);
    (kind & 2 ? in_loop : in_thread)(inherit, NULL);
    conc_shared_free(its);
  }
}

TEST(a_forked_child_holds_nothing_of_its_parents) {
  pid_t pid;
  lay();
  for (int i = 0; i < 3; i++) CHECK_EQ(take(i), 0);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0), 0);
  pid = begin_child();
  if (pid == 0) {
    for (int i = 0; i < 3; i++) CHECK_CHILD(give(i) == -EPERM);
    CHECK_CHILD(conc_lock_acquire(&its->lock, 0.01) == -ETIMEDOUT);
    CHECK_CHILD(conc_rlock_acquire(&its->rlock, 0) == -ETIMEDOUT);
    CHECK_CHILD(conc_rwlock_read_acquire(&its->rwlock, 0) == 0);
    CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
    CHECK_CHILD(conc_rwlock_release(&its->rwlock) == -EPERM);
    CHECK_CHILD(conc_rwlock_write_acquire(&its->rwlock, 0) == -ETIMEDOUT);
    _exit(0);
  }
  reap(pid, 0);
  for (int i = 0; i < 3; i++) CHECK_EQ(give(i), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), 0);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  conc_shared_free(its);
}

static void *be_waiting(void *arg) {
  add(&its->ready);
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), -EOWNERDEAD);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  return arg;
}
static void *hold_lock(void *arg) {
  CHECK_CHILD(conc_lock_acquire(&its->lock, CONC_FOREVER) == 0);
  stay();
  return arg;
}

TEST(who_waits_is_told_that_the_owner_died) {
  for (int kind = 0; kind < 2; kind++) {
    double start;
    pid_t owner, waiter;
    lay();
    owner = begin_doing(hold_lock, false);
    waiter = begin_doing(be_waiting, kind);
    usleep(10000);
    kill(owner, SIGKILL);
    start = test_now();
    reap(waiter, 0);
    CHECK(test_now() - start < 5 * test_slow());
    reap(owner, -SIGKILL);
    conc_shared_free(its);
  }
}

/* --- rwlock --- */

static void *read_on(void *arg) {
  CHECK_CHILD(conc_rwlock_read_acquire(&its->rwlock, CONC_FOREVER) == 0);
  stay();
  return arg;
}

TEST(dead_readers_are_forgotten) {
  for (int kind = 0; kind < 2; kind++) {
    pid_t a, b;
    lay();
    a = begin_doing(read_on, false);
    b = begin_doing(read_on, true);
    CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0.03), -ETIMEDOUT);
    CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0), 0);
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    end(a);
    CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0.03), -ETIMEDOUT);
    if (kind == 0) end(b);
    else kill(b, SIGKILL);
    CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER), 0);
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    if (kind == 1) reap(b, -SIGKILL);
    conc_shared_free(its);
  }
}

static void *write_on(void *arg) {
  CHECK_CHILD(conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER) == 0);
  stay();
  return arg;
}
static void *write_after_a_death(void *arg) {
  int rc;
  add(&its->ready);
  rc = conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER);
  CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  its->counter = rc;
  its->done = 1;
  CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
  return arg;
}

/* A reader that comes behind a sleeping writer finds the owner dead, but it is
   the writer's turn: which has the lock first, and must be told. */
TEST(the_next_that_has_the_lock_is_told_of_the_death_that_another_one_found) {
  for (int round = 0; round < 6; round++) {
    pid_t owner, waiter;
    int rc;
    lay();
    owner = begin_doing(write_on, false);
    waiter = begin_doing(write_after_a_death, round == 5);
    usleep(2000);
    end(owner);
    rc = conc_rwlock_read_acquire(&its->rwlock, 10);
    CHECK_EQ(rc, its->done ? 0 : -EOWNERDEAD);
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    reap(waiter, 0);
    CHECK_EQ(its->counter, rc == 0 ? -EOWNERDEAD : 0);
    conc_shared_free(its);
  }
}

static void *want_to_write(void *arg) {
  add(&its->ready);
  CHECK_CHILD(conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER) == 0);
  its->counter = 1;
  CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
  return arg;
}

TEST(nobody_joins_the_readers_while_a_writer_waits_unless_it_dies) {
  pid_t pid;
  lay();
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0), 0);
  pid = begin_doing(want_to_write, false);
  while (LOAD(its->rwlock.shared.writer) == 0) sched_yield();
  {
    conc_rwlock **mine = conc__self()->reads;
    memset(mine, 0, sizeof conc__self()->reads); /* as another task */
    CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0.05), -ETIMEDOUT);
    end(pid);
    CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 5), 0);
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    mine[0] = CONC__READS_SHARED(&its->rwlock);
  }
  pid = begin_doing(want_to_write, true);
  CHECK_EQ(its->counter, 0);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  reap(pid, 0);
  CHECK_EQ(its->counter, 1);
  conc_shared_free(its);
}

static void *read_much(void *arg) {
  while (!conc_event_is_set(&its->event)) {
    CHECK_CHILD(conc_rwlock_read_acquire(&its->rwlock, CONC_FOREVER) == 0);
    CHECK_CHILD(its->counter % 2 == 0);
    add(&its->done);
    CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
  }
  return arg;
}
static void *write_much(void *arg) {
  while (!conc_event_is_set(&its->event)) {
    CHECK_CHILD(conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER) == 0);
    its->counter++;
    if (its->counter % 64 == 1) sched_yield();
    its->counter++;
    add(&its->ran);
    CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
  }
  return arg;
}

TEST(readers_and_writers_of_processes_both_go_on) {
  pid_t pids[6];
  lay();
  for (int i = 0; i < 6; i++) {
    pids[i] = begin_child();
    if (pids[i] == 0) {
      in_thread(i < 4 ? read_much : write_much, NULL);
      _exit(0);
    }
  }
  await_count(&its->done, 100);
  await_count(&its->ran, 100);
  CHECK_EQ(conc_event_set(&its->event), 0);
  for (int i = 0; i < 6; i++) reap(pids[i], 0);
  CHECK_EQ(its->counter, 2L * its->ran);
  conc_shared_free(its);
}

/* A call of this task's, as far as it has come before its first attempt. */
static struct conc__rwlock_call call_of(conc_rwlock *rwlock, bool write) {
  static const conc__sentry sentry = CONC__SENTRY_NEW;
  struct conc__rwlock_call c;
  memset(&c, 0, sizeof c);
  c.s = &rwlock->shared;
  c.r = conc__shared_registry(rwlock, rwlock->word);
  c.rwlock = rwlock;
  c.self = conc__self();
  c.write = write;
  c.deadline = CONC__NEVER;
  c.sentry = sentry;
  CHECK_EQ(conc__shared_rwlock_look(&c), 0);
  return c;
}

/* Step by step, as if the calls were of three processes: a reader has come
   while the lock was written, and a writer comes to look before that reader
   does, when the lock is free. */
TEST(a_writer_gives_a_reader_that_waited_the_time_of_one_look) {
  if (TEST_TSAN) SKIP("the steps are not told to ThreadSanitizer");
  for (int late = 0; late < 2; late++) {
    struct conc__rwlock_shared *s;
    struct conc__rwlock_call reader, writer;
    lay();
    s = &its->rwlock.shared;
    reader = call_of(&its->rwlock, false);
    CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), 0);
    CHECK(!conc__shared_rwlock_read(&reader));
    s->waits = 1; /* it sleeps */
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    CHECK_EQ(s->turn, 1);
    CHECK_EQ(s->waits, 0);
    /* The writer has its name there, and nothing that it would wait for but
       the turn. */
    writer = call_of(&its->rwlock, true);
    CHECK(!conc__shared_rwlock_write(&writer));
    CHECK(writer.named && writer.place == NULL);
    CHECK(s->writer == writer.id);
    if (late) { /* the reader does not come to look in that time */
      for (int looks = 0; !writer.gave; looks++) {
        CHECK(looks < 3);
        CHECK_EQ(conc__shared_rwlock_wait(&writer), 0);
      }
      CHECK(conc__shared_rwlock_write(&writer));
      CHECK_EQ(s->turn, 0);
      CHECK(!conc__shared_rwlock_read(&reader));
    } else {
      CHECK(conc__shared_rwlock_read(&reader)); /* it goes in front of it */
      CHECK_EQ(s->turn, 0);
      CHECK(!conc__shared_rwlock_write(&writer));
      CHECK(writer.place != NULL);
      conc__places_remove(s->readers, reader.id);
      *conc__reads_find(reader.self, CONC__READS_SHARED(&its->rwlock)) = NULL;
      CHECK(conc__shared_rwlock_write(&writer));
    }
    conc__sentry_end(&writer.sentry);
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    /* One that must not wait does not: the lock is free. */
    s->turn = 1;
    CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 0), 0);
    CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
    conc_shared_free(its);
  }
}

TEST(more_readers_than_there_are_places_for_wait) {
  pid_t pids[CONC__SHARERS];
  lay();
  for (int i = 0; i < CONC__SHARERS; i++)
    pids[i] = begin_doing(read_on, false);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 0.01), -ETIMEDOUT);
  kill(pids[3], SIGKILL);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, CONC_FOREVER), 0);
  reap(pids[3], -SIGKILL);
  for (int i = 0; i < CONC__SHARERS; i++)
    if (i != 3) end(pids[i]);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), 0);
  conc_shared_free(its);
}

/* --- semaphore, event --- */

static void *take_sem(void *arg) {
  add(&its->ready);
  CHECK_CHILD(conc_sem_acquire(&its->sem, CONC_FOREVER) == 0);
  add(&its->done);
  if (arg == NULL) return arg;
  conc_sleep(CONC_FOREVER);
  return arg;
}

TEST(a_semaphore_lets_as_many_go_as_are_released) {
  pid_t pids[4], killed;
  lay();
  CHECK_EQ(conc_sem_acquire(&its->sem, 0), 0);
  killed = begin_doing(take_sem, false);
  for (int i = 0; i < 4; i++) pids[i] = begin_doing(take_sem, i & 1);
  usleep(10000);
  end(killed); /* while it waits: it takes nothing along */
  CHECK_EQ(conc_sem_release(&its->sem, 3), 0);
  await_count(&its->done, 3);
  usleep(30000);
  CHECK_EQ(LOAD(its->done), 3);
  CHECK_EQ(conc_sem_release(&its->sem, 2), 0);
  for (int i = 0; i < 4; i++) reap(pids[i], 0);
  CHECK_EQ(conc_sem_value(&its->sem), 1);
  conc_shared_free(its);
}

static void *wait_event(void *arg) {
  add(&its->ready);
  CHECK_CHILD(conc_event_wait(&its->event, CONC_FOREVER) == 0);
  return arg;
}

TEST(a_set_lets_all_processes_go_even_if_it_is_cleared_at_once) {
  pid_t pids[4], killed;
  lay();
  killed = begin_doing(wait_event, false);
  for (int i = 0; i < 4; i++) pids[i] = begin_doing(wait_event, i & 1);
  usleep(10000); /* likely they wait; else the last set lets them go */
  end(killed);
  CHECK_EQ(conc_event_set(&its->event), 0);
  CHECK_EQ(conc_event_clear(&its->event), 0);
  usleep(10000);
  CHECK_EQ(conc_event_set(&its->event), 0);
  for (int i = 0; i < 4; i++) reap(pids[i], 0);
  conc_shared_free(its);
}

/* --- condition --- */

static void *wait_cond(void *arg) {
  CHECK_CHILD(conc_lock_acquire(&its->lock, CONC_FOREVER) == 0);
  add(&its->ready); /* who has the lock after this finds it waiting */
  CHECK_CHILD(conc_cond_wait(&its->cond, &its->lock, CONC_FOREVER) == 0);
  add(&its->done);
  CHECK_CHILD(conc_lock_release(&its->lock) == 0);
  return arg;
}

static void notify(size_t n) {
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_notify(&its->cond, n), 0);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
}

TEST(a_notify_lets_as_many_processes_go_as_it_says) {
  pid_t pids[6];
  lay();
  notify(3); /* nobody waits: nothing is kept */
  for (int i = 0; i < 6; i++) pids[i] = begin_doing(wait_cond, i & 1);
  notify(1);
  await_count(&its->done, 1);
  usleep(50000); /* all have looked meanwhile */
  CHECK_EQ(LOAD(its->done), 1);
  notify(2);
  await_count(&its->done, 3);
  usleep(50000);
  CHECK_EQ(LOAD(its->done), 3);
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_notify_all(&its->cond), 0);
  CHECK_EQ(conc_lock_release(&its->lock), 0);
  for (int i = 0; i < 6; i++) reap(pids[i], 0);
  CHECK_EQ(conc__cond_waiting(its->cond.shared.state), 0);
  conc_shared_free(its);
}

TEST(a_waiter_that_was_killed_takes_no_notify_along) {
  pid_t killed, pid;
  lay();
  killed = begin_doing(wait_cond, false);
  pid = begin_doing(wait_cond, false);
  CHECK_EQ(conc_lock_acquire(&its->lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release(&its->lock), 0); /* both wait now */
  end(killed);
  notify(1);
  reap(pid, 0);
  conc_shared_free(its);
}

static bool is_done(void *arg) { return its->counter >= *(long *)arg; }
static void *wait_for_counter(void *arg) {
  long want = 5;
  CHECK_CHILD(conc_rlock_acquire(&its->rlock, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_rlock_acquire(&its->rlock, CONC_FOREVER) == 0);
  add(&its->ready);
  CHECK_CHILD(conc_cond_wait_for(&its->cond, &its->rlock.lock, is_done, &want,
                                 30) == 0);
  CHECK_CHILD(conc_rlock_release(&its->rlock) == 0);
  CHECK_CHILD(conc_rlock_release(&its->rlock) == 0);
  CHECK_CHILD(conc_rlock_release(&its->rlock) == -EPERM);
  return arg;
}

TEST(a_condition_of_a_recursive_lock_gives_back_all_levels) {
  pid_t pid;
  lay();
  pid = begin_doing(wait_for_counter, true);
  for (int i = 0; i < 5; i++) {
    CONC_WITH(&its->rlock) {
      its->counter++;
      conc_cond_notify_all(&its->cond);
    }
  }
  reap(pid, 0);
  conc_shared_free(its);
}

/* --- barrier --- */

static void *pass_barrier(void *arg) {
  add(&its->ready);
  for (int i = 0; i < 200; i++) {
    int index = conc_barrier_wait(&its->barrier, CONC_FOREVER);
    CHECK_CHILD(index >= 0 && index < 3);
    __atomic_add_fetch(&its->numbers, 1u << 4 * index, __ATOMIC_ACQ_REL);
    CHECK_CHILD(conc_barrier_wait(&its->barrier, CONC_FOREVER) >= 0);
    if (index == 0) {
      CHECK_CHILD(its->numbers == 0x111);
      its->numbers = 0;
    }
    CHECK_CHILD(conc_barrier_wait(&its->barrier, CONC_FOREVER) >= 0);
  }
  return arg;
}
static int act(void *arg) {
  its->counter++;
  return arg == NULL ? 0 : -EIO;
}

TEST(processes_pass_a_barrier_together) {
  for (int with = 0; with < 2; with++) {
    pid_t a, b;
    lay();
    its->barrier.action = with ? act : NULL;
    a = begin_doing(pass_barrier, false);
    b = begin_doing(pass_barrier, true);
    in_thread(pass_barrier, NULL);
    reap(a, 0);
    reap(b, 0);
    CHECK_EQ(its->counter, with ? 600 : 0);
    conc_shared_free(its);
  }
}

static void *wait_barrier(void *arg) {
  int rc;
  add(&its->ready);
  rc = conc_barrier_wait(&its->barrier, CONC_FOREVER);
  if (rc == -EOWNERDEAD) add(&its->done);
  CHECK_CHILD(rc == -EOWNERDEAD || rc == -EPIPE);
  return arg;
}
static void await_waiting(int n) {
  while (conc_barrier_n_waiting(&its->barrier) != n) usleep(100);
}

TEST(a_death_at_a_barrier_breaks_it) {
  pid_t a, b, killed;
  lay();
  its->barrier.parties = 4;
  a = begin_doing(wait_barrier, false);
  b = begin_doing(wait_barrier, true);
  killed = begin_doing(wait_barrier, false);
  await_waiting(3);
  end(killed);
  reap(a, 0);
  reap(b, 0);
  CHECK_EQ(its->done, 1);
  CHECK(conc_barrier_broken(&its->barrier));
  CHECK_EQ(conc_barrier_wait(&its->barrier, 1), -EPIPE);
  conc_shared_free(its);
}

/* A process that finds the list of those that wait in use is not counted
   before it is on it: else nobody would know of its death. */
TEST(a_death_at_a_barrier_is_known_whoever_has_the_list) {
  struct conc__registry *r;
  pid_t a, killed;
  lay();
  its->barrier.parties = 4;
  r = conc__shared_registry(&its->barrier, its->barrier.word);
  STORE(its->barrier.shared.guard, conc__registry_self(r));
  killed = begin_doing(wait_barrier, false);
  usleep(20000);
  CHECK_EQ(conc_barrier_n_waiting(&its->barrier), 0);
  STORE(its->barrier.shared.guard, 0);
  await_waiting(1);
  a = begin_doing(wait_barrier, false);
  await_waiting(2);
  end(killed);
  reap(a, 0);
  CHECK_EQ(its->done, 1);
  conc_shared_free(its);
}

static int act_for_ever(void *arg) {
  stay();
  return arg != NULL;
}
static void *wait_and_act(void *arg) {
  conc_barrier_wait(&its->barrier, CONC_FOREVER);
  return arg;
}

TEST(a_death_in_the_action_of_a_barrier_breaks_it) {
  pid_t a, b, killed;
  lay();
  its->barrier.action = act_for_ever;
  a = begin_doing(wait_barrier, false);
  b = begin_doing(wait_barrier, true);
  await_waiting(2);
  killed = begin_doing(wait_and_act, false);
  /* It is to come again. */
  CHECK_EQ(conc_barrier_wait(&its->barrier, 0.01), -ETIMEDOUT);
  end(killed);
  reap(a, 0);
  reap(b, 0);
  CHECK(conc_barrier_broken(&its->barrier));
  conc_shared_free(its);
}

TEST(an_action_that_fails_breaks_the_barrier) {
  pid_t a, b;
  lay();
  its->barrier.action = act;
  its->barrier.arg = its;
  a = begin_doing(wait_barrier, false);
  b = begin_doing(wait_barrier, true);
  await_waiting(2);
  CHECK_EQ(conc_barrier_wait(&its->barrier, CONC_FOREVER), -EIO);
  reap(a, 0);
  reap(b, 0);
  CHECK_EQ(conc_barrier_reset(&its->barrier), 0);
  a = begin_doing(wait_barrier, false);
  await_waiting(1);
  CHECK_EQ(conc_barrier_abort(&its->barrier), 0);
  reap(a, 0);
  conc_shared_free(its);
}

/* --- once --- */

static int run_once(void *arg) {
  its->counter++;
  if (arg != NULL) stay();
  return 0;
}
static int fail_once(void *arg) { return arg == NULL ? -EIO : 0; }
static void *run_for_ever(void *arg) {
  conc_once_run(&its->once, run_once, its, CONC_FOREVER);
  return arg;
}
static int run_again(void *arg) {
  (void)arg;
  CHECK_EQ(conc_once_run(&its->once, run_once, NULL, CONC_FOREVER), -EDEADLK);
  return 0;
}

TEST(what_the_dead_did_not_finish_is_run_again) {
  for (int kind = 0; kind < 2; kind++) {
    pid_t pid;
    lay();
    CHECK_EQ(conc_once_run(&its->once, fail_once, NULL, 0), -EIO);
    pid = begin_doing(run_for_ever, kind);
    CHECK_EQ(conc_once_run(&its->once, run_once, NULL, 0.05), -ETIMEDOUT);
    CHECK_EQ(its->counter, 1);
    end(pid);
    CHECK_EQ(conc_once_run(&its->once, run_again, NULL, CONC_FOREVER), 0);
    CHECK_EQ(conc_once_run(&its->once, run_once, NULL, CONC_FOREVER), 0);
    CHECK_EQ(its->counter, 1);
    conc_shared_free(its);
  }
}

/* --- cancellation --- */

static int wait_what(int what) {
  switch (what) {
  case 0: return conc_lock_acquire(&its->lock, CONC_FOREVER);
  case 1: return conc_rwlock_read_acquire(&its->rwlock, CONC_FOREVER);
  case 2: return conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER);
  case 3: return conc_sem_acquire(&its->bounded, CONC_FOREVER);
  case 4: return conc_event_wait(&its->event, CONC_FOREVER);
  case 5: return conc_barrier_wait(&its->barrier, CONC_FOREVER);
  case 6: return conc_once_run(&its->once, run_once, NULL, CONC_FOREVER);
  default:
    CHECK_CHILD(conc_rlock_acquire(&its->rlock, CONC_FOREVER) == 0);
    {
      int rc = conc_cond_wait(&its->cond, &its->rlock.lock, CONC_FOREVER);
      CHECK_CHILD(conc_rlock_release(&its->rlock) == 0);
      return rc;
    }
  }
}
static void *wait_and_say(void *what) {
  add(&its->ready);
  CHECK_EQ(wait_what((int)(intptr_t)what), -ECANCELED);
  return NULL;
}

static void *cancel_waits(void *arg) {
  for (intptr_t what = 0; what < 8; what++) {
    unsigned ready = its->ready;
    conc_task t;
    memset(&t, 0, sizeof t);
    t.target = wait_and_say;
    t.arg = (void *)what;
    if (conc__this.loop != NULL)
      CHECK_EQ(conc_coro_start(&t), 0);
    else
      CHECK_EQ(conc_thread_start(&t), 0);
    while (LOAD(its->ready) == ready) conc_sleep(0.001);
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  }
  CHECK(conc_barrier_broken(&its->barrier));
  CHECK_EQ(conc__cond_waiting(its->cond.shared.state), 0);
  CHECK((its->rwlock.shared.writer & CONC__RWLOCK_HELD) != 0);
  conc_barrier_reset(&its->barrier);
  return arg;
}

static void *hold_everything(void *arg) {
  CHECK_CHILD(conc_lock_acquire(&its->lock, CONC_FOREVER) == 0);
  CHECK_CHILD(conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER) == 0);
  for (int i = 0; i < 2; i++)
    CHECK_CHILD(conc_sem_acquire(&its->bounded, 0) == 0);
  run_for_ever(NULL);
  return arg;
}

TEST(waits_for_other_processes_are_cancelled) {
  pid_t pid;
  lay();
  pid = begin_doing(hold_everything, false);
  in_thread(cancel_waits, NULL);
  in_loop(cancel_waits, NULL);
  end(pid);
  conc_shared_free(its);
}

/* --- memory by name --- */

/* Other programs: this one, executed again, in a role. */
typedef struct named {
  unsigned magic, inits, opened, leave;
  conc_lock lock;
  long counter;
} named;

static char name[64];

static void choose_name(void) {
  snprintf(name, sizeof name, "test-%d", (int)getpid());
}

static bool exists(void) {
  char path[128];
  struct stat st;
  snprintf(path, sizeof path, "%s/conc.%s",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
  return stat(path, &st) == 0;
}
static void await_gone(void) {
  double late = test_now() + 10 * test_slow();
  while (exists()) {
    usleep(200);
    if (test_now() > late) TEST_FAIL("%s is still there", name);
  }
}

static int make_named(void *memory, void *arg) {
  named *n = (named *)memory;
  if (arg != NULL) return -EIO;
  CHECK_CHILD(n->magic == 0 && n->inits == 0 && n->counter == 0);
  n->inits++;
  CHECK_CHILD(conc_lock_init_shared(&n->lock) == 0);
  sched_yield();
  n->magic = 42;
  return 0;
}
static named *open_named(void) {
  named *n = (named *)conc_shared_open(name, sizeof *n, make_named, NULL);
  CHECK_CHILD(n != NULL);
  CHECK_CHILD(LOAD(n->magic) == 42 && n->inits == 1);
  return n;
}

static int die_in_init(void *memory, void *arg) {
  ((named *)memory)->magic = 13;
  kill(getpid(), SIGKILL);
  return arg != NULL;
}

static void play_role(const char *role) {
  named *n;
  snprintf(name, sizeof name, "%s", getenv("SHARED_NAME"));
  if (strcmp(role, "die") == 0)
    CHECK_CHILD(!conc_shared_open(name, sizeof *n, die_in_init, NULL));
  n = open_named();
  if (strcmp(role, "count") == 0)
    for (int i = 0; i < 1000; i++) {
      CHECK_CHILD(conc_lock_acquire(&n->lock, CONC_FOREVER) == 0);
      n->counter++;
      CHECK_CHILD(conc_lock_release(&n->lock) == 0);
    }
  if (strcmp(role, "hold") == 0)
    CHECK_CHILD(conc_lock_acquire(&n->lock, CONC_FOREVER) == 0);
  add(&n->opened);
  if (strcmp(role, "count") != 0)
    while (!LOAD(n->leave)) usleep(200);
}
__attribute__((constructor)) static void begin_role(void) {
  const char *role = getenv("SHARED_ROLE");
  if (role == NULL) return;
  play_role(role);
  _exit(0);
}

static pid_t begin_program(const char *role) {
  pid_t pid = begin_child();
  if (pid == 0) {
    setenv("SHARED_ROLE", role, 1);
    setenv("SHARED_NAME", name, 1);
    execl("/proc/self/exe", "shared", (char *)NULL);
    _exit(98);
  }
  return pid;
}

#define NEEDS_EXEC                                                            \
  if (test_wrapped("qemu")) SKIP("it cannot be executed again")

TEST(programs_share_memory_by_name) {
  pid_t pids[4];
  named *n;
  NEEDS_EXEC;
  choose_name();
  n = open_named();
  for (int i = 0; i < 4; i++) pids[i] = begin_program("count");
  for (int i = 0; i < 4; i++) reap(pids[i], 0);
  CHECK_EQ(n->counter, 4000);
  CHECK_EQ(n->opened, 4);
  CHECK(exists());
  conc_shared_free(n);
  await_gone();
}

TEST(a_name_is_gone_when_all_who_had_it_were_killed) {
  pid_t pids[3];
  named *n;
  NEEDS_EXEC;
  choose_name();
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 3; i++) pids[i] = begin_program(i ? "stay" : "hold");
    n = open_named();
    await_count(&n->opened, 3);
    if (round == 1) {
      kill(pids[0], SIGKILL);
      CHECK_EQ(conc_lock_acquire(&n->lock, CONC_FOREVER), -EOWNERDEAD);
      CHECK_EQ(conc_lock_release(&n->lock), 0);
      reap(pids[0], -SIGKILL);
    }
    if (round == 2) STORE(n->leave, 1);
    conc_shared_free(n);
    usleep(1000);
    CHECK(exists() || round == 2);
    for (int i = round == 1; i < 3; i++) {
      if (round < 2) kill(pids[i], SIGKILL);
      reap(pids[i], round < 2 ? -SIGKILL : 0);
    }
    await_gone();
  }
}

TEST(who_dies_in_init_leaves_it_to_the_next) {
  pid_t pid;
  named *n;
  NEEDS_EXEC;
  choose_name();
  pid = begin_program("die");
  reap(pid, -SIGKILL);
  n = open_named();
  conc_shared_free(n);
  await_gone();
}

TEST(a_name_that_is_had_already_is_the_same_memory) {
  named *n, *again;
  choose_name();
  n = open_named();
  again = open_named();
  CHECK(n == again);
  CHECK(conc_shared_open(name, sizeof *n + 1, NULL, NULL) == NULL);
  CHECK_EQ(errno, EINVAL);
  conc_shared_free(n);
  again->counter = 1;
  CHECK(exists());
  conc_shared_free(again);
  await_gone();
}

static int open_in_init(void *memory, void *arg) {
  CHECK(conc_shared_open("other", 1, NULL, arg) == NULL && memory != NULL);
  return -errno;
}

TEST(names_that_cannot_be_had_say_why) {
  char path[128];
  int fd;
  choose_name();
  CHECK(conc_shared_open("", 1, NULL, NULL) == NULL && errno == EINVAL);
  CHECK(conc_shared_open("a/b", 1, NULL, NULL) == NULL && errno == EINVAL);
  CHECK(conc_shared_open(name, 0, NULL, NULL) == NULL && errno == EINVAL);
  CHECK(conc_shared_open(name, SIZE_MAX, NULL, NULL) == NULL);
  CHECK_EQ(errno, ENOMEM);
  CHECK(!exists());
  CHECK(conc_shared_open(name, 64, make_named, name) == NULL && errno == EIO);
  CHECK(!exists());
  CHECK(conc_shared_open(name, 64, open_in_init, NULL) == NULL);
  CHECK_EQ(errno, EDEADLK);
  CHECK(!exists());
  snprintf(path, sizeof path, "%s/conc.%s",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
  fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0 && fchmod(fd, 0666) == 0);
  CHECK(conc_shared_open(name, 64, NULL, NULL) == NULL && errno == EACCES);
  CHECK(unlink(path) == 0 && close(fd) == 0);
  CHECK(symlink("/dev/null", path) == 0);
  CHECK(conc_shared_open(name, 64, NULL, NULL) == NULL && errno == EACCES);
  CHECK(unlink(path) == 0);
}

TEST(what_nobody_uses_is_made_anew) {
  char path[128], junk[20000];
  named *n;
  int fd;
  choose_name();
  memset(junk, 0x5a, sizeof junk);
  snprintf(path, sizeof path, "%s/conc.%s",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
  fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0 && write(fd, junk, sizeof junk) == (ssize_t)sizeof junk);
  close(fd);
  n = open_named();
  conc_shared_free(n);
  await_gone();
}

/* A process opens memory by name, forks, and is killed. Its child still
   uses the memory: a process that opens the name then must find that
   memory, and not a new one. Where an open file has no locks, the child uses
   it from when the fork has returned there: its parent waits for that. */
TEST(a_forked_child_keeps_a_name_alive) {
  int ends[2], born[2];
  char byte;
  pid_t pid;
  choose_name();
  CHECK(pipe(ends) == 0 && pipe(born) == 0);
  pid = begin_child();
  if (pid == 0) {
    named *n = open_named();
    if (fork() == 0) {
      close(ends[1]);
      if (write(born[1], "x", 1) != 1) _exit(1);
      if (read(ends[0], &byte, 1) != 1) _exit(1);
      n->counter = 7;
      while (LOAD(n->opened) == 0) usleep(200);
      _exit(0);
    }
    if (!conc__open_locks() && read(born[0], &byte, 1) != 1) _exit(1);
    kill(getpid(), SIGKILL);
  }
  reap(pid, -SIGKILL);
  usleep(20000);
  CHECK(exists());
  {
    named *n = open_named();
    CHECK(write(ends[1], "x", 1) == 1);
    while (__atomic_load_n(&n->counter, __ATOMIC_ACQUIRE) != 7) usleep(200);
    STORE(n->opened, 1);
    conc_shared_free(n);
  }
  await_gone();
  close(ends[0]), close(ends[1]);
  close(born[0]), close(born[1]);
}

TEST(who_opens_while_it_goes_gets_it_whole) {
  pid_t pids[4];
  choose_name();
  for (int i = 0; i < 4; i++) {
    pids[i] = begin_child();
    if (pids[i] == 0) {
      for (int k = 0; k < 60; k++) {
        named *n = open_named();
        int rc = conc_lock_acquire(&n->lock, CONC_FOREVER);
        CHECK_CHILD(rc == 0);
        n->counter++;
        CHECK_CHILD(conc_lock_release(&n->lock) == 0);
        conc_shared_free(n);
      }
      _exit(0);
    }
  }
  for (int i = 0; i < 4; i++) reap(pids[i], 0);
  await_gone();
}

TEST_MAIN
