//! Changes of attributes.

use netfs_common::attr::{FileKind, SetAttr};
use netfs_common::class;
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::Response;

use super::change::{Change, inline_allocation};
use super::{Fault, MAX_SIZE, changed, resolve_time};
use crate::meta::acl;
use crate::meta::keys;
use crate::meta::record::{self, Deletion, Inode, Trim};

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXEC: u16 = 0o010;
/// Far more than an inode can be given between two flushes of the log.
const LOST_GENERATIONS: u32 = 1 << 16;

impl Change<'_, '_> {
    pub(super) fn set_attr(&mut self, ino: Ino, set: &SetAttr) -> Result<Response, Fault> {
        let mut inode = self.inode(ino)?;
        self.touch(&mut inode);
        if let Some(size) = set.size {
            self.set_size(&mut inode, size)?;
        }
        match set.perm {
            Some(perm) => self.set_perm(&mut inode, perm & 0o7777)?,
            // The kernel asks for this itself wherever it can; a caller that did not must still
            // not give a program's privileges to another owner.
            None if set.uid.or(set.gid).is_some() && inode.attr.kind == FileKind::File => {
                inode.attr.perm &= !SET_UID;
                if inode.attr.perm & GROUP_EXEC != 0 {
                    inode.attr.perm &= !SET_GID;
                }
            }
            None => {}
        }
        inode.attr.uid = set.uid.unwrap_or(inode.attr.uid);
        inode.attr.gid = set.gid.unwrap_or(inode.attr.gid);
        if let Some(time) = set.atime {
            inode.attr.atime = resolve_time(time, self.time)?;
        }
        if let Some(time) = set.mtime {
            inode.attr.mtime = resolve_time(time, self.time)?;
        }
        self.put(inode);
        Ok(changed(ino))
    }

    /// The access control list follows the permission bits.
    fn set_perm(&mut self, inode: &mut Inode, perm: u16) -> Result<(), Fault> {
        inode.attr.perm = perm;
        if !inode.attr.has_xattrs {
            return Ok(());
        }
        if let Some(mut list) = self.acl(inode.attr.ino, acl::ACCESS)? {
            list.set_perm(perm);
            self.write_xattr(inode, acl::ACCESS, list.to_bytes())?;
        }
        Ok(())
    }

    fn set_size(&mut self, inode: &mut Inode, size: u64) -> Result<(), Fault> {
        match inode.attr.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if size > MAX_SIZE {
            return Err(Errno::EFBIG.into());
        }
        if inode.attr.inline {
            self.cut_inline(inode, size)?;
        } else if size == 0 {
            self.discard_chunks(inode)?;
        } else if size < inode.attr.size {
            self.queue_trim(inode, size)?;
        }
        inode.attr.size = size;
        inode.attr.mtime = inode.attr.ctime;
        Ok(())
    }

    fn cut_inline(&mut self, inode: &mut Inode, size: u64) -> Result<(), Fault> {
        if size >= inode.attr.size {
            return Ok(());
        }
        let key = keys::inline(inode.attr.ino);
        let mut data = self.bytes_at(&key)?;
        if (data.len() as u64) > size {
            // Not above the length of the data, so it fits.
            data.truncate(size as usize);
            self.write_inline_data(inode, data);
        }
        Ok(())
    }

    /// Replaces inline data.
    pub(super) fn write_inline_data(&mut self, inode: &mut Inode, data: Vec<u8>) {
        self.set_allocated(inode, inline_allocation(data.len()));
        let key = keys::inline(inode.attr.ino);
        match data.is_empty() {
            true => self.txn.remove(key),
            false => self.txn.put(key, data),
        }
    }

    /// The file's contents go; new ones get another generation and begin inline.
    fn discard_chunks(&mut self, inode: &mut Inode) -> Result<(), Fault> {
        self.next_generation(inode)?;
        inode.attr.inline = true;
        self.set_allocated(inode, 0);
        Ok(())
    }

    /// The chunks that a file may have go, and it gets another generation, of the same class.
    ///
    /// After a crash that may have taken the end of the log, generations that it may have given out are left
    /// out: there may be chunks under them.
    fn next_generation(&mut self, inode: &mut Inode) -> Result<(), Fault> {
        self.queue_deletion(inode)?;
        let now = inode.attr.generation;
        let old = self.old_generation(inode.attr.ino).filter(|old| class::is_later(*old, now));
        if let Some(generation) = old {
            // Further ones may have been given out.
            inode.attr.generation = generation;
            return Ok(());
        }
        let lost = inode.crashes != self.state.crashes;
        let step = if lost { LOST_GENERATIONS } else { 1 };
        inode.attr.generation = class::later(now, step).ok_or(Errno::EFBIG)?;
        inode.crashes = self.state.crashes;
        Ok(())
    }

    /// What clients that died have left at the data servers goes; the file itself stays as it is.
    pub(super) fn cut_tail(&mut self, ino: Ino) -> Result<Response, Fault> {
        let mut inode = self.inode(ino)?;
        match inode.attr.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if inode.attr.inline {
            self.next_generation(&mut inode)?;
        } else {
            let size = inode.attr.size;
            self.queue_trim(&inode, size)?;
        }
        self.put(inode);
        Ok(changed(ino))
    }

    /// The data servers are to remove what a file has from a length on.
    fn queue_trim(&mut self, inode: &Inode, from: u64) -> Result<(), Fault> {
        let id = self.next_task();
        let trim = Trim {
            ino: inode.attr.ino,
            generation: inode.attr.generation,
            chunk_bits: inode.attr.chunk_bits,
            from,
            end: inode.attr.size,
        };
        self.txn.put(keys::trim(id), record::encode(&trim)?);
        Ok(())
    }

    /// The chunks of a file's present generation are to be removed.
    pub(super) fn queue_deletion(&mut self, inode: &Inode) -> Result<(), Fault> {
        let id = self.next_task();
        let deletion = Deletion {
            ino: inode.attr.ino,
            generation: inode.attr.generation,
            chunk_bits: inode.attr.chunk_bits,
            end: inode.attr.size,
        };
        self.txn.put(keys::deletion(id), record::encode(&deletion)?);
        Ok(())
    }
}
