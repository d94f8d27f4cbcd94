//! Requests between servers: their signature, and where a server is.

use federation::wire::{
    discovery::{Discovery, KEEP_MS_MAX, Next, SRV_MAX, Srv, delegated, in_order, keep_ms},
    request::{HEADER_BYTES_MAX, HeaderError, Request, XMatrix},
};
use proptest::{collection::vec, option, prelude::*};
use ruma::{
    OwnedServerName, ServerName,
    serde::{Base64, base64::Standard},
};

use crate::samples::{json, key_of, quick, server, slow, text};

/// How many questions lead to a server: the well-known answer, and two names for SRV records.
const QUESTIONS_MAX: usize = 3;

/// `name=value` in one of its spellings.
fn spelled(
    name: impl Strategy<Value = String>,
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    let blanks = || "[ \t]{0,2}";
    (blanks(), name, blanks(), value, any::<bool>(), blanks()).prop_map(
        |(before, name, between, value, quoted, behind)| {
            let value = if quoted { quote(&value) } else { value };
            format!("{before}{name}{between}={value}{behind}")
        },
    )
}

/// Text that is the header of a signed request, with something more in it now and then.
fn header() -> impl Strategy<Value = String> {
    let parameters = (
        spelled("(?i:origin)", server()),
        spelled("(?i:key)", "ed25519:[a-z_]{0,3}"),
        spelled("(?i:sig)", "([A-Za-z0-9+/]{4}){0,3}"),
        option::of(spelled("(?i:destination)", server())),
        option::weighted(0.2, spelled(text(), text())),
    );
    let shuffled = parameters
        .prop_map(|(origin, key, sig, destination, more)| {
            let further = [destination, more].into_iter().flatten();
            [origin, key, sig]
                .into_iter()
                .chain(further)
                .collect::<Vec<_>>()
        })
        .prop_shuffle();
    shuffled.prop_map(|parameters| format!("X-Matrix {}", parameters.join(",")))
}

/// Text that is nearly such a header.
fn odd_header() -> impl Strategy<Value = String> {
    let name = prop_oneof![8 => "(?i:origin|destination|key|sig)", 1 => text()];
    let parameters = vec(spelled(name, prop_oneof![server(), text()]), 0..6);
    (parameters, 0_usize..9).prop_map(|(parameters, odd)| match odd {
        0 => parameters.join(" "),
        1 => format!("X-Matrix {}", parameters.join(",").repeat(50)),
        _ => format!("X-Matrix {}", parameters.join(",")),
    })
}

/// "quoted-string" of RFC 9110.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn srv() -> impl Strategy<Value = Srv> {
    let target = prop_oneof![4 => "[a-z.]{1,12}", 1 => Just(".".to_owned()), 1 => text()];
    (0_u16..3, any::<u16>(), target, any::<u16>()).prop_map(|(priority, weight, target, port)| {
        Srv {
            priority,
            weight,
            target,
            port,
        }
    })
}

