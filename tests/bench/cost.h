/* cost.h: inputs that are meant to be dear, for each codec: what a peer would
   send that wants to keep a server busy. bench/cost.c measures them closely,
   tests/cost.c looks for what is not linear at all. */
#ifndef BENCH_COST_H
#define BENCH_COST_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An input that grows: its bytes are the caller's memory. */
typedef struct cost_input {
  unsigned char *data;
  size_t size, room; /* no more than `room` bytes; a writer stops there */
} cost_input;

static inline void cost_put(cost_input *in, const void *data, size_t n) {
  if (n > in->room - in->size) abort();
  memcpy(in->data + in->size, data, n);
  in->size += n;
}
#define COST_PUT(in, text) cost_put(in, text, sizeof(text) - 1)
static inline void cost_head(cost_input *in, char op, size_t n) {
  unsigned char head[5];
  head[0] = (unsigned char)op;
  head[1] = (unsigned char)n;
  head[2] = (unsigned char)(n >> 8);
  head[3] = (unsigned char)(n >> 16);
  head[4] = (unsigned char)(n >> 24);
  cost_put(in, head, 5);
}
static inline void cost_fill(cost_input *in, int c, size_t n) {
  if (n > in->room - in->size) abort();
  memset(in->data + in->size, c, n);
  in->size += n;
}
static inline void cost_text(cost_input *in, int c, size_t n) {
  cost_head(in, 'X', n);
  cost_fill(in, c, n);
}
static inline void cost_digits(cost_input *in, size_t n) {
  while (n-- > 0) {
    const char c = (char)('1' + n * 7 % 9);
    cost_put(in, &c, 1);
  }
}
/* From begin to end, with as many items as n bytes take. */
#define COST_REPEAT(in, n, begin, item, end)                                  \
  do {                                                                        \
    COST_PUT(in, begin);                                                      \
    while ((in)->size < (n)) COST_PUT(in, item);                              \
    COST_PUT(in, end);                                                        \
  } while (0)

/* Each writes a pickle of about n bytes, or JSON if its name says so. */

static inline void cost_nesting(cost_input *in, size_t n) {
  size_t i;
  COST_PUT(in, "(");
  while (in->size < n) {
    for (i = 0; i < 49; i++) COST_PUT(in, "]}K\1");
    COST_PUT(in, ")");
    for (i = 0; i < 49; i++) COST_PUT(in, "sa");
  }
  COST_PUT(in, "t.");
}
static inline void cost_flat(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "](", "N", "e.");
}
static inline void cost_marks(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "", "((((N1111", "N.");
}
/* Two lists that grow in turn: each item is a run of its own. */
static inline void cost_runs(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "(]q\0]q\1", "h\0Na0h\1Na0", "t.");
}
static inline void cost_decimal_lines(cost_input *in, size_t n) {
  COST_PUT(in, "(");
  while (in->size < n) {
    COST_PUT(in, "L");
    cost_digits(in, 9800);
    COST_PUT(in, "L\n");
  }
  COST_PUT(in, "t.");
}
static inline void cost_long_ints(cost_input *in, size_t n) {
  COST_PUT(in, "(");
  while (in->size < n) {
    cost_head(in, '\x8b', 4096);
    cost_fill(in, 0x55, 4096);
  }
  COST_PUT(in, "t.");
}
/* How long a part may be of which there are `places`, for all of them to be
   within `most`, and at most n. */
static inline size_t cost_part(size_t n, size_t places, size_t most) {
  return most / places < n ? most / places : n;
}

