/* Reports: what hangs is named, in text and in JSON; any task may end while a
   report is being made. */
#include "inside.h"

enum { ROOM = 1 << 16 };

/* --- looking into reports --- */

/* A whole report; to be freed. */
static char *take(bool json) {
  size_t room = ROOM;
  for (;;) {
    char *text = (char *)malloc(room);
    ssize_t n = json ? conc_report_json(text, room) : conc_report(text, room);
    CHECK(n > 0);
    if ((size_t)n < room) {
      CHECK_EQ(strlen(text), n);
      return text;
    }
    free(text);
    room = (size_t)n * 2;
  }
}

static bool says(const char *words) {
  char *text = take(false);
  bool found = strstr(text, words) != NULL;
  free(text);
  return found;
}

/* Takes reports until one has these words. */
static void await(const char *words) {
  double end = conc_now() + 20;
  while (!says(words)) {
    if (conc_now() > end) TEST_FAIL("no \"%s\" in:\n%s", words, take(false));
    usleep(1000);
  }
}

static bool is_word(const conc_value *dict, const char *key,
                    const char *word) {
  const conc_value *v = conc_value_get(dict, key);
  const char *s = v != NULL ? conc_value_str(v, NULL) : NULL;
  return s != NULL && strcmp(s, word) == 0;
}

static const conc_value *named(const conc_value *list, const char *name) {
  size_t i;
  for (i = 0; list != NULL && i < conc_value_size(list); i++)
    if (is_word(conc_value_item(list, i), "name", name))
      return conc_value_item(list, i);
  return NULL;
}

/* The task of this name: a thread, a coroutine or a process. */
static const conc_value *find(const conc_value *report, const char *name) {
  const conc_value *threads = conc_value_get(report, "threads");
  const conc_value *t = named(threads, name);
  size_t i;
  if (t == NULL) t = named(conc_value_get(report, "processes"), name);
  for (i = 0; t == NULL && i < conc_value_size(threads); i++) {
    const conc_value *loop =
        conc_value_get(conc_value_item(threads, i), "loop");
    if (loop != NULL) t = named(conc_value_get(loop, "coroutines"), name);
  }
  return t;
}

static conc_value *take_json(void) {
  char *text = take(true);
  conc_value *v = NULL;
  size_t where = 0;
  int rc = conc_json_loads(&v, text, strlen(text), &where);
  if (rc != 0) TEST_FAIL("%d at %zu: %s", rc, where, text + where);
  free(text);
  return v;
}

/* Checks a word of what the task of this name waits for. */
static void check_wait(const conc_value *report, const char *name,
                       const char *key, const char *word) {
  const conc_value *t = find(report, name);
  const conc_value *w;
  CHECK(t != NULL);
  CHECK(is_word(t, "state", "waits"));
  w = conc_value_get(t, "waits_for");
  CHECK(w != NULL && is_word(w, key, word));
}

static int64_t number(const conc_value *dict, const char *key) {
  int64_t n = -1;
  const conc_value *v = conc_value_get(dict, key);
  CHECK(v != NULL);
  CHECK_EQ(conc_value_int(v, &n), 0);
  return n;
}

/* --- planted hangs --- */

static conc_lock lock;
static conc_queue *queue;
static int ends[2];
static bool stop;
static conc_task holder, waiter, busy_loop, hung_loop;
static conc_task busy, getter, reader, joiner, sleeper;

static bool stopped(void) { return __atomic_load_n(&stop, __ATOMIC_ACQUIRE); }
static void set_stop(bool to) { __atomic_store_n(&stop, to, __ATOMIC_RELEASE); }

static void *hold(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  while (!stopped()) usleep(1000);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return arg;
}

static void *want(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return arg;
}

static void *compute(void *arg) {
  while (!stopped()) continue;
  return arg;
}

static void *get_one(void *arg) {
  char c;
  CHECK_EQ(conc_get(queue, &c, 1, CONC_FOREVER), 1);
  return arg;
}

static void *read_one(void *arg) {
  char c;
  CHECK_EQ(conc_read(ends[0], &c, 1, 1000.0), 1);
  return arg;
}

static void *join_one(void *arg) {
  CHECK_EQ(conc_join((conc_task *)arg, CONC_FOREVER), 0);
  return arg;
}

static void *sleep_long(void *arg) {
  CHECK_EQ(conc_sleep(1000.0), -ECANCELED);
  return arg;
}

