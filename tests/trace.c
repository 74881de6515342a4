/* conc_trace_start: what is in the file, read by conc.h's own JSON and by that
   of Python; and that threads go on as they like meanwhile. */
#include "test.h"

#include "inside.h"
#include "tasks.h"

/* --- reading a trace --- */

static char trace_path[64];

/* A name for a file of this test, in the folder for such. */
static const char *trace_name(const char *what) {
  snprintf(trace_path, sizeof trace_path, "/tmp/conc-trace-%ld-%s.json",
           (long)getpid(), what);
  return trace_path;
}

static const char *text_of(const conc_value *event, const char *key) {
  const char *s = conc_value_str(conc_value_get(event, key), NULL);
  return s != NULL ? s : "";
}

static double number_of(const conc_value *event, const char *key) {
  double f = -1;
  int64_t i;
  const conc_value *v = conc_value_get(event, key);
  if (conc_value_int(v, &i) == 0) return (double)i;
  return conc_value_float(v, &f) == 0 ? f : -1;
}

static bool is_phase(const conc_value *event, char phase) {
  return text_of(event, "ph")[0] == phase;
}

/* The whole file, which is removed. */
static char *trace_text(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  char *text;
  long n;
  CHECK(file != NULL);
  CHECK(fseek(file, 0, SEEK_END) == 0 && (n = ftell(file)) > 0);
  rewind(file);
  text = (char *)test_malloc((size_t)n);
  CHECK_EQ(fread(text, 1, (size_t)n, file), n);
  fclose(file);
  unlink(path);
  *size = (size_t)n;
  return text;
}

static bool is_text(const conc_value *event, const char *key) {
  const conc_value *v = conc_value_get(event, key);
  return v != NULL && conc_value_type(v) == CONC_STR;
}

/* What the Trace Event Format demands of an event alone, by its phase. */
static void check_event(const conc_value *e) {
  const conc_value *args = conc_value_get(e, "args");
  int64_t n;
  double f;
  CHECK_EQ(conc_value_type(e), CONC_DICT);
  CHECK(is_text(e, "ph") && strlen(text_of(e, "ph")) == 1);
  CHECK(strchr("BEsfbeCMi", text_of(e, "ph")[0]) != NULL);
  CHECK(is_text(e, "name"));
  CHECK_EQ(conc_value_int(conc_value_get(e, "pid"), &n), 0);
  CHECK_EQ(conc_value_int(conc_value_get(e, "tid"), &n), 0);
  CHECK_EQ(conc_value_float(conc_value_get(e, "ts"), &f), 0);
  if (strchr("sfbe", text_of(e, "ph")[0]) != NULL)
    CHECK(is_text(e, "id") && is_text(e, "cat"));
  if (is_phase(e, 'f')) CHECK_STR(text_of(e, "bp"), "e");
  if (is_phase(e, 'C') || is_phase(e, 'M')) {
    CHECK(args != NULL && conc_value_type(args) == CONC_DICT);
    if (is_phase(e, 'M'))
      CHECK(is_text(args, "name"));
    else
      CHECK_EQ(conc_value_int(conc_value_get(args, "messages"), &n), 0);
  }
}

/* Checks what is true of every trace, and returns its events. In each row the
   times do not fall, and each end is that of a span: all have one. An arrow's
   two halves stand together, and it does not point back in time. */
