/* What a manager serves besides the queues of the program: objects that its
   clients make, their references, and the types of Python's SyncManager. A
   client here is a bare connection, as each thread of Python has one. */
#include "inside.h"
#include "asked.h"

#include <math.h>

/* A server with all types. */
static void types(served *s) {
  CHECK_EQ(conc_manager_register_types(&s->server), 0);
  CHECK_EQ(conc_manager_register_types(&s->server), 0); /* without effect */
  serve_queue(s, conc_queue_new(NULL));
  s->client = client_of(s);
  CHECK_EQ(conc_manager_connect(&s->client, 5 * test_slow()), 0);
}

static conc_lock *lock_of(served *s, id made) {
  return &((conc__served_lock *)state_of(s, made))->lock->lock;
}

/* --- objects and their references --- */

TEST(each_create_makes_an_object_and_a_registered_one_stays) {
  served s = nobody();
  types(&s);
  id a = MAKE(&s, "(s)", "Event"), b = MAKE(&s, "(s)", "Event");
  id q1 = MAKE(&s, "(s)", "q"), q2 = MAKE(&s, "(s)", "q");
  conc__peer *p = person(&s);
  CHECK(strcmp(a.text, b.text) != 0);
  CHECK_STR(q1.text, q2.text);
  SAYS("None", p, a.text, "set", "()");
  SAYS("True", p, a.text, "is_set", "()");
  SAYS("False", p, b.text, "is_set", "()");
  CALL_SAYS("3", &s, "number_of_objects", "()");
  CALL_SAYS("None", &s, "decref", "(s)", q1.text);
  CALL_SAYS("3", &s, "number_of_objects", "()");
  CALL_SAYS("None", &s, "decref", "(s)", q1.text);
  CALL_SAYS("2", &s, "number_of_objects", "()");
  SAYS("0", p, q1.text, "qsize", "()"); /* it is the program's */
  CALL_SAYS_PART("TRACEBACK KeyError", &s, "decref", "(s)", q1.text);
  conc__peer_close(p);
  end(&s);
}

TEST(an_object_goes_with_its_last_reference_and_its_id_never_comes_back) {
  served s = nobody();
  types(&s);
  conc__peer *p = person(&s);
  id first = MAKE(&s, "(s)", "Event"), next;
  CALL_SAYS("None", &s, "incref", "(s)", first.text);
  CALL_SAYS("None", &s, "decref", "(s)", first.text);
  SAYS("False", p, first.text, "is_set", "()");
  CALL_SAYS("None", &s, "decref", "(s)", first.text);
  CHECK(strstr(ask(p, first.text, "is_set", "()"), "KeyError") != NULL);
  CALL_SAYS_PART("KeyError", &s, "incref", "(s)", first.text);
  CALL_SAYS_PART("KeyError", &s, "decref", "(s)", first.text);
  CALL_SAYS_PART("KeyError", &s, "decref", "(i)", 7);
  /* The next one takes its place in the table, and has another id. */
  next = MAKE(&s, "(s)", "Event");
  CHECK(strcmp(first.text, next.text) != 0);
  CHECK_EQ(object(&s, next)->number % CONC__OBJECT_PLACES, 2);
  SAYS("False", p, next.text, "is_set", "()");
  conc__peer_close(p);
  end(&s);
}

TEST(many_objects_come_and_go_in_one_place) {
  served s = nobody();
  types(&s);
  unsigned long long last = 0;
  conc__object *o;
  for (int i = 0; i < 100; i++) {
    id made = MAKE(&s, "(s)", "Lock");
    unsigned long long n = strtoull(strchr(made.text, '.') + 1, NULL, 10);
    CHECK(n > last && n % CONC__OBJECT_PLACES == 2);
    last = n;
    CALL_SAYS("None", &s, "decref", "(s)", made.text);
  }
  CHECK(conc__object_at(&s.server.state->objects, 1, &o) && o == NULL);
  CHECK(!conc__object_at(&s.server.state->objects, 2, &o));
  CALL_SAYS("0", &s, "number_of_objects", "()");
  end(&s);
}

/* At a unix socket, where the system tells which process is a client. */
TEST(what_a_killed_process_has_left_goes) {
#if CONC__LINUX
  char path[64];
  served s = nobody();
  int status;
  pid_t child;
  snprintf(path, sizeof path, "/tmp/conc-types-%d.sock", (int)getpid());
  s.server.address = path;
  types(&s);
  id ours = MAKE(&s, "(s)", "Event"), both = MAKE(&s, "(s)", "Event");
  child = fork();
  if (child == 0) {
    conc_manager m = client_of(&s);
    served c = s;
    c.client = m;
    if (conc_manager_connect(&c.client, 20) != 0) _exit(1);
    for (int i = 0; i < 10; i++) MAKE(&c, "(s)", "Lock");
    call(&c, "incref", "(s)", both.text);
    call(&c, "incref", "(s)", both.text);
    call(&c, "decref", "(s)", both.text);
    _exit(7);
  }
  CHECK(child > 0);
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  CALL_SAYS("2", &s, "number_of_objects", "()");
  CALL_SAYS("2", &s, "number_of_objects", "()"); /* for TSan, as below */
  CHECK_EQ(object(&s, both)->refs, 1);
  CHECK_EQ(object(&s, ours)->refs, 1);
  CALL_SAYS("None", &s, "decref", "(s)", both.text);
  CALL_SAYS("1", &s, "number_of_objects", "()");
  end(&s);
#else
  SKIP("this system does not tell it");
#endif
}

