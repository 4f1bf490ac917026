"""Cases of `flock` and of open-file-description locks, and what all have in common."""

import os

from .actors import EX, LOCK_UN, NB, OFD_GETLK, OFD_SETLK, OFD_SETLKW, RD, SETLKW, SH, UN, WR, case, same


@case
def flock_exclusive_and_shared(w):
    a, f, b, g = w.both()
    same(a.flock(f, SH | NB), "ok")
    same(b.flock(g, SH | NB), "ok")
    same(b.flock(g, EX | NB), "EAGAIN")
    same(a.flock(f, LOCK_UN), "ok")
    same(b.flock(g, EX | NB), "ok")
    same(a.flock(f, SH | NB), "EAGAIN")
    same(b.flock(g, LOCK_UN), "ok")
    same(a.flock(f, EX | NB), "ok")


@case
def flock_waits(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    b.begin("flock", g, SH)
    assert b.waits()
    same(a.flock(f, SH), "ok")
    same(b.result(), "ok")
    a.begin("flock", f, EX)
    assert a.waits()
    b.close(g)
    same(a.result(5), "ok")


@case
def flock_conversion_in_vain_loses_the_lock(w):
    a, f, b, g = w.both()
    same(a.flock(f, SH), "ok")
    same(b.flock(g, SH), "ok")
    same(a.flock(f, EX | NB), "EAGAIN")
    same(b.flock(g, EX | NB), "ok")


@case
def flock_two_descriptions_of_one_process_exclude_each_other(w):
    a = w.a()
    f, g = a.open(w.name), a.open(w.name)
    same(a.flock(f, EX | NB), "ok")
    same(a.flock(g, EX | NB), "EAGAIN")
    a.close(g)
    g = w.b()
    same(g.flock(g.open(w.name), EX | NB), "EAGAIN")


@case
def flock_is_shared_by_duplicates(w):
    a, f, b, g = w.both()
    d = a.dup(f)
    same(a.flock(f, EX), "ok")
    same(a.flock(d, EX | NB), "ok")
    a.close(f)
    same(b.flock(g, EX | NB), "EAGAIN")
    a.close(d)
    same(b.flock(g, EX | NB), "ok")
    same(b.flock(b.dup(g), LOCK_UN), "ok")
    c = w.a()
    same(c.flock(c.open(w.name), EX | NB), "ok")


@case
def flock_is_inherited(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    child = a.fork()
    a.close(f)
    same(b.flock(g, EX | NB), "EAGAIN")
    same(child.flock(f, EX | NB), "ok")
    child.close(f)
    same(b.flock(g, EX | NB), "ok")


@case
def flock_a_child_unlocks_for_its_parent(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    child = a.fork()
    same(child.flock(f, LOCK_UN), "ok")
    same(b.flock(g, EX | NB), "ok")


@case
def flock_ends_with_a_killed_process(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX), "ok")
    b.begin("flock", g, EX)
    assert b.waits()
    a.kill()
    same(b.result(5), "ok")


@case
def flock_of_a_read_only_file(w):
    a, f, b, g = w.both()
    h = a.open(w.name, os.O_RDONLY)
    same(a.flock(h, EX | NB), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    a.close(h)
    same(b.flock(g, SH | NB), "ok")


@case
def flock_and_fcntl_do_not_meet(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX | NB), "ok")
    same(b.lock(g, WR), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    same(a.lock(f, RD), "EAGAIN")
    same(b.lock(g, UN), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    a.close(a.open(w.name))
    same(b.flock(g, SH | NB), "EAGAIN")


@case
def flock_and_ofd_of_one_description_do_not_meet(w):
    a, f, b, g = w.both()
    same(a.flock(f, EX | NB), "ok")
    same(a.lock(f, RD, 0, 0, OFD_SETLK), "ok")
    same(b.lock(g, RD, 0, 0, OFD_SETLK), "ok")
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "EAGAIN")
    same(a.lock(f, UN, 0, 0, OFD_SETLK), "ok")
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "ok")
    same(b.flock(g, SH | NB), "EAGAIN")
    same(a.flock(f, LOCK_UN), "ok")
    same(b.flock(g, SH | NB), "ok")
    same(a.test(f, RD)[0], WR)


@case
def ofd_and_fcntl_meet(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 10), "ok")
    same(a.lock(f, RD, 5, 1, OFD_SETLK), "EAGAIN")
    same(b.lock(g, RD, 5, 1, OFD_SETLK), "EAGAIN")
    same(b.lock(g, WR, 10, 10, OFD_SETLK), "ok")
    same(a.lock(f, WR, 15, 1), "EAGAIN")
    same(a.test(f, RD, 0, 0)[:3], (WR, 10, 10))
    same(b.test(g, RD, 0, 0, OFD_GETLK)[:3], (WR, 0, 10))


@case
def ofd_two_descriptions_of_one_process_exclude_each_other(w):
    a = w.a()
    f, g = a.open(w.name), a.open(w.name)
    same(a.lock(f, WR, 0, 10, OFD_SETLK), "ok")
    same(a.lock(g, WR, 9, 1, OFD_SETLK), "EAGAIN")
    same(a.lock(a.dup(f), WR, 9, 1, OFD_SETLK), "ok")


@case
def ofd_ends_with_the_last_descriptor(w):
    a, f, b, g = w.both()
    d = a.dup(f)
    same(a.lock(f, WR, 0, 0, OFD_SETLK), "ok")
    a.close(a.open(w.name))
    a.close(f)
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "EAGAIN")
    a.close(d)
    same(b.lock(g, WR, 0, 0, OFD_SETLK), "ok")


