/* Any bytes as a pickle. What is read must be written, read again and be
   equal, as short as it came; and the short cut must understand nothing
   otherwise than the reader does. */

/* A value as a pickle of each protocol, and as a copy by conc_build. */
TEST_FN void fuzz_pickle_value(const conc_value *v, size_t size) {
  conc_value *w;
  char text[40];
  void *out;
  size_t n = 0;
  int p;
  /* A Token, the one class that data may name, is not sent on. */
  if (conc_pickle_dumps(v, 4, &out, &n) == -EACCES) return;
  conc_free(out);
  conc_value_text(v, text, sizeof text);
  CHECK(conc__utf8_valid((const unsigned char *)text, strlen(text)) ||
        conc_value_type(v) == CONC_STR);
  for (p = 2; p <= 5; p++) {
    CHECK(conc_pickle_dumps(v, p, &out, &n) == 0);
    /* An empty set takes a byte, and 30 by protocol 2. */
    CHECK(n <= 40 * size + 100);
    CHECK(conc_pickle_loads(&w, out, n) == 0 && conc_value_equal(v, w));
    conc_free(out);
    conc_value_free(w);
  }
  CHECK(conc_build(&w, "O", v) == 0 && conc_value_equal(v, w));
  conc_value_free(w);
}

/* What may have objects in it. Protocol 2 writes names and texts for Python 2,
   which may come back as others. */
TEST_FN void fuzz_pickle_objects(const unsigned char *data, size_t size) {
  const char *module, *name;
  conc_value *v, *w;
  char text[200];
  void *out;
  size_t n = 0;
  int p, rc = conc_pickle_loads_objects(&v, data, size);
  CHECK((rc == 0) == (v != NULL));
  if (rc != 0) return;
  conc_value_text(v, text, sizeof text);
  CHECK((conc_value_object(v, &module, &name) == 0) ==
        (conc_value_type(v) == CONC_OBJECT));
  for (p = 2; p <= 5; p++) {
    rc = conc_pickle_dumps(v, p | CONC_PASS, &out, &n);
    CHECK(rc == 0 || (rc == -EACCES && p < 4));
    if (rc != 0) continue;
    CHECK(n <= 100 * size + 1000);
    CHECK(conc_pickle_loads_objects(&w, out, n) == 0);
    CHECK(p == 2 || conc_value_equal(v, w));
    conc_free(out);
    conc_value_free(w);
  }
  CHECK(conc_build(&w, "O", v) == 0 && conc_value_equal(v, w));
  conc_value_free(w);
  conc_value_free(v);
}

/* A usual request is the same request to the reader. */
TEST_FN void fuzz_pickle_usual(const unsigned char *data, size_t size) {
  conc__usual_request u;
  const conc_value *args;
  conc_value *v;
  const char *s;
  size_t n = 0;
  int protocol;
  if (!conc__usual_read(data, size, &u)) return;
  if (conc__pickle_decode(data, size, &conc__pickle_request_limits, &v,
                          &protocol) != 0)
    return; /* a text of it is not UTF-8: its user asks for that */
  CHECK(protocol == u.protocol && conc_value_size(v) == 4);
  s = conc_value_str(conc_value_item(v, 0), &n);
  CHECK(s && n == u.ident.size && memcmp(s, u.ident.data, n) == 0);
  s = conc_value_str(conc_value_item(v, 1), &n);
  CHECK(s && n == u.method.size && memcmp(s, u.method.data, n) == 0);
  args = conc_value_item(v, 2);
  CHECK(conc_value_type(args) == CONC_TUPLE);
  CHECK(conc_value_size(args) == u.count);
  CHECK(conc_value_type(conc_value_item(v, 3)) == CONC_DICT);
  conc_value_free(v);
}

TEST_FN void fuzz_pickle(const unsigned char *data, size_t size) {
  conc__pickle_limits limits = conc__pickle_request_limits;
  char refused[CONC__REFUSED_MAX];
  conc_value *v;
  int rc = conc_pickle_loads(&v, data, size);
  CHECK((rc == 0) == (v != NULL));
  if (rc == 0) fuzz_pickle_value(v, size);
  conc_value_free(v);
  limits.refused = refused;
  rc = conc__pickle_decode(data, size, &limits, &v, NULL);
  CHECK((rc == -EACCES) == (*refused != 0));
  CHECK(conc__utf8_valid((unsigned char *)refused, strlen(refused)));
  conc_value_free(v);
  rc = conc__pickle_decode(data, size, &conc__pickle_reply_limits, &v, NULL);
  conc_value_free(v);
  limits.objects = true;
  rc = conc__pickle_decode(data, size, &limits, &v, NULL);
  CHECK((rc == -EACCES) == (*refused != 0));
  CHECK(conc__utf8_valid((unsigned char *)refused, strlen(refused)));
  conc_value_free(v);
  fuzz_pickle_objects(data, size);
  fuzz_pickle_usual(data, size);
}
