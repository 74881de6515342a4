/* What lists, dicts and the like are made of that a manager serves: values as
   Python compares and hashes them, elements, tables; and their methods as a
   client asks for them. From inside; the weight of one object is bound to 1
   MiB. tests/interop/containers.py compares the same with Python's own. */
#define CONC__WEIGHT_MAX ((size_t)1 << 20)
#include "inside.h"
#include "served.h"

#include <math.h>

/* --- values --- */

static conc_value *json(const char *text) {
  conc_value *v = NULL;
  CHECK_EQ(conc_json_loads(&v, text, strlen(text), NULL), 0);
  return v;
}

/* A value of the pickle in a literal. */
#define LOADED(literal) loaded(literal, sizeof(literal) - 1)
static conc_value *loaded(const char *data, size_t size) {
  conc_value *v = NULL;
  CHECK_EQ(conc_pickle_loads(&v, data, size), 0);
  return v;
}

static conc_value *real(double f) {
  conc_value *v;
  CHECK_EQ(conc_build(&v, "d", f), 0);
  return v;
}

static conc_value *raw(const char *text) {
  conc_value *v;
  CHECK_EQ(conc_build(&v, "y", text), 0);
  return v;
}

static conc_value *boolean(int b) {
  conc_value *v;
  CHECK_EQ(conc_build(&v, "p", b), 0);
  return v;
}

/* Whether two values are equal in Python; both are freed. */
static bool are_equal(conc_value *a, conc_value *b) {
  size_t steps = 0;
  const bool equal = conc__python_equal(a, b, &steps);
  CHECK_EQ(conc__python_equal(b, a, &steps), equal);
  conc_value_free(a);
  conc_value_free(b);
  return equal;
}

TEST(values_are_equal_as_in_python) {
  CHECK(are_equal(json("1"), real(1.0)));
  CHECK(are_equal(json("1"), boolean(1)));
  CHECK(are_equal(real(0.0), real(-0.0)));
  CHECK(!are_equal(real(NAN), real(NAN)));
  CHECK(are_equal(json("1180591620717411303424"), real(ldexp(1, 70))));
  CHECK(!are_equal(json("1180591620717411303425"), real(ldexp(1, 70))));
  CHECK(!are_equal(json("1"), json("\"1\"")));
  CHECK(!are_equal(json("\"a\""), raw("a")));
  CHECK(are_equal(json("null"), json("null")));
  CHECK(!are_equal(json("null"), json("false")));
  CHECK(are_equal(json("[1, [2, {\"a\": 1}]]"),
                  json("[1.0, [2.0, {\"a\": 1.0}]]")));
  CHECK(!are_equal(json("[1, [2, {\"a\": 1}]]"),
                   json("[1, [2, {\"b\": 1}]]")));
  CHECK(!are_equal(json("[1]"), json("[1, 2]")));
  CHECK(are_equal(json("{\"a\": 1, \"b\": 2}"), json("{\"b\": 2, \"a\": 1}")));
  CHECK(!are_equal(json("[1]"), LOADED("\x80\x02K\x01\x85."))); /* a tuple */
  /* bytearray(b'a') == b'a', {1} == frozenset({1}) */
  CHECK(are_equal(LOADED("\x80\x05\x96\x01\0\0\0\0\0\0\0a."), raw("a")));
  CHECK(are_equal(LOADED("\x80\x04\x8f(K\x01\x90."),
                  LOADED("\x80\x04(K\x01\x91.")));
}

/* a < b in Python: 1, 0, or -EINVAL. Both are freed. */
static int below(conc_value *a, conc_value *b, const char *error) {
  const conc_value *left, *right;
  char text[100] = "";
  size_t steps = 0;
  int rc = conc__python_below(a, b, &left, &right, &steps);
  if (rc < 0)
    snprintf(text, sizeof text, "%s %s", conc__python_type(left),
             conc__python_type(right));
  CHECK_STR(text, error);
  conc_value_free(a);
  conc_value_free(b);
  return rc;
}

TEST(values_have_the_order_of_python_or_none) {
  CHECK_EQ(below(json("1"), json("2"), ""), 1);
  CHECK_EQ(below(json("2"), real(1.5), ""), 0);
  CHECK_EQ(below(boolean(0), json("1"), ""), 1);
  CHECK_EQ(below(json("9223372036854775807"), json("9223372036854775808"), ""),
           1);
  CHECK_EQ(below(real(NAN), json("1"), ""), 0);
  CHECK_EQ(below(json("1"), real(NAN), ""), 0);
  CHECK_EQ(below(json("\"a\""), json("\"ab\""), ""), 1);
  CHECK_EQ(below(json("\"z\""), json("\"\\u00e9\""), ""), 1);
  CHECK_EQ(below(json("[1, 2]"), json("[1, 3]"), ""), 1);
  CHECK_EQ(below(json("[1, 2]"), json("[1]"), ""), 0);
  CHECK_EQ(below(json("[1]"), json("[1.0, 0]"), ""), 1);
  CHECK_EQ(below(json("[[1, [5]], 2]"), json("[[1, [5, 0]], 1]"), ""), 1);
  CHECK_EQ(below(json("[{\"a\": 1}, 2]"), json("[{\"a\": 1}, 3]"), ""), 1);
  CHECK_EQ(below(json("[]"), json("[]"), ""), 0);
  /* {1} < {1, 2}, and {1} and {2} have no order that raises anything */
  CHECK_EQ(below(LOADED("\x80\x04\x8f(K\x01\x90."),
                 LOADED("\x80\x04\x8f(K\x01K\x02\x90."), ""), 1);
  CHECK_EQ(below(LOADED("\x80\x04\x8f(K\x01\x90."),
                 LOADED("\x80\x04\x8f(K\x02\x90."), ""), 0);
  CHECK_EQ(below(json("1"), json("\"a\""), "int str"), -EINVAL);
  CHECK_EQ(below(json("null"), json("null"), "NoneType NoneType"), -EINVAL);
  CHECK_EQ(below(json("[1, null]"), json("[1, 2]"), "NoneType int"), -EINVAL);
  CHECK_EQ(below(json("{}"), json("{}"), "dict dict"), -EINVAL);
  CHECK_EQ(below(json("[]"), LOADED("\x80\x02)."), "list tuple"), -EINVAL);
}

/* --- keys --- */

typedef struct key_bytes {
  unsigned char data[200];
  size_t size;
  int rc;
} key_bytes;

static key_bytes key(conc_value *v) {
  const conc_value *wrong;
  conc__buffer b = {NULL, 0, 0, 0};
  key_bytes k;
  memset(&k, 0, sizeof k);
  k.rc = conc__key_encode(&b, v, &wrong);
  CHECK(b.size <= sizeof k.data);
  k.size = b.size;
  if (b.size > 0) memcpy(k.data, b.data, b.size);
  conc__buffer_free(&b);
  conc_value_free(v);
  return k;
}

static bool one_key(conc_value *a, conc_value *b) {
  const key_bytes k = key(a), l = key(b);
  CHECK_EQ(k.rc, 0);
  CHECK_EQ(l.rc, 0);
  return k.size == l.size && memcmp(k.data, l.data, k.size) == 0;
}

TEST(what_python_holds_equal_is_one_key) {
  CHECK(one_key(json("1"), real(1.0)));
  CHECK(one_key(json("1"), boolean(1)));
  CHECK(one_key(boolean(0), real(-0.0)));
  CHECK(one_key(json("-300"), real(-300)));
  CHECK(one_key(json("1180591620717411303424"), real(ldexp(1, 70))));
  CHECK(one_key(json("-9223372036854775808"), real(-ldexp(1, 63))));
  CHECK(one_key(json("9223372036854775808"), real(ldexp(1, 63))));
  CHECK(one_key(json("-18446744073709551616"), real(-ldexp(1, 64))));
  CHECK(!one_key(json("9007199254740993"), real(9007199254740992.0)));
  CHECK(!one_key(real(1.5), json("1")));
  CHECK(!one_key(real(INFINITY), real(-INFINITY)));
  CHECK(!one_key(json("\"1\""), json("1")));
  CHECK(!one_key(json("\"1\""), raw("1")));
  /* (1, (True,)) and (1.0, (1,)); ((1,), 2) and (1, (2,)) */
  CHECK(one_key(LOADED("\x80\x02K\x01\x88\x85\x86."),
                LOADED("\x80\x02G\x3f\xf0\0\0\0\0\0\0K\x01\x85\x86.")));
  CHECK(!one_key(LOADED("\x80\x02K\x01\x85K\x02\x86."),
                 LOADED("\x80\x02K\x01K\x02\x85\x86.")));
  /* frozenset({1, 2}) of ints and of floats; a tuple is none */
  CHECK(one_key(LOADED("\x80\x04(K\x02K\x01\x91."),
                LOADED("\x80\x04(K\x01G\x40\0\0\0\0\0\0\0\x91.")));
  CHECK(!one_key(LOADED("\x80\x04(K\x01\x91."), LOADED("\x80\x04K\x01\x85.")));
  CHECK_EQ(key(real(NAN)).rc, 1);
  CHECK_EQ(key(json("[]")).rc, -EINVAL);
  CHECK_EQ(key(json("{}")).rc, -EINVAL);
  CHECK_EQ(key(LOADED("\x80\x02K\x01]\x86.")).rc, -EINVAL); /* (1, []) */
}

