/* No guard is held over a system call that waits, nor when memory is taken or
   given back: whoever waits for the guard would wait as long. From inside, to
   look at the guards in each poll(), and to let others run in each call of the
   allocator. */
#include "test.h"

#include <poll.h>

static void at_allocator(void);
TEST_FN void *guards_malloc(size_t size) {
  at_allocator();
  return test_malloc(size);
}
TEST_FN void *guards_realloc(void *p, size_t size) {
  at_allocator();
  return test_realloc(p, size);
}
TEST_FN void guards_free(void *p) {
  if (p != NULL) at_allocator();
  test_free(p);
}
#define CONC_MALLOC(size) guards_malloc(size)
#define CONC_REALLOC(p, size) guards_realloc(p, size)
#define CONC_FREE(p) guards_free(p)

static int test_poll(struct pollfd *p, nfds_t n, int ms);
#define poll test_poll
#include "inside.h"
#undef poll
#include "tasks.h"

#include <sys/resource.h>

static conc__loop *watched; /* whose inbox is looked at, too; or NULL */
static int naps;            /* waits for a time only */
static void (*at_nap)(void);

static int test_poll(struct pollfd *p, nfds_t n, int ms) {
  if (ms == 0) return poll(p, n, ms);
  CHECK(!conc__mutex_is_held(&conc__shared_guard));
  CHECK(watched == NULL || !conc__mutex_is_held(&watched->inbox.guard));
  if (n == 0) {
    naps++;
    if (at_nap != NULL) at_nap();
  }
  return poll(p, n, ms);
}

/* --- a loop whose poller is lost, and without descriptors for another one */

static struct rlimit enough;

static void end_of_want(void) {
  if (naps == 3) CHECK_EQ(setrlimit(RLIMIT_NOFILE, &enough), 0);
}

static void *lose_poller(void *arg) {
  struct rlimit few = enough;
  few.rlim_cur = 3;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  watched = conc__this.loop;
  watched->poller.lost = true;
  at_nap = end_of_want;
  for (int i = 0; i < 1000 && watched->poller.lost; i++)
    CHECK_EQ(conc_sleep(0.001), 0);
  CHECK(!watched->poller.lost);
  watched = NULL;
  at_nap = NULL;
  return arg;
}

TEST(a_loop_without_descriptors_waits_for_some_without_its_guard) {
  conc_task t;
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &enough), 0);
  naps = 0;
  start(conc_run, &t, lose_poller, NULL);
  CHECK(naps >= 3);
}

/* --- a tracker that is a child, and slow -------------------------------- */

#if CONC__LINUX && defined(PR_SET_CHILD_SUBREAPER)
static pid_t tracker;
static void let_it_end(void) {
  if (naps == 3) CHECK_EQ(kill(tracker, SIGCONT), 0);
}

TEST(a_tracker_is_waited_for_without_the_guard) {
  char name[64];
  for (int slow = 0; slow < 2; slow++) {
    siginfo_t info;
    void *memory;
    int status;
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
    snprintf(name, sizeof name, "test-guards-%d", (int)getpid());
    memory = conc_shared_open(name, 4096, NULL, NULL);
    CHECK(memory != NULL);
    CHECK(conc__regions != NULL);
    tracker = conc__regions->tracker;
    CHECK(tracker > 0);
    CHECK_EQ(kill(tracker, SIGSTOP), 0);
    CHECK(waitpid(tracker, &status, WUNTRACED) == tracker);
    naps = 0;
    at_nap = slow ? NULL : let_it_end;
    conc_shared_free(memory);
    CHECK(naps >= 3);
    at_nap = NULL;
    if (!slow) (void)waitpid(tracker, NULL, 0); /* if 50 ms were too short */
    if (!slow) continue;
    /* It is kept for later, and the next call that drops memory has it. */
    CHECK_EQ(kill(tracker, SIGCONT), 0);
    CHECK_EQ(waitid(P_PID, (id_t)tracker, &info, WEXITED | WNOWAIT), 0);
    memory = conc_shared_open(name, 4096, NULL, NULL);
    CHECK(memory != NULL);
    CHECK(waitpid(tracker, NULL, WNOHANG) < 0 && errno == ECHILD);
    tracker = conc__regions->tracker;
    conc_shared_free(memory);
    (void)waitpid(tracker, NULL, 0);
  }
}
#endif

