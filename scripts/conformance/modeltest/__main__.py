"""python3 -m modeltest TESTED REFERENCE --seed N --operations N [--log FILE] [--replay FILE] [--shrink SECONDS]

Makes a directory of its own below each of the two and runs the same random operations in both. On a mismatch the operations
are shrunk to few that still show it, printed, and written to the log, which can be replayed.
"""

import argparse
import json
import os
import sys
import time

from .generate import Generator
from .judge import TREE_EVERY, Judge, Mismatch


def prepared(operation):
    # The ACL operation is a setxattr; it has a name of its own to have a weight of its own.
    return ["setxattr", *operation[1:]] if operation[0] == "setacl" else operation


class Runs:
    """Numbers the directories, for every attempt starts with empty ones."""

    def __init__(self, options):
        self.options = options
        self.number = 0

    def judge(self):
        self.number += 1
        name = f"model-{os.getpid()}-{self.number}"
        return Judge(f"{self.options.tested}/{name}", f"{self.options.reference}/{name}")

    def generated(self):
        """Returns (operations done, mismatch or None, judge)."""
        generator, judge, done = Generator(self.options.seed), self.judge(), []
        try:
            for count in range(self.options.operations):
                operation = prepared(generator.draw())
                done.append(operation)
                judge.step(operation)
                generator.learn_slots(judge.sides[1].files)
                if count % TREE_EVERY == TREE_EVERY - 1:
                    generator.learn(judge.compare_trees())
                elif count % 20 == 19:
                    generator.learn(names_below(judge.sides[1].root))
            judge.compare_trees()
        except Mismatch as mismatch:
            return done, mismatch, judge
        finally:
            judge.close()
        return done, None, judge

    def replayed(self, operations):
        judge = self.judge()
        try:
            for count, operation in enumerate(operations):
                judge.step(operation)
                if len(operations) < 50 or count % TREE_EVERY == TREE_EVERY - 1:
                    judge.compare_trees()
            judge.compare_trees()
        except Mismatch as mismatch:
            return count + 1, mismatch
        finally:
            judge.close()
        return len(operations), None

    def shrink(self, operations, mismatch, seconds):
        """Leaves out ever smaller pieces as long as some mismatch remains."""
        end = time.monotonic() + seconds
        piece = max(1, len(operations) // 2)
        while time.monotonic() < end:
            start, smaller = 0, False
            while start < len(operations) and time.monotonic() < end:
                candidate = operations[:start] + operations[start + piece :]
                used, found = self.replayed(candidate) if candidate else (0, None)
                if found:
                    operations, mismatch, smaller = candidate[:used], found, True
                else:
                    start += piece
            if piece == 1 and not smaller:
                break
            piece = max(1, piece // 2)
        return operations, mismatch


def names_below(root):
    return [
        os.path.relpath(os.path.join(directory, name), root)
        for directory, directories, files in os.walk(root)
        for name in [*directories, *files]
    ]


def main():
    parser = argparse.ArgumentParser(prog="modeltest", description=__doc__.splitlines()[0])
    parser.add_argument("tested")
    parser.add_argument("reference")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--log", default="model.log")
    parser.add_argument("--replay")
    parser.add_argument("--shrink", type=float, default=60, metavar="SECONDS")
    options = parser.parse_args()
    os.umask(0)
    os.setgroups([])
    runs = Runs(options)
    if options.replay:
        with open(options.replay, encoding="utf-8") as file:
            operations = [json.loads(line) for line in file if line.startswith("[")]
        used, mismatch = runs.replayed(operations)
        operations = operations[:used]
    else:
        operations, mismatch, judge = runs.generated()
        print("outcomes:", ", ".join(f"{name} {count}" for name, count in sorted(judge.outcomes.items(), key=lambda x: -x[1])))
        for key, (count, example) in judge.times_differ.items():
            print(f"{key} ({count} times, first: {example})")
        if mismatch is None and judge.times_differ:
            return 1
    if mismatch is None:
        print(f"seed {options.seed}: {len(operations)} operations, no difference")
        return 0
    print(f"seed {options.seed}: after {len(operations)} operations: {mismatch}")
    smaller, again = runs.shrink(operations, mismatch, options.shrink)
    print(f"{len(smaller)} operations that show: {again}")
    with open(options.log, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(operation) + "\n" for operation in smaller)
    for operation in smaller[-40:]:
        print("  " + json.dumps(operation))
    return 1


if __name__ == "__main__":
    sys.exit(main())
