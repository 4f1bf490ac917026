//! What a process says about itself: log lines and metrics.

mod log;
mod metrics;
mod process;
mod rarely;

pub use log::{TelemetryError, init};
pub use metrics::{CallMetrics, Metrics};
pub use rarely::Rarely;
