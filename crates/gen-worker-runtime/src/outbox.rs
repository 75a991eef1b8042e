//! What must be said to the scheduler, whichever stream is up: results kept until delivered, events bounded.

mod arrivals;
mod events;
mod queue;
mod results;
mod speech;

use std::{
    convert::Infallible,
    future::pending,
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use gen_worker_core::{Event, EventClass, RunId, metric::Histogram, ports::EventSink};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, oneshot},
    time::{MissedTickBehavior, interval},
};
use tracing::info;

pub(crate) use self::speech::Speech;
use self::{
    arrivals::{Arrivals, Ending},
    events::EventLimit,
    queue::Queue,
    results::Told,
};
use crate::{
    admission::{Admission, Permit, PermitId},
    config::RuntimeConfig,
    job::Line,
    journal::{Journal, JournalError},
    wire::{Message, outbound},
};

/// A run and its attempt: what a result answers and an acknowledgement names.
pub(crate) type Key = (RunId, i64);

/// How much is kept.
struct Limits {
    /// How many events.
    events: usize,
    /// Of results, in bytes.
    result_bytes: usize,
    /// Of one message, in bytes.
    message_bytes: usize,
    /// How long the line of a run waits for the delivery of its result, at least, and at most twice as long.
    late: Duration,
}

impl Limits {
    fn of(config: &RuntimeConfig) -> Self {
        Self {
            events: config.event_buffer,
            result_bytes: config.result_buffer,
            message_bytes: config.max_message_bytes,
            late: config.log_delivery,
        }
    }
}

/// What was lost since it was last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Events that found no room.
    pub events: u64,
    /// Results that were forgotten before their retention was over, to make room.
    pub results: u64,
}

/// What is held at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Results that are not delivered.
    pub results: usize,
    /// What they take, in bytes.
    pub result_bytes: usize,
    /// Those of them that the stream that is up was not told.
    pub unwritten: usize,
    /// How long the oldest result has been held; `None`: there is none.
    pub oldest: Option<Duration>,
    /// The scheduler of this stream says when it has a result for good.
    pub is_acknowledged: bool,
    /// Events that wait.
    pub events: usize,
    /// What was lost since the start.
    pub lost: Losses,
}

/// The queue, shared by jobs that fill it and the stream that empties it. Outlives every stream.
///
/// Runs speak and end on the user runtime, and what they leave is taken in by whoever looks at the queue next, as a rule the
/// control runtime: a result and its run's place are handed over in the same moment, so that whoever hears of the result
/// finds the place free and nobody finds the run missing, and threads do not wait for each other.
pub(crate) struct Outbox {
    arrivals: Mutex<Arrivals>,
    queue: Mutex<Queue>,
    /// Reads for the stream that is up.
    speaker: AtomicWaker,
    journal: Option<Journal>,
    max_event: EventLimit,
    late: Duration,
    /// So many results are held that no more runs should be taken.
    full: AtomicBool,
    /// So much waits for the stream that nothing more should be read from it.
    congested: AtomicBool,
    /// It was congested, and is no longer.
    relieved: Notify,
    /// An event was sent.
    emptied: Notify,
    delivery: Arc<Histogram>,
}

impl Outbox {
    /// One whose results are kept in `WORKER_STATE_DIR`, or end with the process.
    ///
    /// # Errors
    /// The directory cannot be used, or the operating system gives no thread.
    pub(crate) fn open(config: &RuntimeConfig) -> Result<Arc<Self>, JournalError> {
        match &config.state_dir {
            Some(directory) => Self::journaled(&Limits::of(config), directory),
            None => Ok(Arc::new(Self::new(&Limits::of(config)))),
        }
    }

