/* netns.c: a server, and clients that must not lose or double a message, for
 * networks that fail. netns.sh runs it in network namespaces.
 *
 *   netns server ADDRESS AUTHKEY             serves until its input ends
 *   netns client ADDRESS AUTHKEY FIRST COUNT LOG TIMEOUT
 *   netns wire SPACE DEVICE SPACE DEVICE DELAY LOSS
 *
 * A wire joins two network namespaces: what goes into a device of one comes
 * out of that of the other, DELAY seconds later; or, with the probability LOSS,
 * never. SIGUSR1 cuts the wire, and SIGUSR2 mends it.
 *
 * A client puts the numbers FIRST to FIRST + COUNT - 1, and gets until nothing
 * has come for a while. What was put, and what was got, is written to LOG, a
 * line each: "P 7", "G 7". Each put may last TIMEOUT seconds. Every call must
 * return within its timeout and SLACK, or there is a line "L seconds"; the
 * most that one has lasted longer is in "M seconds". What a call fails with is
 * in "E error", of a put, or "e error", of a get; and "F error" is of a put of
 * which it is not known what came of it. */
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

#define TASKS 4     /* that put, and as many that get */
/* Seconds that a call may last beyond its timeout: a tenth of one, a trip, and
   what a busy machine needs: NETNS_SLACK, or 0.3. */
#define SLACK (0.1 + 0.02 + busy)
#define GET_TIMEOUT 2.0
#define KEEPALIVE 10.0


static conc_queue *queue;
static long first, count;
static int log_fd;
static long next_number; /* the next that is put */
static double timeout;   /* of a put */
static double busy = 0.3;
static double longest;   /* seconds that a call has lasted beyond its timeout */
static conc_lock lock;

/* One write, so that lines of a client that is killed are whole. */
static void say(const char *what, double n) {
  char line[64];
  int size = snprintf(line, sizeof line, "%s %.10g\n", what, n);
  if (write(log_fd, line, (size_t)size) != size) _exit(3);
}

static void in_time(double since, double limit) {
  double over = conc_now() - since - limit;
  if (over > SLACK) say("L", over);
  CONC_WITH(&lock) if (over > longest) longest = over;
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
      rc = conc_put(queue, &n, sizeof n, timeout);
      in_time(t, timeout);
      if (rc != 0) say("E", rc);
    } while (rc == -ETIMEDOUT || rc == -EPIPE || rc == -ECONNREFUSED ||
             rc == -EHOSTUNREACH || rc == -ENETUNREACH);
    if (rc == 0) say("P", (double)n);
    else say("F", rc); /* it is not known, or worse */
  }
}

static void *get_some(void *arg) {
  double last = conc_now();
  /* What the vanished one has had comes back later than anything else. */
  while (conc_now() - last < timeout + KEEPALIVE + 10) {
    double t = conc_now();
    long n;
    ssize_t size = conc_get(queue, &n, sizeof n, GET_TIMEOUT);
    in_time(t, GET_TIMEOUT);
    if (size < 0 && size != -ETIMEDOUT) say("e", (double)size);
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
  timeout = atof(argv[7]);
  if (getenv("NETNS_SLACK")) busy = atof(getenv("NETNS_SLACK"));
  m.reconnect = timeout;
  /* The server gives a connection up whose client has not acknowledged a reply
     for so long, and a network that is cut does not tell the client. It asks
     whether the server is there, and so has time to make its call again. */
  m.keepalive = KEEPALIVE;
  m.handshake_timeout = timeout;
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
  say("M", longest);
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
  m.keepalive = KEEPALIVE;
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
  if (argc == 8 && strcmp(argv[1], "client") == 0) return be_client(argv);
  return 2;
}
