# -*- coding: utf-8 -*-
"""The same program with pools of Python's own manager, and of one in C.

    python pools.py PROGRAM AUTHKEY

PROGRAM is pools.c. Each test runs against both servers, and what it returns
must be the same; some are for the C manager alone. Prints a line per test.
"""
from __future__ import print_function
import functools
import gc
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from multiprocessing.managers import BaseManager, RemoteError, SyncManager

VERSION = sys.version_info[:2]
SOON = 20 * float(os.environ.get('TEST_SLOW', '1'))
BOTH, ALONE = [], []


def both(function):
    BOTH.append(function)
    return function


def alone(function):
    ALONE.append(function)
    return function


# --- the functions: as here in Python's server, and as in pools.c ---

def sqr(x, wait=0.0, event=None):
    time.sleep(wait)
    return x * x


def mul(x, y):
    return x * y


def identity(x):
    return x


def echo(*args, **kwds):
    return args, kwds


def picky(x):
    if x == 3:
        raise ValueError('no 3')
    if isinstance(x, type(u'')):
        raise KeyError(x)
    return x


class Mapped(object):
    """A class whose method is named as a function that is registered."""

    @staticmethod
    def sqr(x):
        return x * x


def unknown(x):
    raise AssertionError('nothing of this client is executed')


def outcome(function, *args, **kwds):
    """What a call returns, or the exception that it raises."""
    try:
        return function(*args, **kwds)
    except RemoteError as error:
        return 'RemoteError', str(error).strip().rsplit('\n', 1)[-1].strip(
            '- \n').split(':')[0]
    except Exception as error:
        return type(error).__name__, error.args


def raises(kind, function, *args, **kwds):
    try:
        function(*args, **kwds)
    except kind as error:
        assert type(error) is kind, type(error)
        return error
    raise AssertionError('nothing was raised')


def take(iterator):
    """All that an iterator has, exceptions too."""
    items = []
    while len(items) < 1000:
        item = outcome(next, iterator)
        items.append(item)
        if item == ('StopIteration', ()):
            break
    return items


# --- against both ---

@both
def apply_calls_a_function(m):
    p = m.Pool(2)
    return [outcome(p.apply, *what) for what in [
        (sqr, (5,)), (sqr, [6]), (sqr, (), {'x': 3}), (sqr, (7,), {}),
        (echo,), (echo, (1, u'x', [2.5, None]), {'k': (1, {2: 3})}),
        (echo, u'ab'), (echo, {1: 2}), (echo, range(3)),
        (picky, (3,)), (picky, (u'text',)), (picky, (4,))]]


@both
def map_has_the_results_in_order(m):
    p = m.Pool(3)
    all_of_it = list(range(100))
    return [outcome(p.map, *what) for what in [
        (sqr, all_of_it), (sqr, tuple(all_of_it), 7), (sqr, range(50)),
        (sqr, all_of_it, 1), (sqr, all_of_it, 1000), (sqr, []), (sqr, [], 5),
        (identity, u'abc'), (identity, b'abc'), (identity, {1: 2, 3: 4}),
        (identity, [None, True, 1.5, u'\u20ac', (1, [2]), {u'k': [3]}, 2 ** 99]),
        (sqr, all_of_it, 0), (sqr, all_of_it, None), (picky, [1, 2, 3, 4]),
        (picky, [1, 3, 4], 1)]] + [p.map(sqr, iterable=[1, 2], chunksize=1)]


@both
def starmap_unpacks_its_items(m):
    p = m.Pool(2)
    pairs = list(zip(range(20), range(19, -1, -1)))
    return [p.starmap(mul, pairs), p.starmap(mul, pairs, 3),
            p.starmap(mul, [[1, 2], (3, 4)]), p.starmap(echo, [(), (1,)]),
            p.starmap(mul, []), outcome(p.starmap, mul, [1])[0],
            p.starmap_async(mul, pairs).get()]


