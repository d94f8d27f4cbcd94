//! Which sizes thumbnails have, and what becomes of an image in each.
//!
//! A client may ask for any size; it gets the smallest of the list that is not smaller. The spec's five
//! sizes are in it, and a few between and above them: without those, an avatar on a dense screen would be
//! blurred, and an image for one would be the original, of many times the bytes.
//!
//! Spec: client-server API, "Content repository", "Thumbnails".

/// How the client wants the image to be made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Fill the size, and cut off what is beyond it.
    Crop,
    /// Fit into the size, whole.
    Scale,
}

/// One of the sizes thumbnails have. Together with `animated` it identifies a thumbnail of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size {
    width: u32,
    height: u32,
    rule: Rule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Rule {
    /// Neither side longer than the size's: what is drawn into a rectangle of that size.
    ///
    /// The spec says of this both that one side may be smaller than asked for and that none may. The first
    /// is what clients, which draw it letterboxed, need and other servers do.
    Inside,
    /// Neither side shorter than the size's, the rest cut off.
    Crop,
    /// Neither side shorter than the size's, nothing cut off: for crops of a shape that is not in the list,
    /// which the client then cuts itself.
    Cover,
}

/// The sides of the squares that are cut.
const SQUARES: [u32; 4] = [32, 96, 256, 512];

/// The sizes that nothing is cut for. The last one means: the whole image.
const BOXES: [(u32, u32); 5] = [
    (320, 240),
    (640, 480),
    (800, 600),
    (1600, 1200),
    (u32::MAX, u32::MAX),
];

impl Size {
    /// The size that serves a request for `width` × `height`: the smallest of the list that is as large.
    pub fn serving(width: u32, height: u32, method: Method) -> Self {
        if method == Method::Crop
            && width == height
            && let Some(side) = SQUARES.into_iter().find(|side| *side >= width)
        {
            return Self {
                width: side,
                height: side,
                rule: Rule::Crop,
            };
        }
        let rule = match method {
            Method::Crop => Rule::Cover,
            Method::Scale => Rule::Inside,
        };
        let [.., whole] = BOXES;
        let (width, height) = BOXES
            .into_iter()
            .find(|(w, h)| *w >= width && *h >= height)
            .unwrap_or(whole);
        Self {
            width,
            height,
            rule,
        }
    }

    /// A short name, unique among sizes, for keys and file names. It is stored: do not change it.
    pub fn name(&self) -> String {
        let rule = match self.rule {
            Rule::Inside => "scale",
            Rule::Crop => "crop",
            Rule::Cover => "cover",
        };
        if self.width == u32::MAX {
            return format!("whole-{rule}");
        }
        format!("{}x{}-{rule}", self.width, self.height)
    }

    /// What becomes of an image of `width` × `height`.
    pub(super) fn fit(&self, width: u32, height: u32) -> Fit {
        let (scaled_width, scaled_height) = match self.rule {
            Rule::Inside => inside(width, height, self.width, self.height),
            Rule::Crop | Rule::Cover => cover(width, height, self.width, self.height),
        };
        let (cut_width, cut_height) = match self.rule {
            Rule::Crop => (scaled_width.min(self.width), scaled_height.min(self.height)),
            Rule::Inside | Rule::Cover => (scaled_width, scaled_height),
        };
        Fit {
            source: (width, height),
            scaled: (scaled_width, scaled_height),
            cut: (cut_width, cut_height),
        }
    }
}

/// What becomes of an image: scaled, and then cut from the middle. Widths and heights of the upright image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) source: (u32, u32),
    pub(super) scaled: (u32, u32),
    pub(super) cut: (u32, u32),
}

impl Fit {
    /// Nothing becomes of it.
    pub(super) fn is_whole(&self) -> bool {
        self.source == self.cut
    }

    /// The same for an image that is stored lying on its side.
    pub(super) const fn turned(&self) -> Self {
        const fn turn((width, height): (u32, u32)) -> (u32, u32) {
            (height, width)
        }
        Self {
            source: turn(self.source),
            scaled: turn(self.scaled),
            cut: turn(self.cut),
        }
    }
}

/// The largest size in proportion to `width` × `height` that is within the box and no larger than itself.
fn inside(width: u32, height: u32, box_width: u32, box_height: u32) -> (u32, u32) {
    if width <= box_width && height <= box_height {
        return (width, height);
    }
    // Compares box_width ÷ width with box_height ÷ height: the smaller one is the scale.
    if u64::from(box_width) * u64::from(height) <= u64::from(box_height) * u64::from(width) {
        (box_width, scale(height, box_width, width))
    } else {
        (scale(width, box_height, height), box_height)
    }
}

/// The smallest size in proportion to `width` × `height` that covers the box, and no larger than itself.
fn cover(width: u32, height: u32, box_width: u32, box_height: u32) -> (u32, u32) {
    if width <= box_width || height <= box_height {
        return (width, height);
    }
    if u64::from(box_width) * u64::from(height) >= u64::from(box_height) * u64::from(width) {
        (box_width, scale(height, box_width, width))
    } else {
        (scale(width, box_height, height), box_height)
    }
}

