//! After the first failed write or sync nothing is written any more.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::kv::guard::Guarded;

/// An engine over memory whose n-th write fails, and only that one.
struct Fails {
    memory: Memory,
    at: usize,
    how: fn() -> Result<(), KvError>,
    writes: Arc<AtomicUsize>,
}

impl Fails {
    fn attempt(&self, work: impl FnOnce() -> Result<(), KvError>) -> Result<(), KvError> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        if number == self.at {
            (self.how)()
        } else {
            work()
        }
    }
}

impl Kv for Fails {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.memory.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        self.memory.scan(from, to, direction, visit)
    }

    fn apply(&self, rows: &[Row]) -> Result<(), KvError> {
        self.attempt(|| self.memory.apply(rows))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.attempt(|| self.memory.flush())
    }
}

fn disk_full() -> Result<(), KvError> {
    let source = std::io::ErrorKind::StorageFull.into();
    Err(KvError::Io {
        action: "write",
        path: "the disk".into(),
        source,
    })
}

fn panic() -> Result<(), KvError> {
    panic!("the page table is torn")
}

/// Applies and flushes until the write with the number `at` fails, and once more after it.
/// Returns the first error, the later ones, and how often the engine was asked to write.
fn run(at: usize, how: fn() -> Result<(), KvError>) -> (KvError, [KvError; 2], usize) {
    let writes = Arc::new(AtomicUsize::new(0));
    let engine = Fails {
        memory: Memory::default(),
        at,
        how,
        writes: Arc::clone(&writes),
    };
    let kv = Guarded::in_memory(engine);
    let mut number = 0_u8;
    let first = loop {
        number += 1;
        if let Err(error) = kv
            .apply(&[put([number], [number])])
            .and_then(|()| kv.flush())
        {
            break error;
        }
    };
    let later = [
        kv.apply(&[put("later", "")]).unwrap_err(),
        kv.flush().unwrap_err(),
    ];
    assert_eq!(kv.get(b"later").unwrap(), None);
    assert_eq!(
        kv.get(&[1]).unwrap(),
        Some(vec![1]),
        "what was there can still be read"
    );
    (first, later, writes.load(Ordering::SeqCst))
}

#[test]
fn a_failed_write_or_flush_is_the_last_one() {
    for at in [2, 3] {
        let (first, later, writes) = run(at, disk_full);
        assert_eq!(writes, at + 1, "nothing was tried after the failure");
        for error in [&first, &later[0], &later[1]] {
            let KvError::ReadOnly { cause } = error else {
                panic!("{error:?}")
            };
            let KvError::Io {
                action: "write",
                source,
                ..
            } = &**cause
            else {
                panic!("{cause:?}")
            };
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        }
    }
}

#[test]
fn a_panicking_engine_is_a_failed_write() {
    let (first, later, writes) = run(2, panic);
    assert_eq!(writes, 3);
    for error in [&first, &later[0], &later[1]] {
        let KvError::ReadOnly { cause } = error else {
            panic!("{error:?}")
        };
        let KvError::Damaged { cause, .. } = &**cause else {
            panic!("{cause:?}")
        };
        assert_eq!(cause, "the page table is torn");
    }
}

#[test]
fn flushing_what_is_flushed_asks_nothing_of_the_engine() {
    let writes = Arc::new(AtomicUsize::new(0));
    let engine = Fails {
        memory: Memory::default(),
        at: usize::MAX,
        how: panic,
        writes: Arc::clone(&writes),
    };
    let kv = Guarded::in_memory(engine);
    kv.flush().unwrap();
    assert_eq!(writes.load(Ordering::SeqCst), 0);
    kv.apply(&[put("key", "")]).unwrap();
    kv.flush().unwrap();
    kv.flush().unwrap();
    assert_eq!(writes.load(Ordering::SeqCst), 2);
}

#[test]
fn memory_forgets_what_was_not_flushed() {
    let memory = Memory::default();
    let kv = memory.kv();
    kv.apply(&[put("kept", "1"), put("deleted too early", "1")])
        .unwrap();
    kv.flush().unwrap();
    kv.apply(&[
        put("kept", "2"),
        put("lost", "2"),
        delete("deleted too early"),
    ])
    .unwrap();
    memory.crash();
    let expected = [
        (b"deleted too early".to_vec(), b"1".to_vec()),
        (b"kept".to_vec(), b"1".to_vec()),
    ];
    assert_eq!(all_rows(&*memory.kv()), expected);
    memory.crash();
    assert_eq!(all_rows(&*memory.kv()), expected);
}
