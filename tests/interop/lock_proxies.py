"""Classes like those of threading and queue, whose objects are conc.h's.

    made = lock_proxies.Space('local', 'shim.so')
    lock = made.Lock()

The classes only translate: arguments into a timeout in seconds, errors into
what Python raises. What they do not have, conc.h has not. A space is where
their objects are:

    local   in this process: conc_lock and so on, without a manager
    served  in a server of C; what is called are a client's proxies
    types   the same, but made by the client, as "Lock", where it can
    python  in a server of Python, in a process of its own; proxies, too

    python lock_proxies.py HOST:PORT AUTHKEY

is that server of Python. It makes what the lines of its input tell.
"""
import ctypes
import errno
import functools
import itertools
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from _thread import TIMEOUT_MAX
from ctypes import (CFUNCTYPE, POINTER, byref, c_bool, c_char, c_char_p,
                    c_double, c_int, c_size_t, c_ssize_t, c_void_p)

FOREVER = 1e300
KEY = 'abc'

Empty, Full = queue.Empty, queue.Full
ShutDown = getattr(queue, 'ShutDown', None) or type('ShutDown', (Exception,),
                                                    {})
ACTION = CFUNCTYPE(c_int, c_void_p)
PREDICATE = CFUNCTYPE(c_bool, c_void_p)

# Of each function its result and its arguments.
FUNCTIONS = {
    'shim_new': (c_void_p, c_char, c_size_t, c_size_t, c_void_p),
    'shim_serve': (c_int,),
    'shim_connect': (c_int, c_char_p, c_char_p),
    'shim_register': (c_int, c_char, c_char_p, c_void_p, c_char_p),
    'shim_find': (c_void_p, c_char, c_char_p),
    'shim_lock_of': (c_void_p, c_void_p),
    'shim_shutdown': (c_int,),
    'shim_put': (c_int, c_void_p, c_char_p, c_size_t, c_double),
    'shim_get': (c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t),
                 c_double),
    'conc_free': (None, c_void_p),
    'conc_strerror': (c_char_p, c_int),
    'conc_lock_acquire': (c_int, c_void_p, c_double),
    'conc_lock_release': (c_int, c_void_p),
    'conc_lock_locked': (c_bool, c_void_p),
    'conc_rlock_acquire': (c_int, c_void_p, c_double),
    'conc_rlock_release': (c_int, c_void_p),
    'conc_event_set': (c_int, c_void_p),
    'conc_event_clear': (c_int, c_void_p),
    'conc_event_is_set': (c_bool, c_void_p),
    'conc_event_wait': (c_int, c_void_p, c_double),
    'conc_cond_wait': (c_int, c_void_p, c_void_p, c_double),
    'conc_cond_wait_for': (c_int, c_void_p, c_void_p, PREDICATE, c_void_p,
                           c_double),
    'conc_cond_notify': (c_int, c_void_p, c_size_t),
    'conc_cond_notify_all': (c_int, c_void_p),
    'conc_sem_acquire': (c_int, c_void_p, c_double),
    'conc_sem_release': (c_int, c_void_p, c_size_t),
    'conc_sem_value': (c_size_t, c_void_p),
    'conc_barrier_wait': (c_int, c_void_p, c_double),
    'conc_barrier_reset': (c_int, c_void_p),
    'conc_barrier_abort': (c_int, c_void_p),
    'conc_barrier_broken': (c_bool, c_void_p),
    'conc_barrier_n_waiting': (c_int, c_void_p),
    'conc_qsize': (c_ssize_t, c_void_p),
    'conc_task_done': (c_int, c_void_p),
    'conc_queue_join': (c_int, c_void_p, c_double),
    'conc_queue_close': (c_int, c_void_p)}


class Error(RuntimeError):
    """What conc.h returned, which has no other exception here."""

    def __init__(self, number):
        super().__init__(conc.conc_strerror(number).decode())
        self.number = number


def load(path):
    """What all classes call; a process loads it once."""
    global conc
    conc = ctypes.CDLL(path, use_errno=True)
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(conc, name)
        function.restype, function.argtypes = result, arguments


def checked(number):
    if number < 0:
        raise Error(number)
    return number


