/* A TCP echo server with a coroutine for each connection, against others.
 *
 *   echo [--quick] [FILTER]         only rows whose name contains FILTER
 *
 * Messages of 64 bytes over loopback, each connection has one on its way; the
 * server on one CPU, the load generator on another. The contenders take turns
 * in short rounds. The limit is bare epoll, level-triggered, that reads when
 * told to.
 *
 *   requests   n connections: requests/s; and the time that the server's CPU
 *              took for each, which counts if the load generator is the limit
 *              (but it includes what conc spins when there is nothing to do)
 *   memory     resident bytes of the server for each of 10,000 connections
 *              that say nothing, and have spoken once; without the kernel's
 *
 * Peers that are not installed are "not here": libuv1-dev (-DNO_UV), libev-dev
 * (-DNO_EV), golang (echo.go), python3 ($PYTHON names another).
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"
#include <sys/epoll.h>
#include <sys/resource.h>
#ifndef NO_UV
#include <uv.h>
#endif
#ifndef NO_EV
#include <ev.h>
#endif

enum { MESSAGE = 64, IDLE = 10000 };
static double span = 0.3; /* seconds of one measurement */

static void fail(const char *what) {
  perror(what);
  _exit(1);
}

/* A non-blocking connection, or -1. */
static int accept_one(int listener) {
  int one = 1;
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

/* Whether it goes on. What does not fit at once is not expected here. */
static bool echo_once(int fd) {
  char buf[1024];
  ssize_t n = read(fd, buf, sizeof buf);
  return n < 0 ? errno == EAGAIN : n > 0 && write(fd, buf, (size_t)n) == n;
}

/* --- servers: each in a process of its own, with a listening socket --- */

static void serve_epoll(int listener) {
  struct epoll_event e[128];
  int ep = epoll_create1(0);
  e[0].events = EPOLLIN;
  e[0].data.fd = listener;
  epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e[0]);
  for (;;) {
    int n = epoll_wait(ep, e, 128, -1);
    for (int i = 0; i < n; i++) {
      int fd = e[i].data.fd;
      if (fd == listener) {
        struct epoll_event add = {.events = EPOLLIN};
        add.data.fd = accept_one(listener);
        if (add.data.fd >= 0) epoll_ctl(ep, EPOLL_CTL_ADD, add.data.fd, &add);
      } else if (!echo_once(fd)) {
        close(fd);
      }
    }
  }
}

static void *conc_echo(void *arg) {
  conc_task *self = conc_current();
  int fd = (int)(intptr_t)arg;
  char buf[1024];
  ssize_t n;
  do n = conc_read(fd, buf, sizeof buf, CONC_FOREVER);
  while (n > 0 && conc_write(fd, buf, (size_t)n, CONC_FOREVER) == n);
  conc_close(fd);
  return self;
}

static void *conc_acceptor(void *arg) {
  for (;;) {
    conc_task *t = (conc_task *)calloc(1, sizeof *t); /* for ever */
    if (t == NULL) fail("echo: memory");
    t->arg = (void *)(intptr_t)conc_accept((int)(intptr_t)arg, CONC_FOREVER);
    t->target = conc_echo;
    if ((intptr_t)t->arg >= 0) conc_coro_start(t);
  }
  return NULL;
}

static void serve_conc(int listener) {
  conc_task t = {.target = conc_acceptor, .arg = (void *)(intptr_t)listener};
  conc_run(&t);
}

#ifndef NO_EV
static void ev_ready(struct ev_loop *loop, ev_io *io, int events) {
  (void)events;
  if (echo_once(io->fd)) return;
  ev_io_stop(loop, io);
  close(io->fd);
  free(io);
}

static void ev_accept(struct ev_loop *loop, ev_io *io, int events) {
  int fd = accept_one(io->fd);
  ev_io *client = fd < 0 ? NULL : (ev_io *)malloc(sizeof *client);
  (void)events;
  if (client == NULL) return;
  ev_io_init(client, ev_ready, fd, EV_READ);
  ev_io_start(loop, client);
}

static void serve_ev(int listener) {
  static ev_io io;
  ev_io_init(&io, ev_accept, listener, EV_READ);
  ev_io_start(EV_DEFAULT, &io);
  ev_run(EV_DEFAULT, 0);
}
#else
#define serve_ev NULL
#endif

#ifndef NO_UV
static void uv_buffer(uv_handle_t *h, size_t hint, uv_buf_t *buf) {
  static char memory[1024];
  (void)h, (void)hint;
  *buf = uv_buf_init(memory, sizeof memory);
}

static void uv_gone(uv_handle_t *h) { free(h); }

