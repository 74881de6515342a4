/* Processes that are killed, wherever they are, harm nobody: at random
   instants while several use an object (CRASH_KILLS for each, default 60), and
   before each instruction of a call, in a process that does one step at a
   time. */
#include "test.h"

static double test_spin_seconds(void);
#define CONC_SPIN_SECONDS test_spin_seconds()
#include "inside.h"

#include "primitives.h"
#include "trace.h"

static double spin; /* 0: a thread sleeps at once */
static double test_spin_seconds(void) { return spin; }


enum { CHILDREN = 4, UNITS = 2 };
enum { NOTHING, BETWEEN, HOLDING };

/* What the processes share. */
typedef struct table {
  primitives each;
  unsigned long a, b; /* equal, but for who holds a lock */
  unsigned long produced, consumed;
  unsigned inside, ran, passes;
  unsigned state[CHILDREN];   /* of its unit of the semaphore */
  unsigned turns[CHILDREN];   /* that it has done */
} table;

static table *all;
static primitives *its; /* the first of that */
static int mine; /* which child it is */

static void lay(void) {
  all = (table *)conc_shared_alloc(sizeof *all);
  CHECK(all != NULL);
  its = &all->each;
  share(its, UNITS, 3);
}

static void reap(pid_t pid) {
  int status = 0;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* --- what they do: a turn, again and again --- */

/* In the lock: nobody else is, and all is as it was left, unless its owner has
   died. */
static void change(int rc) {
  CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  if (rc == -EOWNERDEAD) {
    all->inside = 0;
    CHECK_CHILD(all->a == all->b || all->a == all->b + 1);
    all->b = all->a;
  }
  CHECK_CHILD(LOAD(all->inside) == 0);
  STORE(all->inside, 1);
  CHECK_CHILD(all->a == all->b);
  STORE(all->a, all->a + 1);
  STORE(all->b, all->b + 1);
  STORE(all->inside, 0);
}

static void turn_lock(void) {
  change(conc_lock_acquire(&its->lock, CONC_FOREVER));
  CHECK_CHILD(conc_lock_release(&its->lock) == 0);
}

static void turn_rlock(void) {
  int rc = conc_rlock_acquire(&its->rlock, CONC_FOREVER);
  CHECK_CHILD(conc_rlock_acquire(&its->rlock, 0) == 0);
  change(rc);
  CHECK_CHILD(conc_rlock_release(&its->rlock) == 0);
  CHECK_CHILD(conc_rlock_release(&its->rlock) == 0);
}

/* As change(), but a reader may have been told instead. */
static void turn_write(void) {
  int rc = conc_rwlock_write_acquire(&its->rwlock, CONC_FOREVER);
  CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  change(-EOWNERDEAD);
  CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
}
static void turn_rwlock(void) {
  if ((all->turns[mine] + (unsigned)mine) % 3 == 0)
    turn_write();
  else {
    int rc = conc_rwlock_read_acquire(&its->rwlock, CONC_FOREVER);
    unsigned long a = LOAD(all->a);
    CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
    for (int i = 0; i < 20; i++)
      CHECK_CHILD(LOAD(all->a) == a); /* nobody writes */
    CHECK_CHILD(conc_rwlock_release(&its->rwlock) == 0);
  }
}

static void turn_sem(void) {
  STORE(all->state[mine], BETWEEN);
  CHECK_CHILD(conc_sem_acquire(&its->sem, CONC_FOREVER) == 0);
  STORE(all->state[mine], HOLDING);
  STORE(all->state[mine], BETWEEN);
  CHECK_CHILD(conc_sem_release(&its->sem, 1) == 0);
  STORE(all->state[mine], NOTHING);
}

static bool is_some(void *arg) {
  (void)arg;
  return all->produced != all->consumed;
}
static void turn_cond(void) {
  int rc = conc_lock_acquire(&its->lock, CONC_FOREVER);
  CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  if (mine % 2 == 0) {
    all->produced++;
    CHECK_CHILD(conc_cond_notify(&its->cond, 1) == 0);
  } else {
    rc = conc_cond_wait_for(&its->cond, &its->lock, is_some, NULL,
                            CONC_FOREVER);
    if (rc == 0) all->consumed++;
    CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
  }
  CHECK_CHILD(conc_lock_release(&its->lock) == 0);
}

static void turn_event(void) {
  if (mine == 0) {
    CHECK_CHILD(conc_event_set(&its->event) == 0);
    if (all->turns[mine] % 2) CHECK_CHILD(conc_event_clear(&its->event) == 0);
  } else {
    CHECK_CHILD(conc_event_wait(&its->event, CONC_FOREVER) == 0);
    if (mine == 1) CHECK_CHILD(conc_event_clear(&its->event) == 0);
  }
}

static void turn_barrier(void) {
  int rc = conc_barrier_wait(&its->barrier, CONC_FOREVER);
  CHECK_CHILD(rc == -EPIPE || rc == -EOWNERDEAD || (rc >= 0 && rc < 3));
  if (rc < 0 && conc_barrier_broken(&its->barrier))
    CHECK_CHILD(conc_barrier_reset(&its->barrier) == 0);
}

static int once(void *arg) {
  (void)arg;
  __atomic_add_fetch(&all->ran, 1, __ATOMIC_ACQ_REL);
  return -EAGAIN;
}
static void turn_once(void) {
  CHECK_CHILD(conc_once_run(&its->once, once, NULL, CONC_FOREVER) == -EAGAIN);
}

/* --- at random instants --- */

static pid_t children[CHILDREN];

static void begin_child(int i, void (*turn)(void)) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    mine = i;
    for (;;) {
      turn();
      __atomic_add_fetch(&all->turns[i], 1, __ATOMIC_ACQ_REL);
    }
  }
  children[i] = pid;
}

