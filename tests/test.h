/* test.h: a test program is TEST(sentence) { CHECK(...); } ... TEST_MAIN
 * Include it first: it asks the system headers for everything.
 *
 * Every test runs in a child process of its own, so that a crash, a hang or a
 * leak is that test's alone. A failed check ends it at once, from whatever
 * thread or coroutine. It passes by returning with no descriptor, no child
 * and (in programs that include inside.h) no allocation left.
 *
 * Some macros make a test, or several, of one body, so `program --list` tells
 * the tests, and not grep '^TEST(': TEST_BOTH of tasks.h (a thread, then a
 * coroutine), TEST_EVERYWHERE of tasks.c (in every kind of task), TEST_SHARED
 * and TEST_ALL of queue_processes.c (two tests, or three: NAME_ring, NAME_pipe
 * and NAME_local, each on another kind of queue).
 *   program [--filter WORDS] [--list] [--seed N]
 *   TEST_SLOW=10 multiplies the 30 s that a test may take
 *   TEST_ON_HANG=x runs "x PID" before a hung test is killed */
#ifndef TEST_H
#define TEST_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* Whether the program is compiled with these sanitizers. */
#ifdef __has_feature
#define TEST_HAS(x) __has_feature(x)
#else
#define TEST_HAS(x) 0
#endif
#ifdef __SANITIZE_THREAD__
#define TEST_TSAN 1
#else
#define TEST_TSAN TEST_HAS(thread_sanitizer)
#endif
#ifdef __SANITIZE_ADDRESS__
#define TEST_ASAN 1
#else
#define TEST_ASAN TEST_HAS(address_sanitizer)
#endif

#if TEST_TSAN
/* The tests make deadlocks on purpose; races alone are failures. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "detect_deadlocks=0"; }
#endif

#define TEST_FN static __attribute__((unused))

/* An AddressSanitizer before LLVM 16 leaves its own locks as they are at a
   fork: a child that was forked while another thread was in malloc would hang
   in its first. Its locks can be taken by those who know their names; newer
   ones take them by themselves. There are a million more, of the store of
   stacks: so where memory was allocated is not stored. To know it of one
   program: ASAN_OPTIONS=malloc_context_size=30. */
#if TEST_ASAN && defined(__clang__) && defined(__linux__) && \
    __clang_major__ >= 14 && __clang_major__ < 16
#include <pthread.h>
#define TEST_SANITIZERS(name, symbol)                                         \
  extern void name(void) __asm__(symbol) __attribute__((weak));
TEST_SANITIZERS(test_lock_threads, "_ZN6__lsan18LockThreadRegistryEv")
TEST_SANITIZERS(test_lock_allocator, "_ZN6__lsan13LockAllocatorEv")
TEST_SANITIZERS(test_unlock_allocator, "_ZN6__lsan15UnlockAllocatorEv")
TEST_SANITIZERS(test_unlock_threads, "_ZN6__lsan20UnlockThreadRegistryEv")
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "malloc_context_size=0"; }
TEST_FN void test_fork_begins(void) {
  test_lock_threads(), test_lock_allocator();
}
TEST_FN void test_fork_ends(void) {
  test_unlock_allocator(), test_unlock_threads();
}
/* The first of all handlers, therefore the last before a fork and the first
   after it. */
#define TEST_ASAN_FORKS                                                       \
  (test_lock_threads && test_lock_allocator &&                                \
   test_unlock_allocator && test_unlock_threads &&                            \
   pthread_atfork(test_fork_begins, test_fork_ends, test_fork_ends) == 0)
#else
#define TEST_ASAN_FORKS 0
#endif

typedef struct test_case {
  const char *name, *file;
  void (*run)(void);
  struct test_case *next;
} test_case;
static test_case *test_first, **test_end = &test_first;
static char test_title[256];
static unsigned long long test_seed;
static long test_blocks;  /* allocations alive */
static long test_fail_at; /* n > 0: the n-th allocation from now fails */

/* A queue of this process, for tests that look inside. */
#define AS_FIFO(queue) ((conc__fifo *)(queue))

