/* Memory by name, as a file: it belongs to those who made it. What another
 * program has put in its place is neither changed nor removed; one name is one
 * memory, however openers end; and the process that waits for the end of the
 * name is small, ends when it is told to, and leaves no zombie.
 *
 *   NAMED_SECONDS=10      for the test that kills openers */
/* Several open one name at once; under a sanitizer that takes a while. */
#define CONC__OPEN_WAIT 20.0
#include "inside.h"
#include "child.h"
#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>

static char name[64], path[128];

static void choose_name(void) {
  snprintf(name, sizeof name, "named-%d", (int)getpid());
  snprintf(path, sizeof path, "%s/conc.%s",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
}
static bool exists(void) {
  struct stat st;
  return lstat(path, &st) == 0;
}
/* Its maker was killed before it was ready; nothing promises a tracker yet. */
static bool is_half_made(void) {
  struct conc__registry r;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  bool half;
  memset(&r, 0, sizeof r);
  half = fd >= 0 && pread(fd, &r, sizeof r, 0) >= 0 && r.made == 0;
  if (fd >= 0) close(fd);
  return half;
}
static void await_gone_or(bool (*enough)(void)) {
  double late = test_now() + 10 * test_slow();
  while (exists() && (enough == NULL || !enough())) {
    usleep(200);
    if (test_now() > late) TEST_FAIL("%s is still there", path);
  }
}
static void await_gone(void) { await_gone_or(NULL); }

static int make_42(void *memory, void *arg) {
  CHECK_CHILD(*(int *)memory == 0);
  *(int *)memory = 42;
  return arg != NULL ? usleep(*(unsigned *)arg) : 0;
}
static int *open_42(void) {
  int *p = (int *)conc_shared_open(name, 5000, make_42, NULL);
  CHECK_CHILD(p != NULL && LOAD(*p) == 42);
  return p;
}

/* The trackers that descend from this program, but not from another test that
   runs at the same time: they have the file open. Up to 8. */
static int trackers(pid_t *pids) {
  struct stat st, other;
  int n = 0;
  struct dirent *e;
  DIR *d = opendir("/proc");
  if (d == NULL || stat(path, &st) != 0) return 0;
  while ((e = readdir(d)) != NULL && n < 8) {
    char fd[300];
    int pid = atoi(e->d_name);
    snprintf(fd, sizeof fd, "/proc/%d/fd/0", pid);
    if (pid > 0 && pid != (int)getpid() && stat(fd, &other) == 0 &&
        other.st_ino == st.st_ino && other.st_dev == st.st_dev)
      pids[n++] = pid;
  }
  closedir(d);
  return n;
}
static pid_t await_tracker(void) {
  double late = test_now() + 10 * test_slow();
  pid_t pids[8];
  while (trackers(pids) == 0) {
    usleep(500);
    if (test_now() > late) TEST_FAIL("there is no tracker");
  }
  return pids[0];
}
#define NEEDS_PROC                                                            \
  if (access("/proc/self/maps", R_OK) != 0 || test_wrapped("qemu") ||         \
      test_wrapped("valgrind"))                                               \
  SKIP("there is no /proc of our own")

/* --- whose file it is --- */

TEST(the_last_that_leaves_removes_the_name) {
  int *p, *again;
  choose_name();
  for (int i = 0; i < 20; i++) {
    p = open_42();
    again = open_42();
    CHECK(p == again && exists());
    conc_shared_free(p);
    CHECK(exists());
    conc_shared_free(again);
    CHECK(!exists());
  }
}

/* Another name of a file of ours: it would have been emptied. */
TEST(a_link_to_a_file_of_ours_is_left_alone) {
  char mine[160], text[8] = "";
  int fd;
  choose_name();
  snprintf(mine, sizeof mine, "%s~mine", path);
  fd = open(mine, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0 && write(fd, "precious", 8) == 8);
  CHECK(link(mine, path) == 0);
  CHECK(conc_shared_open(name, 5000, NULL, NULL) == NULL);
  CHECK_EQ(errno, EACCES);
  CHECK(pread(fd, text, 8, 0) == 8 && memcmp(text, "precious", 8) == 0);
  CHECK(exists() && unlink(path) == 0 && unlink(mine) == 0);
  close(fd);
}

/* What is left in the file's place is not cut short: who has it mapped would
   be killed by SIGBUS. */
TEST(what_is_made_anew_is_another_file) {
  volatile char *old;
  int fd, *p;
  choose_name();
  fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0 && ftruncate(fd, 100000) == 0);
  old = (volatile char *)mmap(NULL, 100000, PROT_READ | PROT_WRITE, MAP_SHARED,
                              fd, 0);
  CHECK(old != MAP_FAILED);
  old[99999] = 7;
  p = open_42();
  CHECK_EQ(old[99999], 7);
  conc_shared_free(p);
  CHECK(!exists());
  CHECK_EQ(munmap((void *)(uintptr_t)old, 100000), 0);
  close(fd);
}

