//! Whose directory it is. A store's directory belongs to one engine, forever, and to one process
//! at a time; both are settled here, before the engine touches a file.
//!
//! | File | What |
//! |---|---|
//! | `engine` | the stamp: one line that names the engine and the layout of its rows |
//! | `engine.lock` | locked while a process has the store open |
//! | anything else | the engine's own |
//!
//! The stamp says `creating …` from before the engine's first file until all of them are synced.
//! A crash in between (one engine cannot open what such a crash leaves) costs nothing: nothing
//! was acknowledged yet, so the files are removed and made anew.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{FREE_BYTES_MIN, KvError};

const STAMP: &str = "engine";
const STAMP_DRAFT: &str = "engine.new";
const LOCK: &str = "engine.lock";
/// What follows the engine's name in a stamp. Raised when rows are laid out differently.
const LAYOUT: &str = "layout 1";
const CREATING: &str = "creating ";

/// What a freshly made file system holds; it may be the store's directory all the same.
const NOT_OURS: &str = "lost+found";

/// A directory that this process may use until the claim is dropped.
pub(super) struct Claim {
    directory: PathBuf,
    engine: &'static str,
    /// Is the engine making its files for the first time?
    fresh: bool,
    lock: File,
}

/// Takes `directory` for `engine`, making it if it is not there.
///
/// # Errors
/// Another process has it; it belongs to another engine or to something else; a file that the
/// stamp promises is missing; the disk is nearly full; or the operating system refuses.
pub(super) fn claim(directory: &Path, engine: &'static str) -> Result<Claim, KvError> {
    fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    refuse_strangers(directory)?;
    let path = directory.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => KvError::InUse {
            directory: directory.to_owned(),
        },
        TryLockError::Error(source) => KvError::Io {
            action: "lock",
            path,
            source,
        },
    })?;
    let fresh = is_fresh(directory, engine)?;
    free_space(directory)?;
    if fresh {
        stamp(directory, &format!("{CREATING}{engine} {LAYOUT}"))?;
        if let Some(parent) = directory
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            sync(parent)?;
        }
    }
    Ok(Claim {
        directory: directory.to_owned(),
        engine,
        fresh,
        lock,
    })
}

impl Claim {
    /// Where the engine's files are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The engine is open: from now on its files are the store.
    pub(super) fn created(&self) -> Result<(), KvError> {
        if !self.fresh {
            return Ok(());
        }
        sync_all(&self.directory)?;
        stamp(&self.directory, &format!("{} {LAYOUT}", self.engine))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing the file is not enough while a child process that is being started has it too.
        // If this fails, closing has to do.
        drop(self.lock.unlock());
    }
}

/// Is there a store to open (`false`), or one to make (`true`)?
fn is_fresh(directory: &Path, engine: &'static str) -> Result<bool, KvError> {
    let path = directory.join(STAMP);
    let stamp = match fs::read_to_string(&path) {
        Ok(stamp) => stamp,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(source) => {
            return Err(KvError::Io {
                action: "read",
                path,
                source,
            });
        }
    };
    if stamp.starts_with(CREATING) {
        empty(directory)?;
        return Ok(true);
    }
    let Some((found, layout)) = stamp.trim_end().split_once(' ') else {
        return Err(KvError::Damaged {
            directory: directory.to_owned(),
            cause: format!("its stamp, {}, says {stamp:?}", path.display()),
        });
    };
    if layout != LAYOUT {
        return Err(KvError::NotAStore {
            directory: directory.to_owned(),
            found: format!("a store of {layout}, and this server knows {LAYOUT}"),
        });
    }
    if found != engine {
        return Err(KvError::OtherEngine {
            directory: directory.to_owned(),
            found: found.to_owned(),
            wanted: engine,
        });
    }
    // Both engines take a directory without these for a new store, and would start empty.
    let indispensable = if engine == "sled" {
        ["db", "conf"]
    } else {
        ["version", "keyspaces"]
    };
    for name in indispensable {
        let path = directory.join(name);
        if !path.try_exists().map_err(io_error("look for", &path))? {
            return Err(KvError::Damaged {
                directory: directory.to_owned(),
                cause: format!("{name} is missing"),
            });
        }
    }
    Ok(false)
}

/// Leaves a directory alone that has something in it and no stamp. Ours has a stamp from before
/// its first file, so this needs no lock, and puts none into it.
fn refuse_strangers(directory: &Path) -> Result<(), KvError> {
    let path = directory.join(STAMP);
    if path.try_exists().map_err(io_error("look for", &path))? {
        return Ok(());
    }
    let names = entries(directory)?;
    let has = |name: &str| names.iter().any(|entry| entry == name);
    let found = if has("slabs") || has("metadata") || has("DO_NOT_PUT_YOUR_FILES_HERE") {
        "a store of sled 1.0 alpha".to_owned()
    } else if has("db") && has("conf") {
        "a store of sled 0.34 without a stamp".to_owned()
    } else if has("version") && has("keyspaces") {
        "a store of fjall without a stamp".to_owned()
    } else if let Some(name) = names.first() {
        format!("other files ({name}, …)")
    } else {
        return Ok(());
    };
    Err(KvError::NotAStore {
        directory: directory.to_owned(),
        found,
    })
}

/// Removes what an engine left behind when its creation was interrupted.
fn empty(directory: &Path) -> Result<(), KvError> {
    for name in entries(directory)? {
        let path = directory.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// The names in the directory, without ours and without the file system's own.
fn entries(directory: &Path) -> Result<Vec<String>, KvError> {
    let failed = |source| io_error("read", directory)(source);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry
            .map_err(failed)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if ![STAMP, STAMP_DRAFT, LOCK, NOT_OURS].contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Replaces the stamp: after a crash it says either what it said before or `line`.
fn stamp(directory: &Path, line: &str) -> Result<(), KvError> {
    let draft = directory.join(STAMP_DRAFT);
    fs::write(&draft, format!("{line}\n")).map_err(io_error("write", &draft))?;
    sync(&draft)?;
    let path = directory.join(STAMP);
    fs::rename(&draft, &path).map_err(io_error("rename", &draft))?;
    sync(directory)
}

/// Makes `directory` and everything in it survive a power cut.
fn sync_all(directory: &Path) -> Result<(), KvError> {
    for name in entries(directory)? {
        let path = directory.join(name);
        if path.is_dir() {
            sync_all(&path)?;
        } else {
            sync(&path)?;
        }
    }
    sync(directory)
}

/// Makes one file, or the names in one directory, survive a power cut.
fn sync(path: &Path) -> Result<(), KvError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", path))
}

fn free_space(directory: &Path) -> Result<(), KvError> {
    let disk = rustix::fs::statvfs(directory)
        .map_err(|errno| io_error("ask for the free space of", directory)(errno.into()))?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free_bytes < FREE_BYTES_MIN {
        return Err(KvError::DiskFull {
            directory: directory.to_owned(),
            free_bytes,
        });
    }
    Ok(())
}

/// Says what was tried on which file when the operating system refuses.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KvError {
    let path = path.to_owned();
    move |source| KvError::Io {
        action,
        path,
        source,
    }
}
