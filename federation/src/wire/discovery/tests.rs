use super::*;

fn server(name: &str) -> OwnedServerName {
    ServerName::parse(name).unwrap()
}

fn srv(priority: u16, weight: u16, target: &str, port: u16) -> Srv {
    Srv {
        priority,
        weight,
        target: target.to_owned(),
        port,
    }
}

/// Walks the way with these answers: the questions, and where it ends.
fn walk(
    name: &str,
    well_known: Option<&str>,
    records: &[(&str, Vec<Srv>)],
) -> (Vec<String>, Option<Route>) {
    let mut discovery = Discovery::new(&server(name));
    let mut questions = Vec::new();
    for _ in 0..10 {
        match discovery.next().clone() {
            Next::WellKnown(host) => {
                questions.push(format!("well-known {host}"));
                discovery.well_known(well_known.map(server).as_deref());
            }
            Next::Srv(name) => {
                let found = records.iter().find(|(of, _)| *of == name);
                questions.push(name);
                discovery.srv(
                    found
                        .map(|(_, records)| records.clone())
                        .unwrap_or_default(),
                );
            }
            Next::Found(route) => return (questions, Some(route)),
            Next::Nowhere => return (questions, None),
        }
    }
    panic!("the way does not end");
}

#[expect(clippy::unnecessary_wraps, reason = "what a way ends with")]
fn route(host_header: &str, certificate_for: &str, targets: &[(&str, u16)]) -> Option<Route> {
    let host = |text: &str| {
        text.parse()
            .map_or_else(|_| Host::Name(text.to_owned()), Host::Address)
    };
    Some(Route {
        host_header: host_header.to_owned(),
        certificate_for: host(certificate_for),
        targets: targets
            .iter()
            .map(|(name, port)| Target {
                host: host(name),
                port: *port,
            })
            .collect(),
    })
}

#[test] // Step 1
fn an_address_is_used_as_it_is_with_8448_if_it_has_no_port() {
    for (name, address, port) in [
        ("1.2.3.4", "1.2.3.4", 8448),
        ("1.2.3.4:99", "1.2.3.4", 99),
        ("[2001:db8::1]", "2001:db8::1", 8448),
        ("[2001:db8::1]:99", "2001:db8::1", 99),
    ] {
        assert_eq!(
            walk(name, None, &[]),
            (vec![], route(name, address, &[(address, port)]))
        );
    }
}

#[test] // Step 2
fn a_port_in_the_name_leaves_nothing_to_ask() {
    let expected = route("a.example:8448", "a.example", &[("a.example", 8448)]);
    assert_eq!(
        walk("a.example:8448", Some("b.example"), &[]),
        (vec![], expected)
    );
}

#[test] // Steps 3.1 and 3.2
fn a_delegated_address_or_port_is_used_and_spoken_to_by_its_own_name() {
    let asked = vec!["well-known a.example".to_owned()];
    for (to, certificate_for, port) in [
        ("1.2.3.4", "1.2.3.4", 8448),
        ("1.2.3.4:5", "1.2.3.4", 5),
        ("[2001:db8::1]:5", "2001:db8::1", 5),
        ("b.example:443", "b.example", 443),
    ] {
        let expected = route(to, certificate_for, &[(certificate_for, port)]);
        assert_eq!(walk("a.example", Some(to), &[]), (asked.clone(), expected));
    }
}

#[test] // Steps 3.3 to 3.5: host and certificate are the delegated name's, not the record's
fn a_delegated_name_is_looked_up_as_srv_and_then_used_with_8448() {
    let records = vec![srv(1, 0, "x.example.", 1), srv(2, 0, "y.example", 2)];
    let targets = [("x.example", 1), ("y.example", 2)];
    let mut asked = vec![
        "well-known a.example".to_owned(),
        "_matrix-fed._tcp.b.example".to_owned(),
    ];
    let found = [("_matrix-fed._tcp.b.example", records.clone())];
    let expected = route("b.example", "b.example", &targets);
    assert_eq!(
        walk("a.example", Some("b.example"), &found),
        (asked.clone(), expected.clone())
    );

    asked.push("_matrix._tcp.b.example".to_owned());
    let found = [("_matrix._tcp.b.example", records)];
    assert_eq!(
        walk("a.example", Some("b.example"), &found),
        (asked.clone(), expected)
    );

    let expected = route("b.example", "b.example", &[("b.example", 8448)]);
    assert_eq!(walk("a.example", Some("b.example"), &[]), (asked, expected));
}

