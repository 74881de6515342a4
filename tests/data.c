/* Lists, dicts and variables of a manager, from C: by its clients, and by the
   program that serves them. The server is one of this process, of another, or
   one of Python. And any object of a server, by its methods. */
#include "inside.h"
#include "child.h"
#include "python.h"
#include "served.h"
#include "tasks.h"

#include <signal.h>
#include <sys/wait.h>

/* A time limit that is not reached. */
static double long_time(void) { return 15 * test_slow(); }

/* --- values --- */

/* A value as JSON, which free_values() frees. */
static conc_value *kept[400];
static size_t kept_count;

static const conc_value *json(const char *text) {
  conc_value *v;
  CHECK_EQ(conc_json_loads(&v, text, strlen(text), NULL), 0);
  CHECK(kept_count < sizeof kept / sizeof *kept);
  kept[kept_count++] = v;
  return v;
}

static void free_values(void) {
  while (kept_count > 0) conc_value_free(kept[--kept_count]);
}

/* What a call has handed out, as Python writes it. */
static conc_value *got;

static const char *text_of_it(void) {
  static char text[400];
  conc_value_text(got, text, sizeof text);
  conc_value_free(got);
  got = NULL;
  return text;
}

/* The call, which has &got, succeeds; or fails. */
#define GETS(want, call) (CHECK_EQ(call, 0), CHECK_STR(text_of_it(), want))
#define FAILS(rc, call) (CHECK_EQ(call, rc), CHECK(got == NULL))

/* --- servers and clients --- */

static const char *names_at_first = "[\"Ann\", \"Bob\"]";

static void register_all(conc_manager *m) {
  CHECK_EQ(conc_manager_register_list(m, "names", json(names_at_first)), 0);
  CHECK_EQ(conc_manager_register_dict(m, "ages", json("{\"Ann\": 30}")), 0);
  CHECK_EQ(conc_manager_register_variable(m, "variable", json("7")), 0);
}

/* A server in this process, and a client of it. */
static void serve(served *s) {
  register_all(&s->server);
  serve_queue(s, conc_queue_new(NULL));
  s->client = client_of(s);
  CHECK_EQ(conc_manager_connect(&s->client, 5 * test_slow()), 0);
}

/* What a thread has for its locks it has until it ends: the main thread's. */
static void end_owners(void) { conc_local_free(&conc__remote_owners); }

static void end_all(served *s) {
  end(s);
  end_owners();
  free_values();
}

/* A client that knows the address alone. */
static conc_manager client_at(const char *address) {
  conc_manager m;
  memset(&m, 0, sizeof m);
  m.address = address;
  m.authkey = "abc";
  return m;
}

static void in_time(double begin, double seconds) {
  CHECK(conc_now() - begin < seconds + 0.5 + 5 * test_slow());
}

/* How many objects clients refer to. */
static int objects_of(conc_manager *m) {
  const conc_value *result;
  conc_value *reply;
  int64_t n;
  bool lost;
  CHECK_EQ(conc__peer_function(m->state, "number_of_objects", NULL, &reply,
                               &result, NULL, &lost, conc_now() + 5), 0);
  CHECK_EQ(conc_value_int(result, &n), 0);
  conc_value_free(reply);
  return (int)n;
}

/* --- what all calls do, wherever the list is --- */

static void use_a_list(conc_list *l) {
  CHECK_EQ(conc_list_clear(l), 0);
  CHECK_EQ(conc_list_len(l), 0);
  FAILS(-ERANGE, conc_list_pop(l, -1, &got));
  FAILS(-ERANGE, conc_list_pop(l, 0, NULL));
  CHECK_EQ(conc_list_append(l, json("[1, {\"a\": null}]")), 0);
  CHECK_EQ(conc_list_extend(l, json("[2.5, \"\\u00e9\", true]")), 0);
  GETS("[[1, {'a': None}], 2.5, 'é', True]", conc_list_copy(l, &got));
  CHECK_EQ(conc_list_len(l), 4);
  GETS("2.5", conc_list_get(l, 1, &got));
  GETS("True", conc_list_get(l, -1, &got));
  FAILS(-ERANGE, conc_list_get(l, 4, &got));
  FAILS(-ERANGE, conc_list_get(l, -5, &got));
  CHECK_EQ(conc_list_set(l, -1, json("\"last\"")), 0);
  CHECK_EQ(conc_list_set(l, 4, json("0")), -ERANGE);
  CHECK_EQ(conc_list_insert(l, 0, json("0")), 0);
  CHECK_EQ(conc_list_insert(l, 100, json("\"end\"")), 0);
  GETS("[0, [1, {'a': None}], 2.5, 'é', 'last', 'end']",
       conc_list_copy(l, &got));
  CHECK_EQ(conc_list_contains(l, json("2.5")), 1);
  CHECK_EQ(conc_list_contains(l, json("2")), 0);
  CHECK_EQ(conc_list_contains(l, json("[1.0, {\"a\": null}]")), 1);
  CHECK_EQ(conc_list_remove(l, json("2.5")), 0);
  CHECK_EQ(conc_list_remove(l, json("2.5")), -ENOENT);
  GETS("end", conc_list_pop(l, -1, &got));
  GETS("0", conc_list_pop(l, 0, &got));
  CHECK_EQ(conc_list_pop(l, 1, NULL), 0);
  GETS("[[1, {'a': None}], 'last']", conc_list_copy(l, &got));
  CHECK_EQ(conc_list_extend(l, json("3")), -EINVAL);
  CHECK_EQ(conc_list_append(l, NULL), -EINVAL);
  CHECK_EQ(conc_list_remove(l, NULL), -EINVAL);
  CHECK_EQ(conc_list_set(l, 0, NULL), -EINVAL);
  CHECK_EQ(conc_list_len(l), 2);
}

static void use_a_dict(conc_dict *d) {
  const conc_value *k = json("\"k\""), *one = json("1"), *list = json("[1]");
  CHECK_EQ(conc_dict_clear(d), 0);
  CHECK_EQ(conc_dict_len(d), 0);
  FAILS(-ENOENT, conc_dict_get(d, k, &got));
  FAILS(-ENOENT, conc_dict_pop(d, k, &got));
  FAILS(-ENOENT, conc_dict_pop(d, k, NULL));
  CHECK_EQ(conc_dict_set(d, k, json("[1, 2]")), 0);
  GETS("[1, 2]", conc_dict_get(d, k, &got));
  CHECK_EQ(conc_dict_contains(d, k), 1);
  CHECK_EQ(conc_dict_contains(d, one), 0);
  GETS("[1, 2]", conc_dict_setdefault(d, k, one, &got));
  GETS("1", conc_dict_setdefault(d, one, one, &got));
  CHECK_EQ(conc_dict_setdefault(d, one, k, NULL), 0);
  GETS("1", conc_dict_get(d, json("1.0"), &got)); /* one key */
  CHECK_EQ(conc_dict_update(d, json("{\"k\": 3, \"n\": null}")), 0);
  CHECK_EQ(conc_dict_update(d, json("[[2, \"two\"]]")), 0);
  GETS("{'k': 3, 1: 1, 'n': None, 2: 'two'}", conc_dict_copy(d, &got));
  GETS("['k', 1, 'n', 2]", conc_dict_keys(d, &got));
  CHECK_EQ(conc_dict_len(d), 4);
  GETS("3", conc_dict_pop(d, k, &got));
  CHECK_EQ(conc_dict_pop(d, one, NULL), 0);
  CHECK_EQ(conc_dict_len(d), 2);
  CHECK_EQ(conc_dict_set(d, list, one), -EINVAL); /* no key */
  FAILS(-EINVAL, conc_dict_get(d, list, &got));
  CHECK_EQ(conc_dict_contains(d, list), -EINVAL);
  CHECK_EQ(conc_dict_update(d, one), -EINVAL);
  CHECK_EQ(conc_dict_set(d, one, NULL), -EINVAL);
  CHECK_EQ(conc_dict_set(d, NULL, one), -EINVAL);
  GETS("{'n': None, 2: 'two'}", conc_dict_copy(d, &got));
}

static void use_a_variable(conc_variable *v) {
  CHECK_EQ(conc_variable_set(v, json("[1, \"x\"]")), 0);
  GETS("[1, 'x']", conc_variable_get(v, &got));
  CHECK_EQ(conc_variable_set(v, NULL), -EINVAL);
  CHECK_EQ(conc_variable_set(v, json("8")), 0);
  GETS("8", conc_variable_get(v, &got));
}

/* All three, which a manager finds. */
static void use_all(conc_manager *m) {
  conc_list *l = conc_manager_list(m, "names");
  conc_dict *d = conc_manager_dict(m, "ages");
  conc_variable *v = conc_manager_variable(m, "variable");
  CHECK(l != NULL && d != NULL && v != NULL);
  CHECK(conc_manager_list(m, "names") == l); /* found once */
  CHECK(conc_manager_dict(m, "ages") == d);
  CHECK(conc_manager_variable(m, "variable") == v);
  use_a_list(l);
  use_a_dict(d);
  use_a_variable(v);
}

static void *use_all_in_a_task(void *arg) {
  use_all((conc_manager *)arg);
  return NULL;
}

TEST(a_client_uses_the_data_of_a_server) {
  served s = nobody();
  serve(&s);
  GETS("['Ann', 'Bob']",
       conc_list_copy(conc_manager_list(&s.client, "names"), &got));
  GETS("{'Ann': 30}",
       conc_dict_copy(conc_manager_dict(&s.client, "ages"), &got));
  GETS("7", conc_variable_get(conc_manager_variable(&s.client, "variable"),
                              &got));
  use_all(&s.client);
  run(use_all_in_a_task, &s.client);
  end_all(&s);
}

TEST(the_serving_program_uses_its_data_by_the_same_calls) {
  served s = nobody();
  serve(&s);
  conc_list *mine = conc_manager_list(&s.server, "names");
  conc_list *theirs = conc_manager_list(&s.client, "names");
  GETS("['Ann', 'Bob']", conc_list_copy(mine, &got));
  CHECK_EQ(conc_list_append(mine, json("\"Cy\"")), 0);
  GETS("Cy", conc_list_pop(theirs, -1, &got));
  CHECK_EQ(conc_list_append(theirs, json("\"Di\"")), 0);
  GETS("Di", conc_list_pop(mine, 2, &got));
  use_all(&s.server);
  run(use_all_in_a_task, &s.server);
  CHECK_EQ(s.server.state->server.account.counts.clients_ever, 1);
  end_all(&s);
}

