#!/bin/sh
# The documents' programs over a Redis: masters and workers in C, and in Python
# with redis-py. Prints a line per test; skips where there is no server.
#   EXAMPLES=build/examples sh tests/interop/redis.sh
: "${EXAMPLES:=build/examples}" "${TEST_SLOW:=1}"
here=$(dirname "$0")
TIME_SCALE=$(awk "BEGIN { print 0.1 * $TEST_SLOW }")
export TIME_SCALE
server=${REDIS_SERVER:-redis-server}
title='redis: '
command -v "$server" >/dev/null || {
  echo "skip ${title}the documents' programs: there is no $server"
  exit 0
}
tmp=$(mktemp -d) || exit 1
path=$tmp/s
"$server" --port 0 --save '' --unixsocket "$path" --dir "$tmp" >"$tmp/log" &
pid=$!
trap 'kill $pid; wait $pid; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
tries=0
until [ -S "$path" ] || [ $tries -gt 500 ]; do
  tries=$((tries + 1))
  sleep 0.02
done

failed=0
try() { # TITLE COMMAND...
  name=$title$1
  shift
  if "$@" >"$tmp/out" 2>&1 </dev/null; then
    echo "ok   $name"
  else
    cat "$tmp/out"
    echo "FAIL $name"
    failed=1
  fi
}

try "a master and two workers in C" \
  sh "$here/../run_demo.sh" "$EXAMPLES" "redis+unix://$path"

# A Python that has redis-py: Debian's own, or one of those on the PATH.
python=
for each in ${PYTHON_REDIS:-/usr/bin/python3 python3}; do
  ! "$each" -c 'import redis' 2>/dev/null || { python=$each; break; }
done
python() { timeout 60 "$python" -u "$here/redis_py.py" "$1" "$path"; }

until_put() { # a master has begun
  tries=0
  until grep -q '^Put task' "$tmp/master" || [ $tries -gt 500 ]; do
    tries=$((tries + 1))
    sleep 0.02
  done
}

python_works() { # a master in C, a worker in Python
  "$EXAMPLES/task_master" "redis+unix://$path" >"$tmp/master" 2>&1 &
  master=$!
  until_put
  python worker
  wait $master || { cat "$tmp/master"; return 1; }
  cat "$tmp/master"
  [ "$(grep -c '^Result: [0-9]* \* [0-9]* = [0-9]*$' "$tmp/master")" = 10 ]
}

c_works() { # a master in Python, a worker in C; the queues are there by now
  python master >"$tmp/master" 2>&1 &
  master=$!
  until_put
  # On a slow machine one may find a queue empty, and end with less than ten.
  for worker in 1 2; do "$EXAMPLES/task_worker" "redis+unix://$path"; done
  wait $master || { cat "$tmp/master"; return 1; }
  [ "$(grep -c '^Result: ' "$tmp/master")" = 10 ]
}

if [ -n "$python" ]; then
  try 'a master in C, a worker in Python with redis-py' python_works
  try 'a master in Python with redis-py, a worker in C' c_works
else
  echo "skip ${title}Python's programs: there is no redis-py"
fi
exit $failed