TEST(siphash_is_siphash) {
  conc__secret s;
  unsigned char p[15];
  size_t i;
  s.words[0] = UINT64_C(0x0706050403020100);
  s.words[1] = UINT64_C(0x0f0e0d0c0b0a0908);
  for (i = 0; i < sizeof p; i++) p[i] = (unsigned char)i;
  /* SipHash-1-3 of the reference implementation, with the same key */
  CHECK(conc__sip(&s, p, 0) == UINT64_C(0xabac0158050fc4dc));
  CHECK(conc__sip(&s, p, 15) == UINT64_C(0xd320d86d2a519956));
}

/* --- elements --- */

static conc__element element(conc_value *v) {
  conc__draft d = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
  const conc_value *wrong;
  conc__element e;
  CHECK_EQ(conc__element_encode(NULL, &d, v, &e, &wrong), 0);
  conc__draft_free(&d);
  conc_value_free(v);
  return e;
}

static bool shows(const conc__element *e, const char *want) {
  conc__buffer b = {NULL, 0, 0, 0}, scratch = {NULL, 0, 0, 0};
  bool same;
  CHECK_EQ(conc__element_text(e, &b, SIZE_MAX, &scratch), 0);
  same = b.size == strlen(want) && memcmp(b.data, want, b.size) == 0;
  if (!same) printf("  %.*s\n", (int)b.size, (const char *)b.data);
  conc__buffer_free(&b);
  conc__buffer_free(&scratch);
  return same;
}

TEST(an_element_is_what_it_was_made_of) {
  static const char *const texts[] = {
      "null", "true", "false", "0", "255", "256", "65535", "65536", "-1",
      "2147483647", "2147483648", "-2147483649", "9223372036854775807",
      "-9223372036854775808", "9223372036854775808",
      "123456789012345678901234567890", "1.5", "\"\"", "\"seven\"",
      "\"ten bytes.\"", "\"eleven byte\"", "[]", "[1, \"two\", [3.5]]",
      "{\"a\": {\"b\": null}}"};
  static const char *const shown[] = {
      "None", "True", "False", "0", "255", "256", "65535", "65536", "-1",
      "2147483647", "2147483648", "-2147483649", "9223372036854775807",
      "-9223372036854775808", "9223372036854775808",
      "123456789012345678901234567890", "1.5", "''", "'seven'",
      "'ten bytes.'", "'eleven byte'", "[]", "[1, 'two', [3.5]]",
      "{'a': {'b': None}}"};
  size_t i;
  for (i = 0; i < sizeof texts / sizeof *texts; i++) {
    conc__element e = element(json(texts[i])), copy;
    conc_value *v = json(texts[i]);
    conc__buffer b = {NULL, 0, 0, 0};
    conc__view view;
    CHECK(shows(&e, shown[i]));
    CHECK_EQ(conc__element_copy(&copy, &e), 0);
    conc__element_free(&e);
    size_t steps = 0;
    CHECK_EQ(conc__view_open(&view, &copy, NULL, NULL, &b), 0);
    CHECK(conc__python_equal(view.value, v, &steps));
    conc__view_close(&view);
    conc__buffer_free(&b);
    conc__element_free(&copy);
    conc_value_free(v);
  }
}

/* Python 2's u'\x00' in bytes and what looks like a scalar at its beginning:
   (1,) begins as 1 does. */
TEST(a_view_tells_a_scalar_from_what_begins_like_one) {
  conc__element e = element(LOADED("\x80\x02K\x01\x85."));
  CHECK(shows(&e, "(1,)"));
  conc__element_free(&e);
  e = element(LOADED("\x80\x02NN\x86."));
  CHECK(shows(&e, "(None, None)"));
  conc__element_free(&e);
  e = element(LOADED("\x80\x04X\1\0\0\0aK\1\x86."));
  CHECK(shows(&e, "('a', 1)"));
  conc__element_free(&e);
  e = element(LOADED("\x80\x05\x96\x01\0\0\0\0\0\0\0a."));
  CHECK(shows(&e, "bytearray(b'a')"));
  conc__element_free(&e);
}

static void push(conc__elements *cs, conc_value *v) {
  conc__element e = element(v);
  CHECK_EQ(conc__elements_append(cs, &e), 0);
}

static conc__elements numbers(const char *list) {
  conc__elements cs = {NULL, 0, 0, 0};
  conc_value *v = json(list);
  conc__complaint c = {NULL, "", NULL};
  CHECK_EQ(conc__iterate(NULL, &cs, v, &c), 0);
  conc_value_free(v);
  return cs;
}

static bool holds(const conc__elements *cs, const char *list) {
  conc__buffer b = {NULL, 0, 0, 0}, scratch = {NULL, 0, 0, 0};
  size_t i, weight = 0;
  bool same;
  for (i = 0; i < cs->count; i++) {
    CHECK_EQ(conc__buffer_append(&b, " ", 1), 0);
    CHECK_EQ(conc__element_text(&cs->at[i], &b, SIZE_MAX, &scratch), 0);
    weight += sizeof(conc__element) + conc__element_weight(&cs->at[i]);
  }
  CHECK_EQ(weight, cs->weight);
  same = b.size == strlen(list) &&
         (b.size == 0 || memcmp(b.data, list, b.size) == 0);
  if (!same) printf("  %.*s\n", (int)b.size, (const char *)b.data);
  conc__buffer_free(&b);
  conc__buffer_free(&scratch);
  return same;
}

TEST(elements_are_replaced_and_removed_anywhere) {
  conc__elements cs = numbers("[0, 1, 2, 3, \"a text of some length\", 5]");
  conc__elements with = numbers("[\"another text of some length\", 7]");
  CHECK_EQ(conc__elements_replace(NULL, &cs, 1, 2, &with), 0);
  CHECK(holds(&cs, " 0 'another text of some length' 7 3 "
                   "'a text of some length' 5"));
  CHECK_EQ(with.count, 0);
  conc__elements_free(&with);
  CHECK_EQ(conc__elements_replace(NULL, &cs, 6, 0, &with), 0);
  conc__elements_remove(NULL, &cs, 0, 4, 2);
  CHECK(holds(&cs, " 'another text of some length' 7 3 5"));
  conc__elements_reverse(NULL, &cs);
  CHECK(holds(&cs, " 5 3 7 'another text of some length'"));
  with = numbers("[1, 2, 3]");
  CHECK_EQ(conc__elements_replace(NULL, &cs, 0, 4, &with), 0);
  conc__elements_free(&with);
  CHECK_EQ(conc__elements_copy(NULL, &cs, &cs, 2, -1, 3), 0);
  CHECK(holds(&cs, " 1 2 3 3 2 1"));
  conc__elements_free(&cs);
}

TEST(an_object_has_a_bound_on_its_weight) {
  conc__elements cs = {NULL, 0, 0, 0}, more;
  size_t i = 0, before;
  conc__element e;
  for (;; i++) {
    e = element(json("1"));
    if (conc__elements_append(&cs, &e) != 0) break;
  }
  CHECK_EQ(i, CONC__WEIGHT_MAX / sizeof e);
  CHECK_EQ(cs.weight, CONC__WEIGHT_MAX);
  more = numbers("[2]");
  before = cs.count;
  CHECK_EQ(conc__elements_replace(NULL, &cs, 0, 0, &more), -EMSGSIZE);
  CHECK_EQ(cs.count, before);
  conc__elements_free(&more);
  conc__elements_free(&cs);
  CHECK_EQ(cs.weight, 0);
}