/* --- while the allocator is at work, others use the same object --- */

static __thread bool allocates; /* of the thread for whose allocations they
                                   run */
static void *(*other)(void *); /* NULL: none do */
static int others;             /* how often they did */

/* Runs them to their end, unless something that this thread holds lets them
   wait. */
static void at_allocator(void) {
  void *(*fn)(void *) = __atomic_load_n(&other, __ATOMIC_ACQUIRE);
  struct timespec end;
  pthread_t t;
  if (fn == NULL || !allocates) return;
  __atomic_store_n(&other, NULL, __ATOMIC_RELEASE);
  CHECK_EQ(pthread_create(&t, NULL, fn, NULL), 0);
#ifdef __GLIBC__
  clock_gettime(CLOCK_REALTIME, &end);
  end.tv_sec += (time_t)(5 * test_slow());
  CHECK_EQ(pthread_timedjoin_np(t, NULL, &end), 0);
#else
  (void)end;
  CHECK_EQ(pthread_join(t, NULL), 0);
#endif
  others++;
  __atomic_store_n(&other, fn, __ATOMIC_RELEASE);
}

static void let_in(void *(*fn)(void *)) {
  allocates = true;
  others = 0;
  __atomic_store_n(&other, fn, __ATOMIC_RELEASE);
}

static void let_in_none(int least) {
  __atomic_store_n(&other, NULL, __ATOMIC_RELEASE);
  CHECK(others >= least);
}

#define AS_WORK(queue) ((conc__work *)(queue))
static conc_queue *shared_use;
static int taken, added;
static const char big[300] = "big";

/* Puts one and takes one. */
static void *use_it(void *arg) {
  char buf[sizeof big];
  CHECK_EQ(conc_put(shared_use, big, sizeof big, CONC_FOREVER), 0);
  CHECK_EQ(conc_get(shared_use, buf, sizeof buf, CONC_FOREVER), sizeof big);
  added++;
  taken++;
  return arg;
}

static void *use_plain(void *arg) {
  CHECK_EQ(conc_put(shared_use, "x", 1, CONC_FOREVER), 0);
  return arg;
}

static void *look_at_it(void *arg) {
  CHECK(conc_qsize(shared_use) >= 0);
  return arg;
}

/* Puts many more than it takes: so the ring grows for it, too. */
static void *fill_it(void *arg) {
  for (int i = 0; i < 50 && others < 4; i++, added++)
    CHECK_EQ(conc_put(shared_use, big, sizeof big, CONC_FOREVER), 0);
  return use_it(arg);
}

static void empty_it(int all) {
  char buf[sizeof big];
  for (; taken < all + added; taken++)
    CHECK_EQ(conc_get(shared_use, buf, sizeof buf, 0), sizeof big);
  CHECK_EQ(conc_get(shared_use, buf, sizeof buf, 0), -ETIMEDOUT);
}

TEST(a_queue_grows_and_shrinks_while_others_use_it) {
  static char many[1000][sizeof big];
  for (int round = 0; round < 2; round++) {
    shared_use = conc_queue_new(NULL);
    taken = added = 0;
    let_in(round == 0 ? use_it : fill_it);
    CHECK_EQ(conc_put_many(shared_use, many, sizeof big, 1000, 0), 1000);
    for (int i = 0; i < 1000; i++)
      CHECK_EQ(conc_put(shared_use, many[i], sizeof big, 0), 0);
    let_in_none(8);
    let_in(use_it);
    empty_it(2000);
    let_in_none(1); /* the ring of a burst */
    conc_queue_free(shared_use);
  }
}

