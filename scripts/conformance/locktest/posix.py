"""Cases of `fcntl` locks, and of waiting."""

import os
import signal
import time

from .actors import EX, LOCK_UN, NB, OFD_SETLK, OFD_SETLKW, QUIET, RD, SETLK, SETLKW, UN, WR, case, same


@case
def fcntl_write_locks_exclude_each_other(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    same(b.lock(g, WR), "EAGAIN")
    same(b.lock(g, RD), "EAGAIN")
    same(a.lock(f, UN), "ok")
    same(b.lock(g, WR), "ok")
    same(a.lock(f, RD, 5, 1), "EAGAIN")


@case
def fcntl_read_locks_share(w):
    a, f, b, g = w.both()
    same(a.lock(f, RD), "ok")
    same(b.lock(g, RD), "ok")
    same(a.lock(f, WR), "EAGAIN")
    same(b.lock(g, UN), "ok")
    same(a.lock(f, WR), "ok")


@case
def fcntl_ranges_that_do_not_meet(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 10), "ok")
    same(b.lock(g, WR, 10, 10), "ok")
    same(b.lock(g, WR, 9, 1), "EAGAIN")
    same(a.lock(f, WR, 20, 0), "ok")
    same(b.lock(g, RD, 1 << 62, 1), "EAGAIN")
    same(a.lock(f, WR, 0, 11), "EAGAIN")


@case
def fcntl_negative_lengths_and_the_end_of_the_file(w):
    a, f, b, g = w.both()
    a.write(f, b"x" * 100)
    same(a.lock(f, WR, 50, -10), "ok")
    same(b.test(g, WR, 0, 0)[:3], (WR, 40, 10))
    same(a.lock(f, WR, -10, 10, SETLK, os.SEEK_END), "ok")
    same(b.test(g, WR, 60, 0)[:3], (WR, 90, 10))
    same(a.lock(f, WR, -1, 1), "EINVAL")


@case
def fcntl_getlk_names_the_lock_in_the_way(w):
    a, f, b, g = w.both()
    same(b.test(g, WR), "free")
    same(a.lock(f, RD, 10, 5), "ok")
    same(a.lock(f, WR, 30, 0), "ok")
    same(b.test(g, WR)[:3], (RD, 10, 5))
    same(b.test(g, RD)[:3], (WR, 30, 0))
    same(b.test(g, RD, 0, 30), "free")
    same(a.test(f, WR), "free")
    other = w.a()
    found = other.test(other.open(w.name), WR)
    same(found, (RD, 10, 5, a.pid()))


@case
def fcntl_a_hole_in_the_middle_splits(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 100), "ok")
    same(a.lock(f, UN, 40, 20), "ok")
    same(b.test(g, WR)[:3], (WR, 0, 40))
    same(b.test(g, WR, 40, 0)[:3], (WR, 60, 40))
    same(b.lock(g, WR, 40, 20), "ok")
    same(b.lock(g, WR, 39, 1), "EAGAIN")


@case
def fcntl_neighbours_merge(w):
    a, f, b, g = w.both()
    for start in (0, 20, 10):
        same(a.lock(f, WR, start, 10), "ok")
    same(b.test(g, WR)[:3], (WR, 0, 30))
    same(a.lock(f, RD, 5, 20), "ok")
    same(b.test(g, RD)[:3], (WR, 0, 5))
    same(b.test(g, WR, 5, 0)[:3], (RD, 5, 20))
    same(b.test(g, RD, 5, 0)[:3], (WR, 25, 5))


@case
def fcntl_downgrade_lets_readers_in(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    b.begin("lock", g, RD, 0, 0, SETLKW)
    assert b.waits()
    same(a.lock(f, RD), "ok")
    same(b.result(), "ok")


@case
def fcntl_upgrade_waits_for_the_reader(w):
    a, f, b, g = w.both()
    same(a.lock(f, RD), "ok")
    same(b.lock(g, RD), "ok")
    a.begin("lock", f, WR, 0, 0, SETLKW)
    assert a.waits()
    c = w.b()
    same(c.test(c.open(w.name), WR)[0], RD)
    same(b.lock(g, UN), "ok")
    same(a.result(), "ok")
    same(b.lock(g, RD), "EAGAIN")


@case
def fcntl_waits_until_unlocked(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 10, 10), "ok")
    b.begin("lock", g, WR, 0, 15, SETLKW)
    assert b.waits()
    same(a.lock(f, UN, 15, 5), "ok")
    assert b.waits()
    same(a.lock(f, UN, 10, 5), "ok")
    same(b.result(), "ok")