static bool sorts(const char *list, bool reverse, const char *want) {
  conc__elements cs = numbers(list);
  char text[200] = "";
  bool ok;
  int rc = conc__elements_sort(NULL, &cs, reverse, text, sizeof text);
  if (rc == -EINVAL) {
    ok = strcmp(text, want) == 0;
    if (!ok) puts(text);
  } else {
    CHECK_EQ(rc, 0);
    ok = holds(&cs, want);
  }
  conc__elements_free(&cs);
  return ok;
}

TEST(sorting_is_stable_and_complains_as_python) {
  CHECK(sorts("[3, 1, 2]", false, " 1 2 3"));
  CHECK(sorts("[]", false, ""));
  CHECK(sorts("[1, 1.0, true, 0]", false, " 0 1 1.0 True"));
  CHECK(sorts("[1, 1.0, true, 0]", true, " 1 1.0 True 0"));
  CHECK(sorts("[[2, 1], [1, 9], [1]]", false, " [1] [1, 9] [2, 1]"));
  CHECK(sorts("[\"b\", \"a\", \"\"]", true, " 'b' 'a' ''"));
  CHECK(sorts("[1, \"a\"]", false,
              "'<' not supported between instances of 'str' and 'int'"));
  CHECK(sorts("[2, 1, null]", false,
              "'<' not supported between instances of 'NoneType' and 'int'"));
}

/* Against a sort that is simple. */
TEST(sorting_many_gives_the_order_of_insertion_sort) {
  conc__elements cs = {NULL, 0, 0, 0};
  int want[500], n = 500, i, k;
  char text[10];
  srand((unsigned)test_seed);
  for (i = 0; i < n; i++) {
    const int x = rand() % 100;
    snprintf(text, sizeof text, "%d", x);
    push(&cs, json(text));
    for (k = i; k > 0 && want[k - 1] > x; k--) want[k] = want[k - 1];
    want[k] = x;
  }
  CHECK_EQ(conc__elements_sort(NULL, &cs, false, text, sizeof text), 0);
  for (i = 0; i < n; i++) {
    snprintf(text, sizeof text, "%d", want[i]);
    CHECK(shows(&cs.at[i], text));
  }
  conc__elements_free(&cs);
}

/* --- tables --- */

/* Sets a str or number of JSON to a number. */
static void set(conc__table *t, const char *k, int value) {
  conc__complaint c = {NULL, "", NULL};
  conc_value *key = json(k), *v;
  CHECK_EQ(conc_build(&v, "i", value), 0);
  CHECK_EQ(conc__dict_put_value(NULL, t, key, v, &c), 0);
  conc_value_free(key);
  conc_value_free(v);
}

static uint32_t *find(conc__table *t, conc_value *v) {
  const conc_value *wrong;
  conc__lookup key;
  uint32_t *slot;
  CHECK_EQ(conc__table_key(t, v, &key, &wrong), 0);
  slot = conc__table_slot(t, &key);
  conc__buffer_free(&key.bytes);
  conc_value_free(v);
  return slot;
}

TEST(a_table_keeps_its_order_and_the_first_key) {
  conc__table t;
  memset(&t, 0, sizeof t);
  CHECK(find(&t, json("1")) == NULL);
  set(&t, "1", 10);
  set(&t, "\"b\"", 20);
  set(&t, "1.0", 11); /* is 1 */
  set(&t, "2.5", 30);
  CHECK_EQ(t.count, 3);
  CHECK(shows(conc__row_key(&t.rows[0]), "1"));
  CHECK(shows(&t.rows[0].value, "11"));
  conc__table_remove(&t, find(&t, json("1")));
  set(&t, "1.0", 12);
  CHECK(shows(conc__row_key(&t.rows[t.used - 1]), "1.0"));
  CHECK(find(&t, real(NAN)) == NULL);
  conc__table_free(&t);
}

/* At random, against an array: 64 keys, set and removed again and again. */
TEST(a_table_finds_what_was_set_and_nothing_else) {
  conc__table t;
  int there[64], count = 0, i, k;
  memset(&t, 0, sizeof t);
  for (i = 0; i < 64; i++) there[i] = -1;
  srand((unsigned)test_seed);
  for (i = 0; i < 8000; i++) {
    char text[40];
    uint32_t *slot;
    k = rand() % 64;
    snprintf(text, sizeof text, k % 2 ? "%d" : "\"a key that is long %d\"", k);
    slot = find(&t, json(text));
    CHECK_EQ(slot != NULL, there[k] >= 0);
    if (slot != NULL) {
      snprintf(text, sizeof text, "%d", there[k]);
      CHECK(shows(&t.rows[*slot - 1].value, text));
      if (rand() % 2 == 0) {
        conc__table_remove(&t, slot);
        there[k] = -1;
        count--;
        CHECK_EQ(t.count, count);
        continue;
      }
    }
    snprintf(text, sizeof text, k % 2 ? "%d" : "\"a key that is long %d\"", k);
    count += there[k] < 0;
    there[k] = i;
    set(&t, text, i);
    CHECK_EQ(t.count, count);
  }
  for (i = 0; t.count > 0; i++) { /* as popitem does */
    conc__row *last = &t.rows[t.used - 1];
    conc__table_remove(&t, conc__table_slot_of(&t, last));
  }
  CHECK_EQ(i, count);
  CHECK_EQ(t.weight, 0);
  CHECK_EQ(t.used, 0);
  conc__table_free(&t);
}

TEST(an_iterator_finds_its_place_in_a_table_that_was_tidied) {
  const conc__row *row;
  conc__table t;
  char text[20];
  int i;
  memset(&t, 0, sizeof t);
  for (i = 0; i < 20; i++) {
    snprintf(text, sizeof text, "%d", i);
    set(&t, text, i);
  }
  for (i = 0; i < 15; i++) {
    snprintf(text, sizeof text, "%d", i);
    conc__table_remove(&t, find(&t, json(text)));
  }
  row = conc__table_from(&t, 3);
  CHECK(shows(&row->value, "15"));
  CHECK_EQ(conc__table_tidy(&t), 0);
  CHECK_EQ(t.used, 5);
  row = conc__table_from(&t, row->serial + 1);
  CHECK(shows(&row->value, "16"));
  CHECK(conc__table_from(&t, 20) == NULL);
  conc__table_free(&t);
}

/* Without memory nothing changes, and nothing is lost. */
TEST(a_failed_allocation_leaves_lists_and_tables_as_they_were) {
  conc_value *v = json("[\"a text of some length\", {\"k\": [1, 2, 3]}]");
  conc_value *k = json("\"a key of some length\"");
  long at;
  for (at = 1; at < 100; at++) {
    conc__complaint c = {NULL, "", NULL};
    conc__elements cs = {NULL, 0, 0, 0};
    conc__table t;
    int rc;
    memset(&t, 0, sizeof t);
    test_fail_at = at;
    rc = conc__iterate(NULL, &cs, v, &c);
    if (rc == 0) rc = conc__dict_put_value(NULL, &t, k, v, &c);
    if (rc == 0)
      rc = conc__elements_sort(NULL, &cs, true, c.text, sizeof c.text);
    if (rc == -EINVAL) rc = 0; /* a str and a dict */
    if (rc == 0) rc = conc__dict_put_value(NULL, &t, k, k, &c);
    test_fail_at = 0;
    CHECK(rc == 0 || rc == -ENOMEM);
    CHECK(t.count <= 1);
    conc__elements_free(&cs);
    conc__table_free(&t);
    if (rc == 0) break;
  }
  CHECK(at > 10 && at < 100);
  conc_value_free(v);
  conc_value_free(k);
}

/* --- served --- */

typedef struct room {
  served s;
  conc__peer *peer;
  bool rests; /* see look_at_remains */
} room;

static double soon(void) { return conc_now() + 20 * test_slow(); }

static void open_room_of(room *r, int objects) {
  memset(r, 0, sizeof *r);
  r->s.server.objects = objects;
  CHECK_EQ(conc_manager_register_types(&r->s.server), 0);
  serve_queue(&r->s, conc_queue_new(NULL));
  r->s.client = client_of(&r->s);
  CHECK_EQ(conc_manager_connect(&r->s.client, 5 * test_slow()), 0);
  CHECK_EQ(conc__peer_get(r->s.client.state, &r->peer, soon()), 0);
}

