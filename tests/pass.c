/* Objects that only Python can make, on their way through C: from inside, with
   an allocator that counts and can fail. tests/interop/pass.py has the same
   with Python at both ends. */
#include "test.h"

#include "inside.h"

#include "served.h"

#define LOADS(s) loads(s, sizeof(s) - 1)
static conc_value *loads(const void *p, size_t n) {
  conc_value *v = NULL;
  CHECK_EQ(conc_pickle_loads_objects(&v, p, n), 0);
  return v;
}

/* What is refused, and how that is called. */
#define REFUSED(s, word) refused(s, sizeof(s) - 1, word)
static bool refused(const void *p, size_t n, const char *word) {
  char text[CONC__REFUSED_MAX];
  conc__pickle_limits limits = conc__pickle_pass_limits;
  conc_value *v = NULL;
  int rc;
  limits.refused = text;
  rc = conc__pickle_decode(p, n, &limits, &v, NULL);
  conc_value_free(v);
  if (rc == -EACCES && strcmp(text, word) == 0) return true;
  printf("  rc %d, \"%s\", not \"%s\"\n", rc, text, word);
  return false;
}
static int loads_rc(const void *p, size_t n) {
  conc_value *v = NULL;
  int rc = conc_pickle_loads_objects(&v, p, n);
  CHECK((rc == 0) == (v != NULL));
  conc_value_free(v);
  return rc;
}
#define RC(s) loads_rc(s, sizeof(s) - 1)

static bool text_is(const conc_value *v, const char *want) {
  char buf[300];
  ssize_t n = conc_value_text(v, buf, sizeof buf);
  if (n == (ssize_t)strlen(want) && strcmp(buf, want) == 0) return true;
  printf("  got %s\n  not %s\n", buf, want);
  return false;
}

/* Whether a value is written as these bytes, between PROTO and STOP; and
   whether they are the same value again. */
static bool written(const conc_value *v, int protocol, const char *want,
                    size_t size) {
  conc_value *w = NULL;
  void *out = NULL;
  size_t n = 0, i;
  CHECK_EQ(conc_pickle_dumps(v, protocol, &out, &n), -EACCES);
  CHECK(out == NULL);
  CHECK_EQ(conc_pickle_dumps(v, protocol | CONC_PASS, &out, &n), 0);
  CHECK_EQ(conc_pickle_loads_objects(&w, out, n), 0);
  CHECK(conc_value_equal(v, w));
  conc_value_free(w);
  if (n == size + 3 && memcmp((char *)out + 2, want, size) == 0) {
    conc_free(out);
    return true;
  }
  for (i = 2; i + 1 < n; i++) {
    unsigned char c = ((unsigned char *)out)[i];
    printf(c > ' ' && c < 0x7f ? "%c" : "\\%o", c);
  }
  printf("\n");
  conc_free(out);
  return false;
}
#define WRITTEN(v, protocol, s) written(v, protocol, s, sizeof(s) - 1)
/* A pickle, and how it is written again by protocol 4. */
#define AS(s, want) as(s, sizeof(s) - 1, 4, want, sizeof(want) - 1)
#define AS2(s, want) as(s, sizeof(s) - 1, 2, want, sizeof(want) - 1)
static bool as(const char *p, size_t n, int protocol, const char *want,
               size_t size) {
  conc_value *v = loads(p, n);
  bool ok = written(v, protocol, want, size);
  conc_value_free(v);
  return ok;
}

/* Decimal('1.5'), as Python's protocol 4 writes it, without what is memoized
   and never fetched. */
#define DECIMAL                                                               \
  "\x8c\7decimal\x8c\7Decimal\x93\x8c\3"                                      \
  "1.5\x85R"
#define DECIMAL_WRITTEN                                                       \
  "cdecimal\nDecimal\nX\3\0\0\0001.5\x85R"

TEST(an_object_tells_its_class_and_nothing_else) {
  conc_value *v = LOADS("\x80\4" DECIMAL "."), *w;
  const char *module, *name, *s;
  char *text;
  int64_t n;
  CHECK(conc_value_type(v) == CONC_OBJECT);
  CHECK_EQ(conc_value_object(v, &module, &name), 0);
  CHECK(strcmp(module, "decimal") == 0 && strcmp(name, "Decimal") == 0);
  CHECK(text_is(v, "<decimal.Decimal object>"));
  CHECK(conc_value_size(v) == 0 && conc_value_item(v, 0) == NULL);
  CHECK(conc_value_key(v, 0) == NULL && conc_value_get(v, "x") == NULL);
  CHECK(conc_value_str(v, NULL) == NULL && conc_value_bytes(v, NULL) == NULL);
  CHECK_EQ(conc_value_int(v, &n), -EINVAL);
  CHECK_EQ(conc_parse(v, "(s)", &s), -EINVAL);
  CHECK_EQ(conc_parse(v, "[]"), -EINVAL);
  CHECK_EQ(conc_json_dumps(v, 0, &text, NULL), -EINVAL);
  conc_value_free(v);
  CHECK_EQ(conc_build(&w, "[d]", 1.5), 0);
  CHECK_EQ(conc_value_object(w, &module, &name), -EINVAL);
  CHECK_EQ(conc_value_object(NULL, &module, &name), -EINVAL);
  conc_value_free(w);
  /* In a list; a class itself; one by its number. */
  v = LOADS("](" DECIMAL "cdatetime\ndate\n\x82\7\x82\7)\x81" "e.");
  CHECK(text_is(v, "[<decimal.Decimal object>, <datetime.date>, "
                   "<copyreg._extension_registry>, "
                   "<copyreg._extension_registry object>]"));
  CHECK_EQ(conc_json_dumps(v, 0, &text, NULL), -EINVAL);
  conc_value_free(v);
  /* What makes an object of its first argument is not its class. */
  v = LOADS("](ccopy_reg\n_reconstructor\n(c__main__\nA\nc__builtin__\nobject"
            "\nNtRccopyreg\n__newobj__\ncm\nB\n\x85Rcm\nmake\ncm\nC\n\x85R"
            "e.");
  CHECK(text_is(v, "[<__main__.A object>, <m.B object>, <m.make object>]"));
  conc_value_free(v);
  v = LOADS("c\x1b\n\x7fX\n.");
  CHECK(text_is(v, "<?.?X>"));
  conc_value_free(v);
}

