"""Drives the tests of C against Python. Called by interop.sh:

    python3 interop.py PYTHON...

Environment: BUILD and EXAMPLES, where the C programs are; FILTER, to run only
tests whose title has these words; SERVER, MASTER, WORKER, CROWD, to put
other commands in the place of the C programs.
"""
import collections
import contextlib
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.environ.get('BUILD', 'build/default')
EXAMPLES = os.environ.get('EXAMPLES', 'build/examples')
FILTER = os.environ.get('FILTER', '')
SLOW = float(os.environ.get('TEST_SLOW', '1'))
VALUES_EACH = int(os.environ.get('INTEROP_VALUES', '50'))
CONTAINERS_EACH = int(os.environ.get('INTEROP_CONTAINERS', '500'))
LIMIT = 30 * SLOW
KEY = 'abc'


def command(variable, default):
    return shlex.split(os.environ.get(variable, default))


MASTER = command('MASTER', EXAMPLES + '/task_master')
WORKER = command('WORKER', EXAMPLES + '/task_worker')
SERVER = command('SERVER', BUILD + '/interop/server')
CROWD = command('CROWD', BUILD + '/interop/crowd')
TYPES = command('TYPES', EXAMPLES + '/manager_server')
FUNCTIONS = BUILD + '/interop/functions'
POOLS = BUILD + '/interop/pools'
VALUES = BUILD + '/interop/values'
REFUSED = BUILD + '/interop/refused'
PASS = BUILD + '/interop/pass'
SHIM = BUILD + '/interop/shim.so'
LEASES = BUILD + '/interop/leases'

Python = collections.namedtuple('Python', 'path name major')


def pythons(paths):
    """Each interpreter once, however many names it has."""
    seen = {}
    for path in paths:
        text = subprocess.check_output(
            [path, '-c', 'import sys; print(sys.executable);'
             'print("%d.%d.%d" % sys.version_info[:3])'])
        real, version = text.decode().split()
        seen.setdefault((os.path.realpath(real), version), path)
    found = []
    for (_, version), path in seen.items():
        numbers = [int(n) for n in version.split('.')]
        found.append((numbers, Python(path, '%d.%d' % tuple(numbers[:2]),
                                      numbers[0])))
    return [python for _, python in sorted(found)]


def free_ports():
    """Below the ports that the system gives to clients: another test's client
    must not take one between here and the server."""
    port = 20000 + os.getpid() * 7 % 8000
    while True:
        port += 1
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(('', port))
            except OSError:
                continue
        yield port


PORTS = free_ports()
PORTS_LOCK = threading.Lock()


def free_port():
    with PORTS_LOCK:
        return next(PORTS)


OUTPUT = threading.Lock()


class Failure(Exception):
    pass


RUNNING = set()


def terminate(*_):
    """Stopped, as by timeout(1): nothing is left behind."""
    for program in list(RUNNING):
        program.kill()
    os._exit(143)


