//! One read that may be answered by several replicas.
//!
//! The first replica in the order is asked. When it fails, or has not answered after a delay, the next one is asked as well, and so
//! on, at most two at a time; the first good answer is used. Plain state: it is told what happens and when, and says what to do.

use std::time::Duration;

use netfs_common::errno::Errno;
use netfs_common::id::ServerId;
use tokio::time::Instant;

/// The most replicas that are asked at a time.
const MAX_ASKED: usize = 2;

/// A replica that may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) server: ServerId,
    /// There is a connection.
    pub(super) connected: bool,
    /// How long it is waited for alone.
    pub(super) delay: Duration,
}

/// Why a replica has not given what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It cannot tell, but not because of a mistake: it is busy, knows another epoch, or cannot be reached.
    Unable,
    /// The connection was lost with the call.
    Lost,
    /// It says no.
    Refused(Errno),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this replica.
    Ask(ServerId),
    /// Wait until something happens, or until a time.
    Wait(Option<Instant>),
    /// Nobody is left who could be asked.
    Over(Verdict),
}

/// How it has ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Some replica could not tell: it may later.
    Again,
    /// A connection was lost, nothing else: another one will do.
    Reconnect,
    /// All have said no.
    Refused(Errno),
}

/// One who was asked and is waited for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    runner: Runner,
    at: Instant,
}

/// What a good answer says of the replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Won {
    /// How long the one that answered took, if it was asked alone.
    pub(super) took: Option<Duration>,
    /// Those that were asked earlier and have not answered, and for how long they were waited for.
    pub(super) late: Vec<(ServerId, Duration)>,
    /// A second one was asked because the first was late.
    pub(super) hedged: bool,
    /// Another one had failed before.
    pub(super) failed_over: bool,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Race {
    /// Those who were not asked yet, the next one last.
    rest: Vec<Runner>,
    asked: Vec<Asked>,
    /// When the next one is asked too.
    hedge: Option<Instant>,
    hedged: bool,
    failures: Vec<Failure>,
}

impl Race {
    pub(super) fn new(mut order: Vec<Runner>) -> Race {
        order.reverse();
        let (asked, failures) = (Vec::new(), Vec::new());
        Race { rest: order, asked, hedge: None, hedged: false, failures }
    }

