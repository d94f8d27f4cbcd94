//! Image files, well made and ill.

use image::{
    Delay, DynamicImage, ExtendedColorType, Frame, ImageEncoder, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::{
        gif::{GifEncoder, Repeat},
        jpeg::JpegEncoder,
        png::PngEncoder,
        webp::WebPEncoder,
    },
};

pub(super) fn gradient(width: u32, height: u32) -> RgbImage {
    let part = |at: u32, of: u32| u8::try_from(at * 255 / of).unwrap();
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([part(x, width), part(y, height), 128])
    })
}

pub(super) fn png(image: &DynamicImage) -> Vec<u8> {
    let mut file = Vec::new();
    image
        .write_with_encoder(PngEncoder::new(&mut file))
        .unwrap();
    file
}

pub(super) fn jpeg(image: &RgbImage, orientation: Option<u8>) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new(&mut file);
    if let Some(orientation) = orientation {
        encoder.set_exif_metadata(exif(orientation)).unwrap();
    }
    encoder.encode_image(image).unwrap();
    file
}

pub(super) fn jpeg_with_profile(image: &RgbImage, profile: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new(&mut file);
    encoder.set_icc_profile(profile.to_vec()).unwrap();
    encoder.encode_image(image).unwrap();
    file
}

/// An Exif block that says nothing but the orientation. Exif 2.3, 4.6.2.
pub(super) fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    exif
}

pub(super) fn webp(image: &RgbaImage) -> Vec<u8> {
    let mut file = Vec::new();
    let encoder = WebPEncoder::new_lossless(&mut file);
    encoder
        .write_image(
            image,
            image.width(),
            image.height(),
            ExtendedColorType::Rgba8,
        )
        .unwrap();
    file
}

/// A WebP file of these chunks, each of which says that it has so many bytes.
pub(super) fn riff(chunks: &[(&[u8; 4], u32, &[u8])]) -> Vec<u8> {
    let mut content = b"WEBP".to_vec();
    for (name, length, data) in chunks {
        content.extend(*name);
        content.extend(from_the_low_end(*length));
        content.extend(*data);
    }
    let mut file = b"RIFF".to_vec();
    file.extend(from_the_low_end(u32::try_from(content.len()).unwrap()));
    file.extend(content);
    file
}

/// A number as RIFF writes it.
fn from_the_low_end(number: u32) -> [u8; 4] {
    let mut bytes = number.to_be_bytes();
    bytes.reverse();
    bytes
}

/// The `VP8L` chunk of a picture.
pub(super) fn webp_picture(image: &RgbaImage) -> Vec<u8> {
    webp(image).split_off(12)
}

/// A canvas of this size, with these flags.
pub(super) fn webp_canvas(flags: u8, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = vec![flags, 0, 0, 0];
    for side in [width, height] {
        canvas.extend(&from_the_low_end(side - 1)[..3]);
    }
    canvas
}

/// A moving WebP of `frames` frames, 70 ms each, over and over.
pub(super) fn moving_webp(frames: u8, width: u32, height: u32) -> Vec<u8> {
    let canvas = webp_canvas(0b0000_0010, width, height);
    let frames: Vec<_> = (0..frames)
        .map(|frame| {
            let picture = RgbaImage::from_pixel(width, height, Rgba([frame, 255 - frame, 0, 255]));
            let mut data = vec![0; 6];
            data.extend(&canvas[4..]); // as large as the canvas
            data.extend([70, 0, 0, 0]);
            data.extend(webp_picture(&picture));
            data
        })
        .collect();
    let mut chunks: Vec<(&[u8; 4], u32, &[u8])> =
        vec![(b"VP8X", 10, &canvas), (b"ANIM", 6, &[0; 6])];
    for frame in &frames {
        chunks.push((b"ANMF", u32::try_from(frame.len()).unwrap(), frame));
    }
    riff(&chunks)
}

/// A GIF of `frames` frames, 70 ms each, over and over.
pub(super) fn gif(frames: u32, width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut file, 30);
    encoder.set_repeat(Repeat::Infinite).unwrap();
    for frame in 0..frames {
        let shade = u8::try_from(frame % 256).unwrap();
        let image = RgbaImage::from_pixel(width, height, Rgba([shade, 255 - shade, 0, 255]));
        let delay = Delay::from_numer_denom_ms(70, 1);
        encoder
            .encode_frame(Frame::from_parts(image, 0, 0, delay))
            .unwrap();
    }
    drop(encoder);
    file
}

pub(super) fn contains(file: &[u8], part: &[u8]) -> bool {
    file.windows(part.len()).any(|window| window == part)
}

/// A grey PNG that claims `width` × `height` pixels, and has `packed` for them.
pub(super) fn grey_png(width: u32, height: u32, packed: &[u8]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 0, 0, 0, 0]);
    png_chunk(&mut file, *b"IHDR", &header);
    png_chunk(&mut file, *b"IDAT", packed);
    png_chunk(&mut file, *b"IEND", &[]);
    file
}

/// A PNG with an ancillary chunk `name` that begins with `start` and unpacks to `zeros` bytes of zeros.
pub(super) fn png_with_packed_chunk(name: [u8; 4], start: &[u8], zeros: u64) -> Vec<u8> {
    let plain = png(&DynamicImage::ImageRgb8(gradient(400, 400)));
    let (before, after) = plain.split_at(33); // the signature and IHDR
    let mut file = before.to_vec();
    png_chunk(&mut file, name, &[start, &zlib_zeros(zeros)].concat());
    file.extend(after);
    file
}

fn png_chunk(file: &mut Vec<u8>, name: [u8; 4], data: &[u8]) {
    file.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    let start = file.len();
    file.extend(name);
    file.extend(data);
    let checksum = crc32(&file[start..]);
    file.extend(checksum.to_be_bytes());
}

/// PNG 3rd edition, annex D.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ ((crc & 1) * 0xEDB8_8320)
        })
    })
}

/// So many zeros, packed as tightly as can be: 258 of them take 13 bits.
///
/// RFC 1950 and 1951: one block with the fixed codes.
pub(super) fn zlib_zeros(zeros: u64) -> Vec<u8> {
    let mut bits = Bits {
        bytes: vec![0x78, 0x01],
        used: 0,
    };
    bits.push(0b011, 3); // the last block; fixed codes, as numbers from the lowest bit
    bits.push_code(0b0011_0000, 8); // a zero
    for _ in 0..(zeros - 1) / 258 {
        bits.push_code(0b1100_0101, 8); // 258 of what came …
        bits.push_code(0, 5); // … one byte ago
    }
    for _ in 0..(zeros - 1) % 258 {
        bits.push_code(0b0011_0000, 8);
    }
    bits.push_code(0, 7); // the end of the block
    let mut zlib = bits.bytes;
    let adler = u32::try_from(zeros % 65_521).unwrap() << 16 | 1;
    zlib.extend(adler.to_be_bytes());
    zlib
}

struct Bits {
    bytes: Vec<u8>,
    /// Bits in the last byte that are taken; 0 if it is full.
    used: u8,
}

impl Bits {
    fn push(&mut self, bits: u8, count: u8) {
        for bit in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= (bits >> bit & 1) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }

    /// Huffman codes are packed from their highest bit.
    fn push_code(&mut self, code: u8, count: u8) {
        self.push(code.reverse_bits() >> (8 - count), count);
    }
}
