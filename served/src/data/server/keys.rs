//! How the chunks of each volume are stored, as the cluster map says it, and the keys for that.
//!
//! What the map says of volumes that are compressed or encrypted is kept in the file `volumes` in the store's directory, before anything is
//! written by it. So a server that is started without the key file, or with another one, says so before it does anything: it can tell
//! that it will need it, and whether it is the right one, since a volume's key opens under no other.
//!
//! The map may tell of an encrypted volume while the server runs. Without its key the volume is *locked*: its chunks are neither written nor
//! read here, the metadata server is told, and never is anything stored in plain. A map that says something else of a volume
//! than what is known, another key or none at all, is an error or an attack, and locks the volume too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use netfs_common::codec as wire;
use netfs_common::coding::Coding;
use netfs_common::map::ClusterMap;

use super::replicas::lock;
use crate::data::codec::{Codec, KeyError, KeyFile, VolumeKey};
use crate::data::store::SegmentStore;
use crate::private;

/// The file's name in the store's directory.
const FILE: &str = "volumes";
/// The magic at its begin, with the version of its form.
const MAGIC: [u8; 8] = *b"NETFSVC1";

/// Why a data server cannot use its keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The key file.
    #[error("data server: {0}")]
    Key(#[from] KeyError),
    /// The list of volumes.
    #[error("data server: {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Its contents.
    #[error("data server: {} is damaged; it may be removed: the metadata server tells its contents again", .0.display())]
    Damaged(PathBuf),
}

type Known = BTreeMap<u64, (Coding, Option<VolumeKey>)>;

/// What is known of volumes.
#[derive(Debug)]
pub(super) struct Keys {
    dir: PathBuf,
    file: Option<KeyFile>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: Known,
    locked: BTreeMap<u64, String>,
}

impl Keys {
    /// Reads what is known. Fails if the key for some of it is not at hand.
    pub(super) fn open(dir: &Path, key_file: Option<&Path>) -> Result<Keys, KeysError> {
        let file = key_file.map(KeyFile::load).transpose()?;
        let mut known = Known::new();
        for (volume, coding) in read(dir)? {
            let missing = || KeyError::Missing {
                setting: "data.key_file",
                what: format!("volume number {volume}, of which the store has data,"),
            };
            let key = match (&coding.key, &file) {
                (None, _) => None,
                (Some(sealed), Some(file)) => Some(file.open(volume, sealed)?),
                (Some(_), None) => return Err(missing().into()),
            };
            known.insert(volume, (coding, key));
        }
        let inner = Mutex::new(Inner { known, locked: BTreeMap::new() });
        Ok(Keys { dir: dir.to_owned(), file, inner })
    }

    /// Has a store go by what is known.
    pub(super) fn begin(&self, store: &SegmentStore) {
        for (volume, (coding, key)) in &lock(&self.inner).known {
            store.set_codec(*volume, Some(codec(coding, key.clone())));
        }
    }

    /// Has a store go by a map. To be called before anything is stored by it, and for one map after the other.
    pub(super) fn follow(&self, map: &ClusterMap, store: &SegmentStore) {
        let mut inner = lock(&self.inner);
        for pool in &map.pools {
            let (volume, coding) = (pool.volume, &pool.coding);
            let before = inner.known.get(&volume);
            let same = before.map_or(*coding == Coding::default(), |(before, _)| before == coding);
            if same && !inner.locked.contains_key(&volume) {
                continue;
            }
            let taken = self.take(&mut inner.known, volume, coding);
            match taken {
                Ok(key) => {
                    if inner.locked.remove(&volume).is_some() {
                        tracing::info!(volume, "the volume's key is at hand now");
                    }
                    store.set_codec(volume, Some(codec(coding, key)));
                }
                Err(why) => {
                    store.set_codec(volume, None);
                    if inner.locked.get(&volume) != Some(&why) {
                        tracing::error!(volume, why, "none of the volume's data is stored or read");
                        inner.locked.insert(volume, why);
                    }
                }
            }
        }
    }

    /// Takes over what a map says of a volume; it is on stable storage then.
    fn take(
        &self,
        known: &mut Known,
        volume: u64,
        coding: &Coding,
    ) -> Result<Option<VolumeKey>, String> {
        let key = match (&coding.key, &self.file) {
            (None, _) => None,
            (Some(sealed), Some(file)) => {
                Some(file.open(volume, sealed).map_err(|error| error.to_string())?)
            }
            (Some(_), None) => {
                return Err("it is encrypted, and data.key_file is not set".into());
            }
        };
        let before = known.get(&volume).map(|(_, key)| key);
        let same = match (before, &key) {
            (None, _) | (Some(None), None) => true,
            (Some(Some(before)), Some(key)) => before.is(key),
            _ => false,
        };
        if !same {
            return Err("the cluster map has another key for it than before".into());
        }
        let mut with: Vec<_> = known.iter().map(|(v, (coding, _))| (*v, coding.clone())).collect();
        with.retain(|(v, _)| *v != volume);
        with.push((volume, coding.clone()));
        write(&self.dir, &with).map_err(|error| error.to_string())?;
        known.insert(volume, (coding.clone(), key.clone()));
        Ok(key)
    }

