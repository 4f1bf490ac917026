"""Processes that work at the same time, and what is said when one of them fails."""

import multiprocessing
import time
import traceback

FORK = multiprocessing.get_context("fork")


class Wrong(Exception):
    """Something is lost, doubled or damaged."""


def guarded(queue, body, arguments):
    try:
        queue.put((body.__name__, None, body(*arguments)))
    except Wrong as error:
        queue.put((body.__name__, str(error), None))
    except BaseException:
        queue.put((body.__name__, traceback.format_exc(), None))


def together(seconds, *bodies):
    """Runs each (function, arguments...) in a process of its own. Returns their results, in their order of ending."""
    queue = FORK.Queue()
    processes = [FORK.Process(target=guarded, args=(queue, body, arguments), daemon=True) for body, *arguments in bodies]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    results = []
    try:
        for _ in processes:
            try:
                name, error, result = queue.get(timeout=max(0.1, deadline - time.monotonic()))
            except Exception:
                raise Wrong(f"not ended after {seconds} seconds") from None
            if error:
                raise Wrong(f"{name}: {error}")
            results.append(result)
    finally:
        for process in processes:
            process.join(0.5 if len(results) == len(processes) else 0)
            if process.is_alive():
                process.kill()
                process.join(5)
    return results
