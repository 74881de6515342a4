#!/bin/sh
# conc.py in gdb: a program in which each task hangs in another way, planted.c,
# is looked at while it runs, and as a core file; and once it has crashed.
#   gdb.sh      compiled with -O0, and with -O2 (part of make test)
#   gdb.sh all  in two files that have a conc.h each, with ucontext, as C++,
#               portable, and for other CPUs, emulated (make check)
: "${CC:=cc}" "${CXX:=c++}" "${BUILD:=build/default}" "${GDB:=gdb}"
tmp=$BUILD/gdb
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
trap 'rm -rf "$tmp"/*.core' EXIT # they are large
suite=gdb
. tests/try.sh
skip() { echo "skip gdb: $1: $2"; }
have() { command -v "${1%% *}" >/dev/null 2>&1; }

# ask TITLE FILE GDB PROGRAM COMMAND...: what gdb prints goes to $tmp/FILE.
ask() {
  file=$tmp/$1 gdb=$2 program=$3
  shift 3
  {
    printf '%s\n' 'set pagination off' 'set confirm off' 'set width 0' \
      'set startup-with-shell off' 'set style enabled off'
    # Not in each gdb.
    echo "python gdb.execute('set debuginfod enabled off', to_string=True)" |
      sed 's/python \(.*\)/python\ntry:\n  \1\nexcept gdb.error:\n  pass\nend/'
    echo 'source tests/gdb/conc.py'
    printf '%s\n' "$@"
  } >"$file.gdb"
  "$gdb" -nx -q -batch -x "$file.gdb" $program >"$file" 2>&1 </dev/null
}

# says FILE PATTERN...: prints the patterns that no line has, and the file.
says() {
  file=$tmp/$1 missing=
  shift
  for pattern; do
    grep -Eq -- "$pattern" "$file" || missing="$missing$pattern
"
  done
  [ -z "$missing" ] || { echo "not said: $missing" && cat "$file"; }
}

# The functions of planted.c on each stack, the innermost first, as "conc bt
# all" has printed them.
stacks() {
  awk '/^[0-9.]+ (coroutine|thread) / { name = $3; sub(/:$/, "", name)
         printf "%s%s:", n++ ? "\n" : "", name }
       /^  which was resumed by/ { printf " /" }
       /^#/ { f = $2 ~ /^0x/ ? $4 : $2
              if (f ~ /^(all_hang|compute|crash|outer|run|keep_lock)$/ ||
                  f ~ /^(want_.*|in_turn|resume|inner_steps|steps)$/ ||
                  f ~ /^(thread|main)$/)
                printf " %s", f }
       END { print "" }' "$tmp/$1"
}
cat >"$tmp/hanging" <<'EOS'
MainThread: main
Worker: thread
first: all_hang compute outer run
keeper: keep_lock outer in_turn
taker: want_lock outer in_turn
getter: want_queue outer in_turn
sleeper: want_time outer in_turn
reader: want_bytes outer in_turn
generating: want_time outer inner_steps steps / resume outer in_turn
Task-8: want_end outer in_turn
collector: want_any outer in_turn
EOS
same_stacks() { stacks "$1" | sort | diff "$tmp/expected" -; }

# What "conc tasks" says of it, if the clock is the machine's.
tasks() {
  says "$1" '^ +[0-9.]+ thread +MainThread +runs a loop of 9 tasks' \
    'thread +Worker +waits for semaphore .slots.' \
    '^\*.*coroutine +first +runs$' \
    "coroutine +keeper +waits for event 'never'" \
    "coroutine +taker +waits for lock 'ledger' held by keeper" \
    "coroutine +getter +waits for queue 'tasks'" \
    'coroutine +sleeper +sleeps, until [0-9.]+ s (from|of)' \
    'coroutine +reader +waits for descriptor [0-9]+, reading' \
    'coroutine +generating +sleeps, until' \
    'coroutine +Task-8 +waits for the end of sleeper' \
    'coroutine +collector +waits for several tasks: keeper, sleeper'
}
values() {
  says "$1" "= lock 'ledger', held by keeper, 1 task waits" \
    "= event 'never', clear, 1 task waits" \
    "= semaphore 'slots', 0, 1 task waits" \
    "= queue 'tasks', 0 messages, capacity 5, waiting: 1 getter" \
    "\\{'point': \\(7, 2.5\\), 'list': \\[\"it's\", None\\], 'raw': b'a.x00" \
    "= coroutine taker, waits for lock 'ledger' held by keeper" \
    'generator inner_steps[^,]*, waited' 'generator steps[^,]*, running'
}
print='print ledger
print never
print slots
print *tasks
print *order
print all[1]
print *all[5].actor->generator
print *all[5].actor->generator->next'

# part FILE NAME: what FILE says after @NAME, as $tmp/FILE.NAME.
part() {
  sed -n "/^@$2\$/,/^@/p" "$tmp/$1" | sed '1d; /^@/d' >"$tmp/$1.$2"
}

