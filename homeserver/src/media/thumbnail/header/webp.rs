//! Walking through a WebP file.
//!
//! The decoder believes every length in the container, and allocates for it; and it decodes the pictures
//! inside before it compares their sizes with the canvas. Here both are compared first.
//!
//! Spec: RFC 9649; RFC 6386 (VP8).

use std::io::{BufRead, Read, Seek, SeekFrom};

use image::metadata::Orientation;

use super::{Claim, ThumbnailError, damaged, read, skip_to};

/// The number of chunks in a WebP file, frames of an animation included.
const WEBP_CHUNKS_MAX: usize = 4096;

/// The longest Exif block that is read.
const EXIF_BYTES_MAX: u64 = 65_535;

/// Walks the chunks of the container.
///
/// Spec: RFC 9649, 2.3 to 2.7.
pub(super) fn claim<R: BufRead + Seek>(source: &mut R) -> Result<Claim, ThumbnailError> {
    let file_bytes = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(12))?;
    let mut claim = Claim {
        width: 0,
        height: 0,
        orientation: Orientation::NoTransforms,
        // The decoded image and the canvas, in RGBA, and the decoder's planes or transforms.
        bytes_per_pixel: 12,
        fixed_bytes: 0,
    };
    for _ in 0..WEBP_CHUNKS_MAX {
        let Some(chunk) = Chunk::next(source, file_bytes)? else {
            return Ok(claim);
        };
        match &chunk.name {
            b"VP8X" => {
                let [_flags, _, _, _, w0, w1, w2, h0, h1, h2] = read(source)?;
                claim.width = u24([w0, w1, w2]) + 1;
                claim.height = u24([h0, h1, h2]) + 1;
            }
            b"VP8 " | b"VP8L" => {
                let (width, height) = chunk.picture_size(source)?;
                if claim.width == 0 {
                    return Ok(Claim {
                        width,
                        height,
                        ..claim
                    }); // a file without a container
                }
                if (width, height) != (claim.width, claim.height) {
                    return Err(damaged("a WebP picture and its canvas differ in size"));
                }
            }
            b"ANMF" => {
                // Where the frame lies, its size, how long it is shown; then its chunks.
                let [_, _, _, _, _, _, w0, w1, w2, h0, h1, h2, ..]: [u8; 16] = read(source)?;
                let size = (u24([w0, w1, w2]) + 1, u24([h0, h1, h2]) + 1);
                if size.0 > claim.width || size.1 > claim.height {
                    return Err(damaged("a WebP frame is larger than its canvas"));
                }
                frame(source, chunk.end, size)?;
            }
            b"EXIF" if chunk.bytes <= EXIF_BYTES_MAX => {
                let mut exif = Vec::new();
                source.by_ref().take(chunk.bytes).read_to_end(&mut exif)?;
                let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
                if let Some(found) = Orientation::from_exif_chunk(tiff) {
                    claim.orientation = found;
                }
            }
            _ => {}
        }
        if claim.width == 0 {
            return Err(damaged(
                "a WebP file begins with neither a picture nor a canvas",
            ));
        }
        skip_to(source, chunk.end)?;
    }
    Err(damaged("a WebP file has too many chunks"))
}

/// Checks the picture in a frame of an animation, which ends at `end`. The decoder does not do that if there
/// is alpha, and writes beyond the frame.
fn frame<R: BufRead + Seek>(
    source: &mut R,
    end: u64,
    size: (u32, u32),
) -> Result<(), ThumbnailError> {
    // Alpha and a picture; what else there is, the decoder does not look at.
    for _ in 0..2 {
        let Some(chunk) = Chunk::next(source, end)? else {
            return Ok(());
        };
        if matches!(&chunk.name, b"VP8 " | b"VP8L") {
            if chunk.picture_size(source)? != size {
                return Err(damaged("a WebP frame and its picture differ in size"));
            }
            return Ok(());
        }
        skip_to(source, chunk.end)?;
    }
    Ok(())
}

/// The header of a RIFF chunk.
struct Chunk {
    name: [u8; 4],
    bytes: u64,
    /// Where the next one begins.
    end: u64,
}

impl Chunk {
    /// Reads the next header, if there is room for one before `limit`. The chunk must end there, too, except
    /// for the byte that pads it.
    fn next<R: BufRead + Seek>(source: &mut R, limit: u64) -> Result<Option<Self>, ThumbnailError> {
        let start = source.stream_position()? + 8;
        if start > limit {
            return Ok(None);
        }
        let [n0, n1, n2, n3, b0, b1, b2, b3] = read(source)?;
        let bytes = u64::from(b0) | u64::from(b1) << 8 | u64::from(b2) << 16 | u64::from(b3) << 24;
        if start + bytes > limit {
            return Err(damaged("a WebP chunk is longer than its file"));
        }
        Ok(Some(Self {
            name: [n0, n1, n2, n3],
            bytes,
            end: start + bytes + bytes % 2,
        }))
    }

    /// The width and height of the picture in a `VP8 ` or `VP8L` chunk.
    ///
    /// Spec: RFC 6386, 9.1; RFC 9649, 3.4.
    fn picture_size<R: BufRead>(&self, source: &mut R) -> Result<(u32, u32), ThumbnailError> {
        if &self.name == b"VP8L" {
            let [_signature, b0, b1, b2, b3] = read(source)?;
            let bits = u24([b0, b1, b2]) | u32::from(b3) << 24;
            return Ok(((bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1));
        }
        let [_, _, _, _, _, _, w0, w1, h0, h1] = read(source)?;
        Ok((u24([w0, w1, 0]) & 0x3FFF, u24([h0, h1, 0]) & 0x3FFF))
    }
}

/// A number in RIFF's byte order, which is not the one the lints allow to be spelled shorter.
fn u24([b0, b1, b2]: [u8; 3]) -> u32 {
    u32::from(b0) | u32::from(b1) << 8 | u32::from(b2) << 16
}
