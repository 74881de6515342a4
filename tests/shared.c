/* Memory that processes share, and who of them is alive. */
#include "test.h"

#define CONC_MALLOC test_malloc
#define CONC_REALLOC test_realloc
#define CONC_FREE test_free
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "../conc.h"

/* A child has no test of its own: it tells by its exit code. */
#define MUST(condition)                                               \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: in the child: %s\n", __FILE__, __LINE__, \
              #condition);                                            \
      _exit(99);                                                      \
    }                                                                 \
  } while (0)

#define GET(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define SET(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)

/* In a child that begins here and does not return. */
static pid_t begin_child(void) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  return pid;
}

static void reap(pid_t pid, int want) {
  int status = 0;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), want);
}

static void await_zombie(pid_t pid) {
  siginfo_t info;
  CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
}

/* --- memory --- */

TEST(memory_is_zeroed_and_shared_with_children) {
  size_t n = 100000, i;
  unsigned char *p = (unsigned char *)conc_shared_alloc(n);
  unsigned char *q = (unsigned char *)conc_shared_alloc(1);
  pid_t pid;
  CHECK(p != NULL && q != NULL);
  for (i = 0; i < n; i++) CHECK_EQ(p[i], 0);
  pid = begin_child();
  if (pid == 0) {
    memset(p, 7, n);
    *q = 8;
    conc_shared_free(p);
    _exit(3);
  }
  reap(pid, 3);
  for (i = 0; i < n; i++) CHECK_EQ(p[i], 7);
  CHECK_EQ(*q, 8);
  conc_shared_free(p);
  conc_shared_free(q);
  conc_shared_free(NULL);
}

TEST(memory_that_cannot_be_had_says_why) {
  CHECK(conc_shared_alloc(0) == NULL);
  CHECK_EQ(errno, EINVAL);
  CHECK(conc_shared_alloc(SIZE_MAX) == NULL);
  CHECK_EQ(errno, ENOMEM);
  CHECK(conc_shared_alloc(SIZE_MAX / 4) == NULL);
  CHECK_EQ(errno, ENOMEM);
  test_fail_at = 1;
  CHECK(conc_shared_alloc(1) == NULL);
  CHECK_EQ(errno, ENOMEM);
}