/* One text at many places: written out, 6 MB. */
static inline void cost_shared_text(cost_input *in, size_t n) {
  size_t i;
  COST_PUT(in, "(");
  cost_text(in, 'x', cost_part(n / 4, 1 << 15, 6000000));
  COST_PUT(in, "q\0");
  for (i = 0; in->size < n; i++) COST_PUT(in, "h\0");
  COST_PUT(in, "t.");
}
/* Pairs of the pair before. */
static inline void cost_shared_lists(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "(", "N2\x86" "2\x86", "t.");
}
static inline void cost_random_ints(cost_input *in, size_t n) {
  unsigned x = 1;
  while (in->size < n) {
    x = x * 1664525u + 1013904223u;
    cost_head(in, 'J', x);
  }
}
static inline void cost_ints_in_set(cost_input *in, size_t n) {
  COST_PUT(in, "\x8f(");
  cost_random_ints(in, n);
  COST_PUT(in, "\x90.");
}
static inline void cost_equal_in_set(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "\x8f(", "K\1G?\xf0\0\0\0\0\0\0\x88", "\x90.");
}
static inline void cost_called_set(cost_input *in, size_t n) {
  COST_PUT(in, "cbuiltins\nset\n](");
  cost_random_ints(in, n);
  COST_PUT(in, "e\x85R.");
}
static inline void cost_keys(cost_input *in, size_t n) {
  unsigned x = 1;
  COST_PUT(in, "}(");
  while (in->size < n) {
    char key[9];
    x = x * 1664525u + 1013904223u;
    snprintf(key, sizeof key, "%08x", x % 4096 << 8 | x >> 24);
    COST_PUT(in, "\x8c\10");
    cost_put(in, key, 8);
    COST_PUT(in, "N");
  }
  COST_PUT(in, "u.");
}
/* Keys that begin with 0 or 1 of the memo. */
static inline void cost_alike_keys(cost_input *in, size_t n) {
  size_t i;
  COST_PUT(in, "\x8f(");
  for (i = 0; in->size < n; i++) {
    if (i * 5 % 7 % 2) COST_PUT(in, "h\0");
    else COST_PUT(in, "h\1");
    cost_head(in, 'J', i * 40503u % 65536);
    COST_PUT(in, "\x86");
  }
  COST_PUT(in, "\x90t.");
}
/* Keys that begin alike, with two texts that are equal, but not one. */
static inline void cost_alike_texts(cost_input *in, size_t n) {
  size_t i;
  COST_PUT(in, "(");
  for (i = 0; i < 2; i++) {
    cost_text(in, 'x', cost_part(n / 4, n / 8, 6000000));
    if (i) COST_PUT(in, "q\1");
    else COST_PUT(in, "q\0");
  }
  cost_alike_keys(in, n);
}
/* The same with tuples. */
static inline void cost_alike_tuples(cost_input *in, size_t n) {
  size_t i, k;
  COST_PUT(in, "(");
  for (i = 0; i < 2; i++) {
    COST_PUT(in, "(");
    for (k = cost_part(n / 8, n / 8, 200000); k > 0; k--)
      COST_PUT(in, "K\1");
    COST_PUT(in, "t");
    if (i) COST_PUT(in, "q\1");
    else COST_PUT(in, "q\0");
  }
  cost_alike_keys(in, n);
}
static inline void cost_controls(cost_input *in, size_t n) {
  cost_text(in, 1, n);
  COST_PUT(in, "\x85.");
}
static inline void cost_escaped_lines(cost_input *in, size_t n) {
  COST_PUT(in, "(");
  while (in->size < n) {
    size_t i;
    COST_PUT(in, "V");
    for (i = 0; i < 100; i++) COST_PUT(in, "\\u20ac\xe9");
    COST_PUT(in, "\nS'");
    for (i = 0; i < 100; i++) COST_PUT(in, "\\xff\\n");
    COST_PUT(in, "'\n");
  }
  COST_PUT(in, "t.");
}
static inline void cost_bytes_of_2(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "(c_codecs\nencode\nq\0X\6\0\0\0latin1q\001""00",
              "h\0X\2\0\0\0\xc3\xbfh\1\x86R", "t.");
}
static inline void cost_json_nesting(cost_input *in, size_t n) {
  size_t i;
  COST_PUT(in, "[0");
  while (in->size < n) {
    COST_PUT(in, ",");
    for (i = 0; i < 98; i++) COST_PUT(in, "[");
    for (i = 0; i < 98; i++) COST_PUT(in, "]");
  }
  COST_PUT(in, "]");
}
static inline void cost_json_ints(cost_input *in, size_t n) {
  COST_PUT(in, "[0");
  while (in->size < n) {
    COST_PUT(in, ",");
    cost_digits(in, 9800);
  }
  COST_PUT(in, "]");
}
static inline void cost_json_floats(cost_input *in, size_t n) {
  COST_PUT(in, "[0");
  while (in->size < n) {
    COST_PUT(in, ",0.");
    cost_digits(in, 800);
    COST_PUT(in, "e-300,5e-324,1.7976931348623157e308");
  }
  COST_PUT(in, "]");
}
static inline void cost_json_long_float(cost_input *in, size_t n) {
  COST_PUT(in, "[0.");
  cost_digits(in, n);
  COST_PUT(in, "]");
}
static inline void cost_json_escapes(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "[\"", "\\u0001\\ud83d\\ude00\\ud800\\n", "\"]");
}
static inline void cost_json_keys(cost_input *in, size_t n) {
  COST_REPEAT(in, n, "{\"\":0", ",\"a\":[{}],\"b\":1", "}");
}

