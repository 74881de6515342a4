/* Workers of all kinds share a queue that leases its messages: programs of
   Python, which know nothing of that, and processes of C with threads and
   coroutines. Each is killed, stopped or cut off at random; in the second test
   the manager is killed, too. Every message is done, and by one of them; what
   is done twice is so since a lease ended.

   SURVIVE_MESSAGES says how many (default 4,000; in the second test an eighth
   of that, for it waits for the disk), SURVIVE_LEASE how long a
   lease is (default 0.3 seconds), SURVIVE_JOURNAL=1 that the messages of the
   first test are in a journal, SURVIVE_TELL=1 that the counts are to be
   printed.

   What is honest to count. Whoever has a message notes in shared memory that
   it works at it, then says that it is done, then notes that this was
   answered.
   - each message was worked at
   - no message was answered to be done twice: so a lease that has ended is of
     no use any more, also to a process that was stopped and does not know
   - each delivery has its own number, as far as the worker is told it (a call
     without a conc_lease, and Python, are not): no message is with two workers
     by the same delivery, and none comes once more after that by which it was
     done
   - the server has counted as many deliveries as messages and leases that
     ended otherwise. So no message was worked at more often than that allows
   A manager that is killed has counted nothing, and may have forgotten that it
   has delivered a message: so the numbers of deliveries say nothing there. But
   it has forgotten no message, and none that was done: that would be done once
   more, and so be answered twice. */
#include "test.h"

#include <arpa/inet.h>
#include <glob.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "../conc.h"
#include "child.h"
#include "tasks.h"

enum { PYTHONS = 2, CLIENTS = 4, WORKERS = PYTHONS + CLIENTS, KINDS = 4 };
enum { NO_CUT, CLOSE, RESET, SILENCE };
enum { GAVE_UP = 7 }; /* the exit code of a worker that has lost its server */

typedef struct table {
  char first_address[64], address[64], proxy[64];
  char python[PYTHONS][200];
  char path[64];
  int messages, stop, all_put, all_done, cut;
  int restarts; /* the manager is killed, and has a journal */
  bool begun;   /* the manager has, since this was cleared */
  double lease;
  unsigned killed, stopped, stopped_long, cuts, gave_up, cancelled, hung;
  unsigned stale, unsure, forgot, released, extended, told, same_delivery;
  unsigned managers, put_again;
  unsigned errors[200]; /* of gets, by errno */
  conc_queue_counts counts;
  unsigned char *python_table; /* see survivor.py */
  unsigned char *worked, *done; /* by message, of C */
  uint64_t *seen;               /* bits: the numbers of its deliveries */
  unsigned char *by;            /* the delivery by which it was done; 0: it is
                                   not known */
} table;
static table *its;

