/* The servers that the network benchmark talks to, and what it says to them.
 *
 *   ECHO    sends back what it gets; no queue, no protocol: the limit
 *   SPIN    the same, but looks for 50 us before it sleeps
 *   REDIS   redis-server, LPUSH and RPOP
 *   BEANS   beanstalkd: put, reserve, and a delete that confirms; no key
 *   PYTHON  multiprocessing.managers' own server
 *   CONC    conc.h's manager, which speaks Python's protocol
 *
 * Each runs in a process of its own, listens on 127.0.0.1, wants the same key
 * (but for the echoes and beanstalkd), and dies with this program. */
#ifndef NETWORK_PEERS_H
#define NETWORK_PEERS_H

#include "bench.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define KEY "abc"
enum { CLIENT_CPU = 0, SERVER_CPU = 1 }; /* indexes for bench_pin */
#define SPIN_SECONDS 50e-6

typedef enum protocol {
  ECHO,
  SPIN,
  REDIS,
  BEANS,
  PYTHON,
  CONC
} protocol;

typedef struct peer {
  const char *name;
  protocol speaks;
  pid_t pid; /* 0: not here */
  int port;
  bool missing; /* which was told */
  char id[64]; /* PYTHON, CONC: what the server calls the queue */
} peer;

/* --- messages ------------------------------------------------------------ */

typedef struct bytes {
  unsigned char *data;
  size_t size, capacity;
} bytes;

static inline void append(bytes *b, const void *data, size_t n) {
  if (b->size + n > b->capacity) {
    b->capacity = 2 * (b->size + n);
    b->data = (unsigned char *)realloc(b->data, b->capacity);
    if (b->data == NULL) abort();
  }
  memcpy(b->data + b->size, data, n);
  b->size += n;
}

static inline void append_fill(bytes *b, size_t n) {
  for (size_t i = 0; i < n; i++) append(b, "x", 1);
}

/* --- Python's frames and pickles --- */

static inline size_t frame_begin(bytes *b) {
  append(b, "\0\0\0\0\x80\4", 6);
  return b->size - 6;
}

static inline void frame_end(bytes *b, size_t at) {
  size_t n = b->size - at - 4;
  for (int i = 3; i >= 0; i--, n >>= 8) b->data[at + (size_t)i] = n & 255;
}

static inline void append_u32(bytes *b, size_t n) {
  unsigned char little[4];
  for (int i = 0; i < 4; i++, n >>= 8) little[i] = n & 255;
  append(b, little, 4);
}

static inline void append_str(bytes *b, const char *s) {
  append(b, "X", 1);
  append_u32(b, strlen(s));
  append(b, s, strlen(s));
}

/* (None, function, (argument,), {}): a request to the server itself. */
static inline void encode_request(bytes *b, const char *function,
                                  const char *argument) {
  size_t at = frame_begin(b);
  append(b, "(N", 2);
  append_str(b, function);
  append_str(b, argument);
  append(b, "\x85}t.", 4);
  frame_end(b, at);
}

/* --- what a client asks for --- */

typedef enum request { PUT, GET, GET_WAIT, GET_1_SECOND } request;

static inline void encode_call(bytes *b, const char *id, request what,
                               size_t item) {
  size_t at = frame_begin(b);
  append(b, "(", 1);
  append_str(b, id);
  append_str(b, what == PUT ? "put" : "get");
  if (what == PUT) { /* (item,): bytes */
    append(b, "B", 1);
    append_u32(b, item);
    append_fill(b, item);
    append(b, "\x85", 1);
  } else if (what == GET_1_SECOND) {
    append(b, "\x88K\1\x86", 4); /* (True, 1) */
  } else {
    append(b, ")", 1);
  }
  append(b, "}t.", 3);
  frame_end(b, at);
}

static inline void encode_redis(bytes *b, request what, size_t item) {
  static const char *const gets[] = {
      "", "*2\r\n$4\r\nRPOP\r\n$1\r\nq\r\n",
      "*3\r\n$5\r\nBRPOP\r\n$1\r\nq\r\n$1\r\n0\r\n",
      "*3\r\n$5\r\nBRPOP\r\n$1\r\nq\r\n$1\r\n1\r\n"};
  if (what == PUT) {
    char head[64];
    int n = snprintf(head, sizeof head,
                     "*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$%zu\r\n", item);
    append(b, head, (size_t)n);
    append_fill(b, item);
    append(b, "\r\n", 2);
  } else {
    append(b, gets[what], strlen(gets[what]));
  }
}

/* Jobs of one priority: the oldest is reserved first. Whoever has reserved one
   has an hour to delete it. */