/* Somebody has removed it, and something else has that name now. */
TEST(the_file_of_another_is_not_removed) {
  int fd, *p;
  pid_t pid;
  choose_name();
  for (int killed = 0; killed < 2; killed++) {
    p = killed ? NULL : open_42();
    pid = begin_child();
    if (pid == 0) {
      if (killed) p = open_42();
      CHECK_CHILD(unlink(path) == 0);
      fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
      CHECK_CHILD(fd >= 0 && write(fd, "x", 1) == 1);
      close(fd);
      if (killed) kill(getpid(), SIGKILL);
      _exit(0);
    }
    reap(pid, killed ? -SIGKILL : 0);
    conc_shared_free(p);
    usleep(20000);
    CHECK(exists() && unlink(path) == 0);
  }
}

static unsigned in_init;
static int make_slowly(void *memory, void *arg) {
  STORE(in_init, 1u);
  usleep(60000);
  return make_42(memory, arg);
}
static void *open_slowly(void *arg) {
  return conc_shared_open(name, 5000, make_slowly, arg);
}

/* The child has the half of it that the parent's thread has made; it must wait
   for the rest, as any other process. */
TEST(a_child_that_is_forked_during_init_finds_it_made) {
  pthread_t thread;
  void *p = NULL;
  pid_t pid;
  NEEDS_FORK;
  choose_name();
  CHECK(pthread_create(&thread, NULL, open_slowly, NULL) == 0);
  while (!LOAD(in_init)) usleep(100);
  pid = begin_child();
  if (pid == 0) {
    int *mine = open_42();
    *mine = 43;
    conc_shared_free(mine);
    _exit(0);
  }
  CHECK(pthread_join(thread, &p) == 0 && p != NULL);
  reap(pid, 0);
  CHECK_EQ(*(int *)p, 43);
  conc_shared_free(p);
  await_gone();
}

/* init() itself may fork, and go on in the child. */
static int fork_in_init(void *memory, void *arg) {
  pid_t pid = fork();
  *(int *)memory = 42;
  if (pid == 0) _exit(*(int *)memory == 42 ? 7 : 8);
  reap(pid, 7);
  return arg != NULL;
}
TEST(init_may_fork) {
  int *p;
  NEEDS_FORK;
  choose_name();
  p = (int *)conc_shared_open(name, 5000, fork_in_init, NULL);
  CHECK(p != NULL && *p == 42);
  conc_shared_free(p);
  await_gone();
}

/* --- one name, one memory --- */

/* As long as a process has it, the name is that very file. */
static void open_and_look(unsigned seed) {
  unsigned long long random = seed;
  for (;;) {
    int *p = open_42();
    struct conc__registry *r = conc__registry_of(p);
    struct stat mine, there;
    CHECK_CHILD(r != NULL);
    CHECK_CHILD(fstat(conc__registry_local(r)->fd, &mine) == 0);
    for (unsigned i = test_random_of(&random) % 3; i < 3; i++) {
      CHECK_CHILD(lstat(path, &there) == 0 && there.st_ino == mine.st_ino);
      sched_yield();
    }
    conc_shared_free(p);
  }
}
TEST(openers_that_are_killed_leave_one_memory) {
  double until = test_now() + test_asked("NAMED_SECONDS", 0.4);
  pid_t pids[4];
  int *p;
  choose_name();
  for (unsigned i = 0; i < 4; i++)
    if ((pids[i] = begin_child()) == 0) open_and_look(i);
  for (unsigned i = 0; test_now() < until; i = (i + 1) % 4) {
    usleep(test_random() % 3000);
    kill(pids[i], SIGKILL);
    reap(pids[i], -SIGKILL);
    if ((pids[i] = begin_child()) == 0) open_and_look(test_random());
  }
  for (int i = 0; i < 4; i++) kill(pids[i], SIGKILL), reap(pids[i], -SIGKILL);
  /* What was ready goes by itself. The last maker may have been killed before
     there was a tracker: its file is there for the next that opens the name. */
  await_gone_or(is_half_made);
  p = (int *)conc_shared_open(name, 5000, make_42, NULL);
  CHECK(p != NULL && *p == 42);
  conc_shared_free(p);
  await_gone();
}

/* --- the tracker --- */

static char large[32 << 20];

