//! What the system knows about this process, read when asked.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

/// Memory, descriptors and threads, from `/proc/self`. What cannot be read is not shown.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let values = [
            (
                "process_resident_memory_bytes",
                "Memory of the process that is resident",
                status_value(&status, "VmRSS:").map(|kib| kib * 1024),
            ),
            (
                "process_peak_memory_bytes",
                "Most memory that has been resident at once",
                status_value(&status, "VmHWM:").map(|kib| kib * 1024),
            ),
            ("process_threads", "Threads of the process", status_value(&status, "Threads:")),
            ("process_open_fds", "Open file descriptors", open_descriptors()),
        ];
        for (name, help, value) in values {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

fn status_value(status: &str, key: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_descriptors() -> Option<i64> {
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}