static void open_room(room *r) { open_room_of(r, 0); }

static void close_room(room *r) {
  conc__peer_close(r->peer);
  end(&r->s);
}

static void send_pickle(conc__peer *p, const void *data, size_t size) {
  CHECK_EQ(conc__channel_send(&p->channel, data, size, soon()), 0);
}

/* The bytes of the last reply, and whether a text is in them. */
static char heard[3000];
static size_t heard_size;

static bool has_bytes(const char *text) {
  const size_t n = strlen(text);
  size_t i;
  for (i = 0; i + n <= heard_size; i++)
    if (memcmp(heard + i, text, n) == 0) return true;
  return false;
}

/* An exception as repr() shows it: Name('text'). */
static void show_call(const conc_value *v, char *text, size_t size) {
  const conc_value *args = conc__object_arguments(v);
  conc__buffer b = {NULL, 0, 0, 0};
  if (conc_value_size(args) > 0)
    CHECK_EQ(conc__python_repr(&b, conc_value_item(args, 0), SIZE_MAX, NULL,
                               NULL), 0);
  snprintf(text, size, "%s(%.*s)", conc__object_name(v), (int)b.size,
           b.size > 0 ? (const char *)b.data : "");
  conc__buffer_free(&b);
}

/* The reply as text: of an exception as repr() shows it, of what was refused
   "TRACEBACK text". */
static const char *hear(conc__peer *p) {
  static char text[3000];
  conc__pickle_limits limits = conc__pickle_reply_limits;
  const unsigned char *payload;
  const conc_value *result;
  conc_value *v;
  size_t n;
  CHECK_EQ(conc__channel_receive(&p->channel, (size_t)1 << 26, &payload, &n,
                                 soon()), 0);
  heard_size = n < sizeof heard ? n : sizeof heard;
  memcpy(heard, payload, heard_size);
  CHECK_EQ(conc__pickle_decode(payload, n, &limits, &v, NULL), 0);
  result = conc_value_item(v, 1);
  if (strcmp(conc_value_str(conc_value_item(v, 0), NULL), "#RETURN") == 0) {
    conc_value_text(result, text, sizeof text);
  } else if (conc_value_type(result) == CONC_OBJECT) {
    show_call(result, text, sizeof text);
  } else {
    n = (size_t)snprintf(text, 30, "%s ",
                         conc_value_str(conc_value_item(v, 0), NULL) + 1);
    conc_value_text(result, text + n, sizeof text - n);
  }
  conc_value_free(v);
  return text;
}

static const char *exchange(conc__peer *p, const void *data, size_t size) {
  send_pickle(p, data, size);
  return hear(p);
}

/* (ident, method, args, {}), args by a format. */
static const char *ask(room *r, const char *ident, const char *method,
                       const char *format, ...) {
  conc_value *args, *request;
  const char *text;
  conc__peer *p = r->peer;
  void *data;
  size_t size;
  va_list ap;
  va_start(ap, format);
  CHECK_EQ(conc__build_va(&args, format, ap), 0);
  va_end(ap);
  CHECK_EQ(conc_build(&request, "(ssO{})", ident, method, args), 0);
  CHECK_EQ(conc_pickle_dumps(request, 4, &data, &size), 0);
  if (ident == NULL)
    CHECK_EQ(conc__peer_open(r->s.client.state, &p, soon()), 0);
  text = exchange(p, data, size);
  if (ident == NULL) conc__peer_close(p);
  conc_free(data);
  conc_value_free(request);
  conc_value_free(args);
  return text;
}

typedef struct name {
  char text[CONC__ID_SIZE];
} name;

static name made(const char *reply) {
  name id;
  size_t n;
  CHECK(strncmp(reply, "('", 2) == 0);
  n = strcspn(reply + 2, "'");
  CHECK(n < sizeof id.text);
  memcpy(id.text, reply + 2, n);
  id.text[n] = 0;
  return id;
}
#define MAKE(r, ...) made(ask(r, NULL, "create", __VA_ARGS__))
#define SAYS(want, ...) CHECK_STR(ask(__VA_ARGS__), want)
#define SAYS_PART(want, ...) CHECK(strstr(ask(__VA_ARGS__), want) != NULL)

TEST(a_list_answers_as_pythons) {
  room r;
  name l;
  open_room(&r);
  l = MAKE(&r, "(s[iii])", "list", 1, 2, 3);
  SAYS("3", &r, l.text, "__len__", "()");
  SAYS("3", &r, l.text, "__getitem__", "(i)", -1);
  SAYS("IndexError('list index out of range')", &r, l.text, "__getitem__",
       "(i)", 3);
  SAYS("IndexError('list assignment index out of range')", &r, l.text,
       "__setitem__", "(ii)", -4, 1);
  SAYS("TypeError('list indices must be integers or slices, not str')", &r,
       l.text, "__getitem__", "(s)", "x");
  SAYS("TypeError('list.append() takes exactly one argument (0 given)')", &r,
       l.text, "append", "()");
  SAYS("None", &r, l.text, "insert", "(is)", -100, "first");
  SAYS("ValueError('list.remove(x): x not in list')", &r, l.text, "remove",
       "(i)", 7);
  SAYS("ValueError('7 is not in list')", &r, l.text, "index", "(i)", 7);
  SAYS("1", &r, l.text, "index", "(d)", 1.0);
  SAYS("True", &r, l.text, "__contains__", "(d)", 2.0);
  SAYS("3", &r, l.text, "pop", "()");
  SAYS("['first', 1, 2, 'first', 1, 2]", &r, l.text, "__imul__", "(i)", 2);
  SAYS("['first', 1, 2, 'first', 1, 2, 5]", &r, l.text, "__add__", "([i])", 5);
  SAYS("TypeError(\"'<' not supported between instances of 'int' and "
       "'str'\")", &r, l.text, "sort", "()");
  SAYS("MemoryError('an object of this server has 1048576 bytes at most')", &r,
       l.text, "__imul__", "(i)", 1 << 20);
  SAYS("6", &r, l.text, "__len__", "()");
  SAYS("None", &r, l.text, "clear", "()");
  SAYS("IndexError('pop from empty list')", &r, l.text, "pop", "()");
  SAYS("[]", &r, l.text, "#GETVALUE", "()");
  SAYS("[]", &r, l.text, "__repr__", "()");
  close_room(&r);
}

TEST(a_dict_answers_as_pythons) {
  room r;
  name d;
  open_room(&r);
  d = MAKE(&r, "(s{s:i,i:s})", "dict", "a", 1, 2, "two");
  SAYS("1", &r, d.text, "__getitem__", "(s)", "a");
  SAYS("two", &r, d.text, "__getitem__", "(d)", 2.0);
  SAYS("KeyError('b')", &r, d.text, "__getitem__", "(s)", "b");
  SAYS("KeyError((1, 2))", &r, d.text, "pop", "((ii))", 1, 2);
  SAYS("TypeError(\"unhashable type: 'list'\")", &r, d.text, "__setitem__",
       "([]i)", 1);
  SAYS("9", &r, d.text, "setdefault", "(si)", "b", 9);
  SAYS("['a', 2, 'b']", &r, d.text, "keys", "()");
  SAYS("[('a', 1), (2, 'two'), ('b', 9)]", &r, d.text, "items", "()");
  SAYS("('b', 9)", &r, d.text, "popitem", "()");
  SAYS("{'a': 1, 2: 'two'}", &r, d.text, "copy", "()");
  SAYS("{'a': 1, 2: 'two'}", &r, d.text, "__str__", "()");
  SAYS("ValueError('dictionary update sequence element #1 has length 3; 2 is "
       "required')", &r, d.text, "update", "([(ii)(iii)])", 3, 4, 5, 6, 7);
  SAYS("4", &r, d.text, "pop", "(i)", 3); /* as in Python: so far it went */
  SAYS("None", &r, d.text, "clear", "()");
  SAYS("KeyError('popitem(): dictionary is empty')", &r, d.text, "popitem",
       "()");
  close_room(&r);
}