/* In kB; -1: not known. */
static long private_memory(pid_t pid) {
  char file[64], line[256];
  long kb = -1;
  FILE *f;
  snprintf(file, sizeof file, "/proc/%d/smaps_rollup", (int)pid);
  f = fopen(file, "r");
  while (f != NULL && fgets(line, sizeof line, f) != NULL)
    if (sscanf(line, "Private_Dirty: %ld", &kb) == 1) break;
  if (f != NULL) fclose(f);
  return kb;
}
TEST(a_tracker_keeps_nothing_of_its_opener) {
  size_t size = (size_t)32 << 20;
  volatile char *heap = (volatile char *)malloc(size);
  volatile char *shared = (volatile char *)mmap(
      NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  double late = test_now() + 10 * test_slow();
  pid_t tracker;
  void *p;
  NEEDS_PROC;
  if (!CONC__LINUX || CONC_HAVE_ASAN || CONC_HAVE_TSAN)
    SKIP("not with a sanitizer's memory");
  choose_name();
  for (size_t i = 0; i < size; i += 512) {
    heap[i] = 1;
    large[i] = 1;
    shared[i] = 1;
  }
  p = open_42();
  tracker = await_tracker();
  for (size_t i = 0; i < size; i += 512) {
    heap[i] = 2;
    large[i] = 2;
    shared[i] = 2;
  }
  if (private_memory(tracker) < 0) SKIP("there is no smaps_rollup");
  while (private_memory(tracker) > 2000) {
    usleep(1000);
    if (test_now() > late)
      TEST_FAIL("it has %ld kB of its own", private_memory(tracker));
  }
  kill(tracker, 0);
  free((void *)(uintptr_t)heap);
  munmap((void *)(uintptr_t)shared, size);
  conc_shared_free(p);
  await_gone();
}

/* Who stops a service tells all of its processes to end, and then kills those
   that are left: so the tracker ends by SIGTERM, but stays to see what the
   others do. */
static pid_t opener;
static unsigned *strays; /* shared */

static void handle(int number) {
  (void)number;
  if (getpid() != opener) __atomic_add_fetch(strays, 1u, __ATOMIC_RELAXED);
}

/* A handler of the program's would write to what the program reads, say. */
TEST(a_tracker_calls_no_handler_of_the_program) {
  double until;
  pid_t pid, sender;
  NEEDS_FORK;
  choose_name();
  strays = (unsigned *)conc_shared_alloc(sizeof *strays);
  pid = begin_child();
  if (pid == 0) { /* a group of its own, to which signals are sent */
    setpgid(0, 0);
    opener = getpid();
    signal(SIGUSR1, SIG_IGN);
    sender = begin_child();
    if (sender == 0)
      for (;;) kill(0, SIGUSR1);
    signal(SIGUSR1, handle);
    until = test_now() + test_asked("NAMED_SECONDS", 0.2);
    while (test_now() < until) conc_shared_free(open_42());
    kill(sender, SIGKILL);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(LOAD(*strays), 0);
  conc_shared_free(strays);
  await_gone();
}

TEST(a_tracker_ends_by_sigterm) {
  pid_t pid, tracker, pids[8];
  int ends[2];
  char byte;
  void *p;
  NEEDS_PROC;
  NEEDS_FORK;
  choose_name();
  CHECK(pipe(ends) == 0);
  pid = begin_child();
  if (pid == 0) {
    p = open_42();
    if (write(ends[1], "x", 1) != 1) _exit(1);
    for (;;) pause();
  }
  CHECK(read(ends[0], &byte, 1) == 1);
  kill(await_tracker(), SIGTERM);
  usleep(20000);
  CHECK(exists());
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  await_gone();
  p = open_42();
  tracker = await_tracker();
  for (int i = 0; i < 1000 && trackers(pids) > 0; i++) {
    kill(tracker, SIGTERM); /* the second one is not waited after */
    usleep(10000);
  }
  CHECK_EQ(trackers(pids), 0);
  CHECK(exists());
  conc_shared_free(p);
  CHECK(!exists());
  close(ends[0]);
  close(ends[1]);
}

/* The first process of a container: nobody else waits for orphans there. */
TEST(the_first_process_keeps_no_zombies) {
#if CONC__LINUX
  pid_t pid;
  NEEDS_FORK;
  choose_name();
  pid = begin_child();
  if (pid == 0) {
    if (unshare(CLONE_NEWPID) != 0) _exit(77);
    pid = begin_child();
    if (pid == 0) {
      CHECK_CHILD(getpid() == 1);
      /* One that takes long to end is waited for by a later call. */
      double late = test_now() + 15 * test_slow();
      siginfo_t info;
      for (int i = 0; i < 20; i++) conc_shared_free(open_42());
      while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0) {
        CHECK_CHILD(test_now() < late);
        usleep(1000);
        conc_shared_free(open_42());
      }
      CHECK_CHILD(errno == ECHILD);
      _exit(0);
    } else {
      int status = 0;
      CHECK_CHILD(waitpid(pid, &status, 0) == pid);
      _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 98);
    }
  } else {
    int status = 0;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
      SKIP("there are no name spaces of processes");
    CHECK_EQ(status, 0);
  }
#else
  SKIP("there are no name spaces of processes");
#endif
}

TEST_MAIN
