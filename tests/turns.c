/* Nobody waits for another task's work: a task that finds all it asks for lets
   others run, and notices that it is cancelled; timers, descriptors and other
   threads are heard among very many that are ready. */
#include "test.h"

static void test_point(void);
#define CONC__POINT() test_point()
#include "inside.h"
#include "tasks.h"

#include <sys/socket.h>
#include <sys/un.h>

/* --- calls that need not wait --- */

typedef struct greedy {
  conc_task task;
  int (*step)(struct greedy *g); /* one call; 0 or more: it went well */
  int fd, rc;
  unsigned long steps;
  conc_queue *queue;
  char address[64];
} greedy;

static char space[65536];

static int step_read(greedy *g) {
  return (int)conc_read(g->fd, space, sizeof space, CONC_FOREVER);
}
static int step_read_little(greedy *g) {
  return (int)conc_read(g->fd, space, 1, CONC_FOREVER);
}
static int step_exactly(greedy *g) {
  return (int)conc_read_exactly(g->fd, space, sizeof space, CONC_FOREVER);
}
static int step_write(greedy *g) {
  return (int)conc_write(g->fd, space, sizeof space, CONC_FOREVER);
}
static int step_poll(greedy *g) {
  int rc = conc_wait_fd(g->fd, CONC_WRITE, 0);
  return rc == -ETIMEDOUT ? 0 : rc;
}
static int step_ready(greedy *g) { /* the poller refuses it: always ready */
  return conc_wait_fd(g->fd, CONC_WRITE, CONC_FOREVER);
}
static int step_datagram(greedy *g) {
  int rc = conc_datagram_send(g->fd, "x", 1, g->address, CONC_FOREVER);
  if (rc != 0) return rc;
  return (int)conc_datagram_receive(g->fd, space, 1, NULL, 0, CONC_FOREVER);
}
static int step_queue(greedy *g) {
  int rc = conc_put(g->queue, "x", 1, CONC_FOREVER);
  if (rc != 0) return rc;
  return (int)conc_get(g->queue, space, 1, CONC_FOREVER);
}
static int step_refused(greedy *g) {
  int rc = conc_connect("./nothing-listens-here.sock", CONC_FOREVER);
  (void)g;
  return rc == -ENOENT ? 0 : rc;
}
/* From outside of the library, so that only conc_accept lets others run. */
static int step_accept(greedy *g) {
  struct sockaddr_un a;
  int client = socket(AF_UNIX, SOCK_STREAM, 0), fd;
  memset(&a, 0, sizeof a);
  a.sun_family = AF_UNIX;
  memcpy(a.sun_path, g->address, sizeof g->address);
  CHECK_EQ(connect(client, (struct sockaddr *)&a, sizeof a), 0);
  fd = conc_accept(g->fd, CONC_FOREVER);
  close(client);
  if (fd >= 0) CHECK_EQ(conc_close(fd), 0);
  return fd;
}
static int step_line(greedy *g) {
  static char line[80];
  conc_stream s = {0};
  ssize_t n;
  s.fd = g->fd;
  STORE(g->steps, 1);
  do n = conc_stream_read(&s, line, sizeof line, CONC_FOREVER);
  while (n > 0);
  s.fd = dup(g->fd);
  conc_stream_close(&s, 0);
  return (int)n;
}

static void *is_greedy(void *arg) {
  greedy *g = (greedy *)arg;
  do {
    g->rc = g->step(g);
    STORE(g->steps, g->steps + 1);
  } while (g->rc >= 0);
  return NULL;
}

static const struct {
  int (*step)(greedy *g);
  const char *file;
} ways[] = {{step_read, "/dev/zero"},    {step_read_little, "/dev/zero"},
            {step_write, "/dev/null"},   {step_poll, "/dev/null"},
            {step_exactly, "/dev/zero"}, {step_datagram, NULL},
            {step_queue, NULL},          {step_line, "/dev/zero"},
            {step_refused, "/dev/null"}, {step_accept, "its own"},
            {step_ready, "/dev/null"}};
enum { WAYS = sizeof ways / sizeof *ways };

