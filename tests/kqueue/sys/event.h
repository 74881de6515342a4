/* As much of kqueue() as conc.h uses, over epoll: so that its kqueue poller is
   tested on Linux where libkqueue is not to be had. By -Itests/kqueue. */
#ifndef TEST_EVENT_H
#define TEST_EVENT_H
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EV_ADD 1
#define EV_DELETE 2
#define EV_ONESHOT 16
#define EV_CLEAR 32
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

struct kevent {
  uintptr_t ident;
  short filter;
  unsigned short flags;
  unsigned fflags;
  intptr_t data;
  void *udata;
};
#define EV_SET(e, i, f, fl, ff, d, u)                                     \
  ((e)->ident = (i), (e)->filter = (f), (e)->flags = (fl),                \
   (e)->fflags = (ff), (e)->data = (d), (e)->udata = (u))

enum { KQ_FDS = 65536 };
/* By queue and descriptor: the flags of its two filters; 0: not there. */
static unsigned char (*kq_table[KQ_FDS])[2];

static int kqueue(void) {
  int kq = epoll_create1(EPOLL_CLOEXEC);
  if (kq < 0) return kq;
  free(kq_table[kq]);
  kq_table[kq] = (unsigned char(*)[2])calloc(KQ_FDS, 2);
  return kq;
}
static int kq_apply(int kq, int fd, int filter) {
  unsigned char *armed = kq_table[kq][fd];
  struct epoll_event e;
  e.data.fd = fd;
  e.events = (armed[0] ? EPOLLIN | EPOLLRDHUP : 0u) |
             (armed[1] ? (unsigned)EPOLLOUT : 0u);
  if (e.events == 0) {
    epoll_ctl(kq, EPOLL_CTL_DEL, fd, &e);
    return 0;
  }
  if ((armed[0] | armed[1]) & EV_CLEAR) e.events |= (unsigned)EPOLLET;
  if (epoll_ctl(kq, EPOLL_CTL_MOD, fd, &e) == 0) return 0;
  if (errno != ENOENT) return -1;
  armed[!filter] = 0; /* it was closed meanwhile, and so not there any more */
  e.events = (filter == 0 ? EPOLLIN | EPOLLRDHUP : (unsigned)EPOLLOUT) |
             (armed[filter] & EV_CLEAR ? (unsigned)EPOLLET : 0u);
  return epoll_ctl(kq, EPOLL_CTL_ADD, fd, &e);
}
static int kevent(int kq, const struct kevent *changes, int n_changes,
                  struct kevent *out, int n_out, const struct timespec *t) {
  struct epoll_event e[64];
  int n, count = 0;
  for (int i = 0; i < n_changes; i++) {
    int fd = (int)changes[i].ident, filter = -1 - changes[i].filter;
    unsigned char *armed = kq_table[kq][fd];
    if ((changes[i].flags & EV_DELETE) && !armed[filter]) {
      errno = ENOENT;
      return -1;
    }
    armed[filter] = changes[i].flags & EV_DELETE
                        ? 0 : (unsigned char)changes[i].flags;
    if (kq_apply(kq, fd, filter) < 0) {
      armed[filter] = 0;
      return -1;
    }
  }
  if (n_out == 0) return 0;
  n = epoll_wait(kq, e, n_out / 2 < 64 ? n_out / 2 : 64,
                 t ? (int)(t->tv_sec * 1000 + (t->tv_nsec + 999999) / 1000000)
                   : -1);
  for (int i = 0; i < n; i++) {
    unsigned char *armed = kq_table[kq][e[i].data.fd];
    unsigned end = e[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR), fired = 0;
    for (int filter = 0; filter < 2; filter++) {
      unsigned want = filter == 0 ? EPOLLIN | EPOLLRDHUP : EPOLLOUT;
      if (!armed[filter]) continue;
      if (!(e[i].events & (want | EPOLLHUP | EPOLLERR))) continue;
      EV_SET(&out[count], (uintptr_t)e[i].data.fd, (short)(-1 - filter),
             (unsigned short)(end ? EV_EOF : 0), 0, 0, NULL);
      count++;
      fired |= armed[filter] & EV_ONESHOT;
      if (armed[filter] & EV_ONESHOT) armed[filter] = 0;
    }
    if (fired) kq_apply(kq, e[i].data.fd, 0);
  }
  return n < 0 ? n : count;
}
#endif
