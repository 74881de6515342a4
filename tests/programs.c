/* Programs are started as a shell would start them, in every way in which they
   can be started; what is a program's own is no other child's; and the library
   knows which processes and which descriptors are its own. */
#include "inside.h"
#include "refuse.h"
#include "tasks.h"

#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __linux__
#include <dirent.h>
#include <sys/syscall.h>
#endif

/* An emulator and Valgrind are not in what they are told to execute. */
#define NEEDS_SPAWN                                                           \
  if (test_wrapped("qemu") || test_wrapped("valgrind"))                       \
  SKIP("this tool cannot run the same program in a child")

static char folder[] = "/tmp/conc-programs-XXXXXX", paths[4][128];

static const char *path_of(int which, const char *name) {
  snprintf(paths[which], sizeof paths[which], "%s/%s", folder, name);
  return paths[which];
}

static void make_folder(void) { CHECK(mkdtemp(folder) != NULL); }

static void remove_folder(void) {
  const char *const argv[] = {"rm", "-r", folder, NULL};
  CHECK_EQ(conc_call(argv, CONC_FOREVER), 0);
}

static const char *write_file(int which, const char *name, const char *text,
                              mode_t mode) {
  const char *path = path_of(which, name);
  FILE *f = fopen(path, "w");
  CHECK(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0);
  CHECK_EQ(chmod(path, mode), 0);
  return path;
}

static conc_popen popen_of(const char *const *argv) {
  conc_popen p;
  memset(&p, 0, sizeof p);
  p.argv = argv;
  return p;
}

static const char *shell[4] = {"sh", "-c", NULL, NULL};

static conc_popen script(const char *text) {
  shell[2] = text;
  return popen_of(shell);
}

/* The exit code of a program that is started like this. */
static int code_of(conc_popen *p) {
  int rc = conc_popen_start(p);
  if (rc == 0) rc = conc_popen_wait(p, CONC_FOREVER);
  conc_popen_close(p);
  return rc;
}

/* What it writes. */
static const char *text_of(conc_popen *p) {
  static char text[4096];
  conc_output out;
  p->std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(p), 0);
  CHECK_EQ(conc_communicate(p, NULL, 0, &out, NULL, CONC_FOREVER), 0);
  snprintf(text, sizeof text, "%s", out.data);
  conc_free(out.data);
  return text;
}

static void *sleep_on(void *arg) {
  for (;;) pause();
  return arg;
}
CONC_PROCESS_TARGET(sleep_on)

static void no_child_is_left(void) {
  CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
  CHECK_EQ(errno, ECHILD);
}

/* --- what is a program's own --------------------------------------------- */

static const char *const cat[] = {"cat", NULL};

static void talk_with_a_child_between(int (*start_child)(conc_task *)) {
  conc_popen p = popen_of(cat);
  conc_task child = task_of(sleep_on, NULL);
  conc_output out;
  p.std_in = p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(start_child(&child), 0);
  CHECK_EQ(conc_communicate(&p, "text", 4, &out, NULL, 10 * test_slow()), 0);
  CHECK_STR(out.data, "text");
  conc_free(out.data);
  CHECK_EQ(conc_kill(&child), 0);
  CHECK_EQ(conc_join(&child, CONC_FOREVER), -ECHILD);
}

TEST(a_program_sees_the_end_of_its_input_while_a_later_child_lives) {
  NEEDS_FORK;
  talk_with_a_child_between(conc_process_start);
}

/* The same for a child of a plain fork(), which opens a file of its own by
   that number, and leaves it alone. */
TEST(in_a_forked_child_a_programs_pipes_are_closed_and_their_numbers_free) {
  NEEDS_FORK;
  conc_popen p = popen_of(cat);
  conc_output out;
  int go[2], status;
  CHECK_EQ(pipe(go), 0);
  p.std_in = p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  int in = p.in;
  pid_t child = fork();
  if (child == 0) {
    struct stat st;
    char c;
    CHECK_CHILD(fcntl(p.in, F_GETFD) < 0 && fcntl(p.out, F_GETFD) < 0);
    CHECK_CHILD(dup2(go[0], in) == in);
    CHECK_CHILD(conc_communicate(&p, "x", 1, &out, NULL, 5) == -ECHILD);
    CHECK_CHILD(out.data == NULL);
    conc_popen_close(&p);
    CHECK_CHILD(p.in == -1 && fstat(in, &st) == 0);
    close(go[1]);
    CHECK_CHILD(read(in, &c, 1) == 0);
    _exit(0);
  }
  CHECK_EQ(conc_communicate(&p, "text", 4, &out, NULL, 10 * test_slow()), 0);
  CHECK_STR(out.data, "text");
  conc_free(out.data);
  close(go[0]), close(go[1]);
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

static conc_popen talker;

static void *talk(void *arg) {
  conc_output out;
  int rc = conc_communicate(&talker, NULL, 0, &out, NULL, CONC_FOREVER);
  conc_free(out.data);
  *(int *)arg = rc;
  return NULL;
}

/* The coroutine that waits comes along: it must not wait for ever there. */
static void *fork_beside_a_talk(void *arg) {
  int rc = 1, status;
  conc_task t;
  talker = popen_of(cat);
  talker.std_in = talker.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&talker), 0);
  int keep = fcntl(talker.in, F_DUPFD_CLOEXEC, 3);
  start(conc_coro_start, &t, talk, &rc);
  conc_sleep(0.01);
  pid_t child = fork();
  if (child == 0) {
    CHECK_CHILD(conc_join(&t, 10) == 0);
    CHECK_CHILD(rc == -ECHILD || rc == -EBADF);
    _exit(0);
  }
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  close(keep);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(rc, 0);
  return arg;
}

TEST(a_talk_that_comes_along_into_a_child_ends_there) {
  NEEDS_FORK;
  run(fork_beside_a_talk, NULL);
}

