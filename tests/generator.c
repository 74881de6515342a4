/* Generators: values, sends, delegation, close; in threads, in coroutines,
   where they may wait, and handed from one to the next. */
#include "inside.h"
#include "tasks.h"

static void *number(intptr_t n) { return (void *)n; }

static conc_gen gen(conc_fn *target, void *arg) {
  conc_gen g;
  memset(&g, 0, sizeof g);
  g.target = target;
  g.arg = arg;
  return g;
}
/* Each of these is to hold in a thread, in a coroutine, in a generator. */
static void *in_generator(void *arg) {
  conc_fn *target;
  memcpy(&target, arg, sizeof target);
  CHECK_EQ(conc_yield(target(NULL), NULL), 0);
  return NULL;
}
static void *all_ways_task(void *arg) {
  conc_fn *target;
  conc_gen g = gen(in_generator, arg);
  memcpy(&target, arg, sizeof target);
  target(NULL);
  CHECK_EQ(conc_gen_next(&g, NULL), 0);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return NULL;
}
static void all_ways(conc_fn *target) {
  conc_task t = task_of(all_ways_task, &target);
  all_ways_task(&target);
  run(all_ways_task, &target);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}
static void expect(conc_gen *g, intptr_t value) {
  void *got = number(-1);
  CHECK_EQ(conc_gen_next(g, &got), 0);
  CHECK_EQ((intptr_t)got, value);
}

static void *count_to(void *n) {
  for (intptr_t i = 0; i < (intptr_t)n; i++)
    if (conc_yield(number(i), NULL) != 0) return number(-i);
  return number(42);
}

/* --- next --- */

static void *try_values(void *arg) {
  conc_gen g = gen(count_to, number(3));
  void *value = number(7);
  CHECK(conc_gen_result(&g) == NULL);
  for (int i = 0; i < 3; i++) expect(&g, i);
  CHECK(conc_gen_result(&g) == NULL);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_gen_next(&g, &value), -EPIPE);
    CHECK_EQ((intptr_t)value, 7);
    CHECK_EQ((intptr_t)conc_gen_result(&g), 42);
  }
  CHECK_EQ(conc_gen_close(&g), 0);
  return arg;
}
TEST(values_come_in_order_and_then_the_end) { all_ways(try_values); }

static void *try_nothing(void *arg) {
  conc_gen g = gen(count_to, NULL);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&g), 42);
  g = gen(NULL, NULL);
  CHECK_EQ(conc_gen_next(&g, NULL), -EINVAL);
  CHECK_EQ(conc_gen_close(&g), -EINVAL);
  g = gen(count_to, NULL);
  g.stack_size = SIZE_MAX / 2 + 1;
  CHECK_EQ(conc_gen_next(&g, NULL), -ENOMEM);
  CHECK_EQ(conc_gen_close(&g), 0);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return arg;
}
TEST(a_generator_may_end_at_once_or_not_begin) { all_ways(try_nothing); }

static void *delegates_to_too_large(void *arg) {
  conc_gen inner = gen(count_to, NULL);
  inner.stack_size = SIZE_MAX; /* and a page more is next to nothing */
  CHECK_EQ(conc_yield_from(&inner, NULL), -ENOMEM);
  return arg;
}
static void *try_too_large(void *arg) {
  conc_gen g = gen(delegates_to_too_large, NULL);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return arg;
}
TEST(delegation_to_one_that_is_too_large_fails) { all_ways(try_too_large); }

TEST(a_yield_needs_a_generator) {
  conc_gen g = gen(count_to, number(3));
  CHECK_EQ(conc_yield(NULL, NULL), -EPERM);
  CHECK_EQ(conc_yield_from(&g, NULL), -EPERM);
  expect(&g, 0); /* it has not been touched */
  CHECK_EQ(conc_gen_close(&g), 0);
}

/* --- send --- */

