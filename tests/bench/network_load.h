/* The load generator of the network benchmark: many connections, one thread,
 * epoll; ready-made requests out, replies counted and their sizes checked. */
#ifndef NETWORK_LOAD_H
#define NETWORK_LOAD_H

#include "network_peers.h"

typedef struct conn {
  int fd;
  bool getting;            /* which half of the pair is under way */
  bool full;               /* waits for EPOLLOUT */
  size_t left;             /* replies to come */
  size_t skip;             /* bytes of the present reply to come */
  int nested;              /* REDIS: items of an array to come */
  bytes acks;              /* BEANS: deletes of what has been reserved */
  bool acking;             /* they are under way */
  unsigned char carry[64]; /* the beginning of a reply */
  size_t carried;
  const unsigned char *out; /* what is still to be sent */
  size_t unsent;
  size_t reply; /* size of the last one */
  long pairs;
  double sent_at;
} conn;

/* --- replies ------------------------------------------------------------- */

static inline size_t scan_skip(conn *c, size_t n) {
  size_t k = c->skip < n ? c->skip : n;
  c->skip -= k;
  return k;
}

/* Frames: four bytes of size, then the payload. */
static inline size_t scan_frames(conn *c, const unsigned char *p, size_t n) {
  size_t used = 0;
  while (used < n && c->left > 0) {
    if (c->skip > 0) {
      used += scan_skip(c, n - used);
      if (c->skip == 0) c->left--;
    } else {
      if (n - used < 4) break;
      c->reply = c->skip = (size_t)p[used] << 24 | (size_t)p[used + 1] << 16 |
                           (size_t)p[used + 2] << 8 | p[used + 3];
      used += 4;
    }
  }
  return used;
}

static inline void redis_item_done(conn *c) {
  if (c->nested > 0 && --c->nested > 0) return;
  c->left--;
}

static inline size_t scan_redis(conn *c, const unsigned char *p, size_t n) {
  size_t used = 0;
  while (used < n && c->left > 0) {
    const unsigned char *line = p + used, *end;
    long number;
    if (c->skip > 0) {
      used += scan_skip(c, n - used);
      if (c->skip == 0) redis_item_done(c);
      continue;
    }
    end = (const unsigned char *)memchr(line, '\n', n - used);
    if (end == NULL) break;
    used += (size_t)(end + 1 - line);
    number = strtol((const char *)line + 1, NULL, 10);
    if (*line == '$' && number >= 0) c->skip = (size_t)number + 2;
    else if (*line == '*' && number > 0) c->nested = (int)number;
    else if (*line == '-') return SIZE_MAX;
    else redis_item_done(c);
  }
  return used;
}

/* Lines; behind that of a job, which is to be deleted, come its bytes. */
static inline size_t scan_beans(conn *c, const unsigned char *p, size_t n) {
  size_t used = 0;
  while (used < n && c->left > 0) {
    const char *line = (const char *)p + used, *end;
    unsigned long id, size;
    if (c->skip > 0) {
      used += scan_skip(c, n - used);
      if (c->skip == 0) c->left--;
      continue;
    }
    end = (const char *)memchr(line, '\n', n - used);
    if (end == NULL) break;
    used += (size_t)(end + 1 - line);
    if (sscanf(line, "RESERVED %lu %lu", &id, &size) == 2) {
      char ack[32];
      int k = snprintf(ack, sizeof ack, "delete %lu\r\n", id);
      append(&c->acks, ack, (size_t)k);
      c->skip = (size_t)size + 2;
    } else if (strncmp(line, "INSERTED", 8) == 0 ||
               strncmp(line, "DELETED", 7) == 0 ||
               strncmp(line, "TIMED_OUT", 9) == 0) {
      c->left--;
    } else {
      return SIZE_MAX;
    }
  }
  return used;
}

/* An echo is as long as what was sent, however many messages that was. */
static inline size_t scan_echo(conn *c, size_t n) {
  n = scan_skip(c, n);
  if (c->skip == 0) c->left = 0;
  return n;
}

