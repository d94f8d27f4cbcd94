//! Which media there are: rows that name files, announced uploads, thumbnails, quotas.
//!
//! A row is committed only after its file is synced; the file is pinned until then. Media of other servers are in a
//! place of their own ([`super::remote`]), so that those can go when there are too many.
//! Spec: client-server API, "Content repository".

use std::{io::BufReader, sync::Arc, time::Duration};

use axum::body::Body;
use http::StatusCode;
use ruma::ServerName;
use serde::{Deserialize, Serialize};
use store::{
    Commit,
    keys::{Keyspace, Table, UserNum},
};
use tokio::sync::{Mutex, Notify, Semaphore};

use super::{
    files::{ContentHash, Files, FilesError, Kept, PutError},
    outward::Outward,
    remote::RemoteRow,
    thumbnail::{Limits, Made, Size, Thumbnail, ThumbnailError, thumbnail},
};
use crate::{
    asked::Fresh,
    error::{ApiError, ApiResult},
    seams::heavy,
    server::App,
};

const MEDIA: Table<MediaRow> = Table::new(Keyspace::MEDIA);
pub(super) const THUMBNAILS: Table<ThumbnailRow> = Table::new(Keyspace::THUMBNAIL);
pub(super) const USE: Table<MediaUse> = Table::new(Keyspace::MEDIA_USE);

/// How many thumbnails are made at a time: each may take a second of a core and 256 MiB.
const THUMBNAILS_AT_ONCE: usize = 2;

/// How much memory may be taken by what is known of files of other servers, in bytes (1 MiB).
const FETCHED_BYTES_MAX: u64 = 1 << 20;

/// How long a download waits for an announced upload at most.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Media that were uploaded, or announced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MediaRow {
    /// Who uploaded or announced it.
    pub creator: UserNum,
    /// When, in milliseconds since the epoch.
    pub created_ms: u64,
    /// What its uploader says it is.
    pub content_type: Option<String>,
    /// What its uploader calls it.
    pub filename: Option<String>,
    /// Its bytes; absent while it is only announced.
    pub content: Option<Content>,
}

/// Bytes on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    /// The hash of the bytes, which is also their name.
    pub hash: String,
    /// How many.
    pub length: u64,
}

impl Content {
    pub(super) fn of(kept: &Kept) -> Self {
        Self {
            hash: kept.hash.to_string(),
            length: kept.length,
        }
    }

    /// The hash.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn hash(&self) -> ApiResult<ContentHash> {
        self.hash
            .parse()
            .map_err(|error| ApiError::internal(&error))
    }
}

/// A thumbnail that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ThumbnailRow {
    content_type: String,
    /// `None`: the original serves.
    pub(super) content: Option<Content>,
}

/// How much a user has uploaded, and how many uploads they have announced.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct MediaUse {
    pub(super) bytes: u64,
}

/// Whose media something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// Uploaded here.
    Own,
    /// Fetched from another server.
    Remote,
}

/// The media of this server, and those of others that were asked for.
#[derive(Debug)]
pub struct Library {
    /// The bytes of what was uploaded here.
    pub files: Files,
    /// The bytes of what was fetched from other servers.
    pub remote_files: Files,
    /// Files of other servers that were fetched just now, and those that are not there.
    pub(super) fetched: Fresh<Option<Arc<RemoteRow>>>,
    /// Bounds how many files of other servers are fetched at once.
    pub(super) fetching: Semaphore,
    /// The way out, for previews.
    pub outward: Outward,
    /// Woken when an announced upload arrives.
    arrived: Notify,
    /// Held while a row and the use of its uploader are written.
    pub(super) writing: Mutex<()>,
    thumbnailing: Semaphore,
}

/// Something to be sent to a client.
#[derive(Debug)]
pub struct Served {
    /// The bytes.
    pub content: Content,
    /// What they are said to be.
    pub content_type: Option<String>,
    /// What they are called.
    pub filename: Option<String>,
    /// Where they are.
    pub shelf: Shelf,
}

