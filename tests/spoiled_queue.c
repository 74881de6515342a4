/* Shared memory that is not there, or that another program has spoiled: what
 * does not fit into /dev/shm, or is over a limit, is an error, and never a
 * signal; whatever stands in the memory of a queue, its calls return. */
#include "inside.h"
#include "child.h"
#include <limits.h>
#include <sys/resource.h>
#if CONC__LINUX
#include <sys/mount.h>
#endif

static conc__cells_queue *cells(conc_queue *q) {
  return (conc__cells_queue *)q;
}
static conc_queue *make(size_t capacity, size_t max_bytes, const char *name) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.capacity = capacity;
  o.max_bytes = max_bytes;
  o.shared = true;
  o.name = name;
  return conc_queue_new(&o);
}
static const char *new_name(void) {
  static char name[64];
  snprintf(name, sizeof name, "spoiled-%d", (int)getpid());
  return name;
}

static unsigned char message[65536], copy[65536];

/* --- blocks are used again --- */

TEST(one_message_at_a_time_uses_one_block) {
  conc_queue *q = make(1000, sizeof message, NULL);
  for (unsigned i = 0; i < 3000; i++) {
    size_t size = 1 + test_random() % sizeof message;
    message[0] = (unsigned char)i;
    message[size - 1] = (unsigned char)(i + 1);
    CHECK_EQ(conc_put(q, message, size, 0), 0);
    CHECK_EQ(conc_get(q, copy, sizeof copy, 0), size);
    CHECK(copy[size - 1] == (unsigned char)(i + 1));
  }
  CHECK_EQ(cells(q)->cells->blocks, 1);
  conc_queue_free(q);
}

/* Some stay in the queue, others come and go: no block is had twice, and no
   more get into use than the queue ever had, but for some that are set aside
   together. */
TEST(a_block_belongs_to_one_message) {
  enum { COUNT = 40 };
  conc_queue *q = make(COUNT, 2000, NULL);
  uint32_t in = 0, out = 0;
  for (int i = 0; i < 20000; i++) {
    uint32_t *m = (uint32_t *)(void *)message, *c = (uint32_t *)(void *)copy;
    if (in - out < 8 || (in - out < 30 && test_random() % 2)) {
      for (int k = 0; k < 100; k++) m[k] = in;
      CHECK_EQ(conc_put(q, m, in % 3 ? 400 : 40, 0), 0);
      in++;
    } else {
      CHECK_EQ(conc_get(q, c, 2000, 0), out % 3 ? 400 : 40);
      for (int k = 0; k < (out % 3 ? 100 : 10); k++) CHECK_EQ(c[k], out);
      out++;
    }
  }
  CHECK(cells(q)->cells->blocks <= 30);
  conc_queue_free(q);
}

/* --- no room --- */

/* A child with a /dev/shm of its own; 77 if that is not permitted. */
static pid_t in_small_shm(const char *size, void (*run)(void)) {
  pid_t pid = begin_child();
  if (pid == 0) {
#if CONC__LINUX
    if (unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, size) != 0)
      _exit(77);
    run();
    _exit(0);
#else
    (void)size, (void)run;
    _exit(77);
#endif
  }
  return pid;
}
static void small_shm(const char *size, void (*run)(void)) {
  int status = 0;
  pid_t pid = in_small_shm(size, run);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
    SKIP("no file system may be mounted");
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), 0);
}

