# page.awk: draws the rows that rows.awk has read: a page of its own, without a
# script, light or dark as the reader's system is, for a wide screen and for a
# telephone. Bars are medians, whiskers go from quartile to quartile.

function escaped(text) {
  gsub(/&/, "\\&amp;", text)
  gsub(/</, "\\&lt;", text)
  gsub(/>/, "\\&gt;", text)
  return text
}

# What the page has before its rows is printed at the end, for it says how many
# rows there are: so all is kept.
function put(text) { body = body text "\n" }

function on_run(name, value) {
  facts = facts "<dt>" escaped(name) "</dt><dd>" escaped(value) "</dd>"
}

function on_note(text) {
  sub(/^ +/, "", text)
  end_table()
  put("<p class=note>" escaped(text) "</p>")
}

function end_table() {
  if (in_table) put("</table></div>")
  in_table = 0
}

function on_section() {
  end_table()
  if (in_section) put("</section>")
  in_section = 1
  sections++
  links = links "<a href='#s" sections "'>" escaped(section) "</a> "
  put("<section id='s" sections "'><h2>" escaped(section) "</h2>")
}

# A row of one contender needs no bar: such rows make a table.
function alone_row() {
  if (!in_table) put("<div class=wide><table>")
  in_table = 1
  put("<tr><td>" escaped(row) "<td class=v>" \
      (rounds[1] == 0 ? "not here" : number(median[1]) " " escaped(unit)) \
      "<td class=q>" (rounds[1] > 1 ? quartiles(1) : ""))
}

function quartiles(i) { return number(low[i]) " &ndash; " number(high[i]) }

function percent(x) {
  return sprintf("%.2f%%", most > 0 && x > 0 ? 100 * x / most : 0)
}

# The bar and the whisker of a contender.
function bar(i,    kind) {
  kind = i == ours ? "ours" : role[i]
  return "<svg class=bar role=img aria-label='" number(median[i]) " " \
         escaped(unit) "'><rect class='" kind "' y='3' height='12' rx='2' " \
         "width='" percent(median[i]) "'/><g class=whisker>" \
         "<line x1='" percent(low[i]) "' x2='" percent(high[i]) \
         "' y1='9' y2='9'/>" \
         "<line x1='" percent(low[i]) "' x2='" percent(low[i]) \
         "' y1='5' y2='13'/>" \
         "<line x1='" percent(high[i]) "' x2='" percent(high[i]) \
         "' y1='5' y2='13'/></g></svg>"
}

# How ours does: a word beside the number, for not everybody sees colours.
function chip() {
  return (verdict == "" ? "" : against_peer()) \
         (ours > 0 && limit > 0 ? " <small class=chip>" \
          in_words(times(ours, limit), "&times;") " of the limit</small>" : "")
}

function against_peer() {
  return "<span class='chip " verdict "'>" \
         (verdict == "behind" ? "behind, " \
          : verdict == "close" ? "behind, within the noise, " : "") \
         in_words(ratio, "&times;") " of " escaped(who[best]) "</span>"
}

function on_row(    i, k) {
  if (contenders == 1) {
    alone_row()
    return
  }
  end_table()
  most = 0
  for (i = 1; i <= contenders; i++)
    if (rounds[i] > 0 && high[i] > most) most = high[i]
  put("<article><h3>" escaped(row) " <small>" escaped(unit) ", " better \
      " is better</small>" chip() "</h3>")
  for (k = 1; k <= contenders; k++) {
    i = order[k]
    put("<div class=one><span class='who" (i == ours ? " us" : "") "'>" \
        escaped(who[i]) (role[i] == "limit" ? " <small>(limit)</small>" : "") \
        "</span>" \
        (rounds[i] == 0 ? "<span class=none>not here</span>" \
         : "<span class=v>" number(median[i]) " <small class=q>" \
           quartiles(i) "</small></span>" bar(i)) "</div>")
  }
  if (reason != "") put("<p class=why>Why: " escaped(reason) "</p>")
  put("</article>")
  if (verdict == "behind" || verdict == "close")
    list = list "<li>" escaped(section) ": " escaped(row) " " against_peer()
}

