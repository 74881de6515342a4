/* What threads pay to meet: locks, queues, and a word from one to another.
 *
 *   threads [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * Peers, in the same run: glibc's pthread_... and sem_t; nsync; Concurrency
 * Kit; a ring of 1,024 slots under a mutex and two conditions, which is what
 * one writes by hand; GLib's GAsyncQueue, which has no bound; a Go channel, if
 * run.sh has built channel.go beside this program; a pipe.
 *
 *   CPUs     that two threads get who spin: with less than 2 of them do not
 *            trust the rows of several threads
 *   lock     lock+unlock, ns alone; operations/s of all with 2 and 8 threads
 *            that do nothing else; and the longest that one of 8 waited,
 *            which has in it that a thread was ready but had no CPU
 *   shared   a lock between processes, that can be told of its owner's death
 *   rlock    lock+unlock of the first and of the second level
 *   rwlock   reading alone; then 8 readers and a writer who do nothing else:
 *            what the readers do, and what the writer does, in a second
 *   sem      release+acquire alone
 *   once     when it is done already
 *   barrier  from one meeting to the next
 *   local    ns to read a value that each thread has for itself
 *   queue    8-byte items through a queue bounded at 1,024, n -> n threads;
 *            some are also moved 32 at once; "alone" is one thread that puts
 *            one and gets it
 *   ping     one thread to another and back, p50, each on a CPU of its own
 *            and both on one: over two queues; over two words, each with a
 *            condition; over two semaphores
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#ifndef NO_NSYNC
#include <nsync.h>
#endif
#ifndef NO_CK
#include <ck_ring.h>
#include <ck_rwlock.h>
#include <ck_spinlock.h>
#endif
#ifndef NO_GLIB
#include <glib.h>
#endif

enum { SLOTS = 1024, MOST = 16 };
static double span = 0.05; /* seconds of one measurement */

/* Cleared to stop all threads; on a cache line that nobody else writes. */
static struct {
  char before[64];
  bool go;
  char after[64];
} flag;

static bool going(void) { return __atomic_load_n(&flag.go, __ATOMIC_RELAXED); }
static void set_going(bool go) {
  __atomic_store_n(&flag.go, go, __ATOMIC_RELEASE);
}

/* --- locks --------------------------------------------------------------- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static conc_lock lock;
static uint64_t counted; /* what the locks protect */

/* Macros, so that all loops are the same and call nothing but the lock. */
#define ALONE(name, times, body)                                              \
  static double name(void) {                                                  \
    long n = (long)(span * times);                                            \
    double start = bench_now();                                               \
    for (long i = 0; i < n; i++) {                                            \
      body;                                                                   \
    }                                                                         \
    return (bench_now() - start) * 1e9 / (double)n;                           \
  }
#define CONTEND(name, take, give)                                             \
  static void *name(void *done) {                                             \
    uint64_t n = 0;                                                           \
    for (; going(); n++) {                                                    \
      take;                                                                   \
      counted++;                                                              \
      give;                                                                   \
    }                                                                         \
    *(double *)done = (double)n;                                              \
    return NULL;                                                              \
  }
