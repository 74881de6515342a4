#!/bin/sh
# Every example runs and ends well; sleeps are cut short by TIME_SCALE.
#
# Which programs of the documents (five Python tutorials, in Chinese; their
# numbers) each mirrors: the same structure, and the lines that they print.
#
#   os.fork()                                  0-4      fork
#   Process(target=run_proc)                   1 3 4    process
#   two downloads, in processes                0 2      download_processes
#   ... in threads                             0 2      download_threads
#   ... by class DownloadTask(Thread)          0 2      download_task
#   ... as coroutines                          (none)   download_coroutines
#   Pool, long_time_task                       0-4      pool
#   subprocess.call, Popen.communicate         0-3      subprocess
#   Queue of a writer and a reader             0-4      queue (read to its end
#                                                         before the terminate)
#   Pipe; Value, Array (only named there)      0-4      pipe, shared_value
#   LoopThread                                 1 4      thread
#   balance, without and with a lock           0-2 4    balance
#   deadlock (in words)                        0-4      deadlock
#   busy loops on every core                   1 4      cores
#   std passed along, global_dict              1 4      global_dict
#   threading.local                            0-2 4    thread_local
#   "一个子进程崩溃了，不会影响主进程" (words) 0-4      crash
#   taskIO_1, taskIO_2, synchronous            2        synchronous
#   yield, yield from: titles                  2        yield_from
#   generator_1.send, the delegating one       2        generator
#   asyncio.wait (@asyncio.coroutine, async)   2        wait
#   asyncio.gather                             2        gather
#   asyncio.as_completed                       2        as_completed
#   wait_with_progress, tqdm                   2        progress
#   processes, and coroutines in each (words)  0-2 4    echo
#   task_master.py, task_worker.py             0-4      task_master, task_worker
#   "把计算n*n的代码换成发送邮件" (words)      0-2 4    mail
#   with open, os.path, listdir, pickle, json  4        files
#
# And what of Python they do not show:
#   Pool.map, Pool.imap                                 pool_map
#   asyncio.timeout, signal.sigwait                     timeout
#   asyncio.to_thread                                   offload
#   asyncio.all_tasks, faulthandler                     report
#   loop.slow_callback_duration                         slow
#   asyncio.sleep(0)                                    turns
#   Popen.stdout, terminate, then kill                  lines
#   asyncio.start_server, socketserver                  http
#   multiprocessing.Manager                             manager_server,
#                                                         shared_dict
#   (queues that lease, or have a journal, are not      lease, journal,
#     Python's, nor are these)                            values, chat
: "${EXAMPLES:=build/examples}"
export TIME_SCALE=0.01
log=$EXAMPLES/examples.log

limit=
if command -v timeout >/dev/null 2>&1; then limit='timeout 100'; fi

try() { # TITLE COMMAND...
  title=$1
  shift
  if "$@" >"$log" 2>&1 </dev/null; then
    echo "ok   examples: $title"
  else
    status=$?
    cat "$log"
    echo "FAIL examples: $title (exit status $status)"
  fi
}

# The output must be tests/examples/NAME.out; or, where threads print in any
# order, NAME.txt, both being sorted. What differs from run to run, as times
# do, NAME.sed makes equal (and puts last what may come in between).
prints() { # NAME COMMAND...
  expected=tests/examples/$1
  mend=$expected.sed
  [ -f "$mend" ] || mend=/dev/null
  shift
  "$@" >"$log.raw" || return
  sed -f "$mend" "$log.raw" >"$log.out"
  if [ -f "$expected.out" ]; then
    diff "$expected.out" "$log.out"
  else
    sort "$expected.txt" >"$log.expected" &&
      sort "$log.out" | diff "$log.expected" -
  fi
}

# In a project of several files the implementation is in another one.
includes() {
  for source in examples/*.c; do
    sed '/^#define CONC_IMPLEMENTATION/d; s,"../conc.h","conc.h",' "$source" \
      >"$EXAMPLES/alone.c" &&
      ${CC:-cc} -Wall -Werror -I. -c -o "$EXAMPLES/alone.o" \
        "$EXAMPLES/alone.c" || return
  done
}
try 'each includes what it uses, also without the implementation' includes

# Not so short that a worker comes when the other has done all the work.
try 'a task master and two task workers (make run)' \
  env TIME_SCALE="$(awk "BEGIN { print 0.2 * ${TEST_SLOW:-1} }")" \
  sh tests/run_demo.sh "$EXAMPLES"
# It prints where it serves, and ends well when it is asked to end. What it
# serves tests/interop tries.
serves() {
  rm -f "$log.address" # of a run before this one: it is not to be read
  # Not below timeout, whose own status may be that of the signal.
  $WRAPPER "$EXAMPLES/manager_server" 127.0.0.1:0 key >"$log.address" &
  served=$!
  tries=0
  until grep -q '^127\.0\.0\.1:[0-9]*$' "$log.address"; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || break
    sleep 0.01
  done
  cat "$log.address"
  kill "$served"
  wait "$served" && [ $tries -lt 1000 ]
}
try manager_server serves
for source in examples/*.c; do
  name=$(basename "$source" .c)
  case $name in
  task_master | task_worker | manager_server | '*') ;; # above; none
  journal) # a file that an earlier version has written
    try "$name" prints "$name" $limit $WRAPPER "$EXAMPLES/$name" \
      tests/examples/journal.v1 ;;
  *) try "$name" prints "$name" $limit $WRAPPER "$EXAMPLES/$name" ;;
  esac
done