static unsigned all_turns(void) {
  unsigned n = 0;
  for (int i = 0; i < CHILDREN; i++) n += LOAD(all->turns[i]);
  return n;
}

/* They all go on; if one hangs, this test does. */
static void go_on(void) {
  double late = test_now() + 20 * test_slow();
  unsigned before[CHILDREN], begin = all_turns();
  int status;
  memcpy(before, all->turns, sizeof before);
  for (int i = 0; i < CHILDREN; i++)
    while (LOAD(all->turns[i]) == before[i]) {
      if (waitpid(children[i], &status, WNOHANG) == children[i])
        TEST_FAIL("child %d ended: %x", i, status);
      if (test_now() > late)
        TEST_FAIL("child %d hangs; %u turns of all", i, all_turns() - begin);
      usleep(50);
    }
}

static void crash(void (*turn)(void)) {
  int kills = (int)test_asked("CRASH_KILLS",
                              TEST_TSAN || TEST_ASAN ? 30 : 60);
  unsigned lost = 0; /* units of the semaphore that were held or perhaps */
  lay();
  spin = 50e-6;
  for (int i = 0; i < CHILDREN; i++) begin_child(i, turn);
  for (int k = 0; k < kills; k++) {
    int i = (int)(test_random() % CHILDREN);
    double until = test_now() + test_random() % 300 * 1e-6;
    while (test_now() < until) sched_yield();
    kill(children[i], SIGKILL);
    reap(children[i]);
    if (turn == turn_sem && LOAD(all->state[i]) == HOLDING)
      CHECK_EQ(conc_sem_release(&its->sem, 1), 0);
    else if (turn == turn_sem && LOAD(all->state[i]) == BETWEEN) lost++;
    if (lost == UNITS || (k % 16 == 15 && turn == turn_sem)) {
      size_t value;
      for (int j = 0; j < CHILDREN; j++) {
        if (j == i) continue;
        kill(children[j], SIGKILL);
        reap(children[j]);
        if (LOAD(all->state[j]) != NOTHING) lost++;
      }
      value = conc_sem_value(&its->sem);
      CHECK(value <= UNITS && value + lost >= UNITS);
      lost = 0;
      its->sem.value = UNITS;
      CHECK_EQ(conc_sem_init_shared(&its->sem), 0);
      memset(all->state, 0, sizeof all->state);
      for (int j = 0; j < CHILDREN; j++)
        if (j != i) begin_child(j, turn);
    }
    all->state[i] = NOTHING;
    begin_child(i, turn);
    if (k % 8 == 7) go_on();
  }
  go_on();
  for (int i = 0; i < CHILDREN; i++) {
    kill(children[i], SIGKILL);
    reap(children[i]);
  }
}

/* Who comes when all are dead finds everything in order. */
static void aftermath(void (*turn)(void)) {
  crash(turn);
  if (turn == turn_lock) turn();
  if (turn == turn_rlock) turn();
  if (turn == turn_rwlock) turn_write();
  if (turn == turn_lock || turn == turn_rlock || turn == turn_rwlock)
    CHECK(all->a == all->b && all->a > 0);
  if (turn == turn_cond) {
    int rc = conc_lock_acquire(&its->lock, 5);
    CHECK(rc == 0 || rc == -EOWNERDEAD);
    CHECK(all->consumed <= all->produced && all->consumed > 0);
    CHECK_EQ(conc_lock_release(&its->lock), 0);
  }
  if (turn == turn_event) {
    CHECK_EQ(conc_event_set(&its->event), 0);
    CHECK_EQ(conc_event_wait(&its->event, 0), 0);
  }
  if (turn == turn_once) turn();
  conc_shared_free(its);
}

