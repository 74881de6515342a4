/* Any bytes as a format: to build a value, with arguments of one type, as C
   cannot be asked for more; and to take one apart that a pickle has made. */

/* The letters of each type, and those that have no argument. */
static const char *const fuzz_letters[] = {"ipI", "LK", "fd", "sy", "O", "sy"};

/* A format of up to 12 letters of the type, and of brackets. */
TEST_FN void fuzz_format_make(fuzz_input *in, unsigned type, char *format) {
  static const char others[] = "N()[]{} ,:#?";
  size_t letters = strlen(fuzz_letters[type]), n = 0, arguments = 0;
  while (fuzz_left(in) > 0 && n < 300) {
    unsigned c = fuzz_byte(in);
    if (c == 255) break;
    if (c % 2 == 0 && arguments < 12) {
      format[n++] = fuzz_letters[type][c / 2 % letters];
      if (type == 5) format[n++] = '#';
      arguments++;
    } else {
      c = (unsigned char)others[c / 2 % (sizeof others - 1)];
      /* Behind a text it would ask for a size. */
      if (c == '#' && type == 3) c = ' ';
      format[n++] = (char)c;
    }
  }
  format[n] = 0;
}

TEST_FN int fuzz_format_build(conc_value **v, unsigned type, const char *f,
                              const unsigned char *p, size_t n) {
  static const char text[] = "a\xc3\xa9\xff";
  const char *s = text + (n > 3 ? 1 : 3);
  conc_value *part = NULL;
  double d = (double)n / 3;
  int rc;
  switch (type) {
  case 0: return conc_build(v, f, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2147483647);
  case 1:
    return conc_build(v, f, 1LL << n % 63, -1LL, 3LL, 4LL, 5LL, 6LL, 7LL, 8LL,
                      9LL, 10LL, 11LL, 12LL);
  case 2: return conc_build(v, f, d, d, 1., -2., d, d, d, d, d, d, d, d);
  case 3: return conc_build(v, f, "", "x", s, s, "", (char *)NULL, "b", s, s, s, s, s);
  case 4:
    if (conc_pickle_loads(&part, p, n) != 0) part = NULL;
    rc = conc_build(v, f, part, part, part, part, part, part, part, part, part,
                    part, part, part);
    conc_value_free(part);
    return rc;
  default:
    return conc_build(v, f, p, n, p, n / 2, text, (size_t)1, p, n, p, n, p, n,
                      p, n, p, n, p, n, p, n, p, n, p, n);
  }
}

/* Every letter of a format to take apart has a pointer as its argument: to a
   number, to a pointer, to a size, or to the text of a key. */
TEST_FN void fuzz_format_parse(fuzz_input *in) {
  static char places[24][16], before[24][16];
  char format[200];
  const unsigned char *p;
  conc_value *v;
  size_t n = fuzz_take(in, fuzz_byte(in), &p), i;
  int rc;
  if (n >= sizeof format) n = sizeof format - 1;
  memcpy(format, p, n);
  format[n] = 0;
  for (i = n = 0; format[i] != 0; i++) /* '#' is one, too */
    n += strchr("NO ", format[i]) == NULL || format[i] == 'O';
  if (n > 24) return;
  for (i = 0; i < 24; i++) {
    memset(places[i], 0, sizeof places[i]);
    places[i][0] = (char)('a' + i % 3);
  }
  memcpy(before, places, sizeof before);
  if (conc_pickle_loads(&v, in->p, fuzz_left(in)) != 0) return;
#define P(i) (void *)places[i]
  rc = conc_parse(v, format, P(0), P(1), P(2), P(3), P(4), P(5), P(6), P(7),
                  P(8), P(9), P(10), P(11), P(12), P(13), P(14), P(15), P(16),
                  P(17), P(18), P(19), P(20), P(21), P(22), P(23));
#undef P
  CHECK(rc == 0 || memcmp(before, places, sizeof before) == 0);
  conc_value_free(v);
}

TEST_FN void fuzz_format(const unsigned char *data, size_t size) {
  fuzz_input in = {data, data + size};
  unsigned type = fuzz_byte(&in) % 7;
  conc_value *v, *w;
  char format[700];
  int rc;
  if (type == 6) {
    fuzz_format_parse(&in);
    return;
  }
  fuzz_format_make(&in, type, format);
  rc = fuzz_format_build(&v, type, format, in.p, fuzz_left(&in));
  CHECK((rc == 0) == (v != NULL));
  CHECK(rc == 0 || rc == -EINVAL || rc == -EMSGSIZE);
  if (rc == 0) {
    CHECK(conc_build(&w, "O", v) == 0 && conc_value_equal(v, w));
    conc_value_free(w);
  }
  conc_value_free(v);
}
