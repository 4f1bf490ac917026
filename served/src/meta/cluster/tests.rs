//! What the manager decides.
