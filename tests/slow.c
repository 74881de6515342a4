/* What takes the time: turns of a loop that are slow, while they go on and
   after their end; waits that are counted by name. */
static double slow_patience = 30;
#define CONC__SLOW_PATIENCE slow_patience
#include "inside.h"

/* --- slow turns --- */

enum { HEARD = 16 };

static struct heard {
  conc_lock lock;
  int count;
  char task[HEARD][64], thread[HEARD][64];
  double seconds[HEARD];
  bool ended[HEARD];
} heard;

static bool go;

static bool gone_on(void) { return __atomic_load_n(&go, __ATOMIC_ACQUIRE); }
static void set_go(bool to) { __atomic_store_n(&go, to, __ATOMIC_RELEASE); }

static void hear(const conc_slow_turn *turn, void *arg) {
  CHECK(arg == &heard);
  CONC_WITH(&heard.lock) {
    int i = heard.count;
    if (i < HEARD) {
      snprintf(heard.task[i], 64, "%s", turn->task ? turn->task : "(none)");
      snprintf(heard.thread[i], 64, "%s", turn->thread);
      heard.seconds[i] = turn->seconds;
      heard.ended[i] = turn->ended;
      heard.count++;
    }
  }
}

static int heard_count(void) {
  int n = 0;
  CONC_WITH(&heard.lock) { n = heard.count; }
  return n;
}

/* How often the task was told of; the seconds of the last time. On a machine
   that is busy any turn may be slow. */
static int heard_of(const char *task, bool ended, double *seconds) {
  int n = 0, i;
  CONC_WITH(&heard.lock) {
    for (i = 0; i < heard.count; i++)
      if (strcmp(heard.task[i], task) == 0 && heard.ended[i] == ended) {
        CHECK(strcmp(heard.thread[i], "Loop") == 0);
        *seconds = heard.seconds[i];
        n++;
      }
  }
  return n;
}

static double await_heard(const char *task, bool ended) {
  double end = conc_now() + 20, seconds = 0;
  while (heard_of(task, ended, &seconds) == 0) {
    CHECK(conc_now() < end);
    usleep(1000);
  }
  return seconds;
}

/* Computes until the test says so. */
static void *compute(void *arg) {
  while (!gone_on()) continue;
  return arg;
}

/* Has a turn all the time, and takes long in none. */
static void *yield(void *arg) {
  while (!gone_on()) CHECK_EQ(conc_yield_now(), 0);
  return arg;
}

static void *run_one(void *arg) {
  CHECK_EQ(conc_run((conc_task *)arg), 0);
  return arg;
}

static void make(conc_task *t, conc_fn *fn, void *arg, const char *name) {
  memset(t, 0, sizeof *t);
  t->target = fn;
  t->arg = arg;
  t->name = name;
}

static void thread(conc_task *t, conc_fn *fn, void *arg, const char *name) {
  make(t, fn, arg, name);
  CHECK_EQ(conc_thread_start(t), 0);
}

static void *compute_beside_others(void *arg) {
  conc_task computer, sleeper[3];
  size_t i;
  for (i = 0; i < 3; i++) {
    make(&sleeper[i], yield, NULL, "Yielder");
    CHECK_EQ(conc_coro_start(&sleeper[i]), 0);
  }
  make(&computer, compute, NULL, "Computer");
  CHECK_EQ(conc_coro_start(&computer), 0);
  CHECK_EQ(conc_join(&computer, CONC_FOREVER), 0);
  for (i = 0; i < 3; i++) CHECK_EQ(conc_join(&sleeper[i], CONC_FOREVER), 0);
  return arg;
}

static bool reported(bool json, const char *words) {
  static char text[1 << 16];
  CHECK(json ? conc_report_json(text, sizeof text)
             : conc_report(text, sizeof text) > 0);
  return strstr(text, words) != NULL;
}

TEST(a_slow_turn_is_told_while_it_goes_on_and_at_its_end) {
  conc_task root, loop;
  double seconds;
  set_go(false);
  CHECK_EQ(conc_slow_turns(0.02, hear, &heard), 0);
  make(&root, compute_beside_others, NULL, "Root");
  thread(&loop, run_one, &root, "Loop");
  CHECK(await_heard("Computer", false) >= 0.02);
  usleep(50000); /* it is told of once, and not with each look */
  CHECK_EQ(heard_of("Computer", false, &seconds), 1);
  CHECK_EQ(heard_of("Computer", true, &seconds), 0);
  CHECK(reported(false, ", longest turn "));
  CHECK(reported(true, "\"longest_turn\":"));
  set_go(true);
  /* The loop may end before it is looked at again. */
  CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
  CHECK(heard_of("Computer", true, &seconds) <= 1);
}

