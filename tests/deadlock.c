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
  CHECK(conc_now() - start < 5 * test_slow());
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

/* --- every kind that has an owner --- */

/* Each of two has one object and wants the other: 'l' a lock, 'r' a recursive
   lock that it has twice, 'w' a rwlock to write, 'd' the same but wanted for
   reading, 'o' a once. */
typedef struct owned {
  char kind;
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_once once;
} owned;

typedef struct wanting {
  conc_task task;
  owned *has, *wants;
  conc_event here;
  conc_event *there;
  int got;
} wanting;

static int nothing(void *arg) { return arg == NULL; }

static int take(owned *o) {
  int rc;
  switch (o->kind) {
    case 'l': return conc_lock_acquire(&o->lock, CONC_FOREVER);
    case 'r':
      rc = conc_rlock_acquire(&o->rlock, CONC_FOREVER);
      if (rc == 0) CHECK_EQ(conc_rlock_acquire(&o->rlock, 0), 0);
      return rc;
    case 'w': return conc_rwlock_write_acquire(&o->rwlock, CONC_FOREVER);
    case 'd': return conc_rwlock_read_acquire(&o->rwlock, CONC_FOREVER);
    default: return conc_once_run(&o->once, nothing, o, CONC_FOREVER);
  }
}

static void give(owned *o) {
  if (o->kind == 'l') CHECK_EQ(conc_lock_release(&o->lock), 0);
  for (int i = 0; i < 2 && o->kind == 'r'; i++)
    CHECK_EQ(conc_rlock_release(&o->rlock), 0);
  if (o->kind == 'w' || o->kind == 'd')
    CHECK_EQ(conc_rwlock_release(&o->rwlock), 0);
}

static int want(void *arg) {
  wanting *w = (wanting *)arg;
  conc_event_set(&w->here);
  CHECK_EQ(conc_event_wait(w->there, CONC_FOREVER), 0);
  w->got = take(w->wants);
  if (w->got == 0) give(w->wants);
  return 0;
}

static void *have_and_want(void *arg) {
  wanting *w = (wanting *)arg;
  if (w->has->kind == 'o') {
    CHECK_EQ(conc_once_run(&w->has->once, want, w, CONC_FOREVER), 0);
  } else {
    if (w->has->kind == 'd')
      CHECK_EQ(conc_rwlock_write_acquire(&w->has->rwlock, CONC_FOREVER), 0);
    else
      CHECK_EQ(take(w->has), 0);
    want(w);
    give(w->has);
  }
  return NULL;
}

TEST(every_kind_of_owner_may_be_part_of_a_circle) {
  static const char kinds[] = "lrwdo";
  char text[300];
  for (int a = 0; a < 5; a++)
    for (int b = a; b < 5; b++) {
      owned objects[2];
      wanting w[2];
      memset(objects, 0, sizeof objects);
      memset(w, 0, sizeof w);
      objects[0].kind = kinds[a];
      objects[1].kind = kinds[b];
      for (int i = 0; i < 2; i++) {
        w[i].task.target = have_and_want;
        w[i].task.arg = &w[i];
        w[i].has = &objects[i];
        w[i].wants = &objects[1 - i];
        w[i].there = &w[1 - i].here;
        CHECK_EQ(conc_thread_start(&w[i].task), 0);
      }
      for (int i = 0; i < 2; i++)
        CHECK_EQ(conc_join(&w[i].task, CONC_FOREVER), 0);
      CHECK_EQ(w[0].got + w[1].got, -EDEADLK); /* one of them; 0 the other */
      CHECK(w[0].got == 0 || w[1].got == 0);
      CHECK(conc_deadlock_report(text, sizeof text) > 0);
      CHECK(strstr(text, kinds[a] == 'o' ? "once run by" : "lock held by"));
    }
}

/* --- waits for several tasks --- */

/* A boss holds a lock and waits for its children, each of which does one of
   these things. */
typedef struct child {
  conc_task task;
  struct family *of;
  char does; /* 'l' wants the boss's lock, 'j' joins the boss, 's' sleeps, 'f'
                sleeps and fails, 'e' waits for an event */
  int got;
} child;

typedef struct family {
  conc_task boss;
  child children[MOST];
  const char *plan; /* what they do; an upper case letter is a coroutine */
  char way;         /* how the boss waits */
  conc_lock lock;
  conc_event ready, go_on;
  int rc, told;
} family;

