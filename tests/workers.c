/* Workers that are processes: what they find when they begin, whoever started
   them and whenever; what becomes of them and of their fork server; and what a
   job may start. */
#define CONC__PROCPOOL_PATIENCE (TEST_ASAN ? 1.5 : 0.5)
#define CONC__PROCPOOL_URGE (TEST_ASAN ? 1.5 : 0.5)
#include "inside.h"
#include <dirent.h>
#include <sys/resource.h>

static conc_pool pool_of(size_t workers) {
  conc_pool p;
  memset(&p, 0, sizeof p);
  p.workers = workers;
  return p;
}

static conc_task job_of(conc_fn *fn, void *arg, size_t size) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = fn;
  t.arg = arg;
  t.size = size;
  return t;
}

static int apply(conc_pool *p, conc_fn *fn, void *arg, size_t size) {
  conc_task t = job_of(fn, arg, size);
  return conc_pool_apply(p, &t, 20 * test_slow());
}

static void finish(conc_pool *p) {
  CHECK_EQ(conc_pool_close(p), 0);
  CHECK_EQ(conc_pool_join(p, 20 * test_slow()), 0);
}

static void *add_one(void *arg) {
  ++*(int *)arg;
  return NULL;
}

static void *sleep_long(void *arg) {
  conc_sleep(100);
  return arg;
}

static void *tell_pid(void *arg) {
  *(int *)arg = (int)getpid();
  return NULL;
}

/* Whether the other end of a pipe is closed everywhere within 20 s. */
static bool sees_end(int fd) {
  char c;
  return conc_read(fd, &c, 1, 20 * test_slow()) == 0;
}

/* --- what a worker finds ------------------------------------------------- */

/* What a job can tell of its process. */
typedef struct scene {
  pid_t parent;
  uintptr_t stack;
  int variable, fds, blocked, usr1, chld;
} scene;

static int variable;
static void nothing(int signal) { (void)signal; }

static int count_fds(void) {
  int n = 0;
  for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

static void *look(void *arg) {
  scene *s = (scene *)arg;
  struct sigaction action;
  sigset_t mask;
  memset(s, 0, sizeof *s);
  s->parent = getppid();
  s->stack = (uintptr_t)&action >> 12;
  s->variable = variable;
  s->fds = count_fds();
  sigprocmask(SIG_SETMASK, NULL, &mask);
  for (int i = 1; i < 32; i++) s->blocked += sigismember(&mask, i) == 1;
  sigaction(SIGUSR1, NULL, &action);
  s->usr1 = action.sa_handler == nothing;
  sigaction(SIGCHLD, NULL, &action);
  s->chld = action.sa_handler == SIG_IGN;
  return NULL;
}

static void *see_scenes(void *arg) {
  conc_pool p = pool_of(1);
  const char *const argv[] = {"cat", NULL};
  conc_popen program;
  scene first, other;
  int fds[2], before = count_fds();
  memset(&program, 0, sizeof program);
  program.argv = argv;
  program.std_in = program.std_out = CONC_PIPE;
  p.max_tasks_per_worker = 1;
  variable = 1;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(apply(&p, look, &first, sizeof first), 0);
  CHECK(first.parent == conc_pid(&p.state->procs->server.task));
  CHECK_EQ(first.variable, 1);
  CHECK_EQ(first.blocked, 0);
  CHECK(!first.usr1 && !first.chld);
  /* The memory that processes share, the pipe to its parent, and the socket
     that says that it is there. */
  if (arg == NULL) CHECK_EQ(first.fds, before + 3);
  variable = 2;
  CHECK(pipe(fds) == 0);
  signal(SIGUSR1, nothing);
  CHECK_EQ(conc_popen_start(&program), 0);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(apply(&p, look, &other, sizeof other), 0);
    CHECK(memcmp(&first, &other, sizeof first) == 0);
  }
  signal(SIGUSR1, SIG_DFL);
  CHECK_EQ(conc_communicate(&program, "x", 1, NULL, NULL, 20), 0);
  close(fds[0]), close(fds[1]);
  finish(&p);
  return arg;
}

TEST(all_workers_find_what_was_there_when_the_pool_was_started) {
  conc_task t = job_of(see_scenes, &t, 0);
  NEEDS_FORK;
  see_scenes(NULL);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_run(&t), 0);
}

TEST(workers_have_the_signals_of_their_program_and_not_the_servers) {
  conc_pool p = pool_of(2);
  scene s;
  sigset_t some;
  NEEDS_FORK;
  sigemptyset(&some);
  sigaddset(&some, SIGUSR2);
  sigaddset(&some, SIGCHLD);
  sigprocmask(SIG_BLOCK, &some, NULL);
  signal(SIGUSR1, nothing);
  p.max_tasks_per_worker = 1;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 6; i++) {
    CHECK_EQ(apply(&p, look, &s, sizeof s), 0);
    CHECK_EQ(s.blocked, 2);
    CHECK(s.usr1);
  }
  /* Nothing but SIGKILL and SIGSTOP does anything to the server. */
  for (int i = 1; i < 32; i++)
    if (i != SIGKILL && i != SIGSTOP && i != SIGSEGV && i != SIGBUS &&
        i != SIGFPE && i != SIGILL)
      kill(conc_pid(&p.state->procs->server.task), i);
  for (int i = 0; i < 4; i++)
    CHECK_EQ(apply(&p, look, &s, sizeof s), 0);
  finish(&p);
}

