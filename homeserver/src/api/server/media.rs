//! Media of this server, for other servers.
//!
//! An answer has two parts, of which the second is streamed from the disk.
//! Spec: server-server API, "Content Repository".

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt as _;

use crate::{
    api::client::media::{size, thumbnail, wait},
    error::{ApiError, ApiResult},
    http::{Origin, RawRequest, Routes},
    media::{
        disposition::{Filename, content_disposition, content_type},
        library::{self, Served},
    },
    server::App,
};

/// How long the line between the parts is, in characters: a file that has it in it by chance is not to be expected.
const BOUNDARY_CHARACTERS: usize = 30;

pub(super) fn routes(routes: &mut Routes) {
    let prefix = "/_matrix/federation/v1/media";
    routes.route(
        Method::GET,
        &format!("{prefix}/download/{{media_id}}"),
        download,
    );
    routes.route(
        Method::GET,
        &format!("{prefix}/thumbnail/{{media_id}}"),
        small,
    );
}

async fn download(app: App, _: Origin, request: RawRequest) -> ApiResult<Response> {
    let found = library::own(&app, request.arg(0), wait(&request)).await?;
    in_parts(&app, &found).await
}

async fn small(app: App, _: Origin, request: RawRequest) -> ApiResult<Response> {
    let (size, animated) = size(&app, &request)?;
    let original = library::own(&app, request.arg(0), wait(&request)).await?;
    in_parts(&app, &thumbnail(&app, original, size, animated).await?).await
}

/// A JSON object for what there may be to say one day, and the bytes.
async fn in_parts(app: &App, served: &Served) -> ApiResult<Response> {
    let files = app.media.files_of(served.shelf);
    let reader = files.read(&served.content.hash()?).await?;
    let reader = reader.ok_or_else(|| ApiError::not_found("there are no such media"))?;
    let kind = content_type(served.content_type.as_deref());
    let name = served.filename.as_deref().and_then(Filename::new);
    let disposition = content_disposition(&kind, name.as_ref());
    let boundary = app.entropy.text(BOUNDARY_CHARACTERS);
    let mut head =
        format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n")
            .into_bytes();
    for (name, value) in [
        ("Content-Type", &kind),
        ("Content-Disposition", &disposition),
    ] {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let tail = format!("\r\n--{boundary}--\r\n").into_bytes();
    let length = head.len() as u64 + reader.length() + tail.len() as u64;
    let part = |bytes: Vec<u8>| stream::iter([Ok::<Bytes, std::io::Error>(bytes.into())]);
    let content = reader.into_body().into_data_stream();
    let body = Body::from_stream(part(head).chain(content).chain(part(tail)));
    let mut response = Response::new(body);
    let kind = HeaderValue::try_from(format!("multipart/mixed; boundary={boundary}"))
        .map_err(|error| ApiError::internal(&error))?;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}
