"""Times of files that are written through mounts whose machines do not agree on what time it is."""

import os
import time

from .processes import Wrong

# How far from this machine's clock a time may be.
NEAR_NS = 4_000_000_000


def play(count, roots):
    last = 0
    os.makedirs(f"{roots[0]}/clocks", exist_ok=True)
    for n in range(count):
        root = roots[n % len(roots)]
        # Into the inode, and in chunks.
        for name in ("small", "large"):
            with open(f"{root}/clocks/{name}", "ab") as file:
                file.write(b"x" * (10 if name == "small" else 30_000))
            now = time.time_ns()
            for other in roots:
                at = os.stat(f"{other}/clocks/{name}")
                if abs(at.st_mtime_ns - now) > NEAR_NS or abs(at.st_ctime_ns - now) > NEAR_NS:
                    raise Wrong(f"round {n}: {name} on {other} has times {at.st_mtime_ns} and {at.st_ctime_ns}, and it is {now}")
            if name == "small":
                if at.st_mtime_ns <= last:
                    raise Wrong(f"round {n}: changed at {at.st_mtime_ns}, and before at {last}")
                last = at.st_mtime_ns
        made = f"{root}/clocks/made"
        os.mkdir(made)
        if abs(os.stat(f"{roots[-1 - n % len(roots)]}/clocks/made").st_mtime_ns - now) > NEAR_NS:
            raise Wrong(f"round {n}: a directory was made at another time than {now}")
        os.rmdir(made)
    return f"{count} rounds"
