/* refuse.h: system calls that are refused, as by an older kernel or a sandbox
 * (seccomp of Linux). After test.h. */
#ifndef TEST_REFUSE_H
#define TEST_REFUSE_H
#include "test.h"
#ifdef __has_include /* musl has no headers of the kernel */
#define TEST_HAS_FILE(x) __has_include(x)
#else
#define TEST_HAS_FILE(x) 1
#endif
#if defined(__linux__) && TEST_HAS_FILE(<linux/seccomp.h>)
#define TEST_CAN_REFUSE 1
#include <stddef.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* A system call; or only where one of its arguments, from 0 on, is this value:
   a command, a kind of advice. */
typedef struct refused {
  long call;
  int argument; /* -1: the call, whatever its arguments are */
  unsigned value;
} refused;
enum { REFUSED_MOST = 64 };

TEST_FN struct sock_filter refuse_step(int code, unsigned k,
                                       unsigned char leave_out) {
  struct sock_filter f;
  f.code = (unsigned short)code;
  f.jt = 0;
  f.jf = leave_out; /* so many steps, if it is not equal */
  f.k = k;
  return f;
}

/* Where a filter finds an argument's lower half. */
TEST_FN unsigned refuse_argument(int i) {
  unsigned at = (unsigned)offsetof(struct seccomp_data, args);
  at += 8 * (unsigned)i;
  return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? at : at + 4;
}

/* All that is refused now has no new privileges, nor has what it executes. */
TEST_FN int refuse_by(struct sock_filter *code, unsigned short n) {
  struct sock_fprog program;
  program.len = n;
  program.filter = code;
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* Each of them fails by that errno from now on, in this process and its
   children. False: that cannot be had here. */
TEST_FN int can_refuse_some(const refused *some, size_t n, int error) {
  struct sock_filter code[5 * REFUSED_MOST + 1];
  unsigned short k = 0;
  CHECK(n <= REFUSED_MOST);
  for (size_t i = 0; i < n; i++) {
    int whole = some[i].argument < 0;
    code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS,
                            (unsigned)offsetof(struct seccomp_data, nr), 0);
    code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)some[i].call,
                            whole ? 1 : 3);
    if (!whole) {
      code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS,
                              refuse_argument(some[i].argument), 0);
      code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, some[i].value, 1);
    }
    code[k++] = refuse_step(BPF_RET | BPF_K,
                            SECCOMP_RET_ERRNO | (unsigned)error, 0);
  }
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
  return refuse_by(code, k);
}

TEST_FN int can_refuse(const long *calls, size_t n, int error) {
  refused some[REFUSED_MOST];
  CHECK(n <= REFUSED_MOST);
  for (size_t i = 0; i < n; i++) {
    some[i].call = calls[i];
    some[i].argument = -1;
    some[i].value = 0;
  }
  return can_refuse_some(some, n, error);
}

/* What Linux 3.10 does not know fails as it does there: each call that came
   after its last one, which stand behind that in every table of calls; locks
   of an open file (3.15), and seals of files (3.17); advice about memory that
   is newer. It has 1 to 17 but for 8, MADV_FREE; and to poison pages, which
   nothing here does. */
TEST_FN int can_be_linux_3_10(void) {
  /* F_OFD_GETLK, SETLK, SETLKW, F_ADD_SEALS, F_GET_SEALS */
  static const unsigned newer[] = {36, 37, 38, 1033, 1034};
  enum { NEWER = sizeof newer / sizeof *newer };
  const unsigned number = (unsigned)offsetof(struct seccomp_data, nr);
  struct sock_filter code[40];
  unsigned short k = 0;
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS, number, 0);
#ifdef SYS_rseq /* glibc has asked for it, and ends forked children without */
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, SYS_rseq, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
#endif
  code[k++] = refuse_step(BPF_JMP | BPF_JGT | BPF_K, SYS_finit_module, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl,
                          2 + 2 * NEWER);
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS, refuse_argument(1), 0);
  for (size_t i = 0; i < NEWER; i++) {
    code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, newer[i], 1);
    code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL, 0);
  }
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 5);
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS, refuse_argument(2), 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, 8, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JGT | BPF_K, 17, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL, 0);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
  return refuse_by(code, k);
}

TEST_FN void refuse(const long *calls, size_t n, int error) {
  if (!can_refuse(calls, n, error))
    SKIP("no system call can be refused here");
}
#define NEEDS_REFUSAL                                                         \
  if (test_wrapped("qemu") || test_wrapped("valgrind"))                       \
  SKIP("this tool needs system calls of its own")
#else
#define TEST_CAN_REFUSE 0
#endif
#endif