#[test] // Steps 4 to 6
fn without_a_well_known_answer_the_same_is_done_with_the_name_itself() {
    let fed = [(
        "_matrix-fed._tcp.a.example",
        vec![srv(1, 1, "x.example", 1)],
    )];
    let (asked, found) = walk("a.example", None, &fed);
    assert_eq!(
        asked,
        ["well-known a.example", "_matrix-fed._tcp.a.example"]
    );
    assert_eq!(found, route("a.example", "a.example", &[("x.example", 1)]));
    let old = [("_matrix._tcp.a.example", vec![srv(1, 1, "x.example", 1)])];
    let (asked, found) = walk("a.example", None, &old);
    assert_eq!(asked.len(), 3);
    assert_eq!(found, route("a.example", "a.example", &[("x.example", 1)]));
    let (asked, found) = walk("a.example", None, &[]);
    assert_eq!(asked.len(), 3);
    assert_eq!(
        found,
        route("a.example", "a.example", &[("a.example", 8448)])
    );
}

#[test] // RFC 2782
fn a_record_that_leads_nowhere_ends_the_way() {
    let nowhere = [("_matrix-fed._tcp.a.example", vec![srv(0, 0, ".", 0)])];
    assert_eq!(walk("a.example", None, &nowhere).1, None);
}

#[test]
fn the_records_that_are_used_are_bounded() {
    let many = (0..100)
        .map(|number| srv(number, 0, "x.example", number))
        .collect();
    let (_, found) = walk("a.example", None, &[("_matrix-fed._tcp.a.example", many)]);
    assert_eq!(found.unwrap().targets.len(), SRV_MAX);
}

#[test]
fn an_answer_that_was_not_asked_for_changes_nothing() {
    let mut discovery = Discovery::new(&server("a.example"));
    discovery.srv(vec![srv(0, 0, "x.example", 1)]);
    assert_eq!(discovery.next(), &Next::WellKnown("a.example".to_owned()));
    discovery.well_known(None);
    let asked = discovery.next().clone();
    discovery.well_known(Some(&server("b.example:1")));
    assert_eq!(discovery.next(), &asked);
}

