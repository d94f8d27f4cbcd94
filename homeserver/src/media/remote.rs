//! Media of other servers: fetched when somebody asks, kept for a while.
//!
//! What is kept lies in a directory of its own, so that no upload of a user here can share a file with something that
//! is deleted to make room. A file is fetched once however many wait for it, and is whole in memory on its way to the
//! disk: [`FETCHES_AT_ONCE`] and `media.remote_file_mb` bound how much that is.
//! Spec: server-server API, "Content Repository"; client-server API, `GET /_matrix/media/v3/download`, which servers
//! before v1.11 have.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{HeaderValue, Method, StatusCode, header};
use ruma::{
    ServerName,
    api::{
        EmptyBody, IncomingResponse, Metadata, OutgoingRequest,
        auth_scheme::NoAuthentication,
        error::{DeserializationError, IntoHttpError},
        federation::authenticated_media::{FileOrLocation, get_content},
        path_builder::SinglePath,
    },
};
use serde::{Deserialize, Serialize};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Table, Unpack},
    kv::Direction,
};

use super::{
    disposition::Filename,
    files::ContentHash,
    library::{Content, MediaUse, Served, Shelf, THUMBNAILS, USE, put_error},
    outward,
};
use crate::{
    asked,
    error::{ApiError, ApiResult},
    peers::PeerError,
    server::App,
};

const REMOTE: Table<RemoteRow> = Table::new(Keyspace::REMOTE_MEDIA);

/// How many files of other servers are fetched at once; more wait.
pub(super) const FETCHES_AT_ONCE: usize = 4;

/// How long the bytes of a file may take to arrive, once its server has it.
const FETCH_MAX: Duration = Duration::from_mins(2);

/// What is around a file in an answer at most, in bytes: two parts with their headers.
const AROUND_BYTES: u64 = 64 << 10;

/// For how long it is remembered that a server has no such file, in milliseconds: a minute.
pub(super) const REMEMBERED_MS: u64 = 60 * 1_000;

/// How often files that nobody asks for are looked for.
const TIDY_EVERY: Duration = Duration::from_hours(1);

/// How many files go in one round.
const EVICTED_AT_ONCE: usize = 1_000;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// What the size of a thumbnail begins with in keys, if it is of another server's image.
pub(super) const THUMBNAIL_PREFIX: &str = "remote-";

/// Media of another server, as they are kept here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoteRow {
    /// The day on which somebody asked for it last, in days since the epoch.
    used_day: u64,
    /// What its server says it is.
    content_type: Option<String>,
    /// What its server says it is called.
    filename: Option<String>,
    /// Its bytes.
    content: Content,
}

impl RemoteRow {
    fn served(&self) -> Served {
        Served {
            content: self.content.clone(),
            content_type: self.content_type.clone(),
            filename: self.filename.clone(),
            shelf: Shelf::Remote,
        }
    }
}

/// A file as another server gave it.
struct Fetched {
    bytes: Vec<u8>,
    content_type: Option<String>,
    filename: Option<String>,
}

fn row_key(server: &str, id: &str) -> Packed {
    REMOTE.key().text(server).text(id)
}

fn used_key(day: u64, server: &str, id: &str) -> Packed {
    Packed::key(Keyspace::REMOTE_MEDIA_USED)
        .u64(day)
        .text(server)
        .text(id)
}

fn file_key(hash: &ContentHash) -> Packed {
    Packed::key(Keyspace::MEDIA_FILE).raw(hash.as_bytes())
}

fn media_file_key(hash: &ContentHash, server: &str, id: &str) -> Packed {
    file_key(hash).text("media").text(server).text(id)
}

fn thumbnail_file_key(hash: &ContentHash, (of, variant): (&ContentHash, &str)) -> Packed {
    file_key(hash)
        .text("thumbnail")
        .raw(of.as_bytes())
        .text(variant)
}

fn total_key() -> Packed {
    USE.key().u64(u64::MAX)
}

/// Notes that a thumbnail of another server's image uses a file.
pub(super) fn use_file(commit: &mut Commit, hash: &ContentHash, thumbnail: (&ContentHash, &str)) {
    commit.put_raw(thumbnail_file_key(hash, thumbnail), Packed::new());
}

fn is_used(store: &Store, hash: &ContentHash) -> Result<bool, StoreError> {
    let mut used = false;
    store.visit(&file_key(hash), Direction::Ascending, |_, _| {
        used = true;
        Ok(false)
    })?;
    Ok(used)
}