static void *in_shared_memory(size_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

/* --- a worker in C --- */

typedef struct worker {
  conc_task task;
  conc_fn *fn;
  conc_queue *queue;
  unsigned long long seed;
} worker;

static bool goes_on(void) { return !LOAD(its->stop); }

/* Has it; `delivery` 0: which one is not known. */
static void note_got(int n, int delivery) {
  uint64_t bit = (uint64_t)1 << (delivery < 63 ? delivery : 63);
  CHECK_CHILD(n >= 0 && n < its->messages);
  if (delivery == 0) return;
  if (delivery > 1) ADD_FETCH(its->told, 1);
  if ((__atomic_fetch_or(&its->seen[n], bit, __ATOMIC_ACQ_REL) & bit) &&
      delivery < 63)
    ADD_FETCH(its->same_delivery, 1);
}
static void note_work(int n) { ADD_FETCH(its->worked[n], 1); }
static void note_done(int n, int delivery, int rc) {
  if (rc == -ESTALE) ADD_FETCH(its->stale, 1);
  else if (rc != 0) ADD_FETCH(its->unsure, 1);
  if (rc == -EINVAL || rc == -EPROTO) {
    fprintf(stderr, "done: %s\n", conc_strerror(rc));
    _exit(CHECK_CHILD_FAILED);
  }
  if (rc != 0) return;
  ADD_FETCH(its->done[n], 1);
  STORE(its->by[n], (unsigned char)delivery);
}

/* A get has failed: is that allowed? */
static void note_error(int rc) {
  if (rc == -ETIMEDOUT) return;
  if (rc == -ECANCELED) ADD_FETCH(its->cancelled, 1);
  else ADD_FETCH(its->errors[-rc < 200 ? -rc : 0], 1);
  if (rc == -EPROTO || rc == -EINVAL || rc == -EBADMSG || rc == -EMSGSIZE ||
      rc == -ESTALE || rc == -ENOTSUP || rc == -EACCES) {
    fprintf(stderr, "get: %s\n", conc_strerror(rc));
    _exit(CHECK_CHILD_FAILED);
  }
  if (rc != -ECANCELED) conc_sleep(0.002);
}

/* One message at a time, as Python's programs have it. */
static void *be_plain(void *arg) {
  worker *w = (worker *)arg;
  while (goes_on()) {
    int n = 0;
    ssize_t size = conc_get(w->queue, &n, sizeof n, 0.2);
    if (size < 0) {
      note_error((int)size);
      continue;
    }
    CHECK_CHILD(size == sizeof n);
    note_got(n, 0);
    note_work(n);
    note_done(n, 0, conc_task_done(w->queue));
    if (test_random_of(&w->seed) % 500 == 0) return NULL;
  }
  return NULL;
}

/* Gets one with its lease. False: there was none. */
static bool get_leased(worker *w, conc_lease *lease, int *n) {
  ssize_t size = conc_get_leased(w->queue, lease, n, sizeof *n, 0.2);
  if (size < 0) {
    note_error((int)size);
    return false;
  }
  CHECK_CHILD(size == sizeof *n);
  note_got(*n, conc_lease_deliveries(lease));
  return true;
}

/* Ends a lease in some way. False: its task is to end, without a word. */
static bool end_somehow(worker *w, conc_lease *lease, int n) {
  int delivery = conc_lease_deliveries(lease);
  switch (test_random_of(&w->seed) % 400) {
  case 0: /* it hangs for longer than it may */
    ADD_FETCH(its->hung, 1);
    conc_sleep(its->lease * 3);
    break;
  case 1: case 2:
    ADD_FETCH(its->forgot, 1);
    return false;
  case 3: case 4: case 5: case 6: case 7:
    if (conc_lease_release(lease, n % 3 == 0 ? 0.01 : 0) == 0)
      ADD_FETCH(its->released, 1);
    return true;
  case 8: case 9: case 10:
    if (conc_lease_extend(lease, its->lease) == 0)
      ADD_FETCH(its->extended, 1);
  }
  note_work(n);
  note_done(n, delivery, conc_lease_done(lease));
  return true;
}

static void *be_leaser(void *arg) {
  worker *w = (worker *)arg;
  while (goes_on()) {
    conc_lease lease = {0};
    int n = 0;
    if (get_leased(w, &lease, &n) && !end_somehow(w, &lease, n)) break;
  }
  return NULL;
}

/* Has several at a time, and ends them in any order. */
static void *be_hoarder(void *arg) {
  worker *w = (worker *)arg;
  conc_lease leases[5];
  int n[5];
  memset(leases, 0, sizeof leases);
  while (goes_on()) {
    size_t k = 0, i;
    while (k < 5 && get_leased(w, &leases[k], &n[k])) k++;
    while (k > 0) {
      i = test_random_of(&w->seed) % k--;
      if (!end_somehow(w, &leases[i], n[i])) return NULL;
      leases[i] = leases[k];
      n[i] = n[k];
    }
  }
  return NULL;
}

static void begin(worker *w, int (*how)(conc_task *)) {
  unsigned long long seed = w->seed;
  start(how, &w->task, w->fn, w);
  w->seed = seed;
}

/* Three coroutines in a loop. Those that end are started again. */
static void *be_coroutines(void *arg) {
  static conc_fn *const kinds[] = {be_plain, be_leaser, be_hoarder};
  worker *w = (worker *)arg;
  worker c[3];
  for (int i = 0; i < 3; i++) {
    memset(&c[i], 0, sizeof c[i]);
    c[i].queue = w->queue;
    c[i].seed = w->seed + (unsigned)i + 1;
    c[i].fn = kinds[i];
    begin(&c[i], conc_coro_start);
  }
  while (goes_on()) {
    int i = (int)(test_random_of(&w->seed) % 3);
    int rc = conc_join(&c[i].task, 0.02);
    if (rc == -ETIMEDOUT && test_random_of(&w->seed) % 2)
      conc_cancel(&c[i].task);
    if (!conc_is_alive(&c[i].task)) begin(&c[i], conc_coro_start);
  }
  for (int i = 0; i < 3; i++)
    while (conc_join(&c[i].task, 30) == -ECANCELED &&
           conc_is_alive(&c[i].task)) {
    }
  return NULL;
}
static void *run_coroutines(void *arg) {
  run(be_coroutines, arg);
  return NULL;
}

static unsigned long long its_seed(int number) {
  static unsigned long long generation;
  return test_seed * 1000 + (unsigned)number * 100000007ull + ++generation;
}

static void be_client(int number) {
  static conc_fn *const kinds[KINDS] = {be_plain, be_leaser, be_hoarder,
                                        run_coroutines};
  static worker workers[KINDS];
  unsigned long long seed = its_seed(number);
  conc_manager m;
  conc_queue *q;
  memset(&m, 0, sizeof m);
  m.address = number % 2 ? its->proxy : its->address;
  m.authkey = "survive";
  if (number % 4 < 2) m.reconnect = 5;
  /* While it connects it may be cut off, too. */
  if (conc_manager_connect(&m, 20 * test_slow()) != 0) _exit(GAVE_UP);
  q = conc_manager_get(&m, "get_queue");
  if (q == NULL) _exit(GAVE_UP);
  for (int i = 0; i < KINDS; i++) {
    workers[i].queue = q;
    workers[i].fn = kinds[i];
    workers[i].seed = seed + 7 * (unsigned)i;
    begin(&workers[i], conc_thread_start);
  }
  while (goes_on()) {
    unsigned dice = test_random_of(&seed);
    worker *w = &workers[dice % KINDS];
    if (w->fn != run_coroutines && dice / KINDS % 4 == 0)
      conc_cancel(&w->task);
    if (!conc_is_alive(&w->task)) {
      conc_join(&w->task, CONC_FOREVER);
      begin(w, conc_thread_start);
    }
    usleep(3000);
  }
  for (int i = 0; i < KINDS; i++) conc_join(&workers[i].task, 30);
  conc_manager_shutdown(&m);
  _exit(0);
}

static void be_python(int number) {
  char messages[20], which[20];
  snprintf(messages, sizeof messages, "%d", its->messages);
  snprintf(which, sizeof which, "%d", number);
  execl(its->python[number], its->python[number], "-W", "ignore",
        "tests/interop/survivor.py", number % 2 ? its->proxy : its->address,
        "survive", its->path, messages, which, (char *)NULL);
  _exit(CHECK_CHILD_FAILED);
}

/* --- the server --- */

/* Python takes its time to begin. Half of the messages wait for it. */
static void until_python_works(void) {
  double end = test_now() + 10 * test_slow();
  for (int i = 0; i < PYTHONS; i++)
    while (its->python[i][0] != 0 && !LOAD(its->python_table[1 + i]) &&
           goes_on() && test_now() < end)
      usleep(1000);
}

/* Puts them all, and then waits until they are done. */
static void put_all(conc_queue *q) {
  for (int i = 0; i < its->messages && goes_on(); i++) {
    if (i == its->messages / 2) until_python_works();
    CHECK_CHILD(conc_put(q, &i, sizeof i, CONC_FOREVER) == 0);
  }
  STORE(its->all_put, 1);
}

/* From afar, to a manager that is killed now and then: each until it is
   answered, and once. */
static void be_putter(int number) {
  conc_manager m;
  conc_queue *q;
  (void)number;
  memset(&m, 0, sizeof m);
  m.address = its->address;
  m.authkey = "survive";
  m.reconnect = 20 * test_slow();
  CHECK_CHILD(conc_manager_connect(&m, 20 * test_slow()) == 0);
  q = conc_manager_get(&m, "get_queue");
  CHECK_CHILD(q != NULL);
  for (int i = 0; i < its->messages && goes_on(); i++) {
    char id[20];
    snprintf(id, sizeof id, "%d", i);
    if (i == its->messages / 2) until_python_works();
    if (i == its->messages - 1) /* it ends after a manager was killed */
      while (!LOAD(its->managers) && goes_on()) usleep(1000);
    while (conc_put_once(q, id, &i, sizeof i, 5) != 0 && goes_on())
      ADD_FETCH(its->put_again, 1);
  }
  STORE(its->all_put, 1);
  conc_manager_shutdown(&m);
  _exit(0);
}

static void be_server(int number) {
  conc_queue_opts o;
  conc_manager m;
  conc_queue *q;
  char path[80] = "";
  (void)number;
  memset(&o, 0, sizeof o);
  memset(&m, 0, sizeof m);
  m.address = its->address[0] != 0 ? its->address : its->first_address;
  m.authkey = "survive";
  o.lease = its->lease;
  o.max_lease = its->lease * 2;
  o.retry_delay = 0.001;
  o.capacity = 1000;
  if (its->restarts || getenv("SURVIVE_JOURNAL") != NULL) {
    snprintf(path, sizeof path, "%s.journal", its->path);
    o.journal = path;
  }
  if (its->restarts) o.dedup = 1000;
  q = conc_queue_new(&o);
  CHECK_CHILD(q != NULL);
  CHECK_CHILD(conc_manager_register_queue(&m, "get_queue", q) == 0);
  CHECK_CHILD(conc_manager_start(&m) == 0);
  if (its->address[0] == 0) {
    strcpy(its->address + 1, conc_manager_address(&m) + 1);
    STORE(its->address[0], conc_manager_address(&m)[0]);
  }
  STORE(its->begun, true);
  if (!its->restarts) put_all(q);
  while (goes_on() && !LOAD(its->all_put)) usleep(1000);
  while (goes_on() && conc_queue_join(q, 0.1) != 0) {
  }
  CHECK_CHILD(conc_queue_stats(q, &its->counts) == 0);
  STORE(its->all_done, 1);
  while (LOAD(its->stop) < 2) usleep(2000);
  CHECK_CHILD(conc_manager_shutdown(&m) == 0);
  CHECK_CHILD(conc_queue_holders(q, NULL, 0) == 0);
  conc_queue_free(q);
  if (path[0] != 0) unlink(path);
  _exit(0);
}

/* --- the network between them and every other worker --- */

enum { LINKS = 200, AT_ONCE = 65536 };
typedef struct link_of {
  int ends[2];      /* -1: there is none */
  double silent_until; /* nothing passes, until both ends are closed; 0: no */
} link_of;

static int socket_at(const char *address, bool listens) {
  struct sockaddr_in at;
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  const char *colon = address != NULL ? strrchr(address, ':') : NULL;
  char host[64];
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (colon != NULL) {
    snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
    at.sin_addr.s_addr = inet_addr(host);
    at.sin_port = htons((uint16_t)atoi(colon + 1));
  }
  CHECK_CHILD(fd >= 0);
  setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &on, sizeof on);
  if (listens)
    CHECK_CHILD(bind(fd, (struct sockaddr *)&at, sizeof at) == 0 &&
                listen(fd, 64) == 0);
  else if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
    close(fd); /* the manager has been killed */
    return -1;
  }
  return fd;
}

