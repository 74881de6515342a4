/* refuse.h: system calls that are refused, as by an older kernel or a sandbox
 * (seccomp of Linux). After test.h. */
#ifndef TEST_REFUSE_H
#define TEST_REFUSE_H
#include "test.h"
#ifdef __linux__
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

/* Each of the calls fails by that errno from now on, in this process and its
   children. False: that cannot be had here. */
TEST_FN int can_refuse(const long *calls, size_t n, int error) {
  struct sock_filter code[2 * REFUSED_MOST + 2];
  struct sock_fprog program;
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
  program.len = k;
  program.filter = code;
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_FN void refuse(const long *calls, size_t n, int error) {
  if (!can_refuse(calls, n, error))
    SKIP("no system call can be refused here");
}
#define NEEDS_REFUSAL                                                         \
  if (test_wrapped("qemu") || test_wrapped("valgrind"))                       \
  SKIP("this tool needs system calls of its own")
#endif
#endif
