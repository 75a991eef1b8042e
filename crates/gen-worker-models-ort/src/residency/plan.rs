//! Who has to go before a model fits, and for whom it never will.

use std::{collections::HashSet, hash::Hash};

use super::{Holder, Lease, Model, Refusal, Residency, State, Step, Tier};
use crate::budget::Bytes;

impl<K: Clone + Eq + Hash> Residency<K> {
    /// Refuses those who wait for what can never be.
    pub(super) fn refuse_the_hopeless(&mut self, key: &K, steps: &mut Vec<Step<K>>) {
        let (needed, budget) = (self.models[key].footprint.resident, self.budget);
        let waiting: Vec<_> = self.waiting(key).collect();
        for id in waiting {
            let held = self.held_by(&self.leases[&id].holder);
            let refusal = if !needed.fits_in(budget) {
                Refusal::TooLarge { needed, budget }
            } else if !needed.plus(held).fits_in(budget) {
                Refusal::BesideOwn { needed, held, budget }
            } else {
                continue;
            };
            self.leases.remove(&id);
            steps.push(Step::Refuse(id, key.clone(), refusal));
        }
        if !self.is_wanted(key) {
            self.queue.retain(|queued| queued != key);
        }
    }

    /// What has to go before the model fits, the first to go first; `None`: it does not fit before leases end.
    pub(super) fn plan(&self, key: &K) -> Option<Vec<(K, Tier)>> {
        let model = &self.models[key];
        let mut used = self.used.minus(model.charged).plus(model.footprint.resident);
        for (_, leaving) in self.models.iter().filter(|(leaving, _)| *leaving != key) {
            if let State::Evicting(tier) = leaving.state {
                used = used.minus(leaving.freed_by(tier));
            }
        }
        let mut victims = Vec::new();
        for victim in self.idle().into_iter().filter(|idle| idle != key) {
            if used.fits_in(self.budget) {
                break;
            }
            let leaving = &self.models[&victim];
            let tier = leaving.tier_to_free(used.minus(self.budget));
            let freed = leaving.freed_by(tier);
            if used.minus(self.budget).shares_a_kind_with(freed) {
                used = used.minus(freed);
                victims.push((victim, tier));
            }
        }
        used.fits_in(self.budget).then_some(victims)
    }

    /// What nobody leases, the least recently used first.
    pub(super) fn idle(&self) -> Vec<K> {
        let mut idle: Vec<_> = self
            .models
            .iter()
            .filter(|(key, model)| {
                matches!(model.state, State::Resident | State::Warm) && !self.is_wanted(key)
            })
            .collect();
        idle.sort_by_key(|(_, model)| model.used);
        idle.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// What the models take that this run holds.
    fn held_by(&self, holder: &Holder) -> Bytes {
        let is_its_own =
            |lease: &&Lease<K>| lease.is_granted && !holder.is_empty() && lease.holder == *holder;
        let held: HashSet<&K> = self.leases.values().filter(is_its_own).map(|lease| &lease.model).collect();
        held.into_iter().fold(Bytes::default(), |sum, key| sum.plus(self.models[key].charged))
    }
}

impl Model {
    /// Warm, if that frees as much of what is short as leaving altogether would.
    fn tier_to_free(&self, short: Bytes) -> Tier {
        let still_short = short.minus(self.freed_by(Tier::Warm));
        let kept = Bytes { host: self.footprint.warm, device: 0 };
        let can_be_warm = self.state == State::Resident && self.footprint.warm > 0;
        if can_be_warm && !still_short.shares_a_kind_with(kept) { Tier::Warm } else { Tier::Disk }
    }

    fn freed_by(&self, tier: Tier) -> Bytes {
        match tier {
            Tier::Warm => self.charged.minus(Bytes { host: self.footprint.warm, device: 0 }),
            Tier::Disk => self.charged,
        }
    }
}