/* generator_1 of the documents. */
static void *sum(void *arg) {
  intptr_t total = 0;
  void *x;
  (void)arg;
  while (conc_yield(number(total), &x) == 0) {
    if (x == NULL) break;
    total += (intptr_t)x;
  }
  return number(total);
}
static void *try_send(void *arg) {
  conc_gen g = gen(sum, NULL);
  void *value = NULL;
  CHECK_EQ(conc_gen_send(&g, number(1), &value), -EINVAL);
  CHECK_EQ(conc_gen_send(&g, NULL, &value), 0);
  CHECK_EQ((intptr_t)value, 0);
  CHECK_EQ(conc_gen_send(&g, number(2), &value), 0);
  CHECK_EQ((intptr_t)value, 2);
  CHECK_EQ(conc_gen_send(&g, number(3), &value), 0);
  CHECK_EQ((intptr_t)value, 5);
  CHECK_EQ(conc_gen_send(&g, NULL, &value), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&g), 5);
  CHECK_EQ(conc_gen_send(&g, number(3), &value), -EPIPE);
  return arg;
}
TEST(what_is_sent_arrives_at_the_yield) { all_ways(try_send); }

/* --- delegation --- */

/* generator_2 of the documents: yields from sum for ever; notes the totals. */
static void *sums(void *totals) {
  for (intptr_t *total = (intptr_t *)totals;; total++) {
    conc_gen inner = gen(sum, NULL);
    void *result;
    if (conc_yield_from(&inner, &result) != 0) return number(-1);
    *total = (intptr_t)result;
  }
}
static void *try_delegation(void *arg) {
  intptr_t totals[3] = {0, 0, 0};
  conc_gen g = gen(sums, totals);
  void *value = NULL;
  for (intptr_t round = 0; round < 3; round++) {
    expect(&g, 0);
    CHECK_EQ(conc_gen_send(&g, number(2 + round), &value), 0);
    CHECK_EQ((intptr_t)value, 2 + round);
    CHECK_EQ(conc_gen_send(&g, number(3), &value), 0);
    CHECK_EQ((intptr_t)value, 5 + round);
    if (round == 2) break;
    expect(&g, 0); /* None ends the sum: and this is the next one's first */
    CHECK_EQ(totals[round], 5 + round);
    CHECK_EQ(conc_gen_send(&g, number(9), NULL), 0);
    expect(&g, 0);
    CHECK_EQ(totals[round + 1], 9);
    totals[round + 1] = 0;
    CHECK_EQ(conc_gen_close(&g), 0);
    g = gen(sums, totals + round + 1);
  }
  CHECK_EQ(conc_gen_close(&g), 0);
  CHECK_EQ((intptr_t)conc_gen_result(&g), -1);
  return arg;
}
TEST(values_and_sends_pass_through_to_the_innermost) {
  all_ways(try_delegation);
}

/* Yields from one that has begun, one that delegates itself, one at its end,
   and none. */
static void *delegate(void *arg) {
  void *result = NULL;
  CHECK_EQ(conc_yield_from((conc_gen *)arg, &result), 0);
  return result;
}
static void *try_begun(void *arg) {
  conc_gen a = gen(count_to, number(5)), b = gen(delegate, &a);
  conc_gen c = gen(delegate, &b);
  expect(&a, 0);
  expect(&b, 1);
  expect(&c, 2);
  CHECK_EQ(conc_gen_next(&a, NULL), -EBUSY);
  CHECK_EQ(conc_gen_next(&b, NULL), -EBUSY);
  CHECK_EQ(conc_gen_close(&a), -EBUSY);
  expect(&c, 3);
  expect(&c, 4);
  CHECK_EQ(conc_gen_next(&c, NULL), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&a), 42);
  CHECK_EQ((intptr_t)conc_gen_result(&b), 42);
  CHECK_EQ((intptr_t)conc_gen_result(&c), 42);
  b = gen(delegate, &a);
  CHECK_EQ(conc_gen_next(&b, NULL), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&b), 42);
  return arg;
}
TEST(what_has_begun_may_be_delegated_to) { all_ways(try_begun); }

/* Whoever runs, or waits for one that runs, cannot be resumed. */
static conc_gen circle[3];
static void *try_circle(void *arg) {
  (void)arg;
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(conc_gen_next(&circle[i], NULL), -EBUSY);
    CHECK_EQ(conc_yield_from(&circle[i], NULL), -EBUSY);
    CHECK_EQ(conc_gen_close(&circle[i]), -EBUSY);
  }
  CHECK_EQ(conc_yield(number(1), NULL), 0);
  return NULL;
}
static void *nest(void *arg) {
  CHECK_EQ(conc_gen_next((conc_gen *)arg, NULL), 0);
  CHECK_EQ(conc_gen_next((conc_gen *)arg, NULL), -EPIPE);
  return NULL;
}
static void *try_busy(void *arg) {
  circle[0] = gen(nest, &circle[1]);
  circle[1] = gen(delegate, &circle[2]);
  circle[2] = gen(try_circle, NULL);
  CHECK_EQ(conc_gen_next(&circle[0], NULL), -EPIPE);
  return arg;
}
TEST(a_generator_that_runs_is_busy) { all_ways(try_busy); }

