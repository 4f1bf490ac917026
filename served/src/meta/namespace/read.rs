//! Reads. The store must not change while one runs; see [`crate::meta::engine`].

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::meta::{DirEntry, MAX_LISTING, Response};

use super::xattrs::check_name;
use super::{Fault, required};
use crate::meta::keys;
use crate::meta::kv::{Read, StoreError};
use crate::meta::record::{self, Entry, Inode, Listed};

pub(super) use crate::meta::kv::Pair;

fn load(store: &dyn Read, ino: Ino) -> Result<Inode, Fault> {
    record::load(store, &keys::inode(ino))?.ok_or(Fault::Refused(Errno::ESTALE))
}

fn dir(store: &dyn Read, ino: Ino) -> Result<Inode, Fault> {
    let inode = load(store, ino)?;
    if inode.is_dir() { Ok(inode) } else { Err(Errno::ENOTDIR.into()) }
}

fn entry_of(store: &dyn Read, attr: Attr) -> Result<Response, Fault> {
    let inline = match attr.inline {
        true => {
            let data = store.get(&keys::inline(attr.ino))?;
            Some(data.map(|d| d.to_vec()).unwrap_or_default())
        }
        false => None,
    };
    Ok(Response::Entry { attr, inline })
}

/// An entry of a directory.
pub(crate) fn lookup(store: &dyn Read, parent: Ino, name: &Name) -> Result<Response, Fault> {
    let entry: Option<Entry> = record::load(store, &keys::entry(parent, name.as_bytes()))?;
    let Some(entry) = entry else {
        dir(store, parent)?;
        return Err(Errno::ENOENT.into());
    };
    let inode: Inode = required(store, &keys::inode(entry.ino))?;
    entry_of(store, inode.attr)
}

/// An inode.
pub(crate) fn get(store: &dyn Read, ino: Ino) -> Result<Response, Fault> {
    entry_of(store, load(store, ino)?.attr)
}

/// The target of a symbolic link.
pub(crate) fn read_link(store: &dyn Read, ino: Ino) -> Result<Response, Fault> {
    if load(store, ino)?.attr.kind != FileKind::Symlink {
        return Err(Errno::EINVAL.into());
    }
    let key = keys::inline(ino);
    let target = store.get(&key)?;
    let target = target.ok_or_else(|| StoreError::damaged(&key, "a link has no target"))?;
    Ok(Response::Bytes(target.to_vec()))
}

/// Entries of a directory after a cookie.
pub(crate) fn read_dir(
    store: &dyn Read,
    ino: Ino,
    after: u64,
    limit: u32,
    plus: bool,
) -> Result<Response, Fault> {
    let dir = dir(store, ino)?;
    let limit = limit.clamp(1, MAX_LISTING) as usize;
    let from = keys::listing(ino, after.saturating_add(1));
    let prefix = keys::key(keys::LISTING, [ino.0]);
    let mut pairs = match dir.entries {
        // What was removed can be long to step over: an empty directory needs no search.
        0 => Vec::new(),
        _ => store.range(&from, &keys::after_prefix(&prefix), limit + 1)?,
    };
    let end = pairs.len() <= limit;
    pairs.truncate(limit);
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let cookie = keys::field(&key, 1).ok_or_else(|| StoreError::damaged(&key, "bad key"))?;
        let Listed { ino, kind, name } = record::decode(&key, &value)?;
        let attr = match plus {
            true => Some(required::<Inode>(store, &keys::inode(ino))?.attr),
            false => None,
        };
        entries.push(DirEntry { cookie, name, ino, kind, attr });
    }
    Ok(Response::Listing { entries, end, parent: dir.attr.parent })
}

/// The names of all extended attributes.
pub(crate) fn list_xattrs(store: &dyn Read, ino: Ino) -> Result<Response, Fault> {
    if !load(store, ino)?.attr.has_xattrs {
        return Ok(Response::Xattrs(Vec::new()));
    }
    let prefix = keys::xattr(ino, b"");
    let all = store.range(&prefix, &keys::after_prefix(&prefix), usize::MAX)?;
    let names = all.iter().filter_map(|(key, _)| keys::name_of(key).map(<[u8]>::to_vec));
    Ok(Response::Xattrs(names.collect()))
}

/// An extended attribute.
pub(crate) fn get_xattr(store: &dyn Read, ino: Ino, name: &[u8]) -> Result<Response, Fault> {
    let inode = load(store, ino)?;
    check_name(name)?;
    let value = match inode.attr.has_xattrs {
        true => store.get(&keys::xattr(ino, name))?,
        false => None,
    };
    Ok(Response::Bytes(value.ok_or(Errno::ENODATA)?.to_vec()))
}
