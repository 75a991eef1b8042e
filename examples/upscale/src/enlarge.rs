//! A picture taken through the network, tile by tile.

use std::{iter, panic::resume_unwind, thread};

use image::RgbImage;
use ndarray::Array4;

use crate::tiles::Tile;

/// Why a picture was not enlarged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnlargeError<E> {
    /// The network failed, or was told to stop.
    #[error("the network did not run")]
    Network(E),
    /// The network makes something else of a tile than twice its size.
    #[error("the network makes {given:?} of a tile instead of {expected:?}")]
    Shape {
        /// Twice the size of the tile.
        expected: [usize; 4],
        /// What it made.
        given: Vec<usize>,
    },
}

/// Enlarges a picture to twice its size, in tiles of `side` columns and rows, so many of them `at_once`, each on a thread; 0 is
/// one. `network` makes `[1, 3, 2h, 2w]` of `[1, 3, h + 14, w + 14]`; `progress` is told how many tiles are done, of how many.
///
/// # Errors
/// The network fails, or does not double.
///
/// # Panics
/// `side` is 0.
pub fn enlarge<E: Send>(
    picture: &RgbImage,
    side: u32,
    at_once: usize,
    network: impl Fn(Array4<f32>) -> Result<Array4<f32>, E> + Sync,
    mut progress: impl FnMut(usize, usize),
) -> Result<RgbImage, EnlargeError<E>> {
    let (width, height) = picture.dimensions();
    let tiles = Tile::cover(width, height, side);
    let mut enlarged = RgbImage::new(2 * width, 2 * height);
    let mut done = 0;
    for group in tiles.chunks(at_once.max(1)) {
        let outputs = together(group, |tile| network(tile.cut(picture))).map_err(EnlargeError::Network)?;
        for (tile, output) in group.iter().zip(outputs) {
            let expected = tile.enlarged_shape();
            if output.shape() != expected {
                return Err(EnlargeError::Shape { expected, given: output.shape().to_vec() });
            }
            tile.paste(output.view(), &mut enlarged);
            done += 1;
            progress(done, tiles.len());
        }
    }
    Ok(enlarged)
}

/// Each tile on a thread, the first on this one.
fn together<T: Send, E: Send>(
    tiles: &[Tile],
    network: impl Fn(&Tile) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let Some((first, others)) = tiles.split_first() else { return Ok(Vec::new()) };
    thread::scope(|scope| {
        let network = &network;
        let threads: Vec<_> = others.iter().map(|tile| scope.spawn(move || network(tile))).collect();
        let others =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        iter::once(network(first)).chain(others).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Condvar, Mutex,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use image::Rgb;

    use super::*;

    /// A network that repeats each pixel.
    fn repeat(input: Array4<f32>) -> Result<Array4<f32>, Infallible> {
        let (_, _, height, width) = input.dim();
        let shape = (1, 3, 2 * (height - 14), 2 * (width - 14));
        Ok(Array4::from_shape_fn(shape, |(_, channel, y, x)| input[[0, channel, 7 + y / 2, 7 + x / 2]]))
    }

    #[test]
    fn tiles_that_are_not_changed_make_the_same_picture() {
        let colour = |x: u32, y: u32| Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]);
        for (width, height, side) in [(1, 1, 16), (40, 30, 16), (33, 65, 32), (20, 20, 1024)] {
            let picture = RgbImage::from_fn(width, height, colour);
            let expected = RgbImage::from_fn(2 * width, 2 * height, |x, y| colour(x / 2, y / 2));
            let mut told = Vec::new();
            for at_once in 0..4 {
                told.clear();
                let enlarged =
                    enlarge(&picture, side, at_once, repeat, |done, of| told.push((done, of))).unwrap();
                assert!(enlarged == expected, "{width} x {height} by {side}, {at_once} at once");
                let total = told.len();
                assert_eq!(told, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn stops_when_the_network_does() {
        let calls = AtomicU32::new(0);
        let network = |input| {
            let is_early = calls.fetch_add(1, Ordering::Relaxed) < 2;
            if is_early { Ok(repeat(input).unwrap()) } else { Err("stop") }
        };
        let error = enlarge(&RgbImage::new(64, 64), 16, 1, network, |_, _| ()).unwrap_err();
        assert!(matches!(error, EnlargeError::Network("stop")));
        assert_eq!(calls.into_inner(), 3);
    }

    #[test]
    fn so_many_tiles_as_are_asked_for_are_at_the_network_at_once() {
        let (inside, met) = (Mutex::new(0), Condvar::new());
        let network = |input| {
            let mut inside = inside.lock().unwrap();
            *inside += 1;
            met.notify_all();
            let limit = Duration::from_secs(60);
            let (inside, _) = met.wait_timeout_while(inside, limit, |inside| *inside % 2 == 1).unwrap();
            assert_eq!(*inside % 2, 0, "the other came");
            repeat(input)
        };
        enlarge(&RgbImage::new(32, 16), 16, 2, network, |_, _| ()).unwrap();
    }

    #[test]
    fn a_network_that_does_not_double_is_refused() {
        let error = enlarge(&RgbImage::new(16, 16), 16, 1, Ok::<_, Infallible>, |_, _| ()).unwrap_err();
        assert_eq!(error.to_string(), "the network makes [1, 3, 30, 30] of a tile instead of [1, 3, 32, 32]");
    }
}