/* A walk through a tree of 2^depth - 1 nodes, each its own generator. */
static void *walk(void *depth) {
  intptr_t n = (intptr_t)depth;
  conc_gen g = gen(walk, number(n - 1));
  if (n == 0) return NULL;
  CHECK_EQ(conc_yield_from(&g, NULL), 0);
  CHECK_EQ(conc_yield(number(n), NULL), 0);
  g = gen(walk, number(n - 1));
  CHECK_EQ(conc_yield_from(&g, NULL), 0);
  return NULL;
}
static void *try_walk(void *arg) {
  conc_gen g = gen(walk, number(10));
  for (int i = 1; i < 1 << 10; i++) {
    int n = 1;
    while (!(i >> (n - 1) & 1)) n++;
    expect(&g, n);
  }
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return arg;
}
TEST(a_tree_is_walked_in_order) { all_ways(try_walk); }

/* --- close --- */

static char story[100];
static void tell(const char *what) {
  strncat(story, what, sizeof story - strlen(story) - 1);
}
static void *chapter(void *arg) {
  conc_gen *inner = (conc_gen *)arg;
  int rc = inner ? conc_yield_from(inner, NULL) : conc_yield(NULL, NULL);
  CHECK_EQ(rc, -ECANCELED);
  tell(inner ? "outer " : "inner ");
  return number(1);
}
static void *try_close(void *arg) {
  conc_gen a = gen(chapter, NULL), b = gen(chapter, &a), c = gen(chapter, &b);
  story[0] = 0;
  CHECK_EQ(conc_gen_next(&c, NULL), 0);
  CHECK_EQ(conc_gen_close(&c), 0);
  CHECK_STR(story, "inner outer outer ");
  CHECK_EQ((intptr_t)conc_gen_result(&c), 1);
  CHECK_EQ(conc_gen_close(&c), 0);
  CHECK_EQ(conc_gen_next(&c, NULL), -EPIPE);
  CHECK_STR(story, "inner outer outer ");
  a = gen(chapter, NULL); /* closed before it has begun, it never will */
  CHECK_EQ(conc_gen_close(&a), 0);
  CHECK_EQ(conc_gen_next(&a, NULL), -EPIPE);
  CHECK(conc_gen_result(&a) == NULL);
  CHECK_STR(story, "inner outer outer ");
  return arg;
}
TEST(close_unwinds_the_innermost_first) { all_ways(try_close); }

/* So it does if each had begun, on its own stack. */
static void *try_close_begun(void *arg) {
  conc_gen a = gen(count_to, number(9)), b = gen(chapter, &a);
  conc_gen c = gen(chapter, &b);
  story[0] = 0;
  expect(&a, 0);
  expect(&b, 1);
  expect(&c, 2);
  CHECK_EQ(conc_gen_close(&c), 0);
  CHECK_STR(story, "outer outer ");
  CHECK_EQ((intptr_t)conc_gen_result(&a), -2);
  CHECK_EQ((intptr_t)conc_gen_result(&b), 1);
  CHECK_EQ((intptr_t)conc_gen_result(&c), 1);
  return arg;
}
TEST(close_unwinds_all_that_had_begun) { all_ways(try_close_begun); }

/* Each yield is told of a close at most once; another close tells it anew. */
static void *stubborn(void *arg) {
  CHECK_EQ(conc_yield(number(1), NULL), -ECANCELED);
  CHECK_EQ(conc_yield(number(2), NULL), 0);
  CHECK_EQ(conc_yield(number(3), NULL), -ECANCELED);
  return arg;
}
static void *stubborn_outer(void *arg) {
  conc_gen g = gen(stubborn, NULL);
  CHECK_EQ(conc_yield_from(&g, NULL), -ECANCELED);
  g = gen(count_to, NULL); /* cleans up by a generator without values */
  CHECK_EQ(conc_yield_from(&g, NULL), 0);
  g = gen(count_to, number(1));
  CHECK_EQ(conc_yield_from(&g, NULL), 0);
  return arg;
}
static void *try_stubborn(void *arg) {
  conc_gen g = gen(stubborn, number(5));
  expect(&g, 1);
  CHECK_EQ(conc_gen_close(&g), -EAGAIN);
  expect(&g, 3);
  CHECK_EQ(conc_gen_close(&g), 0);
  CHECK_EQ((intptr_t)conc_gen_result(&g), 5);
  g = gen(stubborn_outer, number(6));
  expect(&g, 1);
  CHECK_EQ(conc_gen_close(&g), -EAGAIN);
  expect(&g, 3);
  CHECK_EQ(conc_gen_close(&g), -EAGAIN); /* it yields from the clean-up */
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&g), 6);
  return arg;
}
/* A generator yields once more when it is closed, and one that delegates to
   it yields from another during its clean-up. A close that forgot where
   either stands would lose a value, or the result. */
