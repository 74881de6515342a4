/* Messages between processes.
 *
 *   queue_processes [--quick] [FILTER]      only rows whose name has FILTER
 *
 * Peers, in the same run: Boost.Interprocess' message_queue, a pipe (messages
 * of one size, up to PIPE_BUF a write each), ZeroMQ over ipc, Python's
 * multiprocessing.Queue. Ours waits on words of memory ("ring") or at pipes.
 *
 *   1 -> 1, 2 -> 2   messages got in a second, by all getters
 *   ping             there and back, p50, each side on a CPU of its own
 *   idle             CPU that a waiting getter uses
 *
 * All are pinned: putters to the CPUs from the first, getters from the second.
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <limits.h>
#include <stdint.h>
#include <sys/resource.h>
#ifndef NO_ZMQ
#include <zmq.h>
#endif

enum { MOST = 65536, PINGS = 20000 };
static double span = 0.1; /* seconds of one measurement */
static unsigned char buffer[MOST];

typedef struct peer {
  const char *name;
  bool (*open)(int channel, size_t size, size_t capacity);
  void (*begin)(int channel, bool getter); /* in each process; may be NULL */
  void (*put)(int channel, size_t size);
  void (*get)(int channel, size_t size);
  void (*close)(int channel);
  int most; /* processes on each side */
} peer;

static void need(bool good) {
  if (!good) _exit(1);
}

/* --- ours --- */

static conc_queue *queues[2];
static int backend;
static bool conc_open(int c, size_t size, size_t capacity) {
  conc_queue_opts o = {.capacity = capacity, .max_bytes = size};
  o.shared = true;
  o.backend = backend;
  queues[c] = conc_queue_new(&o);
  return queues[c] != NULL;
}
static bool ring_open(int c, size_t size, size_t capacity) {
  backend = CONC_QUEUE_RING;
  return conc_open(c, size, capacity);
}
static bool pipes_open(int c, size_t size, size_t capacity) {
  backend = CONC_QUEUE_PIPE;
  return conc_open(c, size, capacity);
}
static void ours_put(int c, size_t size) {
  need(conc_put(queues[c], buffer, size, CONC_FOREVER) == 0);
}
static void ours_get(int c, size_t size) {
  need(conc_get(queues[c], buffer, size, CONC_FOREVER) == (ssize_t)size);
}
static void ours_close(int c) { conc_queue_free(queues[c]); }
static const peer ring = {"conc ring", ring_open, NULL,       ours_put,
                          ours_get,    ours_close, 2};
static const peer ours_pipe = {"conc pipe", pipes_open, NULL,       ours_put,
                               ours_get,    ours_close, 2};

/* --- a pipe --- */

static int ends[2][2];
static bool pipe_open(int c, size_t size, size_t capacity) {
  (void)size, (void)capacity;
  return pipe(ends[c]) == 0;
}
static void pipe_put(int c, size_t size) {
  size_t at = 0;
  while (at < size) {
    ssize_t n = write(ends[c][1], buffer + at, size - at);
    need(n > 0);
    at += (size_t)n;
  }
}
static void pipe_get(int c, size_t size) {
  size_t at = 0;
  while (at < size) {
    ssize_t n = read(ends[c][0], buffer + at, size - at);
    need(n > 0);
    at += (size_t)n;
  }
}
static void pipe_close(int c) { close(ends[c][0]), close(ends[c][1]); }
static const peer a_pipe = {"pipe",   pipe_open,  NULL, pipe_put,
                            pipe_get, pipe_close, 1};

/* --- Boost: queue_boost.cpp --- */

#ifndef NO_BOOST_QUEUE
bool boost_open(int channel, size_t size, size_t capacity);
void boost_put(int channel, size_t size);
void boost_get(int channel, size_t size);
void boost_close(int channel);
static const peer boost = {"Boost",   boost_open,  NULL, boost_put,
                           boost_get, boost_close, 2};
#endif

