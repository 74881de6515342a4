/* What differs from one CPU to the next, and from one system to the next. The
   switch between coroutines keeps all that a function may have in registers,
   frames of any size, the alignment of stacks; it refuses what it cannot. And
   waits cost no time of the CPU, in each kind of task. */
#include "test.h"

static int feigned; /* that the CPU checks returns */
#define CONC_HAVE_SHADOW_STACK (feigned != 0)
#include "inside.h"
#include "tasks.h"

#include <sys/resource.h>

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

static double cpu_seconds(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
         (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
}
static double idle_limit(void) { return 0.02 * test_slow(); }
/* What the process spends in a second in which all its tasks wait. A task that
   still begins in that second spends more: then the next one tells. */
static double spent_idly(void) {
  double before, spent = 0;
  CHECK_EQ(conc_sleep(0.1 * test_slow()), 0); /* until they do */
  for (int i = 0; i < 5; i++) {
    before = cpu_seconds();
    CHECK_EQ(conc_sleep(1), 0);
    spent = cpu_seconds() - before;
    if (spent <= idle_limit()) break;
  }
  return spent;
}

/* All that tasks wait for; each of them until it is cancelled, or in time. */
static conc_lock held;
static conc_event unset;
static conc_queue *empty, *empty_shared;
static int ends[2];

static void *wait_at_lock(void *arg) {
  CHECK_EQ(conc_lock_acquire(&held, 60), -ECANCELED);
  return arg;
}
static void *wait_at_event(void *arg) {
  CHECK_EQ(conc_event_wait(&unset, CONC_FOREVER), -ECANCELED);
  return arg;
}
static void *wait_at_queue(void *arg) {
  char c;
  CHECK_EQ(conc_get(empty, &c, 1, CONC_FOREVER), -ECANCELED);
  return arg;
}
static void *wait_at_shared_queue(void *arg) {
  char c;
  CHECK_EQ(conc_get(empty_shared, &c, 1, 60), -ECANCELED);
  return arg;
}
static void *wait_at_descriptor(void *arg) {
  char c;
  CHECK_EQ(conc_read(ends[0], &c, 1, 60), -ECANCELED);
  return arg;
}
static void *wait_for_time(void *arg) {
  CHECK_EQ(conc_sleep(60), -ECANCELED);
  return arg;
}

enum { WAITS = 6 };
static conc_fn *const waits[WAITS] = {
    wait_at_lock,  wait_at_event,        wait_at_queue,
    wait_for_time, wait_at_shared_queue, wait_at_descriptor};

static void open_waits(void) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  empty = conc_queue_new(&o);
  o.shared = true;
  o.max_bytes = 16;
  o.capacity = 16;
  empty_shared = conc_queue_new(&o);
  CHECK(empty != NULL && empty_shared != NULL);
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(conc_lock_acquire(&held, 0), 0);
}
static void close_waits(void) {
  CHECK_EQ(conc_lock_release(&held), 0);
  conc_queue_free(empty);
  conc_queue_free(empty_shared);
  close(ends[0]);
  close(ends[1]);
}
/* One task for each of the waits; then the seconds that all of them spend. */
static void idle_in(int (*how)(conc_task *)) {
  conc_task t[WAITS];
  double spent;
  for (int i = 0; i < WAITS; i++) start(how, &t[i], waits[i], NULL);
  spent = spent_idly();
  for (int i = 0; i < WAITS; i++) CHECK_EQ(conc_cancel(&t[i]), 0);
  for (int i = 0; i < WAITS; i++)
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), -ECANCELED);
  if (spent > idle_limit())
    TEST_FAIL("a second's wait took %.3f s of the CPU", spent);
}
static void *idle_coroutines(void *arg) {
  idle_in(conc_coro_start);
  return arg;
}
TEST(threads_that_wait_take_no_time) {
  open_waits();
  idle_in(conc_thread_start);
  close_waits();
}
TEST(coroutines_that_wait_take_no_time) {
  open_waits();
  run(idle_coroutines, NULL);
  close_waits();
}

/* The child waits for a message, and its parent for the child's end. Each of
   them measures itself. */
static void *idle_child(void *arg) {
  conc_task t = task_of(wait_at_shared_queue, NULL);
  double spent;
  CHECK_CHILD(conc_thread_start(&t) == 0);
  spent = spent_idly();
  CHECK_CHILD(conc_cancel(&t) == 0);
  CHECK_CHILD(conc_join(&t, CONC_FOREVER) == -ECANCELED);
  CHECK_CHILD(spent <= idle_limit());
  return arg;
}
TEST(a_process_that_waits_takes_no_time) {
  conc_task t;
  double before;
  NEEDS_FORK;
  if (test_wrapped("qemu")) SKIP("qemu-user has no threads after a fork");
  open_waits();
  start(conc_process_start, &t, idle_child, NULL);
  before = cpu_seconds();
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(cpu_seconds() - before <= idle_limit());
  CHECK_EQ(conc_exitcode(&t), 0);
  close_waits();
}

TEST_MAIN