static void *compute_then_wait(void *arg) {
  conc_task computer;
  make(&computer, compute, NULL, "Computer");
  CHECK_EQ(conc_coro_start(&computer), 0);
  CHECK_EQ(conc_join(&computer, CONC_FOREVER), 0);
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), 0);
  return arg;
}

TEST(its_end_is_told_with_the_whole_time) {
  static conc_event end;
  conc_task root, loop;
  double seconds;
  set_go(false);
  CHECK_EQ(conc_slow_turns(0.02, hear, &heard), 0);
  make(&root, compute_then_wait, &end, "Root");
  thread(&loop, run_one, &root, "Loop");
  seconds = await_heard("Computer", false);
  usleep(60000);
  set_go(true);
  CHECK(await_heard("Computer", true) >= seconds);
  conc_event_set(&end);
  CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
}

/* Neither waits nor many short turns are slow; and nothing is measured when it
   was not asked for. */
static int heard_in(double limit) {
  conc_task yielder, loops[2], root;
  conc_event end;
  const useconds_t longer = (useconds_t)(limit * 1.6e6);
  memset(&end, 0, sizeof end);
  CONC_WITH(&heard.lock) { heard.count = 0; }
  set_go(false);
  CHECK_EQ(conc_slow_turns(limit, hear, &heard), 0);
  make(&yielder, yield, NULL, "Yielder");
  thread(&loops[0], run_one, &yielder, "Loop1");
  make(&root, compute_then_wait, &end, "Root");
  usleep(longer);
  set_go(true);
  thread(&loops[1], run_one, &root, "Loop2");
  usleep(longer);
  conc_event_set(&end);
  CHECK_EQ(conc_join(&loops[0], CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&loops[1], CONC_FOREVER), 0);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
  return heard_count();
}

/* On a machine that is busy a turn may really be slow, but hardly at each of
   these limits. */
TEST(what_waits_or_yields_is_not_slow) {
  double limit = 0.25;
  while (heard_in(limit) > 0) {
    CHECK(limit < 3);
    limit *= 2;
  }
}

/* --- the loop's own turns --- */

static void compute_at_the_end(conc_task *t, int status, void *result) {
  (void)t;
  CHECK_EQ(status, -ENOMEM);
  CHECK(result == NULL);
  compute(NULL);
}

/* There is no memory for such a stack: so the loop itself ends the task, and
   calls its callback. */
static void *start_what_cannot_run(void *arg) {
  conc_task t;
  make(&t, compute, NULL, "Large");
  t.stack_size = (size_t)-1 / 4 * 3;
  t.callback = compute_at_the_end;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ENOMEM);
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), 0);
  return arg;
}

TEST(a_loop_that_is_slow_itself_is_told_of) {
  static conc_event end;
  conc_task root, loop;
  set_go(false);
  CHECK_EQ(conc_slow_turns(0.02, hear, &heard), 0);
  make(&root, start_what_cannot_run, &end, "Root");
  thread(&loop, run_one, &root, "Loop");
  CHECK(await_heard("(loop)", false) >= 0.02);
  set_go(true);
  CHECK(await_heard("(loop)", true) >= 0.02);
  conc_event_set(&end);
  CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
}

/* --- where they are --- */

static struct traced {
  void *caller; /* what the function returns to in which the turn is */
  int told;     /* how often the task was told of while it goes on; atomic */
  int frames;   /* of the last time */
  bool found;   /* the caller was among them */
} traced;

__attribute__((noinline)) static void *compute_here(void *arg) {
  void *caller = __builtin_extract_return_addr(__builtin_return_address(0));
  __atomic_store_n(&traced.caller, caller, __ATOMIC_RELEASE);
  while (!gone_on()) continue;
  return arg;
}

static void *compute_there(void *arg) {
  void *result = compute_here(arg);
  conc_sleep(0);
  return result;
}

static void see(const conc_slow_turn *turn, void *arg) {
  const char *name = (const char *)arg;
  int i;
  if (turn->ended) CHECK_EQ(turn->frames_count, 0);
  if (turn->ended || turn->task == NULL || strcmp(turn->task, name) != 0)
    return;
  traced.frames = turn->frames_count;
  traced.found = false;
  for (i = 0; i < turn->frames_count; i++)
    if (turn->frames[i] == traced.caller) traced.found = true;
  __atomic_add_fetch(&traced.told, 1, __ATOMIC_ACQ_REL);
}

