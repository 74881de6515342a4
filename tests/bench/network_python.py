"""Python's side of the network benchmark: its own manager, unmodified.

  network_python.py server PORT KEY    serves get_task_queue until it is killed
  network_python.py client PORT KEY    answers each line on its input:
    pairs SECONDS      one put and one get, again and again: pairs a second
    sessions SECONDS   connect, get_task_queue, put, close: a second
    latency TIMES      medians of connect, get_task_queue and a put of 60,000
                       bytes, in milliseconds
"""
import queue
import statistics
import sys
import time
from multiprocessing.managers import BaseManager

ROLE, PORT, KEY = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
NOW = time.perf_counter


class QueueManager(BaseManager):
    pass


def manager():
    return QueueManager(address=('127.0.0.1', PORT), authkey=KEY)


def connected():
    m = manager()
    m.connect()
    return m


def pairs(tasks, seconds):
    item = b'x' * 16
    n = 0
    start = now = NOW()
    while now < start + seconds:
        tasks.put(item)
        tasks.get()
        n += 1
        now = NOW()
    return n / (now - start)


def sessions(seconds):
    n = 0
    start = now = NOW()
    while now < start + seconds:
        tasks = connected().get_task_queue()
        tasks.put(b'x' * 16)
        tasks.get()  # the next session finds the queue empty, too
        del tasks
        n += 1
        now = NOW()
    return n / (now - start)


def latency(times):
    # The kernel is kinder to a connection's first packets: no 40 ms for them.
    connects, proxies, puts = [], [], []
    for _ in range(times):
        m = manager()
        start = NOW()
        m.connect()
        connects.append(NOW() - start)
        start = NOW()
        tasks = m.get_task_queue()
        proxies.append(NOW() - start)
    for _ in range(times + 8):
        start = NOW()
        tasks.put(b'x' * 60000)
        puts.append(NOW() - start)
        tasks.get()
    return ' '.join('%.4f' % (1e3 * statistics.median(column))
                    for column in (connects, proxies, puts[8:]))


if ROLE == 'server':
    tasks = queue.Queue()
    QueueManager.register('get_task_queue', callable=lambda: tasks)
    manager().get_server().serve_forever()

QueueManager.register('get_task_queue')
held = connected(), None
for line in iter(sys.stdin.readline, ''):
    what, number = line.split()
    if what == 'pairs':
        if held[1] is None:
            held = held[0], held[0].get_task_queue()
            pairs(held[1], 0.05)
        print(pairs(held[1], float(number)), flush=True)
    elif what == 'sessions':
        print(sessions(float(number)), flush=True)
    else:
        print(latency(int(number)), flush=True)
