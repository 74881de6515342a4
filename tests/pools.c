/* Pools that clients make, as those of Python's SyncManager: what they call,
   how long they live, and what of them is bounded. tests/interop/pools.py
   compares them with Python's own. */
#include "inside.h"
#include "asked.h"

#include <pthread.h>

/* --- functions --- */

static int square(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  int n;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(i)", &n) != 0)
    return conc_manager_raise(result, "TypeError", "square() takes an int");
  if (n == 3) return conc_manager_raise(result, "IndexError", "no 3");
  return conc_build(result, "i", n * n);
}

/* Returns (args, kwds). */
static int echo(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)arg;
  return conc_build(result, "(OO)", args, kwds);
}

/* many(n): n bytes. */
static int many(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  int n, rc;
  char *bytes;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(i)", &n) != 0) return -EINVAL;
  bytes = (char *)calloc(1, (size_t)n);
  rc = conc_build(result, "y#", bytes, (size_t)n);
  free(bytes);
  return rc;
}

/* Ends its thread for 3, and else returns its argument. */
static int leave(const conc_value *args, const conc_value *kwds,
                 conc_value **result, void *arg) {
  int n;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(i)", &n) != 0) return -EINVAL;
  if (n == 3) pthread_exit(NULL);
  return conc_build(result, "i", n);
}

/* Where calls are: they begin, and wait to be let go. */
typedef struct gate {
  conc_sem begun;
  conc_event go;
  int calls, cancelled;
} gate;

static int pass(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  gate *g = (gate *)arg;
  int rc;
  (void)kwds;
  __atomic_add_fetch(&g->calls, 1, __ATOMIC_SEQ_CST);
  conc_sem_release(&g->begun, 1);
  rc = conc_event_wait(&g->go, CONC_FOREVER);
  if (rc == -ECANCELED)
    __atomic_add_fetch(&g->cancelled, 1, __ATOMIC_SEQ_CST);
  return rc != 0 ? rc : conc_build(result, "O", conc_value_item(args, 0));
}

/* Takes no notice of anything but `go`. */
static int stubborn(const conc_value *args, const conc_value *kwds,
                    conc_value **result, void *arg) {
  gate *g = (gate *)arg;
  (void)args, (void)kwds, (void)result;
  __atomic_add_fetch(&g->calls, 1, __ATOMIC_SEQ_CST);
  conc_sem_release(&g->begun, 1);
  while (!conc_event_is_set(&g->go)) usleep(1000);
  return 0;
}

static int now(const int *n) { return __atomic_load_n(n, __ATOMIC_SEQ_CST); }

static double limit(void) { return 20 * test_slow(); }

static void begun(gate *g, int n) {
  while (n-- > 0) CHECK_EQ(conc_sem_acquire(&g->begun, limit()), 0);
}

/* --- servers --- */

static void serve(served *s, gate *g) {
  conc_manager *m = &s->server;
  memset(g, 0, sizeof *g);
  CHECK_EQ(conc_manager_register(m, "square", square, NULL), 0);
  CHECK_EQ(conc_manager_register(m, "module.echo", echo, NULL), 0);
  CHECK_EQ(conc_manager_register(m, "many", many, NULL), 0);
  CHECK_EQ(conc_manager_register(m, "leave", leave, NULL), 0);
  CHECK_EQ(conc_manager_register_types(m), 0);
  CHECK_EQ(conc_manager_register(m, "pass", pass, g), 0);
  CHECK_EQ(conc_manager_register(m, "stubborn", stubborn, g), 0);
  serve_queue(s, conc_queue_new(NULL));
  s->client = client_of(s);
  CHECK_EQ(conc_manager_connect(&s->client, 5 * test_slow()), 0);
}

static size_t threads(served *s) {
  call(s, "dummy", "()"); /* the loop has seen all that came before */
  return CONC__LOAD_RELAXED(&s->server.state->server.pool_threads);
}

static void drop(served *s, id made) {
  CALL_SAYS("None", s, "decref", "(s)", made.text);
}

/* Another pool is made, by which the threads are counted that have ended: so
   many are left then. */
static void until_threads(served *s, size_t n) {
  double end = conc_now() + limit();
  for (;;) {
    const char *reply = call(s, "create", "(si)", "Pool", 1);
    if (*reply == '(') {
      drop(s, id_in(reply));
      if (threads(s) <= n + 1) return;
    }
    CHECK(conc_now() < end);
    usleep(1000);
  }
}

#define ASYNC(p, ...) id_in(ask(p, __VA_ARGS__))

/* --- what they do --- */

