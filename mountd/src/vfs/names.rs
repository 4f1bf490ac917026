//! Names: looking them up and changing them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfs_common::attr::Attr;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{MAX_SYMLINK, NewInode, Op, RenameMode, Request, Response, granted};

use super::delivery::Referred;
use super::{Caller, Entry, Looked, Opened, Vfs};
use crate::cache::{Node, Ticket};
use crate::session::Changed;

/// How often a lookup asks when it finds an inode whose old names the kernel may still be at work with.
const MAX_LOOKS: usize = 3;

/// What the server says of a name.
enum Asked {
    Known(Looked),
    /// It is one whose old names the kernel may still be at work with.
    Moving(Ino),
    /// It was removed while the answer was under way, and is given up here.
    Gone,
}

impl Vfs {
    /// The answer to a lookup if it is known. A found inode counts one reference of the kernel.
    pub fn try_lookup(&self, parent: Ino, name: &Name) -> Option<Result<Looked, Errno>> {
        if self.is_down() {
            return Some(Err(Errno::EIO));
        }
        self.cache.asked_for(parent, name);
        if !self.cache.live() {
            return None;
        }
        let dir = self.cache.table.get(parent)?;
        match self.cache.give_name(&dir, name) {
            Some((Some(ino), ttl)) => {
                let node = self.cache.table.get(ino)?;
                let mut entry = self.served_entry(&node)?;
                entry.ttl = entry.ttl.min(ttl);
                Some(Ok(Looked::Found(self.counted(entry)?)))
            }
            Some((None, ttl)) => Some(Ok(Looked::Absent { ttl })),
            None => {
                let ttl = self.cache.give_absent(&dir, name)?;
                Some(Ok(Looked::Absent { ttl }))
            }
        }
    }

    /// Looks a name up. A found inode counts one reference of the kernel.
    ///
    /// # Errors
    /// As `stat(2)`, but that an absent name is none.
    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<Looked, Errno> {
        if let Some(known) = self.try_lookup(parent, name) {
            return known;
        }
        let asked = async {
            for _ in 0..MAX_LOOKS {
                match self.ask_name(parent, name).await? {
                    Asked::Known(looked) => return Ok(looked),
                    Asked::Moving(ino) => self.let_settle(ino, parent).await,
                    Asked::Gone => {}
                }
            }
            // The kernel begins again, by the names as they are then.
            Err(Errno::ESTALE)
        };
        self.patiently(asked).await
    }

    async fn ask_name(&self, parent: Ino, name: &Name) -> Result<Asked, Errno> {
        let dir = self.cache.table.obtain(parent);
        let ticket = self.cache.ticket(&dir);
        let answer = self.session.ask(Request::Lookup { parent, name: name.clone() }).await;
        let of_dir = answer.granted(parent);
        match answer.reply {
            Ok(Response::Entry { attr, .. }) if self.is_moving(attr.ino, parent, name) => {
                Ok(Asked::Moving(attr.ino))
            }
            Ok(Response::Entry { attr, inline }) => {
                let (ino, grant) = (attr.ino, granted(&answer.grants, attr.ino));
                let node = self.cache.learn(ticket, attr, inline.map(Into::into), grant);
                let ttl = self.cache.learn_name(ticket, &dir, name, Some(ino), of_dir);
                let mut entry = self.entry(&node).ok_or(Errno::EIO)?;
                entry.ttl = entry.ttl.min(ttl);
                let counted = self.counted(entry);
                Ok(counted.map_or(Asked::Gone, |entry| Asked::Known(Looked::Found(entry))))
            }
            Err(Errno::ENOENT) => {
                let ttl = self.cache.learn_name(ticket, &dir, name, None, of_dir);
                Ok(Asked::Known(Looked::Absent { ttl }))
            }
            Ok(_) => Err(Errno::EPROTO),
            Err(e) => Err(e),
        }
    }

    /// Sends a change of names. The directories' counters move before and after it.
    async fn change(
        self: &Arc<Self>,
        dirs: &[&Arc<Node>],
        op: Op,
    ) -> Result<(Ticket, Changed), Errno> {
        for dir in dirs {
            self.cache.moved(dir);
        }
        let ticket = self.cache.ticket(dirs.first().ok_or(Errno::EINVAL)?);
        let outcome = self.session.mutate(op, false).await;
        for dir in dirs {
            self.cache.moved(dir);
        }
        let changed = outcome?;
        self.cache.learn_changed(ticket, &changed);
        let orphans = changed.attrs.iter().filter(|a| a.nlink == 0).map(|a| a.ino);
        orphans.clone().for_each(|ino| self.cache.table.orphaned(ino));
        for ino in self.cache.table.unreferenced(orphans) {
            self.unused(ino);
        }
        Ok((ticket, changed))
    }

