/* Queues on a Redis whose workers, servers and networks are killed at random:
   workers by SIGKILL; the server, which has written what it has answered; a
   master whose replica is promoted; a cluster whose slot moves; connections
   that break off. REDIS_CHAOS=10 makes each ten times as long; with
   CHAOS_TELL=1 each tells what happened.

   What is honest to count. A put that returns 0 is there. One that returns an
   error may be there. With a lease each message is done once at least; again
   only if the end of its lease was not known, which each kill can cause once
   for each getter. */
#include "test.h"

#include "../conc.h"
#include "odd.h"

#include <sys/mman.h>

static double soon(void) { return 20 * test_slow(); }
/* Sentinels and clusters take seconds until they know each other. */
#define NEEDS_TIME \
  if (getenv("REDIS_CHAOS") == NULL) SKIP("only if REDIS_CHAOS is set")
static int longer(int n) { return (int)(n * test_asked("REDIS_CHAOS", 1)); }

#define TELL(...)                                       \
  do {                                                  \
    if (getenv("CHAOS_TELL") != NULL) printf(__VA_ARGS__); \
  } while (0)

/* What became of each message; in shared memory. */
enum { MOST = 200000 };
typedef struct table {
  int next;  /* to be put */
  int stop;
  int refused, gone; /* puts, and dones, that were not answered by 0 */
  unsigned char put[MOST], unsure[MOST], got[MOST];
} table;
static table *its;

