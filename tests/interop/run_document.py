"""Runs a program of the documents as it stands, on another port.

    python run_document.py PROGRAM PORT AUTHKEY

task_master.py and task_worker.py (Python 3), task_master_py2.py and
task_worker_py2.py (Python 2.7) are word for word what the documents print.
That includes a slip in the Python 3 worker: it imports queue and catches
Queue.Empty, so that it ends with a NameError should the task queue ever be
empty for a second. Only the port and the key are put into the text here,
and sleeps are multiplied by the environment variable TIME_SCALE.

Runs on 2.7 and 3.x. The text starts its manager outside of any
"if __name__ == '__main__'", so the start method has to be fork.
"""
import io
import os
import re
import sys
import time


def main():
    program, port, authkey = sys.argv[1:]
    with io.open(program, encoding='utf-8') as file:
        text = file.read()
    text, ports = re.subn(r', 5000\)', ', %d)' % int(port), text)
    if str is not bytes:
        authkey = authkey.encode()
    text, keys = re.subn(r"authkey=b?'abc'",
                         lambda match: 'authkey=' + repr(authkey), text)
    if ports != 1 or keys != 1:
        sys.exit('%s: expected one port and one key' % program)

    scale = float(os.environ.get('TIME_SCALE', '1'))
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds * scale)

    if str is bytes:
        # At its end, a Python 2 worker whose master has gone tries for 20 s
        # to tell it so, for each of the two queues.
        from multiprocessing import connection
        connection._init_timeout.__defaults__ = (20 * scale,)

    exec(compile(text, program, 'exec'),
         {'__name__': '__main__', '__file__': program})


main()