/* --- ZeroMQ --- */

#ifndef NO_ZMQ
static void *sockets[2];
static char zmq_path[2][64];
static bool zero_open(int c, size_t size, size_t capacity) {
  (void)size, (void)capacity;
  snprintf(zmq_path[c], sizeof zmq_path[c], "ipc:///tmp/conc-bench-%d-%d",
           (int)getpid(), c);
  return true;
}
static void zero_begin(int c, bool getter) {
  static void *context;
  if (context == NULL) context = zmq_ctx_new();
  sockets[c] = zmq_socket(context, getter ? ZMQ_PULL : ZMQ_PUSH);
  need((getter ? zmq_bind : zmq_connect)(sockets[c], zmq_path[c]) == 0);
}
static void zero_put(int c, size_t size) {
  need(zmq_send(sockets[c], buffer, size, 0) == (int)size);
}
static void zero_get(int c, size_t size) {
  need(zmq_recv(sockets[c], buffer, size, 0) == (int)size);
}
static void zero_close(int c) { unlink(zmq_path[c] + 6); }
static const peer zero = {"ZeroMQ", zero_open,  zero_begin, zero_put,
                          zero_get, zero_close, 1};
#endif

#ifdef NO_BOOST_QUEUE
static const peer boost = {"Boost", NULL, NULL, NULL, NULL, NULL, 2};
#endif
#ifdef NO_ZMQ
static const peer zero = {"ZeroMQ", NULL, NULL, NULL, NULL, NULL, 1};
#endif

static const peer *const peers[] = {&ring, &ours_pipe, &a_pipe, &boost, &zero};
enum { PEERS = sizeof peers / sizeof *peers };

/* --- measuring --- */

static struct counter {
  uint64_t n;
  char apart[120];
} *got;

static uint64_t all_got(int n) {
  uint64_t all = 0;
  for (int i = 0; i < n; i++)
    all += __atomic_load_n(&got[i].n, __ATOMIC_RELAXED);
  return all;
}

static double rate(const peer *p, int n, size_t size) {
  pid_t pids[4];
  uint64_t first;
  double start;
  memset(got, 0, 4 * sizeof *got);
  if (p->open == NULL || !p->open(0, size, size > 4096 ? 16 : 1024))
    return NAN;
  for (int i = 0; i < 2 * n; i++) {
    pids[i] = bench_fork();
    if (pids[i] != 0) continue;
    bench_pin(i / 2 + i % 2);
    if (p->begin != NULL) p->begin(0, i % 2 == 1);
    if (i % 2 == 0)
      for (;;) p->put(0, size);
    for (;;) {
      p->get(0, size);
      __atomic_store_n(&got[i / 2].n, got[i / 2].n + 1, __ATOMIC_RELAXED);
    }
  }
  start = bench_now();
  while (all_got(n) == 0 && bench_now() < start + 2) usleep(1000);
  usleep(20000);
  first = all_got(n);
  start = bench_now();
  usleep((useconds_t)(span * 1e6));
  first = all_got(n) - first;
  start = bench_now() - start;
  for (int i = 0; i < 2 * n; i++) {
    kill(pids[i], SIGKILL);
    waitpid(pids[i], NULL, 0);
  }
  p->close(0);
  return (double)first / start;
}

static double ping(const peer *p, size_t size) {
  static double times[PINGS];
  int pings = bench_quick ? PINGS / 10 : PINGS;
  pid_t pid;
  if (p->open == NULL || !p->open(0, size, 64) || !p->open(1, size, 64))
    return NAN;
  pid = bench_fork();
  if (pid == 0) {
    bench_pin(1);
    if (p->begin != NULL) p->begin(0, true), p->begin(1, false);
    for (;;) {
      p->get(0, size);
      p->put(1, size);
    }
  }
  bench_pin(0);
  if (p->begin != NULL) p->begin(0, false), p->begin(1, true);
  for (int i = 0; i < pings; i++) {
    double start = bench_now();
    p->put(0, size);
    p->get(1, size);
    times[i] = (bench_now() - start) * 1e6;
  }
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  p->close(0);
  p->close(1);
  bench_pin(-1);
  return bench_median(times, (size_t)pings);
}

