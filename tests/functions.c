/* Functions of a program that clients call: their arguments, results and
   failures; where they run, and what ends them. */
#include "inside.h"
#include "served.h"

static double soon(void) { return conc_now() + 20 * test_slow(); }

/* --- functions --- */

static int square(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  int n;
  (void)kwds;
  if (arg != NULL) ++*(int *)arg;
  if (conc_parse(args, "(i)", &n) != 0)
    return conc_manager_raise(result, "TypeError", "square() takes an int");
  return conc_build(result, "l", (long)n * n);
}

/* Returns (args, kwds). */
static int echo(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)arg;
  return conc_build(result, "(OO)", args, kwds);
}

static int nothing(const conc_value *args, const conc_value *kwds,
                   conc_value **result, void *arg) {
  (void)args, (void)kwds, (void)result, (void)arg;
  return 0;
}

/* fail(errno), fail(errno, text), fail(errno, text, class) */
static int fail(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  const char *text = conc_value_str(conc_value_item(args, 1), NULL);
  const char *name = conc_value_str(conc_value_item(args, 2), NULL);
  int64_t error = 0;
  (void)kwds, (void)arg;
  conc_value_int(conc_value_item(args, 0), &error);
  if (name != NULL) return conc_manager_raise(result, name, text);
  if (text != NULL) conc_build(result, "s", text);
  return -(int)error;
}

/* Where a call is: it says that it has begun, and waits to be let go. */
typedef struct gate {
  conc_event begun, go;
  int calls, cancelled; /* how many began; were cancelled */
  bool in_pool;
} gate;

static int pass(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  gate *g = (gate *)arg;
  const char *name = conc_name(NULL);
  int rc;
  (void)args, (void)kwds;
  g->in_pool = strcmp(name, "conc-call") == 0;
  __atomic_add_fetch(&g->calls, 1, __ATOMIC_SEQ_CST);
  conc_event_set(&g->begun);
  rc = conc_event_wait(&g->go, CONC_FOREVER);
  if (rc == -ECANCELED)
    __atomic_add_fetch(&g->cancelled, 1, __ATOMIC_SEQ_CST);
  return rc != 0 ? rc : conc_build(result, "s", "passed");
}

/* A function that takes no notice of anything but `go`. */
static int stubborn(const conc_value *args, const conc_value *kwds,
                    conc_value **result, void *arg) {
  gate *g = (gate *)arg;
  (void)args, (void)kwds;
  __atomic_add_fetch(&g->calls, 1, __ATOMIC_SEQ_CST);
  conc_event_set(&g->begun);
  while (!conc_event_is_set(&g->go)) usleep(1000);
  return conc_build(result, "i", 1);
}

static void until(int *n, int many) {
  double end = soon();
  while (__atomic_load_n(n, __ATOMIC_SEQ_CST) != many) {
    CHECK(conc_now() < end);
    usleep(1000);
  }
}

/* --- servers --- */

static void serve(served *s) {
  conc_manager *m = &s->server;
  CHECK_EQ(conc_manager_register(m, "square", square, NULL), 0);
  CHECK_EQ(conc_manager_register(m, "echo", echo, NULL), 0);
  CHECK_EQ(conc_manager_register(m, "nothing", nothing, NULL), 0);
  CHECK_EQ(conc_manager_register(m, "fail", fail, NULL), 0);
  serve_queue(s, conc_queue_new(NULL));
  s->client = client_of(s);
  CHECK_EQ(conc_manager_connect(&s->client, 5 * test_slow()), 0);
}

static double limit(void) { return 20 * test_slow(); }

/* A client that calls as Python does: create, the value, decref. */
static void be_python(conc_manager *m) {
  CONC__STORE_RELAXED(&m->state->client.no_calls, true);
}

/* What a call returns, as a text; its error is *rc. */
static const char *say(conc_manager *m, int *rc, const char *name,
                       const conc_value *args) {
  static char text[2000];
  conc_value *result = NULL;
  *rc = conc_manager_call(m, name, args, &result, limit());
  if (result == NULL) snprintf(text, sizeof text, "NULL");
  else conc_value_text(result, text, sizeof text);
  conc_value_free(result);
  return text;
}

static void says(conc_manager *m, const char *name, const conc_value *args,
                 int error, const char *text) {
  int rc;
  CHECK_STR(say(m, &rc, name, args), text);
  CHECK_EQ(rc, error);
}

/* The same with arguments that are built, and freed. */
#define SAYS(m, name, error, text, ...)          \
  do {                                           \
    conc_value *says_args;                       \
    CHECK_EQ(conc_build(&says_args, __VA_ARGS__), 0); \
    says(m, name, says_args, error, text);       \
    conc_value_free(says_args);                  \
  } while (0)

/* Sends (ident, method, args, kwds). */
static void tell_va(conc__peer *p, const char *ident, const char *method,
                    const char *format, va_list ap) {
  conc_value *rest, *request;
  void *data;
  size_t size;
  CHECK_EQ(conc__build_va(&rest, format, ap), 0);
  CHECK_EQ(conc_build(&request, "(ssOO)", ident, method,
                      conc_value_item(rest, 0), conc_value_item(rest, 1)), 0);
  conc_value_free(rest);
  CHECK_EQ(conc_pickle_dumps(request, 4, &data, &size), 0);
  conc_value_free(request);
  CHECK_EQ(conc__channel_send(&p->channel, data, size, soon()), 0);
  conc_free(data);
}