static void *run_one(void *arg) {
  CHECK_EQ(conc_run((conc_task *)arg), 0);
  return arg;
}

static void coro(conc_task *t, conc_fn *fn, void *arg, const char *name) {
  memset(t, 0, sizeof *t);
  t->target = fn;
  t->arg = arg;
  t->name = name;
  CHECK_EQ(conc_coro_start(t), 0);
}

static void thread(conc_task *t, conc_fn *fn, void *arg, const char *name) {
  memset(t, 0, sizeof *t);
  t->target = fn;
  t->arg = arg;
  t->name = name;
  CHECK_EQ(conc_thread_start(t), 0);
}

static void *hang(void *arg) {
  coro(&getter, get_one, NULL, "Getter");
  coro(&reader, read_one, NULL, "Reader");
  coro(&sleeper, sleep_long, NULL, "Sleeper");
  coro(&joiner, join_one, &getter, "Joiner");
  CHECK_EQ(conc_join(&joiner, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&reader, CONC_FOREVER), 0);
  conc_cancel(&sleeper);
  CHECK_EQ(conc_join(&sleeper, CONC_FOREVER), -ECANCELED);
  return arg;
}

static void plant(void) {
  static conc_task hanging;
  conc_queue_opts opts;
  memset(&opts, 0, sizeof opts);
  queue = conc_queue_new(&opts);
  CHECK(queue != NULL);
  CHECK_EQ(pipe(ends), 0);
  lock.name = "a";
  set_stop(false);
  thread(&holder, hold, NULL, "Holder");
  await("thread Holder: runs\n");
  while (!conc_lock_locked(&lock)) usleep(1000);
  thread(&waiter, want, NULL, "Waiter");
  memset(&busy, 0, sizeof busy);
  busy.target = compute;
  busy.name = "Busy";
  thread(&busy_loop, run_one, &busy, "BusyLoop");
  memset(&hanging, 0, sizeof hanging);
  hanging.target = hang;
  hanging.name = "Hanging";
  thread(&hung_loop, run_one, &hanging, "HungLoop");
}

static void reap(void) {
  set_stop(true);
  CHECK_EQ(conc_put(queue, "x", 1, CONC_FOREVER), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  CHECK_EQ(conc_join(&holder, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&waiter, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&busy_loop, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&hung_loop, CONC_FOREVER), 0);
  conc_queue_free(queue);
  close(ends[0]);
  close(ends[1]);
}

TEST(what_hangs_is_named_in_text) {
  char words[80];
  plant();
  await("thread Waiter: waits for lock 'a' held by Holder, since ");
  await("coroutine Busy: runs");
  await("coroutine Getter: waits for queue at ");
  await(", get; stack ");
  snprintf(words, sizeof words,
           "coroutine Reader: waits for descriptor %d for reading, until 99",
           ends[0]);
  await(words);
  await("coroutine Sleeper: sleeps until 99");
  await("coroutine Joiner: waits for the end of Getter");
  await("coroutine Hanging: waits for the end of Joiner");
  await("thread HungLoop: runs a loop (tasks 5, ready 0, timers 2, waits for "
        "descriptors 1)");
  await("waited for: lock 'a' held by Holder, by 1\n");
  await("total: threads 5, coroutines 6, processes 0\n");
  reap();
}

/* Until nothing more changes. */
static void plant_and_await(void) {
  plant();
  await("thread Waiter: waits for lock 'a' held by Holder");
  await("coroutine Busy: runs");
  await("coroutine Hanging: waits for the end of Joiner");
  await("coroutine Getter: waits for queue");
  await("coroutine Reader: waits for descriptor");
  await("coroutine Sleeper: sleeps");
  await("coroutine Joiner: waits for the end");
}

TEST(what_hangs_is_named_in_json) {
  conc_value *v;
  const conc_value *t, *w;
  size_t i;
  bool seen = false;
  plant_and_await();
  v = take_json();
  CHECK_EQ(number(v, "pid"), getpid());
  check_wait(v, "Waiter", "what", "lock");
  check_wait(v, "Waiter", "name", "a");
  check_wait(v, "Waiter", "owner", "Holder");
  check_wait(v, "Getter", "what", "queue");
  check_wait(v, "Getter", "for", "get");
  check_wait(v, "Reader", "what", "descriptor");
  check_wait(v, "Reader", "for", "reading");
  w = conc_value_get(find(v, "Reader"), "waits_for");
  CHECK_EQ(number(w, "descriptor"), ends[0]);
  check_wait(v, "Joiner", "owner", "Getter");
  check_wait(v, "Sleeper", "what", "sleep");
  CHECK(is_word(find(v, "Busy"), "state", "runs"));
  t = find(v, "HungLoop");
  CHECK(is_word(t, "kind", "thread") && is_word(t, "state", "runs a loop"));
  CHECK_EQ(number(conc_value_get(t, "loop"), "tasks"), 5);
  t = find(v, "Getter");
  CHECK_EQ(number(t, "stack_size"), CONC_STACK_SIZE);
  w = conc_value_get(v, "waited_for");
  for (i = 0; i < conc_value_size(w); i++) {
    t = conc_value_item(w, i);
    seen |= is_word(t, "what", "lock") && is_word(t, "owner", "Holder") &&
            number(t, "waiters") == 1;
  }
  CHECK(seen);
  t = conc_value_get(v, "total");
  CHECK_EQ(number(t, "threads"), 5);
  CHECK_EQ(number(t, "coroutines"), 6);
  conc_value_free(v);
  reap();
}

/* --- until when --- */

static void *want_for_long(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, 1000.0), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return arg;
}

