//! Small images out of large ones, without trusting either.
//!
//! [`thumbnail`] is a plain function that keeps a core busy for a tenth of a second to a few seconds, and
//! both it and [`inspect`] block on the disk: they are called off the runtime, a few at a time. What an image may cost is decided from its first bytes, before anything
//! is decoded ([`Limits`], `header.rs`): the kind is taken from the bytes, never from the declared type.
//!
//! Sizes come from a short list ([`Size`]), so that a file has a bounded number of thumbnails, whatever
//! clients ask for. No image is ever enlarged; one that already fits is served as it is.
//!
//! It does not thumbnail videos, SVG, AVIF or HEIC, and keeps nothing: where thumbnails are stored is the
//! caller's business. A decoder that panics after all must be caught by whoever runs these functions.
//!
//! Spec: client-server API, "Content repository", "Thumbnails" and "Security considerations".

use std::io::{BufRead, Seek};

use image::ImageError;

mod animation;
mod header;
mod pixels;
mod size;

#[cfg(test)]
mod tests;

use header::Header;
use pixels::Still;
pub use size::{Method, Size};

/// What decoding an image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The number of pixels an image may have.
    pub pixels_max: u64,
    /// The memory, in bytes, that decoding may take at its peak, as far as it can be foreseen: the decoded
    /// image and the decoder's own copy of it. Making the small image takes little beside that.
    pub memory_bytes_max: u64,
    /// The number of frames of a moving thumbnail. What has more stands still, and so with the next two.
    pub frames_max: u32,
    /// The number of pixels that are decoded for a moving thumbnail, over all frames.
    pub decoded_pixels_max: u64,
    /// The number of pixels of a moving thumbnail, over all frames. Choosing 256 colours for each frame is
    /// what costs most.
    pub written_pixels_max: u64,
}

impl Default for Limits {
    /// 50 million pixels, which the cameras of telephones reach, and 256 MiB; what moves, moves for 500
    /// frames at most.
    fn default() -> Self {
        Self {
            pixels_max: 50_000_000,
            memory_bytes_max: 256 << 20,
            frames_max: 500,
            decoded_pixels_max: 30_000_000,
            written_pixels_max: 8_000_000,
        }
    }
}

/// What to serve as the thumbnail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thumbnail {
    /// The image is no larger than what was asked for: its own bytes, under this type.
    Original {
        /// The type its bytes show.
        content_type: &'static str,
    },
    /// A new, smaller image.
    Made(Made),
}

/// An image that was made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// `image/png`, `image/jpeg` or, if it moves, `image/gif`: all three may be served inline.
    pub content_type: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

/// What an image says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The type its bytes show.
    pub content_type: &'static str,
    /// In pixels, turned upright.
    pub width: u32,
    /// In pixels, turned upright.
    pub height: u32,
}

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
pub enum ThumbnailError {
    /// It is no PNG, JPEG, GIF or WebP.
    #[error("the content is not an image that can be made smaller")]
    NotAnImage,
    /// It would cost too much. Nothing was decoded.
    #[error("the image has {width}×{height} pixels, which is too large to make smaller")]
    TooLarge {
        /// In pixels, as the header claims.
        width: u32,
        /// In pixels, as the header claims.
        height: u32,
    },
    /// It begins like an image and does not go on like one.
    #[error("the image is damaged")]
    Damaged(#[source] ImageError),
}

impl From<ImageError> for ThumbnailError {
    fn from(error: ImageError) -> Self {
        Self::Damaged(error)
    }
}

impl From<std::io::Error> for ThumbnailError {
    fn from(error: std::io::Error) -> Self {
        Self::Damaged(ImageError::IoError(error))
    }
}

/// Makes the thumbnail of `source` that [`Size`] says.
///
/// `animated`: a moving image is wanted, if `source` moves and is small enough to be worth it. Otherwise
/// the thumbnail stands still.
///
/// # Errors
/// See [`ThumbnailError`]: 400 `M_UNKNOWN`, except for [`TooLarge`](ThumbnailError::TooLarge), which is
/// 413 `M_TOO_LARGE`, or 502 if the media is remote.
pub fn thumbnail<R: BufRead + Seek>(
    mut source: R,
    size: Size,
    animated: bool,
    limits: &Limits,
) -> Result<Thumbnail, ThumbnailError> {
    let header = Header::read(&mut source, limits)?;
    let fit = size.fit(header.width, header.height);
    let moves = header.kind.may_move() && animation::moves(&mut source, &header, limits)?;
    if fit.is_whole() && (animated || !moves) {
        return Ok(Thumbnail::Original {
            content_type: header.kind.content_type(),
        });
    }
    if animated
        && moves
        && let Some(made) = animation::shrink(&mut source, &header, &fit, limits)?
    {
        return Ok(Thumbnail::Made(made));
    }
    let still = Still::decode(&mut source, &header, limits)?;
    Ok(Thumbnail::Made(still.shrink(&fit).encode(header.kind)?))
}

/// What `source` says about itself. Nothing is decoded.
///
/// # Errors
/// See [`ThumbnailError`].
pub fn inspect<R: BufRead + Seek>(mut source: R, limits: &Limits) -> Result<Info, ThumbnailError> {
    let header = Header::read(&mut source, limits)?;
    Ok(Info {
        content_type: header.kind.content_type(),
        width: header.width,
        height: header.height,
    })
}
