//! Media: uploading, downloading, thumbnails, previews of pages.
//!
//! Spec: client-server API, "Content repository". The paths before v1.11, which ask for no login, still
//! serve: bridges and older clients use them.

use std::time::Duration;

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use ruma::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::{
    Commit,
    keys::{Keyspace, Table},
};

use crate::{
    error::{ApiError, ApiResult},
    http::{
        Caller, Client, Guest, Public, RawRequest, Routes, auth::Auth, json_reply, limits::Doing,
        query,
    },
    media::{
        disposition::{
            Filename, SECURITY_HEADERS, content_disposition, content_type as safe_content_type,
        },
        library::{self, Served},
        outward::{FetchError, Limits},
        preview::{self, Kind, PAGE_BYTES_MAX},
        thumbnail::{self, Size},
    },
    server::App,
};

/// How long a download waits for an announced upload when the client names no time.
const WAIT_DEFAULT: Duration = Duration::from_secs(20);

/// How long a preview serves before the page is fetched again, in milliseconds: an hour.
const PREVIEW_MS: u64 = 60 * 60 * 1_000;

/// The longest URL that is previewed, in bytes.
const URL_BYTES_MAX: usize = 2_048;

const PREVIEWS: Table<PreviewRow> = Table::new(Keyspace::URL_PREVIEW);

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/media/r0", "/_matrix/media/v3"] {
        routes.stream(Method::POST, &format!("{prefix}/upload"), upload);
    }
    routes.stream(
        Method::PUT,
        "/_matrix/media/v3/upload/{server_name}/{media_id}",
        fill,
    );
    routes.raw(Method::POST, "/_matrix/media/v1/create", announce);

    let authed = "/_matrix/client/v1/media";
    routes.route(
        Method::GET,
        &format!("{authed}/download/{{server_name}}/{{media_id}}"),
        download::<Guest>,
    );
    routes.route(
        Method::GET,
        &format!("{authed}/download/{{server_name}}/{{media_id}}/{{file_name}}"),
        download::<Guest>,
    );
    routes.route(
        Method::GET,
        &format!("{authed}/thumbnail/{{server_name}}/{{media_id}}"),
        small::<Guest>,
    );
    routes.raw(Method::GET, &format!("{authed}/config"), config);
    routes.raw(Method::GET, &format!("{authed}/preview_url"), preview_url);
    for prefix in ["/_matrix/media/r0", "/_matrix/media/v3"] {
        routes.route(
            Method::GET,
            &format!("{prefix}/download/{{server_name}}/{{media_id}}"),
            download::<Public>,
        );
        routes.route(
            Method::GET,
            &format!("{prefix}/download/{{server_name}}/{{media_id}}/{{file_name}}"),
            download::<Public>,
        );
        routes.route(
            Method::GET,
            &format!("{prefix}/thumbnail/{{server_name}}/{{media_id}}"),
            small::<Public>,
        );
        routes.raw(Method::GET, &format!("{prefix}/config"), config);
        routes.raw(Method::GET, &format!("{prefix}/preview_url"), preview_url);
    }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

fn filename(parts: &Parts) -> Option<String> {
    let name = query(parts, "filename")?;
    Filename::new(&name).map(|name| name.as_str().to_owned())
}

async fn upload(
    app: App,
    caller: Caller,
    parts: Parts,
    _: Vec<String>,
    body: Body,
) -> ApiResult<Response> {
    caller.limit(&app, Doing::Upload)?;
    caller.must_not_be_suspended()?;
    check_length(&app, &parts)?;
    let (kind, name) = (content_type(&parts.headers), filename(&parts));
    let id = library::upload(&app, caller.user, None, kind, name, body).await?;
    let uri = format!("mxc://{}/{id}", app.server_name());
    Ok(json_reply(StatusCode::OK, &json!({ "content_uri": uri })))
}

/// What announces itself as too large need not be sent.
fn check_length(app: &App, parts: &Parts) -> ApiResult<()> {
    let limit = app.config.limits.upload_bytes();
    let announced = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(ApiError::too_large(format!(
            "an upload has at most {limit} bytes"
        )));
    }
    Ok(())
}

async fn announce(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Upload)?;
    caller.must_not_be_suspended()?;
    let (id, expires_ms) = library::announce(&app, caller.user).await?;
    let uri = format!("mxc://{}/{id}", app.server_name());
    Ok(json!({ "content_uri": uri, "unused_expires_at": expires_ms }))
}

async fn fill(
    app: App,
    caller: Caller,
    parts: Parts,
    path: Vec<String>,
    body: Body,
) -> ApiResult<Response> {
    caller.limit(&app, Doing::Upload)?;
    caller.must_not_be_suspended()?;
    check_length(&app, &parts)?;
    let (server, id) = named(&path)?;
    if server != *app.server_name() {
        return Err(ApiError::not_found("the media are of another server"));
    }
    let (kind, name) = (content_type(&parts.headers), filename(&parts));
    library::upload(&app, caller.user, Some(id), kind, name, body).await?;
    Ok(json_reply(StatusCode::OK, &json!({})))
}