/* A pool of another thread does not keep this one's pipes and sockets. */
TEST(pools_inherit_nothing_of_each_other) {
  conc_pool a = pool_of(1), b = pool_of(1);
  scene s, t;
  NEEDS_FORK;
  CHECK_EQ(conc_pool_start(&a), 0);
  CHECK_EQ(conc_pool_start(&b), 0);
  CHECK_EQ(apply(&a, look, &s, sizeof s), 0);
  CHECK_EQ(apply(&b, look, &t, sizeof t), 0);
  CHECK_EQ(s.fds, t.fds);
  finish(&a);
  finish(&b);
}

/* --- stdio --------------------------------------------------------------- */

static void *commands(void *arg) {
  char line[80];
  return fgets(line, sizeof line, stdin) != NULL ? arg : NULL;
}

TEST(workers_are_replaced_and_processes_start_while_a_thread_reads) {
  conc_pool p = pool_of(2);
  conc_task reader = job_of(commands, &reader, 0), child;
  int fds[2], n = 0, in = dup(0);
  NEEDS_FORK;
  CHECK(pipe(fds) == 0 && dup2(fds[0], 0) == 0);
  p.max_tasks_per_worker = 2;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_thread_start(&reader), 0);
  while (ftrylockfile(stdin) == 0) funlockfile(stdin), usleep(1000);
  for (int i = 0; i < 10; i++) CHECK_EQ(apply(&p, add_one, &n, sizeof n), 0);
  CHECK_EQ(n, 10);
  child = job_of(add_one, &n, 0);
  CHECK_EQ(conc_process_start(&child), 0);
  CHECK_EQ(conc_join(&child, 20 * test_slow()), 0);
  CHECK(write(fds[1], "x\n", 2) == 2);
  CHECK_EQ(conc_join(&reader, CONC_FOREVER), 0);
  CHECK(conc_result(&reader) != NULL);
  finish(&p);
  dup2(in, 0);
  close(in), close(fds[0]), close(fds[1]);
}

static FILE *book;
static int stop, printed;
static void *write_lines(void *arg) {
  while (!LOAD(stop)) {
    fprintf(book, "line %d\n", printed++);
    fprintf(stdout, "line %d\n", printed++);
    if (printed % 20 == 0) usleep(10);
  }
  return arg;
}

/* How many lines a file has; each must be whole, and there once. */
static int lines_of(int fd, char *seen) {
  FILE *f = fdopen(fd, "r");
  char line[64], nl;
  int n = 0, i;
  CHECK(f != NULL);
  rewind(f);
  while (fgets(line, sizeof line, f) != NULL) {
    CHECK(sscanf(line, "line %d%c", &i, &nl) == 2 && nl == '\n');
    CHECK(i >= 0 && i < printed && seen[i]++ == 0);
    n++;
  }
  fclose(f);
  return n;
}

static int temporary(void) {
  char name[] = "/tmp/conc-lines-XXXXXX";
  int fd = mkstemp(name);
  CHECK(fd >= 0 && fcntl(fd, F_SETFL, O_APPEND) == 0);
  unlink(name);
  return fd;
}

/* A thread prints to stdout and to a file while processes start and workers
   are replaced: each line comes once. */
static void lines_come_once(bool pools) {
  conc_pool p = pool_of(2);
  conc_task w = job_of(write_lines, NULL, 0);
  double end = test_now() + 0.4;
  int fds[2] = {temporary(), temporary()}, out = dup(1), n = 0;
  char *seen;
  p.max_tasks_per_worker = 1;
  fflush(stdout);
  dup2(fds[1], 1);
  CHECK((book = fdopen(dup(fds[0]), "w")) != NULL);
  stop = printed = 0;
  if (pools) CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_thread_start(&w), 0);
  while (test_now() < end) {
    conc_task t = job_of(add_one, &n, sizeof n);
    if (pools) {
      CHECK_EQ(conc_pool_apply(&p, &t, CONC_FOREVER), 0);
    } else {
      CHECK_EQ(conc_process_start(&t), 0);
      CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    }
  }
  if (pools) finish(&p);
  STORE(stop, 1);
  CHECK_EQ(conc_join(&w, CONC_FOREVER), 0);
  fclose(book);
  fflush(stdout);
  dup2(out, 1);
  close(out);
  seen = (char *)calloc((size_t)printed + 1, 1);
  CHECK_EQ(lines_of(fds[0], seen) + lines_of(fds[1], seen), printed);
  free(seen);
}
TEST(lines_come_once_while_processes_start) {
  NEEDS_FORK;
  lines_come_once(false);
}
TEST(lines_come_once_while_workers_are_replaced) {
  NEEDS_FORK;
  lines_come_once(true);
}

