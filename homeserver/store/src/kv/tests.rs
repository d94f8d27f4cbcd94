//! One suite for all engines, and what is particular to one. Crashes are tested from outside, in
//! `tests/kill.rs`, `tests/power_loss.rs` and `tests/full_disk.rs`.

mod conformance;
mod model;
mod read_only;
mod refusals;
mod sled_rows;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::{Direction, END, Engine, Kv, KvError, Memory, Row, Visit, open};

const SLED: Engine = Engine::Sled {
    cache_bytes: 8 << 20,
};
const FJALL: Engine = Engine::Fjall {
    cache_bytes: 8 << 20,
};

/// Where a store lives: it can be closed and opened again.
struct Place {
    engine: Engine,
    directory: TempDir,
    memory: Memory,
    kv: Option<Arc<dyn Kv>>,
}

impl Place {
    fn new(engine: Engine) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let mut place = Place {
            engine,
            directory,
            memory: Memory::default(),
            kv: None,
        };
        place.reopen();
        place
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn kv(&self) -> &dyn Kv {
        &**self.kv.as_ref().expect("open except while it is reopened")
    }

    fn close(&mut self) {
        self.kv = None;
    }

    /// Opens the store again: on disk as it was closed, in memory as a crash leaves it.
    fn reopen(&mut self) {
        self.close();
        self.kv = Some(match self.engine {
            Engine::Memory => {
                self.memory.crash();
                self.memory.kv()
            }
            engine => open(engine, self.path()).unwrap(),
        });
    }
}

fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Row {
    (key.as_ref().to_vec(), Some(value.as_ref().to_vec()))
}

fn delete(key: impl AsRef<[u8]>) -> Row {
    (key.as_ref().to_vec(), None)
}

/// All rows of a range.
fn rows(kv: &dyn Kv, from: &[u8], to: &[u8], direction: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    kv.scan(from, to, direction, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

/// All keys of a range.
fn keys(kv: &dyn Kv, from: &[u8], to: &[u8], direction: Direction) -> Vec<Vec<u8>> {
    rows(kv, from, to, direction)
        .into_iter()
        .map(|(key, _value)| key)
        .collect()
}

fn all_rows(kv: &dyn Kv) -> Vec<(Vec<u8>, Vec<u8>)> {
    rows(kv, &[], END, Direction::Ascending)
}

/// Why a store did not open.
fn refusal(engine: Engine, directory: &Path) -> KvError {
    open(engine, directory)
        .err()
        .expect("the store must not open")
}

/// The next number of the splitmix64 sequence.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number from 0 to `below`, without it.
fn below(seed: &mut u64, below: usize) -> usize {
    let below = u64::try_from(below).unwrap();
    usize::try_from(random(seed) % below).unwrap()
}

/// Bytes that tell where in which value they stand.
fn filler(seed: u64, bytes: usize) -> Vec<u8> {
    let mut seed = seed;
    let words = std::iter::repeat_with(|| random(&mut seed).to_be_bytes());
    words.flatten().take(bytes).collect()
}
