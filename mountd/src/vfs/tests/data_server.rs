//! Data servers in memory, with chains of replicas: what is not flushed is lost in a crash.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use netfs_common::class::Class;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, GroupId, Ino, InstanceId, ServerId, SessionId, Verifier};
use netfs_common::map::{Chain, ClusterMap, DataServer, Pool, Replica};
use netfs_common::wire::data::{At, Op, Reply, Request, Span};

/// Per byte: data or a hole.
type Chunk = Vec<Option<u8>>;
type Chunks = BTreeMap<ChunkId, Chunk>;

/// The groups of the volume.
const GROUPS: usize = 4;

/// What a server does with calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Well,
    /// It says nothing, and keeps its connections.
    Hung,
    /// It has no connections.
    Dead,
    Busy,
    Stale,
    /// What it has of every chunk is damaged.
    Damaged,
}

/// One server.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) mood: Mood,
    now: Chunks,
    durable: Chunks,
    /// Calls that it has had, of each kind, answered or not.
    pub(super) writes: u64,
    pub(super) reads: u64,
    pub(super) flushes: u64,
}

/// All of them, and the map by which they work.
#[derive(Debug)]
pub(super) struct DataStore {
    pub(super) map: ClusterMap,
    pub(super) disks: BTreeMap<ServerId, Disk>,
    /// Nothing of these sessions happens any more.
    pub(super) fenced: Vec<SessionId>,
    /// Writes fail with this.
    pub(super) refuse: Option<Errno>,
}

fn set(map: &mut Chunks, id: ChunkId, at: u64, cells: &[Option<u8>]) -> i64 {
    let chunk = map.entry(id).or_default();
    let end = at as usize + cells.len();
    if chunk.len() < end {
        chunk.resize(end, None);
    }
    let part = &mut chunk[at as usize..end];
    let before = part.iter().flatten().count() as i64;
    part.copy_from_slice(cells);
    part.iter().flatten().count() as i64 - before
}

fn get(map: &Chunks, id: ChunkId, at: u64, len: u64) -> Vec<Option<u8>> {
    let chunk = map.get(&id);
    (at..at + len).map(|i| chunk.and_then(|c| c.get(i as usize).copied()).flatten()).collect()
}

fn replica(server: ServerId) -> Replica {
    Replica { server, instance: InstanceId(100) }
}

impl Disk {
    /// How many chunks it has.
    pub(super) fn chunks(&self) -> usize {
        self.now.len()
    }
}

impl DataStore {
    /// So many servers, and chains of so many of them.
    pub(super) fn new(servers: u32, replicas: u32) -> DataStore {
        let ids: Vec<_> = (1..=servers).map(ServerId).collect();
        let server = |id: &ServerId| DataServer { id: *id, addrs: vec![format!("x:{id}")] };
        let chain = |group: u32| Chain {
            epoch: Epoch(1),
            verifier: Verifier(1),
            replicas: (0..replicas)
                .map(|i| replica(ids[((group + i) % servers) as usize]))
                .collect(),
            learner: None,
        };
        let chains = (0..GROUPS as u32).map(chain).collect();
        let pool = Pool {
            volume: 0,
            class: Class::DEFAULT,
            first: GroupId(0),
            min_replicas: 1,
            coding: Default::default(),
            chains,
            tier: Default::default(),
        };
        DataStore {
            map: ClusterMap {
                version: Epoch(1),
                servers: ids.iter().map(server).collect(),
                pools: vec![pool],
            },
            disks: ids.iter().map(|id| (*id, Disk::default())).collect(),
            fenced: Vec::new(),
            refuse: None,
        }
    }

    fn change_map(&mut self, mut change: impl FnMut(&mut Chain)) {
        self.map.version.0 += 1;
        for chain in &mut self.map.pools[0].chains {
            let before = chain.clone();
            change(chain);
            if *chain != before {
                chain.epoch.0 += 1;
            }
        }
    }

    /// All servers are killed with everything they had not flushed, and started again.
    pub(super) fn crash(&mut self) {
        self.disks.values_mut().for_each(|disk| disk.now = disk.durable.clone());
        self.change_map(|chain| chain.verifier.0 += 1);
    }

