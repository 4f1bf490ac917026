//! Whether the disk has lost what had been flushed to it.
//!
//! The store says so when it is opened, and only once: it notes what is missing, and its next opening finds everything in order. Or the map says so, if a chain
//! counts on a life of this server that the directory has not seen (`lives.rs`): then it is an older copy. But a replica that
//! lacks something must not take the place of one that has everything before it has learnt what it lacks. So it stands in the file `damaged` beside
//! the segments, the metadata server is told with every sign of life, and lets others go on (`Manager::back`). It is over when no chain
//! counts any more on what was here before this life of the server: what is here for anybody then was learnt in this life, or was all that there is.
//!
//! Where it was all that there is, nobody knows which chunks are missing. An object store may have them, as objects that nothing here speaks
//! of. So there is a second note, `incomplete`, for as long as there is this store: objects of chunks that are not here are kept, until an operator has begun
//! anew with what the object store has. It is this server's: a replica that learns from it does not know, so nobody should before that.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{Chain, ClusterMap, Replica};
use netfs_common::warn_rarely;

use super::followed::Followed;
use super::lives::Lives;
use super::replicas::lock;
use crate::data::store::RecoveryReport;
use crate::private;

/// The file's name in the store's directory. That it is there is what counts.
const FILE: &str = "damaged";
/// As above: what was lost was in no other replica.
const INCOMPLETE: &str = "incomplete";
/// The same trouble is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// What is known of it.
#[derive(Debug)]
pub(super) struct Loss {
    path: PathBuf,
    lives: Mutex<Lives>,
    followed: Mutex<Followed>,
    lacks: AtomicBool,
    incomplete: AtomicBool,
    /// It goes on with what was all that there is of some groups.
    alone: AtomicBool,
    /// Groups that this life has learnt, or has beside others.
    taught: Mutex<HashSet<GroupId>>,
}