static conc_value *trace_load(const char *path) {
  size_t size, i, n;
  char *text = trace_text(path, &size);
  conc_value *v;
  double row = -1, last = 0;
  long depth = 0;
  CHECK_EQ(conc_json_loads(&v, text, size, NULL), 0);
  test_free(text);
  CHECK_EQ(conc_value_type(v), CONC_LIST);
  n = conc_value_size(v);
  for (i = 0; i < n; i++) {
    const conc_value *e = conc_value_item(v, i);
    check_event(e);
    if (is_phase(e, 'b')) { /* a span that is no row's, and its end */
      CHECK(is_phase(conc_value_item(v, i + 1), 'e'));
      CHECK_STR(text_of(conc_value_item(v, i + 1), "id"), text_of(e, "id"));
    }
    if (is_phase(e, 'e')) CHECK(is_phase(conc_value_item(v, i - 1), 'b'));
    CHECK(number_of(e, "pid") == getpid());
    CHECK(number_of(e, "tid") >= 0 && number_of(e, "ts") > 0);
    if (is_phase(e, 's')) {
      const conc_value *f = conc_value_item(v, i + 1);
      CHECK(is_phase(f, 'f'));
      CHECK_STR(text_of(f, "id"), text_of(e, "id"));
      CHECK_STR(text_of(f, "name"), text_of(e, "name"));
      CHECK_STR(text_of(f, "cat"), text_of(e, "cat"));
      CHECK(number_of(f, "ts") >= number_of(e, "ts"));
    }
    if (is_phase(e, 'f')) CHECK(is_phase(conc_value_item(v, i - 1), 's'));
    if (!is_phase(e, 'B') && !is_phase(e, 'E')) continue;
    if (number_of(e, "tid") != row) {
      CHECK_EQ(depth, 0); /* all of the row before have ended */
      row = number_of(e, "tid");
      last = 0;
    }
    CHECK(number_of(e, "ts") >= last);
    last = number_of(e, "ts");
    depth += is_phase(e, 'B') ? 1 : -1;
    CHECK(depth >= 0);
  }
  CHECK_EQ(depth, 0);
  return v;
}

/* How many events of a phase have this name, in a row or (-1) in all. */
static int events(const conc_value *v, char phase, const char *name,
                  double row) {
  size_t i;
  int count = 0;
  for (i = 0; i < conc_value_size(v); i++) {
    const conc_value *e = conc_value_item(v, i);
    count += is_phase(e, phase) && strcmp(text_of(e, "name"), name) == 0 &&
             (row < 0 || number_of(e, "tid") == row);
  }
  return count;
}

/* How many events there are of a phase. */
static int phases(const conc_value *v, char phase) {
  size_t i;
  int count = 0;
  for (i = 0; i < conc_value_size(v); i++)
    count += is_phase(conc_value_item(v, i), phase);
  return count;
}

/* The row of this name. */
static double row_of(const conc_value *v, const char *name) {
  size_t i;
  for (i = 0; i < conc_value_size(v); i++) {
    const conc_value *e = conc_value_item(v, i);
    if (is_phase(e, 'M') &&
        strcmp(text_of(conc_value_get(e, "args"), "name"), name) == 0)
      return number_of(e, "tid");
  }
  TEST_FAIL("there is no row '%s'", name);
  return -1;
}

/* Whether an arrow goes from one row to another. */
static bool arrow(const conc_value *v, const char *name, double from,
                  double to) {
  size_t i;
  for (i = 1; i < conc_value_size(v); i++)
    if (is_phase(conc_value_item(v, i), 'f') &&
        strcmp(text_of(conc_value_item(v, i), "name"), name) == 0 &&
        number_of(conc_value_item(v, i), "tid") == to &&
        number_of(conc_value_item(v, i - 1), "tid") == from)
      return true;
  return false;
}

/* Whether a row has a span of this name. */
static bool does(const conc_value *v, const char *row, const char *name) {
  return events(v, 'B', name, row_of(v, row)) > 0;
}

/* --- what tasks do --- */

static conc_lock lock;
static conc_queue *tasks;
static int ends[2];

/* The actor sleeps, or is about to. */
static void until_parked(conc_task *t) {
  conc__actor *actor;
  while ((actor = LOAD(t->actor)) == NULL || actor == CONC__NEVER_BEGIN ||
         !(LOAD(actor->word) & CONC__PARKED))
    conc_sleep(1e-4);
}

static void *takes_lock(void *arg) {
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  return arg;
}

static void *gets(void *arg) {
  int n;
  CHECK_EQ(conc_get(tasks, &n, sizeof n, CONC_FOREVER), sizeof n);
  return arg;
}

static void *reads_pipe(void *arg) {
  char c;
  CHECK_EQ(conc_read(ends[0], &c, 1, CONC_FOREVER), 1);
  return arg;
}

static void *sleeps(void *arg) {
  conc_sleep(1e-3);
  return arg;
}

static void *joins(void *arg) {
  conc_join((conc_task *)arg, CONC_FOREVER);
  return NULL;
}

static conc_task make(conc_fn *fn, void *arg, const char *name) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = fn;
  t.arg = arg;
  t.name = name;
  return t;
}

