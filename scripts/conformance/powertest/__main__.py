"""powertest VERB...

change SEED COUNT ROOT...    COUNT random changes of names, attributes and data, by turns through each ROOT; nothing is synced
cut COUNT ROOT...            COUNT files that are cut and then written to; only what was before the cut is synced
show ROOT                    everything that a program can see of a tree, a line each
hold FILE WORD ROOT...       keeps files open that were changed and not synced; when FILE is there, all must sync, and WORD is printed
"""

import os
import sys

from . import hold, tree

USAGE = 2


def main(args):
    if not args:
        print(__doc__, file=sys.stderr)
        return USAGE
    verb, rest = args[0], args[1:]
    if verb == "change":
        tree.change(int(rest[0]), int(rest[1]), rest[2:])
    elif verb == "cut":
        tree.cut(int(rest[0]), rest[1:])
    elif verb == "show":
        sys.stdout.writelines(line + "\n" for line in tree.show(os.fsencode(rest[0])))
    elif verb == "hold":
        hold.hold(rest[0], rest[1], rest[2:])
    else:
        print(__doc__, file=sys.stderr)
        return USAGE
    return 0


sys.exit(main(sys.argv[1:]))
