#!/bin/sh
# Every example runs and ends well; sleeps are cut short by TIME_SCALE.
: "${EXAMPLES:=build/examples}"
export TIME_SCALE=0.01
log=$EXAMPLES/examples.log

limit=
if command -v timeout >/dev/null 2>&1; then limit='timeout 60'; fi

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

# The output must be tests/examples/NAME.out; or, if its order is a matter of
# time, NAME.txt in any order. In both # stands for a measured time.
prints() { # NAME COMMAND...
  expected=tests/examples/$1
  shift
  "$@" >"$log.raw" || return
  sed 's/[0-9]*\.[0-9]\{5\}秒/#秒/' "$log.raw" >"$log.out"
  if [ -f "$expected.out" ]; then
    diff "$expected.out" "$log.out"
  elif [ -f "$expected.txt" ]; then
    sort "$expected.txt" >"$log.expected" &&
      sort "$log.out" | diff "$log.expected" -
  fi
}

# Not so short that a worker comes when the other has done all the work.
try 'a task master and two task workers (make run)' \
  env TIME_SCALE=0.1 sh tests/run_demo.sh "$EXAMPLES"
for source in examples/*.c; do
  name=$(basename "$source" .c)
  case $name in
  task_master | task_worker | '*') ;; # above; none
  *) try "$name" prints "$name" $limit $WRAPPER "$EXAMPLES/$name" ;;
  esac
done