/* As before: only who asks for objects gets some. */
TEST(an_object_is_refused_where_it_is_not_asked_for) {
  static const char pickle[] = "\x80\4]" DECIMAL "a.";
  conc_value *v = NULL;
  conc_queue *q = conc_queue_new(NULL);
  void *out;
  size_t n;
  CHECK_EQ(conc_pickle_loads(&v, pickle, sizeof pickle - 1), -EACCES);
  CHECK(v == NULL);
  v = loads(pickle, sizeof pickle - 1);
  CHECK_EQ(conc_pickle_dumps(v, 4, &out, &n), -EACCES);
  CHECK_EQ(conc_pickle_dumps(v, 1 | CONC_PASS, &out, &n), -EINVAL);
  CHECK_EQ(conc_pickle_dumps(v, 6 | CONC_PASS, &out, &n), -EINVAL);
  CHECK_EQ(conc_put_value(q, v, 0), -EACCES);
  CHECK_EQ(conc_put_build(q, 0, "(iO)", 1, v), -EACCES);
  CHECK_EQ(conc_qsize(q), 0);
  conc_queue_free(q);
  conc_value_free(v);
}

TEST(an_object_is_written_as_it_was) {
  CHECK(AS(DECIMAL ".", DECIMAL_WRITTEN));
  CHECK(AS("cm\nA\n.", "cm\nA\n"));
  CHECK(AS("cm\nA\n)\x81.", "cm\nA\n)\x81"));
  CHECK(AS("cm\nA\n)}X\1\0\0\0kK\1s\x92.",
           "cm\nA\n)}(X\1\0\0\0kK\1u\x92"));
  CHECK(AS("cm\nA\n)R}X\1\0\0\0xK\1sb.", "cm\nA\n)R}(X\1\0\0\0xK\1ub"));
  CHECK(AS("cm\nL\n)\x81(K\1K\2eK\3aK\5K\6sK\7K\x8s}b.",
           "cm\nL\n)\x81(K\1K\2K\3e(K\5K\6K\7K\x8u}b"));
  CHECK(AS("cm\nD\n)\x81K\1K\2sN" "b.", "cm\nD\n)\x81(K\1K\2uNb"));
  CHECK(AS("cm\nL\n)\x81(e(u.", "cm\nL\n)\x81"));
  CHECK(AS("(cm\nOld\nK\1K\2o}b.", "(cm\nOld\nK\1K\2o}b"));
  CHECK(AS("(cm\nOld\no.", "(cm\nOld\no"));
  CHECK(AS("(K\1im\nOld\n.", "(cm\nOld\nK\1o"));
  CHECK(AS("\x82\1.", "\x84\1\0\0\0") && AS("\x83\1\2.", "\x84\1\2\0\0"));
  CHECK(AS("\x84\1\2\3\4)\x81.", "\x84\1\2\3\4)\x81"));
  /* What is called may be made by a call itself. */
  CHECK(AS("cm\nf\n)R)R.", "cm\nf\n)R)R"));
  CHECK(AS("\x80\4cm\nA.B.C\n.",
           "cbuiltins\ngetattr\ncbuiltins\ngetattr\ncm\nA\nX\1\0\0\0B\x86R"
           "X\1\0\0\0C\x86R"));
  CHECK(AS("cbuiltins\ngetattr\ncm\nA\n)\x81X\1\0\0\0B\x86R.",
           "cbuiltins\ngetattr\ncm\nA\n)\x81X\1\0\0\0B\x86R"));
  /* Data is data, however it is called; what looks like it may be none. */
  CHECK(AS("cbuiltins\nset\n](cm\nA\ne\x85R.", "\x8f(cm\nA\n\x90"));
  CHECK(AS("cbuiltins\nset\n.", "cbuiltins\nset\n"));
  CHECK(AS("cbuiltins\nset\ncm\nA\n\x85R.", "cbuiltins\nset\ncm\nA\n\x85R"));
  CHECK(AS("cbuiltins\nbytes\nK\5\x85R.", "cbuiltins\nbytes\nK\5\x85R"));
  CHECK(AS("c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R.",
           "c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R"));
  CHECK(AS("ccollections\ndeque\n)K\5\x86R(K\1K\2e.",
           "ccollections\ndeque\n)K\5\x86R(K\1K\2e"));
  CHECK(AS("ccollections\nOrderedDict\n)RK\1K\2s}b.",
           "ccollections\nOrderedDict\n)R(K\1K\2u}b"));
  CHECK(AS("ccollections\ndefaultdict\ncbuiltins\nint\n\x85R.",
           "ccollections\ndefaultdict\ncbuiltins\nint\n\x85R"));
}

