"""Objects from each Python through a C manager to each other one: what arrives
must be equal, of the same types, and share the same parts.

    python3 pass.py PROGRAM COUNT SEED PYTHON...

PROGRAM is pass.c; COUNT is how many random values each pair of Pythons gets.
"""
from __future__ import print_function
import array
import collections
import datetime
import decimal
import fractions
import json
import os
import random
import sys
import time
import uuid
from multiprocessing.managers import BaseManager, RemoteError
PY2 = sys.version_info[0] == 2
VERSION = sys.version_info[:2]
if not PY2:
    unicode = str  # noqa
    import enum
    import ipaddress
    import pathlib
    import types


class QueueManager(BaseManager):
    pass


for name in ('get_task_queue', 'get_result_queue', 'get_data_queue'):
    QueueManager.register(name)


# --- classes of the program's own ---

class Thing(object):
    """The usual class."""
    def __init__(self, *args):
        self.args = list(args)
        if args:
            self.first = args[0]

    def __eq__(self, other):
        return type(other) is type(self) and same(vars(self), vars(other))

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return 7

    class Inner(object):
        """By protocols before 4 it is made by getattr()."""
        def __init__(self, x=None):
            self.x = x

        def __eq__(self, other):
            return type(other) is type(self) and same(self.x, other.x)

        def __ne__(self, other):
            return not self == other
        __hash__ = None


class Slots(object):
    __slots__ = ('a', 'b')

    def __init__(self, a, b):
        self.a = a
        self.b = b

    def __eq__(self, other):
        return same([self.a, self.b], [other.a, other.b])

    def __ne__(self, other):
        return not self == other
    __hash__ = None


class Reduced(object):
    """Made by a function, filled by items and pairs."""
    def __init__(self):
        self.items = []
        self.pairs = {}

    def append(self, item):
        self.items.append(item)

    def extend(self, items):
        self.items.extend(items)

    def __setitem__(self, key, item):
        self.pairs[key] = item

    def __reduce__(self):
        return (make_reduced, (), None, iter(self.items),
                iter(self.pairs.items()))

    def __eq__(self, other):
        return same([self.items, self.pairs], [other.items, other.pairs])

    def __ne__(self, other):
        return not self == other
    __hash__ = None


def make_reduced(items=(), pairs=()):
    r = Reduced()
    r.extend(items)
    r.pairs.update(pairs)
    return r


class New(object):
    """Made with keywords."""
    def __new__(cls, a=None):
        new = object.__new__(cls)
        new.a = a
        return new

    def __getnewargs_ex__(self):
        return (), {'a': self.a}

    def __eq__(self, other):
        return same(self.a, other.a)

    def __ne__(self, other):
        return not self == other
    __hash__ = None


class Old:  # of Python 2's old kind there
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return same(self.x, other.x)

    def __ne__(self, other):
        return not self == other
    __hash__ = None


class OldArguments(Old):
    def __getinitargs__(self):
        return (self.x,)


class ListOf(list):
    pass


class DictOf(dict):
    pass


class TupleOf(tuple):
    pass


class SetOf(set):
    pass


class TextOf(unicode):
    pass


class IntOf(int):
    pass


class Failure(Exception):
    pass


class Person(object):
    """Knows its parent, which knows it."""
    def __init__(self, x, *children):
        self.x = x
        self.parent = None
        self.me = self
        self.children = children
        for child in children:
            child.parent = self

    def __eq__(self, other):
        return (same(self.x, other.x) and self.me is self and
                other.me is other and
                same(self.children, other.children) and
                all(child.parent is self for child in self.children) and
                all(child.parent is other for child in other.children))

    def __ne__(self, other):
        return not self == other
    __hash__ = None


def named(cls, items, **attributes):
    new = cls(items)
    vars(new).update(attributes)
    return new


Point = collections.namedtuple('Point', 'x y')
if not PY2:
    Color = enum.Enum('Color', 'RED GREEN', module=__name__)
    Level = enum.IntEnum('Level', 'LOW HIGH', module=__name__)
    Flags = enum.Flag('Flags', 'A B C', module=__name__)


def shared(x):
    return [x, Thing(x, [x]), x]


