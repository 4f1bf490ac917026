"""Whether a history of concurrent operations could have happened one at a time (Wing and Gong's question, answered by stepping
through the calls and returns with all states that are still possible, as Lowe does)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operation:
    """What was called and when, and what it answered. It took effect at one moment between `called` and `returned`; without the
    latter, then or never."""

    called: int
    returned: int | None
    process: int
    kind: str
    value: object = None


def register(state, operation):
    """A value that is written and read. Returns (whether it can happen, the state after it)."""
    if operation.kind == "write":
        return True, operation.value
    return operation.value == state, state


def name(state, operation):
    """A name in a directory. The state is the inode that it leads to, or None. A value of Ellipsis is not known."""
    kind, value = operation.kind, operation.value
    if kind == "created":
        return state is None, value
    if kind == "refused":
        return state is not None, state
    if kind == "removed":
        return state is not None, None
    if kind == "listed":
        return state is not None and value in (state, Ellipsis), state
    if kind == "absent":
        return state is None, state
    raise ValueError(kind)


class TooMany(Exception):
    """The history is too concurrent to be checked."""


def check(history, model, initial, limit=200_000):
    """Returns None if the history is linearisable, or the operation that shows that it is not: there is no order in which it
    can have answered what it did."""
    events = []
    for i, operation in enumerate(history):
        events.append((operation.called, 0, i))
        if operation.returned is not None:
            events.append((operation.returned, 1, i))
    # At the same instant a call comes first: the two may have overlapped.
    events.sort()
    # A state, and which of the operations under way have taken effect in it.
    possible = {(initial, frozenset())}
    pending = set()
    for _, is_return, i in events:
        if not is_return:
            pending.add(i)
            continue
        after = set()
        seen = set(possible)
        work = list(possible)
        while work:
            state, done = work.pop()
            if i in done:
                after.add((state, done - {i}))
                continue
            for other in pending - done:
                can, next_state = model(state, history[other])
                if can:
                    config = (next_state, done | {other})
                    if config not in seen:
                        seen.add(config)
                        work.append(config)
            if len(seen) > limit:
                raise TooMany(f"over {limit} possible states")
        if not after:
            return history[i]
        pending.discard(i)
        possible = after
    return None


def explain(history, bad):
    """The operations around the one that cannot be."""
    lines = []
    for operation in sorted(history, key=lambda operation: operation.called):
        end = operation.returned if operation.returned is not None else operation.called
        if end >= bad.called - 3_000_000 and operation.called <= (bad.returned or bad.called):
            since = operation.called - bad.called
            mark = "  <- cannot be" if operation is bad else ""
            lines.append(f"{since / 1000:+9.1f} us for {(end - operation.called) / 1000:8.1f} us  process {operation.process}  "
                         f"{operation.kind} {operation.value}{mark}")
    return "\n".join(lines[-40:])