TEST(a_pool_calls_functions_that_are_registered) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool, r;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  SAYS("49", p, pool.text, "apply", "(s(i))", "square", 7);
  SAYS("((1, 'x'), {})", p, pool.text, "apply", "(s(is){})", "module.echo", 1,
       "x");
  SAYS("((), {})", p, pool.text, "apply", "(s)", "module.echo");
  SAYS("[1, 4, 16, 25]", p, pool.text, "map", "(s[iiii])", "square", 1, 2, 4,
       5);
  SAYS("IndexError: no 3", p, pool.text, "map", "(s[iiii]i)", "square", 1, 2,
       3, 4, 1);
  SAYS("[((1, 2), {}), ((), {}), ((3,), {})]", p, pool.text, "starmap",
       "(s[(ii)()[i]])", "module.echo", 1, 2, 3);
  r = ASYNC(p, pool.text, "apply_async", "(s(i))", "square", 5);
  SAYS("25", p, r.text, "get", "()");
  SAYS("25", p, r.text, "get", "()");
  SAYS("True", p, r.text, "successful", "()");
  drop(&s, r);
  r = ASYNC(p, pool.text, "map_async", "(s[i])", "square", 3);
  SAYS("None", p, r.text, "wait", "()");
  SAYS("False", p, r.text, "successful", "()");
  SAYS("IndexError: no 3", p, r.text, "get", "()");
  drop(&s, r);
  CHECK(strstr(ask(p, pool.text, "map", "(s[i])", "unknown", 1),
               "TRACEBACK AttributeError: no function 'unknown'") != NULL);
  CHECK(strstr(ask(p, pool.text, "map", "(i[i])", 5, 1),
               "TypeError: 'int' object is not callable") != NULL);
  /* A queue is no function. */
  CHECK(strstr(ask(p, pool.text, "map", "(s[i])", "q", 1),
               "no function 'q'") != NULL);
  SAYS("<multiprocessing.pool.Pool state=RUN pool_size=2>", p, pool.text,
       "__str__", "()");
  drop(&s, pool);
  conc__peer_close(p);
  end(&s);
}

TEST(an_iterator_hands_out_each_result_once) {
  served s = nobody();
  gate g;
  conc__peer *a, *b;
  id pool, it;
  serve(&s, &g);
  a = person(&s), b = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 1);
  it = ASYNC(a, pool.text, "imap", "(s[iii])", "square", 1, 3, 5);
  SAYS("1", a, it.text, "__next__", "()");
  SAYS("IndexError: no 3", b, it.text, "__next__", "()");
  SAYS("25", a, it.text, "__next__", "()");
  SAYS("StopIteration", b, it.text, "__next__", "()");
  drop(&s, it);
  /* Two wait for one result, and then for the next. */
  it = ASYNC(a, pool.text, "imap_unordered", "(s[ii])", "pass", 7, 8);
  begun(&g, 1);
  SAYS("TimeoutError", a, it.text, "__next__", "(d)", 0.001);
  tell(a, it.text, "__next__", "()");
  tell(b, it.text, "__next__", "()");
  conc_event_set(&g.go);
  CHECK_EQ(atoi(hear(a)) + atoi(hear(b)), 15);
  SAYS("StopIteration", a, it.text, "__next__", "()");
  drop(&s, it);
  /* A portion is told when all of it is done, and after one that has failed it
     is over, as with a generator. */
  it = ASYNC(a, pool.text, "imap", "(s[iiiii]i)", "square", 1, 2, 4, 3, 5, 2);
  SAYS("1", a, it.text, "__next__", "()");
  SAYS("4", a, it.text, "__next__", "()");
  SAYS("IndexError: no 3", a, it.text, "__next__", "()");
  SAYS("StopIteration", a, it.text, "__next__", "()");
  drop(&s, it);
  it = ASYNC(a, pool.text, "imap", "(s[ii]i)", "square", 1, 2, 2);
  SAYS("None", a, it.text, "close", "()");
  SAYS("StopIteration", a, it.text, "__next__", "()");
  conc__peer_close(a), conc__peer_close(b);
  end(&s);
}

TEST(others_use_a_pool_while_one_waits_for_it) {
  served s = nobody();
  gate g;
  conc__peer *a, *b;
  id pool;
  serve(&s, &g);
  a = person(&s), b = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  tell(a, pool.text, "map", "(s[i])", "pass", 1);
  begun(&g, 1);
  SAYS("[4]", b, pool.text, "map", "(s[i])", "square", 2);
  SAYS("None", b, pool.text, "close", "()");
  tell(b, pool.text, "join", "()");
  conc_event_set(&g.go);
  CHECK_STR(hear(a), "[1]");
  CHECK_STR(hear(b), "None");
  SAYS("ValueError: Pool not running", a, pool.text, "map", "(s[i])", "square",
       2);
  conc__peer_close(a), conc__peer_close(b);
  end(&s);
}