static void *be_child(void *arg) {
  child *c = (child *)arg;
  family *f = c->of;
  if (c->does == 'l') {
    c->got = conc_lock_acquire(&f->lock, CONC_FOREVER);
    if (c->got == 0) CHECK_EQ(conc_lock_release(&f->lock), 0);
  }
  if (c->does == 'j') c->got = conc_join(&f->boss, CONC_FOREVER);
  if (c->does == 's' || c->does == 'f') conc_sleep(0.4);
  if (c->does == 'f') conc_set_status(-EIO);
  if (c->does == 'e') conc_event_wait(&f->go_on, CONC_FOREVER);
  if (c->got == -EDEADLK) {
    __atomic_add_fetch(&f->told, 1, __ATOMIC_RELAXED);
    conc_event_set(&f->go_on);
  }
  return NULL;
}

static int start_child(family *f, int i) {
  return f->plan[i] < 'a' ? conc_coro_start(&f->children[i].task)
                          : conc_thread_start(&f->children[i].task);
}

static void *be_boss(void *arg) {
  family *f = (family *)arg;
  conc_task *tasks[MOST], *t;
  conc_group group = {0};
  conc_completed completed;
  int n = (int)strlen(f->plan);
  conc_event_wait(&f->ready, CONC_FOREVER);
  CHECK_EQ(conc_lock_acquire(&f->lock, CONC_FOREVER), 0);
  for (int i = 0; i < n; i++) {
    child *c = &f->children[i];
    c->of = f;
    c->does = f->plan[i] < 'a' ? (char)(f->plan[i] + 'a' - 'A') : f->plan[i];
    c->task.target = be_child;
    c->task.arg = c;
    c->task.name = names[i];
    tasks[i] = &c->task;
    CHECK_EQ(f->way != 'l' ? start_child(f, i)
             : f->plan[i] < 'a'
                 ? conc_group_start(&group, tasks[i], conc_coro_start)
                 : conc_group_start(&group, tasks[i], conc_thread_start), 0);
  }
  if (f->way == 'g') f->rc = conc_gather(tasks, (size_t)n, CONC_FOREVER);
  if (f->way == 'l') f->rc = conc_group_leave(&group, CONC_FOREVER);
  if (f->way == 'a' || f->way == '1') {
    int until = f->way == 'a' ? CONC_ALL : CONC_FIRST;
    f->rc = (int)conc_wait(tasks, (size_t)n, until, CONC_FOREVER);
  }
  if (f->way == 'c') {
    CHECK_EQ(conc_as_completed(&completed, tasks, (size_t)n, CONC_FOREVER), 0);
    while ((f->rc = conc_completed_next(&completed, &t)) == 0) continue;
    conc_completed_end(&completed);
  }
  if (f->rc == -EDEADLK) __atomic_add_fetch(&f->told, 1, __ATOMIC_RELAXED);
  conc_event_set(&f->go_on);
  CHECK_EQ(conc_lock_release(&f->lock), 0);
  return NULL;
}

static void *start_boss(void *arg) {
  family *f = (family *)arg;
  CHECK_EQ(conc_coro_start(&f->boss), 0);
  conc_event_set(&f->ready);
  CHECK_EQ(conc_join(&f->boss, CONC_FOREVER), 0);
  for (int i = 0; f->plan[i]; i++)
    conc_join(&f->children[i].task, CONC_FOREVER);
  return NULL;
}

/* How many were told; text is the report. */
static int run_family(family *f, char way, const char *plan, bool coroutine,
                      char *text, size_t size) {
  conc_task root = {.target = start_boss, .arg = f};
  memset(f, 0, sizeof *f);
  f->plan = plan;
  f->way = way;
  f->boss.target = be_boss;
  f->boss.arg = f;
  f->boss.name = "boss";
  f->lock.name = "purse";
  if (coroutine) {
    CHECK_EQ(conc_run(&root), 0);
  } else {
    CHECK_EQ(conc_thread_start(&f->boss), 0);
    conc_event_set(&f->ready);
    CHECK_EQ(conc_join(&f->boss, CONC_FOREVER), 0);
    for (int i = 0; plan[i]; i++)
      conc_join(&f->children[i].task, CONC_FOREVER);
  }
  conc_deadlock_report(text, size);
  return f->told;
}

