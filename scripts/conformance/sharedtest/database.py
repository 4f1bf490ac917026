"""One SQLite database, written through several mounts at the same time, with a rollback journal. It stands on fcntl locks that
hold across mounts."""

import os
import sqlite3
import time

from .processes import Wrong, together


def connect(path):
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute("pragma journal_mode = delete")
    database.execute("pragma synchronous = normal")
    return database


def write(path, writer, commits):
    database = connect(path)
    for number in range(commits):
        # Both tables change in one transaction: whoever sees them differ has seen half of one.
        database.execute("begin immediate")
        database.execute("insert into entry values (?, ?, ?)", (writer, number, b"x" * (number * 37 % 2000)))
        database.execute("update total set value = value + 1")
        database.execute("commit")
    database.close()
    return "written", commits


def watch(path, seconds):
    database = connect(path)
    looks = 0
    before = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.path.exists(f"{path}.done"):
        database.execute("begin")
        entries = database.execute("select count(*) from entry").fetchone()[0]
        total = database.execute("select value from total").fetchone()[0]
        database.execute("commit")
        if entries != total:
            raise Wrong(f"a reader saw {entries} entries with a total of {total}")
        if entries < before:
            raise Wrong(f"a reader saw {entries} entries after {before}")
        before = entries
        looks += 1
        time.sleep(0.01)
    return "watched", looks


def write_and_tell(path, others, writer, commits):
    write(path, writer, commits)
    os.close(os.open(f"{path}.done{writer}", os.O_CREAT))
    if len([name for name in os.listdir(os.path.dirname(path)) if ".done" in name]) == others:
        os.close(os.open(f"{path}.done", os.O_CREAT))
    return "written", commits


def play(commits, roots):
    paths = [f"{root}/shared.db" for root in roots]
    database = connect(paths[0])
    database.execute("create table entry (writer integer, number integer, body blob, primary key (writer, number))")
    database.execute("create table total (value integer)")
    database.execute("insert into total values (0)")
    database.close()
    writers = [path for path in paths for _ in range(2)]
    started = time.monotonic()
    bodies = [(write_and_tell, path, len(writers), w, commits) for w, path in enumerate(writers)]
    bodies += [(watch, path, 60) for path in paths]
    together(90, *bodies)
    took = time.monotonic() - started
    for path in paths:
        database = connect(path)
        fault = database.execute("pragma integrity_check").fetchone()[0]
        if fault != "ok":
            raise Wrong(f"{path}: {fault}")
        count, total = database.execute("select (select count(*) from entry), (select value from total)").fetchone()
        if (count, total) != (commits * len(writers), commits * len(writers)):
            raise Wrong(f"{path}: {count} entries with a total of {total}, not {commits * len(writers)}")
        database.close()
    return f"{commits * len(writers)} transactions of {len(writers)} writers, {commits * len(writers) / took:.0f} in a second"
