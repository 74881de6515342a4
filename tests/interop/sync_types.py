# -*- coding: utf-8 -*-
"""The types of a SyncManager, behind a manager of C.

    python sync_types.py HOST:PORT AUTHKEY

Calls the same methods with the same arguments there and at Python's own
manager, and compares what comes back; then what a client does that Python's
manager has no answer to. Prints a line per test.
"""
from __future__ import print_function
import gc
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
from multiprocessing.managers import RemoteError, SyncManager

VERSION = sys.version_info[:2]
HOST, PORT = sys.argv[1].rsplit(':', 1)
AUTHKEY = sys.argv[2]
if not isinstance(AUTHKEY, bytes):
    AUTHKEY = AUTHKEY.encode()
SOON = 20 * float(os.environ.get('TEST_SLOW', '1'))
NAN, INFINITE = float('nan'), float('inf')

# A type and its arguments; calls of one object, in order: a method and its
# arguments. A call with a version is the same from that one on.
CALLS = [
    ('Queue', (2,), [
        ('empty',), ('full',), ('qsize',), ('put', 1), ('put', 2, False),
        ('full',), ('put_nowait', 3), ('put', 3, True, 0.01), ('put',),
        ('put', 1, 2, 3, 4), ('get',), ('get', True, 0.01), ('get', False),
        ('get', True, -1), ('get_nowait',), ('task_done',), ('task_done',),
        ('task_done',), ('join',), ('join', 1), ('fly',)]),
    ('Queue', (), [('full',), ('qsize', 1)]),
    ('Queue', (1, 2), []),
    ('Queue', (-1,), [('put', 1), ('full',)]),
    ('JoinableQueue', (True,), [('put', 1), ('put', 2, False)]),
    ('Queue', (1,), [
        ('put', 1), ((3, 13), 'shutdown'), ((3, 13), 'put', 2),
        ('get',), ((3, 13), 'get'), ((3, 13), 'get', False)]),
    ('Queue', (), [
        ('put', 1), ('put', 2), ((3, 13), 'shutdown', True),
        ((3, 13), 'get'), ((3, 13), 'join'), ((3, 13), 'qsize')]),
    ('Event', (), [
        ('is_set',), ('wait', 0), ((3, 0), 'wait', -1), ('wait', 0.01),
        ('set',), ('is_set',), ('wait', None), ('wait',), ('clear',),
        ('is_set',), ('set', 1), ('wait', 1, 2), ('isSet',)]),
    ('Event', (1,), []),
    ('Lock', (), [
        ('release',), ('acquire',), ('acquire', False), ('acquire', 0),
        ((3, 2), 'acquire', True, 0.01), ((3, 2), 'acquire', True, 0),
        ((3, 2), 'acquire', False, 1), ((3, 2), 'acquire', True, -2),
        ((3, 2), 'acquire', True, 'x'), ((3, 2), 'acquire', True, None),
        ((3, 2), 'acquire', True, NAN), ('acquire', 1, 2, 3), ('release', 1),
        ('release',), ('release',), ((3, 2), 'acquire', True, -1)]),
    ('Lock', (1,), []),
    ('RLock', (), [
        ('release',), ('acquire',), ('acquire', False), ('acquire', 1),
        ((3, 2), 'acquire', True, 1), ((3, 2), 'release'),
        ((3, 2), 'acquire', False, 1), ('release',), ('release',),
        ('release',), ('release',)]),
    ('Semaphore', (), [
        ('acquire',), ('acquire', False), ((3, 2), 'acquire', True, 0.01),
        ((3, 2), 'acquire', True, -1), ((3, 2), 'acquire', False, 1),
        ((3, 2), 'acquire', True, 'x'), ('release',), ('release',),
        ((3, 9), 'release', 0), ((3, 9), 'release', 2), ('acquire',),
        ('acquire',), ((3, 9), 'acquire'), ('release', 1, 2)]),
    ('Semaphore', (-1,), []),
    ('Semaphore', (0,), [('acquire', False), ('release',), ('acquire',)]),
    ('BoundedSemaphore', (2,), [
        ('release',), ('acquire',), ((3, 9), 'release', 2), ('release',),
        ('release',), ('acquire',), ('acquire',), ('acquire', False)]),
    ('BoundedSemaphore', (0,), [('release',)]),
    ('Condition', (), [
        ('wait', 0), ('notify',), ('notify_all',), ('release',), ('acquire',),
        ('acquire',), ('wait', 0.01), ('wait', 0), ((3, 10), 'notify', 0),
        ((3, 10), 'notify', -1), ('notify', 5), ('notify_all',), ('release',),
        ('release',), ('release',)]),
    ('Condition', (None,), [('acquire', False), ('release',)]),
    ('Barrier', (1,), [
        ('wait',), ('wait', 0), ('wait', -1), ('__getattribute__', 'parties'),
        ('__getattribute__', 'n_waiting'), ('__getattribute__', 'broken'),
        ('__getattribute__', 'nothing'), ('__getattribute__',),
        ('__getattribute__', 1), ('abort',), ('wait',),
        ('__getattribute__', 'broken'), ('reset',), ('wait',),
        ('wait', 1, 2)]),
    ('Barrier', (2,), [
        ('wait', 0), ('__getattribute__', 'broken'), ('wait',), ('reset',),
        ('wait', 0.01), ('__getattribute__', 'n_waiting')]),
    ('Barrier', (2, None, 0.01), [('wait',), ('reset',), ('wait', None)]),
    ('Barrier', (), []),
    ('Barrier', (1, None, 1, 1), []),
]


