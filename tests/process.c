/* Processes and programs: how they start and end, what they inherit, and that
   nothing stays behind: no descriptor, no zombie, no wait. PROCESS_STARTS is
   how many are started for that (default 1000), PROCESS_MIB how much goes
   through a program and back (default 16).

   CPython's test._test_multiprocessing (3.13), and which test here does the
   same, by the first words of its name. "-": makes no sense in C.

   _TestProcess
     test_current                a_process_runs_its_target (check_myself)
     test_set_executable         - (a program of any name: conc_popen)
     test_args_argument          a_spawned_process_is_new_and_gets_its_bytes
     test_daemon_argument        differs: .daemon is not inherited
     test_parent_process_...     a_process_runs_its_target (getppid)
     test_parent_process         a_daemon_lives_as_long_as_its_parent
     test_process                a_process_runs_its_target
     test_process_mainthread_... a_process_runs_its_target
     test_terminate, test_kill   the_exit_code_is
     test_cpu_count              -
     test_active_children        - (who starts them has their tasks)
     test_recursion              a_process_has_processes_of_its_own
     test_sentinel               any_number_of_threads_and_coroutines_join
     test_close                  the_exit_code_is (-ESRCH, -EBUSY)
     test_many_processes         a_hundred_at_a_time_end_or_are_terminated
     test_lose_target_ref        -
     test_child_fd_inflation     a_number_of_processes_of_eight_threads
     test_wait_for_threads       differs: a_process_ends_with_its_target
     test_error_on_stdio_flush_* a_process_may_be_without_stdio
     test_forkserver_*           - (there is none)
   _TestSubclassingProcess
     test_subclassing            examples/pipe.c
     test_stderr_flush           stdio_is_flushed_before_and_after
     test_sys_exit               a_process_may_exit_by_itself */
#include "test.h"

static void test_point(void);
#define CONC__POINT() test_point()
#include "inside.h"
#include "tasks.h"

#include <dirent.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* An emulator and Valgrind are not in what they are told to execute. */
#define NEEDS_SPAWN                                                           \
  if (test_wrapped("qemu") || test_wrapped("valgrind"))                       \
  SKIP("this tool cannot run the same program in a child")

/* In a process that was forked it aborts when a thread starts, such as one that
   awaits a child; and its posix_spawn() tells of no error. */
#define NEEDS_THREADS_AFTER_FORK                                              \
  if (test_wrapped("qemu")) SKIP("qemu-user has no threads after a fork")
#define NEEDS_SPAWN_ERRORS                                                    \
  if (test_wrapped("qemu")) SKIP("qemu-user tells of no error of posix_spawn")

static void *number(size_t n) { return (void *)(uintptr_t)n; }

static void pipe_of(int fds[2]) { CHECK(pipe2(fds, O_CLOEXEC) == 0); }

/* All that comes until the other ends are closed. */
static char *drain(int fd) {
  static char text[4096];
  size_t size = 0;
  ssize_t n;
  while ((n = read(fd, text + size, sizeof text - 1 - size)) > 0)
    size += (size_t)n;
  text[size] = 0;
  close(fd);
  return text;
}

static size_t count_fds(void) {
  DIR *dir = opendir("/proc/self/fd");
  size_t n = 0;
  CHECK_CHILD(dir != NULL);
  while (readdir(dir)) n++;
  closedir(dir);
  return n;
}

/* Runs fn as a thread, or as a coroutine. */
static void run_in_both(conc_fn *fn) {
  conc_task t = task_of(fn, NULL);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_run(&t), 0);
}

/* --- the life of a process ----------------------------------------------- */

static void *do_nothing(void *arg) { return arg; }
CONC_PROCESS_TARGET(do_nothing)

static void *sleep_on(void *arg) {
  for (;;) pause();
  return arg;
}
CONC_PROCESS_TARGET(sleep_on)

static void *check_myself(void *arg) {
  conc_task *t = conc_current();
  CHECK_CHILD(conc_pid(t) == getpid());
  CHECK_CHILD(getppid() == (pid_t)(uintptr_t)arg);
  CHECK_CHILD(strcmp(conc_name(NULL), "Process-1") == 0);
  CHECK_CHILD(conc_name(t) == conc_name(NULL));
  CHECK_CHILD(conc_join(t, 0) == -EDEADLK);
  CHECK_CHILD(conc_is_alive(t));
  CHECK_CHILD(conc_exitcode(t) == CONC_NO_EXITCODE);
  CHECK_CHILD(conc_terminate(t) == -ESRCH);
  CHECK_CHILD(conc_process_start(t) == -EBUSY);
  CHECK_CHILD(conc_cancel(t) == 0);
  CHECK_CHILD(conc_sleep(9) == -ECANCELED);
  static double dropped; /* aligned, so its lowest byte is not 99 */
  return &dropped;
}

TEST(a_process_runs_its_target_and_ends_with_its_result) {
  NEEDS_FORK;
  conc_task t = task_of(check_myself, number((size_t)getpid()));
  CHECK_EQ(conc_pid(&t), 0);
  CHECK_EQ(conc_process_start(&t), 0);
  pid_t pid = conc_pid(&t);
  CHECK(pid > 0 && pid != getpid());
  CHECK_STR(conc_name(&t), "Process-1");
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(conc_exitcode(&t) != 99);
  CHECK(conc_result(&t) == NULL);
  CHECK(!conc_is_alive(&t));
  CHECK_EQ(conc_pid(&t), pid);
  CHECK_EQ(conc_join(&t, 0), 0); /* again */

  t = task_of(NULL, NULL);
  CHECK_EQ(conc_process_start(&t), -EINVAL);
  t = task_of(do_nothing, NULL);
  t.start_method = 7;
  CHECK_EQ(conc_process_start(&t), -EINVAL);
  CHECK_EQ(conc_join(&t, 0), -EINVAL);
  t.start_method = CONC_FORK;
  t.name = "mine";
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_STR(conc_name(&t), "mine");
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 0);
}

TEST(the_exit_code_is_the_results_lowest_byte_or_a_signal) {
  NEEDS_FORK;
  static const struct {
    size_t result;
    int code;
  } table[] = {{0, 0}, {7, 7}, {255, 255}, {256 + 3, 3}};
  for (size_t i = 0; i < 4; i++) {
    conc_task t = task_of(do_nothing, number(table[i].result));
    CHECK_EQ(conc_process_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_EQ(conc_exitcode(&t), table[i].code);
  }
  conc_task t = task_of(sleep_on, NULL);
  int (*const end[3])(conc_task *) = {conc_kill, conc_terminate, conc_cancel};
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_process_start(&t), 0);
    CHECK_EQ(conc_process_start(&t), -EBUSY);
    CHECK_EQ(conc_join(&t, 0), -ETIMEDOUT);
    CHECK_EQ(conc_join(&t, 0.01), -ETIMEDOUT);
    CHECK(conc_is_alive(&t));
    CHECK_EQ(conc_exitcode(&t), CONC_NO_EXITCODE);
    CHECK_EQ(end[i](&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
    CHECK_EQ(conc_exitcode(&t), i == 0 ? -SIGKILL : -SIGTERM);
    CHECK_EQ(end[i](&t), -ESRCH);
  }
}

static void *exit_with(void *arg) { exit((int)(uintptr_t)arg); }

TEST(a_process_may_exit_by_itself) {
  NEEDS_FORK;
  conc_task t = task_of(exit_with, number(8));
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 8);
}