@case
def ofd_is_inherited(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 3, 4, OFD_SETLK), "ok")
    child = a.fork()
    a.close(f)
    same(b.lock(g, WR, 3, 1), "EAGAIN")
    same(child.lock(f, WR, 3, 4, OFD_SETLK), "ok")
    child.close(f)
    b.begin("lock", g, WR, 3, 1, SETLKW)
    same(b.result(5), "ok")


@case
def ofd_waits_and_is_no_deadlock(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 1, OFD_SETLK), "ok")
    same(b.lock(g, WR, 1, 1, OFD_SETLK), "ok")
    a.begin("lock", f, WR, 1, 1, OFD_SETLKW)
    assert a.waits()
    b.begin("lock", g, WR, 0, 1, OFD_SETLKW)
    assert b.waits()
    b.kill()
    same(a.result(5), "ok")


@case
def a_file_without_a_name_can_be_locked(w):
    a, f, b, g = w.both()
    a.unlink(w.name)
    same(a.lock(f, WR), "ok")
    same(b.lock(g, WR), "EAGAIN")
    a.close(f)
    same(b.lock(g, WR), "ok")


@case
def many_ranges(w):
    a, f, b, g = w.both()
    for n in range(500):
        same(a.lock(f, WR, 2 * n, 1), "ok")
    same(b.lock(g, WR, 501, 1), "ok")
    same(b.lock(g, WR, 500, 1), "EAGAIN")
    same(a.lock(f, UN), "ok")
    same(b.lock(g, WR), "ok")


def counts(w, how):
    actors = [w.a(), w.b(), w.a(), w.b()]
    for p in actors:
        p.begin("count", w.name, 50, how)
    for p in actors:
        p.result(120)
    p = w.a()
    same(p.read(p.open(w.name)), b"200")


@case
def a_number_is_counted_up_under_fcntl(w):
    counts(w, SETLKW)


@case
def a_number_is_counted_up_under_flock(w):
    counts(w, "flock")


@case
def a_number_is_counted_up_under_ofd(w):
    counts(w, OFD_SETLKW)


@case
def nobody_is_ever_where_a_writer_is(w):
    actors = [w.a() if n % 2 else w.b() for n in range(8)]
    for n, p in enumerate(actors):
        p.begin("scramble", w.name, 3, 16, n)
    assert sum(p.result(60) for p in actors) > 100
