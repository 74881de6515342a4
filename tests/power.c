/* The power goes below a whole manager: what it has answered its clients is
   there again. The manager is this program once more, with a library that
   notes what it does to its journal (interop/powercut.c); its clients note what
   they are told. POWER_CUTS is the number of cuts (default 200). */
#include "powercut.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include "../conc.h"
#include "child.h"
#include "tasks.h"

enum { CLIENTS = 6, ROUNDS = 250, SERIALS = CLIENTS * ROUNDS };
#define LOG_BYTES ((size_t)32 << 20)

static log_head *events_log;
static char here[80], journal[96], log_path[96], address[96];

static conc_queue *open_queue(void) {
  conc_queue_opts o;
  memset(&o, 0, sizeof o);
  o.lease = 60;
  o.journal = journal;
  return conc_queue_new(&o);
}

static void name_all(const char *folder) {
  snprintf(here, sizeof here, "%s", folder);
  snprintf(journal, sizeof journal, "%s/journal", here);
  snprintf(log_path, sizeof log_path, "%s/log", here);
  snprintf(address, sizeof address, "%s/socket", here);
}

/* --- the manager, as a program of its own --- */

static int serve(const char *folder) {
  conc_manager m;
  conc_queue *q;
  char byte;
  memset(&m, 0, sizeof m);
  name_all(folder);
  m.address = address;
  m.authkey = "power";
  q = open_queue();
  CHECK_CHILD(q != NULL);
  CHECK_CHILD(conc_manager_register_queue(&m, "q", q) == 0);
  CHECK_CHILD(conc_manager_start(&m) == 0);
  while (read(0, &byte, 1) > 0) {
  }
  CHECK_CHILD(conc_manager_shutdown(&m) == 0);
  conc_queue_free(q);
  return 0;
}

static pid_t begin_manager(int *input) {
  const char *build = getenv("BUILD");
  char library[300], file[120], log[120], folder[100];
  int ends[2];
  pid_t pid;
  snprintf(library, sizeof library, "LD_PRELOAD=%s/interop/powercut.so",
           build != NULL ? build : "build/default");
  snprintf(file, sizeof file, "POWERCUT_FILE=%s", journal);
  snprintf(log, sizeof log, "POWERCUT_LOG=%s", log_path);
  snprintf(folder, sizeof folder, "POWER_SERVE=%s", here);
  if (access(library + 11, R_OK) != 0) SKIP("there is no powercut.so");
  CHECK_EQ(pipe(ends), 0);
  pid = begin_child();
  if (pid == 0) {
    dup2(ends[0], 0);
    close(ends[0]), close(ends[1]);
    putenv(library), putenv(file), putenv(log), putenv(folder);
    execl("/proc/self/exe", "power", (char *)NULL);
    _exit(CHECK_CHILD_FAILED);
  }
  close(ends[0]);
  *input = ends[1];
  return pid;
}

/* --- its clients --- */

static void note_told(unsigned serial, unsigned char state) {
  event e;
  memset(&e, 0, sizeof e);
  e.what = TOLD;
  e.serial = serial;
  e.state = state;
  log_event(events_log, &e);
}

/* Messages of all sizes, so that the file is made anew a few times. The number
   comes first. */
static size_t size_for(unsigned serial) {
  return sizeof serial + (serial % 7 == 0 ? 8000 : serial % 300);
}
static void make_message(unsigned serial, unsigned char *m) {
  memcpy(m, &serial, sizeof serial);
  for (size_t i = sizeof serial; i < size_for(serial); i++)
    m[i] = (unsigned char)(serial * 31 + i);
}

static void *be_client(void *arg) {
  const unsigned first = (unsigned)(uintptr_t)arg * ROUNDS;
  unsigned char m[9000];
  conc_manager manager;
  conc_queue *q;
  memset(&manager, 0, sizeof manager);
  manager.address = address;
  manager.authkey = "power";
  CHECK_EQ(conc_manager_connect(&manager, 10 * test_slow()), 0);
  q = conc_manager_get(&manager, "q");
  CHECK(q != NULL);
  for (unsigned i = 0; i < ROUNDS; i++) {
    conc_lease lease = {0};
    unsigned serial = first + i;
    ssize_t n;
    make_message(serial, m);
    note_told(serial, ASKED);
    CHECK_EQ(conc_put(q, m, size_for(serial), 20), 0);
    note_told(serial, THERE);
    if (i % 10 == 9) continue; /* some are left */
    n = conc_get_leased(q, &lease, m, sizeof m, 20);
    CHECK(n >= (ssize_t)sizeof serial);
    memcpy(&serial, m, sizeof serial);
    if (i % 13 == 5) {
      CHECK_EQ(conc_lease_release(&lease, 0), 0);
      continue;
    }
    note_told(serial, DONE_ASKED);
    CHECK_EQ(conc_lease_done(&lease), 0);
    note_told(serial, DONE_THERE);
  }
  CHECK_EQ(conc_manager_shutdown(&manager), 0);
  return NULL;
}

