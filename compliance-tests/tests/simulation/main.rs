//! Seeds of the [simulation](compliance_tests::simulation): each is a world of several servers in bad weather.
//!
//! `SIMULATION_SEEDS=2000` says how many seeds are run, `SIMULATION_FIRST=1234` with which to begin. A failure
//! prints the seed and what happened step by step; `SIMULATION_FIRST=<seed> SIMULATION_SEEDS=1` does it again, and
//! `SIMULATION_LOG=info` with `--nocapture` shows what the servers log between the steps.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use compliance_tests::simulation::{Run, run};

/// How many seeds are run if nobody says.
const SEEDS: u64 = 40;

/// How many seeds are run twice.
const SEEDS_TWICE: u64 = 6;

/// How many threads run seeds; no two have anything in common.
const THREADS: usize = 2;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}

/// Runs these seeds on all threads; what `look` makes of each, by seed.
fn runs<T: Send>(first: u64, count: u64, look: impl Fn(Run) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(first);
    let looked = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let looked_at = look(run(seed));
                    let mut looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
                    looked.push((seed, looked_at));
                }
            });
        }
    });
    let mut looked = looked.into_inner().unwrap_or_else(PoisonError::into_inner);
    looked.sort_by_key(|(seed, _)| *seed);
    looked.into_iter().map(|(_, looked_at)| looked_at).collect()
}

#[test]
fn servers_agree_whatever_was_lost_forked_or_crashed() {
    if let Ok(filter) = std::env::var("SIMULATION_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_ansi(false)
            .init();
    }
    let (first, count) = (
        number("SIMULATION_FIRST", 0),
        number("SIMULATION_SEEDS", SEEDS),
    );
    let failed = runs(first, count, |run| {
        (!run.problems.is_empty()).then_some(run)
    });
    let failed: Vec<Run> = failed.into_iter().flatten().collect();
    let Some(shown) = failed.iter().min_by_key(|run| run.trace.len()) else {
        return;
    };
    let problems: Vec<String> = failed
        .iter()
        .map(|run| format!("seed {}: {}", run.seed, run.problems.join("\n    ")))
        .collect();
    panic!(
        "the steps of seed {}:\n{}\n\n{} of {count} seeds failed:\n{}",
        shown.seed,
        shown.trace.join("\n"),
        failed.len(),
        problems.join("\n"),
    );
}

#[test]
fn a_seed_does_the_same_whenever_it_is_run() {
    let first = number("SIMULATION_FIRST", 0);
    let once = runs(first, SEEDS_TWICE, |run| run);
    let again = runs(first, SEEDS_TWICE, |run| run);
    for (one, other) in once.iter().zip(&again) {
        let mut steps = one.trace.iter().zip(&other.trace);
        let differ = steps.find(|(one, other)| one != other);
        assert_eq!(differ, None, "seed {} does not replay", one.seed);
        assert_eq!(one.digest, other.digest, "seed {}", one.seed);
    }
}
