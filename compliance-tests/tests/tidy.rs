//! The rules of the house, as tests: what is promised is served, what is served is written down, who
//! may not call is turned away, and the crates depend on each other as drawn.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects should end there"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use compliance_tests::World;
use http::Method;
use serde_json::{Value, json};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// A path with every argument called alike.
fn shape(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        if segment.starts_with('{') {
            "{}"
        } else {
            segment
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

/// The rows of `spec/coverage.md`: method and shape of the path → status.
fn coverage() -> BTreeMap<(String, String), String> {
    let text = std::fs::read_to_string(top().join("spec/coverage.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("| `/"));
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (method, path, status) = (cells[1], cells[2].trim_matches('`'), cells[3]);
        assert!(["done", "partial", "absent"].contains(&status), "{line}");
        ((method.to_owned(), shape(path)), status.to_owned())
    })
    .collect()
}

#[tokio::test]
async fn what_coverage_says_is_what_the_router_serves() {
    let world = World::new().await;
    let served: BTreeSet<(String, String)> = world
        .server()
        .routes
        .iter()
        .map(|route| (route.method.clone(), shape(&route.path)))
        .collect();
    let coverage = coverage();
    for (row, status) in &coverage {
        assert_eq!(
            served.contains(row),
            status != "absent",
            "{row:?} is {status} in spec/coverage.md"
        );
    }
    for route in &served {
        assert!(
            coverage.contains_key(route),
            "{route:?} is served, but not in spec/coverage.md"
        );
    }
}

#[tokio::test]
async fn every_endpoint_that_needs_a_login_refuses_a_missing_and_a_wrong_token() {
    let world = World::with(|config| config.federation.enabled = true).await;
    for route in world.server().routes.iter().filter(|route| !route.public) {
        let path: Vec<&str> = route
            .path
            .split('/')
            .map(|segment| {
                if segment.starts_with('{') {
                    "x"
                } else {
                    segment
                }
            })
            .collect();
        let path = path.join("/");
        let method = Method::from_bytes(route.method.as_bytes()).unwrap();
        let body = json!({});
        // Servers do not log in, they sign.
        let signed = path.starts_with("/_matrix/federation/");
        let refusal = |errcode: &'static str| {
            let errcode = if signed { "M_UNAUTHORIZED" } else { errcode };
            (401, errcode.to_owned())
        };
        let reply = world
            .request(method.clone(), &path, None, Some(&body))
            .await;
        assert_eq!(reply.error(), refusal("M_MISSING_TOKEN"), "{method} {path}");
        let reply = world
            .request(method.clone(), &path, Some("wrong"), Some(&body))
            .await;
        assert_eq!(reply.error(), refusal("M_UNKNOWN_TOKEN"), "{method} {path}");
    }
}

#[test]
fn the_crates_depend_on_each_other_as_drawn() {
    let drawn: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([
        ("federation", BTreeSet::new()),
        ("guild-bridge", BTreeSet::new()),
        ("voice", BTreeSet::new()),
        ("store", BTreeSet::from(["federation"])),
        ("homeserver", BTreeSet::from(["federation", "store"])),
        ("compliance-tests", BTreeSet::from(["homeserver", "store"])),
        ("load", BTreeSet::new()),
    ]);
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(top())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut real: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let depends = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|dependency| {
                let name = dependency["name"].as_str()?;
                drawn.contains_key(name).then_some(name)
            });
        real.insert(package["name"].as_str().unwrap(), depends.collect());
    }
    assert_eq!(real, drawn);
}

#[test]
fn the_pure_crates_know_no_clock_no_disk_and_no_network() {
    for crate_name in ["federation", "guild-bridge"] {
        for file in sources(&top().join(crate_name).join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            for banned in ["tokio", "std::net", "std::fs", "SystemTime", "Instant::now"] {
                assert!(!text.contains(banned), "{} names {banned}", file.display());
            }
        }
    }
}

#[test]
fn only_the_store_names_its_engines() {
    for file in sources(&top().join("homeserver/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            !text.contains("sled::") && !text.contains("fjall::"),
            "{}",
            file.display()
        );
    }
}

#[test]
fn every_keyspace_has_a_byte_of_its_own() {
    let mut seen = BTreeMap::new();
    for (name, keyspace) in store::keys::Keyspace::ALL {
        if let Some(other) = seen.insert(keyspace.0, name) {
            panic!("{name} and {other} share the byte {:#04x}", keyspace.0);
        }
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
