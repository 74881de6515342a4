/* A client, and a server's bytes: instead of the handshake, or for each
   request a frame, or bytes without any. */
#include "peer.h"

static struct {
  pthread_t thread, serving[64];
  unsigned count; /* of `serving` */
  int listener;
  bool on, stop;
  pthread_mutex_t guard; /* of what follows, and of count */
  fuzz_input in;
  unsigned mode;
  char path[64];
} fuzz_hostile;

/* The next reply; false if there is none. */
TEST_FN bool fuzz_client_next(const unsigned char **p, size_t *n) {
  bool any;
  pthread_mutex_lock(&fuzz_hostile.guard);
  any = fuzz_left(&fuzz_hostile.in) > 0;
  if (any) *n = fuzz_chunk(&fuzz_hostile.in, p);
  pthread_mutex_unlock(&fuzz_hostile.guard);
  return any;
}

/* Serves one connection by what is left of the input. */
TEST_FN void *fuzz_client_serve(void *arg) {
  int fd = (int)(intptr_t)arg;
  unsigned char request[4096];
  const unsigned char *p;
  size_t n;
  if (fuzz_hostile.mode == 0) {
    if (fuzz_client_next(&p, &n)) fuzz_peer_write(fd, p, n);
  } else if (fuzz_peer_challenge(fd) && fuzz_peer_answer(fd)) {
    while (fuzz_peer_receive(fd, request, sizeof request) >= 0 &&
           fuzz_client_next(&p, &n))
      if (fuzz_hostile.mode == 1 ? !fuzz_peer_write(fd, p, n)
                                 : !fuzz_peer_send(fd, p, n))
        break;
  }
  close(fd);
  return NULL;
}

/* Without more input a connection is closed by its first request. */
TEST_FN void *fuzz_client_peer(void *arg) {
  for (;;) {
    int fd = accept(fuzz_hostile.listener, NULL, NULL);
    if (fd < 0 || LOAD(fuzz_hostile.stop)) {
      if (fd >= 0) close(fd);
      return arg;
    }
    pthread_mutex_lock(&fuzz_hostile.guard);
    if (fuzz_hostile.count == 64 ||
        pthread_create(&fuzz_hostile.serving[fuzz_hostile.count], NULL,
                       fuzz_client_serve, (void *)(intptr_t)fd) != 0)
      close(fd);
    else
      fuzz_hostile.count++;
    pthread_mutex_unlock(&fuzz_hostile.guard);
  }
}

/* What the client has left behind ends: it has closed all connections. */
TEST_FN void fuzz_client_join(void) {
  for (;;) {
    pthread_t t = fuzz_hostile.thread;
    unsigned n;
    pthread_mutex_lock(&fuzz_hostile.guard);
    n = fuzz_hostile.count;
    if (n > 0) t = fuzz_hostile.serving[--fuzz_hostile.count];
    pthread_mutex_unlock(&fuzz_hostile.guard);
    if (n == 0) return;
    pthread_join(t, NULL);
  }
}

TEST_FN void fuzz_client_begin(void) {
  struct sockaddr_un a;
  if (fuzz_hostile.on) return;
  snprintf(fuzz_hostile.path, sizeof fuzz_hostile.path, "/tmp/conc-hostile-%d",
           (int)getpid());
  memset(&a, 0, sizeof a);
  a.sun_family = AF_UNIX;
  strcpy(a.sun_path, fuzz_hostile.path);
  unlink(fuzz_hostile.path);
  fuzz_hostile.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(bind(fuzz_hostile.listener, (struct sockaddr *)(void *)&a, sizeof a) == 0);
  CHECK(listen(fuzz_hostile.listener, 50) == 0);
  fuzz_hostile.on = true;
  pthread_mutex_init(&fuzz_hostile.guard, NULL);
  CHECK(pthread_create(&fuzz_hostile.thread, NULL, fuzz_client_peer, NULL) == 0);
}

TEST_FN void fuzz_client_end(void) {
  STORE(fuzz_hostile.stop, true);
  shutdown(fuzz_hostile.listener, SHUT_RDWR);
  pthread_join(fuzz_hostile.thread, NULL);
  close(fuzz_hostile.listener);
  unlink(fuzz_hostile.path);
  fuzz_hostile.on = fuzz_hostile.stop = false;
}

TEST_FN void fuzz_client_use(conc_queue *q, unsigned ops) {
  conc_value *v = NULL;
  char buf[16];
  int i;
  for (i = 0; i < 3; i++, ops /= 4) {
    memset(buf, 'X', sizeof buf);
    switch (ops % 4) {
    case 0:
      if (conc_get_value(q, &v, 0.05) == 0) conc_value_free(v);
      break;
    case 1: conc_put(q, "abc", 3, 0.05); break;
    case 2: conc_qsize(q); break;
    default:
      CHECK(conc_get(q, buf, 8, 0.05) <= 8 && buf[8] == 'X');
    }
  }
}

TEST_FN void fuzz_client(const unsigned char *data, size_t size) {
  conc_manager c;
  conc_queue *q;
  unsigned ops;
  fuzz_client_begin();
  pthread_mutex_lock(&fuzz_hostile.guard);
  fuzz_hostile.in.p = data;
  fuzz_hostile.in.end = data + size;
  fuzz_hostile.mode = fuzz_byte(&fuzz_hostile.in) % 3;
  ops = fuzz_byte(&fuzz_hostile.in);
  pthread_mutex_unlock(&fuzz_hostile.guard);
  memset(&c, 0, sizeof c);
  c.address = fuzz_hostile.path;
  c.authkey = "k";
  c.handshake_timeout = 0.5;
  c.timeout = 0.2; /* of calls that have none, such as qsize */
  if (conc_manager_connect(&c, 0.5) == 0) {
    q = conc_manager_get(&c, "q");
    if (q != NULL) fuzz_client_use(q, ops);
    conc_manager_shutdown(&c);
  }
  fuzz_client_join();
}