/* Five tasks wait, each for something else, until this one lets them go. */
static void waits_are_named(int (*how)(conc_task *t)) {
  conc_task t[5];
  int i, n = 1;
  t[0] = make(takes_lock, NULL, "locker");
  t[1] = make(gets, NULL, "getter");
  t[2] = make(reads_pipe, NULL, "reader");
  t[3] = make(joins, &t[0], "joiner");
  t[4] = make(sleeps, NULL, "sleeper");
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  for (i = 0; i < 5; i++) CHECK_EQ(how(&t[i]), 0);
  for (i = 0; i < 4; i++) until_parked(&t[i]);
  CHECK_EQ(conc_lock_release(&lock), 0);
  CHECK_EQ(conc_put(tasks, &n, sizeof n, CONC_FOREVER), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  for (i = 0; i < 5; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
}

static void *waits_of_coroutines(void *arg) {
  waits_are_named(conc_coro_start);
  return arg;
}

/* `main` is the row of the task that let the others go. */
static void check_waits(const char *path, const char *main_row) {
  conc_value *v;
  char text[64];
  double row;
  CHECK_EQ(conc_trace_stop(), 0);
  v = trace_load(path);
  row = row_of(v, main_row);
  CHECK(does(v, "locker", "waits for lock 'gate'"));
  CHECK(does(v, "getter", "waits for queue 'tasks'"));
  snprintf(text, sizeof text, "waits for descriptor %d for reading", ends[0]);
  CHECK(does(v, "reader", text));
  CHECK(does(v, "joiner", "waits for the end of a task"));
  CHECK(does(v, "sleeper", "sleeps"));
  CHECK(arrow(v, "wakes", row, row_of(v, "locker")));
  CHECK(arrow(v, "wakes", row, row_of(v, "getter")));
  CHECK(arrow(v, "wakes", row_of(v, "locker"), row_of(v, "joiner")));
  CHECK(arrow(v, "starts", row, row_of(v, "reader")));
  CHECK_EQ(events(v, 'B', "locker", row_of(v, "locker")), 1);
  CHECK(events(v, 'C', "queue 'tasks'", -1) > 0);
  conc_value_free(v);
}

static void begin_waits(const char *path) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.name = "tasks";
  lock.name = "gate";
  tasks = conc_queue_new(&o);
  CHECK(tasks != NULL && pipe(ends) == 0);
  CHECK_EQ(conc_trace_start(path, 0), 0);
}

static void end_waits(void) {
  conc_queue_free(tasks);
  close(ends[0]), close(ends[1]);
}

TEST(the_waits_of_threads_are_named) {
  const char *path = trace_name("threads");
  begin_waits(path);
  waits_are_named(conc_thread_start);
  check_waits(path, "MainThread");
  end_waits();
}

TEST(the_waits_of_coroutines_are_named) {
  const char *path = trace_name("coroutines");
  conc_task m = make(waits_of_coroutines, NULL, "leader");
  begin_waits(path);
  CHECK_EQ(conc_run(&m), 0);
  check_waits(path, "leader");
  end_waits();
}

/* --- processes, pools, programs --- */

static void *returns(void *arg) { return arg; }

/* A job of threads is a span in its worker's row; what another process does is
   a span of its own. */
TEST(jobs_and_processes_are_spans) {
  const char *path = trace_name("jobs");
  static const char *program[] = {"true", NULL};
  conc_task child = make(returns, NULL, "a child");
  conc_popen runs;
  conc_value *v;
  int kind;
  memset(&runs, 0, sizeof runs);
  runs.argv = program;
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_process_start(&child), 0);
  CHECK_EQ(conc_join(&child, CONC_FOREVER), 0);
  CHECK_EQ(conc_popen_start(&runs), 0);
  CHECK_EQ(conc_popen_wait(&runs, CONC_FOREVER), 0);
  conc_popen_close(&runs);
  for (kind = 0; kind < 2; kind++) {
    conc_task job = make(returns, NULL, kind == 0 ? "near" : "far");
    conc_pool p;
    memset(&p, 0, sizeof p);
    p.kind = kind == 0 ? CONC_THREAD : CONC_PROCESS;
    p.workers = 1;
    CHECK_EQ(conc_pool_start(&p), 0);
    CHECK_EQ(conc_pool_submit(&p, &job), 0);
    CHECK_EQ(conc_join(&job, CONC_FOREVER), 0);
    CHECK_EQ(conc_pool_close(&p), 0);
    CHECK_EQ(conc_pool_join(&p, CONC_FOREVER), 0);
  }
  CHECK_EQ(conc_trace_stop(), 0);
  v = trace_load(path);
  CHECK_EQ(events(v, 'b', "a child", -1), 1);
  CHECK_EQ(events(v, 'e', "a child", -1), 1);
  CHECK_EQ(events(v, 'b', "true", -1), 1); /* a program, by its argv[0] */
  CHECK_EQ(events(v, 'B', "near", -1), 1);
  CHECK_EQ(events(v, 'b', "near", -1), 0);
  CHECK_EQ(events(v, 'b', "far", -1), 1);
  CHECK_EQ(events(v, 'e', "far", -1), 1);
  conc_value_free(v);
}

