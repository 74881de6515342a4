/* Any bytes as JSON. What is read must be written and read again. */
TEST_FN void fuzz_json(const unsigned char *data, size_t size) {
  conc_value *v, *w;
  char *text;
  size_t where = 0, n = 0;
  int indent, rc = conc_json_loads(&v, data, size, &where);
  CHECK((rc == 0) == (v != NULL) && where <= size);
  for (indent = 0; rc == 0 && indent <= 2; indent += 2) {
    CHECK(conc_json_dumps(v, indent, &text, &n) == 0 && strlen(text) == n);
    CHECK(conc_json_loads(&w, text, n, &where) == 0 && conc_value_equal(v, w));
    conc_free(text);
    conc_value_free(w);
  }
  conc_value_free(v);
}