static void table_begin(void) {
  its = (table *)mmap(NULL, sizeof *its, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(its != MAP_FAILED);
}

/* Checks that nothing is lost; returns how many came more than once. */
static int count(const char *what, int *lost) {
  int doubled = 0, puts = 0, unsure = 0;
  *lost = 0;
  for (int i = 0; i < LOAD(its->next) && i < MOST; i++) {
    puts += its->put[i];
    unsure += its->unsure[i];
    if (its->put[i] && its->got[i] == 0) ++*lost;
    if (its->got[i] > 1) doubled += its->got[i] - 1;
  }
  TELL("%s: %d put, %d not certain, %d lost, %d came again, %d refused, %d "
       "ends of leases refused\n",
       what, puts, unsure, *lost, doubled, its->refused, its->gone);
  return doubled;
}

/* Makes the queue "q" at an address. */
static void make_queue(const char *address, double lease) {
  conc_manager m;
  conc_queue_opts o;
  conc_queue *q;
  memset(&m, 0, sizeof m);
  memset(&o, 0, sizeof o);
  o.lease = lease;
  q = conc_queue_new(&o);
  m.address = address;
  CHECK_EQ(conc_manager_register_queue(&m, "q", q), 0);
  CHECK_EQ(conc_manager_start(&m), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(q);
}

static conc_queue *join(conc_manager *m, const char *address) {
  conc_queue *q;
  memset(m, 0, sizeof *m);
  m->address = address;
  m->reconnect = 60;
  CHECK_CHILD(conc_manager_connect(m, soon()) == 0);
  q = conc_manager_get(m, "q");
  if (q == NULL) perror(address);
  CHECK_CHILD(q != NULL);
  return q;
}

/* --- those that put and get --- */

typedef struct hand {
  conc_task task;
  const char *address;
  conc_manager manager;
  double longest; /* call */
} hand;

/* No call may take much longer than it is allowed. */
static void *put_on(void *arg) {
  hand *h = (hand *)arg;
  conc_queue *q = join(&h->manager, h->address);
  while (!LOAD(its->stop)) {
    const int message = ADD_FETCH(its->next, 1) - 1;
    const double began = conc_now();
    int rc;
    if (message >= MOST) break;
    rc = conc_put(q, &message, sizeof message, soon());
    if (conc_now() - began > h->longest) h->longest = conc_now() - began;
    if (rc == 0) STORE(its->put[message], 1);
    else STORE(its->unsure[message], 1), ADD_FETCH(its->refused, 1);
    if (rc != 0) conc_sleep(0.01);
    conc_sleep(0.001);
  }
  CHECK_EQ(conc_manager_shutdown(&h->manager), 0);
  return NULL;
}

static void *get_on(void *arg) {
  hand *h = (hand *)arg;
  conc_queue *q = join(&h->manager, h->address);
  while (!LOAD(its->stop)) {
    const double began = conc_now();
    conc_lease lease;
    int message;
    ssize_t n = conc_get_leased(q, &lease, &message, sizeof message, 0.2);
    if (conc_now() - began > h->longest) h->longest = conc_now() - began;
    if (n != sizeof message) continue;
    CHECK(message >= 0 && message < MOST);
    ADD_FETCH(its->got[message], 1);
    if (conc_lease_done(&lease) != 0) ADD_FETCH(its->gone, 1);
  }
  CHECK_EQ(conc_manager_shutdown(&h->manager), 0);
  return NULL;
}

static void hands_begin(hand *all, int putters, int getters,
                        const char *address) {
  for (int i = 0; i < putters + getters; i++) {
    memset(&all[i], 0, sizeof all[i]);
    all[i].address = address;
    start(conc_thread_start, &all[i].task, i < putters ? put_on : get_on,
          &all[i]);
  }
}

static double hands_end(hand *all, int n) {
  double longest = 0;
  STORE(its->stop, 1);
  for (int i = 0; i < n; i++) {
    CHECK_EQ(conc_join(&all[i].task, CONC_FOREVER), 0);
    if (all[i].longest > longest) longest = all[i].longest;
  }
  return longest;
}

/* Gets what is left, until all is done. */
static void drain(const char *address) {
  const double end = conc_now() + soon();
  conc_manager m;
  conc_queue *q = join(&m, address);
  while (conc_now() < end) {
    conc_lease lease;
    int message;
    ssize_t n = conc_get_leased(q, &lease, &message, sizeof message, 0.1);
    if (n == -ETIMEDOUT && conc_queue_join(q, 0) == 0) break;
    if (n != sizeof message) continue;
    ADD_FETCH(its->got[message], 1);
    if (conc_lease_done(&lease) != 0) ADD_FETCH(its->gone, 1);
  }
  CHECK_EQ(conc_queue_join(q, 0.1), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
}

static void wait_a_little(void) {
  usleep(20000 + test_random() % 60000);
}

/* --- workers that are killed --- */

static pid_t begin_worker(const char *address) {
  pid_t pid = begin_child();
  if (pid == 0) {
    conc_manager m;
    conc_queue *q = join(&m, address);
    while (!LOAD(its->stop)) {
      int message;
      ssize_t n = conc_get(q, &message, sizeof message, 0.2);
      if (n != sizeof message) continue;
      usleep(10000); /* the work */
      ADD_FETCH(its->got[message], 1);
      conc_task_done(q);
    }
    CHECK_CHILD(conc_manager_shutdown(&m) == 0);
    _exit(0);
  }
  return pid;
}

TEST(no_task_is_lost_with_workers_that_are_killed) {
  enum { WORKERS = 6 };
  const int tasks = longer(60);
  pid_t workers[WORKERS];
  conc_manager m;
  conc_queue *q;
  redis r;
  int kills = 0, doubled, lost;
  NEEDS_FORK;
  NEEDS_REDIS;
  redis_begin(&r, "");
  table_begin();
  make_queue(r.address, 0.5 * test_slow());
  for (int i = 0; i < WORKERS; i++) workers[i] = begin_worker(r.address);
  q = join(&m, r.address);
  for (; its->next < tasks; its->next++) {
    CHECK_EQ(conc_put(q, &its->next, sizeof its->next, soon()), 0);
    its->put[its->next] = 1;
  }
  while (conc_queue_join(q, 0.05) != 0) {
    const int i = (int)(test_random() % WORKERS);
    CHECK(kills < 100 + tasks);
    kill(workers[i], SIGKILL);
    reap(workers[i], -SIGKILL);
    workers[i] = begin_worker(r.address);
    kills++;
    usleep(test_random() % 50000);
  }
  STORE(its->stop, 1);
  for (int i = 0; i < WORKERS; i++) reap(workers[i], 0);
  doubled = count("workers", &lost);
  TELL("%d kills\n", kills);
  CHECK_EQ(lost, 0);
  CHECK(doubled <= kills);
  CHECK_EQ(conc_qsize(q), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  redis_end(&r);
}

/* --- a server that is killed --- */

TEST(every_put_that_was_answered_survives_the_server) {
  enum { PUTTERS = 4, GETTERS = 2 };
  const int kills = longer(5);
  hand hands[PUTTERS + GETTERS];
  redis r;
  int doubled, lost;
  NEEDS_REDIS;
  redis_begin(&r, "appendonly yes\nappendfsync always");
  table_begin();
  make_queue(r.address, 1 * test_slow());
  hands_begin(hands, PUTTERS, GETTERS, r.address);
  for (int i = 0; i < kills; i++) {
    wait_a_little();
    redis_kill(&r);
    wait_a_little();
    redis_run(&r);
    redis_until(&r, "(", "ROLE"); /* it is not loading */
  }
  wait_a_little();
  hands_end(hands, PUTTERS + GETTERS);
  drain(r.address);
  doubled = count("server", &lost);
  CHECK_EQ(lost, 0);
  CHECK(doubled <= kills * GETTERS);
  redis_end(&r);
}

/* --- a network that fails --- */

TEST(connections_that_break_off_lose_and_double_no_put) {
  static const odd_way ways[] = {LOSE_REQUEST, LOSE_ANSWER, HALF};
  enum { PUTTERS = 2, GETTERS = 2 };
  hand hands[PUTTERS + GETTERS];
  redis r;
  odd o;
  int lost, doubled, cuts = 0;
  NEEDS_REDIS;
  redis_begin(&r, "");
  odd_begin(&o, &r);
  table_begin();
  make_queue(r.address, 1 * test_slow());
  hands_begin(hands, PUTTERS, GETTERS, o.address);
  for (int i = 0; i < longer(20); i++) {
    odd_next(&o, "{q}", ways[test_random() % 3], NULL);
    usleep(test_random() % 40000);
    cuts += odd_met(&o);
  }
  odd_next(&o, "", AS_IT_IS, NULL);
  hands_end(hands, PUTTERS + GETTERS);
  drain(r.address);
  doubled = count("network", &lost);
  TELL("%d connections broke off\n", cuts);
  CHECK_EQ(lost, 0);
  CHECK(doubled <= cuts * GETTERS);
  odd_end(&o);
  redis_end(&r);
}

/* --- a replica that is promoted --- */

TEST(a_replica_is_promoted_while_sixteen_work) {
  enum { PUTTERS = 8, GETTERS = 8 };
  hand hands[PUTTERS + GETTERS];
  sentinels s;
  double longest;
  int lost, next;
  NEEDS_TIME;
  NEEDS_REDIS;
  if (!in_path("redis-sentinel") && getenv("REDIS_SERVER") == NULL)
    SKIP("there is no redis-sentinel");
  sentinels_begin(&s, "appendonly no");
  table_begin();
  make_queue(s.address, 1 * test_slow());
  hands_begin(hands, PUTTERS, GETTERS, s.address);
  usleep(200000);
  redis_kill(&s.master);
  redis_until(&s.replica, "(master", "ROLE");
  next = LOAD(its->next);
  for (const double end = test_now() + soon();
       LOAD(its->next) < next + 50 + PUTTERS;) {
    CHECK(test_now() < end); /* they work again */
    usleep(10000);
  }
  longest = hands_end(hands, PUTTERS + GETTERS);
  drain(s.address);
  count("sentinel", &lost);
  TELL("the longest call took %.2f s\n", longest);
  /* What Redis itself loses: what was answered, and was not at the replica
     yet. Each putter had one such put at most. */
  CHECK(lost <= PUTTERS);
  CHECK(longest < 1.5 * soon());
  sentinels_end(&s);
}

/* --- a cluster whose slot moves --- */

TEST(a_slot_moves_while_its_queue_is_used) {
  enum { PUTTERS = 3, GETTERS = 3 };
  hand hands[PUTTERS + GETTERS];
  cluster c;
  int lost, doubled, slot;
  NEEDS_TIME;
  NEEDS_REDIS;
  cluster_begin(&c);
  table_begin();
  make_queue(c.address, 5 * test_slow());
  slot = atoi(redis_say(&c.node[0], "CLUSTER KEYSLOT {q}"));
  hands_begin(hands, PUTTERS, GETTERS, c.address);
  for (int i = 0; i < longer(2); i++) {
    usleep(100000);
    cluster_move(&c, slot, (cluster_node_of(&c, slot) + 1) % NODES);
  }
  usleep(100000);
  hands_end(hands, PUTTERS + GETTERS);
  drain(c.address);
  doubled = count("cluster", &lost);
  CHECK_EQ(lost, 0);
  CHECK_EQ(doubled, 0);
  CHECK_EQ(its->refused, 0);
  cluster_end(&c);
}

TEST_MAIN
