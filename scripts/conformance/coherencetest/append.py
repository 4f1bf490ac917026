"""Several mounts append to one file at the same time: every record is there once, whole, and in its writer's order."""

import os
import time
import zlib

from .processes import Barrier, Wrong, run

# A record: "<writer>:<number>:<length of the padding>:<padding>:<checksum>\n"
LENGTHS = [0, 10, 100, 1000, 5000]


def record(writer, number):
    body = b"%d:%d:%d:" % (writer, number, LENGTHS[(writer + number) % len(LENGTHS)])
    body += bytes([97 + writer]) * LENGTHS[(writer + number) % len(LENGTHS)]
    return body + b":%08x\n" % zlib.crc32(body)


def check(where, data, writers, records):
    """Every record, once and in order; the first thing wrong is said."""
    following = [0] * writers
    at = 0
    while at < len(data):
        end = data.find(b"\n", at) + 1
        line = data[at:end] if end else data[at:]
        fields = line.split(b":", 2)
        known = len(fields) == 3 and fields[0].isdigit() and fields[1].isdigit() and int(fields[0]) < writers
        writer, number = (int(fields[0]), int(fields[1])) if known else (None, None)
        if not known or line != record(writer, number):
            raise Wrong(f"{where}: torn or overwritten at {at}: {line[:60]!r}, length {len(line)}; {lost(data, writers, records)}")
        if number != following[writer]:
            raise Wrong(f"{where}: record {number} of writer {writer} at {at}, not {following[writer]}; {lost(data, writers, records)}")
        following[writer] += 1
        at = end
    if following != [records] * writers:
        raise Wrong(f"{where}: {following} records of {records} each")


def lost(data, writers, records):
    there = set(data.split(b"\n"))
    missing = sum(record(w, n)[:-1] not in there for w in range(writers) for n in range(records))
    return f"{missing} of {writers * records} records are missing"


def append(barrier, name, writer, records):
    fd = os.open(name, os.O_WRONLY | os.O_APPEND)
    barrier.wait()
    for number in range(records):
        if number % 10 == 9:
            # As a shell does it for each line.
            os.close(fd)
            fd = os.open(name, os.O_WRONLY | os.O_APPEND)
        data = record(writer, number)
        if os.write(fd, data) != len(data):
            raise Wrong(f"writer {writer}: a short write")
    os.close(fd)


def play(roots, records, seconds=120):
    """Two processes on each root append `records` each."""
    names = [f"{root}/log" for root in roots for _ in range(2)]
    os.close(os.open(names[0], os.O_CREAT | os.O_WRONLY))
    readers = [os.open(name, os.O_RDONLY) for name in names[::2]]
    barrier = Barrier(len(names))
    started = time.monotonic()
    run([barrier.open] + [lambda w=w: append(barrier, names[w], w, records) for w in range(len(names))], seconds)
    took = time.monotonic() - started
    for mount, (name, reader) in enumerate(zip(names[::2], readers), 1):
        with open(name, "rb") as file:
            check(f"mount {mount}", file.read(), len(names), records)
        with open(reader, "rb") as file:
            check(f"mount {mount}, open before", file.read(), len(names), records)
    return f"{len(names) * records} records by {len(names)} writers, {len(names) * records / took:.0f} in a second"