static void tell(conc__peer *p, const char *ident, const char *method,
                 const char *format, ...) {
  va_list ap;
  va_start(ap, format);
  tell_va(p, ident, method, format, ap);
  va_end(ap);
}

/* The reply as a text. */
static const char *hear(conc__peer *p) {
  static char text[1000];
  const unsigned char *payload;
  conc_value *reply;
  size_t size;
  CHECK_EQ(conc__channel_receive(&p->channel, (size_t)1 << 24, &payload,
                                 &size, soon()), 0);
  CHECK_EQ(conc__pickle_decode(payload, size, &conc__pickle_reply_limits,
                               &reply, NULL), 0);
  conc_value_text(reply, text, sizeof text);
  conc_value_free(reply);
  return text;
}

/* Both, on a connection of its own, or on `p`. */
static const char *ask(const served *s, conc__peer *p, const char *ident,
                       const char *method, const char *format, ...) {
  conc__peer *own = p;
  const char *text;
  va_list ap;
  if (p == NULL) CHECK_EQ(conc__peer_open(s->client.state, &own, soon()), 0);
  va_start(ap, format);
  tell_va(own, ident, method, format, ap);
  va_end(ap);
  text = hear(own);
  if (p == NULL) conc__peer_close(own);
  return text;
}

/* How many objects clients refer to. */
static int objects(const served *s) {
  const char *text = ask(s, NULL, NULL, "number_of_objects", "(){}");
  int n = -1;
  CHECK_EQ(sscanf(text, "('#RETURN', %d)", &n), 1);
  return n;
}

/* A client that gave a call up gives its object back after that. */
static void expect_no_objects(const served *s) {
  double end = soon();
  while (objects(s) != 0) {
    CHECK(conc_now() < end);
    usleep(1000);
  }
}

/* --- calls --- */

static void arguments_and_results(conc_manager *m) {
  conc_value *v;
  SAYS(m, "square", 0, "49", "i", 7);
  SAYS(m, "square", 0, "49", "(i)", 7);
  SAYS(m, "echo", 0, "((), {})", "()");
  SAYS(m, "echo", 0, "(([1, 2],), {})", "[ii]", 1, 2);
  SAYS(m, "echo", 0, "((1, 'two', b'\\x03', None), {})", "(isy#N)", 1, "two",
       "\3", (size_t)1);
  says(m, "echo", NULL, 0, "((), {})");
  says(m, "nothing", NULL, 0, "None");
  CHECK_EQ(conc_manager_call_build(m, "square", &v, limit(), "i", 9), 0);
  CHECK_EQ(conc_value_type(v), CONC_INT);
  conc_value_free(v);
  CHECK_EQ(conc_manager_call_build(m, "square", NULL, limit(), "i", 9), 0);
  CHECK_EQ(conc_manager_call_build(m, "square", &v, limit(), "?"), -EINVAL);
  CHECK(v == NULL);
}

TEST(a_client_calls_functions_of_a_server) {
  served s = nobody();
  serve(&s);
  arguments_and_results(&s.client);
  CHECK(!s.client.state->client.no_calls);
  CHECK_EQ(objects(&s), 0);
  /* One trip each, on one connection. */
  CHECK(s.client.state->client.idle->next == NULL);
  end(&s);
}

TEST(so_does_a_client_that_calls_as_python_does) {
  served s = nobody();
  serve(&s);
  be_python(&s.client);
  SAYS(&s.client, "square", 0, "49", "i", 7);
  /* It has learnt that the server is one of ours. */
  CHECK(!s.client.state->client.no_calls);
  expect_no_objects(&s);
  be_python(&s.client);
  SAYS(&s.client, "echo", 0, "((1, 'two'), {})", "(is)", 1, "two");
  be_python(&s.client);
  says(&s.client, "nothing", NULL, 0, "None");
  be_python(&s.client);
  SAYS(&s.client, "fail", -ENOENT, "KeyError: gone", "(is)", ENOENT, "gone");
  expect_no_objects(&s);
  end(&s);
}

TEST(the_serving_process_calls_its_functions_itself) {
  served s = nobody();
  serve(&s);
  arguments_and_results(&s.server);
  SAYS(&s.server, "fail", -ENOENT, "KeyError: gone", "(is)", ENOENT, "gone");
  SAYS(&s.server, "fail", -EDOM, "OSError: system error; see errno(3)", "(i)",
       EDOM);
  says(&s.server, "other", NULL, -ENOENT, "NULL");
  says(&s.server, "q", NULL, -ENOENT, "NULL");
  end(&s);
}

