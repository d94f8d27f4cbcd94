//! stand-in until the engines are merged
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, RwLock},
};
/// row
pub type Row = (Vec<u8>, Option<Vec<u8>>);
/// dir
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// up
    Ascending,
    /// down
    Descending,
}
/// error
#[derive(Debug, thiserror::Error)]
#[error("kv")]
pub struct KvError;
/// kv
pub trait Kv: Send + Sync + 'static {
    /// g
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// s
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError>;
    /// a
    fn apply(&self, rows: &[Row]) -> Result<(), KvError>;
    /// f
    fn flush(&self) -> Result<(), KvError>;
}
/// engine
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// s
    Sled {
        /// b
        cache_bytes: u64,
    },
    /// f
    Fjall {
        /// b
        cache_bytes: u64,
    },
    /// m
    Memory,
}
struct Mem(RwLock<BTreeMap<Vec<u8>, Vec<u8>>>);
impl Kv for Mem {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.read().unwrap().get(key).cloned())
    }
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        let m = self.0.read().unwrap();
        let mut it = m.range(from.to_vec()..to.to_vec());
        loop {
            let n = if direction == Direction::Ascending {
                it.next()
            } else {
                it.next_back()
            };
            let Some((k, v)) = n else { return Ok(()) };
            if visit(k, v).is_break() {
                return Ok(());
            }
        }
    }
    fn apply(&self, rows: &[Row]) -> Result<(), KvError> {
        let mut m = self.0.write().unwrap();
        for (k, v) in rows {
            match v {
                Some(v) => {
                    m.insert(k.clone(), v.clone());
                }
                None => {
                    m.remove(k);
                }
            }
        }
        Ok(())
    }
    fn flush(&self) -> Result<(), KvError> {
        Ok(())
    }
}
/// open
pub fn open(_engine: Engine, _directory: &Path) -> Result<Arc<dyn Kv>, KvError> {
    Ok(Arc::new(Mem(RwLock::default())))
}
