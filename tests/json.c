/* JSON: what RFC 8259 says must be read and must be refused, by the classes
   of JSONTestSuite (y_ and n_; what it leaves open is what the header says),
   numbers to the last digit, and errors that tell where. */
#include "test.h"
#include "../conc.h"
#include <locale.h>
#include <math.h>

static const struct {
  const char *text, *written; /* written NULL: the same */
} accepted[] = {
    /* structure */
    {"null", NULL}, {"true", NULL}, {"false", NULL}, {"[]", NULL},
    {"{}", NULL}, {"\"\"", NULL}, {"42", NULL}, {"-0.1", NULL},
    {" [] ", "[]"}, {"[[]   ]", "[[]]"}, {"\t\n\r [1]", "[1]"},
    {"[\n1\r,\t2 ]", "[1, 2]"}, {"[\"\"]", NULL}, {"[false]", NULL},
    {"[null, 1, \"1\", {}]", NULL}, {"[1\n]", "[1]"}, {"[true]\n", "[true]"},
    {"[1,null,null,null,2]", "[1, null, null, null, 2]"},
    {"[ 4]", "[4]"}, {" [1]", "[1]"}, {"[2] ", "[2]"},
    /* numbers */
    {"[123e65]", "[1.23e+67]"}, {"[0e+1]", "[0.0]"}, {"[0e1]", "[0.0]"},
    {"[1E22]", "[1e+22]"}, {"[1E-2]", "[0.01]"}, {"[1E+2]", "[100.0]"},
    {"[123e45]", "[1.23e+47]"}, {"[123.456e78]", "[1.23456e+80]"},
    {"[1e-2]", "[0.01]"}, {"[1e+2]", "[100.0]"}, {"[123]", NULL},
    {"[123.456789]", NULL}, {"[-0]", "[0]"}, {"[-0.0]", NULL},
    {"[-123]", NULL}, {"[-1]", NULL}, {"[1e16]", "[1e+16]"},
    {"[-0.000000000000000000000000000000000000000000000000000000000000000000"
     "000000000001]", "[-1e-78]"},
    {"9223372036854775807", NULL}, {"9223372036854775808", NULL},
    {"-9223372036854775808", NULL}, {"-9223372036854775809", NULL},
    {"18446744073709551616", NULL}, {"-18446744073709551616", NULL},
    {"123456789012345678901234567890123456789012345678901234567890", NULL},
    {"1e-400", "0.0"}, {"-1e-400", "-0.0"}, {"0e99999999999999999999", "0.0"},
    {"5e-324", NULL}, {"1.7976931348623157e308", "1.7976931348623157e+308"},
    {"2.2250738585072011e-308", "2.225073858507201e-308"},
    {"0.1", NULL}, {"0.30000000000000004", NULL}, {"100000000000000000.0",
     "1e+17"},
    /* objects */
    {"{\"asd\":\"sdf\", \"dfg\":\"fgh\"}", "{\"asd\": \"sdf\", "
     "\"dfg\": \"fgh\"}"},
    {"{\"a\":\"b\",\"a\":\"c\"}", "{\"a\": \"c\"}"},
    {"{\"a\":1,\"b\":2,\"a\":3}", "{\"a\": 3, \"b\": 2}"},
    {"{\"\":0}", "{\"\": 0}"}, {"{\"foo\\u0000bar\": 42}", NULL},
    {"{\"min\": -1.0e+28, \"max\": 1.0e+28}", "{\"min\": -1e+28, "
     "\"max\": 1e+28}"},
    {"{\n\"a\": []\n}", "{\"a\": []}"}, {"{\"x\":[{\"id\": \"x\"}]}",
     "{\"x\": [{\"id\": \"x\"}]}"},
    /* strings */
    {"\"\\u0060\\u012a\\u12AB\"", "\"`\xc4\xaa\xe1\x8a\xab\""},
    {"\"\\uD801\\udc37\"", "\"\xf0\x90\x90\xb7\""},
    {"\"\\ud83d\\ude39\\ud83d\\udc8d\"", "\"\xf0\x9f\x98\xb9"
     "\xf0\x9f\x92\x8d\""},
    {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\b\\f\\n\\r\\t\""},
    {"\"\\\\u0000\"", NULL}, {"\"\\\"\"", NULL}, {"\"a/*b*/c\"", NULL},
    {"\"\\\\a\"", NULL}, {"\"\\u0012\"", NULL}, {"\"\\uFFFF\"",
     "\"\xef\xbf\xbf\""},
    {"\"\\uDBFF\\uDFFF\"", "\"\xf4\x8f\xbf\xbf\""},
    {"\"\xf4\x8f\xbf\xbf\"", NULL}, {"\"\xef\xbf\xbf\"", NULL},
    {"\"\\u0000\"", NULL}, {"\"\\u002c\"", "\",\""}, {"\"\xcf\x80\"", NULL},
    {"\"\xf0\x9b\xbf\xbf\"", NULL}, {"\"asd \"", NULL}, {"\" \"", NULL},
    {"\"\\uD834\\uDd1e\"", "\"\xf0\x9d\x84\x9e\""},
    {"\"\\u0821\"", "\"\xe0\xa0\xa1\""}, {"\"\\u0123\"", "\"\xc4\xa3\""},
    {"\"\xe2\x80\xa8\"", NULL}, {"\"\xe2\x80\xa9\"", NULL},
    {"\"\x7f\"", NULL}, {"\"a\x7f" "a\"", NULL}, {"\"\\u005C\"", "\"\\\\\""},
    {"\"\\u0022\"", "\"\\\"\""}, {"\"\\u200B\"", "\"\xe2\x80\x8b\""},
    {"\"\\uFDD0\\uFFFE\"", "\"\xef\xb7\x90\xef\xbf\xbe\""},
    {"\"\xed\x9f\xbf\"", NULL}, /* the last before the surrogates */
    {"\"\xe2\x82\xac\xf0\x9d\x84\x9e\"", NULL}, {"\"aa\"", NULL},
    /* left open by the RFC: halves of pairs are kept, as Python keeps them */
    {"\"\\uDADA\"", "\"\\udada\""}, {"\"\\uDd1e\\uD834\"",
     "\"\\udd1e\\ud834\""},
    {"\"\\uD888\\u1234\"", "\"\\ud888\xe1\x88\xb4\""},
    {"\"\\uD800\\uD800\\n\"", "\"\\ud800\\ud800\\n\""},
    {"\"\\uD800\\\\u\"", "\"\\ud800\\\\u\""},
};

