//! Acknowledging changes and flushes to clients.

use super::*;

impl Server {
    /// A client is told that something is done.
    pub(super) fn acknowledges(&self, ctx: &mut Context<'_>, group: GroupId) {
        ctx.oracle.acknowledged(self.map.as_deref(), group, &format!("server {}", self.id));
    }

    /// Whether a chain has too few replicas by the map, whatever the group says.
    pub(super) fn is_short_by_map(&self, group: GroupId) -> bool {
        let map = self.map.as_ref();
        let of = map.and_then(|map| Some((map.chain(group)?, map.pool_of(group)?)));
        of.is_some_and(|(chain, pool)| chain.replicas.len() < usize::from(pool.min_replicas))
    }

    fn is_any_short(&self, groups: Named<'_>) -> bool {
        let short = |(group, _): &(GroupId, Epoch)| self.group(*group).is_some_and(Group::is_short);
        groups.iter().any(short) && !self.is(Mutant::FlushesShort)
    }

    /// A client wants what it has written to be durable.
    pub(super) fn flush(
        &mut self,
        ctx: &mut Context<'_>,
        caller: Caller,
        groups: Vec<(GroupId, Epoch)>,
    ) {
        let me = self.me();
        let mut members = Vec::new();
        for (group, epoch) in &groups {
            let known = self.group(*group).filter(|g| g.is_head() && g.epoch() == *epoch);
            let Some(chain) = known.and_then(Group::chain) else {
                let refusal = Refusal::Stale(self.epoch(*group));
                return self.answer(ctx, caller, Reply::Refused(refusal));
            };
            let others = chain.members().filter(|member| *member != me);
            let of = |learner| Lesson { group: *group, epoch: *epoch, learner };
            members.extend(others.map(of));
        }
        if self.is_any_short(&groups) {
            return self.answer(ctx, caller, Reply::Refused(Refusal::Busy));
        }
        if self.is(Mutant::FlushesHead) {
            members.clear();
        }
        let id = ctx.next_id();
        let own: Vec<_> = groups.iter().map(|(group, _)| *group).collect();
        self.flushes.insert(id, FlushJob { caller, groups, left: members.len() + 1 });
        self.make_durable(ctx, &own, After::Member(id));
        for of in members {
            let purpose = Purpose::FlushMember(id, of);
            self.call(ctx, of.learner.server, Call::FlushGroup(of), purpose);
        }
    }

    pub(super) fn member_flushed(&mut self, ctx: &mut Context<'_>, id: u64) {
        let Some(job) = self.flushes.get_mut(&id) else { return };
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        let Some(job) = self.flushes.remove(&id) else { return };
        let same = |(group, epoch): &(GroupId, Epoch)| self.epoch(*group) == *epoch;
        let reply = match job.groups.iter().all(same) && !self.is_any_short(&job.groups) {
            true => {
                for (group, _) in &job.groups {
                    self.acknowledges(ctx, *group);
                }
                let answer = |(group, _): &(GroupId, Epoch)| (*group, self.verifier(*group));
                Reply::Flushed(job.groups.iter().map(answer).collect())
            }
            false => Reply::Refused(Refusal::Busy),
        };
        self.answer(ctx, job.caller, reply);
    }

    pub(super) fn fail_flush(&mut self, ctx: &mut Context<'_>, id: u64) {
        if let Some(job) = self.flushes.remove(&id) {
            self.answer(ctx, job.caller, Reply::Refused(Refusal::Busy));
        }
    }
}