impl Library {
    /// The media whose files are in `files`, those of other servers in `remote_files`.
    pub fn new(files: Files, remote_files: Files, outward: Outward) -> Self {
        Self {
            files,
            remote_files,
            fetched: Fresh::new(FETCHED_BYTES_MAX, |_| 512),
            fetching: Semaphore::new(super::remote::FETCHES_AT_ONCE),
            outward,
            arrived: Notify::new(),
            writing: Mutex::default(),
            thumbnailing: Semaphore::new(THUMBNAILS_AT_ONCE),
        }
    }

    /// Where the bytes on a shelf are.
    pub fn files_of(&self, shelf: Shelf) -> &Files {
        match shelf {
            Shelf::Own => &self.files,
            Shelf::Remote => &self.remote_files,
        }
    }
}

/// Announces an upload: an ID without bytes.
///
/// # Errors
/// `M_LIMIT_EXCEEDED` when the user has announced too many that did not arrive.
pub async fn announce(app: &App, creator: UserNum) -> ApiResult<(String, u64)> {
    let now_ms = app.clock.now_ms();
    let lifetime_ms = app.config.media.pending_upload_lifetime_seconds * 1_000;
    let _writing = app.media.writing.lock().await;
    let pending = pending_of(app, creator, now_ms.saturating_sub(lifetime_ms))?;
    if pending.len() >= app.config.media.pending_uploads_max {
        let oldest = pending.iter().min().copied().unwrap_or(now_ms);
        return Err(ApiError::limit_exceeded(
            (oldest + lifetime_ms).saturating_sub(now_ms),
        ));
    }
    let id = app.entropy.text(24);
    let row = MediaRow {
        creator,
        created_ms: now_ms,
        content_type: None,
        filename: None,
        content: None,
    };
    let mut commit = Commit::new();
    commit.put(MEDIA, MEDIA.key().text(&id), &row);
    commit.put_raw(
        pending_key(creator).text(&id),
        store::keys::Packed::new().u64(now_ms),
    );
    app.store.commit(commit).await?;
    Ok((id, now_ms + lifetime_ms))
}

fn pending_key(creator: UserNum) -> store::keys::Packed {
    store::keys::Packed::key(Keyspace::MEDIA_PENDING).user(creator)
}

/// When the announced uploads of a user that may still arrive were announced.
fn pending_of(app: &App, creator: UserNum, since_ms: u64) -> ApiResult<Vec<u64>> {
    let mut pending = Vec::new();
    app.store.visit(
        &pending_key(creator),
        store::kv::Direction::Ascending,
        |_, value| {
            pending.extend(
                store::keys::Unpack(value)
                    .u64()
                    .filter(|announced| *announced > since_ms),
            );
            Ok(true)
        },
    )?;
    Ok(pending)
}

/// Takes in a body and keeps it under a new ID, or under one that the same user announced.
///
/// # Errors
/// `M_TOO_LARGE`, `M_LIMIT_EXCEEDED` over a quota, `M_CANNOT_OVERWRITE_MEDIA`, `M_FORBIDDEN` for
/// somebody else's ID, `M_NOT_FOUND` for one that was not announced or has expired.
pub async fn upload(
    app: &App,
    creator: UserNum,
    announced: Option<&str>,
    content_type: Option<String>,
    filename: Option<String>,
    body: Body,
) -> ApiResult<String> {
    if let Some(id) = announced {
        may_fill(app, creator, id)?;
    }
    let limit = app.config.limits.upload_bytes();
    let timeout = Duration::from_secs(app.config.limits.upload_read_seconds_max);
    let kept = tokio::time::timeout(timeout, app.media.files.put(body, limit)).await;
    let kept = kept
        .map_err(|_| ApiError::timed_out("the upload took too long"))?
        .map_err(put_error)?;
    let _writing = app.media.writing.lock().await;
    let now_ms = app.clock.now_ms();
    let mut commit = Commit::new();
    let (id, created_ms) = match announced {
        Some(id) => {
            let row = may_fill(app, creator, id)?;
            commit.delete(pending_key(creator).text(id));
            (id.to_owned(), row.created_ms)
        }
        None => (app.entropy.text(24), now_ms),
    };
    count(app, &mut commit, creator, kept.length)?;
    let row = MediaRow {
        creator,
        created_ms,
        content_type,
        filename,
        content: Some(Content::of(&kept)),
    };
    commit.put(MEDIA, MEDIA.key().text(&id), &row);
    app.store.commit(commit).await?;
    drop(kept);
    app.media.arrived.notify_waiters();
    Ok(id)
}