#define AT(text, where) {text, sizeof(text) - 1, where}
static const struct {
  const char *text;
  size_t size, where;
} refused[] = {
    /* arrays */
    AT("[1 true]", 3), AT("[a\xe5]", 1), AT("[\"\": 1]", 3), AT("[\"\"],", 4),
    AT("[,1]", 1), AT("[1,,2]", 3), AT("[\"x\",,]", 5), AT("[\"x\"]]", 5),
    AT("[\"\",]", 4), AT("[\"x\"", 4), AT("[x", 1), AT("[3[4]]", 2),
    AT("[\xff]", 1), AT("[1:2]", 2), AT("[,]", 1), AT("[-]", 2),
    AT("[   , \"\"]", 4), AT("[\"a\",\n4\n,1,", 11), AT("[1,]", 3),
    AT("[1,,]", 3), AT("[\"\va\"\\f]", 2), AT("[*]", 1), AT("[\"\"", 3),
    AT("[1,", 3), AT("[1,\n1\n,1", 8), AT("[{}", 3), AT("[", 1), AT("]", 0),
    /* literals */
    AT("[fals]", 1), AT("[nul]", 1), AT("[tru]", 1), AT("[True]", 1),
    AT("nulll", 4), AT("n", 0), AT("[NaN]", 1), AT("[Infinity]", 1),
    AT("[-Infinity]", 2), AT("[-NaN]", 2), AT("[TRUE]", 1), AT("nul", 0),
    /* numbers */
    AT("[++1234]", 1), AT("[+1]", 1), AT("[+Inf]", 1), AT("[-01]", 3),
    AT("[-1.0.]", 5), AT("[-2.]", 4), AT("[.-1]", 1), AT("[.2e-3]", 1),
    AT("[0.1.2]", 4), AT("[0.3e+]", 6), AT("[0.3e]", 5), AT("[0.e1]", 3),
    AT("[0E]", 3), AT("[0E+]", 4), AT("[0e]", 3), AT("[0e+]", 4),
    AT("[1.0e+]", 6), AT("[1.0e-]", 6), AT("[1.0e]", 5), AT("[1 000.0]", 3),
    AT("[1eE2]", 3), AT("[2.e+3]", 3), AT("[2.e3]", 3), AT("[9.e+]", 3),
    AT("[1+2]", 2), AT("[0x1]", 2), AT("[0x42]", 2), AT("[012]", 2),
    AT("[-012]", 3), AT("[-foo]", 2), AT("[- 1]", 2), AT("[-.123]", 2),
    AT("[1.]", 3), AT("[.123]", 1), AT("[1.2a-3]", 4), AT("[1ea]", 3),
    AT("[0e+-1]", 4), AT("[\xef\xbc\x91]", 1), AT("[1.8011670033376514H-308]",
    19), AT("-", 1), AT("1.", 2), AT("1e", 2), AT("0e5\xe5", 3), AT("00", 1),
    AT("123\0", 3), AT("[1\xe5]", 2), AT("[1e1\xe5]", 4), AT("[0\xe5]", 2),
    /* objects */
    AT("[\"x\", truth]", 6), AT("{[: \"x\"}\n", 1), AT("{\"x\", null}", 4),
    AT("{\"x\"::\"b\"}", 5), AT("{\xf0\x9f\x87\xa8\xf0\x9f\x87\xad}", 1),
    AT("{\"a\":\"a\" 123}", 9), AT("{key: 'value'}", 1), AT("{\"\xb9\":\"0\",}",
    2), AT("{\"a\" b}", 5), AT("{:\"b\"}", 1), AT("{\"a\" \"b\"}", 5),
    AT("{\"a\":", 5), AT("{\"a\"", 4), AT("{1:1}", 1), AT("{9999E9999:1}", 1),
    AT("{null:null,null:null}", 1), AT("{\"id\":0,,,,,}", 8),
    AT("{'a':0}", 1), AT("{\"id\":0,}", 8), AT("{\"a\":\"b\"}/**/", 9),
    AT("{\"a\":\"b\"}/**//", 9), AT("{\"a\":\"b\"}//", 9), AT("{\"a\":\"b\",,"
    "\"c\":\"d\"}", 9), AT("{a: \"b\"}", 1), AT("{\"a\":\"a", 7),
    AT("{ \"foo\" : \"bar\", \"a\" }", 21), AT("{\"a\":\"b\"}#", 9),
    AT("{", 1), AT("{,", 1), AT("{[", 1), AT("{\"a", 3), AT("{'a'", 1),
    AT("[\"asd\"", 6), AT("}", 0), AT("{]", 1), AT("[}", 1), AT("[1}", 2),
    AT("{\"a\":1]", 6), AT("{\"a\":}", 5),
    /* strings */
    AT(" ", 1), AT("", 0), AT("[\"\\uD800\\\"]", 11), AT("[\"\\uD800\\u\"]", 8),
    AT("[\"\\uD800\\u1\"]", 8), AT("[\"\\uD800\\u1x\"]", 8), AT("[\xc3\xa9]", 1),
    AT("[\"\\\x00\"]", 2), AT("[\"\\\\\\\"]", 7), AT("[\"\\x00\"]", 2),
    AT("[\"\\\xf0\x9f\x8c\x80\"]", 2), AT("[\"\\\t\"]", 2), AT("[\"\\\"]", 5),
    AT("[\"\\u00A\"]", 2), AT("[\"\\uD834\\uDd\"]", 8),
    AT("[\"\\uD800\\uD800\\x\"]", 14), AT("[\"\\u\xe5\"]", 2), AT("[\"\\a\"]", 2),
    AT("[\"\\uqqqq\"]", 2), AT("[\"\\\xe5\"]", 2), AT("[\\u0020\"asd\"]", 1),
    AT("[\\n]", 1), AT("\"", 1), AT("['single quote']", 1), AT("abc", 0),
    AT("[\"\\", 2), AT("[\"a\x00" "a\"]", 3), AT("[\"new\nline\"]", 5),
    AT("[\"\t\"]", 2), AT("\"\\UA66D\"", 1), AT("\"\"x", 2),
    AT("[\"\x1f\"]", 2), AT("\"\\u00", 1), AT("\"\\", 1), AT("\"a", 2),
    /* structure */
    AT("<.>", 0), AT("[<null>]", 1), AT("[1]x", 3), AT("[1]]", 3),
    AT("[][]", 2), AT("2@", 1), AT("{}}", 2), AT("{\"\":", 4), AT("{\"a\":/*c"
    "*/\"b\"}", 5), AT("{\"a\": true} \"x\"", 12), AT("\xe2\x81\xa0", 0),
    AT("[\x0c]", 1), AT("\xe5", 0), AT("*", 0), AT("[\"a\xff]", 3),
    AT("\xc2\xa0[]", 0), AT("#{}", 0), AT("[\"a\",\n4\n,1,1", 12),
    /* no UTF-8: overlong, surrogates, beyond the last, cut; and marks */
    AT("[\"\xc0\xaf\"]", 2), AT("[\"\xe0\x80\xaf\"]", 2), AT("[\"\xfc\x80\x80"
    "\x80\x80\x80\"]", 2), AT("[\"\xed\xa0\x80\"]", 2), AT("[\"\xf4\xbf\xbf"
    "\xbf\"]", 2), AT("[\"\x81\"]", 2), AT("[\"\xe0\xff\"]", 2),
    AT("[\"a\xe6\x97\"]", 3), AT("[\"\xe6", 2), AT("[\"\xff\"]", 2),
    AT("\xef\xbb\xbf{}", 0), AT("\xff\xfe[\0]\0", 0), AT("\0[\0]", 0),
};

