#!/bin/sh
# conc.h as others take it: dropped into fresh projects that know nothing of
# this one, by a stranger who has only read README.md.
#   vendor.sh      with $CC and $CXX (part of make test)
#   vendor.sh all  README's program with every compiler there is (make check)
unset MAKEFLAGS MAKELEVEL MFLAGS # for CMake's make
: "${CC:=cc}" "${CXX:=c++}" "${BUILD:=build/default}"
# tests/compile.sh has the one warning that takes gcc so much time.
warn='-Wall -Wextra -Wno-misleading-indentation'
here=$(pwd)
mkdir -p "$BUILD/vendor" || exit 1
root=$(cd "$BUILD/vendor" && pwd)
limit=
if command -v timeout >/dev/null 2>&1; then limit='timeout 60'; fi

have() { command -v "${1%% *}" >/dev/null 2>&1; }

suite=vendor tmp=$root
. tests/try.sh
skip() { echo "skip vendor: $1: there is no $2"; }

# A new folder with conc.h in it, to be in.
project() {
  rm -rf "${root:?}/$1" && mkdir "$root/$1" && cd "$root/$1" &&
    cp "$here/conc.h" . || exit 1
}
write() { cat >"$1"; }
prints() { # LINES COMMAND...
  expected=$1
  shift
  case $1 in ./* | out/*) set -- $limit "$@" ;; esac
  printed=$("$@") && [ "$printed" = "$expected" ] || {
    echo "printed: $printed"
    echo "but not: $expected"
    return 1
  }
}

# --- a stranger's path: README's first program, and the change to it ---

project stranger
awk '/^```c$/ { inside = 1; next } /^```/ && inside { exit } inside' \
  "$here/README.md" >main.c
expected=$(awk '/^\$ cc main\.c -pthread/ { inside = 1; next }
  /^```/ && inside { exit } inside' "$here/README.md")
try 'README.md has a first program, and says what it prints' \
  test -s main.c -a -n "$expected"
# The first ```diff as a patch: what it has without + must be in the program.
awk 'FILENAME ~ /README/ {
    if (/^```diff$/ && !seen) { inside = seen = 1; next }
    if (/^```/) inside = 0
    if (!inside) next
    minus += /^-/; plus += /^[+]/
    if (!/^[+]/) before = before substr($0, 2) "\n"
    if (!/^-/) after = after substr($0, 2) "\n"
    next
  }
  { program = program $0 "\n" }
  END {
    at = before == "" ? 0 : index(program, before)
    if (at && minus && plus)
      printf "%s", substr(program, 1, at - 1) after \
        substr(program, at + length(before))
  }' "$here/README.md" main.c >coroutine.c
try 'README.md has a change to it' test -s coroutine.c
starts_none() { ! grep thread_start coroutine.c; }
try '... by which it starts no thread' starts_none
every=$1
case $every in
all) set -- gcc clang tcc 'g++ -x c++' 'clang++ -x c++' ;;
*) set -- "$CC" "$CXX -x c++" ;;
esac
for compiler; do
  have "$compiler" || { skip "README's program by $compiler" "$compiler"
    continue; }
  for program in main coroutine; do
    rm -f a.out
    try "README's $program.c by $compiler" $compiler $program.c -pthread
    try '... and it prints what README.md says' prints "$expected" ./a.out
  done
done
[ "$every" != all ] || exit 0

# --- a project of two files, in C and in C++ ---

two_files() {
  write main.c <<'EOS'
#include "square.h"
#include <stdio.h>
int main(void) {
  int n = square_in_thread(7);
  printf("%d %s\n", n, conc_version());
  return n != 49;
}
EOS
  write square.h <<'EOS'
#include "conc.h"
#ifdef __cplusplus
extern "C"
#endif
int square_in_thread(int n);
EOS
  write square.c <<'EOS'
#define CONC_IMPLEMENTATION
#include "conc.h"
#include "square.h"
static void *square(void *arg) {
  int *n = (int *)arg;
  *n *= *n;
  return n;
}
int square_in_thread(int n) {
  conc_task t = {};
  t.target = square;
  t.arg = &n;
  if (conc_thread_start(&t) != 0 || conc_join(&t, CONC_FOREVER) != 0) return 0;
  return *(int *)conc_result(&t);
}
EOS
}
version=$(sed -n 's/^#define CONC_VERSION "\(.*\)"/\1/p' "$here/conc.h")
project plain_c
two_files
sed 's/= {};/= {0};/' square.c >s.c && mv s.c square.c
try "a project of two files in C" \
  $CC $warn -o it main.c square.c -pthread
try '... which runs' prints "49 $version" ./it

project plain_cxx
two_files
mv main.c main.cpp && mv square.c square.cpp
try "a project of two files in C++" \
  $CXX $warn -o it main.cpp square.cpp -pthread
try '... which runs' prints "49 $version" ./it

# --- CMake ---

project cmake
two_files
sed 's/= {};/= {0};/' square.c >s.c && mv s.c square.c
write CMakeLists.txt <<'EOS'
cmake_minimum_required(VERSION 3.10)
project(it C)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
add_executable(it main.c square.c)
target_link_libraries(it Threads::Threads)
EOS
cmake_build() {
  cmake -S . -B out -DCMAKE_C_COMPILER="$CC" >log 2>&1 &&
    cmake --build out >>log 2>&1 && ! grep warning: log || { cat log; false; }
}
if have cmake; then
  try 'a project built by CMake' cmake_build
  try '... which runs' prints "49 $version" out/it
else
  skip 'a project built by CMake' cmake
fi

# --- one file with another single-file library, in either order ---

project amalgam
write tiny.h <<'EOS'
/* tiny.h: a library in one file, in the manner of stb. */
#ifndef TINY_H
#define TINY_H
#include <stdio.h>
#include <string.h>
extern int tiny_length(const char *text);
#endif
#ifdef TINY_IMPLEMENTATION
int tiny_length(const char *text) { return (int)strlen(text); }
#endif
EOS
write main.c <<'EOS'
#define CONC_IMPLEMENTATION
#define TINY_IMPLEMENTATION
#include "all.h"
const char *other(void);
int main(void) {
  printf("%d %s %s\n", tiny_length("four"), conc_name(NULL), other());
  return 0;
}
EOS
write other.c <<'EOS'
#include "all.h"
#include "all.h"
const char *other(void) { return tiny_length("no") == 2 ? conc_strerror(0) : 0; }
EOS
for order in 'conc.h tiny.h' 'tiny.h conc.h'; do
  cat $order >all.h
  rm -f it
  # What tiny.h includes must know what conc.h will need.
  case $order in tiny*) defs=-D_GNU_SOURCE ;; *) defs= ;; esac
  try "one file made of $order${defs:+, with $defs}" \
    $CC $warn $defs -o it main.c other.c -pthread
  try '... which runs' prints '4 MainThread success' ./it