/// Media of another server: those that are here, or else fetched now. Its server waits up to `wait` for an announced
/// upload.
///
/// # Errors
/// `M_NOT_FOUND`, `M_NOT_YET_UPLOADED`, `M_TOO_LARGE`, 502 when the server does not answer.
pub(super) async fn find(
    app: &App,
    server: &ServerName,
    id: &str,
    wait: Duration,
) -> ApiResult<Served> {
    if let Some(row) = app.store.get(REMOTE, row_key(server.as_str(), id))? {
        touch(app, server, id, &row).await?;
        return Ok(row.served());
    }
    let question = format!("{server}/{id}");
    let fetch = async {
        match fetch(app, server, id, wait).await? {
            Some(fetched) => keep(app, server, id, fetched).await.map(Some),
            None => Ok(None),
        }
    };
    let now_ms = app.clock.now_ms();
    let fetched = &app.media.fetched;
    let row = fetched.get(now_ms, &question, REMEMBERED_MS, fetch).await?;
    row.map(|row| row.served())
        .ok_or_else(|| ApiError::not_found("there are no such media"))
}

/// Notes that somebody asked for media today.
async fn touch(app: &App, server: &ServerName, id: &str, row: &RemoteRow) -> ApiResult<()> {
    let (server, today) = (server.as_str(), app.clock.now_ms() / DAY_MS);
    if row.used_day == today {
        return Ok(());
    }
    let _writing = app.media.writing.lock().await;
    let Some(mut row) = app.store.get(REMOTE, row_key(server, id))? else {
        return Ok(());
    };
    let mut commit = Commit::new();
    commit.delete(used_key(row.used_day, server, id));
    commit.put_raw(used_key(today, server, id), Packed::new());
    row.used_day = today;
    commit.put(REMOTE, row_key(server, id), &row);
    app.store.commit(commit).await?;
    Ok(())
}

/// Writes a fetched file to the disk, and makes room if there is too much then.
async fn keep(
    app: &App,
    server: &ServerName,
    id: &str,
    fetched: Fetched,
) -> ApiResult<Arc<RemoteRow>> {
    let server = server.as_str();
    let limit = app.config.media.remote_file_bytes();
    let files = &app.media.remote_files;
    let kept = files.put(Body::from(fetched.bytes), limit).await;
    let kept = kept.map_err(put_error)?;
    let row = RemoteRow {
        used_day: app.clock.now_ms() / DAY_MS,
        content_type: fetched.content_type,
        filename: fetched.filename,
        content: Content::of(&kept),
    };
    {
        let _writing = app.media.writing.lock().await;
        let mut commit = Commit::new();
        let mut total = app.store.get(USE, total_key())?.unwrap_or_default();
        total.bytes += kept.length;
        commit.put(USE, total_key(), &total);
        commit.put(REMOTE, row_key(server, id), &row);
        commit.put_raw(used_key(row.used_day, server, id), Packed::new());
        commit.put_raw(media_file_key(&kept.hash, server, id), Packed::new());
        app.store.commit(commit).await?;
    }
    drop(kept);
    evict(app, u64::MAX, Some((server, id))).await?;
    Ok(Arc::new(row))
}

/// Lets go of what nobody has asked for, now and then.
pub async fn tidy(app: App) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        if let Err(error) = clean(&app).await {
            tracing::warn!(error = %error.message, "media of other servers were not tidied up; trying again in an hour");
        }
    }
}

/// Deletes what nobody has asked for in `media.remote_lifetime_seconds`, and what is beyond `media.remote_total_mb`.
///
/// # Errors
/// When the store or the disk fails.
pub async fn clean(app: &App) -> ApiResult<()> {
    let today = app.clock.now_ms() / DAY_MS;
    let days = app.config.media.remote_lifetime_seconds * 1_000 / DAY_MS;
    let oldest = today.saturating_sub(days);
    evict(app, oldest, None).await
}

