"""Tests of the tests: on a local directory everything holds, and what is planted is found."""

import os
import random
import shutil
import tempfile

from . import ahead, append, checker, histories, race, rounds
from .checker import Operation
from .processes import Wrong

ROUNDS = 36


def must(what, good):
    if not good:
        raise Wrong(f"the test itself is wrong: {what}")


def is_found(play):
    try:
        play()
    except Wrong:
        return True
    return False


def kinds_notice(kinds, directory):
    for name, kind in kinds.items():
        places = (tempfile.mkdtemp(dir=directory) for _ in range(ROUNDS))
        # A look at the local directory beside itself: the same as two mounts that are always right.
        rounds.play(kind, [next(places)] * 3, ROUNDS)
        missed = [n for n in range(ROUNDS // 2, ROUNDS // 2 + 6) if not is_found(lambda n=n: rounds.play(kind, [next(places)] * 2, ROUNDS, skip=n))]
        # Of some changes a few change nothing, such as a cut beyond the end.
        must(f"{name}: rounds {missed} were left out, and nobody noticed", len(missed) <= (2 if name in ("truncate", "listing") else 0))


def random_history(rng, processes, calls):
    """What a register that is right would answer: each operation takes effect at a moment within its time."""
    operations, value = [], 0
    clocks = [0] * processes
    moments = []
    for process in range(processes):
        for number in range(calls):
            called = clocks[process] + rng.randrange(1, 50)
            returned = called + rng.randrange(1, 100)
            clocks[process] = returned
            moments.append((rng.randrange(called, returned + 1), process, number, called, returned, rng.random() < 0.5))
    for _, process, number, called, returned, is_write in sorted(moments):
        if is_write:
            value = histories.unique(process, number)
        operations.append(Operation(called, returned, process, "write" if is_write else "read", value))
    return operations


def checker_notices():
    def op(called, returned, kind, value=None):
        return Operation(called, returned, 0, kind, value)

    def bad(history, model=checker.register, initial=0):
        return checker.check(history, model, initial) is not None

    w1, w2 = op(0, 10, "write", 1), op(20, 30, "write", 2)
    must("a read of the last value is right", not bad([w1, w2, op(40, 50, "read", 2)]))
    must("a read during a write may be either", not bad([w1, w2, op(25, 50, "read", 1)]) and not bad([w1, w2, op(25, 50, "read", 2)]))
    must("a stale read is found", bad([w1, w2, op(40, 50, "read", 1)]))
    must("a value from nowhere is found", bad([w1, op(40, 50, "read", 7)]))
    must("two readers that see two writes in different order are found",
         bad([op(0, 100, "write", 1), op(0, 100, "write", 2), op(10, 20, "read", 1), op(30, 40, "read", 2), op(50, 60, "read", 1)]))
    must("new and then old, during the write, is found", bad([op(0, 100, "write", 1), op(10, 20, "read", 1), op(30, 40, "read", 0)]))
    must("a lost write is found", bad([w1, op(12, 14, "write", 3), op(15, 16, "read", 1)]))
    must("a write that never returned may have happened or not",
         not bad([op(0, None, "write", 1), op(10, 20, "read", 0), op(30, 40, "read", 1)]) and bad(
             [op(0, None, "write", 1), op(10, 20, "read", 1), op(30, 40, "read", 0)]))
    make = lambda called, returned, ino: op(called, returned, "created", ino)
    named = lambda *history: bad(list(history), checker.name, None)
    must("a name that is made, removed and made is right", not named(make(0, 9, 1), op(10, 19, "removed"), make(20, 29, 2), op(30, 39, "listed", 2)))
    must("a double create is found", named(make(0, 30, 1), make(10, 40, 2), op(50, 60, "listed", 2)))
    must("a double removal is found", named(make(0, 9, 1), op(10, 40, "removed"), op(20, 50, "removed")))
    must("a name that is still listed is found", named(make(0, 9, 1), op(10, 19, "removed"), op(20, 29, "listed", ...)))
    must("a name that is not listed is found", named(make(0, 9, 1), op(20, 29, "absent")))
    must("an old inode under a name is found", named(make(0, 9, 1), op(10, 19, "removed"), make(20, 29, 2), op(30, 39, "listed", 1)))
    rng = random.Random(1)
    found = tried = 0
    for _ in range(100):
        history = random_history(rng, 6, 20)
        must("a history of a register that is right is right", checker.check(history, checker.register, 0) is None)
        # The value before the last that was over when the reading began is stale.
        reads = [i for i, o in enumerate(history) if o.kind == "read"]
        i = rng.choice(reads)
        over = sorted((o.returned, o.called, o.value) for o in history if o.kind == "write" and o.returned < history[i].called)
        if len(over) < 2 or over[-1][1] <= over[0][0]:
            continue
        tried += 1
        o = history[i]
        found += checker.check(history[:i] + [Operation(o.called, o.returned, o.process, "read", over[0][2])] + history[i + 1:], checker.register, 0) is not None
    must(f"{tried - found} of {tried} stale reads were not found", tried > 30 and found == tried)


class StaleCounter(ahead.Counter):
    """Shows what it showed before, now and then."""

    old = 0

    def kept(self):
        new = super().kept()
        if new % 10 == 0:
            return max(0, self.old - 1)
        self.old = new
        return new


def others_notice(directory):
    data = b"".join(append.record(w, n) for n in range(5) for w in range(2))
    append.check("", data, 2, 5)
    one = append.record(0, 2)
    at = data.find(one)
    planted = {
        "a lost record": data[:at] + data[at + len(one):],
        "a record that is there twice": data + one,
        "a hole": data[:at] + b"\0" * len(one) + data[at + len(one):],
        "a torn record": data[: at + 1] + data[at + 2:],
        "another order": data[at:] + data[:at],
        "a missing end": data[:-1],
    }
    for what, wrong in planted.items():
        must(f"{what} in an appended file is not noticed", is_found(lambda: append.check("", wrong, 2, 5)))
    places = [tempfile.mkdtemp(dir=directory) for _ in range(4)]
    append.play([places[0]] * 2, 50)
    ahead.play("counter", [places[1]] * 2, 0.2)
    ahead.WHAT["stale"] = StaleCounter
    must("a counter that goes back is not noticed", is_found(lambda: ahead.play("stale", [places[2]] * 2, 1)))
    for what in race.WHAT:
        race.play(what, [tempfile.mkdtemp(dir=directory)] * 2, 50)
    for what in histories.WHAT:
        histories.play(what, [tempfile.mkdtemp(dir=directory)] * 2, 0)


def main(kinds, directory):
    place = f"{directory}/self-test"
    os.mkdir(place)
    checker_notices()
    others_notice(place)
    kinds_notice(kinds, place)
    shutil.rmtree(place)
    print(f"{len(kinds)} kinds of rounds, the checker of histories and all others notice what is planted")
