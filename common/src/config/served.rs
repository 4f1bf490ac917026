//! The configuration of the servers.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::settings::settings;
use super::{ByteSize, Config, LogConfig, NetConfig, TlsConfig};
use crate::coding::{Compression, Encryption};
use crate::map::{MAX_GROUPS, MAX_REPLICAS, TierMode};

/// When a change of metadata is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncPolicy {
    /// When it is written; it is flushed when somebody asks and at every interval.
    Interval,
    /// When it is flushed.
    Always,
}

settings! {
    /// The metadata server.
    pub struct MetaConfig {
        /// Address and UDP port to listen on.
        pub listen: SocketAddr = (Ipv6Addr::UNSPECIFIED, 7400).into();
        /// Directory of the log and the store. On one file system; best on a fast disk of its own.
        pub dir: PathBuf = "/var/lib/netfs/meta".into();
        /// When a change is acknowledged: "interval" when it is written, "always" when it is flushed to stable
        /// storage. "always" costs a disk flush of waiting per change; fsync is honoured either way.
        pub sync: SyncPolicy = SyncPolicy::Interval;
        /// With sync = "interval": the longest time that a change stays unflushed, in milliseconds. This much
        /// of what nobody synced can be lost in a crash.
        pub flush_interval_ms: u64 = 500;
        /// How long a client may be silent before it loses its session, in milliseconds. Others wait this long at
        /// most for one that died; shorter also shuts out clients that only slept or were cut off that long.
        pub term_ms: u32 = 30_000;
        /// Memory for the store's block cache. More makes lookups of cold files faster.
        pub cache_bytes: ByteSize = ByteSize::mib(64);
        /// Inodes and entries kept decoded in memory. Each costs about 500 bytes.
        pub cache_entries: u64 = 100_000;
        /// Space left free on the file system; below it whatever adds names or attributes fails with ENOSPC and only
        /// removal goes on.
        pub reserve_bytes: ByteSize = ByteSize::mib(128);
        /// The data servers, as clients and all servers reach them: one entry for each, host:port, several addresses of one server
        /// separated by commas. Those that are not known yet are added at the start. Empty: the data server in this process.
        pub data_servers: Vec<String> = Vec::new();
        /// A data server that is silent for so long is replaced, in milliseconds. Shorter resumes writes sooner after a
        /// failure, and takes a busy machine for a dead one sooner.
        pub data_deadline_ms: u32 = 5_000;
        /// What a data server had gets another replica elsewhere when it has been away for so long, in milliseconds. Shorter
        /// restores redundancy sooner, and copies more when a machine was only restarted.
        pub repair_after_ms: u32 = 300_000;
        /// The file with the key under which the keys of encrypted volumes are, made with `netfs-served key make`: the same on all servers. Without
        /// it encrypted volumes are lost, so keep a copy elsewhere.
        pub key_file: Option<PathBuf> = None, e.g. "\"/etc/netfs/key\"";
    }
}

settings! {
    /// The data server.
    pub struct DataConfig {
        /// Address and UDP port to listen on.
        pub listen: SocketAddr = (Ipv6Addr::UNSPECIFIED, 7401).into();
        /// What fails together with this server, any name: a machine, a rack. Replicas are kept in different ones if there
        /// are enough. Empty: the server fails by itself.
        pub domain: String = String::new();
        /// Directory of the segments. On one file system; it may fill that up to reserve_bytes.
        pub dir: PathBuf = "/var/lib/netfs/data".into();
        /// Size at which a segment is closed and a new one begun. Smaller ones give space back sooner, larger
        /// ones need fewer files.
        pub segment_bytes: ByteSize = ByteSize::mib(256);
        /// Space left free on the file system; below it writes fail with ENOSPC and only deletion
        /// and reclamation go on.
        pub reserve_bytes: ByteSize = ByteSize::gib(1);
        /// Segments with less than this percentage of live data are rewritten to give their space back.
        /// Higher saves space and costs writes.
        pub compact_below_percent: u8 = 50;
        /// Days in which every stored byte is read and verified once; 0 for never.
        pub scrub_days: u32 = 14;
        /// Most that scrubbing reads in a second.
        pub scrub_bytes_per_s: ByteSize = ByteSize::mib(32);
        /// Most that is copied in a second to servers that lack it; "0" for as fast as it goes.
        pub repair_bytes_per_s: ByteSize = ByteSize::mib(128);
        /// As meta.key_file. Needed where data of encrypted volumes is.
        pub key_file: Option<PathBuf> = None, e.g. "\"/etc/netfs/key\"";
    }
}