/// Deletes what was asked for last before the day `oldest`; and, while there is too much, what was asked for the
/// longest ago, but never `spared`. `u64::MAX`: only what is too much.
async fn evict(app: &App, oldest: u64, spared: Option<(&str, &str)>) -> ApiResult<()> {
    let most = app.config.media.remote_total_bytes();
    let total = app.store.get(USE, total_key())?.unwrap_or_default();
    let mut surplus = total.bytes.saturating_sub(most);
    if surplus == 0 && oldest == u64::MAX {
        return Ok(());
    }
    let mut going: Vec<(String, String)> = Vec::new();
    let prefix = Packed::key(Keyspace::REMOTE_MEDIA_USED);
    app.store.visit(&prefix, Direction::Ascending, |key, _| {
        let mut parts = Unpack::key(key);
        let (Some(day), Some(server), Some(id)) = (parts.u64(), parts.text(), parts.text()) else {
            return Ok(true);
        };
        let unused = oldest != u64::MAX && day < oldest;
        if !unused && surplus == 0 {
            return Ok(false);
        }
        if spared != Some((&server, &id)) {
            let row = app.store.get(REMOTE, row_key(&server, &id))?;
            surplus = surplus.saturating_sub(row.map_or(0, |row| row.content.length));
            going.push((server, id));
        }
        Ok(going.len() < EVICTED_AT_ONCE)
    })?;
    for (server, id) in going {
        forget(app, &server, &id).await?;
    }
    Ok(())
}

/// Deletes media of another server, their thumbnails, and the files if nothing else uses them.
async fn forget(app: &App, server: &str, id: &str) -> ApiResult<()> {
    let _writing = app.media.writing.lock().await;
    let store = &app.store;
    let Some(row) = store.get(REMOTE, row_key(server, id))? else {
        return Ok(());
    };
    let hash = row.content.hash()?;
    let mut commit = Commit::new();
    let mut total = store.get(USE, total_key())?.unwrap_or_default();
    total = MediaUse {
        bytes: total.bytes.saturating_sub(row.content.length),
    };
    commit.put(USE, total_key(), &total);
    commit.delete(row_key(server, id));
    commit.delete(used_key(row.used_day, server, id));
    commit.delete(media_file_key(&hash, server, id));
    let mut users = 0;
    store.visit(&file_key(&hash), Direction::Ascending, |_, _| {
        users += 1;
        Ok(users < 2)
    })?;
    let mut hashes = vec![hash];
    if users < 2 {
        let prefix = THUMBNAILS.key().raw(hash.as_bytes());
        let mut thumbnails = Vec::new();
        store.visit(&prefix, Direction::Ascending, |key, value| {
            let mut parts = Unpack::key(key);
            let variant = parts.hash().and_then(|_| parts.text());
            thumbnails.extend(variant.map(|variant| (variant, value.to_vec())));
            Ok(true)
        })?;
        for (variant, value) in thumbnails {
            if !variant.starts_with(THUMBNAIL_PREFIX) {
                continue;
            }
            commit.delete(THUMBNAILS.key().raw(hash.as_bytes()).text(&variant));
            let row: Option<super::library::ThumbnailRow> = serde_json::from_slice(&value).ok();
            if let Some(content) = row.and_then(|row| row.content) {
                let made = content.hash()?;
                commit.delete(thumbnail_file_key(&made, (&hash, &variant)));
                hashes.push(made);
            }
        }
    }
    store.commit(commit).await?;
    for hash in hashes {
        let used = || std::future::ready(is_used(store, &hash).map_err(ApiError::from));
        app.media.remote_files.delete_unless(&hash, used).await?;
    }
    Ok(())
}

/// Asks the server of some media for them; `None`: it has none.
async fn fetch(
    app: &App,
    server: &ServerName,
    id: &str,
    wait: Duration,
) -> ApiResult<Option<Fetched>> {
    let place = app.media.fetching.acquire().await;
    let _place = place.map_err(|error| ApiError::internal(&error))?;
    let mut request = get_content::v1::Request::new(id.to_owned());
    request.timeout_ms = wait;
    match asked::ask_for(app, server, request, wait + FETCH_MAX, bytes_max(app)).await {
        Ok(answer) => match answer.content {
            FileOrLocation::File(content) => {
                let name = content.content_disposition.and_then(|given| given.filename);
                Ok(Some(Fetched {
                    bytes: content.file,
                    content_type: content.content_type,
                    filename: name.as_deref().and_then(filename),
                }))
            }
            FileOrLocation::Location(url) => linked(app, &url).await.map(Some),
            _ => Err(ApiError::bad_gateway("the media came in an unknown form")),
        },
        Err(error) if is_unknown_endpoint(&error) => unauthenticated(app, server, id, wait).await,
        Err(error) => gone(&error),
    }
}

