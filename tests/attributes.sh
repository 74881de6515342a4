#!/bin/sh
# What compilers find in a program that defines CONC_STRICT, and that they find
# nothing in one that is right. Part of make test.
: "${CC:=cc}" "${CXX:=c++}" "${BUILD:=build/default}"
tmp=$BUILD/attributes
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
suite=attributes
. tests/try.sh
have() { command -v "${1%% *}" >/dev/null 2>&1; }
here=$(pwd)

# Each line that ends in a comment is a mistake, and the comment names who has
# to warn of it: `always` both, even without CONC_STRICT; `result` and `null`
# both, with it; `free` gcc alone; `lock` clang alone, by -Wthread-safety.
{ echo '#define _DEFAULT_SOURCE'; echo "#include \"$here/conc.h\""
  cat <<'EOS'; } >"$tmp/program.c"
#include <stdlib.h>
#include <string.h>
static conc_lock lock;
static conc_rlock rlock;
static conc_rwlock rwlock;
static conc_sem sem;
static conc_cond cond;
static int n CONC_GUARDED_BY(lock), m CONC_GUARDED_BY(rlock);
static int k CONC_GUARDED_BY(rwlock);
typedef struct account {
  conc_lock lock;
  int sum CONC_FIELD_GUARDED_BY(lock);
} account;
static int *other CONC_POINTEE_GUARDED_BY(lock) = NULL;
static account one;

/* What is right. */
static void add(int by) CONC_REQUIRES(lock);
static void add(int by) { n += by; }
static int value(void) CONC_REQUIRES_READ(rwlock);
static int value(void) { return k; }
static bool enter(void) CONC_TRY_ACQUIRES(true, lock) CONC_EXCLUDES(lock);
static bool enter(void) { return conc_lock_acquire(&lock, 1) == 0; }
static void enter_for_ever(void) CONC_ACQUIRES(lock);
static void enter_for_ever(void) {
  while (conc_lock_acquire(&lock, CONC_FOREVER) != 0) continue;
}
static void leave(void) CONC_RELEASES(lock);
static void leave(void) { conc_lock_release(&lock); }
static int blocks(int depth) {
  CONC_WITH(&lock) {
    n++;
    if (depth > 3) return n;
    if (depth > 2) goto out;
    add(1);
  } else return -1;
  for (int i = 0; i < 3; i++)
    CONC_WITH(&lock) {
      if (i == 1) break;
      n = i;
    }
  CONC_WITH(&lock) CONC_WITH(&rlock) {
    n = ++m;
    CONC_WITH(&rlock) m++;
  }
  CONC_WITH(&sem) CONC_WITH_READ(&rwlock) return value();
  CONC_WITH_WRITE(&rwlock) k = 1;
out:
  return 0;
}
static bool any(void *arg) {
  CONC_ASSUME_HELD(&lock);
  return arg != NULL || n > 0;
}
static int acquires(account *a) {
  int rc = conc_lock_acquire(&lock, 1);
  if (rc == -EOWNERDEAD) {
    CONC_ASSUME_HELD(&lock);
    n = 0;
  } else if (rc != 0) {
    return rc;
  }
  rc = conc_cond_wait_for(&cond, &lock, any, NULL, 1);
  n -= *other;
  conc_lock_release(&lock);
  if (conc_rlock_acquire(&rlock, 1) != 0) return -1;
  rc = conc_cond_wait(&cond, &rlock.lock, 1);
  m = rc;
  conc_rlock_release(&rlock);
  if (conc_rwlock_read_acquire(&rwlock, 1) == 0) {
    rc = value();
    conc_rwlock_release(&rwlock);
  }
  if (!conc_rwlock_write_acquire(&rwlock, 1)) {
    k = rc;
    conc_rwlock_release(&rwlock);
  }
  if (enter()) leave();
  enter_for_ever();
  leave();
  if (conc_lock_acquire(&a->lock, 1) != 0) return -1;
  a->sum++;
  conc_lock_release(&a->lock);
  return rc;
}
static int unchecked(void) CONC_UNCHECKED;
static int unchecked(void) { return n + m; }
static void *target(void *arg) { return arg; }
static int results(void) {
  conc_queue *queue = conc_queue_new(NULL);
  conc_task task;
  int rc, number = 1;
  if (queue == NULL) return -1;
  memset(&task, 0, sizeof task);
  task.target = target;
  rc = conc_thread_start(&task);
  if (rc == 0) rc = conc_put(queue, &number, sizeof number, 0);
  if (rc == 0) rc = (int)conc_get(queue, &number, sizeof number, 0);
  conc_join(&task, CONC_FOREVER);
  conc_event_set(&(conc_event){0});
  conc_queue_free(queue);
  return rc;
}
int right(void);
int right(void) {
  return blocks(1) + acquires(&one) + unchecked() + results();
}

