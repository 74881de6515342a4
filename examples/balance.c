/* Two threads of the Python tutorials (in Chinese) that these examples follow
   change one balance: without a lock it goes wrong, sooner or later; with one
   it cannot.
     cc balance.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <stdlib.h>

/* 假定这是你的银行存款: */
static volatile int balance = 0;
static conc_lock lock = {.name = "balance"};

/* 先存后取，结果应该为0: */
static void change_it(int n) {
  balance = balance + n;
  balance = balance - n;
}

static void *run_thread(void *n) {
  for (int i = 0; i < 100000; i++)
    change_it(*(int *)n);
  return NULL;
}

static void *run_thread_locked(void *n) {
  for (int i = 0; i < 100000; i++)
    CONC_WITH(&lock) change_it(*(int *)n);
  return NULL;
}

static int run_two(conc_fn *target) {
  int five = 5, eight = 8;
  conc_task t1 = {.target = target, .arg = &five};
  conc_task t2 = {.target = target, .arg = &eight};
  balance = 0;
  conc_thread_start(&t1);
  conc_thread_start(&t2);
  if (conc_join(&t1, CONC_FOREVER) != 0) exit(1);
  if (conc_join(&t2, CONC_FOREVER) != 0) exit(1);
  return balance;
}

int main(void) {
  printf("without a lock: %d\n", run_two(run_thread));
  printf("with a lock: %d\n", run_two(run_thread_locked));
  return balance;
}
