/* Every primitive against a sequential model. Tasks, threads and coroutines
   mixed, do one random operation at a time on one set of objects, among them
   being cancelled; the model says whether it returns, and what, or waits, and
   who else goes on, with what. Each step is seen to come about before the next
   one begins. The model is exact but for one thing: whoever a condition has
   let go may have its lock before or after the first who waits for that.
   Own implementation, to see who waits. SYNC_STEPS is how many steps are made
   (default 10000). */
#include "inside.h"
#include "tasks.h"

enum { MOST = 16, NOBODY = -1, ENTERED = 12345 };

/* What a task is told to do. The lock, and the condition, are the plain (0) or
   the recursive (1) ones, the semaphore the bounded (0) or unbounded one. */
typedef enum operation {
  QUIT,
  ACQUIRE,
  RELEASE,
  WAIT,
  NOTIFY,
  READ,
  WRITE,
  RW_RELEASE,
  SEM_ACQUIRE,
  SEM_RELEASE,
  EVENT_WAIT,
  EVENT_SET,
  EVENT_CLEAR,
  BARRIER_WAIT,
  BARRIER_ABORT,
  BARRIER_RESET,
  ONCE_RUN,
  ONCE_FINISH, /* by who runs it */
  OPERATIONS
} operation;

static const char *const words[OPERATIONS] = {
    "quit",         "acquire",       "release",       "wait",
    "notify",       "read",          "write",         "rw_release",
    "sem_acquire",  "sem_release",   "event_wait",    "event_set",
    "event_clear",  "barrier_wait",  "barrier_abort", "barrier_reset",
    "once_run",     "once_finish"};

typedef struct actor {
  conc_task task;
  struct world *in;
  conc_event told;
  operation op;
  int which, n; /* of the operation; n is also what once's function returns */
  double timeout;
  int busy, rc;
  /* The model's. */
  const struct conc__waitlist *waits; /* where, and it can be cancelled */
  bool again;     /* it waits for the lock of a condition, and then returns */
  int then;       /*   this, and has the lock */
  int depth;      /*   so many times */
  bool in_once;
} actor;

typedef struct queue {
  int n, who[MOST];
} queue;

typedef struct world {
  int n, threads;
  actor actors[MOST];
  conc_task host;
  conc_event started;
  /* The objects. */
  conc_lock lock;
  conc_rlock rlock;
  conc_cond cond[2];
  conc_rwlock rwlock;
  conc_sem sem[2];
  conc_event event;
  conc_barrier barrier;
  conc_once once;
  int action_rc;
  /* And the model of each. */
  struct {
    int owner, depth;
    queue wait, again;
  } m_lock[2];
  queue m_cond[2];
  struct {
    int writer, readers;
    bool reads[MOST], to_write[MOST];
    queue wait;
  } m_rw;
  struct {
    size_t value, bound;
    queue wait;
  } m_sem[2];
  struct {
    bool set;
    queue wait;
  } m_event;
  struct {
    bool broken;
    queue wait;
  } m_barrier;
  struct {
    bool done;
    int owner;
    queue wait;
  } m_once;
} world;

/* --- the tasks ----------------------------------------------------------- */

static conc_lock *the_lock(world *w, int which) {
  return which ? &w->rlock.lock : &w->lock;
}

static int act(void *arg) {
  return ((world *)arg)->action_rc;
}

static void serve(actor *a, operation until);

/* What once runs: does other things, until it is to finish. */
static int inside_once(void *arg) {
  actor *a = (actor *)arg;
  a->rc = ENTERED;
  STORE(a->busy, 0);
  serve(a, ONCE_FINISH);
  return a->n;
}