def same(a, b):
    if type(a) is not type(b):
        numbers = (int, type(1 << 70))
        texts = (str, unicode)
        # Python 2 has two of each, and an ASCII str is text to C.
        return PY2 and ((type(a) in numbers and type(b) in numbers) or
                        (type(a) in texts and type(b) in texts)) and a == b
    if isinstance(a, (float, decimal.Decimal)):
        return a == b or (a != a and b != b)
    if isinstance(a, BaseException):
        return same(a.args, b.args)
    if not PY2 and isinstance(a, types.SimpleNamespace):
        return same(vars(a), vars(b))
    if not PY2 and isinstance(a, collections.ChainMap):
        return same(a.maps, b.maps)
    if isinstance(a, collections.OrderedDict) and list(a) != list(b):
        return False
    if isinstance(a, collections.deque):
        return a.maxlen == b.maxlen and same(list(a), list(b))
    if isinstance(a, collections.defaultdict):
        if a.default_factory is not b.default_factory:
            # As Python's own pickle has it on the way to and from Python 2.
            return (a.default_factory, b.default_factory) in FACTORIES
    if isinstance(a, (list, tuple)):
        return (len(a) == len(b) and all(map(same, a, b)) and
                getattr(a, 'note', None) == getattr(b, 'note', None))
    if isinstance(a, dict):
        return (len(a) == len(b) and
                all(k in b and same(a[k], b[k]) for k in a) and
                getattr(a, 'note', None) == getattr(b, 'note', None))
    if PY2 and type(a) is xrange:  # noqa
        return list(a) == list(b)
    return a == b


FACTORIES = [(int, type(1 << 70)), (str, unicode)]

# --- random values, as the text of an expression ---

R = random.Random()


def number(n):
    return int(R.random() * n)


def pick(things):
    return things[number(len(things))]


def text():
    return "u'%s'" % ''.join(pick(['a', 'b c', '\\n', '\\xe9', '\\u20ac',
                                   '\\x00', "\\'"])
                             for _ in range(number(4)))


def raw():
    # What C takes for text it gives back as text: see values.py.
    return "b'\\xff%s'" % ''.join('\\x%02x' % number(256)
                                  for _ in range(number(4)))


def integer():
    return '%d' % (pick([1, -1]) * int(10 ** (R.random() * pick([3, 12, 30]))))


def real():
    return repr(R.random() * 10 ** number(9))


def micro():
    return pick(['0', '999999', '%d' % number(1000000), '127', '%d' % 0xc3a9])


def date():
    return 'datetime.date(%d, %d, %d)' % (1 + number(9998), 1 + number(12),
                                          1 + number(28))


def clock():
    return 'datetime.time(%d, %d, %d, %s)' % (number(24), number(60),
                                              number(60), micro())


def moment():
    return 'datetime.datetime(%d, %d, %d, %d, %d, %d, %s)' % (
        1 + number(9998), 1 + number(12), 1 + number(28), number(24),
        number(60), number(60), micro())


def delta():
    return 'datetime.timedelta(%d, %d, %s)' % (number(10000) - 5000,
                                               number(86400), micro())


def zone():
    return 'datetime.timezone(datetime.timedelta(minutes=%d))' % (
        number(1000) - 500)


def aware():
    return moment()[:-1] + ', %s)' % pick([zone(), 'datetime.timezone.utc'])


