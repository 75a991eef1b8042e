//! How far a download is: for those who wait for it, and as a bar on stderr.

use std::sync::OnceLock;

use gen_worker_core::LocalModel;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::error::SharedError;

/// What those who wait for a model see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Bytes present, and bytes expected if that is known. `None`: no transfer was needed yet.
    pub(crate) bytes: Option<(u64, Option<u64>)>,
    /// How it ended.
    pub(crate) outcome: Option<Result<LocalModel, SharedError>>,
}

/// Tells of one download.
#[derive(Debug)]
pub(crate) struct Reporter {
    sender: watch::Sender<Progress>,
    bars: Option<MultiProgress>,
    name: String,
    bar: OnceLock<ProgressBar>,
}

impl Reporter {
    pub(crate) fn new(sender: watch::Sender<Progress>, bars: Option<MultiProgress>, name: String) -> Self {
        Self { sender, bars, name, bar: OnceLock::new() }
    }

    /// This many bytes are present of this many.
    pub(crate) fn bytes(&self, done: u64, total: Option<u64>) {
        self.sender.send_modify(|progress| progress.bytes = Some((done, total)));
        if let Some(bars) = &self.bars {
            let bar = self.bar.get_or_init(|| bar(bars, &self.name));
            bar.set_length(total.unwrap_or(done));
            bar.set_position(done);
        }
    }

    /// It ended so.
    pub(crate) fn end(self, outcome: Result<LocalModel, SharedError>) {
        self.sender.send_modify(|progress| progress.outcome = Some(outcome));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let (Some(bars), Some(bar)) = (&self.bars, self.bar.get()) {
            bar.finish();
            bars.remove(bar);
        }
    }
}

fn bar(bars: &MultiProgress, name: &str) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is constant");
    bars.add(ProgressBar::new(0).with_style(style).with_message(name.to_owned()))
}