@both
def async_results_are_objects(m):
    p = m.Pool(2)
    slow = p.apply_async(sqr, (7, 0.3))
    said = [outcome(slow.ready), outcome(slow.successful)[0],
            outcome(slow.get, 0)[0], outcome(slow.get, timeout=-1)[0],
            outcome(slow.wait, 0)]
    assert type(raises(multiprocessing.TimeoutError, slow.get, 0.001))
    said += [slow.get(), slow.get(SOON), slow.ready(), slow.successful(),
             slow.wait()]
    bad = p.map_async(picky, [1, 2, 3])
    bad.wait(SOON)
    said += [bad.ready(), bad.successful(), outcome(bad.get),
             outcome(bad.get)]
    empty = p.map_async(sqr, [])
    said += [empty.ready(), empty.get()]
    said += [p.map_async(sqr, range(9), chunksize=2).get(SOON),
             p.apply_async(echo, [1], {'k': 2}).get(SOON)]
    return said


@both
def imap_has_them_one_by_one(m):
    p = m.Pool(2)
    return [take(p.imap(*what)) for what in [
        (sqr, range(10)), (sqr, range(10), 3), (sqr, []), (sqr, [], 4),
        (picky, [1, 2, 3, 4, 5]), (picky, [1, 2, 3, 4, 5], 2),
        (picky, [u'a', u'b'])]] + [
            outcome(p.imap, sqr, [1], 0), outcome(p.imap, sqr, [1], -2)]


@both
def imap_unordered_too(m):
    p = m.Pool(2)
    return [sorted(take(p.imap_unordered(sqr, range(20)))[:-1]),
            sorted(take(p.imap_unordered(sqr, range(20), 3))[:-1]),
            take(p.imap_unordered(sqr, [])),
            sorted(map(repr, take(p.imap_unordered(picky, [1, 2, 3, 4])))),
            next(p.imap_unordered(sqr, [0.5, 0][1:]))]


@both
def next_of_an_imap_takes_a_timeout(m):
    p = m.Pool(1)
    it = p.imap(sqr, [5])
    said = [it.__next__(SOON), outcome(next, it)]
    it = p.imap(time.sleep, [0.5])
    raises(multiprocessing.TimeoutError, it.__next__, 0.001)
    return said + [it.__next__(SOON), outcome(it.__next__, 0.001)]


@both
def a_pool_is_closed_and_joined(m):
    p = m.Pool(2)
    slow = p.map_async(sqr, range(4))
    said = [outcome(p.join), p.close(), p.join(), slow.get()]
    for call in (p.apply, p.apply_async):
        said.append(outcome(call, sqr, (1,)))
    for call in (p.map, p.map_async, p.imap, p.imap_unordered, p.starmap):
        said.append(outcome(call, sqr, [1]))
    return said + [p.close(), p.join(), p.terminate(), p.join()]


@both
def a_pool_is_terminated_while_it_works(m):
    p = m.Pool(2)
    p.map_async(time.sleep, [300] * 1000, 1)
    start = time.time()
    said = [p.terminate(), p.join(), outcome(p.apply, sqr, (1,))]
    assert time.time() - start < SOON
    with m.Pool(1) as q:
        said.append(q.apply(sqr, (4,)))
    return said + [outcome(q.map, sqr, [1])]


@both
def a_pool_is_made_with_checks(m):
    said = [outcome(m.Pool, n) for n in (0, -1)]
    said.append(outcome(m.Pool, 1, None, (), 0)[0] if VERSION >= (3, 11)
                else 'RemoteError')
    said.append(m.Pool(processes=2, maxtasksperchild=3).map(sqr, range(9)))
    said.append(m.Pool().apply(sqr, (3,)))
    return said


@both
def what_cannot_be_called_is_an_error(m):
    p = m.Pool(1)
    return [outcome(p.map, sqr)[0], outcome(p.apply)[0],
            outcome(p.map, sqr, 5)[0], outcome(p.map, sqr, [1], colour=1)[0],
            outcome(p.apply, sqr, (1,), {'x': 2})[0] if VERSION < (3, 0)
            else 'TypeError']


@both
def a_pool_goes_with_its_last_proxy(m):
    gc.collect()
    before = m._number_of_objects()
    p = m.Pool(1)
    r = p.apply_async(sqr, (3, 0.1))
    it = p.imap(sqr, [1, 2])
    counts = [m._number_of_objects() - before]
    del p
    gc.collect()
    said = [r.get(), list(it)]
    del r, it
    gc.collect()
    return counts + said + [m._number_of_objects() - before]


# --- of the C manager alone ---

