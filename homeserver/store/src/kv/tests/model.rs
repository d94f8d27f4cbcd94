//! Every engine against a map in memory, with random batches, scans and restarts. A failure
//! prints its seed; `STORE_SEED` runs another one.

use std::collections::BTreeMap;
use std::env;
use std::ops::ControlFlow;

use super::*;

const STEPS: usize = 1_200;
const REOPEN_EVERY: usize = 150;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

#[test]
fn sled_agrees_with_a_map() {
    agrees_with_a_map(Place::new(SLED));
}

#[test]
fn fjall_agrees_with_a_map() {
    agrees_with_a_map(Place::new(FJALL));
}

#[test]
fn memory_agrees_with_a_map() {
    agrees_with_a_map(Place::new(Engine::Memory));
}

fn agrees_with_a_map(mut place: Place) {
    let first = env::var("STORE_SEED").map_or(20_261_124, |seed| seed.parse().unwrap());
    let mut seed = first;
    let (mut current, mut flushed) = (Rows::new(), Rows::new());
    for step in 0..STEPS {
        let kv = place.kv();
        match below(&mut seed, 10) {
            0..4 => {
                let batch: Vec<Row> = (0..below(&mut seed, 8)).map(|_| row(&mut seed)).collect();
                kv.apply(&batch).unwrap();
                for (key, value) in batch {
                    match value {
                        Some(value) => current.insert(key, value),
                        None => current.remove(&key),
                    };
                }
            }
            4..6 => {
                let key = key(&mut seed);
                assert_eq!(
                    kv.get(&key).unwrap().as_ref(),
                    current.get(&key),
                    "seed {first}, step {step}"
                );
            }
            6..9 => {
                let (from, to) = (key(&mut seed), key(&mut seed));
                let limit = 1 + below(&mut seed, 60);
                for direction in [Direction::Ascending, Direction::Descending] {
                    let expected = expected(&current, &from, &to, direction, limit);
                    let found = some_rows(kv, &from, &to, direction, limit);
                    assert!(
                        found == expected,
                        "seed {first}, step {step}: {from:?}..{to:?}"
                    );
                }
            }
            _ => {
                kv.flush().unwrap();
                flushed = current.clone();
            }
        }
        if step % REOPEN_EVERY == REOPEN_EVERY - 1 {
            if place.engine == Engine::Memory {
                // The one engine whose power can be cut in here.
                current = flushed.clone();
            } else {
                place.kv().flush().unwrap();
                flushed = current.clone();
            }
            place.reopen();
            let found: Rows = all_rows(place.kv()).into_iter().collect();
            assert!(found == current, "seed {first}, step {step}: reopened");
        }
    }
    assert!(
        current.len() > 100,
        "the test must have rows to look at: {}",
        current.len()
    );
}

fn expected(
    rows: &Rows,
    from: &[u8],
    to: &[u8],
    direction: Direction,
    limit: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let between = rows
        .iter()
        .filter(|(key, _)| (from..to).contains(&key.as_slice()));
    let between = between.map(|(key, value)| (key.clone(), value.clone()));
    match direction {
        Direction::Ascending => between.take(limit).collect(),
        Direction::Descending => between.rev().take(limit).collect(),
    }
}

fn some_rows(
    kv: &dyn Kv,
    from: &[u8],
    to: &[u8],
    direction: Direction,
    limit: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    kv.scan(from, to, direction, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() == limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    rows
}

/// Few enough keys that batches meet, with bytes at the edges.
fn key(seed: &mut u64) -> Vec<u8> {
    let bytes = [0x00, 0x01, 0x02, 0x7f, 0x80, 0xfe, 0xff];
    let length = 1 + below(seed, 4);
    let mut key: Vec<u8> = (0..length)
        .map(|_| bytes[below(seed, bytes.len())])
        .collect();
    match below(seed, 12) {
        0 => key.extend([0xff; 8]),
        1 => key.extend([0x00; 8]),
        2 => key.resize(400, 7),
        _ => {}
    }
    key
}

/// Sizes around the limit of a stored value, now and then a large one, now and then none.
fn row(seed: &mut u64) -> Row {
    let value = match below(seed, 40) {
        0..6 => None,
        6..10 => Some(4_090 + below(seed, 10)),
        10 => Some(8_188 + below(seed, 10)),
        11 => Some(below(seed, 70_000)),
        _ => Some(below(seed, 200)),
    };
    (key(seed), value.map(|bytes| filler(random(seed), bytes)))
}