TEST(what_cannot_be_called_or_registered_is_refused) {
  served s = nobody();
  conc_manager idle;
  char name[258];
  conc_pool pool;
  memset(&idle, 0, sizeof idle);
  memset(&pool, 0, sizeof pool);
  memset(name, 'a', sizeof name - 1);
  name[sizeof name - 1] = 0;
  serve(&s);
  CHECK_EQ(conc_manager_call(&idle, "square", NULL, NULL, 1), -EINVAL);
  CHECK_EQ(conc_manager_call(&s.client, NULL, NULL, NULL, 1), -EINVAL);
  says(&s.client, "other", NULL, -ENOENT, "KeyError: 'other'");
  says(&s.client, "q", NULL, -EREMOTEIO,
       "TypeError: cannot pickle 'queue.Queue' object");
  CHECK_EQ(conc_manager_register(&s.server, "square", echo, NULL), -EEXIST);
  CHECK_EQ(conc_manager_register(&s.server, "q", echo, NULL), -EEXIST);
  CHECK_EQ(conc_manager_register(&s.server, "f", NULL, NULL), -EINVAL);
  CHECK_EQ(conc_manager_register(&s.server, "", echo, NULL), -EINVAL);
  CHECK_EQ(conc_manager_register(&s.server, NULL, echo, NULL), -EINVAL);
  CHECK_EQ(conc_manager_register(&s.server, "\xff", echo, NULL), -EINVAL);
  CHECK_EQ(conc_manager_register(&s.server, name, echo, NULL), -ENAMETOOLONG);
  CHECK_EQ(conc_manager_register_pooled(&s.server, "f", echo, NULL, NULL),
           -EINVAL);
  pool.kind = CONC_THREAD + 1;
  CHECK_EQ(conc_manager_register_pooled(&s.server, "f", echo, NULL, &pool),
           -EINVAL);
  /* It may be registered while the server serves. */
  CHECK_EQ(conc_manager_register(&s.server, "late", square, NULL), 0);
  SAYS(&s.client, "late", 0, "4", "i", 2);
  /* A queue of that name is none. */
  CHECK(conc_manager_get(&s.server, "square") == NULL);
  CHECK_EQ(errno, ENOENT);
  end(&s);
}

/* --- failures --- */

TEST(a_failure_crosses_as_the_errno_that_it_is) {
  static const struct {
    int number;
    const char *text;
  } table[] = {{EINVAL, "ValueError: x"},
               {ENOENT, "KeyError: x"},
               {ETIMEDOUT, "TimeoutError: x"},
               {ENOMEM, "MemoryError: x"},
               {EACCES, "PermissionError: x"},
               {EPIPE, "BrokenPipeError: x"},
               {ECONNRESET, "ConnectionResetError: x"},
               {ECONNREFUSED, "ConnectionRefusedError: x"},
               {ENOTSUP, "NotImplementedError: x"},
               {EREMOTEIO, "RuntimeError: x"},
               {EDOM, "OSError: x"},
               {EMSGSIZE, "OSError: x"},
               {ECANCELED, "OSError: x"},
               {EBADMSG, "OSError: x"}};
  served s = nobody();
  size_t i;
  serve(&s);
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    SAYS(&s.client, "fail", -table[i].number, table[i].text, "(is)",
         table[i].number, "x");
    SAYS(&s.server, "fail", -table[i].number, table[i].text, "(is)",
         table[i].number, "x");
  }
  SAYS(&s.client, "fail", -EINVAL, "ValueError: invalid argument", "(i)",
       EINVAL);
  end(&s);
}

TEST(a_function_raises_exceptions_of_python) {
  served s = nobody();
  serve(&s);
  SAYS(&s.client, "fail", -EREMOTEIO, "IndexError: no such row", "(iss)", 0,
       "no such row", "IndexError");
  SAYS(&s.client, "fail", -EREMOTEIO, "ZeroDivisionError", "(iss)", 0, "",
       "ZeroDivisionError");
  SAYS(&s.client, "fail", -EINVAL, "TypeError: it: is", "(iss)", 0, "it: is",
       "TypeError");
  SAYS(&s.client, "fail", -EEXIST, "FileExistsError: x", "(iss)", 0, "x",
       "FileExistsError");
  /* A class that a client would have to import is not named to it. */
  SAYS(&s.client, "fail", -EREMOTEIO, "RuntimeError: eval: x", "(iss)", 0, "x",
       "eval");
  SAYS(&s.client, "square", -EINVAL, "TypeError: square() takes an int", "s",
       "x");
  end(&s);
}

static int large(const conc_value *args, const conc_value *kwds,
                 conc_value **result, void *arg) {
  static char bytes[4000];
  (void)args, (void)kwds, (void)arg;
  return conc_build(result, "y#", bytes, sizeof bytes);
}

/* Returns an instance of a class. */
static int instance(const conc_value *args, const conc_value *kwds,
                    conc_value **result, void *arg) {
  static const char token[] =
      "\x80\2cmultiprocessing.managers\nToken\n)\x81.";
  (void)args, (void)kwds, (void)arg;
  return conc__pickle_decode(token, sizeof token - 1,
                             &conc__pickle_reply_limits, result, NULL);
}

