//! `netfs-served meta | data | all`

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use netfs_common::config::{
    DataConfig, MetaConfig, ServedConfig, SyncPolicy, TierConfig, VolumeConfig,
};
use netfs_common::net::NetMetrics;
use netfs_common::telemetry::{self, Metrics};
use netfs_common::tls::Identity;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::notify::notify;
use super::{ConfigArgs, Failure};
use crate::data::server::{DataOptions, DataServer, TierOptions, UpkeepConfig};
use crate::data::store::StoreConfig;
use crate::data::tier::{BucketOptions, Place};
use crate::http::Http;
use crate::meta::engine::EngineConfig;
use crate::meta::server::{DataServers, MetaOptions, MetaServer, PoolOptions};
use crate::thread::Ending;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Which servers to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    meta: bool,
    data: bool,
}

impl Parts {
    pub(super) const META: Parts = Parts { meta: true, data: false };
    pub(super) const DATA: Parts = Parts { meta: false, data: true };
    pub(super) const ALL: Parts = Parts { meta: true, data: true };
}

/// Runs servers until a signal ends them.
pub(super) fn run(args: &ServeArgs, parts: Parts) -> Result<ExitCode, Failure> {
    let config = args.config.load()?;
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&config, parts))
}

async fn serve(config: &ServedConfig, parts: Parts) -> Result<ExitCode, Failure> {
    // From here on a signal is an orderly end, also while the servers are still opening their stores.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let http = match config.http.listen {
        Some(address) => Some(Http::bind(address).await?),
        None => None,
    };
    let identity = Arc::new(config.tls.load()?);
    let metrics = Metrics::global();
    let net_metrics = NetMetrics::default();
    metrics.with(|registry| net_metrics.register(registry));

    let mut data = None;
    if parts.data {
        let mut options = data_options(config, identity.clone());
        options.net_metrics = net_metrics.clone();
        metrics.with(|registry| options.metrics.register(registry));
        let starting = tokio::task::spawn_blocking(move || DataServer::start(options));
        let server = tokio::select! {
            server = starting => server??,
            () = asked_to_end(&mut terminate, &mut interrupt) => end_early(),
        };
        tracing::info!(address = %server.addr(), "data server ready");
        data = Some(server);
    }
    let mut meta = None;
    if parts.meta {
        let local = data.as_ref().map(DataServer::addr);
        let mut options = meta_options(config, identity, data_servers(&config.meta, local)?);
        options.net_metrics = net_metrics;
        options.calls = metrics.calls("meta");
        metrics.with(|registry| options.metrics.register(registry));
        let starting = tokio::task::spawn_blocking(move || MetaServer::start(options));
        let server = tokio::select! {
            server = starting => server??,
            () = asked_to_end(&mut terminate, &mut interrupt) => end_early(),
        };
        tracing::info!(address = %server.addr(), "metadata server ready");
        meta = Some(server);
    }
    let health = meta.as_ref().map(MetaServer::health).unwrap_or_default();
    let health = health.and(data.as_ref().map(DataServer::health).unwrap_or_default());
    if let Some(http) = http {
        tracing::info!(address = %http.local_addr()?, "metrics and health ready");
        tokio::spawn(async move {
            if let Err(error) = http.serve(metrics, health).await {
                tracing::error!(%error, "no more metrics");
            }
        });
    }
    notify("READY=1");
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    notify("STOPPING=1");
    tracing::info!(signal, "ending: calls under way are finished, everything is flushed");
    // Whoever is in a hurry asks twice.
    let ended = tokio::task::spawn_blocking(move || {
        // In this order: cuts under way at the metadata server need the data server.
        let meta = meta.map_or(Ok(()), |server| server.stop(Ending::Drain));
        let data = data.map_or(Ok(()), |server| server.stop(Ending::Drain));
        meta.map_err(|e| e.to_string()).and(data.map_err(|e| e.to_string()))
    });
    tokio::select! {
        ended = ended => ended??,
        () = asked_to_end(&mut terminate, &mut interrupt) => {
            tracing::warn!("ended at once; what was not flushed is recovered at the next start");
            std::process::exit(1);
        }
    }
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

async fn asked_to_end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Opening a store can take long. What it has done so far it finds at the next start, as after a crash.
fn end_early() -> ! {
    notify("STOPPING=1");
    tracing::info!("ended by a signal before the start was complete");
    std::process::exit(0)
}