/* Without asking about them: as others make objects. */
TEST(what_the_killed_have_left_does_not_pile_up) {
#if CONC__LINUX
  char path[64];
  served s = nobody();
  id left[20];
  int status;
  pid_t child = fork();
  if (child == 0) _exit(0);
  snprintf(path, sizeof path, "/tmp/conc-types-%d.sock", (int)getpid());
  s.server.address = path;
  types(&s);
  for (int i = 0; i < 20; i++) left[i] = MAKE(&s, "(s)", "Event");
  /* As if it had made them. The call is for TSan: what the server has written
     before it was read after it. */
  CALL_SAYS("20", &s, "number_of_objects", "()");
  for (int i = 0; i < 20; i++) object(&s, left[i])->referrers->pid = child;
  CHECK_EQ(waitpid(child, &status, 0), child);
  for (int i = 0; i < 20; i++) {
    id made = MAKE(&s, "(s)", "Event");
    CALL_SAYS("None", &s, "decref", "(s)", made.text);
  }
  for (int i = 0; i < 20; i++) CHECK(object(&s, left[i]) == NULL);
  end(&s);
#else
  SKIP("this system does not tell it");
#endif
}

TEST(an_object_that_is_used_lives_until_the_call_is_over) {
  served s = nobody();
  types(&s);
  id e = MAKE(&s, "(s)", "Event"), q = MAKE(&s, "(s)", "Queue");
  conc__peer *a = person(&s), *b = person(&s), *p = person(&s);
  conc_event *event = conc__event_of(object(&s, e));
  conc_queue *queue = object(&s, q)->queue;
  tell(a, e.text, "wait", "()");
  until_waits(event, &event->waiters, 1);
  tell(b, q.text, "get", "()");
  while (!somebody_waits(queue)) conc_sleep(0.001);
  CALL_SAYS("None", &s, "decref", "(s)", e.text);
  CALL_SAYS("None", &s, "decref", "(s)", q.text);
  CALL_SAYS("0", &s, "number_of_objects", "()");
  /* Whoever knows the id may still call it. */
  SAYS("None", p, e.text, "set", "()");
  CHECK_STR(hear(a), "True");
  SAYS("None", p, q.text, "put", "(s)", "x");
  CHECK_STR(hear(b), "x");
  CHECK(strstr(ask(p, e.text, "set", "()"), "KeyError") != NULL);
  conc__peer_close(a), conc__peer_close(b), conc__peer_close(p);
  end(&s);
}

/* A message that was handed out is given back to its queue: that must be
   there. */
TEST(a_queue_lives_as_long_as_a_message_of_it_is_out) {
  served s = nobody();
  types(&s);
  id q = MAKE(&s, "(s)", "Queue");
  conc__peer *a = person(&s), *p = person(&s);
  SAYS("None", p, q.text, "put", "(s)", "x");
  SAYS("x", a, q.text, "_conc_get", "(dii)", 1.0, 0, 100);
  CALL_SAYS("None", &s, "decref", "(s)", q.text);
  SAYS("0", p, q.text, "qsize", "()");
  conc__peer_close(a); /* without a word: so the message goes back */
  for (double limit = soon();; conc_sleep(0.001)) {
    const char *reply = ask(p, q.text, "qsize", "()");
    if (strstr(reply, "KeyError") != NULL) break;
    CHECK(conc_now() < limit);
  }
  conc__peer_close(p);
  end(&s);
}

TEST(texts_and_values_of_objects_and_what_is_not_exposed) {
  served s = nobody();
  types(&s);
  id q = MAKE(&s, "(si)", "Queue", 3), e = MAKE(&s, "(s)", "Event");
  conc__peer *p = person(&s);
  char text[400];
  snprintf(text, sizeof text, "<queue.Queue object at 0x%llx>",
           (unsigned long long)object(&s, q)->number);
  SAYS(text, p, q.text, "__str__", "()");
  SAYS(text, p, q.text, "__repr__", "()");
  SAYS("UNSERIALIZABLE TypeError: cannot pickle 'queue.Queue' object", p,
       q.text, "#GETVALUE", "()");
  SAYS("TRACEBACK AttributeError: method 'fly' of <class 'threading.Event'> "
       "object is not in exposed={'is_set', 'set', 'clear', 'wait'}",
       p, e.text, "fly", "()");
  SAYS("TypeError: is_set() takes 1 positional argument but 2 were given", p,
       e.text, "is_set", "(i)", 1);
  snprintf(text, sizeof text,
           "  %s:       refcount=1\n    <queue.Queue object at 0x%llx>\n"
           "  %s:       refcount=2\n    <threading.Event at 0x%llx: unset>",
           q.text, (unsigned long long)object(&s, q)->number, e.text,
           (unsigned long long)object(&s, e)->number);
  CALL_SAYS("None", &s, "incref", "(s)", e.text);
  CALL_SAYS(text, &s, "debug_info", "()");
  CALL_SAYS_PART("TRACEBACK KeyError", &s, "get_methods", "(s)", e.text);
  conc__peer_close(p);
  end(&s);
}

/* What Python asks when it is handed a proxy of which it knows no methods: the
   token is written in protocol 3, for no value of ours can be one. */
TEST(the_methods_of_an_object_are_told_by_its_token) {
  served s = nobody();
  types(&s);
  id q = MAKE(&s, "(s)", "Queue"), b = MAKE(&s, "(si)", "Barrier", 2);
  const struct {
    const char *id, *says;
  } asked[] = {
      {q.text, "('shutdown', 'empty', 'full', 'get', 'get_nowait', 'join', "
               "'put', 'put_nowait', 'qsize', 'task_done')"},
      {b.text, "('__getattribute__', 'wait', 'abort', 'reset')"},
      {"x", "TRACEBACK KeyError: no object with id 'x'"}};
  for (int i = 0; i < 3; i++) {
    char request[200];
    conc__peer *p;
    size_t n = 0, m = strlen(asked[i].id);
    const char length[] = {(char)m, 0, 0, 0};
#define ADD(text, size) (memcpy(request + n, text, size), n += (size))
#define ADD_TEXT(text) ADD(text, sizeof text - 1)
    ADD_TEXT("\x80\3(NX\13\0\0\0get_methods"
             "cmultiprocessing.managers\nToken\n)\x81(X\1\0\0\0tNX");
    ADD(length, 4);
    ADD(asked[i].id, m);
    ADD_TEXT("tb\x85}t.");
    CHECK_EQ(conc__peer_open(s.client.state, &p, soon()), 0);
    CHECK_EQ(conc__channel_send(&p->channel, request, n, soon()), 0);
    CHECK_STR(hear(p), asked[i].says);
    conc__peer_close(p);
  }
  end(&s);
}

