//! Names of files, for people: as far as the cache of names knows them.

use std::collections::HashMap;

use netfs_common::id::Ino;

use super::Cache;
use crate::session::lock;

/// The deepest path that is put together; a longer one is told from there on.
const MAX_DEPTH: usize = 64;

impl Cache {
    /// A path of each of these inodes below the root of the volume, for those that have a known name. Looks at every name in the
    /// cache.
    pub fn paths(&self, wanted: &[Ino]) -> HashMap<Ino, String> {
        if wanted.is_empty() {
            return HashMap::new();
        }
        let parents: HashMap<Ino, (Ino, String)> = {
            let names = lock(&self.names);
            let known = names.iter().filter_map(|((parent, name), known)| {
                let shown = String::from_utf8_lossy(name.as_bytes()).into_owned();
                known.ino.map(|ino| (ino, (*parent, shown)))
            });
            known.collect()
        };
        let path = |ino: &Ino| {
            let (mut at, mut parts) = (*ino, Vec::new());
            while at != Ino::ROOT && parts.len() < MAX_DEPTH {
                match parents.get(&at) {
                    Some((parent, name)) => {
                        parts.push(name.as_str());
                        at = *parent;
                    }
                    None => break,
                }
            }
            parts.reverse();
            let start = if at == Ino::ROOT { "/" } else { ".../" };
            (!parts.is_empty()).then(|| (*ino, format!("{start}{}", parts.join("/"))))
        };
        wanted.iter().filter_map(path).collect()
    }
}