static void *leave_a_thread(void *arg) {
  static conc_task stays;
  stays = task_of(sleep_on, NULL);
  CHECK_CHILD(conc_thread_start(&stays) == 0);
  return arg;
}

TEST(a_process_ends_with_its_target_whatever_its_threads_do) {
  NEEDS_FORK;
  NEEDS_THREADS_AFTER_FORK;
  conc_task t = task_of(leave_a_thread, number(5));
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 5);
}

/* How many processes its tree has. */
static void *grow(void *arg) {
  size_t depth = (size_t)(uintptr_t)arg, sum = 1;
  for (int i = 0; i < 2 && depth > 0; i++) {
    conc_task t = task_of(grow, number(depth - 1));
    CHECK_CHILD(conc_process_start(&t) == 0);
    CHECK_CHILD(conc_join(&t, CONC_FOREVER) == 0);
    sum += (size_t)conc_exitcode(&t);
  }
  return number(sum);
}

TEST(a_process_has_processes_of_its_own) {
  NEEDS_FORK;
  NEEDS_THREADS_AFTER_FORK;
  conc_task t = task_of(grow, number(3));
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 15);
}

TEST(a_hundred_at_a_time_end_or_are_terminated) {
  NEEDS_FORK;
  enum { N = 100 };
  static conc_task t[N];
  for (int kill = 0; kill < 2; kill++) {
    for (int i = 0; i < N; i++) {
      t[i] = task_of(kill ? sleep_on : do_nothing, NULL);
      CHECK_EQ(conc_process_start(&t[i]), 0);
    }
    for (int i = 0; i < N && kill; i++) CHECK_EQ(conc_terminate(&t[i]), 0);
    for (int i = 0; i < N; i++) {
      CHECK_EQ(conc_join(&t[i], CONC_FOREVER), kill ? -ECHILD : 0);
      CHECK_EQ(conc_exitcode(&t[i]), kill ? -SIGTERM : 0);
    }
  }
}

static void *break_stdio(void *arg) {
  printf("never seen");
  close(1);
  fclose(stderr);
  return arg;
}

TEST(a_process_may_be_without_stdio) {
  NEEDS_FORK;
  conc_task t = task_of(break_stdio, number(6));
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 6);
}

static FILE *shared_file;
static int atexit_fd;

static void say_goodbye(void) {
  if (atexit_fd >= 0 && write(atexit_fd, "x", 1) != 1) abort();
}

static void *write_b(void *arg) {
  fprintf(shared_file, "b");
  if (arg != NULL) fflush(shared_file);
  printf("B");
  return arg;
}

/* stdout and stderr are the library's business, other streams the program's:
   without a flush of its own the child writes nothing there. */
TEST(stdout_is_flushed_before_and_after_and_atexit_is_the_parents) {
  NEEDS_FORK;
  int fds[2], quiet[2], prints[2], out = dup(1);
  conc_task t = task_of(write_b, &t);
  pipe_of(fds);
  pipe_of(quiet);
  pipe_of(prints);
  fflush(stdout);
  dup2(prints[1], 1);
  close(prints[1]);
  atexit_fd = quiet[1];
  atexit(say_goodbye);
  shared_file = fdopen(fds[1], "w");
  for (int i = 0; i < 2; i++) {
    printf("A");
    if (i == 0) fprintf(shared_file, "a"), fflush(shared_file);
    CHECK_EQ(conc_process_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    fprintf(shared_file, "c");
    t.arg = NULL;
  }
  printf("C");
  fclose(shared_file);
  CHECK_STR(drain(fds[0]), "abcc");
  fflush(stdout);
  dup2(out, 1);
  close(out);
  CHECK_STR(drain(prints[0]), "ABABC");
  close(quiet[1]);
  CHECK_STR(drain(quiet[0]), "");
  atexit_fd = -1;
}

static void *join_it(void *arg) {
  conc_task *t = (conc_task *)arg;
  return number(conc_join(t, CONC_FOREVER) == -ECHILD &&
                conc_exitcode(t) == -SIGKILL);
}

static void *join_it_by_coroutines(void *arg) {
  conc_task joiner[5];
  for (int i = 0; i < 5; i++) {
    joiner[i] = task_of(join_it, arg);
    CHECK_EQ(conc_coro_start(&joiner[i]), 0);
  }
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(conc_join(&joiner[i], CONC_FOREVER), 0);
    CHECK(conc_result(&joiner[i]) != NULL);
  }
  return arg;
}

static void *run_joiners(void *arg) {
  conc_task t = task_of(join_it_by_coroutines, arg);
  CHECK_EQ(conc_run(&t), 0);
  return arg;
}

TEST(any_number_of_threads_and_coroutines_join_one_process) {
  NEEDS_FORK;
  for (int round = 0; round < 30; round++) {
    conc_task t = task_of(sleep_on, NULL), joiner[6];
    CHECK_EQ(conc_process_start(&t), 0);
    for (int i = 0; i < 6; i++) {
      joiner[i] = task_of(i < 3 ? join_it : run_joiners, &t);
      CHECK_EQ(conc_thread_start(&joiner[i]), 0);
    }
    if (round % 2) conc_sleep(0.002);
    CHECK_EQ(conc_kill(&t), 0);
    for (int i = 0; i < 6; i++) {
      CHECK_EQ(conc_join(&joiner[i], CONC_FOREVER), 0);
      CHECK(conc_result(&joiner[i]) != NULL);
    }
  }
}

