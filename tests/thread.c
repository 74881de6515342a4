/* Threads: names, stacks, subclasses, cancellation at every wait, threads of
   others; and conc_local. From inside: this program has its own
   implementation, with an allocator that counts and can fail. */
#include "inside.h"
#include "tasks.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int load(int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static int add(int *p) { return __atomic_add_fetch(p, 1, __ATOMIC_ACQ_REL); }

static void wait_for_count(int *p, int n) {
  while (load(p) < n) conc_yield_now();
}

/* --- from one thread to two ----------------------------------------------- */

/* What the only thread of the process does is not atomic for other CPUs: the
   thread that it then starts must see all of it. */
typedef struct first_things {
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_sem sem;
  conc_event event;
} first_things;

static void *try_things(void *arg) {
  first_things *f = (first_things *)arg;
  CHECK_EQ(conc_lock_acquire(&f->lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rlock_acquire(&f->rlock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rwlock_write_acquire(&f->rwlock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_rwlock_read_acquire(&f->rwlock, 0), 0);
  CHECK_EQ(conc_rwlock_release(&f->rwlock), 0);
  CHECK_EQ(conc_sem_acquire(&f->sem, 0), 0);
  CHECK_EQ(conc_sem_acquire(&f->sem, 0), -ETIMEDOUT);
  CHECK(conc_event_is_set(&f->event));
  CHECK_EQ(conc_event_clear(&f->event), 0);
  CHECK_EQ(conc_event_wait(&f->event, CONC_FOREVER), 0);
  return arg;
}

TEST(what_the_only_thread_did_is_seen_by_the_next) {
  static first_things f;
  conc_task t;
#if CONC_HAVE_SINGLE_THREADED && !CONC_HAVE_TSAN && !CONC_HAVE_ASAN
  CHECK(CONC__SINGLE_THREADED());
#endif
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_lock_acquire(&f.lock, 0), 0);
    CHECK_EQ(conc_rlock_acquire(&f.rlock, 0), 0);
    CHECK_EQ(conc_rwlock_write_acquire(&f.rwlock, 0), 0);
    CHECK_EQ(conc_rwlock_release(&f.rwlock), 0);
    CHECK_EQ(conc_rwlock_read_acquire(&f.rwlock, 0), 0);
    CHECK_EQ(conc_sem_release(&f.sem, 1), 0);
    CHECK_EQ(conc_event_set(&f.event), 0);
    start(conc_thread_start, &t, try_things, &f);
    CHECK(!CONC__SINGLE_THREADED());
    wait_parked(&t);
    CHECK_EQ(conc_event_set(&f.event), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_EQ(conc_rwlock_release(&f.rwlock), 0);
    CHECK_EQ(conc_rlock_release(&f.rlock), 0);
    CHECK_EQ(conc_lock_release(&f.lock), 0);
  }
}

/* --- names, stacks, results ----------------------------------------------- */

typedef struct named {
  conc_task task;
  char os[32], name[32];
} named;

static void *say_names(void *arg) {
  named *n = (named *)arg;
  int fd = open("/proc/thread-self/comm", O_RDONLY);
  ssize_t size = fd >= 0 ? read(fd, n->os, sizeof n->os - 1) : -1;
  if (fd >= 0) close(fd);
  CHECK(conc_current() == &n->task);
  snprintf(n->name, sizeof n->name, "%s", conc_name(NULL));
  n->os[size > 0 ? size - 1 : 0] = 0;
  return NULL;
}

static void check_names(const char *name, const char *expected,
                        const char *expected_os) {
  named n;
  memset(&n, 0, sizeof n);
  n.task.target = say_names;
  n.task.arg = &n;
  n.task.name = name;
  CHECK_EQ(conc_thread_start(&n.task), 0);
  CHECK_EQ(conc_join(&n.task, CONC_FOREVER), 0);
  CHECK_STR(n.name, expected);
  CHECK_STR(conc_name(&n.task), expected);
  if (CONC__LINUX && n.os[0] != 0) CHECK_STR(n.os, expected_os);
}

TEST(threads_are_named_and_the_system_knows) {
  conc_task never;
  memset(&never, 0, sizeof never);
  check_names(NULL, "Thread-1", "Thread-1");
  check_names("LoopThread", "LoopThread", "LoopThread");
  check_names(NULL, "Thread-2", "Thread-2");
  check_names("a name of more than fifteen", "a name of more than fifteen",
              "a name of more ");
  CHECK_STR(conc_name(NULL), "MainThread");
  CHECK_STR(conc_name(&never), "");
}

static size_t stack_used;

/* In frames that Valgrind does not take for a switch of stacks. */
static void *use_stack(void *arg) {
  volatile char big[1 << 20];
  for (size_t i = 0; i < sizeof big; i += 1024) big[i] = (char)i;
  stack_used += sizeof big;
  if (stack_used < 24 << 20) arg = use_stack(arg);
  return big[1024] == 0 ? arg : NULL;
}

static void *stack_of(void *arg) {
  size_t *size = (size_t *)arg;
#if CONC__LINUX
  pthread_attr_t attr;
  void *bottom;
  CHECK_EQ(pthread_getattr_np(pthread_self(), &attr), 0);
  CHECK_EQ(pthread_attr_getstack(&attr, &bottom, size), 0);
  pthread_attr_destroy(&attr);
#else
  *size = SIZE_MAX;
#endif
  return NULL;
}

TEST(a_thread_has_the_stack_it_asked_for) {
  static const size_t sizes[] = {1, 100000, 1 << 20, 20 << 20};
  conc_task t;
  for (size_t i = 0; i < COUNT(sizes); i++) {
    size_t got = 0;
    memset(&t, 0, sizeof t);
    t.target = stack_of;
    t.arg = &got;
    t.stack_size = sizes[i];
    CHECK_EQ(conc_thread_start(&t), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK(got >= sizes[i] && got >= (size_t)PTHREAD_STACK_MIN);
    if (CONC__LINUX) /* a sanitizer may ask for more */
      CHECK(got <= sizes[i] + (1 << 20) + (size_t)PTHREAD_STACK_MIN);
  }
  memset(&t, 0, sizeof t);
  t.target = use_stack;
  t.stack_size = SIZE_MAX / 4;
  CHECK(conc_thread_start(&t) < 0);
  CHECK_EQ(conc_join(&t, 0), -EINVAL); /* as new */
  /* More than a system's default. */
  t.stack_size = 32 << 20;
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(stack_used, 24 << 20);
}

typedef struct download {
  conc_task task; /* first: a download is a task */
  const char *filename;
  size_t bytes;
} download;

static void *fetch(void *arg) {
  download *d = (download *)conc_current();
  CHECK(arg == NULL);
  d->bytes = strlen(d->filename);
  return d;
}

TEST(a_struct_that_begins_with_a_task_is_a_subclass) {
  download d[2];
  memset(d, 0, sizeof d);
  for (int i = 0; i < 2; i++) {
    d[i].task.target = fetch;
    d[i].filename = i ? "sunset.jpg" : "a.pdf";
    CHECK_EQ(conc_thread_start(&d[i].task), 0);
  }
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_join(&d[i].task, CONC_FOREVER), 0);
    CHECK(conc_result(&d[i].task) == &d[i]);
  }
  CHECK_EQ(d[0].bytes + d[1].bytes, 15);
}

static void *wait_event(void *arg) {
  return conc_event_wait((conc_event *)arg, CONC_FOREVER) == 0 ? arg : NULL;
}

static void *join_it(void *arg) {
  CHECK_EQ(conc_join((conc_task *)arg, CONC_FOREVER), 0);
  return conc_result((conc_task *)arg);
}

TEST(join_has_a_timeout_and_any_number_may_join) {
  conc_event e;
  conc_task t, joiner[5];
  memset(&e, 0, sizeof e);
  start(conc_thread_start, &t, wait_event, &e);
  CHECK_EQ(conc_thread_start(&t), -EBUSY);
  CHECK_EQ(conc_join(&t, 0), -ETIMEDOUT);
  CHECK_EQ(conc_join(&t, 0.001), -ETIMEDOUT);
  CHECK(conc_is_alive(&t) && conc_result(&t) == NULL);
  for (int i = 0; i < 5; i++)
    start(conc_thread_start, &joiner[i], join_it, &t);
  for (int i = 0; i < 5; i++) wait_parked(&joiner[i]);
  conc_event_set(&e);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(conc_join(&joiner[i], CONC_FOREVER), 0);
    CHECK(conc_result(&joiner[i]) == &e);
  }
  CHECK(!conc_is_alive(&t));
}