TEST(a_result_that_cannot_be_sent_is_an_error) {
  served s = nobody();
  conc_value *v;
  static char bytes[4000];
  s.server.max_message = 2000;
  CHECK_EQ(conc_manager_register(&s.server, "large", large, NULL), 0);
  CHECK_EQ(conc_manager_register(&s.server, "instance", instance, NULL), 0);
  serve(&s);
  says(&s.client, "large", NULL, -EMSGSIZE,
       "ValueError: message too long: it has 4005 bytes, .max_message of the "
       "manager lets through 1936");
  says(&s.client, "instance", NULL, -EINVAL,
       "TypeError: the result has an instance of a class in it");
  /* Arguments, too. */
  CHECK_EQ(conc_manager_call_build(&s.client, "echo", &v, limit(), "y#", bytes,
                                   sizeof bytes), -EMSGSIZE);
  conc_value_free(v);
  s.client.state->max_message = 1000;
  CHECK_EQ(conc_manager_call_build(&s.client, "echo", &v, limit(), "y#", bytes,
                                   sizeof bytes), -EMSGSIZE);
  CHECK(v == NULL);
  CHECK_EQ(conc_manager_call_build(&s.client, "echo", &v, limit(), "y#", bytes,
                                   (size_t)990), -EMSGSIZE);
  CHECK(v == NULL);
  SAYS(&s.client, "square", 0, "49", "i", 7);
  end(&s);
}

/* --- waiting --- */

/* A call that another thread makes. */
typedef struct caller {
  conc_task task;
  conc_manager *manager;
  const char *name;
  double timeout;
  int rc;
  char text[100];
} caller;

static void *caller_main(void *arg) {
  caller *c = (caller *)arg;
  conc_value *v;
  c->rc = conc_manager_call(c->manager, c->name, NULL, &v, c->timeout);
  conc_value_text(v, c->text, sizeof c->text);
  conc_value_free(v);
  return NULL;
}

static void begin_call(caller *c, conc_manager *m, const char *name,
                       double timeout) {
  memset(c, 0, sizeof *c);
  c->task.target = caller_main;
  c->task.arg = c;
  c->manager = m;
  c->name = name;
  c->timeout = timeout;
  CHECK_EQ(conc_thread_start(&c->task), 0);
}

static int end_call(caller *c) {
  CHECK_EQ(conc_join(&c->task, limit()), 0);
  return c->rc;
}

static void begun(gate *g) {
  CHECK_EQ(conc_event_wait(&g->begun, limit()), 0);
}

/* A server with a function that waits at a gate; in a pool if there is one. */
static void serve_gate(served *s, gate *g, conc_manager_fn *fn,
                       conc_pool *pool) {
  memset(g, 0, sizeof *g);
  if (pool != NULL) {
    memset(pool, 0, sizeof *pool);
    pool->kind = CONC_THREAD;
    pool->workers = 1;
    CHECK_EQ(conc_pool_start(pool), 0);
    CHECK_EQ(conc_manager_register_pooled(&s->server, "pass", fn, g, pool), 0);
  } else {
    CHECK_EQ(conc_manager_register(&s->server, "pass", fn, g), 0);
  }
  serve(s);
}

static void end_pool(conc_pool *pool) {
  if (pool == NULL) return;
  CHECK_EQ(conc_pool_close(pool), 0);
  CHECK_EQ(conc_pool_join(pool, limit()), 0);
}

static void others_are_served(conc_pool *pool, bool python) {
  served s = nobody();
  gate g;
  caller c;
  serve_gate(&s, &g, pass, pool);
  if (python) be_python(&s.client);
  begin_call(&c, &s.client, "pass", CONC_FOREVER);
  begun(&g);
  CHECK_EQ(g.in_pool, pool != NULL);
  SAYS(&s.client, "square", 0, "49", "i", 7);
  conc_event_set(&g.go);
  CHECK_EQ(end_call(&c), 0);
  CHECK_STR(c.text, "passed");
  expect_no_objects(&s);
  end(&s);
  end_pool(pool);
}

TEST(a_function_may_wait_while_others_are_served) {
  conc_pool pool;
  others_are_served(NULL, false);
  others_are_served(NULL, true);
  others_are_served(&pool, false);
  others_are_served(&pool, true);
}

TEST(a_function_in_a_pool_may_block_its_thread) {
  served s = nobody();
  conc_pool pool;
  gate g;
  caller c;
  serve_gate(&s, &g, stubborn, &pool);
  begin_call(&c, &s.client, "pass", CONC_FOREVER);
  begun(&g);
  SAYS(&s.client, "square", 0, "49", "i", 7);
  conc_event_set(&g.go);
  CHECK_EQ(end_call(&c), 0);
  CHECK_STR(c.text, "1");
  end(&s);
  end_pool(&pool);
}

static void gives_up(conc_pool *pool, bool python, double timeout) {
  served s = nobody();
  gate g;
  caller c;
  serve_gate(&s, &g, pass, pool);
  if (python) be_python(&s.client);
  begin_call(&c, &s.client, "pass", timeout);
  begun(&g);
  if (timeout > 1) conc_cancel(&c.task);
  CHECK_EQ(conc_join(&c.task, limit()), timeout > 1 ? -ECANCELED : 0);
  CHECK_EQ(c.rc, timeout > 1 ? -ECANCELED : -ETIMEDOUT);
  until(&g.cancelled, 1);
  SAYS(&s.client, "square", 0, "49", "i", 7);
  expect_no_objects(&s);
  end(&s);
  end_pool(pool);
}

TEST(a_call_that_is_given_up_is_cancelled_at_the_server) {
  conc_pool pool;
  int python;
  for (python = 0; python < 2; python++) {
    gives_up(NULL, python, 1e9);
    gives_up(NULL, python, 0.2);
    gives_up(&pool, python, 1e9);
    gives_up(&pool, python, 0.2);
  }
}

