/* Queues that lease, behind a manager, and clients of C: whose a message is
   when a task, a connection, a process or the server ends. From inside, for
   the connections that are pinned. */
#include "inside.h"
#include "child.h"
#include "leased.h"
#include "served.h"
#include "tasks.h"

static void serve(served *s, const conc_queue_opts *o) {
  conc_queue *q = conc_queue_new(o);
  CHECK(q != NULL);
  *s = nobody();
  s->server.address = private_address();
  serve_queue(s, q);
}

static void serve_leases(served *s, double lease) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.lease = lease;
  serve(s, &o);
}

/* How many connections of a client's queue are pinned. */
static int pinned(conc_queue *q) {
  conc__proxy *p = (conc__proxy *)q;
  int n = 0;
  conc__mutex_lock(conc__mutex_of(p->manager));
  for (const conc__lessee *l = p->lessees; l != NULL; l = l->after)
    n += l->pin != NULL;
  conc__mutex_unlock(conc__mutex_of(p->manager));
  return n;
}

/* Ends these connections, as a network does. */
static void cut_pins(conc_queue *q) {
  conc__proxy *p = (conc__proxy *)q;
  conc__mutex_lock(conc__mutex_of(p->manager));
  for (const conc__lessee *l = p->lessees; l != NULL; l = l->after)
    if (l->pin != NULL) shutdown(l->pin->channel.fd, SHUT_RDWR);
  conc__mutex_unlock(conc__mutex_of(p->manager));
}

/* Puts as soon as a get waits. */
static void *put_later(void *queue) {
  conc_queue *q = (conc_queue *)queue;
  conc__work *work = (conc__work *)queue;
  bool waits = false;
  while (!waits) {
    conc_sleep(0.001);
    conc__work_lock(work);
    waits = work->getters.first != NULL;
    conc__mutex_unlock(conc__work_guard(work));
  }
  CHECK_EQ(conc_put_many(q, "abcd", 2, 2, 0), 2);
  put(q, "efg");
  return NULL;
}

TEST(a_worker_in_c_says_what_is_done) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  put(q, "a");
  put(q, "b");
  expect(q, "a", NULL);
  CHECK_EQ(pinned(q), 1);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_EQ(conc_queue_join(q, 0), -ETIMEDOUT);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(pinned(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  expect(q, "b", NULL);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_queue_join(q, 5 * test_slow()), 0);
  CHECK_EQ(counts(q).done, 2);
  CHECK_EQ(counts(s.queue).leased, 0);
  end(&s);
}

TEST(values_are_leased_too) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  conc_lease lease;
  conc_value *v;
  int n = 0;
  CHECK_EQ(conc_put_build(q, 5, "(is)", 7, "seven"), 0);
  CHECK_EQ(conc_get_value_leased(q, &lease, &v, 5 * test_slow()), 0);
  CHECK_EQ(conc_value_size(v), 2);
  conc_value_free(v);
  CHECK_EQ(lease.deliveries, 1);
  CHECK_EQ(conc_lease_release(&lease, 0), 0);
  CHECK_EQ(conc_get_parse(q, 5 * test_slow(), "i", &n), -EBADMSG);
  CHECK_EQ(conc_get_value_leased(q, &lease, &v, 5 * test_slow()), 0);
  conc_value_free(v);
  CHECK(lease.deliveries >= 2);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_lease_done(&lease), -EINVAL);
  end(&s);
}

/* What a get refuses is there, and not leased. */
TEST(what_does_not_suit_stays) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  char buf[4];
  put(q, "too long");
  CHECK_EQ(conc_get(q, buf, sizeof buf, 5), -EMSGSIZE);
  CHECK_EQ(counts(s.queue).leased, 0);
  expect(q, "too long", NULL);
  CHECK_EQ(conc_task_done(q), 0);
  end(&s);
}

static void *get_and_end(void *arg) {
  expect((conc_queue *)arg, "job", NULL);
  expect((conc_queue *)arg, "another", NULL);
  return NULL;
}