TEST(a_generator_may_yield_instead_of_ending) { all_ways(try_stubborn); }

/* --- random programs --- */

/* A dozen generators, each a random program that may yield, resume, close and
   delegate to any of them, whatever they are doing; beside a model of what
   Python's rules make of that, which has no stacks. Both write down all that
   they see. */
enum { PLAYERS = 12, LINES = 8, NOTES = 4000 };
enum { OP_YIELD, OP_FROM, OP_NEXT, OP_CLOSE, OP_END };
typedef struct move {
  int op, whom;
  intptr_t value;
  bool gives_up; /* when it is told of a close */
} move;
typedef struct notes {
  intptr_t what[NOTES];
  int n;
} notes;
static notes noted, expected;
static unsigned program;

static void note(notes *to, int who, int op, int rc, void *value) {
  CHECK(to->n + 4 <= NOTES);
  to->what[to->n++] = who;
  to->what[to->n++] = op;
  to->what[to->n++] = rc;
  to->what[to->n++] = (intptr_t)value;
}
static move move_of(int player, int line) {
  static const int ops[] = {OP_YIELD, OP_YIELD, OP_YIELD, OP_FROM,
                            OP_FROM,  OP_FROM,  OP_NEXT,  OP_CLOSE};
  unsigned h = program * 31 + (unsigned)(player * LINES + line);
  move m;
  for (int i = 0; i < 3; i++) h = (h ^ h >> 15) * 0x2c1b3c6du + 1;
  m.op = line + 1 >= LINES ? OP_END : ops[h >> 4 & 7];
  m.whom = (int)((h >> 8) % PLAYERS);
  m.value = (intptr_t)(h >> 12 & 3);
  m.gives_up = h >> 16 & 1;
  return m;
}

/* Those of conc.h. */
static conc_gen players[PLAYERS];
static void *play(void *arg) {
  int me = (int)((conc_gen *)arg - players);
  for (int line = 0;; line++) {
    move m = move_of(me, line);
    conc_gen *g = &players[m.whom];
    void *value = NULL;
    int rc = 0;
    if (m.op == OP_YIELD)
      rc = conc_yield(number(100 * me + line), &value);
    else if (m.op == OP_FROM)
      rc = conc_yield_from(g, &value);
    else if (m.op == OP_NEXT) rc = conc_gen_send(g, number(m.value), &value);
    else if (m.op == OP_CLOSE)
      rc = conc_gen_close(g);
    if (m.op != OP_END) note(&noted, me, m.op, rc, value);
    if (m.op == OP_END || (m.op <= OP_FROM && rc == -ECANCELED && m.gives_up))
      return number(1000 + 100 * me + line);
  }
}

