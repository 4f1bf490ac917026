//! Every decoder of what somebody else wrote: `NETFS_FUZZ` names the one to run, `NETFS_FUZZ=list` prints all.
//!
//! | target | decodes |
//! | --- | --- |
//! | `wire` | messages: greeting, calls, answers, calls of the server |
//! | `frames` | frames of a metadata connection, in any pieces |
//! | `net` | terms of a greeting, messages of a bulk connection |
//! | `identity` | the name in a peer's certificate |
//! | `config` | configuration: file, environment, flags, sizes |
//! | `meta` | pieces of a metadata server's disk: headers, records, commands, stored values, access control lists |
//! | `log` | recovery of a command log |
//! | `commands` | what clients ask of a volume |
//! | `values` | a metadata store with damaged values |
//! | `store` | recovery of a chunk store |
//!
//! Adding one is a line in [`TARGETS`]. Seeds, if there are any, are in `seeds/TARGET/`.
#![no_main]

mod config;
mod frames;
mod identity;
mod meta;
mod wire;

use std::process::exit;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use netfs_common::net::fuzzing as net;
use netfs_served::fuzzing as served;

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("wire", wire::run),
    ("frames", frames::run),
    ("net", run_net),
    ("identity", identity::run),
    ("config", config::run),
    ("meta", meta::run),
    ("log", served::command_log),
    ("commands", served::commands),
    ("values", served::damaged_store),
    ("store", served::segment_store),
];

fn run_net(input: &[u8]) {
    net::greeting(input);
    net::bulk_message(input);
}

fn choose() -> Target {
    let wanted = std::env::var("NETFS_FUZZ").unwrap_or_default();
    if let Some((_, target)) = TARGETS.iter().find(|(name, _)| *name == wanted) {
        return *target;
    }
    for (name, _) in TARGETS {
        println!("{name}");
    }
    if wanted == "list" {
        exit(0);
    }
    eprintln!("NETFS_FUZZ must be one of these");
    exit(2);
}

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(init: { TARGET.get_or_init(choose); }, |input: &[u8]| TARGET.get_or_init(choose)(input));
