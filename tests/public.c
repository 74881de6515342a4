/* What is public and no other test asks for by name: versions, the types of
   values, options of queues, programs and managers. */
#include "test.h"
#include "../conc.h"

TEST(the_version_is_told_in_three_ways) {
  char text[40];
  snprintf(text, sizeof text, "%d.%d.%d", CONC_VERSION_MAJOR,
           CONC_VERSION_MINOR, CONC_VERSION_PATCH);
  CHECK_STR(text, CONC_VERSION);
  CHECK_STR(text, conc_version());
}

TEST(each_type_of_python_is_a_type_here) {
  static const struct {
    const char *pickle;
    size_t size;
    conc_type type;
  } of[] = {
      {"N.", 2, CONC_NONE}, {"\x88.", 2, CONC_BOOL}, {"K\1.", 3, CONC_INT},
      {"\x8a\x09\0\0\0\0\0\0\0\0\1.", 12, CONC_BIGINT},
      {"G\0\0\0\0\0\0\0\0.", 10, CONC_FLOAT}, {"\x8c\1a.", 4, CONC_STR},
      {"C\1a.", 4, CONC_BYTES},
      {"\x96\0\0\0\0\0\0\0\0.", 10, CONC_BYTEARRAY}, {"].", 2, CONC_LIST},
      {").", 2, CONC_TUPLE}, {"}.", 2, CONC_DICT}, {"\x8f.", 2, CONC_SET},
      {"(\x91.", 3, CONC_FROZENSET}};
  for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
    conc_value *v;
    CHECK_EQ(conc_pickle_loads(&v, of[i].pickle, of[i].size), 0);
    CHECK_EQ(conc_value_type(v), of[i].type);
    conc_value_free(v);
  }
}

TEST(a_queue_refuses_a_message_over_its_bound) {
  conc_queue_opts options;
  conc_queue *q;
  memset(&options, 0, sizeof options);
  options.max_bytes = 3;
  q = conc_queue_new(&options);
  CHECK_EQ(conc_put(q, "abcd", 4, 0), -EMSGSIZE);
  CHECK_EQ(conc_put(q, "abc", 3, 0), 0);
  conc_queue_free(q);
}

TEST(a_programs_errors_go_to_a_file) {
  static const char *const argv[] = {"sh", "-c", "echo words >&2", NULL};
  char name[] = "/tmp/conc-err-XXXXXX", text[20] = "";
  conc_popen p;
  int fd = mkstemp(name);
  memset(&p, 0, sizeof p);
  p.argv = argv;
  p.err_file = name;
  CHECK_EQ(conc_popen_start(&p), 0);
  CHECK_EQ(conc_join(&p.task, 30), 0);
  CHECK_EQ(read(fd, text, sizeof text - 1), 6);
  CHECK_STR(text, "words\n");
  close(fd), unlink(name);
}

static conc_local local;
static void *sets(void *arg) {
  CHECK_EQ(conc_local_set(&local, "name", arg), 0);
  return NULL;
}
static void *two_coroutines(void *arg) {
  conc_task t;
  memset(&t, 0, sizeof t);
  t.target = sets;
  t.arg = arg;
  CHECK_EQ(conc_coro_start(&t), 0);
  CHECK_EQ(conc_join(&t, 30), 0);
  CHECK((conc_local_get(&local, "name") != NULL) ==
        (local.scope == CONC_SCOPE_THREAD));
  return arg;
}
TEST(coroutines_share_what_is_the_threads) {
  for (int i = 0; i < 2; i++) {
    conc_task t;
    memset(&local, 0, sizeof local);
    local.scope = i == 0 ? CONC_SCOPE_THREAD : CONC_SCOPE_TASK;
    memset(&t, 0, sizeof t);
    t.target = two_coroutines;
    t.arg = &t;
    CHECK_EQ(conc_run(&t), 0);
    conc_local_free(&local);
  }
}

static void *serves(void *arg) {
  conc_manager *m = (conc_manager *)arg;
  CHECK_EQ(conc_manager_serve_forever(m), 0);
  return arg;
}
/* The key has a NUL in it, of which only .authkey_size knows. */
TEST(a_manager_serves_in_the_callers_thread_so_many_clients) {
  conc_manager m, client, other;
  char address[80];
  conc_queue *q = conc_queue_new(NULL);
  conc_task t;
  memset(&m, 0, sizeof m), memset(&t, 0, sizeof t);
  memset(&client, 0, sizeof client);
  snprintf(address, sizeof address, "/tmp/conc-public-%d", (int)getpid());
  m.address = client.address = address;
  m.authkey = client.authkey = "a\0b";
  m.authkey_size = client.authkey_size = 3;
  m.require_sha256 = client.require_sha256 = true;
  m.max_clients = 2;
  CHECK_EQ(conc_manager_register_queue(&m, "q", q), 0);
  t.target = serves;
  t.arg = &m;
  CHECK_EQ(conc_thread_start(&t), 0);
  while (conc_manager_connect(&client, 5) != 0) conc_sleep(0.01);
  memset(&other, 0, sizeof other);
  other.address = address;
  other.authkey = "a\0c";
  other.authkey_size = 3;
  CHECK(conc_manager_connect(&other, 0.2) != 0);
  CHECK_EQ(conc_put(conc_manager_get(&client, "q"), "x", 1, 5), 0);
  CHECK_EQ(conc_qsize(q), 1);
  CHECK_EQ(conc_manager_shutdown(&client), 0);
  CHECK_EQ(conc_manager_shutdown(&m), 0);
  CHECK_EQ(conc_join(&t, 30), 0);
  conc_queue_free(q);
}
TEST_MAIN