    fn new(limits: &Limits) -> Self {
        let queue = Queue::new(limits.events, limits.result_bytes);
        Self {
            arrivals: Mutex::new(Arrivals::new(limits.events)),
            delivery: queue.results.delivery.clone(),
            queue: Mutex::new(queue),
            speaker: AtomicWaker::new(),
            journal: None,
            max_event: EventLimit::within(limits.message_bytes),
            late: limits.late,
            full: AtomicBool::new(false),
            congested: AtomicBool::new(false),
            relieved: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Starts with what an earlier process did not deliver.
    fn journaled(limits: &Limits, directory: &Path) -> Result<Arc<Self>, JournalError> {
        let (journal, writer) = Journal::open(directory)?;
        let undelivered = writer.undelivered(limits.message_bytes);
        info!(directory = %directory.display(), undelivered = undelivered.len(), "results are kept in a journal");
        let outbox = Arc::new(Self { journal: Some(journal), ..Self::new(limits) });
        for (key, message) in undelivered {
            outbox.queue().results.push(key, message, Instant::now());
        }
        let released = Arc::downgrade(&outbox);
        let release = move |ids: &[u64]| {
            if let Some(outbox) = released.upgrade() {
                outbox.change(|queue| ids.iter().for_each(|id| queue.results.release(*id)));
            }
        };
        let unusable = |source: io::Error| JournalError::Unusable { directory: directory.to_owned(), source };
        writer.start(release).map_err(unusable)?;
        Ok(outbox)
    }

    /// A new stream, which says this first, then everything that is held. An earlier one falls silent. The receiver
    /// resolves when this stream says no more: all is said after [`finish`](Self::finish), or it is gone.
    pub(crate) fn start_stream(self: &Arc<Self>, registration: Message) -> (Speech, oneshot::Receiver<()>) {
        let number = self.change(|queue| queue.start_stream(registration));
        Speech::new(self.clone(), number)
    }

    /// Takes a heartbeat, in place of one that was not sent yet.
    pub(crate) fn heartbeat(&self, registration: Message) {
        self.change(|queue| queue.heartbeat = Some(registration));
    }

    /// The stream ends once everything is said.
    pub(crate) fn finish(&self) {
        self.change(|queue| queue.finishing = true);
    }

    /// Takes the refusal of a run. It is delivered as a result is; that of a run that may be sent again answers no second try.
    pub(crate) fn refusal(&self, key: Key, message: Message, may_come_again: bool) {
        self.change(|queue| {
            // The run has ended, and its result is on its way: that is the answer.
            if queue.results.has_outcome(&key) && !queue.results.was_written(&key) {
                return;
            }
            if !may_come_again {
                return self.take(queue, key, message, None, Instant::now());
            }
            queue.results.push(key.clone(), message, Instant::now());
            queue.results.mark_refusal(&key);
            self.drop_from_journal(queue.shed());
        });
    }

    /// Takes a run's result. Where there is a journal, it is sent once it is there.
    pub(crate) fn result(&self, key: Key, message: Message, line: Option<Box<Line>>) {
        self.change(|queue| self.take(queue, key, message, line, Instant::now()));
    }

    /// Takes the result of a run that has ended, and gives back the place that it held.
    pub(crate) fn conclude(&self, key: Key, message: Message, permit: Arc<Permit>, line: Option<Box<Line>>) {
        let ending = Ending { key, message, permit, line };
        self.arrivals().endings.push(ending);
        // The journal is to have it whether or not there is a stream.
        match self.journal {
            Some(_) => self.take_in(),
            None => self.speaker.wake(),
        }
    }

    /// Takes in the runs that have ended.
    pub(crate) fn take_in(&self) {
        self.change(|_| ());
    }

    /// The run was reported and does not stop. Returns how many such there are; `None`: it has ended after all, which may have
    /// been in the last moment of its grace, and nobody has looked since.
    pub(crate) fn abandon(&self, admission: &Admission, permit: PermitId) -> Option<u32> {
        self.take_in();
        admission.abandon(permit)
    }

    fn take(&self, queue: &mut Queue, key: Key, message: Message, line: Option<Box<Line>>, now: Instant) {
        let kept = self.journal.as_ref().map(|journal| (journal, key.clone(), message.clone()));
        let id = queue.results.hold_back(key, message, now);
        match line {
            Some(line) if self.late.is_zero() => queue.results.told.push((line, None)),
            Some(line) => queue.results.tell_of(id, line, now),
            None => {}
        }
        if kept.is_none_or(|(journal, key, message)| !journal.keep(id, key, message)) {
            queue.results.release(id);
        }
        self.drop_from_journal(queue.shed());
    }

    /// Takes an answer to a command.
    pub(crate) fn answer(&self, message: Message) {
        self.change(|queue| queue.push_answer(message));
    }

    /// Takes an event that is part of a run's output; waits while there is no room, and for as long as the run may speak.
    pub(crate) async fn emit_durable(&self, event: Event, may_speak: impl Fn() -> bool) {
        let Some(mut event) = self.max_event.fit(event) else { return };
        loop {
            let emptied = self.emptied.notified();
            match self.change(|queue| if may_speak() { queue.events.push(event) } else { Ok(()) }) {
                Ok(()) => return,
                Err(back) => event = back,
            }
            emptied.await;
        }
    }

    /// Takes the one event that ends a run's output, room or not: there is one a run.
    pub(crate) fn emit_last(&self, event: Event) {
        let event = self.max_event.fit(event);
        self.change(|queue| event.into_iter().for_each(|event| queue.events.push_beyond(event)));
    }

    /// Takes what a realtime session has to say, in its turn. A frame holds its place until it is handed to the stream; the
    /// session's end needs none.
    pub(crate) fn frame(&self, message: Message, place: Option<OwnedSemaphorePermit>) {
        self.change(|queue| queue.push_frame(message, place));
    }

    /// Forgets every frame: a session ends with its stream, and the next stream's scheduler knows nothing of it.
    pub(crate) fn drop_frames(&self) {
        self.change(Queue::drop_frames);
    }

    /// The scheduler of this stream says when it has a result for good.
    pub(crate) fn await_acknowledgements(&self) {
        self.change(|queue| queue.results.await_acknowledgements());
    }

    /// Whether what a counted attempt came to is held. Where attempts are not counted, the same run may be a new one.
    pub(crate) fn has_result_of(&self, key: &Key) -> bool {
        key.1 != 0 && self.queue().results.has_outcome(key)
    }

    /// Sends the result of an attempt again, if it is still held.
    pub(crate) fn resend(&self, key: &Key) {
        self.change(|queue| queue.results.resend(key));
    }

    /// Whether so many results are held that more runs should not be taken.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(crate) fn acknowledge(&self, key: &Key) {
        self.change(|queue| {
            if queue.can_be_acknowledged(key) && queue.results.acknowledge(key, Instant::now()) {
                self.drop_from_journal([key.clone()]);
            }
        });
    }

    /// The run is started, maybe again: what an earlier run of it said and came to is history.
    pub(crate) fn begin(&self, key: &Key) {
        self.change(|queue| {
            while queue.events.pop_of(&key.0).is_some() {}
            if queue.results.forget(key) {
                self.drop_from_journal([key.clone()]);
            }
        });
        self.emptied.notify_waiters();
    }

    /// Forgets results that were written to this stream at least `retention` ago, all of which it was healthy; none of a
    /// scheduler that acknowledges.
    pub(crate) fn expire(&self, retention: Duration) {
        self.change(|queue| {
            let expired = queue.results.expire(Instant::now(), retention);
            self.drop_from_journal(expired);
        });
    }

    /// Logs of each run how it ended, whose result is not delivered in time, for as long as it is polled.
    pub(crate) async fn tell_late(&self) -> Infallible {
        if self.late.is_zero() {
            return pending().await;
        }
        let mut look = interval(self.late);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.change(|queue| queue.results.tell_late(Instant::now(), self.late));
        }
    }

