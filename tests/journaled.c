/* Queues with a journal: what was answered is there again, whatever ended the
   program; what was refused never was. From inside: fdatasync() and pwrite()
   are the test's.
   JOURNALED_KILLS is how often a manager is killed (default 50). */
#include "test.h"

static ssize_t journal_pwrite(int fd, const void *data, size_t size, off_t at);
static int journal_fdatasync(int fd);
static ssize_t (*const real_pwrite)(int, const void *, size_t, off_t) = pwrite;
static int (*const real_fdatasync)(int) = fdatasync;
#define pwrite(fd, data, size, at) journal_pwrite(fd, data, size, at)
#define fdatasync(fd) journal_fdatasync(fd)
#define CONC__STALLED_AGAIN 0.01
#include "inside.h"
#undef pwrite
#undef fdatasync
#include "child.h"
#include "served.h"
#include "tasks.h"

#include <sys/resource.h>

#define AS_WORK(queue) ((conc__work *)(queue))

/* --- the system calls --- */

static unsigned syncs;
static int gate_closed; /* fdatasync() waits */
static int gate_waits;  /* how many do */
static int sync_fails;  /* by that errno */
static int disk_full;   /* nothing can be written */
static unsigned sync_takes; /* microseconds, at least */

static ssize_t journal_pwrite(int fd, const void *data, size_t size,
                              off_t at) {
  if (LOAD(disk_full)) return errno = ENOSPC, -1;
  return real_pwrite(fd, data, size, at);
}
static int journal_fdatasync(int fd) {
  ADD_FETCH(syncs, 1);
  ADD_FETCH(gate_waits, 1);
  while (LOAD(gate_closed)) usleep(100);
  if (sync_takes > 0) usleep(sync_takes);
  ADD_FETCH(gate_waits, -1);
  if (LOAD(sync_fails) != 0) return errno = LOAD(sync_fails), -1;
  return real_fdatasync(fd);
}
static void close_gate(void) { STORE(gate_closed, 1); }
static void open_gate(void) { STORE(gate_closed, 0); }
static void until_at_gate(void) {
  while (LOAD(gate_waits) == 0) sched_yield();
}

/* --- queues --- */

static char here[80];
static const char *path_of(const char *what) {
  static char path[80];
  snprintf(path, sizeof path, "/tmp/conc-journaled-%d%s", (int)getpid(), what);
  return path;
}
static void clean(void) {
  char fresh[96];
  if (here[0] == 0) snprintf(here, sizeof here, "%s", path_of(""));
  snprintf(fresh, sizeof fresh, "%s.new", here);
  unlink(here);
  unlink(fresh);
}
static conc_queue_opts options(void) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.lease = 60;
  o.journal = here;
  return o;
}
static conc_queue *open_by(conc_queue_opts o) {
  conc_queue *q = conc_queue_new(&o);
  if (q == NULL) TEST_FAIL("conc_queue_new: %s", strerror(errno));
  return q;
}
static conc_queue *open_queue(void) { return open_by(options()); }
static int put(conc_queue *q, const char *text) {
  return conc_put(q, text, strlen(text), 0);
}
static const char *get_leased(conc_queue *q, conc_lease *lease) {
  static __thread char text[64];
  ssize_t n = conc_get_leased(q, lease, text, sizeof text - 1, 0);
  if (n < 0) return n == -ETIMEDOUT ? "empty" : n == -EIO ? "failed" : "?";
  text[n] = 0;
  return text;
}
static const char *get(conc_queue *q) {
  static __thread char text[64];
  ssize_t n = conc_get(q, text, sizeof text - 1, 0);
  if (n < 0) return n == -ETIMEDOUT ? "empty" : n == -EIO ? "failed" : "?";
  text[n] = 0;
  return text;
}
static conc_queue_counts counts(conc_queue *q) {
  conc_queue_counts c;
  CHECK_EQ(conc_queue_stats(q, &c), 0);
  return c;
}

/* --- what is there again --- */

TEST(what_is_not_done_is_there_again_in_its_order) {
  conc_queue *q;
  conc_lease first = {0}, second = {0};
  clean();
  q = open_queue();
  CHECK_EQ(put(q, "one"), 0);
  CHECK_EQ(put(q, "two"), 0);
  CHECK_EQ(put(q, "three"), 0);
  CHECK_EQ(put(q, "four"), 0);
  CHECK_STR(get_leased(q, &first), "one");
  CHECK_STR(get_leased(q, &second), "two");
  CHECK_EQ(conc_lease_done(&second), 0);
  conc_queue_free(q);
  q = open_queue();
  CHECK_EQ(counts(q).ready, 3);
  CHECK_EQ(counts(q).damaged, 0);
  CHECK_STR(get_leased(q, &first), "one");
  CHECK_EQ(conc_lease_deliveries(&first), 2);
  CHECK_STR(get_leased(q, &second), "three");
  CHECK_EQ(conc_lease_deliveries(&second), 1);
  CHECK_EQ(conc_lease_done(&first), 0);
  CHECK_EQ(conc_lease_release(&second, 0), 0);
  CHECK_EQ(put(q, "five"), 0);
  conc_queue_free(q);
  q = open_queue();
  CHECK_STR(get_leased(q, &first), "three");
  CHECK_EQ(conc_lease_deliveries(&first), 2);
  CHECK_EQ(conc_lease_done(&first), 0);
  CHECK_STR(get(q), "four");
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_STR(get(q), "five");
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
  q = open_queue();
  CHECK_STR(get(q), "empty");
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
  clean();
}

