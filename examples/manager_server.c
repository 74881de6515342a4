/* Serves what multiprocessing.Manager() of Python serves: queues, locks,
   semaphores, conditions, events, barriers, lists, dicts and values, which
   programs on other machines make and share; and pools, which call a function
   of this program. A Python program does so with SyncManager:
     m = SyncManager(address, authkey)
     m.connect()
     m.Pool(4).map('square', range(10))
   This one:
     cc manager_server.c -pthread && ./a.out [ADDRESS [AUTHKEY]]
   It prints the address, and ends by SIGTERM, or by Ctrl-C. */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <signal.h>
#include <stdio.h>

static int square(const conc_value *args, const conc_value *kwds,
                  conc_value **result, void *arg) {
  double x;
  (void)kwds;
  (void)arg;
  if (conc_parse(args, "(d)", &x) != 0)
    return conc_manager_raise(result, "TypeError", "square() takes a number");
  return conc_build(result, "d", x * x);
}

int main(int argc, char **argv) {
  static const int signals[] = {SIGTERM, SIGINT};
  conc_manager manager = {.address = argc > 1 ? argv[1] : "127.0.0.1:5000",
                          .authkey = argc > 2 ? argv[2] : "abc"};
  int rc;

  setvbuf(stdout, NULL, _IOLBF, 0);

  /* Before there is a second thread: then none is ended by them. */
  conc_block_signals(signals, 2);
  rc = conc_manager_register_types(&manager);
  if (rc == 0) rc = conc_manager_register(&manager, "square", square, NULL);
  if (rc == 0) rc = conc_manager_start(&manager);
  if (rc < 0) {
    fprintf(stderr, "cannot serve at %s: %s\n", manager.address,
            conc_strerror(rc));
    return 1;
  }
  printf("%s\n", conc_manager_address(&manager));
  conc_wait_signal(signals, 2, CONC_FOREVER);
  conc_manager_shutdown(&manager);
  return 0;
}