TEST(create_checks_its_arguments_as_python_does) {
  served s = nobody();
  types(&s);
  CALL_SAYS("TRACEBACK KeyError: 'Nothing'", &s, "create", "(s)", "Nothing");
  CALL_SAYS("TRACEBACK TypeError: Queue.__init__() takes from 1 to 2 "
            "positional arguments but 3 were given",
            &s, "create", "(sii)", "Queue", 1, 2);
  CALL_SAYS("TRACEBACK TypeError: 'maxsize' must be an integer", &s, "create",
            "(ss)", "Queue", "a");
  CALL_SAYS("TRACEBACK TypeError: Event.__init__() takes 1 positional "
            "argument but 2 were given",
            &s, "create", "(si)", "Event", 1);
  CALL_SAYS("TRACEBACK ValueError: semaphore initial value must be >= 0", &s,
            "create", "(si)", "Semaphore", -1);
  CALL_SAYS("TRACEBACK TypeError: Barrier.__init__() missing 1 required "
            "positional argument: 'parties'",
            &s, "create", "(s)", "Barrier");
  CALL_SAYS("TRACEBACK ValueError: parties must be > 0", &s, "create", "(si)",
            "Barrier", 0);
  CALL_SAYS("TRACEBACK TypeError: 'timeout' must be a number", &s, "create",
            "(siNs)", "Barrier", 2, "x");
  CALL_SAYS("TRACEBACK TypeError: 'lock' must be a Lock or an RLock of this "
            "manager",
            &s, "create", "(si)", "Condition", 1);
  CALL_SAYS("0", &s, "number_of_objects", "()");
  end(&s);
}

/* --- Queue --- */

TEST(a_queue_of_a_client_is_bounded_as_it_asks) {
  served s = nobody();
  types(&s);
  id q = MAKE(&s, "(si)", "Queue", 2), free = MAKE(&s, "(si)", "Queue", -1);
  conc__peer *p = person(&s);
  SAYS("None", p, q.text, "put", "(i)", 1);
  SAYS("False", p, q.text, "full", "()");
  SAYS("None", p, q.text, "put_nowait", "(i)", 2);
  SAYS("True", p, q.text, "full", "()");
  SAYS("Full", p, q.text, "put", "(ip)", 3, 0);
  SAYS("1", p, q.text, "get", "()");
  SAYS("2", p, q.text, "get_nowait", "()");
  SAYS("Empty", p, q.text, "get_nowait", "()");
  SAYS("Empty", p, q.text, "get", "(pd)", 1, 0.01);
  SAYS("None", p, q.text, "task_done", "()");
  SAYS("None", p, q.text, "task_done", "()");
  SAYS("ValueError: task_done() called too many times", p, q.text,
       "task_done", "()");
  SAYS("None", p, q.text, "join", "()");
  for (int i = 0; i < 100; i++)
    SAYS("None", p, free.text, "put", "(i)", i);
  SAYS("False", p, free.text, "full", "()");
  conc__peer_close(p);
  end(&s);
}

TEST(a_queue_that_is_shut_down_says_so) {
  served s = nobody();
  types(&s);
  id q = MAKE(&s, "(si)", "Queue", 2), now = MAKE(&s, "(s)", "Queue");
  conc_queue *queue = object(&s, now)->queue;
  conc__peer *a = person(&s), *b = person(&s);
  SAYS("None", a, q.text, "put", "(i)", 1);
  SAYS("None", a, q.text, "put", "(i)", 2);
  tell(b, q.text, "put", "(i)", 3); /* waits, or comes too late: the same */
  SAYS("None", a, q.text, "shutdown", "()");
  CHECK_STR(hear(b), "ShutDown");
  SAYS("ShutDown", a, q.text, "put", "(i)", 3);
  SAYS("ShutDown", a, q.text, "put", "([ii])", 3, 4);
  SAYS("1", a, q.text, "get", "()");
  SAYS("2", a, q.text, "get", "()");
  SAYS("ShutDown", a, q.text, "get", "()");
  SAYS("ShutDown", a, q.text, "get", "(p)", 0);
  SAYS("None", a, now.text, "put", "(i)", 1);
  SAYS("None", a, now.text, "put", "(i)", 2);
  SAYS("1", a, now.text, "get", "()");
  SAYS("None", a, now.text, "shutdown", "(p)", 1);
  SAYS("0", a, now.text, "qsize", "()");
  SAYS("ShutDown", a, now.text, "get", "()");
  CHECK_EQ(conc_queue_join(queue, 0), -ETIMEDOUT); /* the one that was got */
  SAYS("None", a, now.text, "task_done", "()");
  SAYS("None", a, now.text, "join", "()");
  /* A queue of the program is not the clients' to shut down. */
  id own = MAKE(&s, "(s)", "q");
  CHECK(strstr(ask(a, own.text, "shutdown", "()"), "AttributeError") != NULL);
  conc__peer_close(a), conc__peer_close(b);
  end(&s);
}

/* --- Lock and RLock --- */

