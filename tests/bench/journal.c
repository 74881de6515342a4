/* What it costs to keep messages in a journal.
 *
 *   journal [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * The limit, in the same run: the bare system calls of one that has nobody to
 * share with.
 *
 *   read       open a journal of a million messages, of which none is done, or
 *              each has come back once, or nine in ten are done
 *   put        puts that are answered, a second, by 1, 16 and 1,000 tasks at a
 *              time; the disk is waited for always, every second or never
 *   disk       write() of as many bytes and fdatasync(), or write() alone
 */
#define CONC_IMPLEMENTATION
#include "../../conc.h"

#include "bench.h"

static size_t messages = 1000000;
static double seconds = 0.5; /* of each measurement of puts */
static char path[80];
static const char text[200] = "a message";

static int count(const conc_journal_record *r, void *arg) {
  *(size_t *)arg += r->type == CONC_JOURNAL_PUT;
  return 0;
}

static conc__journal *open_journal(double sync, size_t *found) {
  conc__journal *j;
  *found = 0;
  return conc__journal_open(&j, path, sync, 0, count, found) == 0 ? j : NULL;
}

/* --- read --- */

enum { PUT_ONLY, RETURNED, DONE };
static size_t message_size;
static int what_happened;

static int write_many(conc__journal *j) {
  conc__ticket t;
  int rc = 0;
  for (size_t i = 1; i <= messages && rc == 0; i++) {
    conc_journal_record r;
    memset(&r, 0, sizeof r);
    r.serial = i;
    r.data = text;
    r.size = message_size;
    rc = conc__journal_put(j, &r, &t);
    /* Not waiting is not what a queue does; here it is the file that counts. */
    if (rc == 0) t.serial = 0, conc__journal_commit(j, &t, 0);
    if (rc == 0 && what_happened == RETURNED) {
      r.deliveries = 1;
      rc = conc__journal_back(j, &r, NULL);
    }
    if (rc == 0 && what_happened == DONE && i % 10 != 0)
      rc = conc__journal_done(j, &r, NULL);
  }
  return rc;
}

static double read_seconds(void *arg) {
  size_t found, left = what_happened == DONE ? messages / 10 : messages;
  conc__journal *j;
  double began, took;
  (void)arg;
  unlink(path);
  j = open_journal(CONC_FOREVER, &found);
  if (j == NULL) return NAN;
  if (what_happened == DONE) j->renew_never = true;
  if (write_many(j) != 0 || conc__journal_close(j) != 0) return NAN;
  began = bench_now();
  j = open_journal(CONC_FOREVER, &found);
  took = bench_now() - began;
  if (j == NULL || found != left) return NAN;
  conc__journal_close(j);
  unlink(path);
  return took;
}

static void read_row(const char *row, size_t size, int what) {
  double runs[BENCH_RUNS];
  if (!bench_wanted(row)) return;
  message_size = size;
  what_happened = what;
  for (int r = 0; r < bench_rounds; r++)
    runs[r] = bench_in_child(read_seconds, NULL);
  bench_print(row, "s", "conc", runs, (size_t)bench_rounds);
}

/* --- put --- */

static double put_sync;
static int put_tasks;
static bool put_coroutines;
static conc__journal *put_journal;
static unsigned put_count;
static double put_end;

static void *put_until(void *arg) {
  conc__ticket t;
  conc_journal_record r;
  (void)arg;
  while (bench_now() < put_end) {
    memset(&r, 0, sizeof r);
    r.serial = __atomic_add_fetch(&put_count, 1u, __ATOMIC_RELAXED);
    r.data = text;
    r.size = 100;
    if (conc__journal_put(put_journal, &r, &t) != 0 ||
        conc__journal_commit(put_journal, &t, CONC__NEVER) != 0)
      abort();
  }
  return NULL;
}

static void *put_all(void *arg) {
  conc_task *t = (conc_task *)calloc((size_t)put_tasks, sizeof *t);
  (void)arg;
  for (int i = 0; i < put_tasks; i++) {
    t[i].target = put_until;
    if ((put_coroutines ? conc_coro_start(&t[i]) : conc_thread_start(&t[i])) !=
        0)
      abort();
  }
  for (int i = 0; i < put_tasks; i++) conc_join(&t[i], CONC_FOREVER);
  free(t);
  return NULL;
}

static double puts_per_second(void *arg) {
  conc_task t;
  size_t found;
  double began;
  (void)arg;
  unlink(path);
  put_journal = open_journal(put_sync, &found);
  if (put_journal == NULL) return NAN;
  memset(&t, 0, sizeof t);
  t.target = put_all;
  put_count = 0;
  began = bench_now();
  put_end = began + seconds;
  if (put_coroutines) conc_run(&t);
  else put_all(NULL);
  began = put_count / (bench_now() - began);
  conc__journal_close(put_journal);
  unlink(path);
  return began;
}

static bool disk_waits;
static double bare_per_second(void *arg) {
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  double began = bench_now();
  unsigned n = 0;
  (void)arg;
  while (bench_now() - began < seconds) {
    if (write(fd, text, 144) != 144) return NAN;
    if (disk_waits && fdatasync(fd) != 0) return NAN;
    n++;
  }
  close(fd);
  unlink(path);
  return n / (bench_now() - began);
}

static double own_puts(void) { return bench_in_child(puts_per_second, NULL); }
static double bare_calls(void) { return bench_in_child(bare_per_second, NULL); }

static void put_rows(const char *how, double sync) {
  static const int tasks[] = {1, 16, 1000};
  char name[80];
  for (int i = 0; i < 3; i++) {
    put_sync = sync;
    disk_waits = sync <= 0;
    put_tasks = tasks[i];
    put_coroutines = tasks[i] > 16;
    snprintf(name, sizeof name, "put, %s: %d %s", how, tasks[i],
             put_coroutines ? "coroutines" : "threads");
    ROW(name, "puts/s", {"conc", own_puts},
        {disk_waits ? "limit: write() and fdatasync() by one"
                    : "limit: write() by one",
         bare_calls});
  }
}

int main(int argc, char **argv) {
  bench_begin(argc, argv, "Journal");
  bench_rounds = bench_quick ? BENCH_QUICK : 5;
  if (bench_quick) messages = 100000, seconds = 0.1;
  snprintf(path, sizeof path, "conc-bench-journal-%d", (int)getpid());
  printf("journal, in this directory, %zu messages\n", messages);
  read_row("read: 20 bytes each", 20, PUT_ONLY);
  read_row("read: 200 bytes each", 200, PUT_ONLY);
  read_row("read: 20 bytes each, each has come back", 20, RETURNED);
  read_row("read: 20 bytes each, nine in ten are done", 20, DONE);
  put_rows("always", 0);
  put_rows("every second", 1);
  put_rows("never", CONC_FOREVER);
  return 0;
}
