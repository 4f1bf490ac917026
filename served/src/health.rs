//! Whether a server is well.

use std::fmt;
use std::sync::Arc;

/// Asks a server whether it is well. It keeps nothing of the server alive.
#[derive(Clone)]
pub struct Health(Arc<dyn Fn() -> Result<(), String> + Send + Sync>);

impl Health {
    /// A question that `ask` answers.
    pub fn new(ask: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Health {
        Health(Arc::new(ask))
    }

    /// Well if both are.
    pub fn and(self, other: Health) -> Health {
        Health::new(move || self.ask().and_then(|()| other.ask()))
    }

    /// Asks.
    ///
    /// # Errors
    /// A line that says what is wrong.
    pub fn ask(&self) -> Result<(), String> {
        (self.0)()
    }
}

impl Default for Health {
    fn default() -> Self {
        Health::new(|| Ok(()))
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Health").field(&self.ask()).finish()
    }
}
