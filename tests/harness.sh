#!/bin/sh
# test.h and run.sh are only worth something if what is broken fails: a
# program of tests that must fail, each with its reason.
: "${CC:=cc}" "${BUILD:=build/default}"
tmp=$BUILD/harness
rm -rf "$tmp" && mkdir -p "$tmp" || exit 1
cat >"$tmp/broken.c" <<'EOS'
#include "tests/test.h"
TEST(good) { CHECK(1), CHECK_EQ(2, 2u), CHECK_STR("a", "a"); }
TEST(check) { CHECK(errno == -1); }
TEST(check_eq) { CHECK_EQ(1 + 1, 3); }
TEST(check_str) { CHECK_STR("a", NULL); }
TEST(skip) { SKIP("no moon"); }
TEST(crash) { abort(); }
TEST(descriptor) { CHECK(dup(1) > 0); }
TEST(closed) { close(0); }
TEST(child) { if (fork() == 0) pause(); }
TEST(hang) { pause(); }
TEST(block) { CHECK(test_malloc(1) != NULL); }
TEST(out_of_memory) {
  void *one = test_malloc(1);
  test_fail_at = 2;
  CHECK(test_realloc(one, 2) == one || one);
  CHECK(test_malloc(1) == NULL);
  test_free(one);
}
TEST_MAIN
EOS
cat >"$tmp/expected" <<'EOS'
ok   broken.c: good
broken.c:3: failed: errno == -1
FAIL broken.c: check (exit status 1
broken.c:4: failed: 1 + 1 == 3 (2, 3)
FAIL broken.c: check eq (exit status 1
broken.c:5: failed: "a" == NULL (a, NULL)
FAIL broken.c: check str (exit status 1
skip broken.c: skip: no moon
FAIL broken.c: crash (Aborted 6
broken.c:0: failed: descriptor 3 opened or closed
FAIL broken.c: descriptor (exit status 1
broken.c:0: failed: descriptor 0 opened or closed
FAIL broken.c: closed (exit status 1
broken.c:0: failed: child left
FAIL broken.c: child (exit status 1
FAIL broken.c: hang (hung, killed by 9
broken.c:0: failed: 1 allocations left
FAIL broken.c: block (exit status 1
ok   broken.c: out of memory
EOS
verdict() { # what is the matter, or nothing
  $CC -std=c99 -w -I . -o "$tmp/broken" "$tmp/broken.c" || return
  # Apart from line ends with times and seeds; on a terminal in English.
  LC_ALL=C TEST_SLOW=0.1 "$tmp/broken" 2>&1 </dev/null 3>&- |
    sed 's|^[^ ]*/broken|broken|; s/ ([0-9.]* s)$//; s/, --seed.*//' \
      >"$tmp/printed"
  diff "$tmp/expected" "$tmp/printed"
  # A program may be broken so that it tests nothing.
  printf '#!/bin/sh\n' >"$tmp/silent" && chmod +x "$tmp/silent"
  # The sum must say the same, and the status that something failed.
  BUILD=$tmp FILTER= SEED= JOBS=1 SANITIZE= TEST_SLOW=0.1 \
    sh tests/run.sh broken nothing silent >"$tmp/sum" 2>&1 &&
    echo "run.sh is content with failures"
  [ "$(tail -1 "$tmp/sum")" = '2 passed, 11 failed, 1 skipped' ] ||
    tail -1 "$tmp/sum"
}
# What a sanitizer or Valgrind reports fails, too.
cat >"$tmp/reported.c" <<'EOS'
#include "tests/test.h"
#include <pthread.h>
static volatile int shared, *volatile block;
static void *write_it(void *arg) { return ++shared ? arg : NULL; }
TEST(thread) {
  pthread_t t;
  CHECK(pthread_create(&t, NULL, write_it, NULL) == 0);
  write_it(NULL);
  CHECK(pthread_join(t, NULL) == 0);
}
TEST(address) {
  CHECK((block = malloc(40)) != NULL);
  shared = block[10];
  free((void *)block);
}
TEST(leak) { CHECK((block = malloc(40)) != NULL), block = NULL; }
TEST(undefined) { shared = 0x7fffffff, shared = shared + 1; }
TEST(other) { SKIP("nothing"); }
TEST_MAIN
EOS
reports() {
  case $WRAPPER in *valgrind*) tool=valgrind ;; *) tool=$SANITIZE ;; esac
  case $tool in
  address,undefined) names='address leak undefined' ;;
  thread) names=thread ;;
  valgrind) names='address leak' ;;
  *) echo "which reports does $tool make?"; return ;;
  esac
  $CC -std=c99 -g -w ${SANITIZE:+-fsanitize="$SANITIZE" \
    -fno-sanitize-recover=all} -I . -pthread -o "$tmp/reported" \
    "$tmp/reported.c" || return
  for name in $names; do
    BUILD=$tmp FILTER=$name SEED= JOBS=1 \
      sh tests/run.sh reported >"$tmp/report" 2>&1 &&
      echo "run.sh is content with: $name" && cat "$tmp/report"
  done
}
title='what is broken fails, and says why'
case $SANITIZE$WRAPPER in
'') said=$(verdict 2>&1) ;;
*) title='what the tool reports fails' said=$(reports 2>&1) ;;
esac
if [ -z "$said" ]; then
  echo "ok   harness: $title"
else
  echo "$said"
  echo "FAIL harness: $title"
fi