/* Parts that an object has in common with others are one object to the reader,
   inside and outside of it; and an object that is taken out has all of them. */
TEST(a_part_of_a_value_is_a_pickle_of_its_own) {
  /* [A(list), list, A(list), the first A], with one class. */
  static const char pickle[] = "\x80\4](cm\nA\n\x94](K\1K\2e\x94\x85R\x94"
                               "h\1h\0h\1\x85Rh\2e.";
  conc_value *v = loads(pickle, sizeof pickle - 1), *w, *copy;
  void *out = NULL;
  size_t n = 0, i;
  CHECK(conc_value_size(v) == 4);
  CHECK(WRITTEN(v, 4, "](cm\nA\nq\0](K\1K\2eq\1\x85Rq\2h\1h\0h\1\x85Rh\2e"));
  CHECK(WRITTEN(conc_value_item(v, 2), 4, "cm\nA\nq\0](K\1K\2eq\1\x85R"));
  CHECK(conc_value_equal(conc_value_item(v, 0), conc_value_item(v, 2)));
  for (i = 0; i < 4; i++) {
    const int protocol = i == 1 ? 4 : 4 | CONC_PASS; /* 1 is the list */
    CHECK_EQ(conc_pickle_dumps(conc_value_item(v, i), protocol, &out, &n), 0);
    w = loads(out, n);
    conc_free(out);
    CHECK(conc_value_equal(w, conc_value_item(v, i)));
    CHECK_EQ(conc_build(&copy, "O", conc_value_item(v, i)), 0);
    CHECK(conc_value_equal(w, copy));
    conc_value_free(copy);
    conc_value_free(w);
  }
  CHECK_EQ(conc_build(&copy, "(OO)", v, v), 0);
  CHECK(conc_value_equal(conc_value_item(copy, 1), v));
  conc_value_free(copy);
  conc_value_free(v);
  /* A memo entry from before the object, and one of it used behind it. */
  v = LOADS("(X\1\0\0\0a\x94" "cm\nA\n)R}(h\0X\1\0\0\0b\x94ubh\1t.");
  CHECK(WRITTEN(conc_value_item(v, 1), 2, "cm\nA\n)R}(U\1aq\0U\1bq\1ub"));
  CHECK(WRITTEN(conc_value_item(v, 1), 4,
                "cm\nA\n)R}(X\1\0\0\0aq\0X\1\0\0\0bq\1ub"));
  conc_value_free(v);
}

TEST(what_cannot_pass_is_refused_and_named) {
  CHECK(REFUSED("Pid\n.", "a persistent id"));
  CHECK(REFUSED("cm\nA\nQ.", "a persistent id"));
  CHECK(REFUSED("\x97.", "a buffer from outside"));
  CHECK(REFUSED("\x80\5\x8e\1\0\0\0\0\0\0\0x\x98.", "a buffer from outside"));
  /* Data around an object that refers to it; a key that does, to an object;
     an object before it is made. */
  CHECK(REFUSED("]\x94" "cm\nA\n)\x81}K\1h\0sb" "a.",
                "an object that refers to what it is in"));
  CHECK(REFUSED("cm\nA\n)\x81\x94}h\0K\1sb.",
                "an object that refers to what it is in"));
  CHECK(REFUSED("cm\nA\n)\x81\x94\x8f(h\0\x85\x90" "b.",
                "an object that refers to what it is in"));
  CHECK(RC("]\x94h\0a.") == -EMSGSIZE);
  /* A function that sets the state: what it returns is dropped. */
  CHECK(REFUSED("cm\nA\n)R\x94" "cm\nset\nh\0N\x86R0.",
                "a call whose result is not used"));
  CHECK(REFUSED("(cm\nA\n)R1N.", "a call whose result is not used"));
  CHECK(RC("K\1" "0N.") == 0 && RC("(K\1" "1N.") == 0);
  /* Another order than that of Python's picklers; a class that is changed. */
  CHECK(REFUSED("cm\nA\n)RNbK\1a.", "an object that no pickler writes so"));
  CHECK(REFUSED("cm\nA\n)RK\1K\2sK\1a.",
                "an object that no pickler writes so"));
  CHECK(REFUSED("cm\nA\n)R(K\1eK\1K\2s(K\1e.",
                "an object that no pickler writes so"));
  CHECK(REFUSED("cm\nA\n)RNbNb.", "an object that no pickler writes so"));
  CHECK(REFUSED("cm\nA\n}b.", "an object that no pickler writes so"));
  CHECK(REFUSED("cm\nA\nK\1a.", "an object that no pickler writes so"));
  CHECK(REFUSED("\x82\1}b.", "an object that no pickler writes so"));
  CHECK(REFUSED("cm\nA\n)R(K\1\x90.", "an object that is filled as a set"));
  /* A name would become opcodes. */
  CHECK(REFUSED("X\4\0\0\0m\nA\nX\1\0\0\0B\x93.", "a name that no class has"));
  CHECK(REFUSED("X\1\0\0\0mX\4\0\0\0A\n0N\x93.", "a name that no class has"));
  CHECK(REFUSED("X\1\0\0\0mX\2\0\0\0A\0\x93.", "a name that no class has"));
  CHECK(REFUSED("cm\na.b.c.d.e.f.g.h.i.j\n.", "a name that no class has"));
  CHECK(REFUSED("cm\na..b\n.", "a name that no class has"));
  CHECK(REFUSED("cm\n.b\n.", "a name that no class has"));
  CHECK(REFUSED("cm\na.\n.", "a name that no class has"));
  CHECK(RC("cm\na.b.c.d.e.f.g.h.i\n.") == 0);
  CHECK(REFUSED("cbuiltins\ngetattr\ncm\na.b.c.d.e.f.g.h.i\nX\1\0\0\0j\x86R.",
                "a name that no class has"));
  /* What is no pickle. */
  CHECK(RC("cm\nA\n]R.") == -EBADMSG && RC("K\1)R.") == -EBADMSG);
  CHECK(RC("cm\nA\n)\x92.") == -EBADMSG && RC("cm\nA\n)]\x92.") == -EBADMSG);
  CHECK(RC("o.") == -EBADMSG && RC("(o.") == -EBADMSG);
  CHECK(RC("(K\1o.") == -EBADMSG && RC("im\nA\n.") == -EBADMSG);
  CHECK(RC("\x82.") == -EBADMSG && RC("\x82\0.") == -EBADMSG);
  CHECK(RC("\x84\0\0\0\x80.") == -EBADMSG && RC("cm\nA.") == -EBADMSG);
  CHECK(RC("cm\nA\n)R(K\1u.") == -EBADMSG && RC("Nb.") == -EBADMSG);
  CHECK(RC("N}b.") == -EBADMSG && RC("K\1K\2\x93.") == -EBADMSG);
}