def connect():
    manager = SyncManager((str(HOST), int(PORT)), AUTHKEY)
    manager.connect()
    # A proxy that comes out of a pickle has no other.
    multiprocessing.current_process().authkey = AUTHKEY
    return manager


def answer(function, *args):
    """What a call has come to, so that it can be compared."""
    try:
        return repr(function(*args))
    except RemoteError as error:
        kinds = re.findall(r'^(\w+)(?::|$)', str(error), re.M)
        return 'RemoteError of ' + (kinds[-1] if kinds else str(error))
    except Exception as error:
        return '%s' % type(error).__name__


def answers(manager):
    """All calls; a proxy as such sends whatever it is told to."""
    said = []
    for typeid, args, calls in CALLS:
        made = []
        line = '%s%r' % (typeid, args)
        if not hasattr(manager, typeid):
            continue
        create = getattr(manager, typeid)
        said.append((line, answer(lambda: made.append(create(*args)))))
        for call in calls:
            if not made:
                break
            if isinstance(call[0], tuple):
                if VERSION < call[0]:
                    continue
                call = call[1:]
            said.append(('%s.%s%r' % (line, call[0], call[1:]),
                         answer(made[0]._callmethod, call[0], call[1:])))
    return said


class Skip(Exception):
    pass


TESTS = []


def test(function):
    TESTS.append(function)
    return function


@test
def all_calls_are_answered_as_by_pythons_own_manager(m):
    if VERSION < (3, 0):
        raise Skip('a lock says 1, not True, and has errors of its own')
    own = SyncManager()
    own.start()
    try:
        wanted = answers(own)
    finally:
        own.shutdown()
    got = answers(m)
    wrong = ['%s: %s, but %s of Python' % (call, ours[1], pythons)
             for (call, pythons), ours in zip(wanted, got)
             # A method that is not exposed, and a fallback of that name.
             if ours[1] != pythons and not call.endswith(('.fly()',
                                                          '.isSet()'))]
    assert not wrong and len(wanted) == len(got), '\n'.join(wrong)
    assert len(got) > 100


