#!/bin/sh
# make check: the tests in many configurations, two at a time. A line for
# each; its own output is in build/check/NAME.log. Last line: the sum.
#   tests/check.sh [NAME...]   only these configurations
unset MAKEFLAGS MAKELEVEL MFLAGS
only=$*
: "${LIMIT:=900}" # seconds that a configuration may take
logs=build/check
rm -rf "$logs" && mkdir -p "$logs" || exit 2

have() { command -v "$1" >/dev/null 2>&1; }

# The configurations: name | tools it needs | arguments of make test. Two that
# share a folder (see CONFIG in the Makefile) must not run at once. The quick
# and most telling ones come first, the long ones not last.
san=SANITIZE=address,undefined tsan=SANITIZE=thread
portable=DEFS=-DCONC_PORTABLE ucontext=DEFS=-DCONC_USE_UCONTEXT
# As on macOS. The library where there is one, else ours.
kqueue='-include tests/kqueue/macos.h -Itests/kqueue' lkqueue=
if [ -f /usr/include/kqueue/sys/event.h ]; then
  kqueue=$(echo "$kqueue" | sed 's:-Itests:-I/usr/include:') lkqueue=-lkqueue
fi
# Enough for reports, and gcc is done in less time.
lines=CFLAGS=-g1
cross=aarch64-linux-gnu-gcc
# As Alpine Linux compiles; and static, where libc is.
alpine='-g1 -fstack-clash-protection -Wformat -Werror=format-security'
alpine="$alpine -D_FORTIFY_SOURCE=2"
# With its own C library, where the cross compiler has it. Emulated, and so in
# Valgrind, what is repeated thousands of times is repeated less.
less='TEST_SLOW=10 THREAD_ROUNDS=20 FORK_ROUNDS=10 DEADLOCK_ROUNDS=16'
less="$less DEADLOCK_OPERATIONS=20000 STREAM_ROUNDS=400"
aarch64="$less CC=$cross WRAPPER=\"qemu-aarch64 -L /usr/aarch64-linux-gnu\""
emulated() { # TRIPLE, and how qemu calls the CPU
  echo "$less CC=$1-gcc WRAPPER=\"qemu-$2 -L /usr/$1\" OPT=-Og CFLAGS=-g1"
}
arm=arm-linux-gnueabihf ppc64le=powerpc64le-linux-gnu
ppc64=powerpc64-linux-gnu
# 32 bits that this machine runs by itself, with the C library of the compiler.
i686=i686-linux-gnu
i686_loader="-Wl,--dynamic-linker=/usr/$i686/lib/ld-linux.so.2"
i686_flags="LDFLAGS='-L/usr/$i686/lib $i686_loader,-rpath,/usr/$i686/lib'"
i686_flags="$i686_flags OPT=-Og $lines"
i686_clang="CC='clang -target $i686 -isystem /usr/$i686/include'"
# gcc-O2 leaves out what `long` has, which is compiled as well.
# What was stopped or killed at every step once need not be so in every row.
few='PARK_SECONDS=0.01 QUEUE_KILLS=100 QUEUE_SECONDS=0.1 CRASH_KILLS=20'
few="$few CRASH_SECONDS=0.1 PIPE_KILLS=100 THREAD_ROUNDS=100 PROCESS_STARTS=200"
few="$few DEADLOCK_ROUNDS=50 DEADLOCK_OPERATIONS=200000 SYNC_STEPS=3000"
coroutines='core loop generator tasks asyncio stack park'
cat >"$logs/list" <<EOS
gcc-tsan | gcc | CC=gcc $lines OPT=-Og $few $tsan TESTS="core thread sync model deadlock memory park loop tasks queue manager stream datagram connect serve signals shared pool work lessee report slow trace inspect"
clang-asan | clang | CC=clang OPT=-O0 $few $san TESTS="sync memory loop park queue queue_processes pipe shared spoiled spoiled_queue fork process programs pool workers value json pass fuzz errors ended delivery manager server limits many reconnect remote types containers functions data pools work lessee guests journal journaled survive guards nothreads report slow trace inspect"
portable | clang | CC=clang OPT=-O0 STD=c99 DEFS="-DCONC_PORTABLE -DCONC_HAVE_THREAD_LOCAL=0" $few TESTS="target core thread sync deadlock park loop stream datagram connect serve signals progress queue queue_processes pipe shared spoiled_queue named owner fork process programs pool closed delivery manager server reconnect work lessee guests journal report slow trace inspect"
kqueue | clang | CC=clang OPT=-O0 $few DEFS="$kqueue" LDFLAGS=$lkqueue TESTS="target core loop stream datagram connect serve pipe signals progress queue manager process named fork guests pool"
musl | musl-gcc | CC=musl-gcc OPT=-O1 CFLAGS="$alpine" LDFLAGS=-static $few TESTS="target core thread sync signals queue process pool shared named manager"
alpine | musl-gcc | CC=musl-gcc OPT=-Os CFLAGS="$alpine" LDFLAGS=-static $few TESTS="core process"
static | gcc | CC=gcc OPT=-Og $lines LDFLAGS=-static $few TESTS="target core"
c++20 | g++ | CXX=g++ OPT=-Og STD=c++20 $few TESTS="core sync queue process value manager types work"
malformed | gcc | CC=gcc $lines OPT=-O2 MANAGER_FRAMES=40000 VALUE_INPUTS=300000 TESTS="manager value"
aarch64 | $cross qemu-aarch64 | $aarch64 OPT=-O1 TESTS="target core value park loop queue generator process"
i686 | $i686-gcc | CC=$i686-gcc $i686_flags $few TESTS="target core loop value process queue_processes"
i686-gcc-time64 | $i686-gcc | CC=$i686-gcc $i686_flags $few DEFS="-D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64" TESTS="core"
i686-clang | clang $i686-gcc | $i686_clang $i686_flags $few TESTS="core"
i686-time64 | clang $i686-gcc | $i686_clang $i686_flags $few DEFS="-D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64" TESTS="target core"
armhf | $arm-gcc qemu-arm | $(emulated $arm arm) TESTS="target core process"
riscv64 | riscv64-linux-gnu-gcc qemu-riscv64 | $(emulated riscv64-linux-gnu riscv64) TESTS="target core process"
s390x | s390x-linux-gnu-gcc qemu-s390x | $(emulated s390x-linux-gnu s390x) TESTS="target core value process"
s390x-ucontext | s390x-linux-gnu-gcc qemu-s390x | $(emulated s390x-linux-gnu s390x) $ucontext TESTS="target generator"
ppc64le | $ppc64le-gcc qemu-ppc64le | $(emulated $ppc64le ppc64le) TESTS="target core process"
ppc64 | $ppc64-gcc qemu-ppc64 | $(emulated $ppc64 ppc64) TESTS="target core process"
ucontext | gcc | CC=gcc OPT=-Og $few DEFS="-DCONC_USE_UCONTEXT -DCONC_HAVE_SPAWN=0 -DCONC_HAVE_PTHREAD_CANCEL=0" TESTS="target $coroutines queue fork process"
implementation-c++17 | g++ | CXX=g++ OPT=-O0 IMPL=c++17 $few TESTS="core public deadlock json asyncio"
ucontext-asan | clang | CC=clang OPT=-O0 $few $ucontext $san TESTS="$coroutines"
portable-tsan | gcc | CC=gcc $lines OPT=-Og $few $portable $tsan TESTS="core sync park loop queue"
tcc | tcc | CC=tcc TESTS=examples
valgrind | gcc valgrind | CC=gcc $lines $less OPT=-O1 WRAPPER="valgrind -q --error-exitcode=99" TESTS="core generator stack loop stream datagram connect signals queue value json"
checked | gcc | CC=gcc OPT=-Og DEFS=-DCONC_CHECKED $few TESTS="core deadlock json public asyncio"
netns | gcc ip |
denied | gcc |
redis | gcc redis-server | CC=gcc $lines OPT=-O1 $san REDIS_CHAOS=10 TESTS="redis redis_answers redis_chaos"
fuzz | clang |
clang-tidy | clang-tidy |
cppcheck | cppcheck |
compile-all | cc |
targets | cc |
vendor-all | cc |
gdb-all | gcc g++ gdb |
gcc-O2 | gcc | CC=gcc OPT=-O2 $few TESTS="core thread park loop queue pool shared manager many work"
long | cc | OPT=-O2 TEST_SLOW=4 DEADLOCK_ROUNDS=1000 DEADLOCK_OPERATIONS=10000000 FORK_ROUNDS=1000 SYNC_STEPS=1000000 PROCESS_MIB=256 PROCESS_STARTS=5000 QUEUE_KILLS=5000 SURVIVE_MESSAGES=200000 SURVIVE_TELL=1 POWER_CUTS=1000 TESTS="deadlock fork process queue_processes sync model survive power"
chaos | gcc | CC=gcc OPT=-O2 CHAOS_MESSAGES=200000 CHAOS_TELL=1 TEST_SLOW=4 TESTS=chaos
crash | gcc | CC=gcc $lines OPT=-O3 CRASH_KILLS=1250 CRASH_SECONDS=4 TEST_SLOW=4 TESTS=crash
EOS

