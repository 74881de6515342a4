/* Deadlocks: found, named, told to one, and never seen where there is none. */
#include "test.h"

#include "../conc.h"

/* One side of a circle: takes its first lock, meets the others, then wants
   the second one. */
typedef struct side {
  conc_task task;
  conc_lock *first, *second;
  conc_event *here, *go; /* have the first; all have */
  double timeout;
  int got;
} side;

static void *take_both(void *arg) {
  side *s = (side *)arg;
  CHECK_EQ(conc_lock_acquire(s->first, CONC_FOREVER), 0);
  conc_event_set(s->here);
  CHECK_EQ(conc_event_wait(s->go, CONC_FOREVER), 0);
  s->got = conc_lock_acquire(s->second, s->timeout);
  if (s->got == 0) CHECK_EQ(conc_lock_release(s->second), 0);
  CHECK_EQ(conc_lock_release(s->first), 0);
  return NULL;
}

enum { MOST = 8 };
typedef struct circle {
  side sides[MOST];
  conc_lock locks[MOST];
  conc_event here[MOST], go;
  int n, coroutines; /* so many of the sides are coroutines */
} circle;

static const char *const names[MOST] = {"A", "B", "C", "D",
                                        "E", "F", "G", "H"};

static void *run_coroutines(void *arg) {
  circle *c = (circle *)arg;
  for (int i = 0; i < c->coroutines; i++)
    CHECK_EQ(conc_coro_start(&c->sides[i].task), 0);
  for (int i = 0; i < c->coroutines; i++)
    CHECK_EQ(conc_join(&c->sides[i].task, CONC_FOREVER), 0);
  return NULL;
}

static void *run_loop(void *arg) {
  conc_task root = {.target = run_coroutines, .arg = arg};
  CHECK_EQ(conc_run(&root), 0);
  return NULL;
}

/* Makes a circle of n, runs it to its end; how many were told -EDEADLK. */
static int run_circle(circle *c, int n, int coroutines, double timeout) {
  conc_task loop = {.target = run_loop, .arg = c};
  int told = 0;
  memset(c, 0, sizeof *c);
  c->n = n;
  c->coroutines = coroutines;
  for (int i = 0; i < n; i++) {
    side *s = &c->sides[i];
    c->locks[i].name = names[i];
    s->task.target = take_both;
    s->task.arg = s;
    s->task.name = names[i];
    s->first = &c->locks[i];
    s->second = &c->locks[(i + 1) % n];
    s->here = &c->here[i];
    s->go = &c->go;
    s->timeout = timeout;
  }
  if (coroutines > 0) CHECK_EQ(conc_thread_start(&loop), 0);
  for (int i = coroutines; i < n; i++)
    CHECK_EQ(conc_thread_start(&c->sides[i].task), 0);
  for (int i = 0; i < n; i++)
    CHECK_EQ(conc_event_wait(&c->here[i], CONC_FOREVER), 0);
  conc_event_set(&c->go);
  if (coroutines > 0) CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  for (int i = coroutines; i < n; i++)
    CHECK_EQ(conc_join(&c->sides[i].task, CONC_FOREVER), 0);
  for (int i = 0; i < n; i++) {
    CHECK(c->sides[i].got == 0 || c->sides[i].got == -EDEADLK ||
          (timeout < 1 && c->sides[i].got == -ETIMEDOUT));
    told += c->sides[i].got == -EDEADLK;
  }
  return told;
}

TEST(a_circle_of_threads_is_told_to_one_and_named) {
  circle c;
  char text[300];
  double start = conc_now();
  CHECK_EQ(conc_deadlock_report(text, sizeof text), 0);
  CHECK_STR(text, "");
  CHECK_EQ(run_circle(&c, 2, 0, CONC_FOREVER), 1);
  CHECK(conc_now() - start < 5);
  CHECK(conc_deadlock_report(text, sizeof text) > 0);
  if (text[0] == 'A')
    CHECK_STR(text, "A waits for lock 'B' held by B, which waits for lock 'A'"
                    " held by A");
  else
    CHECK_STR(text, "B waits for lock 'A' held by A, which waits for lock 'B'"
                    " held by B");
  CHECK_EQ(conc_deadlock_report(text, 5), (ssize_t)strlen(
      "A waits for lock 'B' held by B, which waits for lock 'A' held by A"));
  CHECK_EQ(strlen(text), 4);
}

