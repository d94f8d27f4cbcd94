//! Where the bytes of media lie: one file per content, named by its SHA-256.
//!
//! A body is streamed to a file of its own in `incoming`, hashed on the way, synced, and then renamed to
//! `content/ab/cd/abcd…`, so a file under `content` is always whole, and two uploads of the same bytes
//! share one file. The directories are synced too: when [`Incoming::keep`] returns, the content survives
//! a loss of power, and the row that names it may be committed.
//!
//! This module does not know which rows name a file. It closes the gap between the two with a [`Pin`]:
//! whoever keeps a content holds its pin until the row is committed, and [`Files::delete_unless`] neither
//! deletes what is pinned nor lets anything be pinned between its question and its answer.
//!
//! It does not limit how slowly a body may arrive (the HTTP layer does), and one process owns the
//! directory: [`Files::open`] removes what an earlier process left half-written.
//!
//! Spec: none; see "Content repository", security considerations, for the limits on size.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Buf;
use http_body::Body;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::{
    fs::{self, File},
    io::{AsyncWriteExt, BufWriter},
};

mod hash;
mod reader;

#[cfg(test)]
mod tests;

pub use hash::{ContentHash, NotAContentHash};
pub use reader::{FileBody, Reader};

/// How much of an upload is held in memory before it is handed to the disk. Also what bounds the number
/// of trips to the disk: bodies arrive in pieces of a few kilobytes.
const WRITE_BUFFER_BYTES: usize = 128 * 1024;

/// The disk refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FilesError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FilesError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Why a body was not kept. Nothing of it stays on the disk.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The body is longer than it may be.
    #[error("the content is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit it was held to.
        bytes_max: u64,
    },
    /// The body ended in an error: the sender went away, or a limit of the HTTP layer was met.
    #[error("the content did not arrive whole")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk refused.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// What became of a content that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone.
    Deleted,
    /// There was none.
    Absent,
    /// It stays: a row names it, or somebody is about to commit one.
    InUse,
}

/// The directory of all contents. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    content: PathBuf,
    incoming: PathBuf,
    /// The number in the name of the next file in `incoming`.
    next: AtomicU64,
    /// Held while a content is pinned and put in its place, and while one is found unused and taken away.
    gate: tokio::sync::Mutex<()>,
    /// How many pins each content has. As long as the uploads under way, no longer.
    pinned: Mutex<BTreeMap<ContentHash, usize>>,
}

