//! Replacing damaged copies by what another replica has.
//!
//! Replicas that show the same version of a chunk have the same bytes. So another replica that has the version of the
//! damaged copy knows what belongs there; it is put there if that part of the chunk has not changed since the version was
//! looked at. Where versions differ something is under way, and it is tried again. A replica whose bytes are away fetches them for that. The
//! object of that version in the bucket, if there is one, is as good as a replica.
//!
//! A *place* is a block of a chunk: one replica may have what lies beside what another one lacks.
//!
//! A place counts as lost when a learner is taught (`teaching.rs`) if for a while all who could have its bytes have said that they have them not: each other
//! replica that its copy is damaged there in the very version that is here, the bucket that it has no good object of it. Who did not answer, was busy or
//! shows another version has said nothing. What is lost stays so in later versions: it is written over, or the same bytes. It is tried further: replicas with the same version stay good for each other, whichever of them finds the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netfs_common::id::{ChunkId, GroupId, Version};
use netfs_common::map::{Replica, mix};
use netfs_common::warn_rarely;
use netfs_common::wire::cluster::PeerOp;
use netfs_common::wire::data::{At, MAX_PAYLOAD, Op, Reply, Request};
use tokio::sync::Notify;

use super::metrics::DataMetrics;
use super::replicas::{Replicas, lock};
use crate::data::store::{Patch, StoreError};
use crate::data::tier::Object;

/// So many damaged places are remembered; the scrub finds the others again.
const MAX_PLACES: usize = 1 << 16;
/// A place: so long, and at a multiple of it.
const PLACE: u64 = 4096;
/// Between attempts, at first, and where nobody has what was there.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Another replica has this long to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// So many reads of parts of a chunk may fail there in one attempt. Each may be a fetch of a whole object in vain; to find the one part that fails takes ten.
const MAX_FAILURES: u32 = 32;

/// Damaged places that are to be mended.
#[derive(Debug)]
pub(super) struct Damage {
    places: Mutex<Places>,
    found: Notify,
    metrics: DataMetrics,
    /// What could not be mended for so long is lost.
    loss_after: Duration,
    attempts: AtomicU32,
}

type Where = (ChunkId, u64);

#[derive(Debug, Default)]
struct Places {
    all: BTreeMap<Where, Place>,
    /// Those of them that nobody has, as it seems.
    lost: BTreeSet<Where>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// It is tried again at that time, and then after so long.
    next: Instant,
    pause: Duration,
    /// All have said since then that they have it not.
    lost: Option<Instant>,
    /// It was found once more since it was last looked at.
    again: bool,
}

/// What came of an attempt. Of several, the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing is left to be done.
    Mended,
    /// Nobody has the bytes.
    Lost,
    /// Somebody may have the bytes, and cannot read them.
    Failed,
    /// Somebody may have the bytes.
    Later,
}

/// A part of a damaged place that has data, and what was found of it.
#[derive(Debug)]
struct Piece {
    place: u64,
    patch: Arc<Patch>,
    range: (u64, u64),
    good: Option<Vec<u8>>,
    /// What it means if nobody else has it, after what those have said who were asked.
    otherwise: Outcome,
}

/// What somebody who may have good bytes says.
#[derive(Debug)]
pub(super) enum Said<T> {
    /// These.
    Has(T),
    /// It has not all of them, and will not have them.
    HasNot,
    /// It cannot tell: reading some of them fails.
    Fails,
    /// Nothing, for now.
    Nothing,
}

impl Piece {
    fn end(&self) -> u64 {
        self.range.0 + self.range.1
    }

    fn not_now(&mut self, outcome: Outcome) {
        self.otherwise = self.otherwise.max(outcome);
    }
}

impl Damage {
    pub(super) fn new(metrics: DataMetrics, loss_after: Duration) -> Damage {
        let (places, found) = (Mutex::default(), Notify::new());
        Damage { places, found, metrics, loss_after, attempts: AtomicU32::new(0) }
    }