#define LOCK_LOOPS(name, take, give)                                          \
  ALONE(name##_alone, 5e7, take; counted++; give)                             \
  CONTEND(name##_contend, take, give)                                         \
  static void *name##_await(void *longest) {                                   \
    double most = 0;                                                          \
    while (going()) {                                                         \
      double start = bench_now(), waited;                                     \
      take;                                                                   \
      waited = bench_now() - start;                                           \
      counted++;                                                              \
      give;                                                                   \
      if (waited > most) most = waited;                                       \
    }                                                                         \
    *(double *)longest = most;                                                \
    return NULL;                                                              \
  }                                                                           \
  static double name##_2(void) {                                              \
    return total_per_second(name##_contend, 2);                               \
  }                                                                           \
  static double name##_8(void) {                                              \
    return total_per_second(name##_contend, 8);                               \
  }                                                                           \
  static double name##_long(void) { return longest_ms(name##_await, 8); }

typedef void *thread_fn(void *);

/* Runs n threads for the span; out[i] is what the i-th reports. */
static double run_threads(thread_fn *const *fn, int n, double *out) {
  pthread_t threads[MOST];
  double start;
  set_going(true);
  start = bench_now();
  for (int i = 0; i < n; i++)
    pthread_create(&threads[i], NULL, fn[i], &out[i]);
  usleep((useconds_t)(span * 1e6));
  set_going(false);
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
  return bench_now() - start;
}

static double total_per_second(thread_fn *fn, int n) {
  thread_fn *all[MOST];
  double done[MOST], sum = 0, seconds;
  for (int i = 0; i < n; i++) all[i] = fn;
  seconds = run_threads(all, n, done);
  for (int i = 0; i < n; i++) sum += done[i];
  return sum / seconds / 1e6;
}

/* In four times the span: what happens seldom must have time to. */
static double longest_ms(thread_fn *fn, int n) {
  thread_fn *all[MOST];
  double waits[MOST], most = 0;
  for (int i = 0; i < n; i++) all[i] = fn;
  span *= 4;
  run_threads(all, n, waits);
  span /= 4;
  for (int i = 0; i < n; i++)
    if (waits[i] > most) most = waits[i];
  return most * 1e3;
}

LOCK_LOOPS(pthread, pthread_mutex_lock(&mutex), pthread_mutex_unlock(&mutex))
LOCK_LOOPS(conc, conc_lock_acquire(&lock, CONC_FOREVER),
           conc_lock_release(&lock))
#ifdef NO_NSYNC
#define nsync_alone NULL
#define nsync_2 NULL
#define nsync_8 NULL
#define nsync_long NULL
#else
static nsync_mu nsync_lock = NSYNC_MU_INIT;
LOCK_LOOPS(nsync, nsync_mu_lock(&nsync_lock), nsync_mu_unlock(&nsync_lock))
#endif
#ifdef NO_CK
#define ck_alone NULL
#define ck_2 NULL
#define ck_8 NULL
#define ck_long NULL
#else
static ck_spinlock_t ck_lock = CK_SPINLOCK_INITIALIZER;
LOCK_LOOPS(ck, ck_spinlock_lock(&ck_lock), ck_spinlock_unlock(&ck_lock))
#endif

/* With less than two CPUs locks are hardly contended, and waits are waits for
   a CPU. */
static void *busy(void *done) {
  while (going()) {
  }
  *(double *)done = 0;
  return NULL;
}

static double cpus_had(void) {
  thread_fn *all[] = {busy, busy};
  double done[2], seconds;
  clock_t used = clock();
  seconds = run_threads(all, 2, done);
  used = clock() - used;
  return (double)used / CLOCKS_PER_SEC / seconds;
}

/* --- locks between processes --------------------------------------------- */

static struct {
  pthread_mutex_t robust;
  conc_lock lock;
  conc_sem sem;
  sem_t sem_t;
} *common; /* begin_shared() makes them */

ALONE(robust_alone, 5e7, pthread_mutex_lock(&common->robust); counted++;
      pthread_mutex_unlock(&common->robust))
ALONE(shared_alone, 5e7, conc_lock_acquire(&common->lock, CONC_FOREVER);
      counted++; conc_lock_release(&common->lock))
ALONE(sem_t_shared, 5e7, sem_post(&common->sem_t); sem_wait(&common->sem_t))
ALONE(conc_sem_shared, 5e7, conc_sem_release(&common->sem, 1);
      conc_sem_acquire(&common->sem, CONC_FOREVER))

static bool begin_shared(void) {
  pthread_mutexattr_t attr;
  void *memory = conc_shared_alloc(sizeof *common);
  if (memory == NULL) return false;
  common = memory;
  pthread_mutexattr_init(&attr);
  pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&common->robust, &attr);
  pthread_mutexattr_destroy(&attr);
  sem_init(&common->sem_t, 1, 0);
  return conc_lock_init_shared(&common->lock) == 0 &&
         conc_sem_init_shared(&common->sem) == 0;
}

/* --- recursive locks ----------------------------------------------------- */

static pthread_mutex_t recursive; /* begin_locks() readies it */
static conc_rlock rlock;

ALONE(pthread_first, 5e7, pthread_mutex_lock(&recursive); counted++;
      pthread_mutex_unlock(&recursive))
ALONE(conc_first, 5e7, conc_rlock_acquire(&rlock, CONC_FOREVER); counted++;
      conc_rlock_release(&rlock))

static double pthread_second(void) {
  double took;
  pthread_mutex_lock(&recursive);
  took = pthread_first();
  pthread_mutex_unlock(&recursive);
  return took;
}

static double conc_second(void) {
  double took;
  conc_rlock_acquire(&rlock, CONC_FOREVER);
  took = conc_first();
  conc_rlock_release(&rlock);
  return took;
}

/* --- readers and writers ------------------------------------------------- */

