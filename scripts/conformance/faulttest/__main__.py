"""python3 -m faulttest VERB ...

load DIRECTORY LOG                    writes and syncs until SIGTERM; the log, outside, tells what was promised
verify DIRECTORY LOG                  compares what is there with what was promised
apart asleep|cut MOUNT1 MOUNT2 TERM STOP RESUME [JOIN]
                                      client 1 is stopped by the command STOP and goes on by RESUME, longer after than its term; meanwhile
                                      the other changes everything. JOIN mounts the other only then
pause MOUNT1 MOUNT2 SECONDS STOP RESUME
                                      the same for less than the term: both mounts are under load, and only wait
killed MOUNT READY GO                 programs that wait for servers which are not there end at once when killed
takeover MOUNT DIRECTORY SECONDS      works in what a dead client held; fails if it takes longer
"""

import sys

from . import apart, load, stuck
from .agent import Wrong


def main(verb="", *arguments):
    verbs = {
        "load": load.write,
        "verify": load.verify,
        "apart": apart.longer,
        "pause": apart.shorter,
        "killed": stuck.killed,
        "takeover": stuck.takeover,
    }
    if verb not in verbs:
        print(__doc__)
        return 2
    return verbs[verb](*arguments) or 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Wrong as error:
        print(error)
        sys.exit(1)