TEST(the_end_of_main_awaits_no_thread) {
  for (int daemon = 0; daemon < 2; daemon++) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
      static conc_event never;
      static conc_task t;
      t.target = wait_event;
      t.arg = &never;
      t.daemon = daemon;
      CHECK_EQ(conc_thread_start(&t), 0);
      exit(3);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
  }
}

static pthread_key_t late_key;

static void late(void *arg) {
  CHECK(strncmp(conc_name(NULL), "Dummy-", 6) == 0);
  CHECK(conc_is_alive(conc_current()));
  CHECK_EQ(conc_sleep(0.0001), 0); /* the cancellation was the task's */
  add((int *)arg);
}

static void *leave_late(void *arg) {
  pthread_setspecific(late_key, arg);
  CHECK_EQ(conc_cancel(conc_current()), 0);
  return NULL;
}

TEST(destructors_of_others_may_use_the_library_after_the_task) {
  conc_task t;
  pthread_t p;
  int called = 0;
  conc_name(NULL); /* so that the library's key comes first */
  CHECK_EQ(pthread_key_create(&late_key, late), 0);
  start(conc_thread_start, &t, leave_late, &called);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  wait_for_count(&called, 1);
  CHECK_EQ(pthread_create(&p, NULL, leave_late, &called), 0);
  pthread_join(p, NULL);
  CHECK_EQ(called, 2);
}

/* --- cancellation --------------------------------------------------------- */

typedef struct fixture {
  const struct wait_kind *kind;
  bool pending; /* the cancellation is there before the wait */
  int expected; /* 0: success */
  conc_lock lock;
  conc_event event;
  conc_cond cond;
  bool flag;
  double nap;
  conc_task other;
  conc_queue *queue; /* capacity 1 */
  int sockets[2], pipe[2], listener, pending_fds[64], pending_count;
  const char *address;
} fixture;

typedef struct wait_kind {
  const char *name;
  void (*block)(fixture *f);
  ssize_t (*call)(fixture *f); /* waits after block, until unblock */
  void (*unblock)(fixture *f);
  void (*clean)(fixture *f);
  bool unblock_first;
} wait_kind;

static void nothing(fixture *f) { (void)f; }

static void lock_block(fixture *f) {
  CHECK_EQ(conc_lock_acquire(&f->lock, 0), 0);
}
static ssize_t lock_call(fixture *f) {
  int rc = conc_lock_acquire(&f->lock, CONC_FOREVER);
  if (rc == 0) CHECK_EQ(conc_lock_release(&f->lock), 0);
  return rc;
}
static void lock_unblock(fixture *f) {
  CHECK_EQ(conc_lock_release(&f->lock), 0);
}

static void event_block(fixture *f) { conc_event_clear(&f->event); }
static ssize_t event_call(fixture *f) {
  return conc_event_wait(&f->event, CONC_FOREVER);
}
static void event_unblock(fixture *f) { conc_event_set(&f->event); }

static ssize_t cond_call(fixture *f) {
  int rc;
  CHECK_EQ(conc_lock_acquire(&f->lock, CONC_FOREVER), 0);
  rc = conc_cond_wait(&f->cond, &f->lock, CONC_FOREVER);
  CHECK_EQ(conc_lock_release(&f->lock), 0); /* held in any case */
  return rc;
}
static void cond_unblock(fixture *f) {
  CHECK_EQ(conc_lock_acquire(&f->lock, CONC_FOREVER), 0);
  f->flag = true;
  conc_cond_notify(&f->cond, 1);
  CHECK_EQ(conc_lock_release(&f->lock), 0);
}

static bool is_flag(void *arg) { return ((fixture *)arg)->flag; }
static void wait_for_block(fixture *f) { f->flag = false; }
static ssize_t wait_for_call(fixture *f) {
  int rc;
  CHECK_EQ(conc_lock_acquire(&f->lock, CONC_FOREVER), 0);
  rc = conc_cond_wait_for(&f->cond, &f->lock, is_flag, f, CONC_FOREVER);
  CHECK_EQ(conc_lock_release(&f->lock), 0);
  return rc;
}

static void sleep_block(fixture *f) { f->nap = CONC_FOREVER; }
static ssize_t sleep_call(fixture *f) { return conc_sleep(f->nap); }
static void sleep_unblock(fixture *f) { f->nap = 0.001; }

static void join_block(fixture *f) {
  conc_event_clear(&f->event);
  start(conc_thread_start, &f->other, wait_event, &f->event);
}
static ssize_t join_call(fixture *f) {
  return conc_join(&f->other, CONC_FOREVER);
}
static void join_clean(fixture *f) {
  CHECK_EQ(conc_join(&f->other, CONC_FOREVER), 0);
}

static void put_block(fixture *f) {
  CHECK_EQ(conc_put(f->queue, "a", 1, 0), 0);
}
static ssize_t put_call(fixture *f) {
  return conc_put(f->queue, "b", 1, CONC_FOREVER);
}
static ssize_t put_value_call(fixture *f) {
  return conc_put_build(f->queue, CONC_FOREVER, "y", "b");
}
static void put_unblock(fixture *f) {
  char c;
  CHECK_EQ(conc_get(f->queue, &c, 1, 0), 1);
  CHECK_EQ(c, 'a');
}
static void put_clean(fixture *f) {
  char c;
  CHECK_EQ(conc_get(f->queue, &c, 1, 0), 1);
  CHECK_EQ(c, 'b');
  CHECK_EQ(conc_get(f->queue, &c, 1, 0), -ETIMEDOUT);
  CHECK_EQ(conc_task_done(f->queue), 0);
  CHECK_EQ(conc_task_done(f->queue), 0);
}

