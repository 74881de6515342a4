/* What it costs that work survives: a message is put, got and done.
 *
 *   leases [--quick] [FILTER]       only rows whose name contains FILTER
 *
 * A client puts a message, gets one under a lease, and says that it is done,
 * one after the other: three answers a round. Peer, in the same run, over TCP
 * as well: beanstalkd, without a log and with one (-b): -f0 waits for the disk
 * at each, -f1000 does not for a second, -F never does. What lies in the disk
 * lies in this directory. */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>

enum { CLIENTS_MOST = 16 };
static double seconds = 0.5; /* of each measurement */
static char folder[80], path[100];
static const char text[200] = "a message";

/* What is measured. */
static int clients;
static const char *journal; /* NULL: none */
static double journal_sync;
static const char *log_how; /* of beanstalkd; NULL: no log */
static char address[64];
static int port;

static double end_at;
static long rounds[CLIENTS_MOST];
static bool failed;

static void clean(void) {
  char command[120];
  unlink(path);
  snprintf(command, sizeof command, "rm -rf %s/b", folder);
  if (system(command) != 0) failed = true;
}

/* --- ours --- */

static conc_queue *make_queue(void) {
  conc_queue_opts o = {.lease = 60};
  o.journal = journal;
  o.journal_sync = journal_sync;
  return conc_queue_new(&o);
}

static int round_of(conc_queue *q) {
  conc_lease lease = {0};
  char got[sizeof text];
  int rc = conc_put(q, text, sizeof text, 10);
  if (rc == 0) rc = (int)conc_get_leased(q, &lease, got, sizeof got, 10);
  return rc < 0 ? rc : conc_lease_done(&lease);
}

static conc_queue *near; /* NULL: the queue is far */
static void *our_client(void *arg) {
  long *n = (long *)arg;
  conc_manager m = {.address = address, .authkey = "abc"};
  conc_queue *q = near;
  if (q == NULL && conc_manager_connect(&m, 10) == 0)
    q = conc_manager_get(&m, "q");
  while (q != NULL && conc_now() < end_at && round_of(q) == 0) ++*n;
  if (q == NULL || conc_now() < end_at) failed = true;
  if (near == NULL) conc_manager_shutdown(&m);
  return NULL;
}

/* Rounds a second, of all clients. */
static double run_clients(conc_fn *fn) {
  conc_task tasks[CLIENTS_MOST];
  double began = conc_now();
  long sum = 0;
  memset(tasks, 0, sizeof tasks);
  end_at = began + seconds;
  for (int i = 0; i < clients; i++) {
    tasks[i].target = fn;
    tasks[i].arg = &rounds[i];
    if (conc_thread_start(&tasks[i]) != 0) return NAN;
  }
  for (int i = 0; i < clients; i++) conc_join(&tasks[i], CONC_FOREVER);
  for (int i = 0; i < clients; i++) sum += rounds[i];
  return failed ? NAN : (double)sum / (conc_now() - began);
}

static double ours_near(void *arg) {
  double value;
  (void)arg;
  clean();
  near = make_queue();
  if (near == NULL) return NAN;
  value = run_clients(our_client);
  conc_queue_free(near);
  clean();
  return value;
}

static double ours_far(void *arg) {
  double value;
  int ends[2];
  pid_t pid;
  (void)arg;
  clean();
  if (pipe(ends) != 0) return NAN;
  pid = bench_fork();
  if (pid == 0) {
    conc_manager m = {.address = "127.0.0.1:0", .authkey = "abc"};
    conc_queue *q = make_queue();
    const char *at;
    if (q == NULL || conc_manager_register_queue(&m, "q", q) != 0 ||
        conc_manager_start(&m) != 0)
      _exit(1);
    at = conc_manager_address(&m);
    if (write(ends[1], at, strlen(at) + 1) < 1) _exit(1);
    for (;;) pause();
  }
  close(ends[1]);
  if (read(ends[0], address, sizeof address) < 1) return NAN;
  value = run_clients(our_client);
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  clean();
  return value;
}

/* --- beanstalkd --- */

static int connect_to_port(void) {
  struct sockaddr_in a = {.sin_family = AF_INET};
  int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  a.sin_port = htons((uint16_t)port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) return close(fd), -1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return fd;
}

/* Sends a command and reads the answer: a line, and `more` bytes if it says
   RESERVED. Whether it begins with `want`. */
