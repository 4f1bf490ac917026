//! Whether the bucket is that of this file system.
//!
//! Before anything is read, put or removed there, the bucket's marker is read, unless that was done a moment ago, and compared with the owner of the data
//! directory and with what the directory has noted ([`judge`]). So a bucket of another file system is left alone, and one that is another than
//! before, or was removed, is found out before chunks are sent there. It may be removed just then: that an object is there counts only after
//! the marker was read once more ([`Replicas::bucket_since`]), for some stores make a bucket that is not there for whoever puts something in it.
//!
//! The file `bucket` in the data directory is the note: the marker's text, or that there was none yet, so that a new directory is told from one of before there
//! were markers. It is written before the bucket is used for the first time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::super::replicas::{Replicas, lock};
use super::Tier;
use crate::data::tier::{Bucket, BucketError, Made, Marker, Past, Refusal, Seen, Verdict, judge};
use crate::private;

/// The file's name in the store's directory.
const FILE: &str = "bucket";
/// What it says as long as there was no bucket.
const UNUSED: &str = "netfs bucket 1\nnone\n";
/// The marker is read again after this time, if there is anything to do in the bucket.
const TRUSTED: Duration = Duration::from_secs(10);
/// Whoever comes this soon after the bucket was refused gets the same answer.
const REFUSED: Duration = Duration::from_secs(2);
/// Where the store cannot say whether a marker that is put there is the first, one that nobody has noted counts after this time, if it is still
/// there: whoever saw none has put another by then.
const SETTLES: Duration = Duration::from_secs(15);
/// So often it is looked whether the bucket can be used, though nobody needs it.
const LOOK: Duration = Duration::from_secs(20);

/// What the data directory knows of the bucket.
#[derive(Debug)]
pub(in super::super) struct Known {
    dir: PathBuf,
    past: Mutex<Past>,
}

impl Known {
    /// Reads it. Of a directory that was just made it is noted that there was no bucket.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is damaged.
    pub(in super::super) fn open(dir: &Path, is_new: bool) -> io::Result<Known> {
        let past = match fs::read(Known::file(dir)) {
            Ok(text) if text == UNUSED.as_bytes() => Past::Unused,
            Ok(text) => Marker::parse(&text).map(Past::Used).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is damaged; it may be removed if the bucket and prefix of [tier] are those that this server has always used",
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Past::Unknown,
            Err(error) => return Err(error),
        };
        let known = Known { dir: dir.to_owned(), past: Mutex::new(past) };
        if is_new && past == Past::Unknown {
            known.note_unused()?;
        }
        Ok(known)
    }

    /// Where it is noted.
    pub(in super::super) fn file(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    fn past(&self) -> Past {
        *lock(&self.past)
    }

    fn note(&self, marker: Marker) -> io::Result<()> {
        self.write(&marker.text())?;
        *lock(&self.past) = Past::Used(marker);
        Ok(())
    }

    fn note_unused(&self) -> io::Result<()> {
        self.write(UNUSED)?;
        *lock(&self.past) = Past::Unused;
        Ok(())
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let new = self.dir.join(format!("{FILE}.tmp"));
        let mut file =
            private::file_options().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, Known::file(&self.dir))?;
        File::open(&self.dir)?.sync_all()
    }
}

/// How the bucket stands.
#[derive(Debug)]
pub(super) struct Claim {
    known: Known,
    standing: Mutex<Standing>,
    /// Held by the one that looks.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Standing {
    /// It was this file system's when it was looked at, which was begun at that time.
    ours: Option<Instant>,
    /// It was not, and why.
    refused: Option<(Instant, String)>,
    /// This marker was there at that time, and others may have put another since.
    unsure: Option<(Instant, Marker)>,
}

impl Claim {
    pub(super) fn new(known: Known) -> Claim {
        Claim { known, standing: Mutex::default(), looking: tokio::sync::Mutex::default() }
    }

    /// Since when the bucket is not used, and why, if that is so.
    pub(super) fn refused(&self) -> Option<(Instant, String)> {
        lock(&self.standing).refused.clone()
    }

    /// Whether it was looked at at that time or later, and not too long ago.
    fn is_ours(&self, since: Option<Instant>) -> bool {
        let ours = lock(&self.standing).ours;
        ours.is_some_and(|at| at.elapsed() < TRUSTED && since.is_none_or(|since| at >= since))
    }

    fn concluded(&self, begun: Instant, result: &Result<(), BucketError>) {
        let mut standing = lock(&self.standing);
        standing.ours = result.is_ok().then_some(begun);
        match result {
            Ok(()) => standing.refused = None,
            Err(BucketError::Unusable(why)) => {
                if standing.refused.as_ref().is_none_or(|(_, before)| before != why) {
                    tracing::error!(%why, "the object store is left alone");
                }
                standing.refused = Some((Instant::now(), why.clone()));
            }
            // Nothing is known.
            Err(_) => {}
        }
    }
}

/// Finds out what is wrong with the bucket, also if nobody needs it.
pub(super) async fn attend(replicas: std::sync::Weak<Replicas>) {
    loop {
        let Some(this) = replicas.upgrade() else { return };
        let Some(tier) = &this.tier else { return };
        let known = this.owner.known().is_some();
        if known && let Err(error) = this.bucket(tier).await {
            tier.failed("marker", &error);
        }
        drop(this);
        // The owner is known soon after the start.
        tokio::time::sleep(if known { LOOK } else { REFUSED }).await;
    }
}

