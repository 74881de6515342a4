"""CPython's own tests of locks and queues, with objects of conc.h.

    python lock_suite.py SHIM SPACE [WORDS...]

Runs test.lock_tests and test.test_queue, as the Python that runs this file
has them, with the classes of lock_proxies.py in that space. SHIM: the library
of shim.c. WORDS: only tests whose name has one of them. Prints a line per
test; exit status 3: some have failed.

What differs by design is listed here. It runs like the others, with little
time, and has to fail.
"""
import faulthandler
import gc
import os
import sys
import threading
import time
import traceback
import types
import unittest
import warnings

import lock_proxies

SHIM, SPACE = sys.argv[1:3]
WORDS = sys.argv[3:]
VERSION = sys.version_info[:2]
SLOW = float(os.environ.get('TEST_SLOW', '1'))
TITLE = 'CPython %d.%d, %s: ' % (VERSION + (SPACE,))
LITTLE = 1.5  # seconds for what has to fail, and may do so by waiting
warnings.simplefilter('ignore')

try:
    import test.lock_tests
    import test.test_queue
except ImportError as error:
    print('skip interop: %sits tests of locks: %s' % (TITLE, error))
    sys.exit(0)

ALL = ('local', 'served', 'types', 'python')

# What differs by design: where, the test's name, why; and up to which version
# of Python that is so.
OWNER = 'a conc_lock belongs to the task that has acquired it'
INTERNAL = 'there is no such call: it is internal to Condition'
FORK = 'there is no such call: conc.h itself sees to what a fork leaves behind'
AT_ONCE = 'conc_queue_close leaves the messages to the getters'
UNTOLD = 'a server of Python up to 3.9 does not tell the value of a semaphore'
CLASSES = 'a message is data, not an object of the program'
DIFFERS = [
    (ALL, 'LockTests.test_different_thread', OWNER),
    (ALL, 'LockTests.test_reacquire', OWNER),
    (ALL, 'LockTests.test_state_after_timeout', OWNER),
    (ALL, 'LockTests.test_at_fork_reinit', FORK),
    (ALL, 'OwnerlessLockTests.test_at_fork_reinit', FORK),
    (ALL, 'EventTests.test_at_fork_reinit', FORK),
    (ALL, 'EventTests.test_reset_internal_locks', FORK),
    (ALL, 'RLockTests.test__is_owned', INTERNAL),
    (ALL, 'RLockTests.test_recursion_count', INTERNAL),
    (ALL, 'RLockTests.test_release_save_unacquired', INTERNAL),
    (ALL, 'ConditionAsRLockTests.test__is_owned', INTERNAL),
    (ALL, 'ConditionAsRLockTests.test_recursion_count', INTERNAL),
    (ALL, 'ConditionAsRLockTests.test_release_save_unacquired', INTERNAL),
    (ALL, 'ConditionTests.test_unacquired_notify',
     'a task need not hold the lock to notify'),
    (('python',), 'BarrierTests.test_action',
     'an action is code of the client'),
    (ALL, 'FailingQueueTest.test_failing_queue',
     'it has no methods of Python that a subclass could replace'),
    (ALL, 'QueueTest.test_shutdown_allowed_transitions', AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_immediate', AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_immediate_all_methods_in_one_thread',
     AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_immediate_all_methods_in_many_threads',
     AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_immediate_get', AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_immediate_join', AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_immediate_put_join', AT_ONCE),
    (ALL, 'QueueTest.test_shutdown_get_task_done_join',
     'conc.h does not tell how many tasks are unfinished'),
    (ALL, 'QueueTest.test_shutdown_put_join',
     'conc.h does not tell how many tasks are unfinished'),
    (ALL, 'SimpleQueueTest.test_references', CLASSES),
    (('python',), 'OwnerlessLockTests.test_repr', UNTOLD, (3, 9)),
    (('python',), 'OwnerlessLockTests.test_state_after_timeout', UNTOLD,
     (3, 9)),
]

# Tests of CPython that are not run.
RACE = 'in it an item may come behind the last sentinel, up to CPython 3.8'
NOT_RUN_UP_TO = {
    'SimpleQueueTest.test_many_threads': ((3, 8), RACE),
    'SimpleQueueTest.test_many_threads_nonblock': ((3, 8), RACE),
    'SimpleQueueTest.test_many_threads_timeout': ((3, 8), RACE),
}

# Test classes of CPython that are not run.
NOT_RUN = {
    'LifoQueueTest': 'conc.h has no such queue',
    'PriorityQueueTest': 'conc.h has no such queue',
}


def reason_of(name):
    """Why a test has to fail here; None: it has to pass."""
    for where, differs, reason, *up_to in DIFFERS:
        if SPACE in where and name == differs and \
                VERSION <= (up_to + [VERSION])[0]:
            return reason
    return None


def classes(space):
    """The test classes, of our objects."""
    class Threading(types.ModuleType):
        """What the tests themselves work with."""
        Lock, Event, Barrier = space.NamedLock, space.Event, space.Barrier

        def __getattr__(self, name):
            return getattr(threading, name)
    locks, queues = test.lock_tests, test.test_queue
    locks.threading = queues.threading = Threading('threading')

    def condition(*args):
        return space.Condition(*args)

    def case(name, base, **members):
        return type(name, (base,) + (() if issubclass(base, unittest.TestCase)
                                     else (unittest.TestCase,)), members)
    queue = types.SimpleNamespace(
        Queue=space.Queue, SimpleQueue=space.Queue, Empty=lock_proxies.Empty,
        Full=lock_proxies.Full, ShutDown=lock_proxies.ShutDown)
    simple = {'queue': queue, 'type2test': space.Queue}
    if hasattr(queues, 'CSimpleQueueTest'):
        simple['test_reentrancy'] = queues.CSimpleQueueTest.test_reentrancy
    return [
        case('LockTests', locks.LockTests, locktype=space.Lock),
        case('OwnerlessLockTests', locks.LockTests,
             locktype=space.OwnerlessLock),
        case('RLockTests', locks.RLockTests, locktype=space.RLock),
        case('EventTests', locks.EventTests, eventtype=space.Event),
        case('ConditionAsRLockTests', locks.RLockTests,
             locktype=staticmethod(condition)),
        case('ConditionTests', locks.ConditionTests,
             condtype=staticmethod(condition)),
        case('SemaphoreTests', locks.SemaphoreTests, semtype=space.Semaphore),
        case('BoundedSemaphoreTests', locks.BoundedSemaphoreTests,
             semtype=space.BoundedSemaphore),
        case('BarrierTests', locks.BarrierTests, barriertype=space.Barrier),
        case('QueueTest', queues.QueueTest, queue=queue),
        case('FailingQueueTest', queues.FailingQueueTest, queue=queue),
        case('SimpleQueueTest', queues.BaseSimpleQueueTest, **simple)]


def forgotten(used):
    """Test classes of CPython that are neither run nor listed."""
    for module in test.lock_tests, test.test_queue:
        for name, cls in vars(module).items():
            if not (isinstance(cls, type) and
                    any(word.startswith('test') for word in dir(cls))):
                continue
            if name in NOT_RUN or any(issubclass(case, cls) for case in used):
                continue
            if cls.__module__ != module.__name__:
                continue
            # Py...Test and C...Test: of a class that is one of the two.
            if not any(base.__name__ in NOT_RUN or
                       any(issubclass(case, base) for case in used)
                       for base in cls.__bases__
                       if base is not unittest.TestCase):
                yield name


def say(word, name, more=''):
    print('%-4s interop: %s%s%s' % (word, TITLE, name, more), flush=True)


def fails(test_case):
    """Whether a test fails, or is not done with in little time; and why."""
    result = unittest.TestResult()
    thread = threading.Thread(target=test_case.run, args=(result,),
                              daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(LITTLE * SLOW)
    for bad in result.failures, result.errors:
        if bad:
            return True, bad[0][1]
    return thread.is_alive() or bool(result.skipped), 'it hangs'


class Result(unittest.TestResult):
    def startTest(self, test_case):
        super().startTest(test_case)
        faulthandler.dump_traceback_later(60 * SLOW, exit=True)
        self.start = time.monotonic()

    def stopTest(self, test_case):
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test_case)

    def addSuccess(self, test_case):
        say('ok', name_of(test_case),
            ' (%.2f s)' % (time.monotonic() - self.start))

    def addSkip(self, test_case, reason):
        say('skip', name_of(test_case), ': ' + reason)

    def bad(self, test_case, error):
        super().addError(test_case, error)
        print(self._exc_info_to_string(error, test_case))
        say('FAIL', name_of(test_case))

    addError = bad
    addFailure = bad


def name_of(test_case):
    return '%s.%s' % (type(test_case).__name__, test_case._testMethodName)


def main():
    space = lock_proxies.Space(SPACE, SHIM)
    used = classes(space)
    passes, differs, names = unittest.TestSuite(), [], set()
    for cls in used:
        for one in unittest.defaultTestLoader.loadTestsFromTestCase(cls):
            name = name_of(one)
            names.add(name)
            if WORDS and not any(word in name for word in WORDS):
                continue
            up_to, reason = NOT_RUN_UP_TO.get(name, ((), ''))
            if VERSION <= up_to:
                say('skip', name, ': ' + reason)
            elif reason_of(name) is None:
                passes.addTest(one)
            else:
                differs.append(one)
    # What hangs burns time, too: so this one comes last.
    differs.sort(key=lambda one: 'many_threads' in name_of(one))
    space.start()
    result = Result()
    passes.run(result)
    failed = not result.wasSuccessful()
    gc.collect()  # what test_reentrancy has left puts at its end
    try:
        space.end()
        say('ok', 'all of it ends well')
    except lock_proxies.Error:
        traceback.print_exc(file=sys.stdout)
        say('FAIL', 'all of it ends well')
        failed = True
    # What hangs leaves threads behind, so that the space cannot be ended.
    space.start()
    test.support.SHORT_TIMEOUT = LITTLE / 3
    for one in differs:
        as_listed, why = fails(one)
        if as_listed:
            say('skip', name_of(one), ': ' + reason_of(name_of(one)))
        else:
            say('FAIL', name_of(one), ': it is listed, but passes')
            failed = True
        if os.environ.get('WHY'):
            print(why)
    for name in forgotten(used):
        say('FAIL', name, ': it is neither run nor listed')
        failed = True
    sys.stdout.flush()
    os._exit(3 if failed else 0)


if __name__ == '__main__':
    main()
