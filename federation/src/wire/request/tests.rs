use ruma::server_name;
use serde_json::json;

use super::*;

fn parsed(header: &str) -> Result<XMatrix, HeaderError> {
    XMatrix::parse(header)
}

fn plain() -> XMatrix {
    XMatrix {
        origin: "a.example:8448".try_into().unwrap(),
        destination: Some("b.example".try_into().unwrap()),
        key_id: "ed25519:k_1".to_owned(),
        signature: b"test".to_vec(),
    }
}

#[test] // "scheme, followed by one or more spaces, followed by a comma-separated list"
fn every_allowed_spelling_of_the_header_means_the_same() {
    let spellings = [
        r#"X-Matrix origin="a.example:8448",destination="b.example",key="ed25519:k_1",sig="dGVzdA""#,
        "X-Matrix origin=a.example:8448,destination=b.example,key=ed25519:k_1,sig=dGVzdA==",
        "X-Matrix   sig=dGVzdA \t,\t key=\"ed25519:k_1\" , origin=a.example:8448,destination=b.example",
        r#"x-matrix ORIGIN="a.example:8448",Destination=b.example,KEY="ed25519:k_1",Sig="dGVzdA==","#,
        r#"X-Matrix origin="a\.example:8448",destination="\b.example",key="ed25519\:k_1",sig="dGVzdA""#,
        r#"X-Matrix ,,origin="a.example:8448",destination=b.example,key=ed25519:k_1,sig=dGVzdA,v="1,\"2""#,
        "\tX-MATRIX\torigin = \"a.example:8448\",destination= b.example ,key =ed25519:k_1,sig=dGVzdA ",
    ];
    for header in spellings {
        assert_eq!(parsed(header), Ok(plain()), "{header}");
    }
}

#[test] // "recipients should accept requests without this parameter"
fn the_destination_may_be_missing() {
    let header = r#"X-Matrix origin="a.example:8448",key="ed25519:k_1",sig="dGVzdA""#;
    let expected = XMatrix {
        destination: None,
        ..plain()
    };
    assert_eq!(parsed(header), Ok(expected));
}

#[test]
fn what_is_no_header_is_refused_and_never_panics() {
    use HeaderError::{Parameter, Scheme, Syntax, TooLong};
    let cases = [
        ("", Scheme),
        ("X-Matrix", Scheme),
        ("Bearer token", Scheme),
        ("X-Matrixorigin=a", Scheme),
        ("X-Matrix ,", Parameter("origin")),
        ("X-Matrix origin", Syntax),
        ("X-Matrix =a", Syntax),
        ("X-Matrix origin=\"a", Syntax),
        ("X-Matrix origin=\"a\\", Syntax),
        ("X-Matrix origin=\"a\"b,key=c", Syntax),
        ("X-Matrix origin=a b,key=c", Syntax),
        (
            "X-Matrix origin=a,origin=a,key=k,sig=dGVzdA",
            Parameter("origin"),
        ),
        ("X-Matrix origin=a,key=k,KEY=k,sig=dGVzdA", Parameter("key")),
        ("X-Matrix origin=,key=k,sig=dGVzdA", Parameter("origin")),
        ("X-Matrix origin=a/b,key=k,sig=dGVzdA", Parameter("origin")),
        (
            "X-Matrix origin=a:999999,key=k,sig=dGVzdA",
            Parameter("origin"),
        ),
        (
            "X-Matrix origin=a,destination=b/,key=k,sig=dGVzdA",
            Parameter("destination"),
        ),
        ("X-Matrix origin=a,key=,sig=dGVzdA", Parameter("key")),
        ("X-Matrix origin=a,sig=dGVzdA", Parameter("key")),
        ("X-Matrix origin=a,key=k", Parameter("sig")),
        ("X-Matrix origin=a,key=k,sig=!", Parameter("sig")),
        ("X-Matrix origin=ä,key=k,sig=dGVzdA", Parameter("origin")),
    ];
    for (header, error) in cases {
        assert_eq!(parsed(header), Err(error), "{header}");
    }
    let long = format!(
        "X-Matrix origin=a,key=k,sig=dGVzdA,v={}",
        "x".repeat(HEADER_BYTES_MAX)
    );
    assert_eq!(parsed(&long), Err(TooLong));
}

#[test]
fn every_cut_and_every_changed_byte_of_a_header_is_read_without_a_panic() {
    let header = r#"X-Matrix origin="a\.b",destination=c:1 , key="ed25519:ä",sig="dGVzdA==""#;
    let mut read = 0;
    for at in 0..header.len() {
        for text in [header.get(..at), header.get(at..)].into_iter().flatten() {
            read += usize::from(parsed(text).is_ok());
        }
        for byte in *b" \t,=\"\\:x\0" {
            let mut bytes = header.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = std::str::from_utf8(&bytes) {
                read += usize::from(parsed(text).is_ok());
            }
        }
    }
    assert!(read > 50, "{read}");
}

