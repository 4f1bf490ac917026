"""Of several mounts that rename or remove a name at the same time, exactly one succeeds; all that open or make one get the same file."""

import os
import pickle
import tempfile

from .processes import Barrier, Wrong, run

# Whoever is ahead waits for the others after so many names, so that they keep meeting.
STRIDE = 10


def rename_to_one(root, name, _):
    os.rename(f"{root}/from/{name}", f"{root}/to/{name}")


def rename_to_own(root, name, me):
    os.rename(f"{root}/from/{name}", f"{root}/to/{name}.{me}")


def remove(root, name, _):
    os.unlink(f"{root}/from/{name}")


WHAT = {"rename to one name": rename_to_one, "rename to names of their own": rename_to_own, "unlink": remove}


def go(barriers, work, act, root, me, names):
    got = []
    for name in range(names):
        if name % STRIDE == 0:
            barriers[name // STRIDE].wait()
        try:
            act(root, name, me)
            got.append(name)
        except FileNotFoundError:
            pass
    with open(f"{work}/{me}", "wb") as file:
        pickle.dump(got, file)


def open_all(barriers, work, root, me, names):
    got = []
    for name in range(names):
        barriers[name].wait()
        fd = os.open(f"{root}/{name}", os.O_CREAT | os.O_RDWR, 0o644)
        got.append(os.fstat(fd).st_ino)
        os.close(fd)
    with open(f"{work}/{me}", "wb") as file:
        pickle.dump(got, file)


def open_together(roots, names, each=4):
    """Several programs on every mount open the same new names without O_EXCL: each is made once, and nobody is refused."""
    programs = [root for root in roots for _ in range(each)]
    barriers = [Barrier(len(programs)) for _ in range(names)]
    with tempfile.TemporaryDirectory() as work:
        run([lambda: [barrier.open() for barrier in barriers]]
            + [lambda i=i, root=root: open_all(barriers, work, root, i, names) for i, root in enumerate(programs)], 60)
        got = []
        for me in range(len(programs)):
            with open(f"{work}/{me}", "rb") as file:
                got.append(pickle.load(file))
    apart = sum(len(set(inos)) > 1 for inos in zip(*got))
    if apart:
        raise Wrong(f"{apart} of {names} names led to several files")
    return f"{names} names, opened by {len(programs)} programs each"


def play(what, roots, names):
    if what == "open or make":
        return open_together(roots, names)
    for part in ("from", "to"):
        os.mkdir(f"{roots[0]}/{part}")
    for name in range(names):
        os.close(os.open(f"{roots[0]}/from/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    barriers = [Barrier(len(roots)) for _ in range(0, names, STRIDE)]
    with tempfile.TemporaryDirectory() as work:
        run([lambda: [barrier.open() for barrier in barriers]]
            + [lambda i=i, root=root: go(barriers, work, WHAT[what], root, i, names) for i, root in enumerate(roots)], 60)
        got = []
        for me in range(len(roots)):
            with open(f"{work}/{me}", "rb") as file:
                got.append(pickle.load(file))
    all_of_them = [name for one in got for name in one]
    twice = len(all_of_them) - len(set(all_of_them))
    if twice or len(set(all_of_them)) != names:
        raise Wrong(f"of {names} names {twice} were had twice, and {names - len(set(all_of_them))} by nobody")
    return f"{names} names, had by {' and '.join(str(len(one)) for one in got)}"
