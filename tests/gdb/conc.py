"""What gdb can tell of a program that uses conc.h.

    (gdb) source /usr/local/share/conc/conc.py

    conc tasks [WORDS]    every task: what it is, and what it waits for
    conc bt [TASK]        the stack of a task; without one, of the running one
    conc bt all           the stacks of all of them
    conc select [TASK]    bt, up, frame, info locals are of that task's stack;
                          without one, of the thread's again
    conc core FILE        what generate-core-file writes, with all stacks in it
    print VALUE           a conc_task, conc_queue, conc_value, lock and so on
                          in words (print/r: as it is)

A TASK is its number as "conc tasks" shows it, its name, or an expression that
is a conc_task, a conc_gen or a pointer to one. WORDS choose the tasks of which
the line has all of them. The programs must be compiled with -g.

Nothing of the program is called or changed: so all of it works with a core
file, too. Tasks are found by the lists of >>park, >>loop and >>child in
conc.h. A stack is that of a coroutine which does not run: where it goes on is
in its conc__fiber (>>stack), and an unwinder tells gdb that the frame which
the thread is in was called from there.
"""

import re
import struct
import time

import gdb
import gdb.printing
import gdb.unwinder

# What conc.h has as macros, of which no debugger hears. >>park, >>event.
PARKED, POLLING = 4, 8
OWNER_FLAG, OWNER_NONE, OWNER_ONE = 1, 2, 4
EVENT_SET = 1
TIMER_UNIT = float(1 << 30)
READ, WRITE = 1, 2
GEN_STATES = ['suspended', 'new', 'running', 'waited for by another one',
              'ended']

# Of each machine, by how its name begins: the registers that
# conc__switch_registers saves in conc__fiber.registers, in that order, and the
# register by which threads find their variables, where gdb knows it. The first
# two are stack pointer and program counter. With ucontext: where each of them
# and the others that a call keeps are found.
MACHINES = {
    'i386:x86-64': (
        ['rsp', 'rip', 'rbp', 'rbx'], 'fs_base',
        {'rsp': 'gregs[15]', 'rip': 'gregs[16]', 'rbp': 'gregs[10]',
         'rbx': 'gregs[11]', 'r12': 'gregs[4]', 'r13': 'gregs[5]',
         'r14': 'gregs[6]', 'r15': 'gregs[7]'}),
    'aarch64': (
        ['sp', 'pc', 'x29', 'x19'], 'tpidr',
        dict([('sp', 'sp'), ('pc', 'pc')] +
             [('x%d' % i, 'regs[%d]' % i) for i in range(19, 31)])),
    'i386': (['esp', 'eip', 'ebp', 'ebx', 'esi'], None, {}),
    'i386:x64': (['rsp', 'rip', 'rbp', 'rbx'], 'fs_base', {}),
    'arm': (['sp', 'pc', 'r6', 'r7', 'r9', 'r11'], 'tpidruro', {}),
    'riscv:rv64': (['sp', 'pc', 'fp', 's1'], 'tp', {}),
    's390:64': (['r15', 'pswa', 'r11', 'r12', 'r13'], None, {}),
    'powerpc:common64': (['r1', 'pc', 'r31', 'r30', 'r2'], 'r13', {}),
    'Loongarch64': (['r3', 'pc', 'r22', 'r31'], 'r2', {}),
}

# The first functions on a stack of the library's: nothing has called them.
# (Without debug information gdb takes the name for one of Ada.)
FIRST = re.compile(r'\bconc(__|\.)(coro|gen)_main\b')
PRIVATE = re.compile(r'conc(__|\.)')


# --- reading the program ---

known = {}  # types and offsets that were looked up: there may be many tasks


def struct_type(name):
    if name not in known:
        known[name] = gdb.lookup_type(name)
    return known[name]


def number(value):
    return int(value.cast(struct_type('unsigned long')))


def text(pointer):
    """What a const char * points to; None for NULL."""
    if not int(pointer):
        return None
    try:
        return pointer.string(errors='replace', length=-1)
    except gdb.MemoryError:
        return '?'


def offset(struct, field):
    if (struct, field) in known:
        return known[struct, field]
    for f in struct_type(struct).fields():
        if f.name == field:
            known[struct, field] = f.bitpos // 8
            return f.bitpos // 8
    raise gdb.GdbError('%s has no %s: is this conc.py of another version of '
                       'conc.h?' % (struct, field))


def at(address, struct):
    return gdb.Value(address).cast(
        struct_type(struct).pointer()).dereference()


def around(address, struct, field):
    """The struct of which the field is at that address."""
    return at(address - offset(struct, field), struct)


def linked(first, link):
    """The elements of a list, as values."""
    seen = set()
    while int(first) and int(first) not in seen:
        seen.add(int(first))
        element = first.dereference()
        yield element
        first = element[link]


