"""A process for each mount, all started together, watched by the one that started them."""

import os
import select
import signal
import struct
import sys
import time
import traceback

MESSAGE = struct.Struct("<cq")


class Wrong(Exception):
    """A mount has shown what it may not."""


class Inbox:
    """Messages of a few bytes between processes, through a pipe. Who waits in it goes on as soon as one is there."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def put(self, kind, value=0):
        os.write(self.writer, MESSAGE.pack(kind, value))

    def take(self):
        data = os.read(self.reader, MESSAGE.size)
        if len(data) != MESSAGE.size:
            raise EOFError("the others are gone")
        return MESSAGE.unpack(data)


def run(bodies, seconds):
    """Runs each body in a process of its own. Raises Wrong with what the first to fail has said; the others are ended then."""
    children = {}
    for body in bodies:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                body()
                status = 0
            except Wrong as error:
                os.write(writer, str(error).encode()[:4000])
            except BaseException:
                os.write(writer, traceback.format_exc().encode()[-4000:])
            finally:
                os._exit(status)
        os.close(writer)
        children[reader] = pid
    deadline = time.monotonic() + seconds
    failure = None
    said = {reader: b"" for reader in children}
    while children:
        ready, _, _ = select.select(list(children), [], [], max(0, deadline - time.monotonic()))
        if not ready:
            failure = failure or f"not ended after {seconds} seconds"
        for reader in ready:
            data = os.read(reader, 4096)
            if data:
                said[reader] += data
                continue
            os.close(reader)
            _, status = os.waitpid(children.pop(reader), 0)
            if status and failure is None:
                failure = said[reader].decode(errors="replace") or f"ended with wait status {status}"
        if failure is not None:
            for reader, pid in children.items():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(reader)
            raise Wrong(failure)


class Barrier:
    """Lets nobody go on before all are there. Used once."""

    def __init__(self, count):
        self.count = count
        self.arrived = os.pipe()
        self.go = os.pipe()

    def wait(self):
        os.write(self.arrived[1], b".")
        os.read(self.go[0], 1)

    def open(self):
        """A body of its own: what opens the barrier."""
        for _ in range(self.count):
            os.read(self.arrived[0], 1)
        os.write(self.go[1], b"." * self.count)
