/* servers.h: servers that others have written, as a test starts and ends them
 * itself: Redis or Valkey, alone, with sentinels, or as a cluster; beanstalkd.
 * Each has a folder in /tmp of its own, and sockets in it, or a free port. It
 * dies with its test. A test is skipped where there is no such server.
 *   REDIS_SERVER=/opt/valkey/bin/valkey-server   another one of that kind */
#ifndef TEST_SERVERS_H
#define TEST_SERVERS_H
#include "child.h"
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* --- what Redis says ------------------------------------------------------ */

/* The size of the first answer, or request, of the n bytes; 0: it is not all
   there. What is malformed fails the test. */
TEST_FN size_t resp_size(const char *text, size_t n) {
  const char *end = (const char *)memchr(text, '\n', n);
  size_t at = end == NULL ? 0 : (size_t)(end - text) + 1, part;
  long count;
  if (at == 0) return 0;
  count = strtol(text + 1, NULL, 10);
  switch (*text) {
    case '+': case '-': case ':': return at;
    case '$':
      if (count >= 0) at += (size_t)count + 2;
      return at <= n ? at : 0;
    case '*':
      for (; count > 0; count--, at += part) {
        if (at >= n) return 0;
        part = resp_size(text + at, n - at);
        if (part == 0) return 0;
      }
      return at;
    default: TEST_FAIL("Redis does not say \"%.40s\"", text);
  }
}

/* Appends an answer as it is read by people: "(a 1 nil (b))". Returns what is
   behind it. */
TEST_FN const char *resp_text(const char *in, char *out, size_t size) {
  const long count = strtol(in + 1, NULL, 10);
  const char *line = strchr(in, '\r') + 2;
  size_t n = strlen(out);
  switch (*in) {
    case '-': case '+': case ':':
      in += *in != '-'; /* that stays */
      snprintf(out + n, size - n, "%.*s", (int)(line - in) - 2, in);
      return line;
    case '$':
      if (count >= 0) {
        snprintf(out + n, size - n, "%.*s", (int)count, line);
        return line + count + 2;
      }
      snprintf(out + n, size - n, "nil");
      return line;
    default:
      if (count < 0) {
        snprintf(out + n, size - n, "nil");
        return line;
      }
      snprintf(out + n, size - n, "(");
      for (long i = 0; i < count; i++) {
        n = strlen(out);
        if (i > 0) snprintf(out + n, size - n, " ");
        line = resp_text(line, out, size);
      }
      n = strlen(out);
      snprintf(out + n, size - n, ")");
      return line;
  }
}

/* --- a server ------------------------------------------------------------- */

typedef struct redis {
  pid_t pid;
  const char *program; /* that runs: redis-server, or its like */
  const char *kind;    /* "sentinel": it is one; or "" */
  int port;            /* 0: only the socket */
  char folder[48];
  char path[64];       /* of its socket */
  char address[96];    /* as a conc_manager has it */
} redis;

TEST_FN bool in_path(const char *program) {
  char command[200];
  snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
  return system(command) == 0;
}

/* The first that there is of these; NULL: none. */
TEST_FN const char *redis_program(void) {
  static const char *const all[] = {"redis-server", "valkey-server"};
  const char *asked = getenv("REDIS_SERVER");
  if (asked != NULL && *asked != 0) return asked;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (in_path(all[i])) return all[i];
  return NULL;
}

#define NEEDS_REDIS                                                           \
  do {                                                                        \
    if (redis_program() == NULL) SKIP("there is no redis-server");            \
  } while (0)

TEST_FN bool is_free(int port) {
  struct sockaddr_in a;
  int fd = socket(AF_INET, SOCK_STREAM, 0), rc;
  CHECK(fd >= 0);
  memset(&a, 0, sizeof a);
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons((uint16_t)port);
  rc = bind(fd, (struct sockaddr *)&a, sizeof a);
  close(fd);
  return rc == 0;
}