/* The names of Python 2 become those of 3, and are written so again. */
TEST(names_of_python_2_are_translated) {
  CHECK(AS("\x80\2c__builtin__\nobject\n.", "cbuiltins\nobject\n"));
  CHECK(AS("c__builtin__\nxrange\nK\5\x85R.", "cbuiltins\nrange\nK\5\x85R"));
  CHECK(AS("ccopy_reg\n_reconstructor\n.", "ccopyreg\n_reconstructor\n"));
  CHECK(AS("cQueue\nEmpty\n)R.", "cqueue\nEmpty\n)R"));
  CHECK(AS("cexceptions\nKeyError\n)R.", "cbuiltins\nKeyError\n)R"));
  CHECK(AS("cUserDict\nIterableUserDict\n.", "ccollections\nUserDict\n"));
  CHECK(AS("citertools\nchain\n.", "citertools\nchain\n"));
  /* Not of a later protocol, where a program may have such a module. */
  CHECK(AS("\x80\3cQueue\nEmpty\n.", "cQueue\nEmpty\n"));
  CHECK(AS2("\x80\4cbuiltins\nobject\n.", "c__builtin__\nobject\n"));
  CHECK(AS2("\x80\4cbuiltins\nrange\n.", "c__builtin__\nxrange\n"));
  CHECK(AS2("\x80\4cbuiltins\nValueError\n.", "cexceptions\nValueError\n"));
  CHECK(AS2("\x80\4cbuiltins\nEllipsis\n.", "c__builtin__\nEllipsis\n"));
  CHECK(AS2("\x80\4cqueue\nEmpty\n.", "cQueue\nEmpty\n"));
  CHECK(AS2("\x80\4ccollections\nUserDict\n.",
            "cUserDict\nIterableUserDict\n"));
  CHECK(AS2("\x80\4ccollections\ndeque\n.", "ccollections\ndeque\n"));
  CHECK(AS2("\x80\4cm\nA.B\n.",
            "c__builtin__\ngetattr\ncm\nA\nX\1\0\0\0B\x86R"));
}