/* The rest of the line that has these words, once there is one; to be freed. */
static char *rest_of(const char *words) {
  double end = conc_now() + 20;
  for (;;) {
    char *text = take(false);
    const char *p = strstr(text, words);
    if (p != NULL) {
      char *rest;
      p += strlen(words);
      rest = strndup(p, strcspn(p, "\n"));
      free(text);
      return rest;
    }
    if (conc_now() > end) TEST_FAIL("no \"%s\" in:\n%s", words, text);
    free(text);
    usleep(1000);
  }
}

static void *gather(void *arg) {
  CHECK_EQ(conc_gather((conc_task **)arg, 2, CONC_FOREVER), 0);
  return arg;
}

/* A wait that looks for a deadlock after a while does not end then. One that
   has a limit does not look, whatever has an owner. */
TEST(until_when_is_told_of_a_limit_alone) {
  conc_task limited, many;
  conc_task *both[2];
  char *rest;
  lock.name = "a";
  set_stop(false);
  thread(&holder, hold, NULL, "Holder");
  while (!conc_lock_locked(&lock)) usleep(1000);
  thread(&limited, want_for_long, NULL, "Limited");
  rest = rest_of("thread Limited: waits for lock 'a' held by Holder, since ");
  CHECK(strstr(rest, " s, until ") != NULL);
  free(rest);
  both[0] = &holder;
  both[1] = &limited;
  thread(&many, gather, both, "Many");
  rest = rest_of("thread Many: waits for several tasks or things");
  CHECK(strcmp(rest, ": the end of Holder; the end of Limited") == 0);
  free(rest);
  set_stop(true);
  CHECK_EQ(conc_join(&many, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&limited, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&holder, CONC_FOREVER), 0);
}

/* --- queues, pools, managers --- */

/* The only one of a list that is of this kind. */
static const conc_value *of_kind(const conc_value *report, const char *list,
                                 const char *kind) {
  const conc_value *all = conc_value_get(report, list);
  const conc_value *found = NULL;
  size_t i;
  CHECK(all != NULL);
  for (i = 0; i < conc_value_size(all); i++) {
    if (!is_word(conc_value_item(all, i), "kind", kind)) continue;
    CHECK(found == NULL);
    found = conc_value_item(all, i);
  }
  return found;
}

static conc_queue *new_queue(const char *name, size_t capacity, bool shared,
                             double lease) {
  conc_queue_opts opts;
  conc_queue *q;
  memset(&opts, 0, sizeof opts);
  opts.name = name;
  opts.capacity = capacity;
  opts.shared = shared;
  opts.lease = lease;
  q = conc_queue_new(&opts);
  CHECK(q != NULL);
  return q;
}

static void *put_one(void *arg) {
  CHECK_EQ(conc_put((conc_queue *)arg, "x", 1, CONC_FOREVER), 0);
  return arg;
}

static void *get_from(void *arg) {
  char c;
  CHECK_EQ(conc_get((conc_queue *)arg, &c, 1, CONC_FOREVER), 1);
  return arg;
}

/* Each queue is told of, also one for which nobody waits; and none that was
   freed. */
