/* Another process writes anything into objects that are shared, and into the
   registry of processes: the calls return, with an error or without, and no
   process dies of it. The memory is left as it is for .name and .action, which
   are pointers, and for the mark that an object is shared. */
#include "inside.h"
#include "tasks.h"

#include <signal.h>
#include <sys/wait.h>

typedef struct table {
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_sem sem;
  conc_cond cond;
  conc_event event;
  conc_barrier barrier;
  conc_once once;
  int stop;
  unsigned calls[3];
} table;

static table *its;

static void lay(void) {
  its->sem.value = 1;
  its->sem.bound = 0;
  its->barrier.parties = 2;
  CHECK_EQ(conc_lock_init_shared(&its->lock), 0);
  CHECK_EQ(conc_rlock_init_shared(&its->rlock), 0);
  CHECK_EQ(conc_rwlock_init_shared(&its->rwlock), 0);
  CHECK_EQ(conc_sem_init_shared(&its->sem), 0);
  CHECK_EQ(conc_cond_init_shared(&its->cond), 0);
  CHECK_EQ(conc_event_init_shared(&its->event), 0);
  CHECK_EQ(conc_barrier_init_shared(&its->barrier), 0);
  CHECK_EQ(conc_once_init_shared(&its->once), 0);
}

static unsigned long long seed;
static unsigned any(void) {
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (unsigned)(seed >> 33);
}

static int nothing(void *arg) {
  (void)arg;
  return (int)any() % 2 - 1;
}

/* One call of any kind, and back. */
static void call(void) {
  double t = any() % 2 ? 0.001 : 0;
  int rc;
  switch (any() % 9) {
    case 0:
      rc = conc_lock_acquire(&its->lock, t);
      if (rc == 0 || rc == -EOWNERDEAD) conc_lock_release(&its->lock);
      break;
    case 1:
      rc = conc_rlock_acquire(&its->rlock, t);
      if (rc == 0 || rc == -EOWNERDEAD) conc_rlock_release(&its->rlock);
      break;
    case 2:
      rc = conc_rwlock_read_acquire(&its->rwlock, t);
      if (rc == 0 || rc == -EOWNERDEAD) conc_rwlock_release(&its->rwlock);
      break;
    case 3:
      rc = conc_rwlock_write_acquire(&its->rwlock, t);
      if (rc == 0 || rc == -EOWNERDEAD) conc_rwlock_release(&its->rwlock);
      break;
    case 4:
      if (conc_sem_acquire(&its->sem, t) == 0) conc_sem_release(&its->sem, 1);
      break;
    case 5:
      rc = conc_lock_acquire(&its->lock, t);
      if (rc == 0 || rc == -EOWNERDEAD) {
        conc_cond_wait(&its->cond, &its->lock, t);
        conc_lock_release(&its->lock);
      }
      conc_cond_notify(&its->cond, any() % 3);
      break;
    case 6:
      conc_event_wait(&its->event, t);
      conc_event_set(&its->event);
      conc_event_clear(&its->event);
      break;
    case 7:
      conc_barrier_wait(&its->barrier, t);
      if (any() % 2) conc_barrier_reset(&its->barrier);
      conc_barrier_n_waiting(&its->barrier);
      break;
    default: conc_once_run(&its->once, nothing, NULL, t);
  }
}

