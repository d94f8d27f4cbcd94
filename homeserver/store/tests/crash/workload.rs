//! Batches whose content follows from their number, so that a store can be compared, row by row,
//! with what it must hold after the last of them: half a batch, a lost one and a batch too many
//! all show.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use store::kv::{Direction, END, Kv, Row};

use crate::random;

/// Batches that are applied before a flush, at most.
pub(crate) const GROUP_MAX: u64 = 6;

/// For how many batches a row of the log stays.
const WINDOW: u64 = 40;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// The rows of batch `number`, counted from 1.
///
/// It overwrites eight rows with values of 0 bytes to 65 KB, so that small ones replace large
/// ones and the other way round; adds to a log that grows and to one that shrinks below zero;
/// removes what it added 40 batches ago; and writes or deletes one of seven rows of 9 KB.
pub(crate) fn batch(number: u64) -> Vec<Row> {
    let mut rows: Vec<Row> = (0..8_u8)
        .map(|slot| {
            let bytes = match (number + u64::from(slot)) % 32 {
                0 => 20_000,
                1 if number.is_multiple_of(4) => 65_000,
                2 => 4_090 + number % 10,
                _ => number % 400,
            };
            (vec![1, slot], Some(value(number, slot.into(), bytes)))
        })
        .collect();
    rows.push((log(number), Some(value(number, 100, 300 + number % 1_000))));
    rows.push((backwards(number), Some(value(number, 101, 50))));
    if number > WINDOW {
        rows.push((log(number - WINDOW), None));
        rows.push((backwards(number - WINDOW), None));
    }
    let seventh = (!number.is_multiple_of(3)).then(|| value(number, 102, 9_000));
    rows.push((vec![4, u8::try_from(number % 7).expect("below 7")], seventh));
    rows
}

/// Applies batches `first..` in a group and makes them last; returns the last one.
pub(crate) fn write_group(kv: &dyn Kv, first: u64) -> Result<u64, store::kv::KvError> {
    let last = first + first % GROUP_MAX;
    for number in first..=last {
        kv.apply(&batch(number))?;
    }
    kv.flush()?;
    Ok(last)
}

/// Compares the store with what it must hold, having acknowledged all batches up to
/// `acknowledged`. Returns the last batch it holds: unacknowledged ones may be there too.
pub(crate) fn check(kv: &dyn Kv, acknowledged: u64) -> u64 {
    let last = kv
        .get(&[1, 0])
        .expect("the store can be read")
        .map_or(0, |value| {
            u64::from_be_bytes(
                *value
                    .first_chunk()
                    .expect("a value starts with its batch's number"),
            )
        });
    assert!(
        last >= acknowledged,
        "batch {acknowledged} was acknowledged; the last is {last}"
    );
    assert!(
        last <= acknowledged + GROUP_MAX,
        "batch {last} is there, and after {acknowledged} at most {GROUP_MAX} were written"
    );
    let expected = expected(last);
    for direction in [Direction::Ascending, Direction::Descending] {
        let mut found = Rows::new();
        kv.scan(&[], END, direction, &mut |key, value| {
            found.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .expect("the store can be read");
        for (key, value) in &expected {
            let found = found.get(key).map(|value| name(value));
            assert_eq!(
                found,
                Some(name(value)),
                "row {key:?} after batch {last}, {direction:?}"
            );
        }
        for key in found.keys() {
            assert!(
                expected.contains_key(key),
                "row {key:?} is left after batch {last}"
            );
        }
        assert!(found == expected, "the store after batch {last}");
    }
    last
}

/// All rows after batch `last`.
fn expected(last: u64) -> Rows {
    let mut rows = Rows::new();
    // No row is older: the logs are the longest memory there is.
    for number in last.saturating_sub(WINDOW + 10)..=last {
        if number == 0 {
            continue;
        }
        for (key, value) in batch(number) {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }
    rows
}

/// The number of its batch, and bytes that follow from number and row.
fn value(number: u64, row: u64, bytes: u64) -> Vec<u8> {
    let mut seed = number << 8 | row;
    let words = std::iter::repeat_with(|| random(&mut seed).to_be_bytes());
    let bytes = usize::try_from(bytes).expect("values are small");
    number
        .to_be_bytes()
        .into_iter()
        .chain(words.flatten().take(bytes))
        .collect()
}

/// A value in a message: its length and the number of its batch.
fn name(value: &[u8]) -> (usize, Option<u64>) {
    (
        value.len(),
        value
            .first_chunk()
            .map(|number| u64::from_be_bytes(*number)),
    )
}

fn log(number: u64) -> Vec<u8> {
    [&[2][..], &number.to_be_bytes()].concat()
}

/// Sorts before what was written earlier, as backfilled events do.
fn backwards(number: u64) -> Vec<u8> {
    [&[3][..], &((1 << 63) - number).to_be_bytes()].concat()
}
