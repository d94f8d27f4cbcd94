//! Creating rooms.
//!
//! Spec: client-server API, "Creation".

use ruma::{
    RoomAliasId,
    api::client::room::{Visibility, create_room},
    events::AnyInitialStateEvent,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    appservices,
    error::{ApiError, ApiResult},
    http::{Caller, Routes, limits::Doing},
    rooms::create::{self, NewRoom, Preset},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(create_room);
}

#[derive(Deserialize)]
struct InitialState {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    state_key: String,
    content: Box<RawValue>,
}

async fn create_room(
    app: App,
    caller: Caller,
    request: create_room::v3::Request,
) -> ApiResult<create_room::v3::Response> {
    use create_room::v3::RoomPreset;
    caller.limit(&app, Doing::CreateRoom)?;
    caller.must_not_be_suspended()?;
    if !request.invite_3pid.is_empty() {
        return Err(ApiError::unknown(
            "inviting by e-mail or phone is not served here",
        ));
    }
    let published = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => {
            return Err(ApiError::invalid_param("`visibility` is public or private"));
        }
    };
    let preset = match request.preset {
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        None if published => Preset::PublicChat,
        Some(RoomPreset::PrivateChat) | None => Preset::PrivateChat,
        Some(_) => return Err(ApiError::invalid_param("there is no such preset")),
    };
    let alias = request.room_alias_name.map(|name| {
        if name.is_empty() || name.contains([':', '\0']) || name.starts_with('#') {
            return Err(ApiError::invalid_param(
                "`room_alias_name` is the part between # and :",
            ));
        }
        RoomAliasId::parse(format!("#{name}:{}", app.server_name()))
            .map_err(|_| ApiError::invalid_param("`room_alias_name` makes no alias"))
    });
    let alias = alias.transpose()?;
    if let Some(alias) = &alias {
        let service = caller.service.as_deref();
        app.appservices.check_alias(alias.as_str(), service)?;
    }
    let invited = request.invite.iter().take(create::INVITES_MAX);
    let made = invited.map(|user_id| appservices::ask::user(&app, user_id));
    futures_util::future::try_join_all(made).await?;
    let room = NewRoom {
        version: request.room_version,
        creation_content: object(request.creation_content.as_ref())?,
        preset,
        initial_state: request
            .initial_state
            .iter()
            .map(initial_state)
            .collect::<ApiResult<_>>()?,
        power_levels: object(request.power_level_content_override.as_ref())?,
        name: request.name.filter(|name| !name.is_empty()),
        topic: request.topic.filter(|topic| !topic.is_empty()),
        alias,
        invite: request.invite,
        is_direct: request.is_direct,
        published,
    };
    let room_id = create::create(&app, &caller, room).await?;
    Ok(create_room::v3::Response::new(room_id))
}

fn object<T>(raw: Option<&Raw<T>>) -> ApiResult<Map<String, Value>> {
    let Some(raw) = raw else {
        return Ok(Map::new());
    };
    serde_json::from_str(raw.json().get()).map_err(|error| ApiError::bad_json(error.to_string()))
}

fn initial_state(raw: &Raw<AnyInitialStateEvent>) -> ApiResult<(String, String, Box<RawValue>)> {
    let event: InitialState = serde_json::from_str(raw.json().get())
        .map_err(|error| ApiError::bad_json(error.to_string()))?;
    Ok((event.kind, event.state_key, event.content))
}
