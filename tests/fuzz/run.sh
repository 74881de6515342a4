#!/bin/sh
# Looks for inputs that do harm: run.sh [SECONDS], as "make fuzz SECONDS=n"
# does; so long each of the targets runs, one after the other, from its corpus.
#
#   FUZZ="pickle json"     only these targets (default: all)
#   BUILD=build/default    where they are built; what is found stays there
#
# It needs clang and its libFuzzer. New inputs are kept in $BUILD/fuzz/TARGET.
# One that has found something is worth a place in tests/fuzz/corpus/TARGET,
# which "make test" replays with any compiler.
seconds=${1:-${SECONDS:-60}}
build=${BUILD:-build/default}/fuzz
cc=${CC:-cc}
case $cc in *clang*) ;; *) cc=clang ;; esac
here=$(cd "$(dirname "$0")" && pwd) || exit 1
mkdir -p "$build" || exit 1
echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' >"$build/none.c"
$cc -fsanitize=fuzzer -o "$build/none" "$build/none.c" 2>"$build/none.log" || {
  echo "skip fuzz: $cc has no libFuzzer, see $build/none.log"
  exit 0
}

program=$build/fuzz
$cc -std=gnu11 -O1 -g -w -pthread -DFUZZ -fsanitize=fuzzer,address,undefined \
  -fno-sanitize-recover=all -o "$program" "$here/../fuzz.c" || exit 1
failed=0
for target in ${FUZZ:-pickle json format stream pipe ring server client}; do
  mkdir -p "$build/$target"
  # A message may announce more than there is memory for: that is an error to
  # be returned, not one of malloc's to be reported.
  if FUZZ_TARGET=$target ASAN_OPTIONS=allocator_may_return_null=1 "$program" \
      -max_total_time="$seconds" -max_len=4096 -timeout=30 \
      -rss_limit_mb=4000 -malloc_limit_mb=100000 \
      -artifact_prefix="$build/found-$target-" \
      "$build/$target" "$here/corpus/$target" >"$build/$target.log" 2>&1; then
    echo "ok   fuzz: $target ($(sed -n 's/^Done \([0-9]*\) .*/\1/p' \
      "$build/$target.log") inputs)"
  else
    echo "FAIL fuzz: $target, see $build/$target.log"
    failed=1
  fi
done
exit $failed