/* What is behind the number is no longer the library's: it stays open here,
   and in a child. */
TEST(what_has_replaced_a_pipe_is_left_alone) {
  NEEDS_FORK;
  conc_popen p = popen_of(cat);
  int status, null = open("/dev/null", O_RDWR | O_CLOEXEC);
  p.std_in = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  int in = p.in;
  dup2(null, in), close(null);
  pid_t child = fork();
  if (child == 0) _exit(fcntl(in, F_GETFD) < 0);
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), 0);
  conc_popen_close(&p);
  CHECK(fcntl(in, F_GETFD) >= 0);
  close(in);
}

/* The first one's output is the second one's input, and the library's own. */
TEST(a_programs_output_can_be_anothers_input) {
  conc_popen a = script("echo one; sleep 0.05; echo two"), b;
  a.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&a), 0);
  b = script("wc -l");
  b.std_in = a.out;
  CHECK_EQ(atoi(text_of(&b)), 2);
  CHECK_EQ(conc_popen_wait(&a, CONC_FOREVER), 0);
  conc_popen_close(&a);
}

/* --- as a shell ---------------------------------------------------------- */

TEST(a_script_without_a_first_line_is_read_by_sh) {
  make_folder();
  const char *path = write_file(0, "script", "exit $(($1 + 2))\n", 0700);
  const char *const argv[] = {path, "5", NULL};
  const char *const named[] = {"script", "6", NULL};
  char var[160];
  const char *const env[] = {var, NULL};
  conc_popen p = popen_of(argv);
  snprintf(var, sizeof var, "PATH=/nowhere:%s:/bin:/usr/bin", folder);
  CHECK_EQ(code_of(&p), 7);
  p = popen_of(named);
  p.env = env;
  CHECK_EQ(code_of(&p), 8);
  remove_folder();
}

TEST(a_program_is_sought_in_the_path_of_its_own_environment) {
  make_folder();
  const char *const argv[] = {"held", NULL}, *const none[] = {"A=b", NULL};
  const char *relative[] = {"PATH=sub", NULL}, *empty[] = {"PATH=", NULL};
  const char *const sh[] = {"sh", "-c", "exit 3", NULL};
  const char *const nameless[] = {"", NULL};
  conc_popen p = popen_of(argv);
  CHECK_EQ(mkdir(path_of(1, "sub"), 0700), 0);
  write_file(0, "sub/held", "#!/bin/sh\nexit 4\n", 0700);
  CHECK_EQ(code_of(&p), -ENOENT);
  p.env = relative; /* in the folder that the program runs in */
  CHECK_EQ(code_of(&p), -ENOENT);
  p.cwd = folder;
  CHECK_EQ(code_of(&p), 4);
  p.env = empty; /* that is the folder itself */
  CHECK_EQ(code_of(&p), -ENOENT);
  p.cwd = path_of(1, "sub");
  CHECK_EQ(code_of(&p), 4);
  CHECK_EQ(chmod(paths[0], 0600), 0);
  if (geteuid() != 0) CHECK_EQ(code_of(&p), -EACCES);
  p = popen_of(sh); /* without a PATH there are the usual places */
  p.env = none;
  CHECK_EQ(code_of(&p), 3);
  p.argv = nameless;
  CHECK_EQ(code_of(&p), -ENOENT);
  remove_folder();
}

TEST(a_program_may_have_another_name_than_its_file) {
  const char *const argv[] = {"somebody", "-c", "echo $0", NULL};
  const char *const missing[] = {"sh", "-c", "exit 0", NULL};
  conc_popen p = popen_of(argv);
  p.executable = "sh";
  CHECK_STR(text_of(&p), "somebody\n");
  p = popen_of(missing);
  p.executable = "/nowhere/sh";
  CHECK_EQ(code_of(&p), -ENOENT);
}

/* Whatever is close-on-exec here: what is asked for by its number is there. */
TEST(a_standard_descriptor_that_is_named_is_passed_on) {
  int saved = fcntl(1, F_DUPFD_CLOEXEC, 10), fds[2];
  char text[16];
  CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
  fflush(stdout);
  CHECK(dup3(fds[1], 1, O_CLOEXEC) == 1);
  conc_popen p = script("echo here");
  p.std_out = 1;
  int rc = code_of(&p);
  dup2(saved, 1), close(saved), close(fds[1]);
  CHECK_EQ(rc, 0);
  CHECK_EQ(read(fds[0], text, sizeof text), 5);
  close(fds[0]);
}

/* One position for both: nothing overwrites anything. */
TEST(both_outputs_may_be_one_file_by_any_of_its_names) {
  make_folder();
  char other[160], text[64];
  for (int i = 0; i < 4; i++) {
    const char *path = path_of(0, "log");
    conc_popen p = script("echo out; echo err >&2; echo out");
    snprintf(other, sizeof other, "%s/./log", folder);
    if (i % 2) write_file(0, "log", "old, and longer than the rest\n", 0600);
    p.out_file = path;
    p.err_file = i < 2 ? path : other;
    CHECK_EQ(code_of(&p), 0);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n] = 0;
    close(fd), unlink(path);
    CHECK_STR(text, "out\nerr\nout\n");
  }
  remove_folder();
}

#ifdef __linux__
static const char *const signals_of[] = {
    "sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status", NULL};

static void *print_signals(void *arg) {
  FILE *f = fopen("/proc/self/status", "r");
  char line[256];
  unsigned long long bits = 0, any = 0;
  while (fgets(line, sizeof line, f) != NULL)
    if (sscanf(line, "SigBlk: %llx", &bits) == 1 ||
        sscanf(line, "SigIgn: %llx", &bits) == 1)
      any |= bits;
  fclose(f);
  any &= 1ull << (SIGUSR1 - 1);
  return (void *)(uintptr_t)(arg == NULL && any != 0);
}
CONC_PROCESS_TARGET(print_signals)

