//! What a tail does for its learner, and a learner with what comes.

use super::*;

impl Server {
    pub(super) fn install(
        &mut self,
        ctx: &mut Context<'_>,
        group: GroupId,
        chunk: ChunkId,
        piece: Piece,
    ) {
        if self.applying.values().any(|other| other.change.chunk == chunk) {
            ctx.oracle.fail(format!("{}: a chunk is replaced while it is changed", self.id));
        }
        if let Some(part) = self.parts.get_mut(&group) {
            part.order.remove(&chunk);
        }
        if let Some((version, cells)) = self.store.install(chunk, piece) {
            ctx.oracle.stored(chunk, version, cells, &format!("server {} (copy)", self.id));
        }
    }

    pub(super) fn list(
        &mut self,
        ctx: &mut Context<'_>,
        of: Lesson,
        so_far: BTreeMap<ChunkId, Version>,
    ) {
        let after = so_far.last_key_value().map(|(chunk, _)| *chunk);
        let call = Call::List { of, after };
        self.call(ctx, of.learner.server, call, Purpose::List(of, so_far));
    }

    pub(super) fn compare(
        &mut self,
        ctx: &mut Context<'_>,
        of: Lesson,
        theirs: &BTreeMap<ChunkId, Version>,
    ) {
        let own = self.store.list().filter(|(chunk, _)| ctx.group_of(*chunk) == of.group);
        let own: BTreeMap<_, _> = own.map(|(chunk, entry)| (chunk, entry.version)).collect();
        let all: BTreeSet<ChunkId> = own.keys().chain(theirs.keys()).copied().collect();
        let differs = |c: &ChunkId| {
            let ours = own.get(c);
            ours != theirs.get(c) || ours == Some(&Version::NONE)
        };
        let differ = all.into_iter().filter(differs).collect();
        self.with(ctx, of.group, |g| g.compared(of.learner, differ));
    }

    pub(super) fn push(&mut self, ctx: &mut Context<'_>, of: Lesson, chunk: ChunkId) {
        let (version, last, piece) = match self.store.get(chunk) {
            None => (Version::NONE, true, Piece::Gone),
            Some(entry) => (entry.version, false, Piece::First(entry.cells[0])),
        };
        let purpose = Purpose::Push { of, chunk, version, last };
        self.call(ctx, of.learner.server, Call::Install { of, chunk, piece }, purpose);
    }

    /// The rest of a copy, if the chunk is still as it was.
    pub(super) fn push_on(
        &mut self,
        ctx: &mut Context<'_>,
        of: Lesson,
        chunk: ChunkId,
        version: Version,
    ) {
        let same = |entry: &Entry| entry.version == version || self.is(Mutant::CopiesOn);
        let entry = self.store.get(chunk).filter(same);
        let goes_on = self.epoch(of.group) == of.epoch || self.is(Mutant::CopiesOn);
        let Some(entry) = entry.filter(|_| goes_on) else {
            return self.with(ctx, of.group, |g| g.pushed(of.learner, of.epoch, chunk, false));
        };
        let piece = Piece::Last(entry.cells[1], version);
        let purpose = Purpose::Push { of, chunk, version, last: true };
        self.call(ctx, of.learner.server, Call::Install { of, chunk, piece }, purpose);
    }
}
