//! The servers of `netfs dev`, in this process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use netfs_common::tls::Identity;
use netfs_served::data::server::{DataOptions, DataServer};
use netfs_served::meta::server::{DataServers, MetaOptions, MetaServer};
use netfs_served::thread::Ending;

use super::error::CliError;
use super::state::State;

/// The volume of `netfs dev`.
pub(super) const VOLUME: &str = "main";

/// Both servers, running.
pub(super) struct Embedded {
    meta: MetaServer,
    data: DataServer,
}

impl Embedded {
    /// Starts both on the loopback interface: the metadata server at `port` if one is asked for,
    /// else at the port of last time, so that other mounts find it again.
    pub(super) fn start(state: &State, port: Option<u16>) -> Result<Embedded, CliError> {
        let identity = Arc::new(Identity::load_dir(&state.server())?);
        let failed = |e: &dyn std::fmt::Display| CliError::Server(e.to_string());
        if let Some(port) = port {
            probe(port).map_err(|error| CliError::Port { port, error })?;
        }
        let last = state.addresses();
        let meta_at = local(port.or_else(|| last.meta.filter(|p| probe(*p).is_ok())));
        let data_at = local(last.data.filter(|p| probe(*p).is_ok()));
        let data =
            DataServer::start(DataOptions::new(state.path("data"), data_at, identity.clone()))
                .map_err(|e| failed(&e))?;
        let at = DataServers::At(vec![data.addr().to_string()]);
        let mut options = MetaOptions::new(state.path("meta"), meta_at, at, identity);
        options.volumes = vec![VOLUME.into()];
        let meta = match MetaServer::start(options) {
            Ok(meta) => meta,
            Err(e) => {
                stop_data(data)?;
                return Err(failed(&e));
            }
        };
        state.set_addresses(meta.addr(), data.addr())?;
        Ok(Embedded { meta, data })
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> SocketAddr {
        self.meta.addr()
    }

    /// Stops both when everything is on stable storage.
    pub(super) fn stop(self) -> Result<(), CliError> {
        let meta = self.meta.stop(Ending::Drain).map_err(|e| CliError::ServerStop(e.to_string()));
        // Whatever happened to the first: the data of others may be in the second.
        stop_data(self.data)?;
        meta
    }
}

fn stop_data(data: DataServer) -> Result<(), CliError> {
    data.stop(Ending::Drain).map_err(|e| CliError::ServerStop(e.to_string()))
}

fn local(port: Option<u16>) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port.unwrap_or(0)).into()
}

/// Whether a port is free.
fn probe(port: u16) -> io::Result<()> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map(drop)
}
