#!/bin/sh
# The manual in conc.h: complete, true, and a page. Part of make test.
#   manual.sh index   makes the index in conc.h and the contents of its
#                     implementation anew (make index)
: "${CC:=cc}" "${BUILD:=build/default}"
tmp=$BUILD/manual
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
awk=${AWK:-awk}
if [ "$1" = index ]; then
  $awk -v mode=index -f tests/manual.awk conc.h >"$tmp/conc.h" &&
    cat "$tmp/conc.h" >conc.h
  exit
fi

suite=manual
. tests/try.sh
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
# Were the contents of the implementation lost, they would be none the same.
parts() {
  sed -n '/^   The implementation$/,/^   ====/p' conc.h |
    grep -c '^     >>' >"$tmp/parts"
  sed -n '/^   The implementation$/,$p' conc.h |
    grep -c '^   >>' | diff - "$tmp/parts"
}
try 'the implementation begins with its contents, of all parts' parts

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

# --- README.md: its tour compiles, its numbers are true ---

# The pieces below "The tour", with what they take as known.
tour() {
  cat <<'END'
#include "conc.h"
static void *child(void *arg) { return arg; }
static void *square(void *arg) { return arg; }
static int fd, numbers[9];
static char buf[9];
static const char *text;
static size_t size;
END
  $awk '/^## / { here = /^## The tour/ }
    here && /^```/ { inside = /c$/
      if (inside)
        print "size_t tour" ++n \
          "(ssize_t n, size_t where, double x, double y) {"
      else if (end) print "return where + (size_t)n + (x > y); }"
      end = inside; next }
    here && inside { gsub(/return;/, "return 0;"); print }' README.md
}
tour_compiles() {
  tour >"$tmp/tour.c"
  grep -q tour2 "$tmp/tour.c" || echo 'there are no two pieces'
  $CC -std=c11 -Wall -Werror -Wno-unused -I. -c -o "$tmp/tour.o" \
    "$tmp/tour.c"
}
try 'the tour of README.md compiles' tour_compiles


# About N lines: to 5 %. How much it adds: to 15 %, where README has measured.
number() { # LINE OF README, AS A BASIC REGULAR EXPRESSION WITH ONE \(NUMBER\)
  sed -n "s/.*$1.*/\1/p" README.md | tr -d , | head -1
}
near() { # SAID IS PERCENT
  [ -n "$1" ] && [ $((($1 - $2) * 100)) -le $(($2 * $3)) ] &&
    [ $((($2 - $1) * 100)) -le $(($2 * $3)) ] && return
  echo "README.md says '$1', it is $2"
}
lines() {
  near "$(number 'has about \([0-9,]*\) lines')" "$(wc -l <conc.h)" 5
}
try 'README.md knows how many lines conc.h has' lines
kib() { # PROGRAM OR OBJECT: its code and data
  size "$1" | $awk 'NR == 2 { print int(($1 + $2) / 1024) }'
}
adds() {
  locking=$(grep -l 'conc_lock lock' "$tmp"/program*.c | head -1)
  echo 'int puts(const char *); int main(void) { return puts("2") < 0; }' \
    >"$tmp/bare.c"
  gcc -O2 -DCONC_STATIC -I. "$locking" -o "$tmp/locking" -pthread &&
    gcc -O2 "$tmp/bare.c" -o "$tmp/bare" || return
  near "$(number 'adds \([0-9]*\) KiB')" \
    $(($(kib "$tmp/locking") - $(kib "$tmp/bare"))) 15
}
whole() {
  near "$(number ' s and \([0-9]*\) KiB')" "$(kib "$BUILD/conc.o")" 15
}
what='README.md knows what conc.h adds to a program'
case $CC,$(gcc --version 2>/dev/null | head -1),$(uname -m) in
cc,*' 12.'*,x86_64 | gcc,*' 12.'*,x86_64)
  try "$what" adds
  if [ "$BUILD" = build/default ] && [ -e "$BUILD/conc.o" ]; then
    try '... and without CONC_STATIC' whole
  fi
  ;;
*) echo "skip manual: $what: it was measured by gcc 12 on x86-64" ;;
esac

# --- the page ---

page=$tmp/conc.html
$awk -f tests/manual.awk conc.h >"$page"
LC_ALL=C
export LC_ALL
links() {
  grep -oE 'id="[^"]*"' "$page" | cut -d'"' -f2 | sort >"$tmp/ids"
  uniq -d "$tmp/ids"
  grep -oE 'href="#[^"]*"' "$page" | cut -d'#' -f2 | tr -d '"' |
    sort -u >"$tmp/hrefs"
  comm -13 "$tmp/ids" "$tmp/hrefs"
  cut -d' ' -f2 "$tmp/names" | sort | comm -23 - "$tmp/ids"
}
try 'the page has each name once, and every link of it leads somewhere' links
outside() {
  grep -nE '(src|href)="[^#]|<(link|iframe|object|embed)|url\(|@import' "$page"
  true
}
try 'the page needs nothing but itself' outside
# Tags that are opened are closed, in order; and what they hold is something.
tags() {
  $awk '{ page = page $0 "\n" }
    END {
      sub(/.*<style>/, "<style>", page); sub(/<style>.*<\/style>/, "", page)
      sub(/<script>.*<\/script>/, "", page); sub(/<\/head>/, "", page)
      sub(/<\/html>/, "", page)
      while (match(page, /<[^>]*>/)) {
        tag = substr(page, RSTART + 1, RLENGTH - 2)
        before = substr(page, 1, RSTART - 1)
        page = substr(page, RSTART + RLENGTH)
        if (before !~ /^[ \n]*$/) holds = 1
        sub(/ .*/, "", tag)
        if (tag == "br" || tag == "input") continue
        if (tag !~ /^\//) { open[++depth] = tag; holds = 0; continue }
        tag = substr(tag, 2)
        if (open[depth] != tag) { print open[depth] " ends as " tag; exit }
        if (!holds && tag != "td") print "an empty " tag ": " before
        depth--; holds = 1
      }
      if (depth != 0) print open[depth] " is never closed"
    }' "$page"
}
try 'its tags fit each other, and none is empty' tags
# What is left of it without what is set as code.
uncoded() {
  $awk '{ page = page $0 "\n" }
    function cut(from, to,   done) {
      done = ""
      while (match(page, from)) {
        done = done substr(page, 1, RSTART - 1)
        page = substr(page, RSTART)
        page = substr(page, index(page, to) + length(to))
      }
      page = done page
    }
    END {
      cut("<style>", "</style>"); cut("<script>", "</script>")
      cut("<pre[^>]*>", "</pre>"); cut("<code>", "</code>")
      printf "%s", page
    }' "$page"
}
uncoded >"$tmp/uncoded"
bare() {
  grep -q '<h2' "$tmp/uncoded" || echo 'nothing is left'
  grep -nE -- '-E[A-Z]{2}|`' "$tmp/uncoded"
  true
}
try 'its prose has no error that could break, and no backtick' bare
try '... and an error never does' \
  grep -q '^code {.*white-space: nowrap' "$page"
