//! Images that are what they claim, and images that are not.

mod hostile;
mod images;

use image::{DynamicImage, ImageReader, Rgb, RgbImage, Rgba, RgbaImage};
use images::*;
use std::io::Cursor;

use super::*;

fn size(width: u32, height: u32, method: Method) -> Size {
    Size::serving(width, height, method)
}

fn scaled() -> Size {
    size(320, 240, Method::Scale)
}

fn cropped() -> Size {
    size(32, 32, Method::Crop)
}

fn run(file: &[u8], size: Size, animated: bool) -> Result<Thumbnail, ThumbnailError> {
    thumbnail(Cursor::new(file), size, animated, &Limits::default())
}

fn made(file: &[u8], size: Size, animated: bool) -> Made {
    match run(file, size, animated).unwrap() {
        Thumbnail::Made(made) => made,
        original @ Thumbnail::Original { .. } => panic!("{original:?}"),
    }
}

/// The picture in `made`, which is of the type and size it says.
fn picture(made: &Made) -> DynamicImage {
    let reader = ImageReader::new(Cursor::new(&made.bytes))
        .with_guessed_format()
        .unwrap();
    assert_eq!(reader.format().unwrap().to_mime_type(), made.content_type);
    let picture = reader.decode().unwrap();
    assert_eq!(
        (picture.width(), picture.height()),
        (made.width, made.height)
    );
    picture
}

#[test]
fn a_png_stays_a_png_and_a_jpeg_a_jpeg() {
    let from_png = made(
        &png(&DynamicImage::ImageRgb8(gradient(1000, 673))),
        scaled(),
        false,
    );
    assert_eq!(
        (from_png.content_type, from_png.width, from_png.height),
        ("image/png", 320, 215)
    );
    assert!(!picture(&from_png).color().has_alpha());

    let from_jpeg = made(&jpeg(&gradient(1000, 673), None), scaled(), false);
    assert_eq!(
        (from_jpeg.content_type, from_jpeg.width, from_jpeg.height),
        ("image/jpeg", 320, 215)
    );
    assert!(picture(&from_jpeg).color().has_color());
}

#[test]
fn a_webp_becomes_a_png_only_if_it_is_transparent_somewhere() {
    let mut image = RgbaImage::from_pixel(400, 400, Rgba([9, 9, 9, 255]));
    let opaque = made(&webp(&image), cropped(), false);
    assert_eq!(opaque.content_type, "image/jpeg");

    image.put_pixel(200, 200, Rgba([9, 9, 9, 254]));
    let transparent = made(&webp(&image), size(320, 240, Method::Scale), false);
    assert_eq!(
        transparent.content_type, "image/jpeg",
        "too little to be seen at this size"
    );
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        pixel.0[3] = if x < 200 && y < 200 { 0 } else { 255 };
    }
    let transparent = made(&webp(&image), cropped(), false);
    assert_eq!(transparent.content_type, "image/png");
    let picture = picture(&transparent).into_rgba8();
    assert_eq!(
        (picture.get_pixel(2, 2).0[3], picture.get_pixel(30, 30).0[3]),
        (0, 255)
    );
}

#[test]
fn the_color_of_what_is_invisible_does_not_bleed_into_the_rest() {
    // Stripes on what is invisible, of the opposite colour: averaged carelessly, they would change theirs.
    for [stripe, invisible] in [[255, 0], [0, 255]] {
        let stripes = RgbaImage::from_fn(640, 640, |x, _| {
            if x % 2 == 0 {
                Rgba([stripe, stripe, stripe, 255])
            } else {
                Rgba([invisible, invisible, invisible, 0])
            }
        });
        let picture = picture(&made(&png(&stripes.into()), cropped(), false)).into_rgba8();
        for pixel in picture.pixels() {
            let [red, green, blue, alpha] = pixel.0;
            let off = [red, green, blue].map(|color| color.abs_diff(stripe));
            assert!(
                off.into_iter().all(|off| off <= 5),
                "{pixel:?} for {stripe}"
            );
            assert!((120..=135).contains(&alpha), "{pixel:?}");
        }
    }
}

#[test]
fn a_crop_shows_the_middle() {
    let image = RgbImage::from_fn(300, 100, |x, _| match x {
        100..200 => Rgb([0, 255, 0]),
        _ => Rgb([255, 0, 0]),
    });
    let made = made(&png(&image.into()), size(96, 96, Method::Crop), false);
    assert_eq!((made.width, made.height), (96, 96));
    let picture = picture(&made).into_rgb8();
    for x in [3, 48, 92] {
        assert_eq!(picture.get_pixel(x, 48).0, [0, 255, 0]);
    }
}