TEST(who_joins_a_process_can_be_cancelled) {
  NEEDS_FORK;
  conc_task t = task_of(sleep_on, NULL), joiner = task_of(join_it, &t);
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_thread_start(&joiner), 0);
  CHECK_EQ(conc_cancel(&joiner), 0);
  CHECK_EQ(conc_join(&joiner, CONC_FOREVER), -ECANCELED);
  CHECK(conc_is_alive(&t));
  CHECK_EQ(conc_kill(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
}

TEST(a_process_that_nobody_joins_leaves_no_zombie) {
  NEEDS_FORK;
  conc_task t = task_of(do_nothing, NULL);
  CHECK_EQ(conc_process_start(&t), 0);
  while (conc_is_alive(&t)) sched_yield();
  CHECK_EQ(waitpid(conc_pid(&t), NULL, 0), -1);
  CHECK_EQ(errno, ECHILD);
}

TEST(a_child_that_somebody_else_waited_for_has_ended_all_the_same) {
  NEEDS_FORK;
  conc_task t = task_of(sleep_on, NULL);
  struct sigaction ignore, before;
  memset(&ignore, 0, sizeof ignore);
  ignore.sa_handler = SIG_IGN; /* the kernel waits for all children */
  sigaction(SIGCHLD, &ignore, &before);
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_kill(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
  CHECK_EQ(conc_exitcode(&t), CONC_NO_EXITCODE);
  sigaction(SIGCHLD, &before, NULL);
}

/* --- what is left of the parent in a child ------------------------------- */

static conc_lock lock;
static conc_rwlock rwlock;
static conc_task other, *parent_task;
static conc_event never;

static void *wait_for_ever(void *arg) {
  conc_event_wait(&never, CONC_FOREVER);
  return arg;
}

static void *run_in_child(void *arg) {
  *(int *)arg += 1;
  return arg;
}

static void *check_child(void *arg) {
  volatile char large[1 << 20]; /* not a coroutine's stack */
  int n = 0;
  for (size_t i = 0; i < sizeof large; i++) large[i] = 1;
  CHECK_CHILD(large[4711] == 1);
  CHECK_CHILD(conc_coro_start(&other) == -EPERM); /* no loop */
  CHECK_CHILD(conc_join(&other, 5) == -ECHILD);
  if (arg != NULL) CHECK_CHILD(conc_join((conc_task *)arg, 5) == -ECHILD);
  if (parent_task) CHECK_CHILD(conc_join(parent_task, 5) == -ECHILD);
  CHECK_CHILD(conc_lock_acquire(&lock, 5) == -EOWNERDEAD);
  CHECK_CHILD(conc_lock_release(&lock) == 0);
  CHECK_CHILD(conc_lock_acquire(&lock, 5) == 0);
  /* Its reader is gone. */
  CHECK_CHILD(conc_rwlock_write_acquire(&rwlock, 5) == 0);
  CHECK_CHILD(conc_sleep(0.001) == 0);
  conc_task t = task_of(run_in_child, &n);
  CHECK_CHILD(conc_thread_start(&t) == 0 && conc_join(&t, 5) == 0);
  CHECK_CHILD(conc_run(&t) == 0 && n == 2);
  CHECK_CHILD(conc_process_start(&t) == 0 && conc_join(&t, 5) == 0 && n == 2);
  CHECK_CHILD(conc_exitcode(&t) == (int)((uintptr_t)&n & 255));
  return NULL;
}

static void *start_with_all(void *arg) {
  conc_task t = task_of(check_child, arg), sleeper;
  bool in_loop = conc_coro_start(&other) == 0;
  sleeper = task_of(wait_for_ever, NULL);
  if (!in_loop) CHECK_EQ(conc_thread_start(&other), 0);
  CHECK_EQ(conc_thread_start(&sleeper), 0);
  conc_sleep(0.005);
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_rwlock_read_acquire(&rwlock, CONC_FOREVER), 0);
  parent_task = conc_current();
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  CHECK_EQ(conc_rwlock_release(&rwlock), 0);
  CHECK_EQ(conc_cancel(&other), 0);
  CHECK_EQ(conc_join(&other, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_cancel(&sleeper), 0);
  CHECK_EQ(conc_join(&sleeper, CONC_FOREVER), -ECANCELED);
  return arg;
}

TEST(in_a_child_the_tasks_of_the_parent_have_ended_and_all_works) {
  NEEDS_THREADS_AFTER_FORK;
  NEEDS_FORK;
  other = task_of(wait_for_ever, NULL);
  run_in_both(start_with_all);
}

static void *check_sibling(void *arg) {
  conc_task *sibling = (conc_task *)arg;
  CHECK_CHILD(!conc_is_alive(sibling));
  CHECK_CHILD(conc_join(sibling, 5) == -ECHILD);
  CHECK_CHILD(conc_kill(sibling) == -ESRCH);
  CHECK_CHILD(conc_exitcode(sibling) == CONC_NO_EXITCODE);
  return NULL;
}

TEST(a_childs_siblings_are_none_of_its_own) {
  NEEDS_FORK;
  conc_task a = task_of(sleep_on, NULL), b = task_of(check_sibling, &a);
  CHECK_EQ(conc_process_start(&a), 0);
  CHECK_EQ(conc_process_start(&b), 0);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&b), 0);
  CHECK(conc_is_alive(&a));
  CHECK_EQ(conc_kill(&a), 0);
  CHECK_EQ(conc_join(&a, CONC_FOREVER), -ECHILD);
}

static conc_task pool_of_coroutines[3];

static void *start_one_each(void *arg) {
  for (int i = 0; i < 20; i++) {
    conc_task t = task_of(do_nothing, number(5));
    CHECK_EQ(conc_process_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_EQ(conc_exitcode(&t), 5);
  }
  return arg;
}

static void *start_from_coroutines(void *arg) {
  for (int i = 0; i < 3; i++) {
    pool_of_coroutines[i] = task_of(start_one_each, NULL);
    CHECK_EQ(conc_coro_start(&pool_of_coroutines[i]), 0);
  }
  for (int i = 0; i < 3; i++)
    CHECK_EQ(conc_join(&pool_of_coroutines[i], CONC_FOREVER), 0);
  return arg;
}

TEST(coroutines_start_processes_while_others_wait_for_theirs) {
  NEEDS_FORK;
  conc_task t = task_of(start_from_coroutines, NULL);
  CHECK_EQ(conc_run(&t), 0);
}

static void *join_alone(void *arg) {
  const char *const argv[] = {"sleep", "0.5", NULL};
  conc_popen p;
  memset(&p, 0, sizeof p);
  p.argv = argv;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), 0);
  return arg;
}

TEST(a_loop_that_waits_for_nothing_but_a_process_is_not_deadlocked) {
  conc_task t = task_of(join_alone, NULL);
  CHECK_EQ(conc_run(&t), 0);
}

static void *see_the_other_end(void *arg) {
  conc_task *t = (conc_task *)arg;
  return number(conc_is_alive(t) || conc_join(t, 0) != -ECHILD ||
                conc_kill(t) != -ESRCH);
}

TEST(a_plain_fork_has_no_children_of_its_parents_either) {
  NEEDS_FORK;
  conc_task t = task_of(sleep_on, NULL);
  int status;
  CHECK_EQ(conc_process_start(&t), 0);
  size_t fds = count_fds();
  pid_t pid = fork();
  if (pid == 0) { /* two less: the poller, and the process */
    if (test_has_pidfds() && count_fds() != fds - 2) _exit(98);
    _exit(see_the_other_end(&t) != NULL);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_kill(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
}

/* --- spawn --------------------------------------------------------------- */

typedef struct parcel {
  unsigned char bytes[1000000];
  pid_t parent;
} parcel;

static void *check_parcel(void *arg) {
  parcel *p = (parcel *)arg;
  CHECK_CHILD(conc_current()->size == sizeof *p);
  for (size_t i = 0; i < sizeof p->bytes; i++)
    CHECK_CHILD(p->bytes[i] == (unsigned char)(i * 7));
  CHECK_CHILD(p->parent == getppid());
  CHECK_CHILD(strcmp(conc_name(NULL), "spawned") == 0);
  CHECK_CHILD(conc_pid(conc_current()) == getpid());
  return number(42);
}
CONC_PROCESS_TARGET(check_parcel)

static void *is_null(void *arg) { return number(arg == NULL); }
/* The same by hand. */
__attribute__((constructor)) static void register_is_null(void) {
  static struct conc__target target = {"is_null", is_null, NULL};
  conc_process_register(&target);
}

static void *do_something(void *arg) { return arg; }

/* A child that is a new program: it checks its bytes and that nothing else
   of its parent is there. A target that is not registered, or a program
   without conc_main, is refused. */
TEST(a_spawned_process_is_new_and_gets_its_bytes) {
  NEEDS_SPAWN;
  parcel *p = (parcel *)malloc(sizeof *p);
  conc_task t = task_of(check_parcel, p);
  for (size_t i = 0; i < sizeof p->bytes; i++)
    p->bytes[i] = (unsigned char)(i * 7);
  p->parent = getpid();
  t.size = sizeof *p;
  t.name = "spawned";
  t.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 42);
  free(p);
  t = task_of(is_null, &t);
  t.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 1);
  t = task_of(do_something, NULL); /* not registered */
  t.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&t), -EINVAL);
  const char *program = conc__program;
  conc__program = NULL; /* as without conc_main */
  t = task_of(is_null, NULL);
  t.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&t), -EPERM);
  conc__program = program;
}