/* Children use one object in turn and are killed at any moment. Afterwards
   the others must still get it, and nothing that the dead held may stay
   taken. */
TEST(killed_at_a_lock) { aftermath(turn_lock); }
TEST(killed_at_a_recursive_lock) { aftermath(turn_rlock); }
TEST(killed_at_an_rwlock) { aftermath(turn_rwlock); }
TEST(killed_at_a_semaphore) { aftermath(turn_sem); }
TEST(killed_at_a_condition) { aftermath(turn_cond); }
TEST(killed_at_an_event) { aftermath(turn_event); }
TEST(killed_at_a_barrier) { aftermath(turn_barrier); }
TEST(killed_at_a_once) { aftermath(turn_once); }

/* --- before each instruction --- */

typedef struct stepped {
  void (*before)(void); /* by the test, or NULL */
  void (*run)(void);    /* what is done step by step */
  void (*help)(void);   /* by the test, when that sleeps; or NULL */
  void (*after)(void);  /* by the test, when it was killed */
} stepped;

/* Whether there was a k-th instruction. */
static bool killed_before(const stepped *s, int k, bool *refused) {
  int status, helped = 0;
  bool more = true;
  pid_t pid;
  if (s->before) s->before();
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    conc__self();
    conc__registry_self(conc__registry_of(its));
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) _exit(77);
    raise(SIGSTOP);
    s->run();
    raise(SIGSTOP);
    _exit(98);
  }
  status = trace_stops(pid, false);
  if (status != TRACE_LOST && WIFEXITED(status)) {
    CHECK_EQ(WEXITSTATUS(status), 77);
    *refused = true;
    return false;
  }
  for (int i = 0; i < k && more; i++) {
    trace_go(PTRACE_SINGLESTEP, pid);
    while ((status = trace_stops(pid, helped == 0 && s->help != NULL)) ==
           TRACE_ASLEEP) {
      s->help();
      helped++;
    }
    if (status == TRACE_LOST) TEST_FAIL("it sleeps at step %d", i);
    if (!WIFSTOPPED(status)) TEST_FAIL("it died at step %d: %x", i, status);
    more = WSTOPSIG(status) != SIGSTOP;
  }
  kill(pid, SIGKILL);
  reap(pid);
  if (s->help != NULL && helped == 0) s->help();
  s->after();
  return more;
}

static void step_through(const stepped *s) {
  double end = test_now() + test_asked("CRASH_SECONDS", 0.5);
  bool refused = false;
  int n = 16, i, k = 0;
  if (CONC_HAVE_ASAN || CONC_HAVE_TSAN) SKIP("a sanitizer has its own steps");
  if (test_wrapped("valgrind")) SKIP("not under valgrind");
  if (test_wrapped("qemu")) SKIP("no ptrace when emulated");
  lay();
  its->barrier.parties = 2;
  while (n < 1 << 14 && killed_before(s, n, &refused)) n *= 2;
  for (i = 0; i < n && !refused && test_now() < end; i++) {
    killed_before(s, k, &refused);
    k = (k + (n * 5 / 8 | 1)) % n; /* odd, n a power of two: all of them */
  }
  if (getenv("CRASH_SECONDS")) printf("%d of %d instructions\n", i, n);
  conc_shared_free(its);
  if (refused) SKIP("ptrace is not permitted");
}

static void take_and_give(int (*take)(void), int (*give)(void)) {
  int rc = take();
  CHECK(rc == 0 || rc == -EOWNERDEAD);
  CHECK_EQ(give(), 0);
  CHECK_EQ(take(), 0);
  CHECK_EQ(give(), 0);
}

static int take_lock(void) { return conc_lock_acquire(&its->lock, 10); }
static int give_lock(void) { return conc_lock_release(&its->lock); }
static void run_lock(void) {
  CHECK_CHILD(take_lock() == 0);
  CHECK_CHILD(give_lock() == 0);
}
static void hold_lock(void) { CHECK_EQ(take_lock(), 0); }
static void help_lock(void) { CHECK_EQ(give_lock(), 0); }
static void after_lock(void) { take_and_give(take_lock, give_lock); }