static ssize_t get_call(fixture *f) {
  char c;
  return conc_get(f->queue, &c, 1, CONC_FOREVER);
}
static ssize_t get_value_call(fixture *f) {
  conc_value *v;
  int rc = conc_get_value(f->queue, &v, CONC_FOREVER);
  conc_value_free(v);
  return rc;
}
static void get_clean(fixture *f) { CHECK_EQ(conc_task_done(f->queue), 0); }

static void queue_join_block(fixture *f) {
  put_block(f);
  put_unblock(f);
}
static ssize_t queue_join_call(fixture *f) {
  return conc_queue_join(f->queue, CONC_FOREVER);
}

static void drain(int fd) {
  static char buf[65536];
  while (conc_read(fd, buf, sizeof buf, 0) > 0) {
  }
}
static void fill(int fd) {
  static char buf[4096];
  while (conc_write(fd, buf, sizeof buf, 0) > 0) {
  }
  while (conc_write(fd, buf, 1, 0) > 0) {
  }
}
static ssize_t read_call(fixture *f) {
  char c;
  return conc_read(f->sockets[0], &c, 1, CONC_FOREVER);
}
static void read_unblock(fixture *f) {
  CHECK_EQ(conc_write(f->sockets[1], "x", 1, 0), 1);
}
static ssize_t wait_fd_call(fixture *f) {
  return conc_wait_fd(f->sockets[0], CONC_READ, CONC_FOREVER);
}
static void read_clean(fixture *f) { drain(f->sockets[0]); }
static void write_block(fixture *f) { fill(f->sockets[0]); }
static ssize_t write_call(fixture *f) {
  return conc_write(f->sockets[0], "xyz", 3, CONC_FOREVER);
}
static void write_unblock(fixture *f) { drain(f->sockets[1]); }

static ssize_t pipe_read_call(fixture *f) {
  char c;
  return conc_read(f->pipe[0], &c, 1, CONC_FOREVER);
}
static void pipe_read_unblock(fixture *f) {
  CHECK_EQ(conc_write(f->pipe[1], "x", 1, 0), 1);
}
static void pipe_write_block(fixture *f) { fill(f->pipe[1]); }
static ssize_t pipe_write_call(fixture *f) {
  return conc_write(f->pipe[1], "x", 1, CONC_FOREVER);
}
static void pipe_drain(fixture *f) {
  while (conc_wait_fd(f->pipe[0], CONC_READ, 0) > 0) {
    char buf[4096];
    CHECK(read(f->pipe[0], buf, sizeof buf) > 0);
  }
}

/* A listener with the smallest backlog, at an address that others know. */
static void listen_at(fixture *f, const char *address, int backlog) {
  struct sockaddr_storage a;
  socklen_t size = sizeof a;
  static char text[64];
  f->listener = conc_listen(address);
  CHECK(f->listener >= 0);
  CHECK_EQ(listen(f->listener, backlog), 0);
  f->address = address;
  if (address != NULL) return;
  CHECK_EQ(getsockname(f->listener, (struct sockaddr *)&a, &size), 0);
  snprintf(text, sizeof text, "127.0.0.1:%d",
           ntohs(((struct sockaddr_in *)&a)->sin_port));
  f->address = text;
}
static void unlisten(fixture *f) {
  while (f->pending_count > 0) close(f->pending_fds[--f->pending_count]);
  close(f->listener);
  if (strchr(f->address, '/')) unlink(f->address);
}
static void accept_block(fixture *f) { listen_at(f, NULL, 8); }
static ssize_t accept_call(fixture *f) {
  int fd = conc_accept(f->listener, CONC_FOREVER);
  return fd >= 0 ? conc_close(fd) : fd;
}
static void connect_pending(fixture *f, double timeout, int *rc) {
  *rc = conc_connect(f->address, timeout);
  if (*rc >= 0) f->pending_fds[f->pending_count++] = *rc;
}
static void accept_unblock(fixture *f) {
  int rc;
  connect_pending(f, 10, &rc);
  CHECK(rc >= 0);
}

static void connect_fill(fixture *f) {
  int rc = 0;
  while (rc >= 0 && f->pending_count < 64) connect_pending(f, 0.2, &rc);
  CHECK_EQ(rc, -ETIMEDOUT);
}
static void connect_block(fixture *f) {
  listen_at(f, NULL, 0);
  connect_fill(f);
}
static void connect_unix_block(fixture *f) {
  static char path[64];
  snprintf(path, sizeof path, "build/thread-%ld.sock", (long)getpid());
  listen_at(f, path, 0);
  connect_fill(f);
}
static ssize_t connect_call(fixture *f) {
  int fd = conc_connect(f->address, CONC_FOREVER);
  return fd >= 0 ? conc_close(fd) : fd;
}
static void connect_unblock(fixture *f) {
  int fd;
  while ((fd = conc_accept(f->listener, 0)) >= 0) close(fd);
}

static const wait_kind wait_kinds[] = {
    {"lock", lock_block, lock_call, lock_unblock, nothing, false},
    {"event", event_block, event_call, event_unblock, nothing, false},
    {"cond", nothing, cond_call, cond_unblock, nothing, false},
    {"wait_for", wait_for_block, wait_for_call, cond_unblock, nothing, false},
    {"sleep", sleep_block, sleep_call, sleep_unblock, nothing, true},
    {"join", join_block, join_call, event_unblock, join_clean, false},
    {"put", put_block, put_call, put_unblock, put_clean, false},
    {"put_build", put_block, put_value_call, put_unblock, put_clean, false},
    {"get", nothing, get_call, put_block, get_clean, false},
    {"get_value", nothing, get_value_call, put_block, get_clean, false},
    {"queue_join", queue_join_block, queue_join_call, get_clean, nothing,
     false},
    {"read", nothing, read_call, read_unblock, nothing, false},
    {"wait_fd", nothing, wait_fd_call, read_unblock, read_clean, false},
    {"write", write_block, write_call, write_unblock, write_unblock, false},
    {"pipe read", nothing, pipe_read_call, pipe_read_unblock, nothing, false},
    {"pipe write", pipe_write_block, pipe_write_call, pipe_drain, pipe_drain,
     false},
    {"accept", accept_block, accept_call, accept_unblock, unlisten, false},
    {"connect", connect_block, connect_call, connect_unblock, unlisten, true},
    {"connect unix", connect_unix_block, connect_call, connect_unblock,
     unlisten, false},
};