static int perform(actor *a) {
  world *w = a->in;
  double t = a->timeout;
  switch (a->op) {
    case ACQUIRE:
      return a->which ? conc_rlock_acquire(&w->rlock, t)
                      : conc_lock_acquire(&w->lock, t);
    case RELEASE:
      return a->which ? conc_rlock_release(&w->rlock)
                      : conc_lock_release(&w->lock);
    case WAIT:
      return conc_cond_wait(&w->cond[a->which], the_lock(w, a->which), t);
    case NOTIFY: return conc_cond_notify(&w->cond[a->which], (size_t)a->n);
    case READ: return conc_rwlock_read_acquire(&w->rwlock, t);
    case WRITE: return conc_rwlock_write_acquire(&w->rwlock, t);
    case RW_RELEASE: return conc_rwlock_release(&w->rwlock);
    case SEM_ACQUIRE: return conc_sem_acquire(&w->sem[a->which], t);
    case SEM_RELEASE:
      return conc_sem_release(&w->sem[a->which], (size_t)a->n);
    case EVENT_WAIT: return conc_event_wait(&w->event, t);
    case EVENT_SET: return conc_event_set(&w->event);
    case EVENT_CLEAR: return conc_event_clear(&w->event);
    case BARRIER_WAIT: return conc_barrier_wait(&w->barrier, t);
    case BARRIER_ABORT: return conc_barrier_abort(&w->barrier);
    case BARRIER_RESET: return conc_barrier_reset(&w->barrier);
    case ONCE_RUN: return conc_once_run(&w->once, inside_once, a, t);
    default: return -ENOSYS;
  }
}

static void serve(actor *a, operation until) {
  for (;;) {
    CHECK_EQ(conc_event_wait(&a->told, CONC_FOREVER), 0);
    conc_event_clear(&a->told);
    if (a->op == until) return;
    a->rc = perform(a);
    STORE(a->busy, 0);
  }
}

static void *be_actor(void *arg) {
  serve((actor *)arg, QUIT);
  conc_set_status(0); /* it went on after what was cancelled */
  return NULL;
}

static void *start_coroutines(void *arg) {
  world *w = (world *)arg;
  for (int i = w->threads; i < w->n; i++)
    CHECK_EQ(conc_coro_start(&w->actors[i].task), 0);
  conc_event_set(&w->started);
  for (int i = w->threads; i < w->n; i++)
    CHECK_EQ(conc_join(&w->actors[i].task, CONC_FOREVER), 0);
  return NULL;
}

static void *be_host(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = start_coroutines;
  t.arg = arg;
  CHECK_EQ(conc_run(&t), 0);
  return NULL;
}

/* --- what is seen of them ------------------------------------------------ */

static bool busy(world *w, int i) { return LOAD(w->actors[i].busy) != 0; }

static bool is_on(world *w, int i, const struct conc__waitlist *list) {
  /* A list is under the guard of what it stands in. */
  const void *objects[] = {&w->lock,   &w->rlock,   &w->cond[0], &w->cond[1],
                           &w->rwlock, &w->sem[0],  &w->sem[1],  &w->event,
                           &w->barrier, &w->once};
  const struct conc__waitlist *lists[] = {
      &w->lock.waiters,   &w->rlock.lock.waiters, &w->cond[0].waiters,
      &w->cond[1].waiters, &w->rwlock.waiters,     &w->sem[0].waiters,
      &w->sem[1].waiters, &w->event.waiters,      &w->barrier.waiters,
      &w->once.waiters};
  size_t k = 0;
  conc__mutex *guard;
  bool found = false;
  while (lists[k] != list) k++;
  guard = conc__mutex_of(objects[k]);
  conc__mutex_lock(guard);
  for (conc__waiter *v = list->first; v != NULL && !found; v = v->next)
    found = v->actor->task == &w->actors[i].task;
  conc__mutex_unlock(guard);
  return found;
}

/* --- what the model says ------------------------------------------------- */

static void push(queue *q, int i) { q->who[q->n++] = i; }

static bool drop(queue *q, int i) {
  int at = 0;
  while (at < q->n && q->who[at] != i) at++;
  if (at == q->n) return false;
  memmove(&q->who[at], &q->who[at + 1],
          (size_t)(--q->n - at) * sizeof q->who[0]);
  return true;
}

static int pop(queue *q) {
  int i = q->who[0];
  drop(q, i);
  return i;
}

/* The operation of this task ends now. */
static void ends(world *w, int i, int rc) {
  actor *a = &w->actors[i];
  UNTIL(!busy(w, i));
  if (a->rc != rc)
    TEST_FAIL("%s %d of task %d: %d, and not %d", words[a->op], a->which, i,
              a->rc, rc);
  a->waits = NULL;
  a->again = false;
}

