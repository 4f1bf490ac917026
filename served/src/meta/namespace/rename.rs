//! `rename(2)` and `renameat2(2)`.

use netfs_common::attr::FileKind;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{NewInode, RenameMode, Response};

use super::change::Change;
use super::create::Wanted;
use super::{Fault, StoreError, changed};
use crate::meta::keys;
use crate::meta::record::{Entry, Inode};

/// A name and its directory.
type Place<'n> = (Ino, &'n Name);

impl Change<'_, '_> {
    pub(super) fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
    ) -> Result<Response, Fault> {
        self.live_dir(from.0)?;
        self.live_dir(to.0)?;
        let source = self.entry(from.0, from.1)?.ok_or(Errno::ENOENT)?;
        let target = self.entry(to.0, to.1)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(Errno::EEXIST.into()),
            (RenameMode::Exchange, None) => Err(Errno::ENOENT.into()),
            // Two names of one inode: POSIX wants both to stay.
            (_, Some(target)) if target.ino == source.ino => Ok(changed(source.ino)),
            (RenameMode::Exchange, Some(target)) => self.exchange((from, source), (to, target)),
            (RenameMode::Whiteout { uid, gid }, target) => {
                self.replace((from, source), (to, target))?;
                let wanted = Wanted { perm: 0, umask: 0, uid, gid };
                self.create(from.0, from.1, NewInode::Special(FileKind::Char, 0), wanted)?;
                Ok(changed(source.ino))
            }
            (_, target) => self.replace((from, source), (to, target)),
        }
    }

    fn replace(
        &mut self,
        ((from, old_name), source): (Place<'_>, Entry),
        ((to, new_name), target): (Place<'_>, Option<Entry>),
    ) -> Result<Response, Fault> {
        let mut moved = self.inode_of(&source)?;
        self.refuse_cycle(&moved, from, to)?;
        let victim = target.as_ref().map(|t| self.inode_of(t)).transpose()?;
        if let Some(victim) = &victim {
            match (moved.is_dir(), victim.is_dir()) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                _ if victim.entries > 0 => return Err(Errno::ENOTEMPTY.into()),
                _ => {}
            }
        }

        let mut dir = self.live_dir(from)?;
        self.remove_entry(&mut dir, old_name, &source);
        if moved.is_dir() && from != to {
            dir.attr.nlink = dir.attr.nlink.saturating_sub(1);
        }
        self.put(dir);

        let mut dir = self.live_dir(to)?;
        if let Some(target) = &target {
            self.remove_entry(&mut dir, new_name, target);
        }
        // Within a directory an entry keeps its place: a program that renames what it lists
        // must not meet the same file again and again.
        let cookie = (from == to).then_some(source.cookie);
        self.add_entry(&mut dir, new_name, (source.ino, source.kind), cookie)?;
        if victim.as_ref().is_some_and(Inode::is_dir) {
            dir.attr.nlink = dir.attr.nlink.saturating_sub(1);
        }
        if moved.is_dir() && from != to {
            dir.attr.nlink = dir.attr.nlink.checked_add(1).ok_or(Errno::EMLINK)?;
            moved.attr.parent = to;
        }
        self.put(dir);

        self.touch(&mut moved);
        self.put(moved);
        if let Some(victim) = victim {
            self.drop_name(victim)?;
        }
        Ok(changed(source.ino))
    }

    fn exchange(
        &mut self,
        ((from, old_name), source): (Place<'_>, Entry),
        ((to, new_name), target): (Place<'_>, Entry),
    ) -> Result<Response, Fault> {
        let mut one = self.inode_of(&source)?;
        let mut other = self.inode_of(&target)?;
        self.refuse_cycle(&one, from, to)?;
        self.refuse_cycle(&other, to, from)?;
        // Names keep their places and change what they lead to.
        self.write_entry(from, old_name, Entry { cookie: source.cookie, ..target })?;
        self.write_entry(to, new_name, Entry { cookie: target.cookie, ..source })?;

        for (dir, leaves, comes) in [(from, &one, &other), (to, &other, &one)] {
            let mut dir = self.live_dir(dir)?;
            if from != to {
                let nlink = dir.attr.nlink.saturating_sub(u32::from(leaves.is_dir()));
                dir.attr.nlink =
                    nlink.checked_add(u32::from(comes.is_dir())).ok_or(Errno::EMLINK)?;
            }
            self.touch_dir(&mut dir);
            self.put(dir);
        }
        for (inode, dir) in [(&mut one, to), (&mut other, from)] {
            if inode.is_dir() {
                inode.attr.parent = dir;
            }
            self.touch(inode);
            self.put(inode.clone());
        }
        Ok(changed(source.ino))
    }

    /// A directory cannot go below itself.
    fn refuse_cycle(&mut self, moved: &Inode, from: Ino, to: Ino) -> Result<(), Fault> {
        if !moved.is_dir() || from == to {
            return Ok(());
        }
        let mut at = to;
        // No path has more directories than there are inodes: a longer one is a cycle on disk.
        for _ in 0..=self.state.inodes {
            if at == moved.attr.ino {
                return Err(Errno::EINVAL.into());
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            let dir = self.find(at)?.filter(Inode::is_dir);
            let damaged = || StoreError::damaged(&keys::inode(at), "not a directory's parent");
            at = dir.ok_or_else(damaged)?.attr.parent;
        }
        Err(StoreError::damaged(&keys::inode(to), "directories in a circle").into())
    }
}