/* Reads once. False if the connection has ended or talks nonsense. */
static inline bool receive(const peer *p, conn *c, int flags) {
  static unsigned char buffer[(1 << 18) + 1];
  size_t n, used;
  ssize_t k;
  memcpy(buffer, c->carry, c->carried);
  k = recv(c->fd, buffer + c->carried, sizeof buffer - 1 - c->carried, flags);
  if (k < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (k <= 0) return false;
  n = c->carried + (size_t)k;
  buffer[n] = 0; /* ends a number */
  used = p->speaks == REDIS    ? scan_redis(c, buffer, n)
         : p->speaks == BEANS  ? scan_beans(c, buffer, n)
         : p->speaks >= PYTHON ? scan_frames(c, buffer, n)
                               : scan_echo(c, n);
  if (used > n || n - used > sizeof c->carry) return false;
  c->carried = n - used;
  memcpy(c->carry, buffer + used, c->carried);
  return true;
}

/* --- single calls -------------------------------------------------------- */

static inline bool open_conn(const peer *p, conn *c) {
  memset(c, 0, sizeof *c);
  c->fd = p->pid > 0 ? open_session(p) : -1;
  return c->fd >= 0;
}

/* Sends `replies` requests that are ready-made. */
static inline bool send_requests(const peer *p, conn *c, const bytes *b,
                                 size_t replies) {
  c->left = replies;
  c->skip = p->speaks < REDIS ? b->size : 0;
  c->sent_at = bench_now();
  return send_all(c->fd, b->data, b->size);
}

static inline bool await(const peer *p, conn *c, double timeout) {
  double end = bench_now() + timeout;
  while (c->left > 0) {
    struct pollfd f = {c->fd, POLLIN, 0};
    double rest = end - bench_now();
    if (rest <= 0 || poll(&f, 1, (int)(rest * 1e3) + 1) < 0) return false;
    if (!receive(p, c, MSG_DONTWAIT)) return false;
  }
  return true;
}

/* Deletes what has been reserved, if it is a server that wants that. */
static inline bool confirm(const peer *p, conn *c) {
  bytes acks = c->acks;
  bool ok = true;
  if (acks.size == 0) return true;
  memset(&c->acks, 0, sizeof c->acks);
  ok = send_requests(p, c, &acks, 1) && await(p, c, 5);
  free(acks.data);
  return ok;
}

static inline void close_conn(conn *c) {
  if (c->fd >= 0) close(c->fd);
  free(c->acks.data);
}

static inline bool call(const peer *p, conn *c, request what, size_t item) {
  bytes b = {NULL, 0, 0};
  bool ok;
  encode(&b, p, what, item);
  ok = send_requests(p, c, &b, 1) && await(p, c, 5) && confirm(p, c);
  free(b.data);
  return ok;
}

/* --- many connections ---------------------------------------------------- */

typedef struct load {
  const peer *p;
  size_t n, depth; /* connections; calls under way on each */
  bytes batch[2];  /* `depth` puts, `depth` gets */
  size_t reply[2]; /* PYTHON, CONC: size of the reply to either */
  conn *conns;
  int ep;
  size_t busy;
  long pairs;
  bool failed;
} load;

static inline void watch(int ep, int op, conn *c, bool write) {
  struct epoll_event e;
  memset(&e, 0, sizeof e);
  e.events = EPOLLIN | (write ? (uint32_t)EPOLLOUT : 0);
  e.data.ptr = c;
  epoll_ctl(ep, op, c->fd, &e);
  c->full = write;
}

static inline void close_load(load *l) {
  for (size_t i = 0; i < l->n && l->conns != NULL; i++) {
    if (l->conns[i].fd > 0) drop(l->conns[i].fd);
    free(l->conns[i].acks.data);
  }
  free(l->conns);
  free(l->batch[0].data);
  free(l->batch[1].data);
  if (l->ep > 0) close(l->ep);
  memset(l, 0, sizeof *l);
}

/* Connects n times. Without a peer the load is failed, and measures NAN. */
static inline void open_load(load *l, const peer *p, size_t n, size_t depth,
                             size_t item) {
  memset(l, 0, sizeof *l);
  l->p = p;
  l->n = n;
  l->depth = depth;
  l->failed = p->pid == 0;
  l->conns = (conn *)calloc(n, sizeof *l->conns);
  l->ep = epoll_create1(EPOLL_CLOEXEC);
  for (size_t i = 0; i < depth; i++) {
    encode(&l->batch[0], p, PUT, item);
    encode(&l->batch[1], p, GET, item);
  }
  for (size_t i = 0; i < n && !l->failed; i++) {
    l->failed = !open_conn(p, &l->conns[i]);
    if (!l->failed) watch(l->ep, EPOLL_CTL_ADD, &l->conns[i], false);
  }
  for (int half = 0; half < 2 && !l->failed; half++) {
    l->failed = !call(p, &l->conns[0], half ? GET : PUT, item);
    l->reply[half] = l->conns[0].reply;
  }
}

static inline void flush(load *l, conn *c) {
  ssize_t k = send(c->fd, c->out, c->unsent, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (k < 0 && errno != EAGAIN) l->failed = true;
  if (k > 0) {
    c->out += k;
    c->unsent -= (size_t)k;
  }
  if ((c->unsent > 0) != c->full)
    watch(l->ep, EPOLL_CTL_MOD, c, c->unsent > 0);
}

static inline void send_batch(load *l, conn *c, bool getting) {
  const bytes *b = &l->batch[getting];
  c->getting = getting;
  c->left = l->depth;
  c->skip = l->p->speaks < REDIS ? b->size : 0;
  c->out = b->data;
  c->unsent = b->size;
  flush(l, c);
}

/* All replies of a batch are there: gets follow puts, puts follow gets; and
   the deletes of beanstalkd, in one piece, follow its gets. */
static inline void batch_done(load *l, conn *c, bool over) {
  if (c->reply != l->reply[c->getting]) l->failed = true;
  if (c->acks.size > 0 && !c->acking) {
    c->acking = true;
    c->left = l->depth;
    c->out = c->acks.data;
    c->unsent = c->acks.size;
    flush(l, c);
    return;
  }
  c->acks.size = 0;
  c->acking = false;
  if (c->getting) {
    l->pairs += (long)l->depth;
    c->pairs += (long)l->depth;
    if (over) {
      l->busy--;
      return;
    }
  }
  send_batch(l, c, !c->getting);
}

/* Pairs a second. Every batch is awaited at the end, so that the queue is as
   empty as before. NAN on failure. */
static inline double run_load(load *l, double seconds) {
  struct epoll_event events[256];
  double start = bench_now(), result = NAN;
  bool over = false;
  l->pairs = 0;
  l->busy = l->n;
  for (size_t i = 0; i < l->n && !l->failed; i++) {
    l->conns[i].pairs = 0;
    send_batch(l, &l->conns[i], false);
  }
  while (!l->failed && l->busy > 0) {
    int n = epoll_wait(l->ep, events, 256, 5000);
    double now = bench_now();
    if (n <= 0) l->failed = true;
    /* A slow one may take longer: a round for everybody, or four seconds. */
    if (!over && now >= start + seconds &&
        (l->pairs >= (long)(l->n * l->depth) || now >= start + 4)) {
      over = true;
      result = (double)l->pairs / (now - start);
    }
    for (int i = 0; i < n && !l->failed; i++) {
      conn *c = (conn *)events[i].data.ptr;
      if (c->unsent > 0) flush(l, c);
      if ((events[i].events & ~(uint32_t)EPOLLOUT) == 0) continue;
      if (!receive(l->p, c, MSG_DONTWAIT)) l->failed = true;
      if (c->left == 0 && !l->failed) batch_done(l, c, over);
    }
  }
  return l->failed ? NAN : result;
}

#endif
