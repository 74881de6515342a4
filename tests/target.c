/* What differs from one CPU to the next, and from one system to the next. The
   switch between coroutines keeps all that a function may have in registers,
   frames of any size, the alignment of stacks; it refuses what it cannot. And
   waits cost no time of the CPU, in each kind of task. */
#include "test.h"

static int feigned; /* that the CPU checks returns */
#define CONC_HAVE_SHADOW_STACK (feigned != 0)
#include "inside.h"
#include "idle.h"
#include "tasks.h"

/* --- registers --- */

/* More values than any CPU here has registers that a call preserves; of
   integers alone, so that no rounding differs. A step changes all of them. */
#define STEP(T)                                                               \
  (a += (T)i, b += a, c += b, d += (T)3 - a, e += (T)7, f += d, g += e,       \
   h += (T)1, j += h, k += (T)5, l += k, m += h, n += (T)9, o += n)
#define MIX(name, T, yields)                                                  \
  __attribute__((noinline)) static T name(T id, long rounds) {                \
    T a = id, b = id + 1, c = id + 2, d = id + 3, e = id + 4, f = id + 5,     \
      g = id + 6, h = id + 7, j = id + 8, k = id + 9, l = id + 10,            \
      m = id + 11, n = id + 12, o = id + 13;                                  \
    for (long i = 0; i < rounds; i++) {                                       \
      STEP(T);                                                                \
      if (yields) conc_yield_now();                                           \
    }                                                                         \
    return a + 2 * b + 3 * c + 5 * d + 7 * e + 11 * f + 13 * g + 17 * h +     \
           19 * j + 23 * k + 29 * l + 31 * m + 37 * n + 41 * o;               \
  }
MIX(words_alone, unsigned long, false)
MIX(words_in_turns, unsigned long, true)
MIX(doubles_alone, double, false)
MIX(doubles_in_turns, double, true)
MIX(floats_alone, float, false)
MIX(floats_in_turns, float, true)

/* A vector is kept whole, also where calls preserve half of its register. */
typedef unsigned vector __attribute__((vector_size(16)));
__attribute__((noinline)) static unsigned vectors(unsigned id, long rounds,
                                                  bool yields) {
  vector a = {id, id + 1, id + 2, id + 3}, b = a + a, c = a + b, d = b + c;
  for (long i = 0; i < rounds; i++) {
    a += b, b += c, c += d, d += a;
    if (yields) conc_yield_now();
  }
  a += b + c + d;
  return a[0] + 3 * a[1] + 5 * a[2] + 7 * a[3];
}

enum { MIXED = 20, ROUNDS = 60 };
static void *mix(void *arg) {
  int id = (int)(uintptr_t)arg;
  unsigned long w = words_in_turns((unsigned long)id, ROUNDS);
  double d = doubles_in_turns(id, ROUNDS);
  float f = floats_in_turns((float)id, 12);
  unsigned v = vectors((unsigned)id, ROUNDS, true);
  CHECK(w == words_alone((unsigned long)id, ROUNDS));
  CHECK_EQ(d, doubles_alone(id, ROUNDS));
  CHECK_EQ(f, floats_alone((float)id, 12));
  CHECK_EQ(v, vectors((unsigned)id, ROUNDS, false));
  return arg;
}

/* --- frames --- */

/* Frames of a size that is known at run time only have a second pointer, or a
   third one if something in them is aligned more than a stack is. */
__attribute__((noinline)) static size_t fill(char *some, size_t size, int id) {
  size_t sum = 0;
  memset(some, id, size);
  conc_yield_now();
  for (size_t i = 0; i < size; i++) sum += (unsigned char)some[i];
  return sum;
}
__attribute__((noinline)) static void frame(int id, size_t size) {
  __attribute__((aligned(64))) volatile char line[64];
  char *some = (char *)__builtin_alloca(size);
  line[0] = (char)id;
  CHECK_EQ((uintptr_t)line % 64, 0);
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(fill(some, size, id), size * (size_t)id);
    CHECK_EQ(line[0], id);
  }
}
static void *frames(void *arg) {
  int id = (int)(uintptr_t)arg;
  for (size_t size = 16; size < 1000; size += 112) frame(id, size);
  return arg;
}

