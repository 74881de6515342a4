/* The journal of a queue: what was answered is there again, whatever ends the
   program, the system or the disk's space; what was refused is not; nothing is
   invented. From inside: the system calls by which files are written are the
   test's, to fail, to kill at each of them, or to be played back as a power
   cut would leave them.
   JOURNAL_CUTS is the number of power cuts (default 1000), JOURNAL_MESSAGES
   that of messages in a large file (default 1,000,000; with a sanitizer
   100,000). */
#include "test.h"

#include <sys/mman.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sched.h>
#include <sys/mount.h>
#endif

static ssize_t journal_pwrite(int fd, const void *data, size_t size, off_t at);
static int journal_ftruncate(int fd, off_t size);
static int journal_fdatasync(int fd);
static int journal_fsync(int fd);
static int journal_renameat(int a, const char *from, int b, const char *to);
static int journal_unlinkat(int directory, const char *name, int flags);
static int journal_openat(int directory, const char *name, int flags,
                          mode_t mode);

static ssize_t (*const real_pwrite)(int, const void *, size_t, off_t) = pwrite;
static int (*const real_ftruncate)(int, off_t) = ftruncate;
static int (*const real_fdatasync)(int) = fdatasync;
static int (*const real_fsync)(int) = fsync;

#define pwrite(fd, data, size, at) journal_pwrite(fd, data, size, at)
#define ftruncate(fd, size) journal_ftruncate(fd, size)
#define fdatasync(fd) journal_fdatasync(fd)
#define fsync(fd) journal_fsync(fd)
#define renameat(a, from, b, to) journal_renameat(a, from, b, to)
#define unlinkat(directory, name, flags) journal_unlinkat(directory, name, flags)
#define openat(directory, name, flags, mode)                                  \
  journal_openat(directory, name, flags, mode)
/* So that small files are made anew. */
static uint64_t renew_least = 1 << 20;
#define CONC__RENEW_LEAST renew_least
#define CONC__RENEW_SLICE ((uint64_t)512)
#define CONC__RENEW_AGAIN 0.01
#define CONC__STALLED_AGAIN 0.01
#include "inside.h"
#undef pwrite
#undef ftruncate
#undef fdatasync
#undef fsync
#undef renameat
#undef unlinkat
#undef openat
#include "powercut.h"
#include "tasks.h"

#include <sys/resource.h>

#define ALWAYS 0.0
#define NEVER CONC_FOREVER

/* --- the system calls --- */

static pthread_mutex_t calls_guard = PTHREAD_MUTEX_INITIALIZER;
static unsigned calls; /* that change a file or wait for the disk */
static unsigned kill_at; /* the process dies before that one; 0: never */
static unsigned syncs;   /* fdatasync() */
static unsigned renames; /* tried */
static int sync_fails;   /* by that errno, from now on */
static int gate_closed;  /* fdatasync() waits */
static int gate_waits;   /* how many do */
static off_t disk_size;  /* no file is larger than that; 0: no bound */
static int no_disk;      /* it is not waited for */

/* What happened, for a power cut. */
static void note(int what, int fd, const void *data, size_t size, off_t at);
static void note_inode(int what, ino_t inode, const void *data, size_t size,
                       off_t at);
static int recording;

static void begin_call(void) {
  unsigned n;
  pthread_mutex_lock(&calls_guard);
  n = ++calls;
  pthread_mutex_unlock(&calls_guard);
  if (n == kill_at) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
}

static ssize_t journal_pwrite(int fd, const void *data, size_t size,
                              off_t at) {
  off_t room = LOAD(disk_size);
  ssize_t n;
  begin_call();
  if (room > 0 && at + (off_t)size > room) {
    size = at < room ? (size_t)(room - at) / 2 : 0; /* some of it is there */
    if (size == 0) return errno = ENOSPC, -1;
  }
  pthread_mutex_lock(&calls_guard);
  n = real_pwrite(fd, data, size, at);
  if (n > 0) note(WRITE, fd, data, (size_t)n, at);
  pthread_mutex_unlock(&calls_guard);
  return n;
}
static int journal_ftruncate(int fd, off_t size) {
  int rc;
  begin_call();
  pthread_mutex_lock(&calls_guard);
  rc = real_ftruncate(fd, size);
  note(CUT, fd, NULL, 0, size);
  pthread_mutex_unlock(&calls_guard);
  return rc;
}
static int sync_now(int fd, int (*how)(int)) {
  struct stat st;
  int rc;
  begin_call();
  ADD_FETCH(gate_waits, 1);
  while (LOAD(gate_closed)) usleep(100);
  ADD_FETCH(gate_waits, -1);
  if (LOAD(sync_fails) != 0) return errno = LOAD(sync_fails), -1;
  rc = LOAD(no_disk) ? 0 : how(fd);
  pthread_mutex_lock(&calls_guard);
  if (rc == 0 && fstat(fd, &st) == 0)
    note(S_ISDIR(st.st_mode) ? SYNC_DIRECTORY : SYNC, fd, NULL, 0, 0);
  pthread_mutex_unlock(&calls_guard);
  return rc;
}
static int journal_fdatasync(int fd) {
  ADD_FETCH(syncs, 1);
  return sync_now(fd, real_fdatasync);
}
static int journal_fsync(int fd) { return sync_now(fd, real_fsync); }
static int journal_renameat(int a, const char *from, int b, const char *to) {
  struct stat st;
  int rc;
  begin_call();
  pthread_mutex_lock(&calls_guard);
  CHECK_EQ(fstatat(a, from, &st, 0), 0);
  rc = renameat(a, from, b, to);
  if (rc == 0) note_inode(RENAME, st.st_ino, NULL, 0, 0);
  ADD_FETCH(renames, 1);
  pthread_mutex_unlock(&calls_guard);
  return rc;
}
static int journal_unlinkat(int directory, const char *name, int flags) {
  begin_call();
  return unlinkat(directory, name, flags);
}

/* --- journals --- */

static const char *path_of(const char *what) {
  static char path[80];
  snprintf(path, sizeof path, "/tmp/conc-journal-%d%s", (int)getpid(), what);
  return path;
}
static char here[120]; /* the path of the test's journal */

static void clean(void) {
  char other[140];
  snprintf(here, sizeof here, "%s", path_of(""));
  snprintf(other, sizeof other, "%s.new", here);
  unlink(here);
  unlink(other);
}

static off_t size_of(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 ? st.st_size : -1;
}

/* What an opening has found, by serial number. */
enum { SERIALS = 1 << 16 };
typedef struct finding {
  conc_journal_record of[SERIALS]; /* with no pointers in it */
  unsigned check[SERIALS];         /* of a message's bytes and id */
  size_t messages, ids, lost, torn, last, top;
  bool disordered;
} finding;
static finding found;

static unsigned check_of(const void *data, size_t size, const char *id,
                         size_t id_size) {
  const unsigned char *p = (const unsigned char *)data;
  unsigned n = (unsigned)(size * 31 + id_size);
  while (size-- > 0) n = n * 33 + *p++;
  while (id_size-- > 0) n = n * 33 + (unsigned char)*id++;
  return n;
}

static int find(const conc_journal_record *r, void *arg) {
  (void)arg;
  if (r->type == CONC_JOURNAL_LOST || r->type == CONC_JOURNAL_TORN) {
    CHECK(r->lost > 0);
    if (r->type == CONC_JOURNAL_LOST) found.lost += r->lost;
    else found.torn += r->lost;
    return 0;
  }
  CHECK(r->serial > 0 && r->serial < SERIALS);
  CHECK(r->length >= 40 && r->at >= 128);
  if (r->type == CONC_JOURNAL_ID) found.ids++;
  if (r->type == CONC_JOURNAL_PUT) {
    found.messages++;
    if (r->serial < found.last) found.disordered = true;
    found.last = r->serial;
  }
  if (r->serial > found.top) found.top = r->serial;
  found.of[r->serial] = *r;
  found.check[r->serial] = check_of(r->data, r->size, r->id, r->id_size);
  return 0;
}

