/* distance.h: one queue at every distance: in this process, behind a manager,
 * and on a Redis. A test that is written with EVERYWHERE is three tests.
 * After inside.h. */
#ifndef TEST_DISTANCE_H
#define TEST_DISTANCE_H
#include "servers.h"
#include "tasks.h"

typedef enum distance_kind { NEAR, SERVED, ON_REDIS } distance_kind;

typedef struct distance {
  distance_kind kind;
  bool letters;           /* there is a queue for dead letters */
  conc_queue *q, *dead;   /* as the test uses them */
  conc_queue *own, *own_dead; /* as the server has them */
  conc_manager server, client;
  char address[128];
  redis at;
} distance;

/* Another client; NEAR has none: there it is the queue itself. */
TEST_FN conc_queue *distance_client(const distance *d, conc_manager *m) {
  conc_queue *q;
  memset(m, 0, sizeof *m);
  if (d->kind == NEAR) return d->own;
  m->address = d->address;
  if (d->kind == SERVED) m->authkey = "abc";
  CHECK_EQ(conc_manager_connect(m, 10 * test_slow()), 0);
  q = conc_manager_get(m, "q");
  CHECK(q != NULL);
  return q;
}

TEST_FN void distance_client_end(const distance *d, conc_manager *m) {
  if (d->kind != NEAR) CHECK_EQ(conc_manager_shutdown(m), 0);
}

/* Makes the queue "q", and if `letters` one for its dead letters, "dead". */
TEST_FN void distance_begin(distance *d, distance_kind kind,
                            conc_queue_opts o, bool letters) {
  memset(d, 0, sizeof *d);
  d->kind = kind;
  d->letters = letters;
  if (kind == ON_REDIS) NEEDS_REDIS;
  if (letters) {
    d->own_dead = d->dead = conc_queue_new(NULL);
    o.dead_letters = d->own_dead;
  }
  d->own = d->q = conc_queue_new(&o);
  CHECK(d->own != NULL);
  if (kind == NEAR) return;
  if (kind == ON_REDIS) {
    redis_begin(&d->at, "");
    d->server.address = d->at.address;
  } else {
    d->server.authkey = "abc";
  }
  if (letters)
    CHECK_EQ(conc_manager_register_queue(&d->server, "dead", d->own_dead), 0);
  CHECK_EQ(conc_manager_register_queue(&d->server, "q", d->own), 0);
  CHECK_EQ(conc_manager_start(&d->server), 0);
  snprintf(d->address, sizeof d->address, "%s",
           kind == ON_REDIS ? d->at.address
                            : conc_manager_address(&d->server));
  d->q = distance_client(d, &d->client);
  if (letters) {
    d->dead = conc_manager_get(&d->client, "dead");
    CHECK(d->dead != NULL);
  }
}

TEST_FN void distance_end(distance *d) {
  distance_client_end(d, &d->client);
  if (d->kind != NEAR) CHECK_EQ(conc_manager_shutdown(&d->server), 0);
  conc_queue_free(d->own);
  if (d->letters) conc_queue_free(d->own_dead);
  if (d->kind == ON_REDIS) redis_end(&d->at);
  conc__locals_end(conc_current()); /* its thread goes on */
}

#define EVERYWHERE(name)                              \
  static void name(distance_kind kind);               \
  TEST(name##_near) { name(NEAR); }                   \
  TEST(name##_served) { name(SERVED); }               \
  TEST(name##_on_Redis) { name(ON_REDIS); }           \
  static void name(distance_kind kind)
#define FAR_AWAY(name) /* only with a server */       \
  static void name(distance_kind kind);               \
  TEST(name##_served) { name(SERVED); }               \
  TEST(name##_on_Redis) { name(ON_REDIS); }           \
  static void name(distance_kind kind)

#endif
