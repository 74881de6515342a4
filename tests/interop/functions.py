# -*- coding: utf-8 -*-
"""Functions of C that Python calls, and functions of Python that C calls.

    python functions.py PROGRAM AUTHKEY

PROGRAM is functions.c. Prints a line per test.
"""
from __future__ import print_function
import errno
import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing.managers import AutoProxy, BaseManager, RemoteError

VERSION = sys.version_info[:2]
PROGRAM, AUTHKEY = sys.argv[1:3]
HERE = os.path.dirname(os.path.abspath(__file__))
KEY = AUTHKEY if isinstance(AUTHKEY, bytes) else AUTHKEY.encode()
# macOS and the BSDs have no EREMOTEIO.
NO_ERRNO = getattr(errno, 'EREMOTEIO', errno.EREMOTE)
SOON = 20 * float(os.environ.get('TEST_SLOW', '1'))
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def value(*args, **kwds):
    return AutoProxy(*args, **kwds)._getvalue()


class Manager(BaseManager):
    """Gets proxies, as register() alone makes them."""


class Exposed(BaseManager):
    """Says what methods the results have, which is for servers to say."""


Exposed.register('square', exposed=('bit_length', 'conjugate'),
                 method_to_typeid={'conjugate': 'square'})


class Values(BaseManager):
    """Gets the results themselves."""


for name in ('square', 'square_in_a_pool', 'echo', 'primes', 'fail',
             'wait_here', 'get_queue', 'unknown'):
    Manager.register(name)
    Values.register(name, proxytype=value)


def connect(kind, address):
    host, port = address.rsplit(':', 1)
    m = kind(address=(host, int(port)), authkey=KEY)
    m.connect()
    return m


def raises(kind, function, *args):
    try:
        function(*args)
    except kind as error:
        assert type(error) is kind, type(error)
        return error
    raise AssertionError('nothing was raised')


# --- functions of C ---

def objects(m):
    """How many objects are left of the clients."""
    gc.collect()
    return m._number_of_objects()


@test
def the_examples_of_the_manual_are_right(address):
    """Runs the lines of the manual: one with a comment is an expression, and
    the comment is what it gives."""
    text = open(os.path.join(HERE, '..', '..', 'conc.h'), 'rb').read()
    text = text.decode('utf-8')
    begin = text.index('>>functions: ')
    part = text[begin:text.index('Threads', begin)]
    lines = [line[5:] for line in part.split('\n')
             if line.startswith('     ') or not line]
    host, port = address.rsplit(':', 1)
    program = '\n'.join(lines).replace(
        "'127.0.0.1', 5000", "'%s', %s" % (host, port))
    names, block, checked = {'__name__': '__main__'}, [], 0
    program = program.replace("b'abc'", repr(KEY))
    for line in program.split('\n'):
        found = re.match(r'(\S.*\S)\s+# (.*)$', line)
        if found is None:
            block.append(line)
            continue
        exec('\n'.join(block), names)
        block = []
        assert eval(found.group(1), names) == eval(found.group(2)), line
        checked += 1
    assert checked == 5, checked


@test
def a_call_gives_a_proxy_of_the_result(address):
    m = connect(Manager, address)
    p = m.square(7)
    assert p._getvalue() == 49
    assert str(p) == '49'
    assert 'square' in repr(p)
    assert objects(m) == 1
    del p
    assert objects(m) == 0
    assert m.square_in_a_pool(8)._getvalue() == 64
    p = connect(Exposed, address).square(7)
    assert (p._getvalue(), str(p)) == (49, '49')


@test
def a_list_has_its_methods(address):
    m = connect(Manager, address)
    p = m.primes(9)
    assert p[0] == 2 and p[-1] == 23 and len(p) == 9
    assert p.index(7) == 3
    assert p._getvalue() == [2, 3, 5, 7, 11, 13, 17, 19, 23]
    assert str(p) == '[2, 3, 5, 7, 11, 13, 17, 19, 23]'
    p.append(29)
    assert [n for n in p] == m.primes(10)._getvalue()
    raises(IndexError, p.__getitem__, 10)
    del p
    assert objects(m) == 0
    assert connect(Values, address).primes(2) == [2, 3]


@test
def or_the_result_itself(address):
    m = connect(Values, address)
    assert m.square(7) == 49
    assert m.square_in_a_pool(8) == 64
    assert m.square(-3000000000) == 9000000000000000000
    assert objects(m) == 0


@test
def arguments_and_keywords_arrive(address):
    m = connect(Values, address)
    assert m.echo() == ((), {})
    data = [1, 2.5, None, True, u'\u20ac', {u'a': (1, 2)}, 10 ** 30]
    assert m.echo(*data) == (tuple(data), {})
    if VERSION >= (3, 0):
        assert m.echo(b'x', [b'y'], k={1, 2}) == ((b'x', [b'y']),
                                                 {'k': {1, 2}})
    assert m.echo(1, k=2, j=[3]) == ((1,), {'k': 2, 'j': [3]})
    assert len(m.echo(u'x' * 1000000)[0][0]) == 1000000
    p = connect(Manager, address).echo(u'x')
    assert str(p) == "(('x',), {})"