/* And those of the model. */
enum { IS_NEW, IS_SUSPENDED, IS_BUSY, IS_ENDED };
typedef struct pawn {
  int state, line, status;
  struct pawn *inner; /* whose end it waits for */
  bool begun;
  void *result;
} pawn;
static pawn pawns[PLAYERS];
static int model_next(pawn *p, void *sent, void **value);
static int model_close(pawn *p) {
  int rc = 0;
  if (p->state == IS_SUSPENDED) {
    for (pawn *q = p; q != NULL; q = q->inner) q->status = -ECANCELED;
    rc = model_next(p, NULL, NULL);
    for (pawn *q = p; rc == 0 && q != NULL; q = q->inner) q->status = 0;
    return rc == 0 ? -EAGAIN : 0;
  }
  if (p->state == IS_NEW) p->state = IS_ENDED;
  return p->state == IS_BUSY ? -EBUSY : 0;
}
/* Whether it yields; else it ends. */
static bool model_goes_on(pawn *p, void *sent, void **value) {
  int me = (int)(p - pawns);
  bool comes_back = p->begun;
  p->begun = true;
  for (;; p->line++) {
    move m = move_of(me, p->line);
    pawn *q = &pawns[m.whom];
    void *got = NULL;
    int rc = 0;
    if (m.op == OP_YIELD && !comes_back) {
      *value = number(100 * me + p->line);
      return true;
    }
    if (m.op == OP_YIELD) {
      got = sent;
    } else if (m.op == OP_FROM) {
      if (!comes_back && q->state == IS_BUSY) {
        rc = -EBUSY;
      } else if (comes_back || q->state != IS_ENDED) {
        q->state = IS_BUSY;
        p->inner = q;
        if (model_goes_on(q, comes_back ? sent : NULL, value)) return true;
        q->state = IS_ENDED;
        p->inner = NULL;
        comes_back = true;
      }
      if (rc == 0) got = q->result;
    } else if (m.op == OP_NEXT) {
      rc = model_next(q, number(m.value), &got);
    } else if (m.op == OP_CLOSE) {
      rc = model_close(q);
    }
    if (comes_back) {
      rc = p->status;
      p->status = 0;
      comes_back = false;
    }
    if (m.op != OP_END) note(&expected, me, m.op, rc, got);
    if (m.op == OP_END ||
        (m.op <= OP_FROM && rc == -ECANCELED && m.gives_up)) {
      p->result = number(1000 + 100 * me + p->line);
      return false;
    }
  }
}
static int model_next(pawn *p, void *sent, void **value) {
  void *none;
  if (p->state == IS_BUSY) return -EBUSY;
  if (p->state == IS_ENDED) return -EPIPE;
  if (p->state == IS_NEW && sent != NULL) return -EINVAL;
  p->state = IS_BUSY;
  p->state = model_goes_on(p, sent, value != NULL ? value : &none)
                 ? IS_SUSPENDED
                 : IS_ENDED;
  return p->state == IS_SUSPENDED ? 0 : -EPIPE;
}

typedef struct turn {
  int whom;
  bool closes;
  void *sent;
} turn;
static void *take_turn(void *arg) {
  const turn *t = (const turn *)arg;
  void *value = NULL, *model_value = NULL;
  int rc, model_rc;
  noted.n = expected.n = 0;
  if (t->closes) {
    rc = conc_gen_close(&players[t->whom]);
    model_rc = model_close(&pawns[t->whom]);
  } else {
    rc = conc_gen_send(&players[t->whom], t->sent, &value);
    model_rc = model_next(&pawns[t->whom], t->sent, &model_value);
  }
  CHECK_EQ(rc, model_rc);
  CHECK_EQ((intptr_t)value, (intptr_t)model_value);
  CHECK_EQ(noted.n, expected.n);
  for (int i = 0; i < noted.n; i++)
    CHECK_EQ(noted.what[i], expected.what[i]);
  for (int i = 0; i < PLAYERS; i++)
    CHECK_EQ((intptr_t)conc_gen_result(&players[i]),
             (intptr_t)pawns[i].result);
  return NULL;
}
static void *try_programs(void *arg) {
  for (int round = 0; round < (TEST_TSAN || TEST_ASAN ? 50 : 500); round++) {
    program = test_random();
    memset(pawns, 0, sizeof pawns);
    for (int i = 0; i < PLAYERS; i++) {
      players[i] = gen(play, &players[i]);
      if (program >> i % 8 & 1) players[i].stack_size = 2 * CONC_STACK_SIZE;
    }
    for (int i = 0; i < 100; i++) {
      turn t = {(int)(test_random() % PLAYERS), test_random() % 8 == 0, NULL};
      conc_task other = task_of(take_turn, &t);
      if (!t.closes && pawns[t.whom].begun) t.sent = number(i);
      if (test_random() % 2 == 0 && conc_coro_start(&other) == 0)
        CHECK_EQ(conc_join(&other, CONC_FOREVER), 0);
      else
        take_turn(&t);
    }
    for (int i = 0; i < PLAYERS; i++)
      while (conc_gen_close(&players[i]) == -EAGAIN) continue;
  }
  return arg;
}
TEST(random_programs_do_as_python_would) { all_ways(try_programs); }

/* --- threads --- */