/* Returns how many clients have gone whose calls are not over. */
static int gone(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  conc_manager *m = (conc_manager *)arg;
  const conc__client *c;
  int n = 0;
  (void)args, (void)kwds;
  for (c = m->state->server.clients; c != NULL; c = c->next) n += c->hangup;
  return conc_build(result, "i", n);
}

/* Its job is in the line of the pool when the client goes. */
TEST(a_call_that_was_given_up_before_it_began_never_runs) {
  served s = nobody();
  conc_pool pool;
  gate g;
  caller first, second;
  int rc;
  CHECK_EQ(conc_manager_register(&s.server, "gone", gone, &s.server), 0);
  serve_gate(&s, &g, pass, &pool);
  begin_call(&first, &s.client, "pass", CONC_FOREVER);
  begun(&g);
  begin_call(&second, &s.client, "pass", 0.2);
  CHECK_EQ(end_call(&second), -ETIMEDOUT);
  while (strcmp(say(&s.client, &rc, "gone", NULL), "1") != 0) usleep(1000);
  /* Its coroutine was cancelled before this call came. */
  CHECK_STR(say(&s.client, &rc, "gone", NULL), "1");
  conc_event_set(&g.go);
  CHECK_EQ(end_call(&first), 0);
  CHECK_EQ(g.calls, 1);
  end(&s);
  end_pool(&pool);
}

TEST(a_call_here_keeps_its_timeout) {
  served s = nobody();
  conc_pool pool;
  gate g;
  serve_gate(&s, &g, pass, NULL);
  CHECK_EQ(conc_manager_call(&s.server, "pass", NULL, NULL, 0.05), -ETIMEDOUT);
  CHECK_EQ(g.cancelled, 1);
  end(&s);
  s = nobody();
  serve_gate(&s, &g, pass, &pool);
  CHECK_EQ(conc_manager_call(&s.server, "pass", NULL, NULL, 0.05), -ETIMEDOUT);
  end(&s);
  end_pool(&pool);
}

static void ends_with_the_server(conc_pool *pool) {
  served s = nobody();
  gate g;
  caller c;
  serve_gate(&s, &g, pass, pool);
  begin_call(&c, &s.client, "pass", CONC_FOREVER);
  begun(&g);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK_EQ(g.cancelled, 1);
  CHECK_EQ(end_call(&c), -EPIPE);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  conc_queue_free(s.queue);
  end_pool(pool);
}

TEST(shutdown_cancels_calls_and_waits_for_them) {
  conc_pool pool;
  ends_with_the_server(NULL);
  ends_with_the_server(&pool);
}

TEST(a_pool_that_takes_no_jobs_is_an_exception) {
  served s = nobody();
  conc_pool pool;
  memset(&pool, 0, sizeof pool);
  pool.kind = CONC_THREAD; /* and not started */
  CHECK_EQ(conc_manager_register_pooled(&s.server, "pass", nothing, NULL,
                                        &pool), 0);
  serve(&s);
  says(&s.client, "pass", NULL, -EREMOTEIO,
       "RuntimeError: the pool of the function takes no jobs");
  end(&s);
}

/* --- in processes --- */

/* what(): "pid", "die", "exit", "wait"; "large" returns more than is let
   through. */
static int in_process(const conc_value *args, const conc_value *kwds,
                      conc_value **result, void *arg) {
  const char *what = conc_value_str(conc_value_item(args, 0), NULL);
  char *large;
  int rc;
  (void)kwds, (void)arg;
  if (what == NULL) return -EINVAL;
  if (strcmp(what, "die") == 0) kill(getpid(), SIGKILL);
  if (strcmp(what, "exit") == 0) _exit(5);
  while (strcmp(what, "wait") == 0) pause();
  if (strcmp(what, "large") != 0)
    return conc_build(result, "l", (long)getpid());
  large = (char *)calloc(1, 300000);
  rc = conc_build(result, "y#", large, (size_t)300000);
  free(large);
  return rc;
}

static void begin_processes(conc_pool *pool) {
  memset(pool, 0, sizeof *pool);
  pool->workers = 2;
  CHECK_EQ(conc_pool_start(pool), 0);
}

static void serve_processes(served *s, conc_pool *pool) {
  conc_manager *m = &s->server;
  CHECK_EQ(conc_manager_register_pooled(m, "there", in_process, NULL, pool),
           0);
  CHECK_EQ(conc_manager_register_pooled(m, "echo_there", echo, NULL, pool), 0);
  CHECK_EQ(conc_manager_register_pooled(m, "fail_there", fail, NULL, pool), 0);
  CHECK_EQ(conc_manager_register_pooled(m, "nothing_there", nothing, NULL,
                                        pool), 0);
  serve(s);
}

static conc_value *built(const char *format, ...) {
  conc_value *v;
  va_list ap;
  va_start(ap, format);
  CHECK_EQ(conc__build_va(&v, format, ap), 0);
  va_end(ap);
  return v;
}