/* Per second, what the readers do (from 0, 8) or what the writer does. */
static double shared(thread_fn *read, thread_fn *write, bool of_writer) {
  thread_fn *all[MOST];
  double done[MOST], sum = 0, seconds;
  for (int i = 0; i < 8; i++) all[i] = read;
  all[8] = write;
  seconds = run_threads(all, 9, done);
  for (int i = 0; i < 8; i++) sum += done[i];
  return (of_writer ? done[8] * 1e3 : sum) / seconds / 1e6;
}

/* Reads what is protected, too. */
#define RW_LOOPS(name, read, end_read, write, end_write)                      \
  ALONE(name##_reading, 5e7, read; LOOK; end_read)                            \
  static void *name##_reader(void *done) {                                    \
    uint64_t n = 0;                                                           \
    for (; going(); n++) {                                                    \
      read;                                                                   \
      LOOK;                                                                   \
      end_read;                                                               \
    }                                                                         \
    *(double *)done = (double)n;                                              \
    return NULL;                                                              \
  }                                                                           \
  CONTEND(name##_writer, write, end_write)                                    \
  static double name##_reads(void) {                                          \
    return shared(name##_reader, name##_writer, false);                       \
  }                                                                           \
  static double name##_writes(void) {                                         \
    return shared(name##_reader, name##_writer, true);                        \
  }
#define LOOK (void)*(volatile uint64_t *)&counted

static pthread_rwlock_t pthread_rw = PTHREAD_RWLOCK_INITIALIZER;
RW_LOOPS(pthread, pthread_rwlock_rdlock(&pthread_rw),
         pthread_rwlock_unlock(&pthread_rw),
         pthread_rwlock_wrlock(&pthread_rw),
         pthread_rwlock_unlock(&pthread_rw))
static conc_rwlock conc_rw;
RW_LOOPS(conc, conc_rwlock_read_acquire(&conc_rw, CONC_FOREVER),
         conc_rwlock_release(&conc_rw),
         conc_rwlock_write_acquire(&conc_rw, CONC_FOREVER),
         conc_rwlock_release(&conc_rw))
#ifdef NO_NSYNC
#define nsync_reading NULL
#define nsync_reads NULL
#define nsync_writes NULL
#else
static nsync_mu nsync_rw = NSYNC_MU_INIT;
RW_LOOPS(nsync, nsync_mu_rlock(&nsync_rw), nsync_mu_runlock(&nsync_rw),
         nsync_mu_lock(&nsync_rw), nsync_mu_unlock(&nsync_rw))
#endif
#ifdef NO_CK
#define ck_reading NULL
#define ck_reads NULL
#define ck_writes NULL
#else
static ck_rwlock_t ck_rw = CK_RWLOCK_INITIALIZER;
RW_LOOPS(ck, ck_rwlock_read_lock(&ck_rw), ck_rwlock_read_unlock(&ck_rw),
         ck_rwlock_write_lock(&ck_rw), ck_rwlock_write_unlock(&ck_rw))
#endif

/* --- semaphores, once ---------------------------------------------------- */

/* Of each two, for ping-pong. */
static sem_t sems[2]; /* begin_locks() readies them */
static conc_sem conc_sems[2];
ALONE(pthread_sem, 5e7, sem_post(&sems[0]); sem_wait(&sems[0]))
ALONE(own_sem, 5e7, conc_sem_release(&conc_sems[0], 1);
      conc_sem_acquire(&conc_sems[0], CONC_FOREVER))

static pthread_once_t pthread_done = PTHREAD_ONCE_INIT;
static conc_once conc_done;
static void do_nothing(void) {}
static int do_nothing_of(void *arg) { return arg != NULL; }
ALONE(pthread_again, 2e8, pthread_once(&pthread_done, do_nothing))
ALONE(conc_again, 2e8,
      conc_once_run(&conc_done, do_nothing_of, NULL, CONC_FOREVER))

#ifdef NO_NSYNC
#define nsync_sem NULL
#define nsync_again NULL
#else
/* It has no semaphore; this is the one from its documentation's pattern. */
static struct {
  nsync_mu mu;
  nsync_cv above_0;
  size_t value;
} nsync_sems[2];

static void nsync_release(int which) {
  nsync_mu_lock(&nsync_sems[which].mu);
  nsync_sems[which].value++;
  nsync_cv_signal(&nsync_sems[which].above_0);
  nsync_mu_unlock(&nsync_sems[which].mu);
}

static void nsync_acquire(int which) {
  nsync_mu_lock(&nsync_sems[which].mu);
  while (nsync_sems[which].value == 0)
    nsync_cv_wait(&nsync_sems[which].above_0, &nsync_sems[which].mu);
  nsync_sems[which].value--;
  nsync_mu_unlock(&nsync_sems[which].mu);
}

static nsync_once nsync_done = NSYNC_ONCE_INIT;
ALONE(nsync_sem, 5e7, nsync_release(0); nsync_acquire(0))
ALONE(nsync_again, 2e8, nsync_run_once(&nsync_done, do_nothing))
#endif

/* --- barriers ------------------------------------------------------------ */

static pthread_barrier_t barrier;
static conc_barrier own_barrier;

/* The first to come sees that time is up, and says for which meeting: all
   must leave after the same one. Two meetings later nobody looks any more. */
static bool over[2];
static int first;

#define BARRIER_LOOP(name, wait)                                              \
  static void *name##_meet(void *done) {                                      \
    bool decides = __atomic_fetch_add(&first, 1, __ATOMIC_RELAXED) == 0;      \
    bool last = false;                                                        \
    uint64_t n = 0;                                                           \
    for (; !last; n++) {                                                      \
      if (decides) over[n % 2] = !going();                                    \
      wait;                                                                   \
      last = over[n % 2];                                                     \
    }                                                                         \
    *(double *)done = (double)n;                                              \
    return NULL;                                                              \
  }                                                                           \
  static double name##_meet_2(void) { return meet(name##_meet, 2); }          \
  static double name##_meet_8(void) { return meet(name##_meet, 8); }

