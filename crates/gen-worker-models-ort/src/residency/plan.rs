//! Who has to go before a model fits, and for whom it never will.

use std::{collections::HashSet, hash::Hash, time::Instant};

use super::{BELIEVED, Holder, Lease, LeaseId, Model, Refusal, Residency, State, Step, Tier};
use crate::budget::{Bytes, Memory};

impl<K: Clone + Eq + Hash> Residency<K> {
    /// Refuses those who wait for what can never be.
    pub(super) fn refuse_the_hopeless(&mut self, key: &K, steps: &mut Vec<Step<K>>) {
        let waiting: Vec<_> = self.waiting(key).collect();
        for id in waiting {
            if let Some(refusal) = self.refusal(key, id) {
                self.leases.remove(&id);
                steps.push(Step::Refuse(id, key.clone(), refusal));
            }
        }
        if !self.is_wanted(key) {
            self.queue.retain(|queued| queued != key);
        }
    }

    /// Goes back to the estimate if what was measured, a while ago, would refuse the model to whom this lease is for.
    pub(super) fn doubt(&mut self, key: &K, id: LeaseId, now: Instant) {
        let model = &self.models[key];
        let is_old = model.measured.is_some_and(|at| now.saturating_duration_since(at) >= BELIEVED);
        if is_old && matches!(model.state, State::Disk | State::Warm) && self.refusal(key, id).is_some() {
            self.forget_the_measure(key);
        }
    }

    /// Whether somebody waits for the model in vain.
    pub(super) fn is_hopeless(&self, key: &K) -> bool {
        self.waiting(key).any(|id| self.refusal(key, id).is_some())
    }

    pub(super) fn forget_the_measure(&mut self, key: &K) {
        let model = self.model(key);
        (model.footprint.resident, model.measured) = (model.estimate.resident, None);
    }

    /// Why there will never be room for the model on any device, whoever else ends their leases; `None`: there may be.
    fn refusal(&self, key: &K, id: LeaseId) -> Option<Refusal> {
        let (needed, held) = (self.models[key].footprint.resident, self.held_by(&self.leases[&id].holder));
        let fits_beside =
            |held: Memory| (0..self.devices).any(|device| needed.on(device).plus(held).fits_in(self.budget));
        let largest = (0..self.devices).max_by_key(|device| self.budget.devices[*device]).unwrap_or(0);
        let budget = self.budget.of(largest);
        if !fits_beside(Memory::default()) {
            Some(Refusal::TooLarge { needed, budget })
        } else if !fits_beside(held) {
            Some(Refusal::BesideOwn { needed, held: held.total(), budget })
        } else {
            None
        }
    }

    /// Where the model goes, and what has to go before; `None`: it fits nowhere before leases end. Of several devices that
    /// one from which the fewest go, and of these the one with most room.
    pub(super) fn plan(&self, key: &K) -> Option<(usize, Vec<(K, Tier)>)> {
        let free = self.budget.minus(self.used);
        let plans = (0..self.devices).filter_map(|device| Some((device, self.plan_on(key, device)?)));
        plans.min_by_key(|(device, victims)| (victims.len(), u64::MAX - free.devices[*device]))
    }

    /// What has to go before the model fits on this device, the first to go first; `None`: it does not before leases end.
    pub(super) fn plan_on(&self, key: &K, device: usize) -> Option<Vec<(K, Tier)>> {
        let model = &self.models[key];
        let mut used = self.used.minus(model.charged).plus(model.footprint.resident.on(device));
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
    fn held_by(&self, holder: &Holder) -> Memory {
        let is_its_own =
            |lease: &&Lease<K>| lease.is_granted && !holder.is_empty() && lease.holder == *holder;
        let held: HashSet<&K> = self.leases.values().filter(is_its_own).map(|lease| &lease.model).collect();
        held.into_iter().fold(Memory::default(), |sum, key| sum.plus(self.models[key].charged))
    }
}

impl Model {
    /// Warm, if that frees as much of what is short as leaving altogether would.
    fn tier_to_free(&self, short: Memory) -> Tier {
        let still_short = short.minus(self.freed_by(Tier::Warm));
        let can_be_warm = self.state == State::Resident && self.footprint.warm > 0;
        if can_be_warm && !still_short.shares_a_kind_with(self.kept()) { Tier::Warm } else { Tier::Disk }
    }

    fn freed_by(&self, tier: Tier) -> Memory {
        match tier {
            Tier::Warm => self.charged.minus(self.kept()),
            Tier::Disk => self.charged,
        }
    }

    /// What it takes when it is warm.
    fn kept(&self) -> Memory {
        Bytes { host: self.footprint.warm, device: 0 }.on(0)
    }
}
