//! Nodes, the network between them, and what goes wrong.

mod rest;
mod rot;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use netfs_common::id::{ChunkId, GroupId, ServerId};
use netfs_common::map::Replica;
use netfs_served::meta::cluster::{Command, Config, Duty, StoreId};

use super::client::Client;
use super::manager::Brain;
use super::model::*;
use super::net::Net;
use super::oracle::Oracle;
use super::server::Server;
use netfs_common::simulation::{Failure, Rng};

/// For so long things break.
const TROUBLE: Duration = Duration::from_millis(2500);
/// So much later all that is there must have its redundancy again, without those that stay away.
const ABSENCE: Duration = Duration::from_millis(5000);
/// So long after all are back everything must have come to rest.
const REST: Duration = Duration::from_millis(6000);
const CHECK: Duration = Duration::from_millis(25);
const MOST_SERVERS: usize = 7;

/// What a node has at hand.
pub(crate) struct Context<'a> {
    pub(crate) now: Duration,
    pub(crate) rng: &'a mut Rng,
    pub(crate) oracle: &'a mut Oracle,
    pub(crate) out: Vec<Out>,
    /// The group of each chunk.
    pub(crate) groups: &'a [GroupId],
    /// Clients begin new things.
    pub(crate) busy: bool,
    pub(crate) lease: Duration,
    ids: &'a mut u64,
    history: &'a mut Option<Vec<String>>,
}

impl Context<'_> {
    pub(crate) fn next_id(&mut self) -> u64 {
        *self.ids += 1;
        *self.ids
    }

    pub(crate) fn group_of(&self, chunk: ChunkId) -> GroupId {
        self.groups[chunk.index as usize]
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(history) = self.history {
            history.push(what());
        }
    }

    /// A chunk is gone everywhere.
    pub(crate) fn deleted(&mut self, chunk: ChunkId) {
        let index = chunk.index as usize;
        let last = self.oracle.next(index) as usize - 1;
        self.oracle.deleted(index, last);
    }
}

#[derive(Debug)]
enum Event {
    Call {
        from: Node,
        to: Node,
        conn: u64,
        id: u64,
        call: Call,
    },
    Reply {
        from: Node,
        to: Node,
        conn: u64,
        id: u64,
        reply: Reply,
    },
    Lost {
        to: Node,
        life: u64,
        id: u64,
    },
    Wake {
        node: Node,
        life: u64,
        timer: Timer,
    },
    Start(Node),
    /// A server is as fast as before, and stores everything.
    Well(ServerId),
    Trouble,
    Check,
}

#[derive(Debug)]
struct Item {
    at: Duration,
    order: u64,
    event: Event,
}

impl PartialEq for Item {
    fn eq(&self, other: &Item) -> bool {
        self.order == other.order
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Item) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Item) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

#[derive(Debug, Default)]
struct Seat {
    life: u64,
    down: bool,
    paused_until: Duration,
}

/// What tends to go wrong in a history.
#[derive(Debug)]
struct Temper {
    /// Of a thousand messages so many are lost.
    loss: u64,
    /// Of a thousand messages so many are late.
    late: u64,
    /// Of a thousand changes of the map so many are late.
    stale: u64,
    pause: Duration,
    /// Of a thousand servers that stop so many stay away for longer than a lost one is waited for.
    absent: u64,
    weights: [u64; KINDS],
}

const KINDS: usize = 15;

/// How few replicas are enough for writes.
fn some_minimum(rng: &mut Rng, replicas: u8) -> u8 {
    if rng.chance(400) { 1 + rng.below(replicas.into()) as u8 } else { 1 }
}