/// Where the data servers are; `local`: the address of the one in this process.
fn data_servers(config: &MetaConfig, local: Option<SocketAddr>) -> Result<DataServers, Failure> {
    match (config.data_servers.as_slice(), local) {
        ([], Some(addr)) if addr.ip().is_unspecified() || addr.ip().is_loopback() => {
            Ok(DataServers::Local(addr.port()))
        }
        // It answers at this address alone.
        ([], Some(addr)) => Ok(DataServers::At(vec![addr.to_string()])),
        ([], None) => {
            Err("meta.data_servers is empty: set it to the data servers' host:port, or run `netfs-served all`".into())
        }
        (entries, _) => {
            let addrs = |entry: &String| entry.split(',').map(|a| a.trim().to_owned()).collect();
            Ok(DataServers::Cluster(entries.iter().map(addrs).collect()))
        }
    }
}

/// The settings of the chunk store.
pub(super) fn store_config(config: &DataConfig) -> StoreConfig {
    StoreConfig {
        segment_bytes: config.segment_bytes.0,
        reserve_bytes: config.reserve_bytes.0,
        reclaim_dead_percent: 100 - config.compact_below_percent.min(99),
        ..StoreConfig::default()
    }
}

fn data_options(config: &ServedConfig, identity: Arc<Identity>) -> DataOptions {
    let data = &config.data;
    let mut options = DataOptions::new(data.dir.clone(), data.listen, identity);
    options.store = store_config(data);
    options.upkeep = UpkeepConfig {
        scrub_interval: Duration::from_secs(u64::from(data.scrub_days) * 24 * 3600),
        scrub_rate: data.scrub_bytes_per_s.0,
    };
    options.domain.clone_from(&data.domain);
    options.key_file.clone_from(&data.key_file);
    options.repair_rate = data.repair_bytes_per_s.0;
    options.limits = config.net.limits();
    options.tier = tier_options(&config.tier);
    options
}

/// The object store, if one is named.
fn tier_options(config: &TierConfig) -> Option<TierOptions> {
    let TierConfig { bucket, endpoint, region, credentials, ca, prefix, .. } = config.clone();
    let place = Place::S3 { endpoint, region, bucket: bucket?, credentials, ca };
    Some(TierOptions {
        after: Duration::from_millis(config.after_ms),
        fill_percent: config.fill_percent,
        transfers: config.transfers as usize,
        rate: config.bytes_per_s.0,
        delay: Duration::from_millis(config.delay_ms),
        sweep_interval: Duration::from_millis(config.sweep_ms),
        ..TierOptions::new(BucketOptions { place, prefix })
    })
}

fn meta_options(config: &ServedConfig, identity: Arc<Identity>, data: DataServers) -> MetaOptions {
    let meta = &config.meta;
    let mut options = MetaOptions::new(meta.dir.clone(), meta.listen, data, identity);
    options.volumes = config.volume.iter().map(|volume| volume.name.clone()).collect();
    let pool = |volume: &VolumeConfig| {
        let VolumeConfig { name, replicas, groups, compression, encryption, tier } = volume;
        let options = PoolOptions {
            replicas: *replicas,
            groups: *groups,
            compression: *compression,
            encryption: *encryption,
            tier: *tier,
        };
        (name.clone(), options)
    };
    options.pools = config.volume.iter().map(pool).collect();
    options.key_file.clone_from(&meta.key_file);
    options.cluster.deadline = Duration::from_millis(u64::from(meta.data_deadline_ms));
    options.cluster.repair_after = Duration::from_millis(u64::from(meta.repair_after_ms));
    options.cluster.calm = options.cluster.deadline * 2;
    let mut engine =
        EngineConfig { reserve_bytes: meta.reserve_bytes.0, ..EngineConfig::default() };
    engine.store.cache_bytes = meta.cache_bytes.0;
    if let Some(entries) =
        usize::try_from(meta.cache_entries).ok().and_then(std::num::NonZeroUsize::new)
    {
        engine.cache_values = entries;
    }
    options.engine = engine;
    options.flush_interval = Duration::from_millis(meta.flush_interval_ms);
    options.term = Duration::from_millis(u64::from(meta.term_ms));
    options.sync_always = meta.sync == SyncPolicy::Always;
    options.limits = config.net.limits();
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_server_in_this_process_is_looked_for_where_it_answers() {
        let found = |addr: &str| {
            data_servers(&ServedConfig::default().meta, Some(addr.parse().unwrap())).unwrap()
        };
        for everywhere in ["0.0.0.0:5", "[::]:5", "127.0.0.1:5"] {
            assert_eq!(found(everywhere), DataServers::Local(5));
        }
        assert_eq!(found("10.0.0.7:5"), DataServers::At(vec!["10.0.0.7:5".into()]));
        let meta = MetaConfig {
            data_servers: vec!["a:1".into(), "b:1, b:2".into()],
            ..ServedConfig::default().meta
        };
        let entries = vec![vec!["a:1".to_string()], vec!["b:1".into(), "b:2".into()]];
        assert_eq!(data_servers(&meta, None).unwrap(), DataServers::Cluster(entries));
    }
}