static int read_text(conc_value **v, const char *text, size_t size,
                     size_t *where) {
  /* exactly as long as it says: a sanitizer sees each step beyond */
  char *copy = (char *)malloc(size > 0 ? size : 1);
  int rc;
  memcpy(copy, text, size);
  rc = conc_json_loads(v, copy, size, where);
  free(copy);
  return rc;
}

TEST(what_must_be_read_is_read_and_written_again) {
  for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
    const char *text = accepted[i].text, *written = accepted[i].written;
    conc_value *v, *again;
    char *out;
    size_t size;
    int rc = read_text(&v, text, strlen(text), NULL);
    if (rc != 0) TEST_FAIL("%s: %s", text, conc_strerror(rc));
    CHECK_EQ(conc_json_dumps(v, 0, &out, &size), 0);
    CHECK_STR(out, written != NULL ? written : text);
    CHECK_EQ(size, strlen(out));
    CHECK_EQ(conc_json_loads(&again, out, size, NULL), 0);
    CHECK(conc_value_equal(v, again));
    conc_value_free(again);
    conc_value_free(v);
    conc_free(out);
  }
}

TEST(what_must_be_refused_is_refused_where_it_is_wrong) {
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    conc_value *v = (conc_value *)1;
    size_t where = 999;
    int rc = read_text(&v, refused[i].text, refused[i].size, &where);
    if (rc != -EBADMSG || v != NULL || where != refused[i].where)
      TEST_FAIL("%s: %d at %zu, not at %zu", refused[i].text, rc, where,
                refused[i].where);
    CHECK_EQ(read_text(&v, refused[i].text, refused[i].size, NULL), -EBADMSG);
  }
}

