//! Writing the log.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netfs_common::errno::Errno;
use netfs_common::id::LogIndex;

use super::flush::Flusher;
use super::format::{self, HEADER_BYTES, Header, MAX_INDEX, MAX_PAYLOAD, Record};
use super::{Disk, LogError, LogFile, Recovered};

/// How the log is kept.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// A segment that is longer is followed by a new one, in bytes.
    pub segment_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { segment_bytes: 16 << 20 }
    }
}

/// The log of one volume, open for writing.
pub struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    volume: u64,
    config: LogConfig,
    tail: Mutex<Tail>,
    flusher: Flusher,
}

/// The end of the log. Its lock is held for a write, never for a flush of the present segment
/// (but for the last flush of one that is full).
struct Tail {
    /// The last record that was written.
    last: LogIndex,
    /// The next one.
    next: LogIndex,
    /// The segment that is written to, once there is one.
    current: Option<Segment>,
    /// All segments before it: first index, path, bytes.
    sealed: VecDeque<(LogIndex, PathBuf, u64)>,
}

struct Segment {
    first: LogIndex,
    salt: u32,
    path: PathBuf,
    file: Arc<dyn LogFile>,
    len: u64,
}

impl Log {
    /// Opens the log in `dir` after recovery. The next record follows `last`, in a new segment:
    /// what was recovered is not written to any more.
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        volume: u64,
        config: LogConfig,
        recovered: Recovered,
        last: LogIndex,
    ) -> Log {
        Log {
            disk,
            dir: dir.to_owned(),
            volume,
            config,
            tail: Mutex::new(Tail {
                last,
                next: LogIndex(last.0.saturating_add(1)),
                current: None,
                sealed: recovered.segments.into(),
            }),
            flusher: Flusher::new(last),
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a command after the last one. It survives a crash of the process from now on, and
    /// one of the machine after [`Log::flush`].
    ///
    /// # Errors
    /// `ENOSPC` when the disk is full: nothing has happened then. After any other error the log
    /// takes no more commands.
    pub fn append(&self, payload: &[u8]) -> Result<LogIndex, LogError> {
        if let Some(why) = self.flusher.failure() {
            return Err(LogError::Poisoned(why));
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(LogError::TooLong(payload.len()));
        }
        let mut tail = self.tail();
        if tail.next > MAX_INDEX {
            return Err(LogError::Full);
        }
        let index = tail.next;
        self.roll(&mut tail)?;
        let Tail { last, next, current: Some(segment), .. } = &mut *tail else {
            return Err(LogError::Poisoned("no segment to write to".into()));
        };
        let record = Record { index, flushed: self.flusher.durable(), payload };
        let bytes = record.to_bytes(segment.salt);
        if let Err(source) = segment.file.append(&bytes) {
            // A part of the record may be there. Without it nothing has happened.
            let undone = segment.file.truncate(segment.len);
            let error = LogError::io(&segment.path, source);
            if undone.is_err() || error.errno() == Errno::EIO {
                self.flusher.fail(&error.to_string());
            }
            return Err(error);
        }
        segment.len += bytes.len() as u64;
        *last = index;
        *next = LogIndex(index.0 + 1);
        Ok(index)
    }

    /// The index of the next command.
    pub fn next(&self) -> LogIndex {
        self.tail().next
    }

    /// Leaves out indices: commands that have them may have been lost with the end of the log, and
    /// somebody may know of them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn skip(&self, count: u64) -> Result<(), LogError> {
        let mut tail = self.tail();
        // A segment has no gap within.
        self.seal(&mut tail)?;
        tail.next = LogIndex(tail.next.0.saturating_add(count));
        Ok(())
    }

    /// Makes sure that there is a segment with room, beginning with the next index if it is new.
    fn roll(&self, tail: &mut Tail) -> Result<(), LogError> {
        match &tail.current {
            Some(segment) if segment.len < self.config.segment_bytes => return Ok(()),
            _ => {}
        }
        self.seal(tail)?;
        let index = tail.next;
        let path = self.dir.join(format::segment_name(index));
        let mut salt = [0; 4];
        getrandom::fill(&mut salt).map_err(|e| LogError::io(&path, e.into()))?;
        let salt = u32::from_le_bytes(salt);
        let header = Header { volume: self.volume, salt, first: index, previous: tail.last };
        let header = header.to_bytes();
        let create = || {
            let file = self.disk.create(&path)?;
            // Header and name come to the disk before any record: recovery reads a torn segment by them.
            file.append(&header).and_then(|()| file.sync())?;
            self.disk.sync_dir(&self.dir).map(|()| file)
        };
        match create() {
            Ok(file) => {
                let len = HEADER_BYTES as u64;
                tail.current = Some(Segment { first: index, salt, path, file, len });
                Ok(())
            }
            Err(source) => {
                // If the file exists, it is in the way of the next attempt.
                let removed = self.disk.remove(&path);
                let gone = removed.is_ok()
                    || removed.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
                let error = LogError::io(&path, source);
                if !gone || error.errno() == Errno::EIO {
                    self.flusher.fail(&error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Flushes the present segment for good and ends it.
    fn seal(&self, tail: &mut Tail) -> Result<(), LogError> {
        let Some(segment) = &tail.current else { return Ok(()) };
        if let Err(source) = segment.file.sync() {
            let error = LogError::io(&segment.path, source);
            self.flusher.fail(&error.to_string());
            return Err(error);
        }
        self.flusher.advance(tail.last);
        if let Some(s) = tail.current.take() {
            tail.sealed.push_back((s.first, s.path, s.len));
        }
        Ok(())
    }

    /// Returns when all up to `upto` is on stable storage; those who wait at the same time share
    /// one flush.
    ///
    /// # Errors
    /// When the disk fails; the log takes no more commands then.
    pub fn flush(&self, upto: LogIndex) -> Result<(), LogError> {
        let upto = upto.min(self.last());
        self.flusher.flush(upto, || {
            let (last, current) = {
                let tail = self.tail();
                let file = tail.current.as_ref().map(|s| (s.file.clone(), s.path.clone()));
                (tail.last, file)
            };
            if let Some((file, path)) = current {
                file.sync().map_err(|e| LogError::io(path, e))?;
            }
            Ok(last)
        })
    }

    /// The last command that was written.
    pub fn last(&self) -> LogIndex {
        self.tail().last
    }

    /// The last command that is known to be on stable storage.
    pub fn durable(&self) -> LogIndex {
        self.flusher.durable()
    }

    /// Why the log takes no more commands, if so.
    pub fn failure(&self) -> Option<String> {
        self.flusher.failure()
    }

    /// The log takes no more commands, because the store has failed.
    pub fn fail(&self, why: &str) {
        self.flusher.fail(why);
    }

    /// The segment that is written to, and its length.
    #[cfg(test)]
    pub(crate) fn segment(&self) -> (PathBuf, u64) {
        let tail = self.tail();
        tail.current.as_ref().map_or((PathBuf::new(), 0), |s| (s.path.clone(), s.len))
    }

    /// The length of all segments in bytes.
    pub fn bytes(&self) -> u64 {
        let tail = self.tail();
        let sealed: u64 = tail.sealed.iter().map(|(_, _, bytes)| bytes).sum();
        sealed + tail.current.as_ref().map_or(0, |s| s.len)
    }

    /// Ends the present segment, so that [`Log::drop_before`] can remove it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn seal_current(&self) -> Result<(), LogError> {
        self.seal(&mut self.tail())
    }

    /// Removes segments all of whose records are at most `upto`.
    ///
    /// # Errors
    /// When the disk fails; what is left is removed the next time.
    pub fn drop_before(&self, upto: LogIndex) -> Result<(), LogError> {
        let mut tail = self.tail();
        let end = tail.current.as_ref().map_or(tail.next, |s| s.first);
        let mut removed = false;
        while let Some((_, path, _)) = tail.sealed.front() {
            let next = tail.sealed.get(1).map_or(end, |(first, _, _)| *first);
            // What the segment before a gap holds ends at the gap.
            let ends = if next > tail.last { tail.last.0 } else { next.0 - 1 };
            if ends > upto.0 {
                break;
            }
            self.disk.remove(path).map_err(|e| LogError::io(path, e))?;
            tail.sealed.pop_front();
            removed = true;
        }
        if removed {
            self.disk.sync_dir(&self.dir).map_err(|e| LogError::io(&self.dir, e))?;
        }
        Ok(())
    }
}