    /// A range was found damaged.
    pub(super) fn note(&self, chunk: ChunkId, offset: u64, len: u64) {
        let mut places = lock(&self.places);
        let mut is_new = false;
        for at in blocks(offset, len) {
            if let Some(place) = places.all.get_mut(&(chunk, at)) {
                place.again = true;
                continue;
            }
            if places.all.len() >= MAX_PLACES {
                // What nobody has gives way to what somebody may have.
                let Some(lost) = places.lost.pop_first() else { continue };
                places.all.remove(&lost);
            }
            self.metrics.damaged.inc();
            let place = Place { next: Instant::now(), pause: PAUSE, lost: None, again: false };
            places.all.insert((chunk, at), place);
            is_new = true;
        }
        drop(places);
        if is_new {
            self.found.notify_one();
        }
    }

    /// Whether nobody has any of a range any more.
    pub(super) fn is_lost(&self, chunk: ChunkId, (offset, len): (u64, u64)) -> bool {
        let places = lock(&self.places);
        blocks(offset, len).all(|at| places.all.get(&(chunk, at)).is_some_and(|p| self.lost(p)))
    }

    /// Whether somebody may have what some place of a chunk had.
    pub(super) fn may_mend(&self, chunk: ChunkId) -> bool {
        let places = lock(&self.places);
        let mut of_chunk = places.all.range((chunk, 0)..=(chunk, u64::MAX));
        of_chunk.any(|(_, place)| !self.lost(place))
    }

    fn lost(&self, place: &Place) -> bool {
        place.lost.is_some_and(|since| since.elapsed() >= self.loss_after)
    }

    /// What is to be tried now, ascending, by chunk.
    fn due(&self) -> Vec<(ChunkId, Vec<u64>)> {
        let now = Instant::now();
        let mut places = lock(&self.places);
        let mut due: Vec<(ChunkId, Vec<u64>)> = Vec::new();
        for ((chunk, at), place) in places.all.iter_mut().filter(|(_, place)| place.next <= now) {
            place.again = false;
            match due.last_mut() {
                Some((last, of_chunk)) if last == chunk => of_chunk.push(*at),
                _ => due.push((*chunk, vec![*at])),
            }
        }
        due
    }

    fn tried(&self, at: Where, outcome: Outcome) {
        let mut places = lock(&self.places);
        let Places { all, lost } = &mut *places;
        let Some(place) = all.get_mut(&at) else { return };
        match outcome {
            Outcome::Mended if !place.again => {
                all.remove(&at);
                lost.remove(&at);
                return;
            }
            // It may be damaged since it was looked at; or somebody may have the bytes.
            Outcome::Mended | Outcome::Later => {
                (place.lost, place.pause) = (None, PAUSE);
                lost.remove(&at);
            }
            Outcome::Failed => {
                place.lost = None;
                place.pause = (place.pause * 2).min(MAX_PAUSE);
                lost.remove(&at);
            }
            Outcome::Lost => {
                place.lost = place.lost.or(Some(Instant::now()));
                place.pause = (place.pause * 2).min(MAX_PAUSE);
                lost.insert(at);
            }
        }
        place.next = Instant::now() + place.pause;
    }

    /// An error that a read ended with may say that.
    pub(super) fn note_error(&self, error: &StoreError) {
        if let StoreError::Corrupt { key, offset, len, .. } = error {
            self.note(super::chunks::id(key), *offset, *len);
        }
    }
}

/// Mends what is found, for as long as the replicas are there.
pub(super) async fn attend(replicas: Weak<Replicas>) {
    loop {
        let Some(this) = replicas.upgrade() else { return };
        let due = this.damage.due();
        if due.is_empty() {
            // Not for ever: it would keep the replicas alive. Either way it is looked again.
            let _ = tokio::time::timeout(PAUSE, this.damage.found.notified()).await;
            continue;
        }
        for (chunk, places) in due {
            for (at, outcome) in this.mend(chunk, places).await {
                this.damage.tried((chunk, at), outcome);
            }
        }
    }
}