static void *use_from_elsewhere(void *arg) {
  conc_gen *g = (conc_gen *)arg;
  CHECK_EQ(conc_gen_next(g, NULL), -EPERM);
  CHECK_EQ(conc_gen_send(g, NULL, NULL), -EPERM);
  CHECK_EQ(conc_gen_close(g), -EPERM);
  return NULL;
}
static void elsewhere(conc_gen *g) {
  conc_task t = task_of(use_from_elsewhere, g);
  CHECK_EQ(conc_thread_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
}
static void *run_elsewhere(void *g) {
  elsewhere((conc_gen *)g); /* while it runs */
  conc_yield(NULL, NULL);
  return NULL;
}
TEST(a_generator_belongs_to_the_thread_that_began_it) {
  conc_gen g = gen(run_elsewhere, NULL);
  g.arg = &g;
  CHECK_EQ(conc_gen_next(&g, NULL), 0);
  elsewhere(&g);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  elsewhere(&g);
}

/* Two threads begin one at the same moment: one has it. */
typedef struct both {
  conc_gen gen;
  conc_barrier barrier;
  int had;
} both;
static void *begin_both(void *arg) {
  both *b = (both *)arg;
  int rc;
  conc_barrier_wait(&b->barrier, CONC_FOREVER);
  rc = conc_gen_next(&b->gen, NULL);
  if (rc == 0) __atomic_add_fetch(&b->had, 1, __ATOMIC_RELAXED);
  else CHECK_EQ(rc, -EPERM);
  conc_barrier_wait(&b->barrier, CONC_FOREVER);
  if (rc == 0) CHECK_EQ(conc_gen_close(&b->gen), 0);
  return NULL;
}
TEST(of_two_threads_that_begin_one_generator_one_has_it) {
  for (int i = 0; i < 500; i++) {
    both b;
    conc_task t[2];
    memset(&b, 0, sizeof b);
    b.gen = gen(count_to, number(2));
    b.barrier.parties = 2;
    for (int j = 0; j < 2; j++) {
      t[j] = task_of(begin_both, &b);
      CHECK_EQ(conc_thread_start(&t[j]), 0);
    }
    for (int j = 0; j < 2; j++) CHECK_EQ(conc_join(&t[j], CONC_FOREVER), 0);
    CHECK_EQ(b.had, 1);
  }
}

/* --- tasks that wait inside --- */

static int ticks;
static void *tick(void *arg) {
  (void)arg;
  while (conc_yield_now() == 0) ticks++;
  return NULL;
}
static conc_lock lock;
static int ends[2];
static bool asleep;
static void *waits_in_between(void *arg) {
  char c;
  int seen;
  CHECK(conc_current() == arg);
  seen = ticks;
  do CHECK_EQ(conc_sleep(1e-3), 0);
  while (ticks == seen); /* a sleep that is over when it begins is none */
  CHECK_EQ(conc_yield(number(1), NULL), 0);
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0); /* held by the other */
  CHECK_EQ(conc_lock_release(&lock), 0);
  CHECK_EQ(conc_yield(number(2), NULL), 0);
  CHECK_EQ(conc_read(ends[0], &c, 1, CONC_FOREVER), 1);
  CHECK_EQ(conc_yield(number(c), NULL), 0);
  asleep = true;
  CHECK_EQ(conc_sleep(CONC_FOREVER), -ECANCELED);
  CHECK_EQ(conc_yield(number(4), NULL), 0);
  return number(5);
}
static void *holds_the_lock(void *arg) {
  conc_task *other = (conc_task *)arg;
  CHECK_EQ(conc_lock_acquire(&lock, CONC_FOREVER), 0);
  for (int i = 0; i < 1000; i++) conc_yield_now();
  CHECK_EQ(conc_sleep(5e-3), 0);
  CHECK_EQ(conc_lock_release(&lock), 0);
  CHECK_EQ(conc_sleep(5e-3), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  while (!asleep) CHECK_EQ(conc_yield_now(), 0);
  CHECK_EQ(conc_cancel(other), 0);
  return NULL;
}
static void *resumes_what_waits(void *arg) {
  static conc_task t[2]; /* the first is left to the end of the loop */
  conc_gen g = gen(waits_in_between, conc_current());
  conc_gen outer = gen(delegate, &g);
  (void)arg;
  CHECK_EQ(pipe(ends), 0);
  t[0] = task_of(tick, NULL);
  t[1] = task_of(holds_the_lock, conc_current());
  CHECK_EQ(conc_coro_start(&t[0]), 0);
  CHECK_EQ(conc_coro_start(&t[1]), 0);
  expect(&outer, 1);
  expect(&outer, 2);
  expect(&outer, 'x');
  expect(&outer, 4);
  CHECK_EQ(conc_gen_next(&outer, NULL), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&outer), 5);
  close(ends[0]);
  close(ends[1]);
  return NULL;
}
TEST(the_task_waits_when_its_generator_does) {
  conc_task t = task_of(resumes_what_waits, NULL);
  CHECK_EQ(conc_run(&t), -ECANCELED); /* one of its waits was */
}

