//! One event and one user: do the user's push rules say anything of it?
//!
//! The rules are compared by ruma; here is what they are compared with, kept for the next user who asks
//! of the same event. Power levels, names and the number of members are those of the room as it is now:
//! counts are made when they are asked for, not when the event was sent.
//! Spec: client-server API, "Push Rules: Conditions".

use std::sync::Arc;

use federation::room::Powers;
use futures_util::FutureExt as _;
use quick_cache::sync::Cache;
use ruma::{
    OwnedEventId, OwnedUserId, UInt, UserId,
    events::{
        AnySyncTimelineEvent, TimelineEventType,
        room::{
            member::MembershipState,
            power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource},
        },
    },
    push::{Action, FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use serde_json::value::RawValue;
use store::{
    StoreError,
    keys::{Position, RoomNum, UserNum},
    rooms::{RoomView, TimelineEvent},
};

use super::rules::{self, PUSH_RULES};
use crate::{
    account_data,
    error::ApiResult,
    invites,
    rooms::{members::MemberContent, read::state_content},
    server::App,
};

/// How many users' rules stay in memory.
const RULES_CACHED_MAX: usize = 4_096;

/// How many events stay in memory in the form in which they are compared.
const EVENTS_CACHED_MAX: usize = 1_024;

/// How many rooms' power levels stay in memory in the form in which they are compared.
const POWERS_CACHED_MAX: usize = 512;

/// What is kept for the next user who asks of the same event.
#[derive(Debug)]
pub struct Evaluating {
    wishes: Cache<UserNum, Arc<Wishes>>,
    events: Cache<(RoomNum, i64), Arc<FlattenedJson>>,
    powers: Cache<(RoomNum, Option<OwnedEventId>), Arc<PushConditionPowerLevelsCtx>>,
}

impl Default for Evaluating {
    fn default() -> Self {
        Self {
            wishes: Cache::new(RULES_CACHED_MAX),
            events: Cache::new(EVENTS_CACHED_MAX),
            powers: Cache::new(POWERS_CACHED_MAX),
        }
    }
}

/// When a user last changed their rules, and whom they ignore.
pub type Version = (Position, Position);

/// What a user wants to hear of, in any room.
#[derive(Debug)]
pub struct Wishes {
    /// Since when.
    pub version: Version,
    rules: Ruleset,
    ignored: Vec<OwnedUserId>,
}

/// What a user wants to hear of now.
///
/// # Errors
/// When the store cannot be read.
pub fn wishes(app: &App, user: UserNum, user_id: &UserId) -> ApiResult<Arc<Wishes>> {
    let set_at = |kind| account_data::set_at(&app.store, user, None, kind);
    let version = (set_at(PUSH_RULES)?, set_at("m.ignored_user_list")?);
    let cached = app.push.evaluating.wishes.get(&user);
    if let Some(wishes) = cached.filter(|wishes| wishes.version == version) {
        return Ok(wishes);
    }
    let wishes = Arc::new(Wishes {
        version,
        rules: rules::of_user(&app.store, user, user_id)?.global,
        ignored: account_data::ignored_by(&app.store, user)?,
    });
    app.push.evaluating.wishes.insert(user, wishes.clone());
    Ok(wishes)
}

/// A user's push rules, looking at the events of one room.
#[derive(Debug)]
pub struct Judge<'a> {
    app: &'a App,
    wishes: Arc<Wishes>,
    context: PushConditionRoomCtx,
}