static void ends(int (*how)(conc_task *)) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  conc_lease lease;
  conc_task t;
  put(q, "job");
  put(q, "another");
  start(how, &t, get_and_end, q);
  if (how == conc_thread_start) CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  expect(q, "job", &lease);
  CHECK_EQ(conc_lease_deliveries(&lease), 2);
  expect(q, "another", NULL);
  CHECK_EQ(pinned(q), 1);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(pinned(q), 1);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(counts(q).returned, 2);
  end(&s);
}

TEST(what_a_thread_had_comes_back_when_it_ends) { ends(conc_thread_start); }
TEST(what_a_coroutine_had_comes_back_when_it_ends) { ends(conc_run); }

/* One connection is pinned for all leases of a task, and a task_done is for
   the one that it got last. */
TEST(a_task_may_have_many) {
  enum { MANY = 200 };
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  static conc_lease lease[MANY];
  for (int i = 0; i < MANY; i++) CHECK_EQ(conc_put(q, &i, sizeof i, 5), 0);
  for (int i = 0; i < MANY; i++) {
    int n = -1;
    CHECK_EQ(conc_get_leased(q, &lease[i], &n, sizeof n, 5 * test_slow()),
             sizeof n);
    CHECK_EQ(n, i);
  }
  CHECK_EQ(pinned(q), 1);
  CHECK_EQ(counts(q).leased, MANY);
  CHECK(conc_queue_holders(q, NULL, 0) == 1);
  conc_queue_holder h;
  CHECK_EQ(conc_queue_holders(q, &h, 1), 1);
  CHECK_EQ(h.leases, MANY);
  for (int i = 0; i < MANY / 2; i++) CHECK_EQ(conc_lease_done(&lease[i]), 0);
  for (int i = 0; i < MANY / 2; i++) CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), -EINVAL);
  CHECK_EQ(conc_lease_done(&lease[MANY - 1]), -ESTALE);
  CHECK_EQ(pinned(q), 0);
  CHECK_EQ(counts(q).done, MANY);
  end(&s);
}

/* A get that is given up ends its connection, but no lease. */
TEST(a_get_that_times_out_costs_no_lease) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  char buf[8];
  put(q, "a");
  expect(q, "a", NULL);
  for (int i = 0; i < 5; i++)
    CHECK_EQ(conc_get(q, buf, sizeof buf, 0.01), -ETIMEDOUT);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(conc_task_done(q), 0);
  end(&s);
}

