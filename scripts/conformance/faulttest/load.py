"""A program that writes and syncs, and tells beside each sync what it may now rely on; and the one that holds the mount to it."""

import json
import os
import signal
import sys

from .agent import Wrong

BLOCK = 3000
# So many of the files that come and go are there at a time.
KEPT = 10


def block(number):
    return (b"block %08d\n" % number * (BLOCK // 15 + 1))[:BLOCK]


def content(number):
    return b"file %08d\n" % number * (number % 7 * 300 + 1)


def cell(number):
    return number.to_bytes(8, "little") * 512


def sync_directory(directory):
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def store(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write(directory, log):
    """Ends with status 3 when the mount is gone, which is for whoever started it to judge."""
    asked_to_end = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(1))
    note = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def promise(**what):
        os.write(note, json.dumps(what).encode() + b"\n")

    number = 0
    try:
        os.makedirs(directory, exist_ok=True)
        sync_directory(os.path.dirname(directory))
        grows = os.open(f"{directory}/grows", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        over = os.open(f"{directory}/over", os.O_RDWR | os.O_CREAT, 0o644)
        sync_directory(directory)
        while not asked_to_end:
            promise(begun=number)
            os.write(grows, block(number))
            os.pwrite(over, cell(number), 0)
            if number % 3 == 0:
                os.fsync(grows)
                os.fsync(over)
                promise(blocks=number + 1, cell=number)
            if os.pread(over, 4096, 0) != cell(number):
                raise Wrong(f"step {number}: what was just written over is not what is read")
            store(f"{directory}/new", content(number))
            os.rename(f"{directory}/new", f"{directory}/f{number}")
            if number >= KEPT:
                os.unlink(f"{directory}/f{number - KEPT}")
            if number % 3 == 1:
                sync_directory(directory)
                promise(files=number)
            number += 1
        os.fsync(grows)
        os.close(grows)
        os.fsync(over)
        os.close(over)
        sync_directory(directory)
        promise(ended=number)
    except OSError as error:
        print(f"step {number}: {error}")
        sys.exit(3)
    print(f"{number} steps")


def promises(log):
    """What holds at least, and the number of the last step that was begun."""
    known = {"blocks": 0, "cell": -1, "files": -1, "begun": -1, "ended": None}
    with open(log, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                known.update(json.loads(line))
    if known["ended"] is not None:
        last = known["ended"]
        known.update(blocks=last, cell=last - 1, files=last - 1, begun=last - 1)
    return known


def verify(directory, log):
    known = promises(log)
    begun = known["begun"]
    with open(f"{directory}/grows", "rb") as file:
        data = file.read()
    there = len(data) // BLOCK
    if there < known["blocks"] or there > begun + 1:
        raise Wrong(f"grows: {there} blocks, not {known['blocks']} to {begun + 1}")
    for number in range(known["blocks"]):
        if data[number * BLOCK : (number + 1) * BLOCK] != block(number):
            raise Wrong(f"grows: block {number} of {known['blocks']} that were synced is wrong")
    # What was not synced may be missing: then there are zeros.
    for number in range(known["blocks"], there):
        got = data[number * BLOCK : (number + 1) * BLOCK]
        if got.strip(b"\0") and got != block(number) and known["ended"] is not None:
            raise Wrong(f"grows: block {number}, not synced, is neither there nor empty")
    with open(f"{directory}/over", "rb") as file:
        data = file.read()
    value = int.from_bytes(data[:8], "little") if data else -1
    if not known["cell"] <= value <= begun or (data and data != cell(value)):
        raise Wrong(f"over: {value} in {len(data)} bytes, not whole between {known['cell']} and {begun}")
    verify_files(directory, known)
    print(f"{there} blocks, {known['blocks']} of them promised; files up to {known['files']}")


def verify_files(directory, known):
    names = set(os.listdir(directory))
    first = max(0, known["files"] - KEPT + 1)
    for number in range(max(0, first - 50), known["begun"] + 1):
        name = f"f{number}"
        # Removed later than promised, perhaps.
        may_be_gone = number <= known["begun"] - KEPT
        if name in names:
            if number < first:
                raise Wrong(f"{name} is back, or was never removed: promised was {known}")
            with open(f"{directory}/{name}", "rb") as file:
                if file.read() != content(number):
                    raise Wrong(f"{name} has wrong bytes")
        elif number <= known["files"] and not may_be_gone:
            raise Wrong(f"{name} is missing: promised was {known}")
    strange = {name for name in names if name not in ("grows", "over", "new") and not (name[0] == "f" and name[1:].isdigit())}
    if strange:
        raise Wrong(f"nobody made {sorted(strange)[:5]}")