    /// A server leaves the chains that have another one.
    pub(super) fn depose(&mut self, server: ServerId) {
        self.change_map(|chain| {
            if chain.replicas.len() > 1 {
                chain.replicas.retain(|replica| replica.server != server);
            }
        });
    }

    /// A server is well again, gets what it lacks, and is the last replica of the chains that have fewer than two.
    pub(super) fn bring_back(&mut self, server: ServerId) {
        let mut lacks = Vec::new();
        self.change_map(|chain| {
            if let ([other], false) = (&chain.replicas[..], chain.has(server)) {
                lacks.push(other.server);
                chain.replicas.push(replica(server));
            }
        });
        let sources: BTreeSet<_> = lacks.into_iter().collect();
        let has = |map: &ClusterMap, id: &ChunkId, other: ServerId| {
            map.chain_of(*id).is_some_and(|(_, chain)| chain.has(server) && chain.has(other))
        };
        let (mut now, mut durable) = (Chunks::new(), Chunks::new());
        for other in sources {
            let disk = &self.disks[&other];
            for (from, to) in [(&disk.now, &mut now), (&disk.durable, &mut durable)] {
                let theirs = from.iter().filter(|(id, _)| has(&self.map, id, other));
                to.extend(theirs.map(|(id, chunk)| (*id, chunk.clone())));
            }
        }
        let disk = self.disk(server);
        (disk.mood, disk.now, disk.durable) = (Mood::Well, now, durable);
    }

    /// The last replica of every chain has lost what it had not flushed, and the others are gone.
    pub(super) fn lose_all_but(&mut self, last: ServerId) {
        for disk in self.disks.values_mut() {
            disk.now = disk.durable.clone();
        }
        let union: Chunks = self.disks.values().flat_map(|disk| disk.durable.clone()).collect();
        for (id, disk) in &mut self.disks {
            match *id == last {
                true => (disk.now, disk.durable) = (union.clone(), union.clone()),
                false => disk.mood = Mood::Dead,
            }
        }
        self.change_map(|chain| {
            chain.replicas = vec![replica(last)];
            chain.verifier.0 += 1;
        });
    }

    /// The chains lose all their replicas, or get them back.
    pub(super) fn empty_chains(&mut self) -> Vec<Vec<Replica>> {
        let mut before = Vec::new();
        self.change_map(|chain| before.push(std::mem::take(&mut chain.replicas)));
        before
    }

    pub(super) fn fill_chains(&mut self, mut replicas: Vec<Vec<Replica>>) {
        self.change_map(|chain| chain.replicas = replicas.remove(0));
    }

    pub(super) fn disk(&mut self, server: ServerId) -> &mut Disk {
        self.disks.get_mut(&server).unwrap()
    }

    pub(super) fn moods(&mut self, mood: Mood) {
        self.disks.values_mut().for_each(|disk| disk.mood = mood);
    }

    fn chain(&self, id: ChunkId) -> (GroupId, Chain) {
        let (group, chain) = self.map.chain_of(id).unwrap();
        (group, chain.clone())
    }

    fn is_head(&self, server: ServerId, id: ChunkId) -> bool {
        self.chain(id).1.head().is_some_and(|head| head.server == server)
    }

    /// A cut by the metadata server: complete, and durable.
    pub(super) fn cut(&mut self, ino: Ino, from: u64, chunk_size: u64) -> i64 {
        let mut freed = 0;
        let heads: BTreeMap<ChunkId, ServerId> = {
            let all: BTreeSet<_> =
                self.disks.values().flat_map(|d| d.now.keys().copied()).collect();
            let head = |id: ChunkId| Some((id, self.chain(id).1.head()?.server));
            all.into_iter().filter_map(head).collect()
        };
        for (server, disk) in &mut self.disks {
            for (counts, map) in [(false, &mut disk.durable), (true, &mut disk.now)] {
                for (id, chunk) in map.iter_mut().filter(|(id, _)| id.ino == ino) {
                    let start = id.index * chunk_size;
                    let keep = from.saturating_sub(start).min(chunk.len() as u64) as usize;
                    if counts && heads.get(id) == Some(server) {
                        freed += chunk[keep..].iter().flatten().count() as i64;
                    }
                    chunk.truncate(keep);
                }
            }
        }
        freed
    }

