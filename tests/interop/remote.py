# -*- coding: utf-8 -*-
"""The other side of tests/remote.c.

    python remote.py serve ADDRESS AUTHKEY
    python remote.py client ADDRESS AUTHKEY

The first serves one of each primitive, and what every SyncManager does, as
Python programs do. The second is a client that does what the lines of its
input say ("acquire lock"), and prints what came of each.
"""
from __future__ import print_function
import sys
import threading
from multiprocessing.managers import (AcquirerProxy, BarrierProxy,
                                      ConditionProxy, EventProxy, SyncManager)


class Manager(SyncManager):
    pass


lock, rlock = threading.Lock(), threading.RLock()
event, sem = threading.Event(), threading.BoundedSemaphore(2)
cond, rcond = threading.Condition(lock), threading.Condition(rlock)
barrier = threading.Barrier(2)
for name, proxy in [('lock', AcquirerProxy), ('rlock', AcquirerProxy),
                    ('event', EventProxy), ('sem', AcquirerProxy),
                    ('cond', ConditionProxy), ('rcond', ConditionProxy),
                    ('barrier', BarrierProxy)]:
    Manager.register(name, callable=lambda made=globals()[name]: made,
                     proxytype=proxy)
# One without a class of proxies: they are made of the object's methods.
Manager.register('bare', callable=lambda: event)


class Liar:
    """What says of each acquire what only a server of conc.h means."""

    def acquire(self, *args):
        raise RuntimeError('the owner of the lock has ended: what the lock '
                           'protects may be half changed')

    def release(self):
        pass


Manager.register('liar', callable=lambda made=Liar(): made,
                 proxytype=AcquirerProxy)


def address(text):
    host, colon, port = text.rpartition(':')
    return (host, int(port)) if colon else text


def say(text):
    print(text)
    sys.stdout.flush()


def client(manager):
    manager.connect()
    proxies = {}
    say('ready')
    for line in iter(sys.stdin.readline, ''):
        method, name, args = (line.split() + [''] * 2)[:3]
        if name not in proxies:
            proxies[name] = getattr(manager, name)()
        try:
            say(getattr(proxies[name], method)(
                *(float(x) if '.' in x else int(x)
                  for x in args.split(',') if x)))
        except Exception as error:
            say('%s: %s' % (type(error).__name__, error))


if __name__ == '__main__':
    made = Manager(address(sys.argv[2]), sys.argv[3].encode())
    if sys.argv[1] == 'client':
        client(made)
    else:
        server = made.get_server()
        say('ready')
        server.serve_forever()
