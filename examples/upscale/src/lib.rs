//! Enlarging pictures with a network that doubles their size.
//!
//! [`Picture`] reads and writes files, [`enlarge`] takes a picture through the network tile by tile, [`Tile`] is one of
//! them. Nothing here knows the worker or how the network is run: that is a closure.

mod enlarge;
mod picture;
mod tiles;

pub use crate::{
    enlarge::{EnlargeError, enlarge},
    picture::{Picture, PictureError},
    tiles::{CONTEXT, Tile},
};