TEST(a_program_ignores_and_blocks_no_signal_though_its_parent_does) {
  const int numbers[] = {SIGPIPE, SIGUSR1, SIGTERM, SIGXFSZ, SIGALRM};
  unsigned long long blocked = 1, ignored = 1, mask = 0;
  sigset_t all, old;
  if (test_wrapped("qemu") || test_wrapped("valgrind"))
    SKIP("this tool tells of its own signals");
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    signal(numbers[i], SIG_IGN);
    mask |= 1ull << (numbers[i] - 1);
  }
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  conc_popen p = popen_of(signals_of);
  const char *text = text_of(&p);
  CHECK_EQ(sscanf(text, "SigBlk: %llx SigIgn: %llx", &blocked, &ignored), 2);
  CHECK_EQ(blocked, 0);
  CHECK_EQ(ignored & mask, 0);
  conc_task t = task_of(print_signals, NULL);
  t.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&t), 0);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
}
#endif

/* In a program that is started with SIGCHLD ignored: see main. */
static int count_exit_codes(void) {
  const char *const argv[] = {"sh", "-c", "exit 3", NULL};
  for (int i = 0; i < 20; i++) {
    conc_popen p = popen_of(argv);
    int rc = i % 2 ? conc_call(argv, 10) : code_of(&p);
    if (rc != 3) return 10 + i;
  }
  return 5;
}

/* Runs this program again, by the shell: with an argument for main. */
static int run_again(const char *how) {
  char self[4096], text[8192];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n < 0) SKIP("the system does not tell the name of this program");
  self[n] = 0;
  snprintf(text, sizeof text, how, self);
  conc_popen p = script(text);
  return code_of(&p);
}

TEST(an_inherited_ignored_sigchld_loses_no_exit_code) {
  NEEDS_SPAWN;
  NEEDS_FORK;
  CHECK_EQ(run_again("trap '' CHLD; exec %s --exit-codes"), 5);
}

TEST(what_nohup_ignores_stays_ignored) {
  NEEDS_SPAWN;
  CHECK_EQ(run_again("trap '' HUP; exec %s --hup"), 6);
  signal(SIGHUP, SIG_DFL); /* the tests may be run under nohup, too */
  CHECK_EQ(run_again("exec %s --hup"), 7);
}

/* In a child of another thread a program's file may be open for an instant;
   here a thread has it open for writing. */
static void *close_soon(void *arg) {
  conc_sleep(0.02);
  close(*(int *)arg);
  return NULL;
}

