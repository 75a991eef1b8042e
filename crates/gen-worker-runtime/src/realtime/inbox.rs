//! What came in and was not taken yet, counted in bytes.

use std::{collections::VecDeque, task::Poll};

use gen_worker_core::Frame;

/// What keeping a frame costs beside its bytes, so that empty frames are bounded too.
const FRAME_BYTES: usize = 64;

/// The frames of one session that its handler has not taken yet.
pub(super) struct Inbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    max_bytes: usize,
    finished: bool,
}

impl Inbox {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, max_bytes, finished: false }
    }

    /// Takes a frame; `false`: there is no room. A frame alone always has room. After the end nothing is taken.
    pub(super) fn push(&mut self, frame: Frame) -> bool {
        let cost = cost(&frame);
        if !self.finished {
            if !self.frames.is_empty() && self.bytes.saturating_add(cost) > self.max_bytes {
                return false;
            }
            self.bytes += cost;
            self.frames.push_back(frame);
        }
        true
    }

    /// The oldest frame; after the last one, the end.
    pub(super) fn pop(&mut self) -> Poll<Option<Frame>> {
        match self.frames.pop_front() {
            Some(frame) => {
                self.bytes -= cost(&frame);
                Poll::Ready(Some(frame))
            }
            None if self.finished => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Whether what comes now is nobody's.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Nothing comes after what is there.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// Nobody listens any more.
    pub(super) fn close(&mut self) {
        *self = Self { finished: true, ..Self::new(self.max_bytes) };
    }
}

fn cost(frame: &Frame) -> usize {
    FRAME_BYTES
        + match frame {
            Frame::Binary(data) => data.len(),
            Frame::Text(text) => text.len(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame::Binary(vec![0; bytes].into())
    }

    #[test]
    fn every_buffer_is_bounded() {
        let mut inbox = Inbox::new(1000);
        assert!(inbox.push(frame(5000)), "a frame alone always has room");
        assert!(!inbox.push(frame(0)));
        assert_eq!(inbox.pop(), Poll::Ready(Some(frame(5000))));
        let taken = (0..100).take_while(|_| inbox.push(frame(0))).count();
        assert_eq!(taken, 1000 / FRAME_BYTES, "empty frames count too");
        while inbox.pop().is_ready() {}
        assert!(inbox.push(frame(0)), "what was taken is room again");
    }

    #[test]
    fn the_end_comes_after_what_came_before_it() {
        let mut inbox = Inbox::new(1000);
        assert_eq!(inbox.pop(), Poll::Pending);
        inbox.push(frame(1));
        inbox.finish();
        assert!(inbox.push(frame(2)), "what comes after the end is nobody's");
        assert_eq!(inbox.pop(), Poll::Ready(Some(frame(1))));
        assert_eq!(inbox.pop(), Poll::Ready(None));
    }
}