TEST(what_is_empty_at_first_may_be_registered_while_the_server_runs) {
  served s = nobody();
  serve_queue(&s, conc_queue_new(NULL));
  s.client = client_of(&s);
  CHECK_EQ(conc_manager_connect(&s.client, 5 * test_slow()), 0);
  errno = 0;
  CHECK(conc_manager_list(&s.client, "names") == NULL && errno == ENOENT);
  CHECK_EQ(conc_manager_register_list(&s.server, "names", NULL), 0);
  CHECK_EQ(conc_manager_register_dict(&s.server, "ages", NULL), 0);
  CHECK_EQ(conc_manager_register_variable(&s.server, "variable", NULL), 0);
  GETS("[]", conc_list_copy(conc_manager_list(&s.server, "names"), &got));
  GETS("{}", conc_dict_copy(conc_manager_dict(&s.client, "ages"), &got));
  GETS("None", conc_variable_get(conc_manager_variable(&s.client, "variable"),
                                 &got));
  use_all(&s.client);
  use_all(&s.server);
  end_all(&s);
}

TEST(what_cannot_be_registered_or_found) {
  static const char object[] = "cdecimal\nDecimal\n(S'1'\ntR.";
  static const char proxy[] =
      "cmultiprocessing.managers\nRebuildProxy\n(S'1'\ntR.";
  served s = nobody();
  conc_manager *m = &s.server;
  conc_value *v, *p;
  char name[300];
  memset(name, 'n', sizeof name);
  name[299] = 0;
  errno = 0;
  CHECK(conc_manager_list(m, "names") == NULL && errno == EINVAL);
  CHECK_EQ(conc_manager_register_list(m, "names", json("{}")), -EINVAL);
  CHECK_EQ(conc_manager_register_dict(m, "ages", json("[]")), -EINVAL);
  CHECK_EQ(conc_manager_register_list(m, NULL, NULL), -EINVAL);
  CHECK_EQ(conc_manager_register_list(m, "", NULL), -EINVAL);
  CHECK_EQ(conc_manager_register_dict(m, name, NULL), -ENAMETOOLONG);
  CHECK_EQ(conc_manager_register_variable(m, "\xff", NULL), -EINVAL);
  register_all(m);
  CHECK_EQ(conc_manager_register_dict(m, "names", json("{\"a\": 1}")),
           -EEXIST);
  CHECK_EQ(conc_manager_register_list(m, "names", json(names_at_first)),
           -EEXIST);

  CHECK_EQ(conc_pickle_loads_objects(&v, object, sizeof object - 1), 0);
  CHECK_EQ(conc_pickle_loads_objects(&p, proxy, sizeof proxy - 1), 0);
  CHECK_EQ(conc_manager_register_variable(m, "object", v), -EACCES);
  m->objects = CONC_PASS;
  CHECK_EQ(conc_manager_register_variable(m, "object", v), 0);
  CHECK_EQ(conc_manager_register_variable(m, "proxy", p), -EACCES);
  serve_queue(&s, conc_queue_new(NULL));
  CHECK(conc_manager_list(m, "ages") == NULL && errno == ENOENT);
  CHECK(conc_manager_dict(m, "q") == NULL && errno == ENOENT);
  CHECK(conc_manager_variable(m, "names") == NULL && errno == ENOENT);
  CHECK(conc_manager_list(m, name) == NULL && errno == ENAMETOOLONG);
  CHECK(conc_manager_list(m, NULL) == NULL && errno == EINVAL);
  s.client = client_of(&s);
  CHECK_EQ(conc_manager_connect(&s.client, 5 * test_slow()), 0);
  errno = 0;
  CHECK(conc_manager_list(&s.client, "ages") == NULL && errno == ENOENT);
  CHECK(conc_manager_list(&s.client, "q") == NULL && errno == ENOENT);
  CHECK(conc_manager_dict(&s.client, "names") == NULL && errno == ENOENT);
  CHECK(conc_manager_dict(&s.client, "variable") == NULL && errno == ENOENT);
  CHECK(conc_manager_variable(&s.client, "q") == NULL && errno == ENOENT);
  CHECK(conc_manager_variable(&s.client, "none") == NULL && errno == ENOENT);

  /* An object comes out closed; it goes in only with CONC_PASS. */
  conc_variable *x = conc_manager_variable(&s.client, "object");
  GETS("<decimal.Decimal object>", conc_variable_get(x, &got));
  CHECK_EQ(conc_variable_set(x, v), -EACCES);
  CHECK_EQ(conc_variable_set(conc_manager_variable(m, "object"), v), 0);
  GETS("<decimal.Decimal object>", conc_variable_get(x, &got));
  conc_value_free(v);
  conc_value_free(p);
  end_all(&s);
}

TEST(a_server_without_pass_takes_no_objects_from_its_program_either) {
  static const char object[] = "cdecimal\nDecimal\n(S'1'\ntR.";
  served s = nobody();
  conc_value *v;
  serve(&s);
  CHECK_EQ(conc_pickle_loads_objects(&v, object, sizeof object - 1), 0);
  CHECK_EQ(conc_list_append(conc_manager_list(&s.server, "names"), v),
           -EACCES);
  conc_value_free(v);
  end_all(&s);
}

TEST(names_of_types_make_objects_of_this_client_alone) {
  served s = nobody();
  conc_manager_register_types(&s.server);
  serve(&s);
  conc_list *a = conc_manager_list(&s.client, "list");
  conc_list *b = conc_manager_list(&s.client, "list");
  CHECK(a != NULL && b != NULL && a != b);
  CHECK_EQ(conc_list_append(a, json("1")), 0);
  CHECK_EQ(conc_list_len(a), 1);
  CHECK_EQ(conc_list_len(b), 0);
  use_a_list(a);
  use_a_dict(conc_manager_dict(&s.client, "dict"));
  CHECK_EQ(objects_of(&s.client), 3);

  /* A Namespace is a dict of fewer calls. */
  conc_dict *n = conc_manager_dict(&s.client, "Namespace");
  const conc_value *k = json("\"k\"");
  CHECK_EQ(conc_dict_set(n, k, json("[1]")), 0);
  CHECK_EQ(conc_dict_set(n, json("\"l\""), json("2")), 0);
  GETS("[1]", conc_dict_get(n, k, &got));
  GETS("{'k': [1], 'l': 2}", conc_dict_copy(n, &got));
  CHECK_EQ(conc_dict_pop(n, k, NULL), 0);
  FAILS(-ENOENT, conc_dict_get(n, k, &got));
  FAILS(-ENOTSUP, conc_dict_pop(n, k, &got));
  CHECK_EQ(conc_dict_len(n), -ENOTSUP);
  CHECK_EQ(conc_dict_clear(n), -ENOTSUP);
  /* In the serving process these are no names of objects. */
  errno = 0;
  CHECK(conc_manager_list(&s.server, "list") == NULL && errno == ENOENT);
  end_all(&s);
}

/* --- where it is called from --- */

/* A function that is served: it runs in the server's own loop. */
static int append_there(const conc_value *args, const conc_value *kwds,
                        conc_value **result, void *arg) {
  conc_list *l = conc_manager_list((conc_manager *)arg, "names");
  int rc = conc_list_append(l, conc_value_item(args, 0));
  (void)kwds;
  return rc != 0 ? rc : conc_list_copy(l, result);
}

TEST(a_function_that_is_served_uses_a_list_that_is_served) {
  served s = nobody();
  CHECK_EQ(conc_manager_register(&s.server, "append", append_there,
                                 &s.server), 0);
  serve(&s);
  GETS("['Ann', 'Bob', 3]", conc_manager_call_build(&s.client, "append", &got,
                                                    long_time(), "i", 3));
  end_all(&s);
}

/* A function that keeps the server's loop, until it is let go. */
typedef struct keeper {
  int begun, go;
} keeper;

static int keep_the_loop(const conc_value *args, const conc_value *kwds,
                         conc_value **result, void *arg) {
  keeper *k = (keeper *)arg;
  (void)args, (void)kwds, (void)result;
  STORE(k->begun, 1);
  while (!LOAD(k->go)) usleep(100);
  return 0;
}

static void *call_the_keeper(void *arg) {
  CHECK_EQ(conc_manager_call((conc_manager *)arg, "keep", NULL, NULL,
                             CONC_FOREVER), 0);
  return NULL;
}

/* Keeps the loop, in a thread of the client. */
static void begin_keeping(served *s, keeper *k, conc_task *t) {
  start(conc_thread_start, t, call_the_keeper, &s->client);
  UNTIL(LOAD(k->begun));
}

static void end_keeping(keeper *k, conc_task *t) {
  STORE(k->go, 1);
  CHECK_EQ(conc_join(t, long_time()), 0);
}

static void *append_and_be_cancelled(void *arg) {
  conc_value *v;
  CHECK_EQ(conc_build(&v, "i", 1), 0);
  CHECK_EQ(conc_list_append((conc_list *)arg, v), -ECANCELED);
  conc_value_free(v);
  return NULL;
}

/* How many errands wait. */
static int errands(const conc_manager *m) {
  conc__errands *e = &m->state->server.errands;
  conc__errand *one;
  int n = 0;
  conc__mutex_lock(conc__mutex_of(e));
  for (one = e->first; one != NULL; one = one->next) n++;
  conc__mutex_unlock(conc__mutex_of(e));
  return n;
}

TEST(a_call_of_the_serving_program_keeps_its_timeout_and_can_be_cancelled) {
  served s = nobody();
  keeper k = {0, 0};
  conc_task t, waits[3];
  CHECK_EQ(conc_manager_register(&s.server, "keep", keep_the_loop, &k), 0);
  serve(&s);
  conc_list *l = conc_manager_list(&s.server, "names");
  const conc_value *v = json("1");
  begin_keeping(&s, &k, &t);
  s.server.state->timeout = 0.05;
  CHECK_EQ(conc_list_append(l, v), -ETIMEDOUT);
  CHECK_EQ(errands(&s.server), 0);
  /* Of three, the one in the middle goes first. */
  s.server.state->timeout = long_time();
  for (int i = 0; i < 3; i++) {
    start(conc_thread_start, &waits[i], append_and_be_cancelled, l);
    UNTIL(errands(&s.server) == i + 1);
  }
  for (int i = 3; i > 0; i--) {
    CHECK_EQ(conc_cancel(&waits[i % 3]), 0); /* 0, 2, 1 */
    CHECK_EQ(conc_join(&waits[i % 3], long_time()), -ECANCELED);
    CHECK_EQ(errands(&s.server), i - 1);
  }
  end_keeping(&k, &t);
  CHECK_EQ(conc_list_len(l), 2); /* none of them has been carried out */
  CHECK_EQ(conc_list_append(l, v), 0);
  CHECK_EQ(conc_list_len(l), 3);
  end_all(&s);
}