    /// How long it took to deliver results.
    pub(crate) fn delivery(&self) -> &Histogram {
        &self.delivery
    }

    /// Called with the queue locked, so that the journal hears of a result's end before it hears of its successor.
    fn drop_from_journal(&self, keys: impl IntoIterator<Item = Key>) {
        if let Some(journal) = &self.journal {
            keys.into_iter().for_each(|key| journal.forget(key));
        }
    }

    /// Ends the journal: what is taken from now on ends with the process.
    pub(crate) fn close(&self) {
        self.change(|queue| queue.results.tell_late(Instant::now(), Duration::ZERO));
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// Nothing is held that the scheduler may not have.
    pub(crate) fn is_delivered(&self) -> bool {
        self.queue().is_delivered()
    }

    /// Forgets what was written to a scheduler that does not say whether it read it, unless the next process can ask again.
    pub(crate) fn give_up_unkept(&self) {
        if self.journal.is_none() {
            self.expire(Duration::ZERO);
        }
    }

    /// Nothing would be lost with this process: all is said, and every result is delivered or in the journal.
    pub(crate) fn can_leave(&self) -> bool {
        let queue = self.queue();
        queue.is_delivered() || (self.journal.is_some() && queue.is_said())
    }

    /// What was lost since the last call.
    pub(crate) fn take_losses(&self) -> Losses {
        self.queue().take_losses()
    }

    /// What is held.
    pub(crate) fn census(&self) -> Census {
        self.queue().census(Instant::now())
    }

    /// So much waits for the stream that nothing more should be read from it.
    pub(crate) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed)
    }

    /// Waits while it is congested, however often that comes and goes between two looks.
    pub(crate) async fn relieved(&self) {
        while self.is_congested() {
            self.relieved.notified().await;
        }
    }

    /// The next message of this stream; `None`: it is over.
    fn poll_next(&self, stream: u64, context: &Context<'_>) -> Poll<Option<Message>> {
        let mut queue = self.queue();
        let now = Instant::now();
        let next = match queue.next_of(stream, now) {
            Poll::Pending => {
                self.speaker.register(context.waker());
                // A run that ended in between woke nobody.
                self.settle(&mut queue);
                queue.next_of(stream, now)
            }
            next => next,
        };
        self.drop_from_journal(queue.shed());
        if queue.events.has_room() {
            self.emptied.notify_waiters();
        }
        self.mark(&queue);
        let told = std::mem::take(&mut queue.results.told);
        drop(queue);
        write(told);
        next
    }

    fn change<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let mut queue = self.queue();
        let result = change(&mut queue);
        self.mark(&queue);
        let wake = queue.is_worth_waking_for();
        let told = std::mem::take(&mut queue.results.told);
        drop(queue);
        if wake {
            self.speaker.wake();
        }
        write(told);
        result
    }

    /// Keeps what is asked for each run and each message where asking takes no lock.
    fn mark(&self, queue: &Queue) {
        self.full.store(queue.is_full(), Ordering::Relaxed);
        let congested = queue.is_congested();
        if self.congested.swap(congested, Ordering::Relaxed) && !congested {
            self.relieved.notify_one();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(&mut queue);
        queue
    }

    /// Events before endings, so that a result never overtakes what its run said.
    fn settle(&self, queue: &mut Queue) {
        std::mem::swap(&mut *self.arrivals(), &mut queue.arrived);
        queue.hear_arrived();
        if queue.arrived.endings.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut endings = std::mem::take(&mut queue.arrived.endings);
        for Ending { key, message, permit, line } in endings.drain(..) {
            self.take(queue, key, message, line, now);
            permit.settle();
        }
        queue.arrived.endings = endings;
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not while the queue is locked.
fn write(told: Vec<Told>) {
    told.into_iter().for_each(|(line, delivered)| line.write(delivered));
}

impl EventSink for Outbox {
    fn emit(&self, event: Event) {
        debug_assert_ne!(event.class, EventClass::Durable);
        let event = self.max_event.fit(event);
        // The queue knows best what has to go.
        if self.arrivals().are_full() {
            self.take_in();
        }
        self.arrivals().hear(event);
        self.speaker.wake();
    }
}

#[cfg(test)]
mod tests;