    /// What is to be done now.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        let due = self.hedge.is_some_and(|at| at <= now);
        let Some(next) = self.rest.last().copied() else {
            return if self.asked.is_empty() {
                Step::Over(self.verdict())
            } else {
                Step::Wait(None)
            };
        };
        if self.asked.len() >= MAX_ASKED {
            return Step::Wait(None);
        }
        if !self.asked.is_empty() && !due {
            return Step::Wait(self.hedge);
        }
        self.hedged |= !self.asked.is_empty();
        self.rest.pop();
        self.asked.push(Asked { runner: next, at: now });
        // One that has to be connected to is not waited for if another one is connected already.
        let other = self.rest.last().is_some_and(|other| other.connected);
        let delay = if !next.connected && other { Duration::ZERO } else { next.delay };
        self.hedge = Some(now + delay);
        Step::Ask(next.server)
    }

    /// A replica has failed: the next one is asked at once.
    pub(super) fn failed(&mut self, server: ServerId, failure: Failure, now: Instant) {
        self.asked.retain(|asked| asked.runner.server != server);
        self.failures.push(failure);
        self.hedge = Some(now);
    }

    /// A replica has answered.
    pub(super) fn won(&self, server: ServerId, now: Instant) -> Won {
        let waited = |asked: &Asked| now.saturating_duration_since(asked.at);
        // To connect takes its time.
        let counts = |asked: &Asked| asked.runner.connected || waited(asked) >= asked.runner.delay;
        let winner = self.asked.iter().find(|asked| asked.runner.server == server);
        let late = match winner {
            Some(winner) => {
                let earlier = self.asked.iter().filter(|asked| asked.at < winner.at);
                earlier.filter(|asked| counts(asked)).collect()
            }
            None => Vec::new(),
        };
        Won {
            took: winner.filter(|w| !self.hedged && w.runner.connected).map(waited),
            late: late.iter().map(|asked| (asked.runner.server, waited(asked))).collect(),
            hedged: self.hedged,
            failed_over: !self.failures.is_empty(),
        }
    }

    fn verdict(&self) -> Verdict {
        let refused = |failure: &Failure| matches!(failure, Failure::Refused(_));
        if self.failures.contains(&Failure::Unable) || self.failures.is_empty() {
            return Verdict::Again;
        }
        match self.failures.iter().find(|failure| refused(failure)) {
            Some(Failure::Refused(e)) if self.failures.iter().all(refused) => Verdict::Refused(*e),
            _ => Verdict::Reconnect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ServerId = ServerId(1);
    const TWO: ServerId = ServerId(2);
    const THREE: ServerId = ServerId(3);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn race(servers: &[(ServerId, bool)]) -> Race {
        let runner = |(server, connected): &(ServerId, bool)| {
            let (server, connected) = (*server, *connected);
            Runner { server, connected, delay: ms(80) }
        };
        Race::new(servers.iter().map(runner).collect())
    }

    #[test]
    fn an_answer_in_time_is_a_sample_and_nobody_else_is_asked() {
        let t = Instant::now();
        let mut race = race(&[(ONE, true), (TWO, true)]);
        assert_eq!(race.step(t), Step::Ask(ONE));
        assert_eq!(race.step(t), Step::Wait(Some(t + ms(80))));
        let result = race.won(ONE, t + ms(20));
        assert_eq!(result, Won { took: Some(ms(20)), ..Won::default() });
    }

    #[test]
    fn one_that_is_late_is_joined_by_one_other_at_a_time() {
        let t = Instant::now();
        let mut race = race(&[(ONE, true), (TWO, true), (THREE, true)]);
        assert_eq!(race.step(t), Step::Ask(ONE));
        assert_eq!(race.step(t + ms(79)), Step::Wait(Some(t + ms(80))));
        assert_eq!(race.step(t + ms(80)), Step::Ask(TWO));
        assert_eq!(race.step(t + ms(500)), Step::Wait(None), "two at most");
        let result = race.won(TWO, t + ms(90));
        assert_eq!(result.late, [(ONE, ms(90))]);
        assert_eq!((result.took, result.hedged, result.failed_over), (None, true, false));
        // The one that was asked later is not late.
        assert_eq!(race.won(ONE, t + ms(90)).late, []);
        race.failed(TWO, Failure::Unable, t + ms(600));
        assert_eq!(race.step(t + ms(600)), Step::Ask(THREE));
    }

    #[test]
    fn after_a_failure_the_next_one_is_asked_at_once() {
        let t = Instant::now();
        let mut race = race(&[(ONE, true), (TWO, true)]);
        race.step(t);
        race.failed(ONE, Failure::Refused(Errno::EIO), t + ms(1));
        assert_eq!(race.step(t + ms(1)), Step::Ask(TWO));
        let result = race.won(TWO, t + ms(4));
        assert_eq!((result.took, result.hedged, result.failed_over), (Some(ms(3)), false, true));
    }

    #[test]
    fn one_without_a_connection_is_not_waited_for_if_the_next_one_has_one() {
        let t = Instant::now();
        let mut cold = race(&[(ONE, false), (TWO, true)]);
        assert_eq!(cold.step(t), Step::Ask(ONE));
        assert_eq!(cold.step(t), Step::Ask(TWO));
        assert_eq!(cold.won(ONE, t + ms(1)).took, None);
        let mut all_cold = race(&[(ONE, false), (TWO, false)]);
        assert_eq!(all_cold.step(t), Step::Ask(ONE));
        assert_eq!(all_cold.step(t), Step::Wait(Some(t + ms(80))));
        assert_eq!(all_cold.won(ONE, t + ms(9)).took, None, "it had to connect first");
    }

    #[test]
    fn only_what_all_refuse_is_refused() {
        let t = Instant::now();
        let outcome = |failures: &[Failure]| {
            let mut race = race(&[(ONE, true), (TWO, true)][..failures.len()]);
            for failure in failures {
                let Step::Ask(server) = race.step(t) else { panic!("{race:?}") };
                race.failed(server, *failure, t);
            }
            race.step(t)
        };
        let refused = Failure::Refused(Errno::EIO);
        assert_eq!(outcome(&[refused]), Step::Over(Verdict::Refused(Errno::EIO)));
        assert_eq!(outcome(&[refused, refused]), Step::Over(Verdict::Refused(Errno::EIO)));
        assert_eq!(outcome(&[refused, Failure::Unable]), Step::Over(Verdict::Again));
        assert_eq!(outcome(&[Failure::Lost, Failure::Unable]), Step::Over(Verdict::Again));
        assert_eq!(outcome(&[Failure::Lost]), Step::Over(Verdict::Reconnect));
        assert_eq!(outcome(&[Failure::Lost, refused]), Step::Over(Verdict::Reconnect));
        assert_eq!(outcome(&[]), Step::Over(Verdict::Again));
    }

    #[test]
    fn with_one_replica_there_is_nobody_to_ask_besides() {
        let t = Instant::now();
        let mut race = race(&[(ONE, true)]);
        assert_eq!(race.step(t), Step::Ask(ONE));
        assert_eq!(race.step(t + ms(9000)), Step::Wait(None));
        assert_eq!(race.won(ONE, t + ms(9000)).took, Some(ms(9000)));
    }
}
