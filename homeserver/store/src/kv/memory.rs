//! The engine without a disk, for simulations and tests. It forgets exactly what a disk may
//! forget: [`Memory::crash`] drops everything that was not flushed.

use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use imbl::OrdMap;

use super::guard::Guarded;
use super::{Direction, Kv, KvError, Row, Visit};

type Rows = OrdMap<Arc<[u8]>, Arc<[u8]>>;

/// A sorted map that survives the server that uses it, but only as far as it was flushed.
///
/// A simulation keeps the `Memory` and gives each incarnation of a server its own
/// [`kv`](Memory::kv):
///
/// ```ignore
/// let disk = Memory::default();
/// let server = Server::start(disk.kv());
/// drop(server);
/// disk.crash();
/// let server = Server::start(disk.kv());
/// ```
#[derive(Clone, Default)]
pub struct Memory(Arc<RwLock<Tables>>);

#[derive(Default)]
struct Tables {
    /// What readers see.
    current: Rows,
    /// What a crash leaves. Shares its nodes with `current`, so a flush copies nothing.
    flushed: Rows,
}

impl Memory {
    /// The rows, as a store uses them. Handles of one `Memory` share their rows.
    pub fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(Guarded::in_memory(self.clone()))
    }

    /// Loses what was applied but not flushed, as a power cut would.
    pub fn crash(&self) {
        self.change(|tables| tables.current = tables.flushed.clone());
    }

    /// The rows of this moment.
    fn snapshot(&self) -> Rows {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .current
            .clone()
    }

    fn change(&self, change: impl FnOnce(&mut Tables)) {
        // Nothing panics while the lock is held, and each change leaves whole maps anyway.
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Kv for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.snapshot().get(key).map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        let rows = self.snapshot();
        let mut range = rows.range::<_, [u8]>((Bound::Included(from), Bound::Excluded(to)));
        let mut next = || match direction {
            Direction::Ascending => range.next(),
            Direction::Descending => range.next_back(),
        };
        while let Some((key, value)) = next() {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, rows: &[Row]) -> Result<(), KvError> {
        self.change(|tables| {
            for (key, value) in rows {
                match value {
                    Some(value) => tables
                        .current
                        .insert(key.as_slice().into(), value.as_slice().into()),
                    None => tables.current.remove(key.as_slice()),
                };
            }
        });
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        self.change(|tables| tables.flushed = tables.current.clone());
        Ok(())
    }
}