@test
def failures_are_exceptions(address):
    m = connect(Values, address)
    table = {errno.EINVAL: 'ValueError', errno.ENOENT: 'KeyError',
             errno.ENOMEM: 'MemoryError', errno.ENOTSUP: 'NotImplementedError',
             errno.ETIMEDOUT: 'TimeoutError', errno.EACCES: 'PermissionError',
             errno.EPIPE: 'BrokenPipeError', errno.EDOM: 'OSError',
             errno.ECONNRESET: 'ConnectionResetError', errno.EIO: 'OSError'}
    builtins = vars(__import__('builtins' if VERSION >= (3, 0)
                               else '__builtin__'))
    for number, name in table.items():
        # Python 2 has fewer of them.
        error = raises(builtins.get(name, OSError), m.fail, number, 'the text')
        if isinstance(error, OSError):
            assert error.args == (number, 'the text'), error.args
            assert error.errno == number
        else:
            assert error.args == ('the text',), error.args
    error = raises(ValueError, m.fail, errno.EINVAL)
    assert error.args == ('invalid argument',)
    raises(IndexError, m.fail, 0, 'no such row', 'IndexError')
    raises(ZeroDivisionError, m.fail, 0, '', 'ZeroDivisionError')
    error = raises(RuntimeError, m.fail, 0, 'text', 'NoSuchClass')
    assert error.args == ('NoSuchClass: text',)
    raises(TypeError, m.square, 'x')
    raises(RemoteError, m.unknown)
    assert m.square(7) == 49
    assert objects(m) == 0


@test
def a_client_that_is_killed_cancels_its_call(address):
    m = connect(Manager, address)
    queue = m.get_queue()
    child = subprocess.Popen([sys.executable, '-W', 'ignore', __file__] +
                             sys.argv[1:] + ['wait', address])
    assert queue.get(True, SOON) == 'begun'
    child.kill()
    child.wait()
    assert queue.get(True, SOON) == 'gone'
    assert objects(m) == 1  # the queue


# --- functions of Python ---

class Thing(object):
    pass


class OwnError(Exception):
    pass


def fail_with(name):
    raise {'ValueError': ValueError('the text'), 'OwnError': OwnError('own'),
           'ZeroDivisionError': ZeroDivisionError('by zero'),
           'MemoryError': MemoryError(), 'KeyError': KeyError('key')}[name]


class Server(BaseManager):
    pass


Server.register('square', callable=lambda x: x * x)
Server.register('both', callable=lambda x, y: [x, y])
Server.register('nothing', callable=lambda: None)
Server.register('fail_with', callable=fail_with)
Server.register('thing', callable=Thing)
Server.register('lock', callable=threading.Lock)


@test
def c_calls_functions_of_python(_):
    server = Server(address=('127.0.0.1', 0), authkey=KEY).get_server()
    thread = threading.Thread(target=server.serve_forever)
    thread.daemon = True
    thread.start()
    client = subprocess.Popen(
        [PROGRAM, 'call', '%s:%d' % server.address, AUTHKEY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(name, *args):
        line = '%s %s\n' % (name, json.dumps(args))
        client.stdin.write(line.encode())
        client.stdin.flush()
        number, text = client.stdout.readline().decode().rstrip().split(' ', 1)
        return int(number), text

    assert call('square', 7) == (0, '49')
    assert call('both', 1, u'x') == (0, "[1, 'x']")
    assert call('both', [1], {'a': 2.5}) == (0, "[[1], {'a': 2.5}]")
    assert call('nothing') == (0, 'None')
    assert call('fail_with', 'ValueError') == (errno.EINVAL,
                                               'ValueError: the text')
    assert call('fail_with', 'KeyError') == (errno.ENOENT, "KeyError: 'key'")
    assert call('fail_with', 'MemoryError') == (errno.ENOMEM, 'MemoryError')
    assert call('fail_with', 'ZeroDivisionError') == (
        NO_ERRNO, 'ZeroDivisionError: by zero')
    number, text = call('fail_with', 'OwnError')
    assert number == NO_ERRNO and text.endswith('OwnError: own')
    number, text = call('unknown')
    assert number == errno.ENOENT
    assert text.replace("u'", "'") == "KeyError: 'unknown'", text
    number, text = call('thing')
    assert number == 0 and text.endswith('Thing object>'), text  # inert
    number, text = call('lock')
    assert number == NO_ERRNO and 'pickle' in text, text
    assert call('square', 8) == (0, '64')
    # Of all of that nothing is left.
    left = [k for k in server.id_to_obj if k != '0']
    assert not left, left
    client.stdin.close()
    assert client.wait() == 0


def main():
    failed = 0
    server = subprocess.Popen([PROGRAM, 'serve', '127.0.0.1:0', AUTHKEY],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    address = server.stdout.readline().decode().strip()
    for function in TESTS:
        title = 'Python %d.%d: %s' % (VERSION + (
            function.__name__.replace('_', ' '),))
        start = time.time()
        try:
            function(address)
            print('ok   interop: %s (%.2f s)' % (title, time.time() - start))
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print('FAIL interop: %s' % title)
        sys.stdout.flush()
    server.stdin.close()
    if server.wait() != 0:
        return 1
    return 3 if failed else 0


if sys.argv[3:4] == ['wait']:
    connect(Values, sys.argv[4]).wait_here()
elif __name__ == '__main__':
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not waiting for threads that a failed test left
