"""Python's own manager, serving what server.c serves: what the test scripts
are proven against, and what latency.py compares with.

    python reference_server.py HOST:PORT AUTHKEY

Prints the address that it is bound to; serves until its input ends.
"""
from __future__ import print_function
import os
import sys
import threading
from multiprocessing.managers import BaseManager
try:
    import queue
except ImportError:
    import Queue as queue


class QueueManager(BaseManager):
    pass


def serve(name, capacity):
    served = queue.Queue(capacity)
    QueueManager.register(name, callable=lambda: served)


def main():
    host, port = sys.argv[1].rsplit(':', 1)
    authkey = sys.argv[2]
    if str is not bytes:
        authkey = authkey.encode()
    serve('get_task_queue', 0)
    serve('get_result_queue', 0)
    serve('get_small_queue', 2)
    manager = QueueManager(address=(host, int(port)), authkey=authkey)
    server = manager.get_server()
    print('%s:%d' % server.address)
    sys.stdout.flush()

    def end():
        sys.stdin.read()
        os._exit(0)
    threading.Thread(target=end).start()
    server.serve_forever()


main()
