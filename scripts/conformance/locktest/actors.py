"""Processes that lock, and do what they are told."""

import ctypes
import errno
import multiprocessing
import os
import random
import signal
import struct
import sys
import time
import traceback

GETLK, SETLK, SETLKW = 5, 6, 7
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
RD, WR, UN = 0, 1, 2
SH, EX, NB, LOCK_UN = 1, 2, 4, 8
FLOCK = struct.Struct("@hhqqi4x")
LIBC = ctypes.CDLL(None, use_errno=True)
# What is to happen has happened by then; what is not to happen is watched for so long.
SOON, QUIET = 20.0, 0.4


def outcome(status):
    if status >= 0:
        return "ok"
    return {errno.EDEADLK: "EDEADLK"}.get(ctypes.get_errno()) or errno.errorcode[ctypes.get_errno()]


class Process:
    """What a process of a test does; its methods run there."""

    def __init__(self, directory):
        self.directory = directory

    def pid(self):
        return os.getpid()

    def open(self, name, flags=os.O_RDWR | os.O_CREAT):
        return os.open(os.path.join(self.directory, name), flags, 0o644)

    def close(self, fd):
        os.close(fd)

    def dup(self, fd):
        return os.dup(fd)

    def lock(self, fd, kind, start=0, length=0, command=SETLK, whence=os.SEEK_SET):
        data = ctypes.create_string_buffer(FLOCK.pack(kind, whence, start, length, 0))
        return outcome(LIBC.fcntl(fd, command, data))

    def test(self, fd, kind, start=0, length=0, command=GETLK):
        data = ctypes.create_string_buffer(FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        status = outcome(LIBC.fcntl(fd, command, data))
        if status != "ok":
            return status
        kind, _, start, length, pid = FLOCK.unpack(data.raw[: FLOCK.size])
        return "free" if kind == UN else (kind, start, length, pid)

    def flock(self, fd, how):
        return outcome(LIBC.flock(fd, how))

    def read(self, fd):
        return os.pread(fd, 100, 0)

    def write(self, fd, data):
        return os.pwrite(fd, data, 0)

    def unlink(self, name):
        os.unlink(os.path.join(self.directory, name))

    def alarm(self, seconds, restart):
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, not restart)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def count(self, name, rounds, how):
        """Adds to a number in a file, under a lock."""
        for _ in range(rounds):
            fd = self.open(name)
            lock(self, fd, how)
            n = int(os.pread(fd, 100, 0) or b"0")
            os.pwrite(fd, b"%d" % (n + 1), 0)
            if random.random() < 0.5:
                unlock(self, fd, how)
            os.close(fd)

    def scramble(self, name, seconds, shared, slots, seed):
        """Takes and gives up random ranges; a table in memory shows whether anybody else is there."""
        rng, fd, until = random.Random(seed), self.open(name), time.time() + seconds
        rounds = 0
        while time.time() < until:
            first = rng.randrange(slots)
            last = rng.randrange(first, slots)
            kind = rng.choice((RD, WR))
            assert self.lock(fd, kind, first, last - first + 1, SETLKW) == "ok"
            for slot in range(first, last + 1):
                enter(shared, slot, kind)
            if rng.random() < 0.2:
                time.sleep(0.001)
            for slot in range(first, last + 1):
                leave(shared, slot, kind)
            assert self.lock(fd, UN, first, last - first + 1) == "ok"
            rounds += 1
        return rounds


def enter(shared, slot, kind):
    with shared.get_lock():
        n = shared[slot]
        assert n == 0 if kind == WR else n >= 0, f"slot {slot} has {n}"
        shared[slot] = -1 if kind == WR else n + 1


def leave(shared, slot, kind):
    with shared.get_lock():
        shared[slot] += 1 if kind == WR else -1


def lock(p, fd, how):
    status = p.flock(fd, EX) if how == "flock" else p.lock(fd, WR, 0, 0, how)
    assert status == "ok", status


def unlock(p, fd, how):
    command = OFD_SETLK if how == OFD_SETLKW else SETLK
    status = p.flock(fd, LOCK_UN) if how == "flock" else p.lock(fd, UN, 0, 0, command)
    assert status == "ok", status


SHARED = None


class Actor:
    """A process, by its pipe."""

    all = []

    def __init__(self, directory, fork_of=None):
        self.here, there = multiprocessing.Pipe()
        self.child = multiprocessing.Process(target=self.run, args=(there, directory), daemon=True)
        self.child.start()
        there.close()
        Actor.all.append(self)

    def run(self, pipe, directory):
        self.here.close()
        serve(pipe, Process(directory))

    def begin(self, what, *args):
        self.here.send((what, args))

    def result(self, seconds=SOON):
        assert self.here.poll(seconds), f"nothing came of it within {seconds} s"
        good, value = self.here.recv()
        if not good:
            raise AssertionError(value)
        return value

    def __getattr__(self, what):
        def call(*args):
            self.begin(what, *args)
            return self.result()

        return call

    def fork(self):
        """A child of the process, with its descriptors."""
        child = object.__new__(Actor)
        child.here, there = multiprocessing.Pipe()
        self.here.send(("fork", (there,)))
        there.close()
        child.child = None
        child.number = self.result()
        Actor.all.append(child)
        return child

    def waits(self):
        return not self.here.poll(QUIET)

    def kill(self, how=signal.SIGKILL):
        os.kill(self.child.pid, how)

    def end(self):
        if self.child is None:
            try:
                self.here.send(("quit", ()))
            except OSError:
                pass
            return
        self.child.kill()
        self.child.join(5)


def serve(pipe, process):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            os._exit(0)
        if what == "quit":
            os._exit(0)
        if what == "fork":
            (other,) = args
            pid = os.fork()
            if pid == 0:
                pipe.close()
                pipe = other
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            else:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                other.close()
                pipe.send((True, pid))
            continue
        try:
            if what == "scramble":
                args = args[:2] + (SHARED,) + args[2:]
            pipe.send((True, getattr(process, what)(*args)))
        except Exception:  # noqa: BLE001: told to the test
            pipe.send((False, traceback.format_exc()))


SHARED = None
CASES = []


def case(function):
    CASES.append(function)
    return function


class World:
    def __init__(self, a, b, name):
        self.dirs, self.name = (a, b), name

    def a(self):
        return Actor(self.dirs[0])

    def b(self):
        return Actor(self.dirs[1])

    def both(self, flags=os.O_RDWR | os.O_CREAT):
        a, b = self.a(), self.b()
        return a, a.open(self.name, flags), b, b.open(self.name, flags)


def same(found, expected):
    assert found == expected, f"{found!r} where {expected!r} is due"
