//! Pictures as files.

use std::io::Cursor;

use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, RgbaImage,
    imageops::{self, FilterType},
};
use ndarray::Array4;

use crate::enlarge::{EnlargeError, enlarge};

/// Columns and rows of the largest picture that is taken; enlarged it has 64 million pixels, 192 MiB.
const MAX_SIDE: u32 = 4096;
/// Memory that the decoder may use: enough for that picture with 16 bits a channel.
const MAX_DECODER_BYTES: u64 = 192 << 20;

/// A picture in memory: colours, and opacity if the file has any.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The colours.
    pub colours: RgbImage,
    /// How opaque each pixel is; `None`: all are.
    pub alpha: Option<GrayImage>,
}

/// Why a file is no picture, or a picture no file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// The file is damaged, too large, or of another format.
    #[error("image cannot be decoded: {reason}")]
    Decode {
        /// What the decoder says of it.
        reason: ImageError,
    },
    /// It cannot be written.
    #[error("image cannot be encoded")]
    Encode {
        /// What the encoder says.
        source: ImageError,
    },
}

impl From<ImageError> for PictureError {
    fn from(reason: ImageError) -> Self {
        Self::Decode { reason }
    }
}

impl Picture {
    /// Reads a PNG or JPEG file, turned as its camera was held. More than 8 bits a channel are rounded.
    ///
    /// # Errors
    /// The file is damaged, of another format, or has more than 4096 columns or rows.
    pub fn decode(file: &[u8]) -> Result<Self, PictureError> {
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        let mut reader =
            ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(ImageError::IoError)?;
        reader.limits(limits);
        let mut decoder = reader.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(Self::from(image))
    }

    /// Writes a PNG file.
    ///
    /// # Errors
    /// The encoder fails.
    pub fn encode(self) -> Result<Vec<u8>, PictureError> {
        let mut file = Cursor::new(Vec::new());
        let written = DynamicImage::from(self).write_to(&mut file, ImageFormat::Png);
        written.map_err(|source| PictureError::Encode { source })?;
        Ok(file.into_inner())
    }

    /// Enlarges the picture to twice its size: its colours with [`enlarge`], its opacity, which the network was not
    /// trained on, with a Lanczos filter.
    ///
    /// # Errors
    /// As `enlarge`.
    ///
    /// # Panics
    /// `side` is 0.
    pub fn enlarge<E: Send>(
        &self,
        side: u32,
        at_once: usize,
        network: impl Fn(Array4<f32>) -> Result<Array4<f32>, E> + Sync,
        progress: impl FnMut(usize, usize),
    ) -> Result<Self, EnlargeError<E>> {
        let colours = enlarge(&self.colours, side, at_once, network, progress)?;
        let (width, height) = colours.dimensions();
        let alpha =
            self.alpha.as_ref().map(|alpha| imageops::resize(alpha, width, height, FilterType::Lanczos3));
        Ok(Self { colours, alpha })
    }
}

impl From<DynamicImage> for Picture {
    fn from(image: DynamicImage) -> Self {
        if !image.color().has_alpha() {
            return Self { colours: image.into_rgb8(), alpha: None };
        }
        let rgba = image.into_rgba8();
        let (width, height) = rgba.dimensions();
        let alpha = GrayImage::from_fn(width, height, |x, y| [rgba.get_pixel(x, y)[3]].into());
        Self { colours: DynamicImage::from(rgba).into_rgb8(), alpha: Some(alpha) }
    }
}

impl From<Picture> for DynamicImage {
    fn from(picture: Picture) -> Self {
        let Some(alpha) = picture.alpha else {
            return picture.colours.into();
        };
        let (width, height) = picture.colours.dimensions();
        let pixel = |x, y| {
            let [red, green, blue] = picture.colours.get_pixel(x, y).0;
            [red, green, blue, alpha.get_pixel(x, y)[0]].into()
        };
        RgbaImage::from_fn(width, height, pixel).into()
    }
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    fn with_alpha() -> Picture {
        let image = RgbaImage::from_fn(12, 9, |x, y| Rgba([x as u8, y as u8, 9, (20 * x) as u8]));
        DynamicImage::from(image).into()
    }

    fn grey(input: Array4<f32>) -> Result<Array4<f32>, ()> {
        let (_, _, height, width) = input.dim();
        Ok(Array4::from_elem((1, 3, 2 * (height - 14), 2 * (width - 14)), 0.5))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let picture = with_alpha();
        assert_eq!(Picture::decode(&picture.clone().encode().unwrap()).unwrap(), picture);
    }

    #[test]
    fn opacity_grows_with_the_colours() {
        let enlarged = with_alpha().enlarge(16, 1, grey, |_, _| ()).unwrap();
        let alpha = enlarged.alpha.unwrap();
        assert_eq!(alpha.dimensions(), (24, 18));
        assert_eq!(alpha.get_pixel(0, 5)[0], 0);
        assert!(alpha.get_pixel(23, 5)[0].abs_diff(220) < 8);
        assert_eq!(enlarged.colours.get_pixel(3, 3).0, [128; 3]);
    }

    #[test]
    fn damaged_and_strange_files_are_refused() {
        let whole = with_alpha().encode().unwrap();
        for file in [&whole[..40], &whole[..whole.len() / 2], b"GIF89a", b""] {
            let error = Picture::decode(file).unwrap_err().to_string();
            assert!(error.starts_with("image cannot be decoded: "), "{error}");
        }
    }

    #[test]
    fn a_picture_beyond_the_limit_is_refused() {
        let tall = Picture { colours: RgbImage::new(1, MAX_SIDE + 1), alpha: None }.encode().unwrap();
        let error = Picture::decode(&tall).unwrap_err().to_string();
        assert!(error.contains("limit"), "{error}");
    }
}