static void link_close(link_of *l, bool reset) {
  struct linger now = {1, 0};
  for (int i = 0; i < 2; i++) {
    if (reset)
      setsockopt(l->ends[i], SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(l->ends[i]);
    l->ends[i] = -1;
  }
}

/* What comes from one end; false: it has gone, or the other does not read. */
static bool link_pass(link_of *l, int from) {
  static char buf[AT_ONCE];
  ssize_t n = recv(l->ends[from], buf, sizeof buf, MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  return send(l->ends[!from], buf, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) ==
         n;
}

static void cut_one(link_of *links, int how, unsigned long long *seed) {
  for (int tries = 0; tries < LINKS * 4; tries++) {
    link_of *l = &links[test_random_of(seed) % LINKS];
    if (l->ends[0] < 0 || l->silent_until > 0) continue;
    if (how == SILENCE) l->silent_until = test_now() + its->lease * 1.5;
    else link_close(l, how == RESET);
    ADD_FETCH(its->cuts, 1);
    return;
  }
}

static void be_proxy(int number) {
  static link_of links[LINKS];
  static struct pollfd p[1 + 2 * LINKS];
  unsigned long long seed = its_seed(number);
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  int listener = socket_at(NULL, true), i, how;
  CHECK_CHILD(getsockname(listener, (struct sockaddr *)&at, &size) == 0);
  for (i = 0; i < LINKS; i++) links[i].ends[0] = links[i].ends[1] = -1;
  snprintf(its->proxy + 1, sizeof its->proxy - 1, "27.0.0.1:%d",
           ntohs(at.sin_port));
  STORE(its->proxy[0], '1');
  while (LOAD(its->stop) < 2) {
    p[0].fd = listener;
    p[0].events = POLLIN;
    for (i = 0; i < 2 * LINKS; i++) {
      link_of *l = &links[i / 2];
      p[1 + i].fd = l->silent_until > 0 ? -1 : l->ends[i % 2];
      p[1 + i].events = POLLIN;
      p[1 + i].revents = 0;
    }
    poll(p, 1 + 2 * LINKS, 5);
    for (i = 0; i < 2 * LINKS; i++) {
      link_of *l = &links[i / 2];
      if (p[1 + i].revents != 0 && l->ends[0] >= 0 && !link_pass(l, i % 2))
        link_close(l, false);
    }
    for (i = 0; i < LINKS; i++)
      if (links[i].silent_until > 0 && links[i].silent_until < test_now()) {
        link_close(&links[i], true);
        links[i].silent_until = 0;
      }
    for (i = 0; i < LINKS && links[i].ends[0] >= 0; i++) {
    }
    if ((p[0].revents & POLLIN) && i < LINKS) {
      links[i].ends[0] = accept(listener, NULL, NULL);
      links[i].ends[1] = socket_at(its->address, false);
      if (links[i].ends[1] < 0) {
        close(links[i].ends[0]);
        links[i].ends[0] = -1;
      }
    }
    how = LOAD(its->cut);
    STORE(its->cut, NO_CUT);
    if (how != NO_CUT) cut_one(links, how, &seed);
  }
  _exit(0);
}

/* --- who disturbs them all --- */

typedef struct process {
  pid_t pid;
  double stopped_until; /* 0: it runs */
} process;

static pid_t run_as(void (*be)(int), int number) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the test may be killed itself */
#endif
    be(number);
  }
  return pid;
}
static pid_t run_worker(int number) {
  bool python = number < PYTHONS && its->python[number][0] != 0;
  return run_as(python ? be_python : be_client, number);
}