static void uv_got(uv_stream_t *s, ssize_t n, const uv_buf_t *buf) {
  uv_buf_t out = uv_buf_init(buf->base, (unsigned)(n > 0 ? n : 0));
  if (n < 0 || (n > 0 && uv_try_write(s, &out, 1) != n))
    uv_close((uv_handle_t *)s, uv_gone);
}

static void uv_connection(uv_stream_t *listener, int status) {
  uv_tcp_t *client = (uv_tcp_t *)malloc(sizeof *client);
  if (status < 0 || client == NULL) return;
  uv_tcp_init(uv_default_loop(), client);
  uv_accept(listener, (uv_stream_t *)client);
  uv_tcp_nodelay(client, 1);
  uv_read_start((uv_stream_t *)client, uv_buffer, uv_got);
}

static void serve_uv(int listener) {
  static uv_tcp_t tcp;
  uv_tcp_init(uv_default_loop(), &tcp);
  uv_tcp_open(&tcp, listener);
  uv_listen((uv_stream_t *)&tcp, 4096, uv_connection);
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
#else
#define serve_uv NULL
#endif

/* These inherit the socket as descriptor 3. */
static void as_three(int listener) {
  if (listener == 3) fcntl(3, F_SETFD, 0);
  else dup2(listener, 3);
}

static char go_path[4096]; /* echo.go, if run.sh has built it */

static void serve_go(int listener) {
  as_three(listener);
  execl(go_path, go_path, (char *)NULL);
}

static void serve_asyncio(int listener) {
  const char *python = getenv("PYTHON");
  as_three(listener);
  if (python == NULL) python = "python3";
  execlp(python, python, "-c",
         "import asyncio, socket\n"
         "class Echo(asyncio.Protocol):\n"
         "  def connection_made(self, t): self.t = t\n"
         "  def data_received(self, data): self.t.write(data)\n"
         "async def main():\n"
         "  loop = asyncio.get_running_loop()\n"
         "  s = socket.socket(fileno=3)\n"
         "  await (await loop.create_server(Echo, sock=s)).serve_forever()\n"
         "asyncio.run(main())\n", (char *)NULL);
}

typedef struct server {
  const char *name;
  void (*serve)(int listener);
  pid_t pid;
  struct sockaddr_in address;
  double runs[BENCH_RUNS], cpu[BENCH_RUNS], bytes[BENCH_RUNS];
} server;

static void start_server(server *s) {
  socklen_t size = sizeof s->address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  memset(&s->address, 0, sizeof s->address);
  s->address.sin_family = AF_INET;
  s->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, (struct sockaddr *)&s->address, size) < 0 ||
      listen(fd, 4096) < 0)
    fail("echo: listen");
  getsockname(fd, (struct sockaddr *)&s->address, &size);
  if ((s->pid = bench_fork()) == 0) {
    bench_pin(0);
    s->serve(fd);
    _exit(127);
  }
  close(fd);
}

static void stop_server(server *s) {
  kill(s->pid, SIGKILL);
  waitpid(s->pid, NULL, 0);
}

/* --- the load --- */

static int fds[IDLE];

static bool open_all(const server *s, int n) {
  int one = 1;
  for (int i = 0; i < n; i++) {
    fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fds[i] < 0 || connect(fds[i], (const struct sockaddr *)&s->address,
                              sizeof s->address) < 0)
      return false;
    setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  return true;
}

static void close_all(int n) {
  struct linger reset = {1, 0}; /* leaves no TIME_WAIT behind */
  for (int i = 0; i < n; i++) {
    setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fds[i]);
  }
}

static bool speak(int fd) {
  static const char message[MESSAGE];
  return send(fd, message, MESSAGE, MSG_NOSIGNAL) == MESSAGE;
}

/* Seconds that it has run. */
static double cpu_time(pid_t pid) {
  struct timespec t;
  clockid_t clock;
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0)
    return NAN;
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Answers a second; the first 0.1 s do not count. *cpu: what one took. */
static double requests(const server *s, int n, double *cpu) {
  struct epoll_event e[128];
  char buf[1024];
  int ep = epoll_create1(EPOLL_CLOEXEC);
  double begin = 0, now;
  long count = 0;
  bool ok = open_all(s, n);
  for (int i = 0; i < n && ok; i++) {
    e[0].events = EPOLLIN;
    e[0].data.fd = fds[i];
    ok = epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &e[0]) == 0 && speak(fds[i]);
  }
  now = bench_now();
  for (double warm = now + 0.1; ok && (begin == 0 || now < begin + span);) {
    int got = epoll_wait(ep, e, 128, 2000);
    ok = got > 0;
    for (int i = 0; i < got && ok; i++) {
      ok = read(e[i].data.fd, buf, sizeof buf) == MESSAGE &&
           speak(e[i].data.fd);
      count++;
    }
    now = bench_now();
    if (begin == 0 && now >= warm) {
      begin = now;
      count = 0;
      *cpu = cpu_time(s->pid);
    }
  }
  *cpu = (cpu_time(s->pid) - *cpu) / (double)count;
  close_all(n);
  close(ep);
  return ok ? (double)count / (now - begin) : NAN;
}