#define TEST(name)                                                            \
  static void test_run_##name(void);                                          \
  static test_case test_case_##name = {#name, __FILE__, test_run_##name, 0};  \
  __attribute__((constructor)) static void test_add_##name(void) {            \
    test_end = &(*test_end = &test_case_##name)->next;                        \
  }                                                                           \
  static void test_run_##name(void)
#define CHECK(cond) ((cond) ? (void)0 : TEST_FAIL("%s", #cond))
#define CHECK_EQ(a, b) test_eq(__FILE__, __LINE__, #a " == " #b,              \
                               (long long)(a), (long long)(b))
#define CHECK_STR(a, b) test_str(__FILE__, __LINE__, #a " == " #b, (a), (b))
#define TEST_FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define SKIP(why) (printf("skip %s: %s\n", test_title, why), exit(77))
/* A CHECK in a child process that a test has forked, for the child has no test
   of its own: the test finds its exit code, CHECK_CHILD_FAILED. */
#define CHECK_CHILD(condition)                                                \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: in the child: %s\n", __FILE__, __LINE__,        \
              #condition);                                                    \
      _exit(CHECK_CHILD_FAILED);                                              \
    }                                                                         \
  } while (0)
enum { CHECK_CHILD_FAILED = 99 };
#define NEEDS_FORK                                                            \
  if (TEST_TSAN) SKIP("ThreadSanitizer knows no threads after a fork")
/* What other threads and processes change, too. */
#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define ADD_FETCH(x, n) __atomic_add_fetch(&(x), (n), __ATOMIC_ACQ_REL)
#define TEST_MAIN                                                             \
  int main(int argc, char **argv) { return test_main(argc, argv); }

__attribute__((noreturn, format(printf, 3, 4))) TEST_FN void
test_fail(const char *file, int line, const char *format, ...) {
  va_list args;
  va_start(args, format);
  flockfile(stderr), fprintf(stderr, "%s:%d: failed: ", file, line);
  vfprintf(stderr, format, args), fputc('\n', stderr);
  fflush(stdout), _exit(1);
}
TEST_FN void test_eq(const char *file, int line, const char *what,
                     long long a, long long b) {
  if (a != b) test_fail(file, line, "%s (%lld, %lld)", what, a, b);
}
TEST_FN void test_str(const char *file, int line, const char *what,
                      const char *a, const char *b) {
  if (a == b || (a && b && strcmp(a, b) == 0)) return;
  test_fail(file, line, "%s (%s, %s)", what, a ? a : "NULL", b ? b : "NULL");
}
TEST_FN double test_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
TEST_FN double test_slow(void) { /* stretches every time limit of a test */
  const char *slow = getenv("TEST_SLOW");
  return slow && atof(slow) > 0 ? atof(slow) : 1;
}
/* What the environment asks for by that name, or else what is usual. */
TEST_FN double test_asked(const char *name, double usual) {
  const char *asked = getenv(name);
  return asked && *asked ? atof(asked) : usual;
}
/* Runs in this tool: make test WRAPPER="/usr/bin/valgrind -q". */
TEST_FN int test_wrapped(const char *tool) {
  const char *by = getenv("WRAPPER"), *loaded = getenv("LD_PRELOAD");
  return (by && strstr(by, tool)) || (loaded && strstr(loaded, tool));
}
/* The next random number of a series, for a task that has its own. */
TEST_FN unsigned test_random_of(unsigned long long *seed) {
  *seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
  return (unsigned)(*seed >> 32);
}
TEST_FN unsigned test_random(void) { /* repeatable by --seed */
  return test_random_of(&test_seed);
}
/* To be CONC_MALLOC, CONC_REALLOC and CONC_FREE: they count and can fail. */
TEST_FN void *test_realloc(void *old, size_t size) {
  int fail = __atomic_load_n(&test_fail_at, __ATOMIC_RELAXED) > 0 &&
             __atomic_sub_fetch(&test_fail_at, 1, __ATOMIC_RELAXED) == 0;
  void *block = fail ? NULL : realloc(old, size);
  if (block && !old) __atomic_add_fetch(&test_blocks, 1, __ATOMIC_RELAXED);
  return block;
}
TEST_FN void *test_malloc(size_t size) { return test_realloc(NULL, size); }
TEST_FN void test_free(void *block) {
  if (block) __atomic_sub_fetch(&test_blocks, 1, __ATOMIC_RELAXED);
  free(block);
}

