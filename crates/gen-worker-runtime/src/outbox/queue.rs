//! What is said next. Pure: nothing here waits or reads a clock.

use std::{collections::VecDeque, task::Poll, time::Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::{Census, Key, Losses, arrivals::Arrivals, events::Events, outbound, results::Results};
use crate::wire::Message;

/// Everything there is to say, by kind.
pub(super) struct Queue {
    /// What a stream begins with.
    registration: Option<Message>,
    /// The latest that was not sent yet.
    pub heartbeat: Option<Message>,
    answers: VecDeque<Message>,
    answer_bytes: usize,
    pub results: Results,
    pub events: Events,
    /// What realtime sessions say. A frame holds its place among its session's own; a session's end has none.
    frames: VecDeque<(Message, Option<OwnedSemaphorePermit>)>,
    /// Of the ends of sessions among them.
    end_bytes: usize,
    /// Whose turn it is of these two.
    frames_first: bool,
    /// The stream ends once everything is said.
    pub finishing: bool,
    /// Which stream speaks: a late reader of an earlier one gets nothing.
    stream: u64,
    max_bytes: usize,
    shed: u64,
    /// What was lost before `take_losses` was last called.
    lost: Losses,
    /// What has just arrived; empty but while it is taken in.
    pub arrived: Arrivals,
}

impl Queue {
    /// `max_bytes`: of results that are kept.
    pub(super) fn new(event_capacity: usize, max_bytes: usize) -> Self {
        Self {
            registration: None,
            heartbeat: None,
            answers: VecDeque::new(),
            answer_bytes: 0,
            results: Results::default(),
            events: Events::new(event_capacity),
            frames: VecDeque::new(),
            end_bytes: 0,
            frames_first: false,
            finishing: false,
            stream: 0,
            max_bytes,
            shed: 0,
            lost: Losses::default(),
            arrived: Arrivals::new(event_capacity),
        }
    }

    /// Takes in the events that have arrived.
    pub(super) fn hear_arrived(&mut self) {
        for event in self.arrived.events.drain(..) {
            // One that may be dropped is never handed back.
            let _ = self.events.push(event);
        }
        self.events.count_dropped(std::mem::take(&mut self.arrived.dropped));
    }

    /// A new stream, by its number.
    pub(super) fn start_stream(&mut self, registration: Message) -> u64 {
        self.registration = Some(registration);
        self.heartbeat = None;
        self.results.restart();
        self.finishing = false;
        self.stream += 1;
        self.stream
    }

    /// Takes an answer to a command.
    pub(super) fn push_answer(&mut self, answer: Message) {
        self.answer_bytes += answer.len();
        self.answers.push_back(answer);
    }

    /// Takes what a session says, or its end, which has no place.
    pub(super) fn push_frame(&mut self, frame: Message, place: Option<OwnedSemaphorePermit>) {
        if place.is_none() {
            self.end_bytes += frame.len();
        }
        self.frames.push_back((frame, place));
    }

    fn pop_frame(&mut self) -> Option<Message> {
        let (frame, place) = self.frames.pop_front()?;
        if place.is_none() {
            self.end_bytes -= frame.len();
        }
        Some(frame)
    }

    /// Forgets all but the ends of sessions.
    pub(super) fn drop_frames(&mut self) {
        self.frames.retain(|(_, place)| place.is_none());
    }

    /// The next message of this stream; `None`: it is over.
    pub(super) fn next_of(&mut self, stream: u64, now: Instant) -> Poll<Option<Message>> {
        if stream != self.stream {
            return Poll::Ready(None);
        }
        match self.next(now) {
            None if !(self.finishing && self.is_said()) => Poll::Pending,
            next => Poll::Ready(next),
        }
    }

    /// Results before events: a flood of progress delays no result. Only the events of the run itself go before its result.
    fn next(&mut self, now: Instant) -> Option<Message> {
        if let Some(registration) = self.registration.take().or_else(|| self.heartbeat.take()) {
            return Some(registration);
        }
        if let Some(answer) = self.answers.pop_front() {
            self.answer_bytes -= answer.len();
            return Some(answer);
        }
        let Some((run_id, _)) = self.results.due() else {
            return self.next_of_the_rest();
        };
        match self.events.pop_of(run_id) {
            Some(event) => Some(outbound::event(event)),
            None => self.results.write(now),
        }
    }

    /// Events and frames in turn, so that neither waits for a flood of the other.
    fn next_of_the_rest(&mut self) -> Option<Message> {
        self.frames_first = !self.frames_first;
        if self.frames_first
            && let Some(frame) = self.pop_frame()
        {
            return Some(frame);
        }
        let event = self.events.pop().map(outbound::event);
        event.or_else(|| self.pop_frame())
    }

    /// Whether the stream has something to read, be it its end.
    pub(super) fn is_worth_waking_for(&self) -> bool {
        self.has_next() || self.finishing
    }

    fn has_next(&self) -> bool {
        self.registration.is_some() || self.heartbeat.is_some() || self.has_news()
    }

    /// What a scheduler would miss: what a stream says of the worker itself, the next one says anew.
    fn has_news(&self) -> bool {
        !self.answers.is_empty()
            || self.results.unwritten().count > 0
            || !self.events.is_empty()
            || !self.frames.is_empty()
    }

    /// Nothing is there to send that would be missed, nor will be by itself.
    pub(super) fn is_said(&self) -> bool {
        !self.has_news() && self.results.held_back().count == 0
    }

    /// Nothing is held that the scheduler may not have.
    pub(super) fn is_delivered(&self) -> bool {
        self.is_said() && self.results.all().count == 0
    }

    /// Whether an acknowledgement can be about what is held. One that was never written is not meant, but a refusal before
    /// it; without a fence it may be about an earlier run of the same id, so only what this stream was told counts.
    pub(super) fn can_be_acknowledged(&self, key: &Key) -> bool {
        if key.1 == 0 { self.results.is_written(key) } else { self.results.was_written(key) }
    }

    /// So many results are held that more runs should not be taken.
    pub(super) fn is_full(&self) -> bool {
        self.results.all().bytes > self.max_bytes
    }

    /// So much waits for the stream that nothing more should be read from it: what is read makes more to say.
    pub(super) fn is_congested(&self) -> bool {
        let results = self.results.unwritten().bytes + self.results.held_back().bytes;
        self.answer_bytes + self.end_bytes + results > self.max_bytes
    }

    /// Makes room where nobody acknowledges, and says whose results went.
    pub(super) fn shed(&mut self) -> Vec<Key> {
        if !self.is_full() {
            return Vec::new();
        }
        let shed = self.results.shed(self.max_bytes);
        self.shed += shed.len() as u64;
        shed
    }

    pub(super) fn take_losses(&mut self) -> Losses {
        let losses = Losses { events: self.events.take_dropped(), results: std::mem::take(&mut self.shed) };
        self.lost.events += losses.events;
        self.lost.results += losses.results;
        losses
    }

    pub(super) fn census(&self, now: Instant) -> Census {
        let Losses { events, results } = self.lost;
        Census {
            results: self.results.all().count,
            result_bytes: self.results.all().bytes,
            unwritten: self.results.unwritten().count + self.results.held_back().count,
            oldest: self.results.oldest().map(|since| now.saturating_duration_since(since)),
            is_acknowledged: self.results.are_acknowledged(),
            events: self.events.len(),
            lost: Losses { events: events + self.events.dropped(), results: results + self.shed },
        }
    }
}
