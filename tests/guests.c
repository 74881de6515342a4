/* Shared queues that lease: the process that made one, and those that are
 * forked from it. What holds at every distance is one text here, over a queue
 * of this process, a shared one, and that of a manager. */
#include "child.h"
#include "../conc.h"
#include "leased.h"
#include "tasks.h"
#include <sys/resource.h>
#include <sys/socket.h>

enum { LOCAL, SHARED, SERVED };

/* A queue, and how workers come to it. */
typedef struct place {
  int distance;
  conc_queue *queue;
  conc_manager server;
} place;

#define TEST_ALL(name)                             \
  static void name(int distance);                  \
  TEST(name##_local) { name(LOCAL); }              \
  TEST(name##_shared) { name(SHARED); }            \
  TEST(name##_served) { name(SERVED); }            \
  static void name(int distance)
#define TEST_FAR(name)                             \
  static void name(int distance);                  \
  TEST(name##_shared) { name(SHARED); }            \
  TEST(name##_served) { name(SERVED); }            \
  static void name(int distance)

static void begin(place *p, int distance, conc_queue_opts o) {
  memset(p, 0, sizeof *p);
  p->distance = distance;
  o.shared = distance == SHARED;
  p->queue = conc_queue_new(&o);
  CHECK(p->queue != NULL);
  if (distance != SERVED) return;
  p->server.address = "127.0.0.1:0";
  p->server.authkey = "abc";
  CHECK_EQ(conc_manager_register_queue(&p->server, "q", p->queue), 0);
  CHECK_EQ(conc_manager_start(&p->server), 0);
}

static void end(place *p) {
  if (p->distance == SERVED) CHECK_EQ(conc_manager_shutdown(&p->server), 0);
  conc_queue_free(p->queue);
}

/* A worker: a thread, or a process. */
typedef struct worker {
  place *p;
  void (*run)(conc_queue *q);
  conc_task thread;
  pid_t pid;
} worker;

static void *work_in_thread(void *arg) {
  worker *w = (worker *)arg;
  w->run(w->p->queue);
  return NULL;
}

static void hire(worker *w, place *p, void (*fn)(conc_queue *q)) {
  memset(w, 0, sizeof *w);
  w->p = p;
  w->run = fn;
  if (p->distance == LOCAL) {
    start(conc_thread_start, &w->thread, work_in_thread, w);
    return;
  }
  w->pid = begin_child();
  if (w->pid != 0) return;
  if (p->distance == SERVED) {
    conc_manager m;
    conc_queue *q;
    memset(&m, 0, sizeof m);
    m.address = conc_manager_address(&p->server);
    m.authkey = "abc";
    CHECK_EQ(conc_manager_connect(&m, 5 * test_slow()), 0);
    q = conc_manager_get(&m, "q");
    CHECK(q != NULL);
    fn(q);
    conc_manager_shutdown(&m);
  } else {
    fn(p->queue);
    conc_queue_free(p->queue);
  }
  _exit(0);
}

static void dismiss(worker *w) {
  if (w->p->distance == LOCAL)
    CHECK_EQ(conc_join(&w->thread, CONC_FOREVER), 0);
  else
    reap(w->pid, 0);
}

/* Runs it from its beginning to its end. */
static void employ(place *p, void (*fn)(conc_queue *q)) {
  worker w;
  hire(&w, p, fn);
  dismiss(&w);
}

/* Takes one by a lease. How often it was delivered. */
static int expect_as(conc_queue *q, const char *text, conc_lease *lease) {
  expect(q, text, lease);
  return conc_lease_deliveries(lease);
}

/* Takes one that was got so many times before, and ends it. */
static void expect_again(conc_queue *q, const char *text, int deliveries) {
  conc_lease lease;
  CHECK_EQ(expect_as(q, text, &lease), deliveries);
  CHECK_EQ(conc_lease_done(&lease), 0);
}

/* That, but it may have been got more often: a lease that is short runs out
   before its end if this process does not run for a while. */
static void expect_at_last(conc_queue *q, const char *text, int deliveries) {
  conc_lease lease;
  int rc;
  do {
    CHECK(expect_as(q, text, &lease) >= deliveries);
    rc = conc_lease_done(&lease);
  } while (rc == -ESTALE);
  CHECK_EQ(rc, 0);
}

/* --- one text, three distances ------------------------------------------- */

static void do_all(conc_queue *q) {
  conc_queue_holder holders[2];
  char items[6], big[100];
  conc_lease lease, other;
  conc_value *v;
  int n = 0;
  CHECK_EQ(conc_qsize(q), 1);
  expect(q, "first", NULL);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(conc_queue_holders(q, holders, 2), 1);
  CHECK_EQ(holders[0].leases, 1);
  CHECK(holders[0].name[0] != 0);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 5 * test_slow()), 0);
  expect_none(q, 0);
  CHECK_EQ(conc_get(q, big, sizeof big, 0.01), -ETIMEDOUT);

  put(q, "a");
  put(q, "b");
  CHECK_EQ(expect_as(q, "a", &lease), 1);
  CHECK_EQ(expect_as(q, "b", &other), 1);
  CHECK_EQ(conc_lease_release(&lease, 0), 0);
  CHECK_EQ(lease.id, 0);
  CHECK_EQ(conc_lease_extend(&other, 60), 0);
  CHECK_EQ(conc_lease_done(&other), 0);
  CHECK_EQ(conc_lease_done(&other), -EINVAL);
  CHECK_EQ(expect_as(q, "a", &lease), 2);
  other = lease;
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_lease_done(&other), -ESTALE);

  CHECK_EQ(conc_put_build(q, 5, "(is)", 7, "seven"), 0);
  CHECK_EQ(conc_get(q, big, sizeof big, 5 * test_slow()), -EBADMSG);
  CHECK_EQ(conc_get_parse(q, 5 * test_slow(), "i", &n), -EBADMSG);
  CHECK_EQ(conc_get_value_leased(q, &lease, &v, 5 * test_slow()), 0);
  CHECK_EQ(conc_value_size(v), 2);
  conc_value_free(v);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(counts(q).leased, 0);

  put(q, "too long");
  CHECK_EQ(conc_get(q, big, 3, 5 * test_slow()), -EMSGSIZE);
  expect(q, "too long", NULL);
  CHECK_EQ(conc_task_done(q), 0);

  CHECK_EQ(conc_put_many(q, "abcdef", 2, 3, 5 * test_slow()), 3);
  CHECK_EQ(conc_get_many(q, items, 2, 3, 5 * test_slow()), 3);
  CHECK(memcmp(items, "abcdef", 6) == 0);
  for (n = 0; n < 3; n++) CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_queue_join(q, 5 * test_slow()), 0);
}

TEST_ALL(every_call_does_the_same) {
  place p;
  begin(&p, distance, leasing(60));
  put(p.queue, "first");
  employ(&p, do_all);
  CHECK_EQ(counts(p.queue).leased, 0);
  CHECK_EQ(conc_qsize(p.queue), 0);
  end(&p);
}

static double late_by; /* seconds */

static void put_on_terms(conc_queue *q) {
  const double wait = 5 * test_slow();
  conc_queue_counts c;
  double begun;
  ssize_t size;
  CHECK_EQ(conc_put_priority(q, "low", 3, 2, wait), 0);
  CHECK_EQ(conc_put_priority(q, "high", 4, 0, wait), 0);
  CHECK_EQ(conc_put_priority(q, "none", 4, 3, wait), -EINVAL);
  begun = conc_now();
  CHECK_EQ(conc_put_after(q, "late", 4, late_by, wait), 0);
  CHECK_EQ(conc_put_once(q, "id", "once", 4, wait), 0);
  CHECK_EQ(conc_put_once(q, "id", "once", 4, wait), 0);
  c = counts(q);
  size = conc_qsize(q);
  if (conc_now() - begun > late_by) return; /* it may be due */
  CHECK_EQ(c.delayed, 1);
  CHECK_EQ(size, 3);
}

/* If that takes so long that the late one may be due it is done again, with
   more time. */
TEST_ALL(terms_hold_for_all) {
  static const char *const order[] = {"high", "low", "once", "late"};
  conc_queue_opts o = leasing(0);
  bool in_time = false;
  o.priorities = 3;
  o.dedup = 60;
  for (late_by = 0.2; !in_time; late_by *= 4) {
    const double begun = conc_now();
    char got[4][8];
    place p;
    int i;
    memset(got, 0, sizeof got);
    begin(&p, distance, o);
    employ(&p, put_on_terms);
    for (i = 0; i < 4; i++) {
      CHECK(conc_get(p.queue, got[i], 7, 15 * test_slow()) > 0);
      if (i == 2) in_time = conc_now() - begun < late_by;
    }
    for (i = 0; i < 4 && in_time; i++) CHECK_STR(got[i], order[i]);
    expect_none(p.queue, 0);
    end(&p);
  }
}

static void get_two(conc_queue *q) {
  expect(q, "x", NULL);
  expect(q, "y", NULL);
}

/* A queue that does not lease: what has arrived does not come back. */
TEST_ALL(what_was_got_is_gone_without_a_lease) {
  conc_queue_opts o = leasing(0);
  place p;
  o.priorities = 1;
  begin(&p, distance, o);
  put(p.queue, "x");
  put(p.queue, "y");
  employ(&p, get_two);
  UNTIL(counts(p.queue).leased == 0);
  expect_none(p.queue, 0);
  CHECK_EQ(conc_qsize(p.queue), 0);
  end(&p);
}

static void refuse(conc_queue *q) {
  char buf[8];
  conc_value *v;
  int n;
  CHECK_EQ(conc_put_build(q, 5, "(is)", 7, "seven"), 0);
  put(q, "x");
  CHECK_EQ(conc_get(q, buf, sizeof buf, 5 * test_slow()), -EBADMSG);
  CHECK_EQ(conc_get_parse(q, 5 * test_slow(), "i", &n), -EBADMSG);
  CHECK_EQ(conc_get_many(q, buf, 1, 2, 5 * test_slow()), -EBADMSG);
  CHECK_EQ(conc_get_value(q, &v, 5 * test_slow()), 0);
  CHECK_EQ(conc_value_size(v), 2);
  conc_value_free(v);
  CHECK_EQ(conc_get_many(q, buf, 2, 1, 5 * test_slow()), -EMSGSIZE);
  CHECK_EQ(conc_qsize(q), 1);
}

TEST_ALL(what_does_not_suit_stays) {
  conc_queue_opts o = leasing(0);
  place p;
  o.priorities = 1;
  begin(&p, distance, o);
  employ(&p, refuse);
  UNTIL(counts(p.queue).leased == 0);
  CHECK_EQ(conc_qsize(p.queue), 1);
  expect(p.queue, "x", NULL);
  end(&p);
}

static void get_and_go(conc_queue *q) { expect(q, "job", NULL); }

TEST_ALL(what_a_worker_has_comes_back_when_it_ends) {
  place p;
  begin(&p, distance, leasing(60));
  put(p.queue, "job");
  employ(&p, get_and_go);
  expect_again(p.queue, "job", 2);
  end(&p);
}

static void *lose_one(void *arg) {
  expect((conc_queue *)arg, "job", NULL);
  return NULL;
}

/* Its task ends, and its process goes on. */
static void run_one_that_loses(conc_queue *q) {
  conc_task t;
  conc_lease lease;
  start(conc_thread_start, &t, lose_one, q);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(expect_as(q, "job", &lease), 2);
  CHECK_EQ(conc_lease_release(&lease, 0), 0);
  run(lose_one, q);
  CHECK_EQ(expect_as(q, "job", &lease), 4);
  CHECK_EQ(conc_lease_done(&lease), 0);
}

TEST_ALL(what_a_task_has_comes_back_when_it_ends) {
  place p;
  begin(&p, distance, leasing(60));
  put(p.queue, "job");
  employ(&p, run_one_that_loses);
  CHECK_EQ(counts(p.queue).done, 1);
  end(&p);
}

#define MANY 60

static void *work_one(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  int job;
  CHECK_EQ(conc_get(q, &job, sizeof job, 15 * test_slow()), sizeof job);
  conc_yield_now();
  CHECK_EQ(conc_task_done(q), 0);
  return NULL;
}

static void *work_by_coroutines(void *arg) {
  static conc_task t[MANY];
  size_t i;
  for (i = 0; i < MANY; i++)
    start(conc_coro_start, &t[i], work_one, arg);
  for (i = 0; i < MANY; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}

static void run_coroutines(conc_queue *q) { run(work_by_coroutines, q); }

/* Coroutines that wait before there is anything. */
TEST_ALL(coroutines_are_workers_too) {
  worker w;
  place p;
  int i;
  begin(&p, distance, leasing(60));
  hire(&w, &p, run_coroutines);
  for (i = 0; i < MANY; i++)
    CHECK_EQ(conc_put(p.queue, &i, sizeof i, 5 * test_slow()), 0);
  CHECK_EQ(conc_queue_join(p.queue, 20 * test_slow()), 0);
  dismiss(&w);
  CHECK_EQ(counts(p.queue).done, MANY);
  CHECK_EQ(counts(p.queue).returned, 0);
  end(&p);
}

static void *wait_in_vain(void *arg) {
  char buf[8];
  CHECK_EQ(conc_get((conc_queue *)arg, buf, 8, CONC_FOREVER), -ECANCELED);
  return NULL;
}

/* The task that is cancelled has a lease, so that its line stays. */
static void *wait_with_a_lease(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  char buf[8];
  expect(q, "mine", NULL);
  CHECK_EQ(conc_get(q, buf, 8, CONC_FOREVER), -ECANCELED);
  put(q, "next");
  CHECK_EQ(conc_task_done(q), 0);
  return NULL;
}

static void cancel_gets(conc_queue *q) {
  conc_task t;
  start(conc_thread_start, &t, wait_in_vain, q);
  usleep(20000);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  put(q, "mine");
  start(conc_thread_start, &t, wait_with_a_lease, q);
  UNTIL(counts(q).leased == 1);
  usleep(20000);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
  expect_again(q, "next", 1);
}

TEST_ALL(who_is_cancelled_takes_nothing) {
  place p;
  begin(&p, distance, leasing(60));
  employ(&p, cancel_gets);
  CHECK_EQ(counts(p.queue).returned, 0);
  CHECK_EQ(counts(p.queue).done, 2);
  end(&p);
}

static void work_slowly(conc_queue *q) {
  conc_lease lease;
  CHECK_EQ(expect_as(q, "job", &lease), 1);
  usleep((unsigned)(2000000 * test_slow()));
  CHECK_EQ(conc_lease_done(&lease), 0);
}

/* The library says that it lives. */
TEST_ALL(a_job_may_be_longer_than_its_lease) {
  place p;
  begin(&p, distance, leasing(1 * test_slow()));
  put(p.queue, "job");
  employ(&p, work_slowly);
  CHECK_EQ(counts(p.queue).returned, 0);
  end(&p);
}

static void hang(conc_queue *q) {
  conc_lease lease;
  CHECK_EQ(expect_as(q, "job", &lease), 1);
  UNTIL(counts(q).returned >= 1);
  CHECK_EQ(conc_task_done(q), -ESTALE);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_lease_done(&lease), -ESTALE);
  put(q, "over");
}

TEST_ALL(who_hangs_loses_its_lease) {
  conc_queue_opts o = leasing(60);
  place p;
  worker w;
  o.max_lease = 0.2;
  begin(&p, distance, o);
  put(p.queue, "job");
  hire(&w, &p, hang);
  UNTIL(counts(p.queue).got == 1);
  expect_at_last(p.queue, "job", 2);
  expect_at_last(p.queue, "over", 1);
  dismiss(&w);
  end(&p);
}

/* --- dead letters -------------------------------------------------------- */

static void lose_twice(conc_queue *q) {
  run(lose_one, q);
  run(lose_one, q);
}

/* The other queue is a shared one, too, of either kind. */
static void bury(int distance, bool leases) {
  conc_queue_opts o = leasing(60), d = leasing(0);
  conc_value *v;
  const char *why;
  place p;
  d.shared = true;
  if (leases) d.lease = 60;
  o.dead_letters = conc_queue_new(&d);
  CHECK(o.dead_letters != NULL);
  o.max_deliveries = 2;
  begin(&p, distance, o);
  put(p.queue, "job");
  employ(&p, lose_twice);
  CHECK_EQ(conc_get_value(o.dead_letters, &v, 10 * test_slow()), 0);
  CHECK_EQ(conc_value_size(conc_value_get(v, "message")), 3);
  why = conc_value_str(conc_value_get(v, "why"), NULL);
  CHECK_STR(why, "ended");
  conc_value_free(v);
  UNTIL(counts(p.queue).dead == 1); /* it is counted after it was put */
  CHECK_EQ(conc_queue_join(p.queue, 5 * test_slow()), 0);
  end(&p);
  conc_queue_free(o.dead_letters);
}

TEST_ALL(dead_letters_go_to_a_shared_queue) {
  bury(distance, false);
  bury(distance, true);
}

/* --- killed, stopped ----------------------------------------------------- */

static void get_and_hang(conc_queue *q) {
  expect(q, "job", NULL);
  for (;;) pause();
}

TEST_FAR(a_killed_worker_gives_back_at_once) {
  place p;
  worker w;
  begin(&p, distance, leasing(60));
  hire(&w, &p, get_and_hang);
  put(p.queue, "job");
  UNTIL(counts(p.queue).leased == 1);
  kill(w.pid, SIGKILL);
  expect_again(p.queue, "job", 2);
  reap(w.pid, -SIGKILL);
  end(&p);
}

static void wait_for_more(conc_queue *q) {
  char buf[8];
  conc_get(q, buf, sizeof buf, CONC_FOREVER);
}

TEST_FAR(who_is_killed_while_it_waits_takes_nothing) {
  place p;
  worker w;
  begin(&p, distance, leasing(60));
  hire(&w, &p, wait_for_more);
  usleep(50000);
  kill(w.pid, SIGKILL);
  reap(w.pid, -SIGKILL);
  put(p.queue, "job");
  expect_again(p.queue, "job", 1);
  end(&p);
}

static void get_and_be_late(conc_queue *q) {
  expect(q, "job", NULL);
  kill(getpid(), SIGSTOP);
  CHECK_EQ(conc_task_done(q), -ESTALE);
  CHECK_EQ(conc_task_done(q), -EINVAL);
}

/* It is stopped while it waits: what it is given then is not lost. */
static void wait_and_be_late(conc_queue *q) {
  conc_lease lease;
  CHECK(expect_as(q, "job", &lease) == 1);
  CHECK_EQ(conc_lease_done(&lease), -ESTALE);
}

TEST_FAR(a_lease_runs_before_its_getter_knows_of_it) {
  double patience = 0.1 * test_slow(), late;
  place p;
  worker w;
  for (;; patience *= 3) {
    begin(&p, distance, leasing(0.3 * test_slow()));
    hire(&w, &p, wait_and_be_late);
    usleep((useconds_t)(patience * 1e6));
    kill(w.pid, SIGSTOP);
    put(p.queue, "job");
    late = conc_now() + 1 * test_slow();
    while (counts(p.queue).got == 0 && conc_now() < late) usleep(1000);
    if (counts(p.queue).got > 0) break;
    /* It did not wait yet when it was stopped: once more, with more time. */
    CHECK(patience < 5 * test_slow());
    kill(w.pid, SIGKILL);
    reap(w.pid, -SIGKILL);
    end(&p);
  }
  expect_again(p.queue, "job", 2);
  kill(w.pid, SIGCONT);
  dismiss(&w);
  end(&p);
}

TEST_FAR(a_stopped_worker_loses_its_lease) {
  int status;
  place p;
  worker w;
  begin(&p, distance, leasing(0.5));
  put(p.queue, "job");
  hire(&w, &p, get_and_be_late);
  CHECK_EQ(waitpid(w.pid, &status, WUNTRACED), w.pid);
  CHECK(WIFSTOPPED(status));
  expect_again(p.queue, "job", 2);
  kill(w.pid, SIGCONT);
  dismiss(&w);
  end(&p);
}

static void work_until_the_end(conc_queue *q) {
  int job;
  while (conc_get(q, &job, sizeof job, CONC_FOREVER) == sizeof job) {
    if (job % 97 == 50) raise(SIGKILL); /* one that kills its workers once */
    if (conc_task_done(q) != 0) break;
  }
}

/* Workers are killed in the middle of calls, too, and replaced. */
TEST_FAR(nothing_is_lost_with_the_killed) {
  enum { JOBS = 400, WORKERS = 3 };
  conc_queue_opts o = leasing(60);
  worker w[WORKERS];
  place p;
  int i, killed = 0;
  begin(&p, distance, o);
  for (i = 0; i < WORKERS; i++) hire(&w[i], &p, work_until_the_end);
  for (i = 0; i < JOBS; i++) {
    int job = i;
    CHECK_EQ(conc_put(p.queue, &job, sizeof job, 5 * test_slow()), 0);
    if (i % 40 == 20) {
      worker *victim = &w[test_random() % WORKERS];
      kill(victim->pid, SIGKILL);
      reap(victim->pid, -SIGKILL);
      killed++;
      hire(victim, &p, work_until_the_end);
    }
  }
  /* What has killed its worker is left to this process. */
  while (conc_queue_join(p.queue, 0) != 0) {
    int job;
    if (conc_get(p.queue, &job, sizeof job, 0.01) < 0) continue;
    CHECK_EQ(conc_task_done(p.queue), 0);
  }
  CHECK(killed > 0);
  CHECK_EQ(counts(p.queue).put, JOBS);
  CHECK_EQ(counts(p.queue).done, JOBS);
  CHECK_EQ(counts(p.queue).leased, 0);
  for (i = 0; i < WORKERS; i++) {
    kill(w[i].pid, SIGKILL);
    reap(w[i].pid, -SIGKILL);
  }
  end(&p);
}

/* --- the process that made it -------------------------------------------- */

static conc_queue *make_shared(conc_queue_opts o) {
  conc_queue *q;
  o.shared = true;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  return q;
}

/* It is full when there is one message, which may be leased. */
static conc_queue *make_full(void) {
  conc_queue_opts o = leasing(60);
  o.capacity = 1;
  return make_shared(o);
}

static void expect_no_host(conc_queue *q) {
  conc_queue_counts c;
  char buf[8];
  int rc;
  /* A process that ends may let a guest in that nobody will hear. */
  do rc = conc_put(q, "x", 1, 5);
  while (rc == -ECONNRESET);
  CHECK_EQ(rc, -EOWNERDEAD);
  CHECK_EQ(conc_get(q, buf, 8, 5), -EOWNERDEAD);
  CHECK_EQ(conc_qsize(q), -EOWNERDEAD);
  CHECK_EQ(conc_queue_join(q, 5), -EOWNERDEAD);
  CHECK_EQ(conc_queue_close(q), -EOWNERDEAD);
  CHECK_EQ(conc_queue_stats(q, &c), -EOWNERDEAD);
}

static void *wait_for_the_end(void *arg) {
  char buf[8];
  CHECK_EQ(conc_get((conc_queue *)arg, buf, 8, CONC_FOREVER), -EOWNERDEAD);
  return NULL;
}

static void *put_until_the_end(void *arg) {
  int rc = conc_put((conc_queue *)arg, "x", 1, CONC_FOREVER);
  CHECK(rc == -EOWNERDEAD || rc == -ECONNRESET);
  return NULL;
}

static void *wait_in_coroutine(void *arg) {
  run(wait_for_the_end, arg);
  return NULL;
}

/* Gets, puts and a join that wait, a lease, and calls after the end. */
static void outlive(conc_queue *q) {
  conc_task t[3];
  int i;
  expect(q, "job", NULL);
  start(conc_thread_start, &t[0], wait_for_the_end, q);
  start(conc_thread_start, &t[1], wait_in_coroutine, q);
  start(conc_thread_start, &t[2], put_until_the_end, q);
  CHECK_EQ(conc_queue_join(q, CONC_FOREVER), -EOWNERDEAD);
  for (i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL); /* that has gone, too */
  expect_no_host(q);
  conc_queue_free(q);
}

TEST(guests_are_told_when_it_is_freed) {
  conc_queue *q = make_full();
  pid_t pid = begin_child();
  if (pid == 0) {
    outlive(q);
    _exit(0);
  }
  put(q, "job");
  UNTIL(counts(q).leased == 1);
  usleep(50000);
  conc_queue_free(q);
  reap(pid, 0);
}

TEST(guests_are_told_when_it_is_killed) {
  int ends[2], code = 1;
  pid_t host;
  CHECK_EQ(pipe(ends), 0);
  host = begin_child();
  if (host == 0) {
    conc_queue *q = make_full();
    put(q, "job");
    if (begin_child() == 0) {
      outlive(q);
      code = 0;
      CHECK_EQ(write(ends[1], &code, sizeof code), sizeof code);
      _exit(0);
    }
    UNTIL(counts(q).leased == 1);
    usleep(50000);
    raise(SIGKILL);
  }
  reap(host, -SIGKILL);
  CHECK_EQ(read(ends[0], &code, sizeof code), sizeof code);
  CHECK_EQ(code, 0);
  close(ends[0]);
  close(ends[1]);
}

/* A host with something to do, and its guest, which may stop it: in processes
   of their own. */
static void stop_a_host(void (*prepare)(conc_queue *q),
                        void (*guest)(conc_queue *q, pid_t host)) {
  int ends[2], code = 1, status;
  pid_t host;
  CHECK_EQ(pipe(ends), 0);
  host = begin_child();
  if (host == 0) {
    conc_queue *q = make_shared(leasing(60));
    pid_t me = getpid();
    prepare(q);
    if (begin_child() == 0) {
      guest(q, me);
      code = 0;
      CHECK_EQ(write(ends[1], &code, sizeof code), sizeof code);
      _exit(0);
    }
    for (;;) pause();
  }
  CHECK_EQ(read(ends[0], &code, sizeof code), sizeof code);
  CHECK_EQ(code, 0);
  kill(host, SIGKILL);
  CHECK_EQ(waitpid(host, &status, 0), host);
  close(ends[0]);
  close(ends[1]);
}

static void put_one_job(conc_queue *q) { put(q, "job"); }

static void wait_for_nobody(conc_queue *q, pid_t host) {
  conc_lease lease;
  char buf[8];
  CHECK_EQ(expect_as(q, "job", &lease), 1);
  put(q, "next");
  kill(host, SIGSTOP);
  usleep(50000);
  CHECK_EQ(conc_get(q, buf, 8, 0), -ETIMEDOUT);
  CHECK_EQ(conc_put(q, "x", 1, 0), -ECONNRESET);
  kill(host, SIGCONT);
  /* The get that was given up has got nothing, though the host has done it: it
     is as if it had not been. The put was done. */
  expect_again(q, "next", 1);
  expect_again(q, "x", 1);
  expect_none(q, 0);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(counts(q).leased, 0);
  CHECK_EQ(conc_queue_join(q, 5 * test_slow()), 0);
}

/* A stopped host answers nobody: timeouts are kept all the same. */
TEST(a_stopped_host_costs_a_timeout) {
  stop_a_host(put_one_job, wait_for_nobody);
}

/* --- forks --------------------------------------------------------------- */

/* A child, its child, and that of a thread that forks while others are in the
   midst of calls. */
static void *fork_and_work(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  pid_t pid = begin_child();
  if (pid == 0) {
    work_one(q);
    pid = begin_child();
    if (pid == 0) {
      work_one(q);
      conc_queue_free(q);
      _exit(0);
    }
    reap(pid, 0);
    work_one(q);
    _exit(0);
  }
  reap(pid, 0);
  return NULL;
}

static void *put_and_get(void *arg) {
  int i, job = 1;
  for (i = 0; i < 50; i++) {
    CHECK_EQ(conc_put((conc_queue *)arg, &job, sizeof job, CONC_FOREVER), 0);
    work_one(arg);
  }
  return NULL;
}

static void fork_in_threads(conc_queue *q) {
  conc_task t[4];
  int i, job = 2;
  for (i = 0; i < 6; i++)
    CHECK_EQ(conc_put(q, &job, sizeof job, CONC_FOREVER), 0);
  start(conc_thread_start, &t[0], put_and_get, q);
  start(conc_thread_start, &t[1], put_and_get, q);
  start(conc_thread_start, &t[2], fork_and_work, q);
  start(conc_thread_start, &t[3], fork_and_work, q);
  for (i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(conc_queue_join(q, 10 * test_slow()), 0);
}

TEST(forks_of_forks_are_guests_too) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid;
  fork_in_threads(q);
  pid = begin_child();
  if (pid == 0) {
    fork_in_threads(q);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(counts(q).done, 2 * 106);
  CHECK_EQ(counts(q).returned, 0);
  conc_queue_free(q);
}

/* What the parent has leased stays leased, in every child. */
TEST(a_child_does_not_end_what_its_parent_has) {
  conc_queue *q = make_shared(leasing(60));
  conc_lease lease;
  pid_t pid;
  put(q, "job");
  expect_as(q, "job", &lease);
  pid = begin_child();
  if (pid == 0) {
    CHECK_EQ(conc_task_done(q), -EINVAL);
    expect_none(q, 0);
    put(q, "two");
    expect(q, "two", NULL);
    pid = begin_child();
    if (pid == 0) {
      CHECK_EQ(conc_task_done(q), -EINVAL);
      _exit(0);
    }
    reap(pid, 0);
    CHECK_EQ(conc_task_done(q), 0);
    conc_queue_free(q);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(counts(q).done, 2);
  conc_queue_free(q);
}

static bool in_child;

/* The coroutine ends in both processes. */
static void *fork_with_a_lease(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  pid_t pid;
  put(q, "job");
  expect(q, "job", NULL);
  pid = begin_child();
  if (pid == 0) {
    in_child = true;
    return NULL;
  }
  reap(pid, 0);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(counts(q).returned, 0);
  CHECK_EQ(conc_task_done(q), 0);
  return NULL;
}

TEST(a_task_that_ends_in_a_child_too_has_one_lease) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid;
  run(fork_with_a_lease, q);
  if (in_child) _exit(0);
  pid = begin_child();
  if (pid == 0) {
    run(fork_with_a_lease, q);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(counts(q).done, 2);
  conc_queue_free(q);
}

/* By its handle, any task may end a lease: one of another process, too. */
TEST(a_lease_is_handed_over_to_a_child) {
  conc_queue *q = make_shared(leasing(60));
  conc_lease lease;
  pid_t pid;
  put(q, "job");
  expect_as(q, "job", &lease);
  pid = begin_child();
  if (pid == 0) {
    CHECK_EQ(conc_lease_done(&lease), 0);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(counts(q).done, 1);
  CHECK_EQ(conc_lease_done(&lease), -ESTALE);
  conc_queue_free(q);
}

static void *wait_across_a_fork(void *arg) {
  char buf[8];
  ssize_t n = conc_get((conc_queue *)arg, buf, 8, CONC_FOREVER);
  return n == -ECANCELED ? NULL : (void *)1;
}

/* A coroutine that waits comes along when its thread forks. */
static void *fork_beside_one_that_waits(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  conc_task t;
  pid_t pid;
  start(conc_coro_start, &t, wait_across_a_fork, q);
  CHECK_EQ(conc_sleep(0.05), 0);
  pid = begin_child();
  if (pid == 0) {
    CHECK_EQ(conc_join(&t, 10 * test_slow()), 0);
    CHECK(conc_result(&t) == NULL);
    put(q, "child");
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(conc_join(&t, 10 * test_slow()), 0);
  CHECK(conc_result(&t) != NULL);
  return NULL;
}

TEST(a_wait_that_comes_along_into_a_child_is_cancelled) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid;
  run(fork_beside_one_that_waits, q);
  expect_again(q, "child", 2);
  pid = begin_child();
  if (pid == 0) {
    run(fork_beside_one_that_waits, q);
    _exit(0);
  }
  reap(pid, 0);
  expect_again(q, "child", 2);
  conc_queue_free(q);
}

/* --- processes of the library -------------------------------------------- */

static conc_queue *global_queue;

static void *work_as_process(void *arg) {
  (void)arg;
  return work_one(global_queue);
}

TEST(processes_of_the_library_are_workers) {
  conc_task t[3];
  int i, job = 0;
  global_queue = make_shared(leasing(60));
  for (i = 0; i < 3; i++)
    start(conc_process_start, &t[i], work_as_process, NULL);
  for (i = 0; i < 3; i++)
    CHECK_EQ(conc_put(global_queue, &job, sizeof job, 5), 0);
  for (i = 0; i < 3; i++)
    CHECK_EQ(conc_join(&t[i], 20 * test_slow()), 0);
  CHECK_EQ(counts(global_queue).done, 3);
  conc_queue_free(global_queue);
}

typedef struct pool_job {
  int done, lost;
} pool_job;

/* A pool's job is a task: what it has not done comes back at its end. */
static void *work_in_pool(void *arg) {
  pool_job *j = (pool_job *)arg;
  int job = 0;
  if (conc_get(global_queue, &job, sizeof job, 15) != sizeof job) return NULL;
  if (job == 1) {
    j->lost = 1;
    return NULL;
  }
  j->done = conc_task_done(global_queue) == 0;
  return NULL;
}

TEST(workers_of_a_pool_are_guests) {
  pool_job job;
  conc_pool pool;
  conc_task t;
  int i, one;
  global_queue = make_shared(leasing(60));
  memset(&pool, 0, sizeof pool);
  pool.workers = 2;
  CHECK_EQ(conc_pool_start(&pool), 0);
  for (i = 0; i < 4; i++) {
    one = i % 2;
    CHECK_EQ(conc_put(global_queue, &one, sizeof one, 5), 0);
    memset(&job, 0, sizeof job);
    t = task_of(work_in_pool, &job);
    t.size = sizeof job;
    CHECK_EQ(conc_pool_apply(&pool, &t, 20 * test_slow()), 0);
    CHECK_EQ(job.lost, i % 2);
    CHECK_EQ(job.done, 1 - i % 2);
    if (job.lost) { /* it is here again though the worker lives */
      CHECK_EQ(conc_get(global_queue, &one, sizeof one, 10 * test_slow()),
               sizeof one);
      CHECK_EQ(conc_task_done(global_queue), 0);
    }
  }
  CHECK_EQ(conc_pool_close(&pool), 0);
  CHECK_EQ(conc_pool_join(&pool, 20 * test_slow()), 0);
  CHECK_EQ(counts(global_queue).returned, 2);
  conc_queue_free(global_queue);
}

/* --- limits -------------------------------------------------------------- */

TEST(what_does_not_go_together_is_refused) {
  conc_queue_opts o = leasing(60);
  o.shared = true;
  o.name = "/conc-guests";
  errno = 0;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
  o.name = NULL;
  o.backend = 3;
  errno = 0;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
}

/* Bounds are the host's. */
TEST(guests_wait_for_room) {
  conc_queue_opts o = leasing(60);
  conc_queue *q;
  pid_t pid;
  int told[2];
  char byte;
  o.capacity = 2;
  o.max_bytes = 70000;
  q = make_shared(o);
  CHECK_EQ(pipe(told), 0);
  pid = begin_child();
  if (pid == 0) {
    static char big[70001];
    CHECK_EQ(conc_put(q, big, 70001, 5), -EMSGSIZE);
    memset(big, 7, sizeof big);
    CHECK_EQ(conc_put(q, big, 70000, 5), 0);
    put(q, "second");
    CHECK_EQ(conc_put(q, "third", 5, 0), -ETIMEDOUT);
    CHECK_EQ(conc_put(q, "third", 5, 0.05), -ETIMEDOUT);
    CHECK_EQ(write(told[1], "x", 1), 1);
    put(q, "fourth");
    CHECK_EQ(conc_peek_size(q), 6);
    CHECK_EQ(conc_queue_close(q), 0);
    CHECK_EQ(conc_put(q, "x", 1, 0), -EPIPE);
    _exit(0);
  } else {
    static char big[70000];
    CHECK_EQ(read(told[0], &byte, 1), 1);
    usleep(50000); /* most likely it waits; if not, no harm */
    CHECK_EQ(conc_get(q, big, sizeof big, 5), 70000);
    CHECK_EQ(big[0] + big[69999], 14);
    CHECK_EQ(conc_task_done(q), 0);
  }
  reap(pid, 0);
  expect_again(q, "second", 1);
  expect_again(q, "fourth", 1);
  CHECK_EQ(conc_get(q, &o, sizeof o, CONC_FOREVER), -EPIPE);
  conc_queue_free(q);
  close(told[0]), close(told[1]);
}

/* Many go in as few trips as it takes; as many as there is room for. */
TEST(a_guest_puts_many_at_once) {
  enum { N = 100000 };
  conc_queue_opts o = leasing(60);
  conc_queue *q;
  pid_t pid;
  o.capacity = N + 5;
  q = make_shared(o);
  pid = begin_child();
  if (pid == 0) {
    static int all[N];
    int i;
    for (i = 0; i < N; i++) all[i] = i;
    CHECK_EQ(conc_put_many(q, all, sizeof *all, N, 20 * test_slow()), N);
    CHECK_EQ(conc_put_many(q, all, sizeof *all, 10, 5), 5);
    CHECK_EQ(conc_put_many(q, all, sizeof *all, 10, 0), -ETIMEDOUT);
    CHECK_EQ(conc_put_many(q, "", 0, 2, 0.01), -ETIMEDOUT);
    _exit(0);
  } else {
    int i, got;
    reap(pid, 0);
    CHECK_EQ(conc_qsize(q), N + 5);
    for (i = 0; i < N; i++) {
      CHECK_EQ(conc_get(q, &got, sizeof got, 0), sizeof got);
      CHECK_EQ(got, i);
      CHECK_EQ(conc_task_done(q), 0);
    }
  }
  conc_queue_free(q);
}

/* Takes many, in as few trips as it takes; and ends their leases. */
static void get_many(conc_queue *q) {
  static int all[10000];
  conc_lease lease;
  ssize_t n;
  int i;
  for (i = 0; i < 10000; i += (int)n) {
    n = conc_get_many(q, all + i, sizeof *all, (size_t)(10000 - i), 15);
    CHECK(n > 0);
  }
  for (i = 0; i < 10000; i++) CHECK_EQ(all[i], i);
  CHECK_EQ(conc_get_many(q, all, 1, 2, 15), -EMSGSIZE);
  CHECK_EQ(conc_task_done_many(q, 9000), 9000);
  CHECK_EQ(counts(q).leased, 1000);
  CHECK_EQ(conc_task_done_many(q, 2000), 1000);
  CHECK_EQ(conc_task_done_many(q, 1), -EINVAL);
  CHECK_EQ(expect_as(q, "other size", &lease), 1);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_get_many(q, all, 0, 5, 15), 2);
  CHECK_EQ(conc_get_many(q, all, 4, 2, 0.01), -ETIMEDOUT);
}

/* What was not done comes back, in its order. */
TEST_ALL(many_are_got_at_once) {
  static int all[10000];
  place p;
  int i;
  begin(&p, distance, leasing(60));
  for (i = 0; i < 10000; i++) all[i] = i;
  CHECK_EQ(conc_put_many(p.queue, all, sizeof *all, 10000, 15), 10000);
  put(p.queue, "other size");
  put(p.queue, "");
  put(p.queue, "");
  employ(&p, get_many);
  UNTIL(counts(p.queue).leased == 0);
  CHECK_EQ(conc_get_many(p.queue, all, 0, 5, 5), 2);
  CHECK_EQ(conc_task_done_many(p.queue, 2), 2);
  CHECK_EQ(conc_queue_join(p.queue, 0), 0);
  end(&p);
}

/* Two guests at the same time: the host serves each of them in one go. */
TEST(many_come_in_one_trip) {
  enum { N = 3000 };
  conc_queue_opts o = leasing(0);
  conc_queue *q;
  pid_t pid[2];
  int i, k, gate[2], ready[2];
  char bytes[2];
  o.priorities = 1;
  q = make_shared(o);
  CHECK_EQ(pipe(gate), 0);
  CHECK_EQ(pipe(ready), 0);
  for (k = 0; k < 2; k++) {
    pid[k] = begin_child();
    if (pid[k] == 0) {
      int all[N];
      UNTIL(conc_qsize(q) == 2 * N);
      /* The other one must have seen it, too, before any is taken. */
      CHECK_EQ(write(ready[1], "x", 1), 1);
      CHECK_EQ(read(gate[0], bytes, 1), 1);
      CHECK_EQ(conc_get_many(q, all, sizeof *all, N, 15), N);
      for (i = 1; i < N; i++) CHECK_EQ(all[i], all[0] + i);
      _exit(0);
    }
    if (k == 0)
      for (i = 0; i < 2 * N; i++) CHECK_EQ(conc_put(q, &i, sizeof i, 0), 0);
  }
  for (k = 0; k < 2; k++) CHECK_EQ(read(ready[0], bytes, 1), 1);
  CHECK_EQ(write(gate[1], "go", 2), 2);
  for (k = 0; k < 2; k++) reap(pid[k], 0);
  CHECK_EQ(conc_qsize(q), 0);
  UNTIL(counts(q).leased == 0);
  close(gate[0]), close(gate[1]);
  close(ready[0]), close(ready[1]);
  conc_queue_free(q);
}

static void put_a_hundred(conc_queue *q) {
  int i;
  for (i = 0; i < 100; i++) CHECK_EQ(conc_put(q, &i, sizeof i, 0), 0);
}

static void give_up_a_hundred(conc_queue *q, pid_t host) {
  int all[100], i;
  CHECK_EQ(conc_qsize(q), 100);
  kill(host, SIGSTOP);
  usleep(50000);
  CHECK_EQ(conc_get_many(q, all, sizeof *all, 100, 0), -ETIMEDOUT);
  kill(host, SIGCONT);
  CHECK_EQ(conc_get_many(q, all, sizeof *all, 100, 15), 100);
  for (i = 0; i < 100; i++) CHECK_EQ(all[i], i);
  CHECK_EQ(counts(q).got, 100);
}

/* A get of many that is given up has got none of them. */
TEST(many_that_are_given_up_come_back) {
  stop_a_host(put_a_hundred, give_up_a_hundred);
}

/* --- descriptors --------------------------------------------------------- */

enum { FDS = 256 };
/* As in the implementation, which this file does not have. */
#ifndef CONC_HAVE_SEQPACKET
#define CONC_HAVE_SEQPACKET 1
#endif

/* The pipes of the library among the descriptors. How many. */
static int find_pipes(bool *is) {
  int fd, n = 0;
  for (fd = 0; fd < FDS; fd++) {
    int type = 0;
    socklen_t size = sizeof type;
    is[fd] = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
             type == (CONC_HAVE_SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM);
    n += is[fd];
  }
  return n;
}

/* The one that has come since then. */
static int find_new(const bool *before) {
  bool now[FDS];
  int fd, found = -1;
  find_pipes(now);
  for (fd = 0; fd < FDS; fd++)
    if (now[fd] && !before[fd]) {
      CHECK_EQ(found, -1);
      found = fd;
    }
  CHECK(found >= 0);
  return found;
}

/* Ends all that have come since then, as if the host had lost them. */
static void end_new(const bool *before) {
  bool now[FDS];
  int fd;
  find_pipes(now);
  for (fd = 0; fd < FDS; fd++)
    if (now[fd] && !before[fd]) shutdown(fd, SHUT_RDWR);
}

static void *wait_for_more_work(void *arg) {
  expect((conc_queue *)arg, "late", NULL);
  CHECK_EQ(conc_task_done((conc_queue *)arg), 0);
  return NULL;
}

/* The host lives: so the end of a way to it is not its end. */
TEST(a_way_that_ends_is_not_the_end_of_the_host) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid = begin_child();
  if (pid == 0) {
    bool before[FDS];
    conc_lease lease;
    conc_task t;
    find_pipes(before);
    put(q, "job");
    end_new(before);
    CHECK_EQ(conc_qsize(q), 1);
    /* With it ends what the task has leased by it. */
    CHECK_EQ(expect_as(q, "job", &lease), 1);
    end_new(before);
    CHECK_EQ(conc_task_done(q), -ESTALE);
    CHECK_EQ(expect_as(q, "job", &lease), 2);
    end_new(before);
    CHECK_EQ(conc_task_done_many(q, 1), -ESTALE);
    expect_again(q, "job", 3);
    CHECK_EQ(conc_queue_join(q, 5), 0);
    /* While a call waits. */
    start(conc_thread_start, &t, wait_for_more_work, q);
    usleep(50000);
    end_new(before);
    put(q, "late");
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    conc_queue_free(q);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

/* A put or a get notices that it has ended: what was leased by it is lost all
   the same, and the task is told of each, once. */
TEST(what_is_lost_with_a_way_is_told_by_the_next_end) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid = begin_child();
  if (pid == 0) {
    bool before[FDS];
    conc_lease a, b;
    find_pipes(before);
    put(q, "a"), put(q, "b");
    expect(q, "a", NULL), expect(q, "b", NULL);
    end_new(before);
    put(q, "c");
    CHECK_EQ(conc_task_done(q), -ESTALE);
    CHECK_EQ(conc_task_done(q), -ESTALE);
    CHECK_EQ(conc_task_done(q), -EINVAL);
    /* What was got since then is ended first. */
    expect(q, "a", NULL), expect(q, "b", NULL);
    end_new(before);
    expect(q, "a", NULL);
    CHECK_EQ(conc_task_done(q), 0);
    CHECK_EQ(conc_task_done(q), -ESTALE);
    CHECK_EQ(conc_task_done(q), -ESTALE);
    CHECK_EQ(conc_task_done(q), -EINVAL);
    /* One way after another; and several ends at once. */
    expect(q, "b", NULL);
    end_new(before);
    expect(q, "b", NULL);
    end_new(before);
    expect(q, "b", NULL);
    CHECK_EQ(conc_task_done_many(q, 2), 1);
    CHECK_EQ(conc_task_done_many(q, 2), -ESTALE);
    CHECK_EQ(conc_task_done_many(q, 2), -EINVAL);
    /* Those that have names. */
    put(q, "d");
    expect(q, "c", &a), expect(q, "d", &b);
    end_new(before);
    CHECK_EQ(conc_qsize(q), 2);
    CHECK_EQ(conc_lease_done(&a), -ESTALE);
    CHECK_EQ(conc_task_done(q), -ESTALE);
    CHECK_EQ(conc_task_done(q), -EINVAL);
    expect(q, "c", NULL), expect(q, "d", NULL);
    CHECK_EQ(conc_task_done_many(q, 2), 2);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
}

/* What the program has under a number now is not touched. */
TEST(a_guest_leaves_foreign_files_alone) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid = begin_child();
  if (pid == 0) {
    bool before[FDS];
    int wire, door, mine[2];
    char buf[8];
    CHECK_EQ(find_pipes(before), 1);
    for (door = 0; !before[door];) door++;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, mine), 0);
    find_pipes(before);
    put(q, "job");
    wire = find_new(before);
    CHECK_EQ(dup2(mine[0], wire), wire);
    CHECK_EQ(conc_qsize(q), 1);
    find_pipes(before);
    CHECK_EQ(dup2(mine[0], door), door);
    CHECK_EQ(conc_qsize(q), 1);
    for (wire = 0; wire < FDS; wire++) /* there is no other way any more */
      if (before[wire] && wire != door && wire != mine[1])
        dup2(mine[0], wire);
    CHECK_EQ(conc_qsize(q), -EBADF);
    CHECK_EQ(conc_get(q, buf, 8, 1), -EBADF);
    conc_queue_free(q);
    CHECK_EQ(recv(mine[1], buf, 8, MSG_DONTWAIT), -1);
    CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(send(door, "x", 1, 0), 1);
    _exit(0);
  }
  reap(pid, 0);
  expect_again(q, "job", 1);
  conc_queue_free(q);
}

/* A guest that has no descriptors is told so, and goes on when it has. */
TEST(a_guest_without_descriptors_is_told) {
  conc_queue *q = make_shared(leasing(60));
  pid_t pid = begin_child();
  if (pid == 0) {
    struct rlimit was, none;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    none = was;
    none.rlim_cur = 0;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    CHECK_EQ(conc_put(q, "x", 1, 1), -EMFILE);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &was), 0);
    put(q, "x");
    _exit(0);
  }
  reap(pid, 0);
  expect_again(q, "x", 1);
  conc_queue_free(q);
}