/* A worker that was not killed has given up, and has found nothing wrong. */
static void check_ended(int status, bool may_stop) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == GAVE_UP) {
    its->gave_up++;
    return;
  }
  CHECK(may_stop);
  CHECK_EQ(status, 0);
}

static void disturb(process *p, int number) {
  unsigned dice = test_random() % 16;
  int status;
  /* Python takes so long to begin that it would do nothing else. */
  if (dice < 5 && (number >= PYTHONS || test_random() % 4 == 0)) {
    CHECK_EQ(kill(p->pid, SIGKILL), 0);
    CHECK_EQ(waitpid(p->pid, &status, 0), p->pid);
    if (WIFSIGNALED(status)) its->killed++;
    else check_ended(status, false);
    p->stopped_until = 0;
    p->pid = run_worker(number);
  } else if (dice >= 5 && dice < 10 && p->stopped_until == 0) {
    double seconds = dice < 8 ? 0.02 : its->lease * 1.5;
    CHECK_EQ(kill(p->pid, SIGSTOP), 0);
    p->stopped_until = test_now() + seconds;
    *(dice < 8 ? &its->stopped : &its->stopped_long) += 1;
  } else if (dice >= 10 && dice < 13) {
    STORE(its->cut, CLOSE + (int)(test_random() % 3));
  }
}

