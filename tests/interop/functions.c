/* functions.c: functions of C that Python calls, and calls of Python's.
 *
 *   functions serve ADDRESS AUTHKEY
 * Prints the address that it is bound to and serves until its input ends.
 *
 *   functions call ADDRESS AUTHKEY
 * Each line of its input is a name, a blank, and JSON of a list, the
 * arguments: it calls that function, and prints the error number and the
 * result as Python's str(). */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../../conc.h"

static int square(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  long long n;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(L)", &n) != 0)
    return conc_manager_raise(result, "TypeError", "square() takes an int");
  return conc_build(result, "L", n * n);
}

/* primes(n): a list of the first n, of at most 10. */
static int primes(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  static const char all[] = "[2, 3, 5, 7, 11, 13, 17, 19, 23, 29";
  char text[sizeof all + 1];
  size_t i;
  int n;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(i)", &n) != 0 || n < 1 || n > 10) return -EINVAL;
  for (i = 0; all[i] != 0 && n > 0; i++) n -= all[i] == ',';
  if (all[i] != 0) i--;
  snprintf(text, sizeof text, "%.*s]", (int)i, all);
  return conc_json_loads(result, text, strlen(text), NULL);
}

/* Returns (args, kwds). */
static int echo(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)arg;
  return conc_build(result, "(OO)", args, kwds);
}

/* fail(errno[, text[, class]]) */
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

/* Waits until its client goes; what it does, others find in a queue. */
static int wait_here(const conc_value *args, const conc_value *kwds,
                     conc_value **result, void *arg) {
  conc_queue *q = (conc_queue *)arg;
  int rc = conc_put_build(q, 0, "s", "begun");
  (void)args, (void)kwds, (void)result;
  if (rc == 0) rc = conc_sleep(1e6);
  if (rc == -ECANCELED) conc_put_build(q, 0, "s", "gone");
  return rc;
}

static int serve(conc_manager *m) {
  conc_queue *q = conc_queue_new(NULL);
  conc_pool pool = {0};
  char ignored;
  int rc;
  pool.kind = CONC_THREAD;
  pool.workers = 2;
  conc_pool_start(&pool);
  conc_manager_register(m, "square", square, NULL);
  conc_manager_register(m, "echo", echo, NULL);
  conc_manager_register(m, "primes", primes, NULL);
  conc_manager_register_types(m);
  conc_manager_register(m, "fail", fail, NULL);
  conc_manager_register(m, "wait_here", wait_here, q);
  conc_manager_register_queue(m, "get_queue", q);
  conc_manager_register_pooled(m, "square_in_a_pool", square, NULL, &pool);
  rc = conc_manager_start(m);
  if (rc < 0) {
    fprintf(stderr, "functions: %s: %s\n", m->address, conc_strerror(rc));
    return 1;
  }
  printf("%s\n", conc_manager_address(m));
  fflush(stdout);
  while (read(0, &ignored, 1) > 0) continue;
  rc = conc_manager_shutdown(m);
  conc_queue_free(q);
  conc_pool_close(&pool);
  conc_pool_join(&pool, CONC_FOREVER);
  return rc < 0;
}

static int call(conc_manager *m) {
  char line[1000], text[1000];
  int rc = conc_manager_connect(m, 10);
  while (rc == 0 && fgets(line, sizeof line, stdin) != NULL) {
    conc_value *list = NULL, *result = NULL;
    char *json = strchr(line, ' ');
    int error;
    if (json == NULL) return 2;
    *json++ = 0;
    json[strcspn(json, "\n")] = 0;
    if (conc_json_loads(&list, json, strlen(json), NULL) != 0) return 2;
    if (conc_value_size(list) == 0)
      error = conc_manager_call(m, line, NULL, &result, 10);
    else if (conc_value_size(list) == 1)
      error = conc_manager_call_build(m, line, &result, 10, "(O)",
                                      conc_value_item(list, 0));
    else
      error = conc_manager_call_build(m, line, &result, 10, "(OO)",
                                      conc_value_item(list, 0),
                                      conc_value_item(list, 1));
    conc_value_text(result, text, sizeof text);
    printf("%d %s\n", -error, result != NULL ? text : "NULL");
    fflush(stdout);
    conc_value_free(list);
    conc_value_free(result);
  }
  conc_manager_shutdown(m);
  return rc != 0;
}

int main(int argc, char **argv) {
  conc_manager m = {0};
  if (argc != 4) return 2;
  m.address = argv[2];
  m.authkey = argv[3];
  return strcmp(argv[1], "serve") == 0 ? serve(&m) : call(&m);
}
