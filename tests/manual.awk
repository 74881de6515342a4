# Reads the public half of conc.h.
#   awk -f manual.awk conc.h                the manual as a page of HTML
#   awk -v mode=names -f manual.awk conc.h  a line for each public name: kind,
#                                           name, section, whether documented
#   awk -v mode=index -f manual.awk conc.h  conc.h with its index, and the
#                                           contents of its implementation,
#                                           made anew
#   awk -v mode=words -f manual.awk conc.h  the names that comments speak of
# POSIX awk is enough. One pass fills the arrays name[] and out[]; how conc.h
# is written is all that it knows of C. In a comment
#   >>tag: title            begins a section, --- title --- a part of one
#   term   text             two blanks or more: an item of a list
#   - text                  an item of a list, too
#   Errors:                 alone in its line: a list of errors follows
#   deeper lines            a list or a table, if they look like one; else code
# and a declaration comes with the comment that ends in the line above it.

function add(kind, n, documented) {
  if (n in known) return
  known[n] = 1
  names++
  name[names] = n; kinds[names] = kind; sections[names] = section
  documents[names] = documented
}
function escape(s) {
  gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s); gsub(/>/, "\\&gt;", s)
  return s
}
# Text as HTML: names and tags are links; what is `quoted`, names, calls, fields
# and errors are code, which never breaks at a hyphen. In a box, where all is
# code, only the links.
function linked(s, boxed,   done, word, end, before) {
  s = escape(s)
  done = ""
  while (match(s, special)) {
    word = substr(s, RSTART, RLENGTH)
    end = RSTART + RLENGTH
    done = done substr(s, 1, RSTART - 1)
    before = substr(done, length(done))
    done = done marked(word, boxed, before)
    s = substr(s, end)
  }
  return done s
}
function marked(word, boxed, before,   bare) {
  bare = word
  sub(/\(.*/, "", bare)
  if (word ~ /^&gt;&gt;/) { # the implementation's tags lead nowhere
    bare = substr(word, 9)
    return bare in tags ? link(bare, bare) : bare
  }
  if (word ~ /^`/ && !boxed)
    return "<code>" linked_code(substr(word, 2, length(word) - 2)) "</code>"
  if (word ~ /^-?E[A-Z]/ && !(bare in errors) ||
      word ~ /^[-.E]/ && before ~ /[])A-Za-z0-9_.]/)
    return word
  if (bare in known)
    word = link(bare, bare) substr(word, length(bare) + 1)
  return boxed ? word : "<code>" word "</code>"
}
# For what is escaped already.
function linked_code(s,   done, word) {
  done = ""
  while (match(s, /(conc|CONC)_[A-Za-z0-9_]+/)) {
    word = substr(s, RSTART, RLENGTH)
    done = done substr(s, 1, RSTART - 1)
    done = done (word in known ? link(word, word) : word)
    s = substr(s, RSTART + RLENGTH)
  }
  return done s
}
function link(to, text) { return "<a href=\"#" to "\">" text "</a>" }

# --- what the page is made of: pieces, in order, each of a kind ---

function emit(kind, s) {
  outs++
  out[outs] = s
  outkind[outs] = kind
}
# A declaration opens an entry, before the text of the comment that it stands
# under, and takes in those that follow without a blank line. With it go the
# names that it declares.
function declare(s,   i) {
  if (entry) {
    out[entry] = out[entry] "\n" s
  } else {
    entry = held ? held : outs + 1
    for (i = outs; i >= entry; i--) {
      out[i + 1] = out[i]; outkind[i + 1] = outkind[i]
    }
    outs++
    out[entry] = s; outkind[entry] = "entry"; outnames[entry] = " "
    emit("end", "")
    held = 0
  }
  while (told < names) outnames[entry] = outnames[entry] name[++told] " "
}

# A comment, without its marks, as pieces: how a line begins tells its kind.
function prose(s,   line, n, i, from, kind, at) {
  n = split(s, line, "\n")
  for (i = 1; i <= n; i++)
    if (line[i] ~ /^[-=]+$/) line[i] = ""
  for (i = 1; i <= n; ) {
    kind = begins(line[i])
    from = i++
    if (kind == "h2") {
      heading(line[from])
    } else if (kind == "h3" || kind == "p") {
      while (i <= n && begins(line[i]) == "p") i++
      piece(kind, line, from, i)
    } else if (kind == "errors") {
      from = i
      while (i <= n && line[i] ~ /^(  |-?E[A-Z])|^[^ ].*   *[^ ]/) i++
      if (i > from) piece(kind, line, from, i)
    } else if (kind == "ul") {
      while (i <= n && line[i] ~ /^(- |  )/) i++
      piece(kind, line, from, i)
    } else if (kind == "dl") {
      at = column(line[from])
      while (i <= n && (line[i] ~ /^ / || is_item(line[i], at))) i++
      piece(kind, line, from, i)
    } else if (kind == "box") { # blank lines do not end it
      while (i <= n && (line[i] ~ /^  / ||
             line[i] == "" && i < n && line[i + 1] ~ /^  /)) i++
      piece(box_kind(line, from, i), line, from, i)
    }
  }
}
function begins(l) {
  if (l == "") return ""
  if (l ~ /^ ?>>[a-z]+/) return "h2"
  if (l ~ /^--- /) return "h3"
  if (l ~ /^Errors:$/) return "errors"
  if (l ~ /^  /) return "box"
  if (l ~ /^- /) return "ul"
  return column(l) ? "dl" : "p"
}
function piece(kind, line, from, end,   s) {
  for (s = line[from]; ++from < end; ) s = s "\n" line[from]
  if (section == "index") return # the page makes its own
  if (section == "head" && match(s, /^conc\.h - v[0-9.]+ - /))
    s = toupper(substr(s, RLENGTH + 1, 1)) substr(s, RLENGTH + 2)
  emit(kind, s)
}
function heading(l,   title) {
  sub(/^ *>>/, "", l)
  title = section = l
  sub(/[^a-z].*/, "", section)
  sub(/^[a-z]+[: ]*/, "", title)
  tags[section] = 1
  emit("h2", section "\t" title)
  held = outs + 1
}

# Where the text of a line "term   text" begins; 0: it is none.
function column(l) {
  if (!match(l, /^ *[^ ]+( [^ ]+)*   *[^ ]/)) return 0
  return substr(l, 1, RLENGTH - 1) ~ /([,;:{]|[^.]\.) *$/ ? 0 : RLENGTH
}
# Where the text of one more item of a list begins, of which others begin at
# `at`: behind a gap of its own, or there, if one word leaves but one blank.
function is_item(l, at) {
  if (at > 1 && l ~ /^ *[^ ]+ [^ ]/ && substr(l, at - 1, 1) == " " &&
      substr(l, at, 1) != " " && substr(l, 1, at - 2) ~ /^ *[^ ]+$/)
    return at
  return column(l)
}
# What is indented: a table, if its first line names columns; a list, if it is
# made of items; else a piece of code.
function box_kind(line, from, end,   i, items, at, indent) {
  if (end - from > 2 && line[from] !~ /[;{}=("]/ && line[from] !~ />>/ &&
      (cells(line[from]) > 2 || cells(line[from]) == 2 &&
       indented(line[from]) > indented(line[from + 1]) + 1))
    return "table"
  at = column(line[from]); indent = indented(line[from])
  for (i = from; at && i < end; i++) {
    if (line[i] ~ /^ *>>/) contents_line(line[i])
    if (indented(line[i]) != indent) continue
    if (is_item(line[i], at)) items++
    else if (line[i] ~ /[;{}]$/) return "box"
  }
  return items > 1 ? "dl" : "box"
}
function contents_line(l,   tag) {
  sub(/^ *>>/, "", l)
  tag = l
  sub(/ .*/, "", tag); sub(/^[^ ]+ */, "", l)
  contents[tag] = l
}
function indented(l) { match(l, /^ */); return RLENGTH }
# How many cells a line has, which two blanks keep apart; where[] they begin.
function cells(l,   n, at) {
  at = indented(l)
  for (l = substr(l, at + 1); l != ""; l = substr(l, RLENGTH + 1)) {
    where[++n] = at + 1
    if (!match(l, /   */)) break
    RLENGTH += RSTART - 1
    at += RLENGTH
  }
  return n
}

# The names in a field's declaration: those before each comma and semicolon.
function fields(l, documented,   n, part, i, f) {
  sub(/\/\*.*/, "", l)
  if (match(l, /\(\*[a-z_]+\)/)) {
    add("field", type "." substr(l, RSTART + 2, RLENGTH - 3), documented)
    return
  }
  n = split(l, part, /[,;]/)
  for (i = 1; i < n; i++) {
    f = part[i]
    sub(/\[.*/, "", f); sub(/ *$/, "", f)
    if (match(f, /[a-z_0-9]+$/))
      add("field", type "." substr(f, RSTART), documented)
  }
}

# Fields and enumerators that have no comment of their own: their type's will
# do if it speaks of them.
function speaks(s, n) { return (" " s " ") ~ ("[^a-z_]" n "[^a-z_]") }

BEGIN {
  section = "head"
  special = "`[^`]+`" \
    "|[a-zA-Z0-9_]+[(][^() ]*[)]" \
    "|(conc|CONC)_[A-Za-z0-9_]+" \
    "|&gt;&gt;[a-z]+" \
    "|-?E[A-Z][A-Z0-9]+" \
    "|[.][a-z][a-z_]*"
}
{ whole[++wholes] = $0 }
/-E[A-Z]/ {
  for (l = $0; match(l, /-E[A-Z][A-Z0-9]+/); l = substr(l, RSTART + RLENGTH)) {
    errors[substr(l, RSTART, RLENGTH)] = 1
    errors[substr(l, RSTART + 1, RLENGTH - 1)] = 1
  }
}
/^#endif \/\* CONC_H \*\// { ended = 1 }
/^   The implementation$/ { implementation = 1 }
implementation { implementation_line($0) }
ended { next }

/^#define CONC_[A-Z]/ {
  n = $2
  sub(/\(.*/, "", n)
  if (n !~ /^CONC__/ && n != "CONC_H" && n != "CONC_API") {
    add("macro", n, doc != "" || $0 ~ /\/\*/)
    l = $0
    if (l ~ /\\$/ || l ~ /CONC__/) { sub(/\).*/, ")", l) }
    declare(l)
    next
  }
}
!comment && /^\/\*/ { comment = 1; text = ""; first = FNR }
comment {
  l = $0
  if (first == FNR) sub(/^\/\* ?/, "", l); else sub(/^   /, "", l)
  end = sub(/ *\*\/ *$/, "", l)
  sub(/ *-+ *$/, "", l)
  text = text (first == FNR ? "" : "\n") l
  all[section] = all[section] " " l
  if (end) {
    comment = 0
    doc = text
    entry = 0
    held = text ~ /^Private/ ? 0 : outs + 1
    if (held) prose(text)
    all[section] = all[section] " " text
  }
  next
}
/^CONC_API/ { statement = ""; declaring = 1 }
declaring {
  statement = statement (statement == "" ? "" : "\n") $0
  if ($0 ~ /;/) {
    declaring = 0
    if (match(statement, /conc_[a-z0-9_]+\(/)) {
      add("function", substr(statement, RSTART, RLENGTH - 1), doc != "")
      sub(/^CONC_API /, "", statement)
      declare(statement)
    }
  }
  next
}
/^typedef (struct|enum) conc_[a-z_]+ \{/ || /^enum \{/ {
  type = $1 == "enum" ? "" : $3
  enum = $0 ~ /enum/
  if (type != "") add("type", type, doc != "")
  statement = $0
  private = 0
  inside = 1
  pending = remark = 0
  next
}
inside && /^\}/ {
  declare(statement "\n" $0)
  inside = 0
  next
}
inside {
  if ($0 ~ /\/\* private/) {
    private = 1
    statement = statement "\n  /* private */"
  }
  if (private) next
  if (enum && match($0, /^  CONC_[A-Z_]+/)) {
    n = substr($0, RSTART + 2, RLENGTH - 2)
    add("constant", n, $0 ~ /\/\*/ || doc != "")
  } else if (!enum) {
    l = $0
    if (!remark && l ~ /^ +\/\*/) pending = 1
    if (!remark) fields(l, l ~ /\/\*/ || pending)
    if (!remark && l ~ /;/) pending = 0
    remark = (remark || l ~ /\/\*/) && l !~ /\*\/ *$/
  }
  if ($0 ~ /\/\*/ || remark) all[section] = all[section] " " $0
  statement = statement "\n" $0
  next
}
/^typedef .*conc_[a-z_]+\(.*,$/ { # of a function, in several lines
  match($0, /conc_[a-z_]+\(/)
  add("type", substr($0, RSTART, RLENGTH - 1), doc != "")
  statement = $0
  typing = 1
  next
}
typing {
  statement = statement "\n" $0
  if ($0 ~ /;/) {
    typing = 0
    declare(statement)
  }
  next
}
/^typedef / {
  l = $0
  sub(/\(void \*arg\);$/, "", l); sub(/;.*/, "", l)
  match(l, /conc_[a-z_]+$/)
  if (RSTART > 0) add("type", substr(l, RSTART), doc != "")
  declare($0)
  next
}
# A blank line parts a comment from what follows; a conditional does not. Any
# other line is private, and so is the comment above it.
/^$/ { doc = ""; held = entry = 0 }
/^[^#]|^#define/ && held { outs = held - 1; held = 0 }

# --- what comes of it ---

# The implementation's parts: tags, and the words of their sub-banners, or else
# of their headings.
function implementation_line(l) {
  if (l ~ /^   >>[a-z]+/) {
    part_tag[++parts] = l
    sub(/^ *>>/, "", part_tag[parts]); sub(/[^a-z].*/, "", part_tag[parts])
    sub(/^ *>>[a-z]+[: ]*/, "", l)
    part_title[parts] = l
  } else if (l ~ /^\/\* --- .* ---/) {
    sub(/^\/\* --- /, "", l); sub(/ ---.*/, "", l)
    part_words[parts] = part_words[parts] \
      (part_words[parts] == "" ? "" : "; ") l
  }
}
function implementation_text(   i, n, k, word, line, s) {
  for (i = 1; i <= parts; i++) {
    line = sprintf("     >>%-11s", part_tag[i])
    n = split(part_words[i] != "" ? part_words[i] : part_title[i], word, " ")
    for (k = 1; k <= n; k++) {
      if (length(line) + 1 + length(word[k]) > 79) {
        s = s line "\n"
        line = "                  "
      }
      line = line (line ~ / $/ ? "" : " ") word[k]
    }
    s = s line "\n"
  }
  return s
}
function index_text(   i, s, line, n, word, list) {
  s = ""
  for (i = 1; i <= names; i++) {
    if (kinds[i] == "field") continue
    if (sections[i] != last) {
      if (line != "") s = s line "\n"
      s = s (s == "" ? "" : "")
      last = sections[i]
      line = sprintf("   %-10s", last)
    }
    word = name[i]
    for (n = i + 1; n <= names && kinds[n] == "field"; n++) {
      list = substr(name[n], length(name[i]) + 2)
      word = word (n == i + 1 ? " (." : " .") list
    }
    if (n > i + 1) word = word ")"
    list = split(word, part, " ")
    for (n = 1; n <= list; n++) {
      if (length(line) + 1 + length(part[n]) > 79) {
        s = s line "\n"
        line = "             " part[n]
      } else {
        line = line " " part[n]
      }
    }
  }
  return s line "\n"
}
function print_index(   i) {
  for (i = 1; i <= wholes; i++) {
    print whole[i]
    if (whole[i] ~ /^   >>index/) {
      printf "\n%s", index_text()
      while (whole[i + 1] !~ /^   -------/) i++
    } else if (whole[i] == "   The implementation") {
      printf "\n%s\n%s", "   What is in its parts, in this order:", \
        "\n" implementation_text()
      while (whole[i + 1] !~ /^   =======/) i++
    }
  }
}
function print_html(   i, k, s, tab) {
  print_head()
  print_nav()
  print "<main>\n<h1>conc.h " version "</h1>"
  for (i = 1; i <= outs; i++) {
    k = outkind[i]; s = out[i]
    if (k == "h2") {
      tab = index(s, "\t")
      print_heading(substr(s, 1, tab - 1), substr(s, tab + 1))
    } else if (k == "h3") print_h3(s)
    else if (k == "p") print "<p>" linked(s) "</p>"
    else if (k == "box") print "<pre>" linked(unindented(s), 1) "</pre>"
    else if (k == "dl" || k == "errors") print_list(s, k)
    else if (k == "ul") print_bullets(s)
    else if (k == "table") print_table(s)
    else if (k == "entry")
      # A prototype may be wrapped on a phone; a struct's columns may not.
      print "<div class=\"entry\">\n" (s ~ /[{]/ ? "<pre>" : \
        "<pre class=\"wraps\">") anchored(s, outnames[i]) "</pre>"
    else if (k == "end") print "</div>"
  }
  print "</main>"
  print_script()
  print "</body></html>"
}
function print_head() {
  print "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
  print "<meta name=\"viewport\" content=\"width=device-width\">"
  print "<title>conc.h " version "</title><style>"
  print ":root { color-scheme: light dark; --ink: #222; --paper: #fff;"
  print "  --dim: #666; --rule: #ccc; --box: #f3f5f7; --edge: #567;"
  print "  --link: #0b5394; --here: #ffec99 }"
  print "@media (prefers-color-scheme: dark) { :root { --ink: #ddd;"
  print "  --paper: #181a1c; --dim: #999; --rule: #444; --box: #22262a;"
  print "  --edge: #789; --link: #8ab8e6; --here: #554b10 } }"
  print "html { scroll-padding-top: 1em }"
  print "body { margin: 0; font: 16px/1.5 system-ui, sans-serif;"
  print "  color: var(--ink); background: var(--paper) }"
  print "main { box-sizing: border-box; max-width: 50em; min-width: 0;"
  print "  margin: 0 auto; padding: 1em 1.5em 60vh;"
  print "  overflow-wrap: break-word }"
  print "a { color: var(--link); text-decoration: none }"
  print "a:hover { text-decoration: underline }"
  print ":target { background: var(--here) }"
  print "code, pre { font-family: ui-monospace, monospace }"
  print "code { font-size: .85em; white-space: nowrap }"
  print "pre { font-size: 13px; line-height: 1.45; overflow-x: auto;"
  print "  margin: 1em 0; padding: .6em 1em; background: var(--box);"
  print "  border-left: 3px solid var(--rule) }"
  print ".entry { margin: 2.4em 0 }"
  print ".entry > pre:first-child { border-color: var(--edge) }"
  print ".entry:has(:target) > pre:first-child { border-color: var(--link) }"
  print "h2 { margin: 2.5em 0 .6em; border-bottom: 1px solid var(--rule) }"
  print "h2 small { font-weight: normal; font-size: 60%; color: var(--dim) }"
  print ".names { font-size: 14px } .names a { margin-right: .8em }"
  print "dl > div { display: grid; grid-template-columns: var(--term) 1fr;"
  print "  gap: 0 1.2em; margin: .4em 0 }"
  print "dt { font-weight: 600 } dt code { font-weight: normal }"
  print "dd { margin: 0 }"
  print "dt + dt { grid-column: 1 }"
  print "dt + dt + dd { grid-column: 2 }"
  print "li { margin: .3em 0 }"
  print "table { border-collapse: collapse; width: 100% }"
  print "th, td { text-align: left; vertical-align: top;"
  print "  padding: .3em 1em .3em 0; border-bottom: 1px solid var(--rule) }"
  print "thead th { color: var(--dim) }"
  print "#names { columns: 15em; font-size: 13px; line-height: 1.4 }"
  print "#names b { display: block; margin-top: .7em }"
  print "nav { position: sticky; top: 0; z-index: 1; box-sizing: border-box;"
  print "  max-height: 70vh; overflow: auto; padding: .5em 1.5em;"
  print "  background: var(--paper); border-bottom: 1px solid var(--rule) }"
  print "nav a { display: block }"
  print "nav .part > a { font-size: 13px; padding-left: 1.2em;"
  print "  overflow-wrap: anywhere }"
  print "nav div.part > a { font-size: inherit }"
  print "nav summary { cursor: pointer }"
  print "nav summary a { display: inline }"
  print "nav input { box-sizing: border-box; width: 100%; margin: .5em 0;"
  print "  font: inherit }"
  print "[hidden] { display: none !important }"
  # Wide: the navigation stands beside the text, as high as the window.
  print "@media (min-width: 70em) {"
  print "  body { display: grid; grid-template-columns: 17em 1fr }"
  print "  nav { height: 100vh; max-height: none; border-bottom: 0;"
  print "    border-right: 1px solid var(--rule) } }"
  # Narrow: what stands side by side comes one below the other; a cell of a
  # table says which column it is of.
  print "@media (max-width: 46em) {"
  print "  html { scroll-padding-top: 4em } main { padding: 0 1em 60vh }"
  print "  nav { padding: .5em 1em } pre { font-size: 12px; padding: .6em }"
  print "  pre.wraps { white-space: pre-wrap }"
  print "  dl > div { display: block } dd { margin-left: 1.5em }"
  print "  table, tbody, tr, th, td { display: block } thead { display: none }"
  print "  tr { padding: .4em 0; border-bottom: 1px solid var(--rule) }"
  print "  th, td { border: 0; padding: 0 } td { margin-left: 1.5em }"
  print "  td:empty { display: none }"
  print "  td[data-of]::before { content: attr(data-of) \": \";"
  print "    color: var(--dim) } }"
  print "@media print { nav { display: none } }"
  print "</style></head><body>"
}
# The sections, and in each its names. It can be folded up without the script,
# which does so on a narrow screen, and shows the filter.
function print_nav(   i, tag) {
  print "<nav><details id=\"menu\" open><summary>sections and names</summary>"
  print "<input id=\"find\" type=\"search\" placeholder=\"filter names\"" \
    " aria-label=\"filter names\" hidden>"
  for (i = 1; i <= outs; i++) {
    if (outkind[i] != "h2") continue
    tag = out[i]
    sub(/\t.*/, "", tag)
    if (names_of(tag, "") == "")
      print "<div class=\"part\">" link(tag, tag) "</div>"
    else
      print "<details class=\"part\"><summary>" link(tag, tag) "</summary>" \
        names_of(tag, "\n") "</details>"
  }
  print "</details></nav>"
}
# Links to a section's names, but those of fields, each after a separator.
function names_of(tag, separator,   i, s) {
  for (i = 1; i <= names; i++)
    if (sections[i] == tag && kinds[i] != "field")
      s = s separator link(name[i], name[i])
  return s
}
function print_heading(tag, title) {
  if (title == "") title = contents[tag]
  print "<h2 id=\"" tag "\">" tag \
    (title == "" ? "" : " <small>" linked(title) "</small>") "</h2>"
  if (tag == "index") html_index()
  else if (names_of(tag, "") != "")
    print "<p class=\"names\">" names_of(tag, "\n") "</p>"
}
# "--- title ---", or "--- title. More of it ---".
function print_h3(s,   end) {
  sub(/^--- /, "", s)
  end = index(s, ". ")
  print "<h3>" linked(end ? substr(s, 1, end - 1) : s) "</h3>"
  if (end) print "<p>" linked(substr(s, end + 2)) "</p>"
}
function unindented(s,   n, line, i, by, r) {
  n = split(s, line, "\n")
  by = indented(line[1])
  for (i = 2; i <= n; i++)
    if (line[i] != "" && indented(line[i]) < by) by = indented(line[i])
  for (i = 1; i <= n; i++) r = r (i > 1 ? "\n" : "") substr(line[i], by + 1)
  return r
}
# Items "term   text"; deeper lines go on with the text. A term alone shares
# the text above it, unless one follows below.
function print_list(s, kind,   n, line, i, at, indent, t, terms, text, wide) {
  n = split(s, line, "\n")
  at = column(line[1]); indent = indented(line[1])
  for (i = 1; i <= n; i++) {
    if (indented(line[i]) > indent) {
      text[t] = text[t] " " trim(line[i])
      continue
    }
    s = is_item(line[i], at)
    if (s || t == 0 || i < n && indented(line[i + 1]) > indent) {
      terms[++t] = trim(s ? substr(line[i], 1, s - 1) : line[i])
      text[t] = s ? substr(line[i], s) : ""
      if (length(terms[t]) > wide) wide = length(terms[t])
    } else {
      terms[t] = terms[t] "\n" trim(line[i])
    }
  }
  if (kind == "errors") print "<p>Errors:</p>"
  if (wide > 24) wide = 24
  print "<dl style=\"--term: " wide "ch\">"
  for (i = 1; i <= t; i++) {
    n = split(terms[i], line, "\n")
    printf "<div>"
    for (at = 1; at <= n; at++) printf "<dt>%s</dt>", term(line[at], kind)
    print (trim(text[i]) == "" ? "" : "<dd>" linked(trim(text[i])) "</dd>") \
      "</div>"
  }
  print "</dl>"
}
function term(s, kind,   n, part) {
  if (kind == "errors") # errno's values, too
    for (n = split(s, part, /[, ]+/); n > 0; n--)
      if (part[n] ~ /^-?E[A-Z]/) errors[part[n]] = 1
  if (s ~ /^[A-Z][A-Z0-9]*_[A-Z0-9_]*[(.]/) # a macro with its arguments
    return "<code>" linked(s, 1) "</code>"
  return linked(s)
}
function trim(s) { sub(/^ +/, "", s); sub(/ +$/, "", s); return s }
function print_bullets(s,   n, line, i, item) {
  n = split(s, line, "\n")
  print "<ul>"
  for (i = 1; i <= n; i++) {
    if (line[i] ~ /^- /) {
      if (i > 1) print "<li>" linked(item) "</li>"
      item = substr(line[i], 3)
    } else {
      item = item "\n" trim(line[i])
    }
  }
  print "<li>" linked(item) "</li>\n</ul>"
}
# The first line says where the columns are. A row without a first cell goes on
# with the row above. A text that runs through where a column begins has the
# rest of the row; if it begins the row it is "title: text".
function print_table(s,   n, line, i, k, c, at, rows, cell, rest) {
  n = split(s, line, "\n")
  c = cells(line[1])
  for (k = 1; k <= c; k++) at[k] = where[k]
  if (indented(line[1]) > indented(line[2]) + 1) { # the first has no title
    for (k = ++c; k > 1; k--) at[k] = at[k - 1]
    at[1] = indented(line[2]) + 1
  }
  at[c + 1] = 1000
  for (i = 1; i <= n; i++) {
    if (trim(substr(line[i], 1, at[2] - 1)) != "" || i == 1) rows++
    for (k = c; k > 1; k--)
      if (substr(line[i], at[k] - 1, 1) ~ /[^ ]/) rest[rows] = k - 1
    for (k = 1; k <= c; k++) {
      s = substr(line[i], at[k])
      if (rest[rows] != k) s = substr(s, 1, at[k + 1] - at[k])
      cell[rows, k] = trim(cell[rows, k] " " s)
      if (rest[rows] == k) break
    }
  }
  printf "<table>\n<thead><tr>"
  for (k = 1; k <= c; k++)
    printf "%s", (cell[1, k] == "" ? "<td></td>" : \
      "<th>" escape(cell[1, k]) "</th>")
  print "</tr></thead>\n<tbody>"
  for (i = 2; i <= rows; i++) {
    if (rest[i] == 1 && (k = index(cell[i, 1], ": "))) {
      cell[i, 2] = substr(cell[i, 1], k + 2)
      cell[i, 1] = substr(cell[i, 1], 1, k - 1)
      rest[i] = 2
    }
    # Under a title the first column is words of a kind, to be typed as such.
    s = linked(cell[i, 1], cell[1, 1] != "")
    if (cell[1, 1] != "") s = "<code>" s "</code>"
    printf "<tr><th%s>%s</th>", (rest[i] == 1 ? spanning(c) : ""), s
    for (k = 2; k <= c && rest[i] != k - 1; k++)
      printf "<td%s>%s</td>", (rest[i] == k ? spanning(c - k + 1) : \
        " data-of=\"" escape(cell[1, k]) "\""), linked(cell[i, k])
    print "</tr>"
  }
  print "</tbody>\n</table>"
}
function spanning(n) { return " colspan=\"" n "\"" }
# The page reads without it.
function print_script() {
  print "<script>"
  print "var menu = document.getElementById('menu')"
  print "var find = document.getElementById('find')"
  print "var narrow = matchMedia('(max-width: 69.99em)')"
  print "function fold() { menu.open = !narrow.matches }"
  print "narrow.onchange = fold; fold(); find.hidden = false"
  print "menu.onclick = function (e) {"
  print "  if (e.target.tagName == 'A') fold()"
  print "}"
  print "find.oninput = function () {"
  print "  var word = find.value.toLowerCase()"
  print "  menu.querySelectorAll('.part').forEach(function (part) {"
  print "    var hits = 0"
  print "    part.querySelectorAll('a').forEach(function (a) {"
  print "      var hit = a.textContent.toLowerCase().indexOf(word) >= 0"
  print "      if (a.parentNode == part) a.hidden = !hit"
  print "      hits += hit"
  print "    })"
  print "    part.hidden = !hits; part.open = word != '' && hits > 0"
  print "  })"
  print "}"
  print "</script>"
}
function html_index(   i, last) {
  print "<div id=\"names\">"
  for (i = 1; i <= names; i++) {
    if (sections[i] != last)
      print "<b>" link(sections[i], sections[i]) "</b>"
    last = sections[i]
    if (kinds[i] != "field")
      print link(name[i], name[i]) "<br>"
    else
      print "&nbsp;&nbsp;" link(name[i], "." \
        substr(name[i], index(name[i], ".") + 1)) "<br>"
  }
  print "</div>"
}
# A declaration: where one of its own names first stands is the name's place.
function anchored(s, own,   n, line, i, l, word, t, r, done, what) {
  n = split(s, line, "\n")
  r = ""; what = ""
  for (i = 1; i <= n; i++) {
    l = escape(line[i])
    done = ""
    if (match(l, /^typedef struct conc_[a-z_]+ \{/)) {
      what = substr(l, 16); sub(/ .*/, "", what)
    } else if (l ~ /^\}/ && what != "" && what in placed) {
      what = ""
    }
    while (match(l, /(conc|CONC)_[A-Za-z0-9_]+/)) {
      word = substr(l, RSTART, RLENGTH)
      done = done substr(l, 1, RSTART - 1)
      t = substr(l, RSTART + RLENGTH)
      if (index(own, " " word " ") && !(word in placed)) {
        placed[word] = 1
        word = "<b id=\"" word "\">" word "</b>"
      } else if (word in known) {
        word = "<a href=\"#" word "\">" word "</a>"
      }
      done = done word
      l = t
    }
    l = done l
    if (what != "") l = anchored_fields(l, what)
    r = r (r == "" ? "" : "\n") l
  }
  return r
}
function anchored_fields(l, what,   code, rest, at, f, done) {
  at = index(l, "/*")
  code = at > 0 ? substr(l, 1, at - 1) : l
  rest = at > 0 ? substr(l, at) : ""
  if (l ~ /^    / && l !~ /;/) return l
  done = ""
  while (match(code, /[a-z_0-9]+(\)\(|\[[^]]*\])?[,;]|\(\*[a-z_]+\)/)) {
    f = substr(code, RSTART, RLENGTH)
    sub(/^\(\*/, "", f); sub(/[^a-z_0-9].*/, "", f)
    done = done substr(code, 1, RSTART - 1)
    at = substr(code, RSTART, RLENGTH)
    code = substr(code, RSTART + RLENGTH)
    if ((what "." f) in known && !((what "." f) in placed)) {
      placed[what "." f] = 1
      sub(f, "<span id=\"" what "." f "\">" f "</span>", at)
    }
    done = done at
  }
  return done code rest
}
# What stands in comments, without those of fields and enumerators.
function print_words(   s, l, t) {
  for (s in all) {
    # The history names what is gone; the section before it has its banner.
    if (s == "version" || s == "index") continue
    l = all[s]
    while (match(l, /(conc|CONC)_[A-Za-z0-9_]*/)) {
      t = substr(l, RSTART, RLENGTH)
      l = substr(l, RSTART + RLENGTH)
      if (l !~ /^\.\.\./ && t !~ /__/ && t !~ /_$/) print t
    }
  }
}
END {
  for (i = 1; i <= wholes; i++)
    if (whole[i] ~ /^#define CONC_VERSION "/) {
      version = whole[i]
      gsub(/.* "|"/, "", version)
    }
  for (i = 1; i <= names; i++)
    if (!documents[i] && kinds[i] == "field") {
      n = name[i]
      sub(/.*\./, "", n)
      documents[i] = speaks(all[sections[i]], n)
    }
  if (mode == "names")
    for (i = 1; i <= names; i++)
      print kinds[i], name[i], sections[i],
        documents[i] ? "documented" : "undocumented"
  else if (mode == "index") print_index()
  else if (mode == "words") print_words()
  else print_html()
}
