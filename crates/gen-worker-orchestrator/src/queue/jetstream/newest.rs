//! The newest of many runs, seen one after the other in any order.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::run::RunView;

/// At most `limit` runs, of one tenant if one is named.
#[derive(Debug)]
pub(super) struct Newest<'a> {
    tenant_id: Option<&'a str>,
    limit: usize,
    /// By when they were asked for, and the revision, for runs of one millisecond.
    runs: BTreeMap<Reverse<(u64, u64)>, RunView>,
}

impl<'a> Newest<'a> {
    pub(super) fn new(tenant_id: Option<&'a str>, limit: usize) -> Self {
        Self { tenant_id, limit, runs: BTreeMap::new() }
    }

    pub(super) fn see(&mut self, revision: u64, run: RunView) {
        if self.tenant_id.is_some() && self.tenant_id != run.tenant_id.as_deref() {
            return;
        }
        self.runs.insert(Reverse((run.created_at_ms, revision)), run);
        if self.runs.len() > self.limit {
            self.runs.pop_last();
        }
    }

    pub(super) fn into_runs(self) -> Vec<RunView> {
        self.runs.into_values().collect()
    }
}
