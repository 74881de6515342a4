#!/bin/sh
# make run: a task master on a free port and two task workers, all shown.
#   run_demo.sh FOLDER_OF_THE_EXAMPLES [ADDRESS]
# ADDRESS: where the master is to serve instead, as redis://127.0.0.1.
# Fails unless the master got its ten results and every program ended well.
examples=$1
key=make-run-$$
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'kill $(cat "$tmp"/*.pid) 2>/dev/null; exit 1' INT TERM HUP

# Line by line, so that the programs' lines mix as they are printed.
label() {
  while IFS= read -r line; do printf '%-8s | %s\n' "$1" "$line"; done
}
pause() { sleep 0.05 2>/dev/null || sleep 1; }
running() { [ ! -e "$tmp/$1.status" ]; }

# start NAME PROGRAM ARGUMENT...: in the background; its output goes through
# a named pipe so that its own exit status is known.
start() {
  name=$1
  shift
  rm -f "$tmp/$name".*
  mkfifo "$tmp/$name.pipe"
  tee "$tmp/$name.log" <"$tmp/$name.pipe" | label "$name" &
  {
    "$@" >"$tmp/$name.pipe" 2>&1 &
    echo $! >"$tmp/$name.pid"
    wait $!
    echo $? >"$tmp/$name.status.part"
    mv "$tmp/$name.status.part" "$tmp/$name.status"
  } &
}

# A free port is one that the master does not find taken: it then puts tasks.
port=$((20000 + $$ % 12000))
tries=0
while :; do
  address=${2:-127.0.0.1:$port}
  start master $WRAPPER "$examples/task_master" "$address" "$key"
  waits=0
  while running master && [ $waits -lt 200 ] &&
    ! grep -q '^Put task' "$tmp/master.log" 2>/dev/null; do
    waits=$((waits + 1))
    pause
  done
  running master && break
  grep -qi 'in use' "$tmp/master.log" && [ $tries -lt 20 ] || {
    wait
    echo "the master failed" >&2
    exit 1
  }
  tries=$((tries + 1)) port=$((port + 1))
done
start worker-1 $WRAPPER "$examples/task_worker" "$address" "$key"
start worker-2 $WRAPPER "$examples/task_worker" "$address" "$key"
wait

failed=0
for name in master worker-1 worker-2; do
  status=$(cat "$tmp/$name.status")
  [ "$status" = 0 ] || { echo "$name: exit status $status" >&2; failed=1; }
done
results=$(grep -c '^Result: ' "$tmp/master.log")
[ "$results" -eq 10 ] || { echo "$results results, not 10" >&2; failed=1; }
exit $failed