TEST(queues_are_told_with_their_numbers) {
  conc_queue *idle = new_queue("idle", 5, false, 0);
  conc_queue *full = new_queue("full", 1, false, 0);
  conc_queue *leased = new_queue("leased", 0, false, 60);
  conc_queue *shared = new_queue(NULL, 9, true, 0);
  conc_task putter, taker;
  conc_lease lease;
  conc_value *v;
  const conc_value *queues, *q;
  char c;
  CHECK_EQ(conc_put(idle, "a", 1, 0), 0);
  CHECK_EQ(conc_put(idle, "b", 1, 0), 0);
  CHECK_EQ(conc_get(idle, &c, 1, 0), 1);
  put_one(full);
  put_one(leased);
  put_one(shared);
  CHECK_EQ(conc_get_leased(leased, &lease, &c, 1, 0), 1);
  thread(&putter, put_one, full, "Putter");
  thread(&taker, get_from, leased, "Taker");
  await("thread Putter: waits for queue 'full', put");
  await("thread Taker: waits for queue 'leased', get");
  CHECK(says("queue 'idle': messages 1, getters 0, putters 0, put 2, got 1, "
             "capacity 5\n"));
  v = take_json();
  queues = conc_value_get(v, "queues");
  CHECK_EQ(conc_value_size(queues), 4);
  q = named(queues, "full");
  CHECK(number(q, "messages") == 1 && number(q, "putters") == 1);
  CHECK(number(q, "getters") == 0 && number(q, "capacity") == 1);
  q = named(queues, "leased");
  CHECK(number(q, "messages") == 0 && number(q, "leased") == 1);
  CHECK(number(q, "getters") == 1 && number(q, "put") == 1);
  CHECK(conc_value_get(q, "capacity") == NULL);
  q = of_kind(v, "queues", "shared queue");
  CHECK(number(q, "messages") == 1 && number(q, "capacity") == 9);
  conc_value_free(v);
  get_from(full);
  CHECK_EQ(conc_lease_release(&lease, 0), 0);
  CHECK_EQ(conc_join(&putter, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&taker, CONC_FOREVER), 0);
  conc_queue_free(idle);
  conc_queue_free(shared);
  conc_queue_free(leased);
  conc_queue_free(full);
  v = take_json();
  CHECK_EQ(conc_value_size(conc_value_get(v, "queues")), 0);
  conc_value_free(v);
}

static void *select_these(void *arg) {
  CHECK(conc_select((conc_case *)arg, 3, CONC_FOREVER) >= 0);
  return arg;
}

TEST(what_a_select_waits_for_is_named) {
  static conc_event event;
  conc_queue *q = new_queue("jobs", 0, false, 0);
  conc_case cases[3];
  conc_task selector;
  conc_value *v;
  const conc_value *several;
  char c;
  memset(cases, 0, sizeof cases);
  event.name = "quit";
  cases[0].get = q;
  cases[0].buf = &c;
  cases[0].size = 1;
  cases[1].event = &event;
  set_stop(false);
  thread(&holder, hold, NULL, "Holder");
  cases[2].join = &holder;
  thread(&selector, select_these, cases, "Selector");
  await("thread Selector: waits for several tasks or things: queue 'jobs', "
        "get; event 'quit'; the end of Holder\n");
  v = take_json();
  several = conc_value_get(conc_value_get(find(v, "Selector"), "waits_for"),
                           "several");
  CHECK_EQ(conc_value_size(several), 3);
  CHECK(is_word(named(several, "jobs"), "for", "get"));
  CHECK(is_word(named(several, "Holder"), "what", "the end"));
  conc_value_free(v);
  conc_event_set(&event);
  CHECK_EQ(conc_join(&selector, CONC_FOREVER), 0);
  set_stop(true);
  CHECK_EQ(conc_join(&holder, CONC_FOREVER), 0);
  conc_queue_free(q);
}

static void *wait_for_stop(void *arg) {
  while (!stopped()) CHECK_EQ(conc_sleep(0.001), 0);
  return arg;
}