/* A str of Python 2 is bytes or text; only its class knows which. */
TEST(texts_of_python_2_keep_their_kind) {
  conc_value *v;
  void *out;
  size_t n;
  /* The date's bytes, though they look like text. */
  CHECK(AS("cdatetime\ndate\nU\4\7l\1\1\x85R.",
           "cdatetime\ndate\nC\4\7l\1\1\x85R"));
  CHECK(AS("cdatetime\ndate\nT\4\0\0\0\7l\1\1\x85R.",
           "cdatetime\ndate\nC\4\7l\1\1\x85R"));
  CHECK(AS("cdatetime\ndate\n(S'\\x07l\\x01\\x01'\ntR.",
           "cdatetime\ndate\nC\4\7l\1\1\x85R"));
  CHECK(AS("cdecimal\nDecimal\nU\0031.5\x85R.", DECIMAL_WRITTEN));
  /* UTF-8 by chance; but text if Python 2 has said so. */
  CHECK(AS("cm\nA\nU\2\xc3\xa9\x85R.", "cm\nA\nC\2\xc3\xa9\x85R"));
  CHECK(AS("cm\nA\nX\2\0\0\0\xc3\xa9\x85R.", "cm\nA\nX\2\0\0\0\xc3\xa9\x85R"));
  CHECK(AS("cm\nA\n)R(U\2\xc3\xa9tb.", "cm\nA\n)RC\2\xc3\xa9\x85" "b"));
  CHECK(AS("\x80\3cm\nA\nU\2\xc3\xa9\x85R.",
           "cm\nA\nX\2\0\0\0\xc3\xa9\x85R"));
  /* For Python 2 they are its str again, as the class may insist on it. */
  CHECK(AS2("carray\narray\nU\1i]\x86R.", "carray\narray\nU\1i]\x86R"));
  CHECK(AS2("\x80\4(cm\nA\n)\x81}X\1\0\0\0xK\1sbX\1\0\0\0yt.",
            "cm\nA\n)\x81}(U\1xK\1ubX\1\0\0\0y\x86"));
  /* What protocols before 4 cannot say. */
  v = LOADS("\x80\4](cm\nA\n)}\x92" "e.");
  CHECK_EQ(conc_pickle_dumps(v, 3 | CONC_PASS, &out, &n), -EACCES);
  CHECK_EQ(conc_pickle_dumps(v, 4 | CONC_PASS, &out, &n), 0);
  conc_free(out);
  conc_value_free(v);
}

/* The same str of Python 2 may be the bytes of a date, and a text elsewhere.
   So neither is written as a reference to the other, whichever comes first. */
TEST(a_str_of_python_2_is_bytes_here_and_text_there) {
#define DATE "cdatetime\ndate\n"
#define DATE_WRITTEN DATE "C\4\7l\1\1\x85R"
#define TEXT_WRITTEN "X\4\0\0\0\7l\1\1q\0" /* never fetched */
  CHECK(AS("(U\4\7l\1\1q\0" DATE "h\0\x85Rt.",
           TEXT_WRITTEN DATE_WRITTEN "\x86"));
  CHECK(AS("(" DATE "U\4\7l\1\1q\0\x85Rh\0t.",
           DATE_WRITTEN TEXT_WRITTEN "\x86"));
  CHECK(AS("(" DATE "(S'\\x07l\\x01\\x01'\np0\ntRg0\nt.",
           DATE_WRITTEN TEXT_WRITTEN "\x86"));
  /* What was its text in one date is its bytes in another. */
  CHECK(AS("(" DATE "U\4\7l\1\1q\0\x85R" DATE "h\0\x85Rt.",
           DATE_WRITTEN DATE_WRITTEN "\x86"));
  /* The same of a class that nobody knows, by what is no ASCII. */
  CHECK(AS("(U\2\xc3\xa9q\0cm\nA\nh\0\x85Rt.",
           "X\2\0\0\0\xc3\xa9q\0cm\nA\nC\2\xc3\xa9\x85R\x86"));
}

/* An object may refer to itself, and to objects that it is in. */
TEST(objects_refer_to_objects_around_them) {
  /* (a, a) with a.x = [b], b.x = a, b.y = b. */
  static const char pickle[] = "\x80\4cm\nA\n)\x81\x94}X\1\0\0\0x](cm\nB\n)"
                               "\x81\x94}(X\1\0\0\0xh\0X\1\0\0\0yh\1ubesbh\0\x86.";
  conc_value *v = loads(pickle, sizeof pickle - 1), *w = NULL, *copy = NULL;
  void *out = NULL;
  size_t n = 0;
  CHECK(text_is(v, "(<m.A object>, <m.A object>)"));
  CHECK(WRITTEN(v, 4, "cm\nA\n)\x81q\0}(X\1\0\0\0x](cm\nB\n)\x81q\1}("
                      "X\1\0\0\0xh\0X\1\0\0\0yh\1ubeubh\0\x86"));
  CHECK(WRITTEN(conc_value_item(v, 1), 4,
                "cm\nA\n)\x81q\0}(X\1\0\0\0x](cm\nB\n)\x81q\1}("
                "X\1\0\0\0xh\0X\1\0\0\0yh\1ubeub"));
  CHECK_EQ(conc_build(&copy, "[OO]", v, conc_value_item(v, 0)), 0);
  CHECK(conc_value_equal(conc_value_item(copy, 0), v));
  CHECK(conc_value_equal(conc_value_item(copy, 1), conc_value_item(v, 0)));
  CHECK_EQ(conc_pickle_dumps(copy, 2 | CONC_PASS, &out, &n), 0);
  w = loads(out, n);
  CHECK(conc_value_equal(w, copy));
  conc_free(out);
  conc_value_free(w);
  conc_value_free(copy);
  conc_value_free(v);
  /* The same shape, but b.x = b, and b.y = a. */
  v = loads(pickle, sizeof pickle - 1);
  w = LOADS("\x80\4cm\nA\n)\x81\x94}X\1\0\0\0x](cm\nB\n)\x81"
            "\x94}(X\1\0\0\0xh\1X\1\0\0\0yh\0ubesbh\0\x86.");
  CHECK(!conc_value_equal(v, w));
  conc_value_free(w);
  conc_value_free(v);
  /* A part that is outside as well: taken out, it is not whole. */
  v = LOADS("cm\nA\n)\x81\x94}K\1](h\0e\x94sbh\1\x86.");
  CHECK(text_is(v, "(<m.A object>, [<m.A object>])"));
  CHECK(WRITTEN(v, 4, "cm\nA\n)\x81q\0}(K\1](h\0eq\1ubh\1\x86"));
  CHECK_EQ(conc_pickle_dumps(conc_value_item(v, 1), 4 | CONC_PASS, &out, &n),
           -EACCES);
  CHECK_EQ(conc_build(&w, "O", conc_value_item(v, 1)), -EINVAL);
  CHECK_EQ(conc_build(&w, "O", v), 0);
  CHECK(conc_value_equal(v, w));
  conc_value_free(w);
  conc_value_free(v);
  CHECK(AS("cm\nL\n)\x81\x94h\0aK\1h\0s.", "cm\nL\n)\x81q\0(h\0e(K\1h\0u"));
}

