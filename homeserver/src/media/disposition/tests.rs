//! What goes out must be read alike by everybody; what comes in is written by anybody.

use super::*;

fn disposition(declared: &str, filename: Option<&str>) -> String {
    let filename = filename.and_then(Filename::new);
    let value = content_disposition(&content_type(Some(declared)), filename.as_ref());
    value.to_str().unwrap().to_owned()
}

fn name_in(header: &[u8]) -> Option<String> {
    let header = HeaderValue::from_bytes(header).unwrap();
    Filename::from_disposition(&header).map(|filename| filename.as_str().to_owned())
}

#[test] // Client-server API, "Serving inline content"
fn only_the_listed_types_are_served_inline() {
    for inline in [
        "text/plain",
        "image/png",
        "video/mp4",
        "audio/x-flac",
        "application/ld+json",
    ] {
        assert_eq!(disposition(inline, None), "inline");
    }
    for attachment in [
        "text/html",
        "image/svg+xml",
        "image/svg",
        "application/pdf",
        "application/xhtml+xml",
        "text/xml",
        "application/javascript",
        "application/octet-stream",
        "img/png",
        "",
    ] {
        assert_eq!(disposition(attachment, None), "attachment", "{attachment}");
    }
}

#[test]
fn parameters_and_case_do_not_change_the_choice() {
    assert_eq!(disposition("Text/Plain; charset=utf-8", None), "inline");
    assert_eq!(disposition("IMAGE/PNG ;x=y", None), "inline");
    assert_eq!(disposition("TEXT/HTML; image/png", None), "attachment");
    // Two types at once: which of them a browser takes is anybody's guess.
    assert_eq!(disposition("image/png, text/html", None), "attachment");
    assert_eq!(disposition("text/html,image/png", None), "attachment");
}

#[test]
fn a_type_is_served_as_declared_or_as_bytes() {
    let served = |declared| content_type(declared).to_str().unwrap().to_owned();
    for same in [
        "img/png",
        "text/plain; charset=utf-8",
        "Application/X-Odd",
        "a/b",
    ] {
        assert_eq!(served(Some(same)), same);
    }
    let long = format!("text/{}", "x".repeat(CONTENT_TYPE_BYTES_MAX));
    for wrong in [
        "",
        "png",
        "image/",
        "/png",
        "image/p ng",
        "a/b/c",
        "text/plain\r\nset-cookie: a=b",
        "é/b",
    ]
    .into_iter()
    .chain([long.as_str()])
    {
        assert_eq!(served(Some(wrong)), OCTET_STREAM, "{wrong}");
    }
    assert_eq!(served(None), OCTET_STREAM);
}

#[test]
fn a_plain_name_is_one_quoted_string() {
    assert_eq!(
        disposition("image/png", Some("ascii")),
        "inline; filename=\"ascii\""
    );
    assert_eq!(
        disposition("image/png", Some("name with spaces")),
        "inline; filename=\"name with spaces\""
    );
    assert_eq!(
        disposition("text/html", Some("name;with;semicolons")),
        "attachment; filename=\"name;with;semicolons\""
    );
}