/* A generator that waits for one task cannot be resumed by another. */
static conc_event go_on;
static void *waits_for_event(void *arg) {
  CHECK_EQ(conc_event_wait(&go_on, CONC_FOREVER), 0);
  CHECK_EQ(conc_yield(conc_current(), NULL), 0);
  CHECK_EQ(conc_yield(conc_current(), NULL), 0);
  return arg;
}
static void *resumes_in_vain(void *arg) {
  conc_gen *g = (conc_gen *)arg;
  CHECK_EQ(conc_gen_next(g, NULL), -EBUSY);
  CHECK_EQ(conc_gen_close(g), -EBUSY);
  CHECK_EQ(conc_event_set(&go_on), 0);
  return NULL;
}
static void *resumes_then(void *arg) {
  void *value = NULL;
  CHECK_EQ(conc_gen_next((conc_gen *)arg, &value), 0);
  CHECK(value == conc_current());
  return NULL;
}
static void *two_tasks(void *arg) {
  conc_gen g = gen(waits_for_event, NULL);
  conc_task t = task_of(resumes_in_vain, &g);
  void *value = NULL;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_gen_next(&g, &value), 0);
  CHECK(value == conc_current());
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  t = task_of(resumes_then, &g); /* the next value is another task's */
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return arg;
}
TEST(a_generator_that_waits_is_busy) {
  conc_event_clear(&go_on);
  run(two_tasks, NULL);
}

