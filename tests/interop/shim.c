/* shim.c: conc.h as a shared library, for Python's ctypes: lock_proxies.py.
 *
 * Python calls conc.h itself. What is here makes what a C program would
 * declare, for Python does not know its size; and it has one server and one
 * client, and turns messages into pickles. */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A kind of object is a letter: l, r: locks, e: an event, c: a condition,
   s: a semaphore, b: a barrier, q: a queue. */
void *shim_new(char kind, size_t n, size_t bound, int (*action)(void *arg));
int shim_serve(void);
int shim_connect(const char *address, const char *key);
int shim_register(char kind, const char *name, void *object, const char *lock);
void *shim_find(char kind, const char *name);
void *shim_lock_of(void *cond);
int shim_shutdown(void);
int shim_put(conc_queue *queue, const void *pickle, size_t size,
             double timeout);
int shim_get(conc_queue *queue, void **pickle, size_t *size, double timeout);

static conc_manager server, client;

/* What is made is freed by the system, at the end of the process. `n`: a
   semaphore's value, a barrier's parties, a queue's capacity. */
void *shim_new(char kind, size_t n, size_t bound, int (*action)(void *arg)) {
  if (kind == 'q') {
    conc_queue_opts opts = {0};
    opts.capacity = n;
    return conc_queue_new(&opts);
  }
  if (kind == 's') {
    conc_sem *sem = (conc_sem *)calloc(1, sizeof *sem);
    if (sem) sem->value = n, sem->bound = bound;
    return sem;
  }
  if (kind == 'b') {
    conc_barrier *barrier = (conc_barrier *)calloc(1, sizeof *barrier);
    if (barrier) barrier->parties = (int)n, barrier->action = action;
    return barrier;
  }
  return calloc(1, kind == 'l'   ? sizeof(conc_lock)
                   : kind == 'r' ? sizeof(conc_rlock)
                   : kind == 'e' ? sizeof(conc_event)
                                 : sizeof(conc_cond));
}

/* Serves in this process, and connects the client to that. */
int shim_serve(void) {
  int rc;
  server.authkey = "abc";
  rc = conc_manager_register_types(&server);
  if (rc == 0) rc = conc_manager_start(&server);
  return rc != 0 ? rc : shim_connect(conc_manager_address(&server), "abc");
}

int shim_connect(const char *address, const char *key) {
  client.address = address;
  client.authkey = key;
  return conc_manager_connect(&client, 10);
}

int shim_register(char kind, const char *name, void *p, const char *lock) {
  conc_manager *m = &server;
  switch (kind) {
    case 'l': return conc_manager_register_lock(m, name, (conc_lock *)p);
    case 'r': return conc_manager_register_rlock(m, name, (conc_rlock *)p);
    case 'e': return conc_manager_register_event(m, name, (conc_event *)p);
    case 'c': return conc_manager_register_cond(m, name, (conc_cond *)p, lock);
    case 's': return conc_manager_register_sem(m, name, (conc_sem *)p);
    case 'b': return conc_manager_register_barrier(m, name, (conc_barrier *)p);
    default: return conc_manager_register_queue(m, name, (conc_queue *)p);
  }
}

/* NULL, and errno. */
void *shim_find(char kind, const char *name) {
  switch (kind) {
    case 'l': return conc_manager_lock(&client, name);
    case 'r': return conc_manager_rlock(&client, name);
    case 'e': return conc_manager_event(&client, name);
    case 'c': return conc_manager_cond(&client, name);
    case 's': return conc_manager_sem(&client, name);
    case 'b': return conc_manager_barrier(&client, name);
    default: return conc_manager_get(&client, name);
  }
}

void *shim_lock_of(void *cond) {
  return conc_manager_cond_lock(&client, (conc_cond *)cond);
}

/* Ends the client, and the server if there is one. */
int shim_shutdown(void) {
  int rc = conc_manager_shutdown(&client);
  if (rc == 0 && conc_manager_address(&server) != NULL)
    rc = conc_manager_shutdown(&server);
  return rc;
}

int shim_put(conc_queue *queue, const void *pickle, size_t size,
             double timeout) {
  conc_value *value;
  int rc = conc_pickle_loads(&value, pickle, size);
  if (rc == 0) rc = conc_put_value(queue, value, timeout);
  conc_value_free(value);
  return rc;
}

/* *pickle is to be freed by conc_free. */
int shim_get(conc_queue *queue, void **pickle, size_t *size, double timeout) {
  conc_value *value;
  int rc = conc_get_value(queue, &value, timeout);
  *pickle = NULL;
  if (rc == 0) rc = conc_pickle_dumps(value, 0, pickle, size);
  conc_value_free(value);
  return rc;
}

#ifdef __cplusplus
}
#endif