TEST(a_lock_is_any_clients_to_release_and_an_rlock_its_owners) {
  served s = nobody();
  types(&s);
  id l = MAKE(&s, "(s)", "Lock"), r = MAKE(&s, "(s)", "RLock");
  conc__peer *a = person(&s), *b = person(&s);
  SAYS("RuntimeError: release unlocked lock", a, l.text, "release", "()");
  SAYS("True", a, l.text, "acquire", "()");
  SAYS("False", a, l.text, "acquire", "(p)", 0);
  SAYS("False", a, l.text, "acquire", "(pd)", 1, 0.01);
  SAYS("False", b, l.text, "acquire", "(p)", 0);
  SAYS("None", b, l.text, "release", "()");
  SAYS("True", b, l.text, "acquire", "(pi)", 1, -1);
  SAYS("None", b, l.text, "release", "()");
  SAYS("RuntimeError: release unlocked lock", b, l.text, "release", "()");

  SAYS("RuntimeError: cannot release un-acquired lock", a, r.text, "release",
       "()");
  SAYS("True", a, r.text, "acquire", "()");
  SAYS("True", a, r.text, "acquire", "()");
  SAYS("False", b, r.text, "acquire", "(p)", 0);
  SAYS("RuntimeError: cannot release un-acquired lock", b, r.text, "release",
       "()");
  SAYS("None", a, r.text, "release", "()");
  SAYS("False", b, r.text, "acquire", "(p)", 0);
  SAYS("None", a, r.text, "release", "()");
  SAYS("True", b, r.text, "acquire", "(p)", 0);
  SAYS("RuntimeError: cannot release un-acquired lock", a, r.text, "release",
       "()");
  SAYS("None", b, r.text, "release", "()");
  conc__peer_close(a), conc__peer_close(b);
  end(&s);
}

TEST(the_arguments_of_acquire_are_pythons) {
  served s = nobody();
  types(&s);
  id made[2] = {MAKE(&s, "(s)", "Lock"), MAKE(&s, "(s)", "RLock")};
  conc__peer *p = person(&s);
  for (int i = 0; i < 2; i++) {
    const char *l = made[i].text;
    SAYS("ValueError: can't specify a timeout for a non-blocking call", p, l,
         "acquire", "(pd)", 0, 1.0);
    SAYS("ValueError: timeout value must be a non-negative number", p, l,
         "acquire", "(pd)", 1, -2.0);
    SAYS("ValueError: Invalid value NaN (not a number)", p, l, "acquire",
         "(pd)", 1, (double)NAN);
    SAYS("TypeError: 'timeout' must be a number", p, l, "acquire", "(pN)", 1);
    SAYS("TypeError: acquire() takes from 1 to 3 positional arguments but 4 "
         "were given",
         p, l, "acquire", "(iii)", 1, 2, 3);
    SAYS("TypeError: release() takes 1 positional argument but 2 were given",
         p, l, "release", "(i)", 1);
    SAYS("True", p, l, "acquire", "(pL)", 1, (long long)1 << 62);
    SAYS("None", p, l, "release", "()");
  }
  conc__peer_close(p);
  end(&s);
}

/* By turns, so that each of them has waited, and is handed it in order. */
TEST(clients_wait_for_a_lock_and_get_it_in_order) {
  enum { MANY = 5 };
  served s = nobody();
  types(&s);
  id made[2] = {MAKE(&s, "(s)", "Lock"), MAKE(&s, "(s)", "RLock")};
  for (int which = 0; which < 2; which++) {
    const char *l = made[which].text;
    conc_lock *lock = lock_of(&s, made[which]);
    conc__peer *p[MANY];
    for (int i = 0; i < MANY; i++) {
      p[i] = person(&s);
      tell(p[i], l, "acquire", "()");
      if (i == 0) CHECK_STR(hear(p[0]), "True");
      until_waits(lock, &lock->waiters, (size_t)i);
    }
    for (int i = 0; i < MANY; i++) {
      if (i > 0) CHECK_STR(hear(p[i]), "True");
      SAYS("None", p[i], l, "release", "()");
    }
    for (int i = 0; i < MANY; i++) conc__peer_close(p[i]);
  }
  end(&s);
}

#define ENDED                                                       \
  "RuntimeError: the owner of the lock has ended: what the lock protects " \
  "may be half changed"

TEST(an_owner_that_ends_is_told_once_and_the_lock_goes_on) {
  served s = nobody();
  types(&s);
  id made[2] = {MAKE(&s, "(s)", "Lock"), MAKE(&s, "(s)", "RLock")};
  for (int which = 0; which < 2; which++) {
    const char *l = made[which].text;
    conc_lock *lock = lock_of(&s, made[which]);
    conc__peer *a = person(&s), *b = person(&s), *c = person(&s);
    SAYS("True", a, l, "acquire", "()");
    if (which == 1) SAYS("True", a, l, "acquire", "()"); /* two levels */
    tell(b, l, "acquire", "()");
    until_waits(lock, &lock->waiters, 1);
    conc__peer_close(a);
    CHECK_STR(hear(b), ENDED);
    /* It was told, and does not have it. */
    SAYS("True", c, l, "acquire", "(p)", 0);
    SAYS("False", b, l, "acquire", "(p)", 0);
    SAYS("None", c, l, "release", "()");
    SAYS("True", b, l, "acquire", "(p)", 0);
    SAYS("None", b, l, "release", "()");
    conc__peer_close(b), conc__peer_close(c);
  }
  end(&s);
}

/* What waits for a lock has done no harm by its end. */
TEST(a_client_that_waits_for_a_lock_and_ends_is_no_owner) {
  served s = nobody();
  types(&s);
  id l = MAKE(&s, "(s)", "Lock");
  conc_lock *lock = lock_of(&s, l);
  conc__peer *a = person(&s), *b = person(&s), *c = person(&s);
  SAYS("True", a, l.text, "acquire", "()");
  tell(b, l.text, "acquire", "()");
  until_waits(lock, &lock->waiters, 1);
  conc__peer_close(b);
  until_waits(lock, &lock->waiters, 0);
  SAYS("None", a, l.text, "release", "()");
  SAYS("True", c, l.text, "acquire", "()");
  SAYS("None", c, l.text, "release", "()");
  conc__peer_close(a), conc__peer_close(c);
  end(&s);
}

