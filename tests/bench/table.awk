# table.awk: prints the rows that rows.awk has read, as they come.
#
# A line for each contender: its median, and between which quartiles its rounds
# lie. "1.20x of Go" is: 1.2 times as good as the best peer, whether more or
# less is better.

function on_run(name, value) { printf "%s: %s\n", name, value }

function on_note(text) {
  print text
  fflush()
}

function on_section() { printf "\n%s\n", section }

function on_row(    i, k, line, mark) {
  for (k = 1; k <= contenders; k++) {
    i = order[k]
    if (contenders == 1) line = sprintf("  %-40s", row)
    else {
      if (k == 1) printf "  %s\n", row
      line = sprintf("    %-38s", who[i])
    }
    if (rounds[i] == 0) {
      print line "   not here"
      continue
    }
    line = line sprintf(" %10s %-9s %-21s", number(median[i]), unit,
                        "[" number(low[i]) " .. " number(high[i]) "]")
    if (i == ours && best > 0) {
      mark = verdict == "behind" ? "  BEHIND" \
             : verdict == "close" ? "  behind, within the noise" : ""
      line = line sprintf(" %7s of %s%s", in_words(ratio, "x"), who[best],
                          mark)
    }
    if (i == ours && limit > 0)
      line = line sprintf(" %7s of the limit",
                          in_words(times(ours, limit), "x"))
    sub(/ +$/, "", line)
    print line
  }
  if (reason != "") print "      why: " reason
  if (verdict == "behind" || verdict == "close")
    list = list sprintf("  %-8s %s  %s: %s (%s)\n", verdict,
                        in_words(ratio, "x"), section, row, who[best])
  fflush()
}

END {
  row_end()
  printf "\n%d rows: ahead of each peer %d, behind one %d, %s %d\n", rows,
         ahead, behind, "behind by less than the noise", close_by
  printf "%s", list
}