configuration() { # NAME TOOLS ARGUMENTS
  for tool in $2; do
    have "$tool" || { echo "skip $1: there is no $tool"; return; }
  done
  log=$logs/$1.log
  start=$(date +%s)
  case $1 in
  fuzz) # each target for so long; skipped without libFuzzer
    CC=clang BUILD=build/check timeout -k 10 "$LIMIT" sh tests/fuzz/run.sh \
      "${FUZZ_SECONDS:-10}" ;;
  denied) # whole programs to which the system refuses a call
    make build/default/deny && TEST_SLOW=4 timeout -k 10 "$LIMIT" \
      env $few sh tests/deny.sh ;;
  netns) # a network that fails; skipped without root
    make build/default/interop/netns &&
      NETNS_SLACK=2 timeout -k 10 "$LIMIT" sh tests/interop/netns.sh ;;
  targets) # other systems, by Zig; skipped where there is none
    BUILD=build/check timeout -k 10 "$LIMIT" sh tests/targets.sh ;;
  clang-tidy | cppcheck)
    BUILD=build/check timeout -k 10 "$LIMIT" sh tests/analyse.sh "$1" ;;
  *-all) # a script that has more to do here than in make test
    script=tests/${1%-all}.sh
    [ -f "$script" ] || script=tests/${1%-all}/${1%-all}.sh
    BUILD=build/check timeout -k 10 "$LIMIT" sh "$script" all ;;
  *) eval "timeout -k 10 $LIMIT make test JOBS=1 $3" ;;
  esac >"$log" 2>&1 </dev/null
  status=$?
  # Valgrind only warns, but then it is lost.
  ! grep -q 'client switching stacks' "$log" ||
    echo 'FAIL Valgrind does not know a stack' >>"$log"
  oks=$(grep -c '^ok ' "$log") fails=$(grep -c '^FAIL ' "$log")
  sum="$oks passed, $fails failed, $(grep -c '^skip ' "$log") skipped"
  seconds=$(($(date +%s) - start))
  if [ $status -eq 0 ] && [ "$oks$fails" = 00 ] && grep -q '^skip ' "$log"; then
    echo "skip $1: $(sed -n 's/^skip [^:]*: //p' "$log" | head -1)"
    return
  fi
  if [ $status -eq 0 ] && [ "$fails" -eq 0 ] && [ "$oks" -gt 0 ]; then
    echo "ok   $1: $sum ($seconds s)"
    return
  fi
  { # The most telling lines; the log has the rest.
    grep -E '^FAIL |failed: |error: |(ERROR|WARNING): [A-Z][a-z]*San' "$log"
    grep -E '^==.*(Invalid |ninitialised|definitely lost in)' "$log"
    [ "$fails" -gt 0 ] || tail -5 "$log"
  } | head -30 | cut -c 1-150 | sed 's/^/  /'
  [ $status -ne 124 ] || echo "  stopped after $LIMIT s"
  echo "FAIL $1: $sum ($seconds s), see $log"
}