fn named(path: &[String]) -> ApiResult<(ruma::OwnedServerName, &str)> {
    let (Some(server), Some(id)) = (path.first(), path.get(1)) else {
        return Err(ApiError::invalid_param("not a media ID"));
    };
    let server =
        ServerName::parse(server).map_err(|_| ApiError::invalid_param("not a server name"))?;
    let grammatical = id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if id.is_empty() || id.len() > 255 || !grammatical {
        return Err(ApiError::not_found("there are no such media"));
    }
    Ok((server, id))
}

async fn find<A: Auth>(app: &App, request: &RawRequest) -> ApiResult<Served> {
    let (server, id) = named(&request.path)?;
    if server != *app.server_name() {
        if request.query("allow_remote").as_deref() == Some("false") {
            return Err(ApiError::not_found("the media are of another server"));
        }
        if A::PUBLIC {
            let Client(address) = Client::of(&request.parts);
            app.limits.address(app, Doing::Anonymous, address)?;
        }
    }
    library::find(app, &server, id, wait(request)).await
}

/// How long the client waits for an announced upload.
pub(crate) fn wait(request: &RawRequest) -> Duration {
    let wait = request.query("timeout_ms").and_then(|ms| ms.parse().ok());
    wait.map_or(WAIT_DEFAULT, Duration::from_millis)
}

async fn download<A: Auth>(app: App, _: A, request: RawRequest) -> ApiResult<Response> {
    let mut found = find::<A>(&app, &request).await?;
    if let Some(name) = request.path.get(2) {
        found.filename = Filename::new(name).map(|name| name.as_str().to_owned());
    }
    serve(&app, &request, found).await
}

async fn small<A: Auth>(app: App, _: A, request: RawRequest) -> ApiResult<Response> {
    let (size, animated) = size(&app, &request)?;
    let original = find::<A>(&app, &request).await?;
    let small = thumbnail(&app, original, size, animated).await?;
    serve(&app, &request, small).await
}

/// Which thumbnail a request asks for: size and method, and whether it may move.
///
/// # Errors
/// `M_MISSING_PARAM`, `M_INVALID_PARAM`.
pub(crate) fn size(app: &App, request: &RawRequest) -> ApiResult<(Size, bool)> {
    let number = |name: &str| -> ApiResult<u32> {
        let text = request
            .query(name)
            .ok_or_else(|| ApiError::missing_param(format!("`{name}` is missing")))?;
        text.parse()
            .map_err(|_| ApiError::invalid_param(format!("`{name}` is not a number of pixels")))
    };
    let edge = app.config.media.thumbnails.edge_pixels_max;
    let (width, height) = (
        number("width")?.clamp(1, edge),
        number("height")?.clamp(1, edge),
    );
    let method = match request.query("method").as_deref() {
        Some("crop") => thumbnail::Method::Crop,
        Some("scale") | None => thumbnail::Method::Scale,
        Some(_) => return Err(ApiError::invalid_param("`method` is `crop` or `scale`")),
    };
    let animated = request.query("animated").as_deref() == Some("true");
    Ok((Size::serving(width, height, method), animated))
}

/// A thumbnail, with a name of its own.
///
/// # Errors
/// As [`library::small`].
pub(crate) async fn thumbnail(
    app: &App,
    original: Served,
    size: Size,
    animated: bool,
) -> ApiResult<Served> {
    let mut small = library::small(app, original, size, animated).await?;
    let extension = match small.content_type.as_deref() {
        Some("image/jpeg") => "jpg",
        Some("image/gif") => "gif",
        Some("image/webp") => "webp",
        _ => "png",
    };
    small.filename = Some(format!("thumbnail.{extension}"));
    Ok(small)
}

/// The bytes, with the headers under which they may safely be shown. What an ID names never changes.
async fn serve(app: &App, request: &RawRequest, served: Served) -> ApiResult<Response> {
    let etag = HeaderValue::try_from(format!("\"{}\"", served.content.hash))
        .map_err(|error| ApiError::internal(&error))?;
    let kind = safe_content_type(served.content_type.as_deref());
    let name = served.filename.as_deref().and_then(Filename::new);
    let known = request.parts.headers.get(header::IF_NONE_MATCH) == Some(&etag);
    let mut response = if known {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let files = app.media.files_of(served.shelf);
        let reader = files.read(&served.content.hash()?).await?;
        let reader = reader.ok_or_else(|| ApiError::not_found("there are no such media"))?;
        let length = reader.length();
        let mut response = Response::new(Body::new(reader.into_body()));
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
        response
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_DISPOSITION,
        content_disposition(&kind, name.as_ref()),
    );
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::ETAG, etag);
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, max-age=31536000, immutable"),
    );
    for (name, value) in &SECURITY_HEADERS {
        headers.insert(name.clone(), value.clone());
    }
    Ok(response)
}

