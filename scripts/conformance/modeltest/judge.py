"""Carries out each operation on both sides and compares everything that a program could notice."""

import os
import shutil

from .side import Side

TREE_EVERY = 400
TIMES_EVERY = 3
# What is touched by an operation on names: the first, or the first two, arguments after the user.
NAME_ARGUMENTS = {"rename": (0, 1), "link": (0, 1), "symlink": (1,), "open": (1,)}
SLOT_ARGUMENTS = {"copy": (0, 2), "sendfile": (0, 1)}


class Mismatch(Exception):
    """The two sides differ."""


def shorten(value, limit=300):
    if isinstance(value, bytes) and len(value) > 80:
        return f"{len(value)} bytes: {value[:40]!r}...{value[-24:]!r}"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def first_difference(left, right):
    for i, (one, other) in enumerate(zip(left, right)):
        if one != other:
            return f"first different byte at {i}: {left[i : i + 24]!r}, {right[i : i + 24]!r}"
    return f"one is longer: {len(left)}, {len(right)} bytes"


def touched(operation):
    """Slots and names whose times may change, with the directories of the names."""
    kind, _, *arguments = operation
    if kind in SLOT_ARGUMENTS:
        return {arguments[i] for i in SLOT_ARGUMENTS[kind]}
    if isinstance(arguments[0], int) and kind != "open":
        return {arguments[0]}
    names = {arguments[i] for i in NAME_ARGUMENTS.get(kind, (0,))}
    return names | {os.path.dirname(name.rstrip("/")) or "." for name in names}


class Judge:
    """Two fresh directories and the comparison."""

    def __init__(self, tested, reference):
        self.sides = [Side(tested), Side(reference)]
        for side in self.sides:
            os.makedirs(side.root)
            os.chmod(side.base, 0o755)
            os.chmod(side.root, 0o777)
        self.count = 0
        self.outcomes = {}
        # Differences of times do no harm to what follows, so they are gathered: kind of difference -> (how often, an example).
        self.times_differ = {}

    def close(self):
        for side in self.sides:
            side.close_all()
            shutil.rmtree(side.base, ignore_errors=True)

    def step(self, operation):
        """Runs one operation; raises Mismatch. Returns what came of it."""
        self.count += 1
        watched = sorted(touched(operation), key=str) if self.count % TIMES_EVERY == 0 else []
        before = [[side.times(what) for what in watched] for side in self.sides]
        tested, reference = (side.run(operation) for side in self.sides)
        self.compare_results(tested, reference)
        after = [[side.times(what) for what in watched] for side in self.sides]
        for i, what in enumerate(watched):
            self.compare_times(operation, what, *((before[s][i], after[s][i]) for s in (0, 1)))
        if operation[0] == "rename" and watched:
            old, new = (watched.index(name) for name in operation[2:4])
            self.compare_times(operation, operation[3], *((before[s][old], after[s][new]) for s in (0, 1)))
        outcome = reference[0] if reference[0] != "errno" else reference[1]
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        return reference

    @staticmethod
    def compare_results(tested, reference):
        if tested == reference:
            return
        text = f"tested {shorten(tested)}, reference {shorten(reference)}"
        if tested[0] == reference[0] == "ok" and isinstance(tested[1], bytes) and isinstance(reference[1], bytes):
            text += "; " + first_difference(tested[1], reference[1])
        raise Mismatch(text)

    def compare_times(self, operation, what, tested, reference):
        """Each is a pair, before and after. A name that came to mean another inode has no times to compare."""
        if any(None in pair or pair[0][0] != pair[1][0] for pair in (tested, reference)):
            return
        for index, name in ((1, "mtime"), (2, "ctime")):
            changed, expected = (pair[0][index] != pair[1][index] for pair in (tested, reference))
            # ext4 does nothing when an attribute gets the value that it has, or one that is absent is removed.
            if changed != expected and not (changed and operation[0] in ("setxattr", "removexattr")):
                self.note_times(operation, f"{name} {'changed' if changed else 'did not change'}", what)
        if tested[1][2] < tested[0][2] and reference[1][2] >= reference[0][2]:
            self.note_times(operation, "ctime ran backwards", what)

    def note_times(self, operation, difference, what):
        key = f"{operation[0]}: {difference}, unlike on the reference"
        count, example = self.times_differ.get(key, (0, f"operation {self.count}, on {what!r}: {operation}"))
        self.times_differ[key] = (count + 1, example)

    def compare_trees(self):
        """Returns the names there are."""
        tested, reference = (side.tree() for side in self.sides)
        for name in sorted(tested.keys() | reference.keys()):
            if name not in tested or name not in reference:
                raise Mismatch(f"{name!r} is only in the {'tested' if name in tested else 'reference'} directory")
            for key in tested[name].keys() | reference[name].keys():
                here, there = tested[name].get(key), reference[name].get(key)
                if here != there:
                    more = first_difference(here, there) if key == "data" else ""
                    raise Mismatch(f"{key} of {name!r}: tested {shorten(here)}, reference {shorten(there)} {more}")
        return tested.keys()