static void *wait_somewhere(void *arg) {
  fixture *f = (fixture *)arg;
  conc_event never;
  ssize_t rc;
  memset(&never, 0, sizeof never);
  if (f->pending) CHECK_EQ(conc_cancel(conc_current()), 0);
  rc = f->kind->call(f);
  if (f->expected == 0 ? rc < 0 : rc != f->expected)
    TEST_FAIL("%s returned %ld", f->kind->name, (long)rc);
  CHECK_EQ(conc_event_wait(&never, 0.0001), -ETIMEDOUT); /* not twice */
  return NULL;
}

static void cancel_at_every_wait(int (*how)(conc_task *)) {
  for (size_t i = 0; i < COUNT(wait_kinds); i++) {
    fixture f;
    conc_queue_opts one = {.capacity = 1};
    const wait_kind *kind = &wait_kinds[i];
    conc_task t;
    memset(&f, 0, sizeof f);
    f.kind = kind;
    f.queue = conc_queue_new(&one);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, f.sockets), 0);
    CHECK_EQ(pipe(f.pipe), 0);
    kind->block(&f);
    f.expected = -ECANCELED;
    for (int round = 0; round < 6; round++) {
      f.pending = round % 3 == 2;
      start(how, &t, wait_somewhere, &f);
      if (!f.pending) {
        wait_parked(&t);
        CHECK_EQ(conc_cancel(&t), 0);
      }
      CHECK_EQ(conc_join(&t, CONC_FOREVER), -ECANCELED);
      CHECK_EQ(conc_cancel(&t), -ESRCH);
    }
    f.expected = 0;
    f.pending = false;
    if (kind->unblock_first) kind->unblock(&f);
    start(how, &t, wait_somewhere, &f);
    if (!kind->unblock_first) {
      wait_parked(&t);
      kind->unblock(&f);
    }
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    kind->clean(&f);
    CHECK(!conc_lock_locked(&f.lock));
    CHECK(f.lock.waiters.first == NULL && f.event.waiters.first == NULL &&
          f.cond.waiters.first == NULL);
    conc_queue_free(f.queue);
    for (int j = 0; j < 2; j++) {
      CHECK_EQ(conc_close(f.sockets[j]), 0);
      CHECK_EQ(conc_close(f.pipe[j]), 0);
    }
  }
}

TEST(every_wait_of_a_thread_can_be_cancelled_once) {
  cancel_at_every_wait(conc_thread_start);
}

static void *cancel_coroutines(void *arg) {
  cancel_at_every_wait(conc_coro_start);
  return arg;
}

TEST(every_wait_of_a_coroutine_can_be_cancelled_once) {
  run(cancel_coroutines, NULL);
}

/* --- threads of others ---------------------------------------------------- */

typedef struct shared {
  conc_lock lock;
  conc_cond cond;
  conc_event go;
  conc_queue *queue;
  conc_local local;
  long counted;
  int turn, destroyed;
} shared;

static shared *common;

static void count_destroyed(void *value) {
  add(&common->destroyed);
  test_free(value);
}

static void *add_one(void *arg) {
  shared *s = (shared *)arg;
  CHECK_EQ(conc_lock_acquire(&s->lock, CONC_FOREVER), 0);
  s->counted++;
  CHECK_EQ(conc_lock_release(&s->lock), 0);
  return NULL;
}

static void *stranger(void *arg) {
  shared *s = (shared *)arg;
  conc_task t;
  char c;
  CHECK(strncmp(conc_name(NULL), "Dummy-", 6) == 0);
  CHECK(conc_is_alive(conc_current()));
  CHECK_EQ(conc_join(conc_current(), 0), -EINVAL);
  CHECK_EQ(conc_event_wait(&s->go, CONC_FOREVER), 0);
  CHECK_EQ(conc_put(s->queue, "x", 1, CONC_FOREVER), 0);
  add_one(s);
  start(conc_thread_start, &t, add_one, s);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_lock_acquire(&s->lock, CONC_FOREVER), 0);
  CHECK_EQ(conc_cond_wait(&s->cond, &s->lock, 0.00001), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&s->lock), 0);
  CHECK_EQ(conc_sleep(0.00001), 0);
  CHECK_EQ(conc_get(s->queue, &c, 1, CONC_FOREVER), 1);
  CHECK_EQ(conc_local_set(&s->local, "value", test_malloc(1)), 0);
  return NULL;
}

static void *stranger_with_a_loop(void *arg) {
  run(add_one, arg);
  return stranger(arg);
}

TEST(ten_thousand_foreign_threads_use_everything_and_leave_nothing) {
  enum { EACH = 16 };
  int rounds = (int)test_asked("THREAD_ROUNDS", 625);
  static shared s;
  conc_queue_opts few = {.capacity = EACH / 4};
  common = &s;
  s.queue = conc_queue_new(&few);
  s.local.destructor = count_destroyed;
  for (int round = 0; round < rounds; round++) {
    pthread_t t[EACH];
    conc_event_clear(&s.go);
    for (int i = 0; i < EACH; i++)
      CHECK_EQ(pthread_create(&t[i], NULL,
                              i == 0 ? stranger_with_a_loop : stranger, &s),
               0);
    conc_event_set(&s.go);
    for (int i = 0; i < EACH; i++) pthread_join(t[i], NULL);
  }
  CHECK_EQ(s.counted, rounds * (2 * EACH + 1));
  CHECK_EQ(s.destroyed, rounds * EACH);
  conc_queue_free(s.queue);
  conc_local_free(&s.local);
}

typedef struct guest {
  conc_task *task;
  conc_event *never;
} guest;