static void *print_job(void *arg) {
  printf("[job]");
  return arg;
}
TEST(a_worker_writes_what_its_jobs_print_and_nothing_of_the_programs) {
  conc_pool p = pool_of(1);
  int fd = temporary(), out = dup(1);
  char text[64] = "";
  NEEDS_FORK;
  fflush(stdout);
  dup2(fd, 1);
  printf("[before]");
  CHECK_EQ(conc_pool_start(&p), 0);
  printf("[after]");
  CHECK_EQ(apply(&p, print_job, NULL, 0), 0);
  CHECK_EQ(apply(&p, print_job, NULL, 0), 0);
  finish(&p);
  fflush(stdout);
  dup2(out, 1);
  CHECK(pread(fd, text, sizeof text - 1, 0) > 0);
  CHECK_STR(text, "[before][job][job][after]");
  close(fd), close(out);
}

/* --- what a job may start ------------------------------------------------ */

static void *five(void *arg) {
  (void)arg;
  return (void *)5;
}
CONC_PROCESS_TARGET(five)

static void *start_all(void *arg) {
  const char *const argv[] = {"sh", "-c", "exit 6", NULL};
  conc_pool p = pool_of(2);
  conc_task t;
  int n = 0;
  p.max_tasks_per_worker = 1;
  for (int method = CONC_FORK; method <= CONC_SPAWN; method++) {
    t = job_of(five, NULL, 0);
    t.start_method = method;
    CHECK_CHILD(conc_process_start(&t) == 0);
    CHECK_CHILD(conc_join(&t, 20 * test_slow()) == 0);
    CHECK_CHILD(conc_exitcode(&t) == 5);
  }
  CHECK_CHILD(conc_call(argv, 20 * test_slow()) == 6);
  CHECK_CHILD(conc_pool_start(&p) == 0);
  for (int i = 0; i < 4; i++)
    CHECK_CHILD(apply(&p, add_one, &n, sizeof n) == 0);
  CHECK_CHILD(n == 4);
  CHECK_CHILD(conc_pool_close(&p) == 0 && conc_pool_join(&p, 20) == 0);
  *(int *)arg = 1;
  return NULL;
}

TEST(a_job_starts_processes_programs_and_pools) {
  NEEDS_FORK;
  if (test_wrapped("qemu") || test_wrapped("valgrind"))
    SKIP("this tool cannot run the same program in a child");
  for (int kind = CONC_PROCESS; kind <= CONC_THREAD; kind++) {
    conc_pool p = pool_of(1);
    p.kind = kind;
    CHECK_EQ(conc_pool_start(&p), 0);
    for (int i = 0; i < 2; i++) {
      int done = 0;
      CHECK_EQ(apply(&p, start_all, &done, sizeof done), 0);
      CHECK_EQ(done, 1);
    }
    finish(&p);
  }
}

/* --- how they end -------------------------------------------------------- */

/* A process that starts a pool, whose workers have the pipe, too. */
static void *be_owner(void *arg) {
  int fd = *(int *)arg;
  conc_pool p = pool_of(2);
  int pid;
  CHECK_CHILD(conc_pool_start(&p) == 0);
  CHECK_CHILD(apply(&p, tell_pid, &pid, sizeof pid) == 0);
  if (CONC_HAVE_SETSIG && fd % 2 == 0)
    kill(conc_pid(&p.state->procs->server.task), SIGSTOP);
  CHECK_CHILD(write(fd, "x", 1) == 1);
  return sleep_long(NULL);
}