static inline void encode_beans(bytes *b, request what, size_t item) {
  static const char *const gets[] = {"", "reserve\r\n", "reserve\r\n",
                                     "reserve-with-timeout 1\r\n"};
  if (what == PUT) {
    char head[64];
    int n = snprintf(head, sizeof head, "put 0 0 3600 %zu\r\n", item);
    append(b, head, (size_t)n);
    append_fill(b, item);
    append(b, "\r\n", 2);
  } else {
    append(b, gets[what], strlen(gets[what]));
  }
}

/* The echoes get messages of the same size as the managers do. */
static inline void encode(bytes *b, const peer *p, request what, size_t item) {
  if (p->speaks == REDIS) encode_redis(b, what, item);
  else if (p->speaks == BEANS) encode_beans(b, what, item);
  else encode_call(b, p->speaks >= PYTHON ? p->id : "1", what, item);
}

/* --- sockets ------------------------------------------------------------- */

static inline struct sockaddr_in loopback(int port) {
  struct sockaddr_in a;
  memset(&a, 0, sizeof a);
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons((uint16_t)port);
  return a;
}

static inline void no_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline int listen_at(int port) {
  struct sockaddr_in a = loopback(port);
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 512) != 0) {
    perror("network: listen");
    exit(1);
  }
  return fd;
}

static inline int free_port(void) {
  struct sockaddr_in a;
  socklen_t size = sizeof a;
  int fd = listen_at(0);
  getsockname(fd, (struct sockaddr *)&a, &size);
  close(fd);
  return ntohs(a.sin_port);
}

static inline int connect_to(int port) {
  struct sockaddr_in a = loopback(port);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
    close(fd);
    return -1;
  }
  if (fd >= 0) no_delay(fd);
  return fd;
}

static inline bool send_all(int fd, const void *data, size_t n) {
  const char *p = (const char *)data;
  while (n > 0) {
    ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
    if (k <= 0) return false;
    p += k;
    n -= (size_t)k;
  }
  return true;
}

static inline bool receive_all(int fd, void *data, size_t n) {
  char *p = (char *)data;
  while (n > 0) {
    ssize_t k = recv(fd, p, n, 0);
    if (k <= 0) return false;
    p += k;
    n -= (size_t)k;
  }
  return true;
}

/* Closes without TIME_WAIT, which thousands of connections would leave. */
static inline void drop(int fd) {
  struct linger now = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(fd);
}

/* --- sessions ------------------------------------------------------------ */

/* A frame of at most `most` bytes; its size, or -1. */
static inline int receive_frame(int fd, unsigned char *payload, size_t most) {
  unsigned char head[4];
  size_t n;
  if (!receive_all(fd, head, 4)) return -1;
  n = (size_t)head[2] << 8 | head[3];
  if (head[0] != 0 || head[1] != 0 || n > most) return -1;
  return receive_all(fd, payload, n) ? (int)n : -1;
}

static inline bool send_frame(int fd, const void *payload, size_t n) {
  unsigned char message[128] = {0};
  message[3] = (unsigned char)n;
  memcpy(message + 4, payload, n);
  return send_all(fd, message, n + 4);
}

/* Python's mutual authentication, then the first request; its WELCOME and
   that go in one segment, for Python's server would wait 40 ms between two.
   The server's own answer is not verified: that is not what we measure. */
static inline bool authenticate(int fd, const bytes *first) {
  static const char challenge[] = "#CHALLENGE#{sha256}"
                                  "0123456789012345678901234567890123456789";
  const conc__key key = {KEY, strlen(KEY), false};
  unsigned char in[256], out[CONC__DIGEST_MAX];
  bytes last = {NULL, 0, 0};
  bool ok;
  int n = receive_frame(fd, in, sizeof in);
  if (n < 11 || memcmp(in, challenge, 11) != 0) return false;
  n = conc__auth_answer(&key, in + 11, (size_t)n - 11, out);
  if (n < 0 || !send_frame(fd, out, (size_t)n)) return false;
  if (receive_frame(fd, in, sizeof in) != 9 || in[1] != 'W') return false;
  if (!send_frame(fd, challenge, sizeof challenge - 1)) return false;
  if (receive_frame(fd, in, sizeof in) < 16) return false;
  append(&last, "\0\0\0\11#WELCOME#", 13);
  append(&last, first->data, first->size);
  ok = send_all(fd, last.data, last.size);
  free(last.data);
  return ok;
}