static void *append_one(void *arg) {
  conc_value *v;
  CHECK_EQ(conc_build(&v, "i", 1), 0);
  CHECK_EQ(conc_list_append((conc_list *)arg, v), 0);
  conc_value_free(v);
  return NULL;
}

/* Makes a list so long that a look at all of it gives others their turns. */
enum { FILLED = 60 << 7 };

static void fill(conc_list *l) {
  conc_value *many;
  CHECK_EQ(conc_list_clear(l), 0);
  CHECK_EQ(conc_list_extend(l, json("\"0123456789012345678901234567890123456789"
                                    "01234567890123456789\"")), 0);
  for (int i = 0; i < 7; i++) {
    CHECK_EQ(conc_list_copy(l, &many), 0);
    CHECK_EQ(conc_list_extend(l, many), 0);
    conc_value_free(many);
  }
  CHECK_EQ(conc_list_len(l), FILLED);
}

TEST(what_the_server_has_stays_the_programs_when_it_has_ended) {
  served s = nobody();
  keeper k = {0, 0};
  conc_task t, waits;
  CHECK_EQ(conc_manager_register(&s.server, "keep", keep_the_loop, &k), 0);
  serve(&s);
  conc_list *l = conc_manager_list(&s.server, "names");
  /* One call waits while the server begins to end. */
  begin_keeping(&s, &k, &t);
  start(conc_thread_start, &waits, append_one, l);
  UNTIL(errands(&s.server) == 1);
  CHECK_EQ(conc_cancel(&s.server.state->server.root), 0);
  end_keeping(&k, &t);
  CHECK_EQ(conc_join(&waits, long_time()), 0);
  UNTIL(!conc_is_alive(&s.server.state->server.thread));
  GETS("['Ann', 'Bob', 1]", conc_list_copy(l, &got));
  use_all(&s.server);
  run(use_all_in_a_task, &s.server);
  /* So long that elsewhere it would let others have their turns. */
  fill(l);
  CHECK_EQ(conc_list_contains(l, json("\"x\"")), 0);
  end_all(&s);
}

TEST(a_forked_child_has_no_data_of_its_parents_server) {
  served s = nobody();
  NEEDS_FORK;
  serve(&s);
  conc_list *mine = conc_manager_list(&s.server, "names");
  conc_list *theirs = conc_manager_list(&s.client, "names");
  CHECK_EQ(conc_list_len(theirs), 2);
  pid_t pid = begin_child();
  if (pid == 0) {
    CHECK_CHILD(conc_list_len(mine) == -EPIPE);
    /* A client makes a new connection. */
    CHECK_CHILD(conc_list_append(theirs, json("3")) == 0);
    CHECK_CHILD(conc_manager_shutdown(&s.client) == 0);
    CHECK_CHILD(conc_manager_shutdown(&s.server) == 0);
    _exit(0);
  }
  reap(pid, 0);
  CHECK_EQ(conc_list_len(mine), 3);
  CHECK_EQ(conc_list_len(theirs), 3);
  end_all(&s);
}

/* --- several at a time --- */

enum { TASKS = 4, ITEMS = 200 };

typedef struct shares {
  conc_list *list;
  conc_dict *dict;
  int popped[ITEMS];
  int first[TASKS]; /* what each of them found under the key */
  int number;
} shares;

static void *pop_all(void *arg) {
  shares *s = (shares *)arg;
  int n = ADD_FETCH(s->number, 1) - 1;
  conc_value *v, *key, *mine;
  int64_t i;
  CHECK_EQ(conc_build(&key, "s", "leader"), 0);
  CHECK_EQ(conc_build(&mine, "i", n), 0);
  CHECK_EQ(conc_dict_setdefault(s->dict, key, mine, &v), 0);
  CHECK_EQ(conc_value_int(v, &i), 0);
  s->first[n] = (int)i;
  conc_value_free(v);
  while (conc_list_pop(s->list, 0, &v) == 0) {
    CHECK_EQ(conc_value_int(v, &i), 0);
    ADD_FETCH(s->popped[i], 1);
    conc_value_free(v);
  }
  conc_value_free(key);
  conc_value_free(mine);
  return NULL;
}

/* Tasks of the client and of the server, at one list. */
TEST(each_item_is_popped_once_and_one_default_is_set) {
  served s = nobody();
  conc_task t[TASKS];
  shares of[2];
  conc_value *v;
  serve(&s);
  memset(of, 0, sizeof of);
  of[0].list = conc_manager_list(&s.client, "names");
  of[0].dict = conc_manager_dict(&s.client, "ages");
  of[1].list = conc_manager_list(&s.server, "names");
  of[1].dict = conc_manager_dict(&s.server, "ages");
  CHECK_EQ(conc_list_clear(of[0].list), 0);
  for (int i = 0; i < ITEMS; i++) {
    CHECK_EQ(conc_build(&v, "i", i), 0);
    CHECK_EQ(conc_list_append(of[i % 2].list, v), 0);
    conc_value_free(v);
  }
  for (int i = 0; i < TASKS; i++)
    start(conc_thread_start, &t[i], pop_all, &of[i % 2]);
  for (int i = 0; i < TASKS; i++) CHECK_EQ(conc_join(&t[i], long_time()), 0);
  for (int i = 0; i < ITEMS; i++)
    CHECK_EQ(of[0].popped[i] + of[1].popped[i], 1);
  for (int i = 0; i < TASKS / 2; i++) {
    CHECK_EQ(of[0].first[i], of[0].first[0]);
    CHECK_EQ(of[1].first[i], of[0].first[0]);
  }
  CHECK_EQ(conc_list_len(of[0].list), 0);
  end_all(&s);
}

static void *copy_often(void *arg) {
  shares *s = (shares *)arg;
  conc_value *v;
  while (!LOAD(s->number)) {
    size_t i;
    CHECK_EQ(conc_list_copy(s->list, &v), 0);
    /* The items of one moment: the last ones, if any, are in their order. */
    for (i = FILLED; i < conc_value_size(v); i++) {
      int64_t n = -1;
      CHECK_EQ(conc_value_int(conc_value_item(v, i), &n), 0);
      CHECK_EQ(n, i - FILLED);
    }
    conc_value_free(v);
  }
  return NULL;
}

/* Each call has its turns, and is atomic all the same. */
TEST(calls_that_take_long_are_whole) {
  served s = nobody();
  conc_task t[2];
  shares of[2];
  conc_value *v;
  serve(&s);
  memset(of, 0, sizeof of);
  of[0].list = conc_manager_list(&s.client, "names");
  of[1].list = conc_manager_list(&s.server, "names");
  fill(of[0].list);
  for (int i = 0; i < 2; i++)
    start(conc_thread_start, &t[i], copy_often, &of[i]);
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < 10; i++) {
      CHECK_EQ(conc_build(&v, "i", i), 0);
      CHECK_EQ(conc_list_append(of[i % 2].list, v), 0);
      conc_value_free(v);
    }
    for (int i = 0; i < 10; i++)
      CHECK_EQ(conc_list_pop(of[i % 2].list, -1, NULL), 0);
  }
  for (int i = 0; i < 2; i++) STORE(of[i].number, 1);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], long_time()), 0);
  CHECK_EQ(conc_list_len(of[1].list), FILLED);
  end_all(&s);
}

/* --- limits --- */

TEST(what_is_too_long_is_refused_and_changes_nothing) {
  served s = nobody();
  conc_value *v;
  char *text = (char *)malloc(3000);
  memset(text, 'x', 3000);
  s.server.max_message = 2000;
  serve(&s);
  conc_list *l = conc_manager_list(&s.client, "names");
  conc_list *mine = conc_manager_list(&s.server, "names");
  CHECK_EQ(conc_build(&v, "s#", text, (size_t)3000), 0);
  CHECK_EQ(conc_list_append(l, v), -EMSGSIZE);
  CHECK_EQ(conc_list_len(l), 2);
  CHECK_EQ(conc_list_append(mine, v), 0); /* this is no request */
  FAILS(-EMSGSIZE, conc_list_get(l, 2, &got));
  FAILS(-EMSGSIZE, conc_list_copy(l, &got));
  FAILS(-EMSGSIZE, conc_list_pop(l, 2, &got)); /* it stays */
  CHECK_EQ(conc_list_len(l), 3);
  CHECK_EQ(conc_list_pop(l, 2, NULL), 0);
  conc_value_free(v);
  free(text);
  end_all(&s);
}

/* One of each sort of call; what it returns if there is no memory. */
static void call_some(conc_list *l, conc_dict *d, const conc_value *v,
                      const conc_value *key) {
  conc_value *out = NULL;
  int rc[4];
  rc[0] = conc_list_append(l, v);
  rc[1] = conc_dict_setdefault(d, key, v, &out);
  conc_value_free(out);
  rc[2] = conc_list_copy(l, &out);
  conc_value_free(out);
  rc[3] = (int)conc_dict_len(d);
  for (int i = 0; i < 4; i++)
    if (rc[i] < 0 && rc[i] != -ENOMEM && rc[i] != -EPIPE &&
        rc[i] != -ECONNRESET)
      TEST_FAIL("call %d: %d", i, rc[i]);
}

TEST(a_want_of_memory_is_told_and_leaks_nothing) {
  for (int where = 0; where < 2; where++)
    for (long at = 1; at < 60; at++) {
      served s = nobody();
      serve(&s);
      conc_manager *m = where == 0 ? &s.server : &s.client;
      const conc_value *v = json("[1, \"a longer text than fits\"]");
      const conc_value *key = json("\"key\"");
      conc_list *l;
      conc_dict *d;
      if (at % 2 == 0) { /* the finding, too */
        __atomic_store_n(&test_fail_at, at / 2, __ATOMIC_RELAXED);
        l = conc_manager_list(m, "names");
        d = conc_manager_dict(m, "ages");
      } else {
        l = conc_manager_list(m, "names");
        d = conc_manager_dict(m, "ages");
        __atomic_store_n(&test_fail_at, at, __ATOMIC_RELAXED);
      }
      if (l != NULL && d != NULL) call_some(l, d, v, key);
      __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
      l = conc_manager_list(m, "names");
      CHECK(l != NULL);
      CHECK_EQ(conc_list_append(l, v), 0); /* it works on */
      end_all(&s);
    }
}