impl Replicas {
    /// The bucket, if it is this file system's.
    pub(super) async fn bucket<'a>(&self, tier: &'a Tier) -> Result<&'a Bucket, BucketError> {
        self.find_bucket(tier, None).await
    }

    /// The bucket, if it is this file system's at that time or later: so what was put there before is there, and what was not found there is not.
    pub(super) async fn bucket_since<'a>(
        &self,
        tier: &'a Tier,
        since: Instant,
    ) -> Result<&'a Bucket, BucketError> {
        self.find_bucket(tier, Some(since)).await
    }

    async fn find_bucket<'a>(
        &self,
        tier: &'a Tier,
        since: Option<Instant>,
    ) -> Result<&'a Bucket, BucketError> {
        if tier.claim.is_ours(since) {
            return Ok(&tier.bucket);
        }
        // Those who wait here share the next look.
        let _alone = tier.claim.looking.lock().await;
        if tier.claim.is_ours(since) {
            return Ok(&tier.bucket);
        }
        let refused = lock(&tier.claim.standing).refused.clone();
        if let Some((_, why)) = refused.filter(|(at, _)| at.elapsed() < REFUSED) {
            return Err(BucketError::Unusable(why));
        }
        // Without metadata there is nobody to read for, and nothing to decide.
        let owner = self.owner.known().ok_or_else(|| {
            BucketError::Unreachable("no metadata server has been heard yet".into())
        })?;
        let begun = Instant::now();
        let result = self.claim(tier, owner).await;
        tier.claim.concluded(begun, &result);
        result.map(|()| &tier.bucket)
    }

    async fn claim(&self, tier: &Tier, owner: [u8; 16]) -> Result<(), BucketError> {
        let name = tier.bucket.marker_name();
        let unusable = |why: String| BucketError::Unusable(format!("{name}: {why}"));
        let noted = |error: io::Error| {
            let file = Known::file(&tier.claim.known.dir);
            BucketError::Unusable(format!("{} cannot be written: {error}", file.display()))
        };
        // Once more after the marker was put there, or somebody else's was.
        for _ in 0..2 {
            let past = tier.claim.known.past();
            let seen = tier.bucket.marker().await?;
            let away = match seen {
                Seen::Bare { .. } => self.has_away().await?,
                _ => false,
            };
            match judge(owner, past, away, seen) {
                Verdict::Refuse(refusal) => {
                    // It never was this server's, and is not when the marker has gone either.
                    if let (Refusal::Foreign(_), Past::Unknown) = (refusal, past)
                        && !self.has_away().await?
                    {
                        tier.claim.known.note_unused().map_err(noted)?;
                    }
                    return Err(unusable(refusal.to_string()));
                }
                Verdict::Use => return Ok(()),
                Verdict::Note(marker) if !self.is_settled_marker(tier, marker).await? => {
                    return Err(unusable(
                        "it was just made, and counts if nobody else makes one".into(),
                    ));
                }
                Verdict::Note(marker) => {
                    tier.claim.known.note(marker).map_err(noted)?;
                    tracing::info!(
                        marker = name,
                        "the bucket belongs to this file system from now on"
                    );
                    return Ok(());
                }
                Verdict::Mark => {
                    let mut number = [0; 16];
                    getrandom::fill(&mut number)
                        .map_err(|error| unusable(format!("no random number: {error}")))?;
                    // What is there then is read, whoever has put it there.
                    tier.bucket.mark(&Marker { owner, number }).await?;
                }
            }
        }
        Err(unusable("what was put there is not there".into()))
    }

    /// Whether a marker that this directory is to note stays there. That is so where the store puts no second one in its place, which is found out by trying
    /// with the same once more; elsewhere everybody waits until whoever saw none has put theirs.
    async fn is_settled_marker(&self, tier: &Tier, marker: Marker) -> Result<bool, BucketError> {
        let unsure = lock(&tier.claim.standing).unsure;
        let since = match unsure {
            Some((since, before)) if before == marker => Some(since),
            Some(_) => None,
            None => match tier.bucket.mark(&marker).await {
                Ok(Made::Alone | Made::Found) => return Ok(true),
                // One that takes nothing can be read all the same, a little later.
                Ok(Made::Perhaps) | Err(_) => None,
            },
        };
        let since = since.unwrap_or_else(Instant::now);
        lock(&tier.claim.standing).unsure = Some((since, marker));
        Ok(since.elapsed() >= SETTLES)
    }

    /// Whether there are bytes that are in the bucket only.
    async fn has_away(&self) -> Result<bool, BucketError> {
        let chunks = self.chunks.clone();
        match self.blocking(move || chunks.usage()).await {
            Some(Ok(usage)) => Ok(usage.away_bytes > 0),
            Some(Err(error)) => Err(BucketError::Unusable(format!("data store: {error}"))),
            None => Err(BucketError::Unreachable("the server ends".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bucket_was_used_is_known_to_the_next_life() {
        let dir = tempfile::tempdir().unwrap();
        // From before there were markers.
        assert_eq!(Known::open(dir.path(), false).unwrap().past(), Past::Unknown);
        assert_eq!(Known::open(dir.path(), true).unwrap().past(), Past::Unused);
        let known = Known::open(dir.path(), false).unwrap();
        assert_eq!(known.past(), Past::Unused);
        let marker = Marker { owner: [1; 16], number: [2; 16] };
        known.note(marker).unwrap();
        assert_eq!(known.past(), Past::Used(marker));
        assert_eq!(Known::open(dir.path(), true).unwrap().past(), Past::Used(marker));
        fs::write(Known::file(dir.path()), "netfs bucket 2\n").unwrap();
        assert!(Known::open(dir.path(), false).is_err());
    }
}