TEST(objects_are_equal_by_class_and_parts) {
  static const char *const rows[] = {
      "cm\nA\n.", "cm\nB\n.", "cn\nA\n.", "cm\nA\n)R.", "cm\nA\n)\x81.",
      "cm\nA\nN\x85R.", "cm\nA\n)RNb.", "cm\nA\n)R}b.", "cm\nA\n)RNa.",
      "cm\nA\n)RNNs.", "(cm\nA\no.", "cm\nA\n)}\x92.", "U\1A.",
      "](cm\nA\ne.", "(cm\nA\nt."};
  const size_t count = sizeof rows / sizeof *rows;
  size_t i, k;
  for (i = 0; i < count; i++)
    for (k = 0; k < count; k++) {
      conc_value *v = loads(rows[i], strlen(rows[i]));
      conc_value *w = loads(rows[k], strlen(rows[k]));
      CHECK(conc_value_equal(v, w) == (i == k));
      conc_value_free(v);
      conc_value_free(w);
    }
}

/* Two keys that look alike are two, for their class may hold them unequal. */
TEST(objects_are_keys_and_members) {
  conc_value *v, *w;
  v = LOADS("}(cm\nA\n)RK\1cm\nA\n)RK\2cm\nB\n)RK\3u.");
  CHECK(conc_value_size(v) == 3);
  CHECK(text_is(v, "{<m.A object>: 1, <m.A object>: 2, <m.B object>: 3}"));
  w = LOADS("}(cm\nB\n)RK\3cm\nA\n)RK\1cm\nA\n)RK\2u.");
  CHECK(conc_value_equal(v, w));
  conc_value_free(w);
  w = LOADS("}(cm\nB\n)RK\3cm\nA\n)RK\1cm\nA\n)RK\4u.");
  CHECK(!conc_value_equal(v, w));
  conc_value_free(w);
  CHECK(WRITTEN(v, 4, "}(cm\nA\n)RK\1cm\nA\n)RK\2cm\nB\n)RK\3u"));
  conc_value_free(v);
  v = LOADS("}(X\1\0\0\0aK\1cm\nA\n)RK\2](cm\nA\ne0X\1\0\0\0bK\3u.");
  CHECK(conc_value_get(v, "b") != NULL && conc_value_get(v, "c") == NULL);
  conc_value_free(v);
  v = LOADS("\x8f(cm\nA\n)R](K\1e0cm\nA\n)RK\7\x90.");
  CHECK_EQ(conc_value_size(v), 3);
  conc_value_free(v);
  CHECK(RC("\x8f(](cm\nA\ne\x90.") == -EBADMSG);
}

/* The limits of a value hold for what objects are made of. */
TEST(objects_have_the_limits_of_values) {
  size_t n = 0, i;
  char *p = (char *)malloc(8000000);
  conc_value *v = NULL;
  CHECK(p != NULL);
  /* Nested in arguments: an object and its tuple are two levels. */
  for (i = 0; i < 60; i++) n += (size_t)sprintf(p + n, "cm\nA\n");
  p[n++] = ')';
  for (i = 0; i < 60; i++) {
    p[n++] = 'R';
    if (i < 59) p[n++] = (char)0x85;
  }
  p[n++] = '.';
  CHECK_EQ(loads_rc(p, n), -EMSGSIZE);
  n = 0;
  for (i = 0; i < 49; i++) n += (size_t)sprintf(p + n, "cm\nA\n");
  p[n++] = ')';
  for (i = 0; i < 49; i++) {
    p[n++] = 'R';
    if (i < 48) p[n++] = (char)0x85;
  }
  p[n++] = '.';
  v = loads(p, n);
  conc_value_free(v);
  /* A million and more parts, each object being four. */
  n = 0;
  memcpy(p, "](c\n\n\x94", 6), n = 6;
  for (i = 0; i < 300000; i++) memcpy(p + n, "h\0)R", 4), n += 4;
  memcpy(p + n, "e.", 2), n += 2;
  CHECK_EQ(loads_rc(p, n), -EMSGSIZE);
  n = 6;
  for (i = 0; i < 100000; i++) memcpy(p + n, "h\0)R", 4), n += 4;
  memcpy(p + n, "e.", 2), n += 2;
  v = loads(p, n);
  CHECK_EQ(conc_value_size(v), 100001); /* with the class */
  conc_value_free(v);
  /* A text in very many names, which are more than 64 MiB then; and one that
     is too long for a name. */
  for (i = 200; i <= 201; i++) {
    size_t k;
    n = (size_t)sprintf(p, "](X");
    p[n++] = (char)i, p[n++] = 0, p[n++] = 0, p[n++] = 0;
    memset(p + n, 'a', i), n += i;
    p[n++] = (char)0x94;
    for (k = 0; k < 190000; k++) memcpy(p + n, "h\0h\0\x93", 5), n += 5;
    memcpy(p + n, "e.", 2), n += 2;
    CHECK_EQ(loads_rc(p, n), i == 200 ? -EMSGSIZE : -EACCES);
  }
  /* A text that becomes a part of many names. */
  n = (size_t)sprintf(p, "(X");
  p[n++] = (char)190, p[n++] = 0, p[n++] = 0, p[n++] = 0;
  memset(p + n, 'a', 190), n += 190;
  p[n++] = (char)0x94;
  for (i = 0; i < 1000; i++) {
    n += (size_t)sprintf(p + n, "cbuiltins\ngetattr\ncm\nA\n");
    memcpy(p + n, "h\0\x86R", 4), n += 4;
  }
  memcpy(p + n, "t.", 2), n += 2;
  CHECK_EQ(loads_rc(p, n), -EMSGSIZE);
  free(p);
}