#[test]
fn a_well_known_answer_is_an_object_with_a_server_name() {
    let valid = [
        (r#"{"m.server":"b.example"}"#, "b.example"),
        (
            " {\"x\": [{}], \"m.server\": \"b.example:443\"}\n",
            "b.example:443",
        ),
        (r#"{"m.server":"[::1]:8448"}"#, "[::1]:8448"),
    ];
    for (body, name) in valid {
        assert_eq!(delegated(body.as_bytes()), Some(server(name)), "{body}");
    }
    let mut invalid: Vec<String> = [
        "",
        "null",
        "[]",
        "{}",
        "{",
        "<html>",
        "\"b.example\"",
        "{\"m.server\":null}",
        "{\"m.server\":1}",
        "{\"m.server\":\"\"}",
        "{\"m.server\":\"https://b.example\"}",
        "{\"m.server\":\"b.example:\"}",
        "{\"m.server\":\"b.example:99999\"}",
        "{\"m.server\":\"b example\"}",
        "{\"m.server\":\"b.example/x\"}",
        "{\"m.server\":\"@b.example\"}",
        "{\"m.server\":\"[::1\"}",
        "{\"m.server\":\"b.example\"} x",
        "{\"m.homeserver\":{\"base_url\":\"https://b.example\"}}",
        "{\"m.server\":[\"b.example\"]}",
    ]
    .map(str::to_owned)
    .into();
    invalid.push(format!(
        r#"{{"m.server":"b.example","x":"{}"}}"#,
        "x".repeat(WELL_KNOWN_BYTES_MAX)
    ));
    invalid.push("[".repeat(10_000));
    invalid.push(format!(
        r#"{{"x":{},"m.server":"b.example"}}"#,
        "[".repeat(1_000)
    ));
    for body in invalid {
        assert_eq!(delegated(body.as_bytes()), None, "{body}");
    }
    assert_eq!(delegated(b"{\"m.server\":\"\xff\"}"), None);
}

#[test] // "24 hours … 48 hours … up to an hour"
fn an_answer_is_kept_as_long_as_it_says_within_bounds() {
    let hours = |hours: u64| hours * 60 * 60 * 1_000;
    let five_minutes = 5 * 60 * 1_000;
    let cases = [
        (None, None, hours(24)),
        (Some("max-age=7200"), None, hours(2)),
        (Some("public, Max-Age=\"7200\", x"), Some(1), hours(2)),
        (Some("max-age=99999999999999999999"), None, hours(24)),
        (Some("max-age=9999999999999999"), None, hours(48)),
        (Some("max-age=0"), None, five_minutes),
        (Some("max-age=-1"), None, hours(24)),
        (Some("no-store, max-age=7200"), None, five_minutes),
        (Some("max-age=7200, no-cache"), None, five_minutes),
        (None, Some(hours(3)), hours(3)),
        (None, Some(0), five_minutes),
        (None, Some(u64::MAX), hours(48)),
    ];
    for (cache_control, expires, expected) in cases {
        assert_eq!(
            keep_ms(0, cache_control, expires),
            expected,
            "{cache_control:?} {expires:?}"
        );
    }
    let failures = [1, 2, 3, 4, 5, 100, u32::MAX]
        .map(|failures| keep_ms(failures, Some("max-age=99999"), None));
    let minutes = failures.map(|ms| ms / 60_000);
    assert_eq!(minutes, [5, 10, 20, 40, 60, 60, 60]);
}

#[test] // RFC 2782, "Usage rules"
fn records_are_tried_by_priority_and_among_equals_by_their_share() {
    let records = || {
        vec![
            srv(2, 9, "c", 1),
            srv(1, 1, "a", 1),
            srv(1, 3, "b", 1),
            srv(1, 0, "z", 1),
        ]
    };
    let names = |records: Vec<Srv>| {
        records
            .into_iter()
            .map(|record| record.target)
            .collect::<String>()
    };
    assert_eq!(names(in_order(records(), |_| 0)), "zabc");
    assert_eq!(names(in_order(records(), |below| below - 1)), "bazc");
    let mut seen = std::collections::BTreeMap::new();
    for number in 0..5 {
        let first = in_order(records(), |below| number.min(below - 1))
            .remove(0)
            .target;
        *seen.entry(first).or_insert(0) += 1;
    }
    assert_eq!(
        seen,
        [
            ("a".to_owned(), 1),
            ("b".to_owned(), 3),
            ("z".to_owned(), 1)
        ]
        .into()
    );
}

#[test]
fn every_cut_and_every_changed_byte_of_a_well_known_answer_is_read_without_a_panic() {
    let body = br#"{"a":[{}],"m.server":"[2001:db8::1]:8448"}"#;
    let mut valid = 0;
    for at in 0..body.len() {
        valid += usize::from(delegated(&body[..at]).is_some());
        valid += usize::from(delegated(&body[at..]).is_some());
        for byte in 0..=u8::MAX {
            let mut changed = body.to_vec();
            changed[at] = byte;
            if let Some(server) = delegated(&changed) {
                valid += 1;
                // Whatever it names, the way goes on from there, or ends.
                let mut discovery = Discovery::new(&self::server("a.example"));
                discovery.well_known(Some(&server));
                assert!(!matches!(discovery.next(), Next::WellKnown(_)));
            }
        }
    }
    assert!(valid > 300, "{valid}");
}
