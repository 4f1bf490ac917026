"""Self-describing blocks: each tells its file, its place and its version, so that no byte can be mistaken for another's."""

import struct
import zlib

BLOCK = 512
HOLE = 0
_HEADER = struct.Struct("<4sQIII")
_MAGIC = b"nfcB"


def make(uid, index, version):
    """The bytes of one block."""
    body = (b"%016x%08x%08x" % (uid, index, version) * 16)[: BLOCK - _HEADER.size]
    return _HEADER.pack(_MAGIC, uid, index, version, zlib.crc32(body)) + body


def run(uid, first, count, version):
    """A row of blocks with the same version."""
    return b"".join(make(uid, index, version) for index in range(first, first + count))


def version_of(data, uid, index):
    """The version of a block that belongs here, HOLE for zeros, None for bytes that nobody wrote here."""
    if not data.strip(b"\0"):
        return HOLE
    if len(data) < BLOCK:
        return None
    magic, _, _, version, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or data != make(uid, index, version):
        return None
    return version