done
says_what_to_do() {
  ! $CC -o it main.c other.c -pthread >log 2>&1 &&
    grep -q 'error: .*_GNU_SOURCE' log || { cat log; false; }
}
try '... and without it the error says what to do' says_what_to_do

# --- static in two shared libraries of one program, which has a third ---

project shared
write library.c <<'EOS'
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "conc.h"
/* As much of the library as makes state: threads, loops, locks, children. */
static conc_lock lock;
static int sum;
static void *add(void *arg) {
  for (int i = 0; i < 1000; i++)
    if (conc_lock_acquire(&lock, CONC_FOREVER) == 0) {
      sum += *(int *)arg;
      conc_lock_release(&lock);
      if (i % 100 == 0) conc_sleep(0.0001);
    }
  return NULL;
}
static void *both(void *arg) {
  conc_task thread = {0}, coro = {0}, process = {0};
  int failed;
  thread.target = coro.target = process.target = add;
  thread.arg = coro.arg = process.arg = arg;
  failed = conc_thread_start(&thread) | conc_coro_start(&coro) |
           conc_process_start(&process);
  failed |= conc_join(&thread, 30) | conc_join(&coro, 30);
  failed |= conc_join(&process, 30);
  return failed ? arg : NULL;
}
int LIBRARY(int n);
int LIBRARY(int n) {
  conc_task t = {0};
  t.target = both;
  t.arg = &n;
  sum = 0;
  if (conc_run(&t) != 0 || conc_result(&t) != NULL) return -1;
  return sum;
}
EOS
write main.c <<'EOS'
#define CONC_IMPLEMENTATION
#include "conc.h"
#include <dlfcn.h>
#include <stdio.h>
static int (*one)(int), (*two)(int);
static void *run_one(void *arg) { *(int *)arg = one(1); return NULL; }
static void *run_two(void *arg) { *(int *)arg = two(2); return NULL; }
int main(void) {
  void *a = dlopen("./libone.so", RTLD_NOW | RTLD_LOCAL);
  void *b = dlopen("./libtwo.so", RTLD_NOW | RTLD_GLOBAL);
  int x = 0, y = 0;
  conc_task t = {0}, u = {0};
  if (a == NULL || b == NULL) return 1;
  *(void **)&one = dlsym(a, "one");
  *(void **)&two = dlsym(b, "two");
  t.target = run_one, t.arg = &x;
  u.target = run_two, u.arg = &y;
  conc_thread_start(&t), conc_thread_start(&u);
  conc_join(&t, 30), conc_join(&u, 30);
  printf("%d %d\n", x, y);
  return 0;
}
EOS
library() { # NAME
  $CC -O1 $warn -fPIC -shared "-DLIBRARY=$1" -o "lib$1.so" library.c -pthread
}
try 'two shared libraries with a static conc.h each' \
  eval 'library one && library two'
