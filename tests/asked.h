/* asked.h: bare connections to a server of served.h, as each thread of Python
   has one: requests, and what the replies say. After inside.h. */
#ifndef TEST_ASKED_H
#define TEST_ASKED_H
#include "served.h"

#include <stdarg.h>

TEST_FN double soon(void) { return conc_now() + 20 * test_slow(); }

/* Sends (ident, method, args, {}); the format is that of a tuple. */
TEST_FN void vtell(conc__peer *p, const char *ident, const char *method,
                  const char *format, va_list ap) {
  conc_value *args, *request;
  void *data;
  size_t size;
  CHECK_EQ(conc__build_va(&args, format, ap), 0);
  CHECK_EQ(conc_build(&request, "(ssO{})", ident, method, args), 0);
  CHECK_EQ(conc_pickle_dumps(request, 4, &data, &size), 0);
  CHECK_EQ(conc__channel_send(&p->channel, data, size, soon()), 0);
  conc_free(data);
  conc_value_free(request);
  conc_value_free(args);
}

TEST_FN void tell(conc__peer *p, const char *ident, const char *method,
                 const char *format, ...) {
  va_list ap;
  va_start(ap, format);
  vtell(p, ident, method, format, ap);
  va_end(ap);
}

/* The reply: what Python's str() says of a value, "Name: text" of an
   exception, "TRACEBACK text" of what was refused; of a proxy as create. */
TEST_FN const char *hear(conc__peer *p) {
  static char text[2000];
  const conc_value *result, *args;
  const unsigned char *payload;
  const char *kind;
  conc_value *v;
  size_t n;
  CHECK_EQ(conc__channel_receive(&p->channel, (size_t)1 << 24, &payload, &n,
                                 soon()), 0);
  CHECK_EQ(conc__pickle_decode(payload, n, &conc__pickle_reply_limits, &v,
                               NULL), 0);
  kind = conc_value_str(conc_value_item(v, 0), NULL);
  result = conc_value_item(v, 1);
  CHECK(kind != NULL && result != NULL);
  if (strcmp(kind, "#RETURN") == 0) {
    conc_value_text(result, text, sizeof text);
  } else if (strcmp(kind, "#ERROR") == 0) {
    const char *module = "", *name = "";
    args = conc__recipe_arguments(result);
    conc_value_object(result, &module, &name);
    n = (size_t)snprintf(text, 200, "%s", name);
    if (conc_value_size(args) > 0) {
      n += (size_t)snprintf(text + n, 3, ": ");
      conc_value_text(conc_value_item(args, 0), text + n, 400);
    }
  } else if (strcmp(kind, "#PROXY") == 0) {
    snprintf(text, 80, "('%s', ...)",
             conc__token_id(conc_value_item(result, 1)));
  } else {
    n = (size_t)snprintf(text, 30, "%s ", kind + 1);
    conc_value_text(result, text + n, sizeof text - n);
    n = strlen(text);
    CHECK_EQ(text[n - 1], '\n');
    text[n - 1] = 0;
  }
  conc_value_free(v);
  return text;
}

TEST_FN const char *ask(conc__peer *p, const char *ident, const char *method,
                       const char *format, ...) {
  va_list ap;
  va_start(ap, format);
  vtell(p, ident, method, format, ap);
  va_end(ap);
  return hear(p);
}

/* A connection for methods. */
TEST_FN conc__peer *person(served *s) {
  conc__peer *p;
  CHECK_EQ(conc__peer_get(s->client.state, &p, soon()), 0);
  return p;
}

/* Calls a function of the server, on a connection of its own. */
TEST_FN const char *call(served *s, const char *function, const char *format,
                        ...) {
  const char *text;
  conc__peer *p;
  va_list ap;
  CHECK_EQ(conc__peer_open(s->client.state, &p, soon()), 0);
  va_start(ap, format);
  vtell(p, NULL, function, format, ap);
  va_end(ap);
  text = hear(p);
  conc__peer_close(p);
  return text;
}

typedef struct id {
  char text[CONC__ID_SIZE];
} id;

/* What create has said: ('...', ...) */
TEST_FN id id_in(const char *reply) {
  id made;
  size_t n;
  CHECK(strncmp(reply, "('", 2) == 0);
  n = strcspn(reply + 2, "'");
  CHECK(n < sizeof made.text);
  snprintf(made.text, sizeof made.text, "%.*s", (int)n, reply + 2);
  return made;
}
#define MAKE(s, ...) id_in(call(s, "create", __VA_ARGS__))

#define SAYS(text, ...) CHECK_STR(ask(__VA_ARGS__), text)
#define CALL_SAYS(text, ...) CHECK_STR(call(__VA_ARGS__), text)
#define CALL_SAYS_PART(text, ...) \
  CHECK(strstr(call(__VA_ARGS__), text) != NULL)

/* The object itself, which lives until its last reference goes. */
TEST_FN conc__object *object(served *s, id made) {
  conc__manager_data *m = s->server.state;
  return conc__object_by_id(&m->objects, m->server.number, made.text);
}

TEST_FN void *state_of(served *s, id made) {
  conc__object *o = object(s, made);
  CHECK(o != NULL);
  return o->state;
}
#endif