/* Starts the loop, and waits until it is in compute_here. */
static void begin_one(conc_task *loop, conc_fn *fn, conc_task *root) {
  double end = conc_now() + 60;
  traced.caller = NULL;
  set_go(false);
  thread(loop, fn, root, "Loop");
  while (__atomic_load_n(&traced.caller, __ATOMIC_ACQUIRE) == NULL) {
    CHECK(conc_now() < end);
    usleep(1000);
  }
}

/* Until the turn was told of that is slow there. */
static void trace_one(char *name) {
  double end = conc_now() + 60;
  traced.told = 0;
  CHECK_EQ(conc_slow_turns(0.02, see, name), 0);
  while (__atomic_load_n(&traced.told, __ATOMIC_ACQUIRE) == 0) {
    CHECK(conc_now() < end);
    usleep(1000);
  }
}

static void end_one(conc_task *loop) {
  set_go(true);
  CHECK_EQ(conc_join(loop, CONC_FOREVER), 0);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
}

static void skip_without_backtraces(void) {
  int rc;
  if (TEST_TSAN) SKIP("ThreadSanitizer holds signals back");
  if (test_wrapped("qemu") || test_wrapped("valgrind"))
    SKIP("the handlers of an emulated program return elsewhere");
#ifdef __TINYC__
  SKIP("tcc does not say where its functions have what they return to");
#endif
  rc = conc_slow_backtraces(SIGURG);
  if (rc == -ENOTSUP) SKIP("there is no backtrace()");
  CHECK_EQ(rc, 0);
}

TEST(a_slow_turn_is_told_of_with_the_functions_that_it_is_in) {
  static char name[] = "Traced";
  conc_task root, loop;
  skip_without_backtraces();
  CHECK_EQ(conc_slow_backtraces(SIGURG), -EBUSY);
  make(&root, compute_there, NULL, name);
  begin_one(&loop, run_one, &root);
  trace_one(name);
  CHECK(traced.found);
  end_one(&loop);
  CHECK_EQ(conc_slow_backtraces(0), 0);
  CHECK_EQ(conc_slow_backtraces(0), 0);
  begin_one(&loop, run_one, &root); /* it is told of without them, too */
  trace_one(name);
  CHECK_EQ(traced.frames, 0);
  end_one(&loop);
}

/* Leaves less of its stack than the handler must find. */
static void *compute_deep(void *arg) {
  volatile char most[CONC_STACK_SIZE - 12 * 1024];
  most[0] = 1;
  compute_here(arg);
  return most[0] == 1 ? arg : NULL;
}

TEST(a_thread_that_makes_stacks_later_has_an_alternate_one_for_the_signal) {
  static char name[] = "Deep";
  conc_task root, loop;
  skip_without_backtraces();
  make(&root, compute_deep, NULL, name);
  begin_one(&loop, run_one, &root);
  trace_one(name);
  CHECK(traced.found);
  end_one(&loop);
  CHECK_EQ(conc_slow_backtraces(0), 0);
}

TEST(without_an_alternate_one_a_stack_that_is_nearly_full_is_left_alone) {
  static char name[] = "Deep";
  conc_task root, loop;
  if (TEST_ASAN) SKIP("AddressSanitizer gives each thread an alternate stack");
  make(&root, compute_deep, NULL, name);
  begin_one(&loop, run_one, &root);
  skip_without_backtraces(); /* now, when it has its stack */
  trace_one(name);
  CHECK_EQ(traced.frames, 0);
  end_one(&loop);
  CHECK_EQ(conc_slow_backtraces(0), 0);
}

static void mask(int how) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK_EQ(pthread_sigmask(how, &set, NULL), 0);
}

static void *run_one_and_block(void *arg) {
  mask(SIG_BLOCK);
  run_one(arg);
  mask(SIG_UNBLOCK);
  return arg;
}

/* The signal is on its way to the thread all the time: it does no harm when it
   could come through, though it would end the process then. */
TEST(a_thread_that_blocks_the_signal_is_told_of_without_them) {
  static char name[] = "Blocked";
  conc_task root, loop;
  skip_without_backtraces();
  CHECK_EQ(conc_slow_backtraces(0), 0);
  CHECK_EQ(conc_slow_backtraces(SIGKILL), -EINVAL);
  CHECK_EQ(conc_slow_backtraces(12345), -EINVAL);
  CHECK_EQ(conc_slow_backtraces(SIGUSR1), 0);
  slow_patience = 0.05;
  make(&root, compute_there, NULL, name);
  begin_one(&loop, run_one_and_block, &root);
  trace_one(name);
  CHECK_EQ(traced.frames, 0);
  CHECK_EQ(conc_slow_backtraces(0), 0);
  end_one(&loop);
}

