//! What every engine does in the same way: the contract of [`Kv`], sentence by sentence.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};

use super::*;
use crate::kv::{FIRST_PAGE_ROWS, KEY_BYTES_MAX, VALUE_BYTES_MAX};

macro_rules! for_every_engine {
    ($($test:ident,)*) => {
        mod sled { $(#[test] fn $test() { super::$test(super::Place::new(super::SLED)); })* }
        mod fjall { $(#[test] fn $test() { super::$test(super::Place::new(super::FJALL)); })* }
        mod memory {
            $(#[test] fn $test() { super::$test(super::Place::new(super::Engine::Memory)); })*
        }
    };
}

for_every_engine! {
    an_empty_store_has_no_rows,
    a_row_is_written_overwritten_and_deleted,
    a_scan_includes_from_and_excludes_to,
    a_scan_ends_when_told,
    a_scan_visits_many_rows_once_each_and_in_order,
    a_scan_crosses_from_positive_to_negative_orders,
    keys_sort_bytewise_and_may_hold_any_byte,
    keys_and_values_of_the_longest_length_are_kept,
    longer_keys_and_values_and_empty_keys_panic,
    values_of_every_size_replace_each_other,
    the_last_row_with_a_key_counts,
    an_empty_batch_changes_nothing,
    flushed_rows_are_there_after_reopening,
    readers_see_whole_batches,
    a_visit_may_use_the_store,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn an_empty_store_has_no_rows(place: Place) {
    assert_eq!(place.kv().get(b"key").unwrap(), None);
    assert_eq!(all_rows(place.kv()), []);
    assert_eq!(rows(place.kv(), &[], END, Direction::Descending), []);
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn a_row_is_written_overwritten_and_deleted(place: Place) {
    let kv = place.kv();
    kv.apply(&[put("key", "first")]).unwrap();
    assert_eq!(kv.get(b"key").unwrap(), Some(b"first".to_vec()));
    kv.apply(&[put("key", "")]).unwrap();
    assert_eq!(kv.get(b"key").unwrap(), Some(Vec::new()));
    assert_eq!(kv.get(b"ke").unwrap(), None);
    assert_eq!(kv.get(b"keys").unwrap(), None);
    kv.apply(&[delete("key"), delete("never there")]).unwrap();
    assert_eq!(kv.get(b"key").unwrap(), None);
    assert_eq!(all_rows(kv), []);
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn a_scan_includes_from_and_excludes_to(place: Place) {
    let kv = place.kv();
    kv.apply(&[put("b", "1"), put("c", "2"), put("c\0", "3"), put("d", "4")])
        .unwrap();
    for (from, to, expected) in [
        ("b", "d", vec!["b", "c", "c\0"]),
        ("a", "e", vec!["b", "c", "c\0", "d"]),
        ("", "c", vec!["b"]),
        ("c", "c\0", vec!["c"]),
        ("c\0", "d\0", vec!["c\0", "d"]),
        ("c", "c", vec![]),
        ("d", "b", vec![]),
        ("e", "f", vec![]),
        ("", "a", vec![]),
    ] {
        let mut expected: Vec<Vec<u8>> = expected.into_iter().map(Into::into).collect();
        let (from, to) = (from.as_bytes(), to.as_bytes());
        assert_eq!(
            keys(kv, from, to, Direction::Ascending),
            expected,
            "{from:?}..{to:?}"
        );
        expected.reverse();
        assert_eq!(
            keys(kv, from, to, Direction::Descending),
            expected,
            "{to:?}..{from:?}"
        );
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn a_scan_ends_when_told(place: Place) {
    let kv = place.kv();
    let batch: Vec<Row> = (0..100_u8).map(|number| put([number], [number])).collect();
    kv.apply(&batch).unwrap();
    for wanted in [1, FIRST_PAGE_ROWS, FIRST_PAGE_ROWS + 1, 99] {
        for direction in [Direction::Ascending, Direction::Descending] {
            let mut visited = 0;
            kv.scan(&[], END, direction, &mut |_key, _value| {
                visited += 1;
                if visited == wanted {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
            assert_eq!(visited, wanted, "{direction:?}");
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn a_scan_visits_many_rows_once_each_and_in_order(place: Place) {
    let kv = place.kv();
    let mut expected: Vec<(Vec<u8>, Vec<u8>)> = (0..3_000_u16)
        .map(|number| (number.to_be_bytes().to_vec(), filler(number.into(), 20)))
        .collect();
    // From the middle outwards, so that no engine can rely on the order of writing.
    let mut batch: Vec<Row> = expected
        .iter()
        .map(|(key, value)| put(key, value))
        .collect();
    batch.rotate_left(1_700);
    for batch in batch.chunks(100) {
        kv.apply(batch).unwrap();
    }
    assert_eq!(all_rows(kv), expected);
    expected.reverse();
    assert_eq!(rows(kv, &[], END, Direction::Descending), expected);
}

/// Orders of events grow from 0 for live ones and shrink below it for backfilled ones. sled 0.34
/// panics at the border when its nodes happen to be cut there, so they are cut everywhere.
#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn a_scan_crosses_from_positive_to_negative_orders(place: Place) {
    let kv = place.kv();
    let key = |room: u8, order: i64| {
        let order = order.cast_unsigned() ^ (1 << 63);
        [&[3, 0, 0, 0, 0, 0, 0, 0, room][..], &order.to_be_bytes()].concat()
    };
    for room in 0..18 {
        // sled cuts every nine rows when they come in order. All rooms have a multiple of nine
        // rows, so the border is one row further along in each.
        let orders = -100 - i64::from(room)..170 - i64::from(room);
        for order in orders.clone() {
            kv.apply(&[put(key(room, order), order.to_be_bytes())])
                .unwrap();
        }
        let mut expected: Vec<_> = orders.map(|order| key(room, order)).collect();
        let (from, to) = (key(room, i64::MIN), key(room, i64::MAX));
        assert_eq!(
            keys(kv, &from, &to, Direction::Ascending),
            expected,
            "room {room}"
        );
        expected.reverse();
        assert_eq!(
            keys(kv, &from, &to, Direction::Descending),
            expected,
            "room {room}"
        );
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn keys_sort_bytewise_and_may_hold_any_byte(place: Place) {
    let kv = place.kv();
    let mut expected: Vec<Vec<u8>> = Vec::new();
    let bytes = [0x00, 0xfe, 0xff];
    for a in bytes {
        expected.push(vec![a]);
        for b in bytes {
            expected.push(vec![a, b]);
            for c in bytes {
                expected.push(vec![a, b, c]);
                expected.push([&[a, b, c][..], &[0xff; 9]].concat());
            }
        }
    }
    let batch: Vec<Row> = expected.iter().rev().map(|key| put(key, key)).collect();
    kv.apply(&batch).unwrap();
    expected.sort();
    for from in &expected {
        assert_eq!(kv.get(from).unwrap().as_ref(), Some(from));
        for to in &expected {
            let mut between: Vec<Vec<u8>> = expected
                .iter()
                .filter(|key| (from..to).contains(key))
                .cloned()
                .collect();
            assert_eq!(keys(kv, from, to, Direction::Ascending), between);
            between.reverse();
            assert_eq!(keys(kv, from, to, Direction::Descending), between);
        }
    }
    assert_eq!(keys(kv, &[], END, Direction::Ascending), expected);
}

fn keys_and_values_of_the_longest_length_are_kept(mut place: Place) {
    let longest = [0xff; KEY_BYTES_MAX];
    let nearly = [&[0xff; KEY_BYTES_MAX - 1][..], &[0]].concat();
    let value = filler(1, VALUE_BYTES_MAX);
    place
        .kv()
        .apply(&[put(longest, &value), put(&nearly, "small")])
        .unwrap();
    place.kv().flush().unwrap();
    place.reopen();
    assert_eq!(place.kv().get(&longest).unwrap().as_ref(), Some(&value));
    assert_eq!(
        rows(place.kv(), &[], END, Direction::Descending),
        [(longest.to_vec(), value), (nearly, b"small".to_vec())]
    );
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn longer_keys_and_values_and_empty_keys_panic(place: Place) {
    let kv = place.kv();
    let panics = |work: &dyn Fn()| catch_unwind(AssertUnwindSafe(work)).is_err();
    assert!(panics(&|| kv
        .apply(&[put([1; KEY_BYTES_MAX + 1], "")])
        .unwrap()));
    assert!(panics(&|| kv
        .apply(&[put("key", vec![1; VALUE_BYTES_MAX + 1])])
        .unwrap()));
    assert!(panics(&|| kv.apply(&[put("", "")]).unwrap()));
    assert!(panics(&|| drop(kv.get(&[1; KEY_BYTES_MAX + 1]).unwrap())));
    kv.apply(&[put("key", "a caller's bug does not end the writing")])
        .unwrap();
    kv.flush().unwrap();
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn values_of_every_size_replace_each_other(place: Place) {
    let kv = place.kv();
    let neighbours = [
        put("key", "before"),
        put("key\0\0\0", "after"),
        put("kez", "after"),
    ];
    let sizes = [
        0, 1, 4_094, 4_095, 4_096, 4_097, 8_191, 8_192, 8_193, 20_000, 65_536, 70_001,
    ];
    for (number, old) in sizes.into_iter().enumerate() {
        for new in sizes.into_iter().map(Some).chain([None]) {
            let seed = u64::try_from(number).unwrap();
            kv.apply(&neighbours).unwrap();
            kv.apply(&[put("key", filler(seed, old))]).unwrap();
            let value = new.map(|new| filler(seed + 1, new));
            kv.apply(&[(b"key".to_vec(), value.clone())]).unwrap();
            assert_eq!(kv.get(b"key").unwrap(), value, "{new:?} after {old}");
            assert_eq!(
                kv.get(b"key\0\0\0").unwrap().as_deref(),
                Some(&b"after"[..])
            );
            let expected = 2 + usize::from(value.is_some());
            let found = all_rows(kv);
            assert_eq!(found.len(), expected, "{new:?} after {old}");
            assert_eq!(
                found.iter().find(|row| row.0 == b"key").map(|row| &row.1),
                value.as_ref()
            );
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn the_last_row_with_a_key_counts(place: Place) {
    let kv = place.kv();
    kv.apply(&[
        put("a", filler(1, 30_000)),
        put("b", "1"),
        put("c", "1"),
        put("a", "small"),
        delete("b"),
        delete("c"),
        put("c", "3"),
    ])
    .unwrap();
    let expected = [
        (b"a".to_vec(), b"small".to_vec()),
        (b"c".to_vec(), b"3".to_vec()),
    ];
    assert_eq!(all_rows(kv), expected);
}

fn an_empty_batch_changes_nothing(mut place: Place) {
    place.kv().apply(&[]).unwrap();
    place.kv().flush().unwrap();
    place.kv().flush().unwrap();
    place.reopen();
    assert_eq!(all_rows(place.kv()), []);
}

fn flushed_rows_are_there_after_reopening(mut place: Place) {
    let mut expected = Vec::new();
    for number in 0..200_u8 {
        let value = filler(number.into(), 50 * usize::from(number));
        place.kv().apply(&[put([number], &value)]).unwrap();
        expected.push((vec![number], value));
        if number % 40 == 39 {
            place.kv().flush().unwrap();
            place.reopen();
            assert_eq!(all_rows(place.kv()), expected);
        }
    }
    place.kv().apply(&[delete([3]), delete([199])]).unwrap();
    place.kv().flush().unwrap();
    place.reopen();
    expected.remove(199);
    expected.remove(3);
    assert_eq!(all_rows(place.kv()), expected);
}

/// Each batch writes its number into all rows; some of them are large, and cut by some engines.
#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn readers_see_whole_batches(place: Place) {
    // Fewer rows than the first page of a scan has.
    const ROWS: u8 = 15;
    const BATCHES: u64 = 400;
    let kv = place.kv();
    let value = |row: u8, number: u64| {
        // Every fourth row is large in even batches only.
        let bytes = if row % 4 == 3 && number.is_multiple_of(2) {
            9_000
        } else {
            0
        };
        [&number.to_be_bytes()[..], &filler(number, bytes)].concat()
    };
    let batch = |number| {
        (0..ROWS)
            .map(|row| put([row], value(row, number)))
            .collect::<Vec<_>>()
    };
    let number_in = |value: &[u8]| u64::from_be_bytes(*value.first_chunk().unwrap());
    kv.apply(&batch(0)).unwrap();
    let (scans, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let readers = [Direction::Ascending, Direction::Descending].map(|direction| {
            let (scans, done) = (&scans, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    scans.fetch_add(1, Ordering::Relaxed);
                    let found = rows(kv, &[], END, direction);
                    assert_eq!(found.len(), usize::from(ROWS));
                    let number = number_in(&found[0].1);
                    for (key, found) in found {
                        assert!(
                            found == value(key[0], number),
                            "row {key:?} of batch {number}"
                        );
                    }
                    // What one read has seen, the next one sees too.
                    let mut seen = number;
                    for row in [3, 14, 0, 3] {
                        let found = kv.get(&[row]).unwrap().unwrap();
                        let number = number_in(&found);
                        assert!(found == value(row, number), "row {row} of batch {number}");
                        assert!(number >= seen, "row {row}: {number} after {seen}");
                        seen = number;
                    }
                }
            })
        });
        for number in 1..=BATCHES {
            let next = batch(number);
            // Not much faster than they read: an engine that keeps old versions would drown in
            // them.
            while number > 4 * scans.load(Ordering::Relaxed)
                && !readers.iter().all(ScopedJoinHandle::is_finished)
            {
                std::hint::spin_loop();
            }
            kv.apply(&next).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(kv.get(&[3]).unwrap().unwrap(), value(3, BATCHES));
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "all tests have the same shape"
)]
fn a_visit_may_use_the_store(place: Place) {
    let kv = place.kv();
    let batch: Vec<Row> = (0..200_u8)
        .map(|number| put([1, number], [number]))
        .collect();
    kv.apply(&batch).unwrap();
    let mut visited = 0;
    kv.scan(&[1], &[2], Direction::Ascending, &mut |key, value| {
        assert_eq!(kv.get(key).unwrap().as_deref(), Some(value));
        kv.apply(&[put([2, visited], value), delete([1, visited])])
            .unwrap();
        assert_eq!(
            keys(kv, &[2], &[3], Direction::Ascending).len(),
            usize::from(visited) + 1
        );
        visited += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(visited, 200);
    assert_eq!(
        keys(kv, &[1], &[2], Direction::Ascending),
        Vec::<Vec<u8>>::new()
    );
}