TEST(a_want_of_memory_while_data_is_registered_leaks_nothing) {
  for (long at = 1; at < 30; at++) {
    conc_manager m;
    const conc_value *v = json("[[1, \"a longer text than fits\"]]");
    const conc_value *d = json("{\"a key that is too long\": [2]}");
    int rc;
    memset(&m, 0, sizeof m);
    __atomic_store_n(&test_fail_at, at, __ATOMIC_RELAXED);
    rc = conc_manager_register_list(&m, "l", v);
    CHECK(rc == 0 || rc == -ENOMEM);
    rc = conc_manager_register_dict(&m, "d", d);
    CHECK(rc == 0 || rc == -ENOMEM);
    rc = conc_manager_register_variable(&m, "v", v);
    CHECK(rc == 0 || rc == -ENOMEM);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    if (m.state != NULL) CHECK_EQ(conc_manager_shutdown(&m), 0);
    free_values();
  }
}

/* --- a server that is far away --- */

/* Returns when the process stands still. */
static void stop(pid_t pid) {
  int status;
  CHECK_EQ(kill(pid, SIGSTOP), 0);
  CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
  CHECK(WIFSTOPPED(status));
}

typedef struct far {
  pid_t pid;
  char path[100];
} far;

/* A server in a child, which also makes lists. */
static void serve_far(far *f) {
  int fd[2];
  char byte;
  snprintf(f->path, sizeof f->path, "/tmp/conc-data-%d", (int)getpid());
  unlink(f->path);
  CHECK_EQ(pipe(fd), 0);
  f->pid = begin_child();
  if (f->pid == 0) {
    conc_manager m = client_at(f->path);
    register_all(&m);
    CHECK_CHILD(conc_manager_register_types(&m) == 0);
    CHECK_CHILD(conc_manager_start(&m) == 0);
    CHECK_CHILD(write(fd[1], "x", 1) == 1);
    for (;;) pause();
  }
  CHECK_EQ(read(fd[0], &byte, 1), 1);
  close(fd[0]), close(fd[1]);
}

static void kill_far(const far *f) {
  CHECK_EQ(kill(f->pid, SIGKILL), 0);
  reap(f->pid, -SIGKILL);
}

TEST(calls_return_in_time_when_the_server_is_stopped) {
  far f;
  NEEDS_FORK;
  serve_far(&f);
  conc_manager m = client_at(f.path);
  CHECK_EQ(conc_manager_connect(&m, long_time()), 0);
  conc_list *l = conc_manager_list(&m, "names");
  CHECK_EQ(conc_list_len(l), 2);
  stop(f.pid);
  m.state->timeout = 0.3;
  double begin = conc_now();
  FAILS(-ETIMEDOUT, conc_list_get(l, 0, &got));
  in_time(begin, 0.3);
  CHECK_EQ(kill(f.pid, SIGCONT), 0);
  m.state->timeout = long_time();
  CHECK_EQ(conc_list_len(l), 2);
  stop(f.pid);
  m.state->timeout = 0.3;
  begin = conc_now();
  CHECK_EQ(conc_list_append(l, json("3")), -ECONNRESET);
  in_time(begin, 0.3);
  CHECK_EQ(kill(f.pid, SIGCONT), 0);
  m.state->timeout = long_time();
  ssize_t n = conc_list_len(l);
  CHECK(n == 2 || n == 3);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  kill_far(&f);
  unlink(f.path);
  free_values();
}

static void *get_first(void *arg) {
  conc_value *v;
  CHECK_EQ(conc_list_get((conc_list *)arg, 0, &v), -ECANCELED);
  return NULL;
}

TEST(a_call_of_a_client_can_be_cancelled) {
  far f;
  conc_task t;
  NEEDS_FORK;
  serve_far(&f);
  conc_manager m = client_at(f.path);
  m.timeout = 100 * test_slow();
  CHECK_EQ(conc_manager_connect(&m, long_time()), 0);
  conc_list *l = conc_manager_list(&m, "names");
  stop(f.pid);
  start(conc_thread_start, &t, get_first, l);
  CHECK_EQ(conc_join(&t, 0.05), -ETIMEDOUT);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, long_time()), -ECANCELED);
  CHECK_EQ(kill(f.pid, SIGCONT), 0);
  CHECK_EQ(conc_list_len(l), 2);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  kill_far(&f);
  unlink(f.path);
  free_values();
}

TEST(a_name_is_found_again_when_the_server_was_started_anew) {
  far f;
  NEEDS_FORK;
  serve_far(&f);
  conc_manager m = client_at(f.path);
  CHECK_EQ(conc_manager_connect(&m, long_time()), 0);
  conc_list *l = conc_manager_list(&m, "names");
  conc_list *made = conc_manager_list(&m, "list");
  CHECK_EQ(conc_list_append(l, json("3")), 0);
  CHECK_EQ(conc_list_append(made, json("3")), 0);
  kill_far(&f);
  CHECK(conc_list_len(l) < 0);
  CHECK(conc_list_append(l, json("4")) < 0);
  serve_far(&f);
  GETS("['Ann', 'Bob']", conc_list_copy(l, &got));
  CHECK_EQ(conc_list_append(made, json("4")), -ENOENT); /* not another one */
  CHECK_EQ(conc_list_len(made), -ENOENT);
  CHECK(conc_manager_list(&m, "names") == l);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  kill_far(&f);
  unlink(f.path);
  free_values();
}

typedef struct patient {
  conc_list *list;
  int begun;
  ssize_t n;
} patient;

static void *ask_patiently(void *arg) {
  patient *p = (patient *)arg;
  STORE(p->begun, 1);
  p->n = conc_list_len(p->list);
  return NULL;
}

TEST(with_reconnect_a_call_waits_for_the_server_to_come_back) {
  far f;
  conc_task t;
  patient p = {NULL, 0, 0};
  NEEDS_FORK;
  serve_far(&f);
  conc_manager m = client_at(f.path);
  m.timeout = m.reconnect = long_time();
  CHECK_EQ(conc_manager_connect(&m, long_time()), 0);
  p.list = conc_manager_list(&m, "names");
  CHECK_EQ(conc_list_append(p.list, json("3")), 0);
  kill_far(&f);
  start(conc_thread_start, &t, ask_patiently, &p);
  UNTIL(LOAD(p.begun));
  conc_sleep(0.02);
  serve_far(&f);
  CHECK_EQ(conc_join(&t, long_time()), 0);
  CHECK_EQ(p.n, 2);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  kill_far(&f);
  unlink(f.path);
  free_values();
}

/* --- any object of a server --- */

/* An object of the client's server, made of one argument, in JSON,
   or of none. */
static conc_instance *instance_of(conc_manager *m, const char *name,
                               const char *arg) {
  conc_instance *p = conc_manager_instance(
      m, name, arg != NULL ? json(arg) : NULL, long_time());
  CHECK(p != NULL);
  return p;
}

/* A call with one such argument, or with none. */
static int ask(conc_instance *p, const char *method, const char *arg) {
  return conc_instance_call(p, method, arg != NULL ? json(arg) : NULL, &got,
                            long_time());
}

#define RAISES(rc, want, call)                                                \
  (CHECK_EQ(call, rc), CHECK(got != NULL), CHECK_STR(text_of_it(), want))

static int square(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  int64_t n;
  (void)kwds, (void)arg;
  if (conc_value_int(conc_value_item(args, 0), &n) != 0)
    return conc_manager_raise(result, "TypeError", "no number");
  return conc_build(result, "L", (long long)(n * n));
}

/* A function that waits until it is cancelled. */
typedef struct waits {
  int begun, cancelled; /* how often */
} waits;

static int wait_for_ever(const conc_value *args, const conc_value *kwds,
                         conc_value **result, void *arg) {
  waits *w = (waits *)arg;
  int rc;
  (void)args, (void)kwds, (void)result;
  ADD_FETCH(w->begun, 1);
  rc = conc_sleep(1e6);
  if (rc == -ECANCELED) ADD_FETCH(w->cancelled, 1);
  return rc;
}

/* With all types, and these functions. */
static void serve_types(served *s, waits *w) {
  memset(w, 0, sizeof *w);
  CHECK_EQ(conc_manager_register(&s->server, "square", square, NULL), 0);
  CHECK_EQ(conc_manager_register(&s->server, "wait", wait_for_ever, w), 0);
  CHECK_EQ(conc_manager_register_types(&s->server), 0);
  serve(s);
}

/* As both servers, of C and of Python, have them. */
static void use_instances(conc_manager *m) {
  const int before = objects_of(m);
  conc_instance *list = instance_of(m, "list", "[3, 1, 2]");
  conc_instance *dict = instance_of(m, "dict", NULL);
  GETS("None", ask(list, "sort", NULL));
  GETS("[1, 2, 3]", ask(list, "#GETVALUE", NULL));
  GETS("1", ask(list, "index", "2"));
  RAISES(-EINVAL, "ValueError: 7 is not in list", ask(list, "index", "7"));
  RAISES(-EREMOTEIO, "IndexError: list index out of range",
         ask(list, "__getitem__", "5"));
  GETS("2", conc_instance_call_build(list, "__getitem__", &got, long_time(),
                                     "i", 1));
  CHECK_EQ(conc_instance_call_build(list, "insert", NULL, long_time(), "is", 0,
                                    "first"),
           0);
  CHECK_EQ(conc_instance_call(list, "reverse", NULL, NULL, long_time()), 0);
  GETS("[3, 2, 1, 'first']", ask(list, "#GETVALUE", NULL));
  RAISES(-ENOENT, "KeyError: a", ask(dict, "__getitem__", "\"a\""));
  CHECK_EQ(conc_instance_call_build(dict, "__setitem__", NULL, long_time(),
                                    "si", "a", 1),
           0);
  GETS("('a', 1)", ask(dict, "popitem", NULL));
  CHECK_EQ(ask(dict, "no_such", NULL), -ENOTSUP);
  CHECK(got != NULL && strstr(text_of_it(), "no_such") != NULL);
  CHECK_EQ(ask(dict, "clear", "1"), -EINVAL);
  CHECK(got != NULL && strncmp(text_of_it(), "TypeError: ", 11) == 0);
  CHECK_EQ(objects_of(m), before + 2);
  conc_instance_free(list);
  CHECK_EQ(objects_of(m), before + 1);
  conc_instance_free(dict);
  conc_instance_free(NULL);

  /* What a method returns may be an object. */
  dict = instance_of(m, "dict", "{\"k\": 1}");
  conc_instance *keys =
      conc_instance_open(dict, "__iter__", NULL, long_time());
  CHECK(keys != NULL);
  GETS("k", ask(keys, "__next__", NULL));
  RAISES(-EREMOTEIO, "StopIteration", ask(keys, "__next__", NULL));
  CHECK_EQ(objects_of(m), before + 2);
  GETS("None", ask(dict, "__iter__", NULL)); /* nobody has that one */
  CHECK_EQ(objects_of(m), before + 2);
  errno = 0;
  CHECK(conc_instance_open(dict, "__len__", NULL, long_time()) == NULL);
  CHECK_EQ(errno, ENOTSUP);
  CHECK(conc_instance_open(dict, "no_such", NULL, long_time()) == NULL);
  CHECK_EQ(errno, ENOTSUP);
  CHECK(conc_instance_open(dict, "__getitem__", json("7"), long_time()) ==
        NULL);
  CHECK_EQ(errno, ENOENT);
  conc_instance_free(dict);
  conc_instance_free(keys);
  CHECK_EQ(objects_of(m), before);
}