#[test]
fn any_other_name_comes_as_utf8_and_before_that_as_something_harmless() {
    assert_eq!(
        disposition("image/png", Some("\u{1f414} €.png")),
        "inline; filename=\"_ _.png\"; filename*=UTF-8''%F0%9F%90%94%20%E2%82%AC.png"
    );
    assert_eq!(
        disposition("image/png", Some(r#"a"b\c%20d"#)),
        "inline; filename=\"a_b_c_20d\"; filename*=UTF-8''a%22b%5Cc%2520d"
    );
    assert_eq!(
        disposition("image/png", Some("../../etc/passwd")),
        "inline; filename=\".._.._etc_passwd\"; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd"
    );
}

#[test]
fn a_name_cannot_end_the_header() {
    let value = disposition("image/png", Some("a\r\nSet-Cookie: x=y\0\u{85}\u{7f}b"));
    assert_eq!(value, "inline; filename=\"aSet-Cookie: x=yb\"");
    assert_eq!(Filename::new("\r\n\0"), None);
    assert_eq!(Filename::new(""), None);
}

#[test]
fn a_name_is_cut_at_the_limit_and_never_within_a_character() {
    let exact = "é".repeat(127) + "x";
    assert_eq!(exact.len(), FILENAME_BYTES_MAX);
    assert_eq!(Filename::new(&exact).unwrap().as_str(), exact);
    assert_eq!(
        Filename::new(&(exact.clone() + "y")).unwrap().as_str(),
        exact
    );
    assert_eq!(
        Filename::new(&"é".repeat(200)).unwrap().as_str(),
        "é".repeat(127)
    );
}

#[test]
fn what_goes_out_comes_back_in() {
    for name in [
        "ascii",
        "name with spaces",
        "name;with;semicolons",
        "\u{1f414}",
        "\u{2615}",
        r#"quote " back \ slash \\ 100%25"#,
        "../x/y",
        "it's",
        "a=b; filename=c",
        "filename*=UTF-8''x",
        " leading and trailing ",
    ] {
        let value = disposition("image/png", Some(name));
        assert_eq!(name_in(value.as_bytes()).as_deref(), Some(name), "{value}");
    }
}

#[test]
fn other_servers_headers_are_understood() {
    for (header, name) in [
        (&b"inline; filename=test.png"[..], "test.png"),
        (b"attachment;filename=\"a b.png\"", "a b.png"),
        (b"ATTACHMENT ; FileName = \"x\" ; size=3", "x"),
        (br#"attachment; filename="a\"b\\c""#, r#"a"b\c"#),
        (b"attachment; foo; filename=x", "x"),
        (
            b"attachment; size=\"a;filename=wrong\"; filename=right",
            "right",
        ),
        (b"inline; filename*=utf-8''%F0%9F%90%94", "\u{1f414}"),
        (b"inline; filename*=UTF-8'en'%e2%82%ac%20rates", "€ rates"),
        (b"inline; filename*=iso-8859-1'en'%A3%20rates", "£ rates"),
        (b"inline; filename*=UTF-8''right; filename=wrong", "right"),
        (b"inline; filename=wrong; filename*=UTF-8''right", "right"),
        (b"inline; filename=first; filename=second", "first"),
        ("inline; filename=\"naïve\"".as_bytes(), "naïve"),
        (b"inline; filename=\"na\xefve\"", "naïve"),
        (b"inline; filename=\"no end", "no end"),
        (
            b"inline; filename=\"ends in a backslash\\",
            "ends in a backslash",
        ),
    ] {
        assert_eq!(
            name_in(header).as_deref(),
            Some(name),
            "{}",
            header.escape_ascii()
        );
    }
}

#[test]
fn what_cannot_be_understood_is_no_name() {
    for header in [
        &b""[..],
        b"inline",
        b"filename=x", // the type is missing: there is no parameter
        b"inline;",
        b"inline; filename",
        b"inline; filename=",
        b"inline; filename=\"\"",
        b"inline; filename*=UTF-8''",
        b"inline; xfilename=x",
        b";;;;;===;;;",
    ] {
        assert_eq!(name_in(header), None, "{}", header.escape_ascii());
    }
    // A broken extended value leaves the plain one.
    for broken in [
        "UTF-8''%ff",
        "UTF-8''%4",
        "UTF-8''%zz",
        "UTF-8''%+4",
        "klingon''x",
        "UTF-8'x",
        "x",
    ] {
        let header = format!("inline; filename*={broken}; filename=plain");
        assert_eq!(
            name_in(header.as_bytes()).as_deref(),
            Some("plain"),
            "{broken}"
        );
    }
}

#[test] // Client-server API, "Content repository": the recommended policy and CORP
fn media_come_with_the_headers_the_spec_asks_for() {
    let value = |name: &str| {
        SECURITY_HEADERS
            .iter()
            .find(|(header, _)| header == name)
            .unwrap()
            .1
            .to_str()
            .unwrap()
    };
    assert_eq!(
        value("content-security-policy"),
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
         style-src 'unsafe-inline'; object-src 'self';"
    );
    assert_eq!(value("cross-origin-resource-policy"), "cross-origin");
    assert_eq!(value("x-content-type-options"), "nosniff");
}
