"""Programs that have files open over the failure: what they wrote and did not sync must be syncable afterwards."""

import os
import time

COUNT = 40


def hold(signal, word, roots):
    held = []
    for n in range(COUNT):
        path = f"{roots[n % len(roots)]}/held{n}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Inline, and in chunks.
        data = bytes([n]) * (100 if n % 2 else 100_000)
        os.write(fd, data)
        if n % 4 >= 2:
            os.rename(path, path + ".moved")
        if n % 5 == 0:
            os.unlink(path + (".moved" if n % 4 >= 2 else ""))
        held.append((fd, data))
    directory = os.open(roots[0], os.O_RDONLY)
    print("held", flush=True)
    while not os.path.exists(signal):
        time.sleep(0.05)
    for fd, data in held:
        os.fsync(fd)
        if os.pread(fd, len(data) + 1, 0) != data:
            raise SystemExit(f"file descriptor {fd} has other data")
        os.close(fd)
    os.fsync(directory)
    print(word, flush=True)
