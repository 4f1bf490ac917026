//! Nodes, their clocks, and the network between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use netfs_common::id::Ino;
use netfs_common::wire::lease::Lease;

use super::client::Client;
use super::model::*;
use super::oracle::Oracle;
use super::server::Server;
use netfs_common::simulation::{Failure, Rng};

/// For so long things break.
const TROUBLE: Duration = Duration::from_millis(4500);
/// So much later everything must have come to rest.
const REST: Duration = Duration::from_millis(6000);
const TICK: Duration = Duration::from_millis(12);
const MS: Duration = Duration::from_millis(1);

#[derive(Debug)]
enum Event {
    ToServer(Via, ToServer),
    ToClient(Via, ToClient),
    ClientTick(usize),
    ServerTick,
    ServerWake,
    Trouble,
}

/// A clock of its own: where it begins, and how fast it runs in millionths.
#[derive(Clone, Copy)]
struct LocalClock {
    offset: Duration,
    speed: u64,
}

impl LocalClock {
    fn at(&self, now: Duration) -> Duration {
        self.offset + Duration::from_micros(now.as_micros() as u64 * self.speed / 1_000_000)
    }

    fn when(&self, local: Duration) -> Duration {
        let since = local.saturating_sub(self.offset).as_micros() as u64;
        Duration::from_micros(since * 1_000_000 / self.speed + 1)
    }
}

/// A client's place in the world.
struct Seat {
    client: Client,
    clock: LocalClock,
    paused_until: Duration,
    /// What is sent meanwhile does not arrive.
    cut_until: Duration,
    /// Connections up to this one are broken.
    broken: u64,
    /// And up to this one led to a process that is no more.
    dead: u64,
    lives: u64,
}