/* --- the call --- */

static void call_back(const conc_slow_turn *turn, void *arg) {
  (void)turn;
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), -EDEADLK);
  conc_event_set((conc_event *)arg);
}

TEST(the_call_is_made_once_at_a_time) {
  static conc_event called;
  conc_task root, loop;
  int status;
  pid_t pid;
  CHECK_EQ(conc_slow_turns(-1, hear, NULL), -EINVAL);
  CHECK_EQ(conc_slow_turns(0.0001, hear, NULL), -EINVAL);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0); /* there is none */
  set_go(false);
  CHECK_EQ(conc_slow_turns(0.01, call_back, &called), 0);
  CHECK_EQ(conc_slow_turns(0.01, hear, NULL), -EBUSY);
  make(&root, compute, NULL, NULL);
  thread(&loop, run_one, &root, NULL);
  CHECK_EQ(conc_event_wait(&called, CONC_FOREVER), 0);
  set_go(true);
  CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  if (!TEST_TSAN) { /* which allows a forked child no thread */
    pid = fork();
    if (pid == 0) {
      conc_event_clear(&called);
      set_go(false);
      if (conc_slow_turns(0.01, call_back, &called) != 0) _exit(1);
      thread(&loop, run_one, &root, NULL);
      if (conc_event_wait(&called, CONC_FOREVER) != 0) _exit(2);
      _exit(conc_slow_turns(0, NULL, NULL) == 0 ? 7 : 3);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  }
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
}

static void *end_soon(void *arg) {
  double end = conc_now() + 0.0015;
  while (conc_now() < end) continue;
  return arg;
}

static void forget(const conc_slow_turn *turn, void *arg) {
  (void)turn;
  __atomic_add_fetch((int *)arg, 1, __ATOMIC_RELAXED);
}

/* Loops and tasks that end while they are looked at, and looked for. */
TEST(turns_that_end_at_any_moment) {
  int told = 0, i, k;
  CHECK_EQ(conc_slow_turns(0.001, forget, &told), 0);
  for (i = 0; i < 100; i++) {
    conc_task roots[3], loops[3];
    for (k = 0; k < 3; k++) {
      make(&roots[k], end_soon, NULL, NULL);
      thread(&loops[k], run_one, &roots[k], NULL);
    }
    for (k = 0; k < 3; k++) CHECK_EQ(conc_join(&loops[k], CONC_FOREVER), 0);
  }
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
  CHECK(told >= 0);
}

/* --- contention --- */

static conc_lock lock;