/* Every beginning of a text is an error, at its end or before; so is every
   text with a byte changed, or it is another text: nothing reads beyond. */
TEST(damaged_texts_do_no_damage) {
  const char *text = "{\"a\": [1, -2.5e3, \"\\ud83d\\ude00\xc3\xa9\\n\"], "
                     "\"b\": {\"c\": null, \"d\": true}, \"e\": "
                     "123456789012345678901234567890}";
  size_t n = strlen(text), where;
  char buf[200];
  conc_value *v;
  for (size_t i = 0; i < n; i++) {
    CHECK_EQ(read_text(&v, text, i, &where), -EBADMSG);
    CHECK(where <= i);
  }
  for (int round = 0; round < 20000; round++) {
    memcpy(buf, text, n);
    for (int k = 0; k < 3; k++)
      buf[test_random() % n] = (char)(test_random() % 256);
    int rc = read_text(&v, buf, n, &where);
    CHECK(rc == 0 || rc == -EBADMSG || rc == -ERANGE);
    CHECK(rc == 0 || where <= n);
    conc_value_free(v);
  }
}

TEST(depth_is_bounded_and_costs_no_stack) {
  enum { DEEP = 100000 };
  char *text = (char *)malloc(DEEP * 6), *p;
  const char *unit[] = {"[", "{\"\":", "[{\"\":"};
  conc_value *v;
  size_t where;
  for (int u = 0; u < 3; u++) {
    size_t n = strlen(unit[u]);
    for (int i = 0; i < DEEP; i++) memcpy(text + (size_t)i * n, unit[u], n);
    CHECK_EQ(conc_json_loads(&v, text, DEEP * n, &where), -EMSGSIZE);
    CHECK_EQ(where, u == 2 ? 50 * n : 100 * n);
  }
  memset(text, '[', 100), memset(text + 100, ']', 100);
  CHECK_EQ(conc_json_loads(&v, text, 200, &where), 0);
  CHECK_EQ(conc_json_dumps(v, 0, &p, NULL), 0);
  CHECK(memcmp(p, text, 200) == 0);
  conc_free(p);
  conc_value_free(v);
  free(text);
}

