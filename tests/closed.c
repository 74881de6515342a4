/* The library's own descriptors: none is one of stdio's; a program may close
   them all, or put its own in their places; a stack has a guard that a large
   frame does not reach over, and costs one page. */
#include "inside.h"
#include "tasks.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

/* --- without stdio --- */

static void *waits_for_fd(void *fd) { /* which opens the thread's waker */
  CHECK_EQ(conc_wait_fd(*(int *)fd, CONC_READ, 1e-3), -ETIMEDOUT);
  for (int i = 0; i < 3; i++) CHECK(fcntl(i, F_GETFD) < 0);
  return NULL;
}
static void *makes_all(void *arg) {
  int signals[] = {SIGUSR1};
  char address[64];
  int listener = conc_listen("127.0.0.1:0");
  int client, server, datagram;
  conc_task t;
  CHECK_EQ(conc_block_signals(signals, 1), 0);
  CHECK(listener > 2 && conc_address(listener, address, 64) > 0);
  client = conc_connect(address, 5);
  server = conc_accept(listener, 5);
  datagram = conc_datagram_open("127.0.0.1:0");
  CHECK(client > 2 && server > 2 && datagram > 2);
  CHECK_EQ(conc_wait_signal(signals, 1, 1e-3), -ETIMEDOUT);
  CHECK_EQ(conc_wait_fd(server, CONC_READ, 1e-3), -ETIMEDOUT);
  start(conc_thread_start, &t, waits_for_fd, &server);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  for (int fd = 0; fd < 3; fd++) CHECK(fcntl(fd, F_GETFD) < 0);
  CHECK(conc_close(client) == 0 && conc_close(server) == 0);
  CHECK(conc_close(listener) == 0 && conc_close(datagram) == 0);
  return arg;
}
TEST(no_descriptor_is_one_of_stdio) {
  int keep[3];
  for (int fd = 0; fd < 3; fd++) keep[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 10);
  for (int fd = 0; fd < 3; fd++) close(fd);
  makes_all(NULL);
  run(makes_all, NULL);
  for (int fd = 0; fd < 3; fd++) {
    CHECK_EQ(dup2(keep[fd], fd), fd);
    close(keep[fd]);
  }
}

/* --- closed by the program --- */

static int inherited[64]; /* what the test was started with */
static void note_inherited(void) {
  for (int fd = 0; fd < 64; fd++) inherited[fd] = fcntl(fd, F_GETFD) >= 0;
}
static void close_all(void) {
  for (int fd = 3; fd < 64; fd++)
    if (!inherited[fd]) close(fd);
}
static double cpu(void) { return (double)clock() / CLOCKS_PER_SEC; }
static void *sets_later(void *event) {
  usleep(2000);
  conc_event_set((conc_event *)event);
  return NULL;
}
static void *writes_later(void *fd) {
  usleep(2000);
  CHECK_EQ(write(*(int *)fd, "x", 1), 1);
  return NULL;
}
static void everything_works(void) {
  conc_event event = {0};
  conc_task t;
  int fds[2];
  char byte;
  CHECK_EQ(conc_sleep(1e-3), 0);
  start(conc_thread_start, &t, sets_later, &event);
  CHECK_EQ(conc_event_wait(&event, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  start(conc_thread_start, &t, writes_later, &fds[1]);
  CHECK_EQ(conc_read(fds[0], &byte, 1, CONC_FOREVER), 1);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(conc_close(fds[0]) == 0 && close(fds[1]) == 0);
}
/* `arg`: a file takes the place of each descriptor that was closed. */
static void *closes_all(void *arg) {
  int used[64], fd;
  double before;
  everything_works();
  for (fd = 0; fd < 64; fd++)
    used[fd] = !inherited[fd] && fcntl(fd, F_GETFD) >= 0;
  close_all();
  if (arg != NULL)
    for (fd = 3; fd < 64; fd++)
      if (used[fd]) {
        int file = open("/dev/zero", O_RDWR);
        if (file != fd) CHECK(dup2(file, fd) == fd && close(file) == 0);
      }
  before = cpu();
  CHECK_EQ(conc_sleep(0.05), 0);
  CHECK(cpu() - before < 0.04); /* it sleeps */
  everything_works();
  if (arg != NULL)
    for (fd = 3; fd < 64; fd++)
      if (used[fd]) *(char *)arg = (char)fd; /* the last of the files */
  return NULL;
}
TEST(a_loop_goes_on_when_its_descriptors_were_closed) {
  struct stat st;
  char fd = 0;
  note_inherited();
  run(closes_all, NULL);
  run(closes_all, &fd);
  /* The program's files are still open. */
  CHECK(fd > 2 && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode));
  close_all();
}

/* A thread that polls, and is cancelled. */
static int stage;
static void *polls(void *arg) {
  int fds[2];
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(conc_wait_fd(fds[0], CONC_READ, 1e-3), -ETIMEDOUT);
  if (conc__this.has_waker) {
    close(conc__this.waker[0]);
    if (arg != NULL && open("/dev/zero", O_RDONLY) < 0) TEST_FAIL("open");
  }
  STORE(stage, 1);
  CHECK_EQ(conc_wait_fd(fds[0], CONC_READ, 0.05), -ETIMEDOUT);
  close(fds[0]);
  close(fds[1]);
  return NULL;
}
TEST(a_thread_polls_on_when_its_waker_was_closed) {
  conc_task t;
  note_inherited();
  for (int i = 0; i < 2; i++) {
    double before = cpu();
    start(conc_thread_start, &t, polls, i > 0 ? &t : NULL);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK(cpu() - before < 0.04);
    close_all();
  }
}

/* --- had by a child, too --- */

/* A child that is forked while a dead server's file is replaced has the lock's
   descriptor, and keeps no later server from such a file. */
TEST(a_forked_child_keeps_no_lock_of_a_directory) {
  conc__place place;
  struct sockaddr_un *un = (struct sockaddr_un *)&place.address;
  int lock, status, go[2];
  char byte;
  pid_t pid;
  NEEDS_FORK;
  if (!CONC_HAVE_FLOCK) SKIP("there is no such lock");
  memset(&place, 0, sizeof place);
  un->sun_family = AF_UNIX;
  memcpy(un->sun_path, "./x.sock", 9);
  CHECK_EQ(pipe(go), 0);
  lock = conc__socket_file_lock(&place);
  CHECK(lock >= 0);
  CHECK_EQ(conc__socket_file_lock(&place), -EAGAIN);
  pid = fork();
  if (pid == 0) {
    close(go[1]);
    CHECK_CHILD(read(go[0], &byte, 1) == 0);
    _exit(0);
  }
  conc__socket_file_unlock(lock);
  lock = conc__socket_file_lock(&place);
  CHECK(lock >= 0);
  conc__socket_file_unlock(lock);
  CHECK(close(go[0]) == 0 && close(go[1]) == 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
}

/* --- stacks --- */

#define FRAME(k)                                                              \
  __attribute__((noinline)) static void *frame##k(void *n) {                  \
    volatile char b[k * 1024];                                                \
    for (int i = 0; i < 2000; i++) b[i] = 0x5a;                               \
    return (void *)(intptr_t)b[(intptr_t)n];                                  \
  }
FRAME(66) FRAME(70) FRAME(90) FRAME(110) FRAME(120)
static conc_fn *const frames[] = {frame66, frame70, frame90, frame110,
                                  frame120};
enum { NEIGHBOURS = 40 };
static void *sleeps_a_while(void *arg) {
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), 0);
  return arg;
}
static void *among_neighbours(void *arg) {
  static conc_task v[NEIGHBOURS];
  static conc_event go;
  conc_task t;
  for (int i = 0; i < NEIGHBOURS; i++)
    start(conc_coro_start, &v[i], sleeps_a_while, &go);
  CHECK_EQ(conc_sleep(1e-3), 0);
  start(conc_coro_start, &t, frames[*(int *)arg], NULL);
  conc_join(&t, CONC_FOREVER);
  return NULL;
}
TEST(a_large_frame_meets_the_guard) {
  if (TEST_ASAN || TEST_TSAN || test_wrapped("valgrind"))
    SKIP("the tool's own frames and reports");
  for (int i = 0; i < (int)(sizeof frames / sizeof *frames); i++) {
    int status;
    pid_t pid;
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
      struct rlimit none = {0, 0};
      setrlimit(RLIMIT_CORE, &none);
      run(among_neighbours, &i);
      _exit(0);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status) &&
          (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS));
  }
}