KEYS = {
    'text': text, 'raw': raw, 'int': integer, 'date': date, 'delta': delta,
    'decimal': lambda: "decimal.Decimal('%s')" % pick(
        ['1.50', '-0', 'Infinity', '1E+30', '%d.%d' % (number(99),
                                                       number(99))]),
    'fraction': lambda: 'fractions.Fraction(%d, %d)' % (number(99),
                                                        1 + number(99)),
    'complex': lambda: 'complex(%s, %s)' % (real(), real()),
    'point': lambda: 'Point(%s, %s)' % (key(), key()),
    'uuid': lambda: "uuid.UUID(int=%d)" % number(1 << 100),
    'textof': lambda: 'TextOf(%s)' % text(),
}
LEAVES = dict(KEYS, **{
    'none': lambda: 'None', 'bool': lambda: pick(['True', 'False']),
    'float': real, 'bytearray': lambda: 'bytearray(%s)' % raw(),
    'time': clock, 'datetime': moment,
    'intof': lambda: 'IntOf(%d)' % number(1000),
})
# By what they are within: these take other values.
TREES = {
    'list': lambda v: '[%s, %s]' % (v(), v()),
    'tuple': lambda v: '(%s, %s, %s, %s)' % (v(), v(), v(), v()),
    'dict': lambda v: '{%s: %s, %s: %s}' % (key(), v(), key(), v()),
    'set': lambda v: 'set([%s, %s])' % (key(), key()),
    'frozenset': lambda v: 'frozenset([%s])' % key(),
    'deque': lambda v: 'collections.deque([%s, %s], %s)' % (
        v(), v(), pick(['None', '1', '5'])),
    'ordered': lambda v: 'collections.OrderedDict([(%s, %s), (%s, %s)])' % (
        key(), v(), key(), v()),
    'default': lambda v: 'collections.defaultdict(%s, {%s: %s})' % (
        pick(['list', 'None', 'int', 'set']), key(), v()),
    'counter': lambda v: 'collections.Counter([%s, %s])' % (key(), key()),
    'pointof': lambda v: 'Point(%s, %s)' % (v(), v()),
    'thing': lambda v: 'Thing(%s, %s)' % (v(), v()),
    'family': lambda v: 'Person(%s, Person(%s, Person(%s)), Person(0))' % (
        v(), v(), v()),
    'slots': lambda v: 'Slots(%s, %s)' % (v(), v()),
    'reduced': lambda v: 'make_reduced([%s, %s], {%s: %s})' % (
        v(), v(), key(), v()),
    'old': lambda v: 'Old(%s)' % v(),
    'oldarguments': lambda v: 'OldArguments(%s)' % v(),
    'listof': lambda v: 'named(ListOf, [%s, %s], note=%s)' % (v(), v(),
                                                              text()),
    'dictof': lambda v: 'named(DictOf, {%s: %s}, note=%s)' % (key(), v(),
                                                              text()),
    'tupleof': lambda v: 'named(TupleOf, [%s], note=%s)' % (v(), text()),
    'setof': lambda v: 'SetOf([%s])' % key(),
    'failure': lambda v: 'Failure(%s, %s)' % (v(), v()),
    'error': lambda v: '%s(%s)' % (pick(['ValueError', 'KeyError', 'OSError']),
                                   v()),
    'shared': lambda v: 'shared(%s)' % v(),
    'class': lambda v: pick(['Thing', 'datetime.date', 'dict', 'make_reduced',
                             'collections.OrderedDict', 'set', 'bytearray']),
}
# What is the same for all Pythons 3, or for both ends being a Python 2.
SAME = {
    'array': lambda: "array.array('%s', [%d, %d])" % (
        pick('bhildf'), number(100), number(100)),
    'range': lambda: '%s(%d, %d, %d)' % ('xrange' if PY2 else 'range',
                                         number(9), number(99), 1 + number(9)),
}
NEW_LEAVES = {
    'zone': zone, 'aware': aware, 'color': lambda: pick(['Color.RED',
                                                         'Color.GREEN']),
    'level': lambda: 'Level.HIGH', 'flags': lambda: 'Flags.A | Flags.C',
    'ellipsis': lambda: pick(['Ellipsis', 'NotImplemented']),
    'address': lambda: "ipaddress.ip_address('10.0.0.%d')" % number(256),
    'slice': lambda: 'slice(%d, None, %d)' % (number(9), 1 + number(9)),
    'innerclass': lambda: 'Thing.Inner',
}
NEW_TREES = {
    'inner': lambda v: 'Thing.Inner(%s)' % v(),
    'new': lambda v: 'New(%s)' % v(),
    'namespace': lambda v: 'types.SimpleNamespace(a=%s)' % v(),
    'chain': lambda v: 'collections.ChainMap({%s: %s})' % (key(), v()),
    'method': lambda v: pick(['datetime.datetime.fromtimestamp']),
}


def key():
    return pick(sorted(KEYS.items()))[1]()


def expression(leaves, trees, depth=0):
    if depth == 3 or (depth > 0 and R.random() < 0.4):
        return pick(leaves)[1]()
    return pick(trees)[1](lambda: expression(leaves, trees, depth + 1))


def kinds(receiver):
    """What this Python can send to that version."""
    leaves, trees = dict(LEAVES), dict(TREES)
    if (receiver[0] == 2) == PY2:
        leaves.update(SAME)
    if not PY2 and receiver[0] > 2:
        leaves.update(NEW_LEAVES)
        trees.update(NEW_TREES)
    if PY2 != (receiver[0] == 2):
        del trees['oldarguments']  # Python 3 does not know its method,
        if not PY2:
            del trees['old']  # and has no old classes
    return sorted(leaves.items()), sorted(trees.items())


# --- one Python: does what its input says ---

def worker(address, key_):
    host, port = address.split(':')
    m = QueueManager(address=(host, int(port)), authkey=key_.encode())
    m.connect()
    tasks, results = m.get_task_queue(), m.get_result_queue()
    for line in iter(sys.stdin.readline, ''):
        command, receiver, count, seed = json.loads(line)
        if command == 'put':
            leaves, trees = kinds(tuple(receiver))
            R.seed(seed)
            for i in range(count):
                text_ = expression(leaves, trees)
                value = eval(text_)
                try:
                    tasks.put((text_.encode('ascii').decode('ascii'), value))
                except Exception as error:
                    raise Exception('%s: %.3000s' % (error, text_))
        elif command == 'refuse':
            try:
                results.get(True, 60)
            except TypeError as error:
                assert 'Python 2' in str(error), error
            else:
                raise AssertionError('an object with keywords')
        else:
            for i in range(count):
                got = results.get(True, 60)
                assert isinstance(got, tuple), got
                text_, value = got
                want = eval(text_)
                assert same(want, value), '%s: %r: %.3000s' % (
                    VERSION, value, text_)
                if text_.startswith('shared(') and isinstance(
                        value[0], (list, dict, Thing, Slots, Reduced,
                                   collections.deque)):
                    assert value[0] is value[2] is value[1].args[0]
        print('ok')
        sys.stdout.flush()


