//! What is known of a path, for people. Asks nothing that could wait for a lease, and waits for nothing for long: it is for
//! mounts that are stuck.

use std::collections::VecDeque;
use std::time::Duration;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::insight::{About, Inspection};
use netfs_common::wire::meta::{Request, Response};
use tokio::time::Instant;

use super::Vfs;
use crate::insight::{self, Connection, Findings, Here, Lost, Of};

/// How long the server may take in all.
const PATIENCE: Duration = Duration::from_secs(3);
/// As `stat(2)` has it.
const MAX_LINKS: usize = 40;
/// So many operations are shown.
const SHOWN: usize = 20;
/// So many inodes that are recalled often.
const SHOWN_RECALLED: usize = 10;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Names from the root of the volume on; `..` is allowed.
    Path(Vec<Vec<u8>>),
    /// An inode by its number.
    Inode(Ino),
}

/// An inode that was found, with its last name.
struct Found {
    ino: Ino,
    named: Option<(Ino, Name)>,
}

impl Vfs {
    /// Who holds what and who waits; `path` is what it is called.
    pub async fn leases_of(&self, path: &str, place: &Place) -> String {
        if matches!(place, Place::Path(names) if names.is_empty()) {
            let limit = Instant::now() + PATIENCE;
            let server = match self.inquire(About::Volume, limit).await {
                Ok(Response::InspectedVolume(volume)) => Ok(volume),
                Ok(_) => Err(Lost::Refused(Errno::EPROTO)),
                Err(lost) => Err(lost),
            };
            let recalled = self.insight.most_recalled(SHOWN_RECALLED);
            let held = self.cache.leases();
            return insight::overview(path, held, &server, &self.connection(), &recalled);
        }
        insight::leases(&self.findings(path, place).await)
    }

    /// All that is known of a path, with the last operations on it; of the mount point, those of the whole mount.
    pub async fn why(&self, path: &str, place: &Place) -> String {
        insight::why(&self.findings(path, place).await)
    }

    async fn findings(&self, path: &str, place: &Place) -> Findings {
        let limit = Instant::now() + PATIENCE;
        let found = match place {
            Place::Inode(ino) => Ok(Found { ino: *ino, named: None }),
            Place::Path(names) => self.walk(names, limit).await,
        };
        let server = match &found {
            Ok(found) => self.inspect(About::Inode(found.ino), limit).await,
            Err(lost) => Err(lost.clone()),
        };
        let found = match (&server, place) {
            // Nor is it one that the server has not heard of yet.
            (Err(Lost::Refused(Errno::ESTALE)), Place::Inode(ino))
                if self.cache.table.peek(*ino).is_none() =>
            {
                Err(Lost::Absent(format!("inode {ino}")))
            }
            _ => found,
        };
        let of = match (&found, place) {
            (_, Place::Path(names)) if names.is_empty() => Of::All,
            (Ok(found), _) => Of::Inode(Some(found.ino), found.named.clone()),
            // Which are about it cannot be told.
            (Err(_), _) => Of::All,
        };
        let (present, past) = self.insight.operations(&of, SHOWN);
        Findings {
            path: path.into(),
            here: found.as_ref().map(|f| self.here(f.ino)).unwrap_or_default(),
            target: found.map(|f| f.ino),
            server,
            connection: self.connection(),
            present,
            past,
        }
    }

