//! What becomes of data servers, for the log.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::id::ServerId;

use crate::meta::cluster::{Manager, Verdict};

/// What was said last of each server, or since when there is nothing to be said. Suspicions come and go, and are not told.
#[derive(Debug, Default)]
pub(super) struct Journal(BTreeMap<ServerId, Known>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Since(Duration),
    Answers(bool),
}

/// What is new of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Answers(ServerId, String),
    Silent(ServerId, String),
    Forgotten(ServerId),
}

impl Journal {
    /// What has changed.
    pub(super) fn follow(&mut self, manager: &Manager, now: Duration) -> Vec<News> {
        let (servers, deadline) = (&manager.state().servers, manager.config().deadline);
        let mut news = Vec::new();
        for (id, server) in servers {
            if manager.is_astray(*id, now).is_some() {
                // There is an alarm for that.
                continue;
            }
            let known = self.0.entry(*id).or_insert(Known::Since(now));
            let answers = match manager.verdict(*id, now) {
                Verdict::Alive => true,
                Verdict::Dead => false,
                Verdict::Suspect => continue,
            };
            // One that was just added has never been heard.
            let too_early = matches!(known, Known::Since(at) if !answers && now < *at + deadline);
            if too_early || *known == Known::Answers(answers) {
                continue;
            }
            *known = Known::Answers(answers);
            let address = server.addrs.join(",");
            news.push(match answers {
                true => News::Answers(*id, address),
                false => News::Silent(*id, address),
            });
        }
        let gone: Vec<_> = self.0.keys().filter(|id| !servers.contains_key(id)).copied().collect();
        for id in gone {
            self.0.remove(&id);
            news.push(News::Forgotten(id));
        }
        news
    }
}

impl News {
    pub(super) fn tell(&self) {
        match self {
            News::Answers(server, address) => {
                tracing::info!(%server, address, "a data server answers");
            }
            News::Silent(server, address) => tracing::warn!(
                %server,
                address,
                "a data server does not answer; others go on in its place where there are any"
            ),
            News::Forgotten(server) => tracing::info!(%server, "a data server is forgotten"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::cluster::{Config, State};

    #[test]
    fn a_server_that_was_just_added_is_not_called_silent_before_its_time() {
        let config = Config::default();
        let mut manager = Manager::new(State::default(), config, Duration::ZERO);
        let (mut journal, now) = (Journal::default(), config.deadline * 10);
        manager.meet(now, vec!["a:1".into()]);
        assert_eq!(journal.follow(&manager, now), []);
        let later = now + config.deadline;
        let silent = News::Silent(ServerId(1), "a:1".into());
        assert_eq!(journal.follow(&manager, later), [silent]);
        assert_eq!(journal.follow(&manager, later), [], "it is said once");
        let empty = Manager::new(State::default(), config, Duration::ZERO);
        assert_eq!(journal.follow(&empty, later), [News::Forgotten(ServerId(1))]);
    }
}