def statics(name):
    """A static variable of conc.h: there is one in each file that has the
    implementation with CONC_STATIC."""
    found = {}
    symbols = list(gdb.lookup_static_symbols(name))
    symbol = gdb.lookup_global_symbol(name)
    for s in symbols + ([symbol] if symbol else []):
        if s.is_variable:
            value = s.value()
            if value.address is not None:  # else nothing ever changes it
                found[int(value.address)] = value
    return list(found.values())


def monotonic():
    """Now, as the program's clock has it; None: this is not its machine, or
    not its time."""
    connection = getattr(gdb.selected_inferior(), 'connection', None)
    if connection is not None and connection.type == 'native':
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return None


def machine():
    name = gdb.selected_inferior().architecture().name()
    for begin in sorted(MACHINES, key=len, reverse=True):
        if name.startswith(begin):
            return MACHINES[begin]
    raise gdb.GdbError('conc.py does not know the registers of ' + name)


# --- tasks ---

def task_name(task):
    name = text(task['name'])
    if name is not None:
        return name
    if not int(task['kind']):
        return 'a task'
    return '%s-%d' % (text(task['kind']['label']), int(task['number']))


class Task:
    """A task that runs, or is about to."""

    def __init__(self, kind, task, copy, actor=None):
        self.kind = kind  # thread, coroutine, job, process
        self.copy = copy  # of conc.h: which has its own numbers
        self.task = task
        self.name = task_name(task)
        self.actor = actor  # None: it has not begun, or is elsewhere
        self.id = number(actor['id']) // OWNER_ONE if actor is not None else 0
        self.number = '-'   # what the user calls it
        self.loop = None    # of a coroutine: that runs it; of a thread: that
                            # it runs
        self.thread = None  # the Thread; of a coroutine while it runs
        self.state = ''

    def label(self):
        return '%s %s' % (self.kind, self.name)

    def line(self):
        return '%s %s: %s' % (self.number, self.label(), self.state)


class Thread:
    """What conc.h has of a thread, and which one of gdb's that is."""

    def __init__(self, task, copy):
        actor = task['actor'].dereference()
        self.address = int(actor.address) - offset('conc__thread', 'actor')
        value = at(self.address, 'conc__thread')
        self.current = int(value['current'])
        self.loop = value['loop'] if int(value['loop']) else None
        self.known = None  # the Loop
        self.gdb = None
        self.task = Task('thread', task, copy, actor)
        self.task.loop = self.loop
        self.task.thread = self


class Loop:
    """What a loop's lists say of its coroutines."""

    def __init__(self, pointer):
        self.value = pointer.dereference()
        ring = self.value['ready']
        size, first = int(ring['size']), int(ring['first'])
        self.ready = set()
        for i in range(int(ring['count'])):
            self.ready.add(int(ring['items'][(first + i) & (size - 1)]))
        for co in linked(self.value['inbox']['first'], 'next'):
            self.ready.add(int(co.address))
        self.waits = {}  # actor: descriptor, events
        fds = self.value['fds']
        for fd in range(int(fds['size']) if int(fds['waited']) else 0):
            entry = fds['entries'][fd]
            for w in linked(entry['waiters'], 'next'):
                self.waits.setdefault(int(w['actor']), []).append(
                    (fd, int(w['events'])))