@case
def fcntl_waiters_come_in_order(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    actors = [w.b() if n % 2 else w.a() for n in range(5)]
    fds = [p.open(w.name) for p in actors]
    for p, fd in zip(actors, fds):
        p.begin("lock", fd, WR, 0, 0, SETLKW)
        time.sleep(0.15)
    same(a.lock(f, UN), "ok")
    for n, p in enumerate(actors):
        same(p.result(), "ok")
        assert all(q.waits() for q in actors[n + 1 : n + 2])
        same(p.lock(fds[n], UN), "ok")


@case
def fcntl_fifty_waiting_readers_get_in_together(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    actors = [w.b() if n % 2 else w.a() for n in range(50)]
    for p in actors:
        p.begin("lock", p.open(w.name), RD, 0, 0, SETLKW)
    time.sleep(QUIET)
    assert not any(p.here.poll() for p in actors)
    same(a.lock(f, UN), "ok")
    for p in actors:
        same(p.result(), "ok")


@case
def fcntl_deadlock_of_two(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR, 0, 1), "ok")
    same(b.lock(g, WR, 1, 1), "ok")
    a.begin("lock", f, WR, 1, 1, SETLKW)
    assert a.waits()
    same(b.lock(g, WR, 0, 1, SETLKW), "EDEADLK")
    same(b.lock(g, WR, 0, 1), "EAGAIN")
    same(b.lock(g, UN, 1, 1), "ok")
    same(a.result(), "ok")


@case
def fcntl_deadlock_of_two_upgrades(w):
    a, f, b, g = w.both()
    same(a.lock(f, RD), "ok")
    same(b.lock(g, RD), "ok")
    a.begin("lock", f, WR, 0, 0, SETLKW)
    assert a.waits()
    same(b.lock(g, WR, 0, 0, SETLKW), "EDEADLK")
    b.close(g)
    same(a.result(), "ok")


@case
def fcntl_deadlock_of_three_over_two_files(w):
    actors = [w.a(), w.b(), w.a()]
    here = [p.open(w.name) for p in actors]
    there = [p.open(w.name + ".2") for p in actors]
    same(actors[0].lock(here[0], WR, 0, 1), "ok")
    same(actors[1].lock(there[1], WR, 0, 1), "ok")
    same(actors[2].lock(here[2], WR, 7, 1), "ok")
    actors[0].begin("lock", there[0], WR, 0, 1, SETLKW)
    actors[1].begin("lock", here[1], WR, 7, 1, SETLKW)
    assert actors[0].waits() and actors[1].waits()
    same(actors[2].lock(here[2], WR, 0, 1, SETLKW), "EDEADLK")


@case
def fcntl_close_of_any_descriptor_releases(w):
    a, f, b, g = w.both()
    for other in (
        lambda: a.open(w.name),
        lambda: a.dup(f),
        lambda: a.open(w.name, os.O_RDONLY),
        lambda: a.open(w.name, os.O_WRONLY),
    ):
        same(a.lock(f, WR), "ok")
        same(b.lock(g, WR), "EAGAIN")
        a.close(other())
        same(b.lock(g, WR), "ok")
        same(b.lock(g, UN), "ok")


@case
def fcntl_close_by_another_process_releases_nothing(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    c = w.a()
    c.close(c.open(w.name))
    child = a.fork()
    child.close(f)
    same(b.lock(g, WR), "EAGAIN")


@case
def fcntl_read_lock_of_a_read_only_file_ends_with_close(w):
    a, f, b, g = w.both()
    h = a.open(w.name, os.O_RDONLY)
    same(a.lock(h, WR), "EBADF")
    same(a.lock(h, RD), "ok")
    same(b.lock(g, WR), "EAGAIN")
    a.close(h)
    b.begin("lock", g, WR, 0, 0, SETLKW)
    same(b.result(5), "ok")


@case
def fcntl_a_file_that_was_only_ever_opened_for_reading(w):
    a, b = w.a(), w.b()
    a.close(a.open(w.name))
    f = a.open(w.name, os.O_RDONLY)
    same(a.lock(f, RD), "ok")
    g = b.open(w.name)
    same(b.lock(g, WR), "EAGAIN")
    a.close(f)
    b.begin("lock", g, WR, 0, 0, SETLKW)
    same(b.result(5), "ok")


@case
def fcntl_locks_of_children_of_one_that_only_reads(w):
    a, b = w.a(), w.b()
    a.close(a.open(w.name))
    f = a.open(w.name, os.O_RDONLY)
    child = a.fork()
    same(child.lock(f, RD), "ok")
    g = b.open(w.name)
    same(b.lock(g, WR), "EAGAIN")
    child.begin("quit")
    b.begin("lock", g, WR, 0, 0, SETLKW)
    same(b.result(5), "ok")


@case
def fcntl_end_of_the_process_releases(w):
    for how in ("quit", "kill"):
        a, f, b, g = w.both()
        same(a.lock(f, WR), "ok")
        b.begin("lock", g, WR, 0, 0, SETLKW)
        assert b.waits()
        if how == "quit":
            a.begin("quit")
        else:
            a.kill()
        same(b.result(5), "ok")
        b.close(g)


@case
def fcntl_locks_are_not_inherited(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    child = a.fork()
    same(child.lock(f, WR), "EAGAIN")
    same(child.test(f, WR)[3], a.pid())


@case
def a_killed_waiter_leaves_the_queue(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    c = w.a()
    b.begin("lock", g, WR, 0, 0, SETLKW)
    assert b.waits()
    c.begin("lock", c.open(w.name), WR, 0, 0, SETLKW)
    assert c.waits()
    started = time.time()
    b.kill()
    b.child.join(5)
    assert b.child.exitcode is not None and time.time() - started < 2, "it is still there"
    time.sleep(0.2)
    same(a.lock(f, UN), "ok")
    same(c.result(5), "ok")


def interrupted(w, wait, give_up, busy):
    a, f, b, g = w.both()
    same(wait(a, f, False), "ok")
    b.alarm(0.5, False)
    started = time.time()
    same(wait(b, g, True), "EINTR")
    assert 0.4 < time.time() - started < 3, "not at the signal"
    same(give_up(a, f), "ok")
    c = w.a()
    same(busy(c, c.open(w.name)), "ok")


@case
def fcntl_a_signal_interrupts_waiting(w):
    interrupted(
        w,
        lambda p, fd, wait: p.lock(fd, WR, 0, 0, SETLKW if wait else SETLK),
        lambda p, fd: p.lock(fd, UN),
        lambda p, fd: p.lock(fd, WR),
    )


@case
def ofd_a_signal_interrupts_waiting(w):
    interrupted(
        w,
        lambda p, fd, wait: p.lock(fd, WR, 0, 0, OFD_SETLKW if wait else OFD_SETLK),
        lambda p, fd: p.lock(fd, UN, 0, 0, OFD_SETLK),
        lambda p, fd: p.lock(fd, WR, 0, 0, OFD_SETLK),
    )


@case
def flock_a_signal_interrupts_waiting(w):
    interrupted(
        w,
        lambda p, fd, wait: p.flock(fd, EX if wait else EX | NB),
        lambda p, fd: p.flock(fd, LOCK_UN),
        lambda p, fd: p.flock(fd, EX | NB),
    )


@case
def a_signal_with_restart_goes_on_waiting(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    b.alarm(0.3, True)
    b.begin("lock", g, WR, 0, 0, SETLKW)
    time.sleep(1)
    assert b.waits()
    same(a.lock(f, UN), "ok")
    same(b.result(5), "ok")
    same(a.lock(f, WR), "EAGAIN")


@case
def a_stopped_waiter_goes_on_waiting(w):
    a, f, b, g = w.both()
    same(a.lock(f, WR), "ok")
    b.begin("lock", g, WR, 0, 0, SETLKW)
    assert b.waits()
    b.kill(signal.SIGSTOP)
    time.sleep(0.5)
    b.kill(signal.SIGCONT)
    assert b.waits()
    same(a.lock(f, UN), "ok")
    same(b.result(5), "ok")