TEST(priorities_delays_ids_and_values_are_there_again) {
  conc_queue_opts o;
  conc_queue *q;
  conc_lease lease = {0};
  conc_value *v;
  int64_t n = 0;
  clean();
  o = options();
  o.priorities = 3;
  o.dedup = 1000;
  q = open_by(o);
  CHECK_EQ(put(q, "last"), 0);
  CHECK_EQ(conc_put_priority(q, "first", 5, 0, 0), 0);
  CHECK_EQ(conc_put_build(q, 0, "i", 42), 0);
  CHECK_EQ(conc_put_after(q, "far", 3, 1000, 0), 0);
  CHECK_EQ(conc_put_after(q, "soon", 4, 0.05, 0), 0);
  CHECK_EQ(conc_put_once(q, "a", "once", 4, 0), 0);
  CHECK_EQ(conc_put_once(q, "a", "twice", 5, 0), 0);
  CHECK_EQ(conc_put_once(q, "b", "done", 4, 0), 0);
  conc_queue_free(q);
  conc_sleep(0.06);
  q = open_by(o);
  CHECK_EQ(counts(q).delayed, 1);
  CHECK_EQ(counts(q).ready, 6);
  CHECK_EQ(conc_put_once(q, "a", "twice", 5, 0), 0);
  CHECK_EQ(counts(q).ready, 6);
  CHECK_STR(get_leased(q, &lease), "first");
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_STR(get_leased(q, &lease), "last");
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_get_value_leased(q, &lease, &v, 0), 0);
  CHECK_EQ(conc_value_int(v, &n), 0);
  CHECK_EQ(n, 42);
  conc_value_free(v);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_STR(get_leased(q, &lease), "soon");
  CHECK_EQ(conc_lease_release(&lease, 1000), 0);
  CHECK_STR(get_leased(q, &lease), "once");
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_STR(get_leased(q, &lease), "done");
  CHECK_EQ(conc_lease_done(&lease), 0);
  conc_queue_free(q);
  q = open_by(o);
  CHECK_EQ(counts(q).delayed, 2);
  CHECK_EQ(counts(q).ready, 0);
  CHECK_EQ(conc_put_once(q, "b", "again", 5, 0), 0); /* though it is done */
  CHECK_EQ(conc_put_once(q, "c", "new", 3, 0), 0);
  CHECK_EQ(counts(q).ready, 1);
  conc_queue_free(q);
  clean();
}

/* Without .lease a get is the end of a message. */
TEST(a_queue_that_does_not_lease_forgets_what_was_got) {
  conc_queue_opts o;
  conc_queue *q;
  char text[8];
  int at = 0;
  clean();
  o = options();
  o.lease = 0;
  o.journal_sync = CONC_FOREVER;
  q = open_by(o);
  CHECK_EQ(put(q, "one"), 0);
  CHECK_EQ(put(q, "two"), 0);
  CHECK_EQ(conc_put_build(q, 0, "i", 3), 0);
  CHECK_EQ(put(q, "four"), 0);
  CHECK_STR(get(q), "one");
  CHECK_EQ(conc_get(q, text, 2, 0), -EMSGSIZE); /* it stays */
  CHECK_STR(get(q), "two");
  CHECK_EQ(conc_get_parse(q, 0, "[i]", &at), -EBADMSG); /* it stays */
  conc_queue_free(q);
  q = open_by(o);
  {
    int n = 0;
    CHECK_EQ(conc_get_parse(q, 0, "i", &n), 0);
    CHECK_EQ(n, 3);
  }
  CHECK_EQ(conc_task_done(q), 0);
  conc_queue_free(q);
  q = open_by(o);
  CHECK_STR(get(q), "four");
  CHECK_STR(get(q), "empty");
  conc_queue_free(q);
  clean();
}

