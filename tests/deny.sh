#!/bin/sh
# Runs test programs while the system refuses a call that they use, by each
# errno that says so; and while it knows no call that is newer than Linux 3.10:
# see deny.c. Needs seccomp. Two at a time, for most of it is waits.
: "${BUILD:=build/default}"
# CALL:PROGRAMS:ERRNOS; usually it is refused as by an older kernel, and as by
# a sandbox. All four where the errno makes a difference to what is done.
all=ENOSYS,EPERM,EACCES,EINVAL
wanted="memfd_create:process,shared: memfd_create:queue_processes:EPERM
  getrandom:manager: eventfd2:core,loop: accept4:connect,serve:$all
  epoll_create1:core,loop,serve,signals: epoll_pwait2:core,loop:
  signalfd4:signals:$all pidfd_open:process,programs:
  pidfd_send_signal:process:EPERM close_range:process: close_range:workers:EPERM
  membarrier:core: madvise:core,named: MADV_GUARD_INSTALL:core:$all
  MADV_DONTFORK:named: sched_getaffinity:core: sched_yield:core,connect:
  flock:serve: flock:journal:EPERM fallocate:shared:$all fstatfs:shared,named:
  prlimit64:shared: prctl:named,core: sigaltstack:core:
  F_OFD_SETLK:named,shared:$all F_GET_SEALS:process: F_SETPIPE_SZ:loop:
  F_SETSIG:programs:ENOSYS,EPERM F_SETSIG:process:EPERM
  SO_PEERCRED:manager,serve:EPERM TCP_NODELAY:connect,manager:EPERM
  clone3:core,process,programs:ENOSYS docker:core,process,shared,manager:EPERM
  linux-3.10:core,loop,process,programs,pool,manager,named,shared:ENOSYS"

list=$BUILD/deny.list
for one in $wanted; do
  call=${one%%:*} errors=${one##*:}
  programs=${one#*:} programs=${programs%:*}
  for program in $(echo "$programs" | tr , ' '); do
    [ -x "$BUILD/$program" ] || make "$BUILD/$program" >/dev/null || exit 1
    for error in $(echo "${errors:-ENOSYS,EPERM}" | tr , ' '); do
      echo "$call $error $program"
    done
  done
done >"$list"

lane() { # 0 or 1: every other line of the list
  n=0
  while read -r call error program; do
    n=$((n + 1))
    [ $((n % 2)) -eq "$1" ] || continue
    title="$program without $call ($error)"
    said=$("$BUILD/deny" "$call" "$error" "$BUILD/$program" 2>&1 </dev/null)
    case $? in
    0) echo "ok   $title: $(echo "$said" | grep -c '^ok ')" ;;
    2) echo "skip $title: no seccomp here" ;;
    *)
      echo "$said" | grep -E '^FAIL |failed: |in the child: ' |
        sed 's/^FAIL /     /'
      echo "FAIL $title" ;;
    esac
  done <"$list"
}
{ lane 0 & lane 1; wait; } >"$list.said"
cat "$list.said"
! grep -q '^FAIL ' "$list.said"
