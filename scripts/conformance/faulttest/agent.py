"""A program on a mount that does what it is told, one call at a time, and may be stuck in it while its master goes on."""

import mmap
import os
import signal
import time
import traceback
from multiprocessing import get_context

FORK = get_context("fork")


class Wrong(Exception):
    """What was promised was not kept."""


class Calls:
    """What an agent can do. Files that it opens stay open, under a key."""

    def __init__(self):
        self.files = {}

    def open(self, key, path, flags=os.O_RDWR):
        self.files[key] = os.open(path, flags, 0o644)

    def map(self, key):
        self.files[key + " mapped"] = mmap.mmap(self.files[key], 4096, mmap.MAP_SHARED, mmap.PROT_READ)

    def mapped(self, key):
        return self.files[key + " mapped"][:]

    def pread(self, key, size=4096, offset=0):
        return os.pread(self.files[key], size, offset)

    def pwrite(self, key, data, offset=0):
        return os.pwrite(self.files[key], data, offset)

    def fstat(self, key):
        return os.fstat(self.files[key]).st_size

    def fsync(self, key):
        os.fsync(self.files[key])

    def close(self, key):
        os.close(self.files.pop(key))

    def read(self, path, size=4096):
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.read(fd, size)
        finally:
            os.close(fd)

    def store(self, path, data):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def stat(self, path):
        stat = os.stat(path)
        return stat.st_size, stat.st_mode & 0o777

    def exists(self, path):
        try:
            os.stat(path)
        except FileNotFoundError:
            return False
        return True

    def getxattr(self, path):
        return os.getxattr(path, "user.it")

    def list(self, path):
        return sorted(os.listdir(path))

    def do(self, function, *arguments):
        return function(*arguments)


def serve(pipe):
    # Only its master ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls = Calls()
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        started = time.monotonic()
        try:
            outcome = ("ok", getattr(calls, name)(*arguments))
        except OSError as error:
            outcome = ("error", error.errno)
        except Exception:
            outcome = ("failed", traceback.format_exc())
        pipe.send((started, time.monotonic(), outcome))


class Agent:
    everyone = []

    def __init__(self):
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.waiting = None
        Agent.everyone.append(self)

    def start(self, name, *arguments):
        assert self.waiting is None, f"still in {self.waiting}"
        self.waiting = (name, arguments)
        self.pipe.send((name, arguments))

    def answered(self, seconds=0.0):
        return self.pipe.poll(seconds)

    def result(self, seconds):
        """(when it was called, when it returned, outcome)"""
        if not self.pipe.poll(seconds):
            raise Wrong(f"no answer to {self.waiting} within {seconds} seconds")
        answer = self.pipe.recv()
        what, self.waiting = self.waiting, None
        if answer[2][0] == "failed":
            raise Wrong(f"{what}: {answer[2][1]}")
        return answer

    def outcome(self, seconds, name, *arguments):
        self.start(name, *arguments)
        return self.result(seconds)[2]

    def call(self, name, *arguments, seconds=30.0):
        kind, value = self.outcome(seconds, name, *arguments)
        if kind != "ok":
            raise Wrong(f"{name} {str(arguments)[:200]}: {os.strerror(value)}")
        return value

    @classmethod
    def end_all(cls):
        for agent in cls.everyone:
            if agent.process.is_alive():
                os.kill(agent.process.pid, signal.SIGKILL)
            agent.process.join(5)
        cls.everyone.clear()