TEST(a_function_may_run_in_a_process) {
  served s = nobody();
  conc_pool pool;
  conc_manager *m;
  int i;
  begin_processes(&pool);
  serve_processes(&s, &pool);
  for (i = 0; i < 3; i++) { /* as ours, as Python's, and here */
    conc_value *v, *args = built("(si)", "x", 7);
    m = i < 2 ? &s.client : &s.server;
    if (i == 1) be_python(m);
    says(m, "echo_there", args, 0, "(('x', 7), {})");
    says(m, "nothing_there", NULL, 0, "None");
    conc_value_free(args);
    args = built("(iss)", 0, "no such row", "IndexError");
    says(m, "fail_there", args, -EREMOTEIO, "IndexError: no such row");
    conc_value_free(args);
    args = built("(i)", ENOENT);
    says(m, "fail_there", args, -ENOENT,
         "KeyError: no such name, file or host");
    conc_value_free(args);
    CHECK_EQ(conc_manager_call_build(m, "there", &v, limit(), "s", "pid"), 0);
    {
      int64_t pid = 0;
      CHECK_EQ(conc_value_int(v, &pid), 0);
      CHECK(pid > 0 && pid != getpid());
    }
    conc_value_free(v);
  }
  end(&s);
  end_pool(&pool);
}

TEST(a_process_that_is_killed_is_an_error_and_the_server_goes_on) {
  served s = nobody();
  conc_pool pool;
  conc_value *args;
  begin_processes(&pool);
  serve_processes(&s, &pool);
  args = built("(s)", "die");
  says(&s.client, "there", args, -ECHILD,
       "ChildProcessError: signal 9 has ended the process of the function");
  conc_value_free(args);
  args = built("(s)", "exit");
  says(&s.client, "there", args, -ECHILD,
       "ChildProcessError: the process of the function has ended, with status "
       "5");
  conc_value_free(args);
  args = built("(i)", 7);
  says(&s.client, "echo_there", args, 0, "((7,), {})");
  says(&s.client, "square", args, 0, "49");
  conc_value_free(args);
  end(&s);
  end_pool(&pool);
}

TEST(arguments_and_results_of_processes_are_bounded) {
  served s = nobody();
  conc_pool pool;
  conc_value *args, *v;
  char *text = (char *)malloc(300000);
  int rc;
  memset(text, 'x', 300000);
  begin_processes(&pool);
  serve_processes(&s, &pool);
  args = built("(y#)", text, (size_t)300000);
  says(&s.client, "echo_there", args, -EMSGSIZE,
       "ValueError: message too long: the arguments, for a process");
  conc_value_free(args);
  args = built("(s)", "large");
  CHECK(strstr(say(&s.client, &rc, "there", args),
               "ValueError: message too long: it has 3000") != NULL);
  CHECK_EQ(rc, -EMSGSIZE);
  conc_value_free(args);
  args = built("(y#)", text, (size_t)260000);
  CHECK_EQ(conc_manager_call(&s.client, "echo_there", args, &v, limit()), 0);
  CHECK_EQ(conc_value_size(conc_value_item(conc_value_item(v, 0), 0)), 260000);
  conc_value_free(v);
  conc_value_free(args);
  free(text);
  end(&s);
  end_pool(&pool);
}

TEST(a_process_is_killed_whose_call_is_given_up) {
  served s = nobody();
  conc_pool pool;
  conc_value *args = built("(s)", "wait"), *seven = built("(i)", 7);
  int i;
  begin_processes(&pool);
  serve_processes(&s, &pool);
  /* More often than there are processes. */
  for (i = 0; i < 4; i++)
    CHECK_EQ(conc_manager_call(&s.client, "there", args, NULL, 0.1),
             -ETIMEDOUT);
  says(&s.client, "echo_there", seven, 0, "((7,), {})");
  CHECK_EQ(conc_manager_call(&s.server, "there", args, NULL, 0.1), -ETIMEDOUT);
  conc_value_free(args);
  conc_value_free(seven);
  end(&s);
  end_pool(&pool);
}

TEST(a_pool_of_processes_says_when_a_call_is_late_or_when_it_takes_none) {
  served s = nobody();
  conc_pool pool;
  conc_value *args = built("(s)", "wait");
  memset(&pool, 0, sizeof pool);
  pool.workers = 1;
  pool.timeout = 0.1;
  CHECK_EQ(conc_pool_start(&pool), 0);
  serve_processes(&s, &pool);
  says(&s.client, "there", args, -ETIMEDOUT,
       "TimeoutError: the function took longer than .timeout of its pool");
  conc_pool_close(&pool);
  says(&s.client, "there", args, -EREMOTEIO,
       "RuntimeError: the pool of the function takes no jobs");
  conc_value_free(args);
  end(&s);
  end_pool(&pool);
}

/* A function and its clients use one queue. */
static int take(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)args, (void)kwds;
  return conc_get_value((conc_queue *)arg, result, CONC_FOREVER);
}

TEST(a_function_may_get_from_a_queue_that_a_client_puts_into) {
  served s = nobody();
  conc_queue *q = conc_queue_new(NULL);
  caller c;
  CHECK_EQ(conc_manager_register(&s.server, "take", take, q), 0);
  CHECK_EQ(conc_manager_register_queue(&s.server, "tasks", q), 0);
  serve(&s);
  begin_call(&c, &s.client, "take", CONC_FOREVER);
  while (!somebody_waits(q)) usleep(1000);
  CHECK_EQ(conc_put_build(conc_manager_get(&s.client, "tasks"), limit(), "s",
                          "work"), 0);
  CHECK_EQ(end_call(&c), 0);
  CHECK_STR(c.text, "work");
  end(&s);
  conc_queue_free(q);
}

