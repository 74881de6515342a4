/* Stacks: how much of one is used, who overflowed it, and that their memory
   is given back after a burst. */
#include "inside.h"
#include "tasks.h"

/* Uses about 100 bytes of stack, and more, for each level. */
__attribute__((noinline)) static size_t dig(size_t levels) {
  volatile char here[100];
  size_t i, sum = 0;
  for (i = 0; i < sizeof here; i++) here[i] = (char)(levels + i + 1);
  if (levels > 0) sum = dig(levels - 1);
  for (i = 0; i < sizeof here; i++) sum += (unsigned char)here[i];
  return sum;
}

/* --- conc_stack_used --- */

static void *use(void *arg) {
  ssize_t before = conc_stack_used(NULL), after;
  CHECK(before > 0 && before < 262144);
  CHECK(dig((size_t)(uintptr_t)arg) > 0);
  after = conc_stack_used(conc_current());
  CHECK(after >= (ssize_t)(uintptr_t)arg * 100);
  if (arg) CHECK(after > before);
  CHECK(conc_stack_used(NULL) == after); /* it is a mark */
  return NULL;
}
static void *use_all(void *arg) {
  conc_task t = {0};
  t.target = use;
  t.stack_size = 4 << 20;
  for (uintptr_t levels = 0; levels <= 1000; levels += 500) {
    t.arg = (void *)levels;
    CHECK_EQ(conc_coro_start(&t), 0);
    CHECK_EQ(conc_stack_used(&t), 0);
    CHECK_EQ(conc_join(&t, 20), 0);
    CHECK_EQ(conc_stack_used(&t), -ESRCH);
  }
  return arg;
}
static conc_event begun, go;
static conc_task sleeper;
static void *sleep_there(void *arg) {
  conc_event_set(&begun);
  CHECK_EQ(conc_event_wait(&go, CONC_FOREVER), 0);
  return arg;
}
static void *run_sleeper(void *arg) {
  sleeper.target = sleep_there;
  CHECK_EQ(conc_run(&sleeper), 0);
  return arg;
}
TEST(the_use_of_a_stack_is_known) {
  conc_task t = {0};
  run(use_all, NULL);
  CHECK_EQ(conc_stack_used(NULL), -ESRCH); /* a thread */
  t.target = run_sleeper;
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_event_wait(&begun, 20), 0);
  CHECK_EQ(conc_stack_used(&sleeper), -EPERM);
  conc_event_set(&go);
  CHECK_EQ(conc_join(&t, 20), 0);
}

/* --- conc_report_overflow --- */

static void *overflow(void *arg) {
  dig(1u << 30);
  return arg;
}
static void *overflow_generator(void *arg) {
  conc_gen g = {0};
  g.target = overflow;
  conc_gen_next(&g, NULL);
  return arg;
}
static void *in_thread(void *arg) {
  conc_task t = {0};
  t.target = arg ? overflow_generator : overflow;
  t.name = "digger";
  conc_run(&t);
  return NULL;
}
static void *start_one(void *arg) {
  conc_task t = {0};
  t.target = overflow;
  t.stack_size = 200000;
  conc_coro_start(&t);
  conc_join(&t, CONC_FOREVER);
  return arg;
}
static int none_before;
static void before_us(int number) {
  static const char text[] = "before\n";
  (void)number;
  if (write(2, text, sizeof text - 1) < 0) abort();
  _exit(42);
}
/* What a child that dies so has written, and how it died. */
static int die(int how, char *text, size_t size) {
  int fds[2], status;
  ssize_t n;
  size_t done = 0;
  pid_t pid;
  CHECK_EQ(pipe(fds), 0);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    conc_task t = {0};
    dup2(fds[1], 2);
    close(fds[0]), close(fds[1]);
    if (how == 5) signal(SIGSEGV, before_us);
    if (conc_report_overflow() != 0 || conc_report_overflow() != 0) _exit(1);
    t.target = in_thread;
    if (how == 0) in_thread(NULL);
    if (how == 1) run(start_one, NULL);
    if (how == 2 || how == 3) {
      t.arg = how == 3 ? (void *)1 : NULL;
      conc_thread_start(&t);
      conc_join(&t, CONC_FOREVER);
    }
    if (how == 4) overflow_generator(NULL);
    if (how == 5) in_thread(NULL);
    if (how == 6) *(volatile int *)(uintptr_t)none_before = 1;
    if (how == 7) raise(SIGSEGV);
    _exit(0);
  }
  close(fds[1]);
  while (done < size - 1 &&
         (n = read(fds[0], text + done, size - 1 - done)) > 0)
    done += (size_t)n;
  text[done] = 0;
  close(fds[0]);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  return status;
}
/* Eight ways to overflow a stack, or to crash without that, each in a
   child: in coroutines, generators, with a handler from before. The report
   names the task, and the signal kills as it would have. */