/* Those that were stopped go on, and those that gave up begin again. */
static void attend(process *p, int number, bool all) {
  int status;
  if (p->stopped_until > 0 && (all || test_now() > p->stopped_until)) {
    CHECK_EQ(kill(p->pid, SIGCONT), 0);
    p->stopped_until = 0;
  }
  if (all || waitpid(p->pid, &status, WNOHANG) != p->pid) return;
  check_ended(status, false);
  p->pid = run_worker(number);
}

/* --- what came of it --- */

static int python_sum(int n, int what) {
  int sum = 0;
  for (int i = 0; i < PYTHONS; i++)
    sum += its->python_table[64 + (2 * i + what) * its->messages + n];
  return sum;
}

static void tell(unsigned long long worked, unsigned more, unsigned python) {
  const conc_queue_counts *c = &its->counts;
  printf("%d messages: %llu times worked at, %u of them more than once; %u by "
         "Python\n", its->messages, worked, more, python);
  printf("  the server: put %llu, got %llu, done %llu, returned %llu\n",
         (unsigned long long)c->put, (unsigned long long)c->got,
         (unsigned long long)c->done, (unsigned long long)c->returned);
  printf("  %u told of an earlier delivery; %u too late, %u not answered\n",
         its->told, its->stale, its->unsure);
  printf("  %u killed, %u stopped, %u stopped for longer than a lease, %u cut "
         "off, %u gave up;\n  %u cancelled, %u hung, %u released, %u "
         "extended, %u forgot\n", its->killed, its->stopped, its->stopped_long,
         its->cuts, its->gave_up, its->cancelled, its->hung, its->released,
         its->extended, its->forgot);
  if (its->restarts)
    printf("  %u managers were killed, %u puts asked for again\n",
           its->managers, its->put_again);
  for (int i = 0; i < 200; i++)
    if (its->errors[i] > 0)
      printf("  %u gets: %s\n", its->errors[i], conc_strerror(-i));
}