TEST(no_instruction_of_a_lock_harms) {
  static const stepped s = {NULL, run_lock, NULL, after_lock};
  step_through(&s);
}
TEST(no_instruction_of_a_wait_for_a_lock_harms) {
  static const stepped s = {hold_lock, run_lock, help_lock, after_lock};
  step_through(&s);
}

static int take_rlock(void) { return conc_rlock_acquire(&its->rlock, 10); }
static int give_rlock(void) { return conc_rlock_release(&its->rlock); }
static void run_rlock(void) {
  for (int i = 0; i < 2; i++) CHECK_CHILD(take_rlock() == 0);
  for (int i = 0; i < 2; i++) CHECK_CHILD(give_rlock() == 0);
}
static void after_rlock(void) {
  take_and_give(take_rlock, give_rlock);
  CHECK_EQ(give_rlock(), -EPERM);
}

TEST(no_instruction_of_a_recursive_lock_harms) {
  static const stepped s = {NULL, run_rlock, NULL, after_rlock};
  step_through(&s);
}

static int take_read(void) {
  return conc_rwlock_read_acquire(&its->rwlock, 10);
}
static int take_write(void) {
  return conc_rwlock_write_acquire(&its->rwlock, 10);
}
static int give_rwlock(void) { return conc_rwlock_release(&its->rwlock); }
static void run_read(void) {
  CHECK_CHILD(take_read() == 0);
  CHECK_CHILD(give_rwlock() == 0);
}
static void run_write(void) {
  CHECK_CHILD(take_write() == 0);
  CHECK_CHILD(give_rwlock() == 0);
}
static void hold_write(void) { CHECK_EQ(take_write(), 0); }
static void hold_read(void) { CHECK_EQ(take_read(), 0); }
static void help_rwlock(void) { CHECK_EQ(give_rwlock(), 0); }
static void after_rwlock(void) {
  take_and_give(take_write, give_rwlock);
  take_and_give(take_read, give_rwlock);
  CHECK(conc__places_any(its->rwlock.shared.readers) == NULL);
}

TEST(no_instruction_of_a_reader_harms) {
  static const stepped s = {NULL, run_read, NULL, after_rwlock};
  step_through(&s);
}
TEST(no_instruction_of_a_writer_harms) {
  static const stepped s = {NULL, run_write, NULL, after_rwlock};
  step_through(&s);
}
TEST(no_instruction_of_a_reader_that_waits_harms) {
  static const stepped s = {hold_write, run_read, help_rwlock, after_rwlock};
  step_through(&s);
}
TEST(no_instruction_of_a_writer_that_waits_harms) {
  static const stepped s = {hold_read, run_write, help_rwlock, after_rwlock};
  step_through(&s);
}

static void run_sem(void) {
  CHECK_CHILD(conc_sem_acquire(&its->sem, 10) == 0);
  CHECK_CHILD(conc_sem_release(&its->sem, 1) == 0);
}
static void hold_sem(void) {
  for (int i = 0; i < UNITS; i++) CHECK_EQ(conc_sem_acquire(&its->sem, 0), 0);
}
static void help_sem(void) { CHECK_EQ(conc_sem_release(&its->sem, UNITS), 0); }
static void after_sem(void) {
  size_t value = conc_sem_value(&its->sem);
  CHECK(value == UNITS || value == UNITS - 1);
  if (value == UNITS - 1) CHECK_EQ(conc_sem_release(&its->sem, 1), 0);
  hold_sem();
  CHECK_EQ(conc_sem_acquire(&its->sem, 0), -ETIMEDOUT);
  help_sem();
}

TEST(no_instruction_of_a_semaphore_harms) {
  static const stepped s = {NULL, run_sem, NULL, after_sem};
  step_through(&s);
}
TEST(no_instruction_of_a_wait_for_a_semaphore_harms) {
  static const stepped s = {hold_sem, run_sem, help_sem, after_sem};
  step_through(&s);
}

static void clear_event(void) { CHECK_EQ(conc_event_clear(&its->event), 0); }
static void set_event(void) { CHECK_EQ(conc_event_set(&its->event), 0); }
static void run_wait(void) {
  CHECK_CHILD(conc_event_wait(&its->event, 10) == 0);
}
static void run_set(void) {
  CHECK_CHILD(conc_event_set(&its->event) == 0);
  CHECK_CHILD(conc_event_clear(&its->event) == 0);
}
static void after_event(void) {
  clear_event();
  CHECK_EQ(conc_event_wait(&its->event, 0), -ETIMEDOUT);
  set_event();
  CHECK_EQ(conc_event_wait(&its->event, 0), 0);
}

