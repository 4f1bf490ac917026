"""python3 -m chaintest VERB ...

write DIRECTORY LOG      writes, reads back and syncs until SIGTERM; then says how many calls there were and the longest; the log, outside,
                         tells what is there
verify DIRECTORY LOG     compares what is there with that
first FILE               reads a byte of each of its chunks and says how long the slowest took
"""

import json
import os
import random
import signal
import sys
import time

BLOCK = 64 << 10
BLOCKS = 160
FILES = 2
CHUNK = 4 << 20


class Wrong(Exception):
    """What was written is not what is read."""


def content(file, number, turn):
    words = b"%d %d %d " % (file, number, turn)
    return (words * (BLOCK // len(words) + 1))[:BLOCK] if turn else bytes(BLOCK)


class Timed:
    """Calls, and the longest of them."""

    def __init__(self):
        self.calls, self.longest, self.what = 0, 0.0, ""

    def __call__(self, what, *arguments):
        began = time.monotonic()
        result = what(*arguments)
        took = time.monotonic() - began
        self.calls += 1
        if took > self.longest:
            self.longest, self.what = took, what.__name__
        return result


def paths(directory):
    return [f"{directory}/{file}" for file in range(FILES)]


def drop_pages(fd):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def write(directory, log):
    asked_to_end = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(1))
    chance, timed = random.Random(directory), Timed()
    os.makedirs(directory, exist_ok=True)
    files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in paths(directory)]
    turns = [[0] * BLOCKS for _ in files]
    turn = 0
    while not asked_to_end:
        file = chance.randrange(FILES)
        for _ in range(chance.randrange(1, 8)):
            number, turn = chance.randrange(BLOCKS), turn + 1
            timed(os.pwrite, files[file], content(file, number, turn), number * BLOCK)
            turns[file][number] = turn
        if chance.randrange(3) == 0:
            timed(os.fsync, files[file])
            drop_pages(files[file])
        number = chance.randrange(BLOCKS)
        expected = content(file, number, turns[file][number])
        if turns[file][number] and timed(os.pread, files[file], BLOCK, number * BLOCK) != expected:
            raise Wrong(f"block {number} of {directory}/{file} is not what was written")
        time.sleep(0.002)
    for fd in files:
        timed(os.fsync, fd)
        os.close(fd)
    with open(log, "w") as note:
        json.dump(turns, note)
    print(f"{timed.calls} calls, the longest {timed.longest:.2f} s ({timed.what})")


def verify(directory, log):
    with open(log) as note:
        turns = json.load(note)
    for file, path in enumerate(paths(directory)):
        with open(path, "rb") as found:
            drop_pages(found.fileno())
            for number, turn in enumerate(turns[file]):
                there = found.read(BLOCK)
                if there != content(file, number, turn)[: len(there)] or (turn and len(there) < BLOCK):
                    raise Wrong(f"block {number} of {path} is not what was written")


def first(path):
    fd = os.open(path, os.O_RDONLY)
    drop_pages(fd)
    slowest = 0.0
    for offset in range(0, os.fstat(fd).st_size, CHUNK):
        began = time.monotonic()
        os.pread(fd, 1, offset)
        slowest = max(slowest, time.monotonic() - began)
    print(f"{slowest:.2f}")
    os.close(fd)


def main(verb="", *arguments):
    verbs = {"write": write, "verify": verify, "first": first}
    if verb not in verbs:
        print(__doc__)
        return 2
    return verbs[verb](*arguments) or 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Wrong as error:
        print(error)
        sys.exit(1)