/* Sends RebuildProxy(cls, Token(type, None, id), 'pickle', {}) as the argument
   of a method, with what a hostile client may write there. */
static void tell_proxy(conc__peer *p, const char *to, const char *method,
                       const char *module, const char *type, const char *id) {
  conc__buffer b = {NULL, 0, 0, 0};
#define PUT(x) CHECK_EQ(conc__buffer_append(&b, x, sizeof(x) - 1), 0)
  PUT("\x80\x04(");
  CHECK_EQ(conc__pickle_put_str(&b, to, strlen(to)), 0);
  CHECK_EQ(conc__pickle_put_str(&b, method, strlen(method)), 0);
  PUT("cmultiprocessing.managers\nRebuildProxy\n(");
  CHECK_EQ(conc__pickle_put_global(&b, module, type), 0);
  PUT("cmultiprocessing.managers\nToken\n)\x81");
  CHECK_EQ(conc__pickle_put_str(&b, "x\ny", 3), 0);
  CHECK_EQ(conc__pickle_put_str(&b, "evil.example", 12), 0);
  CHECK_EQ(conc__pickle_put_str(&b, id, strlen(id)), 0);
  PUT("\x87" "b");
  CHECK_EQ(conc__pickle_put_str(&b, "pickle", 6), 0);
  PUT("}(");
  CHECK_EQ(conc__pickle_put_str(&b, "exposed", 7), 0);
  CHECK_EQ(conc__pickle_put_str(&b, "f(): pass", 9), 0);
  PUT("utR\x85}t.");
#undef PUT
  send_pickle(p, b.data, b.size);
  conc__buffer_free(&b);
}

static const char *append_proxy(room *r, const char *to, const char *module,
                                const char *type, const char *id) {
  tell_proxy(r->peer, to, "append", module, type, id);
  return hear(r->peer);
}

/* Sends (ident, method, (Decimal('1.5'), ...), {}); `more` is what stands
   behind the first argument. */
static const char *with_decimal(room *r, const char *to, const char *method,
                                const char *more, size_t size) {
  static const char decimal[] =
      "(cdecimal\nDecimal\nX\3\0\0\0001.5\x85R";
  conc__buffer b = {NULL, 0, 0, 0};
  const char *text;
  CHECK_EQ(conc__buffer_append(&b, "\x80\x04(", 3), 0);
  CHECK_EQ(conc__pickle_put_str(&b, to, strlen(to)), 0);
  CHECK_EQ(conc__pickle_put_str(&b, method, strlen(method)), 0);
  CHECK_EQ(conc__buffer_append(&b, decimal, sizeof decimal - 1), 0);
  CHECK_EQ(conc__buffer_append(&b, more, size), 0);
  CHECK_EQ(conc__buffer_append(&b, "t}t.", 4), 0);
  text = exchange(r->peer, b.data, b.size);
  conc__buffer_free(&b);
  return text;
}

/* Of a class that C does not know: kept on a server with .objects, as an item,
   as a key and in a queue; else refused by its name. */
TEST(objects_are_kept_where_they_may_be) {
  room r;
  name l, d, q;
  int passes;
  for (passes = 0; passes < 2; passes++) {
    open_room_of(&r, passes ? CONC_PASS : 0);
    l = MAKE(&r, "(s)", "list");
    d = MAKE(&r, "(s)", "dict");
    q = MAKE(&r, "(s)", "Queue");
    if (!passes) {
      CHECK(strstr(with_decimal(&r, q.text, "put", "", 0),
                   "decimal.Decimal") != NULL);
      SAYS("True", &r, q.text, "empty", "()");
      CHECK(strstr(with_decimal(&r, l.text, "append", "", 0),
                   "decimal.Decimal") != NULL);
      CHECK(strstr(with_decimal(&r, d.text, "__setitem__", "K\1", 2),
                   "decimal.Decimal") != NULL);
      CHECK(strstr(with_decimal(&r, d.text, "__getitem__", "", 0),
                   "KeyError") != NULL);
    } else {
      CHECK_STR(with_decimal(&r, l.text, "append", "", 0), "None");
      CHECK_STR(with_decimal(&r, l.text, "__contains__", "", 0), "True");
      ask(&r, l.text, "__getitem__", "(i)", 0);
      CHECK(has_bytes("cdecimal\nDecimal\n"));
      SAYS("[<decimal.Decimal object>]", &r, l.text, "__repr__", "()");
      CHECK_STR(with_decimal(&r, d.text, "__setitem__", "K\1", 2), "None");
      CHECK_STR(with_decimal(&r, d.text, "__getitem__", "", 0), "1");
      CHECK_STR(with_decimal(&r, d.text, "__delitem__", "", 0), "None");
      CHECK_STR(with_decimal(&r, q.text, "put", "", 0), "None");
      ask(&r, q.text, "get", "()");
      CHECK(has_bytes("cdecimal\nDecimal\n"));
    }
    close_room(&r);
  }
}

static size_t objects(room *r) {
  conc__objects *t = &((conc__manager_data *)r->s.server.state)->objects;
  conc__object *o;
  size_t i, n = 0;
  for (i = 0; conc__object_at(t, i, &o); i++) n += o != NULL;
  return n;
}

TEST(a_proxy_is_written_anew_and_keeps_its_object) {
  const char *text;
  size_t before;
  name l, inner;
  room r;
  open_room(&r);
  before = objects(&r);
  l = MAKE(&r, "(s)", "list");
  inner = MAKE(&r, "(s[i])", "list", 7);
  CHECK_STR(append_proxy(&r, l.text, "multiprocessing.managers", "ListProxy",
                         inner.text), "None");
  SAYS("None", &r, NULL, "decref", "(s)", inner.text);
  CHECK_EQ(objects(&r), before + 2);
  SAYS("[7]", &r, inner.text, "copy", "()");
  /* Of what the client has said, the id is left. */
  ask(&r, l.text, "__getitem__", "(i)", 0);
  CHECK(has_bytes("RebuildProxy") && has_bytes(inner.text));
  CHECK(!has_bytes("evil") && !has_bytes("f()"));
  SAYS_PART("<ListProxy object, typeid 'list' at 0x", &r, l.text, "__repr__",
            "()");
  SAYS("False", &r, l.text, "__contains__", "(i)", 7);
  SAYS("None", &r, l.text, "__delitem__", "(i)", 0);
  CHECK_EQ(objects(&r), before + 1);
  SAYS_PART("no object", &r, inner.text, "copy", "()");
  /* No object; and a class that is none of proxies. */
  text = append_proxy(&r, l.text, "multiprocessing.managers", "ListProxy",
                      "0.1");

  CHECK(strstr(text, "TRACEBACK KeyError: a proxy of no object") == text);
  CHECK_STR(append_proxy(&r, l.text, "os", "system", l.text), "None");
  ask(&r, l.text, "__getitem__", "(i)", 0);
  CHECK(has_bytes("ListProxy") && has_bytes(l.text) && !has_bytes("system"));
  SAYS("None", &r, l.text, "clear", "()");
  close_room(&r);
}

/* A chain of objects, each in the next, goes as a whole; and a circle, which
   nobody can drop, at the end of the manager. */
TEST(objects_inside_of_objects_go_with_them) {
  name inner, outer;
  size_t before;
  room r;
  int i;
  open_room(&r);
  before = objects(&r);
  inner = MAKE(&r, "(s)", "list");
  for (i = 0; i < 200; i++) {
    outer = MAKE(&r, "(s)", "list");
    CHECK_STR(append_proxy(&r, outer.text, "multiprocessing.managers",
                           "ListProxy", inner.text), "None");
    SAYS("None", &r, NULL, "decref", "(s)", inner.text);
    inner = outer;
  }
  CHECK_EQ(objects(&r), before + 201);
  SAYS("None", &r, NULL, "decref", "(s)", inner.text);
  CHECK_EQ(objects(&r), before);
  inner = MAKE(&r, "(s)", "list");
  CHECK_STR(append_proxy(&r, inner.text, "multiprocessing.managers",
                         "ListProxy", inner.text), "None");
  SAYS("None", &r, NULL, "decref", "(s)", inner.text);
  CHECK_EQ(objects(&r), before + 1);
  close_room(&r);
}

