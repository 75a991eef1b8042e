//! Downloads under way: one for each model, however many wait for it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use gen_worker_core::{
    Download, DownloadState, Event, LocalModel, ModelRef,
    ports::{EventSink, ModelDownload},
};
use tokio::{sync::watch, time::timeout};

use crate::{
    error::{HubError, SharedError},
    progress::{Progress, Transfer},
};

/// Least time between two events about one download: at most four a second.
const EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// The downloads under way by canonical reference.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<String, watch::Receiver<Progress>>>);

impl Flights {
    /// Joins the download of this model. If there is none, `start` is given the place to report to.
    pub(crate) fn join(
        &self,
        model: &ModelRef,
        start: impl FnOnce(watch::Sender<Progress>),
    ) -> watch::Receiver<Progress> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(model.canonical()) {
            return flight.clone();
        }
        let (sender, flight) = watch::channel(Progress::default());
        flights.insert(model.canonical().to_owned(), flight.clone());
        start(sender);
        flight
    }

    /// The downloads under way.
    pub(crate) fn list(&self) -> Vec<ModelDownload> {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = |(model, flight): (&String, &watch::Receiver<Progress>)| {
            let transfer = flight.borrow().transfer.unwrap_or_default();
            ModelDownload { model: model.clone(), bytes_done: transfer.done, bytes_total: transfer.total }
        };
        flights.iter().map(listed).collect()
    }

    /// Forgets the download of this model: whoever asks next starts another.
    pub(crate) fn land(&self, model: &ModelRef) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.remove(model.canonical());
    }
}

/// Waits for a download and says on `events` how far it is, under the name by which `model` was asked for.
pub(crate) async fn follow(
    mut flight: watch::Receiver<Progress>,
    model: &ModelRef,
    events: &dyn EventSink,
) -> Result<LocalModel, SharedError> {
    let say = |state, transfer: Transfer| {
        let Transfer { done, total, rate, source } = transfer;
        let download = Download { done, total, rate, eta_seconds: transfer.eta_seconds(), source };
        events.emit(Event::model_download(model.known_as(), state, download));
    };
    loop {
        let progress = flight.borrow_and_update().clone();
        let transferred = progress.transfer.unwrap_or_default();
        match progress.outcome {
            Some(Ok(local)) => {
                let state = match progress.transfer {
                    Some(_) => DownloadState::Completed,
                    None => DownloadState::AlreadyPresent,
                };
                let (done, total) = (local.size_bytes, Some(local.size_bytes));
                say(state, Transfer { done, total, ..transferred });
                return Ok(LocalModel { model: model.clone(), ..local });
            }
            Some(Err(error)) => {
                say(DownloadState::Failed, transferred);
                return Err(error);
            }
            None => {}
        }
        if let Some(transfer) = progress.transfer {
            say(DownloadState::Downloading, transfer);
        }
        if pause(&mut flight).await.is_err() && flight.borrow().outcome.is_none() {
            say(DownloadState::Failed, transferred);
            return Err(SharedError::from(HubError::GivenUp { model: model.to_string() }));
        }
    }
}

/// Waits until there is something to say and it is time to say it, or the download has ended.
async fn pause(flight: &mut watch::Receiver<Progress>) -> Result<(), watch::error::RecvError> {
    let ended = flight.wait_for(|progress| progress.outcome.is_some());
    let ended = timeout(EVENT_INTERVAL, ended).await.map(|ended| ended.map(drop));
    match ended {
        Ok(ended) => ended,
        Err(_) => flight.changed().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gen_worker_core::testing::RecordedEvents;

    use super::*;

    fn model() -> ModelRef {
        ModelRef::parse("org/repo").unwrap()
    }

    fn states(events: &RecordedEvents) -> Vec<String> {
        let payloads = events.payloads("model.download");
        payloads.iter().map(|payload| payload["state"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_download_is_told_of_four_times_a_second() {
        let (sender, flight) = watch::channel(Progress::default());
        let events = RecordedEvents::default();
        let model = model();
        let download = async move {
            for done in 0..200 {
                let transfer = Transfer { done, total: Some(200), rate: None, source: "cozy" };
                sender.send_modify(|progress| progress.transfer = Some(transfer));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let local = LocalModel {
                model: ModelRef::parse("cozy:org/repo").unwrap(),
                root: "/m".into(),
                files: BTreeMap::new(),
                size_bytes: 200,
                pin: None,
            };
            sender.send_modify(|progress| progress.outcome = Some(Ok(local)));
        };
        let (followed, ()) = tokio::join!(follow(flight, &model, &events), download);
        assert_eq!(followed.unwrap().model.as_str(), "org/repo");
        let states = states(&events);
        assert_eq!(states.last().unwrap(), "completed");
        assert!((7..=10).contains(&states.len()), "{states:?}");
        assert_eq!(states.iter().filter(|state| *state != "downloading").count(), 1);
    }

    #[tokio::test]
    async fn a_download_that_dies_fails() {
        let (sender, flight) = watch::channel(Progress::default());
        drop(sender);
        let events = RecordedEvents::default();
        assert!(follow(flight, &model(), &events).await.is_err());
        assert_eq!(states(&events), ["failed"]);
    }
}