TEST(a_lock_that_is_dropped_is_not_released_any_more) {
  served s = nobody();
  types(&s);
  conc__peer *a = person(&s), *b = person(&s);
  id l = MAKE(&s, "(s)", "Lock"), next;
  SAYS("True", a, l.text, "acquire", "()");
  CALL_SAYS("None", &s, "decref", "(s)", l.text);
  next = MAKE(&s, "(s)", "Lock"); /* in its place, perhaps in its memory */
  conc__peer_close(a);
  SAYS("True", b, next.text, "acquire", "()");
  SAYS("None", b, next.text, "release", "()");
  conc__peer_close(b);
  end(&s);
}

/* In one thread each of Python: neither would ever go on. */
TEST(clients_that_wait_for_each_other_are_told_of_the_deadlock) {
  served s = nobody();
  types(&s);
  id l[2] = {MAKE(&s, "(s)", "RLock"), MAKE(&s, "(s)", "RLock")};
  conc__peer *p[2] = {person(&s), person(&s)};
  conc_lock *second = lock_of(&s, l[1]);
  SAYS("True", p[0], l[0].text, "acquire", "()");
  SAYS("True", p[1], l[1].text, "acquire", "()");
  tell(p[0], l[1].text, "acquire", "()");
  until_waits(second, &second->waiters, 1);
  tell(p[1], l[0].text, "acquire", "()");
  CHECK(strstr(hear(p[1]), "RuntimeError: ") != NULL);
  SAYS("None", p[1], l[1].text, "release", "()");
  CHECK_STR(hear(p[0]), "True");
  conc__peer_close(p[0]), conc__peer_close(p[1]);
  end(&s);
}

TEST(a_server_ends_while_clients_hold_and_wait) {
  served s = nobody();
  types(&s);
  id l = MAKE(&s, "(s)", "RLock"), c = MAKE(&s, "(s)", "Condition");
  id b = MAKE(&s, "(si)", "Barrier", 2), e = MAKE(&s, "(s)", "Event");
  conc_lock *lock = lock_of(&s, l);
  conc_cond *cond = ((conc__served_cond *)state_of(&s, c))->cond;
  conc__peer *p[5];
  double began;
  for (int i = 0; i < 5; i++) p[i] = person(&s);
  SAYS("True", p[0], l.text, "acquire", "()");
  tell(p[1], l.text, "acquire", "()");
  until_waits(lock, &lock->waiters, 1);
  SAYS("True", p[2], c.text, "acquire", "()");
  tell(p[2], c.text, "wait", "()");
  until_waits(cond, &cond->waiters, 1);
  tell(p[3], b.text, "wait", "()");
  tell(p[4], e.text, "wait", "()");
  SAYS("True", p[0], c.text, "acquire", "()"); /* so p[2] has to wait for it */
  began = conc_now();
  CHECK_EQ(conc_manager_shutdown(&s.server), 0);
  CHECK(conc_now() - began < 10 * test_slow());
  for (int i = 0; i < 5; i++) conc__peer_close(p[i]);
  conc_manager_shutdown(&s.client);
  conc_queue_free(s.queue);
}

/* --- Semaphore --- */

TEST(semaphores_count_as_pythons) {
  served s = nobody();
  types(&s);
  id plain = MAKE(&s, "(s)", "Semaphore");
  id two = MAKE(&s, "(si)", "BoundedSemaphore", 2);
  id none = MAKE(&s, "(si)", "BoundedSemaphore", 0);
  conc_sem *sem = ((conc__served_sem *)state_of(&s, plain))->sem;
  conc__peer *a = person(&s), *b = person(&s);
  char text[100];
  SAYS("True", a, plain.text, "acquire", "()");
  SAYS("False", a, plain.text, "acquire", "(p)", 0);
  SAYS("False", a, plain.text, "acquire", "(pd)", 1, -1.0);
  SAYS("False", a, plain.text, "acquire", "(pd)", 1, 0.01);
  SAYS("ValueError: can't specify timeout for non-blocking acquire", a,
       plain.text, "acquire", "(pd)", 0, 1.0);
  SAYS("TypeError: 'timeout' must be a number", a, plain.text, "acquire",
       "(ps)", 1, "x");
  tell(b, plain.text, "acquire", "(pN)", 1);
  until_waits(sem, &sem->waiters, 1);
  SAYS("ValueError: n must be one or more", a, plain.text, "release", "(i)",
       0);
  SAYS("None", a, plain.text, "release", "(i)", 3);
  CHECK_STR(hear(b), "True");
  SAYS("True", a, plain.text, "acquire", "()");
  SAYS("True", b, plain.text, "acquire", "()");
  SAYS("False", b, plain.text, "acquire", "(p)", 0);

  SAYS("ValueError: Semaphore released too many times", a, two.text,
       "release", "()");
  SAYS("True", a, two.text, "acquire", "()");
  SAYS("ValueError: Semaphore released too many times", b, two.text,
       "release", "(i)", 2);
  snprintf(text, sizeof text,
           "<threading.BoundedSemaphore at 0x%llx: value=1/2>",
           (unsigned long long)object(&s, two)->number);
  SAYS(text, b, two.text, "__repr__", "()");
  SAYS("None", b, two.text, "release", "()");
  SAYS("ValueError: Semaphore released too many times", b, none.text,
       "release", "()");
  conc__peer_close(a), conc__peer_close(b);
  end(&s);
}