TEST(a_wait_for_several_tasks_may_be_part_of_a_deadlock) {
  static const char *const plans[] = {"l", "jjj", "lsj"};
  family f;
  char text[300];
  for (const char *way = "gacl"; *way; way++)
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
      CHECK(run_family(&f, *way, plans[i], false, text, sizeof text) >= 1);
      CHECK(strstr(text, *way == 'l' ? " waits for the end of "
                                     : " waits for several tasks such as "));
      if (*way == 'g' && f.rc < 0) /* they were cancelled, or told */
        for (int k = 0; plans[i][k]; k++)
          CHECK(plans[i][k] == 's' || f.children[k].got < 0);
    }
  CHECK(run_family(&f, '1', "lll", false, text, sizeof text) >= 1);
  CHECK(run_family(&f, 'a', "lee", false, text, sizeof text) >= 1);
  for (const char *way = "gacl"; *way; way++)
    CHECK(run_family(&f, *way, "LlL", true, text, sizeof text) >= 1);
  run_family(&f, 'g', "l", false, text, sizeof text);
  if (text[0] == 'A')
    CHECK_STR(text, "A waits for lock 'purse' held by boss, "
                    "which waits for several tasks such as A");
  else
    CHECK_STR(text, "boss waits for several tasks such as A, "
                    "which waits for lock 'purse' held by boss");
}

TEST(a_wait_that_one_of_several_tasks_can_end_is_no_deadlock) {
  family f;
  char text[300];
  CHECK_EQ(run_family(&f, '1', "lls", false, text, sizeof text), 0);
  CHECK_EQ(f.rc, 1);
  CHECK_EQ(run_family(&f, '1', "LsJ", true, text, sizeof text), 0);
  CHECK_EQ(run_family(&f, 'g', "ljf", false, text, sizeof text), 0);
  CHECK_EQ(f.rc, -EIO); /* and with that the others were cancelled */
  CHECK_EQ(run_family(&f, 'a', "sss", false, text, sizeof text), 0);
  CHECK_EQ(f.rc, 3);
  CHECK_STR(text, "");
}

/* Chains and trees of waits, longer than it takes to look, of tasks that then
   end one after the other. */
typedef struct link_of {
  conc_task task, *next[2];
} link_of;

static void *wait_for_next(void *arg) {
  link_of *l = (link_of *)arg;
  if (l->next[0] == NULL) {
    CHECK_EQ(conc_sleep(0.3), 0);
    return NULL;
  }
  CHECK_EQ(l->next[1] == NULL ? conc_join(l->next[0], CONC_FOREVER)
                              : conc_gather(l->next, 2, CONC_FOREVER), 0);
  return NULL;
}

static void *run_links(void *arg) {
  enum { N = 1000 };
  static link_of links[N];
  memset(links, 0, sizeof links);
  for (int i = 0; i < N; i++) {
    links[i].task.target = wait_for_next;
    links[i].task.arg = &links[i];
    if (i + 1 < N) links[i].next[0] = &links[i + 1].task;
    if (arg != NULL && i + 7 < N) links[i].next[1] = &links[i + 7].task;
  }
  for (int i = 0; i < N; i++)
    CHECK_EQ(conc_coro_start(&links[arg != NULL ? N - 1 - i : i].task), 0);
  CHECK_EQ(conc_join(&links[0].task, CONC_FOREVER), 0);
  return NULL;
}

TEST(long_chains_and_nets_of_waits_are_no_deadlock) {
  conc_task chained = {.target = run_links};
  conc_task netted = {.target = run_links, .arg = &chained};
  char text[300];
  CHECK_EQ(conc_run(&chained), 0);
  CHECK_EQ(conc_run(&netted), 0);
  CHECK_EQ(conc_deadlock_report(text, sizeof text), 0);
}

/* Who is notified is woken when the lock is released; but the notifier waits
   before that, for what the other one holds. */
static struct {
  conc_lock lock, other;
  conc_cond cond;
  conc_event waits;
  int got;
} notice;

