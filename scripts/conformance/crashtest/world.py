"""What the file system should hold: nodes by number, kept in step with the log of operations."""

import copy

ROOT = 1


class World:
    """A tree of nodes. Each is a dictionary: its kind, and

    - directory: `entries` (name to node), `changed` (sequence number of the last change to them)
    - file: `size` in blocks, `blocks` (index to version, holes absent), as of the last sync; `unsynced` (operations since)
    - symlink: `target`
    and for all of them `inode` (None until known) and `named` (sequence number of the last operation on its names).
    """

    def __init__(self, nodes=None):
        self.nodes = nodes or {ROOT: {"kind": "dir", "entries": {}, "changed": 0, "inode": None, "named": 0}}
        # The earliest state of the names that may be found after a crash: the last sequence number that is synced.
        self.floor = 0

    @classmethod
    def load(cls, state):
        nodes = {int(uid): node for uid, node in state.items()}
        for node in nodes.values():
            if node["kind"] == "file":
                node["blocks"] = {int(index): version for index, version in node["blocks"].items()}
        return cls(nodes)

    def dump(self):
        return {str(uid): node for uid, node in self.nodes.items()}

    def names(self, uid=ROOT, prefix=""):
        """path -> node number, for everything below."""
        found = {}
        for name, child in self.nodes[uid]["entries"].items():
            found[prefix + name] = child
            if self.nodes[child]["kind"] == "dir":
                found.update(self.names(child, f"{prefix}{name}/"))
        return found

    def lookup(self, path):
        """(directory node, name)"""
        *parents, name = path.split("/")
        directory = self.nodes[ROOT]
        for parent in parents:
            directory = self.nodes[directory["entries"][parent]]
        return directory, name

    def find(self, path):
        if path == ".":
            return ROOT
        directory, name = self.lookup(path)
        return directory["entries"].get(name)

    def snapshot(self):
        """The names alone, for comparison with what is found."""
        return {path: (self.nodes[uid]["kind"], uid) for path, uid in self.names().items()}

    def apply(self, record):
        """Brings in one operation of the log."""
        getattr(self, f"_{record['op']}")(record)

    # Names.

    def _add(self, record, node):
        directory, name = self.lookup(record["path"])
        node |= {"inode": record.get("inode"), "named": record["n"]}
        self.nodes[record["uid"]] = node
        directory["entries"][name] = record["uid"]
        directory["changed"] = record["n"]

    def _create(self, record):
        self._add(record, {"kind": "file", "size": 0, "blocks": {}, "unsynced": []})

    def _mkdir(self, record):
        self._add(record, {"kind": "dir", "entries": {}, "changed": record["n"]})

    def _symlink(self, record):
        self._add(record, {"kind": "link", "target": record["target"]})

    def _link(self, record):
        directory, name = self.lookup(record["to"])
        uid = self.find(record["path"])
        directory["entries"][name] = uid
        directory["changed"] = self.nodes[uid]["named"] = record["n"]

    def _remove(self, record):
        directory, name = self.lookup(record["path"])
        uid = directory["entries"].pop(name)
        directory["changed"] = self.nodes[uid]["named"] = record["n"]

    _unlink = _remove
    _rmdir = _remove

    def _rename(self, record):
        source, old = self.lookup(record["path"])
        uid = source["entries"].pop(old)
        target, new = self.lookup(record["to"])
        target["entries"][new] = uid
        source["changed"] = target["changed"] = self.nodes[uid]["named"] = record["n"]

    # Contents: what is not synced is only remembered.

    def _change(self, record):
        self.nodes[record["uid"]]["unsynced"].append(record)
        if record.get("synced") and record.get("done"):
            self._fsync(record)

    _write = _change
    _truncate = _change
    _punch = _change

    def _fsync(self, record):
        if not record.get("done"):
            return
        uid = record["uid"]
        node = self.nodes[uid]
        if node["kind"] == "file":
            for change in node["unsynced"]:
                settle(node, change)
            node["unsynced"] = []
        self._raise_floor(uid)

    def _raise_floor(self, uid):
        """The names leading to it are synced with it."""
        self.floor = max(self.floor, self.nodes[uid]["named"])
        if self.nodes[uid]["kind"] == "dir":
            self.floor = max(self.floor, self.nodes[uid]["changed"])
        for parent, node in list(self.nodes.items()):
            if node["kind"] == "dir" and parent != uid and uid in node["entries"].values():
                self.floor = max(self.floor, self.nodes[parent]["named"])
                self._raise_names(parent)

    def _raise_names(self, uid):
        for parent, node in self.nodes.items():
            if node["kind"] == "dir" and uid in node["entries"].values():
                self.floor = max(self.floor, node["named"])
                self._raise_names(parent)

    def current(self, uid):
        """A file as a program sees it now: size, and index to version."""
        node = copy.deepcopy({key: self.nodes[uid][key] for key in ("size", "blocks")})
        for change in self.nodes[uid]["unsynced"]:
            settle(node, change)
        return node


def settle(node, change):
    """Carries out one change of contents on {"size", "blocks"}."""
    first, count = change.get("first", 0), change.get("count", 0)
    if change["op"] == "write":
        node["blocks"].update(dict.fromkeys(range(first, first + count), change["n"]))
        node["size"] = max(node["size"], first + count)
    elif change["op"] == "punch":
        for index in range(first, first + count):
            node["blocks"].pop(index, None)
    else:
        node["size"] = change["size"]
        node["blocks"] = {i: v for i, v in node["blocks"].items() if i < change["size"]}