settings! {
    /// An S3-compatible object store for chunks that nobody uses; of a data server. See docs/operations.md.
    pub struct TierConfig {
        /// The bucket. It must exist. Absent: nothing goes to an object store, and what is there cannot be read.
        pub bucket: Option<String> = None, e.g. "\"netfs\"";
        /// The URL of the server, http:// or https://. Absent: AWS.
        pub endpoint: Option<String> = None, e.g. "\"https://s3.example:9000\"";
        /// The region, which is part of every signature.
        pub region: String = "us-east-1".into();
        /// A file with the access key in its first line and the secret in its second (mode 0600). Absent: the variables
        /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
        pub credentials: Option<PathBuf> = None, e.g. "\"/etc/netfs/bucket.key\"";
        /// A file with certificates in PEM, for an https:// endpoint: its certificate must be from one of these authorities. Absent: those that
        /// the system trusts.
        pub ca: Option<PathBuf> = None, e.g. "\"/etc/netfs/bucket-ca.pem\"";
        /// All names in the bucket begin with this; the same for all data servers of a cluster, for ever.
        pub prefix: String = String::new();
        /// What was not used for so long goes, in milliseconds. Shorter saves local space and makes more reads wait for the bucket.
        pub after_ms: u64 = 30 * 24 * 3_600_000;
        /// When the disk is filled to this percentage of its capacity, the coldest chunks go before their time.
        pub fill_percent: u8 = 80;
        /// Objects that are moved at a time, in each direction. Each costs the memory of a few chunks.
        pub transfers: u32 = 4;
        /// Most that is sent to the bucket in a second; "0" for as fast as it goes.
        pub bytes_per_s: ByteSize = ByteSize::mib(128);
        /// Volumes with tier = "primary": changes are in the bucket after this time, in milliseconds. When they are not after twice
        /// that, writes wait.
        pub delay_ms: u64 = 60_000;
        /// How often objects that nobody needs any more are looked for and removed, in milliseconds.
        pub sweep_ms: u64 = 600_000;
    }
}

settings! {
    /// The port for people and monitoring.
    pub struct HttpConfig {
        /// Address and TCP port for /metrics and /health, without encryption or password. Absent: none.
        pub listen: Option<SocketAddr> = None, e.g. "\"127.0.0.1:7480\"";
    }
}

settings! {
    /// A volume: one namespace.
    pub struct VolumeConfig {
        /// Its name, as in SERVER/NAME of a mount. It is made at the first start with it, and never removed.
        pub name: String = "main".into(), e.g. "\"main\"";
        /// Copies of its data, each on another data server, 1 to 5. Looked at when the volume is made; afterwards it is changed
        /// with `netfs data replicas`.
        pub replicas: u8 = 1, e.g. "1";
        /// Parts into which its data is divided among the servers, 1 to 8192. Never changes afterwards. At least some tens for each server
        /// that there will ever be.
        pub groups: u32 = 256, e.g. "256";
        /// How its data is compressed on the disks: "none", "lz4" or "zstd". What does not shrink is stored as it is. A change counts for what is
        /// written from then on.
        pub compression: Compression = Compression::None, e.g. "\"none\"";
        /// How its data is encrypted on the disks: "none", "aes-256-gcm" or "chacha20-poly1305". Names and attributes are not. It
        /// needs key files and never changes after the volume was made.
        pub encryption: Encryption = Encryption::None, e.g. "\"none\"";
        /// What of its data goes to the object store of the data servers: "none"; "cold", what is not used for a while; "primary",
        /// everything after a bounded delay, so that the data servers are a cache before it. Looked at at every start.
        pub tier: TierMode = TierMode::Cold, e.g. "\"cold\"";
    }
}

settings! {
    /// The configuration of `netfs-served`.
    pub struct ServedConfig {
        /// The metadata server.
        pub meta: MetaConfig as section = MetaConfig::default();
        /// The data server.
        pub data: DataConfig as section = DataConfig::default();
        /// The object store for chunks that nobody uses.
        pub tier: TierConfig as section = TierConfig::default();
        /// The certificate of this node.
        pub tls: TlsConfig as section = TlsConfig::default();
        /// The bounds of the network layer.
        pub net: NetConfig as section = NetConfig::default();
        /// The port for people and monitoring.
        pub http: HttpConfig as section = HttpConfig::default();
        /// Logging.
        pub log: LogConfig as section = LogConfig::default();
        /// The volumes. None given: one with the name "main".
        pub volume: Vec<VolumeConfig> as list of VolumeConfig = vec![VolumeConfig::default()];
    }
}