TEST(a_unit_does_not_go_with_a_client_that_waited_for_it) {
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(si)", "Semaphore", 0);
  conc_sem *sem = ((conc__served_sem *)state_of(&s, made))->sem;
  conc__peer *a = person(&s), *b = person(&s);
  tell(b, made.text, "acquire", "()");
  until_waits(sem, &sem->waiters, 1);
  conc__peer_close(b);
  until_waits(sem, &sem->waiters, 0);
  SAYS("None", a, made.text, "release", "()");
  SAYS("True", a, made.text, "acquire", "(pd)", 1, 20.0);
  conc__peer_close(a);
  end(&s);
}

/* --- Event --- */

TEST(an_event_is_pythons) {
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(s)", "Event");
  conc_event *event = conc__event_of(object(&s, made));
  conc__peer *a = person(&s), *b = person(&s);
  SAYS("False", a, made.text, "wait", "(i)", 0);
  SAYS("False", a, made.text, "wait", "(d)", -1.0);
  SAYS("False", a, made.text, "wait", "(d)", 0.01);
  SAYS("TypeError: 'timeout' must be a number", a, made.text, "wait", "(s)",
       "x");
  tell(b, made.text, "wait", "(N)");
  until_waits(event, &event->waiters, 1);
  SAYS("None", a, made.text, "set", "()");
  CHECK_STR(hear(b), "True");
  SAYS("True", a, made.text, "wait", "(d)", 0.0);
  SAYS("None", a, made.text, "clear", "()");
  SAYS("False", a, made.text, "is_set", "()");
  conc__peer_close(a), conc__peer_close(b);
  end(&s);
}

/* --- Condition --- */

/* One after the other: each notify lets one go, which then has the lock. */
TEST(a_condition_lets_as_many_go_as_it_is_told) {
  enum { MANY = 4 };
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(s)", "Condition");
  conc_cond *cond = ((conc__served_cond *)state_of(&s, made))->cond;
  conc__peer *a = person(&s), *p[MANY];
  const char *c = made.text;
  char text[200];
  SAYS("RuntimeError: cannot wait on un-acquired lock", a, c, "wait", "(N)");
  SAYS("RuntimeError: cannot notify on un-acquired lock", a, c, "notify",
       "(i)", 1);
  SAYS("RuntimeError: cannot notify on un-acquired lock", a, c, "notify_all",
       "()");
  SAYS("RuntimeError: cannot release un-acquired lock", a, c, "release", "()");
  for (int i = 0; i < MANY; i++) {
    p[i] = person(&s);
    SAYS("True", p[i], c, "acquire", "()");
    SAYS("True", p[i], c, "acquire", "()"); /* it gives up all levels */
    tell(p[i], c, "wait", "(N)");
    until_waits(cond, &cond->waiters, (size_t)i + 1);
  }
  SAYS("True", a, c, "acquire", "()");
  snprintf(text, sizeof text, "0x%llx>, %d)>",
           (unsigned long long)object(&s, made)->number, MANY);
  CHECK(strstr(ask(a, c, "__repr__", "()"), text) != NULL);
  SAYS("None", a, c, "notify", "(i)", -1);
  SAYS("None", a, c, "notify", "(i)", 2);
  until_waits(cond, &cond->waiters, 2);
  SAYS("None", a, c, "release", "()");
  for (int i = 0; i < MANY; i++) {
    CHECK_STR(hear(p[i]), "True");
    if (i == 1) {
      until_waits(cond, &cond->waiters, 2);
      SAYS("None", p[i], c, "notify_all", "()");
    }
    SAYS("None", p[i], c, "release", "()");
    SAYS("None", p[i], c, "release", "()");
  }
  SAYS("True", a, c, "acquire", "()");
  SAYS("False", a, c, "wait", "(d)", 0.01);
  SAYS("False", a, c, "wait", "(d)", -1.0);
  SAYS("None", a, c, "release", "()");
  SAYS("RuntimeError: cannot release un-acquired lock", a, c, "release", "()");
  for (int i = 0; i < MANY; i++) conc__peer_close(p[i]);
  conc__peer_close(a);
  end(&s);
}

TEST(a_client_that_ends_in_a_wait_takes_neither_lock_nor_notify_along) {
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(s)", "Condition");
  conc_cond *cond = ((conc__served_cond *)state_of(&s, made))->cond;
  conc__peer *a = person(&s), *b = person(&s), *p = person(&s);
  const char *c = made.text;
  SAYS("True", a, c, "acquire", "()");
  tell(a, c, "wait", "(N)");
  until_waits(cond, &cond->waiters, 1);
  SAYS("True", b, c, "acquire", "()");
  tell(b, c, "wait", "(N)");
  until_waits(cond, &cond->waiters, 2);
  conc__peer_close(a);
  until_waits(cond, &cond->waiters, 1);
  SAYS("True", p, c, "acquire", "()"); /* and is told of no owner */
  SAYS("None", p, c, "notify", "(i)", 1);
  SAYS("None", p, c, "release", "()");
  CHECK_STR(hear(b), "True");
  SAYS("None", b, c, "release", "()");
  conc__peer_close(b), conc__peer_close(p);
  end(&s);
}

TEST(an_owner_that_ends_during_a_wait_is_told_with_the_lock_held) {
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(s)", "Condition");
  conc_cond *cond = ((conc__served_cond *)state_of(&s, made))->cond;
  conc__peer *a = person(&s), *b = person(&s);
  const char *c = made.text;
  SAYS("True", a, c, "acquire", "()");
  tell(a, c, "wait", "(N)");
  until_waits(cond, &cond->waiters, 1);
  SAYS("True", b, c, "acquire", "()");
  SAYS("None", b, c, "notify", "(i)", 1);
  conc__peer_close(b);
  CHECK_STR(hear(a), ENDED);
  SAYS("None", a, c, "release", "()");
  SAYS("True", a, c, "acquire", "()");
  SAYS("None", a, c, "release", "()");
  conc__peer_close(a);
  end(&s);
}