static conc_lease of_a_task;
static void *lease_one(void *q) {
  CHECK_STR(get_leased((conc_queue *)q, &of_a_task), "poison");
  return NULL;
}
TEST(what_was_delivered_often_enough_is_dead_though_the_program_ended) {
  conc_queue *dead = conc_queue_new(NULL), *q;
  conc_queue_opts o;
  conc_value *v;
  conc_task t;
  clean();
  o = options();
  o.max_deliveries = 2;
  o.dead_letters = dead;
  q = open_by(o);
  CHECK_EQ(put(q, "poison"), 0);
  CHECK_EQ(put(q, "good"), 0);
  start(conc_thread_start, &t, lease_one, q);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(counts(q).returned, 1);
  start(conc_thread_start, &t, lease_one, q);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_lease_deliveries(&of_a_task), 2);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_EQ(conc_qsize(dead), 1);
  conc_queue_free(q);
  q = open_by(o);
  CHECK_EQ(counts(q).ready, 1); /* it is not there again */
  CHECK_STR(get(q), "good");
  conc_queue_free(q);
  q = open_by(o);
  CHECK_STR(get(q), "good");
  conc_queue_free(q);
  q = open_by(o); /* it was got twice */
  CHECK_STR(get(q), "empty");
  CHECK_EQ(conc_qsize(dead), 2);
  CHECK_EQ(conc_get_value(dead, &v, 0), 0);
  conc_value_free(v);
  CHECK_EQ(conc_get_value(dead, &v, 0), 0);
  CHECK_STR(conc_value_str(conc_value_get(v, "by"), NULL),
            "the program before");
  conc_value_free(v);
  conc_queue_free(q);
  o.dead_letters = NULL;
  q = open_by(o);
  CHECK_EQ(put(q, "worse"), 0);
  CHECK_STR(get(q), "worse");
  conc_queue_free(q);
  q = open_by(o);
  CHECK_STR(get(q), "worse");
  conc_queue_free(q);
  q = open_by(o);
  CHECK_STR(get(q), "empty");
  CHECK_STR(get(q), "empty");
  CHECK_EQ(counts(q).dead, 1);
  conc_queue_free(q);
  conc_queue_free(dead);
  clean();
}

/* Also if that queue has a journal, for which the end of a task waits. */
TEST(a_dead_letter_is_in_a_journal_all_the_time) {
  char other[96];
  conc_queue_opts o, d;
  conc_queue *q, *dead;
  conc_task t;
  clean();
  snprintf(other, sizeof other, "%s.dead", here);
  d = options();
  d.journal = other;
  dead = open_by(d);
  o = options();
  o.max_deliveries = 1;
  o.dead_letters = dead;
  q = open_by(o);
  CHECK_EQ(put(q, "poison"), 0);
  start(conc_thread_start, &t, lease_one, q);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_queue_join(q, 20), 0);
  CHECK_EQ(counts(dead).ready, 1);
  CHECK_EQ(put(q, "poison"), 0);
  STORE(sync_fails, EIO);
  CHECK_EQ(put(dead, "x"), -EIO);
  STORE(sync_fails, 0);
  start(conc_thread_start, &t, lease_one, q);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(counts(q).dying, 1); /* it cannot be buried */
  conc_queue_free(q);
  conc_queue_free(dead);
  dead = open_by(d);
  o.dead_letters = dead;
  q = open_by(o);
  while (counts(q).dying > 0) sched_yield();
  CHECK_EQ(conc_qsize(dead), 3); /* the one that was refused was written */
  conc_queue_free(q);
  conc_queue_free(dead);
  unlink(other);
  clean();
}

/* --- errors --- */

static served serving;

TEST(a_journal_has_one_queue) {
  conc_queue_opts o;
  conc_queue *q;
  int fd;
  clean();
  o = options();
  q = open_by(o);
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EBUSY);
  conc_queue_free(q);
  fd = open(here, O_WRONLY | O_TRUNC);
  CHECK_EQ(write(fd, "something else, which is no journal at all", 42), 42);
  close(fd);
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EPROTO);
  o.journal = "/nonexistent/journal";
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, ENOENT);
  o.journal = NULL;
  o.journal_sync = 1;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
  o.journal = here;
  o.journal_sync = -1;
  CHECK(conc_queue_new(&o) == NULL);
  CHECK_EQ(errno, EINVAL);
  clean();
}

TEST(a_full_disk_refuses_puts_and_loses_nothing) {
  conc_queue_opts o;
  conc_queue *q;
  conc_lease lease = {0};
  clean();
  o = options();
  o.dedup = 100;
  o.capacity = 3;
  q = open_by(o);
  CHECK_EQ(put(q, "one"), 0);
  CHECK_EQ(put(q, "two"), 0);
  STORE(disk_full, 1);
  CHECK_EQ(put(q, "three"), -ENOSPC);
  CHECK_EQ(conc_put_once(q, "id", "three", 5, 0), -ENOSPC);
  CHECK_EQ(conc_put_after(q, "three", 5, 1, 0), -ENOSPC);
  CHECK_EQ(conc_put_build(q, 0, "i", 3), -ENOSPC);
  CHECK_EQ(conc_qsize(q), 2);
  CHECK_STR(get_leased(q, &lease), "one");
  CHECK_EQ(conc_lease_done(&lease), -ENOSPC); /* but it is done */
  CHECK_EQ(counts(q).done, 1);
  CHECK_EQ(counts(q).put, 2);
  STORE(disk_full, 0);
  CHECK_EQ(conc_put_once(q, "id", "three", 5, 0), 0);
  CHECK_EQ(put(q, "four"), 0);
  CHECK_EQ(put(q, "five"), -ETIMEDOUT); /* the capacity was not used up */
  conc_queue_free(q);
  q = open_by(o);
  CHECK_STR(get(q), "two");
  CHECK_STR(get(q), "three");
  CHECK_STR(get(q), "four");
  CHECK_STR(get(q), "empty");
  conc_queue_free(q);
  clean();
}