TEST(circles_of_any_mixture_are_found) {
  circle c;
  for (int n = 2; n <= MOST; n += 3)
    for (int coroutines = 0; coroutines <= n; coroutines += n / 2)
      CHECK_EQ(run_circle(&c, n, coroutines, CONC_FOREVER), 1);
}

TEST(a_wait_that_ends_by_itself_is_no_deadlock) {
  circle c;
  char text[300];
  CHECK_EQ(run_circle(&c, 3, 0, 0.3), 0);
  CHECK_EQ(run_circle(&c, 3, 2, 0.3), 0);
  CHECK_EQ(conc_deadlock_report(text, sizeof text), 0);
}

/* --- joins --- */

typedef struct joiner {
  conc_task task, *other;
  conc_event ready;
  int got;
} joiner;

static void *join_other(void *arg) {
  joiner *j = (joiner *)arg;
  CHECK_EQ(conc_event_wait(&j->ready, CONC_FOREVER), 0);
  j->got = conc_join(j->other, CONC_FOREVER);
  return NULL;
}

TEST(joins_that_wait_for_each_other_are_found) {
  joiner a, b;
  char text[300];
  memset(&a, 0, sizeof a);
  memset(&b, 0, sizeof b);
  a.task.target = b.task.target = join_other;
  a.task.arg = &a;
  b.task.arg = &b;
  a.task.name = "first";
  b.task.name = "second";
  a.other = &b.task;
  b.other = &a.task;
  CHECK_EQ(conc_thread_start(&a.task), 0);
  CHECK_EQ(conc_thread_start(&b.task), 0);
  conc_event_set(&a.ready);
  conc_event_set(&b.ready);
  CHECK_EQ(conc_join(&a.task, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&b.task, CONC_FOREVER), 0);
  CHECK((a.got == -EDEADLK) + (b.got == -EDEADLK) == 1);
  CHECK(a.got == 0 || b.got == 0);
  CHECK(conc_deadlock_report(text, sizeof text) > 0);
  if (text[0] == 'f')
    CHECK_STR(text, "first waits for the end of second, "
                    "which waits for the end of first");
  else
    CHECK_STR(text, "second waits for the end of first, "
                    "which waits for the end of second");
}

/* A thread joins one that waits for its lock. */
static void *want_lock(void *arg) {
  conc_lock *lock = (conc_lock *)arg;
  int rc = conc_lock_acquire(lock, CONC_FOREVER);
  if (rc == 0) CHECK_EQ(conc_lock_release(lock), 0);
  return rc == 0 ? NULL : arg;
}

TEST(a_join_of_who_waits_for_my_lock_is_found) {
  conc_lock lock = {.name = "mine"};
  conc_task t = {.target = want_lock, .arg = &lock};
  int rc;
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_thread_start(&t), 0);
  rc = conc_join(&t, CONC_FOREVER);
  CHECK_EQ(conc_lock_release(&lock), 0);
  CHECK(rc == 0 || rc == -EDEADLK);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK((rc == 0) == (conc_result(&t) != NULL)); /* one of the two */
}

/* --- a loop alone --- */

static void *wait_in_vain(void *arg) {
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), -ECANCELED);
  return arg;
}

static void *wait_in_vain_together(void *arg) {
  conc_event *e = (conc_event *)arg;
  conc_task t = {.target = wait_in_vain, .arg = e, .name = "child"};
  char buf[4];
  CHECK_EQ(conc_coro_start(&t), 0);
  conc_queue_opts named = {.name = "mail"};
  conc_queue *q = conc_queue_new(&named);
  CHECK_EQ(conc_get(q, buf, 4, CONC_FOREVER), -ECANCELED);
  conc_queue_free(q);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  return NULL;
}

TEST(a_loop_that_nothing_can_wake_ends) {
  conc_event e = {.name = "never"};
  conc_task t = {.target = wait_in_vain_together, .arg = &e, .name = "root"};
  char text[300];
  FILE *f = fopen("/proc/self/stat", "r");
  if (f == NULL) SKIP("there is no /proc");
  fclose(f);
  if (TEST_TSAN) SKIP("ThreadSanitizer runs a thread of its own");
  if (test_wrapped("qemu")) SKIP("the emulator's /proc knows no threads");
  CHECK_EQ(conc_run(&t), -EDEADLK);
  CHECK(conc_deadlock_report(text, sizeof text) > 0);
  CHECK_STR(text, "child waits for event 'never', "
                  "root waits for queue 'mail'");
}

