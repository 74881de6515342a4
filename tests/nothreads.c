/* The system has no room for another thread: whatever call needs one says so,
   or does without; nothing hangs, and nothing is left. Each story is told with
   its 1st, 2nd, 3rd... thread failing, and with all from that one on, until it
   needs no more. From inside, to stand in the place of pthread_create(). */
#include "test.h"

#include <pthread.h>

static int test_create(pthread_t *t, const pthread_attr_t *a,
                       void *(*fn)(void *), void *arg);
#define pthread_create test_create
#include "inside.h"
#undef pthread_create
#include "tasks.h"

static int made, failing; /* counts; which one fails, 0: none */
static bool and_later;
static int wanted; /* threads that were refused */

static int test_create(pthread_t *t, const pthread_attr_t *a,
                       void *(*fn)(void *), void *arg) {
  int n = __atomic_add_fetch(&made, 1, __ATOMIC_ACQ_REL);
  int at = __atomic_load_n(&failing, __ATOMIC_ACQUIRE);
  if (at > 0 && (n == at || (and_later && n > at))) {
    __atomic_add_fetch(&wanted, 1, __ATOMIC_ACQ_REL);
    return EAGAIN;
  }
  return pthread_create(t, a, fn, arg);
}

static void tell(void (*story)(void)) {
  for (int later = 0; later < 2; later++)
    for (int n = 1, refused = 1; refused && n < 40; n++) {
      made = wanted = 0;
      and_later = later != 0;
      __atomic_store_n(&failing, n, __ATOMIC_RELEASE);
      story();
      __atomic_store_n(&failing, 0, __ATOMIC_RELEASE);
      refused = wanted;
    }
}

static void *add_one(void *arg) {
  ++*(int *)arg;
  return NULL;
}
static void *exit_thread(void *arg) {
  pthread_exit(arg);
  return NULL;
}

static void use_pool(int kind) {
  conc_pool p;
  conc_task jobs[6];
  int n[6] = {0}, rc;
  memset(&p, 0, sizeof p);
  p.kind = kind;
  p.workers = 2;
  rc = conc_pool_start(&p);
  CHECK(rc == 0 || rc == -EAGAIN);
  if (rc != 0) return;
  for (int i = 0; i < 6; i++) {
    memset(&jobs[i], 0, sizeof jobs[i]);
    jobs[i].target = i % 3 == 1 ? exit_thread : add_one;
    jobs[i].arg = &n[i];
    jobs[i].size = sizeof n[i];
    CHECK_EQ(conc_pool_submit(&p, &jobs[i]), 0);
  }
  for (int i = 0; i < 6; i++) {
    rc = conc_join(&jobs[i], 20 * test_slow());
    CHECK(rc == 0 || rc == -ECHILD);
  }
  CHECK_EQ(conc_pool_close(&p), 0);
  CHECK_EQ(conc_pool_join(&p, 20 * test_slow()), 0);
}
static void pool_of_processes(void) { use_pool(CONC_PROCESS); }
static void pool_of_threads(void) { use_pool(CONC_THREAD); }

TEST(pools_of_processes) {
  NEEDS_FORK;
  tell(pool_of_processes);
}
TEST(pools_of_threads) { tell(pool_of_threads); }

static void *be_child(void *arg) { return arg; }
static void processes(void) {
  conc_task t[3];
  memset(t, 0, sizeof t);
  for (int i = 0; i < 3; i++) {
    int rc;
    t[i].target = be_child;
    t[i].daemon = i == 1;
    rc = conc_process_start(&t[i]);
    CHECK(rc == 0 || rc == -EAGAIN);
    if (rc == 0) {
      rc = conc_join(&t[i], 20 * test_slow());
      /* A daemon that cannot be bound to its parent ends with 255. */
      CHECK_EQ(rc, 0);
    }
  }
}
TEST(processes_start_or_say_that_they_do_not) {
  NEEDS_FORK;
  tell(processes);
}

static void programs(void) {
  const char *const argv[] = {"cat", NULL};
  conc_popen p;
  int rc;
  memset(&p, 0, sizeof p);
  p.argv = argv;
  p.std_in = p.std_out = CONC_PIPE;
  rc = conc_popen_start(&p);
  CHECK(rc == 0 || rc == -EAGAIN);
  if (rc != 0) return;
  CHECK_EQ(conc_communicate(&p, "x", 1, NULL, NULL, 20 * test_slow()), 0);
}
TEST(programs_start_or_say_that_they_do_not) { tell(programs); }

static void *offload(void *arg) {
  int n = 0;
  conc_offload(add_one, &n);
  CHECK_EQ(n, 1);
  return arg;
}
static void offloads(void) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = offload;
  CHECK_EQ(conc_run(&t), 0);
}
TEST(what_is_offloaded_runs_all_the_same) { tell(offloads); }

static void managers(void) {
  conc_manager m, client;
  conc_queue *q = conc_queue_new(NULL), *far;
  char byte = 0;
  int rc;
  memset(&m, 0, sizeof m);
  memset(&client, 0, sizeof client);
  m.address = "127.0.0.1:0";
  m.no_auth = true;
  CHECK_EQ(conc_manager_register_queue(&m, "q", q), 0);
  rc = conc_manager_start(&m);
  CHECK(rc == 0 || rc == -EAGAIN);
  if (rc == 0) {
    client.address = conc_manager_address(&m);
    client.no_auth = true;
    CHECK_EQ(conc_manager_connect(&client, 20 * test_slow()), 0);
    far = conc_manager_get(&client, "q");
    CHECK(far != NULL);
    CHECK_EQ(conc_put(far, "x", 1, 20 * test_slow()), 0);
    CHECK_EQ(conc_get(far, &byte, 1, 20 * test_slow()), 1);
    CHECK_EQ(conc_manager_shutdown(&client), 0);
  }
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_queue_free(q);
}
TEST(managers_start_or_say_that_they_do_not) { tell(managers); }

TEST_MAIN