    /// Volumes whose data is refused.
    pub(super) fn locked(&self) -> Vec<u64> {
        lock(&self.inner).locked.keys().copied().collect()
    }
}

fn codec(coding: &Coding, key: Option<VolumeKey>) -> Arc<Codec> {
    Arc::new(Codec::new(coding.compression, key))
}

fn read(dir: &Path) -> Result<Vec<(u64, Coding)>, KeysError> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(KeysError::Io { path, source }),
    };
    let damaged = || KeysError::Damaged(path.clone());
    let (head, body) = bytes.split_first_chunk::<12>().ok_or_else(damaged)?;
    if head[..8] != MAGIC || head[8..] != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged());
    }
    wire::decode(body).map_err(|_| damaged())
}

fn write(dir: &Path, volumes: &[(u64, Coding)]) -> Result<(), KeysError> {
    let (path, new) = (dir.join(FILE), dir.join(format!("{FILE}.tmp")));
    let store = || {
        let body = wire::encode(&volumes.to_vec()).map_err(io::Error::other)?;
        let mut file =
            private::file_options().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(&MAGIC)?;
        file.write_all(&crc32fast::hash(&body).to_le_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    store().map_err(|source| KeysError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use netfs_common::coding::{Cipher, Compression};
    use netfs_common::id::{Epoch, GroupId};
    use netfs_common::map::Pool;

    use super::*;
    use crate::data::store::{ChunkKey, ChunkVersion, StoreConfig, StoreError};

    const VOLUME: u64 = 4;
    const CHUNK: ChunkKey = ChunkKey { ino: VOLUME << 48 | 2, generation: 0, index: 0 };

    struct World {
        dir: tempfile::TempDir,
        store: SegmentStore,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let config = StoreConfig { reserve_bytes: 0, ..StoreConfig::default() };
            let store = SegmentStore::open(&dir.path().join("data"), config).unwrap().0;
            World { dir, store }
        }

        fn key_file(&self, name: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            if !path.exists() {
                KeyFile::make(&path).unwrap();
            }
            path
        }

        fn open(&self, key: Option<&str>) -> Result<Keys, KeysError> {
            let key = key.map(|name| self.key_file(name));
            Keys::open(&self.dir.path().join("data"), key.as_deref())
        }

        fn sealed(&self, name: &str) -> Coding {
            let key = VolumeKey::draw(Cipher::Aes256Gcm).unwrap();
            let file = KeyFile::load(&self.key_file(name)).unwrap();
            let key = Some(file.seal(VOLUME, &key).unwrap());
            Coding { compression: Compression::None, key }
        }

        fn write(&self) -> Result<i64, StoreError> {
            self.store.write(CHUNK, 0, &[b"data"], ChunkVersion(1))
        }
    }

    fn map(coding: &Coding) -> ClusterMap {
        let (first, chains) = (GroupId(0), Vec::new());
        let coding = coding.clone();
        let pool = Pool {
            tier: Default::default(),
            volume: VOLUME,
            class: netfs_common::class::Class::DEFAULT,
            first,
            min_replicas: 1,
            coding,
            chains,
        };
        ClusterMap { version: Epoch(1), servers: Vec::new(), pools: vec![pool] }
    }

    #[test]
    fn what_a_map_says_once_is_known_at_the_next_start() {
        let world = World::new();
        let keys = world.open(Some("key")).unwrap();
        let coding = world.sealed("key");
        keys.follow(&map(&coding), &world.store);
        world.write().unwrap();
        assert!(keys.locked().is_empty());
        for wrong in [None, Some("other")] {
            let error = world.open(wrong).unwrap_err().to_string();
            assert!(error.contains("volume number 4"), "{error}");
        }
        let again = world.open(Some("key")).unwrap();
        again.begin(&world.store);
        assert_eq!(world.store.read(CHUNK, 0, 4).unwrap(), b"data");
        // Compression may change.
        let packed = Coding { compression: Compression::Zstd, ..coding.clone() };
        again.follow(&map(&packed), &world.store);
        assert_eq!(read(&world.dir.path().join("data")).unwrap(), [(VOLUME, packed)]);
        let path = world.dir.path().join("data").join(FILE);
        fs::write(&path, b"something else than it was").unwrap();
        assert!(matches!(world.open(Some("key")), Err(KeysError::Damaged(_))));
    }

    #[test]
    fn a_volume_is_locked_when_its_key_is_not_at_hand_or_not_what_it_was() {
        let world = World::new();
        let coding = world.sealed("key");
        for wrong in [None, Some("other")] {
            let keys = world.open(wrong).unwrap();
            keys.follow(&map(&coding), &world.store);
            assert_eq!(keys.locked(), [VOLUME]);
            assert!(matches!(world.write(), Err(StoreError::NoKey { volume: VOLUME })));
        }
        let keys = world.open(Some("key")).unwrap();
        keys.follow(&map(&coding), &world.store);
        world.write().unwrap();
        for bad in [Coding::default(), world.sealed("key"), world.sealed("other")] {
            keys.follow(&map(&bad), &world.store);
            assert_eq!(keys.locked(), [VOLUME]);
            assert!(matches!(world.write(), Err(StoreError::NoKey { .. })), "{bad:?}");
            keys.follow(&map(&coding), &world.store);
            assert!(keys.locked().is_empty());
            world.write().unwrap();
        }
    }
}