/* A write above RLIMIT_FSIZE would end this process by SIGXFSZ. */
TEST(what_is_too_long_for_a_file_is_no_signal_but_an_error) {
  struct rlimit before, limit;
  char *bytes = (char *)calloc(1, 100000);
  conc_task t = task_of(is_null, bytes);
  NEEDS_SPAWN;
  if (test_wrapped("qemu")) SKIP("the limit is the emulator's, too");
  t.start_method = CONC_SPAWN;
  CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  limit = before;
  limit.rlim_cur = 99999;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  t.size = 100000;
  CHECK_EQ(conc_process_start(&t), -EFBIG);
  t.size = 1000;
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 0);
  free(bytes);
}

TEST(a_spawned_process_is_killed_like_another) {
  NEEDS_SPAWN;
  conc_task t = task_of(sleep_on, NULL);
  t.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, 0.01), -ETIMEDOUT);
  CHECK_EQ(conc_kill(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
  CHECK_EQ(conc_exitcode(&t), -SIGKILL);
}

/* --- daemons ------------------------------------------------------------- */

static int method, start_of_daemon, leave;
static conc_task the_daemon;

static void *be_daemon(void *arg) {
  int fd = arg != NULL ? *(int *)arg : start_of_daemon;
  CHECK_CHILD(write(fd, "d", 1) == 1);
  return sleep_on(NULL);
}
CONC_PROCESS_TARGET(be_daemon)

static void *start_daemon(void *arg) {
  the_daemon = task_of(be_daemon, &start_of_daemon);
  the_daemon.size = sizeof start_of_daemon;
  the_daemon.daemon = true;
  the_daemon.start_method = method;
  CHECK_CHILD(conc_process_start(&the_daemon) == 0);
  return arg;
}

/* Its daemon is started by a thread that ends, and has a brother that does
   not. Only the daemon writes to the pipe that the test looks at. */
static void *be_parent(void *arg) {
  conc_task t = task_of(start_daemon, NULL), brother = task_of(sleep_on, NULL);
  CHECK_CHILD(conc_thread_start(&t) == 0 && conc_join(&t, 5) == 0);
  close(start_of_daemon);
  CHECK_CHILD(conc_process_start(&brother) == 0);
  char c;
  CHECK_CHILD(conc_read(leave, &c, 1, CONC_FOREVER) == 1);
  return arg;
}

TEST(a_daemon_lives_as_long_as_its_parent_however_that_ends) {
  NEEDS_SPAWN;
  NEEDS_FORK;
  for (int i = 0; i < 6; i++) {
    int fds[2], leaves[2];
    char c;
    pipe_of(leaves);
    leave = leaves[0];
    method = i % 2 ? CONC_SPAWN : CONC_FORK;
    CHECK(pipe(fds) == 0); /* inherited by the spawned one */
    fcntl(fds[0], F_SETFD, FD_CLOEXEC);
    start_of_daemon = fds[1];
    conc_task t = task_of(be_parent, NULL);
    CHECK_EQ(conc_process_start(&t), 0);
    close(fds[1]);
    CHECK_EQ(conc_read(fds[0], &c, 1, CONC_FOREVER), 1);
    CHECK_EQ(conc_read(fds[0], &c, 1, 0.05), -ETIMEDOUT); /* it lives */
    if (i < 4)
      CHECK_EQ(conc_kill(&t), 0);
    else
      CHECK_EQ(conc_write(leaves[1], "x", 1, CONC_FOREVER), 1);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), i < 4 ? -ECHILD : 0);
    CHECK_EQ(conc_read(fds[0], &c, 1, CONC_FOREVER), 0); /* it has ended */
    close(fds[0]), close(leaves[0]), close(leaves[1]);
  }
}

/* --- nothing is left ----------------------------------------------------- */

static void *compare_fds(void *arg) {
  return number(count_fds() == *(size_t *)arg ? 3 : 4);
}
CONC_PROCESS_TARGET(compare_fds)

static size_t fds_before;