static void *use_instances_in_a_task(void *arg) {
  use_instances((conc_manager *)arg);
  return NULL;
}

TEST(an_instance_has_any_method_of_any_object) {
  served s = nobody();
  waits w;
  serve_types(&s, &w);
  use_instances(&s.client);
  run(use_instances_in_a_task, &s.client);
  /* What has a name is not made anew, and stays. */
  conc_instance *names = instance_of(&s.client, "names", NULL);
  CHECK_EQ(conc_instance_call(names, "reverse", NULL, NULL, long_time()), 0);
  conc_instance_free(names);
  GETS("['Bob', 'Ann']",
       conc_list_copy(conc_manager_list(&s.client, "names"), &got));
  conc_instance *q = instance_of(&s.client, "q", NULL);
  CHECK_EQ(ask(q, "put", "\"job\""), 0);
  conc_value_free(got);
  conc_instance_free(q);
  q = instance_of(&s.client, "q", NULL);
  GETS("1", ask(q, "qsize", NULL));
  GETS("job", ask(q, "get", NULL));
  end_all(&s); /* and with it what is still there */
}

TEST(a_pool_of_a_server_is_used_from_c) {
  served s = nobody();
  waits w;
  serve_types(&s, &w);
  const int before = objects_of(&s.client);
  conc_instance *pool = instance_of(&s.client, "Pool", "2"), *result, *slow;
  GETS("[0, 1, 4]", conc_instance_call_build(pool, "map", &got, long_time(),
                                             "s[iii]", "square", 0, 1, 2));
  conc_value *job;
  CHECK_EQ(conc_build(&job, "s(i)", "square", 5), 0);
  result = conc_instance_open(pool, "apply_async", job, long_time());
  CHECK(result != NULL);
  GETS("25",
       conc_instance_call_build(result, "get", &got, long_time(), "i", 9));
  GETS("True", ask(result, "successful", NULL));
  conc_instance_free(result);
  result = conc_instance_open(pool, "imap", NULL, long_time());
  CHECK(result == NULL && errno == EINVAL); /* a TypeError */
  RAISES(-EINVAL, "TypeError: no number",
         conc_instance_call_build(pool, "apply", &got, long_time(), "s(s)",
                                  "square", "x"));
  slow =
      conc_instance_open(pool, "apply_async", json("\"wait\""), long_time());
  CHECK(slow != NULL);
  UNTIL(LOAD(w.begun) == 1);
  RAISES(-ETIMEDOUT, "TimeoutError",
         conc_instance_call_build(slow, "get", &got, long_time(), "d", 0.001));
  FAILS(-ETIMEDOUT, conc_instance_call(slow, "get", NULL, &got, 0.02));
  conc_instance_free(slow);
  CHECK_EQ(ask(pool, "terminate", NULL), 0);
  conc_value_free(got);
  UNTIL(LOAD(w.cancelled) == 1);
  conc_instance_free(pool);
  CHECK_EQ(objects_of(&s.client), before);
  conc_value_free(job);
  end_all(&s);
}

/* --- keyword arguments --- */

/* Tells what it was called with. */
static int echo(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)arg;
  return conc_build(result, "(OO)", args, kwds);
}

/* By a client, and by the program that serves. */
static void echo_by_keyword(conc_manager *m) {
  const conc_value *by = json("{\"by\": [1], \"x\": null}");
  GETS("((7,), {'by': [1], 'x': None})",
       conc_manager_call_with(m, "echo", json("7"), by, &got, long_time()));
  GETS("((), {'by': [1], 'x': None})",
       conc_manager_call_with(m, "echo", NULL, by, &got, long_time()));
  GETS("((7,), {})", conc_manager_call_with(m, "echo", json("7"), json("{}"),
                                            &got, long_time()));
  GETS("((7,), {})", conc_manager_call_with(m, "echo", json("7"), NULL, &got,
                                            long_time()));
  GETS("((7,), {})",
       conc_manager_call(m, "echo", json("7"), &got, long_time()));
  FAILS(-EINVAL, conc_manager_call_with(m, "echo", NULL, json("[1]"), &got,
                                        long_time()));
  conc_value *numbers;
  CHECK_EQ(conc_build(&numbers, "{i:i}", 1, 2), 0);
  FAILS(-EINVAL, conc_manager_call_with(m, "echo", NULL, numbers, &got,
                                        long_time()));
  conc_value_free(numbers);
}

TEST(a_function_gets_keyword_arguments) {
  served s = nobody();
  CHECK_EQ(conc_manager_register(&s.server, "echo", echo, NULL), 0);
  serve(&s);
  echo_by_keyword(&s.client);
  echo_by_keyword(&s.server);
  end_all(&s);
}

TEST(an_instance_gets_keyword_arguments) {
  served s = nobody();
  waits w;
  serve_types(&s, &w);
  conc_instance *sem = conc_manager_instance_with(
      &s.client, "Semaphore", NULL, json("{\"value\": 0}"), long_time());
  CHECK(sem != NULL);
  GETS("False", conc_instance_call_with(sem, "acquire", NULL,
                                        json("{\"blocking\": false}"), &got,
                                        long_time()));
  CHECK_EQ(conc_instance_call_with(sem, "acquire", NULL,
                                   json("{\"no_such\": 1}"), &got,
                                   long_time()),
           -EINVAL);
  CHECK(strncmp(text_of_it(), "TypeError: ", 11) == 0);
  conc_instance_free(sem);
  errno = 0;
  CHECK(conc_manager_instance_with(&s.client, "Semaphore", NULL,
                                   json("{\"no_such\": 1}"),
                                   long_time()) == NULL);
  CHECK_EQ(errno, EINVAL);
  errno = 0;
  CHECK(conc_manager_instance_with(&s.client, "Semaphore", NULL, json("[]"),
                                   long_time()) == NULL);
  CHECK_EQ(errno, EINVAL);
  conc_instance *pool = instance_of(&s.client, "Pool", "2"), *result;
  conc_value *job;
  CHECK_EQ(conc_build(&job, "(s[iii])", "square", 1, 2, 3), 0);
  GETS("[1, 4, 9]",
       conc_instance_call_with(pool, "map", job, json("{\"chunksize\": 2}"),
                               &got, long_time()));
  FAILS(-EINVAL, conc_instance_call_with(pool, "map", job, json("2"), &got,
                                         long_time()));
  result = conc_instance_open_with(pool, "map_async", job,
                                   json("{\"chunksize\": 1}"), long_time());
  CHECK(result != NULL);
  GETS("[1, 4, 9]",
       conc_instance_call_with(result, "get", NULL, json("{\"timeout\": 9}"),
                               &got, long_time()));
  conc_instance_free(result);
  errno = 0;
  CHECK(conc_instance_open_with(pool, "map_async", job, json("2"),
                                long_time()) == NULL);
  CHECK_EQ(errno, EINVAL);
  conc_instance_free(pool);
  conc_value_free(job);
  end_all(&s);
}

/* --- proxies that C makes --- */

/* A proxy of what this manager has, which the caller frees. */
static conc_value *proxy_of(conc_manager *m, const void *object) {
  conc_value *v;
  CHECK_EQ(conc_manager_proxy(m, object, &v), 0);
  CHECK_EQ(conc_value_type(v), CONC_OBJECT);
  return v;
}

/* The object that the proxy behind that key of a dict names. */
static conc_instance *named_in(conc_manager *m, conc_dict *d,
                               const char *key) {
  conc_value *v;
  CHECK_EQ(conc_dict_get(d, json(key), &v), 0);
  conc_instance *x = conc_manager_instance_of(m, v, long_time());
  CHECK(x != NULL);
  conc_value_free(v);
  return x;
}

/* Puts a proxy of an object behind a key, and finds the object there. */
static conc_instance *by_dict(conc_manager *m, conc_dict *d, const char *key,
                              const void *object) {
  conc_value *v = proxy_of(m, object);
  CHECK_EQ(conc_dict_set(d, json(key), v), 0);
  conc_value_free(v);
  return named_in(m, d, key);
}