TEST(an_int_keeps_every_digit_up_to_the_bound) {
  enum { DIGITS = 9800 };
  char *text = (char *)malloc(DIGITS * 4), *out;
  conc_value *v;
  size_t where;
  for (int n = 17; n <= DIGITS; n += n < 100 ? 1 : 883) {
    for (int i = 0; i < n; i++) text[i] = (char)('0' + test_random() % 10);
    if (text[n % 2] == '0') text[n % 2] = '9';
    text[0] = n % 2 != 0 ? '-' : text[0];
    text[n] = 0;
    CHECK_EQ(conc_json_loads(&v, text, (size_t)n, NULL), 0);
    CHECK(conc_value_type(v) == (n > 20 ? CONC_BIGINT : conc_value_type(v)));
    CHECK_EQ(conc_json_dumps(v, 0, &out, NULL), 0);
    CHECK_STR(out, text);
    conc_free(out);
    conc_value_free(v);
  }
  memset(text, '9', DIGITS * 4);
  CHECK_EQ(conc_json_loads(&v, text, DIGITS * 4, &where), -EMSGSIZE);
  CHECK_EQ(where, 0);
  CHECK_EQ(conc_json_loads(&v, text, 9870, NULL), -EMSGSIZE);
  free(text);
}

/* Whatever the locale's decimal point is. */
TEST(a_float_comes_back_to_the_bit) {
  static const char *const locales[] = {"C", "de_DE.UTF-8", "fr_FR.UTF-8"};
  conc_value *v, *again;
  char *out;
  for (int round = 0; round < 30000; round++) {
    uint64_t bits = (uint64_t)test_random() << 32 | test_random();
    double f, g;
    if (round % 4 == 0) bits &= ~UINT64_C(0x7ff0000000000000); /* subnormal */
    if (round % 4 == 1) bits &= ~UINT64_C(0) << (test_random() % 53);
    memcpy(&f, &bits, sizeof f);
    if (f - f != 0) continue;
    setlocale(LC_ALL, locales[round % 3]);
    CHECK_EQ(conc_build(&v, "d", f), 0);
    CHECK_EQ(conc_json_dumps(v, 0, &out, NULL), 0);
    CHECK(strpbrk(out, ".e") != NULL && strchr(out, ',') == NULL);
    CHECK_EQ(conc_json_loads(&again, out, strlen(out), NULL), 0);
    CHECK_EQ(conc_value_float(again, &g), 0);
    CHECK(memcmp(&f, &g, sizeof f) == 0);
    conc_free(out);
    conc_value_free(v);
    conc_value_free(again);
  }
}

