/* netns.c: a server, and clients that must not lose or double a message, for
 * networks that fail. netns.sh runs it in network namespaces.
 *
 *   netns server ADDRESS AUTHKEY             serves until its input ends
 *   netns client ADDRESS AUTHKEY FIRST COUNT LOG
 *   netns wire SPACE DEVICE SPACE DEVICE DELAY LOSS
 *
 * A wire joins two network namespaces: what goes into a device of one comes
 * out of that of the other, DELAY seconds later; or, with the probability LOSS,
 * never. SIGUSR1 cuts the wire, and SIGUSR2 mends it.
 *
 * A client puts the numbers FIRST to FIRST + COUNT - 1, and gets until nothing
 * has come for a while. What was put, and what was got, is written to LOG, a
 * line each: "P 7", "G 7". Every call must return within its timeout and
 * SLACK, or the line is "L seconds". */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#endif

#include "../../conc.h"

#define TASKS 4       /* that put, and as many that get */
#define TIMEOUT 20.0  /* of a call */
#define SLACK 0.6
#define QUIET 25.0    /* seconds without a message: it is the end */

static conc_queue *queue;
static long first, count;
static int log_fd;
static long next_number; /* the next that is put */
static conc_lock lock;

/* One write, so that lines of a client that is killed are whole. */
static void say(const char *what, double n) {
  char line[64];
  int size = snprintf(line, sizeof line, "%s %.10g\n", what, n);
  if (write(log_fd, line, (size_t)size) != size) _exit(3);
}

static void in_time(double since) {
  double took = conc_now() - since;
  if (took > TIMEOUT + SLACK) say("L", took);
}

static void *put_some(void *arg) {
  for (;;) {
    long n = -1;
    int rc;
    double t;
    CONC_WITH(&lock) if (next_number < first + count) n = next_number++;
    if (n < 0) return arg;
    do {
      t = conc_now();
      rc = conc_put(queue, &n, sizeof n, TIMEOUT);
      in_time(t);
    } while (rc == -ETIMEDOUT || rc == -EPIPE || rc == -ECONNREFUSED ||
             rc == -EHOSTUNREACH || rc == -ENETUNREACH);
    if (rc == 0) say("P", (double)n);
    else say("F", rc); /* it is not known, or worse */
  }
}

static void *get_some(void *arg) {
  double last = conc_now();
  while (conc_now() - last < QUIET) {
    double t = conc_now();
    long n;
    ssize_t size = conc_get(queue, &n, sizeof n, 2);
    if (conc_now() - t > 2 + SLACK) say("L", conc_now() - t);
    if (size != (ssize_t)sizeof n) continue;
    say("G", (double)n);
    last = conc_now();
  }
  return arg;
}

