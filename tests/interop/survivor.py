"""A worker of tests/survive.c: Python's own JoinableQueue, unmodified.

    python survivor.py ADDRESS KEY TABLE MESSAGES NUMBER

TABLE is a file. Its first byte says whether to stop; those behind it, whether
the worker of that NUMBER has begun. From 64 on each of them has two bytes for
each message: how often it was at it, and how often it was told that it is
done. A worker that has lost its server ends.
"""
import mmap
import os
import queue
import sys
from multiprocessing import AuthenticationError
from multiprocessing.managers import BaseManager


class Manager(BaseManager):
    pass


Manager.register('get_queue')


def work(address, key, path, messages, number):
    messages, number = int(messages), int(number)
    own = 64 + 2 * number * messages
    host, port = address.rsplit(':', 1)
    with open(path, 'r+b') as file:
        table = mmap.mmap(file.fileno(), 0)
    manager = Manager(address=(host, int(port)), authkey=key.encode())
    manager.connect()
    tasks = manager.get_queue()
    table[1 + number] = 1
    while not table[0]:
        try:
            n = tasks.get(True, 0.2)
        except queue.Empty:
            continue
        table[own + n] += 1
        try:
            tasks.task_done()
        except ValueError as error:
            if 'too late' not in str(error):
                raise
        else:
            table[own + messages + n] += 1


try:
    work(*sys.argv[1:])
except (OSError, EOFError, AuthenticationError):
    os._exit(7)
os._exit(0)