/* A port of loopback that nobody has at this moment, below those that systems
   give to programs that ask for any: so nobody is given it before the server
   has it, or while that is killed and started again. The one of a cluster's
   bus is 10,000 above it. */
TEST_FN int free_port(void) {
  enum { FIRST = 10000, MANY = 12000 };
  static unsigned next;
  int port;
  if (next == 0) next = (unsigned)getpid() * 61;
  for (unsigned tries = 0; tries < MANY; tries++) {
    port = FIRST + (int)(next++ % MANY);
    if (is_free(port) && is_free(port + 10000)) return port;
  }
  TEST_FAIL("no port is free");
}

/* A connection to it; below 0: nobody listens. */
TEST_FN int redis_reach(const redis *r) {
  struct sockaddr_un a;
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(fd >= 0);
  memset(&a, 0, sizeof a);
  a.sun_family = AF_UNIX;
  memcpy(a.sun_path, r->path, strlen(r->path) + 1);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
  close(fd);
  return -1;
}

/* Says a line, as redis-cli does; returns the answer as text, which is valid
   until the next one. "": there is nobody. */
TEST_FN const char *redis_vsay(const redis *r, const char *format,
                               va_list ap) {
  static char in[1 << 20], out[1 << 18];
  size_t n = 0;
  int fd = redis_reach(r);
  if (fd < 0) return "";
  n = (size_t)vsnprintf(in, sizeof in - 2, format, ap);
  memcpy(in + n, "\r\n", 2);
  CHECK_EQ(send(fd, in, n + 2, MSG_NOSIGNAL), n + 2);
  n = 0;
  do {
    ssize_t got = recv(fd, in + n, sizeof in - n - 1, 0);
    if (got <= 0) break; /* it has been killed */
    n += (size_t)got;
    in[n] = 0;
  } while (resp_size(in, n) == 0);
  close(fd);
  *out = 0;
  if (n > 0 && resp_size(in, n) > 0) resp_text(in, out, sizeof out);
  return out;
}

__attribute__((format(printf, 2, 3))) TEST_FN const char *
redis_say(const redis *r, const char *format, ...) {
  const char *answer;
  va_list ap;
  va_start(ap, format);
  answer = redis_vsay(r, format, ap);
  va_end(ap);
  return answer;
}

/* What it says must be that. */
#define REDIS_SAYS(want, ...) CHECK_STR(redis_say(__VA_ARGS__), want)

/* Waits until it says something that begins so. */
TEST_FN void redis_until(const redis *r, const char *want, const char *line) {
  const double end = test_now() + 20 * test_slow();
  const char *answer;
  while (answer = redis_say(r, "%s", line),
         strncmp(answer, want, strlen(want)) != 0) {
    if (test_now() > end)
      test_fail(r->folder, 0, "\"%s\" says \"%s\"", line, answer);
    usleep(5000);
  }
}

/* Starts it, the first time or again; it says something when it returns. */
TEST_FN void redis_run(redis *r) {
  char config[80], log[80];
  snprintf(config, sizeof config, "%s/conf", r->folder);
  snprintf(log, sizeof log, "%s/log", r->folder);
  unlink(r->path);
  r->pid = fork();
  CHECK(r->pid >= 0);
  if (r->pid == 0) {
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    dup2(fd, 1), dup2(fd, 2);
    for (fd = 3; fd < 1024; fd++) close(fd);
    if (*r->kind == 0)
      execlp(r->program, r->program, config, (char *)NULL);
    else
      execlp(r->program, r->program, config, "--sentinel", (char *)NULL);
    _exit(127);
  }
  redis_until(r, "PONG", "PING");
}

TEST_FN void redis_kill(redis *r) {
  CHECK_EQ(kill(r->pid, SIGKILL), 0);
  reap(r->pid, -SIGKILL);
  r->pid = 0;
}

TEST_FN void redis_end(redis *r) {
  char command[80];
  if (r->pid > 0) redis_kill(r);
  snprintf(command, sizeof command, "rm -rf '%s'", r->folder);
  CHECK_EQ(system(command), 0);
}

