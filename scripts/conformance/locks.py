"""The classic cases of file locking, one by one, between two directories that show the same files.

usage: locks.py DIRECTORY DIRECTORY [CASE...]
"""

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


@case
def fcntl_write_locks_exclude_each_other(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    same(b.lock(g, WR), "EAGAIN")
    same(b.lock(g, RD), "EAGAIN")
    same(a.lock(f, UN), "ok")
    same(b.lock(g, WR), "ok")
    same(a.lock(f, RD, 5, 1), "EAGAIN")


@case
def fcntl_read_locks_share(w):
    a, f, b, g = w.both()
    same(a.lock(f, RD), "ok")
    same(b.lock(g, RD), "ok")
    same(a.lock(f, WR), "EAGAIN")
    same(b.lock(g, UN), "ok")
    same(a.lock(f, WR), "ok")


@case
def fcntl_ranges_that_do_not_meet(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 10), "ok")
    same(b.lock(g, WR, 10, 10), "ok")
    same(b.lock(g, WR, 9, 1), "EAGAIN")
    same(a.lock(f, WR, 20, 0), "ok")
    same(b.lock(g, RD, 1 << 62, 1), "EAGAIN")
    same(a.lock(f, WR, 0, 11), "EAGAIN")


@case
def fcntl_negative_lengths_and_the_end_of_the_file(w):
    a, f, b, g = w.both()
    a.write(f, b"x" * 100)
    same(a.lock(f, WR, 50, -10), "ok")
    same(b.test(g, WR, 0, 0)[:3], (WR, 40, 10))
    same(a.lock(f, WR, -10, 10, SETLK, os.SEEK_END), "ok")
    same(b.test(g, WR, 60, 0)[:3], (WR, 90, 10))
    same(a.lock(f, WR, -1, 1), "EINVAL")


@case
def fcntl_getlk_names_the_lock_in_the_way(w):
    a, f, b, g = w.both()
    same(b.test(g, WR), "free")
    same(a.lock(f, RD, 10, 5), "ok")
    same(a.lock(f, WR, 30, 0), "ok")
    same(b.test(g, WR)[:3], (RD, 10, 5))
    same(b.test(g, RD)[:3], (WR, 30, 0))
    same(b.test(g, RD, 0, 30), "free")
    same(a.test(f, WR), "free")
    other = w.a()
    found = other.test(other.open(w.name), WR)
    same(found, (RD, 10, 5, a.pid()))


@case
def fcntl_a_hole_in_the_middle_splits(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 100), "ok")
    same(a.lock(f, UN, 40, 20), "ok")
    same(b.test(g, WR)[:3], (WR, 0, 40))
    same(b.test(g, WR, 40, 0)[:3], (WR, 60, 40))
    same(b.lock(g, WR, 40, 20), "ok")
    same(b.lock(g, WR, 39, 1), "EAGAIN")


@case
def fcntl_neighbours_merge(w):
    a, f, b, g = w.both()
    for start in (0, 20, 10):
        same(a.lock(f, WR, start, 10), "ok")
    same(b.test(g, WR)[:3], (WR, 0, 30))
    same(a.lock(f, RD, 5, 20), "ok")
    same(b.test(g, RD)[:3], (WR, 0, 5))
    same(b.test(g, WR, 5, 0)[:3], (RD, 5, 20))
    same(b.test(g, RD, 5, 0)[:3], (WR, 25, 5))


@case
def fcntl_downgrade_lets_readers_in(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    b.begin("lock", g, RD, 0, 0, SETLKW)
    assert b.waits()
    same(a.lock(f, RD), "ok")
    same(b.result(), "ok")


@case
def fcntl_upgrade_waits_for_the_reader(w):
    a, f, b, g = w.both()
    same(a.lock(f, RD), "ok")
    same(b.lock(g, RD), "ok")
    a.begin("lock", f, WR, 0, 0, SETLKW)
    assert a.waits()
    c = w.b()
    same(c.test(c.open(w.name), WR)[0], RD)
    same(b.lock(g, UN), "ok")
    same(a.result(), "ok")
    same(b.lock(g, RD), "EAGAIN")


@case
def fcntl_waits_until_unlocked(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 10, 10), "ok")
    b.begin("lock", g, WR, 0, 15, SETLKW)
    assert b.waits()
    same(a.lock(f, UN, 15, 5), "ok")
    assert b.waits()
    same(a.lock(f, UN, 10, 5), "ok")
    same(b.result(), "ok")