pub(crate) struct World {
    rng: Rng,
    now: Duration,
    order: u64,
    queue: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    events: Vec<Option<Event>>,
    mutant: Option<Mutant>,
    server: Server,
    server_clock: LocalClock,
    server_paused_until: Duration,
    server_down_until: Duration,
    seats: Vec<Seat>,
    oracle: Oracle,
    history: Option<Vec<String>>,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>, noting: bool) -> World {
        let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed);
        // Either good clocks, or slow ones of clients beside a fast one of the server.
        let bad = rng.chance(250);
        let mut clock = |server: bool| {
            let spread = rng.below(2000) as u64;
            let speed = match (bad, server) {
                (true, true) => 1_150_000 + 20 * spread,
                (true, false) => 900_000 - 20 * spread,
                _ => 999_000 + spread,
            };
            LocalClock { offset: Duration::from_millis(rng.next() % 10_000), speed }
        };
        let server_clock = clock(true);
        let clocks: Vec<_> = (0..4).map(|_| clock(false)).collect();
        let count = 2 + rng.below(3);
        let seat = |(i, clock): (usize, LocalClock)| Seat {
            client: Client::new(mutant, i, 1, 0),
            clock,
            paused_until: Duration::ZERO,
            cut_until: Duration::ZERO,
            broken: 0,
            dead: 0,
            lives: 1,
        };
        let mut world = World {
            rng,
            now: Duration::ZERO,
            order: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            mutant,
            server: Server::new(mutant),
            server_clock,
            server_paused_until: Duration::ZERO,
            server_down_until: Duration::ZERO,
            seats: clocks.into_iter().take(count).enumerate().map(seat).collect(),
            oracle: Oracle::default(),
            history: noting.then(Vec::new),
            steps: 0,
        };
        for i in 0..count {
            world.schedule(MS * i as u32, Event::ClientTick(i));
        }
        world.schedule(TICK, Event::ServerTick);
        world.schedule(TICK * 10, Event::Trouble);
        world
    }

    /// Runs to the end, or to the first thing that is wrong.
    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        while let Some(Reverse((at, order, slot))) = self.queue.pop() {
            if at > TROUBLE + REST {
                break;
            }
            let Some(event) = self.events[slot].take() else { continue };
            self.now = self.now.max(at);
            if let Some(later) = self.put_off(&event) {
                self.events[slot] = Some(event);
                self.queue.push(Reverse((later, order, slot)));
                continue;
            }
            if let Some(history) = &mut self.history {
                history.push(format!("{:>9.3} {event:?}", at.as_secs_f64() * 1e3));
            }
            self.steps += 1;
            self.step(event);
            self.check();
            if let Some(what) = self.oracle.violation.take() {
                let history = self.history.take().unwrap_or_default();
                return Err(Failure { what, history });
            }
            let idle = |s: &Seat| s.client.is_idle();
            if self.now > TROUBLE + TERM && self.seats.iter().all(idle) {
                return Ok(());
            }
        }
        let stuck = self.seats.iter().filter(|s| !s.client.is_idle());
        let stuck: Vec<_> = stuck.map(|s| s.client.describe()).collect();
        if stuck.is_empty() {
            return Ok(());
        }
        let what = format!("does not come to rest: {stuck:#?} {}", self.server.describe());
        Err(Failure { what, history: self.history.take().unwrap_or_default() })
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.order += 1;
        self.events.push(Some(event));
        self.queue.push(Reverse((at, self.order, self.events.len() - 1)));
    }

    /// Until when a node that sleeps does not notice.
    fn put_off(&self, event: &Event) -> Option<Duration> {
        let until = match event {
            Event::ToClient(via, _) => self.seats[via.client].paused_until,
            Event::ClientTick(i) => self.seats[*i].paused_until,
            Event::ToServer(..) | Event::ServerTick | Event::ServerWake => self.server_paused_until,
            Event::Trouble => Duration::ZERO,
        };
        (until > self.now).then_some(until)
    }

    fn step(&mut self, event: Event) {
        let server_now = self.server_clock.at(self.now);
        let up = self.now >= self.server_down_until;
        match event {
            Event::ToServer(via, message) => {
                let seat = &self.seats[via.client];
                let late = via.conn <= seat.broken && !is_flush(&message);
                if up && !late && via.conn > seat.dead {
                    self.server.receive(server_now, via, message, &mut self.oracle);
                }
            }
            Event::ToClient(via, message) => {
                let seat = &mut self.seats[via.client];
                let current = via.conn == seat.client.conn && via.session == seat.client.session;
                if current && via.conn > seat.broken {
                    let now = seat.clock.at(self.now);
                    let values = self.server.values();
                    seat.client.receive(now, message, values, &mut self.oracle);
                }
            }
            Event::ClientTick(i) => {
                let seat = &mut self.seats[i];
                let (now, busy) = (seat.clock.at(self.now), self.now < TROUBLE);
                let dead = seat.client.conn <= seat.broken;
                seat.client.tick(now, dead, busy, &mut self.rng, &mut self.oracle);
                let pause = self.rng.time(TICK / 2, TICK * 2);
                self.schedule(self.now + pause, Event::ClientTick(i));
            }
            Event::ServerTick => {
                if up {
                    let flush = self.rng.chance(50);
                    self.server.tick(server_now, flush, &mut self.oracle);
                }
                self.schedule(self.now + TICK, Event::ServerTick);
            }
            Event::ServerWake => {
                if up {
                    self.server.tick(server_now, false, &mut self.oracle);
                }
            }
            Event::Trouble => {
                if self.now < TROUBLE {
                    self.trouble();
                    let pause = self.rng.time(MS * 50, MS * 700);
                    self.schedule(self.now + pause, Event::Trouble);
                } else {
                    self.heal();
                }
            }
        }
        self.carry();
    }

    /// Takes messages to the network.
    fn carry(&mut self) {
        for (session, values) in std::mem::take(&mut self.server.ended) {
            // What such a client has not sent is lost from now on, though it does not know yet.
            for seat in self.seats.iter_mut().filter(|s| s.client.session == session) {
                seat.client.give_up(&values, &mut self.oracle);
            }
        }
        for i in 0..self.seats.len() {
            for (via, message) in std::mem::take(&mut self.seats[i].client.out) {
                let again = match &message {
                    ToServer::Call(_, Request::Change(_)) | ToServer::Answered(_) => true,
                    ToServer::Renew { .. } => true,
                    ToServer::Hello { .. } | ToServer::Call(..) => false,
                };
                let copies = 1 + usize::from(again && self.rng.chance(50));
                for _ in 0..copies {
                    if let Some(at) = self.arrives(via, is_flush(&message)) {
                        self.schedule(at, Event::ToServer(via, message.clone()));
                    }
                }
            }
            if std::mem::take(&mut self.seats[i].client.rolled_back) {
                self.lower();
            }
        }
        for (via, message) in std::mem::take(&mut self.server.out) {
            let again = matches!(message, ToClient::Recall(..));
            let copies = 1 + usize::from(again && self.rng.chance(50));
            for _ in 0..copies {
                if let Some(at) = self.arrives(via, false) {
                    self.schedule(at, Event::ToClient(via, message.clone()));
                }
            }
        }
        if let Some(at) = self.server.wake_at() {
            let at = self.server_clock.when(at).max(self.now + MS / 10);
            self.schedule(at, Event::ServerWake);
        }
    }

    fn arrives(&mut self, via: Via, flush: bool) -> Option<Duration> {
        let seat = &mut self.seats[via.client];
        if seat.cut_until > self.now {
            seat.broken = seat.broken.max(via.conn);
            return None;
        }
        if via.conn <= seat.broken && !flush {
            return None;
        }
        let delay = if flush && self.now < TROUBLE && self.rng.chance(20) {
            self.rng.time(MS, TERM * 3)
        } else if self.rng.chance(40) {
            self.rng.time(MS, MS * 80)
        } else {
            self.rng.time(MS, MS * 8)
        };
        Some(self.now + delay)
    }

    fn trouble(&mut self) {
        let which = self.rng.below(self.seats.len());
        let now = self.now;
        let what = self.rng.below(20);
        match what {
            0..4 => self.seats[which].broken = self.seats[which].client.conn,
            4..8 => self.seats[which].cut_until = now + self.rng.time(MS * 10, TERM * 2),
            8..12 => self.seats[which].paused_until = now + self.rng.time(MS * 20, TERM * 3),
            12 | 13 => self.crash_client(which),
            14 => self.server_paused_until = now + self.rng.time(MS * 10, TERM / 2),
            15..19 => self.crash_server(what >= 17),
            _ => {}
        }
        if let Some(history) = &mut self.history {
            history.push(format!("trouble {what} of client {which}"));
        }
    }

    fn heal(&mut self) {
        let now = self.now;
        for seat in &mut self.seats {
            (seat.cut_until, seat.paused_until) = (now, now);
        }
        self.server_paused_until = now;
    }

    fn crash_client(&mut self, which: usize) {
        let seat = &mut self.seats[which];
        seat.client.give_up(self.server.values(), &mut self.oracle);
        seat.lives += 1;
        let conn = seat.client.conn;
        seat.broken = conn;
        // It begins to count its connections where it was, so that they can be told apart here.
        seat.client = Client::new(self.mutant, which, seat.lives, conn);
        self.lower();
    }

    fn crash_server(&mut self, power: bool) {
        for seat in &mut self.seats {
            seat.broken = seat.client.conn;
            seat.dead = seat.client.conn;
        }
        let made = self.server.durable_changes();
        let now = self.server_clock.at(self.now);
        self.server.restart(now, power, &mut self.oracle);
        if power {
            let mut left = *self.server.values();
            for seat in self.seats.iter().filter(|s| self.server.knows(s.client.session)) {
                for (ino, version) in seat.client.dirty() {
                    for atom in atoms(ATTRS | DATA) {
                        let left = &mut left[ino.0 as usize][atom];
                        *left = version.max(*left);
                    }
                }
            }
            self.oracle.power_failed(&left, made);
            self.lower();
        }
        self.server_down_until = self.now + self.rng.time(MS, MS * 200);
    }

    fn lower(&mut self) {
        self.seats.iter_mut().for_each(|s| s.client.lower(&self.oracle));
    }

    /// What holds at every moment.
    fn check(&mut self) {
        for ino in (0..INOS as u64).map(Ino) {
            let returned = self.oracle.must(ino);
            let mut holders = Vec::new();
            for (i, seat) in self.seats.iter().enumerate() {
                let client = &seat.client;
                let Some(mode) = client.mode(ino) else { continue };
                if !client.believes(seat.clock.at(self.now)) {
                    continue;
                }
                holders.push((i, mode));
                for (atom, version) in client.cached(ino).into_iter().enumerate() {
                    if let Some(version) = version.filter(|v| *v < returned[atom]) {
                        let what = format!(
                            "client {i} keeps {ino:?}.{atom} as of {version} under {mode:?}, {} was returned",
                            returned[atom]
                        );
                        self.oracle.fail(what);
                    }
                }
            }
            if holders.len() > 1 && holders.iter().any(|(_, m)| *m == Lease::Write) {
                self.oracle.fail(format!("{ino:?} is held by {holders:?}"));
            }
        }
    }
}

fn is_flush(message: &ToServer) -> bool {
    match message {
        ToServer::Call(_, Request::Change(change)) => matches!(change.kind, ChangeKind::Flush(_)),
        _ => false,
    }
}
