/* A stream that is fed in chunks, and read in every way between them: nothing
   is lost, doubled or out of order. */
TEST_FN void fuzz_stream(const unsigned char *data, size_t size) {
  static unsigned char sent[1 << 16];
  fuzz_input in = {data, data + size};
  size_t written = 0, seen = 0;
  int ends[2], closed = 0;
  conc_stream s;
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  memset(&s, 0, sizeof s);
  s.fd = ends[0];
  while (fuzz_left(&in) > 0) {
    unsigned op = fuzz_byte(&in), want = fuzz_byte(&in);
    char buf[300];
    ssize_t n = 0;
    const unsigned char *p;
    size_t k = 0;
    memset(buf, 'X', sizeof buf);
    switch (op % 6) {
    case 0:
      k = fuzz_take(&in, want, &p);
      if (closed || written + k > sizeof sent) break;
      memcpy(sent + written, p, k);
      CHECK(write(ends[1], p, k) == (ssize_t)k);
      written += k;
      break;
    case 1: n = conc_stream_read(&s, buf, want, 0); break;
    case 2:
      n = conc_stream_read_exactly(&s, buf, want, 0);
      CHECK(n <= 0 || n == (ssize_t)want || closed);
      break;
    case 3:
      n = conc_stream_read_line(&s, buf, want + 1, 0);
      if (n > 0) CHECK(buf[n] == 0);
      if (n > 0) CHECK(buf[n - 1] == '\n' || closed);
      break;
    case 4:
      k = 1 + op / 6 % 4;
      k = fuzz_take(&in, k, &p);
      n = conc_stream_read_until(&s, p, k, buf, want, 0);
      if (n > 0 && !closed)
        CHECK((size_t)n >= k && memcmp(buf + n - k, p, k) == 0);
      break;
    default:
      if (want < 250 || closed) break;
      closed = 1;
      CHECK(shutdown(ends[1], SHUT_WR) == 0);
    }
    CHECK(n <= (ssize_t)want + 1 && buf[want + 1] == 'X');
    if (n <= 0) continue;
    CHECK((size_t)n <= written - seen && memcmp(buf, sent + seen, (size_t)n) == 0);
    seen += (size_t)n;
  }
  conc_stream_close(&s, 0);
  close(ends[1]);
}