async fn config(app: App, _: Guest, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "m.upload.size": app.config.limits.upload_bytes() }))
}

#[derive(Serialize, Deserialize)]
struct PreviewRow {
    fetched_ms: u64,
    properties: Map<String, Value>,
}

async fn preview_url(
    app: App,
    caller: Caller,
    request: RawRequest,
) -> ApiResult<Map<String, Value>> {
    let url = request
        .query("url")
        .ok_or_else(|| ApiError::missing_param("`url` is missing"))?;
    let settings = &app.config.media.url_previews;
    if !settings.enabled {
        return Err(ApiError::unrecognized(
            "previews are switched off on this server",
        ));
    }
    if url.len() > URL_BYTES_MAX {
        return Err(ApiError::invalid_param(format!(
            "a URL has at most {URL_BYTES_MAX} bytes here"
        )));
    }
    let parsed = reqwest::Url::parse(&url).map_err(|_| ApiError::invalid_param("not a URL"))?;
    if !parsed.host_str().is_some_and(|host| settings.allows(host)) {
        return Err(ApiError::forbidden(
            "this server makes no previews of that host",
        ));
    }
    let key = || {
        use sha2::{Digest as _, Sha256};
        PREVIEWS.key().raw(&Sha256::digest(url.as_bytes()))
    };
    let now_ms = app.clock.now_ms();
    if let Some(row) = app.store.get(PREVIEWS, key())?
        && row.fetched_ms + PREVIEW_MS > now_ms
    {
        return Ok(row.properties);
    }
    caller.limit(&app, Doing::Preview)?;
    let properties = make_preview(&app, &caller, &url).await?;
    let row = PreviewRow {
        fetched_ms: now_ms,
        properties,
    };
    let mut commit = Commit::new();
    commit.put(PREVIEWS, key(), &row);
    app.store.commit(commit).await?;
    Ok(row.properties)
}

async fn make_preview(app: &App, caller: &Caller, url: &str) -> ApiResult<Map<String, Value>> {
    let settings = &app.config.media.url_previews;
    let limits = Limits {
        total: Duration::from_secs(settings.timeout_seconds),
        ..Limits::default()
    };
    let most = usize::try_from(settings.download_bytes_max()).unwrap_or(usize::MAX);
    let answer = app
        .media
        .outward
        .open(url, &limits)
        .await
        .map_err(fetch_error)?;
    if !answer.status().is_success() {
        return Err(ApiError::bad_gateway("the page could not be had"));
    }
    let kind = answer.content_type().map(str::to_owned);
    let mut properties = Map::new();
    match Kind::of(kind.as_deref()) {
        Kind::Page => {
            let from = answer.url().clone();
            let page = answer
                .prefix(PAGE_BYTES_MAX.min(most))
                .await
                .map_err(fetch_error)?;
            let preview = preview::read(&page, kind.as_deref(), &from);
            properties.extend(
                preview
                    .properties
                    .into_iter()
                    .map(|(key, value)| (key, value.into())),
            );
            if let Some(image) = preview.image {
                // A page without its picture is still a page.
                let fetched = app.media.outward.get(image.as_str(), most, &limits).await;
                if let Ok(fetched) = fetched
                    && fetched.status.is_success()
                {
                    add_image(app, caller, &mut properties, fetched.bytes).await?;
                }
            }
        }
        Kind::Image => {
            let bytes = answer.bytes(most).await.map_err(fetch_error)?;
            add_image(app, caller, &mut properties, bytes).await?;
        }
        Kind::Other => {}
    }
    Ok(properties)
}

/// Keeps the picture of a page as media of this server, if it is one.
async fn add_image(
    app: &App,
    caller: &Caller,
    properties: &mut Map<String, Value>,
    bytes: Vec<u8>,
) -> ApiResult<()> {
    let limits = thumbnail::Limits::default();
    let Ok(info) = thumbnail::inspect(std::io::Cursor::new(&bytes), &limits) else {
        return Ok(());
    };
    let length = bytes.len();
    let kind = Some(info.content_type.to_owned());
    let id = library::upload(app, caller.user, None, kind, None, Body::from(bytes)).await?;
    let uri = format!("mxc://{}/{id}", app.server_name());
    properties.insert("og:image".to_owned(), uri.into());
    properties.insert("og:image:type".to_owned(), info.content_type.into());
    properties.insert("og:image:width".to_owned(), info.width.into());
    properties.insert("og:image:height".to_owned(), info.height.into());
    properties.insert("matrix:image:size".to_owned(), length.into());
    Ok(())
}

fn fetch_error(error: FetchError) -> ApiError {
    match error {
        FetchError::Refused(refusal) => ApiError::forbidden(refusal.to_string()),
        FetchError::Failed(_) => ApiError::bad_gateway("the page could not be had"),
        other => ApiError::bad_gateway(other.to_string()),
    }
}
