//! Decoding one picture, making it smaller, writing it.
//!
//! Everything is done to the picture as it is stored; only the small one is turned upright. Colour profiles
//! are carried over, not applied: a small one of the right kind costs less than converting every pixel.

use std::io::{BufRead, Seek};

use image::{
    DynamicImage, ImageBuffer, ImageDecoder, ImageEncoder, ImageResult, Pixel, RgbaImage,
    codecs::{
        gif::GifDecoder,
        jpeg::{JpegDecoder, JpegEncoder},
        png::{CompressionType, FilterType, PngDecoder, PngEncoder},
        webp::WebPDecoder,
    },
    imageops,
    metadata::Orientation,
};

use super::{
    Limits, Made, ThumbnailError,
    header::{Header, Kind, decoder_limits, has_too_many_scans, png_limits, turns},
    size::Fit,
};

/// How good a JPEG is, of 100. At 80 the blocks cannot be seen at these sizes.
const JPEG_QUALITY: u8 = 80;

/// The longest colour profile that is carried over. The usual ones have 0.5 to 3 KB; those for printing
/// presses have megabytes.
const PROFILE_BYTES_MAX: usize = 4096;

/// A picture in memory, as it was stored.
pub(super) struct Still {
    image: DynamicImage,
    orientation: Orientation,
    /// An ICC profile for RGB.
    profile: Option<Vec<u8>>,
}

impl Still {
    /// Decodes the (first) picture of `source`, which stands at its start.
    pub(super) fn decode<R: BufRead + Seek>(
        source: &mut R,
        header: &Header,
        limits: &Limits,
    ) -> Result<Self, ThumbnailError> {
        let still = match header.kind {
            Kind::Png => {
                let mut decoder = PngDecoder::with_limits(source, png_limits())?;
                let profile = decoder.icc_profile()?;
                decode(decoder, header, limits, profile)
            }
            Kind::Jpeg => {
                if has_too_many_scans(source)? {
                    return Err(ThumbnailError::TooLarge {
                        width: header.width,
                        height: header.height,
                    });
                }
                let mut decoder = JpegDecoder::new(source)?;
                let profile = decoder.icc_profile()?;
                decode(decoder, header, limits, profile)
            }
            Kind::Gif => decode(GifDecoder::new(source)?, header, limits, None),
            // No profile: the decoder would allocate whatever length the file gives for it.
            Kind::WebP => decode(WebPDecoder::new(source)?, header, limits, None),
        };
        Ok(still?)
    }

    /// Makes it as small as `fit` says, and turns it upright.
    pub(super) fn shrink(self, fit: &Fit) -> Self {
        let fit = if turns(self.orientation) {
            fit.turned()
        } else {
            *fit
        };
        let mut image = shrink(self.image, &fit);
        image.apply_orientation(self.orientation);
        Self {
            image,
            orientation: Orientation::NoTransforms,
            profile: self.profile,
        }
    }

    /// Writes it: as PNG if it has transparent parts or came in a lossless format, which is how pictures
    /// with text come; otherwise as JPEG, of a fraction of the size.
    pub(super) fn encode(self, from: Kind) -> Result<Made, ThumbnailError> {
        let image = without_needless_alpha(self.image);
        let profile = self.profile.filter(|_| image.color().has_color());
        let mut bytes = Vec::new();
        let content_type = if from.is_lossless() || image.color().has_alpha() {
            let encoder = PngEncoder::new_with_quality(
                &mut bytes,
                CompressionType::Default,
                FilterType::Adaptive,
            );
            write(encoder, &image, profile)?;
            "image/png"
        } else {
            write(
                JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY),
                &image,
                profile,
            )?;
            "image/jpeg"
        };
        Ok(Made {
            content_type,
            bytes,
            width: image.width(),
            height: image.height(),
        })
    }
}

fn decode<D: ImageDecoder>(
    mut decoder: D,
    header: &Header,
    limits: &Limits,
    profile: Option<Vec<u8>>,
) -> ImageResult<Still> {
    decoder.set_limits(decoder_limits(limits))?;
    let image = DynamicImage::from_decoder(decoder)?;
    let profile = profile.filter(|profile| {
        profile.len() <= PROFILE_BYTES_MAX && profile.get(16..20) == Some(b"RGB ")
    });
    Ok(Still {
        image,
        orientation: header.orientation,
        profile,
    })
}

