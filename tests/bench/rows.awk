# rows.awk: reads the rows that the benchmarks print (bench.h says how), and
# works out what a reader wants to know of each. It is the first half of a
# program; table.awk or page.awk is the other:
#
#   awk -f rows.awk -f table.awk reasons.txt -    (the rows on the input)
#
# The other half has three functions: on_section(), on_row() and on_note(). A
# row is whole when the next one begins: then on_row() finds, for each of its
# contenders i from 1 to contenders,
#
#   who[i] role[i] median[i] low[i] high[i] rounds[i]    (low, high: quartiles)
#
# order[k], which is the contender to show in the k-th place: ours first; and
# of the row: section, row, unit, better; ours (the contender of conc.h that is
# compared, 0: none); best (the peer that is best, 0: none); limit (the first
# one, 0: none); ratio (how many times ours is as good as the best peer);
# verdict ("", "ahead", "behind", or "close": behind, but the quartiles
# overlap); reason (why it is behind, where that is known: reasons.txt).

BEGIN { FS = "\t"; rows = ahead = behind = close_by = 0 }

# What is before the rows: SECTION | ROW | REASON.
FILENAME ~ /reasons[.]txt$/ {
  if ($0 ~ /^#/ || split($0, part, / [|] /) < 3) next
  reasons[part[1] " | " part[2]] = part[3]
  next
}

# Puts the numbers of a text into values[1..n], in order; n.
function sorted(text, values,    n, i, k, x) {
  n = split(text, values, " ")
  for (i = 2; i <= n; i++) {
    x = values[i] + 0
    for (k = i - 1; k >= 1 && values[k] + 0 > x; k--) values[k + 1] = values[k]
    values[k + 1] = x
  }
  return n
}

# The value that the share p of the sorted ones lies below, between two of them
# by their distance.
function quantile(values, n, p,    at, i) {
  at = 1 + p * (n - 1)
  i = int(at)
  if (i >= n) return values[n] + 0
  return values[i] + (at - i) * (values[i + 1] - values[i])
}

# Whether the contender i is better than the contender k.
function beats(i, k) {
  return better == "higher" ? median[i] > median[k] : median[i] < median[k]
}

# How many times as good as k is i. Of nothing at all (memory that has become
# less, say) nobody has less: that is very many times.
function times(i, k,    more, less) {
  more = better == "higher" ? median[i] : median[k]
  less = better == "higher" ? median[k] : median[i]
  if (less <= 0) return more <= 0 ? 1 : 1e9
  return more / less
}

# That in words, but for what stands behind the number.
function in_words(ratio, sign) {
  return ratio >= 100 ? "over 100" sign : sprintf("%.2f", ratio) sign
}

# Three digits, and no exponent.
function number(x,    a) {
  a = x < 0 ? -x : x
  if (a >= 999.5) {
    x = sprintf("%.0f", x)
    while (x ~ /[0-9][0-9][0-9][0-9]($|,)/)
      x = with_comma(x)
    return x
  }
  return a >= 99.95 ? sprintf("%.0f", x) : a >= 9.995 ? sprintf("%.1f", x) \
       : a >= 0.0995 || a == 0 ? sprintf("%.2f", x) : sprintf("%.2g", x)
}

# Sets off the last three digits that are not set off yet.
function with_comma(x,    head, n) {
  n = index(x, ",")
  head = n > 0 ? substr(x, 1, n - 1) : x
  return substr(head, 1, length(head) - 3) "," substr(head, length(head) - 2) \
         (n > 0 ? substr(x, n) : "")
}

function row_end(    i) {
  if (row == "") return
  best = ours = limit = 0
  ratio = 0
  verdict = ""
  for (i = 1; i <= contenders; i++) {
    if (rounds[i] == 0) continue
    if (role[i] == "conc" && ours == 0) ours = i
    if (role[i] == "limit" && limit == 0) limit = i
    if (role[i] == "peer" && (best == 0 || beats(i, best))) best = i
  }
  if (ours > 0 && best > 0) {
    ratio = times(ours, best)
    verdict = ratio >= 1 ? "ahead" \
              : low[ours] <= high[best] && low[best] <= high[ours] ? "close" \
              : "behind"
  }
  order[1] = ours > 0 ? ours : 1
  for (i = 1; i <= contenders; i++)
    if (i != order[1]) order[i < order[1] ? i + 1 : i] = i
  ahead += verdict == "ahead"
  behind += verdict == "behind"
  close_by += verdict == "close"
  rows++
  reason = verdict == "ahead" ? "" : reasons[section " | " row]
  on_row()
  row = ""
}

$1 == "row" {
  if ($2 != section || $3 != row) row_end()
  if ($2 != section) {
    section = $2
    on_section()
  }
  if (row == "") contenders = 0
  row = $3
  unit = $4
  better = $5
  contenders++
  role[contenders] = $6
  who[contenders] = $7
  rounds[contenders] = sorted($8, samples)
  median[contenders] = quantile(samples, rounds[contenders], 0.5)
  low[contenders] = quantile(samples, rounds[contenders], 0.25)
  high[contenders] = quantile(samples, rounds[contenders], 0.75)
  next
}

# What is said of the run as a whole: NAME, VALUE.
$1 == "run" {
  row_end()
  on_run($2, $3)
  next
}

{
  row_end()
  if ($0 != "") on_note($0)
}