static void *set_later(void *arg) {
  conc_sleep(0.5); /* longer than the loop takes to lose hope */
  conc_event_set((conc_event *)arg);
  return NULL;
}

static void *wait_for_it(void *arg) {
  CHECK_EQ(conc_event_wait((conc_event *)arg, CONC_FOREVER), 0);
  return NULL;
}

TEST(a_loop_that_another_thread_can_wake_waits) {
  conc_event e = {.name = "later"};
  conc_task t = {.target = wait_for_it, .arg = &e};
  conc_task other = {.target = set_later, .arg = &e};
  CHECK_EQ(conc_thread_start(&other), 0);
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(conc_join(&other, CONC_FOREVER), 0);
}

/* --- the order of locks --- */

static char told[4][256];
static int told_count;

static void tell(const char *text, void *arg) {
  CHECK(arg == told);
  CHECK(told_count < 4);
  snprintf(told[told_count++], sizeof told[0], "%s", text);
}

static void take_in_order(conc_lock *first, conc_lock *second) {
  CHECK_EQ(conc_lock_acquire(first, 1), 0);
  CHECK_EQ(conc_lock_acquire(second, 1), 0);
  CHECK_EQ(conc_lock_release(first), 0);
  CHECK_EQ(conc_lock_release(second), 0);
}

TEST(an_order_that_may_deadlock_is_told_once_though_it_has_not) {
  conc_lock a = {.name = "a"}, b = {.name = "b"}, c = {.name = "c"};
  conc_lock other_a = {.name = "a"}, nameless = {0};
  conc_on_lock_order(tell, told);
  for (int i = 0; i < 3; i++) {
    take_in_order(&a, &b);
    take_in_order(&b, &c);
    take_in_order(&a, &c);
    take_in_order(&nameless, &a);
    take_in_order(&c, &nameless);
    take_in_order(&a, &other_a);
  }
  CHECK_EQ(told_count, 0);
  CHECK_EQ(conc_lock_acquire(&c, 1), 0); /* trying does no harm */
  CHECK_EQ(conc_lock_acquire(&a, 0), 0);
  CHECK_EQ(conc_lock_release(&a), 0);
  CHECK_EQ(conc_lock_release(&c), 0);
  CHECK_EQ(told_count, 0);
  for (int i = 0; i < 3; i++) {
    take_in_order(&c, &other_a);
    CHECK_EQ(told_count, 1);
  }
  CHECK_STR(told[0], "MainThread acquires 'a' and holds 'c', which was "
                     "acquired before by one who held 'a'");
  take_in_order(&b, &a);
  CHECK_EQ(told_count, 2);
  conc_on_lock_order(NULL, NULL);
  take_in_order(&c, &b);
  CHECK_EQ(told_count, 2);
}

static void *notify_soon(void *arg) {
  conc_cond *cond = (conc_cond *)arg;
  for (int i = 0; i < 100; i++) {
    conc_sleep(0.001);
    conc_cond_notify(cond, 1);
  }
  return NULL;
}

TEST(a_condition_gives_its_lock_back_for_the_order_too) {
  conc_rlock a = {{.name = "a"}};
  conc_lock b = {.name = "b"};
  conc_cond cond = {0};
  conc_task t = {.target = notify_soon, .arg = &cond};
  conc_on_lock_order(tell, told);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_rlock_acquire(&a, 1), 0);
  CHECK_EQ(conc_rlock_acquire(&a, 1), 0);
  CHECK_EQ(conc_cond_wait(&cond, &a.lock, 5), 0);
  CHECK_EQ(conc_lock_acquire(&b, 1), 0); /* a before b, after the wait */
  CHECK_EQ(conc_lock_release(&b), 0);
  CHECK_EQ(conc_rlock_release(&a), 0);
  CHECK_EQ(conc_rlock_release(&a), 0);
  CHECK_EQ(conc_rlock_release(&a), -EPERM);
  CHECK_EQ(conc_lock_acquire(&b, 1), 0);
  CHECK_EQ(told_count, 0);
  CHECK_EQ(conc_rlock_acquire(&a, 1), 0);
  CHECK_EQ(told_count, 1);
  CHECK_EQ(conc_rlock_release(&a), 0);
  CHECK_EQ(conc_lock_release(&b), 0);
  CHECK_EQ(conc_join(&t, 10), 0);
}

