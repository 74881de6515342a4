#!/bin/sh
# Every example runs and ends well; sleeps are cut short by TIME_SCALE.
: "${EXAMPLES:=build/examples}"
export TIME_SCALE=0.01
log=$EXAMPLES/examples.log

limit=
if command -v timeout >/dev/null 2>&1; then limit='timeout 100'; fi

try() { # TITLE COMMAND...
  title=$1
  shift
  if "$@" >"$log" 2>&1 </dev/null; then
    echo "ok   examples: $title"
  else
    status=$?
    cat "$log"
    echo "FAIL examples: $title (exit status $status)"
  fi
}

# The output must be tests/examples/NAME.out; or, where threads print in any
# order, NAME.txt, both being sorted. What differs from run to run, as times
# do, NAME.sed makes equal.
prints() { # NAME COMMAND...
  expected=tests/examples/$1
  mend=$expected.sed
  [ -f "$mend" ] || mend=/dev/null
  shift
  "$@" >"$log.raw" || return
  sed -f "$mend" "$log.raw" >"$log.out"
  if [ -f "$expected.out" ]; then
    diff "$expected.out" "$log.out"
  else
    sort "$expected.txt" >"$log.expected" &&
      sort "$log.out" | diff "$log.expected" -
  fi
}

# Not so short that a worker comes when the other has done all the work.
try 'a task master and two task workers (make run)' \
  env TIME_SCALE="$(awk "BEGIN { print 0.1 * ${TEST_SLOW:-1} }")" \
  sh tests/run_demo.sh "$EXAMPLES"
for source in examples/*.c; do
  name=$(basename "$source" .c)
  case $name in
  task_master | task_worker | '*') ;; # above; none
  *) try "$name" prints "$name" $limit $WRAPPER "$EXAMPLES/$name" ;;
  esac
done
