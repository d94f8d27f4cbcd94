//! Requests to application services: how one is made, and what is asked while a client waits.
//!
//! Admins name the addresses, so private ones are allowed. Every answer is bounded in size and time.
//! The old paths of before version 1 of the API are not tried.
//! Spec: application service API, "Authorisation", "Pinging", "Querying", "Third-party networks".

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use ruma::{RoomAliasId, UserId};
use serde_json::{Map, Value, json};

use super::Registration;
use crate::{
    error::{ApiError, ApiResult},
    media::outward::{FetchError, Limits, Refusal},
    rooms::aliases,
    server::App,
};

/// How long a client waits for an answer at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How much of an answer that says no is shown to the service that asked for it, in bytes.
const SHOWN_BYTES_MAX: usize = 4_096;

/// How many users or places of third-party networks one answer names.
const FOUND_MAX: usize = 1_000;

/// Why a service did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It has no address.
    #[error("the application service has no URL")]
    NoUrl,
    /// The address cannot be asked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be reached, or broke off.
    #[error(transparent)]
    Failed(FetchError),
    /// It did not answer in time.
    #[error("the application service did not answer in time")]
    TimedOut,
    /// It answered, but not as it should.
    #[error("the application service answered {status}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The beginning of the body.
        body: String,
    },
}

impl From<FetchError> for AskError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::TimedOut => Self::TimedOut,
            other => Self::Failed(other),
        }
    }
}

/// Makes a request to a service and returns the body of its answer. `path` is what follows
/// `/_matrix/app/v1/`: its segments, then pairs of the query.
///
/// # Errors
/// Every answer but 2xx, and none within `timeout`.
pub async fn request(
    app: &App,
    service: &Registration,
    method: Method,
    (segments, query): (&[&str], &[(String, String)]),
    body: Option<&(impl serde::Serialize + Sync + ?Sized)>,
    timeout: Duration,
) -> Result<Vec<u8>, AskError> {
    let base = service.url.as_deref().ok_or(AskError::NoUrl)?;
    let mut url = reqwest::Url::parse(base).map_err(|_| Refusal::NotAUrl)?;
    url.path_segments_mut()
        .map_err(|()| Refusal::NotAUrl)?
        .pop_if_empty()
        .extend(["_matrix", "app", "v1"])
        .extend(segments);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    if app.config.appservices.legacy_authorization {
        url.query_pairs_mut()
            .append_pair("access_token", &service.hs_token);
    }
    let outward = &app.appservices.outward;
    let mut request = outward
        .request(method, url.as_str())?
        .bearer_auth(&service.hs_token);
    if let Some(body) = body {
        request = request.json(body);
    }
    let limits = Limits {
        total: timeout,
        idle: timeout,
        redirects_max: 0,
    };
    let answer = outward.send(request, &limits).await?;
    let status = answer.status();
    if !status.is_success() {
        let body = answer.prefix(SHOWN_BYTES_MAX).await.unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        return Err(AskError::Status { status, body });
    }
    Ok(answer.bytes(ANSWER_BYTES_MAX).await?)
}

/// Asks a service something for a client, when it is the client's turn.
async fn question(
    app: &App,
    service: &Registration,
    segments: &[&str],
    query: &[(String, String)],
) -> Result<Vec<u8>, AskError> {
    let asked = async {
        let contact = app.appservices.contacts.get(&service.id);
        let _turn = match contact {
            Some(contact) => contact.questions.acquire().await.ok(),
            None => None,
        };
        let at = (segments, query);
        request(app, service, Method::GET, at, None::<&()>, ANSWER_TIMEOUT).await
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked)
        .await
        .unwrap_or(Err(AskError::TimedOut));
    if let Err(error) = &answer {
        tracing::debug!(service = service.id, %error, "an application service did not answer a question");
    }
    answer
}

/// Asks a service to show that it can be reached, and how long that took, in milliseconds.
///
/// # Errors
/// `M_URL_NOT_SET`, `M_BAD_STATUS`, `M_CONNECTION_TIMEOUT`, `M_CONNECTION_FAILED`.
pub async fn ping(app: &App, service: &Registration, txn_id: Option<&str>) -> ApiResult<u64> {
    let body = txn_id.map_or_else(|| json!({}), |txn_id| json!({ "transaction_id": txn_id }));
    let began = app.clock.instant();
    let at: (&[&str], &[(String, String)]) = (&["ping"], &[]);
    let answer = request(app, service, Method::POST, at, Some(&body), ANSWER_TIMEOUT).await;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match answer {
        Ok(_) => {
            if let Some(contact) = app.appservices.contacts.get(&service.id) {
                contact.back.notify_one();
            }
            Ok(took_ms)
        }
        Err(AskError::NoUrl) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_URL_NOT_SET",
            "the registration of the application service has no URL",
        )),
        Err(AskError::Status { status, body }) => Err(ApiError::new(
            StatusCode::BAD_GATEWAY,
            "M_BAD_STATUS",
            format!("the application service answered {status}"),
        )
        .with("status", status.as_u16())
        .with("body", body)),
        Err(AskError::TimedOut) => Err(ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "M_CONNECTION_TIMEOUT",
            "the application service did not answer in time",
        )),
        Err(error @ (AskError::Refused(_) | AskError::Failed(_))) => Err(ApiError::new(
            StatusCode::BAD_GATEWAY,
            "M_CONNECTION_FAILED",
            error.to_string(),
        )),
    }
}

