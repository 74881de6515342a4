/* multiprocessing.Manager of Python's documentation: a list, a dict, a value
   and a lock that a manager serves, and processes that use them. These could
   as well be on other machines, or Python programs.
     cc shared_dict.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

static char address[128]; /* of the manager */

/* A client of the manager: takes numbers off the list, and puts their squares
   into the dict. */
static void *square(void *arg) {
  conc_manager m = {.address = address, .authkey = "abc"};
  if (conc_manager_connect(&m, 5) != 0) return NULL;
  conc_list *todo = conc_manager_list(&m, "todo");
  conc_dict *squares = conc_manager_dict(&m, "squares");
  conc_variable *count = conc_manager_variable(&m, "count");
  conc_lock *lock = conc_manager_lock(&m, "lock");
  if (!todo || !squares || !count || !lock) return NULL;

  conc_value *number;
  while (conc_list_pop(todo, 0, &number) == 0) { /* no other one gets it */
    conc_value *v = NULL;
    int n;
    conc_parse(number, "i", &n);
    conc_build(&v, "i", n * n);
    conc_dict_set(squares, number, v);
    conc_value_free(number);
    conc_value_free(v);
    CONC_WITH(lock) { /* count.value += 1: a get, and then a set */
      conc_variable_get(count, &v);
      conc_parse(v, "i", &n);
      conc_value_free(v);
      conc_build(&v, "i", n + 1);
      conc_variable_set(count, v);
      conc_value_free(v);
    }
  }
  conc_manager_shutdown(&m);
  return arg;
}

int main(void) {
  conc_manager m = {.address = "127.0.0.1:0", .authkey = "abc"};
  conc_lock lock = {0};
  conc_value *numbers, *zero, *v = NULL;
  char text[400];

  conc_build(&numbers, "[iiiiiiiiii]", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
  conc_build(&zero, "i", 0);
  conc_manager_register_list(&m, "todo", numbers);
  conc_manager_register_dict(&m, "squares", NULL);
  conc_manager_register_variable(&m, "count", zero);
  conc_manager_register_lock(&m, "lock", &lock);
  if (conc_manager_start(&m) != 0) return 1;

  snprintf(address, sizeof address, "%s", conc_manager_address(&m));
  conc_task p[3] = {{.target = square}, {.target = square},
                    {.target = square}};
  for (int i = 0; i < 3; i++) conc_process_start(&p[i]);
  for (int i = 0; i < 3; i++)
    if (conc_join(&p[i], CONC_FOREVER) != 0) return 1;

  /* To the program that serves it, it is a dict like any other. */
  conc_dict *squares = conc_manager_dict(&m, "squares");
  for (size_t i = 0; i < 10; i++)
    if (conc_dict_get(squares, conc_value_item(numbers, i), &v) == 0) {
      conc_value_text(v, text, sizeof text);
      printf("%zu * %zu = %s\n", i, i, text);
      conc_value_free(v);
    }
  if (conc_variable_get(conc_manager_variable(&m, "count"), &v) == 0) {
    conc_value_text(v, text, sizeof text);
    printf("%s numbers\n", text);
    conc_value_free(v);
  }
  conc_value_free(numbers);
  conc_value_free(zero);
  conc_manager_shutdown(&m);
  return 0;
}
