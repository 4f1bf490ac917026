"""Chooses operations. What exists is followed roughly, so that most of them find something to act on."""

import os
import random
import stat
import struct

NAMES = ["a", "b", "c", "d", "e", "f"]
SLOTS = 8
OTHER_USER = 65534
USERS = [0] * 6 + [OTHER_USER]
MODES = [0o644, 0o600, 0o755, 0o777, 0o000, 0o444, 0o4755, 0o2755, 0o1777, 0o2775, 0o6777, 0o111]
XATTRS = ["user.one", "user.two", "user.three", "trusted.four"]
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
FALLOCATE_MODES = [
    0,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
    FALLOC_ZERO_RANGE,
    FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,  # without keep-size: refused by the kernel
]
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
# Where layouts change: pages, the limit of what lies in an inode, chunks.
EDGES = [0, 1, 4095, 4096, 16383, 16384, 16385, 65536, 131072, 1 << 20, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 8 << 20]


def acl(rng):
    """A POSIX ACL as the kernel takes it: owner, a user, group, mask, others."""
    entries = [(0x01, rng.randrange(8), 0xFFFFFFFF), (0x02, rng.randrange(8), OTHER_USER), (0x04, rng.randrange(8), 0xFFFFFFFF),
               (0x10, rng.randrange(8), 0xFFFFFFFF), (0x20, rng.randrange(8), 0xFFFFFFFF)]
    return (struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)).hex()