static void *start_many(void *arg) {
  for (int i = 0; i < (int)test_asked("PROCESS_STARTS", 1000) / 8; i++) {
    conc_task t = task_of(compare_fds, &fds_before);
    t.size = sizeof fds_before;
    t.start_method = i % 8 || arg ? CONC_FORK : CONC_SPAWN;
    t.daemon = i % 3 == 0; /* which has one more: the pipe to its parent */
    if (TEST_TSAN && t.start_method == CONC_FORK) continue;
    CHECK_EQ(conc_process_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_EQ(conc_exitcode(&t), t.daemon ? 4 : 3);
  }
  return arg;
}

static void *popen_many(void *arg) {
  for (int i = 0; i < (int)test_asked("PROCESS_STARTS", 1000) / 8; i++) {
    const char *const argv[] = {"sh", "-c", "ls /proc/self/fd | wc -l", NULL};
    conc_task t = task_of(compare_fds, &fds_before);
    conc_output out;
    t.size = sizeof fds_before;
    t.start_method = CONC_SPAWN;
    if (i % 4 == 0) {
      CHECK_EQ(conc_process_start(&t), 0);
      CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
      CHECK_EQ(conc_exitcode(&t), 3);
    } else {
      CHECK_EQ(conc_check_output(argv, &out, CONC_FOREVER), 0);
      CHECK_EQ((size_t)atoi(out.data), fds_before - 2); /* . and .. */
      conc_free(out.data);
    }
  }
  return arg;
}

static void by_eight_threads(conc_fn *fn) {
  conc_task t[8];
  fds_before = count_fds();
  for (int i = 0; i < 8; i++) {
    t[i] = task_of(fn, NULL);
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < 8; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(count_fds(), fds_before);
  CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
}

/* Where the system cannot open descriptors close-on-exec, there is a moment in
   which they are not. At each step of the library in which this thread has
   such ones it has another thread start a program, and waits for that to end,
   but not for ever: the start waits for this thread. */
static __thread bool bears;
static bool bearing;     /* atomic: there is such a moment, or has been one */
static bool program_ran; /* atomic */
static int births, inheritable; /* those of this program itself */

static int count_inheritable(void) {
  int fd, n = 0;
  for (fd = 3; fd < 256; fd++) {
    int flags = fcntl(fd, F_GETFD);
    n += flags >= 0 && (flags & FD_CLOEXEC) == 0;
  }
  return n;
}

static void test_point(void) {
  double end;
  if (!bears || count_inheritable() == inheritable) return;
  bears = false;
  births++;
  end = test_now() + 0.3;
  __atomic_store_n(&bearing, true, __ATOMIC_RELEASE);
  while (!__atomic_load_n(&program_ran, __ATOMIC_ACQUIRE) && test_now() < end)
    sched_yield();
  bears = true;
}

static void *look_at_fds(void *arg) {
  const char *const argv[] = {"sh", "-c", "ls /proc/self/fd | wc -l", NULL};
  conc_output out;
  while (!__atomic_load_n(&bearing, __ATOMIC_ACQUIRE)) sched_yield();
  CHECK_EQ(conc_check_output(argv, &out, CONC_FOREVER), 0);
  *(int *)arg = atoi(out.data);
  conc_free(out.data);
  __atomic_store_n(&program_ran, true, __ATOMIC_RELEASE);
  return NULL;
}

static void open_waker(int fds[2]) { CHECK_EQ(conc__waker_open(fds), 0); }
static void open_pipe(int fds[2]) {
  CHECK_EQ(conc_pipe(&fds[0], &fds[1]), 0);
}
static void open_socket(int fds[2]) {
  fds[0] = conc__socket(AF_UNIX, SOCK_STREAM);
  fds[1] = conc__file_open();
  CHECK(fds[0] >= 0 && fds[1] >= 0);
}

TEST(a_descriptor_that_is_not_close_on_exec_yet_is_inherited_by_no_program) {
  static void (*const open_all[])(int fds[2]) = {open_waker, open_pipe,
                                                 open_socket};
  const char *const argv[] = {"sh", "-c", "ls /proc/self/fd | wc -l", NULL};
  conc_output out;
  int usual, seen, fds[2];
  size_t i;
  if (CONC_HAVE_CLOEXEC) SKIP("they are born close-on-exec");
  inheritable = count_inheritable();
  CHECK_EQ(conc_check_output(argv, &out, CONC_FOREVER), 0);
  usual = atoi(out.data);
  conc_free(out.data);
  for (i = 0; i < sizeof open_all / sizeof *open_all; i++) {
    conc_task t = task_of(look_at_fds, &seen);
    bearing = program_ran = false;
    births = 0;
    CHECK_EQ(conc_thread_start(&t), 0);
    bears = true;
    open_all[i](fds);
    bears = false;
    __atomic_store_n(&bearing, true, __ATOMIC_RELEASE);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK(births > 0);
    CHECK_EQ(seen, usual);
    close(fds[0]);
    close(fds[1]);
  }
}

TEST(a_number_of_processes_of_eight_threads_inherit_nothing_of_each_other) {
  NEEDS_SPAWN;
  by_eight_threads(start_many);
}

TEST(a_number_of_programs_of_eight_threads_inherit_nothing_of_each_other) {
  NEEDS_SPAWN;
  by_eight_threads(popen_many);
}

static void *spin_a_little(void *arg) {
  double end = conc_now() + (double)(uintptr_t)arg * 1e-6;
  while (conc_now() < end) conc_yield_now();
  return number(9);
}

TEST(processes_are_killed_at_any_moment) {
  NEEDS_FORK;
  int killed = 0;
  for (int i = 0; i < 500; i++) {
    conc_task t = task_of(spin_a_little, number(test_random() % 1000));
    double end = conc_now() + (double)(test_random() % 1000) * 1e-6;
    t.daemon = i % 2;
    CHECK_EQ(conc_process_start(&t), 0);
    while (conc_now() < end) sched_yield();
    int rc = conc_kill(&t), joined = conc_join(&t, CONC_FOREVER);
    if (conc_exitcode(&t) == -SIGKILL) {
      CHECK_EQ(joined, -ECHILD);
      CHECK_EQ(rc, 0);
      killed++;
    } else {
      CHECK_EQ(joined, 0);
      CHECK_EQ(conc_exitcode(&t), 9);
    }
  }
  CHECK(killed > 0);
}

/* There may be n descriptors more, from 0 on, for each way to start a
   child. It fails with -EMFILE and leaves no descriptor and no child, until
   there are enough; then it succeeds. */
TEST(a_start_that_fails_for_want_of_descriptors_leaves_nothing) {
  struct rlimit before, few;
  int last = dup(0), done = 0;
  const char *const argv[] = {"true", NULL};
  close(last);
  getrlimit(RLIMIT_NOFILE, &before);
  few = before;
  for (int n = 0; n < 14; n++)
    for (int kind = TEST_TSAN ? 1 : 0; kind < 3; kind++) {
      conc_task t = task_of(do_nothing, NULL);
      conc_popen p;
      int rc;
      memset(&p, 0, sizeof p);
      p.argv = argv;
      p.std_in = p.std_out = p.std_err = CONC_PIPE;
      t.start_method = kind;
      t.daemon = true;
      few.rlim_cur = (rlim_t)(last + n);
      setrlimit(RLIMIT_NOFILE, &few);
      rc = kind < 2 ? conc_process_start(&t) : conc_popen_start(&p);
      setrlimit(RLIMIT_NOFILE, &before);
      if (rc != 0) {
        CHECK_EQ(rc, -EMFILE);
        CHECK_EQ(conc_join(kind < 2 ? &t : &p.task, 0), -EINVAL);
      } else {
        CHECK_EQ(conc_join(kind < 2 ? &t : &p.task, CONC_FOREVER), 0);
        conc_popen_close(&p);
        done |= 1 << kind;
      }
      CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    }
  CHECK_EQ(done, TEST_TSAN ? 6 : 7);
}

/* --- programs ------------------------------------------------------------ */

static conc_popen popen_of(const char *const *argv) {
  conc_popen p;
  memset(&p, 0, sizeof p);
  p.argv = argv;
  return p;
}

/* Runs a script with these streams: what it wrote to the pipes. */
static const char *script[4] = {"sh", "-c", NULL, NULL};
static char stdout_text[256], stderr_text[256];

static int run_script(const char *text, conc_popen *p, const char *input) {
  conc_output out, err;
  int rc;
  script[2] = text;
  p->argv = script;
  CHECK_EQ(conc_popen_start(p), 0);
  rc = conc_communicate(p, input, strlen(input), &out, &err, CONC_FOREVER);
  snprintf(stdout_text, sizeof stdout_text, "%s", out.data ? out.data : "-");
  snprintf(stderr_text, sizeof stderr_text, "%s", err.data ? err.data : "-");
  CHECK(out.data == NULL || strlen(out.data) == out.size);
  conc_free(out.data);
  conc_free(err.data);
  CHECK(p->in == -1 && p->out == -1 && p->err == -1);
  return rc;
}

/* A shell copies its input and writes to both outputs, which are in turn
   pipes, each other, nothing, a descriptor and a file. Each must get its
   own text. */
TEST(a_program_gets_the_streams_that_it_was_given) {
  conc_popen p = popen_of(NULL);
  char file[] = "/tmp/conc-test-XXXXXX";
  int fds[2], fd;
  const char *both = "cat; echo out; echo err >&2; exit 5";

  p.std_in = p.std_out = p.std_err = CONC_PIPE;
  CHECK_EQ(run_script(both, &p, "in\n"), 5);
  CHECK_STR(stdout_text, "in\nout\n");
  CHECK_STR(stderr_text, "err\n");
  CHECK_EQ(run_script("exit 0", &p, ""), 0); /* the same struct again */
  CHECK_STR(stdout_text, "");

  p.std_err = CONC_STDOUT;
  CHECK_EQ(run_script(both, &p, "in\n"), 5);
  CHECK_STR(stdout_text, "in\nout\nerr\n");
  CHECK_STR(stderr_text, "-");

  p.std_in = p.std_out = CONC_DEVNULL;
  p.std_err = CONC_PIPE;
  CHECK_EQ(run_script(both, &p, "ignored"), 5);
  CHECK_STR(stdout_text, "-");
  CHECK_STR(stderr_text, "err\n");

  pipe_of(fds);
  p.std_out = fds[1]; /* close-on-exec here, open there */
  CHECK_EQ(run_script(both, &p, ""), 5);
  close(fds[1]);
  CHECK_STR(drain(fds[0]), "out\n");

  fd = mkstemp(file);
  p.out_file = file;
  p.std_err = CONC_STDOUT;
  CHECK_EQ(run_script(both, &p, ""), 5);
  CHECK_STR(drain(fd), "out\nerr\n");
  p.in_file = file;
  p.out_file = NULL;
  p.std_out = CONC_PIPE;
  p.std_err = CONC_DEVNULL;
  CHECK_EQ(run_script(both, &p, ""), 5);
  CHECK_STR(stdout_text, "out\nerr\nout\n");
  unlink(file);
  NEEDS_SPAWN_ERRORS;
  CHECK_EQ(conc_popen_start(&p), -ENOENT);

  p = popen_of(NULL);
  p.std_out = CONC_STDOUT;
  CHECK_EQ(conc_popen_start(&p), -EINVAL);
  p.argv = script;
  CHECK_EQ(conc_popen_start(&p), -EINVAL);
  conc_popen_close(&p);
  CHECK_EQ(conc_communicate(&p, NULL, 0, NULL, NULL, 0), -EINVAL);
}

#if CONC_HAVE_MEMFD && defined(F_ADD_SEALS)
/* -EPERM is -1, which is what says that a stream is the caller's own. */
TEST(a_file_that_must_not_be_opened_is_an_error) {
  conc_popen p = popen_of(script);
  char file[64];
  int fd = (int)syscall(SYS_memfd_create, "sealed", 2u /* may be sealed */);
  NEEDS_SPAWN_ERRORS;
  if (fd < 0) SKIP("memfd_create is refused here");
  CHECK_EQ(write(fd, "x", 1), 1);
  CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  snprintf(file, sizeof file, "/proc/self/fd/%d", fd);
  p.out_file = file; /* a program's output makes it empty first */
  CHECK_EQ(conc_popen_start(&p), -EPERM);
  close(fd);
}
#endif

/* Whatever of 0, 1, 2 is closed or swapped here, there it is right. */
TEST(streams_may_be_swapped_and_closed_in_the_parent) {
  int saved[3], a[2], b[2];
  pipe_of(a);
  pipe_of(b);
  for (int i = 0; i < 3; i++) saved[i] = fcntl(i, F_DUPFD_CLOEXEC, 10);
  dup2(a[1], 1), dup2(b[1], 2);
  conc_popen p = popen_of(script);
  script[2] = "echo out; echo err >&2";
  p.std_out = 2;
  p.std_err = 1;
  int rc = conc_popen_start(&p);
  rc = rc ? rc : conc_popen_wait(&p, CONC_FOREVER);
  close(0), close(1);
  p.std_in = p.std_out = p.std_err = CONC_PIPE;
  int rc2 = run_script("cat; echo err >&2; exit 2", &p, "in");
  for (int i = 0; i < 3; i++) dup2(saved[i], i), close(saved[i]);
  close(a[1]), close(b[1]);
  CHECK_EQ(rc, 0);
  CHECK_STR(drain(a[0]), "err\n");
  CHECK_STR(drain(b[0]), "out\n");
  CHECK_EQ(rc2, 2);
  CHECK_STR(stdout_text, "in");
  CHECK_STR(stderr_text, "err\n");
}

TEST(a_program_gets_its_environment_directory_and_group) {
  static const char *const env[] = {"COLOUR=red", "PATH=/bin:/usr/bin", NULL};
  conc_popen p = popen_of(NULL);
  char expected[256];
  p.std_out = CONC_PIPE;
  p.env = env;
  p.cwd = "/";
  p.new_group = true;
  CHECK_EQ(run_script("echo $COLOUR; pwd; ps -o pgid= -p $$ 2>/dev/null ||"
                      " echo $$", &p, ""), 0);
  snprintf(expected, sizeof expected, "%d", (int)conc_pid(&p.task));
  CHECK(strncmp(stdout_text, "red\n/\n", 6) == 0);
  CHECK(strstr(stdout_text, expected) != NULL);
  CHECK_STR(conc_name(&p.task), "sh");
  setenv("COLOUR", "blue", 1);
  p = popen_of(NULL);
  p.std_out = CONC_PIPE;
  CHECK_EQ(run_script("echo $COLOUR; ps -o pgid= -p $$ 2>/dev/null || :", &p,
                      ""), 0);
  CHECK(strncmp(stdout_text, "blue\n", 5) == 0);
}

TEST(a_program_that_is_not_there_or_not_executable_fails_to_start) {
  NEEDS_SPAWN;
  const char *const missing[] = {"/no/such/program", NULL};
  const char *const nowhere[] = {"no-such-program-in-path", NULL};
  const char *const folder[] = {"/tmp", NULL};
  const char *const data[] = {"/etc/passwd", NULL};
  conc_output out;
  CHECK_EQ(conc_call(missing, CONC_FOREVER), -ENOENT);
  CHECK_EQ(conc_call(nowhere, CONC_FOREVER), -ENOENT);
  CHECK_EQ(conc_call(folder, CONC_FOREVER), -EACCES);
  CHECK_EQ(conc_call(data, CONC_FOREVER), -EACCES);
  CHECK_EQ(conc_check_output(missing, &out, CONC_FOREVER), -ENOENT);
  CHECK(out.data == NULL);
  conc_popen p = popen_of(script);
  script[2] = "exit 0";
  p.std_in = p.std_out = p.std_err = CONC_PIPE;
  p.cwd = "/no/such/directory";
  CHECK_EQ(conc_popen_start(&p), -ENOENT);
  CHECK(p.in == -1 && p.out == -1 && p.err == -1);
  CHECK_EQ(conc_popen_wait(&p, 0), -EINVAL);
}

/* Where the reaper has begun to wait for a child that was not made. */
TEST(a_start_that_fails_does_not_disturb_the_next_one) {
  NEEDS_SPAWN;
  const char *const missing[] = {"/no/such/program", NULL};
  const char *const argv[] = {"true", NULL};
  for (int i = 0; i < 100; i++) {
    CHECK_EQ(conc_call(missing, CONC_FOREVER), -ENOENT);
    CHECK_EQ(conc_call(argv, CONC_FOREVER), 0);
  }
}

TEST(calls_tell_exit_codes_and_signals) {
  conc_output out;
  script[2] = "echo hello; exit 3";
  CHECK_EQ(conc_check_output(script, &out, CONC_FOREVER), 3);
  CHECK_STR(out.data, "hello\n");
  CHECK_EQ(out.size, 6);
  conc_free(out.data);
  script[2] = "exit 4";
  CHECK_EQ(conc_call(script, CONC_FOREVER), 4);
  script[2] = "kill -9 $$";
  CHECK_EQ(conc_call(script, CONC_FOREVER), -ECHILD);
  conc_popen p = popen_of(script);
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), -ECHILD);
  CHECK_EQ(conc_popen_poll(&p), -ECHILD);
  CHECK_EQ(conc_exitcode(&p.task), -SIGKILL);
  script[2] = "read x; exit 6";
  p.std_in = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_popen_start(&p), -EBUSY);
  CHECK_EQ(conc_popen_poll(&p), -ETIMEDOUT);
  CHECK_EQ(conc_write(p.in, "x\n", 2, CONC_FOREVER), 2);
  CHECK_EQ(conc_join(&p.task, CONC_FOREVER), 0);
  CHECK_EQ(conc_popen_poll(&p), 6);
  conc_popen_close(&p);
}