    /// Makes a file, directory, symbolic link or special file.
    ///
    /// # Errors
    /// As `mknod(2)`, `mkdir(2)`, `symlink(2)`.
    pub async fn make(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        new: NewInode,
        perm: u16,
        umask: u16,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        if matches!(&new, NewInode::Symlink(t) if t.len() > MAX_SYMLINK) {
            return Err(Errno::ENAMETOOLONG);
        }
        let (this, name) = (Arc::clone(self), name.clone());
        self.run(async move {
            let entry = this.make_now(parent, &name, new, perm, umask, caller).await?;
            this.refer(entry)
        })
        .await
        .map(|made| made.0)
    }

    async fn make_now(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        new: NewInode,
        perm: u16,
        umask: u16,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let dir = self.cache.table.obtain(parent);
        let op = Op::Create {
            parent,
            name: name.clone(),
            new: new.clone(),
            perm,
            umask,
            uid: caller.uid,
            gid: caller.gid,
        };
        let (ticket, changed) = match self.change(&[&dir], op).await {
            Ok(done) => done,
            Err(e) => {
                self.cache.unknown_name(&dir, name);
                return Err(e);
            }
        };
        let attr = changed.target_attr()?;
        let node = self.cache.table.obtain(attr.ino);
        match new {
            NewInode::Dir => self.cache.made_empty(ticket, &node),
            NewInode::File => self.cache.tail_known(ticket, &node),
            NewInode::Symlink(target) => node.state().target = Some(target.into()),
            NewInode::Special(..) => {}
        }
        let ttl = self.cache.set_name(ticket, &dir, name, Some(attr.ino));
        Ok(self.entry_for(&node, attr, ttl))
    }

    /// Counts an entry as a reference of the kernel's.
    ///
    /// # Errors
    /// `ESTALE` when another client has removed it since, and it is given up here: the kernel begins again.
    fn refer(&self, entry: Entry) -> Result<Referred, Errno> {
        self.counted(entry).map(Referred).ok_or(Errno::ESTALE)
    }

    /// Counts an entry as a reference of the kernel's; `None` when it must not get one. What was taken back since the entry was made the kernel may not
    /// keep. For what is taken back from now on it is waited for: it may make the inode from this answer only then.
    pub fn counted(&self, mut entry: Entry) -> Option<Entry> {
        if !self.cache.table.refer(entry.attr.ino) {
            return None;
        }
        if !entry.ttl.is_zero() {
            let node = self.cache.table.obtain(entry.attr.ino);
            let state = node.state();
            if !state.valid || state.effective().as_ref() != Some(&entry.attr) {
                entry.ttl = Duration::ZERO;
            }
        }
        Some(entry)
    }

    /// An inode that a name leads to, which the kernel may keep for so long.
    fn entry_for(&self, node: &Node, attr: Attr, ttl: Duration) -> Entry {
        let mut entry = self.entry(node).unwrap_or(Entry { attr, ttl });
        entry.ttl = entry.ttl.min(ttl);
        entry
    }