impl Replicas {
    /// Tries to mend some places of a chunk, all at once: each replica and the object store are asked for what they may have in one go. What came of each.
    async fn mend(
        self: &Arc<Self>,
        chunk: ChunkId,
        places: Vec<u64>,
    ) -> impl Iterator<Item = (u64, Outcome)> + use<> {
        let all = |outcome| BTreeMap::from_iter(places.iter().map(|at| (*at, outcome)));
        let view = self.view();
        let chain = view.map.chain_of(chunk);
        let Some((group, chain)) =
            chain.filter(|(_, chain)| chain.members().any(|m| m.instance == self.instance))
        else {
            return all(Outcome::Mended).into_iter();
        };
        let (chunks, of_chunk) = (self.chunks.clone(), places.clone());
        let look = move || chunks.damaged(chunk, &of_chunk, PLACE);
        let Some(damaged) = self.blocking(look).await else {
            return all(Outcome::Later).into_iter();
        };
        let mut outcomes = all(Outcome::Mended);
        let mut came = |place, outcome: Outcome| {
            outcomes.entry(place).and_modify(|before| *before = outcome.max(*before));
        };
        let mut pieces: Vec<Piece> = Vec::new();
        for (place, patch) in damaged {
            match patch {
                Ok(Some((patch, rotten))) => {
                    // It was written to in this very moment: the latest version is that of others, too.
                    if pieces.first().is_some_and(|p| p.patch.version() != patch.version()) {
                        pieces.drain(..).for_each(|p| came(p.place, Outcome::Later));
                    }
                    let patch = Arc::new(patch);
                    for range in rotten {
                        if !patch.ranges().any(|of_patch| of_patch == range) {
                            came(place, Outcome::Later);
                            continue;
                        }
                        let patch = patch.clone();
                        let otherwise = Outcome::Lost;
                        pieces.push(Piece { place, patch, range, good: None, otherwise });
                    }
                }
                Ok(None) => {}
                Err(_) => came(place, Outcome::Later),
            }
        }
        let Some(version) = pieces.first().map(|piece| Version(piece.patch.version().0)) else {
            return outcomes.into_iter();
        };
        let others = chain.replicas.iter().filter(|r| r.instance != self.instance);
        let turn = self.damage.attempts.fetch_add(1, Ordering::Relaxed);
        for other in others {
            let mut inquiry = Inquiry::new(&pieces, turn);
            while let Some(range) = inquiry.question(&pieces) {
                let said = self.fetch(group, *other, chunk, range, version).await;
                inquiry.answer(&mut pieces, said);
            }
        }
        if pieces.iter().any(|piece| piece.good.is_none()) {
            let object = self.of_object(chunk, version).await;
            for piece in pieces.iter_mut().filter(|piece| piece.good.is_none()) {
                match &object {
                    Said::Has(object) => {
                        piece.good = part(object, piece.range);
                        piece.not_now(Outcome::Failed);
                    }
                    Said::HasNot => {}
                    Said::Fails => piece.not_now(Outcome::Failed),
                    Said::Nothing => piece.not_now(Outcome::Later),
                }
            }
        }
        let is_progress = pieces.iter().any(|piece| piece.good.is_some());
        // The bucket cannot be asked for what has no version.
        let all_asked = version != Version::NONE || self.tier.is_none();
        for piece in pieces.iter_mut().filter(|piece| piece.good.is_none()) {
            if !all_asked {
                piece.not_now(Outcome::Later);
            }
            match piece.otherwise {
                // There may be more to be had from who has failed.
                Outcome::Failed if is_progress => came(piece.place, Outcome::Later),
                otherwise => came(piece.place, otherwise),
            }
            if piece.otherwise == Outcome::Lost {
                let (offset, len) = piece.range;
                warn_rarely!(
                    Duration::from_secs(60),
                    ?chunk,
                    offset,
                    len,
                    "a chunk is damaged, and nobody has what was there"
                );
            }
        }
        let found: Vec<_> = pieces.into_iter().filter(|piece| piece.good.is_some()).collect();
        for (place, outcome) in self.put_back(chunk, found).await {
            came(place, outcome);
        }
        outcomes.into_iter()
    }

