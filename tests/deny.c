/* deny.c: system calls that are refused, as by an older kernel or a sandbox:
 * then a plainer way stands in for them. Also a launcher, which runs a program
 * without a call:
 *   deny CALL ERRNO PROGRAM [ARGUMENT...]   such as: deny eventfd2 EPERM core
 *   deny docker EPERM PROGRAM               without what Docker denies
 *   deny linux-3.10 ENOSYS PROGRAM          without what came after that
 *   deny --calls                            their names */
#include "inside.h"
#include "refuse.h"
#include "tasks.h"

#include <signal.h>
#include <sys/resource.h>

#if TEST_CAN_REFUSE

/* Those that the library can do without: its table in >>platform, and those
   below that. What has one name is refused at once. */
static const struct call {
  const char *name;
  refused what;
} calls[] = {
    {"memfd_create", {SYS_memfd_create, -1, 0}},
    {"getrandom", {SYS_getrandom, -1, 0}},
    {"eventfd2", {SYS_eventfd2, -1, 0}},
    {"accept4", {SYS_accept4, -1, 0}},
    {"epoll_create1", {SYS_epoll_create1, -1, 0}},
#ifdef SYS_epoll_pwait2
    {"epoll_pwait2", {SYS_epoll_pwait2, -1, 0}},
#endif
    {"signalfd4", {SYS_signalfd4, -1, 0}},
#ifdef SYS_pidfd_open
    {"pidfd_open", {SYS_pidfd_open, -1, 0}},
    {"pidfd_send_signal", {SYS_pidfd_send_signal, -1, 0}},
#endif
#ifdef SYS_close_range
    {"close_range", {SYS_close_range, -1, 0}},
#endif
    {"membarrier", {SYS_membarrier, -1, 0}},
    {"madvise", {SYS_madvise, -1, 0}},
    {"MADV_GUARD_INSTALL", {SYS_madvise, 2, 102}},
    {"MADV_DONTFORK", {SYS_madvise, 2, 10}},
    {"sched_getaffinity", {SYS_sched_getaffinity, -1, 0}},
    {"sched_yield", {SYS_sched_yield, -1, 0}},
    {"flock", {SYS_flock, -1, 0}},
    {"fallocate", {SYS_fallocate, -1, 0}},
    {"fstatfs", {SYS_fstatfs, -1, 0}},
    {"prlimit64", {SYS_prlimit64, -1, 0}},
    {"prctl", {SYS_prctl, -1, 0}},
    {"sigaltstack", {SYS_sigaltstack, -1, 0}},
    {"F_OFD_SETLK", {SYS_fcntl, 1, 36}}, /* GETLK */
    {"F_OFD_SETLK", {SYS_fcntl, 1, 37}},
    {"F_OFD_SETLK", {SYS_fcntl, 1, 38}}, /* SETLKW */
    {"F_GET_SEALS", {SYS_fcntl, 1, 1034}},
    {"F_SETPIPE_SZ", {SYS_fcntl, 1, 1031}},
    {"F_SETPIPE_SZ", {SYS_fcntl, 1, 1032}}, /* F_GETPIPE_SZ */
    {"F_SETSIG", {SYS_fcntl, 1, 10}},
#ifdef SYS_getsockopt
    {"SO_PEERCRED", {SYS_getsockopt, 2, 17}},
    {"TCP_NODELAY", {SYS_setsockopt, 1, 6}}, /* all of IPPROTO_TCP */
#endif
#ifdef SYS_clone3 /* only as of an older kernel: see can_be_denied */
    {"clone3", {SYS_clone3, -1, 0}},
#endif
};
enum { CALLS = sizeof calls / sizeof *calls };

/* Whether the i-th row is the first one of its name. */
static bool is_first(size_t i) {
  return i == 0 || strcmp(calls[i].name, calls[i - 1].name) != 0;
}

/* libc itself makes neither a thread nor a process where clone3 is refused by
   any errno but that of an older kernel. */
static bool can_be_denied(const char *name, int error) {
  return error == ENOSYS || strcmp(name, "clone3") != 0;
}