/* A host that has none lets its guests wait, and goes on when it has. */
TEST(a_host_without_descriptors_goes_on_later) {
  conc_queue *q = make_shared(leasing(60));
  struct rlimit was, none;
  pid_t pid;
  int gate[2];
  char byte;
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
  CHECK_EQ(pipe(gate), 0);
  none = was;
  pid = begin_child();
  if (pid == 0) {
    CHECK_EQ(read(gate[0], &byte, 1), 1);
    CHECK_EQ(conc_put(q, "x", 1, 20 * test_slow()), 0);
    _exit(0);
  }
  none.rlim_cur = 0;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  CHECK_EQ(write(gate[1], "x", 1), 1);
  usleep(200000);
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &was), 0);
  expect_again(q, "x", 1);
  reap(pid, 0);
  close(gate[0]), close(gate[1]);
  conc_queue_free(q);
}

/* With a journal, what a guest has put survives the host. */
TEST(what_guests_have_put_is_in_the_journal) {
  char path[] = "/tmp/conc-guests-XXXXXX";
  conc_queue_opts o = leasing(60);
  conc_queue *q;
  pid_t host;
  int fd = mkstemp(path);
  CHECK(fd >= 0);
  close(fd);
  o.journal = path;
  host = begin_child();
  if (host == 0) {
    pid_t pid;
    q = make_shared(o);
    pid = begin_child();
    if (pid == 0) {
      put(q, "done");
      put(q, "kept");
      expect(q, "done", NULL);
      CHECK_EQ(conc_task_done(q), 0);
      _exit(0);
    }
    reap(pid, 0);
    raise(SIGKILL);
  }
  reap(host, -SIGKILL);
  q = make_shared(o);
  expect_again(q, "kept", 1);
  expect_none(q, 0);
  conc_queue_free(q);
  unlink(path);
}

TEST_MAIN