/* Asks the server for the queue: p->id. */
static inline bool learn_id(peer *p) {
  bytes first = {NULL, 0, 0};
  unsigned char in[1024];
  const unsigned char *s, *end;
  int n = -1, fd = connect_to(p->port);
  encode_request(&first, "create", "get_task_queue");
  if (fd >= 0 && authenticate(fd, &first))
    n = receive_frame(fd, in, sizeof in);
  if (fd >= 0) close(fd);
  free(first.data);
  if (n < 0) return false;
  end = in + n;
  s = (const unsigned char *)memmem(in, (size_t)n, "#RETURN", 7);
  if (s == NULL || (s += 7) + 6 > end) return false;
  if (*s == 0x94) s++; /* the string is memoized */
  n = s[1];            /* its size, in one byte or four */
  s += *s == 0x8c ? 2 : 5;
  if (n >= (int)sizeof p->id || s + n > end) return false;
  memcpy(p->id, s, (size_t)n);
  p->id[n] = 0;
  return true;
}

/* A connection that is ready for calls; -1 if there is none to be had. */
static inline int open_session(const peer *p) {
  static const char auth[] = "*2\r\n$4\r\nAUTH\r\n$3\r\n" KEY "\r\n";
  bytes first = {NULL, 0, 0};
  unsigned char in[512];
  bool ok = true;
  int fd = connect_to(p->port);
  if (fd < 0) return -1;
  if (p->speaks == REDIS) {
    ok = send_all(fd, auth, sizeof auth - 1) && receive_all(fd, in, 5) &&
         in[0] == '+';
  } else if (p->speaks >= PYTHON) {
    encode_request(&first, "accept_connection", "MainProcess");
    ok = authenticate(fd, &first) && receive_frame(fd, in, sizeof in) > 0;
    free(first.data);
  }
  if (ok) return fd;
  close(fd);
  return -1;
}

/* --- servers ------------------------------------------------------------- */

/* What an echo could not send at once; it reads no more until it has. */
typedef struct echo_rest {
  unsigned char *data;
  size_t size;
} echo_rest;
static unsigned char echo_buffer[1 << 18];

static inline void echo_watch(int ep, int op, int fd, uint32_t events) {
  struct epoll_event e;
  memset(&e, 0, sizeof e);
  e.events = events;
  e.data.fd = fd;
  epoll_ctl(ep, op, fd, &e);
}