static size_t ticks;

static void *tick(void *arg) {
  while (conc_sleep(0.0005) == 0) ticks++;
  return arg;
}

static void *cat_megabytes(void *arg) {
  const char *const argv[] = {"cat", NULL};
  size_t n = (size_t)(int)test_asked("PROCESS_MIB", 16) << 20;
  unsigned char *input = (unsigned char *)malloc(n);
  conc_popen p = popen_of(argv);
  conc_task ticker = task_of(tick, NULL);
  conc_output out, err;
  bool in_loop = conc_coro_start(&ticker) == 0;
  ticks = 0;
  for (size_t i = 0; i < n; i++) input[i] = (unsigned char)(i * 13 >> 4);
  p.std_in = p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_communicate(&p, input, n, &out, &err, CONC_FOREVER), 0);
  CHECK_EQ(out.size, n);
  CHECK(memcmp(out.data, input, n) == 0 && out.data[n] == 0);
  CHECK(err.data == NULL && err.size == 0);
  conc_free(out.data);
  free(input);
  if (in_loop) {
    CHECK(ticks > 0); /* only the coroutine has waited */
    CHECK_EQ(conc_cancel(&ticker), 0);
    CHECK_EQ(conc_join(&ticker, CONC_FOREVER), -ECANCELED);
  }
  return arg;
}