/* What is written of any bytes can be read, is the same, and is written in
   the same way again. */
TEST(what_is_made_of_spoiled_objects_can_be_written_and_read) {
  static const char *const parts[] = {
      "cm\nA\n", "c__builtin__\ngetattr\n", "X\2\0\0\0ab", "U\1x", "K\1",
      "N", ")", "]", "}", "(", "t", "\x85", "\x86", "\x87", "R", "\x81", "\x92",
      "b", "a", "e", "s", "u", "o", "iq\nZ\n", "\x82\5", "\x94", "h\0", "h\1",
      "0", "2", "cbuiltins\nset\n", "cbuiltins\nbytes\n", "C\1x", "\x93",
      "\x8f", "\x90", "l"};
  const unsigned count = sizeof parts / sizeof *parts;
  static const size_t lengths[] = {6, 22, 7, 3, 2};
  unsigned round, good = 0;
  for (round = 0; round < 60000; round++) {
    char p[300];
    size_t n = 0, size = 0, again = 0;
    unsigned k = 2 + test_random() % 14;
    conc_value *v = NULL, *w = NULL;
    void *out = NULL, *twice = NULL;
    int protocol = 2 + (int)(test_random() % 4);
    while (k-- > 0) {
      unsigned x = test_random() % count;
      size_t m = x < 5 ? lengths[x] : strlen(parts[x]);
      if (parts[x][0] == 'h') m = 2;
      memcpy(p + n, parts[x], m), n += m;
    }
    p[n++] = '.';
    if (conc_pickle_loads_objects(&v, p, n) != 0) continue;
    good++;
    if (conc_pickle_dumps(v, protocol | CONC_PASS, &out, &size) == 0) {
      CHECK_EQ(conc_pickle_loads_objects(&w, out, size), 0);
      CHECK_EQ(conc_pickle_dumps(w, protocol | CONC_PASS, &twice, &again), 0);
      /* It may be shorter by a place in the memo that nothing asks for, but
         not the next time. */
      CHECK(again <= size);
      conc_free(out);
      conc_value_free(w);
      CHECK_EQ(conc_pickle_loads_objects(&w, twice, again), 0);
      CHECK_EQ(conc_pickle_dumps(w, protocol | CONC_PASS, &out, &size), 0);
      CHECK(size == again && memcmp(out, twice, size) == 0);
      conc_free(twice);
      conc_free(out);
      conc_value_free(w);
    } else {
      CHECK(protocol < 4);
    }
    conc_value_free(v);
  }
  CHECK(good > 100);
}

TEST(without_memory_nothing_is_left_of_an_object) {
  static const char pickle[] =
      "\x80\2](cm\nA\n\x94U\2\xc3\xa9\x85R\x94}(K\1K\2ub" "cexceptions\nE\n"
      "c__builtin__\ngetattr\nh\0X\1\0\0\0B\x86R(h\0K\1o(K\1K\2e}K\1K\2sb"
      "h\1h\0h\1cm\nB\n)\x81q\2h\2b" "cUserDict\nIterableUserDict\n\x82\1e.";
  conc_value *v = loads(pickle, sizeof pickle - 1), *w;
  void *out;
  size_t n;
  long i;
  for (i = 1;; i++) {
    int rc;
    w = NULL;
    test_fail_at = i;
    rc = conc_pickle_loads_objects(&w, pickle, sizeof pickle - 1);
    if (rc == 0)
      rc = conc_pickle_dumps(w, (2 + (int)(i % 3)) | CONC_PASS, &out, &n);
    if (rc == 0) conc_free(out);
    test_fail_at = 0;
    if (rc == 0) CHECK(conc_value_equal(v, w));
    conc_value_free(w);
    if (rc == 0) break;
    CHECK_EQ(rc, -ENOMEM);
  }
  CHECK(i > 3);
  conc_value_free(v);
}

/* --- queues --- */

