# -*- coding: utf-8 -*-
"""What a Python program may expect of a queue behind a manager.

    python queue_semantics.py HOST:PORT AUTHKEY [--reference]

Prints a line per test. --reference: the server is Python's own, of which
some things cannot be asked (it runs what an evil pickle says, and loses the
item that a killed client was waiting for).
"""
from __future__ import print_function, unicode_literals
import os
import signal
import struct
import sys
import threading
import time
import traceback
import multiprocessing
import multiprocessing.connection
from multiprocessing.managers import BaseManager, RemoteError
try:
    import queue
except ImportError:
    import Queue as queue

PYTHON2 = str is bytes
HOST, PORT = sys.argv[1].rsplit(':', 1)
AUTHKEY = sys.argv[2]
if not isinstance(AUTHKEY, bytes):
    AUTHKEY = AUTHKEY.encode()
REFERENCE = '--reference' in sys.argv
SLOW = float(os.environ.get('TEST_SLOW', '1'))
SOON = 10 * SLOW  # "at once", on a machine that has other things to do


class QueueManager(BaseManager):
    pass


# The proxies of one object share a connection, and a Python client closes it
# when the first of them goes, even in the middle of another's call, should
# the garbage collector find it there. So all are kept.
KEPT = []


def register(name):
    QueueManager.register(str(name))
    make = getattr(QueueManager, name)

    def make_and_keep(manager):
        KEPT.append(make(manager))
        return KEPT[-1]
    setattr(QueueManager, name, make_and_keep)


for name in ('get_task_queue', 'get_result_queue', 'get_small_queue',
             'get_nothing'):
    register(name)


def connect(authkey=AUTHKEY):
    manager = QueueManager(address=(str(HOST), int(PORT)), authkey=authkey)
    manager.connect()
    return manager


TESTS = []


def test(function):
    TESTS.append(function)
    return function


def raises(kind, function, *args, **kwds):
    """Calls; the exception must be of exactly this kind. Returns it."""
    try:
        result = function(*args, **kwds)
    except Exception as error:
        assert type(error) is kind, 'wanted %s, got %r' % (kind, error)
        return error
    assert False, 'wanted %s, got result %r' % (kind, result)


def in_thread(function, *args):
    """Starts function; the thread's .result is set when it has returned."""
    def run():
        thread.result = function(*args)
    thread = threading.Thread(target=run)
    thread.daemon = True
    thread.result = None
    thread.start()
    return thread


def finish(thread):
    thread.join(SOON)
    assert not thread.is_alive(), 'still waiting after %g s' % SOON
    return thread.result


@test
def put_and_get_by_position_and_by_keyword(m):
    q = m.get_task_queue()
    q.put(1)
    q.put(2, True)
    q.put(3, True, 5)
    q.put(4, False)
    q.put(5, block=True, timeout=5)
    q.put(item=6)
    q.put(7, timeout=None)
    q.put(8, block=False, timeout=5)
    q.put_nowait(9)
    q.put_nowait(item=10)
    assert q.qsize() == 10
    got = [q.get(), q.get(True), q.get(True, 5), q.get(False),
           q.get(block=True, timeout=5), q.get(timeout=5), q.get(timeout=None),
           q.get(block=False, timeout=5), q.get_nowait(), q.get(1, 0.5)]
    assert got == list(range(1, 11)), got
    assert q.qsize() == 0


@test
def empty_and_full_arrive_as_the_exceptions_of_the_queue_module(m):
    q, small = m.get_task_queue(), m.get_small_queue()
    for error in (raises(queue.Empty, q.get_nowait),
                  raises(queue.Empty, q.get, False),
                  raises(queue.Empty, q.get, block=False),
                  raises(queue.Empty, q.get, timeout=0),
                  raises(queue.Empty, q.get, True, 0.01)):
        assert error.args == ()
    assert q.empty() is True and q.full() is False
    assert small.empty() is True and small.full() is False
    small.put('a')
    assert small.empty() is False and small.full() is False
    small.put('b')
    assert small.full() is True and small.qsize() == 2
    for error in (raises(queue.Full, small.put_nowait, 'c'),
                  raises(queue.Full, small.put, 'c', False),
                  raises(queue.Full, small.put, 'c', block=False),
                  raises(queue.Full, small.put, 'c', timeout=0),
                  raises(queue.Full, small.put, 'c', True, 0.01)):
        assert error.args == ()
    assert [small.get(), small.get()] == ['a', 'b']