TEST(a_child_may_free_all_and_begin_anew) {
  int *p = (int *)conc_shared_alloc(sizeof *p);
  pid_t pid = begin_child();
  if (pid == 0) {
    pid_t grandchild;
    int *q, status;
    conc_shared_free(p);
    q = (int *)conc_shared_alloc(sizeof *q);
    MUST(q != NULL && *q == 0);
    grandchild = fork();
    if (grandchild == 0) _exit(*q = 5);
    MUST(waitpid(grandchild, &status, 0) == grandchild && *q == 5);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(*p, 0);
  conc_shared_free(p);
}

static int stop_allocating;
static void *allocate(void *arg) {
  while (!GET(stop_allocating)) {
    void *p = conc_shared_alloc(1);
    CHECK(p != NULL);
    conc_shared_free(p);
  }
  return arg;
}

TEST(a_fork_may_come_while_threads_allocate) {
  conc_task t[2];
  if (TEST_TSAN) SKIP("ThreadSanitizer knows no threads after a fork");
  memset(t, 0, sizeof t);
  for (int i = 0; i < 2; i++) {
    t[i].target = allocate;
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < 300; i++) {
    pid_t pid = begin_child();
    if (pid == 0) {
      void *p = conc_shared_alloc(1);
      MUST(p != NULL && conc__registry_self(conc__registry_of(p)) != 0);
      _exit(0);
    }
    reap(pid, 0);
  }
  SET(stop_allocating, 1);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
}

/* --- who is alive --- */

typedef struct board {
  unsigned id, word, answer, count;
} board;

static board *shared;
static struct conc__registry *registry;

static void begin(void) {
  shared = (board *)conc_shared_alloc(sizeof *shared);
  CHECK(shared != NULL);
  registry = conc__registry_of(shared);
  CHECK(registry != NULL && registry == conc__registry_of(&shared->count));
}

static unsigned await_id(void) {
  while (GET(shared->id) == 0) sched_yield();
  return shared->id;
}

/* Its id, and it lives until it is killed. */
static pid_t begin_living(void) {
  pid_t pid;
  shared->id = 0;
  pid = begin_child();
  if (pid == 0) {
    SET(shared->id, conc__registry_self(registry));
    for (;;) pause();
  }
  await_id();
  return pid;
}

TEST(no_memory_of_ours_has_no_registry) {
  int here;
  CHECK(conc__registry_of(&here) == NULL);
  CHECK_EQ(errno, EINVAL);
}

TEST(the_living_are_told_from_the_dead) {
  unsigned me, id;
  pid_t pid;
  begin();
  me = conc__registry_self(registry);
  CHECK(me != 0 && me == conc__registry_self(registry));
  CHECK(!conc__registry_is_dead(registry, me));
  pid = begin_living();
  id = shared->id;
  CHECK(id != 0 && id != me);
  for (int i = 0; i < 100; i++) CHECK(!conc__registry_is_dead(registry, id));
  kill(pid, SIGKILL);
  await_zombie(pid);
  CHECK(conc__registry_is_dead(registry, id));
  reap(pid, -SIGKILL);
  CHECK(conc__registry_is_dead(registry, id));
  conc_shared_free(shared);
}

TEST(who_ends_is_dead_to_all_however_it_ended) {
  begin();
  for (int i = 0; i < 3; i++) {
    unsigned id;
    pid_t pid;
    shared->id = 0;
    pid = begin_child();
    if (pid == 0) {
      SET(shared->id, conc__registry_self(registry));
      if (i == 1) raise(SIGTERM);
      if (i == 2) execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
      _exit(0);
    }
    id = await_id();
    await_zombie(pid);
    CHECK(conc__registry_is_dead(registry, id));
    reap(pid, i == 1 ? -SIGTERM : 0);
  }
  conc_shared_free(shared);
}

TEST(a_used_entry_is_another_process) {
  unsigned first, second;
  pid_t pid;
  begin();
  pid = begin_living();
  first = shared->id;
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  SET(registry->next, first % CONC__PROCESSES);
  pid = begin_living();
  second = shared->id;
  CHECK_EQ(first % CONC__PROCESSES, second % CONC__PROCESSES);
  CHECK(conc__registry_is_dead(registry, first));
  CHECK(!conc__registry_is_dead(registry, second));
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  conc_shared_free(shared);
}

TEST(a_forked_child_is_somebody_else) {
  unsigned me;
  pid_t pid;
  begin();
  me = conc__registry_self(registry);
  pid = begin_child();
  if (pid == 0) {
    unsigned id = conc__registry_self(registry);
    MUST(id != 0 && id != me);
    MUST(!conc__registry_is_dead(registry, me));
    MUST(!conc__registry_is_dead(registry, id));
    shared->id = id;
    _exit(0);
  }
  reap(pid, 0);
  CHECK(conc__registry_is_dead(registry, shared->id));
  CHECK_EQ(conc__registry_self(registry), me);
  conc_shared_free(shared);
}

TEST(thousands_of_processes_follow_each_other) {
  int n = TEST_TSAN || TEST_ASAN ? 1500 : 5000;
  begin();
  for (int i = 0; i < n; i++) {
    pid_t pid = begin_child();
    if (pid == 0) _exit(conc__registry_self(registry) != 0 ? 0 : 1);
    reap(pid, 0);
  }
  conc_shared_free(shared);
}

TEST(too_many_processes_are_refused) {
  unsigned me;
  pid_t pid;
  begin();
  pid = begin_child();
  if (pid == 0) { /* as many in one */
    struct flock all;
    memset(&all, 0, sizeof all);
    all.l_type = F_WRLCK;
    all.l_len = CONC__PROCESSES;
    MUST(fcntl(conc__mine(registry)->fd, F_SETLK, &all) == 0);
    SET(shared->id, 1);
    for (;;) pause();
  }
  await_id();
  CHECK_EQ(conc__registry_self(registry), 0);
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  me = conc__registry_self(registry);
  CHECK(me != 0);
  conc_shared_free(shared);
}

/* --- waiting --- */

static int await_word(unsigned *word, unsigned value, double timeout) {
  double deadline = conc__deadline(timeout);
  unsigned round = 0, seen;
  while ((seen = GET(*word)) != value) {
    int rc = conc__shared_wait(word, seen, deadline, &round);
    if (rc != 0) return rc;
  }
  return 0;
}

static void in_thread(conc_fn *fn, void *arg) { fn(arg); }
static void in_loop(conc_fn *fn, void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = fn;
  t.arg = arg;
  CHECK_EQ(conc_run(&t), 0);
}

enum { ROUNDS = 300 };

static void *answer(void *arg) {
  for (unsigned i = 1; i <= ROUNDS; i++) {
    MUST(await_word(&shared->word, i, CONC_FOREVER) == 0);
    SET(shared->answer, i);
    conc__shared_wake(&shared->answer, 1);
  }
  return arg;
}
static void *ask(void *arg) {
  for (unsigned i = 1; i <= ROUNDS; i++) {
    SET(shared->word, i);
    conc__shared_wake(&shared->word, 1);
    CHECK_EQ(await_word(&shared->answer, i, CONC_FOREVER), 0);
  }
  return arg;
}

TEST(processes_wake_each_other) {
  for (int kind = 0; kind < 4; kind++) {
    pid_t pid;
    begin();
    pid = begin_child();
    if (pid == 0) {
      (kind & 1 ? in_loop : in_thread)(answer, NULL);
      _exit(0);
    }
    (kind & 2 ? in_loop : in_thread)(ask, NULL);
    reap(pid, 0);
    conc_shared_free(shared);
  }
}

static void *time_out(void *arg) {
  double start = conc_now();
  CHECK_EQ(await_word(&shared->word, 1, 0), -ETIMEDOUT);
  CHECK_EQ(await_word(&shared->word, 1, 0.05), -ETIMEDOUT);
  CHECK(conc_now() - start >= 0.05);
  return arg;
}

TEST(a_wait_between_processes_has_a_timeout) {
  begin();
  in_thread(time_out, NULL);
  in_loop(time_out, NULL);
  conc_shared_free(shared);
}

static void *wait_for_ever(void *rc) {
  SET(shared->id, 1);
  *(int *)rc = await_word(&shared->word, 1, CONC_FOREVER);
  return NULL;
}

TEST(a_wait_between_processes_is_cancelled) {
  conc_task t;
  int rc = 0;
  begin();
  memset(&t, 0, sizeof t);
  t.target = wait_for_ever;
  t.arg = &rc;
  CHECK_EQ(conc_thread_start(&t), 0);
  await_id();
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(rc, -ECANCELED);
  conc_shared_free(shared);
}

static void *cancel_other(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = wait_for_ever;
  t.arg = arg;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_sleep(0.01), 0);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(*(int *)arg, -ECANCELED);
  return NULL;
}

TEST(a_wait_of_a_coroutine_between_processes_is_cancelled) {
  int rc = 0;
  begin();
  in_loop(cancel_other, &rc);
  conc_shared_free(shared);
}

static void *expire(void *arg) {
  conc_scope s;
  conc_timeout(&s, 0.01);
  CHECK_EQ(await_word(&shared->word, 1, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
  return arg;
}

TEST(a_time_limit_ends_a_wait_between_processes) {
  begin();
  in_thread(expire, NULL);
  in_loop(expire, NULL);
  conc_shared_free(shared);
}

TEST_MAIN
