//! A disk that fills up: the first write that fails is the last one that is tried, what was
//! acknowledged can still be read, and all of it is there once there is space again.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use store::kv::{Engine, FREE_BYTES_MIN, KvError, open};

use crate::disk::disk_or_skip;
use crate::workload;
use crate::writer::with_store;

const DISK_BYTES: u64 = 2 * FREE_BYTES_MIN + (32 << 20);

#[test]
fn sled_stops_writing_and_loses_nothing() {
    survives_a_full_disk(Engine::Sled {
        cache_bytes: 8 << 20,
    });
}

#[test]
fn fjall_stops_writing_and_loses_nothing() {
    survives_a_full_disk(Engine::Fjall {
        cache_bytes: 8 << 20,
    });
}

fn survives_a_full_disk(engine: Engine) {
    let Some(disk) = disk_or_skip("full_disk", DISK_BYTES, false) else {
        return;
    };
    let directory = disk.path().join("store");
    let ballast = disk.path().join("ballast");
    let acknowledged = with_store(engine, &directory, |kv| {
        let mut acknowledged = 0;
        while acknowledged < 50 {
            acknowledged = workload::write_group(kv, acknowledged + 1).expect("there is space");
        }
        fill(&ballast);
        let first = loop {
            match workload::write_group(kv, acknowledged + 1) {
                Ok(last) => acknowledged = last,
                Err(error) => break error,
            }
        };
        let next = acknowledged + workload::GROUP_MAX + 1;
        fs::remove_file(&ballast).expect("a file can be removed from a full disk");
        for error in [
            first,
            kv.apply(&workload::batch(next))
                .expect_err("nothing is written any more"),
            kv.flush().expect_err("nothing is flushed any more"),
        ] {
            let KvError::ReadOnly { cause } = error else {
                panic!("{error:?}")
            };
            assert!(
                !matches!(&*cause, KvError::ReadOnly { .. }),
                "the first cause is named"
            );
        }
        assert!(
            kv.get(&[1, 0])
                .expect("the store can still be read")
                .is_some()
        );
        acknowledged
    });

    with_store(engine, &directory, |kv| {
        let last = workload::check(kv, acknowledged);
        workload::write_group(kv, last + 1).expect("there is space again");
    });

    fill(&ballast);
    let error = open(engine, &directory)
        .err()
        .expect("there is no space to start");
    assert!(matches!(error, KvError::DiskFull { .. }), "{error:?}");
}

/// Writes to a file until the disk is full.
fn fill(ballast: &Path) {
    let mut file = File::create(ballast).expect("a file can be made");
    let block = vec![0x55; 64 << 10];
    let error = loop {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}