TEST(an_overflow_is_reported_by_name) {
  static const char *const expected[] = {
      "conc: digger has overflowed its stack of 65536 bytes (.stack_size)\n",
      "conc: Task-2 has overflowed its stack of 2",
      "conc: digger has overflowed its stack of 65536 bytes (.stack_size)\n",
      "conc: a generator of digger has overflowed its stack of ",
      "conc: a generator of MainThread has overflowed its stack of ",
      ("conc: digger has overflowed its stack of 65536 bytes (.stack_size)\n"
       "before\n"), "", ""};
  static char text[20000];
  if (CONC_STACK_SIZE != 65536) SKIP("another size of stacks");
  for (int how = 0; how < 8; how++) {
    const char *said;
    int status;
    /* It runs no other threads after a fork, and tells less of its own. */
    if (CONC_HAVE_TSAN && how != 5) continue;
    status = die(how, text, sizeof text);
    said = text; /* ASan warns of ucontext first */
    while (strncmp(said, "==", 2) == 0 && strchr(said, '\n') != NULL)
      said = strchr(said, '\n') + 1;
    CHECK(strncmp(said, expected[how], strlen(expected[how])) == 0);
    if (how == 5) {
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    } else if (CONC_HAVE_ASAN) { /* it has handlers of its own */
      CHECK(!WIFEXITED(status) || WEXITSTATUS(status) > 0);
      CHECK(how == 7 || strstr(text, "AddressSanitizer"));
    } else {
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
      if (how >= 6 && !test_wrapped("valgrind")) CHECK_STR(text, "");
    }
  }
}

/* The alternate stacks of threads go with them. */
static void *nothing(void *arg) { return arg; }
static void *one_loop(void *arg) {
  stack_t stack;
  run(nothing, NULL);
  CHECK_EQ(sigaltstack(NULL, &stack), 0);
  CHECK(!(stack.ss_flags & SS_DISABLE));
  return arg;
}
static long mappings(void) {
  FILE *f = fopen("/proc/self/maps", "r");
  long n = 0;
  for (int c; f && (c = fgetc(f)) != EOF;) n += c == '\n';
  if (f) fclose(f);
  return n;
}
TEST(alternate_stacks_end_with_their_threads) {
  long before = 0;
  CHECK_EQ(conc_report_overflow(), 0);
  for (int i = 0; i < 300; i++) {
    conc_task t = {0};
    t.target = one_loop;
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, 20), 0);
    if (i == 99) before = mappings();
  }
  if (!CONC_HAVE_TSAN && !CONC_HAVE_ASAN)
    CHECK(mappings() < before + 100);
}

/* --- a burst --- */

enum { BURST = CONC_HAVE_TSAN ? 2000 : 20000 };
static long resident(void) { /* pages */
  FILE *f = fopen("/proc/self/statm", "r");
  long all = 0, here = 0;
  if (f && fscanf(f, "%ld %ld", &all, &here) != 2) here = 0;
  if (f) fclose(f);
  return here;
}
static void *wait_event(void *arg) {
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), 0);
  return NULL;
}
static size_t slabs(void) {
  size_t n = 0;
  for (conc__slab *s = conc__this.loop->stacks.slabs; s; s = s->next) n++;
  return n;
}
static void burst(int n, conc_task *t) {
  conc_event event = {0};
  memset(t, 0, (size_t)n * sizeof *t);
  for (int i = 0; i < n; i++) {
    t[i].target = wait_event;
    t[i].arg = &event;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (int i = 0; i < 4 + n / 128; i++) CHECK_EQ(conc_yield_now(), 0);
  conc_event_set(&event);
  for (int i = 0; i < n; i++) CHECK_EQ(conc_join(&t[i], 20), 0);
}
static void *bursts(void *arg) {
  conc_task *t = (conc_task *)calloc(BURST, sizeof *t);
  for (int round = 0; round < 2; round++) {
    long before, during, after;
    size_t many;
    burst(1, t);
    before = resident();
    burst(BURST, t);
    during = resident();
    many = slabs();
    CHECK(many > 5);
    CHECK_EQ(conc_sleep(0.01), 0);
    CHECK_EQ(slabs(), many); /* not yet: another burst may come */
    for (int i = 0; i < 1000 && slabs() > 1; i++)
      CHECK_EQ(conc_sleep(0.01), 0);
    after = resident();
    CHECK_EQ(slabs(), 1);
    if (!CONC_HAVE_TSAN && !CONC_HAVE_ASAN && before > 0) {
      CHECK(during > before + BURST / 2);
      CHECK(after < before + (during - before) / 4);
    }
    burst(100, t); /* and it goes on */
  }
  free(t);
  return arg;
}
TEST(memory_is_given_back_after_a_burst) { run(bursts, NULL); }

/* Trimmed again and again among tasks that stay. */
static void *wait_or_be_cancelled(void *arg) {
  conc_event_wait(&go, CONC_FOREVER);
  return arg;
}
static void *trim_often(void *arg) {
  enum { MANY = 400 };
  static conc_task t[MANY];
  static bool alive[MANY];
  for (int round = 0; round < 2000; round++) {
    int i = (int)(test_random() % MANY);
    int n = (int)(test_random() % 60);
    bool start = test_random() % 2;
    for (int k = 0; k < n; k++, i = (i + 1) % MANY) {
      if (start == alive[i]) continue;
      if (start) {
        memset(&t[i], 0, sizeof t[i]);
        t[i].target = wait_or_be_cancelled;
        CHECK_EQ(conc_coro_start(&t[i]), 0);
        if (k % 3 == 0) conc_yield_now();
      } else {
        CHECK_EQ(conc_cancel(&t[i]), 0);
        CHECK_EQ(conc_join(&t[i], 20), -ECANCELED);
      }
      alive[i] = start;
    }
    if (round % 7 == 0) {
      conc__loop *loop = conc__this.loop;
      size_t idle = 0;
      loop->stacks.trim_at = 1e-9; /* its time has come */
      CHECK_EQ(conc_sleep(1e-4), 0);
      for (conc__slab *s = loop->stacks.slabs; s; s = s->next)
        idle += s->busy == 0;
      CHECK_EQ(idle, loop->stacks.idle);
    }
  }
  conc_event_set(&go);
  return arg;
}
TEST(stacks_are_trimmed_among_others) { run(trim_often, NULL); }

TEST_MAIN
