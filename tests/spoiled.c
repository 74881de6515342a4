/* Another process writes anything into objects that are shared, and into the
   registry of processes: the calls return, with an error or without, and no
   process dies of it. The memory is left as it is for .name and .action, which
   are pointers, and for the mark that an object is shared. */
#include "inside.h"
#include "primitives.h"
#include "tasks.h"

#include <signal.h>
#include <sys/wait.h>

typedef struct table {
  primitives each;
  int stop;
  unsigned calls[3];
} table;

static table *all;
static primitives *its; /* the first of that */

static void lay(void) { share(its, 1, 2); }
static void begin(void) {
  all = (table *)conc_shared_alloc(sizeof *all);
  CHECK(all != NULL);
  its = &all->each;
  lay();
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
  begin();
  for (unsigned i = 0; i < 3; i++) {
    pids[i] = fork();
    CHECK(pids[i] >= 0);
    if (pids[i] == 0) {
      seed = test_seed + i;
      while (!LOAD(all->stop)) {
        call();
        ADD_FETCH(all->calls[i], 1);
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
  STORE(all->stop, 1);
  /* Those that want their lock back have no time limit: it is made anew. */
  for (int i = 0; i < 3; i++) {
    while (waitpid(pids[i], &status, WNOHANG) == 0) {
      lay();
      usleep(1000);
    }
    CHECK_EQ(status, 0);
    CHECK(all->calls[i] > 0);
  }
  conc_shared_free(its);
}

/* One number that is wrong, in words. */
TEST(a_mark_that_leads_nowhere_is_invalid) {
  begin();
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
  static conc_once other;
  begin();
  CHECK_EQ(conc_once_run(&its->once, is_taken_over, &other, 1), 0);
  CHECK(conc__self()->once == NULL);
  conc_shared_free(its);
}

TEST_MAIN