/* The first or the last time of a row's spans. */
static double row_time(const conc_value *v, const char *row, bool last) {
  double id = row_of(v, row), time = -1;
  size_t i;
  for (i = 0; i < conc_value_size(v); i++) {
    const conc_value *e = conc_value_item(v, i);
    if (!is_phase(e, last ? 'E' : 'B') || number_of(e, "tid") != id) continue;
    if (last || time < 0) time = number_of(e, "ts");
  }
  return time;
}

static void *starts_two(void *arg) {
  conc_task *t = (conc_task *)arg;
  int i;
  for (i = 0; i < 2; i++) CHECK_EQ(conc_coro_start(&t[i]), 0);
  for (i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}

/* The second one begins on the stack of the first, which has ended, without a
   switch. */
TEST(a_row_ends_with_its_coroutine) {
  const char *path = trace_name("rows");
  conc_task t[2], m = make(starts_two, t, "leader");
  conc_value *v;
  t[0] = make(returns, NULL, "first");
  t[1] = make(returns, NULL, "second");
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_run(&m), 0);
  CHECK_EQ(conc_trace_stop(), 0);
  v = trace_load(path);
  CHECK(row_time(v, "first", true) <= row_time(v, "second", false));
  CHECK(row_time(v, "second", true) <= row_time(v, "leader", true));
  conc_value_free(v);
}

/* A program that could not be started has no span. */
TEST(a_start_that_fails_is_no_span) {
  const char *path = trace_name("failed");
  static const char *nothing[] = {"/nowhere/at/all", NULL};
  conc_popen runs;
  conc_value *v;
  memset(&runs, 0, sizeof runs);
  runs.argv = nothing;
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_popen_start(&runs), -ENOENT);
  CHECK_EQ(conc_trace_stop(), 0);
  v = trace_load(path);
  CHECK_EQ(phases(v, 'b'), 0);
  conc_value_free(v);
}

TEST(the_calls_of_a_server_are_spans) {
  const char *path = trace_name("calls");
  char address[64], name[80];
  conc_manager server, client;
  conc_queue_opts o;
  conc_value *v;
  conc_queue *q, *far;
  int n = 7;
  memset(&o, 0, sizeof o);
  memset(&server, 0, sizeof server);
  memset(&client, 0, sizeof client);
  snprintf(address, sizeof address, "/tmp/conc-trace-%ld", (long)getpid());
  server.address = client.address = address;
  server.authkey = client.authkey = "key";
  q = conc_queue_new(&o);
  CHECK_EQ(conc_manager_register_queue(&server, "get_queue", q), 0);
  CHECK_EQ(conc_manager_start(&server), 0);
  CHECK_EQ(conc_manager_connect(&client, 10), 0);
  CHECK((far = conc_manager_get(&client, "get_queue")) != NULL);
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_put(far, &n, sizeof n, 10), 0);
  CHECK_EQ(conc_qsize(far), 1);
  CHECK_EQ(conc_trace_stop(), 0);
  conc_manager_shutdown(&client);
  conc_manager_shutdown(&server);
  conc_queue_free(q);
  v = trace_load(path);
  snprintf(name, sizeof name, "call of %s", address);
  name[strlen("call of ") + CONC__TRACE_TEXT - 1] = 0;
  CHECK(events(v, 'B', name, row_of(v, "MainThread")) > 0);
  conc_value_free(v);
}

/* --- rings --- */

/* A ring with room for 16 events keeps the last; the file says how many it does
   not have, and is whole all the same. */
