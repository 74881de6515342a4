/* served.h: a manager in this process that serves one queue, "q", and clients
 * of it. After inside.h. */
#ifndef TEST_SERVED_H
#define TEST_SERVED_H
#include "child.h"
#include "test.h"

typedef struct served {
  conc_manager server; /* may have options before serve_queue */
  conc_queue *queue;
  conc_manager client; /* one that end() ends, too, if it is connected */
} served;

TEST_FN served nobody(void) {
  served s;
  memset(&s, 0, sizeof s);
  return s;
}

TEST_FN void serve_queue(served *s, conc_queue *queue) {
  conc_manager *m = &s->server;
  s->queue = queue;
  if (m->authkey == NULL) m->authkey = "abc";
  CHECK_EQ(conc_manager_register_queue(m, "q", queue), 0);
  CHECK_EQ(conc_manager_register_queue(m, "q", queue), -EEXIST);
  CHECK_EQ(conc_manager_start(m), 0);
  CHECK_EQ(conc_manager_start(m), -EBUSY);
}

TEST_FN void end(served *s) {
  if (s->client.state != NULL) conc_manager_shutdown(&s->client);
  CHECK_EQ(conc_manager_shutdown(&s->server), 0);
  CHECK_EQ(conc_manager_shutdown(&s->server), -EINVAL);
  conc_queue_free(s->queue);
}

TEST_FN conc_manager client_of(const served *s) {
  conc_manager m;
  memset(&m, 0, sizeof m);
  m.address = conc_manager_address(&s->server);
  m.authkey = "abc";
  return m;
}

/* Connects it, and returns its queue. */
TEST_FN conc_queue *join(conc_manager *m) {
  conc_queue *q;
  CHECK_EQ(conc_manager_connect(m, 5 * test_slow()), 0);
  q = conc_manager_get(m, "q");
  CHECK(q != NULL);
  return q;
}

TEST_FN conc_queue *join_as_client(const served *s, conc_manager *m) {
  *m = client_of(s);
  return join(m);
}

/* Whether a get waits in a queue of this process. */
TEST_FN bool somebody_waits(conc_queue *q) {
  bool yes;
  conc__mutex_lock(conc__fifo_put_guard(AS_FIFO(q)));
  yes = AS_FIFO(q)->getters.first != NULL;
  conc__mutex_unlock(conc__fifo_put_guard(AS_FIFO(q)));
  return yes;
}

/* Waits until so many tasks wait in the list of an object of this process. */
TEST_FN void until_waits(const void *of, const struct conc__waitlist *list,
                         size_t many) {
  double end = conc_now() + 20 * test_slow();
  for (;;) {
    const conc__waiter *w;
    size_t n = 0;
    conc__mutex_lock(conc__mutex_of(of));
    for (w = list->first; w != NULL; w = w->next) n++;
    conc__mutex_unlock(conc__mutex_of(of));
    if (n == many) return;
    CHECK(conc_now() < end);
    conc_sleep(0.001);
  }
}
#endif
