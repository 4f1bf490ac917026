"""One of the two directories: carries out operations and tells what came of each, in a form that can be compared."""

import ctypes
import errno
import mmap
import os
import stat

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
LIBC.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
AT_FDCWD = -100
PAGE = mmap.PAGESIZE
# Beyond this, contents are compared at their ends only.
WHOLE_BYTES = 64 << 20


def _checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def pattern(seed, length):
    """Bytes that tell where they come from, so that misplaced ones are noticed."""
    unit = b"<%08x>" % (seed & 0xFFFFFFFF)
    return (unit * (length // len(unit) + 1))[:length]


def describe(info):
    """What must be alike in the attributes of two files. Sizes and link counts of directories are: a count, no size."""
    kind = stat.S_IFMT(info.st_mode)
    mode = stat.S_IMODE(info.st_mode)
    if kind == stat.S_IFREG and not mode & stat.S_IXGRP:
        # Without execution by the group, set-group-id is no privilege, and the kernel leaves it to the FUSE file system whether a
        # write by others takes it away.
        mode &= ~stat.S_ISGID
    return {
        "type": stat.filemode(info.st_mode)[0],
        "mode": oct(mode),
        "nlink": info.st_nlink,
        "uid": info.st_uid,
        "gid": info.st_gid,
        "size": info.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else None,
        "rdev": info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
    }


class Side:
    """A root directory, open files by slot, and one method for each operation."""

    def __init__(self, base):
        # A name may climb one level, and must find itself still in a directory of ours there.
        self.base = base
        self.root = f"{base}/root"
        self.files = {}

    def close_all(self):
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()

    def path(self, name):
        return f"{self.root}/{name}"

    def run(self, operation):
        """("ok", value), ("errno", name), or ("skip", why): the operation makes no sense on either side."""
        name, user, *arguments = operation
        if user:
            os.setegid(user)
            os.seteuid(user)
        try:
            return ("ok", getattr(self, f"do_{name}")(*arguments))
        except KeyError:
            return ("skip", "slot not open")
        except OSError as error:
            return ("errno", errno.errorcode.get(error.errno, str(error.errno)))
        finally:
            if user:
                os.seteuid(0)
                os.setegid(0)

    # Open files.

    def do_open(self, slot, name, flags, mode):
        fd = os.open(self.path(name), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        if slot in self.files:
            os.close(self.files[slot])
        self.files[slot] = fd

    def do_close(self, slot):
        os.close(self.files.pop(slot))

    def do_read(self, slot, length):
        return os.read(self.files[slot], length)

    def do_write(self, slot, seed, length):
        return os.write(self.files[slot], pattern(seed, length))

    def do_pread(self, slot, offset, length):
        return os.pread(self.files[slot], length, offset)

    def do_pwrite(self, slot, offset, seed, length):
        return os.pwrite(self.files[slot], pattern(seed, length), offset)

    def do_writev(self, slot, seed, lengths):
        return os.writev(self.files[slot], [pattern(seed + i, n) for i, n in enumerate(lengths)])

    def do_seek(self, slot, offset, whence):
        if not stat.S_ISREG(os.fstat(self.files[slot]).st_mode):
            raise KeyError(slot)
        return os.lseek(self.files[slot], offset, whence)

    def do_holes(self, slot):
        """Where data and holes are is the file system's own affair; that they are told apart rightly is not."""
        fd = self.files[slot]
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > WHOLE_BYTES:
            raise KeyError(slot)
        place = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            return self._check_holes(fd, info.st_size)
        finally:
            os.lseek(fd, place, os.SEEK_SET)

    @staticmethod
    def _check_holes(fd, size):
        position = 0
        while position < size:
            try:
                data = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size
            if not position <= data <= size:
                return f"SEEK_DATA from {position} gave {data} in a file of {size}"
            try:
                if os.pread(fd, data - position, position).strip(b"\0"):
                    return f"bytes other than zero in the hole {position}..{data}"
            except OSError as error:
                if error.errno != errno.EBADF:  # opened for writing only
                    raise
            if data == size:
                break
            hole = os.lseek(fd, data, os.SEEK_HOLE)
            if not data < hole <= size:
                return f"SEEK_HOLE from {data} gave {hole} in a file of {size}"
            position = hole
        return "sound"

    def do_ftruncate(self, slot, size):
        os.ftruncate(self.files[slot], size)

    def do_fallocate(self, slot, mode, offset, length):
        _checked(LIBC.fallocate(self.files[slot], mode, offset, length))

    def do_fsync(self, slot):
        os.fsync(self.files[slot])

    def do_fdatasync(self, slot):
        os.fdatasync(self.files[slot])

    def do_fstat(self, slot):
        return describe(os.fstat(self.files[slot]))

    def do_fchmod(self, slot, mode):
        os.fchmod(self.files[slot], mode)

    def do_fchown(self, slot, uid, gid):
        os.fchown(self.files[slot], uid, gid)

    def do_futimens(self, slot, atime, mtime):
        os.utime(self.files[slot], ns=(atime, mtime))
        info = os.fstat(self.files[slot])
        return info.st_atime_ns, info.st_mtime_ns

    def do_copy(self, source, source_offset, target, target_offset, length):
        return os.copy_file_range(self.files[source], self.files[target], length, source_offset, target_offset)

    def do_sendfile(self, target, source, offset, length):
        return os.sendfile(self.files[target], self.files[source], offset, length)

    def _mapping(self, slot, offset, access):
        fd = self.files[slot]
        info = os.fstat(fd)
        start = offset - offset % PAGE
        if not stat.S_ISREG(info.st_mode) or not start < info.st_size <= WHOLE_BYTES:
            raise KeyError(slot)
        return mmap.mmap(fd, min(info.st_size - start, 1 << 20), mmap.MAP_SHARED, access, offset=start)

    def do_map_read(self, slot, offset, length):
        with self._mapping(slot, offset, mmap.PROT_READ) as mapping:
            return mapping[offset % PAGE :][:length]

    def do_map_write(self, slot, offset, seed, length):
        with self._mapping(slot, offset, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
            room = max(0, min(length, len(mapping) - offset % PAGE))
            mapping[offset % PAGE : offset % PAGE + room] = pattern(seed, room)
            mapping.flush()
            return room

    # Names.

    def do_stat(self, name):
        return describe(os.stat(self.path(name)))

    def do_lstat(self, name):
        return describe(os.lstat(self.path(name)))

    def do_access(self, name, mode):
        return os.access(self.path(name), mode, effective_ids=True)

    def do_truncate(self, name, size):
        os.truncate(self.path(name), size)

    def do_unlink(self, name):
        os.unlink(self.path(name))

    def do_mkdir(self, name, mode):
        os.mkdir(self.path(name), mode)

    def do_rmdir(self, name):
        os.rmdir(self.path(name))

    def do_mknod(self, name, mode, device):
        os.mknod(self.path(name), mode, device)

    def do_symlink(self, target, name):
        os.symlink(target, self.path(name))

    def do_readlink(self, name):
        return os.readlink(self.path(name))

    def do_link(self, name, new):
        os.link(self.path(name), self.path(new), follow_symlinks=False)

    def do_rename(self, name, new, flags):
        old_path, new_path = os.fsencode(self.path(name)), os.fsencode(self.path(new))
        _checked(LIBC.renameat2(AT_FDCWD, old_path, AT_FDCWD, new_path, flags))

    def do_chmod(self, name, mode):
        os.chmod(self.path(name), mode)

    def do_chown(self, name, uid, gid, follow):
        os.chown(self.path(name), uid, gid, follow_symlinks=follow)

    def do_utimens(self, name, atime, mtime, follow):
        os.utime(self.path(name), ns=(atime, mtime), follow_symlinks=follow)
        info = os.stat(self.path(name), follow_symlinks=follow)
        return info.st_atime_ns, info.st_mtime_ns

    def do_setxattr(self, name, attribute, value, flags, follow):
        os.setxattr(self.path(name), attribute, bytes.fromhex(value), flags, follow_symlinks=follow)

    def do_getxattr(self, name, attribute, follow):
        return os.getxattr(self.path(name), attribute, follow_symlinks=follow)

    def do_removexattr(self, name, attribute, follow):
        os.removexattr(self.path(name), attribute, follow_symlinks=follow)

    def do_listxattr(self, name, follow):
        return sorted(os.listxattr(self.path(name), follow_symlinks=follow))

    def do_listdir(self, name):
        with os.scandir(self.path(name)) as entries:
            return sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries)

    # What the judge wants to know.

    def times(self, what):
        """(inode, mtime, ctime) of a slot or a name; None if there is none. A FIFO is the kernel's: FUSE hears of no write to it."""
        try:
            info = os.fstat(self.files[what]) if isinstance(what, int) else os.lstat(self.path(what))
        except (KeyError, OSError):
            return None
        if stat.S_ISFIFO(info.st_mode):
            return None
        return info.st_ino, info.st_mtime_ns, info.st_ctime_ns

    def tree(self):
        """Everything below the root: attributes, contents, attributes of extended kind, which names share an inode."""
        inodes, found = {}, {}
        for directory, directories, files in os.walk(self.root):
            for name in sorted([*directories, *files]):
                path = os.path.join(directory, name)
                info = os.lstat(path)
                what = describe(info)
                what["xattrs"] = {
                    n: os.getxattr(path, n, follow_symlinks=False) for n in sorted(os.listxattr(path, follow_symlinks=False))
                }
                if stat.S_ISLNK(info.st_mode):
                    what["target"] = os.readlink(path)
                if stat.S_ISREG(info.st_mode):
                    what["data"] = self._contents(path, info.st_size)
                inodes.setdefault(info.st_ino, []).append(os.path.relpath(path, self.root))
                found[os.path.relpath(path, self.root)] = what
        for names in inodes.values():
            for name in names:
                found[name]["same inode"] = sorted(names)
        return found

    @staticmethod
    def _contents(path, size):
        with open(path, "rb") as file:
            if size <= WHOLE_BYTES:
                return file.read()
            head = file.read(1 << 20)
            file.seek(size - (1 << 20))
            return head + file.read()