grep -oE '<h2 id="[^"]*"' "$page" | cut -d'"' -f2 >"$tmp/sections"
navigation() {
  test "$(wc -l <"$tmp/sections")" -gt 15 || echo 'no sections'
  $awk 'FILENAME ~ /names$/ && $1 != "field" { wanted[$2] = $3; next }
    FILENAME ~ /sections$/ { section[$1] = 1 }
    FILENAME !~ /html$/ { next }
    /^<nav>/ { nav = 1 }
    /^<h2 / { here = $0; gsub(/^<h2 id="|".*/, "", here) }
    /^<p class="names">/ { line = 1 }
    nav || line {
      for (l = $0; match(l, /"#[^"]*"/); l = substr(l, RSTART + RLENGTH)) {
        name = substr(l, RSTART + 2, RLENGTH - 3)
        if (nav) inside[name] = 1
        else under[name] = here
      }
    }
    /<\/nav>/ { nav = 0 }
    /<\/p>/ { line = 0 }
    END {
      for (name in section) if (!(name in inside)) print name
      for (name in wanted) {
        if (!(name in inside)) print name
        if (under[name] != wanted[name]) print name " under " under[name]
      }
    }' "$tmp/names" "$tmp/sections" "$page"
}
try 'its navigation has all sections and names, a heading those of its own' \
  navigation
