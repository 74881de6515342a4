#!/bin/sh
# How conc.h is built: what it says of its own order, checked. Part of make
# test.
: "${BUILD:=build/default}"
tmp=$BUILD/rooms
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
awk=${AWK:-awk}

suite=rooms
. tests/try.sh

# Each function with its half, its section, its first and its last line:
#   declared|defined NAME SECTION FROM TO
functions() {
  $awk '
    /^   The implementation$/ { implementation = 1 }
    /^   >>[a-z]+/ { section = $1; gsub(/>>|:.*/, "", section) }
    /^(CONC_[A-Z_]+|static|struct) / { head = ""; from = NR }
    from > 0 {
      head = head " " $0
      if (head ~ /;$/ && head !~ /\{/) {
        if (match(head, /conc_[a-z0-9_]+\(/) && head !~ /=/)
          print "declared", substr(head, RSTART, RLENGTH - 1), section, from, NR
        from = 0
      } else if (head ~ /\{.*\}$/ || $0 == "}") {
        if (match(head, /conc_[a-z0-9_]+\(/))
          print "defined", substr(head, RSTART, RLENGTH - 1), section, from, NR
        from = 0
      } else if ($0 == "" || /^}/) {
        from = 0
      }
    }' conc.h
}
functions >"$tmp/functions"

upward() { $awk -f tests/layers.awk conc.h conc.h; }
try 'a part uses only parts above it' upward

large() {
  $awk '
    /^   >>[a-z]+/ {
      if (NR - from > 1300 && name != "") print name, NR - from, "lines"
      name = $1; from = NR
    }
    END { if (NR - from > 1300) print name, NR - from, "lines" }' conc.h
}
try 'no section is longer than 1,300 lines' large

# Tags stand in the order of the contents, each once in a half.
contents() { sed -n '/^   Contents\./,/^   >>words/p' conc.h |
  sed -n 's/^     >>\([a-z]*\) .*/\1/p'; }
tags() { sed -n "$1"'s/^   >>\([a-z]*\).*/\1/p' conc.h; }
first=$(grep -n '^   The implementation$' conc.h | cut -d: -f1)
ordered() {
  contents >"$tmp/contents"
  for half in "1,$first" "$first,\$"; do
    tags "$half" >"$tmp/tags"
    grep -Fxf "$tmp/tags" "$tmp/contents" | diff - "$tmp/tags"
  done
  for tag in $(cat "$tmp/contents"); do
    grep -q "^   >>$tag\b" conc.h || echo "no section $tag"
  done
}
try 'sections stand in the order of the contents' ordered

# conc__... are private; a public function has its body where it is declared.
homes() {
  $awk '$2 ~ /^conc__/ { next }
    $1 == "declared" && !($2 in home) { home[$2] = $3 }
    $1 == "defined" {
      if (!($2 in home)) print $2, "is not declared"
      else if (home[$2] != $3)
        print $2, "is declared in", home[$2], "and defined in", $3
      done[$2] = 1
    }
    END { for (f in home) if (!(f in done)) print f, "has no body" }
  ' "$tmp/functions"
}
try 'a body stands in the section of its declaration' homes
found() {
  $awk '$1 == "declared" && $2 !~ /^conc__/ { print $2 }' "$tmp/functions" |
    sort -u | while read -r f; do
      n=$(grep -c "^CONC_API.*\b$f(" conc.h)
      [ "$n" -eq 2 ] || echo "$f: $n lines"
    done
}
try 'one grep finds the declaration and the body of each' found

twins() {
  grep -oE '\bconc_[a-z0-9_]+' conc.h | sort -u | grep -v '^conc__' \
    >"$tmp/public"
  grep -oE '\bconc__[a-z0-9_]+' conc.h | sort -u | sed 's/^conc__/conc_/' |
    grep -Fxf - "$tmp/public"
  true
}
try 'no private name is a public one with an underscore more' twins

once() {
  n=$(grep -c 'pthread_atfork(' conc.h)
  [ "$n" -eq 1 ] || echo "$n lines"
}
try 'there is one pthread_atfork' once

# What is special to a kind of task, or to a class of actors or queues, stands
# in one place: its own section.
kinds() {
  $awk '
    /^   >>[a-z]+/ { section = $1; gsub(/>>|:.*/, "", section) }
    match($0, /^static const conc__kind conc__[a-z_]+/) {
      home[substr($0, 25, RLENGTH - 24)] = section
    }
    match($0, /kind [!=]= &conc__[a-z_]+/) {
      used[++n] = substr($0, RSTART + 9, RLENGTH - 9)
      where[n] = section; line[n] = NR
    }
    END {
      for (i = 1; i <= n; i++)
        if (home[used[i]] != where[i]) print "conc.h:" line[i], used[i]
    }' conc.h
  grep -nE 'ops(->[a-z_]+)? [!=]= ' conc.h |
    grep -v 'NULL\|actor->ops == &conc__coro_class;'
  true
}
try 'kinds and classes are told apart in their own sections only' kinds

spins() { grep -c conc__spin_budget conc.h | grep -vx 2; true; }
try 'there is one busy wait' spins

# A function of more than 20 lines says above it what it is for.
bare() {
  $awk '
    /^   The implementation$/ { implementation = 1 }
    /^ *\/\*/ { comment = 1 }
    { if (comment && /\*\//) { comment = 0; last = NR } }
    !implementation || comment { next }
    /^(CONC_[A-Z_]+|static) / && !/;$/ {
      from = NR; head = ""; commented = last == NR - 1
    }
    from > 0 {
      head = head " " $0
      if (head !~ /\{/ && /;$/) from = 0
    }
    from > 0 && /^}/ {
      if (match(head, /conc_[a-z0-9_]+\(/) && !commented && NR - from > 20)
        print "conc.h:" from, substr(head, RSTART, RLENGTH - 1)
      from = 0
    }' conc.h
}
try 'a function of more than 20 lines has a comment above it' bare

share() {
  $awk '
    /^   The implementation$/ { implementation = 1 }
    !implementation { next }
    { lines++ }
    comment { comments++; if (/\*\//) comment = 0; next }
    /^ *\/\*/ { comments++; if (!/\*\//) comment = 1 }
    END { if (comments < 0.15 * lines) print 100 * comments / lines, "%" }
  ' conc.h
}
try 'at least 15 lines in 100 of the implementation are comments' share

# A comment names what there is: a function that was renamed or has gone is
# not to be looked for. The history names what has gone on purpose.
names() {
  grep -oE '(conc__?[a-z0-9_]+[a-z0-9]|CONC__?[A-Z0-9_]+[A-Z0-9])([^a-zA-Z0-9_]|$)' |
    grep -oE '^[a-zA-Z0-9_]+' | sort -u
}
gone() {
  $awk '/^   >>version/ { history = 1 } /^#ifndef CONC_STATIC/ { history = 0 }
    !history' conc.h | names >"$tmp/named"
  $awk '{
    line = $0
    while (line != "") {
      at = index(line, inside ? "*/" : "/*")
      if (!inside) print at ? substr(line, 1, at - 1) : line
      line = at ? substr(line, at + 2) : ""
      if (at) inside = !inside
    }
  }' conc.h | names >"$tmp/there"
  comm -23 "$tmp/named" "$tmp/there"
  grep -oE '>>[a-z]+' conc.h | sort -u | while read -r room; do
    grep -q "^   $room" conc.h || echo "$room"
  done
}
try 'comments name what there is' gone