/* It waits now. */
static void waits(world *w, int i, const struct conc__waitlist *list,
                  queue *q) {
  actor *a = &w->actors[i];
  if (a->timeout < 1) {
    ends(w, i, -ETIMEDOUT);
    return;
  }
  UNTIL(is_on(w, i, list) || !busy(w, i));
  if (!busy(w, i))
    TEST_FAIL("%s %d of task %d: %d, and does not wait", words[a->op],
              a->which, i, a->rc);
  a->waits = list;
  push(q, i);
}

/* A lock that is free goes to the first who waits for it, or to one whom the
   condition has let go. */
static void settle_lock(world *w, int which) {
  queue *wait = &w->m_lock[which].wait, *again = &w->m_lock[which].again;
  int who = NOBODY;
  if (w->m_lock[which].owner != NOBODY || wait->n + again->n == 0) return;
  for (int tries = 0;; tries++) {
    if (wait->n > 0 && !busy(w, wait->who[0])) who = wait->who[0];
    for (int k = 0; k < again->n; k++)
      if (!busy(w, again->who[k])) who = again->who[k];
    if (who != NOBODY) break;
    let_others_run(tries);
  }
  w->m_lock[which].owner = who;
  if (drop(wait, who)) {
    w->m_lock[which].depth = 1;
    ends(w, who, 0);
  } else {
    /* Perhaps the first was woken in vain: he waits on before the others. */
    if (wait->n > 0)
      UNTIL(is_on(w, wait->who[0], &the_lock(w, which)->waiters));
    drop(again, who);
    w->m_lock[which].depth = w->actors[who].depth;
    ends(w, who, w->actors[who].then);
  }
}

/* The condition lets it go: it wants the lock again. */
static void wants_again(world *w, int i, int which, int rc) {
  actor *a = &w->actors[i];
  a->waits = NULL;
  a->again = true;
  a->then = rc;
  push(&w->m_lock[which].again, i);
}

/* It has left the condition by itself; the lock is settled. */
static void has_left(world *w, int i, int which) {
  UNTIL(!busy(w, i) || is_on(w, i, &the_lock(w, which)->waiters));
}

static void settle_rw(world *w) {
  queue *q = &w->m_rw.wait;
  while (q->n > 0 && w->m_rw.writer == NOBODY) {
    bool write = w->m_rw.to_write[q->who[0]];
    int i;
    if (write && w->m_rw.readers > 0) break;
    i = pop(q);
    if (write)
      w->m_rw.writer = i;
    else
      w->m_rw.readers++, w->m_rw.reads[i] = true;
    ends(w, i, 0);
  }
}

static void break_barrier(world *w, bool broken) {
  w->m_barrier.broken = broken;
  while (w->m_barrier.wait.n > 0) ends(w, pop(&w->m_barrier.wait), -EPIPE);
}

static void enter_once(world *w, int i) {
  w->m_once.owner = i;
  ends(w, i, ENTERED);
  w->actors[i].in_once = true;
}

