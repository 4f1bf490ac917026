//! Several calls at once, within one task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Futures that run side by side; those that are left are dropped with it, which withdraws their calls. Whoever adds bounds
/// their number.
pub(super) struct Together<'a, T> {
    all: Vec<Pin<Box<dyn Future<Output = T> + Send + 'a>>>,
}

impl<'a, T> Together<'a, T> {
    pub(super) fn new() -> Self {
        Together { all: Vec::new() }
    }

    pub(super) fn add(&mut self, one: impl Future<Output = T> + Send + 'a) {
        self.all.push(Box::pin(one));
    }

    /// What the next one to end comes to; never, when there is none.
    pub(super) async fn ended(&mut self) -> T {
        poll_fn(|context| {
            for place in 0..self.all.len() {
                if let Poll::Ready(outcome) = self.all[place].as_mut().poll(context) {
                    drop(self.all.swap_remove(place));
                    return Poll::Ready(outcome);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// As [`Together::ended`]; `None` when there is none.
    pub(super) async fn next(&mut self) -> Option<T> {
        if self.all.is_empty() { None } else { Some(self.ended().await) }
    }
}