class Program:
    """A program that runs; killed at the end of the block if it still is."""

    def __init__(self, words, **kwds):
        self.words = [str(word) for word in words]
        self.out = tempfile.NamedTemporaryFile('w+')
        self.err = tempfile.NamedTemporaryFile('w+')
        env = dict(os.environ, TIME_SCALE='0.01', PYTHONUNBUFFERED='1',
                   PYTHONIOENCODING='utf-8')
        self.process = subprocess.Popen(
            self.words, stdout=self.out, stderr=self.err, env=env,
            universal_newlines=True, start_new_session=True, **kwds)
        RUNNING.add(self)

    def __enter__(self):
        return self

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def __exit__(self, kind, error, traceback):
        self.kill()
        self.process.wait()
        RUNNING.discard(self)
        # A program that is killed at the end has no exit status to tell it.
        report = re.search('Sanitizer|runtime error:', self.text(self.err))
        if kind or report:
            with OUTPUT:
                print('--- %s: exit status %s\n%s%s' % (
                    ' '.join(self.words), self.process.returncode,
                    self.text(self.out), self.text(self.err)), flush=True)
        if report and not kind:
            raise Failure('%s: %s' % (self.words[0], report.group()))

    @staticmethod
    def text(file):
        # Not file.seek(): the position is the running program's, too.
        with open(file.name, errors='replace') as again:
            return again.read()

    def lines(self):
        return self.text(self.out).split('\n')[:-1]

    def until(self, line):
        """Waits for a line of output that begins so; returns the line."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            for printed in self.lines():
                if printed.startswith(line):
                    return printed
            if ended:
                break
            time.sleep(0.01)
        raise Failure('%s did not print "%s"' % (self.words[0], line))

    def end(self, *status):
        """Waits for the end, with this exit status; returns its lines."""
        try:
            got = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Failure('%s did not end' % self.words[0])
        if got not in (status or (0,)):
            raise Failure('%s: exit status %d' % (self.words[0], got))
        return self.lines()


def document(python, program, port, key=KEY):
    suffix = '_py2.py' if python.major == 2 else '.py'
    return Program([python.path, '-W', 'ignore',
                    os.path.join(HERE, 'run_document.py'),
                    os.path.join(HERE, program + suffix), port, key])


def c_program(words, port, key=KEY):
    return Program(words + ['127.0.0.1:%d' % port, key])


# What the documents' programs print.

def check_master(lines):
    """Returns the tasks and the results."""
    if lines[-1:] == ['master exit.']:  # some of the documents print it
        lines = lines[:-1]
    tasks = [re.match(r'Put task (\d+)\.\.\.$', line) for line in lines[:10]]
    results = [re.match(r'Result: (\d+) \* (\d+) = (\d+)$', line)
               for line in lines[11:]]
    if (len(results) != 10 or not all(tasks) or not all(results) or
            lines[10] != 'Try get results...'):
        raise Failure("the master's lines are not the document's")
    numbers = []
    for result in results:
        a, b, product = [int(n) for n in result.groups()]
        if a != b or product != a * a:
            raise Failure('wrong product: ' + result.group())
        numbers.append(a)
    return [int(task.group(1)) for task in tasks], numbers


def check_worker(lines, ended=True):
    """Returns the tasks it ran."""
    if lines[:1] != ['Connect to server 127.0.0.1...']:
        raise Failure("the worker's first line is not the document's")
    if ended and lines[-1:] != ['worker exit.']:
        raise Failure("the worker's last line is not the document's")
    ran = []
    for line in lines[1:len(lines) - ended]:
        run = re.match(r'run task (\d+) \* (\d+)\.\.\.$', line)
        if run and run.group(1) == run.group(2):
            ran.append(int(run.group(1)))
        elif not re.match('task queue is empty|the master has gone', line):
            raise Failure("not a line of the document's worker: " + line)
    return ran


def check_session(master, worker):
    """One master and one worker: everything in order."""
    ran = check_worker(worker.end())
    tasks, results = check_master(master.end())
    if not tasks == ran == results:
        raise Failure('tasks, runs and results differ')


def c_master_python_worker(python):
    port = free_port()
    with c_program(MASTER, port) as master:
        master.until('Try get results')
        with document(python, 'task_worker', port) as worker:
            check_session(master, worker)


def python_master_c_worker(python):
    port = free_port()
    with document(python, 'task_master', port) as master:
        master.until('Try get results')
        with c_program(WORKER, port) as worker:
            check_session(master, worker)


def wrong_python_worker(python):
    port = free_port()
    with c_program(MASTER, port) as master:
        master.until('Try get results')
        with document(python, 'task_worker', port, 'wrong') as worker:
            worker.end(1)
            if 'AuthenticationError' not in worker.text(worker.err):
                raise Failure('no AuthenticationError')
        with document(python, 'task_worker', port) as worker:
            check_session(master, worker)


def wrong_c_worker(python):
    port = free_port()
    with document(python, 'task_master', port) as master:
        master.until('Try get results')
        with c_program(WORKER, port, 'wrong') as worker:
            if worker.process.wait(LIMIT) in (0, -6, -11):
                raise Failure('exit status %d' % worker.process.returncode)
            text = worker.text(worker.out) + worker.text(worker.err)
            if not re.search('key|Authentication', text):
                raise Failure('the message does not speak of the key')
        with c_program(WORKER, port) as worker:
            check_session(master, worker)


def check_crew(master, workers, gently):
    """Several workers: every task once, whoever ran it. The Python 3 text
    fails when the queue is empty or the master gone; C must not."""
    tasks, results = check_master(master.end())
    ran = []
    for worker in workers:
        lines = worker.end(*((0, 1) if gently else (0,)))
        ran += check_worker(lines, worker.process.returncode == 0)
    if not sorted(tasks) == sorted(ran) == sorted(results):
        raise Failure('tasks, runs and results differ')


def c_master_c_worker():
    port = free_port()
    with c_program(MASTER, port) as master:
        master.until('Try get results')
        with c_program(WORKER, port) as worker:
            check_session(master, worker)


def two_c_workers():
    port = free_port()
    with c_program(MASTER, port) as master:
        master.until('Try get results')
        with c_program(WORKER, port) as a, c_program(WORKER, port) as b:
            check_crew(master, [a, b], False)


def c_and_python_worker(python):
    port = free_port()
    with c_program(MASTER, port) as master:
        master.until('Try get results')
        with c_program(WORKER, port) as a, \
                document(python, 'task_worker', port) as b:
            check_crew(master, [a, b], True)


def two_c_workers_of_python_master(python):
    port = free_port()
    with document(python, 'task_master', port) as master:
        master.until('Try get results')
        with c_program(WORKER, port) as a, c_program(WORKER, port) as b:
            check_crew(master, [a, b], False)


def serve(words, key=KEY):
    return Program(words + ['127.0.0.1:0', key], stdin=subprocess.PIPE)


def stop(server):
    server.process.stdin.close()
    server.end()


def semantics(python):
    """Passes on the lines of queue_semantics.py, each of them a test."""
    with serve(SERVER, 'a key') as server:
        with Program([python.path, '-W', 'ignore',
                      os.path.join(HERE, 'queue_semantics.py'),
                      server.until(''), 'a key'] +
                     os.environ.get('SEMANTICS', '').split()) as client:
            client.process.wait(2 * LIMIT)
            client.end(0, 3)  # 3: it has said what failed
            with OUTPUT:
                print(client.text(client.out), end='', flush=True)
        stop(server)


def cpython_suite(python):
    """Passes on the lines of cpython_suite.py, each of them a test. Then the
    server has nothing left of its clients, and ends as it is asked to."""
    with serve([POOLS]) as server:
        with Program(['env', 'FUNCTIONS=all', python.path, '-W', 'ignore',
                      os.path.join(HERE, 'cpython_suite.py'),
                      server.until(''), KEY] +
                     os.environ.get('SUITE', '').split()) as client:
            client.process.wait(10 * LIMIT)
            client.end(0, 3)  # 3: it has said what failed
            with OUTPUT:
                print(client.text(client.out), end='', flush=True)
        stop(server)


def leased_suite(python):
    """Those of queues, against queues that lease their messages."""
    lease = max(60, 60 * SLOW)
    with Program([LEASES, '127.0.0.1:0', KEY, lease],
                 stdin=subprocess.PIPE) as server:
        with Program(['env', 'LEASED=1', python.path, '-W', 'ignore',
                      os.path.join(HERE, 'cpython_suite.py'),
                      server.until(''), KEY, 'TestQueue']) as client:
            client.process.wait(2 * LIMIT)
            client.end(0, 3)  # 3: it has said what failed
            lines = client.text(client.out)
            with OUTPUT:
                print(lines.replace('interop: ', 'interop: leased, '), end='',
                      flush=True)
        stop(server)
        # All that are of a manager's queues have run.
        for name in ('get', 'fork', 'qsize', 'task_done'):
            if not re.search('^ok .*WithManagerTestQueue.test_%s$' % name,
                             lines, re.M):
                raise Failure('test_%s has not passed' % name)


def pools(python):
    """Passes on the lines of pools.py, each of them a test."""
    with Program([python.path, '-W', 'ignore', os.path.join(HERE, 'pools.py'),
                  POOLS, KEY]) as client:
        client.process.wait(4 * LIMIT)
        client.end(0, 3)  # 3: it has said what failed
        with OUTPUT:
            print(client.text(client.out), end='', flush=True)


def lock_suite(python, space):
    """Passes on the lines of lock_suite.py, each of them a test."""
    with Program([python.path, '-W', 'ignore',
                  os.path.join(HERE, 'lock_suite.py'), SHIM, space] +
                 os.environ.get('SUITE', '').split()) as program:
        program.process.wait(10 * LIMIT)
        program.end(0, 3)  # 3: it has said what failed
        with OUTPUT:
            print(program.text(program.out), end='', flush=True)


def sync_types(python):
    """Passes on the lines of sync_types.py, each of them a test."""
    with Program(TYPES + ['127.0.0.1:0', KEY]) as server:
        with Program([python.path, '-W', 'ignore',
                      os.path.join(HERE, 'sync_types.py'),
                      server.until(''), KEY]) as client:
            client.process.wait(2 * LIMIT)
            client.end(0, 3)  # 3: it has said what failed
            with OUTPUT:
                print(client.text(client.out), end='', flush=True)
        server.process.terminate()
        server.end()


def functions(python):
    """Passes on the lines of functions.py, each of them a test."""
    with Program([python.path, '-W', 'ignore',
                  os.path.join(HERE, 'functions.py'), FUNCTIONS,
                  KEY]) as client:
        client.process.wait(2 * LIMIT)
        client.end(0, 3)  # 3: it has said what failed
        with OUTPUT:
            print(client.text(client.out), end='', flush=True)


def leases(python, *journal):
    """A worker is stopped for longer than the lease, others are killed."""
    lease = max(1, SLOW)
    with Program([LEASES, '127.0.0.1:0', KEY, lease] + list(journal),
                 stdin=subprocess.PIPE) as server:
        with Program([python.path, '-W', 'ignore',
                      os.path.join(HERE, 'leases.py'), 'drive',
                      server.until(''), KEY]) as client:
            client.process.wait(2 * LIMIT)
            client.end(0)
        stop(server)
        counts = [int(n) for n in re.findall(r'\b\d+\b', server.lines()[-1])]
        put, got, done, returned, dead, left = counts
        if not (put == done + dead and got == done + returned and
                returned >= 7 and dead == 1 and left == 0):
            raise Failure(counts)


def leases_with_a_journal(python):
    with tempfile.TemporaryDirectory() as folder:
        leases(python, os.path.join(folder, 'journal'))


def containers_program(python, what, address, *more, **kwds):
    return Program([python.path, '-W', 'ignore',
                    os.path.join(HERE, 'containers.py'), what, address, KEY,
                    CONTAINERS_EACH] + list(more), **kwds)


def containers(python):
    """Proxies of lists and the like do at random what Python's own do."""
    with Program(TYPES + ['127.0.0.1:0', KEY]) as server:
        with containers_program(python, 'check', server.until(''),
                                int(time.time())) as client:
            client.process.wait(4 * LIMIT)
            client.end()
        server.process.terminate()
        server.end()