/* Microseconds from one meeting to the next. */
static double meet(thread_fn *fn, int n) {
  thread_fn *all[MOST];
  double done[MOST], seconds;
  for (int i = 0; i < n; i++) all[i] = fn;
  pthread_barrier_init(&barrier, NULL, (unsigned)n);
  own_barrier.parties = n;
  first = 0;
  seconds = run_threads(all, n, done);
  pthread_barrier_destroy(&barrier);
  return seconds * 1e6 / done[0];
}

BARRIER_LOOP(pthread, pthread_barrier_wait(&barrier))
BARRIER_LOOP(conc, conc_barrier_wait(&own_barrier, CONC_FOREVER))

static void begin_locks(void) {
  pthread_mutexattr_t kind;
  pthread_mutexattr_init(&kind);
  pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&recursive, &kind);
  pthread_mutexattr_destroy(&kind);
  for (int i = 0; i < 2; i++) sem_init(&sems[i], 0, 0);
}

/* --- queues -------------------------------------------------------------- */

/* The peer: mutex, two conditions, signalled only if somebody waits. */
typedef struct ring {
  pthread_mutex_t mutex;
  pthread_cond_t not_empty, not_full;
  size_t first, count, getters, putters;
  uint64_t slots[SLOTS];
} ring;

static ring rings[2]; /* begin_ring() readies them */

static void begin_ring(ring *r) {
  pthread_mutex_init(&r->mutex, NULL);
  pthread_cond_init(&r->not_empty, NULL);
  pthread_cond_init(&r->not_full, NULL);
}

static void ring_put(ring *r, uint64_t item) {
  pthread_mutex_lock(&r->mutex);
  while (r->count == SLOTS) {
    r->putters++;
    pthread_cond_wait(&r->not_full, &r->mutex);
    r->putters--;
  }
  r->slots[(r->first + r->count++) % SLOTS] = item;
  if (r->getters > 0) pthread_cond_signal(&r->not_empty);
  pthread_mutex_unlock(&r->mutex);
}

static uint64_t ring_get(ring *r) {
  uint64_t item;
  pthread_mutex_lock(&r->mutex);
  while (r->count == 0) {
    r->getters++;
    pthread_cond_wait(&r->not_empty, &r->mutex);
    r->getters--;
  }
  item = r->slots[r->first];
  r->first = (r->first + 1) % SLOTS;
  r->count--;
  if (r->putters > 0) pthread_cond_signal(&r->not_full);
  pthread_mutex_unlock(&r->mutex);
  return item;
}

#ifdef NO_GLIB
#define async_pairs_1 NULL
#define async_pairs_2 NULL
#define async_pairs_8 NULL
#define async_alone NULL
#else
/* Its items are pointers other than NULL: shifted, with a bit set. */
static GAsyncQueue *async;

static void async_put(uint64_t item) {
  g_async_queue_push(async, (gpointer)(uintptr_t)(item << 1 | 1));
}
static uint64_t async_get(void) {
  uint64_t item = (uintptr_t)g_async_queue_pop(async) >> 1;
  return item == UINT64_MAX >> 1 ? UINT64_MAX : item;
}
#endif

