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
from multiprocessing.managers import (ArrayProxy, DictProxy, ListProxy,
                                      Namespace, NamespaceProxy, SyncManager,
                                      Value, ValueProxy)


class Manager(SyncManager):
    pass


MADE = {'names': ([], ListProxy), 'ages': ({}, DictProxy),
        'variable': (Value('i', 5), ValueProxy),
        'space': (Namespace(a=1, b='two'), NamespaceProxy),
        'numbers': (array.array('h', [1, -2, 3]), ArrayProxy)}
SERVES = sys.argv[1] == 'serve'
for name, (made, proxy) in MADE.items():
    Manager.register(name, callable=(lambda made=made: made) if SERVES
                     else None, proxytype=proxy)
# One without a class of proxies: they are made of the object's methods.
Manager.register('bare', callable=lambda: MADE['names'][0])


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