static int has_one;
static void *wait_for_more(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  char buf[8];
  expect(q, "a", NULL);
  STORE(has_one, 1);
  CHECK_EQ(conc_get(q, buf, sizeof buf, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(conc_task_done(q), 0);
  return NULL;
}

TEST(a_get_that_is_cancelled_costs_no_lease) {
  for (int i = 0; i < 2; i++) {
    served s;
  serve_leases(&s, 60);
    conc_queue *q = join_as_client(&s, &s.client);
    conc_task t;
    put(q, "a");
    STORE(has_one, 0);
    start(conc_thread_start, &t, wait_for_more, q);
    UNTIL(LOAD(has_one));
    CHECK_EQ(counts(s.queue).leased, 1);
    if (i == 0) conc_sleep(0.02); /* most likely it waits */
    CHECK_EQ(conc_cancel(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
    CHECK_EQ(counts(s.queue).done, 1);
    end(&s);
  }
}

typedef struct handed {
  conc_queue *queue;
  conc_lease lease;
  conc_event there, done;
} handed;

static void *take_one(void *arg) {
  handed *h = (handed *)arg;
  expect(h->queue, "a", &h->lease);
  conc_event_set(&h->there);
  conc_event_wait(&h->done, CONC_FOREVER);
  CHECK_EQ(conc_task_done(h->queue), -EINVAL); /* another one has done it */
  return NULL;
}

TEST(another_task_may_say_that_it_is_done) {
  served s;
  serve_leases(&s, 60);
  static handed h;
  conc_task t;
  memset(&h, 0, sizeof h);
  h.queue = join_as_client(&s, &s.client);
  put(h.queue, "a");
  start(conc_thread_start, &t, take_one, &h);
  CHECK_EQ(conc_event_wait(&h.there, 10 * test_slow()), 0);
  CHECK_EQ(conc_lease_done(&h.lease), 0);
  CHECK_EQ(pinned(h.queue), 0);
  conc_event_set(&h.done);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(counts(s.queue).done, 1);
  end(&s);
}

/* A process that gets one and says so by a byte; then it waits. */
static pid_t worker(const served *s, const int *fds) {
  pid_t pid = begin_child();
  conc_manager m;
  conc_queue *q;
  const int fd = fds[1];
  if (pid > 0) return pid;
  close(fds[0]);
  q = join_as_client(s, &m);
  expect(q, "job", NULL);
  CHECK_EQ(write(fd, "1", 1), 1);
  for (;;) {
    char byte;
    if (read(fd, &byte, 1) != 1) _exit(0);
    byte = (char)('0' - conc_task_done(q) % 100);
    CHECK_EQ(write(fd, &byte, 1), 1);
  }
}

TEST(what_a_killed_process_had_comes_back) {
  NEEDS_FORK;
  for (int i = 0; i < 20; i++) {
    served s;
  serve_leases(&s, 60);
    conc_queue *q = join_as_client(&s, &s.client);
    conc_lease lease;
    int fd[2];
    char byte;
    pid_t pid;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    put(q, "job");
    pid = worker(&s, fd);
    CHECK_EQ(read(fd[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    expect(q, "job", &lease);
    CHECK_EQ(lease.deliveries, 2);
    CHECK_EQ(conc_lease_done(&lease), 0);
    reap(pid, -SIGKILL);
    close(fd[0]);
    close(fd[1]);
    end(&s);
  }
}

/* A stopped process gives no sign of life; when it goes on, it is told. */
TEST(what_a_stopped_process_had_comes_back) {
  NEEDS_FORK;
  served s;
  serve_leases(&s, 0.8 * test_slow());
  conc_queue *q = join_as_client(&s, &s.client);
  conc_lease lease;
  int fd[2];
  char byte;
  pid_t pid;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
  put(q, "job");
  pid = worker(&s, fd);
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  kill(pid, SIGSTOP);
  expect(q, "job", &lease);
  CHECK_EQ(lease.deliveries, 2);
  CHECK_EQ(write(fd[0], "?", 1), 1);
  kill(pid, SIGCONT);
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  CHECK_EQ(byte, '0' + ESTALE % 100);
  CHECK_EQ(conc_lease_done(&lease), 0);
  close(fd[1]);
  close(fd[0]);
  reap(pid, 0);
  end(&s);
}

static bool keeps_for(double lease) {
  bool kept;
  served s;
  serve_leases(&s, lease);
  conc_queue *q = join_as_client(&s, &s.client);
  char buf[8];
  put(q, "a");
  expect(q, "a", NULL);
  kept = conc_get(s.queue, buf, sizeof buf, 4 * lease) == -ETIMEDOUT &&
         conc_task_done(q) == 0;
  if (kept) {
    put(q, "b"); /* and again, after a while without any lease */
    expect(q, "b", NULL);
    kept = conc_get(s.queue, buf, sizeof buf, 3 * lease) == -ETIMEDOUT &&
           conc_task_done(q) == 0;
  }
  CHECK(counts(s.queue).returned == 0 || !kept);
  end(&s);
  return kept;
}

/* A job that takes several times the lease is not given to another one; unless
   the thread that says that its task lives does not run for so long. */
TEST(a_long_job_keeps_its_message) {
  double lease = 0.4 * test_slow();
  for (; !keeps_for(lease); lease *= 2) CHECK(lease < 2 * test_slow());
}

TEST(a_lease_that_was_made_longer) {
  conc_queue_opts o;
  served s;
  memset(&o, 0, sizeof o);
  o.lease = 60;
  o.max_lease = 0.7 * test_slow();
  serve(&s, &o);
  conc_queue *q = join_as_client(&s, &s.client);
  conc_lease lease;
  char buf[8];
  put(q, "a");
  expect(q, "a", &lease);
  CHECK_EQ(conc_lease_extend(&lease, 60), 0);
  CHECK_EQ(conc_get(s.queue, buf, sizeof buf, 1.1 * test_slow()), -ETIMEDOUT);
  CHECK_EQ(conc_lease_release(&lease, 0), 0);
  expect(q, "a", &lease);
  expect(s.queue, "a", NULL); /* for it is over without that */
  CHECK_EQ(conc_lease_extend(&lease, 60), -ESTALE);
  CHECK_EQ(conc_lease_done(&lease), -ESTALE);
  CHECK_EQ(conc_task_done(s.queue), 0);
  end(&s);
}

TEST(a_client_that_is_shut_down_gives_back) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  put(q, "a");
  put(q, "b");
  expect(q, "a", NULL);
  expect(q, "b", NULL);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  memset(&s.client, 0, sizeof s.client);
  q = join_as_client(&s, &s.client); /* perhaps at the same address */
  CHECK_EQ(conc_task_done(q), -EINVAL);
  expect(q, "a", NULL);
  expect(q, "b", NULL);
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(conc_task_done(q), 0);
  end(&s);
}

/* A forked child has none of its parent's leases, and ends none. */
TEST(a_forked_child_has_no_lease) {
  NEEDS_FORK;
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  pid_t pid;
  put(q, "a");
  put(q, "b");
  expect(q, "a", NULL);
  pid = begin_child();
  if (pid == 0) {
    CHECK_EQ(conc_task_done(q), -EINVAL);
    expect(q, "b", NULL);
    CHECK_EQ(conc_task_done(q), 0);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(counts(q).leased, 1);
  CHECK_EQ(conc_task_done(q), 0);
  end(&s);
}

/* Numbers of leases are a server's: the next one does not take them for its
   own, also when the client `knows` the next one by another call. */
static void a_lease_of_before(bool knows) {
  served s, t;
  serve_leases(&s, 60);
  conc_queue *q;
  conc_lease lease, other;
  conc_queue_opts o;
  char address[128];
  snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
  s.client = client_of(&s);
  s.client.address = address;
  s.client.reconnect = 20;
  q = join(&s.client);
  put(q, "a");
  expect(q, "a", &lease);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  t = nobody();
  t.server.address = address;
  memset(&o, 0, sizeof o);
  o.lease = 60;
  serve_queue(&t, conc_queue_new(&o));
  put(t.queue, "b");
  expect(t.queue, "b", &other);
  if (knows) CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_lease_done(&lease), -ESTALE);
  CHECK_EQ(counts(t.queue).leased, 1);
  CHECK_EQ(conc_lease_done(&other), 0);
  put(q, "c");
  expect(q, "c", &lease);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  conc_queue_free(s.queue);
  end(&t);
}
TEST(a_server_that_is_started_anew_has_no_lease_of_before) {
  a_lease_of_before(false);
  a_lease_of_before(true);
}

/* If the others are not got before the late one may be due it is done again,
   with more time. */
TEST(delays_priorities_and_ids_over_the_network) {
  static const char *const order[] = {"high", "low", "once", "later"};
  bool in_time = false;
  for (double after = 0.2; !in_time; after *= 4) {
    conc_queue_counts c;
    conc_queue_opts o;
    char got[4][8];
    served s;
    memset(&o, 0, sizeof o);
    memset(got, 0, sizeof got);
    o.priorities = 3;
    o.dedup = 60;
    serve(&s, &o);
    conc_queue *q = join_as_client(&s, &s.client);
    double start = test_now();
    CHECK_EQ(conc_put_after(q, "later", 5, after, 20), 0);
    CHECK_EQ(conc_put_priority(q, "low", 3, 2, 20), 0);
    CHECK_EQ(conc_put_priority(q, "high", 4, 0, 20), 0);
    CHECK_EQ(conc_put_priority(q, "none", 4, 3, 20), -EINVAL);
    CHECK_EQ(conc_put_once(q, "id", "once", 4, 20), 0);
    CHECK_EQ(conc_put_once(q, "id", "once", 4, 20), 0);
    c = counts(q);
    CHECK_EQ(c.put, 4);
    for (int i = 0; i < 4; i++) {
      CHECK(conc_get(q, got[i], 7, 15 * test_slow()) > 0);
      if (i == 2) in_time = test_now() - start < after;
    }
    CHECK(test_now() - start >= after - 0.01);
    if (in_time) CHECK_EQ(c.delayed, 1);
    for (int i = 0; i < 4 && in_time; i++) CHECK_STR(got[i], order[i]);
    expect_none(q, 0);
    CHECK_EQ(conc_queue_holders(q, NULL, 0), -ENOTSUP);
    CHECK_EQ(conc_task_done(q), 0);
    end(&s);
  }
}

TEST(a_plain_queue_has_none_of_it) {
  served s = nobody();
  serve_queue(&s, conc_queue_new(NULL));
  conc_queue *q = join_as_client(&s, &s.client);
  conc_queue_counts c;
  conc_lease lease;
  char buf[8];
  CHECK_EQ(conc_put_after(q, "a", 1, 0, 5), -ENOTSUP);
  CHECK_EQ(conc_put_once(q, "id", "a", 1, 5), -ENOTSUP);
  CHECK_EQ(conc_queue_stats(q, &c), -ENOTSUP);
  CHECK_EQ(conc_get_leased(q, &lease, buf, 8, 0), -ENOTSUP);
  CHECK_EQ(conc_qsize(q), 0);
  end(&s);
}

/* A put on terms that is made again after its connection was lost counts once:
   it has a key, as any. What the server lacks, it says. */
TEST(a_queue_without_dedup_says_so) {
  conc_queue_opts o;
  served s;
  memset(&o, 0, sizeof o);
  o.priorities = 1;
  serve(&s, &o);
  s.client = client_of(&s);
  s.client.reconnect = 5;
  conc_queue *q = join(&s.client);
  CHECK_EQ(conc_put_once(q, "id", "a", 1, 5), -ENOTSUP);
  CHECK_EQ(conc_put_after(q, "a", 1, 0, 5), 0);
  CHECK_EQ(counts(q).put, 1);
  end(&s);
}

/* A message that is handed out, and not confirmed, has its own place. */
TEST(what_is_handed_out_keeps_its_priority) {
  NEEDS_FORK;
  conc_queue_opts o;
  served s;
  memset(&o, 0, sizeof o);
  o.priorities = 2;
  serve(&s, &o);
  conc_queue *q = join_as_client(&s, &s.client);
  int fd[2];
  char byte;
  pid_t pid;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
  CHECK_EQ(conc_put_priority(q, "job", 3, 1, 5), 0);
  pid = worker(&s, fd);
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  CHECK_EQ(conc_put_priority(q, "urgent", 6, 0, 5), 0);
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  while (counts(s.queue).ready != 2) conc_sleep(0.001);
  expect(q, "urgent", NULL);
  expect(q, "job", NULL);
  CHECK_EQ(counts(s.queue).put, 2);
  close(fd[0]);
  close(fd[1]);
  end(&s);
}

static conc_manager_counts served_counts(served *s) {
  conc_manager_counts c;
  CHECK_EQ(conc_manager_stats(&s->server, &c), 0);
  return c;
}

/* Each is one trip. */
TEST(many_at_once) {
  enum { MANY = 300 };
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  static int in[MANY], out[MANY];
  conc_manager_counts before, now;
  for (int i = 0; i < MANY; i++) in[i] = i;
  CHECK_EQ(conc_put_many(q, in, sizeof *in, MANY, 5), MANY);
  before = served_counts(&s);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, MANY + 1, 5 * test_slow()),
           MANY);
  CHECK(memcmp(in, out, sizeof in) == 0);
  CHECK_EQ(counts(s.queue).leased, MANY);
  CHECK_EQ(pinned(q), 1);
  CHECK_EQ(conc_task_done_many(q, 100), 100);
  CHECK_EQ(conc_task_done_many(q, MANY), MANY - 100);
  CHECK_EQ(conc_task_done_many(q, 1), -EINVAL);
  now = served_counts(&s);
  /* While the first is pinned, the others go by another one, whose beginning
     is a request, too. */
  CHECK_EQ(now.requests - before.requests, 3 + 1);
  CHECK_EQ(now.connections_ever - before.connections_ever, 1);
  CHECK_EQ(pinned(q), 0);
  CHECK_EQ(counts(s.queue).done, MANY);
  CHECK_EQ(conc_queue_join(q, 5), 0);
  end(&s);
}

/* The first is waited for; one of another size ends it, and stays. */
TEST(many_are_waited_for) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  conc_task t;
  ssize_t got;
  char buf[8];
  CHECK_EQ(conc_get_many(q, buf, 2, 3, 0), -ETIMEDOUT);
  start(conc_thread_start, &t, put_later, s.queue);
  got = conc_get_many(q, buf, 2, 3, 20 * test_slow());
  CHECK_EQ(conc_join(&t, 20), 0);
  CHECK(got > 0); /* it may be awake before there are two */
  if (got == 1) CHECK_EQ(conc_get_many(q, buf + 2, 2, 3, 0), 1);
  CHECK(memcmp(buf, "abcd", 4) == 0);
  CHECK_EQ(conc_get_many(q, buf, 2, 3, 0), -EMSGSIZE);
  CHECK_EQ(counts(s.queue).leased, 2);
  CHECK_EQ(conc_task_done_many(q, 3), 2);
  expect(q, "efg", NULL);
  CHECK_EQ(conc_task_done(q), 0);
  end(&s);
}

/* What comes to a task that has leases is the pinned connection's, too, in one
   trip more; so it does not come back when another one ends. */
TEST(many_besides_others) {
  enum { MANY = 100 };
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  static int in[MANY], out[MANY];
  conc_manager_counts before;
  conc_queue_holder h;
  conc_lease lease;
  for (int i = 0; i < MANY; i++) in[i] = i;
  put(q, "a");
  expect(q, "a", &lease);
  CHECK_EQ(conc_put_many(q, in, sizeof *in, MANY, 5), MANY);
  before = served_counts(&s);
  CHECK_EQ(conc_get_many(q, out, sizeof *out, MANY, 5 * test_slow()), MANY);
  CHECK(memcmp(in, out, sizeof in) == 0);
  CHECK_EQ(served_counts(&s).requests - before.requests, 2);
  CHECK_EQ(pinned(q), 1);
  CHECK_EQ(conc_queue_holders(q, &h, 1), 1);
  CHECK_EQ(h.leases, MANY + 1);
  CHECK_EQ(conc_lease_done(&lease), 0);
  CHECK_EQ(conc_get(q, out, sizeof *out, 0.01), -ETIMEDOUT);
  CHECK_EQ(counts(s.queue).leased, MANY);
  CHECK_EQ(conc_task_done_many(q, MANY + 1), MANY);
  CHECK_EQ(pinned(q), 0);
  end(&s);
}

/* Those that were lost are told apart, and are not ended for another one. */
TEST(some_of_many_are_lost) {
  served s;
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.lease = 60;
  o.max_lease = 0.7 * test_slow();
  serve(&s, &o);
  conc_queue *q = join_as_client(&s, &s.client);
  char buf[8];
  conc_lease kept;
  CHECK_EQ(conc_put_many(q, "abcd", 1, 4, 5), 4);
  CHECK_EQ(conc_get_many(q, buf, 1, 2, 5 * test_slow()), 2);
  expect(q, "c", &kept);
  CHECK_EQ(conc_lease_extend(&kept, 60), 0);
  expect(s.queue, "d", NULL);
  CHECK_EQ(conc_task_done(s.queue), 0);
  for (int i = 0; i < 2; i++) { /* they come back */
    CHECK_EQ(conc_get(s.queue, buf, 1, 20 * test_slow()), 1);
    CHECK_EQ(*buf, "ab"[i]);
  }
  CHECK_EQ(conc_task_done_many(q, 3), 1);
  CHECK_EQ(conc_task_done_many(q, 3), -EINVAL);
  CHECK_EQ(counts(s.queue).done, 2);
  CHECK(counts(s.queue).leased + counts(s.queue).ready == 2);
  CHECK_EQ(conc_put(q, "e", 1, 5), 0);
  CHECK_EQ(conc_put(q, "f", 1, 5), 0);
  end(&s);
}

/* A trip that is cut off, or that the client cannot take, leases nothing. */
TEST(without_memory_none_of_many_is_lost) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  int in[20], out[20];
  ssize_t rc = -ENOMEM;
  for (int i = 0; i < 20; i++) in[i] = i;
  CHECK_EQ(conc_put_many(q, in, sizeof *in, 20, 5), 20);
  for (long i = 1; rc < 0; i++) {
    double until = conc_now() + 20 * test_slow();
    STORE(test_fail_at, i);
    rc = conc_get_many(q, out, sizeof *out, 20, 5 * test_slow());
    STORE(test_fail_at, 0);
    CHECK(rc > 0 || rc == -ENOMEM || rc == -EPIPE || rc == -ECONNRESET ||
          rc == -EPROTO);
    while (rc < 0 && counts(s.queue).ready != 20) {
      CHECK(conc_now() < until);
      conc_sleep(0.001);
    }
  }
  if (rc < 20) /* the server had no memory for more */
    rc += conc_get_many(q, out + rc, sizeof *out, 20, 5 * test_slow());
  CHECK_EQ(rc, 20);
  CHECK(memcmp(in, out, sizeof in) == 0);
  CHECK_EQ(conc_task_done_many(q, 20), 20);
  CHECK_EQ(counts(s.queue).done, 20);
  end(&s);
}

/* The only lease of a task ends by the connection that it came by: a client
   has one, whatever it does. If that is lost, so is the lease. */
TEST(a_lease_ends_by_its_own_connection) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  conc_manager_counts before = served_counts(&s);
  conc_lease lease;
  for (int i = 0; i < 5; i++) {
    put(q, "a");
    expect(q, "a", &lease);
    CHECK_EQ(conc_lease_done(&lease), 0);
    put(q, "b");
    expect(q, "b", &lease);
    CHECK_EQ(conc_lease_release(&lease, 0), 0);
    expect(q, "b", NULL);
    CHECK_EQ(conc_task_done(q), 0);
  }
  CHECK_EQ(served_counts(&s).connections_ever, before.connections_ever);
  CHECK_EQ(pinned(q), 0);
  put(q, "c");
  expect(q, "c", &lease);
  cut_pins(q);
  /* Which of both it is depends on what the client hears of the end first. */
  int rc = conc_lease_done(&lease);
  CHECK(rc == -ECONNRESET || rc == -EPIPE || rc == -ESTALE);
  CHECK_EQ(pinned(q), 0);
  expect(q, "c", &lease);
  CHECK_EQ(conc_lease_deliveries(&lease), 2);
  CHECK_EQ(conc_lease_done(&lease), 0);
  end(&s);
}

/* A leased queue of another server's is none that can be served here. */
TEST(a_proxy_that_leases_is_not_served) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  conc_manager m;
  memset(&m, 0, sizeof m);
  CHECK_EQ(conc_manager_register_queue(&m, "q", q), -ENOTSUP);
  conc_manager_shutdown(&m);
  end(&s);
}

