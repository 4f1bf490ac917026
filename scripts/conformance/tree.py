"""Makes, changes and compares trees that have everything a tree can have.

tree.py make DIRECTORY USER USER | tree.py change DIRECTORY | tree.py compare DIRECTORY DIRECTORY [LEFT-OUT...]
"""

import hashlib
import os
import random
import stat
import subprocess
import sys

SPARSE_BYTES = 8 << 20
# Times worth carrying: nanoseconds, before 1970, after 2038.
TIMES_NS = [1_700_000_000_123_456_789, 1, 999_999_999, -86_400_000_000_001, 4_102_444_800_000_000_007]


def write(path, data, mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def setfacl(path, *rules):
    subprocess.run(["setfacl", *(part for rule in rules for part in ("-m", rule)), path], check=True)


def make(root, user, other):
    rng = random.Random(42)
    os.makedirs(root)
    for directory in range(12):
        base = f"{root}/d{directory}/deep/er"
        os.makedirs(base)
        for i in range(40):
            size = rng.choice([0, 1, 100, 4095, 4096, 4097, 16384, 16385, 70_000, 300_000])
            write(f"{base}/f{i}", rng.randbytes(size), rng.choice([0o644, 0o600, 0o755, 0o444, 0o000]))
    write(f"{root}/large", rng.randbytes((9 << 20) + 17))
    for name in ("spaces and\nnewline", "ünïcödé", "-dash", "x" * 255, "back\\slash", "*?[]"):
        write(f"{root}/{name}", name.encode())
    write(os.fsencode(root) + b"/not-utf8-\xff\xfe", b"bytes")

    # Holes: at the start, in the middle, at the end, and nothing but a hole.
    for name, places in (("hole-front", [SPARSE_BYTES - 10]), ("hole-middle", [0, SPARSE_BYTES // 2]), ("hole-all", [])):
        with open(f"{root}/{name}", "wb") as file:
            for place in places:
                file.seek(place)
                file.write(b"data here!")
            file.truncate(SPARSE_BYTES)

    os.makedirs(f"{root}/links")
    for i in range(5):
        os.link(f"{root}/d{i}/deep/er/f{i}", f"{root}/links/hard{i}")
        os.link(f"{root}/d{i}/deep/er/f{i}", f"{root}/links/hard{i}-again")
    os.symlink("../large", f"{root}/links/relative")
    os.symlink("/nowhere/at/all", f"{root}/links/dangling")
    os.symlink("t" * 4000, f"{root}/links/long")
    os.link(f"{root}/links/dangling", f"{root}/links/dangling-hard", follow_symlinks=False)

    os.makedirs(f"{root}/special")
    os.mkfifo(f"{root}/special/fifo", 0o620)
    os.mknod(f"{root}/special/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(f"{root}/special/char", 0o640 | stat.S_IFCHR, os.makedev(4095, 1048575))
    os.mknod(f"{root}/special/block", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
    os.mknod(f"{root}/special/socket", 0o755 | stat.S_IFSOCK)

    os.makedirs(f"{root}/owners")
    from pwd import getpwnam

    first, second = getpwnam(user), getpwnam(other)
    for i, (uid, gid, mode) in enumerate(
        [(first.pw_uid, first.pw_gid, 0o4755), (second.pw_uid, first.pw_gid, 0o2755), (0, second.pw_gid, 0o6711),
         (4_000_000_000, 4_000_000_001, 0o640)]
    ):
        write(f"{root}/owners/o{i}", b"owned")
        os.chown(f"{root}/owners/o{i}", uid, gid)
        os.chmod(f"{root}/owners/o{i}", mode)
    os.symlink("o0", f"{root}/owners/link")
    os.chown(f"{root}/owners/link", first.pw_uid, second.pw_gid, follow_symlinks=False)
    for name, mode in (("sticky", 0o1777), ("setgid", 0o2775), ("closed", 0o000)):
        os.makedirs(f"{root}/owners/{name}")
        os.chmod(f"{root}/owners/{name}", mode)

    os.makedirs(f"{root}/acl/default")
    write(f"{root}/acl/file", b"acl")
    write(f"{root}/acl/mask", b"acl")
    setfacl(f"{root}/acl/file", f"u:{user}:rw", f"g:{other}:r", f"u:{other}:-")
    setfacl(f"{root}/acl/mask", f"u:{user}:rwx", "m::r")
    setfacl(f"{root}/acl/default", f"u:{user}:rwx", f"d:u:{user}:rwx", f"d:g:{other}:rx", "d:m::rx")
    write(f"{root}/acl/default/inherits", b"acl")
    os.makedirs(f"{root}/acl/default/directory")

    os.makedirs(f"{root}/xattr")
    write(f"{root}/xattr/file", b"xattr")
    for name, value in (("user.short", b"v"), ("user.empty", b""), ("user.binary", bytes(range(256))),
                        ("user.long", rng.randbytes(2000)), ("user." + "n" * 200, b"long name"),
                        ("trusted.netfs-test", b"only root")):
        os.setxattr(f"{root}/xattr/file", name, value)
    os.setxattr(f"{root}/xattr", "user.on-directory", b"yes")
    os.symlink("file", f"{root}/xattr/link")
    os.setxattr(f"{root}/xattr/link", "trusted.on-link", b"yes", follow_symlinks=False)

    # Times last, from the leaves up, for what is made changes the time of where it is made.
    number = 0
    for directory, directories, files in os.walk(root, topdown=False):
        for name in sorted(files) + [n for n in sorted(directories) if os.path.islink(f"{directory}/{n}")]:
            stamp = TIMES_NS[number % len(TIMES_NS)] + number * 1_000_003
            os.utime(f"{directory}/{name}", ns=(stamp + 5, stamp), follow_symlinks=False)
            number += 1
        stamp = TIMES_NS[0] + number * 7
        os.utime(directory, ns=(stamp, stamp))


def change(root):
    """What an incremental copy has to find."""
    with open(f"{root}/large", "r+b") as file:
        file.seek(5 << 20)
        file.write(b"changed in the middle")
    with open(f"{root}/d1/deep/er/f3", "ab") as file:
        file.write(b"longer")
    os.truncate(f"{root}/d2/deep/er/f4", 0)
    os.chmod(f"{root}/d3/deep/er/f5", 0o4711)
    os.rename(f"{root}/d4/deep", f"{root}/moved")
    os.unlink(f"{root}/links/hard2-again")
    os.link(f"{root}/large", f"{root}/links/large")
    os.unlink(f"{root}/links/relative")
    os.mkdir(f"{root}/links/relative")
    os.rmdir(f"{root}/owners/closed")
    write(f"{root}/owners/closed", b"was a directory")
    setfacl(f"{root}/acl/file", "g:0:rwx")
    subprocess.run(["setfacl", "-b", f"{root}/acl/mask"], check=True)
    os.removexattr(f"{root}/xattr/file", "user.short")
    os.setxattr(f"{root}/xattr/file", "user.binary", b"other")
    os.utime(f"{root}/d5/deep/er/f6", ns=(3_000_000_001, 4_000_000_002))


def describe(path, root, inodes):
    """All that must be alike, as a dictionary."""
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    what = {
        "type": stat.filemode(info.st_mode)[0],
        "mode": oct(stat.S_IMODE(info.st_mode)),
        "owner": (info.st_uid, info.st_gid),
        "mtime": info.st_mtime_ns,
        "xattrs": {n: os.getxattr(path, n, follow_symlinks=False)
                   for n in sorted(os.listxattr(path, follow_symlinks=False)) if n.split(".")[0] in ("user", "trusted", "system")},
    }
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            what["data"] = hashlib.file_digest(file, "sha256").hexdigest()
        what["size"] = info.st_size
        if info.st_size == SPARSE_BYTES:
            what["sparse"] = info.st_blocks * 512 < SPARSE_BYTES // 2
    if kind == stat.S_IFLNK:
        what["target"] = os.readlink(path)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        what["device"] = (os.major(info.st_rdev), os.minor(info.st_rdev))
    if kind != stat.S_IFDIR:
        # A hard link is described by the first name of its inode.
        what["links"] = info.st_nlink
        what["first name"] = inodes.setdefault(info.st_ino, os.path.relpath(path, root))
    return what


def describe_all(root):
    inodes, tree = {}, {}
    root = os.fsencode(root)
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = os.path.join(directory, name)
            tree[os.path.relpath(path, root)] = describe(path, root, inodes)
    tree[b"."] = describe(root, root, inodes)
    return tree


def compare(left, right, *left_out):
    first, second = describe_all(left), describe_all(right)
    for name in left_out:
        first.pop(os.fsencode(name), None)
        second.pop(os.fsencode(name), None)
    differences = 0
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            print(f"{name!r}: only in {left if name in first else right}")
            differences += 1
            continue
        for key in first[name].keys() | second[name].keys():
            here, there = first[name].get(key), second[name].get(key)
            if here != there:
                print(f"{name!r}: {key} is {here!r} in {left}, {there!r} in {right}")
                differences += 1
    print(f"{len(first)} entries, {differences} differences")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    {"make": make, "change": change, "compare": compare}[sys.argv[1]](*sys.argv[2:])