TEST(nothing_is_left_when_the_program_is_killed) {
  NEEDS_FORK;
  for (int i = 0; i < 3; i++) {
    int fds[2];
    char c;
    CHECK(pipe(fds) == 0);
    if (i == 1) fds[1] = dup(fds[1]); /* another number, which may be even */
    conc_task t = job_of(be_owner, &fds[1], 0);
    CHECK_EQ(conc_process_start(&t), 0);
    for (int fd = fds[0] + 1; fd <= fds[1]; fd++) close(fd);
    CHECK_EQ(conc_read(fds[0], &c, 1, CONC_FOREVER), 1);
    CHECK_EQ(conc_kill(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECHILD);
    CHECK(sees_end(fds[0]));
    close(fds[0]);
  }
}

static int pipe_of_inner = -1;
static void *own_a_pool(void *arg) {
  conc_pool p = pool_of(1);
  CHECK_CHILD(conc_pool_start(&p) == 0);
  CHECK_CHILD(write(pipe_of_inner, "x", 1) == 1);
  sleep_long(NULL);
  return arg;
}
TEST(a_worker_that_is_killed_takes_its_own_pools_along) {
  conc_pool p = pool_of(1);
  conc_task job = job_of(own_a_pool, NULL, 0);
  int fds[2];
  char c;
  NEEDS_FORK;
  CHECK(pipe(fds) == 0);
  pipe_of_inner = fds[1];
  CHECK_EQ(conc_pool_start(&p), 0);
  close(fds[1]);
  CHECK_EQ(conc_pool_submit(&p, &job), 0);
  CHECK_EQ(conc_read(fds[0], &c, 1, CONC_FOREVER), 1);
  CHECK_EQ(conc_pool_terminate(&p), 0);
  CHECK_EQ(conc_pool_join(&p, CONC_FOREVER), 0);
  CHECK(sees_end(fds[0]));
  close(fds[0]);
}

/* What a job has forked, and left: it is none of the pool's business. */
static void *leave_a_child(void *arg) {
  if (fork() == 0) {
    for (;;) pause();
  }
  return arg;
}

/* --- the fork server and its spare ---------------------------------------- */

/* The parent of a process, and whether it is stopped or a zombie; 0: there is
   no such process. */
static pid_t parent_of(pid_t pid, char *state) {
  char path[64];
  int parent = 0;
  FILE *f;
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  f = fopen(path, "r");
  if (f == NULL) return 0;
  if (fscanf(f, "%*d (%*[^)]) %c %d", state, &parent) != 2) parent = 0;
  fclose(f);
  return parent;
}

/* Awaits that a process is in that state; 0: that it is no more. */
static void await_state(pid_t pid, char wanted) {
  for (char state = 1; state != wanted; usleep(1000))
    if (parent_of(pid, &state) == 0) state = 0;
}

/* The child of a server that is none of its two workers, and no zombie; 0:
   there is none. */
static pid_t spare_of(pid_t server, const int workers[2]) {
  for (int round = 0; round < 5000; round++) {
    DIR *d = opendir("/proc");
    struct dirent *e;
    pid_t found = 0;
    if (d == NULL) return 0;
    while ((e = readdir(d)) != NULL) {
      pid_t pid = (pid_t)atoi(e->d_name);
      char state = 0;
      if (pid > 0 && pid != workers[0] && pid != workers[1] &&
          parent_of(pid, &state) == server && state != 'Z')
        found = pid;
    }
    closedir(d);
    if (found != 0) return found;
    usleep(1000);
  }
  return 0;
}

/* Whether this system shows processes, and this tool runs our children as
   they are. */
static bool shows_processes(void) {
  char state;
  return parent_of(getpid(), &state) == getppid() && !test_wrapped("qemu");
}

/* Two jobs, one in each worker, which run until `go` is set. What they tell is
   here when they have ended. */
typedef struct held {
  int worker, server;
} held;
static conc_event *go;     /* shared */
static conc_barrier *both; /* shared */
static void *be_held(void *arg) {
  held *h = (held *)arg;
  h->worker = (int)getpid();
  h->server = (int)getppid();
  CHECK_CHILD(conc_barrier_wait(both, 20 * test_slow()) >= 0);
  CHECK_CHILD(conc_event_wait(go, 20 * test_slow()) == 0);
  return NULL;
}
static void *tell(void *arg) {
  held *h = (held *)arg;
  h->worker = (int)getpid();
  h->server = (int)getppid();
  CHECK_CHILD(conc_barrier_wait(both, 20 * test_slow()) >= 0);
  return NULL;
}

static void hold_begin(void) {
  go = (conc_event *)conc_shared_alloc(sizeof *go);
  both = (conc_barrier *)conc_shared_alloc(sizeof *both);
  CHECK(go != NULL && both != NULL);
  both->parties = 3; /* the two jobs, and the test */
  CHECK_EQ(conc_event_init_shared(go), 0);
  CHECK_EQ(conc_barrier_init_shared(both), 0);
}
static void hold_end(void) {
  conc_shared_free(go);
  conc_shared_free(both);
}

/* Runs fn in both workers, and returns when it has begun in both. */
static void begin_both(conc_pool *p, conc_task jobs[2], conc_fn *fn,
                       held h[2]) {
  for (int i = 0; i < 2; i++) {
    jobs[i] = job_of(fn, &h[i], sizeof h[i]);
    CHECK_EQ(conc_pool_submit(p, &jobs[i]), 0);
  }
  CHECK(conc_barrier_wait(both, 20 * test_slow()) >= 0);
}
static void join_both(conc_task jobs[2], int status) {
  for (int i = 0; i < 2; i++)
    CHECK_EQ(conc_join(&jobs[i], 20 * test_slow()), status);
}
/* Who works for the pool now. */
static void meet_both(conc_pool *p, held h[2]) {
  conc_task jobs[2];
  begin_both(p, jobs, tell, h);
  join_both(jobs, 0);
  CHECK(h[0].worker != h[1].worker);
}
static pid_t spare_now(held h[2]) {
  int workers[2] = {h[0].worker, h[1].worker};
  return spare_of(h[0].server, workers);
}

/* Each time the server is killed, two jobs go on, in workers that have become
   its orphans, and end. What is to be done with the orphans, the next server
   does: one that ends is replaced, and one whose job is cancelled is
   killed. */
TEST(jobs_go_on_when_the_fork_server_is_killed_again_and_again) {
  conc_pool p = pool_of(2);
  held h[2], other[2];
  NEEDS_FORK;
  hold_begin();
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int round = 0; round < 4; round++) {
    conc_task jobs[2], more;
    int n = 0;
    conc_event_clear(go);
    meet_both(&p, h);
    CHECK_EQ(h[0].server, h[1].server);
    begin_both(&p, jobs, be_held, other);
    CHECK_EQ(kill(h[0].server, SIGKILL), 0);
    if (round % 2 == 0) { /* they live, and end */
      CHECK_EQ(conc_event_set(go), 0);
      join_both(jobs, 0);
      for (int i = 0; i < 2; i++) kill(h[i].worker, SIGKILL);
    } else { /* they are killed */
      for (int i = 0; i < 2; i++) CHECK_EQ(conc_cancel(&jobs[i]), 0);
      join_both(jobs, -ECANCELED);
    }
    /* New workers come, of another server. */
    more = job_of(add_one, &n, sizeof n);
    for (int left = 2; left > 0;) {
      int rc = conc_pool_apply(&p, &more, 20 * test_slow());
      CHECK(rc == 0 || rc == -ECHILD); /* it met one that was killed */
      left -= rc == 0;
    }
    for (;;) {
      meet_both(&p, other);
      if (other[0].worker != h[0].worker && other[0].worker != h[1].worker &&
          other[1].worker != h[0].worker && other[1].worker != h[1].worker)
        break;
    }
    CHECK_EQ(other[0].server, other[1].server);
    CHECK(other[0].server != h[0].server);
  }
  finish(&p);
  hold_end();
}

