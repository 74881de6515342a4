/* Getters and putters of one manager, in eight client processes with children
   of their own, are cancelled, timed out, stopped and killed at random: every
   message is got once. CHAOS_MESSAGES says how many.

   What is honest to count. A getter notes a message in shared memory when it
   has it; its last one is not confirmed before its next request. So a message
   that a killed process had noted last may come again, once for each such
   note: that is excused. A put that was killed, cancelled, or not answered may
   have been carried out or not: that message need not come. Nothing else is
   excused: no other message may be missing, and none may come again. */
#include "test.h"

#include <sys/mman.h>

#include "inside.h"

enum { CLIENTS = 8, GETTERS = 3, PUTTERS = 1 };
enum { NOTHING = -1 };

typedef struct client {
  int noted[GETTERS];       /* the last message that it has noted */
  int putting[PUTTERS];     /* the one whose put is under way */
  int next[PUTTERS];        /* the one to be put next */
} client;

typedef struct table {
  char address[64];
  int messages, stop, grandchildren;
  client clients[CLIENTS];
  unsigned cancelled, timed_out, killed, stopped, again;
  unsigned char *got, *excused, *unsure; /* by message */
} table;

static table *its;

static void *in_shared_memory(size_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

static void note(int *last, int message) {
  CHECK_CHILD(message >= 0 && message < its->messages);
  STORE(*last, message); /* before it counts: see above */
  ADD_FETCH(its->got[message], 1);
}

/* --- a client --- */

typedef struct getter {
  conc_task task;
  conc_queue *queue;
  int *last;
  int number;
} getter;

typedef struct putter {
  conc_task task;
  conc_queue *queue;
  int *putting, *next;
  int number;
} putter;

static unsigned long long chaos_seed(int number) {
  return (unsigned long long)getpid() * 64 + (unsigned)number;
}

/* One get, in one of the ways in which it may end early. */
static int get_somehow(conc_queue *q, unsigned dice, int *message) {
  double soon = (dice >> 4 & 7) * 5e-4;
  conc_scope scope;
  conc_value *v = NULL;
  int64_t n = 0;
  ssize_t size;
  int rc;
  switch (dice & 3) {
    case 0: size = conc_get(q, message, sizeof *message, soon); break;
    case 1: /* too small: the message is for somebody else */
      size = conc_get(q, message, 2, soon);
      if (size >= 0) return -EMSGSIZE;
      break;
    case 2:
      conc_timeout(&scope, soon);
      size = conc_get(q, message, sizeof *message, CONC_FOREVER);
      rc = conc_scope_end(&scope);
      if (size == -ECANCELED && rc == -ETIMEDOUT)
        ADD_FETCH(its->timed_out, 1);
      break;
    default:
      rc = conc_get_value(q, &v, soon);
      size = rc != 0 ? rc : (ssize_t)conc_value_size(v);
      if (rc == 0) memcpy(message, conc_value_bytes(v, NULL), sizeof n / 2);
      conc_value_free(v);
  }
  return size == (ssize_t)sizeof *message ? 0 : (int)size;
}

static void *be_getter(void *arg) {
  getter *g = (getter *)arg;
  unsigned long long seed = chaos_seed(g->number);
  while (!LOAD(its->stop)) {
    int message = NOTHING;
    int rc = get_somehow(g->queue, test_random_of(&seed), &message);
    if (rc == 0) note(g->last, message);
    if (rc == -ECANCELED) ADD_FETCH(its->cancelled, 1);
  }
  return NULL;
}

static void *be_putter(void *arg) {
  putter *p = (putter *)arg;
  while (!LOAD(its->stop) && *p->next < its->messages) {
    const int message = *p->next;
    int rc;
    STORE(*p->putting, message);
    STORE(*p->next, message + CLIENTS * PUTTERS);
    rc = conc_put(p->queue, &message, sizeof message, 5 * test_slow());
    if (rc != 0) STORE(its->unsure[message], 1);
    STORE(*p->putting, NOTHING);
  }
  return NULL;
}

/* A child of a client, which has none of its connections and outlives it. */
static void *be_grandchild(void *arg) {
  for (int i = 0; i < 20 && !LOAD(its->stop); i++) usleep(10000);
  ADD_FETCH(its->grandchildren, -1);
  return arg;
}

static void be_client(int number) {
  client *me = &its->clients[number];
  static getter getters[GETTERS];
  static putter putters[PUTTERS];
  static conc_task child;
  unsigned long long seed = chaos_seed(99);
  conc_manager m = {.address = its->address, .authkey = "chaos"};
  conc_queue *q;
  CHECK_CHILD(conc_manager_connect(&m, 20 * test_slow()) == 0);
  q = conc_manager_get(&m, "q");
  CHECK_CHILD(q != NULL);
  for (int i = 0; i < GETTERS; i++) {
    getters[i].task.target = be_getter;
    getters[i].task.arg = &getters[i];
    getters[i].queue = q;
    getters[i].last = &me->noted[i];
    getters[i].number = i;
    CHECK_CHILD(conc_thread_start(&getters[i].task) == 0);
  }
  for (int i = 0; i < PUTTERS; i++) {
    putters[i].task.target = be_putter;
    putters[i].task.arg = &putters[i];
    putters[i].queue = q;
    putters[i].putting = &me->putting[i];
    putters[i].next = &me->next[i];
    CHECK_CHILD(conc_thread_start(&putters[i].task) == 0);
  }
  child.target = be_grandchild;
  ADD_FETCH(its->grandchildren, 1);
  if (conc_process_start(&child) != 0) ADD_FETCH(its->grandchildren, -1);
  while (!LOAD(its->stop)) {
    unsigned dice = test_random_of(&seed);
    if (dice % 4 == 0 && conc_is_alive(&putters[0].task))
      conc_cancel(&putters[0].task);
    conc_cancel(&getters[dice / 4 % GETTERS].task);
    usleep(500 + dice / 64 % 3000);
  }
  for (int i = 0; i < GETTERS; i++)
    while (conc_join(&getters[i].task, 30) == -EAGAIN) {
    }
  for (int i = 0; i < PUTTERS; i++) conc_join(&putters[i].task, 30);
  conc_join(&child, 30);
  CHECK_CHILD(conc_manager_shutdown(&m) == 0);
  _exit(0);
}

/* --- the server, and who disturbs them all --- */

static void be_server(void) {
  conc_manager m = {.address = "127.0.0.1:0", .authkey = "chaos"};
  conc_queue *q = conc_queue_new(NULL);
  int message, last = NOTHING;
  CHECK_CHILD(q != NULL);
  CHECK_CHILD(conc_manager_register_queue(&m, "q", q) == 0);
  CHECK_CHILD(conc_manager_start(&m) == 0);
  strcpy(its->address + 1, conc_manager_address(&m) + 1);
  STORE(its->address[0], conc_manager_address(&m)[0]);
  while (LOAD(its->stop) < 2) usleep(2000);
  CHECK_CHILD(conc_manager_shutdown(&m) == 0);
  while (conc_get(q, &message, sizeof message, 0) == sizeof message)
    note(&last, message); /* what was on its way when all stopped */
  conc_queue_free(q);
  _exit(0);
}

static pid_t start(void (*be)(int), int number) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) be(number);
  return pid;
}

