"""Programs that wait for what does not come."""

import os
import signal
import time

from .agent import Wrong


def open_written(root, name):
    fd = os.open(f"{root}/{name}", os.O_RDWR)
    os.write(fd, b"y")
    return fd


# What is done beforehand, and what waits.
CALLS = {
    "fsync": (lambda root: open_written(root, "stuck-sync"), lambda root, fd: (os.write(fd, b"y"), os.fsync(fd))),
    "statvfs": (None, lambda root, _: os.statvfs(root)),
    "create": (None, lambda root, _: os.open(f"{root}/stuck-new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "mkdir": (None, lambda root, _: os.mkdir(f"{root}/stuck-directory")),
    "lookup": (None, lambda root, _: os.stat(f"{root}/stuck-nothing")),
    "listing": (None, lambda root, _: os.listdir(root)),
    "read": (None, lambda root, _: open(f"{root}/stuck-read", "rb").read()),
    "synchronous write": (lambda root: os.open(f"{root}/stuck-read", os.O_WRONLY | os.O_SYNC), lambda root, fd: os.write(fd, b"x")),
    "rename": (None, lambda root, _: os.rename(f"{root}/stuck-a", f"{root}/stuck-b")),
}


def wait_for(path):
    deadline = time.monotonic() + 30
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise Wrong("nobody said that the servers are dead")
        time.sleep(0.02)


def begin(root, go, prepare, call):
    """A process that waits for the servers' death and then calls. The reading end tells that it is prepared."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            fd = prepare(root) if prepare else None
            os.write(writer, b".")
            wait_for(go)
            call(root, fd)
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return pid


def killed(root, ready, go):
    """Says by the file `ready` that its processes are there; they go on when `go` is there: the servers are dead then."""
    children = {}
    for call, what in CALLS.items():
        # Each in a directory of its own: who waits for the kernel's lock of a directory, which another one that waits holds, is not
        # gone before that one is, on any file system.
        place = f"{root}/stuck {call}"
        os.mkdir(place)
        for name in ("stuck-read", "stuck-a", "stuck-sync"):
            with open(f"{place}/{name}", "wb") as file:
                file.write(b"z" * 100_000)
                file.flush()
                os.fsync(file.fileno())
        children[call] = begin(place, go, *what)
    with open(ready, "wb"):
        pass
    wait_for(go)
    time.sleep(1.5)
    slowest, waiting = 0.0, []
    for name, pid in children.items():
        # What a cache could answer has ended by itself.
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended:
            continue
        waiting.append(name)
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while not ended:
            took = time.monotonic() - started
            if took > 5:
                raise Wrong(f"{name}: not gone {took:.1f} seconds after it was killed")
            time.sleep(0.005)
            ended, _ = os.waitpid(pid, os.WNOHANG)
        slowest = max(slowest, time.monotonic() - started)
        if time.monotonic() - started > 1:
            raise Wrong(f"{name}: gone {time.monotonic() - started:.2f} seconds after it was killed")
    if "fsync" not in waiting:
        raise Wrong("fsync did not wait for servers that are not there")
    print(f"killed in {', '.join(waiting)}; the slowest was gone after {slowest * 1000:.0f} ms")


def takeover(root, directory, seconds):
    """In what a client that died held for writing, a moment ago."""
    seconds = float(seconds)
    started = time.monotonic()
    place = f"{root}/{directory}"
    with open(f"{place}/grows", "rb") as file:
        file.read()
    fd = os.open(f"{place}/grows", os.O_WRONLY | os.O_APPEND)
    os.close(fd)
    with open(f"{place}/other", "wb") as file:
        file.write(b"other")
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{place}/other", f"{place}/another")
    os.unlink(f"{place}/another")
    took = time.monotonic() - started
    if took > seconds:
        raise Wrong(f"it took {took:.1f} seconds to get at what the dead client held")
    print(f"after {took:.2f} s")