__attribute__((noreturn)) TEST_FN void test_child(const test_case *t) {
  static int before[4096]; /* the descriptors that are watched */
  double late;
  setpgid(0, 0);           /* the parent kills what a test leaves behind */
  signal(SIGINT, SIG_DFL); /* which a shell ignores for a job in background */
  signal(SIGQUIT, SIG_DFL);
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* in case that the parent is killed */
#endif
  alarm((unsigned)(40 * test_slow())); /* and elsewhere */
  for (int fd = 0; fd < 4096; fd++) before[fd] = fcntl(fd, F_GETFD);
  t->run();
  /* Detached threads that end now may have a descriptor for a moment, that of
     malloc, and memory that they are about to free. */
  late = test_now() + 2 * test_slow();
  for (int fd = 0; fd < 4096; fd++)
    while ((fcntl(fd, F_GETFD) == -1) != (before[fd] == -1)) {
      if (test_now() > late)
        test_fail(t->file, 0, "descriptor %d opened or closed", fd);
      usleep(1000);
    }
  if (waitpid(-1, NULL, WNOHANG) != -1) test_fail(t->file, 0, "child left");
  while (__atomic_load_n(&test_blocks, __ATOMIC_ACQUIRE)) {
    if (test_now() > late)
      test_fail(t->file, 0, "%ld allocations left", test_blocks);
    usleep(1000);
  }
  exit(0); /* not _exit: LeakSanitizer looks now */
}
TEST_FN int test_one(const test_case *t) { /* returns whether it failed */
  double start = test_now(), limit = 30 * test_slow();
  const struct timespec ms = {0, 1000000};
  char command[200], *tool = getenv("TEST_ON_HANG");
  int status = 0, hung = 0;
  pid_t pid = (fflush(NULL), fork());
  if (pid == 0) test_child(t);
  for (; waitpid(pid, &status, WNOHANG) == 0; nanosleep(&ms, NULL))
    if (!hung && test_now() - start > limit) {
      snprintf(command, sizeof command, "%s %d", tool ? tool : ":", (int)pid);
      hung = system(command) != -1 && kill(-pid, SIGKILL) == 0;
    }
  kill(-pid, SIGKILL);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return 0;
  printf("%s %s (", status ? "FAIL" : "ok  ", test_title);
  if (status) printf("%s %d, --seed %llu, ", hung ? "hung, killed by" :
      WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit status",
      WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), test_seed);
  printf("%.2f s)\n", test_now() - start);
  return status != 0;
}
TEST_FN int test_main(int argc, char **argv) {
  const char *filter = "", *file;
  int failed = 0, list = argc == 2 && strcmp(argv[1], "--list") == 0;
  (void)TEST_ASAN_FORKS;
  test_seed = (unsigned long long)time(NULL) * 1000 + (unsigned)getpid();
  for (int i = 1; i + 1 < argc; i += 2)
    if (strcmp(argv[i], "--filter") == 0) filter = argv[i + 1];
    else test_seed = strtoull(argv[i + 1], NULL, 10);
  for (const test_case *t = test_first; t; t = t->next) {
    file = strrchr(t->file, '/') ? strrchr(t->file, '/') + 1 : t->file;
    snprintf(test_title, sizeof test_title, "%s: %s", file, t->name);
    for (char *c = strchr(test_title, ':'); *c; c++) *c = *c == '_' ? ' ' : *c;
    if (!strstr(test_title, filter) && !strstr(t->name, filter)) continue;
    if (list) printf("%s\n", test_title);
    else failed += test_one(t);
  }
  return failed != 0;
}
#endif
