//! What is known of a panic: the process's hook sees where it happened, and whoever catches it sees for which run.

use std::{any::Any, cell::RefCell};

use gen_worker_core::{Classify, FailureKind, hide_secrets};
use serde::Serialize;

use super::clipped;

/// Longest message and longest backtrace that are kept, in bytes.
const MAX_TEXT: usize = 4 << 10;

/// Where a panic happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PanicNote {
    /// What it said.
    pub message: String,
    /// File, line and column; `None`: not known.
    pub location: Option<String>,
    /// The frames that led there, the innermost first; empty: not known.
    pub frames: Vec<String>,
}

thread_local! {
    /// Of the last panic of this thread, until it is caught.
    static LAST: RefCell<Option<PanicNote>> = const { RefCell::new(None) };
}

/// Tells the run that is panicking on this thread where. For a process's panic hook.
pub fn note_panic(note: PanicNote) {
    LAST.with_borrow_mut(|last| *last = Some(note));
}

/// User code panicked.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.shown())]
pub(crate) struct Panicked(PanicNote);

impl Panicked {
    /// From what was caught on the thread that panicked.
    pub(crate) fn caught(payload: &(dyn Any + Send)) -> Self {
        let said = payload.downcast_ref::<String>().map(String::as_str);
        let message = said.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let noted = LAST.take().unwrap_or_default();
        Self(PanicNote { message: message.to_owned(), ..noted })
    }

    /// The note within its bounds, without secrets.
    pub(super) fn note(&self) -> PanicNote {
        let PanicNote { message, location, frames } = &self.0;
        let mut room = MAX_TEXT;
        let fits = |frame: &&String| {
            room = room.saturating_sub(frame.len());
            room > 0
        };
        PanicNote {
            message: clipped(hide_secrets(message).into_owned(), MAX_TEXT),
            location: location.clone(),
            frames: frames.iter().take_while(fits).cloned().collect(),
        }
    }

    fn shown(&self) -> String {
        let PanicNote { message, location, .. } = &self.0;
        match location {
            Some(location) => format!("{message}, at {location}"),
            None => message.clone(),
        }
    }
}

impl Classify for Panicked {
    fn kind(&self) -> FailureKind {
        FailureKind::Internal
    }

    /// What it said was not written for callers.
    fn safe_message(&self) -> String {
        "internal error".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_the_panic_that_was_caught_and_is_bounded() {
        let frames = vec!["f".repeat(1000); 9];
        note_panic(PanicNote {
            message: "as the hook sees it".into(),
            location: Some("a.rs:1:2".into()),
            frames,
        });
        let caught = Panicked::caught(&"token=hunter2".to_owned());
        assert_eq!(caught.to_string(), "token=hunter2, at a.rs:1:2");
        let note = caught.note();
        assert_eq!((note.message.as_str(), note.frames.len()), ("token=<redacted>", 4));
        // Without a hook only its message is known.
        assert_eq!(
            Panicked::caught(&"again").note(),
            PanicNote { message: "again".into(), ..Default::default() }
        );
    }
}
