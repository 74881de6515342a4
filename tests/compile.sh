#!/bin/sh
# How conc.h compiles, and what it leaves in the program that includes it.
#   compile.sh      with $CC and $CXX; what every standard has to say of it is
#                   asked without making code (part of make test)
#   compile.sh all  with every compiler there is, making code and optimising
#                   too, and all tests and examples as C++20 (make check)
: "${CC:=cc}" "${CXX:=c++}" "${BUILD:=build/default}"
tmp=$BUILD/compile
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
here=$(pwd)
warn="$(cat tests/warnings) -Werror"
cwarn="$warn -Wstrict-prototypes -Wmissing-prototypes"

have() { command -v "${1%% *}" >/dev/null 2>&1; }
if [ "$1" = all ]; then
  c_compilers='gcc clang' cxx_compilers='g++ clang++'
  best=-O2 plain=-fsyntax-only output="-c -o $tmp/x.o"
else
  c_compilers=$CC cxx_compilers=$CXX
  best=-fsyntax-only plain=-fsyntax-only output=
fi
# gcc takes more time for this warning than for all others: one file is enough.
light="$warn -Wno-misleading-indentation"
clight="$cwarn -Wno-misleading-indentation"
c_standards='c99 c11 c17 c2x'
cxx_standards='c++11 c++14 c++17 c++20 c++2b'

suite=compile
. tests/try.sh
skip() { echo "skip compile: $1: there is no $2"; }
source() { cat >"$tmp/$1"; }

source implementation.c <<EOS
#define CONC_IMPLEMENTATION
#include "$here/conc.h"
EOS
source static.c <<EOS
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "$here/conc.h"
const char *version_a(void);
const char *version_a(void) { return conc_version(); }
EOS
source static_main.c <<EOS
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "$here/conc.h"
const char *version_a(void);
int main(void) { return !(version_a() && conc_version()); }
EOS
source main.cpp <<EOS
#include "$here/conc.h"
#include "$here/conc.h"
#ifdef __cplusplus
static int compare(conc_task &task) { return task.target != nullptr; }
#else
static int compare(conc_task *task) { return task->target != NULL; }
#define compare(task) compare(&task)
#endif
static int with(void) {
  conc_lock lock = {};
  conc_rlock rlock = {};
  conc_rwlock rwlock = {};
  conc_sem sem = {};
  CONC_WITH(&lock) CONC_WITH(&rlock) {
    CONC_WITH_READ(&rwlock) { return 0; }
    CONC_WITH_WRITE(&rwlock) CONC_WITH(&sem) { return 1; }
  }
  CONC_WITH(&lock) {
    return 2;
  } else {
    return 3;
  }
  return 4;
}
int main(void) {
  conc_task task = {};
  const char *text = conc_strerror(-1);
  return compare(task) || !text || !conc_version() || with();
}
EOS
# The empty braces of C++ are not C's before C23.
sed 's/= {};/= {0};/' "$tmp/main.cpp" >"$tmp/main.c"
system_headers='arpa/inet.h assert.h ctype.h errno.h fcntl.h inttypes.h
  limits.h math.h netdb.h netinet/in.h netinet/tcp.h poll.h pthread.h sched.h
  setjmp.h signal.h stdarg.h stdbool.h stddef.h stdint.h stdio.h stdlib.h
  string.h strings.h sys/mman.h sys/resource.h sys/select.h sys/socket.h
  sys/stat.h sys/time.h sys/types.h sys/un.h sys/wait.h termios.h time.h
  unistd.h'
includes() { for h in $system_headers; do echo "#include <$h>"; done; }
{ includes; cat "$tmp/main.c"; } >"$tmp/after.c"
{ echo "#include \"$here/conc.h\""; includes; cat "$tmp/main.c"; } \
  >"$tmp/before.c"
{ includes; cat "$tmp/implementation.c"; } >"$tmp/late.c"

# What only an optimiser warns of is the same in all standards, and clang warns
# of nothing more when it makes code.
for cc in $c_compilers; do
  have "$cc" || { skip "everything with $cc" "$cc"; continue; }
  for std in $c_standards; do
    opt=$plain
    [ "$std" != c99 ] || [ "$cc" = clang ] || opt=$best
    for defs in '' -DCONC_PORTABLE -DCONC_STATIC -DCONC_USE_UCONTEXT; do
      # One standard is enough for the variants.
      [ -z "$defs" ] || [ "$std" = c99 ] || continue
      [ "$defs" != -DCONC_USE_UCONTEXT ] || opt=$plain
      some=$clight
      [ "$std" != c99 ] || [ -n "$defs" ] || some=$cwarn
      try "$cc -std=$std $opt${defs:+ $defs}: the implementation" \
        $cc -std=$std $opt $some $defs $output "$tmp/implementation.c"
    done
    try "$cc -std=$std $opt: the declarations alone" $cc -std=$std $opt \
      $cwarn $output "$tmp/main.c"
  done