    /// Follows names from the root, by what is known here as far as possible. A link at the end is not followed.
    async fn walk(&self, names: &[Vec<u8>], limit: Instant) -> Result<Found, Lost> {
        let mut rest: VecDeque<Vec<u8>> = names.iter().cloned().collect();
        let mut way: Vec<(Ino, Name)> = Vec::new();
        let (mut at, mut links) = (Ino::ROOT, 0);
        while let Some(part) = rest.pop_front() {
            let shown = String::from_utf8_lossy(&part).into_owned();
            if part == b".." {
                at = way.pop().map_or(Ino::ROOT, |(dir, _)| dir);
                continue;
            }
            let name = Name::new(part).map_err(|_| Lost::Absent(shown.clone()))?;
            let child = self.child(at, &name, limit).await?;
            let (ino, kind) = child.ok_or_else(|| Lost::Absent(shown.clone()))?;
            way.push((at, name));
            at = ino;
            if rest.is_empty() {
                break;
            }
            match kind {
                FileKind::Dir => {}
                FileKind::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Lost::Links);
                    }
                    let target = self.target(ino, limit).await?;
                    if target.starts_with(b"/") {
                        let target = String::from_utf8_lossy(&target).into_owned();
                        return Err(Lost::Elsewhere(shown, target));
                    }
                    at = way.pop().map_or(Ino::ROOT, |(dir, _)| dir);
                    let parts = target.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
                    for part in parts.rev() {
                        rest.push_front(part.to_vec());
                    }
                }
                _ => return Err(Lost::NotADirectory(shown)),
            }
        }
        Ok(Found { ino: at, named: way.pop() })
    }

    /// What a name leads to.
    async fn child(
        &self,
        dir: Ino,
        name: &Name,
        limit: Instant,
    ) -> Result<Option<(Ino, FileKind)>, Lost> {
        if let Some(known) = self.cache.name(dir, name) {
            let Some(ino) = known else { return Ok(None) };
            if let Some(attr) = self.known_attr(ino) {
                return Ok(Some((ino, attr.kind)));
            }
        }
        match self.inspect(About::Name { parent: dir, name: name.clone() }, limit).await {
            Ok(i) => Ok(Some((i.attr.ino, i.attr.kind))),
            Err(Lost::Refused(Errno::ENOENT)) => Ok(None),
            Err(lost) => Err(lost),
        }
    }

    /// The type of an inode never changes, so that old attributes will do.
    fn known_attr(&self, ino: Ino) -> Option<Attr> {
        self.cache.table.peek(ino).and_then(|node| node.effective())
    }

    async fn target(&self, link: Ino, limit: Instant) -> Result<Vec<u8>, Lost> {
        let known = self.cache.table.peek(link).and_then(|node| node.state().target.clone());
        if let Some(target) = known {
            return Ok(target.to_vec());
        }
        match self.session.inquire(Request::ReadLink { ino: link }, left(limit)).await? {
            Response::Bytes(target) => Ok(target),
            _ => Err(Lost::Refused(Errno::EPROTO)),
        }
    }

    async fn inspect(&self, about: About, limit: Instant) -> Result<Inspection, Lost> {
        match self.inquire(about, limit).await? {
            Response::Inspected(inspection) => Ok(*inspection),
            _ => Err(Lost::Refused(Errno::EPROTO)),
        }
    }

    async fn inquire(&self, about: About, limit: Instant) -> Result<Response, Lost> {
        self.session.inquire(Request::Inspect(about), left(limit)).await
    }

    fn here(&self, ino: Ino) -> Here {
        let Some(node) = self.cache.table.peek(ino) else { return Here::default() };
        let kept = self.cache.live();
        let state = node.state();
        let mut here = Here {
            attr: state.effective(),
            lease: state.held.mode(),
            kept: kept && state.valid,
            giving: state.giving,
            failures: state.failed.count(),
            failed: state.failed.last(),
            ..Here::default()
        };
        if let Some(file) = &state.file {
            here.dirty = file.dirty.data_bytes();
            here.flying = file.flying.data_bytes();
            here.unflushed = file.kept.data_bytes();
            here.unreported = file.reportable();
        }
        here
    }

    /// How the way to the server is.
    pub fn connection(&self) -> Connection {
        let unsent = self.unsent();
        Connection {
            connected: self.session.connected(),
            silent: self.session.silent(),
            left: self.cache.ttl(),
            term: Duration::from_millis(u64::from(self.session.volume().term_ms)),
            unsent_bytes: unsent.bytes,
            unsent_files: unsent.files,
        }
    }
}

fn left(limit: Instant) -> Duration {
    limit.saturating_duration_since(Instant::now())
}