#[test] // Client-server API, "Thumbnails": … servers should return the original content rather than thumbnail it
fn an_image_that_fits_is_served_as_it_is() {
    for (file, content_type) in [
        (
            png(&DynamicImage::ImageRgb8(gradient(320, 240))),
            "image/png",
        ),
        (jpeg(&gradient(320, 200), None), "image/jpeg"),
        (webp(&RgbaImage::new(1, 1)), "image/webp"),
        (gif(1, 10, 10), "image/gif"),
    ] {
        assert_eq!(
            run(&file, scaled(), false).unwrap(),
            Thumbnail::Original { content_type }
        );
    }
    let wide = png(&DynamicImage::ImageRgb8(gradient(321, 240)));
    assert_eq!(made(&wide, scaled(), false).width, 320);
}

#[test]
fn images_of_16_bits_of_grey_and_of_few_colors_are_made_smaller_too() {
    let deep = DynamicImage::ImageRgb8(gradient(400, 400)).into_rgba16();
    assert_eq!(
        picture(&made(&png(&deep.into()), cropped(), false)).color(),
        image::ColorType::Rgb8
    );
    let grey = DynamicImage::ImageRgb8(gradient(400, 400)).into_luma8();
    assert_eq!(
        picture(&made(&png(&grey.into()), cropped(), false)).color(),
        image::ColorType::L8
    );
    assert_eq!(
        made(&gif(1, 400, 400), cropped(), false).content_type,
        "image/png"
    );
}

/// The colours of the four corners, from the top left one clockwise.
fn corners(picture: &DynamicImage) -> [&'static str; 4] {
    let picture = picture.to_rgb8();
    let (right, bottom) = (picture.width() - 2, picture.height() - 2);
    [(1, 1), (right, 1), (right, bottom), (1, bottom)].map(|(x, y)| {
        match picture.get_pixel(x, y).0.map(|sample| sample > 128) {
            [true, false, false] => "red",
            [false, true, false] => "green",
            [false, false, true] => "blue",
            [true, true, true] => "white",
            _ => "another color",
        }
    })
}

#[test] // Exif 2.3, 4.6.4, tag 0x0112: where the first row and the first column of the stored image belong
fn a_photograph_is_turned_upright() {
    // Stored: red, green, blue, white.
    let stored = RgbImage::from_fn(800, 400, |x, y| match (x < 400, y < 200) {
        (true, true) => Rgb([255, 0, 0]),
        (false, true) => Rgb([0, 255, 0]),
        (false, false) => Rgb([0, 0, 255]),
        (true, false) => Rgb([255, 255, 255]),
    });
    for (orientation, upright) in [
        (1, ["red", "green", "blue", "white"]),
        (2, ["green", "red", "white", "blue"]),
        (3, ["blue", "white", "red", "green"]),
        (4, ["white", "blue", "green", "red"]),
        (5, ["red", "white", "blue", "green"]),
        (6, ["white", "red", "green", "blue"]),
        (7, ["blue", "green", "red", "white"]),
        (8, ["green", "blue", "white", "red"]),
    ] {
        let file = jpeg(&stored, Some(orientation));
        let turned = orientation >= 5;
        let info = inspect(Cursor::new(&file), &Limits::default()).unwrap();
        let stands = if turned { (400, 800) } else { (800, 400) };
        assert_eq!(
            (info.width, info.height),
            stands,
            "orientation {orientation}"
        );

        let scaled = made(&file, scaled(), false);
        let stands = if turned { (120, 240) } else { (320, 160) };
        assert_eq!(
            (scaled.width, scaled.height),
            stands,
            "orientation {orientation}"
        );
        assert_eq!(
            corners(&picture(&scaled)),
            upright,
            "orientation {orientation}"
        );

        let cropped = made(&file, size(96, 96, Method::Crop), false);
        assert_eq!(
            corners(&picture(&cropped)),
            upright,
            "orientation {orientation}"
        );
    }
}

#[test]
fn the_orientation_in_a_webp_is_honored_too() {
    let picture = webp_picture(&RgbaImage::from_pixel(400, 200, Rgba([1, 2, 3, 255])));
    let (header, data) = picture.split_at(8);
    assert_eq!(&header[..4], b"VP8L");
    let file = riff(&[
        (b"VP8X", 10, &webp_canvas(0b0000_1000, 400, 200)),
        (b"VP8L", u32::try_from(data.len()).unwrap(), data),
        (b"EXIF", u32::try_from(exif(6).len()).unwrap(), &exif(6)),
    ]);

    let info = inspect(Cursor::new(&file), &Limits::default()).unwrap();
    assert_eq!((info.width, info.height), (200, 400));
    assert_eq!(made(&file, scaled(), false).height, 240);
}