static void *be_cancelled(void *arg) {
  guest *g = (guest *)arg;
  CONC__STORE(&g->task, conc_current());
  CHECK_EQ(conc_event_wait(g->never, CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_sleep(0.0001), 0);
  return NULL;
}

TEST(a_foreign_thread_can_be_cancelled) {
  for (int i = 0; i < 200; i++) {
    conc_event never;
    guest g = {NULL, NULL};
    pthread_t t;
    memset(&never, 0, sizeof never);
    g.never = &never;
    CHECK_EQ(pthread_create(&t, NULL, be_cancelled, &g), 0);
    while (CONC__LOAD(&g.task) == NULL) sched_yield();
    CHECK_EQ(conc_cancel(g.task), 0);
    pthread_join(t, NULL);
  }
}

/* --- conc_local ----------------------------------------------------------- */

static conc_local local_school;

static void *process_thread(void *name) {
  CHECK(conc_local_get(&local_school, "student") == NULL);
  CHECK_EQ(conc_local_set(&local_school, "student", name), 0);
  conc_sleep(0.001); /* whatever the other does now */
  CHECK(conc_local_get(&local_school, "student") == name);
  return NULL;
}

TEST(each_thread_has_its_own_student) {
  conc_task t1, t2;
  start(conc_thread_start, &t1, process_thread, (void *)"Alice");
  start(conc_thread_start, &t2, process_thread, (void *)"Bob");
  CHECK_EQ(conc_join(&t1, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&t2, CONC_FOREVER), 0);
  CHECK(!conc_local_has(&local_school, "student"));
  conc_local_free(&local_school);
}

/* Names that are not set, set to NULL, deleted, no names at all; then forty
   of them: each finds its own value, and a freed local none. */
TEST(a_local_tells_what_is_not_set_from_null) {
  conc_local l;
  char name[16];
  int x[40];
  memset(&l, 0, sizeof l);
  CHECK(!conc_local_has(&l, "a"));
  CHECK(conc_local_get(&l, "a") == NULL);
  CHECK_EQ(conc_local_delete(&l, "a"), -ENOENT);
  CHECK_EQ(conc_local_set(&l, "a", NULL), 0);
  CHECK(conc_local_has(&l, "a"));
  CHECK(!conc_local_has(&l, "b"));
  CHECK_EQ(conc_local_delete(&l, "a"), 0);
  CHECK_EQ(conc_local_delete(&l, "a"), -ENOENT);
  CHECK(!conc_local_has(&l, "a"));
  CHECK_EQ(conc_local_set(&l, NULL, x), -EINVAL);
  CHECK_EQ(conc_local_delete(&l, NULL), -EINVAL);
  CHECK(conc_local_get(&l, NULL) == NULL && !conc_local_has(&l, NULL));
  CHECK(conc_local_attribute(&l, NULL) == NULL && errno == EINVAL);
  /* One address with many names, and any number of them. */
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < 40; i++) {
      snprintf(name, sizeof name, "%d", i);
      if (round == 0) CHECK_EQ(conc_local_set(&l, name, &x[i]), 0);
      CHECK(conc_local_get(&l, name) == &x[i]);
    }
  CHECK(conc_local_get(&l, "39") == &x[39]);
  CHECK_EQ(conc_local_set(&l, "", x), 0);
  CHECK(conc_local_get(&l, "") == x);
  conc_local_free(&l);
  CHECK(!conc_local_has(&l, "39"));
  CHECK_EQ(test_blocks, 0);
  l.scope = 2;
  CHECK_EQ(conc_local_set(&l, "a", x), -EINVAL);
}

TEST(an_attribute_is_the_same_as_its_name) {
  conc_local l[2];
  conc_attribute *a;
  int x;
  memset(l, 0, sizeof l);
  a = conc_local_attribute(&l[0], "a");
  CHECK(a != NULL && a == conc_local_attribute(&l[0], "a"));
  CHECK(conc_attribute_get(a) == NULL);
  CHECK(!conc_local_has(&l[0], "a"));
  CHECK_EQ(conc_attribute_set(a, &x), 0);
  CHECK(conc_local_get(&l[0], "a") == &x);
  CHECK(conc_local_get(&l[1], "a") == NULL);
  CHECK_EQ(conc_local_set(&l[1], "a", l), 0);
  conc_local_free(&l[1]);
  CHECK(conc_attribute_get(a) == &x);
  conc_local_free(&l[0]);
}

/* Values that are counted: each is to be destroyed once. */
typedef struct object {
  int made, destroyed;
} object;

static void destroy(void *value) { add(&((object *)value)->destroyed); }

static void *set_some(void *arg) {
  object *o = (object *)arg;
  CHECK_EQ(conc_local_set(&local_school, "a", &o[0]), 0);
  CHECK_EQ(conc_local_set(&local_school, "a", &o[0]), 0); /* the same */
  CHECK_EQ(o[0].destroyed, 0);
  CHECK_EQ(conc_local_set(&local_school, "a", &o[1]), 0);
  CHECK_EQ(o[0].destroyed, 1);
  CHECK_EQ(conc_local_set(&local_school, "a", NULL), 0);
  CHECK_EQ(o[1].destroyed, 1);
  CHECK_EQ(conc_local_set(&local_school, "a", &o[2]), 0);
  CHECK_EQ(conc_local_delete(&local_school, "a"), 0);
  CHECK_EQ(o[2].destroyed, 1);
  CHECK_EQ(conc_local_set(&local_school, "a", &o[3]), 0);
  CHECK_EQ(conc_local_set(&local_school, "b", &o[4]), 0);
  CHECK_EQ(conc_local_set(&local_school, "c", NULL), 0);
  return NULL;
}

static void *set_some_in_a_loop(void *arg) {
  run(set_some, arg);
  return NULL;
}

TEST(a_value_is_destroyed_once_and_before_the_join) {
  static conc_fn *const ways[] = {set_some, set_some_in_a_loop};
  object o[5];
  pthread_t p;
  local_school.destructor = destroy;
  for (int scope = 0; scope < 2; scope++)
    for (int way = 0; way < 3; way++) {
      conc_task t;
      local_school.scope = scope;
      memset(o, 0, sizeof o);
      if (way < 2) {
        start(conc_thread_start, &t, ways[way], o);
        CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
      } else {
        CHECK_EQ(pthread_create(&p, NULL, set_some, o), 0);
        pthread_join(p, NULL);
      }
      for (int i = 0; i < 5; i++) CHECK_EQ(o[i].destroyed, 1);
      conc_local_free(&local_school);
      for (int i = 0; i < 5; i++) CHECK_EQ(o[i].destroyed, 1);
    }
}

static int again;

static void set_again(void *value) {
  again++;
  CHECK_EQ(conc_local_set(&local_school, "again", value), 0);
}

static void *set_once(void *arg) {
  CHECK_EQ(conc_local_set(&local_school, "once", arg), 0);
  return NULL;
}

TEST(destructors_that_set_values_end) {
  conc_task t;
  local_school.destructor = set_again;
  start(conc_thread_start, &t, set_once, &t);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK(again >= 4 && again <= 8);
  conc_local_free(&local_school);
}

static conc_local waits_at_the_end;

static void wait_in_destructor(void *value) {
  CHECK_EQ(conc_sleep(0.001), 0);
  conc_local_set(&local_school, "x", value);
  CHECK(conc_local_get(&local_school, "x") == value);
  add((int *)value);
}

static void *set_waiting(void *arg) {
  conc_local_set(&waits_at_the_end, "x", arg);
  return NULL;
}