/// Scales and cuts `image`, which lies as `fit` takes it to.
pub(super) fn shrink(image: DynamicImage, fit: &Fit) -> DynamicImage {
    let (width, height) = fit.scaled;
    let (cut_width, cut_height) = fit.cut;
    let scaled = if (image.width(), image.height()) == fit.scaled {
        image
    } else {
        let mut image = eight_bits(image);
        premultiply(&mut image);
        // A box filter brings the image near its new size without a copy of it in floating point; the last
        // step, which decides how sharp it is, is then cheap.
        let near = image.width() > 4 * width && image.height() > 4 * height;
        let near = if near {
            image.thumbnail_exact(2 * width, 2 * height)
        } else {
            image
        };
        let mut scaled = near.resize_exact(width, height, imageops::FilterType::CatmullRom);
        unpremultiply(&mut scaled);
        scaled
    };
    if fit.cut == fit.scaled {
        return scaled;
    }
    scaled.crop_imm(
        (width - cut_width) / 2,
        (height - cut_height) / 2,
        cut_width,
        cut_height,
    )
}

/// A thumbnail has 8 bits a sample, whatever the image has.
fn eight_bits(image: DynamicImage) -> DynamicImage {
    match image {
        DynamicImage::ImageLuma16(_) => DynamicImage::ImageLuma8(image.into_luma8()),
        DynamicImage::ImageLumaA16(_) => DynamicImage::ImageLumaA8(image.into_luma_alpha8()),
        DynamicImage::ImageRgb16(_) => DynamicImage::ImageRgb8(image.into_rgb8()),
        DynamicImage::ImageRgba16(_) => DynamicImage::ImageRgba8(image.into_rgba8()),
        already => already,
    }
}

/// Weighs colours by how opaque they are, so that the colour of what is invisible does not bleed into what
/// is seen when the two are averaged.
fn premultiply(image: &mut DynamicImage) {
    each_color(image, |color, alpha| {
        u8::try_from((u16::from(color) * u16::from(alpha) + 127) / 255).unwrap_or(u8::MAX)
    });
}

fn unpremultiply(image: &mut DynamicImage) {
    each_color(image, |color, alpha| {
        let (color, alpha) = (u16::from(color), u16::from(alpha));
        (color * 255 + alpha / 2)
            .checked_div(alpha)
            .map_or(0, |color| u8::try_from(color).unwrap_or(u8::MAX))
    });
}

/// Changes every colour sample of an image with alpha to what `change` makes of it and its alpha.
fn each_color(image: &mut DynamicImage, change: impl Fn(u8, u8) -> u8) {
    match image {
        DynamicImage::ImageLumaA8(image) => each_color_in(image, change),
        DynamicImage::ImageRgba8(image) => each_color_in(image, change),
        _ => {}
    }
}

fn each_color_in<P: Pixel<Subpixel = u8>>(
    image: &mut ImageBuffer<P, Vec<u8>>,
    change: impl Fn(u8, u8) -> u8,
) {
    for pixel in image.pixels_mut() {
        if let Some((alpha, colors)) = pixel.channels_mut().split_last_mut()
            && *alpha != u8::MAX
        {
            for color in colors {
                *color = change(*color, *alpha);
            }
        }
    }
}

/// The image without its alpha channel, if nothing in it is transparent.
fn without_needless_alpha(image: DynamicImage) -> DynamicImage {
    let image = eight_bits(image);
    match image {
        DynamicImage::ImageLumaA8(ref pixels) if pixels.pixels().all(|p| p.0[1] == u8::MAX) => {
            DynamicImage::ImageLuma8(image.into_luma8())
        }
        DynamicImage::ImageRgba8(ref pixels) if is_opaque(pixels) => {
            DynamicImage::ImageRgb8(image.into_rgb8())
        }
        already => already,
    }
}

fn is_opaque(pixels: &RgbaImage) -> bool {
    pixels.pixels().all(|pixel| pixel.0[3] == u8::MAX)
}

fn write(
    mut encoder: impl ImageEncoder,
    image: &DynamicImage,
    profile: Option<Vec<u8>>,
) -> ImageResult<()> {
    if let Some(profile) = profile
        && let Err(unsupported) = encoder.set_icc_profile(profile)
    {
        return Err(image::ImageError::Unsupported(unsupported));
    }
    image.write_with_encoder(encoder)
}