@alone
def a_function_may_be_named_by_a_str(m):
    p = m.Pool(1)
    assert p.map('sqr', [1, 2]) == [1, 4]
    assert p.apply('any.module.sqr', (5,)) == 25
    assert p.apply(Mapped.sqr, (6,)) == 36


@alone
def what_is_not_registered_is_refused_by_name(m):
    p = m.Pool(1)
    for call in (p.apply, p.apply_async):
        assert '.unknown' in str(raises(RemoteError, call, unknown, (1,)))
    for call in (p.map, p.imap, p.starmap_async):
        assert '.unknown' in str(raises(RemoteError, call, unknown, [1]))
    assert "'no such'" in str(raises(RemoteError, p.map, 'no such', [1]))
    error = raises(RemoteError, p.map, functools.partial(sqr, 1), [1])
    assert 'only data' in str(error), error
    error = raises(RemoteError, p.map, os.system, ['x'])
    assert 'posix.system' in str(error), error
    assert 'callable' in str(raises(TypeError, p.map, 5, [1]))
    assert p.map(sqr, [3]) == [9]


@alone
def initializers_and_callbacks_are_refused(m):
    error = raises(RemoteError, m.Pool, 1, sqr)
    assert 'initializer' in str(error)
    p = m.Pool(1, None, (1, 2))
    raises(TypeError, p.map_async, sqr, [1], 1, sqr)
    raises(TypeError, p.apply_async, sqr, (1,), {}, error_callback=sqr)
    assert p.apply_async(sqr, (2,), callback=None).get() == 4


@alone
def a_list_of_the_manager_is_iterated_over(m):
    p = m.Pool(2)
    l = m.list([1, 2, 3])
    assert p.map(sqr, l) == [1, 4, 9]
    assert p.map(identity, m.dict({5: 6})) == [5]


@alone
def a_terminated_pool_leaves_nobody_waiting(m):
    p = m.Pool(1)
    r = p.map_async(time.sleep, [300] * 5, 1)
    it = p.imap(time.sleep, [300] * 5)
    p.terminate()
    assert 'terminated' in str(raises(RuntimeError, r.get, SOON))
    assert 'terminated' in str(raises(RuntimeError, next, it))
    assert r.ready() and not r.successful()


@alone
def there_are_so_many_threads(m):
    error = raises(RemoteError, m.Pool, 100000)
    assert '.max_workers' in str(error), error
    gc.collect()
    pools = [m.Pool(100), m.Pool(100)]
    raises(RemoteError, m.Pool, 100)
    assert str(pools[0]) == (
        '<multiprocessing.pool.Pool state=RUN pool_size=100>')
    assert pools[1].map(sqr, range(1000)) == [x * x for x in range(1000)]
    del pools
    gc.collect()
    end = time.time() + SOON
    while isinstance(outcome(m.Pool, 200), tuple):  # they end meanwhile
        assert time.time() < end
        time.sleep(0.01)


def run(title, function, *managers):
    start = time.time()
    title = 'Python %d.%d: %s' % (VERSION + (title.replace('_', ' '),))
    try:
        results = [function(m) for m in managers]
        assert len(results) == 1 or results[0] == results[1], (
            '\nPython: %r\nC:      %r' % tuple(results))
        print('ok   interop: %s (%.2f s)' % (title, time.time() - start))
        failed = False
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print('FAIL interop: %s' % title)
        failed = True
    sys.stdout.flush()
    return failed


def main():
    program, authkey = sys.argv[1:3]
    key = authkey if isinstance(authkey, bytes) else authkey.encode()
    multiprocessing.current_process().authkey = key
    server = subprocess.Popen([program, '127.0.0.1:0', authkey],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    host, port = server.stdout.readline().decode().strip().rsplit(':', 1)
    ours = SyncManager((host, int(port)), key)
    ours.connect()
    theirs = SyncManager(authkey=key)
    theirs.start()
    failed = 0
    for function in BOTH:
        failed += run('pools: ' + function.__name__, function, theirs, ours)
    for function in ALONE:
        failed += run('pools: ' + function.__name__, function, ours)
    theirs.shutdown()
    del ours, theirs
    gc.collect()
    server.stdin.close()
    if server.wait() != 0:
        return 1
    return 3 if failed else 0


if __name__ == '__main__':
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not waiting for what a failed test left