#ifdef NO_CK
#define spinning_pairs_1 NULL
#define spinning_pairs_2 NULL
#define spinning_pairs_8 NULL
#define spinning_alone NULL
#else
/* It never sleeps; whoever meets it full or empty lets others run. */
static ck_ring_t spinning_ring; /* main() readies it */
static ck_ring_buffer_t spinning_slots[SLOTS];

static void spinning_put(uint64_t item) {
  while (!ck_ring_enqueue_mpmc(&spinning_ring, spinning_slots,
                               (void *)(uintptr_t)item))
    sched_yield();
}
static uint64_t spinning_get(void) {
  void *item;
  while (!ck_ring_dequeue_mpmc(&spinning_ring, spinning_slots, &item))
    sched_yield();
  return (uintptr_t)item;
}
#endif

/* What channel.go says; NAN if it is not there. */
static char channel_path[4096];

static double channel(int pairs) {
  char command[sizeof channel_path + 32];
  double value = NAN;
  FILE *f;
  if (access(channel_path, X_OK) != 0) return NAN;
  snprintf(command, sizeof command, "'%s' %d %d", channel_path, pairs,
           (int)(span * 1e3));
  f = popen(command, "r");
  if (f == NULL) return NAN;
  if (fscanf(f, "%lf", &value) != 1) value = NAN;
  return pclose(f) == 0 ? value : NAN;
}
static double channel_pairs_1(void) { return channel(1); }
static double channel_pairs_2(void) { return channel(2); }
static double channel_pairs_8(void) { return channel(8); }
static double channel_apart(void) { return channel(0); }

static conc_queue *queues[2];

static void queue_put(conc_queue *q, uint64_t item) {
  if (conc_put(q, &item, sizeof item, CONC_FOREVER) != 0) abort();
}

static uint64_t queue_get(conc_queue *q) {
  uint64_t item;
  if (conc_get(q, &item, sizeof item, CONC_FOREVER) != sizeof item) abort();
  return item;
}

/* The same, some at once. */
enum { BATCH = 32 };
static conc_queue *batches;
static __thread struct {
  uint64_t items[BATCH];
  size_t first, count;
} batch;

static void batch_flush(void) {
  while (batch.first < batch.count) {
    ssize_t n = conc_put_many(batches, batch.items + batch.first,
                              sizeof *batch.items, batch.count - batch.first,
                              CONC_FOREVER);
    if (n < 0) abort();
    batch.first += (size_t)n;
  }
  batch.first = batch.count = 0;
}

static void batch_put(uint64_t item) {
  batch.items[batch.count++] = item;
  if (batch.count == BATCH || item == UINT64_MAX) batch_flush();
}

static uint64_t batch_get(void) {
  uint64_t item;
  if (batch.first == batch.count) {
    ssize_t n = conc_get_many(batches, batch.items, sizeof *batch.items, BATCH,
                              CONC_FOREVER);
    if (n < 0) abort();
    batch.first = 0;
    batch.count = (size_t)n;
  }
  item = batch.items[batch.first++];
  if (item == UINT64_MAX) batch_flush(); /* what is behind is for others */
  return item;
}

/* Putters put until the time is over, then one STOP each; every getter takes
   items until it meets one STOP. So all that was put has been got. */
#define STOP UINT64_MAX
#define QUEUE_LOOPS(name, put, get)                                           \
  ALONE(name##_alone, 2e7, put((uint64_t)i); counted += get() & 1)            \
  PAIR_LOOPS(name, put, get)
#define PAIR_LOOPS(name, put, get)                                            \
  static void *name##_putter(void *done) {                                    \
    uint64_t n = 0;                                                           \
    for (; going(); n++) put(n);                                              \
    put(STOP);                                                                \
    *(double *)done = 0;                                                      \
    return NULL;                                                              \
  }                                                                           \
  static void *name##_getter(void *done) {                                    \
    uint64_t n = 0;                                                           \
    while (get() != STOP) n++;                                                \
    *(double *)done = (double)n;                                              \
    return NULL;                                                              \
  }                                                                           \
  static double name##_pairs(int pairs) {                                     \
    thread_fn *all[MOST];                                                     \
    double done[MOST], sum = 0, seconds;                                      \
    for (int i = 0; i < pairs; i++) {                                         \
      all[2 * i] = name##_putter;                                             \
      all[2 * i + 1] = name##_getter;                                         \
    }                                                                         \
    seconds = run_threads(all, 2 * pairs, done);                              \
    for (int i = 0; i < 2 * pairs; i++) sum += done[i];                       \
    return sum / seconds / 1e6;                                               \
  }                                                                           \
  static double name##_pairs_1(void) { return name##_pairs(1); }              \
  static double name##_pairs_2(void) { return name##_pairs(2); }              \
  static double name##_pairs_8(void) { return name##_pairs(8); }

