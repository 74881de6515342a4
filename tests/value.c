/* The value layer, from inside: this program has its own implementation, with
   an allocator that counts and can fail. VALUE_INPUTS is how many malformed
   pickles it tries. */
#include "test.h"

static size_t asked_for, asked_most; /* since reset: sum, largest of one call */
static void *my_realloc(void *old, size_t n) {
  void *p = test_realloc(old, n);
  if (p == NULL) return NULL;
  asked_for += n;
  if (n > asked_most) asked_most = n;
  return p;
}
#define CONC_MALLOC(n) my_realloc(NULL, n)
#define CONC_REALLOC(p, n) my_realloc(p, n)
#define CONC_FREE(p) test_free(p)
#include "inside.h"

#include <math.h>

#define LOADS(v, s) conc_pickle_loads(v, s, sizeof(s) - 1)
static int loads_rc(const void *p, size_t n) {
  conc_value *v = (conc_value *)1;
  int rc = conc_pickle_loads(&v, p, n);
  CHECK(rc == 0 || v == NULL);
  if (rc == 0) conc_value_free(v);
  return rc;
}
#define RC(s) loads_rc(s, sizeof(s) - 1)
static bool text_is(const conc_value *v, const char *want) {
  char buf[700];
  ssize_t n = conc_value_text(v, buf, sizeof buf);
  bool ok = n == (ssize_t)strlen(want) && strcmp(buf, want) == 0;
  if (!ok) printf("  got %s\n  not %s\n", buf, want);
  return ok;
}
static bool loads_as(const void *p, size_t n, const char *want) {
  conc_value *v;
  int rc = conc_pickle_loads(&v, p, n);
  bool ok;
  if (rc != 0) {
    printf("  rc %d, not %s\n", rc, want);
    return false;
  }
  ok = text_is(v, want);
  conc_value_free(v);
  return ok;
}
#define APPEND(s) (memcpy(p + n, s, sizeof(s) - 1), n += sizeof(s) - 1)
#define AS(s, want) loads_as(s, sizeof(s) - 1, want)

static bool hex_is(const unsigned char *p, size_t n, const char *hex) {
  size_t i;
  for (i = 0; i < n; i++) {
    char two[3];
    snprintf(two, 3, "%02x", p[i]);
    if (memcmp(two, hex + 2 * i, 2) != 0) return false;
  }
  return hex[2 * n] == 0;
}
static size_t unhex(const char *hex, unsigned char *out) {
  size_t n = 0;
  for (; *hex; hex += 2) {
    unsigned x;
    sscanf(hex, "%2x", &x);
    out[n++] = (unsigned char)x;
  }
  return n;
}
static void digest(int kind, const void *data, size_t size,
                   unsigned char *out) {
  conc__hash h;
  conc__hash_begin(&h, kind);
  conc__hash_add(&h, data, size);
  conc__hash_end(&h, out);
}
static bool hmac_is(int kind, const void *k, size_t kn, const void *m,
                    size_t mn, const char *hex) {
  unsigned char out[32];
  conc__hmac(kind, k, kn, m, mn, out);
  return hex_is(out, kind == CONC__MD5 ? 16 : 32, hex);
}

/* SHA-256, MD5 and HMAC of the published texts (FIPS 180, RFC 1321, 2202,
   4231), and of what Python's handshake sends. */
