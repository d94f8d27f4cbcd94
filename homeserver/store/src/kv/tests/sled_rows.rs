//! What lies in sled, seen with sled itself: no value above 4 KB, no chunk without its row,
//! nothing in files that are never synced.

use std::fs;

use super::*;
use crate::kv::layout::{self, Head, Stored};

/// Every row of a closed store as sled has it: the lengths of key and value.
fn stored(place: &Place) -> Vec<(usize, usize)> {
    let sled = ::sled::Config::new()
        .path(place.path())
        .segment_size(2 << 20)
        .open()
        .unwrap();
    let rows = sled.iter().map(Result::unwrap);
    rows.map(|(key, value)| (key.len(), value.len())).collect()
}

#[test]
fn no_stored_value_is_larger_than_4_kb() {
    let mut place = Place::new(SLED);
    for bytes in [4_094, 4_095, 4_096, 4_097, 65_536, 1 << 20] {
        let key = format!("{bytes}");
        place.kv().apply(&[put(key, filler(1, bytes))]).unwrap();
    }
    place.close();
    let values: Vec<usize> = stored(&place)
        .into_iter()
        .map(|(_key, value)| value)
        .collect();
    // 4,094 and 4,095 lie whole with their tag; 4,096 and more have a head of 7 bytes.
    assert_eq!(values.iter().max(), Some(&4_096));
    assert_eq!(values.len(), 2 + (1 + 1) + (1 + 2) + (1 + 16) + (1 + 256));
}

#[test]
fn chunks_go_with_the_value_they_belong_to() {
    let mut place = Place::new(SLED);
    let kv = place.kv();
    let large = || put([9, 1], filler(1, 50_000));
    kv.apply(&[
        large(),
        put([9, 2], filler(2, 50_000)),
        put([9, 3], filler(3, 50_000)),
    ])
    .unwrap();
    kv.apply(&[
        delete([9, 1]),
        put([9, 2], "small"),
        put([9, 3], filler(4, 9_000)),
    ])
    .unwrap();
    // Within one batch, too.
    kv.apply(&[large(), delete([9, 1])]).unwrap();
    place.close();
    assert_eq!(stored(&place).len(), 1 + (1 + 3));

    // And when the value was written before the store was opened, under any first byte.
    let firsts = [0, 9, 0xfe, 0xff];
    for replace in [delete as fn([u8; 2]) -> Row, |key| put(key, "small")] {
        place.reopen();
        place
            .kv()
            .apply(&firsts.map(|first| put([first, 4], filler(5, 20_000))))
            .unwrap();
        place.kv().flush().unwrap();
        place.reopen();
        place
            .kv()
            .apply(&firsts.map(|first| replace([first, 4])))
            .unwrap();
        place
            .kv()
            .apply(&firsts.map(|first| delete([first, 4])))
            .unwrap();
        place.close();
        assert_eq!(stored(&place).len(), 1 + (1 + 3));
    }
}

#[test]
fn a_lost_chunk_is_damage_and_not_a_shorter_value() {
    let mut place = Place::new(SLED);
    place
        .kv()
        .apply(&[put("key", filler(1, 20_000)), put("other", "whole")])
        .unwrap();
    place.close();
    let sled = ::sled::Config::new()
        .path(place.path())
        .segment_size(2 << 20)
        .open()
        .unwrap();
    sled.remove(layout::chunk_key(b"key", 2)).unwrap().unwrap();
    drop(sled);
    place.reopen();
    let error = place.kv().get(b"key").unwrap_err();
    assert!(matches!(error, KvError::Damaged { .. }), "{error:?}");
    let visit = &mut |_: &[u8], _: &[u8]| ControlFlow::Continue(());
    place
        .kv()
        .scan(&[], END, Direction::Ascending, visit)
        .unwrap_err();
    assert_eq!(place.kv().get(b"other").unwrap(), Some(b"whole".to_vec()));
}

/// At sled's own segment size this makes 150 files of nodes that are never synced.
#[test]
fn long_keys_do_not_leave_the_data_file() {
    let mut place = Place::new(SLED);
    // Two groups with nothing in common, so that no prefix is left out where they meet.
    let key = |group: u8, number: u32| {
        let mut key = vec![group; 508];
        key.extend(number.to_be_bytes());
        key
    };
    for number in 0..3_000 {
        place
            .kv()
            .apply(&[put(key(1, number), ""), put(key(200, number), "")])
            .unwrap();
    }
    place.kv().flush().unwrap();
    assert_eq!(fs::read_dir(place.path().join("blobs")).unwrap().count(), 0);
    // Deleting merges nodes into larger ones.
    for number in (0..3_000).filter(|number| number % 10 != 0) {
        place
            .kv()
            .apply(&[delete(key(1, number)), delete(key(200, number))])
            .unwrap();
    }
    // The longest keys of all, with the largest values.
    for number in 0..300_u16 {
        let mut key = vec![0xff; 510];
        key.extend(number.to_be_bytes());
        place
            .kv()
            .apply(&[put(key, filler(number.into(), 8_192))])
            .unwrap();
    }
    place.kv().flush().unwrap();
    place.reopen();
    assert_eq!(fs::read_dir(place.path().join("blobs")).unwrap().count(), 0);
    assert_eq!(all_rows(place.kv()).len(), 2 * 300 + 300);
}

#[test]
fn escaping_keeps_the_order_and_can_be_undone() {
    let mut seed = 7;
    let bytes = [0x00, 0x01, 0xfe, 0xff];
    let mut keys: Vec<Vec<u8>> = (0..2_000)
        .map(|_| {
            (0..below(&mut seed, 7))
                .map(|_| bytes[below(&mut seed, 4)])
                .collect()
        })
        .collect();
    keys.sort();
    keys.dedup();
    let escaped: Vec<_> = keys.iter().map(|key| layout::escape(key)).collect();
    assert!(escaped.is_sorted_by(|one, next| one < next));
    for (key, escaped) in keys.iter().zip(&escaped) {
        assert_eq!(layout::unescape(escaped).as_deref(), Some(key.as_slice()));
        assert!(!escaped.windows(2).any(|pair| pair == [0xff, 0xff]));
        assert!(
            escaped[..] < layout::chunk_key(&[], 0)[..],
            "chunks come after every row"
        );
    }
    assert_eq!(layout::unescape(&layout::chunk_key(b"key", 3)), None);
    assert_eq!(layout::unescape(&[1, 0xff]), None);
}

#[test]
fn a_stored_value_that_makes_no_sense_is_damage() {
    assert_eq!(
        layout::decode(&layout::whole(b"value")),
        Some(Stored::Whole(b"value"))
    );
    let head = Head::of(&[0; 4_097]);
    assert_eq!(
        head,
        Head {
            chunks: 2,
            bytes: 4_097
        }
    );
    assert_eq!(layout::decode(&head.encode()), Some(Stored::Chunked(head)));
    for damaged in [
        &[][..],
        &[1],
        &[1, 0, 2, 0, 0, 0x10],
        &[1, 0, 2, 0, 0, 0x10, 1, 0],
        &[2, 0],
    ] {
        assert_eq!(layout::decode(damaged), None, "{damaged:?}");
    }
    let too_many = Head {
        chunks: layout::CHUNKS_MAX + 1,
        bytes: 1 << 20,
    };
    assert_eq!(layout::decode(&too_many.encode()), None);
}
