"""Random changes of a tree, and what it looks like."""

import hashlib
import os
import random
import stat

SIZES = [0, 1, 700, 4096, 16_000, 17_000, 70_000, 300_000]


class Tree:
    """The names of a tree that is changed through several mounts; paths are relative."""

    def __init__(self, rng, kinds):
        self.rng = rng
        self.kinds = kinds
        self.dirs = [""]
        self.files = []
        self.made = 0

    def new_name(self):
        self.made += 1
        return f"{self.rng.choice(self.dirs)}/n{self.made}"

    def change(self, root):
        rng, files = self.rng, self.files
        what = rng.randrange(self.kinds) if files else 0
        if what == 0 or what == 1:
            path = self.new_name()
            with open(root + path, "wb") as file:
                file.write(rng.randbytes(rng.choice(SIZES)))
            files.append(path)
        elif what == 2:
            path = self.new_name()
            os.mkdir(root + path, rng.choice([0o755, 0o700]))
            self.dirs.append(path)
        elif what == 3:
            path = self.new_name()
            os.symlink("to" * rng.randrange(1, 50), root + path)
            files.append(path)
        elif what == 4:
            old, new = rng.randrange(len(files)), self.new_name()
            os.rename(root + files[old], root + new)
            files[old] = new
        elif what == 5:
            # Over another one.
            old, new = rng.sample(range(len(files)), 2) if len(files) > 1 else (0, 0)
            os.rename(root + files[old], root + files[new])
            if old != new:
                files.pop(old)
        elif what == 6:
            os.unlink(root + files.pop(rng.randrange(len(files))))
        elif what == 7:
            path, new = rng.choice(files), self.new_name()
            os.link(root + path, root + new, follow_symlinks=False)
            files.append(new)
        elif what == 8:
            path = rng.choice(files)
            if not os.path.islink(root + path):
                os.chmod(root + path, rng.choice([0o600, 0o640, 0o444]))
        elif what == 9:
            path = rng.choice(files)
            if not os.path.islink(root + path):
                os.setxattr(root + path, f"user.x{rng.randrange(3)}", rng.randbytes(rng.randrange(200)))
        elif what == 10:
            path = rng.choice(files)
            if not os.path.islink(root + path):
                fd = os.open(root + path, os.O_WRONLY)
                os.pwrite(fd, rng.randbytes(rng.randrange(1, 5000)), rng.randrange(100_000))
                os.close(fd)
        else:
            path = rng.choice(files)
            if not os.path.islink(root + path):
                os.truncate(root + path, rng.choice([0, 0, 10, 5000, 120_000]))


def change(seed, count, roots):
    # A cut has the server flush all that was before it: without any, more is at stake.
    tree = Tree(random.Random(seed), 12 if seed % 3 == 0 else 11)
    for n in range(count):
        tree.change(roots[n % len(roots)] + f"/{seed}") if n else os.mkdir(f"{roots[0]}/{seed}")


def show(root):
    for base, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(dirs + files):
            path = os.path.join(base, name)
            at = os.lstat(path)
            line = [
                os.fsdecode(path[len(root) :]), at.st_ino, oct(at.st_mode), at.st_nlink, at.st_uid, at.st_gid,
                at.st_mtime_ns, at.st_ctime_ns,
            ]
            if stat.S_ISREG(at.st_mode):
                with open(path, "rb") as file:
                    line += [at.st_size, hashlib.sha256(file.read()).hexdigest()[:16]]
                line += [f"{n}={os.getxattr(path, n).hex()}" for n in sorted(os.listxattr(path))]
            elif stat.S_ISLNK(at.st_mode):
                line.append(os.readlink(path).decode())
            yield " ".join(str(part) for part in line)


def cut(count, roots):
    for n in range(count):
        fd = os.open(f"{roots[n % len(roots)]}/cut{n}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, b"o" * (1 << 20))
        os.fsync(fd)
        os.ftruncate(fd, 10 + n * 1000)
        os.pwrite(fd, b"n" * 50_000, 100 + n * 5000)
        os.close(fd)