/* The process is gone: what it was at is not certain. */
static void excuse(client *c) {
  for (int i = 0; i < GETTERS; i++) {
    if (c->noted[i] != NOTHING) its->excused[c->noted[i]]++;
    c->noted[i] = NOTHING;
  }
  for (int i = 0; i < PUTTERS; i++) {
    if (c->putting[i] != NOTHING) its->unsure[c->putting[i]] = 1;
    c->putting[i] = NOTHING;
  }
}

static void kill_one(pid_t *pid, int number) {
  int status;
  CHECK_EQ(kill(*pid, SIGKILL), 0);
  CHECK_EQ(waitpid(*pid, &status, 0), *pid);
  CHECK(WIFSIGNALED(status)); /* and has found nothing wrong before */
  its->killed++;
  excuse(&its->clients[number]);
  *pid = start(be_client, number);
}

static void stop_one(pid_t pid) {
  CHECK_EQ(kill(pid, SIGSTOP), 0);
  usleep(20000);
  CHECK_EQ(kill(pid, SIGCONT), 0);
  its->stopped++;
}

static int all_are_put_and_got(void) {
  for (int i = 0; i < CLIENTS; i++)
    for (int j = 0; j < PUTTERS; j++)
      if (LOAD(its->clients[i].next[j]) < its->messages ||
          LOAD(its->clients[i].putting[j]) != NOTHING)
        return 0;
  for (int i = 0; i < its->messages; i++)
    if (!LOAD(its->got[i]) && !LOAD(its->unsure[i])) return 0;
  return 1;
}

