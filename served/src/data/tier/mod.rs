//! The object-store tier: chunks that nobody uses are kept in a bucket, and come back on use.
//!
//! - An **object** is one chunk in one version, named by both ([`ObjectId`]) and never changed (`object.rs`), compressed and encrypted as its volume is.
//!   Equal versions of a chunk mean equal bytes, so it does not matter which replica made it, nor how often.
//! - The **bucket** is whatever speaks S3 (`bucket.rs`). Nothing that comes from there is believed unverified.
//! - A **marker** says whose the objects are (`marker.rs`): what belongs to other metadata is left alone.
//! - The **policy** says what goes, and when (`policy.rs`). It is a plain state machine.
//! - The **store** knows which bytes are away (`store/away.rs`); the data server moves them (`server/tiering/`).

mod bucket;
mod marker;
mod name;
mod object;
mod policy;

pub use bucket::{Bucket, BucketError, BucketOptions, Made, Place};
pub use marker::{Marker, Past, Refusal, Seen, Verdict, judge};
pub use name::{ClusterIdBytes, ObjectId};
pub use object::{MAX_OBJECT_BYTES, Object, ObjectError, Ranges, encode};
pub use policy::{Dirty, Fill, Policy, PolicyConfig};