@test
def references_are_counted(m):
    gc.collect()
    before = m._number_of_objects()  # those of clients that were killed
    q, e = m.Queue(), m.Event()
    assert m._number_of_objects() == before + 2
    again = pickle.loads(pickle.dumps(q))
    again.put('x')
    del q
    gc.collect()
    assert m._number_of_objects() == before + 2 and again.get() == 'x'
    text = m._debug_info()
    for proxy in again, e:
        assert '%s:       refcount=1\n' % proxy._id in text, text
    del again, e, proxy
    gc.collect()
    assert m._number_of_objects() == before, m._debug_info()


@test
def proxies_say_what_they_are(m):
    lock = m.Lock()
    assert str(lock).startswith('<unlocked _thread.lock object'), str(lock)
    with lock:
        assert str(lock).startswith('<locked _thread.lock object'), str(lock)
    assert 'AcquirerProxy' in repr(lock)
    assert str(m.Queue()).startswith('<queue.Queue object at 0x')
    try:
        m.Event()._getvalue()
        assert False
    except RemoteError as error:
        assert 'Unserializable' in str(error) and 'pickle' in str(error)


def hold_until_killed(lock, held):
    lock.acquire()
    held.set()
    time.sleep(100)


@test
def a_with_does_not_keep_the_lock_of_an_owner_that_was_killed(m):
    for make in (m.Lock, m.RLock, m.Condition):
        lock, held = make(), m.Event()
        child = multiprocessing.Process(target=hold_until_killed,
                                        args=(lock, held))
        child.start()
        assert held.wait(SOON) is not False
        if VERSION >= (3, 2) and make != m.Condition:
            assert lock.acquire(True, 0.01) is False
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        entered = False
        try:
            with lock:
                entered = True
            assert False, 'it was not told'
        except RuntimeError as error:
            assert 'owner of the lock has ended' in str(error)
        assert not entered
        with lock:
            pass


@test
def a_condition_goes_with_the_lock_of_another_proxy(m):
    for lock in m.Lock(), m.RLock():
        condition, woken = m.Condition(lock), []

        def wait():
            with condition:
                woken.append(condition.wait(SOON))
        thread = threading.Thread(target=wait)
        thread.start()
        end = time.time() + SOON
        while ', 1)>' not in str(condition):
            assert time.time() < end
            time.sleep(0.01)
        with lock:
            condition.notify()
        thread.join()
        assert len(woken) == 1 and woken[0] is not False, woken
    try:
        m.Condition(m.Event())
        assert False
    except RemoteError as error:
        assert 'TypeError' in str(error)


def wait_for_all(barrier, out, held, lock):
    with lock:
        out.put(barrier.wait())
    held.set()


@test
def threads_and_processes_meet(m):
    if VERSION < (3, 3):
        raise Skip('there is no Barrier')
    barrier, out, sem = m.Barrier(6), m.Queue(), m.Semaphore(6)
    events = [m.Event() for _ in range(6)]
    workers = [kind(target=wait_for_all, args=(barrier, out, event, sem))
               for kind, event in zip(3 * [threading.Thread] +
                                      3 * [multiprocessing.Process], events)]
    for worker in workers:
        worker.start()
    assert all([event.wait(SOON) for event in events])
    for worker in workers:
        worker.join()
    assert sorted(out.get() for _ in workers) == [0, 1, 2, 3, 4, 5]


def main():
    if hasattr(multiprocessing, 'set_start_method'):
        multiprocessing.set_start_method('fork')
    failed = 0
    for function in TESTS:
        title = 'Python %d.%d: %s' % (VERSION + (
            function.__name__.replace('_', ' '),))
        start = time.time()
        try:
            function(connect())
            print('ok   interop: %s (%.2f s)' % (title, time.time() - start))
        except Skip as reason:
            print('skip interop: %s: %s' % (title, reason))
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print('FAIL interop: %s' % title)
        sys.stdout.flush()
    return 3 if failed else 0


if __name__ == '__main__':
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not waiting for threads that a failed test left