TEST(megabytes_go_both_ways_at_once) { run_in_both(cat_megabytes); }

#if CONC_HAVE_PIPE_SIZE
/* Linux's own limits are not ours. */
static bool may_widen(void) {
  int fds[2];
  pipe_of(fds);
  bool may = fcntl(fds[0], F_SETPIPE_SZ, CONC__PIPE_WIDE) >= 0;
  close(fds[0]);
  close(fds[1]);
  return may;
}

static int width(int fd) { return fcntl(fd, F_GETPIPE_SZ); }

static void await_bytes(int fd, int n) {
  int there = 0;
  while (ioctl(fd, FIONREAD, &there) == 0 && there < n)
    CHECK_EQ(conc_sleep(0.001), 0);
}

static void *widen(void *arg) {
  const char *const much[] = {"head", "-c", "1000000", "/dev/zero", NULL};
  const char *const cat[] = {"cat", NULL};
  static char bytes[1000000];
  char name[40];
  conc_popen p = popen_of(much);
  conc_output out;
  size_t n = 0;
  ssize_t got;
  int fd;
  p.std_out = CONC_PIPE; /* by conc_read */
  CHECK_EQ(conc_popen_start(&p), 0);
  int narrow = width(p.out);
  await_bytes(p.out, narrow / 2);
  while ((got = conc_read(p.out, bytes, sizeof bytes, CONC_FOREVER)) > 0)
    n += (size_t)got;
  CHECK_EQ(n, sizeof bytes);
  CHECK_EQ(width(p.out), CONC__PIPE_WIDE);
  CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), 0);
  conc_popen_close(&p);
  CHECK_EQ(conc_popen_start(&p), 0); /* by conc_communicate */
  await_bytes(p.out, narrow / 2);
  fd = dup(p.out);
  CHECK_EQ(conc_communicate(&p, NULL, 0, &out, NULL, CONC_FOREVER), 0);
  CHECK_EQ(out.size, sizeof bytes);
  CHECK_EQ(width(fd), CONC__PIPE_WIDE);
  close(fd);
  conc_free(out.data);
  p = popen_of(cat); /* both ways */
  p.std_in = p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  snprintf(name, sizeof name, "/proc/self/fd/%d", p.in);
  fd = open(name, O_RDONLY | O_CLOEXEC); /* no writer: cat awaits the end */
  CHECK_EQ(conc_communicate(&p, bytes, n, &out, NULL, CONC_FOREVER), 0);
  CHECK_EQ(out.size, sizeof bytes);
  CHECK_EQ(width(fd), CONC__PIPE_WIDE);
  close(fd);
  conc_free(out.data);
  p = popen_of(cat); /* what is not full stays as it is */
  p.std_in = p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_write(p.in, bytes, 4096, CONC_FOREVER), 4096);
  CHECK_EQ(conc_read_exactly(p.out, bytes, 4096, CONC_FOREVER), 4096);
  CHECK_EQ(width(p.in), narrow);
  CHECK_EQ(width(p.out), narrow);
  conc_popen_close(&p);
  CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), 0);
  return arg;
}

static void *write_all_at_once(void *arg) {
  static char bytes[1000000];
  int fds[2];
  pipe_of(fds);
  conc__set_nonblocking(fds[1]);
  CHECK_EQ(conc_write(fds[1], bytes, sizeof bytes, 0), sizeof bytes);
  CHECK_EQ(width(fds[0]), CONC__PIPE_WIDE);
  close(fds[0]);
  close(fds[1]);
  return arg;
}

TEST(a_pipe_that_is_full_gets_more_room) {
  if (!may_widen()) SKIP("the user has no room left for a wide pipe");
  run_in_both(widen);
  run_in_both(write_all_at_once);
}
#endif