impl<'a> Judge<'a> {
    /// The rules of a user, for a room as it is now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(
        app: &'a App,
        view: &RoomView,
        user: UserNum,
        user_id: &UserId,
        wishes: Arc<Wishes>,
    ) -> ApiResult<Self> {
        let state = &view.head.state;
        let member: Option<MemberContent> =
            state_content(&app.store, state, "m.room.member", user_id.as_str())?;
        let name = match member.and_then(|member| member.displayname) {
            Some(name) => name,
            None => {
                let profile = app.accounts.profile(user)?;
                let name = profile.get("displayname").and_then(|name| name.as_str());
                name.unwrap_or_default().to_owned()
            }
        };
        let context = PushConditionRoomCtx::new(
            view.room_id.clone(),
            UInt::new_saturating(view.head.joined_count),
            user_id.to_owned(),
            name,
        );
        let context = match powers(app, view)? {
            Some(powers) => context.with_power_levels(PushConditionPowerLevelsCtx::clone(&powers)),
            None => context,
        };
        Ok(Self {
            app,
            wishes,
            context,
        })
    }

    /// What shall happen because of an event; nothing if the user is not to be told of it.
    ///
    /// Nobody is told of what they sent themselves, of what was redacted, or of what those say whom
    /// they ignore.
    pub fn actions(&self, event: &TimelineEvent) -> &[Action] {
        let pdu = &event.pdu;
        if *pdu.sender() == self.context.user_id
            || event.redacted_by.is_some()
            || self
                .wishes
                .ignored
                .iter()
                .any(|user_id| user_id == pdu.sender())
        {
            return &[];
        }
        if self.is_ignored_invite(event).unwrap_or(false) {
            return &[];
        }
        let Some(flat) = flat(self.app, event) else {
            return &[];
        };
        for rule in &self.wishes.rules {
            // Ready at once: only conditions that are not compiled in wait for anything.
            let applies = rule.applies(&flat, &self.context).now_or_never();
            if applies == Some(true) {
                let actions = rule.actions();
                let notify = actions.iter().any(Action::should_notify);
                return if notify { actions } else { &[] };
            }
        }
        &[]
    }

    /// Whether an event is an invite of the user, by one whose invites they are not shown.
    fn is_ignored_invite(&self, event: &TimelineEvent) -> Result<bool, StoreError> {
        let (pdu, user_id) = (&event.pdu, &self.context.user_id);
        let is_own = *pdu.kind() == TimelineEventType::RoomMember
            && pdu.state_key() == Some(user_id.as_str());
        let content: Option<MemberContent> = is_own.then(|| pdu.content_as()).flatten();
        if content.is_none_or(|content| content.membership != MembershipState::Invite) {
            return Ok(false);
        }
        match self.app.store.find_user(user_id)? {
            Some(user) => invites::is_ignored(&self.app.store, user, pdu.sender()),
            None => Ok(false),
        }
    }
}

fn flat(app: &App, event: &TimelineEvent) -> Option<Arc<FlattenedJson>> {
    let key = (event.room, event.order);
    if let Some(flat) = app.push.evaluating.events.get(&key) {
        return Some(flat);
    }
    let json = RawValue::from_string(event.pdu.json().to_owned()).ok()?;
    let raw = Raw::<AnySyncTimelineEvent>::from_json(json);
    let flat = Arc::new(FlattenedJson::from_raw(&raw));
    app.push.evaluating.events.insert(key, flat.clone());
    Some(flat)
}

fn powers(app: &App, view: &RoomView) -> ApiResult<Option<Arc<PushConditionPowerLevelsCtx>>> {
    let state = &view.head.state;
    let levels = state.get("m.room.power_levels", "").cloned();
    let key = (view.room, levels.clone());
    if let Some(powers) = app.push.evaluating.powers.get(&key) {
        return Ok(Some(powers));
    }
    let create = state.get("m.room.create", "");
    let create = create.map(|id| app.store.state_event(id)).transpose()?.flatten();
    let Some(create) = create else {
        return Ok(None);
    };
    let rules = &view.rules.authorization;
    let creators = Powers::new(rules, create.pdu.clone(), None)
        .creators()
        .to_vec();
    let levels = levels.map(|id| app.store.state_event(&id)).transpose()?.flatten();
    let levels: Option<RoomPowerLevelsEventContent> =
        levels.and_then(|event| event.pdu.content_as());
    let source = levels.map_or(RoomPowerLevelsSource::None, RoomPowerLevelsSource::Original);
    let powers = Arc::new(RoomPowerLevels::new(source, rules, creators).into());
    app.push.evaluating.powers.insert(key, Arc::clone(&powers));
    Ok(Some(powers))
}