/* A worker each has a job, and three more jobs wait. */
static void look_at_pool(int kind, const char *name) {
  conc_task jobs[5];
  conc_pool pool;
  double end = conc_now() + 20;
  bool seen = false;
  size_t i;
  memset(jobs, 0, sizeof jobs);
  memset(&pool, 0, sizeof pool);
  pool.kind = kind;
  pool.workers = 2;
  set_stop(false);
  CHECK_EQ(conc_pool_start(&pool), 0);
  for (i = 0; i < 5; i++) {
    jobs[i].target = kind == CONC_THREAD ? wait_for_stop : sleep_long;
    CHECK_EQ(conc_pool_submit(&pool, &jobs[i]), 0);
  }
  while (!seen && conc_now() < end) {
    conc_value *v = take_json();
    const conc_value *p = of_kind(v, "pools", name);
    CHECK_EQ(number(p, "workers"), 2);
    seen = number(p, "running") == 2 && number(p, "waiting") == 3;
    conc_value_free(v);
    usleep(1000);
  }
  CHECK(seen);
  set_stop(true);
  if (kind == CONC_THREAD) {
    for (i = 0; i < 5; i++) CHECK_EQ(conc_join(&jobs[i], CONC_FOREVER), 0);
    CHECK_EQ(conc_pool_close(&pool), 0);
  } else {
    CHECK_EQ(conc_pool_terminate(&pool), 0);
  }
  CHECK_EQ(conc_pool_join(&pool, CONC_FOREVER), 0);
  CHECK(!says(name));
}

TEST(pools_are_told_with_their_jobs) {
  look_at_pool(CONC_THREAD, "pool of threads");
  if (!TEST_TSAN) look_at_pool(CONC_PROCESS, "pool of processes");
}

TEST(managers_are_told_with_their_clients) {
  conc_manager server, client;
  conc_queue *q = new_queue("here", 0, false, 0);
  conc_value *v;
  int status;
  pid_t pid;
  memset(&server, 0, sizeof server);
  memset(&client, 0, sizeof client);
  server.address = "127.0.0.1:0";
  server.authkey = client.authkey = "key";
  CHECK_EQ(conc_manager_register_queue(&server, "there", q), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  client.address = conc_manager_address(&server);
  CHECK_EQ(conc_manager_connect(&client, CONC_FOREVER), 0);
  CHECK(conc_manager_get(&client, "there") != NULL);
  v = take_json();
  CHECK_EQ(number(of_kind(v, "managers", "server"), "clients"), 1);
  CHECK(is_word(of_kind(v, "managers", "client"), "name", client.address));
  CHECK(is_word(of_kind(v, "queues", "remote queue"), "name", "there"));
  conc_value_free(v);
  pid = fork(); /* they stay behind; the queue comes along */
  if (pid == 0) {
    v = take_json();
    if (conc_value_size(conc_value_get(v, "managers")) != 0) _exit(1);
    if (of_kind(v, "queues", "queue") == NULL) _exit(2);
    _exit(7);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&server), 0);
  conc_queue_free(q);
  v = take_json();
  CHECK_EQ(conc_value_size(conc_value_get(v, "managers")), 0);
  CHECK_EQ(conc_value_size(conc_value_get(v, "queues")), 0);
  conc_value_free(v);
}

/* --- the calls --- */

TEST(it_is_cut_as_by_snprintf) {
  char text[4096], part[12];
  ssize_t n = conc_report(text, sizeof text);
  CHECK(n > 12 && (size_t)n < sizeof text);
  CHECK_EQ(conc_report(NULL, 0), n);
  memset(part, 'x', sizeof part);
  CHECK_EQ(conc_report(part, 11), n);
  CHECK_EQ(part[10], 0);
  CHECK_EQ(part[11], 'x');
  CHECK_EQ(memcmp(part, text, 10), 0);
  CHECK(conc_report_json(part, 1) > 12);
  CHECK_EQ(part[0], 0);
}

TEST(names_that_are_no_text) {
  char longest[300];
  conc_task t;
  conc_value *v;
  set_stop(false);
  memset(longest, 'n', sizeof longest - 1);
  longest[sizeof longest - 1] = 0;
  thread(&t, compute, NULL, "a\"b\\c\n\377\303\244");
  await("thread a\"b\\c??\303\244: runs");
  v = take_json();
  CHECK(find(v, "a\"b\\c??\303\244") != NULL);
  conc_value_free(v);
  set_stop(true);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  set_stop(false);
  thread(&t, compute, NULL, longest);
  await("nnnn: runs");
  v = take_json();
  longest[100] = 0;
  CHECK(find(v, longest) != NULL);
  conc_value_free(v);
  set_stop(true);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}

static void *hold_this(void *arg) {
  conc_lock *l = (conc_lock *)arg;
  CHECK_EQ(conc_lock_acquire(l, CONC_FOREVER), 0);
  while (!stopped()) usleep(1000);
  CHECK_EQ(conc_lock_release(l), 0);
  return arg;
}