static void forget(void) {
  size_t n = found.top + 1;
  memset(found.of, 0, n * sizeof *found.of);
  memset(found.check, 0, n * sizeof *found.check);
  memset(&found.messages, 0, sizeof found - offsetof(finding, messages));
}

static int try_open(conc__journal **j, double sync, double keep) {
  forget();
  return conc__journal_open(j, here, sync, keep, find, NULL);
}
static conc__journal *open_it(double sync, double keep) {
  conc__journal *j;
  CHECK_EQ(try_open(&j, sync, keep), 0);
  return j;
}

/* The message that has this number. */
static char text[1 << 16];
static conc_journal_record message(uint64_t serial, size_t size) {
  conc_journal_record r;
  memset(&r, 0, sizeof r);
  r.serial = serial;
  r.size = size;
  r.data = text + serial % 64;
  r.priority = (int)(serial % 7);
  return r;
}
static void fill_text(void) {
  for (size_t i = 0; i < sizeof text; i++)
    text[i] = (char)(i * 7 + i / 256 * 13);
}
static int put(conc__journal *j, uint64_t serial, size_t size) {
  conc_journal_record r = message(serial, size);
  conc__ticket t;
  int rc = conc__journal_put(j, &r, &t);
  return rc != 0 ? rc : conc__journal_commit(j, &t, CONC__NEVER);
}
static int done(conc__journal *j, uint64_t serial, size_t size) {
  conc_journal_record r = message(serial, size);
  conc__ticket t;
  int rc = conc__journal_done(j, &r, &t);
  return rc != 0 ? rc : conc__journal_commit(j, &t, CONC__NEVER);
}
static int back(conc__journal *j, uint64_t serial, int deliveries,
                double due) {
  conc_journal_record r = message(serial, 0);
  conc__ticket t;
  int rc;
  r.deliveries = deliveries;
  r.due = due;
  rc = conc__journal_back(j, &r, &t);
  return rc != 0 ? rc : conc__journal_commit(j, &t, CONC__NEVER);
}
static bool is_there(uint64_t serial) {
  return found.of[serial].type == CONC_JOURNAL_PUT;
}
static bool is_right(uint64_t serial, size_t size) {
  conc_journal_record r = message(serial, size);
  return is_there(serial) && found.of[serial].size == size &&
         found.of[serial].priority == r.priority &&
         found.check[serial] == check_of(r.data, size, NULL, 0);
}

/* --- what is read again --- */

