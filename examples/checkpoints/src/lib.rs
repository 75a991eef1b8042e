//! Many checkpoints of one network, and callers who want some of them far more often than others.
//!
//! [`make`] writes the checkpoints, [`Popularity`] says which of them the next caller wants, [`send`] makes the calls, and a
//! [`Tally`] counts what this cost, from what the worker says. Nothing here is needed to serve: that is `src/main.rs`.

mod checkpoint;
mod popularity;
mod tally;
mod traffic;

pub use crate::{
    checkpoint::{make, reference},
    popularity::Popularity,
    tally::Tally,
    traffic::{Served, TrafficError, send},
};
