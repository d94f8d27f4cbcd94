//! Files made to cost more than they are worth.

use std::io::{self, BufReader, Read, SeekFrom};

use super::*;

/// A file that counts how much of it is read.
struct Counted<'a> {
    file: Cursor<&'a [u8]>,
    read: &'a mut usize,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        *self.read += read;
        Ok(read)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// The thumbnail of `file`, and how many bytes were read for it.
fn counted(file: &[u8], size: Size) -> (Result<Thumbnail, ThumbnailError>, usize) {
    let mut read = 0;
    let counted = Counted {
        file: Cursor::new(file),
        read: &mut read,
    };
    let source = BufReader::with_capacity(512, counted);
    let result = thumbnail(source, size, true, &Limits::default());
    (result, read)
}

#[track_caller]
fn assert_too_large(file: &[u8], width: u32, height: u32) {
    let (result, read) = counted(file, cropped());
    match result {
        Err(ThumbnailError::TooLarge {
            width: w,
            height: h,
        }) => assert_eq!((w, h), (width, height)),
        other => panic!("{other:?}"),
    }
    assert!(read <= 4096, "{read} bytes were read to find that out");
}

#[track_caller]
fn assert_damaged(file: &[u8]) {
    let result = run(file, cropped(), true);
    assert!(
        matches!(result, Err(ThumbnailError::Damaged(_))),
        "{result:?}"
    );
}

#[test]
fn a_tiny_file_that_claims_a_huge_image_costs_a_look_at_its_header() {
    let file = grey_png(50_000, 50_000, &zlib_zeros(1));
    assert!(file.len() < 100);
    assert_too_large(&file, 50_000, 50_000);
}

#[test]
fn a_huge_area_of_zeros_is_not_unpacked() {
    let file = grey_png(20_000, 20_000, &zlib_zeros(20_001 * 20_000));
    assert!(file.len() < 3_000_000, "400 MB in {} bytes", file.len());
    assert_too_large(&file, 20_000, 20_000);
    // Nothing but its size is wrong with it: a smaller one is decoded.
    let small = grey_png(700, 700, &zlib_zeros(701 * 700));
    assert_eq!(made(&small, cropped(), false).width, 32);
}

#[test]
fn more_pixels_than_the_header_claims_are_not_unpacked() {
    let mut packed = zlib_zeros(1 << 26);
    // Behind the million pixels there is nothing that could be unpacked: nobody tries.
    packed[100_000..].fill(0xFF);
    assert_eq!(
        made(&grey_png(1000, 1000, &packed), cropped(), false).width,
        32
    );
    // Within them, it does matter.
    packed[1000..].fill(0xFF);
    assert_damaged(&grey_png(1000, 1000, &packed));
}

#[test]
fn a_profile_or_a_text_that_unpacks_to_a_lot_is_left_out() {
    for (name, start) in [(*b"iCCP", b"p\0\0"), (*b"zTXt", b"t\0\0")] {
        let file = png_with_packed_chunk(name, start, 1 << 28);
        let made = made(&file, cropped(), false);
        assert!(!contains(&made.bytes, &name));
    }
    // Even packed, this one is too long to be kept in memory.
    assert_damaged(&png_with_packed_chunk(*b"iCCP", b"p\0\0", 1 << 30));
}

#[test]
fn the_limits_hold_on_both_sides() {
    let file = png(&DynamicImage::ImageRgb8(gradient(100, 100)));
    let inspected = |pixels_max, memory_bytes_max| {
        inspect(
            Cursor::new(&file),
            &Limits {
                pixels_max,
                memory_bytes_max,
                ..Limits::default()
            },
        )
    };
    assert!(inspected(10_000, 64 << 20).is_ok());
    assert!(matches!(
        inspected(9_999, 64 << 20),
        Err(ThumbnailError::TooLarge { .. })
    ));
    assert!(inspected(10_000, (4 << 20) + 30_000).is_ok());
    assert!(matches!(
        inspected(10_000, (4 << 20) + 29_999),
        Err(ThumbnailError::TooLarge { .. })
    ));
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    for file in [
        &b""[..],
        b"GIF89a",
        b"just some text, of no kind that is known",
        b"<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0\x02\0",
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let result = run(file, cropped(), false);
        assert!(
            matches!(result, Err(ThumbnailError::NotAnImage)),
            "{result:?}"
        );
    }
}