/* Lists, dicts and others in a dict, as both kinds of server have them. */
static void use_proxies(conc_manager *m) {
  const int before = objects_of(m);
  conc_dict *d = conc_manager_dict(m, "ages");
  conc_list *names = conc_manager_list(m, "names"), *own;
  conc_variable *v = conc_manager_variable(m, "variable");
  conc_instance *x = by_dict(m, d, "\"names\"", names);
  CHECK_EQ(conc_instance_call(x, "append", json("\"Eve\""), NULL,
                              long_time()), 0);
  GETS("Eve", conc_list_get(names, -1, &got));
  conc_instance_free(x);
  x = by_dict(m, d, "\"variable\"", v);
  CHECK_EQ(ask(x, "set", "8"), 0);
  conc_value_free(got);
  GETS("8", conc_variable_get(v, &got));
  conc_instance_free(x);
  x = by_dict(m, d, "\"itself\"", d);
  GETS("True", ask(x, "__contains__", "\"names\""));
  conc_instance_free(x);
  /* What one client alone has lives as long as it is in there. */
  own = conc_manager_list(m, "list");
  CHECK(own != NULL);
  CHECK_EQ(conc_list_append(own, json("1")), 0);
  x = by_dict(m, d, "\"own\"", own);
  GETS("[1]", ask(x, "#GETVALUE", NULL));
  conc_instance_free(x);
  /* Deep inside of a value, and twice. */
  conc_value *p = proxy_of(m, own), *deep;
  CHECK_EQ(conc_build(&deep, "[i(OO)]", 1, p, p), 0);
  CHECK_EQ(conc_list_append(names, deep), 0);
  conc_value_free(deep);
  conc_value_free(p);
  CHECK_EQ(conc_list_get(names, -1, &deep), 0);
  x = conc_manager_instance_of(
      m, conc_value_item(conc_value_item(deep, 1), 1), long_time());
  CHECK(x != NULL);
  GETS("[1]", ask(x, "#GETVALUE", NULL));
  conc_instance_free(x);
  conc_value_free(deep);
  CHECK_EQ(conc_list_pop(names, -1, NULL), 0);
  for (int i = 0; i < 4; i++) {
    static const char *const keys[] = {"\"names\"", "\"variable\"",
                                       "\"itself\"", "\"own\""};
    CHECK_EQ(conc_dict_pop(d, json(keys[i]), NULL), 0);
  }
  CHECK_EQ(conc_list_pop(names, -1, NULL), 0);
  CHECK_EQ(conc_variable_set(v, json("7")), 0);
  CHECK(objects_of(m) >= before);
}

/* What has the proxies of its methods, and what waits. */
static void use_other_proxies(conc_manager *m) {
  conc_dict *d = conc_manager_dict(m, "ages");
  conc_queue *q = conc_manager_get(m, "jobs");
  CHECK(q != NULL);
  conc_instance *x = by_dict(m, d, "\"q\"", q);
  CHECK_EQ(ask(x, "put", "\"job\""), 0);
  conc_value_free(got);
  GETS("job", conc_get_value(q, &got, long_time()));
  conc_instance_free(x);
  conc_instance *space = instance_of(m, "list", "[5]");
  x = by_dict(m, d, "\"instance\"", space);
  conc_instance_free(space); /* it lives on, in the dict */
  GETS("5", ask(x, "__getitem__", "0"));
  conc_instance_free(x);
  conc_lock *lock = conc_manager_lock(m, "Lock");
  x = by_dict(m, d, "\"lock\"", lock);
  GETS("True", ask(x, "acquire", "false"));
  CHECK_EQ(conc_lock_acquire(lock, 0), -ETIMEDOUT);
  CHECK_EQ(ask(x, "release", NULL), 0);
  conc_value_free(got);
  conc_instance_free(x);
  conc_event *event = conc_manager_event(m, "Event");
  x = by_dict(m, d, "\"event\"", event);
  CHECK_EQ(ask(x, "set", NULL), 0);
  conc_value_free(got);
  CHECK(conc_event_is_set(event));
  conc_instance_free(x);
  for (int i = 0; i < 4; i++) {
    static const char *const keys[] = {"\"q\"", "\"instance\"",
                                       "\"lock\"", "\"event\""};
    CHECK_EQ(conc_dict_pop(d, json(keys[i]), NULL), 0);
  }
}

TEST(a_proxy_goes_into_what_is_served) {
  served s = nobody();
  waits w;
  conc_queue *jobs = conc_queue_new(NULL);
  CHECK_EQ(conc_manager_register_queue(&s.server, "jobs", jobs), 0);
  serve_types(&s, &w);
  use_proxies(&s.client);
  use_other_proxies(&s.client);

  /* The object lives as long as it is named there. */
  conc_dict *d = conc_manager_dict(&s.client, "ages");
  conc_instance *a = instance_of(&s.client, "list", NULL);
  const int before = objects_of(&s.client);
  conc_instance *x = by_dict(&s.client, d, "\"k\"", a);
  conc_instance_free(a);
  conc_instance_free(x);
  CHECK(objects_of(&s.client) <= before);
  x = named_in(&s.client, d, "\"k\"");
  conc_value *p = proxy_of(&s.client, x);
  conc_instance_free(x);
  CHECK_EQ(conc_dict_pop(d, json("\"k\""), NULL), 0);
  CHECK(conc_dict_set(d, json("\"k\""), p) < 0); /* it has ended */
  conc_value_free(p);

  /* The program that serves. */
  conc_list *names = conc_manager_list(&s.server, "names");
  d = conc_manager_dict(&s.server, "ages");
  p = proxy_of(&s.server, names);
  CHECK_EQ(conc_dict_set(d, json("\"k\""), p), 0);
  conc_value_free(p);
  x = named_in(&s.client, conc_manager_dict(&s.client, "ages"), "\"k\"");
  GETS("['Ann', 'Bob']", ask(x, "#GETVALUE", NULL));
  conc_instance_free(x);
  p = proxy_of(&s.server, jobs);
  CHECK_EQ(conc_dict_set(d, json("\"k\""), p), 0);
  conc_value_free(p);
  x = named_in(&s.client, conc_manager_dict(&s.client, "ages"), "\"k\"");
  CHECK_EQ(ask(x, "put", "1"), 0);
  conc_value_free(got);
  CHECK_EQ(conc_qsize(jobs), 1);
  conc_instance_free(x);
  end_all(&s);
  conc_queue_free(jobs);
}

TEST(a_proxy_is_an_argument) {
  served s = nobody();
  CHECK_EQ(conc_manager_register(&s.server, "echo", echo, NULL), 0);
  CHECK_EQ(conc_manager_register_types(&s.server), 0);
  serve(&s);
  conc_list *names = conc_manager_list(&s.client, "names");
  conc_value *p = proxy_of(&s.client, names), *kwds;
  CHECK_EQ(conc_build(&kwds, "{s:O}", "lock", p), 0);
  /* A function of C gets it as the object that it is, and cannot return it. */
  CHECK_EQ(conc_manager_call(&s.client, "echo", p, &got, long_time()),
           -EINVAL);
  CHECK_STR(text_of_it(),
            "TypeError: the result has an instance of a class in it");
  conc_value_free(kwds);
  conc_value_free(p);
  conc_lock *lock = conc_manager_lock(&s.client, "Lock");
  p = proxy_of(&s.client, lock);
  CHECK_EQ(conc_build(&kwds, "{s:O}", "lock", p), 0);
  conc_instance *cond = conc_manager_instance_with(&s.client, "Condition",
                                                   NULL, kwds, long_time());
  CHECK(cond != NULL);
  GETS("True", ask(cond, "acquire", NULL));
  CHECK_EQ(conc_lock_acquire(lock, 0), -ETIMEDOUT); /* it is the same */
  conc_instance_free(cond);
  conc_value_free(kwds);
  conc_value_free(p);
  end_all(&s);
}

TEST(what_has_no_proxy) {
  served s = nobody();
  conc_value *v;
  int other = 0;
  CHECK_EQ(conc_manager_proxy(&s.client, &other, &v), -EINVAL);
  serve(&s);
  CHECK_EQ(conc_manager_proxy(&s.client, NULL, &v), -EINVAL);
  CHECK_EQ(conc_manager_proxy(&s.client, &other, &v), -EINVAL);
  CHECK(v == NULL);
  CHECK_EQ(conc_manager_proxy(&s.server, &other, &v), -EINVAL);
  /* What another manager has. */
  conc_list *names = conc_manager_list(&s.server, "names");
  CHECK_EQ(conc_manager_proxy(&s.client, names, &v), -EINVAL);
  /* An object of another class is no proxy, also beside one. */
  static const char object[] = "cdecimal\nDecimal\n(S'1'\ntR.";
  conc_value *decimal, *both;
  names = conc_manager_list(&s.client, "names");
  conc_value *p = proxy_of(&s.client, names);
  CHECK_EQ(conc_pickle_loads_objects(&decimal, object, sizeof object - 1), 0);
  CHECK_EQ(conc_build(&both, "[OO]", p, decimal), 0);
  CHECK_EQ(conc_list_append(names, both), -EACCES);
  CHECK_EQ(conc_list_len(names), 2);
  conc_value_free(both);
  conc_value_free(decimal);
  conc_value_free(p);
  /* The server goes, and with it its text of the address. */
  char address[60];
  snprintf(address, sizeof address, "%s", s.client.address);
  s.client.address = address;
  s.client.state->timeout = 0.2;
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK(conc_manager_proxy(&s.client, names, &v) < 0);
  CHECK(v == NULL);
  conc_queue_free(s.queue);
  CHECK_EQ(conc_manager_shutdown(&s.client), 0);
  free_values();
}

static void *wait_in_a_pool(void *arg) {
  conc_value *v;
  CHECK_EQ(conc_instance_call((conc_instance *)arg, "apply", json("\"wait\""),
                              &v, CONC_FOREVER),
           -ECANCELED);
  CHECK(v == NULL);
  return NULL;
}

TEST(a_call_of_an_instance_that_is_given_up_is_given_up_by_the_server) {
  served s = nobody();
  conc_task t;
  waits w;
  serve_types(&s, &w);
  conc_instance *pool = instance_of(&s.client, "Pool", "1");
  start(conc_thread_start, &t, wait_in_a_pool, pool);
  UNTIL(LOAD(w.begun) == 1);
  CHECK_EQ(conc_cancel(&t), 0);
  CHECK_EQ(conc_join(&t, long_time()), -ECANCELED);
  UNTIL(LOAD(w.cancelled) == 1);
  FAILS(-ETIMEDOUT,
        conc_instance_call(pool, "apply", json("\"wait\""), &got, 0.02));
  GETS("9", conc_instance_call_build(pool, "apply", &got, long_time(), "s(i)",
                                     "square", 3));
  CHECK_EQ(w.cancelled, w.begun);
  end_all(&s);
}