#define RING_PUT(n) ring_put(&rings[0], n)
#define RING_GET() ring_get(&rings[0])
#define CONC_PUT(n) queue_put(queues[0], n)
#define CONC_GET() queue_get(queues[0])
QUEUE_LOOPS(ring, RING_PUT, RING_GET)
QUEUE_LOOPS(queue, CONC_PUT, CONC_GET)
PAIR_LOOPS(batch, batch_put, batch_get)
#ifndef NO_GLIB
QUEUE_LOOPS(async, async_put, async_get)
#endif
#ifndef NO_CK
QUEUE_LOOPS(spinning, spinning_put, spinning_get)
#endif

/* --- ping-pong ----------------------------------------------------------- */

typedef struct wire {
  void (*put)(int which, uint64_t item);
  uint64_t (*get)(int which);
} wire;

static int pipes[2][2];

static void pipe_put(int which, uint64_t item) {
  if (write(pipes[which][1], &item, sizeof item) < 0) abort();
}
static uint64_t pipe_get(int which) {
  uint64_t item;
  if (read(pipes[which][0], &item, sizeof item) < 0) abort();
  return item;
}
static void wire_ring_put(int which, uint64_t n) {
  ring_put(&rings[which], n);
}
static uint64_t wire_ring_get(int which) { return ring_get(&rings[which]); }
static void wire_conc_put(int which, uint64_t n) {
  queue_put(queues[which], n);
}
static uint64_t wire_conc_get(int which) { return queue_get(queues[which]); }

/* A word with a condition, and one with a semaphore. */
static struct {
  pthread_mutex_t mutex;
  pthread_cond_t full;
  conc_lock lock;
  conc_cond filled;
#ifndef NO_NSYNC
  nsync_mu mu;
  nsync_cv cv;
#endif
  bool is_full;
  uint64_t item;
} boxes[2] = {
    {.mutex = PTHREAD_MUTEX_INITIALIZER, .full = PTHREAD_COND_INITIALIZER},
    {.mutex = PTHREAD_MUTEX_INITIALIZER, .full = PTHREAD_COND_INITIALIZER}};

#define COND_WIRE(name, take, wait, notify, give)                             \
  static void name##_put(int which, uint64_t item) {                          \
    take;                                                                     \
    boxes[which].item = item;                                                 \
    boxes[which].is_full = true;                                              \
    notify;                                                                   \
    give;                                                                     \
  }                                                                           \
  static uint64_t name##_get(int which) {                                     \
    uint64_t item;                                                            \
    take;                                                                     \
    while (!boxes[which].is_full) wait;                                       \
    boxes[which].is_full = false;                                             \
    item = boxes[which].item;                                                 \
    give;                                                                     \
    return item;                                                              \
  }                                                                           \
  static wire name##_wire = {name##_put, name##_get};
#define SEM_WIRE(name, release, acquire)                                      \
  static void name##_put(int which, uint64_t item) {                          \
    boxes[which].item = item;                                                 \
    release;                                                                  \
  }                                                                           \
  static uint64_t name##_get(int which) {                                     \
    acquire;                                                                  \
    return boxes[which].item;                                                 \
  }                                                                           \
  static wire name##_wire = {name##_put, name##_get};

COND_WIRE(pthread_cond, pthread_mutex_lock(&boxes[which].mutex),
          pthread_cond_wait(&boxes[which].full, &boxes[which].mutex),
          pthread_cond_signal(&boxes[which].full),
          pthread_mutex_unlock(&boxes[which].mutex))
COND_WIRE(own_cond, conc_lock_acquire(&boxes[which].lock, CONC_FOREVER),
          conc_cond_wait(&boxes[which].filled, &boxes[which].lock,
                         CONC_FOREVER),
          conc_cond_notify(&boxes[which].filled, 1),
          conc_lock_release(&boxes[which].lock))
SEM_WIRE(sem_t, sem_post(&sems[which]), sem_wait(&sems[which]))
SEM_WIRE(own_sem, conc_sem_release(&conc_sems[which], 1),
         conc_sem_acquire(&conc_sems[which], CONC_FOREVER))
#ifndef NO_NSYNC
COND_WIRE(nsync_cond, nsync_mu_lock(&boxes[which].mu),
          nsync_cv_wait(&boxes[which].cv, &boxes[which].mu),
          nsync_cv_signal(&boxes[which].cv),
          nsync_mu_unlock(&boxes[which].mu))
