"""Concurrent operations on a few registers and names, recorded with their times, and checked to be linearisable one by one,
which is enough: what is linearisable for each object is so as a whole."""

import os
import pickle
import random
import tempfile
import time

from . import checker
from .checker import Operation
from .processes import Barrier, Wrong, run

SLOTS = 4
PROCESSES_PER_MOUNT = 2
# Calls of each process in one history. Many short ones meet more beginnings than one long one.
CALLS = 60


class Recorder:
    """What one process did, by object."""

    def __init__(self, process):
        self.process = process
        self.history = []

    def add(self, thing, called, returned, kind, value):
        self.history.append((thing, Operation(called, returned, self.process, kind, value)))


def unique(process, number):
    return process << 32 | number + 1


def file_registers(name, size, rng, recorder, calls):
    """Four registers of 8 bytes in one file: one is written at a time, all are read at once."""
    process = recorder.process
    kept = os.open(name, os.O_RDWR)
    stride = size // SLOTS
    for number in range(calls):
        fresh = rng.random() < 0.3
        if rng.random() < 0.5:
            slot = rng.randrange(SLOTS)
            value = unique(process, number)
            called = time.monotonic_ns()
            fd = os.open(name, os.O_WRONLY) if fresh else kept
            os.pwrite(fd, value.to_bytes(8, "little"), slot * stride)
            returned = time.monotonic_ns()
            recorder.add(f"{name}/{slot}", called, returned, "write", value)
        else:
            called = time.monotonic_ns()
            fd = os.open(name, os.O_RDONLY) if fresh else kept
            data = os.pread(fd, size, 0)
            returned = time.monotonic_ns()
            for slot in range(SLOTS):
                value = int.from_bytes(data[slot * stride : slot * stride + 8], "little")
                recorder.add(f"{name}/{slot}", called, returned, "read", value)
        if fresh:
            os.close(fd)
    os.close(kept)


def replaced(name, size, rng, recorder, calls):
    """A register that is a whole file, put in place by rename."""
    process = recorder.process
    for number in range(calls):
        if rng.random() < 0.4:
            value = unique(process, number)
            new = f"{name}.{process}"
            with open(new, "wb") as file:
                file.write(value.to_bytes(8, "little") * (size // 8))
            called = time.monotonic_ns()
            os.rename(new, name)
            recorder.add(name, called, time.monotonic_ns(), "write", value)
        else:
            called = time.monotonic_ns()
            fd = os.open(name, os.O_RDONLY)
            data = os.read(fd, size)
            returned = time.monotonic_ns()
            os.close(fd)
            if len(data) != size or data != data[:8] * (size // 8):
                raise Wrong(f"a file that is only ever replaced as a whole has {len(data)} bytes of {size}, or of several files")
            recorder.add(name, called, returned, "read", int.from_bytes(data[:8], "little"))


def directory(root, _, rng, recorder, calls):
    """Names that are made, removed, looked for and listed."""
    names = [f"name{i}" for i in range(4)]
    for _ in range(calls):
        name = rng.choice(names)
        path = f"{root}/{name}"
        what = rng.choice(["create", "create", "unlink", "unlink", "stat", "open", "list"])
        called = time.monotonic_ns()
        if what == "create":
            try:
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                returned = time.monotonic_ns()
                recorder.add(name, called, returned, "created", os.fstat(fd).st_ino)
                os.close(fd)
            except FileExistsError:
                recorder.add(name, called, time.monotonic_ns(), "refused", None)
        elif what == "unlink":
            try:
                os.unlink(path)
                recorder.add(name, called, time.monotonic_ns(), "removed", None)
            except FileNotFoundError:
                recorder.add(name, called, time.monotonic_ns(), "absent", None)
        elif what == "list":
            listed = os.listdir(root)
            returned = time.monotonic_ns()
            if len(set(listed)) != len(listed):
                raise Wrong(f"a listing names an entry twice: {listed}")
            for other in names:
                recorder.add(other, called, returned, *(("listed", ...) if other in listed else ("absent", None)))
        else:
            try:
                if what == "stat":
                    ino = os.stat(path).st_ino
                else:
                    fd = os.open(path, os.O_RDONLY)
                returned = time.monotonic_ns()
                if what == "open":
                    ino = os.fstat(fd).st_ino
                    os.close(fd)
                recorder.add(name, called, returned, "listed", ino)
            except FileNotFoundError:
                recorder.add(name, called, time.monotonic_ns(), "absent", None)


# What is done, the size of the files, the model.
WHAT = {
    "small": (file_registers, 4096, checker.register, 0),
    "large": (file_registers, 65536, checker.register, 0),
    "replace": (replaced, 4096, checker.register, 0),
    "names": (directory, 0, checker.name, None),
}


def act(barrier, work, function, where, size, seed, process, calls):
    recorder = Recorder(process)
    rng = random.Random(seed * 1000 + process)
    barrier.wait()
    function(where, size, rng, recorder, calls)
    with open(f"{work}/{process}", "wb") as file:
        pickle.dump(recorder.history, file)


def record(what, roots, seed, calls):
    """One history: by object, the operations."""
    function, size, _, _ = WHAT[what]
    where = [f"{root}/h{seed}" for root in roots for _ in range(PROCESSES_PER_MOUNT)]
    os.mkdir(where[0])
    if size:
        where = [f"{place}/file" for place in where]
        with open(where[0], "wb") as file:
            file.write(b"\0" * size)
    barrier = Barrier(len(where))
    objects = {}
    with tempfile.TemporaryDirectory() as work:
        run([barrier.open] + [lambda p=p: act(barrier, work, function, where[p], size, seed, p, calls) for p in range(len(where))], 60)
        for process in range(len(where)):
            with open(f"{work}/{process}", "rb") as file:
                for thing, operation in pickle.load(file):
                    # Each process knows the object by the name that its own mount gives it.
                    objects.setdefault(thing.rsplit("/h", 1)[-1], []).append(operation)
    return objects


def judge(what, objects):
    """Raises Wrong for the first object whose history cannot be; else the number of operations."""
    _, _, model, initial = WHAT[what]
    for thing, history in sorted(objects.items()):
        bad = checker.check(history, model, initial)
        if bad is not None:
            raise Wrong(f"{thing}: not linearisable:\n{checker.explain(history, bad)}")
    return sum(map(len, objects.values()))


def play(what, roots, seconds):
    """Histories for about that long."""
    deadline = time.monotonic() + seconds
    histories = operations = 0
    spent = 0.0
    while histories == 0 or time.monotonic() < deadline:
        started = time.monotonic()
        objects = record(what, roots, histories, CALLS)
        spent += time.monotonic() - started
        operations += judge(what, objects)
        histories += 1
    return f"{histories} histories, {operations} operations, {operations / spent:.0f} in a second"