TEST(what_instances_refuse) {
  static const char object[] = "cdecimal\nDecimal\n(S'1'\ntR.";
  served s = nobody();
  conc_value *v;
  char name[300];
  waits w;
  memset(name, 'n', sizeof name);
  name[299] = 0;
  memset(&s.client, 0, sizeof s.client);
  errno = 0;
  CHECK(conc_manager_instance(&s.client, "list", NULL, 1) == NULL);
  CHECK_EQ(errno, EINVAL);
  s.server.max_objects = 2;
  serve_types(&s, &w);
#define REFUSED(error, m, name, args)                                         \
  (errno = 0,                                                                 \
   CHECK(conc_manager_instance(m, name, args, long_time()) == NULL),          \
   CHECK_EQ(errno, error))
  REFUSED(ENOTSUP, &s.server, "list", NULL);
  REFUSED(EINVAL, &s.client, NULL, NULL);
  REFUSED(ENAMETOOLONG, &s.client, name, NULL);
  REFUSED(ENOENT, &s.client, "none", NULL);
  REFUSED(EINVAL, &s.client, "list", json("5")); /* a TypeError */
  CHECK_EQ(conc_pickle_loads_objects(&v, object, sizeof object - 1), 0);
  REFUSED(EACCES, &s.client, "list", v);
  conc_instance *a = instance_of(&s.client, "list", NULL);
  conc_instance *b = instance_of(&s.client, "list", NULL);
  REFUSED(ENOMEM, &s.client, "list", NULL);
  FAILS(-EACCES, conc_instance_call(a, "append", v, &got, long_time()));
  FAILS(-EINVAL, conc_instance_call(NULL, "append", v, &got, long_time()));
  FAILS(-EINVAL, conc_instance_call(a, NULL, v, &got, long_time()));
  FAILS(-EINVAL,
        conc_instance_call_build(a, "append", &got, long_time(), "?"));
  errno = 0;
  CHECK(conc_instance_open(NULL, "copy", NULL, 1) == NULL && errno == EINVAL);
  CHECK(conc_instance_open(b, NULL, NULL, 1) == NULL && errno == EINVAL);
  GETS("[]", ask(a, "#GETVALUE", NULL)); /* the connection is as good as new */
  conc_value_free(v);
  end_all(&s);
}

TEST(an_instance_of_a_server_that_was_started_anew_is_of_nothing) {
  served s = nobody();
  waits w;
  s.server.address = private_address();
  serve_types(&s, &w);
  conc_instance *a = instance_of(&s.client, "list", NULL);
  conc_manager client = s.client;
  char address[60];
  snprintf(address, sizeof address, "%s", client.address);
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK(conc_instance_call(a, "append", json("1"), NULL, long_time()) < 0);
  s.server.address = address;
  CHECK_EQ(conc_manager_register_types(&s.server), 0);
  register_all(&s.server);
  CHECK_EQ(conc_manager_register_queue(&s.server, "q", s.queue), 0);
  CHECK_EQ(conc_manager_start(&s.server), 0);
  s.client.address = address;
  CHECK_EQ(conc_instance_call(a, "append", json("1"), NULL, long_time()),
           -ENOENT);
  conc_instance_free(a);
  a = instance_of(&s.client, "list", NULL);
  CHECK_EQ(conc_instance_call(a, "append", json("1"), NULL, long_time()), 0);
  conc_instance_free(a);
  end_all(&s);
}

/* A list, an iterator over a dict, and their calls; whatever fails. */
static void try_instances(conc_manager *m, const conc_value *v,
                          const conc_value *zero) {
  conc_instance *list = conc_manager_instance(m, "list", v, long_time());
  conc_instance *dict = conc_manager_instance(m, "dict", NULL, long_time());
  conc_instance *keys =
      dict != NULL ? conc_instance_open(dict, "__iter__", NULL, long_time())
                   : NULL;
  if (list != NULL && conc_instance_call(list, "__getitem__", zero, &got,
                                         long_time()) != 0)
    CHECK(got == NULL || conc_value_type(got) == CONC_STR);
  conc_value_free(got);
  got = NULL;
  if (dict != NULL) conc_instance_call(dict, "__iter__", NULL, NULL, 1);
  conc_value *proxy = NULL;
  if (list != NULL && conc_manager_proxy(m, list, &proxy) == 0 &&
      conc_instance_call(list, "append", proxy, &got, long_time()) != 0)
    CHECK(got == NULL || conc_value_type(got) == CONC_STR);
  conc_value_free(proxy);
  conc_value_free(got);
  got = NULL;
  conc_instance_free(list);
  conc_instance_free(dict);
  conc_instance_free(keys);
}

TEST(a_want_of_memory_for_instances_is_told_and_leaks_nothing) {
  for (long at = 1; at < 130; at++) {
    served s = nobody();
    waits w;
    serve_types(&s, &w);
    const conc_value *v = json("[\"a longer text than fits in a node\"]");
    const conc_value *zero = json("0");
    __atomic_store_n(&test_fail_at, at, __ATOMIC_RELAXED);
    try_instances(&s.client, v, zero);
    __atomic_store_n(&test_fail_at, 0, __ATOMIC_RELAXED);
    conc_instance *list = instance_of(&s.client, "list", "[1]");
    GETS("[1]", ask(list, "#GETVALUE", NULL)); /* it works on */
    end_all(&s);
  }
}

TEST(a_forked_child_uses_its_parents_instances_and_leaves_them) {
  served s = nobody();
  waits w;
  NEEDS_FORK;
  serve_types(&s, &w);
  conc_instance *a = instance_of(&s.client, "list", NULL);
  conc_instance *b = instance_of(&s.client, "list", NULL);
  const conc_value *one = json("1");
  pid_t pid = begin_child();
  if (pid == 0) {
    CHECK_CHILD(conc_instance_call(a, "append", one, NULL, long_time()) == 0);
    conc_instance_free(a);
    CHECK_CHILD(conc_manager_shutdown(&s.client) == 0);
    _exit(0);
  }
  reap(pid, 0);
  GETS("[1]", ask(a, "#GETVALUE", NULL));
  GETS("[]", ask(b, "#GETVALUE", NULL));
  conc_instance_free(b);
  end_all(&s);
}

/* --- Python --- */

/* What a client that is Python has put there: a proxy of the dict "ages". */
static void use_a_proxy(conc_manager *m, ssize_t at) {
  conc_list *l = conc_manager_list(m, "names");
  const int before = objects_of(m);
  conc_value *v;
  CHECK_EQ(conc_list_get(l, at, &v), 0);
  CHECK_EQ(conc_value_type(v), CONC_OBJECT);
  conc_instance *ages = conc_manager_instance_of(m, v, long_time());
  CHECK(ages != NULL);
  GETS("30", ask(ages, "__getitem__", "\"Ann\""));
  conc_instance_free(ages);
  GETS("30", conc_dict_get(conc_manager_dict(m, "ages"), json("\"Ann\""),
                           &got));
  CHECK(objects_of(m) - before <= 1); /* that dict */
  errno = 0;
  CHECK(conc_manager_instance_of(m, json("1"), 1) == NULL && errno == EINVAL);
  CHECK(conc_manager_instance_of(m, NULL, 1) == NULL && errno == EINVAL);
  conc_value_free(v);
}

/* By a client, whose server has no such object, and by a server. */
TEST(a_proxy_of_what_has_ended_names_nothing) {
  static const char proxy[] =
      "cmultiprocessing.managers\nRebuildProxy\n(cmultiprocessing.managers\n"
      "ListProxy\nccopy_reg\n_reconstructor\n(cmultiprocessing.managers\n"
      "Token\nc__builtin__\nobject\nNtR(S'list'\nNS'7.7'\ntbS'pickle'\n"
      "(dtR.";
  served s = nobody();
  conc_value *v;
  serve(&s);
  CHECK_EQ(conc_pickle_loads_objects(&v, proxy, sizeof proxy - 1), 0);
  errno = 0;
  CHECK(conc_manager_instance_of(&s.client, v, long_time()) == NULL);
  CHECK_EQ(errno, ENOENT);
  CHECK(conc_manager_instance_of(&s.server, v, long_time()) == NULL);
  CHECK_EQ(errno, ENOTSUP);
  conc_value_free(v);
  end_all(&s);
}

static void with_a_client_of(const char *program) {
  served s = nobody();
  CHECK_EQ(conc_manager_register(&s.server, "echo", echo, NULL), 0);
  serve(&s);
  conc_list *l = conc_manager_list(&s.server, "names");
  conc_dict *d = conc_manager_dict(&s.client, "ages");
  conc_variable *v = conc_manager_variable(&s.client, "variable");
  python p = begin_python(program, "data.py", "client",
                          conc_manager_address(&s.server));
  CHECK_STR(hear(&p), "ready");
  SAYS("None", &p, "names.append(('x', b'y', {1}))");
  GETS("('x', b'y', {1})", conc_list_pop(l, -1, &got));
  CHECK_EQ(conc_list_append(l, json("[1.5, null]")), 0);
  SAYS("['Bob', [1.5, None]]", &p, "names[1:]");
  SAYS("3", &p, "len(names)");
  SAYS("None", &p, "names.__setitem__(slice(0, 2), 'pq')");
  GETS("['p', 'q', [1.5, None]]", conc_list_copy(l, &got));
  SAYS("IndexError: list index out of range", &p, "names[3]");
  SAYS("None", &p, "ages.update(Bob=[1])");
  GETS("[1]", conc_dict_get(d, json("\"Bob\""), &got));
  CHECK_EQ(conc_dict_set(d, json("2"), json("{\"a\": 1}")), 0);
  SAYS("['Ann', 'Bob', 2]", &p, "[key for key in ages]");
  SAYS("{'Ann': 30, 'Bob': [1], 2: {'a': 1}}", &p, "ages.copy()");
  SAYS("{'a': 1}", &p, "ages.pop(2)");
  FAILS(-ENOENT, conc_dict_get(d, json("2"), &got));
  SAYS("None", &p, "variable.set(variable.value + 1)");
  GETS("8", conc_variable_get(v, &got));
  /* A proxy of what is served, inside of what is served. */
  SAYS("None", &p, "names.append(ages)");
  SAYS("30", &p, "names[3]['Ann']");
  CHECK_EQ(conc_list_len(l), 4);
  use_a_proxy(&s.client, 3);
  /* One that C has put there. */
  conc_value *proxy = proxy_of(&s.client, conc_manager_get(&s.client, "q"));
  CHECK_EQ(conc_list_append(l, proxy), 0);
  conc_value_free(proxy);
  SAYS("None", &p, "names[4].put('job')");
  GETS("job", conc_get_value(s.queue, &got, long_time()));
  SAYS("((1, 'x'), {'by': 2})", &p, "manager.echo(1, 'x', by=2)._getvalue()");
  end_python(&p);
  end_all(&s);
}