TEST(a_pool_ends_in_whose_life_fork_servers_were_killed) {
  NEEDS_FORK;
  hold_begin();
  for (int round = 0; round < 4; round++) {
    conc_pool p = pool_of(2);
    conc_task jobs[2];
    held h[2];
    int fds[2];
    CHECK(pipe(fds) == 0);
    conc_event_clear(go);
    CHECK_EQ(conc_pool_start(&p), 0);
    close(fds[1]);
    begin_both(&p, jobs, be_held, h);
    CHECK_EQ(kill(conc_pid(&p.state->procs->server.task), SIGKILL), 0);
    if (round % 2 == 0) usleep(2000);
    if (round < 2) {
      CHECK_EQ(conc_pool_terminate(&p), 0);
      join_both(jobs, -ECANCELED);
      CHECK_EQ(conc_pool_join(&p, 20 * test_slow()), 0);
    } else {
      CHECK_EQ(conc_event_set(go), 0);
      finish(&p);
      join_both(jobs, 0);
    }
    CHECK(sees_end(fds[0])); /* no process is left */
    close(fds[0]);
  }
  hold_end();
}

TEST(a_pool_fails_its_jobs_when_its_fork_server_and_the_spare_are_killed) {
  NEEDS_FORK;
  if (!shows_processes()) SKIP("no spare can be found here");
  hold_begin();
  for (int round = 0; round < 4; round++) {
    conc_pool p = pool_of(2);
    conc_task jobs[20];
    held h[2];
    int fds[2], n = 0;
    pid_t spare;
    CHECK(pipe(fds) == 0);
    p.retries = 3;
    CHECK_EQ(conc_pool_start(&p), 0);
    close(fds[1]);
    meet_both(&p, h);
    if (round == 2) CHECK_EQ(apply(&p, leave_a_child, NULL, 0), 0);
    if (round == 3) { /* that of the second server */
      CHECK_EQ(kill(h[0].server, SIGKILL), 0);
      kill(h[0].worker, SIGKILL), kill(h[1].worker, SIGKILL);
      for (int old[2] = {h[0].worker, h[1].worker};
           h[0].worker == old[0] || h[0].worker == old[1] ||
           h[1].worker == old[0] || h[1].worker == old[1];)
        meet_both(&p, h);
    }
    spare = spare_now(h);
    CHECK(spare > 0);
    for (int i = 0; i < 20; i++) {
      jobs[i] = job_of(sleep_long, NULL, 0);
      CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
    }
    if (round == 1) usleep(20000);
    kill(spare, SIGSTOP); /* so that it does not take over in between */
    await_state(spare, 'T');
    kill(h[0].server, SIGKILL);
    kill(spare, SIGKILL);
    for (int i = 0; i < 20; i++)
      CHECK_EQ(conc_join(&jobs[i], 20 * test_slow()), -ECHILD);
    CHECK_EQ(apply(&p, add_one, &n, sizeof n), -ECHILD);
    if (round != 2) CHECK(sees_end(fds[0]));
    close(fds[0]);
    finish(&p);
  }
  hold_end();
}

