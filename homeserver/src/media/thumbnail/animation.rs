//! Moving images: whether one moves, and making one smaller that goes on moving.
//!
//! What moves is written as GIF, from GIF and WebP. Moving PNGs are made to stand still: hardly anybody
//! sends them. The budget is counted while frames are decoded, because nobody can know beforehand how many
//! there are; an image that exceeds it stands still.
//!
//! Spec: client-server API, `GET /media/thumbnail`, `animated`.

use std::io::{BufRead, Seek, SeekFrom};

use image::{
    AnimationDecoder, DynamicImage, Frame, ImageDecoder, ImageResult,
    codecs::{
        gif::{GifDecoder, GifEncoder, Repeat},
        png::PngDecoder,
        webp::WebPDecoder,
    },
    metadata::LoopCount,
};

use super::{
    Limits, Made, ThumbnailError,
    header::{Header, Kind, decoder_limits, png_limits, turns},
    pixels,
    size::Fit,
};

/// How long a thumbnail is at most, in bytes. Beyond that, a still one serves the reader better.
const BYTES_MAX: usize = 4 << 20;

/// How little care is taken in choosing the colours of a frame, from 1 to 30.
const COLOR_CHOICE_SPEED: i32 = 20;

/// Does `source` move? Leaves it at its start.
pub(super) fn moves<R: BufRead + Seek>(
    source: &mut R,
    header: &Header,
    limits: &Limits,
) -> Result<bool, ThumbnailError> {
    let moves = match header.kind {
        Kind::Png => PngDecoder::with_limits(&mut *source, png_limits())?.is_apng()?,
        Kind::Jpeg => false,
        // A second frame makes it move, even if that one is damaged: some viewers show what they can.
        Kind::Gif => {
            let mut decoder = GifDecoder::new(&mut *source)?;
            decoder.set_limits(decoder_limits(limits))?;
            decoder.into_frames().nth(1).is_some()
        }
        Kind::WebP => WebPDecoder::new(&mut *source)?.has_animation(),
    };
    source.seek(SeekFrom::Start(0))?;
    Ok(moves)
}

/// Makes `source`, which moves, smaller. `None`, with `source` at its start, if it is not worth it: too
/// long, too large, damaged, or of a kind that is not written.
pub(super) fn shrink<R: BufRead + Seek>(
    source: &mut R,
    header: &Header,
    fit: &Fit,
    limits: &Limits,
) -> Result<Option<Made>, ThumbnailError> {
    let made = match header.kind {
        Kind::Png | Kind::Jpeg => None,
        Kind::Gif => {
            let mut decoder = GifDecoder::new(&mut *source)?;
            decoder.set_limits(decoder_limits(limits))?;
            frames(decoder, header, fit, limits).unwrap_or_default()
        }
        Kind::WebP => {
            frames(WebPDecoder::new(&mut *source)?, header, fit, limits).unwrap_or_default()
        }
    };
    source.seek(SeekFrom::Start(0))?;
    Ok(made)
}

/// Makes every frame smaller. `Ok(None)` if the budget is exceeded.
fn frames<'a>(
    decoder: impl AnimationDecoder<'a>,
    header: &Header,
    fit: &Fit,
    limits: &Limits,
) -> ImageResult<Option<Made>> {
    let pixels = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
    let frames_max = (limits.decoded_pixels_max / pixels(fit.source))
        .min(limits.written_pixels_max / pixels(fit.cut))
        .min(u64::from(limits.frames_max));
    let lying = if turns(header.orientation) {
        fit.turned()
    } else {
        *fit
    };

    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, COLOR_CHOICE_SPEED);
    encoder.set_repeat(match decoder.loop_count() {
        LoopCount::Infinite => Repeat::Infinite,
        LoopCount::Finite(times) => {
            u16::try_from(times.get()).map_or(Repeat::Infinite, Repeat::Finite)
        }
    })?;
    let mut written = 0;
    for frame in decoder.into_frames() {
        let frame = frame?;
        written += 1;
        if written > frames_max {
            return Ok(None);
        }
        let delay = frame.delay();
        let mut small = pixels::shrink(DynamicImage::ImageRgba8(frame.into_buffer()), &lying);
        small.apply_orientation(header.orientation);
        encoder.encode_frame(Frame::from_parts(small.into_rgba8(), 0, 0, delay))?;
    }
    drop(encoder);
    let (width, height) = fit.cut;
    let made = Made {
        content_type: "image/gif",
        bytes,
        width,
        height,
    };
    Ok((written > 1 && made.bytes.len() <= BYTES_MAX).then_some(made))
}
