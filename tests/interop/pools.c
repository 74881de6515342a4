/* pools.c: what a SyncManager of Python serves, with functions for its pools.
 *
 *   pools ADDRESS AUTHKEY
 * Prints the address that it is bound to and serves until its input ends. The
 * functions are those that CPython's own tests of pools call, which are
 * written in C here, and those of pools.py. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../conc.h"

/* Argument i, or the keyword of that name; NULL: it is not given. */
static const conc_value *argument(const conc_value *args,
                                  const conc_value *kwds, size_t i,
                                  const char *name) {
  const conc_value *v = conc_value_item(args, i);
  return v != NULL ? v : conc_value_get(kwds, name);
}

/* sqr(x, wait=0.0, event=None) */
static int sqr(const conc_value *args, const conc_value *kwds,
               conc_value **result, void *arg) {
  const conc_value *wait = argument(args, kwds, 1, "wait");
  double seconds = 0;
  int64_t x = 0;
  int rc;
  (void)arg;
  if (conc_value_int(argument(args, kwds, 0, "x"), &x) != 0)
    return conc_manager_raise(result, "TypeError", "sqr() takes a number");
  if (wait != NULL) conc_value_float(wait, &seconds);
  rc = seconds > 0 ? conc_sleep(seconds) : 0;
  return rc != 0 ? rc : conc_build(result, "L", (long long)(x * x));
}

static int mul(const conc_value *args, const conc_value *kwds,
               conc_value **result, void *arg) {
  long long x, y;
  (void)kwds, (void)arg;
  if (conc_parse(args, "(LL)", &x, &y) != 0)
    return conc_manager_raise(result, "TypeError", "mul() takes two numbers");
  return conc_build(result, "L", x * y);
}

static int identity(const conc_value *args, const conc_value *kwds,
                    conc_value **result, void *arg) {
  (void)kwds, (void)arg;
  return conc_build(result, "O", conc_value_item(args, 0));
}

/* Returns (args, kwds). */
static int echo(const conc_value *args, const conc_value *kwds,
                conc_value **result, void *arg) {
  (void)arg;
  return conc_build(result, "(OO)", args, kwds);
}

/* time.sleep(seconds) */
static int time_sleep(const conc_value *args, const conc_value *kwds,
                      conc_value **result, void *arg) {
  double seconds = 0;
  (void)kwds, (void)result, (void)arg;
  conc_value_float(conc_value_item(args, 0), &seconds);
  return conc_sleep(seconds);
}

/* int(text) */
static int to_int(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  const char *text = conc_value_str(conc_value_item(args, 0), NULL);
  char *end = NULL;
  long long n = text != NULL ? strtoll(text, &end, 10) : 0;
  (void)kwds, (void)arg;
  if (text == NULL || *text == 0 || *end != 0)
    return conc_manager_raise(result, "ValueError",
                              "invalid literal for int() with base 10");
  return conc_build(result, "L", n);
}

static int raise_large_valuerror(const conc_value *args,
                                 const conc_value *kwds, conc_value **result,
                                 void *arg) {
  int rc = time_sleep(args, kwds, result, arg);
  return rc != 0 ? rc : conc_manager_raise(result, "ValueError", "xxxxxxxx");
}

static int raise_runtime_error(const conc_value *args, const conc_value *kwds,
                               conc_value **result, void *arg) {
  (void)args, (void)kwds, (void)arg;
  return conc_manager_raise(result, "RuntimeError", "foo");
}

/* picky(x): raises ValueError for 3, KeyError for "key", else returns x. */
static int picky(const conc_value *args, const conc_value *kwds,
                 conc_value **result, void *arg) {
  const conc_value *x = conc_value_item(args, 0);
  int64_t n = 0;
  (void)kwds, (void)arg;
  if (conc_value_int(x, &n) == 0 && n == 3)
    return conc_manager_raise(result, "ValueError", "no 3");
  if (conc_value_str(x, NULL) != NULL)
    return conc_manager_raise(result, "KeyError", conc_value_str(x, NULL));
  return conc_build(result, "O", x);
}

static void register_all(conc_manager *m) {
  static const struct {
    const char *name;
    conc_manager_fn *fn;
  } all[] = {{"sqr", sqr},
             {"mul", mul},
             {"identity", identity},
             {"echo", echo},
             {"time.sleep", time_sleep},
             {"builtins.int", to_int},
             {"raise_large_valuerror", raise_large_valuerror},
             {"_test_wrapped_exception", raise_runtime_error},
             {"picky", picky}};
  size_t i;
  for (i = 0; i < sizeof all / sizeof *all; i++)
    conc_manager_register(m, all[i].name, all[i].fn, NULL);
}

int main(int argc, char **argv) {
  conc_manager m = {0};
  char ignored;
  int rc;
  if (argc != 3) return 2;
  m.address = argv[1];
  m.authkey = argv[2];
  m.objects = CONC_PASS;
  conc_manager_register_types(&m);
  register_all(&m);
  rc = conc_manager_start(&m);
  if (rc < 0) {
    fprintf(stderr, "pools: %s: %s\n", m.address, conc_strerror(rc));
    return 1;
  }
  printf("%s\n", conc_manager_address(&m));
  fflush(stdout);
  while (read(0, &ignored, 1) > 0) continue;
  return conc_manager_shutdown(&m) < 0;
}