# looks TITLE FILE GDB PROGRAM COMMAND...: at a program in which all hang; the
# commands lead there.
looks() {
  title=$1 name=$2
  shift 2
  sort "$tmp/hanging" >"$tmp/expected"
  ask "$name" "$@" 'echo @tasks\n' 'conc tasks' 'echo @all\n' 'conc bt all' \
    'echo @values\n' "$print" 'echo @end\n'
  for p in tasks all values; do part "$name" $p; done
  try "$title: what each task waits for" tasks "$name.tasks"
  try '... and where' same_stacks "$name.all"
}

# crashed TITLE FILE GDB PROGRAM CORE: what the core file of a crash says.
crashed() {
  sed 's/all_hang compute/crash/' "$tmp/hanging" | sort >"$tmp/expected"
  ask "$2" "$3" "$4 $5" 'echo @tasks\n' 'conc tasks' 'echo @bt\n' 'conc bt' \
    'echo @all\n' 'conc bt all' 'echo @end\n'
  for p in tasks bt all; do part "$2" $p; done
  try "$1: what the others waited for" tasks "$2.tasks"
  try '... and where' same_stacks "$2.all"
  try '... and which task has crashed' says "$2.bt" \
    '^[0-9.]+ coroutine first: runs$' '^#0 .*crash \(' '^#1 .*outer \('
}

