//! What is told to all orchestrators over plain subjects, and what is heard of others. It may be lost.

use std::time::Duration;

use async_nats::{HeaderMap, Subscriber, jetstream::AckKind};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::{
    JetStream,
    records::Held,
    said::{LANE, QUEUED, STARTED, Word, number},
    servers::AGAIN,
};
use crate::queue::record::Record;

impl JetStream {
    /// Says what belongs to the step that was just made.
    pub(super) fn say_of_step(&self, held: &Held, event_type: &str, payload: Bytes) {
        if let Some(number) = number(held.revision, 1) {
            self.say(&held.entry.record.run_id, Word::event(number, event_type, payload));
        }
    }

    /// Says that a run was taken, so that others ask for it.
    pub(super) fn say_queued(&self, held: &Held) {
        let Record { run_id, request, .. } = &held.entry.record;
        if let Some(number) = number(held.revision, 1) {
            let word = Word::event(number, QUEUED, Bytes::from_static(b"{}"));
            self.say_in_lane(run_id, &self.names.run(request), word);
        }
    }

    /// Says that a worker was given a run, so that others do not ask for it.
    pub(super) fn say_started(&self, run_id: &str, lane: &str, payload: Bytes) {
        if let Some(number) = self.leases.next_number(run_id) {
            self.say_in_lane(run_id, lane, Word::event(number, STARTED, payload));
        }
    }

    /// Says something of a run, and on which subject it was published.
    pub(super) fn say_in_lane(&self, run_id: &str, lane: &str, word: Word) {
        let mut headers = word.headers();
        headers.insert(LANE, lane);
        self.say_with(run_id, word, headers);
    }

    /// Says what a worker has said whose stream is here. What another has by now is said there.
    pub(super) fn say_of_lease(&self, run_id: &str, event_type: &str, payload: Bytes) {
        if let Some(number) = self.leases.next_number(run_id) {
            self.say(run_id, Word::event(number, event_type, payload));
        }
    }

    /// Tells everybody something about a run. It may be lost.
    pub(super) fn say(&self, run_id: &str, word: Word) {
        let headers = word.headers();
        self.say_with(run_id, word, headers);
    }

    fn say_with(&self, run_id: &str, word: Word, headers: HeaderMap) {
        let (subject, payload) = (self.names.said(run_id), word.payload());
        self.said.hear(run_id, word);
        self.tell(subject, headers, payload);
    }

    /// Sends without waiting for room.
    pub(super) fn tell(&self, subject: String, headers: HeaderMap, payload: Bytes) {
        let sending = self.client.publish_with_headers(subject, headers, payload);
        // The client has a queue: this waits only when it is full, and then nothing is said.
        let _ = sending.now_or_never();
    }

    pub(super) async fn keep_listening(&self) {
        loop {
            match self.client.subscribe(self.names.everything_said()).await {
                Ok(heard) => self.listen(heard).await,
                Err(error) => warn!(%error, "what is said elsewhere cannot be heard"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Hears what others say, and extends the leases of the runs that are here, until the subscription ends.
    async fn listen(&self, mut heard: Subscriber) {
        let mut extend = interval(self.grace / 3);
        extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wake = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                message = heard.next() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                _ = extend.tick() => self.extend().await,
                // Whoever waits for a run may have missed its end.
                _ = wake.tick() => self.said.wake_all(),
            }
        }
    }

    pub(super) fn hear(&self, message: async_nats::Message) {
        if message.subject.as_str() == self.names.interrupt() {
            if let Ok(interrupt) = rmp_serde::from_slice(&message.payload) {
                self.said.interrupts.put(interrupt);
            }
        } else if message.subject.as_str() == self.names.presence() {
            if let Ok(presence) = rmp_serde::from_slice(&message.payload) {
                self.said.presences.put(presence);
            }
        } else if message.subject.as_str() == self.names.adopted() {
            if let Ok((run_id, attempt)) = rmp_serde::from_slice::<(String, i64)>(&message.payload) {
                self.leases.let_go(&run_id, attempt);
            }
        } else if let Some(run_id) = self.names.run_said(message.subject.as_str()) {
            self.hear_of_run(run_id, message);
        }
    }

    fn hear_of_run(&self, run_id: String, message: async_nats::Message) {
        let lane = message.headers.as_ref().and_then(|headers| headers.get(LANE));
        let lane = lane.and_then(|subject| self.names.lane_of(subject.as_str()));
        let Some(word) = Word::read(message) else { return };
        if word.is_of_step() {
            self.records.recent.forget(&run_id);
        }
        let (begun, is_over) = (word.started(), word == Word::End);
        let is_news = self.said.hear(&run_id, word);
        match lane.filter(|_| is_news) {
            Some(lane) if begun.is_some() => self.consumers.gone(&lane),
            Some(lane) if is_over => self.freed(&lane),
            Some(lane) => {
                self.consumers.heard(&lane);
                self.changed.notify_one();
            }
            None => {}
        }
        // Another has leased it, so the lease here ended: what its worker still does is in vain.
        if let Some(attempt) = begun
            && let Some(old) = self.leases.overtaken(&run_id, attempt)
        {
            self.said.interrupts.put((run_id, old));
        }
    }

    pub(super) async fn extend(&self) {
        for ack in self.leases.acks() {
            self.acknowledge(&ack, AckKind::Progress).await;
        }
    }
}