static conc_queue *passing_queue(bool shared) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.shared = shared;
  o.objects = CONC_PASS;
  return conc_queue_new(&o);
}

static void passes_through(conc_queue *q) {
  conc_value *v = LOADS("](" DECIMAL "cm\nA\n)\x81}K\1K\2sb" "e."), *w = NULL;
  char buf[10];
  int64_t n = 0;
  CHECK(q != NULL);
  CHECK_EQ(conc_put_value(q, v, 5), 0);
  CHECK_EQ(conc_put_value(q, conc_value_item(v, 1), 5), 0);
  CHECK_EQ(conc_put_build(q, 5, "(iO)", 7, v), 0);
  CHECK_EQ(conc_get(q, buf, sizeof buf, 5), -EBADMSG);
  CHECK_EQ(conc_get_value(q, &w, 5), 0);
  CHECK(conc_value_equal(v, w));
  conc_value_free(w);
  CHECK_EQ(conc_get_value(q, &w, 5), 0);
  CHECK(conc_value_equal(conc_value_item(v, 1), w));
  conc_value_free(w);
  CHECK_EQ(conc_get_parse(q, 5, "(iN)", &n), -EBADMSG);
  CHECK_EQ(conc_get_value(q, &w, 5), 0);
  CHECK(conc_value_equal(v, conc_value_item(w, 1)));
  conc_value_free(w);
  CHECK_EQ(conc_qsize(q), 0);
  conc_value_free(v);
}

TEST(a_queue_of_this_process_passes_objects) {
  conc_queue *q = passing_queue(false);
  passes_through(q);
  conc_queue_free(q);
}

TEST(a_queue_between_processes_passes_objects) {
  conc_queue *q = passing_queue(true);
  passes_through(q);
  conc_queue_free(q);
}

/* --- managers --- */

TEST(a_client_passes_objects_through_a_manager) {
  served s = nobody();
  conc_queue *q;
  serve_queue(&s, passing_queue(false));
  s.client = client_of(&s);
  s.client.objects = CONC_PASS;
  q = join(&s.client);
  passes_through(q);
  end(&s);
}

/* A client that does not take objects: it puts none, and what it does not get
   stays for those that do. */
TEST(an_object_stays_for_who_takes_objects) {
  served s = nobody();
  conc_value *v = LOADS("](" DECIMAL "e."), *w = (conc_value *)1;
  conc_manager m;
  conc_queue *q;
  serve_queue(&s, passing_queue(false));
  q = join_as_client(&s, &s.client);
  CHECK_EQ(conc_put_value(q, v, 5), -EACCES);
  CHECK_EQ(conc_put_value(s.queue, v, 5), 0);
  CHECK_EQ(conc_get_value(q, &w, 5), -EACCES);
  CHECK(w == NULL);
  m = client_of(&s);
  m.objects = CONC_PASS;
  q = join(&m);
  CHECK_EQ(conc_get_value(q, &w, 5), 0);
  CHECK(conc_value_equal(v, w));
  conc_value_free(w);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  conc_value_free(v);
  end(&s);
}

/* A server whose queue is for data alone says so, and names the class; also
   of a large request, and beside a queue that takes objects. */
static void refuses(served *s, size_t pad) {
  char *text = (char *)malloc(pad + 1);
  conc_value *v = LOADS(DECIMAL "."), *w = NULL;
  conc_queue *q;
  CHECK(text != NULL);
  memset(text, 'x', pad);
  s->client = client_of(s);
  s->client.objects = CONC_PASS;
  q = join(&s->client);
  CHECK_EQ(conc_put_build(q, 5, "(Os#)", v, text, pad), -EACCES);
  CHECK_EQ(conc_qsize(s->queue), 0);
  CHECK_EQ(conc_put_build(q, 5, "(is#)", 1, text, pad), 0);
  CHECK_EQ(conc_get_value(q, &w, 5), 0);
  conc_value_free(w);
  conc_value_free(v);
  free(text);
}

TEST(a_queue_for_data_refuses_objects_of_a_client) {
  served s = nobody();
  serve_queue(&s, conc_queue_new(NULL));
  refuses(&s, 10);
  end(&s);
}

static void refuses_beside(size_t pad) {
  served s = nobody();
  conc_queue *other = passing_queue(false);
  conc_value *v = LOADS("](" DECIMAL "e."), *w = NULL;
  char *text = (char *)calloc(1, pad + 1);
  conc_queue *q;
  CHECK(text != NULL);
  serve_queue(&s, conc_queue_new(NULL));
  CHECK_EQ(conc_manager_register_queue(&s.server, "other", other), 0);
  refuses(&s, pad);
  q = conc_manager_get(&s.client, "other");
  CHECK_EQ(conc_put_build(q, 5, "(Os#)", v, text, pad), 0);
  CHECK_EQ(conc_get_value(q, &w, 5), 0);
  CHECK(conc_value_equal(conc_value_item(w, 0), v));
  conc_value_free(w);
  conc_value_free(v);
  free(text);
  end(&s);
  conc_queue_free(other);
}
TEST(a_queue_for_data_beside_one_for_objects) { refuses_beside(10); }
TEST(large_requests_pass_or_are_refused_as_small_ones) {
  refuses_beside(200000);
}

TEST_MAIN
