# Reads the public half of conc.h.
#   awk -f manual.awk conc.h                the manual as a page of HTML
#   awk -v mode=names -f manual.awk conc.h  a line for each public name: kind,
#                                           name, section, whether documented
#   awk -v mode=index -f manual.awk conc.h  conc.h with its index made anew
#   awk -v mode=words -f manual.awk conc.h  the names that its comments speak of
# POSIX awk is enough. One pass fills the arrays name[] and out[]; how conc.h
# is written is all that it knows of C.

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
# Escaped text with a link at each name and tag.
function linked(s,   done, word) {
  s = escape(s)
  done = ""
  while (match(s, /(conc|CONC)_[A-Za-z0-9_]+|&gt;&gt;[a-z]+/)) {
    word = substr(s, RSTART, RLENGTH)
    done = done substr(s, 1, RSTART - 1)
    s = substr(s, RSTART + RLENGTH)
    if (word in known)
      done = done "<a href=\"#" word "\">" word "</a>"
    else if (substr(word, 1, 8) == "&gt;&gt;" && substr(word, 9) in tags)
      done = done "<a href=\"#" substr(word, 9) "\">" substr(word, 9) "</a>"
    else if (substr(word, 1, 8) == "&gt;&gt;") # the implementation's own
      done = done substr(word, 9)
    else
      done = done word
  }
  return done s
}
# With a declaration, the names that it declares.
function emit(kind, s) {
  outs++
  out[outs] = s
  outkind[outs] = kind
  for (outnames[outs] = " "; kind == "code" && told < names;)
    outnames[outs] = outnames[outs] name[++told] " "
}

# A comment as it stands, without its marks: paragraphs.
function prose(s,   n, line, i, text, verbatim, l) {
  n = split(s "\n", line, "\n")
  text = ""; verbatim = 0
  for (i = 1; i <= n; i++) {
    l = line[i]
    if (l ~ /^-+$/ || l ~ /^=+$/) l = ""
    if (l ~ /^ *>>[a-z]+/ && l !~ /^  +>>/) {
      flush_prose(text, verbatim); text = ""; verbatim = 0
      section = l
      sub(/^ *>>/, "", section)
      title = section
      sub(/[^a-z].*/, "", section)
      sub(/^[a-z]+[: ]*/, "", title)
      tags[section] = 1
      emit("h2", section "\t" title)
      continue
    }
    if (l == "") {
      flush_prose(text, verbatim); text = ""; verbatim = 0
      continue
    }
    if (l ~ /^  / || l ~ /[^ .]   *[^ ]/) verbatim = 1
    text = text (text == "" ? "" : "\n") l
  }
  flush_prose(text, verbatim)
}
function flush_prose(text, verbatim) {
  if (text != "" && section != "index") emit(verbatim ? "pre" : "p", text)
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

BEGIN { section = "head"; private = 0 }
{ whole[++wholes] = $0 }
/^#endif \/\* CONC_H \*\// { ended = 1 }
ended { next }

/^#define CONC_[A-Z]/ {
  n = $2
  sub(/\(.*/, "", n)
  if (n !~ /^CONC__/ && n != "CONC_H" && n != "CONC_API") {
    add("macro", n, doc != "" || $0 ~ /\/\*/)
    l = $0
    if (l ~ /\\$/ || l ~ /CONC__/) { sub(/\).*/, ")", l) }
    emit("code", l)
    doc = doc == "" ? "" : doc
    continued = $0 ~ /\\$/
    next
  }
}
# What only its own section's lines name.
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
    before = section
    if (text !~ /^Private/) prose(text)
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
      emit("code", statement)
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
  emit("code", statement "\n" $0)
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
/^typedef / {
  l = $0
  sub(/\(void \*arg\);$/, "", l); sub(/;.*/, "", l)
  match(l, /conc_[a-z_]+$/)
  if (RSTART > 0) add("type", substr(l, RSTART), doc != "")
  emit("code", $0)
  next
}
/^$/ { doc = "" }

# --- what comes of it ---

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
    }
  }
}
function print_html(   i, k, s, part, id) {
  print "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
  print "<meta name=\"viewport\" content=\"width=device-width\">"
  print "<title>conc.h " version "</title><style>"
  print "body { margin: 0 auto; max-width: 46em; padding: 1em 1.5em 6em;"
  print "  font: 16px/1.5 system-ui, sans-serif; color: #222;"
  print "  background: #fff }"
  print "pre { font: 13px/1.45 ui-monospace, monospace; overflow-x: auto;"
  print "  margin: .8em 0; padding: .2em 0 .2em 1em }"
  print "pre.code { background: #f3f5f7; border-left: 3px solid #567;"
  print "  padding: .6em 1em; margin-bottom: 1.6em }"
  print "h2 { margin-top: 2.5em; border-bottom: 1px solid #bbb }"
  print "h2 small { font-weight: normal; font-size: 60%; color: #666 }"
  print "a { color: #0b5394; text-decoration: none }"
  print "a:hover { text-decoration: underline }"
  print ":target { background: #ffec99 }"
  print "#names { columns: 15em; font-size: 13px; line-height: 1.4 }"
  print "#names b { display: block; margin-top: .7em }"
  print "@media (max-width: 46em) {"
  print "  pre { white-space: pre-wrap; overflow-wrap: anywhere; padding-left: 0;"
  print "    font-size: clamp(9px, 1.9vw, 13px) } }"
  print "@media (prefers-color-scheme: dark) {"
  print "  body { background: #181a1c; color: #ddd }"
  print "  pre.code { background: #22262a } a { color: #8ab8e6 }"
  print "  :target { background: #554b10 } }"
  print "</style></head><body>\n<h1>conc.h " version "</h1>"
  for (i = 1; i <= outs; i++) {
    k = outkind[i]; s = out[i]
    if (k == "h2") {
      split(s, part, "\t")
      print "<h2 id=\"" part[1] "\">" part[1] " <small>" \
        linked(part[2]) "</small></h2>"
      if (part[1] == "index") html_index()
    } else if (k == "p") {
      print "<p>" linked(s) "</p>"
    } else if (k == "pre") {
      print "<pre>" linked(s) "</pre>"
    } else {
      part[1] = outnames[i]
      for (; outkind[i + 1] == "code"; part[1] = part[1] outnames[i])
        s = s "\n" out[++i]
      print "<pre class=\"code\">" anchored(s, part[1]) "</pre>"
    }
  }
  print "</body></html>"
}
function html_index(   i, last) {
  print "<div id=\"names\">"
  for (i = 1; i <= names; i++) {
    if (sections[i] != last)
      print "<b><a href=\"#" sections[i] "\">" sections[i] "</a></b>"
    last = sections[i]
    if (kinds[i] != "field")
      print "<a href=\"#" name[i] "\">" name[i] "</a><br>"
    else
      print "&nbsp;&nbsp;<a href=\"#" name[i] "\">." \
        substr(name[i], index(name[i], ".") + 1) "</a><br>"
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
