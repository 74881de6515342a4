#!/bin/sh
# make run: a task master on a free port and two task workers, all shown. One
# of the workers is killed in the middle of a task, and another one takes its
# place; the task is done all the same, and no other one twice.
#   run_demo.sh FOLDER_OF_THE_EXAMPLES [ADDRESS]
# ADDRESS: where the master is to serve instead, as redis://127.0.0.1. There no
# worker is killed: a Redis does not hear of it before the lease is over.
# Fails unless the master got its ten results, one of them for that task, and
# every other program ended well.
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
say() { echo "$*" | label demo; }

# until_says WORDS NAME...: until one of these programs has said that, as long
# as any runs. Which one it was: $who.
until_says() {
  words=$1
  shift
  while :; do
    some=
    for who; do
      ! running "$who" || some=1
      ! grep -qF "$words" "$tmp/$who.log" 2>/dev/null || return 0
    done
    [ -n "$some" ] || return 1
    pause
  done
}

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
    wait $! 2>/dev/null # where a shell says that it was killed
    echo $? >"$tmp/$name.status.part"
    mv "$tmp/$name.status.part" "$tmp/$name.status"
  } &
}

# A free port is one that the master does not find taken: it then puts tasks.
port=$((20000 + $$ % 12000))
tries=0
while :; do
  address=${2:-127.0.0.1:$port}
  start master $WRAPPER "$examples/task_master" ${2:---lease 60} "$address" \
    "$key"
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
worker() {
  start "$1" $WRAPPER "$examples/task_worker" "$address" "$key"
}
killed= others='worker-1 worker-2' begun=10
if [ -z "$2" ]; then
  # It has all the time in the world for its first task: so it is killed in
  # the middle of that, however slow the machine is.
  scale=$TIME_SCALE
  TIME_SCALE=1000 worker worker-1
  until_says 'run task' worker-1
  TIME_SCALE=$scale worker worker-2
  until_says 'run task' worker-2
  killed=$(sed -n 's/^run task \(.*\)\.\.\.$/\1/p' "$tmp/worker-1.log")
  kill -KILL "$(cat "$tmp/worker-1.pid")"
  say "worker-1 is killed in the middle of task $killed; worker-3 takes its" \
    "place"
  worker worker-3
  if until_says "run task $killed..." worker-2 worker-3; then
    say "$who does task $killed, which worker-1 had"
  fi
  others='worker-2 worker-3' begun=11 # each task, and that one twice
else
  worker worker-1
  worker worker-2
fi
wait

failed=0
grep -qF "Result: ${killed:+$killed = }" "$tmp/master.log" || {
  echo "there is no result of $killed" >&2
  failed=1
}
[ -z "$killed" ] || [ "$(cat "$tmp/worker-1.status")" = 137 ] || {
  echo "worker-1 was not killed" >&2
  failed=1
}
for name in master $others; do
  status=$(cat "$tmp/$name.status")
  [ "$status" = 0 ] || { echo "$name: exit status $status" >&2; failed=1; }
done
runs=$(cat "$tmp"/worker-*.log | grep -c '^run task ')
[ "$runs" -eq $begun ] || {
  echo "$runs tasks were begun, not $begun" >&2
  failed=1
}
results=$(grep -c '^Result: ' "$tmp/master.log")
[ "$results" -eq 10 ] || { echo "$results results, not 10" >&2; failed=1; }
exit $failed
