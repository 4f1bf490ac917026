"""The classic cases of file locking, one by one, between two directories that show the same files.

usage: python3 -m locktest DIRECTORY DIRECTORY [CASE...]
"""

import multiprocessing
import os
import sys
import time
import traceback

from . import actors, others, posix  # noqa: F401: the cases
from .actors import CASES, Actor, World


def main():
    sides, wanted = [os.path.abspath(d) for d in sys.argv[1:3]], sys.argv[3:]
    failed = passed = 0
    multiprocessing.set_start_method("fork")
    for function in CASES:
        name = function.__name__
        if wanted and not any(part in name for part in wanted):
            continue
        actors.SHARED = multiprocessing.Array("i", 64)
        path = f"locks.{os.getpid()}.{name}"
        started = time.time()
        try:
            function(World(*sides, path))
        except Exception as e:  # noqa: BLE001: a failed case
            failed += 1
            at = traceback.extract_tb(e.__traceback__)
            line = next((t.lineno for t in at if t.name == name), 0)
            print(f"FAIL {name} (line {line}): {str(e).strip() or type(e).__name__}", flush=True)
        else:
            passed += 1
            print(f"ok   {name} ({time.time() - started:.1f} s)", flush=True)
        for actor in Actor.all:
            actor.end()
        Actor.all.clear()
        for suffix in ("", ".2"):
            try:
                os.unlink(os.path.join(sides[0], path + suffix))
            except OSError:
                pass
    print(f"cases: {passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
