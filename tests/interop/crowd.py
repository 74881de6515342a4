"""Many clients on one queue, each with connections of its own.

    python crowd.py HOST:PORT AUTHKEY CLIENTS ROUNDS

Every client puts and gets ROUNDS items in turn. All items that were got are
printed, a line each: whoever put them, together they are every item once.
crowd.c does the same.
"""
import os
import sys
import threading
from multiprocessing.managers import BaseManager

HOST, PORT = sys.argv[1].rsplit(':', 1)
CLIENTS, ROUNDS = int(sys.argv[3]), int(sys.argv[4])


class QueueManager(BaseManager):
    pass


QueueManager.register('get_task_queue')
got = []


def client(number):
    # Proxies keep a connection for each thread.
    m = QueueManager(address=(HOST, int(PORT)), authkey=sys.argv[2].encode())
    m.connect()
    q = m.get_task_queue()
    mine = []
    for i in range(ROUNDS):
        q.put('python-%d-%d-%d' % (os.getpid(), number, i))
        item = q.get(timeout=60)
        mine.append(item.decode() if isinstance(item, bytes) else item)
    got.extend(mine)


threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print('\n'.join(got))
sys.exit(len(got) != CLIENTS * ROUNDS)
