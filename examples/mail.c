/* The mail queue that the Python tutorials (in Chinese) that these examples
   follow propose ("replace n*n by sending a mail"): a program that has mail
   puts it on a queue of a manager; workers, here processes, but on any
   machine, take it and send it: append it to a spool file.
     cc mail.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char spool[] = "/tmp/conc-spool-XXXXXX";

/* One write() with O_APPEND: mails of two workers do not mix. */
static bool send_mail(const char *to, const char *text) {
  char mail[300];
  int n = snprintf(mail, sizeof mail, "To: %s\n\n%s\n\n", to, text);
  int fd = open(spool, O_WRONLY | O_APPEND);
  bool sent = fd >= 0 && write(fd, mail, (size_t)n) == n;
  if (fd >= 0) close(fd);
  return sent;
}

static void *worker(void *address) {
  conc_manager m = {.address = (const char *)address, .authkey = "abc"};
  conc_queue *mails = NULL;
  conc_value *mail;
  const char *to, *text;
  if (conc_manager_connect(&m, 5) == 0)
    mails = conc_manager_get(&m, "get_mail_queue");
  while (mails && conc_get_value(mails, &mail, CONC_FOREVER) == 0) {
    bool more = conc_parse(mail, "(ss)", &to, &text) == 0;
    if (more && send_mail(to, text)) printf("Sent to %s.\n", to);
    conc_value_free(mail);
    conc_task_done(mails);
    if (!more) break; /* None: there is no more */
  }
  conc_manager_shutdown(&m);
  return NULL;
}

int main(void) {
  static const char *const people[] = {"bob", "alice", "michael", "tracy"};
  conc_manager m = {.address = "127.0.0.1:0", .authkey = "abc"};
  conc_queue *mails = conc_queue_new(NULL);
  conc_task workers[2] = {{.target = worker}, {.target = worker}};
  char line[100];
  int fd = mkstemp(spool), count = 0;
  if (fd < 0) return 1;
  close(fd);

  conc_manager_register_queue(&m, "get_mail_queue", mails);
  if (conc_manager_start(&m) != 0) return 1;
  for (int i = 0; i < 2; i++) {
    workers[i].arg = (void *)(uintptr_t)conc_manager_address(&m);
    conc_process_start(&workers[i]);
  }
  for (int i = 0; i < 4; i++) {
    printf("Put mail to %s...\n", people[i]);
    conc_put_build(mails, CONC_FOREVER, "(ss)", people[i], "Hello!");
  }
  for (int i = 0; i < 2; i++) conc_put_build(mails, CONC_FOREVER, "N");
  conc_queue_join(mails, CONC_FOREVER);
  for (int i = 0; i < 2; i++)
    if (conc_join(&workers[i], CONC_FOREVER) != 0) return 1;
  conc_manager_shutdown(&m);
  conc_queue_free(mails);

  FILE *f = fopen(spool, "r");
  while (f && fgets(line, sizeof line, f))
    if (strncmp(line, "To: ", 4) == 0) count++;
  if (f) fclose(f);
  remove(spool);
  printf("%d mails in the spool.\n", count);
  return 0;
}