/// How much of an answer with a file is taken, in bytes: the largest file, and what is around it.
fn bytes_max(app: &App) -> usize {
    let most = app
        .config
        .media
        .remote_file_bytes()
        .saturating_add(AROUND_BYTES);
    usize::try_from(most).unwrap_or(usize::MAX)
}

fn filename(name: &str) -> Option<String> {
    Filename::new(name).map(|name| name.as_str().to_owned())
}

/// A server says so of an endpoint that it does not have, or its reverse proxy does.
fn is_unknown_endpoint(error: &PeerError) -> bool {
    match error {
        PeerError::Refused {
            status,
            errcode,
            body,
            ..
        } => {
            let unknown = matches!(
                *status,
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST
            );
            unknown && (errcode == "M_UNRECOGNIZED" || body.is_empty())
        }
        _ => false,
    }
}

fn gone(error: &PeerError) -> ApiResult<Option<Fetched>> {
    match error {
        error if asked::is_not_found(error) => Ok(None),
        PeerError::Refused { errcode, .. } if errcode == "M_NOT_YET_UPLOADED" => {
            Err(ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                "M_NOT_YET_UPLOADED",
                "the media were announced, but are not there yet",
            ))
        }
        error => Err(asked::relayed(error)),
    }
}

/// The file behind a link that a server gave instead of it.
async fn linked(app: &App, url: &str) -> ApiResult<Fetched> {
    let most = usize::try_from(app.config.media.remote_file_bytes()).unwrap_or(usize::MAX);
    let limits = outward::Limits {
        total: FETCH_MAX,
        ..outward::Limits::default()
    };
    let answer = app.media.outward.get(url, most, &limits).await;
    let answer = answer.map_err(|error| ApiError::bad_gateway(error.to_string()))?;
    if !answer.status.is_success() {
        return Err(ApiError::bad_gateway(
            "the media are not where their server says",
        ));
    }
    Ok(Fetched {
        bytes: answer.bytes,
        content_type: answer.content_type,
        filename: None,
    })
}

/// Asks in the way of servers before v1.11.
async fn unauthenticated(
    app: &App,
    server: &ServerName,
    id: &str,
    wait: Duration,
) -> ApiResult<Option<Fetched>> {
    let request = Unauthenticated {
        server: server.to_string(),
        id: id.to_owned(),
        wait,
    };
    match asked::ask_for(app, server, request, wait + FETCH_MAX, bytes_max(app)).await {
        Ok(UnauthenticatedFile(fetched)) => Ok(Some(fetched)),
        Err(error) => gone(&error),
    }
}

/// `GET /_matrix/media/v3/download/{serverName}/{mediaId}`, of another server's own media only.
#[derive(Clone, Debug)]
struct Unauthenticated {
    server: String,
    id: String,
    wait: Duration,
}

impl Metadata for Unauthenticated {
    const METHOD: Method = Method::GET;
    const RATE_LIMITED: bool = true;
    type Authentication = NoAuthentication;
    type PathBuilder = SinglePath;
    const PATH_BUILDER: SinglePath =
        SinglePath::new("/_matrix/media/v3/download/{server_name}/{media_id}");
}

impl OutgoingRequest for Unauthenticated {
    type Body = EmptyBody;
    type EndpointError = ruma::api::error::Error;
    type IncomingResponse = UnauthenticatedFile;

    fn try_into_http_request_inner(
        self,
        base_url: &str,
        (): (),
    ) -> Result<http::Request<EmptyBody>, IntoHttpError> {
        let query = format!("allow_remote=false&timeout_ms={}", self.wait.as_millis());
        let url = Self::make_endpoint_url((), base_url, &[&self.server, &self.id], &query)?;
        Ok(http::Request::builder()
            .method(Self::METHOD)
            .uri(url)
            .body(EmptyBody)?)
    }
}

struct UnauthenticatedFile(Fetched);

impl IncomingResponse for UnauthenticatedFile {
    type EndpointError = ruma::api::error::Error;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        let header = |name| response.headers().get(name);
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let name = header(header::CONTENT_DISPOSITION).and_then(Filename::from_disposition);
        Ok(Self(Fetched {
            content_type: header(header::CONTENT_TYPE).and_then(text),
            filename: name.map(|name| name.as_str().to_owned()),
            bytes: response.body().to_vec(),
        }))
    }
}