static double resident(pid_t pid) {
  char name[64];
  double pages = NAN;
  FILE *f;
  snprintf(name, sizeof name, "/proc/%d/statm", (int)pid);
  f = fopen(name, "r");
  if (f != NULL && fscanf(f, "%*f %lf", &pages) != 1) pages = NAN;
  if (f != NULL) fclose(f);
  return pages * (double)sysconf(_SC_PAGESIZE);
}

static double idle_bytes(const server *s) {
  char buf[MESSAGE];
  double before, after = NAN;
  bool ok = open_all(s, 1) && speak(fds[0]) &&
            read(fds[0], buf, sizeof buf) == MESSAGE;
  close_all(1);
  before = resident(s->pid);
  ok = ok && open_all(s, IDLE);
  for (int i = 0; i < IDLE && ok; i++)
    ok = speak(fds[i]) && read(fds[i], buf, sizeof buf) == MESSAGE;
  if (ok) after = resident(s->pid);
  close_all(IDLE);
  return (after - before) / IDLE;
}

/* --- rows --- */

static server servers[] = {
    {.name = "limit: bare epoll", .serve = serve_epoll},
    {.name = "libev", .serve = serve_ev},
    {.name = "libuv", .serve = serve_uv},
    {.name = "Go", .serve = serve_go},
    {.name = "asyncio", .serve = serve_asyncio},
    {.name = "conc", .serve = serve_conc}};
enum { SERVERS = sizeof servers / sizeof *servers };

/* Rounds of a server; none if it is not here. */
static size_t rounds_of(const server *s) {
  return s->serve != NULL ? (size_t)bench_rounds : 0;
}

static void rows_of_requests(int n) {
  char name[80];
  snprintf(name, sizeof name, "requests, %d connections", n);
  if (!bench_wanted(name)) return;
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < SERVERS; i++)
      if (servers[i].serve != NULL) {
        servers[i].runs[r] = requests(&servers[i], n, &servers[i].cpu[r]);
        servers[i].cpu[r] *= 1e6;
      }
  for (int i = 0; i < SERVERS; i++)
    bench_print(name, "/s", servers[i].name, servers[i].runs,
                rounds_of(&servers[i]));
  snprintf(name, sizeof name, "server's CPU for one, %d connections", n);
  for (int i = 0; i < SERVERS; i++)
    bench_print(name, "us", servers[i].name, servers[i].cpu,
                rounds_of(&servers[i]));
}

/* A server keeps what it once had, so each round has one of its own. */
static void rows_of_memory(void) {
  struct rlimit limit;
  char name[80];
  snprintf(name, sizeof name, "memory, %d idle, each", IDLE);
  if (!bench_wanted(name) || bench_hurries()) return;
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < IDLE + 100) {
    puts("  memory: not here, it wants more descriptors");
    return;
  }
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < SERVERS; i++) {
      if (servers[i].serve == NULL) continue;
      stop_server(&servers[i]);
      start_server(&servers[i]);
      servers[i].bytes[r] = idle_bytes(&servers[i]);
    }
  for (int i = 0; i < SERVERS; i++)
    bench_print(name, "bytes", servers[i].name, servers[i].bytes,
                rounds_of(&servers[i]));
}

int main(int argc, char **argv) {
  struct rlimit limit;
  bench_begin(argc, argv, "TCP echo, 64 bytes");
  bench_rounds = bench_quick ? BENCH_QUICK : 5; /* there are six contenders */
  if (bench_quick) span = 0.1;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  snprintf(go_path, sizeof go_path, "%s_go", argv[0]);
  if (access(go_path, X_OK) != 0)
    for (int i = 0; i < SERVERS; i++)
      if (servers[i].serve == serve_go) servers[i].serve = NULL;
  for (int i = 0; i < SERVERS; i++)
    if (servers[i].serve != NULL) start_server(&servers[i]);
  bench_pin(1);
  rows_of_requests(100);
  rows_of_requests(1000);
  rows_of_memory();
  for (int i = 0; i < SERVERS; i++)
    if (servers[i].serve != NULL) stop_server(&servers[i]);
  return 0;
}
