//! Those who bring the pieces of a file, as many as pay.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gen_worker_net::HttpResponse;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Fetch, climb::Climb};
use crate::{error::HubError, part::Part};

/// How often it is looked whether others would pay.
const TICK: Duration = Duration::from_millis(25);

/// A piece that is coming.
pub(super) struct Start {
    pub(super) piece: Range<u64>,
    pub(super) response: HttpResponse,
    pub(super) lane: OwnedSemaphorePermit,
}

/// What is left to bring, and who brings it.
struct Crew {
    /// In order, so that the digest finds what it wants next early.
    rest: VecDeque<Range<u64>>,
    working: usize,
    wanted: usize,
}

impl Crew {
    /// Whether one more is to begin.
    fn joins(&mut self) -> bool {
        let joins = self.working < self.wanted && !self.rest.is_empty();
        self.working += usize::from(joins);
        joins
    }

    /// The next piece for one who works; `None`: there is none, or one too many works.
    fn next(&mut self) -> Option<Range<u64>> {
        let piece = if self.working > self.wanted { None } else { self.rest.pop_front() };
        self.working -= usize::from(piece.is_none());
        piece
    }
}

impl Fetch {
    /// Brings all pieces, the first of which is coming.
    pub(super) async fn pieces(self: &Arc<Self>, part: &Arc<Part>, start: Start) -> Result<(), HubError> {
        let mut rest: VecDeque<_> = part.missing(self.lanes.range_bytes, usize::MAX).into();
        rest.pop_front();
        let crew = Arc::new(Mutex::new(Crew { rest, working: 1, wanted: 1 }));
        let mut climb = Climb::new(self.lanes.count, Instant::now(), part.present());
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(self).work(Arc::clone(part), Arc::clone(&crew), Some(start)));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = tasks.join_next() => match done {
                    None => return Ok(()),
                    Some(done) => if let Err(error) = done.map_err(std::io::Error::other)? {
                        tasks.shutdown().await;
                        return Err(error);
                    },
                },
                _ = tick.tick(), if climb.goes_on() => {
                    lock(&crew).wanted = climb.step(Instant::now(), part.present());
                    while lock(&crew).joins() {
                        tasks.spawn(Arc::clone(self).work(Arc::clone(part), Arc::clone(&crew), None));
                    }
                }
            }
        }
    }

    /// One of them: a piece after another, as long as there are any and it pays.
    async fn work(
        self: Arc<Self>,
        part: Arc<Part>,
        crew: Arc<Mutex<Crew>>,
        start: Option<Start>,
    ) -> Result<(), HubError> {
        if let Some(Start { piece, response, lane }) = start {
            self.piece(&part, piece, Some(response)).await?;
            drop(lane);
        }
        let next = || lock(&crew).next();
        while let Some(piece) = next() {
            let _lane = self.lane().await;
            self.piece(&part, piece, None).await?;
        }
        Ok(())
    }
}

fn lock(crew: &Mutex<Crew>) -> MutexGuard<'_, Crew> {
    crew.lock().unwrap_or_else(PoisonError::into_inner)
}
