//! What waits and what runs, by function, as the servers count it.

use std::collections::BTreeMap;

use async_nats::jetstream::{context::ConsumerInfoErrorKind, stream::DirectGetErrorKind};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::{Duration, JetStream, PATIENCE, names::Lane, records::lost};
use crate::{
    auth::Now,
    queue::{FunctionStats, Unavailable},
};

/// Most lanes that are asked for at once.
const AT_ONCE: usize = 32;

impl JetStream {
    /// Reads it anew, in at most five seconds.
    pub(super) async fn read_stats(&self) -> Result<BTreeMap<String, FunctionStats>, Unavailable> {
        let reading = async {
            let open = self.open_runs().await?;
            let asked = open.into_iter().map(async |(lane, open)| {
                let stats = self.stats_of(&lane, open).await?;
                Ok::<_, Unavailable>((lane.function, stats))
            });
            let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
            let mut all = BTreeMap::<_, FunctionStats>::new();
            while let Some((function, of_lane)) = asked.try_next().await? {
                let all = all.entry(function).or_default();
                all.waiting += of_lane.waiting;
                all.running += of_lane.running;
                all.oldest = all.oldest.max(of_lane.oldest);
            }
            Ok(all)
        };
        timeout(PATIENCE, reading).await.map_err(|late| lost("the queue cannot be counted in time")(&late))?
    }

    /// How many runs of each lane have not ended.
    pub(super) async fn open_runs(&self) -> Result<BTreeMap<Lane, usize>, Unavailable> {
        let asked = self.stream.info_with_subjects(self.names.all_runs()).await;
        let subjects = asked.map_err(|e| lost("the queue cannot be counted")(&e))?;
        let subjects: Vec<_> =
            subjects.try_collect().await.map_err(|e| lost("the queue cannot be counted")(&e))?;
        let lanes = subjects.into_iter();
        Ok(lanes.filter_map(|(subject, count)| Some((self.names.lane_of(&subject)?, count))).collect())
    }

    async fn stats_of(&self, lane: &Lane, open: usize) -> Result<FunctionStats, Unavailable> {
        let (running, delivered) = match self.stream.consumer_info(lane.consumer()).await {
            Ok(info) => (info.num_ack_pending.min(open), info.delivered.stream_sequence),
            // No worker has ever asked for its runs.
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => (0, 0),
            Err(error) => return Err(lost("the running runs cannot be counted")(&error)),
        };
        let waiting = open - running;
        let oldest = if waiting > 0 { self.age_of_next(lane, delivered + 1).await? } else { Duration::ZERO };
        Ok(FunctionStats { waiting, oldest, running })
    }

    /// How old the first message of a lane is from a number on; zero: there is none.
    async fn age_of_next(&self, lane: &Lane, sequence: u64) -> Result<Duration, Unavailable> {
        let next = self.stream.direct_get_next_for_subject(self.names.runs_of(lane), Some(sequence)).await;
        match next {
            Ok(first) => {
                let sent_ms = first.time.unix_timestamp_nanos() / 1_000_000;
                let age = i128::from(Now::read().unix_ms) - sent_ms;
                Ok(Duration::from_millis(u64::try_from(age).unwrap_or(0)))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(Duration::ZERO),
            Err(error) => Err(lost("the oldest run cannot be read")(&error)),
        }
    }
}
