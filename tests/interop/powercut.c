/* powercut.c: a library to be preloaded, which notes what a program does to a
 * file, as events of ../powercut.h: those files whose name begins with the
 * value of POWERCUT_FILE, and the directory that they are in. The log is the
 * file POWERCUT_LOG. Linux only: the calls themselves are system calls. The disk
 * is not waited for, for nobody looks at it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define POWERCUT_LIBRARY
#include "../powercut.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static log_head *events_log; /* NULL: nothing is noted */
static const char *files;

__attribute__((constructor)) static void begin_log(void) {
  const char *path = getenv("POWERCUT_LOG");
  int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
  struct stat st;
  void *p;
  files = getenv("POWERCUT_FILE");
  if (fd < 0 || files == NULL || fstat(fd, &st) != 0) return;
  p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
           0);
  close(fd);
  if (p != MAP_FAILED) events_log = (log_head *)p;
}

/* Whether a descriptor is of such a file; of a directory, that they are in. */
static bool is_meant(int fd, struct stat *st) {
  char link[40], path[PATH_MAX];
  ssize_t n;
  if (events_log == NULL || fstat(fd, st) != 0) return false;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  n = readlink(link, path, sizeof path - 1);
  if (n < 0) return false;
  path[n] = 0;
  if (S_ISDIR(st->st_mode))
    return strncmp(files, path, (size_t)n) == 0 && files[n] == '/';
  return strncmp(files, path, strlen(files)) == 0;
}

static void note(int what, int fd, const void *data, size_t size, off_t at) {
  struct stat st;
  event e;
  int error = errno;
  if (is_meant(fd, &st)) {
    memset(&e, 0, sizeof e);
    e.what = what == SYNC && S_ISDIR(st.st_mode) ? SYNC_DIRECTORY : what;
    e.inode = st.st_ino;
    e.size = size;
    e.at = at;
    memcpy(&e.data, &data, sizeof data); /* which it only reads */
    log_event(events_log, &e);
  }
  errno = error;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  ssize_t n = syscall(SYS_pwrite64, fd, data, size, at);
  if (n > 0) note(WRITE, fd, data, (size_t)n, at);
  return n;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return pwrite(fd, data, size, (off_t)at);
}

int ftruncate(int fd, off_t size) {
  int rc = (int)syscall(SYS_ftruncate, fd, size);
  if (rc == 0) note(CUT, fd, NULL, 0, size);
  return rc;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, (off_t)size); }

int fdatasync(int fd) {
  struct stat st;
  if (!is_meant(fd, &st)) return (int)syscall(SYS_fdatasync, fd);
  note(SYNC, fd, NULL, 0, 0);
  return 0;
}
int fsync(int fd) {
  struct stat st;
  if (!is_meant(fd, &st)) return (int)syscall(SYS_fsync, fd);
  note(SYNC, fd, NULL, 0, 0);
  return 0;
}

int renameat(int a, const char *from, int b, const char *to) {
  int rc = (int)syscall(SYS_renameat2, a, from, b, to, 0);
  int fd = rc == 0 ? openat(b, to, O_RDONLY | O_CLOEXEC) : -1;
  if (fd >= 0) {
    note(RENAME, fd, NULL, 0, 0);
    close(fd);
  }
  return rc;
}