def containers_across(writer, readers):
    """What one Python puts into lists and dicts is the same to each other."""
    with Program(TYPES + ['127.0.0.1:0', KEY]) as server:
        address, seed = server.until(''), int(time.time())
        with containers_program(writer, 'write', address, seed,
                                stdin=subprocess.PIPE) as client:
            found = client.until('')
            for reader in readers:
                with containers_program(reader, 'read', address, seed,
                                        found) as other:
                    other.process.wait(2 * LIMIT)
                    other.end()
            client.process.stdin.close()
            client.process.wait(LIMIT)
            client.end()
        server.process.terminate()
        server.end()


def latency(python):
    reference = [python.path, os.path.join(HERE, 'reference_server.py')]
    with serve(SERVER) as ours, serve(reference) as pythons:
        with Program([python.path, os.path.join(HERE, 'latency.py'),
                      ours.until(''), pythons.until(''), KEY]) as client:
            client.process.wait(2 * LIMIT)
            with OUTPUT:
                print(client.text(client.out), end='', flush=True)
            client.end()
        stop(ours)


def values(python, count):
    with Program([python.path, os.path.join(HERE, 'values.py'), VALUES, count,
                  int(time.time())]) as program:
        program.process.wait(2 * LIMIT)
        if program.process.returncode != 0:
            raise Failure(program.text(program.out))
        program.end()