    /// Puts what was found where it belongs. What came of each place.
    async fn put_back(&self, chunk: ChunkId, found: Vec<Piece>) -> Vec<(u64, Outcome)> {
        let places: Vec<u64> = found.iter().map(|piece| piece.place).collect();
        let chunks = self.chunks.clone();
        let put = move || {
            let put = |piece: Piece| {
                let done =
                    chunks.store().mend(&piece.patch, piece.range, &piece.good.unwrap_or_default());
                (piece.place, piece.range, done)
            };
            found.into_iter().map(put).collect::<Vec<_>>()
        };
        let Some(done) = self.blocking(put).await else {
            return places.into_iter().map(|place| (place, Outcome::Later)).collect();
        };
        let outcome = |(place, (offset, len), done)| match done {
            Ok(true) => {
                self.metrics.mended.inc();
                tracing::warn!(
                    ?chunk,
                    offset,
                    len,
                    "damaged data was replaced by what another has"
                );
                (place, Outcome::Mended)
            }
            // It was written to meanwhile, or moved with what is wrong: that is looked at.
            Ok(false) => (place, Outcome::Later),
            Err(error) => {
                self.metrics.store_failed(&error);
                (place, Outcome::Later)
            }
        };
        done.into_iter().map(outcome).collect()
    }

    /// A range of a chunk in this version, from another replica.
    async fn fetch(
        &self,
        group: GroupId,
        from: Replica,
        chunk: ChunkId,
        (offset, len): (u64, u64),
        version: Version,
    ) -> Said<Vec<u8>> {
        let view = self.view();
        let Some(epoch) = view.map.chain(group).map(|chain| chain.epoch) else {
            return Said::Nothing;
        };
        let mut whole = Vec::new();
        while (whole.len() as u64) < len {
            let (at, step) = (offset + whole.len() as u64, len - whole.len() as u64);
            let fetch = PeerOp::Fetch { chunk, offset: at, len: step.min(MAX_PAYLOAD) };
            let at = At::Replica { group, epoch, instance: from.instance };
            let request = Request { at, op: Op::Peer(fetch) };
            let deadline = Some(Instant::now() + CALL_TIMEOUT);
            let call = self.peers.call(&view.map, from.server, &request, Bytes::new(), deadline);
            match call.await {
                // Not one that is just not to be asked now.
                Ok((Reply::Failed(_), _)) => return Said::Fails,
                Ok((Reply::Fetched(theirs), data)) if theirs == version => {
                    let data = data.into_bytes();
                    if data.is_empty() {
                        return Said::HasNot;
                    }
                    whole.extend_from_slice(&data);
                }
                answer => {
                    tracing::debug!(?chunk, ?answer, %version, "nothing to mend a chunk with");
                    return Said::Nothing;
                }
            }
        }
        match whole.len() as u64 == len && version != Version::NONE {
            true => Said::Has(whole),
            false => Said::Nothing,
        }
    }
}

/// What somebody is asked for: what is still lacking, and as much at once as lies together and fits a message. Who has not all of that may have
/// some. Who says nothing is not asked on, nor is who has failed too often or for too long: what it could not be asked for is asked first another time.
struct Inquiry {
    runs: Vec<Range<usize>>,
    /// Its bits say which half of what was divided comes first.
    turn: u32,
    failed: u32,
    until: Instant,
}