fn key(name: &str, seed: u8) -> ServerKey {
    ServerKey::from_seed(name.try_into().unwrap(), &[seed; 32], "k_1")
}

fn request<'a>(target: &'a str, body: &'a [u8]) -> Request<'a> {
    Request {
        method: "PUT",
        target,
        origin: server_name!("a.example"),
        destination: server_name!("b.example"),
        body,
    }
}

#[test]
fn a_request_verifies_exactly_as_it_was_signed() {
    let (key, target) = (key("a.example", 1), "/_matrix/x/%21a%3Ab/+?q=%24e&empty=");
    let signed = request(target, br#"{"b":1,"a":"\u00e9"}"#);
    let header = XMatrix::parse(&signed.sign(&key).unwrap()).unwrap();
    assert_eq!(header.origin, "a.example");
    assert_eq!(
        header.destination.as_deref(),
        Some(server_name!("b.example"))
    );
    assert_eq!(header.key_id, "ed25519:k_1");
    let public = key.key_pair().public_key();
    header.verify(&signed, &public).unwrap();
    // Another way to write the same JSON is the same content.
    let same = request(target, "{ \"a\": \"é\", \"b\": 1 }".as_bytes());
    header.verify(&same, &public).unwrap();

    let others = [
        request("/_matrix/x/!a:b/+?q=%24e&empty=", signed.body),
        request("/_matrix/x/%21a%3ab/+?q=%24e&empty=", signed.body),
        request("/_matrix/x/%21a%3Ab/%20?q=%24e&empty=", signed.body),
        request("/_matrix/x/%21a%3Ab/+?q=$e&empty=", signed.body),
        request("/_matrix/x/%21a%3Ab/+?q=%24e&empty", signed.body),
        request("/_matrix/x/%21a%3Ab/+", signed.body),
        request(target, br#"{"b":1,"a":"e"}"#),
        request(target, b"{}"),
        request(target, b""),
        Request {
            method: "POST",
            ..signed
        },
        Request {
            origin: server_name!("c.example"),
            ..signed
        },
        Request {
            destination: server_name!("c.example"),
            ..signed
        },
    ];
    for other in others {
        header.verify(&other, &public).unwrap_err();
    }
    let wrong = ServerKey::from_seed("a.example".try_into().unwrap(), &[2; 32], "k_1");
    header
        .verify(&signed, &wrong.key_pair().public_key())
        .unwrap_err();
    header.verify(&signed, b"short").unwrap_err();
}

#[test] // An empty query is a part of the target, and an empty object is a body.
fn nothing_and_empty_are_different() {
    let key = key("a.example", 1);
    let public = key.key_pair().public_key();
    let pairs = [
        (request("/x", b""), request("/x?", b"")),
        (request("/x", b""), request("/x", b"{}")),
    ];
    for (one, other) in pairs {
        let header = XMatrix::parse(&one.sign(&key).unwrap()).unwrap();
        header.verify(&one, &public).unwrap();
        header.verify(&other, &public).unwrap_err();
    }
}

#[test] // Two implementations agree.
fn what_is_signed_is_what_ruma_signs() {
    let key = key("a.example", 1);
    let body = json!({ "z": [1, { "b": null, "a": true }], "\u{ff61}": "\u{1f600}", "é": "\u{7}\n/\u{7f}" });
    let body = serde_json::to_vec(&body).unwrap();
    let object: ruma::CanonicalJsonObject = serde_json::from_value(json!({
        "method": "PUT", "uri": "/x?y", "origin": "a.example", "destination": "b.example",
        "content": serde_json::from_slice::<Value>(&body).unwrap(),
    }))
    .unwrap();
    let expected = serde_json::to_vec(&object).unwrap();
    assert_eq!(request("/x?y", &body).signed_bytes().unwrap(), expected);
    assert!(request("/x", b"{").sign(&key).is_err());
}

#[test] // Refused in an event, but no reason to refuse the whole transaction.
fn a_body_with_numbers_that_canonical_json_does_not_know_can_be_signed() {
    let key = key("a.example", 1);
    let signed = request(
        "/x",
        br#"{"pdus":[{"content":{"a":1.5,"b":9007199254740993}}]}"#,
    );
    let header = XMatrix::parse(&signed.sign(&key).unwrap()).unwrap();
    header
        .verify(&signed, &key.key_pair().public_key())
        .unwrap();
}
