"""Decides whether what is found after a crash is something that may be there."""

import json
import os
import stat

from . import blocks
from .world import ROOT, World

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


def read_log(path):
    """Operations in order; those that were under way at the end are not `done`."""
    records = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if "op" in entry:
                records[entry["n"]] = entry
            else:
                records[entry["done"]] |= {"done": True} | ({"inode": entry["inode"]} if "inode" in entry else {})
    return [records[number] for number in sorted(records)]


def found_names(root):
    """path -> (kind, inode)"""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            found[os.path.relpath(path, root)] = (KINDS.get(stat.S_IFMT(info.st_mode), "other"), info.st_ino)
    return found


def matches(expected, found, nodes):
    return expected.keys() == found.keys() and all(
        kind == found[path][0] and nodes[uid]["inode"] in (None, found[path][1]) for path, (kind, uid) in expected.items()
    )


def explain(expected, found, nodes, limit=6):
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"missing {path}")
        elif path not in expected:
            lines.append(f"unexpected {path} {found[path]}")
        elif not matches({path: expected[path]}, {path: found[path]}, nodes):
            lines.append(f"{path} is {found[path]}, not inode {nodes[expected[path][1]]['inode']}")
    return lines[:limit]


def check_names(world, history, found):
    """The names must be those after some operation, not before the last synced one. Returns (names, problems)."""
    for number, names in reversed(history):
        if number < world.floor:
            break
        if matches(names, found, world.nodes):
            return names, []
    oldest = next(names for number, names in reversed(history) if number <= world.floor)
    return None, [
        f"the names are those of no moment since operation {world.floor}, the last that was synced",
        *(f"against operation {world.floor}: {line}" for line in explain(oldest, found, world.nodes)),
        *(f"against the last operation: {line}" for line in explain(history[-1][1], found, world.nodes)),
    ]


def check_file(path, uid, node):
    """Returns (size, versions, problems) of one file."""
    with open(path, "rb") as file:
        data = file.read()
    size, rest = divmod(len(data), blocks.BLOCK)
    unsynced = node["unsynced"]
    problems = []
    if not unsynced and (size != node["size"] or rest):
        problems.append(f"size is {len(data)}, {node['size'] * blocks.BLOCK} was synced")
    sizes = [node["size"]]
    for change in unsynced:
        sizes.append(change["size"] if change["op"] == "truncate" else max(sizes[-1], change["first"] + change["count"] if change["op"] == "write" else 0))
    if not min(sizes) <= size <= max(sizes):
        problems.append(f"size is {size} blocks, possible are {min(sizes)} to {max(sizes)}")
    versions = {}
    for index in range(size + (rest > 0)):
        version = blocks.version_of(data[index * blocks.BLOCK : (index + 1) * blocks.BLOCK], uid, index)
        if version is None:
            problems.append(f"block {index} has bytes that nobody wrote there: {data[index * blocks.BLOCK :][:40]!r}")
            continue
        allowed = allowed_versions(node, index)
        if version not in allowed:
            problems.append(f"block {index} has version {version}, possible are {sorted(allowed)} (0 is a hole)")
        if version != blocks.HOLE:
            versions[index] = version
    return size, versions, problems


def allowed_versions(node, index):
    allowed = {node["blocks"].get(index, blocks.HOLE)}
    for change in node["unsynced"]:
        first, count = change.get("first", 0), change.get("count", 0)
        inside = first <= index < first + count
        if change["op"] == "write" and inside:
            allowed.add(change["n"])
        elif (change["op"] == "punch" and inside) or (change["op"] == "truncate" and change["size"] <= index):
            allowed.add(blocks.HOLE)
    return allowed


def verify(root, base, log, new_base):
    """Prints what is wrong, and writes the state found as the base of the next round. Returns the number of problems."""
    with open(base, encoding="utf-8") as file:
        state = json.load(file)
    world = World.load(state["nodes"])
    history = [(0, world.snapshot())]
    records = read_log(log)
    for record in records:
        world.apply(record)
        if record["op"] not in ("write", "truncate", "punch", "fsync"):
            history.append((record["n"], world.snapshot()))
    found = found_names(root)
    names, problems = check_names(world, history, found)
    synced = {"files": 0, "blocks": 0}
    if names is not None:
        for path, uid in {path: uid for path, (kind, uid) in names.items() if kind == "file"}.items():
            node = world.nodes[uid]
            size, versions, wrong = check_file(f"{root}/{path}", uid, node)
            problems += [f"{path}: {line}" for line in wrong]
            synced["files"] += not node["unsynced"]
            synced["blocks"] += len(node["blocks"])
            node["found"] = (size, versions, found[path][1])
        for path, (kind, uid) in names.items():
            if kind == "link" and os.readlink(f"{root}/{path}") != world.nodes[uid]["target"]:
                problems.append(f"{path}: the link points elsewhere")
        last = records[-1]["n"] if records else state["next"]
        save(new_base, rebased(names, found, world), last)
    for line in problems[:20]:
        print(f"  {line}")
    print(f"{len(records)} operations, {sum(r['op'] == 'fsync' for r in records)} syncs; {len(found)} names found, "
          f"{synced['files']} files and {synced['blocks']} blocks had to be exact; {len(problems)} problems")
    return len(problems)


def rebased(names, found, world):
    """The state found, as nodes: all of it counts as synced from here on."""
    nodes = World().nodes
    for path in sorted(names, key=lambda name: name.count("/")):
        kind, uid = names[path]
        node = {"kind": kind, "inode": found[path][1], "named": 0}
        if kind == "dir":
            node |= {"entries": {}, "changed": 0}
        elif kind == "link":
            node |= {"target": world.nodes[uid]["target"]}
        else:
            size, versions, _ = world.nodes[uid]["found"]
            node |= {"size": size, "blocks": versions, "unsynced": []}
        nodes[uid] = node
        parent, _, name = path.rpartition("/")
        nodes[names[parent][1] if parent else ROOT]["entries"][name] = uid
    return nodes


def save(path, nodes, last):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"nodes": {str(uid): node for uid, node in nodes.items()}, "next": last}, file)


def empty(path, first):
    """The base of the first round."""
    save(path, World().nodes, first)
