"""CPython's own tests of managers, with every shared object in another server.

    python cpython_suite.py HOST:PORT AUTHKEY [WORDS...]
    python cpython_suite.py --reference [WORDS...]

Runs the WithManagerTest... classes of test._test_multiprocessing, as the
Python that runs this file has them, against the server at that address
(--reference: against Python's own). WORDS: only tests whose name has one of
them. Prints a line per test; exit status 3: some have failed.
"""
import multiprocessing
import multiprocessing.managers
import os
import sys
import tempfile
import types
import unittest
import warnings

TITLE = 'CPython %d.%d, ' % sys.version_info[:2]
SPLIT = 2 if sys.argv[1:2] == ['--reference'] else 3
WORDS = sys.argv[SPLIT:]
warnings.simplefilter('ignore')

try:
    import test._test_multiprocessing as tests
except ImportError as error:
    print('skip interop: %sits tests of managers: %s' % (TITLE, error))
    sys.exit(0)


# What cannot be as it is there, by the names of the tests.
DIFFERS = {
    'WithManagerTestBarrier.test_action':
        'an action is code of the client, which no server of C runs',
    'WithManagerTestPool.test_map_async_callbacks':
        'a pool of a server of C calls nothing back'}
# And if the server's queues lease their messages.
if os.environ.get('LEASED'):
    DIFFERS['WithManagerTestQueue.test_put'] = (
        'its child ends and has not said that the six are done: they are '
        'there again')


class Manager(multiprocessing.managers.SyncManager):
    """A client, that Python's tests may treat as the server they have
    started."""

    def shutdown(self):
        pass

    def join(self, timeout=None):
        pass


def connect():
    host, port = sys.argv[1].rsplit(':', 1)
    authkey = sys.argv[2].encode()
    # A proxy that comes out of a pickle has no other.
    multiprocessing.current_process().authkey = authkey
    manager = Manager((host, int(port)), authkey)
    manager.connect()
    return manager


def is_not_served(error):
    """Whether a pool was to call a function that this server does not have:
    then the test says nothing. pools.c has all that these tests call."""
    return (isinstance(error, multiprocessing.managers.RemoteError) and
            'is registered at this manager' in str(error) and
            not os.environ.get('FUNCTIONS'))


class Result(unittest.TestResult):
    def line(self, word, test, reason=''):
        name = test.id().replace('suite.', '')
        print('%-4s interop: %s%s%s' % (word, TITLE, name,
                                        reason and ': ' + reason))
        sys.stdout.flush()

    def addSuccess(self, test):
        self.line('ok', test)

    def addSkip(self, test, reason):
        self.line('skip', test, reason)

    def bad(self, test, error):
        for name in DIFFERS:
            if test.id().endswith(name) and SPLIT == 3:
                return self.line('skip', test, DIFFERS[name])
        if is_not_served(error[1]):
            return self.line('skip', test, 'the server has no such function')
        super().addError(test, error)
        print(self._exc_info_to_string(error, test))
        self.line('FAIL', test)

    addError = bad
    addFailure = bad

    def addExpectedFailure(self, test, error):
        self.line('ok', test)


def main():
    module = types.ModuleType('suite')
    sys.modules['suite'] = module
    if SPLIT == 3:
        multiprocessing.Manager = connect
    # Children are forked: what a test passes to them need not be found by
    # name. The method is the one that these tests of managers are run with.
    tests.install_tests_in_module_dict(module.__dict__, 'fork')
    suite = unittest.TestSuite()
    for name, case in sorted(vars(module).items()):
        if name.startswith('WithManagerTest'):
            for one in unittest.defaultTestLoader.loadTestsFromTestCase(case):
                if not WORDS or any(word in one.id() for word in WORDS):
                    suite.addTest(one)
    result = Result()
    # Some of them make files and directories where they are: another run may
    # be at the same place, or have been killed there.
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        suite.run(result)
        os.chdir(home)
    sys.exit(0 if result.wasSuccessful() else 3)


if __name__ == '__main__':
    main()
