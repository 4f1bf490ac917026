//! What requests need of leases: which inodes they look at or change, and how.

use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::name::Name;
use netfs_common::wire::lease::{Lease, Names, Scope};
use netfs_common::wire::meta::{Op, RenameMode, Reply, Request, Response};

use crate::meta::leases::{Access, Want};

fn look(ino: Ino, scope: Scope) -> Want {
    Want { ino, scope, access: Access::Look }
}

fn change(ino: Ino, scope: Scope) -> Want {
    Want { ino, scope, access: Access::Change }
}

fn take(ino: Ino) -> Want {
    Want { ino, scope: Scope::all(), access: Access::Take }
}

fn contents() -> Scope {
    Scope { attrs: true, data: Some((0, u64::MAX)), ..Scope::default() }
}

fn xattrs() -> Scope {
    Scope { attrs: true, xattrs: true, ..Scope::default() }
}

/// What a question looks at, `reply` being what it would be answered with now. A listing's entries are not among it: those
/// that somebody else may be changing are shown without attributes.
pub fn of_question(request: &Request, reply: &Reply) -> Vec<Want> {
    match request {
        Request::Lookup { parent, name } => {
            let names = Names::Some(vec![name.clone()]);
            let mut wants = vec![look(*parent, Scope { names, ..Scope::default() })];
            if let Ok(Response::Entry { attr, .. }) = reply {
                wants.push(look(attr.ino, contents()));
            }
            wants
        }
        Request::Get { ino } => vec![look(*ino, contents())],
        Request::Acquire { ino } => vec![take(*ino)],
        Request::ReadDir { ino, .. } => {
            vec![look(*ino, Scope { attrs: true, names: Names::All, ..Scope::default() })]
        }
        Request::ListXattrs { ino } | Request::GetXattr { ino, .. } => vec![look(*ino, xattrs())],
        // The target of a link never changes; the rest is about no inode.
        Request::ReadLink { .. }
        | Request::StatFs
        | Request::Sync
        | Request::Renew
        | Request::Mutate(_)
        | Request::Status
        | Request::Lock(_)
        | Request::Inspect(_)
        | Request::Operate(_)
        | Request::Reclaim { .. }
        | Request::Replay { .. } => Vec::new(),
    }
}

/// A listing's entry that is shown with attributes.
pub fn of_entry(ino: Ino) -> Want {
    look(ino, contents())
}

/// What a change leaves behind of the file that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Nothing else than before.
    AsItWas,
    /// The client goes on writing to it.
    Written,
    /// And data servers have nothing of it that was not reported.
    Clean,
}

/// What a change touches, as the names are now (`child` looks one up), and what it leaves behind.
///
/// # Errors
/// Those of `child`.
pub fn of_change(
    child: impl Fn(Ino, &Name) -> Result<Option<Ino>, Errno>,
    op: &Op,
) -> Result<(Vec<Want>, Leaves), Errno> {
    let named = |parent: Ino, name: &Name| change(parent, Scope::name(name.clone()));
    let mut wants = Vec::new();
    match op {
        Op::Create { parent, name, .. } => wants.push(named(*parent, name)),
        Op::Link { ino, parent, name } => {
            wants.push(named(*parent, name));
            wants.push(change(*ino, Scope::attrs()));
        }
        Op::Unlink { parent, name } | Op::Rmdir { parent, name } => {
            wants.push(named(*parent, name));
            wants.extend(child(*parent, name)?.map(|ino| change(ino, Scope::attrs())));
        }
        Op::Rename { parent, name, new_parent, new_name, mode } => {
            wants.push(named(*parent, name));
            wants.push(named(*new_parent, new_name));
            wants.extend(child(*parent, name)?.map(|ino| change(ino, Scope::attrs())));
            let there = child(*new_parent, new_name)?;
            if *mode != RenameMode::NoReplace {
                wants.extend(there.map(|ino| change(ino, Scope::attrs())));
            }
        }
        Op::SetAttr { ino, set } => wants.push(match set.size {
            Some(_) => take(*ino),
            // Permission bits and access control lists are two sides of one thing.
            None => change(*ino, xattrs()),
        }),
        Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. } => {
            wants.push(change(*ino, xattrs()))
        }
        Op::WriteInline { ino, .. } | Op::WroteChunks { ino, .. } | Op::CutTail { ino } => {
            wants.push(take(*ino));
        }
        // Access times recall nobody.
        Op::Accessed { .. } | Op::Forget { .. } | Op::EndSession => {}
    }
    let leaves = match op {
        Op::Create { .. } | Op::CutTail { .. } => Leaves::Clean,
        Op::WriteInline { .. } | Op::WroteChunks { .. } => Leaves::Written,
        _ => Leaves::AsItWas,
    };
    Ok((wants, leaves))
}

/// Which leases go with the answer to a question.
pub fn granted_with(request: &Request, reply: &Reply) -> Vec<(Ino, Lease)> {
    match (request, reply) {
        (Request::Lookup { parent, .. }, Ok(Response::Entry { attr, .. })) => {
            vec![(*parent, Lease::Read), (attr.ino, Lease::Read)]
        }
        (Request::Lookup { parent, .. }, Err(Errno::ENOENT)) => vec![(*parent, Lease::Read)],
        (Request::Get { ino }, Ok(_)) => vec![(*ino, Lease::Read)],
        (Request::Acquire { ino }, Ok(_)) => vec![(*ino, Lease::Write)],
        (Request::GetXattr { ino, .. }, Ok(_) | Err(Errno::ENODATA)) => vec![(*ino, Lease::Read)],
        (Request::ReadDir { ino, .. }, Ok(Response::Listing { entries, .. })) => {
            let shown = entries.iter().filter(|e| e.attr.is_some()).map(|e| e.ino);
            std::iter::once(*ino).chain(shown).map(|ino| (ino, Lease::Read)).collect()
        }
        _ => Vec::new(),
    }
}
