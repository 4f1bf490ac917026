"""Kinds of changes that show in names: what is there, under which name, and what a directory lists."""

import os
import random

from .files import load, store
from .processes import Wrong
from .rounds import Kind, same


def gone(what, call, *arguments):
    try:
        got = call(*arguments)
    except FileNotFoundError:
        return
    raise Wrong(f"{what}: there is {got!r}, which should be gone")


class Create(Kind):
    """Names that were looked for in vain before."""

    SPAN = 50

    def name(self, n):
        # Directories are kept small; each is made in its first round.
        return self.path(f"d{n // self.SPAN}/n{n}")

    def write(self, n):
        if n % self.SPAN == 0:
            os.mkdir(os.path.dirname(self.name(n)))
        kind = n % 4
        if kind == 0:
            os.mkdir(self.name(n))
        elif kind == 1:
            os.mkfifo(self.name(n))
        else:
            os.close(os.open(self.name(n), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return os.lstat(self.name(n)).st_ino

    def refused(self, n, _):
        try:
            os.mkdir(self.name(n))
        except FileExistsError:
            return
        raise Wrong("a name could be made twice")

    def listed(self, n, _):
        name = self.name(n)
        same("that it is listed", os.path.basename(name) in os.listdir(os.path.dirname(name)), True)

    def opened(self, n, ino):
        fd = os.open(self.name(n), os.O_RDONLY | os.O_NONBLOCK)
        got = os.fstat(fd).st_ino
        os.close(fd)
        same("what was opened", got, ino)

    def views(self, n):
        return [
            lambda n, ino: same("the inode by stat", os.lstat(self.name(n)).st_ino, ino),
            self.opened,
            self.listed,
            self.refused,
            lambda n, _: same("access", os.access(self.name(n), os.F_OK), True),
        ]

    def seen(self, n):
        # What is not there yet is known not to be there.
        gone("the next name", os.lstat, self.name(n + 1))
        gone("the next name", os.open, self.name(n + 1), os.O_RDONLY)


class Unlink(Kind):
    """Names that go; who has the file open may go on using it."""

    def prepare(self):
        self.make(0)

    def make(self, n):
        if n % 5 == 4:
            os.mkdir(self.path(f"n{n}"))
        else:
            store(self.path(f"n{n}"), b"%08d" % n * (1 if n % 2 else 4000))

    def begin(self):
        self.seen(-1)

    def write(self, n):
        if n % 5 == 4:
            os.rmdir(self.path(f"n{n}"))
        else:
            os.unlink(self.path(f"n{n}"))
        self.make(n + 1)

    def listed(self, n, _):
        same("the listing", os.listdir(self.root), [f"n{n + 1}"])

    def still_open(self, n, _):
        same("the link count of an open file", os.fstat(self.fd).st_nlink, 0)
        if n % 5 != 4:
            same("the bytes of an open file", os.pread(self.fd, 8, 0), b"%08d" % n)

    def views(self, n):
        name = self.path(f"n{n}")
        return [
            lambda *_: gone("stat", os.lstat, name),
            lambda *_: gone("open", os.open, name, os.O_RDONLY),
            self.listed,
            self.still_open,
        ]

    def seen(self, n):
        if n >= 0:
            os.close(self.fd)
        self.fd = os.open(self.path(f"n{n + 1}"), os.O_RDONLY)


class Rename(Kind):
    """A file and a directory that get new names."""

    def prepare(self):
        store(self.path("n0"), b"content")
        os.mkdir(self.path("d0"))
        store(self.path("d0/inside"), b"inside")

    def begin(self):
        self.ino = os.stat(self.path("n0")).st_ino
        self.fd = os.open(self.path("d0"), os.O_RDONLY)

    def write(self, n):
        os.rename(self.path(f"n{n}"), self.path(f"n{n + 1}"))
        os.rename(self.path(f"d{n}"), self.path(f"d{n + 1}"))

    def views(self, n):
        old, new = self.path(f"n{n}"), self.path(f"n{n + 1}")
        return [
            lambda *_: gone("stat of the old name", os.stat, old),
            lambda *_: gone("open of the old name", os.open, old, os.O_RDONLY),
            lambda *_: gone("stat below the old name", os.stat, self.path(f"d{n}/inside")),
            lambda *_: same("what has the new name", os.stat(new).st_ino, self.ino),
            lambda *_: same("the bytes under the new name", load(new), b"content"),
            lambda *_: same("the bytes below the new name", load(self.path(f"d{n + 1}/inside")), b"inside"),
            lambda *_: same("the listing", sorted(os.listdir(self.root)), [f"d{n + 1}", f"n{n + 1}"]),
            lambda *_: same("the listing of an open directory", os.listdir(self.fd), ["inside"]),
        ]


class RenameOver(Kind):
    """A file put in the place of another, which lives on for those who have it open."""

    def prepare(self):
        store(self.path("file"), self.data(-1))

    def data(self, n):
        return b"%08d" % n * (n % 4 * 1000 + 1)

    def begin(self):
        self.seen(None)

    def write(self, n):
        store(self.path("new"), self.data(n))
        os.rename(self.path("new"), self.path("file"))
        return os.stat(self.path("file")).st_ino

    def old(self, n, _):
        same("the link count of the old file", os.fstat(self.fd).st_nlink, 0)
        same("the bytes of the old file", os.pread(self.fd, 1 << 20, 0), self.data(n - 1))

    def views(self, n):
        return [
            lambda n, _: same("the bytes", load(self.path("file")), self.data(n)),
            lambda _, ino: same("the inode by stat", os.stat(self.path("file")).st_ino, ino),
            lambda n, _: same("the size by stat", os.stat(self.path("file")).st_size, len(self.data(n))),
            lambda *_: gone("stat of the name that it had", os.stat, self.path("new")),
            self.old,
        ]

    def seen(self, n):
        if n is not None:
            os.close(self.fd)
        self.fd = os.open(self.path("file"), os.O_RDONLY)


class Listing(Kind):
    """Random changes in a directory, and all of what it lists."""

    def begin(self):
        self.model = {}
        self.fd = os.open(self.root, os.O_RDONLY)

    def plan(self, n):
        rng = random.Random(n)
        there = sorted(self.model)
        some = ["file", "file", "directory", "remove", "rename", "over"]
        what = rng.choice(some if len(there) < 30 else ["remove", "over"]) if there else "file"
        return what, f"n{n}-{'x' * rng.randrange(60)}", rng.choice(there) if there else None, rng.choice(there) if there else None

    def write(self, n):
        what, new, some, other = self.plan(n)
        if what == "file":
            store(self.path(new), b"x" * (n % 100))
        elif what == "directory":
            os.mkdir(self.path(new))
        elif what == "remove":
            (os.rmdir if self.model[some] is None else os.unlink)(self.path(some))
        elif what == "rename" or self.model[some] != self.model[other]:
            os.rename(self.path(some), self.path(new))
        else:
            os.rename(self.path(some), self.path(other))

    def expect(self, n, _):
        # Of a file its size, of a directory nothing.
        what, new, some, other = self.plan(n)
        model = self.model
        if what == "file":
            model[new] = n % 100
        elif what == "directory":
            model[new] = None
        elif what == "remove":
            del model[some]
        elif what == "rename" or model[some] != model[other]:
            model[new] = model.pop(some)
        elif some != other:
            model[other] = model.pop(some)

    def with_attributes(self, *_):
        got = {}
        with os.scandir(self.root) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                same("the inode number in the listing", entry.inode(), stat.st_ino)
                got[entry.name] = None if entry.is_dir(follow_symlinks=False) else stat.st_size
        same("the listing with sizes", sorted(got.items()), sorted(self.model.items()))

    def views(self, n):
        return [
            lambda *_: same("the listing", sorted(os.listdir(self.root)), sorted(self.model)),
            lambda *_: same("the listing of an open directory", sorted(os.listdir(self.fd)), sorted(self.model)),
            self.with_attributes,
        ]


class Symlink(Kind):
    """A symbolic link that leads elsewhere from now on."""

    TARGETS = 5

    def prepare(self):
        for i in range(self.TARGETS):
            store(self.path(f"target{i}"), b"x" * i)
        os.symlink("target0", self.path("link"))

    def write(self, n):
        if n % 2:
            os.unlink(self.path("link"))
            os.symlink(f"target{n % self.TARGETS}", self.path("link"))
        else:
            os.symlink(f"target{n % self.TARGETS}", self.path("new"))
            os.rename(self.path("new"), self.path("link"))

    def views(self, n):
        return [
            lambda n, _: same("the link", os.readlink(self.path("link")), f"target{n % self.TARGETS}"),
            lambda n, _: same("the size behind the link", os.stat(self.path("link")).st_size, n % self.TARGETS),
            lambda n, _: same("the bytes behind the link", len(load(self.path("link"))), n % self.TARGETS),
        ]


class Links(Kind):
    """A file that gains and loses names."""

    COUNTS = [2, 3, 4, 3, 2, 1]

    def prepare(self):
        store(self.path("file"), b"content")

    def begin(self):
        self.fd = os.open(self.path("file"), os.O_RDONLY)

    def write(self, n):
        at = n % 6
        if at < 3:
            os.link(self.path("file"), self.path(f"link{at}"))
        else:
            os.unlink(self.path(f"link{5 - at}"))

    def views(self, n):
        want = self.COUNTS[n % 6]
        return [
            lambda *_: same("the link count by stat", os.stat(self.path("file")).st_nlink, want),
            lambda *_: same("the link count by fstat", os.fstat(self.fd).st_nlink, want),
            lambda *_: same("the names", len(os.listdir(self.root)), want),
            lambda *_: same("the names that can be found", sum(os.path.exists(self.path(f"link{i}")) for i in range(3)), want - 1),
        ]


class Publish(Kind):
    """A new file of any length, written and closed, and read at once by the others; then a tree, made and removed."""

    def data(self, n):
        rng = random.Random(n)
        return rng.randbytes(rng.choice([rng.randrange(100), rng.randrange(16_000), rng.randrange(100_000)]))

    def write(self, n):
        if n % 8 == 7:
            for i in range(n - 7, n):
                os.unlink(self.path(f"t{i}/below/file"))
                os.rmdir(self.path(f"t{i}/below"))
                os.rmdir(self.path(f"t{i}"))
            return
        os.makedirs(self.path(f"t{n}/below"))
        store(self.path(f"t{n}/below/file"), self.data(n))

    def views(self, n):
        if n % 8 == 7:
            return [
                lambda *_: same("the listing", os.listdir(self.root), []),
                lambda *_: gone("a file in a removed tree", os.stat, self.path(f"t{n - 1}/below/file")),
            ]
        return [
            lambda *_: same("the bytes", load(self.path(f"t{n}/below/file")), self.data(n)),
            lambda *_: same("the size", os.stat(self.path(f"t{n}/below/file")).st_size, len(self.data(n))),
        ]


KINDS = {
    "create": Create,
    "unlink": Unlink,
    "rename": Rename,
    "rename-over": RenameOver,
    "listing": Listing,
    "symlink": Symlink,
    "links": Links,
    "publish": Publish,
}