/// `side` × `numerator` ÷ `denominator`, rounded, at least 1. The fraction is at most one.
fn scale(side: u32, numerator: u32, denominator: u32) -> u32 {
    let denominator = u64::from(denominator);
    let scaled = (u64::from(side) * u64::from(numerator) + denominator / 2) / denominator;
    u32::try_from(scaled.max(1)).expect("a side is not enlarged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(width: u32, height: u32, method: Method) -> String {
        Size::serving(width, height, method).name()
    }

    #[test] // Client-server API, "Thumbnails": the sizes servers should produce
    fn the_sizes_of_the_spec_are_served_exactly() {
        assert_eq!(name(32, 32, Method::Crop), "32x32-crop");
        assert_eq!(name(96, 96, Method::Crop), "96x96-crop");
        assert_eq!(name(320, 240, Method::Scale), "320x240-scale");
        assert_eq!(name(640, 480, Method::Scale), "640x480-scale");
        assert_eq!(name(800, 600, Method::Scale), "800x600-scale");
    }

    #[test]
    fn other_sizes_are_served_by_the_next_larger_one() {
        assert_eq!(name(1, 1, Method::Crop), "32x32-crop");
        assert_eq!(name(33, 33, Method::Crop), "96x96-crop");
        assert_eq!(name(97, 97, Method::Crop), "256x256-crop");
        assert_eq!(name(1, 1, Method::Scale), "320x240-scale");
        assert_eq!(name(320, 241, Method::Scale), "640x480-scale");
        assert_eq!(name(240, 320, Method::Scale), "640x480-scale");
        assert_eq!(name(801, 600, Method::Scale), "1600x1200-scale");
    }

    #[test]
    fn a_crop_of_another_shape_is_left_to_the_client() {
        assert_eq!(name(320, 180, Method::Crop), "320x240-cover");
        assert_eq!(name(513, 513, Method::Crop), "800x600-cover");
    }

    #[test]
    fn what_is_larger_than_every_size_is_served_by_the_whole_image() {
        assert_eq!(name(1601, 1, Method::Scale), "whole-scale");
        assert_eq!(name(u32::MAX, u32::MAX, Method::Crop), "whole-cover");
        let size = Size::serving(u32::MAX, u32::MAX, Method::Scale);
        assert!(size.fit(50_000, 50_000).is_whole());
    }

    /// The scaled and the cut size of an image of `width` × `height`.
    fn fit(asked: (u32, u32, Method), width: u32, height: u32) -> ((u32, u32), (u32, u32)) {
        let (asked_width, asked_height, method) = asked;
        let fit = Size::serving(asked_width, asked_height, method).fit(width, height);
        (fit.scaled, fit.cut)
    }

    #[test]
    fn scaling_keeps_the_proportions_and_stays_inside() {
        let asked = (320, 240, Method::Scale);
        assert_eq!(fit(asked, 1000, 673).0, (320, 215));
        assert_eq!(fit(asked, 640, 480).0, (320, 240));
        assert_eq!(fit(asked, 3000, 4000).0, (180, 240));
        assert_eq!(fit(asked, 321, 240).0, (320, 239));
    }

    #[test]
    fn cropping_fills_the_square_and_cuts_the_rest() {
        let asked = (96, 96, Method::Crop);
        assert_eq!(fit(asked, 1000, 673), ((143, 96), (96, 96)));
        assert_eq!(fit(asked, 673, 1000), ((96, 143), (96, 96)));
        assert_eq!(fit(asked, 96, 97), ((96, 97), (96, 96)));
    }

    #[test] // Client-server API, "Thumbnails": servers MUST NOT upscale thumbnails under any circumstance
    fn nothing_is_ever_enlarged() {
        assert_eq!(fit((320, 240, Method::Scale), 320, 240).0, (320, 240));
        assert_eq!(fit((800, 600, Method::Scale), 10, 3).0, (10, 3));
        // A square larger than one side of the image: that side stays whole.
        assert_eq!(
            fit((256, 256, Method::Crop), 300, 100),
            ((300, 100), (256, 100))
        );
        assert_eq!(fit((256, 256, Method::Crop), 30, 10), ((30, 10), (30, 10)));
        assert_eq!(fit((400, 200, Method::Crop), 10_000, 30).0, (10_000, 30));
    }

    #[test]
    fn a_line_stays_at_least_one_pixel_wide() {
        assert_eq!(fit((320, 240, Method::Scale), 30_000, 1).0, (320, 1));
        assert_eq!(fit((320, 240, Method::Scale), 1, 30_000).0, (1, 240));
        assert_eq!(
            fit((32, 32, Method::Crop), 1, 30_000),
            ((1, 30_000), (1, 32))
        );
    }

    #[test] // … MUST NOT return a smaller thumbnail than requested, unless the original makes that impossible
    fn a_covering_thumbnail_is_nowhere_smaller_than_asked_for() {
        for (width, height) in [
            (1000, 673),
            (673, 1000),
            (641, 481),
            (5000, 481),
            (50_000, 600),
        ] {
            let (scaled, _) = fit((600, 400, Method::Crop), width, height);
            assert!(
                scaled.0 >= 600 && scaled.1 >= 400,
                "{width}×{height} became {scaled:?}"
            );
        }
    }
}
