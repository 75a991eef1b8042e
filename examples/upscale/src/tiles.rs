//! A picture cut into tiles for the network, and put together again from what it makes of them.

use image::{Rgb, RgbImage};
use ndarray::{Array4, ArrayView4};

/// Pixels on each side that the network looks at but does not enlarge.
pub const CONTEXT: u32 = 7;

/// A part of a picture, in pixels from its top left corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// The first column.
    pub left: u32,
    /// The first row.
    pub top: u32,
    /// The number of columns.
    pub width: u32,
    /// The number of rows.
    pub height: u32,
}

impl Tile {
    /// The tiles that cover a picture, row by row, each with at most `side` columns and rows.
    ///
    /// # Panics
    /// `side` is 0.
    pub fn cover(width: u32, height: u32, side: u32) -> Vec<Self> {
        let starts = |length: u32| (0..length).step_by(side as usize);
        let row = |top: u32| {
            starts(width).map(move |left| Self {
                left,
                top,
                width: side.min(width - left),
                height: side.min(height - top),
            })
        };
        starts(height).flat_map(row).collect()
    }

    /// The tile with [`CONTEXT`] around it, as the network takes it: `[1, 3, height, width]`, 0 to 1. Beyond its border
    /// the picture repeats its edge.
    pub fn cut(&self, picture: &RgbImage) -> Array4<f32> {
        let (width, height) = (self.width + 2 * CONTEXT, self.height + 2 * CONTEXT);
        let column = |x: usize| (self.left + x as u32).saturating_sub(CONTEXT).min(picture.width() - 1);
        let row = |y: usize| (self.top + y as u32).saturating_sub(CONTEXT).min(picture.height() - 1);
        Array4::from_shape_fn((1, 3, height as usize, width as usize), |(_, channel, y, x)| {
            f32::from(picture.get_pixel(column(x), row(y))[channel]) / 255.0
        })
    }

    /// Puts the network's output for this tile, twice its size, in its place in the enlarged picture.
    ///
    /// # Panics
    /// The output does not have the shape of [`enlarged_shape`](Self::enlarged_shape).
    pub fn paste(&self, output: ArrayView4<'_, f32>, enlarged: &mut RgbImage) {
        let level = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
        for y in 0..2 * self.height {
            for x in 0..2 * self.width {
                let channel = |channel| level(output[[0, channel, y as usize, x as usize]]);
                let pixel = Rgb([channel(0), channel(1), channel(2)]);
                enlarged.put_pixel(2 * self.left + x, 2 * self.top + y, pixel);
            }
        }
    }

    /// The shape of the network's output for this tile.
    pub fn enlarged_shape(&self) -> [usize; 4] {
        [1, 3, 2 * self.height as usize, 2 * self.width as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_pixel_once() {
        for (width, height, side) in [(1, 1, 16), (16, 16, 16), (17, 33, 16), (451, 300, 64), (5, 100, 7)] {
            let mut covered = vec![0; (width * height) as usize];
            for tile in Tile::cover(width, height, side) {
                assert!(tile.width <= side && tile.height <= side);
                for y in tile.top..tile.top + tile.height {
                    for x in tile.left..tile.left + tile.width {
                        covered[(y * width + x) as usize] += 1;
                    }
                }
            }
            assert!(covered.iter().all(|count| *count == 1), "{width} x {height} by {side}");
        }
    }

    #[test]
    fn a_tile_shows_its_neighbours_and_repeats_the_border() {
        let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8, y as u8, 0]));
        let tile = Tile { left: 16, top: 0, width: 16, height: 16 };
        let cut = tile.cut(&picture);
        assert_eq!(cut.dim(), (1, 3, 30, 30));
        let red = |x: usize, y: usize| (cut[[0, 0, y, x]] * 255.0).round() as usize;
        let green = |x: usize, y: usize| (cut[[0, 1, y, x]] * 255.0).round() as usize;
        assert_eq!((red(0, 0), green(0, 0)), (9, 0));
        assert_eq!((red(7, 7), green(7, 7)), (16, 0));
        assert_eq!((red(29, 29), green(29, 29)), (38, 22));
        let corner = Tile { left: 32, top: 16, width: 8, height: 14 }.cut(&picture);
        assert_eq!((corner[[0, 0, 27, 21]] * 255.0).round(), 39.0);
    }
}