TEST(what_comes_back_finds_room_while_others_use_it) {
  conc__message m = {big, sizeof big, CONC__RAW, NULL};
  conc__buffer none = {NULL, 0, 0, 0};
  shared_use = conc_queue_new(NULL);
  taken = added = 0;
  for (int i = 0; i < 100; i++) {
    let_in(NULL);
    CHECK_EQ(conc_put(shared_use, big, sizeof big, 0), 0);
  }
  let_in(use_it);
  for (int i = 0; i < 100; i++)
    CHECK_EQ(conc__fifo_unget(shared_use, &m, &none), 0);
  let_in_none(2);
  /* It counts as not got: of these there were fewer. */
  CHECK_EQ(conc_qsize(shared_use), 200);
  empty_it(200);
  conc_queue_free(shared_use);
}

/* Takes the message for whose value memory is wanted, and leaves another. */
static char thief[4000];
static void *steal_it(void *arg) {
  conc_value *v;
  if (conc_get_value(shared_use, &v, 0) != 0) return arg; /* it has it */
  conc_value_free(v);
  CHECK_EQ(conc_task_done(shared_use), 0);
  CHECK_EQ(conc_build(&v, "s#", thief, sizeof thief), 0);
  CHECK_EQ(conc_put_value(shared_use, v, CONC_FOREVER), 0);
  conc_value_free(v);
  return arg;
}

TEST(a_message_is_there_for_others_while_its_getter_wants_memory) {
  conc_queue_opts leases = {.lease = 60};
  for (int round = 0; round < 2; round++) {
    const char *text;
    conc_value *v;
    size_t size;
    shared_use = conc_queue_new(round == 0 ? NULL : &leases);
    memset(thief, round == 0 ? 'a' : 'b', sizeof thief);
    CHECK_EQ(conc_build(&v, "s#", big, sizeof big), 0);
    CHECK_EQ(conc_put_value(shared_use, v, 0), 0);
    conc_value_free(v);
    let_in(steal_it);
    CHECK_EQ(conc_get_value(shared_use, &v, 0), 0);
    let_in_none(1);
    text = conc_value_str(v, &size);
    CHECK(size == sizeof thief && memcmp(text, thief, size) == 0);
    conc_value_free(v);
    conc_queue_free(shared_use);
  }
}

/* Leases one, and is done with it. */
static void *work_on_it(void *arg) {
  char buf[8];
  CHECK_EQ(conc_put(shared_use, "other", 5, CONC_FOREVER), 0);
  CHECK(conc_get(shared_use, buf, sizeof buf, CONC_FOREVER) > 0);
  CHECK_EQ(conc_task_done(shared_use), 0);
  return arg;
}

/* Leases that end by themselves must be noted: for that, too, there is memory
   before. */
TEST(leases_begin_and_end_while_others_have_theirs) {
  conc_queue_opts leases = {.lease = 60, .max_lease = 60};
  conc_queue_counts counts;
  int lost = 0, rc;
  char buf[8];
  shared_use = conc_queue_new(&leases);
  for (int i = 0; i < 500; i++)
    CHECK_EQ(conc_put(shared_use, "mine", 4, 0), 0);
  let_in(work_on_it);
  for (int i = 0; i < 500; i++)
    CHECK(conc_get(shared_use, buf, sizeof buf, 0) > 0);
  let_in_none(6);
  conc__mutex_lock(conc__work_guard(AS_WORK(shared_use)));
  for (conc__letter *l = AS_WORK(shared_use)->stakes->youngest; l != NULL;
       l = l->older) {
    l->ceiling = 1; /* it is over long ago */
    conc__work_time(AS_WORK(shared_use), l);
  }
  conc__mutex_unlock(conc__work_guard(AS_WORK(shared_use)));
  let_in(work_on_it);
  CHECK_EQ(conc_queue_stats(shared_use, &counts), 0);
  let_in_none(0);
  CHECK_EQ(counts.leased, 0);
  CHECK_EQ(counts.returned, 500);
  while ((rc = conc_task_done(shared_use)) == -ESTALE) lost++;
  CHECK_EQ(rc, -EINVAL);
  CHECK_EQ(lost, 500);
  conc_queue_free(shared_use);
}

static char id[16];
static void *put_same(void *arg) {
  CHECK_EQ(conc_put_once(shared_use, id, "same", 4, CONC_FOREVER), 0);
  return arg;
}

