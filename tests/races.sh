#!/bin/sh
# ThreadSanitizer and Helgrind see conc.h's locks as locks: they have nothing to
# say about code that uses them well, and report what is a race. The program is
# the balance that two threads change, with and without a lock.
: "${CC:=cc}" "${BUILD:=build/default}"
tmp=$BUILD/races
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
here=$(pwd)

cat >"$tmp/balance.c" <<EOS
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "$here/conc.h"

static const char *kind;
static int rounds;
static volatile int balance;
static conc_lock lock;
static conc_rlock rlock;
static conc_rwlock rwlock;
static conc_task tasks[2];
static conc_sem sem = {1, 0, NULL, {NULL, NULL}};
static conc_barrier start = {2, NULL, NULL, NULL, false, 0, 0, 0,
                             {NULL, NULL}};

static void change(int n) {
  balance = balance + n;
  balance = balance - n;
}

/* Without a lock, a race is there for certain if each thread has begun before
   the other one ends. The barrier does not say that: the first out of it may
   have ended when the second wakes up, and then all that it did was before.
   So each also waits until the other is here, by looking and with no lock. */
static void meet(int me) {
  static volatile int here[2];
  here[me] = 1;
  while (here[!me] == 0) sched_yield();
}

static void *run_thread(void *arg) {
  int i;
  if (conc_barrier_wait(&start, CONC_FOREVER) < 0) return NULL;
  for (i = 0; i < rounds; i++) {
    if (strcmp(kind, "lock") == 0) {
      CONC_WITH(&lock) change(i);
    } else if (strcmp(kind, "rlock") == 0) {
      CONC_WITH(&rlock) CONC_WITH(&rlock) change(i);
    } else if (strcmp(kind, "rwlock") == 0) {
      CONC_WITH_WRITE(&rwlock) change(i);
      CONC_WITH_READ(&rwlock) if (balance != 0) return NULL;
    } else if (strcmp(kind, "sem") == 0) {
      CONC_WITH(&sem) change(i);
    } else if (strcmp(kind, "read-only") == 0) {
      CONC_WITH_READ(&rwlock) { /* both at a time */
        if (conc_barrier_wait(&start, CONC_FOREVER) < 0) return NULL;
        change(i);
      }
    } else {
      if (i == 0) meet(arg == &tasks[1]);
      change(i);
    }
  }
  return arg;
}

int main(int argc, char **argv) { /* KIND ROUNDS */
  int i;
  if (argc != 3) return 1;
  kind = argv[1];
  rounds = atoi(argv[2]);
  for (i = 0; i < 2; i++) {
    tasks[i].target = run_thread;
    tasks[i].arg = &tasks[i];
    if (conc_thread_start(&tasks[i]) != 0) return 2;
  }
  for (i = 0; i < 2; i++)
    if (conc_join(&tasks[i], CONC_FOREVER) != 0) return 3;
  return balance != 0 || conc_result(&tasks[0]) == NULL ? 4 : 0;
}
EOS

# Some machines cannot run a program under it: their address space is laid out
# in a way that it does not know.
echo 'int main(void) { return 0; }' >"$tmp/empty.c"
if [ -n "$SANITIZE" ] && [ "$SANITIZE" != thread ]; then
  why="the programs are built with another sanitizer"
elif ! $CC -fsanitize=thread -o "$tmp/empty" "$tmp/empty.c" 2>/dev/null ||
  ! "$tmp/empty" 2>/dev/null; then
  why="$CC has no ThreadSanitizer that runs here"
fi
if [ -n "$why" ]; then
  echo "skip races: $why"
  exit 0
fi

run() { # KIND: under ThreadSanitizer; its status
  TSAN_OPTIONS=exitcode=66 "$tmp/tsan" "$1" 2000 >"$tmp/log" 2>&1
}
helgrind() { # KIND
  $helgrind --error-exitcode=66 "$tmp/helgrind" "$1" 100 >"$tmp/all" 2>&1
  status=$?
  # The end of main may meet a thread in a wake-up, of which Valgrind was told
  # not to report errors: three lines, none of which is a report.
  sed -e '/WARNING: exiting thread has error reporting disabled/d' \
    -e '/WARNING: possibly as a result of some mistake in the use/d' \
    -e '/WARNING: of the VALGRIND_DISABLE_ERROR_REPORTING macros/d' \
    "$tmp/all" >"$tmp/log"
  return $status
}
silent() { # TITLE COMMAND...: it succeeds, and says nothing
  title=$1
  shift
  if "$@" && [ ! -s "$tmp/log" ]; then
    echo "ok   races: $title"
  else
    head -30 "$tmp/log"
    echo "FAIL races: $title"
  fi
}
reported() { # TITLE COMMAND...: a race
  title=$1
  shift
  "$@"
  if [ $? -eq 66 ] && grep -q 'data race' "$tmp/log"; then
    echo "ok   races: $title"
  else
    head -30 "$tmp/log"
    echo "FAIL races: $title"
  fi
}
build() { # NAME OPTIONS...
  name=$1
  shift
  $CC -O1 -g -pthread "$@" -o "$tmp/$name" "$tmp/balance.c" >"$tmp/log" 2>&1
}

helgrind="valgrind -q --tool=helgrind"
if ! $CC -g -o "$tmp/empty" "$tmp/empty.c" 2>/dev/null ||
  ! $helgrind "$tmp/empty" >/dev/null 2>&1; then
  echo "skip races: no Helgrind"
else
  silent 'it compiles for Helgrind' build helgrind -DCONC_USE_HELGRIND
  for kind in lock rwlock; do
    silent "Helgrind sees a conc_$kind" helgrind $kind
  done
  reported 'Helgrind reports one without a lock' helgrind nothing
fi

silent 'it compiles for ThreadSanitizer' build tsan -fsanitize=thread
for kind in lock rlock rwlock sem; do
  silent "none under a conc_$kind" run $kind
done
for kind in nothing read-only; do
  reported "one without a lock is reported ($kind)" run $kind
done