    /// The chunks that a span touches and a server is the head of, and where in the file they begin.
    fn chunks_of(&self, server: ServerId, span: Span) -> Vec<(u64, ChunkId)> {
        let Span { ino, generation, chunk_bits, from, to } = span;
        let id = |index| ChunkId { ino, generation, index };
        let now = &self.disks[&server].now;
        let chunks = now.range(id(from >> chunk_bits)..=id((to - 1) >> chunk_bits));
        let own = chunks.filter(|(id, _)| self.is_head(server, **id));
        own.map(|(id, _)| (id.index << chunk_bits, *id)).collect()
    }

    /// A call as if it came to the right server.
    pub(super) fn call(&mut self, op: Op, payload: &Bytes) -> (Reply, Bytes) {
        let (Op::Write { chunk, .. } | Op::Read { chunk, .. }) = op else { panic!("{op:?}") };
        let (group, chain) = self.chain(chunk);
        let request = Request { at: At::Group { group, epoch: chain.epoch }, op };
        self.serve(chain.head().unwrap().server, request, payload).unwrap()
    }

    /// Whether a server has a part in what is asked, by the present map.
    fn is_right(&self, server: ServerId, request: &Request) -> bool {
        let head = |group: GroupId, epoch: Epoch| {
            self.map.chain(group).is_some_and(|chain| {
                chain.epoch == epoch && chain.head().is_some_and(|head| head.server == server)
            })
        };
        match (&request.op, request.at) {
            (Op::Read { chunk, .. }, At::Group { group, epoch }) => {
                let chain = self.map.chain(group).unwrap();
                assert_eq!(self.map.group_of(*chunk), Some(group));
                chain.epoch == epoch && chain.replicas.iter().any(|r| r.server == server)
            }
            (
                Op::Write { chunk, .. } | Op::Punch { chunk, .. } | Op::Copy { target: chunk, .. },
                At::Group { group, epoch },
            ) => {
                assert_eq!(self.map.group_of(*chunk), Some(group));
                head(group, epoch)
            }
            (Op::Extents { .. } | Op::PunchSpan { .. }, At::Map { version }) => {
                version == self.map.version
            }
            (Op::Flush { groups }, At::Server) => groups.iter().all(|(g, e)| head(*g, *e)),
            other => panic!("{other:?} says nothing of the map"),
        }
    }

    /// One call to one server; `None`: it does not answer.
    pub(super) fn serve(
        &mut self,
        server: ServerId,
        request: Request,
        payload: &Bytes,
    ) -> Option<(Reply, Bytes)> {
        let disk = self.disk(server);
        match &request.op {
            Op::Read { .. } => disk.reads += 1,
            Op::Flush { .. } => disk.flushes += 1,
            _ => disk.writes += 1,
        }
        let bare = |reply| Some((reply, Bytes::new()));
        match disk.mood {
            Mood::Hung | Mood::Dead => return None,
            Mood::Busy => return bare(Reply::Busy),
            Mood::Stale => return bare(Reply::StaleEpoch(Epoch(0))),
            Mood::Damaged if matches!(request.op, Op::Read { .. }) => {
                return bare(Reply::Failed(Errno::EIO));
            }
            Mood::Well | Mood::Damaged => {}
        }
        if !self.is_right(server, &request) {
            return bare(Reply::StaleEpoch(self.map.version));
        }
        match request.op {
            Op::Write { chunk, offset } => {
                if let Some(e) = self.refuse {
                    return bare(Reply::Failed(e));
                }
                let cells: Vec<_> = payload.iter().map(|b| Some(*b)).collect();
                self.change(chunk, |now| set(now, chunk, offset, &cells)).and_then(bare)
            }
            Op::Read { chunk, offset, len } => {
                let cells = get(&self.disks[&server].now, chunk, offset, len);
                let bytes: Vec<u8> = cells.into_iter().map(|c| c.unwrap_or(0)).collect();
                Some((Reply::Read, bytes.into()))
            }
            Op::Punch { chunk, offset, len } => {
                let have = self.disks[&server].now.get(&chunk).map_or(0, |c| c.len() as u64);
                let hole = vec![None; len.min(have.saturating_sub(offset)) as usize];
                let punch = |now: &mut Chunks| match hole.is_empty() {
                    true => 0,
                    false => set(now, chunk, offset, &hole),
                };
                self.change(chunk, punch).and_then(bare)
            }
            Op::Copy { source, source_offset, target, target_offset, len } => {
                if self.chain(source).1.replicas.iter().all(|r| r.server != server) {
                    return bare(Reply::Apart);
                }
                let cells = get(&self.disks[&server].now, source, source_offset, len);
                self.change(target, |now| set(now, target, target_offset, &cells)).and_then(bare)
            }
            Op::Extents { span, limit } => bare(self.extents(server, span, limit)),
            Op::PunchSpan { span } => bare(self.punch_span(server, span)),
            Op::Flush { groups } => {
                let is_short = |group| {
                    let least = self.map.pool_of(group).unwrap().min_replicas;
                    self.map.chain(group).unwrap().replicas.len() < usize::from(least)
                };
                if groups.iter().any(|(group, _)| is_short(*group)) {
                    return bare(Reply::Busy);
                }
                let mut verifiers = Vec::new();
                for (group, _) in groups {
                    let chain = self.map.chain(group).unwrap().clone();
                    verifiers.push(chain.verifier);
                    for replica in chain.replicas {
                        self.harden(replica.server, |map, id| map.group_of(id) == Some(group));
                    }
                }
                bare(Reply::Flushed { verifiers })
            }
            Op::Delete { .. } | Op::Usage | Op::Fence { .. } | Op::FlushHere | Op::Peer(_) => {
                bare(Reply::Failed(Errno::ENOSYS))
            }
        }
    }