SEM_WIRE(nsync_sem, nsync_release(which), nsync_acquire(which))
#endif

static wire pipe_wire = {pipe_put, pipe_get};
static wire ring_wire = {wire_ring_put, wire_ring_get};
static wire conc_wire = {wire_conc_put, wire_conc_get};

static int pong_cpu;
static void *pong(void *arg) {
  wire *w = (wire *)arg;
  uint64_t item;
  bench_pin(pong_cpu);
  do {
    item = w->get(0);
    w->put(1, item);
  } while (item != STOP);
  return NULL;
}

static double ping(wire *w, int cpu, double pause) {
  enum { TIMES = 20000 };
  static double took[TIMES];
  size_t n = 0;
  double end = bench_now() + span;
  pthread_t other;
  pong_cpu = cpu;
  bench_pin(0);
  pthread_create(&other, NULL, pong, w);
  for (int i = 0; n < TIMES && (n == 0 || bench_now() < end); i++) {
    double start;
    if (pause > 0) usleep((useconds_t)(pause * 1e6));
    start = bench_now();
    w->put(0, (uint64_t)i);
    w->get(1);
    if (i >= 10) took[n++] = bench_now() - start;
  }
  w->put(0, STOP);
  w->get(1);
  pthread_join(other, NULL);
  bench_pin(-1);
  return bench_median(took, n) * 1e6;
}

#define PINGS(name)                                                           \
  static double name##_apart(void) { return ping(&name##_wire, 1, 0); }       \
  static double name##_together(void) { return ping(&name##_wire, 0, 0); }    \
  static double name##_asleep(void) { return ping(&name##_wire, 1, 1e-3); }
PINGS(pipe)
PINGS(ring)
PINGS(conc)

#define TWO_PINGS(name)                                                       \
  static double name##_apart(void) { return ping(&name##_wire, 1, 0); }       \
  static double name##_together(void) { return ping(&name##_wire, 0, 0); }
TWO_PINGS(pthread_cond)
TWO_PINGS(own_cond)
TWO_PINGS(sem_t)
TWO_PINGS(own_sem)
#ifdef NO_NSYNC
#define nsync_cond_apart NULL
#define nsync_cond_together NULL
#define nsync_sem_apart NULL
#define nsync_sem_together NULL
#else
TWO_PINGS(nsync_cond)
TWO_PINGS(nsync_sem)
#endif

/* --- thread-locals ------------------------------------------------------- */

static pthread_key_t key;
static conc_local local;
static conc_attribute *attribute;

static __thread void *own;

/* The compiler must not remember what it has read. */
#define READ(from)                                                            \
  if ((from) != &key) abort();                                                \
  __asm__ volatile("" ::: "memory")

ALONE(read_own, 2e8, READ(own))
ALONE(read_key, 2e8, READ(pthread_getspecific(key)))
ALONE(read_attribute, 2e8, READ(conc_attribute_get(attribute)))
ALONE(read_name, 2e8, READ(conc_local_get(&local, "student")))

static void begin_locals(void) {
  pthread_key_create(&key, NULL);
  pthread_setspecific(key, &key);
  own = &key;
  conc_local_set(&local, "teacher", NULL);
  conc_local_set(&local, "student", &key);
  attribute = conc_local_attribute(&local, "student");
}

/* --- rows ---------------------------------------------------------------- */

