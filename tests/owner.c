/* Who owns a lock, a generator, a place on a list: a task that has ended is
   not mistaken for the next one at its address, and what lies in memory that
   a forked child shares is left alone by the child's beginning. */
#include "inside.h"
#include "tasks.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

/* --- a thread that is cancelled holds no guard of the library --- */

static void *is_cancelled_as_it_closes(void *arg) {
  pthread_cancel(pthread_self());
  conc_close(*(int *)arg);
  pthread_testcancel();
  return NULL;
}

static void *is_cancelled_as_it_gets_an_id(void *arg) {
  pthread_cancel(pthread_self());
  if (conc_lock_acquire((conc_lock *)arg, 0) == 0)
    conc_lock_release((conc_lock *)arg);
  pthread_testcancel();
  return NULL;
}

static void cancelled_in(void *(*act)(void *), void *arg) {
  pthread_t t;
  void *result;
  CHECK_EQ(pthread_create(&t, NULL, act, arg), 0);
  CHECK_EQ(pthread_join(t, &result), 0);
  CHECK(result == PTHREAD_CANCELED);
}

TEST(a_thread_that_is_cancelled_holds_no_guard_of_the_library) {
  int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  conc_lock *lock = (conc_lock *)conc_shared_alloc(sizeof *lock);
  CHECK(fd >= 0 && lock != NULL);
  CHECK_EQ(conc__own_fd_add(fd), 0);
  cancelled_in(is_cancelled_as_it_closes, &fd);
  CHECK(!conc__mutex_is_held(&conc__own_guard));
  CHECK_EQ(conc_lock_init_shared(lock), 0);
  cancelled_in(is_cancelled_as_it_gets_an_id, lock);
  CHECK(!conc__mutex_is_held(&conc__shared_guard));
  CHECK_EQ(conc_lock_acquire(lock, 0), 0);
  CHECK_EQ(conc_lock_release(lock), 0);
  conc_shared_free(lock);
}

/* --- a task that ends with a lock ----------------------------------------- */

typedef struct owned {
  conc_lock lock, shared;
  conc_rlock rlock, shared_rlock;
  conc_rwlock read, write, shared_read;
} owned;

static void *take_all(void *arg) {
  owned *o = (owned *)arg;
  CHECK_EQ(conc_lock_acquire(&o->lock, 0), 0);
  CHECK_EQ(conc_lock_acquire(&o->shared, 0), 0);
  CHECK_EQ(conc_rlock_acquire(&o->rlock, 0), 0);
  CHECK_EQ(conc_rlock_acquire(&o->shared_rlock, 0), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&o->read, 0), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&o->write, 0), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&o->shared_read, 0), 0);
  return arg;
}

