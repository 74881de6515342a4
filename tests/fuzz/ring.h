/* A shared queue whose memory another process spoils: between calls, bytes of
   the input are written anywhere into it. The calls may return any error, and
   whatever message; they must end, and touch nothing else. */
#include <sys/mman.h>

/* The shared mappings of this process, whose number is returned. */
typedef struct fuzz_mapping {
  uintptr_t from, to;
} fuzz_mapping;
TEST_FN size_t fuzz_mappings(fuzz_mapping *out, size_t most) {
  char line[300], rights[8];
  unsigned long from, to;
  size_t n = 0;
  FILE *f = fopen("/proc/self/maps", "r");
  if (f == NULL) return 0;
  while (n < most && fgets(line, sizeof line, f) != NULL) {
    if (sscanf(line, "%lx-%lx %7s", &from, &to, rights) != 3) continue;
    if (strchr(rights, 's') == NULL || strchr(rights, 'w') == NULL) continue;
    out[n].from = from;
    out[n++].to = to;
  }
  fclose(f);
  return n;
}

TEST_FN void fuzz_ring_use(conc_queue *q, unsigned op, fuzz_input *in) {
  unsigned char buf[400];
  const unsigned char *p;
  conc_value *v = NULL;
  size_t n;
  memset(buf, 'X', sizeof buf);
  switch (op % 6) {
  case 0:
    n = fuzz_take(in, op / 6 * 8, &p);
    conc_put(q, p, n, 0);
    break;
  case 1:
    CHECK(conc_get(q, buf, 300, 0) <= 300 && buf[300] == 'X');
    break;
  case 2:
    if (conc_get_value(q, &v, 0) == 0) conc_value_free(v);
    break;
  case 3: conc_qsize(q); break;
  case 4: conc_peek_size(q); break;
  default:
    CHECK(conc_get_many(q, buf, 8, 30, 0) <= 30 && buf[240] == 'X');
  }
}

TEST_FN void fuzz_ring(const unsigned char *data, size_t size) {
  fuzz_mapping before[64], after[64];
  fuzz_input in = {data, data + size};
  const unsigned char *p;
  conc_queue_opts o;
  unsigned what = fuzz_byte(&in);
  conc_queue *q;
  size_t n = fuzz_mappings(before, 64), m, i, k;
  memset(&o, 0, sizeof o);
  o.shared = true;
  o.capacity = 1 + what % 8;
  o.max_bytes = what & 8 ? 64 : 2000; /* in the cells, or apart */
  o.backend = what & 16 ? CONC_QUEUE_PIPE : 0;
  q = conc_queue_new(&o);
  CHECK(q != NULL);
  m = fuzz_mappings(after, 64);
  for (i = 0; i < m; i++) { /* the new one */
    for (k = 0; k < n && before[k].from != after[i].from; k++) {}
    if (k == n) break;
  }
  while (fuzz_left(&in) > 0) {
    unsigned op = fuzz_byte(&in);
    if (op % 2 == 0 || i == m) {
      fuzz_ring_use(q, op / 2, &in);
      continue;
    }
    /* an offset of 16 bits, or of 32 below what is mapped; and a word */
    k = fuzz_byte(&in) | (size_t)fuzz_byte(&in) << 8;
    if (op & 2) k = k * 67 % (after[i].to - after[i].from);
    if (k + 8 > after[i].to - after[i].from) continue;
    n = fuzz_take(&in, 1 + op / 4 % 8, &p);
    memcpy((char *)after[i].from + k, p, n);
  }
  conc_queue_free(q);
}