static int be_client(char **argv) {
  conc_manager m;
  conc_task tasks[2 * TASKS];
  int i;
  memset(&m, 0, sizeof m);
  memset(tasks, 0, sizeof tasks);
  m.address = argv[2];
  m.authkey = argv[3];
  m.reconnect = 60;
  /* The server gives a connection up whose client has not acknowledged a reply
     for so long, and a network that is cut does not tell the client. It asks
     whether the server is there, and so has time to make its call again. */
  m.keepalive = 10;
  m.handshake_timeout = TIMEOUT;
  first = next_number = atol(argv[4]);
  count = atol(argv[5]);
  log_fd = open(argv[6], O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (log_fd < 0 || conc_manager_connect(&m, 60) != 0) return 1;
  queue = conc_manager_get(&m, "q");
  if (queue == NULL) return 2;
  for (i = 0; i < 2 * TASKS; i++) {
    tasks[i].target = i < TASKS ? put_some : get_some;
    if (conc_thread_start(&tasks[i]) != 0) return 2;
  }
  for (i = 0; i < 2 * TASKS; i++) conc_join(&tasks[i], CONC_FOREVER);
  conc_manager_shutdown(&m);
  return 0;
}

static int be_server(char **argv) {
  conc_manager m;
  conc_queue_opts bounded;
  char c;
  memset(&m, 0, sizeof m);
  memset(&bounded, 0, sizeof bounded);
  bounded.capacity = 200;
  m.address = argv[2];
  m.authkey = argv[3];
  /* It finds out soon that a machine has vanished, though it has sent what was
     never acknowledged: then the messages that it had are the others'. */
  m.keepalive = 10;
  queue = conc_queue_new(&bounded);
  if (queue == NULL || conc_manager_register_queue(&m, "q", queue) != 0 ||
      conc_manager_start(&m) != 0)
    return 1;
  puts("ready"), fflush(stdout);
  while (read(0, &c, 1) > 0) {
  }
  printf("left %ld\n", (long)conc_qsize(queue));
  conc_manager_shutdown(&m);
  conc_queue_free(queue);
  return 0;
}

#ifdef __linux__
static volatile sig_atomic_t is_cut;
static void cut(int number) { is_cut = number == SIGUSR1; }

/* A device for packets in a network namespace. */
static int open_device(const char *space, const char *name) {
  struct ifreq r;
  char path[256];
  int fd, ns;
  snprintf(path, sizeof path, "/var/run/netns/%s", space);
  ns = open(path, O_RDONLY);
  if (ns < 0 || setns(ns, CLONE_NEWNET) != 0) return -1;
  close(ns);
  fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  memset(&r, 0, sizeof r);
  snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
  r.ifr_flags = IFF_TUN | IFF_NO_PI;
  return fd >= 0 && ioctl(fd, TUNSETIFF, &r) == 0 ? fd : -1;
}

/* Packets that are on their way, the oldest first. */
enum { PACKETS = 4096, PACKET = 2048 };
typedef struct packet {
  double due;
  ssize_t size;
  char data[PACKET];
} packet;
typedef struct direction {
  packet packets[PACKETS];
  unsigned put, got;
} direction;
static direction ways[2];

static void take_in(direction *d, int fd, double delay, double loss) {
  packet *p = &d->packets[d->put % PACKETS];
  while ((p->size = read(fd, p->data, PACKET)) > 0) {
    if (is_cut || drand48() < loss || d->put - d->got == PACKETS - 1) continue;
    p->due = conc_now() + delay;
    p = &d->packets[++d->put % PACKETS];
  }
}

static void hand_out(direction *d, int fd) {
  while (d->got != d->put) {
    packet *p = &d->packets[d->got % PACKETS];
    if (p->due > conc_now()) break;
    if (!is_cut && write(fd, p->data, (size_t)p->size) < 0) {
      /* So it is lost. */
    }
    d->got++;
  }
}

static int be_wire(char **argv) {
  struct pollfd p[2];
  double delay = atof(argv[6]), loss = atof(argv[7]);
  int i;
  for (i = 0; i < 2; i++) {
    p[i].fd = open_device(argv[2 + 2 * i], argv[3 + 2 * i]);
    p[i].events = POLLIN;
    if (p[i].fd < 0) return 1;
  }
  signal(SIGUSR1, cut), signal(SIGUSR2, cut);
  puts("ready"), fflush(stdout);
  for (;;) {
    poll(p, 2, 1);
    for (i = 0; i < 2; i++) {
      take_in(&ways[i], p[i].fd, delay, loss);
      hand_out(&ways[i], p[!i].fd);
    }
  }
}
#else
static int be_wire(char **argv) { return argv == NULL; }
#endif

int main(int argc, char **argv) {
  if (argc == 8 && strcmp(argv[1], "wire") == 0) return be_wire(argv);
  if (argc == 4 && strcmp(argv[1], "server") == 0) return be_server(argv);
  if (argc == 7 && strcmp(argv[1], "client") == 0) return be_client(argv);
  return 2;
}