typedef struct cost_case {
  const char *name;
  void (*write)(cost_input *in, size_t n);
  int json;
} cost_case;
static const cost_case cost_cases[] = {
  {"nesting", cost_nesting, 0},
  {"flat list", cost_flat, 0},
  {"marks", cost_marks, 0},
  {"two lists in turn", cost_runs, 0},
  {"decimal lines", cost_decimal_lines, 0},
  {"long ints", cost_long_ints, 0},
  {"shared text", cost_shared_text, 0},
  {"shared pairs", cost_shared_lists, 0},
  {"set of ints", cost_ints_in_set, 0},
  {"set of equals", cost_equal_in_set, 0},
  {"set of a list", cost_called_set, 0},
  {"dict of strs", cost_keys, 0},
  {"keys with like texts", cost_alike_texts, 0},
  {"keys with like tuples", cost_alike_tuples, 0},
  {"control characters", cost_controls, 0},
  {"escaped lines", cost_escaped_lines, 0},
  {"bytes of protocol 2", cost_bytes_of_2, 0},
  {"json: nesting", cost_json_nesting, 1},
  {"json: large ints", cost_json_ints, 1},
  {"json: floats", cost_json_floats, 1},
  {"json: a long float", cost_json_long_float, 1},
  {"json: escapes", cost_json_escapes, 1},
  {"json: equal keys", cost_json_keys, 1},
};
enum { COST_CASES = sizeof cost_cases / sizeof *cost_cases };

/* What is done with each: reading it, and with what was read all else. */
enum {
  COST_READ, COST_COMPARE, COST_COPY, COST_PICKLE_2, COST_PICKLE_4, COST_TEXT,
  COST_JSON, COST_STEPS
};
static const char *const cost_steps[] = {
  "read", "compare", "copy", "pickle, protocol 2", "pickle, protocol 4",
  "text", "json"};

/* Does one step: with the input, or with two values of it, whose text has
   `written` bytes. Returns 0, or the error; *grown is how many bytes were read,
   compared or written. */
static inline int cost_step(const cost_case *c, int step,
                            const cost_input *in, const conc_value *a,
                            const conc_value *b, size_t written,
                            size_t *grown) {
  conc_value *v = NULL;
  void *out = NULL;
  char *text = NULL, few[8];
  int rc = 0;
  *grown = in->size;
  switch (step) {
  case COST_READ:
    rc = c->json ? conc_json_loads(&v, in->data, in->size, NULL)
                 : conc_pickle_loads(&v, in->data, in->size);
    break;
  case COST_COMPARE:
    *grown = written;
    rc = conc_value_equal(a, b) ? 0 : -1;
    break;
  case COST_COPY: rc = conc_build(&v, "O", a); break;
  case COST_PICKLE_2: rc = conc_pickle_dumps(a, 2, &out, grown); break;
  case COST_PICKLE_4: rc = conc_pickle_dumps(a, 4, &out, grown); break;
  case COST_TEXT: *grown = (size_t)conc_value_text(a, few, sizeof few); break;
  default: rc = conc_json_dumps(a, 0, &text, grown);
  }
  conc_value_free(v);
  conc_free(out);
  conc_free(text);
  return rc;
}
#endif