TEST(c_and_python_38_share_data) { with_python("3.8", with_a_client_of); }
TEST(c_and_python_311_share_data) { with_python("3.11", with_a_client_of); }
TEST(c_and_python_313_share_data) { with_python("3.13", with_a_client_of); }

/* A server in Python, which is there when this returns. */
static python begin_server(const char *program, const char *path) {
  unlink(path);
  python p = begin_python(program, "data.py", "serve", path);
  CHECK_STR(hear(&p), "ready");
  return p;
}

static void with_a_server_of(const char *program) {
  char path[100];
  snprintf(path, sizeof path, "/tmp/conc-data-%d", (int)getpid());
  python p = begin_server(program, path);
  conc_manager a = client_at(path), b = a;
  CHECK_EQ(conc_manager_connect(&a, long_time()), 0);
  CHECK_EQ(conc_manager_connect(&b, long_time()), 0);
  use_all(&a);
  run(use_all_in_a_task, &a);
  use_a_list(conc_manager_list(&a, "list"));
  use_a_dict(conc_manager_dict(&a, "dict"));
  GETS("[[1, {'a': None}], 'last']",
       conc_list_copy(conc_manager_list(&b, "names"), &got));
  errno = 0;
  CHECK(conc_manager_list(&a, "bare") == NULL && errno == ENOENT);
  CHECK(conc_manager_list(&a, "ages") == NULL && errno == ENOENT);
  CHECK(conc_manager_dict(&a, "variable") == NULL && errno == ENOENT);

  conc_dict *n = conc_manager_dict(&a, "space");
  const conc_value *k = json("\"a\"");
  GETS("1", conc_dict_get(n, k, &got));
  CHECK_EQ(conc_dict_set(n, k, json("[3]")), 0);
  GETS("{'a': [3], 'b': 'two'}", conc_dict_copy(n, &got));
  CHECK_EQ(conc_dict_pop(n, k, NULL), 0);
  FAILS(-ENOENT, conc_dict_get(n, k, &got));
  CHECK_EQ(conc_dict_pop(n, k, NULL), -ENOENT);

  conc_list *numbers = conc_manager_list(&a, "numbers");
  CHECK_EQ(conc_list_len(numbers), 3);
  GETS("-2", conc_list_get(numbers, 1, &got));
  FAILS(-ERANGE, conc_list_get(numbers, 3, &got));
  CHECK_EQ(conc_list_set(numbers, 1, json("300")), 0);
  CHECK_EQ(conc_list_set(numbers, 1, json("70000")), -EOVERFLOW);
  CHECK_EQ(conc_list_append(numbers, k), -ENOTSUP);
  GETS("[1, 300, 3]", conc_list_copy(numbers, &got));

  /* Stopped, and gone. */
  conc_list *l = conc_manager_list(&a, "names");
  stop(p.pid);
  a.state->timeout = 0.2;
  CHECK_EQ(conc_list_append(l, k), -ECONNRESET);
  FAILS(-ETIMEDOUT, conc_list_copy(l, &got));
  CHECK_EQ(kill(p.pid, SIGCONT), 0);
  end_python(&p);
  CHECK(conc_list_len(l) < 0);
  CHECK_EQ(conc_manager_shutdown(&a), 0);
  CHECK_EQ(conc_manager_shutdown(&b), 0);
  unlink(path);
  free_values();
}

TEST(a_server_of_python_38_has_data_for_c) {
  with_python("3.8", with_a_server_of);
}
TEST(a_server_of_python_311_has_data_for_c) {
  with_python("3.11", with_a_server_of);
}
TEST(a_server_of_python_313_has_data_for_c) {
  with_python("3.13", with_a_server_of);
}

/* A class that Python has, and C has not. */
static void use_a_class_of_python(conc_manager *m, pid_t pid) {
  const int before = objects_of(m);
  conc_instance *maths = instance_of(m, "Maths", "10"), *other;
  GETS("17",
       conc_instance_call_build(maths, "add", &got, long_time(), "ii", 4, 3));
  RAISES(-EREMOTEIO, "ZeroDivisionError: integer division or modulo by zero",
         ask(maths, "divide", "0"));
  CHECK_EQ(ask(maths, "_hidden", NULL), -ENOTSUP);
  conc_value_free(got);
  errno = 0;
  CHECK(conc_manager_instance(m, "Maths", NULL, long_time()) == NULL);
  CHECK_EQ(errno, EINVAL); /* it takes an argument */
  other = conc_instance_open(maths, "another", json("20"), long_time());
  CHECK(other != NULL);
  GETS("21",
       conc_instance_call_build(other, "add", &got, long_time(), "ii", 1, 0));
  CHECK_EQ(objects_of(m), before + 2);
  conc_instance_free(other);
  CHECK_EQ(objects_of(m), before + 1);
  /* Slower than its caller wants, and gone. */
  FAILS(-ETIMEDOUT,
        conc_instance_call(maths, "sleep", json("0.3"), &got, 0.02));
  GETS("10", ask(maths, "sleep", "0"));
  stop(pid);
  FAILS(-ETIMEDOUT, conc_instance_call(maths, "sleep", json("0"), &got, 0.05));
  CHECK_EQ(kill(pid, SIGCONT), 0);
  GETS("10", ask(maths, "sleep", "0"));
  /* By keyword. */
  GETS("17", conc_instance_call_with(maths, "add", json("4"),
                                     json("{\"y\": 3}"), &got, long_time()));
  CHECK_EQ(conc_instance_call_with(maths, "add", json("4"),
                                   json("{\"z\": 3}"), &got, long_time()),
           -EINVAL);
  CHECK(strstr(text_of_it(), "unexpected keyword argument") != NULL);
  other = conc_manager_instance_with(m, "Maths", NULL, json("{\"base\": 30}"),
                                     long_time());
  CHECK(other != NULL);
  GETS("30", ask(other, "sleep", "0"));
  conc_instance_free(other);
  other = conc_instance_open_with(maths, "another", NULL,
                                  json("{\"base\": 40}"), long_time());
  CHECK(other != NULL);
  GETS("40", ask(other, "sleep", "0"));
  conc_instance_free(other);
  /* A function, whose result is a value. */
  GETS("[1, {'by': 2}]",
       conc_manager_call_with(m, "echo", json("1"), json("{\"by\": 2}"), &got,
                              long_time()));
}

/* A new server may have another object at the same place in its memory. */
static void start_python_anew(const char *program, python *p, const char *path,
                              conc_manager *m) {
  conc_instance *list = instance_of(m, "list", "[1]");
  end_python(p);
  *p = begin_server(program, path);
  CHECK(conc_instance_call(list, "pop", NULL, NULL, long_time()) < 0);
  CHECK_EQ(conc_instance_call(list, "pop", NULL, NULL, long_time()), -ENOENT);
  conc_instance_free(list);
  use_instances(m);
}

static void with_a_server_and_its_classes(const char *program) {
  char path[100];
  snprintf(path, sizeof path, "/tmp/conc-data-%d", (int)getpid());
  python p = begin_server(program, path);
  conc_manager m = client_at(path);
  CHECK_EQ(conc_manager_connect(&m, long_time()), 0);
  use_instances(&m);
  run(use_instances_in_a_task, &m);
  use_a_class_of_python(&m, p.pid);
  python client = begin_python(program, "data.py", "client", path);
  CHECK_STR(hear(&client), "ready");
  SAYS("None", &client, "ages.update(Ann=30) or names.append(ages)");
  use_a_proxy(&m, -1);
  SAYS("30", &client, "names.pop()['Ann']");
  use_proxies(&m);
  /* What C has put there is of use to a client that is Python. */
  conc_list *names = conc_manager_list(&m, "names");
  conc_value *v = proxy_of(&m, conc_manager_dict(&m, "ages"));
  CHECK_EQ(conc_list_append(names, v), 0);
  SAYS("30", &client, "names[-1]['Ann']");
  SAYS("None", &client, "names[-1].update(Bob=31)");
  GETS("31", conc_dict_get(conc_manager_dict(&m, "ages"), json("\"Bob\""),
                           &got));
  conc_value_free(v);
  if (strstr(program, "3.8") == NULL) {
    use_other_proxies(&m);
    v = proxy_of(&m, conc_manager_get(&m, "jobs"));
    CHECK_EQ(conc_list_append(names, v), 0);
    conc_value_free(v);
    SAYS("None", &client, "names[-1].put([1, 2])");
    GETS("[1, 2]", conc_get_value(conc_manager_get(&m, "jobs"), &got,
                                  long_time()));
  } else {
    v = proxy_of(&m, conc_manager_get(&m, "jobs"));
    CHECK(conc_list_append(names, v) < 0); /* by a fault of its own */
    conc_value_free(v);
  }
  end_python(&client);
  start_python_anew(program, &p, path, &m);
  end_python(&p);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  end_owners();
  unlink(path);
  free_values();
}

/* Its iterators have other methods. */
static void with_a_server_of_python_2(const char *program) {
  char path[100];
  snprintf(path, sizeof path, "/tmp/conc-data-%d", (int)getpid());
  python p = begin_server(program, path);
  conc_manager m = client_at(path);
  CHECK_EQ(conc_manager_connect(&m, long_time()), 0);
  use_a_class_of_python(&m, p.pid);
  /* It puts what a proxy names in the place of the proxy. */
  conc_list *names = conc_manager_list(&m, "names");
  conc_value *v = proxy_of(&m, conc_manager_dict(&m, "ages"));
  CHECK_EQ(conc_list_append(names, v), 0);
  conc_value_free(v);
  GETS("{}", conc_list_get(names, -1, &got));
  conc_instance *x = instance_of(&m, "jobs", NULL);
  v = proxy_of(&m, conc_manager_get(&m, "jobs"));
  GETS("['jobs', {}]", conc_manager_call(&m, "echo", v, &got, long_time()));
  conc_value_free(v);
  conc_instance_free(x);
  end_python(&p);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  unlink(path);
  free_values();
}

TEST(c_uses_classes_of_a_server_of_python_27) {
  with_python("2.7", with_a_server_of_python_2);
}
TEST(c_uses_classes_of_a_server_of_python_38) {
  with_python("3.8", with_a_server_and_its_classes);
}
TEST(c_uses_classes_of_a_server_of_python_311) {
  with_python("3.11", with_a_server_and_its_classes);
}
TEST(c_uses_classes_of_a_server_of_python_313) {
  with_python("3.13", with_a_server_and_its_classes);
}

TEST_MAIN