static void *want(void *arg) {
  CHECK_EQ(conc_lock_acquire((conc_lock *)arg, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release((conc_lock *)arg), 0);
  return arg;
}

/* So many tasks wait for it, for some 20 ms. */
static void contend(conc_lock *l, int n) {
  conc_task tasks[4];
  double end = conc_now() + 20;
  char words[64];
  int i;
  CHECK_EQ(conc_lock_acquire(l, CONC_FOREVER), 0);
  for (i = 0; i < n; i++) thread(&tasks[i], want, l, NULL);
  snprintf(words, sizeof words, "held by MainThread, by %d\n", n);
  while (!reported(false, words)) CHECK(conc_now() < end);
  usleep(20000);
  CHECK_EQ(conc_lock_release(l), 0);
  for (i = 0; i < n; i++) CHECK_EQ(conc_join(&tasks[i], CONC_FOREVER), 0);
}

/* The number behind these words of a report. */
static double told(const char *words) {
  static char text[1 << 16];
  const char *p;
  CHECK(conc_report(text, sizeof text) > 0);
  p = strstr(text, words);
  if (p == NULL) TEST_FAIL("no \"%s\" in:\n%s", words, text);
  return atof(p + strlen(words));
}

TEST(waits_are_counted_by_name) {
  conc_lock other, unnamed;
  memset(&other, 0, sizeof other);
  memset(&unnamed, 0, sizeof unnamed);
  lock.name = other.name = "a";
  CHECK_EQ(conc_contention_stop(), -EINVAL);
  contend(&lock, 2);
  CHECK(!reported(false, "contention"));
  CHECK(reported(true, "\"contention\":[]"));
  CHECK_EQ(conc_contention_start(), 0);
  CHECK_EQ(conc_contention_start(), -EBUSY);
  want(&lock); /* it is free */
  CHECK(!reported(false, "contention: lock"));
  contend(&lock, 2);
  contend(&other, 1);
  contend(&unnamed, 1);
  CHECK(told("contention: lock 'a', waits ") >= 3);
  CHECK(reported(false, "contention: lock at 0x"));
  CHECK(reported(true, "{\"what\":\"lock\",\"name\":\"a\",\"waits\":"));
  CHECK_EQ(conc_contention_stop(), 0);
  CHECK(!reported(false, "contention"));
  CHECK_EQ(conc_contention_start(), 0);
  CHECK(!reported(false, "contention: lock 'a'"));
  CHECK_EQ(conc_contention_stop(), 0);
}

static void *stop_and_start(void *arg) {
  while (!gone_on()) {
    CHECK_EQ(conc_contention_start(), 0);
    sched_yield();
    CHECK_EQ(conc_contention_stop(), 0);
  }
  return arg;
}

static void *get_all(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  int n;
  while (conc_get(q, &n, sizeof n, CONC_FOREVER) == sizeof n) continue;
  return arg;
}

TEST(since_when_a_task_waits_is_told_while_waits_are_counted) {
  conc_task getter;
  conc_queue *q = conc_queue_new(NULL);
  double end = conc_now() + 20;
  CHECK_EQ(conc_contention_start(), 0);
  thread(&getter, get_all, q, "Getter");
  while (!reported(false, "thread Getter: waits for queue at 0x"))
    CHECK(conc_now() < end);
  CHECK(reported(false, ", get, since "));
  CHECK_EQ(conc_queue_close(q), 0);
  CHECK_EQ(conc_join(&getter, CONC_FOREVER), 0);
  conc_queue_free(q);
  CHECK_EQ(conc_contention_stop(), 0);
}

/* Waits that began in one round, and end in another or in none. */
TEST(counting_begins_and_ends_at_any_moment) {
  conc_task stopper, getters[2];
  conc_queue *q = conc_queue_new(NULL);
  int i;
  set_go(false);
  thread(&stopper, stop_and_start, NULL, NULL);
  for (i = 0; i < 2; i++) thread(&getters[i], get_all, q, NULL);
  for (i = 0; i < 3000; i++) {
    CHECK_EQ(conc_put(q, &i, sizeof i, CONC_FOREVER), 0);
    if (i % 100 == 0) reported(i % 200 == 0, "x");
  }
  CHECK_EQ(conc_queue_close(q), 0);
  for (i = 0; i < 2; i++) CHECK_EQ(conc_join(&getters[i], CONC_FOREVER), 0);
  set_go(true);
  CHECK_EQ(conc_join(&stopper, CONC_FOREVER), 0);
  conc_queue_free(q);
}

/* More names than there is room for are told as one. */
TEST(very_many_names_are_others) {
  static conc_sem sems[700];
  static char names[700][16];
  int i;
  CHECK_EQ(conc_contention_start(), 0);
  for (i = 0; i < 700; i++) {
    snprintf(names[i], sizeof names[i], "sem %d", i);
    sems[i].name = names[i];
    CHECK_EQ(conc_sem_acquire(&sems[i], 1e-6), -ETIMEDOUT);
  }
  CHECK(told("contention: others, waits ") >= 700 - 511);
  CHECK_EQ(conc_contention_stop(), 0);
}

/* A name for which there is no room is cut between two characters. */
TEST(long_names_are_cut_between_characters) {
  char name[100] = "x", shown[64], text[40];
  conc_task t;
  memset(&t, 0, sizeof t);
  for (int i = 0; i < 45; i++) strcat(name, "\xc3\xa4");
  t.name = name;
  conc__slow_put_name(shown, sizeof shown, &t);
  CHECK_EQ(strlen(shown), 63);
  CHECK_EQ(memcmp(shown, name, 63), 0);
  t.name = name + 1;
  conc__slow_put_name(shown, sizeof shown, &t);
  CHECK_EQ(strlen(shown), 62);
  CHECK_EQ(conc__utf8_copy(text, sizeof text, name), 39);
  CHECK_EQ(conc__utf8_copy(text, sizeof text, name + 1), 38);
  CHECK_EQ(strlen(text), 38);
  CHECK_EQ(conc__utf8_copy(text, sizeof text, "short"), 5);
  CHECK_STR(text, "short");
}

TEST_MAIN
