/* What the tests of the core share: starting things, and waiting for what
 * another thread does without sleeping blindly. */
#ifndef CORE_H
#define CORE_H
#include "test.h"

#include "../conc.h"
#include <sched.h>
#include <sys/syscall.h>

/* A variable that several threads use. */
#define GET(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define SET(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define ADD(x, n) __atomic_add_fetch(&(x), (n), __ATOMIC_ACQ_REL)

/* In a thread: waits for what others do. */
#define UNTIL(cond)                                                           \
  for (double until_ = test_now() + 20 * test_slow(); !(cond); sched_yield()) \
    if (test_now() > until_) TEST_FAIL("never happened: %s", #cond)

/* Fewer of a thing that is done thousands of times, where all is slow. */
TEST_FN int rounds(int n) {
  n = (int)(n / test_slow());
  return n > 0 ? n : 1;
}
TEST_FN int is_portable(void) {
#ifdef CONC_PORTABLE
  return 1;
#else
  return 0;
#endif
}
TEST_FN int has_asan(void) {
#if defined(__SANITIZE_ADDRESS__)
  return 1;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
  return 1;
#endif
#endif
  return 0;
}
TEST_FN int has_tsan(void) {
#if defined(__SANITIZE_THREAD__)
  return 1;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
  return 1;
#endif
#endif
  return 0;
}
TEST_FN int has_valgrind(void) { /* its preloaded library is in there */
  const char *preload = getenv("LD_PRELOAD");
  return preload && strstr(preload, "vgpreload") != NULL;
}

/* --- starting --- */

TEST_FN conc_task task_of(conc_fn *target, void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = target;
  t.arg = arg;
  return t;
}
TEST_FN void thread(conc_task *t, conc_fn *target, void *arg) {
  *t = task_of(target, arg);
  CHECK_EQ(conc_thread_start(t), 0);
}
TEST_FN void coro(conc_task *t, conc_fn *target, void *arg) {
  *t = task_of(target, arg);
  CHECK_EQ(conc_coro_start(t), 0);
}
TEST_FN void join(conc_task *t) { CHECK_EQ(conc_join(t, CONC_FOREVER), 0); }
TEST_FN int run(conc_fn *target, void *arg) {
  conc_task t = task_of(target, arg);
  return conc_run(&t);
}
/* Lets the other coroutines run until each of them waits. */
TEST_FN void settle(void) {
  for (int i = 0; i < 5; i++) CHECK_EQ(conc_yield_now(), 0);
}

/* A crowd: the same function many times at once, every second one in a
   thread, the others as coroutines of two loops. */
struct crowd {
  conc_fn *target;
  char *args;
  size_t size;
  int n, lane;
};
TEST_FN void *crowd_loop(void *arg) {
  struct crowd *c = (struct crowd *)arg;
  conc_task *t = (conc_task *)calloc((size_t)c->n, sizeof *t);
  for (int i = c->lane; i < c->n; i += 4)
    coro(&t[i], c->target, c->args + (size_t)i * c->size);
  for (int i = c->lane; i < c->n; i += 4) join(&t[i]);
  free(t);
  return NULL;
}
TEST_FN void *crowd_thread(void *arg) {
  CHECK_EQ(run(crowd_loop, arg), 0);
  return NULL;
}
TEST_FN void crowd(conc_fn *target, void *args, size_t size, int n) {
  struct crowd lanes[2] = {{target, (char *)args, size, n, 1},
                           {target, (char *)args, size, n, 3}};
  conc_task loops[2], *t = (conc_task *)calloc((size_t)n, sizeof *t);
  for (int i = 0; i < 2; i++) thread(&loops[i], crowd_thread, &lanes[i]);
  for (int i = 0; i < n; i += 2)
    thread(&t[i], target, (char *)args + (size_t)i * size);
  for (int i = 0; i < n; i += 2) join(&t[i]);
  for (int i = 0; i < 2; i++) join(&loops[i]);
  free(t);
}

/* --- looking at other threads --- */

TEST_FN int thread_id(void) { return (int)syscall(SYS_gettid); }

/* The state that the kernel shows for a thread: R, S, t... or 0. */
TEST_FN char thread_state(int process, int id) {
  char path[64], text[512], *end;
  ssize_t n;
  int fd;
  snprintf(path, sizeof path, "/proc/%d/task/%d/stat", process, id);
  if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) return 0;
  n = read(fd, text, sizeof text - 1);
  close(fd);
  if (n <= 0) return 0;
  text[n] = 0;
  end = strrchr(text, ')'); /* a name may have anything in it */
  return end && end[1] == ' ' ? end[2] : (char)0;
}
/* Waits until a thread has told its id and sleeps in the kernel. */
TEST_FN void until_asleep(int *id) {
  UNTIL(GET(*id) != 0 && thread_state(getpid(), GET(*id)) == 'S');
}
/* CPU seconds of this process. */
TEST_FN double cpu_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
#endif