/* From a loop to the thread, to the next loop. */
static void *resumes_some(void *arg) {
  conc_gen *g = (conc_gen *)arg;
  void *before = NULL, *after = NULL;
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(conc_gen_next(g, &before), 0);
    CHECK_EQ(conc_yield_now(), 0);
    CHECK_EQ(conc_gen_next(g, &after), 0);
    CHECK((intptr_t)after > (intptr_t)before);
  }
  return NULL;
}
static void *starts_some(void *arg) {
  conc_task t[20];
  for (int i = 0; i < 20; i++) {
    t[i] = task_of(resumes_some, arg);
    CHECK_EQ(conc_coro_start(&t[i]), 0);
  }
  for (int i = 0; i < 20; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  return NULL;
}
TEST(a_generator_outlives_loops_and_serves_many_tasks) {
  conc_gen inner = gen(count_to, number(100000)), g = gen(delegate, &inner);
  void *value = NULL;
  for (int i = 0; i < 5; i++) {
    run(starts_some, &g);
    resumes_some(&g);
  }
  CHECK_EQ(conc_gen_next(&g, &value), 0);
  CHECK_EQ((intptr_t)value, 5 * 420);
  while (conc_gen_next(&g, &value) == 0) continue;
  CHECK_EQ((intptr_t)value, 99999);
}

/* A loop inside of a generator: its coroutines are none. */
static void *is_no_generator(void *arg) {
  (void)arg;
  CHECK_EQ(conc_yield(NULL, NULL), -EPERM);
  CHECK_EQ(conc_sleep(1e-3), 0);
  all_ways_task(arg);
  return NULL;
}
static void *runs_a_loop(void *arg) {
  run(is_no_generator, arg);
  CHECK_EQ(conc_yield(number(1), NULL), 0);
  run(is_no_generator, arg);
  return NULL;
}
TEST(a_generator_may_run_a_loop) {
  conc_fn *target = try_delegation;
  conc_gen g = gen(runs_a_loop, &target);
  expect(&g, 1);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
}

static void *forks(void *arg) {
  int status;
  pid_t pid = fork();
  if (pid == 0) {
    CHECK_EQ(conc_yield(number(1), NULL), 0);
    return number(7);
  }
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK_EQ(conc_yield(number(2), NULL), 0);
  return arg;
}
static void *try_fork(void *arg) {
  pid_t before = getpid();
  conc_gen g = gen(forks, NULL);
  bool child;
  void *value = NULL;
  CHECK_EQ(conc_gen_next(&g, &value), 0);
  child = getpid() != before;
  CHECK_EQ((intptr_t)value, child ? 1 : 2);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  CHECK_EQ((intptr_t)conc_gen_result(&g), child ? 7 : 0);
  if (child) _exit(0);
  return arg;
}
TEST(a_fork_in_a_generator_has_it_on_both_sides) {
  if (TEST_TSAN) SKIP("its fork takes the generator for another thread");
  all_ways(try_fork);
}

/* --- stacks --- */

static void *large_frame(void *arg) {
  volatile char large[1 << 20]; /* not a generator's stack */
  for (size_t i = 0; i < sizeof large; i += 1024) large[i] = 1;
  CHECK_EQ(conc_yield(NULL, NULL), -EPERM);
  return large[1024] == 1 ? number(7) : arg;
}
static void *starts_process(void *arg) {
  conc_task p = task_of(large_frame, NULL);
  CHECK_EQ(conc_process_start(&p), 0);
  CHECK_EQ(conc_join(&p, 10), 0);
  CHECK_EQ(conc_exitcode(&p), 7);
  return arg;
}
static void *try_process(void *arg) {
  conc_gen g = gen(starts_process, NULL);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return arg;
}
TEST(a_process_from_a_generator_has_a_stack_of_its_own) {
  all_ways(try_process);
}

static int dig(int depth) {
  volatile char page[1024];
  page[0] = (char)depth;
  return depth == 0 ? 0 : dig(depth - 1) + (page[0] == (char)depth);
}
static void *digs(void *depth) {
  CHECK_EQ(conc_yield(number(dig((int)(intptr_t)depth)), NULL), 0);
  return NULL;
}
static void *try_stack_size(void *arg) {
  conc_gen g = gen(digs, number(2000));
  g.stack_size = 16 << 20;
  expect(&g, 2000);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  return arg;
}
TEST(a_generator_has_the_stack_it_asks_for) { all_ways(try_stack_size); }

/* However many delegate to each other, each before it has begun. */
static void *digs_deeper(void *depth) {
  intptr_t n = (intptr_t)depth;
  conc_gen inner = gen(digs_deeper, number(n - 1));
  int kilobytes = n % 5 == 0 ? 400 : 24;
  void *below = NULL;
  CHECK_EQ(dig(kilobytes), kilobytes);
  if (n % 7 == 0) CHECK_EQ(conc_yield(depth, NULL), 0);
  if ((n - 1) % 5 == 0) inner.stack_size = 1 << 20;
  if (n > 1) CHECK_EQ(conc_yield_from(&inner, &below), 0);
  CHECK_EQ(dig(kilobytes), kilobytes);
  CHECK(below == number(n - 1));
  return depth;
}
static void *try_depth(void *arg) {
  conc_gen g = gen(digs_deeper, number(699));
  for (int i = 693; i > 0; i -= 7) expect(&g, i);
  CHECK_EQ(conc_gen_next(&g, NULL), -EPIPE);
  CHECK(conc_gen_result(&g) == number(699));
  return arg;
}
TEST(delegation_is_as_deep_as_you_like) { all_ways(try_depth); }

static void *many_at_once(void *maps) {
  enum { N = 2000 };
  int n = 0;
  conc_gen *g = (conc_gen *)calloc(N, sizeof *g);
  for (int i = 0; i < N; i++) {
    g[i] = gen(count_to, number(3));
    expect(&g[i], 0);
  }
  for (int i = 0; i < N; i++) expect(&g[i], 1);
  for (int i = 0; i < N; i++) CHECK_EQ(conc_gen_close(&g[i]), 0);
  for (conc__coro *co = conc__this.spare; co != NULL; co = co->next)
    ((void **)maps)[n++] = co->map;
  CHECK_EQ(n, 64);
  free(g);
  return NULL;
}
TEST(a_thread_keeps_some_stacks_until_it_ends) {
  void *maps[64];
  unsigned char resident;
  conc_task t = task_of(many_at_once, maps);
  pthread_t foreign;
  for (int i = 0; i < 2; i++) {
    if (i == 0) {
      CHECK_EQ(conc_thread_start(&t), 0);
      CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
    } else {
      CHECK_EQ(pthread_create(&foreign, NULL, many_at_once, maps), 0);
      CHECK_EQ(pthread_join(foreign, NULL), 0);
    }
    for (int j = 0; j < 64; j++)
      CHECK(mincore(maps[j], 1, &resident) == -1 && errno == ENOMEM);
  }
}

TEST_MAIN