/* What does not fit is refused; what fits goes on, before and after. */
static void fill_small_shm(void) {
  conc_queue *q = make(1024, 65536, "full"), *again;
  int n = 0, rc = 0;
  CHECK_CHILD(q != NULL);
  for (int i = 0; i < 3000; i++) {
    CHECK_CHILD(conc_put(q, message, sizeof message, 0) == 0);
    CHECK_CHILD(conc_get(q, copy, sizeof copy, 0) == sizeof copy);
  }
  while ((rc = conc_put(q, message, sizeof message, 0.01)) == 0) n++;
  CHECK_CHILD(rc == -ENOMEM && n > 10 && n < 64);
  CHECK_CHILD(conc_qsize(q) >= n);
  for (int i = 0; i < 2000; i++) {
    CHECK_CHILD(conc_get(q, copy, sizeof copy, 1) > 0);
    CHECK_CHILD(conc_put(q, message, sizeof message, 1) == 0);
    CHECK_CHILD(conc_put(q, message, sizeof message, 0) == -ENOMEM);
  }
  CHECK_CHILD(conc_put(q, message, 100, 0) == 0);
  again = make(1024, 65536, "another"); /* its cells do not fit */
  CHECK_CHILD(again == NULL && errno == ENOSPC);
  CHECK_CHILD(access("/dev/shm/conc.another", F_OK) != 0);
  conc_queue_free(q);
  CHECK_CHILD(access("/dev/shm/conc.full", F_OK) != 0);
}
TEST(a_small_file_system_is_no_signal) {
  NEEDS_FORK;
  small_shm("size=2m", fill_small_shm);
}
static void fill_tiny_shm(void) {
  CHECK_CHILD(make(1024, 4096, "tiny") == NULL && errno == ENOSPC);
  CHECK_CHILD(conc_shared_open("tiny", 65536, NULL, NULL) == NULL);
  CHECK_CHILD(errno == ENOSPC);
  CHECK_CHILD(conc_shared_open("tiny", (size_t)1 << 40, NULL, NULL) == NULL);
  CHECK_CHILD(errno == ENOSPC || errno == ENOMEM);
  CHECK_CHILD(access("/dev/shm/conc.tiny", F_OK) != 0);
}
TEST(a_full_file_system_is_no_signal) {
  NEEDS_FORK;
  small_shm("size=4k", fill_tiny_shm);
}

/* RLIMIT_FSIZE: SIGXFSZ would end the process. */
TEST(a_limit_of_files_is_no_signal) {
  struct rlimit limit;
  unsigned char *p;
  conc_queue *q;
  int a, b;
  limit.rlim_cur = limit.rlim_max = 100;
  NEEDS_FORK;
  if (test_wrapped("qemu")) SKIP("the limit is the emulator's, too");
  if (begin_child() == 0) {
    signal(SIGXFSZ, SIG_DFL);
    CHECK_CHILD(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    p = (unsigned char *)conc_shared_alloc(100000);
    CHECK_CHILD(p != NULL || !CONC_HAVE_MEMFD);
    if (p != NULL) p[99999] = 1;
    conc_shared_free(p);
    CHECK_CHILD(conc_shared_open(new_name(), 1000, NULL, NULL) == NULL);
    CHECK_CHILD(errno == EFBIG);
    q = make(10, 65536, new_name());
    CHECK_CHILD(q == NULL && errno == EFBIG);
    q = make(10, 65536, NULL);
    CHECK_CHILD(q != NULL || !CONC_HAVE_MEMFD);
    if (q != NULL) {
      CHECK_CHILD(conc_put(q, message, sizeof message, 0) == 0);
      conc_queue_free(q);
    }
    CHECK_CHILD(conc_pipe(&a, &b) == 0);
    CHECK_CHILD(conc_send(a, message, 1000, 0) == 0);
    CHECK_CHILD(conc_send(a, message, sizeof message, 0) == -EFBIG);
    CHECK_CHILD(conc_recv(b, copy, sizeof copy, 0) == 1000);
    CHECK_CHILD(conc_recv(b, copy, sizeof copy, 0) == -ETIMEDOUT);
    _exit(0);
  } else {
    int status = 0;
    CHECK(wait(&status) > 0);
    CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), 0);
  }
}

/* --- spoiled --- */

static unsigned *stop;