impl Inquiry {
    fn new(pieces: &[Piece], turn: u32) -> Inquiry {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.good.is_none()) {
            let follows = |run: &Range<usize>| {
                run.end == at
                    && pieces[run.end - 1].end() == piece.range.0
                    && piece.end() - pieces[run.start].range.0 <= MAX_PAYLOAD
            };
            match runs.last_mut() {
                Some(run) if follows(run) => run.end += 1,
                _ => runs.push(at..at + 1),
            }
        }
        // Else the halves that come first would always be those of the same run.
        let mixed = mix(u64::from(turn));
        let (first, turn) = ((mixed >> 32) as usize % runs.len().max(1), mixed as u32);
        runs.rotate_left(first);
        Inquiry { runs, turn, failed: 0, until: Instant::now() + CALL_TIMEOUT }
    }

    /// The range of the chunk that comes next.
    fn question(&self, pieces: &[Piece]) -> Option<(u64, u64)> {
        let run = self.runs.last().map(|run| &pieces[run.clone()])?;
        let from = run.first()?.range.0;
        Some((from, run.last()?.end() - from))
    }

    /// What was said to that.
    fn answer(&mut self, pieces: &mut [Piece], said: Said<Vec<u8>>) {
        let Some(run) = self.runs.pop() else { return };
        let fails = matches!(said, Said::Fails);
        match said {
            Said::Has(data) => {
                let mut rest = data.as_slice();
                for piece in &mut pieces[run] {
                    let Some((own, after)) = rest.split_at_checked(piece.range.1 as usize) else {
                        piece.not_now(Outcome::Later);
                        continue;
                    };
                    piece.good = Some(own.to_vec());
                    rest = after;
                }
            }
            Said::HasNot | Said::Fails if run.len() > 1 => {
                let middle = run.start + run.len() / 2;
                let mut halves = [run.start..middle, middle..run.end];
                if self.turn & 1 == 0 {
                    halves.reverse();
                }
                self.turn = self.turn.rotate_right(1);
                self.runs.extend(halves);
            }
            Said::HasNot => {}
            Said::Fails => pieces[run].iter_mut().for_each(|piece| piece.not_now(Outcome::Failed)),
            Said::Nothing => {
                self.runs.push(run);
                self.end(pieces, Outcome::Later);
            }
        }
        self.failed += u32::from(fails);
        if fails && (self.failed >= MAX_FAILURES || self.until <= Instant::now()) {
            self.end(pieces, Outcome::Failed);
        }
    }

    fn end(&mut self, pieces: &mut [Piece], outcome: Outcome) {
        let left = self.runs.drain(..).flatten();
        left.for_each(|at| pieces[at].not_now(outcome));
    }
}

/// A range of a chunk, of its object.
fn part(object: &Object, (offset, len): (u64, u64)) -> Option<Vec<u8>> {
    let mut out = vec![0; usize::try_from(len).ok()?];
    object.fill(u32::try_from(offset).ok()?, &mut out);
    Some(out)
}

/// The places of a range.
fn blocks(offset: u64, len: u64) -> impl Iterator<Item = u64> {
    let end = offset.saturating_add(len);
    (offset / PLACE * PLACE..end).step_by(PLACE as usize)
}

#[cfg(test)]
mod tests {
    use crate::data::store::{SegmentStore, StoreConfig};

    use super::*;

    fn chunk(index: u64) -> ChunkId {
        ChunkId { ino: netfs_common::id::Ino(1), generation: 0, index }
    }

    #[test]
    fn a_place_is_lost_when_all_have_said_so_for_long_enough() {
        for (after, is_long_enough) in [(Duration::ZERO, true), (Duration::from_secs(999), false)] {
            let damage = Damage::new(DataMetrics::default(), after);
            damage.note(chunk(1), 4097, PLACE);
            assert_eq!(damage.due(), [(chunk(1), vec![PLACE, 2 * PLACE])]);
            let is_lost = |of, at, len| damage.is_lost(chunk(of), (at, len));
            assert!(!is_lost(1, 5000, 5), "nobody was asked");
            damage.tried((chunk(1), PLACE), Outcome::Lost);
            assert_eq!(is_lost(1, 5000, 5), is_long_enough);
            assert_eq!(is_lost(1, PLACE, PLACE), is_long_enough);
            assert!(
                !is_lost(1, PLACE, PLACE + 1) && !is_lost(1, PLACE - 1, 9) && !is_lost(0, 5000, 5)
            );
            assert!(damage.may_mend(chunk(1)) && !damage.may_mend(chunk(0)));
            // Found once more is no news; that somebody says nothing is.
            damage.note(chunk(1), PLACE, 5);
            assert_eq!(is_lost(1, 5000, 5), is_long_enough);
            damage.tried((chunk(1), 2 * PLACE), Outcome::Lost);
            assert_eq!(damage.may_mend(chunk(1)), !is_long_enough);
            assert_eq!(is_lost(1, PLACE, 2 * PLACE), is_long_enough);
            damage.tried((chunk(1), PLACE), Outcome::Later);
            assert!(!is_lost(1, PLACE, 5));
            assert_eq!(damage.metrics.damaged.get(), 2);
        }
    }

