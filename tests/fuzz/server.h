/* A server, and a client's bytes: in place of the handshake, behind it, or as
   frames behind it; alone, or with an honest client beside it. Afterwards the
   server serves as before. */
#include "peer.h"

static conc_manager fuzz_server_manager;
static conc_queue *fuzz_server_queue;
static char fuzz_server_path[64];

TEST_FN void fuzz_server_begin(void) {
  static conc_manager none;
  if (fuzz_server_queue != NULL) return;
  snprintf(fuzz_server_path, sizeof fuzz_server_path, "/tmp/conc-fuzz-%d",
           (int)getpid());
  fuzz_server_manager = none;
  fuzz_server_manager.address = fuzz_server_path;
  fuzz_server_manager.authkey = "k";
  fuzz_server_manager.max_message = 1 << 20;
  fuzz_server_queue = conc_queue_new(NULL);
  CHECK(conc_manager_register_queue(&fuzz_server_manager, "q",
                                    fuzz_server_queue) == 0);
  CHECK(conc_manager_start(&fuzz_server_manager) == 0);
}

TEST_FN void fuzz_server_end(void) {
  conc_manager_shutdown(&fuzz_server_manager);
  conc_queue_free(fuzz_server_queue);
  fuzz_server_queue = NULL;
}

TEST_FN int fuzz_server_connect(void) {
  struct sockaddr_un a;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  memset(&a, 0, sizeof a);
  a.sun_family = AF_UNIX;
  strcpy(a.sun_path, fuzz_server_path);
  if (connect(fd, (struct sockaddr *)(void *)&a, sizeof a) != 0) {
    /* The input before was a request to shut down: it begins anew. */
    fuzz_server_end();
    fuzz_server_begin();
    CHECK(connect(fd, (struct sockaddr *)(void *)&a, sizeof a) == 0);
  }
  return fd;
}

/* An honest client, from time to time. */
TEST_FN void fuzz_server_ask(void) {
  conc_manager c;
  conc_queue *q;
  char buf[8];
  memset(&c, 0, sizeof c);
  c.address = fuzz_server_path;
  c.authkey = "k";
  if (conc_manager_connect(&c, 3) != 0) {
    fuzz_server_end();
    fuzz_server_begin();
    CHECK(conc_manager_connect(&c, 3) == 0);
  }
  q = conc_manager_get(&c, "q");
  CHECK(q != NULL && conc_put(q, "abc", 3, 3) == 0);
  CHECK(conc_get(q, buf, sizeof buf, 3) == 3 && memcmp(buf, "abc", 3) == 0);
  conc_manager_shutdown(&c);
}

/* The method that makes frames requests: ('0', 'put', (...), {}). */
TEST_FN void fuzz_server_frames(int fd, fuzz_input *in, unsigned mode) {
  unsigned char buf[4096];
  const unsigned char *p;
  static const char accept[] = "(NX\21\0\0\0accept_connectionX\1\0\0\0x\x85}t.";
  if (mode == 3 && (!fuzz_peer_send(fd, accept, sizeof accept - 1) ||
                    fuzz_peer_receive(fd, buf, sizeof buf) < 0))
    return;
  while (fuzz_left(in) > 0) {
    size_t n = fuzz_chunk(in, &p);
    if (!fuzz_peer_send(fd, p, n)) return;
  }
}

TEST_FN void fuzz_server(const unsigned char *data, size_t size) {
  static unsigned calls;
  fuzz_input in = {data, data + size};
  unsigned mode = fuzz_byte(&in) % 4;
  unsigned char buf[4096];
  conc_value *v;
  int fd, rounds = 0;
  fuzz_server_begin();
  fd = fuzz_server_connect();
  if (mode < 2) {
    if (mode == 0 || (fuzz_peer_answer(fd) && fuzz_peer_challenge(fd)))
      fuzz_peer_write(fd, in.p, fuzz_left(&in));
  } else if (fuzz_peer_answer(fd) && fuzz_peer_challenge(fd)) {
    fuzz_server_frames(fd, &in, mode);
  }
  /* It must come to an end when there is nothing more: a reply, and the end.
     A get that waits is cancelled, for its client has gone. */
  shutdown(fd, SHUT_WR);
  while (fuzz_peer_read(fd, buf, sizeof buf) > 0 && rounds++ < 10000) {}
  close(fd);
  while (conc_get_value(fuzz_server_queue, &v, 0) == 0) conc_value_free(v);
  if (calls++ % 64 == 0) fuzz_server_ask();
}