done
for cxx in $cxx_compilers; do
  have "$cxx" || { skip "everything with $cxx" "$cxx"; continue; }
  for std in $cxx_standards; do
    opt=$plain
    [ "$std" != c++11 ] || [ "$cxx" = clang++ ] || opt=$best
    [ "$1" = all ] || [ "$std" = c++11 ] || [ "$std" = c++20 ] || continue
    try "$cxx -std=$std $opt: the implementation" $cxx -x c++ -std=$std \
      $opt $light $output "$tmp/implementation.c"
    try "$cxx -std=$std $opt: the declarations alone" $cxx -x c++ \
      -std=$std $opt $warn $output "$tmp/main.cpp"
  done
  try "$cxx $plain: the implementation, portable" $cxx -x c++ -std=c++11 \
    $plain $light -DCONC_PORTABLE "$tmp/implementation.c"
done

for cc in $c_compilers; do
  have "$cc" || continue
  for defs in '' -D_POSIX_C_SOURCE=200809L -D_GNU_SOURCE; do
    for place in before after; do
      try "$cc -std=c99${defs:+ $defs}: the declarations $place all headers" \
        $cc -std=c99 $cwarn $defs -c -o "$tmp/x.o" "$tmp/$place.c"
    done
  done
  # Too late to ask the system for what the implementation needs: either it
  # needs nothing, or the error says what to do.
  if $cc -std=c99 $plain $clight $output "$tmp/late.c" >"$tmp/log" 2>&1 ||
    grep -q 'error: .*_GNU_SOURCE' "$tmp/log"; then
    echo "ok   compile: $cc: an implementation after system headers is" \
      "clear about it"
  else
    head -20 "$tmp/log"
    echo "FAIL compile: $cc: an implementation after system headers is" \
      "clear about it"
  fi

  impl="$cc -std=c11 -O0 -c"
  $impl -o "$tmp/implementation.o" "$tmp/implementation.c"
  try "$cc: two files, one implementation" $cc -std=c11 -pthread \
    -o "$tmp/two" "$tmp/implementation.o" "$tmp/main.c"
  try "$cc: and the program runs" "$tmp/two"
  try "$cc: two files with a static implementation each" $cc -std=c11 -O1 \
    $clight -pthread -o "$tmp/static" "$tmp/static.c" "$tmp/static_main.c"
  try "$cc: and the program runs" "$tmp/static"
done
# What gcc warns of only when it optimises, and sees through a call.
source through.c <<EOS
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "$here/conc.h"
int main(void) {
  char text[100], none[1];
  return conc_deadlock_report(text, sizeof text) != 0 ||
         conc_deadlock_report(none, sizeof none) != 0 ||
         conc_deadlock_report(NULL, 0) != 0;
}
EOS
if [ "$1" = all ] && have gcc; then
  for opt in -O1 -O3 '-O2 -fsanitize=address'; do
    try "gcc $opt: a program of one file" gcc -std=c11 $opt $clight \
      -pthread -o "$tmp/through" "$tmp/through.c"
    try 'and the program runs' "$tmp/through"
  done