static double read_float(const char *text) {
  conc_value *v;
  double f = -1;
  CHECK_EQ(conc_json_loads(&v, text, strlen(text), NULL), 0);
  CHECK_EQ(conc_value_float(v, &f), 0);
  conc_value_free(v);
  return f;
}

/* Around the middle between 2^53 and its neighbour, decided by a digit that
   stands a thousand places behind. */
TEST(a_float_is_the_nearest_however_long_it_is_written) {
  char text[3000];
  conc_value *v;
  size_t n, where;
  strcpy(text, "9007199254740993.0");
  CHECK(read_float(text) == 9007199254740992.0);
  n = strlen(text);
  memset(text + n, '0', 1000), strcpy(text + n + 1000, "1");
  CHECK(read_float(text) == 9007199254740994.0);
  memset(text, '0', 2), text[1] = '.', memset(text + 2, '0', 1500);
  strcpy(text + 1502, "15e1501");
  CHECK(read_float(text) == 1.5);
  memset(text, '7', 2000), strcpy(text + 2000, "e-1999");
  CHECK(read_float(text) == 7.777777777777778);
  CHECK(read_float("1e-99999999999999999999999") == 0);
  CHECK(read_float("1.7976931348623158e308") == 1.7976931348623157e308);
  CHECK_EQ(conc_json_loads(&v, "[1e400]", 7, &where), -ERANGE);
  CHECK(v == NULL && where == 1);
  CHECK_EQ(conc_json_loads(&v, "-1e9999999999999999999", 22, &where), -ERANGE);
  CHECK_EQ(conc_json_loads(&v, "1.7976931348623159e308", 22, NULL), -ERANGE);
}

TEST(what_json_has_not_is_not_written) {
  static const struct {
    const char *format;
    double argument;
  } bad[] = {{"d", NAN}, {"[d]", INFINITY}, {"(d)", -INFINITY}};
  conc_value *v;
  char *out = (char *)1;
  size_t i;
  for (i = 0; i < 3; i++) {
    CHECK_EQ(conc_build(&v, bad[i].format, bad[i].argument), 0);
    CHECK(conc_json_dumps(v, 0, &out, NULL) == -EINVAL && out == NULL);
    conc_value_free(v);
  }
  CHECK_EQ(conc_build(&v, "[s,y]", "a", "b"), 0);
  CHECK(conc_json_dumps(v, 0, &out, NULL) == -EINVAL && out == NULL);
  conc_value_free(v);
  CHECK_EQ(conc_build(&v, "{i:s}", 1, "b"), 0);
  CHECK(conc_json_dumps(v, 0, &out, NULL) == -EINVAL);
  conc_value_free(v);
  CHECK_EQ(conc_pickle_loads(&v, "\x80\x04\x8f(K\x01\x90.", 8), 0);
  CHECK(conc_json_dumps(v, 0, &out, NULL) == -EINVAL);
  CHECK(conc_json_dumps(v, -1, &out, NULL) == -EINVAL);
  CHECK(conc_json_dumps(NULL, 0, &out, NULL) == -EINVAL);
  conc_value_free(v);
}