/* What comes of the operation that the task has begun. */
static void expect(world *w, int i) {
  actor *a = &w->actors[i];
  int k = a->which;
  int owner = w->m_lock[k].owner;
  switch (a->op) {
    case ACQUIRE:
      if (owner == i && k == 0) {
        ends(w, i, -EDEADLK);
      } else if (owner == i || owner == NOBODY) {
        w->m_lock[k].depth = owner == i ? w->m_lock[k].depth + 1 : 1;
        w->m_lock[k].owner = i;
        ends(w, i, 0);
      } else {
        waits(w, i, &the_lock(w, k)->waiters, &w->m_lock[k].wait);
      }
      break;
    case RELEASE:
      ends(w, i, owner == i ? 0 : -EPERM);
      if (owner == i && --w->m_lock[k].depth == 0) {
        w->m_lock[k].owner = NOBODY;
        settle_lock(w, k);
      }
      break;
    case WAIT:
      if (owner != i) {
        ends(w, i, -EPERM);
        break;
      }
      a->depth = w->m_lock[k].depth;
      w->m_lock[k].owner = NOBODY;
      if (a->timeout < 1) {
        wants_again(w, i, k, -ETIMEDOUT);
        settle_lock(w, k);
        if (a->again) has_left(w, i, k);
      } else {
        waits(w, i, &w->cond[k].waiters, &w->m_cond[k]);
        UNTIL(!conc__lock_is_mine(the_lock(w, k), a->task.actor->id));
        settle_lock(w, k);
      }
      break;
    case NOTIFY:
      ends(w, i, 0);
      for (int n = a->n; n > 0 && w->m_cond[k].n > 0; n--)
        wants_again(w, pop(&w->m_cond[k]), k, 0);
      settle_lock(w, k);
      break;
    case READ:
    case WRITE:
      if (w->m_rw.writer == i || w->m_rw.reads[i]) {
        ends(w, i, -EDEADLK);
      } else if (w->m_rw.writer == NOBODY &&
                 (w->m_rw.readers == 0 ||
                  (a->op == READ && w->m_rw.wait.n == 0))) {
        if (a->op == WRITE)
          w->m_rw.writer = i;
        else
          w->m_rw.readers++, w->m_rw.reads[i] = true;
        ends(w, i, 0);
      } else {
        w->m_rw.to_write[i] = a->op == WRITE;
        waits(w, i, &w->rwlock.waiters, &w->m_rw.wait);
      }
      break;
    case RW_RELEASE:
      if (w->m_rw.writer == i) {
        w->m_rw.writer = NOBODY;
        ends(w, i, 0);
      } else if (w->m_rw.reads[i]) {
        w->m_rw.reads[i] = false;
        w->m_rw.readers--;
        ends(w, i, 0);
      } else {
        ends(w, i, -EPERM);
      }
      if (w->m_rw.readers == 0) settle_rw(w);
      break;
    case SEM_ACQUIRE:
      if (w->m_sem[k].value > 0) {
        w->m_sem[k].value--;
        ends(w, i, 0);
      } else {
        waits(w, i, &w->sem[k].waiters, &w->m_sem[k].wait);
      }
      break;
    case SEM_RELEASE:
      if (a->n == 0) {
        ends(w, i, -EINVAL);
      } else if (w->m_sem[k].value + (size_t)a->n > w->m_sem[k].bound) {
        ends(w, i, -EOVERFLOW);
      } else {
        ends(w, i, 0);
        w->m_sem[k].value += (size_t)a->n;
        while (w->m_sem[k].value > 0 && w->m_sem[k].wait.n > 0) {
          w->m_sem[k].value--;
          ends(w, pop(&w->m_sem[k].wait), 0);
        }
      }
      break;
    case EVENT_WAIT:
      if (w->m_event.set)
        ends(w, i, 0);
      else
        waits(w, i, &w->event.waiters, &w->m_event.wait);
      break;
    case EVENT_SET:
    case EVENT_CLEAR:
      ends(w, i, 0);
      w->m_event.set = a->op == EVENT_SET;
      while (w->m_event.set && w->m_event.wait.n > 0)
        ends(w, pop(&w->m_event.wait), 0);
      break;
    case BARRIER_WAIT:
      if (w->m_barrier.broken) {
        ends(w, i, -EPIPE);
      } else if (w->m_barrier.wait.n + 1 < w->barrier.parties) {
        waits(w, i, &w->barrier.waiters, &w->m_barrier.wait);
        if (a->timeout < 1) break_barrier(w, true);
      } else if (w->action_rc < 0) {
        ends(w, i, w->action_rc);
        break_barrier(w, true);
      } else {
        ends(w, i, w->barrier.parties - 1);
        for (int n = 0; w->m_barrier.wait.n > 0; n++)
          ends(w, pop(&w->m_barrier.wait), n);
      }
      break;
    case BARRIER_ABORT:
    case BARRIER_RESET:
      ends(w, i, 0);
      break_barrier(w, a->op == BARRIER_ABORT);
      break;
    case ONCE_RUN:
      if (w->m_once.done)
        ends(w, i, 0);
      else if (w->m_once.owner == i)
        ends(w, i, -EDEADLK);
      else if (w->m_once.owner == NOBODY)
        enter_once(w, i);
      else
        waits(w, i, &w->once.waiters, &w->m_once.wait);
      break;
    case ONCE_FINISH:
      a->in_once = false;
      ends(w, i, a->n < 0 ? a->n : 0);
      w->m_once.owner = NOBODY;
      w->m_once.done = a->n >= 0;
      while (w->m_once.done && w->m_once.wait.n > 0)
        ends(w, pop(&w->m_once.wait), 0);
      if (w->m_once.wait.n > 0) enter_once(w, pop(&w->m_once.wait));
      break;
    default: break;
  }
}

