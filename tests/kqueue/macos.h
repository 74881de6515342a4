/* macos.h: before conc.h, it makes of Linux what macOS is to it, with kqueue.
 * What macOS also has stays as it is: flock, fpurge, wait4, the width of a
 * terminal. */
#define CONC_HAVE_KQUEUE 1
#define CONC_HAVE_EPOLL 0
#define CONC_HAVE_FUTEX 0
#define CONC_HAVE_COND_CLOCK 0 /* here the time of day stands in */
#define CONC_HAVE_CLOEXEC 0
#define CONC_HAVE_EVENTFD 0
#define CONC_HAVE_SIGNALFD 0
#define CONC_HAVE_SIGTIMEDWAIT 0
#define CONC_HAVE_FALLOCATE 0
#define CONC_HAVE_GETRANDOM 0
#define CONC_HAVE_GUARD_INSTALL 0
#define CONC_HAVE_MEMBARRIER 0
#define CONC_HAVE_MEMFD 0
#define CONC_HAVE_PIPE_SIZE 0
#define CONC_HAVE_SEQPACKET 0
#define CONC_HAVE_SETSIG 0
#define CONC_HAVE_SPAWN 0