#[test]
fn a_file_cut_short_is_damaged_wherever_it_is_cut() {
    let file = png(&DynamicImage::ImageRgb8(gradient(400, 400)));
    for length in [16, 20, 33, 40, 100, file.len() / 2] {
        assert_damaged(&file[..length]);
    }
    let file = gif(1, 400, 400);
    for length in [16, 30, file.len() / 2] {
        assert_damaged(&file[..length]);
    }
    let file = webp(&DynamicImage::ImageRgb8(gradient(400, 400)).into_rgba8());
    for length in [16, 22, file.len() / 2] {
        assert_damaged(&file[..length]);
    }
    // What is left of a JPEG is shown, as browsers do; without its header it is damaged.
    let file = jpeg(&gradient(400, 400), Some(6));
    for length in [16, 30, 100] {
        assert_damaged(&file[..length]);
    }
    assert_eq!(made(&file[..file.len() / 2], cropped(), false).width, 32);
}

/// A JPEG with nothing but a frame header of kind `marker`, and the start of a scan.
fn jpeg_claim(marker: u8, width: u16, height: u16) -> Vec<u8> {
    let mut file = b"\xFF\xD8\xFF\xE0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0".to_vec();
    file.extend([0xFF, marker, 0, 17, 8]);
    file.extend(height.to_be_bytes());
    file.extend(width.to_be_bytes());
    file.extend(b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01");
    file.extend(b"\xFF\xDA\0\x0C\x03\x01\0\x02\x11\x03\x11\0\x3F\0");
    file
}

#[test]
fn a_jpeg_is_judged_by_what_it_makes_the_decoder_hold() {
    assert_too_large(&jpeg_claim(0xC0, 65_535, 65_535), 65_535, 65_535);
    // 42 million pixels: affordable row by row, but not as coefficients.
    let inspected = |marker| {
        inspect(
            Cursor::new(jpeg_claim(marker, 7000, 6000)),
            &Limits::default(),
        )
    };
    assert_eq!(inspected(0xC0).unwrap().width, 7000);
    assert!(matches!(
        inspected(0xC2),
        Err(ThumbnailError::TooLarge { .. })
    ));
}

#[test]
fn a_jpeg_with_a_second_frame_header_is_damaged() {
    let small = jpeg_claim(0xC0, 100, 100);
    let large = jpeg_claim(0xC0, 65_535, 65_535);
    let mut file = small[..39].to_vec();
    file.extend(&large[20..]);
    assert_seen_through(&file, "two frame headers");
}

#[test]
fn a_jpeg_of_endless_segments_is_given_up() {
    let mut file = b"\xFF\xD8".to_vec();
    file.extend(b"\xFF\xFE\0\x02".repeat(1_000_000));
    let (result, read) = counted(&file, cropped());
    assert!(
        matches!(result, Err(ThumbnailError::Damaged(_))),
        "{result:?}"
    );
    assert!(read < 100_000, "{read} bytes were read");
}

#[test]
fn a_jpeg_of_endless_scans_is_too_large() {
    // One component, all of whose codes are one zero bit: a scan of 64 × 64 pixels takes 16 bytes.
    let with_scans = |scans| {
        let mut file = b"\xFF\xD8\xFF\xDB\0\x43\0".to_vec();
        file.extend([1; 64]);
        file.extend(b"\xFF\xC0\0\x11\x08\0\x40\0\x40\x03\x01\x11\0\x02\x11\0\x03\x11\0");
        for table in [0x00, 0x10] {
            file.extend([0xFF, 0xC4, 0, 20, table, 1]);
            file.extend([0; 16]);
        }
        for _ in 0..scans {
            // A comment that looks like an end, and a scan.
            file.extend(b"\xFF\xFE\0\x04\xFF\xD9");
            file.extend(b"\xFF\xDA\0\x08\x01\x01\0\0\x3F\0");
            file.extend([0; 16]);
        }
        file.extend(b"\xFF\xD9");
        // What follows the end does not count.
        file.extend(b"\xFF\xDA\0\x08".repeat(200));
        file
    };
    assert!(run(&with_scans(100), cropped(), false).is_ok());
    let result = run(&with_scans(101), cropped(), false);
    assert!(
        matches!(result, Err(ThumbnailError::TooLarge { .. })),
        "{result:?}"
    );
}

/// The start of a lossy picture of 16 383 × 16 383, for which a decoder would allocate 400 MB.
const HUGE_PICTURE: [u8; 10] = [0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F];

/// What is found to be wrong with `file` before a decoder sees it.
#[track_caller]
fn assert_seen_through(file: &[u8], found: &str) {
    match run(file, cropped(), true) {
        Err(ThumbnailError::Damaged(error)) => {
            let error = format!("{error:?}");
            assert!(error.contains(found), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_webp_of_huge_pictures_in_a_small_canvas_is_seen_through() {
    assert_too_large(&riff(&[(b"VP8 ", 10, &HUGE_PICTURE)]), 16_383, 16_383);
    let canvas = webp_canvas(0, 16, 16);
    let still = riff(&[(b"VP8X", 10, &canvas), (b"VP8 ", 10, &HUGE_PICTURE)]);
    assert_seen_through(&still, "differ in size");
    // In a frame that says it is as large as the canvas, and in one that says it is not.
    for (side, found) in [(15, "differ in size"), (255, "larger than its canvas")] {
        let mut frame = vec![0, 0, 0, 0, 0, 0, side, 0, 0, side, 0, 0, 0, 0, 0, 0];
        // Alpha comes first: the decoder does not compare sizes then.
        frame.extend(b"ALPH\x02\0\0\0\0\0VP8 \x0a\0\0\0");
        frame.extend(HUGE_PICTURE);
        let canvas = webp_canvas(2, 16, 16);
        let animation = [0; 6];
        let moving = riff(&[
            (b"VP8X", 10, &canvas),
            (b"ANIM", 6, &animation),
            (b"ANMF", u32::try_from(frame.len()).unwrap(), &frame),
        ]);
        assert_seen_through(&moving, found);
    }
}

#[test]
fn a_webp_that_announces_four_gigabytes_of_exif_is_seen_through() {
    let canvas = webp_canvas(0b0000_1010, 16, 16);
    let picture = b"\x2f\x0f\xc0\x03\0\0";
    let still = riff(&[
        (b"VP8X", 10, &canvas),
        (b"VP8L", 6, picture),
        (b"EXIF", u32::MAX, b"Exif"),
    ]);
    assert_seen_through(&still, "longer than its file");
    // Inside a frame the decoder would believe it as well.
    let mut frame = vec![0; 16];
    frame.extend(b"EXIF\xff\xff\xff\xff");
    let animation = [0; 6];
    let moving = riff(&[
        (b"VP8X", 10, &canvas),
        (b"ANIM", 6, &animation),
        (b"ANMF", 24, &frame),
    ]);
    assert_seen_through(&moving, "longer than its file");
}

#[test]
fn a_webp_of_endless_chunks_is_given_up() {
    let chunk: (&[u8; 4], u32, &[u8]) = (b"JUNK", 0, b"");
    let mut chunks = vec![chunk; 100_000];
    let canvas = webp_canvas(0, 16, 16);
    chunks.insert(0, (b"VP8X", 10, &canvas));
    assert_seen_through(&riff(&chunks), "too many chunks");
}

#[test]
fn a_gif_whose_frame_is_larger_than_its_canvas_is_damaged_or_cut() {
    let mut file = b"GIF89a\x40\x01\x40\x01\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    file.extend(b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;");
    assert_damaged(&file);
}

/// Bits flipped and bytes replaced all over: any answer will do, as long as there is one.
#[test]
fn damage_anywhere_is_survived() {
    let mut seed = 0x5EED_u64;
    let mut random = move |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let limits = Limits {
        pixels_max: 1_000_000,
        ..Limits::default()
    };
    for whole in [
        png(&DynamicImage::ImageRgb8(gradient(64, 48))),
        jpeg(&gradient(64, 48), Some(5)),
        gif(3, 64, 48),
        webp(&DynamicImage::ImageRgb8(gradient(64, 48)).into_rgba8()),
    ] {
        for _ in 0..MUTATIONS {
            let mut file = whole.clone();
            for _ in 0..=random(4) {
                let at = random(file.len());
                file[at] = u8::try_from(random(256)).unwrap();
            }
            if random(8) == 0 {
                file.truncate(random(file.len()));
            }
            drop(thumbnail(
                Cursor::new(&file),
                cropped(),
                random(2) == 0,
                &limits,
            ));
        }
    }
}

/// How many damaged files of each kind are tried.
const MUTATIONS: usize = 200;