def in_time(number):
    """Whether what a call waited for has come."""
    return number != -errno.ETIMEDOUT and checked(number) >= 0


def lock_timeout(blocking, timeout):
    """As a lock of Python takes its arguments."""
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout < 0 and timeout != -1:
        raise ValueError('timeout value must be a non-negative number')
    if timeout > TIMEOUT_MAX:
        raise OverflowError('timeout value is too large')
    return 0 if not blocking else FOREVER if timeout == -1 else timeout


def wait_timeout(timeout):
    return FOREVER if timeout is None else max(timeout, 0)


class Shared:
    """An object of conc.h: `kind` is its letter in shim.c."""
    space = kind = None

    def make(self, *args, **kwds):
        self.at, self.name, self.server_at = self.space.make(
            self.kind, *args, **kwds)

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *error):
        self.release()

    def text(self, state):
        return '<%s.%s at %#x: %s>' % (__name__, type(self).__name__, id(self),
                                       state)


class Lock(Shared):
    kind = 'l'

    def __init__(self, named=False):
        self.make(named=named)

    def acquire(self, blocking=True, timeout=-1):
        rc = conc.conc_lock_acquire(self.at, lock_timeout(blocking, timeout))
        # The caller has it already, and has not asked to wait for ever.
        if rc == -errno.EDEADLK and not blocking:
            return False
        return in_time(rc)

    def release(self):
        checked(conc.conc_lock_release(self.at))

    def locked(self):
        return conc.conc_lock_locked(self.at)

    def __repr__(self):
        return '<%s %s.%s object at %#x>' % (
            'locked' if self.locked() else 'unlocked', __name__,
            type(self).__name__, id(self))


class RLock(Lock):
    kind = 'r'

    def acquire(self, blocking=True, timeout=-1):
        return in_time(conc.conc_rlock_acquire(
            self.at, lock_timeout(blocking, timeout)))

    def release(self):
        checked(conc.conc_rlock_release(self.at))


class Event(Shared):
    kind = 'e'

    def __init__(self):
        self.make()

    def is_set(self):
        return conc.conc_event_is_set(self.at)

    def set(self):
        checked(conc.conc_event_set(self.at))

    def clear(self):
        checked(conc.conc_event_clear(self.at))

    def wait(self, timeout=None):
        return in_time(conc.conc_event_wait(self.at, wait_timeout(timeout)))

    def __repr__(self):
        return self.text('set' if self.is_set() else 'unset')


class Condition(Shared):
    kind = 'c'

    def __init__(self, lock=None):
        if lock is None:
            lock = self.space.lock_of_condition()
        self.make(lock=lock)
        if lock is None:
            lock = self.space.RLock.__new__(self.space.RLock)
            lock.at = conc.shim_lock_of(self.at)
        self.lock = lock
        self.acquire, self.release = lock.acquire, lock.release
        self.locked = lock.locked

    def wait(self, timeout=None):
        return in_time(conc.conc_cond_wait(self.at, self.lock.at,
                                           wait_timeout(timeout)))

    def wait_for(self, predicate, timeout=None):
        raised = []

        def is_so(_):
            try:
                return bool(predicate())
            except BaseException as error:
                raised.append(error)
                return True
        got = in_time(conc.conc_cond_wait_for(
            self.at, self.lock.at, PREDICATE(is_so), None,
            wait_timeout(timeout)))
        if raised:
            raise raised[0]
        return got

    def notify(self, n=1):
        checked(conc.conc_cond_notify(self.at, n))

    def notify_all(self):
        checked(conc.conc_cond_notify_all(self.at))

    def __repr__(self):
        return repr(self.lock)


class Semaphore(Shared):
    kind = 's'
    bounded = False

    def __init__(self, value=1):
        if value < 0:
            raise ValueError('semaphore initial value must be >= 0')
        self.first = value
        self.make(value, bound=value if self.bounded else 0)

    def acquire(self, blocking=True, timeout=None):
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        return in_time(conc.conc_sem_acquire(
            self.at, wait_timeout(timeout) if blocking else 0))

    def release(self, n=1):
        rc = conc.conc_sem_release(self.at, n)
        if rc in (-errno.EINVAL, -errno.EOVERFLOW):
            raise ValueError(str(Error(rc)))
        checked(rc)

    def value(self):
        return conc.conc_sem_value(self.at)

    def __repr__(self):
        return self.text('value=%d' % self.value())


