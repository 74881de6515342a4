"""A Python server, and a C client that cannot read some of its messages: each
of them must be in the queue again, as it was.

    python refused.py PROGRAM AUTHKEY

PROGRAM is refused.c.
"""
from __future__ import print_function
import os
import subprocess
import sys
import threading
from multiprocessing.managers import BaseManager
try:
    import queue
except ImportError:
    import Queue as queue


class QueueManager(BaseManager):
    pass


class Thing(object):
    def __init__(self, content):
        self.content = content

    def __eq__(self, other):
        return type(other) is Thing and other.content == self.content

    def __ne__(self, other):
        return not self == other

    __hash__ = None


def deep(levels):
    item = 'end'
    for _ in range(levels):
        item = [item]
    return item


SHARED = [Thing(u'x'), {u'text': u'#RETURN'}]
REFUSED = [
    Thing(None), Thing('#RETURN'), Thing(os.path.join), os.path.join, Thing,
    [SHARED, SHARED, Thing(SHARED)], [Thing(n) for n in range(300)],
    [u'%d' % n for n in range(500)] + [Thing(0)], (Thing(b'x' * 70000),),
    b'x' * 200000, u'y' * 5000000, [u'z' * n for n in range(800)],
    [b'x' * 70000, b'y' * 70000], deep(200),
    [b'x' * 70000, Thing(1), u'x' * 70000, [u'%d' % n for n in range(9000)]],
]


def main():
    program, authkey = sys.argv[1:3]
    served = queue.Queue()
    QueueManager.register('get_task_queue', callable=lambda: served)
    server = QueueManager(address=('127.0.0.1', 0),
                          authkey=authkey.encode()).get_server()
    thread = threading.Thread(target=server.serve_forever)
    thread.daemon = True
    thread.start()
    client = subprocess.Popen([program, '%s:%d' % server.address, authkey],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def get():
        client.stdin.write(b'.')
        client.stdin.flush()
        return int(client.stdout.readline())

    for n, item in enumerate(REFUSED):
        served.put(item)
        assert get() < 0, n
        back = served.get(True, 10)
        assert back == item, n
        if type(item) is list and item[0] is SHARED:
            assert back[0] is back[1] and back[0] is back[2].content
        served.put([u'fine', n])
        assert get() == 0, n
        assert served.empty(), n
    # Others have the queue's other messages meanwhile.
    served.put(Thing(1))
    served.put(u'fine')
    assert get() < 0
    assert get() == 0
    assert served.get(True, 10) == Thing(1)
    client.stdin.close()
    assert client.wait() == 0
    os._exit(0)


try:
    main()
except BaseException:
    import traceback
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