try '... and a program with its own' $CC $warn -o it main.c -pthread -ldl
# Each copy's fork runs the others' handlers: what a wrong order of locks would
# stop, if not the first time.
often() { for i in 1 2 3 4 5 6 7 8; do "$@" || return; done; }
try '... which uses all three at once' often prints '2000 4000' ./it

# --- make install ---

project install
two_files
sed 's/= {};/= {0};/; s/"conc.h"/<conc.h>/' square.c >s.c && mv s.c square.c
sed 's/"conc.h"/<conc.h>/' square.h >s.h && mv s.h square.h
rm conc.h
install_to() { # PREFIX DESTDIR, with a name that a careless rule would split
  MAKEFLAGS='' MAKELEVEL=0 make -s -C "$here" "$3" PREFIX="$1" DESTDIR="$2"
}
installed() {
  (cd "$root/install/to here" && find . -type f | sort | tr '\n' ' ')
}
try 'make install' install_to /opt/c "$root/install/to here" install
try '... installs three files' prints \
  './opt/c/include/conc.h ./opt/c/share/conc/conc.py ./opt/c/share/pkgconfig/conc.pc ' \
  installed
try '... for /opt/c' grep -qx 'prefix=/opt/c' 'to here/opt/c/share/pkgconfig/conc.pc'
try 'make uninstall' install_to /opt/c "$root/install/to here" uninstall
try '... leaves none' prints '' installed
if have pkg-config; then
  try 'make install PREFIX=' install_to "$root/install/prefix" '' install
  package() {
    PKG_CONFIG_PATH=prefix/share/pkgconfig pkg-config "$@" conc
  }
  try '... pkg-config knows the version' prints "$version" package --modversion
  try '... and how to compile with it' eval \
    '$CC -o it main.c square.c $(package --cflags --libs)'
  try '... which runs' prints "49 $version" ./it
else
  skip 'what pkg-config says' pkg-config
fi