fi
if [ "$1" = all ] && have g++; then
  for file in tests/*.c examples/*.c; do
    try "g++ -std=c++20: $file" g++ -x c++ -std=c++20 $warn -Wno-cast-qual \
      -Wno-missing-field-initializers -fsyntax-only "$file"
  done
fi
if have "$CC" && have "$CXX"; then
  $CXX -x c++ -std=c++11 -c -o "$tmp/cxx.o" "$tmp/implementation.c"
  $CC -std=c11 -c -o "$tmp/main.o" "$tmp/main.c"
  try 'the implementation in C, a user in C++' $CXX -std=c++11 -pthread \
    -o "$tmp/cxx_user" "$tmp/main.cpp" "$tmp/implementation.o"
  try 'the implementation in C++, a user in C' $CXX -pthread \
    -o "$tmp/c_user" "$tmp/main.o" "$tmp/cxx.o"
  try 'and the program runs' "$tmp/c_user"
fi
# What tcc makes of the structs must be what another compiler makes of them.
source tcc.c <<EOS
#include "$here/conc.h"
static void *same(void *arg) { return conc_sleep(0.001) == 0 ? arg : NULL; }
int main(void) {
  conc_task thread = {.target = same, .arg = &thread};
  conc_task loop = {.target = same, .arg = &loop, .name = "loop"};
  conc_lock lock = {0};
  if (conc_thread_start(&thread) != 0 || conc_join(&thread, 60) != 0) return 1;
  if (conc_run(&loop) != 0 || conc_lock_acquire(&lock, 0) != 0) return 2;
  return conc_result(&thread) != &thread || conc_result(&loop) != &loop;
}
EOS
if ! have tcc; then
  skip 'a user compiled by tcc' tcc
elif have "$CC"; then
  try 'tcc: the implementation' tcc -Wall -Werror -c -o "$tmp/x.o" \
    "$tmp/implementation.c"
  try 'tcc: the implementation, portable' tcc -Wall -Werror -DCONC_PORTABLE \
    -c -o "$tmp/x.o" "$tmp/implementation.c"
  try "tcc: the declarations alone" tcc -Wall -Werror -c -o "$tmp/tcc.o" \
    "$tmp/tcc.c"
  try "and linked with the implementation in $CC" $CC -pthread \
    -Wl,-z,noexecstack -o "$tmp/tcc" "$tmp/tcc.o" "$tmp/implementation.o"
  try 'and the program runs' "$tmp/tcc"
fi

# macOS and the BSDs have no EREMOTEIO, but EREMOTE; OpenBSD has no ENOLINK.
source eremoteio.c <<EOS
#define _GNU_SOURCE
#include <errno.h>
#undef EREMOTEIO
#undef ENOLINK
#define CONC_STATIC
#define CONC_IMPLEMENTATION
#include "$here/conc.h"
int main(void) {
  conc_value *said;
  int rc = conc_manager_raise(&said, "IndexError", "text");
  conc_value_free(said);
  return rc != -EREMOTE || !strstr(conc_strerror(rc), "exception");
}
EOS
if have "$CC"; then
  try 'a system without EREMOTEIO and ENOLINK' $CC -std=c11 -O1 $clight \
    -pthread -o "$tmp/eremoteio" "$tmp/eremoteio.c"
  try 'and the program runs' "$tmp/eremoteio"
fi

# The benchmarks are run by hand: so at least they compile, without peers.
for bench in tests/bench/*.c; do
  [ "$1" = all ] || break
  try "$bench" $CC -std=c11 -D_GNU_SOURCE -fsyntax-only $light \
    -DNO_HIREDIS -DNO_BOOST -DNO_NSYNC -DNO_CK -DNO_GLIB -DNO_UV -DNO_EV \
    -DNO_ZMQ -DNO_BOOST_QUEUE "$bench"
done

# What a program gets besides: symbols.
global() { nm -g "$1" | awk 'NF == 3 && $2 != "U" { print $3 }'; }
no_other_symbols() {
  # conc__version_... ties files of one version of conc.h together;
  # conc__target_register is called by what a macro leaves in them.
  global "$tmp/implementation.o" |
    grep -v '^conc_[a-z]' | grep -v '^conc__version' |
    grep -vx conc__target_register
  true
}
no_symbols() {
  $CC -std=c11 -O1 -DCONC_STATIC -c -o "$tmp/x.o" "$tmp/implementation.c" &&
    global "$tmp/x.o"
}
if have nm; then
  try 'no global symbol but conc_...' no_other_symbols
  try 'no global symbol at all when static' no_symbols
else
  skip 'the global symbols' nm
fi

# And macros: those defined in conc.h itself, not in what it includes.
macros() {
  $CC -std=c11 -E -dD "$1" | awk '
    /^# [0-9]/ { inside = $3 ~ /conc\.h"$/ }
    inside && $1 == "#define" { sub(/\(.*/, "", $2); print $2 }' | sort -u
}
public_macros() { macros "$tmp/main.c" | grep -v '^CONC_'; true; }
all_macros() {
  macros "$tmp/implementation.c" | grep -v '^CONC_' | grep -vx _GNU_SOURCE
  true
}
try 'no macro but CONC_...' public_macros
try 'no macro but CONC_... in the implementation, and _GNU_SOURCE' all_macros

# What a system may lack: the rows of make check run with it and without it.
rows=build/check/list
switches() {
  # But for those that a program asks for when it runs.
  asked=$(sed -n 's/^#define \(CONC_HAVE_[A-Z0-9_]*\) conc__.*(.*/\1/p' conc.h)
  names=$(grep -o 'CONC_HAVE_[A-Z0-9_]*[A-Z0-9]' conc.h | sort -u |
    grep -vxF -e "$asked")
  {
    echo '#define CONC_IMPLEMENTATION'
    echo "#include \"$here/conc.h\""
    for name in $names; do
      printf '#if %s\n"%s on"\n#else\n"%s off"\n#endif\n' $name $name $name
    done
  } >"$tmp/switches.c"
  {
    echo
    sed -n 's/.*DEFS="\([^"]*\)".*/\1/p; s/.* DEFS=\(-[^ ]*\).*/\1/p
            s/.*SANITIZE=\([a-z,]*\).*/-fsanitize=\1/p' $rows
  } | sort -u | while read -r flags; do
    $CC -E -w $flags "$tmp/switches.c" | grep '^"CONC_HAVE_[A-Z0-9_]* o'
  done >"$tmp/switched"
  for name in $names; do
    for is in on off; do
      grep -qx "\"$name $is\"" "$tmp/switched" || echo "$name is never $is"
    done
  done
}
if [ "$1" = all ] && [ -f $rows ] && have "$CC"; then
  try 'each CONC_HAVE_... is on and off in some row' switches
fi

# And how it reads.
layout() { awk 'length > 79 || /\t/ || / $/ { print FNR ": " $0 }' conc.h; }
try 'conc.h is at most 79 columns wide, without tabs or blank ends' layout
