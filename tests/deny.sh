#!/bin/sh
# Runs test programs while the system refuses a call that they use, by ENOSYS
# and by EPERM; and while it knows no call that is newer than Linux 3.10: see
# deny.c. Needs seccomp.
: "${BUILD:=build/default}"
pairs='memfd_create:process,queue_processes,shared getrandom:manager
  eventfd2:core,loop accept4:connect,serve epoll_create1:core,loop,serve,signals
  epoll_pwait2:core,loop signalfd4:signals pidfd_open:process,programs
  close_range:process,workers docker:core,process,shared,manager
  linux-3.10:core,loop,process,programs,pool,manager,named,shared'
failed=0
for pair in $pairs; do
  call=${pair%%:*}
  for program in $(echo "${pair#*:}" | tr , ' '); do
    [ -x "$BUILD/$program" ] || make "$BUILD/$program" >/dev/null || exit 1
    for error in ENOSYS EPERM; do
      [ "$call $error" != 'linux-3.10 EPERM' ] || continue
      title="$program without $call ($error)"
      said=$("$BUILD/deny" "$call" $error "$BUILD/$program" 2>&1)
      case $? in
      0) echo "ok   $title: $(echo "$said" | grep -c '^ok ')" ;;
      2) echo "skip $title: no seccomp here" ;;
      *)
        echo "$said" | grep -E '^FAIL |failed: |in the child: ' | sed 's/^FAIL /     /'
        echo "FAIL $title"
        failed=1 ;;
      esac
    done
  done
done
exit $failed