impl Files {
    /// The contents in `directory`, which is made if it is not there.
    ///
    /// Removes what uploads and deletions of an earlier process left in `incoming`. Blocks: nobody is served yet
    /// when it is called.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let directory = directory.into();
        let shared = Shared {
            content: directory.join("content"),
            incoming: directory.join("incoming"),
            next: AtomicU64::new(0),
            gate: tokio::sync::Mutex::new(()),
            pinned: Mutex::new(BTreeMap::new()),
        };
        for made in [&shared.content, &shared.incoming] {
            std::fs::create_dir_all(made).map_err(FilesError::at("make the directory", made))?;
        }
        // The names just made, and the directory's own.
        sync_directory_blocking(&directory)?;
        if let Some(parent) = directory
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            sync_directory_blocking(parent)?;
        }
        remove_leftovers(&shared.incoming)?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Starts receiving a content of at most `bytes_max` bytes, piece by piece.
    pub async fn receive(&self, bytes_max: u64) -> Result<Incoming, FilesError> {
        let path = self.shared.next_incoming();
        let file = File::create_new(&path)
            .await
            .map_err(FilesError::at("make", &path))?;
        Ok(Incoming {
            shared: Arc::clone(&self.shared),
            file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
            temporary: Temporary(path),
            hasher: Sha256::new(),
            length: 0,
            bytes_max,
        })
    }

    /// Receives the whole of `body`, at most `bytes_max` bytes, and keeps it.
    ///
    /// A body that announces more than that is refused before a byte of it is read.
    pub async fn put<B>(&self, body: B, bytes_max: u64) -> Result<Kept, PutError>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if body.size_hint().lower() > bytes_max {
            return Err(PutError::TooLarge { bytes_max });
        }
        let mut body = std::pin::pin!(body);
        let mut incoming = self.receive(bytes_max).await?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| PutError::Body(error.into()))?;
            let Ok(mut data) = frame.into_data() else {
                continue; // trailers say nothing about the content
            };
            while data.has_remaining() {
                let chunk = data.chunk();
                let length = chunk.len();
                incoming.write(chunk).await?;
                data.advance(length);
            }
        }
        Ok(incoming.keep().await?)
    }

    /// The content named `hash`, to be streamed.
    ///
    /// # Errors
    /// `Ok(None)`: there is no such content. `Err`: the disk could not say.
    pub async fn read(&self, hash: &ContentHash) -> Result<Option<Reader>, FilesError> {
        let path = self.shared.path(hash);
        let file = match File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FilesError::at("open", &path)(error)),
        };
        let metadata = file
            .metadata()
            .await
            .map_err(FilesError::at("measure", &path))?;
        Ok(Some(Reader::new(file, metadata.len())))
    }

    /// The content named `hash`, for code that runs off the runtime, such as making a thumbnail.
    ///
    /// Blocks the thread. `Ok(None)`: there is no such content.
    pub fn open_blocking(&self, hash: &ContentHash) -> Result<Option<std::fs::File>, FilesError> {
        let path = self.shared.path(hash);
        match std::fs::File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FilesError::at("open", &path)(error)),
        }
    }

    /// Deletes the content named `hash` if nothing needs it.
    ///
    /// `referenced` is asked whether a committed row still names it. It is asked while nobody can keep the
    /// same content again, so that its answer is still true when the file goes; it must not wait for an
    /// upload. Readers that have the file open finish undisturbed.
    ///
    /// # Errors
    /// Those of `referenced`, and [`FilesError`].
    pub async fn delete_unless<E, F>(
        &self,
        hash: &ContentHash,
        referenced: impl FnOnce() -> F,
    ) -> Result<Deletion, E>
    where
        E: From<FilesError>,
        F: Future<Output = Result<bool, E>>,
    {
        let gate = self.shared.gate.lock().await;
        let pinned = self.shared.pins().contains_key(hash);
        if pinned || referenced().await? {
            return Ok(Deletion::InUse);
        }
        // Moved away in one short step that cannot be cancelled half-way: a removal that outlived this
        // future, and with it the gate, could hit a file that has just been kept anew.
        let path = self.shared.path(hash);
        let doomed = Temporary(self.shared.next_incoming());
        match std::fs::rename(&path, &doomed.0) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Deletion::Absent),
            Err(error) => return Err(FilesError::at("delete", &path)(error).into()),
        }
        drop(gate);
        fs::remove_file(&doomed.0)
            .await
            .map_err(FilesError::at("remove", &doomed.0))?;
        Ok(Deletion::Deleted)
    }
}

impl Shared {
    /// `content/ab/cd/abcd…`: 65 536 directories, so that none grows long.
    fn path(&self, hash: &ContentHash) -> PathBuf {
        let [first, second, ..] = *hash.as_bytes();
        self.content
            .join(format!("{first:02x}"))
            .join(format!("{second:02x}"))
            .join(hash.to_string())
    }

