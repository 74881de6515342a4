# -*- coding: utf-8 -*-
"""The other side of tests/data.c.

    python data.py serve ADDRESS AUTHKEY
    python data.py client ADDRESS AUTHKEY

The first serves a list, a dict and others under names, and what every
SyncManager makes, as Python programs do. The second is a client that evaluates
the lines of its input, and prints the repr() of what came of each.
"""
from __future__ import print_function
import array
import multiprocessing
import sys
import time
from multiprocessing.managers import (ArrayProxy, DictProxy, ListProxy,
                                      Namespace, NamespaceProxy, SyncManager,
                                      Value, ValueProxy)


class Manager(SyncManager):
    pass


class Maths(object):
    """A class of which C knows nothing."""

    def __init__(self, base):
        self.base = base

    def add(self, x, y):
        return self.base + x + y

    def divide(self, x):
        return self.base // x

    def another(self, base):
        return Maths(base)

    def sleep(self, seconds):
        time.sleep(seconds)
        return self.base

    def _hidden(self):
        return 0


MADE = {'names': ([], ListProxy), 'ages': ({}, DictProxy),
        'variable': (Value('i', 5), ValueProxy),
        'space': (Namespace(a=1, b='two'), NamespaceProxy),
        'numbers': (array.array('h', [1, -2, 3]), ArrayProxy)}
SERVES = sys.argv[1] == 'serve'
for name, (made, proxy) in MADE.items():
    Manager.register(name, callable=(lambda made=made: made) if SERVES
                     else None, proxytype=proxy)
try:
    from queue import Queue
except ImportError:
    from Queue import Queue
JOBS = Queue()
Manager.register('jobs', callable=lambda: JOBS)


def echo(*args, **kwds):
    """The arguments as a list; of an object that is no data, a word."""
    return [a if isinstance(a, int) else 'jobs' if a is JOBS else 'other'
            for a in args] + [kwds]


Manager.register('echo', echo if SERVES else None,
                 proxytype=None if SERVES else ListProxy)
# One without a class of proxies: they are made of the object's methods.
Manager.register('bare', callable=lambda: MADE['names'][0])
EXPOSED = ('add', 'divide', 'another', 'sleep')
Manager.register('Maths', Maths, exposed=EXPOSED,
                 method_to_typeid={'another': 'Another'})
Manager.register('Another', exposed=EXPOSED)  # what the method has returned


def address(text):
    host, colon, port = text.rpartition(':')
    return (host, int(port)) if colon else text


def say(text):
    print(text)
    sys.stdout.flush()


def client(manager):
    manager.connect()
    # What is inside of a list is reached by this process, with its own key.
    multiprocessing.current_process().authkey = sys.argv[3].encode()
    known = dict((name, getattr(manager, name)()) for name in
                 ('names', 'ages', 'variable'))
    known['manager'] = manager
    say('ready')
    for line in iter(sys.stdin.readline, ''):
        try:
            say(repr(eval(line, known)))
        except Exception as error:
            say('%s: %s' % (type(error).__name__, error))


if __name__ == '__main__':
    made = Manager(address(sys.argv[2]), sys.argv[3].encode())
    if SERVES:
        server = made.get_server()
        say('ready')
        server.serve_forever()
    client(made)
