"""python3 -m coherencetest VERB ...

kinds                          the kinds of rounds, one a line
rounds KIND ROUNDS ROOT...     write on one mount, look on all others, in turns
append RECORDS ROOT...         all append to one file at the same time
history WHAT SECONDS ROOT...   concurrent operations, recorded and checked to be linearisable
clocks COUNT ROOT...           times of what is written by turns through each ROOT never go back
ahead WHAT SECONDS ROOT...     nobody sees an older state than anybody has seen before
race WHAT NAMES ROOT...        of all that rename or remove a name at the same time one succeeds; all that open one get it
self-test DIRECTORY            planted faults, which have to be found

The ROOTs are one directory, seen through different mounts."""

import os
import shutil
import sys

from . import ahead, append, clocks, files, histories, names, race, rounds, selftest
from .processes import Wrong

KINDS = files.KINDS | names.KINDS


def inside(roots, name):
    """A fresh directory of that name, seen through all of them."""
    os.mkdir(f"{roots[0]}/{name}")
    return [f"{root}/{name}" for root in roots]


def main(verb="", *arguments):
    if verb == "kinds":
        print("\n".join(KINDS))
    elif verb == "self-test":
        selftest.main(KINDS, arguments[0])
    elif verb == "clocks":
        print(clocks.play(int(arguments[0]), arguments[1:]))
    elif verb in ("rounds", "append", "history", "ahead", "race"):
        what, roots = (arguments[0], arguments[2:]) if verb != "append" else ("append", arguments[1:])
        roots = inside(roots, f"{verb}-{what}-{len(roots)}")
        amount = arguments[1] if verb != "append" else arguments[0]
        if verb == "rounds":
            speed = rounds.play(KINDS[what], roots, int(amount))
            print(f"{amount} rounds, {speed:.0f} in a second")
        elif verb == "append":
            print(append.play(roots, int(amount)))
        elif verb == "history":
            print(histories.play(what, roots, float(amount)))
        elif verb == "race":
            print(race.play(what, roots, int(amount)))
        else:
            print(ahead.play(what, roots, float(amount)))
        shutil.rmtree(roots[0])
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Wrong as error:
        print(error)
        sys.exit(1)