/* What is wrong. */
int wrong(conc_queue *queue, conc_task *task, account *a);
int wrong(conc_queue *queue, conc_task *task, account *a) {
  char text[10];
  void *block = malloc(10);
  conc_queue_new(NULL); /* always */
  conc_shared_alloc(10); /* always */
  conc_connect("127.0.0.1:1", 1); /* always */
  conc_thread_start(task); /* result */
  conc_coro_start(task); /* result */
  conc_process_start(task); /* result */
  conc_put(queue, "a", 1, 1); /* result */
  conc_get(queue, text, sizeof text, 1); /* result */
  conc_sem_acquire(&sem, 1); /* result */
  if (conc_lock_acquire(NULL, 1) != 0) return 1; /* null */
  conc_event_set(NULL); /* null */
  conc_join(NULL, 1); /* null */
  free(block);
  return a->sum; /* lock */
}
int wrong_free(void);
int wrong_free(void) {
  conc_queue *queue = conc_queue_new(NULL);
  free(queue); /* free */
  return 0;
}
void unguarded(void);
void unguarded(void) {
  n++; /* lock */
  add(1); /* lock */
  CONC_WITH(&rlock) n++; /* lock */
  CONC_WITH(&lock) m = 0; /* lock */
  CONC_WITH(&lock) n++;
  n--; /* lock */
  *other = 0; /* lock */
  CONC_WITH_READ(&rwlock) k++; /* lock */
  CONC_WITH(&lock) leave();
  CONC_WITH(&lock) if (enter()) return; /* lock */
}
int kept(int i);
int kept(int i) {
  if (conc_lock_acquire(&lock, 1) != 0) return -1;
  if (i > 3) return 1;
  conc_lock_release(&lock);
  return 0;
} /* lock */
int twice(void);
int twice(void) {
  if (conc_lock_acquire(&lock, 1) != 0) return -1;
  leave();
  conc_lock_release(&lock); /* lock */
  return conc_cond_wait(&cond, &lock, 1); /* lock */
}
int again(void);
int again(void) {
  int rc;
  enter_for_ever();
  rc = enter(); /* lock */
  leave();
  return rc;
}
EOS
# C99's compound literal is no C++.
sed 's/&(conc_event){0}/\&task_event/; s/^static conc_sem sem;/&\
static conc_event task_event;/' "$tmp/program.c" >"$tmp/program.cpp"

# marked FILE KINDS: the lines that KINDS have to warn of.
marked() { grep -nE "/\* ($2) \*/$" "$1" | cut -d: -f1; }
# warned COMMAND...: those that are warned of.
warned() {
  "$@" 2>&1 | sort -u |
    sed -nE 's/^[^:]*program\.[a-z]*:([0-9]+):.*(warning|error): .*/\1/p' |
    sort -nu
}
# same KINDS FILE COMMAND...: these are the same lines, and it compiles.
same() {
  marked "$2" "$1" >"$tmp/marked"
  file=$2
  shift 2
  warned "$@" "$file" >"$tmp/warned"
  diff "$tmp/marked" "$tmp/warned" | sed -n "s/^</missed:/p; s/^>/besides:/p" |
    while read -r what line; do
      echo "$what line $line: $(sed -n "${line}p" "$file")"
    done
  "$@" -w "$file"
}
flags='-Wall -Wextra'
for cc in gcc clang; do
  for lang in c c++; do
    case $cc,$lang in
    gcc,c++) tool=g++ ;;
    clang,c++) tool=clang++ ;;
    *) tool=$cc ;;
    esac
    case $lang in
    c) file=$tmp/program.c std=-std=c99 ;;
    *) file=$tmp/program.cpp std=-std=c++11 ;;
    esac
    have "$tool" || { echo "skip attributes: there is no $tool"; continue; }
    kinds=always strict='always|result|null' what="$flags -fsyntax-only"
    if [ $cc = clang ]; then
      strict="$strict|lock" what="$what -Wthread-safety"
    elif [ "$($tool -dumpversion | cut -d. -f1)" -ge 11 ]; then
      # It looks for this when it makes code.
      kinds="always|free" strict="$strict|free"
      what="$flags -O1 -c -o $tmp/x.o"
    fi
    try "$tool $std: it finds what is wrong, and no more" \
      same "$strict" "$file" "$tool" $std $what -DCONC_STRICT
    try "$tool $std: and without CONC_STRICT what is lost" \
      same "$kinds" "$file" "$tool" $std $what
    try "$tool $std: and where all is static" \
      same "$strict" "$file" "$tool" $std $what -Wno-undefined-internal \
      -DCONC_STRICT -DCONC_STATIC
  done
done
if have tcc; then
  try 'tcc: it knows of nothing' tcc -Wall -DCONC_STRICT -c -o "$tmp/x.o" \
    "$tmp/program.c"
fi

# A program of one file: what the implementation does with its own calls is not
# the user's business.
{ echo '#define CONC_STRICT'; echo '#define CONC_IMPLEMENTATION'
  echo "#include \"$here/conc.h\""; } >"$tmp/whole.c"
warn="$(cat tests/warnings) -Wno-misleading-indentation -Werror"
for tool in 'clang -std=c99 -Wthread-safety' 'gcc -std=c11'; do
  have "$tool" || { echo "skip attributes: $tool: there is none"; continue; }
  try "$tool: the implementation, in such a file" $tool $warn -fsyntax-only \
    "$tmp/whole.c"
done
