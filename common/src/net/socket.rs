//! The UDP socket below an endpoint, with a bound on segmentation offload.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// The most that one UDP send can carry over IPv4, segmented by the kernel or not.
const MAX_SEND_BYTES: usize = 65_507;

/// Keeps batches of segments below what the kernel takes in one send.
///
/// quinn hands the kernel up to ten packets at once. Ten packets of 8900 bytes are more than a send can carry:
/// the kernel answers `EMSGSIZE`, which quinn takes for a failed path probe and ignores, so that the packets
/// are silently lost, and throughput is worse than with small packets.
///
/// The cap follows the largest packet sent so far. Path discovery probes with a single packet before it
/// raises the packet size, so a larger size is always seen here before the first batch of it.
#[derive(Debug)]
pub(super) struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    largest: AtomicUsize,
}

impl CappedSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { inner, largest: AtomicUsize::new(1) }
    }
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        if size > self.largest.load(Ordering::Relaxed) {
            self.largest.fetch_max(size, Ordering::Relaxed);
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fit = MAX_SEND_BYTES / self.largest.load(Ordering::Relaxed);
        self.inner.max_transmit_segments().min(fit).max(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