filter() {
  grep -q '<input id="find"[^>]* hidden>' "$page" || echo 'no field for it'
  grep -q 'find.hidden = false' "$page" || echo 'the field stays hidden'
  grep -q 'find.oninput' "$page" || echo 'nothing happens in it'
  grep -q '<noscript' "$page" && echo 'it is in need of a script'
  true
}
try 'its names have a filter, which shows when there is a script' filter
# Each row of the matrix has as many cells as its head.
matrix() {
  $awk '/^<h2 / { here = /id="matrix"/ }
    here && /<pre/ { print "not a table: " $0 }
    here && /<tr>/ {
      l = $0
      cells = gsub(/<t[hd][ >]/, "&", l)
      if (match(l, /colspan="[0-9]+/))
        cells += substr(l, RSTART + 9, RLENGTH - 9) - 1
      if (rows++ == 0) columns = cells
      if (cells != columns) print cells " cells: " $0
    }
    END { if (rows < 10 || columns != 3) print rows " rows of " columns }
  ' "$page"
}
try 'its matrix is a table' matrix
chapters() {
  for tag in words options contract; do
    $awk -v tag="id=\"$tag\"" '/^<h2 / { here = index($0, tag) }
      here && /<pre/ { print tag " " $0 }
      here && /<dt>/ { terms++ }
      END { if (terms < 5) print tag " has " terms + 0 " terms" }' "$page"
  done
}
try 'what it explains by words are lists' chapters

# How each form of a comment looks there.
cat >"$tmp/small.h" <<'END'
/* conc.h - v9.9.9 - a page. It says -EINVAL, never `-EPIPE or so`.

     >>first   what it is about
     >>second  and more of it

   >>first

                  one         two
     conc_it      yes         no; and
                              more
     longer name's  text: all of it
     conc_fn is for one row */

/* ---------------------------------------------------------------------------
   >>second: what it has

   Threads    any,
              or none
   ------------------------------------------------------------------------ */

/* Private to somebody. */
struct conc__it {
  int it;
};

/* Does it.

     if (a < b) {

       conc_it(`b`);
     }

   Errors:
   -EINVAL     the timeout is
               not a number
   -EADDRINUSE, -EADDRNOTAVAIL
               no address
   EAGAIN  not now: see conc_it()
   Then .more of it:
   - one,
     two
   - three */
CONC_API int conc_it(int a,
                     int b);
CONC_API int conc_at(int a);

/* Of nothing. */

#endif /* CONC_H */
END
cat >"$tmp/small.html" <<'END'
<h1>conc.h </h1>
<p>A page. It says <code>-EINVAL</code>, never <code>-EPIPE or so</code>.</p>
<dl style="--term: 8ch">
<div><dt><a href="#first">first</a></dt><dd>what it is about</dd></div>
<div><dt><a href="#second">second</a></dt><dd>and more of it</dd></div>
</dl>
<h2 id="first">first <small>what it is about</small></h2>
<table>
<thead><tr><td></td><th>one</th><th>two</th></tr></thead>
<tbody>
<tr><th><code><a href="#conc_it">conc_it</a></code></th><td data-of="one">yes</td><td data-of="two">no; and more</td></tr>
<tr><th>longer name's  text</th><td colspan="2">all of it</td></tr>
<tr><th colspan="3"><code>conc_fn</code> is for one row</th></tr>
</tbody>
</table>
<h2 id="second">second <small>what it has</small></h2>
<p class="names">
<a href="#conc_it">conc_it</a>
<a href="#conc_at">conc_at</a></p>
<dl style="--term: 7ch">
<div><dt>Threads</dt><dd>any, or none</dd></div>
</dl>
<div class="entry">
<pre class="wraps">int <b id="conc_it">conc_it</b>(int a,
                     int b);
int <b id="conc_at">conc_at</b>(int a);</pre>
<p>Does it.</p>
<pre>if (a &lt; b) {

  <a href="#conc_it">conc_it</a>(`b`);
}</pre>
<p>Errors:</p>
<dl style="--term: 24ch">
<div><dt><code>-EINVAL</code></dt><dd>the timeout is not a number</dd></div>
<div><dt><code>-EADDRINUSE</code>, <code>-EADDRNOTAVAIL</code></dt><dd>no address</dd></div>
<div><dt><code>EAGAIN</code></dt><dd>not now: see <code><a href="#conc_it">conc_it</a>()</code></dd></div>
</dl>
<p>Then <code>.more</code> of it:</p>
<ul>
<li>one,
two</li>
<li>three</li>
</ul>
</div>
<p>Of nothing.</p>
END
small() {
  $awk -f tests/manual.awk "$tmp/small.h" |
    $awk '/<main>/ { inside = 1; next } /<\/main>/ { exit } inside' |
    diff "$tmp/small.html" -
}
try 'every form of a comment looks as it should' small
portable() {
  for other in mawk gawk 'gawk --posix' 'busybox awk' original-awk; do
    command -v "${other%% *}" >/dev/null || continue
    $other -f tests/manual.awk conc.h | cmp - "$page" || echo "by $other"
  done
}
try 'every awk that is here makes the same page' portable