/* --- Barrier --- */

TEST(a_barrier_is_pythons) {
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(si)", "Barrier", 3);
  conc_barrier *barrier = conc__barrier_of(object(&s, made));
  conc__peer *p[3];
  const char *b = made.text;
  int seen = 0;
  for (int i = 0; i < 3; i++) p[i] = person(&s);
  SAYS("3", p[0], b, "__getattribute__", "(s)", "parties");
  SAYS("False", p[0], b, "__getattribute__", "(s)", "broken");
  SAYS("AttributeError: 'Barrier' object has no attribute '_cond'", p[0], b,
       "__getattribute__", "(s)", "_cond");
  for (int round = 0; round < 3; round++) {
    seen = 0;
    for (int i = 0; i < 3; i++) {
      tell(p[i], b, "wait", "(N)");
      if (i < 2) until_waits(barrier, &barrier->waiters, (size_t)i + 1);
    }
    for (int i = 0; i < 3; i++) seen |= 1 << atoi(hear(p[i]));
    CHECK_EQ(seen, 7);
  }
  tell(p[0], b, "wait", "()");
  until_waits(barrier, &barrier->waiters, 1);
  SAYS("1", p[1], b, "__getattribute__", "(s)", "n_waiting");
  SAYS("BrokenBarrierError", p[1], b, "wait", "(i)", 0);
  CHECK_STR(hear(p[0]), "BrokenBarrierError");
  SAYS("True", p[0], b, "__getattribute__", "(s)", "broken");
  SAYS("BrokenBarrierError", p[0], b, "wait", "()");
  SAYS("None", p[0], b, "reset", "()");
  tell(p[0], b, "wait", "()");
  until_waits(barrier, &barrier->waiters, 1);
  SAYS("None", p[1], b, "reset", "()");
  CHECK_STR(hear(p[0]), "BrokenBarrierError");
  tell(p[0], b, "wait", "()");
  until_waits(barrier, &barrier->waiters, 1);
  conc__peer_close(p[0]); /* it will never come: so the others need not wait */
  until_waits(barrier, &barrier->waiters, 0);
  SAYS("True", p[1], b, "__getattribute__", "(s)", "broken");
  SAYS("None", p[1], b, "reset", "()");
  SAYS("None", p[1], b, "abort", "()");
  SAYS("BrokenBarrierError", p[2], b, "wait", "(d)", 20.0);
  conc__peer_close(p[1]), conc__peer_close(p[2]);
  end(&s);
}

TEST(a_barrier_has_a_timeout_of_its_own) {
  served s = nobody();
  types(&s);
  id made = MAKE(&s, "(siNd)", "Barrier", 2, 0.01);
  conc__peer *p = person(&s);
  SAYS("BrokenBarrierError", p, made.text, "wait", "(N)");
  conc__peer_close(p);
  end(&s);
}

/* --- primitives of the program --- */

typedef struct own {
  served s;
  conc_lock lock;
  conc_rlock rlock;
  conc_event event;
  conc_cond cond, rcond;
  conc_sem sem;
  conc_barrier barrier;
  int acted;
} own;

static int act(void *arg) { return ++*(int *)arg; }

static void serve_own(own *o) {
  conc_manager *m = &o->s.server;
  memset(o, 0, sizeof *o);
  o->sem.value = o->sem.bound = 1;
  o->barrier.parties = 2;
  o->barrier.action = act;
  o->barrier.arg = &o->acted;
  CHECK_EQ(conc_manager_register_cond(m, "cond", &o->cond, "lock"), -ENOENT);
  CHECK_EQ(conc_manager_register_lock(m, "lock", &o->lock), 0);
  CHECK_EQ(conc_manager_register_lock(m, "lock", &o->lock), -EEXIST);
  CHECK_EQ(conc_manager_register_rlock(m, "rlock", &o->rlock), 0);
  CHECK_EQ(conc_manager_register_event(m, "event", &o->event), 0);
  CHECK_EQ(conc_manager_register_sem(m, "sem", &o->sem), 0);
  CHECK_EQ(conc_manager_register_barrier(m, "barrier", &o->barrier), 0);
  types(&o->s);
  /* While it serves, too. */
  CHECK_EQ(conc_manager_register_cond(m, "cond", &o->cond, "lock"), 0);
  CHECK_EQ(conc_manager_register_cond(m, "rcond", &o->rcond, "rlock"), 0);
}

TEST(primitives_are_registered_as_queues_are) {
  conc_lock *shared = (conc_lock *)conc_shared_alloc(sizeof *shared);
  own o;
  conc_manager *m = &o.s.server;
  serve_own(&o);
  CHECK_EQ(conc_manager_register_lock(m, NULL, &o.lock), -EINVAL);
  CHECK_EQ(conc_manager_register_event(m, "", &o.event), -EINVAL);
  CHECK_EQ(conc_manager_register_sem(m, "x", NULL), -EINVAL);
  CHECK_EQ(conc_manager_register_cond(m, "x", &o.cond, NULL), -EINVAL);
  CHECK_EQ(conc_manager_register_cond(m, "x", &o.cond, "event"), -ENOENT);
  CHECK_EQ(conc_manager_register_cond(m, "x", &o.cond, "Lock"), -ENOENT);
  CHECK_EQ(conc_lock_init_shared(shared), 0);
  CHECK_EQ(conc_manager_register_lock(m, "x", shared), -EINVAL);
  conc_shared_free(shared);
  /* The type Lock has this name already. */
  CHECK_EQ(conc_manager_register_lock(m, "Lock", &o.lock), -EEXIST);
  CHECK(conc_manager_get(m, "lock") == NULL && errno == ENOENT);
  CALL_SAYS("TRACEBACK TypeError: lock() takes 0 positional arguments but 1 "
            "was given",
            &o.s, "create", "(si)", "lock", 1);
  end(&o.s);
}