/* Makes its folder, with the lines of its configuration. */
__attribute__((format(printf, 3, 4))) TEST_FN void
redis_make(redis *r, const char *kind, const char *format, ...) {
  static int count;
  char name[80];
  FILE *file;
  va_list ap;
  memset(r, 0, sizeof *r);
  r->kind = kind;
  r->program = redis_program();
  snprintf(r->folder, sizeof r->folder, "/tmp/conc_redis.%d.%d",
           (int)getpid(), count++);
  CHECK_EQ(mkdir(r->folder, 0700), 0);
  snprintf(r->path, sizeof r->path, "%s/s", r->folder);
  snprintf(r->address, sizeof r->address, "redis+unix://%s", r->path);
  snprintf(name, sizeof name, "%s/conf", r->folder);
  file = fopen(name, "w");
  CHECK(file != NULL);
  va_start(ap, format);
  vfprintf(file, format, ap);
  va_end(ap);
  fprintf(file, "\ndir %s\nunixsocket %s\n", r->folder, r->path);
  CHECK_EQ(fclose(file), 0);
}

/* A server that keeps nothing on a disk, at its socket alone, with further
   lines of its configuration. */
TEST_FN void redis_begin(redis *r, const char *lines) {
  redis_make(r, "", "port 0\nsave \"\"\n%s\n", lines);
  redis_run(r);
}

/* One that has a port, too, and is addressed by that. */
TEST_FN void redis_begin_port(redis *r, const char *lines) {
  const int port = free_port();
  redis_make(r, "",
             "port %d\nbind 127.0.0.1\nsave \"\"\n"
             "repl-diskless-sync-delay 0\n%s\n",
             port, lines);
  r->port = port;
  snprintf(r->address, sizeof r->address, "redis://127.0.0.1:%d", port);
  redis_run(r);
}

/* --- several --------------------------------------------------------------
 */

/* A master, a replica of it, and sentinels that watch both. */
enum { SENTINELS = 3 };
typedef struct sentinels {
  redis master, replica, watch[SENTINELS];
  char address[160]; /* as a conc_manager has it */
} sentinels;

TEST_FN void sentinels_begin(sentinels *s, const char *lines) {
  const double end = test_now() + 20 * test_slow();
  char more[200];
  int n;
  redis_begin_port(&s->master, lines);
  snprintf(more, sizeof more, "replicaof 127.0.0.1 %d\n%s", s->master.port,
           lines);
  redis_begin_port(&s->replica, more);
  n = snprintf(s->address, sizeof s->address, "redis://");
  for (int i = 0; i < SENTINELS; i++) {
    redis *w = &s->watch[i];
    const int port = free_port();
    redis_make(w, "sentinel",
               "port %d\nbind 127.0.0.1\nprotected-mode no\n"
               "sentinel monitor queues 127.0.0.1 %d 2\n"
               "sentinel down-after-milliseconds queues 300\n"
               "sentinel failover-timeout queues 3000\n",
               port, s->master.port);
    w->port = port;
    n += snprintf(s->address + n, sizeof s->address - (size_t)n,
                  "%s127.0.0.1:%d", i > 0 ? "," : "", port);
    redis_run(w);
  }
  snprintf(s->address + n, sizeof s->address - (size_t)n,
           "/?sentinel=queues");
  /* Only what has its replica can be promoted, and only by a majority. */
  redis_until(&s->replica, "(slave 127.0.0.1", "ROLE");
  for (int i = 0; i < SENTINELS; i++)
    for (;;) {
      const char *told = redis_say(&s->watch[i], "SENTINEL MASTER queues");
      if (strstr(told, "num-slaves 1") != NULL &&
          strstr(told, "num-other-sentinels 2") != NULL)
        break;
      CHECK(test_now() < end);
      usleep(20000);
    }
}

TEST_FN void sentinels_end(sentinels *s) {
  for (int i = 0; i < SENTINELS; i++) redis_end(&s->watch[i]);
  redis_end(&s->replica);
  redis_end(&s->master);
}