/* Each error that conc_json_loads and _dumps document, but -ENOMEM, which
   value.c asks for. */
TEST(json_returns_each_of_its_errors) {
  static const struct {
    const char *text;
    int error;
    size_t where;
  } bad[] = {{"", -EBADMSG, 0}, {"[1,]", -EBADMSG, 3}, {"1 2", -EBADMSG, 2},
             {"\"\xff\"", -EBADMSG, 1}, {"[1e400]", -ERANGE, 1},
             {"[-1e400]", -ERANGE, 1}};
  conc_value *v;
  char *out;
  size_t i, where;
  int indent;
  for (i = 0; i < sizeof bad / sizeof *bad; i++) {
    v = (conc_value *)(void *)&where;
    CHECK_EQ(conc_json_loads(&v, bad[i].text, strlen(bad[i].text), &where),
             bad[i].error);
    CHECK(v == NULL);
    CHECK_EQ(where, bad[i].where);
    CHECK_EQ(conc_json_loads(&v, bad[i].text, strlen(bad[i].text), NULL),
             bad[i].error);
  }
  CHECK_EQ(conc_json_loads(&v, "[{}]", 4, NULL), 0);
  for (indent = -1; indent <= 101; indent += 102) {
    out = (char *)&where;
    CHECK_EQ(conc_json_dumps(v, indent, &out, &where), -EINVAL);
    CHECK(out == NULL);
  }
  conc_value_free(v);
}

TEST(it_is_written_as_python_writes_it) {
  const char *wide = "{\n  \"name\": \"\xe5\xb0\x8f\xe6\x98\x8e\",\n"
                     "  \"scores\": [\n    1,\n    2.5,\n    [],\n    {}\n"
                     "  ],\n  \"more\": null\n}";
  conc_value *v;
  char *out;
  size_t size;
  CHECK_EQ(conc_build(&v, "{s:s,s:(id[]{}),s:N}", "name",
                      "\xe5\xb0\x8f\xe6\x98\x8e", "scores", 1, 2.5, "more"), 0);
  CHECK_EQ(conc_json_dumps(v, 2, &out, &size), 0);
  CHECK_STR(out, wide);
  CHECK_EQ(size, strlen(wide));
  conc_free(out);
  CHECK_EQ(conc_json_dumps(v, 0, &out, &size), 0);
  CHECK_STR(out, "{\"name\": \"\xe5\xb0\x8f\xe6\x98\x8e\", \"scores\": "
                 "[1, 2.5, [], {}], \"more\": null}");
  conc_free(out);
  conc_value_free(v);
}

TEST(a_large_text_is_read_and_more_parts_than_a_value_may_have_are_not) {
  enum { PARTS = 1000001 };
  char *text = (char *)malloc(PARTS * 2 + 2), *out;
  conc_value *v;
  size_t where, size;
  text[0] = '[';
  for (int i = 0; i < PARTS; i++) memcpy(text + 1 + i * 2, "7,", 2);
  text[PARTS * 2] = ']';
  CHECK_EQ(conc_json_loads(&v, text, PARTS * 2 + 1, &where), -EMSGSIZE);
  text[400000] = ']';
  CHECK_EQ(conc_json_loads(&v, text, 400001, &where), 0);
  CHECK_EQ(conc_value_size(v), 200000);
  CHECK_EQ(conc_json_dumps(v, 0, &out, &size), 0);
  CHECK_EQ(size, 600000);
  conc_free(out);
  conc_value_free(v);
  free(text);
}
TEST_MAIN
