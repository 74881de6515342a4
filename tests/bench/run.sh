#!/bin/sh
# Builds the benchmarks and runs them: run.sh [BUILD_DIR [CC]], or by the
# variables BUILD and CC, as "make bench" does.
#
#   BENCH="switch threads"   only these programs (default: all)
#   ARGS="--quick switch"    their arguments: short rounds, rows by name
#   PYTHON=python3.13        the Python to compare with
#   CFLAGS=...               more options for the compiler
#
# A peer whose header is not installed is left out by -DNO_..., one that is not
# there at run time says so in its row. No benchmark may take five minutes.
build=${1:-${BUILD:-build/default}}/bench
cc=${2:-${CC:-cc}}
here=$(cd "$(dirname "$0")" && pwd) || exit 1
mkdir -p "$build" || exit 1

options="-O2 -std=c11 -D_GNU_SOURCE $(cat "$here/../warnings")
  -Wstrict-prototypes $CFLAGS"

# links SOURCE LIBRARY: whether a program with it can be made.
links() {
  printf '%s\nint main(void) { return 0; }\n' "$1" >"$build/probe.c"
  $cc -o "$build/probe" "$build/probe.c" "$2" >/dev/null 2>&1
}
if links '#include <hiredis/hiredis.h>' -lhiredis; then
  hiredis=-lhiredis
else
  hiredis=-DNO_HIREDIS
fi
if links '' -lboost_context; then
  boost=-lboost_context
else
  boost=-DNO_BOOST
fi

if links '#include <nsync.h>' -lnsync; then
  nsync=-lnsync
else
  nsync=-DNO_NSYNC
fi
if links '#include <ck_rwlock.h>' -lck; then # its headers are all we need
  ck=
else
  ck=-DNO_CK
fi
glib=$(pkg-config --cflags --libs glib-2.0 2>/dev/null |
  sed 's/-I/-isystem/g')
if [ -z "$glib" ] || ! links '' -lglib-2.0; then
  glib=-DNO_GLIB
fi
rm -f "$build/channel"
if command -v go >/dev/null 2>&1; then
  go build -o "$build/channel" "$here/channel.go"
fi
if links '#include <uv.h>' -luv; then uv=-luv; else uv=-DNO_UV; fi
if links '#include <ev.h>' -lev; then ev=-lev; else ev=-DNO_EV; fi

# Other libraries' pools are of C++, hence a program of their own.
cxx=${CXX:-c++}
pool_peers() {
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
if links '#include <zmq.h>' -lzmq; then
  zmq=-lzmq
else
  zmq=-DNO_ZMQ
fi
if ${CXX:-c++} -O2 -c -o "$build/queue_boost.o" "$here/queue_boost.cpp" \
  >/dev/null 2>&1; then
  zmq="$zmq $build/queue_boost.o -lstdc++ -lrt"
else
  zmq="$zmq -DNO_BOOST_QUEUE"
fi

# Whatever else runs now is measured, too.
if read -r load rest 2>/dev/null </proc/loadavg && [ "${load%.*}" -gt 0 ]; then
  echo "(load average $load at the start: do not trust the numbers)"
fi

status=0
for name in ${BENCH:-switch echo threads process pool network attack \
  queue_processes journal leases redis cost}; do
  case $name in
  network | redis) peers=$hiredis ;;
  switch) peers="$boost $ev" ;;
  echo) peers="$uv $ev" ;;
  threads) peers="$nsync $ck $glib" ;;
  pool) pool_peers; peers= ;;
  queue_processes) peers=$zmq ;;
  *) peers= ;;
  esac
  # Several words each, meant so.
  # shellcheck disable=SC2086
  $cc $options -o "$build/$name" "$here/$name.c" $peers -lm -pthread &&
    timeout 300 "$build/$name" $ARGS || {
      echo "$name failed" >&2
      status=1
    }
done
exit $status