TEST(a_limit_of_the_files_size_is_a_full_disk) {
  struct rlimit limit;
  conc_queue *q;
  char big[4096];
  int n = 0, rc;
  clean();
  signal(SIGXFSZ, SIG_IGN);
  memset(big, 'x', sizeof big);
  q = open_queue();
  CHECK_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  limit.rlim_cur = 65536;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  while ((rc = conc_put(q, big, sizeof big, 0)) == 0) n++;
  CHECK_EQ(rc, -ENOSPC);
  CHECK(n > 8 && n < 16);
  CHECK_EQ(conc_qsize(q), n);
  conc_queue_free(q);
  q = open_queue();
  CHECK_EQ(conc_qsize(q), n);
  conc_queue_free(q);
  clean();
}

static void *wait_for_one(void *q) {
  char text[8];
  CHECK_EQ(conc_get((conc_queue *)q, text, sizeof text, 20), -EIO);
  return NULL;
}
static void until_waiting(conc_queue *q, const struct conc__waitlist *list) {
  bool found = false;
  while (!found) {
    sched_yield();
    conc__mutex_lock(conc__work_guard(AS_WORK(q)));
    found = list->first != NULL;
    conc__mutex_unlock(conc__work_guard(AS_WORK(q)));
  }
}

TEST(a_disk_that_has_failed_stops_the_queue) {
  conc_queue *q;
  conc_lease lease = {0};
  conc_task t;
  clean();
  q = open_queue();
  CHECK_EQ(put(q, "one"), 0);
  CHECK_EQ(put(q, "two"), 0);
  CHECK_STR(get_leased(q, &lease), "one");
  CHECK_EQ(conc_get(q, here, 0, 0), -EMSGSIZE);
  {
    conc_lease second = {0};
    CHECK_STR(get_leased(q, &second), "two");
    start(conc_thread_start, &t, wait_for_one, q);
    until_waiting(q, &AS_WORK(q)->getters);
    STORE(sync_fails, EIO);
    CHECK_EQ(put(q, "three"), -EIO);
    STORE(sync_fails, 0); /* it does not work again */
    CHECK_EQ(conc_join(&t, 20), 0);
    CHECK_EQ(conc_lease_done(&second), -EIO);
  }
  CHECK_EQ(put(q, "four"), -EIO);
  CHECK_STR(get_leased(q, &lease), "failed");
  CHECK_EQ(conc_queue_join(q, CONC_FOREVER), -EIO);
  conc_queue_free(q);
  q = open_queue();
  CHECK_STR(get(q), "one");
  CHECK_STR(get(q), "two");
  conc_queue_free(q);
  clean();
}

/* Nobody waits for the disk when it fails, but others wait: they hear of it at
   once. */
static void *wait_for_room(void *q) {
  CHECK_EQ(conc_put((conc_queue *)q, "one", 3, 20), -EIO);
  return NULL;
}
static void *wait_for_the_end(void *q) {
  CHECK_EQ(conc_queue_join((conc_queue *)q, 20), -EIO);
  return NULL;
}
TEST(what_waits_hears_of_a_disk_that_fails_later) {
  conc_queue_opts o;
  conc_queue *q;
  conc_lease lease = {0};
  conc_task t[4];
  conc_manager m;
  clean();
  o = options();
  o.capacity = 2;
  o.journal_sync = 0.01; /* what is done is answered before the disk fails */
  q = open_by(o);
  serving = nobody();
  serve_queue(&serving, q);
  CHECK_EQ(put(q, "one"), 0);
  CHECK_EQ(conc_put_after(q, "two", 3, 1000, 0), 0);
  CHECK_STR(get_leased(q, &lease), "one");
  start(conc_thread_start, &t[0], wait_for_one,
        join_as_client(&serving, &m)); /* from afar, too */
  until_waiting(q, &AS_WORK(q)->getters);
  start(conc_thread_start, &t[1], wait_for_one, q);
  start(conc_thread_start, &t[2], wait_for_room, q);
  until_waiting(q, &AS_WORK(q)->putters);
  start(conc_thread_start, &t[3], wait_for_the_end, q);
  until_waiting(q, &AS_WORK(q)->joiners);
  STORE(sync_fails, EIO);
  CHECK_EQ(conc_lease_release(&lease, 1000), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], 20), 0);
  STORE(sync_fails, 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end(&serving);
  clean();
}

/* --- what waits for the disk --- */

static int answered; /* puts and dones that have returned */
static void *put_one(void *q) {
  CHECK_EQ(put((conc_queue *)q, "one"), 0);
  ADD_FETCH(answered, 1);
  return NULL;
}
static void *done_one(void *q) {
  conc_lease lease = {0};
  CHECK_STR(get_leased((conc_queue *)q, &lease), "one");
  CHECK_EQ(conc_lease_done(&lease), 0);
  ADD_FETCH(answered, 1);
  return NULL;
}