static void count(void) {
  unsigned lost = 0, finished_twice = 0, come_again = 0, more = 0, python = 0;
  unsigned long long worked = 0;
  const conc_queue_counts *c = &its->counts;
  for (int i = 0; i < its->messages; i++) {
    int at = its->worked[i] + python_sum(i, 0);
    int done = its->done[i] + python_sum(i, 1);
    lost += at == 0;
    finished_twice += done > 1;
    more += at > 1;
    python += python_sum(i, 0) > 0;
    worked += (unsigned)at;
    come_again += its->by[i] > 0 && its->by[i] < 63 &&
                  its->seen[i] >> (its->by[i] + 1) != 0;
  }
  if (getenv("SURVIVE_TELL") != NULL || lost || finished_twice ||
      (come_again && !its->restarts))
    tell(worked, more, python);
  CHECK_EQ(lost, 0);
  CHECK_EQ(finished_twice, 0);
  if (its->restarts) {
    CHECK(its->managers > 0);
    return;
  }
  CHECK_EQ(come_again, 0);
  CHECK_EQ(its->same_delivery, 0);
  CHECK_EQ(c->put, its->messages);
  CHECK_EQ(c->done, its->messages);
  CHECK_EQ(c->got, c->done + c->returned);
  CHECK(worked <= c->got);
  CHECK(c->returned > 0);
}

/* --- the test --- */

/* 3.8 and 3.13, where they are. */
static void find_pythons(void) {
  static const char *const versions[PYTHONS] = {"3.8", "3.13"};
  const char *home = getenv("HOME");
  for (int i = 0; i < PYTHONS; i++) {
    char pattern[200];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/.pyenv/versions/%s.*/bin/python3",
             home != NULL ? home : "/root", versions[i]);
    if (glob(pattern, 0, NULL, &found) == 0)
      snprintf(its->python[i], sizeof its->python[i], "%s",
               found.gl_pathv[0]);
    globfree(&found);
  }
  if (access("tests/interop/survivor.py", R_OK) != 0)
    memset(its->python, 0, sizeof its->python);
}