    fn next_incoming(&self) -> PathBuf {
        self.incoming
            .join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<ContentHash, usize>> {
        // Nothing that holds this lock can panic between two changes that belong together.
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A content that is arriving. Dropped before [`keep`](Incoming::keep), it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    file: BufWriter<File>,
    temporary: Temporary,
    hasher: Sha256,
    length: u64,
    bytes_max: u64,
}

impl Incoming {
    /// Appends `chunk`.
    ///
    /// # Errors
    /// [`PutError::TooLarge`] before anything of `chunk` is written, if it does not fit.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), PutError> {
        let length = self.length.saturating_add(chunk.len() as u64);
        if length > self.bytes_max {
            return Err(PutError::TooLarge {
                bytes_max: self.bytes_max,
            });
        }
        self.hasher.update(chunk);
        let path = &self.temporary.0;
        self.file
            .write_all(chunk)
            .await
            .map_err(FilesError::at("write to", path))?;
        self.length = length;
        Ok(())
    }

    /// Ends the content and puts it in its place. When this returns, it survives a loss of power.
    pub async fn keep(mut self) -> Result<Kept, FilesError> {
        let temporary = &self.temporary.0;
        self.file
            .flush()
            .await
            .map_err(FilesError::at("write to", temporary))?;
        self.file
            .get_ref()
            .sync_all()
            .await
            .map_err(FilesError::at("sync", temporary))?;

        let hash = ContentHash::from_bytes(self.hasher.finalize().into());
        let path = self.shared.path(&hash);
        let leaf = path.parent().expect("a content lies two directories deep");
        let middle = leaf.parent().expect("a content lies two directories deep");

        let gate = self.shared.gate.lock().await;
        let pin = Pin::new(&self.shared, hash);
        fs::create_dir_all(leaf)
            .await
            .map_err(FilesError::at("make the directory", leaf))?;
        // Also when the content is there already: the same bytes, and known to be synced.
        fs::rename(temporary, &path)
            .await
            .map_err(FilesError::at("put in place", &path))?;
        drop(gate);

        // All three, even if the directories were there: whoever made them may not have synced them yet.
        for directory in [leaf, middle, &self.shared.content] {
            sync_directory(directory).await?;
        }
        Ok(Kept {
            hash,
            length: self.length,
            pin,
        })
    }
}

/// A content that is safely on disk.
#[derive(Debug)]
pub struct Kept {
    /// Its name.
    pub hash: ContentHash,
    /// Its length in bytes.
    pub length: u64,
    /// To be held until a row that names the content is committed.
    pub pin: Pin,
}

/// As long as it lives, the content is not deleted, whether or not a row names it.
#[derive(Debug)]
#[must_use = "without its pin a content without a committed row may be deleted"]
pub struct Pin {
    shared: Arc<Shared>,
    hash: ContentHash,
}

impl Pin {
    fn new(shared: &Arc<Shared>, hash: ContentHash) -> Self {
        *shared.pins().entry(hash).or_default() += 1;
        Self {
            shared: Arc::clone(shared),
            hash,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins();
        let count = pins
            .get_mut(&self.hash)
            .expect("a pin was counted when it was made");
        *count -= 1;
        if *count == 0 {
            pins.remove(&self.hash);
        }
    }
}

/// A file in `incoming` that goes when its owner does, unless it has been renamed by then.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.0.display(), %error, "a temporary file stays until the next start");
            }
        }
    }
}

fn remove_leftovers(incoming: &Path) -> Result<(), FilesError> {
    for entry in std::fs::read_dir(incoming).map_err(FilesError::at("list", incoming))? {
        let path = entry.map_err(FilesError::at("list", incoming))?.path();
        std::fs::remove_file(&path).map_err(FilesError::at("remove", &path))?;
    }
    Ok(())
}

fn sync_directory_blocking(directory: &Path) -> Result<(), FilesError> {
    let opened = std::fs::File::open(directory).map_err(FilesError::at("open", directory))?;
    opened.sync_all().map_err(FilesError::at("sync", directory))
}

/// Makes the names in `directory` survive a loss of power.
async fn sync_directory(directory: &Path) -> Result<(), FilesError> {
    let opened = File::open(directory)
        .await
        .map_err(FilesError::at("open", directory))?;
    opened
        .sync_all()
        .await
        .map_err(FilesError::at("sync", directory))
}