    /// Every replica does it; `None` as long as one does not answer.
    fn change(
        &mut self,
        chunk: ChunkId,
        mut does: impl FnMut(&mut Chunks) -> i64,
    ) -> Option<Reply> {
        let (_, chain) = self.chain(chunk);
        let hung = |r: &Replica| matches!(self.disks[&r.server].mood, Mood::Hung | Mood::Dead);
        if chain.replicas.iter().any(hung) {
            return None;
        }
        let mut allocated = 0;
        for replica in chain.replicas.iter().rev() {
            allocated = does(&mut self.disk(replica.server).now);
        }
        Some(Reply::Written { verifier: chain.verifier, allocated })
    }

    /// What it has of these chunks is on stable storage.
    fn harden(&mut self, server: ServerId, which: impl Fn(&ClusterMap, ChunkId) -> bool) {
        let map = &self.map;
        let Some(disk) = self.disks.get_mut(&server) else { return };
        for (id, chunk) in disk.now.iter().filter(|(id, _)| which(map, **id)) {
            disk.durable.insert(*id, chunk.clone());
        }
    }

    fn extents(&self, server: ServerId, span: Span, limit: u32) -> Reply {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        for (start, id) in self.chunks_of(server, span) {
            for (i, cell) in self.disks[&server].now[&id].iter().enumerate() {
                let at = start + i as u64;
                let told = extents.len();
                match extents.last_mut() {
                    _ if cell.is_none() || at < span.from || at >= span.to => {}
                    Some((_, end)) if *end == at => *end += 1,
                    _ if told == limit as usize => return Reply::Extents { extents, upto: at },
                    _ => extents.push((at, at + 1)),
                }
            }
        }
        Reply::Extents { extents, upto: span.to }
    }

    /// One chunk at a time, so that callers have to ask again.
    fn punch_span(&mut self, server: ServerId, span: Span) -> Reply {
        let mut chunks = self.chunks_of(server, span).into_iter();
        let mut allocated = 0;
        if let Some((start, id)) = chunks.next() {
            let from = span.from.saturating_sub(start);
            let have = self.disks[&server].now[&id].len() as u64;
            let hole = vec![None; have.min(span.to - start).saturating_sub(from) as usize];
            for replica in self.chain(id).1.replicas.iter().rev() {
                if !hole.is_empty() {
                    allocated = set(&mut self.disk(replica.server).now, id, from, &hole);
                }
                self.harden(replica.server, |_, other| other == id);
            }
        }
        let upto = chunks.next().map_or(span.to, |(start, _)| start);
        Reply::Punched { allocated, upto }
    }
}
