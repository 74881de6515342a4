/* What threads pay to meet: locks, queues, and a word from one to another.
 *
 *   threads [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * Peers, in the same run: pthread_mutex; a ring of 1,024 slots under a mutex
 * and two conditions, which is what one writes by hand; a pipe.
 *
 *   lock     lock+unlock, ns alone; operations/s of all with 2 and 8 threads
 *            that do nothing else; and the longest that one of 8 waited
 *   queue    8-byte items through a queue bounded at 1,024, n -> n threads
 *   local    ns to read a value that each thread has for itself
 *   ping     one thread to another and back, p50, each on a CPU of its own
 *            and both on one, over two queues
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <pthread.h>
#include <stdint.h>

enum { RUNS = 5, SLOTS = 1024, MOST = 16 };
static double span = 0.2; /* seconds of one measurement */
static const char *filter = "";

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

/* Macros, so that both loops are the same and call nothing but the lock. */
#define LOCK_LOOPS(name, take, give)                                          \
  static double name##_alone(void) {                                          \
    long n = (long)(span * 5e7);                                              \
    double start = bench_now();                                               \
    for (long i = 0; i < n; i++) {                                            \
      take;                                                                   \
      counted++;                                                              \
      give;                                                                   \
    }                                                                         \
    return (bench_now() - start) * 1e9 / (double)n;                           \
  }                                                                           \
  static void *name##_contend(void *done) {                                   \
    uint64_t n = 0;                                                           \
    for (; going(); n++) {                                                    \
      take;                                                                   \
      counted++;                                                              \
      give;                                                                   \
    }                                                                         \
    *(double *)done = (double)n;                                              \
    return NULL;                                                              \
  }                                                                           \
  static void *name##_wait(void *longest) {                                   \
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
  }

LOCK_LOOPS(pthread, pthread_mutex_lock(&mutex), pthread_mutex_unlock(&mutex))
LOCK_LOOPS(conc, conc_lock_acquire(&lock, CONC_FOREVER),
           conc_lock_release(&lock))

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

static double longest_ms(thread_fn *fn, int n) {
  thread_fn *all[MOST];
  double waits[MOST], most = 0;
  for (int i = 0; i < n; i++) all[i] = fn;
  run_threads(all, n, waits);
  for (int i = 0; i < n; i++)
    if (waits[i] > most) most = waits[i];
  return most * 1e3;
}

static double pthread_2(void) { return total_per_second(pthread_contend, 2); }
static double pthread_8(void) { return total_per_second(pthread_contend, 8); }
static double pthread_long(void) { return longest_ms(pthread_wait, 8); }
static double conc_2(void) { return total_per_second(conc_contend, 2); }
static double conc_8(void) { return total_per_second(conc_contend, 8); }
static double conc_long(void) { return longest_ms(conc_wait, 8); }

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

static conc_queue *queues[2];

static void queue_put(conc_queue *q, uint64_t item) {
  if (conc_put(q, &item, sizeof item, CONC_FOREVER) != 0) abort();
}

static uint64_t queue_get(conc_queue *q) {
  uint64_t item;
  if (conc_get(q, &item, sizeof item, CONC_FOREVER) != sizeof item) abort();
  return item;
}

/* Putters put until the time is over, then one STOP each; every getter takes
   items until it meets one STOP. So all that was put has been got. */