class BoundedSemaphore(Semaphore):
    bounded = True

    def __repr__(self):
        return self.text('value=%d/%d' % (self.value(), self.first))


class OwnerlessLock(BoundedSemaphore):
    """What a Lock of Python is: it may be acquired by one thread and released
    by another."""

    def acquire(self, blocking=True, timeout=-1):
        return in_time(conc.conc_sem_acquire(
            self.at, lock_timeout(blocking, timeout)))

    def locked(self):
        return self.value() == 0

    __repr__ = Lock.__repr__


class Barrier(Shared):
    kind = 'b'

    def __init__(self, parties, action=None, timeout=None):
        if parties < 1:
            raise ValueError('parties must be > 0')
        self.parties, self.timeout, self.raised = parties, timeout, None

        def act(_):
            try:
                action()
                return 0
            except BaseException as error:
                self.raised = error
                return -errno.ECANCELED
        self.action = ACTION(act) if action else None
        self.make(parties, action=self.action)

    def wait(self, timeout=None):
        if timeout is None:
            timeout = self.timeout
        rc = conc.conc_barrier_wait(self.at, wait_timeout(timeout))
        if rc == -errno.ECANCELED and self.raised:
            raise self.raised
        if rc in (-errno.EPIPE, -errno.ETIMEDOUT):
            raise threading.BrokenBarrierError
        return checked(rc)

    def reset(self):
        checked(conc.conc_barrier_reset(self.at))

    def abort(self):
        checked(conc.conc_barrier_abort(self.at))

    @property
    def n_waiting(self):
        return conc.conc_barrier_n_waiting(self.at)

    @property
    def broken(self):
        return conc.conc_barrier_broken(self.at)

    def __repr__(self):
        return self.text('broken' if self.broken else 'waiters=%d/%d' % (
            self.n_waiting, self.parties))


class Queue(Shared):
    kind = 'q'

    def __init__(self, maxsize=0):
        self.maxsize, self.is_shutdown = maxsize, False
        self.make(max(maxsize, 0))

    @staticmethod
    def seconds(block, timeout):
        if block and timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        return wait_timeout(timeout) if block else 0

    def put(self, item, block=True, timeout=None):
        data = pickle.dumps(item)
        rc = conc.shim_put(self.at, data, len(data),
                           self.seconds(block, timeout))
        if rc == -errno.EPIPE:
            raise ShutDown
        if not in_time(rc):
            raise Full

    def get(self, block=True, timeout=None):
        data, size = c_void_p(), c_size_t()
        rc = conc.shim_get(self.at, byref(data), byref(size),
                           self.seconds(block, timeout))
        if rc == -errno.EPIPE:
            raise ShutDown
        if not in_time(rc):
            raise Empty
        try:
            return pickle.loads(ctypes.string_at(data, size.value))
        finally:
            conc.conc_free(data)

    def put_nowait(self, item):
        self.put(item, False)

    def get_nowait(self):
        return self.get(False)

    def qsize(self):
        return checked(conc.conc_qsize(self.at))

    def empty(self):
        return self.qsize() == 0

    def full(self):
        return 0 < self.maxsize <= self.qsize()

    def task_done(self):
        rc = conc.conc_task_done(self.at)
        if rc == -errno.EINVAL:
            raise ValueError(str(Error(rc)))
        checked(rc)

    def join(self):
        checked(conc.conc_queue_join(self.at, FOREVER))

    def shutdown(self, immediate=False):
        """Where the queue is: a client cannot."""
        if immediate:
            raise NotImplementedError('conc_queue_close leaves the messages')
        self.is_shutdown = True
        self.space.close(self)


