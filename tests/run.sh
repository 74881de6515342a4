#!/bin/sh
# Runs test programs and test scripts, several at a time, and sums up what they
# say. Called by make: run.sh NAME..., where NAME is a program in $BUILD or a
# script tests/NAME.sh or tests/NAME/NAME.sh. Each prints lines that begin
# with "ok", "FAIL" or "skip"; the last line here is "N passed, N failed".
: "${BUILD:=build/default}" "${EXAMPLES:=build/examples}" "${JOBS:=2}"
export BUILD EXAMPLES JOBS
logs=$BUILD/logs
rm -rf "$logs" && mkdir -p "$logs" || exit 2

# ThreadSanitizer wants a plain address space.
case $SANITIZE in *thread*)
  machine=$(uname -m)
  if [ -z "$PLAIN" ] && setarch "$machine" -R true 2>/dev/null; then
    PLAIN=1 exec setarch "$machine" -R sh "$0" "$@"
  fi ;;
esac

# Sanitizers report with a stack, and stop.
: "${ASAN_OPTIONS:=detect_stack_use_after_return=0:strict_string_checks=1}"
: "${UBSAN_OPTIONS:=print_stacktrace=1}" "${TSAN_OPTIONS:=halt_on_error=1}"
export ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS
case $SANITIZE in
'') : "${TEST_SLOW:=1}" ;;
*) : "${TEST_SLOW:=4}" ;;
esac
export TEST_SLOW

# Stopped: what the tests under way have said so far, not into their logs.
exec 3>&1
trap 'cat "$logs"/*.part >&3; trap - TERM; kill $$' TERM

one() {
  name=$1
  if [ -x "$BUILD/$name" ] && [ ! -d "$BUILD/$name" ]; then
    set -- "$BUILD/$name"
    [ -z "$FILTER" ] || set -- "$@" --filter "$FILTER"
    [ -z "$SEED" ] || set -- "$@" --seed "$SEED"
    $WRAPPER "$@" 3>&- # such as valgrind or an emulator
  elif [ -f "tests/$name.sh" ]; then
    sh "tests/$name.sh" 3>&-
  elif [ -f "tests/$name/$name.sh" ]; then
    sh "tests/$name/$name.sh" 3>&-
  else
    echo "FAIL $name: there is no such test"
    false
  fi >"$logs/$name.part" 2>&1 </dev/null
  status=$?
  # A program that failed must say so, even if it died before it could.
  if [ $status -ne 0 ] && ! grep -q '^FAIL ' "$logs/$name.part"; then
    echo "FAIL $name: exit status $status" >>"$logs/$name.part"
  elif [ -z "$FILTER" ] && ! grep -Eq '^(ok|FAIL|skip) ' "$logs/$name.part"
  then
    echo "FAIL $name: it said nothing" >>"$logs/$name.part"
  fi
  mv "$logs/$name.part" "$logs/$name.log"
  cat "$logs/$name.log"
}

# A lane takes the next test that no other lane has taken.
lane() {
  for test_name; do
    mkdir "$logs/$test_name.taken" 2>/dev/null && one "$test_name"
  done
}
# One lane more than there are CPUs, as tests also sleep; or a single one.
lanes=1
[ "$JOBS" -le 1 ] || lanes=0
while [ "$lanes" -lt "$JOBS" ]; do
  lane "$@" &
  lanes=$((lanes + 1))
done
lane "$@"
wait
for name; do
  [ -f "$logs/$name.log" ] || {
    echo "FAIL $name: it was not run to its end" | tee "$logs/$name.log"
  }
done

count() { cat "$logs"/*.log 2>/dev/null | grep -c "^$1 "; }
passed=$(count ok) failed=$(count FAIL) skipped=$(count skip)
[ "$failed" -eq 0 ] || grep -h '^FAIL ' "$logs"/*.log | sed 's/^/  /'
if [ "$skipped" -eq 0 ]; then
  echo "$passed passed, $failed failed"
else
  echo "$passed passed, $failed failed, $skipped skipped"
fi
[ "$failed" -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