#[test]
fn a_color_profile_is_carried_over_if_it_is_small_and_fits() {
    let with = |profile: &[u8]| jpeg_with_profile(&gradient(400, 400), profile);
    let mut profile = vec![7; 500];
    profile[16..20].copy_from_slice(b"RGB ");
    assert!(contains(
        &made(&with(&profile), cropped(), false).bytes,
        &profile
    ));

    profile[16..20].copy_from_slice(b"CMYK");
    assert!(!contains(
        &made(&with(&profile), cropped(), false).bytes,
        &profile[..16]
    ));
    profile[16..20].copy_from_slice(b"RGB ");
    profile.resize(5000, 7);
    assert!(!contains(
        &made(&with(&profile), cropped(), false).bytes,
        &profile[..100]
    ));
}

/// The number of frames in the GIF `made`.
fn frames(made: &Made) -> usize {
    use image::AnimationDecoder;
    let decoder = image::codecs::gif::GifDecoder::new(Cursor::new(&made.bytes)).unwrap();
    let frames = decoder.into_frames().collect_frames().unwrap();
    assert!(
        frames
            .iter()
            .all(|frame| frame.buffer().dimensions() == (made.width, made.height))
    );
    assert!(
        frames
            .iter()
            .all(|frame| frame.delay().numer_denom_ms() == (70, 1))
    );
    frames.len()
}

#[test] // GET /media/thumbnail, `animated`: SHOULD be animated when true, MUST NOT when false
fn a_moving_image_moves_only_if_that_is_asked_for() {
    for (file, standing) in [
        (gif(5, 400, 300), "image/png"),
        (moving_webp(5, 400, 300), "image/jpeg"),
    ] {
        let moving = made(&file, scaled(), true);
        assert_eq!(
            (moving.content_type, moving.width, moving.height),
            ("image/gif", 320, 240)
        );
        assert_eq!(frames(&moving), 5);

        let still = made(&file, scaled(), false);
        assert_eq!(
            (still.content_type, still.width, still.height),
            (standing, 320, 240)
        );
    }
}

#[test]
fn a_small_moving_image_is_served_whole_or_made_to_stand_still() {
    let file = gif(5, 100, 100);
    let original = Thumbnail::Original {
        content_type: "image/gif",
    };
    assert_eq!(run(&file, scaled(), true).unwrap(), original);

    let still = made(&file, scaled(), false);
    assert_eq!(
        (still.content_type, still.width, still.height),
        ("image/png", 100, 100)
    );
}

#[test]
fn what_cannot_move_is_as_if_it_had_not_been_asked_to() {
    for file in [gif(1, 400, 400), jpeg(&gradient(400, 400), None)] {
        assert_eq!(made(&file, cropped(), true), made(&file, cropped(), false));
    }
}

#[test]
fn a_moving_image_beyond_the_budget_stands_still() {
    let file = gif(5, 64, 48);
    let content_type =
        |limits| match thumbnail(Cursor::new(&file), cropped(), true, &limits).unwrap() {
            Thumbnail::Made(made) => made.content_type,
            original @ Thumbnail::Original { .. } => panic!("{original:?}"),
        };
    let limits = Limits::default();
    let frames = |frames_max| Limits {
        frames_max,
        ..limits
    };
    assert_eq!(
        [5, 4].map(|max| content_type(frames(max))),
        ["image/gif", "image/png"]
    );
    let decoded = |decoded_pixels_max| Limits {
        decoded_pixels_max,
        ..limits
    };
    let whole = 5 * 64 * 48;
    assert_eq!(
        [whole, whole - 1].map(|max| content_type(decoded(max))),
        ["image/gif", "image/png"]
    );
    let written = |written_pixels_max| Limits {
        written_pixels_max,
        ..limits
    };
    let whole = 5 * 32 * 32;
    assert_eq!(
        [whole, whole - 1].map(|max| content_type(written(max))),
        ["image/gif", "image/png"]
    );
}

#[test]
fn inspecting_says_type_and_size() {
    for (file, content_type) in [
        (
            png(&DynamicImage::ImageRgb8(gradient(279, 129))),
            "image/png",
        ),
        (jpeg(&gradient(279, 129), None), "image/jpeg"),
        (webp(&RgbaImage::new(279, 129)), "image/webp"),
        (gif(2, 279, 129), "image/gif"),
    ] {
        let info = inspect(Cursor::new(&file), &Limits::default()).unwrap();
        assert_eq!(
            info,
            Info {
                content_type,
                width: 279,
                height: 129
            }
        );
    }
}