/* --- their ends --- */

TEST(a_pool_ends_with_its_last_proxy_and_holds_nobody_up) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool, result;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  /* Of four items two run, and the others never will. */
  result = ASYNC(p, pool.text, "map_async", "(s[iiii]i)", "stubborn", 1, 2, 3,
                 4, 1);
  begun(&g, 2);
  drop(&s, pool);
  CHECK_EQ(threads(&s), 2); /* the result is a proxy of it, too */
  SAYS("False", p, result.text, "ready", "()");
  drop(&s, result);
  CALL_SAYS("0", &s, "number_of_objects", "()");
  CHECK_EQ(threads(&s), 2); /* they cannot be ended, and the server goes on */
  drop(&s, MAKE(&s, "(si)", "Pool", 1));
  CHECK(threads(&s) >= 2);
  conc_event_set(&g.go);
  until_threads(&s, 0);
  CHECK_EQ(now(&g.calls), 2);
  conc__peer_close(p);
  end(&s);
}

TEST(jobs_go_on_whose_results_nobody_asks_for) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 1);
  drop(&s, ASYNC(p, pool.text, "map_async", "(s[ii]i)", "pass", 1, 2, 1));
  conc_event_set(&g.go);
  begun(&g, 2);
  SAYS("None", p, pool.text, "close", "()");
  SAYS("None", p, pool.text, "join", "()");
  conc__peer_close(p);
  end(&s);
}

TEST(terminate_cancels_what_runs_and_tells_those_that_wait) {
  served s = nobody();
  gate g;
  conc__peer *a, *b, *p;
  id pool, result, it;
  serve(&s, &g);
  a = person(&s), b = person(&s), p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  result = ASYNC(p, pool.text, "map_async", "(s[iiii]i)", "pass", 1, 2, 3, 4,
                 1);
  begun(&g, 2);
  it = ASYNC(p, pool.text, "imap", "(s[i])", "square", 1);
  tell(a, result.text, "get", "()");
  tell(b, it.text, "__next__", "()");
  SAYS("None", p, pool.text, "terminate", "()");
  SAYS("None", p, pool.text, "join", "()");
  CHECK_STR(hear(a), "RuntimeError: the pool was terminated");
  CHECK_STR(hear(b), "RuntimeError: the pool was terminated");
  SAYS("RuntimeError: the pool was terminated", p, it.text, "__next__", "()");
  CHECK_EQ(now(&g.calls), 2);
  CHECK_EQ(now(&g.cancelled), 2);
  SAYS("None", p, pool.text, "terminate", "()");
  conc__peer_close(a), conc__peer_close(b), conc__peer_close(p);
  end(&s);
}

TEST(a_client_that_goes_takes_the_call_along_for_which_it_waits) {
  served s = nobody();
  gate g;
  conc__peer *a, *b, *p;
  id pool;
  double end_at = conc_now() + limit();
  serve(&s, &g);
  a = person(&s), b = person(&s), p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 1);
  tell(a, pool.text, "map", "(s[ii]i)", "pass", 1, 2, 1);
  begun(&g, 1);
  tell(b, pool.text, "apply", "(s(i))", "pass", 3);
  conc__peer_close(b);
  conc__peer_close(a);
  while (now(&g.cancelled) != 1) {
    CHECK(conc_now() < end_at);
    usleep(1000);
  }
  conc_event_set(&g.go);
  SAYS("4", p, pool.text, "apply", "(s(i))", "square", 2);
  SAYS("None", p, pool.text, "close", "()");
  SAYS("None", p, pool.text, "join", "()");
  /* The second one, too, whether its client had gone before it came or not. */
  CHECK(now(&g.calls) <= 2);
  conc__peer_close(p);
  end(&s);
}

TEST(shutdown_ends_pools_and_waits_for_their_functions) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  ASYNC(p, pool.text, "map_async", "(s[iii]i)", "pass", 1, 2, 3, 1);
  begun(&g, 2);
  tell(p, pool.text, "apply", "(s(i))", "square", 2);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK_EQ(now(&g.calls), 2);
  CHECK_EQ(now(&g.cancelled), 2);
  conc__peer_close(p);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  conc_queue_free(s.queue);
}