static void make_tables(int messages) {
  size_t n = (size_t)messages, size = 64 + 2 * PYTHONS * n;
  int fd;
  its = (table *)in_shared_memory(sizeof *its);
  its->messages = messages;
  its->lease = test_asked("SURVIVE_LEASE", 0.3 * test_slow());
  its->worked = (unsigned char *)in_shared_memory(n);
  its->done = (unsigned char *)in_shared_memory(n);
  its->by = (unsigned char *)in_shared_memory(n);
  its->seen = (uint64_t *)in_shared_memory(n * sizeof *its->seen);
  snprintf(its->path, sizeof its->path, "/tmp/conc-survive-%d", (int)getpid());
  fd = open(its->path, O_RDWR | O_CREAT | O_EXCL, 0600);
  CHECK(fd >= 0);
  CHECK_EQ(ftruncate(fd, (off_t)size), 0);
  its->python_table = (unsigned char *)mmap(
      NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(its->python_table != MAP_FAILED);
  close(fd);
}

static void kill_manager(pid_t *server) {
  CHECK_EQ(kill(*server, SIGKILL), 0);
  reap(*server, -SIGKILL);
  ADD_FETCH(its->managers, 1);
  *server = run_as(be_server, 0);
}

static void survive(int messages, int restarts) {
  process workers[WORKERS];
  pid_t server, proxy, putter = 0;
  double end, manager_until = 1e18;
  int status;
  make_tables(messages);
  its->restarts = restarts;
  snprintf(its->first_address, sizeof its->first_address, "%s",
           private_address());
  find_pythons();
  server = run_as(be_server, 0);
  while (!LOAD(its->address[0])) usleep(1000);
  proxy = run_as(be_proxy, 1);
  while (!LOAD(its->proxy[0])) usleep(1000);
  for (int i = 0; i < WORKERS; i++) {
    workers[i].stopped_until = 0;
    workers[i].pid = run_worker(i);
  }
  if (restarts) putter = run_as(be_putter, 2);
  end = test_now() + 24 * test_slow(); /* a test has 30 */
  while (!LOAD(its->all_done) && test_now() < end) {
    int i = (int)(test_random() % WORKERS);
    disturb(&workers[i], i);
    for (i = 0; i < WORKERS; i++) attend(&workers[i], i, false);
    /* A slow machine must give it the time to do something. Now and then it
       is killed while it begins. */
    if (restarts && LOAD(its->begun)) {
      STORE(its->begun, false);
      manager_until = test_now() + 0.1 + test_random() % 500 / 1000.0;
    }
    if (restarts && test_now() > manager_until && !LOAD(its->all_done)) {
      STORE(its->begun, false);
      kill_manager(&server);
      manager_until = test_random() % 4 == 0
                          ? test_now() + test_random() % 100 / 1000.0
                          : 1e18;
    }
    usleep(5000 + test_random() % 30000);
  }
  STORE(its->stop, 1);
  its->python_table[0] = 1;
  for (int i = 0; i < WORKERS; i++) attend(&workers[i], i, true);
  for (int i = 0; i < WORKERS; i++) {
    CHECK_EQ(waitpid(workers[i].pid, &status, 0), workers[i].pid);
    check_ended(status, true);
  }
  if (restarts) reap(putter, 0);
  STORE(its->stop, 2);
  reap(server, 0);
  reap(proxy, 0);
  unlink(its->path);
  count();
}

TEST(every_message_is_done_whatever_happens_to_its_workers) {
  NEEDS_FORK;
  survive((int)test_asked("SURVIVE_MESSAGES", 4000), 0);
}
TEST(every_message_is_done_though_the_manager_is_killed) {
  NEEDS_FORK;
  survive((int)test_asked("SURVIVE_MESSAGES", 4000) / 8, 1);
}

TEST_MAIN