static void *want_this(void *arg) {
  CHECK_EQ(conc_lock_acquire((conc_lock *)arg, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release((conc_lock *)arg), 0);
  return arg;
}

/* An owner without letters counts once among those whose names are looked up,
   though it has several ids: so those behind it in the list are found. */
TEST(an_owner_whose_name_is_empty) {
  static const char *const owners[] = {"First", "Second", ""};
  static conc_lock locks[] = {{.name = "1"}, {.name = "2"}, {.name = "3"}};
  conc_task holds[3], wants[3];
  int i;
  set_stop(false);
  for (i = 0; i < 3; i++) { /* the last is the first in the list */
    thread(&holds[i], hold_this, &locks[i], owners[i]);
    while (!conc_lock_locked(&locks[i])) usleep(1000);
  }
  for (i = 0; i < 3; i++) thread(&wants[i], want_this, &locks[i], NULL);
  await("waits for lock '1' held by First, since ");
  await("waits for lock '2' held by Second, since ");
  await("waits for lock '3' held by , since ");
  set_stop(true);
  for (i = 0; i < 3; i++) {
    CHECK_EQ(conc_join(&holds[i], CONC_FOREVER), 0);
    CHECK_EQ(conc_join(&wants[i], CONC_FOREVER), 0);
  }
}

TEST(it_is_written_to_a_descriptor) {
  char text[4096];
  ssize_t n;
  int p[2];
  CHECK_EQ(pipe(p), 0);
  CHECK_EQ(conc_report_fd(p[1]), 0);
  n = read(p[0], text, sizeof text - 1);
  CHECK(n > 0);
  text[n] = 0;
  CHECK(strstr(text, "MainThread: runs\n") != NULL);
  CHECK(strcmp(text + n - 13, "processes 0\n") == 0 ||
        strstr(text, "total: threads 1, ") != NULL);
  close(p[0]);
  close(p[1]);
  CHECK_EQ(conc_report_fd(p[1]), -EBADF);
}

static void *wait_in_child(void *arg) {
  conc_sleep(1000);
  return arg;
}

TEST(processes_are_named) {
  conc_task p;
  conc_value *v;
  memset(&p, 0, sizeof p);
  p.target = wait_in_child;
  CHECK_EQ(conc_process_start(&p), 0);
  CHECK(says("process Process-1: pid "));
  v = take_json();
  CHECK_EQ(number(find(v, "Process-1"), "pid"), conc_pid(&p));
  CHECK(is_word(find(v, "Process-1"), "kind", "process"));
  conc_value_free(v);
  CHECK_EQ(conc_kill(&p), 0);
  CHECK_EQ(conc_join(&p, CONC_FOREVER), -ECHILD);
  CHECK(!says("Process-1"));
}

TEST(without_memory_it_says_so) {
  long n;
  ssize_t rc = -ENOMEM;
  plant_and_await();
  for (n = 1; rc == -ENOMEM; n++) {
    __atomic_store_n(&test_fail_at, n, __ATOMIC_RELAXED);
    rc = conc_report(NULL, 0);
  }
  __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
  CHECK(rc > 0 && n > 5);
  reap();
}

/* --- while tasks end --- */

/* A walker stands on a task of this loop, which ends. */
static void *walk_on(void *arg) {
  conc__loop *loop = conc__this.loop;
  conc__walker w;
  conc_task t[3];
  int i;
  for (i = 0; i < 3; i++) coro(&t[i], sleep_long, NULL, NULL);
  CHECK_EQ(conc_yield_now(), 0);
  memset(&w, 0, sizeof w);
  w.loop = loop;
  w.task = &t[1];
  conc__walkers = &w;
  loop->watched += CONC__LOOP_WALKER;
  conc_cancel(&t[1]);
  CHECK_EQ(conc_join(&t[1], CONC_FOREVER), -ECANCELED);
  CHECK(w.task == &t[0]);
  conc_cancel(&t[2]);
  CHECK_EQ(conc_join(&t[2], CONC_FOREVER), -ECANCELED);
  CHECK(w.task == &t[0]);
  conc_cancel(&t[0]);
  CHECK_EQ(conc_join(&t[0], CONC_FOREVER), -ECANCELED);
  CHECK(w.task == conc_current());
  loop->watched -= CONC__LOOP_WALKER;
  conc__walkers = NULL;
  return arg;
}

TEST(a_walker_leaves_what_ends) {
  conc_task main;
  memset(&main, 0, sizeof main);
  main.target = walk_on;
  CHECK_EQ(conc_run(&main), 0);
}

/* Leaves a loop in the middle, as pthread_exit() does where the handler of
   conc__loop_exit is lost. */
static void *leave_loop(void *arg) {
  conc__loop *loop = (conc__loop *)arg;
  CHECK_EQ(conc__loop_open(loop), 0);
  CONC__STORE(&conc__this.loop, loop);
  CONC__STORE(&conc__walkers->loop, loop);
  pthread_exit(NULL);
}

TEST(a_walker_leaves_the_loop_of_a_thread_that_ends) {
  conc_task t;
  conc__walker w;
  conc__loop *loop = (conc__loop *)calloc(1, sizeof *loop);
  memset(&w, 0, sizeof w);
  conc__walkers = &w;
  thread(&t, leave_loop, loop, NULL);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(w.loop == NULL);
  conc__walkers = NULL;
  conc__poller_stop(loop);
  free(loop);
}

static void *nothing(void *arg) { return arg; }

/* Coroutines that begin, wait for each other and end; some free themselves. */
static void *churn(void *arg) {
  conc_task t[8];
  char c;
  int i;
  while (!stopped()) {
    for (i = 0; i < 8; i++)
      coro(&t[i], i % 2 ? want : nothing, NULL, i % 3 ? NULL : "named");
    CHECK_EQ(conc_spawn(nothing, NULL), 0);
    CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
    CHECK_EQ(conc_yield_now(), 0);
    CHECK_EQ(conc_lock_release(&lock), 0);
    for (i = 0; i < 8; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
    CHECK_EQ(conc_put(queue, "x", 1, CONC_FOREVER), 0);
    CHECK_EQ(conc_get(queue, &c, 1, CONC_FOREVER), 1);
  }
  return arg;
}

/* Loops that begin and end, each in a thread that does. */
/* A queue comes and goes; and waits for several things are short. */
static void select_and_free(conc_task *t) {
  conc_queue *q = new_queue("churned", 0, false, 0);
  conc_case cases[2];
  ssize_t rc;
  memset(cases, 0, sizeof cases);
  cases[0].get = q;
  cases[1].join = t;
  rc = conc_select(cases, 2, 1e-4);
  CHECK(rc == 1 || rc == -ETIMEDOUT);
  conc_queue_free(q);
}

static void *churn_threads(void *arg) {
  while (!stopped()) {
    conc_task t, inner;
    memset(&inner, 0, sizeof inner);
    inner.target = nothing;
    thread(&t, run_one, &inner, NULL);
    select_and_free(&t);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  return arg;
}

TEST(reports_while_all_else_begins_and_ends) {
  conc_task loops[2], root[2], threads, others;
  int i, forks = TEST_TSAN ? 0 : 3;
  conc_queue_opts opts;
  memset(&opts, 0, sizeof opts);
  queue = conc_queue_new(&opts);
  lock.name = "a";
  set_stop(false);
  for (i = 0; i < 2; i++) {
    memset(&root[i], 0, sizeof root[i]);
    root[i].target = churn;
    thread(&loops[i], run_one, &root[i], NULL);
  }
  thread(&threads, churn_threads, NULL, "threads");
  thread(&others, churn_threads, NULL, "others");
  for (i = 0; i < 150; i++) {
    conc_value *v = take_json();
    CHECK(find(v, "threads") != NULL);
    conc_value_free(v);
    if (i % 50 == 49 && forks-- > 0) {
      int status;
      pid_t pid = fork();
      if (pid == 0) {
        CHECK(says("total: threads 1, coroutines 0, processes 0"));
        _exit(7);
      }
      CHECK_EQ(waitpid(pid, &status, 0), pid);
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
  }
  set_stop(true);
  for (i = 0; i < 2; i++) CHECK_EQ(conc_join(&loops[i], CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&threads, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&others, CONC_FOREVER), 0);
  conc_queue_free(queue);
}

/* --- very many ---

   More would need a limit on mappings (vm.max_map_count) above the usual one,
   where each guard is a mapping of its own. */

enum { MANY = TEST_TSAN ? 500 : TEST_ASAN ? 5000 : 20000 };

static void *start_many(void *arg) {
  conc_task *t = (conc_task *)arg;
  int i;
  for (i = 0; i < MANY; i++) {
    t[i].target = sleep_long;
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (i = 0; i < 3; i++) CHECK_EQ(conc_yield_now(), 0);
  CHECK_EQ(conc_sleep(1000), -ECANCELED);
  for (i = 0; i < MANY; i++) conc_cancel(&t[i]);
  for (i = 0; i < MANY; i++)
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), -ECANCELED);
  return arg;
}

static void *run_many(void *arg) {
  CHECK_EQ(conc_run((conc_task *)arg), -ECANCELED);
  return arg;
}

/* All are told, once, by name; more than one portion is needed for it. */
TEST(twenty_thousand) {
  conc_task *t = (conc_task *)calloc(MANY, sizeof *t);
  conc_task root, loop;
  char last[80];
  char *text;
  const char *p;
  int n = 0;
  memset(&root, 0, sizeof root);
  root.target = start_many;
  root.arg = t;
  thread(&loop, run_many, &root, NULL);
  snprintf(last, sizeof last, "coroutines %d, processes 0\n", MANY + 1);
  await("coroutine Task-1: sleeps");
  await(last);
  text = take(false);
  for (p = text; (p = strstr(p, "  coroutine Task-")) != NULL; p++) n++;
  CHECK_EQ(n, MANY + 1);
  free(text);
  CHECK_EQ(conc_cancel(&root), 0);
  CHECK_EQ(conc_join(&loop, CONC_FOREVER), 0);
  free(t);
}

/* --- a signal --- */

/* Reads what comes until it has the last line of a report. */
static void read_report(int fd, char *text, size_t size) {
  size_t n = 0;
  do {
    ssize_t got = read(fd, text + n, size - 1 - n);
    CHECK(got > 0);
    n += (size_t)got;
    text[n] = 0;
  } while (strstr(text, "total: ") == NULL || text[n - 1] != '\n');
}

static void own_handler(int number) { (void)number; }

static void signal_in_children(int fd, char *text, size_t size) {
  int status;
  pid_t pid;
  /* A child has no such thread. */
  pid = fork();
  if (pid == 0) {
    kill(getpid(), SIGQUIT);
    _exit(1);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGQUIT);
  /* But it can make a call of its own. */
  pid = fork();
  if (pid == 0) {
    if (conc_report_on_signal(SIGQUIT) != 0) _exit(2);
    kill(getpid(), SIGQUIT);
    read_report(fd, text, size);
    _exit(conc_report_on_signal(0) == 0 ? 7 : 3);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

TEST(a_signal_has_it_written) {
  static char text[ROOM];
  struct sigaction now;
  int p[2], errors, i;
  signal(SIGQUIT, own_handler);
  CHECK_EQ(pipe(p), 0);
  errors = dup(2);
  CHECK_EQ(dup2(p[1], 2), 2);
  CHECK_EQ(conc_report_on_signal(SIGQUIT), 0);
  CHECK_EQ(conc_report_on_signal(SIGUSR1), -EBUSY);
  for (i = 0; i < 3; i++) {
    CHECK_EQ(kill(getpid(), SIGQUIT), 0);
    read_report(p[0], text, sizeof text);
    CHECK(strstr(text, "thread conc-report: runs\n") != NULL);
  }
  /* ThreadSanitizer holds signals back, and allows a forked child no thread. */
  if (!TEST_TSAN) signal_in_children(p[0], text, sizeof text);
  CHECK_EQ(conc_report_on_signal(0), 0);
  CHECK_EQ(dup2(errors, 2), 2);
  CHECK_EQ(sigaction(SIGQUIT, NULL, &now), 0);
  CHECK(now.sa_handler == own_handler);
  CHECK_EQ(conc_report_on_signal(SIGKILL), -EINVAL);
  CHECK_EQ(conc_report_on_signal(0), 0);
  close(errors);
  close(p[0]);
  close(p[1]);
}

/* Once the thread has taken the signal, it writes before it ends. */
static void report_to_nobody(void) {
  struct pollfd waker;
  int p[2];
  if (pipe(p) != 0 || dup2(p[1], 2) != 2) _exit(1);
  close(p[0]);
  signal(SIGPIPE, SIG_DFL);
  if (conc_report_on_signal(SIGQUIT) != 0) _exit(2);
  kill(getpid(), SIGQUIT);
  waker.fd = conc__report_call.waker[0];
  waker.events = POLLIN;
  while (poll(&waker, 1, 0) > 0) usleep(1000);
  _exit(conc_report_on_signal(0) == 0 ? 7 : 3);
}

TEST(a_signal_with_nobody_to_read_it) {
  int status;
  pid_t pid;
  if (TEST_TSAN) SKIP("ThreadSanitizer allows a forked child no thread");
  pid = fork();
  if (pid == 0) report_to_nobody();
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

TEST_MAIN
