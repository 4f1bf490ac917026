"""Proof that the verifier sees damage: a run without a crash is sound, and every kind of damage done to it is noticed."""

import contextlib
import io
import json
import os
import shutil

from . import blocks, verify
from .writer import Writer
from .world import World

STEPS = 400


def flip_byte(root, target):
    with open(f"{root}/{target['path']}", "r+b") as file:
        file.seek(target["index"] * blocks.BLOCK + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def zero_block(root, target):
    with open(f"{root}/{target['path']}", "r+b") as file:
        file.seek(target["index"] * blocks.BLOCK)
        file.write(bytes(blocks.BLOCK))


def older_version(root, target):
    with open(f"{root}/{target['path']}", "r+b") as file:
        file.seek(target["index"] * blocks.BLOCK)
        file.write(blocks.make(target["uid"], target["index"], 7))


def other_place(root, target):
    with open(f"{root}/{target['path']}", "r+b") as file:
        file.seek(target["index"] * blocks.BLOCK)
        file.write(blocks.make(target["uid"], target["index"] + 1, target["version"]))


def other_file(root, target):
    with open(f"{root}/{target['path']}", "r+b") as file:
        file.seek(target["index"] * blocks.BLOCK)
        file.write(blocks.make(target["uid"] + 1, target["index"], target["version"]))


def shorter(root, target):
    path = f"{root}/{target['path']}"
    os.truncate(path, os.path.getsize(path) - blocks.BLOCK)


def longer(root, target):
    path = f"{root}/{target['path']}"
    os.truncate(path, os.path.getsize(path) + 10)


def lost(root, target):
    os.unlink(f"{root}/{target['path']}")


def replaced(root, target):
    path = f"{root}/{target['path']}"
    shutil.copy(path, f"{path}.new")
    os.rename(f"{path}.new", path)


def renamed(root, target):
    os.rename(f"{root}/{target['path']}", f"{root}/zz")


def stray(root, _target):
    with open(f"{root}/zz", "wb"):
        pass


DAMAGES = [flip_byte, zero_block, older_version, other_place, other_file, shorter, longer, lost, replaced, renamed, stray]


def quietly(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        problems = verify.verify(*arguments)
    return problems, output.getvalue()


def synced_block(world):
    """A file that is synced, with a block that is not a hole and not its first."""
    for path, uid in sorted(world.names().items()):
        node = world.nodes[uid]
        if node["kind"] == "file" and not node["unsynced"] and len(node["blocks"]) > 2:
            index = sorted(node["blocks"])[1]
            return {"path": path, "uid": uid, "index": index, "version": node["blocks"][index]}
    raise AssertionError("the writer synced nothing")


def main(directory):
    base, log, new = (f"{directory}/{name}" for name in ("base", "log", "new"))
    root = f"{directory}/root"
    os.makedirs(root)
    verify.empty(base, 100)
    with open(base, encoding="utf-8") as file:
        writer = Writer(root, log, World.load(json.load(file)["nodes"]), 100, 1)
    for _ in range(STEPS):
        writer.step()
    # Directories are synced last, so that no earlier state of the names is possible any more.
    for path, uid in writer.world.names().items():
        if writer.world.nodes[uid]["kind"] in ("dir", "file"):
            writer.fsync(path, uid)
    writer.fsync(".", 1)
    target = synced_block(writer.world)
    failed = 0
    problems, output = quietly(root, base, log, new)
    print(f"{'FAIL' if problems else 'ok'}   an undamaged tree is sound")
    if problems:
        print(output)
        failed += 1
    for damage in DAMAGES:
        copy = f"{directory}/{damage.__name__}"
        # Hard links keep the inode numbers; only what is damaged needs bytes of its own, in place.
        shutil.rmtree(copy, ignore_errors=True)
        os.rename(root, copy)
        saved = f"{directory}/saved"
        shutil.copyfile(f"{copy}/{target['path']}", saved)
        os.link(f"{copy}/{target['path']}", f"{directory}/kept")
        damage(copy, target)
        problems, _ = quietly(copy, base, log, new)
        print(f"{'ok' if problems else 'FAIL'}   {damage.__name__}: noticed" + ("" if problems else " NOT"))
        failed += not problems
        for name in ("zz",):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{copy}/{name}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{copy}/{target['path']}")
        os.rename(f"{directory}/kept", f"{copy}/{target['path']}")
        with open(f"{copy}/{target['path']}", "r+b") as file, open(saved, "rb") as good:
            file.truncate()
            file.write(good.read())
        os.rename(copy, root)
        problems, output = quietly(root, base, log, new)
        assert not problems, f"the tree was not mended after {damage.__name__}: {output}"
    return 1 if failed else 0
