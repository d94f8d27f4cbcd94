//! Walking through a JPEG.
//!
//! The decoder reads the whole file before it says how large the image is. Here it is found out, too, whether
//! the image comes in pieces: then all its coefficients are in memory at once, several times the image.
//!
//! Spec: ITU-T T.81, annex B; Exif 2.3.

use std::io::{BufRead, Read, Seek, SeekFrom};

use image::metadata::Orientation;

use super::{Claim, ThumbnailError, damaged, read, skip_to};

/// The number of marker segments before the first scan.
const JPEG_SEGMENTS_MAX: usize = 4096;

/// The number of scans in a JPEG. An encoder needs a dozen; each may touch every pixel again.
const JPEG_SCANS_MAX: usize = 100;

/// Walks the marker segments up to the first scan, and looks into Exif on the way.
///
/// Spec: ITU-T T.81, B.1.1, B.2.2 and B.2.3; Exif 2.3, 4.5.4.
pub(super) fn claim<R: BufRead + Seek>(source: &mut R) -> Result<Claim, ThumbnailError> {
    // The decoder reads the whole file into memory.
    let file_bytes = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(2))?;
    let mut orientation = Orientation::NoTransforms;
    let mut frame = None;
    for _ in 0..JPEG_SEGMENTS_MAX {
        let [mark, mut marker] = read(source)?;
        if mark != 0xFF {
            return Err(damaged("a JPEG segment does not begin with a marker"));
        }
        while marker == 0xFF {
            [marker] = read(source)?; // fill bytes
        }
        if matches!(marker, 0x01 | 0xD0..=0xD8) {
            continue; // these stand alone
        }
        let length = u16::from_be_bytes(read(source)?)
            .checked_sub(2)
            .ok_or_else(|| damaged("a JPEG segment is shorter than its length"))?;
        let end = source.stream_position()? + u64::from(length);
        match marker {
            // SOF0 to SOF15, without DHT, JPG and DAC, which are numbered among them.
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                let [_precision, h1, h0, w1, w0, components] = read(source)?;
                let width = u32::from(u16::from_be_bytes([w1, w0]));
                let height = u32::from(u16::from_be_bytes([h1, h0]));
                if frame
                    .replace((width, height, components, marker == 0xC2))
                    .is_some()
                {
                    return Err(damaged("a JPEG has two frame headers"));
                }
            }
            0xE1 => {
                if let Some(found) = exif_in_segment(source, length)? {
                    orientation = found;
                }
            }
            0xDA => {
                let Some((width, height, components, progressive)) = frame else {
                    return Err(damaged("a JPEG has no frame header"));
                };
                let [components_in_scan] = read(source)?;
                // If the first scan does not complete the image, all its coefficients are in memory until
                // the last one does, 16 bits each.
                let in_pieces = progressive || components_in_scan != components;
                let samples = u64::from(components.clamp(1, 4));
                let coefficients = if in_pieces { 2 * samples } else { 0 };
                return Ok(Claim {
                    width,
                    height,
                    orientation,
                    // What is decoded is grey or RGB.
                    bytes_per_pixel: if samples == 1 { 1 } else { 3 } + coefficients,
                    fixed_bytes: file_bytes,
                });
            }
            0xD9 => return Err(damaged("a JPEG ends before its first scan")),
            _ => {}
        }
        skip_to(source, end)?;
    }
    Err(damaged(
        "a JPEG has too many segments before its first scan",
    ))
}

/// Are there more than [`JPEG_SCANS_MAX`] scans in this JPEG, whose header has been read? Reads the file to
/// its end, and returns to its start.
///
/// The decoder counts those of progressive images only.
pub(in crate::media::thumbnail) fn has_too_many_scans<R: BufRead + Seek>(
    source: &mut R,
) -> Result<bool, ThumbnailError> {
    source.seek(SeekFrom::Start(2))?;
    let mut scans = 0;
    while let Some(marker) = next_marker(source)? {
        match marker {
            0xDA => scans += 1,
            0xD9 => break,
            // Stuffed zeros, fill bytes, restarts: within the scan.
            0x00 | 0x01 | 0xFF | 0xD0..=0xD8 => continue,
            _ => {}
        }
        if scans > JPEG_SCANS_MAX {
            break;
        }
        let Ok(length) = read(source) else { break };
        source.seek_relative(i64::from(u16::from_be_bytes(length).saturating_sub(2)))?;
    }
    source.seek(SeekFrom::Start(0))?;
    Ok(scans > JPEG_SCANS_MAX)
}

/// The byte after the next 0xFF. `None` at the end of the file.
fn next_marker<R: BufRead>(source: &mut R) -> Result<Option<u8>, ThumbnailError> {
    loop {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let mark = buffer.iter().position(|byte| *byte == 0xFF);
        let passed = mark.map_or(buffer.len(), |mark| mark + 1);
        source.consume(passed);
        if mark.is_some() {
            let marker = source.fill_buf()?.first().copied();
            if marker.is_some_and(|marker| marker != 0xFF) {
                source.consume(1);
            }
            return Ok(marker);
        }
    }
}

/// The orientation in an APP1 segment of `length` bytes, which is read to its end.
fn exif_in_segment<R: BufRead>(
    source: &mut R,
    length: u16,
) -> Result<Option<Orientation>, ThumbnailError> {
    let mut segment = Vec::new();
    source
        .by_ref()
        .take(u64::from(length))
        .read_to_end(&mut segment)?;
    Ok(segment
        .strip_prefix(b"Exif\0\0")
        .and_then(Orientation::from_exif_chunk))
}