TEST(more_names_than_there_is_room_for_do_no_harm) {
  static char texts[100][16];
  conc_lock locks[100];
  conc_on_lock_order(tell, told);
  memset(locks, 0, sizeof locks);
  for (int i = 0; i < 100; i++) {
    snprintf(texts[i], sizeof texts[i], "n%d", i);
    locks[i].name = texts[i];
    CHECK_EQ(conc_lock_acquire(&locks[i], 1), 0);
  }
  for (int i = 0; i < 100; i++) CHECK_EQ(conc_lock_release(&locks[i]), 0);
  CHECK_EQ(told_count, 0);
  take_in_order(&locks[20], &locks[3]);
  CHECK_EQ(told_count, 1);
  take_in_order(&locks[99], &locks[98]);
  CHECK_EQ(told_count, 1);
}

/* --- the dining philosophers --- */

enum { SEATS = 5, TABLES = 8 };
typedef struct table {
  circle c;
  conc_task task;
  int rounds;
  double longest;
} table;

static void *dine(void *arg) {
  table *t = (table *)arg;
  for (int i = 0; i < t->rounds; i++) {
    double start = conc_now();
    CHECK_EQ(run_circle(&t->c, SEATS, 0, CONC_FOREVER), 1);
    if (conc_now() - start > t->longest) t->longest = conc_now() - start;
  }
  return NULL;
}

TEST(philosophers_are_found_within_a_moment) {
  static table tables[TABLES];
  const char *asked = getenv("DEADLOCK_ROUNDS");
  int rounds = asked ? atoi(asked) : 40;
  for (int i = 0; i < TABLES; i++) {
    tables[i].task.target = dine;
    tables[i].task.arg = &tables[i];
    tables[i].rounds = rounds / TABLES;
    CHECK_EQ(conc_thread_start(&tables[i].task), 0);
  }
  for (int i = 0; i < TABLES; i++) {
    CHECK_EQ(conc_join(&tables[i].task, CONC_FOREVER), 0);
    /* The goal is 0.25 s; a loaded machine may be late. */
    CHECK(tables[i].longest < 5 * test_slow());
  }
}

/* --- no false alarm --- */

enum { WORKERS = 8, CHAIN = 6 };
static conc_lock chain[CHAIN];
static long operations;

/* Takes some of the locks in their order, the last ones slowly: there are
   long waits, and never a circle. */
static void *work(void *arg) {
  unsigned long long seed = (uintptr_t)arg * 7919 + 1;
  for (long i = 0; i < operations; i++) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    unsigned a = (unsigned)(seed >> 33) % CHAIN;
    unsigned b = a + 1 + (unsigned)(seed >> 40) % CHAIN;
    CHECK_EQ(conc_lock_acquire(&chain[a], CONC_FOREVER), 0);
    if (b < CHAIN) CHECK_EQ(conc_lock_acquire(&chain[b], CONC_FOREVER), 0);
    if (i % (operations / 3 + 1) == 17) conc_sleep(0.12);
    if (b < CHAIN) CHECK_EQ(conc_lock_release(&chain[b]), 0);
    CHECK_EQ(conc_lock_release(&chain[a]), 0);
  }
  return NULL;
}

TEST(code_without_deadlocks_is_never_told_of_one) {
  conc_task t[WORKERS];
  const char *asked = getenv("DEADLOCK_OPERATIONS");
  char text[300];
  operations = (asked ? atol(asked) : 200000) / WORKERS;
  memset(t, 0, sizeof t);
  for (int i = 0; i < WORKERS; i++) {
    t[i].target = work;
    t[i].arg = (void *)(uintptr_t)(i + 1);
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (int i = 0; i < WORKERS; i++)
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(conc_deadlock_report(text, sizeof text), 0);
}

TEST_MAIN