proptest! {
    #![proptest_config(quick())]

    #[test] // Server-server API, "Request Authentication"
    fn a_header_that_is_read_means_the_same_when_it_is_written_again(
        header in prop_oneof![4 => header(), 2 => odd_header(), 1 => any::<String>()],
    ) {
        match XMatrix::parse(&header) {
            Ok(read) => {
                prop_assert!(header.len() <= HEADER_BYTES_MAX);
                let destination = read.destination.as_ref().map(|name| format!(r#"destination="{name}","#));
                let written = format!(
                    r#"X-Matrix {}origin="{}",key={},sig="{}""#,
                    destination.unwrap_or_default(),
                    read.origin,
                    quote(&read.key_id),
                    Base64::<Standard, _>::new(&read.signature),
                );
                prop_assert_eq!(XMatrix::parse(&written), Ok(read));
            }
            Err(error) => {
                prop_assert_eq!(error == HeaderError::TooLong, header.len() > HEADER_BYTES_MAX);
            }
        }
    }

    #[test] // Server-server API, "Resolving server names"
    fn the_way_to_any_server_ends(
        name in server(), well_known in option::of(server()), answers in vec(vec(srv(), 0..12), QUESTIONS_MAX),
    ) {
        let Ok(name) = ServerName::parse(name) else { return Ok(()) };
        let well_known = well_known.and_then(|name| ServerName::parse(name).ok());
        let mut discovery = Discovery::new(&name);
        for answer in answers {
            match discovery.next() {
                Next::WellKnown(host) => {
                    prop_assert_eq!(host, name.host());
                    discovery.well_known(well_known.as_deref());
                }
                Next::Srv(_) => discovery.srv(answer),
                Next::Found(_) | Next::Nowhere => break,
            }
        }
        match discovery.next() {
            Next::Found(route) => {
                prop_assert!((1..=SRV_MAX).contains(&route.targets.len()));
                prop_assert!(!route.host_header.is_empty());
            }
            Next::Nowhere => {}
            next => prop_assert!(false, "still asks {:?}", next),
        }
    }

    #[test] // Server-server API, "Resolving server names"
    fn a_well_known_answer_that_names_a_server_is_read_and_no_other(name in text(), other in vec(any::<u8>(), 0..64)) {
        let body = serde_json::to_vec(&serde_json::json!({ "m.server": name })).unwrap();
        prop_assert_eq!(delegated(&body), ServerName::parse(&name).ok());
        prop_assert_eq!(delegated(&other), None);
    }

    #[test]
    fn an_answer_is_kept_for_a_bounded_time(
        failures in any::<u32>(), control in option::of("[a-z=, \"0-9-]{0,40}|max-age=[0-9]{1,30}"), expires in any::<Option<u64>>(),
    ) {
        let kept_ms = keep_ms(failures, control.as_deref(), expires);
        prop_assert!((5 * 60_000..=KEEP_MS_MAX).contains(&kept_ms));
    }

    #[test] // RFC 2782, "Usage rules"
    fn srv_records_are_tried_by_priority_and_none_is_lost(records in vec(srv(), 0..12), drawn in any::<u32>()) {
        let ordered = in_order(records.clone(), |below| drawn % below);
        prop_assert!(ordered.is_sorted_by_key(|record| record.priority));
        let sorted = |mut records: Vec<Srv>| {
            records.sort_by_key(|record| format!("{record:?}"));
            records
        };
        prop_assert_eq!(sorted(ordered), sorted(records));
    }
}

proptest! {
    #![proptest_config(slow())]

    #[test] // Server-server API, "Request Authentication"
    fn a_signature_is_for_one_request_alone(
        origin in "[a-z]{1,8}(:[0-9]{1,4})?", target in "/[ -~]{0,20}", body in option::of(json()), other in json(),
    ) {
        let [origin, destination] =
            [origin.as_str(), "b.example"].map(|name| OwnedServerName::try_from(name).unwrap());
        let key = key_of(origin.as_str());
        let bytes = |body: &serde_json::Value| serde_json::to_vec(body).unwrap();
        let signed = body.as_ref().map(bytes).unwrap_or_default();
        let request = Request {
            method: "PUT", target: &target, origin: &origin, destination: &destination, body: &signed,
        };
        let header = XMatrix::parse(&request.sign(&key).unwrap()).unwrap();
        prop_assert_eq!(&header.origin, &origin);
        prop_assert_eq!(header.destination.as_ref(), Some(&destination));
        let public = &key.key_pair().public_key();
        header.verify(&request, public).unwrap();
        let longer = format!("{target}x");
        let mut others = vec![
            Request { target: &longer, ..request },
            Request { method: "GET", ..request },
            Request { destination: &origin, ..request },
        ];
        let other_body = bytes(&other);
        if body.as_ref() != Some(&other) {
            others.push(Request { body: &other_body, ..request });
        }
        for other in others {
            prop_assert!(header.verify(&other, public).is_err(), "{:?}", other);
        }
    }
}