#define LOCK_ROW(row, unit, suffix)                                           \
  ROW(row, unit, {"pthread_mutex", pthread##suffix},                          \
      {"nsync", nsync##suffix}, {"ck_spinlock", ck##suffix},                  \
      {"conc", conc##suffix})
#define RW_ROW(row, unit, suffix)                                             \
  ROW(row, unit, {"pthread_rwlock", pthread##suffix},                         \
      {"nsync", nsync##suffix}, {"ck_rwlock", ck##suffix},                    \
      {"conc", conc##suffix})
#define QUEUE_ROW(row, suffix)                                                \
  ROW(row, "M/s", {"mutex+cond", ring##suffix},                               \
      {"GAsyncQueue", async##suffix}, {"ck_ring", spinning##suffix},          \
      {"Go channel", channel##suffix}, {"conc", queue##suffix},               \
      {"conc, 32 at once", batch##suffix})
#define PING_ROW(row, suffix)                                                 \
  ROW(row, "us", {"pipe", pipe##suffix}, {"mutex+cond", ring##suffix},        \
      {"conc", conc##suffix})
#define COND_ROW(row, suffix)                                                 \
  ROW(row, "us", {"pthread_cond", pthread_cond##suffix},                      \
      {"nsync", nsync_cond##suffix}, {"conc", own_cond##suffix})
#define SEM_ROW(row, suffix)                                                  \
  ROW(row, "us", {"sem_t", sem_t##suffix},                                    \
      {"nsync mu+cv", nsync_sem##suffix}, {"conc", own_sem##suffix})

/* A process of one thread has its mutexes cheaper: there are always two. */
static void *bystander(void *arg) {
  for (;;) pause();
  return arg;
}

int main(int argc, char **argv) {
  conc_queue_opts bounded = {0};
  pthread_t second;
  bench_begin(argc, argv, "Threads");
  if (bench_quick) span = 0.01;
  readlink("/proc/self/exe", channel_path, sizeof channel_path - 16);
  if (strrchr(channel_path, '/') != NULL)
    strcpy(strrchr(channel_path, '/'), "/channel");
  bounded.capacity = SLOTS;
#ifndef NO_CK
  ck_ring_init(&spinning_ring, SLOTS);
#endif
#ifndef NO_GLIB
  async = g_async_queue_new();
#endif
  for (int i = 0; i < 2; i++) {
    begin_ring(&rings[i]);
    queues[i] = conc_queue_new(&bounded);
    if (queues[i] == NULL || pipe(pipes[i]) != 0) return 1;
  }
  batches = conc_queue_new(&bounded);
  if (batches == NULL) return 1;
  pthread_create(&second, NULL, bystander, NULL);
  begin_locks();
  begin_locals();
  if (!begin_shared()) return 1;
  LOCK_ROW("lock, alone", "ns", _alone);
  ROW("CPUs that 2 busy threads get", "CPUs", {"limit: measured", cpus_had});
  LOCK_ROW("lock, 2 threads", "M op/s", _2);
  LOCK_ROW("lock, 8 threads", "M op/s", _8);
  LOCK_ROW("lock, 8 threads, longest wait", "ms", _long);
  ROW("shared lock, alone", "ns", {"pthread robust", robust_alone},
      {"conc", shared_alone});
  ROW("shared sem, alone", "ns", {"sem_t", sem_t_shared},
      {"conc", conc_sem_shared});
  ROW("rlock, alone", "ns", {"pthread recursive", pthread_first},
      {"conc", conc_first});
  ROW("rlock, once more", "ns", {"pthread recursive", pthread_second},
      {"conc", conc_second});
  RW_ROW("rwlock, reading alone", "ns", _reading);
  RW_ROW("rwlock, 8 readers 1 writer, reads", "M op/s", _reads);
  RW_ROW("rwlock, 8 readers 1 writer, writes", "k op/s", _writes);
  ROW("sem, alone", "ns", {"sem_t", pthread_sem}, {"nsync mu+cv", nsync_sem},
      {"conc", own_sem});
  ROW("once, done", "ns", {"pthread_once", pthread_again},
      {"nsync", nsync_again}, {"conc", conc_again});
  ROW("barrier, 2 threads", "us", {"pthread_barrier", pthread_meet_2},
      {"conc", conc_meet_2});
  ROW("barrier, 8 threads", "us", {"pthread_barrier", pthread_meet_8},
      {"conc", conc_meet_8});
  ROW("local, read", "ns", {"limit: __thread", read_own}, {"pthread key", read_key},
      {"conc attribute", read_attribute}, {"conc name", read_name});
  ROW("queue, alone", "ns", {"mutex+cond", ring_alone},
      {"GAsyncQueue", async_alone}, {"ck_ring", spinning_alone},
      {"conc", queue_alone});
  QUEUE_ROW("queue, 1 -> 1", _pairs_1);
  QUEUE_ROW("queue, 2 -> 2", _pairs_2);
  QUEUE_ROW("queue, 8 -> 8", _pairs_8);
  ROW("ping-pong, two CPUs", "us", {"pipe", pipe_apart},
      {"mutex+cond", ring_apart}, {"Go channel, on any", channel_apart},
      {"conc", conc_apart});
  PING_ROW("ping-pong, one CPU", _together);
  PING_ROW("ping-pong, two CPUs, after 1 ms of rest", _asleep);
  COND_ROW("cond ping-pong, two CPUs", _apart);
  COND_ROW("cond ping-pong, one CPU", _together);
  SEM_ROW("sem ping-pong, two CPUs", _apart);
  SEM_ROW("sem ping-pong, one CPU", _together);
  return counted == 0 && *bench_filter == 0;
}
