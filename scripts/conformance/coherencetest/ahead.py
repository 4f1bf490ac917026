"""Nobody sees an older state than anybody, on any mount, has seen before: what only ever grows is read by everybody all the
time, and compared with the furthest that was seen when the reading began."""

import mmap
import os
import struct
import time

from .processes import Barrier, Wrong, run

CELL = struct.Struct("<q")


class Seen:
    """The furthest that each process has seen, in memory that all of them share."""

    def __init__(self, processes):
        self.processes = processes
        self.memory = mmap.mmap(-1, CELL.size * (processes + 2))

    def of(self, process):
        return CELL.unpack_from(self.memory, process * CELL.size)[0]

    def furthest(self):
        return max(CELL.unpack_from(self.memory, i * CELL.size)[0] for i in range(self.processes))

    def put(self, process, value):
        CELL.pack_into(self.memory, process * CELL.size, value)

    def end(self):
        CELL.pack_into(self.memory, self.processes * CELL.size, 1)

    def ended(self):
        return CELL.unpack_from(self.memory, self.processes * CELL.size)[0]

    def count(self, more):
        # Readings, for the report; a lost addition does no harm.
        at = (self.processes + 1) * CELL.size
        CELL.pack_into(self.memory, at, CELL.unpack_from(self.memory, at)[0] + more)

    def counted(self):
        return CELL.unpack_from(self.memory, (self.processes + 1) * CELL.size)[0]


class Counter:
    """A number in a file that is written over."""

    # Those on the changer's own mount see a change at the latest when the call that made it has returned (docs/semantics.md).
    BESIDE_LATER = False

    def __init__(self, root):
        self.name = f"{root}/counter"
        self.fd = os.open(self.name, os.O_RDWR | os.O_CREAT, 0o644)

    def advance(self, value):
        os.pwrite(self.fd, CELL.pack(value), 0)

    def kept(self):
        data = os.pread(self.fd, CELL.size, 0)
        return CELL.unpack(data)[0] if data else 0

    def fresh(self):
        fd = os.open(self.name, os.O_RDONLY)
        data = os.read(fd, CELL.size)
        os.close(fd)
        return CELL.unpack(data)[0] if data else 0

    def looks(self):
        return [self.kept, self.fresh]


class Replaced(Counter):
    """A number in a file that is replaced by rename."""

    BESIDE_LATER = True

    def advance(self, value):
        with open(f"{self.name}.new", "wb") as file:
            file.write(CELL.pack(value))
        os.rename(f"{self.name}.new", self.name)

    def looks(self):
        return [self.fresh]


class Mtime(Counter):
    """The modification time of a file that is written; the number is the time itself."""

    def advance(self, value):
        os.pwrite(self.fd, b"%d" % value, 0)
        return os.fstat(self.fd).st_mtime_ns

    def looks(self):
        return [lambda: os.fstat(self.fd).st_mtime_ns, lambda: os.stat(self.name).st_mtime_ns]


class Size(Counter):
    """The length of a file that grows."""

    def advance(self, value):
        os.pwrite(self.fd, b"x", value - 1)

    def looks(self):
        # Not by `lseek(SEEK_END)`: the kernel answers that from before when a change is told while it asks (docs/semantics.md).
        return [lambda: os.fstat(self.fd).st_size, lambda: os.stat(self.name).st_size]


class Tail(Counter):
    """The bytes of a file that grows, by handles that only read: through those the kernel may go by its pages and the length it knows."""

    def __init__(self, root):
        super().__init__(root)
        self.floor = 0

    def advance(self, value):
        os.pwrite(self.fd, b"x", value - 1)

    def fresh(self):
        before = max(self.floor - 1, 0)
        fd = os.open(self.name, os.O_RDONLY)
        data = os.pread(fd, 4096, before)
        os.close(fd)
        return before + len(data)

    def looks(self):
        # Not by a handle that was opened before the file grew (docs/semantics.md).
        return [self.fresh]


class Listing:
    """A directory that gains names."""

    BESIDE_LATER = True

    def __init__(self, root):
        self.root = root
        self.fd = os.open(root, os.O_RDONLY)

    def advance(self, value):
        os.close(os.open(f"{self.root}/n{value}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        # A listing of thousands takes so long that nothing else would be seen.
        time.sleep(value / 1_000_000)

    def looks(self):
        return [lambda: len(os.listdir(self.root)), lambda: len(os.listdir(self.fd))]


WHAT = {"counter": Counter, "replace": Replaced, "mtime": Mtime, "size": Size, "tail": Tail, "listing": Listing}


def advance(barrier, seen, thing, process, seconds):
    thing = thing()
    barrier.wait()
    deadline = time.monotonic() + seconds
    value = 0
    while time.monotonic() < deadline:
        value += 1
        # Others may have seen it before it has returned; once it has, they must.
        seen.put(process, thing.advance(value) or value)
    seen.end()
    print(f"{value} changes", flush=True)


def watch(barrier, seen, thing, process, beside):
    thing = thing()
    looks = thing.looks()
    barrier.wait()
    before = (0, "")
    n = 0
    while not seen.ended():
        n += 1
        floor = max(before[0], seen.of(0)) if beside and thing.BESIDE_LATER else seen.furthest()
        thing.floor = floor
        value = looks[n % len(looks)]()
        if value < floor:
            own = f"; this process itself has seen {before[0]}" if before[0] > value else ""
            raise Wrong(f"process {process}, way {n % len(looks)} of looking, look {n}: {value}, after {floor} had been seen{own}")
        before = (max(value, before[0]), "")
        seen.put(process, before[0])
    seen.count(n)


def play(what, roots, seconds):
    """The first root's process changes, two on each of the others and one beside it look."""
    make = WHAT[what]
    watchers = [roots[0]] + [root for root in roots[1:] for _ in range(2)]
    # Whoever makes it first, it is there before anybody looks.
    make(roots[0])
    seen = Seen(len(watchers) + 1)
    barrier = Barrier(len(watchers) + 1)
    bodies = [barrier.open, lambda: advance(barrier, seen, lambda: make(roots[0]), 0, seconds)]
    bodies += [lambda i=i, root=root: watch(barrier, seen, lambda: make(root), i, root == roots[0]) for i, root in enumerate(watchers, 1)]
    run(bodies, seconds + 60)
    return f"{seen.counted()} looks by {len(watchers)} processes"