END {
  row_end()
  end_table()
  if (in_section) put("</section>")
  print "<!doctype html><html lang=en><meta charset=utf-8>"
  print "<meta name=viewport content='width=device-width,initial-scale=1'>"
  print "<meta name=color-scheme content='light dark'>"
  print "<title>conc.h: benchmarks</title><style>"
  print ":root{--bg:#fff;--fg:#1b1f24;--soft:#57606a;--line:#d8dee4;"
  print "--ours:#0b62d6;--also:#8db8ee;--peer:#9aa4af;--limit:#e9edf1;"
  print "--bad:#a40e26;--badbg:#ffe9e9;--even:#7a4b00;--evenbg:#fff3d6;"
  print "--good:#116329;--goodbg:#e2f5e6}"
  print "@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e4e9ef;"
  print "--soft:#9aa5b1;--line:#2a323b;--ours:#5aa2ff;--also:#2f5f9c;"
  print "--peer:#66717d;--limit:#222a33;--bad:#ffb1b1;--badbg:#4d1a1f;"
  print "--even:#ffd58a;--evenbg:#43320f;--good:#9be3ab;--goodbg:#143820}}"
  print "*{box-sizing:border-box}"
  print "body{margin:0 auto;padding:1rem;max-width:70rem;"
  print "background:var(--bg);color:var(--fg);"
  print "font:15px/1.45 system-ui,sans-serif}"
  print "h1{font-size:1.6rem;margin:.3em 0}"
  print "h2{font-size:1.25rem;margin:2.2em 0 .4em;"
  print "border-bottom:1px solid var(--line);padding-bottom:.2em}"
  print "h3{font-size:1rem;margin:1.3em 0 .35em}small{color:var(--soft);"
  print "font-weight:400;font-size:.82em}a{color:var(--ours)}"
  print "nav{display:flex;flex-wrap:wrap;gap:.2em 1em;margin:1em 0}"
  print "dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em;"
  print "margin:1em 0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}"
  print ".one{display:grid;gap:.1em .8em;"
  print "grid-template-columns:15rem 1fr 13rem;"
  print "grid-template-areas:'who bar v';align-items:center;margin:.1em 0}"
  print ".who{text-align:right;grid-area:who}.us{font-weight:600}"
  print ".one .v{grid-area:v}.none{grid-area:bar}"
  print ".bar{width:100%;height:18px;overflow:visible;display:block;"
  print "grid-area:bar}"
  print ".ours{fill:var(--ours)}.conc{fill:var(--also)}.peer{fill:var(--peer)}"
  print ".limit{fill:var(--limit);stroke:var(--peer)}"
  print ".whisker line{stroke:var(--fg);stroke-width:1.4}"
  print ".v,.q{font-variant-numeric:tabular-nums;white-space:nowrap}"
  print ".none,.note{color:var(--soft)}.why{color:var(--soft);margin:.3em 0}"
  print ".chip{display:inline-block;border-radius:.7em;padding:0 .6em;"
  print "margin-left:.6em;font-size:.82rem;font-weight:500}"
  print ".ahead{color:var(--good);background:var(--goodbg)}"
  print ".behind{color:var(--bad);background:var(--badbg)}"
  print ".close{color:var(--even);background:var(--evenbg)}"
  print ".wide{overflow-x:auto}table{border-collapse:collapse;margin:.6em 0}"
  print "td{padding:.1em 1em .1em 0}td.q{color:var(--soft)}"
  print "td.v{text-align:right}"
  print "li{margin:.2em 0}"
  print "@media(max-width:46rem){.one{grid-template-columns:1fr max-content;"
  print "grid-template-areas:'who v' 'bar bar';margin:.3em 0}"
  print ".who{text-align:left}.none{grid-area:v}h3 small{display:block}"
  print ".chip{margin-left:0}dl{grid-template-columns:1fr;gap:0}"
  print "dd{margin-bottom:.4em}}"
  print "</style><h1>conc.h: benchmarks</h1>"
  print "<dl>" facts "</dl>"
  printf "<p>%d rows. Of those with a peer, conc.h is ahead of each in %d, " \
         "behind one in %d, and behind by less than the noise in %d.\n", rows,
         ahead, behind, close_by
  print "Bars are medians, and whiskers go from the lower quartile of the"
  print "rounds to the upper. &ldquo;1.20&times; of Go&rdquo; is 1.2 times as"
  print "good as the best peer, whether more or less is better. A limit is no"
  print "peer: it does less, and nothing can be had for less.</p>"
  print "<nav>" links "</nav>"
  if (list != "") print "<h2>Behind</h2><ul>" list "</ul>"
  printf "%s", body
  print "</html>"
}