@test
def a_timeout_is_waited_for(m):
    q = m.get_task_queue()
    for seconds in (0.1, 0.25):
        start = time.time()
        raises(queue.Empty, q.get, timeout=seconds)
        waited = time.time() - start
        assert seconds - 0.01 <= waited < seconds + SOON, waited
    small = m.get_small_queue()
    small.put(1)
    small.put(2)
    start = time.time()
    raises(queue.Full, small.put, 3, timeout=0.1)
    assert 0.09 <= time.time() - start < SOON
    assert small.get() + small.get() == 3


@test
def a_waiting_get_is_ended_by_a_put(m):
    q = m.get_task_queue()
    for timeout in (None, 30):
        getter = in_thread(lambda: q.get(timeout=timeout))
        time.sleep(0.05)
        assert getter.is_alive()
        q.put('late')
        assert finish(getter) == 'late'


@test
def a_waiting_put_is_ended_by_a_get(m):
    small = m.get_small_queue()
    small.put(1)
    small.put(2)
    putter = in_thread(lambda: (small.put(3), 'done')[1])
    time.sleep(0.05)
    assert putter.is_alive()
    assert small.get() == 1
    assert finish(putter) == 'done'
    assert [small.get(), small.get()] == [2, 3]


@test
def arguments_that_do_not_fit_are_type_errors(m):
    q = m.get_task_queue()
    raises(TypeError, q.put)
    raises(TypeError, q.put, 1, True, None, 4)
    raises(TypeError, q.put, 1, nonsense=2)
    raises(TypeError, q.put, 1, item=2)
    raises(TypeError, q.get, True, None, 3)
    raises(TypeError, q.get, nonsense=1)
    raises(TypeError, q.get, True, block=True)
    raises(TypeError, q.put_nowait)
    raises(TypeError, q.put_nowait, 1, 2)
    raises(TypeError, q.get_nowait, 1)
    raises(TypeError, q.qsize, 1)
    raises(TypeError, q.empty, 1)
    raises(TypeError, q.full, nonsense=1)
    raises(TypeError, q.task_done, 1)
    raises(TypeError, q.join, 1)
    assert q.qsize() == 0


@test
def a_negative_timeout_is_a_value_error(m):
    error = raises(ValueError, m.get_task_queue().get, True, -1)
    assert 'timeout' in str(error), error
    raises(ValueError, m.get_small_queue().put, 1, True, -0.5)
    raises(queue.Empty, m.get_task_queue().get, False, -1)  # not looked at


@test
def join_waits_until_every_task_is_done(m):
    q = m.get_result_queue()
    q.join()
    raises(ValueError, q.task_done)
    for i in range(3):
        q.put(i)
    joiner = in_thread(lambda: (q.join(), 'joined')[1])
    for i in range(3):
        assert q.get() == i
        time.sleep(0.03)
        assert joiner.is_alive()
        assert q.task_done() is None
    assert finish(joiner) == 'joined'
    error = raises(ValueError, q.task_done)
    assert 'task_done' in str(error), error


def same(a, b):
    """Equal in value, type and order; knows that nan is nan, -0.0 not 0.0."""
    if PYTHON2 and isinstance(a, (int, long, basestring)):  # noqa: F821
        return a == b and isinstance(a, bool) == isinstance(b, bool)
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(str('d'), a) == struct.pack(str('d'), b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        if sys.version_info >= (3, 7):
            return same(list(a.items()), list(b.items()))
        return a == b
    return a == b


def values():
    yield None
    yield True
    yield False
    for n in (0, 1, -1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31,
              -2**31, -2**31 - 1, 2**32, 2**63 - 1, -2**63, 2**63,
              -2**63 - 1, 2**64, 10**50, -10**50, 1 << 2047, -(1 << 2048)):
        yield n
    for x in (0.0, -0.0, 1.5, -1e308, 5e-324, float('inf'), float('-inf'),
              float('nan')):
        yield x
    for s in ('', 'abc', 'nul\0nul', 'grüße', '任务', '😀', 'x' * 255,
              'x' * 256, '字' * 30000):
        yield s
    for b in (b'', b'abc', b'\0\xff\n', bytes(bytearray(range(256))),
              b'x' * 70000):
        yield b
    for made in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((), ((),)), [],
                 [1], [[], [[1]]], list(range(2500)), {}, {'a': 1},
                 {1: 'x', (2, 'k'): [3], None: {}, 1.5: True, b'k': ()},
                 dict((i, i * i) for i in range(2500)),
                 {'deep': [({'er': (1, [2.5, None])},)]}):
        yield made
    shared = ['the same twice']
    yield [shared, shared, (shared, 'a', 'a')]
    nested = 'core'
    for i in range(40):
        nested = [nested] if i % 2 else (nested,)
    yield nested


