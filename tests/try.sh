# For tests that are scripts: sourced with the name of the suite in $suite and a
# folder of its own in $tmp.

# try TITLE COMMAND...: the command must be silent, and succeed.
try() {
  title=$1
  shift
  "$@" >"$tmp/log" 2>&1 || echo "exit status $?" >>"$tmp/log"
  if [ ! -s "$tmp/log" ]; then
    echo "ok   $suite: $title"
  else
    echo "$ $*"
    head -50 "$tmp/log"
    echo "FAIL $suite: $title"
  fi
}
