//! Pages as they are, and pages as somebody would write them to make trouble.

use std::fmt::Write;

use super::*;

const URL: &str = "https://example.org/blog/post.html";

fn preview(html: &str) -> Preview {
    read(html.as_bytes(), Some("text/html"), &URL.parse().unwrap())
}

#[track_caller]
fn assert_says(html: &str, properties: &[(&str, &str)]) {
    let preview = preview(html);
    let said: Vec<_> = preview
        .properties
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(said, properties, "{html}");
}

fn title(html: &str) -> Option<String> {
    preview(html).properties.remove("og:title")
}

fn description(html: &str) -> Option<String> {
    preview(html).properties.remove("og:description")
}

fn image(html: &str) -> Option<String> {
    preview(html).image.map(String::from)
}

#[test] // What Complement's TestUrlPreview serves
fn open_graph_is_taken_at_its_word() {
    let html = r#"
        <html prefix="og: http://ogp.me/ns#"><head>
        <title>The Rock (1996)</title>
        <meta property="og:title" content="The Rock" />
        <meta property="og:type" content="video.movie" />
        <meta property="og:url" content="http://www.imdb.com/title/tt0117500/" />
        <meta property="og:image" content="test.png" />
        <meta property="og:image:width" content="7" />
        <meta property="og:image:alt" content="A poster" />
        </head><body></body></html>"#;
    assert_says(
        html,
        &[
            ("og:image:alt", "A poster"),
            ("og:title", "The Rock"),
            ("og:type", "video.movie"),
            ("og:url", "http://www.imdb.com/title/tt0117500/"),
        ],
    );
    assert_eq!(image(html).unwrap(), "https://example.org/blog/test.png");
}

#[test]
fn the_first_of_several_counts_and_an_empty_one_does_not() {
    assert_says(
        "<meta property=og:title content=''><META Property='OG:Title' Content='first'>
         <meta property=og:title content=second><meta name=og:site_name content=site>",
        &[("og:site_name", "site"), ("og:title", "first")],
    );
}

#[test]
fn what_open_graph_does_not_say_is_filled_in() {
    assert_says(
        "<title>Page &amp; title</title>
         <meta name=twitter:title content='Card title'><meta name=twitter:description content='Card text'>
         <meta name=description content='For search engines'>",
        &[("og:description", "Card text"), ("og:title", "Card title")],
    );
    assert_says(
        "<title>Page &amp;\n title </title><meta name=Description content='For search engines'><h1>Head</h1>",
        &[
            ("og:description", "For search engines"),
            ("og:title", "Page & title"),
        ],
    );
    assert_says(
        "<h1>A <em>head</em>ing</h1><p>Too short.</p>
         <p>This is the first paragraph of some length,<br>with <b>words</b> in it.</p>
         <p>And this is the second one, which follows the first one.</p>",
        &[
            (
                "og:description",
                "This is the first paragraph of some length, with words in it. \
                 And this is the second one, which follows the first one.",
            ),
            ("og:title", "A heading"),
        ],
    );
    assert_says("", &[]);
    assert_says("no markup at all", &[]);
}

#[test]
fn menus_scripts_and_hidden_parts_are_no_text() {
    let filler = "long enough to be taken for a paragraph, if it were one";
    let mut html = String::from("<body>");
    for part in [
        "nav", "script", "style", "noscript", "svg", "footer", "button", "template", "iframe",
    ] {
        write!(html, "<{part}><p>This is {filler}.</p></{part}>").unwrap();
    }
    assert_eq!(description(&html), None);
    html.push_str("<nav>outer <nav>inner</nav> <p>still in it, and ");
    html.push_str(filler);
    html.push_str("</nav><p>At last, the text that a reader would see first.</p>");
    assert_eq!(
        description(&html).unwrap(),
        "At last, the text that a reader would see first."
    );
}

#[test]
fn the_title_of_a_drawing_is_not_that_of_the_page() {
    assert_eq!(
        title("<svg><title>drawing</title></svg><title>page</title>").unwrap(),
        "page"
    );
    assert_eq!(
        title("<svg/><title>page</title><title>second</title>").unwrap(),
        "page"
    );
    assert_eq!(title("<title>not closed").unwrap(), "not closed");
    assert_eq!(
        title("<title>a <b>tag</b> is text here</title>").unwrap(),
        "a <b>tag</b> is text here"
    );
}

#[test]
fn tags_in_scripts_and_comments_are_not_tags() {
    assert_says(
        "<script>var x = '<meta property=og:title content=wrong>';</script>
         <!-- <meta property=og:title content=wrong> -->
         <meta property=og:title content=right>",
        &[("og:title", "right")],
    );
}