TEST(an_id_is_known_though_others_use_it_at_the_same_time) {
  conc_queue_opts dedup = {.dedup = 60};
  shared_use = conc_queue_new(&dedup);
  let_in(put_same);
  for (int i = 0; i < 200; i++) {
    snprintf(id, sizeof id, "%d", i);
    CHECK_EQ(conc_put_once(shared_use, id, "mine", 4, 0), 0);
  }
  let_in_none(200);
  CHECK_EQ(conc_qsize(shared_use), 200);
  /* Those whose time is over are forgotten, and their memory goes. */
  conc__mutex_lock(conc__work_guard(AS_WORK(shared_use)));
  for (conc__put_id *k = AS_WORK(shared_use)->known.oldest; k != NULL;
       k = k->newer)
    k->until = 1;
  conc__mutex_unlock(conc__work_guard(AS_WORK(shared_use)));
  let_in(use_plain);
  CHECK_EQ(conc_put_once(shared_use, "0", "anew", 4, 0), 0);
  let_in_none(200);
  conc_queue_free(shared_use);
}

/* The memory of what a queue notes when leases end is taken before, too: some
   thousand of them fill many sheets. */
TEST(a_queue_is_free_while_its_journal_wants_memory) {
  conc_queue_opts opts = {.lease = 60, .journal_sync = CONC_FOREVER};
  char path[64], buf[8];
  snprintf(path, sizeof path, "/tmp/guards-%d.journal", (int)getpid());
  opts.journal = path;
  shared_use = conc_queue_new(&opts);
  CHECK(shared_use != NULL);
  for (int i = 0; i < 3000; i++)
    CHECK_EQ(conc_put(shared_use, "mine", 4, 0), 0);
  let_in(look_at_it);
  for (int i = 0; i < 3000; i++) {
    CHECK_EQ(conc_get(shared_use, buf, sizeof buf, 0), 4);
    CHECK_EQ(conc_task_done(shared_use), 0);
  }
  let_in_none(1);
  CHECK_EQ(conc_qsize(shared_use), 0);
  conc_queue_free(shared_use);
  CHECK_EQ(unlink(path), 0);
}

/* --- names -------------------------------------------------------------- */

static conc__class nothing; /* objects of it have no state */
static conc__objects objects;
static char name[16];
static int refused;

static int add_name(void) {
  conc__object *o = conc__object_new(&nothing, NULL, NULL);
  int rc = conc__names_add(&objects, name, &nothing, o);
  CHECK(rc == 0 || rc == -EEXIST);
  if (rc != 0) CONC_FREE(o);
  return rc;
}

/* The object's memory and the name's are of none yet: then it only looks. */
static void *add_same(void *arg) {
  const conc__class *type;
  conc__object *o;
  if (others < 2) conc__names_get(&objects, name, &type, &o);
  else refused += add_name() != 0;
  return arg;
}

TEST(names_are_added_while_others_add_the_same) {
  for (int i = 0; i < 100; i++) {
    snprintf(name, sizeof name, "%d", i);
    let_in(add_same);
    refused += add_name() != 0;
    let_in_none(2);
  }
  CHECK(refused >= 4);
  CHECK_EQ(objects.names_count, 100);
  for (size_t i = 0; i < 100; i++) {
    CHECK_EQ(atoi(objects.names[i].text), (int)i);
    CHECK(objects.slots[i].object == objects.names[i].object);
  }
  conc__objects_free(&objects);
}

/* --- locals ------------------------------------------------------------- */

static conc_local local;
static void *set_it(void *arg) {
  CHECK_EQ(conc_local_set(&local, name, arg), 0);
  return arg;
}

TEST(attributes_are_made_and_forgotten_while_others_use_theirs) {
  static conc_local freed;
  for (int i = 0; i < 20; i++) {
    snprintf(name, sizeof name, "%d", i);
    CHECK_EQ(conc_local_set(&freed, name, name), 0);
    let_in(set_it);
    CHECK_EQ(conc_local_set(&local, name, name), 0);
    let_in_none(1);
  }
  let_in(set_it);
  conc_local_free(&freed);
  let_in_none(20);
  conc_local_free(&local);
}

TEST_MAIN