# The core file of PROGRAM, which crashes: as the system writes it, if it does
# so here; else none.
core_of() { # PROGRAM FOLDER
  mkdir "$tmp/$2" && (
    cd "$tmp/$2" || exit
    ulimit -c unlimited 2>/dev/null
    $wrapper ../"$1" crash >/dev/null 2>&1
    true # else the shell tells of the crash
  ) 2>/dev/null
  ls "$tmp/$2"/*core* 2>/dev/null | head -1
}

compile() { # COMPILER... OUTPUT SOURCE
  "$@" -g -w -pthread -I. -Itests || echo 'it does not compile'
}

have "$GDB" || { skip conc.py "there is no $GDB"; exit; }
$GDB -nx -batch -ex 'python print("is there")' 2>&1 | grep -q 'is there' ||
  { skip conc.py "$GDB has no Python"; exit; }
[ -z "$SANITIZE$WRAPPER" ] ||
  { skip conc.py 'it is tested without sanitizers'; exit; }
wrapper=
traces=true
$GDB -nx -batch -ex 'set startup-with-shell off' -ex run "$(command -v true)" \
  2>&1 </dev/null | grep -q 'exited normally' || traces=false

# hanging TITLE FILE PROGRAM: all that there is to see of a program of this
# machine.
hanging() {
  if $traces; then
    looks "$1" "$2" "$GDB" "$tmp/$3" 'break all_hang' run
    try '... objects in words' values "$2.values"
  else
    skip "$1" 'a program cannot be traced here'
  fi
}
crashing() { # TITLE FILE PROGRAM
  core=$(core_of "$3" "$2.core")
  if [ -n "$core" ]; then
    crashed "$1" "$2" "$GDB" "$tmp/$3" "$core"
  else
    skip "$1" 'the system writes no core file here'
  fi
}

# Tasks of other kinds, and what print says of other objects.
others() {
  try 'tasks of the other kinds' compile $CC -std=c99 -D_GNU_SOURCE -O2 \
    -o "$tmp/others" tests/gdb/others.c "$BUILD/conc.o"
  $traces || return
  ask kinds "$GDB" "$tmp/others" 'break all_hang' run 'conc tasks' \
    'echo @bt\n' 'conc bt "the job"' 'conc bt gen' 'conc bt late' \
    'conc bt &child' 'echo @print\n' 'print rwlock' 'print rlock' \
    'print group' 'print *leased' 'print child' 'print gen' 'echo @end\n'
  part kinds bt && part kinds print
  try '... what they do' says kinds \
    'coroutine +grouper +waits for the end of 2 tasks of a group' \
    'coroutine +selecting +waits for one of several things, 2' \
    'coroutine +late +has not begun' 'thread +Worker-1 +runs a job' \
    'job +the job +waits for event' 'process +Process-1 +runs, pid [0-9]+'
  try '... where they are' says kinds.bt '^[0-9]+ job the job:' \
    '^#[0-9]+ .* waits \(' '^generator at 0x' '^#[0-9]+ .* steps \(' \
    '^- coroutine late: has not begun' '^- process Process-1: runs'
  try '... and their objects' says kinds.print '= rwlock, held by 1 reader$' \
    '= recursive lock, held by Task-1, 2 levels' '= group, 2 tasks' \
    '= queue that leases' '= process Process-1, runs, pid' \
    '= generator steps, suspended'
}

if [ "$1" != all ]; then
  # -ftoplevel-reorder: else gcc keeps what is not used.
  reorder=
  $CC --version 2>/dev/null | grep -q 'Free Software' &&
    reorder=-ftoplevel-reorder
  static="$CC -std=c99 -D_GNU_SOURCE -DCONC_STATIC"
  try 'a program compiled with -O0' compile $static -O0 $reorder \
    -o "$tmp/zero" tests/gdb/planted.c
  hanging 'compiled with -O0' zero.live zero
  if $traces; then
    # What is above a frame, and the choice of a task in three ways.
    ask select "$GDB" "$tmp/zero" 'break all_hang' run 'conc select getter' \
      up up 'info locals' 'echo @number\n' 'python world = World()' \
      'python id = world.find("getter").number' \
      'python gdb.execute("conc bt " + id)' \
      'echo @address\n' 'conc bt &all[2] -conc' 'conc bt nobody'
    try '... the frames and variables of a task can be looked at' says select \
      '^local = 42'
    # The last command fails, and ends the script.
    part select number && part select address
    try '... a task is found by its number' says select.number \
      '^[0-9]+ coroutine getter:' '^#[0-9]+ .*want_queue'
    try '... and by its address, with private functions' says select.address \
      '^[0-9]+ coroutine getter:' 'conc__loop_switch' 'conc__coro_main' \
      'there is no task nobody'
    ask write "$GDB" "$tmp/zero" 'break all_hang' run \
      "conc core $tmp/written.core"
    looks 'a core file of gdb' zero.core "$GDB" "$tmp/zero $tmp/written.core"
    # It may be stopped at any time, not just between two waits.
    ask go "$GDB" "$tmp/zero" 'break all_hang' run 'conc select getter' up \
      continue 'conc tasks'
    try '... and the program goes on after a look' says go \
      'Breakpoint 1, .*all_hang'
  fi
  crashing 'a core file of a crash' zero.crash zero
  if [ -f "$BUILD/conc.o" ]; then
    try 'a program compiled with -O2' compile $CC -std=c99 -D_GNU_SOURCE -O2 \
      -o "$tmp/two" tests/gdb/planted.c "$BUILD/conc.o"
    hanging 'compiled with -O2' two.live two
    crashing 'a core file of that' two.crash two
    others
  fi
  exit
fi

# --- what make check adds ---

static='-D_GNU_SOURCE -DCONC_STATIC -DSECOND -O1'
try 'two files, with ucontext' compile gcc -std=c99 $static \
  -DCONC_USE_UCONTEXT -o "$tmp/both" tests/gdb/planted.c tests/gdb/second.c
cp "$tmp/hanging" "$tmp/one"
printf '%s\n' 'MainThread: all_hang compute outer run' Other: >>"$tmp/hanging"
hanging 'two copies of conc.h, with ucontext' both.live both
mv "$tmp/one" "$tmp/hanging"
static='-D_GNU_SOURCE -DCONC_STATIC -O1'
try 'a program in C++' compile g++ -x c++ -std=c++17 $static -o "$tmp/plus" \
  tests/gdb/planted.c
hanging 'compiled as C++' plus.live plus
try 'a portable program' compile gcc -std=c99 $static -DCONC_PORTABLE \
  -o "$tmp/portable" tests/gdb/planted.c
hanging 'portable' portable.live portable

# 32 bits, which this machine runs by itself.
if have i686-linux-gnu-gcc; then
  try 'a program for x86-32' compile i686-linux-gnu-gcc -std=c99 $static \
    -static -o "$tmp/x86" tests/gdb/planted.c
  hanging x86-32 x86.live x86
else
  skip x86-32 'there is no i686-linux-gnu-gcc'
fi

# Emulated: each switch that there is a compiler for. gdb finds no address of a
# program that is not linked statically in the core file that the emulator
# writes.
port=$((20000 + $$ % 20000))
emulated() { # TITLE NAME COMPILER EMULATOR
  for tool in "$3" "$4" gdb-multiarch; do
    have "$tool" || { skip "$1" "there is no $tool"; return 1; }
  done
  # Not every ABI has tables by which stacks are walked unless it is asked to.
  try "a program for $1" compile "$3" -std=c99 $static -static \
    -fasynchronous-unwind-tables -o "$tmp/$2" tests/gdb/planted.c
  port=$((port + 1))
  "$4" -g $port "$tmp/$2" >/dev/null 2>&1 &
  emulator=$!
  looks "$1" "$2.live" gdb-multiarch "$tmp/$2" "target remote :$port" \
    'break all_hang' continue
  kill $emulator 2>/dev/null
  return 0
}
emulated ARMv7 armv7 arm-linux-gnueabihf-gcc qemu-arm
emulated 'RISC-V 64' riscv riscv64-linux-gnu-gcc qemu-riscv64
emulated s390x s390x s390x-linux-gnu-gcc qemu-s390x
emulated ppc64le ppc64le powerpc64le-linux-gnu-gcc qemu-ppc64le
emulated AArch64 arm aarch64-linux-gnu-gcc qemu-aarch64 || exit
try '... objects in words' values arm.live.values
wrapper=qemu-aarch64
core=$(core_of arm arm.core)
core=$(ls "$tmp"/arm.core/qemu_*.core 2>/dev/null | head -1)
if [ -n "$core" ]; then
  crashed 'AArch64, a core file of a crash' arm.crash gdb-multiarch \
    "$tmp/arm" "$core"
else
  skip 'AArch64, a core file' 'the emulator writes none here'
fi