    #[test]
    fn what_is_lost_is_tried_less_and_less_and_gives_way_to_others() {
        let damage = Damage::new(DataMetrics::default(), Duration::ZERO);
        for index in 0..MAX_PLACES as u64 {
            damage.note(chunk(index), 0, 5);
        }
        damage.note(chunk(1 << 40), 0, 5);
        assert_eq!(damage.due().len(), MAX_PLACES);
        for index in 0..MAX_PLACES as u64 {
            damage.tried((chunk(index), 0), Outcome::Lost);
        }
        assert!(damage.due().is_empty());
        damage.note(chunk(1 << 40), 0, 5);
        assert_eq!(damage.due(), [(chunk(1 << 40), vec![0])]);
        for _ in 0..20 {
            damage.tried((chunk(1), 0), Outcome::Lost);
        }
        assert_eq!(lock(&damage.places).all[&(chunk(1), 0)].pause, MAX_PAUSE);
        // What was found while it was mended is looked at once more.
        damage.note(chunk(1), 0, 5);
        damage.tried((chunk(1), 0), Outcome::Mended);
        assert!(!damage.is_lost(chunk(1), (0, 5)) && damage.may_mend(chunk(1)));
        assert_eq!(lock(&damage.places).lost.len(), MAX_PLACES - 2);
        lock(&damage.places).all.get_mut(&(chunk(1), 0)).unwrap().next = Instant::now();
        assert!(damage.due().contains(&(chunk(1), vec![0])));
        damage.tried((chunk(1), 0), Outcome::Mended);
        assert!(!lock(&damage.places).all.contains_key(&(chunk(1), 0)));
        assert_eq!(lock(&damage.places).lost.len(), MAX_PLACES - 2);
    }

    /// Pieces of `len` bytes from each of these offsets on; a patch for them does not matter here.
    fn pieces(dir: &std::path::Path, offsets: &[u64], len: u64) -> Vec<Piece> {
        let store = SegmentStore::open(dir, StoreConfig::default()).unwrap().0;
        let patch = Arc::new(store.patch(super::super::chunks::key(chunk(1)), 0, 5).unwrap());
        let piece = |at: &u64| Piece {
            place: *at / PLACE * PLACE,
            patch: patch.clone(),
            range: (*at, len),
            good: None,
            otherwise: Outcome::Lost,
        };
        offsets.iter().map(piece).collect()
    }

    /// Asks somebody who has all but these bytes, each of which is its offset. How often.
    fn ask(pieces: &mut [Piece], lacks: impl Fn(u64) -> bool) -> usize {
        let (mut inquiry, mut asked) = (Inquiry::new(pieces, 0), 0);
        while let Some((offset, len)) = inquiry.question(pieces) {
            asked += 1;
            let range = offset..offset + len;
            let said = match range.clone().any(&lacks) {
                true => Said::HasNot,
                false => Said::Has(range.map(|at| at as u8).collect()),
            };
            inquiry.answer(pieces, said);
        }
        asked
    }

    #[test]
    fn what_lies_together_is_asked_for_at_once_and_parts_only_of_who_has_not_all() {
        let dir = tempfile::tempdir().unwrap();
        let right = |piece: &Piece| {
            let (offset, len) = piece.range;
            let bytes = (offset..offset + len).map(|at| at as u8).collect::<Vec<_>>();
            piece.good.as_ref().is_none_or(|good| *good == bytes)
        };
        // Two runs, of 100 and of 30.
        let offsets: Vec<u64> = (0..100).chain(200..230).map(|n| n * 10).collect();
        let mut all = pieces(dir.path(), &offsets, 10);
        assert_eq!(ask(&mut all, |_| false), 2);
        assert!(all.iter().all(|piece| right(piece) && piece.good.is_some()));
        let mut some = pieces(dir.path(), &offsets, 10);
        let asked = ask(&mut some, |at| at == 505 || at == 2000);
        assert!((14..=26).contains(&asked), "{asked}");
        let lacking: Vec<_> = some.iter().filter(|p| p.good.is_none()).map(|p| p.range.0).collect();
        assert_eq!(lacking, [500, 2000]);
        assert!(some.iter().all(|piece| right(piece) && piece.otherwise == Outcome::Lost));
        // The next one is asked for these only.
        assert_eq!(ask(&mut some, |at| at == 2000), 2);
        let lacking: Vec<_> = some.iter().filter(|p| p.good.is_none()).map(|p| p.range.0).collect();
        assert_eq!(lacking, [2000]);
        assert!(some.iter().all(right));
        // No more than fits a message.
        let large: Vec<u64> = (0..1024).map(|n| n * PLACE).collect();
        assert_eq!(ask(&mut pieces(dir.path(), &large, PLACE), |_| false), 4);
        // Never more than twice as often as there are pieces.
        let mut none = pieces(dir.path(), &offsets, 10);
        assert!(ask(&mut none, |_| true) <= 2 * offsets.len());
        assert!(none.iter().all(|piece| piece.good.is_none() && piece.otherwise == Outcome::Lost));
    }

