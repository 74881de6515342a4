#!/bin/sh
# Builds the benchmarks and runs them: run.sh [BUILD_DIR [CC]], or by the
# variables BUILD and CC, as "make bench" does.
#
#   BENCH="switch threads"   only these programs (default: all)
#   QUICK=1                  few and short rounds, and only the programs that
#                            meet most peers
#   ARGS="switch"            their arguments: rows by name
#   PYTHON=python3.13        the Python to compare with
#   CFLAGS=...               more options for the compiler
#
# It prints each row as it comes (table.awk), keeps all of them in BUILD/bench/
# rows, and draws them in build/bench.html (page.awk).
#
# A peer whose header is not installed is left out by -DNO_..., one that is not
# there at run time has no samples: its row says that it is not here. No
# benchmark may take five minutes, but for that of compiling.
build=${1:-${BUILD:-build/default}}/bench
cc=${2:-${CC:-cc}}
here=$(cd "$(dirname "$0")" && pwd) || exit 1
mkdir -p "$build" || exit 1

if [ "${QUICK:-0}" != 0 ]; then
  ARGS="--quick $ARGS"
  names="switch threads pool queue_processes echo network"
else
  names="switch echo threads process pool network attack queue_processes
    journal leases redis cost compile"
fi
names=${BENCH:-$names}

# CONC_STATIC, as a program of one file should have it: the programs compile in
# a fifth of the time.
options="-O2 -std=c11 -D_GNU_SOURCE -DCONC_STATIC $(cat "$here/../warnings")
  -Wstrict-prototypes $CFLAGS"

# --- which peers are here ---

# links SOURCE LIBRARY: whether a program with it can be made.
links() {
  printf '%s\nint main(void) { return 0; }\n' "$1" >"$build/probe.c"
  # shellcheck disable=SC2086
  $cc -o "$build/probe" "$build/probe.c" $2 >/dev/null 2>&1
}
# have SOURCE OPTIONS NAME: the options if it links, or -DNO_NAME.
have() {
  if links "$1" "$2"; then echo "$2"; else echo "-DNO_$3"; fi
}
cxx=${CXX:-c++}

peers_of() {
  case $1 in
  network | redis) have '#include <hiredis/hiredis.h>' -lhiredis HIREDIS ;;
  switch)
    have '' -lboost_context BOOST
    have '#include <ev.h>' -lev EV
    ;;
  echo)
    have '#include <uv.h>' -luv UV
    have '#include <ev.h>' -lev EV
    ;;
  threads)
    have '#include <nsync.h>' -lnsync NSYNC
    have '#include <ck_rwlock.h>' '' CK # its headers are all we need
    glib=$(pkg-config --cflags --libs glib-2.0 2>/dev/null |
      sed 's/-I/-isystem/g')
    have '#include <glib.h>' "${glib:--lglib-2.0}" GLIB
    ;;
  queue_processes)
    have '#include <zmq.h>' -lzmq ZMQ
    if $cxx -O2 -c -o "$build/queue_boost.o" "$here/queue_boost.cpp" \
      >/dev/null 2>&1; then
      echo "$build/queue_boost.o -lstdc++ -lrt"
    else
      echo -DNO_BOOST_QUEUE
    fi
    ;;
  esac
}

# Other libraries' pools are of C++, hence a program of their own.
build_pool_peers() {
  peers=
  for library in tbb uv; do
    printf 'int main() { return 0; }\n' >"$build/probe.cpp"
    if $cxx -o "$build/probe" "$build/probe.cpp" -l$library 2>/dev/null; then
      peers="$peers -l$library"
    else
      peers="$peers -DNO_$(echo $library | tr a-z A-Z)"
    fi
  done
  # shellcheck disable=SC2086
  $cxx -O2 -fopenmp -o "$build/pool_peers" "$here/pool_peers.cpp" $peers \
    -pthread 2>/dev/null || rm -f "$build/pool_peers"
}

build_go() { # SOURCE PROGRAM
  rm -f "$build/$2"
  if command -v go >/dev/null 2>&1; then
    go build -o "$build/$2" "$here/$1.go"
  fi
}

# --- building ---

# build_one NAME PEERS: unless it is there, newer than its sources, and made by
# the same command.
build_one() {
  # Several words each, meant so.
  # shellcheck disable=SC2086
  set -- "$1" $cc $options -o "$build/$1" "$here/$1.c" $2 -lm -pthread
  name=$1
  shift
  if [ -x "$build/$name" ] && [ "$(cat "$build/$name.command")" = "$*" ] &&
    [ -z "$(find "$here/$name.c" "$here"/*.h "$here/../../conc.h" \
      -newer "$build/$name")" ]; then
    return
  fi
  rm -f "$build/$name"
  echo "$*" >"$build/$name.command"
  "$@"
}

begun=0
for name in $names; do
  case $name in
  threads) build_go channel channel ;;
  echo) build_go echo echo_go ;;
  pool) build_pool_peers ;;
  esac
  # One for each of two CPUs: nothing is measured yet. All probes have the
  # same file.
  peers=$(peers_of "$name")
  build_one "$name" "$peers" &
  begun=$((begun + 1))
  if [ $((begun % 2)) = 0 ]; then wait; fi
done
wait

# --- running ---

# What is said of the run as a whole.
say() { printf 'run\t%s\t%s\n' "$1" "$2"; }
about() {
  model=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null |
    head -n 1)
  [ -n "$model" ] || model=$(sysctl -n machdep.cpu.brand_string 2>/dev/null)
  say CPU "${model:-$(uname -m)}, $(getconf _NPROCESSORS_ONLN) CPUs"
  say system "$(uname -srm)"
  say compiler "$($cc --version | head -n 1), -O2"
  # Whatever else runs now is measured, too.
  if read -r load rest 2>/dev/null </proc/loadavg; then
    [ "${load%.*}" -eq 0 ] || load="$load: do not trust the numbers"
    say 'load average at the start' "$load"
  fi
}

run_all() {
  about
  for name in $names; do
    # shellcheck disable=SC2086
    if [ ! -x "$build/$name" ] || ! timeout 600 "$build/$name" $ARGS; then
      echo "$name failed"
      echo "$name" >>"$build/failed"
    fi
  done
}

# mawk reads a whole block before it prints a line, but for this.
case $(awk -W version 2>&1 </dev/null) in
mawk*) at_once='-W interactive' ;;
*) at_once= ;;
esac

rm -f "$build/failed"
# shellcheck disable=SC2086
run_all | tee "$build/rows" |
  awk $at_once -f "$here/rows.awk" -f "$here/table.awk" "$here/reasons.txt" -

page=$here/../../build/bench.html
mkdir -p "$here/../../build"
awk -f "$here/rows.awk" -f "$here/page.awk" "$here/reasons.txt" \
  "$build/rows" >"$page" && echo "build/bench.html shows it as bars"
[ ! -s "$build/failed" ]
