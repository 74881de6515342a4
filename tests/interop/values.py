"""Random values through C and back, in every protocol of pickle that this
Python has, and as JSON. Any Python from 2.7 on:

    python values.py PROGRAM COUNT SEED
"""
import json
import pickle
import random
import struct
import subprocess
import sys
try:
    import cPickle
    PICKLES = [pickle, cPickle]
    text_type, number = unicode, (int, long)  # noqa
    chr = unichr  # noqa
except ImportError:
    PICKLES = [pickle]
    text_type, number = str, (int,)
PY2 = sys.version_info[0] == 2
# The Python of these two is another program than the C of the others.
DUMPS = [p.dumps for p in PICKLES]
if hasattr(pickle, '_dumps'):
    DUMPS.append(pickle._dumps)
R = random.Random()


def text():
    return text_type('').join(
        chr(R.choice([R.randrange(32, 127), R.randrange(256), R.randrange(
            0x100, 0xd800), R.randrange(0xe000, 0x10000), 92, 10, 39, 0]))
        for _ in range(R.choice([0, 1, 3, 20, 300])))


def raw():
    size = R.choice([0, 1, 5, 255, 256, 700])
    b = bytes(bytearray(R.randrange(256) for _ in range(size)))
    # What C takes for text it gives back as text: in Python 2, unequal.
    return b'\xff' + b if PY2 else b


def integer():
    n = R.getrandbits(R.choice([3, 8, 16, 31, 32, 33, 62, 63, 64, 65, 200,
                                2000]))
    return R.choice([n, -n, n - 1, -n - 1])


def real():
    f = struct.unpack('<d', struct.pack('<Q', R.getrandbits(64)))[0]
    return R.choice([f, R.random(), 0.0, -0.0, 1e16, 1e-5, float('inf'),
                     float('-inf'), float(R.randrange(-1000, 1000)), 0.1])


def leaf():
    return R.choice([text, text, raw, integer, integer, real, lambda: None,
                     lambda: R.random() < 0.5, lambda: bytearray(raw())])()


def key(depth=0):
    if depth < 2 and R.random() < 0.1:
        return tuple(key(depth + 1) for _ in range(R.randrange(4)))
    if R.random() < 0.05:
        return frozenset(key(2) for _ in range(R.randrange(3)))
    return R.choice([text, raw, integer])()


def value(depth=0):
    kind = R.randrange(12)
    some = range(R.choice([0, 1, 2, 3, 4, 10]))
    if depth > 4 or kind < 5:
        return leaf()
    if kind < 7:
        v = [value(depth + 1) for _ in some]
        # One object at several places.
        return v + [v[0], v[0]] if v and R.random() < 0.3 else v
    if kind < 8:
        return tuple(value(depth + 1) for _ in some)
    if kind < 10:
        return dict((key(), value(depth + 1)) for _ in some)
    return R.choice([set, frozenset])(key() for _ in some)


def json_value(depth=0):
    kind = R.randrange(8)
    if depth > 4 or kind < 4:
        v = R.choice([text, integer, real, lambda: None, lambda: True])()
        return 0.5 if isinstance(v, float) and v - v != 0 else v
    some = range(R.choice([0, 1, 2, 10]))
    if kind < 6:
        return [json_value(depth + 1) for _ in some]
    return dict((text(), json_value(depth + 1)) for _ in some)


def same(a, b):
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack('<d', a) == struct.pack('<d', b) or a != a != b != b
    if isinstance(a, number) and isinstance(b, number):
        return a == b and (type(a) is bool) == (type(b) is bool)
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        if sys.version_info >= (3, 7) and list(a) != list(b):
            return False
        return len(a) == len(b) and all(k in b and same(a[k], b[k]) for k in a)
    return a == b


def ask(program, letter, n, data):
    program.stdin.write(struct.pack('<cBI', letter, n, len(data)) + data)
    program.stdin.flush()
    size = struct.unpack('=i', program.stdout.read(4))[0]
    if size < 0:
        raise AssertionError('errno %d' % -size)
    return program.stdout.read(size)


def check(program, round_):
    v = value()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for dumps in DUMPS:
            out = ask(program, b'p', max(protocol, 2), dumps(v, protocol))
            for p in PICKLES:
                assert same(p.loads(out), v), (protocol, v, p.loads(out))
    v = json_value()
    out = ask(program, b'j', 0, pickle.dumps(v, 2)).decode('utf-8')
    assert same(json.loads(out), v), (v, out)
    assert out == json.dumps(v, ensure_ascii=False), (v, out)
    if not PY2:
        out = ask(program, b'j', 3, pickle.dumps(v, 2)).decode('utf-8')
        assert out == json.dumps(v, ensure_ascii=False, indent=3), (v, out)
    for ascii_ in (False, True):
        out = json.dumps(v, ensure_ascii=ascii_).encode('utf-8')
        assert same(pickle.loads(ask(program, b'l', 2, out)), v), (v, out)


def main():
    count, seed = int(sys.argv[2]), int(sys.argv[3])
    program = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    for i in range(count):
        R.seed(seed + i)
        try:
            check(program, i)
        except Exception as error:
            print('seed %d: %s: %.2000r' % (seed + i, type(error).__name__,
                                            error))
            return 1
    program.stdin.close()
    program.stdout.close()
    return program.wait()


sys.exit(main())