/// The row of an announced upload that may be filled now.
fn may_fill(app: &App, creator: UserNum, id: &str) -> ApiResult<MediaRow> {
    let row = app.store.get(MEDIA, MEDIA.key().text(id))?;
    let row = row.ok_or_else(|| ApiError::not_found("no such upload was announced"))?;
    if row.content.is_some() {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "M_CANNOT_OVERWRITE_MEDIA",
            "there is something at this ID already",
        ));
    }
    if row.creator != creator {
        return Err(ApiError::forbidden("somebody else announced this upload"));
    }
    let lifetime_ms = app.config.media.pending_upload_lifetime_seconds * 1_000;
    if row.created_ms + lifetime_ms <= app.clock.now_ms() {
        return Err(ApiError::not_found("the announced upload has expired"));
    }
    Ok(row)
}

/// Adds to what a user and all users have uploaded, within the quotas.
fn count(app: &App, commit: &mut Commit, creator: UserNum, length: u64) -> ApiResult<()> {
    let quotas = [
        (
            USE.key().user(creator),
            app.config.limits.uploads_per_user_bytes(),
        ),
        (USE.key().u64(0), app.config.limits.uploads_total_bytes()),
    ];
    for (key, most) in quotas {
        let mut used = app.store.get(USE, key.clone())?.unwrap_or_default();
        used.bytes += length;
        if most.is_some_and(|most| used.bytes > most) {
            let error = ApiError::new(
                StatusCode::FORBIDDEN,
                "M_RESOURCE_LIMIT_EXCEEDED",
                "the space for uploads is used up",
            );
            return Err(match &app.config.server.admin_contact {
                Some(contact) => error.with("admin_contact", contact.as_str()),
                None => error,
            });
        }
        commit.put(USE, key, &used);
    }
    Ok(())
}

pub(super) fn put_error(error: PutError) -> ApiError {
    match error {
        PutError::TooLarge { .. } => ApiError::too_large(error.to_string()),
        PutError::Body(_) => ApiError::unknown("the upload broke off"),
        PutError::Files(error) => ApiError::internal(&error),
    }
}

impl From<FilesError> for ApiError {
    fn from(error: FilesError) -> Self {
        Self::internal(&error)
    }
}

/// Media by ID, waiting up to `wait` for an announced upload; those of another server are fetched if they are not here.
///
/// # Errors
/// `M_NOT_FOUND`; `M_NOT_YET_UPLOADED` when it was announced and did not arrive in time; `M_TOO_LARGE` for a file of
/// another server that is larger than this one fetches, 502 when that server does not answer.
pub async fn find(app: &App, server: &ServerName, id: &str, wait: Duration) -> ApiResult<Served> {
    if server == app.server_name() {
        own(app, id, wait).await
    } else {
        super::remote::find(app, server, id, wait.min(WAIT_MAX)).await
    }
}