/* What has that name; or all of them. How many it is. */
static size_t chosen(const char *name, int error, refused *out) {
  size_t n = 0, i;
  for (i = 0; i < CALLS; i++)
    if (name == NULL ? can_be_denied(calls[i].name, error)
                     : strcmp(name, calls[i].name) == 0)
      out[n++] = calls[i].what;
  return n;
}

/* What Docker's and Podman's usual profiles deny to a program without
 * privileges, by their documentation, as far as this system has a number. */
static const long docker[] = {
    SYS_acct, SYS_add_key, SYS_clock_adjtime, SYS_clock_settime,
    SYS_delete_module, SYS_init_module, SYS_kexec_load, SYS_keyctl,
    SYS_mount, SYS_move_pages, SYS_mbind, SYS_get_mempolicy,
    SYS_set_mempolicy, SYS_perf_event_open, SYS_personality,
    SYS_pivot_root, SYS_ptrace, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_quotactl, SYS_reboot, SYS_request_key,
    SYS_setns, SYS_settimeofday, SYS_swapon, SYS_swapoff, SYS_umount2,
    SYS_unshare, SYS_vhangup, SYS_name_to_handle_at, SYS_open_by_handle_at,
    SYS_fanotify_init, SYS_lookup_dcookie,
#ifdef SYS_bpf
    SYS_bpf,
#endif
#ifdef SYS_userfaultfd
    SYS_userfaultfd,
#endif
#ifdef SYS_io_uring_setup
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
#endif
#ifdef SYS_kcmp
    SYS_kcmp,
#endif
};

/* --- what a program does that meets all of them --- */