static void count(void) {
  int lost = 0, doubled = 0, unsure = 0;
  for (int i = 0; i < its->messages; i++) {
    const int by = i % (CLIENTS * PUTTERS);
    /* On a slow machine the time may be over before all are put. */
    if (i >= its->clients[by / PUTTERS].next[by % PUTTERS]) continue;
    unsure += its->unsure[i];
    if (its->got[i] == 0 && !its->unsure[i]) lost++;
    if (its->got[i] > 1 + its->excused[i]) doubled++;
    if (its->got[i] > 1) its->again++;
  }
  if (lost || doubled || getenv("CHAOS_TELL"))
    printf("%d messages: %d lost, %d doubled, %u came again after a kill, %d "
           "puts not certain; %u cancelled, %u timed out, %u killed, %u "
           "stopped\n", its->messages, lost, doubled, its->again, unsure,
           its->cancelled, its->timed_out, its->killed, its->stopped);
  CHECK_EQ(lost, 0);
  CHECK_EQ(doubled, 0);
}

static void serve_all(int number) {
  (void)number;
  be_server();
}

TEST(every_message_is_got_once_whatever_happens_to_clients) {
  const int messages = (int)test_asked("CHAOS_MESSAGES", 3000);
  double end;
  pid_t server, pids[CLIENTS];
  int status;
  NEEDS_FORK;
  its = (table *)in_shared_memory(sizeof *its);
  its->messages = messages;
  its->got = (unsigned char *)in_shared_memory((size_t)messages);
  its->excused = (unsigned char *)in_shared_memory((size_t)messages);
  its->unsure = (unsigned char *)in_shared_memory((size_t)messages);
  for (int i = 0; i < CLIENTS; i++) {
    for (int j = 0; j < GETTERS; j++) its->clients[i].noted[j] = NOTHING;
    for (int j = 0; j < PUTTERS; j++) {
      its->clients[i].putting[j] = NOTHING;
      its->clients[i].next[j] = i * PUTTERS + j;
    }
  }
  server = start(serve_all, 0);
  while (!LOAD(its->address[0])) usleep(1000);
  for (int i = 0; i < CLIENTS; i++) pids[i] = start(be_client, i);
  end = test_now() + (15 + messages / 500.0) * test_slow();
  while (!all_are_put_and_got() && test_now() < end) {
    unsigned dice = test_random();
    if (dice % 3 == 0) stop_one(pids[dice / 4 % CLIENTS]);
    else kill_one(&pids[dice / 4 % CLIENTS], (int)(dice / 4 % CLIENTS));
    usleep(10000 + test_random() % 40000);
  }
  STORE(its->stop, 1);
  for (int i = 0; i < CLIENTS; i++) {
    CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
    CHECK_EQ(status, 0);
  }
  STORE(its->stop, 2);
  CHECK_EQ(waitpid(server, &status, 0), server);
  CHECK_EQ(status, 0);
  for (int i = 0; i < 500 && LOAD(its->grandchildren) > 0; i++) usleep(10000);
  count();
}

TEST_MAIN