class World:
    """All tasks, as they are at this moment."""

    def __init__(self):
        heads = statics('conc__threads')
        if not heads:
            raise gdb.GdbError('no conc.h is to be seen: was the program '
                               'compiled with -g, and has it begun?')
        self.now = monotonic()
        self.threads = []
        self.tasks = []
        for copy, head in enumerate(heads):
            threads = [Thread(t, copy) for t in linked(head, 'next')]
            threads.reverse()  # the oldest first
            for thread in threads:
                self.add_thread(thread)
            find_gdb_threads(threads)
            self.threads += threads
        self.by_id = {}
        for t in self.tasks:
            if t.id:
                self.by_id.setdefault(t.id, []).append(t)
                t.number = str(t.id) if len(heads) == 1 else (
                    '%d.%d' % (t.copy + 1, t.id))
        self.by_number = dict((t.number, t) for t in self.tasks if t.id)
        for task in self.tasks:
            task.state = self.state(task)
        for copy, head in enumerate(statics('conc__processes')):
            for task in linked(head, 'next'):
                self.add_process(task, copy)

    def add_thread(self, thread):
        task = thread.task
        self.tasks.append(task)
        job = task.actor['task'].dereference()
        if int(job.address) != int(task.task.address):
            job = Task('job', job, task.copy, task.actor)
            job.thread = thread
            task.id = 0  # while it runs a job its actor is the job's
            self.tasks.append(job)
        if thread.loop is None:
            return
        loop = thread.known = Loop(thread.loop)
        younger = [t for t in linked(loop.value['tasks'], 'next')
                   if int(t['kind'])]  # the others are marks
        for t in reversed(younger):
            actor = int(t['actor'])
            co = Task('coroutine', t, task.copy,
                      t['actor'].dereference() if actor > 1 else None)
            co.loop = loop
            if actor == thread.current:
                co.thread = thread
            self.tasks.append(co)

    def add_process(self, value, copy):
        task = Task('process', value, copy)
        task.state = 'runs, pid %d' % int(value['pid'])
        self.tasks.append(task)

    def find(self, words):
        """The task that a user means, or a suspended generator."""
        if words in self.by_number:
            return self.by_number[words]
        plain = words.strip('"')
        named = [t for t in self.tasks if t.name == plain]
        if len(named) == 1:
            return named[0]
        if named:
            raise gdb.GdbError('there are %d tasks of that name: their '
                               'numbers tell which' % len(named))
        try:
            value = gdb.parse_and_eval(words)
        except gdb.error:
            raise gdb.GdbError('there is no task ' + words)
        if value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR:
            value = value.dereference()
        if value.type.strip_typedefs().name == 'conc_gen':
            return value
        for t in self.tasks:
            if int(t.task.address) == int(value.address):
                return t
        raise gdb.GdbError('that is no task which runs')

    def running(self):
        """The task that the selected thread runs; None: it is not known. Of
        several copies of conc.h the one knows best that has more than a thread
        there."""
        found = None
        for t in self.tasks:
            g = t.thread.gdb if t.thread is not None else None
            if g is not None and g.ptid == gdb.selected_thread().ptid:
                if found is None or t.kind != 'thread':
                    found = t
        return found

    # What a task does now, in words.

    def state(self, task):
        if task.actor is None:
            if int(task.task['actor']) == 1:
                return 'was cancelled before it began'
            return 'has not begun'
        if task.kind != 'coroutine':
            return self.thread_state(task)
        if task.thread is not None:
            return 'runs'
        if int(task.actor.address) in task.loop.ready:
            return 'is ready'
        return self.wait(task, task.loop)

    def thread_state(self, task):
        thread = task.thread
        if task.kind == 'thread' and task.id == 0 and thread.current:
            return 'runs a job'
        if thread.loop is not None and task.kind == 'thread':
            state = 'runs a loop of %d tasks' % int(
                thread.known.value['alive'])
            if int(thread.known.value['inbox']['sleeping']):
                state += ', which sleeps'
            return state
        word = int(task.actor['word'])
        if not word & PARKED and not int(task.actor['waiting']):
            return 'runs'
        return self.wait(task, None)

    def wait(self, task, loop):
        actor = task.actor
        waiting = actor['waiting']
        since, looks = 0.0, False
        if int(waiting):
            words = 'waits for ' + self.waited(waiting.dereference(),
                                               task.copy)
            since = float(waiting['since'])
            looks = bool(waiting['looks'])
        elif loop is not None and int(actor.address) in loop.waits:
            words = 'waits for ' + ' or '.join(
                'descriptor %d, %s' % (fd, {READ: 'reading', WRITE: 'writing'}
                                       .get(events, 'both'))
                for fd, events in loop.waits[int(actor.address)])
        elif int(actor['word']) & POLLING:
            words = 'waits for descriptors'
        else:
            words = 'sleeps'
        if since > 0 and self.now is not None:
            words += ', for %.1f s now' % (self.now - since)
        if loop is not None:
            words += self.until(actor, loop, looks)
        return words

    def until(self, actor, loop, looks):
        """`looks`: the timer is for a look at deadlocks only."""
        timer = int(at(int(actor.address), 'conc__coro')['timer'])
        if timer == 0 or looks:
            return ''
        end = int(loop.value['timers']['places'][timer]['time']) / TIMER_UNIT
        if self.now is None:
            return ', until %.1f s of the monotonic clock' % end
        return ', until %.1f s %s' % (abs(end - self.now),
                                      'from now' if end > self.now else 'ago')

    def waited(self, w, copy):
        what = text(w['what']) or 'something'
        name = text(w['name'])
        words = what if name is None else "%s '%s'" % (what, name)
        relation = text(w['relation'])
        if int(w['many']):
            m = w['many'].dereference()
            n = int(m['n'])
            nodes = [m['nodes'][i] for i in range(min(n, 4))]
            if not all(int(node['task']) for node in nodes):
                return '%s, %d' % (words, n)  # >>select: without names
            names = [task_name(node['task']) for node in nodes]
            more = ', and %d more' % (n - 4) if n > 4 else ''
            return '%s: %s%s' % (words, ', '.join(names), more)
        if int(w['group']):
            return 'the end of %d tasks of a group' % int(w['group']['count'])
        if relation is None or not int(w['owner']):
            return words
        if relation == 'of':
            owner = around(int(w['owner']), 'conc_task', 'id')
            return '%s of %s' % (words, task_name(owner))
        return '%s %s %s' % (words, relation,
                             self.owner(w['owner'].dereference(), copy))

    def owner(self, word, copy=None):
        """Whom the word of a lock names. Without `copy` it is not known of
        which copy of conc.h the lock is."""
        word = number(word)
        owner = 0 if word & OWNER_NONE else word & ~OWNER_FLAG
        if owner == 0:
            return 'nobody by name'
        names = [t.name for t in self.by_id.get(owner // OWNER_ONE, [])
                 if copy in (None, t.copy)]
        return ' or '.join(names) or 'a task that has ended'


cached = []


def world():
    """What printers use: as it was at the last stop of the program."""
    if not cached:
        cached.append(World())
    return cached[0]


for event in ('stop', 'cont', 'exited', 'new_objfile', 'clear_objfiles',
              'memory_changed', 'register_changed', 'inferior_call'):
    getattr(gdb.events, event).connect(lambda event: cached.clear())
for event in 'new_objfile', 'clear_objfiles':
    getattr(gdb.events, event).connect(lambda event: known.clear())


# --- which of gdb's threads is which ---

def register(name):
    if name is None:
        return None
    try:
        return number(gdb.parse_and_eval('$' + name)) & (1 << 64) - 1
    except (gdb.error, ValueError):
        return None


def stacks_of(actor):
    """The stacks that a coroutine is on, from the lowest to the highest byte:
    its own, and that of the generator which it has resumed."""
    found = []
    if int(actor['ops']) and is_coro(actor):
        co = at(int(actor.address), 'conc__coro')
        found.append((int(co['map']), int(co.address)))
    if int(actor['generator']) and int(actor['generator']['stack']):
        co = actor['generator']['stack'].dereference()
        found.append((int(co['map']), int(co.address)))
    return found


def is_coro(actor):
    return not bool(actor['ops']['blocks'])


def find_gdb_threads(threads):
    """A conc__thread is a thread-local variable: so it is near to where the
    thread pointer of its thread points to, and other threads' are not. Where
    gdb is not told of that register: a thread is where its stack pointer is;
    or it is the only one that is left."""
    before = gdb.selected_thread()
    if before is None:
        raise gdb.GdbError('no program is being run, and no core file read')
    frame = gdb.selected_frame()
    stack, pointer = machine()[0][0], machine()[1]
    left = []
    unwinder.off_for_now(True)
    try:
        for t in gdb.selected_inferior().threads():
            if not t.is_valid():
                continue
            t.switch()
            gdb.newest_frame().select()
            left.append((t, register(stack), register(pointer)))
    finally:
        unwinder.off_for_now(False)
        before.switch()
        try:
            frame.select()
        except gdb.error:
            pass
    for thread in threads:
        near = [(abs(tp - thread.address), t) for t, sp, tp in left if tp]
        near = [n for n in near if n[0] < 1 << 20]
        if near:
            take(thread, min(near, key=lambda n: n[0])[1], left)
    for thread in threads:
        if thread.gdb is None and thread.current:
            actor = at(thread.current, 'conc__actor')
            for low, high in stacks_of(actor):
                for t, sp, tp in list(left):
                    if sp is not None and low <= sp < high:
                        take(thread, t, left)
    rest = [thread for thread in threads if thread.gdb is None]
    if len(rest) == 1 and len(left) == 1:
        take(rest[0], left[0][0], left)


def take(thread, t, left):
    thread.gdb = t
    left[:] = [row for row in left if row[0] is not t]


# --- stacks that do not run ---

class FrameId:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class Unwinder(gdb.unwinder.Unwinder):
    """While it is set to a fiber, the innermost frame of the selected thread
    was called from there."""

    def __init__(self):
        super().__init__('conc.h')
        self.enabled = False
        self.registers = None  # name: value
        self.sp = self.ptid = None

    def set(self, registers):
        self.off()
        names = machine()[0]
        self.names = names
        self.sp = register(names[0])
        self.ptid = gdb.selected_thread().ptid
        self.registers = registers
        self.enabled = True
        gdb.invalidate_cached_frames()

    def off(self):
        self.registers = None
        if self.enabled:
            self.enabled = False
            gdb.invalidate_cached_frames()

    def off_for_now(self, off):
        if self.registers is not None and self.enabled == off:
            self.enabled = not off
            gdb.invalidate_cached_frames()

    def __call__(self, frame):
        if self.registers is None or gdb.selected_thread().ptid != self.ptid:
            return None
        sp, pc = self.names[:2]
        if number(frame.read_register(sp)) != self.sp:
            return None  # it is one that the fiber has led to
        # gdb does not believe that a caller has the lower stack: so this frame
        # says that it is just below the fiber's.
        below = self.registers[sp] - 16
        info = frame.create_unwind_info(FrameId(
            gdb.Value(below).cast(frame.read_register(sp).type),
            frame.read_register(pc)))
        for name, value in self.registers.items():
            kind = frame.read_register(name).type
            info.add_saved_register(name, gdb.Value(value).cast(kind))
        return info


unwinder = Unwinder()


def fiber_registers(fiber):
    """Where a fiber goes on."""
    names, _, places = machine()
    fields = [f.name for f in fiber.type.strip_typedefs().fields()]
    if 'registers' in fields:
        found = dict((name, int(fiber['registers'][i]))
                     for i, name in enumerate(names))
        if names[1] == 'pswa':  # gdb wants it by both names
            found['pc'] = found['pswa']
        if names[-1] == 'r11':  # ARM: an odd address is one of Thumb
            thumb = found['pc'] & 1
            found['pc'] -= thumb
            found['cpsr'] = register('cpsr') & ~0x20 | thumb << 5
        return found
    if not places:
        raise gdb.GdbError('conc.py does not know ucontext on this machine')
    context = fiber['context']['uc_mcontext']
    found = {}
    for name, place in places.items():
        field, _, index = place.partition('[')
        value = context[field]
        value = value[int(index[:-1])] if index else value
        found[name] = number(value) & (1 << 64) - 1
    return found


def stacks(task):
    """The stacks of a task, the innermost first: of the fiber where it goes
    on, or None for what its thread is at. A task that is in a generator has
    one for that, and for each that delegates to it."""
    found = []
    if isinstance(task, gdb.Value):
        if not int(task['stack']):
            raise gdb.GdbError('the generator has no stack: it has not begun, '
                               'or has ended')
        return generator_stacks(task)
    actor = task.actor
    if actor is None:
        raise gdb.GdbError('%s %s' % (task.name, task.state))
    if task.kind == 'thread' and task.loop and (
            task.thread.current != int(actor.address)):
        return [task.loop['fiber']]
    here = None if task.thread is not None else actor['fiber']
    if not int(actor['generator']):
        return [here]
    found = generator_stacks(actor['generator'].dereference())
    found[0] = here  # it runs, or waits, as the actor
    return found + [actor['caller'].dereference()]


def generator_stacks(root):
    """The root has the stack that its leaf runs on; and a generator that has
    delegated by a switch has the one on which that goes on then."""
    found = [root['stack']['actor']['fiber']]
    g = root['next']
    while int(g) and int(g) != int(root.address):
        if int(g['stack']):
            found.append(g['stack']['actor']['fiber'])
        g = g['next']
    return found


def backtrace(options):
    """The lines of gdb's own bt, by frame."""
    lines = gdb.execute('with width 0 -- bt ' + options, to_string=True)
    frames = []
    for line in lines.splitlines():
        if re.match(r'#\d+ ', line):
            frames.append([line])
        elif frames:
            frames[-1].append(line)
    return frames


def print_stack(fiber, options, everything):
    if fiber is None:
        unwinder.off()
    else:
        unwinder.set(fiber_registers(fiber))
    try:
        for frame in backtrace(options):
            head = frame[0]
            level = int(head[1:].split()[0])
            if fiber is not None and level < first_level():
                continue
            last = FIRST.search(head)
            function = re.match(r'#\d+ +(?:0x[0-9a-f]+ in )?([\w:.]+)', head)
            inside = function and PRIVATE.match(function.group(1))
            if everything or not inside:
                print_lines(frame)
            if last:
                return
    finally:
        unwinder.off()


def print_lines(lines):
    gdb.write('\n'.join(lines) + '\n')


def first_level():
    """How many frames are the thread's own, before those of the fiber."""
    frame, level = gdb.newest_frame(), 0
    sp = machine()[0][0]
    while frame is not None and (
            number(frame.read_register(sp)) & (1 << 64) - 1 ==
            unwinder.sp):
        frame, level = frame.older(), level + 1
    return level


# --- the commands ---

class Conc(gdb.Command):
    __doc__ = __doc__

    def __init__(self):
        super().__init__('conc', gdb.COMMAND_STACK, gdb.COMPLETE_NONE, True)


class Tasks(gdb.Command):
    """conc tasks [WORDS]: every task, and what it waits for.
The one that the selected thread runs has a *. With WORDS: those of which the
line has all of them."""

    def __init__(self):
        super().__init__('conc tasks', gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        world = World()
        running = world.running()
        words = argument.split()
        gdb.write('%7s %-10s %-20s %s\n' % ('Number', 'Kind', 'Name',
                                            'What it does'))
        for t in world.tasks:
            line = '%s%6s %-10s %-20s %s' % (
                '*' if t is running else ' ', t.number, t.kind, t.name,
                t.state)
            if t.kind == 'thread' and t.thread.gdb is not None:
                line += ' (thread %d)' % t.thread.gdb.num
            if all(word in line for word in words):
                gdb.write(line + '\n')


class Backtrace(gdb.Command):
    """conc bt [TASK | all] [-conc] [OPTIONS]: the stack of a task, or of all.
Without a task: of the one that the selected thread runs. The frames of the
library's private functions are left out; not with -conc. The other options
are those of bt, such as -full. Of a task that is in a generator, the stack of
the generator is followed by that of its caller. The numbers of the frames are
those of "conc select"."""

    def __init__(self):
        super().__init__('conc bt', gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        words = argument.split()
        everything = '-conc' in words
        words = [w for w in words if w != '-conc']
        options = ' '.join(w for w in words if w.startswith('-'))
        words = ' '.join(w for w in words if not w.startswith('-'))
        unwinder.off()
        world = World()
        if words == 'all':
            for t in world.tasks:
                self.one(world, t, options, everything)
                gdb.write('\n')
            return
        task = world.find(words) if words else world.running()
        if task is None:
            raise gdb.GdbError('the thread is not known to conc.h: bt')
        self.one(world, task, options, everything)

    def one(self, world, task, options, everything):
        if isinstance(task, gdb.Value):
            gdb.write('generator at %#x\n' % int(task.address))
        else:
            gdb.write(task.line() + '\n')
            if task.kind == 'process' or task.actor is None:
                return
        with_stack(task, lambda fiber: print_stack(fiber, options,
                                                   everything))


def with_stack(task, act):
    """Calls act() for each stack of a task, with its thread selected."""
    before, frame = gdb.selected_thread(), gdb.selected_frame()
    try:
        thread = None if isinstance(task, gdb.Value) else task.thread
        if thread is not None and thread.gdb is not None:
            thread.gdb.switch()
        for i, fiber in enumerate(stacks(task)):
            if fiber is None and thread.gdb is None:
                gdb.write('  (it is not known which of the threads runs it)\n')
                continue
            if i > 0:
                gdb.write('  which was resumed by\n')
            act(fiber)
    finally:
        before.switch()
        try:
            frame.select()
        except gdb.error:
            pass


class Select(gdb.Command):
    """conc select [TASK]: looks at the stack of a task.
From then on bt, up, down, frame and info locals are of the stack of that task;
frame 0 is still the thread's own. Only look: a step or a finish is the
thread's. Without a task, or when the program goes on: back to the thread."""

    def __init__(self):
        super().__init__('conc select', gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        unwinder.off()
        if not argument.strip():
            return
        world = World()
        task = world.find(argument.strip())
        fiber = stacks(task)[0]
        if fiber is None:
            if task.thread.gdb is None:
                raise gdb.GdbError('it is not known which thread runs it')
            task.thread.gdb.switch()
            gdb.newest_frame().select()
        else:
            unwinder.set(fiber_registers(fiber))
            frame = gdb.newest_frame()
            for _ in range(first_level()):
                frame = frame.older()
            while frame.older() is not None and PRIVATE.match(
                    frame.name() or ''):
                frame = frame.older()
            frame.select()
        gdb.execute('frame')


class Core(gdb.Command):
    """conc core FILE: writes a core file, as generate-core-file does.
That leaves out what is behind a page which cannot be read, and the guards of
stacks are such pages on Linux 6.13 and later. This command adds the rest. (A
core file that the kernel writes has all of it.)"""

    def __init__(self):
        super().__init__('conc core', gdb.COMMAND_DATA,
                         gdb.COMPLETE_FILENAME)

    def invoke(self, argument, from_tty):
        path = argument.strip()
        if not path:
            raise gdb.GdbError('conc core FILE')
        gdb.execute('generate-core-file ' + path, to_string=True)
        pages = 0
        with open(path, 'r+b') as core:
            for offset_, address, size in core_segments(core):
                pages += core_complete(core, offset_, address, size)
        gdb.write('%s: %d more pages\n' % (path, pages))


def core_segments(core):
    """Of the memory in a core file: place in the file, address, size."""
    head = core.read(64)
    order = '<' if head[5] == 1 else '>'
    if head[4] == 2:
        at_, size, n = struct.unpack(order + '32xQ14xHH4x2x', head)
        row = order + 'I4xQQ8xQ'
    else:
        at_, size, n = struct.unpack(order + '28xI10xHH', head[:46])
        row = order + 'IIIxxxxI'
    found = []
    for i in range(n):
        core.seek(at_ + i * size)
        kind, offset_, address, bytes_ = struct.unpack(
            row, core.read(struct.calcsize(row)))
        if kind == 1 and bytes_:
            found.append((offset_, address, bytes_))
    return found


def core_complete(core, offset_, address, size, chunk=1 << 20, page=4096):
    """Writes what stands behind the first page of a segment that cannot be
    read, in the steps in which gdb has tried it. Returns how many pages."""
    inferior, pages, step = gdb.selected_inferior(), 0, chunk
    start = 0
    while start < size:
        n = min(step, size - start)
        try:
            data = inferior.read_memory(address + start, n)
        except gdb.MemoryError:
            data = None
            if step == chunk:
                step = page
                continue
        if step == page and data is not None:
            core.seek(offset_ + start)
            core.write(data)
            pages += 1
        start += n
    return pages


gdb.events.cont.connect(lambda event: unwinder.off())


# --- printing values ---

def plural(n, word):
    return '%d %s%s' % (n, word, '' if n == 1 else 's')


def waiters(value):
    n = sum(1 for w in linked(value['waiters']['first'], 'next'))
    return '' if n == 0 else ', 1 task waits' if n == 1 else (
        ', %d tasks wait' % n)


def named(what, value):
    name = text(value['name'])
    return what if name is None else "%s '%s'" % (what, name)


def top_bit():
    return 1 << struct_type('unsigned long').sizeof * 8 - 1


def is_shared(word):
    """Whether the object is used by several processes. >>claim."""
    top = top_bit()
    return word & (top | OWNER_NONE) == top | OWNER_NONE


def owner_name(word):
    try:
        return world().owner(word)
    except gdb.error:
        return 'number %d' % (number(word) // OWNER_ONE)


def word_of(value):
    return number(value['word']) & (1 << 64) - 1


class Printer:
    def __init__(self, value):
        self.value = value

    def to_string(self):
        try:
            return self.words(self.value)
        except gdb.error as problem:
            return '<%s>' % problem


class LockPrinter(Printer):
    def words(self, v):
        word = word_of(v)
        if is_shared(word):
            return named('lock', v) + ', shared by processes'
        if word & ~OWNER_FLAG == 0:
            return named('lock', v) + ', free'
        return '%s, held by %s%s' % (named('lock', v), owner_name(v['word']),
                                     waiters(v))


class RlockPrinter(Printer):
    def words(self, v):
        words = 'recursive ' + LockPrinter(v['lock']).words(v['lock'])
        levels = int(v['lock']['depth'])
        return words + (', %d levels' % (levels + 1) if levels else '')


class RwlockPrinter(Printer):
    def words(self, v):
        word = word_of(v)
        if is_shared(word):
            return named('rwlock', v) + ', shared by processes'
        if word & OWNER_NONE:
            state = ', held by %s' % plural(word // OWNER_ONE, 'reader')
        elif word & ~OWNER_FLAG:
            state = ', written by ' + owner_name(v['word'])
        else:
            state = ', free'
        return named('rwlock', v) + state + waiters(v)


class OncePrinter(Printer):
    def words(self, v):
        word = word_of(v)
        if is_shared(word):
            return named('once', v) + ', shared by processes'
        state = {0: ', not done', OWNER_NONE: ', done'}.get(word)
        if state is None:
            state = ', run by ' + owner_name(v['word']) + waiters(v)
        return named('once', v) + state


class EventPrinter(Printer):
    def words(self, v):
        word = word_of(v)
        if is_shared(word):
            return named('event', v) + ', shared by processes'
        return named('event', v) + (
            ', set' if word & EVENT_SET else ', clear') + waiters(v)


class CondPrinter(Printer):
    def words(self, v):
        if int(v['word']):
            return named('condition', v) + ', shared by processes'
        return named('condition', v) + waiters(v)


class SemPrinter(Printer):
    def words(self, v):
        value, bound = number(v['value']), number(v['bound'])
        if is_shared(value):
            return named('semaphore', v) + ', shared by processes'
        if value == top_bit():  # CONC__SEM_WAITERS
            value = 0
        return '%s, %d%s%s' % (named('semaphore', v), value,
                               ' of %d' % bound if bound else '', waiters(v))


class BarrierPrinter(Printer):
    def words(self, v):
        if is_shared(word_of(v)):
            return named('barrier', v) + ', shared by processes'
        return '%s, %d of %d wait%s' % (
            named('barrier', v), int(v['waiting']), int(v['parties']),
            ', broken' if bool(v['broken']) else '')


class GroupPrinter(Printer):
    def words(self, v):
        failure = int(v['failure'])
        return 'group, %s%s' % (
            plural(int(v['count']), 'task'),
            ', failed: %d' % failure if failure else '')


class GenPrinter(Printer):
    def words(self, v):
        word = word_of(v)
        state = GEN_STATES[word & 7] if word else 'new'
        target = str(v['target'].dereference()) if int(v['target']) else '?'
        return 'generator %s, %s' % (re.sub(r'.*<(.*)>.*', r'\1', target),
                                     state)


class TaskPrinter(Printer):
    def words(self, v):
        if not int(v['kind']):
            name = text(v['name'])
            return 'task%s, not started' % (
                '' if name is None else ' ' + name)
        if number(v['done']['word']) & EVENT_SET:
            return '%s, has finished, status %d' % (task_name(v),
                                                    int(v['status']))
        for t in world().tasks:
            if int(t.task.address) == int(v.address or 0):
                return '%s, %s' % (t.label(), t.state)
        return task_name(v)

    def children(self):
        yield 'target', self.value['target']
        yield 'arg', self.value['arg']
        yield 'result', self.value['result']


class QueuePrinter(Printer):
    KINDS = {'fifo': '', 'cells': ' between processes', 'work': ' that leases',
             'host': ' that leases to other processes', 'guest':
             " of another process's", 'proxy': ' of a manager',
             'far': ' at Redis'}

    def words(self, v):
        kind = re.search(r'conc(?:__|\.)(\w+)_class',
                         v['ops'].format_string(symbols=True))
        kind = kind.group(1) if kind else ''
        words = named('queue', v) + self.KINDS.get(kind, '')
        if kind == 'fifo':
            f = at(int(v.address), 'conc__fifo')
            size = int(f['put']) - int(f['got'])
            words += ', ' + plural(size, 'message')
        if int(v['capacity']):
            words += ', capacity %d' % int(v['capacity'])
        if kind == 'fifo':
            words += ', closed' if bool(f['closed']) else ''
            for side in 'putters', 'getters', 'joiners':
                n = sum(1 for w in linked(f[side]['first'], 'next'))
                words += ', waiting: ' + plural(n, side[:-1]) if n else ''
        return words


class ValuePrinter(Printer):
    """As Python's repr() has it. What is long is cut, as gdb's strings are."""

    def words(self, v):
        limit = gdb.parameter('print elements') or 1 << 20
        self.left = limit
        return self.node(v, 0)

    def node(self, v, depth):
        kind = str(v['type'])[len('CONC_'):]
        size, content = int(v['size']), v['as']
        self.left -= 1
        if kind == 'NONE':
            return 'None'
        if kind == 'BOOL':
            return str(bool(content['boolean']))
        if kind == 'INT':
            return str(int(content['integer']))
        if kind == 'FLOAT':
            return repr(float(content['real']))
        if kind in ('STR', 'BYTES', 'BYTEARRAY', 'BIGINT'):
            return self.string(kind, content['bytes'], size)
        if kind == 'OBJECT':
            return '<object>'
        return self.container(kind, content['items'], size, depth)

    def string(self, kind, at_, size):
        limit = gdb.parameter('print elements') or size
        cut = size > limit and kind != 'BIGINT'
        data = bytes(gdb.selected_inferior().read_memory(
            int(at_), min(size, limit) if cut else size)) if size else b''
        if kind == 'BIGINT':
            return str(int.from_bytes(data, 'little', signed=True))
        if kind == 'STR':
            words = repr(data.decode('utf-8', 'surrogatepass' if not cut
                                     else 'replace'))
        else:
            words = repr(data)
        if kind == 'BYTEARRAY':
            words = 'bytearray(%s)' % words
        return words + ('...' if cut else '')

    def container(self, kind, items, size, depth):
        first, last = {'LIST': '[]', 'TUPLE': '()', 'DICT': '{}',
                       'SET': '{}', 'FROZENSET': '{}'}[kind]
        if depth > 20:
            return first + '...' + last
        parts = []
        for i in range(size):
            if self.left <= 0:
                parts.append('...')
                break
            if kind == 'DICT':
                parts.append('%s: %s' % (self.node(items[2 * i], depth + 1),
                                         self.node(items[2 * i + 1],
                                                   depth + 1)))
            else:
                parts.append(self.node(items[i], depth + 1))
        if kind == 'TUPLE' and size == 1:
            parts.append('')
            return first + ', '.join(parts).rstrip() + last
        if kind in ('SET', 'FROZENSET') and size == 0:
            return '%s()' % kind.lower()
        words = first + ', '.join(parts) + last
        return 'frozenset(%s)' % words if kind == 'FROZENSET' else words


def register_printers():
    printers = gdb.printing.RegexpCollectionPrettyPrinter('conc.h')
    for name, printer in (
            ('conc_task', TaskPrinter), ('conc_queue', QueuePrinter),
            ('conc_value', ValuePrinter), ('conc_lock', LockPrinter),
            ('conc_rlock', RlockPrinter), ('conc_rwlock', RwlockPrinter),
            ('conc_once', OncePrinter), ('conc_event', EventPrinter),
            ('conc_cond', CondPrinter), ('conc_sem', SemPrinter),
            ('conc_barrier', BarrierPrinter), ('conc_group', GroupPrinter),
            ('conc_gen', GenPrinter)):
        printers.add_printer(name, '^%s$' % name, printer)
    gdb.printing.register_pretty_printer(None, printers, replace=True)


gdb.unwinder.register_unwinder(None, unwinder, replace=True)
register_printers()
for command in Conc, Tasks, Backtrace, Select, Core:
    command()
