/* network.h: a network between a client and a server, which fails when it is
 * told to. After inside.h. */
#ifndef TEST_NETWORK_H
#define TEST_NETWORK_H
#include "served.h"
#include "tasks.h"

#include <sys/socket.h>

/* One end listens, and what comes is passed on to a server. Both are unix
   sockets: a process does not answer its own challenge that comes over TCP
   from somewhere else. */
typedef struct network {
  conc_task task;
  int listener;
  char address[136], server[128];
  int fault;  /* FLOWS, or what is to happen next; then it is CUT */
  int passes; /* so often bytes come from the server before LOSE_REPLY */
  int holds;  /* the server does not hear of the client's end */
  int held;   /* its connection, then */
  int links;  /* connections, ever */
} network;
enum {
  FLOWS,
  LOSE_REPLY,   /* the next bytes from the server are lost, with the client */
  LOSE_REQUEST, /* so are the next ones from the client */
  LOSE_NOW,     /* all clients are cut off */
  SILENCE,      /* the next bytes from the server are lost, with its end */
  SILENT,       /* and that client hears nothing of it, as long as this lasts */
  HOLD_REPLIES, /* what the server sends is on its way, as long as it lasts */
  CUT           /* a client that connects is turned away */
};

/* Passes on what comes from one of two, until either has gone. */
TEST_FN void pass_on(network *n, int client, int server) {
  char buf[65536];
  struct pollfd p[2];
  memset(p, 0, sizeof p);
  p[0].fd = client;
  p[1].fd = server;
  p[0].events = p[1].events = POLLIN;
  for (;;) {
    int from;
    ssize_t got;
    p[1].events = LOAD(n->fault) == HOLD_REPLIES ? 0 : POLLIN;
    if (poll(p, 2, 5) < 0 && errno != EINTR) return;
    if (conc_sleep(0) != 0) return;
    /* A client that has gone by itself is not the one that is meant. */
    if (LOAD(n->fault) == LOSE_NOW &&
        recv(client, buf, 1, MSG_PEEK | MSG_DONTWAIT) != 0) {
      STORE(n->fault, CUT);
      return;
    }
    for (from = 0; from < 2; from++) {
      if (!(p[from].revents & (POLLIN | POLLHUP | POLLERR))) continue;
      if (from == 1 && LOAD(n->fault) == HOLD_REPLIES) continue;
      got = recv(p[from].fd, buf, sizeof buf, MSG_DONTWAIT);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (got <= 0) return;
      if (from == 1 && LOAD(n->fault) == SILENCE) {
        STORE(n->fault, SILENT);
        shutdown(server, SHUT_RDWR);
        while (LOAD(n->fault) == SILENT && conc_sleep(0.002) == 0) {
        }
        return;
      }
      if (from == 1 && LOAD(n->fault) == LOSE_REPLY && LOAD(n->passes) > 0) {
        ADD_FETCH(n->passes, -1);
      } else if (LOAD(n->fault) == (from == 1 ? LOSE_REPLY : LOSE_REQUEST)) {
        STORE(n->fault, CUT);
        return;
      }
      for (ssize_t at = 0, sent; at < got; at += sent) {
        sent = send(p[!from].fd, buf + at, (size_t)(got - at), MSG_NOSIGNAL);
        if (sent <= 0) return;
      }
    }
  }
}

typedef struct link_of {
  network *net;
  int client;
} link_of;

TEST_FN void *link_main(void *arg) {
  link_of *l = (link_of *)arg;
  network *n = l->net;
  int server = LOAD(n->fault) == CUT ? -1 : conc_connect(n->server, 5);
  if (server >= 0) {
    fcntl(server, F_SETFL, 0);
    fcntl(l->client, F_SETFL, 0);
    pass_on(n, l->client, server);
    if (LOAD(n->holds) && LOAD(n->fault) == CUT && LOAD(n->held) < 0)
      STORE(n->held, server);
    else
      conc_close(server);
  }
  conc_close(l->client);
  free(l);
  return NULL;
}

TEST_FN void *network_main(void *arg) {
  network *n = (network *)arg;
  conc_task links[64];
  int count = 0;
  for (;;) {
    link_of *l;
    int fd = conc_accept(n->listener, CONC_FOREVER);
    if (fd == -ECANCELED) break;
    if (fd < 0) continue;
    CHECK(count < 64);
    ADD_FETCH(n->links, 1);
    l = (link_of *)malloc(sizeof *l);
    l->net = n;
    l->client = fd;
    start(conc_thread_start, &links[count++], link_main, l);
  }
  while (count > 0) {
    conc_cancel(&links[--count]);
    conc_join(&links[count], CONC_FOREVER);
  }
  return NULL;
}

TEST_FN void network_begin(network *n, const served *s) {
  memset(n, 0, sizeof *n);
  n->held = -1;
  snprintf(n->server, sizeof n->server, "%s",
           conc_manager_address(&s->server));
  snprintf(n->address, sizeof n->address, "%s.n", n->server);
  n->listener = conc_listen(n->address);
  CHECK(n->listener >= 0);
  start(conc_thread_start, &n->task, network_main, n);
}

TEST_FN void network_end(network *n) {
  conc_cancel(&n->task);
  CHECK_EQ(conc_join(&n->task, CONC_FOREVER), -ECANCELED);
  conc_close(n->listener);
  unlink(n->address);
  if (n->held >= 0) conc_close(n->held);
}

/* Until the test ends, in the order in which they were asked for. */
TEST_FN const char *socket_path(void) {
  static char path[64];
  static int count;
  snprintf(path, sizeof path, "/tmp/conc_network.%d.%d", (int)getpid(),
           count++);
  return path;
}
#endif
