"""One case of the SQLite runner: sqlite.py CASE JOURNAL_MODE DATABASE. Exits with 0 if it held."""

import multiprocessing
import os
import signal
import sqlite3
import sys
import time

ROWS = 20_000
WRITERS = 4
COMMITS = 60


def connect(path, mode):
    database = sqlite3.connect(path, timeout=120, isolation_level=None)
    got = database.execute(f"pragma journal_mode = {mode}").fetchone()[0]
    assert got == mode, f"journal_mode is {got}, not {mode}"
    database.execute("pragma synchronous = full")
    return database


def bulk(path, mode):
    database = connect(path, mode)
    database.execute("create table item (id integer primary key, body text, sum integer)")
    database.execute("begin")
    database.executemany(
        "insert into item values (?, ?, ?)", ((i, f"body {i} " * (i % 9), i * i) for i in range(ROWS))
    )
    database.execute("commit")
    database.execute("create index item_body on item (body)")
    count, total = database.execute("select count(*), sum(sum) from item").fetchone()
    assert (count, total) == (ROWS, sum(i * i for i in range(ROWS))), (count, total)
    database.execute("begin")
    database.execute("delete from item")
    database.execute("rollback")
    assert database.execute("select count(*) from item").fetchone()[0] == ROWS, "a rollback lost rows"


def add_entries(path, mode, writer, commits):
    database = connect(path, mode)
    for number in range(commits):
        # Both tables change in one transaction: whoever sees them differ has seen half of one.
        database.execute("begin immediate")
        database.execute("insert into entry values (?, ?)", (writer, number))
        database.execute("update total set value = value + 1")
        database.execute("commit")


def watch(path, mode, stop):
    database = connect(path, mode)
    while not stop.is_set():
        database.execute("begin")
        entries = database.execute("select count(*) from entry").fetchone()[0]
        total = database.execute("select value from total").fetchone()[0]
        database.execute("commit")
        if entries != total:
            print(f"a reader saw {entries} entries with a total of {total}")
            os._exit(1)
        time.sleep(0.01)


def writers(path, mode):
    database = connect(path, mode)
    database.execute("create table entry (writer integer, number integer, primary key (writer, number))")
    database.execute("create table total (value integer)")
    database.execute("insert into total values (0)")
    stop = multiprocessing.Event()
    reader = multiprocessing.Process(target=watch, args=(path, mode, stop))
    reader.start()
    workers = [multiprocessing.Process(target=add_entries, args=(path, mode, w, COMMITS)) for w in range(WRITERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    reader.join()
    assert [w.exitcode for w in workers] == [0] * WRITERS, "a writer failed"
    assert reader.exitcode == 0, "the reader failed"
    count, total = database.execute("select (select count(*) from entry), (select value from total)").fetchone()
    assert count == total == WRITERS * COMMITS, (count, total)


def write_for_ever(path, mode, pipe):
    database = connect(path, mode)
    number = 0
    while True:
        database.execute("begin immediate")
        database.execute("insert into entry values (1000, ?)", (number,))
        database.execute("update total set value = value + 1")
        database.execute("commit")
        # Told only after the commit: what was told must be there.
        os.write(pipe, number.to_bytes(4, "little"))
        number += 1


def killed(path, mode):
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        write_for_ever(path, mode, sender)
    os.close(sender)
    time.sleep(1.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = b""
    while piece := os.read(receiver, 65536):
        told += piece
    committed = len(told) // 4
    assert committed > 0, "nothing was committed before the kill"
    database = connect(path, mode)
    kept, total, entries = database.execute(
        "select (select count(*) from entry where writer = 1000), (select value from total), (select count(*) from entry)"
    ).fetchone()
    assert kept in (committed, committed + 1), f"{committed} commits were reported, {kept} are there"
    assert total == entries, f"half a transaction: {entries} entries with a total of {total}"
    print(f"{committed} commits before the kill")


def vacuum(path, mode):
    database = connect(path, mode)
    database.execute("delete from item where id % 3 = 0")
    database.execute("vacuum")
    if mode == "wal":
        busy = database.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        assert busy == 0, "the checkpoint was blocked"


def integrity(path, mode):
    database = connect(path, mode)
    for pragma in ("integrity_check", "foreign_key_check"):
        found = [row for row in database.execute(f"pragma {pragma}") if row != ("ok",)]
        assert not found, found
    assert database.execute("select count(*) from item where id % 3 = 0").fetchone()[0] == 0


CASES = {case.__name__: case for case in (bulk, writers, killed, vacuum, integrity)}

if __name__ == "__main__":
    CASES[sys.argv[1]](sys.argv[3], sys.argv[2])
