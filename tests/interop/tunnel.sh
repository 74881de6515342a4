#!/bin/sh
# The recipe of the manual for an encrypted connection, word for word: a master
# in C behind stunnel, and a Python and a C worker that reach it through it.
#   EXAMPLES=build/examples PYTHON=python3 sh tests/interop/tunnel.sh
: "${EXAMPLES:=build/examples}" "${PYTHON:=python3}"
title='interop: a Python and a C worker reach a C master through stunnel'
case $title in *"$FILTER"*) ;; *) exit 0 ;; esac
skip() { echo "skip $title: $1"; exit 0; }
stunnel=$(command -v stunnel4 || command -v stunnel) ||
  skip 'there is no stunnel'
"$PYTHON" -c 'import multiprocessing.managers' 2>/dev/null ||
  skip 'there is no Python 3'

tmp=$(mktemp -d) || exit 1
started=
stop() {
  [ -z "$started" ] || kill $started 2>/dev/null
  wait $started 2>/dev/null
  started=
}
trap 'stop; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM HUP
fail() {
  echo "tunnel: $1"
  for log in "$tmp"/*.log; do sed "s|^|$(basename "$log"): |" "$log"; done
  echo "FAIL $title"
  exit 1
}
pause() { sleep 0.05 2>/dev/null || sleep 1; }
# Waits until a file has a line, or its writer has ended.
until_said() {
  waits=0
  until grep -q "$2" "$tmp/$1.log" 2>/dev/null; do
    kill -0 "$3" 2>/dev/null && [ $waits -lt 400 ] || return 1
    waits=$((waits + 1))
    pause
  done
}

# The two configurations stand in the manual: the server's, then the client's.
awk -v dir="$tmp" '
  /^     \[manager\]$/ { n++; inside = 1 }
  /^$/ { inside = 0 }
  inside { print substr($0, 6) > (dir "/" (n == 1 ? "server" : "client")) }
' conc.h
[ -s "$tmp/server" ] && [ -s "$tmp/client" ] ||
  fail 'the manual has no recipe'
(umask 077; echo 'worker:0123456789abcdef0123456789abcdef' >"$tmp/psk.txt")
key=tunnel-$$

# start_stunnel NAME PORTS: its part of the manual, with ports of this test.
start_stunnel() {
  { printf 'foreground = yes\npid =\nsyslog = no\ndebug = 5\n'
    sed -e "s|/etc/stunnel/psk.txt|$tmp/psk.txt|" \
      -e "s|server:5001|127.0.0.1:5001|" -e "$2" "$tmp/$1"
  } >"$tmp/$1.conf"
  "$stunnel" "$tmp/$1.conf" >"$tmp/$1.log" 2>&1 &
  pid=$!
  started="$started $pid"
  until_said "$1" 'Configuration successful' $pid && pause &&
    kill -0 $pid 2>/dev/null
}

# Three free ports: if one is taken, what wants it ends, and there are others.
port=$((20000 + $$ % 10000))
tries=0
while :; do
  a=$port b=$((port + 1)) c=$((port + 2))
  "$EXAMPLES/task_master" "127.0.0.1:$a" $key >"$tmp/master.log" 2>&1 &
  master=$!
  started=$master
  until_said master '^Put task' $master &&
    start_stunnel server "s/5000/$a/; s/5001/$b/" &&
    start_stunnel client "s/5000/$c/; s/5001/$b/" && break
  stop
  tries=$((tries + 1)) port=$((port + 3))
  [ $tries -lt 20 ] || fail 'the master or stunnel did not start'
done

# Whoever listens to what passes between the two reads nothing, and whoever
# speaks there without TLS has no answer of the master's.
"$PYTHON" - $b <<'EOP' >"$tmp/plain.log" 2>&1 || fail 'it answers without TLS'
import socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)
s.settimeout(0.5)
try:
    sys.exit(b'CHALLENGE' in s.recv(100))
except OSError:
    pass
EOP

"$PYTHON" - $c $key <<'EOP' >"$tmp/python.log" 2>&1 || fail 'the Python worker'
import sys
from multiprocessing.managers import BaseManager
class QueueManager(BaseManager):
    pass
QueueManager.register('get_task_queue')
QueueManager.register('get_result_queue')
m = QueueManager(address=('127.0.0.1', int(sys.argv[1])),
                 authkey=sys.argv[2].encode())
m.connect()
task, result = m.get_task_queue(), m.get_result_queue()
for i in range(5):
    n = task.get(timeout=10)
    print('run task', n)
    result.put('%d * %d = %d' % (n, n, n * n))
EOP
TIME_SCALE=0.05 "$EXAMPLES/task_worker" "127.0.0.1:$c" $key \
  >"$tmp/worker.log" 2>&1 || fail 'the C worker'
wait $master || fail 'the master'
[ "$(grep -c '^Result: ' "$tmp/master.log")" -eq 10 ] ||
  fail 'there are not ten results'
[ "$(grep -c '^run task' "$tmp/python.log")" -eq 5 ] &&
  [ "$(grep -c '^run task' "$tmp/worker.log")" -eq 5 ] ||
  fail 'each worker should have had five tasks'
echo "ok   $title"