TEST(a_file_that_is_written_for_an_instant_is_executed_after_it) {
  make_folder();
  const char *const copy[] = {"cp", "/bin/true", path_of(0, "true"), NULL};
  const char *const argv[] = {paths[0], NULL};
  conc_task t;
  CHECK_EQ(conc_call(copy, CONC_FOREVER), 0);
  int fd = open(paths[0], O_WRONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  int rc = conc_call(argv, CONC_FOREVER);
  CHECK(rc == -ETXTBSY || rc == 0); /* newer systems do not mind */
  start(conc_thread_start, &t, close_soon, &fd);
  CHECK_EQ(conc_call(argv, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  remove_folder();
}

static void *start_first(void *arg) {
  static const char *argv[2];
  argv[0] = paths[0];
  *(conc_popen *)arg = popen_of(argv);
  ((conc_popen *)arg)->std_out = CONC_PIPE;
  return (void *)(intptr_t)conc_popen_start((conc_popen *)arg);
}

/* The coroutine that waits for the file comes along into a child. */
static void *fork_beside_a_busy_file(void *arg) {
  int status, fd = open(paths[0], O_WRONLY | O_CLOEXEC);
  conc_popen p;
  conc_task t;
  start(conc_coro_start, &t, start_first, &p);
  if (conc_join(&t, 0.01) == -ETIMEDOUT) {
    pid_t child = fork();
    if (child == 0) {
      close(fd);
      CHECK_CHILD(conc_join(&t, 10) == 0);
      CHECK_CHILD((intptr_t)conc_result(&t) == -ECHILD && p.out == -1);
      _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
  close(fd);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  int rc = (int)(intptr_t)conc_result(&t);
  CHECK(rc == 0 || rc == -ETXTBSY); /* the child was slow */
  if (rc == 0) CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), 0);
  if (rc == 0) conc_popen_close(&p);
  return arg;
}

TEST(a_start_that_awaits_a_file_ends_in_a_child) {
  NEEDS_FORK;
  make_folder();
  const char *const copy[] = {"cp", "/bin/true", path_of(0, "true"), NULL};
  CHECK_EQ(conc_call(copy, CONC_FOREVER), 0);
  run(fork_beside_a_busy_file, NULL);
  remove_folder();
}

/* --- a FIFO -------------------------------------------------------------- */

static conc_popen fifo_writer, fifo_reader;

static void *start_writer(void *arg) {
  static const char *const argv[] = {"echo", "through the fifo", NULL};
  fifo_writer = popen_of(argv);
  fifo_writer.out_file = paths[0];
  return (void *)(intptr_t)(conc_popen_start(&fifo_writer) + (arg != NULL));
}

static void *start_reader(void *arg) {
  fifo_reader = popen_of(cat);
  fifo_reader.in_file = paths[0];
  fifo_reader.std_out = CONC_PIPE;
  return (void *)(intptr_t)(conc_popen_start(&fifo_reader) + (arg != NULL));
}

static void through_a_fifo(int (*how)(conc_task *)) {
  static const char *const argv[] = {"true", NULL};
  conc_task w, r;
  conc_output out;
  start(how, &w, start_writer, NULL);
  CHECK_EQ(conc_join(&w, 0.02), -ETIMEDOUT); /* it waits for the other end */
  CHECK_EQ(conc_call(argv, CONC_FOREVER), 0);
  start(how, &r, start_reader, NULL);
  CHECK_EQ(conc_join(&w, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&r, CONC_FOREVER), 0);
  CHECK(conc_result(&w) == NULL && conc_result(&r) == NULL);
  CHECK_EQ(conc_communicate(&fifo_reader, NULL, 0, &out, NULL, CONC_FOREVER),
           0);
  CHECK_STR(out.data, "through the fifo\n");
  conc_free(out.data);
  CHECK_EQ(conc_popen_wait(&fifo_writer, CONC_FOREVER), 0);
}

/* A start that waits for a FIFO ends when it is cancelled, without a program
   and without descriptors. */
static void cancel_at_a_fifo(int (*how)(conc_task *)) {
  conc_task r;
  start(how, &r, start_reader, NULL);
  CHECK_EQ(conc_join(&r, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_cancel(&r), 0);
  CHECK_EQ(conc_join(&r, CONC_FOREVER), -ECANCELED);
  CHECK_EQ((intptr_t)conc_result(&r), -ECANCELED);
  no_child_is_left();
}

static void *fifo_in_coroutines(void *arg) {
  through_a_fifo(conc_coro_start);
  cancel_at_a_fifo(conc_coro_start);
  return arg;
}

TEST(two_programs_meet_at_a_fifo_and_hold_up_nobody_else) {
  NEEDS_FORK;
  make_folder();
  CHECK_EQ(mkfifo(path_of(0, "fifo"), 0600), 0);
  through_a_fifo(conc_thread_start);
  cancel_at_a_fifo(conc_thread_start);
  run(fifo_in_coroutines, NULL);
  remove_folder();
}

/* The coroutine that starts a program comes along into a child. The program
   is not the child's: so the start ends there, and leaves the program alone,
   and every descriptor that the child has opened meanwhile. */
static void *fork_beside_a_start(void *arg) {
  conc_task r, w;
  conc_output out;
  int status;
  start(conc_coro_start, &r, start_reader, NULL);
  CHECK_EQ(conc_join(&r, 0.02), -ETIMEDOUT);
  pid_t child = fork();
  if (child == 0) {
    static const char *const argv[] = {"true", NULL};
    int own[8];
    for (int i = 0; i < 8; i++) own[i] = open("/dev/null", O_RDONLY);
    CHECK_CHILD(conc_join(&r, 10) == 0);
    CHECK_CHILD((intptr_t)conc_result(&r) == -ECHILD);
    CHECK_CHILD(fifo_reader.out == -1 && !conc_is_alive(&fifo_reader.task));
    for (int i = 0; i < 8; i++) CHECK_CHILD(fcntl(own[i], F_GETFD) >= 0);
    CHECK_CHILD(conc_call(argv, 10) == 0);
    _exit(0);
  }
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  start(conc_coro_start, &w, start_writer, NULL);
  CHECK_EQ(conc_join(&r, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&w, CONC_FOREVER), 0);
  CHECK(conc_result(&r) == NULL && conc_result(&w) == NULL);
  CHECK_EQ(conc_communicate(&fifo_reader, NULL, 0, &out, NULL, CONC_FOREVER),
           0);
  CHECK_STR(out.data, "through the fifo\n");
  conc_free(out.data);
  CHECK_EQ(conc_popen_wait(&fifo_writer, CONC_FOREVER), 0);
  return arg;
}

TEST(a_start_that_comes_along_into_a_child_ends_there) {
  NEEDS_FORK;
  make_folder();
  CHECK_EQ(mkfifo(path_of(0, "fifo"), 0600), 0);
  run(fork_beside_a_start, NULL);
  remove_folder();
}

/* --- who is who ---------------------------------------------------------- */

/* Whether it has ended, though its new parent may not have waited for it. */
static bool is_dead(pid_t pid) {
  char path[64], state = 'X';
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  FILE *f = fopen(path, "r");
  if (f == NULL) return kill(pid, 0) != 0;
  if (fscanf(f, "%*d %*s %c", &state) != 1) state = 'X';
  fclose(f);
  return state == 'Z' || state == 'X';
}

/* The number of a group is taken as long as it may be killed by it, and not
   for longer. */
TEST(a_group_is_killed_while_its_number_is_its_own) {
  conc_popen p = script("sleep 60 & echo $!");
  conc_output out;
  p.std_out = CONC_PIPE;
  p.new_group = p.kill_on_timeout = true;
  CHECK_EQ(conc_popen_start(&p), 0);
  pid_t leader = conc_pid(&p.task);
  CHECK_EQ(conc_join(&p.task, CONC_FOREVER), 0);
  CHECK_EQ(conc_kill(&p.task), -ESRCH);
  CHECK_EQ(kill(leader, 0), 0); /* a zombie: no other process has it */
  CHECK_EQ(conc_communicate(&p, NULL, 0, &out, NULL, 0.5), 0);
  pid_t left = (pid_t)atoi(out.data);
  CHECK(left > 0);
  conc_free(out.data);
  no_child_is_left();
  UNTIL(is_dead(left));

  /* Without a pipe nothing is to be killed after the leader's end. */
  p = script("exit 3");
  p.new_group = p.kill_on_timeout = true;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_join(&p.task, CONC_FOREVER), 0);
  no_child_is_left();

  /* Closed before its end, or after it. */
  p.std_out = CONC_PIPE;
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_popen_start(&p), 0);
    if (i == 0) conc_popen_close(&p);
    CHECK_EQ(conc_join(&p.task, CONC_FOREVER), 0);
    conc_popen_close(&p);
    no_child_is_left();
  }
}

#define TWO(n)                                                                \
  static void *two_##n(void *arg) {                                           \
    return (void *)(uintptr_t)(arg == NULL ? n : 0);                          \
  }