impl Loss {
    /// Notes what the opening of a store has found. To be done before the store is mended.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub(super) fn note(dir: &Path, report: &RecoveryReport) -> io::Result<()> {
        // Once a life is noted an opening has come to its end.
        let emptied = report.emptied && Lives::file(dir).try_exists()?;
        if report.created || (report.is_clean() && !emptied) {
            return Ok(());
        }
        Loss::write(dir, FILE, format_args!("The disk has lost data. {report:?}"))
    }

    fn write(dir: &Path, name: &str, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        let mut options = private::file_options();
        let mut file = options.create(true).truncate(true).write(true).open(dir.join(name))?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    }

    /// Of a store that has been opened. This life of the server is noted with it, and so it is for whoever is told of it later.
    ///
    /// # Errors
    /// When it cannot be seen what was noted.
    pub(super) fn open(dir: &Path, life: InstanceId) -> io::Result<Loss> {
        let lives = Mutex::new(Lives::begin(dir, life));
        let followed = Mutex::new(Followed::open(dir));
        let path = Loss::file(dir);
        let lacks = AtomicBool::new(path.try_exists()?);
        let incomplete = AtomicBool::new(Loss::incomplete_file(dir).try_exists()?);
        let (alone, taught) = (AtomicBool::default(), Mutex::default());
        Ok(Loss { path, lives, followed, lacks, incomplete, alone, taught })
    }

    /// Where it stands.
    pub(super) fn file(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Where it stands that there was nobody to learn it from.
    pub(super) fn incomplete_file(dir: &Path) -> PathBuf {
        dir.join(INCOMPLETE)
    }

    /// Whether there are chains that count on what was here before, and it is not all here.
    pub(super) fn lacks(&self) -> bool {
        self.lacks.load(Ordering::SeqCst)
    }

    /// Whether chunks may be missing that nobody else had, and no other replica is waited for.
    pub(super) fn is_alone_with_it(&self) -> bool {
        self.incomplete.load(Ordering::SeqCst)
    }

    /// Whether chunks may be missing, perhaps such that nobody else had. What is not here may be in the object store only.
    pub(super) fn is_incomplete(&self) -> bool {
        self.lacks() || self.incomplete.load(Ordering::SeqCst)
    }

    /// There is another map. To be called before anything else is said to who sent it.
    pub(super) fn follow(&self, map: &ClusterMap, me: ServerId, life: InstanceId) {
        let mine = |r: &Replica| r.server == me;
        let of_mine = map.groups().flat_map(|(_, chain)| &chain.replicas).filter(|r| mine(r));
        let lives: BTreeSet<_> = of_mine.map(|r| r.instance).collect();
        lock(&self.followed).follow(map);
        if !self.lacks() {
            self.compare(&Vec::from_iter(lives));
        }
        if !self.lacks() {
            return;
        }
        let myself = Replica { server: me, instance: life };
        let mut taught = self.taught.lock().unwrap_or_else(PoisonError::into_inner);
        for (group, chain) in
            map.groups().filter(|(_, chain)| chain.members().any(|member| member == myself))
        {
            // As soon as it is known: whoever learns from this server makes it look as if there had been others.
            if chain.replicas == [myself] && !taught.contains(&group) {
                self.alone.store(true, Ordering::SeqCst);
            } else {
                taught.insert(group);
            }
        }
        drop(taught);
        let counts = |chain: &Chain| chain.replicas.iter().any(|r| mine(r) && r.instance != life);
        let mut done = Ok(());
        if self.alone.load(Ordering::SeqCst) && !self.incomplete.load(Ordering::SeqCst) {
            done = self.note_incomplete(format_args!(
                "The disk has lost data of which there was no other replica."
            ));
        }
        if done.is_ok() && !map.groups().any(|(_, chain)| counts(chain)) {
            done = self.forget();
        }
        if let Err(error) = done {
            // The next map brings another attempt.
            tracing::warn!(path = %self.path.display(), %error, "what the disk has lost cannot be noted");
        }
    }

    /// Whether the directory has seen the lives that chains count on.
    fn compare(&self, lives: &[InstanceId]) {
        if lock(&self.lives).has_seen(lives) {
            return;
        }
        let why = "the data directory is an older copy: chains count on what it had later";
        // Whether it can be noted or not: it must not be taken for what it is not.
        self.lacks.store(true, Ordering::SeqCst);
        let noted = Loss::write(self.dir(), FILE, format_args!("{why}"));
        tracing::error!(note = %self.path.display(), ?noted, "{why}; other replicas go on in place of this server's, if there are any");
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Whether a map is older than one that was followed: then it is not to be followed. By it others may have what this server is to have, one with
    /// less may teach one with more, and this server may be told to remove what nobody else has.
    pub(super) fn refuses(&self, map: &ClusterMap) -> bool {
        let followed = self.followed();
        if map.version < followed {
            warn_rarely!(
                WARN_INTERVAL, version = %map.version, %followed,
                "the metadata server has an older cluster map than this server has followed, which waits until it has taken over the later one"
            );
        }
        map.version < followed
    }

    /// The latest version of the map that was followed with the directory.
    pub(super) fn followed(&self) -> Epoch {
        lock(&self.followed).version()
    }

    /// The map of that version, as it is sent.
    pub(super) fn followed_map(&self) -> Option<(Epoch, Bytes)> {
        lock(&self.followed).map()
    }

    /// To be called again and again: what is known is noted, if it is time to.
    pub(super) fn note_followed(&self) {
        lock(&self.followed).note();
    }

    /// The server ends.
    pub(super) fn note_last_followed(&self) {
        lock(&self.followed).note_now();
    }

    fn note_incomplete(&self, why: std::fmt::Arguments<'_>) -> io::Result<()> {
        Loss::write(self.dir(), INCOMPLETE, why)?;
        self.incomplete.store(true, Ordering::SeqCst);
        self.warn();
        Ok(())
    }

    /// Says so if chunks may be missing that nobody else had.
    pub(super) fn warn(&self) {
        if self.incomplete.load(Ordering::SeqCst) {
            let note = Loss::incomplete_file(self.dir());
            let why = fs::read_to_string(&note).unwrap_or_else(|error| error.to_string());
            tracing::error!(note = %note.display(), why = why.trim_end(), "what nobody else has may be missing: files may have holes; nothing is removed here, and objects of chunks that are not here are kept");
        }
    }

    fn forget(&self) -> io::Result<()> {
        fs::remove_file(&self.path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        File::open(self.dir())?.sync_all()?;
        self.lacks.store(false, Ordering::SeqCst);
        tracing::info!("nobody counts any more on what the disk has lost");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::class::Class;
    use netfs_common::coding::Coding;
    use netfs_common::id::Verifier;
    use netfs_common::map::{Pool, TierMode};

    use netfs_common::codec;

    use super::*;
    use crate::data::store::{SegmentStore, StoreConfig};

    const ME: ServerId = ServerId(1);

    fn map(lives: &[u64]) -> ClusterMap {
        let chain = |life: &u64| Chain {
            epoch: Epoch(1),
            verifier: Verifier(1),
            replicas: vec![Replica { server: ME, instance: InstanceId(*life) }],
            learner: None,
        };
        let pool = Pool {
            volume: 0,
            class: Class::DEFAULT,
            first: GroupId(0),
            min_replicas: 1,
            coding: Coding::default(),
            chains: lives.iter().map(chain).collect(),
            tier: TierMode::default(),
        };
        ClusterMap { version: Epoch(1), servers: Vec::new(), pools: vec![pool] }
    }

    fn opened(dir: &Path, report: &RecoveryReport) -> Loss {
        Loss::note(dir, report).unwrap();
        Loss::open(dir, InstanceId(7)).unwrap()
    }

    #[test]
    fn a_loss_is_remembered_until_nobody_counts_on_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let sound = RecoveryReport::default();
        assert!(!opened(dir.path(), &sound).lacks());
        let lost = RecoveryReport { records_lost: 1, ..RecoveryReport::default() };
        assert!(opened(dir.path(), &lost).lacks());
        // The next opening finds nothing.
        let loss = opened(dir.path(), &sound);
        assert!(loss.lacks());
        loss.follow(&map(&[7, 6]), ME, InstanceId(7));
        assert!(loss.lacks(), "a chain counts on an earlier life");
        loss.follow(&map(&[6, 6]), ServerId(2), InstanceId(7));
        assert!(!loss.lacks(), "it is another server's");
        assert!(!opened(dir.path(), &sound).lacks());
        opened(dir.path(), &lost).follow(&map(&[7, 7]), ME, InstanceId(7));
        assert!(!opened(dir.path(), &sound).lacks());
    }

    #[test]
    fn who_has_followed_a_later_map_goes_by_no_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = |life| Loss::open(dir.path(), InstanceId(life)).unwrap();
        let at = |version| ClusterMap { version: Epoch(version), ..map(&[]) };
        let first = open(1);
        assert!(!first.refuses(&at(5)) && first.followed_map().is_none());
        first.follow(&at(5), ME, InstanceId(1));
        first.follow(&at(6), ME, InstanceId(1));
        first.note_last_followed();
        let second = open(2);
        assert!(second.refuses(&at(5)) && !second.refuses(&at(6)) && !second.refuses(&at(7)));
        let (version, bytes) = second.followed_map().unwrap();
        assert_eq!((version, codec::decode(&bytes).ok()), (Epoch(6), Some(at(6))));
        assert!(!second.is_incomplete());
    }

    #[test]
    fn an_emptied_store_that_has_had_lives_lacks_something() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let open = || {
            let note = |report: &RecoveryReport| Loss::note(dir, report);
            SegmentStore::open_noting(dir, StoreConfig::default(), &note).unwrap().1
        };
        open();
        let loss = Loss::open(dir, InstanceId(6)).unwrap();
        loss.follow(&map(&[6]), ME, InstanceId(6));
        assert!(!open().emptied);
        for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some() {
                std::fs::remove_file(file).unwrap();
            }
        }
        let report = open();
        assert!(report.emptied && !report.created, "{report:?}");
        assert!(Loss::open(dir, InstanceId(7)).unwrap().lacks());
        // Without any life before, nobody has counted on it.
        std::fs::remove_file(Lives::file(dir)).unwrap();
        std::fs::remove_file(Loss::file(dir)).unwrap();
        assert!(!opened(dir, &report).lacks());
    }

    #[test]
    fn a_directory_that_is_older_than_what_chains_count_on_lacks_something() {
        let dir = tempfile::tempdir().unwrap();
        let life = |life| Loss::open(dir.path(), InstanceId(life)).unwrap();
        let earlier = life(6);
        earlier.follow(&map(&[6]), ME, InstanceId(6));
        let again = life(7);
        again.follow(&map(&[6]), ME, InstanceId(7));
        assert!(!again.lacks(), "it is the directory of that life");
        // Life 8 had another directory, of which this one is a copy from before it.
        let older = life(9);
        older.follow(&map(&[7, 8]), ME, InstanceId(9));
        assert!(older.lacks());
        let older = life(10);
        assert!(older.lacks(), "it stands in the directory");
        older.follow(&map(&[8, 10]), ME, InstanceId(10));
        assert!(older.lacks());
        let mut learnt = map(&[10]);
        let other = Replica { server: ServerId(2), instance: InstanceId(3) };
        learnt.pools[0].chains[0].replicas.insert(0, other);
        older.follow(&learnt, ME, InstanceId(10));
        assert!(!older.lacks());
        assert!(older.is_incomplete(), "it was alone with one group");
    }

    #[test]
    fn who_had_no_other_replica_remembers_that_something_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let lost = RecoveryReport { records_lost: 1, ..RecoveryReport::default() };
        let loss = opened(dir.path(), &lost);
        assert!(loss.is_incomplete(), "nobody has said anything else yet");
        let mut shared = map(&[7]);
        let other = Replica { server: ServerId(2), instance: InstanceId(3) };
        shared.pools[0].chains[0].replicas.push(other);
        loss.follow(&shared, ME, InstanceId(7));
        assert!(!loss.is_incomplete(), "it has learnt what it lacked");
        // What it has learnt before it was left alone with it is whole.
        let loss = opened(dir.path(), &lost);
        let mut learns = map(&[3, 6]);
        learns.pools[0].chains[0].replicas[0].server = ServerId(2);
        learns.pools[0].chains[0].learner = Some(Replica { server: ME, instance: InstanceId(7) });
        loss.follow(&learns, ME, InstanceId(7));
        loss.follow(&map(&[7, 6]), ME, InstanceId(7));
        assert!(!Loss::incomplete_file(dir.path()).exists());
        // It is alone in one group, while another is waited for; later somebody has learnt from it.
        let loss = opened(dir.path(), &lost);
        loss.follow(&map(&[7, 6]), ME, InstanceId(7));
        assert!(loss.lacks());
        loss.follow(&shared, ME, InstanceId(7));
        let loss = opened(dir.path(), &RecoveryReport::default());
        assert!(!loss.lacks() && loss.is_incomplete());
    }
}