/* --- the cuts --- */

static void store_image(void) {
  int fd = open(journal, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  CHECK(fd >= 0);
  CHECK_EQ(write(fd, image.data, image.size), image.size);
  close(fd);
}

/* Opens what is left, and sees which messages are there. */
static void find_all(unsigned char *there) {
  unsigned char m[9000], right[9000];
  conc_queue *q = open_queue();
  conc_queue_counts c;
  ssize_t n;
  CHECK(q != NULL);
  CHECK_EQ(conc_queue_stats(q, &c), 0);
  CHECK_EQ(c.damaged, 0);
  memset(there, 0, SERIALS);
  while ((n = conc_get(q, m, sizeof m, 0)) >= 0) {
    unsigned serial;
    CHECK(n >= (ssize_t)sizeof serial);
    memcpy(&serial, m, sizeof serial);
    CHECK(serial < SERIALS && !there[serial]);
    make_message(serial, right);
    CHECK_EQ(n, size_for(serial));
    CHECK(memcmp(m, right, (size_t)n) == 0);
    there[serial] = 1;
  }
  CHECK_EQ(n, -ETIMEDOUT);
  conc_queue_free(q);
}

static void check_cut(size_t n) {
  static unsigned char state[SERIALS], there[SERIALS];
  told_before(n, state, SERIALS);
  unlink(journal);
  if (cut_at(n)) store_image();
  find_all(there);
  for (unsigned i = 0; i < SERIALS; i++) {
    if ((state[i] & THERE) && !(state[i] & DONE_ASKED) && !there[i])
      TEST_FAIL("cut at %zu: %u is lost", n, i);
    if ((state[i] & DONE_THERE) && there[i])
      TEST_FAIL("cut at %zu: %u is done", n, i);
    if (there[i] && !(state[i] & ASKED))
      TEST_FAIL("cut at %zu: %u was never put", n, i);
  }
}

TEST(a_power_cut_below_a_manager_loses_nothing_that_was_answered) {
  int cuts = (int)test_asked("POWER_CUTS", 200), input, fd;
  char folder[] = "/tmp/conc-power-XXXXXX";
  conc_task t[CLIENTS];
  unsigned renames = 0, syncs = 0;
  pid_t pid;
#ifndef __linux__
  SKIP("what is preloaded is for Linux");
#endif
  NEEDS_FORK;
  if (getenv("SANITIZE") != NULL && getenv("SANITIZE")[0] != 0)
    SKIP("a sanitizer must be loaded first");
  if (getenv("WRAPPER") != NULL && getenv("WRAPPER")[0] != 0)
    SKIP("it executes itself");
  CHECK(mkdtemp(folder) != NULL);
  name_all(folder);
  fd = open(log_path, O_RDWR | O_CREAT | O_EXCL, 0600);
  CHECK(fd >= 0);
  CHECK_EQ(ftruncate(fd, (off_t)LOG_BYTES), 0);
  events_log = (log_head *)mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE,
                                MAP_SHARED, fd, 0);
  CHECK((void *)events_log != MAP_FAILED);
  close(fd);
  events_log->room = LOG_BYTES - sizeof *events_log;
  pid = begin_manager(&input);
  for (int i = 0; i < 2000 && access(address, F_OK) != 0; i++) usleep(5000);
  for (int i = 0; i < CLIENTS; i++)
    start(conc_thread_start, &t[i], be_client, (void *)(uintptr_t)i);
  for (int i = 0; i < CLIENTS; i++) CHECK_EQ(conc_join(&t[i], 60), 0);
  close(input);
  reap(pid, 0);
  read_log(events_log);
  for (size_t i = 0; i < event_count; i++) {
    renames += events[i].what == RENAME;
    syncs += events[i].what == SYNC;
  }
  CHECK(renames > 1); /* it was made, and made anew */
  CHECK(syncs > 50);
  for (int i = 0; i < cuts; i++)
    check_cut(i == 0 ? event_count : test_random() % (event_count + 1));
  free(events);
  free(image.data);
  unlink(journal), unlink(log_path), unlink(address);
  CHECK_EQ(rmdir(here), 0);
}

int main(int argc, char **argv) {
  const char *folder = getenv("POWER_SERVE");
  return folder != NULL ? serve(folder) : test_main(argc, argv);
}