impl TierConfig {
    fn validate(&self) -> Result<(), String> {
        if self.bucket.is_none() && self.endpoint.is_some() {
            return Err("tier.endpoint is set, and tier.bucket is not".into());
        }
        if let Some(url) = &self.endpoint
            && !url.starts_with("http://")
            && !url.starts_with("https://")
        {
            return Err(format!(
                "tier.endpoint = \"{url}\" does not begin with https:// or http://"
            ));
        }
        let is_https = self.endpoint.as_ref().is_none_or(|url| url.starts_with("https://"));
        if self.ca.is_some() && !is_https {
            return Err("tier.ca is set, and tier.endpoint does not begin with https://".into());
        }
        if !(10..=95).contains(&self.fill_percent) {
            let percent = self.fill_percent;
            return Err(format!("tier.fill_percent = {percent} is not between 10 and 95"));
        }
        if !(1..=64).contains(&self.transfers) {
            return Err(format!("tier.transfers = {} is not between 1 and 64", self.transfers));
        }
        for (key, value) in [
            ("tier.after_ms", self.after_ms),
            ("tier.delay_ms", self.delay_ms),
            ("tier.sweep_ms", self.sweep_ms),
        ] {
            if !(1_000..=100 * 366 * 24 * 3_600_000).contains(&value) {
                return Err(format!("{key} = {value} is not between a second and a hundred years"));
            }
        }
        Ok(())
    }
}

impl Config for ServedConfig {
    fn validate(&self) -> Result<(), String> {
        let Self { meta, data, net, tier, .. } = self;
        net.validate()?;
        tier.validate()?;
        if meta.listen == data.listen && meta.listen.port() != 0 {
            return Err(format!(
                "meta.listen = \"{}\" and data.listen = \"{}\" are the same address",
                meta.listen, data.listen
            ));
        }
        if meta.dir.starts_with(&data.dir) || data.dir.starts_with(&meta.dir) {
            return Err(format!(
                "meta.dir = \"{}\" and data.dir = \"{}\" must not contain each other",
                meta.dir.display(),
                data.dir.display()
            ));
        }
        if !(1..=60_000).contains(&meta.flush_interval_ms) {
            return Err(format!(
                "meta.flush_interval_ms = {} is not between 1 and 60000",
                meta.flush_interval_ms
            ));
        }
        // Below it a busy machine is taken for a dead one.
        if !(2_000..=600_000).contains(&meta.term_ms) {
            return Err(format!("meta.term_ms = {} is not between 2000 and 600000", meta.term_ms));
        }
        // Below it a short pause of a machine is taken for its death.
        if !(1_000..=600_000).contains(&meta.data_deadline_ms) {
            return Err(format!(
                "meta.data_deadline_ms = {} is not between 1000 and 600000",
                meta.data_deadline_ms
            ));
        }
        if meta.repair_after_ms < meta.data_deadline_ms {
            return Err(format!(
                "meta.repair_after_ms = {} is less than meta.data_deadline_ms = {}",
                meta.repair_after_ms, meta.data_deadline_ms
            ));
        }
        for entry in &meta.data_servers {
            if entry.split(',').any(|addr| !is_address(addr.trim())) {
                return Err(format!(
                    "meta.data_servers has \"{entry}\", which is not host:port, or several of one server separated by \
                     commas"
                ));
            }
        }
        let (min, max) = (ByteSize::mib(16), ByteSize::gib(2));
        if !(min..=max).contains(&data.segment_bytes) {
            return Err(format!(
                "data.segment_bytes = \"{}\" is not between {min} and {max}",
                data.segment_bytes
            ));
        }
        // Reclaiming writes a new segment before it removes an old one.
        if data.reserve_bytes < data.segment_bytes {
            return Err(format!(
                "data.reserve_bytes = \"{}\" must be at least data.segment_bytes = \"{}\"",
                data.reserve_bytes, data.segment_bytes
            ));
        }
        if data.compact_below_percent > 90 {
            return Err(format!(
                "data.compact_below_percent = {} is over 90",
                data.compact_below_percent
            ));
        }
        validate_volumes(&self.volume)
    }
}

/// Whether it is host:port.
fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

fn validate_volumes(volumes: &[VolumeConfig]) -> Result<(), String> {
    if volumes.is_empty() {
        return Err("there must be at least one volume".into());
    }
    for (index, VolumeConfig { name, replicas, groups, .. }) in volumes.iter().enumerate() {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(ok) || name.starts_with('.') {
            return Err(format!(
                "volume.name = \"{name}\" must be 1 to 64 letters, digits and - _ . and not begin \
                 with a dot"
            ));
        }
        if volumes[..index].iter().any(|other| other.name == *name) {
            return Err(format!("volume.name = \"{name}\" is there twice"));
        }
        if !(1..=MAX_REPLICAS).contains(&usize::from(*replicas)) {
            return Err(format!(
                "volume.replicas = {replicas} is not between 1 and {MAX_REPLICAS}"
            ));
        }
        if !(1..=MAX_GROUPS).contains(groups) {
            return Err(format!("volume.groups = {groups} is not between 1 and {MAX_GROUPS}"));
        }
    }
    Ok(())
}
