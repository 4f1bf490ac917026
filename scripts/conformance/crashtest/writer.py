"""Changes files until something fails or it is told to stop, and logs every operation before and after."""

import ctypes
import errno
import json
import os
import random
import signal

from . import blocks
from .world import ROOT, World

FILES = 24
NAMES = ["a", "b", "c", "d", "e"]
# Around the inline limit, whole pages, the edge of a chunk.
STARTS = [0, 1, 7, 8, 30, 31, 32, 33, 100, 1000, 8190, 8191, 8192]
# How a dead server shows; anything else is a failure of the file system.
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV}
FALLOC_KEEP_SIZE_AND_PUNCH = 3
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


class Writer:
    """One writer in a directory of its own."""

    def __init__(self, root, log, world, first, seed):
        self.root, self.world, self.number = root, world, first
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.rng = random.Random(seed)
        self.stopping = False

    def note(self, record, durable=False):
        os.write(self.log, json.dumps(record).encode() + b"\n")
        if durable:
            os.fdatasync(self.log)

    def perform(self, op, action, **details):
        """Logs, acts, logs. The log must tell of an operation before it can have had any effect."""
        self.number += 1
        record = {"n": self.number, "op": op, **details}
        self.note(record)
        result = action(self.number)
        record["done"] = True
        done = {"done": self.number}
        if isinstance(result, int):
            record["inode"] = done["inode"] = result
        self.world.apply(record)
        self.note(done, durable=op == "fsync" or details.get("synced", False))
        return record

    def at(self, path):
        return f"{self.root}/{path}"

    # Operations.

    def create(self, path):
        def action(_):
            fd = os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                return os.fstat(fd).st_ino
            finally:
                os.close(fd)

        uid = self.number + 1
        self.perform("create", action, path=path, uid=uid)
        return uid

    def write(self, path, uid, first, count, flags=0):
        def action(version):
            fd = os.open(self.at(path), os.O_WRONLY | flags)
            try:
                data, done = blocks.run(uid, first, count, version), 0
                while done < len(data):
                    done += os.pwrite(fd, data[done:], first * blocks.BLOCK + done)
            finally:
                os.close(fd)

        self.perform("write", action, uid=uid, first=first, count=count, synced=bool(flags & os.O_DSYNC))

    def truncate(self, path, uid, size):
        self.perform("truncate", lambda _: os.truncate(self.at(path), size * blocks.BLOCK), uid=uid, size=size)

    def punch(self, path, uid, first, count):
        def action(_):
            fd = os.open(self.at(path), os.O_WRONLY)
            try:
                if LIBC.fallocate(fd, FALLOC_KEEP_SIZE_AND_PUNCH, first * blocks.BLOCK, count * blocks.BLOCK) < 0:
                    raise OSError(ctypes.get_errno(), "fallocate")
            finally:
                os.close(fd)

        self.perform("punch", action, uid=uid, first=first, count=count)

    def fsync(self, path, uid, sync=os.fsync):
        def action(_):
            fd = os.open(self.at(path), os.O_RDONLY)
            try:
                sync(fd)
            finally:
                os.close(fd)

        self.perform("fsync", action, uid=uid)

    def replace(self, path):
        """The way programs save a file: a new one beside it, synced, then renamed over it."""
        parent = os.path.dirname(path)
        temporary = f"{parent}/tmp" if parent else "tmp"
        if self.world.find(temporary):
            self.perform("unlink", lambda _: os.unlink(self.at(temporary)), path=temporary)
        uid = self.create(temporary)
        self.write(temporary, uid, 0, self.rng.randrange(1, 100))
        self.fsync(temporary, uid)
        self.perform("rename", lambda _: os.rename(self.at(temporary), self.at(path)), path=temporary, to=path)
        if self.rng.random() < 0.7:
            self.fsync(parent or ".", self.world.find(parent) if parent else ROOT)

    # Choosing.

    def fresh(self, directories):
        base = self.rng.choice([".", *directories])
        name = self.rng.choice(NAMES) + str(self.rng.randrange(20))
        return name if base == "." else f"{base}/{name}"

    def step(self):
        rng, names = self.rng, self.world.names()
        kinds = {path: self.world.nodes[uid]["kind"] for path, uid in names.items()}
        files = [path for path, kind in kinds.items() if kind == "file"]
        directories = [path for path, kind in kinds.items() if kind == "dir"]
        fresh = self.fresh(directories)
        free = self.world.find(fresh) is None
        if not files or (free and len(files) < FILES and rng.random() < 0.15):
            if free:
                uid = self.create(fresh)
                self.write(fresh, uid, 0, rng.randrange(1, 40))
            return
        path = rng.choice(files)
        uid = names[path]
        size = self.world.current(uid)["size"]
        choice = rng.choices(range(13), [20, 10, 5, 5, 18, 4, 8, 6, 4, 3, 3, 3, 5])[0]
        if choice == 0:
            self.write(path, uid, rng.choice([*STARTS, rng.randrange(size + 1)]), rng.choice([1, 2, 8, 9, 64, 300]))
        elif choice == 1:
            self.write(path, uid, size, rng.choice([1, 3, 20]), os.O_APPEND)
        elif choice == 2:
            self.truncate(path, uid, rng.choice([0, size // 2, max(0, size - 1), size, size + 5]))
        elif choice == 3:
            self.punch(path, uid, rng.randrange(size + 1), rng.randrange(1, 50))
        elif choice == 4:
            self.fsync(path, uid, rng.choice([os.fsync, os.fdatasync]))
        elif choice == 5:
            self.write(path, uid, rng.randrange(size + 1), rng.choice([1, 8]), os.O_DSYNC)
        elif choice == 6:
            self.replace(path)
        elif choice == 7 and free:
            self.perform("rename", lambda _: os.rename(self.at(path), self.at(fresh)), path=path, to=fresh)
        elif choice == 8:
            self.perform("unlink", lambda _: os.unlink(self.at(path)), path=path)
        elif choice == 9 and free:
            self.perform("link", lambda _: os.link(self.at(path), self.at(fresh)), path=path, to=fresh)
        elif choice == 10 and free and fresh.count("/") < 2 and len(directories) < 6:
            self.perform("mkdir", lambda _: os.mkdir(self.at(fresh)) or os.stat(self.at(fresh)).st_ino, path=fresh, uid=self.number + 1)
        elif choice == 11 and directories:
            self.directory(rng.choice(directories), fresh, free)
        elif choice == 12:
            where = rng.choice([".", *directories])
            self.fsync(where, self.world.find(where))

    def directory(self, path, fresh, free):
        if not self.world.nodes[self.world.find(path)]["entries"]:
            self.perform("rmdir", lambda _: os.rmdir(self.at(path)), path=path)
        elif free and not f"{fresh}/".startswith(f"{path}/"):
            self.perform("rename", lambda _: os.rename(self.at(path), self.at(fresh)), path=path, to=fresh)
        elif free:
            self.perform("symlink", lambda _: os.symlink("over/there", self.at(fresh)), path=fresh, uid=self.number + 1,
                         target="over/there")

    def stop(self, *_):
        self.stopping = True

    def run(self):
        while not self.stopping:
            self.step()


def main(root, base, log, seed):
    """Ends with 0 when told to stop, 3 when the file system went away, and with an exception when it misbehaved."""
    with open(base, encoding="utf-8") as file:
        state = json.load(file)
    writer = Writer(root, log, World.load(state["nodes"]), state["next"], seed)
    signal.signal(signal.SIGTERM, writer.stop)
    try:
        writer.run()
    except OSError as error:
        if error.errno not in GONE:
            raise
        return 3
    return 0