static void *set_waiting_in_many(void *arg) {
  conc_task t[50];
  for (int i = 0; i < 50; i++) start(conc_coro_start, &t[i], set_waiting, arg);
  for (int i = 0; i < 25; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK(load((int *)arg) >= 25);
  while (load((int *)arg) < 50) CHECK_EQ(conc_yield_now(), 0);
  return NULL;
}

TEST(a_destructor_may_wait_and_use_other_locals) {
  int called = 0;
  waits_at_the_end.scope = CONC_SCOPE_TASK;
  waits_at_the_end.destructor = wait_in_destructor;
  run(set_waiting_in_many, &called);
  conc_local_free(&waits_at_the_end);
  conc_local_free(&local_school);
}

/* Frees a local on the heap that is itself a value. */
static void free_local(void *value) {
  conc_local_free((conc_local *)value);
  free(value);
}

static void *copy_local(void *value) {
  conc_local *l = (conc_local *)calloc(1, sizeof *l);
  CHECK_EQ(conc_local_set(l, "inner", value), 0);
  conc_local_delete(&local_school, "outer"); /* so that nothing is left */
  conc_local_free(l);
  return l;
}

static void *set_a_local(void *arg) {
  conc_local *l = (conc_local *)calloc(1, sizeof *l);
  l->destructor = local_school.destructor;
  CHECK_EQ(conc_local_set(l, "inner", arg), 0);
  CHECK_EQ(conc_local_set(l, "inner", NULL), 0);
  CHECK_EQ(conc_local_set(&local_school, "outer", l), 0);
  return NULL;
}

static void *set_and_start(void *arg) {
  conc_task t;
  set_a_local(NULL);
  start(conc_coro_start, &t, set_a_local, NULL);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  return arg;
}

TEST(a_destructor_or_copy_may_free_a_local) {
  conc_task t;
  local_school.destructor = free_local;
  start(conc_thread_start, &t, set_a_local, NULL);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  conc_local_free(&local_school);
  local_school.scope = CONC_SCOPE_TASK;
  local_school.copy = copy_local;
  run(set_and_start, NULL);
  conc_local_free(&local_school);
}

/* Each allocation of twenty sets fails in turn. After a failure the name is
   not set, and all others have the values that they had. */
TEST(a_local_without_memory_changes_nothing) {
  conc_local l;
  object o[2] = {{0, 0}, {0, 0}};
  char name[12];
  memset(&l, 0, sizeof l);
  l.destructor = destroy;
  for (int i = 0; i < 20; i++) {
    int rc = -ENOMEM;
    int n;
    snprintf(name, sizeof name, "%d", i);
    for (n = 1; rc != 0; n++) {
      test_fail_at = n;
      rc = conc_local_set(&l, name, &o[0]);
      test_fail_at = 0;
      CHECK(rc == 0 || rc == -ENOMEM);
      CHECK_EQ(conc_local_has(&l, name), rc == 0);
      for (int j = 0; j < i; j++) {
        snprintf(name, sizeof name, "%d", j);
        CHECK(conc_local_get(&l, name) == &o[0]);
      }
      snprintf(name, sizeof name, "%d", i);
    }
    CHECK(n > 2); /* it has failed at least once */
  }
  test_fail_at = 1;
  CHECK(conc_local_attribute(&l, "new") == NULL && errno == ENOMEM);
  test_fail_at = 1; /* no memory is needed any more */
  CHECK_EQ(conc_local_set(&l, "3", &o[1]), 0);
  test_fail_at = 0;
  CHECK_EQ(o[0].destroyed, 1);
  conc_local_free(&l);
  CHECK_EQ(o[0].destroyed, 20);
  CHECK_EQ(o[1].destroyed, 1);
}

/* --- task scope --- */

static conc_local plain, copied, owned; /* all of task scope */
static int copies, copies_destroyed;

static void *copy_number(void *value) {
  int *copy;
  if (*(int *)value < 0) return NULL;
  copy = (int *)test_malloc(sizeof *copy);
  if (copy == NULL) return NULL;
  *copy = *(int *)value + 1;
  copies++;
  return copy;
}

static void free_number(void *value) {
  copies_destroyed++;
  test_free(value);
}

static int *number(int n) {
  int *p = (int *)test_malloc(sizeof *p);
  *p = n;
  return p;
}

static void make_task_locals(void) {
  plain.scope = copied.scope = owned.scope = CONC_SCOPE_TASK;
  copied.copy = copy_number;
  copied.destructor = owned.destructor = free_number;
}

static void *see_empty(void *arg) {
  CHECK(!conc_local_has(&plain, "x") && !conc_local_has(&copied, "x"));
  return arg;
}

static void *inherit(void *arg) {
  int depth = *(int *)arg;
  conc_task t;
  CHECK_STR((char *)conc_local_get(&plain, "x"), "root");
  CHECK_EQ(*(int *)conc_local_get(&copied, "x"), 100 + depth);
  CHECK(!conc_local_has(&owned, "x"));
  if (depth < 20) {
    int next = depth + 1;
    CHECK_EQ(conc_local_set(&owned, "x", number(1)), 0);
    CHECK_EQ(conc_local_delete(&copied, "null"), 0);
    CHECK_EQ(conc_local_set(&copied, "null", NULL), 0);
    start(conc_coro_start, &t, inherit, &next);
    CHECK_EQ(conc_local_set(&plain, "x", (void *)"other"), 0);
    CHECK_EQ(conc_local_delete(&copied, "x"), 0);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    CHECK_STR((char *)conc_local_get(&plain, "x"), "other");
    CHECK(!conc_local_has(&copied, "x"));
    start(conc_thread_start, &t, see_empty, NULL);
    CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  }
  return NULL;
}

static void *inherit_from_root(void *arg) {
  int depth = 1; /* the root's own task was given the first copy */
  return (void)arg, inherit(&depth);
}

TEST(a_coroutine_begins_with_its_parents_values) {
  make_task_locals();
  CHECK_EQ(conc_local_set(&plain, "x", (void *)"root"), 0);
  CHECK_EQ(conc_local_set(&copied, "x", number(100)), 0);
  CHECK_EQ(conc_local_set(&copied, "null", NULL), 0);
  CHECK_EQ(conc_local_set(&owned, "x", number(1)), 0);
  CHECK_EQ(conc_local_set(&local_school, "thread", &plain), 0);
  run(inherit_from_root, NULL);
  CHECK_EQ(copies, 20);
  CHECK_EQ(copies_destroyed, 20 + 19);
  CHECK_STR((char *)conc_local_get(&plain, "x"), "root");
  CHECK_EQ(*(int *)conc_local_get(&copied, "x"), 100);
  conc_local_free(&plain);
  conc_local_free(&copied);
  conc_local_free(&owned);
  conc_local_free(&local_school);
}

static void *not_reached(void *arg) {
  (void)arg;
  TEST_FAIL("it ran");
}

static void *fail_to_start(void *arg) {
  int before = copies;
  conc_task t, cancelled;
  int rc = -ENOMEM;
  for (int n = 1; rc != 0; n++) { /* each allocation fails once */
    memset(&t, 0, sizeof t);
    t.target = not_reached;
    t.stack_size = SIZE_MAX / 4; /* there is no such stack */
    test_fail_at = n;
    rc = conc_coro_start(&t);
    test_fail_at = 0;
    CHECK(rc == 0 || rc == -ENOMEM);
    CHECK_EQ(rc == 0, conc_is_alive(&t));
    CHECK(n > 2 || rc != 0);
  }
  start(conc_coro_start, &cancelled, not_reached, NULL);
  CHECK_EQ(conc_cancel(&cancelled), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), -ENOMEM);
  CHECK_EQ(conc_join(&cancelled, CONC_FOREVER), -ECANCELED);
  CHECK(copies > before);
  CHECK_EQ(conc_local_set(&copied, "y", number(-1)), 0); /* no copy of it */
  memset(&t, 0, sizeof t);
  t.target = not_reached;
  CHECK_EQ(conc_coro_start(&t), -ENOMEM);
  CHECK_EQ(copies, copies_destroyed);
  return arg;
}

