/* conc.h - v0.2.0 - everything that runs at the same time, in one C file.
   MIT-0 or public domain, as you choose; both texts are in LICENSE.

   It has threads, coroutines with an event loop, processes, pools, locks and
   queues. Locks and queues also work between processes, and queues over the
   network, in the protocol of Python's multiprocessing.managers.
   There is one set of verbs: the same conc_put, conc_lock_acquire, conc_join
   and conc_read work from a thread and from a coroutine, each with a timeout.

   Do this in exactly one C or C++ file, before any other include:

     #define CONC_IMPLEMENTATION
     #include "conc.h"

   and only the #include in the others. Link with -pthread, nothing else.

     #define CONC_IMPLEMENTATION
     #include "conc.h"
     #include <stdio.h>

     static void *loop(void *arg) {
       for (int n = 1; n <= 3; n++) {
         printf("%s >>> %d\n", conc_name(NULL), n);
         conc_sleep(*(double *)arg);
       }
       return NULL;
     }

     int main(void) {
       double second = 0.1;
       conc_task t = { .target = loop, .arg = &second, .name = "LoopThread" };
       conc_thread_start(&t);
       return conc_join(&t, CONC_FOREVER);
     }

   cc main.c -pthread && ./a.out prints three lines. With conc_run(&t) instead
   of conc_thread_start, loop is a coroutine.

   Contents. The tag of a part, from >>platform on, stands in the public half,
   in the implementation, or in both, in this order; a part uses only parts
   above it. The implementation begins with a list of what is in its parts.

     >>words       what the nouns mean
     >>tour        six little programs
     >>matrix      what works between whom
     >>options     compile-time options
     >>contract    errors, time, memory, signals, fork: true of every call
     >>coroutines  stacks, thread-locals, sanitizers
     >>shared      locks and their like between processes
     >>limits      known holes
     >>platform    versions, errors, clock, memory
     >>os          what is asked of the system (private)
     >>bytes       buffers and hashes (private)
     >>park        what a wait is; cancellation; threads; forks
     >>deadlock    conc_deadlock_report: who waits for whom
     >>wait        a waiter on a list parks (private)
     >>registry    which processes are alive (private)
     >>lock        conc_lock, conc_rlock, conc_rwlock, conc_once
     >>event       conc_event, conc_cond, conc_sem, conc_barrier, CONC_WITH
     >>task        conc_task: join, result, cancel, wait, gather, groups
     >>stack       the switch, and the memory of stacks (private)
     >>generator   conc_gen
     >>local       conc_local: values of each thread or task
     >>thread      conc_thread_start
     >>schedule    a loop's state: what is ready, timers (private)
     >>poller      epoll, kqueue or poll() (private)
     >>coroutine   switching; coroutines as actors (private)
     >>loop        conc_run, conc_coro_start, conc_sleep
     >>fork        what a forked child makes of what it finds (private)
     >>io          conc_read, conc_write, conc_serve, streams, signals
     >>ipc         conc_shared_alloc: memory that processes share
     >>process     conc_process_start
     >>popen       conc_popen: other programs
     >>value       conc_value: typed values
     >>maker       how a value is made (private)
     >>pickle      conc_pickle_dumps, conc_pickle_loads
     >>format      conc_value_text, conc_build, conc_parse
     >>json        conc_json_dumps, conc_json_loads
     >>pipe        conc_pipe: send, recv, poll: messages between processes
     >>fifo        the queue of one process (private)
     >>cells       the queue between processes (private)
     >>queue       conc_queue: put, get, one or many, close, join
     >>jobs        threads that run jobs (private)
     >>procpool    processes that run jobs (private)
     >>pool        conc_pool: jobs for processes or threads; conc_offload
     >>net         frames and authentication (private)
     >>server      what serves queues to clients (private)
     >>proxy       a client, and its queues (private)
     >>manager     conc_manager: queues over the network
     >>extras      conc_progress: a bar that grows
     >>index       every public name
     >>version     what the numbers promise; history

   >>words

   What runs:

   task            A task is whatever runs and finishes: a thread, a coroutine,
                   a process or a job. The caller describes it in a conc_task.
                   A struct whose first field is a conc_task is a "subclass".
   kind            The kind of a task is thread, coroutine, process or job; the
                   function that starts a task determines its kind.
   target          The target of a task is the function that it runs.
   result          The result of a task is the pointer that its target
                   returned.
   status          The status of a task is 0, or its failure: what conc_join
                   returns once the task has finished.
   foreign thread  A foreign thread is one that conc_thread_start did not
                   start: the main thread, or one made by pthread_create.
   coroutine       A coroutine is a task with a stack of its own that shares a
                   thread with others: it runs until it waits, and then the
                   next one runs.
   loop            A loop runs the coroutines of one thread, inside conc_run.
   generator       A generator is a function that hands out one value at a
                   time and stands still in between. It is no task: it runs as
                   a part of the task that asks for the value.
   child           A child is a process that another one, its parent, has made
                   by fork() or by conc_process_start.
   left behind     A fork leaves behind all threads but the one that called
                   fork(), and the coroutines of those threads: the parent
                   still has them, the child does not.
   spawned         A process is spawned if it executes the program again; it is
                   forked if it begins as a copy of its parent.
   daemon          A daemon is a child that is killed when its parent ends.
   program         A program is what conc_popen_start runs: another executable
                   file, in a process of its own.
   pool            A pool is a number of processes or threads that run jobs.
   worker          A worker is one of the processes or threads of a pool.
   job             A job is a task that a worker of a pool runs.
   chunk           A chunk is a number of items that a pool hands to a worker
                   at once.
   group           A group is a number of tasks that are awaited together and
                   fail together.
   callback        A callback is a function of yours that the library calls.

   How a task waits:

   wait            A wait is the time within a call in which a task cannot go
                   on, because something has not happened yet.
   waiter          A waiter is a task that waits; the waiters of an object are
                   those that wait for it.
   waker           A waker is a task whose call ends the wait of another one,
                   by a release, a set, a notify or a put.
   park            To park is to wait: a thread sleeps in the kernel, a
                   coroutine gives the CPU to the next one of its loop.
   timeout         A timeout is how long a call may wait, in seconds.
   cancel          To cancel a task is to make its present or its next wait
                   fail with -ECANCELED.
   pending         A cancellation is pending until a wait has returned it.
   scope           A scope is a stretch of a task's run in which a time limit
                   or a shield is in force.
   time limit      A time limit ends the waits of a task at a certain moment.
   shield          A shield keeps cancellations away from a task's waits.
   deadlock        A deadlock is a circle of tasks in which each waits for the
                   next one, so that none can ever go on.
   actor           An actor is what can wait: each thread is one, and each
                   coroutine. (Private.)

   What tasks have in common:

   owner           The owner of a lock is the task that holds it.
   reader, writer  A reader holds an rwlock together with other readers, a
                   writer holds it alone.
   level           A level of a conc_rlock is one acquire that has not been
                   released yet.
   unit            A unit is what an acquire takes off a semaphore's value.
   party           A party is one of the tasks for which a barrier waits.
   broken          A barrier is broken if one of its parties has not waited to
                   the end; then no task can wait there until it is reset.
   shared          A lock, a queue or another object is shared if the tasks of
                   several processes use the same one.
   named           A named queue or memory is one that any process of the user
                   can open by its name.
   queue           A queue, a conc_queue, carries messages between the tasks of
                   a process, to other processes, or through a manager to
                   another machine.
   message         A message is a run of bytes, or a typed value, that arrives
                   whole or not at all.
   putter, getter  A putter is a task that puts messages on a queue, a getter
                   is a task that gets them.
   pipe            A pipe, made by conc_pipe, is a pair of descriptors, its
                   ends: messages that one end sends the other receives, in
                   the same process or in another.
   descriptor      A descriptor is the system's number for an open file, pipe
                   or socket.
   stream          A stream is a descriptor with buffers for what is read and
                   written.
   datagram        A datagram is a message of a UDP or unix socket, which may
                   get lost.
   manager         A manager serves queues by name to clients that know its
                   key, or is such a client: both are a conc_manager.
   server, client  A server is a manager that serves queues, a client is a
                   manager that uses them.
   key             A key is a secret that a server and its clients share.
   proxy           A proxy is a client's conc_queue that stands for a queue of
                   the server: each call of it is a request, to which the
                   server sends a reply.
   value           A value is a tree of typed data, such as a list of numbers;
                   its root is the whole, and all else are its parts.
   local           A local is a set of named values of which each thread, or
                   each task, has its own.
   attribute       An attribute is one name of a local, looked up beforehand.
   guard page      A guard page is memory below a stack that may not be
                   touched, so that an overflow ends the process at once.

   >>tour

   Each program begins with the same three lines as the program above.

   Threads and a lock. A zeroed lock is ready for use, and CONC_WITH releases
   it on every way out of its block. Prints 2.

     static conc_lock lock;
     static int count;
     static void *add(void *arg) { CONC_WITH(&lock) count++; return arg; }

     int main(void) {
       conc_task a = { .target = add }, b = { .target = add };
       conc_thread_start(&a);
       conc_thread_start(&b);
       conc_join(&a, CONC_FOREVER);
       conc_join(&b, CONC_FOREVER);
       printf("%d\n", count);
     }

   Ten coroutines of one thread, which together take a tenth of a second.
   Prints 0: none of them has failed.

     static void *nap(void *arg) { conc_sleep(0.1); return arg; }
     static void *naps(void *arg) {
       conc_task t[10] = {{0}}, *all[10];
       for (int i = 0; i < 10; i++) {
         t[i].target = nap;
         conc_coro_start(all[i] = &t[i]);
       }
       printf("%d\n", conc_gather(all, 10, 5.0));
       return arg;
     }

     int main(void) { conc_task t = { .target = naps }; return conc_run(&t); }

   A process, and a queue that it shares with its parent. Prints hello.

     static void *child(void *queue) {
       conc_put((conc_queue *)queue, "hello", 5, CONC_FOREVER);
       return NULL;
     }

     int main(void) {
       conc_queue_opts between_processes = { .shared = true };
       conc_queue *q = conc_queue_new(&between_processes);
       conc_task p = { .target = child, .arg = q };
       char text[20];
       conc_process_start(&p);
       ssize_t n = conc_get(q, text, sizeof text, 5.0);
       if (n >= 0) printf("%.*s\n", (int)n, text);
       conc_join(&p, CONC_FOREVER);
       conc_queue_free(q);
     }

   A pool of processes; .kind = CONC_THREAD makes it a pool of threads. Prints
   1 4 9 16.

     static void *square(void *n) { *(int *)n *= *(int *)n; return NULL; }

     int main(void) {
       conc_pool p = { .workers = 2 };
       int n[] = { 1, 2, 3, 4 };
       conc_pool_start(&p);
       conc_pool_map(&p, square, n, sizeof *n, 4);
       conc_pool_close(&p);
       conc_pool_join(&p, CONC_FOREVER);
       printf("%d %d %d %d\n", n[0], n[1], n[2], n[3]);
     }

   Another program, its input and its output. Prints two lines, a and b.

     int main(void) {
       const char *const argv[] = { "sort", NULL };
       conc_popen p = { .argv = argv, .std_in = CONC_PIPE,
                        .std_out = CONC_PIPE };
       conc_output out;
       if (conc_popen_start(&p) != 0) return 1;
       if (conc_communicate(&p, "b\na\n", 4, &out, NULL, 5.0) == 0)
         printf("%s", out.data);
       conc_free(out.data);
     }

   A manager and its client. Either of them may be another program, on another
   machine, in Python. Prints 42.

     int main(void) {
       conc_manager m = { .address = "127.0.0.1:0", .authkey = "abc" };
       conc_manager client = { .authkey = "abc" };
       conc_queue *tasks = conc_queue_new(NULL);
       int a, b;
       conc_manager_register_queue(&m, "get_task_queue", tasks);
       if (conc_manager_start(&m) != 0) return 1;
       client.address = conc_manager_address(&m);
       if (conc_manager_connect(&client, 5.0) != 0) return 1;
       conc_put_build(conc_manager_get(&client, "get_task_queue"), 1.0,
                      "(ii)", 6, 7);
       if (conc_get_parse(tasks, 1.0, "(ii)", &a, &b) == 0)
         printf("%d\n", a * b);
       conc_manager_shutdown(&client);
       conc_manager_shutdown(&m);
       conc_queue_free(tasks);
     }

   >>matrix

   Threads and coroutines may use everything, in any mixture, with two
   exceptions: a generator belongs to one thread, and a coroutine to one loop.
   Between processes an object works if it was made as this table says:

                     between processes          when a process dies
     lock, rlock     ..._init_shared            the next acquire of what it
                                                held returns -EOWNERDEAD, once
     rwlock          ..._init_shared            a dead writer is reported like
                                                a lock's owner; dead readers
                                                are dropped
     sem             ..._init_shared            the units that it has acquired
                                                stay taken
     event, cond     ..._init_shared            the others do not notice
     barrier         ..._init_shared            it is broken, if the process
                                                was waiting there
     once            ..._init_shared            another process runs it
     pipe            inherited, or passed on    the other end gets -EPIPE
     queue           .shared; with .name also   each message that was put is
                     for unrelated processes    still got once
     manager's queue any machine                if a client dies while it waits
                                                in get, no message is lost
     pool            no: its own process only   the job fails with -ECHILD, or
                                                is run again; a new worker
                                                takes the dead one's place
     conc_task       no: its own process only   conc_join returns -ECHILD
     value           as bytes, by queue, pipe, pickle or JSON
     local, stream, group, scope, progress: no

   >>options

   Define these only in the file that defines CONC_IMPLEMENTATION:

     CONC_PORTABLE        Use only what POSIX.1-2008 has: no futex, no epoll,
                          no eventfd, no assembly. Everything works, some of
                          it slower.
     CONC_USE_UCONTEXT    Switch coroutines by swapcontext(), not by assembly.
     CONC_USE_HELGRIND    Tell Valgrind's Helgrind which step happens before
                          which (DRD learns nothing). Slower, even without
                          Valgrind.
     CONC_MALLOC(size)    The allocator. Define all three or none.
     CONC_REALLOC(p, size)
     CONC_FREE(p)
     CONC_STACK_SIZE      Bytes of a coroutine's stack; default 65536.
     CONC_SPIN_SECONDS    How long a wait spins at most before it sleeps;
                          default 50e-6. With 0 no wait spins.
     CONC_HAVE_...        One for each fact about the platform; the second half
                          of >>platform lists them.

   Define these in the same way in every file that includes conc.h:

     CONC_STATIC          Makes every function static. Define it in a library
                          that embeds conc.h and in a program of one file.
     CONC_API             Your own linkage, for example a visibility attribute.

   No option changes a public struct or a signature. Files that were compiled
   against different versions of conc.h fail to link.

   >>contract

   Errors   A function whose result is an int or an ssize_t returns 0 or more
            on success and a negative errno value on failure, for example
            -EINVAL, -ETIMEDOUT, -ECANCELED, -EPIPE (closed), -EDEADLK or
            -ENOMEM; conc_strerror() puts it into words. A function whose
            result is a pointer returns NULL on failure and sets errno. After
            an error there is nothing to clean up.
   Time     A timeout is a number of seconds (double) from now on the monotonic
            clock. CONC_FOREVER, any number from 1e9 on and a NaN set no limit.
            With a timeout of 0 or less a call tries once. A call that is not
            done in time returns -ETIMEDOUT.
   Waiting  Every call with a timeout works from any thread, a foreign thread
            included, and from a coroutine; if a coroutine waits, the others
            of its thread go on. Every such wait can be cancelled: conc_cancel
            makes it return -ECANCELED, once.
   Memory   Structs belong to the caller and are valid when zeroed. A struct
            must not move while it is in use. What a function allocates is
            said in its comment. Object pointers must not be NULL unless the
            function's comment allows it; it also names the output pointers
            that may be NULL.
   Signals  No function may be called from a signal handler unless its comment
            allows it. The library installs no signal handler of its own
            accord; conc_report_overflow is there to install one. It writes to
            sockets without raising SIGPIPE.
   Fork     fork() may be called from any thread or coroutine at any moment
            (but not from a signal handler, and not as vfork), and the child
            may use the whole library. The child has the thread that called
            fork() and, if that thread runs a loop, all coroutines of the
            loop. The other threads, with their coroutines, were left behind:
            their tasks have ended in the child, with -ECHILD. A lock that one
            of these tasks held reports this once: the next acquire takes the
            lock and returns -EOWNERDEAD.
   Output   The library does not print, exit or assert unless the program asks
            it to.

   >>coroutines

   A coroutine has a stack of its own, of CONC_STACK_SIZE bytes or of its
   task's .stack_size. A guard page lies below the stack, so that an overflow
   is a SIGSEGV and corrupts nothing. A coroutine belongs to the loop that
   started it, and so to one thread, and never moves to another. Therefore the
   coroutines of a loop share the thread's thread-local variables; the values
   of a conc_local with CONC_SCOPE_TASK are each coroutine's own. Between two
   calls of the library no other coroutine of the same loop runs. A switch
   between coroutines does not save the rounding mode and errno.
   A program may well have a million coroutines. One that has not run yet costs
   its conc_task and 32 bytes; one that waits costs one page of stack (4 KiB).
   The stack of a coroutine that has ended is used again. Stacks that a burst
   of coroutines has left over go back to the system when the loop has slept
   for a second. conc_stack_used measures how much of its stack a coroutine
   uses; conc_report_overflow makes an overflow name its coroutine.
   AddressSanitizer, ThreadSanitizer and Valgrind know of the stacks.
   C++ exceptions may be thrown and caught within one coroutine, but must not
   leave its target. The switch in assembly does not keep a shadow stack: where
   the system enforces CET's shadow stacks, define CONC_USE_UCONTEXT.

   >>shared

   A function whose name ends in _init_shared makes an object new and shared:
   all processes that share the memory in which it lies can use it. The memory
   must come from conc_shared_alloc or conc_shared_open. Call the function
   before any task uses the object, and set the object's options (.value,
   .bound, .parties, .action, .arg) before the call.
   Returns 0.
   Errors:
   -EINVAL  the object is not in such memory; or .parties is not above 0; or
            .value is above 2**30 - 1

   From then on the calls of >>lock and >>event do for the tasks of all these
   processes what they do for the tasks of one, with these differences:
   - A process may die at any instruction without harm to the others. Each lock
     that it held reports this once: the next acquire takes the lock and
     returns -EOWNERDEAD, for the data that the lock protects may be half
     changed. This is true of processes only: a thread that ends while it holds
     a lock leaves it locked. If a process dies while it runs the function of a
     once, another one runs it. Readers that died are dropped. A semaphore
     knows no owners: the units that a dead process had acquired stay taken.
     For barriers see below.
   - Waiters are not served in order. -EDEADLK is returned only to the owner
     itself: longer circles are not looked for. .name is not used, since a
     pointer means nothing in another process.
   - Waiters notice the death of a process, also of one that was just being
     woken, within about 20 ms. A thread that waits notices conc_cancel within
     that time, too.
   - If waiters of a condition were killed, a notify may wake more waiters than
     it should, at most one more for each waiter that was killed. The condition
     and its lock must both be shared, or both not (-EINVAL).
   - At most 16 processes can read an rwlock at one time, each in any number of
     tasks; further processes wait.
   - The value of a semaphore is at most 2**30 - 1.
   - If one of the first 16 processes at a barrier dies while it waits there,
     the barrier breaks: the waiter that notices gets -EOWNERDEAD, the others
     -EPIPE. The last party to come does not look: by then all have come. An
     .action is a pointer, so it can be used only if all the processes were
     forked from one.
   - If more than 1,024 processes use the memory at one time, the calls of the
     latest ones fail with -EAGAIN, except those of events and semaphores.
   A forked child does not hold the shared objects that its parent holds.

   >>limits

   - Names of hosts are resolved by getaddrinfo() on a thread of its own, which
     cannot be cancelled. The call keeps its timeout; the thread ends later.
   - CONC_FORK, and the end of a forked child, flush all of stdio. That waits
     for a thread that is reading from a FILE.
   - In a foreign thread, a wait for a descriptor that is cancelled returns
     only when the descriptor is ready or the timeout has passed.
   - The network protocol authenticates both sides by a key that they share,
     and encrypts nothing. A man in the middle can relay the handshake. Like
     Python's, it is for a trusted network.
   - The workers of a pool of processes are forked, never spawned. In a program
     with many threads, or with much memory, start the pool first.
   - A pipe needs SOCK_SEQPACKET, which Linux and the BSDs have. macOS lacks
     it: there conc_pipe returns -EPROTONOSUPPORT.
   - Objects between processes must be made shared (..._init_shared, .shared),
     serve at most 1,024 processes at one time, and cannot hold pointers.
     Deadlocks that involve shared objects are not detected. A task that waits
     for a named queue polls it every 2 ms.
   - At most four rwlocks that a task holds for reading are tracked; see
     conc_rwlock for what that means.
   - A semaphore's unit or a condition's notify that had just been handed to
     another thread when the process forked is lost in the child.
   - With CONC_PORTABLE, if a client sends several requests at once and dies
     while one of them waits, the manager notices only when that request ends.
*/

/* The implementation needs POSIX and more from the system's headers. In a
   strict mode (-std=c99) this must be said before the first of them. */
#if defined(CONC_IMPLEMENTATION) && !defined(CONC_PORTABLE) && \
    !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#elif defined(CONC_IMPLEMENTATION) && !defined(_XOPEN_SOURCE)
#define _XOPEN_SOURCE 700
#endif

#ifndef CONC_H
#define CONC_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __TINYC__
#undef __attribute__ /* tcc has attributes; glibc's <sys/cdefs.h> hides them */
#endif

/* ---------------------------------------------------------------------------
   >>platform: versions, errors, clock, memory

   Threads    any number, mixed with coroutines of any loops
   Processes  any
   Signals    conc_now and conc_strerror; the others no
   Memory     nothing is allocated
   Blocks     never
   ------------------------------------------------------------------------ */

/* The version of this header, as numbers and as text; see >>version. */
#define CONC_VERSION_MAJOR 0
#define CONC_VERSION_MINOR 2
#define CONC_VERSION_PATCH 0
#define CONC_VERSION "0.2.0"

#ifndef CONC_API
#ifdef CONC_STATIC
#define CONC_API static __attribute__((unused))
#else
#define CONC_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The timeout that sets no limit, for every call that takes one. */
#define CONC_FOREVER 1e300

/* Returns the version of the implementation that was linked in, in the form of
   CONC_VERSION. */
CONC_API const char *conc_version(void);

/* Puts an error into words. `error` is what a function of this library
   returned (a negative errno value), or a value of errno (positive).
   Returns a static text, never NULL; for an error that the library does not
   make itself the text only says that it is the system's. Does not change
   errno. A signal handler may call it. */
CONC_API const char *conc_strerror(int error);

/* Returns the time on the monotonic clock in seconds (Python's
   time.monotonic). A signal handler may call it. */
CONC_API double conc_now(void);

/* Returns the number of CPUs that this process may run on, at least 1
   (Python's os.process_cpu_count). */
CONC_API int conc_cpu_count(void);

/* Frees what the library has allocated for the caller: the bytes of
   conc_pickle_dumps and conc_json_dumps, and the data of a conc_output. NULL
   is a no-op. */
CONC_API void conc_free(void *memory);

/* ---------------------------------------------------------------------------
   >>park: what a wait is

   There are no public names here, only private fields of public structs.
   ------------------------------------------------------------------------ */

/* A FIFO of the actors that wait for an object; the object contains it. An
   internal lock of the library guards it. */
struct conc__waitlist {
  struct conc__waiter *first, *last;
};

/* ---------------------------------------------------------------------------
   >>deadlock: which task waits for which

   Threads    any number, mixed with coroutines of any loops
   Processes  one: what is shared takes no part
   Signals    no
   Memory     the caller's buffer; the report itself is the library's
   Blocks     never

   When a wait without a timeout for a lock, an rwlock, a once or the end of a
   task has lasted 0.1 s, the library looks whether it is part of a deadlock.
   See conc_lock_acquire for what the tasks of a deadlock get.
   ------------------------------------------------------------------------ */

/* Describes the deadlock that was found last: "Thread-A waits for lock 'b'
   held by Thread-B, which waits for lock 'a' held by Thread-A". If conc_run
   has found it, the text says what each of its coroutines waited for. Writes
   up to `size` bytes to `buf`, the last of them a NUL.
   Returns the length of the whole text without the NUL, as snprintf does; 0 if
   no deadlock has been found yet. */
CONC_API ssize_t conc_deadlock_report(char *buf, size_t size);

/* ---------------------------------------------------------------------------
   >>lock: conc_lock, conc_rlock, conc_rwlock, conc_once

   Threads    any number, mixed with coroutines of any loops
   Processes  one; after ..._init_shared all that share its memory
   Signals    no
   Memory     the caller's, valid when zeroed; nothing is allocated
   Blocks     acquire and once_run, with a timeout; the others never
   ------------------------------------------------------------------------ */

/* A lock, not recursive (Python's threading.Lock, but with an owner). When it
   is released, its first waiter gets it if that has waited for 0.5 ms; before
   that, a task that runs may take the lock first, which is faster. The task
   whose release was the last may free the lock at once, even if other calls of
   conc_lock_release have not returned yet. */
typedef struct conc_lock {
  const char *name; /* for reports; yours; default: none */
  /* private */
  uintptr_t word; /* the owner's actor, | 1 if tasks may wait; 0: free */
  struct conc__waitlist waiters;
  unsigned depth;      /* of a conc_rlock: its levels, less the first */
  unsigned char order; /* the number of its name; see conc_on_lock_order */
} conc_lock;

/* Acquires the lock.
   Returns 0: the caller holds the lock.
   Errors:
   -EDEADLK     the caller holds the lock already; or the wait can never end,
                because the owner waits for the caller, directly or through a
                chain of owners, and no wait of the chain has a timeout. The
                library looks for such a circle once a wait has lasted 0.1 s.
                One task of the circle gets the error; conc_deadlock_report
                names them all
   -ETIMEDOUT   the lock was not free in time
   -ECANCELED   the wait was cancelled
   -EOWNERDEAD  the owner was left behind when this process was forked. The
                caller now holds the lock, and the data that it protects may
                be half changed */
CONC_API int conc_lock_acquire(conc_lock *lock, double timeout);

/* Releases the lock.
   Returns 0.
   Errors:
   -EPERM  the caller is not the owner */
CONC_API int conc_lock_release(conc_lock *lock);

/* Returns whether a task holds the lock at this moment. */
CONC_API bool conc_lock_locked(const conc_lock *lock);

/* Makes the lock new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_lock_init_shared(conc_lock *lock);

/* Reports inverted orders of locks. From now on report(text, arg) is called
   when a task acquires 'a' while it holds 'b', although 'b' was acquired
   before by a task that held 'a' (the same task or another one; directly, or
   through other locks). Such an order may deadlock some day, even if it never
   has. The task that acquires calls report(), and holds both locks then; each
   pair of names is reported once. If `report` is NULL, the default, nothing is
   called, but the orders are noted all the same.
   Only locks and recursive locks that have a name, and are not shared, take
   part. The name must not change; locks of equal names count as one. Up to 62
   names (30 on 32-bit machines) of up to 47 bytes are tracked. An acquire with
   a timeout of 0 cannot deadlock and is not reported. */
CONC_API void conc_on_lock_order(void (*report)(const char *text, void *arg),
                                 void *arg);

/* --- conc_rlock --- */

/* A lock that its owner may acquire again (Python's threading.RLock). Each
   acquire adds a level and each release takes one off; the lock is free when
   none is left. A condition takes the .lock in it: conc_cond_wait(&cond,
   &rlock.lock, t) gives up all levels while it waits, and has them all again
   when it returns, as in Python. conc_lock_locked(&rlock.lock) says whether a
   task holds it. */
typedef struct conc_rlock {
  conc_lock lock; /* its .name is yours to set */
} conc_rlock;

/* Acquires the lock, or adds a level if the caller holds it already.
   Returns 0: the caller holds the lock.
   Errors: as conc_lock_acquire; but a caller that holds the lock already does
   not get -EDEADLK. */
CONC_API int conc_rlock_acquire(conc_rlock *rlock, double timeout);

/* Takes a level off; the last one releases the lock.
   Returns 0.
   Errors:
   -EPERM  the caller is not the owner */
CONC_API int conc_rlock_release(conc_rlock *rlock);

/* Makes the lock new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_rlock_init_shared(conc_rlock *rlock);

/* --- conc_rwlock --- */

/* Private: the processes that use an object, and by how many tasks each. */
#define CONC__SHARERS 16
struct conc__sharers {
  unsigned id[CONC__SHARERS], count[CONC__SHARERS];
};

/* Private: what an rwlock between processes has. */
struct conc__rwlock_shared {
  unsigned guard, round, writer, wants; /* the writer that waits */
  uintptr_t writer_actor, wants_actor;
  struct conc__sharers readers;
  unsigned writers;                /* how many have held it so far */
  bool readers_wait, readers_turn; /* may be true without need */
};

/* A lock for one writer or any number of readers. It is not recursive. Waiters
   are served in order, as with a conc_lock; readers that are neighbours in
   that order are served together. While a writer waits, no new reader joins
   the readers that hold the lock: so neither side starves. The task whose
   release was the last may free the lock.
   Per task the library tracks the first four rwlocks that the task holds for
   reading. Of further ones it cannot detect misuse (the readers' -EDEADLK and
   -EPERM below), nor that a reader was left behind by a fork. */
typedef struct conc_rwlock {
  const char *name; /* for reports; yours; default: none */
  /* private */
  uintptr_t word; /* the writer's actor, or 4 for each reader, and 2; 0: free;
                     | 1 if tasks may wait */
  struct conc__waitlist waiters;
  struct conc__rwlock_shared shared;
} conc_rwlock;

/* Acquires the lock for reading, together with other readers.
   Returns 0: the caller holds the lock.
   Errors:
   -EDEADLK     the caller holds the lock already, for reading or for writing;
                or a circle of waits, as from conc_lock_acquire, in which only
                waits for writers count, not waits for readers
   -ETIMEDOUT   the lock was not free in time
   -ECANCELED   the wait was cancelled
   -EOWNERDEAD  a writer was left behind when this process was forked: as from
                conc_lock_acquire. Readers that were left behind are dropped */
CONC_API int conc_rwlock_read_acquire(conc_rwlock *rwlock, double timeout);

/* Acquires the lock for writing, alone.
   Returns 0: the caller holds the lock.
   Errors: as conc_rwlock_read_acquire. */
CONC_API int conc_rwlock_write_acquire(conc_rwlock *rwlock, double timeout);

/* Releases what the caller holds, for reading or for writing.
   Returns 0.
   Errors:
   -EPERM  the caller does not hold the lock */
CONC_API int conc_rwlock_release(conc_rwlock *rwlock);

/* Makes the lock new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_rwlock_init_shared(conc_rwlock *rwlock);

/* --- conc_once --- */

/* Something that is to be done once (POSIX's pthread_once). */
typedef struct conc_once {
  const char *name; /* for reports; yours; default: none */
  /* private */
  uintptr_t word; /* 0: not done, 2: done, else the actor that does it */
  struct conc__waitlist waiters;
} conc_once;

/* Calls fn(arg), unless a call with this `once` has succeeded before. While
   another task runs its fn, the caller waits for the end of that; the timeout
   is for this wait. If fn fails (returns less than 0), only the task that
   called it gets that result. The once stays undone, and the next caller,
   perhaps one that waits already, runs its own fn.
   Returns 0 once it is done, by this call or by another one.
   Errors:
   -EDEADLK    the call comes from within fn; or a circle of waits, as from
               conc_lock_acquire
   -ETIMEDOUT  the other task did not finish in time
   -ECANCELED  the wait was cancelled
   others      what fn has returned */
CONC_API int conc_once_run(conc_once *once, int (*fn)(void *arg), void *arg,
                           double timeout);

/* Makes the once new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_once_init_shared(conc_once *once);

/* ---------------------------------------------------------------------------
   >>event: conc_event, conc_cond, conc_sem, conc_barrier, CONC_WITH

   Threads    any number, mixed with coroutines of any loops
   Processes  one; after ..._init_shared all that share its memory
   Signals    no
   Memory     the caller's, valid when zeroed; nothing is allocated
   Blocks     wait and acquire, with a timeout; the others never
   ------------------------------------------------------------------------ */

/* A flag that tasks can wait for (Python's threading.Event). A waiter may free
   the event as soon as its wait has returned 0. */
typedef struct conc_event {
  const char *name; /* for reports; yours; default: none */
  /* private */
  int flag; /* CONC__CLEAR, CONC__SET, CONC__AWAITED */
  struct conc__waitlist waiters;
} conc_event;

/* Sets the flag and wakes all waiters. Always returns 0. */
CONC_API int conc_event_set(conc_event *event);

/* Clears the flag. Always returns 0. */
CONC_API int conc_event_clear(conc_event *event);

/* Returns whether the flag is set. */
CONC_API bool conc_event_is_set(const conc_event *event);

/* Waits until the flag is set.
   Returns 0 when it was set, even if it has been cleared since.
   Errors:
   -ETIMEDOUT  the flag was not set in time
   -ECANCELED  the wait was cancelled */
CONC_API int conc_event_wait(conc_event *event, double timeout);

/* Makes the event new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_event_init_shared(conc_event *event);

/* --- conc_cond --- */

/* A condition (Python's threading.Condition). It is used together with one
   conc_lock, or with the .lock of one conc_rlock. */
typedef struct conc_cond {
  const char *name; /* for reports; yours; default: none */
  /* private */
  struct conc__waitlist waiters;
  uintptr_t word; /* between processes: where the registry is; else 0 */
  unsigned guard, round, waiting, notified;
} conc_cond;

/* Releases the lock, waits for a notify, and acquires the lock again: the
   caller holds it after every return but -EPERM. A wait never returns 0
   without a notify. The timeout is for the notify only, not for the lock.
   Returns 0 when a notify has woken the caller.
   Errors:
   -EINVAL      the condition is shared and the lock is not, or the reverse
   -EPERM       the caller does not hold the lock
   -ETIMEDOUT   no notify came in time
   -ECANCELED   the wait was cancelled
   -EOWNERDEAD  the lock was acquired again with that error, as from
                conc_lock_acquire */
CONC_API int conc_cond_wait(conc_cond *cond, conc_lock *lock, double timeout);

/* Waits with conc_cond_wait until predicate(arg) is true, which is called with
   the lock held. The timeout is for all the waits together.
   Returns 0 when the predicate is true.
   Errors: as conc_cond_wait; -ETIMEDOUT if the predicate is still false when
   the time is out. */
CONC_API int conc_cond_wait_for(conc_cond *cond, conc_lock *lock,
                                bool (*predicate)(void *arg), void *arg,
                                double timeout);

/* Wakes up to n of the tasks that wait at this moment, those that have waited
   longest first. Unlike in Python the caller need not hold the lock. Always
   returns 0. */
CONC_API int conc_cond_notify(conc_cond *cond, size_t n);

/* Wakes all tasks that wait at this moment. Always returns 0. */
CONC_API int conc_cond_notify_all(conc_cond *cond);

/* Makes the condition new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_cond_init_shared(conc_cond *cond);

/* --- conc_sem --- */

/* A semaphore (Python's threading.Semaphore; with a .bound,
   BoundedSemaphore). Waiters are served strictly in order. Unlike Python's it
   is 0 by default. A task that has acquired the unit that was released last
   may free the semaphore. */
typedef struct conc_sem {
  size_t value;     /* units at first; default 0, at most SIZE_MAX / 2 */
  size_t bound;     /* what the value may not exceed; default 0: none */
  const char *name; /* for reports; yours; default: none */
  /* private */
  struct conc__waitlist waiters;
  unsigned shared; /* between processes: the value and flags; else 0 */
} conc_sem;

/* Waits until the value is above 0, and takes 1 off it.
   Returns 0.
   Errors:
   -ETIMEDOUT  the caller got no unit in time
   -ECANCELED  the wait was cancelled */
CONC_API int conc_sem_acquire(conc_sem *sem, double timeout);

/* Adds n to the value and wakes up to n waiters.
   Returns 0.
   Errors:
   -EINVAL     n is 0
   -EOVERFLOW  the value would exceed the bound, or without one SIZE_MAX / 2;
               nothing has been added */
CONC_API int conc_sem_release(conc_sem *sem, size_t n);

/* Returns the value at this moment. */
CONC_API size_t conc_sem_value(const conc_sem *sem);

/* Makes the semaphore new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_sem_init_shared(conc_sem *sem);

/* --- conc_barrier --- */

/* A place where a number of tasks, its parties, wait for each other, again and
   again (Python's threading.Barrier). If one of them does not wait to the end,
   the barrier is broken, and no task can wait there until conc_barrier_reset.
   Any of the tasks that it has let go may free the barrier, if no task will
   wait there again. */
typedef struct conc_barrier {
  int parties;               /* how many tasks; at least 1 */
  int (*action)(void *arg);  /* called each time that all have come, by the
                                last of them; less than 0 is a failure;
                                default: none */
  void *arg;                 /* its argument; yours */
  const char *name;          /* for reports; yours; default: none */
  /* private */
  bool broken;
  int waiting;         /* how many of this generation have come */
  unsigned generation; /* how often it was passed, broken or reset */
  uintptr_t word;      /* the actor that runs the action; else 0 */
  struct conc__waitlist waiters;
  unsigned guard, runner, failed; /* between processes */
  uintptr_t runner_actor;
  struct conc__sharers parts;
} conc_barrier;

/* Waits until all parties have come. The last one calls the action, and then
   all go on. Once all have come, timeouts and cancellations have no effect.
   The task that breaks the barrier gets the reason, all others get -EPIPE (in
   Python all get BrokenBarrierError).
   Returns the number of parties that had come before the caller, from 0 to
   parties - 1: each party gets a different number.
   Errors:
   -EINVAL     .parties is below 1
   -EDEADLK    the call comes from within the action
   -EPIPE      the barrier is broken; or it breaks, or is reset, while the
               caller waits
   -ETIMEDOUT  not all have come in time; a timeout of 0 breaks the barrier at
               once, unless the caller is the last to come
   -ECANCELED  the wait was cancelled
   others      what the action has returned, if the caller has called it */
CONC_API int conc_barrier_wait(conc_barrier *barrier, double timeout);

/* Makes the barrier as new; the tasks that wait there get -EPIPE. Always
   returns 0. */
CONC_API int conc_barrier_reset(conc_barrier *barrier);

/* Breaks the barrier; the tasks that wait there, and those that come, get
   -EPIPE. Always returns 0. */
CONC_API int conc_barrier_abort(conc_barrier *barrier);

/* Returns whether the barrier is broken. */
CONC_API bool conc_barrier_broken(const conc_barrier *barrier);

/* Returns how many tasks wait at this moment for the others to come. */
CONC_API int conc_barrier_n_waiting(const conc_barrier *barrier);

/* Makes the barrier new and shared, or fails with -EINVAL: see >>shared. */
CONC_API int conc_barrier_init_shared(conc_barrier *barrier);

/* --- CONC_WITH --- */

/* CONC_WITH(&lock) { ... } holds a conc_lock, a conc_rlock or a unit of a
   conc_sem while the block runs (Python's with statement).
   CONC_WITH_READ(&rwlock) and CONC_WITH_WRITE(&rwlock) do the same with a
   conc_rwlock. The object is released on every way out of the block: at its
   end, by return, by goto, by a C++ exception, and by break or continue, which
   leave this block and not a loop around it. Only longjmp does not release it.

     CONC_WITH(&account->lock) {
       if (account->balance < sum) return false;
       account->balance -= sum;
     } else return false;
     return true;

   The acquire has no timeout. If it fails, the block is skipped, what follows
   an `else` runs, and errno is the reason.
   Errors:
   EDEADLK     as from the acquire: the caller holds the lock already, or it
               would wait for itself
   ECANCELED   the wait was cancelled
   EOWNERDEAD  as from the acquire; but the object has been released again, so
               the next acquire succeeds
   others      what else the acquire of a shared object fails with */
#define CONC_WITH(object) CONC__WITH(CONC__WITH_ENTER(object), CONC__WITH_ID)
#define CONC_WITH_READ(rwlock) \
  CONC__WITH(conc__with_read(rwlock), CONC__WITH_ID)
#define CONC_WITH_WRITE(rwlock) \
  CONC__WITH(conc__with_write(rwlock), CONC__WITH_ID)

/* Private from here on: CONC_WITH is a loop of one turn. Its variable has a
   name of its own, so that nested ones do not shadow each other. The newest
   compilers call __COUNTER__ an extension; there the line makes the name, and
   only two on one line shadow each other. */
#if defined(__clang__) ? __clang_major__ >= 22 : __GNUC__ >= 16
#define CONC__WITH_ID __LINE__
#else
#define CONC__WITH_ID __COUNTER__
#endif
#define CONC__WITH(enter, id) CONC__WITH_NAMED(enter, id)
#define CONC__WITH_NAMED(enter, id)                                       \
  for (struct conc__with conc__with_##id                                  \
           __attribute__((cleanup(conc__with_leave))) = enter;            \
       !conc__with_##id.over; conc__with_leave(&conc__with_##id))         \
    if (conc__with_##id.held)

struct conc__with {
  void *object;
  char kind;
  bool held, over;
};

#define CONC__WITH_FN static inline __attribute__((unused))

CONC__WITH_FN void conc__with_leave(struct conc__with *with) {
  if (with->held) {
    with->held = false;
    if (with->kind == 'l') conc_lock_release((conc_lock *)with->object);
    if (with->kind == 'r') conc_rlock_release((conc_rlock *)with->object);
    if (with->kind == 'w') conc_rwlock_release((conc_rwlock *)with->object);
    if (with->kind == 's') conc_sem_release((conc_sem *)with->object, 1);
  }
  with->over = true;
}
CONC__WITH_FN struct conc__with conc__with_made(void *object, char kind,
                                                int rc) {
  struct conc__with with = {object, kind, rc == 0 || rc == -EOWNERDEAD, false};
  if (rc == 0) return with;
  conc__with_leave(&with);
  with.over = false; /* so that the `else` runs */
  errno = -rc;
  return with;
}
CONC__WITH_FN struct conc__with conc__with_lock(conc_lock *lock) {
  return conc__with_made(lock, 'l', conc_lock_acquire(lock, CONC_FOREVER));
}
CONC__WITH_FN struct conc__with conc__with_rlock(conc_rlock *rlock) {
  return conc__with_made(rlock, 'r', conc_rlock_acquire(rlock, CONC_FOREVER));
}
CONC__WITH_FN struct conc__with conc__with_sem(conc_sem *sem) {
  return conc__with_made(sem, 's', conc_sem_acquire(sem, CONC_FOREVER));
}
CONC__WITH_FN struct conc__with conc__with_read(conc_rwlock *rwlock) {
  return conc__with_made(rwlock, 'w',
                         conc_rwlock_read_acquire(rwlock, CONC_FOREVER));
}
CONC__WITH_FN struct conc__with conc__with_write(conc_rwlock *rwlock) {
  return conc__with_made(rwlock, 'w',
                         conc_rwlock_write_acquire(rwlock, CONC_FOREVER));
}

/* The object's type chooses; an object of another type does not compile. */
#ifdef __cplusplus
#define CONC__WITH_ENTER(object) conc__with_enter(object)
extern "C++" {
CONC__WITH_FN struct conc__with conc__with_enter(conc_lock *lock) {
  return conc__with_lock(lock);
}
CONC__WITH_FN struct conc__with conc__with_enter(conc_rlock *rlock) {
  return conc__with_rlock(rlock);
}
CONC__WITH_FN struct conc__with conc__with_enter(conc_sem *sem) {
  return conc__with_sem(sem);
}
}
#else
#define CONC__WITH_ENTER(object)                                              \
  __builtin_choose_expr(                                                      \
      __builtin_types_compatible_p(__typeof__(*(object)), conc_rlock),        \
      conc__with_rlock,                                                       \
      __builtin_choose_expr(                                                  \
          __builtin_types_compatible_p(__typeof__(*(object)), conc_sem),      \
          conc__with_sem, conc__with_lock))(object)
#endif

/* ---------------------------------------------------------------------------
   >>task: conc_task, whatever runs and finishes

   A task is new, then started, then finished; then it may be started again.
   Start, then join: conc_join reports a start that failed, since it returns
   -EINVAL for a task that was never started.

   Threads    any number may join and cancel a task; only one may start it
   Processes  no
   Signals    no
   Memory     the caller's, from the start until the task was joined, or has
              been seen to have finished
   Blocks     conc_join, conc_wait, conc_gather, conc_completed_next and
              conc_group_leave, with a timeout
   ------------------------------------------------------------------------ */

/* The type of a target. It is the type that pthread_create takes, so that
   functions which were written for that can be used as they are. */
typedef void *conc_fn(void *arg);

/* What runs and finishes. Zero it and set what it is to do. Or make it the
   first field of a struct of your own, and set .arg to that struct. */
typedef struct conc_task {
  conc_fn *target;   /* what to run; no default */
  void *arg;         /* its argument; yours; default NULL */
  const char *name;  /* yours, must outlive the task; default: see conc_name */
  size_t size;       /* bytes at arg, of which a spawned process, and a job
                        that runs in a process, get a copy; default 0 */
  size_t stack_size; /* bytes; default: the system's for a thread,
                        CONC_STACK_SIZE for a coroutine; for a process see
                        conc_process_start */
  bool daemon;       /* of a process: it is killed when its parent ends;
                        default false. A thread never keeps the program
                        running: the end of main ends all threads, so join
                        yours */
  int start_method;  /* of a process: CONC_FORK (default) or CONC_SPAWN */
  /* The library calls it when the task has finished, just before the task can
     be joined, in the thread in which the task ended, or in one of its own. It
     must not wait long. `status` is what conc_join is about to return.
     Default: none. */
  void (*callback)(struct conc_task *task, int status, void *result);
  /* private */
  /* What every job needs comes first, so that it lies in two cache lines. */
  const struct conc__kind *kind; /* NULL: never started */
  bool was_cancelled;  /* a wait of the task returned -ECANCELED */
  int status;          /* what conc_join returns */
  void *result;
  struct conc__actor *actor; /* that runs the task; valid until done is set */
  uintptr_t id;              /* the actor's */
  struct conc__locals *locals; /* the task's values of each conc_local */
  struct conc_group *group;    /* until the task has finished */
  struct conc_task *next, **link; /* on the one list that has it: threads, a
                                     loop's tasks, processes, waiting jobs */
  conc_event done;
  struct conc_task *sibling; /* the next in the group */
  unsigned number;           /* in the default name */
  pid_t pid;     /* of a process; of the process that has run a job */
  int exitcode;  /* of that process; CONC_NO_EXITCODE until it has ended */
  union {        /* by .kind */
    struct {     /* a process, as its parent sees it */
      int pidfd; /* readable when it has ended; -1: none */
      int life;  /* of a daemon: it lives while this is open; else -1 */
      bool own_reaper; /* the task's starter reaps it, not the reaper */
    } process;
    struct { /* a job of a pool of processes; under the pool's guard */
      struct conc__pool_data *pool;
      unsigned retries; /* how often it may be run again */
      short slot;       /* where it runs, or CONC__JOB_WAITS, CONC__JOB_OVER */
      bool is_chunk;    /* of conc_pool_map: the task of a conc__chunk */
    } job;
  } as;
  char label[24]; /* the default name, once conc_name was asked for it */
} conc_task;

/* Waits until the task has finished (Python's Thread.join). Any number of
   tasks may join one, as often as they like.
   Returns the task's status: 0 if it has finished without a failure.
   Errors:
   -EINVAL     the task was never started, or is that of a foreign thread
   -EDEADLK    the task is the caller's own, or waits for the caller (see
               conc_lock_acquire)
   -ETIMEDOUT  the task has not finished in time
   -ECANCELED  if the task is still alive (conc_is_alive), the caller's wait
               was cancelled; otherwise it is the task's failure: one of its
               waits was cancelled, or it was cancelled before it began
   -ECHILD     the task's failure: it was a process that a signal killed, or
               it stayed in the parent when this process was forked
   -ENOMEM     the task's failure: there was no memory for the stack of a
               coroutine
   others      the task's failure, as it was set by conc_set_status; for those
               of a job see conc_pool_submit */
CONC_API int conc_join(conc_task *task, double timeout);

/* Returns what the target has returned; NULL before the task has finished, and
   for a process. */
CONC_API void *conc_result(const conc_task *task);

/* Returns whether the task was started and has not finished yet. */
CONC_API bool conc_is_alive(const conc_task *task);

/* Asks the task to end (Python's Task.cancel): its present wait, or else its
   next one, returns -ECANCELED, once. A call that need not wait leaves the
   cancellation pending; a call with a timeout of 0 may do so, too. A coroutine
   that has not begun yet never begins. A process gets SIGTERM.
   Returns 0.
   Errors:
   -ESRCH  the task does not run */
CONC_API int conc_cancel(conc_task *task);

/* Sets how the caller's task ends: `status`, 0 or a negative errno value, is
   what conc_join of it will return, unless the task is cancelled later.
   Without this call a task of which a wait was cancelled has failed with
   -ECANCELED, because such a task usually ends early and its result does not
   show that. A task that goes on all the same calls conc_set_status(0)
   (Python's Task.uncancel).
   Returns 0.
   Errors:
   -EINVAL  `status` is above 0 */
CONC_API int conc_set_status(int status);

/* Returns the caller's own task, never NULL: a foreign thread has one, too,
   until it ends. */
CONC_API conc_task *conc_current(void);

/* Returns the name of a task; NULL stands for the caller's own. It is .name,
   or else, as in Python, "MainThread", "Thread-1", "Task-1" (counted in each
   loop), "Dummy-1" (foreign threads) or "Process-1". A job of a pool is called
   "Job-0", but inside a process of a pool "Job-1" and so on. A task that was
   never started is called "". The text is valid as long as the task is. */
CONC_API const char *conc_name(conc_task *task);

/* --- several at once. The tasks may be of any kinds, and mixed; n may be 0. A
   task that is listed twice counts twice. conc_wait and conc_gather allocate
   some 170 bytes a task if there are more than 8, conc_as_completed always.
   These errors of the three come before anything has been waited for, and
   nothing is cancelled then:
   Errors:
   -EINVAL   one of the tasks was never started, or is that of a foreign thread
   -EDEADLK  one of the tasks is the caller's own
   -ENOMEM   there is no memory for the wait
   The wait itself, like that of conc_join, fails with -EDEADLK if it can never
   end, because too many of the tasks wait for the caller. --- */

enum {
  CONC_FIRST,         /* until one task has finished */
  CONC_FIRST_FAILURE, /* until one has failed (conc_join of it is not 0), or
                         all have finished */
  CONC_ALL            /* until all tasks have finished */
};

/* Waits for some of n tasks (Python's asyncio.wait). `until` is CONC_FIRST,
   CONC_FIRST_FAILURE or CONC_ALL. Rearranges the array: the tasks that have
   finished come first, in the order in which they did (those that had finished
   before the call in the order given), then the others, in the order given.
   Cancels nothing.
   Returns the number of tasks that have finished, also when the time is out:
   never -ETIMEDOUT.
   Errors: the common ones above, and
   -EINVAL     `until` is something else
   -ECANCELED  the wait was cancelled; the array is rearranged then, too */
CONC_API ssize_t conc_wait(conc_task **tasks, size_t n, int until,
                           double timeout);

/* Waits for n tasks (Python's asyncio.gather). Their results, by conc_result,
   are in the order given. If a task fails, or the wait does, all the others
   are cancelled, and the call returns when they have ended, however long their
   clean-up takes. To keep the others, and to have the failure of each
   (Python's return_exceptions), use conc_wait, and conc_join of each task.
   Returns 0 if all tasks have finished without a failure.
   Errors: the common ones above, and
   -ETIMEDOUT  not all have finished in time
   -ECANCELED  the wait was cancelled
   others      the first failure of a task */
CONC_API int conc_gather(conc_task **tasks, size_t n, double timeout);

/* Hands out tasks one by one as they finish (Python's asyncio.as_completed).

     conc_completed c;
     conc_task *t;
     conc_as_completed(&c, tasks, n, CONC_FOREVER);
     while (conc_completed_next(&c, &t) == 0) use(conc_result(t));
     conc_completed_end(&c);

   A task that has been handed out, as often as it was listed, may be freed.
   Before the calling task ends, conc_completed_next must have returned -EPIPE,
   or conc_completed_end must have been called. All three calls must be made by
   the same task. */
typedef struct conc_completed {
  /* private */
  struct conc__multiwait *many;
  double deadline;
} conc_completed;

/* Begins to wait for n tasks. The timeout is for all of them together, from
   this call on. The array is not used after the call.
   Returns 0.
   Errors: the common ones above. */
CONC_API int conc_as_completed(conc_completed *completed, conc_task **tasks,
                               size_t n, double timeout);

/* Waits for the next task, in the order of conc_wait, and sets *task to it.
   Returns 0.
   Errors:
   -EPERM      another task has begun the iteration
   -EDEADLK    the wait can never end, see above; the call may be repeated
   -EPIPE      all tasks have been handed out
   -ETIMEDOUT  no more tasks have finished in time; the call may be repeated
   -ECANCELED  the wait was cancelled; the call may be repeated */
CONC_API int conc_completed_next(conc_completed *completed, conc_task **task);

/* Ends the iteration early; after -EPIPE it is a no-op. */
CONC_API void conc_completed_end(conc_completed *completed);

/* A time limit, or a shield, for all waits of the caller from its beginning to
   its end. Scopes nest, and must be ended in reverse order. A generator must
   not keep one open across a conc_yield. */
typedef struct conc_scope {
  /* private */
  struct conc_scope *outer;
  double deadline;
  bool shield;
  bool expired; /* and a wait has returned it */
} conc_scope;

/* Begins a time limit, `seconds` from now (Python's asyncio.timeout). When the
   time is out, the present wait of the caller, or else its next one, returns
   -ECANCELED, once. conc_scope_end tells this from a conc_cancel. The task
   does not count as cancelled.

     conc_scope s;
     conc_timeout(&s, 5);
     rc = talk();
     if (conc_scope_end(&s) != 0) rc = -ETIMEDOUT;
*/
CONC_API void conc_timeout(conc_scope *scope, double seconds);

/* Begins a shield: until its end no conc_cancel, and no time limit outside of
   it, ends a wait of the caller. They stay pending. (A conc_join that is
   cancelled does not touch its task. So the shield that Python puts around an
   await needs nothing here.) */
CONC_API void conc_shield(conc_scope *scope);

/* Ends the innermost scope of the caller.
   Returns 0.
   Errors:
   -EPERM      the scope is not the innermost
   -ETIMEDOUT  the time was out, and a wait has returned -ECANCELED for that;
               the scope has ended */
CONC_API int conc_scope_end(conc_scope *scope);

/* A group of tasks, none of which outlives the block that started them
   (Python's TaskGroup).

     conc_group g = {0};
     conc_group_start(&g, &a, conc_coro_start);
     conc_group_start(&g, &b, conc_thread_start);
     rc = conc_group_leave(&g, CONC_FOREVER);

   When a task of the group fails, other than with -ECANCELED, the others are
   cancelled at once. (A process that a signal kills fails with -ECHILD.)
   Python would cancel the block, too; here it goes on. So leave the group
   soon, and until then do not wait for what only its tasks can bring. */
typedef struct conc_group {
  /* private */
  conc_task *first; /* the task that was started last */
  int failure;      /* the first failure; 0: none yet */
} conc_group;

/* Starts a task in the group. start(task) is called for that: the function
   that starts tasks of its kind. The tasks of the group may start others in
   it.
   Returns 0.
   Errors:
   -EBUSY      the task runs already
   -ECANCELED  the group has failed and is ending; the task was not started
   others      what start() has returned */
CONC_API int conc_group_start(conc_group *group, conc_task *task,
                              int (*start)(conc_task *));

/* Waits until all tasks of the group have finished. If the wait fails, the
   tasks are cancelled, and the call returns when they have ended, however long
   their clean-up takes. So a timeout of 0 cancels all that still run. The
   group is as new after the call.
   Returns 0 if all tasks have finished and none has failed, other than with
   -ECANCELED.
   Errors:
   -EDEADLK    the caller is a task of the group (then nothing has changed); or
               the wait can never end, as from conc_join
   -ETIMEDOUT  the tasks have not finished in time
   -ECANCELED  the wait was cancelled
   others      the first failure of a task */
CONC_API int conc_group_leave(conc_group *group, double timeout);

/* ---------------------------------------------------------------------------
   >>generator: conc_gen

   Threads    a generator belongs to the thread that resumes it first, and to
              that thread's coroutines; other threads get -EPERM
   Processes  no; a forked child has the generators of the thread that forked
   Signals    no
   Memory     the caller's, valid when zeroed. From its first value to its end
              a generator has a stack of CONC_STACK_SIZE, or .stack_size; or it
              uses that much of the stack of the generator that delegates to
              it. A thread keeps up to 64 stacks for its next generators
   Blocks     only if the generator itself waits for something
   ------------------------------------------------------------------------ */

/* A generator, as in Python. target(arg) runs on a stack of its own. Each time
   that a task asks for a value, target runs on to its next conc_yield.

     static void *count(void *arg) {
       int n = (int)(intptr_t)arg;
       for (int i = 0; i < n; i++)
         if (conc_yield((void *)(intptr_t)i, NULL) != 0) break;
       return NULL;
     }

     conc_gen g = { .target = count, .arg = (void *)(intptr_t)3 };
     void *value;
     while (conc_gen_next(&g, &value) == 0) use((int)(intptr_t)value);

   A number can travel in the place of a pointer, as here: (void *)(intptr_t)n
   makes a pointer of the number n, and (int)(intptr_t)p a number of the
   pointer p. The same goes for .arg of a task and for what a target returns.

   A generator needs no loop, and it is no task: it runs as a part of the task
   that resumes it. So it may do what that task may do: sleep, lock and read.
   Then it is that task which waits, which can be cancelled, and which
   conc_current() returns.
   A generator keeps its stack until it comes to its end: close one that is not
   wanted any more. A generator runs once. To run it again, zero the struct and
   fill it in again. */
typedef struct conc_gen {
  conc_fn *target;   /* what to run; required */
  void *arg;         /* its argument; yours; default NULL */
  size_t stack_size; /* of its own stack; bytes; default CONC_STACK_SIZE */
  /* private */
  uintptr_t word;           /* its thread and a CONC__GEN_...; 0: new */
  struct conc_gen *next;    /* in a ring; see the implementation */
  struct conc__coro *stack; /* of a root: the stack on which its leaf runs */
  void *value;              /* of a root: the value; at last the result */
  int status;               /* what its conc_yield is to return */
} conc_gen;

/* Resumes a generator until it yields a value (Python's next). *value is that
   value; `value` may be NULL.
   Returns 0.
   Errors:
   -EINVAL  the generator has no target
   -EBUSY   it runs already, or another generator delegates to it
   -EPERM   it belongs to another thread
   -EPIPE   there is no value any more: its target has returned, or it was
            closed
   -ENOMEM  there is no memory for its stack */
CONC_API int conc_gen_next(conc_gen *gen, void **value);

/* Does what conc_gen_next does; and the conc_yield at which the generator
   stands gives `sent` to the generator (Python's send).
   Returns 0.
   Errors: as conc_gen_next, and
   -EINVAL  `sent` is not NULL, and the generator has not begun: it stands at
            no conc_yield yet */
CONC_API int conc_gen_send(conc_gen *gen, void *sent, void **value);

/* Called by a generator: hands `value` to the task that has resumed it, and
   waits to be resumed again. *sent is what conc_gen_send was given, or NULL if
   it was resumed by conc_gen_next; `sent` may be NULL.
   Returns 0.
   Errors:
   -EPERM      the caller is not inside a generator
   -ECANCELED  the generator is being closed: it should clean up and return */
CONC_API int conc_yield(void *value, void **sent);

/* Called by a generator: yields all values of another one, `inner`, which may
   have begun already (Python's yield from). What is sent goes directly to
   `inner`. *result is what the target of `inner` has returned; `result` may be
   NULL. No other thread may begin `inner` at the same moment.
   Returns 0 when `inner` has ended, or if it had ended before.
   Errors: as conc_gen_next of `inner`, without -EPIPE, and
   -EPERM      the caller is not inside a generator
   -ECANCELED  both generators were closed */
CONC_API int conc_yield_from(conc_gen *inner, void **result);

/* Ends a generator where it stands (Python's close): its conc_yield returns
   -ECANCELED, and the generator runs to its end. Generators that it delegates
   to are ended in the same way, the innermost one first. The target of a
   generator that has not begun is never called.
   Returns 0 if the generator has ended, now or before.
   Errors: as conc_gen_next, without -EPIPE and -ENOMEM, and
   -EAGAIN  the generator has yielded once more instead; that value is lost */
CONC_API int conc_gen_close(conc_gen *gen);

/* Returns what the target has returned (Python's StopIteration.value); NULL
   before the generator has ended. */
CONC_API void *conc_gen_result(const conc_gen *gen);

/* ---------------------------------------------------------------------------
   >>local: conc_local

   Threads    any number, mixed with coroutines of any loops
   Processes  no
   Signals    no
   Memory     the caller's, valid when zeroed, until conc_local_free. A name
              costs some 100 bytes, and in each thread or task another 16
   Blocks     never
   ------------------------------------------------------------------------ */

/* Which values of a conc_local the caller sees. */
enum {
  CONC_SCOPE_THREAD, /* the thread's: its coroutines share them */
  CONC_SCOPE_TASK    /* the coroutine's or the pool's job's; the thread's if
                        the caller is neither */
};

/* Named values, of which each thread has its own (Python's threading.local),
   or with CONC_SCOPE_TASK each task (Python's contextvars).

     static conc_local local_school;
     conc_local_set(&local_school, "student", name);
     printf("Hello, %s\n", (char *)conc_local_get(&local_school, "student"));

   The destructor is called with a value when another one replaces it, when it
   is deleted, and when its task ends: then before the task can be joined. It
   is never called with NULL. It may use the library. Values that destructors
   set at a task's end are destroyed in another round; after four rounds the
   rest is dropped without being destroyed. At exit() no destructor is called:
   not for the values of the main thread, nor for those of tasks that still
   run.

   With CONC_SCOPE_TASK a coroutine inherits the values of the task that called
   conc_coro_start or conc_run. Each value is inherited as copy(value) if .copy
   is set; otherwise as the same pointer if there is no .destructor; otherwise
   not at all, since two owners would destroy it twice. All other tasks begin
   with no values. */
typedef struct conc_local {
  int scope;                       /* CONC_SCOPE_...; default ..._THREAD */
  void (*destructor)(void *value); /* destroys a value; default none */
  void *(*copy)(void *value);      /* makes the copy that a coroutine inherits;
                                      never called with NULL; returns NULL if
                                      it fails; default none */
  /* private */
  struct conc_attribute *root;     /* all names, as a tree */
  struct conc_attribute *first[8]; /* the first of them, to be found fast */
} conc_local;

/* Sets the caller's value under a name. The name is copied.
   Returns 0. After an error nothing has changed.
   Errors:
   -EINVAL  the name is NULL, or .scope is not a CONC_SCOPE_...
   -ENOMEM  there is no memory for the name or the value */
CONC_API int conc_local_set(conc_local *local, const char *name, void *value);

/* Returns the caller's value under a name; NULL if it has none. */
CONC_API void *conc_local_get(conc_local *local, const char *name);

/* Returns whether the caller has a value under a name. It may be NULL. */
CONC_API bool conc_local_has(conc_local *local, const char *name);

/* Deletes the caller's value under a name, and destroys it.
   Returns 0.
   Errors:
   -EINVAL  the name is NULL
   -ENOENT  the caller has no value under that name */
CONC_API int conc_local_delete(conc_local *local, const char *name);

/* Destroys all values of all threads and tasks, and forgets all names. The
   struct is as new then. Meanwhile no task may use it, nor start coroutines
   that would inherit from it. But threads and tasks may end: each value is
   destroyed once, either by the task that ends (perhaps a little later) or
   here. */
CONC_API void conc_local_free(conc_local *local);

/* One name of one conc_local, looked up beforehand: this is faster. */
typedef struct conc_attribute conc_attribute;

/* Looks up a name, which may be new. The attribute is valid until
   conc_local_free.
   Returns the attribute; or NULL, and errno.
   Errors:
   EINVAL  the name is NULL, or .scope is not a CONC_SCOPE_...
   ENOMEM  there is no memory for the name */
CONC_API conc_attribute *conc_local_attribute(conc_local *local,
                                              const char *name);

/* Do what conc_local_get and conc_local_set do. conc_attribute_set fails only
   by -ENOMEM. */
CONC_API void *conc_attribute_get(const conc_attribute *attribute);
CONC_API int conc_attribute_set(conc_attribute *attribute, void *value);

/* ---------------------------------------------------------------------------
   >>thread: conc_thread_start

   Threads    start a task once at a time
   Processes  no
   Signals    no
   Memory     the task is the caller's, from start until joined (or known
              finished)
   Blocks     never
   ------------------------------------------------------------------------ */

/* Runs task->target(task->arg) in a new thread (Python's Thread.start). The
   thread is detached: it need not be joined. The system is told the task's
   name. .stack_size is rounded up to whole pages, and to the least that the
   system allows. A number is passed as .arg = (void *)(intptr_t)n: see
   conc_gen.
   Returns 0.
   Errors:
   -EINVAL  the task has no target
   -EBUSY   the task runs already
   -EAGAIN  the system has no room for another thread
   -ENOMEM  there is no memory for it
   others   what pthread_create() fails with */
CONC_API int conc_thread_start(conc_task *task);

/* ---------------------------------------------------------------------------
   >>loop: conc_run, conc_coro_start, conc_sleep

   Threads    a thread runs one loop at a time, and its coroutines; conc_sleep
              and conc_yield_now work everywhere
   Processes  a forked child has the loop of the thread that forked, with all
              its coroutines
   Signals    no
   Memory     the tasks are the caller's, from start until joined (or known
              finished); the library allocates stacks
   Blocks     conc_run, until all coroutines of the loop have ended;
              conc_sleep; the others never
   ------------------------------------------------------------------------ */

/* Runs the task as a coroutine on a loop of the calling thread, until it and
   all coroutines that were started on this loop have finished (Python's
   asyncio.run). When the task has finished, coroutines that are left over are
   cancelled and awaited. So their structs must not lie on the stack of a
   coroutine that has ended.
   Returns what conc_join returns for the task: 0, or its failure.
   Errors: the failure of the task, and
   -EINVAL   the task has no target
   -EBUSY    this thread is inside another conc_run, or the task runs already
   -EDEADLK  all coroutines waited for what none of them could do any more, in
             a process without other threads. They were cancelled, and
             conc_deadlock_report tells what they waited for
   -ENOMEM   there is no memory for the loop
   -EMFILE   the process has too many descriptors */
CONC_API int conc_run(conc_task *task);

/* Starts a coroutine on the loop of the calling thread (Python's
   asyncio.create_task). The coroutine runs when the caller next waits, and
   gets its stack then. If there is no memory for the stack, the coroutine
   fails, by -ENOMEM.
   Returns 0.
   Errors:
   -EINVAL  the task has no target
   -EBUSY   the task runs already
   -EPERM   no loop runs in this thread
   -ENOMEM  there is no memory, or .copy of a conc_local has failed */
CONC_API int conc_coro_start(conc_task *task);

/* Tells how many bytes of its stack a coroutine has used at most so far; of
   the caller, if `task` is NULL. That shows what .stack_size it needs: twice
   as much is safe. Stacks of up to CONC_STACK_SIZE are reused, so the result
   may include earlier tasks; larger ones are not. Scans the whole stack: meant
   for tests.
   Returns the number of bytes; 0 if the coroutine has not begun.
   Errors:
   -EPERM  the coroutine is of another thread's loop
   -ESRCH  the task does not run, or it is no coroutine */
CONC_API ssize_t conc_stack_used(conc_task *task);

/* From now on reports each coroutine or generator that overflows its stack.
   Its name is written in a line to the standard error:
     conc: Task-7 has overflowed its stack of 65536 bytes (.stack_size)
   Then the process dies of SIGSEGV, as it would have done without the report.
   This call installs a handler for SIGSEGV and SIGBUS. After the report, and
   for every other fault, it passes the signal on to the handler that was there
   before. The caller, and each thread that makes a coroutine or a generator
   from now on, gets an alternate signal stack, unless it has one. Call it in
   main; a second time is a no-op.
   Returns 0.
   Errors:
   -ENOMEM  there is no memory for the signal stack */
CONC_API int conc_report_overflow(void);

/* Waits for a number of seconds (Python's sleep). 0 or less does what
   conc_yield_now does; CONC_FOREVER waits for conc_cancel.
   Returns 0.
   Errors:
   -ECANCELED  the wait was cancelled */
CONC_API int conc_sleep(double seconds);

/* Lets the other ready coroutines of the loop run first; in a thread, other
   threads.
   Returns 0.
   Errors:
   -ECANCELED  the caller was cancelled */
CONC_API int conc_yield_now(void);

/* ---------------------------------------------------------------------------
   >>io: descriptors, sockets, buffered streams, signals

   Threads    as the descriptor itself; several tasks may wait for one
   Processes  the descriptors are close-on-exec
   Signals    no; sockets do not raise SIGPIPE, but pipes do
   Memory     nothing is kept after the call; but see conc_stream
   Blocks     a thread blocks, a coroutine parks; with a timeout. conc_listen
              and conc_datagram_open have none: they wait only to look up a
              name

   A descriptor may be blocking or not. One that is blocking and no socket (a
   terminal, a pipe) is first waited for, then read: if another thread or
   process was faster, that read blocks. Regular files never wait. If
   coroutines wait for a descriptor, close it by conc_close.
   ------------------------------------------------------------------------ */

/* What a descriptor can be ready for. */
#define CONC_READ 1
#define CONC_WRITE 2

/* Waits until a descriptor can be read or written: `events` is CONC_READ,
   CONC_WRITE or both. The end of file and errors count as ready.
   A pending conc_cancel is delivered even if the descriptor is ready; likewise
   in conc_read and conc_write of blocking descriptors that are not sockets.
   Returns the events that are ready.
   Errors:
   -EINVAL     `events` is 0 or has other bits
   -EBADF      the descriptor is not open, or conc_close has closed it
   -ETIMEDOUT  the descriptor was not ready in time
   -ECANCELED  the wait was cancelled */
CONC_API int conc_wait_fd(int fd, int events, double timeout);

/* Reads the bytes that are there, up to `size`. It waits only for the first
   one. A pipe that it finds half full gets room for 1 MiB, where the system
   allows that.
   Returns the number of bytes; 0 at the end of file.
   Errors:
   -ETIMEDOUT  no byte came in time
   -ECANCELED  the wait was cancelled
   others      what read() fails with */
CONC_API ssize_t conc_read(int fd, void *buf, size_t size, double timeout);

/* Writes all `size` bytes. After an error some first part of the data, but not
   all, may have been written (a conc_stream keeps the rest).
   Returns `size`.
   Errors:
   -EPIPE      the other side is closed
   -ETIMEDOUT  the bytes could not all be written in time
   -ECANCELED  the wait was cancelled
   others      what write() fails with */
CONC_API ssize_t conc_write(int fd, const void *buf, size_t size,
                            double timeout);

/* Reads until it has `size` bytes. After an error an unknown number of bytes
   has been read, into the front of buf (a conc_stream keeps them).
   Returns `size`; or a smaller number, if the end of file came before.
   Errors: as conc_read. */
CONC_API ssize_t conc_read_exactly(int fd, void *buf, size_t size,
                                   double timeout);

/* Closes a descriptor. Coroutines of the calling thread's loop that wait for
   it get -EBADF.
   Returns 0.
   Errors: what close() fails with. */
CONC_API int conc_close(int fd);

/* Makes a socket that listens at an address:

     "host:port"         a name, or an address of IPv4
     "[v6]:port"         an address of IPv6
     ":port", "*:port"   all interfaces, of IPv4
     "port"              loopback
     NULL, ""            loopback, and a port that the system chooses
     "/path"             a unix socket: every address that has a '/'

   A port is a number; with 0 the system chooses one. A file at the path of a
   unix socket is replaced if no process listens there any more.
   The call waits only if the host is a name, for as long as the look-up takes.
   Of several addresses it uses the first.
   Returns a descriptor, non-blocking.
   Errors:
   -EINVAL         this is not an address
   -EADDRINUSE     another socket has this address
   -EADDRNOTAVAIL  this machine does not have the address
   -ENOENT         there is no such host
   -ECANCELED      the look-up was cancelled
   -EAGAIN         no server answers that could know the name
   others          what socket(), bind() and listen() fail with */
CONC_API int conc_listen(const char *address);

/* Accepts a connection. The socket that listens is made non-blocking, because
   another task may be faster.
   Returns the connection's descriptor, non-blocking.
   Errors:
   -ETIMEDOUT  no connection came in time
   -ECANCELED  the wait was cancelled
   -EMFILE     the process has too many descriptors
   others      what accept() fails with */
CONC_API int conc_accept(int fd, double timeout);

/* Serves connections: accepts them, and calls handler(fd, arg) for each, all
   at the same time. If a coroutine calls conc_serve, each handler runs in a
   coroutine of its loop; if a thread does, each runs in a thread (Python's
   asyncio.start_server, and socketserver's ThreadingTCPServer).

     static void echo(int fd, void *arg) {
       char buf[2048];
       ssize_t n;
       do n = conc_read(fd, buf, sizeof buf, 60);
       while (n > 0 && conc_write(fd, buf, (size_t)n, 60) == n);
       conc_close(fd);
     }

     conc_serve(listener, echo, NULL, 0);

     listener   a descriptor of conc_listen; it stays the caller's. Several
                loops, threads and processes may serve the same one
     handler    it has to close fd. If it is cancelled before it has begun, it
                is not called, and conc_serve closes the connection
     arg        yours; the same for all
     limit      how many handlers run at one time; 0 is 1,000. More connections
                wait at the listener

   A want of descriptors or memory does not end it: it waits until a handler
   has ended, for 0.1 s at most, and accepts again. It needs some 300 bytes for
   each handler that runs at one time, and frees them when it returns. A child
   process that a handler starts does not serve.
   It never returns 0, and it returns only after all handlers have ended.
   Errors:
   -ECANCELED  the caller was cancelled, or its time is out. Then the handlers
               are cancelled, too. After each other error it lets them run to
               their end
   -EBADF      the listener is not open: a coroutine of the same loop has
               closed it by conc_close, say
   -EINVAL     there is no handler, or the socket does not listen
   others      what accept() fails with for good: -ENOTSOCK, -EOPNOTSUPP */
CONC_API int conc_serve(int listener, void (*handler)(int fd, void *arg),
                        void *arg, size_t limit);

/* Connects to an address as conc_listen takes it, with two differences: an
   empty host is loopback, and there must be a port. If a name has several
   addresses, the first four are tried in turn.
   Returns the connection's descriptor, non-blocking.
   Errors:
   -EINVAL        this is not an address, or it has no port
   -ENOENT        there is no such host, or no such unix socket
   -ECONNREFUSED  no process listens at this address
   -ETIMEDOUT     there was no connection in time
   -ECANCELED     the wait was cancelled
   -EAGAIN        no server answers that could know the name
   others         what connect() fails with, at the last address */
CONC_API int conc_connect(const char *address, double timeout);

/* Writes the address of a socket to buf, in the form that conc_connect takes:
   "127.0.0.1:40123", with the port that the system has chosen; "" for a unix
   socket without a name. As in snprintf, at most `size` bytes are written, the
   last of them a NUL.
   Returns the length of the whole address, without the NUL.
   Errors: what getsockname() fails with. */
CONC_API ssize_t conc_address(int fd, char *buf, size_t size);

/* Makes a socket for datagrams, UDP or unix ones, at an address as conc_listen
   takes it. ":0" is all interfaces, and a port that the system chooses.
   Returns a descriptor, non-blocking.
   Errors: as conc_listen. */
CONC_API int conc_datagram_open(const char *address);

/* Sends a datagram to an address as conc_connect takes it.
   Returns 0.
   Errors:
   -EINVAL        this is not an address, or it has no port
   -EMSGSIZE      the datagram is too long for the network
   -ENOENT        there is no such host, or no such unix socket
   -ECONNREFUSED  no process receives there (of unix sockets only)
   -ETIMEDOUT     the datagram could not be sent in time
   -ECANCELED     the wait was cancelled
   -EAGAIN        no server answers that could know the name
   others         what sendto() fails with */
CONC_API int conc_datagram_send(int fd, const void *data, size_t size,
                                const char *address, double timeout);

/* Receives a datagram. `from`, of from_size bytes, gets the address that it
   came from, as conc_datagram_send takes it; "" if that does not fit. If
   from_size is 0, the address is not wanted.
   Returns the size of the datagram, which may be 0.
   Errors:
   -EMSGSIZE   the datagram was longer than `size`: the rest of it is lost
   -ETIMEDOUT  no datagram came in time
   -ECANCELED  the wait was cancelled
   others      what recvmsg() fails with */
CONC_API ssize_t conc_datagram_receive(int fd, void *buf, size_t size,
                                       char *from, size_t from_size,
                                       double timeout);

/* --- buffered streams --- */

/* Private: bytes `first` to `size` of `data` are in use; there is room for
   `capacity`. */
struct conc__buffer {
  unsigned char *data;
  size_t size, capacity, first;
};

/* A descriptor, with a buffer for what is read from it and one for what is
   written to it (asyncio's StreamReader and StreamWriter).

     conc_stream s = { .fd = conc_connect("example.org:80", 5) };
     conc_stream_write(&s, "GET / HTTP/1.0\r\n\r\n", 18, 5);
     conc_stream_flush(&s, 5);
     while ((n = conc_stream_read_line(&s, line, sizeof line, 5)) > 0) ...
     conc_stream_close(&s, 5);

   Any number of tasks may use a stream. One of them at a time reads, and one
   at a time writes: so what one call reads or writes is in one piece. A call
   that fails has read nothing, and has added nothing to what is to be written:
   what came meanwhile stays in the buffer.
   In a forked child the first call fails by -EOWNERDEAD if another thread of
   the parent was inside such a call.
   Memory: 4 KiB for reading, more if a call asks for more; and the bytes that
   are written and not sent yet. */
typedef struct conc_stream {
  int fd;            /* the descriptor; conc_stream_close closes it */
  size_t high_water; /* bytes; a write that finds this number of them unsent
                        sends them first; default 65536 */
  /* private */
  struct conc__buffer in, out; /* what was read; what is to be written */
  conc_lock reading, writing; /* held by the call that does so */
  int error; /* of writing: from now on all writes fail by it; or 0 */
} conc_stream;

/* Reads the bytes that are there, up to `size`. It waits only for the first
   one.
   Returns the number of bytes; 0 at the end.
   Errors: as conc_read, and
   -EOWNERDEAD  this process was forked while another thread of the parent was
                reading; the next call reads
   -ENOMEM      there is no memory for the buffer */
CONC_API ssize_t conc_stream_read(conc_stream *stream, void *buf, size_t size,
                                  double timeout);

/* Reads until it has `size` bytes.
   Returns `size`; or a smaller number, if the end came before (in Python that
   is IncompleteReadError, and these bytes are its .partial).
   Errors: as conc_stream_read. */
CONC_API ssize_t conc_stream_read_exactly(conc_stream *stream, void *buf,
                                          size_t size, double timeout);

/* Reads up to a separator of n bytes, and the separator too. It is looked for
   in the first `size` bytes.
   Returns the number of bytes. If the end came before a separator, that is all
   that was left: 0 at the end.
   Errors: as conc_stream_read, and
   -EINVAL    n is 0
   -EMSGSIZE  the first `size` bytes contain no separator (also if they are the
              last ones); nothing is consumed */
CONC_API ssize_t conc_stream_read_until(conc_stream *stream,
                                        const void *separator, size_t n,
                                        void *buf, size_t size,
                                        double timeout);

/* Reads a line with its '\n', which only the last line may lack, and puts a
   NUL behind it. The line has at most size - 1 bytes. After an error buf is
   "".
   Returns the number of bytes, without the NUL; 0 at the end.
   Errors: as conc_stream_read, and
   -EINVAL    `size` is 0
   -EMSGSIZE  the line is longer; nothing is consumed */
CONC_API ssize_t conc_stream_read_line(conc_stream *stream, char *buf,
                                       size_t size, double timeout);

/* Writes `size` bytes to the buffer. If the buffer has .high_water bytes or
   more already, all of these are first written to the descriptor, however long
   that takes. Nothing is sent before that, or before the next flush.
   Returns 0.
   Errors:
   -EPIPE       the other side is closed
   -ETIMEDOUT   the buffer could not be sent in time
   -ECANCELED   the wait was cancelled
   -EOWNERDEAD  this process was forked while another thread of the parent was
                writing; the next call writes
   -ENOMEM      there is no memory for the bytes
   others       what conc_write fails with; by this error, or by -EPIPE, all
                later writes fail, too */
CONC_API int conc_stream_write(conc_stream *stream, const void *data,
                               size_t size, double timeout);

/* Waits until all that was written is sent (Python's drain). After -ETIMEDOUT
   or -ECANCELED the rest may be flushed later.
   Returns 0.
   Errors: as conc_stream_write, without -ENOMEM. */
CONC_API int conc_stream_flush(conc_stream *stream, double timeout);

/* Flushes the stream, closes the descriptor and frees the buffers. It does all
   of that whatever it returns: what could not be flushed is lost. No other
   task may use the stream meanwhile.
   Returns 0.
   Errors: as conc_stream_flush, and what close() fails with. */
CONC_API int conc_stream_close(conc_stream *stream, double timeout);

/* --- signals --- */

/* Blocks n signals in the calling thread, and in all threads and processes
   that it starts from now on; but not in programs. A blocked signal stays
   pending until a task waits for it. Make this the first call in main: a
   signal that one thread does not block may be delivered there, and kill the
   process.
   Returns 0.
   Errors:
   -EINVAL  n is 0, or one of the numbers is no signal */
CONC_API int conc_block_signals(const int *signals, size_t n);

/* Waits for one of n signals, which the calling thread blocks (Python's
   signal.sigwait). No handler and no mask is changed.

     int signals[] = {SIGINT, SIGTERM};
     conc_block_signals(signals, 2);
     ...
     conc_wait_signal(signals, 2, CONC_FOREVER);

   Each signal is delivered to one waiter. Where there is no CONC_HAVE_SIGNALFD
   the signals are looked for every 10 ms.
   Returns the signal's number.
   Errors:
   -EINVAL     n is 0, one of the numbers is no signal, or one of the signals
               is not blocked
   -ETIMEDOUT  no signal came in time
   -ECANCELED  the wait was cancelled
   -EMFILE     the process has too many descriptors */
CONC_API int conc_wait_signal(const int *signals, size_t n, double timeout);

/* ---------------------------------------------------------------------------
   >>ipc: memory that processes share

   Threads    any number, mixed with coroutines of any loops
   Processes  a process, and those that it forks after the memory was made
              (conc_process_start, too); memory with a name: all processes of
              the same user. Up to 1,024 at one time
   Signals    no
   Memory     the system's, in whole pages, until the last process that has it
              frees it or ends
   Blocks     conc_shared_open, while another process runs init

   The memory must contain no pointers: in another process they mean nothing.
   Objects of the library that lie in it work between processes only if
   ..._init_shared has made them so.
   ------------------------------------------------------------------------ */

/* Makes zeroed memory that forked children share with the caller.
   Returns the memory, for conc_shared_free; or NULL, and errno.
   Errors:
   EINVAL  `size` is 0
   ENOMEM  the system has no memory left
   EMFILE  the process has too many descriptors */
CONC_API void *conc_shared_alloc(size_t size);

/* Opens the memory of that name, for all processes of the same user that ask
   for it. The first of them makes it, zeroed, and calls init(memory, arg); no
   other process gets the memory before init has returned. So init is the place
   to make what is in the memory shared. If init returns a negative errno
   value, no memory is made, the result is NULL and errno is set to that error.
   Opening a name again in the same process returns the same memory; free it as
   often as it was opened.
   The memory is removed soon after its last user has freed it or died. For
   each name a small process of the library, forked by the first opener, waits
   for that.
   `name` has 1 to 200 letters, digits and . _ - ; `size` must be the same in
   all processes; `init` may be NULL.
   Returns the memory, for conc_shared_free; or NULL, and errno.
   Errors:
   EINVAL     the name has other characters, or another length; `size` is 0, or
              not the size that the memory has
   EDEADLK    this is a call from within init
   EACCES     in the place of its file there is one that belongs to another
              user, or that other users may open
   ECANCELED  the wait was cancelled
   EAGAIN     more than 1,024 processes share the memory
   ENOMEM     the system has no memory left
   EMFILE     the process has too many descriptors
   others     what init has returned; what open() and fork() fail with */
CONC_API void *conc_shared_open(const char *name, size_t size,
                                int (*init)(void *memory, void *arg),
                                void *arg);

/* Gives memory back: the caller's process has it no longer, other processes
   still do. What the process holds in it (a lock) must have been released
   before. NULL is a no-op. */
CONC_API void conc_shared_free(void *memory);

/* ---------------------------------------------------------------------------
   >>process: conc_process_start

   Threads    start a task once at a time; the rest from anywhere
   Processes  a process knows its own children only: in a forked child the
              tasks of the parent's children have ended, with -ECHILD
   Signals    no. The library installs no handler, and leaves children alone
              that it has not started. The program must leave the library's
              children alone: it must not wait() for any child, nor ignore
              SIGCHLD (SIG_IGN)
   Memory     the task is the caller's, from start until joined
   Blocks     start: the calling thread, for as long as fork() takes; to wait
              for the end, see conc_join

   While children run, a thread of the library waits for their ends, and takes
   their exit codes at once: so there are no zombies. The thread ends soon
   after the last child.
   Every descriptor of the library is close-on-exec. A descriptor that you open
   without O_CLOEXEC is inherited by programs that are started.
   ------------------------------------------------------------------------ */

enum {
  CONC_FORK, /* the child is a copy of the process, with one thread */
  CONC_SPAWN /* the program is executed again: see conc_main */
};

/* The exit code of a process that still runs; or that another part of the
   program has waited for. */
#define CONC_NO_EXITCODE (-1000)

/* Runs task->target(task->arg) in a new process (Python's Process.start).
   There the task is conc_current(). The target runs in the child's main
   thread, outside any loop. When it returns, stdio is flushed, and the process
   ends; the exit code is the lowest eight bits of the result, so NULL is 0.
   What the target changes stays in the child: only the exit code comes back.
   .start_method says how the child is made:

     CONC_FORK   The child is a copy of the caller's process. Before the fork
                 stdio is flushed; that waits for a thread that is reading from
                 a FILE. In the child all tasks of the parent, the caller too,
                 have ended with -ECHILD, and their locks report -EOWNERDEAD.
                 There are no values of a conc_local. If the caller is a
                 coroutine or a generator, the target gets a stack of 8 MiB; or
                 of .stack_size, if that is above CONC_STACK_SIZE. At the end
                 no functions of atexit() are called.
     CONC_SPAWN  The child executes the program again, and gets a copy of the
                 .size bytes at .arg; with .size 0 the target gets NULL. The
                 target must be a CONC_PROCESS_TARGET.

   Returns 0.
   Errors:
   -EINVAL  the task has no target, or a bad .start_method; or CONC_SPAWN: the
            target is not registered
   -EBUSY   the task runs already
   -EPERM   CONC_SPAWN: main has not called conc_main
   -EAGAIN  the system has no room for another process
   -ENOMEM  there is no memory for it
   -EMFILE  the process has too many descriptors
   others   what fork() or execve() fails with */
CONC_API int conc_process_start(conc_task *task);

/* Returns the process's number (pid), also after its end; 0 before the
   start. */
CONC_API pid_t conc_pid(const conc_task *task);

/* Returns how a process has ended, as in Python: the exit code 0 to 255, or
   the negative number of the signal that has killed it; or
   CONC_NO_EXITCODE. */
CONC_API int conc_exitcode(const conc_task *task);

/* Send a signal to a process: SIGTERM (conc_terminate) or SIGKILL (conc_kill).
   Return 0.
   Errors:
   -ESRCH  the process does not run
   others  what kill() fails with */
CONC_API int conc_terminate(conc_task *task);
CONC_API int conc_kill(conc_task *task);

/* Makes CONC_SPAWN possible. It must be the first call in main(). In a process
   that was spawned it runs the target, calls exit() and does not return. */
CONC_API void conc_main(int argc, char **argv);

/* Lets a function be the target of a spawned process. It stands at file scope,
   after the function.
     static void *run_proc(void *arg) { ... }
     CONC_PROCESS_TARGET(run_proc) */
#define CONC_PROCESS_TARGET(fn)                                        \
  __attribute__((constructor)) static void conc__register_##fn(void) { \
    static struct conc__target target = {#fn, fn, NULL};               \
    conc_process_register(&target);                                    \
  }

/* Private: a function that can be spawned, in the list of all. */
struct conc__target {
  const char *name;
  conc_fn *fn;
  struct conc__target *next;
};

/* Registers a function that can be spawned: CONC_PROCESS_TARGET calls this
   before main. The target must stay. */
CONC_API void conc_process_register(struct conc__target *target);

/* ---------------------------------------------------------------------------
   >>popen: conc_popen: other programs

   Threads    one task at a time starts, communicates and closes; the rest from
              anywhere
   Processes  a process knows its own children only
   Signals    no, and see >>process for SIGCHLD. conc_communicate does not
              raise SIGPIPE
   Memory     the struct is the caller's, from start until joined; strings and
              arrays, until start returns; the output is the library's, until
              conc_free
   Blocks     start: the calling thread, until the program is executed; wait,
              communicate, call and check_output: with a timeout
   ------------------------------------------------------------------------ */

/* What std_in, std_out and std_err can be besides 0, which is the caller's
   own, and a descriptor, which stays the caller's. */
#define CONC_PIPE (-1)    /* a pipe, whose other end is .in, .out, .err */
#define CONC_DEVNULL (-2) /* /dev/null */
#define CONC_STDOUT (-3)  /* of std_err: where std_out goes */

/* Another program that runs (Python's subprocess.Popen). It is a conc_task: so
   conc_join(&p.task, ...), conc_kill(&p.task) and so on take it. */
typedef struct conc_popen {
  conc_task task;            /* .name is an option, default argv[0]; .daemon
                                is not */
  const char *const *argv;   /* the program and its arguments; the last is
                                NULL; argv[0] is looked up in PATH */
  const char *const *env;    /* its environment: "NAME=value", ..., NULL;
                                default: the caller's */
  const char *cwd;           /* the directory that it runs in; default: the
                                caller's */
  int std_in, std_out, std_err; /* its standard descriptors, see above; default
                                   0: the caller's own */
  const char *in_file, *out_file, *err_file; /* or the names of files: one to
                                                be read, two to be written,
                                                which are emptied first;
                                                default none */
  bool new_group;            /* it leads a new process group; default false */
  bool kill_on_timeout;      /* a conc_popen_wait or conc_communicate that is
                                not in time, or is cancelled, kills it (with
                                new_group the group) and waits for its end;
                                default false */
  int in, out, err; /* set by start: the other ends of pipes, non-blocking; or
                       -1. They are yours; conc_communicate closes them */
  /* private */
  size_t sent; /* bytes of the input that were written */
} conc_popen;

/* What a program has written. */
typedef struct conc_output {
  char *data;  /* the bytes, and a NUL; to be freed by conc_free */
  size_t size; /* bytes, without the NUL */
} conc_output;

/* Starts the program. None of the signals that the caller blocks is blocked in
   it. Where there is CONC_HAVE_SPAWN, the start takes no longer if the
   caller's process is large.
   Returns 0.
   Errors:
   -EINVAL  there is no argv[0], or a bad std_in, std_out or std_err
   -EBUSY   the program runs already
   -EACCES  the program may not be executed, cwd not entered, or a file not
            opened
   -ENOENT  there is no such program, cwd or file
   -EAGAIN  the system has no room for another process
   -ENOMEM  there is no memory for it
   -EMFILE  the process has too many descriptors
   others   what execve() fails with */
CONC_API int conc_popen_start(conc_popen *popen);

/* Waits for the end of the program. What it writes to pipes must be read
   meanwhile, or it may never end.
   Returns the exit code.
   Errors:
   -EINVAL     the program was never started
   -ETIMEDOUT  the program has not ended in time
   -ECANCELED  the wait was cancelled
   -ECHILD     a signal has killed the program: conc_exitcode tells which */
CONC_API int conc_popen_wait(conc_popen *popen, double timeout);

/* Does what conc_popen_wait does, without waiting: -ETIMEDOUT means that the
   program still runs. It never kills the program. */
CONC_API int conc_popen_poll(conc_popen *popen);

/* Writes n bytes of input to the program's pipe and closes it, reads the other
   pipes to their ends, all at the same time, and waits for the end of the
   program (Python's communicate). Whatever is returned, *out and *err are what
   was read; {NULL, 0} if there was no pipe. `out` or `err` may be NULL: that
   output is not wanted. After -ETIMEDOUT or -ECANCELED it may be called again
   with the same input, and goes on from there; then *out and *err are what
   that call has read.
   Returns the exit code.
   Errors: as conc_popen_wait, and
   -ENOMEM  there is no memory for the output
   others   what read() and write() fail with */
CONC_API int conc_communicate(conc_popen *popen, const void *input, size_t n,
                              conc_output *out, conc_output *err,
                              double timeout);

/* Closes the pipes that are still open here. It does not wait for the
   program. */
CONC_API void conc_popen_close(conc_popen *popen);

/* Runs a program to its end (Python's subprocess.call). If it has not ended in
   time, or the caller is cancelled, it is killed.
   Returns the exit code.
   Errors: as conc_popen_start and conc_popen_wait. */
CONC_API int conc_call(const char *const *argv, double timeout);

/* Does what conc_call does, and reads what the program writes to its standard
   output (Python's subprocess.check_output). Whatever is returned, *out is
   what was read; out->data is to be freed by conc_free.
   Returns the exit code.
   Errors: as conc_call, and as conc_communicate. */
CONC_API int conc_check_output(const char *const *argv, conc_output *out,
                               double timeout);

/* ---------------------------------------------------------------------------
   >>value: typed values

   What Python can put on a queue and C can read: None, bool, int, float, str,
   bytes, bytearray, list, tuple, dict, set, frozenset. A value is a tree in
   one allocation. conc_build, conc_pickle_loads, conc_json_loads or
   conc_get_value makes it whole; it is never changed; the functions below read
   it; it is freed at its root. Every part and every string that a function
   hands out points into the root's allocation, and lives as long.

   Where in Python one object appears at several places, these places share
   memory here, too. That cannot be noticed, because nothing can be changed.
   Dicts keep the order that they had in Python. Sets have no order in Python;
   here their items are sorted, so that equal sets look equal.

   A value has limits, wherever it comes from: it is nested at most 100 deep;
   it has at most a million parts; an int has at most 4,096 bytes; and written
   out, its strings have at most 64 MiB more than the data that it was made
   from. So no peer's data can exhaust a stack or a CPU.

   Threads    any number may read a value at once: it does not change
   Processes  as bytes: conc_pickle_dumps
   Signals    no
   Memory     the library's, until conc_value_free(root)
   Blocks     never
   ------------------------------------------------------------------------ */

/* What a value is: Python's type of that name. */
typedef enum conc_type {
  CONC_NONE,
  CONC_BOOL,
  CONC_INT,    /* an int that fits int64_t; each one that does */
  CONC_BIGINT, /* an int that does not fit: kept whole, as bytes */
  CONC_FLOAT,
  CONC_STR, /* UTF-8; lone surrogates as Python's "surrogatepass" */
  CONC_BYTES,
  CONC_BYTEARRAY,
  CONC_LIST,
  CONC_TUPLE,
  CONC_DICT,
  CONC_SET,
  CONC_FROZENSET,
  CONC_OBJECT /* an instance of a Python class, inert: it can be looked at,
                 not sent on. Items: module, class, arguments, state */
} conc_type;

/* A value, or a part of one. */
typedef struct conc_value conc_value;

/* Frees a value with all its parts. `value` must be a root; NULL is a
   no-op. */
CONC_API void conc_value_free(conc_value *value);

/* Returns what a value is. For NULL that is CONC_NONE. All functions that read
   a value take NULL for a value without content: so a chain of look-ups needs
   one check, at its end. To write or to send NULL is -EINVAL. */
CONC_API conc_type conc_value_type(const conc_value *value);

/* Reads an int.
   Returns 0, and the number in *out.
   Errors:
   -EINVAL  the value has another type
   -ERANGE  it is a CONC_BIGINT */
CONC_API int conc_value_int(const conc_value *value, int64_t *out);

/* Reads a float; or an int, as the nearest float.
   Returns 0, and the number in *out.
   Errors:
   -EINVAL  the value has another type
   -ERANGE  it is an int beyond all floats */
CONC_API int conc_value_float(const conc_value *value, double *out);

/* Reads a bool. Only a bool is one: an int is not.
   Returns 0, and the truth in *out.
   Errors:
   -EINVAL  the value has another type */
CONC_API int conc_value_bool(const conc_value *value, bool *out);

/* Returns the text of a str, with a NUL behind it; NULL for another type. The
   text may contain other NULs: *size counts them, but not the last one. `size`
   may be NULL. */
CONC_API const char *conc_value_str(const conc_value *value, size_t *size);

/* Returns the bytes of a bytes or bytearray, with a NUL behind them; NULL for
   another type. Of a CONC_BIGINT they are its two's complement, little-endian,
   as short as can be. *size is their number; `size` may be NULL. */
CONC_API const void *conc_value_bytes(const conc_value *value, size_t *size);

/* Returns how many items a list, tuple or set has, how many pairs a dict, how
   many bytes a str, bytes, bytearray or CONC_BIGINT; for other types 0. */
CONC_API size_t conc_value_size(const conc_value *value);

/* Returns item i, counted from 0; of a dict, the value of pair i. NULL if
   there is none. */
CONC_API const conc_value *conc_value_item(const conc_value *value, size_t i);

/* Returns the key of pair i of a dict, counted from 0. NULL if there is
   none. */
CONC_API const conc_value *conc_value_key(const conc_value *value, size_t i);

/* Returns what a dict has under a str; NULL if there is nothing. The look-up
   bisects: O(log pairs). */
CONC_API const conc_value *conc_value_get(const conc_value *dict,
                                          const char *key);

/* Returns whether two values have the same types and the same content. The
   order in a dict does not count; 0.0 equals -0.0, and a NaN equals a NaN. */
CONC_API bool conc_value_equal(const conc_value *a, const conc_value *b);

/* ---------------------------------------------------------------------------
   >>pickle: conc_pickle_dumps, conc_pickle_loads

   Threads    any number
   Processes  a pickle is bytes: any process, any machine, may read it
   Signals    no
   Memory     the results are the caller's: conc_free, conc_value_free
   Blocks     never
   ------------------------------------------------------------------------ */

/* Makes a pickle of a value (Python's pickle.dumps). `protocol` is 2, which
   Python 2 can read too, to 5, or 0 for 4. *out, of *size bytes, is to be
   freed by conc_free.
   Returns 0. After an error *out is NULL.
   Errors:
   -EINVAL  there is no such protocol, or the value is NULL
   -EACCES  there is a CONC_OBJECT in it: it would come to life in the reader
   -ENOMEM  there is no memory for the pickle */
CONC_API int conc_pickle_dumps(const conc_value *value, int protocol,
                               void **out, size_t *size);

/* Makes a value of a pickle of protocol 0 to 5 (Python's pickle.loads), if it
   has nothing but data: nothing is imported, made or called, whatever the
   pickle asks for. A str of Python 2 becomes a CONC_STR if it is UTF-8, else
   CONC_BYTES. *out is to be freed by conc_value_free.
   Returns 0. After an error *out is NULL.
   Errors:
   -EBADMSG   this is not a pickle
   -EMSGSIZE  it goes beyond the limits of a value (see >>value), or contains
              itself
   -EACCES    it asks for more than data
   -ENOMEM    there is no memory for the value */
CONC_API int conc_pickle_loads(conc_value **out, const void *data,
                               size_t size);

/* ---------------------------------------------------------------------------
   >>format: conc_value_text, conc_build, conc_parse

   Threads    any number
   Processes  no
   Signals    no
   Memory     a value that conc_build makes is the caller's, for
              conc_value_free; the others allocate nothing
   Blocks     never
   ------------------------------------------------------------------------ */

/* Writes what Python's str() gives: of a str its text, of other types their
   repr(). As in snprintf, at most `size` bytes are written to buf, the last of
   them a NUL. It allocates nothing and cannot fail.
   Returns the length of the whole text, without the NUL. */
CONC_API ssize_t conc_value_text(const conc_value *value, char *buf,
                                 size_t size);

/* Makes a value from a format, in the manner of Py_BuildValue.

     format      arguments                       makes
     N           none                            None
     p           int                             bool
     i l L n     int, long, long long, ssize_t   int
     I k K       unsigned, -long, -long long     int
     f d         double                          float
     s           const char *                    str; NULL gives None
     s#          const char *, size_t            str
     y           const char *                    bytes; NULL gives None
     y#          const void *, size_t            bytes
     O           const conc_value *              a copy of it
     (...)       those of the items              tuple
     [...]                                       list
     {...}       key, value, key, value          dict; the last of a key wins

   Blanks, commas and colons are skipped. One item is that item, several are a
   tuple, none is None: conc_build(&v, "{s:i,s:[dd]}", "id", 7, "at", x, y).
   *out is to be freed by conc_value_free.
   Returns 0. After an error *out is NULL.
   Errors:
   -EINVAL    the format is bad, a text is not UTF-8, an O is NULL, or a key is
              one that Python cannot hash
   -EMSGSIZE  the value would go beyond its limits (see >>value)
   -ENOMEM    there is no memory for the value */
CONC_API int conc_build(conc_value **out, const char *format, ...);

/* Takes a value apart by a format, in the manner of PyArg_ParseTuple. The
   format describes the value itself: "i" is an int, "(is)" a pair. Several
   items without brackets are a tuple, too.

     format      arguments                       takes
     N           none                            None, and nothing else
     p           int *                           bool
     i l L n     pointers to the C types         int, if the C type holds it
     I k K       that conc_build takes           (I k K: from 0)
     f d         float *, double *               float or int
     s           const char **                   str without NULs
     s#          const char **, size_t *         str
     y           const char **                   bytes without NULs
     y#          const void **, size_t *         bytes or bytearray
     O           const conc_value **             anything
     (...)       those of the items              tuple of that many items
     [...]                                       list of that many items
     {s:...}     const char *key, item's         dict that has these keys

   What s, y and O give points into the value: it need not be freed, and must
   not be used after the value was.
   Returns 0. After an error nothing has been written to any argument.
   Errors:
   -EINVAL  the value has another shape, or the format is bad
   -ERANGE  a number does not fit its C type */
CONC_API int conc_parse(const conc_value *value, const char *format, ...);

/* ---------------------------------------------------------------------------
   >>json: conc_json_dumps, conc_json_loads

   Threads    any number
   Processes  JSON is text: any process, any machine, may read it
   Signals    no
   Memory     the results are the caller's: conc_free, conc_value_free
   Blocks     never
   ------------------------------------------------------------------------ */

/* Writes a value as JSON (RFC 8259, UTF-8), as Python's json.dumps(value,
   ensure_ascii=False) does. `indent` 0 writes all on one line; with 1 to 100
   each item is on a line of its own, that many blanks deeper than what it is
   in. A tuple is written as a list; a lone surrogate as an escape; a float
   with the fewest digits that are read as the same float; an int with all of
   its digits. *out has a NUL behind its *size bytes, and is to be freed by
   conc_free; `size` may be NULL.
   Returns 0. After an error *out is NULL.
   Errors:
   -EINVAL  the value is NULL, the indent is bad, or JSON does not have such a
            value: bytes, bytearrays, sets, objects, a NaN, infinities, keys
            other than str
   -ENOMEM  there is no memory for the text */
CONC_API int conc_json_dumps(const conc_value *value, int indent, char **out,
                             size_t *size);

/* Makes a value of JSON. All of the `size` bytes must be one text of RFC 8259,
   in UTF-8 without a byte order mark. Numbers without a point and an exponent
   become ints, and lose no digit; others become the nearest float. Of equal
   keys the last one counts. An escape (\u) of half a surrogate pair becomes a
   lone surrogate. *out is to be freed by conc_value_free.
   Returns 0. After an error *out is NULL, and *where is how many bytes were
   read before what is wrong; `where` may be NULL.
   Errors:
   -EBADMSG   this is not JSON
   -EMSGSIZE  it goes beyond the limits of a value (see >>value): an int may
              have some 9,800 digits
   -ERANGE    a float is beyond all floats
   -ENOMEM    there is no memory for the value */
CONC_API int conc_json_loads(conc_value **out, const void *text, size_t size,
                             size_t *where);

/* ---------------------------------------------------------------------------
   >>pipe: conc_pipe

   Threads    any number, mixed with coroutines of any loops
   Processes  that is what a pipe is for: a forked child has the ends, too
   Signals    no; SIGPIPE is not raised
   Memory     the system's, until both descriptors are closed. A message of
              more than 32 KiB is in a file without a name until it is received
              (in memory, where there is CONC_HAVE_MEMFD)
   Blocks     send while the pipe is full, recv and poll while it is empty;
              with a timeout

   Messages keep their bounds. They have from 0 to SSIZE_MAX bytes, and each is
   sent as a whole or not at all. So any number of tasks and processes may send
   at one end, and be killed at any moment: a receiver gets whole messages,
   each of them once, in the order in which they were sent. If several receive
   at one end, the same is true as long as all of their buffers are large
   enough.
   An end is a descriptor; conc_wait_fd tells when it can be read.
   ------------------------------------------------------------------------ */

/* Makes a pipe: what one of its ends sends the other receives (Python's
   Pipe()). *a and *b are the descriptors, close-on-exec.
   Returns 0. After an error both are -1.
   Errors:
   -EMFILE           the process has too many descriptors
   -ENFILE           the system has too many
   -EPROTONOSUPPORT  the system has no SOCK_SEQPACKET */
CONC_API int conc_pipe(int *a, int *b);

/* Makes a pipe for one direction (Python's Pipe(False)): to send at the
   reader's end, or to receive at the writer's, is -EPIPE.
   Returns 0. After an error both are -1.
   Errors: as conc_pipe. */
CONC_API int conc_pipe_one_way(int *reader, int *writer);

/* Sends a message of `size` bytes (Python's Connection.send_bytes).
   Returns 0.
   Errors:
   -EPIPE      no process has the other end open any more
   -EMSGSIZE   `size` is above SSIZE_MAX
   -ETIMEDOUT  the pipe was full until then
   -ECANCELED  the wait was cancelled
   -ENOMEM     there is no memory for a long message
   -EMFILE     the process has no descriptor left for a long message
   -ENOSPC     there is no space left for a long message
   others      what sendmsg() fails with */
CONC_API int conc_send(int pipe, const void *data, size_t size,
                       double timeout);

/* Receives the oldest message, into the `size` bytes of buf (Python's
   Connection.recv_bytes). After -EBADMSG, -EMSGSIZE or -EMFILE the message is
   still there.
   Returns the size of the message.
   Errors:
   -EPIPE      nothing is left, and no process has the other end open; so close
               that end in each process that does not use it
   -EBADMSG    the message is a descriptor: see conc_recv_fd
   -EMSGSIZE   the message has more than `size` bytes
   -EPROTO     there was something that this library has not sent; it is gone
   -ETIMEDOUT  no message came in time
   -ECANCELED  the wait was cancelled
   -EMFILE     the process has no descriptor left for a long message
   others      what recvmsg() fails with */
CONC_API ssize_t conc_recv(int pipe, void *buf, size_t size, double timeout);

/* Waits for a message, and leaves it there (Python's Connection.poll).
   Returns the size of the message; 0 for a descriptor.
   Errors: as conc_recv, without -EBADMSG, -EMSGSIZE and -EMFILE. */
CONC_API ssize_t conc_poll(int pipe, double timeout);

/* Sends an open descriptor, as a message. It stays open here, too.
   Returns 0.
   Errors: as conc_send, and
   -EBADF  `fd` is not open */
CONC_API int conc_send_fd(int pipe, int fd, double timeout);

/* Receives a descriptor.
   Returns a new descriptor, close-on-exec, of the file that was sent.
   Errors: as conc_recv, without -EMSGSIZE, and
   -EBADMSG  the oldest message is no descriptor; it is still there
   -EMFILE   the process has too many descriptors; the message is still
             there */
CONC_API int conc_recv_fd(int pipe, double timeout);

/* Sends a typed value (Python's Connection.send).
   Returns 0.
   Errors: as conc_send and conc_pickle_dumps. */
CONC_API int conc_pipe_send_value(int pipe, const conc_value *value,
                                  double timeout);

/* Receives a typed value (Python's Connection.recv). *out is to be freed by
   conc_value_free.
   Returns 0. After an error *out is NULL.
   Errors: as conc_recv, without -EMSGSIZE; and as conc_pickle_loads: after
   these the message is gone, after -ENOMEM perhaps. */
CONC_API int conc_pipe_recv_value(int pipe, conc_value **out,
                                  double timeout);

/* ---------------------------------------------------------------------------
   >>queue: conc_queue

   Threads    any number, mixed with coroutines of any loops
   Processes  those that inherit a queue made with .shared; through a manager,
              any machine
   Signals    no
   Memory     the library's, until conc_queue_free; put copies a message, get
              copies it out
   Blocks     put while the queue is full, get while it is empty, and join:
              with a timeout. Of a manager's queue also conc_qsize and
              conc_task_done, until the manager answers
   ------------------------------------------------------------------------ */

/* A queue: of conc_queue_new, or of conc_manager_get. */
typedef struct conc_queue conc_queue;

/* The options of conc_queue_new; all defaults when zeroed. */
typedef struct conc_queue_opts {
  size_t capacity;  /* messages; default 0: no bound; if shared, 1,024 */
  size_t max_bytes; /* of one message; default 0: no bound; if shared,
                       65,536 */
  const char *name; /* for reports; must outlive the queue; default none. If
                       shared: by this name other processes find the queue */
  bool shared;      /* between processes, see below; default false */
  int backend;      /* of a shared queue: CONC_QUEUE_...; default 0: the first
                       that the system has */
} conc_queue_opts;

/* How a thread waits for a shared queue: on a word of its memory (_RING, where
   there are futexes), or in poll() for a pipe by which it is woken (_PIPE; an
   eventfd, if there is that). Coroutines always wait for the pipe. Named
   queues have no pipe; waiters poll every 2 ms instead. */
#define CONC_QUEUE_RING 1
#define CONC_QUEUE_PIPE 2

/* A shared queue is used by the process that made it, and by those that it
   forks afterwards (conc_process_start, too). Each of them frees it for
   itself. A shared queue with a name is also used by every process that makes
   one of the same name, .capacity and .max_bytes (see conc_shared_open). The
   messages in it are lost with the last of these processes.
   A process may be killed in any call. A message that it was putting is there
   if it was complete, or is not there. A message that it was getting either
   counts as received (if the call was about to return) or goes to another
   getter, possibly after later messages. Nothing else is lost, and no message
   is received twice. No waiter waits for a dead process for longer than some
   20 ms.
   Messages of one putter reach each getter in the order in which they were
   put. The memory is laid out for .capacity * .max_bytes, but a part of it
   that is never needed is never allocated. */

/* Makes a queue. `options` may be NULL: all defaults.
   Returns the queue, for conc_queue_free; or NULL, and errno.
   Errors:
   EINVAL  of a shared queue: .capacity or .max_bytes is 2 Gi or more, there is
           no such .backend, or the name belongs to something else
   ENOMEM  there is no memory for it
   EMFILE  of a shared queue: the process has too many descriptors
   ENFILE  of a shared queue: the system has too many
   others  of a shared queue with a name: what conc_shared_open fails with */
CONC_API conc_queue *conc_queue_new(const conc_queue_opts *options);

/* Frees a queue, with the messages in it. No task may use it any more; of a
   shared queue, no task of this process. NULL is a no-op; so is a client's
   queue of conc_manager_get, which belongs to the manager. */
CONC_API void conc_queue_free(conc_queue *queue);

/* Ends the puts of a queue (Python's Queue.shutdown). From now on they return
   -EPIPE; gets take the messages that are left, then return -EPIPE. To close
   it a second time is a no-op.
   Returns 0.
   Errors:
   -ENOTSUP  this is a client's queue of conc_manager_get */
CONC_API int conc_queue_close(conc_queue *queue);

/* Appends a message: a copy of the `size` bytes at `data`; 0 bytes are a
   message, too (Python's Queue.put).
   Returns 0.
   Errors:
   -EPIPE      the queue is closed
   -EMSGSIZE   the message has more than .max_bytes
   -ETIMEDOUT  the queue was full until then
   -ECANCELED  the wait was cancelled
   -ENOMEM     there is no memory for the message
   -ENOSPC     more than 1,024 processes use a shared queue
   others      of a manager's queue: see conc_manager_get */
CONC_API int conc_put(conc_queue *queue, const void *data, size_t size,
                      double timeout);

/* Takes the oldest message and copies it to the `size` bytes of buf (Python's
   Queue.get). After -EBADMSG and -EMSGSIZE the message is still there.
   Returns the size of the message.
   Errors:
   -EPIPE      the queue is closed, and no message is left
   -EBADMSG    the message is a typed value other than bytes or str:
               conc_get_value takes it
   -EMSGSIZE   the message has more than `size` bytes
   -ETIMEDOUT  the queue was empty until then
   -ECANCELED  the wait was cancelled
   -ENOSPC     more than 1,024 processes use a shared queue
   others      of a manager's queue: see conc_manager_get */
CONC_API ssize_t conc_get(conc_queue *queue, void *buf, size_t size,
                          double timeout);

/* Appends up to n messages of `size` bytes each, which lie one behind the
   other at `items`. It waits as conc_put does until there is room for one
   message; then it puts as many of them as there is room for, at once.
   Returns how many were put. After an error none was.
   Errors: as conc_put. */
CONC_API ssize_t conc_put_many(conc_queue *queue, const void *items,
                               size_t size, size_t n, double timeout);

/* Takes up to n messages of exactly `size` bytes each. It waits as conc_get
   does until there is one message; then it takes as many as there are, at
   once. A message of another size stays there, with all that are behind it.
   Returns how many were taken. After an error none was.
   Errors: as conc_get, and
   -EMSGSIZE  the first message has another size */
CONC_API ssize_t conc_get_many(conc_queue *queue, void *items, size_t size,
                               size_t n, double timeout);

/* Returns the size of the message that conc_get would return now. It never
   waits.
   Errors:
   -EPIPE      the queue is closed, and no message is left
   -EBADMSG    the message is a typed value other than bytes or str
   -ETIMEDOUT  the queue is empty
   -ENOTSUP    this is a client's queue of conc_manager_get */
CONC_API ssize_t conc_peek_size(conc_queue *queue);

/* Returns the number of messages (Python's Queue.qsize); of a shared queue
   including those that are being put or got at this moment.
   Errors: none; of a manager's queue: see conc_manager_get. */
CONC_API ssize_t conc_qsize(conc_queue *queue);

/* Says that one message that was got earlier has been dealt with: for
   conc_queue_join (Python's Queue.task_done).
   Returns 0.
   Errors:
   -EINVAL  it was called more often than messages were put
   others   of a manager's queue: see conc_manager_get */
CONC_API int conc_task_done(conc_queue *queue);

/* Waits until conc_task_done was called for every message that was ever put
   (Python's Queue.join).
   Returns 0.
   Errors:
   -ETIMEDOUT  not all messages were done in time
   -ECANCELED  the wait was cancelled
   others      of a manager's queue: see conc_manager_get */
CONC_API int conc_queue_join(conc_queue *queue, double timeout);

/* Appends a copy of a typed value, as conc_put does. A value of bytes is the
   same message as conc_put of these bytes.
   Returns 0.
   Errors: as conc_put and conc_pickle_dumps. */
CONC_API int conc_put_value(conc_queue *queue, const conc_value *value,
                            double timeout);

/* Takes the oldest message as a typed value. A message of conc_put comes as
   CONC_BYTES. *out is to be freed by conc_value_free.
   Returns 0. After an error *out is NULL.
   Errors: as conc_get, without -EBADMSG and -EMSGSIZE, and
   -ENOMEM  there is no memory for the value; the message is still there */
CONC_API int conc_get_value(conc_queue *queue, conc_value **out,
                            double timeout);

/* Does conc_build and conc_put_value in one: conc_put_build(q, 1.0, "(is)", 7,
   "seven").
   Returns 0.
   Errors: as conc_build and conc_put_value. */
CONC_API int conc_put_build(conc_queue *queue, double timeout,
                            const char *format, ...);

/* Does conc_get_value and conc_parse in one, for formats of numbers:
   conc_get_parse(q, 1.0, "i", &n).
   Returns 0.
   Errors: as conc_get_value, and
   -EINVAL  the message has another shape, and is consumed; or the format is
            one that would point into the value (s, y, O): then nothing is
            consumed
   -ERANGE  a number does not fit its C type; the message is consumed */
CONC_API int conc_get_parse(conc_queue *queue, double timeout,
                            const char *format, ...);

/* ---------------------------------------------------------------------------
   >>pool: conc_pool: jobs for processes or threads; conc_offload

   A job is a conc_task that one of the pool's workers runs: conc_join,
   conc_wait, conc_gather, conc_as_completed and conc_cancel take it. Its .arg
   points to .size bytes that are its input and its output. Workers that are
   processes get a copy of them, which is copied back when the job ends;
   threads get the pointer. So the caller's code is the same for both. If .size
   is 0, .arg is passed as it is, to processes too: it is a number in the place
   of a pointer (see conc_gen), or points to what was there when the pool
   started.

     conc_pool p = { .workers = 4 };
     conc_task job = { .target = square, .arg = &x, .size = sizeof x };
     conc_pool_start(&p);
     conc_pool_submit(&p, &job);
     conc_pool_close(&p);
     conc_pool_join(&p, CONC_FOREVER);

   Jobs of one submitter begin in the order in which they were submitted, or
   nearly so. A job of a thread may submit other jobs, even after
   conc_pool_close, and wait for them. While a job waits for tasks by
   conc_join, conc_wait, conc_gather or conc_as_completed, its thread runs
   other jobs, on the same stack; so the job should not hold a lock that these
   want. A time limit of the job does not end the other jobs. Coroutines and
   generators inside a job wait without running other jobs.

   Threads    from anywhere; but start while no other task uses the pool, and
              join while no other call for it is under way
   Processes  no: in a child of the process that started it, a pool has ended,
              and its jobs with -ECHILD. So jobs of processes cannot submit to
              their pool
   Signals    no
   Memory     the struct is the caller's, zeroed first, until conc_pool_join
              has returned 0; the jobs are the caller's, until joined
   Blocks     apply, join and the next of an imap, with a timeout; map and the
              end of an imap, until the jobs have ended; conc_offload; the
              others never. (To start a process flushes stdio: see
              conc_process_start)
   ------------------------------------------------------------------------ */

enum {
  CONC_PROCESS, /* Python's multiprocessing.Pool */
  CONC_THREAD   /* Python's multiprocessing.pool.ThreadPool */
};

/* A pool of workers; all defaults when zeroed. */
typedef struct conc_pool {
  int kind;             /* CONC_PROCESS (default) or CONC_THREAD */
  size_t workers;       /* how many; default 0: conc_cpu_count(); of processes
                           at most 4,096 */
  conc_fn *initializer; /* each worker calls it first; default none */
  void *initializer_arg; /* its argument; yours; default NULL */
  size_t stack_size;    /* of a worker that is a thread; bytes; default 0: the
                           system's */
  size_t chunk;         /* how many items conc_pool_map hands out at a time, to
                           processes at most 1 MiB; default 0: each worker
                           gets four chunks */
  /* The following are for processes. */
  size_t max_tasks_per_worker; /* after this number of jobs a worker is
                                  replaced; default 0: never */
  double timeout;       /* seconds that a job may run; after them its worker is
                           killed, and the job has failed, by -ETIMEDOUT;
                           default 0: no limit */
  unsigned retries;     /* how often a job is run again if its worker died;
                           after that it has failed, by -ECHILD; default 0 */
  size_t max_bytes;     /* of memory for the arguments of jobs that wait or
                           run, allocated as it is used; default 0: 256 MiB */
  /* private */
  struct conc__pool_data *state; /* NULL: not started */
} conc_pool;

/* Starts the workers.
   Returns 0.
   Errors:
   -EINVAL  there is no such .kind, or there are too many .workers
   -EBUSY   the pool has been started
   -EAGAIN  the system has no room for another process or thread
   -ENOMEM  there is no memory for the pool
   -EMFILE  the process has too many descriptors */
CONC_API int conc_pool_start(conc_pool *pool);

/* Hands in a job (Python's apply_async). It runs once (but see .retries), when
   a worker is free. What other calls mean for it:

     conc_join     returns 0; -ECANCELED if the job was cancelled; what it has
                   set by conc_set_status; -ECHILD if its worker died
                   (conc_exitcode tells how); -ETIMEDOUT if it ran for longer
                   than .timeout. If a worker died or was killed, nothing has
                   been copied back
     conc_cancel   if the job has not begun, it never runs; if it runs in a
                   thread, it is cancelled as any task is; if it runs in a
                   process, its worker is killed
     conc_result   what the target has returned; if that was in a process: a
                   number, or an address that means something only there

   Returns 0.
   Errors:
   -EINVAL    the job has no target, or the pool has not been started
   -EBUSY     the job runs already
   -EPIPE     the pool has been closed (its own jobs may still submit)
   -EMSGSIZE  the job's .size is above .max_bytes
   -ECHILD    the pool belongs to another process; or its workers die before
              they begin
   -ENOMEM    the caller is a job, and there is no memory for another one */
CONC_API int conc_pool_submit(conc_pool *pool, conc_task *job);

/* Submits a job and waits for its end (Python's apply). If it has not ended in
   time, or the caller is cancelled, the job runs on.
   Returns what conc_join returns for the job.
   Errors: as conc_pool_submit and conc_join. */
CONC_API int conc_pool_apply(conc_pool *pool, conc_task *job, double timeout);

/* Runs fn(item) for each of n items of `size` bytes, in place, in chunks
   (Python's map). Waits until all have ended. Allocates some 250 bytes for
   each chunk.
   Returns 0; or the first failure.
   Errors: as conc_pool_submit, and
   -EINVAL     `size` is 0, or fn is NULL
   -ETIMEDOUT  a chunk ran for longer than .timeout: its items are as they were
   -ECANCELED  the caller was cancelled, or the pool was terminated; then the
               items that had not begun are left out
   -ECHILD     a worker died: the items of its chunk are as they were */
CONC_API int conc_pool_map(conc_pool *pool, conc_fn *fn, void *items,
                           size_t size, size_t n);

/* Returns the items of an array one by one, as they are done. All calls are
   made by the same task.

     conc_imap it;
     void *item;
     conc_pool_imap(&it, &p, square, numbers, sizeof *numbers, n);
     while (conc_imap_next(&it, &item, CONC_FOREVER) == 0) use(item);
     conc_imap_end(&it);
*/
typedef struct conc_imap {
  /* private */
  struct conc_task *jobs;   /* n of them, one for each item; NULL: ended */
  size_t n, told;           /* how many; how many were returned */
  conc_completed completed; /* if unordered: which of them end */
  bool unordered;
} conc_imap;

/* Begin fn(item) for each of n items of `size` bytes, in place (Python's imap
   and imap_unordered). conc_imap_next returns the items in their order; or,
   unordered, in the order in which they end. conc_pool_imap allocates some 250
   bytes for each item, conc_pool_imap_unordered 400.
   Return 0. After an error there is nothing to end: jobs that had been
   submitted were cancelled and have ended.
   Errors: as conc_pool_submit, and
   -EINVAL  fn is NULL */
CONC_API int conc_pool_imap(conc_imap *imap, conc_pool *pool, conc_fn *fn,
                            void *items, size_t size, size_t n);
CONC_API int conc_pool_imap_unordered(conc_imap *imap, conc_pool *pool,
                                      conc_fn *fn, void *items, size_t size,
                                      size_t n);

/* Waits for the next item. *item is that item, also if its job has failed; if
   the wait fails, it is NULL.
   Returns 0; or the failure of the item's job: there may be more items then.
   Errors:
   -EPIPE      there are no more items
   -ETIMEDOUT  no item was done in time; it may be called again
   -ECANCELED  the wait was cancelled; it may be called again */
CONC_API int conc_imap_next(conc_imap *imap, void **item, double timeout);

/* Ends it early: cancels the jobs that are left, and waits for their ends.
   After -EPIPE it is a no-op. */
CONC_API void conc_imap_end(conc_imap *imap);

/* Closes the pool: conc_pool_submit returns -EPIPE from now on. The workers
   end when all jobs are done.
   Returns 0.
   Errors:
   -EINVAL  the pool has not been started */
CONC_API int conc_pool_close(conc_pool *pool);

/* Closes the pool and ends its jobs at once. Jobs that have not begun end with
   -ECANCELED; jobs that run are cancelled, as by conc_cancel.
   Returns 0.
   Errors: as conc_pool_close. */
CONC_API int conc_pool_terminate(conc_pool *pool);

/* Waits until the workers have ended, after conc_pool_close or
   conc_pool_terminate, and frees the memory of the pool. It may be started
   again then.
   Returns 0.
   Errors:
   -EINVAL     the pool has not been started, or not been closed
   -EDEADLK    the caller is one of its jobs
   -ETIMEDOUT  the workers have not ended in time; it may be called again
   -ECANCELED  the wait was cancelled; it may be called again */
CONC_API int conc_pool_join(conc_pool *pool, double timeout);

/* Runs fn(arg) in a thread while the calling coroutine waits: for functions
   that block and know nothing of coroutines (Python's asyncio.to_thread).
   Outside of coroutines fn is called right here; also if there is no memory
   for a thread. A conc_cancel of the caller reaches fn, as if fn was called
   here; the call does not end before fn has returned. The threads are shared
   by all callers, made when they are needed, and stay: up to 32, but at most 4
   more than there are CPUs.
   Returns what fn returns. */
CONC_API void *conc_offload(conc_fn *fn, void *arg);

/* ---------------------------------------------------------------------------
   >>manager: queues over the network

   A manager serves queues by name to every client that knows its key; or it is
   such a client. Both sides speak the protocol of Python's
   multiprocessing.managers, so either may be Python (2.7, 3.6 and later).

   Threads    any number, mixed with coroutines of any loops
   Processes  that is what a manager is for
   Signals    no
   Memory     the struct is the caller's, zeroed first, from start or connect
              until shutdown; strings and queues must outlive that
   Blocks     connect, and the calls of a queue, with a timeout; get, of a
              client, for at most .handshake_timeout; shutdown, for about a
              second (of a client: for each queue); serve_forever
   ------------------------------------------------------------------------ */

/* A server, or a client: the same struct. */
typedef struct conc_manager {
  const char *address;      /* of a server: as conc_listen takes it; default
                               loopback, any port. Of a client: as conc_connect
                               takes it; required */
  const void *authkey;      /* the shared key; default empty */
  size_t authkey_size;      /* its bytes; default 0: strlen(authkey) */
  bool require_sha256;      /* refuse MD5, and so Python up to 3.11; default
                               false */
  size_t max_message;       /* bytes of one request or reply; default 64 MiB */
  size_t max_clients;       /* connections at one time; default 0: no bound */
  double handshake_timeout; /* seconds to authenticate in; default 5 */
  /* private */
  struct conc__manager_data *state; /* NULL: none of its calls was made */
} conc_manager;

/* Serves a queue under a name: the name that Python's register() has given it
   and that clients call (get_task_queue). The call may come before the start,
   or at any time while the manager serves. The queue stays the caller's; the
   name is copied.
   Returns 0.
   Errors:
   -EINVAL  there is no name, or no queue
   -EEXIST  a queue is served under that name already
   -ENOMEM  there is no memory for the name */
CONC_API int conc_manager_register_queue(conc_manager *manager,
                                         const char *name, conc_queue *queue);

/* Listens at .address, and serves in a thread of its own (Python's start).
   Returns 0.
   Errors: as conc_listen, and
   -EBUSY   the manager has been started, or is connected
   -EAGAIN  the system has no room for another thread
   -ENOMEM  there is no memory for it */
CONC_API int conc_manager_start(conc_manager *manager);

/* Listens and serves as conc_manager_start does, and waits until
   conc_manager_shutdown, or a client's request, ends that (Python's
   serve_forever).
   Returns 0.
   Errors: as conc_manager_start, and
   -ECANCELED  the caller was cancelled; the manager serves on, until
               conc_manager_shutdown */
CONC_API int conc_manager_serve_forever(conc_manager *manager);

/* Becomes a client of the manager at .address (Python's connect).
   Returns 0.
   Errors: as conc_connect, and
   -EBUSY   the manager has been started, or is connected
   -EACCES  the keys differ (on either side)
   -EPROTO  what answers there is no manager
   -ENOMEM  there is no memory for it */
CONC_API int conc_manager_connect(conc_manager *manager, double timeout);

/* Finds the queue of that name. In a client that is a proxy for the server's
   queue; it belongs to the manager, and lives until conc_manager_shutdown. In
   the serving process it is the registered queue itself. Either is used like
   any other queue.
   Each call of a proxy is one request to the server. Calls at the same time
   use several connections; if a connection is lost, the next call makes a new
   one. If a get runs out of memory, or is cancelled while its reply arrives,
   the message is kept and returned by the next get. If the server does not
   answer, a call may last up to 5 s longer than its timeout. A call that is
   cancelled may or may not have been carried out. Besides the errors of every
   queue, a call of a proxy may return those of conc_manager_connect, and

     -EPIPE       the connection was lost, or the server's queue is closed; if
                  it was lost, the call may or may not have been carried out
     -EMSGSIZE    the reply is larger than .max_message
     -EPROTO      the server has not understood the request, or the client not
                  the reply
     -EACCES      the message is an instance of a Python class; it is lost
     -ECONNRESET  the connection was lost, as with -EPIPE

   Returns the queue; or NULL, and errno.
   Errors:
   EINVAL  the manager neither serves nor is connected; or the name has more
           than 63 bytes
   ENOENT  the manager has no queue of that name
   others  what conc_manager_connect fails with */
CONC_API conc_queue *conc_manager_get(conc_manager *manager,
                                      const char *name);

/* Returns where a server listens: "127.0.0.1:40123", with the port that the
   system has chosen. Valid until conc_manager_shutdown. NULL if the manager
   does not serve. */
CONC_API const char *conc_manager_address(const conc_manager *manager);

/* Ends a server or a client. A server stops listening, answers the requests
   that are under way, cancels those that wait in a queue, and ends. A client
   drops its connections and its queues. All that the manager owns is freed,
   and registered names are forgotten; then the struct may be used again.
   Returns 0.
   Errors:
   -EINVAL  the manager neither serves nor is connected, and no queue is
            registered */
CONC_API int conc_manager_shutdown(conc_manager *manager);

/* ---------------------------------------------------------------------------
   >>extras: conc_progress

   Threads    any number, mixed with coroutines of any loops
   Processes  no
   Signals    no
   Memory     the caller's, valid when zeroed; nothing is allocated
   Blocks     one task at a time, while it writes a line; the others never
   ------------------------------------------------------------------------ */

/* Shows how far something has come (Python's tqdm).

     conc_progress p = { .total = n, .name = "pages" };
     conc_progress_update(&p, 0);
     while (conc_completed_next(&c, &t) == 0) conc_progress_update(&p, 1);
     conc_progress_close(&p);

   On a terminal it is a line that is written again and again, as wide as the
   terminal:
     pages:  42%|########4           | 42/100 [00:01<00:02, 28.00it/s]
   It shows what is done, the time since the first update, the time that is
   left, and the latest rate. Elsewhere, for example in a log, a new line is
   written now and then. */
typedef struct conc_progress {
  size_t total;     /* steps; default 0: not known, so there is no bar */
  const char *name; /* stands in front; default none */
  const char *unit; /* of a step; default "it" */
  int fd;           /* the line is written there; default 0: standard error */
  bool off;         /* nothing is written; default false */
  double interval;  /* seconds from line to line; default 0.1 on a terminal,
                       10 elsewhere */
  size_t width;     /* columns; default: the terminal's */
  /* private */
  size_t done;           /* steps */
  unsigned busy;         /* a task looks whether to write, or writes */
  double start, next;    /* when it began; when the next line is due */
  double shown_at, rate; /* when the last line was written; the latest rate, 0:
                            not known */
  size_t shown;          /* steps in the last line */
} conc_progress;

/* Says that n more steps are done, and writes a line if one is due.
   Returns 0.
   Errors: what write() fails with. */
CONC_API int conc_progress_update(conc_progress *progress, size_t n);

/* Writes the last line, with the rate of all steps, and ends it. No other task
   may update meanwhile. The struct is as new then.
   Returns 0.
   Errors: what write() fails with. */
CONC_API int conc_progress_close(conc_progress *progress);

/* ---------------------------------------------------------------------------
   >>index: every public name, by section; a type with its fields

   platform   CONC_VERSION_MAJOR CONC_VERSION_MINOR CONC_VERSION_PATCH
             CONC_VERSION CONC_FOREVER conc_version conc_strerror conc_now
             conc_cpu_count conc_free
   deadlock   conc_deadlock_report
   lock       conc_lock (.name) conc_lock_acquire conc_lock_release
             conc_lock_locked conc_lock_init_shared conc_on_lock_order
             conc_rlock (.lock) conc_rlock_acquire conc_rlock_release
             conc_rlock_init_shared conc_rwlock (.name)
             conc_rwlock_read_acquire conc_rwlock_write_acquire
             conc_rwlock_release conc_rwlock_init_shared conc_once (.name)
             conc_once_run conc_once_init_shared
   event      conc_event (.name) conc_event_set conc_event_clear
             conc_event_is_set conc_event_wait conc_event_init_shared conc_cond
             (.name) conc_cond_wait conc_cond_wait_for conc_cond_notify
             conc_cond_notify_all conc_cond_init_shared conc_sem (.value .bound
             .name) conc_sem_acquire conc_sem_release conc_sem_value
             conc_sem_init_shared conc_barrier (.parties .action .arg .name)
             conc_barrier_wait conc_barrier_reset conc_barrier_abort
             conc_barrier_broken conc_barrier_n_waiting
             conc_barrier_init_shared CONC_WITH CONC_WITH_READ CONC_WITH_WRITE
   task       conc_fn conc_task (.target .arg .name .size .stack_size .daemon
             .start_method .callback) conc_join conc_result conc_is_alive
             conc_cancel conc_set_status conc_current conc_name CONC_FIRST
             CONC_FIRST_FAILURE CONC_ALL conc_wait conc_gather conc_completed
             conc_as_completed conc_completed_next conc_completed_end
             conc_scope conc_timeout conc_shield conc_scope_end conc_group
             conc_group_start conc_group_leave
   generator  conc_gen (.target .arg .stack_size) conc_gen_next conc_gen_send
             conc_yield conc_yield_from conc_gen_close conc_gen_result
   local      CONC_SCOPE_THREAD CONC_SCOPE_TASK conc_local (.scope .destructor
             .copy) conc_local_set conc_local_get conc_local_has
             conc_local_delete conc_local_free conc_attribute
             conc_local_attribute conc_attribute_get conc_attribute_set
   thread     conc_thread_start
   loop       conc_run conc_coro_start conc_stack_used conc_report_overflow
             conc_sleep conc_yield_now
   io         CONC_READ CONC_WRITE conc_wait_fd conc_read conc_write
             conc_read_exactly conc_close conc_listen conc_accept conc_serve
             conc_connect conc_address conc_datagram_open conc_datagram_send
             conc_datagram_receive conc_stream (.fd .high_water)
             conc_stream_read conc_stream_read_exactly conc_stream_read_until
             conc_stream_read_line conc_stream_write conc_stream_flush
             conc_stream_close conc_block_signals conc_wait_signal
   ipc        conc_shared_alloc conc_shared_open conc_shared_free
   process    CONC_FORK CONC_SPAWN CONC_NO_EXITCODE conc_process_start conc_pid
             conc_exitcode conc_terminate conc_kill conc_main
             CONC_PROCESS_TARGET conc_process_register
   popen      CONC_PIPE CONC_DEVNULL CONC_STDOUT conc_popen (.task .argv .env
             .cwd .std_in .std_out .std_err .in_file .out_file .err_file
             .new_group .kill_on_timeout .in .out .err) conc_output (.data
             .size) conc_popen_start conc_popen_wait conc_popen_poll
             conc_communicate conc_popen_close conc_call conc_check_output
   value      conc_type CONC_NONE CONC_BOOL CONC_INT CONC_BIGINT CONC_FLOAT
             CONC_STR CONC_BYTES CONC_BYTEARRAY CONC_LIST CONC_TUPLE CONC_DICT
             CONC_SET CONC_FROZENSET CONC_OBJECT conc_value conc_value_free
             conc_value_type conc_value_int conc_value_float conc_value_bool
             conc_value_str conc_value_bytes conc_value_size conc_value_item
             conc_value_key conc_value_get conc_value_equal
   pickle     conc_pickle_dumps conc_pickle_loads
   format     conc_value_text conc_build conc_parse
   json       conc_json_dumps conc_json_loads
   pipe       conc_pipe conc_pipe_one_way conc_send conc_recv conc_poll
             conc_send_fd conc_recv_fd conc_pipe_send_value
             conc_pipe_recv_value
   queue      conc_queue conc_queue_opts (.capacity .max_bytes .name .shared
             .backend) CONC_QUEUE_RING CONC_QUEUE_PIPE conc_queue_new
             conc_queue_free conc_queue_close conc_put conc_get conc_put_many
             conc_get_many conc_peek_size conc_qsize conc_task_done
             conc_queue_join conc_put_value conc_get_value conc_put_build
             conc_get_parse
   pool       CONC_PROCESS CONC_THREAD conc_pool (.kind .workers .initializer
             .initializer_arg .stack_size .chunk .max_tasks_per_worker .timeout
             .retries .max_bytes) conc_pool_start conc_pool_submit
             conc_pool_apply conc_pool_map conc_imap conc_pool_imap
             conc_pool_imap_unordered conc_imap_next conc_imap_end
             conc_pool_close conc_pool_terminate conc_pool_join conc_offload
   manager    conc_manager (.address .authkey .authkey_size .require_sha256
             .max_message .max_clients .handshake_timeout)
             conc_manager_register_queue conc_manager_start
             conc_manager_serve_forever conc_manager_connect conc_manager_get
             conc_manager_address conc_manager_shutdown
   extras     conc_progress (.total .name .unit .fd .off .interval .width)
             conc_progress_update conc_progress_close
   ------------------------------------------------------------------------ */

/* ---------------------------------------------------------------------------
   >>version

   A new PATCH mends. A new MINOR adds, and breaks nothing. A new MAJOR may
   break programs; while MAJOR is 0, a new MINOR may do so, too, and says so
   here. The newest version comes first:

   0.2.0  2026-11-29  Breaks: conc_guard_handler is now conc_report_overflow,
                      conc_next is conc_gen_next, conc_send_value is
                      conc_gen_send. The manual is written in plainer English,
                      with a list of errors for each function. The
                      implementation is laid out anew, in smaller sections:
                      nothing below the public names is compatible.
   0.1.0  2026-11-21  The first: threads, coroutines, generators, a loop with
                      streams, datagrams and signals; locks; processes and
                      programs, pools, pipes, shared memory; queues between
                      all of them; values, JSON, pickle; manager; progress.
   ------------------------------------------------------------------------ */

#ifndef CONC_STATIC
/* Files that were compiled against different versions of conc.h must not be
   linked: each refers to a symbol that only the implementation of its own
   version defines. */
extern const int conc__version_0_2_0;
static const int *const conc__version_check __attribute__((used)) =
    &conc__version_0_2_0;
#endif

#ifdef __cplusplus
}
#endif

#endif /* CONC_H */

/* ===========================================================================
   The implementation
   ======================================================================== */

#if defined(CONC_IMPLEMENTATION) && !defined(CONC__IMPLEMENTED)
#define CONC__IMPLEMENTED

/* ---------------------------------------------------------------------------
   >>platform: what this compiler and system have, decided once

   Each CONC_HAVE_... is 0 or 1 and may be defined beforehand to force either
   way; below this section nothing asks for a platform by name.
   ------------------------------------------------------------------------ */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#define CONC__HAS_FEATURE(x) __has_feature(x)
#else
#define CONC__HAS_FEATURE(x) 0
#endif

/* tcc 0.9.27 has no atomics and no thread-local variables. It is told here how
   to do without, which costs speed. */
#if defined(__TINYC__) && !defined(__ATOMIC_RELAXED)
#define CONC__TCC 1
#else
#define CONC__TCC 0
#endif

/* Linux and not asked to do without it (tcc has read its structs wrongly). */
#if defined(__linux__) && !defined(CONC_PORTABLE) && !CONC__TCC
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#define CONC__LINUX 1
#else
#define CONC__LINUX 0
#endif

#if !defined(CLOCK_MONOTONIC) || !defined(AI_PASSIVE) || \
    (CONC__LINUX && !defined(F_SETSIG))
#error "conc.h: a system header came before it and hides what it needs; \
include conc.h with CONC_IMPLEMENTATION first, or compile with -D_GNU_SOURCE"
#endif

/* Sleeping on a word of memory: Linux 2.6.28. Otherwise a hashed table of
   mutexes and conditions. */
#ifndef CONC_HAVE_FUTEX
#define CONC_HAVE_FUTEX CONC__LINUX
#endif

/* A poller whose cost does not grow with the idle descriptors: epoll, Linux
   2.6.27, or kqueue, the BSDs and macOS. Otherwise poll(). */
#ifndef CONC_HAVE_EPOLL
#define CONC_HAVE_EPOLL CONC__LINUX
#endif
#ifndef CONC_HAVE_KQUEUE
#if !defined(CONC_PORTABLE) && \
    (defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || \
     defined(__OpenBSD__) || defined(__DragonFly__))
#define CONC_HAVE_KQUEUE 1
#else
#define CONC_HAVE_KQUEUE 0
#endif
#endif
#if CONC_HAVE_KQUEUE
#include <sys/event.h>
#endif

/* A counter as a descriptor, to wake a poller: Linux 2.6.27. Otherwise a
   pipe. */
#ifndef CONC_HAVE_EVENTFD
#define CONC_HAVE_EVENTFD CONC__LINUX
#endif

/* Descriptors that are close-on-exec and non-blocking from birth (accept4,
   SOCK_CLOEXEC): Linux 2.6.28, the BSDs, POSIX 2024. Otherwise fcntl
   right afterwards, with a window in which a fork inherits them. */
#ifndef CONC_HAVE_CLOEXEC
#define CONC_HAVE_CLOEXEC CONC__LINUX
#endif

/* getrandom(): Linux 3.17, glibc 2.25. Otherwise /dev/urandom. */
#ifndef CONC_HAVE_GETRANDOM
#define CONC_HAVE_GETRANDOM CONC__LINUX
#endif

/* Guard pages inside one mapping (MADV_GUARD_INSTALL): Linux 6.13, asked for
   at run time. Otherwise mprotect, which splits the mapping, and the kernel
   allows some 65,000 mappings. */
#ifndef CONC_HAVE_GUARD_INSTALL
#define CONC_HAVE_GUARD_INSTALL CONC__LINUX
#endif

/* A process as a descriptor: Linux 5.3, asked for at run time. Otherwise a
   thread for each process waits for its end. */
#ifndef CONC_HAVE_PIDFD
#ifdef SYS_pidfd_open
#define CONC_HAVE_PIDFD CONC_HAVE_EPOLL
#else
#define CONC_HAVE_PIDFD 0
#endif
#endif

/* posix_spawn() that can change the directory: glibc 2.29. Otherwise fork()
   and exec(), whose cost grows with the memory in use. */
#ifndef CONC_HAVE_SPAWN
#if CONC__LINUX && defined(__GLIBC__)
#define CONC_HAVE_SPAWN __GLIBC_PREREQ(2, 29)
#else
#define CONC_HAVE_SPAWN 0
#endif
#endif

/* Pipes whose room can be changed (F_SETPIPE_SZ): Linux. */
#ifndef CONC_HAVE_PIPE_SIZE
#define CONC_HAVE_PIPE_SIZE CONC__LINUX
#endif
#define CONC__PIPE_SIZE 65536     /* bytes that they hold at first */
#define CONC__PIPE_WIDE (1 << 20) /* and without privileges at most */

/* A descriptor that kills when its pipe closes (F_SETSIG): Linux. Otherwise
   a thread of a daemon waits for that. */
#ifndef CONC_HAVE_SETSIG
#define CONC_HAVE_SETSIG CONC__LINUX
#endif

/* Thread-local variables of the compiler (__thread). Otherwise POSIX's, and
   there is no way on for a thread that gets no memory for them. */
#ifndef CONC_HAVE_THREAD_LOCAL
#define CONC_HAVE_THREAD_LOCAL !CONC__TCC
#endif

/* Pending signals as a descriptor: Linux 2.6.27. Otherwise looked for now and
   then. */
#ifndef CONC_HAVE_SIGNALFD
#define CONC_HAVE_SIGNALFD CONC__LINUX
#endif
#if CONC_HAVE_SIGNALFD
#include <sys/signalfd.h>
#endif

/* The width of a terminal (TIOCGWINSZ): everywhere, but not in POSIX before
   2024. Otherwise 80. */
#ifndef CONC_HAVE_WINSIZE
#ifdef CONC_PORTABLE
#define CONC_HAVE_WINSIZE 0
#else
#define CONC_HAVE_WINSIZE 1
#endif
#endif
#if CONC_HAVE_WINSIZE
#include <sys/ioctl.h>
#endif

/* A file that is nowhere but in memory: Linux 3.17. Otherwise in /tmp. */
#ifndef CONC_HAVE_MEMFD
#define CONC_HAVE_MEMFD CONC__LINUX /* glibc has no function for it */
#endif

/* A fence that all threads of the process pass at once: Linux 4.14, asked for
   at run time. Otherwise each passes its own. */
#ifndef CONC_HAVE_MEMBARRIER
#ifdef SYS_membarrier
#define CONC_HAVE_MEMBARRIER CONC__LINUX
#else
#define CONC_HAVE_MEMBARRIER 0
#endif
#endif
#define CONC__MEMBARRIER_EXPEDITED 8 /* private */
#define CONC__MEMBARRIER_REGISTER 16

/* The coroutine switch in assembly, for CPUs that this file knows. Otherwise
   ucontext. */
#ifndef CONC_HAVE_SWITCH_ASM
#if !defined(CONC_PORTABLE) && !defined(CONC_USE_UCONTEXT) && \
    (defined(__x86_64__) || defined(__aarch64__)) && !defined(__ILP32__) && \
    !CONC__TCC
#define CONC_HAVE_SWITCH_ASM 1
#else
#define CONC_HAVE_SWITCH_ASM 0
#endif
#endif
#if !CONC_HAVE_SWITCH_ASM
#include <ucontext.h>
#endif

/* Tools that must be told when the stack is switched. */
#ifndef CONC_HAVE_ASAN
#if defined(__SANITIZE_ADDRESS__) || CONC__HAS_FEATURE(address_sanitizer)
#define CONC_HAVE_ASAN 1
#else
#define CONC_HAVE_ASAN 0
#endif
#endif
#ifndef CONC_HAVE_TSAN
#if defined(__SANITIZE_THREAD__) || CONC__HAS_FEATURE(thread_sanitizer)
#define CONC_HAVE_TSAN 1
#else
#define CONC_HAVE_TSAN 0
#endif
#endif
#ifndef CONC_HAVE_VALGRIND
#if CONC__LINUX && (defined(__x86_64__) || defined(__aarch64__)) && \
    !CONC_HAVE_ASAN && !CONC_HAVE_TSAN
#define CONC_HAVE_VALGRIND 1
#else
#define CONC_HAVE_VALGRIND 0
#endif
#endif

#if defined(CONC_MALLOC) && defined(CONC_REALLOC) && defined(CONC_FREE)
#elif defined(CONC_MALLOC) || defined(CONC_REALLOC) || defined(CONC_FREE)
#error "conc.h: define all of CONC_MALLOC, CONC_REALLOC, CONC_FREE, or none"
#else
#define CONC_MALLOC(size) malloc(size)
#define CONC_REALLOC(memory, size) realloc((memory), (size))
#define CONC_FREE(memory) free(memory)
#endif

#ifndef CONC_STACK_SIZE
#define CONC_STACK_SIZE 65536
#endif
#ifndef CONC_SPIN_SECONDS
#define CONC_SPIN_SECONDS 50e-6
#endif

/* What is private is static, and used or not as the configuration has it. */
#define CONC__PRIVATE static __attribute__((unused))
#define CONC__INLINE static inline __attribute__((always_inline, unused))
#define CONC__NOINLINE static __attribute__((noinline, unused))
#define CONC__LIKELY(x) __builtin_expect(!!(x), 1)
#define CONC__UNLIKELY(x) __builtin_expect(!!(x), 0)

#if CONC__TCC
/* What gcc and clang build in. tcc compiles each statement by itself: memory
   is read and written as the program says, and x86 keeps loads in order, and
   stores. So a plain load acquires; a store is an exchange, in full order. */
#ifndef __x86_64__
#error "conc.h: this tcc has no atomics for this CPU; use gcc or clang"
#endif
#define __ATOMIC_RELAXED 0
#define __ATOMIC_ACQUIRE 2
#define __ATOMIC_RELEASE 3
#define __ATOMIC_ACQ_REL 4
#define __ATOMIC_SEQ_CST 5
static int conc__tcc_cas(void *p, void *expected, uint64_t new_value,
                         size_t size) {
  uint64_t old = 0, found;
  memcpy(&old, expected, size);
  found = old;
  if (size == 1)
    __asm__ __volatile__("lock; cmpxchgb %b2, (%1)"
                         : "=a"(found)
                         : "r"(p), "q"(new_value), "0"(old)
                         : "memory");
  else if (size == 4)
    __asm__ __volatile__("lock; cmpxchgl %k2, (%1)"
                         : "=a"(found)
                         : "r"(p), "r"(new_value), "0"(old)
                         : "memory");
  else
    __asm__ __volatile__("lock; cmpxchgq %2, (%1)"
                         : "=a"(found)
                         : "r"(p), "r"(new_value), "0"(old)
                         : "memory");
  if (memcmp(&found, &old, size) == 0) return 1;
  memcpy(expected, &found, size);
  return 0;
}
/* Does what C does by `operation`, and returns what was there before. */
static uint64_t conc__tcc_update(void *p, char operation, uint64_t v,
                                 size_t size) {
  uint64_t old = 0, next;
  memcpy(&old, p, size);
  do {
    next = operation == '+'   ? old + v
           : operation == '&' ? old & v
           : operation == '|' ? old | v
                              : v;
  } while (!conc__tcc_cas(p, &old, next, size));
  return old;
}
#define CONC__TCC_UPDATE(p, o, v)                                           \
  ((__typeof__(*(p)))conc__tcc_update((void *)(p), (o), (uint64_t)(v),      \
                                      sizeof *(p)))
#define __atomic_load_n(p, order) (*(volatile __typeof__(*(p)) *)(p))
#define __atomic_store_n(p, v, order) ((void)CONC__TCC_UPDATE(p, '=', v))
#define __atomic_load(p, v, order) \
  ((void)(*(v) = *(volatile __typeof__(*(p)) *)(p)))
#define __atomic_store(p, v, order) \
  ((void)(*(volatile __typeof__(*(p)) *)(p) = *(v)))
#define __atomic_exchange_n(p, v, order) CONC__TCC_UPDATE(p, '=', v)
#define __atomic_fetch_add(p, v, order) CONC__TCC_UPDATE(p, '+', v)
#define __atomic_fetch_sub(p, v, order) CONC__TCC_UPDATE(p, '+', -(v))
#define __atomic_add_fetch(p, v, order) (CONC__TCC_UPDATE(p, '+', v) + (v))
#define __atomic_sub_fetch(p, v, order) (CONC__TCC_UPDATE(p, '+', -(v)) - (v))
#define __atomic_fetch_and(p, v, order) CONC__TCC_UPDATE(p, '&', v)
#define __atomic_fetch_or(p, v, order) CONC__TCC_UPDATE(p, '|', v)
#define __atomic_compare_exchange_n(p, e, v, weak, order, failed) \
  conc__tcc_cas((void *)(p), (e), (uint64_t)(v), sizeof *(p))
#define __atomic_thread_fence(order) \
  __asm__ __volatile__("mfence" ::: "memory")
#define __builtin_ia32_pause() __asm__ __volatile__("rep; nop" ::: "memory")
#define __builtin_prefetch(...) ((void)0)
static int conc__tcc_ctz(uint64_t x) {
  int n = 0;
  for (; (x & 1) == 0; x >>= 1) n++;
  return n;
}
#define __builtin_ctz(x) conc__tcc_ctz(x)
#define __builtin_ctzll(x) conc__tcc_ctz(x)
#endif

/* What must be true here, whatever a caller, a peer or a file does: an error
   in this file if not. Tests define CONC_CHECKED; without it nothing is looked
   at. */
#ifdef CONC_CHECKED
#define CONC__CHECK(expr)                                                     \
  ((expr) ? (void)0 : conc__check_failed(#expr, __FILE__, __LINE__))
__attribute__((noreturn, unused)) static void
conc__check_failed(const char *expr, const char *file, int line) {
  fprintf(stderr, "%s:%d: conc.h: not true: %s\n", file, line, expr);
  abort();
}
#else
#define CONC__CHECK(expr) ((void)0)
#endif

/* What different CPUs write at the same time lies in different lines of the
   cache. CONC__APART(n) keeps apart what stands before and after it, wherever
   the struct begins. */
#define CONC__CACHE_LINE 64
#define CONC__APART(n) char apart##n[CONC__CACHE_LINE]

/* Stands before each step that another thread may meet: so a test can stop a
   thread at any of them, and show that the others do not mind. */
#ifndef CONC__POINT
#define CONC__POINT() ((void)0)
#endif

#define CONC__LOAD(p) (CONC__POINT(), __atomic_load_n((p), __ATOMIC_ACQUIRE))
#define CONC__LOAD_RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define CONC__STORE(p, v) \
  (CONC__POINT(), __atomic_store_n((p), (v), __ATOMIC_RELEASE))
#define CONC__STORE_RELAXED(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
/* Updates *e with what was found when it fails. */
#define CONC__CAS(p, e, v)                                                \
  (CONC__POINT(), __atomic_compare_exchange_n((p), (e), (v), 0,           \
                                              __ATOMIC_ACQ_REL,           \
                                              __ATOMIC_ACQUIRE))
#define CONC__AND(p, v) \
  (CONC__POINT(), __atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL))

#ifdef __cplusplus
extern "C" {
#endif

#ifndef CONC_STATIC
const int conc__version_0_2_0 = 1;
#undef CONC_API
#define CONC_API
#endif

CONC_API const char *conc_version(void) { return CONC_VERSION; }

CONC_API void conc_free(void *memory) { CONC_FREE(memory); }

/* Those that this library returns of its own accord; the rest is the
   system's to word. strerror() may not be thread-safe, and the two variants
   of strerror_r differ by feature macro, hence a table. */
CONC_API const char *conc_strerror(int error) {
  static const struct {
    int code;
    const char *text;
  } table[] = {
      {0, "success"},
      {EACCES, "permission denied, or wrong key, or refused data"},
      {EADDRINUSE, "address already in use"},
      {EADDRNOTAVAIL, "address not available on this machine"},
      {EAGAIN, "resource temporarily unavailable"},
      {EBADF, "bad file descriptor"},
      {EBADMSG, "malformed, or not of the kind asked for"},
      {EBUSY, "busy: already started, or in use"},
      {ECANCELED, "cancelled"},
      {ECHILD, "the process that ran it died"},
      {ECONNABORTED, "connection aborted"},
      {ECONNREFUSED, "connection refused"},
      {ECONNRESET, "connection reset by peer"},
      {EDEADLK, "deadlock: would wait for itself"},
      {EEXIST, "already exists"},
      {EHOSTUNREACH, "no route to host"},
      {EINTR, "interrupted by a signal"},
      {EINVAL, "invalid argument"},
      {EIO, "input/output error"},
      {EMFILE, "too many open files in this process"},
      {EMSGSIZE, "message too long"},
      {ENETUNREACH, "network is unreachable"},
      {ENFILE, "too many open files in the system"},
      {ENOENT, "no such name, file or host"},
      {ENOMEM, "out of memory"},
      {ENOSPC, "no space left"},
      {ENOSYS, "not available on this system"},
      {ENOTSUP, "not supported by this object"},
      {EOVERFLOW, "value too large, or released too often"},
      {EOWNERDEAD, "the owner died"},
      {EPERM, "not permitted (not the owner, no loop here, no conc_main)"},
      {EPIPE, "closed"},
      {EPROTO, "protocol error: the peer is not what it should be"},
      {EPROTONOSUPPORT, "not available on this system"},
      {ERANGE, "number out of range"},
      {ESRCH, "no such task is running"},
      {ETIMEDOUT, "timed out"},
  };
  size_t i;
  if (error < 0) error = -error;
  for (i = 0; i < sizeof table / sizeof *table; i++)
    if (table[i].code == error) return table[i].text;
  return "system error; see errno(3)";
}

CONC__INLINE double conc__clock(clockid_t which) {
  struct timespec t;
  clock_gettime(which, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

CONC_API double conc_now(void) { return conc__clock(CLOCK_MONOTONIC); }

/* When the clock last ticked, some milliseconds ago: does not take as long. */
CONC__PRIVATE double conc__now_about(void) {
#ifdef CLOCK_MONOTONIC_COARSE
  return conc__clock(CLOCK_MONOTONIC_COARSE);
#else
  return conc_now();
#endif
}

/* Deadlines are absolute inside; >= this one means never. */
#define CONC__NEVER 1e200

/* A NaN is no time that ever comes, as in Python: it waits. */
CONC__PRIVATE double conc__deadline(double timeout) {
  if (!(timeout < 1e9)) return CONC__NEVER;
  return timeout <= 0 ? 0 : conc_now() + timeout;
}

/* What is left of it; for calls that want a timeout again. */
CONC__PRIVATE double conc__remaining(double deadline) {
  double left;
  if (deadline >= CONC__NEVER) return CONC_FOREVER;
  if (deadline <= 0) return 0;
  left = deadline - conc_now();
  return left > 0 ? left : 0;
}

CONC__PRIVATE struct timespec conc__timespec(double seconds) {
  struct timespec t;
  if (seconds < 0) seconds = 0;
  t.tv_sec = (time_t)seconds;
  t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  return t;
}

/* Milliseconds for poll(), rounded up so that nobody wakes too early and
   then spins to its deadline. -1 is forever. */
CONC__PRIVATE int conc__milliseconds(double deadline) {
  double left = conc__remaining(deadline) * 1000;
  if (left > 2e9) return deadline >= CONC__NEVER ? -1 : 2000000000;
  return (int)left + ((double)(int)left < left);
}

/* The number of the lowest bit that is set; one is. */
CONC__INLINE unsigned conc__lowest_bit(uint64_t bits) {
#ifdef __TINYC__
  unsigned n = 0;
  while (!(bits >> n & 1)) n++;
  return n;
#else
  return (unsigned)__builtin_ctzll(bits);
#endif
}

/* And of the highest one. */
CONC__INLINE unsigned conc__highest_bit(uint64_t bits) {
#ifdef __TINYC__
  unsigned n = 0;
  while ((bits >>= 1) != 0) n++;
  return n;
#else
  return 63 - (unsigned)__builtin_clzll(bits);
#endif
}

/* Tells the CPU that this is a busy wait. */
CONC__INLINE void conc__pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield" ::: "memory");
#else
  __asm__ __volatile__("" ::: "memory");
#endif
}

/* Tells Valgrind something. Outside of it the instructions do nothing. */
CONC__PRIVATE size_t conc__valgrind(size_t request, const void *a,
                                    const void *b) {
  size_t result = 0;
#if CONC_HAVE_VALGRIND
  size_t args[6];
  args[0] = request;
  args[1] = (size_t)a;
  args[2] = (size_t)b;
  args[3] = args[4] = args[5] = 0;
#if defined(__x86_64__)
  __asm__ __volatile__(
      "rolq $3, %%rdi\n\trolq $13, %%rdi\n\t"
      "rolq $61, %%rdi\n\trolq $51, %%rdi\n\t"
      "xchgq %%rbx, %%rbx\n\t"
      : "=d"(result)
      : "a"(args), "0"(result)
      : "cc", "memory");
#else
  {
    register size_t *x4 __asm__("x4") = args;
    register size_t x3 __asm__("x3") = result;
    __asm__ __volatile__(
        "ror x12, x12, #3\n\tror x12, x12, #13\n\t"
        "ror x12, x12, #51\n\tror x12, x12, #61\n\t"
        "orr x10, x10, x10\n\t"
        : "+r"(x3)
        : "r"(x4)
        : "cc", "memory");
    result = x3;
  }
#endif
#else
  (void)request, (void)a, (void)b;
#endif
  return result;
}
#define CONC__VALGRIND_REPORT_ERRORS 0x1801
#define CONC__VALGRIND_MAKE_DEFINED 0x4d430002 /* Memcheck's */

#ifdef CONC_USE_HELGRIND
/* Helgrind knows no atomic accesses. So it is told of each, all there are in
   this file, that it is none of its business, and that it comes after earlier
   ones of the same address and before later ones. That is more than is true of
   some: no race is reported that is none. */
#define CONC__HELGRIND(n) ((size_t)'H' << 24 | (size_t)'G' << 16 | (256 + (n)))

CONC__PRIVATE void conc__helgrind(const volatile void *p, size_t size) {
  const void *at = (const void *)(uintptr_t)p;
  conc__valgrind(CONC__HELGRIND(39), at, (void *)size); /* MAKE_UNTRACKED */
  conc__valgrind(CONC__HELGRIND(33), at, NULL);         /* USERSO_SEND_PRE */
  conc__valgrind(CONC__HELGRIND(34), at, NULL);         /* USERSO_RECV_POST */
}

#define CONC__TOLD(p, access)                \
  __extension__({                            \
    __typeof__(access) conc__told;           \
    conc__helgrind((p), sizeof *(p));        \
    conc__told = (access);                   \
    conc__helgrind((p), sizeof *(p));        \
    conc__told;                              \
  })
#define __atomic_load_n(p, o) CONC__TOLD(p, __atomic_load_n(p, o))
#define __atomic_store_n(p, v, o) \
  (conc__helgrind((p), sizeof *(p)), __atomic_store_n(p, v, o))
#define __atomic_exchange_n(p, v, o) \
  CONC__TOLD(p, __atomic_exchange_n(p, v, o))
#define __atomic_compare_exchange_n(p, e, v, w, o, f) \
  CONC__TOLD(p, __atomic_compare_exchange_n(p, e, v, w, o, f))
#define __atomic_fetch_add(p, v, o) CONC__TOLD(p, __atomic_fetch_add(p, v, o))
#define __atomic_fetch_sub(p, v, o) CONC__TOLD(p, __atomic_fetch_sub(p, v, o))
#define __atomic_add_fetch(p, v, o) CONC__TOLD(p, __atomic_add_fetch(p, v, o))
#define __atomic_sub_fetch(p, v, o) CONC__TOLD(p, __atomic_sub_fetch(p, v, o))
#define __atomic_fetch_and(p, v, o) CONC__TOLD(p, __atomic_fetch_and(p, v, o))
#define __atomic_fetch_or(p, v, o) CONC__TOLD(p, __atomic_fetch_or(p, v, o))
#endif

CONC__PRIVATE int conc__count_cpus(void) {
  long n;
#if CONC__LINUX
  unsigned long mask[1024 / (8 * sizeof(unsigned long))];
  long size = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
  if (size > 0) {
    int count = 0;
    size_t i;
    for (i = 0; i < (size_t)size / sizeof *mask; i++)
      for (; mask[i] != 0; mask[i] &= mask[i] - 1) count++;
    return count > 0 ? count : 1;
  }
#endif
#ifdef _SC_NPROCESSORS_ONLN
  n = sysconf(_SC_NPROCESSORS_ONLN);
#else
  n = 1;
#endif
  return n > 0 ? (int)n : 1;
}

CONC_API int conc_cpu_count(void) { return conc__count_cpus(); }

/* ---------------------------------------------------------------------------
   >>os: what the library asks of the system, in one place each
   ------------------------------------------------------------------------ */

/* --- sleeping on a word --- */

#if CONC_HAVE_FUTEX

#define CONC__FUTEX_WAIT 9 /* FUTEX_WAIT_BITSET */
#define CONC__FUTEX_WAKE 1
#define CONC__FUTEX_PRIVATE 128 /* the word is of this process alone */

/* Sleeps while *word == value, until woken or the deadline has passed. May
   return early for no reason. `shared`: the waker may be another process. */
CONC__PRIVATE void conc__futex_wait(unsigned *word, unsigned value,
                                    double deadline, bool shared) {
  int operation = CONC__FUTEX_WAIT | (shared ? 0 : CONC__FUTEX_PRIVATE);
  struct timespec t;
  struct timespec *until = NULL;
  if (deadline < CONC__NEVER) {
    t = conc__timespec(deadline); /* the bitset variant takes absolute time */
    until = &t;
  }
  CONC__POINT();
  syscall(SYS_futex, word, operation, value, until, NULL, 0xffffffffu);
}

/* Wakes up to n sleepers. The word may be gone by now: the kernel only looks
   at the address, and an extra wake-up is allowed for. Valgrind would not. */
CONC__PRIVATE void conc__futex_wake(unsigned *word, int n, bool shared) {
  int operation = CONC__FUTEX_WAKE | (shared ? 0 : CONC__FUTEX_PRIVATE);
  CONC__POINT();
  conc__valgrind(CONC__VALGRIND_REPORT_ERRORS, (void *)1, NULL); /* 1 less */
  syscall(SYS_futex, word, operation, n, NULL, NULL, 0);
  conc__valgrind(CONC__VALGRIND_REPORT_ERRORS, (void *)-1, NULL);
}

CONC__PRIVATE void conc__futex_init(void) {}

#else

/* The stand-in, which is for one process: nothing is woken by another one.
   Buckets are static, so that a waker may still touch one when
   the word that it woke is gone. */
static struct conc__futex_bucket {
  pthread_mutex_t mutex;
  pthread_cond_t cond;
} conc__futex_table[64];

CONC__PRIVATE struct conc__futex_bucket *
conc__futex_bucket_of(unsigned *word) {
  uintptr_t h = (uintptr_t)word;
  return &conc__futex_table[(h >> 4 ^ h >> 10 ^ h >> 16) % 64];
}

CONC__PRIVATE void conc__futex_wait(unsigned *word, unsigned value,
                                    double deadline, bool shared) {
  struct conc__futex_bucket *b = conc__futex_bucket_of(word);
  struct timespec t = conc__timespec(deadline < CONC__NEVER ? deadline : 0);
  (void)shared;
  CONC__POINT();
  pthread_mutex_lock(&b->mutex);
  if (CONC__LOAD(word) == value) {
    if (deadline < CONC__NEVER)
      pthread_cond_timedwait(&b->cond, &b->mutex, &t);
    else
      pthread_cond_wait(&b->cond, &b->mutex);
  }
  pthread_mutex_unlock(&b->mutex);
}

/* The bucket's other words share the condition, so all of it is woken. */
CONC__PRIVATE void conc__futex_wake(unsigned *word, int n, bool shared) {
  struct conc__futex_bucket *b = conc__futex_bucket_of(word);
  (void)n, (void)shared;
  CONC__POINT();
  pthread_mutex_lock(&b->mutex);
  pthread_cond_broadcast(&b->cond);
  pthread_mutex_unlock(&b->mutex);
}

CONC__PRIVATE void conc__futex_init(void) {
  pthread_condattr_t attr;
  size_t i;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  for (i = 0; i < 64; i++) {
    pthread_mutex_init(&conc__futex_table[i].mutex, NULL);
    pthread_cond_init(&conc__futex_table[i].cond, &attr);
  }
  pthread_condattr_destroy(&attr);
}

#endif

/* --- what is found out once --- */

static int conc__cpus = 1;
static size_t conc__page = 4096;

CONC__PRIVATE void conc__os_init(void) {
  long page = sysconf(_SC_PAGESIZE);
  if (page > 0) conc__page = (size_t)page;
  conc__cpus = conc__count_cpus();
  conc__futex_init();
}

/* --- descriptors, random bytes --- */

CONC__PRIVATE void conc__set_cloexec(int fd) {
  int flags = fcntl(fd, F_GETFD);
  if (flags >= 0) fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
}

CONC__PRIVATE void conc__set_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags >= 0) fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/* A non-blocking socket, close-on-exec; or negative errno. */
CONC__PRIVATE int conc__socket(int family, int type) {
#if CONC_HAVE_CLOEXEC
  int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  return fd < 0 ? -errno : fd;
#else
  int fd = socket(family, type, 0);
  if (fd < 0) return -errno;
  conc__set_cloexec(fd);
  conc__set_nonblocking(fd);
  return fd;
#endif
}

/* Something readable once written to, to wake a poller: fds[0] is read,
   fds[1] written (the same one for an eventfd). 0 or negative errno. */
CONC__PRIVATE int conc__waker_open(int fds[2]) {
#if CONC_HAVE_EVENTFD
  fds[0] = fds[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return fds[0] < 0 ? -errno : 0;
#else
  int i;
  if (pipe(fds) < 0) return -errno;
  for (i = 0; i < 2; i++) {
    conc__set_cloexec(fds[i]);
    conc__set_nonblocking(fds[i]);
  }
  return 0;
#endif
}

CONC__PRIVATE void conc__waker_close(int fds[2]) {
  close(fds[0]);
  if (fds[1] != fds[0]) close(fds[1]);
  fds[0] = fds[1] = -1;
}

/* A full pipe is as good as one more byte: the reader wakes either way. */
CONC__PRIVATE void conc__waker_wake(const int fds[2]) {
  uint64_t one = 1;
  ssize_t n;
  CONC__POINT();
  do n = write(fds[1], &one, sizeof one);
  while (n < 0 && errno == EINTR);
}

CONC__PRIVATE void conc__waker_drain(const int fds[2]) {
  unsigned char bytes[64];
  ssize_t n;
  do n = read(fds[0], bytes, sizeof bytes);
  while (n == (ssize_t)sizeof bytes || (n < 0 && errno == EINTR));
}

/* Bytes that nobody can guess; 0 or negative errno, never anything less. */
CONC__PRIVATE int conc__random(void *out, size_t size) {
  unsigned char *p = (unsigned char *)out;
  int fd = -1;
  int rc = 0;
#if !CONC_HAVE_GETRANDOM
  fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
#endif
  while (size > 0) {
#if CONC_HAVE_GETRANDOM
    ssize_t n = getrandom(p, size, 0);
#else
    ssize_t n = read(fd, p, size);
#endif
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      rc = n < 0 ? -errno : -EIO;
      break;
    }
    p += n;
    size -= (size_t)n;
  }
  if (fd >= 0) close(fd);
  return rc;
}

/* Anonymous memory in whole pages, zeroed, not reserved beforehand. */
CONC__PRIVATE void *conc__pages_map(size_t size) {
  int flags = MAP_PRIVATE;
  int fd = -1;
  void *p;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
#ifdef MAP_STACK
  flags |= MAP_STACK; /* on Linux 6.7 also: no huge pages */
#endif
#ifdef MAP_ANONYMOUS
  flags |= MAP_ANONYMOUS;
#else
  fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
  if (fd < 0) return NULL;
#endif
  p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (fd >= 0) close(fd);
  if (p == MAP_FAILED) return NULL;
#if CONC__LINUX && defined(MADV_NOHUGEPAGE)
  madvise(p, size, MADV_NOHUGEPAGE); /* a stack must cost one small page */
#endif
  return p;
}

/* For memory that is touched all over, once it is large: it costs less to
   fault in, and to find, in the system's large pages. */
CONC__PRIVATE void conc__pages_large(void *p, size_t size) {
#if CONC__LINUX && defined(MADV_HUGEPAGE)
  uintptr_t mask = ((uintptr_t)1 << 21) - 1; /* they have 2 MB, mostly */
  uintptr_t from = ((uintptr_t)p + mask) & ~mask;
  uintptr_t to = ((uintptr_t)p + size) & ~mask;
  if (to > from) madvise((void *)from, to - from, MADV_HUGEPAGE);
#endif
  (void)p, (void)size;
}

/* Makes a page inaccessible. 0 or negative errno. */
CONC__PRIVATE int conc__pages_guard(void *page, size_t size) {
#if CONC_HAVE_GUARD_INSTALL
  static int missing; /* an older kernel: not asked twice */
  if (!CONC__LOAD_RELAXED(&missing)) {
    if (madvise(page, size, 102 /* MADV_GUARD_INSTALL */) == 0) return 0;
    CONC__STORE_RELAXED(&missing, 1);
  }
#endif
  return mprotect(page, size, PROT_NONE) == 0 ? 0 : -errno;
}

/* Moves a descriptor above the three of stdio, which dup2() is to replace. */
CONC__PRIVATE int conc__fd_lift(int fd) {
  int high;
  if (fd < 0 || fd > 2) return fd < 0 ? -errno : fd;
  high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (high < 0) high = -errno;
  close(fd);
  return high;
}

/* A file without a name. */
CONC__PRIVATE int conc__file_open(void) {
#if CONC_HAVE_MEMFD
  return conc__fd_lift((int)syscall(SYS_memfd_create, "conc", 1u));
#else
  char name[] = "/tmp/conc-XXXXXX";
  int fd = conc__fd_lift(mkstemp(name));
  if (fd < 0) return fd;
  conc__set_cloexec(fd);
  unlink(name);
  return fd;
#endif
}

CONC__PRIVATE int conc__file_get(int fd, void *data, size_t size, size_t at) {
  char *p = (char *)data;
  while (size > 0) {
    ssize_t n = pread(fd, p, size, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? -errno : -EPROTO;
    p += n;
    at += (size_t)n;
    size -= (size_t)n;
  }
  return 0;
}

/* ---------------------------------------------------------------------------
   >>bytes: buffers that grow, and hashes

   What needs nothing of the system but memory. Buffers: one mechanism for
   streams (io), connections (net) and everything that is encoded (pickle,
   json, pipe, queue). Hashes: what the handshake of net proves a key by.
   Nothing here has a guard or waits: each object belongs to the task that
   works with it.
   ------------------------------------------------------------------------ */

/* --- memory that grows --- */

/* Gives an array room for `need` elements of `unit` bytes. Returns the array,
   which may have moved, and sets *capacity, in elements; NULL for want of
   memory, and then the old array stays as it was. Capacities double, so an
   array that grows by one element at a time is copied O(1) times for each. */
CONC__PRIVATE void *conc__grow(void *data, size_t *capacity, size_t need,
                               size_t unit) {
  size_t n = *capacity > 0 ? *capacity : 64 / unit + (unit > 64);
  if (need > SIZE_MAX / 4 / unit) return NULL; /* so nothing below overflows */
  while (n < need) n *= 2;
  data = CONC_REALLOC(data, n * unit);
  if (data != NULL) *capacity = n;
  return data;
}

/* --- buffers --- */

/* Bytes that are appended at the end, and may be taken from the front, as
   streams and connections do. Encoders take nothing, so their `first` is 0 and
   `size` is the length of what they wrote. A zeroed buffer is empty. `data` is
   NULL, or memory for CONC_FREE. first <= size <= capacity: bytes before
   `first` have been taken, bytes from `size` on are room. */
typedef struct conc__buffer conc__buffer;

/* An emptied buffer of more bytes than these gives its memory back. */
#define CONC__BUFFER_KEPT 65536

/* How many bytes may be taken. */
CONC__INLINE size_t conc__buffer_count(const conc__buffer *b) {
  CONC__CHECK(b->first <= b->size && b->size <= b->capacity);
  return b->size - b->first;
}

/* Moves the bytes to the beginning of the memory: pointers to them go bad. */
CONC__PRIVATE void conc__buffer_shift(conc__buffer *b) {
  size_t count = conc__buffer_count(b);
  if (b->first == 0) return;
  memmove(b->data, b->data + b->first, count);
  b->first = 0;
  b->size = count;
}

/* Makes room for `more` bytes behind the last, so that appending up to that
   number cannot fail. 0, or -ENOMEM and the bytes are as they were; they may
   have moved. */
CONC__PRIVATE int conc__buffer_reserve(conc__buffer *b, size_t more) {
  size_t count = conc__buffer_count(b);
  void *data;
  if (more <= b->capacity - b->size) return 0;
  /* Bytes move forward only by at least their own number: then each byte is
     moved once on the average, however small the pieces are that are taken. */
  if (b->first >= count) conc__buffer_shift(b);
  if (more <= b->capacity - b->size) return 0;
  if (more > SIZE_MAX - b->size) return -ENOMEM;
  data = conc__grow(b->data, &b->capacity, b->size + more, 1);
  if (data == NULL) return -ENOMEM;
  b->data = (unsigned char *)data;
  return 0;
}

/* Copies bytes behind the last: inlined, since encoders append a few bytes
   millions of times. 0, or -ENOMEM and nothing was appended. */
CONC__INLINE int conc__buffer_append(conc__buffer *b, const void *data,
                                     size_t size) {
  if (CONC__UNLIKELY(size > b->capacity - b->size)) {
    int rc = conc__buffer_reserve(b, size);
    if (rc != 0) return rc;
  }
  /* memcpy of nothing from NULL is undefined, hence the question */
  if (size > 0) memcpy(b->data + b->size, data, size);
  b->size += size;
  return 0;
}

/* The buffer is empty afterwards and may be used again. */
CONC__PRIVATE void conc__buffer_free(conc__buffer *b) {
  CONC_FREE(b->data);
  b->data = NULL;
  b->size = b->capacity = b->first = 0;
}

/* Takes n bytes off the front, into `out` unless that is NULL. A long message
   must not hold its memory for the life of a quiet stream: see
   CONC__BUFFER_KEPT. */
CONC__PRIVATE void conc__buffer_take(conc__buffer *b, void *out, size_t n) {
  CONC__CHECK(n <= conc__buffer_count(b));
  if (n > 0 && out != NULL) memcpy(out, b->data + b->first, n);
  b->first += n;
  if (b->first < b->size) return;
  b->first = b->size = 0;
  if (b->capacity > CONC__BUFFER_KEPT) conc__buffer_free(b);
}

/* --- hashes: MD5 (RFC 1321), SHA-256 (FIPS 180-4), HMAC (RFC 2104) ---

   MD5 is no hash to trust any more, but as an HMAC it is what Python up to
   3.11 authenticates with. Both work on blocks of 64 bytes and pad alike; they
   differ in the order of bytes within a word and in the compression. The two
   compressions stand side by side, each as its standard has it, so that either
   can be compared with its text; what is alike is written once, below them. */

enum { CONC__MD5 = 0, CONC__SHA256 = 1 };
#define CONC__HASH_MAX 32 /* bytes of the longer digest */

/* A hash that is being computed; conc__hash_begin makes it as new. */
typedef struct conc__hash {
  int kind;          /* CONC__MD5 or CONC__SHA256 */
  uint32_t state[8]; /* of all whole blocks so far; MD5 has four of them */
  uint64_t size;     /* bytes so far */
  unsigned char block[64]; /* its first size % 64 bytes wait for the others */
} conc__hash;

/* Turns x left by n bits, 1 to 31; compilers make one instruction of it. */
CONC__INLINE uint32_t conc__rol(uint32_t x, unsigned n) {
  return x << n | x >> (32 - n);
}

/* MD5's compression (RFC 1321, 3.4): adds 64 bytes at p to the four words of
   `state`. Four rounds of 16 steps: a round has its own function of b, c, d,
   its own order of the words and its own four shifts. */
CONC__PRIVATE void conc__md5_block(uint32_t *state, const unsigned char *p) {
  /* floor(2^32 * |sin(i + 1)|) */
  static const uint32_t sine[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a,
    0xa8304613, 0xfd469501, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be,
    0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821, 0xf61e2562, 0xc040b340,
    0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8,
    0x676f02d9, 0x8d2a4c8a, 0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c,
    0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70, 0x289b7ec6, 0xeaa127fa,
    0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92,
    0xffeff47d, 0x85845dd1, 0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1,
    0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};
  static const unsigned char shift[16] = {7, 12, 17, 22, 5, 9,  14, 20,
                                          4, 11, 16, 23, 6, 10, 15, 21};
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3], w[16];
  unsigned i;
  /* by shifts, for p may lie anywhere and the CPU may be big-endian */
  for (i = 0; i < 16; i++, p += 4)
    w[i] = (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 |
           (uint32_t)p[0];
  for (i = 0; i < 64; i++) {
    uint32_t f, next;
    unsigned word;
    if (i < 16) { /* RFC: (b & c) | (~b & d), with one operation fewer */
      f = d ^ (b & (c ^ d));
      word = i;
    } else if (i < 32) {
      f = c ^ (d & (b ^ c));
      word = 5 * i + 1;
    } else if (i < 48) {
      f = b ^ c ^ d;
      word = 3 * i + 5;
    } else {
      f = c ^ (b | ~d);
      word = 7 * i;
    }
    /* Instead of sixteen lines with rotated names, the names rotate. */
    next = b + conc__rol(a + f + sine[i] + w[word % 16],
                         shift[i / 16 * 4 + i % 4]);
    a = d;
    d = c;
    c = b;
    b = next;
  }
  /* Added to what was before: otherwise a block could be undone. */
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
}

/* SHA-256's compression (FIPS 180-4, 6.2.2): adds 64 bytes at p to the eight
   words of `state`. */
CONC__PRIVATE void conc__sha256_block(uint32_t *state,
                                      const unsigned char *p) {
  /* fractions of the cube roots of the first 64 primes */
  static const uint32_t root[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  /* s[(k - i) & 7] is the standard's k-th working variable in round i: the
     index turns instead of eight variables moving along */
  uint32_t w[16], s[8];
  unsigned i;
  memcpy(s, state, sizeof s);
  for (i = 0; i < 64; i++) {
    uint32_t *h = &s[(7 - i) & 7], *d = &s[(3 - i) & 7];
    uint32_t a = s[(0 - i) & 7], b = s[(1 - i) & 7], c = s[(2 - i) & 7];
    uint32_t e = s[(4 - i) & 7], f = s[(5 - i) & 7], g = s[(6 - i) & 7];
    if (i < 16) {
      w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
             (uint32_t)p[2] << 8 | (uint32_t)p[3];
      p += 4;
    } else { /* the schedule looks back by 16 words at most: w is a ring */
      uint32_t x = w[(i + 1) & 15], y = w[(i + 14) & 15];
      w[i & 15] += (conc__rol(x, 25) ^ conc__rol(x, 14) ^ x >> 3) +
                   (conc__rol(y, 15) ^ conc__rol(y, 13) ^ y >> 10) +
                   w[(i + 9) & 15];
    }
    *h += (conc__rol(e, 26) ^ conc__rol(e, 21) ^ conc__rol(e, 7)) +
          (g ^ (e & (f ^ g))) + root[i] + w[i & 15];
    *d += *h;
    *h += (conc__rol(a, 30) ^ conc__rol(a, 19) ^ conc__rol(a, 10)) +
          ((a & b) | (c & (a | b)));
  }
  for (i = 0; i < 8; i++) state[i] += s[i];
}

/* --- hashes: what is alike --- */

/* The words that either standard begins with. */
CONC__PRIVATE void conc__hash_begin(conc__hash *h, int kind) {
  static const uint32_t md5[8] = {0x67452301, 0xefcdab89, 0x98badcfe,
                                  0x10325476, 0,          0,
                                  0,          0};
  /* fractions of the square roots of the first 8 primes */
  static const uint32_t sha256[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
    0x1f83d9ab, 0x5be0cd19};
  h->kind = kind;
  h->size = 0;
  memcpy(h->state, kind == CONC__MD5 ? md5 : sha256, sizeof h->state);
}

/* Adds bytes. All pass through the block, which costs a copy and spares a
   second loop for whole blocks: what is hashed here is short. */
CONC__PRIVATE void conc__hash_add(conc__hash *h, const void *data,
                                  size_t size) {
  const unsigned char *p = (const unsigned char *)data;
  while (size > 0) {
    size_t have = (size_t)(h->size % 64), n = 64 - have;
    if (n > size) n = size;
    memcpy(h->block + have, p, n);
    h->size += n;
    p += n;
    size -= n;
    if (have + n < 64) return;
    if (h->kind == CONC__MD5)
      conc__md5_block(h->state, h->block);
    else
      conc__sha256_block(h->state, h->block);
  }
}

/* Writes the digest (16 or 32 bytes) and returns its size. The message is
   padded by a bit, by zeros up to 8 bytes before the end of a block, and by
   its own length in bits. The hash is spent then. */
CONC__PRIVATE size_t conc__hash_end(conc__hash *h, unsigned char *out) {
  static const unsigned char padding[64] = {0x80};
  const bool little = h->kind == CONC__MD5;
  const uint64_t bits = h->size * 8;
  const size_t size = little ? 16 : 32;
  unsigned char length[8];
  size_t i;
  for (i = 0; i < 8; i++)
    length[i] = (unsigned char)(bits >> 8 * (little ? i : 7 - i));
  /* `bits` was taken before, for the padding is counted, too; 119 = 55 + 64
     keeps the difference from being negative */
  conc__hash_add(h, padding, 1 + (size_t)((119 - h->size % 64) % 64));
  conc__hash_add(h, length, 8);
  CONC__CHECK(h->size % 64 == 0);
  for (i = 0; i < size; i++)
    out[i] =
        (unsigned char)(h->state[i / 4] >> 8 * (little ? i % 4 : 3 - i % 4));
  return size;
}

/* --- secrets --- */

/* Overwrites a secret. A plain memset before the end of a variable's life is
   removed by compilers; what goes through volatile is not. */
CONC__PRIVATE void conc__wipe(void *secret, size_t size) {
  volatile unsigned char *p = (volatile unsigned char *)secret;
  while (size-- > 0) *p++ = 0;
}

/* Whether two secrets are the same. It takes the same time wherever the first
   difference is: otherwise a peer could guess a digest byte by byte, by the
   time that each refusal takes. */
CONC__PRIVATE bool conc__equal_secret(const void *a, const void *b,
                                      size_t size) {
  const volatile unsigned char *p = (const volatile unsigned char *)a;
  const volatile unsigned char *q = (const volatile unsigned char *)b;
  unsigned char difference = 0;
  while (size-- > 0) difference |= (unsigned char)(*p++ ^ *q++);
  return difference == 0;
}

/* HMAC (RFC 2104): hash(key ^ 5c.. + hash(key ^ 36.. + message)). Two hashes,
   because a MAC of one could be continued by bytes that the peer chooses.
   Writes the MAC (16 or 32 bytes) to `out`, which may overlap the message, for
   that has been read by then. The key may have any length, 0 too; one that is
   longer than a block is replaced by its hash. */
CONC__PRIVATE void conc__hmac(int kind, const void *key, size_t key_size,
                              const void *message, size_t size,
                              unsigned char *out) {
  unsigned char pad[64], digest[CONC__HASH_MAX];
  conc__hash h;
  size_t n = key_size, i;
  memset(pad, 0, sizeof pad);
  if (key_size > sizeof pad) {
    conc__hash_begin(&h, kind);
    conc__hash_add(&h, key, key_size);
    n = conc__hash_end(&h, pad);
  } else if (n > 0) {
    memcpy(pad, key, n);
  }
  for (i = 0; i < sizeof pad; i++) pad[i] ^= 0x36;
  conc__hash_begin(&h, kind);
  conc__hash_add(&h, pad, sizeof pad);
  conc__hash_add(&h, message, size);
  n = conc__hash_end(&h, digest);
  for (i = 0; i < sizeof pad; i++) pad[i] ^= 0x36 ^ 0x5c; /* 36.. to 5c.. */
  conc__hash_begin(&h, kind);
  conc__hash_add(&h, pad, sizeof pad);
  conc__hash_add(&h, digest, n);
  conc__hash_end(&h, out);
  /* each of these is as good as the key to a forger */
  conc__wipe(pad, sizeof pad);
  conc__wipe(digest, sizeof digest);
  conc__wipe(&h, sizeof h);
}

/* ---------------------------------------------------------------------------
   >>park: actors, guards, wait lists

   An actor is what can wait: a thread or a coroutine. Its word is where
   wake-ups arrive:

     CONC__WOKEN   somebody took it off a wait list. Set once for each time
                   that it is taken off, and awaited by it: so when a wait
                   returns, nobody will touch this actor or its waiter again.
     CONC__POKED   conc_cancel; stays until a wait delivers it.
     CONC__POLLING with CONC__PARKED: a thread that sleeps in poll().
     CONC__NUDGED  a pool's worker: there may be a job for it.
     CONC__PARKED  it sleeps. Whoever clears this bit must wake it: so exactly
                   one of waker, canceller and timer makes it run.

   What is waited for (a lock's waiters, a queue's getters) is a list in the
   object, under a guard: a short internal lock chosen by the object's address
   from a static table. The condition is checked and the waiter appended under
   the guard, and the condition is changed and waiters taken off under it:
   hence no wake-up is lost. And the last touch of an object is under a guard
   that is not part of it: hence an object may be freed by whoever it let go.
   ------------------------------------------------------------------------ */

#define CONC__WOKEN 1u
#define CONC__POKED 2u
#define CONC__PARKED 4u
#define CONC__POLLING 8u
#define CONC__NUDGED 16u

/* An actor remembers so many locks that it reads. */
#define CONC__READS 4

typedef struct conc__actor conc__actor;

/* What differs between the kinds of tasks. Each kind has a row, which stands
   in its own section; a task that was never started has none. */
typedef struct conc__kind {
  const char *label; /* begins a default name: "Thread" makes Thread-1 */
  bool joinable;     /* false: nobody has started it, so nobody joins it */
  bool renamed;      /* its default name is put into words each time: its start
                        does not touch the old one */
  bool no_exitcode;  /* whatever stands in its place */
  /* conc_cancel; NULL: sets CONC__POKED. */
  int (*cancel)(conc_task *task);
  /* At a wait of the task itself: whether it is to fail now, though nobody has
     set CONC__POKED. NULL: never. */
  bool (*take_cancel)(struct conc__actor *self);
  /* Waits for the end; NULL: it is waited for by its event alone. */
  int (*await)(conc_task *task, bool uncancellable, double timeout);
  /* Finds out whether the task has stayed behind in another process, and ends
     it then. NULL: a fork does that for all at once. */
  void (*look)(conc_task *task);
  /* What a thread that is about to wait for it may do to have it end sooner;
     NULL: nothing. */
  void (*help)(conc_task *task);
} conc__kind;

/* The two kinds of actor differ in these. */
typedef struct conc__actor_class {
  /* Sleeps until the word has a bit of `bits`, or until the deadline. May
     return for no reason. */
  void (*park)(conc__actor *self, unsigned bits, double deadline);
  /* Waits for a descriptor: as conc_wait_fd. */
  int (*wait_fd)(conc__actor *self, int fd, int events, double deadline);
  /* Makes one run that slept; called by whoever cleared CONC__PARKED, with
     the word as it was before. */
  void (*wake)(conc__actor *actor, unsigned seen);
  bool blocks; /* it may sleep in the kernel, and spin, for nobody else needs
                  its CPU: a thread, not a coroutine */
} conc__actor_class;

/* A place to switch to; see >>coroutine. */
typedef struct conc__fiber {
#if CONC_HAVE_SWITCH_ASM
  void *registers[4]; /* stack, program counter, frame, one more */
#else
  ucontext_t context;
#endif
#if CONC_HAVE_ASAN
  void *asan_fake; /* its fake stack while it is switched away */
  const void *asan_bottom;
  size_t asan_size;
  const void *asan_from; /* the stack from which it was switched back to */
  size_t asan_from_size;
#endif
#if CONC_HAVE_TSAN
  void *tsan;
#endif
} conc__fiber;

struct conc__actor {
  unsigned word;
  unsigned spin_failed; /* threads: see conc__spin */
  const conc__actor_class *ops;
  conc_scope *scope;     /* the innermost */
  conc__fiber fiber;     /* a coroutine: where it goes on */
  conc_task *task;       /* whose it is; never NULL */
  /* So far one cache line, with all that a switch needs. */
  conc_gen *generator;   /* that it has resumed; NULL: none */
  void *sent;            /* to that */
  conc__fiber *caller;   /* who has resumed it */
  uintptr_t id;          /* see CONC__OWNER */
  struct conc__waiter *waiting; /* while it is, or was, on a list */
  conc_rwlock *reads[CONC__READS]; /* what it holds for reading; | 1 if it does
                                      so together with other processes */
  size_t more_reads;               /* and how many more */
  conc_rwlock *changing; /* `reads` and its word do not agree at this moment */
  uintptr_t held;        /* the orders of the named locks that it holds */
  struct conc__multiwait *many;  /* where it is told that tasks finish */
  struct conc__waiter *notified; /* see conc_cond_notify */
};

/* What belongs to an actor names it in a word: its id is its address and, in
   the lower bits, the generation of processes that it was made in, which a
   fork makes one more: so that who did not come along into a child is told
   from who has been made at the same address since. (After 16 nested forks
   generations begin anew.) The two lowest bits are for the use of the word. */
#define CONC__OWNER_FLAG ((uintptr_t)1)
#define CONC__OWNER_NONE ((uintptr_t)2) /* the word does not name an owner */
#define CONC__OWNER(word) \
  ((word) & CONC__OWNER_NONE ? 0 : (word) & ~CONC__OWNER_FLAG)
#define CONC__GENERATIONS 16u

static unsigned conc__generation;

/* The ids of earlier generations that are here all the same: of the thread
   that forked, and of its coroutines. Only a fork changes these. */
static uintptr_t *conc__survivors;
static size_t conc__survivors_count;

/* Whether the owner stayed behind in the parent. */
CONC__PRIVATE bool conc__owner_is_gone(uintptr_t word) {
  uintptr_t id = CONC__OWNER(word);
  size_t i;
  if (id == 0 || (id >> 2) % CONC__GENERATIONS == conc__generation)
    return false;
  for (i = 0; i < conc__survivors_count; i++)
    if (conc__survivors[i] == id) return false;
  return true;
}

CONC__PRIVATE void conc__actor_init(conc__actor *actor,
                                    const conc__actor_class *ops,
                                    conc_task *task) {
  actor->ops = ops;
  actor->task = task;
  actor->generator = NULL;
  actor->scope = NULL;
  actor->many = NULL;
  actor->notified = NULL;
  actor->id = (uintptr_t)actor | conc__generation << 2;
}

/* All there is of a thread, for this library: thread-local, so without
   allocation, for foreign threads too. */
typedef struct conc__thread {
  conc__actor *current; /* the thread's or its running coroutine's actor */
  struct conc__loop *loop;
  conc__actor actor __attribute__((aligned(64))); /* as CONC__OWNER wants */
  conc_task own;   /* the task of a foreign thread */
  bool has_waker;
  int waker[2]; /* what it polls besides; for threads of ours only */
  void *alternate; /* its alternate signal stack, if it is ours */
  struct conc__coro *spare; /* stacks for generators */
  unsigned spares;
  struct conc__child_fds *making; /* it starts a process: see there */
  struct conc__worker *worker; /* of a pool: what it is */
  conc_task *base; /* its own task, the actor's being that of a job; or NULL */
  unsigned fork_rows; /* of conc__fork_table, that its fork has prepared */
} conc__thread;

#if CONC_HAVE_THREAD_LOCAL
static __thread conc__thread conc__this;
#else
static pthread_key_t conc__this_key;
static pthread_once_t conc__this_once = PTHREAD_ONCE_INIT;
#define conc__this (*conc__this_get())

/* Destructors run in any order: this one waits until conc__thread_exit, which
   uses what it frees, has run. */
CONC__PRIVATE void conc__this_free(void *memory) {
  conc__thread *thread = (conc__thread *)memory;
  if (thread->current != NULL)
    pthread_setspecific(conc__this_key, memory);
  else
    free(memory);
}

CONC__PRIVATE void conc__this_make_key(void) {
  if (pthread_key_create(&conc__this_key, conc__this_free) != 0) abort();
}

CONC__PRIVATE conc__thread *conc__this_get(void) {
  void *thread;
  pthread_once(&conc__this_once, conc__this_make_key);
  thread = pthread_getspecific(conc__this_key);
  if (thread == NULL) {
    if (posix_memalign(&thread, 64, sizeof(conc__thread)) != 0 ||
        pthread_setspecific(conc__this_key, thread) != 0)
      abort();
    memset(thread, 0, sizeof(conc__thread));
  }
  return (conc__thread *)thread;
}
#endif

CONC__PRIVATE conc__actor *conc__thread_enter(conc_task *task);

/* The caller. */
CONC__INLINE conc__actor *conc__self(void) {
  conc__actor *self = conc__this.current;
  return CONC__LIKELY(self != NULL) ? self : conc__thread_enter(NULL);
}

CONC__PRIVATE void conc__unpark(conc__actor *actor, unsigned bit) {
  /* Read before the exchange: after it, unless it was parked, the actor may
     be gone. */
  const conc__actor_class *ops = actor->ops;
  unsigned seen = CONC__LOAD_RELAXED(&actor->word);
  while (!CONC__CAS(&actor->word, &seen,
                   (seen | bit) & ~(CONC__PARKED | CONC__POLLING))) {
  }
  if (seen & CONC__PARKED) ops->wake(actor, seen);
}

/* Announces that the caller is about to sleep: `how` is CONC__PARKED, and
   CONC__POLLING perhaps. False if a bit is there already. */
CONC__PRIVATE bool conc__park_announce(conc__actor *self, unsigned bits,
                                       unsigned how) {
  unsigned seen = CONC__LOAD(&self->word);
  do {
    if (seen & bits) return false;
  } while (!CONC__CAS(&self->word, &seen, seen | how));
  return true;
}

/* The sleeper's own wake-up (time is out). False if another one cleared
   CONC__PARKED first, and so has woken it or is about to. */
CONC__PRIVATE bool conc__park_retract(conc__actor *self) {
  unsigned how = CONC__PARKED | CONC__POLLING;
  return (CONC__AND(&self->word, ~how) & CONC__PARKED) != 0;
}

CONC__PRIVATE bool conc__take_cancel_slow(conc__actor *self) {
  conc_scope *s = self->scope;
  conc_scope *due = NULL;
  double now = s != NULL ? conc_now() : 0;
  for (; s != NULL && !s->shield; s = s->outer)
    if (!s->expired && s->deadline <= now &&
        (due == NULL || s->deadline <= due->deadline))
      due = s;
  const conc__kind *kind = self->task->kind;
  if (s == NULL &&
      ((kind->take_cancel != NULL && kind->take_cancel(self)) ||
       (CONC__LOAD(&self->word) & CONC__POKED))) {
    CONC__AND(&self->word, ~CONC__POKED);
    self->task->was_cancelled = true;
    return true;
  }
  if (due != NULL) due->expired = true;
  return due != NULL;
}

/* If not, there is nothing to take. */
CONC__INLINE bool conc__may_be_cancelled(const conc__actor *self) {
  return self->scope != NULL || (CONC__LOAD(&self->word) & CONC__POKED);
}

/* Takes a pending cancellation, if there is one: it is now delivered. A time
   limit is one, too, if its time is out; of several the one that was first. */
CONC__INLINE bool conc__take_cancel(conc__actor *self) {
  return CONC__UNLIKELY(conc__may_be_cancelled(self)) &&
         conc__take_cancel_slow(self);
}

/* The bit of conc_cancel, unless the actor is shielded. */
CONC__INLINE unsigned conc__cancel_bit(const conc__actor *self) {
  const conc_scope *s = self->scope;
  while (s != NULL && !s->shield) s = s->outer;
  return s == NULL ? CONC__POKED : 0;
}

/* A deadline, or before that the end of a time limit. */
CONC__INLINE double conc__scope_limit(const conc__actor *self,
                                      double deadline) {
  const conc_scope *s = self->scope;
  for (; s != NULL && !s->shield; s = s->outer)
    if (!s->expired && s->deadline < deadline) deadline = s->deadline;
  return deadline;
}

/* --- spinning --- */

/* Waking a sleeping thread takes tens of microseconds; a waker that comes
   within that time is better awaited awake. Whether it does is learnt from
   the last waits: each spin in vain halves the next; after five there is none
   for 32 waits, then it is tried again. On one CPU the waker cannot run while
   we spin. `failed` starts at zero. */
CONC__PRIVATE double conc__spin_budget(unsigned failed) {
  if (conc__cpus < 2 || failed >= 5) return 0;
  return CONC_SPIN_SECONDS / (double)(1u << failed);
}

CONC__PRIVATE void conc__spin_learn(unsigned *failed, bool paid) {
  if (paid)
    *failed = 0;
  else
    *failed = *failed < 5 + 32 ? *failed + 1 : 3;
}

/* One busy wait, to be used like this:

     conc__spin_begin(&spin, &self->spin_failed, deadline);
     while (!paid && conc__spin_again(&spin, 1)) paid = what_is_awaited();
     conc__spin_end(&spin, paid);

   It always ends by conc__spin_end, which learns, even if there was no turn:
   that is what counts the waits until the next attempt. */
typedef struct conc__spin {
  double end;       /* 0: there is no turn */
  unsigned *failed; /* what has been learnt, and is to be */
  unsigned paused;  /* pauses since the last look at the clock */
} conc__spin;

CONC__INLINE void conc__spin_begin(conc__spin *spin, unsigned *failed,
                                   double deadline) {
  double budget = conc__spin_budget(*failed);
  spin->end = budget > 0 && deadline > 0 ? conc_now() + budget : 0;
  if (spin->end > deadline) spin->end = deadline;
  spin->failed = failed;
  spin->paused = 0;
}

/* Pauses so many times, of which one takes some 40 ns: fewer for a look that
   is cheap, more for one that disturbs others. False: it has not paid. The
   clock costs as much as a pause, so it is asked for each eighth one only. */
CONC__INLINE bool conc__spin_again(conc__spin *spin, unsigned pauses) {
  unsigned i;
  if (spin->end <= 0) return false;
  for (i = 0; i < pauses; i++) conc__pause();
  spin->paused += pauses;
  if (spin->paused < 8) return true;
  spin->paused = 0;
  return conc_now() < spin->end;
}

CONC__INLINE void conc__spin_end(conc__spin *spin, bool paid) {
  conc__spin_learn(spin->failed, paid);
}

/* A busy wait for what takes a running thread a few instructions: some pauses,
   as one that spins as well answers, then it lets others run a few times, for
   with more threads than CPUs the one that is awaited may not run. Not if that
   takes long: on a busy machine the thread that yields is served last, and the
   one that sleeps first. Zeroed first. */
typedef struct conc__short_spin {
  int round;
  double end;
} conc__short_spin;

CONC__INLINE unsigned conc__tenth_of_second(double now) {
  return (unsigned)(uint64_t)(now * 10);
}

/* False: give up. `limit`: seconds that the yields may take together.
   `slow_at`: where it is remembered that a yield has taken a millisecond, so
   that for a while there is none; or NULL. */
CONC__PRIVATE bool conc__short_spin_again(conc__short_spin *spin, double limit,
                                          unsigned *slow_at) {
  double now, began;
  int i;
  if (spin->round < 3) {
    for (i = 0; i < 1 << spin->round; i++) conc__pause();
    spin->round++;
    return true;
  }
  now = conc_now();
  if (spin->round == 3) spin->end = now + limit;
  if (spin->round >= 10 || now > spin->end) return false;
  if (slow_at != NULL &&
      conc__tenth_of_second(now) - CONC__LOAD_RELAXED(slow_at) < 2)
    return false;
  began = now;
  sched_yield();
  if (slow_at != NULL) {
    now = conc_now();
    if (now - began > 1e-3)
      CONC__STORE_RELAXED(slow_at, conc__tenth_of_second(now));
  }
  spin->round++;
  return true;
}

/* --- threads as actors --- */

CONC__PRIVATE bool conc__thread_spin(conc__actor *self, unsigned bits,
                                     double deadline) {
  conc__spin spin;
  bool paid = false;
  conc__spin_begin(&spin, &self->spin_failed, deadline);
  while (!paid && conc__spin_again(&spin, 1))
    paid = (CONC__LOAD(&self->word) & bits) != 0;
  conc__spin_end(&spin, paid);
  return paid;
}

CONC__PRIVATE void conc__thread_park(conc__actor *self, unsigned bits,
                                     double deadline) {
  if (CONC__LOAD(&self->word) & bits) return;
  /* A sleep, which only conc_cancel can end, is not worth spinning for. */
  if ((bits & CONC__WOKEN) && conc__thread_spin(self, bits, deadline)) return;
  while (conc__park_announce(self, bits, CONC__PARKED)) {
    unsigned seen = CONC__LOAD(&self->word);
    if (seen & CONC__PARKED)
      conc__futex_wait(&self->word, seen, deadline, false);
    conc__park_retract(self);
    if (deadline < CONC__NEVER && conc_now() >= deadline) return;
  }
}

/* Waits for n descriptors in poll(), until one is ready: p[n] is free, for
   use here. Only conc_cancel can meet a thread in here; to be woken by it
   a thread of ours also polls a waker. How many are ready, -ETIMEDOUT,
   -ECANCELED or what poll() fails with. */
CONC__PRIVATE int conc__thread_poll(conc__actor *self, struct pollfd *p, int n,
                                    double deadline) {
  conc__thread *thread = &conc__this;
  struct pollfd *waker = &p[n];
  unsigned how = CONC__PARKED;
  bool slept = false;
  conc__spin spin;
  conc__spin_begin(&spin, &self->spin_failed, deadline);
  if (deadline > 0 && !thread->has_waker &&
      thread->actor.task != &thread->own)
    thread->has_waker = conc__waker_open(thread->waker) == 0;
  waker->fd = thread->has_waker ? thread->waker[0] : -1;
  if (thread->has_waker) how |= CONC__POLLING;
  waker->events = POLLIN;
  for (;;) {
    bool busy = !slept && conc__spin_again(&spin, 1);
    int ms = busy ? 0 : conc__milliseconds(deadline);
    int ready, error;
    waker->revents = 0;
    if (conc__take_cancel(self)) return -ECANCELED;
    if (!busy && ms != 0) {
      if (!conc__park_announce(self, conc__cancel_bit(self), how)) continue;
      slept = true;
    }
    CONC__POINT();
    ready = poll(p, (nfds_t)n + 1, ms);
    error = errno;
    if (ready < 0) waker->revents = 0;
    /* Somebody is about to write to the waker: not before he has may this
       thread end and close it. */
    if (!busy && ms != 0 && !conc__park_retract(self) && thread->has_waker)
      while (waker->revents == 0) ready += poll(waker, 1, -1) > 0;
    if (waker->revents) {
      conc__waker_drain(thread->waker);
      ready--;
    }
    if (ready < 0 && error != EINTR) return -error;
    if (ready > 0) {
      if (deadline > 0) conc__spin_end(&spin, spin.end > 0 && !slept);
      return ready;
    }
    if (!busy && deadline < CONC__NEVER && conc_now() >= deadline) {
      if (deadline > 0) conc__spin_end(&spin, false);
      return -ETIMEDOUT;
    }
  }
}

CONC__PRIVATE short conc__poll_events(int events) {
  return (short)((events & CONC_READ ? POLLIN : 0) |
                 (events & CONC_WRITE ? POLLOUT : 0));
}

CONC__PRIVATE int conc__thread_wait_fd(conc__actor *self, int fd, int events,
                                       double deadline) {
  struct pollfd p[2];
  int ready = 0;
  int rc;
  p[0].fd = fd;
  p[0].events = conc__poll_events(events);
  rc = conc__thread_poll(self, p, 1, deadline);
  if (rc < 0) return rc;
  if (p[0].revents & POLLNVAL) return -EBADF;
  if (p[0].revents & (POLLIN | POLLHUP | POLLERR)) ready |= CONC_READ;
  if (p[0].revents & (POLLOUT | POLLHUP | POLLERR)) ready |= CONC_WRITE;
  return ready & events ? ready & events : events;
}

/* A thread that parks for a waiter may be gone by now: nothing but the
   address of its word is used. One that polls is still there: only
   conc_cancel wakes it, and holds the guard of its task meanwhile. */
CONC__PRIVATE void conc__thread_wake(conc__actor *actor, unsigned seen) {
  if (seen & CONC__POLLING)
    conc__waker_wake(
        ((conc__thread *)((char *)actor - offsetof(conc__thread, actor)))
            ->waker);
  else conc__futex_wake(&actor->word, 1, false);
}

static const conc__actor_class conc__thread_class = {
    conc__thread_park, conc__thread_wait_fd, conc__thread_wake, true};

/* --- guards --- */

/* The internal lock: 0 free, 1 held, 2 held and somebody may sleep. Never
   held across a park; a thread that finds it held sleeps as a thread, even
   inside a coroutine, which is at most some dozen instructions long. */
typedef struct conc__mutex {
  unsigned word;
  char pad[60]; /* a cache line each */
} conc__mutex;

CONC__PRIVATE void conc__mutex_lock_slow(conc__mutex *m) {
  int i;
  for (i = 0; i < 40 && conc__cpus > 1; i++) {
    unsigned free = 0;
    if (CONC__LOAD_RELAXED(&m->word) == 0 && CONC__CAS(&m->word, &free, 1u))
      return;
    conc__pause();
  }
  while (__atomic_exchange_n(&m->word, 2u, __ATOMIC_ACQUIRE) != 0)
    conc__futex_wait(&m->word, 2, CONC__NEVER, false);
}

CONC__INLINE void conc__mutex_lock(conc__mutex *m) {
  unsigned free = 0;
  if (CONC__UNLIKELY(!CONC__CAS(&m->word, &free, 1u)))
    conc__mutex_lock_slow(m);
}

CONC__INLINE void conc__mutex_unlock(conc__mutex *m) {
  CONC__POINT();
  if (CONC__UNLIKELY(__atomic_exchange_n(&m->word, 0u, __ATOMIC_RELEASE) == 2))
    conc__futex_wake(&m->word, 1, false);
}

/* For CONC__CHECK: it is held, if not for sure by the caller. */
CONC__INLINE bool conc__mutex_is_held(const conc__mutex *m) {
  return CONC__LOAD_RELAXED(&m->word) != 0;
}

/* A power of two; the lower half and the upper half are used in pairs, see
   conc__mutex_pair. */
enum { CONC__MUTEXES = 256 };
static conc__mutex conc__mutexes[CONC__MUTEXES];

/* The guard of an object. Two objects may share one: so never hold two. */
CONC__INLINE conc__mutex *conc__mutex_of(const void *object) {
  uintptr_t h = (uintptr_t)object >> 4;
  return &conc__mutexes[(h ^ h >> 8 ^ h >> 16) % CONC__MUTEXES];
}

/* Two guards for an object whose sides rarely meet. The first is always before
   the second one in the table: what needs both takes them in this order, as
   conc__mutexes_lock does. */
CONC__INLINE conc__mutex *conc__mutex_pair(const void *object, int which) {
  size_t first = (size_t)(conc__mutex_of(object) - conc__mutexes);
  return &conc__mutexes[first % (CONC__MUTEXES / 2) +
                        (which != 0 ? CONC__MUTEXES / 2 : 0)];
}

/* All of them: then nothing that a guard protects changes. */
CONC__PRIVATE void conc__mutexes_lock(void) {
  size_t i;
  for (i = 0; i < CONC__MUTEXES; i++) conc__mutex_lock(&conc__mutexes[i]);
}

CONC__PRIVATE void conc__mutexes_unlock(void) {
  size_t i;
  for (i = 0; i < CONC__MUTEXES; i++) conc__mutex_unlock(&conc__mutexes[i]);
}

/* In a forked child: the threads that might unlock them are not there. */
CONC__PRIVATE void conc__mutexes_reset(void) {
  size_t i;
  for (i = 0; i < CONC__MUTEXES; i++) conc__mutexes[i].word = 0;
}

/* --- what a fork calls ---

   There is one pthread_atfork in the library. What has to do with a fork has a
   row in this table, which it fills in when it is first used, so that a
   program has only those rows that it needs. The rows are in the order of
   locks, innermost first: before a fork the last row comes first, so that
   nobody waits for a guard while it holds one that is taken earlier; in the
   child the first row comes first, since what the others do rests on it. */

enum {
  CONC__FORK_CORE,     /* guards, wait lists, threads, loops: see >>fork */
  CONC__FORK_REGISTRY, /* ids of processes */
  CONC__FORK_PROCESS,  /* children; its guard is held by a start's own fork */
  CONC__FORK_POOL,     /* jobs that have stayed behind */
  CONC__FORK_ROWS
};

typedef struct conc__fork_row {
  void (*prepare)(void), (*parent)(void), (*child)(void); /* or NULL */
} conc__fork_row;

static const conc__fork_row *conc__fork_table[CONC__FORK_ROWS];

/* Held to change the table, and while a fork is under way: a row whose second
   half ran without the first would give back what nobody has taken, and a part
   that began meanwhile would be half made in the child. It is the innermost of
   all guards, since the fork of conc_process_start holds the processes' guard
   already. */
static conc__mutex conc__fork_guard;

CONC__PRIVATE void conc__fork_enter(unsigned row,
                                    const conc__fork_row *handlers) {
  conc__mutex_lock(&conc__fork_guard);
  CONC__STORE(&conc__fork_table[row], handlers);
  conc__mutex_unlock(&conc__fork_guard);
}

/* Lets go what conc__atfork_prepare has taken, by the rows of `which`. */
CONC__PRIVATE void conc__fork_undo(unsigned which) {
  unsigned row;
  for (row = 0; row < CONC__FORK_ROWS; row++)
    if ((which & 1u << row) && conc__fork_table[row]->parent != NULL)
      conc__fork_table[row]->parent();
}

CONC__PRIVATE void conc__atfork_prepare(void) {
  for (;;) {
    unsigned prepared = 0, present = 0, row;
    for (row = CONC__FORK_ROWS; row-- > 0;) {
      const conc__fork_row *handlers = CONC__LOAD(&conc__fork_table[row]);
      if (handlers == NULL) continue;
      prepared |= 1u << row;
      if (handlers->prepare != NULL) handlers->prepare();
    }
    conc__mutex_lock(&conc__fork_guard);
    for (row = 0; row < CONC__FORK_ROWS; row++)
      if (conc__fork_table[row] != NULL) present |= 1u << row;
    conc__this.fork_rows = prepared;
    if (prepared == present) return;
    /* One has come meanwhile: once more, with it in its place. */
    conc__mutex_unlock(&conc__fork_guard);
    conc__fork_undo(prepared);
  }
}

CONC__PRIVATE void conc__atfork_parent(void) {
  conc__mutex_unlock(&conc__fork_guard);
  conc__fork_undo(conc__this.fork_rows);
}

CONC__PRIVATE void conc__atfork_child(void) {
  unsigned row;
  conc__fork_guard.word = 0; /* who waits for it is not here */
  for (row = 0; row < CONC__FORK_ROWS; row++)
    if ((conc__this.fork_rows & 1u << row) &&
        conc__fork_table[row]->child != NULL)
      conc__fork_table[row]->child();
}

/* --- what is made once --- */

static pthread_key_t conc__thread_key; /* of a conc__thread: its destructor is
                                          how a foreign thread's end is seen */
static void (*conc__thread_ended)(void *thread); /* set by >>thread */

CONC__PRIVATE void conc__thread_key_ended(void *thread) {
  if (conc__thread_ended != NULL) conc__thread_ended(thread);
}

CONC__PRIVATE void conc__init_once(void) {
  conc__os_init();
  pthread_key_create(&conc__thread_key, conc__thread_key_ended);
  pthread_atfork(conc__atfork_prepare, conc__atfork_parent,
                 conc__atfork_child);
}

CONC__PRIVATE void conc__init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, conc__init_once);
}

/* --- how a thread becomes an actor --- */

/* Lists of tasks: the threads, and the coroutines of each loop. One that reads
   `next` alone finds it whole at any moment: see conc__fork_child. */
CONC__INLINE void conc__task_link(conc_task **list, conc_task *t) {
  t->link = list;
  t->next = *list;
  if (t->next != NULL) t->next->link = &t->next;
  CONC__STORE(list, t);
}

CONC__INLINE void conc__task_unlink(conc_task *t) {
  CONC__STORE(t->link, t->next);
  if (t->next != NULL) t->next->link = t->link;
}

/* A thread that the library did not start. */
static const conc__kind conc__foreign_kind = {
    "Dummy", false, false, false, NULL, NULL, NULL, NULL, NULL};
static unsigned conc__foreign_numbers; /* of default names */

/* The tasks of all threads that use the library: a fork needs to know. */
static conc_task *conc__threads;
static conc__mutex conc__threads_guard;

CONC__PRIVATE void conc__threads_enter(conc_task *task) {
  conc__mutex_lock(&conc__threads_guard);
  conc__task_link(&conc__threads, task);
  conc__mutex_unlock(&conc__threads_guard);
}

CONC__PRIVATE void conc__threads_leave(conc_task *task) {
  conc__mutex_lock(&conc__threads_guard);
  conc__task_unlink(task);
  conc__mutex_unlock(&conc__threads_guard);
}

/* The main thread is the one that runs constructors. */
static pthread_t conc__main_thread;

/* Makes the calling thread an actor: with the task that it was started for,
   or (a foreign thread, the main thread) with one of its own. */
CONC__PRIVATE conc__actor *conc__thread_enter(conc_task *task) {
  conc__thread *thread = &conc__this;
  conc__init();
  if (task == NULL) {
    task = &thread->own;
    task->kind = &conc__foreign_kind;
    if (pthread_equal(pthread_self(), conc__main_thread))
      task->name = "MainThread";
    else
      task->number = __atomic_add_fetch(&conc__foreign_numbers, 1u,
                                        __ATOMIC_RELAXED);
    task->actor = &thread->actor;
    task->id = 0; /* nobody joins it */
    memset(&task->done, 0, sizeof task->done);
    conc__threads_enter(task);
    pthread_setspecific(conc__thread_key, thread);
  }
  thread->actor.word = 0; /* what the thread was before may be cancelled */
  conc__actor_init(&thread->actor, &conc__thread_class, task);
  thread->current = &thread->actor;
  return thread->current;
}

/* --- wait lists --- */

/* One wait of one actor, on its stack. */
typedef struct conc__waiter {
  struct conc__waitlist *list; /* NULL once taken off; under the guard */
  conc__actor *actor;
  double since;     /* when it began to wait; 0: not known */
  /* For reports: what it waits for, and its relation to its owner. And the
     word that names the owner: whom it waits for. NULL: anybody might end this
     wait. */
  const char *what, *name, *relation;
  const uintptr_t *owner;
  struct conc__multiwait *many; /* that it is part of, or all of */
  conc_lock *lock;         /* that it will want then: conditions */
  bool stuck;
  bool found;    /* see conc__stuck_look */
  bool free;     /* its wait may end */
  bool uncancellable; /* this wait must not fail */
  bool
      recheck_after_fork; /* returns -EAGAIN, to look again, if a fork has left
                 behind the owner, or maybe somebody who was woken before it */
  unsigned extra_bits; /* bits that end the wait, too: then it is -ETIMEDOUT */
  int failure;   /* what it returns instead of 0 */
  int tag; /* rwlocks: what it wants; barriers: what the wait returns */
  /* So far zero at first; the rest is set by whoever links it. */
  struct conc__waiter *next, *prev;
  struct conc__waiter *next_stuck; /* see conc__stuck */
  struct conc__waiter *found_before, *found_after, *next_in_circle;
} conc__waiter;

CONC__PRIVATE void conc__waitlist_insert(struct conc__waitlist *list,
                                         conc__waiter *w, bool front) {
  w->actor->waiting = w;
  w->list = list;
  w->prev = front ? NULL : list->last;
  w->next = front ? list->first : NULL;
  if (w->prev != NULL)
    w->prev->next = w;
  else
    list->first = w;
  if (w->next != NULL)
    w->next->prev = w;
  else
    list->last = w;
}

CONC__PRIVATE void conc__waitlist_remove(conc__waiter *w) {
  if (w->prev != NULL)
    w->prev->next = w->next;
  else
    w->list->first = w->next;
  if (w->next != NULL)
    w->next->prev = w->prev;
  else
    w->list->last = w->prev;
  w->list = NULL;
}

/* Takes the longest waiter off, to be handed to conc__wake_all after the
   guard has been released; `next` links what is taken off. */
CONC__INLINE conc__waiter *conc__waitlist_take(struct conc__waitlist *list) {
  conc__waiter *w = list->first;
  if (CONC__LIKELY(w == NULL)) return NULL;
  conc__waitlist_remove(w);
  w->next = NULL;
  return w;
}

CONC__PRIVATE conc__waiter *conc__waitlist_take_n(struct conc__waitlist *list,
                                                  size_t n) {
  conc__waiter *chain = NULL;
  conc__waiter **end = &chain;
  while (n-- > 0 && (*end = conc__waitlist_take(list)) != NULL)
    end = &(*end)->next;
  return chain;
}

/* Wakes what was taken off. Without a guard: until it is woken, a waiter that
   is off its list stays where it is. */
CONC__PRIVATE void conc__wake_all(conc__waiter *chain) {
  while (chain != NULL) {
    conc__waiter *next = chain->next; /* read before it is let go */
    conc__unpark(chain->actor, CONC__WOKEN);
    chain = next;
  }
}

/* Wakes those whose wake-up the caller has put off. */
CONC__PRIVATE void conc__wake_notified(conc__actor *self) {
  conc__waiter *chain = self->notified;
  self->notified = NULL;
  conc__wake_all(chain);
}

/* --- waiting for many ---

   A waiter on each of many lists, which may be taken off at any time, also
   while their actor is busy elsewhere: then it is only entered into a list of
   those that were, latest first. Who does it holds the guard of the object all
   the while: so whoever has had that guard once afterwards has the waiter for
   himself again, and finds the object as it is to be. */
typedef struct conc__multiwait {
  struct conc__multiwait *next; /* of the same actor: for conc__fork_bury */
  conc__actor *actor;
  size_t want;         /* it waits until count is so much; 0: it does not */
  size_t count;        /* how many were taken off */
  conc__waiter *taken; /* those that the actor has not seen yet */
  struct conc__multiwait_node *nodes;
  size_t n;            /* of those the first, that were on lists */
  struct conc__multiwait_node *ready; /* seen, and not told yet */
  size_t told_count;
} conc__multiwait;

typedef struct conc__multiwait_node {
  conc__waiter waiter; /* first: a waiter that is part of many is its node */
  conc_task *task;
  size_t place;        /* in the order in which they finished, from 1 */
  struct conc__multiwait_node *next; /* among the ready */
} conc__multiwait_node;

/* What is taken off a list: enters those of a wait for many, and returns the
   others, which are to be woken. Under the guard. */
CONC__PRIVATE conc__waiter *conc__multiwait_enter(conc__waiter *chain) {
  conc__waiter **p = &chain;
  while (*p != NULL) {
    conc__waiter *w = *p;
    conc__multiwait *m = w->many;
    size_t count, want;
    if (m == NULL) {
      p = &w->next;
      continue;
    }
    *p = w->next;
    w->next = CONC__LOAD(&m->taken);
    while (!CONC__CAS(&m->taken, &w->next, w)) {
    }
    /* All in one order with conc__multiwait_wait, which writes `want` and then
       reads `count`: one of the two sees the other. */
    count = __atomic_add_fetch(&m->count, (size_t)1, __ATOMIC_SEQ_CST);
    want = __atomic_load_n(&m->want, __ATOMIC_SEQ_CST);
    if (want != 0 && count >= want && CONC__CAS(&m->want, &want, (size_t)0))
      conc__unpark(m->actor, CONC__WOKEN);
  }
  return chain;
}

/* ---------------------------------------------------------------------------
   >>deadlock: who waits for whom

   Who waits without a limit for something that has an owner, or for tasks, and
   has waited for a while, enters itself among the stuck and looks whether the
   owners form a circle: owner of what it waits for, owner of what that one
   waits for... In a circle each got hold of what it owns before it began to
   wait, so the last to begin finds the others stuck, or they find it. A wait
   for several tasks has several owners, and is part of a deadlock only if too
   few of them are not: what a gather waits for is the next to end, for it may
   fail.
   It looks with all guards held. Then nobody can be taken off a list or put on
   one, and a word does not change its owner while somebody is on the list of
   what it stands for: what is seen is true of one moment, and a circle never
   dissolves by itself. Nor is an owner's actor touched that is not stuck, for
   it might be gone.
   ------------------------------------------------------------------------ */

#define CONC__STUCK_AFTER 0.1

#define CONC__STUCK_BUCKETS 256
static conc__waiter *conc__stuck[CONC__STUCK_BUCKETS]; /* by actor */
static conc__mutex conc__stuck_guard;  /* of all this; taken before guards */
static char conc__stuck_report[2048];

CONC__PRIVATE conc__waiter **conc__stuck_bucket(uintptr_t id) {
  return &conc__stuck[(id >> 6 ^ id >> 12 ^ id >> 18) % CONC__STUCK_BUCKETS];
}

/* Nobody has ended the wait. All guards are held, here and below. */
CONC__PRIVATE bool conc__stuck_waits(const conc__waiter *w) {
  size_t want;
  if (w->many == NULL) return w->list != NULL;
  want = CONC__LOAD(&w->many->want);
  return want != 0 && CONC__LOAD(&w->many->count) < want;
}

/* How many owners there are, or tasks. */
CONC__PRIVATE size_t conc__stuck_owners(const conc__waiter *w) {
  return w->many != NULL ? w->many->n : 1;
}

/* The wait of one of them; NULL: it does not wait, or not for ever. */
CONC__PRIVATE conc__waiter *conc__stuck_next(const conc__waiter *w, size_t i) {
  const conc__multiwait_node *node =
      w->many != NULL ? &w->many->nodes[i] : NULL;
  const uintptr_t *owner = node != NULL ? &node->task->id : w->owner;
  conc__waiter *v;
  uintptr_t id;
  if (node != NULL && node->waiter.list == NULL) return NULL; /* it ended */
  id = CONC__OWNER(CONC__LOAD(owner));
  if (id == 0) return NULL;
  v = *conc__stuck_bucket(id);
  while (v != NULL && (v->actor->id != id || !conc__stuck_waits(v)))
    v = v->next_stuck;
  return v;
}

/* Whether the wait may end: enough of them may. The last first, for they have
   begun to wait last. */
CONC__PRIVATE bool conc__stuck_may_end(const conc__waiter *w) {
  size_t want = w->many != NULL ? CONC__LOAD(&w->many->want) : 1;
  size_t i = conc__stuck_owners(w);
  while (i > 0 && want > 0) {
    const conc__waiter *v = conc__stuck_next(w, --i);
    if (v == NULL || (v->found && v->free)) want--;
  }
  return want == 0;
}

/* Appends to the report, as much as fits. */
CONC__PRIVATE void conc__report(const char *format, ...) {
  size_t at = strlen(conc__stuck_report);
  va_list args;
  va_start(args, format);
  vsnprintf(conc__stuck_report + at, sizeof conc__stuck_report - at, format,
            args);
  va_end(args);
}

/* The default name of a task. */
CONC__PRIVATE void conc__task_label(const conc_task *task, char *out,
                                    size_t size) {
  snprintf(out, size, "%s-%u", task->kind->label, task->number);
}

CONC__PRIVATE void conc__report_task(const conc_task *task) {
  char label[24];
  if (task->name == NULL) conc__task_label(task, label, sizeof label);
  conc__report("%s", task->name != NULL ? task->name : label);
}

CONC__PRIVATE void conc__report_wait(const conc__waiter *w) {
  conc__report(" waits for %s", w->what != NULL ? w->what : "something");
  if (w->name != NULL) conc__report(" '%s'", w->name);
}

/* Ends a wait by an error. False if it has ended by itself. */
CONC__PRIVATE bool conc__stuck_fail(conc__waiter *w) {
  w->failure = -EDEADLK;
  if (w->many != NULL)
    return __atomic_exchange_n(&w->many->want, (size_t)0, __ATOMIC_SEQ_CST) >
           0;
  conc__waitlist_remove(w);
  return true;
}

/* Looks for a circle that `w` is part of; returns whose wait it has ended, to
   be woken, or NULL. */
CONC__PRIVATE conc__waiter *conc__stuck_look(conc__waiter *w) {
  conc__waiter *victim = NULL, *last = w;
  conc__waiter *v, *u;
  bool again = true;
  size_t i;
  w->found_before = w->found_after = NULL;
  w->found = true;
  /* Whom it leads to, while nobody is known to be free. */
  for (v = w; v != NULL; v = v->found_after) {
    v->next_in_circle = NULL;
    v->free = conc__stuck_may_end(v);
    for (i = v->free ? 0 : conc__stuck_owners(v); i-- > 0;) {
      u = conc__stuck_next(v, i);
      if (u == NULL || u->found) continue;
      u->found = true;
      u->free = false;
      u->found_before = last;
      u->found_after = NULL;
      last = last->found_after = u;
    }
  }
  while (again && !w->free) { /* who waits for the free is free */
    again = false;
    for (v = last; v != NULL; v = v->found_before)
      if (!v->free && conc__stuck_may_end(v)) v->free = again = true;
  }
  again = !w->free;
  while (again && w->next_in_circle == NULL) { /* the way back to w */
    again = false;
    for (v = last; v != NULL; v = v->found_before)
      for (i = conc__stuck_owners(v); i-- > 0 && !v->next_in_circle;) {
        u = conc__stuck_next(v, i);
        if (u == NULL || u->free || v->free) continue;
        if (u != w && u->next_in_circle == NULL) continue;
        v->next_in_circle = u;
        again = true;
      }
  }
  for (v = last; v != NULL; v = v->found_before) v->found = false;
  if (w->next_in_circle == NULL) return NULL;
  conc__stuck_report[0] = 0;
  conc__report_task(w->actor->task);
  v = w;
  do {
    if (victim == NULL && !v->uncancellable) victim = v;
    conc__report_wait(v);
    conc__report(" %s ", v->relation);
    v = v->next_in_circle;
    conc__report_task(v->actor->task);
    if (v != w) conc__report(", which");
  } while (v != w);
  return victim != NULL && conc__stuck_fail(victim) ? victim : NULL;
}

CONC__PRIVATE void conc__stuck_enter(conc__waiter *w) {
  conc__waiter **bucket = conc__stuck_bucket(w->actor->id);
  conc__waiter *victims = NULL, *victim;
  conc__wake_notified(w->actor); /* they may be part of the circle */
  conc__mutex_lock(&conc__stuck_guard);
  w->stuck = true;
  w->next_stuck = *bucket;
  *bucket = w;
  conc__mutexes_lock();
  while (conc__stuck_waits(w) && (victim = conc__stuck_look(w)) != NULL) {
    victim->next = victims;
    victims = victim;
  }
  conc__mutexes_unlock();
  conc__mutex_unlock(&conc__stuck_guard);
  conc__wake_all(victims);
}

CONC__PRIVATE void conc__stuck_leave(conc__waiter *w) {
  conc__waiter **p = conc__stuck_bucket(w->actor->id);
  conc__mutex_lock(&conc__stuck_guard);
  while (*p != w) p = &(*p)->next_stuck;
  *p = w->next_stuck;
  conc__mutex_unlock(&conc__stuck_guard);
  w->stuck = false;
}

CONC_API ssize_t conc_deadlock_report(char *buf, size_t size) {
  size_t n, fits;
  conc__mutex_lock(&conc__stuck_guard);
  n = strlen(conc__stuck_report);
  fits = n < size ? n : size - 1;
  if (size > 0) {
    memcpy(buf, conc__stuck_report, fits);
    buf[fits] = 0;
  }
  conc__mutex_unlock(&conc__stuck_guard);
  return (ssize_t)n;
}

/* ---------------------------------------------------------------------------
   >>wait: a waiter on a list parks: the one wait
   ------------------------------------------------------------------------ */

/* Parks a waiter that is on a list. 0: taken off and woken; -ETIMEDOUT or
   -ECANCELED: it took itself off; -EDEADLK: it was taken off for that.
   `cancellable` false: it cannot fail, and a cancellation stays pending. */
CONC__PRIVATE int conc__wait_on_list(conc__mutex *guard, conc__waiter *w,
                                     bool cancellable, double deadline) {
  conc__actor *self = w->actor;
  unsigned bits =
      CONC__WOKEN | w->extra_bits | (cancellable ? conc__cancel_bit(self) : 0);
  double look = CONC__NEVER; /* for a deadlock */
  int rc;
  if (!cancellable) w->uncancellable = true;
  if (cancellable) deadline = conc__scope_limit(self, deadline);
  if (w->owner != NULL && deadline >= CONC__NEVER)
    look = (w->since > 0 ? w->since : conc__now_about()) + CONC__STUCK_AFTER;
  for (;;) {
    unsigned seen;
    bool mine;
    self->ops->park(self, bits, look < deadline ? look : deadline);
    seen = CONC__LOAD(&self->word);
    if (seen & CONC__WOKEN) {
      CONC__AND(&self->word, ~CONC__WOKEN);
      rc = w->failure;
      break;
    }
    if (!(seen & bits) && (deadline >= CONC__NEVER || conc_now() < deadline)) {
      if (look < CONC__NEVER && conc_now() >= look) {
        look = CONC__NEVER;
        if (!w->stuck) conc__stuck_enter(w);
      }
      continue;
    }
    conc__mutex_lock(guard);
    mine = w->list != NULL;
    if (mine) conc__waitlist_remove(w);
    conc__mutex_unlock(guard);
    if (mine) {
      rc = cancellable && conc__take_cancel(self) ? -ECANCELED : -ETIMEDOUT;
      break;
    }
    bits = CONC__WOKEN; /* taken off: the wake-up is on its way */
    deadline = look = CONC__NEVER;
  }
  if (w->stuck) conc__stuck_leave(w);
  self->waiting = NULL;
  return rc;
}

/* The one wait. Called with the guard held, which it releases. Appends the
   waiter (or puts it in front, for one that was woken in vain) and parks;
   returns as above. */
CONC__PRIVATE int conc__waitlist_wait(conc__mutex *guard,
                                      struct conc__waitlist *list,
                                      conc__waiter *w, bool front,
                                      bool cancellable, double deadline) {
  if (cancellable && conc__take_cancel(w->actor)) {
    conc__mutex_unlock(guard);
    return -ECANCELED;
  }
  conc__waitlist_insert(list, w, front);
  conc__mutex_unlock(guard);
  return conc__wait_on_list(guard, w, cancellable, deadline);
}

CONC__PRIVATE void conc__waiter_init(conc__waiter *w, conc__actor *self,
                                     const char *what, const char *name) {
  memset(w, 0, offsetof(conc__waiter, next));
  w->actor = self;
  w->what = what;
  w->name = name;
}

/* Waits until so many were taken off. 0, -ETIMEDOUT (if a bit of `also` has
   come, too), -ECANCELED, -EDEADLK; unless it is uncancellable. */
CONC__PRIVATE int conc__multiwait_park(conc__multiwait *m, size_t want,
                                       bool uncancellable, unsigned also,
                                       double deadline) {
  conc__actor *self = m->actor;
  unsigned bits = CONC__WOKEN | also | conc__cancel_bit(self);
  conc__waiter all; /* on no list */
  double look = CONC__NEVER;
  int rc = 0;
  if (CONC__LOAD(&m->count) >= want) return 0;
  if (deadline <= 0) return -ETIMEDOUT;
  if (conc__take_cancel(self)) return -ECANCELED;
  deadline = conc__scope_limit(self, deadline);
  conc__waiter_init(&all, self, "several tasks", NULL);
  all.relation = "such as";
  all.many = m;
  all.uncancellable = uncancellable;
  if (deadline >= CONC__NEVER) look = conc__now_about() + CONC__STUCK_AFTER;
  self->waiting = &all;
  __atomic_store_n(&m->want, want, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&m->count, __ATOMIC_SEQ_CST) < want) {
    self->ops->park(self, bits, look < deadline ? look : deadline);
    if (CONC__LOAD(&self->word) & CONC__WOKEN) {
      if (CONC__LOAD(&m->want) == 0) break;
      CONC__AND(&self->word, ~CONC__WOKEN); /* by a fork, to be sure */
    } else if ((CONC__LOAD(&self->word) & bits) ||
               (deadline < CONC__NEVER && conc_now() >= deadline)) {
      break;
    } else if (look < CONC__NEVER && conc_now() >= look) {
      look = CONC__NEVER;
      conc__stuck_enter(&all);
    }
  }
  if (__atomic_exchange_n(&m->want, (size_t)0, __ATOMIC_SEQ_CST) == 0) {
    while (!(CONC__LOAD(&self->word) & CONC__WOKEN)) /* it is on its way */
      self->ops->park(self, CONC__WOKEN, CONC__NEVER);
    CONC__AND(&self->word, ~CONC__WOKEN);
    rc = all.failure;
  } else if (CONC__LOAD(&m->count) < want) {
    rc = conc__take_cancel(self) ? -ECANCELED : -ETIMEDOUT;
  }
  if (all.stuck) conc__stuck_leave(&all);
  self->waiting = NULL;
  return rc;
}

/* How one waits for a job of a pool, and how a pool's worker waits: it runs
   other jobs meanwhile. Set by >>pool before there is any of either. */
typedef struct conc__job_class {
  int (*await)(conc_task *job, bool uncancellable, double timeout);
  int (*many_wait)(conc__multiwait *m, size_t want, bool uncancellable,
                   double deadline);
  int (*join)(conc_task *task, double timeout); /* by a worker */
} conc__job_class;

static const conc__job_class *conc__jobs;

CONC__PRIVATE int conc__multiwait_wait(conc__multiwait *m, size_t want,
                                       bool uncancellable, double deadline) {
  if (CONC__UNLIKELY(conc__this.worker != NULL))
    return conc__jobs->many_wait(m, want, uncancellable, deadline);
  return conc__multiwait_park(m, want, uncancellable, 0, deadline);
}

/* ---------------------------------------------------------------------------
   >>registry: who is alive, and waiting, between processes

   Whatever is claimed in shared memory is claimed by one atomic store that
   names the claimant, so that who is stuck behind it can ask if that process
   is dead. A name is an id: the index of an entry in a registry, and how often
   that entry has been used; ids of earlier uses are dead. A process that lives
   holds a record lock on the byte of its entry: the kernel drops it at the
   process's end, before it is a zombie, and a forked child does not inherit
   it. So nothing has to be told by those who die, and to ask is one fcntl().

   Closing any descriptor of a file drops the process's locks on it: a registry
   has one descriptor in a process, which stays open as long as the memory is
   there that is used with it. All the anonymous memory of a process has one
   registry, which its children inherit: the family's.
   ------------------------------------------------------------------------ */

#define CONC__PROCESSES 1024u /* entries: the lower 10 bits of an id */
#define CONC__PROCESS_ID 0x3fffffffu

struct conc__registry {
  unsigned next; /* the entry to try first */
  unsigned uses[CONC__PROCESSES]; /* the upper 20 bits of its last id */
  unsigned
      made; /* of named memory: CONC__REGISTRY_READY once init has returned */
  uint64_t size; /* and its size */
};

#define CONC__REGISTRY_READY                                                  \
  0x636f6e02u /* changes with what lies in shared memory */

/* What a process knows of a registry for itself: the end of the private page
   that is mapped right before it. */
struct conc__registry_mine {
  size_t users; /* regions */
  int fd;
  unsigned self; /* our id; 0: none yet in this process */
};

/* A piece of shared memory. */
typedef struct conc__region {
  struct conc__region *next;
  struct conc__registry *registry;
  char *memory;
  size_t size;
  size_t users; /* of a name */
  const char *name; /* NULL: none; else the registry is its own */
} conc__region;

static conc__mutex conc__shared_guard; /* of all this; before other guards */
static conc__region *conc__regions;
static struct conc__registry *conc__family;
static pthread_once_t conc__shared_once = PTHREAD_ONCE_INIT;

CONC__INLINE struct conc__registry_mine *
conc__registry_local(struct conc__registry *r) {
  return (struct conc__registry_mine *)(void *)r - 1;
}

CONC__PRIVATE void conc__shared_fork_prepare(void) {
  conc__mutex_lock(&conc__shared_guard);
}

CONC__PRIVATE void conc__shared_fork_parent(void) {
  conc__mutex_unlock(&conc__shared_guard);
}

CONC__PRIVATE unsigned conc__registry_enter(struct conc__registry *r);

/* The child is another process: it has no id yet. Where descriptors cannot
   tell that it is there (see conc__named_use), it does so by getting one. */
CONC__PRIVATE void conc__shared_fork_child(void) {
  conc__region *g;
  conc__shared_guard.word = 0;
  for (g = conc__regions; g != NULL; g = g->next) {
    conc__registry_local(g->registry)->self = 0;
#ifndef F_OFD_SETLK
    if (g->name != NULL) conc__registry_enter(g->registry);
#endif
  }
}

CONC__PRIVATE void conc__shared_init_once(void) {
  static const conc__fork_row row = {conc__shared_fork_prepare,
                                     conc__shared_fork_parent,
                                     conc__shared_fork_child};
  conc__init();
  conc__fork_enter(CONC__FORK_REGISTRY, &row);
}

/* Before conc__process_init_once registers its handlers, since who starts a
   process holds that guard first. */
CONC__PRIVATE void conc__shared_init(void) {
  pthread_once(&conc__shared_once, conc__shared_init_once);
}

/* --- the registry --- */

/* fcntl() on some bytes of a file: 0 or -1, and *type is what was found. */
CONC__PRIVATE int conc__record_lock(int fd, int command, unsigned first,
                                    unsigned n, short *type) {
  struct flock lock;
  int rc;
  memset(&lock, 0, sizeof lock);
  lock.l_type = *type;
  lock.l_whence = SEEK_SET;
  lock.l_start = (off_t)first;
  lock.l_len = (off_t)n;
  do rc = fcntl(fd, command, &lock);
  while (rc < 0 && errno == EINTR);
  *type = lock.l_type;
  return rc;
}

/* On the byte of one entry. */
CONC__PRIVATE int conc__registry_lock(struct conc__registry *r, int command,
                                      unsigned index, short *type) {
  *type = F_WRLCK;
  return conc__record_lock(conc__registry_local(r)->fd, command, index, 1,
                           type);
}

/* An entry whose lock we have is ours; from then on its old id is dead. */
CONC__PRIVATE unsigned conc__registry_enter(struct conc__registry *r) {
  struct conc__registry_mine *mine = conc__registry_local(r);
  unsigned id, i;
  conc__mutex_lock(&conc__shared_guard);
  id = mine->self;
  for (i = 0; i < CONC__PROCESSES && id == 0; i++) {
    unsigned index =
        __atomic_fetch_add(&r->next, 1u, __ATOMIC_RELAXED) % CONC__PROCESSES;
    unsigned uses;
    short type;
    if (conc__registry_lock(r, F_SETLK, index, &type) != 0) continue;
    uses = (CONC__LOAD(&r->uses[index]) + 1) & (CONC__PROCESS_ID >> 10);
    if (uses == 0) uses = 1;
    CONC__STORE(&r->uses[index], uses);
    id = uses << 10 | index;
  }
  CONC__STORE_RELAXED(&mine->self, id);
  conc__mutex_unlock(&conc__shared_guard);
  return id;
}

/* The caller's process. 0: there are too many. */
CONC__INLINE unsigned conc__registry_self(struct conc__registry *r) {
  unsigned id = CONC__LOAD_RELAXED(&conc__registry_local(r)->self);
  return CONC__LIKELY(id != 0) ? id : conc__registry_enter(r);
}

/* Whether that process has ended, or has given up its memory. Exact: once it
   is true, nothing of it runs any more. A system call. */
CONC__PRIVATE bool conc__registry_is_dead(struct conc__registry *r,
                                          unsigned id) {
  unsigned index = id % CONC__PROCESSES;
  short type;
  if (id == CONC__LOAD_RELAXED(&conc__registry_local(r)->self)) return false;
  if (CONC__LOAD(&r->uses[index]) != id >> 10) return true;
  if (conc__registry_lock(r, F_GETLK, index, &type) != 0) return false;
  return type == F_UNLCK || CONC__LOAD(&r->uses[index]) != id >> 10;
}

/* Maps a file, and a private page before it. NULL and errno. */
CONC__PRIVATE void *conc__registry_map(int fd, size_t size) {
  size_t page = conc__page;
  struct conc__registry_mine *mine;
  char *p = (char *)mmap(NULL, page + size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE, fd, 0);
  if (p == (char *)MAP_FAILED) return NULL;
  if (mmap(p + page, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
           0) == MAP_FAILED) {
    int error = errno;
    munmap(p, page + size);
    errno = error;
    return NULL;
  }
  mine = conc__registry_local((struct conc__registry *)(void *)(p + page));
  mine->users = 0;
  mine->fd = fd;
  mine->self = 0;
  return p + page;
}

CONC__PRIVATE void conc__registry_unmap(struct conc__registry *r,
                                        size_t size) {
  int fd = conc__registry_local(r)->fd;
  munmap((char *)(void *)r - conc__page, conc__page + size);
  close(fd);
}

/* A file in memory, without a name. A descriptor, or negative errno. */
CONC__PRIVATE int conc__shared_file(size_t size) {
  int fd = conc__file_open();
  if (fd < 0) return fd;
  if (size > (size_t)LONG_MAX || ftruncate(fd, (off_t)size) != 0) {
    int rc = size > (size_t)LONG_MAX ? -ENOMEM : -errno;
    close(fd);
    return rc == -EFBIG || rc == -ENOSPC ? -ENOMEM : rc;
  }
  return fd;
}

/* The family's registry; the guard is held. 0 or negative errno. */
CONC__PRIVATE int conc__family_open(void) {
  int fd;
  if (conc__family != NULL) return 0;
  fd = conc__shared_file(sizeof *conc__family);
  if (fd < 0) return fd;
  conc__family = (struct conc__registry *)conc__registry_map(
      fd, sizeof *conc__family);
  if (conc__family == NULL) {
    int rc = -errno;
    close(fd);
    return rc;
  }
  return 0;
}

/* The registry that goes with the shared memory at p. NULL and errno EINVAL:
   it is none. */
CONC__PRIVATE struct conc__registry *conc__registry_of(const void *p) {
  struct conc__registry *r = NULL;
  const conc__region *g;
  conc__mutex_lock(&conc__shared_guard);
  for (g = conc__regions; g != NULL && r == NULL; g = g->next)
    if ((uintptr_t)p - (uintptr_t)g->memory < g->size) r = g->registry;
  conc__mutex_unlock(&conc__shared_guard);
  if (r == NULL) errno = EINVAL;
  return r;
}

/* --- waiting --- */

/* Who waits between processes looks around after so long: for owners that have
   died, and because a wake-up may have died with whom it woke. */
#define CONC__SHARED_LOOK 20e-3
/* Where there is nothing to be woken by, it looks after pauses up to this. */
#define CONC__SHARED_PAUSE 2e-3

/* As conc__thread_spin, for a word that another process changes. */
CONC__PRIVATE bool conc__shared_spin(conc__actor *self, const unsigned *word,
                                     unsigned value) {
  conc__spin spin;
  bool paid = false;
  if (!self->ops->blocks) return false;
  conc__spin_begin(&spin, &self->spin_failed, CONC__NEVER);
  while (!paid && conc__spin_again(&spin, 1)) paid = CONC__LOAD(word) != value;
  conc__spin_end(&spin, paid);
  return paid;
}

/* Sleeps while *word == value, until woken or for as long as that goes without
   a look. A coroutine sleeps in its loop, which must not block: it is not
   woken, but pauses, longer and longer. */
CONC__PRIVATE void conc__shared_sleep(conc__actor *self, unsigned *word,
                                      unsigned value, double deadline,
                                      unsigned round, bool cancellable) {
  double until = conc_now();
#if CONC_HAVE_FUTEX
  if (self->ops->blocks) {
    until += CONC__SHARED_LOOK;
    conc__futex_wait(word, value, until < deadline ? until : deadline, true);
    return;
  }
#endif
  if (CONC__LOAD(word) != value) return;
  until += round < 6 ? CONC__SHARED_PAUSE / (64 >> round) : CONC__SHARED_PAUSE;
  self->ops->park(self, cancellable ? conc__cancel_bit(self) : 0,
                  until < deadline ? until : deadline);
}

/* Waits while *word == value. 0: look again, if only because it is time to;
   -ETIMEDOUT, -ECANCELED. *round is 0 at first. */
CONC__PRIVATE int conc__shared_wait(unsigned *word, unsigned value,
                                    double deadline, unsigned *round) {
  conc__actor *self = conc__self();
  if (conc__take_cancel(self)) return -ECANCELED;
  if (deadline < CONC__NEVER && conc_now() >= deadline) return -ETIMEDOUT;
  if (*round == 0) /* and look before the first sleep */
    conc__shared_spin(self, word, value);
  else
    conc__shared_sleep(self, word, value, conc__scope_limit(self, deadline),
                       *round, true);
  ++*round;
  return 0;
}

/* Wakes up to n threads of any process. The memory may be gone by now. */
CONC__PRIVATE void conc__shared_wake(unsigned *word, int n) {
#if CONC_HAVE_FUTEX
  conc__futex_wake(word, n, true);
#else
  (void)word, (void)n;
#endif
}

/* ---------------------------------------------------------------------------
   >>lock: conc_lock, conc_rlock, conc_rwlock, conc_once
   ------------------------------------------------------------------------ */

/* --- what is shared between processes ---

   The word of an object that was made shared is never what the calls for one
   process look for first; the next thing they look for is this. (A lock also
   says so where the order of locks is, which they look at anyway.) The rest of
   the word says how far it is from the object to the registry. */

#define CONC__SHARED (~(UINTPTR_MAX >> 1) | CONC__OWNER_NONE)

CONC__INLINE bool conc__is_shared(uintptr_t word) {
  return (word & CONC__SHARED) == CONC__SHARED;
}

/* The flag of an owner's word, in locks: the list of waiters may have somebody
   in it. */
#define CONC__LOCK_WAITERS CONC__OWNER_FLAG

/* In words that name a process: somebody waits for it to change; and: who has
   taken it from the dead is about to write the actor beside it. */
#define CONC__AWAITS 0x80000000u
#define CONC__OWNER_CHANGING 0x40000000u

/* The word of an object that lies so and so far from its registry. */
CONC__PRIVATE uintptr_t conc__shared_word(const void *object,
                                          struct conc__registry *r) {
  uintptr_t pages = ((uintptr_t)r >> 12) - ((uintptr_t)object >> 12);
  return CONC__SHARED | (pages << 12 >> 10) | CONC__LOCK_WAITERS;
}

CONC__INLINE struct conc__registry *conc__shared_registry(const void *object,
                                                          uintptr_t word) {
  uintptr_t page = ((uintptr_t)object >> 12) + (word >> 2);
  return (struct conc__registry *)(page << 12);
}

/* Whether it is time to ask if an owner is dead: before the first sleep. */
CONC__INLINE bool conc__shared_doubts(unsigned round, double deadline) {
  return round > 0 || deadline <= 0;
}

/* A claim is held by an actor of a process; it stands where locks between
   threads have their list of waiters. The word alone says whose process has
   it. The actor is written afterwards, and so is never another one's: it is 0
   before, but after the death of an owner, when CONC__OWNER_CHANGING tells. */
typedef struct conc__claim {
  unsigned word;
  uintptr_t actor;
} conc__claim;

CONC__INLINE bool conc__claim_is_mine(const conc__claim *c, unsigned id,
                                      uintptr_t me) {
  return (CONC__LOAD(&c->word) & ~CONC__AWAITS) == id &&
         CONC__LOAD_RELAXED(&c->actor) == me;
}

CONC__PRIVATE int conc__claim_wait(conc__claim *c, struct conc__registry *r,
                                   conc__actor *self, bool cancellable,
                                   double deadline) {
  unsigned awaits = 0; /* perhaps others do, too, once we have */
  unsigned round = 0;
  for (;;) {
    unsigned seen = CONC__LOAD(&c->word);
    unsigned owner = seen & CONC__PROCESS_ID;
    unsigned id = conc__registry_self(r); /* another one after a fork */
    if (id == 0) return -EAGAIN;
    if (owner == 0) {
      if (!CONC__CAS(&c->word, &seen, id | awaits)) continue;
      CONC__STORE_RELAXED(&c->actor, self->id);
      return 0;
    }
    if (conc__claim_is_mine(c, id, self->id)) return -EDEADLK;
    if (conc__shared_doubts(round, deadline) &&
        conc__registry_is_dead(r, owner)) {
      if (!CONC__CAS(&c->word, &seen,
                     id | CONC__AWAITS | CONC__OWNER_CHANGING))
        continue;
      CONC__STORE_RELAXED(&c->actor, self->id);
      CONC__AND(&c->word, ~CONC__OWNER_CHANGING);
      return -EOWNERDEAD;
    }
    if (deadline <= 0) return -ETIMEDOUT;
    if (round == 0) { /* unannounced, so that nobody need be woken */
      conc__shared_spin(self, &c->word, seen);
      round++;
      continue;
    }
    if (!(seen & CONC__AWAITS) &&
        !CONC__CAS(&c->word, &seen, seen | CONC__AWAITS))
      continue;
    awaits = CONC__AWAITS;
    if (cancellable) {
      int rc = conc__shared_wait(&c->word, seen | awaits, deadline, &round);
      if (rc != 0) return rc;
    } else {
      conc__shared_sleep(self, &c->word, seen | awaits, CONC__NEVER, round++,
                         false);
    }
  }
}

/* 0, -EOWNERDEAD, -EDEADLK, -ETIMEDOUT, -ECANCELED, -EAGAIN. */
CONC__INLINE int conc__claim_acquire(conc__claim *c, struct conc__registry *r,
                                     conc__actor *self, bool cancellable,
                                     double timeout) {
  unsigned id = conc__registry_self(r);
  unsigned seen = 0;
  if (CONC__UNLIKELY(id == 0)) return -EAGAIN;
  if (!CONC__CAS(&c->word, &seen, id))
    return conc__claim_wait(c, r, self, cancellable, conc__deadline(timeout));
  CONC__STORE_RELAXED(&c->actor, self->id);
  return 0;
}

CONC__INLINE int conc__claim_release(conc__claim *c, struct conc__registry *r,
                                     conc__actor *self) {
  unsigned id = conc__registry_self(r);
  unsigned seen = id;
  if (id == 0 || !conc__claim_is_mine(c, id, self->id)) return -EPERM;
  CONC__STORE_RELAXED(&c->actor, (uintptr_t)0);
  if (!CONC__CAS(&c->word, &seen, 0u)) {
    CONC__STORE(&c->word, 0u);
    conc__shared_wake(&c->word, 1);
  }
  return 0;
}

/* What is more than a word is under a guard of its own, held by a process for
   some dozen instructions. Each step of a change leaves it in a state that is
   as good as one in which the process had died earlier. 0; 1 if it was held by
   one who died; -EAGAIN. */
CONC__PRIVATE int conc__shared_enter(struct conc__registry *r,
                                     unsigned *guard) {
  unsigned id = conc__registry_self(r);
  unsigned seen = 0;
  int i;
  if (id == 0) return -EAGAIN;
  if (CONC__CAS(guard, &seen, id)) return 0;
  for (i = 0;; i++) {
    unsigned owner;
    seen = CONC__LOAD(guard);
    owner = seen & CONC__PROCESS_ID;
    if (owner == 0) {
      if (CONC__CAS(guard, &seen, i > 20 ? id | CONC__AWAITS : id)) return 0;
    } else if (i < 10) {
      conc__pause();
    } else if (i < 20) {
      sched_yield();
    } else if (conc__registry_is_dead(r, owner)) {
      if (CONC__CAS(guard, &seen, id | CONC__AWAITS)) return 1;
    } else if ((seen & CONC__AWAITS) ||
               CONC__CAS(guard, &seen, seen | CONC__AWAITS)) {
      conc__shared_sleep(&conc__this.actor, guard, seen | CONC__AWAITS,
                         CONC__NEVER, 0, false);
    }
  }
}

CONC__PRIVATE void conc__shared_leave(unsigned *guard) {
  CONC__POINT();
  if (__atomic_exchange_n(guard, 0u, __ATOMIC_ACQ_REL) & CONC__AWAITS)
    conc__shared_wake(guard, 1);
}

/* The processes that have a part in something. Each only writes its own place,
   which counts from when the id is there. */
CONC__PRIVATE unsigned *conc__sharers_find(struct conc__sharers *s,
                                           unsigned id) {
  size_t i;
  for (i = 0; i < CONC__SHARERS; i++)
    if (s->id[i] == id) return &s->count[i];
  return NULL;
}

/* False: there are too many others. */
CONC__PRIVATE bool conc__sharers_add(struct conc__sharers *s, unsigned id) {
  unsigned *count = conc__sharers_find(s, id);
  if (count != NULL) {
    ++*count;
    return true;
  }
  count = conc__sharers_find(s, 0);
  if (count == NULL) return false;
  *count = 1;
  CONC__STORE(&s->id[count - s->count], id);
  return true;
}

CONC__PRIVATE void conc__sharers_remove(struct conc__sharers *s, unsigned id) {
  unsigned *count = conc__sharers_find(s, id);
  if (--*count == 0) CONC__STORE(&s->id[count - s->count], 0u);
}

CONC__PRIVATE bool conc__sharers_any(const struct conc__sharers *s) {
  size_t i;
  for (i = 0; i < CONC__SHARERS; i++)
    if (s->id[i] != 0) return true;
  return false;
}

/* Drops the dead; whether there were any. */
CONC__PRIVATE bool conc__sharers_bury(struct conc__sharers *s,
                                      struct conc__registry *r) {
  bool any = false;
  size_t i;
  for (i = 0; i < CONC__SHARERS; i++)
    if (s->id[i] != 0 && conc__registry_is_dead(r, s->id[i])) {
      s->id[i] = 0;
      any = true;
    }
  return any;
}

/* --- what tools are told ---

   ThreadSanitizer sees the words anyway, and with them what happens before
   what; so it also knows which locks a race was under, and finds deadlocks of
   its own. Told after the lock was acquired, and before it is released. */

#if CONC_HAVE_TSAN
void __tsan_mutex_pre_lock(void *, unsigned);
void __tsan_mutex_post_lock(void *, unsigned, int);
int __tsan_mutex_pre_unlock(void *, unsigned);
void __tsan_mutex_post_unlock(void *, unsigned);
#define CONC__TSAN_TRY 16u
#define CONC__TSAN_READ 8u
#endif

CONC__INLINE void conc__tell_acquired(void *lock, bool read, bool tries) {
#if CONC_HAVE_TSAN
  unsigned flags = (read ? CONC__TSAN_READ : 0) | (tries ? CONC__TSAN_TRY : 0);
  __tsan_mutex_pre_lock(lock, flags);
  __tsan_mutex_post_lock(lock, flags, 0);
#else
  (void)lock, (void)read, (void)tries;
#endif
}

CONC__INLINE void conc__tell_released(void *lock, bool read) {
#if CONC_HAVE_TSAN
  __tsan_mutex_pre_unlock(lock, read ? CONC__TSAN_READ : 0);
  __tsan_mutex_post_unlock(lock, read ? CONC__TSAN_READ : 0);
#else
  (void)lock, (void)read;
#endif
}

/* --- the order of locks ---

   A name is a bit. For each name there is the set of those that have been held
   when it was acquired, and of those that were held when these were, and so
   on. So an acquisition that says nothing new, which is nearly every one, is
   one look at that set. */

enum { CONC__ORDER_UNKNOWN = 0, CONC__ORDER_NONE = 1 };
#define CONC__ORDER_SHARED 255 /* none: names are not known to all processes */
#define CONC__LOCK_ORDERS (8 * sizeof(uintptr_t))
#define CONC__LOCK_ORDER_BIT(order) ((uintptr_t)1 << (order))

static conc__mutex conc__lock_order_guard; /* of all this */
static char conc__lock_order_names[CONC__LOCK_ORDERS][48];
static size_t conc__lock_orders = 2;
static uintptr_t conc__lock_order_before[CONC__LOCK_ORDERS];
/* `before`, and what has been reported; also read without the guard. */
static uintptr_t conc__lock_order_known[CONC__LOCK_ORDERS];
static void (*conc__lock_order_report)(const char *text, void *arg);
static void *conc__lock_order_arg;

CONC_API void conc_on_lock_order(void (*report)(const char *text, void *arg),
                                 void *arg) {
  conc__mutex_lock(&conc__lock_order_guard);
  conc__lock_order_report = report;
  conc__lock_order_arg = arg;
  conc__mutex_unlock(&conc__lock_order_guard);
}

/* The order of a name. The guard is held. */
CONC__PRIVATE unsigned char conc__lock_order_of(const char *name) {
  size_t i;
  if (name == NULL || strlen(name) >= sizeof conc__lock_order_names[0])
    return CONC__ORDER_NONE;
  for (i = 2; i < conc__lock_orders; i++)
    if (strcmp(conc__lock_order_names[i], name) == 0) return (unsigned char)i;
  if (i == CONC__LOCK_ORDERS) return CONC__ORDER_NONE;
  memcpy(conc__lock_order_names[i], name, strlen(name) + 1);
  conc__lock_orders++;
  return (unsigned char)i;
}

/* `c` is acquired while `h` is held, which is new. The guard is held. Whether
   it is to be reported. */
CONC__PRIVATE bool conc__lock_order_add(size_t h, size_t c) {
  size_t i;
  if (conc__lock_order_before[h] & CONC__LOCK_ORDER_BIT(c)) return true;
  conc__lock_order_before[c] |=
      CONC__LOCK_ORDER_BIT(h) | conc__lock_order_before[h];
  for (i = 2; i < conc__lock_orders; i++) {
    if (conc__lock_order_before[i] & CONC__LOCK_ORDER_BIT(c))
      conc__lock_order_before[i] |= conc__lock_order_before[c];
    CONC__STORE_RELAXED(&conc__lock_order_known[i],
                        conc__lock_order_known[i] |
                            conc__lock_order_before[i]);
  }
  return false;
}

/* The caller has acquired the lock, for the first time or in a new order. */
CONC__PRIVATE void conc__lock_order_note(conc_lock *lock, conc__actor *self,
                                         bool tries) {
  void (*report)(const char *, void *) = NULL;
  void *arg = NULL;
  char text[256], label[24];
  const conc_task *task = self->task;
  uintptr_t missing;
  size_t c, h;
  if (task->name == NULL) conc__task_label(task, label, sizeof label);
  conc__mutex_lock(&conc__lock_order_guard);
  c = lock->order;
  if (c == CONC__ORDER_UNKNOWN) {
    c = conc__lock_order_of(lock->name);
    CONC__STORE_RELAXED(&lock->order, (unsigned char)c);
  }
  missing = 0;
  if (!tries && c != CONC__ORDER_NONE)
    missing = self->held & ~conc__lock_order_known[c];
  for (h = 2; missing != 0 && h < conc__lock_orders; h++) {
    if (h == c || !(missing & CONC__LOCK_ORDER_BIT(h))) continue;
    if (!conc__lock_order_add(h, c)) continue;
    CONC__STORE_RELAXED(&conc__lock_order_known[c],
                        conc__lock_order_known[c] | CONC__LOCK_ORDER_BIT(h));
    if (report != NULL) continue; /* one at a time is enough to look at */
    report = conc__lock_order_report;
    arg = conc__lock_order_arg;
    snprintf(text, sizeof text,
             "%s acquires '%s' and holds '%s', which was acquired before by "
             "one who held '%s'",
             task->name != NULL ? task->name : label,
             conc__lock_order_names[c], conc__lock_order_names[h],
             conc__lock_order_names[c]);
  }
  if (c != CONC__ORDER_NONE) {
    CONC__STORE_RELAXED(&conc__lock_order_known[c],
                        conc__lock_order_known[c] | CONC__LOCK_ORDER_BIT(c));
    self->held |= CONC__LOCK_ORDER_BIT(c);
  }
  conc__mutex_unlock(&conc__lock_order_guard);
  if (report != NULL) report(text, arg);
}

CONC__INLINE void conc__lock_acquired(conc_lock *lock, conc__actor *self,
                                      bool tries) {
  unsigned char order = CONC__LOAD_RELAXED(&lock->order);
  conc__tell_acquired(lock, false, tries);
  if (CONC__LIKELY(order == CONC__ORDER_NONE)) return;
  if (order == CONC__ORDER_UNKNOWN ||
      (self->held & ~CONC__LOAD_RELAXED(&conc__lock_order_known[order])))
    conc__lock_order_note(lock, self, tries);
  else self->held |= CONC__LOCK_ORDER_BIT(order);
}

/* --- conc_lock and conc_rlock between processes --- */

CONC__INLINE conc__claim *conc__lock_claim(const conc_lock *lock) {
  return (conc__claim *)(uintptr_t)&lock->waiters;
}

CONC_API int conc_lock_init_shared(conc_lock *lock) {
  struct conc__registry *r = conc__registry_of(lock);
  if (r == NULL) return -EINVAL;
  memset(&lock->waiters, 0, sizeof lock->waiters);
  lock->depth = 0;
  lock->order = CONC__ORDER_SHARED;
  CONC__STORE(&lock->word, conc__shared_word(lock, r));
  return 0;
}

CONC_API int conc_rlock_init_shared(conc_rlock *rlock) {
  return conc_lock_init_shared(&rlock->lock);
}

CONC__PRIVATE int conc__shared_lock_acquire(conc_lock *lock, conc__actor *self,
                                            bool cancellable, double timeout) {
  int rc = conc__claim_acquire(
      conc__lock_claim(lock),
      conc__shared_registry(lock, CONC__LOAD_RELAXED(&lock->word)), self,
      cancellable, timeout);
  if (CONC__LIKELY(rc == 0 || rc == -EOWNERDEAD))
    conc__tell_acquired(lock, false, timeout <= 0);
  return rc;
}

CONC__PRIVATE bool conc__shared_lock_is_mine(conc_lock *lock,
                                             conc__actor *self) {
  uintptr_t word = CONC__LOAD_RELAXED(&lock->word);
  unsigned id;
  if (!conc__is_shared(word)) return false;
  id = conc__registry_self(conc__shared_registry(lock, word));
  return id != 0 &&
         conc__claim_is_mine(conc__lock_claim(lock), id, self->id);
}

CONC__PRIVATE int conc__shared_lock_release(conc_lock *lock,
                                            conc__actor *self) {
#if CONC_HAVE_TSAN
  if (!conc__shared_lock_is_mine(lock, self)) return -EPERM;
  conc__tell_released(lock, false);
#endif
  return conc__claim_release(
      conc__lock_claim(lock),
      conc__shared_registry(lock, CONC__LOAD_RELAXED(&lock->word)), self);
}

CONC__PRIVATE bool conc__shared_lock_locked(const conc_lock *lock) {
  return CONC__LOAD(&conc__lock_claim(lock)->word) != 0;
}

/* --- conc_lock ---

   The word is 0, or its owner's actor, or'ed with 1 if the list of waiters
   may have somebody in it. It changes to "free" without the guard only from
   a word without the 1, so that whoever must wake somebody holds the guard. */

/* A waiter that has waited so long is handed the lock: no barging then. */
#define CONC__LOCK_PATIENCE 0.5e-3

CONC__PRIVATE bool conc__lock_try(conc_lock *lock, uintptr_t me) {
  uintptr_t seen = CONC__LOAD_RELAXED(&lock->word);
  return (seen & ~CONC__LOCK_WAITERS) == 0 &&
         CONC__CAS(&lock->word, &seen, seen | me);
}

CONC__INLINE bool conc__lock_is_mine(const conc_lock *lock, uintptr_t me) {
  return (CONC__LOAD_RELAXED(&lock->word) & ~CONC__LOCK_WAITERS) == me;
}

/* Spins as long as the owner is likely to be done at once. A coroutine's CPU
   is better given to the next coroutine. */
CONC__PRIVATE bool conc__lock_spin(conc_lock *lock, conc__actor *self) {
  conc__short_spin spin = {0, 0};
  if (conc__cpus < 2 || !self->ops->blocks) return false;
  while (conc__short_spin_again(&spin, CONC__LOCK_PATIENCE / 10, NULL))
    if (conc__lock_try(lock, self->id)) return true;
  return false;
}

CONC__PRIVATE int conc__lock_acquire_slow(conc_lock *lock, conc__actor *self,
                                          bool cancellable, double deadline) {
  conc__mutex *guard = conc__mutex_of(lock);
  uintptr_t me = self->id;
  bool front = false;
  conc__waiter w;
  if (conc__lock_is_mine(lock, me)) return -EDEADLK;
  if (conc__lock_try(lock, me)) return 0;
  if (!conc__owner_is_gone(CONC__LOAD_RELAXED(&lock->word))) {
    if (deadline <= 0) return -ETIMEDOUT;
    if (conc__lock_spin(lock, self)) return 0;
  }
  conc__waiter_init(&w, self, "lock", lock->name);
  w.since = conc_now();
  w.relation = "held by";
  w.owner = &lock->word;
  w.recheck_after_fork = true;
  for (;;) {
    uintptr_t seen;
    int rc;
    conc__mutex_lock(guard);
    seen = CONC__LOAD_RELAXED(&lock->word);
    for (;;) { /* take it, or say that somebody waits */
      bool gone = conc__owner_is_gone(seen);
      bool free = CONC__OWNER(seen) == 0 || gone;
      uintptr_t want = seen | CONC__LOCK_WAITERS;
      if (free) want = me | (lock->waiters.first ? CONC__LOCK_WAITERS : 0);
      if (!CONC__CAS(&lock->word, &seen, want)) continue;
      if (!free) break;
      conc__mutex_unlock(guard);
      return gone ? -EOWNERDEAD : 0;
    }
    rc = conc__waitlist_wait(guard, &lock->waiters, &w, front, cancellable,
                             deadline);
    if (rc != 0 && rc != -EAGAIN) return rc;
    w.failure = 0;
    if ((CONC__LOAD(&lock->word) & ~CONC__LOCK_WAITERS) == me) return 0;
    front = true; /* somebody was faster: wait on where we were */
  }
}

CONC_API int conc_lock_acquire(conc_lock *lock, double timeout) {
  conc__actor *self = conc__self();
  uintptr_t free = 0;
  int rc = 0;
  if (CONC__UNLIKELY(CONC__LOAD_RELAXED(&lock->order) == CONC__ORDER_SHARED))
    return conc__shared_lock_acquire(lock, self, true, timeout);
  if (CONC__UNLIKELY(!CONC__CAS(&lock->word, &free, self->id)))
    rc = conc__lock_acquire_slow(lock, self, true, conc__deadline(timeout));
  if (CONC__LIKELY(rc == 0 || rc == -EOWNERDEAD))
    conc__lock_acquired(lock, self, timeout <= 0);
  return rc;
}

CONC__PRIVATE int conc__lock_release_slow(conc_lock *lock, conc__actor *self) {
  conc__mutex *guard = conc__mutex_of(lock);
  uintptr_t next = 0;
  conc__waiter *w;
  if (!conc__lock_is_mine(lock, self->id)) return -EPERM;
  conc__mutex_lock(guard);
  w = conc__waitlist_take(&lock->waiters);
  if (w != NULL && conc_now() - w->since > CONC__LOCK_PATIENCE)
    next = w->actor->id;
  if (lock->waiters.first != NULL) next |= CONC__LOCK_WAITERS;
  CONC__STORE(&lock->word, next); /* the last touch of the lock */
  conc__mutex_unlock(guard);
  conc__wake_all(w);
  conc__wake_notified(self);
  return 0;
}

CONC_API int conc_lock_release(conc_lock *lock) {
  conc__actor *self = conc__self();
  uintptr_t seen = self->id;
  /* The lock may be gone once it has been released. */
  unsigned char order = CONC__LOAD_RELAXED(&lock->order);
  int rc = 0;
  if (CONC__UNLIKELY(order == CONC__ORDER_SHARED))
    return conc__shared_lock_release(lock, self);
#if CONC_HAVE_TSAN
  if (!conc__lock_is_mine(lock, self->id)) return -EPERM;
#endif
  conc__tell_released(lock, false);
  if (CONC__UNLIKELY(!CONC__CAS(&lock->word, &seen, (uintptr_t)0)))
    rc = conc__lock_release_slow(lock, self);
  if (CONC__UNLIKELY(order > CONC__ORDER_NONE) && rc == 0)
    self->held &= ~CONC__LOCK_ORDER_BIT(order);
  return rc;
}

CONC_API bool conc_lock_locked(const conc_lock *lock) {
  uintptr_t word = CONC__LOAD(&lock->word);
  if (conc__is_shared(word)) return conc__shared_lock_locked(lock);
  return (word & ~CONC__LOCK_WAITERS) != 0;
}

/* --- conc_rlock --- */

CONC_API int conc_rlock_acquire(conc_rlock *rlock, double timeout) {
  int rc;
  if (conc__lock_is_mine(&rlock->lock, conc__self()->id)) {
    rlock->lock.depth++;
    return 0;
  }
  rc = conc_lock_acquire(&rlock->lock, timeout);
  if (rc == 0 || rc == -EOWNERDEAD)
    rlock->lock.depth = 0; /* whatever was released wrongly, or not at all */
  if (rc != -EDEADLK ||
      !conc__is_shared(CONC__LOAD_RELAXED(&rlock->lock.word)))
    return rc;
  rlock->lock.depth++; /* it is the caller's */
  return 0;
}

CONC_API int conc_rlock_release(conc_rlock *rlock) {
  if (!conc__lock_is_mine(&rlock->lock, conc__self()->id) &&
      !conc__shared_lock_is_mine(&rlock->lock, conc__self()))
    return -EPERM;
  if (rlock->lock.depth == 0) return conc_lock_release(&rlock->lock);
  rlock->lock.depth--;
  return 0;
}

/* --- what an actor reads --- */

/* Where an actor remembers a lock that it reads; NULL for a free place. */
CONC__INLINE conc_rwlock **conc__reads_find(conc__actor *self,
                                            const conc_rwlock *rwlock) {
  int i;
  for (i = 0; i < CONC__READS; i++)
    if (self->reads[i] == rwlock) return &self->reads[i];
  return NULL;
}

/* The actor holds it for reading from now on. */
CONC__INLINE void conc__reads_add(conc__actor *actor, conc_rwlock *rwlock) {
  conc_rwlock **place = conc__reads_find(actor, NULL);
  if (place != NULL)
    *place = rwlock;
  else
    actor->more_reads++;
}

/* --- conc_rwlock between processes ---

   A writer that waits names itself in `wants`, and then no newcomer joins the
   readers. Those who began to wait before a writer had it may; and once one
   has given it back, it is the turn of readers, if some wait. Neither holds
   for ever: what is free, any may have who is late. `round` is what all of
   them wait on; its lowest bit: somebody does. */

#define CONC__READS_SHARED(rwlock) ((conc_rwlock *)((uintptr_t)(rwlock) | 1))

CONC_API int conc_rwlock_init_shared(conc_rwlock *rwlock) {
  struct conc__registry *r = conc__registry_of(rwlock);
  if (r == NULL) return -EINVAL;
  memset(&rwlock->shared, 0, sizeof rwlock->shared);
  CONC__STORE(&rwlock->word, conc__shared_word(rwlock, r));
  return 0;
}

/* Something has changed for those who wait; the guard is left. */
CONC__PRIVATE void conc__rwlock_tell(struct conc__rwlock_shared *s) {
  unsigned seen = s->round;
  if (seen & 1) CONC__STORE(&s->round, seen + 1);
  conc__shared_leave(&s->guard);
  if (seen & 1) conc__shared_wake(&s->round, INT_MAX);
}

CONC__PRIVATE bool conc__rwlock_may(const struct conc__rwlock_shared *s,
                                    bool write, bool late, unsigned writers) {
  bool read = conc__sharers_any(&s->readers);
  if (s->writer != 0) return false;
  if (write) return !read && (late || !s->readers_turn);
  return s->wants == 0 || s->writers != writers || (late && !read);
}

CONC__PRIVATE int conc__shared_rwlock_acquire(conc_rwlock *rwlock, bool write,
                                              conc__actor *self,
                                              double timeout) {
  struct conc__rwlock_shared *s = &rwlock->shared;
  struct conc__registry *r =
      conc__shared_registry(rwlock, CONC__LOAD_RELAXED(&rwlock->word));
  conc_rwlock **place = conc__reads_find(self, CONC__READS_SHARED(rwlock));
  double deadline = conc__deadline(timeout);
  unsigned round = 0, writers = 0;
  bool died = false;
  int rc = 0;
  for (;;) {
    bool late = round > 1 || deadline <= 0;
    bool mine, taken;
    unsigned id, seen;
    if (conc__shared_enter(r, &s->guard) < 0) return -EAGAIN;
    id = conc__registry_self(r); /* another one after a fork */
    mine = s->wants == id && s->wants_actor == self->id;
    if (place != NULL && conc__sharers_find(&s->readers, id) == NULL) {
      *place = NULL; /* of another lock, never released, at this address */
      place = NULL;
    }
    if (place != NULL || (s->writer == id && s->writer_actor == self->id))
      rc = -EDEADLK;
    if (rc == 0 && conc__shared_doubts(round, deadline)) {
      if (s->writer != 0 && conc__registry_is_dead(r, s->writer)) {
        s->writer = 0;
        s->readers_turn = false;
        died = true;
      }
      if (s->wants != 0 && conc__registry_is_dead(r, s->wants)) s->wants = 0;
      conc__sharers_bury(&s->readers, r);
    }
    if (round == 0) writers = s->writers;
    taken = rc == 0 && conc__rwlock_may(s, write, late, writers);
    if (taken && write) {
      s->writer_actor = self->id;
      CONC__STORE(&s->writer, id);
    } else if (taken) {
      taken = conc__sharers_add(&s->readers, id);
      if (taken) s->readers_turn = false;
    }
    if (rc == 0 && !taken && deadline <= 0) rc = -ETIMEDOUT;
    if (taken || rc != 0) {
      if (mine) s->wants = 0;
      if (taken && !write) conc__reads_add(self, CONC__READS_SHARED(rwlock));
      if (mine)
        conc__rwlock_tell(s);
      else
        conc__shared_leave(&s->guard);
      return rc == 0 && died ? -EOWNERDEAD : rc;
    }
    if (!write) {
      s->readers_wait = true;
    } else if (s->wants == 0) {
      s->wants_actor = self->id;
      CONC__STORE(&s->wants, id);
    }
    seen = s->round | 1;
    CONC__STORE_RELAXED(&s->round, seen);
    conc__shared_leave(&s->guard);
    rc = conc__shared_wait(&s->round, seen, deadline, &round);
  }
}

CONC__PRIVATE int conc__shared_rwlock_release(conc_rwlock *rwlock,
                                              conc__actor *self) {
  struct conc__rwlock_shared *s = &rwlock->shared;
  struct conc__registry *r =
      conc__shared_registry(rwlock, CONC__LOAD_RELAXED(&rwlock->word));
  conc_rwlock **place = conc__reads_find(self, CONC__READS_SHARED(rwlock));
  unsigned id = conc__registry_self(r);
  bool write, read;
  if (conc__shared_enter(r, &s->guard) < 0) return -EAGAIN;
  write = s->writer == id && s->writer_actor == self->id;
  read = !write && (place != NULL || self->more_reads > 0) &&
         conc__sharers_find(&s->readers, id) != NULL;
  if (!write && !read) {
    conc__shared_leave(&s->guard);
    return -EPERM;
  }
  conc__tell_released(rwlock, read);
  if (write) {
    s->writers++;
    s->readers_turn = s->readers_wait;
    s->readers_wait = false;
    s->writer_actor = 0;
    CONC__STORE(&s->writer, 0u);
  } else {
    if (place != NULL)
      *place = NULL;
    else
      self->more_reads--;
    conc__sharers_remove(&s->readers, id);
  }
  conc__rwlock_tell(s);
  return 0;
}

/* --- conc_rwlock ---

   The word names the writer, as a lock's does its owner, or counts the
   readers; and it says if somebody may be in the list. Then no newcomer joins
   the readers, but one may take what is free, as with a lock, until the first
   in the list has waited CONC__LOCK_PATIENCE: to that one it is handed, and
   to the readers that follow if it is a reader. Whoever gives it back last,
   or ceases to wait, settles under the guard who is next. */

#define CONC__READ_FLAG CONC__OWNER_NONE
#define CONC__READ_ONE ((uintptr_t)4)

/* What a waiter wants, in its tag; CONC__HANDED: it has it. */
enum { CONC__TO_READ, CONC__TO_WRITE, CONC__HANDED };

/* Whether one more may have it, given who holds it. */
CONC__INLINE bool conc__rwlock_open(uintptr_t held, bool write, bool join) {
  return held == 0 || (!write && join && (held & CONC__READ_FLAG) != 0);
}

CONC__INLINE uintptr_t conc__rwlock_with(uintptr_t held, bool write,
                                         conc__actor *actor) {
  return write ? actor->id : (held | CONC__READ_FLAG) + CONC__READ_ONE;
}

/* What is left when one of those who hold it has given it back. */
CONC__INLINE uintptr_t conc__rwlock_without(uintptr_t held) {
  return (held & CONC__READ_FLAG) && held >= 2 * CONC__READ_ONE
             ? held - CONC__READ_ONE
             : 0;
}

/* Gives it back, or not, then hands it to those whose turn it is or wakes
   them to try again. */
CONC__PRIVATE void conc__rwlock_settle(conc_rwlock *rwlock, bool release) {
  conc__mutex *guard = conc__mutex_of(rwlock);
  uintptr_t seen, word;
  conc__waiter *chain, *w;
  bool hand;
  size_t n;
  conc__mutex_lock(guard);
  seen = CONC__LOAD_RELAXED(&rwlock->word);
  w = rwlock->waiters.first;
  hand = w != NULL && conc_now() - w->since > CONC__LOCK_PATIENCE;
  do {
    uintptr_t held = seen & ~CONC__LOCK_WAITERS;
    if (release) held = conc__rwlock_without(held);
    word = held;
    n = 0;
    for (w = rwlock->waiters.first; w != NULL; w = w->next) {
      bool write = w->tag == CONC__TO_WRITE;
      if (!conc__rwlock_open(held, write, true)) break;
      held = conc__rwlock_with(held, write, w->actor);
      n++;
    }
    if (hand) word = held;
    if (w != NULL) word |= CONC__LOCK_WAITERS;
  } while (!CONC__CAS(&rwlock->word, &seen, word));
  chain = conc__waitlist_take_n(&rwlock->waiters, n);
  for (w = chain; hand && w != NULL; w = w->next) {
    if (w->tag == CONC__TO_READ) conc__reads_add(w->actor, rwlock);
    w->tag = CONC__HANDED;
  }
  conc__mutex_unlock(guard);
  conc__wake_all(chain);
}

CONC__PRIVATE int conc__rwlock_acquire_slow(conc_rwlock *rwlock, bool write,
                                            conc__actor *self,
                                            double timeout) {
  conc__mutex *guard = conc__mutex_of(rwlock);
  double deadline = conc__deadline(timeout);
  bool front = false;
  conc__waiter w;
  if (conc__is_shared(CONC__LOAD_RELAXED(&rwlock->word)))
    return conc__shared_rwlock_acquire(rwlock, write, self, timeout);
  if (timeout <= 0 && !conc__owner_is_gone(CONC__LOAD_RELAXED(&rwlock->word)))
    return -ETIMEDOUT;
  conc__waiter_init(&w, self, "rwlock", rwlock->name);
  w.since = conc_now();
  w.relation = "held by";
  w.owner = &rwlock->word;
  w.recheck_after_fork = true;
  for (;;) {
    uintptr_t seen;
    int rc;
    conc__mutex_lock(guard);
    seen = CONC__LOAD_RELAXED(&rwlock->word);
    for (;;) { /* take it, or say that somebody waits */
      bool gone = conc__owner_is_gone(seen);
      uintptr_t held = gone ? 0 : seen & ~CONC__LOCK_WAITERS;
      bool queue = rwlock->waiters.first != NULL;
      bool open = conc__rwlock_open(held, write, front || !queue);
      uintptr_t word = open ? conc__rwlock_with(held, write, self) : held;
      if (queue || !open) word |= CONC__LOCK_WAITERS;
      if (!CONC__CAS(&rwlock->word, &seen, word)) continue;
      if (!open) break;
      if (!write) conc__reads_add(self, rwlock);
      conc__mutex_unlock(guard);
      return gone ? -EOWNERDEAD : 0;
    }
    w.tag = write ? CONC__TO_WRITE : CONC__TO_READ;
    rc = conc__waitlist_wait(guard, &rwlock->waiters, &w, front, true,
                             deadline);
    w.failure = 0;
    /* Those behind may have waited for this one only. */
    if (rc != 0 && rc != -EAGAIN) conc__rwlock_settle(rwlock, false);
    if ((rc != 0 && rc != -EAGAIN) || w.tag == CONC__HANDED) return rc;
    front = true; /* somebody was faster: wait on where we were */
  }
}

CONC__INLINE int conc__rwlock_acquire(conc_rwlock *rwlock, bool write,
                                      double timeout) {
  conc__actor *self = conc__self();
  uintptr_t seen = CONC__LOAD_RELAXED(&rwlock->word);
  conc_rwlock **place = conc__reads_find(self, rwlock);
  bool done = false;
  int rc = 0;
  if ((seen & ~CONC__LOCK_WAITERS) == self->id) return -EDEADLK;
  if (CONC__UNLIKELY(place != NULL)) {
    if (seen & CONC__READ_FLAG) return -EDEADLK;
    *place = NULL; /* it was another lock, never released, at this address */
  }
  if (!write) CONC__STORE_RELAXED(&self->changing, rwlock);
  while (!done) {
    uintptr_t waiters = seen & CONC__LOCK_WAITERS, held = seen - waiters;
    if (!conc__rwlock_open(held, write, waiters == 0)) break;
    held = conc__rwlock_with(held, write, self);
    done = CONC__CAS(&rwlock->word, &seen, held | waiters);
  }
  if (!write) {
    if (done) conc__reads_add(self, rwlock);
    CONC__STORE(&self->changing, (conc_rwlock *)NULL);
  }
  if (!done) rc = conc__rwlock_acquire_slow(rwlock, write, self, timeout);
  if (rc == 0 || rc == -EOWNERDEAD)
    conc__tell_acquired(rwlock, !write, timeout <= 0);
  return rc;
}

CONC_API int conc_rwlock_read_acquire(conc_rwlock *rwlock, double timeout) {
  return conc__rwlock_acquire(rwlock, false, timeout);
}

CONC_API int conc_rwlock_write_acquire(conc_rwlock *rwlock, double timeout) {
  return conc__rwlock_acquire(rwlock, true, timeout);
}

CONC_API int conc_rwlock_release(conc_rwlock *rwlock) {
  conc__actor *self = conc__self();
  uintptr_t seen = CONC__LOAD_RELAXED(&rwlock->word);
  if ((seen & ~CONC__LOCK_WAITERS) != self->id) {
    conc_rwlock **place = conc__reads_find(self, rwlock);
    if (!(seen & CONC__READ_FLAG) || place == NULL) {
      if (conc__is_shared(seen))
        return conc__shared_rwlock_release(rwlock, self);
      if (!(seen & CONC__READ_FLAG) || self->more_reads == 0) return -EPERM;
    }
    CONC__STORE_RELAXED(&self->changing, rwlock);
    if (place != NULL)
      CONC__STORE(place, (conc_rwlock *)NULL);
    else
      self->more_reads--;
  }
  conc__tell_released(rwlock, (seen & CONC__READ_FLAG) != 0);
  for (;;) {
    uintptr_t word = conc__rwlock_without(seen);
    if (word == 0 && (seen & CONC__LOCK_WAITERS)) {
      conc__rwlock_settle(rwlock, true);
      break;
    }
    if (CONC__CAS(&rwlock->word, &seen, word)) break;
  }
  CONC__STORE(&self->changing, (conc_rwlock *)NULL);
  return 0;
}

#define CONC__ONCE_DONE CONC__OWNER_NONE

/* --- conc_once between processes --- */

CONC_API int conc_once_init_shared(conc_once *once) {
  struct conc__registry *r = conc__registry_of(once);
  if (r == NULL) return -EINVAL;
  memset(&once->waiters, 0, sizeof once->waiters);
  CONC__STORE(&once->word, conc__shared_word(once, r));
  return 0;
}

CONC__PRIVATE int conc__shared_once_run(conc_once *once, int (*fn)(void *arg),
                                        void *arg, double timeout) {
  conc__claim *claim = (conc__claim *)(void *)&once->waiters;
  uintptr_t word = CONC__LOAD(&once->word);
  struct conc__registry *r = conc__shared_registry(once, word);
  conc__actor *self = conc__self();
  int rc;
  if (word == CONC__ONCE_DONE) return 0;
  rc = conc__claim_acquire(claim, r, self, true, timeout);
  if (rc != 0 && rc != -EOWNERDEAD) return rc;
  rc = 0;
  if (CONC__LOAD(&once->word) != CONC__ONCE_DONE) {
    rc = fn(arg);
    if (rc >= 0) CONC__STORE(&once->word, CONC__ONCE_DONE);
  }
  conc__claim_release(claim, r, self);
  return rc < 0 ? rc : 0;
}

/* --- conc_once ---

   A lock that, once done, is never taken again. If fn fails, it is handed to
   the first who waits. */

CONC__PRIVATE int conc__once_finish(conc_once *once, int rc) {
  conc__mutex *guard = conc__mutex_of(once);
  uintptr_t word = rc < 0 ? 0 : CONC__ONCE_DONE;
  conc__waiter *chain;
  conc__mutex_lock(guard);
  chain = conc__waitlist_take_n(&once->waiters, rc < 0 ? 1 : SIZE_MAX);
  if (rc < 0 && chain != NULL) word = chain->actor->id;
  CONC__STORE(&once->word, word);
  conc__mutex_unlock(guard);
  conc__wake_all(chain);
  return rc < 0 ? rc : 0;
}

CONC__PRIVATE int conc__once_run_slow(conc_once *once, int (*fn)(void *arg),
                                      void *arg, double timeout) {
  conc__mutex *guard = conc__mutex_of(once);
  conc__actor *self = conc__self();
  double deadline = conc__deadline(timeout);
  conc__waiter w;
  int rc;
  if (conc__is_shared(CONC__LOAD_RELAXED(&once->word)))
    return conc__shared_once_run(once, fn, arg, timeout);
  conc__waiter_init(&w, self, "once", once->name);
  w.relation = "run by";
  w.owner = &once->word;
  w.recheck_after_fork = true;
  do {
    uintptr_t seen;
    conc__mutex_lock(guard);
    seen = CONC__LOAD(&once->word);
    if (seen == self->id || seen == CONC__ONCE_DONE) {
      conc__mutex_unlock(guard);
      return seen == CONC__ONCE_DONE ? 0 : -EDEADLK;
    }
    if (seen == 0 || conc__owner_is_gone(seen)) {
      CONC__STORE_RELAXED(&once->word, self->id);
      conc__mutex_unlock(guard);
      break;
    }
    if (deadline <= 0) {
      conc__mutex_unlock(guard);
      return -ETIMEDOUT;
    }
    rc = conc__waitlist_wait(guard, &once->waiters, &w, false, true, deadline);
    w.failure = 0;
    if (rc != 0 && rc != -EAGAIN) return rc;
    if (rc == 0 && CONC__LOAD(&once->word) == CONC__ONCE_DONE) return 0;
  } while (rc == -EAGAIN);
  return conc__once_finish(once, fn(arg));
}

CONC_API int conc_once_run(conc_once *once, int (*fn)(void *arg), void *arg,
                           double timeout) {
  if (CONC__LIKELY(CONC__LOAD(&once->word) == CONC__ONCE_DONE)) return 0;
  return conc__once_run_slow(once, fn, arg, timeout);
}

/* ---------------------------------------------------------------------------
   >>event: conc_event, conc_cond, conc_sem, conc_barrier
   ------------------------------------------------------------------------ */

/* --- conc_event ---

   The flag is clear, set, or clear with somebody who must find a set waiting
   under the guard: so a set that nobody waits for is one compare-and-swap. */

enum { CONC__CLEAR = 0, CONC__SET = 1, CONC__AWAITED = 2 };
#define CONC__EVENT_SHARED 4 /* always, between processes */

/* --- conc_event between processes ---

   All in one word: besides what it is for threads, how often a set has ended
   waits. So who waits knows that there was one, whatever has come since. */

#define CONC__EVENT_ROUND 8u
#define CONC__EVENT_STATE 3u

CONC__INLINE unsigned *conc__event_word(conc_event *event) {
  return (unsigned *)(void *)&event->flag;
}

CONC_API int conc_event_init_shared(conc_event *event) {
  if (conc__registry_of(event) == NULL) return -EINVAL;
  CONC__STORE(&event->flag, CONC__EVENT_SHARED);
  return 0;
}

CONC__PRIVATE int conc__shared_event_set(conc_event *event) {
  unsigned *word = conc__event_word(event);
  unsigned seen = CONC__LOAD(word);
  for (;;) {
    unsigned want = (seen & ~CONC__EVENT_STATE) | CONC__SET;
    if (seen & CONC__SET) return 0;
    if (seen & CONC__AWAITED) want += CONC__EVENT_ROUND;
    if (CONC__CAS(word, &seen, want)) break;
  }
  if (seen & CONC__AWAITED) conc__shared_wake(word, INT_MAX);
  return 0;
}

CONC__PRIVATE int conc__shared_event_clear(conc_event *event) {
  unsigned *word = conc__event_word(event);
  unsigned seen = CONC__LOAD(word);
  while ((seen & CONC__SET) &&
         !CONC__CAS(word, &seen, seen & ~CONC__EVENT_STATE)) {
  }
  return 0;
}

CONC__PRIVATE int conc__shared_event_wait(conc_event *event, double timeout) {
  unsigned *word = conc__event_word(event);
  double deadline = conc__deadline(timeout);
  unsigned seen = CONC__LOAD(word);
  unsigned before = seen | CONC__EVENT_STATE;
  unsigned round = 0;
  while (!(seen & CONC__SET) && (seen | CONC__EVENT_STATE) == before) {
    int rc;
    if (!(seen & CONC__AWAITED) &&
        !CONC__CAS(word, &seen, seen | CONC__AWAITED))
      continue;
    rc = conc__shared_wait(word, seen | CONC__AWAITED, deadline, &round);
    if (rc != 0) return rc;
    seen = CONC__LOAD(word);
  }
  return 0;
}


CONC_API int conc_event_set(conc_event *event) {
  int clear = CONC__CLEAR;
  conc__mutex *guard;
  conc__waiter *chain;
  /* Either way the flag is the last touch of the event. */
  if (CONC__CAS(&event->flag, &clear, CONC__SET) || clear == CONC__SET)
    return 0;
  if (clear & CONC__EVENT_SHARED) return conc__shared_event_set(event);
  guard = conc__mutex_of(event);
  conc__mutex_lock(guard);
  chain = conc__waitlist_take_n(&event->waiters, SIZE_MAX);
  if (chain != NULL) chain = conc__multiwait_enter(chain);
  CONC__STORE(&event->flag, CONC__SET);
  conc__mutex_unlock(guard);
  conc__wake_all(chain);
  return 0;
}

CONC_API int conc_event_clear(conc_event *event) {
  int set = CONC__SET;
  if (!CONC__CAS(&event->flag, &set, CONC__CLEAR) &&
      (set & CONC__EVENT_SHARED))
    return conc__shared_event_clear(event);
  return 0;
}

CONC_API bool conc_event_is_set(const conc_event *event) {
  return (CONC__LOAD(&event->flag) & CONC__SET) != 0;
}

/* From here on a set goes through the guard, which is held. False if it is
   set already. */
CONC__PRIVATE bool conc__event_await(conc_event *event) {
  int seen = CONC__CLEAR;
  return CONC__CAS(&event->flag, &seen, CONC__AWAITED) ||
         seen == CONC__AWAITED;
}

CONC__PRIVATE int conc__event_park(conc_event *event, conc__waiter *w,
                                   double timeout) {
  conc__mutex *guard;
  if (conc_event_is_set(event)) return 0;
  if (timeout <= 0) return -ETIMEDOUT;
  if (CONC__LOAD_RELAXED(&event->flag) & CONC__EVENT_SHARED)
    return conc__shared_event_wait(event, timeout);
  guard = conc__mutex_of(event);
  conc__mutex_lock(guard);
  if (!conc__event_await(event)) {
    conc__mutex_unlock(guard);
    return 0;
  }
  /* Who was woken was woken by a set, whatever a clear has done since. */
  return conc__waitlist_wait(guard, &event->waiters, w, false, true,
                             conc__deadline(timeout));
}

CONC_API int conc_event_wait(conc_event *event, double timeout) {
  conc__waiter w;
  conc__waiter_init(&w, conc__self(), "event", event->name);
  return conc__event_park(event, &w, timeout);
}

/* --- conc_cond between processes ---

   A notify lets so many go, `notified` of those `waiting`, and begins a new
   round: of those who have come in an earlier one, the first to look go. */

CONC_API int conc_cond_init_shared(conc_cond *cond) {
  struct conc__registry *r = conc__registry_of(cond);
  if (r == NULL) return -EINVAL;
  cond->guard = cond->round = cond->waiting = cond->notified = 0;
  CONC__STORE(&cond->word, conc__shared_word(cond, r));
  return 0;
}

CONC__PRIVATE int conc__cond_enter(conc_cond *cond) {
  struct conc__registry *r = conc__shared_registry(cond, cond->word);
  int rc = conc__shared_enter(r, &cond->guard);
  if (rc <= 0) return rc;
  /* A notify may have been under way: to be sure, they look. */
  if (cond->notified > cond->waiting) cond->notified = cond->waiting;
  CONC__STORE(&cond->round, cond->round + 1);
  conc__shared_wake(&cond->round, INT_MAX);
  return 0;
}

/* One who waits, so far with the result rc, looks whether it may go. */
CONC__PRIVATE bool conc__cond_look(conc_cond *cond, unsigned before, int rc) {
  bool goes = false;
  while (conc__cond_enter(cond) != 0) sched_yield(); /* it was there before */
  if (rc != -ECANCELED && cond->notified > 0 && cond->round != before) {
    cond->notified--;
    goes = true;
  }
  if ((goes || rc != 0) && cond->waiting > 0) cond->waiting--;
  if (cond->notified > cond->waiting) cond->notified = cond->waiting;
  conc__shared_leave(&cond->guard);
  return goes;
}

CONC__PRIVATE int conc__shared_cond_wait(conc_cond *cond, conc_lock *lock,
                                         double timeout) {
  conc__actor *self = conc__self();
  double deadline = conc__deadline(timeout);
  unsigned before, depth, round = 0;
  int rc, again;
  if (!conc__shared_lock_is_mine(lock, self)) return -EPERM;
  if (cond->word == 0) return -EINVAL;
  rc = conc__cond_enter(cond);
  if (rc != 0) return rc;
  before = cond->round;
  cond->waiting++;
  conc__shared_leave(&cond->guard);
  depth = lock->depth;
  lock->depth = 0;
  conc_lock_release(lock);
  for (;;) {
    unsigned seen = CONC__LOAD(&cond->round);
    rc = 0;
    if (seen != before && conc__cond_look(cond, before, 0)) break;
    rc = conc__shared_wait(&cond->round, seen, deadline, &round);
    if (rc == 0) continue;
    if (conc__cond_look(cond, before, rc)) rc = 0;
    break;
  }
  again = conc__shared_lock_acquire(lock, self, false, CONC_FOREVER);
  lock->depth = depth;
  return again != 0 ? again : rc;
}

CONC__PRIVATE int conc__shared_cond_notify(conc_cond *cond, size_t n) {
  int rc = conc__cond_enter(cond);
  if (rc != 0) return rc;
  if (n > cond->waiting - cond->notified) n = cond->waiting - cond->notified;
  if (n > 0) {
    cond->notified += (unsigned)n;
    CONC__STORE(&cond->round, cond->round + 1);
  }
  conc__shared_leave(&cond->guard);
  if (n > 0) conc__shared_wake(&cond->round, n > INT_MAX ? INT_MAX : (int)n);
  return 0;
}

/* --- conc_cond --- */

CONC_API int conc_cond_wait(conc_cond *cond, conc_lock *lock, double timeout) {
  conc__mutex *guard = conc__mutex_of(cond);
  conc__actor *self = conc__self();
  double deadline = conc__deadline(timeout);
  unsigned depth;
  conc__waiter w;
  int rc;
  if (!conc__lock_is_mine(lock, self->id))
    return conc__shared_cond_wait(cond, lock, timeout);
  if (cond->word != 0) return -EINVAL;
  depth = lock->depth;
  conc__waiter_init(&w, self, "condition", cond->name);
  w.lock = lock;
  /* On the list before the lock is released, so that whoever then takes the
     lock and notifies finds it there; a guard cannot be held across the
     release, hence not conc__waitlist_wait alone. */
  conc__mutex_lock(guard);
  conc__waitlist_insert(&cond->waiters, &w, false);
  conc__mutex_unlock(guard);
  lock->depth = 0;
  conc_lock_release(lock);
  rc = conc__wait_on_list(guard, &w, true, deadline);
  if (!conc__lock_try(lock, self->id) &&
      conc__lock_acquire_slow(lock, self, false, CONC__NEVER) == -EOWNERDEAD)
    rc = -EOWNERDEAD;
  conc__lock_acquired(lock, self, false);
  lock->depth = depth;
  return rc;
}

CONC_API int conc_cond_wait_for(conc_cond *cond, conc_lock *lock,
                                bool (*predicate)(void *arg), void *arg,
                                double timeout) {
  double deadline = conc__deadline(timeout);
  while (!predicate(arg)) {
    int rc = conc_cond_wait(cond, lock, conc__remaining(deadline));
    if (rc == -ETIMEDOUT) return predicate(arg) ? 0 : rc;
    if (rc != 0) return rc;
  }
  return 0;
}

/* Who holds the lock wakes the waiters when he releases it, which takes the
   slow way for that: they would only wait for it. */
CONC_API int conc_cond_notify(conc_cond *cond, size_t n) {
  conc__mutex *guard = conc__mutex_of(cond);
  conc__actor *self = conc__self();
  conc__waiter *chain;
  if (cond->word != 0) return conc__shared_cond_notify(cond, n);
  conc__mutex_lock(guard);
  chain = conc__waitlist_take_n(&cond->waiters, n);
  conc__mutex_unlock(guard);
  if (chain == NULL) return 0;
  conc__wake_notified(self); /* those of a notify before; else none */
  if (conc__lock_is_mine(chain->lock, self->id)) {
    __atomic_fetch_or(&chain->lock->word, CONC__LOCK_WAITERS,
                      __ATOMIC_RELAXED);
    self->notified = chain;
  } else {
    conc__wake_all(chain);
  }
  return 0;
}

CONC_API int conc_cond_notify_all(conc_cond *cond) {
  return conc_cond_notify(cond, SIZE_MAX);
}

/* --- conc_sem ---

   The value, or CONC__SEM_WAITERS: it is 0 and somebody may be in the list.
   Then it changes only under the guard, and what is released goes to those
   who wait first. */

#define CONC__SEM_WAITERS (SIZE_MAX / 2 + 1)

/* --- conc_sem between processes --- */

#define CONC__SEM_SHARED 0x40000000u /* always; CONC__AWAITS; the value */
#define CONC__SEM_MAX 0x3fffffffu

CONC_API int conc_sem_init_shared(conc_sem *sem) {
  if (conc__registry_of(sem) == NULL || sem->value > CONC__SEM_MAX)
    return -EINVAL;
  CONC__STORE(&sem->shared, CONC__SEM_SHARED | (unsigned)sem->value);
  CONC__STORE(&sem->value, CONC__SEM_WAITERS);
  return 0;
}

CONC__PRIVATE int conc__shared_sem_acquire(conc_sem *sem, double timeout) {
  unsigned seen = CONC__LOAD(&sem->shared);
  unsigned awaits = 0; /* perhaps others do, too, once we have */
  unsigned round = 0;
  double deadline = CONC__NEVER;
  for (;;) {
    if (seen & CONC__SEM_MAX) {
      if (CONC__CAS(&sem->shared, &seen, (seen - 1) | awaits)) return 0;
    } else if (timeout <= 0) {
      return -ETIMEDOUT;
    } else if ((seen & CONC__AWAITS) ||
               CONC__CAS(&sem->shared, &seen, seen | CONC__AWAITS)) {
      int rc;
      if (awaits == 0) deadline = conc__deadline(timeout);
      awaits = CONC__AWAITS;
      rc = conc__shared_wait(&sem->shared, seen | awaits, deadline, &round);
      if (rc != 0) return rc;
      seen = CONC__LOAD(&sem->shared);
    }
  }
}

CONC__PRIVATE int conc__shared_sem_release(conc_sem *sem, size_t n) {
  unsigned seen = CONC__LOAD(&sem->shared);
  size_t bound = CONC__SEM_MAX;
  if (sem->bound > 0 && sem->bound < bound) bound = sem->bound;
  for (;;) {
    unsigned value = seen & CONC__SEM_MAX;
    if (value > bound || n > bound - value) return -EOVERFLOW;
    if (CONC__CAS(&sem->shared, &seen,
                  (seen & ~CONC__AWAITS) + (unsigned)n))
      break;
  }
  if (seen & CONC__AWAITS) conc__shared_wake(&sem->shared, (int)n);
  return 0;
}

CONC__PRIVATE size_t conc__shared_sem_value(const conc_sem *sem) {
  return CONC__LOAD(&sem->shared) & CONC__SEM_MAX;
}

CONC_API int conc_sem_acquire(conc_sem *sem, double timeout) {
  size_t seen = CONC__LOAD_RELAXED(&sem->value);
  conc__mutex *guard;
  conc__waiter w;
  while (seen != 0 && seen != CONC__SEM_WAITERS)
    if (CONC__CAS(&sem->value, &seen, seen - 1)) return 0;
  if (CONC__LOAD_RELAXED(&sem->shared) != 0)
    return conc__shared_sem_acquire(sem, timeout);
  if (timeout <= 0) return -ETIMEDOUT;
  guard = conc__mutex_of(sem);
  conc__mutex_lock(guard);
  seen = CONC__LOAD_RELAXED(&sem->value);
  while (seen != CONC__SEM_WAITERS) { /* take one, or say that we wait */
    size_t left = seen == 0 ? CONC__SEM_WAITERS : seen - 1;
    if (!CONC__CAS(&sem->value, &seen, left)) continue;
    if (seen == 0) break;
    conc__mutex_unlock(guard);
    return 0;
  }
  conc__waiter_init(&w, conc__self(), "semaphore", sem->name);
  return conc__waitlist_wait(guard, &sem->waiters, &w, false, true,
                             conc__deadline(timeout));
}

CONC_API int conc_sem_release(conc_sem *sem, size_t n) {
  size_t bound = sem->bound == 0 ? CONC__SEM_WAITERS - 1 : sem->bound;
  conc__mutex *guard = conc__mutex_of(sem);
  size_t seen = CONC__LOAD_RELAXED(&sem->value);
  conc__waiter *chain, *w;
  if (n == 0) return -EINVAL;
  for (;;) {
    size_t value = seen == CONC__SEM_WAITERS ? 0 : seen;
    if (value > bound || n > bound - value) return -EOVERFLOW;
    if (seen != CONC__SEM_WAITERS) {
      if (CONC__CAS(&sem->value, &seen, seen + n)) return 0;
      continue;
    }
    if (CONC__LOAD_RELAXED(&sem->shared) != 0)
      return conc__shared_sem_release(sem, n);
    conc__mutex_lock(guard);
    seen = CONC__LOAD_RELAXED(&sem->value);
    if (seen == CONC__SEM_WAITERS) break;
    conc__mutex_unlock(guard);
  }
  chain = conc__waitlist_take_n(&sem->waiters, n);
  for (w = chain; w != NULL; w = w->next) n--;
  CONC__STORE(&sem->value,
              sem->waiters.first != NULL ? CONC__SEM_WAITERS : n);
  conc__mutex_unlock(guard); /* nothing of the semaphore from here on */
  conc__wake_all(chain);
  return 0;
}

CONC_API size_t conc_sem_value(const conc_sem *sem) {
  size_t value = CONC__LOAD(&sem->value);
  return value != CONC__SEM_WAITERS ? value : conc__shared_sem_value(sem);
}

/* --- conc_barrier between processes ---

   Who waits for the end of a generation finds how it ended in `failed`, whose
   lowest bit is that of the last one. The runner is whose action runs. */

CONC_API int conc_barrier_init_shared(conc_barrier *barrier) {
  struct conc__registry *r = conc__registry_of(barrier);
  if (r == NULL || barrier->parties < 1) return -EINVAL;
  barrier->broken = false;
  barrier->waiting = 0;
  barrier->generation = 0;
  barrier->guard = barrier->runner = barrier->failed = 0;
  memset(&barrier->parts, 0, sizeof barrier->parts);
  CONC__STORE(&barrier->word, conc__shared_word(barrier, r));
  return 0;
}

/* Ends a generation; the guard is held. */
CONC__PRIVATE void conc__barrier_turn(conc_barrier *barrier, bool failed) {
  barrier->failed = barrier->failed << 1 | failed;
  CONC__STORE_RELAXED(&barrier->waiting, 0);
  memset(&barrier->parts, 0, sizeof barrier->parts);
  CONC__STORE(&barrier->generation, barrier->generation + 1);
}

CONC__PRIVATE void conc__barrier_break(conc_barrier *barrier) {
  CONC__STORE_RELAXED(&barrier->broken, true);
  CONC__STORE(&barrier->runner, 0u);
  conc__barrier_turn(barrier, true);
}

/* Leaves the guard and wakes all, to look. */
CONC__PRIVATE void conc__barrier_tell(conc_barrier *barrier) {
  conc__shared_leave(&barrier->guard);
  conc__shared_wake(&barrier->generation, INT_MAX);
  conc__shared_wake(&barrier->runner, INT_MAX);
}

/* If one died with the guard, nobody knows how far it came: then the barrier
   is broken now, the guard not held, and this is -EOWNERDEAD. */
CONC__PRIVATE int conc__barrier_enter(conc_barrier *barrier,
                                      struct conc__registry *r) {
  int rc = conc__shared_enter(r, &barrier->guard);
  if (rc <= 0) return rc;
  conc__barrier_break(barrier);
  conc__barrier_tell(barrier);
  return -EOWNERDEAD;
}

CONC__PRIVATE int conc__shared_barrier_end(conc_barrier *barrier,
                                           bool broken) {
  struct conc__registry *r = conc__shared_registry(barrier, barrier->word);
  int rc;
  do rc = conc__barrier_enter(barrier, r);
  while (rc == -EOWNERDEAD);
  if (rc != 0) return rc;
  CONC__STORE_RELAXED(&barrier->broken, broken);
  conc__barrier_turn(barrier, true);
  conc__barrier_tell(barrier);
  return 0;
}

/* The last one has come; the guard is held. */
CONC__PRIVATE int conc__shared_barrier_pass(conc_barrier *barrier,
                                            struct conc__registry *r,
                                            unsigned id, conc__actor *self) {
  unsigned generation = barrier->generation;
  int index = barrier->waiting;
  int rc = 0;
  if (barrier->action != NULL) {
    barrier->runner_actor = self->id;
    CONC__STORE(&barrier->runner, id);
    conc__shared_leave(&barrier->guard);
    rc = barrier->action(barrier->arg);
    while (conc__barrier_enter(barrier, r) != 0) sched_yield();
    CONC__STORE(&barrier->runner, 0u);
  }
  if (rc < 0) CONC__STORE_RELAXED(&barrier->broken, true);
  if (generation == barrier->generation) conc__barrier_turn(barrier, rc < 0);
  conc__barrier_tell(barrier);
  return rc < 0 ? rc : index;
}

/* Waits for the end of a generation, in which it has been counted. */
CONC__PRIVATE int conc__shared_barrier_await(conc_barrier *barrier,
                                             struct conc__registry *r,
                                             conc__actor *self, int index,
                                             unsigned generation,
                                             double deadline) {
  unsigned round;
  for (round = 0;; round++) {
    bool all_are_here;
    unsigned age;
    int rc;
    while ((rc = conc__barrier_enter(barrier, r)) != 0) {
      if (rc == -EOWNERDEAD) return rc;
      sched_yield();
    }
    age = barrier->generation - generation;
    if (age > 0) {
      bool failed = age <= 32 && (barrier->failed >> (age - 1) & 1);
      conc__shared_leave(&barrier->guard);
      return failed ? -EPIPE : index;
    }
    all_are_here = barrier->runner != 0;
    if (all_are_here) {
      if (round > 0 && conc__registry_is_dead(r, barrier->runner))
        rc = -EOWNERDEAD;
    } else if (conc__take_cancel(self)) {
      rc = -ECANCELED;
    } else if (deadline < CONC__NEVER && conc_now() >= deadline) {
      rc = -ETIMEDOUT;
    } else if (round > 0 && conc__sharers_bury(&barrier->parts, r)) {
      rc = -EOWNERDEAD;
    }
    if (rc != 0) {
      conc__barrier_break(barrier);
      conc__barrier_tell(barrier);
      return rc;
    }
    conc__shared_leave(&barrier->guard);
    if (round == 0)
      conc__shared_spin(self, &barrier->generation, generation);
    else
      conc__shared_sleep(
          self, &barrier->generation, generation,
          all_are_here ? CONC__NEVER : conc__scope_limit(self, deadline),
          round, !all_are_here);
  }
}

CONC__PRIVATE int conc__shared_barrier_wait(conc_barrier *barrier,
                                            double timeout) {
  struct conc__registry *r =
      conc__shared_registry(barrier, CONC__LOAD_RELAXED(&barrier->word));
  conc__actor *self = conc__self();
  double deadline = conc__deadline(timeout);
  unsigned round = 0;
  for (;;) {
    unsigned id, runner, generation;
    int index, rc = conc__barrier_enter(barrier, r);
    if (rc != 0) return rc;
    id = conc__registry_self(r);
    runner = barrier->runner;
    if (runner != 0 && conc__shared_doubts(round, deadline) &&
        conc__registry_is_dead(r, runner)) {
      conc__barrier_break(barrier);
      conc__barrier_tell(barrier);
      return -EOWNERDEAD;
    }
    if (barrier->broken)
      rc = -EPIPE;
    else if (runner == id && barrier->runner_actor == self->id)
      rc = -EDEADLK;
    generation = barrier->generation;
    if (rc == 0 && runner == 0) {
      index = barrier->waiting;
      if (index + 1 >= barrier->parties)
        return conc__shared_barrier_pass(barrier, r, id, self);
      CONC__STORE_RELAXED(&barrier->waiting, index + 1);
      conc__sharers_add(&barrier->parts, id); /* or its end is not noticed */
      conc__shared_leave(&barrier->guard);
      return conc__shared_barrier_await(barrier, r, self, index, generation,
                                        deadline);
    }
    conc__shared_leave(&barrier->guard);
    if (rc == 0) /* it comes again, when the action has run */
      rc = conc__shared_wait(&barrier->runner, runner, deadline, &round);
    else
      return rc;
    if (rc != 0) {
      while (conc__barrier_enter(barrier, r) != 0) sched_yield();
      if (generation == barrier->generation) {
        CONC__STORE_RELAXED(&barrier->broken, true);
        conc__barrier_turn(barrier, true);
      }
      conc__barrier_tell(barrier);
      return rc;
    }
  }
}

/* --- conc_barrier ---

   Everything is under the guard, but for the action: then the word names the
   one who runs it, and who comes for the next generation waits uncounted,
   with the tag CONC__COME_AGAIN. Those of this one are off the list. */

enum { CONC__COME_AGAIN = -EAGAIN };

/* Ends a generation before its time. */
CONC__PRIVATE int conc__barrier_end(conc_barrier *barrier, bool broken,
                                    const unsigned *generation) {
  conc__mutex *guard = conc__mutex_of(barrier);
  conc__waiter *chain = NULL, *w;
  if (conc__is_shared(CONC__LOAD_RELAXED(&barrier->word)))
    return conc__shared_barrier_end(barrier, broken);
  conc__mutex_lock(guard);
  if (generation == NULL || *generation == barrier->generation) {
    barrier->broken = broken;
    barrier->waiting = 0;
    barrier->generation++;
    chain = conc__waitlist_take_n(&barrier->waiters, SIZE_MAX);
    for (w = chain; w != NULL; w = w->next) w->tag = -EPIPE;
  }
  conc__mutex_unlock(guard);
  conc__wake_all(chain);
  return 0;
}

/* The last one has come; the guard is held. */
CONC__PRIVATE int conc__barrier_pass(conc_barrier *barrier, conc__mutex *guard,
                                     conc__actor *self) {
  conc__waiter *others, *come_again = NULL, *w;
  int index = barrier->waiting;
  int missing = index;
  int rc = 0;
  others = conc__waitlist_take_n(&barrier->waiters, SIZE_MAX);
  for (w = others; w != NULL; w = w->next) missing--;
  barrier->waiting = 0;
  barrier->generation++;
  /* One who has ceased to wait, and is about to say so, breaks it. */
  if (missing > 0) {
    rc = -EPIPE;
  } else if (barrier->action != NULL) {
    /* Also read without the guard, to tell a shared barrier. */
    CONC__STORE_RELAXED(&barrier->word, self->id);
    conc__mutex_unlock(guard);
    rc = barrier->action(barrier->arg);
    conc__mutex_lock(guard);
    CONC__STORE_RELAXED(&barrier->word, (uintptr_t)0);
    come_again = conc__waitlist_take_n(&barrier->waiters, SIZE_MAX);
  }
  if (rc < 0) {
    barrier->broken = true;
    for (w = others; w != NULL; w = w->next) w->tag = -EPIPE;
  }
  conc__mutex_unlock(guard); /* nothing of the barrier from here on */
  conc__wake_all(others);
  conc__wake_all(come_again);
  return rc < 0 ? rc : index;
}

CONC_API int conc_barrier_wait(conc_barrier *barrier, double timeout) {
  conc__mutex *guard = conc__mutex_of(barrier);
  conc__actor *self = conc__self();
  double deadline = conc__deadline(timeout);
  if (barrier->parties < 1) return -EINVAL;
  if (conc__is_shared(CONC__LOAD_RELAXED(&barrier->word)))
    return conc__shared_barrier_wait(barrier, timeout);
  for (;;) {
    conc__waiter w;
    unsigned generation;
    int rc = 0;
    conc__mutex_lock(guard);
    if (conc__owner_is_gone(barrier->word)) barrier->broken = true;
    if (barrier->broken)
      rc = -EPIPE;
    else if (barrier->word == self->id)
      rc = -EDEADLK;
    if (rc != 0) {
      conc__mutex_unlock(guard);
      return rc;
    }
    if (barrier->word == 0 && barrier->waiting + 1 == barrier->parties)
      return conc__barrier_pass(barrier, guard, self);
    conc__waiter_init(&w, self, "barrier", barrier->name);
    w.tag = barrier->word == 0 ? barrier->waiting++ : CONC__COME_AGAIN;
    generation = barrier->generation;
    rc = conc__waitlist_wait(guard, &barrier->waiters, &w, false, true,
                             deadline);
    if (rc != 0) {
      conc__barrier_end(barrier, true, &generation);
      return rc;
    }
    if (w.tag != CONC__COME_AGAIN) return w.tag;
  }
}

CONC_API int conc_barrier_reset(conc_barrier *barrier) {
  return conc__barrier_end(barrier, false, NULL);
}

CONC_API int conc_barrier_abort(conc_barrier *barrier) {
  return conc__barrier_end(barrier, true, NULL);
}

CONC_API bool conc_barrier_broken(const conc_barrier *barrier) {
  conc__mutex *guard = conc__mutex_of(barrier);
  bool broken;
  if (conc__is_shared(CONC__LOAD_RELAXED(&barrier->word)))
    return CONC__LOAD_RELAXED(&barrier->broken);
  conc__mutex_lock(guard);
  broken = barrier->broken;
  conc__mutex_unlock(guard);
  return broken;
}

CONC_API int conc_barrier_n_waiting(const conc_barrier *barrier) {
  conc__mutex *guard = conc__mutex_of(barrier);
  int waiting;
  if (conc__is_shared(CONC__LOAD_RELAXED(&barrier->word)))
    return CONC__LOAD_RELAXED(&barrier->waiting);
  conc__mutex_lock(guard);
  waiting = barrier->waiting;
  conc__mutex_unlock(guard);
  return waiting;
}

/* ---------------------------------------------------------------------------
   >>task: what is common to all kinds

   A task that is neither joined nor cancelled begins and ends with one
   compare-and-swap each. conc_cancel, which touches the actor, first marks
   task->done as awaited, under its guard: then the end of the task needs the
   guard, too, and cannot take the actor away meanwhile.
   ------------------------------------------------------------------------ */

/* In place of the actor: the task was cancelled before it had one. */
#define CONC__NEVER_BEGIN ((conc__actor *)1)

/* Default names count threads from 1, and coroutines in each loop. */
static unsigned conc__thread_numbers;

CONC__INLINE bool conc__task_was_started(const conc_task *t) {
  return t->kind != NULL;
}

/* Readies a task to be started as one of that kind. */
CONC__INLINE int conc__task_begin(conc_task *t, const conc__kind *kind) {
  if (t->target == NULL) return -EINVAL;
  if (t->kind != NULL && !conc_event_is_set(&t->done)) return -EBUSY;
  t->kind = kind;
  t->was_cancelled = false;
  t->status = 0;
  t->result = NULL;
  t->actor = NULL;
  t->id = 0;
  if (!kind->renamed) t->label[0] = 0; /* see conc_name */
  CONC__STORE_RELAXED(&t->done.flag, CONC__CLEAR); /* nobody waits now */
  return 0;
}

/* The task could not be started after all: it is as if new. */
CONC__PRIVATE void conc__task_start_failed(conc_task *t) { t->kind = NULL; }

/* The task now runs as this actor. False if it was cancelled before. */
CONC__INLINE bool conc__task_enter(conc_task *t, conc__actor *actor) {
  conc__actor *none = NULL;
  CONC__STORE_RELAXED(&t->id, actor->id);
  return CONC__CAS(&t->actor, &none, actor);
}

CONC__PRIVATE void conc__group_ended(conc_task *t);

/* The task has ended. Whoever joins it may free it as soon as it is set. */
CONC__INLINE void conc__task_finish(conc_task *t, void *result, int status) {
  int clear = CONC__CLEAR;
  t->result = result;
  t->status = status;
  if (CONC__UNLIKELY(t->group != NULL)) conc__group_ended(t);
  if (CONC__UNLIKELY(t->callback != NULL)) t->callback(t, status, result);
  if (CONC__UNLIKELY(!CONC__CAS(&t->done.flag, &clear, CONC__SET)))
    conc_event_set(&t->done);
}

/* Runs the target to its end, which is to be told by conc__task_finish. */
CONC__INLINE int conc__task_run(conc_task *t, conc__actor *actor,
                                void **result) {
  *result = NULL;
  if (!conc__task_enter(t, actor)) return -ECANCELED;
  *result = t->target(t->arg);
  return t->was_cancelled ? -ECANCELED : t->status;
}

/* Ends a task that stayed behind in the process that this one was forked from.
   So may have those of its group that could be cancelled: who is here is left
   to end. */
CONC__PRIVATE void conc__task_end_stayed_in_parent(conc_task *t) {
  int none = 0;
  if (t->group != NULL) CONC__CAS(&t->group->failure, &none, -ECHILD);
  t->group = NULL;
  conc__task_finish(t, NULL, -ECHILD);
}

/* Ends a task that has stayed behind, if it is of a kind for which that is
   only found out when somebody asks. */
CONC__INLINE void conc__task_look(conc_task *task) {
  if (task->kind != NULL && task->kind->look != NULL) task->kind->look(task);
}

/* Whether the caller can wait for its end: 0, or why not. */
CONC__PRIVATE int conc__task_check(conc_task *task) {
  if (task->kind == NULL || !task->kind->joinable) return -EINVAL;
  conc__task_look(task);
  return task == conc__self()->task ? -EDEADLK : 0;
}

CONC__PRIVATE int conc__task_await(conc_task *task, bool uncancellable,
                                   double timeout) {
  conc__waiter w;
  if (task->kind->await != NULL)
    return task->kind->await(task, uncancellable, timeout);
  if (conc__this.worker != NULL)
    return conc__jobs->await(task, uncancellable, timeout);
  conc__waiter_init(&w, conc__self(), "the end", NULL);
  w.uncancellable = uncancellable;
  w.relation = "of";
  w.owner = &task->id;
  return conc__event_park(&task->done, &w, timeout);
}

CONC__PRIVATE int conc__task_join(conc_task *task, double timeout) {
  if (!conc_event_is_set(&task->done)) {
    int rc = conc__task_check(task);
    if (rc == 0) rc = conc__task_await(task, false, timeout);
    if (rc != 0) return rc;
  }
  return task->status;
}

CONC_API int conc_join(conc_task *task, double timeout) {
  return conc__this.worker != NULL ? conc__jobs->join(task, timeout)
                                   : conc__task_join(task, timeout);
}

CONC_API int conc_set_status(int status) {
  conc_task *t = conc__self()->task;
  if (status > 0) return -EINVAL;
  t->status = status;
  t->was_cancelled = false;
  return 0;
}

CONC_API bool conc_is_alive(const conc_task *task) {
  conc__task_look((conc_task *)(uintptr_t)task);
  return task->kind != NULL && !conc_event_is_set(&task->done);
}

CONC_API void *conc_result(const conc_task *task) {
  return conc_event_is_set(&task->done) ? task->result : NULL;
}

CONC_API int conc_cancel(conc_task *task) {
  conc__mutex *guard = conc__mutex_of(&task->done);
  conc__actor *actor = NULL;
  int rc = -ESRCH;
  if (task->kind == NULL) return rc;
  conc__task_look(task);
  if (task->kind->cancel != NULL) return task->kind->cancel(task);
  conc__mutex_lock(guard);
  if (conc__event_await(&task->done)) {
    rc = 0;
    if (!CONC__CAS(&task->actor, &actor, CONC__NEVER_BEGIN) &&
        actor != CONC__NEVER_BEGIN)
      conc__unpark(actor, CONC__POKED);
  }
  conc__mutex_unlock(guard);
  return rc;
}

CONC_API conc_task *conc_current(void) { return conc__self()->task; }

/* Default names are put into words when first asked for: a million
   coroutines that nobody asks cost nothing. */
CONC_API const char *conc_name(conc_task *task) {
  conc__mutex *guard;
  if (task == NULL) task = conc_current();
  if (task->name != NULL) return task->name;
  if (task->kind == NULL) return ""; /* never started: it has none yet */
  guard = conc__mutex_of(&task->done);
  conc__mutex_lock(guard);
  if (task->label[0] == 0 || task->kind->renamed)
    conc__task_label(task, task->label, sizeof task->label);
  conc__mutex_unlock(guard);
  return task->label;
}

/* --- several at once --- */

/* Begins to wait for the ends of tasks. */
CONC__PRIVATE int conc__multiwait_begin(conc__multiwait *m, conc_task **tasks,
                                        size_t n,
                                        conc__multiwait_node *nodes) {
  conc__actor *self = conc__self();
  conc__multiwait_node **end = &m->ready;
  size_t i;
  memset(m, 0, sizeof *m);
  for (i = 0; i < n; i++) {
    int rc = conc__task_check(tasks[i]);
    if (rc != 0) return rc;
  }
  m->actor = self;
  m->nodes = nodes;
  m->next = self->many;
  CONC__STORE(&self->many, m);
  for (i = 0; i < n; i++) {
    conc__multiwait_node *node = &nodes[i];
    conc__mutex *guard = conc__mutex_of(&tasks[i]->done);
    bool awaits;
    conc__waiter_init(&node->waiter, self, NULL, NULL);
    node->waiter.many = m;
    node->task = tasks[i];
    node->place = 0;
    node->next = NULL;
    conc__mutex_lock(guard);
    m->n = i + 1;
    awaits = conc__event_await(&tasks[i]->done);
    if (awaits)
      conc__waitlist_insert(&tasks[i]->done.waiters, &node->waiter, false);
    conc__mutex_unlock(guard);
    if (awaits) continue;
    *end = node; /* it had ended before */
    end = &node->next;
    __atomic_add_fetch(&m->count, (size_t)1, __ATOMIC_RELAXED);
  }
  self->waiting = NULL;
  return 0;
}

/* Takes a waiter off, or lets whoever is doing so come to an end. */
CONC__PRIVATE void conc__multiwait_settle(conc__multiwait_node *node) {
  conc__mutex *guard = conc__mutex_of(&node->task->done);
  conc__mutex_lock(guard);
  if (node->waiter.list != NULL) conc__waitlist_remove(&node->waiter);
  conc__mutex_unlock(guard);
}

/* The next that has finished, or NULL. It may be freed then. */
CONC__PRIVATE conc__multiwait_node *conc__multiwait_tell(conc__multiwait *m) {
  conc__multiwait_node *node;
  if (m->ready == NULL) {
    conc__waiter *w =
        __atomic_exchange_n(&m->taken, (conc__waiter *)NULL, __ATOMIC_ACQUIRE);
    for (; w != NULL; w = w->next) { /* latest first */
      node = (conc__multiwait_node *)w;
      node->next = m->ready;
      m->ready = node;
    }
  }
  node = m->ready;
  if (node == NULL) return NULL;
  m->ready = node->next;
  node->place = ++m->told_count;
  conc__multiwait_settle(node);
  return node;
}

/* Waits for no more. */
CONC__PRIVATE void conc__multiwait_end(conc__multiwait *m) {
  conc__multiwait **p = &m->actor->many;
  size_t i;
  for (i = 0; i < m->n; i++)
    if (m->nodes[i].place == 0) conc__multiwait_settle(&m->nodes[i]);
  while (*p != m) p = &(*p)->next;
  CONC__STORE(p, m->next);
}

/* Waits as conc_wait does. 0, -ETIMEDOUT, -ECANCELED; the first failure. */
CONC__PRIVATE int conc__multiwait_until(conc__multiwait *m, int until,
                                        double deadline, int *failure) {
  size_t want = until == CONC_ALL || m->n == 0 ? m->n : 1;
  for (;;) {
    conc__multiwait_node *node;
    int rc = conc__multiwait_wait(m, want, false, deadline);
    while (*failure == 0 && (node = conc__multiwait_tell(m)) != NULL)
      *failure = node->task->status;
    if (rc != 0 || until != CONC_FIRST_FAILURE || *failure != 0 ||
        m->told_count == m->n)
      return rc;
    want = m->told_count + 1;
  }
}

enum { CONC__MANY_FEW = 8 }; /* have their nodes on the stack */

CONC_API ssize_t conc_wait(conc_task **tasks, size_t n, int until,
                           double timeout) {
  double deadline = conc__deadline(timeout);
  conc__multiwait m;
  conc__multiwait_node few[CONC__MANY_FEW];
  conc__multiwait_node *nodes = few;
  size_t i, rest;
  int rc;
  if (until < CONC_FIRST || until > CONC_ALL) return -EINVAL;
  if (n > CONC__MANY_FEW)
    nodes = (conc__multiwait_node *)CONC_MALLOC(n * sizeof *nodes);
  if (nodes == NULL) return -ENOMEM;
  rc = conc__multiwait_begin(&m, tasks, n, nodes);
  if (rc == 0) {
    int failure = 0;
    rc = conc__multiwait_until(&m, until, deadline, &failure);
    conc__multiwait_end(&m);
    while (conc__multiwait_tell(&m) != NULL) continue;
    for (i = 0, rest = m.told_count; i < n; i++)
      tasks[nodes[i].place > 0 ? nodes[i].place - 1 : rest++] = nodes[i].task;
    if (rc == -ETIMEDOUT) rc = 0;
  }
  if (nodes != few) CONC_FREE(nodes);
  return rc != 0 ? rc : (ssize_t)m.told_count;
}

CONC_API int conc_gather(conc_task **tasks, size_t n, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__multiwait m;
  conc__multiwait_node few[CONC__MANY_FEW];
  conc__multiwait_node *nodes = few;
  size_t i;
  int rc;
  if (n > CONC__MANY_FEW)
    nodes = (conc__multiwait_node *)CONC_MALLOC(n * sizeof *nodes);
  if (nodes == NULL) return -ENOMEM;
  rc = conc__multiwait_begin(&m, tasks, n, nodes);
  if (rc == 0) {
    int failure = 0;
    rc = conc__multiwait_until(&m, CONC_FIRST_FAILURE, deadline, &failure);
    if (failure != 0) rc = failure;
    if (rc != 0) {
      conc_scope shield;
      for (i = 0; i < n; i++) conc_cancel(tasks[i]);
      conc_shield(&shield);
      conc__multiwait_wait(&m, n, true, CONC__NEVER);
      conc_scope_end(&shield);
    }
    conc__multiwait_end(&m);
  }
  if (nodes != few) CONC_FREE(nodes);
  return rc;
}

CONC_API int conc_as_completed(conc_completed *completed, conc_task **tasks,
                               size_t n, double timeout) {
  conc__multiwait *m = (conc__multiwait *)CONC_MALLOC(
      sizeof *m + n * sizeof(conc__multiwait_node));
  int rc;
  completed->many = NULL;
  completed->deadline = conc__deadline(timeout);
  if (m == NULL) return -ENOMEM;
  rc = conc__multiwait_begin(m, tasks, n,
                             (conc__multiwait_node *)(void *)(m + 1));
  if (rc == 0)
    completed->many = m;
  else
    CONC_FREE(m);
  return rc;
}

CONC_API int conc_completed_next(conc_completed *completed, conc_task **task) {
  conc__multiwait *m = completed->many;
  int rc;
  if (m == NULL) return -EPIPE;
  if (m->actor != conc__self()) return -EPERM;
  if (m->told_count == m->n) {
    conc_completed_end(completed);
    return -EPIPE;
  }
  rc = conc__multiwait_wait(m, m->told_count + 1, false, completed->deadline);
  if (rc == 0) *task = conc__multiwait_tell(m)->task;
  return rc;
}

CONC_API void conc_completed_end(conc_completed *completed) {
  if (completed->many == NULL) return;
  conc__multiwait_end(completed->many);
  CONC_FREE(completed->many);
  completed->many = NULL;
}

/* --- scopes --- */

CONC__PRIVATE void conc__scope_begin(conc_scope *scope, double deadline,
                                     bool shield) {
  conc__actor *self = conc__self();
  scope->outer = self->scope;
  scope->deadline = deadline;
  scope->shield = shield;
  scope->expired = false;
  self->scope = scope;
}

CONC_API void conc_timeout(conc_scope *scope, double seconds) {
  conc__scope_begin(scope, conc__deadline(seconds), false);
}

CONC_API void conc_shield(conc_scope *scope) {
  conc__scope_begin(scope, CONC__NEVER, true);
}

CONC_API int conc_scope_end(conc_scope *scope) {
  conc__actor *self = conc__self();
  if (self->scope != scope) return -EPERM;
  self->scope = scope->outer;
  return scope->expired ? -ETIMEDOUT : 0;
}

/* --- groups ---

   Without a lock, that a fork could leave locked: tasks are only added, until
   all have ended. Who adds one looks afterwards whether the group has failed,
   and who lets it fail looks afterwards who is in it: so the newest is
   cancelled by one of them, at least. */

/* The group has failed, unless it has before: cancels all tasks of it. */
CONC__PRIVATE void conc__group_fail(conc_group *g, int failure) {
  int none = 0;
  conc_task *t;
  if (!__atomic_compare_exchange_n(&g->failure, &none, failure, false,
                                   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
    return;
  for (t = __atomic_load_n(&g->first, __ATOMIC_SEQ_CST); t != NULL;
       t = t->sibling)
    if (t != conc__self()->task) conc_cancel(t);
}

/* A task of a group is about to end: it still holds up the group. */
CONC__PRIVATE void conc__group_ended(conc_task *t) {
  conc_group *g = t->group;
  t->group = NULL;
  if (t->status != 0 && t->status != -ECANCELED)
    conc__group_fail(g, t->status);
}

CONC_API int conc_group_start(conc_group *group, conc_task *task,
                              int (*start)(conc_task *)) {
  conc_task *first = CONC__LOAD(&group->first);
  int rc;
  if (CONC__LOAD(&group->failure) != 0) return -ECANCELED;
  if (conc_is_alive(task)) return -EBUSY;
  task->group = group;
  rc = start(task);
  if (rc != 0) {
    task->group = NULL;
    return rc;
  }
  do task->sibling = first;
  while (!__atomic_compare_exchange_n(&group->first, &first, task, false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  if (__atomic_load_n(&group->failure, __ATOMIC_SEQ_CST) != 0)
    conc_cancel(task);
  return 0;
}

CONC_API int conc_group_leave(conc_group *group, double timeout) {
  double deadline = conc__deadline(timeout);
  conc_task *seen = NULL;
  conc_task *first, *t;
  conc_scope shield;
  bool shielded = false;
  int rc;
  for (t = CONC__LOAD(&group->first); t != NULL; t = t->sibling)
    if (t == conc__self()->task) return -EDEADLK;
  while ((first = CONC__LOAD(&group->first)) != seen) {
    for (t = first; t != seen; t = t->sibling) {
      rc = conc__task_await(t, shielded, conc__remaining(deadline));
      if (rc == 0) continue;
      conc__group_fail(group, rc);
      conc_shield(&shield);
      shielded = true;
      deadline = CONC__NEVER;
      conc__task_await(t, true, CONC_FOREVER);
    }
    seen = first;
  }
  if (shielded) conc_scope_end(&shield);
  rc = group->failure;
  memset(group, 0, sizeof *group);
  return rc;
}

/* ---------------------------------------------------------------------------
   >>stack: the switch, and the memory of stacks

   A fiber is a place to switch to: the stack of a coroutine or a generator, or
   the thread's own.
   The assembly is inline and lists everything as clobbered, so that the
   compiler saves just what is live at each switch; it goes on by an indirect
   jump, which is predicted, where a return would not be.
   ------------------------------------------------------------------------ */

#if CONC_HAVE_ASAN
void __sanitizer_start_switch_fiber(void **, const void *, size_t);
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
void __asan_unpoison_memory_region(void const volatile *, size_t);
#endif
#if CONC_HAVE_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void *);
void __tsan_switch_to_fiber(void *, unsigned);
#endif

#if CONC_HAVE_SWITCH_ASM && defined(__x86_64__)

/* rbx and rbp are saved by hand: compilers refuse them as clobbers (rbx in
   position-independent code, rbp as the frame pointer). The endbr64 is where
   the indirect jump lands, for CET; elsewhere it does nothing. MXCSR and the
   x87 control word are not saved: they belong to the thread. */
CONC__INLINE void conc__switch_registers(void **from, void **to) {
  __asm__ __volatile__(
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rsp, 0(%%rdi)\n\t"
      "movq %%rax, 8(%%rdi)\n\t"
      "movq %%rbp, 16(%%rdi)\n\t"
      "movq %%rbx, 24(%%rdi)\n\t"
      "movq 0(%%rsi), %%rsp\n\t"
      "movq 8(%%rsi), %%rax\n\t"
      "movq 16(%%rsi), %%rbp\n\t"
      "movq 24(%%rsi), %%rbx\n\t"
      "jmpq *%%rax\n"
      "1:\n\t"
      "endbr64\n\t"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
        "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
        "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
        "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)",
#ifdef __AVX512F__
        "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
        "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29",
        "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#endif
        "cc", "memory");
}

#elif CONC_HAVE_SWITCH_ASM && defined(__aarch64__)

/* x29 is the frame pointer, x19 the base pointer of frames with alloca: both
   saved by hand. br x16 may land on any bti; x18 is the platform's on some. */
CONC__INLINE void conc__switch_registers(void **from, void **to) {
  register void **x0 __asm__("x0") = from;
  register void **x1 __asm__("x1") = to;
  __asm__ __volatile__(
      "adr x16, 1f\n\t"
      "mov x17, sp\n\t"
      "stp x17, x16, [x0]\n\t"
      "stp x29, x19, [x0, #16]\n\t"
      "ldp x17, x16, [x1]\n\t"
      "ldp x29, x19, [x1, #16]\n\t"
      "mov sp, x17\n\t"
      "br x16\n"
      "1:\n\t"
      "hint #36\n\t" /* bti j */
      : "+r"(x0), "+r"(x1)
      :
      : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12",
        "x13", "x14", "x15", "x16", "x17",
#ifndef __APPLE__
        "x18",
#endif
        "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x30",
        "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10",
        "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20",
        "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",
        "v31", "cc", "memory");
}

#endif

/* Goes on at `to`; returns when somebody switches back to `from`. `last`: the
   stack of `from` is not needed any more. */
CONC__INLINE void conc__fiber_switch(conc__fiber *from, conc__fiber *to,
                                     bool last) {
#if CONC_HAVE_ASAN
  __sanitizer_start_switch_fiber(last ? NULL : &from->asan_fake,
                                 to->asan_bottom, to->asan_size);
#endif
#if CONC_HAVE_TSAN
  __tsan_switch_to_fiber(to->tsan, 0);
#endif
  (void)last;
#if CONC_HAVE_SWITCH_ASM
  conc__switch_registers(from->registers, to->registers);
#else
  swapcontext(&from->context, &to->context);
#endif
#if CONC_HAVE_ASAN
  __sanitizer_finish_switch_fiber(from->asan_fake, &from->asan_from,
                                  &from->asan_from_size);
#endif
}

/* The calling thread's own stack as a fiber. ASan learns its bounds when it
   is first left; see conc__fiber_entered. */
CONC__PRIVATE void conc__fiber_init_thread(conc__fiber *f) {
  memset(f, 0, sizeof *f);
#if CONC_HAVE_TSAN
  f->tsan = __tsan_get_current_fiber();
#endif
}

/* First thing on a new stack; `main_fiber` is told its bounds, when it is
   where we came from. */
CONC__PRIVATE void conc__fiber_entered(conc__fiber *main_fiber) {
#if CONC_HAVE_ASAN
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(NULL, &bottom, &size);
  if (main_fiber->asan_bottom == NULL) { /* the first switch of the loop */
    main_fiber->asan_bottom = bottom;
    main_fiber->asan_size = size;
  }
#else
  (void)main_fiber;
#endif
}

/* Makes a fiber that begins with entry() on the given stack; entry never
   returns. */
CONC__PRIVATE void conc__fiber_init(conc__fiber *f, unsigned char *stack,
                                    size_t size, void (*entry)(void)) {
#if CONC_HAVE_SWITCH_ASM
  /* As after a call: the return address (none) on an aligned stack. */
  uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)15;
#if defined(__x86_64__)
  top -= 8;
  *(void **)top = NULL;
#endif
  f->registers[0] = (void *)top;
  memcpy(&f->registers[1], &entry, sizeof entry);
  f->registers[2] = f->registers[3] = NULL;
#else
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = stack;
  f->context.uc_stack.ss_size = size;
  f->context.uc_link = NULL;
  makecontext(&f->context, entry, 0);
#endif
#if CONC_HAVE_ASAN
  /* Whoever used the stack last left by a jump, and its frames poisoned. */
  __asan_unpoison_memory_region(stack, size);
  f->asan_fake = NULL;
  f->asan_bottom = stack;
  f->asan_size = size;
#endif
#if CONC_HAVE_TSAN
  if (f->tsan == NULL) f->tsan = __tsan_create_fiber(0);
#endif
}

/* Valgrind takes a jump of the stack pointer for a huge frame unless it knows
   the stack. */
#define CONC__VALGRIND_STACK_REGISTER 0x1501
#define CONC__VALGRIND_STACK_DEREGISTER 0x1502

/* A coroutine's control block stands at the top of its stack, so that one
   page holds it and the first frames:

     | guard page | ... stack grows down | conc__coro | colour |

   The colour shifts it by some cache lines from one stack to the next: at the
   same place in every page they would evict each other. */
typedef struct conc__coro {
  conc__actor actor; /* first: an actor that is a coroutine is its coroutine */
  struct conc__loop *loop;
  struct conc__coro *next; /* in the inbox, or among the free or the dead */
  uint32_t timer;          /* its place among the loop's timers; 0: none */
  unsigned char *map;      /* where its mapping begins: the guard page */
  size_t map_size;
  size_t valgrind;
  struct conc__slab *slab; /* of which the mapping is a slot; NULL: none */
  bool queued;             /* for conc__fork_child */
} conc__coro;

/* Stacks of CONC_STACK_SIZE come from slabs, each twice as large as the one
   before, and are reused last in, first out: the warmest first. Per loop, so
   without locks. */
typedef struct conc__slab {
  struct conc__slab *next;
  unsigned char *map;
  size_t slots, used; /* slots from `used` on were never touched */
  size_t busy;        /* slots that a task has */
  bool leaves;        /* for conc__stacks_trim */
} conc__slab;

typedef struct conc__stacks {
  conc__coro *free;
  conc__slab *slabs;
  size_t idle; /* slabs of which no slot is busy */
} conc__stacks;

/* --- where a handler runs when a stack has overflowed --- */

static bool conc__overflow_report;

#define CONC__ALTERNATE_SIZE 65536

/* Gives the thread an alternate signal stack; on its own the handler could
   not run when that has overflowed. */
CONC__PRIVATE int conc__alternate_open(void) {
  stack_t stack;
  if (conc__this.alternate != NULL || sigaltstack(NULL, &stack) != 0 ||
      !(stack.ss_flags & SS_DISABLE))
    return 0;
  memset(&stack, 0, sizeof stack);
  stack.ss_sp = conc__pages_map(CONC__ALTERNATE_SIZE);
  stack.ss_size = CONC__ALTERNATE_SIZE;
  if (stack.ss_sp == NULL) return -ENOMEM;
  conc__this.alternate = stack.ss_sp;
  sigaltstack(&stack, NULL);
  return 0;
}

CONC__PRIVATE void conc__alternate_close(void) {
  stack_t none;
  if (conc__this.alternate == NULL) return;
  memset(&none, 0, sizeof none);
  none.ss_flags = SS_DISABLE;
  sigaltstack(&none, NULL);
  munmap(conc__this.alternate, CONC__ALTERNATE_SIZE);
  conc__this.alternate = NULL;
}

/* --- their memory --- */

CONC__PRIVATE size_t conc__stack_round(size_t size) {
  return (size + conc__page - 1) / conc__page * conc__page;
}

/* Of the n-th stack: by how many bytes its control block is shifted. */
CONC__INLINE size_t conc__colour(size_t n) { return n % 15 * 64; }

CONC__PRIVATE size_t conc__stack_slot_size(void) {
  return conc__page + conc__stack_round(CONC_STACK_SIZE);
}

/* Makes a mapping's control block. NULL if there can be no guard page. */
CONC__PRIVATE conc__coro *conc__stack_make(unsigned char *map, size_t size,
                                           size_t colour) {
  conc__coro *co = (conc__coro *)(((uintptr_t)map + size - colour -
                                   sizeof(conc__coro)) &
                                  ~(uintptr_t)63);
  if (conc__pages_guard(map, conc__page) != 0) return NULL;
  if (CONC__LOAD_RELAXED(&conc__overflow_report)) conc__alternate_open();
  memset(co, 0, sizeof *co);
  co->map = map;
  co->map_size = size;
  co->valgrind =
      conc__valgrind(CONC__VALGRIND_STACK_REGISTER, map + conc__page, co);
  return co;
}

CONC__PRIVATE conc__coro *conc__stack_get_pooled(conc__stacks *pool) {
  conc__coro *co = pool->free;
  conc__slab *slab = pool->slabs;
  size_t slot = conc__stack_slot_size();
  if (co != NULL) {
    pool->free = co->next;
    pool->idle -= co->slab->busy++ == 0;
    return co;
  }
  if (slab == NULL || slab->used == slab->slots) {
    size_t slots = slab == NULL ? 16 : slab->slots * 2;
    if (slots > 4096) slots = 4096;
    slab = (conc__slab *)CONC_MALLOC(sizeof *slab);
    if (slab == NULL) return NULL;
    slab->map = (unsigned char *)conc__pages_map(slots * slot);
    if (slab->map == NULL) {
      CONC_FREE(slab);
      return NULL;
    }
    slab->slots = slots;
    slab->used = slab->busy = 0;
    slab->next = pool->slabs;
    pool->slabs = slab;
    pool->idle++;
  }
  co = conc__stack_make(slab->map + slab->used * slot, slot,
                        conc__colour(slab->used));
  if (co == NULL) return NULL;
  slab->used++;
  co->slab = slab;
  pool->idle -= slab->busy++ == 0;
  return co;
}

/* Gives one back, from the stack itself: it is used until the next switch. */
CONC__INLINE void conc__stack_put_pooled(conc__stacks *pool, conc__coro *co) {
  co->next = pool->free;
  pool->free = co;
  pool->idle += --co->slab->busy == 0;
}

/* A control block with a stack that has a mapping of its own. NULL: no
   memory. */
CONC__PRIVATE conc__coro *conc__stack_map(size_t size) {
  unsigned char *map;
  conc__coro *co;
  if (size > SIZE_MAX / 2) return NULL;
  size = conc__page + conc__stack_round(size + sizeof(conc__coro) + 1024);
  map = (unsigned char *)conc__pages_map(size);
  if (map == NULL) return NULL;
  co = conc__stack_make(map, size, conc__colour((uintptr_t)map / conc__page));
  if (co == NULL) munmap(map, size);
  return co;
}

/* A control block with a stack of at least `size` bytes (0: the default).
   NULL: no memory. */
CONC__PRIVATE conc__coro *conc__stack_get(conc__stacks *pool, size_t size) {
  if (size <= CONC_STACK_SIZE) return conc__stack_get_pooled(pool);
  return conc__stack_map(size);
}

/* Undoes conc__stack_make. Not from the stack itself. */
CONC__PRIVATE void conc__stack_unmake(conc__coro *co) {
#if CONC_HAVE_TSAN
  if (co->actor.fiber.tsan != NULL) __tsan_destroy_fiber(co->actor.fiber.tsan);
#endif
#if CONC_HAVE_ASAN
  __asan_unpoison_memory_region(co->map, co->map_size);
#endif
  conc__valgrind(CONC__VALGRIND_STACK_DEREGISTER, (void *)co->valgrind, NULL);
}

CONC__PRIVATE void conc__stack_unmap(conc__coro *co) {
  unsigned char *map = co->map;
  size_t size = co->map_size;
  conc__stack_unmake(co);
  munmap(map, size);
}

/* Gives back the slabs of which no slot is busy, but one of them if `one`. */
CONC__PRIVATE void conc__stacks_trim(conc__stacks *pool, bool one) {
  conc__slab **s = &pool->slabs;
  conc__coro **p = &pool->free;
  conc__slab *slab;
  for (slab = pool->slabs; slab != NULL; slab = slab->next)
    slab->leaves = slab->busy == 0;
  /* The oldest, which is the smallest, stays. */
  if (one)
    for (slab = pool->slabs; slab != NULL; slab = slab->next)
      if (slab->leaves && slab->next == NULL) slab->leaves = false;
  while (*p != NULL) {
    conc__coro *co = *p;
    if (co->slab->leaves) {
      *p = co->next;
      conc__stack_unmake(co);
    } else {
      p = &co->next;
    }
  }
  while (*s != NULL) {
    slab = *s;
    if (slab->leaves) {
      *s = slab->next;
      pool->idle--;
      munmap(slab->map, slab->slots * conc__stack_slot_size());
      CONC_FREE(slab);
    } else {
      s = &slab->next;
    }
  }
}

/* ---------------------------------------------------------------------------
   >>generator: conc_gen

   A generator has a stack and no actor: its code runs as the actor that has
   resumed it. If that parks meanwhile, the registers that are saved for it are
   the generator's; so nothing need be known of generators there, only the
   sanitizers want to be told on which stack an actor is.
   If generators delegate to each other, the root is the one that is resumed.
   They are a ring: the root's `next` is the leaf, which goes on then, and each
   other's is the one that goes on at its end. The root's `stack` is that which
   the leaf runs on; one that was begun and then delegated to has there what
   the root had before. One that has not begun when another delegates to it
   is just called by that, on the same stack, as long as there is as much room
   as it would have on its own: that is why stacks of generators are twice as
   large as they were asked for.
   Each stack is a mapping of its own: a generator that is left suspended at
   the end of its thread, or of a loop, keeps nothing else.
   ------------------------------------------------------------------------ */

#define CONC__GEN_STATE ((uintptr_t)7) /* a conc__thread is aligned */
#define CONC__GEN_SUSPENDED ((uintptr_t)0)
#define CONC__GEN_NEW ((uintptr_t)1) /* and has a thread */
#define CONC__GEN_RUNNING ((uintptr_t)2)
#define CONC__GEN_DELEGATED ((uintptr_t)3) /* another waits for its end */
#define CONC__GEN_ENDED ((uintptr_t)4)

CONC__PRIVATE void conc__spare_put(conc__coro *co, size_t size) {
  conc__thread *thread = &conc__this;
  if (size > CONC_STACK_SIZE || thread->spares == 64) {
    conc__stack_unmap(co);
    return;
  }
  co->next = thread->spare;
  thread->spare = co;
  thread->spares++;
}

CONC__PRIVATE conc__coro *conc__spare_get(size_t size) {
  conc__thread *thread = &conc__this;
  conc__coro *co = thread->spare;
  if (size > SIZE_MAX / 4) return NULL;
  if (size > CONC_STACK_SIZE) return conc__stack_map(size * 2);
  if (co == NULL) return conc__stack_map(CONC_STACK_SIZE * 2);
  thread->spare = co->next;
  thread->spares--;
  return co;
}

/* The thread ends. */
CONC__PRIVATE void conc__spares_free(void) {
  while (conc__this.spare != NULL)
    conc__stack_unmap(conc__spare_get(CONC_STACK_SIZE));
  conc__alternate_close();
}

/* As conc__fiber_switch: `self` goes on at `to`. */
CONC__INLINE void conc__gen_switch(conc__actor *self, conc__fiber *from,
                                   conc__fiber *to, bool last) {
#if CONC_HAVE_ASAN || CONC_HAVE_TSAN
  if (self != &conc__this.actor) { /* a coroutine */
    conc__fiber *own = &self->fiber;
#if CONC_HAVE_ASAN
    own->asan_bottom = to->asan_bottom;
    own->asan_size = to->asan_size;
#endif
#if CONC_HAVE_TSAN
    own->tsan = to->tsan;
#endif
  }
#endif
  (void)self;
  conc__fiber_switch(from, to, last);
}

/* The generator whose code runs. */
CONC__INLINE conc_gen *conc__gen_leaf(void) {
  return conc__this.current->generator->next;
}

CONC__INLINE int conc__gen_take_status(conc_gen *g) {
  int status = g->status;
  if (CONC__UNLIKELY(status != 0)) g->status = 0;
  return status;
}

/* Leaves a stack for another one of the same root or for their caller.
   Returns when it goes on, with what the leaf is told; then who it was may be
   another actor, with another root. */
CONC__INLINE int conc__gen_leave(conc__actor *self, conc__coro *stack,
                                 conc__fiber *to) {
  conc__gen_switch(self, &stack->actor.fiber, to, false);
#if CONC_HAVE_ASAN
  self = conc__this.current;
  if (self->caller->asan_bottom == NULL) { /* it comes from there */
    self->caller->asan_bottom = stack->actor.fiber.asan_from;
    self->caller->asan_size = stack->actor.fiber.asan_from_size;
  }
#endif
  return conc__gen_take_status(conc__gen_leaf());
}

/* Puts the ring of `inner` into that of the root, before its leaf; or takes it
   out again: then its leaf is `inner`. */
CONC__INLINE void conc__gen_splice(conc_gen *root, conc_gen *inner) {
  conc_gen *next = root->next;
  root->next = inner->next;
  inner->next = next;
}

CONC__INLINE void conc__gen_swap_stacks(conc_gen *root, conc_gen *inner) {
  conc__coro *stack = root->stack;
  root->stack = inner->stack;
  inner->stack = stack;
}

/* Only its thread changes the word; others look whose it is. */
CONC__INLINE void conc__gen_set(conc_gen *g, uintptr_t state) {
  CONC__STORE_RELAXED(&g->word, (uintptr_t)&conc__this | state);
}

CONC__INLINE uintptr_t conc__gen_state(const conc_gen *g) {
  return CONC__LOAD_RELAXED(&g->word) & CONC__GEN_STATE;
}

CONC__PRIVATE void conc__gen_main(void) {
  conc_gen *g = conc__gen_leaf();
  conc__actor *self;
  conc_gen *root;
  conc__fiber *from, *to;
  conc__fiber_entered(conc__this.current->caller);
  g->value = g->target(g->arg);
  conc__gen_set(g, CONC__GEN_ENDED);
  self = conc__this.current; /* who has resumed it last */
  root = self->generator;
  from = &root->stack->actor.fiber;
  if (g == root) {
    to = self->caller;
    self->generator = NULL;
  } else {
    conc__gen_splice(root, g);
    conc__gen_swap_stacks(root, g);
    to = &root->stack->actor.fiber;
  }
  conc__gen_switch(self, from, to, true);
}

/* Its stack is not needed any more. Not from the stack itself. */
CONC__PRIVATE void conc__gen_free(conc_gen *g) {
  conc__spare_put(g->stack, g->stack_size);
  g->stack = NULL;
}

/* Whether it can be resumed, by the caller: 0, or why not. */
CONC__PRIVATE int conc__gen_check(conc_gen *g) {
  const uintptr_t mine = (uintptr_t)&conc__this;
  uintptr_t word = 0;
  if (g->target == NULL) return -EINVAL;
  if (CONC__CAS(&g->word, &word, mine | CONC__GEN_NEW)) return 0;
  if ((word & ~CONC__GEN_STATE) != mine) return -EPERM;
  word &= CONC__GEN_STATE;
  if (word == CONC__GEN_ENDED) return -EPIPE;
  return word == CONC__GEN_RUNNING || word == CONC__GEN_DELEGATED ? -EBUSY : 0;
}

/* And makes it so if it has not begun yet. */
CONC__PRIVATE int conc__gen_begin(conc_gen *g, void *sent) {
  int rc = conc__gen_check(g);
  if (rc != 0 || conc__gen_state(g) != CONC__GEN_NEW) return rc;
  if (sent != NULL) return -EINVAL;
  g->stack = conc__spare_get(g->stack_size);
  if (g->stack == NULL) return -ENOMEM;
  conc__fiber_init(&g->stack->actor.fiber, g->stack->map + conc__page,
                   (size_t)((unsigned char *)g->stack - g->stack->map) -
                       conc__page,
                   conc__gen_main);
  g->next = g;
  conc__gen_set(g, CONC__GEN_SUSPENDED);
  return 0;
}

CONC__INLINE int conc__gen_resume(conc_gen *gen, void *sent, void **value) {
  conc__actor *self = conc__self();
  conc_gen *before = self->generator;
  conc__fiber *caller_before;
  conc__fiber caller;
  uintptr_t word;
  if (CONC__UNLIKELY(CONC__LOAD_RELAXED(&gen->word) !=
                     ((uintptr_t)&conc__this | CONC__GEN_SUSPENDED))) {
    int rc = conc__gen_begin(gen, sent);
    if (rc != 0) return rc;
  }
#if CONC_HAVE_ASAN
  caller.asan_bottom = NULL; /* the generator will know */
  caller.asan_size = 0;
#endif
#if CONC_HAVE_TSAN
  caller.tsan = __tsan_get_current_fiber();
#endif
  if (CONC__UNLIKELY(before != NULL)) caller_before = self->caller;
  conc__gen_set(gen, CONC__GEN_RUNNING);
  self->generator = gen;
  /* The stores are what a round trip takes its time for. And the address of
     the caller can be loaded, if it is an old one, before the stack pointer is
     known that it would be computed from. */
  if (CONC__UNLIKELY(self->sent != sent)) self->sent = sent;
  if (CONC__UNLIKELY(self->caller != &caller)) self->caller = &caller;
  conc__gen_switch(self, &caller, &gen->stack->actor.fiber, false);
  if (CONC__UNLIKELY(before != NULL)) {
    self = conc__this.current;
    self->generator = before;
    self->caller = caller_before;
  }
  word = CONC__LOAD_RELAXED(&gen->word);
  if (CONC__UNLIKELY((word & CONC__GEN_STATE) == CONC__GEN_ENDED)) {
    conc__gen_free(gen);
    return -EPIPE;
  }
  CONC__STORE_RELAXED(&gen->word, word & ~CONC__GEN_STATE);
  if (value != NULL) *value = gen->value;
  return 0;
}

/* Returns are predicted to go where the last call came from: wrongly after a
   switch. It is three times as fast if these are compiled into the functions
   that use them. */
#if defined(__cplusplus) /* then other files would lack them */
#define CONC_API_HOT CONC_API
#else
#define CONC_API_HOT CONC_API inline
#endif
#if defined(__clang__) /* no inline definitions: they were declared before */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wstatic-in-inline"
#endif

CONC_API_HOT int conc_gen_send(conc_gen *gen, void *sent, void **value) {
  return conc__gen_resume(gen, sent, value);
}

CONC_API_HOT int conc_gen_next(conc_gen *gen, void **value) {
  return conc__gen_resume(gen, NULL, value);
}

CONC_API_HOT int conc_yield(void *value, void **sent) {
  conc__actor *self = conc__self();
  conc_gen *root = self->generator;
  int rc;
  if (CONC__UNLIKELY(root == NULL)) return -EPERM;
  root->value = value;
  self->generator = NULL;
  rc = conc__gen_leave(self, root->stack, self->caller);
  if (sent != NULL) *sent = conc__this.current->sent;
  return rc;
}

/* Whether a generator that has not begun has room on the stack of the caller,
   another one. */
CONC__INLINE bool conc__gen_fits(const conc_gen *inner, const conc_gen *root) {
  size_t size = inner->stack_size;
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  if (size < CONC_STACK_SIZE) size = CONC_STACK_SIZE;
  return here - (uintptr_t)root->stack->map - conc__page >= size;
}

/* conc_yield_from by a switch. */
CONC__NOINLINE int conc__gen_switch_from(conc__actor *self, conc_gen *inner,
                                         void **result) {
  conc_gen *root = self->generator;
  int rc = conc__gen_begin(inner, NULL);
  if (rc == 0) {
    conc__coro *stack = root->stack;
    conc__gen_set(inner, CONC__GEN_DELEGATED);
    conc__gen_splice(root, inner);
    conc__gen_swap_stacks(root, inner);
    self->sent = NULL;
    rc = conc__gen_leave(self, stack, &root->stack->actor.fiber);
    conc__gen_free(inner);
  } else if (rc == -EPIPE) {
    rc = 0;
  } else {
    return rc;
  }
  if (result != NULL) *result = inner->value;
  return rc;
}

CONC_API_HOT int conc_yield_from(conc_gen *inner, void **result) {
  conc__actor *self = conc__self();
  conc_gen *root = self->generator;
  conc_gen *g;
  if (root == NULL) return -EPERM;
  if (CONC__LOAD_RELAXED(&inner->word) != 0 || inner->target == NULL ||
      !conc__gen_fits(inner, root))
    return conc__gen_switch_from(self, inner, result);
  conc__gen_set(inner, CONC__GEN_DELEGATED);
  g = inner->next = root->next;
  root->next = inner;
  inner->value = inner->target(inner->arg);
  conc__gen_set(inner, CONC__GEN_ENDED);
  conc__this.current->generator->next = g;
  if (result != NULL) *result = inner->value;
  return conc__gen_take_status(g);
}

/* What those of a root are to be told: its leaf, and all that wait for it. */
CONC__PRIVATE void conc__gen_tell(conc_gen *root, int status) {
  conc_gen *g = root;
  do g->status = status;
  while ((g = g->next) != root);
}

CONC_API int conc_gen_close(conc_gen *gen) {
  int rc = conc__gen_check(gen);
  if (rc == 0 && conc__gen_state(gen) == CONC__GEN_NEW) {
    conc__gen_set(gen, CONC__GEN_ENDED);
  } else if (rc == 0) {
    conc__gen_tell(gen, -ECANCELED);
    rc = conc_gen_next(gen, NULL);
    if (rc == 0) {
      conc__gen_tell(gen, 0);
      return -EAGAIN;
    }
  }
  return rc == -EPIPE ? 0 : rc;
}

CONC_API void *conc_gen_result(const conc_gen *gen) {
  return conc__gen_state(gen) == CONC__GEN_ENDED ? gen->value : NULL;
}

/* ---------------------------------------------------------------------------
   >>local: conc_local

   An attribute, which is one name of one local, has an index, the lowest that
   is free; and a task has an array of values, to be read at that index. Only
   the task itself uses its array, and so without a lock, but for these, which
   hold conc__locals_guard: replacing the array, since conc_local_free looks
   into all of them; and reading what conc_local_free may be clearing.
   ------------------------------------------------------------------------ */

struct conc_attribute {
  conc_local *local;
  const char *address;             /* where the name stood that made it */
  size_t index;
  bool of_task;                    /* CONC_SCOPE_TASK */
  struct conc_attribute *next;     /* of all there are, by index */
  struct conc_attribute *child[4]; /* by two bits of the name's hash */
  /* the name follows */
};

typedef struct conc__local_value {
  const conc_attribute *attribute; /* NULL: not set */
  void *value;
} conc__local_value;

typedef struct conc__locals {
  struct conc__locals *next, **link; /* of all there are */
  size_t size;
  /* the values follow */
} conc__locals;

static conc__mutex conc__locals_guard;
static conc__locals *conc__locals_all;
static conc_attribute *conc__attributes_all;

CONC__INLINE conc__local_value *conc__locals_values(conc__locals *l) {
  return (conc__local_value *)(l + 1);
}

CONC__INLINE bool conc__attribute_is(const conc_attribute *a,
                                     const char *name) {
  return strcmp((const char *)(a + 1), name) == 0;
}

/* Where the attribute of a name is, or would be: a tree that branches by the
   name's hash. Attributes are added under the guard and stay: so it is read
   without. */
CONC__PRIVATE conc_attribute **conc__attribute_place(conc_local *local,
                                                     const char *name) {
  conc_attribute **place = &local->root;
  uint64_t hash = 14695981039346656037u; /* FNV-1a */
  const char *p;
  for (p = name; *p != 0; p++)
    hash = (hash ^ (unsigned char)*p) * 1099511628211u;
  for (;;) {
    conc_attribute *a = CONC__LOAD(place);
    if (a == NULL || conc__attribute_is(a, name)) return place;
    place = &a->child[hash >> 62];
    hash <<= 2;
  }
}

/* NULL: nobody has used that name yet. The usual name is a literal: its
   address says where to look, no more, for another text may stand there. */
CONC__INLINE conc_attribute *conc__attribute_find(conc_local *local,
                                                  const char *name) {
  conc_attribute *a;
  int i;
  if (CONC__UNLIKELY(name == NULL)) return NULL;
  for (i = 0; i < 8 && (a = CONC__LOAD(&local->first[i])) != NULL; i++)
    if (a->address == name && conc__attribute_is(a, name)) return a;
  return CONC__LOAD(conc__attribute_place(local, name));
}

/* As above, but makes it. 0, -EINVAL, -ENOMEM. */
CONC__PRIVATE int conc__attribute_make(conc_local *local, const char *name,
                                       conc_attribute **out) {
  conc_attribute *a = *out = conc__attribute_find(local, name);
  conc_attribute **p, **q;
  size_t size;
  int i;
  if (a != NULL) return 0;
  if (name == NULL || (unsigned)local->scope > CONC_SCOPE_TASK) return -EINVAL;
  conc__init();
  size = strlen(name) + 1;
  a = (conc_attribute *)CONC_MALLOC(sizeof *a + size);
  if (a == NULL) return -ENOMEM;
  memset(a, 0, sizeof *a);
  memcpy(a + 1, name, size);
  a->local = local;
  a->address = name;
  a->of_task = local->scope == CONC_SCOPE_TASK;
  conc__mutex_lock(&conc__locals_guard);
  p = conc__attribute_place(local, name);
  if (*p == NULL) {
    q = &conc__attributes_all;
    for (; *q != NULL && (*q)->index == a->index; q = &(*q)->next) a->index++;
    a->next = *q;
    *q = a;
    CONC__STORE(p, a);
    for (i = 0; i < 8 && local->first[i] != NULL; i++) {
    }
    if (i < 8) CONC__STORE(&local->first[i], a);
  } else {
    CONC_FREE(a); /* another thread was faster */
  }
  *out = *p;
  conc__mutex_unlock(&conc__locals_guard);
  return 0;
}

CONC_API conc_attribute *conc_local_attribute(conc_local *local,
                                              const char *name) {
  conc_attribute *a;
  int rc = conc__attribute_make(local, name, &a);
  if (rc != 0) errno = -rc;
  return a;
}

/* Replaces a task's array by one of at least so many, or (0) by none. 0 or
   -ENOMEM. */
CONC__PRIVATE int conc__locals_resize(conc_task *task, size_t count) {
  conc__locals *old = task->locals;
  conc__locals *l = NULL;
  if (count > 0) {
    size_t size = 4;
    while (size < count) size *= 2;
    l = (conc__locals *)CONC_MALLOC(sizeof *l +
                                    size * sizeof(conc__local_value));
    if (l == NULL) return -ENOMEM;
    memset(l, 0, sizeof *l + size * sizeof(conc__local_value));
    l->size = size;
  }
  conc__mutex_lock(&conc__locals_guard);
  if (old != NULL) {
    *old->link = old->next;
    if (old->next != NULL) old->next->link = old->link;
  }
  if (l != NULL) {
    if (old != NULL)
      memcpy(conc__locals_values(l), conc__locals_values(old),
             old->size * sizeof(conc__local_value));
    l->link = &conc__locals_all;
    l->next = conc__locals_all;
    if (l->next != NULL) l->next->link = &l->next;
    conc__locals_all = l;
  }
  conc__mutex_unlock(&conc__locals_guard);
  task->locals = l;
  CONC_FREE(old);
  return 0;
}

/* The task whose values the caller sees. */
CONC__INLINE conc_task *conc__local_task(const conc_attribute *a) {
  conc__actor *self = conc__self();
  if (a->of_task) return self->task;
  return conc__this.base != NULL ? conc__this.base : conc__this.actor.task;
}

/* NULL if it is not set, or (NULL) there is no such attribute. */
CONC__INLINE conc__local_value *conc__local_value_of(const conc_attribute *a) {
  conc__locals *l;
  conc__local_value *v;
  if (a == NULL) return NULL;
  l = conc__local_task(a)->locals;
  if (l == NULL || a->index >= l->size) return NULL;
  v = &conc__locals_values(l)[a->index];
  return v->attribute != NULL ? v : NULL;
}

CONC_API void *conc_attribute_get(const conc_attribute *attribute) {
  const conc__local_value *v = conc__local_value_of(attribute);
  return v != NULL ? v->value : NULL;
}

CONC__PRIVATE int conc__local_store(conc_task *task, const conc_attribute *a,
                                    void *value) {
  conc__local_value *v;
  void *old;
  if (task->locals == NULL || a->index >= task->locals->size) {
    int rc = conc__locals_resize(task, a->index + 1);
    if (rc != 0) return rc;
  }
  v = &conc__locals_values(task->locals)[a->index];
  old = v->attribute != NULL ? v->value : NULL;
  v->attribute = a;
  v->value = value;
  if (old != NULL && old != value && a->local->destructor != NULL)
    a->local->destructor(old);
  return 0;
}

CONC_API int conc_attribute_set(conc_attribute *attribute, void *value) {
  return conc__local_store(conc__local_task(attribute), attribute, value);
}

CONC_API void *conc_local_get(conc_local *local, const char *name) {
  return conc_attribute_get(conc__attribute_find(local, name));
}

CONC_API int conc_local_set(conc_local *local, const char *name,
                            void *value) {
  conc_attribute *a;
  int rc = conc__attribute_make(local, name, &a);
  return rc != 0 ? rc : conc_attribute_set(a, value);
}

CONC_API bool conc_local_has(conc_local *local, const char *name) {
  return conc__local_value_of(conc__attribute_find(local, name)) != NULL;
}

/* Takes a value out and destroys it. False if it was not set. */
CONC__PRIVATE bool conc__local_drop(conc__local_value *v) {
  void (*destructor)(void *) = NULL;
  void *value = NULL;
  bool found;
  conc__mutex_lock(&conc__locals_guard);
  found = v->attribute != NULL;
  if (found) {
    destructor = v->attribute->local->destructor;
    value = v->value;
    v->attribute = NULL;
  }
  conc__mutex_unlock(&conc__locals_guard);
  if (destructor != NULL && value != NULL) destructor(value);
  return found;
}

CONC_API int conc_local_delete(conc_local *local, const char *name) {
  conc__local_value *v;
  if (name == NULL) return -EINVAL;
  v = conc__local_value_of(conc__attribute_find(local, name));
  return v != NULL && conc__local_drop(v) ? 0 : -ENOENT;
}

/* The task ends. Whatever is called, here and below, may replace the array or
   (conc_local_free) take it away. */
CONC__PRIVATE void conc__locals_end(conc_task *task) {
  bool found = true;
  int round;
  if (CONC__LIKELY(task->locals == NULL)) return;
  for (round = 0; found && round < 4; round++) {
    size_t i;
    found = false;
    for (i = 0; task->locals != NULL && i < task->locals->size; i++)
      if (conc__local_drop(&conc__locals_values(task->locals)[i]))
        found = true;
  }
  conc__locals_resize(task, 0);
}

/* Gives a task that is about to start what it inherits. 0; or -ENOMEM, with
   a part of it. */
CONC__PRIVATE int conc__locals_inherit(conc_task *task, conc_task *parent) {
  size_t i;
  int rc = 0;
  for (i = 0; rc == 0 && parent->locals != NULL && i < parent->locals->size;
       i++) {
    conc__local_value v;
    void *(*copy)(void *) = NULL;
    bool inherits = false;
    conc__mutex_lock(&conc__locals_guard);
    v = conc__locals_values(parent->locals)[i];
    if (v.attribute != NULL && v.attribute->of_task) {
      copy = v.attribute->local->copy;
      inherits = copy != NULL || v.attribute->local->destructor == NULL;
    }
    conc__mutex_unlock(&conc__locals_guard);
    if (!inherits) continue;
    if (task->locals == NULL || i >= task->locals->size)
      rc = conc__locals_resize(task, parent->locals->size);
    if (rc == 0 && copy != NULL && v.value != NULL) {
      v.value = copy(v.value);
      if (v.value == NULL) rc = -ENOMEM;
    }
    if (rc == 0) conc__locals_values(task->locals)[i] = v;
  }
  return rc;
}

/* Takes up to `room` values of a local from all tasks. Under the guard. */
CONC__PRIVATE size_t conc__local_take(conc_local *local, void **values,
                                      size_t room) {
  const conc_attribute *a;
  conc__locals *l;
  size_t n = 0;
  for (a = conc__attributes_all; a != NULL; a = a->next)
    for (l = conc__locals_all; a->local == local && l != NULL; l = l->next)
      if (n < room && a->index < l->size) {
        conc__local_value *v = &conc__locals_values(l)[a->index];
        if (v->attribute == NULL) continue;
        v->attribute = NULL;
        values[n++] = v->value;
      }
  return n;
}

/* The array of a task that will not end (the main thread's) need not stay if
   nothing is left in it. */
CONC__PRIVATE void conc__locals_trim(conc_task *task) {
  size_t i;
  for (i = 0; task->locals != NULL && i < task->locals->size; i++)
    if (conc__locals_values(task->locals)[i].attribute != NULL) return;
  conc__locals_resize(task, 0);
}

CONC_API void conc_local_free(conc_local *local) {
  void *values[64]; /* to be destroyed without the guard */
  conc_attribute **p = &conc__attributes_all;
  size_t n, i;
  conc__self(); /* foreign threads, too, have a task from here on */
  do {
    conc__mutex_lock(&conc__locals_guard);
    n = conc__local_take(local, values, 64);
    while (n < 64 && *p != NULL) { /* that was all: forget the names */
      conc_attribute *a = *p;
      if (a->local == local) {
        *p = a->next;
        CONC_FREE(a);
      } else {
        p = &a->next;
      }
    }
    conc__mutex_unlock(&conc__locals_guard);
    for (i = 0; i < n; i++)
      if (local->destructor != NULL && values[i] != NULL)
        local->destructor(values[i]);
  } while (n == 64);
  local->root = NULL;
  memset(local->first, 0, sizeof local->first);
  conc__locals_trim(conc__this.base != NULL ? conc__this.base
                                            : conc__this.actor.task);
}

/* ---------------------------------------------------------------------------
   >>thread: conc_thread_start
   ------------------------------------------------------------------------ */

/* The kernel shows 15 bytes of a thread's name. */
CONC__PRIVATE void conc__thread_name(const char *name) {
#if CONC__LINUX
  prctl(PR_SET_NAME, name, 0, 0, 0);
#else
  (void)name;
#endif
}

/* A foreign thread ends. Its task may be asked to cancel until now. */
CONC__PRIVATE void conc__thread_exit(void *thread) {
  conc__thread *self = (conc__thread *)thread;
  conc__locals_end(&self->own);
  conc__spares_free();
  conc__threads_leave(&self->own);
  conc__task_finish(&self->own, NULL, 0);
  self->current = NULL; /* a later destructor may begin anew */
}

static const conc__kind conc__thread_kind = {
    "Thread", true, false, false, NULL, NULL, NULL, NULL, NULL};

__attribute__((constructor)) CONC__PRIVATE void conc__thread_install(void) {
  conc__main_thread = pthread_self();
  conc__thread_ended = conc__thread_exit;
}

CONC__PRIVATE void *conc__thread_main(void *arg) {
  conc_task *task = (conc_task *)arg;
  conc__actor *self = conc__thread_enter(task);
  void *result;
  int status;
  conc__thread_name(conc_name(task));
  status = conc__task_run(task, self, &result);
  conc__locals_end(task);
  conc__spares_free();
  /* Nobody polls any more: so nobody uses it, and who joins finds it gone. */
  if (conc__this.has_waker) conc__waker_close(conc__this.waker);
  conc__this.has_waker = false;
  conc__threads_leave(task);
  conc__task_finish(task, result, status);
  conc__this.current = NULL;
  return NULL;
}

/* Threads are detached: the end of a task is its event, not pthread_join, so
   that coroutines can wait for threads and nothing need be joined. */
CONC_API int conc_thread_start(conc_task *task) {
  pthread_attr_t attr;
  pthread_t id;
  size_t size = task->stack_size;
  int rc;
  conc__init();
  rc = conc__task_begin(task, &conc__thread_kind);
  if (rc != 0) return rc;
  if (task->name == NULL)
    task->number =
        __atomic_add_fetch(&conc__thread_numbers, 1u, __ATOMIC_RELAXED);
  rc = -pthread_attr_init(&attr);
  if (rc == 0) {
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (size > 0) {
      if (size < (size_t)PTHREAD_STACK_MIN) size = (size_t)PTHREAD_STACK_MIN;
      size = (size + conc__page - 1) / conc__page * conc__page;
      rc = -pthread_attr_setstacksize(&attr, size);
    }
    conc__threads_enter(task);
    if (rc == 0) rc = -pthread_create(&id, &attr, conc__thread_main, task);
    if (rc != 0) conc__threads_leave(task);
    pthread_attr_destroy(&attr);
  }
  if (rc != 0) conc__task_start_failed(task);
  return rc;
}

/* ---------------------------------------------------------------------------
   >>schedule: a loop's state, what is ready, timers

   A loop belongs to one thread, which runs everything in it without locks;
   only the inbox is open to others. A coroutine that parks switches straight
   to the next ready one; every CONC__LOOP_BATCH switches, and when nobody is
   ready, the loop's own fiber (the thread's stack, in conc_run) looks at the
   inbox, the timers and the poller.

   A coroutine is in one state at a time: ready (in the ring), running,
   parked (CONC__PARKED set in its word, perhaps with a timer), or posted (in
   the inbox). It has a place reserved in the ring and among the timers from
   its start on, so that nothing can fail later.
   ------------------------------------------------------------------------ */

#define CONC__LOOP_BATCH 256
#define CONC__TRIM_AFTER 1.0 /* seconds that stacks stay after a burst */

/* What is ready: a coroutine; or, marked by the lowest bit, a task that has
   no stack yet. */
typedef uintptr_t conc__ready;

/* A coroutine that waits for a descriptor; on its stack. */
typedef struct conc__fd_waiter {
  struct conc__fd_waiter *next;
  conc__actor *actor;
  int events; /* what for */
  int ready;  /* what came, or a negative errno; 0 nothing yet */
  bool tried;
} conc__fd_waiter;

#define CONC__HANGUP 4 /* the peer closed its side: with CONC_READ */
/* With events to wait for: the caller has just tried in vain, and will try
   again, so it does no harm if it is woken for nothing. */
#define CONC__TRIED 8

/* Calls back when its descriptor becomes ready. The layer above owns the
   descriptor, reads it empty, then arms the watch again. */
typedef struct conc__watch {
  void (*ready)(struct conc__watch *watch, int events);
  bool armed;
} conc__watch;

/* What the loop knows of one descriptor. */
typedef struct conc__fd {
  conc__fd_waiter *waiters;
  conc__watch *watch;
  unsigned generation; /* so often given to the poller; its events say which */
  int next_doubted;    /* + 1 */
  bool known;          /* to the poller */
  bool doubted;        /* see conc__fds_verify */
  bool drained;        /* nothing to read since the last edge */
  unsigned char edges; /* events of which the poller tells each edge */
} conc__fd;

/* Timers are in slots by their time, in levels of 64 slots. A level has one
   digit of the time to the base 64, of 2^-30 s at the lowest: that in which
   the timer's time first differs from the loop's; and the digit is the slot.
   So the first timer is in the first slot of the lowest level that has any.
   Once the loop's time has come to a slot, what is in it belongs some levels
   lower. The last level would be full after 34 years. */
#define CONC__TIMER_LEVELS 10
#define CONC__TIMER_SLOTS (CONC__TIMER_LEVELS * 64)
#define CONC__TIMER_UNIT 1073741824.0 /* 2^30 of them are a second */

/* One place in an array, whose beginning are the slots. They stand apart from
   the coroutines to be close to each other; and so do the links, which are
   all that a timer's cancellation needs, of it and of two others. */
typedef struct conc__timer {
  uint64_t time; /* a slot's: where it begins */
  conc__coro *coro;
} conc__timer;

/* The same place in a second array. Each slot is the head of a ring. */
typedef struct conc__timer_link {
  uint32_t next, previous;
} conc__timer_link;

typedef struct conc__loop {
  conc__fiber fiber; /* of conc_run */
  conc__actor *thread_actor;
  int batch;        /* switches left until the loop's own turn */
  size_t alive;     /* tasks started and not finished */
  conc_task *tasks; /* all of them */
  unsigned numbers; /* of default names */
  conc__stacks stacks;
  conc__coro *dead; /* unpooled stacks, to be unmapped by the loop's fiber */
  conc_task *failed; /* for want of a stack; to be finished by it */
  conc__ready *ring; /* ring_size is a power of two */
  size_t ring_size, ring_first, ring_count;
  conc__timer *timers; /* first the slots: unset while they are empty */
  conc__timer_link *timers_links;
  size_t timers_size, timers_count; /* without those */
  uint32_t timers_used, timers_free; /* ever; now, but were, linked by next */
  uint64_t timers_time;
  uint64_t timers_slots[CONC__TIMER_LEVELS]; /* a bit for each not empty */
  conc__fd *fds; /* by descriptor */
  size_t fds_size;
  size_t fds_waited; /* descriptors with a waiter or an armed watch */
  int doubted;       /* the first of those + 1 */
  unsigned turns;
  int poller;        /* epoll's or kqueue's descriptor */
  unsigned spin_failed;
  int waker[2];
  double patience;   /* seconds until it looks whether all is over */
  double trim;       /* when it gives stacks back; 0: there are none */
  bool deadlocked;
  conc__mutex inbox_guard;
  conc__coro *inbox; /* last in, first out; under inbox_guard to write */
  bool sleeping;     /* in the poller; under inbox_guard */
} conc__loop;

/* --- ready --- */

CONC__INLINE void conc__ready_push(conc__loop *loop, conc__ready item) {
  size_t at = (loop->ring_first + loop->ring_count++) & (loop->ring_size - 1);
  loop->ring[at] = item;
}

/* With many coroutines the misses on their control blocks and stacks are the
   cost of a switch: asks for those that come soon. */
CONC__INLINE void conc__ready_soon(const conc__loop *loop) {
  size_t mask = loop->ring_size - 1;
  const conc__ready *ring = loop->ring;
  if (loop->ring_count > 16) {
    conc__ready far = ring[(loop->ring_first + 16) & mask];
    __builtin_prefetch((void *)far);
#if CONC_HAVE_SWITCH_ASM
    far = ring[(loop->ring_first + 8) & mask];
    if (CONC__LIKELY(!(far & 1))) {
      const conc__coro *co = (const conc__coro *)far;
      const char *stack = (const char *)co->actor.fiber.registers[0];
      __builtin_prefetch(stack);
      __builtin_prefetch(stack + 64);
    }
#endif
  }
}

CONC__INLINE conc__ready conc__ready_pop(conc__loop *loop) {
  size_t mask = loop->ring_size - 1;
  conc__ready item = loop->ring[loop->ring_first];
  conc__ready_soon(loop);
  loop->ring_first = (loop->ring_first + 1) & mask;
  loop->ring_count--;
  return item;
}

/* Room for one more task in the ring and among the timers. */
CONC__PRIVATE int conc__loop_reserve(conc__loop *loop) {
  size_t need = loop->alive + 1;
  if (need > loop->ring_size) {
    size_t size = loop->ring_size == 0 ? 16 : loop->ring_size * 2;
    size_t i;
    conc__ready *ring = (conc__ready *)CONC_MALLOC(size * sizeof *ring);
    if (ring == NULL) return -ENOMEM;
    memset(ring, 0, size * sizeof *ring);
    for (i = 0; i < loop->ring_count; i++)
      ring[i] =
          loop->ring[(loop->ring_first + i) & (loop->ring_size - 1)];
    CONC_FREE(loop->ring);
    loop->ring = ring;
    loop->ring_size = size;
    loop->ring_first = 0;
  }
  if (need > loop->timers_size) {
    size_t size = loop->timers_size == 0 ? 16 : loop->timers_size * 2;
    size_t places = CONC__TIMER_SLOTS + size;
    conc__timer_link *links;
    conc__timer *timers = (conc__timer *)CONC_REALLOC(
        loop->timers, places * sizeof *timers);
    if (timers == NULL) return -ENOMEM;
    loop->timers = timers;
    links = (conc__timer_link *)CONC_REALLOC(
        loop->timers_links, places * sizeof *links);
    if (links == NULL) return -ENOMEM;
    loop->timers_links = links;
    conc__pages_large(timers, places * sizeof *timers);
    conc__pages_large(links, places * sizeof *links);
    loop->timers_size = size;
  }
  return 0;
}

/* --- timers --- */

/* Rounded down: to be compared with what is rounded up. */
CONC__INLINE uint64_t conc__timer_time(double seconds) {
  if (!(seconds > 0)) return 0;
  if (seconds > 1e9) seconds = 1e9;
  return (uint64_t)(seconds * CONC__TIMER_UNIT);
}

/* Puts timer i, whose time is set, into its slot. */
CONC__INLINE void conc__timer_place(conc__loop *loop, uint32_t i) {
  conc__timer *all = loop->timers;
  conc__timer_link *links = loop->timers_links;
  uint64_t time = all[i].time;
  unsigned level = conc__highest_bit((time ^ loop->timers_time) | 1) / 6;
  unsigned digit = (unsigned)(time >> level * 6 & 63);
  uint32_t slot = level * 64 + digit;
  if (!(loop->timers_slots[level] >> digit & 1)) {
    loop->timers_slots[level] |= (uint64_t)1 << digit;
    all[slot].time = time >> level * 6 << level * 6;
    links[slot].previous = slot;
  }
  links[i].next = slot;
  links[i].previous = links[slot].previous;
  links[links[slot].previous].next = i;
  links[slot].previous = i;
}

CONC__PRIVATE void conc__timer_add(conc__loop *loop, conc__coro *co,
                                   double deadline) {
  uint64_t time = conc__timer_time(deadline) + 1;
  uint32_t i = loop->timers_free;
  if (i != 0)
    loop->timers_free = loop->timers_links[i].next;
  else
    i = CONC__TIMER_SLOTS + loop->timers_used++;
  if (time < loop->timers_time) time = loop->timers_time;
  loop->timers[i].time = time;
  loop->timers[i].coro = co;
  loop->timers_count++;
  co->timer = i;
  conc__timer_place(loop, i);
}

CONC__INLINE void conc__timer_free(conc__loop *loop, uint32_t i) {
  conc__timer_link *links = loop->timers_links;
  uint32_t next = links[i].next;
  uint32_t previous = links[i].previous;
  links[next].previous = previous;
  links[previous].next = next;
  if (next == previous) /* the slot */
    loop->timers_slots[next / 64] &= ~((uint64_t)1 << next % 64);
  links[i].next = loop->timers_free;
  loop->timers_free = i;
  loop->timers_count--;
}

CONC__PRIVATE void conc__timer_remove(conc__loop *loop, conc__coro *co) {
  conc__timer_free(loop, co->timer);
  co->timer = 0;
}

/* The first of the timers, of which there are some; or its slot, if others
   are in it, too many to look at. */
CONC__PRIVATE const conc__timer *conc__timers_first(const conc__loop *loop) {
  const conc__timer *all = loop->timers;
  const conc__timer_link *links = loop->timers_links;
  unsigned level = 0;
  uint32_t slot, first, i;
  int n = 0;
  while (loop->timers_slots[level] == 0) level++;
  slot = level * 64 + conc__lowest_bit(loop->timers_slots[level]);
  first = links[slot].next;
  if (level == 0) return &all[first]; /* the others are of the same time */
  for (i = links[first].next; i != slot; i = links[i].next) {
    if (++n == 8) return &all[slot];
    if (all[i].time < all[first].time) first = i;
  }
  return &all[first];
}

/* The loop's time is where the slot begins. Asks for the timers from the end
   on, too: each link may miss the cache, and so two are under way. */
CONC__PRIVATE void conc__timers_spread(conc__loop *loop, uint32_t slot) {
  const conc__timer *all = loop->timers;
  const conc__timer_link *links = loop->timers_links;
  uint32_t i, next;
  uint32_t far = links[slot].previous;
  loop->timers_time = all[slot].time;
  loop->timers_slots[slot / 64] &= ~((uint64_t)1 << slot % 64);
  for (i = links[slot].next; i != slot; i = next) {
    next = links[i].next;
    far = links[far].previous;
    __builtin_prefetch(&all[far]);
    conc__timer_place(loop, i);
  }
}

/* Makes those ready whose time has come. They go before the others, or
   a burst of new tasks would all begin, each with a stack, before the first
   timer of theirs is heard; but no more than half a batch of them, so that
   the others have their turn. A coroutine that somebody else is waking at
   this moment is left to him. */
CONC__PRIVATE void conc__timers_expire(conc__loop *loop, double now) {
  conc__coro *due[CONC__LOOP_BATCH / 2];
  uint64_t time = conc__timer_time(now);
  int n = 0;
  while (n < CONC__LOOP_BATCH / 2 && loop->timers_count > 0) {
    const conc__timer *first = conc__timers_first(loop);
    uint32_t i = (uint32_t)(first - loop->timers);
    if (first->time > time) {
      /* Later ones need fewer steps then, and the places stay right. */
      if (i < CONC__TIMER_SLOTS) loop->timers_time = time;
      break;
    }
    if (i < CONC__TIMER_SLOTS) {
      conc__timers_spread(loop, i);
      continue;
    }
    due[n] = first->coro;
    __builtin_prefetch(due[n]);
    __builtin_prefetch(&due[n]->timer);
    n++;
    conc__timer_free(loop, i);
  }
  while (n > 0) {
    conc__coro *co = due[--n];
    co->timer = 0;
    __builtin_prefetch(&co->actor.task->kind); /* perhaps it will end */
    __builtin_prefetch(&co->actor.task->done);
    if (!conc__park_retract(&co->actor)) continue;
    loop->ring_first = (loop->ring_first - 1) & (loop->ring_size - 1);
    loop->ring[loop->ring_first] = (conc__ready)co;
    loop->ring_count++;
  }
}

/* ---------------------------------------------------------------------------
   >>poller: epoll, kqueue or poll()
   ------------------------------------------------------------------------ */

/* The entry of a descriptor; NULL: no memory. */
CONC__PRIVATE conc__fd *conc__fd_entry(conc__loop *loop, int fd) {
  size_t need = (size_t)fd + 1;
  if (need > loop->fds_size) {
    size_t size = loop->fds_size == 0 ? 64 : loop->fds_size;
    conc__fd *fds;
    while (size < need) size *= 2;
    fds = (conc__fd *)CONC_REALLOC(loop->fds, size * sizeof *fds);
    if (fds == NULL) return NULL;
    memset(fds + loop->fds_size, 0, (size - loop->fds_size) * sizeof *fds);
    loop->fds = fds;
    loop->fds_size = size;
  }
  return &loop->fds[fd];
}

/* The poller does not know it. */
CONC__PRIVATE void conc__fd_renew(conc__fd *entry) {
  entry->known = entry->drained = false;
  entry->edges = 0;
}

CONC__PRIVATE int conc__fd_events(const conc__fd *entry) {
  const conc__fd_waiter *w;
  int events = entry->watch != NULL && entry->watch->armed ? CONC_READ : 0;
  for (w = entry->waiters; w != NULL; w = w->next)
    if (w->ready == 0) events |= w->events;
  return events;
}

/* Lets one go on that waits for a descriptor: `ready` is what came, or a
   negative errno. */
CONC__PRIVATE void conc__fd_wake(conc__loop *loop, conc__fd_waiter *w,
                                 int ready) {
  w->ready = ready;
  /* Unless it is being cancelled at this moment: then it is in the inbox,
     and finds that it is ready all the same. */
  if (conc__park_retract(w->actor))
    conc__ready_push(loop, (conc__ready)w->actor);
}

CONC__PRIVATE int conc__poller_update(conc__loop *loop, int fd);

/* The poller says that a descriptor is ready for `events`. */
CONC__PRIVATE void conc__fd_ready(conc__loop *loop, int fd, int events) {
  conc__fd *entry = &loop->fds[fd];
  bool news = entry->drained && (events & CONC_READ);
  conc__fd_waiter *w;
  if (news) entry->drained = false;
  for (w = entry->waiters; w != NULL; w = w->next) {
    if (w->ready < 0 || !(w->events & events)) continue;
    if (w->ready > 0) { /* by kqueue, of the other direction */
      w->ready |= w->events & events;
      continue;
    }
    conc__fd_wake(loop, w, w->events & events);
    news = true;
  }
  if (!news && (entry->edges & events)) { /* nobody wants to hear of them */
    entry->edges &= (unsigned char)~events;
    conc__poller_update(loop, fd);
  }
  if (entry->watch != NULL && (events & CONC_READ)) {
    if (entry->watch->armed) loop->fds_waited--;
    entry->watch->armed = false;
    /* Told even if nobody listens now: an edge does not repeat itself. */
    entry->watch->ready(entry->watch, events);
  }
}

#if CONC_HAVE_EPOLL

CONC__PRIVATE int conc__poller_open(conc__loop *loop) {
  struct epoll_event e;
  int rc;
  loop->poller = epoll_create1(EPOLL_CLOEXEC);
  if (loop->poller < 0) return -errno;
  memset(&e, 0, sizeof e);
  e.events = EPOLLIN;
  e.data.u64 = (uint64_t)loop->waker[0];
  rc = epoll_ctl(loop->poller, EPOLL_CTL_ADD, loop->waker[0], &e);
  if (rc == 0) return 0;
  rc = -errno;
  close(loop->poller);
  return rc;
}

CONC__PRIVATE void conc__poller_close(conc__loop *loop) {
  close(loop->poller);
}

/* Tells the poller what is waited for. A watched descriptor is told once,
   edge-triggered: its owner reads it empty before it waits again. So is one of
   which every waiter has tried first, see conc__fds_verify. Others are told
   for each wait anew, one-shot: their owner may have closed and reopened them
   meanwhile, which shows as ENOENT. 0, or negative errno: -EPERM for files,
   which are always ready. */
CONC__PRIVATE int conc__poller_update(conc__loop *loop, int fd) {
  conc__fd *entry = &loop->fds[fd];
  const conc__fd_waiter *w = entry->waiters;
  struct epoll_event e;
  int events = conc__fd_events(entry);
  int op = entry->known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (entry->watch != NULL && entry->known) return 0;
  memset(&e, 0, sizeof e);
  while (w != NULL && w->tried) w = w->next;
  if (entry->watch != NULL) {
    entry->edges = 0;
    events = CONC_READ | CONC_WRITE;
    e.events = (uint32_t)EPOLLET;
  } else if (w == NULL) {
    events |= entry->edges;
    entry->edges = (unsigned char)events;
    e.events = (uint32_t)EPOLLET;
  } else {
    entry->edges = 0;
    e.events = EPOLLONESHOT;
  }
  if (!(entry->edges & CONC_READ)) entry->drained = false;
  if (events & CONC_READ) e.events |= EPOLLIN | EPOLLRDHUP;
  if (events & CONC_WRITE) e.events |= EPOLLOUT;
  for (;;) {
    /* What is closed here may live on in a duplicate, and be heard of: that
       belongs to an earlier generation. */
    if (op == EPOLL_CTL_ADD) entry->generation++;
    e.data.u64 = (uint64_t)entry->generation << 32 | (uint32_t)fd;
    if (epoll_ctl(loop->poller, op, fd, &e) == 0) break;
    if (errno == ENOENT && op == EPOLL_CTL_MOD) {
      op = EPOLL_CTL_ADD;
    } else if (errno == EEXIST && op == EPOLL_CTL_ADD) {
      op = EPOLL_CTL_MOD;
    } else {
      entry->edges = 0;
      entry->drained = false;
      return -errno;
    }
  }
  entry->known = true;
  return 0;
}

CONC__PRIVATE void conc__poller_remove(conc__loop *loop, int fd) {
  struct epoll_event e; /* only kernels before 2.6.9 look at it */
  memset(&e, 0, sizeof e);
  if (loop->fds[fd].known) epoll_ctl(loop->poller, EPOLL_CTL_DEL, fd, &e);
  conc__fd_renew(&loop->fds[fd]);
}

CONC__PRIVATE int conc__epoll_wait(int poller, struct epoll_event *e, int n,
                                   double deadline) {
#ifdef SYS_epoll_pwait2 /* Linux 5.11: nanoseconds */
  static int missing;
  if (deadline > 0 && deadline < CONC__NEVER &&
      !CONC__LOAD_RELAXED(&missing)) {
    struct timespec t = conc__timespec(conc__remaining(deadline));
    long rc = syscall(SYS_epoll_pwait2, poller, e, n, &t, NULL, 0);
    if (rc >= 0 || errno != ENOSYS) return (int)rc;
    CONC__STORE_RELAXED(&missing, 1);
  }
#endif
  return epoll_wait(poller, e, n, conc__milliseconds(deadline));
}

/* One look at the poller, at most until the deadline. Whether anything
   came. */
CONC__PRIVATE bool conc__poller_wait(conc__loop *loop, double deadline) {
  struct epoll_event e[128];
  int n = conc__epoll_wait(loop->poller, e, 128, deadline);
  int i;
  for (i = 0; i < n; i++) {
    uint32_t got = e[i].events;
    int fd = (int)(uint32_t)e[i].data.u64;
    int events = 0;
    if (fd == loop->waker[0]) {
      conc__waker_drain(loop->waker);
      continue;
    }
    if (e[i].data.u64 >> 32 != loop->fds[fd].generation) continue;
    if (got & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
      events |= CONC_READ;
    if (got & (EPOLLOUT | EPOLLHUP | EPOLLERR)) events |= CONC_WRITE;
    if (got & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) events |= CONC__HANGUP;
    conc__fd_ready(loop, fd, events);
  }
  return n > 0;
}

#elif CONC_HAVE_KQUEUE

/* One change of what is waited for. 0 or negative errno. */
CONC__PRIVATE int conc__kqueue_change(conc__loop *loop, int fd, short filter,
                                      unsigned short flags) {
  struct kevent e;
  EV_SET(&e, (uintptr_t)fd, filter, flags, 0, 0, 0);
  return kevent(loop->poller, &e, 1, NULL, 0, NULL) < 0 ? -errno : 0;
}

CONC__PRIVATE int conc__poller_open(conc__loop *loop) {
  int rc;
  loop->poller = kqueue();
  if (loop->poller < 0) return -errno;
  conc__set_cloexec(loop->poller);
  rc = conc__kqueue_change(loop, loop->waker[0], EVFILT_READ, EV_ADD);
  if (rc != 0) close(loop->poller);
  return rc;
}

/* (In a forked child it is not open: BSD does not inherit it.) */
CONC__PRIVATE void conc__poller_close(conc__loop *loop) {
  close(loop->poller);
}

/* As for epoll, with two differences: reading and writing are told apart, each
   one-shot; and files, which kqueue holds for not ready at their end, are left
   out here. */
CONC__PRIVATE int conc__poller_update(conc__loop *loop, int fd) {
  conc__fd *entry = &loop->fds[fd];
  int events = conc__fd_events(entry);
  unsigned short flags = EV_ADD | EV_ONESHOT;
  struct stat st;
  int rc = 0;
  if (entry->watch != NULL) {
    if (entry->known) return 0;
    events = CONC_READ | CONC_WRITE;
    flags = EV_ADD | EV_CLEAR;
  } else if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
    return -EPERM;
  }
  if (events & CONC_READ)
    rc = conc__kqueue_change(loop, fd, EVFILT_READ, flags);
  if (rc == 0 && (events & CONC_WRITE))
    rc = conc__kqueue_change(loop, fd, EVFILT_WRITE, flags);
  if (rc == 0) entry->known = true;
  return rc;
}

CONC__PRIVATE void conc__poller_remove(conc__loop *loop, int fd) {
  if (loop->fds[fd].known) { /* those that are not there do no harm */
    conc__kqueue_change(loop, fd, EVFILT_READ, EV_DELETE);
    conc__kqueue_change(loop, fd, EVFILT_WRITE, EV_DELETE);
  }
  loop->fds[fd].known = false;
}

CONC__PRIVATE bool conc__poller_wait(conc__loop *loop, double deadline) {
  struct kevent e[128];
  struct timespec t = {0, 0};
  int n, i;
  if (deadline < CONC__NEVER) t = conc__timespec(conc__remaining(deadline));
  n = kevent(loop->poller, NULL, 0, e, 128,
             deadline < CONC__NEVER ? &t : NULL);
  for (i = 0; i < n; i++) {
    int events = e[i].filter == EVFILT_READ ? CONC_READ : CONC_WRITE;
    if ((int)e[i].ident == loop->waker[0]) {
      conc__waker_drain(loop->waker);
      continue;
    }
    if (e[i].flags & (EV_EOF | EV_ERROR)) events |= CONC__HANGUP;
    conc__fd_ready(loop, (int)e[i].ident, events);
  }
  return n > 0;
}

#else

CONC__PRIVATE int conc__poller_open(conc__loop *loop) {
  (void)loop;
  return 0;
}
CONC__PRIVATE void conc__poller_close(conc__loop *loop) { (void)loop; }

/* poll() is told everything at each call. It reports what is not open by
   POLLNVAL, and files as ready. */
CONC__PRIVATE int conc__poller_update(conc__loop *loop, int fd) {
  (void)loop;
  return fcntl(fd, F_GETFD) < 0 ? -errno : 0;
}

CONC__PRIVATE void conc__poller_remove(conc__loop *loop, int fd) {
  (void)loop, (void)fd;
}

CONC__PRIVATE bool conc__poller_wait(conc__loop *loop, double deadline) {
  struct pollfd few[64];
  struct pollfd *p = few;
  size_t count = 1, i;
  int n;
  if (loop->fds_waited + 1 > 64) {
    p = (struct pollfd *)CONC_MALLOC((loop->fds_waited + 1) * sizeof *p);
    if (p == NULL) { /* the first ones, then; and never for long */
      p = few;
      if (deadline > 0) deadline = conc_now() + 0.01;
    }
  }
  p[0].fd = loop->waker[0];
  p[0].events = POLLIN;
  p[0].revents = 0;
  for (i = 0; i < loop->fds_size; i++) {
    int events;
    if (loop->fds[i].waiters == NULL && loop->fds[i].watch == NULL) continue;
    events = conc__fd_events(&loop->fds[i]);
    if (events == 0 || (p == few && count == 64)) continue;
    p[count].fd = (int)i;
    p[count].events = (short)((events & CONC_READ ? POLLIN : 0) |
                              (events & CONC_WRITE ? POLLOUT : 0));
    p[count++].revents = 0;
  }
  n = poll(p, (nfds_t)count, conc__milliseconds(deadline));
  if (n > 0 && p[0].revents) conc__waker_drain(loop->waker);
  for (i = 1; n > 0 && i < count; i++) {
    short got = p[i].revents;
    int events = 0;
    if (got == 0) continue;
    if (got & (POLLIN | POLLHUP | POLLERR | POLLNVAL)) events |= CONC_READ;
    if (got & (POLLOUT | POLLHUP | POLLERR | POLLNVAL)) events |= CONC_WRITE;
    if (got & (POLLHUP | POLLERR | POLLNVAL)) events |= CONC__HANGUP;
    conc__fd_ready(loop, p[i].fd, events);
  }
  if (p != few) CONC_FREE(p);
  return n > 0;
}

#endif

/* ---------------------------------------------------------------------------
   >>coroutine: switching, coroutines as actors, waiting for descriptors
   ------------------------------------------------------------------------ */

/* --- switching --- */

CONC__PRIVATE void conc__coro_main(void);
CONC__PRIVATE void conc__coro_park(conc__actor *self, unsigned bits,
                                   double deadline);
CONC__PRIVATE int conc__coro_wait_fd(conc__actor *self, int fd, int events,
                                     double deadline);
CONC__PRIVATE void conc__coro_wake(conc__actor *actor, unsigned seen);

static const conc__actor_class conc__coro_class = {
    conc__coro_park, conc__coro_wait_fd, conc__coro_wake, false};

/* The loop knows the task no longer. */
CONC__PRIVATE void conc__loop_forget(conc__loop *loop, conc_task *t) {
  loop->alive--;
  conc__task_unlink(t);
}

/* Gives a task its stack. NULL if there is none: then the task has failed,
   and the loop's fiber will say so, which may call destructors. */
CONC__PRIVATE conc__coro *conc__coro_bind(conc__loop *loop, conc_task *t) {
  conc__coro *co = conc__stack_get(&loop->stacks, t->stack_size);
  if (co == NULL) {
    conc__loop_forget(loop, t);
    t->next = loop->failed;
    loop->failed = t;
    loop->batch = 0;
    return NULL;
  }
  co->actor.word = 0;
  conc__actor_init(&co->actor, &conc__coro_class, t);
  co->loop = loop;
  co->timer = 0;
  conc__fiber_init(&co->actor.fiber, co->map + conc__page,
                   (size_t)((unsigned char *)co - co->map) - conc__page,
                   conc__coro_main);
  return co;
}

/* The next to run: NULL is the loop's own fiber. */
CONC__INLINE conc__coro *conc__loop_next(conc__loop *loop) {
  while (loop->ring_count > 0 && --loop->batch > 0) {
    conc__ready item = conc__ready_pop(loop);
    conc__coro *co = (conc__coro *)item;
    if (CONC__UNLIKELY(item & 1))
      co = conc__coro_bind(loop, (conc_task *)(item - 1));
    if (CONC__LIKELY(co != NULL)) return co;
  }
  return NULL;
}

/* Leaves the fiber `from` for the next one. Returns when `from` goes on. */
CONC__INLINE void conc__loop_switch(conc__loop *loop, conc__fiber *from,
                                    bool last) {
  conc__coro *next = conc__loop_next(loop);
  if (next != NULL) {
    conc__this.current = &next->actor;
    if (&next->actor.fiber != from)
      conc__fiber_switch(from, &next->actor.fiber, last);
  } else {
    conc__this.current = loop->thread_actor;
    if (&loop->fiber != from)
      conc__fiber_switch(from, &loop->fiber, last);
  }
}

/* Runs tasks on this stack, one after the other as long as the next that is
   ready has none yet, then leaves it for ever. */
CONC__PRIVATE void conc__coro_main(void) {
  conc__loop *loop = conc__this.loop;
  conc__coro *co = (conc__coro *)conc__this.current;
  conc__fiber_entered(&loop->fiber);
  for (;;) {
    conc_task *t = co->actor.task;
    void *result;
    int status = conc__task_run(t, &co->actor, &result);
    conc__locals_end(t); /* its destructors may still wait */
    conc__loop_forget(loop, t);
    conc__task_finish(t, result, status);
    if (co->slab == NULL || loop->ring_count == 0) break;
    if (!(loop->ring[loop->ring_first] & 1)) break;
    t = (conc_task *)(loop->ring[loop->ring_first] - 1);
    if (t->stack_size > CONC_STACK_SIZE || --loop->batch <= 0) break;
    conc__ready_pop(loop);
    co->actor.word = 0;
    conc__actor_init(&co->actor, &conc__coro_class, t);
  }
  if (co->slab != NULL) {
    conc__stack_put_pooled(&loop->stacks, co);
  } else {
    co->next = loop->dead;
    loop->dead = co;
    loop->batch = 0; /* only the loop's fiber may unmap it: its turn */
  }
  conc__loop_switch(loop, &co->actor.fiber, true);
}

/* --- coroutines as actors --- */

CONC__PRIVATE void conc__coro_park(conc__actor *self, unsigned bits,
                                   double deadline) {
  conc__coro *co = (conc__coro *)self;
  conc__loop *loop = co->loop;
  if (!conc__park_announce(self, bits, CONC__PARKED)) return;
  if (deadline < CONC__NEVER) conc__timer_add(loop, co, deadline);
  conc__loop_switch(loop, &co->actor.fiber, false);
  if (co->timer != 0) conc__timer_remove(loop, co);
}

CONC__PRIVATE void conc__coro_wake(conc__actor *actor, unsigned seen) {
  conc__coro *co = (conc__coro *)actor;
  conc__loop *loop = co->loop;
  (void)seen;
  if (loop == conc__this.loop) {
    conc__ready_push(loop, (conc__ready)co);
    return;
  }
  /* The coroutine cannot go on, so the loop cannot end, before it has taken
     this from the inbox; and that takes the lock which we hold to the end. */
  conc__mutex_lock(&loop->inbox_guard);
  co->next = loop->inbox;
  CONC__STORE(&loop->inbox, co);
  if (loop->sleeping) {
    loop->sleeping = false;
    conc__waker_wake(loop->waker);
  }
  conc__mutex_unlock(&loop->inbox_guard);
}

CONC__PRIVATE void conc__inbox_take(conc__loop *loop) {
  conc__coro *co, *first = NULL;
  if (CONC__LOAD(&loop->inbox) == NULL) return;
  conc__mutex_lock(&loop->inbox_guard);
  co = loop->inbox;
  CONC__STORE(&loop->inbox, (conc__coro *)NULL);
  conc__mutex_unlock(&loop->inbox_guard);
  while (co != NULL) { /* oldest first */
    conc__coro *next = co->next;
    co->next = first;
    first = co;
    co = next;
  }
  for (; first != NULL; first = first->next)
    conc__ready_push(loop, (conc__ready)first);
}

/* --- waiting for descriptors --- */

CONC__PRIVATE void conc__fd_unwait(conc__loop *loop, int fd,
                                   conc__fd_waiter *w) {
  conc__fd *entry = &loop->fds[fd];
  conc__fd_waiter **p = &entry->waiters;
  while (*p != w) p = &(*p)->next;
  *p = w->next;
  loop->fds_waited--;
}

/* Ends a wait for a descriptor. What came, a negative errno, or 0. */
CONC__PRIVATE int conc__fd_wait_end(conc__loop *loop, int fd,
                                    conc__fd_waiter *w) {
  conc__fd *entry = &loop->fds[fd];
  conc__fd_unwait(loop, fd, w);
  /* One-shot: an event that was meant for another waiter, too, has disarmed
     the descriptor. Without an event it is still armed: if it is closed and a
     duplicate stays open, its number's next user would hear of it. */
  if (entry->watch != NULL || entry->edges) return w->ready;
  if (entry->waiters != NULL)
    conc__poller_update(loop, fd);
  else if (w->ready <= 0)
    conc__poller_remove(loop, fd);
  return w->ready;
}

/* Begins one. 0; or it has ended already, and this is what came. */
CONC__PRIVATE int conc__fd_park(conc__loop *loop, conc__actor *actor, int fd,
                                int events, conc__fd_waiter *w) {
  conc__fd *entry;
  int rc;
  if (fd < 0) return -EBADF;
  /* A wild number must not make the table grow to it. */
  if ((size_t)fd >= loop->fds_size && fcntl(fd, F_GETFD) < 0) return -EBADF;
  entry = conc__fd_entry(loop, fd);
  if (entry == NULL) return -ENOMEM;
  w->actor = actor;
  w->events = events & (CONC_READ | CONC_WRITE);
  w->ready = 0;
  w->tried = (events & CONC__TRIED) != 0;
  w->next = entry->waiters;
  entry->waiters = w;
  loop->fds_waited++;
  if (w->tried && (w->events & ~entry->edges) == 0) {
    if (!entry->doubted) {
      entry->doubted = true;
      entry->next_doubted = loop->doubted;
      loop->doubted = fd + 1;
    }
    return 0;
  }
  rc = conc__poller_update(loop, fd);
  if (rc == 0) return 0;
  w->ready = rc == -EPERM ? w->events : rc;
  return conc__fd_wait_end(loop, fd, w);
}

/* Of a descriptor that was tried before each wait, the poller tells edges for
   good: so under load it takes no system call to wait for it. But it may have
   been closed and reopened since, or not be as empty as it seemed. So before
   the loop sleeps, and every now and then, the poller is told of each
   descriptor for which a wait has begun in that way, which shows all that. */
CONC__PRIVATE void conc__fds_verify(conc__loop *loop) {
  int fd;
  while ((fd = loop->doubted - 1) >= 0) {
    conc__fd *entry = &loop->fds[fd];
    conc__fd_waiter *w = entry->waiters;
    int rc;
    loop->doubted = entry->next_doubted;
    entry->doubted = false;
    if (entry->watch != NULL || conc__fd_events(entry) == 0) continue;
    rc = conc__poller_update(loop, fd);
    for (; rc < 0 && w != NULL; w = w->next)
      if (w->ready == 0) conc__fd_wake(loop, w, rc == -EPERM ? w->events : rc);
  }
}

#define CONC__WAIT_FDS 3

/* As conc__thread_poll, for a coroutine; n <= CONC__WAIT_FDS. */
CONC__PRIVATE int conc__coro_poll(conc__actor *self, struct pollfd *p, int n,
                                  double deadline) {
  conc__loop *loop = ((conc__coro *)self)->loop;
  conc__fd_waiter w[CONC__WAIT_FDS];
  int got[CONC__WAIT_FDS];
  unsigned bits = conc__cancel_bit(self);
  int ready = 0;
  int i;
  if (deadline <= 0) return conc__thread_poll(self, p, n, 0);
  if (conc__take_cancel(self)) return -ECANCELED;
  for (i = 0; i < n; i++) {
    int events = (p[i].events & POLLIN ? CONC_READ : 0) |
                 (p[i].events & POLLOUT ? CONC_WRITE : 0);
    got[i] = conc__fd_park(loop, self, p[i].fd, events, &w[i]);
    ready += got[i] != 0;
  }
  while (ready == 0 && !(CONC__LOAD(&self->word) & bits) &&
         (deadline >= CONC__NEVER || conc_now() < deadline)) {
    self->ops->park(self, bits, deadline);
    for (i = 0; i < n; i++) ready += w[i].ready != 0;
  }
  for (i = ready = 0; i < n; i++) {
    if (got[i] == 0) got[i] = conc__fd_wait_end(loop, p[i].fd, &w[i]);
    p[i].revents = got[i] < 0 ? (short)POLLNVAL : conc__poll_events(got[i]);
    ready += got[i] != 0;
  }
  if (ready > 0) return ready;
  return conc__take_cancel(self) ? -ECANCELED : -ETIMEDOUT;
}

CONC__PRIVATE int conc__coro_wait_fd(conc__actor *self, int fd, int events,
                                     double deadline) {
  conc__loop *loop = ((conc__coro *)self)->loop;
  conc__fd_waiter w;
  unsigned bits;
  int rc;
  if (fd < 0) return -EBADF;
  if (conc__take_cancel(self)) return -ECANCELED;
  if (deadline <= 0) return conc__thread_wait_fd(self, fd, events, 0);
  rc = conc__fd_park(loop, self, fd, events, &w);
  if (rc != 0) return rc;
  bits = conc__cancel_bit(self);
  do self->ops->park(self, bits, deadline);
  while (w.ready == 0 && !(CONC__LOAD(&self->word) & bits) &&
         (deadline >= CONC__NEVER || conc_now() < deadline));
  rc = conc__fd_wait_end(loop, fd, &w);
  if (rc != 0) return rc;
  return conc__take_cancel(self) ? -ECANCELED : -ETIMEDOUT;
}

/* Watches a descriptor, which the caller owns and must unwatch before it
   closes it. 0 or negative errno. */
CONC__PRIVATE int conc__watch_start(conc__loop *loop, int fd,
                                    conc__watch *watch) {
  conc__fd *entry = conc__fd_entry(loop, fd);
  int rc;
  if (entry == NULL) return -ENOMEM;
  entry->watch = watch;
  conc__fd_renew(entry);
  watch->armed = true;
  rc = conc__poller_update(loop, fd);
  if (rc == 0) {
    loop->fds_waited++;
  } else {
    entry->watch = NULL;
  }
  return rc;
}

/* Whether the poller tells of what is ready once more when the watch is armed
   again, though it has told of it before: all do but epoll, whose edges do not
   repeat themselves. */
CONC__INLINE bool conc__watch_repeats(void) { return !CONC_HAVE_EPOLL; }

CONC__PRIVATE void conc__watch_arm(conc__loop *loop, conc__watch *watch) {
  if (!watch->armed) loop->fds_waited++;
  watch->armed = true;
}

CONC__PRIVATE void conc__watch_stop(conc__loop *loop, int fd) {
  conc__fd *entry = &loop->fds[fd];
  if (entry->watch->armed) loop->fds_waited--;
  conc__poller_remove(loop, fd);
  entry->watch = NULL;
}

CONC__PRIVATE bool conc__is_coro(const conc__actor *actor) {
  return actor->ops == &conc__coro_class;
}

/* ---------------------------------------------------------------------------
   >>loop: conc_run, conc_coro_start, conc_sleep; overflows
   ------------------------------------------------------------------------ */

/* --- the loop's own turn --- */

/* Whether the process has one thread. If it cannot be found out: no. */
CONC__PRIVATE bool conc__thread_is_only(void) {
  char text[512];
  const char *p;
  ssize_t n;
  int field;
  int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  p = strrchr(text, ')'); /* the second of its fields: the program's name */
  for (field = 2; p != NULL && field < 20; field++) p = strchr(p + 1, ' ');
  return p != NULL && strtol(p, NULL, 10) == 1;
}

/* All coroutines wait, and nothing is left that could wake one: says so, and
   cancels them. One that sleeps for ever may mean to. */
CONC__PRIVATE void conc__loop_give_up(conc__loop *loop) {
  conc_task *t;
  for (t = loop->tasks; t != NULL; t = t->next)
    if (t->actor->waiting == NULL) return;
  conc__mutex_lock(&conc__stuck_guard);
  conc__stuck_report[0] = 0;
  for (t = loop->tasks; t != NULL; t = t->next) {
    conc__report_task(t);
    conc__report_wait(t->actor->waiting);
    if (t->next != NULL) conc__report(", ");
  }
  conc__mutex_unlock(&conc__stuck_guard);
  loop->deadlocked = true;
  for (t = loop->tasks; t != NULL; t = t->next) conc_cancel(t);
}

/* Nobody is ready: sleeps until something comes. Spins first, as a waiting
   thread does and for the same reason, unless the next timer is what it
   waits for. */
CONC__PRIVATE void conc__loop_sleep(conc__loop *loop) {
  double until = CONC__NEVER;
  conc__spin spin;
  bool paid = false;
  /* No timer and no descriptor will wake it: only another thread could. */
  bool lonely = loop->timers_count == 0 && loop->fds_waited == 0;
  bool empty;
  if (loop->timers_count > 0)
    until = (double)conc__timers_first(loop)->time / CONC__TIMER_UNIT;
  conc__spin_begin(&spin, &loop->spin_failed, until);
  while (!paid && conc__spin_again(&spin, 1))
    paid = CONC__LOAD(&loop->inbox) != NULL ||
           (loop->fds_waited > 0 && conc__poller_wait(loop, 0));
  conc__spin_end(&spin, paid);
  if (paid) return;
  if (loop->doubted > 0) {
    if (conc__poller_wait(loop, 0)) return;
    conc__fds_verify(loop);
    if (loop->ring_count > 0) return;
  }
  conc__mutex_lock(&loop->inbox_guard);
  empty = loop->inbox == NULL;
  loop->sleeping = empty;
  conc__mutex_unlock(&loop->inbox_guard);
  if (!empty) return;
  CONC__POINT();
  if (lonely) {
    loop->patience = loop->patience > 0 ? loop->patience * 2
                                        : CONC__STUCK_AFTER;
    until = conc_now() + loop->patience;
  }
  if (loop->stacks.idle <= 1) {
    loop->trim = 0;
  } else {
    double now = conc_now();
    if (loop->trim <= 0) loop->trim = now + CONC__TRIM_AFTER;
    if (now >= loop->trim) {
      conc__stacks_trim(&loop->stacks, true);
      loop->trim = 0;
    } else if (until > loop->trim) {
      until = loop->trim;
    }
  }
  lonely = !conc__poller_wait(loop, until) && lonely;
  conc__mutex_lock(&loop->inbox_guard);
  lonely = lonely && loop->inbox == NULL;
  loop->sleeping = false;
  conc__mutex_unlock(&loop->inbox_guard);
  if (!lonely)
    loop->patience = 0;
  else if (conc__thread_is_only())
    conc__loop_give_up(loop);
}

/* Runs until `until` has finished (NULL: until all tasks have). */
CONC__PRIVATE void conc__loop_run(conc__loop *loop, const conc_task *until) {
  while (loop->alive > 0 &&
         (until == NULL || !conc_event_is_set(&until->done))) {
    conc__inbox_take(loop);
    if (loop->timers_count > 0) conc__timers_expire(loop, conc_now());
    if (++loop->turns % 32 == 0) conc__fds_verify(loop);
    if (loop->ring_count > 0) {
      if (loop->fds_waited > 0) conc__poller_wait(loop, 0);
    } else {
      conc__loop_sleep(loop);
      continue;
    }
    loop->batch = CONC__LOOP_BATCH;
    conc__loop_switch(loop, &loop->fiber, false);
    while (loop->dead != NULL) {
      conc__coro *co = loop->dead;
      loop->dead = co->next;
      conc__stack_unmap(co);
    }
    while (loop->failed != NULL) {
      conc_task *t = loop->failed;
      loop->failed = t->next;
      conc__locals_end(t);
      conc__task_finish(t, NULL, -ENOMEM);
    }
  }
}

CONC__PRIVATE int conc__loop_open(conc__loop *loop) {
  int rc;
  memset(loop, 0, sizeof *loop);
  loop->thread_actor = conc__self();
  conc__fiber_init_thread(&loop->fiber);
  rc = conc__waker_open(loop->waker);
  if (rc != 0) return rc;
  rc = conc__poller_open(loop);
  if (rc != 0) conc__waker_close(loop->waker);
  return rc;
}

CONC__PRIVATE void conc__loop_close(conc__loop *loop) {
  /* Once this lock is ours, the last of those who posted is gone. */
  conc__mutex_lock(&loop->inbox_guard);
  conc__mutex_unlock(&loop->inbox_guard);
  conc__poller_close(loop);
  conc__waker_close(loop->waker);
  conc__stacks_trim(&loop->stacks, false); /* all of them */
  CONC_FREE(loop->ring);
  CONC_FREE(loop->timers);
  CONC_FREE(loop->timers_links);
  CONC_FREE(loop->fds);
}

static const conc__kind conc__coro_kind = {
    "Task", true, false, false, NULL, NULL, NULL, NULL, NULL};

CONC_API int conc_coro_start(conc_task *task) {
  conc__loop *loop = conc__this.loop;
  conc_task *parent;
  int rc;
  if (loop == NULL) return -EPERM;
  rc = conc__task_begin(task, &conc__coro_kind);
  if (rc != 0) return rc;
  parent = conc__this.current->task;
  if (CONC__UNLIKELY(parent->locals != NULL))
    rc = conc__locals_inherit(task, parent);
  /* Last, for what has been called by then may have started others. */
  if (rc == 0) rc = conc__loop_reserve(loop);
  if (rc != 0) {
    conc__locals_end(task);
    conc__task_start_failed(task);
    return rc;
  }
  task->number = ++loop->numbers;
  loop->alive++;
  conc__task_link(&loop->tasks, task);
  conc__ready_push(loop, (conc__ready)task | 1);
  return 0;
}

/* Where the first byte of a stack is that was ever changed. It looks at what
   no variable lives in, which no tool likes. */
#if CONC_HAVE_ASAN
__attribute__((no_sanitize_address))
#elif CONC_HAVE_TSAN
__attribute__((no_sanitize_thread))
#endif
CONC__PRIVATE const unsigned char *
conc__stack_edge(const conc__coro *co) {
  const volatile uintptr_t *p = (const uintptr_t *)(co->map + conc__page);
  conc__valgrind(CONC__VALGRIND_REPORT_ERRORS, (void *)1, NULL); /* 1 less */
  while ((uintptr_t)p < (uintptr_t)co && *p == 0) p++;
  conc__valgrind(CONC__VALGRIND_REPORT_ERRORS, (void *)-1, NULL);
  conc__valgrind(CONC__VALGRIND_MAKE_DEFINED, &p, (void *)sizeof p);
  return (const unsigned char *)(uintptr_t)p;
}

CONC_API ssize_t conc_stack_used(conc_task *task) {
  const conc__coro *co;
  if (task == NULL) task = conc_current();
  if (task->kind != &conc__coro_kind || !conc_is_alive(task)) return -ESRCH;
  if (task->actor == NULL || task->actor == CONC__NEVER_BEGIN) return 0;
  co = (const conc__coro *)task->actor;
  if (conc__this.loop == NULL || co->loop != conc__this.loop) return -EPERM;
  return (const unsigned char *)co - conc__stack_edge(co);
}

CONC_API int conc_run(conc_task *task) {
  conc__loop *loop;
  conc_task *t;
  int rc;
  conc__init();
  if (conc__this.loop != NULL) return -EBUSY;
  loop = (conc__loop *)CONC_MALLOC(sizeof *loop);
  if (loop == NULL) return -ENOMEM;
  rc = conc__loop_open(loop);
  if (rc == 0) {
    conc__this.loop = loop;
    rc = conc_coro_start(task);
    if (rc == 0) {
      conc__loop_run(loop, task);
      for (t = loop->tasks; t != NULL; t = t->next) conc_cancel(t);
      conc__loop_run(loop, NULL);
      rc = loop->deadlocked ? -EDEADLK : task->status;
    }
    conc__this.loop = NULL;
    conc__loop_close(loop);
  }
  CONC_FREE(loop);
  return rc;
}

CONC__NOINLINE int conc__yield_slow(conc__actor *self) {
  conc__loop *loop = conc__this.loop;
  if (conc__take_cancel(self)) return -ECANCELED;
  if (!conc__is_coro(self)) {
    sched_yield();
  } else {
    conc__ready_push(loop, (conc__ready)self);
    conc__loop_switch(loop, &self->fiber, false);
  }
  return 0;
}

/* The same, for a coroutine that nobody cancels, if the next has a stack: it
   just takes the other's place. */
CONC_API_HOT int conc_yield_now(void) {
  conc__actor *self = conc__self();
  conc__loop *loop = conc__this.loop;
  conc__actor *next;
  size_t first, mask;
  if (CONC__UNLIKELY(!conc__is_coro(self) || conc__may_be_cancelled(self) ||
                     loop->ring_count == 0 || loop->batch <= 1))
    return conc__yield_slow(self);
  first = loop->ring_first;
  mask = loop->ring_size - 1;
  next = (conc__actor *)loop->ring[first];
  if (CONC__UNLIKELY((conc__ready)next & 1)) return conc__yield_slow(self);
  conc__ready_soon(loop);
  loop->batch--;
  loop->ring[(first + loop->ring_count) & mask] = (conc__ready)self;
  loop->ring_first = (first + 1) & mask;
  conc__this.current = next;
  conc__fiber_switch(&self->fiber, &next->fiber, false);
  return 0;
}

CONC_API int conc_sleep(double seconds) {
  conc__actor *self = conc__self();
  double deadline = conc__deadline(seconds);
  /* However short: others of the loop have a turn, as if it was 0. */
  bool waited = !conc__is_coro(self);
  if (deadline <= 0) return conc_yield_now();
  for (;; waited = true) {
    if (conc__take_cancel(self)) return -ECANCELED;
    if (waited && deadline < CONC__NEVER && conc_now() >= deadline) return 0;
    self->ops->park(self, conc__cancel_bit(self),
                    conc__scope_limit(self, deadline));
  }
}

/* --- telling of overflows --- */

static struct sigaction conc__overflow_before[2]; /* SIGSEGV, SIGBUS */

CONC__PRIVATE bool conc__overflow_hit(const conc__coro *co, const void *at) {
  const unsigned char *p = (const unsigned char *)at;
  return p >= co->map && p < co->map + conc__page;
}

/* On its way to death: so it may do what a handler must not, as long as that
   does not wait: snprintf of words and numbers. */
CONC__PRIVATE void conc__overflow_caught(int number, siginfo_t *info,
                                         void *context) {
  struct sigaction *before = &conc__overflow_before[number != SIGSEGV];
  const conc__actor *self = conc__this.current;
  const conc__coro *co = NULL;
  char text[256];
  if (self != NULL && self->generator != NULL &&
      conc__overflow_hit(self->generator->stack, info->si_addr))
    co = self->generator->stack;
  else if (self != NULL && conc__is_coro(self) &&
           conc__overflow_hit((const conc__coro *)self, info->si_addr))
    co = (const conc__coro *)self;
  if (co != NULL) {
    const char *what = co == (const conc__coro *)self ? "" : "a generator of ";
    int n = snprintf(text, sizeof text,
                     "conc: %s%.100s has overflowed its stack of %zu bytes "
                     "(.stack_size)\n",
                     what, conc_name(self->task), co->map_size - conc__page);
    if (n > 0 && write(2, text, (size_t)n) < 0) n = 0; /* nobody to tell */
  }
  if (before->sa_flags & SA_SIGINFO) {
    before->sa_sigaction(number, info, context);
  } else if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN) {
    before->sa_handler(number);
  } else { /* the same instruction again, or the same signal */
    sigaction(number, before, NULL);
    if (info->si_code <= 0) raise(number);
  }
}

CONC_API int conc_report_overflow(void) {
  static conc__mutex guard;
  struct sigaction action;
  int rc;
  conc_current(); /* it may be the first call of the library */
  rc = conc__alternate_open();
  if (rc != 0) return rc;
  conc__mutex_lock(&guard);
  if (!CONC__LOAD_RELAXED(&conc__overflow_report)) {
    memset(&action, 0, sizeof action);
    action.sa_sigaction = conc__overflow_caught;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, NULL, &conc__overflow_before[0]);
    sigaction(SIGBUS, NULL, &conc__overflow_before[1]);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    CONC__STORE_RELAXED(&conc__overflow_report, true);
  }
  conc__mutex_unlock(&guard);
  return 0;
}

/* ---------------------------------------------------------------------------
   >>fork: what a forked child makes of what it finds

   The child has the memory as it was, and one thread: whatever the others were
   about to do stays undone. So the fork waits until nobody is inside a guard;
   then the lists are whole, and the child takes off them who is not there,
   ends the tasks that nobody runs any more, and wakes whom a missing thread
   had let go, but not woken yet. Locks name their owners: those are looked at
   when somebody wants the lock (conc__owner_is_gone).
   ------------------------------------------------------------------------ */

CONC__PRIVATE void conc__fork_prepare(void) {
  conc__mutex_lock(&conc__stuck_guard);
  conc__mutexes_lock();
  conc__mutex_lock(&conc__threads_guard); /* may be wanted inside a guard */
  conc__mutex_lock(&conc__locals_guard);
  conc__mutex_lock(&conc__lock_order_guard);
  if (conc__this.loop != NULL) conc__mutex_lock(&conc__this.loop->inbox_guard);
}

CONC__PRIVATE void conc__fork_parent(void) {
  if (conc__this.loop != NULL)
    conc__mutex_unlock(&conc__this.loop->inbox_guard);
  conc__mutex_unlock(&conc__lock_order_guard);
  conc__mutex_unlock(&conc__locals_guard);
  conc__mutex_unlock(&conc__threads_guard);
  conc__mutexes_unlock();
  conc__mutex_unlock(&conc__stuck_guard);
}

/* The actor of a task that runs, or NULL. */
CONC__PRIVATE conc__actor *conc__fork_actor(const conc_task *t) {
  if (t->actor == NULL || t->actor == CONC__NEVER_BEGIN) return NULL;
  return t->actor;
}

/* The loop that a task's thread runs, or NULL. */
CONC__PRIVATE conc__loop *conc__fork_loop(const conc_task *t) {
  conc__actor *actor = conc__fork_actor(t);
  if (actor == NULL) return NULL;
  return ((conc__thread *)((char *)actor - offsetof(conc__thread, actor)))
      ->loop;
}

/* The task stayed in the parent: takes it off the lists that it waits on. */
CONC__PRIVATE void conc__fork_bury(const conc_task *t) {
  conc__actor *actor = conc__fork_actor(t);
  const conc__multiwait *m = actor != NULL ? actor->many : NULL;
  size_t i;
  if (actor != NULL && actor->waiting != NULL && actor->waiting->list != NULL)
    conc__waitlist_remove(actor->waiting);
  for (; m != NULL; m = m->next)
    for (i = 0; i < m->n; i++)
      if (m->nodes[i].waiter.list != NULL)
        conc__waitlist_remove(&m->nodes[i].waiter);
}

/* How often an actor reads a lock: 0 or 1. */
CONC__PRIVATE uintptr_t conc__fork_reads(conc__actor *actor,
                                         conc_rwlock *rwlock) {
  return actor != NULL && conc__reads_find(actor, rwlock) != NULL;
}

/* A reader of this lock may have stayed behind: counts those who are here. */
CONC__PRIVATE void conc__fork_recount(conc_rwlock *rwlock) {
  uintptr_t n = conc__fork_reads(&conc__this.actor, rwlock);
  const conc_task *t;
  if (rwlock == NULL || ((uintptr_t)rwlock & 1)) return;
  if (!(rwlock->word & CONC__READ_FLAG)) return;
  if (conc__this.loop != NULL)
    for (t = conc__this.loop->tasks; t != NULL; t = t->next)
      n += conc__fork_reads(conc__fork_actor(t), rwlock);
  rwlock->word &= CONC__LOCK_WAITERS;
  if (n > 0) rwlock->word |= n * CONC__READ_ONE | CONC__READ_FLAG;
  conc__rwlock_settle(rwlock, false);
}

/* And ends it, for those who join it here. */
CONC__PRIVATE void conc__fork_end(conc_task *t) {
  conc__actor *actor = conc__fork_actor(t);
  int i;
  if (actor != NULL) {
    for (i = 0; i < CONC__READS; i++) conc__fork_recount(actor->reads[i]);
    conc__fork_recount(actor->changing);
  }
  conc__task_end_stayed_in_parent(t);
}

/* Who waits here and can go on, because somebody has taken it off its list
   and then did not wake it, or did not make it ready, or because the owner of
   what it waits for is not here, or nobody is: then who was woken for it may
   have stayed behind. The latest first, for they go in front again. */
CONC__PRIVATE void conc__fork_revive(conc__loop *loop) {
  conc__actor *self = conc__this.current;
  size_t i;
  conc_task *t;
  conc__coro *co;
  for (t = loop->tasks; t != NULL; t = t->next)
    if (conc__fork_actor(t)) {
      ((conc__coro *)t->actor)->queued = false;
      t->actor->notified = NULL; /* they are woken below, or not here */
    }
  for (i = 0; i < loop->ring_count; i++) {
    conc__ready r = loop->ring[(loop->ring_first + i) & (loop->ring_size - 1)];
    if (!(r & 1)) ((conc__coro *)r)->queued = true;
  }
  for (co = loop->inbox; co != NULL; co = co->next) co->queued = true;
  if (conc__is_coro(self)) ((conc__coro *)self)->queued = true;
  for (t = loop->tasks; t != NULL; t = t->next) {
    conc__waiter *w;
    co = (conc__coro *)conc__fork_actor(t);
    if (co == NULL || &co->actor == self) continue;
    w = co->actor.waiting;
    if (w != NULL && w->list != NULL && w->recheck_after_fork &&
        (w->owner == NULL || CONC__OWNER(*w->owner) == 0 ||
         conc__owner_is_gone(*w->owner))) {
      conc__waitlist_remove(w);
      w->failure = -EAGAIN;
    }
    if (!co->queued && !(co->actor.word & CONC__PARKED))
      conc__ready_push(loop, (conc__ready)co);
    if (w != NULL && w->list == NULL && !(co->actor.word & CONC__WOKEN))
      conc__unpark(&co->actor, CONC__WOKEN);
  }
}

/* What the kernel shares with the parent, this loop must have for itself. */
CONC__PRIVATE void conc__fork_reopen(conc__loop *loop) {
  size_t i;
  conc__poller_close(loop);
  conc__waker_close(loop->waker);
  /* Out of descriptors: it gets those that have just been closed. */
  if (conc__waker_open(loop->waker) != 0) return;
  if (conc__poller_open(loop) != 0) return;
  for (i = 0; i < loop->fds_size; i++) {
    conc__fd_renew(&loop->fds[i]);
    if (loop->fds[i].waiters != NULL || loop->fds[i].watch != NULL)
      conc__poller_update(loop, (int)i);
  }
}

/* What it reads together with other processes, the parent does. */
CONC__PRIVATE void conc__fork_unshare(conc__actor *actor) {
  int i;
  for (i = 0; i < CONC__READS; i++)
    if ((uintptr_t)actor->reads[i] & 1) actor->reads[i] = NULL;
}

/* Who is here: the thread that forked, and the coroutines of its loop. */
CONC__PRIVATE void conc__fork_count(conc__loop *loop) {
  size_t n = 1;
  conc_task *t;
  uintptr_t *ids =
      (uintptr_t *)CONC_REALLOC(conc__survivors,
                                ((loop != NULL ? loop->alive : 0) + 1) *
                                    sizeof *ids);
  if (ids == NULL) return; /* those that were here before are again */
  conc__survivors = ids;
  ids[0] = conc__this.actor.id;
  for (t = loop != NULL ? loop->tasks : NULL; t != NULL; t = t->next)
    if (conc__fork_actor(t)) ids[n++] = t->actor->id;
  conc__survivors_count = n;
}

CONC__PRIVATE void conc__fork_child(void) {
  conc__loop *loop = conc__this.loop;
  conc_task *mine = NULL;
  conc_task *others = conc__threads;
  conc_task *t, *u, *next, *next_u;
  conc__mutexes_reset();
  conc__stuck_guard.word = conc__threads_guard.word = 0;
  conc__locals_guard.word = conc__lock_order_guard.word = 0;
  if (loop != NULL) loop->inbox_guard.word = 0;
  conc__futex_init();
  conc__generation = (conc__generation + 1) % CONC__GENERATIONS;
  conc__fork_count(loop);
  for (t = others; t != NULL; t = t->next) {
    conc__loop *l = conc__fork_loop(t);
    if (t->actor == &conc__this.actor) {
      mine = t;
      continue;
    }
    conc__fork_bury(t);
    for (u = l != NULL ? l->tasks : NULL; u != NULL; u = u->next)
      conc__fork_bury(u);
  }
  conc__fork_unshare(&conc__this.actor);
  for (t = loop != NULL ? loop->tasks : NULL; t != NULL; t = t->next)
    if (conc__fork_actor(t)) conc__fork_unshare(t->actor);
  memset(conc__stuck, 0, sizeof conc__stuck);
  for (t = loop != NULL ? loop->tasks : NULL; t != NULL; t = t->next) {
    conc__actor *actor = conc__fork_actor(t);
    conc__waiter **bucket;
    if (actor == NULL || !actor->waiting || !actor->waiting->stuck) continue;
    bucket = conc__stuck_bucket(actor->id);
    actor->waiting->next_stuck = *bucket;
    *bucket = actor->waiting;
  }
  if (conc__this.has_waker) conc__waker_close(conc__this.waker);
  conc__this.has_waker = false;
  conc__this.actor.notified = NULL;
  if (loop != NULL) {
    conc__fork_reopen(loop);
    conc__fork_revive(loop);
  }
  conc__threads = NULL;
  for (t = others; t != NULL; t = next) {
    conc__loop *l = conc__fork_loop(t);
    next = t->next;
    if (t == mine) continue;
    for (u = l != NULL ? l->tasks : NULL; u != NULL; u = next_u) {
      next_u = u->next;
      conc__fork_end(u);
    }
    conc__fork_end(t);
  }
  if (mine != NULL) conc__task_link(&conc__threads, mine);
}

/* Before main, since a fork may come before anything else of this file. */
__attribute__((constructor)) CONC__PRIVATE void conc__fork_install(void) {
  static const conc__fork_row row = {conc__fork_prepare, conc__fork_parent,
                                     conc__fork_child};
  conc__fork_enter(CONC__FORK_CORE, &row);
}

/* ---------------------------------------------------------------------------
   >>io: descriptors, addresses, datagrams, streams, signals

   Every call here has one shape: try the system call without blocking; if it
   would block, wait for the descriptor by conc__fd_wait, which parks a
   coroutine and blocks a thread; then try again. "Ready" is a hint and never a
   promise: another task or process may have been faster, so every wait stands
   in a loop. Three kinds of descriptors need three ways not to block:
   - a socket: MSG_DONTWAIT, whatever its mode
   - another descriptor in non-blocking mode: plain read() and write()
   - another one in blocking mode (a terminal, a pipe): it is waited for first
     and then read once, or written by PIPE_BUF bytes at most
   The mode of a descriptor is never changed, for it may be shared with other
   processes; conc_accept's listener is the one exception, as documented.

   Uses the loops' table of descriptors (schedule, poller, coroutine) only for
   what it knows of the caller's own loop, so without a guard; and threads, to
   look names up. ipc, process, popen, pipe, net and server stand on this.
   ------------------------------------------------------------------------ */

/* --- waiting for descriptors --- */

/* The wait of every call in this section. `events`: CONC_READ, CONC_WRITE, and
   CONC__TRIED if the caller has just tried in vain. Returns the events that
   are ready, -ETIMEDOUT, -ECANCELED or negative errno. If a time limit around
   the caller (conc_timeout) ends before the call's own deadline, that is a
   cancellation, and it is delivered here. */
CONC__PRIVATE int conc__fd_wait(int fd, int events, double deadline) {
  conc__actor *self = conc__self();
  double limit = conc__scope_limit(self, deadline);
  int rc = self->ops->wait_fd(self, fd, events, limit);
  if (rc == -ETIMEDOUT && limit < deadline && conc__take_cancel(self))
    rc = -ECANCELED;
  return rc;
}

CONC_API int conc_wait_fd(int fd, int events, double timeout) {
  if (fd < 0) return -EBADF;
  if (events == 0 || (events & ~(CONC_READ | CONC_WRITE))) return -EINVAL;
  return conc__fd_wait(fd, events, conc__deadline(timeout));
}

/* Waits until one read() or write() of a blocking descriptor would not block.
   A thread waits once: if another thread or process is faster, then only this
   thread blocks. A coroutine must not block its loop: it looks first without
   waiting (deadline 0), and once more after each wait: if one event wakes
   several coroutines, the first of them takes what came. */
CONC__PRIVATE int conc__wait_blocking(int fd, int events, double deadline) {
  bool alone = !conc__is_coro(conc__self());
  int rc = alone ? -ETIMEDOUT : conc__fd_wait(fd, events, 0);
  while (rc == -ETIMEDOUT) {
    rc = conc__fd_wait(fd, events, deadline);
    if (rc < 0 || alone) break;
    rc = conc__fd_wait(fd, events, 0);
  }
  return rc;
}

/* Whether a failed system call may be tried again when the descriptor is
   ready. */
CONC__PRIVATE bool conc__would_block(int error) {
  return error == EAGAIN || error == EWOULDBLOCK;
}

/* 1 non-blocking, 0 blocking, or negative errno. */
CONC__PRIVATE int conc__is_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  return flags < 0 ? -errno : (flags & O_NONBLOCK) != 0;
}

/* Gives a pipe more room if n bytes at once have gone through it and that was
   at least half of what it holds: then its two ends take turns less often. No
   pipe has that room from the start, since the system allows all pipes of a
   user together only a little (on Linux 64 such pipes). Beyond that, and
   without privileges, the pipe stays as it is; and so does what is no pipe. */
CONC__PRIVATE void conc__pipe_widen(int fd, ssize_t n) {
#if CONC_HAVE_PIPE_SIZE
  int size = n < CONC__PIPE_SIZE / 2 ? 0 : fcntl(fd, F_GETPIPE_SZ);
  if (size > 0 && size <= 2 * n && size < CONC__PIPE_WIDE)
    fcntl(fd, F_SETPIPE_SZ, CONC__PIPE_WIDE);
#else
  (void)fd;
  (void)n;
#endif
}

/* What the caller's loop knows of a descriptor, or NULL. Valid until the
   caller waits: a wait may let the table grow, and move. */
CONC__INLINE conc__fd *conc__fd_known(int fd) {
  conc__loop *loop = conc__this.loop;
  if (loop == NULL || fd < 0 || (size_t)fd >= loop->fds_size) return NULL;
  return &loop->fds[fd];
}

/* --- reading --- */

/* Takes the descriptor for a socket until recv() says that it is none: most
   are, and then it costs one system call to read what is there. */
CONC_API ssize_t conc_read(int fd, void *buf, size_t size, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__fd *entry = conc__fd_known(fd);
  bool is_socket = true;
  /* The last read took all, and no edge has come since: a try would be in
     vain. A timeout of 0 asks the system all the same. */
  if (entry != NULL && entry->drained && deadline > 0) {
    int rc = conc__fd_wait(fd, CONC_READ | CONC__TRIED, deadline);
    if (rc < 0) return rc;
  }
  for (;;) {
    ssize_t n;
    int rc;
    if (is_socket) { /* whatever its mode, this call does not block */
      n = recv(fd, buf, size, MSG_DONTWAIT);
      if (n < 0 && errno == ENOTSOCK) {
        is_socket = false;
        /* Asked each time, not remembered: a number may mean another file by
           now, and another process may have changed the mode. */
        rc = conc__is_nonblocking(fd);
        if (rc == 0) rc = conc__wait_blocking(fd, CONC_READ, deadline);
        if (rc < 0) return rc;
        continue;
      }
    } else {
      n = read(fd, buf, size);
      conc__pipe_widen(fd, n);
    }
    if (n >= 0) {
      entry = conc__fd_known(fd); /* again, for it may have waited */
      /* Fewer bytes than there was room for: it is empty now, and what comes
         later comes with an edge, if the poller reports edges of it. Not so at
         the end (n == 0), which the next read is to find again. */
      if (n > 0 && (size_t)n < size && entry != NULL)
        entry->drained = (entry->edges & CONC_READ) != 0;
      return n;
    }
    if (errno == EINTR) continue;
    if (!conc__would_block(errno)) return -errno;
    rc = conc__fd_wait(fd, CONC_READ | CONC__TRIED, deadline);
    if (rc < 0) return rc;
  }
}

CONC_API ssize_t conc_read_exactly(int fd, void *buf, size_t size,
                                   double timeout) {
  double deadline = conc__deadline(timeout);
  size_t done = 0;
  while (done < size) {
    ssize_t n = conc_read(fd, (unsigned char *)buf + done, size - done,
                          conc__remaining(deadline));
    if (n < 0) return n;
    if (n == 0) break;
    done += (size_t)n;
  }
  return (ssize_t)done;
}

/* --- writing, closing --- */

/* How to write to a descriptor, as the first try shows. */
enum { CONC__FD_SOCKET, CONC__FD_NONBLOCKING, CONC__FD_BLOCKING };

/* Writes some of the bytes, as soon as any can be written. *kind is
   CONC__FD_SOCKET before the first call for a descriptor, and is for the next
   calls what was found out. Returns bytes, or negative errno. */
CONC__PRIVATE ssize_t conc__write_some(int fd, const void *buf, size_t size,
                                       int *kind, double deadline) {
  for (;;) {
    ssize_t n;
    int rc;
    if (*kind == CONC__FD_SOCKET) {
      n = send(fd, buf, size, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == ENOTSOCK) {
        rc = conc__is_nonblocking(fd);
        if (rc < 0) return rc;
        *kind = rc ? CONC__FD_NONBLOCKING : CONC__FD_BLOCKING;
        continue;
      }
    } else {
      bool blocking = *kind == CONC__FD_BLOCKING;
      if (blocking) {
        rc = conc__wait_blocking(fd, CONC_WRITE, deadline);
        if (rc < 0) return rc;
      }
      /* A blocking pipe that is ready takes PIPE_BUF bytes without waiting;
         with more, write() waits for a reader. */
      n = write(fd, buf, blocking && size > PIPE_BUF ? PIPE_BUF : size);
      if (n < (ssize_t)size) conc__pipe_widen(fd, n); /* it is full now */
    }
    if (n >= 0) return n;
    if (errno == EINTR) continue;
    if (!conc__would_block(errno)) return -errno;
    rc = conc__fd_wait(fd, CONC_WRITE | CONC__TRIED, deadline);
    if (rc < 0) return rc;
  }
}

CONC_API ssize_t conc_write(int fd, const void *buf, size_t size,
                            double timeout) {
  const unsigned char *p = (const unsigned char *)buf;
  double deadline = conc__deadline(timeout);
  int kind = CONC__FD_SOCKET;
  size_t left = size;
  for (;;) {
    ssize_t n = conc__write_some(fd, p, left, &kind, deadline);
    if (n < 0) return n;
    left -= (size_t)n;
    if (left == 0) return (ssize_t)size;
    p += n;
  }
}

CONC_API int conc_close(int fd) {
  conc__loop *loop = conc__this.loop;
  if (loop != NULL && fd >= 0 && (size_t)fd < loop->fds_size) {
    conc__fd_waiter *w;
    /* Both before close(): afterwards the number may be another file's, of
       another thread, which must not be taken out of the poller. */
    conc__poller_remove(loop, fd);
    for (w = loop->fds[fd].waiters; w != NULL; w = w->next)
      conc__fd_wake(loop, w, -EBADF);
  }
  return close(fd) == 0 ? 0 : -errno;
}

/* Closes a descriptor unless it is -1, which it is afterwards. */
CONC__PRIVATE void conc__fd_close(int *fd) {
  if (*fd >= 0) conc_close(*fd);
  *fd = -1;
}

/* A pipe to or from a child: blocking, close-on-exec, and above the numbers
   that dup2() is to replace in the child. 0; or negative errno, and both are
   -1. */
CONC__PRIVATE int conc__fd_pipe(int fds[2]) {
  int i;
#if CONC_HAVE_CLOEXEC
  int rc = pipe2(fds, O_CLOEXEC);
#else
  int rc = pipe(fds);
#endif
  if (rc < 0) {
    fds[0] = fds[1] = -1;
    return -errno;
  }
  for (i = 0; i < 2; i++) {
    conc__set_cloexec(fds[i]);
    fds[i] = conc__fd_lift(fds[i]);
    if (fds[i] < 0) rc = fds[i];
  }
  if (rc != 0)
    for (i = 0; i < 2; i++) conc__fd_close(&fds[i]);
  return rc;
}

/* --- addresses: looking up --- */

/* How many addresses of a name are tried, at most. */
#define CONC__ADDRESSES 4

/* An address as the system has it. */
typedef struct conc__place {
  struct sockaddr_storage address;
  socklen_t size; /* bytes of it */
} conc__place;

/* A host and a port that are looked up: by the caller if the host is a number,
   by a thread if it is a name, since getaddrinfo() can be neither stopped nor
   given a timeout. The thread may outlive the call, so all that it uses is
   here and on the heap. Before the thread starts, and after it was joined, all
   of this is the caller's; in between it is the thread's, but for `left`. */
typedef struct conc__resolve {
  conc_task task; /* of the thread; first, so that it is a task */
  char host[256], port[32];
  bool passive;  /* for conc_listen */
  int family;    /* AF_UNSPEC: any */
  int rc;        /* the thread's result */
  unsigned left; /* 0: caller and thread both use this. Each sets 1 when it
                    leaves; the second to do so must free it */
  conc__place places[CONC__ADDRESSES]; /* the first `count` are found */
  int count;
} conc__resolve;

/* Looks a host and a port up, for as long as it takes. `flags`: AI_NUMERICHOST
   for numbers only, which does not wait. 0; -ENOENT for no such host (or for
   a host that is no number), -EAGAIN, -ENOMEM. */
CONC__PRIVATE int conc__resolve_now(conc__resolve *r, int flags) {
  struct addrinfo hints;
  struct addrinfo *info = NULL;
  const struct addrinfo *i;
  int rc;
  memset(&hints, 0, sizeof hints);
  hints.ai_flags = flags | (r->passive ? AI_PASSIVE : 0);
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_family = r->family;
  rc = getaddrinfo(r->host[0] ? r->host : NULL, r->port, &hints, &info);
  for (i = rc == 0 ? info : NULL; i != NULL && r->count < CONC__ADDRESSES;
       i = i->ai_next) {
    conc__place *place = &r->places[r->count];
    if (i->ai_addrlen > sizeof place->address) continue;
    memcpy(&place->address, i->ai_addr, i->ai_addrlen);
    place->size = i->ai_addrlen;
    r->count++;
  }
  if (info != NULL) freeaddrinfo(info);
  if (r->count > 0) return 0;
  if (rc == EAI_MEMORY) return -ENOMEM;
  return rc == EAI_AGAIN ? -EAGAIN : -ENOENT;
}

CONC__PRIVATE void conc__resolve_free(void *resolve) { CONC_FREE(resolve); }

/* A thread cannot free its conc__resolve itself, for its task is in there and
   is used by the library after the target has returned. So it hangs it on this
   key, whose destructor runs when the thread has done with its task. */
static pthread_key_t conc__resolve_key;
static pthread_once_t conc__resolve_once = PTHREAD_ONCE_INIT;
static int conc__resolve_error;

CONC__PRIVATE void conc__resolve_make_key(void) {
  conc__resolve_error =
      -pthread_key_create(&conc__resolve_key, conc__resolve_free);
}

/* The caller or the thread uses it no longer. True: the other one has left
   before, so it must be freed here. Acquire and release, for the second one
   frees what the first one wrote. */
CONC__PRIVATE bool conc__resolve_leave(conc__resolve *r) {
  return __atomic_exchange_n(&r->left, 1u, __ATOMIC_ACQ_REL) != 0;
}

/* What the thread runs. `rc` is written before the thread leaves. */
CONC__PRIVATE void *conc__resolve_thread(void *arg) {
  conc__resolve *r = (conc__resolve *)arg;
  r->rc = conc__resolve_now(r, 0);
  if (conc__resolve_leave(r)) pthread_setspecific(conc__resolve_key, r);
  return NULL;
}

/* Looks a name up in a thread, so that only the caller waits, and only until
   the deadline. 0 or negative errno; *resolve is NULL if the thread is still
   at it and has become its owner. */
CONC__PRIVATE int conc__resolve_await(conc__resolve **resolve,
                                      double deadline) {
  conc__resolve *r = *resolve;
  int rc;
  pthread_once(&conc__resolve_once, conc__resolve_make_key);
  r->task.target = conc__resolve_thread;
  r->task.arg = r;
  r->task.name = "conc-resolve";
  rc = conc__resolve_error;
  if (rc == 0) rc = conc_thread_start(&r->task);
  if (rc == 0) rc = conc_join(&r->task, conc__remaining(deadline));
  if (rc == 0) rc = r->rc;
  if (!conc_is_alive(&r->task)) return rc; /* joined, or never started */
  /* Timed out or cancelled. If the caller leaves first, the thread frees it
     some time; *resolve must not be looked at from here on. */
  if (!conc__resolve_leave(r)) {
    *resolve = NULL;
    return rc;
  }
  /* The thread left first, and so does not free it; but until its end it uses
     its task. That is near, so this wait needs no limit, and a cancellation
     of it changes nothing. */
  while (conc_is_alive(&r->task)) conc_join(&r->task, CONC_FOREVER);
  return rc;
}

/* --- addresses: what callers write --- */

/* Splits "host:port", "[v6]:port", ":port", "*:port", "port" into r->host and
   r->port. What is no address is refused here, before anything is asked or
   waited for: 0 or -EINVAL. */
CONC__PRIVATE int conc__address_split(conc__resolve *r, const char *address,
                                      bool listening) {
  const char *colon = strrchr(address, ':');
  const char *port = colon != NULL ? colon + 1 : address;
  size_t n = colon != NULL ? (size_t)(colon - address) : 0;
  const char *host = address;
  unsigned long number = 0;
  const char *p;
  /* The last colon ends the host, so "::1:80" is host "::1"; brackets only
     make that readable. */
  if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
    host++;
    n -= 2;
  } else if (n == 1 && host[0] == '*') {
    n = 0;
  }
  if (n >= sizeof r->host || strlen(port) >= sizeof r->port || *port == 0)
    return -EINVAL;
  /* A name of a service ("http") would be looked up, and a number over 65535
     would be cut: both are refused. */
  for (p = port; *p != 0; p++) {
    if (*p < '0' || *p > '9') return -EINVAL;
    number = number * 10 + (unsigned long)(*p - '0');
    if (number > 65535) return -EINVAL;
  }
  memcpy(r->host, host, n);
  r->host[n] = 0;
  memcpy(r->port, port, strlen(port) + 1);
  r->passive = listening && colon != NULL && n == 0;
  if (r->passive) {
    memcpy(r->host, "0.0.0.0", 8); /* as Python: IPv4 */
  } else if (n == 0) {
    memcpy(r->host, "127.0.0.1", 10);
  }
  return 0;
}

/* Makes socket addresses of what conc_listen (`listening`) and conc_connect
   take, up to n of them, in `out`. Their number, or negative errno; -ETIMEDOUT
   and -ECANCELED only if the host is a name. */
CONC__PRIVATE int conc__address_parse(const char *address, bool listening,
                                      int family, double deadline,
                                      conc__place *out, int n) {
  struct sockaddr_un *un = (struct sockaddr_un *)&out->address;
  conc__resolve *r;
  int rc;
  /* The system gets a unix address whole, whatever the path's length. */
  memset(out, 0, sizeof *out);
  if (address == NULL || *address == 0) {
    if (!listening) return -EINVAL;
    address = "127.0.0.1:0";
  }
  /* A path before anything else: it may hold colons, and a host no '/'. */
  if (strchr(address, '/') != NULL) {
    if (strlen(address) >= sizeof un->sun_path) return -EINVAL;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, address, strlen(address) + 1);
    out->size = (socklen_t)sizeof *un;
    return 1;
  }
  r = (conc__resolve *)CONC_MALLOC(sizeof *r);
  if (r == NULL) return -ENOMEM;
  memset(r, 0, sizeof *r);
  r->family = family;
  rc = conc__address_split(r, address, listening);
  /* Numbers first, in this thread: that takes microseconds and no thread.
     -ENOENT says that the host is no number, so perhaps a name. */
  if (rc == 0) rc = conc__resolve_now(r, AI_NUMERICHOST);
  if (rc == -ENOENT) rc = conc__resolve_await(&r, deadline);
  if (rc == 0) { /* then r is still ours */
    rc = r->count < n ? r->count : n;
    memcpy(out, r->places, (size_t)rc * sizeof *out);
  }
  CONC_FREE(r);
  return rc;
}

/* --- sockets: listening --- */

/* Removes a socket file whose owner has died, since the file remains then.
   Whether it has is asked by a socket for datagrams: a socket for streams that
   lives refuses that by EPROTOTYPE, and its owner sees no connection. True: it
   was stale and is removed. If another process replaces the same stale file
   between our connect() and our unlink(), it loses its file: POSIX has no call
   that would do both at once. */
CONC__PRIVATE bool conc__socket_file_is_stale(const conc__place *place) {
  const struct sockaddr *addr = (const struct sockaddr *)&place->address;
  const struct sockaddr_un *un = (const struct sockaddr_un *)&place->address;
  struct stat st;
  bool stale;
  int fd;
  if (stat(un->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) return false;
  fd = conc__socket(AF_UNIX, SOCK_DGRAM);
  if (fd < 0) return false;
  stale = connect(fd, addr, place->size) < 0 && errno == ECONNREFUSED;
  close(fd);
  return stale && unlink(un->sun_path) == 0;
}

/* A socket of that type that is bound to an address; or negative errno. Waits
   without a limit if the host is a name. */
CONC__PRIVATE int conc__socket_at(const char *address, int type) {
  conc__place a;
  const struct sockaddr *addr = (const struct sockaddr *)&a.address;
  bool is_unix;
  int one = 1;
  int fd;
  int rc = conc__address_parse(address, true, AF_UNSPEC, CONC__NEVER, &a, 1);
  if (rc < 0) return rc;
  is_unix = a.address.ss_family == AF_UNIX;
  fd = conc__socket(a.address.ss_family, type);
  if (fd < 0) return fd;
  /* Else a server that is started again fails for a minute, while connections
     of the old one are in TIME_WAIT. For datagrams it would let two sockets
     have one port. */
  if (!is_unix && type == SOCK_STREAM)
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  rc = bind(fd, addr, a.size) < 0 ? -errno : 0;
  if (rc == -EADDRINUSE && is_unix && conc__socket_file_is_stale(&a))
    rc = bind(fd, addr, a.size) < 0 ? -errno : 0;
  if (rc == 0) return fd;
  close(fd);
  return rc;
}

CONC_API int conc_listen(const char *address) {
  int fd = conc__socket_at(address, SOCK_STREAM);
  int rc;
  if (fd < 0 || listen(fd, SOMAXCONN) == 0) return fd;
  rc = -errno;
  close(fd);
  return rc;
}

/* Lets small messages out at once, as requests and replies must be. */
CONC__PRIVATE void conc__set_nodelay(int fd) {
  int one = 1; /* this fails on unix sockets, which need it not */
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* The system has just given this number to a new file. Its former file may
   have been closed by plain close(), of which the loop has not heard: what the
   loop knows is forgotten, so that no edge of the old file is waited for. */
CONC__PRIVATE void conc__fd_is_new(int fd) {
  conc__fd *entry = conc__fd_known(fd);
  if (entry != NULL) conc__fd_renew(entry);
}

/* Whether a socket listens. True also where the system cannot say so, as on
   macOS. */
CONC__PRIVATE bool conc__may_listen(int fd) {
  int listens = 0;
  socklen_t length = (socklen_t)sizeof listens;
  if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) < 0)
    return errno == ENOPROTOOPT;
  return listens != 0;
}

/* accept() knows no MSG_DONTWAIT: a listener that was ready would block if the
   client went away, or another process was faster, just before the call. So it
   is made non-blocking, but only if it is a listener: for others accept()
   fails, and their mode must stay. */
CONC_API int conc_accept(int fd, double timeout) {
  double deadline = conc__deadline(timeout);
  if (conc__is_nonblocking(fd) == 0 && conc__may_listen(fd))
    conc__set_nonblocking(fd);
  for (;;) {
    int client, rc;
#if CONC_HAVE_CLOEXEC
    client = (int)syscall(SYS_accept4, fd, NULL, NULL,
                          SOCK_CLOEXEC | SOCK_NONBLOCK);
#else
    client = accept(fd, NULL, NULL);
#endif
    if (client >= 0) {
#if !CONC_HAVE_CLOEXEC
      conc__set_cloexec(client);
      conc__set_nonblocking(client);
#endif
      conc__set_nodelay(client);
      conc__fd_is_new(client);
      return client;
    }
    /* A client that has gone before it was accepted is no failure. */
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (!conc__would_block(errno)) return -errno;
    rc = conc__fd_wait(fd, CONC_READ | CONC__TRIED, deadline);
    if (rc < 0) return rc;
  }
}

/* --- sockets: conc_serve ---

   The caller accepts, and uses the structs of handlers that have ended again.
   A handler tells its end by the callback of its task, in its own thread: it
   puts its struct on a list. The task may still be at its last step then; so
   it is awaited before the struct is used again, or freed. */

typedef struct conc__connection {
  conc_task task; /* first: its callback finds the rest */
  struct conc__service *service;
  int fd;                           /* -1 once the handler has it */
  struct conc__connection *next;    /* that has ended, or that is spare */
  struct conc__connection *sibling; /* of all of the service */
} conc__connection;

typedef struct conc__service {
  void (*handler)(int fd, void *arg);
  void *arg;
  conc_event changed; /* a handler has ended */
  size_t serving;     /* so many have not */
  conc__connection *ended, *spare, *all;
} conc__service;

CONC__PRIVATE void *conc__connection_run(void *arg) {
  conc__connection *c = (conc__connection *)arg;
  int fd = c->fd;
  c->fd = -1;
  c->service->handler(fd, c->service->arg);
  return NULL;
}

CONC__PRIVATE void conc__connection_ended(conc_task *task, int status,
                                          void *result) {
  conc__connection *c = (conc__connection *)task;
  conc__service *s = c->service;
  conc__connection *first = CONC__LOAD(&s->ended);
  (void)status;
  (void)result;
  do c->next = first;
  while (!CONC__CAS(&s->ended, &first, c));
  __atomic_sub_fetch(&s->serving, (size_t)1, __ATOMIC_SEQ_CST);
  conc_event_set(&s->changed);
}

/* Makes those that have ended spare. A connection for which the handler was
   never called is closed here. */
CONC__PRIVATE void conc__service_reap(conc__service *s) {
  conc__connection *c, *next;
  c = __atomic_exchange_n(&s->ended, (conc__connection *)NULL,
                          __ATOMIC_ACQUIRE);
  for (; c != NULL; c = next) {
    next = c->next;
    conc__task_await(&c->task, true, CONC_FOREVER);
    if (c->fd >= 0) conc_close(c->fd);
    c->next = s->spare;
    s->spare = c;
  }
}

/* Starts the handler for a connection. */
CONC__PRIVATE int conc__service_start(conc__service *s, int fd) {
  conc__connection *c = s->spare;
  int rc;
  if (c == NULL) {
    c = (conc__connection *)CONC_MALLOC(sizeof *c);
    if (c == NULL) return -ENOMEM;
    memset(c, 0, sizeof *c);
    c->task.target = conc__connection_run;
    c->task.arg = c;
    c->task.callback = conc__connection_ended;
    c->service = s;
    c->sibling = s->all;
    s->all = s->spare = c;
  }
  c->fd = fd;
  __atomic_add_fetch(&s->serving, (size_t)1, __ATOMIC_SEQ_CST);
  s->spare = c->next; /* before the handler may end and use the link */
  rc = conc__is_coro(conc__self()) ? conc_coro_start(&c->task)
                                   : conc_thread_start(&c->task);
  if (rc == 0) return 0;
  __atomic_sub_fetch(&s->serving, (size_t)1, __ATOMIC_SEQ_CST);
  c->next = s->spare;
  s->spare = c;
  return rc;
}

/* Waits for the handlers, which are cancelled first, or as soon as the caller
   is: then -ECANCELED. */
CONC__PRIVATE int conc__service_end(conc__service *s, bool cancel) {
  conc__connection *c, *next;
  conc_scope shield;
  int rc = cancel ? -ECANCELED : 0;
  for (;;) {
    conc_event_clear(&s->changed);
    if (rc != 0 || CONC__LOAD(&s->serving) == 0) break;
    rc = conc_event_wait(&s->changed, CONC_FOREVER);
  }
  conc_shield(&shield);
  if (rc != 0)
    for (c = s->all; c != NULL; c = c->sibling) conc_cancel(&c->task);
  for (c = s->all; c != NULL; c = c->sibling)
    if (conc_is_alive(&c->task))
      conc__task_await(&c->task, true, CONC_FOREVER);
  conc__service_reap(s);
  conc_scope_end(&shield);
  for (c = s->all; c != NULL; c = next) {
    next = c->sibling;
    CONC_FREE(c);
  }
  return rc;
}

/* Whether no more can be accepted, whatever time passes. */
CONC__PRIVATE bool conc__service_is_over(int rc) {
  return rc == -ECANCELED || rc == -EBADF || rc == -EINVAL ||
         rc == -ENOTSOCK || rc == -EOPNOTSUPP;
}

CONC_API int conc_serve(int listener, void (*handler)(int fd, void *arg),
                        void *arg, size_t limit) {
  conc__service s;
  int fd = -1; /* accepted, but its handler not started yet */
  int rc = handler != NULL ? 0 : -EINVAL;
  memset(&s, 0, sizeof s);
  s.handler = handler;
  s.arg = arg;
  if (limit == 0) limit = 1000;
  while (!conc__service_is_over(rc)) {
    conc__service_reap(&s);
    conc_event_clear(&s.changed);
    if (CONC__LOAD(&s.serving) >= limit) {
      rc = conc_event_wait(&s.changed, CONC_FOREVER);
      continue;
    }
    rc = 0;
    if (fd < 0) rc = fd = conc_accept(listener, CONC_FOREVER);
    if (fd >= 0) rc = conc__service_start(&s, fd);
    if (fd >= 0 && rc == 0) {
      fd = -1;
      /* Clients that come fast must not keep us from our own cancellation,
         nor coroutines from their turn. */
      rc = conc_yield_now();
    } else if (!conc__service_is_over(rc)) {
      rc = conc_event_wait(&s.changed, 0.1); /* out of something, for now */
    }
  }
  if (fd >= 0) conc_close(fd);
  return conc__service_end(&s, rc == -ECANCELED) != 0 ? -ECANCELED : rc;
}

/* --- sockets: connecting --- */

/* Connects to one address. A descriptor, or negative errno. */
CONC__PRIVATE int conc__socket_connect(const conc__place *place,
                                       double deadline) {
  const struct sockaddr *addr = (const struct sockaddr *)&place->address;
  int fd = conc__socket(place->address.ss_family, SOCK_STREAM);
  int rc = 0;
  if (fd < 0) return fd;
  while (connect(fd, addr, place->size) < 0) {
    rc = -errno;
    /* It goes on in the system, also after a signal: connect() is not called
       again, which would say EALREADY. When the socket can be written to, its
       pending error is the result. */
    if (rc == -EINPROGRESS || rc == -EINTR || rc == -EALREADY) {
      rc = conc__fd_wait(fd, CONC_WRITE, deadline);
      if (rc > 0) {
        int error = 0;
        socklen_t length = (socklen_t)sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        rc = -error;
      }
      break;
    }
    if (rc != -EAGAIN) break;
    /* A unix socket whose backlog is full: nothing can be waited for, so it
       is tried again. */
    rc = conc__remaining(deadline) <= 0 ? -ETIMEDOUT : conc_sleep(0.001);
    if (rc != 0) break;
  }
  if (rc == 0) {
    conc__set_nodelay(fd);
    return fd;
  }
  conc_close(fd); /* the loop may know it by now */
  return rc;
}

CONC_API int conc_connect(const char *address, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__place places[CONC__ADDRESSES];
  int i = 0, fd;
  int n = conc__address_parse(address, false, AF_UNSPEC, deadline, places,
                              CONC__ADDRESSES);
  if (n < 0) return n;
  /* All in one time limit: an address that does not answer takes all of it. A
     cancelled caller wants no other one. */
  do fd = conc__socket_connect(&places[i], deadline);
  while (fd < 0 && ++i < n && fd != -ECANCELED &&
         conc__remaining(deadline) > 0);
  return fd;
}

/* Writes an address as conc_connect takes it, and returns its length, as
   snprintf does. "" for what has none. */
CONC__PRIVATE ssize_t conc__address_text(const struct sockaddr_storage *a,
                                         socklen_t length, char *buf,
                                         size_t size) {
  const struct sockaddr_un *un = (const struct sockaddr_un *)a;
  char host[64], port[16];
  if (a->ss_family == AF_UNIX) {
    /* Without a name it is shorter; a long path may lack its NUL. */
    size_t n = (size_t)length > offsetof(struct sockaddr_un, sun_path)
                   ? (size_t)length - offsetof(struct sockaddr_un, sun_path)
                   : 0;
    return snprintf(buf, size, "%.*s", (int)n, n > 0 ? un->sun_path : "");
  }
  if (getnameinfo((const struct sockaddr *)a, length, host, sizeof host, port,
                  sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return snprintf(buf, size, "%s", "");
  return snprintf(buf, size, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s",
                  host, port);
}

CONC_API ssize_t conc_address(int fd, char *buf, size_t size) {
  struct sockaddr_storage a;
  socklen_t length = (socklen_t)sizeof a;
  if (size > 0) buf[0] = 0;
  if (getsockname(fd, (struct sockaddr *)&a, &length) < 0) return -errno;
  return conc__address_text(&a, length, buf, size);
}

/* --- datagrams --- */

CONC_API int conc_datagram_open(const char *address) {
  return conc__socket_at(address, SOCK_DGRAM);
}

/* The address is looked up in the family of the socket: one of IPv4 cannot
   send to "::1". */
CONC_API int conc_datagram_send(int fd, const void *data, size_t size,
                                const char *address, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__place a;
  struct sockaddr *addr = (struct sockaddr *)&a.address;
  int family, rc;
  a.size = (socklen_t)sizeof a.address;
  if (getsockname(fd, addr, &a.size) < 0) return -errno;
  /* AF_UNIX is said by the '/' in a path, and not by getaddrinfo(). */
  family = addr->sa_family == AF_UNIX ? AF_UNSPEC : addr->sa_family;
  rc = conc__address_parse(address, false, family, deadline, &a, 1);
  while (rc >= 0) {
    ssize_t n = sendto(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL, addr,
                       a.size);
    if (n >= 0) return 0;
    if (errno == EINTR) continue;
    if (!conc__would_block(errno)) return -errno;
    if (addr->sa_family != AF_UNIX)
      rc = conc__fd_wait(fd, CONC_WRITE, deadline);
    else /* it polls writable; what is full is the receiver's queue */
      rc = conc__remaining(deadline) <= 0 ? -ETIMEDOUT : conc_sleep(0.001);
  }
  return rc;
}

/* By recvmsg(), for only its flags tell that a datagram was longer than the
   buffer. */
CONC_API ssize_t conc_datagram_receive(int fd, void *buf, size_t size,
                                       char *from, size_t from_size,
                                       double timeout) {
  double deadline = conc__deadline(timeout);
  struct sockaddr_storage a;
  struct msghdr m;
  struct iovec part;
  int rc;
  if (from_size > 0) from[0] = 0;
  do {
    ssize_t n;
    memset(&m, 0, sizeof m); /* in each turn, for the call writes to it */
    part.iov_base = buf;
    part.iov_len = size;
    m.msg_iov = &part;
    m.msg_iovlen = 1;
    m.msg_name = &a;
    m.msg_namelen = (socklen_t)sizeof a;
    n = recvmsg(fd, &m, MSG_DONTWAIT);
    if (n >= 0) {
      /* An address that does not fit would be another one: then "". */
      if (from_size > 0 && m.msg_namelen > 0 &&
          conc__address_text(&a, m.msg_namelen, from, from_size) >=
              (ssize_t)from_size)
        from[0] = 0;
      return m.msg_flags & MSG_TRUNC ? -EMSGSIZE : n;
    }
    rc = -errno;
    if (conc__would_block(errno))
      rc = conc__fd_wait(fd, CONC_READ | CONC__TRIED, deadline);
  } while (rc > 0 || rc == -EINTR);
  return rc;
}

/* --- streams: reading ---

   Two locks, one to read and one to write, make each call whole: it holds its
   lock from beginning to end, also while it waits for the descriptor. Bytes
   leave `in` only when a call succeeds: one that is cancelled or times out has
   read nothing, and what came for it is the next call's. */

#define CONC__STREAM_CHUNK 4096       /* bytes of the first room */
#define CONC__STREAM_HIGH_WATER 65536 /* default of .high_water */

/* Makes room for n bytes; at first for a chunk at least. 0 or -ENOMEM. */
CONC__PRIVATE int conc__stream_reserve(conc__buffer *b, size_t n) {
  if (b->capacity == 0 && n < CONC__STREAM_CHUNK) n = CONC__STREAM_CHUNK;
  return conc__buffer_reserve(b, n);
}

/* Reads more, so as to have `need` bytes some time: there is room for all of
   them, so that a large read takes few system calls. Returns what conc_read
   does, or -ENOMEM. The caller has the lock for reading. */
CONC__PRIVATE ssize_t conc__stream_fill(conc_stream *s, size_t need,
                                        double deadline) {
  size_t count = conc__buffer_count(&s->in);
  size_t room = need > count ? need - count : 0;
  ssize_t n;
  CONC__CHECK(conc__lock_is_mine(&s->reading, conc__self()->id));
  if (room < CONC__STREAM_CHUNK / 4) room = CONC__STREAM_CHUNK / 4;
  n = conc__stream_reserve(&s->in, room);
  if (n != 0) return n;
  n = conc_read(s->fd, s->in.data + s->in.size, s->in.capacity - s->in.size,
                conc__remaining(deadline));
  if (n > 0) s->in.size += (size_t)n;
  return n;
}

/* Acquires one of a stream's locks. After a fork its owner may be a thread
   that only the parent has: -EOWNERDEAD, as from conc_lock_acquire, but the
   lock is given back at once, so that a failed call holds nothing. Later calls
   find it free: whether the stream is of any use then, the caller knows. */
CONC__PRIVATE int conc__stream_enter(conc_lock *lock, double timeout) {
  int rc = conc_lock_acquire(lock, timeout);
  if (rc == -EOWNERDEAD) conc_lock_release(lock);
  return rc;
}

/* What is in the buffer comes first, without a system call; only if there is
   nothing does it read. */
CONC_API ssize_t conc_stream_read(conc_stream *stream, void *buf, size_t size,
                                  double timeout) {
  double deadline = conc__deadline(timeout);
  ssize_t n = conc__stream_enter(&stream->reading, timeout);
  if (n != 0) return n;
  /* Large reads of an empty buffer go past it: one copy less. */
  if (conc__buffer_count(&stream->in) == 0 && size >= CONC__STREAM_CHUNK) {
    n = conc_read(stream->fd, buf, size, conc__remaining(deadline));
  } else {
    if (conc__buffer_count(&stream->in) == 0 && size > 0)
      n = conc__stream_fill(stream, 1, deadline);
    if (n >= 0) {
      size_t count = conc__buffer_count(&stream->in);
      if (size > count) size = count;
      conc__buffer_take(&stream->in, buf, size);
      n = (ssize_t)size;
    }
  }
  conc_lock_release(&stream->reading);
  return n;
}

CONC_API ssize_t conc_stream_read_exactly(conc_stream *stream, void *buf,
                                          size_t size, double timeout) {
  double deadline = conc__deadline(timeout);
  ssize_t n = conc__stream_enter(&stream->reading, timeout);
  if (n != 0) return n;
  n = 1;
  while (n > 0 && conc__buffer_count(&stream->in) < size)
    n = conc__stream_fill(stream, size, deadline);
  if (n >= 0) {
    if (n == 0) size = conc__buffer_count(&stream->in);
    conc__buffer_take(&stream->in, buf, size);
    n = (ssize_t)size;
  }
  conc_lock_release(&stream->reading);
  return n;
}

/* --- streams: separators --- */

/* How many of the `count` bytes at p there are up to the end of the first
   separator of n bytes, which is looked for from byte `from` on; 0: there is
   none. count >= n. */
CONC__PRIVATE size_t conc__separator_find(const unsigned char *p, size_t count,
                                          const unsigned char *separator,
                                          size_t n, size_t from) {
  CONC__CHECK(from <= count);
  while (count - from >= n) {
    const void *at = memchr(p + from, separator[0], count - from - n + 1);
    if (at == NULL) return 0;
    from = (size_t)((const unsigned char *)at - p);
    if (memcmp(at, separator, n) == 0) return from + n;
    from++;
  }
  return 0;
}

/* Each turn looks only at what has come since the last one, so that a long
   line costs time in proportion to its length. `from`: no separator begins
   before that byte. */
CONC_API ssize_t conc_stream_read_until(conc_stream *stream,
                                        const void *separator, size_t n,
                                        void *buf, size_t size,
                                        double timeout) {
  double deadline = conc__deadline(timeout);
  conc__buffer *in = &stream->in;
  size_t from = 0;
  ssize_t rc;
  if (n == 0) return -EINVAL;
  rc = conc__stream_enter(&stream->reading, timeout);
  if (rc != 0) return rc;
  for (;;) {
    size_t count = conc__buffer_count(in);
    size_t length =
        count < n
            ? 0
            : conc__separator_find(in->data + in->first, count,
                                   (const unsigned char *)separator, n, from);
    /* Also if all has come, and even if more of it would bring a separator:
       what is returned does not depend on how the bytes arrive. */
    if (length > size || (length == 0 && count >= size)) {
      rc = -EMSGSIZE;
      break;
    }
    if (length == 0) {
      /* The last n - 1 bytes may be the beginning of one. */
      if (count >= n) from = count - n + 1;
      rc = conc__stream_fill(stream, 0, deadline);
      if (rc > 0) continue;
      if (rc < 0) break;
      length = count; /* the end: what there is, without a separator */
    }
    conc__buffer_take(in, buf, length);
    rc = (ssize_t)length;
    break;
  }
  conc_lock_release(&stream->reading);
  return rc;
}

CONC_API ssize_t conc_stream_read_line(conc_stream *stream, char *buf,
                                       size_t size, double timeout) {
  ssize_t n;
  if (size == 0) return -EINVAL;
  n = conc_stream_read_until(stream, "\n", 1, buf, size - 1, timeout);
  buf[n > 0 ? n : 0] = 0;
  return n;
}

/* --- streams: writing --- */

/* Sends all that is in `out`. The caller has the lock for writing. A timeout
   or a cancellation leaves the rest there, to be sent later. After any other
   error nothing can be sent in order any more: the rest is dropped, and all
   later writes fail by the same error. 0 or negative errno. */
CONC__PRIVATE int conc__stream_drain(conc_stream *s, double deadline) {
  int kind = CONC__FD_SOCKET;
  CONC__CHECK(conc__lock_is_mine(&s->writing, conc__self()->id));
  while (s->error == 0 && conc__buffer_count(&s->out) > 0) {
    ssize_t n = conc__write_some(s->fd, s->out.data + s->out.first,
                                 conc__buffer_count(&s->out), &kind, deadline);
    if (n == -ETIMEDOUT || n == -ECANCELED) return (int)n;
    if (n < 0) {
      s->error = (int)n;
      conc__buffer_free(&s->out);
    } else {
      conc__buffer_take(&s->out, NULL, (size_t)n);
    }
  }
  return s->error;
}

CONC_API int conc_stream_write(conc_stream *stream, const void *data,
                               size_t size, double timeout) {
  size_t high =
      stream->high_water > 0 ? stream->high_water : CONC__STREAM_HIGH_WATER;
  double deadline = conc__deadline(timeout);
  int rc = conc__stream_enter(&stream->writing, timeout);
  if (rc != 0) return rc;
  rc = stream->error;
  /* Before the new bytes are added, so that a call that fails has added none.
     Memory is reserved last: it may not be had, and then nothing is written
     either. */
  if (rc == 0 && conc__buffer_count(&stream->out) >= high)
    rc = conc__stream_drain(stream, deadline);
  if (rc == 0 && size > 0) rc = conc__stream_reserve(&stream->out, size);
  if (rc == 0) conc__buffer_append(&stream->out, data, size); /* has room */
  conc_lock_release(&stream->writing);
  return rc;
}

CONC_API int conc_stream_flush(conc_stream *stream, double timeout) {
  double deadline = conc__deadline(timeout);
  int rc = conc__stream_enter(&stream->writing, timeout);
  if (rc != 0) return rc;
  rc = conc__stream_drain(stream, deadline);
  conc_lock_release(&stream->writing);
  return rc;
}

/* Without the locks: no other task may use the stream by now. */
CONC_API int conc_stream_close(conc_stream *stream, double timeout) {
  int rc = conc_stream_flush(stream, timeout);
  int closed = conc_close(stream->fd);
  conc__buffer_free(&stream->in);
  conc__buffer_free(&stream->out);
  stream->fd = -1;
  return rc != 0 ? rc : closed;
}

/* --- signals --- */

/* 0, or -EINVAL for none, or for a number that is no signal. */
CONC__PRIVATE int conc__signal_set(sigset_t *set, const int *signals,
                                   size_t n) {
  size_t i;
  sigemptyset(set);
  for (i = 0; i < n; i++)
    if (sigaddset(set, signals[i]) != 0) return -EINVAL;
  return n == 0 ? -EINVAL : 0;
}

CONC_API int conc_block_signals(const int *signals, size_t n) {
  sigset_t set;
  int rc = conc__signal_set(&set, signals, n);
  return rc == 0 ? -pthread_sigmask(SIG_BLOCK, &set, NULL) : rc;
}

/* Takes a signal of the set, which this thread blocks: so it stays pending,
   for the thread or for the process, until some waiter takes it. The number of
   the signal, or negative errno. */
#if CONC_HAVE_SIGNALFD
CONC__PRIVATE int conc__signal_await(const sigset_t *set, double deadline) {
  struct signalfd_siginfo info;
  int fd = signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
  int rc;
  if (fd < 0) return -errno;
  do {
    rc = read(fd, &info, sizeof info) == (ssize_t)sizeof info
             ? (int)info.ssi_signo
             : -errno;
    if (rc != -EAGAIN && rc != -EINTR) break;
    rc = conc__fd_wait(fd, CONC_READ, deadline);
  } while (rc > 0); /* it was pending; another waiter may have taken it */
  conc_close(fd);   /* the loop knows it */
  return rc;
}
#else
CONC__PRIVATE int conc__signal_await(const sigset_t *set, double deadline) {
  for (;;) {
    struct timespec none = {0, 0};
    double left;
    int rc = sigtimedwait(set, NULL, &none);
    if (rc > 0) return rc;
    /* A coroutine must not block in sigwait(), and a thread must see that it
       is cancelled: both look now and then. */
    left = conc__remaining(deadline);
    rc = left <= 0 ? -ETIMEDOUT : conc_sleep(left < 0.01 ? left : 0.01);
    if (rc != 0) return rc;
  }
}
#endif

CONC_API int conc_wait_signal(const int *signals, size_t n, double timeout) {
  double deadline = conc__deadline(timeout);
  sigset_t set, blocked;
  size_t i;
  int rc = conc__signal_set(&set, signals, n);
  if (rc != 0) return rc;
  /* A signal that is not blocked does what its disposition says, perhaps kill
     the process, and would never be waited for. */
  pthread_sigmask(SIG_BLOCK, NULL, &blocked);
  for (i = 0; i < n; i++)
    if (!sigismember(&blocked, signals[i])) return -EINVAL;
  return conc__signal_await(&set, deadline);
}

/* ---------------------------------------------------------------------------
   >>ipc: conc_shared_alloc, and memory by name

   Maps memory that processes share, and knows which of it this process has:
   the list conc__regions, of which registry keeps the guard and the means to
   ask who lives. Memory without a name is inherited by fork() and shares the
   family's registry; memory by name is a file that begins with a registry of
   its own. The rule for both: whatever process is killed, at any step, the
   system gives back what it mapped, and its record locks say that it is gone.
   ------------------------------------------------------------------------ */

/* --- memory without a name --- */

/* Maps g->size bytes of memory without a name, and puts g on the list. The
   guard is held throughout: fork() takes it, too, so that a child has either
   all of this or nothing. 0; or negative errno, and all is as before. */
CONC__PRIVATE int conc__region_make(conc__region *g) {
  int fd = -1;
  int rc = conc__family_open();
  CONC__CHECK(conc__mutex_is_held(&conc__shared_guard));
  if (rc == 0) rc = fd = conc__shared_file(g->size);
  if (rc >= 0) {
    g->memory = (char *)mmap(NULL, g->size, PROT_READ | PROT_WRITE, MAP_SHARED,
                             fd, 0);
    rc = g->memory == (char *)MAP_FAILED ? -errno : 0;
    close(fd); /* the mapping keeps the file; no record lock is on this one */
  }
  if (rc == 0) {
    g->name = NULL;
    g->users = 1;
    g->registry = conc__family;
    conc__registry_local(conc__family)->users++;
    g->next = conc__regions;
    conc__regions = g;
  } else if (conc__family != NULL &&
             conc__registry_local(conc__family)->users == 0) {
    /* The registry was made just for this region. */
    conc__registry_unmap(conc__family, sizeof *conc__family);
    conc__family = NULL;
  }
  return rc;
}

/* Like malloc() it tells its error by errno: a pointer has no room for one.
   The file that is mapped has no name, so it goes with its last process. */
CONC_API void *conc_shared_alloc(size_t size) {
  conc__region *g;
  int rc;
  conc__shared_init();
  if (size == 0 || size > SIZE_MAX / 2) {
    errno = size == 0 ? EINVAL : ENOMEM;
    return NULL;
  }
  /* First, so that a failure has nothing to undo. */
  g = (conc__region *)CONC_MALLOC(sizeof *g);
  if (g == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  g->size = (size + conc__page - 1) / conc__page * conc__page;
  conc__mutex_lock(&conc__shared_guard);
  rc = conc__region_make(g);
  conc__mutex_unlock(&conc__shared_guard);
  if (rc == 0) return g->memory;
  CONC_FREE(g);
  errno = -rc;
  return NULL;
}

/* How many bytes are mapped from its registry on: for memory without a name
   those of the family's registry alone, for memory by name all of the file. */
CONC__PRIVATE size_t conc__region_mapped(const conc__region *g) {
  if (g->name == NULL) return sizeof *g->registry;
  return (size_t)(g->memory - (char *)(void *)g->registry) + g->size;
}

/* One user of this process has it no longer. With the last user it is unmapped
   and freed; with the last region of a registry also the registry, whose
   descriptor is closed: by that this process is dead for all others that use
   it, so nothing in the memory may still be held. */
CONC__PRIVATE void conc__region_drop(conc__region *g) {
  struct conc__registry *r = g->registry;
  size_t size = conc__region_mapped(g);
  conc__region **p = &conc__regions;
  conc__mutex_lock(&conc__shared_guard);
  while (*p != g) p = &(*p)->next;
  CONC__CHECK(g->users > 0 && conc__registry_local(r)->users > 0);
  if (--g->users > 0) {
    g = NULL; /* which is freed below, as nothing */
  } else {
    *p = g->next;
    if (g->name == NULL) munmap(g->memory, g->size);
    if (--conc__registry_local(r)->users == 0) {
      conc__registry_unmap(r, size);
      if (r == conc__family) conc__family = NULL;
    }
  }
  conc__mutex_unlock(&conc__shared_guard);
  CONC_FREE(g);
}

/* The region that begins at `memory`; or that has `name`, if that is not NULL,
   and then it has one user more. NULL: there is none. */
CONC__PRIVATE conc__region *conc__region_find(const void *memory,
                                              const char *name) {
  conc__region *g;
  conc__mutex_lock(&conc__shared_guard);
  for (g = conc__regions; g != NULL; g = g->next)
    if (name != NULL ? g->name != NULL && strcmp(g->name, name) == 0
                     : g->memory == memory)
      break;
  if (g != NULL && name != NULL) g->users++;
  conc__mutex_unlock(&conc__shared_guard);
  return g;
}

CONC_API void conc_shared_free(void *memory) {
  conc__region *g = memory != NULL ? conc__region_find(memory, NULL) : NULL;
  if (g != NULL) conc__region_drop(g);
}

/* --- memory by name ---

   A file in /dev/shm (or /tmp), with the registry first. Behind the bytes of
   the registry's entries there are three more that are locked, whatever lies
   there:
   - OPENS, for writing, by the process that makes the memory or begins to use
     it, until it is ready: so one process at a time does that
   - USES, for reading, by a lock that belongs to the open descriptor, and so
     also to forked children, which have no entry of their own before they
     first use the memory; where there are such locks (F_OFD_SETLK)
   - TRACKS, for writing, by the tracker
   The tracker is a process that waits until it has the locks of all entries,
   of OPENS and of USES: then no process uses the memory, and none has begun
   to. It removes the file. A process that has opened the file meanwhile sees,
   as soon as it has OPENS, that the file has lost its name, and tries again.

   What a killed process leaves: killed before OPENS, an empty file, which the
   next opener makes; killed with OPENS, in init, say, a file that is not
   marked as ready, which the tracker removes or the next opener makes anew;
   killed later, a file that the tracker removes. If the tracker is killed, the
   next opener starts another one, and a file that no process uses is made anew
   by its opener. */

enum {
  CONC__BYTE_OPENS = CONC__PROCESSES,
  CONC__BYTE_USES,
  CONC__BYTE_TRACKS
};

/* Held by the task that opens memory by name, init() included: one task at a
   time in a process. */
static conc_lock conc__shared_opening;

/* Closes all descriptors but 0, however many there are. */
CONC__PRIVATE void conc__close_others(void) {
  long n = sysconf(_SC_OPEN_MAX);
  int fd;
#ifdef SYS_close_range /* Linux 5.9 */
  if (syscall(SYS_close_range, 1u, ~0u, 0u) == 0) return;
#endif
  if (n < 0 || n > 1 << 20) n = 1 << 20;
  for (fd = 1; fd < (int)n; fd++) close(fd);
}

/* --- memory by name: the tracker --- */

/* What the tracker of the file that is open as `fd` does until its end. It is
   a fork of a process that may have had threads: so it makes system calls
   only, and no allocation. */
CONC__PRIVATE void conc__tracker_main(const char *path, int fd) {
  struct stat is, was;
  const conc__region *g;
  sigset_t all;
  short type = F_WRLCK;
  /* Signals to a group of processes, from a terminal, say, are not for it. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  if (fstat(fd, &was) != 0 || chdir("/") != 0) return;
  /* Opened anew, as descriptor 0: the inherited one shares the lock on USES
     with the process that opened the file. */
  close(0);
  if (open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC) != 0) return;
  /* Nothing that was inherited is in use here. Descriptors would keep other
     programs' pipes and sockets open. And the inherited descriptors of named
     files, as well as their mappings, which hold the open file, too, would
     keep the lock on USES, for which this process would wait for ever. */
  conc__close_others();
  for (g = conc__regions; g != NULL; g = g->next)
    munmap((char *)(void *)g->registry - conc__page,
           conc__page + conc__region_mapped(g));
  /* The name may belong to a later file by now, which has its own tracker. */
  if (fstat(0, &is) != 0 || is.st_ino != was.st_ino) return;
  /* Two openers may have started a tracker each: one of them is enough. */
  if (conc__record_lock(0, F_SETLK, CONC__BYTE_TRACKS, 1, &type) != 0) return;
  type = F_WRLCK;
  /* Returns when no process uses the file. This one has OPENS from here on:
     no other can begin to use the file before it is removed. */
  if (conc__record_lock(0, F_SETLKW, 0, CONC__BYTE_USES + 1, &type) != 0)
    return;
  /* Without a name the path is another file's: an opener whose init() failed
     has removed this one. */
  if (fstat(0, &is) == 0 && is.st_nlink > 0) unlink(path);
}

/* Sees to it that there is a tracker; the caller has OPENS. It must outlive
   this process: so it is in a session of its own, and forked twice, which
   makes it no child of ours that we would have to wait for. 0 or negative
   errno. */
CONC__PRIVATE int conc__tracker_start(const char *path, int fd) {
  short type = F_WRLCK;
  pid_t pid;
  /* A tracker that is there has not got OPENS, for we have it: so it will not
     remove the file before we use it. */
  if (conc__record_lock(fd, F_GETLK, CONC__BYTE_TRACKS, 1, &type) == 0 &&
      type != F_UNLCK)
    return 0;
  pid = fork();
  if (pid < 0) return -errno;
  if (pid == 0) {
    setsid();
    if (fork() == 0) conc__tracker_main(path, fd);
    _exit(0);
  }
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
  }
  return 0;
}

/* --- memory by name: opening it --- */

/* Opens the file, and locks OPENS. A descriptor, or negative errno; *size is
   the file's. The file is made here if there is none, so two processes that do
   the same at this moment open the same file, and one of them has OPENS. */
CONC__PRIVATE int conc__named_file(const char *path, off_t *size) {
  for (;;) {
    struct stat st;
    int rc = 0;
    int fd = conc__fd_lift(
        open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd < 0) return fd == -ELOOP ? -EACCES : fd; /* a link */
    /* /dev/shm and /tmp are open to all users: a file that another user made,
       or may change, is no place for memory. */
    if (fstat(fd, &st) != 0)
      rc = -errno;
    else if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
             (st.st_mode & 077) != 0)
      rc = -EACCES;
    while (rc == 0) {
      short type = F_WRLCK;
      if (conc__record_lock(fd, F_SETLK, CONC__BYTE_OPENS, 1, &type) == 0)
        break;
      /* Not F_SETLKW: another process's init() may take long, and this may be
         a coroutine, or be cancelled. */
      rc = errno == EAGAIN || errno == EACCES ? conc_sleep(1e-3) : -errno;
    }
    /* Looked at with the lock held. Without a name it was removed between our
       open() and our lock: by the tracker, or by an opener whose init()
       failed. Then there is another file of that name, or none. */
    if (rc == 0 && fstat(fd, &st) != 0) rc = -errno;
    if (rc == 0 && st.st_nlink > 0) {
      *size = st.st_size;
      return fd;
    }
    close(fd);
    if (rc != 0) return rc;
  }
}

/* From now on the file is in use as long as the descriptor is open in any
   process, so also in forked children that have no entry yet. Where there are
   no such locks, a child gets its entry at once: conc__shared_fork_child. */
CONC__PRIVATE void conc__named_use(int fd) {
#ifdef F_OFD_SETLK
  short type = F_RDLCK;
  conc__record_lock(fd, F_OFD_SETLK, CONC__BYTE_USES, 1, &type);
#else
  (void)fd;
#endif
}

/* --- memory by name: making it --- */

/* Whether the file of this size, whose OPENS we have, holds memory that is
   ready and in use: 1 and it is mapped as it is; 0 and it is made anew;
   -EINVAL if it is of another size than `want` (in whole pages with the
   registry: `all`) or of another version of this library; negative errno. */
CONC__PRIVATE int conc__named_is_made(int fd, off_t size, uint64_t want,
                                      off_t all) {
  struct conc__registry old;
  short type = F_WRLCK;
  memset(&old, 0, sizeof old);
  if (size > 0 && pread(fd, &old, sizeof old, 0) < 0) return -errno;
  /* Not marked as ready: it is new, or its maker died in init(), which may
     have left anything. */
  if (old.made == 0) return 0;
  /* No process has an entry, or the file open: it is left from a time without
     a tracker. Our own lock on OPENS does not count as another one's. */
  if (conc__record_lock(fd, F_GETLK, 0, CONC__BYTE_USES + 1, &type) != 0 ||
      type == F_UNLCK)
    return 0;
  return old.made == CONC__REGISTRY_READY && old.size == want && size == all
             ? 1
             : -EINVAL;
}

/* Maps the memory of an open file whose OPENS we have, and makes it if it has
   not been made. g->size is what the caller asked for, and is in whole pages
   afterwards. 0 or negative errno; then g->registry says whether g is on the
   list, and is the owner of `fd`. */
CONC__PRIVATE int conc__named_make(conc__region *g, const char *path, int fd,
                                   off_t size, int (*init)(void *, void *),
                                   void *arg) {
  size_t page = conc__page;
  size_t head = (sizeof *g->registry + page - 1) / page * page;
  size_t pages = (g->size + page - 1) / page * page;
  struct conc__registry *r;
  uint64_t want = g->size;
  int rc = 0;
  int made = conc__named_is_made(fd, size, want, (off_t)(head + pages));
  if (made < 0) return made;
  /* To nothing first: whatever was in there becomes zeros. */
  if (!made && (ftruncate(fd, 0) != 0 ||
                ftruncate(fd, (off_t)(head + pages)) != 0))
    return errno == EFBIG || errno == ENOSPC ? -ENOMEM : -errno;
  r = (struct conc__registry *)conc__registry_map(fd, head + pages);
  if (r == NULL) return -errno;
  g->size = pages;
  g->users = conc__registry_local(r)->users = 1;
  g->registry = r;
  g->memory = (char *)(void *)r + head;
  /* On the list before init(), whose ..._init_shared look their registry up
     there; and before the entry, which a fork must find, to take it from the
     child. */
  conc__mutex_lock(&conc__shared_guard);
  g->next = conc__regions;
  conc__regions = g;
  conc__mutex_unlock(&conc__shared_guard);
  /* Both before there is a tracker, and OPENS is given back after all: at no
     moment does the file look as if no process used it. */
  if (conc__registry_self(r) == 0) rc = -EAGAIN;
  conc__named_use(fd);
  if (rc == 0) rc = conc__tracker_start(path, fd);
  if (rc == 0 && !made) {
    r->size = want;
    if (init != NULL) rc = init(g->memory, arg);
    /* The mark comes last: a process that is killed before it, in init(), say,
       leaves a file that the next opener makes anew. */
    if (rc >= 0) CONC__STORE(&r->made, CONC__REGISTRY_READY);
  }
  if (rc >= 0) return 0;
  /* Others that have opened it see so as soon as they have OPENS. */
  if (!made) unlink(path);
  return rc;
}

/* --- conc_shared_open --- */

/* Whether memory may have that name and that size: 0, -EINVAL, -ENOMEM. A name
   becomes part of a path, so what it may hold is listed, and '/' is not. */
CONC__PRIVATE int conc__named_check(const char *name, size_t size) {
  static const char allowed[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  size_t length = strlen(name);
  if (length == 0 || length > 200 || strspn(name, allowed) != length)
    return -EINVAL;
  if (size == 0) return -EINVAL;
  return size > SIZE_MAX / 4 ? -ENOMEM : 0;
}

/* Maps memory by a name that this process does not have yet. The caller has
   conc__shared_opening, and with it the promise that no other thread opens the
   file: record locks belong to the process, so two threads would not exclude
   each other, and the one to close its descriptor would drop all locks. */
CONC__PRIVATE int conc__named_map(const char *name, size_t size,
                                  int (*init)(void *, void *), void *arg,
                                  void **out) {
  size_t length = strlen(name);
  conc__region *g = (conc__region *)CONC_MALLOC(sizeof *g + length + 1);
  char path[256];
  off_t was = 0;
  short type = F_UNLCK;
  int fd, rc;
  if (g == NULL) return -ENOMEM;
  memset(g, 0, sizeof *g);
  g->size = size;
  g->name = (char *)memcpy(g + 1, name, length + 1);
  snprintf(path, sizeof path, "%s/conc.%s",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
  rc = fd = conc__named_file(path, &was);
  if (fd >= 0) rc = conc__named_make(g, path, fd, was, init, arg);
  if (rc >= 0) {
    /* Last: only now may the next process see the memory, or the tracker ask
       if it is in use, which it is by the entry that we hold. */
    conc__record_lock(fd, F_SETLK, CONC__BYTE_OPENS, 1, &type);
    *out = g->memory;
    return 0;
  }
  /* Either way the descriptor is closed, and the first byte free by that. */
  if (g->registry != NULL) {
    conc__region_drop(g);
  } else {
    if (fd >= 0) close(fd);
    CONC_FREE(g);
  }
  return rc;
}

/* The memory of a name, in *out: 0, or negative errno. The caller has
   conc__shared_opening, so no name is looked for while it is being made. */
CONC__PRIVATE int conc__named_open(const char *name, size_t size,
                                   int (*init)(void *, void *), void *arg,
                                   void **out) {
  conc__region *g;
  int rc = conc__named_check(name, size);
  CONC__CHECK(conc__lock_is_mine(&conc__shared_opening, conc__self()->id));
  if (rc != 0) return rc;
  g = conc__region_find(NULL, name); /* has one user more now */
  if (g == NULL) return conc__named_map(name, size, init, arg, out);
  if (g->registry->size != size) {
    conc__region_drop(g);
    return -EINVAL;
  }
  *out = g->memory;
  return 0;
}

CONC_API void *conc_shared_open(const char *name, size_t size,
                                int (*init)(void *memory, void *arg),
                                void *arg) {
  void *memory = NULL;
  int rc;
  conc__shared_init();
  rc = conc_lock_acquire(&conc__shared_opening, CONC_FOREVER);
  /* -EOWNERDEAD: a thread of our parent was opening memory when we were
     forked. That is the parent's business; the lock is ours. */
  if (rc == 0 || rc == -EOWNERDEAD) {
    rc = conc__named_open(name, size, init, arg, &memory);
    conc_lock_release(&conc__shared_opening);
  }
  if (memory == NULL) errno = -rc;
  return memory;
}

/* ---------------------------------------------------------------------------
   >>process: children and their ends

   Holds: starting a process by fork() or by executing the program again, what
   a forked child does before its target runs, noticing a child's end, signals.
   Uses: tasks, stacks (for a child of a coroutine), the registry's init.
   Used by: >>popen, which executes other programs, and >>procpool.

   Starting. The starter holds conc__processes_guard from before it opens the
   first descriptor for a child until the child is on the list. Every fork() in
   the process takes this guard, too (conc__process_fork_prepare): so no other
   child inherits descriptors that are meant for this one.

   Ending. A child is on the list conc__processes until conc__process_reap has
   waited for it. Nothing else waits for it, signals are sent to children on
   the list only, and both happen under the guard. The kernel keeps a process's
   number until the process has been waited for: so a signal never meets a
   stranger that was given the number meanwhile. Then the task is finished like
   any other task: hence joining a process needs no wait of its own.

   Noticing. The reaper is a thread that polls the children's pidfds. It stays
   for a while without children, and without a poller, for the children that
   are started next. Where there are no pidfds, each child has a thread that
   sleeps in waitid(). A program that is known only to a thread in conc_call or
   conc_check_output is polled for and reaped by that thread itself (own_reaper
   of the task): that is one wake-up instead of two.

   The order of locks, of this room and of the rooms of pools. A thread may
   take a lock that stands below those that it holds:

     the guard of a pool (conc__pool_data)      >>jobs, >>procpool
     conc__processes_guard
     conc__shared_guard                         >>registry
     the guards of objects, one at a time       >>park

   A fork takes them in this order as well, but for the guards of pools: a
   child never takes those, since its pools are gone (conc__pool_is_gone).
   Tasks are finished, and callbacks called, with none of them held.
   ------------------------------------------------------------------------ */

/* Held while a process is started, reaped or sent a signal, and by each fork.
   The variables of the reaper, and the lists, change under it. */
static conc__mutex conc__processes_guard;
static conc_task *conc__processes; /* children that have not been reaped */
static unsigned conc__process_numbers, conc__popen_numbers; /* atomic */
static int conc__reaper_poller = -1; /* its epoll descriptor; -1: none now */
static size_t conc__reaper_children; /* how many pidfds are in the poller */
static int conc__parent_fd = -1; /* in a daemon: at its end of file the parent
                                    has ended; -1: this is no daemon */
static pthread_once_t conc__process_once = PTHREAD_ONCE_INIT;
static struct conc__target *conc__targets; /* made before main() begins */
static const char *conc__program; /* argv[0]; NULL: conc_main was not called */

#ifdef __cplusplus
extern "C" {
#endif
extern char **environ;
#ifdef __cplusplus
}
#endif

/* The descriptors of a child in the making. They are on the list while the
   starter is in fork() and the guard is not its own: another child that is
   forked at this moment closes them. */
typedef struct conc__child_fds {
  int *fds[8]; /* where they are kept; a value of -1 is none */
  int count;   /* of fds */
  struct conc__child_fds *next;
} conc__child_fds;

static conc__child_fds *conc__makings;

/* --- threads of the library's own --- */

/* What a new helper thread finds on the stack of the thread that starts it. */
typedef struct conc__helper {
  void *(*fn)(void *);
  uintptr_t arg;
  unsigned begun; /* 1: the helper no longer needs this struct */
} conc__helper;

/* Copies what it is to do, and tells the starter, whose stack is not touched
   after that. */
CONC__PRIVATE void *conc__helper_main(void *arg) {
  conc__helper *h = (conc__helper *)arg;
  void *(*fn)(void *) = h->fn;
  uintptr_t of = h->arg;
  CONC__STORE(&h->begun, 1u);
  conc__futex_wake(&h->begun, 1, false);
  return fn((void *)of);
}

/* Starts a detached thread of the library's own, in which no signal is
   handled: signals are for the program's threads. The thread has begun when
   this returns, since a fork should not meet a thread that is half made: the
   locks of AddressSanitizer are not for that. 0 or negative errno. */
CONC__PRIVATE int conc__helper_start(void *(*fn)(void *), uintptr_t arg) {
  pthread_attr_t attr;
  pthread_t id;
  sigset_t all, old;
  conc__helper h;
  int rc = -pthread_attr_init(&attr);
  if (rc != 0) return rc;
  h.fn = fn;
  h.arg = arg;
  h.begun = 0;
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  /* The new thread inherits the mask: so it is set before, and there is no
     moment at which the thread could handle a signal. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  rc = -pthread_create(&id, &attr, conc__helper_main, &h);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attr);
  while (rc == 0 && CONC__LOAD(&h.begun) == 0)
    conc__futex_wait(&h.begun, 0, CONC__NEVER, false);
  return rc;
}

/* --- the end of a child --- */

/* Closes the poller if there is no child that needs it, and none in the
   making: a starter that is in fork() counts on the poller that it has opened.
   The guard is held. */
CONC__PRIVATE void conc__reaper_close(void) {
  CONC__CHECK(conc__mutex_is_held(&conc__processes_guard));
  if (conc__reaper_poller < 0 || conc__reaper_children > 0 ||
      conc__makings != NULL)
    return;
  close(conc__reaper_poller);
  conc__reaper_poller = -1;
}

/* Closes what the parent has of a child. Not by conc_close: no loop knows
   these descriptors, and a forked child calls this before its own loop
   works. */
CONC__PRIVATE void conc__process_fds_close(conc_task *t) {
  if (t->as.process.pidfd >= 0) close(t->as.process.pidfd);
  if (t->as.process.life >= 0) close(t->as.process.life);
}

/* Takes the exit code of a child that has ended, removes what the parent has
   of it, and finishes its task. Called by the reaper, by the child's own
   thread, or by the starter with own_reaper; each child has one of these. May
   be called too early: then nothing happens. */
CONC__PRIVATE void conc__process_reap(conc_task *t) {
  int status = 0;
  int code = CONC_NO_EXITCODE;
  pid_t pid;
  conc__mutex_lock(&conc__processes_guard);
  do pid = waitpid(t->pid, &status, WNOHANG);
  while (pid < 0 && errno == EINTR);
  if (pid == 0) { /* it runs still: the poller told of it for no reason */
    conc__mutex_unlock(&conc__processes_guard);
    return;
  }
  /* A negative pid: the program has waited for the child itself, against what
     the manual says. The code is lost then, and the task ends all the same. */
  if (pid > 0)
    code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  /* From here the number may belong to another process: conc__process_signal,
     which looks at the link under this guard, sends no more signals. */
  CONC__CHECK(t->link != NULL);
  conc__task_unlink(t);
  t->link = NULL;
#if CONC_HAVE_PIDFD
  if (t->as.process.pidfd >= 0 && !t->as.process.own_reaper) {
    struct epoll_event e; /* only kernels before 2.6.9 look at it */
    /* Taken out explicitly: a child that has just been forked may have a
       duplicate of the pidfd, so closing ours would not take it out. */
    CONC__CHECK(conc__reaper_children > 0);
    conc__reaper_children--;
    conc__reaper_close();
    if (conc__reaper_poller >= 0)
      epoll_ctl(conc__reaper_poller, EPOLL_CTL_DEL, t->as.process.pidfd, &e);
  }
#endif
  conc__process_fds_close(t);
  t->exitcode = code;
  conc__mutex_unlock(&conc__processes_guard);
  /* Without the guard: the callback may start another process. After this the
     task may be freed. */
  conc__task_finish(t, NULL, code < 0 ? -ECHILD : 0);
}

/* The thread of one child, where there are no pidfds: sleeps until the child
   has ended. The child is named by its task's number, not by the task's
   address: so this touches no task that is not on the list. */
CONC__PRIVATE void *conc__process_await_main(void *arg) {
  siginfo_t info;
  conc_task *t;
  pid_t pid = 0;
  conc__mutex_lock(&conc__processes_guard);
  for (t = conc__processes; t != NULL; t = t->next)
    if (t->number == (uintptr_t)arg) break;
  if (t != NULL) pid = t->pid;
  conc__mutex_unlock(&conc__processes_guard);
  if (t == NULL) return NULL; /* it could not be started after all */
  /* WNOWAIT leaves the process as it is, so that conc__process_reap can wait
     for it under the guard. Until then the number stays taken: so it is safe
     to use it here without the guard. */
  while (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) < 0 &&
         errno == EINTR) {
  }
  conc__process_reap(t);
  return NULL;
}

/* --- the reaper --- */

#if CONC_HAVE_PIDFD

/* Seconds that the reaper stays without children: starting a thread costs as
   much as a fork, and programs start children one after another. */
#define CONC__REAPER_STAYS 0.1

/* A futex. 1: the reaper sleeps, or is about to, since there is no child.
   Written by the reaper under the guard; the starter that wakes it clears it,
   so that the sleep does not begin if it has not yet. */
static unsigned conc__reaper_sleeps;
static bool conc__reaper_lives; /* the thread exists, and takes the guard once
                                   more before it ends */

/* The reaper's thread. It is in one of two waits: for the ends of children in
   the poller, or, if there are none, on conc__reaper_sleeps until a child is
   started or CONC__REAPER_STAYS is over. Which one it is to be, and whether to
   end, is decided under the guard: so a starter, which holds it, either finds
   a reaper that will look again, or starts a new one. */
CONC__PRIVATE void *conc__reaper_main(void *arg) {
  struct epoll_event e[64];
  double until = 0;
  int poller, i, n;
  for (;;) {
    conc__mutex_lock(&conc__processes_guard);
    /* An open poller is not waited in before it holds a child: if the child
       cannot be made after all, nothing would end the wait. */
    poller = conc__reaper_children > 0 ? conc__reaper_poller : -1;
    CONC__STORE(&conc__reaper_sleeps, poller < 0 ? 1u : 0u);
    if (conc__reaper_poller >= 0)
      until = 0; /* a starter has opened it, and counts on this thread */
    else if (until > 0 && conc_now() >= until)
      break;
    conc__mutex_unlock(&conc__processes_guard);
    if (poller < 0) {
      if (until <= 0) until = conc_now() + CONC__REAPER_STAYS;
      conc__futex_wait(&conc__reaper_sleeps, 1, until, false);
      continue;
    }
    /* The poller holds children, which only this thread reaps, and it is not
       closed before they are: so the descriptor stays good meanwhile. */
    n = epoll_wait(poller, e, 64, -1);
    for (i = 0; i < n; i++) conc__process_reap((conc_task *)e[i].data.ptr);
  }
  conc__reaper_lives = false;
  conc__mutex_unlock(&conc__processes_guard);
  return arg;
}

#endif

/* Sees to it that the end of the next child will be noticed. Called before the
   child is made, because this can fail. The guard is held. 0 or negative
   errno. */
CONC__PRIVATE int conc__reaper_open(conc_task *t) {
#if CONC_HAVE_PIDFD
  static bool known, missing; /* older kernels have no pidfds */
  int rc;
  CONC__CHECK(conc__mutex_is_held(&conc__processes_guard));
  if (!known) {
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    /* EPERM is what a sandbox answers that does not know the call. Other
       errors (there may be no descriptors left now) say nothing about the
       kernel: the question stays open. */
    if (fd < 0 && errno != ENOSYS && errno != EPERM) return -errno;
    missing = fd < 0;
    known = true;
    if (fd >= 0) close(fd);
  }
  if (!missing) {
    if (conc__reaper_poller >= 0 || t->as.process.own_reaper) return 0;
    conc__reaper_poller = epoll_create1(EPOLL_CLOEXEC);
    if (conc__reaper_poller < 0) return -errno;
    if (conc__reaper_lives) return 0;
    rc = conc__helper_start(conc__reaper_main, 0);
    conc__reaper_lives = rc == 0;
    if (rc != 0) conc__reaper_close();
    return rc;
  }
#endif
  t->as.process.own_reaper = false; /* conc__process_add starts its thread */
  return 0;
}

/* Enters a child that has just been made: from now on its end is noticed, and
   signals reach it. If that fails, for want of descriptors or threads, the
   child is killed and waited for here: its target has hardly begun. The guard
   is held. 0 or negative errno. */
CONC__PRIVATE int conc__process_add(conc_task *t, pid_t pid) {
  int rc = 0;
  CONC__CHECK(conc__mutex_is_held(&conc__processes_guard));
  CONC__CHECK(t->link == NULL);
  t->pid = pid;
#if CONC_HAVE_PIDFD
  if (conc__reaper_poller >= 0 || t->as.process.own_reaper) {
    bool own = t->as.process.own_reaper;
    struct epoll_event e;
    memset(&e, 0, sizeof e);
    e.events = EPOLLIN;
    e.data.ptr = t;
    t->as.process.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (t->as.process.pidfd < 0 ||
        (!own && epoll_ctl(conc__reaper_poller, EPOLL_CTL_ADD,
                           t->as.process.pidfd, &e) < 0))
      rc = -errno;
    else if (!own)
      conc__reaper_children++;
  } else
#endif
    rc = conc__helper_start(conc__process_await_main, t->number);
  if (rc != 0) {
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    conc__fd_close(&t->as.process.pidfd);
    return rc;
  }
  conc__task_link(&conc__processes, t);
  return 0;
}

/* --- fork --- */

/* fork() by a starter, which holds the guard before and after it, in the
   parent. Not in between: another conc.h in this process, a static one of a
   shared library, has such a guard, too, and fork() takes all of them in one
   order. So the guard is given up here, and taken again by fork() itself,
   through conc__process_fork_prepare; conc__process_fork_parent then leaves it
   to the starter. Returns what fork() does, or negative errno. */
CONC__PRIVATE pid_t conc__process_do_fork(conc__child_fds *making) {
  conc__child_fds **m = &conc__makings;
  pid_t pid;
  CONC__CHECK(conc__mutex_is_held(&conc__processes_guard));
  CONC__CHECK(making->count <=
              (int)(sizeof making->fds / sizeof *making->fds));
  making->next = conc__makings;
  conc__makings = conc__this.making = making;
  /* Between here and the fork another thread's fork may come first: its child
     finds our descriptors on the list, and closes them. */
  conc__mutex_unlock(&conc__processes_guard);
  pid = fork();
  if (pid < 0) pid = -errno;
  conc__this.making = NULL;
  /* The child has left the list to conc__process_fork_child. */
  if (pid == 0) return pid;
  CONC__CHECK(conc__mutex_is_held(&conc__processes_guard));
  while (*m != making) m = &(*m)->next;
  *m = making->next;
  return pid;
}

/* Before a fork, of whatever thread: waits until no start of a process and no
   reap is half done. */
CONC__PRIVATE void conc__process_fork_prepare(void) {
  conc__mutex_lock(&conc__processes_guard);
}

/* After a fork, in the parent: gives the guard back, but for the fork of a
   starter, which goes on under it. */
CONC__PRIVATE void conc__process_fork_parent(void) {
  if (conc__this.making == NULL) conc__mutex_unlock(&conc__processes_guard);
}

/* In a forked child. The parent's children are none of its own: it cannot wait
   for them, so their tasks end here with -ECHILD. What the parent has open to
   notice their ends, and for children in the making, is closed. */
CONC__PRIVATE void conc__process_fork_child(void) {
  conc_task *t = conc__processes;
  conc_task *next;
  int i;
  conc__processes_guard.word = 0;
  conc__processes = NULL;
  /* A child of conc__process_do_fork keeps what is in its own making: that is
     meant for it. */
  for (; conc__makings != NULL; conc__makings = conc__makings->next)
    for (i = 0; i < conc__makings->count; i++)
      if (conc__makings != conc__this.making && *conc__makings->fds[i] >= 0)
        close(*conc__makings->fds[i]);
  /* The poller is shared with the parent: a change here would be one there.
     The reaper's thread is not here. */
  if (conc__reaper_poller >= 0) close(conc__reaper_poller);
  if (conc__parent_fd >= 0) close(conc__parent_fd);
  conc__reaper_poller = conc__parent_fd = -1;
  conc__reaper_children = 0;
#if CONC_HAVE_PIDFD
  conc__reaper_lives = false;
#endif
  /* The list is gone before the tasks end: one that is joined here may be
     freed or started anew at once. */
  for (; t != NULL; t = next) {
    next = t->next;
    t->link = NULL;
    conc__process_fds_close(t);
    conc__task_end_stayed_in_parent(t);
  }
}

/* The registry's row of the table of forks comes first: see
   conc__shared_init. */
CONC__PRIVATE void conc__process_init_once(void) {
  static const conc__fork_row row = {conc__process_fork_prepare,
                                     conc__process_fork_parent,
                                     conc__process_fork_child};
  conc__shared_init();
  conc__fork_enter(CONC__FORK_PROCESS, &row);
}

/* --- a process as its parent sees it --- */

static const conc__kind conc__process_kind = {
    "Process", true, false, false, conc_terminate, NULL, NULL, NULL, NULL};

/* Readies a task to be started as a process, by the counter that its default
   name comes from. `first` keeps the numbers of programs apart from the
   numbers of processes, since conc__process_await_main looks for a child by
   its number. 0 or what conc__task_begin returns. */
CONC__PRIVATE int conc__process_begin(conc_task *t, unsigned *numbers,
                                      unsigned first) {
  int rc;
  pthread_once(&conc__process_once, conc__process_init_once);
  conc__self();
  rc = conc__task_begin(t, &conc__process_kind);
  if (rc != 0) return rc;
  t->number = first + __atomic_add_fetch(numbers, 1u, __ATOMIC_RELAXED);
  t->pid = 0;
  t->exitcode = CONC_NO_EXITCODE;
  t->as.process.pidfd = t->as.process.life = -1;
  t->as.process.own_reaper = false;
  t->link = NULL;
  return 0;
}

/* --- what a forked child leaves behind --- */

/* In a forked child of conc_process_start. conc__fork_child took the thread
   that forked, and the coroutines of its loop, for the child's own, as after
   any fork(). But here none of them goes on: the target runs in their place.
   So they end as what stayed behind does, with -ECHILD, and what they held for
   reading is recounted. */
CONC__PRIVATE void conc__process_abandon(void) {
  conc__loop *loop = conc__this.loop;
  conc__actor *self = &conc__this.actor;
  conc_task *mine = conc__this.base != NULL ? conc__this.base : self->task;
  conc_task *tasks = loop != NULL ? loop->tasks : NULL;
  conc_task *t, *next;
  conc_rwlock *reads[CONC__READS + 1];
  int i;
  /* The caller's own read locks are remembered, then taken from it: a recount
     must not count the caller as a reader any more. */
  memcpy(reads, self->reads, sizeof self->reads);
  reads[CONC__READS] = self->changing;
  memset(self->reads, 0, sizeof self->reads);
  self->changing = NULL;
  self->more_reads = 0;
  self->waiting = NULL;
  /* From here on this is a thread without a loop, without a worker, and
     without a generator or a job. The survivors are forgotten, so that locks
     which they hold say -EOWNERDEAD. */
  conc__this.loop = NULL;
  conc__this.base = NULL;
  conc__this.worker = NULL;
  conc__survivors_count = 0;
  memset(conc__stuck, 0, sizeof conc__stuck);
  /* First all coroutines are taken off the lists that they wait on, then read
     locks are recounted, then the tasks end: a recount, and the end of a task,
     wake waiters, among which there must be none that has been left behind. */
  for (t = tasks; t != NULL; t = t->next) conc__fork_bury(t);
  for (i = 0; i <= CONC__READS; i++) conc__fork_recount(reads[i]);
  for (t = tasks; t != NULL; t = next) {
    next = t->next;
    conc__fork_end(t);
  }
  /* The loop itself is left as it is: its memory is not freed, since this may
     be running on one of its stacks. */
  if (loop != NULL) {
    conc__poller_close(loop);
    conc__waker_close(loop->waker);
  }
  conc__task_unlink(mine);
  if (mine->kind->joinable) conc__task_end_stayed_in_parent(mine);
}

/* --- a daemon ends with its parent --- */

/* The thread of a daemon, where there is no signal for it: sleeps until the
   end of file, when the last copy of the other end of the pipe is closed. */
CONC__PRIVATE void *conc__parent_watch(void *arg) {
  char byte;
  ssize_t n;
  do n = read((int)(intptr_t)arg, &byte, 1);
  while (n < 0 && errno == EINTR);
  if (n == 0) kill(getpid(), SIGKILL);
  return arg;
}

/* Lets this process, a daemon, end with its parent. The parent alone has the
   other end of the pipe `fd`, and the kernel closes it however the parent
   ends. The end is by SIGKILL, which no handler of the program can hold up. 0
   or negative errno. */
CONC__PRIVATE int conc__parent_watch_start(int fd) {
#if CONC_HAVE_SETSIG
  if (fcntl(fd, F_SETOWN, getpid()) == 0 &&
      fcntl(fd, F_SETSIG, SIGKILL) == 0 && fcntl(fd, F_SETFL, O_ASYNC) == 0) {
    /* The signal comes for changes from now on: the parent may have ended
       already. */
    if (conc_wait_fd(fd, CONC_READ, 0) > 0) kill(getpid(), SIGKILL);
    return 0;
  }
#endif
  return conc__helper_start(conc__parent_watch, (uintptr_t)fd);
}

/* --- the life of a child --- */

/* A process as it sees itself: the task that its parent has started. The
   child does not join, cancel or signal it. */
static const conc__kind conc__own_process_kind = {
    "Process", true, false, false, NULL, NULL, NULL, NULL, NULL};

/* Runs the target as this process's own task, in its main thread. Returns the
   exit code; 255 if a daemon cannot be bound to its parent, since it must not
   outlive it. */
CONC__PRIVATE int conc__process_main(conc_task *t) {
  conc__actor *self;
  void *result;
  t->kind = &conc__own_process_kind;
  t->pid = getpid();
  t->exitcode = CONC_NO_EXITCODE;
  /* conc_current() and the lists of threads must know the task before the
     target, or a destructor of a conc_local, can ask. */
  self = conc__thread_enter(t);
  conc__threads_enter(t);
  if (conc__parent_fd >= 0 && conc__parent_watch_start(conc__parent_fd) != 0)
    return 255;
  conc__task_run(t, self, &result);
  conc__locals_end(t);
  return (int)((uintptr_t)result & 255);
}

/* In a forked child: what conc__process_child is to run, which takes no
   argument because a fiber's entry has none. */
static conc_task *conc__process_own_task;

/* All of a forked child. It leaves by _exit: functions of atexit() are the
   parent's, so stdio is flushed by hand. */
CONC__PRIVATE void conc__process_child(void) {
  int code;
  conc__process_abandon();
  code = conc__process_main(conc__process_own_task);
  fflush(NULL);
  _exit(code);
}

/* conc__process_child, as the entry of a fiber: for the child of a coroutine
   or a generator. */
CONC__PRIVATE void conc__process_child_fiber(void) {
  conc__fiber_entered(&conc__this.current->fiber);
  conc__process_child();
}

/* In the child, right after the fork; does not return. The target is to run
   as a plain thread. The stack of a coroutine, or of a generator, is too
   small for that: then a new one is mapped, of .stack_size or 8 MiB, and
   switched to. If there is no memory for it, the target runs where the fork
   was called. */
CONC__PRIVATE void conc__process_child_begin(conc_task *t, const int life[2]) {
  conc__actor *self = conc__self();
  conc__coro *co = NULL;
  conc__process_own_task = t;
  conc__parent_fd = life[0];
  /* The writing end is the parent's alone: with a copy here the daemon would
     keep itself alive. */
  if (life[1] >= 0) close(life[1]);
  if (conc__is_coro(self) || self->generator != NULL)
    co = conc__stack_map(t->stack_size > CONC_STACK_SIZE ? t->stack_size
                                                         : (size_t)8 << 20);
  if (co != NULL) {
    conc__fiber_init(&co->actor.fiber, co->map + conc__page,
                     (size_t)((unsigned char *)co - co->map) - conc__page,
                     conc__process_child_fiber);
    conc__fiber_switch(&self->fiber, &co->actor.fiber, true);
  }
  conc__process_child();
}

/* --- a start, in the parent --- */

/* Opens the pipe by which a daemon notices its parent's end: the child keeps
   life[0], the parent life[1]. Both are -1 for a task that is no daemon. 0 or
   negative errno. */
CONC__PRIVATE int conc__life_pipe_open(const conc_task *t, int life[2]) {
  life[0] = life[1] = -1;
  return t->daemon ? conc__fd_pipe(life) : 0;
}

/* The last step of every start, after a success (rc is 0, the child is there)
   and after a failure (rc is negative, there is no child): enters the child,
   or closes what was opened for it. Gives the guard back, with which it is
   called. Returns 0 or negative errno. */
CONC__PRIVATE int conc__process_start_finish(conc_task *t, pid_t pid, int rc,
                                             int life[2]) {
  CONC__CHECK(conc__mutex_is_held(&conc__processes_guard));
  conc__fd_close(&life[0]);
  t->as.process.life = life[1];
  if (rc == 0) rc = conc__process_add(t, pid);
  if (rc != 0) conc__fd_close(&t->as.process.life);
  conc__reaper_close(); /* the last other child may have ended meanwhile */
  conc__mutex_unlock(&conc__processes_guard);
#if CONC_HAVE_PIDFD
  /* The reaper is woken without the guard, which would only stop it again. It
     finds the child: it takes the guard before it looks. */
  if (CONC__LOAD(&conc__reaper_sleeps) && rc == 0) {
    CONC__STORE(&conc__reaper_sleeps, 0u);
    conc__futex_wake(&conc__reaper_sleeps, 1, false);
  }
#endif
  return rc;
}

/* Starts a process by fork(). In the child it does not return. 0 or negative
   errno. */
CONC__PRIVATE int conc__process_fork(conc_task *t) {
  conc__child_fds making;
  int life[2];
  pid_t pid = 0;
  int rc;
  /* The child would write what is buffered a second time. Not under the guard:
     a FILE may be locked by a thread that reads from it, for as long as that
     takes. */
  fflush(NULL);
  conc__mutex_lock(&conc__processes_guard);
  /* All that can fail comes before the fork; after it there is only the entry
     of the child. */
  rc = conc__life_pipe_open(t, life);
  if (rc == 0) rc = conc__reaper_open(t);
  if (rc == 0) {
    making.fds[0] = &life[0];
    making.fds[1] = &life[1];
    making.count = 2;
    pid = conc__process_do_fork(&making);
    if (pid == 0) conc__process_child_begin(t, life);
    if (pid < 0) rc = pid;
  }
  return conc__process_start_finish(t, pid, rc, life);
}

/* --- executing a program --- */

/* How a program is to be executed. */
typedef struct conc__exec {
  const char *path; /* sought in PATH if it has no '/' */
  const char *const *argv;
  const char *const *env; /* NULL: ours */
  const char *cwd;        /* NULL: ours */
  int stdio[3];           /* what becomes 0, 1, 2; -1: ours */
  int keep[2];            /* what it inherits besides; -1: nothing */
  bool err_to_out;        /* 2 becomes what 1 has become */
  bool new_group;         /* it leads a new process group */
  bool unblock;           /* no signal is blocked in it */
  conc__child_fds making; /* what was opened for it */
} conc__exec;

#if CONC_HAVE_SPAWN

/* Executes a program, by posix_spawn: that does not copy the caller's page
   tables, however large the caller is. Handlers of forks do not run, and need
   not: the library opens all descriptors close-on-exec. The guard is held: no
   fork of another thread meets what is open for this child. 0 and *pid, or
   negative errno, also of the execution itself. */
CONC__PRIVATE int conc__exec_start(conc__exec *x, pid_t *pid) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attr;
  sigset_t none;
  int rc = -posix_spawn_file_actions_init(&actions);
  int i;
  if (rc != 0) return rc;
  rc = -posix_spawnattr_init(&attr);
  for (i = 0; i < 3 && rc == 0; i++)
    if (x->stdio[i] >= 0)
      rc = -posix_spawn_file_actions_adddup2(&actions, x->stdio[i], i);
  /* After 1 has become what it is to be: actions are done in this order. */
  if (x->err_to_out && rc == 0)
    rc = -posix_spawn_file_actions_adddup2(&actions, 1, 2);
  for (i = 0; i < 2 && rc == 0; i++)
    if (x->keep[i] >= 0) /* onto itself: that clears close-on-exec */
      rc = -posix_spawn_file_actions_adddup2(&actions, x->keep[i],
                                             x->keep[i]);
  if (x->cwd != NULL && rc == 0)
    rc = -posix_spawn_file_actions_addchdir_np(&actions, x->cwd);
  sigemptyset(&none);
  if (x->unblock && rc == 0) rc = -posix_spawnattr_setsigmask(&attr, &none);
  if (rc == 0)
    rc = -posix_spawnattr_setflags(
        &attr, (short)((x->new_group ? POSIX_SPAWN_SETPGROUP : 0) |
                       (x->unblock ? POSIX_SPAWN_SETSIGMASK : 0)));
  if (rc == 0)
    rc = -posix_spawnp(pid, x->path, &actions, &attr,
                       (char *const *)(uintptr_t)x->argv,
                       x->env != NULL ? (char *const *)(uintptr_t)x->env
                                      : environ);
  posix_spawnattr_destroy(&attr);
  posix_spawn_file_actions_destroy(&actions);
  return rc;
}

#else

/* In the forked child: becomes the program. Returns only if a step has failed,
   with errno. */
CONC__PRIVATE void conc__exec_child(const conc__exec *x) {
  sigset_t none;
  int i;
  for (i = 0; i < 3; i++)
    if (x->stdio[i] >= 0 && dup2(x->stdio[i], i) < 0) return;
  if (x->err_to_out && dup2(1, 2) < 0) return;
  for (i = 0; i < 2; i++)
    if (x->keep[i] >= 0) fcntl(x->keep[i], F_SETFD, 0);
  if (x->new_group) setpgid(0, 0);
  if (x->cwd != NULL && chdir(x->cwd) < 0) return;
  if (x->env != NULL) environ = (char **)(uintptr_t)x->env;
  sigemptyset(&none);
  if (x->unblock) pthread_sigmask(SIG_SETMASK, &none, NULL);
  execvp(x->path, (char *const *)(uintptr_t)x->argv);
}

/* Executes a program by fork() and execvp(), where there is no posix_spawn
   that knows all we need. The child reports by a pipe: an errno if a step has
   failed; if the program has begun, the pipe closes without a word, since it
   is close-on-exec. The guard is held. 0 and *pid, or negative errno. */
CONC__PRIVATE int conc__exec_start(conc__exec *x, pid_t *pid) {
  int report[2];
  int error = 0;
  ssize_t n;
  int rc = conc__fd_pipe(report);
  if (rc != 0) return rc;
  x->making.fds[x->making.count++] = &report[0];
  x->making.fds[x->making.count++] = &report[1];
  /* Another child must not keep the pipe open: it would hold up the read. */
  *pid = conc__process_do_fork(&x->making);
  if (*pid == 0) {
    conc__exec_child(x);
    error = errno;
    n = write(report[1], &error, sizeof error);
    _exit(n == (ssize_t)sizeof error ? 127 : 126);
  }
  if (*pid < 0) rc = *pid;
  /* Or the read below would wait for our own copy. */
  conc__fd_close(&report[1]);
  if (rc == 0) {
    do n = read(report[0], &error, sizeof error);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof error) {
      /* Nothing else knows this child: it is waited for here, and is about to
         exit. */
      rc = -error;
      while (waitpid(*pid, NULL, 0) < 0 && errno == EINTR) {
      }
    }
  }
  conc__fd_close(&report[0]);
  return rc;
}

#endif

/* --- spawn --- */

CONC_API void conc_process_register(struct conc__target *target) {
  target->next = conc__targets;
  conc__targets = target;
}

/* A spawned process is told what to do by a file without a name, which it
   inherits: this head, the bytes at .arg, the target's name, the task's name.
   Its arguments are: argv[0], CONC__SPAWNED, the file's descriptor, and the
   life pipe's or -1. */
typedef struct conc__spawn_message {
  uint64_t magic;                  /* CONC__SPAWN_MAGIC */
  uint64_t size;                   /* bytes of .arg */
  uint64_t target_size, name_size; /* bytes of the names, each with its NUL */
} conc__spawn_message;

/* Changes with the form of the message: a program that was replaced on the
   disk by one with another conc.h meanwhile does not misread it. */
#define CONC__SPAWN_MAGIC 0x636f6e632e683031u
#define CONC__SPAWNED "--conc-process"

/* Writes all of it, to a file in memory. 0 or negative errno. */
CONC__PRIVATE int conc__file_put(int fd, const void *data, size_t size) {
  const char *p = (const char *)data;
  while (size > 0) {
    ssize_t n = write(fd, p, size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    p += n;
    size -= (size_t)n;
  }
  return 0;
}

/* Writes the message for a task. 0 or negative errno. */
CONC__PRIVATE int conc__spawn_message_write(int fd, const conc_task *t,
                                            const char *target,
                                            const char *name) {
  conc__spawn_message message;
  int rc;
  message.magic = CONC__SPAWN_MAGIC;
  message.size = t->size;
  message.target_size = strlen(target) + 1;
  message.name_size = strlen(name) + 1;
  rc = conc__file_put(fd, &message, sizeof message);
  if (rc == 0) rc = conc__file_put(fd, t->arg, t->size);
  if (rc == 0) rc = conc__file_put(fd, target, message.target_size);
  if (rc == 0) rc = conc__file_put(fd, name, message.name_size);
  return rc;
}

/* Starts a process by executing the program again, whose conc_main runs the
   target. 0; -EPERM if conc_main was not called, -EINVAL for a target that was
   not registered, or another negative errno. */
CONC__PRIVATE int conc__process_spawn(conc_task *t) {
  const struct conc__target *target = conc__targets;
  const char *argv[5];
  char number[2][16];
  int life[2];
  conc__exec x;
  pid_t pid = 0;
  int i, fd, rc;
  if (conc__program == NULL) return -EPERM;
  while (target != NULL && target->fn != t->target) target = target->next;
  if (target == NULL) return -EINVAL;
  conc__mutex_lock(&conc__processes_guard);
  /* Descriptors are opened from here on: under the guard, so that no other
     child inherits them. All that can fail comes before the execution. */
  fd = conc__file_open();
  rc = fd < 0 ? fd
              : conc__spawn_message_write(fd, t, target->name, conc_name(t));
  life[0] = life[1] = -1;
  if (rc == 0) rc = conc__life_pipe_open(t, life);
  if (rc == 0) rc = conc__reaper_open(t);
  if (rc == 0) {
    memset(&x, 0, sizeof x);
    /* The file that runs now, even if the name leads elsewhere by now: it must
       be the program that registered the target. */
    x.path = conc__program;
    if (CONC__LINUX && access("/proc/self/exe", X_OK) == 0)
      x.path = "/proc/self/exe";
    x.argv = argv;
    argv[0] = conc__program;
    argv[1] = CONC__SPAWNED;
    /* What the child inherits has the same number there: it reads it in its
       arguments. */
    x.keep[0] = fd;
    x.keep[1] = life[0];
    x.making.fds[x.making.count++] = &fd;
    x.making.fds[x.making.count++] = &life[0];
    x.making.fds[x.making.count++] = &life[1];
    for (i = 0; i < 3; i++) x.stdio[i] = -1;
    for (i = 0; i < 2; i++) {
      snprintf(number[i], sizeof *number, "%d", x.keep[i]);
      argv[2 + i] = number[i];
    }
    argv[4] = NULL;
    rc = conc__exec_start(&x, &pid);
  }
  /* The child has the file: it reads by offset, so that the position, which is
     shared, does not matter. */
  conc__fd_close(&fd);
  return conc__process_start_finish(t, pid, rc, life);
}

/* --- in a spawned process --- */

/* Runs what the message says. The message comes from another execution of this
   program, but it is looked at like any file: sizes must add up before
   anything is allocated. Returns the exit code; 127 if the message is not good
   or the target is not registered. */
CONC__PRIVATE int conc__spawn_message_run(int fd) {
  static conc_task t; /* threads may ask for it after this has returned */
  const struct conc__target *target = conc__targets;
  conc__spawn_message message;
  struct stat st;
  char *bytes = NULL;
  int code = 127;
  size_t size;
  if (fstat(fd, &st) < 0) return code;
  if (conc__file_get(fd, &message, sizeof message, 0) != 0) return code;
  size = (size_t)st.st_size - sizeof message;
  if (message.magic != CONC__SPAWN_MAGIC ||
      message.size + message.target_size + message.name_size != size)
    return code;
  bytes = (char *)CONC_MALLOC(size);
  if (bytes != NULL && conc__file_get(fd, bytes, size, sizeof message) == 0) {
    const char *name = bytes + message.size;
    /* Before the target runs: it should not find descriptors that it did not
       open. */
    close(fd);
    while (target != NULL && strcmp(target->name, name) != 0)
      target = target->next;
    if (target != NULL) {
      pthread_once(&conc__process_once, conc__process_init_once);
      t.target = target->fn;
      t.size = (size_t)message.size;
      t.arg = t.size > 0 ? bytes : NULL;
      t.name = name + message.target_size;
      code = conc__process_main(&t);
    }
  }
  fflush(NULL); /* what a destructor has written, too */
  return code;
}

CONC_API void conc_main(int argc, char **argv) {
  conc__program = argc > 0 ? argv[0] : NULL;
  if (argc != 4 || strcmp(argv[1], CONC__SPAWNED) != 0) return;
  conc__parent_fd = atoi(argv[3]);
  if (conc__parent_fd >= 0) conc__set_cloexec(conc__parent_fd);
  exit(conc__spawn_message_run(atoi(argv[2])));
}

/* --- what is public of processes --- */

CONC_API int conc_process_start(conc_task *task) {
  int rc = conc__process_begin(task, &conc__process_numbers, 0);
  if (rc != 0) return rc;
  conc_name(task); /* puts it into words now: so the child has it as well */
  rc = task->start_method == CONC_FORK    ? conc__process_fork(task)
       : task->start_method == CONC_SPAWN ? conc__process_spawn(task)
                                          : -EINVAL;
  if (rc != 0) conc__task_start_failed(task);
  return rc;
}

CONC_API pid_t conc_pid(const conc_task *task) { return task->pid; }

CONC_API int conc_exitcode(const conc_task *task) {
  if (!conc_event_is_set(&task->done) ||
      (task->kind != NULL && task->kind->no_exitcode))
    return CONC_NO_EXITCODE;
  return task->exitcode;
}

/* Sends a signal to a child that has not been reaped. The guard keeps it from
   being reaped in between: so the number is the child's own. 0, -ESRCH. */
CONC__PRIVATE int conc__process_signal(conc_task *t, int number) {
  int rc = -ESRCH;
  if (t->kind != &conc__process_kind) return rc;
  conc__mutex_lock(&conc__processes_guard);
  if (t->link != NULL) rc = kill(t->pid, number) < 0 ? -errno : 0;
  conc__mutex_unlock(&conc__processes_guard);
  return rc;
}

CONC_API int conc_terminate(conc_task *task) {
  return conc__process_signal(task, SIGTERM);
}

CONC_API int conc_kill(conc_task *task) {
  return conc__process_signal(task, SIGKILL);
}

/* ---------------------------------------------------------------------------
   >>popen: conc_popen: other programs

   Holds: what becomes 0, 1 and 2 of a program, its start, its end, the talk
   with it. A program is a child like any other: its task is the first member
   of conc_popen, and all but the start and the pipes is in >>process, under
   conc__processes_guard. The pipes belong to the caller; nothing here is
   shared between threads but the task.

   Uses: >>process, and the polling of threads and coroutines.
   Used by: nothing in the library.
   ------------------------------------------------------------------------ */

/* --- the start --- */

/* Opens what is to become descriptor `i` (0, 1, 2) of the program, as .std_in
   and its like (`what`) or a file's name say. *theirs is what becomes it, -1:
   the program has ours; *made: it was opened here, and the caller closes it.
   *ours is our end of a pipe, or -1. The guard of processes is held. 0 or
   negative errno; also after an error what is not -1 is open. */
CONC__PRIVATE int conc__popen_redirect(int i, int what, const char *file,
                                       int *theirs, bool *made, int *ours) {
  int fds[2];
  *theirs = *ours = -1;
  *made = file != NULL || what < 0;
  if (file != NULL) {
    *theirs = conc__fd_lift(
        open(file, (i == 0 ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC) |
                       O_CLOEXEC, 0666));
  } else if (what == CONC_DEVNULL) {
    *theirs = conc__fd_lift(open("/dev/null", O_RDWR | O_CLOEXEC));
  } else if (what == CONC_PIPE) {
    int rc = conc__fd_pipe(fds);
    if (rc != 0) return rc;
    *theirs = fds[i != 0];
    *ours = fds[i == 0];
    /* Our end only: the flag is one of the end of the pipe, not of a
       descriptor, and the program does not expect it. */
    conc__set_nonblocking(*ours);
  } else if (what == CONC_STDOUT && i == 2) {
    /* conc__exec.err_to_out does it, when 1 is what it is to be. */
    return 0;
  } else if (what < 0) {
    return -EINVAL;
  } else if (what > 0 && what != i) {
    /* One of 0, 1, 2 is about to be replaced itself: so a copy is used. */
    *made = what < 3;
    *theirs = what < 3 ? fcntl(what, F_DUPFD_CLOEXEC, 3) : what;
    if (*theirs < 0) return -errno;
  }
  /* What could not be opened is negative errno, and -EPERM is -1. */
  return *made && *theirs < 0 ? *theirs : 0;
}

/* A program has no target that this process could call. This stands in its
   place, since a task without a target is not started. */
CONC__PRIVATE void *conc__popen_target(void *arg) { return arg; }

/* Starts the program. `own`: only the caller will know the task, it is no
   coroutine, and it awaits the end by conc__popen_join: then the library's
   reaper is not needed. 0 or negative errno; after an error nothing is
   open. */
CONC__PRIVATE int conc__popen_begin(conc_popen *p, bool own) {
  conc_task *t = &p->task;
  const int what[3] = {p->std_in, p->std_out, p->std_err};
  const char *const file[3] = {p->in_file, p->out_file, p->err_file};
  int *const ours[3] = {&p->in, &p->out, &p->err};
  int life[2] = {-1, -1}; /* .daemon is no option of a program */
  bool made[3] = {false, false, false};
  conc__exec x;
  pid_t pid = 0;
  int i, rc;
  if (p->argv == NULL || p->argv[0] == NULL) return -EINVAL;
  t->target = conc__popen_target;
  rc = conc__process_begin(t, &conc__popen_numbers, 1u << 31);
  if (rc != 0) return rc;
  snprintf(t->label, sizeof t->label, "%s", p->argv[0]);
  p->sent = 0;
  p->in = p->out = p->err = -1;
  x.path = p->argv[0];
  x.argv = p->argv;
  x.env = p->env;
  x.cwd = p->cwd;
  x.stdio[0] = x.stdio[1] = x.stdio[2] = x.keep[0] = x.keep[1] = -1;
  x.err_to_out = p->err_file == NULL && p->std_err == CONC_STDOUT;
  x.new_group = p->new_group;
  x.unblock = true;
  x.making.count = 0;
  /* From here on descriptors are open that no other child may inherit. */
  conc__mutex_lock(&conc__processes_guard);
  for (i = 0; i < 3 && rc == 0; i++)
    rc = conc__popen_redirect(i, what[i], file[i], &x.stdio[i], &made[i],
                              ours[i]);
  for (i = 0; i < 3; i++) {
    /* Also our ends: a child of another thread that kept one would hold up the
       end of file. */
    x.making.fds[x.making.count++] = ours[i];
    if (made[i]) x.making.fds[x.making.count++] = &x.stdio[i];
  }
  t->as.process.own_reaper = own;
  CONC__CHECK(x.making.count <= 6);
  /* Before the execution: what can fail comes before the program runs. */
  if (rc == 0) rc = conc__reaper_open(t);
  if (rc == 0) rc = conc__exec_start(&x, &pid);
  for (i = 0; i < 3; i++)
    /* Before anything is read: while we have the program's end of a pipe open,
       there is no end of file. */
    if (made[i]) conc__fd_close(&x.stdio[i]);
  rc = conc__process_start_finish(t, pid, rc, life);
  if (rc != 0) {
    for (i = 0; i < 3; i++) conc__fd_close(ours[i]);
    conc__task_start_failed(t);
  }
  return rc;
}

CONC_API int conc_popen_start(conc_popen *p) {
  return conc__popen_begin(p, false);
}

/* --- the end --- */

/* As conc_join; a program that the caller reaps itself is polled for. A
   wake-up without an end does no harm: conc__process_reap looks again. */
CONC__PRIVATE int conc__popen_join(conc_popen *p, double timeout) {
  conc_task *t = &p->task;
  double deadline;
  if (!t->as.process.own_reaper) return conc_join(t, timeout);
  deadline = conc__deadline(timeout);
  while (conc_is_alive(t)) {
    int rc = conc__fd_wait(t->as.process.pidfd, CONC_READ, deadline);
    if (rc < 0) return rc;
    conc__process_reap(t);
  }
  return conc_join(t, 0);
}

CONC_API void conc_popen_close(conc_popen *p) {
  if (!conc__task_was_started(&p->task)) return;
  conc__fd_close(&p->in);
  conc__fd_close(&p->out);
  conc__fd_close(&p->err);
}

/* Kills the program, with .new_group its group, and awaits the end. This is
   near: so the wait is not cut short by a cancellation of the caller, which is
   set anew afterwards. */
CONC__PRIVATE void conc__popen_kill(conc_popen *p) {
  bool cancelled = false;
  conc__mutex_lock(&conc__processes_guard);
  /* The number of a group stays taken while a process is left in it: so the
     group may be killed when its leader has ended. The number of a process is
     good only until the process has been reaped. */
  if (p->new_group)
    kill(-p->task.pid, SIGKILL);
  else if (p->task.link != NULL)
    kill(p->task.pid, SIGKILL);
  conc__mutex_unlock(&conc__processes_guard);
  do cancelled |= conc__popen_join(p, CONC_FOREVER) == -ECANCELED;
  while (conc_is_alive(&p->task));
  if (cancelled) conc_cancel(conc_current());
}

/* What a wait of the program returns, whose own result is rc: the exit code,
   or rc, after the program has been killed for it if that is wanted. */
CONC__PRIVATE int conc__popen_result(conc_popen *p, int rc) {
  if (rc == 0) return p->task.exitcode;
  if ((rc == -ETIMEDOUT || rc == -ECANCELED) && p->kill_on_timeout)
    conc__popen_kill(p);
  return rc;
}

CONC_API int conc_popen_wait(conc_popen *p, double timeout) {
  return conc__popen_result(p, conc__popen_join(p, timeout));
}

CONC_API int conc_popen_poll(conc_popen *p) {
  int rc = conc_join(&p->task, 0);
  return rc == 0 ? p->task.exitcode : rc;
}

/* --- the talk --- */

/* write() to a pipe that may have no reader, without SIGPIPE and without a
   change of its handler, which is the program's. The signal comes to the
   thread that writes: so it is blocked in this thread, and taken back when it
   has come. If one was pending before, two are one: that one is left. Returns
   the bytes, or negative errno. */
CONC__PRIVATE ssize_t conc__pipe_write(int fd, const void *data, size_t size) {
  sigset_t pipe_only, old, pending;
  ssize_t n;
  int number;
  sigemptyset(&pipe_only);
  sigaddset(&pipe_only, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe_only, &old);
  sigpending(&pending);
  n = write(fd, data, size);
  if (n < 0) n = -errno;
  if (n == -EPIPE && !sigismember(&pending, SIGPIPE)) {
    /* Only if it is there: sigwait() for an ignored signal would not
       return. */
    sigpending(&pending);
    if (sigismember(&pending, SIGPIPE)) sigwait(&pipe_only, &number);
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return n;
}

/* Writes some of the input, which p->sent counts, since conc_communicate may
   be called again after a timeout. Closes the pipe at the end of the input, or
   if the program reads no more, which is no error. 0 or negative errno. */
CONC__PRIVATE int conc__popen_write_some(conc_popen *p, const char *input,
                                         size_t size) {
  ssize_t n = 0;
  if (p->sent < size)
    n = conc__pipe_write(p->in, input + p->sent, size - p->sent);
  conc__pipe_widen(p->in, n);
  if (n == -EINTR || (n < 0 && conc__would_block((int)-n))) return 0;
  if (n > 0) p->sent += (size_t)n;
  if (n < 0 || p->sent == size) conc__fd_close(&p->in);
  return n < 0 && n != -EPIPE ? (int)n : 0;
}

/* One of the program's outputs, as far as it has been read. */
typedef struct conc__popen_reader {
  conc_output output;
  size_t room; /* bytes at output.data, one of which is left for the NUL */
  bool wanted; /* false: what is read is thrown away. It is read all the same,
                  or the program would wait for room in the pipe */
} conc__popen_reader;

/* Reads some of the output, and closes the pipe at its end. 0 or negative
   errno. */
CONC__PRIVATE int conc__popen_read_some(int *fd, conc__popen_reader *r) {
  conc_output *o = &r->output;
  ssize_t n;
  if (r->room - o->size < 4096) {
    void *data = conc__grow(o->data, &r->room, o->size + 65536, 1);
    if (data == NULL) return -ENOMEM;
    o->data = (char *)data;
  }
  CONC__CHECK(o->size < r->room);
  n = read(*fd, o->data + o->size, r->room - o->size - 1);
  conc__pipe_widen(*fd, n);
  if (n == 0) conc__fd_close(fd);
  if (n > 0 && r->wanted) o->size += (size_t)n;
  if (n < 0 && errno != EINTR && !conc__would_block(errno)) return -errno;
  o->data[o->size] = 0;
  return 0;
}

/* Waits until one of the program's pipes is ready, or all are closed, and
   moves some bytes. 1: some pipe may have more; 0: all are closed; negative
   errno, -ETIMEDOUT and -ECANCELED among them. */
CONC__PRIVATE int conc__popen_exchange(conc_popen *p, const char *input,
                                       size_t n, conc__popen_reader *out,
                                       double deadline) {
  conc__actor *self = conc__self();
  int *const fds[3] = {&p->in, &p->out, &p->err};
  struct pollfd poll_fds[CONC__WAIT_FDS + 1]; /* one more: for the waker */
  int which[3];
  int i, rc, count = 0;
  for (i = 0; i < 3; i++) {
    if (*fds[i] < 0) continue;
    which[count] = i;
    poll_fds[count].fd = *fds[i];
    poll_fds[count++].events = i == 0 ? POLLOUT : POLLIN;
  }
  if (count == 0) return 0;
  rc = self->ops->blocks ? conc__thread_poll(self, poll_fds, count, deadline)
                         : conc__coro_poll(self, poll_fds, count, deadline);
  /* All that are ready take their turn: a program that writes while its input
     is full must not wait for us, while we wait for it. */
  for (i = 0; i < count && rc >= 0; i++) {
    if (poll_fds[i].revents == 0) continue;
    rc = which[i] == 0
             ? conc__popen_write_some(p, input, n)
             : conc__popen_read_some(fds[which[i]], &out[which[i] - 1]);
  }
  return rc < 0 ? rc : 1;
}

/* Reads into memory of its own, also what is not wanted, until both outputs
   have ended; then waits. What was read is the caller's whatever is
   returned. */
CONC_API int conc_communicate(conc_popen *p, const void *input, size_t n,
                              conc_output *out, conc_output *err,
                              double timeout) {
  double deadline = conc__deadline(timeout);
  conc_output *const wanted[2] = {out, err};
  conc__popen_reader got[2];
  int rc = conc__task_was_started(&p->task) ? 1 : -EINVAL;
  int i;
  memset(got, 0, sizeof got);
  for (i = 0; i < 2; i++) got[i].wanted = wanted[i] != NULL;
  /* Without input, or if an earlier call has written all of it, the program
     must see the end at once. */
  if (rc == 1 && p->in >= 0 && p->sent >= n) conc__fd_close(&p->in);
  while (rc == 1)
    rc = conc__popen_exchange(p, (const char *)input, n, got, deadline);
  /* The wait comes after the last end of file: while there is output that is
     not read, the program may never end. */
  rc = rc != 0 ? conc__popen_result(p, rc)
               : conc_popen_wait(p, conc__remaining(deadline));
  for (i = 0; i < 2; i++) {
    if (wanted[i] != NULL) *wanted[i] = got[i].output;
    else CONC_FREE(got[i].output.data);
  }
  /* If the call may be repeated, what is open stays open for it. */
  if ((rc != -ETIMEDOUT && rc != -ECANCELED) || p->kill_on_timeout)
    conc_popen_close(p);
  return rc;
}

/* --- a program that runs to its end within a call --- */

/* Runs a program that is known only to this call, and does not outlive it.
   Returns its exit code or negative errno. */
CONC__PRIVATE int conc__popen_run(conc_popen *p, conc_output *out,
                                  double timeout) {
  /* A thread that would only sleep until the end may reap the program itself.
     A worker of a pool runs other jobs meanwhile, a coroutine's thread runs
     other coroutines. */
  bool own = conc__self()->ops->blocks && conc__this.worker == NULL;
  int rc = conc__popen_begin(p, own);
  if (rc != 0) return rc;
  p->kill_on_timeout = true;
  rc = conc_communicate(p, NULL, 0, out, NULL, timeout);
  /* After an error that is no timeout, for want of memory say. */
  if (conc_is_alive(&p->task)) conc__popen_kill(p);
  conc_popen_close(p);
  return rc;
}

CONC_API int conc_call(const char *const *argv, double timeout) {
  conc_popen p;
  memset(&p, 0, sizeof p);
  p.argv = argv;
  return conc__popen_run(&p, NULL, timeout);
}

CONC_API int conc_check_output(const char *const *argv, conc_output *out,
                               double timeout) {
  conc_popen p;
  memset(&p, 0, sizeof p);
  memset(out, 0, sizeof *out);
  p.argv = argv;
  p.std_out = CONC_PIPE;
  return conc__popen_run(&p, out, timeout);
}

/* ---------------------------------------------------------------------------
   >>value: buffers, hashes, typed values, pickle, JSON

   For the layers above:
     conc__buffer, _reserve, _append, _free      bytes that grow
     conc__md5, conc__sha256, conc__hmac         hashes in one call
     conc__wipe, conc__equal_secret              care with secrets
     conc__pickle_decode, conc__object_name      reading what a peer sent
     conc__pickle_encode, conc__pickle_put_*     writing, without a tree too
     conc__pickle_content, conc__pickle_downgrade
                                                 what is stored, looked at
                                                 and translated for Python 2
   ------------------------------------------------------------------------ */

/* --- values ---

   A value is an array of nodes with all strings behind it, in one allocation.
   The items of a container lie side by side (of a dict: key, value, key,
   value), somewhere in the array; node 0 is the root. Behind the pairs of a
   dict stands its index: the numbers of the pairs, ordered by key. Sets need
   none, for their items are ordered themselves.

   A node can be copied: then two nodes show the same items. That is how the
   sharing in a pickle is kept, and why a value takes no more memory than a
   small multiple of the pickle that it comes from, however much it is when it
   is written out; CONC__VALUE_NODES bounds that. */

struct conc_value {
  conc_type type;
  size_t size; /* as conc_value_size tells it */
  union {
    bool boolean;
    int64_t integer;
    double real;
    const unsigned char *bytes; /* a NUL behind */
    const conc_value *items;
    size_t at; /* while it is being made: see conc__maker */
  } as;
};

/* Everything below walks values with arrays of this length, not checked
   again: nothing deeper is ever made. */
#define CONC__VALUE_DEPTH 100
#define CONC__VALUE_NODES 1000000u /* every sharer counted anew */
#define CONC__VALUE_BYTES ((size_t)64 << 20) /* likewise, beyond the input's */
#define CONC__BIGINT_MAX 4096 /* bytes; printing one is quadratic */

CONC__INLINE bool conc__is_text(conc_type t) {
  return t == CONC_BIGINT || (t >= CONC_STR && t <= CONC_BYTEARRAY);
}

CONC__INLINE bool conc__is_container(conc_type t) { return t >= CONC_LIST; }

/* How many nodes stand at as.items, the index not counted. */
CONC__INLINE size_t conc__item_count(const conc_value *v) {
  if (!conc__is_container(v->type)) return 0;
  return v->type == CONC_DICT ? v->size * 2 : v->size;
}

/* The index of a dict of two pairs or more. */
CONC__INLINE const uint32_t *conc__dict_index(const conc_value *v) {
  return (const uint32_t *)(const void *)(v->as.items + v->size * 2);
}

/* Item i as it comes in order: the same for equal values. */
CONC__INLINE const conc_value *conc__item_ordered(const conc_value *v,
                                                  size_t i) {
  if (v->type == CONC_DICT && v->size > 1)
    i = (size_t)conc__dict_index(v)[i / 2] * 2 + i % 2;
  return v->as.items + i;
}

CONC_API void conc_value_free(conc_value *value) { CONC_FREE(value); }

CONC_API conc_type conc_value_type(const conc_value *value) {
  return value == NULL ? CONC_NONE : value->type;
}

CONC_API int conc_value_int(const conc_value *value, int64_t *out) {
  if (value == NULL) return -EINVAL;
  if (value->type == CONC_BIGINT) return -ERANGE;
  if (value->type != CONC_INT) return -EINVAL;
  *out = value->as.integer;
  return 0;
}

/* The nearest double, ties to even, as Python's float(n) rounds. */
CONC__PRIVATE int conc__bigint_float(const conc_value *v, double *out) {
  const unsigned char *p = v->as.bytes;
  const bool negative = p[v->size - 1] >= 0x80;
  const unsigned flip = negative ? 0xff : 0;
  uint64_t top = 0, bits;
  unsigned carry = negative, sticky = 0;
  int exponent = 0;
  size_t i;
  /* Magnitude byte by byte from the low end; top holds the highest 8 bytes
     and sticky whether anything fell out below. A last byte of zero is only
     the sign. */
  for (i = 0; i < v->size; i++) {
    unsigned byte = (p[i] ^ flip) + carry;
    carry = byte >> 8;
    if (i < 8) {
      top |= (uint64_t)(byte & 255) << 8 * i;
    } else if (byte & 255 || i < v->size - 1) {
      sticky |= (top & 255) != 0;
      top = top >> 8 | (uint64_t)(byte & 255) << 56;
      exponent += 8;
    }
  }
  while (top >> 63 == 0) {
    /* at most 7 times: the rounding bit, the 11th, is never made up */
    top <<= 1;
    exponent--;
  }
  bits = top >> 11;
  if ((top & 0x400) != 0 && ((top & 0x3ff) != 0 || sticky || (bits & 1)))
    bits++; /* may carry into the exponent: that is right */
  exponent += 11 + 52 + 1023; /* of 1.xxx * 2^e, biased */
  if (bits >> 53 != 0) {
    bits >>= 1;
    exponent++;
  }
  if (exponent >= 2047) return -ERANGE;
  bits = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)exponent << 52 |
         (uint64_t)negative << 63;
  memcpy(out, &bits, sizeof bits);
  return 0;
}

CONC_API int conc_value_float(const conc_value *value, double *out) {
  if (value == NULL) return -EINVAL;
  switch (value->type) {
  case CONC_FLOAT: *out = value->as.real; return 0;
  case CONC_INT: *out = (double)value->as.integer; return 0;
  case CONC_BIGINT: return conc__bigint_float(value, out);
  default: return -EINVAL;
  }
}

CONC_API int conc_value_bool(const conc_value *value, bool *out) {
  if (value == NULL || value->type != CONC_BOOL) return -EINVAL;
  *out = value->as.boolean;
  return 0;
}

CONC_API const char *conc_value_str(const conc_value *value, size_t *size) {
  if (value == NULL || value->type != CONC_STR) return NULL;
  if (size != NULL) *size = value->size;
  return (const char *)value->as.bytes;
}

CONC_API const void *conc_value_bytes(const conc_value *value, size_t *size) {
  if (value == NULL || value->type == CONC_STR || !conc__is_text(value->type))
    return NULL;
  if (size != NULL) *size = value->size;
  return value->as.bytes;
}

CONC_API size_t conc_value_size(const conc_value *value) {
  return value == NULL ? 0 : value->size;
}

CONC_API const conc_value *conc_value_item(const conc_value *value, size_t i) {
  if (value == NULL || !conc__is_container(value->type) || i >= value->size)
    return NULL;
  return value->as.items + (value->type == CONC_DICT ? i * 2 + 1 : i);
}

CONC_API const conc_value *conc_value_key(const conc_value *value, size_t i) {
  if (value == NULL || value->type != CONC_DICT || i >= value->size)
    return NULL;
  return value->as.items + i * 2;
}

/* --- order ---

   A total order of all values, for the index of dicts, for sets and for
   equality. Among keys, what Python holds equal is equal: 1, 1.0 and True.
   `strict` tells types apart. Sorting keeps hostile keys at O(n log n) where a
   hash table would need a secret to be safe from collisions. */

CONC__INLINE int conc__sign(bool above, bool below) {
  return (int)above - (int)below;
}

/* Two's complements of the shortest form: the longer one is the farther from
   zero; of equal length and sign, bytes decide from the top. */
CONC__PRIVATE int conc__compare_bigints(const unsigned char *p, size_t n,
                                        const unsigned char *q, size_t m) {
  const bool minus = p[n - 1] >= 0x80;
  if (minus != (q[m - 1] >= 0x80)) return minus ? -1 : 1;
  if (n != m) return (n > m) != minus ? 1 : -1;
  while (n-- > 0)
    if (p[n] != q[n]) return p[n] > q[n] ? 1 : -1;
  return 0;
}

/* How long a two's complement must be, without repeated sign bytes. */
CONC__PRIVATE size_t conc__bigint_size(const unsigned char *p, size_t n) {
  while (n > 1 && ((p[n - 1] == 0 && p[n - 2] < 0x80) ||
                   (p[n - 1] == 0xff && p[n - 2] >= 0x80)))
    n--;
  return n;
}

/* A bigint against a float: exactly, so by turning the float into bytes. */
CONC__PRIVATE int conc__compare_bigint_float(const conc_value *v, double f) {
  const bool minus = v->as.bytes[v->size - 1] >= 0x80;
  unsigned char bytes[144];
  uint64_t bits, mantissa;
  unsigned shift, i;
  if (f != f) return -1;
  if (f > -9.2e18 && f < 9.2e18) return minus ? -1 : 1;
  memcpy(&bits, &f, sizeof bits);
  shift = (unsigned)(bits >> 52 & 2047);
  if (shift == 2047) return f > 0 ? -1 : 1;
  shift -= 1075; /* 10 to 971, as f is beyond 9.2e18 */
  mantissa = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
  memset(bytes, 0, sizeof bytes);
  mantissa <<= shift % 8; /* 53 + 7 bits: fits */
  for (i = 0; i < 8; i++)
    bytes[shift / 8 + i] = (unsigned char)(mantissa >> 8 * i);
  if (f < 0) { /* the complement, plus one */
    unsigned carry = 1;
    for (i = 0; i < sizeof bytes; i++) {
      carry += bytes[i] ^ 255u;
      bytes[i] = (unsigned char)carry;
      carry >>= 8;
    }
  }
  return conc__compare_bigints(v->as.bytes, v->size, bytes,
                               conc__bigint_size(bytes, sizeof bytes));
}

/* A NaN stands above all other numbers, beside other NaNs. */
CONC__PRIVATE int conc__compare_numbers(const conc_value *a,
                                        const conc_value *b) {
  const bool float_a = a->type == CONC_FLOAT, float_b = b->type == CONC_FLOAT;
  if (float_a && float_b) {
    const double f = a->as.real, g = b->as.real;
    if (f != f || g != g) return conc__sign(f != f, g != g);
    return conc__sign(f > g, f < g);
  }
  if (float_a) return -conc__compare_numbers(b, a); /* once: not again */
  if (a->type == CONC_BIGINT) {
    if (float_b) return conc__compare_bigint_float(a, b->as.real);
    if (b->type == CONC_BIGINT)
      return conc__compare_bigints(a->as.bytes, a->size, b->as.bytes, b->size);
    return a->as.bytes[a->size - 1] >= 0x80 ? -1 : 1;
  }
  if (b->type == CONC_BIGINT) return b->as.bytes[b->size - 1] >= 0x80 ? 1 : -1;
  {
    const int64_t n = a->type == CONC_BOOL ? a->as.boolean : a->as.integer;
    const double g = b->as.real;
    int64_t m;
    if (!float_b) {
      m = b->type == CONC_BOOL ? b->as.boolean : b->as.integer;
      return conc__sign(n > m, n < m);
    }
    /* (double)n may round: only the whole part of g goes the other way */
    if (g != g || g >= 9223372036854775808.0) return -1;
    if (g < -9223372036854775808.0) return 1;
    m = (int64_t)g;
    if (n != m) return n > m ? 1 : -1;
    return conc__sign((double)m > g, (double)m < g);
  }
}

/* Order of two values but for their items. */
CONC__PRIVATE int conc__compare_heads(const conc_value *a, const conc_value *b,
                                      bool strict) {
  const bool number = a->type >= CONC_BOOL && a->type <= CONC_FLOAT;
  size_t n;
  int c;
  if (a->type != b->type &&
      (strict || !number || b->type < CONC_BOOL || b->type > CONC_FLOAT))
    return a->type > b->type ? 1 : -1;
  if (number) return conc__compare_numbers(a, b);
  if (conc__is_container(a->type) || a->type == CONC_NONE)
    return conc__sign(a->size > b->size, a->size < b->size);
  n = a->size < b->size ? a->size : b->size;
  c = a->as.bytes == b->as.bytes ? 0 : memcmp(a->as.bytes, b->as.bytes, n);
  return c != 0 ? c : conc__sign(a->size > b->size, a->size < b->size);
}

CONC__PRIVATE int conc__compare(const conc_value *a, const conc_value *b,
                                bool strict) {
  struct {
    const conc_value *a, *b;
    size_t i, n;
  } level[CONC__VALUE_DEPTH];
  unsigned depth = 0;
  for (;;) {
    int c = conc__compare_heads(a, b, strict);
    if (c != 0) return c;
    if (conc__is_container(a->type) && a->as.items != b->as.items) {
      level[depth].a = a;
      level[depth].b = b;
      level[depth].i = 0;
      level[depth].n = conc__item_count(a);
      depth++;
    }
    while (depth > 0 && level[depth - 1].i == level[depth - 1].n) depth--;
    if (depth == 0) return 0;
    a = conc__item_ordered(level[depth - 1].a, level[depth - 1].i);
    b = conc__item_ordered(level[depth - 1].b, level[depth - 1].i);
    level[depth - 1].i++;
  }
}

CONC_API bool conc_value_equal(const conc_value *a, const conc_value *b) {
  if (a == NULL || b == NULL)
    return conc_value_type(a) == CONC_NONE && conc_value_type(b) == CONC_NONE;
  return conc__compare(a, b, true) == 0;
}

CONC_API const conc_value *conc_value_get(const conc_value *dict,
                                          const char *key) {
  size_t low = 0, high;
  conc_value k;
  if (dict == NULL || dict->type != CONC_DICT || key == NULL) return NULL;
  k.type = CONC_STR;
  k.size = strlen(key);
  k.as.bytes = (const unsigned char *)key;
  high = dict->size;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    const conc_value *pair = conc__item_ordered(dict, middle * 2);
    const int c = conc__compare_heads(&k, pair, true);
    if (c == 0) return pair + 1;
    if (c < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return NULL;
}

/* What is being sorted: the index of a dict, or with no index the items. */
typedef struct conc__sorting {
  conc_value *items;
  uint32_t *index;
} conc__sorting;

/* Equal keys stay in the order in which they came: the last one wins. */
CONC__PRIVATE int conc__sort_order(const conc__sorting *s, size_t i,
                                   size_t j) {
  const uint32_t *x = s->index;
  int c;
  if (x == NULL) return conc__compare(s->items + i, s->items + j, false);
  c = conc__compare(s->items + (size_t)x[i] * 2, s->items + (size_t)x[j] * 2,
                    false);
  return c != 0 ? c : conc__sign(x[i] > x[j], x[i] < x[j]);
}

CONC__PRIVATE void conc__sort_swap(const conc__sorting *s, size_t i,
                                   size_t j) {
  if (s->index == NULL) {
    const conc_value v = s->items[i];
    s->items[i] = s->items[j];
    s->items[j] = v;
  } else {
    const uint32_t x = s->index[i];
    s->index[i] = s->index[j];
    s->index[j] = x;
  }
}

/* Heapsort: in place, and no input makes it slow. Most input is sorted
   already or tiny, which the first loop notices or half sorts. */
CONC__PRIVATE void conc__sort(const conc__sorting *s, size_t n) {
  size_t i, root, child, build;
  for (i = 1; i < n; i++) {
    if (conc__sort_order(s, i - 1, i) <= 0) continue;
    if (i > 16) break;
    for (root = i; root > 0 && conc__sort_order(s, root - 1, root) > 0; root--)
      conc__sort_swap(s, root - 1, root);
  }
  if (i >= n) return;
  /* Until build is 0, the items from build - 1 on are made a heap; then the
     largest goes to the end, n shrinks, and the new first item sinks. */
  for (build = n / 2; n > 1;) {
    if (build > 0)
      build--;
    else
      conc__sort_swap(s, 0, --n);
    for (root = build; (child = root * 2 + 1) < n; root = child) {
      if (child + 1 < n && conc__sort_order(s, child, child + 1) < 0) child++;
      if (conc__sort_order(s, root, child) >= 0) break;
      conc__sort_swap(s, root, child);
    }
  }
}

/* ---------------------------------------------------------------------------
   >>maker: how a value is made: parts first, then one allocation
   ------------------------------------------------------------------------ */

/* --- walking a value ---

   Visits a tree in the order in which it is written: a container, its items,
   the container again. Every loop over a whole value is one of these, so that
   no data decides how deep the C stack goes. */

enum { CONC__WALK_END, CONC__WALK_LEAF, CONC__WALK_OPEN, CONC__WALK_CLOSE };

typedef struct conc__walk {
  const conc_value *value;  /* what is visited */
  const conc_value *parent; /* its container; NULL at the root */
  size_t index;             /* its place in there */
  struct {
    const conc_value *value;
    size_t i, n;
  } level[CONC__VALUE_DEPTH];
  unsigned depth;
  bool begun;
} conc__walk;

CONC__PRIVATE void conc__walk_begin(conc__walk *w, const conc_value *root) {
  w->value = root;
  w->parent = NULL;
  w->index = 0;
  w->depth = 0;
  w->begun = false;
}

CONC__PRIVATE int conc__walk_step(conc__walk *w) {
  if (w->begun) {
    if (w->depth == 0) return CONC__WALK_END;
    if (w->level[w->depth - 1].i == w->level[w->depth - 1].n) {
      w->value = w->level[--w->depth].value;
      w->parent = w->depth > 0 ? w->level[w->depth - 1].value : NULL;
      if (w->depth > 0) w->index = w->level[w->depth - 1].i - 1;
      return CONC__WALK_CLOSE;
    }
    w->parent = w->level[w->depth - 1].value;
    w->index = w->level[w->depth - 1].i++;
    w->value = w->parent->as.items + w->index;
  }
  w->begun = true;
  if (!conc__is_container(w->value->type)) return CONC__WALK_LEAF;
  w->level[w->depth].value = w->value;
  w->level[w->depth].i = 0;
  w->level[w->depth].n = conc__item_count(w->value);
  w->depth++;
  return CONC__WALK_OPEN;
}

/* --- UTF-8 --- */

/* Reads one character, lone surrogates allowed. Its length, 0 if there is no
   valid one. Overlong forms are refused: two spellings of one key would be
   two keys here and one in Python. */
CONC__PRIVATE size_t conc__utf8(const unsigned char *p, size_t n,
                                uint32_t *out) {
  static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
  uint32_t c;
  size_t length, i;
  if (n == 0) return 0;
  c = p[0];
  length = c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
  if (length == 0 || length > n || c >= 0xf8) return 0;
  if (length > 1) c &= 0x7fu >> length;
  for (i = 1; i < length; i++) {
    if ((p[i] & 0xc0) != 0x80) return 0;
    c = c << 6 | (p[i] & 0x3fu);
  }
  if (c < least[length] || c > 0x10ffff) return 0;
  *out = c;
  return length;
}

/* Writes a character (at most 4 bytes) and returns how many it takes. */
CONC__PRIVATE size_t conc__utf8_put(unsigned char *p, uint32_t c) {
  const size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  size_t i;
  for (i = length; i-- > 1; c >>= 6) p[i] = (unsigned char)(0x80 | (c & 0x3f));
  p[0] = (unsigned char)(length == 1 ? c : (0xf00u >> length & 0xf0) | c);
  return length;
}

/* How many bytes at the start are ASCII, at least all but the last 7. */
CONC__PRIVATE size_t conc__ascii(const unsigned char *p, size_t n) {
  size_t i = 0;
  while (n - i >= 8) {
    uint64_t word;
    memcpy(&word, p + i, sizeof word);
    if (word & UINT64_C(0x8080808080808080)) break;
    i += 8;
  }
  while (i < n && p[i] < 0x80) i++;
  return i;
}

CONC__PRIVATE bool conc__utf8_valid(const unsigned char *p, size_t n) {
  size_t i = 0, length;
  uint32_t c;
  for (;;) {
    i += conc__ascii(p + i, n - i);
    if (i == n) return true;
    do {
      length = conc__utf8(p + i, n - i, &c);
      if (length == 0) return false;
      i += length;
    } while (i < n && p[i] >= 0x80);
  }
}

/* --- making a value ---

   What the pickle reader and conc_build share: a stack of nodes on which
   containers are made of what lies on top, as pickle's own machine does it.
   While a value is made, nodes do not point but count: as.at of a text is its
   offset (in the input or, from input_size on, in `extra`), of a container
   its number among `objects`. So arrays can move, and two nodes with one
   number are one Python object: a list may be memoized before it is filled.

   Items leave the stack for `pool`, where those of one container lie in runs;
   a list that is filled at once, as most are, has one run. At the end
   conc__measure visits what the root reaches and orders it, inner objects
   first; then there is one allocation and conc__lay_out copies the runs there.
   The arrays start inside the struct: a request of a manager's client needs
   no allocation but the result.

   Time and memory are O(input): each opcode pushes at most one node, and what
   copies runs (a set made of a list) pays for it from the budget of nodes. */

#define CONC__INLINE_ITEMS 24
#define CONC__TYPE_CALLABLE                                                   \
  ((conc_type)(CONC_OBJECT + 1))                      /* something callable */
#define CONC__TYPE_GAP ((conc_type)(CONC_OBJECT + 2)) /* nothing: a gap */

/* Items of an object: pool[start] and so many behind it. */
typedef struct conc__stretch {
  uint32_t start, count, next; /* next: index + 1 */
} conc__stretch;

typedef struct conc__object {
  conc_type type;
  unsigned char state;    /* CONC__FRESH, _OPEN or _DONE: see measuring */
  unsigned char height;   /* containers inside one another, itself too */
  bool hashable;
  uint32_t count;         /* items; those of a dict alternate */
  conc__stretch run;      /* the first */
  uint32_t last;          /* index + 1 of the last; 0 if that is `run` */
  uint32_t nodes;         /* what all of it is, written out */
  uint32_t then;          /* index + 1 of the object laid out next */
  size_t bytes;           /* text in all of it, written out */
  size_t size;            /* once laid out, as in the node */
  const conc_value *items;
} conc__object;

/* An array that starts as CONC__INLINE_ITEMS elements in the maker. */
typedef struct conc__array {
  void *data;
  uint32_t count, capacity;
} conc__array;

typedef struct conc__maker {
  conc__array stack, pool, memo; /* of conc_value */
  conc__array objects, runs, marks;
  const unsigned char *input;
  size_t input_size;
  conc__buffer extra; /* text that does not lie in the input */
  conc_value few_stack[CONC__INLINE_ITEMS], few_pool[CONC__INLINE_ITEMS],
      few_memo[CONC__INLINE_ITEMS];
  conc__object few_objects[CONC__INLINE_ITEMS];
  conc__stretch few_runs[CONC__INLINE_ITEMS];
  uint32_t few_marks[CONC__INLINE_ITEMS];
} conc__maker;

#define CONC__STACK(m) ((conc_value *)(m)->stack.data)
#define CONC__POOL(m) ((conc_value *)(m)->pool.data)
#define CONC__MEMO(m) ((conc_value *)(m)->memo.data)
#define CONC__OBJECTS(m) ((conc__object *)(m)->objects.data)
#define CONC__RUNS(m) ((conc__stretch *)(m)->runs.data)
#define CONC__MARKS(m) ((uint32_t *)(m)->marks.data)

CONC__INLINE void conc__array_init(conc__array *a, void *few) {
  a->data = few;
  a->count = 0;
  a->capacity = CONC__INLINE_ITEMS;
}

CONC__PRIVATE void conc__array_free(conc__array *a) {
  if (a->capacity > CONC__INLINE_ITEMS) CONC_FREE(a->data);
}

CONC__PRIVATE int conc__array_grow(conc__array *a, uint32_t more,
                                   size_t unit) {
  uint32_t capacity = a->capacity;
  void *data;
  if (more > CONC__VALUE_NODES || a->count + more > CONC__VALUE_NODES)
    return -EMSGSIZE;
  while (capacity - a->count < more) capacity *= 2;
  if (a->capacity > CONC__INLINE_ITEMS) {
    data = CONC_REALLOC(a->data, capacity * unit);
  } else {
    data = CONC_MALLOC(capacity * unit);
    if (data != NULL) memcpy(data, a->data, a->count * unit);
  }
  if (data == NULL) return -ENOMEM;
  a->data = data;
  a->capacity = capacity;
  return 0;
}

/* Room for `more` elements; an array holds CONC__VALUE_NODES at most. */
CONC__INLINE int conc__array_reserve(conc__array *a, uint32_t more,
                                     size_t unit) {
  if (CONC__LIKELY(a->capacity - a->count >= more)) return 0;
  return conc__array_grow(a, more, unit);
}

CONC__PRIVATE void conc__maker_init(conc__maker *m, const unsigned char *input,
                                    size_t size) {
  conc__array_init(&m->stack, m->few_stack);
  conc__array_init(&m->pool, m->few_pool);
  conc__array_init(&m->memo, m->few_memo);
  conc__array_init(&m->objects, m->few_objects);
  conc__array_init(&m->runs, m->few_runs);
  conc__array_init(&m->marks, m->few_marks);
  m->input = input;
  m->input_size = size;
  m->extra.data = NULL;
  m->extra.size = m->extra.capacity = m->extra.first = 0;
}

CONC__PRIVATE void conc__maker_free(conc__maker *m) {
  conc__array_free(&m->stack);
  conc__array_free(&m->pool);
  conc__array_free(&m->memo);
  conc__array_free(&m->objects);
  conc__array_free(&m->runs);
  conc__array_free(&m->marks);
  if (m->extra.data != NULL) conc__buffer_free(&m->extra);
}

/* Where a text that is being made lies; until more extra text is added. */
CONC__INLINE const unsigned char *conc__made_text(const conc__maker *m,
                                                  const conc_value *v) {
  if (v->as.at >= m->input_size) {
    /* an empty text may stand at the very end of the input */
    if (m->extra.data == NULL) return (const unsigned char *)"";
    return m->extra.data + (v->as.at - m->input_size);
  }
  return m->input + v->as.at;
}

CONC__INLINE int conc__push(conc__maker *m, conc_type type, size_t size,
                            size_t at) {
  conc_value *v;
  int rc = conc__array_reserve(&m->stack, 1, sizeof *v);
  if (CONC__UNLIKELY(rc != 0)) return rc;
  v = CONC__STACK(m) + m->stack.count++;
  v->type = type;
  v->size = size;
  v->as.at = at;
  return 0;
}

CONC__INLINE int conc__push_node(conc__maker *m, const conc_value *from) {
  const conc_value v = *from; /* it may lie in the array that moves */
  int rc = conc__array_reserve(&m->stack, 1, sizeof v);
  if (CONC__UNLIKELY(rc != 0)) return rc;
  CONC__STACK(m)[m->stack.count++] = v;
  return 0;
}

CONC__INLINE int conc__push_int(conc__maker *m, int64_t n) {
  int rc = conc__push(m, CONC_INT, 0, 0);
  if (rc == 0) CONC__STACK(m)[m->stack.count - 1].as.integer = n;
  return rc;
}

CONC__INLINE int conc__push_bool(conc__maker *m, bool b) {
  int rc = conc__push(m, CONC_BOOL, 0, 0);
  if (rc == 0) CONC__STACK(m)[m->stack.count - 1].as.boolean = b;
  return rc;
}

CONC__INLINE int conc__push_float(conc__maker *m, double f) {
  int rc = conc__push(m, CONC_FLOAT, 0, 0);
  if (rc == 0) CONC__STACK(m)[m->stack.count - 1].as.real = f;
  return rc;
}

/* A text of the caller's, which is copied. */
CONC__PRIVATE int conc__push_text(conc__maker *m, conc_type type,
                                  const void *data, size_t size) {
  const size_t at = m->input_size + m->extra.size;
  int rc = size > SIZE_MAX - 1 ? -ENOMEM
                               : conc__buffer_reserve(&m->extra, size + 1);
  if (rc == 0) rc = conc__push(m, type, size, at);
  if (rc != 0) return rc;
  conc__buffer_append(&m->extra, data, size);
  return conc__buffer_append(&m->extra, "", 1);
}

/* An int of any size, from its two's complement. */
CONC__PRIVATE int conc__push_long(conc__maker *m, const unsigned char *p,
                                  size_t n, size_t at) {
  uint64_t bits = 0;
  size_t i;
  if (n == 0) return conc__push_int(m, 0);
  n = conc__bigint_size(p, n);
  if (n > CONC__BIGINT_MAX) return -EMSGSIZE;
  if (n > 8) return conc__push(m, CONC_BIGINT, n, at);
  if (p[n - 1] >= 0x80) bits = ~bits;
  for (i = n; i-- > 0;) bits = bits << 8 | p[i];
  return conc__push_int(m, (int64_t)bits);
}

/* Room for n bytes of text and a NUL, which the caller writes at once: *p. */
CONC__PRIVATE int conc__extra_reserve(conc__maker *m, size_t n,
                                      unsigned char **p) {
  int rc = n > SIZE_MAX - 1 ? -ENOMEM : conc__buffer_reserve(&m->extra, n + 1);
  if (rc == 0) *p = m->extra.data + m->extra.size;
  return rc;
}

/* Pushes what was written there: so many bytes. */
CONC__PRIVATE int conc__push_extra(conc__maker *m, conc_type type, size_t n) {
  const size_t at = m->extra.size;
  m->extra.data[at + n] = 0;
  m->extra.size += n + 1;
  if (type == CONC_BIGINT)
    return conc__push_long(m, m->extra.data + at, n, m->input_size + at);
  return conc__push(m, type, n, m->input_size + at);
}

/* An int of any size, from -?[0-9]+. Nine digits at a time: quadratic, which
   CONC__BIGINT_MAX keeps to less than a millisecond. */
CONC__PRIVATE int conc__push_decimal(conc__maker *m, const unsigned char *p,
                                     size_t n) {
  uint32_t word[CONC__BIGINT_MAX / 4 + 2];
  const bool minus = *p == '-';
  unsigned carry = minus;
  unsigned char *bytes = NULL;
  size_t words = 0, i;
  int rc;
  if (minus) p++, n--;
  while (n > 1 && *p == '0') p++, n--;
  if (n > CONC__BIGINT_MAX / 5 * 12 + 40) return -EMSGSIZE;
  while (n > 0) {
    uint32_t scale = 1;
    uint64_t sum = 0;
    do {
      sum = sum * 10 + (uint64_t)(*p++ - '0');
      scale *= 10;
    } while (--n > 0 && scale < 1000000000);
    for (i = 0; i < words; i++, sum >>= 32) {
      sum += (uint64_t)word[i] * scale;
      word[i] = (uint32_t)sum;
    }
    if (sum == 0) continue;
    if (words == sizeof word / sizeof *word) return -EMSGSIZE;
    word[words++] = (uint32_t)sum;
  }
  rc = conc__extra_reserve(m, words * 4 + 1, &bytes);
  if (rc != 0) return rc;
  for (i = 0; i <= words * 4; i++) {
    const unsigned byte = i < words * 4 ? word[i / 4] >> 8 * (i % 4) & 255 : 0;
    carry += minus ? byte ^ 255 : byte;
    bytes[i] = (unsigned char)carry;
    carry >>= 8;
  }
  return conc__push_extra(m, CONC_BIGINT, words * 4 + 1);
}

/* Where a number as JSON writes it ends: -?(0|[1-9][0-9]*)(.[0-9]+)?
   ([eE][+-]?[0-9]+)?. *real: it has one of the last two. *wrong: it ends where
   it could not. */
CONC__PRIVATE const unsigned char *conc__scan_number(const unsigned char *p,
                                                     const unsigned char *end,
                                                     bool *real, bool *wrong) {
  int part;
  *real = false;
  if (p < end && *p == '-') p++;
  for (part = 0; part < 3; part++) {
    if (part == 1) {
      if (p == end || *p != '.') continue;
      p++;
    } else if (part == 2) {
      if (p == end || (*p != 'e' && *p != 'E')) continue;
      p++;
      if (p < end && (*p == '+' || *p == '-')) p++;
    }
    *real = part > 0;
    *wrong = p == end || *p < '0' || *p > '9';
    if (*wrong) return p;
    if (part == 0 && *p == '0') {
      p++;
      continue;
    }
    while (p < end && *p >= '0' && *p <= '9') p++;
  }
  return p;
}

/* The double nearest to such a number. strtod() sees no decimal point, whose
   look depends on the locale, but an integer and an exponent. No tie between
   two doubles has more than 767 digits: behind them any other will do. */
CONC__PRIVATE double conc__decimal(const unsigned char *p, size_t n) {
  char text[820];
  int64_t exponent = 0, e = 0;
  size_t used = 0, first, i;
  bool point = false, rest = false, minus;
  if (*p == '-') text[used++] = '-';
  first = used;
  for (i = used; i < n && p[i] != 'e' && p[i] != 'E'; i++) {
    if (p[i] == '.') {
      point = true;
    } else if (used == first && p[i] == '0') {
      exponent -= point;
    } else if (used < 790) {
      text[used++] = (char)p[i];
      exponent -= point;
    } else {
      rest |= p[i] != '0';
      exponent += !point;
    }
  }
  if (rest) {
    text[used++] = '1';
    exponent--;
  }
  if (used == first) text[used++] = '0';
  minus = i + 1 < n && p[i + 1] == '-';
  for (; i < n; i++)
    if (p[i] >= '0' && p[i] <= '9' && e < INT64_C(1) << 40)
      e = e * 10 + (p[i] - '0');
  /* Beyond these nothing but 0 or infinity is left, with up to 791 digits. */
  exponent += minus ? -e : e;
  if (exponent > 2000) exponent = 2000;
  if (exponent < -2000) exponent = -2000;
  snprintf(text + used, sizeof text - used, "e%d", (int)exponent);
  return strtod(text, NULL);
}

/* Pushes an empty container. */
CONC__PRIVATE int conc__push_object(conc__maker *m, conc_type type) {
  conc__object *o;
  int rc = conc__array_reserve(&m->objects, 1, sizeof *o);
  if (rc == 0) rc = conc__push(m, type, 0, m->objects.count);
  if (rc != 0) return rc;
  o = CONC__OBJECTS(m) + m->objects.count++;
  memset(o, 0, sizeof *o);
  o->type = type;
  return 0;
}

/* Room for n more items of an object, at the end of the pool: *out, to be
   filled at once. */
CONC__PRIVATE int conc__object_extend(conc__maker *m, size_t object,
                                      uint32_t n, conc_value **out) {
  conc__object *o = CONC__OBJECTS(m) + object;
  const uint32_t start = m->pool.count;
  conc__stretch *last;
  int rc = conc__array_reserve(&m->pool, n, sizeof **out);
  if (rc == 0) rc = conc__array_reserve(&m->runs, 1, sizeof *last);
  if (rc != 0) return rc;
  last = o->last == 0 ? &o->run : CONC__RUNS(m) + o->last - 1;
  if (o->count == 0) last->start = start;
  if (last->start + last->count == start) {
    last->count += n;
  } else {
    conc__stretch *fresh = CONC__RUNS(m) + m->runs.count++;
    fresh->start = start;
    fresh->count = n;
    fresh->next = 0;
    o->last = last->next = m->runs.count;
  }
  o->count += n;
  m->pool.count += n;
  *out = CONC__POOL(m) + start;
  return 0;
}

/* Moves the top n nodes of the stack into an object. */
CONC__PRIVATE int conc__object_fill(conc__maker *m, size_t object,
                                    uint32_t n) {
  conc_value *items;
  int rc;
  if (n == 0) return 0;
  rc = conc__object_extend(m, object, n, &items);
  if (rc != 0) return rc;
  m->stack.count -= n;
  memcpy(items, CONC__STACK(m) + m->stack.count, n * sizeof *items);
  return 0;
}

/* Makes a new object of the top n nodes, in their place. */
CONC__PRIVATE int conc__collect(conc__maker *m, conc_type type, uint32_t n) {
  const size_t object = m->objects.count;
  int rc = conc__push_object(m, type);
  if (rc != 0) return rc;
  m->stack.count--; /* aside, while its items go */
  rc = conc__object_fill(m, object, n);
  return rc != 0 ? rc : conc__push(m, type, 0, object);
}

/* Pushes a new object with the items of another one. */
CONC__PRIVATE int conc__push_copy(conc__maker *m, conc_type type,
                                  size_t from) {
  const size_t object = m->objects.count;
  const uint32_t n = CONC__OBJECTS(m)[from].count;
  uint32_t done = 0;
  conc__stretch run;
  conc_value *items;
  int rc = conc__push_object(m, type);
  if (rc != 0 || n == 0) return rc;
  rc = conc__object_extend(m, object, n, &items);
  if (rc != 0) return rc;
  for (run = CONC__OBJECTS(m)[from].run;;
       run = CONC__RUNS(m)[run.next - 1]) {
    memcpy(items + done, CONC__POOL(m) + run.start,
           run.count * sizeof *items);
    done += run.count;
    if (run.next == 0) return 0;
  }
}

/* --- measuring ---

   A depth-first walk over what the root reaches, each object once: fresh,
   open while its items are visited, done. An open object met again contains
   itself. Sizes saturate by refusal: an object that would be too large ends
   the walk before its container is added up. */

enum { CONC__FRESH, CONC__OPEN, CONC__DONE };

typedef struct conc__measured {
  size_t slots;        /* nodes that all objects take, indexes too */
  bool text;           /* any text at all */
  uint32_t first, last; /* objects in the order of laying out, index + 1 */
} conc__measured;

/* How many nodes the index of a dict takes. */
CONC__INLINE size_t conc__index_slots(size_t pairs) {
  if (pairs < 2) return 0;
  return (pairs * sizeof(uint32_t) + sizeof(conc_value) - 1) /
         sizeof(conc_value);
}

/* Adds an item, done, to the object that it is in: item number i. */
CONC__PRIVATE int conc__measure_item(const conc__maker *m, conc__object *o,
                                     const conc_value *v, uint32_t i) {
  bool hashable = true;
  o->nodes++;
  if (conc__is_text(v->type)) {
    o->bytes += v->size; /* both below 2^63: no overflow before the check */
    hashable = v->type != CONC_BYTEARRAY;
  } else if (v->type >= CONC__TYPE_CALLABLE) {
    return v->type == CONC__TYPE_CALLABLE ? -EACCES : -EBADMSG;
  } else if (conc__is_container(v->type)) {
    const conc__object *part = CONC__OBJECTS(m) + v->as.at;
    hashable = part->hashable;
    o->nodes += part->nodes;
    o->bytes += part->bytes;
    if (part->height >= o->height)
      o->height = (unsigned char)(part->height + 1);
  }
  if (!hashable) {
    if (o->type == CONC_SET || o->type == CONC_FROZENSET ||
        (o->type == CONC_DICT && i % 2 == 0))
      return -EBADMSG;
    o->hashable = false;
  }
  return o->nodes > CONC__VALUE_NODES || o->height > CONC__VALUE_DEPTH ||
                 o->bytes > CONC__VALUE_BYTES + m->input_size + m->extra.size
             ? -EMSGSIZE
             : 0;
}

CONC__PRIVATE int conc__measure(const conc__maker *m, size_t root,
                                conc__measured *sum) {
  struct conc__visit {
    uint32_t object, item; /* item: how many are done */
    conc__stretch run;
  } level[CONC__VALUE_DEPTH], *in = level;
  unsigned depth = 0;
  size_t enter = root;
  for (;;) {
    conc__object *o;
    const conc_value *v = NULL;
    if (enter != SIZE_MAX) {
      if (depth == CONC__VALUE_DEPTH) return -EMSGSIZE;
      o = CONC__OBJECTS(m) + enter;
      o->state = CONC__OPEN;
      o->height = 1;
      o->hashable = o->type == CONC_TUPLE || o->type == CONC_FROZENSET;
      in = &level[depth++];
      in->object = (uint32_t)enter;
      in->item = 0;
      in->run = o->run;
      enter = SIZE_MAX;
    }
    o = CONC__OBJECTS(m) + in->object;
    for (; in->item < o->count; in->item++) {
      int rc;
      if (in->run.count == 0) in->run = CONC__RUNS(m)[in->run.next - 1];
      v = CONC__POOL(m) + in->run.start;
      if (conc__is_container(v->type) && v->type < CONC__TYPE_CALLABLE) {
        const conc__object *part = CONC__OBJECTS(m) + v->as.at;
        if (part->state == CONC__OPEN) return -EMSGSIZE; /* endless */
        if (part->state == CONC__FRESH) break; /* first, then v again */
      }
      sum->text |= conc__is_text(v->type);
      rc = conc__measure_item(m, o, v, in->item);
      if (rc != 0) return rc;
      in->run.start++;
      in->run.count--;
    }
    if (in->item < o->count) {
      enter = v->as.at;
      continue;
    }
    o->state = CONC__DONE;
    sum->slots += o->count;
    if (o->type == CONC_DICT) sum->slots += conc__index_slots(o->count / 2);
    if (sum->first == 0)
      sum->first = in->object + 1;
    else
      CONC__OBJECTS(m)[sum->last - 1].then = in->object + 1;
    sum->last = in->object + 1;
    if (--depth == 0) return 0;
    in = &level[depth - 1];
  }
}

/* --- laying out --- */

/* Makes a node of the maker one of the value. The NUL behind a text replaces
   what stood there in the input: the next opcode, or the end of a line. */
CONC__PRIVATE void conc__node_finish(const conc__maker *m, conc_value *v,
                                     unsigned char *text) {
  if (conc__is_container(v->type)) {
    const conc__object *o = CONC__OBJECTS(m) + v->as.at;
    v->size = o->size;
    v->as.items = o->items;
  } else if (conc__is_text(v->type)) {
    const size_t at = v->as.at;
    text[at + v->size] = 0;
    v->as.bytes = text + at;
  }
}

/* Whether a key differs from itself in Python, by a NaN in it: such keys are
   never one. Keys are small, and only those that look equal are asked. */
CONC__PRIVATE bool conc__has_nan(const conc_value *v) {
  conc__walk w;
  int step;
  conc__walk_begin(&w, v);
  while ((step = conc__walk_step(&w)) != CONC__WALK_END)
    if (step == CONC__WALK_LEAF && w.value->type == CONC_FLOAT &&
        w.value->as.real != w.value->as.real)
      return true;
  return false;
}

/* Sorts the items of a set and drops what is there twice. */
CONC__PRIVATE size_t conc__settle_set(conc_value *items, size_t n) {
  conc__sorting s;
  size_t i, kept = 1;
  if (n < 2) return n;
  s.items = items;
  s.index = NULL;
  conc__sort(&s, n);
  for (i = 1; i < n; i++)
    if (conc__sort_order(&s, kept - 1, i) != 0 || conc__has_nan(items + i))
      items[kept++] = items[i];
  return kept;
}

/* Makes the index of a dict behind its pairs. Of equal keys the first stays,
   with the value of the last: as if they had been set one by one. */
CONC__PRIVATE size_t conc__settle_dict(conc_value *items, size_t pairs) {
  conc__sorting s;
  size_t i, kept, group = 0;
  bool twice = false;
  if (pairs < 2) return pairs;
  s.items = items;
  for (;;) {
    s.index = (uint32_t *)(void *)(items + pairs * 2);
    for (i = 0; i < pairs; i++) s.index[i] = (uint32_t)i;
    conc__sort(&s, pairs);
    if (twice) return pairs; /* the second time there are none */
    for (i = 1; i < pairs; i++) {
      conc_value *first = items + (size_t)s.index[group] * 2;
      conc_value *pair = items + (size_t)s.index[i] * 2;
      if (conc__compare(first, pair, false) != 0 || conc__has_nan(pair)) {
        group = i;
      } else {
        first[1] = pair[1];
        pair->type = CONC__TYPE_GAP;
        twice = true;
      }
    }
    if (!twice) return pairs;
    for (i = kept = 0; i < pairs; i++) {
      if (items[i * 2].type == CONC__TYPE_GAP) continue;
      items[kept * 2] = items[i * 2];
      items[kept * 2 + 1] = items[i * 2 + 1];
      kept++;
    }
    pairs = kept;
    if (pairs < 2) return pairs;
  }
}

/* Copies the items of an object, which are done, to `items`. */
CONC__PRIVATE void conc__lay_out(const conc__maker *m, conc__object *o,
                                 conc_value *items, unsigned char *text) {
  conc__stretch run = o->run;
  uint32_t done = 0, i;
  o->items = items;
  o->size = o->count;
  while (done < o->count) {
    memcpy(items + done, CONC__POOL(m) + run.start,
           run.count * sizeof *items);
    done += run.count;
    if (done < o->count) run = CONC__RUNS(m)[run.next - 1];
  }
  for (i = 0; i < done; i++) conc__node_finish(m, items + i, text);
  if (o->type == CONC_DICT)
    o->size = conc__settle_dict(items, o->count / 2);
  else if (o->type == CONC_SET || o->type == CONC_FROZENSET)
    o->size = conc__settle_set(items, o->count);
}

/* Makes the value of the one node on the stack. */
CONC__PRIVATE int conc__maker_finish(conc__maker *m, conc_value **out) {
  const conc_value *root = CONC__STACK(m);
  conc__measured sum;
  size_t bytes = 0, slots;
  unsigned char *text;
  conc_value *v;
  uint32_t i;
  sum.slots = 0;
  sum.text = conc__is_text(root->type);
  sum.first = sum.last = 0;
  if (root->type >= CONC__TYPE_CALLABLE)
    return root->type == CONC__TYPE_CALLABLE ? -EACCES : -EBADMSG;
  if (conc__is_container(root->type)) {
    int rc = conc__measure(m, root->as.at, &sum);
    if (rc != 0) return rc;
  }
  if (m->input_size > SIZE_MAX / 4 || m->extra.size > SIZE_MAX / 4)
    return -ENOMEM;
  /* All of the input is copied as the text: an opcode or two between texts
     costs less than moving and sharing each of them. */
  if (sum.text) bytes = m->input_size + m->extra.size + 1;
  slots = sum.slots + 1;
  v = (conc_value *)CONC_MALLOC(slots * sizeof *v + bytes);
  if (v == NULL) return -ENOMEM;
  text = (unsigned char *)(v + slots);
  if (sum.text) {
    if (m->input_size > 0) memcpy(text, m->input, m->input_size);
    if (m->extra.size > 0)
      memcpy(text + m->input_size, m->extra.data, m->extra.size);
  }
  slots = 1;
  for (i = sum.first; i != 0;) {
    conc__object *o = CONC__OBJECTS(m) + i - 1;
    conc__lay_out(m, o, v + slots, text);
    slots += o->count;
    if (o->type == CONC_DICT) slots += conc__index_slots(o->count / 2);
    i = o->then;
  }
  *v = *root;
  conc__node_finish(m, v, text);
  *out = v;
  return 0;
}

/* ---------------------------------------------------------------------------
   >>pickle: Python's pickle, read as data
   ------------------------------------------------------------------------ */

/* --- pickle: reading ---

   Pickle is a program for a small machine: a stack, marks on it, and a memo.
   This one has no opcode that runs anything. A name (GLOBAL) is refused
   unless it is one of those that data is made with, or Token, which the
   protocol sends; with limits->objects (a client reading a reply, where a
   Python exception may stand) it may be any, and calling it makes an inert
   CONC_OBJECT. -EACCES says "wants more than data", -EBADMSG "is no pickle".

   Nothing goes below the mark that is on top; every length is compared with
   what is left of the input before it is used. */

typedef struct conc__pickle_limits {
  bool objects; /* any class may be named and instantiated: inert */
} conc__pickle_limits;

static const conc__pickle_limits conc__pickle_reply_limits
    __attribute__((unused)) = {true};

/* Opcodes of a pickle: as many nodes, each memoized, with its containers. */
#define CONC__PICKLE_OPCODES (4 * CONC__VALUE_NODES)

/* What a name stands for; the size of a CONC__TYPE_CALLABLE. */
enum {
  CONC__CALL_BYTES,
  CONC__CALL_BYTEARRAY,
  CONC__CALL_SET,
  CONC__CALL_FROZENSET,
  CONC__CALL_ENCODE,
  CONC__CALL_OBJECT /* as.at: an object of two items, module and class */
};

typedef struct conc__reader {
  const unsigned char *begin, *p, *end;
  bool objects;
  int protocol;
  conc__maker m;
} conc__reader;

CONC__INLINE uint64_t conc__little_endian(const unsigned char *p, size_t n) {
  uint64_t value = 0;
  while (n-- > 0) value = value << 8 | p[n];
  return value;
}

/* Reads a number of `width` bytes, as the rest of an opcode. */
CONC__INLINE int conc__read_number(conc__reader *r, size_t width,
                                   uint64_t *out) {
  if ((size_t)(r->end - r->p) < width) return -EBADMSG;
  *out = conc__little_endian(r->p, width);
  r->p += width;
  return 0;
}

/* Reads a length of `width` bytes and steps over that many: *at, *size. */
CONC__INLINE int conc__read_counted(conc__reader *r, size_t width, size_t *at,
                                    size_t *size) {
  uint64_t n = 0;
  int rc = conc__read_number(r, width, &n);
  if (rc != 0 || n > (size_t)(r->end - r->p)) return -EBADMSG;
  *at = (size_t)(r->p - r->begin);
  *size = (size_t)n;
  r->p += n;
  return 0;
}

/* How many nodes stand above the top mark. */
CONC__INLINE uint32_t conc__above_mark(const conc__maker *m) {
  return m->stack.count -
         (m->marks.count > 0 ? CONC__MARKS(m)[m->marks.count - 1] : 0);
}

CONC__INLINE int conc__read_text(conc__reader *r, conc_type type,
                                 size_t width) {
  size_t at = 0, size = 0;
  int rc = conc__read_counted(r, width, &at, &size);
  if (rc != 0) return rc;
  if (type == CONC_STR && !conc__utf8_valid(r->begin + at, size))
    return -EBADMSG;
  return conc__push(&r->m, type, size, at);
}

CONC__PRIVATE int conc__read_long(conc__reader *r, size_t width) {
  size_t at = 0, size = 0;
  int rc = conc__read_counted(r, width, &at, &size);
  return rc != 0 ? rc : conc__push_long(&r->m, r->begin + at, size, at);
}

/* The rest of a line, as protocol 0 writes what follows an opcode. */
CONC__PRIVATE int conc__read_line(conc__reader *r, const unsigned char **line,
                                  size_t *size) {
  const size_t left = (size_t)(r->end - r->p);
  const unsigned char *end =
      left == 0 ? NULL : (const unsigned char *)memchr(r->p, '\n', left);
  if (end == NULL) return -EBADMSG;
  *line = r->p;
  *size = (size_t)(end - r->p);
  r->p = end + 1;
  return 0;
}

/* INT, LONG: a line of decimal digits, of LONG with an L. Python 2 writes ints
   so that do not fit in 32 bits, at every protocol; I00 and I01 are False and
   True of old. */
CONC__PRIVATE int conc__read_int_line(conc__reader *r, bool is_long) {
  const unsigned char *p = NULL;
  size_t n = 0, i;
  int rc = conc__read_line(r, &p, &n);
  if (rc != 0) return rc;
  if (!is_long && n == 2 && p[0] == '0' && (p[1] == '0' || p[1] == '1'))
    return conc__push_bool(&r->m, p[1] == '1');
  if (is_long && n > 0 && p[n - 1] == 'L') n--;
  i = n > 0 && *p == '-';
  if (i == n) return -EBADMSG;
  for (; i < n; i++)
    if (p[i] < '0' || p[i] > '9') return -EBADMSG;
  return conc__push_decimal(&r->m, p, n);
}

/* FLOAT: what repr() made of it. */
CONC__PRIVATE int conc__read_float_line(conc__reader *r) {
  const unsigned char *p = NULL;
  bool real, wrong = false, minus;
  size_t n = 0;
  int rc = conc__read_line(r, &p, &n);
  if (rc != 0) return rc;
  minus = n > 0 && *p == '-';
  if (n == 3u + minus && (memcmp(p + minus, "inf", 3) == 0 ||
                          memcmp(p + minus, "nan", 3) == 0)) {
    char text[5] = {0};
    memcpy(text, p, n);
    return conc__push_float(&r->m, strtod(text, NULL));
  }
  if (conc__scan_number(p, p + n, &real, &wrong) != p + n || wrong)
    return -EBADMSG;
  return conc__push_float(&r->m, conc__decimal(p, n));
}

/* Reads so many hexadecimal digits. */
CONC__PRIVATE bool conc__hex(const unsigned char *p, const unsigned char *end,
                             size_t digits, uint32_t *out) {
  uint32_t c = 0;
  if ((size_t)(end - p) < digits) return false;
  for (; digits > 0; digits--, p++) {
    const unsigned lower = *p | 32u;
    if (*p >= '0' && *p <= '9')
      c = c << 4 | (*p - '0' + 0u);
    else if (lower >= 'a' && lower <= 'f')
      c = c << 4 | (lower - 'a' + 10);
    else
      return false;
  }
  *out = c;
  return true;
}

/* UNICODE: each byte is a character but for \uXXXX and \UXXXXXXXX. A
   backslash before anything else stands for both. */
CONC__PRIVATE int conc__read_unicode_line(conc__reader *r) {
  const unsigned char *p = NULL, *end;
  unsigned char *out = NULL;
  size_t n = 0, size = 0;
  int rc = conc__read_line(r, &p, &n);
  if (rc == 0) rc = n > SIZE_MAX / 4 ? -ENOMEM : 0;
  if (rc == 0) rc = conc__extra_reserve(&r->m, n * 2, &out);
  if (rc != 0) return rc;
  for (end = p + n; p < end;) {
    uint32_t c = *p++;
    if (c == '\\' && p < end) {
      const size_t digits = *p == 'u' ? 4 : *p == 'U' ? 8 : 0;
      if (digits == 0) out[size++] = '\\';
      c = *p++;
      if (digits > 0) {
        if (!conc__hex(p, end, digits, &c) || c > 0x10ffff) return -EBADMSG;
        p += digits;
      }
    }
    size += conc__utf8_put(out + size, c);
  }
  return conc__push_extra(&r->m, CONC_STR, size);
}

/* Makes the bytes on top a str if they are UTF-8: a Python 2 str, which may
   have been meant as either. */
CONC__PRIVATE void conc__bytes_to_str_if_utf8(conc__reader *r) {
  conc_value *v = CONC__STACK(&r->m) + r->m.stack.count - 1;
  if (conc__utf8_valid(conc__made_text(&r->m, v), v->size)) v->type = CONC_STR;
}

CONC__PRIVATE int conc__read_old_text(conc__reader *r, size_t width) {
  int rc = conc__read_text(r, CONC_BYTES, width);
  if (rc == 0) conc__bytes_to_str_if_utf8(r);
  return rc;
}

/* STRING: what Python 2's repr() made of it, in quotes. */
CONC__PRIVATE int conc__read_string_line(conc__reader *r) {
  static const char known[] = "\\\\''\"\"n\nr\rt\t";
  const unsigned char *p = NULL, *end;
  unsigned char *out = NULL;
  size_t n = 0, size = 0;
  int rc = conc__read_line(r, &p, &n);
  if (rc == 0 && (n < 2 || (*p != '\'' && *p != '"') || p[n - 1] != *p))
    rc = -EBADMSG;
  if (rc == 0) rc = conc__extra_reserve(&r->m, n, &out);
  if (rc != 0) return rc;
  for (end = p + n - 1, p++; p < end;) {
    uint32_t c = *p++;
    if (c == '\\') {
      size_t i = 0;
      if (p == end) return -EBADMSG;
      if (*p == 'x') {
        if (!conc__hex(p + 1, end, 2, &c)) return -EBADMSG;
        p += 3;
      } else {
        while (known[i] != 0 && (unsigned char)known[i] != *p) i += 2;
        if (known[i] == 0) return -EBADMSG;
        c = (unsigned char)known[i + 1];
        p++;
      }
    }
    out[size++] = (unsigned char)c;
  }
  rc = conc__push_extra(&r->m, CONC_BYTES, size);
  if (rc == 0) conc__bytes_to_str_if_utf8(r);
  return rc;
}

/* The index of PUT and GET. */
CONC__PRIVATE int conc__read_index_line(conc__reader *r, uint64_t *index) {
  const unsigned char *p = NULL;
  size_t n = 0;
  int rc = conc__read_line(r, &p, &n);
  if (rc != 0 || n == 0 || n > 10) return -EBADMSG;
  for (*index = 0; n > 0; n--, p++) {
    if (*p < '0' || *p > '9') return -EBADMSG;
    *index = *index * 10 + (uint64_t)(*p - '0');
  }
  return 0;
}

CONC__PRIVATE int conc__read_float(conc__reader *r) {
  uint64_t bits = 0;
  double f;
  int i;
  if (r->end - r->p < 8) return -EBADMSG;
  for (i = 0; i < 8; i++) bits = bits << 8 | *r->p++;
  memcpy(&f, &bits, sizeof f);
  return conc__push_float(&r->m, f);
}

CONC__PRIVATE int conc__read_mark(conc__maker *m) {
  int rc = conc__array_reserve(&m->marks, 1, sizeof(uint32_t));
  if (rc == 0) CONC__MARKS(m)[m->marks.count++] = m->stack.count;
  return rc;
}

/* Takes the top mark away and tells what stood above it. */
CONC__INLINE int conc__read_to_mark(conc__maker *m, uint32_t *n) {
  if (m->marks.count == 0) return -EBADMSG;
  *n = conc__above_mark(m);
  m->marks.count--;
  return 0;
}

/* Puts the top n nodes into the container below them. */
CONC__PRIVATE int conc__read_fill(conc__maker *m, conc_type type, uint32_t n) {
  const conc_value *target;
  if (conc__above_mark(m) <= n) return -EBADMSG;
  target = CONC__STACK(m) + m->stack.count - n - 1;
  if (target->type != type || (type == CONC_DICT && n % 2 != 0))
    return -EBADMSG;
  return conc__object_fill(m, target->as.at, n);
}

CONC__PRIVATE int conc__read_fill_marked(conc__maker *m, conc_type type) {
  uint32_t n = 0;
  int rc = conc__read_to_mark(m, &n);
  return rc != 0 ? rc : conc__read_fill(m, type, n);
}

CONC__PRIVATE int conc__read_collect(conc__maker *m, conc_type type,
                                     uint32_t n) {
  if (conc__above_mark(m) < n || (type == CONC_DICT && n % 2 != 0))
    return -EBADMSG;
  return conc__collect(m, type, n);
}

CONC__PRIVATE int conc__read_collect_marked(conc__maker *m, conc_type type) {
  uint32_t n = 0;
  int rc = conc__read_to_mark(m, &n);
  return rc != 0 ? rc : conc__read_collect(m, type, n);
}

/* The memo is dense: an index may be at most the next one, or leave out one
   (Python 2's cPickle counts from 1). So no index makes it large. */
CONC__PRIVATE int conc__read_put(conc__maker *m, uint64_t index) {
  conc_value v;
  int rc;
  if (conc__above_mark(m) == 0 || index > (uint64_t)m->memo.count + 1)
    return -EBADMSG;
  rc = conc__array_reserve(&m->memo, 2, sizeof v);
  if (rc != 0) return rc;
  v = CONC__STACK(m)[m->stack.count - 1];
  if (index > m->memo.count)
    CONC__MEMO(m)[m->memo.count++].type = CONC__TYPE_GAP;
  CONC__MEMO(m)[index] = v;
  if (index == m->memo.count) m->memo.count++;
  return 0;
}

CONC__PRIVATE int conc__read_get(conc__maker *m, uint64_t index) {
  if (index >= m->memo.count || CONC__MEMO(m)[index].type == CONC__TYPE_GAP)
    return -EBADMSG;
  return conc__push_node(m, CONC__MEMO(m) + index);
}

CONC__PRIVATE bool conc__text_is(const conc__maker *m, const conc_value *v,
                                 const char *text) {
  const size_t n = strlen(text);
  return v->type == CONC_STR && v->size == n &&
         memcmp(conc__made_text(m, v), text, n) == 0;
}

/* Replaces module and class, the top two nodes, by a name. */
CONC__PRIVATE int conc__read_name(conc__reader *r) {
  static const struct {
    const char *module, *name;
    size_t call;
  } table[] = {
      {"builtins", "bytearray", CONC__CALL_BYTEARRAY},
      {"builtins", "bytes", CONC__CALL_BYTES},
      {"builtins", "set", CONC__CALL_SET},
      {"builtins", "frozenset", CONC__CALL_FROZENSET},
      {"__builtin__", "bytearray", CONC__CALL_BYTEARRAY},
      {"__builtin__", "bytes", CONC__CALL_BYTES},
      {"__builtin__", "set", CONC__CALL_SET},
      {"__builtin__", "frozenset", CONC__CALL_FROZENSET},
      {"_codecs", "encode", CONC__CALL_ENCODE},
      {"multiprocessing.managers", "Token", CONC__CALL_OBJECT},
  };
  conc__maker *m = &r->m;
  const conc_value *top;
  size_t i;
  int rc;
  if (conc__above_mark(m) < 2) return -EBADMSG;
  top = CONC__STACK(m) + m->stack.count - 2;
  if (top[0].type != CONC_STR || top[1].type != CONC_STR) return -EBADMSG;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    if (!conc__text_is(m, top, table[i].module)) continue;
    if (!conc__text_is(m, top + 1, table[i].name)) continue;
    if (table[i].call == CONC__CALL_OBJECT) break;
    m->stack.count -= 2;
    return conc__push(m, CONC__TYPE_CALLABLE, table[i].call, 0);
  }
  if (i == sizeof table / sizeof *table && !r->objects) return -EACCES;
  rc = conc__collect(m, CONC_OBJECT, 2);
  if (rc != 0) return rc;
  CONC__STACK(m)[m->stack.count - 1].type = CONC__TYPE_CALLABLE;
  CONC__STACK(m)[m->stack.count - 1].size = CONC__CALL_OBJECT;
  return 0;
}

/* GLOBAL: module and class are lines of text. */
CONC__PRIVATE int conc__read_global(conc__reader *r) {
  int i;
  for (i = 0; i < 2; i++) {
    const unsigned char *line = NULL;
    size_t n = 0;
    int rc = conc__read_line(r, &line, &n);
    if (rc != 0 || !conc__utf8_valid(line, n)) return -EBADMSG;
    rc = conc__push(&r->m, CONC_STR, n, (size_t)(line - r->begin));
    if (rc != 0) return rc;
  }
  return conc__read_name(r);
}

/* Pushes the bytes of which a str shows each as a character: how protocols
   before 3 write bytes. They need memory of their own if they are not ASCII,
   but together not more than a small multiple of the input, as every such str
   is used once (and took twice its size there, if it was a line). */
CONC__PRIVATE int conc__push_latin1(conc__maker *m, conc_type type,
                                    const conc_value *str) {
  const conc_value v = *str;
  const unsigned char *p = conc__made_text(m, &v);
  const size_t at = m->input_size + m->extra.size;
  size_t i = 0, n = 0;
  int rc;
  if (conc__ascii(p, v.size) == v.size)
    return conc__push(m, type, v.size, v.as.at);
  if ((m->extra.size + v.size) / 4 > m->input_size) return -EMSGSIZE;
  rc = conc__buffer_reserve(&m->extra, v.size + 1);
  if (rc != 0) return rc;
  p = conc__made_text(m, &v);
  while (i < v.size) {
    uint32_t c = 0;
    i += conc__utf8(p + i, v.size - i, &c);
    if (c > 0xff) return -EBADMSG;
    m->extra.data[m->extra.size + n++] = (unsigned char)c;
  }
  m->extra.data[m->extra.size + n] = 0;
  m->extra.size += n + 1;
  return conc__push(m, type, n, at);
}

/* Calls a name with arguments: pushes what it makes. */
CONC__PRIVATE int conc__read_made(conc__reader *r, const conc_value *name,
                                  const conc_value *args) {
  conc__maker *m = &r->m;
  const conc__object *o = CONC__OBJECTS(m) + args->as.at;
  const conc_value *arg = CONC__POOL(m) + o->run.start; /* a tuple: one run */
  const uint32_t n = o->count;
  conc_type type = CONC_BYTES;
  conc_value parts[4];
  uint32_t i;
  int rc = 0;
  switch (name->size) {
  case CONC__CALL_SET:
  case CONC__CALL_FROZENSET:
    type = name->size == CONC__CALL_SET ? CONC_SET : CONC_FROZENSET;
    if (n == 0) return conc__push_object(m, type);
    if (n != 1 || arg->type < CONC_LIST || arg->type > CONC_FROZENSET ||
        arg->type == CONC_DICT)
      return -EBADMSG;
    return conc__push_copy(m, type, arg->as.at);
  case CONC__CALL_BYTEARRAY: type = CONC_BYTEARRAY; /* fall through */
  case CONC__CALL_BYTES:
    /* an empty text may lie anywhere that has a byte for its NUL */
    if (n == 0) return conc__push(m, type, 0, (size_t)(r->p - r->begin) - 1);
    if (n == 1 && (arg->type == CONC_BYTES || arg->type == CONC_BYTEARRAY))
      return conc__push(m, type, arg->size, arg->as.at);
    if (n == 1) return -EBADMSG;
    /* fall through */
  case CONC__CALL_ENCODE:
    if (n != 2 || arg[0].type != CONC_STR || arg[1].type != CONC_STR)
      return -EBADMSG;
    if (!conc__text_is(m, arg + 1, "latin1") &&
        !conc__text_is(m, arg + 1, "latin-1"))
      return -EACCES;
    return conc__push_latin1(m, type, arg);
  default: break;
  }
  arg = CONC__POOL(m) + CONC__OBJECTS(m)[name->as.at].run.start;
  parts[0] = arg[0];
  parts[1] = arg[1];
  parts[2] = *args;
  parts[3].type = CONC_NONE;
  parts[3].size = 0;
  parts[3].as.at = 0;
  for (i = 0; rc == 0 && i < 4; i++) rc = conc__push_node(m, parts + i);
  return rc != 0 ? rc : conc__collect(m, CONC_OBJECT, 4);
}

/* REDUCE, and NEWOBJ, which only classes are for. */
CONC__PRIVATE int conc__read_call(conc__reader *r, bool is_class) {
  conc__maker *m = &r->m;
  conc_value name, args;
  if (conc__above_mark(m) < 2) return -EBADMSG;
  name = CONC__STACK(m)[m->stack.count - 2];
  args = CONC__STACK(m)[m->stack.count - 1];
  if (name.type != CONC__TYPE_CALLABLE || args.type != CONC_TUPLE)
    return -EBADMSG;
  if (is_class && name.size != CONC__CALL_OBJECT) return -EBADMSG;
  m->stack.count -= 2;
  return conc__read_made(r, &name, &args);
}

/* BUILD: gives a CONC_OBJECT its state, the last of its items. */
CONC__PRIVATE int conc__read_build(conc__maker *m) {
  const conc_value *object;
  if (conc__above_mark(m) < 2) return -EBADMSG;
  object = CONC__STACK(m) + m->stack.count - 2;
  if (object->type != CONC_OBJECT) return -EBADMSG;
  CONC__POOL(m)[CONC__OBJECTS(m)[object->as.at].run.start + 3] = object[1];
  m->stack.count--;
  return 0;
}

/* POP takes the mark if that is on top, as Python's machine does. */
CONC__PRIVATE int conc__read_pop(conc__maker *m) {
  if (conc__above_mark(m) > 0)
    m->stack.count--;
  else if (m->marks.count > 0)
    m->marks.count--;
  else
    return -EBADMSG;
  return 0;
}

CONC__PRIVATE int conc__read_opcode(conc__reader *r, unsigned char op) {
  conc__maker *m = &r->m;
  uint64_t u = 0;
  uint32_t n = 0;
  int rc;
  switch (op) {
  case 0x80: /* PROTO */
    rc = conc__read_number(r, 1, &u);
    if (rc != 0 || u > 5) return -EBADMSG;
    r->protocol = (int)u;
    return 0;
  case 0x95: /* FRAME: a hint for readers of files; frames may not lie */
    rc = conc__read_number(r, 8, &u);
    return rc != 0 || u > (size_t)(r->end - r->p) ? -EBADMSG : 0;
  case 'N': return conc__push(m, CONC_NONE, 0, 0);
  case 0x88: return conc__push_bool(m, true);
  case 0x89: return conc__push_bool(m, false);
  case 'K': /* BININT1, BININT2, BININT */
    rc = conc__read_number(r, 1, &u);
    return rc != 0 ? rc : conc__push_int(m, (int64_t)u);
  case 'M':
    rc = conc__read_number(r, 2, &u);
    return rc != 0 ? rc : conc__push_int(m, (int64_t)u);
  case 'J':
    rc = conc__read_number(r, 4, &u);
    return rc != 0 ? rc : conc__push_int(m, (int32_t)(uint32_t)u);
  case 'I': return conc__read_int_line(r, false);
  case 'L': return conc__read_int_line(r, true);
  case 'F': return conc__read_float_line(r);
  case 'S': return conc__read_string_line(r);
  case 'V': return conc__read_unicode_line(r);
  case 0x8a: return conc__read_long(r, 1);
  case 0x8b: return conc__read_long(r, 4); /* < 0 is more than is left */
  case 'G': return conc__read_float(r);
  case 0x8c: return conc__read_text(r, CONC_STR, 1);
  case 'X': return conc__read_text(r, CONC_STR, 4);
  case 0x8d: return conc__read_text(r, CONC_STR, 8);
  case 'C': return conc__read_text(r, CONC_BYTES, 1);
  case 'B': return conc__read_text(r, CONC_BYTES, 4);
  case 0x8e: return conc__read_text(r, CONC_BYTES, 8);
  case 0x96: return conc__read_text(r, CONC_BYTEARRAY, 8);
  case 'U': return conc__read_old_text(r, 1);
  case 'T': return conc__read_old_text(r, 4);
  case '(': return conc__read_mark(m);
  case ')': return conc__read_collect(m, CONC_TUPLE, 0);
  case 0x85: return conc__read_collect(m, CONC_TUPLE, 1);
  case 0x86: return conc__read_collect(m, CONC_TUPLE, 2);
  case 0x87: return conc__read_collect(m, CONC_TUPLE, 3);
  case 't': return conc__read_collect_marked(m, CONC_TUPLE);
  case 'l': return conc__read_collect_marked(m, CONC_LIST);
  case 'd': return conc__read_collect_marked(m, CONC_DICT);
  case 0x91: return conc__read_collect_marked(m, CONC_FROZENSET);
  case ']': return conc__push_object(m, CONC_LIST);
  case '}': return conc__push_object(m, CONC_DICT);
  case 0x8f: return conc__push_object(m, CONC_SET);
  case 'a': return conc__read_fill(m, CONC_LIST, 1);
  case 's': return conc__read_fill(m, CONC_DICT, 2);
  case 'e': return conc__read_fill_marked(m, CONC_LIST);
  case 'u': return conc__read_fill_marked(m, CONC_DICT);
  case 0x90: return conc__read_fill_marked(m, CONC_SET);
  case 'p': /* PUT, BINPUT, LONG_BINPUT, MEMOIZE */
    rc = conc__read_index_line(r, &u);
    return rc != 0 ? rc : conc__read_put(m, u);
  case 'q':
    rc = conc__read_number(r, 1, &u);
    return rc != 0 ? rc : conc__read_put(m, u);
  case 'r':
    rc = conc__read_number(r, 4, &u);
    return rc != 0 ? rc : conc__read_put(m, u);
  case 0x94: return conc__read_put(m, m->memo.count);
  case 'g': /* GET, BINGET, LONG_BINGET */
    rc = conc__read_index_line(r, &u);
    return rc != 0 ? rc : conc__read_get(m, u);
  case 'h':
    rc = conc__read_number(r, 1, &u);
    return rc != 0 ? rc : conc__read_get(m, u);
  case 'j':
    rc = conc__read_number(r, 4, &u);
    return rc != 0 ? rc : conc__read_get(m, u);
  case 'c': return conc__read_global(r);
  case 0x93: return conc__read_name(r); /* STACK_GLOBAL */
  case 'R': return conc__read_call(r, false);
  case 0x81: return conc__read_call(r, true); /* NEWOBJ */
  case 'b': return conc__read_build(m);
  case '0': return conc__read_pop(m);
  case '1': /* POP_MARK */
    rc = conc__read_to_mark(m, &n);
    m->stack.count -= n;
    return rc;
  case '2': /* DUP */
    if (conc__above_mark(m) == 0) return -EBADMSG;
    return conc__push_node(m, CONC__STACK(m) + m->stack.count - 1);
  case 'i':
  case 'o':
  case 'P':
  case 'Q':
  case 0x82:
  case 0x83:
  case 0x84:
  case 0x92:
  case 0x97:
  case 0x98:
    /* INST, OBJ, persistent ids, extensions, NEWOBJ_EX, buffers: all make
       or fetch what is not in the pickle */
    return -EACCES;
  default: return -EBADMSG;
  }
}

/* Reads one pickle that ends where the data ends. `limits` may be NULL: data
   alone. *protocol (not if NULL) is what the pickle says of itself, 0 if
   nothing. Errors as conc_pickle_loads. */
CONC__PRIVATE int conc__pickle_decode(const void *data, size_t size,
                                      const conc__pickle_limits *limits,
                                      conc_value **out, int *protocol) {
  uint32_t opcodes = CONC__PICKLE_OPCODES;
  conc__reader r;
  int rc = 0;
  r.begin = r.p = (const unsigned char *)data;
  r.end = size > 0 ? r.p + size : r.p;
  r.objects = limits != NULL && limits->objects;
  r.protocol = 0;
  *out = NULL;
  conc__maker_init(&r.m, r.begin, size);
  while (rc == 0) {
    unsigned char op;
    if (r.p == r.end) {
      rc = -EBADMSG;
      break;
    }
    if (opcodes-- == 0) {
      rc = -EMSGSIZE;
      break;
    }
    op = *r.p++;
    if (op != '.') {
      rc = conc__read_opcode(&r, op);
      continue;
    }
    /* STOP: bytes behind it could be a second message to a laxer reader */
    if (r.p != r.end || r.m.stack.count != 1 || r.m.marks.count != 0)
      rc = -EBADMSG;
    else
      rc = conc__maker_finish(&r.m, out);
    break;
  }
  conc__maker_free(&r.m);
  if (protocol != NULL) *protocol = r.protocol;
  return rc;
}

CONC_API int conc_pickle_loads(conc_value **out, const void *data,
                               size_t size) {
  return conc__pickle_decode(data, size, NULL, out, NULL);
}

/* The class of a CONC_OBJECT, without its module; NULL for other values. */
CONC__PRIVATE const char *conc__object_name(const conc_value *v) {
  return conc_value_type(v) == CONC_OBJECT
             ? (const char *)v->as.items[1].as.bytes
             : NULL;
}

/* --- pickle: writing ---

   The plainest form: no frames, no memo, no place that depends on where it
   stands. So the body of a pickle (all but PROTO in front and STOP at its end)
   can be stored and spliced into another one. With protocol 2 it is read by
   Python 2.3 and later, with 3 by 3.0, with 4 and 5 (which differ only in
   opcodes that are not used here) by 3.4. */

CONC__INLINE int conc__put_op(conc__buffer *b, unsigned char op) {
  return conc__buffer_append(b, &op, 1);
}

CONC__PRIVATE int conc__put_text(conc__buffer *b, const char *text) {
  return conc__buffer_append(b, text, strlen(text));
}

/* An opcode and a number of `width` bytes. */
CONC__INLINE int conc__put_number(conc__buffer *b, unsigned char op,
                                  uint64_t n, size_t width) {
  unsigned char bytes[9];
  size_t i;
  bytes[0] = op;
  for (i = 1; i <= width; i++, n >>= 8) bytes[i] = (unsigned char)n;
  return conc__buffer_append(b, bytes, width + 1);
}

/* What Python writes for the same number, to the byte. */
CONC__PRIVATE int conc__pickle_put_int(conc__buffer *b, int64_t n) {
  const uint64_t u = (uint64_t)n;
  unsigned char bytes[10];
  size_t size;
  if (u <= 0xff) return conc__put_number(b, 'K', u, 1);
  if (u <= 0xffff) return conc__put_number(b, 'M', u, 2);
  if (n >= INT32_MIN && n <= INT32_MAX) return conc__put_number(b, 'J', u, 4);
  for (size = 0; size < 8; size++)
    bytes[2 + size] = (unsigned char)(u >> 8 * size);
  size = conc__bigint_size(bytes + 2, 8);
  bytes[0] = 0x8a;
  bytes[1] = (unsigned char)size;
  return conc__buffer_append(b, bytes, size + 2);
}

CONC__PRIVATE int conc__pickle_put_float(conc__buffer *b, double f) {
  unsigned char bytes[9];
  uint64_t bits;
  int i;
  memcpy(&bits, &f, sizeof bits);
  bytes[0] = 'G';
  for (i = 8; i > 0; i--, bits >>= 8) bytes[i] = (unsigned char)bits;
  return conc__buffer_append(b, bytes, sizeof bytes);
}

/* The head of a text: the opcodes for lengths of 1, 4 and 8 bytes, 0 if there
   is none. Makes room for the text too, so that it is copied once. */
CONC__PRIVATE int conc__put_head(conc__buffer *b, unsigned char op1,
                                 unsigned char op4, unsigned char op8,
                                 size_t size) {
  int rc = size > SIZE_MAX - 9 ? -ENOMEM : conc__buffer_reserve(b, size + 9);
  if (rc != 0) return rc;
  if (op1 != 0 && size <= 0xff) return conc__put_number(b, op1, size, 1);
  if (size <= 0xffffffffu) return conc__put_number(b, op4, size, 4);
  return op8 != 0 ? conc__put_number(b, op8, size, 8) : -EMSGSIZE;
}

/* The caller's text must be UTF-8. */
CONC__PRIVATE int conc__pickle_put_str(conc__buffer *b, const char *s,
                                       size_t size) {
  int rc = conc__put_head(b, 0, 'X', 0x8d, size);
  return rc != 0 ? rc : conc__buffer_append(b, s, size);
}

/* For protocols from 3: the caller appends the `size` bytes. */
CONC__PRIVATE int conc__pickle_put_bytes_head(conc__buffer *b, size_t size) {
  return conc__put_head(b, 'C', 'B', 0x8e, size);
}

/* Before protocol 3 bytes are written as the call _codecs.encode(str,
   'latin1'), which every Python makes bytes of (2: str). */
CONC__PRIVATE int conc__put_bytes_latin1(conc__buffer *b,
                                         const unsigned char *p, size_t size) {
  size_t i, high = 0;
  int rc;
  if (size == 0) return conc__put_text(b, "c__builtin__\nbytes\n)R");
  for (i = 0; i < size; i++) high += p[i] >> 7;
  if (size > SIZE_MAX - high) return -ENOMEM;
  rc = conc__put_text(b, "c_codecs\nencode\n");
  if (rc == 0) rc = conc__put_head(b, 0, 'X', 0, size + high);
  if (rc != 0) return rc;
  for (i = 0; i < size; i++) { /* conc__put_head has made room */
    if (p[i] >= 0x80) b->data[b->size++] = (unsigned char)(0xc0 | p[i] >> 6);
    b->data[b->size++] = p[i] >= 0x80 ? (p[i] & 0xbf) : p[i];
  }
  return conc__buffer_append(b, "X\6\0\0\0latin1\x86R", 13);
}

CONC__PRIVATE int conc__pickle_put_bytes(conc__buffer *b, const void *data,
                                         size_t size, int protocol) {
  int rc;
  if (protocol < 3)
    return conc__put_bytes_latin1(b, (const unsigned char *)data, size);
  rc = conc__pickle_put_bytes_head(b, size);
  return rc != 0 ? rc : conc__buffer_append(b, data, size);
}

CONC__PRIVATE int conc__put_leaf(conc__buffer *b, const conc_value *v,
                                 int protocol) {
  int rc;
  switch (v->type) {
  case CONC_NONE: return conc__put_op(b, 'N');
  case CONC_BOOL: return conc__put_op(b, v->as.boolean ? 0x88 : 0x89);
  case CONC_INT: return conc__pickle_put_int(b, v->as.integer);
  case CONC_FLOAT: return conc__pickle_put_float(b, v->as.real);
  case CONC_STR:
    return conc__pickle_put_str(b, (const char *)v->as.bytes, v->size);
  case CONC_BYTES:
    return conc__pickle_put_bytes(b, v->as.bytes, v->size, protocol);
  case CONC_BIGINT:
    rc = conc__put_head(b, 0x8a, 0x8b, 0, v->size);
    return rc != 0 ? rc : conc__buffer_append(b, v->as.bytes, v->size);
  case CONC_BYTEARRAY:
    rc = conc__put_text(b, protocol < 3 ? "c__builtin__\nbytearray\n"
                                        : "cbuiltins\nbytearray\n");
    if (rc == 0)
      rc = conc__pickle_put_bytes(b, v->as.bytes, v->size, protocol);
    return rc != 0 ? rc : conc__put_text(b, "\x85R"); /* TUPLE1 REDUCE */
  default: return -EACCES;
  }
}

CONC__PRIVATE int conc__put_open(conc__buffer *b, const conc_value *v,
                                 int protocol) {
  const bool frozen = v->type == CONC_FROZENSET;
  switch (v->type) {
  case CONC_TUPLE: return v->size > 3 ? conc__put_op(b, '(') : 0;
  case CONC_LIST: return conc__put_text(b, v->size > 0 ? "](" : "]");
  case CONC_DICT: return conc__put_text(b, v->size > 0 ? "}(" : "}");
  case CONC_SET:
  case CONC_FROZENSET:
    if (protocol >= 4) return conc__put_text(b, frozen ? "(" : "\x8f(");
    if (protocol == 3)
      return conc__put_text(b, frozen ? "cbuiltins\nfrozenset\n]("
                                      : "cbuiltins\nset\n](");
    return conc__put_text(b, frozen ? "c__builtin__\nfrozenset\n]("
                                    : "c__builtin__\nset\n](");
  default: return -EACCES;
  }
}

CONC__PRIVATE int conc__put_close(conc__buffer *b, const conc_value *v,
                                  int protocol) {
  static const unsigned char tuple[4] = {')', 0x85, 0x86, 0x87};
  switch (v->type) {
  case CONC_TUPLE: return conc__put_op(b, v->size > 3 ? 't' : tuple[v->size]);
  case CONC_LIST: return v->size > 0 ? conc__put_op(b, 'e') : 0;
  case CONC_DICT: return v->size > 0 ? conc__put_op(b, 'u') : 0;
  default:
    if (protocol < 4) return conc__put_text(b, "e\x85R");
    return conc__put_op(b, v->type == CONC_SET ? 0x90 : 0x91);
  }
}

/* Appends the body of a value's pickle. 0, -ENOMEM, -EINVAL for NULL, -EACCES
   for a CONC_OBJECT in it; after an error the buffer is as it was. */
CONC__PRIVATE int conc__pickle_encode(conc__buffer *b, const conc_value *v,
                                      int protocol) {
  const size_t before = b->size;
  conc__walk w;
  int rc = 0;
  if (v == NULL) return -EINVAL;
  if (!conc__is_container(v->type)) {
    rc = conc__put_leaf(b, v, protocol);
  } else {
    conc__walk_begin(&w, v);
    while (rc == 0) {
      const int step = conc__walk_step(&w);
      if (step == CONC__WALK_END) break;
      rc = step == CONC__WALK_LEAF   ? conc__put_leaf(b, w.value, protocol)
           : step == CONC__WALK_OPEN ? conc__put_open(b, w.value, protocol)
                                     : conc__put_close(b, w.value, protocol);
    }
  }
  if (rc != 0) b->size = before;
  return rc;
}

CONC_API int conc_pickle_dumps(const conc_value *value, int protocol,
                               void **out, size_t *size) {
  conc__buffer b = {NULL, 0, 0, 0};
  int rc;
  *out = NULL;
  *size = 0;
  if (protocol == 0) protocol = 4;
  if (protocol < 2 || protocol > 5) return -EINVAL;
  rc = conc__put_number(&b, 0x80, (uint64_t)protocol, 1);
  if (rc == 0) rc = conc__pickle_encode(&b, value, protocol);
  if (rc == 0) rc = conc__put_op(&b, '.');
  if (rc != 0) {
    conc__buffer_free(&b);
    return rc;
  }
  *out = b.data;
  *size = b.size;
  return 0;
}

/* Puts a stored body, the end of a buffer from `at` on, into protocol 2: for a
   Python 2 peer. After an error the buffer is as it was. */
CONC__PRIVATE int conc__pickle_downgrade(conc__buffer *b, size_t at) {
  conc__buffer old = {NULL, 0, 0, 0};
  conc_value *v = NULL;
  int rc = conc__put_op(b, '.'); /* a pickle needs no PROTO */
  if (rc != 0) return rc;
  rc = conc__pickle_decode(b->data + at, b->size - at, NULL, &v, NULL);
  b->size--;
  if (rc == 0) rc = conc__pickle_encode(&old, v, 2);
  if (rc == 0) rc = conc__buffer_reserve(b, old.size);
  if (rc == 0) {
    b->size = at;
    conc__buffer_append(b, old.data, old.size);
  }
  conc__buffer_free(&old);
  conc_value_free(v);
  return rc;
}

/* Where the content of a stored str or bytes lies in its body, of whose
   `total` bytes the first n are given. -EBADMSG if it is something else. */
CONC__PRIVATE int conc__pickle_content(const unsigned char *p, size_t n,
                                       size_t total, size_t *offset,
                                       size_t *size) {
  const unsigned char op = n > 0 ? *p : 0;
  const size_t width = op == 'C'                   ? 1
                       : op == 'X' || op == 'B'    ? 4
                       : op == 0x8d || op == 0x8e ? 8
                                                   : 0;
  if (width == 0 || n < 1 + width || total < 1 + width) return -EBADMSG;
  if (conc__little_endian(p + 1, width) != total - 1 - width) return -EBADMSG;
  *offset = 1 + width;
  *size = total - 1 - width;
  return 0;
}

/* ---------------------------------------------------------------------------
   >>format: conc_value_text, conc_build, conc_parse
   ------------------------------------------------------------------------ */

/* --- text --- */

/* Where conc_value_text writes: what does not fit is only counted. */
typedef struct conc__writer {
  char *buf;
  size_t size, length;
} conc__writer;

CONC__INLINE void conc__writer_put(conc__writer *s, const void *data,
                                   size_t n) {
  if (s->length < s->size && n > 0) {
    const size_t room = s->size - s->length;
    memcpy(s->buf + s->length, data, n < room ? n : room);
  }
  s->length += n;
}

CONC__PRIVATE void conc__writer_text(conc__writer *s, const char *text) {
  conc__writer_put(s, text, strlen(text));
}

/* The digits of a positive, finite double, as Python shows it: the fewest that
   are read as the same double. Returns how many; *point is where the decimal
   point stands (0: before the first).

   15 digits come back as they are through every normal double, so a shorter
   form shows as zeros at the end of those. snprintf and strtod speak of one
   locale, whose decimal point is not looked at here. */
CONC__PRIVATE int conc__float_digits(double f, char *digits, int *point) {
  char text[40];
  int precision = f < 2.2250738585072014e-308 ? 1 : 15;
  bool power;
  uint64_t bits;
  int n = 0;
  char *p;
  memcpy(&bits, &f, sizeof bits);
  power = bits << 12 == 0;
  for (;; precision++) {
    char *last;
    snprintf(text, sizeof text, "%.*e", precision - 1, f);
    if (precision == 17 || strtod(text, NULL) == f) break;
    /* At a power of two the doubles below lie closer than those above, so the
       nearest text may miss where the next one up would hit. */
    last = strchr(text, 'e') - 1;
    if (power && *last != '9') {
      ++*last;
      if (strtod(text, NULL) == f) break;
    }
  }
  for (p = text; *p != 'e'; p++)
    if (*p >= '0' && *p <= '9') digits[n++] = *p;
  *point = (int)strtol(p + 1, NULL, 10) + 1;
  while (n > 1 && digits[n - 1] == '0') n--;
  return n;
}

CONC__PRIVATE void conc__text_float(conc__writer *s, double f) {
  static const char zeros[] = "0000000000000000";
  char digits[24], tail[16];
  uint64_t bits;
  int n, point;
  memcpy(&bits, &f, sizeof bits);
  if (f != f) {
    conc__writer_text(s, "nan");
    return;
  }
  if (bits >> 63 != 0) conc__writer_put(s, "-", 1);
  if (f < 0) f = -f;
  if ((bits >> 52 & 2047) == 2047) {
    conc__writer_text(s, "inf");
    return;
  }
  if (f == 0) {
    conc__writer_text(s, "0.0");
    return;
  }
  n = conc__float_digits(f, digits, &point);
  if (point < -3 || point > 16) { /* 1.5e-07 */
    conc__writer_put(s, digits, 1);
    if (n > 1) conc__writer_put(s, ".", 1);
    conc__writer_put(s, digits + 1, (size_t)n - 1);
    snprintf(tail, sizeof tail, "e%c%02d", point > 0 ? '+' : '-',
             point > 0 ? point - 1 : 1 - point);
    conc__writer_text(s, tail);
  } else if (point <= 0) { /* 0.00015 */
    conc__writer_text(s, "0.");
    conc__writer_put(s, zeros, (size_t)-point);
    conc__writer_put(s, digits, (size_t)n);
  } else if (n <= point) { /* 1500.0 */
    conc__writer_put(s, digits, (size_t)n);
    conc__writer_put(s, zeros, (size_t)(point - n));
    conc__writer_text(s, ".0");
  } else { /* 1.5 */
    conc__writer_put(s, digits, (size_t)point);
    conc__writer_put(s, ".", 1);
    conc__writer_put(s, digits + point, (size_t)(n - point));
  }
}

/* In decimal, nine digits at a time: quadratic, which CONC__BIGINT_MAX keeps
   to a millisecond. */
CONC__PRIVATE void conc__text_bigint(conc__writer *s, const unsigned char *p,
                                     size_t size) {
  uint32_t word[CONC__BIGINT_MAX / 4 + 1];
  uint32_t group[CONC__BIGINT_MAX / 3]; /* 9 digits are 29.9 bits */
  const bool negative = p[size - 1] >= 0x80;
  const unsigned flip = negative ? 0xff : 0;
  unsigned carry = negative;
  size_t words = (size + 3) / 4, groups = 0, i;
  char digits[16];
  memset(word, 0, words * sizeof *word);
  for (i = 0; i < size; i++) {
    carry += p[i] ^ flip;
    word[i / 4] |= (uint32_t)(carry & 255) << 8 * (i % 4);
    carry >>= 8;
  }
  while (words > 0) {
    uint64_t rest = 0;
    for (i = words; i-- > 0;) {
      rest = rest << 32 | word[i];
      word[i] = (uint32_t)(rest / 1000000000);
      rest %= 1000000000;
    }
    group[groups++] = (uint32_t)rest;
    while (words > 0 && word[words - 1] == 0) words--;
  }
  if (negative) conc__writer_put(s, "-", 1);
  for (i = groups; i-- > 0;) {
    snprintf(digits, sizeof digits, i + 1 == groups ? "%lu" : "%09lu",
             (unsigned long)group[i]);
    conc__writer_text(s, digits);
  }
}

/* What Python's repr does not show as it is, above ASCII: controls, formats,
   blanks, surrogates, private use. Of code points that no Unicode has given
   out yet only the blocks among these are known here: which those are differs
   between Pythons. */
CONC__PRIVATE bool conc__is_printable(uint32_t c) {
  static const uint32_t hidden[][2] = {
      {0x80, 0xa0}, {0xad, 0xad}, {0x600, 0x605}, {0x61c, 0x61c},
      {0x6dd, 0x6dd}, {0x70f, 0x70f}, {0x890, 0x891}, {0x8e2, 0x8e2},
      {0x1680, 0x1680}, {0x180e, 0x180e}, {0x2000, 0x200f}, {0x2028, 0x202f},
      {0x205f, 0x206f}, {0x3000, 0x3000}, {0xd800, 0xf8ff}, {0xfdd0, 0xfdef},
      {0xfeff, 0xfeff}, {0xfff9, 0xfffb}, {0xfffe, 0xffff},
      {0x110bd, 0x110bd}, {0x110cd, 0x110cd}, {0x13430, 0x1343f},
      {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0x1fffe, 0x1ffff},
      {0x2fffe, 0x2ffff}, {0x3fffe, 0xe007f}, {0xefffe, 0x10ffff}};
  size_t low = 0, high = sizeof hidden / sizeof *hidden;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (c < hidden[middle][0])
      high = middle;
    else if (c > hidden[middle][1])
      low = middle + 1;
    else
      return false;
  }
  return true;
}

/* Text in quotes, as Python's repr: single ones, unless that saves escapes. */
CONC__PRIVATE void conc__text_quoted(conc__writer *s, const conc_value *v) {
  const unsigned char *p = v->as.bytes;
  const size_t n = v->size;
  const bool utf8 = v->type == CONC_STR;
  const bool is_double = n > 0 && memchr(p, '\'', n) != NULL &&
                         memchr(p, '"', n) == NULL;
  const char quote = is_double ? '"' : '\'';
  size_t i = 0;
  conc__writer_put(s, &quote, 1);
  while (i < n) {
    const char *special;
    char escape[16];
    uint32_t c = p[i];
    size_t length = 1;
    if (utf8 && c >= 0x80) {
      length = conc__utf8(p + i, n - i, &c);
      if (length == 0) break; /* no str holds such text */
    }
    special = c < 0x80 && c != 0 ? strchr("\tt\nn\rr", (int)c) : NULL;
    escape[0] = '\\';
    if (special != NULL && c < ' ') {
      escape[1] = special[1];
      conc__writer_put(s, escape, 2);
    } else if (c == (unsigned char)quote || c == '\\' ||
               (c == '\'' && v->type == CONC_BYTEARRAY)) {
      /* the last: a quirk of Python's */
      escape[1] = (char)c;
      conc__writer_put(s, escape, 2);
    } else if ((c >= ' ' && c < 0x7f) ||
               (utf8 && c >= 0x80 && conc__is_printable(c))) {
      conc__writer_put(s, p + i, length);
    } else {
      snprintf(escape, sizeof escape,
               c < 0x100     ? "\\x%02lx"
               : c < 0x10000 ? "\\u%04lx"
                             : "\\U%08lx",
               (unsigned long)c);
      conc__writer_text(s, escape);
    }
    i += length;
  }
  conc__writer_put(s, &quote, 1);
}

CONC__PRIVATE void conc__text_leaf(conc__writer *s, const conc_value *v) {
  char number[24];
  switch (v->type) {
  case CONC_NONE: conc__writer_text(s, "None"); break;
  case CONC_BOOL:
    conc__writer_text(s, v->as.boolean ? "True" : "False");
    break;
  case CONC_INT:
    snprintf(number, sizeof number, "%lld", (long long)v->as.integer);
    conc__writer_text(s, number);
    break;
  case CONC_FLOAT: conc__text_float(s, v->as.real); break;
  case CONC_BIGINT: conc__text_bigint(s, v->as.bytes, v->size); break;
  case CONC_STR: conc__text_quoted(s, v); break;
  case CONC_BYTES:
    conc__writer_put(s, "b", 1);
    conc__text_quoted(s, v);
    break;
  default:
    conc__writer_text(s, "bytearray(b");
    conc__text_quoted(s, v);
    conc__writer_put(s, ")", 1);
    break;
  }
}

/* What stands before the first item and behind the last one. An object looks
   as the call that makes it: KeyError('k'). */
CONC__PRIVATE void conc__text_bracket(conc__writer *s, const conc_value *v,
                                      bool open, bool arguments) {
  switch (v->type) {
  case CONC_LIST: conc__writer_put(s, open ? "[" : "]", 1); break;
  case CONC_DICT: conc__writer_put(s, open ? "{" : "}", 1); break;
  case CONC_SET:
    if (v->size == 0)
      conc__writer_text(s, open ? "set(" : ")");
    else
      conc__writer_put(s, open ? "{" : "}", 1);
    break;
  case CONC_FROZENSET:
    if (v->size == 0)
      conc__writer_text(s, open ? "frozenset(" : ")");
    else
      conc__writer_text(s, open ? "frozenset({" : "})");
    break;
  case CONC_TUPLE:
    conc__writer_text(s, open                         ? "("
                       : v->size == 1 && !arguments ? ",)"
                                                    : ")");
    break;
  default: break;
  }
}

CONC_API ssize_t conc_value_text(const conc_value *value, char *buf,
                                 size_t size) {
  conc__writer s;
  conc__walk w;
  int step;
  s.buf = buf;
  s.size = size;
  s.length = 0;
  if (value == NULL) {
    conc__writer_text(&s, "None");
  } else if (value->type == CONC_STR) {
    conc__writer_put(&s, value->as.bytes, value->size);
  } else if (!conc__is_container(value->type)) {
    conc__text_leaf(&s, value);
  } else {
    conc__walk_begin(&w, value);
    while ((step = conc__walk_step(&w)) != CONC__WALK_END) {
      const conc_value *in = w.parent;
      if (in != NULL && step != CONC__WALK_CLOSE) {
        if (in->type == CONC_OBJECT) { /* module, class, arguments, state */
          if (w.index == 1)
            conc__writer_put(&s, w.value->as.bytes, w.value->size);
          if (step == CONC__WALK_LEAF) continue;
          if (w.index == 3) conc__writer_put(&s, " ", 1);
        } else if (w.index > 0) {
          conc__writer_text(&s, in->type == CONC_DICT && w.index % 2 ? ": "
                                                                   : ", ");
        }
      }
      if (step == CONC__WALK_LEAF)
        conc__text_leaf(&s, w.value);
      else
        conc__text_bracket(&s, w.value, step == CONC__WALK_OPEN,
                           in != NULL && in->type == CONC_OBJECT);
    }
  }
  if (size > 0) buf[s.length < size ? s.length : size - 1] = 0;
  return (ssize_t)s.length;
}

/* --- build and parse --- */

CONC__INLINE bool conc__format_blank(char c) {
  return c == ' ' || c == ',' || c == ':';
}

/* Pushes a copy of a value. */
CONC__PRIVATE int conc__push_value(conc__maker *m, const conc_value *v) {
  conc__walk w;
  int step, rc = 0;
  conc__walk_begin(&w, v);
  while (rc == 0 && (step = conc__walk_step(&w)) != CONC__WALK_END) {
    if (step == CONC__WALK_CLOSE)
      rc = conc__collect(m, w.value->type,
                         (uint32_t)conc__item_count(w.value));
    else if (step == CONC__WALK_LEAF)
      rc = conc__is_text(w.value->type)
               ? conc__push_text(m, w.value->type, w.value->as.bytes,
                                 w.value->size)
               : conc__push_node(m, w.value);
  }
  return rc;
}

CONC__PRIVATE int conc__push_string(conc__maker *m, conc_type type,
                                    const char *s, size_t size) {
  if (s == NULL && size == 0) s = "";
  if (s == NULL) return -EINVAL;
  if (type == CONC_STR && !conc__utf8_valid((const unsigned char *)s, size))
    return -EINVAL;
  return conc__push_text(m, type, s, size);
}

CONC__PRIVATE int conc__push_unsigned(conc__maker *m, unsigned long long n) {
  unsigned char bytes[9];
  size_t i;
  if (n <= (unsigned long long)INT64_MAX) return conc__push_int(m, (int64_t)n);
  for (i = 0; i < 8; i++) bytes[i] = (unsigned char)(n >> 8 * i);
  bytes[8] = 0; /* the sign */
  return conc__push_text(m, CONC_BIGINT, bytes, sizeof bytes);
}

/* The open brackets of a format: deeper ones could not become a value. */
typedef struct conc__brackets {
  char open[CONC__VALUE_DEPTH];
  unsigned count;
} conc__brackets;

CONC__PRIVATE int conc__build_bracket(conc__maker *m, conc__brackets *b,
                                      char c) {
  uint32_t n = 0;
  int rc;
  if (c == '(' || c == '[' || c == '{') {
    if (b->count == CONC__VALUE_DEPTH) return -EMSGSIZE;
    b->open[b->count++] = c;
    return conc__read_mark(m);
  }
  if (b->count == 0) return -EINVAL;
  switch (b->open[--b->count]) {
  case '(':
    if (c != ')') return -EINVAL;
    return conc__read_collect_marked(m, CONC_TUPLE);
  case '[':
    if (c != ']') return -EINVAL;
    return conc__read_collect_marked(m, CONC_LIST);
  default:
    rc = conc__read_to_mark(m, &n);
    if (c != '}' || n % 2 != 0) return -EINVAL;
    return rc != 0 ? rc : conc__collect(m, CONC_DICT, n);
  }
}

/* All va_arg stand in this one function: a va_list cannot portably be handed
   down by address, and by value it would not move on. */
CONC__PRIVATE int conc__build_va(conc_value **out, const char *format,
                                 va_list ap) {
  conc__brackets brackets;
  conc__maker m;
  int rc = 0;
  *out = NULL;
  if (format == NULL) return -EINVAL;
  brackets.count = 0;
  conc__maker_init(&m, NULL, 0);
  for (; rc == 0 && *format != 0; format++) {
    const char c = *format;
    if (conc__format_blank(c)) continue;
    switch (c) {
    case 'N': rc = conc__push(&m, CONC_NONE, 0, 0); break;
    case 'p': rc = conc__push_bool(&m, va_arg(ap, int) != 0); break;
    case 'i': rc = conc__push_int(&m, va_arg(ap, int)); break;
    case 'l': rc = conc__push_int(&m, va_arg(ap, long)); break;
    case 'L': rc = conc__push_int(&m, va_arg(ap, long long)); break;
    case 'n': rc = conc__push_int(&m, va_arg(ap, ssize_t)); break;
    case 'I': rc = conc__push_unsigned(&m, va_arg(ap, unsigned)); break;
    case 'k': rc = conc__push_unsigned(&m, va_arg(ap, unsigned long)); break;
    case 'K':
      rc = conc__push_unsigned(&m, va_arg(ap, unsigned long long));
      break;
    case 'f':
    case 'd': rc = conc__push_float(&m, va_arg(ap, double)); break;
    case 's':
    case 'y': {
      const char *s = va_arg(ap, const char *);
      const conc_type type = c == 's' ? CONC_STR : CONC_BYTES;
      if (format[1] == '#') {
        format++;
        rc = conc__push_string(&m, type, s, va_arg(ap, size_t));
      } else {
        rc = s == NULL ? conc__push(&m, CONC_NONE, 0, 0)
                       : conc__push_string(&m, type, s, strlen(s));
      }
      break;
    }
    case 'O': {
      const conc_value *v = va_arg(ap, const conc_value *);
      rc = v == NULL ? -EINVAL : conc__push_value(&m, v);
      break;
    }
    case '(':
    case '[':
    case '{':
    case ')':
    case ']':
    case '}': rc = conc__build_bracket(&m, &brackets, c); break;
    default: rc = -EINVAL; break;
    }
  }
  if (rc == 0 && brackets.count > 0) rc = -EINVAL;
  if (rc == 0 && m.stack.count == 0) rc = conc__push(&m, CONC_NONE, 0, 0);
  if (rc == 0 && m.stack.count > 1)
    rc = conc__collect(&m, CONC_TUPLE, m.stack.count);
  if (rc == 0) rc = conc__maker_finish(&m, out);
  conc__maker_free(&m);
  return rc == -EBADMSG ? -EINVAL : rc; /* an unhashable key */
}

CONC_API int conc_build(conc_value **out, const char *format, ...) {
  va_list ap;
  int rc;
  va_start(ap, format);
  rc = conc__build_va(out, format, ap);
  va_end(ap);
  return rc;
}

/* How many items a format has outside of all brackets. */
CONC__PRIVATE size_t conc__format_items(const char *format) {
  size_t n = 0, depth = 0;
  for (; *format != 0; format++) {
    if (conc__format_blank(*format) || *format == '#') continue;
    if (*format == ')' || *format == ']' || *format == '}') {
      if (depth > 0) depth--;
      continue;
    }
    n += depth == 0;
    if (*format == '(' || *format == '[' || *format == '{') depth++;
  }
  return n;
}

/* A container that is being taken apart. Of a dict, `next` is what stands
   under the key that was just read; else i counts its items. */
typedef struct conc__opened {
  const conc_value *value, *next;
  size_t i;
} conc__opened;

typedef struct conc__parser {
  const conc_value *next; /* the root, until it is taken */
  conc__opened level[CONC__VALUE_DEPTH];
  unsigned depth;
} conc__parser;

/* The value that the next part of the format is for. */
CONC__PRIVATE const conc_value *conc__parse_next(conc__parser *p) {
  conc__opened *in = p->depth > 0 ? &p->level[p->depth - 1] : NULL;
  const conc_value *v;
  if (in != NULL && in->value->type != CONC_DICT)
    return conc_value_item(in->value, in->i++);
  v = in != NULL ? in->next : p->next;
  if (in != NULL)
    in->next = NULL;
  else
    p->next = NULL;
  return v;
}

CONC__PRIVATE int conc__parse_open(conc__parser *p, conc_type type) {
  const conc_value *v = conc__parse_next(p);
  if (v == NULL || v->type != type || p->depth == CONC__VALUE_DEPTH)
    return -EINVAL;
  p->level[p->depth].value = v;
  p->level[p->depth].next = NULL;
  p->level[p->depth].i = 0;
  p->depth++;
  return 0;
}

/* Of a tuple or list nothing may be left over; of a dict anything. */
CONC__PRIVATE int conc__parse_close(conc__parser *p, conc_type type) {
  const conc__opened *in = &p->level[p->depth - 1];
  if (in->value->type != type || in->next != NULL) return -EINVAL;
  if (type != CONC_DICT && in->i != in->value->size) return -EINVAL;
  p->depth--;
  return 0;
}

CONC__PRIVATE int conc__parse_int(conc__parser *p, int64_t low, int64_t high,
                                  int64_t *n) {
  int rc = conc_value_int(conc__parse_next(p), n);
  if (rc != 0) return rc;
  return *n < low || *n > high ? -ERANGE : 0;
}

CONC__PRIVATE int conc__parse_unsigned(conc__parser *p, uint64_t high,
                                       uint64_t *n) {
  const conc_value *v = conc__parse_next(p);
  int64_t i = 0;
  int rc = conc_value_int(v, &i);
  *n = (uint64_t)i;
  if (rc == 0) return i < 0 || *n > high ? -ERANGE : 0;
  /* from 2^63 to 2^64 - 1 it is eight bytes and a zero */
  if (rc != -ERANGE || v->size != 9 || v->as.bytes[8] != 0) return rc;
  *n = conc__little_endian(v->as.bytes, 8);
  return *n > high ? -ERANGE : 0;
}

/* A str ('s') or bytes ('y'); without '#' its end is where C sees it. */
CONC__PRIVATE int conc__parse_text(conc__parser *p, char c, bool counted,
                                   const char **s, size_t *size) {
  const conc_value *v = conc__parse_next(p);
  if (v == NULL || !conc__is_text(v->type) || v->type == CONC_BIGINT)
    return -EINVAL;
  if ((c == 's') != (v->type == CONC_STR)) return -EINVAL;
  *s = (const char *)v->as.bytes;
  *size = v->size;
  if (!counted && (v->type == CONC_BYTEARRAY || strlen(*s) != v->size))
    return -EINVAL;
  return 0;
}

/* One pass over a format. Run twice, first without `store`: so an error that
   is found late leaves all outputs as they were. */
CONC__PRIVATE int conc__parse_pass(const conc_value *value, const char *format,
                                   va_list ap, bool store) {
  const bool several = conc__format_items(format) > 1;
  conc__parser p;
  int rc = 0;
  p.next = value;
  p.depth = 0;
  if (several) rc = conc__parse_open(&p, CONC_TUPLE);
  for (; rc == 0 && *format != 0; format++) {
    const char c = *format;
    int64_t n = 0;
    uint64_t u = 0;
    if (conc__format_blank(c)) continue;
    if (c == ')' || c == ']' || c == '}') {
      if (p.depth <= (several ? 1u : 0u)) return -EINVAL;
      rc = conc__parse_close(&p, c == ')'   ? CONC_TUPLE
                                 : c == ']' ? CONC_LIST
                                            : CONC_DICT);
      continue;
    }
    if (p.depth > 0 && p.level[p.depth - 1].value->type == CONC_DICT &&
        p.level[p.depth - 1].next == NULL) {
      const char *key;
      if (c != 's' || format[1] == '#') return -EINVAL;
      key = va_arg(ap, const char *);
      p.level[p.depth - 1].next =
          conc_value_get(p.level[p.depth - 1].value, key);
      if (p.level[p.depth - 1].next == NULL) return -EINVAL;
      continue;
    }
    switch (c) {
    case '(': rc = conc__parse_open(&p, CONC_TUPLE); break;
    case '[': rc = conc__parse_open(&p, CONC_LIST); break;
    case '{': rc = conc__parse_open(&p, CONC_DICT); break;
    case 'N': {
      const conc_value *v = conc__parse_next(&p);
      rc = v == NULL || v->type != CONC_NONE ? -EINVAL : 0;
      break;
    }
    case 'p': {
      int *out = va_arg(ap, int *);
      bool b = false;
      rc = conc_value_bool(conc__parse_next(&p), &b);
      if (rc == 0 && store) *out = b;
      break;
    }
    case 'i': {
      int *out = va_arg(ap, int *);
      rc = conc__parse_int(&p, INT_MIN, INT_MAX, &n);
      if (rc == 0 && store) *out = (int)n;
      break;
    }
    case 'l': {
      long *out = va_arg(ap, long *);
      rc = conc__parse_int(&p, LONG_MIN, LONG_MAX, &n);
      if (rc == 0 && store) *out = (long)n;
      break;
    }
    case 'L': {
      long long *out = va_arg(ap, long long *);
      rc = conc__parse_int(&p, INT64_MIN, INT64_MAX, &n);
      if (rc == 0 && store) *out = n;
      break;
    }
    case 'n': {
      ssize_t *out = va_arg(ap, ssize_t *);
      rc = conc__parse_int(&p, -(int64_t)(SIZE_MAX / 2) - 1,
                           (int64_t)(SIZE_MAX / 2), &n);
      if (rc == 0 && store) *out = (ssize_t)n;
      break;
    }
    case 'I': {
      unsigned *out = va_arg(ap, unsigned *);
      rc = conc__parse_unsigned(&p, UINT_MAX, &u);
      if (rc == 0 && store) *out = (unsigned)u;
      break;
    }
    case 'k': {
      unsigned long *out = va_arg(ap, unsigned long *);
      rc = conc__parse_unsigned(&p, ULONG_MAX, &u);
      if (rc == 0 && store) *out = (unsigned long)u;
      break;
    }
    case 'K': {
      unsigned long long *out = va_arg(ap, unsigned long long *);
      rc = conc__parse_unsigned(&p, UINT64_MAX, &u);
      if (rc == 0 && store) *out = u;
      break;
    }
    case 'f': {
      float *out = va_arg(ap, float *);
      double f = 0;
      rc = conc_value_float(conc__parse_next(&p), &f);
      if (rc == 0 && f - f == 0 && /* finite, but not as a float */
          (f > 3.4028235677973362e38 || f < -3.4028235677973362e38))
        rc = -ERANGE;
      if (rc == 0 && store) *out = (float)f;
      break;
    }
    case 'd': {
      double *out = va_arg(ap, double *);
      double f = 0;
      rc = conc_value_float(conc__parse_next(&p), &f);
      if (rc == 0 && store) *out = f;
      break;
    }
    case 's':
    case 'y': {
      const char **out = va_arg(ap, const char **);
      const bool counted = format[1] == '#';
      size_t *size_out = NULL, size = 0;
      const char *s = NULL;
      if (counted) {
        size_out = va_arg(ap, size_t *);
        format++;
      }
      rc = conc__parse_text(&p, c, counted, &s, &size);
      if (rc == 0 && store) {
        *out = s;
        if (counted) *size_out = size;
      }
      break;
    }
    case 'O': {
      const conc_value **out = va_arg(ap, const conc_value **);
      const conc_value *v = conc__parse_next(&p);
      if (v == NULL)
        rc = -EINVAL;
      else if (store)
        *out = v;
      break;
    }
    default: rc = -EINVAL; break;
    }
  }
  if (rc == 0 && several) rc = conc__parse_close(&p, CONC_TUPLE);
  return rc == 0 && p.depth > 0 ? -EINVAL : rc;
}

CONC__PRIVATE int conc__parse_va(const conc_value *value, const char *format,
                                 va_list ap) {
  va_list twice;
  int rc;
  if (value == NULL || format == NULL) return -EINVAL;
  /* nothing asked for is None, as conc_build makes it */
  if (conc__format_items(format) == 0 && value->type != CONC_NONE)
    return -EINVAL;
  va_copy(twice, ap);
  rc = conc__parse_pass(value, format, twice, false);
  va_end(twice);
  return rc != 0 ? rc : conc__parse_pass(value, format, ap, true);
}

CONC_API int conc_parse(const conc_value *value, const char *format, ...) {
  va_list ap;
  int rc;
  va_start(ap, format);
  rc = conc__parse_va(value, format, ap);
  va_end(ap);
  return rc;
}

/* ---------------------------------------------------------------------------
   >>json: RFC 8259
   ------------------------------------------------------------------------ */

/* --- JSON (RFC 8259) ---

   Read on the maker's stack, like a pickle: brackets open are marks, and how
   many there can be is known. Text without escapes is not copied but by the
   one copy of all the input; written is what Python's json.dumps writes. */

typedef struct conc__json {
  const unsigned char *p, *end; /* after an error, p is where it is */
  conc__maker m;
} conc__json;

/* The next byte that is not blank; 0 at the end, and where no JSON goes on. */
CONC__PRIVATE unsigned char conc__json_peek(conc__json *j) {
  while (j->p < j->end &&
         (*j->p == ' ' || *j->p == '\n' || *j->p == '\r' || *j->p == '\t'))
    j->p++;
  return j->p < j->end ? *j->p : 0;
}

/* Reads a character of a string, plain or escaped. A surrogate without its
   other half cannot stand there plain, for it is no UTF-8. */
CONC__PRIVATE int conc__json_character(conc__json *j, uint32_t *c) {
  static const char known[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
  const unsigned char *p = j->p;
  uint32_t low = 0;
  size_t i = 0;
  if (*p != '\\') {
    i = conc__utf8(p, (size_t)(j->end - p), c);
    if (i == 0 || *c < 0x20 || (*c >= 0xd800 && *c < 0xe000)) return -EBADMSG;
    j->p += i;
    return 0;
  }
  if (++p == j->end) return -EBADMSG;
  if (*p == 'u') {
    if (!conc__hex(p + 1, j->end, 4, c)) return -EBADMSG;
    p += 5;
    if (*c >= 0xd800 && *c < 0xdc00 && j->end - p >= 6 && p[0] == '\\' &&
        p[1] == 'u' && conc__hex(p + 2, j->end, 4, &low) && low >= 0xdc00 &&
        low < 0xe000) {
      *c = 0x10000 + ((*c - 0xd800) << 10) + (low - 0xdc00);
      p += 6;
    }
  } else {
    while (known[i] != 0 && (unsigned char)known[i] != *p) i += 2;
    if (known[i] == 0) return -EBADMSG;
    *c = (unsigned char)known[i + 1];
    p++;
  }
  j->p = p;
  return 0;
}

CONC__PRIVATE int conc__json_string(conc__json *j) {
  const unsigned char *begin = j->p + 1, *end;
  unsigned char *out = NULL;
  bool escaped = false;
  size_t size = 0;
  uint32_t c;
  int rc;
  for (j->p = begin; j->p < j->end && *j->p != '"';) {
    escaped |= *j->p == '\\';
    rc = conc__json_character(j, &c);
    if (rc != 0) return rc;
  }
  end = j->p;
  if (end == j->end) return -EBADMSG;
  if (escaped) { /* no escape is shorter than what it stands for */
    rc = conc__extra_reserve(&j->m, (size_t)(end - begin), &out);
    if (rc != 0) return rc;
    for (j->p = begin; j->p < end;) {
      conc__json_character(j, &c);
      size += conc__utf8_put(out + size, c);
    }
    rc = conc__push_extra(&j->m, CONC_STR, size);
  } else {
    rc = conc__push(&j->m, CONC_STR, (size_t)(end - begin),
                    (size_t)(begin - j->m.input));
  }
  j->p = end + 1;
  return rc;
}

CONC__PRIVATE int conc__json_number(conc__json *j) {
  bool real = false, wrong = false;
  const unsigned char *p = j->p,
                      *end = conc__scan_number(p, j->end, &real, &wrong);
  double f;
  int rc;
  if (wrong) {
    j->p = end;
    return -EBADMSG;
  }
  if (real) {
    f = conc__decimal(p, (size_t)(end - p));
    rc = f - f != 0 ? -ERANGE : conc__push_float(&j->m, f);
  } else {
    rc = conc__push_decimal(&j->m, p, (size_t)(end - p));
  }
  if (rc == 0) j->p = end;
  return rc;
}

/* What has no items, and begins with c. */
CONC__PRIVATE int conc__json_leaf(conc__json *j, unsigned char c) {
  static const char *const word[3] = {"null", "false", "true"};
  size_t n;
  int i;
  if (c == '"') return conc__json_string(j);
  if (c == '-' || (c >= '0' && c <= '9')) return conc__json_number(j);
  for (i = 0; i < 3; i++) {
    n = strlen(word[i]);
    if ((size_t)(j->end - j->p) < n || memcmp(j->p, word[i], n) != 0) continue;
    j->p += n;
    return i == 0 ? conc__push(&j->m, CONC_NONE, 0, 0)
                  : conc__push_bool(&j->m, i == 2);
  }
  return -EBADMSG;
}

CONC__PRIVATE int conc__json_key(conc__json *j) {
  int rc = conc__json_peek(j) != '"' ? -EBADMSG : conc__json_string(j);
  if (rc == 0 && conc__json_peek(j) != ':') rc = -EBADMSG;
  if (rc == 0) j->p++;
  return rc;
}

CONC__PRIVATE int conc__json_read(conc__json *j) {
  unsigned char closing[CONC__VALUE_DEPTH]; /* what closes what is open */
  unsigned depth = 0;
  for (;;) {
    unsigned char c = conc__json_peek(j);
    bool opened = c == '[' || c == '{';
    int rc;
    if (opened) {
      if (depth == CONC__VALUE_DEPTH) return -EMSGSIZE;
      closing[depth++] = c == '[' ? ']' : '}';
      rc = conc__read_mark(&j->m);
      if (rc == 0) j->p++;
    } else {
      rc = conc__json_leaf(j, c);
    }
    if (rc != 0) return rc;
    /* Behind a value, or a bracket: what comes until the next value. */
    for (;; opened = false) {
      c = conc__json_peek(j);
      if (depth == 0) return j->p == j->end ? 0 : -EBADMSG;
      if (c == closing[depth - 1]) {
        j->p++;
        depth--;
        rc = conc__read_collect_marked(&j->m,
                                       c == ']' ? CONC_LIST : CONC_DICT);
        if (rc != 0) return rc;
        continue;
      }
      if (!opened) {
        if (c != ',') return -EBADMSG;
        j->p++;
      }
      rc = closing[depth - 1] == '}' ? conc__json_key(j) : 0;
      if (rc != 0) return rc;
      break;
    }
  }
}

CONC_API int conc_json_loads(conc_value **out, const void *text, size_t size,
                             size_t *where) {
  conc__json j;
  int rc;
  j.p = (const unsigned char *)text;
  j.end = size > 0 ? j.p + size : j.p;
  *out = NULL;
  conc__maker_init(&j.m, j.p, size);
  rc = conc__json_read(&j);
  if (rc == 0) rc = conc__maker_finish(&j.m, out);
  if (rc != 0 && where != NULL) *where = size - (size_t)(j.end - j.p);
  conc__maker_free(&j.m);
  return rc;
}

CONC__PRIVATE void conc__json_put_string(conc__writer *s,
                                         const conc_value *v) {
  static const char known[] = "\"\"\\\\\bb\ff\nn\rr\tt";
  const unsigned char *p = v->as.bytes, *end = p + v->size;
  conc__writer_put(s, "\"", 1);
  while (p < end) {
    const unsigned char *plain = p;
    uint32_t c = 0;
    char escape[16];
    size_t i = 0;
    /* 0xed: where surrogates begin, and a few characters that are none */
    while (p < end && *p >= ' ' && *p != '"' && *p != '\\' && *p != 0xed) p++;
    conc__writer_put(s, plain, (size_t)(p - plain));
    if (p == end) break;
    plain = p;
    p += conc__utf8(p, (size_t)(end - p), &c);
    while (known[i] != 0 && (uint32_t)known[i] != c) i += 2;
    if (known[i] != 0)
      snprintf(escape, sizeof escape, "\\%c", known[i + 1]);
    else
      snprintf(escape, sizeof escape, "\\u%04lx", (unsigned long)c);
    if (c < 0x80 || (c >= 0xd800 && c < 0xe000))
      conc__writer_text(s, escape);
    else
      conc__writer_put(s, plain, (size_t)(p - plain));
  }
  conc__writer_put(s, "\"", 1);
}

/* Whether JSON has such a value. */
CONC__PRIVATE bool conc__json_knows(const conc_value *v) {
  if (v->type == CONC_FLOAT) return v->as.real - v->as.real == 0;
  return v->type <= CONC_STR || v->type == CONC_LIST ||
         v->type == CONC_TUPLE || v->type == CONC_DICT;
}

/* Writes what a step of a walk finds, and what stands before it. */
CONC__PRIVATE void conc__json_put(conc__writer *s, const conc__walk *w,
                                  int step, int indent) {
  const conc_value *v = w->value, *in = w->parent;
  const bool close = step == CONC__WALK_CLOSE;
  const bool comma = !close && in != NULL && w->index > 0;
  if (!close && in != NULL && in->type == CONC_DICT && w->index % 2 == 1) {
    conc__writer_text(s, ": ");
  } else {
    if (comma) conc__writer_text(s, indent > 0 ? "," : ", ");
    if (indent > 0 && (close ? v->size > 0 : in != NULL)) {
      unsigned spaces =
          (unsigned)indent * (w->depth - (step == CONC__WALK_OPEN));
      conc__writer_text(s, "\n");
      while (spaces-- > 0) conc__writer_put(s, " ", 1);
    }
  }
  if (step != CONC__WALK_LEAF)
    conc__writer_text(s, v->type == CONC_DICT ? (close ? "}" : "{")
                                              : (close ? "]" : "["));
  else if (v->type == CONC_STR)
    conc__json_put_string(s, v);
  else if (v->type == CONC_NONE)
    conc__writer_text(s, "null");
  else if (v->type == CONC_BOOL)
    conc__writer_text(s, v->as.boolean ? "true" : "false");
  else
    conc__text_leaf(s, v);
}

CONC_API int conc_json_dumps(const conc_value *value, int indent, char **out,
                             size_t *size) {
  conc__buffer b = {NULL, 0, 0, 0};
  conc__writer s;
  conc__walk w;
  int step, rc;
  *out = NULL;
  if (value == NULL || indent < 0 || indent > 100) return -EINVAL;
  rc = conc__buffer_reserve(&b, 1);
  conc__walk_begin(&w, value);
  while (rc == 0 && (step = conc__walk_step(&w)) != CONC__WALK_END) {
    if (!conc__json_knows(w.value) ||
        (w.parent != NULL && w.parent->type == CONC_DICT && w.index % 2 == 0 &&
         w.value->type != CONC_STR)) {
      rc = -EINVAL;
      break;
    }
    do { /* at most twice: the second time there is room, for a NUL too */
      s.buf = (char *)b.data + b.size;
      s.size = b.capacity - b.size;
      s.length = 0;
      conc__json_put(&s, &w, step, indent);
      rc = s.length < s.size ? 0 : conc__buffer_reserve(&b, s.length + 1);
    } while (rc == 0 && s.length >= s.size);
    if (rc == 0) b.size += s.length;
  }
  if (rc != 0) {
    conc__buffer_free(&b);
    return rc;
  }
  b.data[b.size] = 0;
  *out = (char *)b.data;
  if (size != NULL) *size = b.size;
  return 0;
}

/* ---------------------------------------------------------------------------
   >>pipe: messages over a pair of sockets that keep their bounds

   A message is one packet: a head, and up to CONC__PACKET_DATA bytes; what is
   more is in a file, whose descriptor travels with it. So the system sends the
   message as a whole, whatever its length, and a process that is killed at any
   step has sent all of it or nothing: there is no half of a message that a
   receiver would have to put together or throw away. A long message brings
   32 KiB along all the same, so that a pipe is full after some of them.

   Nothing here has a guard: the system's socket buffer is the queue. Several
   tasks and processes may receive at one end: what one of them has seen by a
   peek, another one may take, so a receiver looks at what it has taken as if
   it had not seen it. Uses io to wait, os for files, pickle for values.
   ------------------------------------------------------------------------ */

#define CONC__PACKET_DATA 32768 /* bytes beside the head, at most */
#define CONC__PACKET_MAGIC 0x636f6e63u

enum { CONC__PACKET_MESSAGE, CONC__PACKET_DESCRIPTOR };

/* The head, in the byte order of this machine: a pipe does not leave it. */
typedef struct conc__packet {
  uint64_t size;  /* bytes of the message; 0 for a descriptor */
  uint32_t kind;  /* CONC__PACKET_MESSAGE or CONC__PACKET_DESCRIPTOR */
  uint32_t magic; /* CONC__PACKET_MAGIC: not from a stranger's send() */
} conc__packet;

/* Room for the one descriptor that travels with a packet, aligned as the
   system wants it. */
typedef union conc__control {
  struct cmsghdr head;
  unsigned char space[64];
} conc__control;

/* --- making; packets --- */

/* 0; or negative errno, and both are -1. */
CONC__PRIVATE int conc__pipe_open(int *a, int *b) {
  int type = SOCK_SEQPACKET;
  int fds[2];
#if CONC_HAVE_CLOEXEC
  type |= SOCK_CLOEXEC;
#endif
  *a = *b = -1;
  if (socketpair(AF_UNIX, type, 0, fds) < 0) return -errno;
#if !CONC_HAVE_CLOEXEC
  conc__set_cloexec(fds[0]);
  conc__set_cloexec(fds[1]);
#endif
  *a = fds[0];
  *b = fds[1];
  return 0;
}

CONC_API int conc_pipe(int *a, int *b) { return conc__pipe_open(a, b); }

CONC_API int conc_pipe_one_way(int *reader, int *writer) {
  int rc = conc__pipe_open(reader, writer);
  /* For the socket, not for this descriptor: so in all processes, and the
     writer's end reads nothing but the end. */
  if (rc == 0) shutdown(*reader, SHUT_WR);
  return rc;
}

/* Sends a packet with n bytes of data and, unless it is -1, a descriptor, of
   which the packet has a copy of its own. 0; negative errno, and nothing was
   sent: -EMSGSIZE if the system allows smaller packets only. */
CONC__PRIVATE int conc__packet_send(int pipe, conc__packet *head,
                                    const void *data, size_t n, int fd,
                                    double deadline) {
  struct msghdr m;
  struct iovec parts[2];
  conc__control control;
  CONC__CHECK(n <= CONC__PACKET_DATA);
  memset(&m, 0, sizeof m);
  parts[0].iov_base = head;
  parts[0].iov_len = sizeof *head;
  parts[1].iov_base = (void *)(uintptr_t)data; /* it is only read */
  parts[1].iov_len = n;
  m.msg_iov = parts;
  m.msg_iovlen = n > 0 ? 2 : 1;
  if (fd >= 0) {
    memset(&control, 0, sizeof control);
    m.msg_control = &control;
    m.msg_controllen = CMSG_SPACE(sizeof fd);
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
  }
  for (;;) {
    int rc = 0;
    if (sendmsg(pipe, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return 0;
    if (errno == EINTR) continue;
    /* ECONNRESET: the other end was closed with messages unread. */
    if (errno == ECONNRESET || errno == ENOTCONN) return -EPIPE;
    if (conc__would_block(errno))
      rc = conc__fd_wait(pipe, CONC_WRITE, deadline);
    else if (errno != ETOOMANYREFS)
      return -errno;
    else /* too many descriptors of this user under way: nothing says when
            that is over */
      rc = conc__remaining(deadline) <= 0 ? -ETIMEDOUT : conc_sleep(0.001);
    if (rc < 0) return rc;
  }
}

/* --- sending --- */

/* The file is written before the packet is sent, so the receiver finds all of
   it; a sender that is killed before that leaves a file without a name, which
   goes with it. */
CONC_API int conc_send(int pipe, const void *data, size_t size,
                       double timeout) {
  double deadline = conc__deadline(timeout);
  size_t n = size < CONC__PACKET_DATA ? size : CONC__PACKET_DATA;
  conc__packet head;
  int rc;
  head.size = size;
  head.kind = CONC__PACKET_MESSAGE;
  head.magic = CONC__PACKET_MAGIC;
  if (size > (size_t)-1 / 2) return -EMSGSIZE;
  for (;;) {
    int fd = -1;
    if (n < size) {
      fd = conc__file_open();
      if (fd < 0) return fd;
      rc = conc__file_put(fd, (const unsigned char *)data + n, size - n);
    } else {
      rc = 0;
    }
    if (rc == 0) rc = conc__packet_send(pipe, &head, data, n, fd, deadline);
    if (fd >= 0) close(fd);
    /* The system may allow smaller packets only: then all is in the file. */
    if (rc != -EMSGSIZE || n == 0) return rc;
    n = 0;
  }
}

CONC_API int conc_send_fd(int pipe, int fd, double timeout) {
  conc__packet head;
  if (fd < 0) return -EBADF;
  head.size = 0;
  head.kind = CONC__PACKET_DESCRIPTOR;
  head.magic = CONC__PACKET_MAGIC;
  return conc__packet_send(pipe, &head, NULL, 0, fd, conc__deadline(timeout));
}

/* --- receiving --- */

/* Waits for a packet, and says what it is, while it stays where it is. 0 or
   negative errno: -EPIPE at the end, -EPROTO for what is none of ours, which
   is removed, since no receiver could take it. */
CONC__PRIVATE int conc__packet_peek(int pipe, conc__packet *head,
                                    double deadline) {
  for (;;) {
    ssize_t n = recv(pipe, head, sizeof *head, MSG_PEEK | MSG_DONTWAIT);
    int rc = 0;
    if (n == 0) return -EPIPE;
    if (n == (ssize_t)sizeof *head && head->magic == CONC__PACKET_MAGIC &&
        head->size <= (size_t)-1 / 2)
      return 0;
    if (n > 0) {
      recv(pipe, head, sizeof *head, MSG_DONTWAIT);
      return -EPROTO;
    }
    if (conc__would_block(errno))
      rc = conc__fd_wait(pipe, CONC_READ, deadline);
    /* ECONNRESET: the peer closed without having received all. The system says
       so once, before what is still there for us. */
    else if (errno != EINTR && errno != ECONNRESET)
      rc = errno == ENOTCONN ? -EPIPE : -errno;
    if (rc < 0) return rc;
  }
}

/* Takes a packet, after a peek: up to `size` bytes of data into buf. The
   packet may be another one than the peek saw: `head` gets its head, `fd` its
   descriptor, which the caller must close, or -1. Returns the number of
   its bytes of data; -EAGAIN: another receiver was faster, and there is none
   now. After any other error the packet is gone, but for what the system fails
   with before it takes one (-EMFILE). */
CONC__PRIVATE ssize_t conc__packet_take(int pipe, conc__packet *head,
                                        void *buf, size_t size, int *fd) {
  struct msghdr m;
  struct iovec parts[2];
  struct cmsghdr *c;
  conc__control control;
  ssize_t n;
  int flags = MSG_DONTWAIT;
  *fd = -1;
  if (head->kind == CONC__PACKET_DESCRIPTOR ||
      head->size > CONC__PACKET_DATA) {
    /* The system would take the packet and drop its descriptor if the process
       has no number free for it. So one is asked for before: if there is none,
       the packet stays. Another thread may take the number in between: then
       the packet is lost, and the error says so (MSG_CTRUNC, below). */
    int spare = fcntl(pipe, F_DUPFD_CLOEXEC, 0);
    if (spare < 0) return -errno;
    close(spare);
  }
#if CONC_HAVE_CLOEXEC
  flags |= MSG_CMSG_CLOEXEC;
#endif
  /* From here on, if this process is killed, the packet is gone with it when
     recvmsg() has taken it, and is there for others when it has not. */
  do {
    CONC__POINT();
    memset(&m, 0, sizeof m);
    parts[0].iov_base = head;
    parts[0].iov_len = sizeof *head;
    parts[1].iov_base = buf;
    parts[1].iov_len = size;
    m.msg_iov = parts;
    m.msg_iovlen = size > 0 ? 2 : 1;
    m.msg_control = &control;
    m.msg_controllen = CMSG_SPACE(sizeof *fd);
    n = recvmsg(pipe, &m, flags);
  } while (n < 0 && (errno == EINTR || errno == ECONNRESET));
  if (n < 0) return conc__would_block(errno) ? -EAGAIN : -errno;
  if (n == 0) return -EAGAIN; /* the end: the next peek says so */
  /* The descriptor before anything is refused: it is in this process now, and
     must not be lost from sight. */
  c = CMSG_FIRSTHDR(&m);
  if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
      c->cmsg_len == CMSG_LEN(sizeof *fd)) {
    memcpy(fd, CMSG_DATA(c), sizeof *fd);
#if !CONC_HAVE_CLOEXEC
    conc__set_cloexec(*fd);
#endif
  }
  if (n < (ssize_t)sizeof *head || head->magic != CONC__PACKET_MAGIC)
    return -EPROTO;
  /* Longer than what was seen, so another one than that. */
  if (m.msg_flags & MSG_TRUNC) return -EMSGSIZE;
  if (m.msg_flags & MSG_CTRUNC) return -EMFILE;
  return n - (ssize_t)sizeof *head;
}

/* What does not fit, or is no message, is refused after the peek, and stays;
   the same questions after the take are for a packet that came in its place:
   see the manual on several that receive at one end. */
CONC_API ssize_t conc_recv(int pipe, void *buf, size_t size, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__packet head;
  ssize_t n;
  int fd;
  do {
    int rc = conc__packet_peek(pipe, &head, deadline);
    if (rc != 0) return rc;
    if (head.kind != CONC__PACKET_MESSAGE) return -EBADMSG;
    if (head.size > size) return -EMSGSIZE;
    n = conc__packet_take(pipe, &head, buf, size, &fd);
    if (n >= 0 && head.size > size) n = -EMSGSIZE; /* it was another one */
    if (n >= 0 && head.kind != CONC__PACKET_MESSAGE) n = -EBADMSG;
    if (n >= 0 && (size_t)n < head.size) {
      rc = fd < 0 ? -EPROTO
                  : conc__file_get(fd, (unsigned char *)buf + n,
                                   (size_t)head.size - (size_t)n, 0);
      n = rc < 0 ? rc : (ssize_t)head.size;
    }
    if (fd >= 0) close(fd);
  } while (n == -EAGAIN);
  return n;
}

CONC_API ssize_t conc_poll(int pipe, double timeout) {
  conc__packet head;
  int rc = conc__packet_peek(pipe, &head, conc__deadline(timeout));
  return rc < 0 ? rc : (ssize_t)head.size;
}

/* Asks for the kind twice, as conc_recv does. A descriptor that came with an
   error is closed here: the caller is never given one that it does not know
   of. */
CONC_API int conc_recv_fd(int pipe, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__packet head;
  ssize_t n;
  int fd;
  do {
    int rc = conc__packet_peek(pipe, &head, deadline);
    if (rc != 0) return rc;
    if (head.kind != CONC__PACKET_DESCRIPTOR) return -EBADMSG;
    n = conc__packet_take(pipe, &head, NULL, 0, &fd);
    if (n >= 0 && head.kind != CONC__PACKET_DESCRIPTOR) n = -EBADMSG;
    if (n >= 0 && fd < 0) n = -EPROTO;
    if (n < 0 && fd >= 0) close(fd);
  } while (n == -EAGAIN);
  return n < 0 ? (int)n : fd;
}

/* --- typed values --- */

/* By pickle's protocol 2, which Python 2 and every Python 3 read. */
CONC_API int conc_pipe_send_value(int pipe, const conc_value *value,
                                  double timeout) {
  void *data = NULL;
  size_t size = 0;
  int rc = conc_pickle_dumps(value, 2, &data, &size);
  if (rc == 0) rc = conc_send(pipe, data, size, timeout);
  conc_free(data);
  return rc;
}

/* Receives a message of whatever size into an empty buffer. Two receivers may
   have seen the same packet, and each takes one: so there is room for any
   packet, not only for the one that was seen, and memory for the rest of a
   message is had when its packet is there. 0 or negative errno. */
CONC__PRIVATE int conc__message_receive(int pipe, conc__buffer *b,
                                        double deadline) {
  conc__packet head;
  ssize_t n;
  int fd, rc;
  do {
    rc = conc__packet_peek(pipe, &head, deadline);
    if (rc != 0) return rc;
    if (head.kind != CONC__PACKET_MESSAGE) return -EBADMSG;
    /* Before the take: without memory the message that was seen stays. */
    rc = conc__buffer_reserve(b, head.size > CONC__PACKET_DATA
                                     ? (size_t)head.size
                                     : CONC__PACKET_DATA);
    if (rc != 0) return rc;
    n = conc__packet_take(pipe, &head, b->data, CONC__PACKET_DATA, &fd);
    if (n < 0) rc = (int)n;
    else if (head.kind != CONC__PACKET_MESSAGE) rc = -EBADMSG;
    else if ((size_t)n < head.size && fd < 0) rc = -EPROTO;
    else /* done already, unless it is not the one that was seen */
      rc = conc__buffer_reserve(b, (size_t)head.size);
    if (rc == 0 && (size_t)n < head.size)
      rc = conc__file_get(fd, b->data + n, (size_t)head.size - (size_t)n, 0);
    if (rc == 0) b->size = (size_t)head.size;
    if (fd >= 0) close(fd);
  } while (rc == -EAGAIN);
  return rc;
}

CONC_API int conc_pipe_recv_value(int pipe, conc_value **out,
                                  double timeout) {
  conc__buffer b = {NULL, 0, 0, 0};
  int rc = conc__message_receive(pipe, &b, conc__deadline(timeout));
  *out = NULL;
  if (rc == 0) rc = conc_pickle_loads(out, b.data, b.size);
  conc__buffer_free(&b);
  return rc;
}

/* ---------------------------------------------------------------------------
   >>fifo: what every queue is, and the queue of one process

   A queue is a class, a row of functions, and what that class needs behind the
   common beginning, struct conc_queue. The public calls are in >>queue; they
   know the class only. So a new distance is one row and one section: this one
   has the queue of one process, >>cells the queue between processes, >>proxy
   the queue of a manager.

   A message is raw bytes, or a value as the body of a pickle (without the
   pickle's first and last opcode).

   A queue of one process is one ring of bytes. Each message lies in it behind
   its size and kind, so nothing is allocated for a message. Putters and
   getters have a guard each, and meet only in two counters: `put` counts
   messages ever put, and a put advances it when its message is complete; `got`
   counts those ever got, and a get advances it when it has copied one out. A
   getter that finds the queue empty asks again under the *putters'* guard, and
   waits on a list that belongs to that guard; a putter that finds it full does
   the same with the getters' guard. So a put, which holds its own guard
   anyway, sees without a further step whether a getter waits, and no wake-up
   is lost. The getter of a message may free the queue while the put of that
   message has not returned yet. Therefore the advance of the counter is the
   last thing that a put does to the queue, besides its guard, which is not
   part of it; a get likewise.
   ------------------------------------------------------------------------ */

enum { CONC__RAW = 0, CONC__PICKLED = 1 };

typedef struct conc__message {
  const void *data; /* the sender's */
  size_t size;
  int kind; /* CONC__RAW or CONC__PICKLED */
} conc__message;

/* Where a message goes to. Without `body`: to `data`, as the bytes that the
   message carries, which must not be more than `size`. With it: to the end of
   that buffer, as the body of a pickle, whatever the message's kind. */
typedef struct conc__sink {
  void *data;
  size_t size;
  conc__buffer *body;
} conc__sink;

/* What a distance does. Results are those of the public calls. */
typedef struct conc__queue_class {
  int (*put)(conc_queue *q, const conc__message *m, double deadline);
  /* The message's size. A message that the sink cannot take stays. */
  ssize_t (*get)(conc_queue *q, conc__sink *sink, double deadline);
  /* A message comes back to the front, since its getter could not hand it
     over. `b` is the buffer that it was got into, or NULL: the queue may keep
     that buffer (then it leaves `b` empty), so that this needs no memory. */
  int (*unget)(conc_queue *q, const conc__message *m, conc__buffer *b);
  ssize_t (*size)(conc_queue *q);
  int (*task_done)(conc_queue *q);
  int (*join)(conc_queue *q, double deadline);
  /* Frees a queue that conc_queue_new has made; NULL: it is its manager's. */
  void (*free)(conc_queue *q);
  int (*close)(conc_queue *q);    /* NULL: -ENOTSUP */
  ssize_t (*peek)(conc_queue *q); /* conc_peek_size; NULL: -ENOTSUP */
  /* Up to n messages of one size, n above 0, of which the first is waited for:
     `m` is the first, and the others lie behind it; the sink's data has room
     for n of its size. NULL: one after the other. */
  ssize_t (*put_n)(conc_queue *q, const conc__message *m, size_t n,
                   double deadline);
  ssize_t (*get_n)(conc_queue *q, conc__sink *sink, size_t n,
                   double deadline);
} conc__queue_class;

/* A message that came back when there was no memory for it in the ring: it
   stays in the buffer that it was got into, with this behind it. */
typedef struct conc__returned {
  struct conc__returned *next;
  unsigned char *memory; /* the buffer's, which this owns now */
  size_t at, size;       /* where in it the message lies */
} conc__returned;

/* What is reserved besides a body: the head and the end of the pickle, and
   room for a conc__returned, aligned. */
#define CONC__BODY_SPARE (16 + sizeof(void *) + sizeof(conc__returned))

/* What a queue of any distance begins with. */
struct conc_queue {
  const conc__queue_class *ops;
  const char *name;           /* for reports; or NULL */
  size_t capacity, max_bytes; /* 0: none */
};

/* A ring of bytes; `size` is a power of two, or 0. */
typedef struct conc__bytering {
  unsigned char *data;
  size_t size;
} conc__bytering;

typedef struct conc__fifo {
  conc_queue queue; /* first: it is a queue */
  /* Changes under both guards, or under the putters' guard alone when the
     queue is empty. */
  conc__bytering ring;
  bool closed; /* changes under the putters' guard */
  CONC__APART(1);
  /* Under the putters' guard. The last two are what they have last seen of
     the other side. */
  size_t put;    /* messages ever */
  size_t put_at; /* where the next one goes to */
  size_t got_seen, got_at_seen;
  struct conc__waitlist getters;
  CONC__APART(2);
  /* Under the getters' guard. */
  size_t got;      /* messages ever; less one for each that came back */
  size_t got_at;   /* where the first one is */
  size_t put_seen; /* of the other side */
  size_t done;     /* reported by conc_task_done */
  conc__returned *returned; /* come before all in the ring */
  struct conc__waitlist putters, joiners;
  CONC__APART(3);
} conc__fifo;

/* The putters' guard protects what putters change and the getters' list; the
   getters' guard the other half. */
CONC__INLINE conc__mutex *conc__fifo_put_guard(const conc__fifo *q) {
  return conc__mutex_pair(q, 0);
}
CONC__INLINE conc__mutex *conc__fifo_get_guard(const conc__fifo *q) {
  return conc__mutex_pair(q, 1);
}

/* Both guards, always in this order: see conc__mutex_pair. */
CONC__PRIVATE void conc__fifo_lock(const conc__fifo *q) {
  conc__mutex_lock(conc__fifo_put_guard(q));
  conc__mutex_lock(conc__fifo_get_guard(q));
}

CONC__PRIVATE void conc__fifo_unlock(const conc__fifo *q) {
  conc__mutex_unlock(conc__fifo_get_guard(q));
  conc__mutex_unlock(conc__fifo_put_guard(q));
}

/* --- the ring of bytes --- */

/* A message lies in the ring behind a word that has its size, and its kind in
   the lowest bit; the next one begins at the next whole word. Places are
   counted on from 0 and never start again: the place in the ring is the rest
   by its size, and put_at - got_at is what is in use, also when both counters
   have wrapped around. */
#define CONC__ENTRY_HEAD sizeof(size_t)
#define CONC__ENTRY_SIZE(size)                                                \
  ((CONC__ENTRY_HEAD * 2 - 1 + (size)) & ~(CONC__ENTRY_HEAD - 1))

typedef struct conc__entry {
  size_t at, size; /* of its bytes */
  size_t next;     /* where the one behind it begins */
  int kind;
} conc__entry;

/* Copies bytes to a place, around the end of the ring if need be. The caller
   knows that there is room. */
CONC__INLINE void conc__bytering_write(conc__bytering *ring, size_t at,
                                       const void *data, size_t size) {
  size_t start = at & (ring->size - 1);
  size_t first = ring->size - start;
  if (CONC__LIKELY(first >= size)) {
    if (size > 0) memcpy(ring->data + start, data, size);
  } else {
    memcpy(ring->data + start, data, first);
    memcpy(ring->data, (const unsigned char *)data + first, size - first);
  }
}

/* The other way round. */
CONC__INLINE void conc__bytering_read(const conc__bytering *ring, size_t at,
                                      void *data, size_t size) {
  size_t start = at & (ring->size - 1);
  size_t first = ring->size - start;
  if (CONC__LIKELY(first >= size)) {
    if (size > 0) memcpy(data, ring->data + start, size);
  } else {
    memcpy(data, ring->data + start, first);
    memcpy((unsigned char *)data + first, ring->data, size - first);
  }
}

/* Makes room for `need` bytes more, in a ring that is twice as large or more.
   Under both guards, for the getters read in the old one. What is in use moves
   to the front, so places are counted from 0 again: what each side remembers
   of the other is set to that, too. 0 or -ENOMEM: nothing has changed. */
CONC__PRIVATE int conc__bytering_grow(conc__fifo *q, size_t need) {
  size_t used = q->put_at - q->got_at;
  size_t size = q->ring.size == 0 ? 512 : q->ring.size;
  unsigned char *ring;
  CONC__CHECK(conc__mutex_is_held(conc__fifo_put_guard(q)) &&
              conc__mutex_is_held(conc__fifo_get_guard(q)));
  CONC__CHECK(used <= q->ring.size);
  q->got_seen = q->got;
  q->got_at_seen = q->got_at;
  if (need > SIZE_MAX / 4 || used > SIZE_MAX / 4) return -ENOMEM;
  while (size < used + need) size *= 2;
  if (size == q->ring.size) return 0;
  ring = (unsigned char *)CONC_MALLOC(size);
  if (ring == NULL) return -ENOMEM;
  if (used > 0) conc__bytering_read(&q->ring, q->got_at, ring, used);
  CONC_FREE(q->ring.data);
  q->ring.data = ring;
  q->ring.size = size;
  q->got_at = q->got_at_seen = 0;
  q->put_at = used;
  return 0;
}

/* Sees to it that there are `need` free bytes. Under the putters' guard. Most
   times the getters have made room meanwhile; only if they have not, their
   guard is taken, too. 0 or -ENOMEM. */
CONC__PRIVATE int conc__bytering_reserve(conc__fifo *q, size_t need) {
  conc__mutex *guard = conc__fifo_get_guard(q);
  int rc;
  CONC__CHECK(conc__mutex_is_held(conc__fifo_put_guard(q)));
  q->got_at_seen = CONC__LOAD(&q->got_at);
  if (need <= q->ring.size - (q->put_at - q->got_at_seen)) return 0;
  conc__mutex_lock(guard);
  rc = conc__bytering_grow(q, need);
  conc__mutex_unlock(guard);
  return rc;
}

/* A burst is over: its memory goes back. Under the putters' guard, when the
   queue is empty: then no getter looks at the ring. */
CONC__PRIVATE void conc__bytering_shrink(conc__fifo *q) {
  CONC__CHECK(conc__mutex_is_held(conc__fifo_put_guard(q)));
  CONC__CHECK(q->put == CONC__LOAD_RELAXED(&q->got));
  if (q->ring.size <= 65536) return;
  CONC_FREE(q->ring.data);
  q->ring.data = NULL;
  q->ring.size = 0;
  q->got_at_seen = q->put_at;
}

/* Writes a whole entry at a place. */
CONC__INLINE void conc__bytering_put(conc__fifo *q, size_t at,
                                     const void *data, size_t size, int kind) {
  size_t head = size << 1 | (size_t)kind;
  conc__bytering_write(&q->ring, at, &head, sizeof head);
  conc__bytering_write(&q->ring, at + sizeof head, data, size);
}

/* Whether there is room for a message behind `more` others that `put` does not
   count yet. Under the putters' guard. The getters' counter is in their line
   of the cache: it is read only if the value seen last does not do. */
CONC__INLINE bool conc__fifo_fits(conc__fifo *q, size_t more) {
  size_t put = q->put + more;
  if (q->queue.capacity == 0 || put - q->got_seen < q->queue.capacity)
    return true;
  q->got_seen = CONC__LOAD(&q->got);
  return put - q->got_seen < q->queue.capacity;
}

/* Whether there is a message behind the first `less`. Under the getters'
   guard; it reads the putters' counter as conc__fifo_fits reads the getters'.
   The acquire is the one that makes the message's bytes visible. */
CONC__INLINE bool conc__fifo_has(conc__fifo *q, size_t less) {
  size_t got = q->got + less;
  if (q->put_seen != got) return true;
  q->put_seen = CONC__LOAD(&q->put);
  return q->put_seen != got;
}

/* Finds the first message; there is one. Under the getters' guard. */
CONC__INLINE void conc__fifo_first(const conc__fifo *q, conc__entry *slot) {
  size_t head;
  conc__bytering_read(&q->ring, q->got_at, &head, sizeof head);
  slot->at = q->got_at + sizeof head;
  slot->size = head >> 1;
  slot->kind = (int)(head & 1);
  slot->next = q->got_at + CONC__ENTRY_SIZE(slot->size);
}

/* Narrows an entry to the bytes that it carries: all of a raw message, or the
   content of a pickled str or bytes. -EBADMSG for a pickle of anything else.
   Under the getters' guard, or of a ring of the caller's own. */
CONC__PRIVATE int conc__entry_content(const conc__bytering *ring,
                                      conc__entry *slot) {
  unsigned char start[16];
  size_t n = slot->size < sizeof start ? slot->size : sizeof start;
  size_t offset;
  int rc;
  if (slot->kind == CONC__RAW) return 0;
  conc__bytering_read(ring, slot->at, start, n);
  rc = conc__pickle_content(start, n, slot->size, &offset, &slot->size);
  if (rc == 0) slot->at += offset;
  return rc;
}

/* Copies a message to the sink: to `data`, a place in its buffer, or to its
   body. Nothing has been copied if it fails. Under the getters' guard, or of a
   ring of the caller's own. The message's size, or negative errno. */
CONC__INLINE ssize_t conc__entry_copy(const conc__bytering *ring,
                                      conc__entry *slot,
                                      const conc__sink *sink, void *data) {
  int rc;
  if (sink->body != NULL) {
    rc = conc__buffer_reserve(sink->body, slot->size + CONC__BODY_SPARE);
    if (rc != 0) return rc;
    if (slot->kind == CONC__RAW)
      conc__pickle_put_bytes_head(sink->body, slot->size);
    conc__bytering_read(ring, slot->at, sink->body->data + sink->body->size,
                        slot->size);
    sink->body->size += slot->size;
  } else {
    rc = slot->kind == CONC__RAW ? 0 : conc__entry_content(ring, slot);
    if (rc != 0) return rc;
    if (slot->size > sink->size) return -EMSGSIZE;
    conc__bytering_read(ring, slot->at, data, slot->size);
  }
  return (ssize_t)slot->size;
}

/* --- putting and getting ---

   A waiter that was woken looks again, and goes back to the front of the list
   if another task was faster. So each message wakes one getter, and each
   message that is taken one putter. A waiter that leaves for another reason
   after it was woken passes the wake-up on: or a message would lie there while
   a getter sleeps. */

/* Takes the first waiter off a list and wakes it. */
CONC__PRIVATE void conc__fifo_pass(conc__mutex *guard,
                                   struct conc__waitlist *list) {
  conc__waiter *woken;
  conc__mutex_lock(guard);
  woken = conc__waitlist_take(list);
  conc__mutex_unlock(guard);
  conc__wake_all(woken);
}

/* Waits until the other side's counter is no longer as it was, as long as that
   is likely to be soon. A coroutine's CPU is better given to the next one. */
CONC__PRIVATE bool conc__fifo_spin(conc__actor *self, const size_t *counter,
                                   size_t seen, double deadline) {
  /* When it was last seen that a thread that lets others run does not come
     back soon: those others are not the ones that it waits for, but some with
     work of their own. A thread that sleeps instead is better served. */
  static unsigned yield_was_slow_at;
  conc__short_spin spin = {0, 0};
  double limit = 10e-3;
  if (conc__cpus < 2 || !self->ops->blocks) return false;
  if (deadline < CONC__NEVER && deadline - conc_now() < limit) limit = 0;
  while (conc__short_spin_again(&spin, limit, &yield_was_slow_at))
    if (CONC__LOAD(counter) != seen) return true;
  return false;
}

/* Called with the putters' guard held, when the queue is full: waits until it
   is not, or is closed, and returns with the guard held again. If it fails,
   the guard has been released. The guard is not held while it looks under the
   getters' guard: a waiter is told from a get by that one alone. */
CONC__NOINLINE int conc__fifo_await_room(conc__fifo *q, double deadline) {
  conc__mutex *guard = conc__fifo_put_guard(q);
  conc__mutex *other = conc__fifo_get_guard(q);
  bool front = false;
  conc__waiter w;
  if (deadline > 0)
    conc__waiter_init(&w, conc__self(), "queue", q->queue.name);
  w.recheck_after_fork = true;
  do {
    size_t seen = q->got_seen;
    conc__mutex_unlock(guard);
    if (deadline <= 0) return -ETIMEDOUT;
    if (!conc__fifo_spin(w.actor, &q->got, seen, deadline)) {
      /* Under this guard no get advances `got`: so either it is not full, or
         the next get finds this waiter in the list. */
      conc__mutex_lock(other);
      if (!q->closed && CONC__LOAD(&q->put) - q->got >= q->queue.capacity) {
        int rc =
            conc__waitlist_wait(other, &q->putters, &w, front, true, deadline);
        if (rc != 0 && rc != -EAGAIN) return rc;
        w.failure = 0;
        front = true;
      } else {
        conc__mutex_unlock(other);
      }
    }
    conc__mutex_lock(guard);
  } while (!q->closed && !conc__fifo_fits(q, 0));
  return 0;
}

/* Puts as many as there is room for of n messages, whose bytes follow each
   other; waits for room for the first. How many, or negative errno. Entries
   are written first and counted at once at the end: a getter sees all of them
   or none, and is woken when they are there. */
CONC__INLINE ssize_t conc__fifo_put_n(conc__fifo *q, const conc__message *m,
                                      size_t n, double deadline) {
  conc__mutex *guard = conc__fifo_put_guard(q);
  const char *data = (const char *)m->data;
  size_t need = CONC__ENTRY_SIZE(m->size), done = 0;
  conc__waiter *woken = NULL;
  int rc = 0;
  if (m->size > SIZE_MAX / 4) return -ENOMEM;
  conc__mutex_lock(guard);
  if (CONC__UNLIKELY(!q->closed && !conc__fifo_fits(q, 0))) {
    rc = conc__fifo_await_room(q, deadline);
    if (rc != 0) return rc;
  }
  if (q->closed) rc = -EPIPE;
  while (rc == 0) {
    if (CONC__UNLIKELY(need > q->ring.size - (q->put_at - q->got_at_seen))) {
      rc = conc__bytering_reserve(q, need);
      if (rc != 0) break;
    }
    conc__bytering_put(q, q->put_at, data, m->size, m->kind);
    q->put_at += need;
    if (++done == n || !conc__fifo_fits(q, done)) break;
    if (m->size > 0) data += m->size;
  }
  /* The waiters are taken off before the counter is stored: after that the
     queue may be gone, and only the guard, which is not part of it, is left.
   */
  if (done > 0) {
    if (q->getters.first != NULL)
      woken = conc__waitlist_take_n(&q->getters, done);
    CONC__STORE(&q->put, q->put + done);
  }
  conc__mutex_unlock(guard);
  if (woken != NULL) conc__wake_all(woken);
  /* This putter may have been woken for the room that it has not used. */
  if (CONC__UNLIKELY(rc == -ENOMEM))
    conc__fifo_pass(conc__fifo_get_guard(q), &q->putters);
  return done > 0 ? (ssize_t)done : rc;
}

CONC__PRIVATE int conc__fifo_put(conc_queue *queue, const conc__message *m,
                                 double deadline) {
  conc__fifo *q = (conc__fifo *)queue;
  ssize_t n = conc__fifo_put_n(q, m, 1, deadline);
  return n < 0 ? (int)n : 0;
}

/* Called with the getters' guard held, when the queue is empty: waits until it
   is not, and returns with the guard held again. If it fails, the guard has
   been released. A closed queue that is empty is -EPIPE. */
CONC__NOINLINE int conc__fifo_await_message(conc__fifo *q, double deadline) {
  conc__mutex *guard = conc__fifo_get_guard(q);
  conc__mutex *other = conc__fifo_put_guard(q);
  bool front = false;
  conc__waiter w;
  if (deadline > 0)
    conc__waiter_init(&w, conc__self(), "queue", q->queue.name);
  w.recheck_after_fork = true;
  do {
    size_t seen = q->put_seen;
    conc__mutex_unlock(guard);
    if (deadline <= 0 || !conc__fifo_spin(w.actor, &q->put, seen, deadline)) {
      conc__mutex_lock(other);
      if (q->put == CONC__LOAD(&q->got)) {
        int rc = q->closed ? -EPIPE : deadline <= 0 ? -ETIMEDOUT : 0;
        conc__bytering_shrink(q); /* its getters have nothing better to do */
        if (rc == 0)
          rc = conc__waitlist_wait(other, &q->getters, &w, front, true,
                                   deadline);
        else
          conc__mutex_unlock(other);
        if (rc != 0 && rc != -EAGAIN) return rc;
        w.failure = 0;
        front = true;
      } else {
        conc__mutex_unlock(other);
      }
    }
    conc__mutex_lock(guard);
  } while (!conc__fifo_has(q, 0));
  return 0;
}

/* Copies the first message that came back, as conc__entry_copy does, and drops
   it. With `exact` only if it has as many bytes as the sink: else -EMSGSIZE.
   Under the getters' guard. */
CONC__NOINLINE ssize_t conc__returned_get(conc__fifo *q,
                                          const conc__sink *sink, void *data,
                                          bool exact) {
  conc__returned *r = q->returned;
  conc__entry slot;
  ssize_t size;
  conc__bytering ring; /* in which it lies alone */
  ring.data = r->memory;
  ring.size = SIZE_MAX / 2 + 1;
  slot.at = r->at;
  slot.size = r->size;
  slot.kind = CONC__PICKLED;
  size = conc__entry_copy(&ring, &slot, sink, data);
  if (exact && size >= 0 && (size_t)size != sink->size) return -EMSGSIZE;
  if (size >= 0) {
    q->returned = r->next;
    CONC_FREE(r->memory);
  }
  return size;
}

/* Gets as many as there are of n messages, each of as many bytes as the sink
   has; waits for the first. How many, or negative errno. If n is 0: one
   message of any size that the sink takes, and its size.
   `got_at` is stored as soon as a message has been copied, for a putter that
   needs the bytes; `got` is stored once, at the end, for it is what lets
   putters go, and what says that this get is done with the queue. */
CONC__INLINE ssize_t conc__fifo_get_n(conc__fifo *q, const conc__sink *sink,
                                      size_t n, double deadline) {
  conc__mutex *guard = conc__fifo_get_guard(q);
  char *data = (char *)sink->data;
  conc__waiter *woken = NULL;
  size_t done = 0;
  ssize_t size;
  conc__mutex_lock(guard);
  if (CONC__UNLIKELY(!conc__fifo_has(q, 0))) {
    int rc = conc__fifo_await_message(q, deadline);
    if (rc != 0) return rc;
  }
  for (;;) {
    if (CONC__UNLIKELY(q->returned != NULL)) {
      size = conc__returned_get(q, sink, data, n > 0);
      if (size < 0) break;
    } else {
      conc__entry slot;
      conc__fifo_first(q, &slot);
      size = conc__entry_copy(&q->ring, &slot, sink, data);
      if (n > 0 && size >= 0 && (size_t)size != sink->size) size = -EMSGSIZE;
      if (size < 0) break;
      CONC__STORE(&q->got_at, slot.next);
    }
    if (++done >= n || !conc__fifo_has(q, done)) break;
    if (size > 0) data += size;
  }
  if (done > 0) {
    if (q->putters.first != NULL)
      woken = conc__waitlist_take_n(&q->putters, done);
    CONC__STORE(&q->got, q->got + done);
  }
  conc__mutex_unlock(guard);
  if (woken != NULL) conc__wake_all(woken);
  /* A message stayed that another getter may be able to take. */
  if (CONC__UNLIKELY(size < 0))
    conc__fifo_pass(conc__fifo_put_guard(q), &q->getters);
  return done > 0 && n > 0 ? (ssize_t)done : size;
}

CONC__PRIVATE ssize_t conc__fifo_get(conc_queue *queue, conc__sink *sink,
                                     double deadline) {
  conc__fifo *q = (conc__fifo *)queue;
  return conc__fifo_get_n(q, sink, 0, deadline);
}

/* Keeps a message that comes back in the buffer that it was got into, which
   has been made large enough for that (CONC__BODY_SPARE). Under both guards.
   0, or -ENOMEM if there is no such buffer. */
CONC__PRIVATE int conc__returned_keep(conc__fifo *q, const conc__message *m,
                                      conc__buffer *b) {
  const size_t word = sizeof(void *);
  size_t at, behind;
  conc__returned *r;
  if (b == NULL || m->kind != CONC__PICKLED) return -ENOMEM;
  at = (size_t)((const unsigned char *)m->data - b->data);
  behind = (at + m->size + word - 1) & ~(word - 1);
  if (b->capacity < behind + sizeof *r) return -ENOMEM;
  r = (conc__returned *)(void *)(b->data + behind);
  r->next = q->returned;
  r->memory = b->data;
  r->at = at;
  r->size = m->size;
  q->returned = r;
  memset(b, 0, sizeof *b);
  return 0;
}

/* A message comes back, because its getter went away before it had it. It was
   taken, so there is room for it, whether the queue is closed or not and
   whatever its capacity. It goes to the front, where it was. Once a message
   has been kept outside of the ring, all that come back must be, or their
   order would be lost: `returned` is older than the ring. */
CONC__PRIVATE int conc__fifo_unget(conc_queue *queue, const conc__message *m,
                                   conc__buffer *b) {
  conc__fifo *q = (conc__fifo *)queue;
  size_t need = CONC__ENTRY_SIZE(m->size);
  conc__waiter *woken = NULL;
  int rc = -ENOMEM;
  conc__fifo_lock(q);
  if (q->returned != NULL) rc = conc__returned_keep(q, m, b);
  if (rc != 0 && m->size <= SIZE_MAX / 4 &&
      (rc = conc__bytering_grow(q, need)) == 0) {
    conc__bytering_put(q, q->got_at - need, m->data, m->size, m->kind);
    CONC__STORE(&q->got_at, q->got_at - need);
  }
  if (rc != 0) rc = conc__returned_keep(q, m, b);
  if (rc == 0) {
    woken = conc__waitlist_take(&q->getters);
    CONC__STORE(&q->got, q->got - 1);
    q->got_at_seen = q->got_at;
    q->got_seen = q->got;
  }
  conc__fifo_unlock(q);
  conc__wake_all(woken);
  return rc;
}

/* Under the putters' guard, so that `put` stands; a get may come meanwhile. */
CONC__PRIVATE ssize_t conc__fifo_size(conc_queue *queue) {
  conc__fifo *q = (conc__fifo *)queue;
  conc__mutex *guard = conc__fifo_put_guard(q);
  size_t n;
  conc__mutex_lock(guard);
  n = q->put - CONC__LOAD(&q->got);
  conc__mutex_unlock(guard);
  return (ssize_t)n;
}

/* `done` may come up to `put`, but not past it. Under the getters' guard; a
   put that is under way meanwhile only adds to what is to be done. */
CONC__PRIVATE int conc__fifo_task_done(conc_queue *queue) {
  conc__fifo *q = (conc__fifo *)queue;
  conc__mutex *guard = conc__fifo_get_guard(q);
  conc__waiter *woken = NULL;
  size_t put;
  int rc = 0;
  conc__mutex_lock(guard);
  put = CONC__LOAD(&q->put);
  if (q->done == put)
    rc = -EINVAL;
  else if (++q->done == put)
    woken = conc__waitlist_take_n(&q->joiners, SIZE_MAX);
  conc__mutex_unlock(guard);
  conc__wake_all(woken);
  return rc;
}

CONC__PRIVATE int conc__fifo_join(conc_queue *queue, double deadline) {
  conc__fifo *q = (conc__fifo *)queue;
  conc__mutex *guard = conc__fifo_get_guard(q);
  conc__waiter w;
  bool done;
  conc__mutex_lock(guard);
  done = q->done == CONC__LOAD(&q->put);
  if (done || deadline <= 0) {
    conc__mutex_unlock(guard);
    return done ? 0 : -ETIMEDOUT;
  }
  conc__waiter_init(&w, conc__self(), "the end of queue", q->queue.name);
  return conc__waitlist_wait(guard, &q->joiners, &w, false, true, deadline);
}

/* Makes a queue of a class, in a block of `size` bytes that begins with it. */
CONC__PRIVATE conc_queue *conc__queue_make(const conc__queue_class *ops,
                                           size_t size) {
  conc_queue *q = (conc_queue *)CONC_MALLOC(size);
  if (q == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  memset(q, 0, size);
  q->ops = ops;
  return q;
}

/* --- the class --- */

CONC__PRIVATE void conc__fifo_free(conc_queue *queue) {
  conc__fifo *q = (conc__fifo *)queue;
  while (q->returned != NULL) {
    unsigned char *memory = q->returned->memory;
    q->returned = q->returned->next;
    CONC_FREE(memory);
  }
  CONC_FREE(q->ring.data);
  CONC_FREE(queue);
}

/* Both guards: a putter looks at `closed` under its own, and a getter that
   finds the queue empty looks under the putters'. All waiters are woken and
   see it. */
CONC__PRIVATE int conc__fifo_close(conc_queue *queue) {
  conc__fifo *q = (conc__fifo *)queue;
  conc__waiter *getters, *putters;
  conc__fifo_lock(q);
  q->closed = true;
  getters = conc__waitlist_take_n(&q->getters, SIZE_MAX);
  putters = conc__waitlist_take_n(&q->putters, SIZE_MAX);
  conc__fifo_unlock(q);
  conc__wake_all(getters);
  conc__wake_all(putters);
  return 0;
}

/* Both guards, so that the first message stays the first. */
CONC__PRIVATE ssize_t conc__fifo_peek(conc_queue *queue) {
  conc__fifo *q = (conc__fifo *)queue;
  conc__entry slot;
  int rc;
  conc__fifo_lock(q);
  if (q->returned != NULL) {
    const conc__returned *r = q->returned;
    size_t offset;
    rc = conc__pickle_content(r->memory + r->at, r->size, r->size, &offset,
                              &slot.size);
  } else if (conc__fifo_has(q, 0)) {
    conc__fifo_first(q, &slot);
    rc = conc__entry_content(&q->ring, &slot);
  } else {
    rc = q->closed ? -EPIPE : -ETIMEDOUT;
  }
  conc__fifo_unlock(q);
  return rc != 0 ? rc : (ssize_t)slot.size;
}

CONC__PRIVATE ssize_t conc__fifo_put_many(conc_queue *queue,
                                          const conc__message *m, size_t n,
                                          double deadline) {
  conc__fifo *q = (conc__fifo *)queue;
  return conc__fifo_put_n(q, m, n, deadline);
}

CONC__PRIVATE ssize_t conc__fifo_get_many(conc_queue *queue, conc__sink *sink,
                                          size_t n, double deadline) {
  conc__fifo *q = (conc__fifo *)queue;
  return conc__fifo_get_n(q, sink, n, deadline);
}

static const conc__queue_class conc__fifo_class = {
    conc__fifo_put,       conc__fifo_get,  conc__fifo_unget,
    conc__fifo_size,      conc__fifo_task_done, conc__fifo_join,
    conc__fifo_free,      conc__fifo_close, conc__fifo_peek,
    conc__fifo_put_many,  conc__fifo_get_many};

CONC__PRIVATE conc_queue *conc__fifo_new(const conc_queue_opts *options) {
  conc_queue *q = conc__queue_make(&conc__fifo_class, sizeof(conc__fifo));
  if (q == NULL || options == NULL) return q;
  q->name = options->name;
  q->capacity = options->capacity;
  q->max_bytes = options->max_bytes;
  return q;
}

/* ---------------------------------------------------------------------------
   >>cells: the queue between processes

   A ring of cells in shared memory. A position is a lap and a cell's index; a
   cell's word holds the lap that it is in, a state and, in two of the states,
   the id of the process that has it (see >>ipc):

     FREE(lap) -> BUSY(lap, putter) -> FULL(lap)
               -> READING(lap, getter) -> FREE(lap + 1)

   A process enters BUSY and READING by a compare-and-swap, which claims the
   cell and names the owner in one step. It leaves them by one store, and this
   store is what puts or gets the message. Whatever instruction a process is
   killed at, there is either no claim, or a claim that names a dead process.
   In the latter case a message that was being put is skipped, and a message
   that was being got is FULL again, for another getter. Only a process that is
   held up by the claim looks into that.

   `tail` and `head` are hints: a process that finds that the cell there is
   past that position goes on, and helps the hint on. So it does no harm if a
   hint lags, or if a slow process's store even sets it back. But head is never
   past a message that has not been got: getters pass over cells that are BUSY
   or READING, head does not.

   A process that finds nothing to do sets the bit AWAITED in the word of the
   cell that must change first, and sleeps. The process that claims that cell
   sees the bit in the word that it replaces, and wakes one sleeper when the
   cell is done. That sleeper, when it leaves, passes the wake-up on as long as
   there may be other sleepers: so the fast side pays nothing at all for them.
   A sleeper that is killed leaves the count of sleepers too high: that costs a
   system call more now and then.

   What a killed process can leave behind, and what makes it good:
     a claim BUSY         conc__cells_recover_dead skips the cell
     a claim READING      conc__cells_recover_dead makes it FULL again
     AWAITED set, asleep  the wake-up goes to a word that counts, not to it
     woken, not yet gone  others look every CONC__SHARED_LOOK seconds
   ------------------------------------------------------------------------ */

/* A cell's word: two bits of state, AWAITED, 30 bits of owner, 31 of lap.
   The lap    is the one that the state is of. It grows when a getter is done.
   The owner  is the id of the process that has claimed the cell. It must be 0
              in FREE and FULL, and must not be 0 in BUSY and READING.
   AWAITED    may be set in FREE or FULL by a process that is about to sleep
              until this cell changes. A claim clears it, and its owner must
              wake one sleeper of the other side then. */

#define CONC__CELL_FREE 0u
#define CONC__CELL_BUSY 1u
#define CONC__CELL_FULL 2u
#define CONC__CELL_READING 3u
#define CONC__CELL_AWAITED ((uint64_t)4)
#define CONC__CELL_STATE(word) ((unsigned)(word) & 3u)
#define CONC__CELL_OWNER(word) ((unsigned)((word) >> 3) & 0x3fffffffu)
#define CONC__CELL_LAP(word) ((uint32_t)((word) >> 33)) /* 31 bits */
#define CONC__CELL(lap, owner, state) \
  ((uint64_t)(lap) << 33 | (uint64_t)(owner) << 3 | (state))

/* A position: the lap above, the index of the cell below. */
#define CONC__AT(lap, index) \
  ((uint64_t)((lap) & 0x7fffffffu) << 32 | (uint64_t)(index))
#define CONC__AT_LAP(at) ((uint32_t)((at) >> 32))
#define CONC__AT_INDEX(at) ((uint32_t)(at))

#define CONC__CELLS_MAGIC 0x51434e43u /* changes with this layout */
/* If no message may have more bytes than this, all lie in the cells; else
   those of more than CONC__CELL_APART in blocks, of which the pages that are
   never needed cost nothing. */
#define CONC__CELL_SMALL 1100
#define CONC__CELL_APART 104

enum { CONC__GETTERS, CONC__PUTTERS, CONC__JOINERS };

typedef struct conc__cell {
  uint64_t word;  /* see above */
  uint64_t skips; /* messages skipped here; above them the lap of the last */
  /* The owner of a BUSY cell writes these; they stand while it is FULL. */
  uint32_t size; /* of the message, in bytes */
  uint32_t form; /* where its content is: CONC__FORM_... */
} conc__cell;    /* a small message follows */

#define CONC__FORM_PICKLED 1u /* as the body of a pickle */
#define CONC__FORM_OTHER 2u   /* and not of bytes or str */
/* These many bytes before the content, and after it. */
#define CONC__FORM_BEFORE(form) ((form) >> 8 & 255)
#define CONC__FORM_AFTER(form) ((form) >> 16)

/* Getters, putters or joiners. A waker adds to `word` first and reads the
   counts then; a sleeper adds itself to a count first and reads the word then.
   All of this is SEQ_CST: so the waker sees the sleeper, or the sleeper sees
   that the word has changed. */
struct conc__cells_side {
  unsigned word;     /* counts wake-ups; threads sleep on it */
  unsigned sleepers; /* threads there; too high after deaths */
  unsigned pollers;  /* tasks that wait for the waker's descriptor; likewise */
};

/* What lies in the shared memory, before the cells. */
typedef struct conc__cells {
  uint32_t magic, count; /* to recognise another queue of the same name */
  uint64_t max_bytes;
  unsigned closed;  /* set once */
  unsigned skipped; /* changes with the cells' skips */
  /* Lines of their own, in pairs, for CPUs fetch two at a time. */
  uint64_t tail __attribute__((aligned(128)));
  uint64_t head __attribute__((aligned(128)));
  uint64_t done __attribute__((aligned(128))); /* calls of conc_task_done */
  unsigned ends; /* how often the last message was reported done */
  struct conc__cells_side sides[3];
} conc__cells; /* followed by the cells, and the blocks */

/* A process's handle. What it has read from shared memory is checked once,
   when it opens the queue; the layout is then taken from here alone. */
typedef struct conc__cells_queue {
  conc_queue queue; /* first: it is a queue */
  conc__cells *cells;
  struct conc__registry *registry; /* of the memory */
  size_t count;                    /* of cells */
  size_t stride;                   /* bytes from one cell to the next */
  size_t small;      /* bytes of a message that a cell holds itself */
  size_t block_size; /* of a larger message; 0: there are none */
  size_t blocks_at;  /* the first block, counted from `cells` */
  uint64_t skips;    /* their sum; above it the `skipped` that it is of */
  int wakers[2][2]; /* of getters and putters: see conc__waker_open; or -1 */
  bool polls;       /* threads wait at them, too */
  conc_queue *stash; /* of this process: got, but could not be handed over */
  unsigned stashed;  /* there may be something in it */
  unsigned lone[2];  /* see conc__cells_pause_for_batch; getters, putters */
} conc__cells_queue;

/* A place in the ring where something can be done, or is waited for. */
typedef struct conc__cells_position {
  conc__cell *cell; /* NULL: none in particular */
  uint64_t at;      /* its position */
  uint64_t word;    /* as it was seen, for the compare-and-swap */
  bool busy;        /* a process has claimed it, and will change it soon */
  bool suspect; /* there are cells whose owner may be dead */
} conc__cells_position;

CONC__INLINE conc__cell *conc__cell_at(const conc__cells_queue *s,
                                       uint64_t at) {
  return (conc__cell *)(void *)((char *)(s->cells + 1) +
                                CONC__AT_INDEX(at) * s->stride);
}

/* Where the bytes of a message of that size lie. */
CONC__INLINE char *conc__cell_data(const conc__cells_queue *s, uint64_t at,
                                   size_t size) {
  if (size <= s->small) return (char *)(conc__cell_at(s, at) + 1);
  return (char *)s->cells + s->blocks_at + CONC__AT_INDEX(at) * s->block_size;
}

CONC__INLINE uint64_t conc__at_next(const conc__cells_queue *s, uint64_t at) {
  return CONC__AT_INDEX(at) + 1 < s->count ? at + 1
                                           : CONC__AT(CONC__AT_LAP(at) + 1, 0);
}

/* By how many laps a cell is ahead of a position; below 0: behind. Laps have
   31 bits: the shift makes the difference wrap as a signed number does. */
CONC__INLINE int conc__cell_ahead(uint64_t word, uint64_t at) {
  return (int)((CONC__CELL_LAP(word) - CONC__AT_LAP(at)) << 1) / 2;
}

/* The next position, after one whose cell is ahead by so much; from one that
   is far behind, a leap to where the oldest messages may be. */
CONC__INLINE uint64_t conc__cells_past(const conc__cells_queue *s,
                                       uint64_t word, uint64_t at, int ahead) {
  if (CONC__UNLIKELY(ahead > 1))
    at = CONC__AT(CONC__CELL_LAP(word) - 2, CONC__AT_INDEX(at));
  return conc__at_next(s, at);
}

/* Moves a hint on. Not a compare-and-swap: if another process has moved it
   meanwhile, it is set back, and the next one helps it on again. */
CONC__INLINE void conc__cells_help(uint64_t *hint, uint64_t from,
                                   uint64_t to) {
  if (CONC__LOAD_RELAXED(hint) == from) CONC__STORE_RELAXED(hint, to);
}

/* The search has passed over puts that had not ended, and has found a message
   behind them. If one of those puts has ended meanwhile, it may be an earlier
   message of the same putter, which must come first: goes back to it. False if
   none has ended. */
CONC__PRIVATE bool conc__cells_earlier(const conc__cells_queue *s,
                                       conc__cells_position *spot,
                                       uint64_t *at) {
  uint64_t i;
  for (i = spot->at; i != *at; i = conc__at_next(s, i)) {
    uint64_t word = CONC__LOAD(&conc__cell_at(s, i)->word);
    if (CONC__CELL_STATE(word) == CONC__CELL_FULL &&
        conc__cell_ahead(word, i) == 0) {
      *at = i;
      spot->busy = false;
      return true;
    }
  }
  return false;
}

/* Finds the oldest message that no process has claimed. False if there is
   none: then the spot is the cell that would change first. */
CONC__INLINE bool conc__cells_find_full(const conc__cells_queue *s,
                                        conc__cells_position *spot) {
  uint64_t at = CONC__LOAD_RELAXED(&s->cells->head);
  uint64_t front = at; /* all before it are got */
  spot->at = at;
  spot->busy = spot->suspect = false;
  for (;;) {
    conc__cell *cell = conc__cell_at(s, at);
    uint64_t word = CONC__LOAD(&cell->word), next;
    int ahead = conc__cell_ahead(word, at);
    unsigned state = CONC__CELL_STATE(word);
    /* The first cell that is BUSY is the one to wait for, if no message is
       found behind it. */
    if (!spot->busy) {
      spot->cell = cell;
      spot->at = at;
      spot->word = word;
    }
    if (CONC__UNLIKELY(ahead < 0)) { /* a whole lap is claimed */
      spot->busy = true;
      break;
    }
    if (ahead == 0 && state == CONC__CELL_FULL) {
      if (CONC__UNLIKELY(spot->busy) && conc__cells_earlier(s, spot, &at))
        continue;
      spot->cell = cell;
      spot->at = at;
      spot->word = word;
      return true;
    }
    if (ahead == 0 && state == CONC__CELL_FREE) break;
    /* Only cells that have been got are left behind by head: at the first one
       that is claimed it stays, in case that its owner is dead. */
    next = conc__cells_past(s, word, at, ahead);
    if (ahead == 0) {
      spot->suspect = true;
      if (state == CONC__CELL_BUSY) spot->busy = true;
    } else if (at == front) {
      conc__cells_help(&s->cells->head, at, next);
      front = next;
    }
    at = next;
  }
  return false;
}

/* Finds the cell for the next message. False if the queue is full: then the
   spot is the cell that must be got first. */
CONC__INLINE bool conc__cells_find_free(const conc__cells_queue *s,
                                        conc__cells_position *spot) {
  uint64_t at = CONC__LOAD_RELAXED(&s->cells->tail);
  for (;;) {
    conc__cell *cell = conc__cell_at(s, at);
    uint64_t word = CONC__LOAD(&cell->word), next;
    int ahead = conc__cell_ahead(word, at);
    unsigned state = CONC__CELL_STATE(word);
    if (ahead < 0 || (ahead == 0 && state == CONC__CELL_FREE)) {
      spot->cell = cell;
      spot->at = at;
      spot->word = word;
      spot->busy = spot->suspect = ahead < 0 && state != CONC__CELL_FULL;
      return ahead == 0;
    }
    /* The cell was claimed in its lap, or if it is free, in the one before. */
    next = conc__at_next(
        s, CONC__AT(CONC__CELL_LAP(word) - (state == CONC__CELL_FREE),
                    CONC__AT_INDEX(at)));
    conc__cells_help(&s->cells->tail, at, next);
    at = next;
  }
}

/* What a side looks for. */
CONC__INLINE bool conc__cells_find(const conc__cells_queue *s, int side,
                                   conc__cells_position *spot) {
  return side == CONC__GETTERS ? conc__cells_find_full(s, spot)
                               : conc__cells_find_free(s, spot);
}

/* Wakes n threads of a side, and the loops that poll. In any process; a loop
   drains the descriptor and looks again, so too many wake-ups do no harm. */
CONC__PRIVATE void conc__cells_wake(conc__cells_queue *s, int side, int n) {
  struct conc__cells_side *it = &s->cells->sides[side];
  CONC__POINT();
  __atomic_add_fetch(&it->word, 1u, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&it->sleepers, __ATOMIC_SEQ_CST) > 0)
    conc__shared_wake(&it->word, n);
  if (__atomic_load_n(&it->pollers, __ATOMIC_SEQ_CST) > 0 &&
      side != CONC__JOINERS && s->wakers[side][1] >= 0)
    conc__waker_wake(s->wakers[side]);
}

/* --- what the dead leave behind --- */

/* Gives up the caller's claim to put: there is no message. The skip is
   counted, so that conc_queue_join does not wait for it. The lap beside the
   count says which claim it was for: a process that does this again, for one
   that was killed in here, sees that it has been counted. `skipped` changes
   after the count and before the cell goes on: a process that has seen the
   cell go on sums anew. */
CONC__PRIVATE void conc__cell_skip(conc__cells_queue *s, conc__cell *cell,
                                   uint32_t lap) {
  uint64_t skips = CONC__LOAD(&cell->skips);
  if ((uint32_t)skips == 0 || (uint32_t)(skips >> 32) != lap)
    CONC__STORE(&cell->skips,
                (uint64_t)lap << 32 | (uint32_t)((uint32_t)skips + 1));
  CONC__POINT();
  __atomic_add_fetch(&s->cells->skipped, 1u, __ATOMIC_ACQ_REL);
  CONC__STORE(&cell->word, CONC__CELL(lap + 1, 0, CONC__CELL_FREE));
  /* Getters nap for a BUSY cell, each for itself; a putter can have the cell;
     for joiners it may have been the last message. */
  conc__cells_wake(s, CONC__GETTERS, INT_MAX);
  conc__cells_wake(s, CONC__PUTTERS, 1);
  conc__cells_wake(s, CONC__JOINERS, INT_MAX);
}

/* Looks at the owners of all cells that are claimed, and takes the cells of
   dead owners from them. Returns whether there were such. To ask whether a
   process is dead is a system call: the one that was found alive last is not
   asked for again. A cell that has changed meanwhile is no concern of this
   one: the compare-and-swap fails, and its owner was alive. */
CONC__PRIVATE bool conc__cells_recover_dead(conc__cells_queue *s) {
  uint64_t at = CONC__LOAD(&s->cells->head);
  unsigned self = conc__registry_self(s->registry);
  unsigned alive = self;
  bool mended = false;
  if (self == 0) return false;
  for (;;) {
    conc__cell *cell = conc__cell_at(s, at);
    uint64_t word = CONC__LOAD(&cell->word);
    unsigned state = CONC__CELL_STATE(word), owner = CONC__CELL_OWNER(word);
    uint32_t lap = CONC__CELL_LAP(word);
    int ahead = conc__cell_ahead(word, at);
    if (ahead < 0 || (ahead == 0 && state == CONC__CELL_FREE)) return mended;
    at = conc__cells_past(s, word, at, ahead);
    if (ahead > 0 || state == CONC__CELL_FULL || owner == alive) continue;
    if (!conc__registry_is_dead(s->registry, owner)) {
      alive = owner;
    } else if (state == CONC__CELL_READING) {
      if (CONC__CAS(&cell->word, &word, CONC__CELL(lap, 0, CONC__CELL_FULL))) {
        conc__cells_wake(s, CONC__GETTERS, 1);
        mended = true;
      }
    } else if (CONC__CAS(&cell->word, &word,
                         CONC__CELL(lap, self, CONC__CELL_BUSY))) {
      /* This process's claim now: if it dies here, the next one does it. */
      conc__cell_skip(s, cell, lap);
      mended = true;
    }
  }
}

/* --- waiting --- */

/* One call's waits. */
typedef struct conc__cells_wait {
  double deadline;
  unsigned round; /* see conc__shared_wait */
  unsigned naps;  /* for a claim that may be a dead process's; up to 7 */
  bool late;      /* time is out: the last attempt */
  bool slept;     /* it may have been woken in place of another one */
} conc__cells_wait;

/* A task that follows right behind the other side takes each cell's cache line
   away while the other side works on it, and then both wait for the line more
   than they work. So after a spin that has paid, the task stays behind for
   about a microsecond, as long as this lets more than one cell get ready. If
   it does not, this is tried again now and then (conc__spin_learn). */
#define CONC__CELLS_LINGER 40

CONC__PRIVATE void
conc__cells_pause_for_batch(conc__cells_queue *s, int side,
                            const conc__cells_position *spot) {
  uint64_t next = conc__at_next(s, spot->at);
  unsigned lone = CONC__LOAD_RELAXED(&s->lone[side]), i;
  uint64_t ready = CONC__CELL(
      CONC__AT_LAP(next), 0,
      side == CONC__GETTERS ? CONC__CELL_FULL : CONC__CELL_FREE);
  bool paid = false;
  if (lone < 5) {
    for (i = 0; i < CONC__CELLS_LINGER; i++) conc__pause();
    paid = CONC__LOAD_RELAXED(&conc__cell_at(s, next)->word) == ready;
  }
  conc__spin_learn(&lone, paid);
  CONC__STORE_RELAXED(&s->lone[side], lone);
}

/* Waits busily until the cell's word changes. */
CONC__PRIVATE bool conc__cells_spin(conc__cells_queue *s, int side,
                                    const conc__cells_position *spot,
                                    double deadline) {
  conc__actor *self = conc__self();
  conc__spin spin;
  bool paid = false;
  if (!self->ops->blocks) return false;
  conc__spin_begin(&spin, &self->spin_failed, deadline);
  while (!paid && conc__spin_again(&spin, 1))
    paid = CONC__LOAD(&spot->cell->word) != spot->word;
  if (paid) conc__cells_pause_for_batch(s, side, spot);
  conc__spin_end(&spin, paid);
  return paid;
}

/* Sleeps until a wake-up comes, unless the cell has changed. A loop must not
   block, so a coroutine waits for a descriptor: what a waker writes there
   stays until it is drained. The order is what loses no wake-up: the sleeper
   counts itself, then reads the word that counts wake-ups, then marks the
   cell. A process that claims the cell after the mark wakes it, and so changes
   the word; one that claimed it before makes the mark fail. */
CONC__PRIVATE int conc__cells_sleep(conc__cells_queue *s, int side,
                                    conc__cells_wait *w,
                                    const conc__cells_position *spot) {
  struct conc__cells_side *it = &s->cells->sides[side];
  bool polls =
      s->wakers[side][0] >= 0 && (s->polls || !conc__self()->ops->blocks);
  unsigned *count = polls ? &it->pollers : &it->sleepers;
  uint64_t word = spot->word;
  unsigned seen;
  int rc = 0;
  __atomic_add_fetch(count, 1u, __ATOMIC_SEQ_CST);
  seen = CONC__LOAD(&it->word);
  /* An exchange even if the bit is there: so that whoever claims the cell also
     sees that one more sleeps. */
  if (CONC__CAS(&spot->cell->word, &word, word | CONC__CELL_AWAITED)) {
    w->slept = true;
    if (polls) {
      double until = conc_now() + CONC__SHARED_LOOK;
      CONC__POINT();
      rc = conc__fd_wait(s->wakers[side][0], CONC_READ,
                         until < w->deadline ? until : w->deadline);
      if (rc > 0) conc__waker_drain(s->wakers[side]);
      if (rc > 0 || (rc == -ETIMEDOUT && until < w->deadline)) rc = 0;
    } else {
      rc = conc__shared_wait(&it->word, seen, w->deadline, &w->round);
    }
  }
  __atomic_sub_fetch(count, 1u, __ATOMIC_SEQ_CST);
  return rc;
}

/* After an attempt in vain: waits until another one may be worth it. A
   deadline that has passed allows one attempt more (`late`): what came just in
   time is not left lying there. 0, -ETIMEDOUT, -ECANCELED. */
CONC__PRIVATE int conc__cells_await(conc__cells_queue *s, int side,
                                    conc__cells_wait *w,
                                    const conc__cells_position *spot) {
  struct conc__cells_side *it = &s->cells->sides[side];
  int rc = 0;
  if (w->deadline <= 0 || w->late)
    return spot->suspect && conc__cells_recover_dead(s) ? 0 : -ETIMEDOUT;
  if (conc__cells_spin(s, side, spot, w->deadline)) return 0;
  if (spot->busy) {
    /* It is a matter of microseconds, unless its owner has no CPU, or died: so
       this naps, longer each time, and only then asks. */
    double until = conc_now() + 20e-6 * (double)(1u << w->naps);
    if (w->naps < 7)
      w->naps++;
    else conc__cells_recover_dead(s);
    rc = conc__shared_wait(&it->word, CONC__LOAD(&it->word),
                           until < w->deadline ? until : w->deadline,
                           &w->round);
    if (rc == -ETIMEDOUT && until < w->deadline) rc = 0;
  } else {
    /* What is claimed here does not hold this side up; but the wake-up may
       have been a dead process's to give. */
    rc = conc__cells_sleep(s, side, w, spot);
    if (spot->suspect) conc__cells_recover_dead(s);
  }
  if (rc != -ETIMEDOUT) return rc;
  w->late = true;
  return 0;
}

/* A task that has slept leaves. If others sleep, the next cell is marked for
   them, so that its change wakes one; or they are woken now, if there is
   something for them already. */
CONC__PRIVATE void conc__cells_pass_on(conc__cells_queue *s, int side) {
  conc__cells_position spot;
  if (CONC__LOAD(&s->cells->sides[side].sleepers) == 0 &&
      CONC__LOAD(&s->cells->sides[side].pollers) == 0)
    return;
  while (!CONC__LOAD(&s->cells->closed) &&
         !conc__cells_find(s, side, &spot) && !spot.busy)
    if (CONC__CAS(&spot.cell->word, &spot.word,
                  spot.word | CONC__CELL_AWAITED))
      return;
  conc__cells_wake(s, side, 1);
}

/* --- put and get --- */

/* Where the content of a pickled message is, so that a getter that wants bytes
   knows it without a look at the pickle. */
CONC__PRIVATE uint32_t conc__cells_form(const conc__message *m) {
  size_t before, size;
  int rc = conc__pickle_content((const unsigned char *)m->data,
                                m->size < 16 ? m->size : 16, m->size, &before,
                                &size);
  if (rc != 0) return CONC__FORM_PICKLED | CONC__FORM_OTHER;
  return CONC__FORM_PICKLED | (uint32_t)before << 8 |
         (uint32_t)(m->size - before - size) << 16;
}

/* Puts a message if there is room. A process that is killed before the last
   store has put nothing; after it, the message is there. 0, -EAGAIN, -EPIPE;
   -ENOSPC: too many processes share the memory. */
CONC__INLINE int conc__cells_try_put(conc__cells_queue *s,
                                     const conc__message *m,
                                     conc__cells_position *spot) {
  unsigned self = conc__registry_self(s->registry);
  conc__cell *cell;
  uint32_t lap, form = 0;
  if (CONC__UNLIKELY(self == 0)) return -ENOSPC;
  do {
    if (CONC__LOAD(&s->cells->closed)) return -EPIPE;
    if (!conc__cells_find_free(s, spot)) return -EAGAIN;
    lap = CONC__CELL_LAP(spot->word);
  } while (!__atomic_compare_exchange_n(
      &spot->cell->word, &spot->word,
      CONC__CELL(lap, self, CONC__CELL_BUSY), 0, __ATOMIC_SEQ_CST,
      __ATOMIC_RELAXED));
  cell = spot->cell;
  CONC__CHECK(conc__cell_at(s, spot->at) == cell);
  CONC__POINT();
  /* The cell is this process's: other putters may go on to the next one. */
  conc__cells_help(&s->cells->tail, spot->at, conc__at_next(s, spot->at));
  /* In one order with the claim: a getter that has seen the queue closed, and
     then this cell free, may rely on it that nothing is put any more. */
  if (CONC__UNLIKELY(__atomic_load_n(&s->cells->closed, __ATOMIC_SEQ_CST))) {
    conc__cell_skip(s, cell, lap);
    return -EPIPE;
  }
  if (CONC__UNLIKELY(m->kind != CONC__RAW)) form = conc__cells_form(m);
  CONC__STORE_RELAXED(&cell->size, (uint32_t)m->size);
  CONC__STORE_RELAXED(&cell->form, form);
  if (m->size > 0)
    memcpy(conc__cell_data(s, spot->at, m->size), m->data, m->size);
  /* Releases all of the above, and puts the message. */
  CONC__STORE(&cell->word, CONC__CELL(lap, 0, CONC__CELL_FULL));
  if (CONC__UNLIKELY(spot->word & CONC__CELL_AWAITED))
    conc__cells_wake(s, CONC__GETTERS, 1);
  return 0;
}

/* What a getter may know of a cell without having claimed it: the size of the
   message, or of its content unless the sink takes a body; or -EBADMSG. It
   holds if the cell's word has not changed meanwhile. That is how a message
   that the getter cannot take stays for others. */
CONC__INLINE ssize_t conc__cell_bytes(const conc__cell *cell, bool body,
                                     uint32_t *form) {
  ssize_t size = (ssize_t)CONC__LOAD(&cell->size);
  *form = CONC__LOAD(&cell->form);
  if (CONC__LIKELY(*form == 0) || body) return size;
  if (*form & CONC__FORM_OTHER) return -EBADMSG;
  return size - (ssize_t)(CONC__FORM_BEFORE(*form) + CONC__FORM_AFTER(*form));
}

/* Gets the oldest message, if there is one that the sink can take. With
   `exact` it must have as many bytes as the sink. Whatever can fail does so
   before the claim: with the claim the message is this process's, and the last
   store makes the cell free. A process that is killed between the two has not
   got it. The message's size; -EAGAIN, -EPIPE, -ENOSPC, -EMSGSIZE, -EBADMSG,
   -ENOMEM. */
CONC__INLINE ssize_t conc__cells_try_get(conc__cells_queue *s,
                                         conc__sink *sink, bool exact,
                                         conc__cells_position *spot) {
  unsigned self = conc__registry_self(s->registry);
  conc__cell *cell;
  const char *data;
  uint32_t lap, form;
  ssize_t n;
  if (CONC__UNLIKELY(self == 0)) return -ENOSPC;
  for (;;) {
    if (!conc__cells_find_full(s, spot)) {
      /* Closed, and after that nothing found: then nothing will come, for a
         put looks whether the queue is closed after its claim. */
      if (!__atomic_load_n(&s->cells->closed, __ATOMIC_SEQ_CST))
        return -EAGAIN;
      if (!conc__cells_find_full(s, spot)) {
        if (!spot->busy && !spot->suspect) return -EPIPE;
        spot->busy = true; /* the queue is drained when that is got */
        return -EAGAIN;
      }
    }
    cell = spot->cell;
    n = conc__cell_bytes(cell, sink->body != NULL, &form);
    if (sink->body != NULL) {
      int rc = conc__buffer_reserve(sink->body, (size_t)n + CONC__BODY_SPARE);
      if (rc != 0) n = rc;
    } else if (n >= 0 && ((size_t)n > sink->size ||
                          (exact && (size_t)n < sink->size))) {
      n = -EMSGSIZE;
    }
    if (CONC__UNLIKELY(n < 0)) { /* true only of the cell as it was seen */
      if (CONC__LOAD(&cell->word) == spot->word) return n;
      continue;
    }
    lap = CONC__CELL_LAP(spot->word);
    __builtin_prefetch((char *)cell + 64);
    if (CONC__CAS(&cell->word, &spot->word,
                  CONC__CELL(lap, self, CONC__CELL_READING)))
      break;
  }
  data = conc__cell_data(s, spot->at, CONC__LOAD_RELAXED(&cell->size));
  if (sink->body != NULL) {
    if (form == 0) conc__pickle_put_bytes_head(sink->body, (size_t)n);
    if (n > 0) memcpy(sink->body->data + sink->body->size, data, (size_t)n);
    sink->body->size += (size_t)n;
  } else if (n > 0) {
    memcpy(sink->data, data + CONC__FORM_BEFORE(form), (size_t)n);
  }
  /* All has been read: the next lap may write here. */
  CONC__STORE(&cell->word, CONC__CELL(lap + 1, 0, CONC__CELL_FREE));
  conc__cells_help(&s->cells->head, spot->at, conc__at_next(s, spot->at));
  if (CONC__UNLIKELY(spot->word & CONC__CELL_AWAITED))
    conc__cells_wake(s, CONC__PUTTERS, 1);
  return n;
}

/* What is left to do after a first attempt that failed with -EAGAIN. With `m`
   it puts, else it gets. */
CONC__PRIVATE ssize_t conc__cells_slow(conc__cells_queue *s, int side,
                                       const conc__message *m,
                                       conc__sink *sink, bool exact,
                                       conc__cells_position *spot,
                                       double deadline) {
  conc__cells_wait w;
  ssize_t rc;
  memset(&w, 0, sizeof w);
  w.deadline = deadline;
  w.round = 1; /* it has been spun */
  do {
    rc = conc__cells_await(s, side, &w, spot);
    if (rc != 0) break;
    rc = m != NULL ? conc__cells_try_put(s, m, spot)
                   : conc__cells_try_get(s, sink, exact, spot);
  } while (rc == -EAGAIN);
  if (w.slept) conc__cells_pass_on(s, side);
  return rc;
}

CONC__PRIVATE int conc__cells_put(conc_queue *q, const conc__message *m,
                                  double deadline) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  conc__cells_position spot;
  int rc = conc__cells_try_put(s, m, &spot);
  if (CONC__LIKELY(rc != -EAGAIN)) return rc;
  return (int)conc__cells_slow(s, CONC__PUTTERS, m, NULL, false, &spot,
                               deadline);
}

/* The class's get_n: how many messages, or negative errno. What came back to
   this process is taken first. */
CONC__PRIVATE ssize_t conc__cells_get_n(conc_queue *q, conc__sink *sink,
                                        size_t n, double deadline) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  conc__cells_position spot;
  size_t done = 0;
  ssize_t rc = 0;
  if (CONC__UNLIKELY(CONC__LOAD(&s->stashed))) {
    rc = conc__fifo_get_many(s->stash, sink, n, 0);
    if (rc != -ETIMEDOUT) return rc;
  }
  for (; done < n; done++) {
    rc = conc__cells_try_get(s, sink, true, &spot);
    if (rc == -EAGAIN)
      rc = conc__cells_slow(s, CONC__GETTERS, NULL, sink, true, &spot,
                            done == 0 ? deadline : 0);
    if (rc < 0) break;
    sink->data = (char *)sink->data + sink->size;
  }
  return done > 0 ? (ssize_t)done : rc;
}

/* `stashed` is cleared before the look and set again if there was something: a
   message that comes back meanwhile sets it, too, and so is not overlooked. */
CONC__PRIVATE ssize_t conc__cells_get(conc_queue *q, conc__sink *sink,
                                      double deadline) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  conc__cells_position spot;
  ssize_t n;
  if (CONC__UNLIKELY(CONC__LOAD(&s->stashed))) {
    CONC__STORE(&s->stashed, 0u);
    n = s->stash->ops->get(s->stash, sink, 0);
    if (n != -ETIMEDOUT) {
      CONC__STORE(&s->stashed, 1u);
      return n;
    }
  }
  n = conc__cells_try_get(s, sink, false, &spot);
  if (CONC__LIKELY(n != -EAGAIN)) return n;
  return conc__cells_slow(s, CONC__GETTERS, NULL, sink, false, &spot,
                          deadline);
}

/* The message was got, so it is this process's: any task of this process may
   get it next, but no other process. */
CONC__PRIVATE int conc__cells_unget(conc_queue *q, const conc__message *m,
                                    conc__buffer *b) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  int rc = conc__fifo_unget(s->stash, m, b);
  CONC__STORE(&s->stashed, 1u);
  return rc;
}

/* What is true of a moment: that in which the cell's word was still the same.
 */
CONC__PRIVATE ssize_t conc__cells_peek(conc_queue *q) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  conc__cells_position spot;
  bool closed = CONC__LOAD(&s->cells->closed) != 0;
  uint32_t form;
  ssize_t n;
  if (CONC__LOAD(&s->stashed)) {
    n = conc__fifo_peek(s->stash);
    if (n != -ETIMEDOUT) return n;
  }
  do {
    while (!conc__cells_find_full(s, &spot))
      if (!spot.suspect || !conc__cells_recover_dead(s))
        return closed && !spot.suspect ? -EPIPE : -ETIMEDOUT;
    n = conc__cell_bytes(spot.cell, false, &form);
  } while (CONC__LOAD(&spot.cell->word) != spot.word);
  return n;
}

/* The distance of two positions, no more than some laps apart. */
CONC__PRIVATE ssize_t conc__cells_between(const conc__cells_queue *s,
                                          uint64_t from, uint64_t to) {
  int laps = (int)((CONC__AT_LAP(to) - CONC__AT_LAP(from)) << 1) / 2;
  return (ssize_t)laps * (ssize_t)s->count + (ssize_t)CONC__AT_INDEX(to) -
         (ssize_t)CONC__AT_INDEX(from);
}

/* From the first message that is not got to the first free cell: so messages
   that are being put or got at this moment count. The searches move the hints,
   and a dead process's claim is taken away, before they are read. */
CONC__PRIVATE ssize_t conc__cells_size(conc_queue *q) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  conc__cells_position spot;
  ssize_t n;
  if (!conc__cells_find_full(s, &spot) && spot.suspect)
    conc__cells_recover_dead(s);
  conc__cells_find_full(s, &spot);
  conc__cells_find_free(s, &spot);
  n = conc__cells_between(s, CONC__LOAD(&s->cells->head), spot.at);
  return (n > 0 ? n : 0) + s->stash->ops->size(s->stash);
}

/* --- what is not done yet --- */

/* How many puts were skipped, modulo 2^32. The sum over all cells is kept with
   the value of `skipped` that it belongs to, in one word, so that any thread
   may read or write it at any time. */
CONC__PRIVATE uint32_t conc__cells_skips(conc__cells_queue *s) {
  uint32_t now = CONC__LOAD(&s->cells->skipped);
  uint64_t known = CONC__LOAD(&s->skips);
  if ((uint32_t)(known >> 32) != now) {
    uint32_t sum = 0;
    uint64_t at;
    for (at = 0; at < s->count; at++)
      sum += (uint32_t)CONC__LOAD(&conc__cell_at(s, at)->skips);
    known = (uint64_t)now << 32 | sum;
    CONC__STORE(&s->skips, known);
  }
  return (uint32_t)known;
}

/* How many messages were put, those under way included, and are not reported
   done, if `done` of them are. The position of the next put is how many were
   put ever, modulo all positions that there are; so is the result, and one of
   more than half of these means that it is below 0. */
CONC__PRIVATE uint64_t conc__cells_unfinished(conc__cells_queue *s,
                                              uint64_t done) {
  uint64_t all = (uint64_t)s->count << 31;
  conc__cells_position spot;
  uint64_t left;
  conc__cells_find_free(s, &spot);
  left = (uint64_t)CONC__AT_LAP(spot.at) * s->count + CONC__AT_INDEX(spot.at);
  left = (left + all - (done + conc__cells_skips(s)) % all) % all;
  return left < all / 2 ? left : 0;
}

/* -EINVAL rather than a count above the puts. */
CONC__PRIVATE int conc__cells_task_done(conc_queue *q) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  uint64_t done = CONC__LOAD(&s->cells->done), left;
  do {
    left = conc__cells_unfinished(s, done);
    if (left == 0) return -EINVAL;
  } while (!__atomic_compare_exchange_n(&s->cells->done, &done, done + 1, 0,
                                        __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE));
  /* In one order with the joiner, which counts itself and then looks at
     `done`: either it sees that all is done, or it is seen here. */
  if (left == 1) {
    CONC__POINT();
    __atomic_add_fetch(&s->cells->ends, 1u, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&s->cells->sides[CONC__JOINERS].sleepers,
                        __ATOMIC_SEQ_CST))
      conc__cells_wake(s, CONC__JOINERS, INT_MAX);
  }
  return 0;
}

/* Waits until all is done, or was at some moment since the call (`ends`): puts
   that come meanwhile need not be waited for. A dead process's claim counts as
   a put under way, so it is looked for before each sleep. */
CONC__PRIVATE int conc__cells_join(conc_queue *q, double deadline) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  struct conc__cells_side *it = &s->cells->sides[CONC__JOINERS];
  unsigned ends = CONC__LOAD(&s->cells->ends), round = 0;
  int rc = 0;
  __atomic_add_fetch(&it->sleepers, 1u, __ATOMIC_SEQ_CST);
  for (;;) {
    unsigned seen = CONC__LOAD(&it->word);
    if (conc__cells_unfinished(s, __atomic_load_n(&s->cells->done,
                                                  __ATOMIC_SEQ_CST)) == 0 ||
        CONC__LOAD(&s->cells->ends) != ends) {
      rc = 0;
      break;
    }
    if (rc != 0) break;
    if (conc__cells_recover_dead(s)) continue;
    rc = deadline <= 0 ? -ETIMEDOUT
                       : conc__shared_wait(&it->word, seen, deadline, &round);
  }
  __atomic_sub_fetch(&it->sleepers, 1u, __ATOMIC_SEQ_CST);
  return rc;
}

/* Wakes all, of all processes: they see it, or their cells as they are. */
CONC__PRIVATE int conc__cells_close(conc_queue *q) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  CONC__POINT();
  __atomic_store_n(&s->cells->closed, 1u, __ATOMIC_SEQ_CST);
  conc__cells_wake(s, CONC__GETTERS, INT_MAX);
  conc__cells_wake(s, CONC__PUTTERS, INT_MAX);
  return 0;
}

/* This process's part of it. Also of a handle that is half made. */
CONC__PRIVATE void conc__cells_free(conc_queue *q) {
  conc__cells_queue *s = (conc__cells_queue *)q;
  int i;
  for (i = 0; i < 4; i++) /* they may be known to the caller's loop */
    if (s->wakers[i / 2][i % 2] >= 0 &&
        (i % 2 == 0 || s->wakers[i / 2][1] != s->wakers[i / 2][0]))
      conc_close(s->wakers[i / 2][i % 2]);
  if (s->stash != NULL) conc__fifo_free(s->stash);
  conc_shared_free(s->cells);
  CONC_FREE(s);
}

/* put_n is left out: each put is a claim of its own. */
static const conc__queue_class conc__cells_class = {
    conc__cells_put,  conc__cells_get,       conc__cells_unget,
    conc__cells_size, conc__cells_task_done, conc__cells_join,
    conc__cells_free, conc__cells_close,     conc__cells_peek,
    NULL,             conc__cells_get_n};

/* --- opening --- */

/* For memory that is new, before any other process has it. */
CONC__PRIVATE int conc__cells_init(void *memory, void *queue) {
  const conc__cells_queue *s = (const conc__cells_queue *)queue;
  conc__cells *cells = (conc__cells *)memory;
  cells->magic = CONC__CELLS_MAGIC;
  cells->count = (uint32_t)s->count;
  cells->max_bytes = s->queue.max_bytes;
  return 0; /* what is zeroed is free, in lap 0 */
}

CONC__PRIVATE size_t conc__round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

/* How the memory is laid out; its size, or 0 if there is none of that. */
CONC__PRIVATE size_t conc__cells_plan(conc__cells_queue *s) {
  size_t max = s->queue.max_bytes, first = sizeof(conc__cells);
  size_t small = max <= CONC__CELL_SMALL ? max : CONC__CELL_APART;
  s->count = s->queue.capacity;
  s->stride = conc__round_up(sizeof(conc__cell) + small, 64);
  s->small = s->stride - sizeof(conc__cell);
  /* An odd number of cache lines, lest all blocks fall on the same ones. */
  s->block_size = max <= s->small ? 0 : conc__round_up(max, 128) + 64;
  s->blocks_at = first + s->count * s->stride;
  if (s->count > (SIZE_MAX - first) / (s->stride + s->block_size)) return 0;
  return s->blocks_at + s->count * s->block_size;
}

/* Makes or finds the memory, and this process's wakers. The wakers of a queue
   without a name are inherited by forked children, which is how all processes
   of the family have the same ones; processes that come by a name have none.
   0 or negative errno; then conc__cells_free undoes what has been done. */
CONC__PRIVATE int conc__cells_open(conc__cells_queue *s,
                                   const conc_queue_opts *o) {
  size_t size = conc__cells_plan(s);
  void *memory;
  int rc = 0;
  if (size == 0) return -ENOMEM;
  s->stash = conc__fifo_new(NULL);
  if (s->stash == NULL) return -ENOMEM;
  memory = o->name != NULL
               ? conc_shared_open(o->name, size, conc__cells_init, s)
               : conc_shared_alloc(size);
  if (memory == NULL) return -errno;
  s->cells = (conc__cells *)memory;
  /* By a name conc_shared_open has called it, for the first process only. */
  if (o->name == NULL) conc__cells_init(memory, s);
  if (s->cells->magic != CONC__CELLS_MAGIC || s->cells->count != s->count ||
      s->cells->max_bytes != s->queue.max_bytes)
    return -EINVAL; /* by that name, and something else */
  s->registry = conc__registry_of(memory);
  if (s->registry == NULL) return -errno;
  if (o->name == NULL) rc = conc__waker_open(s->wakers[0]);
  if (o->name == NULL && rc == 0) rc = conc__waker_open(s->wakers[1]);
  s->polls = o->backend == CONC_QUEUE_PIPE ||
             (o->backend == 0 && !CONC_HAVE_FUTEX);
  return rc;
}

/* A queue for conc_queue_new; NULL and errno. Positions have 31 bits of lap
   and messages 31 bits of size, hence the limits. */
CONC__PRIVATE conc_queue *conc__cells_new(const conc_queue_opts *options) {
  conc__cells_queue *s;
  int rc = -EINVAL;
  if (options->capacity <= INT32_MAX && options->max_bytes <= INT32_MAX &&
      options->backend >= 0 && options->backend <= CONC_QUEUE_PIPE) {
    s = (conc__cells_queue *)conc__queue_make(&conc__cells_class, sizeof *s);
    if (s == NULL) return NULL;
    s->queue.name = options->name;
    s->queue.capacity = options->capacity > 0 ? options->capacity : 1024;
    s->queue.max_bytes = options->max_bytes > 0 ? options->max_bytes : 65536;
    memset(s->wakers, -1, sizeof s->wakers);
    rc = conc__cells_open(s, options);
    if (rc == 0) return &s->queue;
    conc__cells_free(&s->queue);
  }
  errno = -rc;
  return NULL;
}

/* ---------------------------------------------------------------------------
   >>queue: conc_queue: one interface to every distance

   Every call goes through the queue's class, see >>fifo. What is common to all
   distances is here: the limit of bytes, the many-calls for classes that have
   none of their own, and values, which travel as the body of a pickle.
   ------------------------------------------------------------------------ */

/* The one place that names the classes. */
CONC_API conc_queue *conc_queue_new(const conc_queue_opts *options) {
  conc__init();
  return options != NULL && options->shared ? conc__cells_new(options)
                                            : conc__fifo_new(options);
}

CONC_API void conc_queue_free(conc_queue *queue) {
  if (queue != NULL && queue->ops->free != NULL) queue->ops->free(queue);
}

CONC_API int conc_queue_close(conc_queue *queue) {
  return queue->ops->close != NULL ? queue->ops->close(queue) : -ENOTSUP;
}

/* The limit is looked at before the class is asked: what no getter may receive
   is refused, whatever the distance. */
CONC__PRIVATE int conc__queue_put(conc_queue *q, const void *data, size_t size,
                                  int kind, double timeout) {
  conc__message m;
  if (q->max_bytes > 0 && size > q->max_bytes) return -EMSGSIZE;
  m.data = data;
  m.size = size;
  m.kind = kind;
  return q->ops->put(q, &m, conc__deadline(timeout));
}

CONC_API int conc_put(conc_queue *queue, const void *data, size_t size,
                      double timeout) {
  return conc__queue_put(queue, data, size, CONC__RAW, timeout);
}

CONC_API ssize_t conc_get(conc_queue *queue, void *buf, size_t size,
                          double timeout) {
  conc__sink sink;
  sink.data = buf;
  sink.size = size;
  sink.body = NULL;
  return queue->ops->get(queue, &sink, conc__deadline(timeout));
}

CONC_API ssize_t conc_put_many(conc_queue *queue, const void *items,
                               size_t size, size_t n, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__message m;
  size_t done = 0;
  int rc = 0;
  if (queue->max_bytes > 0 && size > queue->max_bytes) return -EMSGSIZE;
  m.data = items;
  m.size = size;
  m.kind = CONC__RAW;
  if (n > 0 && queue->ops->put_n != NULL)
    return queue->ops->put_n(queue, &m, n, deadline);
  for (; done < n; done++) { /* waits for the first only */
    rc = queue->ops->put(queue, &m, done == 0 ? deadline : 0);
    if (rc != 0) break;
    m.data = (const char *)m.data + size;
  }
  return done > 0 ? (ssize_t)done : rc;
}

/* A class without get_n gets whole bodies, one after the other: a message of
   another size is known only when it has been got, and goes back to the front
   then. */
CONC_API ssize_t conc_get_many(conc_queue *queue, void *items, size_t size,
                               size_t n, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__buffer body = {NULL, 0, 0, 0};
  conc__sink sink;
  conc__message m;
  size_t done = 0;
  int rc = 0;
  sink.data = items;
  sink.size = size;
  sink.body = NULL;
  if (n > 0 && queue->ops->get_n != NULL)
    return queue->ops->get_n(queue, &sink, n, deadline);
  sink.body = &body;
  for (; done < n; done++) {
    size_t offset, found;
    ssize_t got = queue->ops->get(queue, &sink, done == 0 ? deadline : 0);
    rc = got < 0 ? (int)got : 0;
    if (rc != 0) break;
    rc = conc__pickle_content(body.data, body.size, body.size, &offset,
                              &found);
    if (rc == 0 && found != size) rc = -EMSGSIZE;
    if (rc != 0) { /* nothing is lost: it is the next get's */
      m.data = body.data;
      m.size = body.size;
      m.kind = CONC__PICKLED;
      queue->ops->unget(queue, &m, &body);
      break;
    }
    if (size > 0)
      memcpy((char *)items + done * size, body.data + offset, size);
    body.size = 0;
  }
  conc__buffer_free(&body);
  return done > 0 ? (ssize_t)done : rc;
}

CONC_API ssize_t conc_peek_size(conc_queue *queue) {
  return queue->ops->peek != NULL ? queue->ops->peek(queue) : -ENOTSUP;
}

CONC_API ssize_t conc_qsize(conc_queue *queue) {
  return queue->ops->size(queue);
}

CONC_API int conc_task_done(conc_queue *queue) {
  return queue->ops->task_done(queue);
}

CONC_API int conc_queue_join(conc_queue *queue, double timeout) {
  return queue->ops->join(queue, conc__deadline(timeout));
}

/* --- typed values --- */

/* Bytes are a raw message, so that conc_get takes them without a pickle. */
CONC_API int conc_put_value(conc_queue *queue, const conc_value *value,
                            double timeout) {
  conc__buffer b = {NULL, 0, 0, 0};
  int rc;
  if (conc_value_type(value) == CONC_BYTES) {
    size_t size = 0;
    const void *data = conc_value_bytes(value, &size);
    return conc_put(queue, data, size, timeout);
  }
  rc = conc__pickle_encode(&b, value, 4);
  if (rc == 0)
    rc = conc__queue_put(queue, b.data, b.size, CONC__PICKLED, timeout);
  conc__buffer_free(&b);
  return rc;
}

/* Gets the body of a pickle between the two opcodes that it lacks, and reads
   it. The message is lost only if it is malformed. */
CONC_API int conc_get_value(conc_queue *queue, conc_value **out,
                            double timeout) {
  static const unsigned char proto[] = {0x80, 4};
  conc__buffer b = {NULL, 0, 0, 0};
  conc__sink sink;
  ssize_t n;
  int rc = conc__buffer_append(&b, proto, sizeof proto);
  *out = NULL;
  sink.data = NULL;
  sink.size = 0;
  sink.body = &b;
  if (rc == 0) rc = conc__buffer_reserve(&b, 64);
  n = rc != 0 ? rc : queue->ops->get(queue, &sink, conc__deadline(timeout));
  rc = n < 0 ? (int)n : conc__buffer_append(&b, ".", 1);
  if (rc == 0) rc = conc_pickle_loads(out, b.data, b.size);
  if (rc == -ENOMEM && n >= 0) { /* the message must not be lost for that */
    conc__message m;
    m.data = b.data + sizeof proto;
    m.size = b.size - sizeof proto - 1;
    m.kind = CONC__PICKLED;
    queue->ops->unget(queue, &m, &b);
  }
  conc__buffer_free(&b);
  return rc;
}

CONC_API int conc_put_build(conc_queue *queue, double timeout,
                            const char *format, ...) {
  conc_value *v;
  va_list ap;
  int rc;
  va_start(ap, format);
  rc = conc__build_va(&v, format, ap);
  va_end(ap);
  if (rc != 0) return rc;
  rc = conc_put_value(queue, v, timeout);
  conc_value_free(v);
  return rc;
}

/* The value is freed before the return: so a format may not point into it. */
CONC_API int conc_get_parse(conc_queue *queue, double timeout,
                            const char *format, ...) {
  conc_value *v;
  va_list ap;
  int rc;
  if (strpbrk(format, "syO") != NULL) return -EINVAL;
  rc = conc_get_value(queue, &v, timeout);
  if (rc != 0) return rc;
  va_start(ap, format);
  rc = conc__parse_va(v, format, ap);
  va_end(ap);
  conc_value_free(v);
  return rc;
}

/* ---------------------------------------------------------------------------
   >>jobs: deques, threads that run jobs, waiting for jobs

   Holds: the deques in which jobs lie, the pool of threads that run them, how
   a job runs inside of a thread, and how a task waits for a job: a worker that
   waits runs other jobs meanwhile.
   Uses: tasks, threads, >>wait; of a fork's table one row.
   Used by: >>procpool (its state, running a job, waiting for one) and >>pool.
   A pool's guard is the first in the order of locks, see >>process.

   A job that runs in a thread is the task of that thread's actor until the job
   ends. Jobs may be nested: a job that waits has others run on its stack. The
   job's own field .actor says what conc_cancel is to do:

     NULL               the job has not begun, or it runs and has not waited
                        yet. conc_cancel puts CONC__NEVER_BEGIN there.
     CONC__NEVER_BEGIN  the job was cancelled: it does not begin, or its first
                        wait finds this and fails.
     the actor          set by the job's first wait: conc_cancel pokes the
                        actor. Taken back before the job runs another one.

   So a job that never waits needs no compare-and-swap to announce its actor.
   ------------------------------------------------------------------------ */

typedef struct conc__pool_data conc__pool_data;

/* --- a fence for two sides, of which the rare one pays --- */

/* Two threads that each write a word and then read the other's word need a
   full fence in between, or both may read what was there before. Where one
   side comes often and the other one seldom, the seldom one takes the heavy
   fence: the kernel makes all threads of the process pass a fence (membarrier,
   Linux 4.14). Then the often one needs the light fence only, which merely
   keeps the compiler from reordering. If the kernel does not help, both are
   full fences. Set before there is any pool. */
static bool conc__fence_is_heavy; /* the kernel does not help */

/* A fence of the calling thread. ThreadSanitizer knows no fences: there a
   read-modify-write of one word stands in, which all of them order. */
CONC__PRIVATE void conc__fence_full(void) {
#if CONC_HAVE_TSAN /* which knows no fences */
  static unsigned none;
  __atomic_fetch_add(&none, 0u, __ATOMIC_SEQ_CST);
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Asks the kernel, once, whether it helps. That also registers the process,
   without which conc__fence_heavy's call would fail. */
CONC__PRIVATE void conc__fence_init(void) {
#if CONC_HAVE_MEMBARRIER
  conc__fence_is_heavy =
      syscall(SYS_membarrier, CONC__MEMBARRIER_REGISTER, 0, 0) != 0;
#else
  conc__fence_is_heavy = true;
#endif
}

/* The seldom side: all threads of the process pass a fence before this
   returns. */
CONC__PRIVATE void conc__fence_heavy(void) {
  conc__fence_full();
#if CONC_HAVE_MEMBARRIER
  if (!conc__fence_is_heavy)
    syscall(SYS_membarrier, CONC__MEMBARRIER_EXPEDITED, 0, 0);
#endif
}

/* The often side: keeps the order of the caller's own steps only. */
CONC__INLINE void conc__fence_light(void) {
  CONC__POINT();
  if (CONC__UNLIKELY(conc__fence_is_heavy))
    conc__fence_full();
  else
    __asm__ __volatile__("" ::: "memory");
}

/* --- deques: what they have --- */

/* The jobs of a worker thread, after Chase and Lev: the owner pushes and pops
   at the bottom, thieves steal at the top. Items lie from top (included) to
   bottom (excluded); positions only grow, and an item's place is its position
   modulo the array's size.

   The last item is not had twice. A pop lowers bottom, then reads top; a theft
   reads top, then bottom. These four are in one order (SEQ_CST, as in Le, Pop,
   Cohen, Zappa Nardelli 2013): so one of the two sees the other, and then they
   decide by compare-and-swap on top.

   The items. An item is written before bottom is raised (release), and read
   after bottom has been read (acquire). Its place may be overwritten only when
   top has passed it: a thief that has read it late then fails in its swap.

   The fence. The order between a pop's two steps costs a full fence, which is
   left out while there is no thief. Thieves count themselves in `guests`
   before they begin. The owner looks there once it has lowered bottom, and
   passes the fence if the word is not 0. The first thief has all threads pass
   a fence (conc__fence_heavy): a pop that has read `guests` before that has
   lowered bottom before that, too, and the thief sees it; a pop that reads
   `guests` later finds the thief there. The first thief leaves CONC__FENCED,
   by which later thieves know that every pop passes the fence now. */
typedef struct conc__deque_array {
  struct conc__deque_array *older; /* half as large: a thief may still read it,
                                      so it is freed with the deque. NULL */
  size_t mask;                     /* the size, a power of two, less 1 */
  /* the items follow */
} conc__deque_array;

/* In `guests`. May be set by a thief that has passed the heavy fence since it
   counted itself. Must be set from the start if the kernel does not help, and
   is never cleared then. Else it is cleared by the owner, while no thief is
   counted, when there was no theft for a while: the next thief then passes the
   heavy fence again. */
#define CONC__FENCED 1u

typedef struct conc__deque {
  size_t top;      /* raised by whoever takes the item there; SEQ_CST */
  unsigned guests; /* thieves that are at it * 2 | CONC__FENCED */
  CONC__APART(1);
  /* The owner's: thieves read bottom and array, and write nothing here. */
  size_t bottom;
  conc__deque_array *array; /* NULL until the first job */
  size_t full; /* bottom must not pass it: top, as it was when last looked
                  at, and the array's size. See conc__deque_grow */
  size_t
      calm_top;  /* where top is if no thief has moved it since `calm` was 0 */
  unsigned calm; /* pops with a fence since a thief has moved top */
  CONC__APART(2);
} conc__deque;

/* --- deques: the owner's end --- */

/* Where the item of a position lies. */
CONC__INLINE conc_task **conc__deque_at(conc__deque_array *r, size_t i) {
  return (conc_task **)(void *)(r + 1) + (i & r->mask);
}

/* NULL without memory. */
CONC__PRIVATE conc__deque_array *
conc__deque_array_new(size_t size, conc__deque_array *older) {
  conc__deque_array *r =
      (conc__deque_array *)CONC_MALLOC(sizeof *r + size * sizeof(conc_task *));
  if (r == NULL) return NULL;
  r->older = older;
  r->mask = size - 1;
  return r;
}

/* Makes room for one more, when bottom is at `full`. Only the owner's. A thief
   that reads the old array meanwhile finds the same items there: they stay,
   and new ones go to the new array. 0, -ENOMEM. */
CONC__NOINLINE int conc__deque_grow(conc__deque *d) {
  size_t top = CONC__LOAD(&d->top);
  conc__deque_array *old = d->array;
  CONC__CHECK(old == NULL || d->bottom - top <= old->mask + 1);
  if (old == NULL || d->bottom - top > old->mask) {
    conc__deque_array *r =
        conc__deque_array_new(old != NULL ? 2 * (old->mask + 1) : 64, old);
    size_t i;
    if (r == NULL) return -ENOMEM;
    for (i = top; i != d->bottom; i++)
      *conc__deque_at(r, i) = CONC__LOAD_RELAXED(conc__deque_at(old, i));
    /* Release: a thief that finds the array finds the items. */
    CONC__STORE(&d->array, r);
  }
  d->full = top + d->array->mask + 1;
  return 0;
}

/* For the owner: whether conc__deque_grow must come before a push. */
CONC__INLINE bool conc__deque_is_full(const conc__deque *d) {
  return d->bottom == d->full;
}

/* Only the owner's, with room for it. To be followed by a look for workers
   that rest, see conc__pool_wake. */
CONC__INLINE void conc__deque_push(conc__deque *d, conc_task *t) {
  size_t b = d->bottom;
  CONC__CHECK(b - CONC__LOAD_RELAXED(&d->top) <= d->array->mask);
  CONC__STORE_RELAXED(conc__deque_at(d->array, b), t);
  CONC__STORE(&d->bottom, b + 1);
}

/* Pops with a fence and without a theft, until fences end: together they take
   about as long as the heavy fence that the next thief then has to pass. */
enum { CONC__CALM = 1024 };

/* A pop's fence, once a thief has come, and the place where the owner notices
   that they come no more. */
CONC__NOINLINE void conc__deque_fence(conc__deque *d) {
  size_t top = CONC__LOAD_RELAXED(&d->top);
  unsigned no_guest = CONC__FENCED;
  if (top != d->calm_top) {
    d->calm_top = top;
    d->calm = 0;
  } else if (++d->calm % CONC__CALM == 0 && !conc__fence_is_heavy) {
    /* Fails if a thief is counted. This pop passes the fence all the same: a
       thief that comes now reads `guests` after this, and passes the heavy
       one. */
    __atomic_compare_exchange_n(&d->guests, &no_guest, 0u, false,
                                __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  }
  conc__fence_full();
}

/* The item that was pushed last, or NULL; if `only` is not NULL, that item or
   NULL. Only the owner's. */
CONC__INLINE conc_task *conc__deque_pop(conc__deque *d,
                                        const conc_task *only) {
  size_t b = d->bottom;
  size_t top;
  conc_task *t;
  /* Top never passes bottom here: equal is empty, whatever thieves do. */
  if (b == CONC__LOAD_RELAXED(&d->top)) return NULL;
  b--;
  t = CONC__LOAD_RELAXED(conc__deque_at(d->array, b));
  /* A mere look: a thief may have taken the item meanwhile. If it is the right
     one, the steps below find that out. */
  if (only != NULL && t != only) return NULL;
  CONC__POINT();
  /* From here on no thief that reads bottom takes item b. The order of this
     store and of the two loads below is what the essay above is about. */
  CONC__STORE_RELAXED(&d->bottom, b);
  CONC__POINT();
  __asm__ __volatile__("" ::: "memory");
  if (CONC__UNLIKELY(CONC__LOAD_RELAXED(&d->guests) != 0))
    conc__deque_fence(d);
  CONC__POINT();
  top = __atomic_load_n(&d->top, __ATOMIC_SEQ_CST);
  /* Items are left before this one: a thief would take those first, and then
     find bottom lowered. */
  if (CONC__LIKELY((ptrdiff_t)(b - top) > 0)) return t;
  CONC__POINT();
  /* A thief has it already, or it is the last one, and the swap decides. */
  if (b != top ||
      !__atomic_compare_exchange_n(&d->top, &top, top + 1, false,
                                   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
    t = NULL;
  else d->calm_top++; /* this move of top was no theft */
  /* The deque is empty now, and top is at b + 1. */
  CONC__STORE(&d->bottom, b + 1);
  return t;
}

/* --- deques: the thieves' end --- */

/* For any thread. In the one order of SEQ_CST operations, for
   conc__pool_has_work. */
CONC__INLINE bool conc__deque_is_empty(const conc__deque *d) {
  size_t top = __atomic_load_n(&d->top, __ATOMIC_SEQ_CST);
  return (ptrdiff_t)(__atomic_load_n(&d->bottom, __ATOMIC_SEQ_CST) - top) <= 0;
}

/* The item at the top, or NULL if there is none. For a thread that is counted
   in `guests`, or for a deque that has no pops (a batch). */
CONC__PRIVATE conc_task *conc__deque_take(conc__deque *d) {
  for (;;) {
    size_t top, b;
    conc__deque_array *array;
    conc_task *t;
    CONC__POINT();
    /* Top is read before bottom: see the essay. */
    top = __atomic_load_n(&d->top, __ATOMIC_SEQ_CST);
    CONC__POINT();
    b = __atomic_load_n(&d->bottom, __ATOMIC_SEQ_CST);
    if ((ptrdiff_t)(b - top) <= 0) return NULL;
    array = CONC__LOAD(&d->array);
    t = CONC__LOAD_RELAXED(conc__deque_at(array, top));
    /* A job that may soon be taken was written by another core: its memory is
       fetched while this one runs. */
    __builtin_prefetch(CONC__LOAD_RELAXED(conc__deque_at(array, top + 2)));
    CONC__POINT();
    /* If top has not moved, no other thread has taken the item, and its place
       has not been used again: so what was read is the item. */
    if (__atomic_compare_exchange_n(&d->top, &top, top + 1, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
      return t;
  }
}

/* Takes from another worker's own deque, as a guest. */
CONC__PRIVATE conc_task *conc__deque_steal(conc__deque *d) {
  conc_task *t;
  /* The usual case, without a write to the line of the cache. */
  if (conc__deque_is_empty(d)) return NULL;
  CONC__POINT();
  /* Counted first: the owner does not take CONC__FENCED back from here on, and
     a pop that comes after the heavy fence sees this. */
  if (!(__atomic_fetch_add(&d->guests, 2u, __ATOMIC_SEQ_CST) &
        CONC__FENCED)) {
    conc__fence_heavy();
    __atomic_fetch_or(&d->guests, CONC__FENCED, __ATOMIC_SEQ_CST);
  }
  t = conc__deque_take(d);
  CONC__POINT();
  __atomic_fetch_sub(&d->guests, 2u, __ATOMIC_SEQ_CST);
  return t;
}

/* Frees all arrays. No thief may be there. */
CONC__PRIVATE void conc__deque_free(conc__deque *d) {
  while (d->array != NULL) {
    conc__deque_array *older = d->array->older;
    CONC_FREE(d->array);
    d->array = older;
  }
}

/* --- the pool of threads: what it has ---

   Jobs from outside come through the inbox, latest first. Workers that look
   for jobs take the guard: the one that has it turns the inbox round into the
   backlog, and takes some of that to a batch of its own, from which all
   workers may steal in order. Jobs of workers go to their own deques.

   A worker that finds nothing searches for a while, then rests: it sets its
   bit in the idle set, and looks for jobs once more. A thread that hands in a
   job looks at the idle set afterwards, unless some worker searches: it clears
   a bit, by which it claims that worker, counts the worker as searching, and
   nudges it. A searcher that finds a job, and is the last one, wakes another
   worker if there is more. So workers are woken one by one.

   No job is overlooked: the submitter writes the job, then reads `searching`
   and `resting`; the worker writes its bit or its count, then reads the places
   where jobs are. All of these are SEQ_CST, or have the fences of above in
   between (the worker's heavy, the submitter's light): so one of the two sees
   the other. */

/* In the inbox. May be set at any time, by conc_pool_close and by
   conc_pool_terminate; must be set before `over` is. Never cleared. While it
   is set, jobs come from workers only. */
#define CONC__CLOSED ((uintptr_t)1)

enum { CONC__BATCH = 64 }; /* jobs that a worker takes at a time, at most */

typedef struct conc__worker {
  /* The jobs that its jobs hand in. At the beginning of a line of the cache,
     so that what the owner changes lies in one line. */
  conc__deque own __attribute__((aligned(CONC__CACHE_LINE)));
  conc__deque batch; /* of jobs from outside. Filled by the worker under the
                        guard when it is empty; never popped */
  struct {
    conc__deque_array array;
    conc_task *items[CONC__BATCH];
  } batch_array; /* of the batch, which never grows */
  conc__pool_data *pool;
  size_t index;         /* in pool->workers, and its bit in the idle set */
  unsigned spin_failed; /* see conc__spin; the worker's own */
  conc_task task;       /* its thread */
  char name[32];
} conc__worker;

/* Jobs that wait, first come first, under the guard of the pool. */
typedef struct conc__backlog {
  conc_task *first, **end; /* end: the last one's next, or &first */
  size_t count;            /* in a pool of threads: how many, or one more while
                              jobs move. Read without the guard, SEQ_CST */
} conc__backlog;

/* Which workers rest, and how many do what. All of it SEQ_CST. */
typedef struct conc__idle_set {
  unsigned searching; /* workers that look for jobs, or were claimed to */
  unsigned resting;   /* workers that may have a bit, which is set after this
                         is raised; one more in a pool that is lazy */
  unsigned active;    /* workers that are not at rest, those that are being
                         started among them. If it is 0, CONC__CLOSED is set
                         and there is no job, the pool is over */
  unsigned *bits;     /* bit i % 32 of word i / 32 is of worker i. Set by the
                         worker; cleared by the worker, or by a thread that so
                         claims it, counts it as searching, and nudges it */
} conc__idle_set;

/* What a conc_pool has, of either kind. Parts that change often are apart. */
struct conc__pool_data {
  uintptr_t id;      /* as an actor's: it tells the generation of processes */
  conc_pool options; /* as they were at the start */
  size_t n;          /* how many workers, at most */
  size_t memory;     /* bytes to unmap at `block`; 0: it is for CONC_FREE */
  void *block;       /* the memory in which this lies */
  conc__worker *workers;        /* n of them; NULL in a pool of processes */
  struct conc__procpool *procs; /* NULL in a pool of threads */
  CONC__APART(1);
  uintptr_t inbox; /* the latest conc_task from outside | CONC__CLOSED. A pool
                      of processes uses the bit alone */
  CONC__APART(2);
  conc__mutex guard; /* of the backlog, of starting a worker, and of the slots
                        of a pool of processes */
  conc__backlog backlog;
  CONC__APART(3);
  conc__idle_set idle;
  unsigned started; /* workers 0 to started - 1 have threads; raised under the
                       guard, read without */
  bool lazy;        /* workers are started when there is work */
  bool over;        /* the workers end; set by the last one to rest */
  bool terminated;  /* jobs that have not begun never do; set once */
};

/* Appends a chain of jobs, of which `end` is the next of the last one, which
   is NULL. The guard is held. */
CONC__INLINE void conc__backlog_append(conc__backlog *b, conc_task *first,
                                       conc_task **end) {
  CONC__CHECK(*b->end == NULL && *end == NULL);
  *b->end = first;
  b->end = end;
}

/* Takes the first job. There is one; the guard is held. */
CONC__PRIVATE conc_task *conc__backlog_take(conc__backlog *b) {
  conc_task *t = b->first;
  CONC__CHECK(t != NULL);
  b->first = t->next;
  if (b->first == NULL) b->end = &b->first;
  return t;
}

/* Puts a job in front: it has run before. The guard is held. */
CONC__PRIVATE void conc__backlog_put_back(conc__backlog *b, conc_task *t) {
  t->next = b->first;
  if (b->first == NULL) b->end = &t->next;
  b->first = t;
}

static pthread_once_t conc__pool_once = PTHREAD_ONCE_INIT;

/* Whether the pool has stayed behind in the process that this one was forked
   from: then its workers and its guard must not be touched. */
CONC__INLINE bool conc__pool_is_gone(const conc__pool_data *p) {
  return (p->id >> 2) % CONC__GENERATIONS != conc__generation;
}

/* The caller's worker, or NULL if the caller is none that may run jobs here
   and now: a coroutine or a generator inside of a job may not, for its stack
   is too small. */
CONC__INLINE conc__worker *conc__worker_here(void) {
  if (conc__this.current != &conc__this.actor ||
      conc__this.actor.generator != NULL)
    return NULL;
  return conc__this.worker;
}

/* The caller, if it is a worker of this pool. */
CONC__INLINE conc__worker *conc__worker_of(const conc__pool_data *p) {
  conc__worker *w = conc__this.worker;
  return w != NULL && w->pool == p ? w : NULL;
}

/* --- finding a job --- */

/* Whether there may be a job anywhere. SEQ_CST throughout: see the head of the
   pool of threads. */
CONC__PRIVATE bool conc__pool_has_work(conc__pool_data *p) {
  size_t i;
  if ((__atomic_load_n(&p->inbox, __ATOMIC_SEQ_CST) & ~CONC__CLOSED) != 0 ||
      __atomic_load_n(&p->backlog.count, __ATOMIC_SEQ_CST) != 0)
    return true;
  for (i = 0; i < p->n; i++)
    if (!conc__deque_is_empty(&p->workers[i].own) ||
        !conc__deque_is_empty(&p->workers[i].batch))
      return true;
  return false;
}

/* Takes some of the jobs that came from outside: returns the first one, and
   puts a fair share of what follows into the worker's batch, which is empty.
   w is the caller, or NULL: then one job is taken only. NULL if there is
   none. */
CONC__PRIVATE conc_task *conc__pool_take(conc__pool_data *p, conc__worker *w) {
  conc_task *first, *t;
  conc_task *chain = NULL;
  uintptr_t seen;
  size_t n = 0, count = 1;
  if ((CONC__LOAD(&p->inbox) & ~CONC__CLOSED) == 0 &&
      CONC__LOAD(&p->backlog.count) == 0)
    return NULL;
  conc__mutex_lock(&p->guard);
  /* While jobs are between inbox and backlog they are in neither. The count
     shows one more meanwhile, so that no worker finds that there is no work,
     and ends the pool. */
  __atomic_store_n(&p->backlog.count, p->backlog.count + 1, __ATOMIC_SEQ_CST);
  seen = CONC__LOAD(&p->inbox);
  while ((seen & ~CONC__CLOSED) != 0 &&
         !CONC__CAS(&p->inbox, &seen, seen & CONC__CLOSED)) {
  }
  t = (conc_task *)(seen & ~CONC__CLOSED);
  if (t != NULL) {
    conc_task **end = &t->next; /* of the last */
    /* The inbox has the latest first: turned round here. */
    while (t != NULL) {
      conc_task *next = t->next;
      t->next = chain;
      chain = t;
      t = next;
      n++;
    }
    conc__backlog_append(&p->backlog, chain, end);
  }
  n += p->backlog.count - 1;
  CONC__CHECK(w == NULL || conc__deque_is_empty(&w->batch));
  first = p->backlog.first;
  t = first;
  if (t != NULL) {
    /* A share of what there is: half of an equal part for each worker, so that
       the last jobs are spread evenly. */
    size_t most = w != NULL ? n / (2 * p->n) + 1 : 1;
    if (most > CONC__BATCH) most = CONC__BATCH;
    for (t = t->next; count < most && t != NULL; count++) {
      conc_task *next = t->next;
      conc__deque_push(&w->batch, t);
      t = next;
    }
    p->backlog.first = t;
    if (t == NULL) p->backlog.end = &p->backlog.first;
  }
  __atomic_store_n(&p->backlog.count, first != NULL ? n - count : 0,
                   __ATOMIC_SEQ_CST);
  CONC__CHECK((p->backlog.first != NULL) == (p->backlog.count != 0));
  conc__mutex_unlock(&p->guard);
  return first;
}

/* A job for the worker, or NULL: first its own latest, whose data are in the
   cache still; then its batch, what came from outside, and what other workers
   have. */
CONC__PRIVATE conc_task *conc__worker_take(conc__worker *w) {
  conc__pool_data *p = w->pool;
  conc_task *t = conc__deque_pop(&w->own, NULL);
  size_t i;
  if (t == NULL) t = conc__deque_take(&w->batch);
  if (t == NULL) t = conc__pool_take(p, w);
  for (i = 1; t == NULL && i < p->n; i++) {
    conc__worker *v = &p->workers[(w->index + i) % p->n];
    t = conc__deque_steal(&v->own);
    if (t == NULL) t = conc__deque_take(&v->batch);
  }
  return t;
}

/* --- waking a worker --- */

/* Claims a worker that rests, and has it look for jobs. False if there is
   none. */
CONC__PRIVATE bool conc__pool_nudge(conc__pool_data *p) {
  size_t i;
  for (i = 0; i * 32 < p->n; i++) {
    unsigned seen = __atomic_load_n(&p->idle.bits[i], __ATOMIC_SEQ_CST);
    while (seen != 0) {
      unsigned bit = conc__lowest_bit(seen);
      CONC__POINT();
      if (__atomic_compare_exchange_n(&p->idle.bits[i], &seen,
                                      seen & ~(1u << bit), false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        /* The worker counts as searching from its claim on, not from its
           waking: so the next submitter does not wake a second one for the
           same job. The bit is cleared: the worker waits for the nudge, so its
           actor is there. */
        conc_task *t = &p->workers[i * 32 + bit].task;
        __atomic_add_fetch(&p->idle.searching, 1u, __ATOMIC_SEQ_CST);
        conc__unpark(t->actor, CONC__NUDGED);
        return true;
      }
    }
  }
  return false;
}

CONC__PRIVATE int conc__pool_start_worker(conc__pool_data *p);

/* Wakes a worker; a lazy pool starts one if none rests. Returns 0, see
   conc__pool_wake. */
CONC__NOINLINE int conc__pool_wake_one(conc__pool_data *p) {
  if (!conc__pool_nudge(p) && p->lazy) conc__pool_start_worker(p);
  return 0;
}

/* Called after a job was put where workers look. A worker that searches will
   find it. Otherwise one that rests is woken, if there may be one. Returns 0:
   as the last call of a submit, which so has no register to save, it costs
   less. */
CONC__INLINE int conc__pool_wake(conc__pool_data *p) {
  if (__atomic_load_n(&p->idle.searching, __ATOMIC_SEQ_CST) == 0 &&
      __atomic_load_n(&p->idle.resting, __ATOMIC_SEQ_CST) != 0)
    return conc__pool_wake_one(p);
  return 0;
}

/* Lowers one of the counters, and returns what is left. */
CONC__INLINE unsigned conc__count_down(unsigned *count) {
  unsigned left = __atomic_sub_fetch(count, 1u, __ATOMIC_SEQ_CST);
  CONC__CHECK(left != ~0u);
  return left;
}

/* The worker, or what it waits for, has found something. While it searched,
   submitters woke no worker: so the last searcher looks for them if there is
   more. */
CONC__PRIVATE void conc__worker_stop_searching(conc__worker *w) {
  conc__pool_data *p = w->pool;
  if (conc__count_down(&p->idle.searching) == 0 && conc__pool_has_work(p))
    conc__pool_wake(p);
}

/* --- resting and searching --- */

/* Enters the idle set. The caller must look for jobs afterwards, before it
   sleeps: a submitter that came before the fence has not seen the bit.
   `resting` is raised first, since a submitter looks at the bits only if that
   is not 0. */
CONC__PRIVATE void conc__worker_rest(conc__worker *w) {
  CONC__CHECK(!(CONC__LOAD_RELAXED(&w->pool->idle.bits[w->index / 32]) &
                1u << w->index % 32));
  __atomic_add_fetch(&w->pool->idle.resting, 1u, __ATOMIC_SEQ_CST);
  __atomic_fetch_or(&w->pool->idle.bits[w->index / 32], 1u << w->index % 32,
                    __ATOMIC_SEQ_CST);
  conc__fence_heavy();
}

/* Leaves the idle set. True: by itself. False: a thread has claimed the
   worker, which now counts as searching. Then the nudge is awaited here, if it
   is still on its way: it must not meet a later wait. */
CONC__PRIVATE bool conc__worker_leave_idle(conc__worker *w) {
  conc__actor *self = &conc__this.actor;
  unsigned bit = 1u << w->index % 32;
  conc__count_down(&w->pool->idle.resting);
  CONC__POINT();
  if (__atomic_fetch_and(&w->pool->idle.bits[w->index / 32], ~bit,
                         __ATOMIC_SEQ_CST) &
      bit)
    return true;
  while (!(CONC__LOAD(&self->word) & CONC__NUDGED))
    conc__thread_park(self, CONC__NUDGED, CONC__NEVER);
  CONC__AND(&self->word, ~CONC__NUDGED);
  return false;
}

/* Looks for a job again and again while that pays, as conc__spin learns it.
   NULL if the time is out. */
CONC__PRIVATE conc_task *conc__worker_spin(conc__worker *w) {
  conc_task *t = conc__worker_take(w);
  conc__spin spin;
  conc__spin_begin(&spin, &w->spin_failed, CONC__NEVER);
  while (t == NULL && conc__spin_again(&spin, 8)) t = conc__worker_take(w);
  conc__spin_end(&spin, t != NULL);
  return t;
}

/* Waits for a job, in turns of spinning and resting. NULL: the pool is over,
   there will be none. */
CONC__PRIVATE conc_task *conc__worker_search(conc__worker *w) {
  conc__pool_data *p = w->pool;
  conc__actor *self = &conc__this.actor;
  __atomic_add_fetch(&p->idle.searching, 1u, __ATOMIC_SEQ_CST);
  for (;;) { /* is counted in `searching` and in `active` */
    conc_task *t = conc__worker_spin(w);
    if (t != NULL) {
      conc__worker_stop_searching(w);
      return t;
    }
    /* In this order: from the first step on submitters look at the idle set,
       and after the second they find this worker there. A job that was handed
       in between is seen by the look for work below. */
    conc__count_down(&p->idle.searching);
    conc__worker_rest(w);
    /* The last to rest ends the pool if it is closed: jobs come from outside
       no more, nor from inside, for no job runs. */
    if (conc__count_down(&p->idle.active) == 0 &&
        (CONC__LOAD(&p->inbox) & CONC__CLOSED) && !conc__pool_has_work(p)) {
      CONC__STORE(&p->over, true);
      while (conc__pool_nudge(p)) continue;
    }
    if (!CONC__LOAD(&p->over) && !conc__pool_has_work(p))
      conc__thread_park(self, CONC__NUDGED, CONC__NEVER);
    if (conc__worker_leave_idle(w))
      __atomic_add_fetch(&p->idle.searching, 1u, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&p->idle.active, 1u, __ATOMIC_SEQ_CST);
    if (CONC__LOAD(&p->over) && !conc__pool_has_work(p)) {
      conc__count_down(&p->idle.searching);
      return NULL;
    }
  }
}

/* --- running a job --- */

/* The look of a job's kind (see conc__kind): a job whose pool has stayed
   behind in the parent is found to have ended when a task asks for it. Two
   tasks may ask at once: the one that swaps the id ends it. */
CONC__PRIVATE void conc__job_end_if_owner_gone(conc_task *task) {
  uintptr_t id;
  if (CONC__LOAD(&task->done.flag) == CONC__SET) return;
  id = CONC__LOAD(&task->id);
  if (!conc__owner_is_gone(id)) return;
  if (CONC__CAS(&task->id, &id, (uintptr_t)0))
    conc__task_end_stayed_in_parent(task);
}

/* Called at a wait of a job, by its thread: whether the wait is to fail. From
   then on conc_cancel pokes the actor. A pool that is terminated cancels every
   job, once. */
CONC__PRIVATE bool conc__job_take_cancel(conc__actor *self) {
  conc_task *t = self->task;
  conc__actor *none = NULL;
  bool cancelled = false;
  /* The swap fails if conc_cancel was here before: that is then delivered. */
  if (CONC__LOAD_RELAXED(&t->actor) != self &&
      !CONC__CAS(&t->actor, &none, self)) {
    CONC__STORE(&t->actor, self);
    cancelled = true;
  }
  if (conc__this.worker != NULL && !t->was_cancelled &&
      CONC__LOAD(&conc__this.worker->pool->terminated))
    cancelled = true;
  return cancelled;
}

CONC__PRIVATE int conc__pool_await(conc_task *task, bool uncancellable,
                                   double timeout); /* in the row */

/* A job of a thread of a pool, or one that a process of a pool runs. */
static const conc__kind conc__job_kind = {
    "Job", true, true, true, NULL, conc__job_take_cancel,
    conc__pool_await, conc__job_end_if_owner_gone, NULL};

/* A job that has waited, and so has announced its actor, is about to run
   another job on the same actor: a poke from now on would be for that one. One
   that has come already is kept as CONC__NEVER_BEGIN, which the outer job's
   next wait finds. Under the guard that conc_cancel holds while it pokes: so
   no poke is on its way. */
CONC__PRIVATE void conc__job_withdraw(conc_task *t, conc__actor *self) {
  conc__mutex *guard = conc__mutex_of(&t->done);
  conc__mutex_lock(guard);
  CONC__CHECK(t->actor == self);
  t->actor = CONC__AND(&self->word, ~CONC__POKED) & CONC__POKED
                 ? CONC__NEVER_BEGIN
                 : NULL;
  conc__mutex_unlock(guard);
}

/* The scope of every job while it begins. It limits nothing: it is there since
   conc__may_be_cancelled looks for a scope, and so a job's first wait looks
   for what conc_cancel has left in .actor. */
static conc_scope conc__job_scope = {NULL, CONC__NEVER, false, false};

/* Runs a job to its end in the calling thread, perhaps inside of another job,
   whose place and scopes it gives back. `terminated`: the job does not begin.
   The job may be freed when this returns. */
CONC__INLINE void conc__job_run(conc_task *t, bool terminated) {
  conc__actor *self = &conc__this.actor;
  conc_task *outer = self->task;
  conc_scope *outer_scope = self->scope;
  void *result = NULL;
  int status = -ECANCELED;
  bool announced = false;
  CONC__CHECK(t->kind == &conc__job_kind && !conc_event_is_set(&t->done));
  if (CONC__UNLIKELY(outer->actor == self && outer->kind == &conc__job_kind))
    conc__job_withdraw(outer, self);
  self->scope = &conc__job_scope;
  self->task = t;
  /* Until now the pool's id stood there: now a task that waits for the job
     waits for this actor, which a deadlock report follows. */
  CONC__STORE_RELAXED(&t->id, self->id);
  if (CONC__LOAD(&t->actor) == NULL && !terminated) {
    result = t->target(t->arg);
    status = t->was_cancelled ? -ECANCELED : t->status;
    if (CONC__UNLIKELY(t->locals != NULL)) conc__locals_end(t);
    /* Read before the end, after which the task is not ours. */
    announced = CONC__LOAD_RELAXED(&t->actor) == self;
  }
  self->task = outer;
  self->scope = outer_scope;
  conc__task_finish(t, result, status);
  /* A late conc_cancel of this job holds the guard of `done` while it pokes,
     and conc__task_finish has waited for that guard: so its poke is here by
     now, and is removed, since it is not for the outer job. */
  if (CONC__UNLIKELY(announced)) CONC__AND(&self->word, ~CONC__POKED);
}

CONC__PRIVATE void conc__worker_run(conc__worker *w, conc_task *t) {
  conc__job_run(t, CONC__LOAD(&w->pool->terminated));
}

/* A worker's thread. The thread's own task is w->task; while a job runs, the
   actor's task is the job, and conc__this.base remembers the thread's. */
CONC__PRIVATE void *conc__worker_main(void *arg) {
  conc__worker *w = (conc__worker *)arg;
  conc__pool_data *p = w->pool;
  conc_task *t;
  conc__this.worker = w;
  conc__this.base = &w->task;
  if (p->options.initializer != NULL)
    p->options.initializer(p->options.initializer_arg);
  for (;;) {
    t = conc__worker_take(w);
    if (t == NULL) t = conc__worker_search(w);
    if (t == NULL) break;
    conc__worker_run(w, t);
    if (conc__pool_is_gone(p)) break; /* the job forked: this is the child */
  }
  conc__this.worker = NULL;
  conc__this.base = NULL;
  return NULL;
}

/* --- waiting for jobs --- */

/* What a task waits for: the end of one task, or of `want` of many. */
typedef struct conc__pool_wait {
  conc_task *task;       /* NULL: it waits for many */
  conc__multiwait *many; /* NULL: it waits for one */
  size_t want;
  bool uncancellable; /* a conc_cancel of the waiting task stays pending */
} conc__pool_wait;

/* Waits as a thread that runs no jobs does. The bits end the wait, too: a
   worker may be nudged. 0, -ETIMEDOUT (also for such a bit), -ECANCELED,
   -EDEADLK. */
CONC__PRIVATE int conc__pool_sleep(const conc__pool_wait *what,
                                   unsigned extra_bits, double deadline) {
  conc__waiter w;
  if (what->many != NULL)
    return conc__multiwait_park(what->many, what->want, what->uncancellable,
                                extra_bits, deadline);
  conc__waiter_init(&w, conc__self(), "the end", NULL);
  w.relation = "of";
  w.owner = &what->task->id;
  w.uncancellable = what->uncancellable;
  w.recheck_after_fork = what->task->kind->look != NULL;
  w.extra_bits = extra_bits;
  return conc__event_park(&what->task->done, &w, conc__remaining(deadline));
}

/* One turn of a worker that waits: runs a job, or rests until there is one or
   the wait is over. -EAGAIN: look again whether what is awaited has happened;
   else as conc__pool_sleep. */
CONC__PRIVATE int conc__worker_wait(conc__worker *w,
                                    const conc__pool_wait *what,
                                    double deadline) {
  int rc = -ETIMEDOUT;
  bool mine;
  conc_task *t = conc__worker_take(w);
  if (t != NULL) {
    conc__worker_run(w, t);
    return -EAGAIN;
  }
  conc__worker_rest(w);
  /* After it has entered the idle set: see conc__worker_rest. */
  if (conc__pool_has_work(w->pool))
    rc = -EAGAIN;
  else
    rc = conc__pool_sleep(what, CONC__NUDGED, deadline);
  /* A worker that was claimed counts as searching. It searches in its next
     turn, but what it awaits may have come as well: so another worker is woken
     if there is more. */
  mine = conc__worker_leave_idle(w);
  if (!mine) conc__worker_stop_searching(w);
  /* What ended the sleep may have been the nudge. */
  if (rc == -ETIMEDOUT && (!mine || conc_now() < deadline)) rc = -EAGAIN;
  return rc;
}

/* A worker waits for a job that it has submitted itself: it runs the jobs that
   it pushed after that one first, latest first. This is what a recursion does
   that splits its work. When its deque is empty the job was stolen, and it is
   awaited as by any task. */
CONC__NOINLINE int conc__worker_help(conc__worker *w, conc_task *task,
                                     double timeout) {
  while (CONC__LOAD(&task->done.flag) != CONC__SET) {
    conc_task *t = NULL;
    /* In each turn: a job that has forked left the worker behind in the child;
       and a task that waits for itself is an error that the join tells. */
    if (conc__this.worker != NULL && task != conc__this.actor.task)
      t = conc__deque_pop(&w->own, NULL);
    if (t == NULL) return conc__task_join(task, timeout);
    conc__worker_run(w, t);
  }
  return task->status;
}

/* conc_join by a worker. The most usual case is a job that the worker has
   pushed last: it is popped, and run as a call. */
CONC__PRIVATE int conc__worker_join(conc_task *task, double timeout) {
  conc__worker *w = conc__worker_here();
  if (w == NULL || task->kind != &conc__job_kind || timeout <= 0)
    return conc__task_join(task, timeout);
  CONC__CHECK(w == conc__this.worker);
  if (conc__deque_pop(&w->own, task) == NULL)
    return conc__worker_help(w, task, timeout);
  conc__job_run(task, CONC__LOAD(&w->pool->terminated));
  return task->status;
}

/* Waits for the end of a job, by any task; or, by a worker, for the end of any
   task. 0, -ETIMEDOUT, -ECANCELED, -EDEADLK. */
CONC__PRIVATE int conc__pool_await(conc_task *task, bool uncancellable,
                                   double timeout) {
  const conc__pool_wait what = {task, NULL, 0, uncancellable};
  double deadline = CONC__NEVER;
  conc__worker *w;
  int rc = 0;
  if (conc_event_is_set(&task->done)) return 0;
  if (timeout <= 0) return -ETIMEDOUT;
  if (timeout < 1e9) deadline = conc__deadline(timeout);
  if (task->kind != NULL && task->kind->help != NULL) task->kind->help(task);
  do {
    /* In each turn: a job that the worker has run meanwhile may have forked,
       and the child has no worker. */
    w = conc__worker_here();
    if (conc_event_is_set(&task->done)) return 0;
    /* Then the awaited job has stayed behind, too: only a look finds it out.
     */
    conc__task_look(task);
    rc = w != NULL ? conc__worker_wait(w, &what, deadline)
                   : conc__pool_sleep(&what, 0, deadline);
  } while (rc == -EAGAIN);
  return rc;
}

/* conc__pool_await for `want` of many tasks. */
CONC__PRIVATE int conc__pool_many_wait(conc__multiwait *m, size_t want,
                                       bool uncancellable, double deadline) {
  const conc__pool_wait what = {NULL, m, want, uncancellable};
  int rc;
  do {
    conc__worker *w = conc__worker_here();
    if (CONC__LOAD(&m->count) >= want) return 0;
    rc = w != NULL && deadline > 0 ? conc__worker_wait(w, &what, deadline)
                                   : conc__pool_sleep(&what, 0, deadline);
  } while (rc == -EAGAIN);
  return rc;
}

/* --- fork --- */

/* Of the tasks that this actor waits for, those that are jobs which have
   stayed behind have ended. */
CONC__PRIVATE void conc__pool_fork_look(const conc__actor *actor) {
  const conc__multiwait *m;
  size_t i;
  if (actor == NULL) return;
  for (m = actor->many; m != NULL; m = m->next)
    for (i = 0; i < m->n; i++)
      if (m->nodes[i].waiter.list != NULL)
        conc__task_look(m->nodes[i].task);
}

/* In a forked child: wakes those that wait for jobs of the parent's, this
   thread and the coroutines of its loop. Its guards are not touched: see
   conc__pool_is_gone. */
CONC__PRIVATE void conc__pool_fork_child(void) {
  conc__loop *loop = conc__this.loop;
  conc_task *t = loop != NULL ? loop->tasks : NULL;
  conc__pool_fork_look(&conc__this.actor);
  conc__this.worker = NULL; /* its pool has stayed behind */
  for (; t != NULL; t = t->next) conc__pool_fork_look(conc__fork_actor(t));
}

/* Before there is any pool. */
CONC__PRIVATE void conc__pool_init_once(void) {
  static const conc__job_class jobs = {conc__pool_await, conc__pool_many_wait,
                                       conc__worker_join};
  static const conc__fork_row row = {NULL, NULL, conc__pool_fork_child};
  conc__jobs = &jobs;
  conc__init();
  conc__fence_init();
  conc__fork_enter(CONC__FORK_POOL, &row);
}

/* --- the life of a pool --- */

/* Frees a pool whose workers have ended, or that has stayed behind in the
   parent. */
CONC__PRIVATE void conc__pool_free(conc__pool_data *p) {
  size_t i;
  for (i = 0; i < p->n && p->workers != NULL; i++)
    conc__deque_free(&p->workers[i].own);
  if (p->memory > 0)
    munmap(p->block, p->memory);
  else
    CONC_FREE(p->block);
}

/* The next line of the cache that begins at or after p. */
CONC__PRIVATE void *conc__line_up(void *p) {
  return (void *)(((uintptr_t)p + CONC__CACHE_LINE - 1) &
                  ~(uintptr_t)(CONC__CACHE_LINE - 1));
}

/* A pool without running workers, of n at most, in one block of memory: the
   pool, its workers, the bits of the idle set. `mapped`: not by CONC_MALLOC,
   so that a pool that is never freed is no leak. NULL without memory. */
CONC__PRIVATE conc__pool_data *conc__pool_new(const conc_pool *options,
                                              size_t n, bool mapped) {
  size_t words = (n + 31) / 32;
  size_t size = 2 * CONC__CACHE_LINE + sizeof(conc__pool_data) +
                n * sizeof(conc__worker) + words * sizeof(unsigned);
  void *block;
  conc__pool_data *p;
  size_t i;
  if (n > SIZE_MAX / 2 / sizeof(conc__worker)) return NULL;
  block = mapped ? conc__pages_map(size) : CONC_MALLOC(size);
  if (block == NULL) return NULL;
  memset(block, 0, size);
  p = (conc__pool_data *)conc__line_up(block);
  p->block = block;
  p->memory = mapped ? size : 0;
  p->id = (uintptr_t)p | conc__generation << 2;
  p->options = *options;
  p->n = n;
  p->backlog.end = &p->backlog.first;
  p->workers = (conc__worker *)conc__line_up(p + 1);
  CONC__CHECK((uintptr_t)p->workers % CONC__CACHE_LINE == 0);
  p->idle.bits = (unsigned *)(void *)(p->workers + n);
  for (i = 0; i < n; i++) {
    conc__worker *w = &p->workers[i];
    w->pool = p;
    w->index = i;
    w->batch_array.array.mask = CONC__BATCH - 1;
    w->batch.array = &w->batch_array.array;
    /* For good: each pop passes the fence, since no thief could have it pass
       one. */
    if (conc__fence_is_heavy) w->own.guests = CONC__FENCED;
    snprintf(w->name, sizeof w->name, "Worker-%lu", (unsigned long)(i + 1));
    w->task.name = w->name;
    w->task.target = conc__worker_main;
    w->task.arg = w;
    w->task.stack_size = options->stack_size;
  }
  return p;
}

/* Starts one worker more, unless all have been. Under the guard, so that two
   that call it start two different ones. 0 or negative errno. */
CONC__PRIVATE int conc__pool_start_worker(conc__pool_data *p) {
  int rc = 0;
  if (CONC__LOAD(&p->started) == p->n) return 0;
  conc__mutex_lock(&p->guard);
  CONC__CHECK(p->started <= p->n);
  if (p->started < p->n) {
    /* Active before it runs: otherwise the other workers could all rest and
       end the pool before this one has begun. */
    __atomic_add_fetch(&p->idle.active, 1u, __ATOMIC_SEQ_CST);
    rc = conc_thread_start(&p->workers[p->started].task);
    if (rc == 0)
      CONC__STORE(&p->started, p->started + 1);
    else conc__count_down(&p->idle.active);
  }
  conc__mutex_unlock(&p->guard);
  return rc;
}

/* Closes the inbox, and lets one worker look: if all rest already, this one
   ends the pool when it rests again. */
CONC__PRIVATE void conc__pool_shut(conc__pool_data *p) {
  CONC__POINT();
  __atomic_fetch_or(&p->inbox, CONC__CLOSED, __ATOMIC_SEQ_CST);
  conc__pool_nudge(p);
}

/* Pokes what the worker runs, as conc_cancel does; but conc_cancel would keep
   a thread from running at all that has not begun yet, and this one must: it
   is needed to end the pool. */
CONC__PRIVATE void conc__worker_poke(conc__worker *w) {
  conc__mutex *guard = conc__mutex_of(&w->task.done);
  conc__mutex_lock(guard);
  if (conc__event_await(&w->task.done) && CONC__LOAD(&w->task.actor) != NULL)
    conc__unpark(w->task.actor, CONC__POKED);
  conc__mutex_unlock(guard);
}

/* Ends the jobs that have not begun, and pokes those that run. `terminated` is
   set first: a job that is taken by a worker at the same moment does not begin
   either, and jobs that jobs hand in now end like these. */
CONC__PRIVATE void conc__pool_stop(conc__pool_data *p) {
  size_t i;
  conc_task *t;
  CONC__STORE(&p->terminated, true);
  conc__pool_shut(p);
  while ((t = conc__pool_take(p, NULL)) != NULL)
    conc__task_finish(t, NULL, -ECANCELED);
  for (i = 0; i < p->started; i++) {
    conc__worker *w = &p->workers[i];
    while ((t = conc__deque_take(&w->batch)) != NULL ||
           (t = conc__deque_steal(&w->own)) != NULL)
      conc__task_finish(t, NULL, -ECANCELED);
    conc__worker_poke(w);
  }
  /* A worker that was the last to rest may have seen a job that is gone now,
     and have gone to sleep without ending the pool: one looks again. */
  conc__pool_nudge(p);
}

/* Joins a task of the library's own, which ends soon: a cancellation of the
   caller must not cut this short. */
CONC__PRIVATE void conc__task_join_anyway(conc_task *t) {
  while (conc_join(t, CONC_FOREVER) == -ECANCELED) continue;
}

/* Starts a pool of n threads. The pool is public only when all of them run: so
   after an error there is nothing but them to end. 0 or negative errno. */
CONC__PRIVATE int conc__pool_start_threads(conc_pool *pool, size_t n) {
  conc__pool_data *p = conc__pool_new(pool, n, false);
  int rc = 0;
  size_t i;
  if (p == NULL) return -ENOMEM;
  while (rc == 0 && p->started < n) rc = conc__pool_start_worker(p);
  if (rc == 0) {
    CONC__STORE(&pool->state, p);
    return 0;
  }
  conc__pool_shut(p);
  for (i = 0; i < p->started; i++) conc__task_join_anyway(&p->workers[i].task);
  conc__pool_free(p);
  return rc;
}

/* --- handing in a job --- */

/* Hands in a job from outside of the pool: pushes it on the inbox. SEQ_CST:
   conc__pool_wake looks for workers after it. 0, -EPIPE. */
CONC__NOINLINE int conc__pool_post(conc__pool_data *p, conc_task *job) {
  uintptr_t seen = CONC__LOAD(&p->inbox);
  do {
    /* The bit and the list are one word: so no job comes in after the
       closing. */
    if (seen & CONC__CLOSED) {
      conc__task_start_failed(job);
      return -EPIPE;
    }
    job->next = (conc_task *)seen;
    CONC__POINT();
  } while (!__atomic_compare_exchange_n(&p->inbox, &seen, (uintptr_t)job,
                                        true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED));
  return conc__pool_wake(p);
}

/* Hands in a job from a job of the same pool. The fence is the light one: the
   worker that rests has the heavy one. 0. */
CONC__INLINE int conc__worker_push(conc__worker *w, conc_task *job) {
  conc__deque_push(&w->own, job);
  conc__fence_light();
  return conc__pool_wake(w->pool);
}

/* conc__worker_push, when the deque is full. 0, -ENOMEM. */
CONC__NOINLINE int conc__worker_push_more(conc__worker *w, conc_task *job) {
  int rc = conc__deque_grow(&w->own);
  if (rc == 0) return conc__worker_push(w, job);
  conc__task_start_failed(job);
  return rc;
}

/* Hands in a job to a pool of threads, from anywhere. A job of the pool's own
   may do so after the closing, too. 0, or an error, after which the job is as
   if new. */
CONC__INLINE int conc__pool_submit_thread(conc__pool_data *p, conc_task *job) {
  conc__worker *w = conc__worker_of(p);
  int rc = conc__task_begin(job, &conc__job_kind);
  if (CONC__UNLIKELY(rc != 0)) return rc;
  /* Until it runs: by this a forked child knows that it has stayed behind. */
  CONC__STORE_RELAXED(&job->id, p->id);
  if (w == NULL) return conc__pool_post(p, job);
  return CONC__UNLIKELY(conc__deque_is_full(&w->own))
             ? conc__worker_push_more(w, job)
             : conc__worker_push(w, job);
}

/* ---------------------------------------------------------------------------
   >>procpool: jobs for processes

   Holds: slots of shared memory in which jobs travel, what a worker process
   does, how jobs end, the keeper (a thread that replaces workers), and the
   life of such a pool.
   Uses: >>process, >>ipc's memory, of >>jobs the pool's state and job_run.
   Used by: >>pool.
   The order of locks: see >>process. The pool's guard stands first.

   The parent writes jobs into slots, where they stay until the parent has
   taken the results: workers run them in place. Slots are handed out through a
   ring of their numbers. A worker claims a slot by a compare-and-swap on the
   slot's word, which then names the worker. The word also has the position in
   the ring: so the swap fails if the worker comes too late. The ring's head is
   only helped forward, by any worker. So at any instruction at which a worker
   is killed, the parent, which learns of it from the reaper, finds in the
   words what the worker had. All else is the parent's own: nothing that a
   worker holds needs a repair. A slot's word goes

     FREE -> READY         the parent, under the guard
     READY -> CLAIMED      a worker
     READY -> FREE         the parent takes the job back: it never runs
     CLAIMED -> DONE       the worker, when the job has ended
     CLAIMED -> CONDEMNED  the parent is about to kill the worker for this job
     CLAIMED -> FREE       the keeper, after the worker's death
     CONDEMNED -> FREE     the keeper, after the worker's death: the job ends
                           with the reason for which it was condemned
     DONE -> FREE          a thread of the parent, which so takes the result

   Of two that change a word at the same time one fails, and looks again.

   Finished slots are noted in `done`, from which any thread of the parent may
   take them. A thread that waits for a job spins there for a moment, counted
   in `awake`; otherwise it is the keeper, which sleeps on `bell`. A worker
   that has noted a slot looks at `awake`, and rings if it is 0. A thread that
   goes to sleep lowers `awake`, and then looks for notes (all SEQ_CST): so one
   of the two sees the other.
   ------------------------------------------------------------------------ */

/* --- what is shared, and what the parent knows --- */

/* The order matters: from CLAIMED on the word names a worker. */
enum {
  CONC__JOB_SLOT_FREE,
  CONC__JOB_SLOT_READY,     /* a worker may claim it */
  CONC__JOB_SLOT_CLAIMED,   /* the worker runs the job, in place */
  CONC__JOB_SLOT_CONDEMNED, /* the worker is being killed for it */
  CONC__JOB_SLOT_DONE       /* the result is there */
};
enum {
  CONC__JOB_SLOTS = 256,
  CONC__JOB_SLOT_BYTES = 160, /* of an argument, in the slot itself */
  CONC__JOB_SLOT_RING = 2 * CONC__JOB_SLOTS, /* numbers of jobs that were taken
                                                back stay in it for a while */
  CONC__PROCPOOL_WORKERS = 4096
};
/* .slot of a job that is in none: */
enum {
  CONC__JOB_WAITS = -1, /* in the backlog */
  CONC__JOB_OVER = -2   /* ends now, or has ended */
};

/* Many items of conc_pool_map: one job for a worker that is a process. */
typedef struct conc__chunk {
  conc_task task; /* first: from it comes the chunk */
  size_t item;    /* bytes of one */
} conc__chunk;

/* A job on its way. The parent writes all of it before it is READY; the worker
   that has claimed it writes the result, its pid and when it began. */
typedef struct conc__procpool_slot {
  uint64_t state; /* position << 24 | worker << 8 | CONC__JOB_SLOT_... */
  conc_fn *target;
  void *result;
  size_t offset; /* of an argument that does not fit in `bytes`, in `memory` */
  size_t size;   /* of the argument; 0: `bytes` has the pointer itself */
  size_t item;   /* of a chunk: bytes of one item; else 0 */
  uint64_t began; /* by the clock, in nanoseconds; 0: the worker has not said.
                     Only in a pool with a timeout; see procpool_kill_late */
  int status;     /* what conc_join of the job is to return */
  pid_t pid;      /* of the worker; 0: none yet */
  uint64_t bytes[CONC__JOB_SLOT_BYTES / 8];
} conc__procpool_slot;

/* A worker, in shared memory. */
typedef struct conc__procpool_worker {
  unsigned bell; /* a futex on which it sleeps; 1: it is to look. Cleared by
                    the worker before it enters `asleep` */
  bool ready;    /* it has begun, and called the initializer; cleared by the
                    parent before it starts the process anew */
  CONC__APART(1);
} conc__procpool_worker;

/* All that the processes share. Positions in the ring only grow; a position's
   place is the position modulo the ring's size. */
typedef struct conc__procpool_shared {
  uint64_t tail; /* the parent's, under the guard: the next position to fill */
  CONC__APART(1);
  uint64_t head; /* the next position to claim; helped forward by workers */
  CONC__APART(2);
  unsigned bell;  /* a futex: the keeper sleeps while it is 0. Set by whoever
                     has something for the keeper; cleared by the keeper */
  unsigned awake; /* threads of the parent that look at `done` without being
                     rung for: the keeper, and threads in procpool_help */
  CONC__APART(3);
  uint64_t done[CONC__JOB_SLOTS / 64]; /* a bit for each slot that is DONE. Set
                                          by the worker after the word; cleared
                                          by the thread that takes the slot. A
                                          bit may be missing if the worker was
                                          killed: its burial finds the slot */
  unsigned stop; /* 1: workers end when there is no job left. Never cleared */
  CONC__APART(4);
  uint64_t asleep[CONC__PROCPOOL_WORKERS / 64]; /* a bit for each worker that
                                                   rests. Set by the worker;
                                                   cleared by it, by the thread
                                                   that rings for it, or at its
                                                   burial */
  unsigned ring[CONC__JOB_SLOT_RING];           /* numbers of slots */
  conc__procpool_slot slots[CONC__JOB_SLOTS];
  /* the workers, and the larger arguments follow */
} conc__procpool_shared;

/* What the parent knows of a slot. Under the guard. */
typedef struct conc__procpool_job {
  conc_task *task;     /* NULL: the slot is free */
  int reason;          /* what its job ends with if it is condemned */
  unsigned next;       /* of a free slot: the next free one; of one with a
                          block: the next block in memory; or
                          CONC__JOB_SLOTS */
  size_t offset, size; /* its block of `memory`; size 0: it has none */
} conc__procpool_job;

/* A worker, as the parent knows it: the keeper's own, but for `ended`. */
typedef struct conc__procpool_process {
  conc_task task; /* first: from it comes the process */
  conc__pool_data *pool;
  size_t index; /* in `processes` and in `workers` */
  bool runs;    /* was started, and has not been joined */
  bool ended;   /* set by the reaper: it can be joined */
  char name[32];
} conc__procpool_process;

typedef struct conc__procpool {
  conc__procpool_shared *shared;
  conc__procpool_worker *workers;    /* p->n of them */
  conc__procpool_process *processes; /* p->n of them */
  char *memory;                      /* of the larger arguments; shared */
  size_t memory_size;                /* bytes */
  conc__procpool_job jobs[CONC__JOB_SLOTS];
  unsigned free, blocks; /* first slots of the two lists, or CONC__JOB_SLOTS */
  size_t unfinished; /* jobs that were handed in and have not ended; under the
                        guard */
  unsigned users;    /* threads that use the pool for the sake of a job which
                        may end meanwhile: the keeper waits for them */
  unsigned early_deaths; /* workers in a row that ended, by themselves, before
                            they were ready; the keeper's */
  int broken;            /* -ECHILD: workers do not come up, so no jobs are
                            taken; set once, under the guard. 0 */
  unsigned spin_failed;  /* the keeper's */
  conc_task keeper;      /* its thread */
  double retry_at;       /* when the keeper is to start again what could not be
                            started; CONC__NEVER */
} conc__procpool;

/* The word of a slot, and its parts. */
#define CONC__JOB_SLOT_WORD(position, worker, state)                          \
  ((uint64_t)(position) << 24 | (uint64_t)(worker) << 8 | (uint64_t)(state))

CONC__INLINE unsigned conc__job_slot_state(uint64_t state) {
  return (unsigned)(state & 255);
}
CONC__INLINE size_t conc__job_slot_worker(uint64_t state) {
  return (size_t)(state >> 8 & 0xffff);
}

/* Sleeps while *word == value, until woken or the deadline has passed; may
   return for no reason. The waker may be another process. Where no process can
   wake another it pauses, longer with each round. */
CONC__PRIVATE void conc__procpool_sleep(unsigned *word, unsigned value,
                                        double deadline, unsigned round) {
#if CONC_HAVE_FUTEX
  (void)round;
  conc__futex_wait(word, value, deadline, true);
#else
  conc__shared_sleep(&conc__this.actor, word, value, deadline, round, false);
#endif
}

/* --- in a worker: finding a job --- */

/* Claims the next job: its slot, or CONC__JOB_SLOTS if there is none. A worker
   that is killed in here has claimed the slot in the one step of the swap, or
   has not: head is helped forward by the next worker. */
CONC__PRIVATE unsigned conc__procpool_claim(conc__procpool_shared *s,
                                            size_t worker) {
  for (;;) {
    uint64_t h = CONC__LOAD(&s->head);
    uint64_t next = h;
    uint64_t seen = CONC__JOB_SLOT_WORD(h, 0, CONC__JOB_SLOT_READY);
    unsigned i;
    bool mine;
    if (h == CONC__LOAD(&s->tail)) return CONC__JOB_SLOTS;
    /* The place may have been filled for a later position by now: then the
       slot's word has that position, and the swap fails. */
    i = CONC__LOAD(&s->ring[h % CONC__JOB_SLOT_RING]) % CONC__JOB_SLOTS;
    mine = CONC__CAS(&s->slots[i].state, &seen,
                     CONC__JOB_SLOT_WORD(h, worker, CONC__JOB_SLOT_CLAIMED));
    /* This position is done with, claimed by this worker or by another one, or
       its job was taken back: on to the next. */
    CONC__CAS(&s->head, &next, h + 1);
    if (mine) return i;
  }
}

/* Waits until there may be a job, or the workers are to stop. Spins first, as
   long as that pays. */
CONC__PRIVATE void conc__procpool_rest(conc__procpool_shared *s,
                                       conc__procpool_worker *w, size_t index,
                                       unsigned *failed) {
  uint64_t bit = (uint64_t)1 << index % 64;
  bool paid = false;
  unsigned round = 0;
  conc__spin spin;
  conc__spin_begin(&spin, failed, CONC__NEVER);
  while (!paid && conc__spin_again(&spin, 1))
    paid = CONC__LOAD(&s->head) != CONC__LOAD(&s->tail);
  conc__spin_end(&spin, paid);
  if (paid) return;
  /* First the bell is cleared, then the bit is set, by which the parent may
     ring, then it looks for jobs: the parent raises tail before it looks for
     bits (SEQ_CST), so one of the two sees the other. */
  CONC__STORE_RELAXED(&w->bell, 0u);
  __atomic_fetch_or(&s->asleep[index / 64], bit, __ATOMIC_SEQ_CST);
  while (CONC__LOAD(&w->bell) == 0 &&
         __atomic_load_n(&s->tail, __ATOMIC_SEQ_CST) == CONC__LOAD(&s->head) &&
         __atomic_load_n(&s->stop, __ATOMIC_SEQ_CST) == 0)
    conc__procpool_sleep(&w->bell, 0, CONC__NEVER, round++);
  __atomic_fetch_and(&s->asleep[index / 64], ~bit, __ATOMIC_SEQ_CST);
}

/* --- in a worker: running a job --- */

/* Where a slot's argument is: in the slot itself if it is small. */
CONC__INLINE char *conc__procpool_argument(conc__procpool_slot *slot,
                                           char *memory) {
  return slot->size <= CONC__JOB_SLOT_BYTES ? (char *)slot->bytes
                                            : memory + slot->offset;
}

/* A chunk, as the worker runs it. */
typedef struct conc__chunk_here {
  const conc__procpool_slot *slot;
  char *items;
} conc__chunk_here;

/* The target of a job that is a chunk: calls the slot's target for each
   item. */
CONC__PRIVATE void *conc__chunk_run(void *arg) {
  const conc__chunk_here *chunk = (const conc__chunk_here *)arg;
  const conc__procpool_slot *s = chunk->slot;
  size_t i;
  for (i = 0; i < s->size; i += s->item) s->target(chunk->items + i);
  return NULL;
}

/* After a slot was noted in `done`: rings for the keeper, unless a thread of
   the parent looks there anyway, or the bell rings already. */
CONC__PRIVATE void conc__procpool_wake_parent(conc__procpool_shared *s) {
  CONC__POINT();
  if (__atomic_load_n(&s->awake, __ATOMIC_SEQ_CST) == 0 &&
      __atomic_exchange_n(&s->bell, 1u, __ATOMIC_SEQ_CST) == 0)
    conc__shared_wake(&s->bell, 1);
}

/* Runs the job in a slot that this worker has claimed. The job is a task of
   its own here, with the same target; its argument is in shared memory, where
   the parent finds what the job makes of it. */
CONC__PRIVATE void conc__procpool_slot_run(conc__procpool_shared *s,
                                           char *memory, unsigned i,
                                           size_t worker) {
  unsigned generation = conc__generation;
  conc__procpool_slot *slot = &s->slots[i];
  uint64_t seen = CONC__LOAD_RELAXED(&slot->state);
  conc__chunk_here chunk;
  conc_task job;
  memset(&job, 0, sizeof job);
  job.number = (unsigned)(seen >> 24) + 1;
  job.size = slot->size;
  job.arg = conc__procpool_argument(slot, memory);
  /* Without a size .arg is a number, or a pointer that is good in both
     processes: it was sent itself. */
  if (slot->size == 0) memcpy(&job.arg, slot->bytes, sizeof job.arg);
  job.target = slot->target;
  if (slot->item > 0) {
    chunk.slot = slot;
    chunk.items = (char *)job.arg;
    job.target = conc__chunk_run;
    job.arg = &chunk;
  }
  conc__task_begin(&job, &conc__job_kind);
  conc__job_run(&job, false);
  if (generation != conc__generation)
    _exit(0); /* a child that the job has forked, and that came back */
  /* The result comes before the word, which releases it; the note in `done`
     comes after the word. If the worker is killed in between, the keeper finds
     the slot DONE at its burial, and loses nothing. */
  slot->result = job.result;
  slot->status = job.status;
  if (!CONC__CAS(&slot->state, &seen,
                 CONC__JOB_SLOT_WORD(seen >> 24, worker, CONC__JOB_SLOT_DONE)))
    for (;;) pause(); /* condemned: until the SIGKILL comes */
  CONC__POINT();
  __atomic_fetch_or(&s->done[i / 64], (uint64_t)1 << i % 64,
                    __ATOMIC_SEQ_CST);
  conc__procpool_wake_parent(s);
}

/* The target of a worker's process: runs jobs until it is to stop, or has run
   max_tasks_per_worker. Jobs that are left in the ring are run before it
   stops. */
CONC__PRIVATE void *conc__procpool_worker_main(void *arg) {
  conc__procpool_process *process = (conc__procpool_process *)arg;
  const conc_pool *options = &process->pool->options;
  conc__procpool *procs = process->pool->procs;
  conc__procpool_shared *s = procs->shared;
  conc__procpool_worker *w = &procs->workers[process->index];
  pid_t pid = getpid();
  unsigned i, failed = 0;
  size_t n = 0;
  if (options->initializer != NULL)
    options->initializer(options->initializer_arg);
  /* A worker that dies before this counts as an early death: an initializer
     that crashes would have workers replaced for ever. */
  CONC__STORE(&w->ready, true);
  while (options->max_tasks_per_worker == 0 ||
         n < options->max_tasks_per_worker) {
    i = conc__procpool_claim(s, process->index);
    if (i == CONC__JOB_SLOTS) {
      if (CONC__LOAD(&s->stop) != 0) break;
      conc__procpool_rest(s, w, process->index, &failed);
      continue;
    }
    s->slots[i].pid = pid; /* for conc_pid of the job */
    if (options->timeout > 0)
      CONC__STORE(&s->slots[i].began, (uint64_t)(conc_now() * 1e9));
    conc__procpool_slot_run(s, procs->memory, i, process->index);
    n++;
  }
  return NULL;
}

/* --- in the parent: slots --- */

/* Finds a place for the larger argument of slot i: the first gap between the
   blocks of others, which are listed in the order of their places. False if
   there is none now. The guard is held. */
CONC__PRIVATE bool conc__procpool_block_alloc(conc__pool_data *p, unsigned i,
                                              size_t size) {
  conc__procpool *procs = p->procs;
  unsigned *link = &procs->blocks;
  size_t at = 0;
  CONC__CHECK(conc__mutex_is_held(&p->guard) && procs->jobs[i].size == 0);
  /* Whole lines of the cache: arguments of different workers do not share
     one. */
  size = (size + 63) & ~(size_t)63;
  for (; *link != CONC__JOB_SLOTS; link = &procs->jobs[*link].next) {
    if (procs->jobs[*link].offset - at >= size) break;
    at = procs->jobs[*link].offset + procs->jobs[*link].size;
  }
  if (*link == CONC__JOB_SLOTS && procs->memory_size - at < size) return false;
  procs->jobs[i].offset = at;
  procs->jobs[i].size = size;
  procs->jobs[i].next = *link;
  *link = i;
  return true;
}

/* Gives back slot i and its block: the job is no longer in it. The guard is
   held. */
CONC__PRIVATE void conc__procpool_slot_free(conc__pool_data *p, unsigned i) {
  conc__procpool *procs = p->procs;
  conc__procpool_job *j = &procs->jobs[i];
  CONC__CHECK(conc__mutex_is_held(&p->guard));
  CONC__CHECK(j->task != NULL && j->task->as.job.slot == (int)i);
  if (j->size > 0) {
    unsigned *link = &procs->blocks;
    while (*link != i) link = &procs->jobs[*link].next;
    *link = j->next;
    j->size = 0;
  }
  j->task->as.job.slot = CONC__JOB_OVER;
  j->task = NULL;
  j->next = procs->free;
  procs->free = i;
}

/* Rings for one worker that rests, and takes its bit, so that the next call
   rings for another one. False if there is none. */
CONC__PRIVATE bool conc__procpool_wake_worker(conc__procpool *procs,
                                              size_t n) {
  conc__procpool_shared *s = procs->shared;
  size_t k;
  for (k = 0; k * 64 < n; k++) {
    uint64_t seen = __atomic_load_n(&s->asleep[k], __ATOMIC_SEQ_CST);
    while (seen != 0) {
      size_t w = k * 64 + conc__lowest_bit(seen);
      if (!CONC__CAS(&s->asleep[k], &seen, seen & (seen - 1))) continue;
      CONC__STORE(&procs->workers[w].bell, 1u);
      conc__shared_wake(&procs->workers[w].bell, 1);
      return true;
    }
  }
  return false;
}

/* Puts a job that never ran, and that is in no slot, on the list of those that
   are to be ended without the guard, which is held. See
   conc__procpool_finish_jobs. */
CONC__PRIVATE void conc__procpool_drop(conc_task *t, int status,
                                       conc_task **ended) {
  CONC__CHECK(t->as.job.slot == CONC__JOB_WAITS);
  t->as.job.slot = CONC__JOB_OVER;
  t->status = status;
  t->next = *ended;
  *ended = t;
}

/* Hands a job to the workers, in slot i, which was free. The guard is held. */
CONC__PRIVATE void conc__procpool_slot_fill(conc__procpool *procs, unsigned i,
                                            conc_task *t) {
  conc__procpool_shared *s = procs->shared;
  conc__procpool_slot *slot = &s->slots[i];
  uint64_t tail = s->tail;
  char *bytes;
  CONC__CHECK(i < CONC__JOB_SLOTS && procs->jobs[i].task == NULL);
  CONC__CHECK(t->as.job.slot == CONC__JOB_WAITS);
  procs->jobs[i].task = t;
  procs->jobs[i].reason = 0;
  t->as.job.slot = (short)i;
  slot->target = t->target;
  slot->size = t->size;
  slot->item =
      t->as.job.is_chunk ? ((const conc__chunk *)(const void *)t)->item : 0;
  slot->offset = procs->jobs[i].offset;
  slot->began = 0;
  slot->pid = 0;
  bytes = conc__procpool_argument(slot, procs->memory);
  if (t->size > 0) memcpy(bytes, t->arg, t->size);
  else memcpy(bytes, &t->arg, sizeof t->arg);
  /* The word releases the slot, then the ring names it, then tail shows the
     place. */
  CONC__STORE(&slot->state,
              CONC__JOB_SLOT_WORD(tail, 0, CONC__JOB_SLOT_READY));
  CONC__STORE(&s->ring[tail % CONC__JOB_SLOT_RING], i);
  /* In one order with what a worker does that goes to rest. */
  __atomic_store_n(&s->tail, tail + 1, __ATOMIC_SEQ_CST);
}

/* Moves jobs from the backlog into slots, as far as there are slots, places in
   the ring and memory. Called whenever one of these may have come free. The
   guard is held. Jobs that were cancelled while they waited are put on the
   list `ended` instead. */
CONC__PRIVATE void conc__procpool_pump(conc__pool_data *p, conc_task **ended) {
  conc__procpool *procs = p->procs;
  conc__procpool_shared *s = procs->shared;
  conc_task *t;
  CONC__CHECK(conc__mutex_is_held(&p->guard));
  while ((t = p->backlog.first) != NULL) {
    unsigned i = procs->free;
    unsigned next;
    if (t->actor != NULL) { /* cancelled */
      conc__procpool_drop(conc__backlog_take(&p->backlog), -ECANCELED, ended);
      continue;
    }
    /* The job waits, and so do those behind it, in their order: what it waits
       for comes free when another job ends. */
    if (i == CONC__JOB_SLOTS ||
        s->tail - CONC__LOAD(&s->head) >= CONC__JOB_SLOT_RING)
      return;
    next = procs->jobs[i].next;
    if (t->size > CONC__JOB_SLOT_BYTES &&
        !conc__procpool_block_alloc(p, i, t->size))
      return;
    procs->free = next;
    conc__procpool_slot_fill(procs, i, conc__backlog_take(&p->backlog));
    conc__procpool_wake_worker(procs, p->n);
  }
}

/* Rings for the keeper. */
CONC__PRIVATE void conc__procpool_wake_keeper(conc__procpool *procs) {
  __atomic_store_n(&procs->shared->bell, 1u, __ATOMIC_SEQ_CST);
  conc__shared_wake(&procs->shared->bell, 1);
}

/* --- in the parent: how jobs end --- */

/* Ends a job, without the guard, since callbacks may submit others. The job
   may be freed from then on; the pool may not, since it counts the job until
   the end of this. */
CONC__PRIVATE void conc__procpool_finish_job(conc__pool_data *p, conc_task *t,
                                             void *result, int status) {
  conc__task_finish(t, result, status);
  conc__mutex_lock(&p->guard);
  CONC__CHECK(p->procs->unfinished > 0);
  if (--p->procs->unfinished == 0 && (CONC__LOAD(&p->inbox) & CONC__CLOSED))
    conc__procpool_wake_keeper(p->procs);
  conc__mutex_unlock(&p->guard);
}

/* Ends the jobs on a list of conc__procpool_drop. Without the guard. */
CONC__PRIVATE void conc__procpool_finish_jobs(conc__pool_data *p,
                                              conc_task *ended) {
  while (ended != NULL) {
    conc_task *next = ended->next;
    conc__procpool_finish_job(p, ended, NULL, ended->status);
    ended = next;
  }
}

/* Slot i, whose word was `seen`, is over: takes it, copies back what a DONE
   one has, and ends its job, with `status` if it is not DONE; or, if `again`,
   puts the job back, to be run once more. False if the word has changed
   meanwhile: another thread, or the worker, was faster, and nothing has
   happened. Without the guard. */
CONC__PRIVATE bool conc__procpool_slot_end(conc__pool_data *p, unsigned i,
                                           uint64_t seen, int status,
                                           int exitcode, bool again) {
  conc__procpool *procs = p->procs;
  conc__procpool_slot *slot = &procs->shared->slots[i];
  conc_task *ended = NULL;
  void *result = NULL;
  conc_task *t;
  /* The swap decides which thread ends the job. FREE here does not yet mean
     that the slot may be used: it is on the list of free ones only below. */
  if (!CONC__CAS(&slot->state, &seen,
                 CONC__JOB_SLOT_WORD(0, 0, CONC__JOB_SLOT_FREE)))
    return false;
  t = procs->jobs[i].task;
  if (conc__job_slot_state(seen) == CONC__JOB_SLOT_DONE) {
    if (t->size > 0)
      memcpy(t->arg, conc__procpool_argument(slot, procs->memory), t->size);
    result = slot->result;
    status = slot->status;
  }
  t->pid = slot->pid;
  t->exitcode = exitcode;
  conc__mutex_lock(&p->guard);
  /* After the argument was copied out of the block. */
  conc__procpool_slot_free(p, i);
  if (again) {
    t->as.job.slot = CONC__JOB_WAITS;
    t->as.job.retries--;
    conc__backlog_put_back(&p->backlog, t);
  }
  conc__procpool_pump(p, &ended);
  conc__mutex_unlock(&p->guard);
  if (!again) conc__procpool_finish_job(p, t, result, status);
  conc__procpool_finish_jobs(p, ended);
  return true;
}

/* Takes all slots that are noted as done. A thread that is not the keeper
   leaves those to it whose end runs code of the program (a callback, or what a
   group does): that is not for a thread that merely waits for a job of its
   own. */
CONC__PRIVATE void conc__procpool_collect(conc__pool_data *p, bool keeper) {
  conc__procpool *procs = p->procs;
  conc__procpool_shared *s = procs->shared;
  unsigned k;
  for (k = 0; k < CONC__JOB_SLOTS / 64; k++) {
    uint64_t bits = 0;
    if (__atomic_load_n(&s->done[k], __ATOMIC_SEQ_CST) != 0)
      bits = __atomic_exchange_n(&s->done[k], (uint64_t)0, __ATOMIC_SEQ_CST);
    for (; bits != 0; bits &= bits - 1) {
      unsigned i = k * 64 + conc__lowest_bit(bits);
      uint64_t seen = CONC__LOAD(&s->slots[i].state);
      bool leave = false;
      /* Another thread has taken it already, or the keeper at a burial. */
      if (conc__job_slot_state(seen) != CONC__JOB_SLOT_DONE) continue;
      /* The task may be looked at only under the guard, by which it is still
         in the slot. */
      if (!keeper) {
        conc__mutex_lock(&p->guard);
        leave = procs->jobs[i].task != NULL &&
                (procs->jobs[i].task->callback != NULL ||
                 procs->jobs[i].task->group != NULL);
        conc__mutex_unlock(&p->guard);
      }
      if (leave) {
        __atomic_fetch_or(&s->done[k], (uint64_t)1 << i % 64,
                          __ATOMIC_SEQ_CST);
        conc__procpool_wake_keeper(procs);
      } else {
        conc__procpool_slot_end(p, i, seen, 0, CONC_NO_EXITCODE, false);
      }
    }
  }
}

/* Whether there is a note. SEQ_CST: see the head of this room. */
CONC__PRIVATE bool conc__procpool_is_done(conc__procpool_shared *s) {
  unsigned k;
  for (k = 0; k < CONC__JOB_SLOTS / 64; k++)
    if (__atomic_load_n(&s->done[k], __ATOMIC_SEQ_CST) != 0) return true;
  return false;
}

/* --- in the parent: helping, and cancelling --- */

/* The pool of a job, or NULL if the job has ended. Until conc__procpool_leave
   the pool is not freed: it awaits the end of the job, which takes the guard
   that is held here, and then the keeper awaits that there are no users. */
CONC__PRIVATE conc__pool_data *conc__procpool_enter(conc_task *t) {
  conc__mutex *guard = conc__mutex_of(&t->done);
  conc__pool_data *p = NULL;
  conc__mutex_lock(guard);
  if (conc__event_await(&t->done)) {
    p = t->as.job.pool;
    __atomic_add_fetch(&p->procs->users, 1u, __ATOMIC_SEQ_CST);
  }
  conc__mutex_unlock(guard);
  return p;
}

/* The last touch of the pool. */
CONC__PRIVATE void conc__procpool_leave(conc__pool_data *p) {
  __atomic_sub_fetch(&p->procs->users, 1u, __ATOMIC_SEQ_CST);
}

/* The help of a job's kind (see conc__kind): a thread that is about to wait
   for a job spins for a moment, and takes finished slots itself. That saves
   the wake-up of the keeper and then of this thread. Coroutines do not
   spin. */
CONC__PRIVATE void conc__procpool_help(conc_task *task) {
  conc__actor *self = conc__self();
  conc__pool_data *p;
  conc__spin spin;
  bool paid = false;
  if (!self->ops->blocks || conc__pool_is_gone(task->as.job.pool)) return;
  conc__spin_begin(&spin, &self->spin_failed, CONC__NEVER);
  if (spin.end <= 0) return; /* the wait that follows does the learning */
  p = conc__procpool_enter(task);
  if (p == NULL) return;
  __atomic_add_fetch(&p->procs->shared->awake, 1u, __ATOMIC_SEQ_CST);
  while (!paid && conc__spin_again(&spin, 1)) {
    conc__procpool_collect(p, false);
    paid = conc_event_is_set(&task->done);
  }
  /* A worker that has seen this thread awake did not ring: so the last one
     that goes looks for notes after it has lowered the count. */
  if (__atomic_sub_fetch(&p->procs->shared->awake, 1u, __ATOMIC_SEQ_CST) ==
          0 &&
      conc__procpool_is_done(p->procs->shared))
    conc__procpool_wake_keeper(p->procs);
  conc__procpool_leave(p);
  conc__spin_end(&spin, paid);
}

/* Kills the worker that runs slot i, whose word was `seen`, if it still does:
   its job then ends with `reason`. The guard is held: without it two that
   condemn one slot could mix up their reasons. */
CONC__PRIVATE bool conc__procpool_condemn(conc__pool_data *p, unsigned i,
                                          uint64_t seen, int reason) {
  size_t w = conc__job_slot_worker(seen);
  CONC__CHECK(conc__mutex_is_held(&p->guard));
  if (conc__job_slot_state(seen) != CONC__JOB_SLOT_CLAIMED) return false;
  /* The reason comes before the word: the keeper reads it when it finds the
     word. */
  p->procs->jobs[i].reason = reason;
  if (!CONC__CAS(&p->procs->shared->slots[i].state, &seen,
                 CONC__JOB_SLOT_WORD(seen >> 24, w, CONC__JOB_SLOT_CONDEMNED)))
    return false;
  /* From the swap on the worker cannot finish the job, nor take another one:
     it waits for this signal. So the signal meets no other job. */
  conc_kill(&p->procs->processes[w].task);
  return true;
}

/* Cancels a job: takes it back if it has not begun; if it has, and `kill`,
   kills its worker. 0, -ESRCH if the job has ended, or is about to. */
CONC__PRIVATE int conc__procpool_cancel(conc_task *t, bool kill) {
  conc__pool_data *p = conc__procpool_enter(t);
  uint64_t seen = 0;
  int i;
  if (p == NULL) return -ESRCH;
  conc__mutex_lock(&p->guard);
  i = t->as.job.slot;
  /* In the backlog: the pump finds this mark, and ends the job when it comes
     to it. */
  if (i == CONC__JOB_WAITS) t->actor = CONC__NEVER_BEGIN;
  if (i >= 0) seen = CONC__LOAD(&p->procs->shared->slots[i].state);
  conc__mutex_unlock(&p->guard);
  /* In a slot: if a worker claims it at this moment, taking it back fails. */
  if (i >= 0 &&
      (conc__job_slot_state(seen) != CONC__JOB_SLOT_READY ||
       !conc__procpool_slot_end(p, (unsigned)i, seen, -ECANCELED,
                                CONC_NO_EXITCODE, false)) &&
      kill) {
    conc__mutex_lock(&p->guard);
    /* The slot may have another job by now, after this one has ended. */
    if (t->as.job.slot == i)
      conc__procpool_condemn(p, (unsigned)i,
                             CONC__LOAD(&p->procs->shared->slots[i].state),
                             -ECANCELED);
    conc__mutex_unlock(&p->guard);
  }
  conc__procpool_leave(p);
  return i == CONC__JOB_OVER ? -ESRCH : 0;
}

/* conc_cancel of a job of a pool of processes. */
CONC__PRIVATE int conc__remote_job_cancel(conc_task *t) {
  return conc__procpool_cancel(t, true);
}

/* A job of a process of a pool, as its submitter sees it. */
static const conc__kind conc__remote_job_kind = {
    "Job", true, false, false, conc__remote_job_cancel, NULL,
    conc__pool_await, conc__job_end_if_owner_gone, conc__procpool_help};

/* --- in the parent: replacing workers --- */

/* The callback of a worker's process, called by the reaper, which must not be
   held up: leaves the burial to the keeper. In a forked child the process
   ends, too, but the pool is gone there. */
CONC__PRIVATE void conc__procpool_process_ended(conc_task *t, int status,
                                                void *result) {
  conc__procpool_process *process = (conc__procpool_process *)(void *)t;
  (void)status, (void)result;
  if (conc__pool_is_gone(process->pool)) return;
  CONC__STORE(&process->ended, true);
  conc__procpool_wake_keeper(process->pool->procs);
}

/* Starts, or replaces, a worker. 0 or negative errno. */
CONC__PRIVATE int
conc__procpool_process_start(conc__procpool_process *process) {
  conc__procpool *procs = process->pool->procs;
  int rc;
  /* Before the start: afterwards they are the new process's, and the
     reaper's. */
  CONC__STORE(&procs->workers[process->index].ready, false);
  process->ended = false;
  rc = conc_process_start(&process->task);
  process->runs = rc == 0;
  return rc;
}

/* What a worker that has ended left in slot i: nothing, or a job that is done,
   condemned, or cut short. This last one is run again if it may be, unless the
   pool is terminated. False: the word has changed meanwhile, since the job was
   condemned just now; look again. */
CONC__PRIVATE bool conc__procpool_slot_bury(conc__pool_data *p, unsigned i,
                                            size_t worker, int exitcode,
                                            bool terminated) {
  conc__procpool_job *j = &p->procs->jobs[i];
  uint64_t seen = CONC__LOAD(&p->procs->shared->slots[i].state);
  unsigned state = conc__job_slot_state(seen);
  if (state < CONC__JOB_SLOT_CLAIMED || conc__job_slot_worker(seen) != worker)
    return true;
  if (state == CONC__JOB_SLOT_CLAIMED)
    return conc__procpool_slot_end(p, i, seen,
                                   terminated ? -ECANCELED : -ECHILD, exitcode,
                                   !terminated && j->task->as.job.retries > 0);
  if (state == CONC__JOB_SLOT_CONDEMNED)
    conc__procpool_slot_end(p, i, seen, j->reason, exitcode, false);
  else conc__procpool_slot_end(p, i, seen, 0, CONC_NO_EXITCODE, false);
  return true;
}

/* A worker has ended: joins its process, and ends what it had. It had one slot
   claimed or condemned at most. Slots that it left DONE may not have been
   taken yet, the last one because the worker could not note it. */
CONC__PRIVATE void conc__procpool_bury(conc__procpool_process *process) {
  conc__pool_data *p = process->pool;
  conc__procpool *procs = p->procs;
  conc__procpool_shared *s = procs->shared;
  bool terminated;
  int exitcode;
  unsigned i;
  conc__task_join_anyway(&process->task);
  process->runs = false;
  exitcode = conc_exitcode(&process->task);
  /* conc__procpool_kill may have come just before the worker claimed a job,
     and so have condemned none: it ends here as if it had been. */
  terminated = CONC__LOAD(&p->terminated);
  for (i = 0; i < CONC__JOB_SLOTS; i++)
    while (
        !conc__procpool_slot_bury(p, i, process->index, exitcode, terminated))
      continue;
  __atomic_fetch_and(&s->asleep[process->index / 64],
                     ~((uint64_t)1 << process->index % 64), __ATOMIC_SEQ_CST);
  /* A worker that a signal has ended from outside says nothing about the
     initializer. */
  if (CONC__LOAD(&procs->workers[process->index].ready))
    procs->early_deaths = 0;
  else if (exitcode != -SIGKILL && exitcode != -SIGTERM) procs->early_deaths++;
  /* The dead worker may have been woken for a job, and not have taken it: that
     wake-up is passed on. */
  if (CONC__LOAD(&s->head) != CONC__LOAD(&s->tail))
    conc__procpool_wake_worker(procs, p->n);
}

/* Buries workers that have ended, and starts those that do not run, unless the
   pool stops. Returns how many run. If one cannot be started, it is tried
   again after a pause. If workers die again and again before they are ready,
   the pool is broken. */
CONC__PRIVATE size_t conc__procpool_replace_dead(conc__pool_data *p) {
  conc__procpool *procs = p->procs;
  size_t k, count = 0;
  bool failed = false;
  procs->retry_at = CONC__NEVER;
  for (k = 0; k < p->n; k++) {
    conc__procpool_process *process = &procs->processes[k];
    if (process->runs && CONC__LOAD(&process->ended))
      conc__procpool_bury(process);
    if (!process->runs && CONC__LOAD(&procs->shared->stop) == 0 &&
        !procs->broken && !failed)
      failed = conc__procpool_process_start(process) != 0;
    count += process->runs;
  }
  /* A failed start while no worker runs counts as a death, or jobs would wait
     for ever in a system that has no room for processes. */
  if (failed) {
    procs->retry_at = conc_now() + 0.01;
    procs->early_deaths += count == 0;
  }
  if (procs->early_deaths > 16 + 2 * p->n && !procs->broken) {
    conc__mutex_lock(&p->guard);
    procs->broken = -ECHILD;
    conc__mutex_unlock(&p->guard);
  }
  return count;
}

/* --- in the parent: stopping and killing --- */

/* Ends all jobs that have not begun, with this status. Without the guard. */
CONC__PRIVATE void conc__procpool_drop_all(conc__pool_data *p, int status) {
  conc_task *ended = NULL;
  unsigned i;
  conc__mutex_lock(&p->guard);
  while (p->backlog.first != NULL)
    conc__procpool_drop(conc__backlog_take(&p->backlog), status, &ended);
  conc__mutex_unlock(&p->guard);
  conc__procpool_finish_jobs(p, ended);
  for (i = 0; i < CONC__JOB_SLOTS; i++) {
    uint64_t seen = CONC__LOAD(&p->procs->shared->slots[i].state);
    if (conc__job_slot_state(seen) == CONC__JOB_SLOT_READY)
      conc__procpool_slot_end(p, i, seen, status, CONC_NO_EXITCODE, false);
  }
}

/* Has the workers end when there is no job left. Each is rung for: those that
   sleep must look. */
CONC__PRIVATE void conc__procpool_stop(conc__pool_data *p) {
  conc__procpool *procs = p->procs;
  size_t k;
  __atomic_store_n(&procs->shared->stop, 1u, __ATOMIC_SEQ_CST);
  for (k = 0; k < p->n; k++) {
    CONC__STORE(&procs->workers[k].bell, 1u);
    conc__shared_wake(&procs->workers[k].bell, 1);
  }
}

/* Condemns what runs, so that those jobs end with -ECANCELED and not with
   -ECHILD, and kills all workers. */
CONC__PRIVATE void conc__procpool_kill(conc__pool_data *p) {
  conc__procpool *procs = p->procs;
  unsigned i;
  size_t k;
  conc__mutex_lock(&p->guard);
  for (i = 0; i < CONC__JOB_SLOTS; i++)
    conc__procpool_condemn(p, i, CONC__LOAD(&procs->shared->slots[i].state),
                           -ECANCELED);
  conc__mutex_unlock(&p->guard);
  for (k = 0; k < p->n; k++) conc_kill(&procs->processes[k].task);
}

/* Kills workers whose jobs have had their time. Returns when to look again, at
   the latest; CONC__NEVER without a timeout, or if there is no job. */
CONC__PRIVATE double conc__procpool_kill_late(conc__pool_data *p) {
  conc__procpool *procs = p->procs;
  double limit = p->options.timeout;
  double now = limit > 0 ? conc_now() : 0;
  double next = now + limit;
  unsigned i;
  if (limit <= 0) return CONC__NEVER;
  conc__mutex_lock(&p->guard);
  if (procs->unfinished == 0) next = CONC__NEVER;
  for (i = 0; i < CONC__JOB_SLOTS; i++) {
    conc__procpool_slot *slot = &procs->shared->slots[i];
    uint64_t seen = CONC__LOAD(&slot->state);
    double began;
    if (conc__job_slot_state(seen) != CONC__JOB_SLOT_CLAIMED) continue;
    began = 1e-9 * (double)CONC__LOAD(&slot->began);
    if (began <= 0) { /* the worker has just claimed it, or was stopped before
                         it could say so: it counts from now */
      CONC__STORE(&slot->began, (uint64_t)(now * 1e9));
      began = now;
    }
    if (began + limit <= now) conc__procpool_condemn(p, i, seen, -ETIMEDOUT);
    else if (began + limit < next)
      next = began + limit;
  }
  conc__mutex_unlock(&p->guard);
  return next;
}

/* --- in the parent: the keeper --- */

/* Waits until there is something to do, or the deadline. Spins first, as long
   as that pays. Is counted in `awake` but for the sleep: it is lowered first,
   then the bell and the notes are looked at. */
CONC__PRIVATE void conc__procpool_keeper_rest(conc__procpool *procs,
                                              double deadline,
                                              unsigned *round) {
  conc__procpool_shared *s = procs->shared;
  bool paid = false;
  conc__spin spin;
  conc__spin_begin(&spin, &procs->spin_failed, CONC__NEVER);
  while (!paid && conc__spin_again(&spin, 1))
    paid = CONC__LOAD(&s->bell) != 0 || conc__procpool_is_done(s);
  conc__spin_end(&spin, paid);
  if (paid) return;
  __atomic_sub_fetch(&s->awake, 1u, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&s->bell, __ATOMIC_SEQ_CST) == 0 &&
      !conc__procpool_is_done(s))
    conc__procpool_sleep(&s->bell, 0, deadline, (*round)++);
  else *round = 0;
  __atomic_add_fetch(&s->awake, 1u, __ATOMIC_SEQ_CST);
}

/* The keeper's thread: in each turn it takes results, replaces workers, looks
   at timeouts, and sleeps until one of these is due. It ends when the pool is
   closed, no job is left, and all workers have ended: the pool may be freed
   then. */
CONC__PRIVATE void *conc__procpool_keeper_main(void *arg) {
  conc__pool_data *p = (conc__pool_data *)arg;
  conc__procpool *procs = p->procs;
  conc__procpool_shared *s = procs->shared;
  bool killed = false;
  unsigned round = 0;
  for (;;) {
    double deadline;
    size_t count;
    bool idle;
    /* Cleared before all that is looked at below: what rings from here on is
       seen in the next turn. */
    __atomic_store_n(&s->bell, 0u, __ATOMIC_SEQ_CST);
    conc__procpool_collect(p, true);
    if (CONC__LOAD(&p->terminated) && !killed) {
      conc__procpool_stop(p);
      conc__procpool_kill(p);
      killed = true;
    }
    /* After the collecting: what a dead worker has noted is taken, and what it
       has not, its burial finds. */
    count = conc__procpool_replace_dead(p);
    if (killed || procs->broken)
      conc__procpool_drop_all(p, killed ? -ECANCELED : -ECHILD);
    conc__mutex_lock(&p->guard);
    /* Under the guard: a submit adds its job under it, unless the inbox is
       closed. So once this is true it stays true. */
    idle = procs->unfinished == 0 && (CONC__LOAD(&p->inbox) & CONC__CLOSED);
    conc__mutex_unlock(&p->guard);
    if (idle) {
      /* Workers are stopped only now: a job that is put back, for a retry,
         needs one. */
      if (CONC__LOAD(&s->stop) == 0) conc__procpool_stop(p);
      if (count == 0) break;
    }
    deadline = conc__procpool_kill_late(p);
    if (procs->retry_at < deadline) deadline = procs->retry_at;
    conc__procpool_keeper_rest(procs, deadline, &round);
  }
  /* Threads that came for a job that has ended meanwhile: they have a few
     instructions to go. */
  while (CONC__LOAD(&procs->users) != 0) sched_yield();
  return NULL;
}

/* --- in the parent: the life of the pool --- */

/* Frees a pool of either kind; also as much of one of processes as could be
   made. */
CONC__PRIVATE void conc__procpool_free(conc__pool_data *p) {
  conc__procpool *procs = p->procs;
  if (procs != NULL) {
    if (procs->shared != NULL) conc_shared_free(procs->shared);
    CONC_FREE(procs->processes);
    CONC_FREE(procs);
  }
  conc__pool_free(p);
}

/* Fills in a worker's process. It is a daemon, so that workers do not outlive
   the parent. */
CONC__PRIVATE void conc__procpool_process_init(conc__procpool_process *process,
                                               conc__pool_data *p,
                                               size_t index) {
  process->pool = p;
  process->index = index;
  snprintf(process->name, sizeof process->name, "PoolWorker-%lu",
           (unsigned long)(index + 1));
  process->task.name = process->name;
  process->task.target = conc__procpool_worker_main;
  process->task.arg = process;
  process->task.daemon = true;
  process->task.callback = conc__procpool_process_ended;
}

/* Makes all that a pool of processes needs, and starts nothing. 0 or negative
   errno, after which conc__procpool_free frees what there is. */
CONC__PRIVATE int conc__procpool_new(conc__pool_data *p) {
  conc__procpool *procs = (conc__procpool *)CONC_MALLOC(sizeof *procs);
  size_t n = p->n;
  size_t size =
      sizeof(conc__procpool_shared) + n * sizeof(conc__procpool_worker);
  size_t k;
  if (procs == NULL) return -ENOMEM;
  memset(procs, 0, sizeof *procs);
  /* From here on conc__procpool_free finds what has been made. */
  p->procs = procs;
  if (p->options.max_bytes == 0) p->options.max_bytes = (size_t)256 << 20;
  procs->memory_size = p->options.max_bytes;
  size = (size + 63) & ~(size_t)63;
  /* The memory is shared, and used page by page as arguments need it: a large
     limit costs nothing at first. */
  if (procs->memory_size > SIZE_MAX / 4) return -ENOMEM;
  procs->memory_size = (procs->memory_size + 63) & ~(size_t)63;
  procs->shared =
      (conc__procpool_shared *)conc_shared_alloc(size + procs->memory_size);
  if (procs->shared == NULL) return -errno;
  procs->workers = (conc__procpool_worker *)(void *)(procs->shared + 1);
  procs->memory = (char *)procs->shared + size;
  procs->processes =
      (conc__procpool_process *)CONC_MALLOC(n * sizeof *procs->processes);
  if (procs->processes == NULL) return -ENOMEM;
  memset(procs->processes, 0, n * sizeof *procs->processes);
  for (k = 0; k < n; k++)
    conc__procpool_process_init(&procs->processes[k], p, k);
  /* All slots are free: a list that ends with CONC__JOB_SLOTS. There is no
     block. */
  for (k = 0; k < CONC__JOB_SLOTS; k++) procs->jobs[k].next = (unsigned)k + 1;
  procs->blocks = CONC__JOB_SLOTS;
  procs->shared->awake = 1; /* the keeper */
  procs->keeper.target = conc__procpool_keeper_main;
  procs->keeper.arg = p;
  procs->keeper.name = "PoolKeeper";
  return 0;
}

/* Starts a pool of n processes. Workers are forked before the keeper begins,
   from the caller's thread. 0 or negative errno, after which nothing is
   left. */
CONC__PRIVATE int conc__procpool_start(conc_pool *pool, size_t n) {
  conc__pool_data *p;
  size_t k;
  int rc;
  if (n > CONC__PROCPOOL_WORKERS) return -EINVAL;
  p = conc__pool_new(pool, 0, false);
  if (p == NULL) return -ENOMEM;
  p->n = n;
  p->workers = NULL;
  rc = conc__procpool_new(p);
  /* Before the workers are forked: in them a job that submits to its own pool
     finds that it is not theirs (-ECHILD), and not that it has not begun. */
  CONC__STORE(&pool->state, p);
  for (k = 0; k < n && rc == 0; k++)
    rc = conc__procpool_process_start(&p->procs->processes[k]);
  if (rc == 0) rc = conc_thread_start(&p->procs->keeper);
  if (rc == 0) return 0;
  CONC__STORE(&pool->state, (conc__pool_data *)NULL);
  for (k = 0; p->procs != NULL && p->procs->processes != NULL && k < n; k++) {
    conc__procpool_process *process = &p->procs->processes[k];
    if (!process->runs) continue;
    conc_kill(&process->task);
    conc__task_join_anyway(&process->task);
  }
  conc__procpool_free(p);
  return rc;
}

/* --- in the parent: handing in a job, and closing --- */

/* Hands in a job; `is_chunk`: it is the task of a conc__chunk. 0, or an error,
   after which the job is as if new. */
CONC__PRIVATE int conc__procpool_submit(conc__pool_data *p, conc_task *job,
                                        bool is_chunk) {
  conc__procpool *procs = p->procs;
  conc_task *ended = NULL;
  bool first = false;
  int rc = conc__task_begin(job, &conc__remote_job_kind);
  if (rc != 0) return rc;
  if (job->size > p->options.max_bytes) rc = -EMSGSIZE;
  CONC__STORE_RELAXED(&job->id, p->id);
  job->pid = 0;
  job->exitcode = CONC_NO_EXITCODE;
  job->as.job.pool = p;
  job->as.job.slot = CONC__JOB_WAITS;
  job->as.job.retries = p->options.retries;
  job->as.job.is_chunk = is_chunk;
  job->next = NULL;
  /* The closing is under the guard, too: the keeper, which sees it, sees the
     job. */
  conc__mutex_lock(&p->guard);
  if (CONC__LOAD(&p->inbox) & CONC__CLOSED) rc = -EPIPE;
  if (rc == 0) rc = procs->broken;
  if (rc == 0) {
    conc__backlog_append(&p->backlog, job, &job->next);
    first = procs->unfinished++ == 0;
    conc__procpool_pump(p, &ended);
  }
  conc__mutex_unlock(&p->guard);
  if (rc != 0) conc__task_start_failed(job);
  /* The keeper slept without a deadline while there was no job. */
  if (first && p->options.timeout > 0) conc__procpool_wake_keeper(procs);
  conc__procpool_finish_jobs(p, ended);
  return rc;
}

/* Closes the pool for jobs; `now`: and terminates it. The keeper does what
   follows from that. */
CONC__PRIVATE void conc__procpool_shut(conc__pool_data *p, bool now) {
  conc__mutex_lock(&p->guard);
  __atomic_fetch_or(&p->inbox, CONC__CLOSED, __ATOMIC_SEQ_CST);
  if (now) CONC__STORE(&p->terminated, true);
  conc__mutex_unlock(&p->guard);
  conc__procpool_wake_keeper(p->procs);
}

/* Waits until the keeper has ended: then the workers have. 0, -ETIMEDOUT,
   -ECANCELED. */
CONC__PRIVATE int conc__procpool_join(conc__pool_data *p, double timeout) {
  return conc__task_await(&p->procs->keeper, false, timeout);
}

/* ---------------------------------------------------------------------------
   >>pool: conc_pool, map and imap, conc_offload

   Holds: the public calls of pools, which choose between threads and processes
   (.procs of the state), and what is built of many jobs.
   Uses: >>jobs and >>procpool.
   Used by: nothing in the library.
   Each call looks first whether the pool is of another process: a child finds
   it ended, and touches nothing of it.
   ------------------------------------------------------------------------ */

/* --- the calls of a pool --- */

/* The state is set by what starts each kind, which knows when workers may find
   it. */
CONC_API int conc_pool_start(conc_pool *pool) {
  conc__pool_data *old = pool->state;
  size_t n = pool->workers > 0 ? pool->workers : (size_t)conc_cpu_count();
  pthread_once(&conc__pool_once, conc__pool_init_once);
  conc__self();
  if (old != NULL && !conc__pool_is_gone(old)) return -EBUSY;
  /* It has stayed behind in the parent: this is our copy of its memory. */
  if (old != NULL) conc__procpool_free(old);
  pool->state = NULL;
  if (pool->kind == CONC_THREAD) return conc__pool_start_threads(pool, n);
  if (pool->kind == CONC_PROCESS) return conc__procpool_start(pool, n);
  return -EINVAL;
}

CONC_API int conc_pool_submit(conc_pool *pool, conc_task *job) {
  conc__pool_data *p = CONC__LOAD(&pool->state);
  if (CONC__UNLIKELY(p == NULL)) return -EINVAL;
  /* The caller is not a job of a thread of this pool, which would be proof
     that the pool is here and has threads. */
  if (conc__worker_of(p) == NULL) {
    if (CONC__UNLIKELY(conc__pool_is_gone(p))) return -ECHILD;
    if (p->procs != NULL) return conc__procpool_submit(p, job, false);
  }
  return conc__pool_submit_thread(p, job);
}

CONC_API int conc_pool_apply(conc_pool *pool, conc_task *job, double timeout) {
  int rc = conc_pool_submit(pool, job);
  return rc != 0 ? rc : conc_join(job, timeout);
}

/* In a forked child the pool has ended: there is nothing to close. */
CONC_API int conc_pool_close(conc_pool *pool) {
  conc__pool_data *p = CONC__LOAD(&pool->state);
  if (p == NULL) return -EINVAL;
  if (conc__pool_is_gone(p)) return 0;
  if (p->procs != NULL) conc__procpool_shut(p, false);
  else
    conc__pool_shut(p);
  return 0;
}

/* Processes are left to the keeper; threads are poked, and waiting jobs ended,
   by the caller. */
CONC_API int conc_pool_terminate(conc_pool *pool) {
  conc__pool_data *p = CONC__LOAD(&pool->state);
  if (p == NULL) return -EINVAL;
  if (conc__pool_is_gone(p)) return 0;
  if (p->procs != NULL) conc__procpool_shut(p, true);
  else
    conc__pool_stop(p);
  return 0;
}

/* Waits for the keeper, which ends after its workers, or for each worker
   thread. Called again after a timeout, it finds those that have ended
   meanwhile at once. A worker of the pool would wait for itself. The state is
   withdrawn, then freed: the manual forbids other calls meanwhile. */
CONC_API int conc_pool_join(conc_pool *pool, double timeout) {
  conc__pool_data *p = CONC__LOAD(&pool->state);
  double deadline = conc__deadline(timeout);
  size_t i;
  int rc = 0;
  if (p == NULL) return -EINVAL;
  /* A pool that has stayed behind needs no wait: there is only our copy of its
     memory to be freed. */
  if (!conc__pool_is_gone(p)) {
    if (conc__worker_of(p) != NULL) return -EDEADLK;
    if (!(CONC__LOAD(&p->inbox) & CONC__CLOSED)) return -EINVAL;
    if (p->procs != NULL)
      rc = conc__procpool_join(p, conc__remaining(deadline));
    CONC__CHECK(p->procs == NULL || p->started == 0);
    for (i = 0; i < p->started && rc == 0; i++)
      rc = conc__task_await(&p->workers[i].task, false,
                            conc__remaining(deadline));
    if (rc != 0) return rc;
  }
  pool->state = NULL;
  conc__procpool_free(p);
  return 0;
}

/* --- map --- */

/* A call of conc_pool_map, on its caller's stack. Processes get one job for
   each chunk. Threads get one job for each worker, of which each takes chunks
   until there are none. */
typedef struct conc__map {
  conc__pool_data *pool;
  conc_fn *fn;
  char *items;
  size_t size;  /* bytes of an item */
  size_t n;     /* items */
  size_t chunk; /* items that are taken at a time */
  CONC__APART(1);
  size_t next; /* the first item that no thread has taken; n or more: none.
                  Raised by threads; set to n to stop them */
  CONC__APART(2);
} conc__map;

/* The job of a thread: takes chunks until there are none. Relaxed: what the
   items are was written before the jobs were handed in. */
CONC__PRIVATE void *conc__map_main(void *arg) {
  conc__map *m = (conc__map *)arg;
  size_t i, end;
  while ((i = __atomic_fetch_add(&m->next, m->chunk, __ATOMIC_RELAXED)) <
         m->n) {
    end = m->n - i > m->chunk ? i + m->chunk : m->n;
    /* conc_pool_terminate: what has not begun does not begin, and the job says
       so. */
    if (CONC__LOAD_RELAXED(&m->pool->terminated)) {
      conc_set_status(-ECANCELED);
      break;
    }
    for (; i < end; i++) m->fn(m->items + i * m->size);
  }
  return NULL;
}

enum {
  CONC__MAP_FEW = 8,        /* jobs of which the tasks are on the stack */
  CONC__MAP_BYTES = 1 << 20 /* of a chunk for a process, at most: it is copied
                               as one, and others wait for its place */
};

/* The plan: sets the size of a chunk, by `chunk` of the pool or so that each
   worker gets four. Returns how many jobs that makes. */
CONC__PRIVATE size_t conc__map_plan(conc__map *m, size_t chunk) {
  conc__pool_data *p = m->pool;
  size_t count;
  m->chunk = chunk > 0 ? chunk : (m->n - 1) / (4 * p->n) + 1;
  /* Threads copy nothing: their chunks may be as large as they like. */
  if (p->procs != NULL && m->chunk > CONC__MAP_BYTES / m->size)
    m->chunk = CONC__MAP_BYTES > m->size ? CONC__MAP_BYTES / m->size : 1;
  count = (m->n - 1) / m->chunk + 1;
  return p->procs == NULL && count > p->n ? p->n : count;
}

/* Hands in job i of the plan. 0 or what a submit returns. */
CONC__PRIVATE int conc__map_submit(conc__map *m, conc__chunk *job, size_t i) {
  conc_task *t = &job->task;
  size_t from = i * m->chunk;
  if (m->pool->procs == NULL) {
    t->target = conc__map_main;
    t->arg = m;
    return conc__pool_submit_thread(m->pool, t);
  }
  t->target = m->fn;
  t->arg = m->items + from * m->size;
  t->size = (m->n - from > m->chunk ? m->chunk : m->n - from) * m->size;
  job->item = m->size;
  return conc__procpool_submit(m->pool, t, true);
}

/* Waits until the first `count` jobs have ended. 0 or the first failure. After
   a failed wait, by which the caller was cancelled, items that have not begun
   are left out; but those that have must end, since the jobs use the caller's
   memory: so the rest of the waiting is shielded. */
CONC__PRIVATE int conc__map_await(conc__map *m, conc__chunk *jobs,
                                  size_t count) {
  conc_scope shield;
  bool cancelled = false;
  int rc = 0;
  size_t i, j;
  for (i = 0; i < count; i++) {
    conc_task *t = &jobs[i].task;
    int failure = conc__task_await(t, false, CONC_FOREVER);
    if (failure != 0 && !cancelled) {
      cancelled = true;
      /* Threads find no more chunks; processes lose the jobs that have not
         begun. */
      CONC__STORE(&m->next, m->n);
      for (j = i; j < count && m->pool->procs != NULL; j++)
        conc__procpool_cancel(&jobs[j].task, false);
      conc_shield(&shield);
      conc__task_await(t, true, CONC_FOREVER);
    }
    /* The wait's failure comes first: it is why jobs have been left out. */
    if (failure == 0) failure = t->status;
    if (rc == 0) rc = failure;
  }
  if (cancelled) conc_scope_end(&shield);
  return rc;
}

/* Plans, submits, awaits. */
CONC_API int conc_pool_map(conc_pool *pool, conc_fn *fn, void *items,
                           size_t size, size_t n) {
  conc__pool_data *p = CONC__LOAD(&pool->state);
  conc__chunk few[CONC__MAP_FEW];
  conc__chunk *jobs = few;
  conc__map m;
  size_t count, i;
  int rc, submitted = 0;
  if (p == NULL || fn == NULL || size == 0) return -EINVAL;
  if (conc__pool_is_gone(p)) return -ECHILD;
  if (n == 0) return 0;
  m.pool = p;
  m.fn = fn;
  m.items = (char *)items;
  m.size = size;
  m.n = n;
  m.next = 0;
  count = conc__map_plan(&m, pool->chunk);
  CONC__CHECK(count > 0 && m.chunk > 0);
  if (count > CONC__MAP_FEW)
    jobs = (conc__chunk *)CONC_MALLOC(count * sizeof *jobs);
  if (jobs == NULL) return -ENOMEM;
  memset(jobs, 0, count * sizeof *jobs);
  for (i = 0; i < count; i++) {
    submitted = conc__map_submit(&m, &jobs[i], i);
    if (submitted != 0) break;
  }
  /* Also after a failed submit: those that were handed in use our memory. */
  rc = conc__map_await(&m, jobs, i);
  if (jobs != few) CONC_FREE(jobs);
  /* Of threads each one that was handed in does all that is left: so without
     the others nothing is missing. */
  if (submitted != 0 && (p->procs != NULL || i == 0)) rc = submitted;
  return rc;
}

/* --- imap --- */

/* Cancels what is left, unless all items have been told, and awaits all,
   shielded: the jobs are in memory that is freed here, and use the
   caller's. */
CONC_API void conc_imap_end(conc_imap *imap) {
  conc_scope shield;
  size_t i;
  if (imap->jobs == NULL) return;
  if (imap->unordered) conc_completed_end(&imap->completed);
  for (i = 0; i < imap->n; i++)
    if (imap->told < imap->n) conc_cancel(&imap->jobs[i]);
  conc_shield(&shield);
  for (i = 0; i < imap->n; i++)
    conc__task_await(&imap->jobs[i], true, CONC_FOREVER);
  conc_scope_end(&shield);
  CONC_FREE(imap->jobs);
  imap->jobs = NULL;
}

/* Begins for both kinds of imap: one job for each item. 0 or an error; then
   the jobs that were handed in already have been cancelled, and have ended.
   (Some may have run.) */
CONC__PRIVATE int conc__imap_begin(conc_imap *imap, conc_pool *pool,
                                   conc_fn *fn, void *items, size_t size,
                                   size_t n, bool unordered) {
  conc_task **tasks = NULL;
  size_t i;
  int rc = 0;
  memset(imap, 0, sizeof *imap);
  if (n == 0) return fn != NULL ? 0 : -EINVAL;
  if (n > SIZE_MAX / sizeof *imap->jobs) return -ENOMEM;
  imap->jobs = (conc_task *)CONC_MALLOC(n * sizeof *imap->jobs);
  if (imap->jobs == NULL) return -ENOMEM;
  memset(imap->jobs, 0, n * sizeof *imap->jobs);
  /* Only for the time of this call: conc_as_completed wants pointers. */
  if (unordered) {
    tasks = (conc_task **)CONC_MALLOC(n * sizeof *tasks);
    if (tasks == NULL) rc = -ENOMEM;
  }
  for (i = 0; i < n && rc == 0; i++) {
    conc_task *t = &imap->jobs[i];
    t->target = fn;
    t->arg = (char *)items + i * size;
    t->size = size;
    rc = conc_pool_submit(pool, t);
    if (rc != 0) break;
    if (unordered) tasks[i] = t;
  }
  imap->n = i; /* that were handed in: conc_imap_end looks at no others */
  if (rc == 0 && unordered) {
    /* After all have been handed in: it needs tasks that were started. It
       copies the array. */
    rc = conc_as_completed(&imap->completed, tasks, n, CONC_FOREVER);
    imap->unordered = rc == 0;
  }
  CONC_FREE(tasks);
  if (rc != 0) {
    conc_imap_end(imap);
    imap->n = 0;
  }
  return rc;
}

CONC_API int conc_pool_imap(conc_imap *imap, conc_pool *pool, conc_fn *fn,
                            void *items, size_t size, size_t n) {
  return conc__imap_begin(imap, pool, fn, items, size, n, false);
}

CONC_API int conc_pool_imap_unordered(conc_imap *imap, conc_pool *pool,
                                      conc_fn *fn, void *items, size_t size,
                                      size_t n) {
  return conc__imap_begin(imap, pool, fn, items, size, n, true);
}

/* In the order of the items each job is awaited by itself; unordered by
   conc_completed_next, which has the time limit of this call, not of the
   beginning. */
CONC_API int conc_imap_next(conc_imap *imap, void **item, double timeout) {
  conc_task *t;
  int rc;
  *item = NULL;
  if (imap->told == imap->n) {
    conc_imap_end(imap);
    return -EPIPE;
  }
  t = &imap->jobs[imap->told];
  if (imap->unordered) {
    imap->completed.deadline = conc__deadline(timeout);
    rc = conc_completed_next(&imap->completed, &t);
  } else {
    rc = conc__task_await(t, false, timeout);
  }
  if (rc != 0) return rc;
  imap->told++;
  *item = t->arg;
  return t->status;
}

/* --- conc_offload --- */

/* Made by the first that needs it, and published by a swap; another one takes
   its place in a forked child. NULL at first. */
static conc__pool_data *conc__offload_pool;

/* The pool of conc_offload: threads that are started one by one when none
   rests, up to 32. It is never freed, and so not made by CONC_MALLOC, whose
   users may count. NULL: it cannot be made. */
CONC__PRIVATE conc__pool_data *conc__offload_open(void) {
  conc__pool_data *p = CONC__LOAD(&conc__offload_pool);
  conc__pool_data *made;
  conc_pool options;
  size_t n = (size_t)conc_cpu_count() + 4;
  if (p != NULL && !conc__pool_is_gone(p)) return p;
  pthread_once(&conc__pool_once, conc__pool_init_once);
  memset(&options, 0, sizeof options);
  made = conc__pool_new(&options, n < 32 ? n : 32, true);
  if (made == NULL) return NULL;
  made->lazy = true;
  made->idle.resting = 1; /* so conc__pool_wake calls conc__pool_wake_one,
                             which starts a worker if none rests */
  if (CONC__CAS(&conc__offload_pool, &p, made)) return made;
  conc__pool_free(made); /* another thread was faster */
  return p;
}

/* A coroutine waits for the job, and only then returns: fn may use its stack.
   So the wait after a cancellation is shielded, and the cancellation is passed
   on to the job. */
CONC_API void *conc_offload(conc_fn *fn, void *arg) {
  conc__pool_data *p;
  conc_task job;
  conc_scope shield;
  int rc;
  /* A thread may block: the call is made here. */
  if (conc__self()->ops->blocks) return fn(arg);
  p = conc__offload_open();
  memset(&job, 0, sizeof job);
  job.target = fn;
  job.arg = arg;
  /* The first worker is started before the job is handed in: if there can be
     no thread, the job must not lie there. */
  if (p == NULL ||
      (CONC__LOAD(&p->started) == 0 && conc__pool_start_worker(p) != 0) ||
      conc__pool_submit_thread(p, &job) != 0)
    return fn(arg);
  rc = conc__task_await(&job, false, CONC_FOREVER);
  if (rc != 0) {
    conc_cancel(&job);
    conc_shield(&shield);
    conc__task_await(&job, true, CONC_FOREVER);
    conc_scope_end(&shield);
  }
  return job.result;
}

/* ---------------------------------------------------------------------------
   >>net: frames and authentication

   The connection of Python's multiprocessing: a message is its length (four
   bytes, big-endian; or -1 and eight bytes) and its payload. When a connection
   begins, each side proves that it knows the key: it answers a random
   challenge of the other side with HMAC(key, challenge). Python up to 3.11
   does so with MD5, later versions with the hash that the challenge names; we
   send {sha256} and understand both. The server challenges first:

     server  #CHALLENGE#{sha256}<40 random bytes>
     client  {sha256}<HMAC of what follows #CHALLENGE#>
     server  #WELCOME#, or #FAILURE# and the end
     client  #CHALLENGE#...   and so on, with the parts exchanged

   Until then the peer may be any program: so it can make us read and keep
   CONC__HANDSHAKE_BYTES at most, and learns nothing from the time that a
   refusal takes. Nothing here is asserted of what a peer sends.

   A channel belongs to one task at a time and has no guard. Uses bytes, os and
   io; server and proxy stand on it.
   ------------------------------------------------------------------------ */

#define CONC__CHALLENGE "#CHALLENGE#"
#define CONC__WELCOME "#WELCOME#"
#define CONC__FAILURE "#FAILURE#"
#define CONC__SHA256_PREFIX "{sha256}"
/* The protocol's limit for one message of the handshake, in bytes. */
#define CONC__HANDSHAKE_MESSAGE 256
/* How many bytes are read at most before the handshake is through. */
#define CONC__HANDSHAKE_BYTES 1024

/* A connection and its unread and unsent bytes. */
typedef struct conc__channel {
  int fd;            /* the owner's to close; this struct never does */
  bool tcp;          /* else a unix socket */
  bool eager;        /* in a handshake: small messages in both directions */
  bool waited;       /* set by a flush that had to wait, and by the server,
                        which clears it: edges may have gone unseen */
  size_t read_limit; /* bytes that may still be read; SIZE_MAX: any number */
  size_t in_frame;   /* bytes of the frame that was received last, its header
                        counted. They stand right before in.first until more
                        is read. 0: none, or received again */
  conc__buffer in;   /* what was read; frames are taken from its front */
  conc__buffer out;  /* frames to be sent, whole but for the last */
} conc__channel;

/* Makes a channel of a connected, non-blocking socket. Cannot fail: memory is
   had when there is something to keep. */
CONC__PRIVATE void conc__channel_init(conc__channel *ch, int fd) {
  struct sockaddr_storage a;
  socklen_t size = (socklen_t)sizeof a;
  memset(ch, 0, sizeof *ch);
  ch->fd = fd;
  ch->read_limit = SIZE_MAX;
  ch->tcp = getsockname(fd, (struct sockaddr *)&a, &size) == 0 &&
            a.ss_family != AF_UNIX;
}

CONC__PRIVATE void conc__channel_free(conc__channel *ch) {
  conc__buffer_free(&ch->in);
  conc__buffer_free(&ch->out);
}

/* Acknowledges at once what has come. Python writes without TCP_NODELAY: a
   small message after another one waits at its side until the first has been
   acknowledged, and Linux delays the acknowledgement by 40 ms unless it is
   asked not to. It must be asked each time. That is done only where two
   messages follow each other: in the handshake, and between the length and the
   payload of a long message. */
CONC__PRIVATE void conc__channel_quickack(conc__channel *ch) {
#ifdef TCP_QUICKACK
  int one = 1;
  if (ch->tcp)
    setsockopt(ch->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
#else
  (void)ch;
#endif
}

/* --- frames --- */

/* Begins a frame at the end of a buffer: what is appended next is its payload.
   Its place goes to *at, for conc__frame_end. 0 or -ENOMEM. */
CONC__PRIVATE int conc__frame_begin(conc__buffer *b, size_t *at) {
  *at = b->size;
  return conc__buffer_append(b, "\0\0\0\0", 4);
}

/* Ends the frame that begins at `at`: its length is known now. 0 or -ENOMEM,
   which only a frame of more than 2 GiB can meet. */
CONC__PRIVATE int conc__frame_end(conc__buffer *b, size_t at) {
  uint64_t n = b->size - at - 4;
  size_t width = 4;
  size_t i;
  CONC__CHECK(b->size >= at + 4);
  if (n > 0x7fffffff) { /* the long form: make room for eight bytes more */
    int rc = conc__buffer_reserve(b, 8);
    if (rc != 0) return rc;
    memmove(b->data + at + 12, b->data + at + 4, (size_t)n);
    b->size += 8;
    memset(b->data + at, 0xff, 4);
    at += 4;
    width = 8;
  }
  for (i = width; i-- > 0; n >>= 8) b->data[at + i] = (unsigned char)n;
  return 0;
}

/* Appends a whole frame. 0 or -ENOMEM, and then a part of it may be there: the
   connection must not go on. */
CONC__PRIVATE int conc__frame_append(conc__buffer *b, const void *data,
                                     size_t size) {
  size_t at;
  int rc = conc__frame_begin(b, &at);
  if (rc == 0) rc = conc__buffer_append(b, data, size);
  return rc != 0 ? rc : conc__frame_end(b, at);
}

/* Finds the frame at the beginning of `size` bytes. Returns how many bytes it
   has, its header counted, which may be more than there are; 0 if that is not
   known yet; -EPROTO for a length that is none, -EMSGSIZE if its payload is
   longer than `limit`. *payload is where its payload begins. */
CONC__PRIVATE ssize_t conc__frame_parse(const unsigned char *p, size_t size,
                                        size_t limit, size_t *payload) {
  uint64_t n = 0;
  size_t i;
  if (size < 4) return 0;
  *payload = 4;
  for (i = 0; i < 4; i++) n = n << 8 | p[i];
  if (n == 0xffffffff) {
    if (size < 12) return 0;
    *payload = 12;
    n = 0;
    for (i = 4; i < 12; i++) n = n << 8 | p[i];
  } else if (n > 0x7fffffff) {
    return -EPROTO;
  }
  /* The second bound keeps the sum below from overflowing, also where size_t
     has 32 bits and the caller has no limit. */
  if (n > limit || n > SIZE_MAX / 4) return -EMSGSIZE;
  return (ssize_t)((size_t)n + *payload);
}

/* --- reading and writing --- */

/* The next frame, if all of it is there: 1 and its payload, which stays valid
   until the next read from the channel; 0 and in *size how many bytes are
   missing at least; negative errno, as conc__frame_parse. */
CONC__PRIVATE int conc__channel_next(conc__channel *ch, size_t limit,
                                     const unsigned char **payload,
                                     size_t *size) {
  size_t have = conc__buffer_count(&ch->in);
  const unsigned char *p = have > 0 ? ch->in.data + ch->in.first : NULL;
  size_t start = 0;
  ssize_t n = have == 0 ? 0 : conc__frame_parse(p, have, limit, &start);
  if (n < 0) return (int)n;
  if (n == 0 || (size_t)n > have) {
    *size = n == 0 ? 4 : (size_t)n - have;
    return 0;
  }
  *payload = p + start;
  *size = (size_t)n - start;
  ch->in.first += (size_t)n;
  ch->in_frame = (size_t)n;
  return 1;
}

/* The frame that was received last is to be received again. Nothing was read
   from the channel since, so it is still in the buffer. */
CONC__PRIVATE void conc__channel_unread(conc__channel *ch) {
  CONC__CHECK(ch->in_frame <= ch->in.first);
  ch->in.first -= ch->in_frame;
  ch->in_frame = 0;
}

/* Whether anything of the next frame has come, to this process or to the
   system: then a peer that lives is sending it. */
CONC__PRIVATE bool conc__channel_has_begun(const conc__channel *ch) {
  unsigned char byte;
  return conc__buffer_count(&ch->in) > 0 ||
         recv(ch->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* Makes room for what is missing of a frame, or for a part of that: memory
   grows with what has arrived and not with what a header claims, so a peer
   that announces a gigabyte gets 64 KiB until it has sent as much. 0 or
   -ENOMEM. */
CONC__PRIVATE int conc__channel_make_room(conc__channel *ch, size_t missing) {
  size_t have = conc__buffer_count(&ch->in);
  if (missing > have + 65536) missing = have + 65536;
  /* What a read may bring is more than what is missing: half of the room is
     had again before it is needed. */
  if (have == 0 || ch->in.first >= ch->in.capacity / 2)
    conc__buffer_shift(&ch->in);
  return conc__buffer_reserve(&ch->in, missing);
}

/* Reads what is there, without waiting, and not only what is missing: the next
   frames may be there, too. Bytes, 0 at the end, or negative errno: -EAGAIN if
   there is nothing, -EMSGSIZE if a handshake has used up its limit. */
CONC__PRIVATE ssize_t conc__channel_read(conc__channel *ch, size_t missing) {
  ssize_t n = conc__channel_make_room(ch, missing);
  size_t room;
  if (n != 0) return n;
  room = ch->in.capacity - ch->in.size;
  if (room > ch->read_limit) room = ch->read_limit;
  if (room == 0) return -EMSGSIZE;
  do n = recv(ch->fd, ch->in.data + ch->in.size, room, MSG_DONTWAIT);
  while (n < 0 && errno == EINTR);
  if (n < 0) return conc__would_block(errno) ? -EAGAIN : -errno;
  ch->in.size += (size_t)n;
  if (ch->read_limit != SIZE_MAX) ch->read_limit -= (size_t)n;
  return n;
}

/* Waits for the next frame. 0, -EPIPE at the end, or negative errno. */
CONC__PRIVATE int conc__channel_receive(conc__channel *ch, size_t limit,
                                        const unsigned char **payload,
                                        size_t *size, double deadline) {
  for (;;) {
    ssize_t n;
    int rc = conc__channel_next(ch, limit, payload, size);
    if (rc != 0) return rc > 0 ? 0 : rc;
    n = conc__channel_read(ch, *size);
    if (n == 0) return -EPIPE;
    if (n == -EAGAIN) {
      /* What keeps the peer from going on may be our acknowledgement. */
      if (ch->eager || conc__buffer_count(&ch->in) > 0)
        conc__channel_quickack(ch);
      rc = conc__fd_wait(ch->fd, CONC_READ | CONC__TRIED, deadline);
      if (rc < 0) return rc;
    } else if (n < 0) {
      return (int)n;
    }
  }
}

/* Sends all that is in `out`, which is empty afterwards, also after an error:
   then a frame may be cut in two, and the connection must not go on; *sent is
   how many bytes went out. 0 or negative errno. */
CONC__PRIVATE int conc__channel_flush(conc__channel *ch, size_t *sent,
                                      double deadline) {
  int rc = 0;
  *sent = 0;
  CONC__CHECK(ch->out.first == 0);
  while (rc == 0 && *sent < ch->out.size) {
    ssize_t n = send(ch->fd, ch->out.data + *sent, ch->out.size - *sent,
                     MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0)
      *sent += (size_t)n;
    else if (!conc__would_block(errno))
      rc = errno == EINTR ? 0 : -errno;
    else {
      ch->waited = true;
      rc = conc__fd_wait(ch->fd, CONC_WRITE | CONC__TRIED, deadline);
      if (rc > 0) rc = 0;
    }
  }
  ch->out.size = 0;
  return rc;
}

/* Sends one frame, behind what is in `out` already. 0 or negative errno. */
CONC__PRIVATE int conc__channel_send(conc__channel *ch, const void *data,
                                     size_t size, double deadline) {
  size_t sent;
  int rc = conc__frame_append(&ch->out, data, size);
  return rc != 0 ? rc : conc__channel_flush(ch, &sent, deadline);
}

/* --- authentication --- */

/* The secret of a manager; the bytes are its caller's. */
typedef struct conc__key {
  const void *data;
  size_t size;
  bool require_sha256; /* a peer that knows only MD5 is refused */
} conc__key;

/* Bytes of the longest answer: "{sha256}" and a digest. */
#define CONC__DIGEST_MAX (8 + 32)

/* Writes the answer to a challenge, and returns its size; -EPROTO for what is
   no challenge of the protocol. The hash is chosen as Python does: a challenge
   of 20 bytes is from a Python up to 3.11, and means MD5; a longer one names
   its hash. */
CONC__PRIVATE int conc__auth_answer(const conc__key *key,
                                    const unsigned char *challenge,
                                    size_t size,
                                    unsigned char out[CONC__DIGEST_MAX]) {
  const size_t prefix = sizeof CONC__SHA256_PREFIX - 1;
  if (size == 20 && !key->require_sha256) {
    conc__hmac(CONC__MD5, key->data, key->size, challenge, size, out);
    return 16;
  }
  if (size <= 20 || memcmp(challenge, CONC__SHA256_PREFIX, prefix) != 0)
    return -EPROTO;
  memcpy(out, CONC__SHA256_PREFIX, prefix);
  conc__hmac(CONC__SHA256, key->data, key->size, challenge, size,
             out + prefix);
  return (int)prefix + 32;
}

/* Whether `answer` is the answer to our challenge: with SHA-256, or with MD5
   from a Python up to 3.11, told apart by their lengths. It takes the same
   time for every wrong answer of a length; the right one is wiped, since it
   would pass. */
CONC__PRIVATE bool conc__auth_verify(const conc__key *key,
                                     const unsigned char *challenge,
                                     size_t size, const unsigned char *answer,
                                     size_t length) {
  unsigned char right[CONC__DIGEST_MAX];
  const size_t prefix = sizeof CONC__SHA256_PREFIX - 1;
  bool same;
  if (length == 16 && !key->require_sha256) {
    conc__hmac(CONC__MD5, key->data, key->size, challenge, size, right);
  } else if (length == prefix + 32) {
    memcpy(right, CONC__SHA256_PREFIX, prefix);
    conc__hmac(CONC__SHA256, key->data, key->size, challenge, size,
               right + prefix);
  } else {
    return false;
  }
  same = conc__equal_secret(right, answer, length);
  conc__wipe(right, sizeof right);
  return same;
}

/* Challenges the peer. 0: its answer was right, and WELCOME has been sent if
   `welcome`; otherwise the caller sends it together with what comes next.
   -EACCES: it was wrong, and FAILURE has been sent. Or negative errno. */
CONC__PRIVATE int conc__auth_challenge(conc__channel *ch, const conc__key *key,
                                       bool welcome, double deadline) {
  unsigned char message[11 + 8 + 40];
  const unsigned char *answer;
  size_t size;
  int rc;
  memcpy(message, CONC__CHALLENGE CONC__SHA256_PREFIX, 19);
  /* Random for each connection: an answer that was listened to must not do for
     another one. */
  rc = conc__random(message + 19, 40);
  if (rc == 0) rc = conc__channel_send(ch, message, sizeof message, deadline);
  if (rc == 0)
    rc = conc__channel_receive(ch, CONC__HANDSHAKE_MESSAGE, &answer, &size,
                               deadline);
  if (rc != 0) return rc;
  if (!conc__auth_verify(key, message + 11, 48, answer, size)) {
    conc__channel_send(ch, CONC__FAILURE, 9, deadline);
    return -EACCES;
  }
  return welcome ? conc__channel_send(ch, CONC__WELCOME, 9, deadline) : 0;
}

/* Answers the peer's challenge. 0; -EACCES if the peer refuses the answer,
   and what follows is not read; -EPROTO if it is no such peer; or negative
   errno. */
CONC__PRIVATE int conc__auth_respond(conc__channel *ch, const conc__key *key,
                                     double deadline) {
  unsigned char answer[CONC__DIGEST_MAX];
  const unsigned char *p;
  size_t size;
  int n;
  int rc = conc__channel_receive(ch, CONC__HANDSHAKE_MESSAGE, &p, &size,
                                 deadline);
  if (rc != 0) return rc;
  if (size < 11 || memcmp(p, CONC__CHALLENGE, 11) != 0) return -EPROTO;
  n = conc__auth_answer(key, p + 11, size - 11, answer);
  if (n < 0) return n;
  rc = conc__channel_send(ch, answer, (size_t)n, deadline);
  conc__wipe(answer, sizeof answer);
  if (rc == 0)
    rc = conc__channel_receive(ch, CONC__HANDSHAKE_MESSAGE, &p, &size,
                               deadline);
  if (rc != 0) return rc;
  return size == 9 && memcmp(p, CONC__WELCOME, 9) == 0 ? 0 : -EACCES;
}

/* The server's half of the handshake: it speaks first. A client that does not
   know the key is refused before we have answered anything of its choice.
   0 or negative errno. */
CONC__PRIVATE int conc__auth_serve(conc__channel *ch, const conc__key *key,
                                   double deadline) {
  int rc;
  ch->eager = true;
  ch->read_limit = CONC__HANDSHAKE_BYTES;
  rc = conc__auth_challenge(ch, key, true, deadline);
  if (rc == 0) rc = conc__auth_respond(ch, key, deadline);
  ch->read_limit = SIZE_MAX;
  return rc;
}

/* The client's half of the handshake. Its last message, WELCOME, stays in
   `out`, to go with the first request in one segment. 0 or negative errno. */
CONC__PRIVATE int conc__auth_connect(conc__channel *ch, const conc__key *key,
                                     double deadline) {
  int rc;
  ch->eager = true;
  ch->read_limit = CONC__HANDSHAKE_BYTES;
  rc = conc__auth_respond(ch, key, deadline);
  if (rc == 0) rc = conc__auth_challenge(ch, key, false, deadline);
  ch->read_limit = SIZE_MAX;
  return rc != 0 ? rc : conc__frame_append(&ch->out, CONC__WELCOME, 9);
}

/* ---------------------------------------------------------------------------
   >>server: what serves queues to clients

   The server is one loop. A connection that nobody uses is a descriptor with
   a watch and holds neither stack nor buffers; when something arrives, a
   coroutine is started to read, answer in order, and end when there is no
   more. A request that must wait (a get from an empty queue) is the plain
   conc_get in that coroutine: it parks, and if the peer goes away meanwhile
   it is cancelled, so that a dead client takes no message.

   Requests are pickles: (object, method, args, keywords). The first on a
   connection has object None and names a function of the server; after
   accept_connection they name the methods of a queue.
   ------------------------------------------------------------------------ */

#define CONC__MAX_MESSAGE ((size_t)64 << 20)
#define CONC__HANDSHAKE_TIMEOUT 5.0
#define CONC__IO_BUFFER 65536 /* of a connection while it is served */
#define CONC__SPARE_BUFFERS 64

/* A name and its queue. Its id, which clients call it by, is its place in
   the array, from 1; never reused. */
typedef struct conc__export {
  char *name;
  conc_queue *queue;
} conc__export;

/* A client's connection, at the server. */
typedef struct conc__client {
  conc__watch watch; /* first: what is watched is a client */
  conc_task task;    /* serves it while there is something to do */
  conc__channel channel;
  struct conc__manager_data *manager;
  struct conc__client *next, **link; /* all, or those to be freed */
  bool authenticated;
  bool methods; /* accept_connection: more than one request */
  bool serving; /* the task runs */
  bool blocked; /* it waits in a queue */
  bool hangup;  /* the peer has closed its side */
} conc__client;

/* A connection to the server, at the client; idle ones are kept. */
typedef struct conc__peer {
  struct conc__peer *next;
  conc__channel channel;
  double last;         /* used */
  unsigned generation; /* a fork's child must not use its parent's */
  bool asked;          /* a request is out, and its reply not understood yet */
} conc__peer;

/* A proxy: a queue whose messages are elsewhere. */
typedef struct conc__proxy {
  conc_queue queue; /* first: a proxy is a queue */
  struct conc__manager_data *manager;
  struct conc__proxy *next;
  conc_queue *stash; /* messages that came, and could not be handed over */
  conc__peer *late;  /* gets that failed while their reply came, or after */
  size_t late_count; /* how many */
  char name[64];
  char id[64];
} conc__proxy;

typedef struct conc__manager_data {
  const conc_manager *options;
  conc__key key;
  size_t max_message;
  double handshake_timeout;
  int protocol; /* of the server's pickles: 2 is Python 2, else 4 */
  /* both; under the guard of this struct */
  conc__export *exports;
  size_t exports_count, exports_size;
  conc__proxy *proxies;
  conc__peer *idle;
  /* the server; its loop's alone, but for the tasks */
  bool server, running, stopping;
  int listener;
  char address[128];
  conc_task thread, root;
  conc_event ready; /* root runs, or never will: then `error` says why */
  bool forever;     /* conc_manager_serve_forever joins the thread */
  conc_event left;  /* and has done so */
  int error;
  conc__client *clients, *dead;
  size_t clients_count;
  conc_event changed; /* a client has gone, or is not serving any more */
  conc__buffer spare[CONC__SPARE_BUFFERS];
  size_t spare_count;
  bool client;
  unsigned generation; /* of the process that connected */
} conc__manager_data;

CONC__PRIVATE conc__manager_data *conc__manager_state(conc_manager *m) {
  conc__manager_data *state = m->state;
  if (state != NULL) return state;
  conc__init();
  state = (conc__manager_data *)CONC_MALLOC(sizeof *state);
  if (state == NULL) return NULL;
  memset(state, 0, sizeof *state);
  state->options = m;
  state->listener = -1;
  m->state = state;
  return state;
}

/* Applies the defaults of the options, when it is started or connected. */
CONC__PRIVATE int conc__manager_options(conc_manager *m) {
  conc__manager_data *state = conc__manager_state(m);
  if (state == NULL) return -ENOMEM;
  if (state->server || state->client) return -EBUSY;
  state->key.data = m->authkey != NULL ? m->authkey : "";
  state->key.size = m->authkey_size > 0
                        ? m->authkey_size
                        : strlen((const char *)state->key.data);
  state->key.require_sha256 = m->require_sha256;
  state->max_message = m->max_message > 0 ? m->max_message : CONC__MAX_MESSAGE;
  state->handshake_timeout = m->handshake_timeout > 0
                                 ? m->handshake_timeout
                                 : CONC__HANDSHAKE_TIMEOUT;
  return 0;
}

/* It did not start: nothing stays behind, but what was registered. */
CONC__PRIVATE void conc__manager_unwind(conc_manager *m) {
  if (m->state == NULL || m->state->exports_count > 0) return;
  CONC_FREE(m->state->exports);
  CONC_FREE(m->state);
  m->state = NULL;
}

/* --- names --- */

/* The id of a name, from 1; 0: unknown. The guard is held. */
CONC__PRIVATE size_t conc__export_find(const conc__manager_data *m,
                                       const char *name) {
  size_t i;
  for (i = 0; i < m->exports_count; i++)
    if (strcmp(m->exports[i].name, name) == 0) return i + 1;
  return 0;
}

CONC__PRIVATE conc_queue *conc__export_by_name(conc__manager_data *m,
                                               const char *name, size_t *id) {
  conc__mutex *guard = conc__mutex_of(m);
  conc_queue *q;
  conc__mutex_lock(guard);
  *id = conc__export_find(m, name);
  q = *id > 0 ? m->exports[*id - 1].queue : NULL;
  conc__mutex_unlock(guard);
  return q;
}

CONC__PRIVATE conc_queue *conc__export_by_id(conc__manager_data *m,
                                             const char *id) {
  conc__mutex *guard = conc__mutex_of(m);
  conc_queue *q = NULL;
  size_t n = 0;
  for (; *id >= '0' && *id <= '9' && n < 1000000; id++)
    n = n * 10 + (size_t)(*id - '0');
  if (*id != 0) return NULL;
  conc__mutex_lock(guard);
  if (n >= 1 && n <= m->exports_count) q = m->exports[n - 1].queue;
  conc__mutex_unlock(guard);
  return q;
}

/* --- a session: one coroutine that serves one client --- */

/* A message that was got and whose reply has not been sent yet: if it cannot
   be, the message goes back. */
typedef struct conc__taken {
  conc_queue *queue;
  size_t offset, size; /* of its body, in `out` */
  size_t end;          /* of its frame */
  bool old;            /* the body is one for Python 2 */
} conc__taken;

typedef struct conc__session {
  conc__client *client;
  conc__manager_data *manager;
  int protocol;  /* of the peer's pickles: Python 2 has older names */
  bool leave;    /* close when the replies are out */
  size_t reply;  /* where the present reply's frame begins */
  conc__buffer taken; /* of conc__taken; lent, as a stack is to be small */
} conc__session;

/* Buffers are lent to whoever is being served. */
CONC__PRIVATE void conc__buffer_lend(conc__manager_data *m, conc__buffer *b) {
  if (b->data != NULL) return;
  if (m->spare_count > 0)
    *b = m->spare[--m->spare_count];
  else
    conc__buffer_reserve(b, CONC__IO_BUFFER); /* or later, as needed */
  b->size = b->first = 0;
}

CONC__PRIVATE void conc__buffer_return(conc__manager_data *m,
                                       conc__buffer *b) {
  if (b->capacity >= CONC__IO_BUFFER && b->capacity < 4 * CONC__IO_BUFFER &&
      m->spare_count < CONC__SPARE_BUFFERS) {
    m->spare[m->spare_count++] = *b;
    memset(b, 0, sizeof *b);
  } else {
    conc__buffer_free(b);
  }
}

CONC__PRIVATE void conc__session_lend(conc__session *s) {
  conc__buffer_lend(s->manager, &s->taken);
  conc__buffer_lend(s->manager, &s->client->channel.in);
  conc__buffer_lend(s->manager, &s->client->channel.out);
}

/* Nothing is held while nothing is done; an unfinished request is kept in
   just as much as it needs. */
CONC__PRIVATE void conc__session_return(conc__session *s) {
  conc__channel *ch = &s->client->channel;
  size_t rest = conc__buffer_count(&ch->in);
  conc__buffer small = {NULL, 0, 0, 0};
  if (rest == 0) {
    conc__buffer_return(s->manager, &ch->in);
  } else if (ch->in.capacity > 2 * rest &&
             conc__buffer_append(&small, ch->in.data + ch->in.first, rest) ==
                 0) {
    conc__buffer_return(s->manager, &ch->in);
    ch->in = small;
  }
  conc__buffer_return(s->manager, &ch->out);
  conc__buffer_return(s->manager, &s->taken);
}

CONC__PRIVATE void conc__give_back(conc_queue *q, const void *body,
                                   size_t size, conc__buffer *b) {
  conc__message m;
  m.data = body;
  m.size = size;
  m.kind = CONC__PICKLED;
  q->ops->unget(q, &m, b);
}

/* As protocol 4 again. False without memory for that. */
CONC__PRIVATE bool conc__unget_as_protocol_4(conc_queue *q,
                                             const unsigned char *body,
                                             size_t size) {
  conc__buffer b = {NULL, 0, 0, 0};
  conc_value *v = NULL;
  int rc = conc__buffer_append(&b, body, size);
  if (rc == 0) rc = conc__put_op(&b, '.');
  if (rc == 0) rc = conc__pickle_decode(b.data, b.size, NULL, &v, NULL);
  b.size = 0;
  if (rc == 0) rc = conc__pickle_encode(&b, v, 4);
  if (rc == 0) rc = conc__buffer_reserve(&b, CONC__BODY_SPARE);
  if (rc == 0) conc__give_back(q, b.data, b.size, &b);
  conc__buffer_free(&b);
  conc_value_free(v);
  return rc == 0;
}

/* Gives the messages back whose replies are not among the first `sent` bytes
   of `out`; the youngest first, so that the order is as it was. The oldest,
   of most clients the only one, needs no memory. */
CONC__PRIVATE void conc__session_give_back(conc__session *s, size_t sent) {
  conc__buffer *out = &s->client->channel.out;
  while (s->taken.size > 0) {
    conc__taken t;
    s->taken.size -= sizeof t;
    memcpy(&t, s->taken.data + s->taken.size, sizeof t);
    if (sent >= t.end) continue;
    if (t.old &&
        conc__unget_as_protocol_4(t.queue, out->data + t.offset, t.size))
      continue;
    conc__give_back(t.queue, out->data + t.offset, t.size,
                    s->taken.size == 0 ? out : NULL);
  }
}

/* Sends the replies; but no message to who has closed his side already. */
CONC__PRIVATE int conc__session_flush(conc__session *s) {
  conc__channel *ch = &s->client->channel;
  size_t sent = 0;
  int rc = -EPIPE;
  if (!s->client->hangup || s->taken.size == 0)
    rc = conc__channel_flush(ch, &sent, CONC__NEVER);
  conc__session_give_back(s, sent);
  return rc;
}

/* Finds out whether the peer has closed its side and nothing is to be read
   before that. Else -1 if nothing is to be read. */
CONC__PRIVATE ssize_t conc__client_look(conc__client *c) {
  unsigned char byte;
  ssize_t n = recv(c->channel.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (n == 0 || (n < 0 && !conc__would_block(errno))) c->hangup = true;
  return n;
}

/* --- replies --- */

/* Begins a reply of a kind: its frame, and a pickle of ('#KIND', ...). */
#define CONC__REPLY_BEGIN(s, kind) \
  conc__reply_begin(s, kind, sizeof kind - 1)

CONC__PRIVATE int conc__reply_begin(conc__session *s, const char *kind,
                                    size_t size) {
  conc__buffer *out = &s->client->channel.out;
  unsigned char *p;
  int rc = conc__buffer_reserve(out, size + 11);
  if (rc != 0) return rc;
  s->reply = out->size;
  p = out->data + out->size;
  memset(p, 0, 11);
  p[4] = 0x80;
  p[5] = s->protocol == 2 ? 2 : 4;
  p[6] = 'X';
  p[7] = (unsigned char)size;
  memcpy(p + 11, kind, size);
  out->size += size + 11;
  return 0;
}

CONC__PRIVATE int conc__reply_end(conc__session *s) {
  conc__buffer *out = &s->client->channel.out;
  int rc = conc__buffer_append(out, "\x86.", 2); /* TUPLE2 STOP */
  return rc != 0 ? rc : conc__frame_end(out, s->reply);
}

/* ('#RETURN', v), v being the body of a pickle. */
CONC__PRIVATE int conc__reply_body(conc__session *s, const char *body,
                                   size_t size) {
  int rc = CONC__REPLY_BEGIN(s, "#RETURN");
  if (rc == 0) rc = conc__buffer_append(&s->client->channel.out, body, size);
  return rc != 0 ? rc : conc__reply_end(s);
}

CONC__PRIVATE int conc__reply_none(conc__session *s) {
  return conc__reply_body(s, "N", 1);
}

CONC__PRIVATE int conc__reply_int(conc__session *s, int64_t n) {
  int rc = CONC__REPLY_BEGIN(s, "#RETURN");
  if (rc == 0) rc = conc__pickle_put_int(&s->client->channel.out, n);
  return rc != 0 ? rc : conc__reply_end(s);
}

/* ('#TRACEBACK', text): Python raises RemoteError(text). */
CONC__PRIVATE int conc__reply_refuse(conc__session *s, const char *text) {
  conc__buffer *out = &s->client->channel.out;
  int rc = CONC__REPLY_BEGIN(s, "#TRACEBACK");
  if (rc == 0) /* Python 2 insists on its own str */
    rc = s->protocol == 2
             ? conc__pickle_put_bytes(out, text, strlen(text), 2)
             : conc__pickle_put_str(out, text, strlen(text));
  return rc != 0 ? rc : conc__reply_end(s);
}

/* ('#ERROR', exception): Python raises it. An empty text is no argument. */
CONC__PRIVATE int conc__reply_raise(conc__session *s, const char *module3,
                                    const char *module2, const char *name,
                                    const char *text) {
  conc__buffer *out = &s->client->channel.out;
  const char *module = s->protocol == 2 ? module2 : module3;
  char global[96];
  int n = snprintf(global, sizeof global, "c%s\n%s\n", module, name);
  int rc = CONC__REPLY_BEGIN(s, "#ERROR");
  if (rc == 0) rc = conc__buffer_append(out, global, (size_t)n);
  if (rc == 0 && *text == 0) rc = conc__buffer_append(out, ")", 1);
  if (rc == 0 && *text != 0) {
    rc = conc__pickle_put_str(out, text, strlen(text));
    if (rc == 0) rc = conc__buffer_append(out, "\x85", 1); /* TUPLE1 */
  }
  if (rc == 0) rc = conc__buffer_append(out, "R", 1); /* REDUCE: make it */
  return rc != 0 ? rc : conc__reply_end(s);
}

CONC__PRIVATE int conc__reply_builtin(conc__session *s, const char *name,
                                      const char *text) {
  return conc__reply_raise(s, "builtins", "exceptions", name, text);
}

/* The exception for an error of a queue's call. */
CONC__PRIVATE int conc__reply_error(conc__session *s, int rc, bool get) {
  if (rc == -ETIMEDOUT)
    return conc__reply_raise(s, "queue", "Queue", get ? "Empty" : "Full", "");
  if (rc == -EPIPE)
    return conc__reply_builtin(s, "EOFError", "queue is closed");
  if (rc == -EMSGSIZE)
    return conc__reply_builtin(s, "ValueError", "message too long");
  if (rc == -ENOMEM) return conc__reply_builtin(s, "MemoryError", "");
  return conc__reply_builtin(s, "RuntimeError", conc_strerror(rc));
}

/* --- requests --- */

/* A decoded request. */
typedef struct conc__request {
  const conc_value *args, *kwds;
  const char *ident, *method; /* ident NULL: none */
} conc__request;

/* Finds parameter `i` by place or by name; NULL if it is not given. */
CONC__PRIVATE const conc_value *conc__argument(const conc__request *r,
                                               size_t i, const char *name) {
  if (i < conc_value_size(r->args)) return conc_value_item(r->args, i);
  return conc_value_get(r->kwds, name);
}

/* Checks the arguments against the names of a method's parameters, of which
   the first `required` have no default. Writes Python's complaint and returns
   false if they do not fit. */
CONC__PRIVATE bool conc__arguments_fit(const conc__request *r,
                                       const char *const *names, size_t count,
                                       size_t required, char *text,
                                       size_t size) {
  size_t given = conc_value_size(r->args);
  size_t keywords = conc_value_size(r->kwds);
  size_t i, j;
  if (given > count) {
    snprintf(text, size,
             "%s() takes %u positional arguments but %u were given", r->method,
             (unsigned)count + 1, (unsigned)given + 1);
    return false;
  }
  for (i = 0; i < keywords; i++) {
    const char *key = conc_value_str(conc_value_key(r->kwds, i), NULL);
    for (j = 0; key != NULL && j < count; j++)
      if (strcmp(key, names[j]) == 0) break;
    if (key == NULL || j == count) {
      snprintf(text, size, "%s() got an unexpected keyword argument '%.80s'",
               r->method, key != NULL ? key : "?");
      return false;
    }
    if (j < given) {
      snprintf(text, size, "%s() got multiple values for argument '%s'",
               r->method, key);
      return false;
    }
  }
  for (i = given; i < required; i++)
    if (conc_value_get(r->kwds, names[i]) == NULL) {
      snprintf(text, size,
               "%s() missing 1 required positional argument: '%s'", r->method,
               names[i]);
      return false;
    }
  return true;
}

/* Python's truth. */
CONC__PRIVATE bool conc__value_is_true(const conc_value *v) {
  bool b;
  int64_t n;
  double f;
  switch (conc_value_type(v)) {
    case CONC_NONE: return false;
    case CONC_BOOL: return conc_value_bool(v, &b) == 0 && b;
    case CONC_INT: return conc_value_int(v, &n) == 0 && n != 0;
    case CONC_FLOAT: return conc_value_float(v, &f) == 0 && f != 0;
    case CONC_BIGINT:
    case CONC_OBJECT: return true;
    default: return conc_value_size(v) > 0;
  }
}

/* block and timeout, as queue.Queue takes them. NULL and *timeout, or the
   text of a ValueError or (with *type) a TypeError. */
CONC__PRIVATE const char *conc__parse_block_timeout(const conc_value *block,
                                                    const conc_value *timeout,
                                                    double *out, bool *type) {
  int64_t n;
  double f;
  bool b;
  *type = false;
  *out = CONC_FOREVER;
  if (block != NULL && !conc__value_is_true(block)) {
    *out = 0;
    return NULL;
  }
  if (timeout == NULL || conc_value_type(timeout) == CONC_NONE) return NULL;
  if (conc_value_type(timeout) == CONC_BIGINT) return NULL; /* for ever */
  if (conc_value_bool(timeout, &b) == 0)
    f = b;
  else if (conc_value_int(timeout, &n) == 0)
    f = (double)n;
  else if (conc_value_float(timeout, &f) != 0) {
    *type = true;
    return "'timeout' must be a number";
  }
  if (!(f >= 0)) return "'timeout' must be a non-negative number";
  *out = f;
  return NULL;
}

/* Before a call that waits: what there is to say is said, buffers are given
   back, and the peer's end is listened for. */
CONC__PRIVATE int conc__session_block(conc__session *s) {
  conc__client *c = s->client;
  int rc = conc__session_flush(s);
  if (rc != 0) return rc;
  conc__session_return(s);
  if (c->hangup) return -EPIPE;
  c->blocked = true;
  s->client->channel.waited = true;
  conc__watch_arm(conc__this.loop, &c->watch);
  return 0;
}

CONC__PRIVATE void conc__session_unblock(conc__session *s) {
  s->client->blocked = false;
  conc__session_lend(s);
}

/* put(item, block=True, timeout=None). The item is encoded anew: what the
   peer sent is never passed on, another Python would execute it. */
CONC__PRIVATE int conc__serve_put(conc__session *s, conc_queue *q,
                                  const conc_value *item, double timeout) {
  conc__buffer b = {NULL, 0, 0, 0};
  const void *data;
  size_t size = 0;
  int kind = CONC__PICKLED;
  int rc = 0;
  if (conc_value_type(item) == CONC_BYTES) {
    data = conc_value_bytes(item, &size);
    kind = CONC__RAW;
  } else {
    rc = conc__pickle_encode(&b, item, 4);
    data = b.data;
    size = b.size;
  }
  if (rc == 0) rc = conc__queue_put(q, data, size, kind, 0);
  if (rc == -ETIMEDOUT && timeout > 0) {
    int gone = conc__session_block(s);
    if (gone != 0) {
      conc__buffer_free(&b);
      return gone;
    }
    rc = conc__queue_put(q, data, size, kind, timeout);
    conc__session_unblock(s);
  }
  conc__buffer_free(&b);
  if (rc == -ECANCELED) return rc;
  return rc == 0 ? conc__reply_none(s) : conc__reply_error(s, rc, false);
}

/* get(block=True, timeout=None). */
CONC__PRIVATE int conc__serve_get(conc__session *s, conc_queue *q,
                                  double timeout) {
  conc__buffer *out = &s->client->channel.out;
  conc__sink sink;
  conc__taken t;
  ssize_t n;
  int rc = conc__buffer_reserve(&s->taken, sizeof t);
  if (rc == 0) rc = CONC__REPLY_BEGIN(s, "#RETURN");
  if (rc != 0) return rc;
  t.offset = out->size;
  sink.data = NULL;
  sink.size = 0;
  sink.body = out;
  n = q->ops->get(q, &sink, 0);
  if (n < 0) out->size = s->reply;
  if (n == -ETIMEDOUT && timeout > 0) {
    rc = conc__session_block(s);
    if (rc != 0) return rc;
    /* Into a buffer that is made when there is something to put into it. */
    n = q->ops->get(q, &sink, conc__deadline(timeout));
    if (n >= 0) { /* the body is in `out`, and its head is not */
      conc__buffer got = *out;
      memset(out, 0, sizeof *out);
      conc__session_unblock(s);
      conc__client_look(s->client);
      rc = conc__buffer_reserve(&s->taken, sizeof t);
      if (rc == 0) rc = CONC__REPLY_BEGIN(s, "#RETURN");
      t.offset = out->size;
      if (rc == 0) rc = conc__buffer_append(out, got.data, got.size);
      if (rc != 0) conc__give_back(q, got.data, got.size, &got);
      conc__buffer_free(&got);
      if (rc != 0) return rc;
    } else {
      conc__session_unblock(s);
    }
  }
  if (n == -ECANCELED) return (int)n;
  if (n < 0) return conc__reply_error(s, (int)n, true);
  t.queue = q;
  if (s->protocol == 2) rc = conc__pickle_downgrade(out, t.offset);
  t.old = s->protocol == 2 && rc == 0;
  t.size = out->size - t.offset;
  if (rc == 0) rc = conc__reply_end(s);
  t.end = out->size;
  conc__buffer_append(&s->taken, &t, sizeof t); /* there is room */
  return rc;
}

CONC__PRIVATE int conc__serve_join(conc__session *s, conc_queue *q) {
  int rc = conc_queue_join(q, 0);
  if (rc == -ETIMEDOUT) {
    rc = conc__session_block(s);
    if (rc != 0) return rc;
    rc = conc_queue_join(q, CONC_FOREVER);
    conc__session_unblock(s);
  }
  if (rc == -ECANCELED) return rc;
  return rc == 0 ? conc__reply_none(s) : conc__reply_error(s, rc, true);
}

CONC__PRIVATE int conc__serve_task_done(conc__session *s, conc_queue *q) {
  int rc = conc_task_done(q);
  if (rc == -EINVAL)
    return conc__reply_builtin(s, "ValueError",
                               "task_done() called too many times");
  return rc == 0 ? conc__reply_none(s) : conc__reply_error(s, rc, true);
}

CONC__PRIVATE int conc__serve_size(conc__session *s, conc_queue *q,
                                   const char *method) {
  ssize_t n = conc_qsize(q);
  bool yes;
  if (n < 0) return conc__reply_error(s, (int)n, true);
  if (*method == 'q') return conc__reply_int(s, n);
  yes = *method == 'e' ? n == 0 : q->capacity > 0 && (size_t)n >= q->capacity;
  return conc__reply_body(s, yes ? "\x88" : "\x89", 1);
}

static const char *const conc__methods[] = {
    "empty", "full",       "get",   "get_nowait", "join",
    "put",   "put_nowait", "qsize", "task_done"};
#define CONC__METHODS (sizeof conc__methods / sizeof *conc__methods)

/* A method of a queue. */
CONC__PRIVATE int conc__serve_method(conc__session *s,
                                     const conc__request *r) {
  static const char *const put_names[] = {"item", "block", "timeout"};
  static const char *const get_names[] = {"block", "timeout"};
  conc_queue *q = conc__export_by_id(s->manager, r->ident);
  const char *method = r->method;
  bool put = strncmp(method, "put", 3) == 0;
  bool get = strncmp(method, "get", 3) == 0;
  bool nowait = (put || get) && strcmp(method + 3, "_nowait") == 0;
  size_t count = put ? (nowait ? 1 : 3) : get && !nowait ? 2 : 0;
  const char *complaint;
  double timeout = 0;
  char text[160];
  size_t i;
  bool type;
  if (q == NULL) {
    snprintf(text, sizeof text, "KeyError: no object with id '%.40s'",
             r->ident);
    return conc__reply_refuse(s, text);
  }
  for (i = 0; i < CONC__METHODS; i++)
    if (strcmp(method, conc__methods[i]) == 0) break;
  if (i == CONC__METHODS) {
    if (strcmp(method, "__str__") == 0 || strcmp(method, "__repr__") == 0) {
      int rc = CONC__REPLY_BEGIN(s, "#RETURN");
      if (rc == 0)
        rc = conc__pickle_put_str(&s->client->channel.out,
                                  "<conc_queue object>", 19);
      return rc != 0 ? rc : conc__reply_end(s);
    }
    snprintf(text, sizeof text,
             "AttributeError: method '%.60s' of a queue is not exposed",
             method);
    return conc__reply_refuse(s, text);
  }
  if (!conc__arguments_fit(r, put ? put_names : get_names, count, put, text,
                           sizeof text))
    return conc__reply_builtin(s, "TypeError", text);
  if (count > 1) {
    complaint = conc__parse_block_timeout(
        conc__argument(r, count - 2, "block"),
        conc__argument(r, count - 1, "timeout"), &timeout, &type);
    if (complaint != NULL)
      return conc__reply_builtin(s, type ? "TypeError" : "ValueError",
                                 complaint);
  }
  if (put)
    return conc__serve_put(s, q, conc__argument(r, 0, "item"), timeout);
  if (get) return conc__serve_get(s, q, timeout);
  if (*method == 'j') return conc__serve_join(s, q);
  if (*method == 't') return conc__serve_task_done(s, q);
  return conc__serve_size(s, q, method);
}

/* create(name): the id of a queue and its methods' names. Those are fixed
   identifiers: a Python client executes them. */
CONC__PRIVATE int conc__serve_create(conc__session *s,
                                     const conc__request *r) {
  conc__buffer *out = &s->client->channel.out;
  const char *name = NULL;
  char text[160];
  size_t id = 0;
  size_t i;
  int rc;
  if (conc_value_size(r->args) > 0)
    name = conc_value_str(conc_value_item(r->args, 0), NULL);
  if (name != NULL) conc__export_by_name(s->manager, name, &id);
  if (id == 0) {
    snprintf(text, sizeof text, "KeyError: '%.80s'",
             name != NULL ? name : "?");
    return conc__reply_refuse(s, text);
  }
  snprintf(text, sizeof text, "%lu", (unsigned long)id);
  rc = CONC__REPLY_BEGIN(s, "#RETURN");
  if (rc == 0) rc = conc__pickle_put_str(out, text, strlen(text));
  if (rc == 0) rc = conc__buffer_append(out, "(", 1); /* MARK */
  for (i = 0; rc == 0 && i < CONC__METHODS; i++)
    rc = conc__pickle_put_str(out, conc__methods[i], strlen(conc__methods[i]));
  if (rc == 0) rc = conc__buffer_append(out, "t\x86", 2); /* TUPLE, TUPLE2 */
  return rc != 0 ? rc : conc__reply_end(s);
}

CONC__PRIVATE int conc__serve_get_methods(conc__session *s) {
  conc__buffer *out = &s->client->channel.out;
  size_t i;
  int rc = CONC__REPLY_BEGIN(s, "#RETURN");
  if (rc == 0) rc = conc__buffer_append(out, "(", 1);
  for (i = 0; rc == 0 && i < CONC__METHODS; i++)
    rc = conc__pickle_put_str(out, conc__methods[i], strlen(conc__methods[i]));
  if (rc == 0) rc = conc__buffer_append(out, "t", 1);
  return rc != 0 ? rc : conc__reply_end(s);
}

/* A function of the server: the only request of its connection, but for
   accept_connection. References are not counted: queues are the program's. */
CONC__PRIVATE int conc__serve_function(conc__session *s,
                                       const conc__request *r) {
  const char *f = r->method;
  char text[160];
  s->leave = true;
  if (strcmp(f, "accept_connection") == 0) {
    s->leave = false;
    s->client->methods = true;
    s->client->channel.eager = false;
    return conc__reply_none(s);
  }
  if (strcmp(f, "create") == 0) return conc__serve_create(s, r);
  if (strcmp(f, "dummy") == 0 || strcmp(f, "incref") == 0 ||
      strcmp(f, "decref") == 0)
    return conc__reply_none(s);
  if (strcmp(f, "get_methods") == 0) return conc__serve_get_methods(s);
  if (strcmp(f, "number_of_objects") == 0)
    return conc__reply_int(s, (int64_t)s->manager->exports_count);
  if (strcmp(f, "debug_info") == 0) return conc__reply_body(s, "X\0\0\0\0", 5);
  if (strcmp(f, "shutdown") == 0) {
    conc_cancel(&s->manager->root);
    return conc__reply_none(s);
  }
  snprintf(text, sizeof text, "AssertionError: '%.60s' unrecognized", f);
  return conc__reply_refuse(s, text);
}

/* --- the usual requests ---

   A put or get of a scalar, as every client writes it: understood in one look
   over its bytes, without making a value of it. Whatever looks different in
   any way takes the long way. */

typedef struct conc__scalar {
  unsigned char op;
  const unsigned char *data;
  size_t size;
} conc__scalar;

/* Behind the opcode that memorises what was read; nobody will ask for it, or
   the request does not look as usual. */
CONC__INLINE const unsigned char *
conc__skip_memoize_op(const unsigned char *p, const unsigned char *end) {
  if (p < end && *p == 0x94) return p + 1; /* MEMOIZE */
  if (p < end && *p == 'q') return end - p > 2 ? p + 2 : NULL; /* BINPUT */
  return p;
}

/* Reads one scalar; behind it, or NULL if it is something else. */
CONC__PRIVATE const unsigned char *conc__scan_scalar(const unsigned char *p,
                                                     const unsigned char *end,
                                                     conc__scalar *out) {
  size_t width = 0; /* of the length that stands before the data */
  size_t size = 0;
  if (p == NULL || p == end) return NULL;
  switch (out->op = *p++) {
    case 'N': case 0x88: case 0x89: break; /* None, True, False */
    case 'K': size = 1; break;
    case 'M': size = 2; break;
    case 'J': size = 4; break;
    case 'G': size = 8; break;
    case 0x8c: case 'C': width = 1; break; /* short str, short bytes */
    case 'X': case 'B': width = 4; break;
    default: return NULL;
  }
  if ((size_t)(end - p) < width) return NULL;
  if (width > 0) size = p[0];
  if (width == 4)
    size |= (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
  p += width;
  if ((size_t)(end - p) < size) return NULL;
  out->data = p;
  out->size = size;
  return conc__skip_memoize_op(p + size, end);
}

CONC__INLINE bool conc__scalar_is_str(const conc__scalar *v) {
  return v->op == 0x8c || v->op == 'X';
}

/* Reads a tuple of up to `limit` scalars. */
CONC__PRIVATE const unsigned char *
conc__scan_tuple(const unsigned char *p, const unsigned char *end,
                 conc__scalar *items, size_t limit, size_t *count) {
  bool marked = p != NULL && p < end && *p == '(';
  size_t n = 0;
  *count = 0;
  if (p == NULL || p == end) return NULL;
  if (*p == ')') return conc__skip_memoize_op(p + 1, end);
  p += marked;
  for (;;) {
    if (p == NULL || p == end) return NULL;
    if (marked ? *p == 't' : n > 0 && *p == 0x84 + n) break; /* TUPLE1... */
    if (n == limit) return NULL;
    p = conc__scan_scalar(p, end, &items[n++]);
  }
  *count = n;
  return conc__skip_memoize_op(p + 1, end);
}

/* The meaning of (block, timeout), if it is a usual one. */
CONC__PRIVATE bool conc__scan_waiting(const conc__scalar *v, size_t count,
                                      double *timeout) {
  uint64_t bits = 0;
  size_t i;
  *timeout = CONC_FOREVER;
  if (count == 0) return true;
  if (v[0].op != 0x88 && v[0].op != 0x89) return false;
  if (count == 2 && v[1].op == 'G') {
    for (i = 0; i < 8; i++) bits = bits << 8 | v[1].data[i];
    memcpy(timeout, &bits, sizeof bits);
    if (!(*timeout >= 0)) return false; /* to be complained about */
  } else if (count == 2 && v[1].op == 'K') {
    *timeout = v[1].data[0];
  } else if (count == 2 && v[1].op != 'N') {
    return false;
  }
  if (v[0].op == 0x89) *timeout = 0;
  return true;
}

/* Puts a scalar without waiting; as conc__queue_put, or -ENOTSUP. Numbers are
   the same bytes when they are encoded anew; a str has one spelling here. */
CONC__PRIVATE int conc__put_scalar(conc_queue *q, const conc__scalar *v) {
  unsigned char text[5 + 255];
  switch (v->op) {
    case 'C': case 'B':
      return conc__queue_put(q, v->data, v->size, CONC__RAW, 0);
    case 0x8c: case 'X':
      if (v->size > 255 || !conc__utf8_valid(v->data, v->size))
        return -ENOTSUP;
      memset(text, 0, 5);
      text[0] = 'X';
      text[1] = (unsigned char)v->size;
      memcpy(text + 5, v->data, v->size);
      return conc__queue_put(q, text, v->size + 5, CONC__PICKLED, 0);
    default:
      return conc__queue_put(q, v->data - 1, v->size + 1, CONC__PICKLED, 0);
  }
}

/* Serves a usual request. False if it is not one: nothing has been done. */
CONC__PRIVATE bool conc__serve_usual(conc__session *s, const unsigned char *p,
                                     size_t size, int *rc) {
  const unsigned char *end = p + size;
  conc__scalar name[2], args[3];
  conc_queue *q;
  double timeout;
  size_t count;
  char id[24];
  bool put;
  if (size < 16 || p[0] != 0x80 || p[1] < 3 || p[1] > 5) return false;
  s->protocol = p[1];
  p += p[2] == 0x95 ? 11 : 2; /* FRAME: its length says nothing new */
  if (*p != '(') return false;
  p = conc__scan_scalar(p + 1, end, &name[0]);
  p = conc__scan_scalar(p, end, &name[1]);
  p = conc__scan_tuple(p, end, args, 3, &count);
  if (p == NULL || p == end || *p != '}') return false; /* no keywords */
  p = conc__skip_memoize_op(p + 1, end);
  if (p == NULL || p == end || *p != 't') return false;
  p = conc__skip_memoize_op(p + 1, end);
  if (p == NULL || end - p != 1 || *p != '.') return false;
  if (!conc__scalar_is_str(&name[0]) || !conc__scalar_is_str(&name[1]) ||
      name[0].size >= sizeof id || name[1].size != 3)
    return false;
  put = memcmp(name[1].data, "put", 3) == 0;
  if (!put && memcmp(name[1].data, "get", 3) != 0) return false;
  if (count < put || count > 2u + put) return false;
  if (!conc__scan_waiting(args + put, count - put, &timeout)) return false;
  memcpy(id, name[0].data, name[0].size);
  id[name[0].size] = 0;
  q = conc__export_by_id(s->manager, id);
  if (q == NULL) return false;
  if (!put) {
    *rc = conc__serve_get(s, q, timeout);
  } else {
    *rc = conc__put_scalar(q, &args[0]);
    if (*rc != 0) return false;
    *rc = conc__reply_none(s);
  }
  return true;
}

/* One request. 0, or negative errno: the connection is to be closed. */
CONC__PRIVATE int conc__serve_request(conc__session *s,
                                      const unsigned char *data, size_t size) {
  conc__request r;
  conc_value *v = NULL;
  const conc_value *ident;
  int rc;
  if (s->client->methods && conc__serve_usual(s, data, size, &rc)) return rc;
  rc = conc__pickle_decode(data, size, NULL, &v, &s->protocol);
  if (rc == -EACCES)
    return conc__reply_refuse(
        s, "UnpicklingError: only data is accepted, not code");
  if (rc == -EMSGSIZE)
    return conc__reply_refuse(s, "UnpicklingError: value too large or deep");
  if (rc != 0) return rc;
  rc = -EPROTO;
  if (conc_value_type(v) == CONC_TUPLE && conc_value_size(v) == 4) {
    ident = conc_value_item(v, 0);
    r.ident = conc_value_str(ident, NULL);
    r.method = conc_value_str(conc_value_item(v, 1), NULL);
    r.args = conc_value_item(v, 2);
    r.kwds = conc_value_item(v, 3);
    if (r.method != NULL && conc_value_type(r.args) == CONC_TUPLE &&
        conc_value_type(r.kwds) == CONC_DICT) {
      if (!s->client->methods)
        rc = conc__serve_function(s, &r);
      else if (r.ident != NULL)
        rc = conc__serve_method(s, &r);
    }
  }
  conc_value_free(v);
  return rc;
}

/* --- the server --- */

/* The client is gone. Its coroutine may still run its last lines, so it is
   freed later. */
CONC__PRIVATE void conc__client_close(conc__client *c) {
  conc__manager_data *m = c->manager;
  conc__watch_stop(conc__this.loop, c->channel.fd);
  close(c->channel.fd);
  conc__channel_free(&c->channel);
  *c->link = c->next;
  if (c->next != NULL) c->next->link = c->link;
  m->clients_count--;
  c->next = m->dead;
  m->dead = c;
  conc_event_set(&m->changed);
}

CONC__PRIVATE void conc__clients_reap(conc__manager_data *m) {
  while (m->dead != NULL) {
    conc__client *c = m->dead;
    m->dead = c->next;
    CONC_FREE(c);
  }
}

/* Reads and answers until there is nothing more to read now. */
CONC__PRIVATE int conc__session_run(conc__session *s) {
  conc__client *c = s->client;
  conc__channel *ch = &c->channel;
  bool empty = false;
  int rc = 0;
  while (rc == 0) {
    const unsigned char *payload = NULL;
    size_t size = 0;
    ssize_t n;
    int have = conc__channel_next(ch, s->manager->max_message, &payload,
                                  &size);
    if (have < 0) return have;
    if (have > 0) {
      rc = conc__serve_request(s, payload, size);
      if (rc == 0 && ch->out.size >= CONC__IO_BUFFER)
        rc = conc__session_flush(s);
      if (rc == 0 && s->leave) {
        rc = conc__session_flush(s);
        return rc != 0 ? rc : -EPIPE;
      }
      continue;
    }
    rc = conc__session_flush(s);
    if (rc != 0 || s->manager->stopping) return rc != 0 ? rc : -EPIPE;
    /* A short read has left the socket empty, and what comes later is told
       by the edge: no need to hear it from the socket. Unless time has passed
       since, or the peer's end was told along with the last bytes. */
    n = -EAGAIN;
    if (conc__watch_repeats() || !empty || ch->waited || c->hangup) {
      ch->waited = false;
      n = conc__channel_read(ch, size);
      empty = n > 0 && ch->in.size < ch->in.capacity;
    }
    if (n == 0) return -EPIPE;
    if (n == -EAGAIN) {
      if (ch->eager || conc__buffer_count(&ch->in) > 0)
        conc__channel_quickack(ch);
      return 0;
    }
    if (n < 0) return (int)n;
  }
  return rc;
}

CONC__PRIVATE void *conc__client_main(void *arg) {
  conc__client *c = (conc__client *)arg;
  conc__session s;
  int rc = 0;
  s.client = c;
  s.manager = c->manager;
  s.protocol = 4;
  s.leave = false;
  memset(&s.taken, 0, sizeof s.taken);
  conc__session_lend(&s);
  if (!c->authenticated) {
    rc = conc__auth_serve(&c->channel, &s.manager->key,
                          conc__deadline(s.manager->handshake_timeout));
    c->authenticated = rc == 0;
  }
  if (rc == 0) rc = conc__session_run(&s);
  if (rc != 0) conc__session_give_back(&s, 0);
  c->serving = false;
  if (rc != 0) {
    conc__buffer_return(s.manager, &s.taken);
    conc__client_close(c);
    return NULL;
  }
  conc__session_return(&s);
  conc__watch_arm(conc__this.loop, &c->watch);
  if (s.manager->stopping) conc_event_set(&s.manager->changed);
  return NULL;
}

CONC__PRIVATE void conc__client_start(conc__client *c) {
  c->task.target = conc__client_main;
  c->task.arg = c;
  c->task.name = "conc-client";
  c->serving = true;
  if (conc_coro_start(&c->task) == 0) return;
  c->serving = false;
  conc__client_close(c);
}

/* Something came from a client. While its coroutine waits in a queue that can
   only be its end, or a request sent ahead. */
CONC__PRIVATE void conc__client_ready(conc__watch *watch, int events) {
  conc__client *c = (conc__client *)watch;
  if (events & CONC__HANGUP) c->hangup = true;
  if (!c->serving) {
    conc__clients_reap(c->manager);
    conc__client_start(c);
  } else if (c->blocked) {
    ssize_t n = conc__client_look(c);
    if (c->hangup)
      conc_cancel(&c->task);
    else if (n < 0 || !conc__watch_repeats()) /* an edge comes once */
      conc__watch_arm(conc__this.loop, watch);
  } else { /* it waits for another machine, say */
    c->channel.waited = true;
  }
}

CONC__PRIVATE int conc__client_new(conc__manager_data *m, int fd) {
  conc__client *c = (conc__client *)CONC_MALLOC(sizeof *c);
  int one = 1;
  int rc;
  if (c == NULL) return -ENOMEM;
  memset(c, 0, sizeof *c);
  conc__channel_init(&c->channel, fd);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  c->manager = m;
  c->watch.ready = conc__client_ready;
  rc = conc__watch_start(conc__this.loop, fd, &c->watch);
  if (rc != 0) {
    CONC_FREE(c);
    return rc;
  }
  c->link = &m->clients;
  c->next = m->clients;
  if (c->next != NULL) c->next->link = &c->next;
  m->clients = c;
  m->clients_count++;
  conc__client_start(c);
  return 0;
}

/* Lets those who are being served finish what they answer now; who waits for
   a queue is cancelled, and who is idle closed. */
CONC__PRIVATE void conc__server_stop(conc__manager_data *m) {
  double end = conc_now() + 1;
  conc__client *c, *next;
  m->stopping = true;
  for (c = m->clients; c != NULL; c = next) {
    next = c->next;
    if (!c->serving)
      conc__client_close(c);
    else if (c->blocked || !c->authenticated)
      conc_cancel(&c->task);
  }
  while (m->clients != NULL && conc_now() < end) {
    conc_event_clear(&m->changed);
    conc_event_wait(&m->changed, end - conc_now());
    for (c = m->clients; c != NULL; c = next) {
      next = c->next;
      if (!c->serving) conc__client_close(c);
    }
  }
}

/* Accepts until it is cancelled. */
CONC__PRIVATE void *conc__server_main(void *arg) {
  conc__manager_data *m = (conc__manager_data *)arg;
  size_t max = m->options->max_clients;
  m->running = true;
  conc_event_set(&m->ready); /* from now on it can be cancelled */
  for (;;) {
    int rc;
    conc_event_clear(&m->changed);
    if (max > 0 && m->clients_count >= max) {
      rc = conc_event_wait(&m->changed, CONC_FOREVER);
    } else {
      rc = conc_accept(m->listener, CONC_FOREVER);
      if (rc >= 0) {
        conc__clients_reap(m);
        if (conc__client_new(m, rc) != 0) close(rc);
      } else if (rc != -ECANCELED) {
        /* Out of descriptors or memory: until somebody leaves, or a while. */
        rc = conc_event_wait(&m->changed, 0.1);
      }
    }
    if (rc == -ECANCELED) break;
  }
  conc_close(m->listener);
  m->listener = -1;
  conc__server_stop(m);
  return NULL;
}

/* Gives back what is left when the loop does not run any more. */
CONC__PRIVATE void conc__server_close(conc__manager_data *m) {
  if (m->listener >= 0) close(m->listener); /* no loop: it never ran */
  m->listener = -1;
  while (m->clients != NULL) { /* cut off in the middle of something */
    conc__client *c = m->clients;
    m->clients = c->next;
    close(c->channel.fd);
    conc__channel_free(&c->channel);
    CONC_FREE(c);
  }
  m->clients_count = 0;
  conc__clients_reap(m);
  while (m->spare_count > 0) conc__buffer_free(&m->spare[--m->spare_count]);
  if (strchr(m->address, '/') != NULL) unlink(m->address);
}

/* The thread of a server. */
CONC__PRIVATE void *conc__server_thread(void *arg) {
  conc__manager_data *m = (conc__manager_data *)arg;
  m->root.target = conc__server_main;
  m->root.arg = m;
  m->root.name = "conc-manager";
  m->error = conc_run(&m->root);
  conc_event_set(&m->ready);
  conc__server_close(m);
  return NULL;
}

CONC__PRIVATE int conc__server_open(conc_manager *manager) {
  conc__manager_data *m;
  int rc = conc__manager_options(manager);
  if (rc != 0) return rc;
  m = manager->state;
  rc = conc_listen(manager->address);
  if (rc < 0) {
    conc__manager_unwind(manager);
    return rc;
  }
  m->listener = rc;
  m->stopping = false;
  m->server = true;
  conc_address(rc, m->address, sizeof m->address);
  return 0;
}

CONC__PRIVATE int conc__server_start(conc_manager *manager, bool forever) {
  conc__manager_data *m;
  int rc = conc__server_open(manager);
  if (rc != 0) return rc;
  m = manager->state;
  m->forever = forever;
  conc_event_clear(&m->left);
  m->thread.target = conc__server_thread;
  m->thread.arg = m;
  m->thread.name = "conc-manager";
  m->running = false;
  conc_event_clear(&m->ready);
  rc = conc_thread_start(&m->thread);
  if (rc == 0) {
    /* Until there is something to cancel; this wait itself cannot be. */
    while (conc_event_wait(&m->ready, CONC_FOREVER) != 0) {
    }
    if (m->running) return 0;
    while (conc_join(&m->thread, CONC_FOREVER) == -ECANCELED &&
           conc_is_alive(&m->thread)) {
    }
    rc = m->error;
  } else {
    close(m->listener);
  }
  m->listener = -1;
  m->server = false;
  conc__manager_unwind(manager);
  return rc;
}

/* ---------------------------------------------------------------------------
   >>proxy: a client, and its queues
   ------------------------------------------------------------------------ */

CONC__PRIVATE void conc__peer_close(conc__peer *p) {
  conc_close(p->channel.fd);
  conc__channel_free(&p->channel);
  CONC_FREE(p);
}

/* Begins a request in `out`: everything up to the arguments. */
CONC__PRIVATE int conc__request_begin(conc__buffer *out, size_t *at,
                                      int protocol, const char *ident,
                                      const char *method) {
  int rc = conc__frame_begin(out, at);
  if (rc == 0) rc = conc__put_number(out, 0x80, (uint64_t)protocol, 1);
  if (rc == 0) rc = conc__put_op(out, '('); /* MARK */
  if (rc == 0)
    rc = ident != NULL ? conc__pickle_put_str(out, ident, strlen(ident))
                       : conc__buffer_append(out, "N", 1);
  return rc != 0 ? rc : conc__pickle_put_str(out, method, strlen(method));
}

/* And ends it, after the tuple of arguments: no keywords. */
CONC__PRIVATE int conc__request_end(conc__buffer *out, size_t at) {
  int rc = conc__buffer_append(out, "}t.", 3); /* {} TUPLE STOP */
  return rc != 0 ? rc : conc__frame_end(out, at);
}

/* A request to the server, whose only argument is a str (NULL: none). In a
   protocol that every Python reads; the reply tells which one it speaks. */
CONC__PRIVATE int conc__request_str(conc__buffer *out, const char *method,
                                    const char *argument) {
  size_t at;
  int rc = conc__request_begin(out, &at, 2, NULL, method);
  if (rc == 0)
    rc = argument != NULL
             ? conc__pickle_put_str(out, argument, strlen(argument))
             : 0;
  if (rc == 0) /* TUPLE1, or an empty one */
    rc = conc__buffer_append(out, argument != NULL ? "\x85" : ")", 1);
  return rc != 0 ? rc : conc__request_end(out, at);
}

/* What a remote exception is here. */
CONC__PRIVATE int conc__exception_code(const conc_value *v) {
  static const struct {
    const char *name;
    int code;
  } table[] = {{"Empty", -ETIMEDOUT},    {"Full", -ETIMEDOUT},
               {"ShutDown", -EPIPE},     {"EOFError", -EPIPE},
               {"BrokenPipeError", -EPIPE}, {"ValueError", -EINVAL},
               {"TypeError", -EINVAL},   {"KeyError", -ENOENT},
               {"MemoryError", -ENOMEM}, {"NotImplementedError", -ENOTSUP}};
  const char *name = conc__object_name(v);
  size_t i;
  for (i = 0; name != NULL && i < sizeof table / sizeof *table; i++)
    if (strcmp(name, table[i].name) == 0) return table[i].code;
  return -EPROTO;
}

/* Sends what is in `out` and reads the reply: its value in *out (to be freed,
   with *result inside), or the error that it tells. *broken: the connection
   is in an unknown state, and must be closed. */
CONC__PRIVATE int conc__peer_call(conc__manager_data *m, conc__peer *p,
                                  conc_value **reply,
                                  const conc_value **result, bool *broken,
                                  double deadline) {
  const unsigned char *payload;
  const char *kind;
  size_t size, sent;
  int protocol;
  int rc = conc__channel_flush(&p->channel, &sent, deadline);
  *reply = NULL;
  *broken = true;
  if (rc != 0) return rc;
  p->asked = true;
  rc = conc__channel_receive(&p->channel, m->max_message, &payload, &size,
                             deadline);
  if (rc != 0) return rc;
  rc = conc__pickle_decode(payload, size, &conc__pickle_reply_limits, reply,
                           &protocol);
  if (rc == -ENOMEM) {
    conc__channel_unread(&p->channel);
    return rc;
  }
  p->asked = false;
  if (rc == -EBADMSG) rc = -EPROTO;
  if (rc != 0) return rc;
  CONC__STORE_RELAXED(&m->protocol, protocol == 2 ? 2 : 4);
  rc = -EPROTO;
  kind = NULL;
  if (conc_value_type(*reply) == CONC_TUPLE && conc_value_size(*reply) == 2)
    kind = conc_value_str(conc_value_item(*reply, 0), NULL);
  if (kind != NULL) {
    *broken = false;
    *result = conc_value_item(*reply, 1);
    if (strcmp(kind, "#RETURN") == 0)
      rc = 0;
    else if (strcmp(kind, "#ERROR") == 0)
      rc = conc__exception_code(*result);
    else if (strcmp(kind, "#TRACEBACK") == 0)
      rc = -EREMOTEIO;
  }
  if (rc != 0) {
    conc_value_free(*reply);
    *reply = NULL;
  }
  return rc;
}

/* A new connection, authenticated, its first request not yet sent. */
CONC__PRIVATE int conc__peer_open(conc__manager_data *m, conc__peer **out,
                                  double deadline) {
  conc__peer *p = (conc__peer *)CONC_MALLOC(sizeof *p);
  int rc;
  if (p == NULL) return -ENOMEM;
  memset(p, 0, sizeof *p);
  p->generation = conc__generation;
  rc = conc_connect(m->options->address, conc__remaining(deadline));
  if (rc < 0) {
    CONC_FREE(p);
    return rc;
  }
  conc__channel_init(&p->channel, rc);
  rc = conc__auth_connect(&p->channel, &m->key, deadline);
  if (rc == 0) {
    *out = p;
    return 0;
  }
  conc__peer_close(p);
  /* A server that hangs up in the handshake is not one of ours. */
  return rc == -EMSGSIZE ? -EPROTO : rc;
}

/* One function of the server, on a connection of its own. */
CONC__PRIVATE int conc__peer_function(conc__manager_data *m,
                                      const char *function,
                                      const char *argument, conc_value **reply,
                                      const conc_value **result,
                                      conc__peer **keep, double deadline) {
  conc__peer *p;
  bool broken = true;
  int rc = conc__peer_open(m, &p, deadline);
  *reply = NULL;
  if (rc != 0) return rc;
  rc = conc__request_str(&p->channel.out, function, argument);
  if (rc == 0)
    rc = conc__peer_call(m, p, reply, result, &broken, deadline);
  if (rc == 0 && keep != NULL)
    *keep = p;
  else
    conc__peer_close(p);
  return rc;
}

/* A connection for methods: an idle one, or a new one. */
CONC__PRIVATE int conc__peer_get(conc__manager_data *m, conc__peer **out,
                                 double deadline) {
  conc__mutex *guard = conc__mutex_of(m);
  conc_value *reply;
  const conc_value *result;
  int rc;
  for (;;) {
    conc__peer *p;
    unsigned char byte;
    ssize_t n;
    conc__mutex_lock(guard);
    p = m->idle;
    if (p != NULL) m->idle = p->next;
    conc__mutex_unlock(guard);
    if (p == NULL) break;
    if (p->generation != conc__generation) {
      conc__peer_close(p);
      continue;
    }
    if (conc_now() - p->last < 0.1) {
      *out = p;
      return 0;
    }
    /* It has been idle for a while: the server may have gone, or started
       anew. Then there is something to read: the end. */
    n = recv(p->channel.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && conc__would_block(errno)) {
      *out = p;
      return 0;
    }
    conc__peer_close(p);
  }
  rc = conc__peer_function(m, "accept_connection", conc_name(NULL), &reply,
                           &result, out, deadline);
  conc_value_free(reply);
  if (rc == 0) (*out)->channel.eager = false;
  return rc;
}

CONC__PRIVATE void conc__peer_put(conc__manager_data *m, conc__peer *p) {
  conc__mutex *guard = conc__mutex_of(m);
  if (p->channel.in.capacity > CONC__IO_BUFFER ||
      p->channel.out.capacity > CONC__IO_BUFFER)
    conc__channel_free(&p->channel); /* after a large message */
  p->last = conc_now();
  conc__mutex_lock(guard);
  p->next = m->idle;
  m->idle = p;
  conc__mutex_unlock(guard);
}

/* --- proxies --- */

/* How long an answer may be late beyond the timeout that the server was told:
   then the connection is given up. */
#define CONC__REPLY_SLACK 5.0
#define CONC__JOIN_LEAST 0.1 /* seconds that an answer to join has, at least */

typedef struct conc__exchange {
  conc__peer *peer;
  bool broken;
  size_t at;
  conc_value *reply;
  const conc_value *result;
} conc__exchange;

CONC__PRIVATE int conc__exchange_begin(conc__exchange *c, conc__proxy *proxy,
                                       const char *method, double deadline) {
  int rc = conc__peer_get(proxy->manager, &c->peer,
                          deadline <= 0 ? conc_now() + CONC__REPLY_SLACK
                                        : deadline);
  if (rc != 0) return rc;
  c->reply = NULL;
  rc = conc__request_begin(&c->peer->channel.out, &c->at,
                           CONC__LOAD_RELAXED(&proxy->manager->protocol),
                           proxy->id, method);
  if (rc != 0) conc__peer_close(c->peer);
  return rc;
}

/* Sends what is in `out` and awaits the reply. */
CONC__PRIVATE int conc__exchange_ask(conc__exchange *c, conc__proxy *proxy,
                                     double deadline) {
  int rc;
  if (deadline < CONC__NEVER)
    deadline = (deadline <= 0 ? conc_now() : deadline) + CONC__REPLY_SLACK;
  rc = conc__peer_call(proxy->manager, c->peer, &c->reply, &c->result,
                       &c->broken, deadline);
  return rc == -EREMOTEIO ? -EPROTO : rc;
}

/* Gives the connection back. */
CONC__PRIVATE void conc__exchange_leave(conc__exchange *c,
                                        conc__proxy *proxy) {
  if (c->broken)
    conc__peer_close(c->peer);
  else
    conc__peer_put(proxy->manager, c->peer);
}

/* Sends the request, to which the arguments have been added (`rc`: whether
   that went well), and gives the connection back. */
CONC__PRIVATE int conc__exchange_end(conc__exchange *c, conc__proxy *proxy,
                                     int rc, double deadline) {
  c->broken = true;
  if (rc == 0) rc = conc__request_end(&c->peer->channel.out, c->at);
  if (rc == 0) rc = conc__exchange_ask(c, proxy, deadline);
  conc__exchange_leave(c, proxy);
  return rc;
}

/* Appends block and timeout, of which the server waits. */
CONC__PRIVATE int conc__exchange_waiting(conc__buffer *out, double deadline) {
  int rc;
  if (deadline <= 0) return conc__buffer_append(out, "\x89", 1); /* False */
  rc = conc__buffer_append(out, "\x88", 1);
  return rc != 0 ? rc
                 : conc__pickle_put_float(out, conc__remaining(deadline));
}

/* A message as an argument. Stored bodies are in protocol 4: for Python 2
   they are encoded anew. */
CONC__PRIVATE int conc__put_message(conc__buffer *out, const conc__message *m,
                                    int protocol) {
  size_t at = out->size;
  int rc;
  if (m->kind == CONC__RAW)
    return conc__pickle_put_bytes(out, m->data, m->size, protocol);
  rc = conc__buffer_append(out, m->data, m->size);
  return rc == 0 && protocol == 2 ? conc__pickle_downgrade(out, at) : rc;
}

CONC__PRIVATE int conc__proxy_put(conc_queue *q, const conc__message *m,
                                  double deadline) {
  conc__proxy *proxy = (conc__proxy *)q;
  conc__buffer *out;
  conc__exchange c;
  int rc = conc__exchange_begin(&c, proxy, "put", deadline);
  if (rc != 0) return rc;
  out = &c.peer->channel.out;
  if (deadline < CONC__NEVER) rc = conc__buffer_append(out, "(", 1);
  if (rc == 0) rc = conc__put_message(out, m, proxy->manager->protocol);
  if (deadline < CONC__NEVER) {
    if (rc == 0) rc = conc__exchange_waiting(out, deadline);
    if (rc == 0) rc = conc__buffer_append(out, "t", 1);
  } else if (rc == 0) {
    rc = conc__buffer_append(out, "\x85", 1);
  }
  rc = conc__exchange_end(&c, proxy, rc, deadline);
  if (rc == 0) conc_value_free(c.reply);
  return rc;
}

/* Encodes what came and puts it into the stash: there it waits for the next
   get if the sink of this one will not have it. */
CONC__PRIVATE int conc__proxy_stash(conc__proxy *proxy, const conc_value *v) {
  conc__message m;
  conc__buffer b = {NULL, 0, 0, 0};
  int rc = conc__pickle_encode(&b, v, 4);
  m.data = b.data;
  m.size = b.size;
  m.kind = CONC__PICKLED;
  if (rc == 0) rc = conc__fifo_put(proxy->stash, &m, 0);
  conc__buffer_free(&b);
  return rc;
}

/* A get that fails must not lose the message that is the reply to it: what has
   come of it stays in the connection, which the next get begins with. */

/* The connection of a get that failed; NULL: none. The child of a fork must
   not read what its parent will. */
CONC__PRIVATE conc__peer *conc__proxy_owing(conc__proxy *proxy) {
  conc__mutex *guard = conc__mutex_of(proxy->manager);
  conc__peer *p;
  for (;;) {
    conc__mutex_lock(guard);
    p = proxy->late;
    if (p != NULL) {
      proxy->late = p->next;
      CONC__STORE_RELAXED(&proxy->late_count, proxy->late_count - 1);
    }
    conc__mutex_unlock(guard);
    if (p == NULL || p->generation == conc__generation) return p;
    conc__peer_close(p);
  }
}

CONC__PRIVATE void conc__proxy_keep_late_reply(conc__proxy *proxy,
                                               conc__peer *p) {
  conc__mutex *guard = conc__mutex_of(proxy->manager);
  conc__mutex_lock(guard);
  p->next = proxy->late;
  proxy->late = p;
  CONC__STORE_RELAXED(&proxy->late_count, proxy->late_count + 1);
  conc__mutex_unlock(guard);
}

/* The common case: bytes, which need no encoding. Else -EAGAIN. */
CONC__PRIVATE ssize_t conc__proxy_copy(const conc_value *v,
                                       const conc__sink *sink) {
  size_t size = 0;
  const void *data = conc_value_bytes(v, &size);
  if (sink->body != NULL || conc_value_type(v) != CONC_BYTES ||
      size > sink->size)
    return -EAGAIN;
  if (size > 0) memcpy(sink->data, data, size);
  return (ssize_t)size;
}

/* Sends the request, if that is not done yet, and awaits the reply. The
   message's size; -EAGAIN if it is in the stash; an error, and *told: the
   server said so. */
CONC__PRIVATE ssize_t conc__proxy_receive(conc__proxy *proxy,
                                          conc__exchange *c,
                                          const conc__sink *sink, bool *told,
                                          double deadline) {
  conc__channel *ch = &c->peer->channel;
  size_t had = conc__buffer_count(&ch->in);
  ssize_t n = conc__exchange_ask(c, proxy, deadline);
  bool keep = false;
  *told = !c->broken && n < 0;
  if (n == 0) {
    n = conc__proxy_copy(c->result, sink);
    if (n == -EAGAIN) {
      int rc = conc__proxy_stash(proxy, c->result);
      if (rc != 0) n = rc;
    }
    conc_value_free(c->reply);
    keep = n == -ENOMEM;
    if (keep) conc__channel_unread(ch);
  } else if (c->peer->asked) {
    keep = n == -ENOMEM ||
           (n == -ECANCELED && conc__channel_has_begun(ch)) ||
           /* As long as it goes on; the other side may be dead. */
           (n == -ETIMEDOUT && conc__buffer_count(&ch->in) > had);
  }
  if (keep) conc__proxy_keep_late_reply(proxy, c->peer);
  else conc__exchange_leave(c, proxy);
  return n;
}

/* Begins a call of get. */
CONC__PRIVATE int conc__proxy_ask(conc__proxy *proxy, conc__exchange *c,
                                  double deadline) {
  conc__buffer *out;
  int rc = conc__exchange_begin(c, proxy, "get", deadline);
  if (rc != 0) return rc;
  out = &c->peer->channel.out;
  if (deadline >= CONC__NEVER) {
    rc = conc__buffer_append(out, ")", 1);
  } else {
    rc = conc__buffer_append(out, "(", 1);
    if (rc == 0) rc = conc__exchange_waiting(out, deadline);
    if (rc == 0) rc = conc__buffer_append(out, "t", 1);
  }
  if (rc == 0) rc = conc__request_end(out, c->at);
  if (rc != 0) conc__peer_close(c->peer);
  return rc;
}

CONC__PRIVATE ssize_t conc__proxy_get(conc_queue *q, conc__sink *sink,
                                      double deadline) {
  conc__proxy *proxy = (conc__proxy *)q;
  for (;;) {
    conc__exchange c;
    bool late, told;
    ssize_t n = conc__fifo_get(proxy->stash, sink, 0);
    if (n != -ETIMEDOUT) return n;
    c.peer = conc__proxy_owing(proxy);
    late = c.peer != NULL;
    n = late ? 0 : conc__proxy_ask(proxy, &c, deadline);
    if (n != 0) return n;
    n = conc__proxy_receive(proxy, &c, sink, &told, deadline);
    /* That the queue was empty then is no answer to this get. */
    if (n != -EAGAIN && !(late && told)) return n;
  }
}

/* A method without arguments, whose result is a number (or none); which is
   awaited until `end`, and a while. */
CONC__PRIVATE ssize_t conc__proxy_simple(conc_queue *q, const char *method,
                                         double deadline, double end) {
  conc__proxy *proxy = (conc__proxy *)q;
  conc__exchange c;
  int64_t n = 0;
  int rc = conc__exchange_begin(&c, proxy, method, deadline);
  if (rc != 0) return rc;
  rc = conc__exchange_end(
      &c, proxy, conc__buffer_append(&c.peer->channel.out, ")", 1), end);
  if (rc != 0) return rc;
  if (conc_value_type(c.result) != CONC_NONE)
    rc = conc_value_int(c.result, &n) != 0 || n < 0 ? -EPROTO : 0;
  conc_value_free(c.reply);
  return rc != 0 ? rc : (ssize_t)n;
}

CONC__PRIVATE int conc__proxy_unget(conc_queue *q, const conc__message *m,
                                    conc__buffer *b) {
  return conc__fifo_unget(((conc__proxy *)q)->stash, m, b);
}

CONC__PRIVATE ssize_t conc__proxy_size(conc_queue *q) {
  ssize_t n = conc__proxy_simple(q, "qsize", CONC__NEVER, CONC__NEVER);
  conc__proxy *proxy = (conc__proxy *)q;
  ssize_t here = conc__fifo_size(proxy->stash) +
                 (ssize_t)CONC__LOAD_RELAXED(&proxy->late_count);
  return n < 0 ? n : n + here;
}

CONC__PRIVATE int conc__proxy_task_done(conc_queue *q) {
  return (int)conc__proxy_simple(q, "task_done", CONC__NEVER, CONC__NEVER);
}

/* The protocol's join has no timeout: when ours is out, the connection is
   given up, and the server drops the call. Some time for an answer there must
   be. */
CONC__PRIVATE int conc__proxy_join(conc_queue *q, double deadline) {
  double end = deadline;
  if (deadline < CONC__NEVER) {
    double least = conc_now() + CONC__JOIN_LEAST;
    end = (deadline > least ? deadline : least) - CONC__REPLY_SLACK;
    if (end <= 0) end = 1e-9;
  }
  return (int)conc__proxy_simple(q, "join", deadline, end);
}

static const conc__queue_class conc__proxy_class = {
    conc__proxy_put,  conc__proxy_get,       conc__proxy_unget,
    conc__proxy_size, conc__proxy_task_done, conc__proxy_join,
    NULL,             NULL,                  NULL,
    NULL,             NULL};

CONC__PRIVATE conc_queue *conc__proxy_find(conc__manager_data *m,
                                           const char *name) {
  conc__mutex *guard = conc__mutex_of(m);
  conc__proxy *p;
  conc__mutex_lock(guard);
  for (p = m->proxies; p != NULL; p = p->next)
    if (strcmp(p->name, name) == 0) break;
  conc__mutex_unlock(guard);
  return p != NULL ? &p->queue : NULL;
}

/* Asks the server for a queue's id; `create` also counts a reference, which
   is kept until shutdown. */
CONC__PRIVATE int conc__proxy_new(conc__manager_data *m, const char *name,
                                  conc__proxy **out) {
  conc_value *reply;
  const conc_value *result;
  const char *id = NULL;
  conc__proxy *p = NULL;
  int rc = conc__peer_function(m, "create", name, &reply, &result, NULL,
                               conc_now() + m->handshake_timeout);
  if (rc == -EREMOTEIO) return -ENOENT; /* KeyError, in words */
  if (rc != 0) return rc;
  if (conc_value_type(result) == CONC_TUPLE && conc_value_size(result) == 2)
    id = conc_value_str(conc_value_item(result, 0), NULL);
  if (id == NULL || strlen(id) >= sizeof p->id) {
    rc = -EPROTO;
  } else {
    p = (conc__proxy *)conc__queue_make(&conc__proxy_class, sizeof *p);
    if (p != NULL) p->stash = conc_queue_new(NULL);
    if (p == NULL || p->stash == NULL) rc = -ENOMEM;
  }
  if (rc == 0) {
    memcpy(p->id, id, strlen(id) + 1);
    memcpy(p->name, name, strlen(name) + 1);
    p->queue.name = p->name;
    p->manager = m;
    *out = p;
  } else {
    CONC_FREE(p);
  }
  conc_value_free(reply);
  return rc;
}

/* Gives the references back; that the server has gone already is normal. */
CONC__PRIVATE void conc__client_shutdown(conc__manager_data *m) {
  while (m->proxies != NULL) {
    conc__proxy *p = m->proxies;
    conc__peer *peer;
    conc_value *reply;
    const conc_value *result;
    m->proxies = p->next;
    if (m->generation == conc__generation) { /* a child has none of its own */
      conc__peer_function(m, "decref", p->id, &reply, &result, NULL,
                          conc_now() + 1);
      conc_value_free(reply);
    }
    while ((peer = p->late) != NULL) {
      p->late = peer->next;
      conc__peer_close(peer);
    }
    conc_queue_free(p->stash);
    CONC_FREE(p);
  }
  while (m->idle != NULL) {
    conc__peer *p = m->idle;
    m->idle = p->next;
    conc__peer_close(p);
  }
}

/* ---------------------------------------------------------------------------
   >>manager: conc_manager
   ------------------------------------------------------------------------ */

CONC_API int conc_manager_register_queue(conc_manager *manager,
                                         const char *name, conc_queue *queue) {
  conc__manager_data *m;
  conc__mutex *guard;
  char *copy;
  int rc = 0;
  if (name == NULL || *name == 0 || queue == NULL) return -EINVAL;
  m = conc__manager_state(manager);
  copy = m != NULL ? (char *)CONC_MALLOC(strlen(name) + 1) : NULL;
  if (copy == NULL) return -ENOMEM;
  memcpy(copy, name, strlen(name) + 1);
  guard = conc__mutex_of(m);
  conc__mutex_lock(guard);
  if (conc__export_find(m, name) != 0) {
    rc = -EEXIST;
  } else if (m->exports_count == m->exports_size) {
    void *e = conc__grow(m->exports, &m->exports_size, m->exports_count + 1,
                         sizeof *m->exports);
    if (e != NULL) m->exports = (conc__export *)e;
    else rc = -ENOMEM;
  }
  if (rc == 0) {
    m->exports[m->exports_count].name = copy;
    m->exports[m->exports_count++].queue = queue;
  }
  conc__mutex_unlock(guard);
  if (rc != 0) CONC_FREE(copy);
  return rc;
}

CONC_API int conc_manager_start(conc_manager *manager) {
  return conc__server_start(manager, false);
}

CONC_API int conc_manager_serve_forever(conc_manager *manager) {
  conc__manager_data *m;
  int rc = conc__server_start(manager, true);
  if (rc != 0) return rc;
  m = manager->state;
  rc = conc_join(&m->thread, CONC_FOREVER);
  if (rc == -ECANCELED && !conc_is_alive(&m->thread)) rc = 0;
  conc_event_set(&m->left); /* from now on a shutdown may free it */
  return rc;
}

CONC_API int conc_manager_connect(conc_manager *manager, double timeout) {
  double deadline = conc__deadline(timeout);
  conc__manager_data *m;
  conc__peer *p;
  int rc = conc__manager_options(manager);
  if (rc != 0) return rc;
  m = manager->state;
  rc = conc__peer_get(m, &p, deadline);
  if (rc != 0) {
    conc__manager_unwind(manager);
    return rc == -EREMOTEIO || rc == -EPIPE ? -EPROTO : rc;
  }
  m->client = true;
  m->generation = conc__generation;
  conc__peer_put(m, p);
  return 0;
}

CONC_API conc_queue *conc_manager_get(conc_manager *manager,
                                      const char *name) {
  conc__manager_data *m = manager->state;
  conc_queue *q = NULL;
  conc__proxy *p;
  conc__mutex *guard;
  size_t id;
  int rc = 0;
  if (m == NULL || (!m->server && !m->client) || name == NULL ||
      strlen(name) >= sizeof p->name) {
    errno = EINVAL;
    return NULL;
  }
  if (m->server) {
    q = conc__export_by_name(m, name, &id);
    if (q == NULL) errno = ENOENT;
    return q;
  }
  q = conc__proxy_find(m, name);
  if (q != NULL) return q;
  rc = conc__proxy_new(m, name, &p);
  if (rc != 0) {
    errno = -rc;
    return NULL;
  }
  guard = conc__mutex_of(m);
  conc__mutex_lock(guard);
  p->next = m->proxies;
  m->proxies = p;
  conc__mutex_unlock(guard);
  return &p->queue;
}

CONC_API const char *conc_manager_address(const conc_manager *manager) {
  const conc__manager_data *m = manager->state;
  return m != NULL && m->server ? m->address : NULL;
}

CONC_API int conc_manager_shutdown(conc_manager *manager) {
  conc__manager_data *m = manager->state;
  size_t i;
  if (m == NULL) return -EINVAL;
  if (m->server) {
    while (conc_is_alive(&m->thread)) {
      conc_cancel(&m->root);
      conc_join(&m->thread, 0.01);
    }
    while (m->forever && m->thread.status != -ECHILD &&
           conc_event_wait(&m->left, CONC_FOREVER) != 0) {
    }
    if (m->thread.status == -ECHILD) { /* the parent goes on serving */
      m->address[0] = 0;
      conc__server_close(m);
    }
  }
  if (m->client) conc__client_shutdown(m);
  for (i = 0; i < m->exports_count; i++) CONC_FREE(m->exports[i].name);
  CONC_FREE(m->exports);
  CONC_FREE(m);
  manager->state = NULL;
  return 0;
}

/* ---------------------------------------------------------------------------
   >>extras: conc_progress

   A bar for any number of tasks that never makes one of them wait: steps are
   counted by an atomic addition, and of the tasks that find a line due, the
   one that sets `busy` writes it, while the others go on. `busy` may be set by
   any task that finds it 0; must be set while `start`, `next`, `rate`, `shown`
   and `shown_at` are read or written, which it guards; is cleared by the task
   that set it. Only conc_progress_close works without it, since no other task
   may use the bar by then. Uses nothing but the clock.
   ------------------------------------------------------------------------ */

/* --- a line --- */

/* Writes "MM:SS" or "H:MM:SS"; "?" for a time that is not known (negative) or
   longer than thirty years. */
CONC__PRIVATE void conc__progress_time(char buf[32], double seconds) {
  bool known = seconds >= 0 && seconds < 1e9;
  unsigned long n = known ? (unsigned long)seconds : 0;
  if (!known)
    snprintf(buf, 32, "?");
  else if (n >= 3600)
    snprintf(buf, 32, "%lu:%02lu:%02lu", n / 3600, n / 60 % 60, n % 60);
  else
    snprintf(buf, 32, "%02lu:%02lu", n / 60, n % 60);
}

/* Bytes of a line, at most. What goes into it is cut: a name to 100 bytes, a
   unit to 20, the bar to 100 columns. */
#define CONC__PROGRESS_LINE 512

/* Writes a line as tqdm does, for `done` steps at `now`, and returns its
   length, at most `width` and less than CONC__PROGRESS_LINE. A width of 0 is
   any, with a bar of ten columns. A rate of 0 or less is not known. */
CONC__PRIVATE size_t conc__progress_line(const conc_progress *p, size_t done,
                                         double now, double rate, size_t width,
                                         char *line) {
  const char *unit = p->unit != NULL ? p->unit : "it";
  char elapsed[32], left[32], speed[64], head[160], tail[256];
  size_t n, columns, tenths, i;
  conc__progress_time(elapsed, now - p->start);
  if (rate <= 0)
    snprintf(speed, sizeof speed, "?%.20s/s", unit);
  else if (rate < 1)
    snprintf(speed, sizeof speed, "%5.2fs/%.20s", 1 / rate, unit);
  else
    snprintf(speed, sizeof speed, "%5.2f%.20s/s", rate, unit);
  snprintf(head, sizeof head, "%.100s%s", p->name != NULL ? p->name : "",
           p->name != NULL ? ": " : "");
  /* Without a total, or with one that was wrong, there is no bar, no per cent
     and no time that is left. */
  if (p->total == 0 || done > p->total) {
    n = (size_t)snprintf(line, CONC__PROGRESS_LINE, "%s%zu%.20s [%s, %s]",
                         head, done, unit, elapsed, speed);
    return width > 0 && n > width ? width : n;
  }
  conc__progress_time(left, rate > 0 ? (double)(p->total - done) / rate : -1);
  snprintf(tail, sizeof tail, "| %zu/%zu [%s<%s, %s]", done, p->total, elapsed,
           left, speed);
  n = (size_t)snprintf(line, CONC__PROGRESS_LINE, "%s%3.0f%%|", head,
                       (double)done * 100 / (double)p->total);
  /* The bar has what the two ends leave of the width; if they leave nothing,
     the line is cut at the end. */
  columns = width == 0                    ? 10
            : width > n + strlen(tail) ? width - n - strlen(tail)
                                       : 0;
  if (columns > 100) columns = 100;
  /* As tqdm's bar in ASCII: full columns, then one digit for tenths. */
  tenths = (size_t)((double)done / (double)p->total * (double)columns * 10);
  for (i = 0; i < columns; i++, tenths -= tenths < 10 ? tenths : 10)
    line[n++] = " 123456789#"[tenths < 10 ? tenths : 10];
  n += (size_t)snprintf(line + n, CONC__PROGRESS_LINE - n, "%s", tail);
  CONC__CHECK(n < CONC__PROGRESS_LINE);
  return width > 0 && n > width ? width : n;
}

/* --- where and when it is written --- */

/* The columns of a terminal, 80 where the system does not tell; 0: it is
   none. */
CONC__PRIVATE size_t conc__terminal_width(int fd) {
#if CONC_HAVE_WINSIZE
  struct winsize size;
  if (isatty(fd) && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    return size.ws_col;
#endif
  return isatty(fd) ? 80 : 0;
}

/* Sends all of a line, whatever the descriptor is, and blocks meanwhile, as
   long as a terminal does. 0 or negative errno. */
CONC__PRIVATE int conc__progress_send(int fd, const char *line, size_t n) {
  size_t at = 0;
  while (at < n) {
    /* First as to a socket, which is the only way to be spared SIGPIPE. */
    ssize_t rc = send(fd, line + at, n - at, MSG_NOSIGNAL);
    if (rc < 0 && errno == ENOTSOCK) rc = write(fd, line + at, n - at);
    if (rc < 0 && errno != EINTR) return -errno;
    if (rc > 0) at += (size_t)rc;
  }
  return 0;
}

/* Writes the line for now, and says when the next one is due. `last`: ends it,
   with the rate since the beginning. Called by the task that has set `busy`,
   or by conc_progress_close. 0 or negative errno. */
CONC__PRIVATE int conc__progress_show(conc_progress *p, double now,
                                      bool last) {
  char line[CONC__PROGRESS_LINE + CONC__PROGRESS_LINE];
  int fd = p->fd != 0 ? p->fd : 2;
  size_t columns = conc__terminal_width(fd);
  size_t done = CONC__LOAD_RELAXED(&p->done);
  size_t width = p->width > 0 ? p->width : columns > 0 ? columns - 1 : 0;
  size_t n = 0;
  double interval = p->interval > 0 ? p->interval : columns > 0 ? 0.1 : 10;
  double rate = 0;
  if (now > p->shown_at)
    rate = (double)(done - p->shown) / (now - p->shown_at);
  /* As tqdm smoothes it: the newest rate counts three tenths. */
  p->rate = p->rate > 0 ? 0.3 * rate + 0.7 * p->rate : rate;
  p->shown = done;
  p->shown_at = now;
  rate = p->rate;
  if (last) rate = now > p->start ? (double)done / (now - p->start) : 0;
  if (width >= CONC__PROGRESS_LINE) width = CONC__PROGRESS_LINE - 1;
  if (columns > 0) line[n++] = '\r';
  n += conc__progress_line(p, done, now, rate, width, line + n);
  /* A line that is shorter than the one before must cover it. */
  while (columns > 0 && n <= width) line[n++] = ' ';
  if (last || columns == 0) line[n++] = '\n';
  p->next = now + interval; /* also if this cannot be written */
  return conc__progress_send(fd, line, n);
}

CONC_API int conc_progress_update(conc_progress *progress, size_t n) {
  unsigned busy = 0;
  double now;
  int rc = 0;
  /* Relaxed, for it orders nothing: a line may be some steps behind, and the
     last one is written when all tasks have been waited for. */
  __atomic_fetch_add(&progress->done, n, __ATOMIC_RELAXED);
  if (progress->off) return 0;
  /* Acquires what the last writer left, as the store below releases it. */
  if (!CONC__CAS(&progress->busy, &busy, 1u)) return 0;
  CONC__CHECK(busy == 0);
  now = conc_now();
  if (progress->start <= 0) progress->start = progress->shown_at = now;
  if (now >= progress->next)
    rc = conc__progress_show(progress, now, false);
  CONC__STORE(&progress->busy, 0u);
  return rc;
}

/* Zeroes what is private, but for `busy`, which is 0: the struct is as new. */
CONC_API int conc_progress_close(conc_progress *progress) {
  double now = conc_now();
  int rc = 0;
  if (progress->start <= 0) progress->start = progress->shown_at = now;
  if (!progress->off) rc = conc__progress_show(progress, now, true);
  progress->done = progress->shown = 0;
  progress->start = progress->next = progress->shown_at = progress->rate = 0;
  return rc;
}

#if defined(__clang__) /* see CONC_API_HOT */
#pragma clang diagnostic pop
#endif

#ifdef CONC_USE_HELGRIND
#undef __atomic_load_n
#undef __atomic_store_n
#undef __atomic_exchange_n
#undef __atomic_compare_exchange_n
#undef __atomic_fetch_add
#undef __atomic_fetch_sub
#undef __atomic_add_fetch
#undef __atomic_sub_fetch
#undef __atomic_fetch_and
#undef __atomic_fetch_or
#endif

#ifdef __cplusplus
}
#endif

#endif /* CONC_IMPLEMENTATION */
