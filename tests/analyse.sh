#!/bin/sh
# What analysers say of conc.h: nothing, apart from what is left out below.
#   analyse.sh clang-tidy | cppcheck      (part of make check)
# gcc -fanalyzer does not end within five minutes, nor does clang's analyser
# where it follows calls.
: "${BUILD:=build/default}"
tool=$1
tmp=$BUILD/$tool
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
suite=$tool
. tests/try.sh
# As a file of its own: of a header they do not look at each path.
cp conc.h "$tmp/conc.c"

# tidy CHECKS ARGUMENTS...: they find nothing.
tidy() {
  checks=$1
  shift
  clang-tidy --quiet --checks="-*,$checks" "$@" "$tmp/conc.c" -- -std=c11 \
    -DCONC_IMPLEMENTATION >"$tmp/out" 2>"$tmp/err" || cat "$tmp/err"
  grep -E '(warning|error): ' "$tmp/out"
  true
}
# Left out, since it is how this file is written:
# - arguments of one type side by side, branches that are alike on purpose,
#   numbers that cannot overflow, _GNU_SOURCE, sizeof of pointers in an array
#   of them, memory that is no text, macros that are given a name or a type,
#   getenv() and exit(), which are called where Python's docs say so, too
bugprone="bugprone-*,concurrency-*,-bugprone-easily-swappable-parameters
  -bugprone-branch-clone,-bugprone-implicit-widening-of-multiplication-result
  -bugprone-reserved-identifier,-bugprone-sizeof-expression
  -bugprone-not-null-terminated-result,-bugprone-macro-parentheses
  -bugprone-narrowing-conversions,-concurrency-mt-unsafe"
# - which function of the C library is said to be insecure, how structs are
#   laid out, and what needs a look into the functions that are called
paths="clang-analyzer-*,-clang-analyzer-security.insecureAPI.*
  -clang-analyzer-optin.performance.Padding,-clang-analyzer-valist.*
  -clang-analyzer-deadcode.DeadStores,-clang-analyzer-core.CallAndMessage
  -clang-analyzer-core.UndefinedBinaryOperatorResult
  -clang-analyzer-core.uninitialized.UndefReturn
  -clang-analyzer-core.NullDereference,-clang-analyzer-core.DivideZero"
planted() {
  cat >"$tmp/planted.c" <<'EOS'
#include <stdlib.h>
int used(int *block);
int used(int *block) {
  free(block);
  return *block;
}
EOS
  clang-tidy --quiet --checks="-*,$(joined "$paths")" "$tmp/planted.c" -- \
    -std=c11 2>&1 | grep -q 'warning: Use of memory after' || echo missed
}
joined() { echo "$1" | tr -s ' \n' ',,'; }
# One system; the macros that its headers would have defined.
system="-D__linux__=1 -D__x86_64__=1 -D__GNUC__=12 -D__GLIBC__=2
  -D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 -DCLOCK_MONOTONIC=1
  -DAI_PASSIVE=1 -DF_SETSIG=10"

# Findings that are none, each looked at, in the words of cppcheck.
cat >"$tmp/known" <<'EOS'
autoVariables: Address of local auto-variable assigned to a function parameter.
autovarInvalidDeallocation: Deallocation of an auto-variable (few) results in undefined behaviour.
arrayIndexOutOfBoundsCond: Either the condition 'i+1<sizeof(h->name)' is redundant or the array 'name[1]' is accessed at index 46, which is out of bounds.
incorrectLogicOperator: Logical conjunction always evaluates to false: !(f >= 0) && !(f <= 0).
memleak: Memory leak: p
resourceLeak: Resource leak: fd
leakReturnValNotUsed: Return value of allocation function 'mmap' is not stored.
leakReturnValNotUsed: Return value of allocation function 'open' is not stored.
uninitvar: Uninitialized variable: w.actor
uninitvar: Uninitialized variable: slot.size
uninitvar: Uninitialized variable: &copy
ctuuninitvar: Using argument c that points at uninitialized variable c
ctuuninitvar: Using argument p that points at uninitialized variable p
ctuuninitvar: Using argument s that points at uninitialized variable s
EOS
check() {
  cppcheck -q --std=c11 --platform=unix64 --library=posix,gnu --language=c \
    --enable=warning,portability --template='{line}: {id}: {message}' \
    -DCONC_IMPLEMENTATION $system "$tmp/conc.c" >"$tmp/out" 2>&1 ||
    tail -3 "$tmp/out"
  sed 's/^[0-9]*: //' "$tmp/out" | grep -vxFf "$tmp/known" |
    grep -Ff - "$tmp/out"
  # It must have seen the implementation.
  grep -q 'w\.actor' "$tmp/out" || echo 'it has not looked'
}
case $tool in
clang-tidy)
  try 'it finds a block that is used after its end' planted
  try 'what is prone to errors, and not safe with threads' \
    tidy "$(joined "$bugprone")"
  try 'what each path of each function does' tidy "$(joined "$paths")" \
    --extra-arg=-Xclang --extra-arg=-analyzer-config --extra-arg=-Xclang \
    --extra-arg=ipa=none,max-nodes=10000
  ;;
cppcheck) try 'nothing that is not known' check ;;
*) echo "FAIL analyse: what is $tool?" ;;
esac