class Generator:
    """Draws operations from a seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.known = []
        self.open_slots = []

    def learn(self, names):
        """What exists now, told now and then by the judge."""
        self.known = sorted(names)

    def learn_slots(self, slots):
        """Which slots are open."""
        self.open_slots = sorted(slots)

    def slot(self):
        if self.open_slots and self.rng.random() < 0.95:
            return self.rng.choice(self.open_slots)
        return self.rng.randrange(SLOTS)

    def name(self):
        rng = self.rng
        if self.known and rng.random() < 0.75:
            base = rng.choice(self.known)
            if rng.random() < 0.25:
                base += "/" + rng.choice(NAMES)
        else:
            base = "/".join(rng.choice(NAMES) for _ in range(rng.choice([1, 1, 1, 2, 2, 3])))
        if rng.random() < 0.01:
            base += rng.choice(["/", "/.", "/..", "/" + "n" * 255, "/" + "n" * 256])
        return base

    def offset(self):
        rng = self.rng
        kind = rng.random()
        if kind < 0.55:
            return rng.randrange(40_000)
        if kind < 0.8:
            return max(0, rng.choice(EDGES) + rng.randrange(-2, 3))
        if kind < 0.995:
            return rng.randrange(9 << 20)
        return 1 << 40

    def length(self):
        rng = self.rng
        return rng.choice([0, 1, 10, 511, 4096, rng.randrange(20_000), rng.randrange(20_000), rng.randrange(200_000)])

    def time(self):
        rng = self.rng
        return rng.randrange(-(2**31) + 1, 2**33) * 10**9 + rng.choice([0, 1, 999_999_999, rng.randrange(10**9)])

    def flags(self):
        rng = self.rng
        flags = rng.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR])
        for flag, chance in ((os.O_CREAT, 0.6), (os.O_EXCL, 0.1), (os.O_TRUNC, 0.15), (os.O_APPEND, 0.2), (os.O_NOFOLLOW, 0.05),
                             (os.O_DIRECTORY, 0.03), (os.O_DSYNC, 0.02)):
            if rng.random() < chance:
                flags |= flag
        # O_CREAT with O_DIRECTORY is refused by newer kernels and meant something else to older ones.
        return flags & ~os.O_CREAT if flags & os.O_DIRECTORY else flags

    def draw(self):
        """(name, user, arguments...)"""
        kind = self.rng.choices(KINDS, WEIGHTS)[0]
        return [kind, self.rng.choice(USERS), *DRAW[kind](self, self.rng)]


def seed(rng):
    return rng.randrange(1 << 32)


def owner(rng):
    return rng.choice([-1, 0, OTHER_USER, 4_000_000_000])


DRAW_AND_WEIGHT = {
    "open": (14, lambda g, r: (r.randrange(SLOTS), g.name(), g.flags(), r.choice(MODES))),
    "close": (2, lambda g, r: (g.slot(),)),
    "read": (4, lambda g, r: (g.slot(), g.length())),
    "write": (8, lambda g, r: (g.slot(), seed(r), g.length())),
    "pread": (5, lambda g, r: (g.slot(), g.offset(), g.length())),
    "pwrite": (10, lambda g, r: (g.slot(), g.offset(), seed(r), g.length())),
    "writev": (1, lambda g, r: (g.slot(), seed(r), [g.length() for _ in range(3)])),
    "seek": (3, lambda g, r: (g.slot(), r.choice([0, 10, -10, g.offset()]), r.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))),
    "holes": (2, lambda g, r: (g.slot(),)),
    "ftruncate": (4, lambda g, r: (g.slot(), g.offset())),
    "fallocate": (5, lambda g, r: (g.slot(), r.choice(FALLOCATE_MODES), min(g.offset(), 12 << 20), g.length())),
    "fsync": (0.5, lambda g, r: (g.slot(),)),
    "fdatasync": (0.5, lambda g, r: (g.slot(),)),
    "fstat": (4, lambda g, r: (g.slot(),)),
    "fchmod": (1, lambda g, r: (g.slot(), r.choice(MODES))),
    "fchown": (1, lambda g, r: (g.slot(), owner(r), owner(r))),
    "futimens": (1, lambda g, r: (g.slot(), g.time(), g.time())),
    "copy": (3, lambda g, r: (g.slot(), g.offset(), g.slot(), g.offset(), g.length())),
    "sendfile": (1, lambda g, r: (g.slot(), g.slot(), g.offset(), g.length())),
    "map_read": (2, lambda g, r: (g.slot(), g.offset(), g.length())),
    "map_write": (3, lambda g, r: (g.slot(), g.offset(), seed(r), g.length())),
    "stat": (3, lambda g, r: (g.name(),)),
    "lstat": (3, lambda g, r: (g.name(),)),
    "access": (1, lambda g, r: (g.name(), r.randrange(8))),
    "truncate": (2, lambda g, r: (g.name(), g.offset())),
    "unlink": (4, lambda g, r: (g.name(),)),
    "mkdir": (5, lambda g, r: (g.name(), r.choice(MODES))),
    "rmdir": (2, lambda g, r: (g.name(),)),
    "mknod": (1, lambda g, r: (g.name(), r.choice(MODES) | r.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR]),
                               os.makedev(1, 3))),
    "symlink": (2, lambda g, r: (r.choice(["a", "b", ".", "./c", "c/d", "d/../e", "x" * 300]), g.name())),
    "readlink": (1, lambda g, r: (g.name(),)),
    "link": (4, lambda g, r: (g.name(), g.name())),
    "rename": (7, lambda g, r: (g.name(), g.name(), r.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))),
    "chmod": (3, lambda g, r: (g.name(), r.choice(MODES))),
    "chown": (3, lambda g, r: (g.name(), owner(r), owner(r), r.random() < 0.5)),
    "utimens": (2, lambda g, r: (g.name(), g.time(), g.time(), r.random() < 0.5)),
    "setxattr": (3, lambda g, r: (g.name(), r.choice(XATTRS), r.randbytes(r.choice([0, 1, 20, 200])).hex(), r.choice([0, 0, 1, 2]),
                                  r.random() < 0.5)),
    "setacl": (1.5, lambda g, r: (g.name(), r.choice(["system.posix_acl_access", "system.posix_acl_default"]), acl(r), 0, True)),
    "getxattr": (2, lambda g, r: (g.name(), r.choice([*XATTRS, "system.posix_acl_access", "system.posix_acl_default"]),
                                  r.random() < 0.5)),
    "removexattr": (1, lambda g, r: (g.name(), r.choice([*XATTRS, "system.posix_acl_access", "system.posix_acl_default"]), True)),
    "listxattr": (1, lambda g, r: (g.name(), r.random() < 0.5)),
    "listdir": (3, lambda g, r: (r.choice([".", g.name()]),)),
}
KINDS = list(DRAW_AND_WEIGHT)
WEIGHTS = [weight for weight, _ in DRAW_AND_WEIGHT.values()]
DRAW = {kind: draw for kind, (_, draw) in DRAW_AND_WEIGHT.items()}
