"""Workers of a queue that leases its messages: they are Python's own, with a
JoinableQueue's get and task_done, and know nothing of it.

    python leases.py drive ADDRESS KEY       the test; starts workers
    python leases.py work ADDRESS KEY        says what it got, and waits for a
                                             line before it is done
    python leases.py crowd ADDRESS KEY       works until it gets None
"""
from __future__ import print_function

import os
import signal
import subprocess
import sys
import time
from multiprocessing.managers import BaseManager


class Manager(BaseManager):
    pass


Manager.register('get_queue')
Manager.register('get_dead')


def connect(address, key):
    host, port = address.rsplit(':', 1)
    manager = Manager(address=(host, int(port)), authkey=key.encode())
    manager.connect()
    return manager


def work(address, key):
    queue = connect(address, key).get_queue()
    while True:
        item = queue.get()
        print('got', item)
        sys.stdout.flush()
        if not sys.stdin.readline():
            return
        try:
            queue.task_done()
            print('done')
        except ValueError as error:
            print('late', 'too late' in str(error))
        sys.stdout.flush()


def crowd(address, key):
    """Now and then it forgets to say so, and leaves."""
    queue = connect(address, key).get_queue()
    seed = os.getpid()
    while True:
        item = queue.get()
        if item is None:
            queue.task_done()
            return
        seed = (seed * 1103515245 + 12345) % 2**31
        if seed >> 16 < 300:
            os.kill(os.getpid(), signal.SIGKILL)
        print(item)
        sys.stdout.flush()
        queue.task_done()


class Worker(object):
    def __init__(self, address, key, what='work'):
        self.process = subprocess.Popen(
            [sys.executable, __file__, what, address, key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True)

    def line(self):
        return self.process.stdout.readline().strip()

    def go_on(self):
        self.process.stdin.write('\n')
        self.process.stdin.flush()

    def end(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()


def check(value, wanted):
    if value != wanted:
        raise SystemExit('%r, and not %r' % (value, wanted))


def drive(address, key):
    manager = connect(address, key)
    queue = manager.get_queue()
    # A worker is killed in the middle: the other one does it.
    queue.put('one')
    a = Worker(address, key)
    check(a.line(), 'got one')
    check(queue.qsize(), 0)
    b = Worker(address, key)
    a.end()
    check(b.line(), 'got one')
    b.go_on()
    check(b.line(), 'done')
    # One is stopped: the other one does it, and the first is told.
    queue.put('two')
    check(b.line(), 'got two')
    b.end(signal.SIGSTOP)
    a = Worker(address, key)
    check(a.line(), 'got two')
    a.go_on()
    check(a.line(), 'done')
    queue.join()
    b.end(signal.SIGCONT)
    b.go_on()
    check(b.line(), 'late True')
    # It goes on as if nothing had been.
    a.end()
    queue.put('three')
    check(b.line(), 'got three')
    b.go_on()
    check(b.line(), 'done')
    queue.join()
    b.end()
    # One that kills its workers is dead.
    queue.put('four')
    for _ in range(5):
        a = Worker(address, key)
        check(a.line(), 'got four')
        a.end()
    letter = manager.get_dead().get(True, 20)
    check(letter['message'], 'four')
    check(letter['why'], 'ended')
    check(letter['deliveries'], 5)
    queue.join()
    # Many of both kinds.
    for i in range(400):
        queue.put(i)
    workers = [Worker(address, key, 'crowd') for _ in range(3)]
    seen = {}
    for _ in range(200):
        if queue.qsize() == 0:
            break
        for i, worker in enumerate(workers):
            if worker.process.poll() is not None:
                for line in worker.process.stdout:
                    seen[int(line)] = seen.get(int(line), 0) + 1
                worker.end()
                workers[i] = Worker(address, key, 'crowd')
        time.sleep(0.05)
    for _ in range(20):
        queue.put(None)
        for worker in workers:
            worker.process.poll()
    for worker in workers:
        for line in worker.process.stdout:
            seen[int(line)] = seen.get(int(line), 0) + 1
        worker.process.wait()
        worker.end()
    while queue.qsize() > 0:
        item = queue.get()
        if item is not None:
            seen[item] = seen.get(item, 0) + 1
        queue.task_done()
    queue.join()
    check(sorted(seen), list(range(400)))
    print('ok')


if __name__ == '__main__':
    {'drive': drive, 'work': work, 'crowd': crowd}[sys.argv[1]](*sys.argv[2:])