/* How often the thread of that name has slept so far; -1: there is none. */
static long sleeps_of(const char *name) {
  long n = -1;
  struct dirent *entry;
  DIR *dir = opendir("/proc/self/task");
  while (dir != NULL && n < 0 && (entry = readdir(dir)) != NULL) {
    char path[400], line[100] = "";
    FILE *f;
    snprintf(path, sizeof path, "/proc/self/task/%.200s/comm", entry->d_name);
    f = fopen(path, "r");
    if (f == NULL) continue;
    if (fgets(line, sizeof line, f) == NULL) line[0] = 0;
    fclose(f);
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, name) != 0) continue;
    snprintf(path, sizeof path, "/proc/self/task/%.200s/status",
             entry->d_name);
    f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
      if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1) break;
    if (f != NULL) fclose(f);
  }
  if (dir != NULL) closedir(dir);
  return n;
}

/* A pool with nothing to do does nothing, also in whose life the fork server
   was killed: it hears of the end of the next one. */
TEST(a_keeper_sleeps_when_its_fork_server_was_killed) {
  conc_pool p = pool_of(2);
  held h[2];
  int i, quiet = 0;
  NEEDS_FORK;
  if (!shows_processes()) SKIP("no spare can be found here");
  hold_begin();
  CHECK_EQ(conc_pool_start(&p), 0);
  meet_both(&p, h);
  if (sleeps_of("PoolKeeper") < 0) SKIP("threads have no names here");
  CHECK_EQ(kill(h[0].server, SIGKILL), 0);
  while (sleeps_of("PoolMourner") < 0) usleep(1000);
  for (i = 0; i < 20 && quiet < 1; i++) {
    long before = sleeps_of("PoolKeeper");
    usleep(600000); /* two looks, if it did look */
    quiet += sleeps_of("PoolKeeper") == before;
  }
  CHECK(quiet > 0);
  finish(&p);
  hold_end();
}

/* A spare that is killed is replaced. One that is stopped hears nothing: it is
   killed before it would miss a worker. Then the server is killed, too. */
TEST(a_spare_that_is_killed_or_stopped_is_replaced) {
  NEEDS_FORK;
  if (!shows_processes()) SKIP("no spare can be found here");
  hold_begin();
  for (int stopped = 0; stopped < 2; stopped++) {
    conc_pool p = pool_of(2);
    held h[2];
    int pid = 0;
    pid_t spare;
    /* After the meeting each second job is a new worker. */
    p.max_tasks_per_worker = stopped ? 2 : 0;
    CHECK_EQ(conc_pool_start(&p), 0);
    meet_both(&p, h);
    spare = spare_now(h);
    CHECK(spare > 0);
    if (stopped) {
      /* Until what it does not hear fills its pipe. */
      char state = 'T';
      CHECK_EQ(kill(spare, SIGSTOP), 0);
      await_state(spare, 'T');
      for (int i = 0; i < 6000 && state == 'T'; i++) {
        CHECK_EQ(apply(&p, tell_pid, &pid, sizeof pid), 0);
        if (parent_of(spare, &state) == 0) state = 0;
      }
      await_state(spare, 0);
      /* A worker that begins after that does so after the next spare. */
      for (int i = 0; i < 6; i++)
        CHECK_EQ(apply(&p, tell_pid, &pid, sizeof pid), 0);
    } else {
      CHECK_EQ(kill(spare, SIGKILL), 0);
      await_state(spare, 0);
      CHECK(spare_now(h) > 0);
    }
    CHECK_EQ(kill(h[0].server, SIGKILL), 0);
    for (int i = 0; i < 5; i++)
      CHECK_EQ(apply(&p, tell_pid, &pid, sizeof pid), 0);
    finish(&p);
  }
  hold_end();
}

/* What is ordered of a server that is stopped, its spare does: it cancels a
   job, and replaces workers. The second server is stopped like the first. */
TEST(a_fork_server_that_is_stopped_is_replaced) {
  conc_pool p = pool_of(2);
  NEEDS_FORK;
  hold_begin();
  CHECK_EQ(conc_pool_start(&p), 0);
  /* Not so where no signal is bound to a leash. */
  for (int round = 0; round < (CONC_HAVE_SETSIG ? 3 : 1); round++) {
    conc_task jobs[2];
    held old[2], h[2];
    conc_event_clear(go);
    meet_both(&p, old);
    begin_both(&p, jobs, be_held, h);
    CHECK_EQ(kill(old[0].server, SIGSTOP), 0);
    CHECK_EQ(conc_cancel(&jobs[0]), 0);
    CHECK_EQ(conc_join(&jobs[0], 20 * test_slow()), -ECANCELED);
    CHECK_EQ(conc_event_set(go), 0);
    CHECK_EQ(conc_join(&jobs[1], 20 * test_slow()), 0);
    kill(h[1].worker, SIGKILL); /* so that all are the new server's */
    do meet_both(&p, h);
    while (h[0].worker == old[0].worker || h[0].worker == old[1].worker ||
           h[1].worker == old[0].worker || h[1].worker == old[1].worker);
    CHECK(h[0].server != old[0].server && h[0].server == h[1].server);
  }
  finish(&p);
  hold_end();
}