TWO(1)
TWO(2)
/* As two files would have it. */
#define twin two_1
#define conc__register_twin conc__register_two_1
CONC_PROCESS_TARGET(twin)
#undef twin
#undef conc__register_twin
#define twin two_2
#define conc__register_twin conc__register_two_2
CONC_PROCESS_TARGET(twin)

TEST(two_targets_of_one_name_are_two) {
  NEEDS_SPAWN;
  conc_task a = task_of(two_1, NULL), b = task_of(two_2, NULL);
  static struct conc__target one = {"double", sleep_on, NULL},
                             other = {"double", two_1, NULL};
  a.start_method = b.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&a), 0);
  CHECK_EQ(conc_process_start(&b), 0);
  CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  CHECK_EQ(conc_exitcode(&a), 1);
  CHECK_EQ(conc_exitcode(&b), 2);
  conc_process_register(&one);
  conc_process_register(&other);
  a = task_of(sleep_on, NULL);
  a.start_method = CONC_SPAWN;
  CHECK_EQ(conc_process_start(&a), -EEXIST);
}

#ifdef __linux__
/* The loader, as the kernel has mapped it for this program. */
TEST(a_program_that_the_loader_was_told_to_run_spawns_itself) {
  NEEDS_SPAWN;
  if (TEST_ASAN || TEST_TSAN) SKIP("sanitizers want to be started directly");
  char line[512], loader[512] = "", how[1024];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, maps) != NULL) {
    char *slash = strchr(line, '/');
    if (slash != NULL && strstr(slash, "/ld-") != NULL)
      snprintf(loader, sizeof loader, "%.*s", (int)strcspn(slash, "\n"),
               slash);
  }
  fclose(maps);
  if (*loader == 0) SKIP("this program has no loader");
  snprintf(how, sizeof how, "exec %s %%s --spawn", loader);
  CHECK_EQ(run_again(how), 5);
}

/* A program that was started without 0 and 1, and opens them when a child
   runs: the child's end is noticed, and nothing gets into a pipe. */
TEST(what_the_library_opens_is_above_two) {
  NEEDS_FORK;
  int saved[2], a, b, client[2], null;
  conc_task t = task_of(sleep_on, NULL);
  fflush(stdout);
  for (int i = 0; i < 2; i++) saved[i] = fcntl(i, F_DUPFD_CLOEXEC, 10);
  close(0), close(1);
  int rc = conc_process_start(&t);
  bool free = fcntl(0, F_GETFD) < 0 && fcntl(1, F_GETFD) < 0;
  null = open("/dev/null", O_RDWR);
  dup2(null, 1);
  int killed = conc_kill(&t), joined = conc_join(&t, 20 * test_slow());
  close(0), close(1);
  int piped = conc_pipe(&a, &b), waker = conc__waker_open(client);
  for (int i = 0; i < 2; i++) dup2(saved[i], i), close(saved[i]);
  CHECK(free);
  CHECK_EQ(rc, 0);
  CHECK_EQ(killed, 0);
  CHECK_EQ(joined, -ECHILD);
  CHECK_EQ(piped, 0);
  CHECK_EQ(waker, 0);
  CHECK(a > 2 && b > 2 && client[0] > 2 && client[1] > 2);
  close(a), close(b);
  conc__waker_close(client);
}

enum { LAST = 64 };

static void note_open(bool open_now[LAST]) {
  for (int fd = 0; fd < LAST; fd++) open_now[fd] = fcntl(fd, F_GETFD) >= 0;
}

/* The program closes, or replaces, all descriptors that it does not know. The
   children's ends are noticed all the same, and so are those of later ones. */
static void lose_descriptors(bool replace) {
  bool before[LAST], now[LAST];
  conc_task t[3];
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  note_open(before);
  for (int i = 0; i < 3; i++) {
    if (i == 2) { /* the last one is started afterwards */
      note_open(now);
      for (int fd = 0; fd < LAST; fd++)
        if (now[fd] && !before[fd]) {
          if (replace) CHECK(dup3(null, fd, O_CLOEXEC) == fd);
          else close(fd);
        }
    }
    t[i] = task_of(sleep_on, NULL);
    CHECK_EQ(conc_process_start(&t[i]), 0);
  }
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_kill(&t[i]), 0);
    CHECK_EQ(conc_join(&t[i], 20 * test_slow()), -ECHILD);
    CHECK_EQ(conc_exitcode(&t[i]), -SIGKILL);
  }
  for (int fd = 0; fd < LAST && replace; fd++)
    if (now[fd] && !before[fd]) { /* ours was left alone */
      CHECK(fcntl(fd, F_GETFD) >= 0);
      close(fd);
    }
  close(null);
  no_child_is_left();
}

TEST(children_end_though_the_library_has_lost_its_descriptors) {
  NEEDS_FORK;
  lose_descriptors(false);
  lose_descriptors(true);
}

#if CONC_HAVE_EPOLL
/* In the place of the library's poller the program has one of its own, which
   tells of what the library does not know. */
TEST(a_poller_in_the_place_of_the_librarys_is_the_programs) {
  NEEDS_FORK;
  struct epoll_event e;
  conc_task t = task_of(sleep_on, NULL);
  int ready[2], own = epoll_create1(EPOLL_CLOEXEC);
  CHECK_EQ(pipe(ready), 0);
  CHECK_EQ(write(ready[1], "x", 1), 1);
  memset(&e, 0, sizeof e);
  e.events = EPOLLIN;
  e.data.u64 = 7;
  CHECK_EQ(epoll_ctl(own, EPOLL_CTL_ADD, ready[0], &e), 0);
  CHECK_EQ(conc_process_start(&t), 0);
  int place = conc__reaper_poller;
  if (place >= 0) CHECK_EQ(dup2(own, place), place);
  CHECK_EQ(conc_kill(&t), 0);
  CHECK_EQ(conc_join(&t, 20 * test_slow()), -ECHILD);
  if (place >= 0) { /* it is as it was, and without the library's */
    CHECK_EQ(epoll_wait(place, &e, 1, 0), 1);
    CHECK_EQ(e.data.u64, 7);
    close(place);
  }
  close(own), close(ready[0]), close(ready[1]);
  no_child_is_left();
}
#endif