/* Three nodes, which have a third of the slots each. */
enum { NODES = 3, SLOTS = 16384 };
typedef struct cluster {
  redis node[NODES];
  char id[NODES][48];
  char address[160];
} cluster;

TEST_FN void cluster_begin(cluster *c) {
  int n = snprintf(c->address, sizeof c->address, "redis://");
  for (int i = 0; i < NODES; i++) {
    redis_begin_port(&c->node[i], "cluster-enabled yes\n"
                                  "cluster-node-timeout 2000\n");
    n += snprintf(c->address + n, sizeof c->address - (size_t)n,
                  "%s127.0.0.1:%d", i > 0 ? "," : "", c->node[i].port);
    snprintf(c->id[i], sizeof c->id[i], "%s",
             redis_say(&c->node[i], "CLUSTER MYID"));
    REDIS_SAYS("OK", &c->node[i], "CLUSTER ADDSLOTSRANGE %d %d",
               SLOTS * i / NODES, SLOTS * (i + 1) / NODES - 1);
    REDIS_SAYS("OK", &c->node[i], "CLUSTER SET-CONFIG-EPOCH %d", i + 1);
  }
  snprintf(c->address + n, sizeof c->address - (size_t)n, "/?cluster");
  for (int i = 1; i < NODES; i++)
    REDIS_SAYS("OK", &c->node[0], "CLUSTER MEET 127.0.0.1 %d",
               c->node[i].port);
  for (int i = 0; i < NODES; i++)
    redis_until(&c->node[i], "cluster_state:ok", "CLUSTER INFO");
}

TEST_FN void cluster_end(cluster *c) {
  for (int i = 0; i < NODES; i++) redis_end(&c->node[i]);
}

/* The node that has a slot now. */
TEST_FN int cluster_node_of(const cluster *c, int slot) {
  for (int i = 0; i < NODES; i++) {
    const char *at = redis_say(&c->node[i], "CLUSTER NODES");
    /* "ID ADDRESS myself,master - 0 0 1 connected 0-5460 7000 [7-<-ID]\n" */
    at = strstr(at, "myself");
    for (int words = 0; words < 6 && at != NULL; words++)
      at = strchr(at, ' ') != NULL ? strchr(at, ' ') + 1 : NULL;
    while (at != NULL && *at >= '0' && *at <= '9') {
      char *next;
      const long first = strtol(at, &next, 10);
      const long last = *next == '-' ? strtol(next + 1, &next, 10) : first;
      if (slot >= first && slot <= last) return i;
      at = *next == ' ' ? next + 1 : NULL;
    }
  }
  TEST_FAIL("no node has slot %d", slot);
}

/* Moves a slot with all its keys, one key at a time, while others use it. */
TEST_FN void cluster_move(cluster *c, int slot, int to) {
  const int from = cluster_node_of(c, slot);
  CHECK(from != to);
  REDIS_SAYS("OK", &c->node[to], "CLUSTER SETSLOT %d IMPORTING %s", slot,
             c->id[from]);
  REDIS_SAYS("OK", &c->node[from], "CLUSTER SETSLOT %d MIGRATING %s", slot,
             c->id[to]);
  for (;;) {
    char key[300];
    const char *keys =
        redis_say(&c->node[from], "CLUSTER GETKEYSINSLOT %d 1", slot);
    size_t n = strlen(keys);
    const char *said;
    if (n <= 2) break;
    snprintf(key, sizeof key, "%.*s", (int)n - 2, keys + 1);
    said = redis_say(&c->node[from], "MIGRATE 127.0.0.1 %d \"%s\" 0 5000",
                     c->node[to].port, key);
    if (strcmp(said, "OK") != 0 && strcmp(said, "NOKEY") != 0)
      TEST_FAIL("MIGRATE says %s", said);
    usleep(2000); /* a while in which its keys are here and there */
  }
  for (int i = 0; i < NODES; i++)
    REDIS_SAYS("OK", &c->node[(to + i) % NODES], "CLUSTER SETSLOT %d NODE %s",
               slot, c->id[to]);
}

#endif