TEST(a_full_ring_loses_the_oldest) {
  const char *path = trace_name("full");
  conc_queue *q = conc_queue_new(NULL);
  conc_value *v;
  ssize_t lost;
  size_t i;
  double told = 0, most = 0;
  CHECK_EQ(conc_trace_start(path, 16 * sizeof(conc__trace_event)), 0);
  for (i = 0; i < 100; i++) CHECK_EQ(conc_put(q, &i, sizeof i, 0), 0);
  lost = conc_trace_stop();
  CHECK_EQ(lost, 1 + 100 - 16); /* and one that says whose row it is */
  v = trace_load(path);
  for (i = 0; i < conc_value_size(v); i++) {
    const conc_value *e = conc_value_item(v, i);
    double n = number_of(conc_value_get(e, "args"), "messages");
    if (strcmp(text_of(e, "name"), "events lost") == 0)
      told = number_of(conc_value_get(e, "args"), "lost");
    if (!is_phase(e, 'C')) continue;
    CHECK(n == (most > 0 ? most + 1 : 100 - 16 + 1));
    most = n;
  }
  CHECK_EQ(most, 100);
  CHECK_EQ(told, lost);
  conc_value_free(v);
  conc_queue_free(q);
}

/* The events of a row are sorted by their times: so no two are the same, even
   where the clock stands still, a year after its beginning. */
TEST(each_event_has_a_later_time) {
  static const double times[] = {1, 1e3, 3e7, 16777216, 1e9};
  const char *path = trace_name("clock");
  conc__trace_ring *ring;
  size_t i;
  CHECK_EQ(conc_trace_start(path, 0), 0);
  ring = conc__trace_enter();
  for (i = 0; i < sizeof times / sizeof *times; i++) {
    conc__trace_event *e;
    ring->last = times[i];
    e = conc__trace_add(ring, CONC__TRACE_QUEUE, conc__this.id, times[i]);
    CHECK(e->time > times[i] && e->time < times[i] + 1e-6);
  }
  conc__trace_done(ring);
  CHECK_EQ(conc_trace_stop(), 0);
  unlink(path);
}

TEST(a_name_that_is_cut_stays_text) {
  const char *path = trace_name("names");
  conc_task t[3];
  conc_value *v;
  int i;
  /* 25 bytes, and an accent of two, of which one has room; bytes that are no
     text; and what JSON must not have as it is. */
  t[0] = make(sleeps, NULL, "0123456789012345678901234\303\251");
  t[1] = make(sleeps, NULL, "\377\300 x");
  t[2] = make(sleeps, NULL, "a \"b\" \\ \n\303\251");
  CHECK_EQ(conc_trace_start(path, 0), 0);
  for (i = 0; i < 3; i++) CHECK_EQ(conc_thread_start(&t[i]), 0);
  for (i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(conc_trace_stop(), 0);
  v = trace_load(path);
  CHECK(does(v, "0123456789012345678901234?", "sleeps"));
  CHECK(does(v, "?? x", "sleeps"));
  CHECK(does(v, "a \"b\" \\ \n\303\251", "sleeps"));
  conc_value_free(v);
}

/* --- errors --- */

TEST(a_trace_starts_once) {
  const char *path = trace_name("once");
  CHECK_EQ(conc_trace_stop(), -EINVAL);
  CHECK_EQ(conc_trace_start(NULL, 0), -EINVAL);
  CHECK_EQ(conc_trace_start("/no/such/folder/x", 0), -ENOENT);
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_trace_start(path, 0), -EBUSY);
  CHECK_EQ(conc_trace_stop(), 0);
  CHECK_EQ(conc_trace_stop(), -EINVAL);
  conc_value_free(trace_load(path));
}

#ifdef __linux__
TEST(a_full_disk_is_told) {
  CHECK_EQ(conc_trace_start("/dev/full", 0), 0);
  conc_sleep(1e-6);
  CHECK_EQ(conc_trace_stop(), -ENOSPC);
  CHECK_EQ(conc_trace_stop(), -EINVAL); /* it has ended all the same */
}
#endif

TEST(no_memory_to_sort_is_told) {
  const char *path = trace_name("memory");
  CHECK_EQ(conc_trace_start(path, 0), 0);
  conc_sleep(1e-6);
  test_fail_at = 1;
  CHECK_EQ(conc_trace_stop(), -ENOMEM);
  test_fail_at = 0;
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_trace_stop(), 0);
  conc_value_free(trace_load(path));
}

/* --- other threads go on --- */

static unsigned over;