static void *fail_below(void *arg) {
  conc_task t; /* one of its own, so that the copies of this are gone */
  start(conc_thread_start, &t, see_empty, NULL);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_local_set(&copied, "x", number(5)), 0);
  CHECK_EQ(conc_local_set(&copied, "z", number(5)), 0);
  return fail_to_start(arg);
}

TEST(what_a_coroutine_inherits_is_destroyed_though_it_never_runs) {
  make_task_locals();
  run(fail_below, NULL);
  CHECK_EQ(copies_destroyed, copies + 3);
  conc_local_free(&copied);
}

static void *short_parent(void *arg) {
  conc_task *child = (conc_task *)arg;
  CHECK_EQ(conc_local_set(&copied, "x", number(5)), 0);
  CHECK_EQ(conc_local_set(&plain, "x", (void *)"five"), 0);
  CHECK_EQ(conc_coro_start(child), 0);
  return NULL;
}

static void *orphan(void *arg) {
  conc_task *parent = (conc_task *)arg;
  CHECK_EQ(conc_join(parent, CONC_FOREVER), 0);
  CHECK_EQ(*(int *)conc_local_get(&copied, "x"), 6);
  CHECK_STR((char *)conc_local_get(&plain, "x"), "five");
  return NULL;
}

static void *parent_and_orphan(void *arg) {
  conc_task parent, child;
  memset(&child, 0, sizeof child);
  child.target = orphan;
  child.arg = &parent;
  start(conc_coro_start, &parent, short_parent, &child);
  CHECK_EQ(conc_join(&parent, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&child, CONC_FOREVER), 0);
  return arg;
}

TEST(an_inherited_value_outlives_the_parent) {
  make_task_locals();
  run(parent_and_orphan, NULL);
  CHECK_EQ(copies_destroyed, 2);
  conc_local_free(&copied);
  conc_local_free(&plain);
}

/* What copies may start coroutines of their own, and wait for them. */
static void *count_one(void *arg) {
  conc_local_delete(&copied, "x"); /* inherited in its turn */
  conc_yield_now();
  add((int *)arg);
  return NULL;
}

static int copy_starts;
static conc_task started[40];

static void *copy_by_coroutines(void *value) {
  static bool within;
  if (within) return value;
  within = true;
  for (int i = 0; i < copy_starts; i++)
    start(conc_coro_start, &started[i], count_one, value);
  if (copy_starts % 3 == 1) /* and waits for them; or not */
    for (int i = 0; i < copy_starts; i++)
      CHECK_EQ(conc_join(&started[i], CONC_FOREVER), 0);
  within = false;
  return value;
}

static void *start_by_copy(void *arg) {
  conc_task t;
  CHECK_EQ(conc_local_set(&copied, "x", arg), 0);
  start(conc_coro_start, &t, count_one, arg);
  conc_yield_now(); /* now all of them are ready at once */
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  for (int i = 0; i < copy_starts; i++)
    CHECK_EQ(conc_join(&started[i], CONC_FOREVER), 0);
  return NULL;
}

TEST(a_copy_may_start_coroutines_and_wait) {
  copied.scope = CONC_SCOPE_TASK;
  copied.copy = copy_by_coroutines;
  for (copy_starts = 0; copy_starts < 40; copy_starts++) {
    int counted = 0;
    run(start_by_copy, &counted);
    CHECK_EQ(counted, copy_starts + 1);
  }
  conc_local_free(&copied);
}

/* --- many at once --- */

enum { NAMES = 50 };

static void *use_names(void *arg) {
  conc_local *l = (conc_local *)arg;
  int x[NAMES];
  char name[16];
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < NAMES; i++) {
      snprintf(name, sizeof name, "name%d", i);
      if (round == 0) CHECK_EQ(conc_local_set(l, name, &x[i]), 0);
      CHECK(conc_local_get(l, name) == &x[i]);
    }
  return NULL;
}

TEST(threads_make_the_same_names_at_the_same_time) {
  for (int round = 0; round < 200; round++) {
    conc_local *l = (conc_local *)calloc(1, sizeof *l);
    conc_task t[4];
    for (int i = 0; i < 4; i++) start(conc_thread_start, &t[i], use_names, l);
    for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
    conc_local_free(l);
    free(l);
    CHECK_EQ(test_blocks, 0);
  }
}

static conc_local growing;

typedef struct leaver {
  conc_local *local;
  object o[3];
  int ready, *go;
} leaver;

static void *leave(void *arg) {
  leaver *l = (leaver *)arg;
  for (int i = 0; i < 3; i++)
    CHECK_EQ(conc_local_set(l->local, &"abc"[i], &l->o[i]), 0);
  add(&l->ready);
  while (!load(l->go)) sched_yield();
  if (l->o[0].made) /* others go on, with another local, and end later */
    for (int i = 0; i < 8; i++)
      CHECK_EQ(conc_local_set(&growing, &"abcdefgh"[i], l), 0);
  return NULL; /* now, while the local is being freed */
}

/* Threads that have values end at the moment when the local is freed,
   threads of ours and of others. Each value must be destroyed once, by
   either. */
TEST(a_local_is_freed_while_threads_end) {
  enum { THREADS = 4 };
  for (int round = 0; round < 1000; round++) {
    conc_local *local = (conc_local *)calloc(1, sizeof *local);
    leaver l[THREADS];
    pthread_t p[THREADS];
    conc_task t[THREADS];
    int go = 0;
    memset(l, 0, sizeof l);
    local->destructor = destroy;
    for (int i = 0; i < THREADS; i++) {
      l[i].local = local;
      l[i].go = &go;
      l[i].o[0].made = i / 2;
      if (i % 2)
        CHECK_EQ(pthread_create(&p[i], NULL, leave, &l[i]), 0);
      else start(conc_thread_start, &t[i], leave, &l[i]);
    }
    for (int i = 0; i < THREADS; i++)
      while (!load(&l[i].ready)) sched_yield();
    add(&go);
    conc_local_free(local);
    free(local);
    for (int i = 0; i < THREADS; i++)
      if (i % 2)
        pthread_join(p[i], NULL);
      else
        CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
    for (int i = 0; i < THREADS * 3; i++)
      CHECK_EQ(l[i / 3].o[i % 3].destroyed, 1);
    conc_local_free(&growing);
    CHECK_EQ(test_blocks, 0);
  }
}

static void *hold_values(void *arg) {
  leaver *l = (leaver *)arg;
  char name[16];
  for (int i = 0; i < 100; i++) {
    snprintf(name, sizeof name, "%d", i);
    CHECK_EQ(conc_local_set(l->local, name, &l->o[0]), 0);
  }
  add(&l->ready);
  while (!load(l->go)) CHECK_EQ(conc_sleep(0.0001), 0);
  return NULL;
}

