"""python3 -m chaintest VERB ...

write DIRECTORY LOG      writes, reads back and syncs until SIGTERM; then says how many calls there were and the longest; the log, outside,
                         tells what is there
verify DIRECTORY LOG     compares what is there with that
beside FILE              writes and syncs a file until SIGTERM, and says how long the slowest took: what the disk itself makes others wait
first FILE               reads a byte of each of its chunks and says how long the slowest took
fill DIRECTORY LOG       writes files until there is no space; the log tells what was acknowledged
filled DIRECTORY LOG     compares what is there with that
flip PATH COUNT          flips so many bits at random places of a file, or of each segment and snapshot in a directory; says how many
share LIST GROUPS N      looks at what `netfs data list` says, N replicas: each must have the share that consistent hashing gives its weight, and the last one of the bytes about as much
"""

import errno

import json
import os
import random
import re
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


def beside(path):
    asked_to_end = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(1))
    fd, slowest = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), 0.0
    while not asked_to_end:
        began = time.monotonic()
        os.pwrite(fd, bytes(BLOCK), 0)
        os.fsync(fd)
        # Others of this machine have the processor, too.
        time.sleep(0.02)
        slowest = max(slowest, time.monotonic() - began)
    os.close(fd)
    print(f"{slowest:.2f}")


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


FILL_BLOCK = 1 << 20
FILL_FILE = 4  # blocks


def filling(number):
    return (b"%d of %d " % (number, number * 7919) * FILL_BLOCK)[:FILL_BLOCK]


def fill(directory, log):
    os.makedirs(directory)
    done = 0
    try:
        while True:
            fd = os.open(f"{directory}/{done // FILL_FILE}", os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for number in range(done, done + FILL_FILE):
                    if os.pwrite(fd, filling(number), (number - done) * FILL_BLOCK) != FILL_BLOCK:
                        raise OSError(errno.ENOSPC, "a part was written")
                os.fsync(fd)
            finally:
                os.close(fd)
            done += FILL_FILE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    if not done:
        raise Wrong("there was no space from the beginning")
    with open(log, "w") as note:
        json.dump(done, note)
    print(f"{done * FILL_BLOCK >> 20} MiB")


def filled(directory, log):
    with open(log) as note:
        done = json.load(note)
    for number in range(0, done, FILL_FILE):
        path = f"{directory}/{number // FILL_FILE}"
        with open(path, "rb") as found:
            drop_pages(found.fileno())
            for block in range(number, number + FILL_FILE):
                if found.read(FILL_BLOCK) != filling(block):
                    raise Wrong(f"block {block - number} of {path} is not what was written")


def flip(path, count):
    files = [path]
    if os.path.isdir(path):
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith((".seg", ".snap")))
    chance, flipped = random.Random(1), 0
    for name in files:
        with open(name, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(int(count) if size else 0):
                at = chance.randrange(size)
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))
                flipped += 1
    print(flipped)


MASK = (1 << 64) - 1


def mix(x):
    """As `netfs_common::map::mix` has it."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def placed(weights, groups, replicas):
    """How many replicas each server with its weight is to have, as the head of `served/src/meta/cluster/placement.rs` has it."""
    points = []
    for server, weight in weights.items():
        own = mix(server ^ 0x736572766572)
        points += [(mix(own ^ mix(k)), server) for k in range(weight)]
    points.sort()
    places = dict.fromkeys(weights, 0)
    for group in range(groups):
        start = mix(mix(group) ^ 0x67726F7570)
        taken = []
        for _, server in [p for p in points if p[0] >= start] + [p for p in points if p[0] < start]:
            if server not in taken:
                taken.append(server)
            if len(taken) == replicas:
                break
        for server in taken:
            places[server] += 1
    return places


UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}


def size(text):
    number, unit = text.split()
    return float(number) * UNITS[unit]


def share(listed, groups, replicas):
    groups, replicas = int(groups), int(replicas)
    with open(listed) as lines:
        rows = [re.split(r"  +", line.strip()) for line in lines if re.match(r"[0-9a-f]+ +\S+:\d+ ", line)]
    places = {int(row[0], 16): next(i for i, cell in enumerate(row) if re.fullmatch(r"\d+/\d+/\d+", cell)) for row in rows}
    has = {int(row[0], 16): sum(map(int, row[places[int(row[0], 16)]].split("/")[:2])) for row in rows}
    live = {int(row[0], 16): size(row[places[int(row[0], 16)] - 2]) for row in rows}
    weights = {int(row[0], 16): int(row[places[int(row[0], 16)] + 1].split()[0]) for row in rows}
    # Disks may differ by a little; load takes away a half at most.
    if 2 * min(weights.values()) + 2 < max(weights.values()):
        raise Wrong(f"weights of servers on equal disks: {weights}")
    computed, last = placed(weights, groups, replicas), max(has)
    moved, part = has[last] / (groups * replicas), live[last] / sum(live.values())
    told = f"server {last} has {has[last]} of {groups * replicas} replicas ({moved:.1%}), computed {computed[last]}, and {part:.1%} of the bytes"
    # Disks may differ by a little, which is a point of the ring more or less.
    if any(abs(has[server] - computed[server]) > 2 for server in has):
        raise Wrong(f"{told}; all: {has}, computed {computed}")
    if abs(part - moved) > 0.12:
        raise Wrong(told)
    print(told)


def main(verb="", *arguments):
    verbs = {"write": write, "verify": verify, "beside": beside, "first": first, "fill": fill, "filled": filled, "flip": flip, "share": share}
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