static void greedy_begin(greedy *g, int way) {
  memset(g, 0, sizeof *g);
  g->step = ways[way].step;
  if (ways[way].step == step_accept) {
    static int number;
    snprintf(g->address, sizeof g->address, "./greedy-%d-%d.sock",
             (int)getpid(), number++);
    g->fd = conc_listen(g->address);
  } else if (ways[way].file != NULL)
    g->fd = open(ways[way].file, O_RDWR | O_CLOEXEC);
  else
    g->fd = conc_datagram_open("127.0.0.1:0");
  CHECK(g->fd > 2);
  if (ways[way].file == NULL)
    CHECK(conc_address(g->fd, g->address, sizeof g->address) > 0);
  g->queue = conc_queue_new(NULL);
  g->task = task_of(is_greedy, g);
}
static void greedy_end(greedy *g) {
  CHECK_EQ(g->rc, -ECANCELED);
  CHECK_EQ(conc_close(g->fd), 0);
  if (g->step == step_accept) CHECK_EQ(unlink(g->address), 0);
  conc_queue_free(g->queue);
}

/* Timers go on beside it; a cancel ends it. */
static void *beside_the_greedy(void *arg) {
  for (int way = 0; way < WAYS; way++) {
    greedy g[2];
    for (int i = 0; i < 2; i++) {
      greedy_begin(&g[i], way);
      CHECK_EQ(conc_coro_start(&g[i].task), 0);
    }
    for (int i = 0; i < 10; i++) {
      double before = conc_now();
      CHECK_EQ(conc_sleep(1e-3), 0);
      CHECK(conc_now() - before < 5 * test_slow());
    }
    for (int i = 0; i < 2; i++) {
      CHECK_EQ(conc_cancel(&g[i].task), 0);
      CHECK_EQ(conc_join(&g[i].task, 60), -ECANCELED);
      greedy_end(&g[i]);
    }
  }
  return arg;
}
TEST(a_task_that_need_not_wait_lets_others_run) {
  run(beside_the_greedy, NULL);
}

/* Its own time limit ends it, in a thread, too. */
static void *greedy_with_a_limit(void *arg) {
  for (int way = 0; way < WAYS; way++) {
    greedy g;
    conc_scope s;
    greedy_begin(&g, way);
    conc_timeout(&s, 2e-3);
    is_greedy(&g);
    CHECK_EQ(conc_scope_end(&s), -ETIMEDOUT);
    greedy_end(&g);
  }
  return arg;
}
TEST_BOTH(a_task_that_need_not_wait_notices_a_time_limit, greedy_with_a_limit)

TEST(a_thread_that_need_not_wait_is_cancelled) {
  for (int way = 0; way < WAYS; way++) {
    greedy g;
    greedy_begin(&g, way);
    CHECK_EQ(conc_thread_start(&g.task), 0);
    UNTIL(LOAD(g.steps) > 0);
    CHECK_EQ(conc_cancel(&g.task), 0);
    CHECK_EQ(conc_join(&g.task, CONC_FOREVER), -ECANCELED);
    greedy_end(&g);
  }
}

