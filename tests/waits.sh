#!/bin/sh
# No guard is held over a call of the system that can wait. A program that is
# compiled with CONC_CHECKED and CONC__CHECK_WAITS looks at each call that
# conc.h makes within CONC__WAITS: this looks that each is made so. Part of make
# test.
: "${BUILD:=build/default}"
tmp=$BUILD/waits
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
awk=${AWK:-awk}

suite=waits
. tests/try.sh

# Those that may wait for another process, a peer, a disk, or time. Not close():
# no socket of ours lingers. Not fork(), which takes all guards by itself.
calls='open openat creat read readv pread write writev pwrite send sendto
  sendmsg recv recvfrom recvmsg accept accept4 connect poll ppoll select
  epoll_wait epoll_pwait kevent nanosleep usleep sleep pause waitpid waitid
  wait4 fsync fdatasync CONC__FILE_SYNC ftruncate posix_fallocate unlink
  unlinkat rename renameat link linkat mkdir stat lstat fstatat access
  readlink realpath chmod fchmod chdir opendir readdir getaddrinfo fflush
  posix_spawn pthread_join sigwait sem_wait conc__futex_wait'

# The calls of a file that are neither within CONC__WAITS nor CONC__AT_ONCE, and
# do not say themselves that they do not wait: a line each.
bare() {
  $awk -v calls="$calls" '
    BEGIN { for (n = split(calls, name); n > 0; n--) waits[name[n]] = 1 }
    # What the statement calls, one after the other.
    function look(text,   before, word, last, around) {
      if (text ~ /MSG_DONTWAIT|WNOHANG|CONC__PACKET_PEEK/) return
      while (match(text, /[A-Za-z_][A-Za-z_0-9]*\(/)) {
        before = substr(text, 1, RSTART - 1)
        word = substr(text, RSTART, RLENGTH - 1)
        text = substr(text, RSTART + RLENGTH)
        around = before ~ /^ *$/ ? last : ""
        last = word
        if (!(word in waits) || around ~ /^CONC__(WAITS|AT_ONCE)$/) continue
        if (before ~ /(->|\.)$/) continue # a function of a table
        if (before ~ /(^|[^a-z])(void|int|ssize_t) $/) continue # its head
        if (word == "poll" && text ~ /^[^;]*, 0\)/) continue # a look
        print at ": " word
      }
    }
    /^   The implementation$/ { implementation = comment = 1 }
    !implementation { next }
    {
      line = $0
      gsub(/"([^"\\]|\\.)*"/, "\"\"", line)
      if (comment) {
        if (!(end = index(line, "*/"))) next
        line = substr(line, end + 2)
        comment = 0
      }
      while ((begin = index(line, "/*"))) {
        rest = substr(line, begin + 2)
        if ((end = index(rest, "*/"))) {
          line = substr(line, 1, begin - 1) " " substr(rest, end + 2)
        } else {
          line = substr(line, 1, begin - 1)
          comment = 1
        }
      }
      if (line ~ /^ *#/ || continued) { # what a macro is, not where it is used
        continued = line ~ /\\$/
        next
      }
      if (line ~ /^ *$/) next
      if (statement == "") at = NR
      statement = statement line
      if (line ~ /[;{}] *$/) {
        look(statement)
        statement = ""
      }
    }' "$1"
}

each() { bare conc.h; }
try 'what can wait is asked for without a guard' each

# It finds what it looks for, in the midst of what it does not.
cat >"$tmp/some.c" <<'END'
   The implementation
   begins here. */
static int conc__some(int fd) {
  /* read(fd) */
  if (CONC__WAITS(read(fd, b, 1)) < 0 || table->read(fd) < 0) return -1;
  do n = recv(fd, b, 1,
              MSG_DONTWAIT);
  while (n < 0);
  return poll(&p, 1, 0) + CONC__AT_ONCE(write(fd, "read(", 1));
}
static int conc__more(int fd) {
  if (CONC__WAITS(read(fd, b, 1)) < 0 &&
      write(fd, b, 1) < 0)
    return poll(&p, 1, -1);
  (void)fsync(fd);
}
END
finds() {
  bare "$tmp/some.c" >"$tmp/found"
  printf '12: write\n12: poll\n15: fsync\n' | diff - "$tmp/found"
}
try 'and a call that is made otherwise is found' finds