/// Gives the services that are interested in an unknown local user the chance to make them.
///
/// # Errors
/// 408 when a service did not answer in time.
pub async fn user(app: &App, user_id: &UserId) -> ApiResult<()> {
    if !app.is_local(user_id) || exists(app, user_id)? {
        return Ok(());
    }
    for service in app.appservices.iter() {
        if service.url.is_some() && service.is_interested_in_user(user_id) {
            let answer = question(app, service, &["users", user_id.as_str()], &[]).await;
            if said_yes(&answer)? && exists(app, user_id)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn exists(app: &App, user_id: &UserId) -> ApiResult<bool> {
    match app.store.find_user(user_id)? {
        Some(user) => Ok(app.accounts.user(user)?.is_some()),
        None => Ok(false),
    }
}

/// Gives the services that are interested in an unknown alias of this server the chance to make it.
///
/// # Errors
/// 408 when a service did not answer in time.
pub async fn alias(app: &App, alias: &RoomAliasId) -> ApiResult<()> {
    if alias.server_name() != app.server_name() || aliases::find(&app.store, alias)?.is_some() {
        return Ok(());
    }
    for service in app.appservices.iter() {
        if service.url.is_some() && service.is_interested_in_alias(alias.as_str()) {
            let answer = question(app, service, &["rooms", alias.as_str()], &[]).await;
            if said_yes(&answer)? && aliases::find(&app.store, alias)?.is_some() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether a service says that it has made what it was asked for. One that is not there says no.
fn said_yes(answer: &Result<Vec<u8>, AskError>) -> ApiResult<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(AskError::TimedOut) => Err(ApiError::timed_out(
            "the application service did not answer in time",
        )),
        Err(_) => Ok(false),
    }
}

/// What third-party networks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// People there.
    User,
    /// Places there, such as channels.
    Location,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Location => "location",
        }
    }

    /// What a found one must name.
    fn required(self) -> &'static str {
        match self {
            Self::User => "userid",
            Self::Location => "alias",
        }
    }
}

/// The services that speak for a network; for any, if none is named.
fn speakers<'a>(
    app: &'a App,
    protocol: Option<&'a str>,
) -> impl Iterator<Item = &'a Arc<Registration>> {
    app.appservices.iter().filter(move |service| {
        service.url.is_some()
            && match protocol {
                Some(protocol) => service.protocols.iter().any(|spoken| spoken == protocol),
                None => !service.protocols.is_empty(),
            }
    })
}

/// Every network that a service speaks for and answers about, by name.
pub async fn protocols(app: &App) -> Map<String, Value> {
    let mut names: Vec<&str> = speakers(app, None)
        .flat_map(|service| service.protocols.iter().map(String::as_str))
        .collect();
    names.sort_unstable();
    names.dedup();
    let asked = names
        .iter()
        .map(|name| async move { Some(((*name).to_owned(), protocol(app, name).await?)) });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What is known of a network: of the services that speak for it, the first says what it is, and each adds
/// its instances. `None`: nobody here speaks for it, or nobody answers.
pub async fn protocol(app: &App, name: &str) -> Option<Value> {
    let asked = speakers(app, Some(name)).map(|service| async move {
        let answer = question(app, service, &["thirdparty", "protocol", name], &[]).await;
        let mut known: Map<String, Value> = serde_json::from_slice(&answer.ok()?).ok()?;
        for instance in known.get_mut("instances")?.as_array_mut()? {
            let network = instance.get("network_id").and_then(Value::as_str);
            if let Some(network) = network.map(str::to_owned) {
                // By this name clients ask for the rooms of an instance.
                let instance_id = format!("{}|{network}", service.id);
                instance
                    .as_object_mut()?
                    .insert("instance_id".to_owned(), instance_id.into());
            }
        }
        Some(known)
    });
    let mut merged: Option<Map<String, Value>> = None;
    for mut known in join_all(asked).await.into_iter().flatten() {
        let Some(merged) = &mut merged else {
            merged = Some(known);
            continue;
        };
        if let (Some(all), Some(Value::Array(more))) = (
            merged.get_mut("instances").and_then(Value::as_array_mut),
            known.remove("instances"),
        ) {
            all.extend(more);
        }
    }
    merged.map(Value::Object)
}

/// Users or places of third-party networks: of one, or of all.
///
/// # Errors
/// `M_NOT_FOUND` when nobody here speaks for the network.
pub async fn find(
    app: &App,
    kind: Kind,
    protocol: Option<&str>,
    fields: &[(String, String)],
) -> ApiResult<Vec<Value>> {
    if protocol.is_some() && speakers(app, protocol).next().is_none() {
        return Err(ApiError::not_found(
            "no application service speaks for this network",
        ));
    }
    let mut segments = vec!["thirdparty", kind.name()];
    segments.extend(protocol);
    let asked = speakers(app, protocol).map(|service| question(app, service, &segments, fields));
    let mut found = Vec::new();
    for answer in join_all(asked).await.into_iter().flatten() {
        let answer: Vec<Value> = serde_json::from_slice(&answer).unwrap_or_default();
        found.extend(answer.into_iter().filter(|one| {
            let text = |key: &str| one.get(key).is_some_and(Value::is_string);
            text(kind.required())
                && text("protocol")
                && one.get("fields").is_some_and(Value::is_object)
        }));
    }
    found.truncate(FOUND_MAX);
    Ok(found)
}