TEST(a_pool_whose_servers_are_both_stopped_can_be_terminated) {
  conc_pool p = pool_of(2);
  conc_task jobs[2];
  held h[2], others[2];
  int fds[2];
  pid_t spare;
  NEEDS_FORK;
  if (!shows_processes()) SKIP("no spare can be found here");
  if (!CONC_HAVE_SETSIG) SKIP("no signal is bound to a leash here");
  hold_begin();
  CHECK(pipe(fds) == 0);
  CHECK_EQ(conc_pool_start(&p), 0);
  close(fds[1]);
  meet_both(&p, h);
  spare = spare_now(h);
  CHECK(spare > 0);
  begin_both(&p, jobs, be_held, others);
  CHECK_EQ(kill(spare, SIGSTOP), 0);
  CHECK_EQ(kill(h[0].server, SIGSTOP), 0);
  CHECK_EQ(conc_pool_terminate(&p), 0);
  join_both(jobs, -ECANCELED);
  CHECK_EQ(conc_pool_join(&p, 20 * test_slow()), 0);
  CHECK(sees_end(fds[0]));
  close(fds[0]);
  hold_end();
}

#ifdef __linux__
/* The server can make no process for want of descriptors: one worker is enough
   for all jobs, and when there is none, they fail. */
TEST(a_fork_server_without_descriptors_keeps_nobody_waiting) {
  conc_pool p = pool_of(2);
  struct rlimit before, few;
  held h[2], other[2];
  int n = 0;
  NEEDS_FORK;
  if (test_wrapped("qemu")) SKIP("it does not limit another process");
  hold_begin();
  CHECK_EQ(conc_pool_start(&p), 0);
  meet_both(&p, h);
  CHECK_EQ(prlimit(h[0].server, RLIMIT_NOFILE, NULL, &before), 0);
  few = before;
  few.rlim_cur = 3;
  CHECK_EQ(prlimit(h[0].server, RLIMIT_NOFILE, &few, NULL), 0);
  CHECK_EQ(kill(h[0].worker, SIGKILL), 0);
  while (kill(h[0].worker, 0) == 0) usleep(1000); /* until it is reaped */
  for (int i = 0; i < 10; i++) CHECK_EQ(apply(&p, add_one, &n, sizeof n), 0);
  CHECK_EQ(prlimit(h[0].server, RLIMIT_NOFILE, &before, NULL), 0);
  do meet_both(&p, other);
  while (other[0].worker == h[0].worker || other[1].worker == h[0].worker);
  CHECK_EQ(prlimit(h[0].server, RLIMIT_NOFILE, &few, NULL), 0);
  for (int i = 0; i < 2; i++) CHECK_EQ(kill(other[i].worker, SIGKILL), 0);
  CHECK_EQ(apply(&p, add_one, &n, sizeof n), -ECHILD);
  finish(&p);
  hold_end();
}
#endif

/* Each start of a worker adds one, and is killed. */
static int *starts; /* in shared memory */
static void *kill_myself(void *arg) {
  ADD_FETCH(*starts, 1);
  if (arg != NULL) kill(getpid(), SIGKILL);
  _exit(3);
  return arg;
}
static void never_begins(void *killed) {
  conc_pool p = pool_of(2);
  double start = test_now();
  int n = 0;
  starts = (int *)conc_shared_alloc(sizeof *starts);
  CHECK(starts != NULL);
  p.initializer = kill_myself;
  p.initializer_arg = killed;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(apply(&p, add_one, &n, sizeof n), -ECHILD);
  CHECK_EQ(apply(&p, add_one, &n, sizeof n), -ECHILD);
  CHECK(LOAD(*starts) <= 2 * (20 + 20 * (test_now() - start)) + 2);
  start = test_now();
  n = LOAD(*starts);
  finish(&p);
  /* Those that were on their way, and those of the time it took. */
  CHECK(LOAD(*starts) <= n + 2 + 2 * 20 * (test_now() - start));
  conc_shared_free(starts);
}
TEST(workers_that_end_before_they_begin_are_not_started_for_ever) {
  NEEDS_FORK;
  never_begins(NULL);
}
TEST(nor_are_those_that_are_killed_before_they_begin) {
  NEEDS_FORK;
  never_begins(&starts);
}

/* --- stopped ------------------------------------------------------------- */

static void *meet(void *arg) {
  CHECK_CHILD(conc_barrier_wait(both, 20 * test_slow()) >= 0);
  *(int *)arg = (int)getpid();
  return NULL;
}