#define STOP UINT64_MAX
#define QUEUE_LOOPS(name, put, get)                                           \
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
QUEUE_LOOPS(conc, CONC_PUT, CONC_GET)

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
  for (int i = 0; n < TIMES && bench_now() < end; i++) {
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

/* --- rows ---------------------------------------------------------------- */

typedef struct contender {
  const char *name;
  double (*measure)(void);
} contender;

/* --- thread-locals ------------------------------------------------------- */

static pthread_key_t key;
static conc_local local;
static conc_attribute *attribute;

#define READ_LOOP(name, read)                                                 \
  static double name(void) {                                                  \
    long n = (long)(span * 2e8);                                              \
    double start = bench_now();                                               \
    for (long i = 0; i < n; i++)                                              \
      if ((read) != &key) abort();                                            \
    return (bench_now() - start) * 1e9 / (double)n;                           \
  }

READ_LOOP(read_key, pthread_getspecific(key))
READ_LOOP(read_attribute, conc_attribute_get(attribute))
READ_LOOP(read_name, conc_local_get(&local, "student"))

static void begin_locals(void) {
  pthread_key_create(&key, NULL);
  pthread_setspecific(key, &key);
  conc_local_set(&local, "teacher", NULL);
  conc_local_set(&local, "student", &key);
  attribute = conc_local_attribute(&local, "student");
}

/* Measures the contenders in rounds, so that a drift of the machine meets all
   of them; every median is compared with those before it. */
static void compare(const char *row, const char *unit, const contender *c,
                    int n) {
  double runs[3][RUNS], median[3];
  char name[80];
  if (strstr(row, filter) == NULL) return;
  for (int r = 0; r < RUNS; r++)
    for (int i = 0; i < n; i++) runs[i][r] = c[i].measure();
  for (int i = 0; i < n; i++) {
    median[i] = bench_median(runs[i], RUNS);
    snprintf(name, sizeof name, "%s: %s", row, c[i].name);
    bench_row(name, median[i], unit);
    for (int k = 0; k < i; k++) bench_of(median[i], median[k], c[k].name);
    bench_end();
  }
}

#define TWO(row, unit, peer, peer_fn, own_fn)                                 \
  do {                                                                        \
    const contender both[] = {{peer, peer_fn}, {"conc", own_fn}};             \
    compare(row, unit, both, 2);                                              \
  } while (0)
#define THREE(row, suffix)                                                    \
  do {                                                                        \
    const contender all[] = {{"pipe", pipe##suffix},                          \
                             {"mutex+cond", ring##suffix},                    \
                             {"conc", conc##suffix}};                         \
    compare(row, "us", all, 3);                                               \
  } while (0)

static void locals(void) {
  static const contender all[] = {{"pthread key", read_key},
                                  {"conc attribute", read_attribute},
                                  {"conc name", read_name}};
  begin_locals();
  compare("local, read", "ns", all, 3);
}

/* A process of one thread has its mutexes cheaper: there are always two. */
static void *bystander(void *arg) {
  for (;;) pause();
  return arg;
}

int main(int argc, char **argv) {
  conc_queue_opts bounded = {0};
  pthread_t second;
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--quick") == 0) span = 0.05;
    else filter = argv[i];
  bounded.capacity = SLOTS;
  for (int i = 0; i < 2; i++) {
    begin_ring(&rings[i]);
    queues[i] = conc_queue_new(&bounded);
    if (queues[i] == NULL || pipe(pipes[i]) != 0) return 1;
  }
  bench_cpus();
  pthread_create(&second, NULL, bystander, NULL);
  puts("Threads");
  TWO("lock, alone", "ns", "pthread_mutex", pthread_alone, conc_alone);
  TWO("lock, 2 threads", "M op/s", "pthread_mutex", pthread_2, conc_2);
  TWO("lock, 8 threads", "M op/s", "pthread_mutex", pthread_8, conc_8);
  TWO("lock, 8 threads, longest wait", "ms", "pthread_mutex", pthread_long,
      conc_long);
  locals();
  TWO("queue, 1 -> 1", "M/s", "mutex+cond", ring_pairs_1, conc_pairs_1);
  TWO("queue, 2 -> 2", "M/s", "mutex+cond", ring_pairs_2, conc_pairs_2);
  TWO("queue, 8 -> 8", "M/s", "mutex+cond", ring_pairs_8, conc_pairs_8);
  THREE("ping-pong, two CPUs", _apart);
  THREE("ping-pong, one CPU", _together);
  THREE("ping-pong, two CPUs, after 1 ms of rest", _asleep);
  return counted == 0 && *filter == 0;
}