static void *all_in_turns(void *arg) {
  conc_fn *fn;
  conc_task t[MIXED];
  memcpy(&fn, arg, sizeof fn);
  for (uintptr_t i = 0; i < MIXED; i++)
    start(conc_coro_start, &t[i], fn, (void *)(i + 1));
  for (int i = 0; i < MIXED; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}
TEST(a_switch_keeps_what_is_in_registers) {
  conc_fn *fn = mix;
  run(all_in_turns, &fn);
}
TEST(a_switch_keeps_frames_of_any_size) {
  conc_fn *fn = frames;
  run(all_in_turns, &fn);
}

/* The first function on a new stack finds it as after a call: else numbers
   are not printed, or the CPU refuses to store a vector. */
static void *aligned(void *arg) {
  char text[64];
  long double third = (long double)(uintptr_t)arg / 3;
  __attribute__((aligned(16))) volatile char sixteen[16];
  sixteen[0] = 0;
  CHECK_EQ((uintptr_t)sixteen % 16, 0);
  snprintf(text, sizeof text, "%.4f %.4Lf", 1e6 / 3, third);
  CHECK_STR(text, "333333.3333 0.3333");
  return NULL;
}
static void *aligned_gen(void *arg) {
  aligned(arg);
  CHECK_EQ(conc_yield(arg, NULL), -ECANCELED); /* closed */
  return NULL;
}
TEST(a_new_stack_is_aligned) {
  conc_gen g;
  void *value = NULL;
  memset(&g, 0, sizeof g);
  g.target = aligned_gen;
  g.arg = (void *)1;
  run(aligned, (void *)1);
  CHECK_EQ(conc_gen_next(&g, &value), 0);
  CHECK(value == (void *)1);
  CHECK_EQ(conc_gen_close(&g), 0);
}

/* --- a CPU that checks returns --- */

TEST(where_returns_are_checked_there_are_no_coroutines) {
  conc_task t = task_of(aligned, (void *)1);
  conc_gen g;
  memset(&g, 0, sizeof g);
  g.target = aligned_gen;
  g.arg = (void *)1;
  CHECK(!conc__shadow_stack());
  feigned = 1;
  CHECK_EQ(conc_run(&t), -ENOTSUP);
  CHECK_EQ(conc_gen_next(&g, NULL), -ENOTSUP);
  feigned = 0;
  CHECK_EQ(conc_run(&t), 0); /* nothing of it is left */
  CHECK_EQ(conc_gen_next(&g, NULL), 0);
  CHECK_EQ(conc_gen_close(&g), 0);
}

/* --- waits --- */

/* What tasks wait for, of this process or between processes; at a server: see
   manager.c. Each waits until it is cancelled: with a limit, or without one.
   (At a lock with one: else it would be in a circle with the task that has the
   lock, and joins it.) */
typedef struct waited {
  conc_lock lock, of_cond;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_event unset;
  conc_cond cond;
  conc_sem none;
  conc_barrier barrier;
  conc_once once;
} waited;
static waited local, *ours;
static conc_queue *empty, *full, *empty_shared, *full_shared, *named, *leased;
static conc_pool pool;
static conc_task sleeper, job;
static int ends[2], packets[2];

#define WAIT(name, call)                                                      \
  static void *name(void *arg) {                                              \
    char c;                                                                   \
    waited *w = (waited *)arg;                                                \
    conc_queue *q = (conc_queue *)arg;                                        \
    conc_task *task = (conc_task *)arg;                                       \
    (void)&c, (void)w, (void)q, (void)task;                                   \
    CHECK_EQ(call, -ECANCELED);                                               \
    return arg;                                                               \
  }
WAIT(wait_at_lock, conc_lock_acquire(&w->lock, 60))
WAIT(wait_at_rlock, conc_rlock_acquire(&w->rlock, 60))
WAIT(wait_to_read, conc_rwlock_read_acquire(&w->rwlock, 60))
WAIT(wait_to_write, conc_rwlock_write_acquire(&w->rwlock, 60))
WAIT(wait_at_event, conc_event_wait(&w->unset, CONC_FOREVER))
WAIT(wait_at_sem, conc_sem_acquire(&w->none, 60))
WAIT(wait_at_barrier, conc_barrier_wait(&w->barrier, 60))
WAIT(wait_to_get, conc_get(q, &c, 1, CONC_FOREVER))
WAIT(wait_to_put, conc_put(q, "x", 1, 60))
WAIT(wait_at_queue_join, conc_queue_join(q, 60))
WAIT(wait_for_time, conc_sleep(60))
WAIT(wait_for_end, conc_join(task, CONC_FOREVER))
WAIT(wait_for_one, conc_wait(&task, 1, CONC_ALL, 60))
WAIT(wait_to_read_bytes, conc_read(ends[0], &c, 1, 60))
WAIT(wait_for_descriptor, conc_wait_fd(ends[0], CONC_READ, CONC_FOREVER))
WAIT(wait_for_packet, conc_poll(packets[0], 60))

static void *wait_at_cond(void *arg) {
  waited *w = (waited *)arg;
  CHECK_EQ(conc_lock_acquire(&w->of_cond, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_wait(&w->cond, &w->of_cond, 60), -ECANCELED);
  CHECK_EQ(conc_lock_release(&w->of_cond), 0);
  return arg;
}
static int never(void *arg) {
  return conc_event_wait(&((waited *)arg)->unset, CONC_FOREVER);
}
WAIT(wait_for_once, conc_once_run(&w->once, never, w, CONC_FOREVER))
static void *wait_for_lease(void *arg) {
  conc_lease lease;
  char c;
  CHECK_EQ(conc_get_leased((conc_queue *)arg, &lease, &c, 1, 60), -ECANCELED);
  return arg;
}
static void *wait_for_several(void *arg) {
  conc_case c[3];
  char byte;
  memset(c, 0, sizeof c);
  c[0].event = &local.unset;
  c[1].get = (conc_queue *)arg;
  c[1].buf = &byte;
  c[1].size = 1;
  c[2].fd = ends[0];
  c[2].events = CONC_READ;
  CHECK_EQ(conc_select(c, 3, 60), -ECANCELED);
  return arg;
}
static void *wait_for_signal(void *arg) {
  const int signals[1] = {SIGUSR1};
  CHECK_EQ(conc_wait_signal(signals, 1, CONC_FOREVER), -ECANCELED);
  return arg;
}

/* One task for each; the second at a conc_once finds the first one in it. */
enum { WAITS = 64 };
static struct {
  conc_fn *fn;
  void *arg;
} waits[WAITS];
static int count;
static void add(conc_fn *fn, void *arg) {
  CHECK(count < WAITS);
  waits[count].fn = fn;
  waits[count++].arg = arg;
}
static void add_primitives(waited *w) {
  add(wait_at_lock, w), add(wait_at_rlock, w);
  add(wait_to_read, w), add(wait_to_write, w);
  add(wait_at_event, w), add(wait_at_cond, w);
  add(wait_at_sem, w), add(wait_at_barrier, w);
  add(wait_for_once, w), add(wait_for_once, w);
}
static void add_queue(conc_queue *is_empty, conc_queue *is_full) {
  add(wait_to_get, is_empty);
  add(wait_to_put, is_full);
  add(wait_at_queue_join, is_full);
}

static void hold(waited *w) {
  CHECK_EQ(conc_lock_acquire(&w->lock, 0), 0);
  CHECK_EQ(conc_rlock_acquire(&w->rlock, 0), 0);
  CHECK_EQ(conc_rwlock_write_acquire(&w->rwlock, 0), 0);
}
static void let_go(waited *w) {
  CHECK_EQ(conc_lock_release(&w->lock), 0);
  CHECK_EQ(conc_rlock_release(&w->rlock), 0);
  CHECK_EQ(conc_rwlock_release(&w->rwlock), 0);
}
static void share(waited *w) {
  CHECK(w != NULL);
  w->barrier.parties = 2;
  CHECK_EQ(conc_lock_init_shared(&w->lock), 0);
  CHECK_EQ(conc_lock_init_shared(&w->of_cond), 0);
  CHECK_EQ(conc_rlock_init_shared(&w->rlock), 0);
  CHECK_EQ(conc_rwlock_init_shared(&w->rwlock), 0);
  CHECK_EQ(conc_event_init_shared(&w->unset), 0);
  CHECK_EQ(conc_cond_init_shared(&w->cond), 0);
  CHECK_EQ(conc_sem_init_shared(&w->none), 0);
  CHECK_EQ(conc_barrier_init_shared(&w->barrier), 0);
  CHECK_EQ(conc_once_init_shared(&w->once), 0);
}

static conc_queue *queue(bool is_shared, const char *name, bool is_full) {
  conc_queue_opts o;
  conc_queue *q;
  memset(&o, 0, sizeof o);
  o.capacity = 1;
  o.max_bytes = 16;
  o.shared = is_shared;
  o.name = name;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  if (is_full) CHECK_EQ(conc_put(q, "x", 1, 0), 0);
  return q;
}

static void open_local(void) {
  conc_queue_opts o;
  const int signals[1] = {SIGUSR1};
  CHECK_EQ(conc_block_signals(signals, 1), 0);
  memset(&o, 0, sizeof o);
  o.lease = 60;
  count = 0;
  memset(&local, 0, sizeof local);
  local.barrier.parties = 2;
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(conc_pipe(&packets[0], &packets[1]), 0);
  hold(&local);
  empty = queue(false, NULL, false);
  full = queue(false, NULL, true);
  leased = conc_queue_new(&o);
  CHECK(leased != NULL);
  memset(&pool, 0, sizeof pool);
  pool.kind = CONC_THREAD;
  pool.workers = 2; /* the other one has nothing to do */
  CHECK_EQ(conc_pool_start(&pool), 0);
  job = task_of(wait_at_event, &local);
  CHECK_EQ(conc_pool_submit(&pool, &job), 0);
  start(conc_thread_start, &sleeper, wait_for_time, NULL);
  add_primitives(&local);
  add_queue(empty, full);
  add(wait_for_lease, leased);
  add(wait_for_several, empty);
  add(wait_for_signal, NULL);
  add(wait_for_time, NULL);
  add(wait_to_read_bytes, NULL);
  add(wait_for_descriptor, NULL);
  add(wait_for_packet, NULL);
  add(wait_for_end, &sleeper), add(wait_for_one, &job);
}
static void close_local(void) {
  CHECK_EQ(conc_cancel(&sleeper), 0);
  CHECK_EQ(conc_join(&sleeper, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_cancel(&job), 0);
  CHECK_EQ(conc_join(&job, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_pool_close(&pool), 0);
  CHECK_EQ(conc_pool_join(&pool, CONC_FOREVER), 0);
  let_go(&local);
  conc_queue_free(empty);
  conc_queue_free(full);
  conc_queue_free(leased);
  close(ends[0]), close(ends[1]);
  close(packets[0]), close(packets[1]);
}

/* Here they look around, for processes that may have died: at each of these
   objects one looks 50 times a second, or a coroutine 500 times. */
static double shared_limit(void) { return 5 * idle_limit(); }
static void open_shared(bool with_name) {
  char name[64];
  count = 0;
  ours = (waited *)conc_shared_alloc(sizeof *ours);
  share(ours);
  hold(ours);
  empty_shared = queue(true, NULL, false);
  full_shared = queue(true, NULL, true);
  add_primitives(ours);
  add_queue(empty_shared, full_shared);
  named = NULL;
  if (!with_name) return;
  snprintf(name, sizeof name, "conc-target-%d", (int)getpid());
  named = queue(true, name, false);
  add(wait_to_get, named);
}
static void close_shared(void) {
  let_go(ours);
  conc_shared_free(ours);
  conc_queue_free(empty_shared);
  conc_queue_free(full_shared);
  conc_queue_free(named);
}

/* Starts all of them; then the seconds that they spend. */
static void idle_in(int (*how)(conc_task *), double limit) {
  conc_task t[WAITS];
  double spent;
  for (int i = 0; i < count; i++)
    start(how, &t[i], waits[i].fn, waits[i].arg);
  spent = spent_idly(limit);
  for (int i = 0; i < count; i++) CHECK_EQ(conc_cancel(&t[i]), 0);
  for (int i = 0; i < count; i++)
    CHECK_EQ(conc_join(&t[i], 20 * test_slow()), -ECANCELED);
  if (spent > limit)
    TEST_FAIL("%d waits of a second took %.3f s of the CPU", count, spent);
}
static void *idle_coroutines(void *arg) {
  idle_in(conc_coro_start, *(double *)arg);
  return NULL;
}
TEST(threads_that_wait_take_no_time) {
  open_local();
  idle_in(conc_thread_start, idle_limit());
  close_local();
}
TEST(coroutines_that_wait_take_no_time) {
  double limit = idle_limit();
  open_local();
  run(idle_coroutines, &limit);
  close_local();
}
TEST(threads_that_wait_for_other_processes_take_no_time) {
  open_shared(true);
  idle_in(conc_thread_start, shared_limit());
  close_shared();
}
TEST(coroutines_that_wait_for_other_processes_take_no_time) {
  double limit = shared_limit();
  open_shared(true);
  run(idle_coroutines, &limit);
  close_shared();
}
/* The child waits for a message, and its parent for the child's end. Each of
   them measures itself. */
static void *idle_child(void *arg) {
  double least = 1e9;
  char c;
  for (int i = 0; i < 5 && least > idle_limit(); i++) {
    double before = cpu_seconds();
    CHECK_CHILD(conc_get(empty_shared, &c, 1, 1) == -ETIMEDOUT);
    before = cpu_seconds() - before;
    if (before < least) least = before;
  }
  CHECK_CHILD(least <= idle_limit());
  return arg;
}
TEST(a_process_that_waits_takes_no_time) {
  conc_task t;
  double before;
  NEEDS_FORK;
  open_shared(false);
  start(conc_process_start, &t, idle_child, NULL);
  before = cpu_seconds();
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(cpu_seconds() - before <= idle_limit());
  CHECK_EQ(conc_exitcode(&t), 0);
  close_shared();
}

/* A pool of processes, of which the only worker has nothing to do meanwhile.
   It says what it has spent before and after that. */
static void *spent_by_worker(void *arg) {
  *(double *)arg = cpu_seconds();
  return arg;
}
TEST(a_pool_that_waits_takes_no_time) {
  double before, after, ours_before, best = 1e9, ours_best = 1e9;
  NEEDS_FORK;
  if (test_wrapped("qemu")) SKIP("qemu-user has no threads after a fork");
  memset(&pool, 0, sizeof pool);
  pool.workers = 1;
  CHECK_EQ(conc_pool_start(&pool), 0);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(conc_pool_map(&pool, spent_by_worker, &before, sizeof before, 1),
             0);
    ours_before = cpu_seconds();
    CHECK_EQ(conc_sleep(1), 0);
    ours_before = cpu_seconds() - ours_before;
    CHECK_EQ(conc_pool_map(&pool, spent_by_worker, &after, sizeof after, 1),
             0);
    if (after - before < best) best = after - before;
    if (ours_before < ours_best) ours_best = ours_before;
    if (best <= idle_limit() && ours_best <= idle_limit()) break;
  }
  if (best > idle_limit()) TEST_FAIL("the worker took %.3f s", best);
  if (ours_best > idle_limit()) TEST_FAIL("its keeper took %.3f s", ours_best);
  CHECK_EQ(conc_pool_close(&pool), 0);
  CHECK_EQ(conc_pool_join(&pool, CONC_FOREVER), 0);
}

TEST_MAIN