def refused(python):
    with Program([python.path, '-W', 'ignore',
                  os.path.join(HERE, 'refused.py'), REFUSED, KEY]) as program:
        program.process.wait(2 * LIMIT)
        program.end()


def objects(driver, found, count):
    """Objects of classes that C does not know, from each to each."""
    with Program([driver.path, '-W', 'ignore', os.path.join(HERE, 'pass.py'),
                  PASS, count, '-'] + [p.path for p in found]) as program:
        program.process.wait(4 * LIMIT)
        if program.process.returncode != 0:
            raise Failure(program.text(program.out) +
                          program.text(program.err))
        program.end()


def crowd(python, clients, rounds):
    """That many Python clients and that many C clients on one manager. Four
    Python processes have a quarter of the clients each."""
    with serve(SERVER) as server:
        address = server.until('')
        crowds = [Program(CROWD + [address, KEY, clients, rounds])]
        crowds += [Program([python.path, os.path.join(HERE, 'crowd.py'),
                            address, KEY, clients // 4, rounds])
                   for _ in range(4)]
        items = []
        with contextlib.ExitStack() as stack:
            for crowd in crowds:
                stack.enter_context(crowd)
            for crowd in crowds:
                crowd.process.wait(2 * LIMIT)
                items += crowd.end()
        if len(items) != 2 * clients * rounds:
            raise Failure('%d items, not %d'
                          % (len(items), 2 * clients * rounds))
        if len(set(items)) != len(items):
            raise Failure('an item came twice')
        stop(server)


def run(title, function, *args):
    start = time.monotonic()
    try:
        function(*args)
        line = 'ok   interop: %s (%.2f s)' % (title, time.monotonic() - start)
    except (Failure, subprocess.TimeoutExpired, OSError) as error:
        line = 'FAIL interop: %s: %s' % (title, error)
    with OUTPUT:
        print(line, flush=True)
    return line.startswith('ok')


def run_all(tests, at_once):
    """Returns whether all of them passed."""
    todo = queue.Queue()
    for test in tests:
        if FILTER in test[0]:
            todo.put(test)
    failed = []

    def work():
        while True:
            try:
                test = todo.get_nowait()
            except queue.Empty:
                return
            if not run(*test):
                failed.append(test)
    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return not failed


def main():
    signal.signal(signal.SIGTERM, terminate)
    found = pythons(sys.argv[1:])
    newest = found[-1]
    tests = []
    for python in found:
        name = 'Python ' + python.name
        tests += [
            ('the server of these %s clients ends well' % name,
             semantics, python),
            ('the server of these types of a SyncManager of %s ends well'
             % name, sync_types, python),
            ('the server of these functions that %s calls ends well' % name,
             functions, python),
            ('what a %s worker has leased is done by another one when it is '
             'killed, or stopped' % name, leases, python),
            ('lists, dicts and arrays of a C manager are as those of %s'
             % name, containers, python),
            ('what %s has put into lists and dicts is the same to others'
             % name, containers_across, python, found),
            ('random values come back from C to %s as they were, by pickle '
             'and JSON' % name, values, python, VALUES_EACH),
            ('what a C client cannot read is in the queue of %s again' % name,
             refused, python),
            ('C master, %s worker' % name, c_master_python_worker, python),
            ('%s master, C worker' % name, python_master_c_worker, python),
            ('a %s worker with a wrong key is refused by a C master, which '
             'goes on' % name, wrong_python_worker, python),
            ('a C worker with a wrong key is refused by a %s master and says '
             'so' % name, wrong_c_worker, python)]
    # Of the three that differ in what they test. First: they sleep most of
    # their time.
    three = [python for python in found
             if python.name in ('3.8', '3.11', '3.13')]
    tests[:0] = [
        ("the server of Python %s's own tests ends well" % python.name,
         cpython_suite, python) for python in three] + [
        ("Python %s's own tests of queues end well where these lease"
         % python.name, leased_suite, python) for python in three] + [
        ('the server of these pools of Python %s ends well' % python.name,
         pools, python) for python in three] + [
        ('Python %s workers have a journal behind them' % python.name,
         leases_with_a_journal, python) for python in three]
    # Each place of the objects with one of these, or with all of them.
    for name, spaces in (('3.8', 'python'), ('3.11', 'served'),
                         ('3.13', 'local types')):
        if os.environ.get('INTEROP_LOCKS') == 'all':
            spaces = 'local served types python'
        # Python's own program cannot load what has a sanitizer.
        if os.environ.get('SANITIZE'):
            spaces = ''
        tests[:0] = [
            ("Python %s's own tests of locks and queues end well: %s"
             % (name, space), lock_suite, python, space)
            for python in found if python.name == name
            for space in spaces.split()]
    tests += [
        ('C master, C worker', c_master_c_worker),
        ('C master, two C workers', two_c_workers),
        ('C master, a C and a Python %s worker' % newest.name,
         c_and_python_worker, newest),
        ('Python %s master, two C workers' % newest.name,
         two_c_workers_of_python_master, newest),
        ('objects pass through C, from each Python to each', objects, newest,
         found, VALUES_EACH // 6)]
    passed = run_all(tests, 4)
    # Alone: these load the machine, or measure it.
    tests = [('200 Python clients and 200 C clients on one manager: every '
              'item exactly once', crowd, newest, 200, 100)]
    tests += [('a Python %s client is not stalled' % python.name,
               latency, python)
              for python in found if python.name in ('3.11', '3.13')]
    passed = run_all(tests, 1) and passed
    return not passed


if __name__ == '__main__':
    sys.exit(main())