static void *be_flooded(void *arg) {
  conc_popen p = popen_of(script);
  conc_output out, err;
  script[2] = "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2;"
              "wait";
  p.std_in = p.std_out = p.std_err = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_communicate(&p, "unread", 6, &out, &err, CONC_FOREVER), 0);
  CHECK_EQ(out.size, 3000000);
  CHECK_EQ(err.size, 2000000);
  conc_free(out.data);
  conc_free(err.data);
  CHECK_EQ(conc_popen_start(&p), 0); /* and nobody wants it */
  CHECK_EQ(conc_communicate(&p, "", 0, NULL, NULL, CONC_FOREVER), 0);
  return arg;
}

TEST(a_program_that_floods_both_streams_is_drained) {
  run_in_both(be_flooded);
}

static void *feed_the_deaf(void *arg) {
  static char much[1 << 20];
  conc_popen p = popen_of(script);
  script[2] = "exec 0</dev/null; exit 7";
  p.std_in = CONC_PIPE;
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(conc_popen_start(&p), 0);
    CHECK_EQ(conc_communicate(&p, much, sizeof much, NULL, NULL,
                              CONC_FOREVER), 7);
  }
  return arg;
}

TEST(a_program_that_does_not_read_raises_no_signal) {
  run_in_both(feed_the_deaf);
}

static void *run_late(void *arg) {
  conc_popen p = popen_of(script);
  conc_output out;
  /* Not in time; the rest comes with the next call. */
  script[2] = "read x; echo $x; read y; echo $y";
  p.std_in = p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_write(p.in, "a\n", 2, CONC_FOREVER), 2);
  char c;
  CHECK_EQ(conc_read(p.out, &c, 1, CONC_FOREVER), 1);
  int in = p.in; /* so it stays open */
  p.in = -1;
  CHECK_EQ(conc_communicate(&p, "b\n", 2, &out, NULL, 0.02), -ETIMEDOUT);
  CHECK_STR(out.data, "\n");
  conc_free(out.data);
  CHECK_EQ(conc_popen_wait(&p, 0.01), -ETIMEDOUT);
  CHECK(conc_is_alive(&p.task));
  p.in = in;
  CHECK_EQ(conc_communicate(&p, "b\n", 2, &out, NULL, CONC_FOREVER), 0);
  CHECK_STR(out.data, "b\n");
  conc_free(out.data);
  /* Killed, with its children: they hold the pipe. */
  script[2] = "sleep 1000 & sleep 1000; exit 0";
  p.std_in = 0;
  p.new_group = p.kill_on_timeout = true;
  int hold[2];
  pipe_of(hold);
  p.std_in = hold[0];
  p.std_err = hold[1];
  CHECK_EQ(conc_popen_start(&p), 0);
  close(hold[1]);
  CHECK_EQ(conc_communicate(&p, NULL, 0, &out, NULL, 0.05), -ETIMEDOUT);
  conc_free(out.data);
  CHECK_EQ(conc_exitcode(&p.task), -SIGKILL);
  CHECK_EQ(conc_read(hold[0], &c, 1, CONC_FOREVER), 0);
  /* Only they are left. */
  close(hold[0]);
  pipe_of(hold);
  p.std_in = 0;
  p.std_err = hold[1];
  script[2] = "sleep 1000 & exit 0";
  CHECK_EQ(conc_popen_start(&p), 0);
  close(hold[1]);
  CHECK_EQ(conc_join(&p.task, CONC_FOREVER), 0);
  CHECK_EQ(conc_communicate(&p, NULL, 0, NULL, NULL, 0.05), 0);
  CHECK_EQ(conc_exitcode(&p.task), 0);
  CHECK_EQ(conc_read(hold[0], &c, 1, CONC_FOREVER), 0);
  close(hold[0]);
  script[2] = "sleep 1000";
  CHECK_EQ(conc_call(script, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_check_output(script, &out, 0.02), -ETIMEDOUT);
  conc_free(out.data);
  return arg;
}

TEST(what_is_not_in_time_goes_on_or_is_killed_with_its_group) {
  run_in_both(run_late);
}

static void *terminate_a_program(void *arg) {
  static const int sigterm = SIGTERM;
  const char *const argv[] = {"sleep", "1000", NULL};
  conc_popen p;
  memset(&p, 0, sizeof p);
  p.argv = argv;
  CHECK_EQ(conc_block_signals(&sigterm, 1), 0);
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_terminate(&p.task), 0);
  if (conc_popen_wait(&p, 20) == -ETIMEDOUT) conc_kill(&p.task);
  conc_join(&p.task, CONC_FOREVER);
  CHECK_EQ(conc_exitcode(&p.task), -SIGTERM);
  return arg;
}

TEST(a_program_blocks_no_signal_though_its_parent_does) {
  run_in_both(terminate_a_program);
}

static void *call_for_ever(void *arg) {
  const char *const argv[] = {"sleep", "1000", NULL};
  conc_output out;
  int rc;
  conc_event_set((conc_event *)arg);
  rc = conc_check_output(argv, &out, CONC_FOREVER);
  conc_free(out.data);
  return number((size_t)-rc);
}

static void *cancel_a_call(void *arg) {
  conc_event begun;
  conc_task t = task_of(call_for_ever, &begun);
  memset(&begun, 0, sizeof begun);
  if (conc_coro_start(&t) != 0) CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_event_wait(&begun, CONC_FOREVER), 0);
  conc_sleep((double)(test_random() % 5000) * 1e-6);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK_EQ((uintptr_t)conc_result(&t), ECANCELED);
  return arg;
}

TEST(a_call_that_is_cancelled_leaves_no_program) {
  for (int i = 0; i < 10; i++) run_in_both(cancel_a_call);
}

static size_t count_threads(void) {
  DIR *dir = opendir("/proc/self/task");
  size_t n = 0;
  while (dir != NULL && readdir(dir)) n++;
  if (dir != NULL) closedir(dir);
  return n;
}

TEST(a_call_needs_no_other_thread) {
  const char *const argv[] = {"true", NULL};
  if (!test_has_pidfds()) SKIP("without pidfds each child has a thread");
  size_t before = count_threads();
  CHECK_EQ(conc_call(argv, CONC_FOREVER), 0);
  CHECK_EQ(count_threads(), before);
}

/* In time, just not, or just so: whoever reaps it, it is gone afterwards. */
static void *call_briefly(void *arg) {
  const char *const argv[] = {"true", NULL};
  unsigned seed = (unsigned)(uintptr_t)arg;
  for (int i = 0; i < 50; i++) {
    int rc = conc_call(argv, rand_r(&seed) % 3000 * 1e-6);
    CHECK(rc == 0 || rc == -ETIMEDOUT);
    CHECK_EQ(conc_call(argv, CONC_FOREVER), 0);
  }
  return NULL;
}

TEST(calls_of_many_threads_end_in_time_or_not_while_others_fork) {
  conc_task t[4];
  for (size_t i = 0; i < 4; i++) {
    t[i] = task_of(call_briefly, number((size_t)(test_seed % 1000) + i));
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < 50 && !TEST_TSAN; i++) {
    conc_task p = task_of(do_nothing, NULL);
    CHECK_EQ(conc_process_start(&p), 0);
    CHECK_EQ(conc_join(&p, CONC_FOREVER), 0);
  }
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
}

int main(int argc, char **argv) {
  conc_main(argc, argv);
  return test_main(argc, argv);
}
