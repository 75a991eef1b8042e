//! A picture taken through the network, tile by tile.

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

/// Enlarges a picture to twice its size, in tiles of `side` columns and rows. `network` makes `[1, 3, 2h, 2w]` of
/// `[1, 3, h + 14, w + 14]`; `progress` is told how many tiles are done, of how many.
///
/// # Errors
/// The network fails, or does not double.
///
/// # Panics
/// `side` is 0.
pub fn enlarge<E>(
    picture: &RgbImage,
    side: u32,
    mut network: impl FnMut(Array4<f32>) -> Result<Array4<f32>, E>,
    mut progress: impl FnMut(usize, usize),
) -> Result<RgbImage, EnlargeError<E>> {
    let (width, height) = picture.dimensions();
    let tiles = Tile::cover(width, height, side);
    let mut enlarged = RgbImage::new(2 * width, 2 * height);
    for (index, tile) in tiles.iter().enumerate() {
        let output = network(tile.cut(picture)).map_err(EnlargeError::Network)?;
        let expected = tile.enlarged_shape();
        if output.shape() != expected {
            return Err(EnlargeError::Shape { expected, given: output.shape().to_vec() });
        }
        tile.paste(output.view(), &mut enlarged);
        progress(index + 1, tiles.len());
    }
    Ok(enlarged)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

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
            let enlarged = enlarge(&picture, side, repeat, |done, of| told.push((done, of))).unwrap();
            assert!(enlarged == expected, "{width} x {height} by {side}");
            let total = told.len();
            assert_eq!(told, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn stops_when_the_network_does() {
        let mut calls = 0;
        let network = |input| {
            calls += 1;
            if calls < 3 { Ok(repeat(input).unwrap()) } else { Err("stop") }
        };
        let error = enlarge(&RgbImage::new(64, 64), 16, network, |_, _| ()).unwrap_err();
        assert!(matches!(error, EnlargeError::Network("stop")));
        assert_eq!(calls, 3);
    }

    #[test]
    fn a_network_that_does_not_double_is_refused() {
        let error = enlarge(&RgbImage::new(16, 16), 16, Ok::<_, Infallible>, |_, _| ()).unwrap_err();
        assert_eq!(error.to_string(), "the network makes [1, 3, 30, 30] of a tile instead of [1, 3, 32, 32]");
    }
}