static bool ask(int fd, const char *command, size_t size, const char *want,
                size_t more, char *answer, size_t room) {
  size_t n = 0, whole = 0;
  if (write(fd, command, size) != (ssize_t)size) return false;
  while (whole == 0 || n < whole) {
    ssize_t k = read(fd, answer + n, room - n - 1);
    char *line;
    if (k <= 0) return false;
    n += (size_t)k;
    answer[n] = 0;
    line = strstr(answer, "\r\n");
    if (line != NULL && whole == 0)
      whole = (size_t)(line - answer) + 2 + more;
  }
  return strncmp(answer, want, strlen(want)) == 0;
}

static void *beanstalk_client(void *arg) {
  long *n = (long *)arg;
  int fd = connect_to_port();
  char put[sizeof text + 64], command[64], answer[1024];
  size_t head = (size_t)snprintf(put, sizeof put, "put 0 0 60 %zu\r\n",
                                 sizeof text);
  unsigned long long id;
  memcpy(put + head, text, sizeof text);
  memcpy(put + head + sizeof text, "\r\n", 2);
  while (fd >= 0 && conc_now() < end_at) {
    if (!ask(fd, put, head + sizeof text + 2, "INSERTED", 0, answer,
             sizeof answer) ||
        !ask(fd, "reserve\r\n", 9, "RESERVED", sizeof text + 2, answer,
             sizeof answer) ||
        sscanf(answer, "RESERVED %llu", &id) != 1)
      break;
    snprintf(command, sizeof command, "delete %llu\r\n", id);
    if (!ask(fd, command, strlen(command), "DELETED", 0, answer,
             sizeof answer))
      break;
    ++*n;
  }
  if (conc_now() < end_at) failed = true;
  if (fd >= 0) close(fd);
  return NULL;
}

static double beanstalkd(void *arg) {
  char in[100], number[16];
  double value = NAN;
  pid_t pid;
  int fd = -1;
  (void)arg;
  clean();
  snprintf(in, sizeof in, "%s/b", folder);
  mkdir(in, 0700);
  port = 20000 + (int)getpid() % 12000;
  snprintf(number, sizeof number, "%d", port);
  pid = bench_fork();
  if (pid == 0) {
    if (log_how == NULL)
      execlp("beanstalkd", "beanstalkd", "-l", "127.0.0.1", "-p", number,
             (char *)NULL);
    else
      execlp("beanstalkd", "beanstalkd", "-l", "127.0.0.1", "-p", number, "-b",
             in, log_how, (char *)NULL);
    _exit(127);
  }
  for (int i = 0; i < 200 && fd < 0 && waitpid(pid, NULL, WNOHANG) == 0; i++) {
    usleep(10000);
    fd = connect_to_port();
  }
  if (fd >= 0) {
    close(fd);
    value = run_clients(beanstalk_client);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
  }
  clean();
  return value;
}

/* --- rows --- */

static double median_of(double (*measure)(void *)) {
  double runs[3];
  for (int i = 0; i < 3; i++) runs[i] = bench_in_child(measure, NULL);
  return bench_median(runs, 3);
}

static void rows(const char *how, bool kept, double sync, const char *theirs) {
  char name[80];
  journal = kept ? path : NULL;
  journal_sync = sync;
  log_how = theirs;
  for (clients = 1; clients <= CLIENTS_MOST; clients *= CLIENTS_MOST) {
    double value, peer;
    snprintf(name, sizeof name, "%s: %d client%s", how, clients,
             clients > 1 ? "s" : "");
    if (strstr(name, bench_filter) == NULL) continue;
    peer = median_of(beanstalkd);
    value = median_of(ours_far);
    bench_row(name, value, "rounds/s");
    bench_of(value, peer, "beanstalkd");
    bench_end();
    snprintf(name, sizeof name, "%s: %d thread%s, no network", how, clients,
             clients > 1 ? "s" : "");
    bench_row(name, median_of(ours_near), "rounds/s");
    bench_end();
  }
}

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--quick") == 0) seconds = 0.1;
    else bench_filter = argv[i];
  snprintf(folder, sizeof folder, "conc-bench-leases-%d", (int)getpid());
  snprintf(path, sizeof path, "%s/journal", folder);
  if (mkdir(folder, 0700) != 0) return 1;
  printf("leases, in this directory; a round is a put, a get and a done\n");
  rows("no journal", false, 0, NULL);
  rows("journal, always", true, 0, "-f0");
  rows("journal, every second", true, 1, "-f1000");
  rows("journal, never", true, CONC_FOREVER, "-F");
  rmdir(folder);
  return 0;
}