    /// Makes and opens a file.
    ///
    /// # Errors
    /// As `open(2)` with `O_CREAT`; `ESTALE` when the name exists and that is no error.
    #[allow(clippy::too_many_arguments)]
    pub async fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        perm: u16,
        umask: u16,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, Opened), Errno> {
        let (this, name) = (Arc::clone(self), name.clone());
        self.run(async move {
            let made = this.make_now(parent, &name, NewInode::File, perm, umask, caller).await;
            match made {
                Ok(entry) => {
                    let ino = entry.attr.ino;
                    let made = this.refer(entry)?;
                    // Made empty: there is nothing for `O_TRUNC` to do.
                    Ok((made, this.opened(ino, flags)))
                }
                // Somebody else was faster. The kernel would open that file without asking whether
                // the caller may; told this, it looks the name up again and checks.
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => Err(Errno::ESTALE),
                Err(e) => Err(e),
            }
        })
        .await
        .map(|(made, opened)| (made.0, opened))
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// As `link(2)`.
    pub async fn link(
        self: &Arc<Self>,
        ino: Ino,
        parent: Ino,
        name: &Name,
    ) -> Result<Entry, Errno> {
        let (this, name) = (Arc::clone(self), name.clone());
        self.run(async move {
            let dir = this.cache.table.obtain(parent);
            let op = Op::Link { ino, parent, name: name.clone() };
            let changed = match this.change(&[&dir], op).await {
                Ok(done) => done,
                Err(e) => {
                    this.cache.unknown_name(&dir, &name);
                    return Err(e);
                }
            };
            let (ticket, changed) = changed;
            let attr = changed.target_attr()?;
            this.cache.table.adopted(ino);
            let mut ttl = this.cache.set_name(ticket, &dir, &name, Some(ino));
            if this.company.load(Ordering::SeqCst) {
                // This answer alone the kernel takes for the truth even if it was told meanwhile that the inode has changed.
                ttl = Duration::ZERO;
            }
            this.refer(this.entry_for(&this.cache.table.obtain(ino), attr, ttl))
        })
        .await
        .map(|linked| linked.0)
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// As `unlink(2)`.
    pub async fn unlink(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<(), Errno> {
        let op = Op::Unlink { parent, name: name.clone() };
        self.remove(parent, name, op).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As `rmdir(2)`.
    pub async fn rmdir(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<(), Errno> {
        let op = Op::Rmdir { parent, name: name.clone() };
        self.remove(parent, name, op).await
    }

    async fn remove(self: &Arc<Self>, parent: Ino, name: &Name, op: Op) -> Result<(), Errno> {
        let (this, name) = (Arc::clone(self), name.clone());
        self.run(async move {
            let dir = this.cache.table.obtain(parent);
            match this.change(&[&dir], op).await {
                Ok((ticket, _)) => {
                    this.cache.set_name(ticket, &dir, &name, None);
                    Ok(())
                }
                // These leave the name as it was.
                Err(e @ (Errno::ENOTEMPTY | Errno::EISDIR | Errno::EPERM | Errno::EACCES)) => {
                    Err(e)
                }
                Err(e) => {
                    this.cache.unknown_name(&dir, &name);
                    Err(e)
                }
            }
        })
        .await
    }

    /// Moves a name.
    ///
    /// # Errors
    /// As `renameat2(2)`.
    pub async fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: &Name,
        new_parent: Ino,
        new_name: &Name,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let (this, name, new_name) = (Arc::clone(self), name.clone(), new_name.clone());
        self.run(async move {
            let from = this.cache.table.obtain(parent);
            let to = this.cache.table.obtain(new_parent);
            let known = this.cache.name(new_parent, &new_name);
            let there = known.flatten();
            let op = Op::Rename {
                parent,
                name: name.clone(),
                new_parent,
                new_name: new_name.clone(),
                mode,
            };
            let (ticket, changed) = match this.change(&[&from, &to], op).await {
                Ok(done) => done,
                Err(e) => {
                    this.cache.unknown_name(&from, &name);
                    this.cache.unknown_name(&to, &new_name);
                    return Err(e);
                }
            };
            let Some(ino) = changed.target else { return Err(Errno::EPROTO) };
            if mode == RenameMode::Exchange {
                match there {
                    Some(other) => drop(this.cache.set_name(ticket, &from, &name, Some(other))),
                    None => this.cache.unknown_name(&from, &name),
                }
            } else if matches!(mode, RenameMode::Whiteout { .. }) {
                // It leads to an inode that has just been made.
                this.cache.unknown_name(&from, &name);
            } else if known.is_some() && there != Some(ino) {
                this.cache.set_name(ticket, &from, &name, None);
            } else {
                // Two names of one inode, or maybe so: nothing was moved.
                this.cache.unknown_name(&from, &name);
            }
            this.cache.set_name(ticket, &to, &new_name, Some(ino));
            this.cache.moved_name(&to, &new_name);
            if mode == RenameMode::Exchange {
                this.cache.moved_name(&from, &name);
            }
            if mode == RenameMode::Replace
                && let Some(node) = this.cache.table.get(ino)
            {
                // A file that replaces another by its name should not lose its data in a crash of
                // this client, though nobody asked for `fsync` (as ext4's `auto_da_alloc`).
                this.writeback.kick(&node);
            }
            Ok(())
        })
        .await
    }
}