/* The thread that says that tasks live may be asking a server that hangs. */
TEST(a_server_that_hangs_does_not_hold_up_a_shutdown) {
  NEEDS_FORK;
  int fd[2];
  char address[128];
  ssize_t n;
  pid_t pid;
  conc_manager m;
  conc__proxy *p;
  conc_queue *q;
  double start;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
  pid = begin_child();
  if (pid == 0) {
    served s;
    serve_leases(&s, 60);
    put(s.queue, "a");
    n = (ssize_t)strlen(conc_manager_address(&s.server));
    CHECK_EQ(write(fd[1], conc_manager_address(&s.server), (size_t)n), n);
    for (;;) pause();
  }
  n = read(fd[0], address, sizeof address - 1);
  CHECK(n > 0);
  address[n] = 0;
  memset(&m, 0, sizeof m);
  m.address = address;
  m.authkey = "abc";
  q = join(&m);
  expect(q, "a", NULL);
  kill(pid, SIGSTOP);
  p = (conc__proxy *)q;
  conc__mutex_lock(conc__mutex_of(p->manager));
  p->beat_at = conc_now(); /* now, and not in twenty seconds */
  conc__mutex_unlock(conc__mutex_of(p->manager));
  conc_event_set(&p->manager->client.fetched);
  for (;;) { /* until it asks */
    double at;
    conc__mutex_lock(conc__mutex_of(p->manager));
    at = p->beat_at;
    conc__mutex_unlock(conc__mutex_of(p->manager));
    if (at > conc_now()) break;
    conc_sleep(0.001);
  }
  start = test_now();
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK(test_now() - start < 5 * test_slow());
  kill(pid, SIGKILL);
  reap(pid, -SIGKILL);
  close(fd[0]);
  close(fd[1]);
}