/* --- what is refused ----------------------------------------------------- */

#if TEST_CAN_REFUSE && defined(SYS_pidfd_open) && defined(SYS_clone3)
static void start_in_a_sandbox(void) {
  const char *const argv[] = {"sh", "-c", "exit 3", NULL};
  const char *const missing[] = {"/nowhere/sh", NULL};
  conc_task t = task_of(sleep_on, NULL);
  CHECK_EQ(conc_call(argv, CONC_FOREVER), 3);
  CHECK_EQ(conc_call(missing, CONC_FOREVER), -ENOENT);
  conc_popen p = script("echo text");
  CHECK_STR(text_of(&p), "text\n");
  if (TEST_TSAN) return;
  CHECK_EQ(conc_process_start(&t), 0);
  CHECK_EQ(conc_terminate(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
  CHECK_EQ(conc_exitcode(&t), -SIGTERM);
}

TEST(a_sandbox_may_not_know_the_newer_system_calls) {
  const long calls[] = {SYS_pidfd_open, SYS_clone3};
  NEEDS_REFUSAL;
  refuse(calls, 2, ENOSYS);
  start_in_a_sandbox();
}

TEST(a_sandbox_may_forbid_pidfds) {
  const long calls[] = {SYS_pidfd_open};
  NEEDS_REFUSAL;
  refuse(calls, 1, EPERM);
  start_in_a_sandbox();
}

/* Then there are no threads either; a call needs none. */
TEST(a_sandbox_may_forbid_clone3) {
  const char *const argv[] = {"sh", "-c", "exit 3", NULL};
  const char *const missing[] = {"/nowhere/sh", NULL};
  const long calls[] = {SYS_clone3};
  NEEDS_REFUSAL;
  NEEDS_FORK;
  if (!test_has_pidfds()) SKIP("without pidfds each child has a thread");
  refuse(calls, 1, EPERM);
  CHECK_EQ(conc_call(argv, CONC_FOREVER), 3);
  CHECK_EQ(conc_call(missing, CONC_FOREVER), -ENOENT);
}
#endif
#endif

/* The user may have no more processes, and threads, than there are. (Root may
   have any number.) */
TEST(a_start_that_finds_no_room_for_a_process_leaves_nothing) {
  struct rlimit none = {0, 0};
  const char *const argv[] = {"true", NULL};
  conc_task t = task_of(sleep_on, NULL);
  conc_popen p = popen_of(argv);
  NEEDS_FORK;
  if (TEST_ASAN) SKIP("its search for leaks needs a process of its own");
  if (geteuid() == 0 && setuid(65534) != 0) SKIP("it stays root");
  CHECK_EQ(setrlimit(RLIMIT_NPROC, &none), 0);
  p.std_in = p.std_out = CONC_PIPE;
  int rc = conc_popen_start(&p);
  if (rc == 0) SKIP("the system sets no limit");
  CHECK_EQ(rc, -EAGAIN);
  CHECK(p.in == -1 && p.out == -1);
  t.daemon = true;
  CHECK_EQ(conc_process_start(&t), -EAGAIN);
  CHECK_EQ(conc_call(argv, CONC_FOREVER), -EAGAIN);
  no_child_is_left();
}

/* --- who keeps an output ------------------------------------------------- */

/* The program itself has ended well: so what it has left behind does not make
   an error of that. */
TEST(an_output_that_a_grandchild_keeps_ends_with_the_timeout) {
  const char *const argv[] = {"sh", "-c", "echo early; sleep 5 & exit 3",
                              NULL};
  conc_popen p = popen_of(argv);
  conc_output out;
  double begin = conc_now();
  CHECK_EQ(conc_check_output(argv, &out, 2), 3);
  CHECK_STR(out.data, "early\n");
  conc_free(out.data);
  p.std_out = CONC_PIPE;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_join(&p.task, CONC_FOREVER), 0);
  CHECK_EQ(conc_communicate(&p, NULL, 0, &out, NULL, 0.3), 3);
  CHECK_STR(out.data, "early\n");
  conc_free(out.data);
  CHECK_EQ(p.out, -1);
  CHECK_EQ(conc_popen_wait(&p, CONC_FOREVER), 3);
  CHECK(conc_now() - begin < 20 * test_slow());
}

/* --- programs that end with us ------------------------------------------- */

/* A process that starts a program, which tells its number and that of a child
   of its own, and is killed then. *program and *child may live on. */
static void killed_starter(bool daemon, bool group, pid_t *program,
                           pid_t *child) {
  char line[40];
  int fds[2], numbers[2] = {0, 0};
  CHECK_EQ(pipe(fds), 0);
  pid_t starter = fork();
  if (starter == 0) {
    conc_popen p = script("sleep 60 & echo $$ $!; exec sleep 61");
    p.std_out = fds[1];
    p.new_group = group;
    p.task.daemon = daemon;
    if (conc_popen_start(&p) != 0) _exit(1);
    while (true) pause();
  }
  close(fds[1]);
  ssize_t n = conc_read(fds[0], line, sizeof line - 1, 20);
  CHECK(n > 0);
  line[n] = 0;
  CHECK_EQ(sscanf(line, "%d %d", &numbers[0], &numbers[1]), 2);
  *program = numbers[0];
  *child = numbers[1];
  CHECK(!is_dead(*program) && !is_dead(*child));
  CHECK_EQ(kill(starter, SIGKILL), 0);
  CHECK_EQ(waitpid(starter, NULL, 0), starter);
  close(fds[0]);
}
/* Whether the end of a pipe can have a signal of our choice. */
static bool has_setsig(void) {
#ifdef F_SETSIG
  int fds[2];
  bool has = CONC_HAVE_SETSIG && pipe(fds) == 0;
  if (!has) return false;
  has = fcntl(fds[0], F_SETSIG, 0) == 0;
  close(fds[0]);
  close(fds[1]);
  return has;
#else
  return false;
#endif
}
TEST(a_program_that_is_a_daemon_ends_with_its_parent) {
  pid_t program, child;
  if (!has_setsig()) {
    conc_popen p = script("true");
    p.task.daemon = true;
    CHECK_EQ(conc_popen_start(&p), -ENOSYS);
    return;
  }
  killed_starter(true, false, &program, &child);
  UNTIL(is_dead(program));
  CHECK(!is_dead(child)); /* it is the program's business */
  kill(child, SIGKILL);
  killed_starter(true, true, &program, &child);
  UNTIL(is_dead(program) && is_dead(child));
  /* And one that is none does not. */
  killed_starter(false, false, &program, &child);
  CHECK(!is_dead(program));
  kill(program, SIGKILL);
  kill(child, SIGKILL);
}
/* Until then it is a program like any other, also for the children of its
   parent: they do not keep it alive. */
TEST(a_daemon_is_a_program_like_any_other) {
  pid_t other;
  conc_popen p = script("read line; echo $line; exit 3");
  conc_output out;
  if (!has_setsig()) SKIP("there is no F_SETSIG");
  p.std_in = p.std_out = CONC_PIPE;
  p.task.daemon = true;
  CHECK_EQ(conc_popen_start(&p), 0);
  other = fork();
  if (other == 0) {
    while (true) pause();
  }
  CHECK_EQ(conc_communicate(&p, "a\n", 2, &out, NULL, 20), 3);
  CHECK_STR(out.data, "a\n");
  conc_free(out.data);
  kill(other, SIGKILL);
  CHECK_EQ(waitpid(other, NULL, 0), other);
  /* What cannot be executed says so. */
  const char *const nothing[] = {"/nowhere/at/all", NULL};
  p = popen_of(nothing);
  p.task.daemon = true;
  CHECK_EQ(conc_popen_start(&p), -ENOENT);
}

/* --- an end with grace --- */

/* It says that it is ready, and how it takes SIGTERM. */
static void ready_program(conc_popen *p, const char *text) {
  char line[20];
  *p = script(text);
  p->std_out = CONC_PIPE;
  p->std_err = CONC_DEVNULL; /* where sh tells of what was terminated */
  p->new_group = true;
  CHECK_EQ(conc_popen_start(p), 0);
  CHECK_EQ(conc_popen_read_line(p, line, sizeof line, 20), 6);
  CHECK_STR(line, "ready\n");
}
static void *stop_programs(void *arg) {
  char line[20];
  conc_popen p;
  ready_program(&p, "trap 'echo bye; exit 7' TERM; echo ready; "
                    "while :; do sleep 0.01; done");
  CHECK_EQ(conc_popen_stop(&p, 20), 7);
  CHECK_EQ(conc_popen_read_line(&p, line, sizeof line, 20), 4);
  CHECK_STR(line, "bye\n");
  CHECK_EQ(conc_popen_read_line(&p, line, sizeof line, 20), 0);
  CHECK_EQ(conc_popen_stop(&p, 20), 7); /* it has ended */
  conc_popen_close(&p);
  ready_program(&p, "echo ready; exec sleep 60");
  CHECK_EQ(conc_popen_stop(&p, 20), -ECHILD);
  CHECK_EQ(conc_exitcode(&p.task), -SIGTERM);
  conc_popen_close(&p);
  /* It does not listen. */
  ready_program(&p, "trap '' TERM; echo ready; while :; do sleep 1; done");
  CHECK_EQ(conc_popen_stop(&p, 0.02), -ECHILD);
  CHECK_EQ(conc_exitcode(&p.task), -SIGKILL);
  conc_popen_close(&p);
  return arg;
}
TEST_BOTH(a_program_is_stopped_with_grace, stop_programs)

/* What the program has left in its group goes with it, with a pipe or without:
   the number of the group is its own until then. */
TEST(a_group_is_stopped_as_a_whole) {
  char line[20];
  for (int piped = 0; piped < 2; piped++) {
    int fds[2];
    CHECK_EQ(pipe(fds), 0);
    conc_popen p = script("trap '' TERM; sleep 60 & trap 'exit 4' TERM; "
                          "echo $! >&2; while :; do sleep 0.01; done");
    p.new_group = true;
    p.std_out = piped ? CONC_PIPE : 0;
    p.std_err = fds[1];
    CHECK_EQ(conc_popen_start(&p), 0);
    close(fds[1]);
    ssize_t n = conc_read(fds[0], line, sizeof line - 1, 20);
    CHECK(n > 0);
    line[n] = 0;
    CHECK_EQ(conc_popen_stop(&p, 20), 4);
    UNTIL(is_dead((pid_t)atoi(line)));
    conc_popen_close(&p);
    close(fds[0]);
    no_child_is_left();
  }
}

static bool stop_begun;
static void *stop_for_ever(void *popen) {
  __atomic_store_n(&stop_begun, true, __ATOMIC_RELEASE);
  CHECK_EQ(conc_popen_stop((conc_popen *)popen, CONC_FOREVER), -ECANCELED);
  return NULL;
}
TEST(a_stop_that_is_cancelled_kills) {
  conc_popen p;
  conc_popen never = script("true");
  conc_task t;
  ready_program(&p, "trap '' TERM; echo ready; while :; do sleep 1; done");
  CHECK_EQ(conc_popen_stop(&never, 1), -EINVAL);
  CHECK_EQ(conc_popen_read_line(&never, NULL, 0, 1), -EINVAL);
  start(conc_thread_start, &t, stop_for_ever, &p);
  UNTIL(__atomic_load_n(&stop_begun, __ATOMIC_ACQUIRE));
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, 20), -ECANCELED);
  CHECK(!conc_is_alive(&p.task));
  CHECK_EQ(conc_exitcode(&p.task), -SIGKILL);
  conc_popen_close(&p);
}