typedef struct job {
  const peer *peer;
  int n; /* 0: ping */
  size_t size;
} job;
static double measure(void *arg) {
  const job *j = (const job *)arg;
  return j->n > 0 ? rate(j->peer, j->n, j->size) : ping(j->peer, j->size);
}

/* Python's, measured by itself. */
static double python(size_t size) {
  const char *python = getenv("PYTHON");
  char command[1200];
  double value = NAN;
  FILE *f;
  snprintf(command, sizeof command,
           "%s -c 'import multiprocessing as m, time, os\n"
           "c = m.get_context(\"fork\"); q = c.Queue(); n = 20000\n"
           "def put():\n"
           "    for i in range(n): q.put(b\"x\" * %zu)\n"
           "p = c.Process(target=put); p.start(); q.get(); t = time.time()\n"
           "for i in range(n - 1): q.get()\n"
           "print((n - 1) / (time.time() - t) / 1e6); p.join()' 2>/dev/null",
           python ? python : "python3", size);
  f = popen(command, "r");
  if (f == NULL || fscanf(f, "%lf", &value) != 1) value = NAN;
  if (f != NULL) pclose(f);
  return value;
}

static void rows(int n, size_t size) {
  double values[PEERS + 1][BENCH_RUNS];
  bool with_python = n == 1 && size <= 64 && !bench_hurries();
  const char *unit = n > 0 ? "M/s" : "us";
  char name[80];
  if (n > 0) snprintf(name, sizeof name, "%d -> %d, %zu B", n, n, size);
  else snprintf(name, sizeof name, "ping, %zu B, p50", size);
  if (!bench_wanted(name)) return;
  for (int run = 0; run < bench_rounds; run++) {
    for (int k = 0; k < PEERS; k++) {
      job j = {peers[k], n, size};
      values[k][run] = n > peers[k]->most ? NAN : bench_in_child(measure, &j);
      if (n > 0) values[k][run] *= 1e-6;
    }
    if (with_python) values[PEERS][run] = python(size);
  }
  for (int k = 0; k < PEERS; k++)
    if (n <= peers[k]->most)
      bench_print(name, unit, peers[k]->name, values[k],
                  (size_t)bench_rounds);
  if (with_python)
    bench_print(name, unit, "Python's Queue", values[PEERS],
                (size_t)bench_rounds);
}

static double idle(void *arg) {
  struct rusage use;
  pid_t pid;
  int status;
  (void)arg;
  if (!ring_open(0, 8, 8)) return NAN;
  pid = bench_fork();
  if (pid == 0) {
    conc_get(queues[0], buffer, 8, 2);
    _exit(0);
  }
  if (wait4(pid, &status, 0, &use) != pid) return NAN;
  return ((double)use.ru_utime.tv_sec + (double)use.ru_stime.tv_sec +
          (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6) / 2 *
         100;
}

int main(int argc, char **argv) {
  static const size_t sizes[] = {8, 64, 1024, 65536};
  bench_begin(argc, argv, "Queues between processes");
  bench_rounds = bench_quick ? BENCH_QUICK : 5;
  if (bench_quick) span = 0.02;
  got = (struct counter *)mmap(NULL, 4 * sizeof *got, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (size_t i = 0; i < 4; i++) {
    rows(1, sizes[i]);
    rows(2, sizes[i]);
  }
  rows(0, 64);
  if (bench_wanted("idle") && !bench_hurries()) {
    double used[BENCH_RUNS];
    for (int r = 0; r < bench_rounds; r++)
      used[r] = bench_in_child(idle, NULL);
    bench_print("idle: CPU of a waiting getter", "%", "conc ring", used,
                (size_t)bench_rounds);
  }
  return 0;
}
