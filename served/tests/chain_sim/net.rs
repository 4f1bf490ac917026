//! Connections between the nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::model::Node;

#[derive(Debug, Default)]
struct Link {
    /// The connection over which messages go now.
    conn: u64,
    /// Messages of connections below this one do not arrive any more.
    dropped: u64,
    /// Until when messages from the lower node, and from the higher one, are lost.
    cut: [Duration; 2],
    /// The last connection of which each has got something.
    seen: [u64; 2],
}

/// A call that is not answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    pub(crate) from: Node,
    pub(crate) to: Node,
    conn: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Net {
    links: BTreeMap<(Node, Node), Link>,
    open: BTreeMap<u64, Open>,
}

impl Net {
    fn link(&mut self, a: Node, b: Node) -> &mut Link {
        self.links.entry((a.min(b), a.max(b))).or_default()
    }

    /// The connection over which a call goes.
    pub(crate) fn call(&mut self, from: Node, to: Node, id: u64) -> u64 {
        let conn = self.link(from, to).conn;
        self.open.insert(id, Open { from, to, conn });
        conn
    }

    pub(crate) fn give_up(&mut self, id: u64) {
        self.open.remove(&id);
    }

    pub(crate) fn is_cut(&mut self, from: Node, to: Node, now: Duration) -> bool {
        self.link(from, to).cut[usize::from(from > to)] > now
    }

    pub(crate) fn cut(&mut self, from: Node, to: Node, until: Duration) {
        self.link(from, to).cut[usize::from(from > to)] = until;
    }

    /// Whether a message may still be received. Nothing of an old connection is after something of a new one.
    pub(crate) fn arrives(&mut self, from: Node, to: Node, conn: u64) -> bool {
        let link = self.link(from, to);
        let seen = &mut link.seen[usize::from(from > to)];
        let arrives = conn >= link.dropped && conn >= *seen;
        *seen = conn.max(*seen);
        arrives
    }

    /// The answer to a call has arrived: whether anybody waits for it.
    pub(crate) fn answered(&mut self, id: u64) -> bool {
        self.open.remove(&id).is_some()
    }

    pub(crate) fn conn(&mut self, from: Node, to: Node) -> u64 {
        self.link(from, to).conn
    }

    /// The connection is no more; the calls that were made over it. What is on its way may be lost at once, or may not.
    pub(crate) fn sever(&mut self, a: Node, b: Node, at_once: bool) -> Vec<(u64, Open)> {
        let link = self.link(a, b);
        link.conn += 1;
        let conn = link.conn;
        if at_once {
            link.dropped = conn;
        }
        let between =
            |open: &Open| (open.from.min(open.to), open.from.max(open.to)) == (a.min(b), a.max(b));
        let lost: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| between(open) && open.conn < conn)
            .map(|(id, open)| (*id, *open))
            .collect();
        for (id, _) in &lost {
            self.open.remove(id);
        }
        lost
    }

    /// Whether some messages do not arrive.
    pub(crate) fn is_cut_anywhere(&self, now: Duration) -> bool {
        self.links.values().any(|link| link.cut.iter().any(|until| *until > now))
    }

    /// All messages arrive again.
    pub(crate) fn heal(&mut self) {
        for link in self.links.values_mut() {
            link.cut = [Duration::ZERO; 2];
        }
    }
}