#[test]
fn a_picture_is_found_where_the_page_has_one() {
    let small = "<img src=small.png width=32 height=32>";
    let unknown = "<img src=unknown.png>";
    let large = "<img src=large.png width='640px' height=480>";
    let linked = "<link rel='image_src' href=linked.png>";
    let card = "<meta name=twitter:image content=card.png>";
    let graph = "<meta property=og:image:url content=graph.png>";
    let mut html = String::from(small);
    assert_eq!(image(&html), None);
    for (part, name) in [
        (unknown, "unknown"),
        (large, "large"),
        (linked, "linked"),
        (card, "card"),
        (graph, "graph"),
    ] {
        html.push_str(part);
        assert_eq!(
            image(&html).unwrap(),
            format!("https://example.org/blog/{name}.png")
        );
    }
    assert_eq!(
        image("<img src=a.png width='100%'><img src=b.png height=300>").unwrap(),
        "https://example.org/blog/b.png"
    );
}

#[test]
fn addresses_are_absolute_and_fetchable() {
    let of = |content: &str| image(&format!("<meta property=og:image content='{content}'>"));
    assert_eq!(of("/a.png").unwrap(), "https://example.org/a.png");
    assert_eq!(
        of("//cdn.example/a b.png").unwrap(),
        "https://cdn.example/a%20b.png"
    );
    assert_eq!(
        of("http://other.example/x?y#z").unwrap(),
        "http://other.example/x?y#z"
    );
    for unusable in [
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "mxc://a/b",
        "http://",
    ] {
        assert_eq!(of(unusable), None, "{unusable}");
    }
    // The next candidate takes the place of one that is unusable.
    let html = "<meta property=og:image content='data:x'><img src=' data:y'><img src=z.png>";
    assert_eq!(image(html).unwrap(), "https://example.org/blog/z.png");
    assert_eq!(
        image("<base href='/deep/er/'><img src=x.png>").unwrap(),
        "https://example.org/deep/er/x.png"
    );
    assert_eq!(
        image("<base href='javascript:'><img src=x.png>").unwrap(),
        "https://example.org/blog/x.png"
    );
    assert_says("<meta property=og:url content='javascript:alert(1)'>", &[]);
}

#[test]
fn text_is_shortened_at_the_end_of_a_word() {
    let exact = "word ".repeat(40);
    let exact = exact.trim_end();
    let longer = format!("<title>{exact} more</title>");
    assert_eq!(title(&format!("<title>{exact}</title>")).unwrap(), exact);
    assert_eq!(title(&longer).unwrap(), format!("{exact}…"));
    let unbroken = "漢".repeat(1000);
    let cut = title(&format!("<meta property=og:title content={unbroken}>")).unwrap();
    assert_eq!(cut, "漢".repeat(TITLE_CHARS_MAX - 1) + "…");
    let long = "word ".repeat(10_000);
    let cut = description(&format!("<meta name=description content='{long}'>")).unwrap();
    assert!(
        cut.chars().count() <= DESCRIPTION_CHARS_MAX && cut.ends_with("word…"),
        "{cut}"
    );
    let cut = description(&format!("<p>{long}</p><p>{long}</p>")).unwrap();
    assert!(
        cut.chars().count() <= DESCRIPTION_CHARS_MAX && cut.ends_with("word…"),
        "{cut}"
    );
}

#[test]
fn control_characters_and_turned_directions_are_left_out() {
    let html = "<title>a\u{202e}b\u{0}c&#x202e;&#8203;\u{7}\n\td</title>";
    assert_eq!(title(html).unwrap(), "ab\u{fffd}c d");
}