/* Sends (ident, method, args, {}), and does not wait for the reply. */
static void tell(conc__peer *p, const char *ident, const char *method,
                 const char *format, int arg) {
  conc_value *args, *request;
  void *data;
  size_t size;
  CHECK_EQ(conc_build(&args, format, arg), 0);
  CHECK_EQ(conc_build(&request, "(ssO{})", ident, method, args), 0);
  CHECK_EQ(conc_pickle_dumps(request, 4, &data, &size), 0);
  send_pickle(p, data, size);
  conc_free(data);
  conc_value_free(request);
  conc_value_free(args);
}

/* A list of 32,768 numbers above `least` in a bad order. */
static name long_list(room *r, int least) {
  name l = MAKE(r, "(s)", "list");
  char text[20];
  int i;
  SAYS("None", r, l.text, "extend", "([iiiiiiii])", least + 7,
       least + 3, least + 5, least + 1, least + 8, least + 2, least + 6,
       least + 4);
  for (i = 0; i < 5; i++) {
    tell(r->peer, l.text, "__imul__", "(i)", i < 4 ? 8 : 1);
    hear(r->peer);
  }
  snprintf(text, sizeof text, "%d", 8 * 8 * 8 * 8 * 8);
  SAYS(text, r, l.text, "__len__", "()");
  return l;
}

/* Another client takes an object out of a list while the one that was told of
   it is still reading the reply. */
TEST(an_object_that_a_reply_tells_of_lives_until_the_next_request) {
  conc__peer *other;
  name l, inner;
  size_t before;
  room r;
  int keep;
  open_room(&r);
  before = objects(&r);
  CHECK_EQ(conc__peer_open(r.s.client.state, &other, soon()), 0);
  tell(other, NULL, "accept_connection", "(i)", 0);
  CHECK_STR(hear(other), "True");
  l = MAKE(&r, "(s)", "list");
  for (keep = 0; keep < 2; keep++) {
    inner = MAKE(&r, "(s)", "list");
    CHECK_STR(append_proxy(&r, l.text, "multiprocessing.managers",
                           "ListProxy", inner.text), "None");
    SAYS("None", &r, NULL, "decref", "(s)", inner.text);
    ask(&r, l.text, "__getitem__", "(i)", 0);
    CHECK(has_bytes(inner.text));
    tell(other, l.text, "__delitem__", "(i)", 0);
    CHECK_STR(hear(other), "None");
    CHECK_EQ(objects(&r), before + 2);
    if (keep) SAYS("None", &r, NULL, "incref", "(s)", inner.text);
    SAYS("0", &r, l.text, "__len__", "()");
    CHECK_EQ(objects(&r), before + 1 + (size_t)keep);
  }
  SAYS("[]", &r, inner.text, "copy", "()");
  conc__peer_close(other);
  close_room(&r);
}

/* Others have their turns meanwhile. It may be over before the other one has
   asked: so there are some tries. */
