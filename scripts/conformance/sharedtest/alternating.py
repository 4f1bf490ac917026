"""As fsx does it, on one file: random operations, each through a mount chosen at random and checked through another one. A copy
in memory says what has to be read."""

import ctypes
import mmap
import os
import random
import time

from .processes import Wrong

LENGTH = 600_000
MOST = 40_000
LIBC = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE_AND_PUNCH, ZERO = 3, 16


def fallocate(fd, mode, offset, length):
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Files:
    """The file as each mount has it, open all the time and opened again now and then."""

    def __init__(self, roots):
        self.names = [f"{root}/alternating" for root in roots]
        self.fds = [os.open(self.names[0], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)]
        self.fds += [os.open(name, os.O_RDWR) for name in self.names[1:]]

    def again(self, mount):
        os.close(self.fds[mount])
        self.fds[mount] = os.open(self.names[mount], os.O_RDWR)


def operate(rng, files, mount, model):
    """One change, to the file and to the model. Returns what it was and the range that it changed."""
    fd, size = files.fds[mount], len(model)
    what = rng.choices(["write", "append", "truncate", "punch", "zero", "mapped write", "replace"], [50, 10, 10, 8, 5, 4, 1])[0]
    offset = rng.randrange(min(LENGTH - MOST, size + 10_000))
    length = rng.randrange(1, MOST) if rng.random() < 0.5 else rng.randrange(1, 3000)
    data = rng.randbytes(length)
    if what == "append" and size + length < LENGTH:
        appending = os.open(files.names[mount], os.O_WRONLY | os.O_APPEND)
        os.write(appending, data)
        os.close(appending)
        model.extend(data)
        return what, size, length
    if what == "truncate":
        os.ftruncate(fd, offset)
        if offset < size:
            del model[offset:]
        else:
            model.extend(b"\0" * (offset - size))
        return what, offset, length
    if what in ("punch", "zero") and offset < size:
        fallocate(fd, KEEP_SIZE_AND_PUNCH if what == "punch" else ZERO, offset, length)
        end = offset + length if what == "zero" else min(offset + length, size)
        model.extend(b"\0" * (end - size))
        model[offset:end] = b"\0" * (end - offset)
        return what, offset, length
    if what == "mapped write" and size > offset:
        end = min(offset + length, size)
        try:
            with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
                memory[offset:end] = data[: end - offset]
                memory.flush()
        except OSError as error:
            raise Wrong(f"mmap: {error}") from error
        model[offset:end] = data[: end - offset]
        return what, offset, end - offset
    if what == "replace":
        fresh = os.open(files.names[mount], os.O_WRONLY | os.O_TRUNC)
        os.write(fresh, data)
        os.close(fresh)
        model[:] = data
        return what, 0, length
    if os.pwrite(fd, data, offset) != length:
        raise Wrong("a short write")
    model.extend(b"\0" * (offset - size))
    model[offset : offset + length] = data
    return "write", offset, length


def compare(mount, way, got, want, at):
    if got != want:
        wrong = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        raise Wrong(f"mount {mount + 1}, {way}: wrong from {at + wrong} on: {got[wrong:wrong + 8].hex()}, not "
                    f"{want[wrong:wrong + 8].hex()} (length {len(got)}, not {len(want)})")


def verify(rng, files, mount, model, offset, length):
    fd = files.fds[mount]
    around = max(0, offset - 100)
    span = length + 200
    compare(mount, "pread", os.pread(fd, span, around), bytes(model[around : around + span]), around)
    size = os.fstat(fd).st_size
    if size != len(model):
        raise Wrong(f"mount {mount + 1}: the size is {size}, not {len(model)}")
    if rng.random() < 0.1:
        somewhere = rng.randrange(max(1, len(model)))
        span = rng.randrange(1, MOST)
        compare(mount, "pread elsewhere", os.pread(fd, span, somewhere), bytes(model[somewhere : somewhere + span]), somewhere)
    if rng.random() < 0.02:
        files.again(mount)
        compare(mount, "all of it", os.pread(files.fds[mount], LENGTH * 2, 0), bytes(model), 0)


def play(seed, operations, roots):
    rng = random.Random(seed)
    files = Files(roots)
    model = bytearray()
    recent = []
    started = time.monotonic()
    for number in range(operations):
        mount = rng.randrange(len(roots))
        try:
            what, offset, length = operate(rng, files, mount, model)
            recent = [*recent[-9:], f"{number}: {what} at {offset}, {length} bytes, by mount {mount + 1}"]
            # Through another one than it was made, and now and then through all.
            others = range(len(roots)) if rng.random() < 0.1 else [(mount + rng.randrange(1, len(roots))) % len(roots)]
            for other in others:
                verify(rng, files, other, model, offset, length)
            if rng.random() < 0.005:
                os.fsync(files.fds[mount])
        except (Wrong, OSError) as error:
            raise Wrong(f"operation {number}, seed {seed}: {error}\n" + "\n".join(recent)) from error
    return f"{operations} operations, {operations / (time.monotonic() - started):.0f} in a second, seed {seed}"
