"""python3 -m crashtest init BASE FIRST | write ROOT BASE LOG SEED | verify ROOT BASE LOG NEW-BASE | self-test DIRECTORY"""

import sys

from . import selftest, verify, writer


def main(verb, *arguments):
    if verb == "init":
        verify.empty(arguments[0], int(arguments[1]))
        return 0
    if verb == "write":
        return writer.main(*arguments[:3], int(arguments[3]))
    if verb == "verify":
        return 1 if verify.verify(*arguments) else 0
    if verb == "self-test":
        return selftest.main(arguments[0])
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