/* Puts and gets what there is, whatever comes. */
static void use(conc_queue *q, unsigned seed) {
  unsigned long long random = seed;
  conc_value *v;
  while (!LOAD(*stop)) {
    size_t size = test_random_of(&random) % 1500;
    ssize_t n;
    switch (test_random_of(&random) % 8) {
      case 0: case 1: conc_put(q, message, size, 1e-3); break;
      case 2: conc_put_build(q, 1e-3, "(is)", 1, "text"); break;
      case 3: conc_put_build(q, 0, "s", "a text of some length"); break;
      case 4:
        if (conc_get_value(q, &v, 1e-3) == 0) conc_value_free(v);
        break;
      case 5:
        conc_qsize(q), conc_peek_size(q), conc_task_done(q);
        conc_queue_join(q, 1e-4);
        break;
      default:
        n = conc_get(q, copy, size, 1e-3);
        CHECK_CHILD(n <= (ssize_t)size);
    }
  }
}
/* Every word of the queue in turn, and those of its registry, get random
   values, values next to those that they had, or another word's value. */
static void spoil(conc_queue *q, double seconds) {
  uint32_t *words = (uint32_t *)(void *)cells(q)->cells;
  uint32_t *registry = (uint32_t *)(void *)cells(q)->registry;
  size_t n = cells(q)->blocks_at / 4, at = 0;
  double until = test_now() + seconds;
  while (test_now() < until) {
    size_t i = at++ % (n + 1028);
    uint32_t *w = i < n ? &words[i] : &registry[i - n], v = LOAD(*w);
    switch (test_random() % 4) {
      case 0: v = test_random(); break;
      case 1: v ^= 1u << test_random() % 32; break;
      case 2: v = words[test_random() % n]; break;
      default: v = test_random() % 2 ? UINT_MAX : 0;
    }
    STORE(*w, v);
    if (at % 16 == 0) sched_yield();
  }
}
static void spoil_and_use(size_t capacity, size_t max_bytes,
                          const char *name) {
  conc_queue *q = make(capacity, max_bytes, name);
  pid_t pids[3];
  CHECK(q != NULL);
  stop = (unsigned *)conc_shared_alloc(sizeof *stop);
  for (unsigned i = 0; i < 3; i++)
    if ((pids[i] = begin_child()) == 0) {
      use(q, i + test_random());
      _exit(0);
    }
  spoil(q, test_asked("SPOIL_SECONDS", 0.15));
  STORE(*stop, 1);
  for (int i = 0; i < 3; i++) reap(pids[i], 0);
  conc_shared_free(stop);
  conc_queue_free(q);
}
TEST(whatever_stands_in_a_queue_its_calls_return) {
  NEEDS_FORK;
  spoil_and_use(1, 1500, NULL);
  spoil_and_use(5, 1500, new_name());
  spoil_and_use(64, 100, NULL);
  spoil_and_use(300, 1500, NULL);
}

/* One wrong number at a time, as it was found by others. */
TEST(one_wrong_number_is_an_error) {
  conc_queue *q = make(4, 2000, NULL);
  conc__cell *cell = conc__cell_at(cells(q), 0);
  conc__cells *c = cells(q)->cells;
  CHECK_EQ(conc_put(q, message, 1000, 0), 0);
  CHECK_EQ(conc_put(q, message, 8, 0), 0);
  cell->size = 0x7fffffff;
  CHECK_EQ(conc_peek_size(q), -EPROTO);
  CHECK_EQ(conc_get(q, copy, sizeof copy, 0), -EPROTO); /* and is gone */
  CHECK_EQ(conc_get(q, copy, sizeof copy, 0), 8);
  cells(q)->cells->head = cells(q)->cells->tail = UINT64_MAX;
  conc_put(q, message, 8, 0);
  conc_get(q, copy, sizeof copy, 0);
  conc_qsize(q);
  CHECK_EQ(conc_peek_size(q) < 0, 1);
  c->blocks = UINT_MAX;
  for (int i = 0; i < 4; i++) *conc__block_owner(cells(q), (size_t)i) = 1;
  conc_put(q, message, 1000, 0);
  conc_queue_free(q);
}

TEST_MAIN