TEST(a_put_and_a_done_return_when_they_are_on_the_disk) {
  conc_queue *q;
  conc_task t;
  clean();
  q = open_queue();
  close_gate();
  start(conc_thread_start, &t, put_one, q);
  until_at_gate();
  CHECK_EQ(conc_qsize(q), 0); /* nobody can get it yet */
  CHECK_EQ(LOAD(answered), 0);
  CHECK_EQ(counts(q).put, 0);
  open_gate();
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_qsize(q), 1);
  close_gate();
  start(conc_thread_start, &t, done_one, q);
  until_at_gate();
  conc_sleep(0.01);
  CHECK_EQ(LOAD(answered), 1);
  CHECK_EQ(conc_queue_join(q, 0.01), -ETIMEDOUT); /* it is not done yet */
  open_gate();
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_queue_join(q, 0), 0);
  conc_queue_free(q);
  clean();
}

/* Only what is answered costs a sync of its own. */
TEST(a_get_costs_no_sync) {
  conc_queue *q;
  unsigned before;
  clean();
  q = open_queue();
  before = LOAD(syncs);
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(put(q, "one"), 0);
    CHECK_STR(get(q), "one");
    usleep(1000);
    CHECK_EQ(conc_task_done(q), 0);
  }
  CHECK(LOAD(syncs) - before < 20 * 2 + 5);
  conc_queue_free(q);
  clean();
}

/* The put cannot be taken back: it returns 0, and the cancel comes later. */
static void *put_and_sleep(void *q) {
  CHECK_EQ(put((conc_queue *)q, "one"), 0);
  CHECK_EQ(conc_sleep(20), -ECANCELED);
  return NULL;
}
static void *cancel_a_put(void *coroutine) {
  conc_queue *q;
  conc_task t;
  clean();
  q = open_queue();
  close_gate();
  start(coroutine != NULL ? conc_coro_start : conc_thread_start, &t,
        put_and_sleep, q);
  while (LOAD(gate_waits) == 0) conc_sleep(0.001);
  conc_cancel(&t);
  conc_sleep(0.01);
  CHECK(conc_is_alive(&t));
  open_gate();
  CHECK_EQ(conc_join(&t, 20), -ECANCELED);
  CHECK_STR(get(q), "one");
  conc_queue_free(q);
  clean();
  return NULL;
}
TEST_BOTH(a_put_that_waits_for_the_disk_is_not_cancelled, cancel_a_put)

/* The second put with an id waits until the first is on the disk, or not. */
static int once_rc[2];
static conc_queue *once_queue;
static void *put_once(void *arg) {
  int *rc = (int *)arg;
  *rc = conc_put_once(once_queue, "id", rc == once_rc ? "first" : "second",
                      rc == once_rc ? 5 : 6, 20);
  return NULL;
}
static void put_twice(const char *expect) {
  conc_queue_opts o;
  conc_task first, second;
  clean();
  o = options();
  o.dedup = 100;
  once_queue = open_by(o);
  close_gate();
  start(conc_thread_start, &first, put_once, &once_rc[0]);
  until_at_gate();
  start(conc_thread_start, &second, put_once, &once_rc[1]);
  until_waiting(once_queue, &AS_WORK(once_queue)->namesakes);
  CHECK_EQ(conc_put_once(once_queue, "id", "third", 5, 0), -ETIMEDOUT);
  open_gate();
  CHECK_EQ(conc_join(&first, 20), 0);
  CHECK_EQ(conc_join(&second, 20), 0);
  CHECK_EQ(once_rc[0], 0);
  CHECK_EQ(once_rc[1], 0);
  CHECK_STR(get(once_queue), expect);
  CHECK_STR(get(once_queue), "empty");
  conc_queue_free(once_queue);
  clean();
}
TEST(a_put_waits_for_its_namesake) { put_twice("first"); }

/* What is put after the close was begun before it: it is got. */
TEST(a_closed_queue_waits_for_what_is_on_its_way) {
  conc_queue *q;
  conc_task t;
  char text[8];
  clean();
  q = open_queue();
  close_gate();
  start(conc_thread_start, &t, put_one, q);
  until_at_gate();
  conc_queue_close(q);
  CHECK_EQ(conc_get(q, text, 8, 0), -ETIMEDOUT);
  open_gate();
  CHECK_EQ(conc_get(q, text, 8, 20), 3);
  CHECK_EQ(conc_get(q, text, 8, 20), -EPIPE);
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_task_done(q), 0);
  conc_queue_free(q);
  clean();
}

