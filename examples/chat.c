/* A chat: what one says, all get. A loop has two coroutines for each member of
   the room: one reads lines, the other writes what is in the member's queue. A
   thread, the clerk, remembers the last line: "/last" asks for it.
     cc chat.c -pthread && ./a.out :7007 127.0.0.1:8080
   serves until Ctrl-C, with a page that shows what goes on (the second
   argument). Without an address two members talk to each other. */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 200, QUEUED = 16 };

typedef struct member {
  conc_task reader, writer;
  char name[32];
  conc_stream stream;
  conc_queue *lines; /* to be written */
  struct member *next;
} member;

static conc_lock room = {.name = "room"}; /* of `members` */
static member *members;
static conc_queue *desk, *answers; /* what the clerk gets, and puts */

static void *clerk(void *arg) {
  char line[LINE], last[LINE] = "nobody has said anything\n";
  ssize_t n;
  while ((n = conc_get(desk, line, sizeof line - 1, CONC_FOREVER)) >= 0) {
    line[n] = 0;
    if (n == 0) /* a question */
      conc_put(answers, last, strlen(last), CONC_FOREVER);
    else
      memcpy(last, line, (size_t)n + 1);
  }
  return arg;
}

static void ask(member *m) {
  char line[LINE];
  ssize_t n;
  if (conc_put(desk, "", 0, CONC_FOREVER) != 0) return;
  n = conc_get(answers, line, sizeof line, CONC_FOREVER);
  if (n > 0) conc_put(m->lines, line, (size_t)n, 0);
}

/* Nobody shouts. */
static void calm(char *line) {
  for (; *line != 0; line++) *line = (char)tolower((unsigned char)*line);
}

/* A put may let others run, so the list is locked meanwhile. A member that
   does not read loses lines. */
static void say(member *m, char *words) {
  char line[LINE];
  calm(words);
  snprintf(line, sizeof line, "%s: %.120s\n", m->name, words);
  if (conc_lock_acquire(&room, CONC_FOREVER) != 0) return;
  for (member *to = members; to != NULL; to = to->next)
    conc_put(to->lines, line, strlen(line), 0);
  conc_lock_release(&room);
  conc_put(desk, line, strlen(line), CONC_FOREVER);
}

static void enter(member *m) {
  CONC_WITH(&room) {
    m->next = members;
    members = m;
  }
}

/* Behind a shield: a member that is cancelled leaves, too. */
static void leave(member *m) {
  conc_scope shield;
  conc_shield(&shield);
  CONC_WITH(&room) {
    member **p = &members;
    while (*p != m) p = &(*p)->next;
    *p = m->next;
  }
  conc_scope_end(&shield);
}

static void *write_lines(void *arg) {
  member *m = (member *)arg;
  char line[LINE];
  ssize_t n;
  while ((n = conc_get(m->lines, line, sizeof line, CONC_FOREVER)) >= 0)
    if (conc_write(m->stream.fd, line, (size_t)n, 5.0) != n) break;
  return NULL;
}

static void *read_lines(void *arg) {
  member *m = (member *)arg;
  char line[LINE];
  ssize_t n;
  if (conc_coro_start(&m->writer) != 0) return NULL;
  conc_put(m->lines, "welcome\n", 8, 0);
  enter(m);
  while ((n = conc_stream_read_line(&m->stream, line, sizeof line,
                                    CONC_FOREVER)) > 0) {
    line[n - 1] = 0; /* in place of its end */
    if (strcmp(line, "/last") == 0)
      ask(m);
    else
      say(m, line);
  }
  leave(m);
  conc_queue_close(m->lines);
  conc_join(&m->writer, CONC_FOREVER);
  return NULL;
}

/* The last of a reader, even of one that never began. */
static void end(conc_task *reader, int status, void *result) {
  member *m = (member *)reader;
  (void)status;
  (void)result;
  conc_stream_close(&m->stream, 0);
  conc_queue_free(m->lines);
  free(m);
}

static int begin(conc_group *group, int fd, int number) {
  member *m = (member *)calloc(1, sizeof *m);
  conc_queue_opts opts = {.capacity = QUEUED};
  int rc = -ENOMEM;
  if (m == NULL) return rc;
  snprintf(m->name, sizeof m->name, "member-%d", number);
  m->reader.target = read_lines;
  m->writer.target = write_lines;
  m->reader.arg = m->writer.arg = m;
  m->reader.name = m->name;
  m->writer.name = "writer";
  m->reader.detached = true;
  m->reader.callback = end;
  m->stream.fd = fd;
  m->lines = conc_queue_new(&opts);
  if (m->lines != NULL)
    rc = conc_group_start(group, &m->reader, conc_coro_start);
  if (rc == 0) return 0;
  conc_queue_free(m->lines);
  free(m);
  return rc;
}

static void *serve(void *arg) {
  conc_group group = {0};
  conc_task c = {.target = clerk, .name = "clerk"};
  conc_queue_opts to_clerk = {.name = "desk"};
  conc_queue_opts from_clerk = {.name = "answers"};
  int fd, number = 0, listener = *(int *)arg;
  desk = conc_queue_new(&to_clerk);
  answers = conc_queue_new(&from_clerk);
  if (desk == NULL || answers == NULL || conc_thread_start(&c) != 0)
    return NULL;
  while ((fd = conc_accept(listener, CONC_FOREVER)) >= 0)
    if (begin(&group, fd, ++number) != 0) conc_close(fd);
  conc_close(listener);
  conc_group_leave(&group, 0); /* cancels them, and waits for them */
  conc_queue_close(desk);
  conc_join(&c, CONC_FOREVER);
  conc_queue_free(desk);
  conc_queue_free(answers);
  return arg;
}

static void hear(conc_stream *s, const char *who) {
  char line[LINE];
  ssize_t n = conc_stream_read_line(s, line, sizeof line, 5.0);
  if (n > 0) printf("%s hears: %.*s", who, (int)n, line);
}

static void *two_members(void *address) {
  conc_stream a = {0}, b = {0};
  a.fd = conc_connect((char *)address, 5.0);
  hear(&a, "the first");
  b.fd = conc_connect((char *)address, 5.0);
  hear(&b, "the second");
  conc_write(b.fd, "HELLO\n", 6, 5.0);
  hear(&a, "the first");
  hear(&b, "the second");
  conc_write(a.fd, "/last\n", 6, 5.0);
  hear(&a, "the first");
  conc_stream_close(&a, 5.0);
  conc_stream_close(&b, 5.0);
  kill(getpid(), SIGTERM); /* in place of the user's Ctrl-C */
  return NULL;
}

int main(int argc, char **argv) {
  char address[200];
  int rc, listener = conc_listen(argc > 1 ? argv[1] : "127.0.0.1:0");
  conc_task server = {.target = serve, .arg = &listener, .name = "server"};
  conc_task talk = {.target = two_members, .arg = address};
  if (listener < 0 || conc_address(listener, address, sizeof address) < 0) {
    fprintf(stderr, "cannot listen: %s\n", conc_strerror(listener));
    return 1;
  }
  rc = argc > 2 ? conc_inspect(argv[2]) : 0;
  if (rc != 0) printf("page: %d\n", rc);
  fflush(stdout);
  conc_stop_on_signals(conc_current(), NULL, 0);
  if (argc == 1) conc_thread_start(&talk);
  rc = conc_run(&server);
  if (argc == 1) conc_join(&talk, CONC_FOREVER);
  conc_inspect(NULL);
  return rc == -ECANCELED ? 0 : 1;
}
