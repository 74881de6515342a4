#!/bin/sh
# The page of a running program, as a real browser shows it: Chromium, headless.
#   BUILD=build/default EXAMPLES=build/examples sh tests/interop/inspect.sh
: "${BUILD:=build/default}" "${EXAMPLES:=build/examples}"
title='interop: Chromium shows the page of a program'
case $title in *"$FILTER"*) ;; *) exit 0 ;; esac
skip() { echo "skip $title: $1"; exit 0; }
browser=$(command -v chromium || command -v chromium-browser ||
  command -v google-chrome) || skip 'there is no Chromium'
program=$BUILD/interop/inspect
[ -x "$program" ] || skip "there is no $program"

tmp=$(mktemp -d) || exit 1
mkfifo "$tmp/stop"
trap 'exec 9>&-; wait; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM HUP
fail() {
  echo "inspect.sh: $1"
  [ ! -s "$tmp/page" ] || head -c 3000 "$tmp/page"
  echo "FAIL $title"
  exit 1
}
# The option of an example, at an address that is refused.
"$EXAMPLES/task_master" --inspect 0.0.0.0:1 >"$tmp/page" 2>&1 &&
  fail 'task_master does not heed --inspect'
grep -q 'no page at 0.0.0.0:1' "$tmp/page" || fail 'task_master does not say why'

# It ends when its standard input does, however this script ends.
"$program" <"$tmp/stop" >"$tmp/port" &
exec 9>"$tmp/stop"
tries=0
while [ ! -s "$tmp/port" ]; do
  tries=$((tries + 1))
  [ $tries -lt 200 ] || fail 'it does not start'
  sleep 0.1 2>/dev/null || sleep 1
done
port=$(cat "$tmp/port")

# What the page is after two or three looks at the program.
look() { # OUT OPTION...
  out=$1
  shift
  timeout 60 "$browser" --headless --no-sandbox --disable-gpu \
    --user-data-dir="$tmp/profile" --virtual-time-budget=5000 "$@" \
    "http://127.0.0.1:$port/" >"$out" 2>"$tmp/errors"
}
look "$tmp/page" --dump-dom || skip 'Chromium does not run here'
has() {
  grep -qF -- "$1" "$tmp/page" || fail "the page lacks: $1"
}
samples=$(sed -n 's/.*data-samples="\([0-9]*\)".*/\1/p' "$tmp/page")
[ "${samples:-0}" -ge 2 ] || fail "it was refreshed ${samples:-0} times"
has '>live<'
has 'The last deadlock'
has '<title>Thread-A</title>'
has 'Locks in inverted orders'
has "thread: waits for lock 'audit'"
has 'Auditor'
has '>10,0'             # tasks
has 'Show more'
has 'queue'
has 'client &lt;em&gt;1' # a name is text
! grep -q '<em>' "$tmp/page" || fail 'a name became markup'

# What Prometheus says of /metrics, if its promtool is here.
if command -v promtool >"$tmp/which" && command -v curl >"$tmp/which"; then
  curl -s "http://127.0.0.1:$port/metrics" >"$tmp/metrics"
  promtool check metrics <"$tmp/metrics" >"$tmp/page" 2>&1 &&
    [ ! -s "$tmp/page" ] || fail 'promtool does not like /metrics'
fi
echo "ok   $title"