TEST(no_instruction_of_a_set_harms) {
  static const stepped s = {clear_event, run_set, NULL, after_event};
  step_through(&s);
}
TEST(no_instruction_of_a_wait_for_an_event_harms) {
  static const stepped s = {clear_event, run_wait, set_event, after_event};
  step_through(&s);
}

/* A second one waits, too, and a notify is for the living. */
static pid_t bystander;
static void begin_bystander(void) {
  all->passes = 0;
  all->ran = 0;
  bystander = fork();
  if (bystander == 0) {
    CHECK_CHILD(take_lock() == 0);
    STORE(all->ran, 1);
    for (;;) {
      int rc = conc_cond_wait(&its->cond, &its->lock, CONC_FOREVER);
      CHECK_CHILD(rc == 0 || rc == -EOWNERDEAD);
      STORE(all->passes, all->passes + 1);
    }
  }
  CHECK(bystander > 0);
  while (LOAD(all->ran) == 0) usleep(50);
}
static void run_cond(void) {
  CHECK_CHILD(take_lock() == 0);
  CHECK_CHILD(conc_cond_wait(&its->cond, &its->lock, 10) == 0);
  CHECK_CHILD(give_lock() == 0);
}
static void notify_all(void) {
  int rc = take_lock();
  CHECK(rc == 0 || rc == -EOWNERDEAD);
  CHECK_EQ(conc_cond_notify_all(&its->cond), 0);
  CHECK_EQ(give_lock(), 0);
}
static void after_cond(void) {
  double late = test_now() + 10 * test_slow();
  while (LOAD(all->passes) == 0) {
    usleep(50);
    CHECK(test_now() < late);
  }
  after_lock(); /* which has it wait again */
  STORE(all->passes, 0);
  CHECK_EQ(conc_cond_notify(&its->cond, 1), 0);
  while (LOAD(all->passes) == 0) {
    usleep(50);
    CHECK(test_now() < late);
  }
  kill(bystander, SIGKILL);
  reap(bystander);
  after_lock();
}
static void run_notify(void) {
  CHECK_CHILD(take_lock() == 0);
  CHECK_CHILD(conc_cond_notify_all(&its->cond) == 0);
  CHECK_CHILD(give_lock() == 0);
}
static void after_notify(void) {
  notify_all();
  after_cond();
}

TEST(no_instruction_of_a_wait_for_a_condition_harms) {
  static const stepped s = {begin_bystander, run_cond, notify_all, after_cond};
  step_through(&s);
}
TEST(no_instruction_of_a_notify_harms) {
  static const stepped s = {begin_bystander, run_notify, NULL, after_notify};
  step_through(&s);
}

static void run_barrier(void) {
  int rc = conc_barrier_wait(&its->barrier, 10);
  CHECK_CHILD(rc >= 0);
}
static void help_barrier(void) {
  int rc = conc_barrier_wait(&its->barrier, 0.005);
  CHECK(rc >= 0 || rc == -EPIPE || rc == -ETIMEDOUT || rc == -EOWNERDEAD);
}
static void after_barrier(void) {
  pid_t pid;
  int rc;
  CHECK_EQ(conc_barrier_reset(&its->barrier), 0);
  pid = fork();
  if (pid == 0) {
    run_barrier();
    for (;;) pause();
  }
  rc = conc_barrier_wait(&its->barrier, 10);
  CHECK(rc == 0 || rc == 1);
  kill(pid, SIGKILL);
  reap(pid);
  CHECK_EQ(conc_barrier_reset(&its->barrier), 0);
}

TEST(no_instruction_of_a_barrier_harms) {
  static const stepped s = {NULL, run_barrier, help_barrier, after_barrier};
  step_through(&s);
}

static int count(void *arg) {
  (void)arg;
  all->ran++;
  return 0;
}
static void new_once(void) { CHECK_EQ(conc_once_init_shared(&its->once), 0); }
static void run_once(void) {
  CHECK_CHILD(conc_once_run(&its->once, count, NULL, 10) == 0);
}
static void after_once(void) {
  unsigned ran;
  CHECK_EQ(conc_once_run(&its->once, count, NULL, 10), 0);
  ran = all->ran;
  CHECK(ran > 0);
  CHECK_EQ(conc_once_run(&its->once, count, NULL, 0), 0);
  CHECK_EQ(all->ran, ran);
}

TEST(no_instruction_of_a_once_harms) {
  static const stepped s = {new_once, run_once, NULL, after_once};
  step_through(&s);
}

TEST_MAIN