static inline void echo_flush(int ep, int fd, echo_rest *rest) {
  ssize_t k = send(fd, rest->data, rest->size, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (k <= 0) return;
  rest->size -= (size_t)k;
  memmove(rest->data, rest->data + k, rest->size);
  if (rest->size == 0) echo_watch(ep, EPOLL_CTL_MOD, fd, EPOLLIN);
}

static inline void echo_serve(int ep, int fd, echo_rest *rest) {
  ssize_t n = recv(fd, echo_buffer, sizeof echo_buffer, MSG_DONTWAIT), k;
  if (n <= 0) {
    if (n == 0 || errno != EAGAIN) close(fd);
    return;
  }
  k = send(fd, echo_buffer, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (k == n || (k < 0 && errno != EAGAIN)) return;
  if (k < 0) k = 0;
  if (rest->data == NULL)
    rest->data = (unsigned char *)malloc(sizeof echo_buffer);
  if (rest->data == NULL) _exit(1);
  rest->size = (size_t)(n - k);
  memcpy(rest->data, echo_buffer + k, rest->size);
  echo_watch(ep, EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static inline int echo_wait(int ep, struct epoll_event *events, int most,
                            bool spins) {
  double end = spins ? bench_now() + SPIN_SECONDS : 0;
  while (spins && bench_now() < end) {
    int n = epoll_wait(ep, events, most, 0);
    if (n != 0) return n;
  }
  return epoll_wait(ep, events, most, -1);
}

static inline void run_echo(int port, bool spins) {
  enum { MOST = 20000, EVENTS = 256 };
  static echo_rest rests[MOST];
  struct epoll_event events[EVENTS];
  int listener = listen_at(port), ep = epoll_create1(0);
  echo_watch(ep, EPOLL_CTL_ADD, listener, EPOLLIN);
  for (;;) {
    int n = echo_wait(ep, events, EVENTS, spins);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        fd = accept(listener, NULL, NULL);
        if (fd < 0 || fd >= MOST) _exit(1);
        no_delay(fd);
        rests[fd].size = 0;
        echo_watch(ep, EPOLL_CTL_ADD, fd, EPOLLIN);
      } else if (rests[fd].size > 0) {
        echo_flush(ep, fd, &rests[fd]);
      } else {
        echo_serve(ep, fd, &rests[fd]);
      }
    }
  }
}

static inline void run_redis(int port) {
  char number[16];
  snprintf(number, sizeof number, "%d", port);
  execlp("redis-server", "redis-server", "--port", number, "--bind",
         "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", KEY,
         "--maxclients", "12000", (char *)NULL);
}

static inline void run_beans(int port) {
  char number[16];
  snprintf(number, sizeof number, "%d", port);
  /* -z: it takes 65,535 bytes at most by default. */
  execlp("beanstalkd", "beanstalkd", "-l", "127.0.0.1", "-p", number, "-z",
         "1000000", (char *)NULL);
}

static inline void run_python(const char *role, int port) {
  const char *python = getenv("PYTHON");
  char path[4096], number[16], *slash;
  snprintf(path, sizeof path, "%s", __FILE__);
  slash = strrchr(path, '/');
  snprintf(slash ? slash + 1 : path, 64, "network_python.py");
  snprintf(number, sizeof number, "%d", port);
  if (python == NULL) python = "python3";
  execlp(python, python, path, role, number, KEY, (char *)NULL);
}

static inline void run_conc(int port) {
  char address[32];
  conc_manager m = {0};
  snprintf(address, sizeof address, "127.0.0.1:%d", port);
  m.address = address;
  m.authkey = KEY;
  conc_manager_register_queue(&m, "get_task_queue", conc_queue_new(NULL));
  conc_manager_serve_forever(&m);
}

/* In a child: pins it. conc.h counts the CPUs once, at its first use, and does
   not spin if there is but one. Server and client are pinned to keep them
   apart: they are to see all CPUs, as if the scheduler had done that. Where
   both are to live on one CPU, they are to see but that. */
static bool see_all_cpus = true;
static inline void settle(int cpu) {
  bench_pin(see_all_cpus ? -1 : cpu);
  conc_current();
  bench_pin(cpu);
}

static inline void quiet(int from) {
  int null = open("/dev/null", O_RDWR);
  for (int fd = from; fd < 3; fd++) dup2(null, fd);
}

static inline void start_server(peer *p, int cpu) {
  p->port = free_port();
  p->pid = bench_fork();
  if (p->pid != 0) return;
  settle(cpu);
  quiet(0);
  if (p->speaks == ECHO || p->speaks == SPIN)
    run_echo(p->port, p->speaks == SPIN);
  if (p->speaks == REDIS) run_redis(p->port);
  if (p->speaks == BEANS) run_beans(p->port);
  if (p->speaks == PYTHON) run_python("server", p->port);
  if (p->speaks == CONC) run_conc(p->port);
  _exit(127);
}

static inline void stop_server(peer *p) {
  if (p->pid <= 0) return;
  kill(p->pid, SIGKILL);
  waitpid(p->pid, NULL, 0);
  p->pid = 0;
}

/* Starts a server on that CPU and waits until it answers. False: not here. */
static inline bool start_peer(peer *p, int cpu) {
  double end = bench_now() + 5;
  start_server(p, cpu);
  while (bench_now() < end) {
    int fd = connect_to(p->port);
    if (fd >= 0) {
      close(fd);
      if (p->speaks < PYTHON || learn_id(p)) return true;
      break;
    }
    if (waitpid(p->pid, NULL, WNOHANG) == p->pid) {
      p->pid = 0;
      if (!p->missing) printf("  (%s is not installed)\n", p->name);
      p->missing = true;
      return false;
    }
    usleep(2000);
  }
  fprintf(stderr, "network: %s does not answer\n", p->name);
  stop_server(p);
  return false;
}

/* --- a Python client that does as it is told ----------------------------- */

typedef struct python_client {
  pid_t pid;
  int in, out;
} python_client;

static inline python_client start_python_client(const peer *p) {
  python_client c = {0, -1, -1};
  int in[2], out[2];
  if (p->pid == 0 || pipe2(in, O_CLOEXEC) != 0) return c;
  if (pipe2(out, O_CLOEXEC) != 0) return c;
  c.pid = bench_fork();
  if (c.pid == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    run_python("client", p->port);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  c.in = in[1];
  c.out = out[0];
  return c;
}

/* Up to three numbers in answer to a command; NAN if there is none. */
static inline void ask_python(const python_client *c, const char *command,
                              double number, double answer[3]) {
  char line[128];
  int n = snprintf(line, sizeof line, "%s %g\n", command, number);
  answer[0] = answer[1] = answer[2] = NAN;
  if (c->pid <= 0 || write(c->in, line, (size_t)n) != n) return;
  for (n = 0; n < (int)sizeof line - 1; n++)
    if (read(c->out, line + n, 1) != 1 || line[n] == '\n') break;
  line[n] = 0;
  sscanf(line, "%lf %lf %lf", &answer[0], &answer[1], &answer[2]);
}

static inline void stop_python_client(python_client *c) {
  if (c->pid <= 0) return;
  kill(c->pid, SIGKILL);
  waitpid(c->pid, NULL, 0);
  close(c->in);
  close(c->out);
  c->pid = 0;
}

#endif