/* Several programs in one loop, each line as it comes. */
static int lines_read;
static void *follow(void *popen) {
  conc_popen *p = (conc_popen *)popen;
  char line[20];
  while (conc_popen_read_line(p, line, sizeof line, 20) > 0) lines_read++;
  CHECK_EQ(conc_popen_wait(p, 20), 0);
  conc_popen_close(p);
  return NULL;
}
static void *follow_all(void *arg) {
  conc_popen p[4];
  conc_task t[4];
  lines_read = 0;
  for (int i = 0; i < 4; i++) {
    p[i] = script("for i in 1 2 3; do echo $i; sleep 0.01; done; printf end");
    p[i].std_out = CONC_PIPE;
    CHECK_EQ(conc_popen_start(&p[i]), 0);
    start(conc_coro_start, &t[i], follow, &p[i]);
  }
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], 20), 0);
  CHECK_EQ(lines_read, 16);
  return arg;
}
TEST(lines_of_several_programs_come_in_one_loop) { run(follow_all, NULL); }

/* What a program has used is told with its end: to a task that joins it, in a
   call, and of a group when its number goes. */
static void *use_cpu(void *arg) {
  for (int i = 0; i < 3; i++) {
    conc_popen p = script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    conc_output out;
    if (i > 0) p.std_out = CONC_PIPE;
    p.new_group = i == 2;
    CHECK_EQ(conc_popen_start(&p), 0);
    if (i == 0)
      CHECK_EQ(conc_popen_wait(&p, 25), 0);
    else {
      CHECK_EQ(conc_communicate(&p, NULL, 0, &out, NULL, 25), 0);
      conc_free(out.data);
    }
    conc_popen_close(&p);
    if (!CONC_HAVE_WAIT4) continue;
    const conc_usage *used = &p.usage;
    CHECK(used->user + used->system > 0.001);
    CHECK(used->user + used->system < 25);
    CHECK(used->max_memory > 100000 && used->max_memory < 1u << 30);
  }
  return arg;
}
TEST_BOTH(what_a_program_has_used_is_told, use_cpu)

