#!/bin/sh
# What the benchmarks print is read right: medians, quartiles, who is ahead,
# and that a contender which is not here does not count. The rows are made up,
# for no time is measured here.
: "${BUILD:=build/default}"
tmp=$BUILD/bench-rows
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
suite=bench
. tests/try.sh
here=tests/bench

# What bench.h prints has tabs between the fields.
tr '|' '\t' >"$tmp/rows" <<'EOS'
run|CPU|a <fast> one, 2 CPUs
row|Locks|quick|ns|lower|peer|slow peer|9 8 10 7 11 
row|Locks|quick|ns|lower|peer|good peer|6 8 7 
row|Locks|quick|ns|lower|conc|conc|3 5 4 2 6 
row|Locks|quick|ns|lower|conc|conc, in another way|1 1 1 
row|Locks|late|M/s|higher|conc|conc|10 11 12 
row|Locks|late|M/s|higher|limit|bare|40 40 40 
row|Locks|late|M/s|higher|peer|good peer|20 21 22 
row|Queues|late|ns|lower|conc|conc|5 9 7 
row|Queues|late|ns|lower|peer|good peer|6 8 6 
row|Queues|nothing|KiB|lower|conc|conc|-1 -1 -1 
row|Queues|nothing|KiB|lower|peer|good peer|4 4 4 
row|Queues|alone|bytes|lower|conc|conc|1234567 
row|Queues|nobody|ns|lower|conc|conc|5 
row|Queues|nobody|ns|lower|peer|absent peer| 
a note
EOS
cat >"$tmp/reasons.txt" <<'EOS'
# SECTION | ROW | REASON
Locks | quick | is not said, for it is ahead
Locks | late | two locked instructions
EOS
cat >"$tmp/expected" <<'EOS'
CPU: a <fast> one, 2 CPUs
Locks
quick
conc 4.00 ns [3.00 .. 5.00] 1.75x of good peer
slow peer 9.00 ns [8.00 .. 10.0]
good peer 7.00 ns [6.50 .. 7.50]
conc, in another way 1.00 ns [1.00 .. 1.00]
late
conc 11.0 M/s [10.5 .. 11.5] 0.52x of good peer BEHIND 0.28x of the limit
bare 40.0 M/s [40.0 .. 40.0]
good peer 21.0 M/s [20.5 .. 21.5]
why: two locked instructions
Queues
late
conc 7.00 ns [6.00 .. 8.00] 0.86x of good peer behind, within the noise
good peer 6.00 ns [6.00 .. 7.00]
nothing
conc -1.00 KiB [-1.00 .. -1.00] over 100x of good peer
good peer 4.00 KiB [4.00 .. 4.00]
alone 1,234,567 bytes [1,234,567 .. 1,234,567]
nobody
conc 5.00 ns [5.00 .. 5.00]
absent peer not here
a note
6 rows: ahead of each peer 2, behind one 1, behind by less than the noise 1
behind 0.52x Locks: late (good peer)
close 0.86x Queues: late (good peer)
EOS
read_rows() { # THE OTHER HALF
  awk -f $here/rows.awk -f "$1" "$tmp/reasons.txt" "$tmp/rows"
}
table() {
  read_rows $here/table.awk | sed 's/^ *//; s/  */ /g; /^$/d' |
    diff "$tmp/expected" -
}
try 'the table of made-up rows' table

page() {
  read_rows $here/page.awk >"$tmp/page.html" || return
  # Each bar that there is, and nothing that a reader's browser would fetch.
  [ "$(grep -c '<svg class=bar' "$tmp/page.html")" = 12 ] &&
    grep -q 'a &lt;fast&gt; one' "$tmp/page.html" &&
    grep -q "class='chip behind'>behind, 0.52&times;" "$tmp/page.html" &&
    ! grep -qE 'src=|href=.?http|url\(' "$tmp/page.html"
}
try 'the page of made-up rows' page