#[test]
fn the_charset_is_found_and_understood() {
    let read_as = |bytes: &[u8], content_type: &str| {
        read(bytes, Some(content_type), &URL.parse().unwrap())
            .properties
            .remove("og:title")
            .unwrap()
    };
    assert_eq!(
        read_as(b"<title>na\xefve</title>", "text/html; charset=ISO-8859-1"),
        "naïve"
    );
    assert_eq!(
        read_as(b"<title>na\xefve</title>", "text/html"),
        "naïve",
        "not UTF-8"
    );
    assert_eq!(
        read_as("<title>naïve</title>".as_bytes(), "text/html"),
        "naïve"
    );
    assert_eq!(
        read_as(
            b"<meta charset='shift_jis'><title>\x93\xfa\x96\x7b</title>",
            "text/html"
        ),
        "日本"
    );
    assert_eq!(
        read_as(
            b"<META http-equiv=Content-Type content=\"text/html; Charset=koi8-r\"><title>\xcd\xc9\xd2</title>",
            "text/html"
        ),
        "мир"
    );
    assert_eq!(
        read_as(
            b"<?xml version='1.0' encoding='windows-1251'?><title>\xec\xe8\xf0</title>",
            "text/html"
        ),
        "мир"
    );
    // What the sender says outweighs the page, and a byte order mark outweighs both.
    assert_eq!(
        read_as(
            "<meta charset=koi8-r><title>ü</title>".as_bytes(),
            "text/html; charset=\"utf-8\""
        ),
        "ü"
    );
    assert_eq!(
        read_as(
            b"\xef\xbb\xbf<title>\xc3\xbc</title>",
            "text/html; charset=koi8-r"
        ),
        "ü"
    );
    assert_eq!(
        read_as(b"\xff\xfe<\0t\0i\0t\0l\0e\0>\0x\0", "text/html"),
        "x"
    );
    // Nonsense: an unknown charset, and one that contradicts having been read.
    assert_eq!(
        read_as(
            "<meta charset=klingon><title>ü</title>".as_bytes(),
            "text/html; charset=x"
        ),
        "ü"
    );
    assert_eq!(
        read_as(
            "<meta charset=utf-16><title>ü</title>".as_bytes(),
            "text/html"
        ),
        "ü"
    );
}

#[test]
fn a_page_that_is_cut_within_a_character_is_still_utf8() {
    let mut html = b"<title>na\xc3\xafve</title>".to_vec();
    html.resize(PAGE_BYTES_MAX - 1, b' ');
    html.extend("ï".bytes());
    let preview = read(&html, None, &URL.parse().unwrap());
    assert_eq!(preview.properties["og:title"], "naïve");
}

#[test]
fn what_stands_beyond_the_limits_is_not_read() {
    let after = |filler: String| title(&format!("{filler}<title>late</title>"));
    assert_eq!(after(" ".repeat(PAGE_BYTES_MAX - 20)).unwrap(), "late");
    assert_eq!(after(" ".repeat(PAGE_BYTES_MAX)), None);
    assert_eq!(after("<b>".repeat(100_000)).unwrap(), "late");
    assert_eq!(after("<b>".repeat(200_000)), None);
}

#[test]
fn a_flood_of_properties_does_not_drown_the_ones_that_are_shown() {
    let mut html = String::new();
    for number in 0..10_000 {
        write!(html, "<meta property=og:x{number} content=y>").unwrap();
    }
    write!(html, "<meta property=og:{} content=y>", "z".repeat(100)).unwrap();
    html.push_str("<meta property=og:title content=shown>");
    let preview = preview(&html);
    assert_eq!(preview.properties["og:title"], "shown");
    assert_eq!(preview.properties.len(), PROPERTIES_MAX + 1);
}

#[test]
fn hostile_pages_are_read_in_time_that_grows_with_their_length() {
    let mut attributes = String::from("<meta ");
    for number in 0..40_000 {
        write!(attributes, "a{number} ").unwrap();
    }
    let repeated = |piece: &str| piece.repeat(PAGE_BYTES_MAX / 4 / piece.len());
    for html in [
        repeated("<div>"),
        repeated("<nav>"),
        repeated("</nav>"),
        repeated("<p>a"),
        repeated("<title>"),
        repeated("<meta charset="),
        repeated("<!--"),
        repeated("<![CDATA["),
        repeated("&lt"),
        repeated("<"),
        repeated("\0"),
        format!("<meta {}", repeated("a=b ")),
        attributes,
        format!("<meta property=og:title content={}", repeated("a")),
        format!("<{}", repeated("a")),
    ] {
        // That it ends is the point: each of these takes well under a second.
        let preview = preview(&html);
        assert!(preview.properties.len() <= PROPERTIES_MAX, "{preview:?}");
    }
}

#[test]
fn only_pages_and_pictures_have_previews() {
    assert_eq!(Kind::of(Some("text/html; charset=utf-8")), Kind::Page);
    assert_eq!(Kind::of(Some("Application/XHTML+XML")), Kind::Page);
    assert_eq!(Kind::of(Some("image/png")), Kind::Image);
    assert_eq!(Kind::of(Some("IMAGE/x-unknown; a=b")), Kind::Image);
    for other in [
        Some("text/plain"),
        Some("application/pdf"),
        Some("imagery"),
        Some(""),
        None,
    ] {
        assert_eq!(Kind::of(other), Kind::Other);
    }
}