/* What comes back when a server ends is not delivered once more, to a client
   that waits and is cut off next. */
static void *get_until_the_end(void *arg) {
  char buf[8];
  int n = (int)conc_get((conc_queue *)arg, buf, sizeof buf, 20 * test_slow());
  CHECK(n < 0 && n != -ETIMEDOUT);
  return NULL;
}
static void until_wait(conc_queue *queue, size_t many) {
  conc__work *q = (conc__work *)queue;
  size_t n;
  do {
    const conc__waiter *w;
    conc_sleep(0.001);
    conc__mutex_lock(conc__work_guard(q));
    for (n = 0, w = q->getters.first; w != NULL; w = w->next) n++;
    conc__mutex_unlock(conc__work_guard(q));
  } while (n < many);
}
static void *get_two(void *arg) {
  expect((conc_queue *)arg, "b", NULL);
  return get_until_the_end(arg);
}
TEST(a_server_that_ends_delivers_nothing_again) {
  served s;
  conc_manager m[4];
  conc_queue *q[4];
  conc_task t[3];
  serve_leases(&s, 60);
  for (int i = 0; i < 4; i++) q[i] = join_as_client(&s, &m[i]);
  put(s.queue, "a");
  expect(q[1], "a", NULL);
  put(s.queue, "b"); /* of one that waits itself, then */
  start(conc_thread_start, &t[0], get_two, q[2]);
  until_wait(s.queue, 1);
  start(conc_thread_start, &t[1], get_until_the_end, q[0]);
  start(conc_thread_start, &t[2], get_until_the_end, q[3]);
  until_wait(s.queue, 3);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK_EQ(counts(s.queue).got, 2);
  CHECK_EQ(counts(s.queue).ready, 2);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], 20 * test_slow()), 0);
  for (int i = 0; i < 4; i++) conc_manager_shutdown(&m[i]);
  conc_queue_free(s.queue);
}

/* Without memory, once at each place: nothing is lost, and nothing held. */
TEST(without_memory_no_lease_is_lost) {
  served s;
  serve_leases(&s, 60);
  conc_queue *q = join_as_client(&s, &s.client);
  int rc = -ENOMEM;
  for (long i = 1; rc < 0; i++) {
    char buf[8];
    double until = conc_now() + 20 * test_slow();
    if (counts(s.queue).put == 0) put(s.queue, "a");
    STORE(test_fail_at, i);
    rc = (int)conc_get(q, buf, sizeof buf, 5 * test_slow());
    STORE(test_fail_at, 0);
    CHECK(rc == 1 || rc == -ENOMEM || rc == -EPIPE || rc == -ECONNRESET ||
          rc == -EPROTO);
    while (rc < 0 && counts(s.queue).ready != 1) {
      CHECK(conc_now() < until);
      conc_sleep(0.001);
    }
  }
  CHECK_EQ(conc_task_done(q), 0);
  CHECK_EQ(counts(s.queue).done, 1);
  end(&s);
}

TEST_MAIN
