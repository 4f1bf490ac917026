//! What leases cost the metadata server: memory and time.
//!
//! `cargo run --release -p netfs-served --example lease_bench [LEASES]`

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use netfs_common::id::{Ino, SessionId};
use netfs_common::wire::lease::{Lease, Scope};
use netfs_served::meta::leases::{Access, Action, Asked, LeaseLimits, Leases, Want};

/// Bytes that are allocated, and the most that ever were.
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

fn look(ino: Ino) -> [Want; 1] {
    [Want { ino, scope: Scope::attrs(), access: Access::Look }]
}

fn timed(what: &str, times: u64, mut each: impl FnMut(u64)) {
    let started = Instant::now();
    (0..times).for_each(&mut each);
    let ns = started.elapsed().as_nanos() as f64 / times as f64;
    println!("{what:<44} {ns:>8.0} ns");
}

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let limits = LeaseLimits { per_session: count as usize, min_hold: Duration::ZERO };
    let now = Duration::ZERO;
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let mut table = Leases::new(limits);
    let mut granted = 0;
    timed("ask + grant, a new lease", count, |n| {
        if table.ask(now, A, &look(Ino(n)), None) == Asked::Go {
            granted += u64::from(table.grant(now, A, Ino(n), Lease::Read).is_some());
        }
    });
    let bytes = |counter: &AtomicUsize| (counter.load(Relaxed) - before) as f64 / granted as f64;
    println!("{:<44} {granted:>8}", "leases of one session");
    println!("{:<44} {:>8.1} bytes", "each", bytes(&NOW));
    println!("{:<44} {:>8.1} bytes", "each, while tables grew", bytes(&PEAK));
    timed("ask + grant, had already", count, |n| {
        let ino = Ino(n * 7919 % count);
        if table.ask(now, A, &look(ino), None) == Asked::Go {
            table.grant(now, A, ino, Lease::Read);
        }
    });
    timed("ask + grant, beside another's", count, |n| {
        if table.ask(now, B, &look(Ino(n)), None) == Asked::Go {
            table.grant(now, B, Ino(n), Lease::Read);
        }
    });
    let started = Instant::now();
    table.end(now, B);
    println!("{:<44} {:>8.0} ms", "end of that session", started.elapsed().as_secs_f64() * 1e3);
    timed("ask, recall, answer, ask, grant: Read to Write", count.min(100_000), |n| {
        let (ino, session) = (Ino(n), B);
        let wants = [Want { ino, scope: Scope::all(), access: Access::Take }];
        let Asked::Wait(ticket) = table.ask(now, session, &wants, None) else { return };
        for action in table.poll(now) {
            if let Action::Recall { session, id, .. } = action {
                table.answered(now, session, id);
            }
        }
        if table.ask(now, session, &wants, Some(ticket)) == Asked::Go {
            table.grant(now, session, ino, Lease::Write);
        }
        table.poll(now);
    });
}