TEST(a_forked_child_leaves_the_pools_to_its_parent) {
  served s = nobody();
  gate g;
  conc__peer *p;
  int status;
  pid_t child;
  id pool;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  tell(p, pool.text, "apply", "(s(i))", "pass", 2);
  begun(&g, 1);
  child = fork();
  if (child == 0) _exit(conc_manager_shutdown(&s.server) == 0 ? 7 : 1);
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  conc_event_set(&g.go);
  CHECK_STR(hear(p), "2");
  SAYS("4", p, pool.text, "apply", "(s(i))", "square", 2);
  conc__peer_close(p);
  end(&s);
}

TEST(a_function_that_ends_its_thread_is_an_exception) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 1);
  SAYS("RuntimeError: the function has ended its thread", p, pool.text,
       "apply", "(s(i))", "leave", 3);
  SAYS("5", p, pool.text, "apply", "(s(i))", "leave", 5);
  /* Without any thread the rest is not done. */
  SAYS("RuntimeError: the function has ended its thread", p, pool.text, "map",
       "(s[iii]i)", "leave", 1, 3, 2, 1);
  SAYS("[1, 2]", p, pool.text, "map", "(s[ii]i)", "leave", 1, 2, 1);
  conc__peer_close(p);
  end(&s);
}

/* pid(what): the process; or it dies. */
static int pid_of(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  int n;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(i)", &n) != 0) return -EINVAL;
  if (n == 3) kill(getpid(), SIGKILL);
  return conc_build(result, "i", n != 2 ? n : getpid() != 0 ? 2 : 0);
}

TEST(a_pool_of_a_client_calls_functions_in_processes) {
  served s = nobody();
  conc_pool processes;
  gate g;
  conc__peer *p;
  id pool;
  memset(&processes, 0, sizeof processes);
  processes.workers = 2;
  CHECK_EQ(conc_pool_start(&processes), 0);
  CHECK_EQ(conc_manager_register_pooled(&s.server, "there", pid_of, NULL,
                                        &processes), 0);
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 3);
  SAYS("[1, 2, 4, 5]", p, pool.text, "map", "(s[iiii]i)", "there", 1, 2, 4, 5,
       1);
  CHECK(strstr(ask(p, pool.text, "map", "(s[iii]i)", "there", 1, 3, 2, 1),
               "ChildProcessError") != NULL);
  SAYS("5", p, pool.text, "apply", "(s(i))", "there", 5);
  conc__peer_close(p);
  end(&s);
  CHECK_EQ(conc_pool_close(&processes), 0);
  CHECK_EQ(conc_pool_join(&processes, limit()), 0);
}

/* --- limits --- */

TEST(a_client_has_so_many_threads) {
  served s = nobody();
  gate g;
  id pool;
  s.server.max_workers = 5;
  serve(&s, &g);
  CALL_SAYS_PART("ValueError: Number of processes", &s, "create", "(si)",
                 "Pool", 0);
  CALL_SAYS_PART("ValueError: maxtasksperchild", &s, "create", "(siNNi)",
                 "Pool", 1, 0);
  CALL_SAYS_PART("initializer", &s, "create", "(sis)", "Pool", 1, "square");
  CALL_SAYS_PART(".max_workers of the manager is 5, and 0 are there", &s,
                 "create", "(si)", "Pool", 6);
  pool = MAKE(&s, "(si)", "Pool", 4);
  CALL_SAYS_PART(".max_workers of the manager is 5, and 4 are there", &s,
                 "create", "(si)", "Pool", 2);
  drop(&s, MAKE(&s, "(si)", "Pool", 1));
  until_threads(&s, 4);
  drop(&s, pool);
  until_threads(&s, 0);
  end(&s);
}

/* What waits, and what is not fetched, counts as what a connection takes. */
TEST(jobs_that_wait_count_for_the_limits_of_memory) {
  served s = nobody();
  gate g;
  conc__peer *p;
  conc_manager_counts counts;
  id pool, all[100];
  char big[50001];
  const char *reply;
  int n = 0, i;
  memset(big, 'x', sizeof big);
  big[sizeof big - 1] = 0;
  s.server.max_client_memory = 1000000;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 1);
  for (;;) {
    reply = ask(p, pool.text, "apply_async", "(s(s))", "pass", big);
    if (*reply != '(') break;
    CHECK(n < 100);
    all[n++] = id_in(reply);
  }
  CHECK(strstr(reply, "MemoryError: no room for") != NULL);
  CHECK(strstr(reply, ".max_client_memory") != NULL);
  CHECK(n > 10 && n < 20);
  conc_manager_stats(&s.server, &counts);
  CHECK(counts.memory > 500000);
  conc_event_set(&g.go);
  begun(&g, n);
  CHECK(strlen(ask(p, all[n - 1].text, "successful", "()")) > 0);
  for (i = 0; i < n; i++) {
    SAYS("None", p, all[i].text, "wait", "()");
    drop(&s, all[i]);
  }
  SAYS("None", p, pool.text, "close", "()");
  SAYS("None", p, pool.text, "join", "()");
  drop(&s, pool);
  until_threads(&s, 0);
  conc_manager_stats(&s.server, &counts);
  CHECK(counts.memory < 400000); /* buffers of connections */
  conc__peer_close(p);
  end(&s);
}

