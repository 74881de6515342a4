/* The receiving end of a conc_pipe, and any packets, with descriptors of any
   kind and number: no descriptor stays open, and nothing is beyond a buffer. */
#include <sys/stat.h>

/* Sends a packet with n descriptors: of a pipe, or of a file of some bytes. */
TEST_FN void fuzz_pipe_send(int fd, const unsigned char *p, size_t size,
                            int file, size_t n) {
  union {
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int) * 8)];
  } control;
  struct iovec iov;
  struct msghdr m;
  int fds[8];
  size_t i;
  memset(&m, 0, sizeof m);
  memset(&control, 0, sizeof control);
  iov.iov_base = (void *)(uintptr_t)p;
  iov.iov_len = size;
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  for (i = 0; i < n; i++) fds[i] = file;
  if (n > 0) {
    m.msg_control = &control;
    m.msg_controllen = CMSG_SPACE(sizeof(int) * n);
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(&control.head), fds, sizeof(int) * n);
  }
  (void)!sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
}

TEST_FN void fuzz_pipe_receive(int fd, unsigned op) {
  unsigned char buf[600];
  conc_value *v = NULL;
  size_t size = op / 5 * 11;
  ssize_t n = 0;
  memset(buf, 'X', sizeof buf);
  switch (op % 5) {
  case 0:
    n = conc_recv(fd, buf, size, 0);
    CHECK(n <= (ssize_t)size && buf[size] == 'X');
    break;
  case 1: n = conc_poll(fd, 0); break;
  case 2:
    n = conc_recv_fd(fd, 0);
    if (n >= 0) close((int)n);
    break;
  case 3:
    n = conc_pipe_recv_value(fd, &v, 0);
    CHECK((n == 0) == (v != NULL));
    conc_value_free(v);
    break;
  default: /* as much as was announced, as a program does it */
    n = conc_poll(fd, 0);
    if (n < 0 || n > 1 << 20) break;
    size = (size_t)n;
    n = conc_recv(fd, v = (conc_value *)malloc(size + 1), size, 0);
    CHECK(n <= (ssize_t)size);
    free(v);
  }
}

TEST_FN void fuzz_pipe(const unsigned char *data, size_t size) {
  fuzz_input in = {data, data + size};
  const unsigned char *p;
  int a, b, before = dup(0), fd;
  close(before);
  if (conc_pipe(&a, &b) != 0) return;
  while (fuzz_left(&in) > 0) {
    unsigned op = fuzz_byte(&in);
    if (op % 2) {
      size_t n = fuzz_chunk(&in, &p);
      /* a file of as many bytes as the packet has, or the pipe's own end */
      if (op & 4) {
        FILE *f = tmpfile();
        if (f == NULL) break;
        (void)!write(fileno(f), p, n);
        fuzz_pipe_send(a, p, n, fileno(f), op / 8 % 8);
        fclose(f);
      } else {
        fuzz_pipe_send(a, p, n, b, op / 8 % 8);
      }
    } else {
      fuzz_pipe_receive(b, op / 2);
    }
  }
  close(a);
  close(b);
  fd = dup(0);
  CHECK_EQ(fd, before); /* nothing is open that was not */
  close(fd);
}