/* Any bytes at any place; a mark in which the way to the registry is wrong. */
#define SPOIL(field) spoil(&(field), sizeof(field))
static void spoil(void *memory, size_t size) {
  unsigned char *p = (unsigned char *)memory;
  size_t n = any() % 3 == 0 ? 1 : size;
  size_t from = n < size ? any() % size : 0;
  for (size_t i = from; i < from + n; i++) p[i] = (unsigned char)any();
}
static uintptr_t wrong(void) {
  return CONC__SHARED | CONC__LOCK_WAITERS | (uintptr_t)any() << 8;
}
static void spoil_some(void) {
  switch (any() % 12) {
    case 0: SPOIL(its->lock.claim); break;
    case 1: SPOIL(its->rlock.lock.claim); break;
    case 2: SPOIL(its->rlock.lock.depth); break;
    case 3: SPOIL(its->rwlock.shared); break;
    case 4: SPOIL(its->sem.shared); break;
    case 5: SPOIL(its->cond.shared); break;
    case 6: SPOIL(its->event.shared); break;
    case 7: SPOIL(its->barrier.shared); break;
    case 8: SPOIL(its->barrier.parties); break;
    case 9: SPOIL(its->once.claim); break;
    case 10: SPOIL(conc__family->uses); break;
    default:
      STORE(its->lock.word, wrong());
      STORE(its->rlock.lock.word, wrong());
      STORE(its->rwlock.word, wrong());
      STORE(its->cond.word, wrong());
      STORE(its->event.word, wrong());
      STORE(its->barrier.word, wrong());
      STORE(its->once.word, wrong());
  }
}

TEST(what_another_process_has_spoiled_kills_nobody) {
  double end = test_now() + test_asked("SPOILED_SECONDS", 0.4);
  pid_t pids[3];
  int status;
  NEEDS_FORK;
  its = (table *)conc_shared_alloc(sizeof *its);
  CHECK(its != NULL);
  lay();
  for (unsigned i = 0; i < 3; i++) {
    pids[i] = fork();
    CHECK(pids[i] >= 0);
    if (pids[i] == 0) {
      seed = test_seed + i;
      while (!LOAD(its->stop)) {
        call();
        ADD_FETCH(its->calls[i], 1);
      }
      _exit(0);
    }
  }
  seed = test_seed + 3;
  while (test_now() < end) {
    spoil_some();
    if (any() % 8 == 0) lay();
    if (any() % 4 == 0) usleep(any() % 200);
  }
  STORE(its->stop, 1);
  /* Those that want their lock back have no time limit: it is made anew. */
  for (int i = 0; i < 3; i++) {
    while (waitpid(pids[i], &status, WNOHANG) == 0) {
      lay();
      usleep(1000);
    }
    CHECK_EQ(status, 0);
    CHECK(its->calls[i] > 0);
  }
  conc_shared_free(its);
}

/* One number that is wrong, in words. */
TEST(a_mark_that_leads_nowhere_is_invalid) {
  its = (table *)conc_shared_alloc(sizeof *its);
  CHECK(its != NULL);
  lay();
  its->lock.word ^= 64;
  its->rlock.lock.word ^= 64;
  its->rwlock.word ^= 64;
  its->barrier.word ^= (uintptr_t)1 << 20;
  its->once.word ^= 4096;
  CHECK_EQ(conc_lock_acquire(&its->lock, 1), -EINVAL);
  CHECK_EQ(conc_lock_release(&its->lock), -EPERM);
  CHECK_EQ(conc_rlock_acquire(&its->rlock, 1), -EINVAL);
  CHECK_EQ(conc_rlock_release(&its->rlock), -EPERM);
  CHECK_EQ(conc_rwlock_read_acquire(&its->rwlock, 1), -EINVAL);
  CHECK_EQ(conc_rwlock_write_acquire(&its->rwlock, 1), -EINVAL);
  CHECK_EQ(conc_rwlock_release(&its->rwlock), -EPERM);
  CHECK_EQ(conc_barrier_wait(&its->barrier, 1), -EINVAL);
  CHECK_EQ(conc_once_run(&its->once, nothing, NULL, 1), -EINVAL);
  conc_shared_free(its);
}

/* A child that the function of a once has forked comes back from it, too, when
   the once may be another process's: what it finds there is not its own. */
static int is_taken_over(void *arg) {
  its->once.outer = (conc_once *)arg;
  return 0;
}
TEST(a_once_may_be_the_next_processs_when_its_function_returns) {
  conc_once other = {0};
  its = (table *)conc_shared_alloc(sizeof *its);
  CHECK(its != NULL);
  lay();
  CHECK_EQ(conc_once_run(&its->once, is_taken_over, &other, 1), 0);
  CHECK(conc__self()->once == NULL);
  conc_shared_free(its);
}

TEST_MAIN
