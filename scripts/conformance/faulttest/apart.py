"""A client that sleeps or is cut off while others go on."""

import os
import subprocess
import time

from .agent import Agent, Wrong

OLD, NEW = b"o" * 4096, b"n" * 4096
UNSYNCED, NEWER = b"unsynced" * 512, b"newer..." * 512
# A daemon that has slept takes the kernel's caches away when it wakes; what the kernel answers before it had a chance to is
# counted and shown. A client that is only cut off has no such excuse.
WAKING_SECONDS = float(os.environ.get("FAULTS_WAKING_SECONDS", "0.5"))
# How much later than the term others may get on: a poll's interval, and a machine that is busy.
MARGIN_SECONDS = 5.0


def shell(command):
    subprocess.run(command, shell=True, check=True, timeout=60)


def prepare(root):
    os.mkdir(root)
    os.mkdir(f"{root}/list")
    for name in ("a", "b", "c"):
        store(f"{root}/list/{name}", b"x")
    store(f"{root}/small", OLD)
    store(f"{root}/big", OLD * 64)
    store(f"{root}/dirty", b".......\n" * 512)
    store(f"{root}/alone", b"")
    os.chmod(f"{root}/small", 0o600)
    os.setxattr(f"{root}/small", "user.it", b"old")
    fd = os.open(root, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def store(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)


def change_everything(root):
    """By the other mount. Returns whether it found what the first one had not synced."""
    fd = os.open(f"{root}/dirty", os.O_RDWR)
    was_sent = os.pread(fd, 4096, 0) == UNSYNCED
    os.pwrite(fd, NEWER, 0)
    os.fsync(fd)
    os.close(fd)
    store(f"{root}/small", NEW + b"longer")
    os.chmod(f"{root}/small", 0o640)
    os.setxattr(f"{root}/small", "user.it", b"new")
    fd = os.open(f"{root}/big", os.O_RDWR)
    os.pwrite(fd, NEW * 64, 0)
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{root}/list/a", f"{root}/list/z")
    os.unlink(f"{root}/list/b")
    store(f"{root}/list/new", b"new")
    os.mkdir(f"{root}/appeared")
    return was_sent


class Look:
    """One way to look at what is changed, by an agent of its own on the first mount."""

    def __init__(self, what, old, new, call, *arguments, key=None, path=None):
        self.what, self.old, self.new, self.call, self.arguments = what, old, new, call, arguments
        self.agent = Agent()
        if key:
            self.agent.call("open", key, path)
        if call == "mapped":
            self.agent.call("map", key)
        for _ in range(3):
            got = self.agent.call(call, *arguments)
            if got != old:
                raise Wrong(f"{what}: {str(got)[:60]} before anything was changed")

    def begin(self):
        self.agent.start(self.call, *self.arguments)

    def judge(self, seconds):
        """(when called, when returned, "old", "new" or an error's name)"""
        called, returned, (kind, value) = self.agent.result(seconds)
        if kind == "error":
            return called, returned, os.strerror(value)
        if value == self.new:
            return called, returned, "new"
        if value == self.old:
            return called, returned, "old"
        raise Wrong(f"{self.what}: neither old nor new: {str(value)[:80]}")


def looks(root):
    found = [
        Look("open and read", OLD, NEW, "read", f"{root}/small"),
        Look("open and read, large", OLD, NEW, "read", f"{root}/big"),
        Look("read of an open file", OLD, NEW, "pread", "k", key="k", path=f"{root}/small"),
        Look("read of a large open file", OLD, NEW, "pread", "k", key="k", path=f"{root}/big"),
        Look("stat", (4096, 0o600), (4102, 0o640), "stat", f"{root}/small"),
        Look("fstat", 4096, 4102, "fstat", "k", key="k", path=f"{root}/small"),
        Look("listing", ["a", "b", "c"], ["c", "new", "z"], "list", f"{root}/list"),
        Look("a name that is removed", True, False, "exists", f"{root}/list/b"),
        Look("a name that appears", False, True, "exists", f"{root}/appeared"),
        Look("getxattr", b"old", b"new", "getxattr", f"{root}/small"),
    ]
    if os.environ.get("FAULTS_MMAP"):
        found.append(Look("a mapping", OLD, NEW, "mapped", "k", key="k", path=f"{root}/big"))
    return found


def longer(kind, mount1, mount2, term, stop, resume, join=None):
    try:
        return apart(kind, mount1, mount2, float(term), stop, resume, join)
    finally:
        Agent.end_all()


def apart(kind, mount1, mount2, term, stop, resume, join):
    name = f"apart-{kind}{'-alone' if join else ''}"
    here, there = f"{mount1}/{name}", f"{mount2}/{name}"
    prepare(here)
    views = looks(here)
    writer = Agent()
    writer.call("open", "dirty", f"{here}/dirty")
    writer.call("open", "alone", f"{here}/alone")
    writer.call("pwrite", "dirty", UNSYNCED)
    writer.call("pwrite", "alone", UNSYNCED)
    shell(stop)
    stopped = time.monotonic()
    try:
        if join:
            shell(join)
        other = Agent()
        other.start("do", change_everything, there)
        _, returned, (outcome, was_sent) = other.result(term + MARGIN_SECONDS + 60)
        if outcome != "ok":
            raise Wrong(f"the other mount fails: {os.strerror(was_sent)}")
        waited = returned - stopped
        if waited > term + MARGIN_SECONDS:
            raise Wrong(f"the other mount got on after {waited:.1f} seconds only; the term is {term:.0f}")
        # Whatever is asked from now on must not be answered with what was.
        for view in views:
            view.begin()
        time.sleep(max(1.0, stopped + term + 1 - time.monotonic()))
        from_cache = []
        for view in views:
            if view.agent.answered():
                _, _, what = view.judge(0)
                if what == "old":
                    from_cache.append(view.what)
                view.begin()
        if from_cache and kind == "cut":
            raise Wrong(f"while cut off, after the other mount had changed it, the old state is shown by {', '.join(from_cache)}")
    finally:
        shell(resume)
        resumed = time.monotonic()
    last_old = watch(views, kind, resumed)
    told = lost_is_told(writer, other, there, was_sent)
    agree(views, writer, other, here, there)
    print(f"the other went on after {waited:.1f} s; shown from the kernel's cache while asleep: {', '.join(from_cache) or 'nothing'}; "
          f"last old answer {last_old * 1000:.0f} ms after waking; {told}")


def watch(views, kind, resumed):
    """Looks in all ways, over and over, for a while. Returns how long the last old answer came after the resumption."""
    grace = WAKING_SECONDS if kind == "asleep" else 0.0
    last_old = 0.0
    new_seen = set()
    errors = {}
    while time.monotonic() < resumed + 3 or len(new_seen | set(errors)) < len(views):
        for view in views:
            if view.agent.waiting is None:
                view.begin()
            if not view.agent.answered(0.01):
                if time.monotonic() > resumed + 40:
                    raise Wrong(f"{view.what}: no answer 40 seconds after the resumption")
                continue
            called, returned, what = view.judge(0)
            if what == "old":
                last_old = max(last_old, returned - resumed)
                if called - resumed > grace or (kind == "cut"):
                    raise Wrong(f"{view.what}: shows the old state, {called - resumed:.3f} s after the resumption")
                if view.what in new_seen:
                    raise Wrong(f"{view.what}: shows the old state after it has shown the new one")
            elif what == "new":
                new_seen.add(view.what)
            else:
                errors[view.what] = what
    # A file that was open may be lost with the session. A path never is.
    for what, error in errors.items():
        if "open file" not in what and what not in ("fstat", "a mapping") and what not in new_seen:
            raise Wrong(f"{what}: {error}")
    for view in views:
        if view.agent.waiting is not None:
            view.judge(30)
    return last_old


def lost_is_told(writer, other, there, was_sent):
    """What was not synced is there, or the program hears of it."""
    alone = other.call("read", f"{there}/alone")
    outcomes = {}
    for key in ("dirty", "alone"):
        sync = writer.outcome(60, "fsync", key)
        close = writer.outcome(60, "close", key)
        outcomes[key] = sync[0] == "error" or close[0] == "error"
        for kind, value in (sync, close):
            if kind == "error" and value != 5:
                raise Wrong(f"{key}: what was lost is reported as {os.strerror(value)}, not as EIO")
    if not was_sent and not outcomes["dirty"]:
        raise Wrong("dirty: the write was lost, and neither fsync nor close said so")
    after = other.call("read", f"{there}/alone")
    if after != UNSYNCED and not outcomes["alone"]:
        raise Wrong("alone: the write was lost, and neither fsync nor close said so")
    if alone not in (b"", UNSYNCED):
        raise Wrong(f"alone: {alone[:40]!r}")
    return f"writes that were not synced: {'arrived' if was_sent else 'lost and reported'}"


def agree(views, writer, other, here, there):
    """Both mounts show the new state, also after everything has been sent; and both work."""
    for wait in (0, 1.5):
        time.sleep(wait)
        for root, agent in ((here, writer), (there, other)):
            for path, want in (("dirty", NEWER), ("small", NEW), ("big", NEW)):
                got = agent.call("read", f"{root}/{path}")
                if got != want:
                    raise Wrong(f"{root}/{path}: {got[:16]!r}, not {want[:16]!r}")
            for view in views:
                if view.call == "list" and agent.call("list", f"{root}/list") != view.new:
                    raise Wrong(f"{root}/list: not {view.new}")
    writer.call("store", f"{here}/after1", b"1")
    other.call("store", f"{there}/after2", b"2")
    if (other.call("read", f"{there}/after1"), writer.call("read", f"{here}/after2")) != (b"1", b"2"):
        raise Wrong("the mounts do not see each other afterwards")


def steady(root, stop_at):
    """Writes, syncs and reads back until then. Returns (steps, longest pause)."""
    os.mkdir(root)
    fd = os.open(f"{root}/file", os.O_RDWR | os.O_CREAT, 0o644)
    step = 0
    longest = 0.0
    before = time.monotonic()
    while time.monotonic() < stop_at:
        data = b"%016d" % step * 256
        os.pwrite(fd, data, step % 50 * 4096)
        if step % 5 == 0:
            os.fsync(fd)
        if os.pread(fd, 4096, step % 50 * 4096) != data:
            raise RuntimeError(f"step {step}: what was written is not what is read")
        os.close(os.open(f"{root}/n{step % 20}-{step}", os.O_CREAT | os.O_EXCL))
        if step >= 20:
            os.unlink(f"{root}/n{step % 20}-{step - 20}")
        step += 1
        now = time.monotonic()
        longest = max(longest, now - before)
        before = now
    os.fsync(fd)
    os.close(fd)
    return step, longest


def shorter(mount1, mount2, seconds, stop, resume):
    try:
        seconds = float(seconds)
        agents = [Agent(), Agent()]
        stop_at = time.monotonic() + seconds + 4
        for agent, mount in zip(agents, (mount1, mount2)):
            agent.start("do", steady, f"{mount}/pause-{os.path.basename(mount)}", stop_at)
        time.sleep(1)
        shell(stop)
        try:
            time.sleep(seconds)
        finally:
            shell(resume)
        told = []
        for agent in agents:
            _, _, (kind, value) = agent.result(60)
            if kind != "ok":
                raise Wrong(f"a program has failed: {os.strerror(value)}")
            told.append(value)
        for mount in (mount1, mount2):
            for other in (mount1, mount2):
                here = f"{mount}/pause-{os.path.basename(other)}"
                steps = told[0 if other == mount1 else 1][0]
                with open(f"{here}/file", "rb") as file:
                    data = file.read()
                for slot in range(min(50, steps)):
                    step = (steps - 1 - slot) // 50 * 50 + slot
                    if data[slot * 4096 : (slot + 1) * 4096] != b"%016d" % step * 256:
                        raise Wrong(f"{here}: the bytes of step {step} are wrong")
                if len(os.listdir(here)) != min(20, steps) + 1:
                    raise Wrong(f"{here}: {len(os.listdir(here))} names")
        print("; ".join(f"mount {i}: {steps} steps, longest pause {pause:.1f} s" for i, (steps, pause) in enumerate(told, 1)))
    finally:
        Agent.end_all()
