//! Pages for clients that do not know a way to log in or a stage of authentication: they open one in
//! a browser.
//!
//! The pages load nothing, and run no script but their own. Spec: client-server API, "Login fallback",
//! "User-Interactive Authentication API", "Fallback".

use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};

use super::{PREFIXES, uia};
use crate::{
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, bytes_reply, limits::Doing},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    let login = "/_matrix/static/client/login";
    for path in [login.to_owned(), format!("{login}/")] {
        routes.route(Method::GET, &path, log_in);
    }
    for prefix in PREFIXES {
        let path = format!("{prefix}/auth/{{stage}}/fallback/web");
        routes.route(Method::GET, &path, show_stage);
        routes.route(Method::POST, &path, do_stage);
    }
}

async fn log_in(app: App, _: Public, _: RawRequest) -> ApiResult<Response> {
    page(
        &app,
        StatusCode::OK,
        include_str!("fallback/login.html"),
        &[],
    )
}

/// A page of this server. `values` are put in place of their names, escaped; `NONCE` and `SERVER` always are.
fn page(
    app: &App,
    status: StatusCode,
    template: &str,
    values: &[(&str, &str)],
) -> ApiResult<Response> {
    let nonce = app.entropy.text(24);
    let mut text = template
        .replace("NONCE", &nonce)
        .replace("SERVER", &escape(app.server_name().as_str()));
    for (name, value) in values {
        text = text.replace(name, value);
    }
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::try_from(policy).map_err(|error| ApiError::internal(&error))?;
    let mut response = bytes_reply(status, "text/html; charset=utf-8", text);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let none = HeaderValue::from_static("no-referrer");
    headers.insert(header::REFERRER_POLICY, none);
    Ok(response)
}

/// Text as it may stand in HTML, between tags or quoted.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The stages that have a page: what it asks for.
fn fields(stage: &str) -> ApiResult<&'static str> {
    match stage {
        "m.login.dummy" => Ok(""),
        "m.login.registration_token" => Ok(
            "<label>Registration token <input name=\"token\" autocomplete=\"off\" required></label>",
        ),
        _ => Err(ApiError::unrecognized("this stage has no page here")),
    }
}

fn form(app: &App, stage: &str, session: &str, failed: Option<&str>) -> ApiResult<Response> {
    let fields = fields(stage)?;
    let status = match failed {
        Some(_) => StatusCode::UNAUTHORIZED,
        None => StatusCode::OK,
    };
    let values = [
        ("FIELDS", fields),
        (
            "MESSAGE",
            failed.unwrap_or("Your client asks you to continue here."),
        ),
        ("SESSION", &escape(session)),
    ];
    page(app, status, include_str!("fallback/stage.html"), &values)
}

/// The session, if it is open.
fn session(app: &App, named: Option<String>) -> ApiResult<String> {
    let session = named.ok_or_else(|| ApiError::missing_param("`session` is missing"))?;
    if app.uia.is_open(app, &session) {
        return Ok(session);
    }
    Err(ApiError::not_found("the session is not known, or is over"))
}

async fn show_stage(app: App, _: Public, request: RawRequest) -> ApiResult<Response> {
    let stage = request.arg(0);
    fields(stage)?;
    let session = session(&app, request.query("session"))?;
    form(&app, stage, &session, None)
}

async fn do_stage(app: App, Public(client): Public, request: RawRequest) -> ApiResult<Response> {
    app.limits.address(&app, Doing::Login, client.0)?;
    let stage = request.arg(0);
    fields(stage)?;
    let sent: Vec<(String, String)> = serde_html_form::from_bytes(&request.body)
        .map_err(|_| ApiError::bad_json("the body is not a form"))?;
    let sent = |name: &str| {
        let mut pairs = sent.iter();
        pairs.find_map(|(key, value)| (key == name).then(|| value.clone()))
    };
    let session = session(&app, sent("session").or_else(|| request.query("session")))?;
    let done = match stage {
        "m.login.dummy" => uia::dummy(),
        _ => match uia::registration_token(&app, sent("token").as_deref().unwrap_or_default()) {
            Ok(done) => done,
            Err(error) if error.status == StatusCode::FORBIDDEN => {
                return form(&app, stage, &session, Some("The token is not valid."));
            }
            Err(error) => return Err(error),
        },
    };
    app.uia.complete(&app, &session, done);
    page(
        &app,
        StatusCode::OK,
        include_str!("fallback/done.html"),
        &[],
    )
}