/* --- what Python sends --- */

TEST(create_makes_an_object_of_the_result) {
  served s = nobody();
  conc__peer *p;
  const char *text;
  char id[CONC__ID_SIZE];
  serve(&s);
  CHECK_EQ(conc__peer_get(s.client.state, &p, soon()), 0);
  text = ask(&s, NULL, NULL, "create", "(si){si}", "echo", 7, "k", 8);
  CHECK(strncmp(text, "('#RETURN', ('", 14) == 0);
  snprintf(id, sizeof id, "%.*s", (int)strcspn(text + 14, "'"), text + 14);
  CHECK(strstr(text, "', ('_conc_max_67108864',)))") != NULL);
  CHECK_EQ(objects(&s), 1);
  CHECK_STR(ask(&s, p, id, "#GETVALUE", "(){}"),
            "('#RETURN', ((7,), {'k': 8}))");
  CHECK_STR(ask(&s, p, id, "__str__", "(){}"),
            "('#RETURN', \"((7,), {'k': 8})\")");
  CHECK(strstr(ask(&s, p, id, "__call__", "(){}"), "AttributeError") != NULL);
  CHECK_STR(ask(&s, NULL, NULL, "decref", "(s){}", id), "('#RETURN', None)");
  CHECK_EQ(objects(&s), 0);
  CHECK(strstr(ask(&s, p, id, "#GETVALUE", "(){}"), "KeyError") != NULL);
  /* The str of a proxy is the repr of the result. */
  text = ask(&s, NULL, NULL, "create", "(s){}", "nothing");
  snprintf(id, sizeof id, "%.*s", (int)strcspn(text + 14, "'"), text + 14);
  CHECK_STR(ask(&s, p, id, "__repr__", "(){}"), "('#RETURN', 'None')");
  /* Ours passes keywords, too; and what it calls must be a function. */
  CHECK_STR(ask(&s, p, "_conc_call", "echo", "(i){si}", 7, "k", 8),
            "('#RETURN', ((7,), {'k': 8}))");
  CHECK(strstr(ask(&s, p, "_conc_call", "q", "(){}"), "KeyError") != NULL);
  CHECK(strstr(ask(&s, p, "_conc_call", "x", "(){}"), "KeyError") != NULL);
  conc__peer_close(p);
  end(&s);
}

/* Returns its only argument. */
static int same(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)kwds, (void)arg;
  return conc_build(result, "O", conc_value_item(args, 0));
}

TEST(a_list_or_dict_has_its_methods_where_clients_can_make_one) {
  served s = nobody();
  conc__peer *p;
  const char *text;
  char id[CONC__ID_SIZE];
  int types;
  for (types = 0; types < 2; types++) {
    s = nobody();
    CHECK_EQ(conc_manager_register(&s.server, "same", same, NULL), 0);
    if (types) CHECK_EQ(conc_manager_register_types(&s.server), 0);
    serve(&s);
    CHECK_EQ(conc__peer_get(s.client.state, &p, soon()), 0);
    text = ask(&s, NULL, NULL, "create", "(s[ii]){}", "same", 7, 8);
    snprintf(id, sizeof id, "%.*s", (int)strcspn(text + 14, "'"), text + 14);
    CHECK_EQ(strstr(text, "'append'") != NULL, types);
    CHECK_STR(ask(&s, p, id, "#GETVALUE", "(){}"), "('#RETURN', [7, 8])");
    CHECK_STR(ask(&s, p, id, "__str__", "(){}"), "('#RETURN', '[7, 8]')");
    if (types) {
      CHECK_STR(ask(&s, p, id, "append", "(i){}", 9), "('#RETURN', None)");
      CHECK_STR(ask(&s, p, id, "__len__", "(){}"), "('#RETURN', 3)");
    }
    CHECK_STR(ask(&s, NULL, NULL, "decref", "(s){}", id), "('#RETURN', None)");
    text = ask(&s, NULL, NULL, "create", "(s{si}){}", "same", "k", 8);
    snprintf(id, sizeof id, "%.*s", (int)strcspn(text + 14, "'"), text + 14);
    CHECK_EQ(strstr(text, "'setdefault'") != NULL, types);
    CHECK_STR(ask(&s, p, id, "#GETVALUE", "(){}"), "('#RETURN', {'k': 8})");
    CHECK_STR(ask(&s, NULL, NULL, "decref", "(s){}", id), "('#RETURN', None)");
    CHECK_EQ(objects(&s), 0);
    SAYS(&s.client, "same", 0, "[1]", "([i])", 1);
    be_python(&s.client);
    SAYS(&s.client, "same", 0, "[1]", "([i])", 1);
    conc__peer_close(p);
    end(&s);
  }
}

/* sized(n) returns [b'...'] with so many bytes; sized(n, 1) a tuple. */
static int sized(const conc_value *args, const conc_value *kwds,
                 conc_value **result, void *arg) {
  static char bytes[CONC__COPY_LARGE];
  int64_t n = 0;
  (void)kwds, (void)arg;
  conc_value_int(conc_value_item(args, 0), &n);
  return conc_build(result, conc_value_size(args) > 1 ? "(y#)" : "[y#]", bytes,
                    (size_t)n);
}