TEST(hashes_match_their_published_vectors) {
  unsigned char out[32], m[64], big[200], aa[131];
  size_t i;
  unsigned char *million = (unsigned char *)malloc(1000000);
  digest(CONC__SHA256, "abc", 3, out);
  CHECK(hex_is(out, 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
  digest(CONC__SHA256, "", 0, out);
  CHECK(hex_is(out, 32, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
  digest(CONC__SHA256, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, out);
  CHECK(hex_is(out, 32, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
  memset(million, 'a', 1000000);
  digest(CONC__SHA256, million, 1000000, out);
  CHECK(hex_is(out, 32, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
  digest(CONC__MD5, "", 0, out);
  CHECK(hex_is(out, 16, "d41d8cd98f00b204e9800998ecf8427e"));
  digest(CONC__MD5, "abc", 3, out);
  CHECK(hex_is(out, 16, "900150983cd24fb0d6963f7d28e17f72"));
  digest(CONC__MD5, "12345678901234567890123456789012345678901234567890123456789012345678901234567890", 80, out);
  CHECK(hex_is(out, 16, "57edf4a22be3c955ac49da2e2107b67a"));
  free(million);
  /* PYTHON_WIRE 2.2 */
  memcpy(m, "{sha256}", 8);
  for (i = 0; i < 40; i++) m[8 + i] = (unsigned char)i;
  for (i = 0; i < 20; i++) big[i] = (unsigned char)i;
  memset(aa, 0xaa, sizeof aa);
  CHECK(hmac_is(CONC__MD5, "abc", 3, big, 20, "1b373176a84c1b044d9ba09795b53791"));
  CHECK(hmac_is(CONC__SHA256, "abc", 3, m, 48, "ee2b4cd766c1e0f5eb564525d250361f729d00e3948c83c5651d1cefdb97de31"));
  CHECK(hmac_is(CONC__MD5, "abc", 3, m, 48, "3e4faf2fc53f133cd76571e5d3fb9fd5"));
  CHECK(hmac_is(CONC__SHA256, NULL, 0, m, 48, "d18b190a737f779d3125c4a2dfddcebf933e2f2713bc92fbe386ca25df9fd7af"));
  CHECK(hmac_is(CONC__SHA256, aa, 100, m, 48, "afa3ef3c723b9d2195ab858e7dd8fd6289f390ead8d1b2ff4ed3c867bb781c73"));
  CHECK(hmac_is(CONC__MD5, aa, 100, big, 20, "8ba6f0f89ede4bfa13c00ca267469da9"));
  i = unhex("5a9f94852e8161247c6b5cb665c9e3eb253f50f9", m);
  CHECK(hmac_is(CONC__MD5, "abc", 3, m, i, "b3daae2e37e39e6ca71d43ce74453b52"));
  i = unhex("06488667e7151961f65f15bf18119adeaf7bc84a", m);
  CHECK(hmac_is(CONC__MD5, "abc", 3, m, i, "62c6f791dac08b5b19d737329396a088"));
  i = unhex("7b7368613235367df9dcc4165d7c9f1b85f272e701ac3d0e7b78e970fb9312a6e6531c21122959e183d1211103ffe9a7", m);
  CHECK(hmac_is(CONC__SHA256, "abc", 3, m, i, "7b12dba0e3c597a76af93ed7bd2a3944f732afa9ab3532be98cee9d7bc4d7413"));
  i = unhex("7b7368613235367dc1402ffab61869ae2467bdc2c4444a04420f17ed7964ef226424d188f53b5e907f252ff0ad87311c", m);
  CHECK(hmac_is(CONC__SHA256, "abc", 3, m, i, "308eb18f42c46e87dc7365f73a30f68d06d6e6bb46539e431f82666c9d401114"));
  /* RFC 2202, 4231 */
  memset(big, 0x0b, 20);
  CHECK(hmac_is(CONC__MD5, big, 16, "Hi There", 8, "9294727a3638bb1c13f48ef8158bfc9d"));
  CHECK(hmac_is(CONC__SHA256, big, 20, "Hi There", 8, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"));
  CHECK(hmac_is(CONC__MD5, "Jefe", 4, "what do ya want for nothing?", 28, "750c783e6ab0b503eaa86e310a5db738"));
  CHECK(hmac_is(CONC__SHA256, "Jefe", 4, "what do ya want for nothing?", 28, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
  memset(big, 0xdd, 50);
  CHECK(hmac_is(CONC__MD5, aa, 16, big, 50, "56be34521d144c88dbb8c733f0e8b3f6"));
  CHECK(hmac_is(CONC__SHA256, aa, 20, big, 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"));
  CHECK(hmac_is(CONC__MD5, aa, 80, "Test Using Larger Than Block-Size Key - Hash Key First", 54, "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd"));
  CHECK(hmac_is(CONC__SHA256, aa, 131, "Test Using Larger Than Block-Size Key - Hash Key First", 54, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"));
  CHECK(conc__equal_secret("abc", "abc", 3) && !conc__equal_secret("abc", "abd", 3));
  CHECK(conc__equal_secret("", "", 0));
  memset(m, 7, 8);
  conc__wipe(m, 7);
  CHECK(m[0] == 0 && m[6] == 0 && m[7] == 7);
  (void)out;
}

/* Every letter of a format, as a value and as text, and every way to read
   it: of the right type, of another one, of none. */
TEST(values_are_built_and_read) {
  conc_value *v, *w;
  int64_t n;
  double f;
  bool b;
  size_t size = 0;
  CHECK(conc_build(&v, "{s:i,s:[dd],s:s#,s:y#,s:N,s:p,s:()}", "id", 7, "at", 1.5, -2.0, "t", "a\0b", (size_t)3, "b", "\xff\0", (size_t)2, "n", "ok", 5, "e") == 0);
  CHECK(text_is(v, "{'id': 7, 'at': [1.5, -2.0], 't': 'a\\x00b', 'b': b'\\xff\\x00', 'n': None, 'ok': True, 'e': ()}"));
  CHECK(conc_value_type(v) == CONC_DICT && conc_value_size(v) == 7);
  CHECK(conc_value_int(conc_value_get(v, "id"), &n) == 0 && n == 7);
  CHECK(conc_value_get(v, "nope") == NULL && conc_value_get(v, "") == NULL);
  CHECK(conc_value_float(conc_value_get(v, "id"), &f) == 0 && f == 7);
  CHECK(conc_value_bool(conc_value_get(v, "ok"), &b) == 0 && b);
  CHECK(conc_value_bool(conc_value_get(v, "id"), &b) == -EINVAL);
  CHECK(conc_value_int(conc_value_get(v, "ok"), &n) == -EINVAL);
  CHECK(memcmp(conc_value_str(conc_value_get(v, "t"), &size), "a\0b\0", 4) == 0 && size == 3);
  CHECK(memcmp(conc_value_bytes(conc_value_get(v, "b"), &size), "\xff\0\0", 3) == 0 && size == 2);
  CHECK(conc_value_str(conc_value_get(v, "b"), &size) == NULL);
  CHECK(conc_value_bytes(conc_value_get(v, "t"), &size) == NULL);
  CHECK(strcmp(conc_value_str(conc_value_key(v, 1), NULL), "at") == 0);
  CHECK(conc_value_size(conc_value_item(v, 1)) == 2);
  CHECK(conc_value_item(v, 7) == NULL && conc_value_key(v, 7) == NULL);
  CHECK(conc_value_item(conc_value_get(v, "id"), 0) == NULL);
  CHECK(conc_build(&w, "O", v) == 0 && conc_value_equal(v, w));
  conc_value_free(w);
  CHECK(conc_build(&w, "(OO)", v, v) == 0 && conc_value_equal(v, conc_value_item(w, 1)));
  conc_value_free(w);
  conc_value_free(v);
  conc_value_free(NULL);
  CHECK(conc_build(&v, "is", 1, "x") == 0 && text_is(v, "(1, 'x')"));
  conc_value_free(v);
  CHECK(conc_build(&v, "") == 0 && text_is(v, "None"));
  conc_value_free(v);
  CHECK(conc_build(&v, "s", (char *)NULL) == 0 && text_is(v, "None"));
  conc_value_free(v);
  CHECK(conc_build(&v, "(lLkn)", -1L, -2LL, 3UL, (ssize_t)-4) == 0 && text_is(v, "(-1, -2, 3, -4)"));
  conc_value_free(v);
  CHECK(conc_build(&v, "s", "\xed\xa0\x80") == 0);
  conc_value_free(v);
  CHECK(conc_build(&v, "s", "\xff") == -EINVAL && v == NULL);
  CHECK(conc_build(&v, "s", "\xc0\x80") == -EINVAL);
  CHECK(conc_build(&v, "(i", 1) == -EINVAL && conc_build(&v, "i)", 1) == -EINVAL);
  CHECK(conc_build(&v, "(i]", 1) == -EINVAL && conc_build(&v, "q") == -EINVAL);
  CHECK(conc_build(&v, "{i}", 1) == -EINVAL && conc_build(&v, "{[]i}", 1) == -EINVAL);
  CHECK(conc_build(&v, "O", (conc_value *)NULL) == -EINVAL);
  CHECK(conc_value_type(NULL) == CONC_NONE && conc_value_size(NULL) == 0 && conc_value_get(NULL, "x") == NULL);
  CHECK(conc_value_int(NULL, &n) == -EINVAL);
  CHECK(conc_build(&v, "(IKKfy)", 4000000000u, (unsigned long long)-1, 5ULL, 0.5, "z") == 0);
  CHECK(text_is(v, "(4000000000, 18446744073709551615, 5, 0.5, b'z')"));
  {
    unsigned a = 0;
    unsigned long long x = 0, y = 0;
    float g = 0;
    const char *z = NULL;
    CHECK(conc_parse(v, "(IKKfy)", &a, &x, &y, &g, &z) == 0 && a == 4000000000u && x == (unsigned long long)-1 && y == 5 && g == 0.5f && strcmp(z, "z") == 0);
    CHECK(conc_parse(v, "(IKIfi)", &a, &x, &a, &g, &a) == -EINVAL);
    a = 9;
    CHECK(conc_parse(v, "(IIKfy)", &a, &a, &y, &g, &z) == -ERANGE && a == 9);
  }
  conc_value_free(v);
  /* dicts are equal in any order, sets too; the last of a key wins */
  CHECK(AS("\x80\x04}(X\1\0\0\0aK\1X\1\0\0\0bK\2X\1\0\0\0aK\3u.", "{'a': 3, 'b': 2}"));
  CHECK(AS("\x80\x04}(K\1K\5\x88K\6G\x3f\xf0\0\0\0\0\0\0K\7u.", "{1: 7}"));
  CHECK(AS("\x80\x04\x8f(K\3K\1K\2K\1\x88\x90.", "{1, 2, 3}"));
  CHECK(AS("\x80\x04}(\x8a\x09\0\0\0\0\0\0\0\0\1K\1G\x43\xf0\0\0\0\0\0\0K\2u.", "{18446744073709551616: 2}"));
  CHECK(AS("\x80\x04}(G\x7f\xf8\0\0\0\0\0\0K\1G\x7f\xf8\0\0\0\0\0\0K\2u.", "{nan: 1, nan: 2}"));
  CHECK(AS("\x80\x04}((K\1K\2\x91K\1(K\2K\1\x91K\2u.", "{frozenset({1, 2}): 2}"));
  LOADS(&v, "}(K\1K\2K\3K\4u.");
  LOADS(&w, "}(K\3K\4K\1K\2u.");
  CHECK(conc_value_equal(v, w));
  conc_value_free(w);
  LOADS(&w, "}(K\3K\4K\1K\3u.");
  CHECK(!conc_value_equal(v, w));
  conc_value_free(v);
  conc_value_free(w);
}

TEST(a_dict_of_many_keys_is_fast_and_the_last_of_equal_keys_counts) {
  static const char hexdigit[] = "0123456789abcdef";
  conc__buffer b = {NULL, 0, 0, 0};
  conc_value *v;
  int i, bad = 0;
  conc__buffer_append(&b, "\x80\x04}(", 4);
  for (i = 0; i < 5000; i++) {
    unsigned x = (unsigned)i * 2654435761u;
    char k[4] = {hexdigit[x >> 28], hexdigit[x >> 24 & 15], hexdigit[x >> 20 & 15], hexdigit[x >> 16 & 15]};
    conc__pickle_put_str(&b, k, 4);
    conc__pickle_put_int(&b, i);
  }
  conc__buffer_append(&b, "u.", 2);
  CHECK(conc_pickle_loads(&v, b.data, b.size) == 0);
  for (i = 0; i < 5000; i++) {
    int j;
    int64_t n = -1;
    unsigned x = (unsigned)i * 2654435761u;
    char k[5] = {hexdigit[x >> 28], hexdigit[x >> 24 & 15], hexdigit[x >> 20 & 15], hexdigit[x >> 16 & 15], 0};
    conc_value_int(conc_value_get(v, k), &n);
    for (j = (int)n; j < 5000 && j > i; j = -2) /* a later one of that key */
      if (((unsigned)j * 2654435761u) >> 16 != x >> 16) bad++;
    if (n < i) bad++;
  }
  CHECK(bad == 0);
  conc_value_free(v);
  conc__buffer_free(&b);
}

/* A row is a format that fits the value, or that fails at one place: then
   nothing may have been stored, not even what came before that place. */
TEST(values_are_taken_apart_by_a_format) {
  conc_value *v;
  int a = 9, c = 9;
  long l = 9;
  double d = 9;
  const char *s = NULL;
  size_t size = 0;
  const conc_value *o;
  conc_build(&v, "(i(sd)[ii]N)", 5, "x", 2.5, 6, 7);
  CHECK(conc_parse(v, "(i(dd)[ii]N)", &a, &d, &d, &c, &c) == -EINVAL);
  a = c = 9;
  CHECK(conc_parse(v, "(i(s#d)[il]N)", &a, &s, &size, &d, &c, &l) == 0);
  CHECK(a == 5 && size == 1 && strcmp(s, "x") == 0 && d == 2.5 && c == 6 && l == 7);
  CHECK(conc_parse(v, "(iOOO)", &a, &o, &o, &o) == 0);
  CHECK(conc_parse(v, "O", &o) == 0 && o == v);
  CHECK(conc_parse(v, "(i)", &a) == -EINVAL && conc_parse(v, "(iOOOO)", &a, &o, &o, &o, &o) == -EINVAL);
  CHECK(conc_parse(v, "[iOOO]", &a, &o, &o, &o) == -EINVAL);
  CHECK(conc_parse(v, "i", &a) == -EINVAL);
  CHECK(conc_parse(v, "(iOOO", &a, &o, &o, &o) == -EINVAL);
  CHECK(conc_parse(v, "iOOO", &a, &o, &o, &o) == 0);
  CHECK(conc_parse(v, "iOOO)", &a, &o, &o, &o) == -EINVAL);
  a = 9;
  CHECK(conc_parse(v, "(iOOi)", &a, &o, &o, &a) == -EINVAL && a == 9);
  conc_value_free(v);
  conc_build(&v, "{s:i,s:[ii]}", "a", 1, "b", 2, 3);
  CHECK(conc_parse(v, "{s:[ii],s:l}", "b", &a, &c, "a", &l) == 0 && l == 1);
  a = c = 0;
  CHECK(conc_parse(v, "{s:[ii]}", "b", &a, &c) == 0 && a == 2 && c == 3);
  CHECK(conc_parse(v, "{s:i}", "c", &a) == -EINVAL);
  CHECK(conc_parse(v, "{s}", "a") == -EINVAL && conc_parse(v, "{i}", 1) == -EINVAL);
  conc_value_free(v);
  conc_build(&v, "L", 1LL << 40);
  CHECK(conc_parse(v, "i", &a) == -ERANGE);
  conc_value_free(v);
  conc_build(&v, "s#", "a\0b", (size_t)3);
  CHECK(conc_parse(v, "s", &s) == -EINVAL && conc_parse(v, "s#", &s, &size) == 0 && size == 3);
  conc_value_free(v);
}

/* Items whose number is known at run time: a '*' behind the letter. */
TEST(conc_build_takes_arrays) {
  static const int i[] = {1, -2, 3};
  static const unsigned u[] = {4000000000u};
  static const unsigned long long K[] = {18446744073709551615ull};
  static const double d[] = {1.5, 2.5};
  static const float f[] = {0.5};
  static const bool p[] = {true, false};
  static const char *const s[] = {"a", NULL, "c"};
  static const char *const bad[] = {"\xff"};
  static const size_t one = 1, two = 2, three = 3, none = 0;
  const conc_value *parts[4];
  conc_value *v, *w, *many, *next;
  long *large;
  CHECK_EQ(conc_build(&v, "[i*]", three, i), 0);
  CHECK(text_is(v, "[1, -2, 3]"));
  CHECK_EQ(conc_build(&w, "{s:[d*],s:(s*)}", "d", two, d, "s", three, s), 0);
  CHECK(conc_value_size(conc_value_get(w, "d")) == 2);
  parts[0] = conc_value_item(v, 0);
  parts[1] = w;
  parts[2] = conc_value_item(v, 1);
  parts[3] = v;
  CHECK_EQ(conc_build(&many, "{O*}", three + 1, parts), 0);
  CHECK(text_is(many, "{1: {'d': [1.5, 2.5], 's': ('a', None, 'c')}, -2: [1, -2, 3]}"));
  CHECK_EQ(conc_build(&next, "{O*}", three, parts), -EINVAL); /* no pairs */
  CHECK(next == NULL);
  parts[1] = NULL;
  CHECK_EQ(conc_build(&next, "[O*]", two, parts), -EINVAL);
  conc_value_free(v);
  conc_value_free(w);
  conc_value_free(many);
  CHECK_EQ(conc_build(&v, "([I*][K*][f*][p*][y*][l*])", one, u, one, K, one, f, two, p, one, s, none, (long *)NULL), 0);
  CHECK(text_is(v, "([4000000000], [18446744073709551615], [0.5], [True, False], [b'a'], [])"));
  conc_value_free(v);
  CHECK_EQ(conc_build(&v, "[s*]", one, bad), -EINVAL);
  CHECK_EQ(conc_build(&v, "[i*]", one, (int *)NULL), -EINVAL);
  CHECK_EQ(conc_build(&v, "[N*]", one, i), -EINVAL);
  CHECK_EQ(conc_build(&v, "[(*]", one, i), -EINVAL);
  CHECK_EQ(conc_build(&v, "i**", one, i), -EINVAL);
  large = (long *)calloc(100000, sizeof *large);
  CHECK(large != NULL);
  large[99999] = 7;
  CHECK_EQ(conc_build(&v, "[l*]", (size_t)100000, large), 0);
  CHECK_EQ(conc_value_size(v), 100000);
  CHECK(text_is(conc_value_item(v, 99999), "7"));
  conc_value_free(v);
  free(large);
}

/* A walk writes a value as its repr, so each part comes at its place. */
TEST(a_walk_comes_to_every_part) {
  conc_value_walk w;
  conc_value *v, *next;
  char text[300];
  size_t n = 0, leaves = 0, opens = 0, closes = 0, deepest = 0;
  int step;
  CHECK_EQ(conc_build(&v, "[i(s[]){s:d}N]", 1, "x", "k", 2.5), 0);
  conc_value_walk_begin(&w, v);
  while ((step = conc_value_walk_next(&w)) != CONC_WALK_END) {
    if (step == CONC_WALK_OPEN) CHECK_EQ(w.depth > 0, true);
    if (step != CONC_WALK_CLOSE) {
      CHECK((w.parent == NULL) == (w.value == v));
      n += (size_t)snprintf(text + n, sizeof text - n, "%d.%d.%d ", (int)conc_value_type(w.value), (int)w.index, (int)w.depth);
    }
    leaves += step == CONC_WALK_LEAF;
    opens += step == CONC_WALK_OPEN;
    closes += step == CONC_WALK_CLOSE;
  }
  CHECK_STR(text, "8.0.1 2.0.1 9.1.2 5.0.2 8.1.3 10.2.2 5.0.2 4.1.2 0.3.1 ");
  CHECK(leaves == 5 && opens == 4 && closes == 4);
  CHECK_EQ(conc_value_walk_next(&w), CONC_WALK_END); /* again */
  conc_value_walk_begin(&w, NULL);
  CHECK_EQ(conc_value_walk_next(&w), CONC_WALK_LEAF);
  CHECK_EQ(conc_value_walk_next(&w), CONC_WALK_END);
  while (conc_build(&next, "[O]", v) == 0) { /* as deep as can be */
    conc_value_free(v);
    v = next;
  }
  conc_value_walk_begin(&w, v);
  while (conc_value_walk_next(&w) != CONC_WALK_END)
    if (w.depth > deepest) deepest = w.depth;
  CHECK_EQ(deepest, 100);
  conc_value_free(v);
}

/* Each error that conc_build documents; then the result is NULL. */
TEST(conc_build_returns_each_of_its_errors) {
  static char wide[1000004];
  conc_value *v, *w = NULL;
  int i;
#define BUILD_FAILS(error, ...) \
  (v = w, CHECK_EQ(conc_build(&v, __VA_ARGS__), error), CHECK(v == NULL))
  CHECK_EQ(conc_build(&w, "{s:[i]}", "k", 1), 0);
  BUILD_FAILS(-EINVAL, "x");
  BUILD_FAILS(-EINVAL, "(i", 1);
  BUILD_FAILS(-EINVAL, "i)", 1);
  BUILD_FAILS(-EINVAL, "[i)", 1);
  BUILD_FAILS(-EINVAL, "{i}", 1);
  BUILD_FAILS(-EINVAL, "s", "\xff");
  BUILD_FAILS(-EINVAL, "s#", "\xc3\xbf", (size_t)1);
  BUILD_FAILS(-EINVAL, "O", (conc_value *)NULL);
  BUILD_FAILS(-EINVAL, "{[]:i}", 1);
  BUILD_FAILS(-EINVAL, "{O:i}", w, 1);
  BUILD_FAILS(-EINVAL, "{([]):i}", 1);
  memset(wide, '[', 101), memset(wide + 101, ']', 101), wide[202] = 0;
  BUILD_FAILS(-EMSGSIZE, wide); /* too deep */
  wide[0] = '[', wide[1000003] = 0;
  memset(wide + 1, 'N', 1000001), wide[1000002] = ']';
  BUILD_FAILS(-EMSGSIZE, wide); /* too many parts */
  for (i = 1; i < 3; i++) {
    test_fail_at = i;
    if (i == 1) BUILD_FAILS(-ENOMEM, "[s]", "a");
    else /* 40 items leave their place in the maker first */
      BUILD_FAILS(-ENOMEM, "NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNN");
    test_fail_at = 0;
  }
  conc_value_free(w);
}

/* Each error that conc_parse documents, for each kind of item; then nothing
   was written, not even what came before. */
TEST(conc_parse_returns_each_of_its_errors) {
  static const char *const wrong[] = {"N", "p", "i", "l", "L", "n", "I", "k",
    "K", "f", "d", "s", "y", "[]", "()", "{}", "s#", "y#", "x", "[", ")", "Ox"};
  static const struct {
    const char *format, *value;
  } range[] = {
    {"i", "2147483648"}, {"i", "-2147483649"}, {"I", "-1"}, {"I", "4294967296"},
    {"k", "-1"}, {"K", "-1"}, {"K", "18446744073709551616"},
    {"L", "9223372036854775808"}, {"L", "-9223372036854775809"},
    {"l", "9223372036854775808"}, {"n", "9223372036854775808"}};
  /* where any item would be written */
  union {
    uint64_t word;
    unsigned char bytes[8];
  } a, b;
  size_t i;
  int first;
  conc_value *v, *pair;
  char format[40];
  CHECK_EQ(conc_pickle_loads(&v, "\x8f.", 2), 0); /* a set is no item's */
  CHECK_EQ(conc_build(&pair, "(iO)", 5, v), 0);
  for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    first = 9;
    memset(&a, 0x77, sizeof a), b = a;
    CHECK_EQ(conc_parse(v, wrong[i], &a, &b), -EINVAL);
    snprintf(format, sizeof format, "(i%s)", wrong[i]);
    CHECK_EQ(conc_parse(pair, format, &first, &a, &b), -EINVAL);
    CHECK(first == 9 && a.bytes[0] == 0x77 && a.bytes[7] == 0x77);
    CHECK(b.bytes[0] == 0x77 && b.bytes[7] == 0x77);
  }
  CHECK_EQ(conc_parse(NULL, "i", &first), -EINVAL);
  conc_value_free(pair);
  conc_value_free(v);
  for (i = 0; i < sizeof range / sizeof *range; i++) {
    CHECK_EQ(conc_json_loads(&v, range[i].value, strlen(range[i].value), NULL), 0);
    memset(&a, 0x77, sizeof a);
    CHECK_EQ(conc_parse(v, range[i].format, &a), -ERANGE);
    CHECK(a.bytes[0] == 0x77 && a.bytes[7] == 0x77);
    conc_value_free(v);
  }
  CHECK_EQ(conc_build(&v, "(id)", 5, 1e300), 0);
  first = 9;
  CHECK_EQ(conc_parse(v, "(if)", &first, &a), -ERANGE); /* no float holds it */
  CHECK_EQ(first, 9);
  conc_value_free(v);
}

/* Each error that conc_pickle_dumps and _loads document. */
TEST(pickles_return_each_of_their_errors) {
  static unsigned char deep[300];
  conc_value *v = NULL;
  void *out = deep;
  size_t size;
  int p;
#define LOAD_FAILS(error, text) \
  (v = (conc_value *)(void *)deep, \
   CHECK_EQ(conc_pickle_loads(&v, text, sizeof(text) - 1), error), CHECK(v == NULL))
#define DUMP_FAILS(error, value, protocol) \
  (out = deep, CHECK_EQ(conc_pickle_dumps(value, protocol, &out, &size), error), \
   CHECK(out == NULL))
  LOAD_FAILS(-EBADMSG, "");
  LOAD_FAILS(-EBADMSG, "N");
  LOAD_FAILS(-EBADMSG, "0.");
  LOAD_FAILS(-EBADMSG, "\x80\x06N.");
  LOAD_FAILS(-EMSGSIZE, "]2a."); /* it contains itself */
  memset(deep, '(', 101), memset(deep + 101, 't', 101), deep[202] = '.';
  CHECK_EQ(conc_pickle_loads(&v, deep, 203), -EMSGSIZE);
  LOAD_FAILS(-EACCES, "cos\nsystem\nX\2\0\0\0ls\x85R.");
  LOAD_FAILS(-EACCES, "cos\nsystem\n.");
  LOAD_FAILS(-EACCES, "Pfar away\n.");
  test_fail_at = 1;
  LOAD_FAILS(-ENOMEM, "]K\1a.");
  test_fail_at = 0;
  CHECK_EQ(conc_build(&v, "[i]", 1), 0);
  for (p = -1; p < 8; p++)
    if (p != 0 && (p < 2 || p > 5)) DUMP_FAILS(-EINVAL, v, p);
  DUMP_FAILS(-EINVAL, NULL, 4);
  test_fail_at = 1;
  DUMP_FAILS(-ENOMEM, v, 4);
  test_fail_at = 0;
  conc_value_free(v);
}

/* A row is a pickle, and the text of what it must become. Those at the end
   of an opcode's range are what an off-by-one gets wrong. */
TEST(every_opcode_is_read) { /* PYTHON_WIRE 4.1 */
  conc_value *v;
  int64_t n = 0;
  double f = 0;
  size_t size = 0;
  int protocol = 9;
  (void)f;
  CHECK(AS("\x80\x04N.", "None") && AS("\x80\x04\x88.", "True"));
  CHECK(AS("\x80\x04K\xff.", "255") && AS("\x80\x04J\xff\xff\xff\xff.", "-1"));
  CHECK(AS("\x80\x04\x95\4\0\0\0\0\0\0\0M\0\1.", "256"));
  CHECK(AS("\x80\x04\x8a\5\0\0\0\x80\0.", "2147483648"));
  CHECK(AS("\x80\x04\x8a\5\xff\xff\xff\x7f\xff.", "-2147483649"));
  CHECK(AS("\x80\x04\x8a\x09\0\0\0\0\0\0\0\x80\0.", "9223372036854775808"));
  CHECK(AS("\x80\x04\x8a\x08\0\0\0\0\0\0\0\x80.", "-9223372036854775808"));
  CHECK(AS("\x80\x04\x8a\x0a\0\0\0\0\0\0\0\x80\xff\xff.", "-9223372036854775808"));
  CHECK(AS("\x80\x04\x8a\0.", "0") && AS("\x80\x04\x8b\1\0\0\0\7.", "7"));
  CHECK(AS("\x80\x04G?\xf8\0\0\0\0\0\0.", "1.5"));
  CHECK(AS("\x80\x04" "C\3abc\x94.", "b'abc'") && AS("\x80\x04\x8c\3h\xc3\xa9\x94.", "h\xc3\xa9"));
  CHECK(AS("\x80\x04K\1K\2\x86\x94.", "(1, 2)") && AS("\x80\x04(K\1K\2K\3K\4t\x94.", "(1, 2, 3, 4)"));
  CHECK(AS("\x80\x04]\x94K\1a.", "[1]") && AS("\x80\x04]\x94(K\1K\2e.", "[1, 2]"));
  CHECK(AS("\x80\x04]\x94.", "[]") && AS("\x80\x04).", "()") && AS("\x80\x04}.", "{}"));
  CHECK(AS("\x80\x04}\x94\x8c\1a\x94K\1s.", "{'a': 1}"));
  CHECK(AS("\x80\x04\x8f\x94(K\1K\2\x90.", "{1, 2}") && AS("\x80\x04(K\1\x91\x94.", "frozenset({1})"));
  CHECK(AS("\x80\x04\x8f.", "set()"));
  CHECK(AS("\x80\x04\x8c\x08" "builtins\x94\x8c\x09" "bytearray\x94\x93\x94" "C\3abc\x94\x85\x94R\x94.", "bytearray(b'abc')"));
  CHECK(AS("\x80\x05\x96\3\0\0\0\0\0\0\0abc\x94.", "bytearray(b'abc')"));
  CHECK(AS("\x80\2c__builtin__\nbytearray\nX\2\0\0\0\xc3\xbfX\7\0\0\0latin-1\x86R.", "bytearray(b'\\xff')"));
  CHECK(AS("\x80\2c_codecs\nencode\nq\0X\4\0\0\0a\xc3\xbfzq\1X\6\0\0\0latin1q\2\x86q\3Rq\4.", "b'a\\xffz'"));
  CHECK(AS("\x80\2c__builtin__\nset\n](K\1K\2e\x85R.", "{1, 2}"));
  CHECK(AS("\x80\3cbuiltins\nfrozenset\n]\x85R.", "frozenset()"));
  CHECK(AS("\x80\2U\3abc.", "abc") && AS("\x80\2U\1\xff.", "b'\\xff'"));
  CHECK(AS("\x80\2U\3abcq\1U\1bq\2h\1\x87.", "('abc', 'b', 'abc')")); /* cPickle counts from 1 */
  CHECK(AS("\x80\2c__builtin__\nbytes\n)R.", "b''"));
  CHECK(AS("\x80\2I1099511627776\n.", "1099511627776") && AS("\x80\2I-5\n.", "-5"));
  CHECK(AS("I-9223372036854775808\n.", "-9223372036854775808") && AS("I01\n.", "True"));
  CHECK(AS("I9223372036854775808\n.", "9223372036854775808") && RC("I\n.") == -EBADMSG && RC("I1") == -EBADMSG);
  /* protocols 0 and 1 write lines */
  CHECK(AS("L-12345678901234567890L\n.", "-12345678901234567890") && AS("L5\n.", "5"));
  CHECK(RC("LL\n.") == -EBADMSG && RC("L-L\n.") == -EBADMSG && RC("L1x\n.") == -EBADMSG && RC("I1L\n.") == -EBADMSG);
  CHECK(AS("F0.1\n.", "0.1") && AS("F-inf\n.", "-inf") && AS("Fnan\n.", "nan") && AS("F1e+300\n.", "1e+300"));
  CHECK(RC("F\n.") == -EBADMSG && RC("F1x\n.") == -EBADMSG && RC("F-\n.") == -EBADMSG && RC("F1") == -EBADMSG);
  CHECK(AS("(lp0\nS'a\\'\\n\\\\\\x41'\np1\nag1\na.", "[\"a'\\n\\\\A\", \"a'\\n\\\\A\"]"));
  CHECK(AS("S'\\xff'\n.", "b'\\xff'") && AS("S''\n.", "") && AS("S\"\"\n.", ""));
  CHECK(RC("S'\n.") == -EBADMSG && RC("S'a\n.") == -EBADMSG && RC("Sa'\n.") == -EBADMSG);
  CHECK(RC("S'\\q'\n.") == -EBADMSG && RC("S'\\'\n.") == -EBADMSG && RC("S'\\x4'\n.") == -EBADMSG);
  CHECK(AS("Va\xe9\\u4f60\\U0001f600\\\\u\n.", "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80\\\\u"));
  CHECK(RC("V\\u12\n.") == -EBADMSG && RC("V\\U00110000\n.") == -EBADMSG && AS("Va\\\n.", "a\\"));
  CHECK(RC("Np1\ng0\n\x86.") == -EBADMSG && RC("Np\n.") == -EBADMSG && RC("g0\n.") == -EBADMSG);
  CHECK(RC("Np99999999999\n.") == -EBADMSG && RC("Npx\n.") == -EBADMSG);
  CHECK(RC("\x80\x04\x8c\3\xed\xa0\x80.") == 0);
  CHECK(LOADS(&v, "\x80\x04X\3\0\0\0a\0b.") == 0 && memcmp(conc_value_str(v, &size), "a\0b", 4) == 0 && size == 3);
  conc_value_free(v);
  CHECK(LOADS(&v, "\x80\x04\x8a\x09\0\0\0\0\0\0\0\x80\0.") == 0);
  CHECK(conc_value_type(v) == CONC_BIGINT && conc_value_int(v, &n) == -ERANGE);
  CHECK(conc_value_float(v, &f) == 0 && f == 9223372036854775808.0);
  CHECK(conc_value_bytes(v, &size) && size == 9);
  conc_value_free(v);
  /* a list is filled after it was memoized; a shared one is shown twice */
  CHECK(AS("]\x94(h\0" "0K\1e.", "[1]"));
  CHECK(AS("(]\x94K\5ah\0h\0t.", "([5], [5], [5])"));
  CHECK(AS("\x80\x04(]\x94(K\1K\2eh\0t.", "([1, 2], [1, 2])"));
  CHECK(AS("(]\x94K\1a]\x94h\0ah\0K\2a0h\0K\3a0t.", "([1, 2, 3], [[1, 2, 3]])"));
  CHECK(conc__pickle_decode("\x80\2N.", 4, NULL, &v, &protocol) == 0 && protocol == 2);
  conc_value_free(v);
  /* Token and exceptions are records that lie still */
  CHECK(LOADS(&v, "\x80\x04\x8c\x18multiprocessing.managers\x94\x8c\5Token\x94\x93\x94)\x81\x94\x8c\1q\x94\x8c\1h\x94\x86\x94\x62.") == 0);
  conc_value_free(v);
  CHECK(LOADS(&v, "cmultiprocessing.managers\nToken\n)\x81X\1\0\0\0qK\1X\1\0\0\0i\x87" "b.") == 0);
  CHECK(conc_value_type(v) == CONC_OBJECT && strcmp(conc__object_name(v), "Token") == 0);
  CHECK(text_is(v, "<multiprocessing.managers.Token object>"));
  CHECK(conc_value_size(conc__recipe_state(v)) == 3);
  {
    void *out;
    CHECK(conc_pickle_dumps(v, 4, &out, &size) == -EACCES);
  }
  conc_value_free(v);
#define DECODE(s) conc__pickle_decode(s, sizeof(s) - 1, &conc__pickle_reply_limits, &v, &protocol)
  CHECK(DECODE("\x80\x04X\6\0\0\0#ERRORcbuiltins\nKeyError\nX\1\0\0\0k\x85R\x86.") == 0);
  CHECK(strcmp(conc__object_name(conc_value_item(v, 1)), "KeyError") == 0);
  CHECK(text_is(conc_value_item(v, 1), "<builtins.KeyError object>"));
  CHECK(text_is(conc__recipe_arguments(conc_value_item(v, 1)), "('k',)"));
  conc_value_free(v);
  CHECK(DECODE("\x80\x04\x8c\6_queue\x94\x8c\5" "Empty\x94\x93\x94)R\x94.") == 0);
  conc_value_free(v);
  CHECK(DECODE("cos\nsystem\n.") == 0 && text_is(v, "<os.system>"));
  conc_value_free(v);
}

/* A row is a pickle that would call, import, or need very much memory or
   time, and the error for it: -EACCES for what is forbidden, -EBADMSG for
   what is malformed, others for limits. */
TEST(every_known_attack_is_refused) { /* PYTHON_WIRE 8, row 8 */
  size_t i;
  unsigned char *p = (unsigned char *)malloc(3000000);
  double start;
  struct timespec t;
  /* names */
  CHECK(RC("cos\nsystem\nX\2\0\0\0ls\x85R.") == -EACCES);
  CHECK(RC("\x80\x04\x8c\2os\x94\x8c\6system\x94\x93.") == -EACCES);
  CHECK(RC("cbuiltins\neval\n.") == -EACCES && RC("cbuiltins\nset\n.") == -EACCES);
  CHECK(RC("cbuiltins\nset\n\x85.") == -EACCES && RC("(ios\nsystem\n.") == -EACCES);
  CHECK(RC("(cos\nsystem\no.") == -EACCES);
  CHECK(RC("cbuiltins\nset.__class__\n.") == -EACCES && RC("PX\n.") == -EACCES);
  CHECK(RC("\x82\1.") == -EACCES && RC("NQ.") == -EACCES);
  CHECK(RC("cbuiltins\nset") == -EBADMSG && RC("c") == -EBADMSG && RC("cbuiltins\n") == -EBADMSG);
  CHECK(RC("K\1)R.") == -EBADMSG && RC(")cbuiltins\nset\nR.") == -EBADMSG);
  CHECK(RC("cbuiltins\nset\nK\1\x85R.") == -EBADMSG && RC("cbuiltins\nset\n](]e\x85R.") == -EBADMSG);
  CHECK(RC("c_codecs\nencode\nX\3\0\0\0\xe2\x82\xacX\6\0\0\0latin1\x86R.") == -EBADMSG);
  CHECK(RC("c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R.") != 0);
  /* the stack */
  CHECK(RC("") == -EBADMSG && RC(".") == -EBADMSG && RC("N") == -EBADMSG && RC("NN.") == -EBADMSG);
  CHECK(RC("N.N") == -EBADMSG && RC("(N.") == -EBADMSG && RC("(.") == -EBADMSG);
  CHECK(RC("N(\x85.") == -EBADMSG && RC("N(\x85t.") == -EBADMSG && RC("\x86.") == -EBADMSG);
  CHECK(RC("NN(\x86.") == -EBADMSG && RC("t.") == -EBADMSG && RC("e.") == -EBADMSG);
  CHECK(RC("](Na.") == -EBADMSG && RC("N(Ne.") == -EBADMSG && RC("](K\1u.") == -EBADMSG);
  CHECK(RC("}(K\1u.") == -EBADMSG && RC("}K\1s.") == -EBADMSG && RC("](K\1K\2s.") == -EBADMSG);
  CHECK(RC("}K\1a.") == -EBADMSG && RC(")K\1a.") == -EBADMSG && RC("]K\1K\2s.") == -EBADMSG);
  CHECK(RC("]Nb.") == -EBADMSG && RC("0.") == -EBADMSG && RC("2.") == -EBADMSG && RC("1.") == -EBADMSG);
  CHECK(RC("\x94.") == -EBADMSG && RC("(\x94.") == -EBADMSG && RC("N(\x94.") == -EBADMSG);
  CHECK(RC("\xfe.") == -EBADMSG && RC("\x80\x06N.") == -EBADMSG && RC("\x80") == -EBADMSG);
  /* lengths */
  CHECK(RC("\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.") == -EBADMSG);
  CHECK(RC("\x8e\xff\xff\xff\xff\xff\xff\xff\xff.") == -EBADMSG);
  CHECK(RC("\x96\0\0\0\0\0\0\0\x80.") == -EBADMSG && RC("\x8d\xff\xff\xff\xff\0\0\0\0.") == -EBADMSG);
  CHECK(RC("\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.") == -EBADMSG && RC("\x95\3\0\0\0\0\0\0\0N.") == -EBADMSG);
  CHECK(RC("X\xff\xff\xff\xff" "a.") == -EBADMSG && RC("\x8b\xff\xff\xff\xff.") == -EBADMSG);
  CHECK(RC("T\xff\xff\xff\xff.") == -EBADMSG && RC("C\2a.") != 0 && RC("G\0.") == -EBADMSG);
  CHECK(RC("\x8c\1\xff.") == -EBADMSG && RC("\x8c\2\xc0\x80.") == -EBADMSG);
  /* the memo */
  CHECK(RC("Nr\xff\xff\xff\xff.") == -EBADMSG && RC("Nr\xff\xff\xff\x7f.") == -EBADMSG);
  CHECK(RC("Nq\2.") == -EBADMSG && RC("h\0.") == -EBADMSG && RC("Nq\1h\0\x86.") == -EBADMSG);
  CHECK(RC("j\xff\xff\xff\xff.") == -EBADMSG);
  /* cycles */
  CHECK(RC("]\x94h\0a.") == -EMSGSIZE && RC("}\x94K\1h\0s.") == -EMSGSIZE);
  CHECK(RC("]\x94(h\0\x85" "e.") == -EMSGSIZE);
  CHECK(RC("]\x94]\x94h\0aa.") == -EMSGSIZE);
  /* an object may refer to itself; not data to itself by an object */
  CHECK(RC("cmultiprocessing.managers\nToken\n)\x81\x94h\0b.") == 0);
  CHECK(RC("]\x94" "cmultiprocessing.managers\nToken\n)\x81h\0ba.") == -EACCES);
  /* keys */
  CHECK(RC("}(]K\1u.") == -EBADMSG && RC("}(]\x85K\1u.") == -EBADMSG && RC("\x8f(]\x90.") == -EBADMSG);
  CHECK(RC("}(\x96\0\0\0\0\0\0\0\0K\1u.") == -EBADMSG && RC("(}\x91.") == -EBADMSG);
  CHECK(RC("}((\x91\x85K\1u.") == 0);
  /* depth: 100 is read, written, shown, copied; 101 not */
  for (i = 99; i <= 200000; i = i == 99 ? 100 : i == 100 ? 101 : 200000 + (i == 200000)) {
    conc_value *v, *w;
    int rc;
    p[0] = ')';
    memset(p + 1, 0x85, i);
    p[i + 1] = '.';
    rc = conc_pickle_loads(&v, p, i + 2);
    CHECK(rc == (i < 100 ? 0 : -EMSGSIZE));
    if (rc != 0) continue;
    CHECK(conc_value_text(v, NULL, 0) == 99 * 3 + 2);
    CHECK(conc_build(&w, "O", v) == 0 && conc_value_equal(v, w));
    conc_value_free(w);
    CHECK(conc_build(&w, "(O)", v) == -EMSGSIZE);
    conc_value_free(v);
  }
  /* nested lists, never closed: the stack and the objects */
  memset(p, ']', 3000000);
  CHECK(loads_rc(p, 3000000) == -EMSGSIZE);
  memset(p, '(', 3000000);
  CHECK(loads_rc(p, 3000000) == -EMSGSIZE);
  memset(p, 'N', 3000000);
  CHECK(loads_rc(p, 3000000) == -EMSGSIZE);
  /* 2^40 leaves in 245 bytes: neither when nested tuples, nor lists */
  {
    size_t n = 0;
    p[n++] = 'N';
    for (i = 0; i < 40; i++) p[n++] = 0x94, p[n++] = 'h', p[n++] = (unsigned char)i, p[n++] = 0x86;
    p[n++] = '.';
    asked_for = asked_most = 0;
    CHECK(loads_rc(p, n) == -EMSGSIZE);
    CHECK(asked_for < 100000);
    n = 0; /* and 2^15, which is in the bounds, is read in O(input) */
    p[n++] = 'N';
    for (i = 0; i < 15; i++) p[n++] = 0x94, p[n++] = 'h', p[n++] = (unsigned char)i, p[n++] = 0x86;
    p[n++] = '.';
    asked_for = 0;
    CHECK(loads_rc(p, n) == 0);
    CHECK(asked_for < 10000);
  }
  /* one long text, many times: what it would be when written out counts */
  {
    size_t n = 0;
    p[n++] = '(';
    p[n++] = 'B';
    p[n++] = 0x40, p[n++] = 0x42, p[n++] = 0x0f, p[n++] = 0; /* 1000000 */
    memset(p + n, 'x', 1000000);
    n += 1000000;
    p[n++] = 0x94;
    for (i = 0; i < 1000; i++) p[n++] = 'h', p[n++] = 0;
    p[n++] = 't', p[n++] = '.';
    asked_for = 0;
    CHECK(loads_rc(p, n) == -EMSGSIZE);
    CHECK(asked_for < 10000000);
  }
  /* _codecs.encode on one text again and again */
  {
    size_t n = 0;
    APPEND("(c_codecs\nencode\n\x94X\x10\x27\0\0");
    for (i = 0; i < 5000; i++) p[n++] = 0xc3, p[n++] = 0xbf;
    APPEND("X\6\0\0\0latin1\x86\x94R");
    for (i = 0; i < 100000; i++) APPEND("h\0h\1R");
    p[n++] = 't', p[n++] = '.';
    asked_for = 0;
    CHECK(loads_rc(p, n) == -EMSGSIZE);
    CHECK(asked_for < 100000000);
  }
  /* set(list) copies the list: that comes from the budget */
  {
    size_t n = 0;
    APPEND("(cbuiltins\nset\n\x94](");
    for (i = 0; i < 10000; i++) p[n++] = 'M', p[n++] = (unsigned char)i, p[n++] = (unsigned char)(i >> 8);
    APPEND("e\x85\x94R");
    for (i = 0; i < 100000; i++) APPEND("h\0h\1R");
    p[n++] = 't', p[n++] = '.';
    CHECK(loads_rc(p, n) == -EMSGSIZE);
  }
  /* bigints: 4 KiB are read and shown, more is refused */
  {
    conc_value *v;
    size_t n = 4096;
    p[0] = 0x8b, p[1] = 0, p[2] = 0x10, p[3] = 0, p[4] = 0;
    memset(p + 5, 0x5a, n);
    p[5 + n] = '.';
    CHECK(conc_pickle_loads(&v, p, 6 + n) == 0);
    CHECK(conc_value_text(v, NULL, 0) == 9864);
    conc_value_free(v);
    p[1] = 1;
    p[5 + n] = 0x5a;
    p[6 + n] = '.';
    CHECK(loads_rc(p, 7 + n) == -EMSGSIZE);
  }
  /* 150000 pairs of one key, of equal tuples, and of keys in hostile order */
  clock_gettime(CLOCK_MONOTONIC, &t);
  start = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
  {
    size_t n;
    int kind;
    for (kind = 0; kind < 3; kind++) {
      n = 0;
      p[n++] = '}', p[n++] = '(';
      for (i = 0; i < 150000; i++) {
        size_t k = kind == 2 ? (i % 2 ? i : 150000 - i) : 7;
        if (kind == 1) p[n++] = 'N';
        p[n++] = 'J', p[n++] = (unsigned char)k, p[n++] = (unsigned char)(k >> 8), p[n++] = (unsigned char)(k >> 16), p[n++] = 0;
        if (kind == 1) p[n++] = 0x86;
        p[n++] = 'N';
      }
      p[n++] = 'u', p[n++] = '.';
      CHECK(loads_rc(p, n) == 0);
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &t);
  CHECK((double)t.tv_sec + 1e-9 * (double)t.tv_nsec - start < 10 * test_slow());
  free(p);
}

/* One value through each protocol and back; then in the form for an old
   Python, in which bytes are a call, which must read back as the same. */
TEST(what_is_written_reads_back) {
  conc_value *v, *w;
  void *out;
  size_t size = 0, offset, n;
  int p;
  conc__buffer b = {NULL, 0, 0, 0};
  conc_build(&v, "(sy#i{si})", "h\xc3\xa9", "\xff\0z", (size_t)3, 300, "k", -1);
  for (p = 2; p <= 5; p++) {
    CHECK(conc_pickle_dumps(v, p, &out, &size) == 0);
    CHECK(((unsigned char *)out)[1] == p);
    CHECK(conc_pickle_loads(&w, out, size) == 0 && conc_value_equal(v, w));
    conc_value_free(w);
    conc_free(out);
  }
  CHECK(conc_pickle_dumps(v, 1, &out, &size) == -EINVAL && conc_pickle_dumps(v, 6, &out, &size) == -EINVAL);
  conc__buffer_append(&b, "head", 4);
  CHECK(conc__pickle_encode(&b, v, 4) == 0);
  CHECK(memmem(b.data, b.size, "C\3\xff\0z", 5) != NULL);
  CHECK(conc__pickle_downgrade(&b, 4) == 0 && memcmp(b.data, "head(", 5) == 0);
  CHECK(memmem(b.data, b.size, "C\3\xff\0z", 5) == NULL);
  CHECK(memmem(b.data, b.size, "c_codecs\nencode\nX\4\0\0\0\xc3\xbf\0zX\6\0\0\0latin1\x86R", 38) != NULL);
  conc__buffer_append(&b, ".", 1);
  CHECK(conc_pickle_loads(&w, b.data + 4, b.size - 4) == 0 && conc_value_equal(v, w));
  conc_value_free(w);
  conc_value_free(v);
  b.size = 0;
  conc__pickle_put_bytes(&b, "abc", 3, 4);
  CHECK(conc__pickle_content(b.data, b.size, b.size, &offset, &n) == 0 && offset == 2 && n == 3);
  CHECK(conc__pickle_content(b.data, 1, b.size, &offset, &n) == -EBADMSG);
  CHECK(conc__pickle_content(b.data, b.size, b.size + 1, &offset, &n) == -EBADMSG);
  b.size = 0;
  conc__pickle_put_str(&b, "", 0);
  CHECK(conc__pickle_content(b.data, b.size, b.size, &offset, &n) == 0 && offset == 5 && n == 0);
  b.size = 0;
  conc__pickle_put_int(&b, INT64_C(2147483648)); /* as Python, to the byte */
  CHECK(b.size == 7 && memcmp(b.data, "\x8a\5\0\0\0\x80\0", 7) == 0);
  conc__buffer_free(&b);
}

TEST(text_fits_its_buffer) {
  conc_value *v;
  char buf[8];
  conc_build(&v, "[is]", 123, "abc");
  memset(buf, 'X', 8);
  CHECK(conc_value_text(v, buf, 6) == 12 && strcmp(buf, "[123,") == 0 && buf[6] == 'X');
  CHECK(conc_value_text(v, NULL, 0) == 12);
  CHECK(conc_value_text(v, buf, 1) == 12 && buf[0] == 0);
  conc_value_free(v);
}

/* A cut text ends with a whole character, wherever it is cut. */
TEST(a_text_is_cut_between_characters) {
  static const char text[] = "a\xc3\xa9\xe6\x97\xa5\xf0\x9f\x98\x80z";
  static const size_t kept[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
  conc_value *v, *list;
  char buf[20];
  size_t i;
  conc_build(&v, "s", text);
  conc_build(&list, "[s]", text);
  for (i = 1; i <= 12; i++) {
    memset(buf, 'X', sizeof buf);
    CHECK(conc_value_text(v, buf, i) == 11);
    CHECK_EQ(strlen(buf), kept[i - 1]);
    CHECK(memcmp(buf, text, kept[i - 1]) == 0 && buf[i] == 'X');
    if (i < 3) continue;
    CHECK(conc_value_text(list, buf, i) == 15);
    CHECK_EQ(strlen(buf), 2 + kept[i - 3]);
  }
  conc_value_free(v);
  conc_value_free(list);
  CHECK(conc__utf8_cut("\x80\x80\x80\x80", 4) == 4 && conc__utf8_cut("\xff", 1) == 0);
  CHECK(conc__utf8_cut("", 0) == 0 && conc__utf8_cut("a\xc3\xa9", 3) == 3);
}

/* Writes v by each protocol; each must come back. The size of protocol 4. */
static size_t comes_back(const conc_value *v) {
  size_t size = 0, four = 0;
  conc_value *w;
  void *out;
  int p;
  for (p = 2; p <= 5; p++) {
    CHECK(conc_pickle_dumps(v, p, &out, &size) == 0);
    CHECK(conc_pickle_loads(&w, out, size) == 0 && conc_value_equal(v, w));
    if (p == 4) four = size;
    conc_value_free(w);
    conc_free(out);
  }
  return four;
}

/* A text of 20 kB that stands 3,000 times, and a list of 100 items that stands
   4,000 times: as short as they came, each time. */
TEST(what_is_shared_stays_shared) {
  static unsigned char p[40000];
  size_t n = 0, i, size;
  conc_value *v, *w;
  APPEND("(B");
  APPEND("\x20\x4e\0\0"); /* 20,000 */
  memset(p + n, 'x', 20000);
  n += 20000;
  APPEND("q\0");
  for (i = 0; i < 3000; i++) APPEND("h\0");
  APPEND("](");
  for (i = 0; i < 100; i++) APPEND("N");
  APPEND("eq\1");
  for (i = 0; i < 4000; i++) APPEND("h\1");
  APPEND("t.");
  CHECK(conc_pickle_loads(&v, p, n) == 0);
  size = comes_back(v);
  CHECK(size < 40000);
  /* in memory, too */
  asked_most = 0;
  CHECK(conc_build(&w, "O", v) == 0 && asked_most < 400000);
  conc_value_free(w);
  CHECK(conc_build(&w, "[OO]", v, v) == -EMSGSIZE && conc_build(&w, "[Os]", v, "") == 0);
  CHECK(asked_most < 1000000); /* the nodes of both, on the stack */
  CHECK(conc_value_equal(conc_value_item(w, 0), v));
  CHECK(comes_back(w) < 40000);
  /* a part of a value is a value */
  CHECK(comes_back(conc_value_item(w, 0)) < 40000);
  conc_value_free(w);
  conc_value_free(v);
}

TEST(parts_are_one_object_only_if_they_were) {
  conc_value *v, *w;
  void *out;
  size_t size;
  /* two bytearrays of one bytes, two empty lists: four objects */
  CHECK(LOADS(&v, "(cbuiltins\nbytearray\nC\4abcdq\0\x85Rcbuiltins\nbytearray\nh\0\x85R]]t.") == 0);
  CHECK(conc_pickle_dumps(v, 4, &out, &size) == 0);
  CHECK(memchr(out, 'h', size) == NULL && memchr(out, 'q', size) == NULL);
  conc_free(out);
  conc_value_free(v);
  /* one bytearray twice, one empty list twice, by the memo and by DUP */
  CHECK(LOADS(&v, "(\x96\4\0\0\0\0\0\0\0abcdq\0h\0]2t.") == 0);
  CHECK(conc_pickle_dumps(v, 4, &out, &size) == 0);
  CHECK(memmem(out, size, "q\0h\0", 4) != NULL && memmem(out, size, "]q\1h\1", 5) != NULL);
  CHECK(conc_pickle_loads(&w, out, size) == 0 && conc_value_equal(v, w));
  conc_free(out);
  conc_value_free(w);
  conc_value_free(v);
  /* fetched, but not kept at any second place */
  CHECK(LOADS(&v, "]q\0h\0" "0.") == 0);
  CHECK(conc_pickle_dumps(v, 4, &out, &size) == 0 && memchr(out, 'q', size) == NULL);
  conc_free(out);
  conc_value_free(v);
  /* memoized, but fetched by nobody: nothing of it is left */
  CHECK(LOADS(&v, "(X\1\0\0\0aq\0]q\1t.") == 0);
  CHECK(conc_pickle_dumps(v, 4, &out, &size) == 0 && memchr(out, 'q', size) == NULL);
  conc_free(out);
  conc_value_free(v);
}

/* More than 255 shared parts: long indexes; a memo that another body has
   filled before; and a table that grows. */
TEST(bodies_of_shared_parts_stand_side_by_side) {
  static unsigned char p[70000];
  conc__buffer b = {NULL, 0, 0, 0};
  size_t n = 0, i;
  conc_value *v, *w;
  APPEND("(");
  for (i = 0; i < 2000; i++) n += (size_t)sprintf((char *)p + n, "X%c%c%c%c%04zup%zu\ng%zu\n", 4, 0, 0, 0, i, i, i);
  APPEND("t.");
  CHECK(conc_pickle_loads(&v, p, n) == 0 && conc_value_size(v) == 4000);
  conc__buffer_append(&b, "(", 1);
  for (i = 0; i < 3; i++) CHECK(conc__pickle_encode(&b, v, 4) == 0);
  conc__buffer_append(&b, "t.", 2);
  CHECK(conc_pickle_loads(&w, b.data, b.size) == 0);
  for (i = 0; i < 3; i++) CHECK(conc_value_equal(conc_value_item(w, i), v));
  conc_value_free(v);
  conc_value_free(w);
  conc__buffer_free(&b);
}

/* By one protocol, and back. */
static void comes_back_by(const conc_value *v, int protocol) {
  size_t size = 0;
  conc_value *w;
  void *out;
  CHECK(conc_pickle_dumps(v, protocol, &out, &size) == 0);
  CHECK(conc_pickle_loads(&w, out, size) == 0 && conc_value_equal(v, w));
  conc_value_free(w);
  conc_free(out);
}

/* What may be read may be written and read again: at each limit, and one
   beyond it, by the protocol that needs the most for it. */
TEST(limits_are_alike_in_reading_and_writing) {
  const size_t most = 1000000;
  unsigned char *p = (unsigned char *)malloc(6 * most);
  conc_value *v = NULL, *w;
  size_t n = 0, i;
  for (i = 0; i < 100; i++) APPEND("(");
  for (i = 0; i < 100; i++) APPEND("t");
  APPEND(".");
  CHECK(conc_pickle_loads(&v, p, n) == 0);
  comes_back(v);
  CHECK(conc_build(&w, "[O]", v) == -EMSGSIZE && conc_build(&w, "O", v) == 0);
  conc_value_free(w);
  conc_value_free(v);
  /* a million empty sets: a tuple, a list and a set each, in protocol 2 */
  n = 0;
  APPEND("](");
  for (i = 0; i < most; i++) APPEND("\x8f");
  APPEND("e.");
  CHECK(conc_pickle_loads(&v, p, n) == 0 && conc_value_size(v) == most);
  comes_back_by(v, 2);
  conc_value_free(v);
  n -= 2;
  APPEND("Ne."); /* one more */
  CHECK(loads_rc(p, n) == -EMSGSIZE);
  /* a set of 600,000, as older protocols write it: of a list */
  n = 0;
  APPEND("c__builtin__\nset\n](");
  for (i = 0; i < 600000; i++) {
    p[n++] = 'J';
    p[n++] = (unsigned char)i;
    p[n++] = (unsigned char)(i >> 8);
    p[n++] = (unsigned char)(i >> 16);
    p[n++] = 0;
  }
  APPEND("e\x85R.");
  CHECK(conc_pickle_loads(&v, p, n) == 0 && conc_value_size(v) == 600000);
  comes_back_by(v, 2);
  conc_value_free(v);
  free(p);
}

/* An envelope has its own levels and parts; a value in it has all of its. */
TEST(an_envelope_does_not_count) {
  conc__pickle_limits limits = conc__pickle_request_limits;
  char refused[CONC__REFUSED_MAX];
  static unsigned char p[400];
  conc_value *v;
  size_t n, depth, i;
  limits.refused = refused;
  for (depth = 99; depth <= 101; depth++) {
    n = 0;
    APPEND("(X\1\0\0\0iX\3\0\0\0put");
    for (i = 0; i < depth; i++) APPEND("]");
    for (i = 1; i < depth; i++) APPEND("a");
    APPEND("\x85}t.");
    CHECK_EQ(conc__pickle_decode(p, n, &limits, &v, NULL), depth <= 100 ? 0 : -EMSGSIZE);
    CHECK_EQ(loads_rc(p, n), -EMSGSIZE);
    conc_value_free(v);
  }
}

/* A bytearray made of one bytes again and again: a short pickle would become
   gigabytes when it is written. */
TEST(a_text_is_not_made_into_others_for_ever) {
  static unsigned char p[40000];
  size_t n = 0, i;
  APPEND("(cbuiltins\nbytearray\nq\0B");
  APPEND("\x20\x4e\0\0");
  n += 20000;
  APPEND("q\1\x85R");
  for (i = 0; i < 1000; i++) APPEND("h\0h\1\x85R");
  APPEND("t.");
  CHECK(loads_rc(p, n) == -EMSGSIZE);
  /* the same of sets of one list */
  n = 0;
  APPEND("(cbuiltins\nset\nq\0](");
  for (i = 0; i < 10000; i++) APPEND("K\1");
  APPEND("eq\1\x85R");
  for (i = 0; i < 1000; i++) APPEND("h\0h\1\x85R");
  APPEND("t.");
  CHECK(loads_rc(p, n) == -EMSGSIZE);
}

/* Containers made of one again and again, with a long text in it that is not
   known as shared: each would be written with the text. */
TEST(a_text_is_not_put_into_containers_for_ever) {
  static const char *const ways[] = {"cbuiltins\nset\n", "ccollections\ndeque\n",
                                     "ccollections\nOrderedDict\n"};
  static unsigned char p[40000];
  conc__pickle_limits limits = conc__pickle_reply_limits;
  size_t n, i, k, times;
  conc_value *v;
  for (i = 0; i < 3; i++)
    for (times = 2; times <= 1000; times += 998) {
      n = (size_t)sprintf((char *)p, "(%sq%c0]", ways[i], 0);
      if (i == 2) APPEND("]");
      APPEND("B\x20\x4e\0\0");
      n += 20000;
      APPEND("a");
      if (i == 2) APPEND("Naa");
      APPEND("q\1");
      for (k = 0; k < times; k++) APPEND("h\0h\1\x85R");
      APPEND("t.");
      CHECK_EQ(loads_rc(p, n), times > 2 ? -EMSGSIZE : 0);
    }
  /* all instances of a class have its name, which is one text */
  n = 0;
  APPEND("(c");
  memset(p + n, 'x', 200);
  n += 200;
  APPEND("\ny\nq\0)\x81");
  for (k = 0; k < 1000; k++) APPEND("h\0)\x81");
  APPEND("t.");
  CHECK_EQ(conc__pickle_decode(p, n, &limits, &v, NULL), 0);
  CHECK(conc_value_size(v) == 1001);
  conc_value_free(v);
}

/* Parts of keys that have been compared and found equal are not compared
   again: they have become one. A tuple, and a text of 40 bytes. */
TEST(equal_parts_of_keys_become_one) {
  static const char *const part[] = {"(K\1K\2t", "U\x28" "0123456789012345678901234567890123456789"};
  char p[200];
  conc_value *v;
  int i;
  for (i = 0; i < 2; i++) {
    const conc_value *a, *b;
    int n = sprintf(p, "\x8f(%sI1\n\x86%sI2\n\x86\x90.", part[i], part[i]);
    CHECK_EQ(conc_pickle_loads(&v, p, (size_t)n), 0);
    a = conc_value_item(conc_value_item(v, 0), 0);
    b = conc_value_item(conc_value_item(v, 1), 0);
    CHECK(a != b && conc_value_equal(a, b));
    CHECK(i ? a->as.bytes == b->as.bytes : a->as.items == b->as.items);
    conc_value_free(v);
  }
}

TEST(collections_of_python_are_data) {
  /* each as its Python writes it, by protocols 0 to 4 */
  CHECK(AS("ccollections\nOrderedDict\n((lp0\n(lp1\nS'a'\np2\naI1\naa(lp3\nS'b'\naI2\naatR.", "{'a': 1, 'b': 2}")); /* 2.7 */
  CHECK(AS("ccollections\nOrderedDict\n)R.", "{}"));
  /* a pair whose parts lie apart, for another list has grown in between */
  CHECK(AS("ccollections\nOrderedDict\n]]K\1a]Na0K\2aa\x85R.", "{1: 2}"));
  CHECK(AS("\x80\2ccollections\nOrderedDict\nq\0)Rq\1(X\1\0\0\0aq\2K\1X\1\0\0\0bq\3K\2u.", "{'a': 1, 'b': 2}"));
  CHECK(AS("\x80\4\x95\x20\0\0\0\0\0\0\0\x8c\x0b" "collections\x94\x8c\x07" "Counter\x94\x93\x94}\x94K\1K\2s\x85\x94R\x94.", "{1: 2}") ||
        AS("\x80\4\x8c\x0b" "collections\x94\x8c\x07" "Counter\x94\x93\x94}\x94K\1K\2s\x85\x94R\x94.", "{1: 2}"));
  CHECK(AS("ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(K\1]K\2)u.", "{1: [], 2: ()}"));
  CHECK(AS("ccollections\ndefaultdict\nN\x85RK\1Ns.", "{1: None}"));
  CHECK(AS("ccollections\ndeque\n)R(K\1K\2e.", "[1, 2]"));
  CHECK(AS("ccollections\ndeque\n)K\5\x86R(K\1K\2e.", "[1, 2]"));
  CHECK(AS("ccollections\ndeque\n](K\1K\2eN\x86R.", "[1, 2]"));
  /* of one list, two: filling the one leaves the other */
  CHECK(AS("(]q\0ccollections\ndeque\nh\0\x85RK\1at.", "([], [1])"));
  /* what is no data */
  CHECK(RC("ccollections\nOrderedDict\n)R}b.") == -EACCES); /* attributes */
  CHECK(RC("ccollections\nOrderedDict\n)R}a.") == -EBADMSG);
  CHECK(RC("ccollections\nOrderedDict\n](K\1e\x85R.") == -EBADMSG);
  CHECK(RC("ccollections\nOrderedDict\n]](K\1K\2K\3ea\x85R.") == -EBADMSG);
  CHECK(RC("ccollections\nCounter\nK\1\x85R.") == -EBADMSG && RC("ccollections\ndeque\n}\x85R.") == -EBADMSG);
  CHECK(RC("ccollections\nOrderedDict\n]]\x86R.") == -EBADMSG && RC("ccollections\ndeque\n]NN\x87R.") == -EBADMSG);
  CHECK(RC("cbuiltins\nlist\n)R.") == -EACCES && RC("cbuiltins\nlist\n.") == -EACCES);
  CHECK(RC("ccollections\ndeque\n.") == -EACCES && RC("ccollections\nChainMap\n.") == -EACCES);
  CHECK(RC("ccollections\ndefaultdict\ncos\nsystem\n\x85R.") == -EACCES);
}

/* A reader of replies takes any class, as something inert that is closed. */
TEST(an_instance_of_a_class_is_inert) {
  conc_value *v;
  static const char list[] = "cx\nList\n)\x81(K\1K\2e.", dict[] = "cx\nDict\n)\x81K\1K\2s}b.";
  CHECK(conc__pickle_decode(list, sizeof list - 1, &conc__pickle_reply_limits, &v, NULL) == 0);
  CHECK(conc_value_type(v) == CONC_OBJECT && conc_value_size(v) == 0);
  CHECK(conc_value_item(v, 0) == NULL && conc__recipe_state(v) == NULL);
  conc_value_free(v);
  CHECK(conc__pickle_decode(dict, sizeof dict - 1, &conc__pickle_reply_limits, &v, NULL) == 0);
  CHECK(conc_value_type(v) == CONC_OBJECT && conc_value_type(conc__recipe_state(v)) == CONC_DICT);
  conc_value_free(v);
}

static const char *refused_of(const char *p, size_t n) {
  static char refused[CONC__REFUSED_MAX];
  conc__pickle_limits limits = conc__pickle_request_limits;
  conc_value *v;
  int rc;
  limits.refused = refused;
  memset(refused, 'X', sizeof refused);
  rc = conc__pickle_decode(p, n, &limits, &v, NULL);
  CHECK(rc == -EACCES || *refused == 0);
  conc_value_free(v);
  return refused;
}
#define REFUSED(s) refused_of(s, sizeof(s) - 1)

TEST(what_is_refused_is_named) {
  static char p[1000];
  size_t n;
  CHECK_STR(REFUSED("cos\nsystem\n."), "os.system");
  CHECK_STR(REFUSED("ccollections\nOrderedDict\n)R."), "collections.OrderedDict");
  CHECK_STR(REFUSED("\x80\4\x8c\7decimal\x8c\7" "Decimal\x93."), "decimal.Decimal");
  CHECK_STR(REFUSED("c__builtin__\ncomplex\n."), "__builtin__.complex");
  CHECK_STR(REFUSED("\x8c\3a\nb\x8c\3c\x7f" "d\x93."), "a?b.c?d");
  CHECK_STR(REFUSED("Pxy\n."), "a persistent id");
  CHECK_STR(REFUSED("cbuiltins\nset\n."), "a class");
  CHECK_STR(REFUSED("N."), "");
  CHECK_STR(REFUSED("X."), "");
  /* long ones: no half of a character, and no more than there is room for */
  for (n = 60; n < 260; n += 7) {
    size_t m = 0, i;
    const char *text;
    p[m++] = 'c';
    for (i = 0; i < n; i++) m += (size_t)sprintf(p + m, "%s", i % 2 ? "\xe6\x97\xa5" : "a") ;
    CHECK(m < 700);
    p[m++] = '\n';
    m += (size_t)sprintf(p + m, "\xd1\x8b%0*d\n.", (int)n, 0);
    text = refused_of(p, m);
    CHECK(strlen(text) < CONC__REFUSED_MAX && strchr(text, '.') != NULL);
    CHECK(conc__utf8_valid((const unsigned char *)text, strlen(text)));
  }
}

/* However a value is made, and of how many parts. */
TEST(a_value_is_one_allocation) {
  static char text[60000] = "[[\"\\u00e9\", 98765432109876543210, 1.5, {\"k\": {}}]";
  long before = test_blocks;
  conc_value *v;
  size_t n = strlen(text);
  void *out;
  while (n < 50000) n += (size_t)sprintf(text + n, ", {\"%zu\": [%zu, \"\\t\"]}", n, n);
  text[n++] = ']';
  CHECK(conc_json_loads(&v, text, n, NULL) == 0 && test_blocks == before + 1);
  CHECK(conc_pickle_dumps(v, 4, &out, &n) == 0 && test_blocks == before + 2);
  conc_value_free(v);
  CHECK(conc_pickle_loads(&v, out, n) == 0 && test_blocks == before + 2);
  conc_free(out);
  conc_value_free(v);
  CHECK(conc_build(&v, "{s:[is],s:(dO)}", "a", 1, "b", "c", 1.5, NULL) == -EINVAL && test_blocks == before);
  CHECK(conc_build(&v, "{s:[is],s:(d)}", "a", 1, "b", "c", 1.5) == 0 && test_blocks == before + 1);
  conc_value_free(v);
}

/* Each allocation fails in turn: -ENOMEM, nothing lost. */
TEST(without_memory_nothing_is_lost) {
  static unsigned char p[20000];
  size_t n = 0, i;
  long k;
  conc_value *v, *w, *keep;
  conc__buffer b = {NULL, 0, 0, 0};
  void *out;
  size_t size = 0;
  int rc = -ENOMEM;
  /* enough of everything for every array to leave its place in the maker */
  APPEND("(");
  for (i = 0; i < 100; i++)
    APPEND("](K\1\x8c\2ab\x94K\3e}(K\1K\2K\3K\4u((Ntt");
  for (i = 0; i < 60; i++) APPEND("(");
  APPEND("c_codecs\nencode\nX\2\0\0\0\xc3\xbfX\6\0\0\0latin1\x86R");
  for (i = 0; i < 60; i++) APPEND("t");
  APPEND("]");
  for (i = 0; i < 60; i++) APPEND("]K\1aa");
  APPEND("t.");
  for (k = 1; rc != 0; k++) {
    long before = test_blocks;
    test_fail_at = k;
    rc = conc_pickle_loads(&v, p, n);
    test_fail_at = 0;
    CHECK(rc == 0 || (rc == -ENOMEM && v == NULL && test_blocks == before));
    if (rc != 0 && rc != -ENOMEM) break;
  }
  CHECK(k > 5);
  CHECK(rc == 0);
  if (rc != 0) return;
  keep = v;
  for (rc = -ENOMEM, k = 1; rc != 0; k++) {
    long before = test_blocks;
    test_fail_at = k;
    rc = conc_build(&w, "(Os{si}y#)", keep, "abc", "k", 1, "zz", (size_t)2);
    test_fail_at = 0;
    CHECK(rc == 0 || (rc == -ENOMEM && w == NULL && test_blocks == before));
    if (rc != 0 && rc != -ENOMEM) break;
  }
  for (i = 2; i < 5; i++) {
    for (rc = -ENOMEM, k = 1; rc != 0; k++) {
      long before = test_blocks;
      test_fail_at = k;
      rc = conc_pickle_dumps(w, (int)i, &out, &size);
      test_fail_at = 0;
      CHECK(rc == 0 || (rc == -ENOMEM && test_blocks == before));
      if (rc != 0 && rc != -ENOMEM) break;
    }
    conc_free(out);
  }
  for (rc = -ENOMEM, k = 1; rc != 0; k++) {
    static const char text[] = "[\"\\n\", {\"k\": [98765432109876543210]}]";
    long before = test_blocks;
    char *json = NULL;
    v = NULL;
    test_fail_at = k;
    rc = conc_json_loads(&v, text, sizeof text - 1, NULL);
    if (rc == 0) rc = conc_json_dumps(v, 100, &json, NULL);
    test_fail_at = 0;
    conc_value_free(v);
    conc_free(json);
    CHECK(rc == 0 || (rc == -ENOMEM && json == NULL));
    CHECK(test_blocks == before);
  }
  CHECK(k > 4);
  for (rc = -ENOMEM, k = 1; rc != 0; k++) {
    b.size = 0;
    conc__pickle_encode(&b, w, 4);
    test_fail_at = k;
    rc = conc__pickle_downgrade(&b, 0);
    test_fail_at = 0;
    CHECK(rc == 0 || rc == -ENOMEM);
    conc__buffer_free(&b);
  }
  conc_value_free(w);
  conc_value_free(keep);
}

/* Keys that are hard to tell apart by their first bytes, of all types. */
static conc_value *hard_keys(void) {
  static unsigned char p[4000];
  static const double reals[] = {0., -0., 1., -1., 2.5, -2.5, 1e300, -1e300, 5e-324,
    -5e-324, 9007199254740992., 9007199254740994., 9223372036854775808.,
    -9223372036854775808., 18446744073709551616., INFINITY, -INFINITY, NAN, -NAN};
  static const char *const ints[] = {"0", "1", "-1", "2", "-3", "9007199254740992",
    "9007199254740993", "-9007199254740993", "9223372036854775807",
    "-9223372036854775808", "9223372036854775808", "9223372036854775809",
    "-9223372036854775809", "18446744073709551616", "18446744073709551617"};
  size_t n = 0, i;
  unsigned char bits[8];
  conc_value *v;
  APPEND("(N\x88\x89");
  for (i = 0; i < sizeof reals / sizeof *reals; i++) {
    uint64_t r;
    int k;
    memcpy(&r, &reals[i], 8);
    for (k = 0; k < 8; k++) bits[k] = (unsigned char)(r >> (56 - 8 * k));
    APPEND("G");
    memcpy(p + n, bits, 8);
    n += 8;
  }
  for (i = 0; i < sizeof ints / sizeof *ints; i++)
    n += (size_t)sprintf((char *)p + n, "L%sL\n", ints[i]);
  for (i = 0; i < 2; i++) { /* larger than all floats, of both signs */
    APPEND("\x8b\x91\0\0\0");
    memset(p + n, i ? 0x80 : 0x70, 0x91);
    n += 0x91;
  }
  APPEND("\x8c\0\x8c\1\0\x8c\2\0\0\x8c\7abcdefg\x8c\10abcdefgh\x8c\10abcdefgi\x8c\6abcdef\x8c\2\xc3\xbf");
  APPEND("C\0C\1\0C\7abcdefgC\10abcdefg\xff""C\1\xff");
  APPEND(")K\1\x85K\2\x85K\1K\2\x86(\x91(K\1\x91(K\2\x91t.");
  CHECK_EQ(conc_pickle_loads(&v, p, n), 0);
  return v;
}

TEST(keys_are_sorted_by_their_beginnings_as_by_the_whole) {
  conc_value *v = hard_keys();
  const size_t n = conc_value_size(v);
  size_t i, k;
  CHECK(n > 50);
  for (i = 0; i < n; i++)
    for (k = 0; k < n; k++) {
      const conc_value *a = conc_value_item(v, i), *b = conc_value_item(v, k);
      uint64_t x = conc__key_begins(a), y = conc__key_begins(b);
      int c = conc__compare_values(a, b, false);
      CHECK(x == y || (c > 0) == (x > y));
    }
  conc_value_free(v);
}

/* More than are sorted by insertion, in an order that is none; each twice. */
static size_t many_keys(unsigned char *p, int set) {
  size_t n = 0, i;
  if (set) APPEND("\x8f(");
  else APPEND("}(");
  for (i = 0; i < 400; i++) {
    n += (size_t)sprintf((char *)p + n, i % 2 && i >= 200 ? "F%d\n" : "I%d\n", (int)(i * 77 % 200));
    if (!set) n += (size_t)sprintf((char *)p + n, "I%d\n", (int)i);
  }
  if (set) APPEND("\x90.");
  else APPEND("u.");
  return n;
}

TEST(many_keys_are_sorted_or_there_is_no_memory) {
  static unsigned char p[10000];
  int set, rc;
  size_t n, i;
  for (set = 0; set < 2; set++) {
    conc_value *v = NULL;
    int fails = 0;
    n = many_keys(p, set);
    for (rc = -ENOMEM; rc != 0; fails++) {
      long before = test_blocks;
      test_fail_at = fails + 1;
      rc = conc_pickle_loads(&v, p, n);
      test_fail_at = 0;
      CHECK(rc == 0 || (rc == -ENOMEM && v == NULL && test_blocks == before));
      if (rc != 0 && rc != -ENOMEM) break;
    }
    CHECK(fails > 2);
    CHECK_EQ(conc_value_size(v), 200);
    for (i = 0; i < 200; i++) { /* the key that came first, the last value */
      const conc_value *key = set ? conc_value_item(v, i) : conc_value_key(v, i);
      int64_t k = -1, last = -1;
      CHECK_EQ(conc_value_int(key, &k), 0);
      CHECK_EQ(k, (int64_t)(set ? i : i * 77 % 200));
      if (set) continue;
      CHECK_EQ(conc_value_int(conc_value_item(v, i), &last), 0);
      CHECK_EQ(last, (int64_t)(i + 200));
    }
    conc_value_free(v);
  }
}

/* Malformed input: truncated, flipped and random. What is accepted must come
   back equal through writing and reading. */
static unsigned long long seed = 1;
static unsigned rnd(void) { return test_random_of(&seed); }
static long accepted, refused[3];
static void try_one(const unsigned char *p, size_t n) {
  unsigned char *exact = (unsigned char *)malloc(n ? n : 1); /* ASan's edge */
  conc_value *v, *w;
  int rc, protocol;
  memcpy(exact, p, n);
  rc = conc__pickle_decode(exact, n, rnd() % 2 ? &conc__pickle_reply_limits : NULL, &v, &protocol);
  free(exact);
  if (rc != 0) {
    CHECK(rc == -EBADMSG || rc == -EACCES || rc == -EMSGSIZE);
    refused[rc == -EBADMSG ? 0 : rc == -EACCES ? 1 : 2]++;
    return;
  }
  accepted++;
  {
    void *out;
    size_t size = 0;
    char text[200];
    p = NULL;
    conc_value_text(v, text, sizeof text);
    CHECK(conc_value_equal(v, v));
    rc = conc_pickle_dumps(v, 2 + (int)(rnd() % 4), &out, &size);
    CHECK(rc == 0 || rc == -EACCES);
    if (rc == 0) {
      rc = conc_pickle_loads(&w, out, size);
      CHECK(rc == 0);
      if (rc == 0) {
        CHECK(conc_value_equal(v, w));
        conc_value_free(w);
      }
      conc_free(out);
    }
    rc = conc_build(&w, "O", v);
    CHECK(rc == 0);
    if (rc == 0) conc_value_free(w);
  }
  conc_value_free(v);
}

#define SEED(s) {s, sizeof(s) - 1}
static const struct {
  const char *p;
  size_t n;
} seeds[] = {
    SEED("\x80\x04\x95\x20\0\0\0\0\0\0\0(\x8c\x0c" "7faee13fe350\x94\x8c\x03put\x94M\x43\x1b\x85\x94}\x94t\x94."),
    SEED("\x80\x04(X\x0c\0\0\0" "7faee13fe350X\x03\0\0\0get)}(X\x07\0\0\0timeoutK\1ut."),
    SEED("\x80\2(U\3abcq\1cmultiprocessing.managers\nToken\nq\2)\x81q\3U\1qq\4U\1hM\x88\x13\x86q\5U\1iq\6\x87q\7b}q\10U\1kq\tG?\xf8\0\0\0\0\0\0st."),
    SEED("\x80\x04\x8f\x94(K\1K\2]\x94(h\0h\0e0(K\3K\4\x91K\1K\2\x86\x90."),
    SEED("\x80\2c_codecs\nencode\nq\0X\4\0\0\0a\xc3\xbfzq\1X\6\0\0\0latin1q\2\x86q\3Rq\4c__builtin__\nset\n](K\1K\2e\x85R\x86."),
    SEED("\x80\x05\x96\3\0\0\0\0\0\0\0abc\x94\x8a\x09\0\0\0\0\0\0\0\x80\0}\x94(h\1K\1K\2h\0NNK\1h\0u\x87."),
    SEED("(lp0\nVa\\u4f60\np1\naS'\\xff\\\\'\np2\naL12345678901234567890L\naF-1.5e+20\naI01\nag1\na(I1\nNtp3\na(dp4\nVk\ng2\nsa."),
    SEED("\x80\x04X\6\0\0\0#ERRORcbuiltins\nKeyError\nX\1\0\0\0k\x85R\x86."),
    SEED("]\x94(]\x94(]\x94(K\1K\2eh\2h\2e}\x94(K\1h\2\x88h\1uh\3h\1\x85\x94h\4I12345678901\n\x87" "e."),
};

static void malformed(long inputs) {
  static const unsigned char ops[] = "((NNK]}))\x8f\x85\x86\x87teuasdl\x90\x91\x94hhqc\x93R\x81" "bXC\x8cUG\x8aIJM012\x95.";
  const size_t count = sizeof seeds / sizeof *seeds;
  unsigned char p[256];
  size_t s, i, n;
  long k;
  for (s = 0; s < count; s++) {
    try_one((const unsigned char *)seeds[s].p, seeds[s].n);
    for (i = 0; i < seeds[s].n; i++) { /* every byte, every bit */
      unsigned bit;
      CHECK(loads_rc(seeds[s].p, i) != 0);
      memcpy(p, seeds[s].p, seeds[s].n);
      for (bit = 0; bit < 256; bit++) {
        p[i] = (unsigned char)bit;
        try_one(p, seeds[s].n);
      }
    }
  }
  printf("  every byte of %zu seeds: %ld accepted, %ld malformed, %ld refused, %ld too large\n", count, accepted, refused[0], refused[1], refused[2]);
  accepted = refused[0] = refused[1] = refused[2] = 0;
  for (k = 0; k < inputs; k++) {
    unsigned how = rnd() % 3;
    if (how == 0) { /* flips, cuts, splices */
      s = rnd() % count;
      n = seeds[s].n;
      memcpy(p, seeds[s].p, n);
      for (i = rnd() % 8 + 1; i > 0; i--) {
        size_t at = rnd() % n;
        if (rnd() % 3 == 0 && n > 4) {
          size_t from = rnd() % n, len = rnd() % 8;
          if (from + len < n && at + len < n) memmove(p + at, p + from, len);
        } else {
          p[at] ^= (unsigned char)(1u << rnd() % 8);
        }
      }
      if (rnd() % 4 == 0) n = rnd() % n;
    } else { /* random bytes; random opcodes with small arguments */
      n = rnd() % 60 + 1;
      for (i = 0; i < n; i++)
        p[i] = how == 1 && k % 4 ? (unsigned char)(rnd() % 4 ? ops[rnd() % (sizeof ops - 1)] : rnd() % 6)
               : how == 1        ? (unsigned char)rnd()
                                 : ops[rnd() % (sizeof ops - 2)];
      if (how == 2) { /* likely to end well */
        p[0] = '(';
        for (i = 1; i < n; i++) if (p[i] == 'K' || p[i] == 'h' || p[i] == 'q') { if (i + 1 < n) p[i + 1] = (unsigned char)(rnd() % 3); i++; }
        p[n++] = 't';
        p[n++] = '.';
      }
    }
    try_one(p, n);
  }
  printf("  %ld inputs: %ld accepted, %ld malformed, %ld refused, %ld too large\n", inputs, accepted, refused[0], refused[1], refused[2]);
}

TEST(malformed_pickles_are_errors) {
  seed = test_seed;
  malformed((long)test_asked("VALUE_INPUTS", 30000));
}

TEST_MAIN
