"""python3 -m sharedtest alternating SEED OPERATIONS ROOT... | maildir MESSAGES ROOT... | sqlite COMMITS ROOT..."""

import sys

from . import alternating, database, maildir
from .processes import Wrong


def main(verb="", *arguments):
    if verb == "alternating":
        print(alternating.play(int(arguments[0]), int(arguments[1]), arguments[2:]))
    elif verb == "maildir":
        print(maildir.play(int(arguments[0]), arguments[1:]))
    elif verb == "sqlite":
        print(database.play(int(arguments[0]), arguments[1:]))
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
