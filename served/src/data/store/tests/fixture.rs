//! The bytes on disk, pinned. A change of the format gets a new fixture beside these, and these must still open.