/* Of two workers that sleep one is stopped: the other one runs all jobs. */
TEST(a_worker_that_is_stopped_delays_no_job) {
  conc_pool p = pool_of(2);
  conc_task jobs[2];
  int pids[2], n = 0;
  NEEDS_FORK;
  both = (conc_barrier *)conc_shared_alloc(sizeof *both);
  CHECK(both != NULL);
  both->parties = 2;
  CHECK_EQ(conc_barrier_init_shared(both), 0);
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 2; i++) {
    jobs[i] = job_of(meet, &pids[i], sizeof pids[i]);
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
  CHECK(pids[0] != pids[1]);
  for (int i = 0; i < 2; i++) {
    /* Both sleep: the bits say so. */
    while (CONC__LOAD(&p.state->procs->shared->asleep[0]) != 3) usleep(1000);
    CHECK(kill(pids[i], SIGSTOP) == 0);
    for (int k = 0; k < 3; k++) CHECK_EQ(apply(&p, add_one, &n, sizeof n), 0);
    CHECK(kill(pids[i], SIGCONT) == 0);
    CHECK_EQ(apply(&p, add_one, &n, sizeof n), 0);
  }
  CHECK_EQ(n, 8);
  finish(&p);
  conc_shared_free(both);
}

static void *stop_myself(void *arg) {
  kill(getpid(), SIGSTOP);
  return arg;
}
TEST(a_job_that_is_stopped_has_its_time_and_no_more) {
  conc_pool p = pool_of(1);
  int n = 0;
  NEEDS_FORK;
  p.timeout = 0.3 * test_slow();
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(apply(&p, stop_myself, NULL, 0), -ETIMEDOUT);
  p.timeout = 0;
  CHECK_EQ(apply(&p, add_one, &n, sizeof n), 0);
  finish(&p);
}

TEST(a_pool_whose_fork_server_is_stopped_can_be_terminated) {
  conc_pool p = pool_of(2);
  conc_task jobs[4];
  NEEDS_FORK;
  CHECK_EQ(conc_pool_start(&p), 0);
  for (int i = 0; i < 4; i++) {
    jobs[i] = job_of(sleep_long, NULL, 0);
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  usleep(10000);
  CHECK(kill(conc_pid(&p.state->procs->server.task), SIGSTOP) == 0);
  CHECK_EQ(conc_pool_terminate(&p), 0);
  for (int i = 0; i < 4; i++)
    CHECK_EQ(conc_join(&jobs[i], 20 * test_slow()), -ECANCELED);
  CHECK_EQ(conc_pool_join(&p, 20 * test_slow()), 0);
}

/* --- starts that fail, calls in the wrong place -------------------------- */

TEST(a_start_without_descriptors_leaves_nothing) {
  struct rlimit before, few;
  int last = dup(0), done = 0, n = 0;
  NEEDS_FORK;
  close(last);
  CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
  few = before;
  for (int more = 0; more < 60 && !done; more++) {
    conc_pool p = pool_of(4);
    int rc;
    few.rlim_cur = (rlim_t)(last + more);
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    rc = conc_pool_start(&p);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    if (rc != 0) CHECK_EQ(rc, -EMFILE);
    if (rc != 0) continue;
    CHECK_EQ(apply(&p, add_one, &n, sizeof n), 0);
    finish(&p);
    done = 1;
  }
  CHECK(done);
}

static int joined;
static void join_in_callback(conc_task *t, int status, void *result) {
  (void)t, (void)status, (void)result;
  STORE(joined, conc_pool_join((conc_pool *)t->arg, CONC_FOREVER));
}
TEST(a_callback_cannot_join_its_pool) {
  NEEDS_FORK;
  for (int kind = CONC_PROCESS; kind <= CONC_THREAD; kind++) {
    conc_pool p = pool_of(1);
    conc_task t = job_of(five, &p, 0);
    p.kind = kind;
    t.callback = join_in_callback;
    CHECK_EQ(conc_pool_start(&p), 0);
    CHECK_EQ(conc_pool_submit(&p, &t), 0);
    CHECK_EQ(conc_pool_close(&p), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_EQ(LOAD(joined), -EDEADLK);
    CHECK_EQ(conc_pool_join(&p, CONC_FOREVER), 0);
  }
}

TEST(items_without_a_size_are_refused) {
  conc_pool p = pool_of(1);
  conc_imap it;
  int n[2] = {0, 0};
  p.kind = CONC_THREAD;
  CHECK_EQ(conc_pool_start(&p), 0);
  CHECK_EQ(conc_pool_imap(&it, &p, add_one, n, 0, 2), -EINVAL);
  CHECK_EQ(conc_pool_imap_unordered(&it, &p, add_one, n, 0, 2), -EINVAL);
  CHECK_EQ(conc_pool_imap(&it, &p, NULL, n, sizeof *n, 2), -EINVAL);
  CHECK_EQ(conc_pool_map(&p, add_one, n, 0, 2), -EINVAL);
  CHECK_EQ(n[0] + n[1], 0);
  finish(&p);
}

int main(int argc, char **argv) {
  conc_main(argc, argv);
  return test_main(argc, argv);
}
