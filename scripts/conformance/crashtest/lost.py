"""What a crash took must not come back later: files are written one after another until the server is killed, so that each was
caught at another stage of being stored; what they show after the restart is what they must show ever after.

lost.py write ROOT | note ROOT FILE | touch ROOT | compare ROOT FILE
"""

import hashlib
import json
import os
import sys
import time

FILES = 240
SECONDS_APART = 0.01
BEGIN = b"A" * 14848  # fits into the inode
LOST = b"B" * 153600  # does not
LOST_AT = 33 * 512
TOUCH = b"C" * 4096
TOUCH_AT = (11 * 512, 8190 * 512)  # before and behind what was lost


def path(root, number):
    return f"{root}/f{number}"


def write(root):
    files = []
    for number in range(FILES):
        fd = os.open(path(root, number), os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(fd, BEGIN, 0)
        if number % 2:
            os.ftruncate(fd, 8198 * 512)
        os.fsync(fd)
        files.append(fd)
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    time.sleep(1.2)
    print("synced", flush=True)
    for fd in files:
        os.pwrite(fd, LOST, LOST_AT)
        time.sleep(SECONDS_APART)
    print("written", flush=True)
    time.sleep(60)


def read(root):
    """For each file: its size, and what lies where the lost bytes were."""
    seen = {}
    for number in range(FILES):
        with open(path(root, number), "rb") as file:
            data = file.read()
        place = data[LOST_AT : LOST_AT + len(LOST)].rstrip(b"\0")
        seen[str(number)] = hashlib.sha256(place).hexdigest()[:16] if place else "nothing"
    return seen


def note(root, target):
    seen = read(root)
    with open(target, "w", encoding="utf-8") as file:
        json.dump(seen, file)
    print(f"{sum(what == 'nothing' for what in seen.values())} of {FILES} writes were lost")


def touch(root):
    for number in range(FILES):
        fd = os.open(path(root, number), os.O_WRONLY)
        os.pwrite(fd, TOUCH, TOUCH_AT[number // 2 % 2])
        os.fsync(fd)
        os.close(fd)


def compare(root, before):
    with open(before, encoding="utf-8") as file:
        expected = json.load(file)
    seen = read(root)
    wrong = [f"f{n}: was {expected[n]}, is {seen[n]}" for n in seen if seen[n] != expected[n]]
    print("\n".join(wrong[:10]))
    print(f"{len(wrong)} files show other bytes than before where nobody wrote since")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit({"write": write, "note": note, "touch": touch, "compare": compare}[sys.argv[1]](*sys.argv[2:]))