pub(crate) struct World {
    rng: Rng,
    now: Duration,
    order: u64,
    ids: u64,
    queue: BinaryHeap<Item>,
    net: Net,
    seats: BTreeMap<Node, Seat>,
    brain: Brain,
    servers: Vec<Server>,
    clients: Vec<Client>,
    oracle: Oracle,
    groups: Vec<GroupId>,
    mutant: Option<Mutant>,
    lease: Duration,
    temper: Temper,
    /// Its store was taken away. While a chain counts on it, all others must go on.
    doomed: Option<Replica>,
    calm: bool,
    /// They stay away although nothing goes wrong any more, until others have taken their places.
    away: BTreeSet<ServerId>,
    /// Since when all are to come to rest, or to do without those that are away.
    since: Duration,
    history: Option<Vec<String>>,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>, noting: bool) -> World {
        let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x0c4a_1175);
        let mut temper = Temper {
            loss: [0, 2, 10, 40][rng.below(4)],
            late: [0, 10, 50][rng.below(3)],
            stale: [0, 200, 500][rng.below(3)],
            pause: MS * [30, 80, 200][rng.below(3)],
            absent: [0, 0, 200][rng.below(3)],
            weights: std::array::from_fn(|_| [0, 1, 1, 4][rng.below(4)]),
        };
        // In many histories one kind of trouble is much more frequent than the others.
        if rng.chance(600) {
            temper.weights[rng.below(KINDS)] += 12;
        }
        let replicas = [1, 2, 3, 3, 5][rng.below(5)];
        let servers = if replicas > 3 { 5 + rng.below(2) } else { 3 + rng.below(3) };
        let mut world = World {
            now: Duration::ZERO,
            order: 0,
            ids: 0,
            queue: BinaryHeap::new(),
            net: Net::default(),
            seats: BTreeMap::new(),
            brain: Brain::new(mutant),
            servers: Vec::new(),
            clients: Vec::new(),
            oracle: Oracle::new(std::iter::empty()),
            groups: Vec::new(),
            mutant,
            lease: Config { deadline: DEADLINE, ..Config::default() }.lease(),
            temper,
            doomed: None,
            calm: false,
            away: BTreeSet::new(),
            since: TROUBLE,
            history: noting.then(Vec::new),
            steps: 0,
            rng,
        };
        world.build(servers, replicas);
        world
    }

    fn build(&mut self, servers: usize, replicas: u8) {
        let chunks = 3 + self.rng.below(5);
        let groups = 2 + self.rng.below(3) as u32;
        self.seats.insert(MANAGER, Seat::default());
        self.with_brain(|brain, ctx| brain.start(ctx));
        for _ in 0..servers {
            self.add_server();
        }
        self.with_brain(|brain, ctx| {
            brain.with(ctx, |m, now| {
                m.ensure_pool(now, 0, (groups, replicas), netfs_common::map::TierMode::Cold)
            });
            let min = some_minimum(ctx.rng, replicas);
            brain.command(ctx, Command::Replicas(0, replicas, min));
        });
        let map = self.brain.map();
        self.groups = (0..chunks).map(|i| map.group_of(chunk(i)).unwrap()).collect();
        self.oracle = Oracle::new(self.groups.clone().into_iter());
        let count = 2 + self.rng.below(2);
        for i in 0..count {
            let own = (0..chunks).filter(|chunk| chunk % count == i).collect();
            let node = Node(CLIENTS + i as u32);
            self.seats.insert(node, Seat::default());
            self.clients.push(Client::new(node, own, self.mutant, map.clone()));
            self.with_client(i, |client, ctx| client.start(ctx));
        }
        self.schedule(MS * 60, Event::Trouble);
        self.schedule(TROUBLE, Event::Check);
    }

    /// Runs to the end, or to the first thing that is wrong.
    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        while let Some(item) = self.queue.pop() {
            self.now = self.now.max(item.at);
            if let Some(later) = self.put_off(&item.event) {
                self.queue.push(Item { at: later, ..item });
                continue;
            }
            if let Some(history) = &mut self.history
                && !matches!(item.event, Event::Wake { timer: Timer::Tick, .. } | Event::Check)
            {
                history.push(format!("{:>9.3} {:?}", self.now.as_secs_f64() * 1e3, item.event));
            }
            self.steps += 1;
            let checks = matches!(item.event, Event::Check);
            self.step(item.event);
            if let Some(what) = self.oracle.violation.take() {
                return Err(self.failure(what));
            }
            if checks && self.calm {
                let is_over = self.check().map_err(|what| self.failure(what))?;
                if let Some(what) = self.oracle.violation.take() {
                    return Err(self.failure(what));
                }
                if is_over {
                    return Ok(());
                }
            }
        }
        Err(self.failure("nothing happens any more".to_owned()))
    }

    fn failure(&mut self, what: String) -> Failure {
        Failure { what, history: self.history.take().unwrap_or_default() }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.order += 1;
        self.queue.push(Item { at, order: self.order, event });
    }

    /// Until when a node that sleeps does not notice.
    fn put_off(&self, event: &Event) -> Option<Duration> {
        let node = match event {
            Event::Call { to, .. } | Event::Reply { to, .. } | Event::Lost { to, .. } => to,
            Event::Wake { node, .. } => node,
            Event::Start(_) | Event::Well(_) | Event::Trouble | Event::Check => return None,
        };
        let until = self.seats.get(node)?.paused_until;
        (until > self.now).then_some(until)
    }

    fn context(&mut self) -> (Context<'_>, &mut Brain, &mut Vec<Server>, &mut Vec<Client>) {
        let ctx = Context {
            now: self.now,
            rng: &mut self.rng,
            oracle: &mut self.oracle,
            out: Vec::new(),
            groups: &self.groups,
            busy: !self.calm,
            lease: self.lease,
            ids: &mut self.ids,
            history: &mut self.history,
        };
        (ctx, &mut self.brain, &mut self.servers, &mut self.clients)
    }

    fn with_brain<T>(&mut self, f: impl FnOnce(&mut Brain, &mut Context<'_>) -> T) -> T {
        let (mut ctx, brain, ..) = self.context();
        let result = f(brain, &mut ctx);
        let out = ctx.out;
        self.carry(MANAGER, out);
        if std::mem::take(&mut self.brain.changed) {
            self.spread();
        }
        for (index, to) in std::mem::take(&mut self.brain.handed) {
            self.with_client(to, |client, ctx| client.get(ctx, index));
        }
        result
    }

    fn with_server<T>(
        &mut self,
        at: usize,
        f: impl FnOnce(&mut Server, &mut Context<'_>) -> T,
    ) -> T {
        let (mut ctx, _, servers, _) = self.context();
        let result = f(&mut servers[at], &mut ctx);
        let (out, node) = (ctx.out, self.servers[at].node());
        self.carry(node, out);
        result
    }

    fn with_client<T>(
        &mut self,
        at: usize,
        f: impl FnOnce(&mut Client, &mut Context<'_>) -> T,
    ) -> T {
        let (mut ctx, _, _, clients) = self.context();
        let result = f(&mut clients[at], &mut ctx);
        let out = ctx.out;
        self.carry(Node(CLIENTS + at as u32), out);
        result
    }

    /// Tells clients of a new map; some do not hear it.
    fn spread(&mut self) {
        if !self.calm && self.rng.chance(self.temper.stale) {
            let until = self.now + self.rng.time(MS * 10, MS * 450);
            for to in self.seats.keys().copied().filter(|node| *node != MANAGER).collect::<Vec<_>>()
            {
                if self.rng.chance(500) {
                    self.net.cut(MANAGER, to, until);
                }
            }
        }
        for at in 0..self.clients.len() {
            let to = Node(CLIENTS + at as u32);
            if self.rng.chance(200) || self.net.is_cut(MANAGER, to, self.now) {
                continue;
            }
            let (conn, at) = (self.net.conn(MANAGER, to), self.now + self.delay());
            let reply = Reply::Map(self.brain.map());
            self.schedule(at, Event::Reply { from: MANAGER, to, conn, id: 0, reply });
        }
    }

    fn delay(&mut self) -> Duration {
        let late = self.temper.late;
        match () {
            () if self.calm => self.rng.time(MS / 10, MS * 3),
            () if self.rng.chance(late / 5) => self.rng.time(MS * 20, MS * 500),
            () if self.rng.chance(late) => self.rng.time(MS * 5, MS * 60),
            () => self.rng.time(MS / 10, MS * 3),
        }
    }

    fn life(&self, node: Node) -> u64 {
        self.seats.get(&node).map_or(0, |seat| seat.life)
    }

    fn is_up(&self, node: Node) -> bool {
        self.seats.get(&node).is_some_and(|seat| !seat.down)
    }

    /// Takes what a node wants to where it belongs.
    fn carry(&mut self, from: Node, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Wake { after, timer } => {
                    let life = self.life(from);
                    self.schedule(self.now + after, Event::Wake { node: from, life, timer });
                }
                Out::GiveUp(id) => self.net.give_up(id),
                Out::Call { to, id, call } => {
                    let conn = self.net.call(from, to, id);
                    match self.arrives(from, to) {
                        Some(at) => self.schedule(at, Event::Call { from, to, conn, id, call }),
                        None => self.sever(from, to, false),
                    }
                }
                Out::Reply { to, conn, id, reply } => {
                    if self.net.conn(from, to) != conn {
                        continue;
                    }
                    match self.arrives(from, to) {
                        Some(at) => self.schedule(at, Event::Reply { from, to, conn, id, reply }),
                        None => self.sever(from, to, false),
                    }
                }
            }
        }
    }

    fn arrives(&mut self, from: Node, to: Node) -> Option<Duration> {
        let lost = !self.calm && self.rng.chance(self.temper.loss);
        if lost || self.net.is_cut(from, to, self.now) || !self.is_up(to) {
            return None;
        }
        Some(self.now + self.delay())
    }

    fn sever(&mut self, a: Node, b: Node, at_once: bool) {
        let at_once = at_once || self.rng.chance(500);
        for (id, open) in self.net.sever(a, b, at_once) {
            let longest = if self.rng.chance(50) { MS * 300 } else { MS * 20 };
            let (at, life) = (self.now + self.rng.time(MS, longest), self.life(open.from));
            self.schedule(at, Event::Lost { to: open.from, life, id });
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Call { from, to, conn, id, call } => {
                if !self.is_up(to) {
                    return self.sever(from, to, true);
                }
                if self.net.arrives(from, to, conn) {
                    self.receive(from, to, conn, id, call);
                }
            }
            Event::Reply { from, to, conn, id, reply } => {
                let arrives = self.net.arrives(from, to, conn) && self.is_up(to);
                if arrives && (id == 0 || self.net.answered(id)) {
                    self.replied(to, id, Some(reply));
                }
            }
            Event::Lost { to, life, id } => {
                if self.is_up(to) && life == self.life(to) {
                    self.replied(to, id, None);
                }
            }
            Event::Wake { node, life, timer } => {
                if self.is_up(node) && life == self.life(node) {
                    self.wake(node, timer);
                }
            }
            Event::Start(node) => self.start(node),
            Event::Well(id) => {
                let server = &mut self.servers[id.0 as usize - 1];
                (server.slow, server.failing) = (false, 0);
            }
            Event::Trouble => {
                if self.now < TROUBLE {
                    self.trouble();
                    let pause = self.rng.time(MS, self.temper.pause * 2);
                    self.schedule(self.now + pause, Event::Trouble);
                }
            }
            Event::Check => {
                if !std::mem::replace(&mut self.calm, true) {
                    self.heal();
                }
                self.schedule(self.now + CHECK, Event::Check);
            }
        }
    }

    fn receive(&mut self, from: Node, to: Node, conn: u64, id: u64, call: Call) {
        match (to, call) {
            (MANAGER, Call::Map) => {
                let map = self.brain.map();
                let reply = Out::Reply { to: from, conn, id, reply: Reply::Map(map) };
                self.carry(MANAGER, vec![reply]);
            }
            (MANAGER, _) => {}
            (_, call) => {
                let at = to.0 as usize - 1;
                self.with_server(at, |server, ctx| server.receive(ctx, from, conn, id, call));
            }
        }
    }

    fn replied(&mut self, to: Node, id: u64, reply: Option<Reply>) {
        match to.0 {
            0 => self.with_brain(|brain, ctx| brain.replied(ctx, id, reply)),
            CLIENTS.. => self.with_client((to.0 - CLIENTS) as usize, |client, ctx| match reply {
                Some(Reply::Map(map)) if id == 0 => client.learn(ctx, map),
                reply => client.replied(ctx, id, reply),
            }),
            _ => self.with_server(to.0 as usize - 1, |server, ctx| server.replied(ctx, id, reply)),
        }
    }

    fn wake(&mut self, node: Node, timer: Timer) {
        match node.0 {
            0 => self.with_brain(|brain, ctx| brain.wake(ctx)),
            CLIENTS.. => {
                let at = (node.0 - CLIENTS) as usize;
                self.with_client(at, |client, ctx| client.wake(ctx, timer));
            }
            _ => self.with_server(node.0 as usize - 1, |server, ctx| server.wake(ctx, timer)),
        }
    }

    fn add_server(&mut self) {
        let id = ServerId(self.servers.len() as u32 + 1);
        let command = Command::Add(vec![format!("s{}:1", id.0)]);
        if self.with_brain(|brain, ctx| brain.command(ctx, command)) {
            self.servers.push(Server::new(id, self.mutant));
            self.seats.insert(Node(id.0), Seat::default());
        }
    }

    /// Ends a node's life.
    fn kill(&mut self, node: Node) {
        let Some(seat) = self.seats.get_mut(&node) else { return };
        (seat.life, seat.down, seat.paused_until) = (seat.life + 1, true, Duration::ZERO);
        for other in self.seats.keys().copied().collect::<Vec<_>>() {
            if other != node {
                self.sever(node, other, true);
            }
        }
    }

    fn start(&mut self, node: Node) {
        let Some(seat) = self.seats.get_mut(&node).filter(|seat| seat.down) else { return };
        seat.down = false;
        let life = seat.life;
        match node {
            MANAGER => self.with_brain(|brain, ctx| brain.start(ctx)),
            _ => {
                self.rot(node.0 as usize - 1);
                self.servers[node.0 as usize - 1].reborn(life + 1);
            }
        }
    }
}
