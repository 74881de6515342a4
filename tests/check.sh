#!/bin/sh
# make check: the tests in many configurations, two at a time. A line for
# each; its own output is in build/check/NAME.log. Last line: the sum.
#   tests/check.sh [WORDS]   only configurations whose name has these words
unset MAKEFLAGS MAKELEVEL MFLAGS
only=$1
: "${LIMIT:=300}" # seconds that a configuration may take
logs=build/check
rm -rf "$logs" && mkdir -p "$logs" || exit 2

have() { command -v "$1" >/dev/null 2>&1; }

# The configurations: name | tools it needs | arguments of make test.
programs='SCRIPTS=examples'
everything='SCRIPTS="examples interop"'
san='SANITIZE=address,undefined'
cross=aarch64-linux-gnu-gcc
# With its own C library, where the cross compiler has it.
aarch64='SCRIPTS=examples WRAPPER="qemu-aarch64 -L /usr/aarch64-linux-gnu"'
aarch64="$aarch64 TEST_SLOW=10"
memcheck='valgrind -q --error-exitcode=9 --leak-check=full'
memcheck="$memcheck --errors-for-leak-kinds=definite"
cat >"$logs/list" <<EOS
gcc-tsan | gcc | CC=gcc SANITIZE=thread SYNC_STEPS=1000000 SCRIPTS=
clang-asan | clang | CC=clang $san SCRIPTS=
portable | gcc | CC=gcc DEFS=-DCONC_PORTABLE SCRIPTS=
ucontext | gcc | CC=gcc DEFS=-DCONC_USE_UCONTEXT SCRIPTS=
clang-O0 | clang | CC=clang OPT=-O0 SCRIPTS=
EOS

configuration() { # NAME TOOLS ARGUMENTS
  for tool in $2; do
    have "$tool" || { echo "skip $1: there is no $tool"; return; }
  done
  start=$(date +%s)
  if [ "$1" = compile-all ]; then
    BUILD=build/check sh tests/compile.sh all
  else
    eval "timeout -k 10 $LIMIT make test JOBS=1 $3"
  fi >"$logs/$1.log" 2>&1 </dev/null
  status=$?
  sum="$(grep -c '^ok ' "$logs/$1.log") passed"
  sum="$sum, $(grep -c '^FAIL ' "$logs/$1.log") failed"
  sum="$sum, $(grep -c '^skip ' "$logs/$1.log") skipped"
  seconds=$(($(date +%s) - start))
  if [ $status -eq 0 ] && ! grep -q '^FAIL ' "$logs/$1.log"; then
    echo "ok   $1: $sum ($seconds s)"
  else
    { grep '^FAIL ' "$logs/$1.log" || grep 'error: ' "$logs/$1.log" ||
      tail -5 "$logs/$1.log"; } | head -20 | cut -c 1-150 | sed 's/^/  /'
    [ $status -ne 124 ] || echo "  stopped after $LIMIT s"
    echo "FAIL $1: $sum ($seconds s), see $logs/$1.log"
  fi
}

lane() {
  while IFS='|' read -r name tools arguments; do
    name=${name% }
    case $name in *"$only"*) ;; *) continue ;; esac
    mkdir "$logs/$name.taken" 2>/dev/null || continue
    configuration "$name" "$tools" "$arguments" >"$logs/$name.line"
    cat "$logs/$name.line"
  done <"$logs/list"
}
lane &
lane
wait

count() { cat "$logs"/*.line 2>/dev/null | grep -c "^$1 "; }
failed=$(count FAIL)
echo "$(count ok) passed, $failed failed, $(count skip) skipped"
[ "$failed" -eq 0 ] && [ "$(count ok)" -gt 0 ]
