"""Python's part of a queue of conc.h that lies on a Redis, with redis-py alone:
task_worker.py and task_master.py of the documents.

    redis_py.py worker|master PATH_OF_THE_SOCKET
"""
import json
import pickle
import random
import sys

import redis

TASKS, RESULTS = "{get_task_queue}", "{get_result_queue}"


def value_of(fields):
    """A message is bytes (d), a pickle (p), or JSON (j)."""
    if b"d" in fields:
        return fields[b"d"]
    if b"p" in fields:
        return pickle.loads(fields[b"p"])
    return json.loads(fields[b"j"])


def worker(r):
    while True:
        found = r.xreadgroup("conc", "py", {TASKS: ">"}, count=1, block=1000)
        if not found:
            break
        key, fields = found[0][1][0]
        n = value_of(fields)
        print("run task %d * %d..." % (n, n))
        r.xadd(RESULTS, {"d": "%d * %d = %d" % (n, n, n * n)})
        r.xack(TASKS, "conc", key), r.xdel(TASKS, key)
    print("worker exit.")


def master(r):
    numbers = [random.randint(0, 10000) for _ in range(10)]
    for n in numbers:
        print("Put task %d..." % n)
        r.xadd(TASKS, {"p": pickle.dumps(n)})
    left = {"%d * %d = %d" % (n, n, n * n) for n in numbers}
    while left:
        found = r.xreadgroup("conc", "py", {RESULTS: ">"}, count=1,
                             block=10000)
        if not found:
            sys.exit("no result")
        key, fields = found[0][1][0]
        text = value_of(fields)
        if isinstance(text, bytes):
            text = text.decode()
        print("Result: " + text)
        left.discard(text)
        r.xack(RESULTS, "conc", key), r.xdel(RESULTS, key)
    print("master exit.")


{"worker": worker, "master": master}[sys.argv[1]](
    redis.Redis(unix_socket_path=sys.argv[2]))
