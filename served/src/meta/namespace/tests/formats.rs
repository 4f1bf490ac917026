//! The layout of keys and values, byte by byte. Whoever has to change these has to raise the
//! format version.

use super::*;
use crate::meta::record::{self, Answer, Entry, Session, Trim, Window};
use crate::meta::{keys, record::Deletion};

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn keys_are_pinned() {
    let (ino, session) = (Ino(0x0102), SessionId(0x0a0b));
    let keys = [
        keys::state(),
        keys::volume(),
        keys::lost(),
        keys::inode(ino),
        keys::inline(ino),
        keys::xattr(ino, b"user.a"),
        keys::entry(ino, b"name"),
        keys::listing(ino, 3),
        keys::orphan(ino),
        keys::hold(session, ino),
        keys::session(session),
        keys::window(session),
        keys::reply(session, OpSeq(9)),
        keys::trim(5),
        keys::deletion(6),
    ];
    let pinned = [
        "01",
        "02",
        "03",
        "100000000000000102",
        "110000000000000102",
        "120000000000000102757365722e61",
        "1300000000000001026e616d65",
        "1400000000000001020000000000000003",
        "200000000000000102",
        "210000000000000a0b0000000000000102",
        "300000000000000a0b",
        "310000000000000a0b",
        "320000000000000a0b0000000000000009",
        "400000000000000005",
        "410000000000000006",
    ];
    assert_eq!(keys.map(hex), pinned);
}

#[test]
fn values_are_pinned() {
    let mut world = World::new();
    let dir = world.dir(ROOT, "d");
    world.file(dir, "f");
    let stored = |key: Vec<u8>| hex(world.store.get(&key).unwrap().unwrap());
    let entry = Entry { ino: Ino(300), kind: FileKind::Symlink, cookie: 3 };
    let session =
        Session { description: "host".into(), owner: "laptop".into(), opened: at(1), ended: false };
    let window = Window { answered: OpSeq(1), dropped: OpSeq(1), highest: OpSeq(2) };
    let trim = Trim { ino: Ino(2), generation: 1, chunk_bits: 22, from: 3, end: 4 };
    let deletion = Deletion { ino: Ino(2), generation: 1, chunk_bits: 22, end: 4 };
    let values = [
        stored(keys::state()),
        stored(keys::volume()),
        stored(keys::inode(dir)),
        stored(keys::listing(dir, 3)),
        hex(record::encode(&entry).unwrap()),
        hex(record::encode(&session).unwrap()),
        hex(record::encode(&window).unwrap()),
        hex(record::encode(&trim).unwrap()),
        hex(record::encode(&deletion).unwrap()),
        hex(record::encode(&Answer { outcome: Ok((Some(Ino(2)), vec![Ino(2), ROOT])) }).unwrap()),
        hex(record::encode(&Answer { outcome: Err(Errno::ENOENT) }).unwrap()),
    ];
    assert_eq!(values, PINNED);
}

const PINNED: [&str; 11] = [
    "0404010300000100",
    "076416fd000000000001000002",
    "0201fbed01020a1400fb001000fbd60705fbd80705fbd80705fbd607050016000001040401000000",
    "03000166",
    "fb2c010203",
    "04686f7374066c6170746f70020500",
    "010102",
    "0201160304",
    "02011604",
    "000102020201",
    "0104",
];

#[test]
fn a_command_is_pinned() {
    let op = Op::Unlink { parent: Ino(1), name: name("f") };
    let (session, seq, answered) = (SessionId(3), OpSeq(2), OpSeq(1));
    let command = Command { time: at(7), action: Action::Mutate { session, seq, answered, op } };
    let bytes = netfs_common::codec::encode(&command).unwrap();
    assert_eq!(hex(&bytes), "0e050403020102010166");
    assert_eq!(netfs_common::codec::decode::<Command>(&bytes).unwrap(), command);
}