class Space:
    """The classes, with their objects in one of the places."""

    def __init__(self, where, shim):
        load(shim)
        self.where = where
        self.numbers = itertools.count()
        for base in (Lock, RLock, Event, Condition, Semaphore,
                     BoundedSemaphore, OwnerlessLock, Barrier, Queue):
            setattr(self, base.__name__,
                    type(base.__name__, (base,), {'space': self}))
        # One that a condition can be made with.
        self.NamedLock = functools.partial(self.Lock, named=True)

    def start(self):
        if self.where == 'python':
            self.server = subprocess.Popen(
                [sys.executable, '-W', 'ignore', __file__, '127.0.0.1:0', KEY],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                universal_newlines=True)
            # They are kept: a client does not copy them.
            self.address = self.server.stdout.readline().strip().encode()
            self.key = KEY.encode()
            self.asking = threading.Lock()
            checked(conc.shim_connect(self.address, self.key))
        elif self.where != 'local':
            checked(conc.shim_serve())

    def end(self):
        """No call is under way."""
        if self.where != 'local':
            checked(conc.shim_shutdown())
        if self.where == 'python':
            self.server.stdin.close()
            self.server.wait()
            self.server.stdout.close()

    def ask(self, *words):
        """Tells the server of Python what to do, and waits until it has."""
        with self.asking:
            self.server.stdin.write(json.dumps(words) + '\n')
            self.server.stdin.flush()
            said = self.server.stdout.readline()
        assert said == 'done\n', said

    def lock_of_condition(self):
        """None: it has one by itself."""
        return None if self.where == 'types' else self.RLock(named=True)

    def make(self, kind, n=0, bound=0, action=None, lock=None, named=False):
        """An object: what is called with it, its name, and what is there."""
        kind, name, there = kind.encode(), None, None
        by_type = {b'l': 'Lock', b'r': 'RLock', b'e': 'Event',
                   b'c': 'Condition'}
        if self.where == 'types' and not named and lock is None and \
                kind in by_type:
            name = by_type[kind]
        elif self.where == 'python':
            name = 'made%d' % next(self.numbers)
            self.ask('make', kind.decode(), name, n, bound,
                     lock and lock.name)
        else:
            there = conc.shim_new(kind, n, bound,
                                  ctypes.cast(action, c_void_p))
            assert there
        if self.where == 'local':
            return there, name, there
        if there:
            name = 'made%d' % next(self.numbers)
            checked(conc.shim_register(kind, name.encode(), there,
                                       lock and lock.name.encode()))
        at = conc.shim_find(kind, name.encode())
        if not at:
            raise Error(-ctypes.get_errno())
        return at, name, there

    def close(self, made):
        if self.where == 'python':
            self.ask('shutdown', made.name)
        else:
            checked(conc.conc_queue_close(made.server_at))


def serve():
    """A server of Python that is told by its input what there is."""
    from multiprocessing.managers import (AcquirerProxy, BarrierProxy,
                                          ConditionProxy, EventProxy,
                                          SyncManager)

    class Manager(SyncManager):
        pass

    made = {}
    kinds = {'l': AcquirerProxy, 'r': AcquirerProxy, 'e': EventProxy,
             'c': ConditionProxy, 's': AcquirerProxy, 'b': BarrierProxy,
             'q': None}

    def make(kind, name, n, bound, lock):
        made[name] = (threading.Lock() if kind == 'l' else
                      threading.RLock() if kind == 'r' else
                      threading.Event() if kind == 'e' else
                      threading.Condition(made[lock]) if kind == 'c' else
                      threading.BoundedSemaphore(n) if bound else
                      threading.Semaphore(n) if kind == 's' else
                      threading.Barrier(n) if kind == 'b' else
                      queue.Queue(n))
        Manager.register(name, callable=lambda: made[name],
                         proxytype=kinds[kind])

    def obey():
        for line in iter(sys.stdin.readline, ''):
            what, *words = json.loads(line)
            if what == 'make':
                make(*words)
            else:
                made[words[0]].shutdown()
            print('done', flush=True)
        os._exit(0)
    host, port = sys.argv[1].rsplit(':', 1)
    # From the first register() on a class has names of its own.
    Manager.register('none')
    server = Manager((host, int(port)), sys.argv[2].encode()).get_server()
    print('%s:%d' % server.address, flush=True)
    threading.Thread(target=obey, daemon=True).start()
    server.serve_forever()


if __name__ == '__main__':
    serve()
