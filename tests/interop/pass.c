/* pass.c: a manager whose queues pass objects, for pass.py; or a client.
 *
 *   pass ADDRESS AUTHKEY [client]
 *
 * A client moves what is in get_task_queue to get_result_queue, up to a None.
 * A manager prints the address that it is bound to, and serves until its input
 * ends.
 * What is put into get_task_queue is taken as a value, copied part by part,
 * and put into get_result_queue; get_data_queue takes data alone. */
#include <stdio.h>
#include <unistd.h>

#include "../../conc.h"

static conc_queue *tasks, *results;

static conc_queue *serve(conc_manager *m, const char *name, int objects) {
  conc_queue_opts opts = {0};
  conc_queue *q;
  opts.name = name;
  opts.objects = objects;
  q = conc_queue_new(&opts);
  if (q) conc_manager_register_queue(m, name, q);
  return q;
}

/* A tuple is taken apart: each of its parts is a pickle of its own on the way.
   Anything else goes on as it is. */
static void *move(void *arg) {
  conc_value *v;
  while (conc_get_value(tasks, &v, CONC_FOREVER) == 0) {
    conc_value *w = NULL;
    int rc = 0;
    if (conc_value_type(v) == CONC_TUPLE && conc_value_size(v) == 2) {
      void *data = NULL;
      size_t size = 0;
      conc_value *part = NULL;
      rc = conc_pickle_dumps(conc_value_item(v, 1), 4 | CONC_PASS, &data,
                             &size);
      if (rc == 0) rc = conc_pickle_loads_objects(&part, data, size);
      if (rc == 0 && !conc_value_equal(part, conc_value_item(v, 1)))
        rc = -EPROTO;
      if (rc == 0) rc = conc_build(&w, "(OO)", conc_value_item(v, 0), part);
      conc_free(data);
      conc_value_free(part);
    }
    if (rc == 0) rc = conc_put_value(results, w ? w : v, CONC_FOREVER);
    if (rc != 0) conc_put_build(results, CONC_FOREVER, "s", conc_strerror(rc));
    conc_value_free(w);
    conc_value_free(v);
  }
  return arg;
}

static int be_client(conc_manager *m) {
  conc_value *v = NULL;
  int rc;
  m->objects = CONC_PASS;
  rc = conc_manager_connect(m, 10);
  if (rc != 0) return 3;
  tasks = conc_manager_get(m, "get_task_queue");
  results = conc_manager_get(m, "get_result_queue");
  if (!tasks || !results) return 4;
  while ((rc = conc_get_value(tasks, &v, 30)) == 0 &&
         conc_value_type(v) != CONC_NONE) {
    rc = conc_put_value(results, v, 30);
    conc_value_free(v);
    if (rc != 0) break;
  }
  if (rc != 0) fprintf(stderr, "pass: %s\n", conc_strerror(rc));
  else conc_value_free(v);
  return conc_manager_shutdown(m) == 0 && rc == 0 ? 0 : 5;
}

int main(int argc, char **argv) {
  conc_manager m = {0};
  conc_task mover = {0};
  conc_queue *data;
  char ignored;
  int rc;
  if (argc < 3) return 2;
  m.address = argv[1];
  m.authkey = argv[2];
  if (argc > 3) return be_client(&m);
  tasks = serve(&m, "get_task_queue", CONC_PASS);
  results = serve(&m, "get_result_queue", CONC_PASS);
  data = serve(&m, "get_data_queue", 0);
  rc = conc_manager_start(&m);
  if (rc < 0) {
    fprintf(stderr, "pass: %s: %s\n", argv[1], conc_strerror(rc));
    return 1;
  }
  mover.target = move;
  if (conc_thread_start(&mover) != 0) return 1;
  printf("%s\n", conc_manager_address(&m));
  fflush(stdout);
  while (read(0, &ignored, 1) > 0) continue;
  rc = conc_manager_shutdown(&m);
  conc_queue_close(tasks);
  conc_join(&mover, CONC_FOREVER);
  conc_queue_free(tasks);
  conc_queue_free(results);
  conc_queue_free(data);
  return rc < 0;
}
