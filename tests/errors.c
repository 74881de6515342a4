/* Every error that the manual names, and every one that programs, files and
   sockets are known to fail with, has words of its own. */
#include "inside.h"

#define ERRORS(X)                                                             \
  X(E2BIG) X(EACCES) X(EADDRINUSE) X(EADDRNOTAVAIL) X(EAFNOSUPPORT)           \
  X(EAGAIN) X(EALREADY) X(EBADF) X(EBADMSG) X(EBUSY) X(ECANCELED) X(ECHILD)   \
  X(ECONNABORTED) X(ECONNREFUSED) X(ECONNRESET) X(EDEADLK) X(EDQUOT)          \
  X(EEXIST) X(EFAULT) X(EFBIG) X(EHOSTUNREACH) X(EINPROGRESS) X(EINTR)        \
  X(EINVAL) X(EIO) X(EISCONN) X(EISDIR) X(ELOOP) X(EMFILE) X(EMSGSIZE)        \
  X(ENAMETOOLONG) X(ENETDOWN) X(ENETRESET) X(ENETUNREACH) X(ENFILE)           \
  X(ENOBUFS) X(ENODEV) X(ENOENT) X(ENOEXEC) X(ENOLCK) X(ENOMEM)               \
  X(ENOPROTOOPT) X(ENOSPC) X(ENOSYS) X(ENOTCONN) X(ENOTDIR) X(ENOTEMPTY)      \
  X(ENOTSOCK) X(ENOTSUP) X(ENXIO) X(EOVERFLOW) X(EOWNERDEAD) X(EPERM)         \
  X(EPIPE) X(EPROTO) X(EPROTONOSUPPORT) X(EPROTOTYPE) X(ERANGE) X(EREMOTEIO)  \
  X(EROFS) X(ESPIPE) X(ESRCH) X(ESTALE) X(ETIMEDOUT) X(ETXTBSY) X(EXDEV)

static const struct error {
  const char *name;
  int code;
} errors[] = {
#define ROW(name) {#name, name},
    ERRORS(ROW)
#undef ROW
};
enum { COUNT = sizeof errors / sizeof *errors };

static bool has_words(int error) {
  return strcmp(conc_strerror(-error), conc_strerror(-99999)) != 0 &&
         conc_strerror(-error) == conc_strerror(error) &&
         strcmp(conc_strerror(-error), conc_strerror(0)) != 0;
}

TEST(every_known_error_has_words) {
  for (int i = 0; i < COUNT; i++)
    if (!has_words(errors[i].code))
      TEST_FAIL("%s: %s", errors[i].name, conc_strerror(errors[i].code));
}

/* Of each line of the manual that begins with an error's name, and is not a
   line of code. */
TEST(every_error_of_the_manual_has_words) {
  FILE *f = fopen("conc.h", "r");
  char line[256], name[32];
  int found = 0;
  if (f == NULL) SKIP("conc.h is not in this directory");
  while (fgets(line, sizeof line, f) != NULL) {
    int i = 0;
    if (strcmp(line, "   The implementation\n") == 0) break;
    if (sscanf(line, " -%31[A-Z0-9]", name) != 1 &&
        sscanf(line, "   %31[A-Z0-9]  ", name) != 1)
      continue;
    if (name[0] != 'E' || strlen(name) < 4) continue;
    while (i < COUNT && strcmp(errors[i].name, name) != 0) i++;
    if (i == COUNT) TEST_FAIL("%s: not known to this test", name);
    CHECK(has_words(errors[i].code));
    found++;
  }
  fclose(f);
  CHECK(found > 100);
}

TEST_MAIN