/* A few calls after a wait leave a cancellation pending, as documented. */
static void *a_few(void *arg) {
  char byte;
  int fds[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  for (int i = 0; i < 100; i++) {
    CHECK_EQ(write(fds[1], "12345678", 8), 8);
    CHECK_EQ(conc_wait_fd(fds[0], CONC_READ, 1), CONC_READ);
    CHECK_EQ(conc_cancel(conc_current()), 0);
    for (int k = 0; k < 8; k++)
      CHECK_EQ(conc_read(fds[0], &byte, 1, CONC_FOREVER), 1);
    CHECK_EQ(conc_sleep(1), -ECANCELED);
  }
  conc_set_status(0);
  conc_close(fds[0]);
  close(fds[1]);
  return arg;
}
TEST_BOTH(a_call_that_need_not_wait_leaves_a_cancel_pending, a_few)

/* --- among many that are ready --- */

enum { MANY = 10000, BUSY = 4 };
static unsigned long yields;
static void *yields_for_ever(void *arg) {
  while (conc_yield_now() == 0) yields++;
  return arg;
}
static void *waits_for_byte(void *arg) {
  char byte;
  CHECK_EQ(conc_read(*(int *)arg, &byte, 1, CONC_FOREVER), 1);
  return NULL;
}
static void *writes_byte(void *arg) {
  usleep(1000);
  CHECK_EQ(write(*(int *)arg, "x", 1), 1);
  return NULL;
}
static void *sets(void *arg) {
  usleep(1000);
  conc_event_set((conc_event *)arg);
  return NULL;
}
static void *among_many(void *arg) {
  int n = TEST_ASAN || TEST_TSAN || test_wrapped("valgrind") ? 500 : MANY;
  conc_task *t = (conc_task *)calloc((size_t)n, sizeof *t);
  for (int i = 0; i < n; i++)
    start(conc_coro_start, &t[i], yields_for_ever, NULL);
  for (int i = 0; i < 3; i++) {
    conc_task reader, writer, setter;
    conc_event event = {0};
    int fds[2];
    unsigned long before;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    start(conc_coro_start, &reader, waits_for_byte, &fds[0]);
    start(conc_thread_start, &writer, writes_byte, &fds[1]);
    start(conc_thread_start, &setter, sets, &event);
    before = yields;
    CHECK_EQ(conc_sleep(1e-3), 0);
    CHECK_EQ(conc_join(&reader, CONC_FOREVER), 0);
    CHECK_EQ(conc_event_wait(&event, CONC_FOREVER), 0);
    CHECK(yields > before);
    CHECK(conc_join(&writer, CONC_FOREVER) == 0);
    CHECK(conc_join(&setter, CONC_FOREVER) == 0);
    CHECK(conc_close(fds[0]) == 0 && conc_close(fds[1]) == 0);
  }
  for (int i = 0; i < n; i++) conc_cancel(&t[i]);
  for (int i = 0; i < n; i++)
    CHECK_EQ(conc_join(&t[i], CONC_FOREVER), -ECANCELED);
  free(t);
  return arg;
}
TEST(events_are_heard_among_ten_thousand_that_are_ready) {
  run(among_many, NULL);
}

/* Coroutines that work for a while between two yields: a timer that is due
   waits for a few of them only. */
static void *works(void *arg) {
  do {
    double until = conc_now() + 1e-3;
    while (conc_now() < until) continue;
    yields++;
  } while (conc_yield_now() == 0);
  return arg;
}
static void *among_busy(void *arg) {
  conc_task t[BUSY];
  unsigned long most = 0;
  for (int i = 0; i < BUSY; i++) start(conc_coro_start, &t[i], works, NULL);
  for (int i = 0; i < 12; i++) {
    unsigned long before = yields;
    CHECK_EQ(conc_sleep(1e-6), 0);
    if (i >= 3 && yields - before > most) most = yields - before;
  }
  CHECK(most <= 4 * BUSY);
  for (int i = 0; i < BUSY; i++) conc_cancel(&t[i]);
  for (int i = 0; i < BUSY; i++) conc_join(&t[i], CONC_FOREVER);
  return arg;
}
TEST(a_timer_waits_for_a_few_busy_coroutines_only) { run(among_busy, NULL); }

/* --- costs --- */

/* A line that comes byte by byte, to calls that run out of time: each byte is
   looked at once. */
static double drip(size_t n) {
  char *line = (char *)malloc(n + 1);
  conc_stream s = {0};
  double before;
  int fds[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  s.fd = fds[0];
  for (size_t i = 0; i < n / 2; i += 4096) {
    memset(line, 'x', 4096);
    CHECK_EQ(write(fds[1], line, 4096), 4096);
    CHECK_EQ(conc_stream_read_line(&s, line, n + 1, 0), -ETIMEDOUT);
  }
  before = conc_now();
  for (size_t i = 0; i < 3000; i++) {
    CHECK_EQ(write(fds[1], "x", 1), 1);
    CHECK_EQ(conc_stream_read_line(&s, line, n + 1, 0), -ETIMEDOUT);
  }
  before = conc_now() - before;
  CHECK(s.looked >= n / 2 + 3000 - 1);
  CHECK_EQ(write(fds[1], "\n", 1), 1);
  CHECK_EQ(conc_stream_read_until(&s, "y", 1, line, n, 0), -ETIMEDOUT);
  CHECK_EQ(conc_stream_read_line(&s, line, n + 1, 0), (n / 2 + 3001));
  CHECK_EQ(s.looked, 0);
  CHECK_EQ(conc_stream_close(&s, 0), 0);
  close(fds[1]);
  free(line);
  return before;
}
TEST(a_line_that_drips_costs_no_more_for_each_byte) {
  drip(1 << 16);
  CHECK(drip(1 << 22) < 5 * test_slow());
}

/* --- long copies --- */

static conc_queue *long_queue;
static char *long_message;
static int at_copy, went_on, was_put;
static pthread_t loop_thread;

static int load(const int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static void store(int *p, int n) { __atomic_store_n(p, n, __ATOMIC_RELEASE); }

/* Whether a cell is claimed, to be filled. */
static bool is_being_put(void) {
  conc__cells_queue *s = (conc__cells_queue *)long_queue;
  for (uint64_t i = 0; i < s->all; i++) {
    uint64_t word =
        __atomic_load_n(&conc__cell_at(s, i)->word, __ATOMIC_ACQUIRE);
    if (CONC__CELL_STATE(word) == CONC__CELL_BUSY) return true;
  }
  return false;
}

/* In the midst of the put, which another thread makes: the loop's other task
 * goes on. */
static void test_point(void) {
  if (load(&at_copy) != 1 || pthread_equal(pthread_self(), loop_thread) ||
      !is_being_put())
    return;
  store(&at_copy, 2);
  UNTIL(load(&went_on));
}

enum { LONG = 3 << 20 };
static void *put_long(void *arg) {
  CHECK_EQ(conc_put(long_queue, long_message, LONG, CONC_FOREVER), 0);
  was_put = 1;
  return arg;
}
static void *go_on_meanwhile(void *arg) {
  if (arg != NULL) { /* the put waits: now there is room */
    char byte;
    CHECK_EQ(conc_get(long_queue, &byte, 1, 0), 1);
  }
  while (load(&at_copy) != 2 && !was_put) CHECK_EQ(conc_sleep(0.001), 0);
  store(&went_on, 1);
  return arg;
}
static void *put_long_in_a_loop(void *arg) {
  conc_task a, b;
  loop_thread = pthread_self();
  if (arg == NULL) store(&at_copy, 1);
  start(conc_coro_start, &a, put_long, NULL);
  CHECK_EQ(conc_sleep(0.01), 0); /* it waits, if there is no room */
  if (arg != NULL) store(&at_copy, 1);
  start(conc_coro_start, &b, go_on_meanwhile, arg);
  CHECK_EQ(conc_join(&a, CONC_FOREVER), 0);
  CHECK_EQ(conc_join(&b, CONC_FOREVER), 0);
  return arg;
}

TEST(a_large_put_between_processes_is_copied_beside_the_loop) {
  long_message = (char *)malloc(LONG);
  CHECK(long_message != NULL);
  memset(long_message, 'x', LONG);
  for (int waits = 0; waits < 2; waits++) {
    conc_queue_opts o;
    conc_task t;
    char *got = (char *)calloc(1, LONG);
    memset(&o, 0, sizeof o);
    o.shared = true;
    o.capacity = 1;
    o.max_bytes = LONG;
    long_queue = conc_queue_new(&o);
    CHECK(got != NULL && long_queue != NULL);
    if (waits) CHECK_EQ(conc_put(long_queue, "x", 1, 0), 0);
    went_on = was_put = at_copy = 0;
    start(conc_run, &t, put_long_in_a_loop, waits ? &t : NULL);
    CHECK_EQ(at_copy, 2); /* and not the loop's */
    CHECK_EQ(conc_get(long_queue, got, LONG, 0), LONG);
    CHECK(memcmp(got, long_message, LONG) == 0);
    conc_queue_free(long_queue);
    free(got);
  }
  free(long_message);
}

/* --- calls of the system that are spared --- */

enum { PINGS = 50 };
static const conc__poller_class *real_poller;
static conc__poller_class counting_poller;
static unsigned asked;
static conc__loop *asked_loop;
static int ping_fds[2];

static bool ask_and_count(conc__loop *loop, double deadline) {
  asked++;
  return real_poller->wait(loop, deadline);
}

static bool loop_sleeps(conc__loop *loop) {
  bool sleeps;
  conc__mutex_lock(&loop->inbox.guard);
  sleeps = loop->inbox.sleeping;
  conc__mutex_unlock(&loop->inbox.guard);
  return sleeps;
}

/* Sends a byte each time when the loop is about to sleep. */
static void *ping(void *arg) {
  char c = 0;
  int i;
  for (i = 0; i < PINGS; i++) {
    while (!loop_sleeps(asked_loop)) sched_yield();
    CHECK_EQ(write(ping_fds[1], &c, 1), 1);
    CHECK_EQ(read(ping_fds[1], &c, 1), 1);
  }
  return arg;
}

static void *answer_pings(void *arg) {
  conc_task thread;
  char c;
  int i, cpus = conc__cpus;
  memset(&thread, 0, sizeof thread);
  thread.target = ping;
  asked_loop = conc__this.loop;
  real_poller = asked_loop->poller.ops;
  counting_poller = *real_poller;
  counting_poller.wait = ask_and_count;
  asked_loop->poller.ops = &counting_poller;
  conc__cpus = 1; /* a spin asks, too */
  CHECK_EQ(conc_thread_start(&thread), 0);
  for (i = 0; i < PINGS; i++) {
    CHECK_EQ(conc_read(ping_fds[0], &c, 1, 10), 1);
    CHECK_EQ(conc_write(ping_fds[0], &c, 1, 10), 1);
  }
  CHECK_EQ(conc_join(&thread, 10), 0);
  conc__cpus = cpus;
  asked_loop->poller.ops = real_poller;
  return arg;
}

/* What has ended a sleep is what the turn begins with. It asks once before the
   sleep, and by the sleep. */
TEST(a_turn_after_a_sleep_does_not_ask_again) {
  asked = 0;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ping_fds), 0);
  run(answer_pings, NULL);
  CHECK(asked >= PINGS);
  CHECK(asked < 2 * PINGS + PINGS / 2);
  CHECK_EQ(close(ping_fds[0]), 0);
  CHECK_EQ(close(ping_fds[1]), 0);
}

static void open_channel(conc__channel *ch, int *peer) {
  int fds[2], room = 256 << 10;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  CHECK_EQ(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
  memset(ch, 0, sizeof *ch);
  ch->fd = fds[0];
  conc__channel_begin(ch);
  *peer = fds[1];
}

/* Of the next frame there are a few bytes at most, which cost nothing to be
   moved to the front of the buffer. */
TEST(of_long_frames_one_is_read_at_a_time) {
  enum { FRAME_BYTES = 20000, FRAMES = 4 };
  const unsigned char *payload;
  conc__buffer out = {NULL, 0, 0, 0};
  conc__channel ch;
  size_t size;
  int i, peer;
  open_channel(&ch, &peer);
  for (i = 0; i < FRAMES; i++) {
    memset(space, 'a' + i, FRAME_BYTES);
    CHECK_EQ(conc__frame_append(&out, space, FRAME_BYTES), 0);
  }
  CHECK_EQ(write(peer, out.data, out.size), (ssize_t)out.size);
  for (i = 0; i < FRAMES; i++) {
    CHECK_EQ(conc__channel_receive(&ch, FRAME_BYTES, &payload, &size,
                                   CONC__NEVER), 0);
    CHECK_EQ(size, FRAME_BYTES);
    CHECK(payload[0] == 'a' + i && payload[FRAME_BYTES - 1] == 'a' + i);
    CHECK(conc__buffer_count(&ch.in) <= 64);
    CHECK(ch.emptied == (i == FRAMES - 1));
  }
  conc__buffer_free(&out);
  conc__channel_free(&ch);
  CHECK_EQ(close(ch.fd), 0);
  CHECK_EQ(close(peer), 0);
}

/* A thread that has looked for a reply in vain waits for the next ones before
   it looks; but not for ever. */
TEST(a_look_in_vain_is_spared_some_times) {
  const unsigned char *payload;
  conc__channel ch;
  size_t size;
  int i, peer;
  open_channel(&ch, &peer);
  CHECK_EQ(conc__channel_receive(&ch, 1, &payload, &size, conc_now() + 1e-3),
           -ETIMEDOUT);
  for (i = CONC__LOOKS_SPARED; i >= 0; i--) {
    CHECK_EQ(ch.vain, i);
    CHECK_EQ(write(peer, "\0\0\0\1x", 5), 5);
    CHECK_EQ(conc__channel_receive(&ch, 1, &payload, &size, CONC__NEVER), 0);
    CHECK_EQ(size, 1);
  }
  CHECK_EQ(ch.vain, 0); /* it has looked, and found it */
  conc__channel_free(&ch);
  CHECK_EQ(close(ch.fd), 0);
  CHECK_EQ(close(peer), 0);
}

TEST_MAIN
