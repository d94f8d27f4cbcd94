//! What the first bytes of an image claim, and whether that is affordable.
//!
//! The decoders do check some limits themselves, but not all, and not before they have allocated: so the
//! claims are read here first. Of PNG and GIF the decoders read the header and stop; for JPEG and WebP they do
//! more than that, or less, so those are walked through in `jpeg.rs` and `webp.rs`.
//!
//! Spec: PNG 3rd edition; GIF 89a.

use std::io::{BufRead, ErrorKind, Read, Seek, SeekFrom};

use image::{
    ImageDecoder, ImageError, ImageFormat,
    codecs::{gif::GifDecoder, png::PngDecoder},
    error::{DecodingError, ImageFormatHint},
    metadata::Orientation,
};

use super::{Limits, ThumbnailError};

mod jpeg;
mod webp;

pub(super) use jpeg::has_too_many_scans;

/// The longest side. Beyond it no format but PNG goes, and there only jokes and attacks do.
const SIDE_MAX: u32 = 65_535;

/// How much memory what stands before the pixels of a PNG may take: text, colour profile.
const PNG_METADATA_BYTES_MAX: u64 = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Png,
    Jpeg,
    Gif,
    WebP,
}

impl Kind {
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Gif => "image/gif",
            Self::WebP => "image/webp",
        }
    }

    /// Are there animations of this kind?
    pub(super) const fn may_move(self) -> bool {
        !matches!(self, Self::Jpeg)
    }

    /// Do its pixels stay exactly as they were drawn? Screenshots and drawings come in such kinds.
    pub(super) const fn is_lossless(self) -> bool {
        matches!(self, Self::Png | Self::Gif)
    }
}

/// What an image claims, found affordable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Of the upright image.
    pub(super) width: u32,
    /// Of the upright image.
    pub(super) height: u32,
    pub(super) orientation: Orientation,
}

/// What an image claims.
struct Claim {
    /// As stored.
    width: u32,
    height: u32,
    orientation: Orientation,
    /// What decoding takes in memory, beside a fixed amount.
    bytes_per_pixel: u64,
    fixed_bytes: u64,
}

impl Header {
    /// Reads the header of `source`, and leaves `source` at its start.
    pub(super) fn read<R: BufRead + Seek>(
        source: &mut R,
        limits: &Limits,
    ) -> Result<Self, ThumbnailError> {
        let kind = sniff(source)?;
        let claim = match kind {
            Kind::Png => png(source),
            Kind::Jpeg => jpeg::claim(source),
            Kind::Gif => gif(source),
            Kind::WebP => webp::claim(source),
        }?;
        source.seek(SeekFrom::Start(0))?;

        let Claim {
            width,
            height,
            orientation,
            bytes_per_pixel,
            fixed_bytes,
        } = claim;
        if width == 0 || height == 0 {
            return Err(damaged("an image has no pixels"));
        }
        let pixels = u64::from(width) * u64::from(height);
        let memory = pixels
            .saturating_mul(bytes_per_pixel)
            .saturating_add(fixed_bytes);
        if width.max(height) > SIDE_MAX
            || pixels > limits.pixels_max
            || memory > limits.memory_bytes_max
        {
            return Err(ThumbnailError::TooLarge { width, height });
        }
        let (width, height) = if turns(orientation) {
            (height, width)
        } else {
            (width, height)
        };
        Ok(Self {
            kind,
            width,
            height,
            orientation,
        })
    }
}

/// Does an upright image have the width of the stored one as its height?
pub(super) const fn turns(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// Limits for the decoders: what is left to them after [`Header::read`].
pub(super) fn decoder_limits(limits: &Limits) -> image::Limits {
    let mut decoder_limits = image::Limits::default();
    decoder_limits.max_image_width = Some(SIDE_MAX);
    decoder_limits.max_image_height = Some(SIDE_MAX);
    decoder_limits.max_alloc = Some(limits.memory_bytes_max);
    decoder_limits
}

/// Limits for the decoder of PNG, which counts against them only what is not pixels.
pub(super) fn png_limits() -> image::Limits {
    let mut png_limits = image::Limits::default();
    png_limits.max_image_width = Some(u32::MAX);
    png_limits.max_image_height = Some(u32::MAX);
    png_limits.max_alloc = Some(PNG_METADATA_BYTES_MAX);
    png_limits
}

fn sniff<R: BufRead + Seek>(source: &mut R) -> Result<Kind, ThumbnailError> {
    source.seek(SeekFrom::Start(0))?;
    let mut start = [0; 16];
    if let Err(error) = source.read_exact(&mut start) {
        return Err(match error.kind() {
            ErrorKind::UnexpectedEof => ThumbnailError::NotAnImage,
            _ => error.into(),
        });
    }
    source.seek(SeekFrom::Start(0))?;
    match image::guess_format(&start) {
        Ok(ImageFormat::Png) => Ok(Kind::Png),
        Ok(ImageFormat::Jpeg) => Ok(Kind::Jpeg),
        Ok(ImageFormat::Gif) => Ok(Kind::Gif),
        Ok(ImageFormat::WebP) => Ok(Kind::WebP),
        _ => Err(ThumbnailError::NotAnImage),
    }
}

fn png<R: BufRead + Seek>(source: &mut R) -> Result<Claim, ThumbnailError> {
    let mut decoder = PngDecoder::with_limits(source, png_limits())?;
    let (width, height) = decoder.dimensions();
    Ok(Claim {
        width,
        height,
        orientation: decoder.orientation()?,
        bytes_per_pixel: u64::from(decoder.color_type().bytes_per_pixel()),
        fixed_bytes: PNG_METADATA_BYTES_MAX,
    })
}

fn gif<R: BufRead + Seek>(source: &mut R) -> Result<Claim, ThumbnailError> {
    let (width, height) = GifDecoder::new(source)?.dimensions();
    Ok(Claim {
        width,
        height,
        orientation: Orientation::NoTransforms,
        // The canvas and a frame, both in RGBA. Larger frames are refused by the decoder.
        bytes_per_pixel: 8,
        fixed_bytes: 0,
    })
}

/// Moves to `position`; if that is near, without giving up what is buffered.
fn skip_to<R: BufRead + Seek>(source: &mut R, position: u64) -> Result<(), ThumbnailError> {
    let here = source.stream_position()?;
    let distance = i64::try_from(position).unwrap_or(i64::MAX) - i64::try_from(here).unwrap_or(0);
    Ok(source.seek_relative(distance)?)
}

fn read<const N: usize, R: Read>(source: &mut R) -> Result<[u8; N], ThumbnailError> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn damaged(what: &'static str) -> ThumbnailError {
    ThumbnailError::Damaged(ImageError::Decoding(DecodingError::new(
        ImageFormatHint::Unknown,
        what,
    )))
}