    #[test]
    fn who_says_nothing_is_not_asked_on_and_what_it_may_have_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut some = pieces(dir.path(), &[0, 10, 100, 110], 10);
        let mut inquiry = Inquiry::new(&some, 0);
        let first = inquiry.question(&some).unwrap();
        inquiry.answer(&mut some, Said::Has(vec![1; 20]));
        assert!(inquiry.question(&some).is_some());
        inquiry.answer(&mut some, Said::HasNot);
        inquiry.answer(&mut some, Said::Nothing);
        assert_eq!(inquiry.question(&some), None);
        let was_lost = |is| if is { Outcome::Lost } else { Outcome::Later };
        for piece in &some {
            let was_first = (first.0..first.0 + first.1).contains(&piece.range.0);
            assert_eq!((piece.good.is_some(), piece.otherwise), (was_first, was_lost(was_first)));
        }
        // Less than was asked for is not taken for more.
        let mut short = pieces(dir.path(), &[0, 10], 10);
        let mut inquiry = Inquiry::new(&short, 0);
        inquiry.answer(&mut short, Said::Has(vec![1; 15]));
        assert_eq!((short[0].good.is_some(), short[1].good.is_some()), (true, false));
        assert_eq!(short[1].otherwise, Outcome::Later);
    }

    #[test]
    fn who_cannot_read_some_of_it_gives_the_rest_and_is_not_asked_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let offsets: Vec<u64> = (0..256).map(|n| n * PLACE).collect();
        // Asks somebody who cannot read what these places have; how often.
        let ask = |pieces: &mut [Piece], turn, fails: &dyn Fn(u64) -> bool| {
            let (mut inquiry, mut asked) = (Inquiry::new(pieces, turn), 0);
            while let Some((offset, len)) = inquiry.question(pieces) {
                asked += 1;
                let said = match (offset..offset + len).step_by(PLACE as usize).any(fails) {
                    true => Said::Fails,
                    false => Said::Has(vec![1; len as usize]),
                };
                inquiry.answer(pieces, said);
            }
            asked
        };
        for (bad, turn) in [(0, 0), (17, 1), (255, 7), (100, u32::MAX)] {
            let mut all = pieces(dir.path(), &offsets, PLACE);
            let asked = ask(&mut all, turn, &|at| at == bad * PLACE);
            assert!(asked <= 20, "{asked}");
            for (n, piece) in (0u64..).zip(&all) {
                let as_it_is = (piece.good.is_some(), piece.otherwise == Outcome::Failed);
                assert_eq!(as_it_is, (n != bad, n == bad), "place {n} of {bad}");
            }
        }
        let mut none = pieces(dir.path(), &offsets, PLACE);
        assert_eq!(ask(&mut none, 0, &|_| true), MAX_FAILURES);
        assert!(none.iter().all(|p| p.good.is_none() && p.otherwise == Outcome::Failed));
        // What is left out once has its turn, whichever places are bad and whoever else has turns meanwhile.
        let whole: Vec<u64> = (0..1024).map(|n| n * PLACE).collect();
        let bad: [(&dyn Fn(u64) -> bool, usize); 3] = [
            (&|at| at / PLACE % 8 == 3, 128),
            (&|at| (100..1000).contains(&(at / PLACE)), 900),
            (&|at| (260..520).contains(&(at / PLACE)), 260),
        ];
        for (fails, count) in bad {
            let mut some = pieces(dir.path(), &whole, PLACE);
            for turn in (1..1200).step_by(2) {
                ask(&mut some, turn, fails);
            }
            assert_eq!(some.iter().filter(|piece| piece.good.is_none()).count(), count);
        }
    }
}