static long resident(void) {
  long size = 0, pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (f == NULL || fscanf(f, "%ld %ld", &size, &pages) != 2) pages = -1;
  if (f != NULL) fclose(f);
  return pages;
}
static int mappings(void) {
  int n = 0, c;
  FILE *f = fopen("/proc/self/maps", "r");
  while (f != NULL && (c = getc(f)) != EOF) n += c == '\n';
  if (f != NULL) fclose(f);
  return n;
}
static void *many_sleep(void *arg) {
  enum { N = 4000 };
  static conc_task t[N];
  conc_event go = {0};
  long pages = resident();
  int maps = mappings();
  for (int i = 0; i < N; i++)
    start(conc_coro_start, &t[i], sleeps_a_while, &go);
  CHECK_EQ(conc_sleep(1e-3), 0);
  if (pages >= 0) CHECK(resident() - pages < N * 3 / 2);
  if (maps > 0) CHECK(mappings() - maps < 2 * N + 100);
  conc_event_set(&go);
  for (int i = 0; i < N; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return arg;
}
TEST(a_guard_costs_no_memory) {
  if (TEST_ASAN || TEST_TSAN || test_wrapped("valgrind") ||
      !CONC_HAVE_SWITCH_ASM)
    SKIP("the tools need memory of their own");
  run(many_sleep, NULL);
}

/* With little address space there are smaller slabs. */
static void *many_in_little(void *arg) {
  enum { N = 300 };
  static conc_task t[N];
  conc_event go = {0};
  for (int i = 0; i < N; i++)
    start(conc_coro_start, &t[i], sleeps_a_while, &go);
  CHECK_EQ(conc_sleep(1e-3), 0);
  conc_event_set(&go);
  for (int i = 0; i < N; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return arg;
}
TEST(stacks_fit_into_little_address_space) {
  struct rlimit before, limit;
  if (TEST_ASAN || TEST_TSAN || test_wrapped("valgrind") ||
      getrlimit(RLIMIT_AS, &before) != 0)
    SKIP("the tools need address space of their own");
  limit = before;
  limit.rlim_cur = (rlim_t)mappings() + ((rlim_t)64 << 20);
  CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
  run(many_in_little, NULL);
  CHECK_EQ(setrlimit(RLIMIT_AS, &before), 0);
}

TEST_MAIN