@case
def fcntl_waiters_come_in_order(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    actors = [w.b() if n % 2 else w.a() for n in range(5)]
    fds = [p.open(w.name) for p in actors]
    for p, fd in zip(actors, fds):
        p.begin("lock", fd, WR, 0, 0, SETLKW)
        time.sleep(0.15)
    same(a.lock(f, UN), "ok")
    for n, p in enumerate(actors):
        same(p.result(), "ok")
        assert all(q.waits() for q in actors[n + 1 : n + 2])
        same(p.lock(fds[n], UN), "ok")


@case
def fcntl_fifty_waiting_readers_get_in_together(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    actors = [w.b() if n % 2 else w.a() for n in range(50)]
    for p in actors:
        p.begin("lock", p.open(w.name), RD, 0, 0, SETLKW)
    time.sleep(QUIET)
    assert not any(p.here.poll() for p in actors)
    same(a.lock(f, UN), "ok")
    for p in actors:
        same(p.result(), "ok")


@case
def fcntl_deadlock_of_two(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 1), "ok")
    same(b.lock(g, WR, 1, 1), "ok")
    a.begin("lock", f, WR, 1, 1, SETLKW)
    assert a.waits()
    same(b.lock(g, WR, 0, 1, SETLKW), "EDEADLK")
    same(b.lock(g, WR, 0, 1), "EAGAIN")
    same(b.lock(g, UN, 1, 1), "ok")
    same(a.result(), "ok")


@case
def fcntl_deadlock_of_two_upgrades(w):
    a, f, b, g = w.both()
    same(a.lock(f, RD), "ok")
    same(b.lock(g, RD), "ok")
    a.begin("lock", f, WR, 0, 0, SETLKW)
    assert a.waits()
    same(b.lock(g, WR, 0, 0, SETLKW), "EDEADLK")
    b.close(g)
    same(a.result(), "ok")


@case
def fcntl_deadlock_of_three_over_two_files(w):
    actors = [w.a(), w.b(), w.a()]
    here = [p.open(w.name) for p in actors]
    there = [p.open(w.name + ".2") for p in actors]
    same(actors[0].lock(here[0], WR, 0, 1), "ok")
    same(actors[1].lock(there[1], WR, 0, 1), "ok")
    same(actors[2].lock(here[2], WR, 7, 1), "ok")
    actors[0].begin("lock", there[0], WR, 0, 1, SETLKW)
    actors[1].begin("lock", here[1], WR, 7, 1, SETLKW)
    assert actors[0].waits() and actors[1].waits()
    same(actors[2].lock(here[2], WR, 0, 1, SETLKW), "EDEADLK")


@case
def fcntl_close_of_any_descriptor_releases(w):
    a, f, b, g = w.both()
    for other in (
        lambda: a.open(w.name),
        lambda: a.dup(f),
        lambda: a.open(w.name, os.O_RDONLY),
        lambda: a.open(w.name, os.O_WRONLY),
    ):
        same(a.lock(f, WR), "ok")
        same(b.lock(g, WR), "EAGAIN")
        a.close(other())
        same(b.lock(g, WR), "ok")
        same(b.lock(g, UN), "ok")


@case
def fcntl_close_by_another_process_releases_nothing(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    c = w.a()
    c.close(c.open(w.name))
    child = a.fork()
    child.close(f)
    same(b.lock(g, WR), "EAGAIN")


@case
def fcntl_read_lock_of_a_read_only_file_ends_with_close(w):
    a, f, b, g = w.both()
    h = a.open(w.name, os.O_RDONLY)
    same(a.lock(h, WR), "EBADF")
    same(a.lock(h, RD), "ok")
    same(b.lock(g, WR), "EAGAIN")
    a.close(h)
    b.begin("lock", g, WR, 0, 0, SETLKW)
    same(b.result(5), "ok")


@case
def fcntl_a_file_that_was_only_ever_opened_for_reading(w):
    a, b = w.a(), w.b()
    a.close(a.open(w.name))
    f = a.open(w.name, os.O_RDONLY)
    same(a.lock(f, RD), "ok")
    g = b.open(w.name)
    same(b.lock(g, WR), "EAGAIN")
    a.close(f)
    b.begin("lock", g, WR, 0, 0, SETLKW)
    same(b.result(5), "ok")


@case
def fcntl_locks_of_children_of_one_that_only_reads(w):
    a, b = w.a(), w.b()
    a.close(a.open(w.name))
    f = a.open(w.name, os.O_RDONLY)
    child = a.fork()
    same(child.lock(f, RD), "ok")
    g = b.open(w.name)
    same(b.lock(g, WR), "EAGAIN")
    child.begin("quit")
    b.begin("lock", g, WR, 0, 0, SETLKW)
    same(b.result(5), "ok")


@case
def fcntl_end_of_the_process_releases(w):
    for how in ("quit", "kill"):
        a, f, b, g = w.both()
        same(a.lock(f, WR), "ok")
        b.begin("lock", g, WR, 0, 0, SETLKW)
        assert b.waits()
        if how == "quit":
            a.begin("quit")
        else:
            a.kill()
        same(b.result(5), "ok")
        b.close(g)


@case
def fcntl_locks_are_not_inherited(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    child = a.fork()
    same(child.lock(f, WR), "EAGAIN")
    same(child.test(f, WR)[3], a.pid())


@case
def a_killed_waiter_leaves_the_queue(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    c = w.a()
    b.begin("lock", g, WR, 0, 0, SETLKW)
    assert b.waits()
    c.begin("lock", c.open(w.name), WR, 0, 0, SETLKW)
    assert c.waits()
    started = time.time()
    b.kill()
    b.child.join(5)
    assert b.child.exitcode is not None and time.time() - started < 2, "it is still there"
    time.sleep(0.2)
    same(a.lock(f, UN), "ok")
    same(c.result(5), "ok")


def interrupted(w, wait, give_up, busy):
    a, f, b, g = w.both()
    same(wait(a, f, False), "ok")
    b.alarm(0.5, False)
    started = time.time()
    same(wait(b, g, True), "EINTR")
    assert 0.4 < time.time() - started < 3, "not at the signal"
    same(give_up(a, f), "ok")
    c = w.a()
    same(busy(c, c.open(w.name)), "ok")


@case
def fcntl_a_signal_interrupts_waiting(w):
    interrupted(
        w,
        lambda p, fd, wait: p.lock(fd, WR, 0, 0, SETLKW if wait else SETLK),
        lambda p, fd: p.lock(fd, UN),
        lambda p, fd: p.lock(fd, WR),
    )


@case
def ofd_a_signal_interrupts_waiting(w):
    interrupted(
        w,
        lambda p, fd, wait: p.lock(fd, WR, 0, 0, OFD_SETLKW if wait else OFD_SETLK),
        lambda p, fd: p.lock(fd, UN, 0, 0, OFD_SETLK),
        lambda p, fd: p.lock(fd, WR, 0, 0, OFD_SETLK),
    )


@case
def flock_a_signal_interrupts_waiting(w):
    interrupted(
        w,
        lambda p, fd, wait: p.flock(fd, EX if wait else EX | NB),
        lambda p, fd: p.flock(fd, LOCK_UN),
        lambda p, fd: p.flock(fd, EX | NB),
    )


@case
def a_signal_with_restart_goes_on_waiting(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    b.alarm(0.3, True)
    b.begin("lock", g, WR, 0, 0, SETLKW)
    time.sleep(1)
    assert b.waits()
    same(a.lock(f, UN), "ok")
    same(b.result(5), "ok")
    same(a.lock(f, WR), "EAGAIN")


@case
def a_stopped_waiter_goes_on_waiting(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    b.begin("lock", g, WR, 0, 0, SETLKW)
    assert b.waits()
    b.kill(signal.SIGSTOP)
    time.sleep(0.5)
    b.kill(signal.SIGCONT)
    assert b.waits()
    same(a.lock(f, UN), "ok")
    same(b.result(5), "ok")


@case
def flock_exclusive_and_shared(w):
    a, f, b, g = w.both()
    same(a.flock(f, SH | NB), "ok")
    same(b.flock(g, SH | NB), "ok")
    same(b.flock(g, EX | NB), "EAGAIN")
    same(a.flock(f, LOCK_UN), "ok")
    same(b.flock(g, EX | NB), "ok")
    same(a.flock(f, SH | NB), "EAGAIN")
    same(b.flock(g, LOCK_UN), "ok")
    same(a.flock(f, EX | NB), "ok")


@case
def flock_waits(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    b.begin("flock", g, SH)
    assert b.waits()
    same(a.flock(f, SH), "ok")
    same(b.result(), "ok")
    a.begin("flock", f, EX)
    assert a.waits()
    b.close(g)
    same(a.result(5), "ok")


@case
def flock_conversion_in_vain_loses_the_lock(w):
    a, f, b, g = w.both()
    same(a.flock(f, SH), "ok")
    same(b.flock(g, SH), "ok")
    same(a.flock(f, EX | NB), "EAGAIN")
    same(b.flock(g, EX | NB), "ok")


@case
def flock_two_descriptions_of_one_process_exclude_each_other(w):
    a = w.a()
    f, g = a.open(w.name), a.open(w.name)
    same(a.flock(f, EX | NB), "ok")
    same(a.flock(g, EX | NB), "EAGAIN")
    a.close(g)
    g = w.b()
    same(g.flock(g.open(w.name), EX | NB), "EAGAIN")


@case
def flock_is_shared_by_duplicates(w):
    a, f, b, g = w.both()
    d = a.dup(f)
    same(a.flock(f, EX), "ok")
    same(a.flock(d, EX | NB), "ok")
    a.close(f)
    same(b.flock(g, EX | NB), "EAGAIN")
    a.close(d)
    same(b.flock(g, EX | NB), "ok")
    same(b.flock(b.dup(g), LOCK_UN), "ok")
    c = w.a()
    same(c.flock(c.open(w.name), EX | NB), "ok")


@case
def flock_is_inherited(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    child = a.fork()
    a.close(f)
    same(b.flock(g, EX | NB), "EAGAIN")
    same(child.flock(f, EX | NB), "ok")
    child.close(f)
    same(b.flock(g, EX | NB), "ok")


@case
def flock_a_child_unlocks_for_its_parent(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    child = a.fork()
    same(child.flock(f, LOCK_UN), "ok")
    same(b.flock(g, EX | NB), "ok")


@case
def flock_ends_with_a_killed_process(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    b.begin("flock", g, EX)
    assert b.waits()
    a.kill()
    same(b.result(5), "ok")


@case
def flock_of_a_read_only_file(w):
    a, f, b, g = w.both()
    h = a.open(w.name, os.O_RDONLY)
    same(a.flock(h, EX | NB), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    a.close(h)
    same(b.flock(g, SH | NB), "ok")


@case
def flock_and_fcntl_do_not_meet(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX | NB), "ok")
    same(b.lock(g, WR), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    same(a.lock(f, RD), "EAGAIN")
    same(b.lock(g, UN), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    a.close(a.open(w.name))
    same(b.flock(g, SH | NB), "EAGAIN")


@case
def flock_and_ofd_of_one_description_do_not_meet(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX | NB), "ok")
    same(a.lock(f, RD, 0, 0, OFD_SETLK), "ok")
    same(b.lock(g, RD, 0, 0, OFD_SETLK), "ok")
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "EAGAIN")
    same(a.lock(f, UN, 0, 0, OFD_SETLK), "ok")
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    same(a.flock(f, LOCK_UN), "ok")
    same(b.flock(g, SH | NB), "ok")
    same(a.test(f, RD)[0], WR)


@case
def ofd_and_fcntl_meet(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 10), "ok")
    same(a.lock(f, RD, 5, 1, OFD_SETLK), "EAGAIN")
    same(b.lock(g, RD, 5, 1, OFD_SETLK), "EAGAIN")
    same(b.lock(g, WR, 10, 10, OFD_SETLK), "ok")
    same(a.lock(f, WR, 15, 1), "EAGAIN")
    same(a.test(f, RD, 0, 0)[:3], (WR, 10, 10))
    same(b.test(g, RD, 0, 0, OFD_GETLK)[:3], (WR, 0, 10))


@case
def ofd_two_descriptions_of_one_process_exclude_each_other(w):
    a = w.a()
    f, g = a.open(w.name), a.open(w.name)
    same(a.lock(f, WR, 0, 10, OFD_SETLK), "ok")
    same(a.lock(g, WR, 9, 1, OFD_SETLK), "EAGAIN")
    same(a.lock(a.dup(f), WR, 9, 1, OFD_SETLK), "ok")


@case
def ofd_ends_with_the_last_descriptor(w):
    a, f, b, g = w.both()
    d = a.dup(f)
    same(a.lock(f, WR, 0, 0, OFD_SETLK), "ok")
    a.close(a.open(w.name))
    a.close(f)
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "EAGAIN")
    a.close(d)
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "ok")


@case
def ofd_is_inherited(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 3, 4, OFD_SETLK), "ok")
    child = a.fork()
    a.close(f)
    same(b.lock(g, WR, 3, 1), "EAGAIN")
    same(child.lock(f, WR, 3, 4, OFD_SETLK), "ok")
    child.close(f)
    b.begin("lock", g, WR, 3, 1, SETLKW)
    same(b.result(5), "ok")


@case
def ofd_waits_and_is_no_deadlock(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 1, OFD_SETLK), "ok")
    same(b.lock(g, WR, 1, 1, OFD_SETLK), "ok")
    a.begin("lock", f, WR, 1, 1, OFD_SETLKW)
    assert a.waits()
    b.begin("lock", g, WR, 0, 1, OFD_SETLKW)
    assert b.waits()
    b.kill()
    same(a.result(5), "ok")


@case
def a_file_without_a_name_can_be_locked(w):
    a, f, b, g = w.both()
    a.unlink(w.name)
    same(a.lock(f, WR), "ok")
    same(b.lock(g, WR), "EAGAIN")
    a.close(f)
    same(b.lock(g, WR), "ok")


@case
def many_ranges(w):
    a, f, b, g = w.both()
    for n in range(500):
        same(a.lock(f, WR, 2 * n, 1), "ok")
    same(b.lock(g, WR, 501, 1), "ok")
    same(b.lock(g, WR, 500, 1), "EAGAIN")
    same(a.lock(f, UN), "ok")
    same(b.lock(g, WR), "ok")


def counts(w, how):
    actors = [w.a(), w.b(), w.a(), w.b()]
    for p in actors:
        p.begin("count", w.name, 50, how)
    for p in actors:
        p.result(120)
    p = w.a()
    same(p.read(p.open(w.name)), b"200")


@case
def a_number_is_counted_up_under_fcntl(w):
    counts(w, SETLKW)


@case
def a_number_is_counted_up_under_flock(w):
    counts(w, "flock")


@case
def a_number_is_counted_up_under_ofd(w):
    counts(w, OFD_SETLKW)


@case
def nobody_is_ever_where_a_writer_is(w):
    actors = [w.a() if n % 2 else w.b() for n in range(8)]
    for n, p in enumerate(actors):
        p.begin("scramble", w.name, 3, 16, n)
    assert sum(p.result(60) for p in actors) > 100


def main():
    global SHARED
    sides, wanted = [os.path.abspath(d) for d in sys.argv[1:3]], sys.argv[3:]
    failed = passed = 0
    multiprocessing.set_start_method("fork")
    for function in CASES:
        name = function.__name__
        if wanted and not any(part in name for part in wanted):
            continue
        SHARED = multiprocessing.Array("i", 64)
        path = f"locks.{os.getpid()}.{name}"
        started = time.time()
        try:
            function(World(*sides, path))
        except Exception as e:  # noqa: BLE001: a failed case
            failed += 1
            at = traceback.extract_tb(e.__traceback__)
            line = next((t.lineno for t in at if t.name == name), 0)
            print(f"FAIL {name} (line {line}): {str(e).strip() or type(e).__name__}", flush=True)
        else:
            passed += 1
            print(f"ok   {name} ({time.time() - started:.1f} s)", flush=True)
        for actor in Actor.all:
            actor.end()
        Actor.all.clear()
        for suffix in ("", ".2"):
            try:
                os.unlink(os.path.join(sides[0], path + suffix))
            except OSError:
                pass
    print(f"cases: {passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