static void *hold_in_coroutines(void *arg) {
  leaver *l = (leaver *)arg;
  conc_task t[5];
  for (int i = 0; i < 5; i++) start(conc_coro_start, &t[i], hold_values, l);
  for (int i = 0; i < 5; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}

static void *loop_of_holders(void *arg) {
  run(hold_in_coroutines, arg);
  return NULL;
}

TEST(freeing_a_local_destroys_the_values_of_all_who_go_on) {
  conc_local local, other;
  leaver l;
  conc_task t[2];
  int go = 0;
  memset(&local, 0, sizeof local);
  memset(&other, 0, sizeof other);
  memset(&l, 0, sizeof l);
  local.scope = CONC_SCOPE_TASK;
  local.destructor = destroy;
  l.local = &local;
  l.go = &go;
  CHECK_EQ(conc_local_set(&other, "1", &l), 0);
  start(conc_thread_start, &t[0], hold_values, &l);
  start(conc_thread_start, &t[1], loop_of_holders, &l);
  wait_for_count(&l.ready, 6);
  conc_local_free(&local);
  CHECK_EQ(l.o[0].destroyed, 600);
  CHECK(!conc_local_has(&local, "1"));
  CHECK(conc_local_get(&other, "1") == &l);
  CHECK_EQ(conc_local_set(&other, "2", &l), 0); /* an index used before */
  add(&go);
  for (int i = 0; i < 2; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(l.o[0].destroyed, 600);
  conc_local_free(&other);
}

/* --- against a model --- */

enum { LOCALS = 4, WORDS = 12, CELLS = 64, STEPS = 3000, DEPTH = 3 };

/* Of thread scope, of task scope plain, of task scope with copies, and with a
   destructor alone. */
static conc_local model_locals[LOCALS];
static const char *const words[WORDS] = {
    "student", "teacher", "school", "lesson", "a", "b", "c", "",
    "a long name, longer than any of the others, but not by much", "d",
    "e",       "f"};
static int alive; /* objects made and not destroyed */

static void *object_new(void) {
  __atomic_add_fetch(&alive, 1, __ATOMIC_RELAXED);
  return test_malloc(1);
}
static void *object_copy(void *value) { return (void)value, object_new(); }
static void object_destroy(void *value) {
  __atomic_sub_fetch(&alive, 1, __ATOMIC_RELAXED);
  test_free(value);
}

typedef struct model {
  bool set[LOCALS][WORDS];
  void *value[LOCALS][WORDS];
} model;

typedef struct walker {
  model own, *thread; /* the thread's model holds what has thread scope */
  unsigned seed;
  int depth;
} walker;

static unsigned next(walker *w) {
  w->seed = w->seed * 1664525u + 1013904223u;
  return w->seed >> 8;
}

static void *walk(void *arg);

static void walk_below(walker *w) {
  walker child;
  conc_task t;
  memset(&child, 0, sizeof child);
  child.thread = w->thread;
  child.seed = next(w);
  child.depth = w->depth + 1;
  memcpy(child.own.set[1], w->own.set[1], sizeof w->own.set[1]);
  memcpy(child.own.value[1], w->own.value[1], sizeof w->own.value[1]);
  memcpy(child.own.set[2], w->own.set[2], sizeof w->own.set[2]);
  for (int i = 0; i < WORDS; i++) /* a copy, whose address is not known yet */
    child.own.value[2][i] = w->own.value[2][i] != NULL ? w : NULL;
  start(conc_coro_start, &t, walk, &child);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}

static void *walk(void *arg) {
  walker *w = (walker *)arg;
  char buf[80];
  for (int i = 0; i < WORDS; i++)
    if (w->own.value[2][i] != NULL)
      w->own.value[2][i] = conc_local_get(&model_locals[2], words[i]);
  for (int step = 0; step < (w->depth < 2 ? STEPS : STEPS / 10); step++) {
    unsigned which = next(w) % LOCALS, word = next(w) % WORDS;
    unsigned what = next(w) % 64;
    conc_local *l = &model_locals[which];
    model *m = which == 0 ? w->thread : &w->own;
    bool *set = &m->set[which][word];
    void **value = &m->value[which][word];
    const char *name = words[word];
    if (next(w) % 2) name = strcpy(buf, name);
    if (what < 12) {
      void *v = what == 0 ? NULL : which == 1 ? &w->own : object_new();
      *set = true; /* first: a coroutine may run in the destructor */
      *value = v;
      if (next(w) % 2)
        CHECK_EQ(conc_local_set(l, name, v), 0);
      else
        CHECK_EQ(conc_attribute_set(conc_local_attribute(l, name), v), 0);
    } else if (what < 18) {
      bool was = *set;
      *set = false;
      *value = NULL;
      CHECK_EQ(conc_local_delete(l, name), was ? 0 : -ENOENT);
    } else if (what == 18 && conc__this.loop != NULL) {
      CHECK_EQ(conc_yield_now(), 0);
    } else if (what == 19 && conc__this.loop != NULL && w->depth < DEPTH) {
      walk_below(w);
    } else {
      CHECK_EQ(conc_local_has(l, name), *set);
      CHECK(conc_local_get(l, name) == (*set ? *value : NULL));
    }
  }
  return NULL;
}

typedef struct walk_loop {
  walker w[3];
} walk_loop;

static void *walk_side_by_side(void *arg) {
  walk_loop *l = (walk_loop *)arg;
  conc_task t[3];
  for (int i = 0; i < 3; i++) start(conc_coro_start, &t[i], walk, &l->w[i]);
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}

static void *walk_thread(void *arg) {
  unsigned seed = *(unsigned *)arg;
  static const unsigned step = 2654435769u;
  model *m = (model *)calloc(1, sizeof *m);
  walk_loop *l = (walk_loop *)calloc(1, sizeof *l);
  walker *w = (walker *)calloc(1, sizeof *w);
  for (int i = 0; i < 3; i++) {
    l->w[i].thread = m;
    l->w[i].seed = seed += step;
    l->w[i].depth = 1;
  }
  run(walk_side_by_side, l);
  w->thread = m;
  w->seed = seed;
  walk(w); /* and outside of a loop */
  free(w);
  free(l);
  free(m);
  return NULL;
}

TEST(locals_agree_with_a_model) {
  conc_task t[3];
  unsigned seed[3];
  for (int i = 1; i < LOCALS; i++) model_locals[i].scope = CONC_SCOPE_TASK;
  model_locals[2].copy = object_copy;
  for (int i = 0; i < LOCALS; i++)
    if (i != 1) model_locals[i].destructor = object_destroy;
  for (int i = 0; i < 3; i++) {
    seed[i] = test_random();
    start(conc_thread_start, &t[i], walk_thread, &seed[i]);
  }
  for (int i = 0; i < 3; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(alive, 0);
  for (int i = 0; i < LOCALS; i++) conc_local_free(&model_locals[i]);
}

TEST_MAIN