/* It is cancelled while it waits. */
static void cancel(world *w, int i) {
  actor *a = &w->actors[i];
  const struct conc__waitlist *list = a->waits;
  CHECK_EQ(conc_cancel(&a->task), 0);
  for (int k = 0; k < 2; k++) {
    if (list == &w->cond[k].waiters) {
      drop(&w->m_cond[k], i);
      wants_again(w, i, k, -ECANCELED);
      settle_lock(w, k);
      if (a->again) has_left(w, i, k);
      return;
    }
    drop(&w->m_lock[k].wait, i);
    drop(&w->m_sem[k].wait, i);
  }
  ends(w, i, -ECANCELED);
  drop(&w->m_event.wait, i);
  drop(&w->m_once.wait, i);
  if (drop(&w->m_barrier.wait, i)) break_barrier(w, true);
  if (drop(&w->m_rw.wait, i)) settle_rw(w);
}

static void begin(world *w, int i, operation op, int which, int n,
                  double timeout) {
  actor *a = &w->actors[i];
  a->op = op;
  a->which = which;
  a->n = n;
  a->timeout = timeout;
  STORE(a->busy, 1);
  conc_event_set(&a->told);
  expect(w, i);
}

/* The objects say what the model says, and nobody has gone on who should not
   have. */
static void compare(world *w) {
  uintptr_t word = LOAD(w->rwlock.word) & ~CONC__LOCK_WAITERS;
  for (int k = 0; k < 2; k++) {
    CHECK_EQ(conc_lock_locked(the_lock(w, k)), w->m_lock[k].owner != NOBODY);
    CHECK_EQ(conc_sem_value(&w->sem[k]), w->m_sem[k].value);
  }
  if (w->m_rw.writer != NOBODY)
    CHECK_EQ(word, w->actors[w->m_rw.writer].task.actor->id);
  else
    CHECK_EQ(word, w->m_rw.readers == 0
                       ? 0
                       : (uintptr_t)w->m_rw.readers * CONC__READ_ONE +
                             CONC__READ_FLAG);
  CHECK_EQ(conc_event_is_set(&w->event), w->m_event.set);
  CHECK_EQ(conc_barrier_broken(&w->barrier), w->m_barrier.broken);
  CHECK_EQ(conc_barrier_n_waiting(&w->barrier), w->m_barrier.wait.n);
  for (int i = 0; i < w->n; i++)
    if (w->actors[i].waits != NULL || w->actors[i].again)
      CHECK(busy(w, i));
}

/* --- a random walk ------------------------------------------------------- */

static unsigned below(unsigned n) { return test_random() % n; }

static bool is_idle(const actor *a) { return a->waits == NULL && !a->again; }

/* One task that waits is cancelled; false if none does that can be. */
static bool cancel_one(world *w) {
  int first = (int)below((unsigned)w->n);
  for (int k = 0; k < w->n; k++) {
    int i = (first + k) % w->n;
    if (w->actors[i].waits == NULL) continue;
    cancel(w, i);
    return true;
  }
  return false;
}

static void step(world *w) {
  /* Circles are nothing for this test: no wait is without a limit. */
  static const double timeouts[] = {0, 50e-6, 1000, 1000, 1000, 1000};
  int i = (int)below((unsigned)w->n);
  operation op = (operation)(1 + below(OPERATIONS - 1));
  int which = (int)below(2), n = (int)below(4);
  actor *a = &w->actors[i];
  if (!is_idle(a)) {
    if (a->waits != NULL && below(32) == 0) cancel(w, i);
    return;
  }
  for (int k = 0; k < 2; k++) /* who has a lock does something with it, too */
    if (w->m_lock[k].owner == i && below(3) == 0) {
      static const operation with_lock[] = {RELEASE, WAIT, WAIT, NOTIFY};
      op = with_lock[below(4)];
      which = k;
    }
  if (op == SEM_RELEASE && below(2)) op = SEM_ACQUIRE; /* which takes but 1 */
  if (op == WAIT && w->m_lock[!which].owner == i) return; /* see below */
  if (op == ONCE_FINISH) {
    if (!a->in_once) return;
    n = below(2) ? 0 : -EIO;
  }
  w->action_rc = below(4) == 0 ? -EIO : (int)below(2);
  begin(w, i, op, which, n, timeouts[below(6)]);
  if (w->m_once.done && below(2)) { /* as new */
    memset(&w->once, 0, sizeof w->once);
    w->m_once.done = false;
  }
}