def python3_values():
    yield '\ud800'  # a lone surrogate: what os.fsdecode makes of bad bytes
    yield 'a\udcffb'
    yield bytearray(b'')
    yield bytearray(b'changes')
    yield bytearray(b'y' * 70000)
    yield set()
    yield {1, 'two', (3,)}
    yield frozenset()
    yield frozenset([1, 2])
    yield {'sets': [{1}, frozenset('ab')]}


def drop_connection(q):
    """The next call makes a new one: should this have failed for good."""
    if hasattr(q._tls, 'connection'):
        q._tls.connection.close()
        del q._tls.connection


def come_back(m, list_of_values):
    q = m.get_task_queue()
    lost = []
    for value in list_of_values:
        try:
            q.put(value)
            got = q.get(timeout=SOON)
            if not same(got, value):
                lost.append('%.60r came back as %.60r' % (value, got))
        except Exception as error:
            lost.append('%.60r: %.300r' % (value, error))
            drop_connection(q)
    assert not lost, '\n'.join([''] + lost)


@test
def values_of_every_plain_type_come_back_as_they_were(m):
    come_back(m, list(values()))


@test
def sets_bytearrays_and_surrogates_come_back_as_they_were(m):
    # What Python 2 calls these, or how it pickles them, is another matter.
    come_back(m, [] if PYTHON2 else list(python3_values()))


@test
def a_message_of_a_megabyte_comes_back(m):
    come_back(m, [b'\xa5' * (1 << 20), 'ü' * (1 << 20)])


class Evil(object):
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (str('touch ' + self.path),)


@test
def an_evil_pickle_is_refused_and_the_connection_goes_on(m):
    if REFERENCE:
        return
    path = os.path.join(os.environ.get('TMPDIR', '/tmp'),
                        'conc-evil-%d' % os.getpid())
    q = m.get_task_queue()
    for evil in (Evil(path), [Evil(path)], {'k': (Evil(path),)}, os.system,
                 Evil):
        raises(RemoteError, q.put, evil)
        q.put('good')
        assert q.get(timeout=SOON) == 'good'
    assert q.qsize() == 0
    assert not os.path.exists(path), 'the server ran it'


@test
def a_name_that_is_not_registered_is_an_error(m):
    raises(RemoteError, m.get_nothing)
    m.get_task_queue().put(1)
    assert m.get_task_queue().get(timeout=SOON) == 1


@test
def a_method_that_is_not_offered_is_an_error(m):
    q = m.get_task_queue()
    raises(RemoteError, q._callmethod, '__class__')
    raises(RemoteError, q._callmethod, 'clear')
    q.put(1)
    assert q.get(timeout=SOON) == 1


@test
def errors_are_whole_texts_and_end_with_a_line(m):
    q = m.get_task_queue()
    q.put(0)
    for i in range(3 if not PYTHON2 else 0):
        long = 'x' * i + '\u044b' * 100
        error = raises(RemoteError, q._callmethod, long)
        assert error.args[0].endswith('\n'), error.args
        error = raises(TypeError, q._callmethod, 'get', (), {long: 1})
        if not REFERENCE:
            assert '\u044b' in str(error)
    raises(RemoteError, m._create, str('get_task_queue'), 1)
    raises(RemoteError, m._create, str('get_task_queue'), k=1)
    assert q.get(timeout=SOON) == 0


@test
def a_class_that_is_refused_is_named(m):
    if REFERENCE:
        return
    import datetime
    error = raises(RemoteError, m.get_task_queue().put,
                   datetime.date(2020, 1, 1))
    assert 'datetime.date' in str(error), error


