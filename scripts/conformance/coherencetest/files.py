"""Kinds of changes that show in a file that is there all the time: its bytes and attributes."""

import ctypes
import mmap
import os
import random

from .processes import Wrong
from .rounds import Kind, same

LIBC = ctypes.CDLL(None, use_errno=True)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


def punch(fd, offset, length):
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def store(path, data, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
    fd = os.open(path, flags, 0o644)
    try:
        written = os.write(fd, data)
    finally:
        os.close(fd)
    same(f"what write to {path} returned", written, len(data))


def load(path, size=1 << 20):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


class OneFile(Kind):
    """A file that all processes keep open."""

    SIZE = 40_000

    def prepare(self):
        store(self.path("file"), b"\1" * self.SIZE)

    def begin(self):
        self.name = self.path("file")
        self.fd = os.open(self.name, os.O_RDWR)


class Data(Kind):
    """Blocks written over: in a file within its inode and in one of several chunks, open all the time or opened for it."""

    BLOCK = 4096
    BLOCKS = {"inline": 1, "chunk": 64, "chunks": 2048}

    def prepare(self):
        for name, blocks in self.BLOCKS.items():
            store(self.path(name), b"\0" * self.BLOCK * blocks)

    def begin(self):
        self.fds = {name: os.open(self.path(name), os.O_RDWR) for name in self.BLOCKS}

    def place(self, n):
        name = list(self.BLOCKS)[n % 3]
        return name, n * 7919 % self.BLOCKS[name] * self.BLOCK

    def block(self, n):
        return b"%016d" % (n + 1) * (self.BLOCK // 16)

    def write(self, n):
        name, offset = self.place(n)
        if n // 3 % 2:
            written = os.pwrite(self.fds[name], self.block(n), offset)
        else:
            fd = os.open(self.path(name), os.O_WRONLY)
            written = os.pwrite(fd, self.block(n), offset)
            os.close(fd)
        same("written", written, self.BLOCK)

    def open_file(self, n, _):
        name, offset = self.place(n)
        same(f"{name} at {offset}, read from a file that was open", os.pread(self.fds[name], self.BLOCK, offset), self.block(n))

    def opened_file(self, n, _):
        name, offset = self.place(n)
        fd = os.open(self.path(name), os.O_RDONLY)
        data = os.pread(fd, self.BLOCK, offset)
        os.close(fd)
        same(f"{name} at {offset}, read from a file opened for it", data, self.block(n))

    def views(self, n):
        return [self.open_file, self.opened_file]


class Size(OneFile):
    """A file that grows and shrinks in every way."""

    def write(self, n):
        want = random.Random(n).randrange(1, self.SIZE)
        now = os.fstat(self.fd).st_size
        if n % 4 == 0:
            os.ftruncate(self.fd, want)
        elif n % 4 == 1:
            os.truncate(self.name, want)
        elif n % 4 == 2:
            want = max(want, now)
            os.pwrite(self.fd, b"x", want)
            want += 1
        else:
            store(self.name, b"x" * 100, os.O_WRONLY | os.O_APPEND)
            want = now + 100
        return want

    def views(self, n):
        return [
            lambda _, size: same("the size by fstat", os.fstat(self.fd).st_size, size),
            lambda _, size: same("the size by stat", os.stat(self.name).st_size, size),
            lambda _, size: same("the end by lseek", os.lseek(self.fd, 0, os.SEEK_END), size),
            lambda _, size: same("the bytes to read", len(load(self.name)), size),
            lambda _, size: same("the bytes to read from a file that was open", len(os.pread(self.fd, 1 << 20, 0)), size),
        ]


class Truncate(OneFile):
    """Bytes that are cut off, punched out or written over are gone, and what grows over them is zero."""

    def begin(self):
        super().begin()
        self.model = bytearray(b"\1" * self.SIZE)

    def plan(self, n):
        # Of what is there, so that it changes something.
        rng = random.Random(n)
        there = len(self.model)
        what = rng.choice(["cut", "grow", "punch", "empty", "fill", "fill"] if there else ["grow", "empty", "fill"])
        if what in ("cut", "punch"):
            at = rng.randrange(there)
        elif what == "grow":
            at = there + rng.randrange(1, 20_000)
        else:
            at = rng.randrange(self.SIZE)
        return what, at, rng.randrange(1, 20_000)

    def expect(self, n, _):
        what, at, length = self.last = self.plan(n)
        model = self.model
        if what == "cut":
            del model[at:]
        elif what == "grow":
            model.extend(b"\0" * (at - len(model)))
        elif what == "punch":
            end = min(at + length, len(model))
            model[at:end] = b"\0" * max(0, end - at)
        elif what == "empty":
            model[:] = b"%08d" % n
        else:
            model.extend(b"\0" * (at - len(model)))
            model[at : at + length] = bytes([n % 255 + 1]) * length

    def write(self, n):
        what, at, length = self.plan(n)
        if what == "cut":
            os.ftruncate(self.fd, at)
        elif what == "grow":
            os.truncate(self.name, at)
        elif what == "punch":
            punch(self.fd, at, length)
        elif what == "empty":
            store(self.name, b"%08d" % n)
        else:
            os.pwrite(self.fd, bytes([n % 255 + 1]) * length, at)

    def compare(self, way, data):
        model = self.model
        if data == model:
            return
        at = next((i for i, (a, b) in enumerate(zip(data, model)) if a != b), min(len(data), len(model)))
        raise Wrong(
            f"after {self.last} the bytes read {way} are wrong from {at} on: {data[at:at + 16].hex()}, not "
            f"{model[at:at + 16].hex()} (length {len(data)}, not {len(model)})"
        )

    def views(self, n):
        return [
            lambda *_: self.compare("from a file that was open", os.pread(self.fd, 1 << 20, 0)),
            lambda *_: self.compare("from a file opened for it", load(self.name)),
        ]


class Mtime(OneFile):
    """Times, set and by writing."""

    def begin(self):
        super().begin()
        self.ctime = 0

    def given(self, n):
        return (1_000_000_007 * (n + 1), 2_000_000_011 * (n + 1))

    def write(self, n):
        if n % 4 == 0:
            os.utime(self.name, ns=self.given(n))
        elif n % 4 == 1:
            os.pwrite(self.fd, b"%d" % n, 0)
        elif n % 4 == 2:
            os.utime(self.fd, ns=self.given(n))
        else:
            store(self.name, b"%d" % n)
        mtime = os.fstat(self.fd).st_mtime_ns
        if n % 2 and mtime < 10**18:
            raise Wrong(f"a write has left the modification time at {mtime}")
        return mtime

    def check(self, way, n, stat, mtime):
        same(f"the modification time by {way}", stat.st_mtime_ns, mtime)
        if n % 2 == 0:
            same(f"the times by {way}", (stat.st_atime_ns, stat.st_mtime_ns), self.given(n))
        if stat.st_ctime_ns < self.ctime:
            raise Wrong(f"the change time by {way} has gone back by {self.ctime - stat.st_ctime_ns} ns")
        self.ctime = stat.st_ctime_ns

    def views(self, n):
        return [
            lambda n, mtime: self.check("stat", n, os.stat(self.name), mtime),
            lambda n, mtime: self.check("fstat", n, os.fstat(self.fd), mtime),
        ]


class Mode(OneFile):
    """Mode and owner, of a file and of a directory."""

    def prepare(self):
        super().prepare()
        os.mkdir(self.path("directory"))

    def begin(self):
        super().begin()
        self.directory = self.path("directory")
        self.dirfd = os.open(self.directory, os.O_RDONLY)

    def mode(self, n):
        # Root may execute what anybody may execute, and nothing else.
        return 0o600 | n * 5 % 64 & 0o66 | (0o100 if n % 3 else 0)

    def write(self, n):
        os.chmod(self.name if n % 2 else self.fd, self.mode(n))
        os.chown(self.name, n % 7, n % 11)
        os.chmod(self.directory, 0o700 | n % 64)

    def check(self, way, n, stat):
        same(f"mode and owner by {way}", (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (self.mode(n), n % 7, n % 11))

    def views(self, n):
        return [
            lambda n, _: self.check("stat", n, os.stat(self.name)),
            lambda n, _: self.check("fstat", n, os.fstat(self.fd)),
            lambda n, _: same("that it may be executed", os.access(self.name, os.X_OK), n % 3 != 0),
            lambda n, _: same("the directory's mode by stat", os.stat(self.directory).st_mode & 0o777, 0o700 | n % 64),
            lambda n, _: same("the directory's mode by fstat", os.fstat(self.dirfd).st_mode & 0o777, 0o700 | n % 64),
        ]


class Xattr(OneFile):
    """Extended attributes: set, changed to another length, removed."""

    def begin(self):
        super().begin()
        os.setxattr(self.fd, "user.always", b"1")

    def value(self, n):
        return None if n % 3 == 2 else b"%08d" % n * (1 if n % 3 == 0 else 300)

    def write(self, n):
        where = self.name if n % 2 else self.fd
        value = self.value(n)
        if value is None:
            os.removexattr(where, "user.it")
        else:
            os.setxattr(where, "user.it", value)

    def check(self, way, where, n):
        try:
            got = os.getxattr(where, "user.it")
        except OSError as error:
            if error.errno != 61:
                raise
            got = None
        same(f"the attribute by {way}", got, self.value(n))

    def names(self, where, n):
        want = ["user.always"] + (["user.it"] if self.value(n) is not None else [])
        same("the attributes' names", sorted(os.listxattr(where)), want)

    def views(self, n):
        return [
            lambda n, _: self.check("getxattr", self.name, n),
            lambda n, _: self.check("fgetxattr", self.fd, n),
            lambda n, _: self.names(self.name, n),
            lambda n, _: self.names(self.fd, n),
        ]


class Mapping(OneFile):
    """What is mapped shows what another one wrote, and what was stored through a mapping shows once it is synced."""

    SIZE = 65536

    def begin(self):
        super().begin()
        self.shared = mmap.mmap(self.fd, self.SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        self.offset = lambda n: n * 3083 % (self.SIZE - 8)
        self.data = lambda n: b"%08d" % n
        same("what was mapped first", self.shared[:], b"\1" * self.SIZE)

    def write(self, n):
        offset, data = self.offset(n), self.data(n)
        if n % 3 == 0:
            os.pwrite(self.fd, data, offset)
        elif n % 3 == 1:
            fd = os.open(self.name, os.O_WRONLY)
            os.pwrite(fd, data, offset)
            os.close(fd)
        else:
            with mmap.mmap(self.fd, self.SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
                memory[offset : offset + 8] = data
                memory.flush()

    def mapped(self, n, _):
        offset = self.offset(n)
        same("what a mapping that was there shows", self.shared[offset : offset + 8], self.data(n))

    def mapped_anew(self, n, _):
        offset = self.offset(n)
        fd = os.open(self.name, os.O_RDONLY)
        with mmap.mmap(fd, self.SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            got = memory[offset : offset + 8]
        os.close(fd)
        same("what a new mapping shows", got, self.data(n))

    def read(self, n, _):
        same("what pread shows", os.pread(self.fd, 8, self.offset(n)), self.data(n))

    def views(self, n):
        return [self.mapped, self.mapped_anew, self.read]


KINDS = {
    "data": Data,
    "size": Size,
    "truncate": Truncate,
    "mtime": Mtime,
    "mode": Mode,
    "xattr": Xattr,
    "mmap": Mapping,
}