/* Everybody ends what he is at. A wait for the lock of a condition cannot be
   cancelled: that nobody waits so who holds the other one is why this is
   always possible. */
static void rest(world *w) {
  bool all;
  do {
    all = true;
    while (cancel_one(w)) continue;
    for (int i = 0; i < w->n; i++) {
      actor *a = &w->actors[i];
      if (!is_idle(a)) {
        all = false;
        continue;
      }
      for (int k = 0; k < 2; k++)
        while (is_idle(a) && w->m_lock[k].owner == i)
          begin(w, i, RELEASE, k, 0, 0);
      if (w->m_rw.writer == i || w->m_rw.reads[i])
        begin(w, i, RW_RELEASE, 0, 0, 0);
      if (a->in_once) begin(w, i, ONCE_FINISH, 0, 0, 0);
    }
  } while (!all);
  compare(w);
  for (int k = 0; k < 2; k++) CHECK_EQ(w->m_lock[k].owner, NOBODY);
  CHECK_EQ(w->m_rw.writer, NOBODY);
  CHECK_EQ(w->m_rw.readers, 0);
}

static void world_begin(world *w, int n) {
  memset(w, 0, sizeof *w);
  w->n = n;
  w->threads = (n + 1) / 2;
  w->m_rw.writer = w->m_once.owner = NOBODY;
  for (int k = 0; k < 2; k++) {
    w->m_lock[k].owner = NOBODY;
    w->sem[k].value = w->m_sem[k].value = below(3);
    w->sem[k].bound = w->m_sem[k].bound = 2 + below(4);
  }
  w->sem[1].bound = 0;
  w->m_sem[1].bound = SIZE_MAX / 2;
  w->barrier.parties = 1 + (int)below((unsigned)(n < 5 ? n : 5));
  w->barrier.action = act;
  w->barrier.arg = w;
  for (int i = 0; i < n; i++) {
    w->actors[i].in = w;
    w->actors[i].task.target = be_actor;
    w->actors[i].task.arg = &w->actors[i];
  }
  for (int i = 0; i < w->threads; i++)
    CHECK_EQ(conc_thread_start(&w->actors[i].task), 0);
  w->host.target = be_host;
  w->host.arg = w;
  CHECK_EQ(conc_thread_start(&w->host), 0);
  CHECK_EQ(conc_event_wait(&w->started, CONC_FOREVER), 0);
}

static void world_end(world *w) {
  for (int i = 0; i < w->n; i++) {
    w->actors[i].op = QUIT;
    conc_event_set(&w->actors[i].told);
  }
  for (int i = 0; i < w->n; i++)
    CHECK_EQ(conc_join(&w->actors[i].task, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&w->host, CONC_FOREVER), 0);
}

/* A million steps take a while where others run, too: a test for every few
   numbers of tasks, each with a part of the steps. */
static void walk(int from, int to) {
  static world w;
  int steps = (int)test_asked("SYNC_STEPS", 10000) / (MOST - 1) + 1;
  for (int n = from; n <= to; n++) {
    world_begin(&w, n);
    for (int i = 0; i < steps; i++) {
      bool all_wait = true;
      step(&w);
      for (int k = 0; k < n; k++)
        if (is_idle(&w.actors[k])) all_wait = false;
      if (all_wait) CHECK(cancel_one(&w));
      compare(&w);
    }
    rest(&w);
    world_end(&w);
  }
}

TEST(every_primitive_agrees_with_a_model_for_2_to_4_tasks) { walk(2, 4); }
TEST(every_primitive_agrees_with_a_model_for_5_to_7_tasks) { walk(5, 7); }
TEST(every_primitive_agrees_with_a_model_for_8_to_10_tasks) { walk(8, 10); }
TEST(every_primitive_agrees_with_a_model_for_11_to_13_tasks) { walk(11, 13); }
TEST(every_primitive_agrees_with_a_model_for_14_to_16_tasks) { walk(14, 16); }

TEST_MAIN