lane() { # [NAME]: all rows that nobody has taken yet, or this one
  while IFS='|' read -r name tools arguments; do
    name=${name% }
    case " ${only:-$name} " in *" $name "*) ;; *) continue ;; esac
    [ "${1:-$name}" = "$name" ] || continue
    mkdir "$logs/$name.taken" 2>/dev/null || continue
    configuration "$name" "$tools" "$arguments" >"$logs/$name.line"
    cat "$logs/$name.line"
  done <"$logs/list"
}
lane netns & # it only waits: so it takes no place
lane &
lane
wait
for taken in "$logs"/*.taken; do
  line=${taken%.taken}.line
  [ -s "$line" ] || {
    echo "FAIL $(basename "$line" .line): it was not run to its end" |
      tee "$line"
  }
done

# A line for each configuration, for each system that `targets` compiles for,
# and for each call that `denied` does without: what was made of it, and what
# was seen. (Of a call: the programs that were run, by each errno.)
line_of() { # NAME COMPILED LINKED RUN PASSED FAILED SKIPPED
  printf '%-46s %-8s %-6s %-3s %6s %6s %7s\n' "$@"
}
line_of configuration compiled linked run passed failed skipped
while IFS='|' read -r name tools arguments; do
  name=${name% }
  [ -s "$logs/$name.line" ] || continue
  sum=$(sed -n 's/.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) .*/\1 \2 \3/p' \
    "$logs/$name.line")
  case $name in
  compile-all | clang-tidy | cppcheck) made='yes - -' ;;
  targets) made='yes yes -' ;;
  *) made='yes yes yes' ;;
  esac
  case $sum in 0\ *) made='no - -' ;; esac # it has not come so far
  line_of "$name" ${sum:+$made} ${sum:-- - - - - 1}
  case $name in
  targets)
    sed -n 's/^\(ok  \|FAIL\) targets: \([^:]*\): \(.*\)/\2|\1|\3/p' \
      "$logs/targets.log" ;;
  denied)
    sed -n 's/^\(ok  \|FAIL\|skip\) [^ ]* without \([^ ]*\) (.*/without \2|\1|ran/p' \
      "$logs/denied.log" ;;
  esac | awk -F'|' '
    !($1 in n) { n[$1] = 0; names[++many] = $1 }
    { n[$1]++ }
    $2 == "FAIL" { bad[$1]++ }
    $2 == "skip" { skipped[$1]++ }
    $3 ~ /linked|ran/ { linked[$1] = 1 }
    $3 == "ran" { ran[$1] = 1 }
    END {
      for (i = 1; i <= many; i++) {
        t = names[i]
        made = t in bad && !(t in ran) ? "no" : "yes"
        printf "  %-44s %-8s %-6s %-3s %6d %6d %7d\n", t, made,
          made == "no" ? "no" : t in linked ? "yes" : "-",
          t in ran ? "yes" : "-", n[t] - bad[t] - skipped[t], bad[t],
          skipped[t]
      }
    }'
done <"$logs/list"

count() { cat "$logs"/*.line 2>/dev/null | grep -c "^$1 "; }
failed=$(count FAIL)
echo "$(count ok) passed, $failed failed, $(count skip) skipped"
[ "$failed" -eq 0 ] && [ "$(count ok)" -gt 0 ]