TEST(a_sort_keeps_nobody_waiting) {
  conc__peer *other;
  bool waited = true;
  name l, m;
  room r;
  int i;
  open_room(&r);
  CHECK_EQ(conc__peer_open(r.s.client.state, &other, soon()), 0);
  l = long_list(&r, 0);
  m = MAKE(&r, "(s)", "list");
  tell(other, NULL, "accept_connection", "(i)", 0);
  CHECK_STR(hear(other), "True");
  for (i = 0; i < 50 && waited; i++) {
    char byte;
    tell(r.peer, l.text, i % 2 ? "reverse" : "sort", "()", 0);
    if (i % 2) {
      hear(r.peer);
      continue;
    }
    tell(other, m.text, "__len__", "()", 0);
    CHECK_STR(hear(other), "0");
    waited = recv(r.peer->channel.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
    CHECK_STR(hear(r.peer), "None");
  }
  CHECK(!waited);
  conc__peer_close(other);
  close_room(&r);
}

/* Nor does a list or dict that is taken from another one, or an array. */
TEST(what_is_taken_from_another_object_keeps_nobody_waiting) {
  static char text[200000];
  conc__peer *other;
  conc_value *v;
  name l, k, d, e, m;
  size_t n = 0;
  room r;
  int i, kind, waited = 0;
  open_room(&r);
  CHECK_EQ(conc__peer_open(r.s.client.state, &other, soon()), 0);
  l = long_list(&r, 0);
  k = MAKE(&r, "(s)", "list");
  d = MAKE(&r, "(s)", "dict");
  e = MAKE(&r, "(s)", "dict");
  m = MAKE(&r, "(s)", "list");
  for (i = 0; i < 8000; i++)
    n += (size_t)snprintf(text + n, sizeof text - n, "%c\"%d\": 1",
                          i == 0 ? '{' : ',', i);
  snprintf(text + n, sizeof text - n, "}");
  v = json(text);
  SAYS("None", &r, d.text, "update", "(O)", v);
  conc_value_free(v);
  tell(other, NULL, "accept_connection", "(i)", 0);
  CHECK_STR(hear(other), "True");
  for (kind = 0; kind < 2; kind++) {
    const char *to = kind == 0 ? k.text : e.text;
    for (i = 0; i < 50; i++) {
      char byte;
      if (kind == 0)
        tell_proxy(r.peer, to, "extend", "multiprocessing.managers",
                   "ListProxy", l.text);
      else
        tell_proxy(r.peer, to, "update", "multiprocessing.managers",
                   "DictProxy", d.text);
      tell(other, m.text, "__len__", "()", 0);
      CHECK_STR(hear(other), "0");
      waited = recv(r.peer->channel.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
      CHECK_STR(hear(r.peer), "None");
      SAYS(kind == 0 ? "32768" : "8000", &r, to, "__len__", "()");
      SAYS("None", &r, to, "clear", "()");
      if (!waited) break;
    }
    CHECK(!waited);
  }
  conc__peer_close(other);
  close_room(&r);
}

/* A method that comes while another one has its turns waits for it: the new
   element is at the one end or at the other, and nothing is lost. */
TEST(methods_of_an_object_follow_one_another) {
  conc__peer *other;
  char text[20];
  name l;
  room r;
  int i, n = 8 * 8 * 8 * 8 * 8;
  open_room(&r);
  CHECK_EQ(conc__peer_open(r.s.client.state, &other, soon()), 0);
  l = long_list(&r, 0);
  tell(other, NULL, "accept_connection", "(i)", 0);
  CHECK_STR(hear(other), "True");
  for (i = 0; i < 10; i++) {
    tell(r.peer, l.text, "sort", "()", 0);
    tell(other, l.text, "append", "(i)", -i);
    CHECK_STR(hear(other), "None");
    CHECK_STR(hear(r.peer), "None");
    snprintf(text, sizeof text, "%d", n + 1);
    SAYS(text, &r, l.text, "__len__", "()");
    snprintf(text, sizeof text, "%d", -i);
    if (strcmp(ask(&r, l.text, "__getitem__", "(i)", 0), text) == 0)
      SAYS(text, &r, l.text, "pop", "(i)", 0);
    else
      SAYS(text, &r, l.text, "pop", "()");
    SAYS("None", &r, l.text, "reverse", "()");
  }
  conc__peer_close(other);
  close_room(&r);
}

/* One client extends a list by another one, which a second client sorts; while
   that is awaited, a third one begins to sort the first list. Then the new
   elements come behind all others, not into the middle of the work. */
TEST(a_list_that_is_taken_while_another_is_awaited_is_awaited_too) {
  conc__peer *other[2];
  name l, m;
  room r;
  int i;
  open_room(&r);
  l = long_list(&r, 0);
  m = long_list(&r, 10);
  SAYS("None", &r, l.text, "__delitem__", "(i)", 0);
  for (i = 0; i < 2; i++) {
    CHECK_EQ(conc__peer_open(r.s.client.state, &other[i], soon()), 0);
    tell(other[i], NULL, "accept_connection", "(i)", 0);
    CHECK_STR(hear(other[i]), "True");
  }
  for (i = 0; i < 5; i++) {
    tell(r.peer, m.text, "sort", "()", 0);
    tell_proxy(other[0], l.text, "extend", "multiprocessing.managers",
               "ListProxy", m.text);
    tell(other[1], l.text, "sort", "()", 0);
    CHECK_STR(hear(r.peer), "None");
    CHECK_STR(hear(other[0]), "None");
    CHECK_STR(hear(other[1]), "None");
    SAYS("65535", &r, l.text, "__len__", "()");
    SAYS("4096", &r, l.text, "count", "(i)", 5);
    SAYS("4096", &r, l.text, "count", "(i)", 15);
    /* Back to the 32,767 and the bad order of before. */
    SAYS("None", &r, l.text, "sort", "()");
    SAYS("None", &r, l.text, "__delslice__", "(ii)", 32767, 65535);
    SAYS("None", &r, l.text, "reverse", "()");
    SAYS("None", &r, m.text, "reverse", "()");
  }
  for (i = 0; i < 2; i++) conc__peer_close(other[i]);
  close_room(&r);
}

#define TEN(x) x x x x x x x x x x
static const char text_1000[] = TEN(TEN(TEN("a")));

/* A list that has a text of 1,000 characters 100 times. */
static conc_value *shared_text(void) {
  conc__buffer b = {NULL, 0, 0, 0};
  conc_value *v;
  int i;
  CHECK_EQ(conc__buffer_append(&b, "](X\350\3\0\0", 7), 0);
  CHECK_EQ(conc__buffer_append(&b, text_1000, 1000), 0);
  CHECK_EQ(conc__buffer_append(&b, "q\0", 2), 0);
  for (i = 1; i < 100; i++) CHECK_EQ(conc__buffer_append(&b, "h\0", 2), 0);
  CHECK_EQ(conc__buffer_append(&b, "e.", 2), 0);
  v = loaded((const char *)b.data, b.size);
  conc__buffer_free(&b);
  return v;
}

/* What no reply may have is not written. Each element here is some bytes and
   shows a text of 100,000. */
TEST(a_text_ends_where_no_reply_is_as_long) {
  static conc__manager_data m;
  static conc__session s;
  conc__complaint c = {NULL, "", NULL};
  conc__buffer b = {NULL, 0, 0, 0};
  conc__draft d = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
  conc__list_state list;
  conc__dict_state dict;
  conc__items items;
  conc__object o[4];
  conc__write_fn *const write[4] = {conc__list_write, conc__dict_write,
                                    conc__namespace_write, conc__array_write};
  conc_value *v, *key;
  size_t i;
  memset(o, 0, sizeof o);
  memset(&list, 0, sizeof list);
  memset(&dict, 0, sizeof dict);
  memset(&items, 0, sizeof items);
  items.code = conc__code_find('b');
  o[0].type = &conc__list_type;
  o[1].type = &conc__dict_type;
  o[2].type = &conc__namespace_type;
  o[3].type = &conc__array_type;
  o[0].state = &list;
  o[1].state = o[2].state = &dict;
  o[3].state = &items;
  v = shared_text();
  for (i = 0; i < 100; i++) {
    char number[8];
    snprintf(number, sizeof number, "n%d", (int)i);
    CHECK_EQ(conc_build(&key, "s", number), 0);
    CHECK_EQ(conc__iterate_value(NULL, &d, &list.cells, v, &c), 0);
    CHECK_EQ(conc__dict_put_value(NULL, &dict.table, key, v, &c), 0);
    CHECK_EQ(conc__buffer_append(&items.data, text_1000, 20), 0);
    conc_value_free(key);
  }
  m.max_message = 4000;
  s.manager = &m;
  for (i = 0; i < 4; i++) {
    b.size = 0;
    CHECK_EQ(write[i](&s, &o[i], &b), 0);
    CHECK(b.size > 4000 && b.size < (i < 3 ? 10000 : 4100));
    b.size = 0;
    CHECK_EQ(write[i](NULL, &o[i], &b), 0);
    CHECK(b.size > CONC__TEXT_ENOUGH && b.size < (i < 3 ? 3500 : 1100));
  }
  conc__elements_free(&list.cells);
  conc__table_free(&dict.table);
  conc__buffer_free(&items.data);
  conc__buffer_free(&b);
  conc__draft_free(&d);
  conc_value_free(v);
}

/* Where a beginning is enough, one that lies far behind the bytes of the text
   is not read at all; and of a long text no more than the beginning. */
TEST(of_a_large_element_little_is_read_for_a_beginning) {
  static conc__manager_data m;
  static conc__session s;
  conc__complaint c = {NULL, "", NULL};
  conc__buffer b = {NULL, 0, 0, 0};
  conc__draft d = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
  conc__list_state list;
  conc__object o;
  conc_value *v;
  int i;
  memset(&o, 0, sizeof o);
  memset(&list, 0, sizeof list);
  o.type = &conc__list_type;
  o.state = &list;
  CHECK_EQ(conc__buffer_append(&b, "](", 2), 0);
  for (i = 0; i < 40000; i++) CHECK_EQ(conc__buffer_append(&b, "K\0", 2), 0);
  CHECK_EQ(conc__buffer_append(&b, "e.", 2), 0);
  v = loaded((const char *)b.data, b.size);
  CHECK_EQ(conc__iterate_value(NULL, &d, &list.cells, v, &c), 0);
  conc_value_free(v);
  memset(b.data, 'a', b.capacity);
  CHECK_EQ(conc_build(&v, "s#", (const char *)b.data, (size_t)80000), 0);
  CHECK_EQ(conc__iterate_value(NULL, &d, &list.cells, v, &c), 0);
  conc_value_free(v);
  b.size = 0;
  CHECK_EQ(conc__list_write(NULL, &o, &b), 0);
  CHECK(b.size > 1000 && b.size < 1020);
  CHECK(memcmp(b.data, "[..., 'aaa", 10) == 0);
  m.max_message = 1000000;
  s.manager = &m;
  b.size = 0;
  CHECK_EQ(conc__list_write(&s, &o, &b), 0);
  CHECK_EQ(b.size, 1 + 3 * 40000 + 2 + 80002 + 1);
  conc__elements_free(&list.cells);
  conc__buffer_free(&b);
  conc__draft_free(&d);
}

/* A list that has a list twice, which has a list twice, and so on, so deep
   that it has 2047 in it; and behind it a number. It has a few bytes. */
static conc_value *shared_lists(int number) {
  conc__buffer b = {NULL, 0, 0, 0};
  conc_value *v;
  unsigned char i;
  CHECK_EQ(conc__buffer_append(&b, "]q\0" "0", 4), 0);
  for (i = 0; i < 10; i++) {
    unsigned char level[] = {'(', 'h', i, 'h', i, 'l', 'q', 0, '0'};
    level[7] = (unsigned char)(i + 1);
    CHECK_EQ(conc__buffer_append(&b, level, sizeof level), 0);
  }
  CHECK_EQ(conc__buffer_append(&b, "(h\12K", 4), 0);
  CHECK_EQ(conc__buffer_append(&b, &number, 1), 0);
  CHECK_EQ(conc__buffer_append(&b, "l.", 2), 0);
  v = loaded((const char *)b.data, b.size);
  conc__buffer_free(&b);
  return v;
}

/* Or a few bytes would keep all clients waiting for minutes. */
TEST(an_element_counts_by_all_that_is_met_in_it) {
  static conc__manager_data m;
  static conc__session s;
  conc__complaint c = {NULL, "", NULL};
  conc__buffer b = {NULL, 0, 0, 0};
  conc__draft d = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
  conc__list_state list;
  conc__object o;
  conc_value *v = shared_lists(0), *other = shared_lists(1);
  char text[100];
  size_t place;
  int i;
  memset(&o, 0, sizeof o);
  memset(&list, 0, sizeof list);
  o.type = &conc__list_type;
  o.state = &list;
  m.max_message = 1000000;
  s.manager = &m;
  for (i = 0; i < 3; i++)
    CHECK_EQ(conc__iterate_value(NULL, &d, &list.cells, v, &c), 0);
  CHECK_EQ(conc__elements_find(&s, &list.cells, other, 0, 3, &place), 0);
  CHECK(place == 3 && s.done > 3 * 2047 / 8);
  s.done = 0;
  CHECK_EQ(conc__elements_sort(&s, &list.cells, false, text, sizeof text), 0);
  CHECK(s.done > 2 * 2047 / 8);
  s.done = 0;
  CHECK_EQ(conc__list_write(&s, &o, &b), 0);
  CHECK(b.size > 3 * 2047 * 2 && s.done > 3 * 2047 * 2 / 16);
  conc__elements_free(&list.cells);
  conc__buffer_free(&b);
  conc__draft_free(&d);
  conc_value_free(v);
  conc_value_free(other);
}

/* Adds n numbers. */
static void add_numbers(conc__elements *cs, int n) {
  conc__complaint c = {NULL, "", NULL};
  conc__draft d = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
  conc_value *v;
  CHECK_EQ(conc_build(&v, "(i[])", 7), 0); /* in a block of its own */
  while (n-- > 0) CHECK_EQ(conc__iterate_value(NULL, &d, cs, v, &c), 0);
  conc_value_free(v);
  conc__draft_free(&d);
}

/* How many portions there are of what was left. */
static int sweeps(conc__objects *t) {
  int n = 0;
  for (; t->remains != NULL; n++) conc__remains_sweep(t);
  return n;
}

/* Between two portions others have their turns: here the sweeper is said to
   run, and is this test. */
TEST(many_elements_rows_and_messages_are_freed_bit_by_bit) {
  conc__objects t;
  conc__object o;
  conc__table table;
  conc__elements cs = {NULL, 0, 0, 0}, with = {NULL, 0, 0, 0};
  conc__complaint c = {NULL, "", NULL};
  int i;
  memset(&t, 0, sizeof t);
  memset(&o, 0, sizeof o);
  memset(&table, 0, sizeof table);
  t.sweeping = true;
  add_numbers(&cs, CONC__SWEEP);
  conc__elements_leave(&t, &cs); /* these are few */
  CHECK(cs.count == 0 && cs.at == NULL && t.remains == NULL);
  add_numbers(&cs, 2 * CONC__SWEEP + 1);
  conc__elements_leave(&t, &cs);
  CHECK(cs.count == 0 && cs.at == NULL && cs.weight == 0);
  CHECK_EQ(sweeps(&t), 3);
  /* Those of a slice, of all that are there, and each second one. */
  add_numbers(&cs, 3 * CONC__SWEEP);
  add_numbers(&with, 3);
  CHECK_EQ(conc__elements_replace(&t, &cs, 1, CONC__SWEEP + 1, &with), 0);
  CHECK_EQ(cs.count, 2 * CONC__SWEEP + 2);
  CHECK_EQ(sweeps(&t), 2);
  conc__elements_free(&with);
  add_numbers(&cs, 2 * CONC__SWEEP);
  conc__elements_remove(&t, &cs, 1, 2, cs.count / 2);
  CHECK_EQ(cs.count, 2 * CONC__SWEEP + 1);
  CHECK_EQ(sweeps(&t), 3);
  conc__elements_remove(&t, &cs, 0, 1, cs.count);
  CHECK(cs.count == 0 && cs.weight == 0);
  CHECK_EQ(sweeps(&t), 3);
  conc__elements_free(&cs);
  for (i = 0; i <= CONC__SWEEP; i++) {
    conc_value *v;
    CHECK_EQ(conc_build(&v, "i", i), 0);
    CHECK_EQ(conc__dict_put_value(NULL, &table, v, v, &c), 0);
    conc_value_free(v);
  }
  conc__table_clear(&t, &table);
  CHECK(table.count == 0 && table.serial == CONC__SWEEP + 1);
  CHECK_EQ(sweeps(&t), 2);
  o.table = &t;
  o.queue = conc_queue_new(NULL);
  for (i = 0; i <= CONC__SWEEP; i++)
    CHECK_EQ(conc_put(o.queue, text_1000, (size_t)i % 300, 0), 0);
  conc__drop_queue(&o);
  CHECK_EQ(sweeps(&t), 2);
  /* Where no loop runs it is done at once. */
  t.sweeping = false;
  add_numbers(&cs, CONC__SWEEP + 1);
  conc__elements_leave(&t, &cs);
  CHECK(t.remains == NULL && !t.sweeping);
}

static void look_at_remains(void *arg) {
  room *r = (room *)arg;
  const conc__objects *t = &r->s.server.state->objects;
  CHECK(t->sweeping == (t->remains != NULL));
  if (t->remains == NULL) r->rests = true;
}

TEST(a_server_frees_what_is_left_while_it_serves) {
  name l;
  room r;
  open_room(&r);
  l = long_list(&r, 0);
  SAYS("None", &r, l.text, "clear", "()");
  SAYS("0", &r, l.text, "__len__", "()");
  while (!r.rests)
    CHECK_EQ(conc__server_do(r.s.server.state, look_at_remains, &r, soon()),
             0);
  l = long_list(&r, 0); /* a second time, and the server ends */
  SAYS("None", &r, l.text, "clear", "()");
  close_room(&r);
}

/* Or to look at a thousand of them would be one turn. */
TEST(a_large_element_counts_as_many_small_ones) {
  static conc__session s;
  conc__complaint c = {NULL, "", NULL};
  conc__draft d = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
  conc__elements cs = {NULL, 0, 0, 0}, copy = {NULL, 0, 0, 0};
  conc_value *v = shared_text(), *none = json("null");
  char text[100];
  size_t place;
  int i;
  for (i = 0; i < 3; i++)
    CHECK_EQ(conc__iterate_value(NULL, &d, &cs, v, &c), 0);
  CHECK_EQ(conc__elements_find(&s, &cs, none, 0, 3, &place), 0);
  CHECK(place == 3 && s.done >= 15);
  s.done = 0;
  CHECK_EQ(conc__elements_copy(&s, &copy, &cs, 0, 1, 3), 0);
  CHECK(s.done >= 15);
  s.done = 0;
  CHECK_EQ(conc__elements_sort(&s, &cs, false, text, sizeof text), 0);
  CHECK(s.done >= 15 + 10);
  conc__elements_free(&cs);
  conc__elements_free(&copy);
  conc__draft_free(&d);
  conc_value_free(v);
  conc_value_free(none);
}

TEST(an_array_takes_what_fits_its_items) {
  name a;
  room r;
  open_room(&r);
  a = MAKE(&r, "(ss[iii])", "Array", "b", 1, -128, 127);
  SAYS("-128", &r, a.text, "__getitem__", "(i)", 1);
  SAYS("OverflowError('signed char is greater than maximum')", &r, a.text,
       "__setitem__", "(ii)", 0, 128);
  SAYS("OverflowError('signed char is less than minimum')", &r, a.text,
       "__setitem__", "(ii)", 0, -129);
  SAYS("IndexError('array assignment index out of range')", &r, a.text,
       "__setitem__", "(ii)", 3, 0);
  SAYS("array('b', [1, -128, 127])", &r, a.text, "__repr__", "()");
  SAYS_PART("ValueError: bad typecode", &r, NULL, "create", "(ss[])", "Array",
            "x");
  a = MAKE(&r, "(ss[L])", "Array", "q", (long long)INT64_MIN);
  SAYS("-9223372036854775808", &r, a.text, "__getitem__", "(i)", 0);
  a = MAKE(&r, "(ss[K])", "Array", "Q", (unsigned long long)UINT64_MAX);
  SAYS("18446744073709551615", &r, a.text, "__getitem__", "(i)", 0);
  close_room(&r);
}

/* array.array('u', bytes), of which no four are a character. */
TEST(an_array_of_characters_has_no_other_items) {
  static const char array[] = "(carray\narray\n(X\1\0\0\0uC\4";
  static const uint32_t items[] = {0x10ffff, 0x110000, 0xffffffff};
  name l;
  room r;
  size_t i;
  open_room(&r);
  l = MAKE(&r, "(s)", "list");
  for (i = 0; i < 3; i++) {
    conc__buffer b = {NULL, 0, 0, 0};
    CHECK_EQ(conc__buffer_append(&b, "\x80\x04(", 3), 0);
    CHECK_EQ(conc__pickle_put_str(&b, l.text, strlen(l.text)), 0);
    CHECK_EQ(conc__pickle_put_str(&b, "extend", 6), 0);
    CHECK_EQ(conc__buffer_append(&b, array, sizeof array - 1), 0);
    CHECK_EQ(conc__buffer_append(&b, &items[i], 4), 0);
    CHECK_EQ(conc__buffer_append(&b, "tRt}t.", 6), 0);
    CHECK_STR(exchange(r.peer, b.data, b.size),
              i == 0 ? "None" : "TypeError(\"'array' object is not "
                                "iterable\")");
    conc__buffer_free(&b);
  }
  SAYS("['\\U0010ffff']", &r, l.text, "__repr__", "()");
  close_room(&r);
}

TEST_MAIN