static void *wait_for_notice(void *arg) {
  CHECK_EQ(conc_lock_acquire(&notice.other, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_acquire(&notice.lock, CONC_FOREVER), 0);
  conc_event_set(&notice.waits);
  CHECK_EQ(conc_cond_wait(&notice.cond, &notice.lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release(&notice.lock), 0);
  CHECK_EQ(conc_lock_release(&notice.other), 0);
  return arg;
}

TEST(a_circle_with_one_who_is_notified_is_found) {
  conc_task t = {.target = wait_for_notice, .name = "notified"};
  char text[300];
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_event_wait(&notice.waits, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_acquire(&notice.lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_notify(&notice.cond, 1), 0);
  CHECK_EQ(conc_lock_acquire(&notice.other, CONC_FOREVER), -EDEADLK);
  CHECK_EQ(conc_lock_release(&notice.lock), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(conc_deadlock_report(text, sizeof text) > 0);
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

static void heard(const conc_slow_turn *turn, void *arg) {
  (void)turn;
  (void)arg;
}

/* The threads of a page, of a report and of the look-out for slow turns wake
   nobody. */
TEST(a_loop_that_only_lookers_on_are_beside_ends) {
  conc_event e = {.name = "never"};
  conc_task t = {.target = wait_in_vain_together, .arg = &e, .name = "root"};
  FILE *f = fopen("/proc/self/stat", "r");
  if (f == NULL) SKIP("there is no /proc");
  fclose(f);
  if (TEST_TSAN) SKIP("ThreadSanitizer runs a thread of its own");
  if (test_wrapped("qemu")) SKIP("the emulator's /proc knows no threads");
  CHECK(conc_inspect("") > 0);
  CHECK_EQ(conc_slow_turns(0.05, heard, NULL), 0);
  CHECK_EQ(conc_report_on_signal(SIGQUIT), 0);
  CHECK_EQ(conc_run(&t), -EDEADLK);
  CHECK_EQ(conc_report_on_signal(0), 0);
  CHECK_EQ(conc_run(&t), -EDEADLK);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
  CHECK_EQ(conc_run(&t), -EDEADLK);
  CHECK_EQ(conc_inspect(NULL), 0);
  CHECK_EQ(conc_run(&t), -EDEADLK);
}

/* A coroutine that ends them waits for their threads, and is woken. */
static void *begin_and_end_them(void *arg) {
  for (int i = 0; i < 20; i++) {
    CHECK(conc_inspect("") > 0);
    CHECK_EQ(conc_slow_turns(0.05, heard, NULL), 0);
    CHECK_EQ(conc_report_on_signal(SIGQUIT), 0);
    CHECK_EQ(conc_inspect(NULL), 0);
    CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
    CHECK_EQ(conc_report_on_signal(0), 0);
  }
  return arg;
}

TEST(a_loop_that_waits_for_a_looker_on_to_end_waits) {
  conc_task t = {.target = begin_and_end_them};
  CHECK_EQ(conc_run(&t), 0);
}

typedef struct slow_one {
  conc_event told, ended;
} slow_one;

/* Another turn may be slow, too. */
static void tell_the_slow_one(const conc_slow_turn *turn, void *arg) {
  slow_one *s = (slow_one *)arg;
  if (turn->task == NULL || strcmp(turn->task, "slow") != 0) return;
  conc_event_set(turn->ended ? &s->ended : &s->told);
}

static void *compute_until_told(void *arg) {
  slow_one *s = (slow_one *)arg;
  while (!conc_event_is_set(&s->told)) continue;
  CHECK_EQ(conc_event_wait(&s->ended, CONC_FOREVER), 0);
  return arg;
}

/* The callback that tells of the end of a turn wakes the loop: that comes at
   the next look, 0.15 s later, after the loop has looked for a deadlock. */
TEST(a_loop_that_the_callback_of_a_slow_turn_wakes_waits) {
  slow_one s = {{0}, {0}};
  conc_task t = {.target = compute_until_told, .arg = &s, .name = "slow"};
  CHECK_EQ(conc_slow_turns(0.6, tell_the_slow_one, &s), 0);
  CHECK_EQ(conc_run(&t), 0);
  CHECK_EQ(conc_slow_turns(0, NULL, NULL), 0);
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

/* Locks are taken in one order again and again, of which nothing is told;
   then c before a, the other way round, by one thread. It is told by the
   names, once for each pair: the other lock that is named "a" is the same
   to it. */
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
                     "acquired before by a task that held 'a'");
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
  int rounds = (int)test_asked("DEADLOCK_ROUNDS", 40);
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
    unsigned r = test_random_of(&seed);
    unsigned a = r % CHAIN, b = a + 1 + (r >> 8) % CHAIN;
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
  char text[300];
  operations = (long)test_asked("DEADLOCK_OPERATIONS", 200000) / WORKERS;
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