TEST(what_was_put_and_is_not_done_is_found_again) {
  conc__journal *j;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(conc__journal_serial(j), 0);
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(put(j, 2, 0), 0);
  CHECK_EQ(put(j, 3, 50000), 0);
  CHECK_EQ(put(j, 4, 1000), 0);
  CHECK_EQ(put(j, 5, 1024), 0);
  CHECK_EQ(back(j, 4, 3, 1.5e9), 0);
  CHECK_EQ(back(j, 3, 1, 1.5e9), 0);
  CHECK_EQ(back(j, 3, 2, 0), 0);
  CHECK_EQ(done(j, 1, 10), 0);
  CHECK_EQ(done(j, 5, 1024), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  for (int i = 0; i < 3; i++) {
    j = open_it(ALWAYS, 0);
    CHECK_EQ(found.messages, 3);
    CHECK(is_right(2, 0) && is_right(3, 50000) && is_right(4, 1000));
    CHECK_EQ(found.of[2].deliveries, 0);
    CHECK_EQ(found.of[3].deliveries, 2);
    CHECK_EQ(found.of[4].deliveries, 3);
    CHECK(found.of[4].due == 1.5e9 && found.of[3].due == 0);
    CHECK_EQ(found.lost, 0);
    CHECK(!found.disordered);
    CHECK_EQ(conc__journal_serial(j), 5);
    CHECK_EQ(conc__journal_close(j), 0);
  }
  clean();
}

static int read_all(const conc_journal_record *r, void *arg) {
  conc_value *v;
  int64_t number = 0;
  int *n = (int *)arg;
  ++*n;
  if (r->type == CONC_JOURNAL_PUT && r->value) {
    CHECK_EQ(conc_pickle_loads(&v, r->data, r->size), 0);
    CHECK_EQ(conc_value_int(v, &number), 0);
    CHECK_EQ(number, 42);
    conc_value_free(v);
  }
  return find(r, NULL);
}
static int stop_at_once(const conc_journal_record *r, void *arg) {
  (void)r, (void)arg;
  return 17;
}

TEST(anybody_reads_a_journal_while_it_is_open) {
  conc__journal *j;
  conc_journal_record r;
  conc__ticket t;
  conc__buffer b = {NULL, 0, 0, 0};
  conc_value *v;
  int n = 0;
  clean(), fill_text();
  j = open_it(ALWAYS, 60);
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(done(j, 1, 10), 0);
  CHECK_EQ(conc_build(&v, "i", 42), 0);
  CHECK_EQ(conc__pickle_encode(&b, v, 4), 0);
  conc_value_free(v);
  r = message(2, b.size);
  r.data = b.data;
  r.value = true;
  r.id = "an id";
  r.id_size = 5;
  r.put_at = conc__wall_clock();
  CHECK_EQ(conc__journal_put(j, &r, &t), 0);
  CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
  CHECK_EQ(back(j, 2, 7, 2e9), 0);
  forget();
  if (conc__file_locks()) {
    CHECK_EQ(conc_journal_read(here, read_all, &n), 0);
    CHECK_EQ(n, 4);
    CHECK_EQ(found.lost + found.torn, 0);
    CHECK_EQ(found.of[1].type, CONC_JOURNAL_DONE);
    CHECK_EQ(found.of[2].type, CONC_JOURNAL_BACK);
    CHECK_EQ(found.of[2].deliveries, 7);
    CHECK(found.of[2].due == 2e9);
    CHECK_EQ(conc_journal_read(here, stop_at_once, NULL), 17);
  } else {
    CHECK_EQ(conc_journal_read(here, read_all, &n), -EBUSY);
  }
  CHECK_EQ(conc__journal_close(j), 0);
  forget(), n = 0;
  CHECK_EQ(conc_journal_read(here, read_all, &n), 0);
  CHECK_EQ(n, 4);
  CHECK_EQ(conc_journal_read("/nowhere/at/all", read_all, &n), -ENOENT);
  CHECK_EQ(conc_journal_read("tests/journal.c", read_all, &n), -EPROTO);
  CHECK_EQ(conc_journal_read("/dev/null", read_all, &n), -EPROTO);
  conc__buffer_free(&b);
  clean();
}

TEST(what_is_no_journal_is_left_alone) {
  conc__journal *j;
  FILE *f;
  char other[140];
  clean();
  f = fopen(here, "w");
  CHECK(f != NULL);
  for (int i = 0; i < 100; i++) fputs("some text\n", f);
  fclose(f);
  CHECK_EQ(try_open(&j, ALWAYS, 0), -EPROTO);
  CHECK_EQ(size_of(here), 1000);
  CHECK_EQ(conc__journal_open(&j, "/tmp", ALWAYS, 0, find, NULL), -EISDIR);
  CHECK_EQ(conc__journal_open(&j, "/tmp/", ALWAYS, 0, find, NULL), -EISDIR);
  CHECK_EQ(conc__journal_open(&j, "/dev/null", ALWAYS, 0, find, NULL),
           -EPROTO);
  CHECK_EQ(conc__journal_open(&j, "/nowhere/a", ALWAYS, 0, find, NULL),
           -ENOENT);
  clean();
  /* By a symbolic link, which stays one. */
  snprintf(other, sizeof other, "%s", path_of(".link"));
  CHECK_EQ(symlink(here, other), 0);
  f = fopen(here, "w"); /* an empty file is one that is to be made */
  fclose(f);
  CHECK_EQ(chmod(here, 0640), 0);
  CHECK_EQ(conc__journal_open(&j, other, ALWAYS, 0, find, NULL), 0);
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  struct stat st;
  CHECK(lstat(other, &st) == 0 && S_ISLNK(st.st_mode));
  CHECK(stat(here, &st) == 0 && (st.st_mode & 0777) == 0640);
  CHECK(st.st_size > 128);
  unlink(other);
  clean();
}

/* Writes a batch as the journal's thread does it, which sleeps. */
static void write_batch(conc__journal *j, uint64_t serial, size_t size) {
  conc_journal_record r = message(serial, size);
  size_t total = (size_t)conc__record_total(size);
  conc__sheet *s = conc__sheet_new(total);
  CHECK(s != NULL);
  conc__record_fill(conc__sheet_bytes(s) + s->size, 'P', &r, size);
  s->size += total;
  CHECK_EQ(conc__journal_write(j, s), 0);
  conc__sheets_free(s);
}

/* However fast the old file grows, the new one is done soon, and no batch has
   to wait for much of it. */
TEST(a_new_file_keeps_up_with_what_is_written) {
  conc__journal *j;
  uint64_t serial = 1, left = 0;
  bool sleeps = false;
  int turns = 0;
  clean();
  renew_least = 1 << 20;
  no_disk = 1;
  j = open_it(NEVER, 0);
  for (; serial <= 100; serial++) CHECK_EQ(put(j, serial, 2000), 0);
  for (serial = 1; serial <= 90; serial++) CHECK_EQ(done(j, serial, 2000), 0);
  while (!sleeps) {
    conc__mutex_lock(conc__journal_guard(j));
    sleeps = j->idle.first != NULL;
    conc__mutex_unlock(conc__journal_guard(j));
    sched_yield();
  }
  renew_least = 1000;
  conc__renewal_begin(j);
  CHECK_EQ(j->renewal.stage, CONC__RENEW_SURVEY);
  for (serial = 101; j->renewal.stage != CONC__RENEW_NONE; serial++) {
    write_batch(j, serial, 8000);
    left = j->size - j->scan.at;
    conc__renewal_slice(j);
    CHECK(++turns < 100);
  }
  CHECK(renames > 0 && left <= 512 + 2 * 8040);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(NEVER, 0);
  CHECK(!is_there(90));
  for (turns = 91; turns < (int)serial; turns++)
    CHECK(is_right((uint64_t)turns, turns <= 100 ? 2000 : 8000));
  CHECK_EQ(conc__journal_close(j), 0);
  no_disk = 0;
  clean();
}

static int find_any(const conc_journal_record *r, void *arg) {
  *(uint64_t *)arg = r->serial;
  return 0;
}

/* A number that would be the last one is none of ours. */
TEST(a_journal_whose_numbers_are_at_their_end_is_refused) {
  conc__journal *j;
  uint64_t seen = 0;
  clean();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, UINT64_MAX / 2, 10), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK_EQ(conc__journal_open(&j, here, ALWAYS, 0, find_any, &seen), 0);
  CHECK_EQ(seen, UINT64_MAX / 2);
  CHECK_EQ(put(j, UINT64_MAX, 10), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK_EQ(conc__journal_open(&j, here, ALWAYS, 0, find_any, &seen), -EPROTO);
  clean();
}

static int refuse_found(const conc_journal_record *r, void *arg) {
  (void)r, (void)arg;
  return -ENOMEM;
}

TEST(a_finder_that_fails_ends_the_opening) {
  conc__journal *j = NULL;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK_EQ(conc__journal_open(&j, here, ALWAYS, 0, refuse_found, NULL),
           -ENOMEM);
  CHECK(j == NULL);
  j = open_it(ALWAYS, 0);
  CHECK(is_right(1, 10));
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

/* --- tails and bits --- */

static unsigned char *content;
static size_t content_size;
static void load(void) {
  FILE *f = fopen(here, "r");
  content = (unsigned char *)malloc(1 << 20);
  CHECK(f != NULL && content != NULL);
  content_size = fread(content, 1, 1 << 20, f);
  fclose(f);
}
static void store(const void *data, size_t size) {
  FILE *f = fopen(here, "w");
  CHECK(f != NULL && fwrite(data, 1, size, f) == size);
  fclose(f);
}

/* A small file that has everything. Message 1 is done, 2, 3, 4 are not; 5 is,
   and has an id. */
static void make_small(void) {
  conc__journal *j;
  conc_journal_record r;
  conc__ticket t;
  clean(), fill_text();
  j = open_it(ALWAYS, 1e6);
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(put(j, 2, 5), 0);
  CHECK_EQ(done(j, 1, 10), 0);
  r = message(3, 9);
  r.value = true;
  CHECK_EQ(conc__journal_put(j, &r, &t), 0);
  CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
  CHECK_EQ(back(j, 2, 2, 1e9), 0);
  r = message(5, 3);
  r.id = "five";
  r.id_size = 4;
  r.put_at = conc__wall_clock();
  CHECK_EQ(conc__journal_put(j, &r, &t), 0);
  CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
  CHECK_EQ(conc__journal_done(j, &r, &t), 0);
  CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
  CHECK_EQ(put(j, 4, 100), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  load();
}

/* Where the records of the file are. */
static uint64_t ends_at[64];
static int types[64], records;
static int note_end(const conc_journal_record *r, void *arg) {
  (void)arg;
  types[records] = r->type * 100 + (int)r->serial;
  ends_at[records++] = r->at + r->length;
  return 0;
}

/* Whether a record is in the first n bytes, zeros perhaps behind them. */
static bool is_whole(int i, size_t n, bool zeros) {
  while (zeros && n < ends_at[i] && content[n] == 0) n++;
  return ends_at[i] <= n;
}

TEST(a_torn_tail_is_cut_at_every_byte) {
  conc__journal *j;
  STORE(no_disk, 1);
  make_small();
  CHECK_EQ(conc_journal_read(here, note_end, NULL), 0);
  CHECK_EQ(records, 8);
  for (size_t n = 0; n <= content_size; n++)
    for (int tail = 0; tail < 3; tail++) {
      unsigned char *bytes = (unsigned char *)calloc(1, n + 100);
      size_t size = n + (tail > 0 ? 100 : 0);
      bool put_before[6] = {false, false, false, false, false, false};
      int rc;
      memcpy(bytes, content, n);
      if (tail == 2) /* else zeros */
        for (size_t i = n; i < size; i++)
          bytes[i] = (unsigned char)test_random();
      if (tail == 2 && n < content_size) /* surely not what was there */
        bytes[n] = (unsigned char)(content[n] ^ (1 + test_random() % 255));
      store(bytes, size);
      free(bytes);
      for (int i = 0; i < records; i++)
        if (is_whole(i, n, tail == 1) && types[i] < 200)
          put_before[types[i] % 100] = true;
      for (int i = 0; i < records; i++)
        if (is_whole(i, n, tail == 1) &&
            types[i] / 100 == CONC_JOURNAL_DONE)
          put_before[types[i] % 100] = false;
      rc = try_open(&j, NEVER, 1e6);
      if (size < 128 && size > 0) CHECK_EQ(rc, -EPROTO);
      else if (n >= 64 || size == 0) CHECK_EQ(rc, 0);
      if (rc != 0) continue;
      CHECK_EQ(found.lost, 0);
      for (int i = 1; i < 6; i++) {
        CHECK_EQ(is_there((uint64_t)i), put_before[i]);
        if (i != 5 && is_there((uint64_t)i))
          CHECK(found.check[i] ==
                check_of(text + i,
                         (size_t)(i == 1   ? 10
                                  : i == 2 ? 5
                                  : i == 3 ? 9
                                           : 100),
                         NULL, 0));
      }
      if (n % 8 != 0) {
        CHECK_EQ(conc__journal_close(j), 0);
        continue;
      }
      CHECK_EQ(put(j, 6, 20), 0);
      CHECK_EQ(conc__journal_close(j), 0);
      j = open_it(NEVER, 0);
      CHECK(is_right(6, 20));
      CHECK_EQ(found.lost, 0);
      CHECK_EQ(conc__journal_close(j), 0);
    }
  free(content);
  clean();
}

TEST(a_flipped_bit_is_told_and_invents_nothing) {
  conc__journal *j;
  finding *right = (finding *)malloc(sizeof *right);
  CHECK(right != NULL);
  STORE(no_disk, 1);
  make_small();
  j = open_it(ALWAYS, 1e6);
  CHECK_EQ(conc__journal_close(j), 0);
  store(content, content_size);
  *right = found;
  CHECK_EQ(found.messages, 3);
  CHECK_EQ(found.ids, 1);
  for (size_t n = 0; n < content_size; n++)
    for (int bit = 0; bit < 8; bit += 3) {
      bool missing = false;
      content[n] ^= (unsigned char)(1 << bit);
      store(content, content_size);
      content[n] ^= (unsigned char)(1 << bit);
      CHECK_EQ(try_open(&j, NEVER, 1e6), 0);
      for (int i = 1; i < 6; i++) {
        const conc_journal_record *is = &found.of[i], *was = &right->of[i];
        if (is->type == was->type) {
          CHECK_EQ(found.check[i], right->check[i]);
          CHECK_EQ(is->value, was->value);
          CHECK_EQ(is->priority, was->priority);
          if (is->deliveries != was->deliveries || is->due != was->due)
            missing = true; /* what has come back as if never delivered */
          continue;
        }
        missing = true;
        if (is->type == 0) continue;
        /* It is not known any more that it is done. */
        CHECK(is->type == CONC_JOURNAL_PUT && (i == 1 || i == 5));
      }
      if (missing && found.lost == 0) TEST_FAIL("byte %zu, bit %d", n, bit);
      if (n < 128) CHECK(!missing && found.lost == 0);
      CHECK_EQ(conc__journal_close(j), 0);
    }
  free(content);
  free(right);
  clean();
}

TEST(damage_before_it_was_on_the_disk_is_no_loss) {
  conc__journal *j;
  unsigned char *at;
  clean(), fill_text();
  /* What a power cut leaves of one batch: the first of its records is not
     there, the second is. */
  j = open_it(NEVER, 0); /* writes no S */
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(put(j, 2, 100), 0);
  CHECK_EQ(put(j, 3, 30), 0);
  CHECK_EQ(put(j, 4, 300), 0);
  CHECK_EQ(put(j, 5, 30), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  load();
  at = content + 128 + 40 + 56; /* there is an S in front */
  memset(at, 0, 100);       /* 2, in the head */
  at += 144 + 72;
  memset(at + 50, 0, 20);   /* 4, in the body */
  store(content, content_size);
  free(content);
  forget();
  CHECK_EQ(conc_journal_read(here, find, NULL), 0);
  CHECK_EQ(found.torn, 2);
  CHECK_EQ(found.lost, 0);
  for (int i = 0; i < 3; i++) { /* and never is */
    j = open_it(ALWAYS, 0);
    CHECK(is_right(1, 10) && is_right(3, 30) && is_right(5, 30));
    CHECK_EQ(found.messages, (size_t)(3 + i));
    CHECK_EQ(found.lost, 0);
    CHECK_EQ(put(j, (uint64_t)(6 + i), 30), 0);
    CHECK_EQ(conc__journal_close(j), 0);
    forget();
    CHECK_EQ(conc_journal_read(here, find, NULL), 0);
    CHECK_EQ(found.lost + found.torn, 0);
  }
  clean();
}

TEST(files_of_nonsense_open_or_do_not) {
  conc__journal *j;
  int opened = 0;
  STORE(no_disk, 1);
  make_small();
  for (int round = 0; round < 2000; round++) {
    unsigned char *bytes = (unsigned char *)malloc(content_size);
    memcpy(bytes, content, content_size);
    for (unsigned i = test_random() % 20 + 1; i > 0; i--)
      bytes[test_random() % content_size] = (unsigned char)test_random();
    if (test_random() % 2) { /* parts change places */
      size_t n = test_random() % (content_size / 2) / 8 * 8;
      size_t from = test_random() % (content_size - n) / 8 * 8;
      size_t to = test_random() % (content_size - n) / 8 * 8;
      memmove(bytes + to, bytes + from, n);
    }
    store(bytes, content_size);
    free(bytes);
    forget();
    conc_journal_read(here, find, NULL);
    if (try_open(&j, NEVER, 0) != 0) continue;
    opened++;
    CHECK_EQ(conc__journal_close(j), 0);
  }
  CHECK(opened > 0);
  free(content);
  clean();
}

/* --- one owner --- */

TEST(a_journal_has_one_owner) {
  conc__journal *j, *other;
  int status, ends[2];
  pid_t pid, heir;
  char c;
  NEEDS_FORK;
  clean(), fill_text();
  renew_least = 1000;
  j = open_it(ALWAYS, 0);
  for (int round = 0; round < 2; round++) {
    CHECK_EQ(conc__journal_open(&other, here, ALWAYS, 0, find, NULL), -EBUSY);
    pid = fork();
    if (pid == 0) {
      CHECK_CHILD(conc__journal_open(&other, here, ALWAYS, 0, find, NULL) ==
                  -EBUSY);
      conc__journal_close(j);
      CHECK_CHILD(conc__journal_open(&other, here, ALWAYS, 0, find, NULL) ==
                  -EBUSY);
      _exit(0);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    /* Also when it has got a new file. */
    for (uint64_t i = 1; i <= 100; i++) {
      CHECK_EQ(put(j, i, 50), 0);
      CHECK_EQ(done(j, i, 50), 0);
    }
    UNTIL(size_of(here) < 2500);
  }
  /* A child that lives on does not have it. */
  CHECK_EQ(pipe(ends), 0);
  heir = fork();
  if (heir == 0) {
    close(ends[1]);
    _exit(read(ends[0], &c, 1) != 0);
  }
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  close(ends[0]), close(ends[1]);
  CHECK_EQ(waitpid(heir, &status, 0), heir);
  CHECK_EQ(status, 0);
  clean();
}

/* A fork comes while the journal's file is opened, and another one while the
   new file is: no guard is in its way, and as its child may have the file, it
   is opened again. */
static int opens[2]; /* [1]: of a file that was not there */
static bool forks_in_open;
static int journal_openat(int directory, const char *name, int flags,
                          mode_t mode) {
  int fd = openat(directory, name, flags, mode), status;
  pid_t pid;
  if (!forks_in_open || !(flags & O_CREAT)) return fd;
  CHECK(fd >= 0);
  if (++opens[(flags & O_EXCL) != 0] > 1) return fd;
  CHECK(conc__mutex_try(&conc__own_guard));
  conc__mutex_unlock(&conc__own_guard);
  pid = fork();
  if (pid == 0) _exit(0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  return fd;
}

TEST(a_fork_while_a_journal_is_opened_does_not_wait_nor_get_it) {
  conc__journal *j;
  NEEDS_FORK;
  clean(), fill_text();
  opens[0] = opens[1] = 0;
  forks_in_open = true;
  j = open_it(ALWAYS, 0);
  forks_in_open = false;
  CHECK_EQ(opens[0], 2);
  CHECK_EQ(opens[1], 2); /* an empty file is made anew at once */
  CHECK_EQ(put(j, 1, 10), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK(is_right(1, 10));
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

TEST(a_forked_child_does_not_write) {
  conc__journal *j;
  conc_journal_record r;
  off_t before;
  int status;
  pid_t pid;
  NEEDS_FORK;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, 1, 10), 0);
  UNTIL(size_of(here) == 128 + 40 + 56 + 40); /* the last S is there */
  before = size_of(here);
  pid = fork();
  if (pid == 0) {
    CHECK_CHILD(put(j, 2, 10) == -EPERM);
    CHECK_CHILD(done(j, 1, 10) == -EPERM);
    CHECK_CHILD(back(j, 1, 1, 0) == -EPERM);
    r = message(1, 10);
    CHECK_CHILD(conc__journal_done(j, &r, NULL) == -EPERM);
    CHECK_CHILD(conc__journal_close(j) == 0);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  CHECK_EQ(size_of(here), before);
  CHECK_EQ(put(j, 3, 10), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK(is_right(1, 10) && !is_there(2) && is_right(3, 10));
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

/* A coroutine waits for a commit, and another one forks. */
static conc__journal *forking;
static int forked_rc;
static void *commit_in_fork(void *arg) {
  (void)arg;
  forked_rc = put(forking, 7, 10);
  return NULL;
}
static void *fork_meanwhile(void *arg) {
  conc_task t;
  int status;
  pid_t pid;
  (void)arg;
  STORE(gate_closed, 1);
  start(conc_coro_start, &t, commit_in_fork, NULL);
  UNTIL(LOAD(gate_waits) > 0);
  pid = fork();
  if (pid == 0) {
    CHECK_CHILD(conc_join(&t, 10) == 0 && forked_rc == -EPERM);
    _exit(0);
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  STORE(gate_closed, 0);
  CHECK_EQ(conc_join(&t, CONC_FOREVER), 0);
  CHECK_EQ(forked_rc, 0);
  return NULL;
}

TEST(a_commit_that_waits_ends_in_a_forked_child) {
  NEEDS_FORK;
  clean(), fill_text();
  forking = open_it(ALWAYS, 0);
  run(fork_meanwhile, NULL);
  CHECK_EQ(conc__journal_close(forking), 0);
  forking = open_it(ALWAYS, 0);
  CHECK(is_right(7, 10));
  CHECK_EQ(conc__journal_close(forking), 0);
  clean();
}

/* --- batches --- */

static conc__journal *shared;
static unsigned next_serial, ended;
static void *put_one(void *arg) {
  (void)arg;
  CHECK_EQ(put(shared, ADD_FETCH(next_serial, 1), 20), 0);
  ADD_FETCH(ended, 1);
  return NULL;
}
static void *put_many(void *arg) {
  enum { N = 100 };
  static conc_task t[N];
  unsigned before;
  (void)arg;
  next_serial = ended = 0;
  STORE(gate_closed, 1);
  before = LOAD(syncs);
  start(conc_coro_start, &t[0], put_one, NULL);
  UNTIL(LOAD(gate_waits) > 0); /* the first batch is on its way */
  for (int i = 1; i < N; i++) start(conc_coro_start, &t[i], put_one, NULL);
  UNTIL(LOAD(next_serial) == N);
  CHECK_EQ(LOAD(ended), 0);
  STORE(gate_closed, 0);
  for (int i = 0; i < N; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  CHECK_EQ(LOAD(syncs) - before, 2);
  return NULL;
}

TEST(all_that_comes_meanwhile_is_one_fdatasync) {
  clean(), fill_text();
  shared = open_it(ALWAYS, 0);
  run(put_many, NULL);
  CHECK_EQ(conc__journal_close(shared), 0);
  shared = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, 100);
  CHECK_EQ(conc__journal_close(shared), 0);
  clean();
}

TEST(the_disk_is_waited_for_always_now_and_then_or_never) {
  conc__journal *j;
  unsigned before;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  before = LOAD(syncs);
  for (uint64_t i = 1; i <= 10; i++) CHECK_EQ(put(j, i, 20), 0);
  CHECK_EQ(LOAD(syncs) - before, 10);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(NEVER, 0);
  before = LOAD(syncs);
  for (uint64_t i = 11; i <= 20; i++) CHECK_EQ(put(j, i, 20), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK_EQ(LOAD(syncs) - before, 0);
  j = open_it(1000, 0);
  CHECK_EQ(found.messages, 20);
  for (uint64_t i = 21; i <= 30; i++) CHECK_EQ(put(j, i, 20), 0);
  CHECK_EQ(LOAD(syncs) - before, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK_EQ(LOAD(syncs) - before, 1);
  j = open_it(0.02, 0);
  before = LOAD(syncs);
  CHECK_EQ(put(j, 31, 20), 0);
  UNTIL(LOAD(syncs) - before == 1);
  usleep(100000); /* nothing is new, so the disk has peace */
  CHECK_EQ(LOAD(syncs) - before, 1);
  CHECK_EQ(put(j, 32, 20), 0);
  UNTIL(LOAD(syncs) - before == 2);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, 32);
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

/* --- giving up --- */

static int commit_result[8], commits;
static void *commit_it(void *arg) {
  uint64_t serial = (uint64_t)(uintptr_t)arg;
  ADD_FETCH(commits, 1);
  commit_result[serial] = put(shared, serial, 2000);
  return NULL;
}
/* What was appended is written, as when a commit waits for it. */
static void send_on(conc__journal *j) {
  conc__mutex *guard = conc__journal_guard(j);
  conc__waiter *woken;
  conc__mutex_lock(guard);
  woken = conc__journal_nudge(j);
  conc__mutex_unlock(guard);
  conc__wake_all(woken);
  UNTIL(LOAD(gate_waits) > 0);
}

/* A commit that is not in time, or cancelled, takes its put back: when it is
   on its way, and when it still gathers. */
static void *give_up(void *coroutine) {
  conc_journal_record r;
  conc__ticket t[2], d;
  conc_task task[2];
  int (*how)(conc_task *) = coroutine ? conc_coro_start : conc_thread_start;
  clean(), fill_text();
  shared = open_it(ALWAYS, 0);
  CHECK_EQ(put(shared, 1, 10), 0);
  STORE(gate_closed, 1);
  for (int i = 0; i < 2; i++) {
    r = message((uint64_t)(2 + i), 300);
    CHECK_EQ(conc__journal_put(shared, &r, &t[i]), 0);
    send_on(shared); /* so the second one gathers */
  }
  r = message(1, 10);
  CHECK_EQ(conc__journal_done(shared, &r, &d), 0);
  CHECK_EQ(conc__journal_commit(shared, &t[0], 0), -ETIMEDOUT);
  CHECK_EQ(conc__journal_commit(shared, &t[1], conc__deadline(0.01)),
           -ETIMEDOUT);
  /* What is done is not undone by that. */
  CHECK_EQ(conc__journal_commit(shared, &d, 0), -ETIMEDOUT);
  STORE(gate_closed, 0);
  CHECK_EQ(put(shared, 4, 10), 0);
  STORE(gate_closed, 1);
  for (int i = 0; i < 2; i++) {
    commits = 0;
    start(how, &task[i], commit_it, (void *)(uintptr_t)(5 + i));
    UNTIL(LOAD(commits) > 0 && LOAD(gate_waits) > 0);
  }
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(conc_cancel(&task[i]), 0);
    CHECK_EQ(conc_join(&task[i], CONC_FOREVER), -ECANCELED);
    CHECK_EQ(commit_result[5 + i], -ECANCELED);
  }
  STORE(gate_closed, 0);
  CHECK_EQ(put(shared, 7, 10), 0);
  CHECK_EQ(conc__journal_close(shared), 0);
  shared = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, 2);
  CHECK(is_right(4, 10) && is_right(7, 10));
  CHECK_EQ(conc__journal_close(shared), 0);
  clean();
  return NULL;
}
TEST_BOTH(a_commit_that_is_given_up_takes_its_put_back, give_up)

/* --- a disk that is full, or fails --- */

static void full_disk(off_t bytes) {
  conc__journal *j;
  uint64_t serial = 0;
  int rc;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  STORE(disk_size, bytes);
  while ((rc = put(j, serial + 1, 100)) == 0) serial++;
  CHECK_EQ(rc, -ENOSPC);
  CHECK_EQ(put(j, serial + 1, 100), -ENOSPC);
  CHECK(size_of(here) <= bytes);
  CHECK(serial > 2);
  /* What is done is done, as soon as there is space. */
  while ((rc = done(j, 1, 100)) == 0) {
  }
  CHECK_EQ(rc, -ENOSPC);
  CHECK_EQ(done(j, 2, 100), -ENOSPC);
  CHECK_EQ(back(j, 3, 5, 0), -ENOSPC);
  CHECK_EQ(put(j, serial + 2, 100), -ENOSPC);
  STORE(disk_size, 0);
  CHECK_EQ(put(j, serial + 3, 100), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.lost, 0);
  CHECK_EQ(found.messages, serial - 2 + 1);
  CHECK(!is_there(1) && !is_there(2) && !is_there(serial + 1));
  CHECK(!is_there(serial + 2) && is_right(serial + 3, 100));
  CHECK_EQ(found.of[3].deliveries, 5);
  for (uint64_t i = 3; i <= serial; i++) CHECK(is_right(i, 100));
  CHECK_EQ(conc__journal_close(j), 0);
}

TEST(a_full_disk_refuses_puts_and_loses_nothing) {
  for (off_t bytes = 1000; bytes < 1200; bytes += 8) full_disk(bytes);
  clean();
}

TEST(what_is_done_takes_the_space_that_a_put_does_not_get) {
  conc__journal *j;
  conc_journal_record r;
  conc__ticket first, refused, d;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, 1, 100), 0);
  STORE(gate_closed, 1);
  r = message(1, 100);
  CHECK_EQ(conc__journal_back(j, &r, &first), 0);
  send_on(j);
  STORE(disk_size, size_of(here) + 100);
  CHECK_EQ(conc__journal_done(j, &r, &d), 0);
  r = message(2, 300);
  CHECK_EQ(conc__journal_put(j, &r, &refused), 0); /* of the same batch */
  STORE(gate_closed, 0);
  CHECK_EQ(conc__journal_commit(j, &first, CONC__NEVER), 0);
  CHECK_EQ(conc__journal_commit(j, &d, CONC__NEVER), 0);
  CHECK_EQ(conc__journal_commit(j, &refused, CONC__NEVER), -ENOSPC);
  STORE(disk_size, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

TEST(what_is_done_on_a_full_disk_is_said_again_by_itself) {
  conc__journal *j;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, 1, 100), 0);
  UNTIL(size_of(here) == 128 + 40 + 144 + 40); /* the last S is there */
  STORE(disk_size, size_of(here));
  CHECK_EQ(done(j, 1, 100), -ENOSPC);
  STORE(disk_size, 0);
  UNTIL(size_of(here) > 128 + 40 + 144 + 40);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, 0);
  STORE(disk_size, size_of(here));
  CHECK_EQ(put(j, 2, 100), -ENOSPC);
  CHECK_EQ(conc__journal_close(j), 0);
  STORE(disk_size, 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

TEST(a_limit_of_file_sizes_is_a_full_disk) {
  struct rlimit limit;
  conc__journal *j;
  uint64_t n = 0;
  int rc;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  limit.rlim_cur = 10000;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  while ((rc = put(j, n + 1, 500)) == 0) n++;
  CHECK_EQ(rc, -ENOSPC);
  limit.rlim_cur = limit.rlim_max;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  CHECK_EQ(put(j, n + 2, 500), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, n + 1);
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

TEST(a_small_file_system_that_is_full_loses_nothing) {
#ifdef __linux__
  conc__journal *j;
  char dir[80];
  uint64_t n = 0;
  int rc, fd;
  snprintf(dir, sizeof dir, "%s", path_of(".d"));
  CHECK_EQ(mkdir(dir, 0700), 0);
  if (unshare(CLONE_NEWNS) != 0 ||
      mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("none", dir, "tmpfs", 0, "size=128k") != 0) {
    rmdir(dir);
    SKIP("no file system may be mounted");
  }
  fill_text();
  snprintf(here, sizeof here, "%s/j", dir);
  fd = open(path_of(".d/other"), O_RDWR | O_CREAT, 0600);
  CHECK(fd >= 0);
  CHECK_EQ(real_pwrite(fd, text, 16384, 0), 16384);
  j = open_it(ALWAYS, 0);
  while ((rc = put(j, n + 1, 3000)) == 0) n++;
  CHECK_EQ(rc, -ENOSPC);
  CHECK(n > 10);
  /* Some space is kept, by which what is done is said. */
  CHECK_EQ(done(j, 1, 3000), 0);
  CHECK_EQ(put(j, n + 1, 3000), -ENOSPC);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, n - 1);
  /* Another file has had some of the space, and gives it back. */
  while ((rc = done(j, 2, 3000)) == 0) {
  }
  CHECK_EQ(rc, -ENOSPC);
  close(fd);
  unlink(path_of(".d/other"));
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.messages, n - 2);
  CHECK_EQ(found.lost, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK_EQ(umount(dir), 0);
  rmdir(dir);
#else
  SKIP("no tmpfs here");
#endif
}

TEST(a_disk_that_fails_is_never_believed_again) {
  conc__journal *j;
  conc_journal_record r;
  conc__ticket t[2];
  unsigned before;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, 1, 10), 0);
  STORE(gate_closed, 1);
  for (int i = 0; i < 2; i++) {
    r = message((uint64_t)(2 + i), 20);
    CHECK_EQ(conc__journal_put(j, &r, &t[i]), 0);
    send_on(j);
  }
  STORE(sync_fails, EIO);
  STORE(gate_closed, 0);
  CHECK_EQ(conc__journal_commit(j, &t[0], CONC__NEVER), -EIO);
  CHECK_EQ(conc__journal_commit(j, &t[1], CONC__NEVER), -EIO);
  STORE(sync_fails, 0);
  before = LOAD(calls);
  CHECK_EQ(put(j, 4, 10), -EIO);
  CHECK_EQ(done(j, 1, 10), -EIO);
  CHECK_EQ(back(j, 1, 1, 0), -EIO);
  CHECK_EQ(conc__journal_close(j), -EIO);
  CHECK_EQ(LOAD(calls), before);
  j = open_it(ALWAYS, 0);
  CHECK(is_right(1, 10) && !is_there(4));
  CHECK_EQ(found.lost, 0);
  CHECK_EQ(conc__journal_close(j), 0);
  /* Also if no task waits for the disk. */
  j = open_it(0.01, 0);
  STORE(sync_fails, ENOSPC);
  CHECK_EQ(put(j, 5, 10), 0);
  UNTIL(put(j, 6, 10) == -EIO);
  STORE(sync_fails, 0);
  CHECK_EQ(put(j, 7, 10), -EIO);
  CHECK_EQ(conc__journal_close(j), -EIO);
  clean();
}

/* --- a new file --- */

TEST(a_file_that_is_mostly_dead_is_made_anew) {
  conc__journal *j;
  struct stat st;
  conc_journal_record r;
  conc__ticket t;
  clean(), fill_text();
  renew_least = 4000;
  for (int keeps = 0; keeps < 2; keeps++) {
    clean();
    j = open_it(ALWAYS, keeps ? 1e6 : 0);
    CHECK_EQ(chmod(here, 0644), 0);
    r = message(1, 10);
    r.id = "known";
    r.id_size = 5;
    r.put_at = conc__wall_clock();
    CHECK_EQ(conc__journal_put(j, &r, &t), 0);
    CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
    CHECK_EQ(conc__journal_done(j, &r, &t), 0);
    CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
    CHECK_EQ(put(j, 2, 3000), 0);
    CHECK_EQ(put(j, 3, 30), 0);
    CHECK_EQ(back(j, 3, 4, 1e9), 0);
    for (uint64_t i = 4; i < 100; i++) {
      CHECK_EQ(put(j, i, 40), 0);
      CHECK_EQ(done(j, i, 40), 0);
    }
    UNTIL(size_of(here) < 3000 + 4000 + 4000 + 1000);
    CHECK(stat(here, &st) == 0 && (st.st_mode & 0777) == 0644);
    for (uint64_t i = 100; i < 200; i++) {
      CHECK_EQ(put(j, i, 40), 0);
      CHECK_EQ(done(j, i, 40), 0);
    }
    UNTIL(size_of(here) < 3000 + 4000 + 4000 + 1000);
    CHECK_EQ(conc__journal_close(j), 0);
    j = open_it(ALWAYS, 1e6);
    CHECK_EQ(found.messages, 2);
    CHECK(is_right(2, 3000) && is_right(3, 30) && !found.disordered);
    CHECK_EQ(found.of[3].deliveries, 4);
    CHECK(found.of[3].due == 1e9);
    CHECK_EQ(found.lost, 0);
    CHECK_EQ(found.ids, (size_t)keeps);
    if (keeps) {
      CHECK_EQ(found.of[1].type, CONC_JOURNAL_ID);
      CHECK_EQ(found.check[1], check_of(NULL, 0, "known", 5));
      CHECK(found.of[1].put_at == conc__from_microseconds(
                                      conc__to_microseconds(r.put_at)));
    }
    CHECK_EQ(conc__journal_serial(j), 199);
    CHECK_EQ(conc__journal_close(j), 0);
  }
  /* The highest serial number is known though nothing is left. */
  clean();
  j = open_it(ALWAYS, 0);
  for (uint64_t i = 1; i < 100; i++) {
    CHECK_EQ(put(j, i, 40), 0);
    CHECK_EQ(done(j, i, 40), 0);
  }
  UNTIL(size_of(here) < 5000);
  CHECK_EQ(conc__journal_close(j), 0);
  load();
  CHECK(conc__little_endian(content + 32, 8) > 5);
  store(content, 128);
  free(content);
  j = open_it(ALWAYS, 0);
  CHECK(conc__journal_serial(j) > 5);
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

TEST(a_file_that_has_become_damaged_is_not_made_anew) {
  conc__journal *j;
  int fd;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  CHECK_EQ(put(j, 1, 100), 0);
  CHECK_EQ(put(j, 2, 100), 0);
  fd = open(here, O_RDWR);
  CHECK_EQ(real_pwrite(fd, "damage", 6, 128 + 60), 6);
  close(fd);
  renew_least = 1000;
  for (uint64_t i = 3; i < 100; i++) {
    CHECK_EQ(put(j, i, 40), 0);
    CHECK_EQ(done(j, i, 40), 0);
  }
  CHECK_EQ(conc__journal_close(j), 0);
  CHECK(size_of(here) > 97 * 120); /* it was tried at 1,000 bytes */
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.lost, 1);
  CHECK_EQ(found.messages, 1);
  CHECK(is_right(2, 100));
  /* It was told now. */
  for (uint64_t i = 100; i < 110; i++) {
    CHECK_EQ(put(j, i, 40), 0);
    CHECK_EQ(done(j, i, 40), 0);
  }
  UNTIL(size_of(here) < 2500);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 0);
  CHECK_EQ(found.lost, 0);
  CHECK(found.messages == 1 && is_right(2, 100));
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

/* --- killed --- */

/* What the child has asked for, and what it was answered, in shared memory. */
static unsigned char *states;
static unsigned *shared_next;
static bool runs_on;

static void share_states(void) {
  if (states == NULL)
    states = (unsigned char *)mmap(NULL, SERIALS + 4096,
                                   PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(states != MAP_FAILED);
  memset(states, 0, SERIALS + 4096);
  shared_next = (unsigned *)(void *)(states + SERIALS);
}
static size_t size_for(uint64_t serial) {
  return serial % 50 == 7 ? 5000 : serial % 97;
}

static void told(unsigned serial, unsigned char what) {
  STORE(states[serial], (unsigned char)(states[serial] | what));
}

/* A few messages stay, the others are done. */
static void *work(void *arg) {
  unsigned n = (unsigned)(uintptr_t)arg;
  while (n-- > 0 || LOAD(runs_on)) {
    unsigned serial = ADD_FETCH(*shared_next, 1);
    if (serial >= SERIALS) break;
    told(serial, ASKED);
    if (put(shared, serial, size_for(serial)) != 0) break;
    told(serial, THERE);
    if (serial % 5 == 0) back(shared, serial, 1, 0);
    if (serial % 10 == 0) continue;
    told(serial, DONE_ASKED);
    if (done(shared, serial, size_for(serial)) != 0) break;
    told(serial, DONE_THERE);
  }
  return NULL;
}

static void check_states(void) {
  unsigned last = *shared_next < SERIALS ? *shared_next : SERIALS - 1;
  CHECK_EQ(found.lost, 0);
  for (unsigned i = 1; i <= last; i++) {
    unsigned char s = states[i];
    if ((s & THERE) && !(s & DONE_ASKED)) CHECK(is_right(i, size_for(i)));
    if (s & DONE_THERE) CHECK(!is_there(i));
    if (!(s & ASKED)) CHECK(!is_there(i));
    if (is_there(i)) CHECK(is_right(i, size_for(i)));
  }
}

static void work_in_child(double sync, unsigned n, int threads) {
  conc_task t[4];
  shared = open_it(sync, 0);
  *shared_next = (unsigned)conc__journal_serial(shared);
  for (int i = 0; i < threads; i++)
    start(conc_thread_start, &t[i], work, (void *)(uintptr_t)n);
  for (int i = 0; i < threads; i++) conc_join(&t[i], CONC_FOREVER);
  _exit(conc__journal_close(shared) != 0);
}

TEST(a_writer_that_is_killed_loses_nothing_that_was_answered) {
  NEEDS_FORK;
  clean(), fill_text(), share_states();
  renew_least = 20000;
  for (int round = 0; round < 30; round++) {
    conc__journal *j;
    int status;
    unsigned before = *shared_next;
    pid_t pid = fork();
    if (pid == 0) {
      runs_on = true;
      work_in_child(round % 2 ? NEVER : ALWAYS, 0, 4);
    }
    /* Not for ever: a child may hang in a sanitizer's locks. */
    for (int i = 0; i < 20000 && LOAD(*shared_next) < before + 20 &&
                    LOAD(*shared_next) < SERIALS - 9;
         i++)
      usleep(100);
    usleep(test_random() % 20000);
    kill(pid, SIGKILL);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status));
    j = open_it(ALWAYS, 0);
    check_states();
    CHECK_EQ(conc__journal_close(j), 0);
  }
  clean();
}

/* One thread puts and ends so much that the file is made anew, more than once;
   the process dies at each call that concerns a file. */
TEST(a_writer_that_is_killed_at_each_step_loses_nothing) {
  int status = 1;
  NEEDS_FORK;
  STORE(no_disk, 1);
  fill_text(), share_states();
  renew_least = 600;
  for (unsigned at = 1; status != 0 || at < 50; at++) {
    conc__journal *j;
    pid_t pid;
    clean(), share_states();
    pid = fork();
    if (pid == 0) {
      kill_at = calls + at;
      work_in_child(NEVER, 40, 1);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(status == 0 || WIFSIGNALED(status));
    j = open_it(ALWAYS, 0);
    check_states();
    CHECK_EQ(put(j, SERIALS - 1, 10), 0);
    CHECK_EQ(conc__journal_close(j), 0);
    j = open_it(ALWAYS, 0);
    CHECK(is_right(SERIALS - 1, 10));
    CHECK_EQ(conc__journal_close(j), 0);
    CHECK(at < 5000);
  }
  clean();
}

/* --- a power cut --- */

static void note_inode(int what, ino_t inode, const void *data, size_t size,
                       off_t at) {
  event e;
  if (!LOAD(recording)) return;
  memset(&e, 0, sizeof e);
  e.what = what;
  e.inode = inode;
  e.size = size;
  e.at = at;
  if (size > 0) {
    e.data = (unsigned char *)malloc(size);
    memcpy(e.data, data, size);
  }
  note_event(e);
}
static void note(int what, int fd, const void *data, size_t size, off_t at) {
  struct stat st;
  CHECK_EQ(fstat(fd, &st), 0);
  note_inode(what, st.st_ino, data, size, at);
}
static void note_told(unsigned serial, unsigned char state) {
  event e;
  memset(&e, 0, sizeof e);
  e.what = TOLD;
  e.serial = serial;
  e.state = state;
  pthread_mutex_lock(&calls_guard);
  note_event(e);
  pthread_mutex_unlock(&calls_guard);
}

static void *work_told(void *arg) {
  unsigned n = (unsigned)(uintptr_t)arg;
  /* It goes on until the file was made anew a few times. */
  while ((n > 0 || LOAD(renames) < 4) && LOAD(next_serial) < SERIALS - 99) {
    if (n > 0) n--;
    unsigned serial = ADD_FETCH(next_serial, 1);
    int rc;
    note_told(serial, ASKED);
    rc = put(shared, serial, size_for(serial));
    if (rc == -ENOSPC) {
      note_told(serial, 0); /* it was refused */
      continue;
    }
    CHECK_EQ(rc, 0);
    note_told(serial, THERE);
    if (serial % 10 == 0) continue;
    note_told(serial, DONE_ASKED);
    rc = done(shared, serial, size_for(serial));
    if (rc == 0) note_told(serial, DONE_THERE);
    else CHECK_EQ(rc, -ENOSPC);
  }
  return NULL;
}

/* Now and then there is no space. */
static bool disk_changes;
static void *change_disk(void *arg) {
  (void)arg;
  while (LOAD(disk_changes)) {
    STORE(disk_size, size_of(here) + (off_t)(test_random() % 500));
    usleep(300);
    STORE(disk_size, 0);
    usleep(20000); /* in which a new file may be made */
  }
  STORE(disk_size, 0);
  return NULL;
}

TEST(a_power_cut_loses_nothing_that_was_answered) {
  conc_task t[4], disk;
  int cuts = (int)test_asked("JOURNAL_CUTS", 1000);
  unsigned char *state = (unsigned char *)malloc(SERIALS);
  CHECK(state != NULL);
  clean(), fill_text();
  renew_least = 4000;
  STORE(no_disk, 1);
  STORE(recording, 1);
  shared = open_it(ALWAYS, 0);
  disk_changes = true;
  start(conc_thread_start, &disk, change_disk, NULL);
  for (int i = 0; i < 4; i++)
    start(conc_thread_start, &t[i], work_told, (void *)(uintptr_t)200);
  for (int i = 0; i < 4; i++) CHECK_EQ(conc_join(&t[i], CONC_FOREVER), 0);
  STORE(disk_changes, false);
  CHECK_EQ(conc_join(&disk, CONC_FOREVER), 0);
  conc__journal_close(shared);
  STORE(recording, 0);
  CHECK(renames > 3);
  for (int cut = 0; cut < cuts; cut++) {
    size_t n = (size_t)test_random() % (event_count + 1);
    bool named = cut_at(n);
    conc__journal *j;
    told_before(n, state, SERIALS);
    clean();
    if (named) store(image.data, image.size);
    j = open_it(ALWAYS, 0);
    CHECK_EQ(found.lost, 0);
    for (unsigned i = 1; i <= next_serial; i++) {
      if ((state[i] & THERE) && !(state[i] & DONE_ASKED))
        if (!is_right(i, size_for(i)))
          TEST_FAIL("cut %d at %zu: %u is lost", cut, n, i);
      if ((state[i] & DONE_THERE) && is_there(i))
        TEST_FAIL("cut %d at %zu: %u is done", cut, n, i);
      if (is_there(i) && !(state[i] & ASKED))
        TEST_FAIL("cut %d at %zu: %u was never put", cut, n, i);
      if (is_there(i)) CHECK(is_right(i, size_for(i)));
    }
    CHECK_EQ(put(j, SERIALS - 1, 10), 0);
    CHECK_EQ(conc__journal_close(j), 0);
    if (cut % 10 == 0) { /* and what was torn is no loss later */
      j = open_it(ALWAYS, 0);
      CHECK_EQ(found.lost, 0);
      CHECK(is_right(SERIALS - 1, 10));
      CHECK_EQ(conc__journal_close(j), 0);
    }
  }
  for (size_t i = 0; i < event_count; i++) free(events[i].data);
  free(events);
  free(image.data);
  free(state);
  clean();
}

/* --- memory --- */

static bool enough;
static bool fine(int rc) {
  if (rc == -ENOMEM) CHECK(!enough);
  else CHECK_EQ(rc, 0);
  return rc == 0;
}

/* A message that was answered is there again. */
static void tell_story(void) {
  conc__journal *j;
  bool is_put[120], is_done[120];
  int n = 0, rc;
  memset(is_put, 0, sizeof is_put);
  memset(is_done, 0, sizeof is_done);
  clean();
  if (!fine(try_open(&j, NEVER, 0))) return;
  for (uint64_t i = 1; i < 100; i++) {
    is_put[i] = fine(put(j, i, i % 20 == 0 ? 5000 : 30));
    if (is_put[i] && i % 8 != 0)
      is_done[i] = fine(done(j, i, i % 20 == 0 ? 5000 : 30));
  }
  fine(conc__journal_close(j));
  fine(conc_journal_read(here, read_all, &n));
  rc = try_open(&j, NEVER, 0);
  if (!fine(rc)) rc = try_open(&j, NEVER, 0); /* it does no harm */
  if (!fine(rc)) return;
  CHECK_EQ(found.lost, 0);
  for (uint64_t i = 1; i < 100; i++)
    CHECK_EQ(is_there(i), is_put[i] && !is_done[i]);
  fine(conc__journal_close(j));
}

TEST(without_memory_nothing_is_lost) {
  long left = 0, before;
  clean(), fill_text();
  renew_least = 500;
  enough = true;
  tell_story();
  enough = false;
  before = test_blocks;
  for (long n = 1; left == 0; n++) {
    STORE(test_fail_at, n);
    tell_story();
    left = __atomic_exchange_n(&test_fail_at, 0, __ATOMIC_ACQ_REL);
    if (left < 0) left = 0;
    if (LOAD(test_blocks) != before)
      TEST_FAIL("%ld blocks left when allocation %ld fails",
                LOAD(test_blocks) - before, n);
    CHECK(n < 2000);
  }
  clean();
}

TEST(a_put_that_is_too_long_is_refused) {
  conc__journal *j;
  conc_journal_record r;
  conc__ticket t;
  clean(), fill_text();
  j = open_it(ALWAYS, 0);
  r = message(1, 10);
  r.id = text;
  r.id_size = 65536;
  CHECK_EQ(conc__journal_put(j, &r, &t), -EMSGSIZE);
  r.id_size = 0;
  r.size = UINT32_MAX;
  CHECK_EQ(conc__journal_put(j, &r, &t), -EMSGSIZE);
  r = message(1, 10);
  r.id = text;
  r.id_size = 65535;
  CHECK_EQ(conc__journal_put(j, &r, &t), 0);
  CHECK_EQ(conc__journal_commit(j, &t, CONC__NEVER), 0);
  CHECK_EQ(conc__journal_close(j), 0);
  j = open_it(ALWAYS, 1e6);
  CHECK_EQ(found.of[1].id_size, 65535);
  CHECK_EQ(found.check[1], check_of(text + 1, 10, text, 65535));
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

/* --- many --- */

static size_t many_found;
static uint64_t many_last;
static int find_many(const conc_journal_record *r, void *arg) {
  (void)arg;
  CHECK_EQ(r->type, CONC_JOURNAL_PUT);
  CHECK(r->serial > many_last);
  many_last = r->serial;
  CHECK_EQ(r->size, 20);
  many_found++;
  return 0;
}

TEST(a_million_messages_are_read_in_seconds) {
  size_t n = (size_t)test_asked("JOURNAL_MESSAGES",
                                TEST_TSAN || TEST_ASAN ? 1e5 : 1e6);
  conc__ticket *t = (conc__ticket *)malloc(n * sizeof *t);
  conc__journal *j;
  double began;
  CHECK(t != NULL);
  clean(), fill_text();
  j = open_it(NEVER, 0);
  for (size_t i = 0; i < n; i++) {
    conc_journal_record r = message(i + 1, 20);
    CHECK_EQ(conc__journal_put(j, &r, &t[i]), 0);
  }
  for (size_t i = 0; i < n; i++)
    CHECK_EQ(conc__journal_commit(j, &t[i], CONC__NEVER), 0);
  free(t);
  CHECK_EQ(conc__journal_close(j), 0);
  began = test_now();
  CHECK_EQ(conc__journal_open(&j, here, NEVER, 0, find_many, NULL), 0);
  CHECK(test_now() - began < 15 * test_slow());
  CHECK_EQ(many_found, n);
  CHECK_EQ(conc__journal_close(j), 0);
  clean();
}

TEST_MAIN
