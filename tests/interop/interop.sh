#!/bin/sh
# C against unmodified Python, in both directions, on every Python found:
# ~/.pyenv/versions, python3 on the PATH, or those in the variable PYTHONS.
#   BUILD=build/default EXAMPLES=build/examples sh tests/interop/interop.sh
# Prints a line per test; without any Python it skips and says so.
here=$(dirname "$0")
# It takes minutes, and no Python: only if it is asked for.
[ -z "$NETNS_MESSAGES" ] || sh "$here/netns.sh" || exit 1
driver=
found=
for python in ${PYTHONS:-"$HOME"/.pyenv/versions/*/bin/python python3}; do
  version=$("$python" -c '
import sys, multiprocessing.managers
print("%d%02d" % sys.version_info[:2])' 2>/dev/null) || continue
  found="$found $python"
  # The driver is a recent one; text of 3.6 would do.
  [ "$version" -lt 306 ] || driver=$python
done
if [ -z "$driver" ]; then
  echo "skip interop: no Python 3 found"
  exit 0
fi
"$driver" -W ignore "$here/interop.py" $found
status=$?
PYTHON=$driver sh "$here/tunnel.sh" || status=1
sh "$here/redis.sh" || status=1
sh "$here/inspect.sh" || status=1
exit $status