static double cpu(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void *echo_once(void *arg) {
  int fd = conc_accept(*(int *)arg, 10);
  char c;
  CHECK(fd >= 0);
  CHECK_EQ(conc_read(fd, &c, 1, 10), 1);
  CHECK_EQ(conc_write(fd, &c, 1, 10), 1);
  CHECK_EQ(conc_close(fd), 0);
  return arg;
}

/* Sockets, time limits and signals in a loop. A wait costs no CPU. */
static void *in_a_loop(void *arg) {
  int listener = conc_listen("127.0.0.1:0"), signals[1] = {SIGUSR1}, fd;
  conc_task server;
  char address[64], c = 'x';
  double used;
  CHECK(listener >= 0);
  CHECK(conc_address(listener, address, sizeof address) > 0);
  start(conc_coro_start, &server, echo_once, &listener);
  fd = conc_connect(address, 10);
  CHECK(fd >= 0);
  CHECK_EQ(conc_write(fd, &c, 1, 10), 1);
  CHECK_EQ(conc_read(fd, &c, 1, 10), 1);
  used = cpu();
  CHECK_EQ(conc_read(fd, &c, 1, 10), 0); /* the other one has closed it */
  CHECK_EQ(conc_join(&server, 10), 0);
  CHECK_EQ(conc_sleep(0.1), 0);
  CHECK(cpu() - used < 0.05);
  CHECK_EQ(conc_close(fd), 0);
  CHECK_EQ(conc_close(listener), 0);
  kill(getpid(), SIGUSR1);
  CHECK_EQ(conc_wait_signal(signals, 1, 10), SIGUSR1);
  CHECK_EQ(conc_wait_signal(signals, 1, 0.02), -ETIMEDOUT);
  return arg;
}

static conc_queue *shared;
static void *put_one(void *arg) {
  int n = 7;
  CHECK_EQ(conc_put(shared, &n, sizeof n, 10), 0);
  return arg;
}
static void *square(void *arg) {
  int n = *(int *)arg;
  *(int *)arg = n * n;
  return NULL;
}

/* Processes, what they share, and a pool of them. */
static void processes(void) {
  conc_queue_opts o;
  conc_task p;
  conc_pool pool;
  int numbers[3] = {1, 2, 3}, n;
  memset(&o, 0, sizeof o);
  o.shared = true;
  shared = conc_queue_new(&o);
  CHECK(shared != NULL);
  start(conc_process_start, &p, put_one, NULL);
  CHECK_EQ(conc_get(shared, &n, sizeof n, 10), (int)sizeof n);
  CHECK_EQ(n, 7);
  CHECK_EQ(conc_join(&p, 10), 0);
  conc_queue_free(shared);
  memset(&pool, 0, sizeof pool);
  pool.workers = 2;
  CHECK_EQ(conc_pool_start(&pool), 0);
  CHECK_EQ(conc_pool_map(&pool, square, numbers, sizeof *numbers, 3), 0);
  CHECK_EQ(numbers[0] + numbers[1] + numbers[2], 1 + 4 + 9);
  CHECK_EQ(conc_pool_close(&pool), 0);
  CHECK_EQ(conc_pool_join(&pool, 10), 0);
}

/* A server, its key and a client. */
static void network(void) {
  conc_manager server, client;
  conc_queue *q = conc_queue_new(NULL), *proxy;
  int n = 5;
  memset(&server, 0, sizeof server);
  memset(&client, 0, sizeof client);
  server.address = "127.0.0.1:0";
  server.authkey = client.authkey = "abc";
  CHECK(q != NULL);
  CHECK_EQ(conc_manager_register_queue(&server, "q", q), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  client.address = conc_manager_address(&server);
  CHECK_EQ(conc_manager_connect(&client, 10), 0);
  proxy = conc_manager_get(&client, "q");
  CHECK(proxy != NULL);
  CHECK_EQ(conc_put(proxy, &n, sizeof n, 10), 0);
  CHECK_EQ(conc_get(proxy, &n, sizeof n, 10), (int)sizeof n);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  conc_queue_free(q);
}

/* All of it in a child that the calls are denied to; without any: all that
   came after Linux 3.10. */
static void child_without(const refused *some, size_t n, int error) {
  int signals[1] = {SIGUSR1};
  if (!(n > 0 ? can_refuse_some(some, n, error) : can_be_linux_3_10()))
    _exit(77);
  CHECK_EQ(conc_block_signals(signals, 1), 0);
  run(in_a_loop, NULL);
  processes();
  network();
  _exit(0);
}

static void end_of(pid_t pid, const char *name, int error) {
  int status;
  CHECK(waitpid(pid, &status, 0) == pid);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) SKIP("no seccomp here");
  if (status != 0) test_fail(__FILE__, __LINE__, "%s: %d", name, error);
}

static void without(const refused *some, size_t n, int error,
                    const char *name) {
  pid_t pid = (fflush(NULL), fork());
  if (pid == 0) child_without(some, n, error);
  end_of(pid, name, error);
}

/* Some of them at a time, for most of it is waits. */
static void without_each(int error) {
  enum { AT_A_TIME = 6 };
  const char *names[AT_A_TIME];
  pid_t children[AT_A_TIME];
  size_t i, k, n = 0;
  for (i = 0; i <= CALLS; i++) {
    if (n == AT_A_TIME || i == CALLS) {
      for (k = 0; k < n; k++) end_of(children[k], names[k], error);
      n = 0;
    }
    if (i == CALLS || !is_first(i) || !can_be_denied(calls[i].name, error))
      continue;
    names[n] = calls[i].name;
    children[n] = (fflush(NULL), fork());
    if (children[n] == 0) {
      refused some[CALLS];
      child_without(some, chosen(names[n], error, some), error);
    }
    CHECK(children[n++] > 0);
  }
}

TEST(an_older_kernel_has_fewer_calls) {
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without_each(ENOSYS);
}
TEST(a_sandbox_denies_calls) {
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without_each(EPERM);
}
TEST(a_sandbox_denies_calls_by_another_error) {
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without_each(EACCES);
}
TEST(a_sandbox_does_not_like_the_arguments_of_calls) {
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without_each(EINVAL);
}
TEST(a_kernel_has_none_of_these_calls) {
  refused all[CALLS];
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without(all, chosen(NULL, ENOSYS, all), ENOSYS, "all");
}
TEST(a_sandbox_denies_all_of_these_calls) {
  refused all[CALLS];
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without(all, chosen(NULL, EPERM, all), EPERM, "all");
}
/* What is newer fails in this child; what is as old does not. */
static void is_linux_3_10(void) {
  static const int newer[] = {8, 18, 25, 102}; /* MADV_FREE, WIPEONFORK,
                                                  COLLAPSE, GUARD_INSTALL */
  struct flock lock;
  size_t size = (size_t)sysconf(_SC_PAGESIZE), i;
  void *page = mmap(NULL, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK_CHILD(page != MAP_FAILED);
  for (i = 0; i < sizeof newer / sizeof *newer; i++)
    CHECK_CHILD(madvise(page, size, newer[i]) < 0 && errno == EINVAL);
  CHECK_CHILD(madvise(page, size, MADV_DONTFORK) == 0);
  CHECK_CHILD(syscall(SYS_memfd_create, "x", 0) < 0 && errno == ENOSYS);
  memset(&lock, 0, sizeof lock);
  lock.l_type = F_WRLCK;
  for (i = 36; i <= 38; i++) /* F_OFD_GETLK, SETLK, SETLKW */
    CHECK_CHILD(fcntl(0, (int)i, &lock) < 0 && errno == EINVAL);
  CHECK_CHILD(fcntl(0, 1034) < 0 && errno == EINVAL); /* F_GET_SEALS */
  CHECK_CHILD(fcntl(0, F_GETFD) >= 0);
}
TEST(linux_3_10_does_not_know_what_is_newer) {
  int status;
  pid_t pid;
  NEEDS_FORK;
  NEEDS_REFUSAL;
  pid = (fflush(NULL), fork());
  if (pid == 0) {
    if (!can_be_linux_3_10()) _exit(77);
    is_linux_3_10();
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
    SKIP("no system call can be refused here");
  CHECK_EQ(status, 0);
}
TEST(a_kernel_is_as_old_as_linux_3_10) {
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without(NULL, 0, ENOSYS, "Linux 3.10");
}
static size_t denied_by_docker(refused *out) {
  size_t n = sizeof docker / sizeof *docker, i;
  for (i = 0; i < n; i++) {
    out[i].call = docker[i];
    out[i].argument = -1;
    out[i].value = 0;
  }
  return n;
}
TEST(the_usual_profile_of_containers_denies_nothing_that_is_needed) {
  refused some[REFUSED_MOST];
  NEEDS_FORK;
  NEEDS_REFUSAL;
  without(some, denied_by_docker(some), EPERM, "docker");
}

static int launch(char **argv) {
  static const struct {
    const char *name;
    int number;
  } errors[] = {
      {"ENOSYS", ENOSYS}, {"EPERM", EPERM}, {"EACCES", EACCES},
      {"EINVAL", EINVAL},
  };
  refused some[REFUSED_MOST];
  size_t n = 0, i;
  int error = 0, old = strcmp(argv[1], "linux-3.10") == 0;
  for (i = 0; i < sizeof errors / sizeof *errors; i++)
    if (strcmp(argv[2], errors[i].name) == 0) error = errors[i].number;
  if (strcmp(argv[1], "docker") == 0) n = denied_by_docker(some);
  else n = chosen(argv[1], error, some);
  if ((n == 0 && !old) || error == 0) return 2;
  if (!(old ? can_be_linux_3_10() : can_refuse_some(some, n, error))) return 2;
  execv(argv[3], argv + 3);
  return 2;
}

int main(int argc, char **argv) {
  size_t i;
  if (argc == 2 && strcmp(argv[1], "--calls") == 0) {
    for (i = 0; i < CALLS; i++)
      if (is_first(i)) puts(calls[i].name);
  } else if (argc > 3 && strncmp(argv[1], "--", 2) != 0) {
    return launch(argv);
  } else {
    return test_main(argc, argv);
  }
  return 0;
}

#else

TEST(calls_are_denied) { SKIP("no seccomp here"); }
TEST_MAIN

#endif
