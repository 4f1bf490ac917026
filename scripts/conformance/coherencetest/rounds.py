"""Rounds: one mount writes, and all others look as soon as the call has returned. Whose turn it is goes around."""

import time

from .processes import Inbox, Wrong, run


class Kind:
    """One kind of change and the ways in which it shows. Each mount has one in a process of its own.

    Every process sees the rounds in the same order, either as the writer or as a reader, so that what is expected can be computed
    from the round's number alone."""

    def __init__(self, root):
        self.root = root

    def path(self, name):
        return f"{self.root}/{name}"

    def prepare(self):
        """Once, in one process, before the others begin."""

    def begin(self):
        """In each process, before the first round: what is kept open through all of them."""

    def write(self, n):
        """The change. What it returns, a number, is told to the readers."""
        raise NotImplementedError

    def expect(self, n, value):
        """In each process, the writer's too, once round n is written."""

    def views(self, n):
        """The ways to look, each a function of (n, value) that raises Wrong."""
        raise NotImplementedError

    def look(self, n, value):
        # A look may refresh what the next one uses, so each of them is the first in its turn.
        views = self.views(n)
        for i in range(len(views)):
            views[(i + n) % len(views)](n, value)

    def seen(self, n):
        """In each process, the writer's too, once a round was seen by all: prepares for the next."""


def same(what, got, want):
    if got != want:
        raise Wrong(f"{what} is {shown(got)}, not {shown(want)}")


def shown(value):
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


class Turns:
    """One process's part in the rounds."""

    def __init__(self, kind, me, inboxes, skip):
        self.kind, self.me, self.inboxes, self.skip = kind, me, inboxes, skip
        self.early = []

    def tell_others(self, message, value=0):
        for other, inbox in enumerate(self.inboxes):
            if other != self.me:
                inbox.put(message, value)

    def take(self, message):
        # Of three, the fastest may be ready for the next round before the last one has heard that this one is over.
        for i, (got, value) in enumerate(self.early):
            if got == message:
                del self.early[i]
                return value
        while True:
            got, value = self.inboxes[self.me].take()
            if got == message:
                return value
            self.early.append((got, value))

    def await_others(self, message):
        for _ in range(len(self.inboxes) - 1):
            self.take(message)

    def go(self, rounds):
        count = len(self.inboxes)
        self.kind.begin()
        for n in range(rounds):
            try:
                if n % count == self.me:
                    self.await_others(b"r")
                    value = 0 if n == self.skip else self.kind.write(n) or 0
                    self.tell_others(b"w", value)
                    self.kind.expect(n, value)
                    self.await_others(b"l")
                    self.tell_others(b"s")
                else:
                    self.inboxes[n % count].put(b"r")
                    value = self.take(b"w")
                    self.kind.expect(n, value)
                    self.kind.look(n, value)
                    self.inboxes[n % count].put(b"l")
                    self.take(b"s")
                self.kind.seen(n)
            except (Wrong, OSError) as error:
                role = "writes" if n % count == self.me else "looks"
                raise Wrong(f"round {n}, mount {self.me + 1} {role} at {self.kind.root}: {error}") from error


def play(kind, roots, rounds, skip=None, seconds=120):
    """Plays the rounds on all roots, which lead to one directory. With `skip`, the writer of that round does nothing, which has
    to be noticed. Returns the rounds per second."""
    kinds = [kind(root) for root in roots]
    kinds[0].prepare()
    inboxes = [Inbox() for _ in roots]
    started = time.monotonic()
    run([lambda turns=Turns(kinds[i], i, inboxes, skip): turns.go(rounds) for i in range(len(roots))], seconds)
    return rounds / (time.monotonic() - started)