static void take_threads(conc_sem *sem, size_t threads) {
  size_t i;
  for (i = 0; i < threads; i++)
    CHECK_EQ(conc_sem_acquire(sem, 20 * test_slow()), 0);
}

/* While no thread is to be had for it there is no reply, and others are
   served. */
static const char *hear_beside(served *s, conc__peer *p, size_t threads) {
  SAYS(&s->client, "square", 0, "49", "i", 7);
  CHECK_EQ(conc_wait_fd(p->channel.fd, CONC_READ, 0.02), -ETIMEDOUT);
  CHECK_EQ(conc_sem_release(&s->server.state->server.aside, threads), 0);
  return hear(p);
}

TEST(a_large_result_is_written_and_read_beside_the_loop) {
  static const int large = (int)CONC__READING_LARGE;
  served s = nobody();
  conc__peer *p, *once;
  const char *text;
  char id[CONC__ID_SIZE];
  conc_sem *sem;
  size_t threads;
  CHECK_EQ(conc_manager_register(&s.server, "sized", sized, NULL), 0);
  CHECK_EQ(conc_manager_register_types(&s.server), 0);
  serve(&s);
  sem = &s.server.state->server.aside;
  threads = sem->value;
  CHECK_EQ(conc__peer_get(s.client.state, &p, soon()), 0);
  /* The value itself. */
  take_threads(sem, threads);
  tell(p, "_conc_call", "sized", "(i){}", (int)CONC__COPY_LARGE);
  text = hear_beside(&s, p, threads);
  CHECK(strncmp(text, "('#RETURN', [b'\\x00", 19) == 0);
  /* An object that has methods. */
  take_threads(sem, threads);
  CHECK_EQ(conc__peer_open(s.client.state, &once, soon()), 0);
  tell(once, "", "create", "(si){}", "sized", large);
  text = hear_beside(&s, once, threads);
  CHECK(strstr(text, "'append'") != NULL);
  conc__peer_close(once);
  /* The text of one that has none. */
  text = ask(&s, NULL, NULL, "create", "(sii){}", "sized", large, 1);
  snprintf(id, sizeof id, "%.*s", (int)strcspn(text + 14, "'"), text + 14);
  take_threads(sem, threads);
  tell(p, id, "__str__", "(){}");
  text = hear_beside(&s, p, threads);
  CHECK(strncmp(text, "('#RETURN', \"(b'\\\\x00", 21) == 0);
  /* debug_info is about many, and does not read it. */
  text = ask(&s, NULL, NULL, "debug_info", "(){}");
  CHECK(strstr(text, "<value of 655") != NULL);
  conc__peer_close(p);
  end(&s);
}

TEST(a_text_above_the_limit_is_an_error) {
  served s = nobody();
  conc__peer *p;
  const char *text;
  char id[CONC__ID_SIZE];
  s.server.max_message = 2000;
  CHECK_EQ(conc_manager_register(&s.server, "sized", sized, NULL), 0);
  serve(&s);
  CHECK_EQ(conc__peer_get(s.client.state, &p, soon()), 0);
  text = ask(&s, NULL, NULL, "create", "(si){}", "sized", 1000);
  snprintf(id, sizeof id, "%.*s", (int)strcspn(text + 14, "'"), text + 14);
  CHECK_STR(ask(&s, p, id, "__str__", "(){}"),
            "('#ERROR', <builtins.ValueError object>)");
  CHECK(strncmp(ask(&s, p, id, "#GETVALUE", "(){}"), "('#RETURN', [b'", 15) ==
        0);
  conc__peer_close(p);
  end(&s);
}

/* --- the other side is not well --- */

TEST(without_memory_a_call_fails_and_nothing_is_left) {
  served s = nobody();
  int rc, python;
  long i;
  serve(&s);
  for (python = 0; python < 2; python++)
    for (i = 1; i < 60; i++) {
      conc_value *v, *args;
      CHECK_EQ(conc_build(&args, "s", "a text of some length"), 0);
      if (python) be_python(&s.client);
      __atomic_store_n(&test_fail_at, i, __ATOMIC_RELAXED);
      rc = conc_manager_call(&s.client, "echo", args, &v, limit());
      __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
      if (rc == 0)
        CHECK_EQ(conc_value_type(v), CONC_TUPLE);
      else
        CHECK(rc == -ENOMEM || rc == -EPIPE || rc == -ECONNRESET ||
              rc == -EACCES || rc == -EPROTO || rc == -EREMOTEIO);
      conc_value_free(v);
      conc_value_free(args);
    }
  SAYS(&s.client, "square", 0, "49", "i", 7);
  end(&s);
}

TEST(a_server_that_was_started_anew_is_called_again) {
  served s = nobody();
  char address[128];
  s.server.address = private_address();
  serve(&s);
  SAYS(&s.client, "square", 0, "49", "i", 7);
  snprintf(address, sizeof address, "%s", conc_manager_address(&s.server));
  s.client.address = address;
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  s.server.address = address;
  CHECK_EQ(conc_manager_register(&s.server, "square", square, NULL), 0);
  CHECK_EQ(conc_manager_start(&s.server), 0);
  usleep(150000); /* so that the old connection is looked at */
  SAYS(&s.client, "square", 0, "64", "i", 8);
  end(&s);
}

TEST_MAIN
