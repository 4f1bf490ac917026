"""A mail folder as several hosts use it: messages are written in tmp, put into new by a link or a rename, taken from there to cur
by whoever is first, read and removed. Each is taken exactly once and whole."""

import hashlib
import os
import random
import time

from .processes import Wrong, together


def message(number):
    return b"Subject: %d\n\n" % number + hashlib.sha256(b"%d" % number).hexdigest().encode() * (number % 300)


def deliver(root, first, messages):
    rng = random.Random(first)
    for number in range(first, first + messages):
        name = f"{number}.{os.getpid()}"
        fd = os.open(f"{root}/tmp/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(fd, message(number))
        if rng.random() < 0.1:
            os.fsync(fd)
        os.close(fd)
        if number % 2:
            os.link(f"{root}/tmp/{name}", f"{root}/new/{name}")
            os.unlink(f"{root}/tmp/{name}")
        else:
            os.rename(f"{root}/tmp/{name}", f"{root}/new/{name}")
    os.close(os.open(f"{root}/done{first}", os.O_CREAT | os.O_EXCL))
    return "delivered", first


def consume(root, seconds):
    """Takes messages until all that were delivered are taken by somebody: then there is a file that says so."""
    taken = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = os.path.exists(f"{root}/ended")
        names = os.listdir(f"{root}/new")
        if not names and ended:
            return "taken", taken
        random.shuffle(names)
        for name in names:
            try:
                os.rename(f"{root}/new/{name}", f"{root}/cur/{name}:2,S")
            except FileNotFoundError:
                continue
            number = int(name.split(".")[0])
            try:
                with open(f"{root}/cur/{name}:2,S", "rb") as file:
                    data = file.read()
                os.unlink(f"{root}/cur/{name}:2,S")
            except FileNotFoundError:
                raise Wrong(f"message {number}: two renames of the same name have succeeded, or it was lost") from None
            if data != message(number):
                raise Wrong(f"message {number} is damaged")
            taken.append(number)
    raise Wrong(f"not all taken after {seconds} seconds")


def end(root, deliverers):
    """Says that no more will come."""
    while True:
        done = len([name for name in os.listdir(root) if name.startswith("done")])
        if done == deliverers:
            os.close(os.open(f"{root}/ended", os.O_CREAT | os.O_EXCL))
            return "ended", None
        time.sleep(0.02)


def play(messages, roots):
    folder = [f"{root}/maildir" for root in roots]
    os.mkdir(folder[0])
    for name in ("tmp", "new", "cur"):
        os.mkdir(f"{folder[0]}/{name}")
    started = time.monotonic()
    each = messages // len(roots)
    bodies = [(deliver, place, i * each, each) for i, place in enumerate(folder)]
    bodies += [(consume, place, 60) for place in folder]
    bodies += [(end, folder[-1], len(roots))]
    results = together(90, *bodies)
    took = time.monotonic() - started
    taken = [number for kind, value in results if kind == "taken" for number in value]
    want = each * len(roots)
    if sorted(taken) != list(range(want)):
        raise Wrong(f"{want} messages were delivered, {len(taken)} taken, {len(set(taken))} different ones")
    for place in folder:
        left = [name for part in ("tmp", "new", "cur") for name in os.listdir(f"{place}/{part}")]
        if left:
            raise Wrong(f"left in {place}: {left[:5]}")
    shares = " and ".join(str(len(value)) for kind, value in results if kind == "taken")
    return f"{want} messages, taken {shares}, {want / took:.0f} in a second"