TEST(a_forked_child_does_not_write) {
  conc_queue *q;
  conc_lease lease = {0};
  pid_t pid;
  NEEDS_FORK;
  clean();
  q = open_queue();
  CHECK_EQ(put(q, "one"), 0);
  CHECK_EQ(put(q, "two"), 0);
  CHECK_STR(get_leased(q, &lease), "one");
  pid = begin_child();
  if (pid == 0) {
    char text[8];
    CHECK_CHILD(put(q, "three") == -EPERM);
    CHECK_CHILD(conc_lease_done(&lease) == -EPERM);
    CHECK_CHILD(conc_get(q, text, 8, 0) == -EPERM);
    CHECK_CHILD(conc_qsize(q) == 1);
    conc_queue_free(q);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(put(q, "four"), 0);
  conc_queue_free(q);
  q = open_queue();
  CHECK_STR(get(q), "two");
  CHECK_STR(get(q), "four");
  CHECK_STR(get(q), "empty");
  conc_queue_free(q);
  clean();
}

/* Every call either does what it does, or says that there is no memory and
   changes nothing. The journal's thread allocates, too. */
TEST(no_memory_is_told_at_every_allocation) {
  long at;
  bool whole = false;
  for (at = 1; !whole; at++) {
    conc_queue_opts o;
    conc_queue *q;
    conc_lease lease = {0};
    int rc[3] = {-1, -1, -1};
    ssize_t n = -1;
    int left = 0;
    clean();
    o = options();
    o.dedup = 100;
    test_fail_at = at;
    q = conc_queue_new(&o);
    if (q != NULL) {
      rc[0] = put(q, "one");
      rc[1] = conc_put_once(q, "id", "two", 3, 0);
      n = conc_get_leased(q, &lease, here + 79, 0, 0);
      if (n != -ENOMEM) CHECK(n == -EMSGSIZE || n == -ETIMEDOUT);
      {
        char text[8];
        n = conc_get_leased(q, &lease, text, 8, 0);
        if (n >= 0) rc[2] = conc_lease_done(&lease);
      }
    } else {
      CHECK_EQ(errno, ENOMEM);
    }
    whole = test_fail_at != 0; /* it was not reached */
    test_fail_at = 0;
    if (q == NULL) continue;
    conc_queue_free(q);
    q = open_by(o);
    left = (rc[0] == 0) + (rc[1] == 0) - (rc[2] == 0);
    CHECK(rc[0] == 0 || rc[0] == -ENOMEM);
    CHECK(rc[1] == 0 || rc[1] == -ENOMEM);
    CHECK_EQ(conc_qsize(q), left);
    conc_queue_free(q);
    CHECK(at < 1000);
  }
  clean();
}

/* Many puts wait together, as far as there is room. */
TEST(many_puts_share_one_sync) {
  static char items[100][4];
  conc_queue_opts o;
  conc_queue *q;
  unsigned before;
  clean();
  o = options();
  o.capacity = 70;
  for (int i = 0; i < 100; i++) snprintf(items[i], 4, "%03d", i);
  q = open_by(o);
  before = LOAD(syncs);
  sync_takes = 5000;
  CHECK_EQ(conc_put_many(q, items, 4, 40, 0), 40);
  CHECK_EQ(conc_put_many(q, items[40], 4, 60, 0), 30);
  CHECK_EQ(conc_put_many(q, items[70], 4, 30, 0), -ETIMEDOUT);
  CHECK(LOAD(syncs) - before < 20);
  for (int i = 0; i < 10; i++) {
    char want[4];
    snprintf(want, sizeof want, "%03d", i);
    CHECK_STR(get(q), want);
    CHECK_EQ(conc_task_done(q), 0);
  }
  STORE(disk_full, 1);
  CHECK_EQ(conc_put_many(q, items[70], 4, 30, 0), -ENOSPC);
  CHECK_EQ(counts(q).ready, 60);
  STORE(disk_full, 0);
  CHECK_EQ(conc_put_many(q, items[70], 4, 30, 0), 10);
  conc_queue_free(q);
  q = open_by(o);
  for (int i = 10; i < 80; i++) {
    char want[4];
    snprintf(want, sizeof want, "%03d", i);
    CHECK_STR(get(q), want);
  }
  CHECK_STR(get(q), "empty");
  conc_queue_free(q);
  clean();
}

/* What ends together waits for the disk together, whether that goes well or
   not. */
TEST(many_dones_share_one_sync) {
  static char items[100][4];
  static char got[100][4];
  conc_queue *q;
  unsigned before;
  clean();
  q = open_queue();
  for (int i = 0; i < 100; i++) snprintf(items[i], 4, "%03d", i);
  CHECK_EQ(conc_put_many(q, items, 4, 100, 0), 100);
  CHECK_EQ(conc_get_many(q, got, 4, 100, 0), 100);
  usleep(10000);
  sync_takes = 5000;
  before = LOAD(syncs);
  CHECK_EQ(conc_task_done_many(q, 50), 50); /* the last ones */
  CHECK(LOAD(syncs) - before < 8);
  CHECK_EQ(counts(q).done, 50);
  CHECK_EQ(counts(q).leased, 50);
  STORE(disk_full, 1);
  CHECK_EQ(conc_task_done_many(q, 20), -ENOSPC);
  CHECK_EQ(counts(q).leased, 30);
  STORE(disk_full, 0);
  conc_queue_free(q);
  q = open_queue();
  for (int i = 0; i < 30; i++) CHECK_STR(get(q), items[i]);
  CHECK_STR(get(q), "empty");
  CHECK_EQ(conc_task_done_many(q, 31), 30);
  conc_queue_free(q);
  clean();
}

/* What gathers, and what has ended, of a queue's journal. */
static uint64_t batches(conc_queue *q, bool *rests) {
  conc__journal *j = ((conc__work *)q)->journal;
  uint64_t n;
  conc__mutex_lock(conc__journal_guard(j));
  n = j->gathering;
  *rests = j->first == NULL && j->settled == n - 1;
  conc__mutex_unlock(conc__journal_guard(j));
  return n;
}
static void *put_in_one_turn(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  conc_task tasks[16];
  bool rests;
  uint64_t before = batches(q, &rests);
  for (int i = 0; i < 16; i++) start(conc_coro_start, &tasks[i], put_one, q);
  for (int i = 0; i < 16; i++) CHECK_EQ(conc_join(&tasks[i], 60), 0);
  CHECK_EQ(batches(q, &rests) - before, 1);
  return NULL;
}

/* The thread is woken when all of them have appended. */
TEST(what_a_loops_tasks_put_in_one_turn_is_one_batch) {
  conc_queue_opts o;
  conc_queue *q;
  conc_task t;
  clean();
  o = options();
  o.journal_sync = 1;
  q = open_by(o);
  start(conc_run, &t, put_in_one_turn, q);
  CHECK_EQ(counts(q).put, 16);
  conc_queue_free(q);
  clean();
}

/* A get wakes no thread, but what it has appended is written all the same. */
TEST(what_a_get_appends_is_written_soon) {
  double end = conc_now() + 20;
  conc__journal *j;
  conc_queue *q;
  uint64_t before;
  bool rests = false, hasty;
  clean();
  q = open_queue();
  j = ((conc__work *)q)->journal;
  CHECK_EQ(put(q, "one"), 0);
  before = batches(q, &rests);
  CHECK_STR(get(q), "one");
  conc__mutex_lock(conc__journal_guard(j));
  hasty = j->hasty;
  conc__mutex_unlock(conc__journal_guard(j));
  CHECK(!hasty);
  rests = false;
  while (!rests || batches(q, &rests) == before) {
    CHECK(conc_now() < end);
    conc_sleep(0.001);
    batches(q, &rests);
  }
  CHECK_EQ(conc_task_done(q), 0);
  conc_queue_free(q);
  clean();
}

/* --- behind a manager --- */

#define CLIENTS 16
#define PUTS 50
static void *put_as_client(void *arg) {
  conc_manager m;
  conc_queue *q = join_as_client(&serving, &m);
  (void)arg;
  for (int i = 0; i < PUTS; i++) CHECK_EQ(conc_put(q, "one", 3, 20), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  return NULL;
}
static void *finish_as_client(void *arg) {
  conc_manager m;
  conc_queue *q = join_as_client(&serving, &m);
  conc_lease lease = {0};
  char text[8];
  (void)arg;
  while (conc_get_leased(q, &lease, text, 8, 0) == 3)
    CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  return NULL;
}
static unsigned syncs_of(conc_fn *fn) {
  conc_task tasks[CLIENTS];
  unsigned before = LOAD(syncs);
  for (int i = 0; i < CLIENTS; i++)
    start(conc_thread_start, &tasks[i], fn, NULL);
  for (int i = 0; i < CLIENTS; i++) CHECK_EQ(conc_join(&tasks[i], 60), 0);
  return LOAD(syncs) - before;
}

/* While one batch is on its way the next one gathers. */
TEST(many_clients_share_one_sync) {
  unsigned n;
  clean();
  sync_takes = 2000;
  serving = nobody();
  serve_queue(&serving, open_queue());
  n = syncs_of(put_as_client);
  if (n > CLIENTS * PUTS / 4)
    TEST_FAIL("%u syncs for %d puts", n, CLIENTS * PUTS);
  CHECK_EQ(conc_qsize(serving.queue), CLIENTS * PUTS);
  n = syncs_of(finish_as_client);
  if (n > CLIENTS * PUTS / 2)
    TEST_FAIL("%u syncs for %d dones", n, CLIENTS * PUTS);
  CHECK_EQ(counts(serving.queue).done, CLIENTS * PUTS);
  end(&serving);
  clean();
}

static void *put_far(void *arg) {
  CHECK_EQ(conc_put((conc_queue *)arg, "one", 3, 20), 0);
  ADD_FETCH(answered, 1);
  return NULL;
}
/* The other is served meanwhile; and the answer comes after the disk. */
TEST(a_session_that_waits_for_the_disk_is_the_only_one) {
  conc_manager a, b;
  conc_queue *qa, *qb;
  conc_task t;
  clean();
  serving = nobody();
  serve_queue(&serving, open_queue());
  qa = join_as_client(&serving, &a);
  qb = join_as_client(&serving, &b);
  close_gate();
  start(conc_thread_start, &t, put_far, qa);
  until_at_gate();
  CHECK_EQ(conc_qsize(qb), 0);
  CHECK_EQ(LOAD(answered), 0);
  open_gate();
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK_EQ(conc_qsize(qb), 1);
  STORE(disk_full, 1);
  CHECK_EQ(conc_put(qb, "two", 3, 1), -ENOSPC);
  STORE(disk_full, 0);
  STORE(sync_fails, EIO);
  CHECK_EQ(conc_put(qb, "two", 3, 1), -EIO);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  end(&serving);
  clean();
}

/* --- a manager that is killed --- */

#define NUMBERS (1 << 20)
static unsigned char *put_state, *done_state; /* 1: asked; 2: answered */
static unsigned next_number, puts_answered, dones_answered, delivered_again;
static char server_at[96];

static conc_manager client_at(void) {
  conc_manager m;
  memset(&m, 0, sizeof m);
  m.address = server_at;
  m.authkey = "abc";
  m.timeout = 5 * test_slow();
  return m;
}
static void *put_until_killed(void *arg) {
  conc_manager m = client_at();
  conc_queue *q = NULL;
  (void)arg;
  if (conc_manager_connect(&m, 5 * test_slow()) == 0)
    q = conc_manager_get(&m, "q");
  while (q != NULL) {
    unsigned n = ADD_FETCH(next_number, 1);
    CHECK(n < NUMBERS);
    STORE(put_state[n], 1);
    if (conc_put(q, &n, sizeof n, 10) != 0) break;
    STORE(put_state[n], 2);
    ADD_FETCH(puts_answered, 1);
  }
  conc_manager_shutdown(&m);
  return NULL;
}
static void check_got(unsigned n, ssize_t size) {
  CHECK_EQ(size, sizeof n);
  CHECK(n < NUMBERS);
  CHECK(LOAD(put_state[n]) >= 1);
  CHECK(LOAD(done_state[n]) != 2); /* what was done does not come back */
}
static void *work_until_killed(void *arg) {
  conc_manager m = client_at();
  conc_queue *q = NULL;
  (void)arg;
  if (conc_manager_connect(&m, 5 * test_slow()) == 0)
    q = conc_manager_get(&m, "q");
  while (q != NULL) {
    conc_lease lease = {0};
    unsigned n = 0;
    ssize_t size = conc_get_leased(q, &lease, &n, sizeof n, 1);
    if (size == -ETIMEDOUT) continue;
    if (size < 0) break;
    check_got(n, size);
    if (conc_lease_deliveries(&lease) > 1) ADD_FETCH(delivered_again, 1);
    STORE(done_state[n], 1);
    if (conc_lease_done(&lease) != 0) break;
    STORE(done_state[n], 2);
    ADD_FETCH(dones_answered, 1);
  }
  conc_manager_shutdown(&m);
  return NULL;
}

/* A manager in a process of its own. */
static pid_t begin_manager(void) {
  int ready[2];
  char byte = 0;
  pid_t pid;
  CHECK_EQ(pipe(ready), 0);
  unlink(server_at);
  pid = begin_child();
  if (pid == 0) {
    conc_manager m;
    memset(&m, 0, sizeof m);
    m.address = server_at;
    m.authkey = "abc";
    CHECK_CHILD(conc_manager_register_queue(&m, "q", open_queue()) == 0);
    CHECK_CHILD(conc_manager_start(&m) == 0);
    CHECK_CHILD(write(ready[1], "", 1) == 1);
    for (;;) pause();
  }
  close(ready[1]);
  CHECK_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  return pid;
}

TEST(what_was_answered_survives_a_manager_that_is_killed) {
  const char *text = getenv("JOURNALED_KILLS");
  int kills = text != NULL ? atoi(text) : TEST_TSAN || TEST_ASAN ? 10 : 50;
  conc_queue *q;
  unsigned n = 0;
  ssize_t size;
  NEEDS_FORK;
  clean();
  snprintf(server_at, sizeof server_at, "%s.socket", here);
  put_state = (unsigned char *)calloc(NUMBERS, 1);
  done_state = (unsigned char *)calloc(NUMBERS, 1);
  srand((unsigned)test_seed);
  for (int i = 0; i < kills; i++) {
    conc_task tasks[6];
    unsigned before = LOAD(puts_answered);
    pid_t pid = begin_manager();
    for (int k = 0; k < 6; k++)
      start(conc_thread_start, &tasks[k],
            k < 3 ? put_until_killed : work_until_killed, NULL);
    while (LOAD(puts_answered) < before + 5) usleep(500);
    usleep((unsigned)rand() % 20000);
    CHECK_EQ(kill(pid, SIGKILL), 0);
    reap(pid, -SIGKILL);
    for (int k = 0; k < 6; k++) CHECK_EQ(conc_join(&tasks[k], 60), 0);
  }
  q = open_queue();
  CHECK_EQ(counts(q).damaged, 0);
  while ((size = conc_get(q, &n, sizeof n, 0)) >= 0) {
    check_got(n, size);
    CHECK_EQ(conc_task_done(q), 0);
    STORE(done_state[n], 2);
  }
  for (n = 1; n <= next_number; n++)
    if (put_state[n] == 2 && done_state[n] == 0)
      TEST_FAIL("%u was put and is lost", n);
  CHECK(dones_answered > 0);
  conc_queue_free(q);
  free(put_state);
  free(done_state);
  unlink(server_at);
  clean();
}

TEST_MAIN