static void *find_all_taken(void *arg) {
  owned *o = (owned *)arg;
  CHECK_EQ(conc_lock_acquire(&o->lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(&o->lock, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&o->lock), -EPERM);
  CHECK_EQ(conc_lock_acquire(&o->shared, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&o->shared), -EPERM);
  CHECK_EQ(conc_rlock_acquire(&o->rlock, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(&o->rlock), -EPERM);
  CHECK_EQ(conc_rlock_acquire(&o->shared_rlock, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_release(&o->shared_rlock), -EPERM);
  CHECK_EQ(conc_rwlock_release(&o->read), -EPERM);
  CHECK_EQ(conc_rwlock_write_acquire(&o->read, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_rwlock_release(&o->write), -EPERM);
  CHECK_EQ(conc_rwlock_read_acquire(&o->write, 0.001), -ETIMEDOUT);
  CHECK_EQ(conc_rwlock_release(&o->shared_read), -EPERM);
  return arg;
}

static int start_job(conc_task *t) {
  static conc_pool pool;
  if (pool.workers == 0) {
    pool.workers = 1;
    pool.kind = CONC_THREAD;
    CHECK_EQ(conc_pool_start(&pool), 0);
  }
  if (t != NULL) return conc_pool_submit(&pool, t);
  conc_pool_close(&pool);
  CHECK_EQ(conc_pool_join(&pool, CONC_FOREVER), 0);
  pool.workers = 0;
  return 0;
}

static void one_after_the_other(int (*how)(conc_task *)) {
  owned *o = (owned *)conc_shared_alloc(sizeof *o);
  conc_task t;
  CHECK_EQ(conc_lock_init_shared(&o->shared), 0);
  CHECK_EQ(conc_rlock_init_shared(&o->shared_rlock), 0);
  CHECK_EQ(conc_rwlock_init_shared(&o->shared_read), 0);
  start(how, &t, take_all, o);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  for (int i = 0; i < 3; i++) {
    start(how, &t, find_all_taken, o);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  find_all_taken(o);
  conc_shared_free(o);
}

static void *as_coroutines(void *arg) {
  one_after_the_other(conc_coro_start);
  return arg;
}

TEST(a_task_that_ended_with_a_lock_is_not_the_next_one_on_its_stack) {
  one_after_the_other(conc_thread_start);
  run(as_coroutines, NULL);
  one_after_the_other(start_job);
  start_job(NULL);
}

static void *hold_named(void *arg) {
  CHECK_EQ(conc_lock_acquire((conc_lock *)arg, 0), 0);
  return arg;
}
static void *take_second(void *arg) {
  CONC_WITH((conc_lock *)arg + 1) {}
  return arg;
}
static void *take_first_then_second(void *arg) {
  conc_lock *l = (conc_lock *)arg;
  l[0].word = 0;
  CONC_WITH(l + 1) { CONC_WITH(l) {} }
  return arg;
}
static void told(const char *text, void *arg) {
  (void)text;
  ++*(int *)arg;
}
static void *in_order(void *arg) {
  static conc_lock locks[2];
  conc_task t;
  int reports = 0;
  locks[0].name = "owner 0";
  locks[1].name = "owner 1";
  conc_on_lock_order(told, &reports);
  start(conc_coro_start, &t, hold_named, locks);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  start(conc_coro_start, &t, take_second, locks);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  start(conc_coro_start, &t, take_first_then_second, locks);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  conc_on_lock_order(NULL, NULL);
  CHECK_EQ(reports, 0);
  return arg;
}
TEST(a_lock_that_was_left_behind_is_in_nobodys_order) { run(in_order, NULL); }

/* --- a generator whose thread has ended ----------------------------------- */

static void *yield_twice(void *arg) {
  conc_yield(arg, NULL);
  conc_yield(arg, NULL);
  return arg;
}
static void *first_value(void *arg) {
  void *value;
  CHECK_EQ(conc_gen_next((conc_gen *)arg, &value), 0);
  return arg;
}
static void *not_mine(void *arg) {
  void *value;
  CHECK_EQ(conc_gen_next((conc_gen *)arg, &value), -EPERM);
  CHECK_EQ(conc_gen_close((conc_gen *)arg), -EPERM);
  return arg;
}
TEST(a_generator_of_a_thread_that_has_ended_is_not_the_next_ones) {
  conc_gen g;
  conc_task t;
  memset(&g, 0, sizeof g);
  g.target = yield_twice;
  start(conc_thread_start, &t, first_value, &g);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  for (int i = 0; i < 3; i++) {
    start(conc_thread_start, &t, not_mine, &g);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
}

/* --- numbers -------------------------------------------------------------- */

static void *keep_id(void *arg) {
  *(uintptr_t *)arg = conc__self()->id;
  return arg;
}
enum { IDS = 1000 };
static int by_size(const void *a, const void *b) {
  uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
  return (x > y) - (x < y);
}
static void *keep_ids(void *arg) {
  uintptr_t *ids = (uintptr_t *)arg;
  for (int i = 0; i < IDS; i++) {
    conc_task t = task_of(keep_id, ids + i);
    CHECK_EQ(conc_coro_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  return arg;
}
static void *in_a_loop(void *arg) {
  run(keep_ids, arg);
  return arg;
}
TEST(no_two_tasks_have_one_number) {
  static uintptr_t ids[3 * IDS];
  conc_task t[2];
  start(conc_thread_start, &t[0], in_a_loop, ids);
  start(conc_thread_start, &t[1], in_a_loop, ids + IDS);
  in_a_loop(ids + 2 * IDS);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  qsort(ids, 3 * IDS, sizeof(uintptr_t), by_size);
  for (int i = 1; i < 3 * IDS; i++) CHECK(ids[i - 1] < ids[i]);
}

/* --- local objects in memory that a child shares -------------------------- */

typedef struct place {
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_cond cond;
  conc_event event;
  conc_sem sem;
  conc_barrier barrier;
  conc_once once;
  conc_task tasks[8];
  int go;
} place;

static place *here;

static void *wait_lock(void *arg) {
  CHECK_EQ(conc_lock_acquire(&here->lock, 10), 0);
  CHECK_EQ(conc_lock_release(&here->lock), 0);
  return arg;
}
static void *wait_event(void *arg) {
  CHECK_EQ(conc_event_wait(&here->event, 10), 0);
  return arg;
}
static void *wait_sem(void *arg) {
  CHECK_EQ(conc_sem_acquire(&here->sem, 10), 0);
  return arg;
}
static void *wait_barrier(void *arg) {
  CHECK(conc_barrier_wait(&here->barrier, 10) >= 0);
  return arg;
}
static void *wait_write(void *arg) {
  CHECK_EQ(conc_rwlock_write_acquire(&here->rwlock, 10), 0);
  CHECK_EQ(conc_rwlock_release(&here->rwlock), 0);
  return arg;
}
static void *wait_cond(void *arg) {
  CHECK_EQ(conc_rlock_acquire(&here->rlock, 10), 0);
  while (!here->go)
    CHECK_EQ(conc_cond_wait(&here->cond, &here->rlock.lock, 10), 0);
  CHECK_EQ(conc_rlock_release(&here->rlock), 0);
  return arg;
}
static int nothing(void *arg) { return arg != NULL; }
static void *wait_once(void *arg) {
  CHECK_EQ(conc_once_run(&here->once, nothing, NULL, 10), 0);
  return arg;
}
/* Reads until it is told not to. */
static void *read_on(void *arg) {
  CHECK_EQ(conc_rwlock_read_acquire(&here->rwlock, 10), 0);
  CHECK_EQ(conc_event_wait(&here->event, 10), 0);
  CHECK_EQ(conc_rwlock_release(&here->rwlock), 0);
  return arg;
}
static int fork_inside(void *arg) {
  pid_t pid;
  int status;
  UNTIL(here->lock.waiters.first && here->cond.waiters.first &&
        here->event.waiters.first != here->event.waiters.last &&
        here->sem.waiters.first && here->barrier.waiters.first &&
        here->once.waiters.first && here->rwlock.waiters.first);
  (void)arg;
  if ((pid = fork()) == 0) _exit(0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  return 0;
}

/* Threads wait for everything when a child is forked that only ends. Then all
   are let go. */
static void a_child_that_only_ends(place *p) {
  static conc_fn *const waits[8] = {wait_lock,    wait_event, wait_sem,
                                    wait_barrier, read_on,    wait_write,
                                    wait_cond,    wait_once};
  conc_lock *lock = &p->lock;
  here = p;
  p->barrier.parties = 2;
  CHECK_EQ(conc_lock_acquire(lock, 0), 0);
  for (int i = 0; i < 7; i++) {
    start(conc_thread_start, &p->tasks[i], waits[i], NULL);
    if (waits[i] == read_on) UNTIL(LOAD(p->rwlock.word) != 0);
  }
  /* The once is held by this thread while it forks; its waiter waits. */
  start(conc_thread_start, &p->tasks[7], waits[7], NULL);
  CHECK_EQ(conc_join(&p->tasks[7], CONC_FOREVER), 0);
  memset(&p->once, 0, sizeof p->once);
  p->once.word = conc__self()->id;
  start(conc_thread_start, &p->tasks[7], waits[7], NULL);
  CHECK_EQ(fork_inside(p), 0);
  CHECK_EQ(conc_lock_release(lock), 0);
  CHECK_EQ(conc_event_set(&p->event), 0);
  CHECK_EQ(conc_sem_release(&p->sem, 1), 0);
  CHECK(conc_barrier_wait(&p->barrier, 10) >= 0);
  CHECK_EQ(conc_rlock_acquire(&p->rlock, 10), 0);
  p->go = 1;
  CHECK_EQ(conc_cond_notify_all(&p->cond), 0);
  CHECK_EQ(conc_rlock_release(&p->rlock), 0);
  CHECK_EQ(conc__once_finish(&p->once, 0), 0);
  for (int i = 0; i < 8; i++)
    CHECK_EQ(conc_join(&p->tasks[i], CONC_FOREVER), 0);
}

TEST(a_child_that_only_ends_takes_nobody_off_a_list) {
  place *p = (place *)conc_shared_alloc(sizeof *p);
  NEEDS_FORK;
  CHECK(p != NULL);
  a_child_that_only_ends(p);
  conc_shared_free(p);
}

/* The library has not made this memory: it has to ask the system. */
TEST(nor_does_it_in_memory_that_the_program_has_mapped) {
  int fd = -1;
  place *p = (place *)mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  NEEDS_FORK;
  CHECK(p != (place *)MAP_FAILED);
  p->go = 0;
  if (!conc__page_is_private(&fd, &fd) || fd < 0)
    SKIP("/proc/self/pagemap does not tell");
  close(fd);
  a_child_that_only_ends(p);
  munmap(p, sizeof *p);
}

/* An emulator of another order of bytes hands on the answers of the system on
   which it runs: they are none, whatever frame the page is in. */
TEST(what_the_system_says_of_pages_has_a_known_form) {
  uint64_t frame;
  for (frame = 256; frame < (uint64_t)1 << 24; frame++) {
    uint64_t entry = (uint64_t)0x81 << 56 | frame;
    CHECK(conc__pagemap_sound(entry));
    /* A few of the first MiB are left out, where no program is. */
    if ((frame & 0xff7f00) != 0)
      CHECK(!conc__pagemap_sound(__builtin_bswap64(entry)));
  }
  CHECK(!conc__pagemap_sound(0));
  CHECK(!conc__pagemap_sound((uint64_t)0xa1 << 56 | 4096)); /* of a file */
  CHECK(conc__pagemap_private((uint64_t)1 << 62)); /* swapped out */
}

static void *read_for_ever(void *arg) {
  conc_rwlock *p = (conc_rwlock *)arg;
  CHECK_EQ(conc_rwlock_read_acquire(p, 0), 0);
  CHECK_EQ(conc_event_wait(&here->event, 10), 0);
  return arg;
}

/* What a thread reads and never releases is gone, or shared memory, when
   another one forks. */
static void fork_after(void (*change)(conc_rwlock *)) {
  static place local;
  conc_rwlock *p =
      (conc_rwlock *)mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  conc_task t;
  pid_t pid;
  int status, fd = -1;
  CHECK(p != (conc_rwlock *)MAP_FAILED);
  if (!conc__page_is_private(&fd, &fd) || fd < 0)
    SKIP("/proc/self/pagemap does not tell");
  close(fd);
  memset(&local, 0, sizeof local);
  here = &local;
  start(conc_thread_start, &t, read_for_ever, p);
  UNTIL(local.event.waiters.first);
  change(p);
  if ((pid = fork()) == 0) _exit(0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_event_set(&local.event), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}
static void becomes_nothing(conc_rwlock *p) { munmap(p, sizeof *p); }
static void becomes_shared(conc_rwlock *p) {
  CHECK(mmap(p, sizeof *p, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (void *)p);
  memset(p, 0x7f, sizeof *p);
}
static conc_rwlock *shared_later;
static void is_kept(conc_rwlock *p) { becomes_shared(shared_later = p); }

TEST(a_read_lock_that_was_never_released_may_be_anywhere_at_a_fork) {
  NEEDS_FORK;
  fork_after(becomes_nothing);
  fork_after(is_kept);
  for (size_t i = 0; i < sizeof *shared_later; i++)
    CHECK_EQ(((unsigned char *)shared_later)[i], 0x7f);
  munmap(shared_later, sizeof *shared_later);
}

/* --- descriptors that are not ours any more ------------------------------- */

typedef struct closed {
  conc_lock lock, other;
  int ready, leave;
} closed;

/* Closes all, and has other files under the same numbers. */
static void close_and_reuse(void) {
  int low = open("/dev/null", O_RDWR);
  for (int fd = 3; fd < 200; fd++) close(fd);
  for (int fd = 3; fd < 200; fd++) CHECK_CHILD(dup(2) == fd);
  CHECK_CHILD(low >= 0);
}

/* The parent has the lock when the child closes all. */
TEST(a_child_that_closes_all_descriptors_is_no_second_owner) {
  closed *c = (closed *)conc_shared_alloc(sizeof *c);
  int status;
  pid_t pid;
  NEEDS_FORK;
  if (!CONC__LINUX) SKIP("needs /proc");
  CHECK_EQ(conc_lock_init_shared(&c->lock), 0);
  CHECK_EQ(conc_lock_acquire(&c->lock, 0), 0);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    int rc;
    close_and_reuse();
    for (int i = 0; i < 3; i++)
      CHECK_CHILD(conc_lock_acquire(&c->lock, 0.05) == -ETIMEDOUT);
    STORE(c->ready, 1);
    rc = conc_lock_acquire(&c->lock, 10);
    CHECK_CHILD(rc == 0);
    CHECK_CHILD(conc_lock_release(&c->lock) == 0);
    for (int fd = 3; fd < 200; fd++) /* none of these was closed */
      CHECK_CHILD(fcntl(fd, F_GETFD) >= 0);
    _exit(0);
  }
  UNTIL(LOAD(c->ready));
  CHECK_EQ(conc_lock_release(&c->lock), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  conc_shared_free(c);
}

/* A process that closes all when it has a lock is alive. When it is killed it
   is dead; and one whose parent is dead as well finds nothing out, but takes
   no lock from anybody. */
TEST(a_process_that_closes_all_descriptors_is_alive) {
  closed *c = (closed *)conc_shared_alloc(sizeof *c);
  int status;
  pid_t pid;
  NEEDS_FORK;
  if (!CONC__LINUX) SKIP("needs /proc");
  CHECK_EQ(conc_lock_init_shared(&c->lock), 0);
  CHECK_EQ(conc_lock_init_shared(&c->other), 0);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_CHILD(conc_lock_acquire(&c->lock, 0) == 0);
    close_and_reuse();
    CHECK_CHILD(conc_lock_acquire(&c->other, 0) == 0);
    STORE(c->ready, 1);
    while (!LOAD(c->leave)) usleep(100);
    CHECK_CHILD(conc_lock_release(&c->other) == 0);
    STORE(c->ready, 2);
    pause();
  }
  UNTIL(LOAD(c->ready) == 1);
  CHECK_EQ(conc_lock_acquire(&c->lock, 0.1), -ETIMEDOUT);
  CHECK_EQ(conc_lock_acquire(&c->other, 0.05), -ETIMEDOUT);
  STORE(c->leave, 1);
  CHECK_EQ(conc_lock_acquire(&c->other, 10), 0);
  UNTIL(LOAD(c->ready) == 2);
  CHECK_EQ(conc_lock_acquire(&c->lock, 0), -ETIMEDOUT);
  CHECK_EQ(kill(pid, SIGKILL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(conc_lock_acquire(&c->lock, 10), -EOWNERDEAD);
  conc_shared_free(c);
}

/* The program has put a file of its own in the place of one of the library's:
   a child keeps it, and the library does not close it. */
TEST(a_number_that_is_another_file_now_is_the_programs) {
  int ours = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int replaced = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int other = open("/", O_RDONLY | O_CLOEXEC);
  int status;
  pid_t pid;
  NEEDS_FORK;
  CHECK(ours >= 0 && replaced >= 0 && other >= 0);
  CHECK_EQ(conc__own_fd_add(ours), 0);
  CHECK_EQ(conc__own_fd_add(replaced), 0);
  CHECK_EQ(dup2(other, replaced), replaced);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_CHILD(fcntl(ours, F_GETFD) < 0);
    CHECK_CHILD(fcntl(replaced, F_GETFD) >= 0);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  CHECK(conc__own_fd_close(replaced));
  CHECK(fcntl(replaced, F_GETFD) >= 0);
  CHECK(conc__own_fd_close(ours));
  CHECK(fcntl(ours, F_GETFD) < 0);
  CHECK_EQ(close(replaced), 0);
  CHECK_EQ(close(other), 0);
}

/* What a process has held is free for the others once it executes another
   program, though it goes on to live. */
TEST(a_process_that_executes_a_program_holds_nothing) {
  closed *c = (closed *)conc_shared_alloc(sizeof *c);
  int status;
  pid_t pid;
  NEEDS_FORK;
  CHECK_EQ(conc_lock_init_shared(&c->lock), 0);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_CHILD(conc_lock_acquire(&c->lock, 0) == 0);
    STORE(c->ready, 1);
    execlp("sleep", "sleep", "20", (char *)NULL);
    _exit(1);
  }
  UNTIL(LOAD(c->ready) == 1);
  CHECK_EQ(conc_lock_acquire(&c->lock, 10), -EOWNERDEAD);
  CHECK_EQ(kill(pid, SIGKILL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  conc_shared_free(c);
}

TEST_MAIN