TEST(the_program_and_its_clients_have_the_same_lock) {
  own o;
  serve_own(&o);
  id l = MAKE(&o.s, "(s)", "lock"), r = MAKE(&o.s, "(s)", "rlock");
  conc__peer *a = person(&o.s), *b = person(&o.s);
  CHECK_EQ(conc_lock_acquire(&o.lock, 0), 0);
  SAYS("False", a, l.text, "acquire", "(p)", 0);
  SAYS("RuntimeError: release unlocked lock", a, l.text, "release", "()");
  tell(a, l.text, "acquire", "()");
  until_waits(&o.lock, &o.lock.waiters, 1);
  CHECK_EQ(conc_lock_release(&o.lock), 0);
  CHECK_STR(hear(a), "True");
  CHECK_EQ(conc_lock_acquire(&o.lock, 0), -ETIMEDOUT);
  CHECK_EQ(conc_lock_release(&o.lock), -EPERM);
  conc__peer_close(a);
  CHECK_EQ(conc_lock_acquire(&o.lock, 20 * test_slow()), -EOWNERDEAD);
  CHECK_EQ(conc_lock_release(&o.lock), 0);
  CHECK_EQ(conc_lock_acquire(&o.lock, 0), 0);
  CHECK_EQ(conc_lock_release(&o.lock), 0);

  SAYS("True", b, r.text, "acquire", "()");
  SAYS("True", b, r.text, "acquire", "()");
  CHECK_EQ(conc_rlock_acquire(&o.rlock, 0), -ETIMEDOUT);
  SAYS("None", b, r.text, "release", "()");
  SAYS("None", b, r.text, "release", "()");
  CHECK_EQ(conc_rlock_acquire(&o.rlock, 0), 0);
  CHECK_EQ(conc_rlock_acquire(&o.rlock, 0), 0);
  SAYS("RuntimeError: cannot release un-acquired lock", b, r.text, "release",
       "()");
  CHECK_EQ(conc_rlock_release(&o.rlock), 0);
  CHECK_EQ(conc_rlock_release(&o.rlock), 0);
  SAYS("True", b, r.text, "acquire", "(p)", 0);
  /* The end of the manager is that of its clients. */
  end(&o.s);
  CHECK_EQ(conc_rlock_acquire(&o.rlock, 0), -EOWNERDEAD);
  CHECK_EQ(conc_rlock_release(&o.rlock), 0);
  conc__peer_close(b);
}

TEST(the_program_and_its_clients_wake_each_other) {
  own o;
  serve_own(&o);
  id e = MAKE(&o.s, "(s)", "event"), c = MAKE(&o.s, "(s)", "cond");
  id rc = MAKE(&o.s, "(s)", "rcond"), l = MAKE(&o.s, "(s)", "lock");
  id sem = MAKE(&o.s, "(s)", "sem"), b = MAKE(&o.s, "(s)", "barrier");
  conc__peer *p = person(&o.s), *other = person(&o.s);
  tell(p, e.text, "wait", "()");
  until_waits(&o.event, &o.event.waiters, 1);
  CHECK_EQ(conc_event_set(&o.event), 0);
  CHECK_STR(hear(p), "True");
  SAYS("None", p, e.text, "clear", "()");
  CHECK(!conc_event_is_set(&o.event));

  /* A condition with a Lock: any client that holds it may wait. */
  SAYS("True", p, l.text, "acquire", "()");
  tell(p, c.text, "wait", "()");
  until_waits(&o.cond, &o.cond.waiters, 1);
  CHECK_EQ(conc_lock_acquire(&o.lock, 5), 0);
  CHECK_EQ(conc_cond_notify(&o.cond, 1), 0);
  CHECK_EQ(conc_lock_release(&o.lock), 0);
  CHECK_STR(hear(p), "True");
  CHECK_EQ(conc_lock_acquire(&o.lock, 0), -ETIMEDOUT);
  SAYS("None", p, c.text, "release", "()");

  /* With an RLock of two levels, and a client that notifies. */
  SAYS("True", p, rc.text, "acquire", "()");
  SAYS("True", p, rc.text, "acquire", "()");
  tell(p, rc.text, "wait", "()");
  until_waits(&o.rcond, &o.rcond.waiters, 1);
  SAYS("True", other, rc.text, "acquire", "()");
  SAYS("None", other, rc.text, "notify", "()");
  SAYS("None", other, rc.text, "release", "()");
  CHECK_STR(hear(p), "True");
  SAYS("None", p, rc.text, "release", "()");
  CHECK_EQ(conc_rlock_acquire(&o.rlock, 0), -ETIMEDOUT);
  SAYS("None", p, rc.text, "release", "()");

  CHECK_EQ(conc_sem_acquire(&o.sem, 0), 0);
  tell(p, sem.text, "acquire", "()");
  until_waits(&o.sem, &o.sem.waiters, 1);
  CHECK_EQ(conc_sem_release(&o.sem, 1), 0);
  CHECK_STR(hear(p), "True");
  SAYS("None", p, sem.text, "release", "()");
  SAYS("ValueError: Semaphore released too many times", p, sem.text,
       "release", "()");

  tell(p, b.text, "wait", "()");
  until_waits(&o.barrier, &o.barrier.waiters, 1);
  CHECK_EQ(conc_barrier_wait(&o.barrier, 5), 1);
  CHECK_STR(hear(p), "0");
  CHECK_EQ(o.acted, 1);
  conc__peer_close(p), conc__peer_close(other);
  end(&o.s);
}

TEST_MAIN