def refused(address, key_):
    """A queue for data says which class it does not take."""
    host, port = address.split(':')
    m = QueueManager(address=(host, int(port)), authkey=key_.encode())
    m.connect()
    data = m.get_data_queue()
    for item, says in [(Thing(1), '__main__.Thing'),
                       ([decimal.Decimal(1)], 'decimal.Decimal'),
                       ({u'x': collections.OrderedDict()},
                        'collections.OrderedDict'),
                       ([u'x' * 100000, datetime.date(1, 1, 1)],
                        'datetime.date'), (Thing, '__main__.Thing')]:
        try:
            data.put(item)
        except RemoteError as error:
            assert says in str(error), (says, error)
        else:
            raise AssertionError(says)
    tasks = m.get_task_queue()
    loop = [Thing()]
    loop[0].args.append(loop)
    try:
        tasks.put(loop)
    except RemoteError as error:
        assert 'refers to what it is in' in str(error), error
    else:
        raise AssertionError('a loop')
    data.put(u'fine')
    assert data.get() == u'fine'
    return m


def serve(program, count, seed):
    """A server of Python, and a C client that moves its objects."""
    import subprocess
    import threading
    try:
        import queue
    except ImportError:
        import Queue as queue
    served = queue.Queue(), queue.Queue()

    class Manager(BaseManager):
        pass

    Manager.register('get_task_queue', callable=lambda: served[0])
    Manager.register('get_result_queue', callable=lambda: served[1])
    server = Manager(address=('127.0.0.1', 0), authkey=b'abc').get_server()
    thread = threading.Thread(target=server.serve_forever)
    thread.daemon = True
    thread.start()
    R.seed(seed)
    leaves, trees = kinds(VERSION)
    texts = [expression(leaves, trees) for _ in range(count)]
    for text_ in texts:
        served[0].put(eval(text_))
    served[0].put(None)
    client = subprocess.call([program, '%s:%d' % server.address, 'abc',
                              'client'])
    good = client == 0
    for text_ in texts:
        good = good and same(eval(text_), served[1].get(True, 10))
        if not good:
            print('%s: %.3000s' % (VERSION, text_))
            break
    sys.stdout.flush()
    os._exit(0 if good else 1)


def main(program, count, seed, pythons):
    import subprocess
    for python in pythons:
        subprocess.check_call([python, '-W', 'ignore', __file__, 'serve',
                               program, str(count), str(seed)])
    server = subprocess.Popen([program, '127.0.0.1:0', 'abc'],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              universal_newlines=True)
    address = server.stdout.readline().strip()
    results = refused(address, 'abc').get_result_queue()
    workers = []
    for python in pythons:
        version = json.loads(subprocess.check_output(
            [python, '-c', 'import sys; print(list(sys.version_info[:2]))']
        ).decode())
        workers.append((version, subprocess.Popen(
            [python, '-W', 'ignore', __file__, 'worker', address, 'abc'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True)))

    def ask(worker_, *words):
        worker_.stdin.write(json.dumps(words) + '\n')
        worker_.stdin.flush()
        return worker_.stdout.readline() == 'ok\n'

    total = 0
    try:
        for sender, a in workers:
            for receiver, b in workers:
                seed += 1
                if not (ask(a, 'put', receiver, count, seed) and
                        ask(b, 'get', sender, count, seed)):
                    print('from %s to %s, seed %d' % (sender, receiver, seed))
                    return 1
                total += count
        for version, w in workers:
            if version[0] > 2:
                continue
            # Python 2 does not know how it is made; it stays for others.
            results.put(New(5))
            if not ask(w, 'refuse', version, 0, 0):
                return 1
            assert results.get() == New(5)
        for _, w in workers:
            w.stdin.close()
            assert w.wait() == 0
    finally:
        for _, w in workers:
            if w.poll() is None:
                w.kill()
        server.stdin.close()
    assert server.wait() == 0
    print('%d values' % total)
    return 0


if __name__ == '__main__':
    if sys.argv[1] == 'worker':
        worker(sys.argv[2], sys.argv[3])
    elif sys.argv[1] == 'serve':
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1], int(sys.argv[2]),
                      int(sys.argv[3]) if sys.argv[3] != '-'
                      else int(time.time()), sys.argv[4:]))
