//! What users do: rooms, messages, memberships, power, in any order, whether they may or not.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};

use super::{Simulation, chance::Chance, user::User};
use crate::segment;

/// The room versions of the rooms.
const VERSIONS: [&str; 3] = ["10", "11", "12"];

/// The longest time between two things that a user does, in milliseconds.
const PAUSE_MS_MAX: u64 = 40_000;

/// How many of a hundred things that a user does are the last before their server crashes.
const CRASHES_PERCENT: u64 = 7;

/// For how long it is gone then at most, in milliseconds.
const CRASHED_MS_MAX: u64 = 3_000;

/// A room that users have heard of.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) id: String,
    pub(crate) version: String,
    /// Servers that were in it once.
    pub(crate) via: Vec<String>,
}

/// Creates a room, in which others have some power from the beginning.
pub(crate) async fn create(simulation: &Simulation, user: &User, chance: &mut Chance) {
    let version = *chance.pick(&VERSIONS);
    let preset = *chance.pick(&["public_chat", "public_chat", "private_chat"]);
    let mut powers = serde_json::Map::new();
    for other in simulation.users() {
        let is_creator = other.id == user.id;
        if is_creator && version != "12" {
            powers.insert(other.id.clone(), 100.into());
        } else if !is_creator && chance.percent(40) {
            powers.insert(other.id.clone(), (*chance.pick(&[50, 100])).into());
        }
    }
    let invited: Vec<String> = simulation
        .users()
        .iter()
        .filter(|other| other.id != user.id && preset == "private_chat")
        .map(|other| other.id.clone())
        .collect();
    let body = json!({
        "preset": preset, "room_version": version, "invite": invited,
        "power_level_content_override": { "users": powers },
    });
    let reply = user.call(Method::POST, "/v3/createRoom", Some(body)).await;
    let room_id = reply.and_then(|reply| reply.json()["room_id"].as_str().map(str::to_owned));
    if let Some(id) = room_id {
        simulation.add_room(Room {
            id,
            version: version.to_owned(),
            via: vec![user.host.name().to_owned()],
        });
    }
}

/// Joins a room by one of the servers that were in it.
pub(crate) async fn join(simulation: &Simulation, user: &User, room: &Room, chance: &mut Chance) {
    let via = chance.pick(&room.via);
    let path = format!("/v3/join/{}?server_name={via}", segment(&room.id));
    let reply = user.call(Method::POST, &path, Some(json!({}))).await;
    if reply.is_some_and(|reply| reply.status == 200) {
        simulation.came(&room.id, user.host.name());
    }
}

/// A user lives: does this many things, one after the other.
pub(crate) async fn live(
    simulation: Arc<Simulation>,
    user: Arc<User>,
    mut chance: Chance,
    actions: u64,
) {
    for number in 0..actions {
        let pause_ms = chance.between(1, PAUSE_MS_MAX);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        act(&simulation, &user, &mut chance, number).await;
        // At once: what has just been answered must be on the disk.
        if chance.percent(CRASHES_PERCENT) {
            let gone = Duration::from_millis(chance.between(1, CRASHED_MS_MAX));
            simulation.crash(&user.host, gone).await;
        }
    }
}

async fn act(simulation: &Simulation, user: &User, chance: &mut Chance, number: u64) {
    let rooms = simulation.rooms();
    if rooms.is_empty() || (rooms.len() < 4 && chance.percent(2)) {
        return create(simulation, user, chance).await;
    }
    let room = chance.pick(&rooms).clone();
    let id = &room.id;
    let other = chance.pick(simulation.users()).clone();
    match chance.between(0, 99) {
        0..40 => {
            let text = format!("{} says {number}", user.id);
            if let Some(event_id) = user.say(id, &text).await {
                simulation.said(id, event_id);
            }
        }
        40..46 => {
            if let Some(event_id) = simulation.some_event(id, chance) {
                user.redact(id, &event_id).await;
            }
        }
        46..56 => {
            let kind = *chance.pick(&["m.room.topic", "m.room.name", "org.example.thing"]);
            let key = if kind == "org.example.thing" { "a" } else { "" };
            let content = json!({ "topic": number, "name": format!("{number}"), "by": user.id });
            user.set(id, kind, key, content).await;
        }
        56..64 => membership(user, id, "invite", Some(&other.id)).await,
        64..76 => join(simulation, user, &room, chance).await,
        76..81 => membership(user, id, "leave", None).await,
        81..85 => membership(user, id, "kick", Some(&other.id)).await,
        85..88 => membership(user, id, "ban", Some(&other.id)).await,
        88..91 => membership(user, id, "unban", Some(&other.id)).await,
        91..97 => power(user, &other, &room, chance).await,
        _ => {
            let rule = *chance.pick(&["public", "public", "invite"]);
            let content = json!({ "join_rule": rule });
            user.set(id, "m.room.join_rules", "", content).await;
        }
    }
}

async fn membership(user: &User, room_id: &str, what: &str, target: Option<&str>) {
    let path = format!("/v3/rooms/{}/{what}", segment(room_id));
    let body = target.map_or_else(|| json!({}), |target| json!({ "user_id": target }));
    user.call(Method::POST, &path, Some(body)).await;
}

/// Gives somebody another level, or a type of state another price. Nobody is kept from sending messages, so that
/// every server in a room can have the last word in the end.
async fn power(user: &User, other: &User, room: &Room, chance: &mut Chance) {
    let kind = "m.room.power_levels";
    let path = format!("/v3/rooms/{}/state/{kind}/", segment(&room.id));
    let Some(reply) = user.call(Method::GET, &path, None).await else {
        return;
    };
    if reply.status != 200 {
        return;
    }
    let mut levels = reply.json();
    let level: Value = (*chance.pick(&[0, 50, 100])).into();
    if chance.percent(70) {
        levels["users"][&other.id] = level;
    } else {
        let price = *chance.pick(&["m.room.topic", "m.room.name", "org.example.thing"]);
        levels["events"][price] = level;
    }
    user.set(&room.id, kind, "", levels).await;
}