/// Media of this server by ID, waiting up to `wait` for an announced upload.
///
/// # Errors
/// `M_NOT_FOUND`; `M_NOT_YET_UPLOADED` when it was announced and did not arrive in time.
pub async fn own(app: &App, id: &str, wait: Duration) -> ApiResult<Served> {
    let not_found = || ApiError::not_found("there are no such media");
    let deadline = app.clock.instant() + wait.min(WAIT_MAX);
    loop {
        let arrived = app.media.arrived.notified();
        let row = app
            .store
            .get(MEDIA, MEDIA.key().text(id))?
            .ok_or_else(not_found)?;
        if let Some(content) = row.content {
            return Ok(Served {
                content,
                content_type: row.content_type,
                filename: row.filename,
                shelf: Shelf::Own,
            });
        }
        if tokio::time::timeout_at(deadline, arrived).await.is_err() {
            return Err(ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                "M_NOT_YET_UPLOADED",
                "the media were announced, but are not there yet",
            ));
        }
    }
}

/// A small version of an image, made once.
///
/// # Errors
/// `M_UNKNOWN` for what is no image, `M_TOO_LARGE` for one that would cost too much.
pub async fn small(app: &App, original: Served, size: Size, animated: bool) -> ApiResult<Served> {
    let hash = original.content.hash()?;
    let (shelf, files) = (original.shelf, app.media.files_of(original.shelf));
    let beginning = match shelf {
        Shelf::Own => "",
        Shelf::Remote => super::remote::THUMBNAIL_PREFIX,
    };
    let moving = if animated { "-animated" } else { "" };
    let variant = format!("{beginning}{}{moving}", size.name());
    let key = || THUMBNAILS.key().raw(hash.as_bytes()).text(&variant);
    if let Some(row) = app.store.get(THUMBNAILS, key())? {
        return Ok(served(original, row));
    }
    let _place = app
        .media
        .thumbnailing
        .acquire()
        .await
        .map_err(|error| ApiError::internal(&error))?;
    if let Some(row) = app.store.get(THUMBNAILS, key())? {
        return Ok(served(original, row));
    }
    let limits = Limits {
        pixels_max: app.config.media.thumbnails.source_pixels_max,
        ..Limits::default()
    };
    let file = files.open_blocking(&hash)?;
    let file = file.ok_or_else(|| ApiError::not_found("there are no such media"))?;
    let made = heavy(app.seams.inline, move || {
        thumbnail(BufReader::new(file), size, animated, &limits)
    })
    .await
    .map_err(|error| thumbnail_error(&error))?;
    let mut commit = Commit::new();
    let (row, pin) = match made {
        Thumbnail::Original { content_type } => (
            ThumbnailRow {
                content_type: content_type.to_owned(),
                content: None,
            },
            None,
        ),
        Thumbnail::Made(Made {
            content_type,
            bytes,
            ..
        }) => {
            let length = bytes.len() as u64;
            let kept = files
                .put(Body::from(bytes), length)
                .await
                .map_err(put_error)?;
            let row = ThumbnailRow {
                content_type: content_type.to_owned(),
                content: Some(Content::of(&kept)),
            };
            (row, Some(kept))
        }
    };
    if let (Shelf::Remote, Some(content)) = (shelf, &row.content) {
        super::remote::use_file(&mut commit, &content.hash()?, (&hash, &variant));
    }
    commit.put(THUMBNAILS, key(), &row);
    app.store.commit(commit).await?;
    drop(pin);
    Ok(served(original, row))
}

fn served(original: Served, row: ThumbnailRow) -> Served {
    Served {
        content: row.content.unwrap_or(original.content),
        content_type: Some(row.content_type),
        filename: None,
        shelf: original.shelf,
    }
}

/// How an image that cannot be made smaller is told to a client.
fn thumbnail_error(error: &ThumbnailError) -> ApiError {
    match error {
        ThumbnailError::TooLarge { .. } => ApiError::too_large(error.to_string()),
        ThumbnailError::NotAnImage | ThumbnailError::Damaged(_) => {
            ApiError::unknown(error.to_string())
        }
    }
}
