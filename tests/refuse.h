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

/* All that is refused now has no new privileges, nor has what it executes. */
TEST_FN int refuse_by(struct sock_filter *code, unsigned short n) {
  struct sock_fprog program;
  program.len = n;
  program.filter = code;
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* Each of the calls fails by that errno from now on, in this process and its
   children. False: that cannot be had here. */
TEST_FN int can_refuse(const long *calls, size_t n, int error) {
  struct sock_filter code[2 * REFUSED_MOST + 2];
  unsigned short k = 0;
  CHECK(n <= REFUSED_MOST);
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS,
                          (unsigned)offsetof(struct seccomp_data, nr), 0);
  for (size_t i = 0; i < n; i++) {
    code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 1);
    code[k++] = refuse_step(BPF_RET | BPF_K,
                            SECCOMP_RET_ERRNO | (unsigned)error, 0);
  }
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
  return refuse_by(code, k);
}

/* What Linux 3.10 does not know fails as it does there: each call that came
   after its last one, which stand behind that in every table of calls; locks
   of an open file (3.15); advice about memory that is newer. It has 1 to 17
   but for 8, MADV_FREE; and to poison pages, which nothing here does. (An
   argument's lower half comes first where the lowest byte does.) */
TEST_FN int can_be_linux_3_10(void) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  enum {
    NUMBER = offsetof(struct seccomp_data, nr),
    SECOND = offsetof(struct seccomp_data, args[1]),
    THIRD = offsetof(struct seccomp_data, args[2])
  };
  struct sock_filter code[32];
  unsigned short k = 0;
  unsigned i;
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS, NUMBER, 0);
#ifdef SYS_rseq /* glibc has asked for it, and ends forked children without */
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, SYS_rseq, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
#endif
  code[k++] = refuse_step(BPF_JMP | BPF_JGT | BPF_K, SYS_finit_module, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 8);
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS, SECOND, 0);
  for (i = 36; i <= 38; i++) { /* F_OFD_GETLK, SETLK, SETLKW */
    code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, i, 1);
    code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL, 0);
  }
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 5);
  code[k++] = refuse_step(BPF_LD | BPF_W | BPF_ABS, THIRD, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JEQ | BPF_K, 8, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL, 0);
  code[k++] = refuse_step(BPF_JMP | BPF_JGT | BPF_K, 17, 1);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL, 0);
  code[k++] = refuse_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
  return refuse_by(code, k);
#else
  return 0;
#endif
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
