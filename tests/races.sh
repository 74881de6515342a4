#!/bin/sh
# ThreadSanitizer and Helgrind see conc.h's locks as locks: they have nothing to
# say about code that uses them well, and report what is a race. The program is
# the balance that two threads change, with and without a lock.
: "${CC:=cc}" "${BUILD:=build/default}"
tmp=$BUILD/races
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
here=$(pwd)

cat >"$tmp/balance.c" <<EOS
#define CONC_IMPLEMENTATION
#include "$here/conc.h"

static volatile int balance;
static conc_lock lock;
static conc_rlock rlock;
static conc_rwlock rwlock;
static conc_sem sem = {1, 0, NULL, {NULL, NULL}};
static conc_barrier start = {2, NULL, NULL, NULL, false, 0, 0, 0,
                             {NULL, NULL}};

static void change(int n) {
  balance = balance + n;
  balance = balance - n;
}

static void *run_thread(void *arg) {
  int i;
  if (conc_barrier_wait(&start, CONC_FOREVER) < 0) return NULL;
  for (i = 0; i < ROUNDS; i++) {
#if defined(LOCK)
    CONC_WITH(&lock) change(i);
#elif defined(RLOCK)
    CONC_WITH(&rlock) CONC_WITH(&rlock) change(i);
#elif defined(RWLOCK)
    CONC_WITH_WRITE(&rwlock) change(i);
    CONC_WITH_READ(&rwlock) if (balance != 0) return NULL;
#elif defined(SEM)
    CONC_WITH(&sem) change(i);
#elif defined(READ_ONLY)
    CONC_WITH_READ(&rwlock) { /* both at a time */
      if (conc_barrier_wait(&start, CONC_FOREVER) < 0) return NULL;
      change(i);
    }
#else
    change(i);
#endif
  }
  return arg;
}

int main(void) {
  conc_task t[2];
  int i;
  (void)lock, (void)rlock, (void)rwlock, (void)sem;
  memset(t, 0, sizeof t);
  for (i = 0; i < 2; i++) {
    t[i].target = run_thread;
    t[i].arg = t;
    if (conc_thread_start(&t[i]) != 0) return 2;
  }
  for (i = 0; i < 2; i++)
    if (conc_join(&t[i], CONC_FOREVER) != 0) return 3;
  return balance != 0 || conc_result(&t[0]) == NULL ? 4 : 0;
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

run() { # NAME: builds and runs one variant; its status
  $CC -O1 -g -pthread -fsanitize=thread -DROUNDS=2000 -D"$1" -o "$tmp/$1" \
    "$tmp/balance.c" >"$tmp/log" 2>&1 &&
    TSAN_OPTIONS=exitcode=66 "$tmp/$1" >"$tmp/log" 2>&1
}
helgrind() { # NAME: the same
  $CC -O1 -g -pthread -DCONC_USE_HELGRIND -DROUNDS=100 -D"$1" \
    -o "$tmp/$1" "$tmp/balance.c" >"$tmp/log" 2>&1 &&
    $helgrind --error-exitcode=66 "$tmp/$1" >"$tmp/log" 2>&1
}
helgrind="valgrind -q --tool=helgrind"
if ! $CC -g -o "$tmp/empty" "$tmp/empty.c" 2>/dev/null ||
  ! $helgrind "$tmp/empty" >/dev/null 2>&1; then
  echo "skip races: no Helgrind"
else
  for kind in LOCK RWLOCK; do
    if helgrind $kind; then
      echo "ok   races: Helgrind sees a conc_$(echo $kind | tr A-Z a-z)"
    else
      head -30 "$tmp/log"
      echo "FAIL races: Helgrind sees a conc_$(echo $kind | tr A-Z a-z)"
    fi
  done
  helgrind NOTHING
  if [ $? -eq 66 ] && grep -q 'data race' "$tmp/log"; then
    echo "ok   races: Helgrind reports one without a lock"
  else
    head -30 "$tmp/log"
    echo "FAIL races: Helgrind reports one without a lock"
  fi
fi

for kind in LOCK RLOCK RWLOCK SEM; do
  if run $kind && [ ! -s "$tmp/log" ]; then
    echo "ok   races: none under a conc_$(echo $kind | tr A-Z a-z)"
  else
    head -30 "$tmp/log"
    echo "FAIL races: none under a conc_$(echo $kind | tr A-Z a-z)"
  fi
done
for kind in NOTHING READ_ONLY; do
  run $kind
  if [ $? -eq 66 ] && grep -q 'data race' "$tmp/log"; then
    echo "ok   races: one without a lock is reported ($kind)"
  else
    head -30 "$tmp/log"
    echo "FAIL races: one without a lock is reported ($kind)"
  fi
done