TEST(results_count_too) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool, r;
  s.server.max_client_memory = 1000000;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 1);
  r = ASYNC(p, pool.text, "map_async", "(s[iii])", "many", 400000, 400000,
            400000);
  SAYS("MemoryError: no room for a result: .max_client_memory of the manager",
       p, r.text, "get", "()");
  drop(&s, r);
  r = ASYNC(p, pool.text, "apply_async", "(s(i))", "many", 400000);
  SAYS("None", p, r.text, "wait", "()");
  SAYS("True", p, r.text, "successful", "()");
  conc__peer_close(p);
  end(&s);
}

TEST(a_large_result_is_written_beside_the_loop) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool, it;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  CHECK(strncmp(ask(p, pool.text, "apply", "(s(i))", "many", 3000000),
                "b'\\x00", 6) == 0);
  CHECK(strncmp(ask(p, pool.text, "map", "(s[ii])", "many", 2000000, 2000000),
                "[b'\\x00", 7) == 0);
  it = ASYNC(p, pool.text, "imap", "(s[ii])", "many", 2000000, 10);
  CHECK(strncmp(ask(p, it.text, "__next__", "()"), "b'\\x00", 6) == 0);
  SAYS("b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'", p, it.text,
       "__next__", "()");
  SAYS("StopIteration", p, it.text, "__next__", "()");
  conc__peer_close(p);
  end(&s);
}

TEST(a_list_of_results_above_the_limit_is_an_error) {
  served s = nobody();
  gate g;
  conc__peer *p;
  id pool;
  s.server.max_message = 100000;
  serve(&s, &g);
  p = person(&s);
  pool = MAKE(&s, "(si)", "Pool", 2);
  CHECK(strstr(ask(p, pool.text, "map", "(s[ii])", "many", 60000, 60000),
               "ValueError: message too long") != NULL);
  CHECK(strstr(ask(p, pool.text, "apply", "(s(i))", "many", 3000000),
               "ValueError: message too long") != NULL);
  SAYS("[4]", p, pool.text, "map", "(s[i])", "square", 2);
  conc__peer_close(p);
  end(&s);
}

TEST(without_memory_a_pool_fails_and_nothing_is_left) {
  served s = nobody();
  gate g;
  long i;
  int done = 0;
  serve(&s, &g);
  for (i = 1; i < 80; i++) {
    conc_value *v = NULL, *args, *request;
    conc__peer *p;
    unsigned char frame[200];
    void *data;
    size_t size;
    id pool = MAKE(&s, "(si)", "Pool", 2);
    CHECK_EQ(conc_build(&args, "(s[iii])", "square", 1, 2, 4), 0);
    CHECK_EQ(conc_build(&request, "(ssO{})", pool.text,
                        i % 2 ? "map" : "map_async", args), 0);
    CHECK_EQ(conc_pickle_dumps(request, 4, &data, &size), 0);
    p = person(&s);
    CHECK(size < sizeof frame - 4);
    memset(frame, 0, 4);
    frame[3] = (unsigned char)size;
    memcpy(frame + 4, data, size);
    __atomic_store_n(&test_fail_at, (i + 1) / 2, __ATOMIC_RELAXED);
    CHECK_EQ(write(p->channel.fd, frame, size + 4), size + 4);
    {
      const unsigned char *payload;
      size_t n;
      int rc = conc__channel_receive(&p->channel, (size_t)1 << 20, &payload,
                                     &n, soon());
      __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
      if (rc == 0 &&
          conc__pickle_decode(payload, n, &conc__pickle_reply_limits, &v,
                              NULL) == 0)
        done += strcmp(conc_value_str(conc_value_item(v, 0), NULL),
                       "#ERROR") != 0;
    }
    conc_value_free(v);
    conc_value_free(args);
    conc_value_free(request);
    conc_free(data);
    conc__peer_close(p);
    drop(&s, pool);
  }
  CHECK(done > 10);
  end(&s);
}

TEST_MAIN
