/* The handshake and the frames of Python's managers, from scratch: the server
   and client targets are peers of conc.h and must not trust what it writes.
   PYTHON_WIRE 1 and 2; all of it with the key "k" and MD5. */
#ifndef FUZZ_PEER_H
#define FUZZ_PEER_H
#include <poll.h>
#include <sys/un.h>

/* Waits up to 3 s for bytes: a peer that says nothing is a finding of its own,
   and would otherwise hang here for ever. */
TEST_FN ssize_t fuzz_peer_read(int fd, void *buf, size_t n) {
  struct pollfd p;
  p.fd = fd;
  p.events = POLLIN;
  p.revents = 0;
  if (poll(&p, 1, 3000) != 1) return -1;
  return recv(fd, buf, n, 0);
}
TEST_FN bool fuzz_peer_exactly(int fd, unsigned char *buf, size_t n) {
  while (n > 0) {
    ssize_t k = fuzz_peer_read(fd, buf, n);
    if (k <= 0) return false;
    buf += k;
    n -= (size_t)k;
  }
  return true;
}
/* A frame of at most `most` bytes; how many it has, or -1. */
TEST_FN ssize_t fuzz_peer_receive(int fd, unsigned char *buf, size_t most) {
  unsigned char head[4];
  size_t n;
  if (!fuzz_peer_exactly(fd, head, 4)) return -1;
  n = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
  if (n > most || !fuzz_peer_exactly(fd, buf, n)) return -1;
  return (ssize_t)n;
}
TEST_FN bool fuzz_peer_write(int fd, const void *data, size_t n) {
  return send(fd, data, n, MSG_NOSIGNAL) == (ssize_t)n;
}
TEST_FN bool fuzz_peer_send(int fd, const void *data, size_t n) {
  unsigned char head[4];
  head[0] = (unsigned char)(n >> 24);
  head[1] = (unsigned char)(n >> 16);
  head[2] = (unsigned char)(n >> 8);
  head[3] = (unsigned char)n;
  return fuzz_peer_write(fd, head, 4) && fuzz_peer_write(fd, data, n);
}

/* Answers the other side's challenge. */
TEST_FN bool fuzz_peer_answer(int fd) {
  unsigned char buf[256], mac[CONC__HASH_MAX];
  ssize_t n = fuzz_peer_receive(fd, buf, sizeof buf);
  if (n < 11 || memcmp(buf, "#CHALLENGE#", 11) != 0) return false;
  conc__hmac(CONC__MD5, "k", 1, buf + 11, (size_t)n - 11, mac);
  return fuzz_peer_send(fd, mac, 16) &&
         fuzz_peer_receive(fd, buf, sizeof buf) == 9 &&
         memcmp(buf, "#WELCOME#", 9) == 0;
}
/* Sends a challenge, and is content with any answer. */
TEST_FN bool fuzz_peer_challenge(int fd) {
  unsigned char buf[256];
  return fuzz_peer_send(fd, "#CHALLENGE#12345678901234567890", 31) &&
         fuzz_peer_receive(fd, buf, sizeof buf) > 0 &&
         fuzz_peer_send(fd, "#WELCOME#", 9);
}
#endif