/* It is ready at any time: the time limit, a cancellation and other coroutines
   come all the same. */
static void *call_a_flood(void *arg) {
  const char *const argv[] = {"dd", "if=/dev/zero", "bs=64k", "status=none",
                              NULL};
  conc_output out;
  double begin = conc_now();
  CHECK_EQ(conc_check_output(argv, &out, 0.1), -ETIMEDOUT);
  CHECK(conc_now() - begin < 5 * test_slow() && out.size > 0);
  conc_free(out.data);
  return arg;
}

TEST_BOTH(a_flood_of_output_ends_with_the_timeout, call_a_flood)

static int talk_begun;

static void *communicate_until_cancelled(void *arg) {
  conc_popen *p = (conc_popen *)arg;
  conc_output out;
  STORE(talk_begun, 1);
  int rc = conc_communicate(p, "text", 4, &out, NULL, CONC_FOREVER);
  conc_free(out.data);
  return (void *)(intptr_t)rc;
}

/* At any point: what was read is freed, the program is dead, or goes on. */
static void *cancel_talks(void *how) {
  for (int i = 0; i < 40; i++) {
    conc_popen p = script("cat; sleep 60");
    conc_task t;
    p.std_in = p.std_out = CONC_PIPE;
    p.new_group = true;
    p.kill_on_timeout = i % 2;
    CHECK_EQ(conc_popen_start(&p), 0);
    STORE(talk_begun, 0);
    start(how == NULL ? conc_thread_start : conc_coro_start, &t,
          communicate_until_cancelled, &p);
    UNTIL(LOAD(talk_begun));
    conc_sleep((double)(test_random() % 3000) * 1e-6);
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
    CHECK_EQ((intptr_t)conc_result(&t), -ECANCELED);
    CHECK_EQ(conc_is_alive(&p.task), i % 2 == 0);
    p.kill_on_timeout = true;
    if (i % 2 == 0) CHECK_EQ(conc_popen_wait(&p, 0), -ETIMEDOUT);
    CHECK_EQ(conc_exitcode(&p.task), -SIGKILL);
    conc_popen_close(&p);
  }
  no_child_is_left();
  return NULL;
}

TEST_BOTH(talks_are_cancelled_at_any_moment, cancel_talks)

int main(int argc, char **argv) {
  conc_main(argc, argv);
  if (argc == 2 && strcmp(argv[1], "--exit-codes") == 0)
    return count_exit_codes();
  if (argc == 2 && strcmp(argv[1], "--hup") == 0) {
    conc_popen p = script("kill -HUP $$; exit 6");
    return code_of(&p) == 6 ? 6 : 7;
  }
  if (argc == 2 && strcmp(argv[1], "--spawn") == 0) {
    conc_task t = task_of(two_2, NULL);
    t.start_method = CONC_SPAWN;
    if (conc_process_start(&t) != 0 || conc_join(&t, 20) != 0) return 1;
    return conc_exitcode(&t) == 2 ? 5 : 1;
  }
  return test_main(argc, argv);
}