@test
def what_is_no_request_is_answered_as_python_does(m):
    """The same with Python's own server, which is the reference."""
    c = multiprocessing.connection.Client((str(HOST), int(PORT)),
                                          authkey=AUTHKEY)
    c.send((None, 'accept_connection', ('x',), {}))
    assert c.recv()[0] == '#RETURN'
    for bad in (b'x', b'K\x01.', b'(K\x01K\x02t.',
                b'(K\x01K\x02K\x03K\x04K\x05t.',
                b'(NX\x03\x00\x00\x00get)}t.',
                b'(X\x05\x00\x00\x00nooneX\x03\x00\x00\x00get)}t.',
                b'(NNNNt.', b'cos.path\nno_such_name\n.'):
        c.send_bytes(bad)
        reply = c.recv()
        assert reply[0] == '#TRACEBACK', (bad, reply)
        assert reply[1].endswith('\n'), reply
    c.send_bytes(b'')
    raises(EOFError, c.recv)
    c.close()
    # Of a first request, too, and then the connection has ended.
    for bad in (b'x', b'K\x01.', b'(NX\x05\x00\x00\x00other)}t.'):
        c = multiprocessing.connection.Client((str(HOST), int(PORT)),
                                              authkey=AUTHKEY)
        c.send_bytes(bad)
        assert c.recv()[0] == '#TRACEBACK', bad
        raises(EOFError, c.recv)
        c.close()


@test
def a_wrong_key_is_refused_and_the_server_goes_on(m):
    for key in (b'', b'wrong', AUTHKEY + b'x', AUTHKEY[:-1], b'k' * 100):
        raises(multiprocessing.AuthenticationError, connect, key)
    connect().get_task_queue().put('still here')
    assert m.get_task_queue().get(timeout=SOON) == 'still here'


def wait_in_get(ready):
    q = connect().get_task_queue()
    q.qsize()  # the connection stands
    ready.set()
    q.get()


@test
def a_client_killed_inside_get_takes_no_item_with_it(m):
    if REFERENCE:
        return
    q = m.get_task_queue()
    for i in range(5):
        ready = multiprocessing.Event()
        client = multiprocessing.Process(target=wait_in_get, args=(ready,))
        client.start()
        assert ready.wait(SOON)
        time.sleep(0.05)
        os.kill(client.pid, signal.SIGKILL)
        client.join()
        q.put(i)
        assert q.get(timeout=SOON) == i


@test
def the_threads_of_a_client_share_a_queue(m):
    q = m.get_task_queue()
    results = []

    def work(number):
        for i in range(25):
            q.put((number, i))
            results.append(q.get(timeout=SOON))
    for thread in [in_thread(work, number) for number in range(8)]:
        finish(thread)
    assert sorted(results) == [(n, i) for n in range(8) for i in range(25)]


def put_in_child(q, number):
    q.put(('child', number))


@test
def forked_children_share_a_queue(m):
    q = m.get_task_queue()
    q.put('parent')
    assert q.get(timeout=SOON) == 'parent'
    children = [multiprocessing.Process(target=put_in_child, args=(q, i))
                for i in range(3)]
    for child in children:
        child.start()
    got = sorted(q.get(timeout=SOON) for child in children)
    assert got == [('child', i) for i in range(3)], got
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert q.empty()


@test
def a_queue_says_what_it_is(m):
    assert str(m.get_task_queue())
    assert 'get_task_queue' in repr(m.get_task_queue())


def main():
    if hasattr(multiprocessing, 'set_start_method'):
        multiprocessing.set_start_method('fork')
    failed = 0
    for function in TESTS:
        title = 'Python %d.%d: %s' % (sys.version_info[:2] + (
            function.__name__.replace('_', ' '),))
        start = time.time()
        m = connect()
        try:
            function(m)
            print('ok   %s (%.2f s)' % (title, time.time() - start))
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print('FAIL %s' % title)
        sys.stdout.flush()
        if failed:  # take what it left behind
            drop_connection(m.get_task_queue())
            for q in (m.get_task_queue(), m.get_result_queue(),
                      m.get_small_queue()):
                while not q.empty():
                    q.get()
    return 3 if failed else 0


if __name__ == '__main__':
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not waiting for threads that a failed test left
