#!/bin/sh
# The manual in conc.h: complete, true, and a page. Part of make test.
#   manual.sh index   makes the index in conc.h anew (make index)
: "${CC:=cc}" "${BUILD:=build/default}"
tmp=$BUILD/manual
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
awk=${AWK:-awk}
if [ "$1" = index ]; then
  $awk -v mode=index -f tests/manual.awk conc.h >"$tmp/conc.h" &&
    cat "$tmp/conc.h" >conc.h
  exit
fi

# try TITLE COMMAND...: the command must be silent.
try() {
  title=$1
  shift
  "$@" >"$tmp/log" 2>&1 || echo "exit status $?" >>"$tmp/log"
  if [ ! -s "$tmp/log" ]; then
    echo "ok   manual: $title"
  else
    head -50 "$tmp/log"
    echo "FAIL manual: $title"
  fi
}
manual() { $awk -v mode="$1" -f tests/manual.awk conc.h; }

manual names >"$tmp/names"
try 'there are names' test "$(wc -l <"$tmp/names")" -gt 200
undocumented() { grep ' undocumented$' "$tmp/names"; true; }
try 'every public name is documented' undocumented
# An independent count: what the compiler sees.
declared() {
  $CC -E conc.h | grep -oE '\bconc_[a-z0-9_]+ ?\(' | tr -d ' (' |
    grep -v '^conc__' | sort -u |
    while read -r f; do
      grep -qE "^(function|type) $f " "$tmp/names" || echo "$f"
    done
}
try 'and none is forgotten' declared
same_index() { manual index | diff conc.h - | head -30; }
try 'the index has them all (or else: make index)' same_index

# What is spoken of exists: a public name, an option, a fact.
spoken() {
  { manual words; grep -oE '\b(conc|CONC)_[A-Za-z0-9_]+' README.md |
    grep -v '_$'; } | sort -u |
    while read -r word; do
      grep -q "^[a-z]* $word " "$tmp/names" ||
        grep -Eq "(ifn?def|defined\(?) *$word\b|conc_[a-z]*\($word" conc.h ||
        echo "$word"
    done
}
try 'no name is spoken of that does not exist' spoken

cat tests/*.[ch] tests/*.sh tests/*/*.c examples/*.c >"$tmp/tests"
grep -oE '\b(conc|CONC)_[A-Za-z0-9_]+' "$tmp/tests" | sort -u >"$tmp/used"
grep -oE '(\.|->)[a-z_0-9]+' "$tmp/tests" | sed 's/.*[.>]//' |
  sort -u >"$tmp/used_fields"
untested() {
  while read -r kind name _; do
    case $kind in
    field) grep -qx "${name#*.}" "$tmp/used_fields" || echo "$name" ;;
    *) grep -qx "$name" "$tmp/used" || echo "$name" ;;
    esac
  done <"$tmp/names"
}
try 'every public name is used by a test' untested

# Programs in it.
$awk -v dir="$tmp" '
  /^#endif \/\* CONC_H/ { exit }
  /^     / { block = block substr($0, 6) "\n"; next }
  /^$/ && block != "" { block = block "\n"; next }
  { if (block ~ /int main/) {
      file = dir "/program" ++n ".c"
      sub(/^#define CONC_IMPLEMENTATION\n#include "conc.h"\n\n+#/, "#", block)
      if (block !~ /#include/)
        block = "#define CONC_IMPLEMENTATION\n#include \"conc.h\"\n" \
                "#include <stdio.h>\n" block
      printf "%s", block > file
    }
    block = "" }' conc.h
runs() {
  $CC -std=c11 -O1 -DCONC_STATIC -Wall -Wextra -Werror -Wno-unused \
    -Wno-misleading-indentation -I. -o "$tmp/program" "$1" -pthread &&
    "$tmp/program" >"$tmp/out" && [ -s "$tmp/out" ] &&
    cat "$tmp/out" >>"$tmp/outs"
}
for program in "$tmp"/program*.c; do
  try "$(basename "$program" .c) in it compiles and runs" runs "$program"
done
said='2 0 hello 1 4 9 16 a b 42'
try 'those of the tour print what it says' \
  test "$(grep -v '>>>' "$tmp/outs" | xargs)" = "$said"

# The page.
$awk -f tests/manual.awk conc.h >"$tmp/conc.html"
links() {
  grep -oE 'id="[^"]*"' "$tmp/conc.html" | cut -d'"' -f2 | sort >"$tmp/ids"
  uniq -d "$tmp/ids"
  grep -oE 'href="#[^"]*"' "$tmp/conc.html" | cut -d'#' -f2 | tr -d '"' |
    sort -u >"$tmp/hrefs"
  comm -13 "$tmp/ids" "$tmp/hrefs"
  cut -d' ' -f2 "$tmp/names" | sort | comm -23 - "$tmp/ids"
}
LC_ALL=C
export LC_ALL
try 'the page has each name once, and every link of it leads somewhere' links
outside() { grep -nE '(src|href)="[^#]' "$tmp/conc.html"; true; }
try 'the page needs nothing but itself' outside
