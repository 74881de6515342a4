/* What processes cost to start, to join and to listen to.
 *
 *   process [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * Peers, in the same run: posix_spawn, fork and exec, popen, a bare fork.
 *
 *   program   start /bin/true and wait for its end, out of a process that has
 *             touched 10 MiB, and out of one with 2 GiB
 *   function  run a function in a forked process and wait for its end
 *   capture   100 MiB that a program writes, into a buffer of that size, and
 *             into one that grows; the limit of the former is read() alone,
 *             of a pipe that is wide from the start
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <spawn.h>
#include <sys/mman.h>

extern char **environ;

static int rounds = 100;
static char *const path_argv[] = {(char *)"true", NULL};
static const char *const true_argv[] = {"true", NULL};

static int wait_for(pid_t pid) {
  int status = -1;
  return waitpid(pid, &status, 0) == pid ? status : -1;
}

/* Microseconds for one call that must return 0. */
static double each(int (*call)(void)) {
  double start = bench_now();
  for (int i = 0; i < rounds; i++)
    if (call() != 0) return NAN;
  return (bench_now() - start) / rounds * 1e6;
}

/* --- programs ------------------------------------------------------------ */

static int spawn_true(void) {
  pid_t pid;
  return posix_spawnp(&pid, "true", NULL, NULL, path_argv, environ) ||
         wait_for(pid);
}
static int exec_true(void) {
  pid_t pid = fork();
  if (pid == 0) {
    execvp("true", path_argv);
    _exit(127);
  }
  return wait_for(pid);
}
static int popen_true(void) {
  FILE *f = popen("true", "r");
  return f == NULL || pclose(f);
}
static int conc_true(void) { return conc_call(true_argv, CONC_FOREVER); }

static double by_spawn(void) { return each(spawn_true); }
static double by_exec(void) { return each(exec_true); }
static double by_popen(void) { return each(popen_true); }
static double by_conc(void) { return each(conc_true); }

/* Memory that the process has touched. */
static void fatten(size_t size) {
  char *memory = (char *)mmap(NULL, size, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == (char *)MAP_FAILED) return;
  madvise(memory, size, MADV_NOHUGEPAGE);
  for (size_t i = 0; i < size; i += 4096) memory[i] = 1;
}

/* --- functions ----------------------------------------------------------- */

static int bare_fork(void) {
  pid_t pid = fork();
  if (pid == 0) _exit(0);
  return wait_for(pid);
}
static void *do_nothing(void *arg) { return arg; }
static int conc_fork(void) {
  conc_task t = {.target = do_nothing};
  int rc = conc_process_start(&t);
  return rc != 0 ? rc : conc_join(&t, CONC_FOREVER);
}
static double by_fork(void) { return each(bare_fork); }
static double by_process(void) { return each(conc_fork); }

/* --- capture ------------------------------------------------------------- */

enum { MUCH = 100 << 20 };
static char *room;
static const char *const dd_argv[] = {"dd", "if=/dev/zero", "bs=1M",
                                      "count=100", "status=none", NULL};
static const char dd_command[] =
    "exec dd if=/dev/zero bs=1M count=100 status=none";

/* GB/s, where get() returns how many bytes it got. */
static double rate(size_t (*get)(void)) {
  double start = bench_now();
  return get() == MUCH ? MUCH / (bench_now() - start) * 1e-9 : NAN;
}

static size_t popen_into(void) {
  FILE *f = popen(dd_command, "r");
  size_t n = f ? fread(room, 1, MUCH, f) : 0;
  return f && pclose(f) == 0 ? n : 0;
}
static size_t popen_growing(void) {
  FILE *f = popen(dd_command, "r");
  size_t n = 0, size = 65536, got;
  char *data = (char *)malloc(size);
  while (f && (got = fread(data + n, 1, size - n, f)) > 0) {
    n += got;
    if (n == size) data = (char *)realloc(data, size *= 2);
  }
  free(data);
  return f && pclose(f) == 0 ? n : 0;
}
/* The limit: nothing but read(), and a pipe of 1 MiB from the start. */
static size_t read_into(void) {
  posix_spawn_file_actions_t actions;
  size_t n = 0;
  ssize_t got;
  int ends[2];
  pid_t pid;
  if (pipe2(ends, O_CLOEXEC) != 0) return 0;
  fcntl(ends[0], F_SETPIPE_SZ, 1 << 20);
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  if (posix_spawnp(&pid, "dd", &actions, NULL,
                   (char *const *)(uintptr_t)dd_argv, environ) != 0)
    pid = -1;
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  while ((got = read(ends[0], room + n, MUCH - n)) > 0) n += (size_t)got;
  close(ends[0]);
  return pid > 0 && wait_for(pid) == 0 ? n : 0;
}
static size_t conc_into(void) {
  conc_popen p = {.argv = dd_argv, .std_out = CONC_PIPE};
  size_t n = 0;
  ssize_t got;
  if (conc_popen_start(&p) != 0) return 0;
  while ((got = conc_read(p.out, room + n, MUCH - n, CONC_FOREVER)) > 0)
    n += (size_t)got;
  if (conc_popen_wait(&p, CONC_FOREVER) != 0) n = 0;
  conc_popen_close(&p);
  return n;
}
static size_t conc_growing(void) {
  conc_output out;
  int rc = conc_check_output(dd_argv, &out, CONC_FOREVER);
  conc_free(out.data);
  return rc == 0 ? out.size : 0;
}
static double into_by_popen(void) { return rate(popen_into); }
static double into_by_read(void) { return rate(read_into); }
static double into_by_conc(void) { return rate(conc_into); }
static double growing_by_popen(void) { return rate(popen_growing); }
static double growing_by_conc(void) { return rate(conc_growing); }

int main(int argc, char **argv) {
  bench_begin(argc, argv, "Processes");
  if (bench_quick) rounds = 20;
  room = (char *)malloc(MUCH);
  memset(room, 1, MUCH);
  ROW("capture 100 MiB", "GB/s", {"popen, fread", into_by_popen},
      {"limit: read, a wide pipe", into_by_read}, {"conc_read", into_by_conc});
  ROW("capture 100 MiB, growing", "GB/s", {"popen, fread", growing_by_popen},
      {"conc_check_output", growing_by_conc});
  free(room);
  for (size_t mib = 10; mib <= 2048; mib += 2038) {
    char row[40];
    fatten(mib << 20);
    snprintf(row, sizeof row, "program, out of %zu MiB", mib);
    if (mib > 1024) rounds = rounds / 10 + 1; /* fork takes so long */
    ROW(row, "us", {"posix_spawn", by_spawn}, {"fork and exec", by_exec},
        {"popen", by_popen}, {"conc_call", by_conc});
    if (mib == 10)
      ROW("function", "us", {"limit: bare fork", by_fork},
          {"conc_process_start", by_process});
  }
  return 0;
}