static void *is_busy(void *arg) {
  conc_queue *q = (conc_queue *)arg;
  int n = 1;
  while (!LOAD(over)) {
    conc_task t = make(returns, NULL, NULL);
    CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
    conc_yield_now();
    CHECK_EQ(conc_lock_release(&lock), 0);
    CHECK_EQ(conc_put(q, &n, sizeof n, CONC_FOREVER), 0);
    CHECK_EQ(conc_get(q, &n, sizeof n, CONC_FOREVER), sizeof n);
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  return NULL;
}

static void *is_busy_as_coroutines(void *arg) {
  conc_task c[2];
  int i;
  for (i = 0; i < 2; i++) {
    c[i] = make(is_busy, arg, NULL);
    CHECK_EQ(conc_coro_start(&c[i]), 0);
  }
  for (i = 0; i < 2; i++) CHECK_EQ(conc_join(&c[i], CONC_FOREVER), 0);
  return NULL;
}

static void *runs_busy_loop(void *arg) {
  conc_task m = make(is_busy_as_coroutines, arg, NULL);
  CHECK_EQ(conc_run(&m), 0);
  return NULL;
}

/* Traces begin and end while threads and coroutines do all that is noted; each
   file is right. */
TEST(traces_begin_and_end_while_others_run) {
  const char *path = trace_name("busy");
  conc_queue *q = conc_queue_new(NULL);
  conc_task t[4];
  int i;
  for (i = 0; i < 4; i++) {
    t[i] = make(i < 2 ? is_busy : runs_busy_loop, q, NULL);
    CHECK_EQ(conc_thread_start(&t[i]), 0);
  }
  for (i = 0; i < 20; i++) {
    CHECK_EQ(conc_trace_start(path, (size_t)1 << (i % 2 ? 12 : 16)), 0);
    conc_sleep(2e-3);
    CHECK(conc_trace_stop() >= 0);
    conc_value_free(trace_load(path));
  }
  STORE(over, 1);
  for (i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  conc_queue_free(q);
}

/* A child has no trace, nor its file's descriptor, and may start its own. The
   parent's goes on. */
TEST(a_child_has_no_trace) {
  const char *path = trace_name("parent");
  conc_queue *q = conc_queue_new(NULL);
  char own[80];
  conc_value *v;
  int status;
  pid_t pid;
  NEEDS_FORK;
  CHECK_EQ(conc_trace_start(path, 0), 0);
  CHECK_EQ(conc_put(q, "a", 1, 0), 0);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_CHILD(conc_put(q, "b", 1, 0) == 0);
    CHECK_CHILD(conc_trace_stop() == -EINVAL);
    CHECK_CHILD(fcntl(conc__trace.fd, F_GETFD) < 0);
    snprintf(own, sizeof own, "%s.child", path);
    CHECK_CHILD(conc_trace_start(own, 0) == 0);
    CHECK_CHILD(conc_put(q, "c", 1, 0) == 0);
    CHECK_CHILD(conc_trace_stop() == 0);
    v = trace_load(own);
    CHECK_CHILD(phases(v, 'C') == 1);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK_EQ(conc_put(q, "d", 1, 0), 0);
  CHECK_EQ(conc_trace_stop(), 0);
  v = trace_load(path);
  CHECK_EQ(phases(v, 'C'), 2);
  conc_value_free(v);
  conc_queue_free(q);
}

/* --- what others make of it --- */

/* As the manual says it: two files become one by their lines. */
TEST(files_are_joined_and_python_reads_them) {
  static const char join[] =
      "(echo '['; grep -h '^{' %s.1 %s.2 | sed '$!s/}$/},/'; echo ']') >%s &&"
      "python3 -c \"import json, sys; t = json.load(open(sys.argv[1])); "
      "assert len([e for e in t if e['name'] == 'trace begins']) == 2\" %s";
  const char *path = trace_name("joined");
  char text[1024], part[80];
  int i;
  if (system("python3 -c 'import json' 2>/dev/null") != 0)
    SKIP("there is no Python");
  for (i = 1; i <= 2; i++) {
    snprintf(part, sizeof part, "%s.%d", path, i);
    CHECK_EQ(conc_trace_start(part, 0), 0);
    conc_sleep(1e-6);
    CHECK_EQ(conc_trace_stop(), 0);
  }
  snprintf(text, sizeof text, join, path, path, path, path);
  CHECK_EQ(system(text), 0);
  unlink(path);
  for (i = 1; i <= 2; i++) {
    snprintf(part, sizeof part, "%s.%d", path, i);
    unlink(part);
  }
}

TEST_MAIN
