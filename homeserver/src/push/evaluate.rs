//! One event and one user: do the user's push rules say anything of it?
//!
//! The rules are compared by ruma; here is what they are compared with, kept for the next user who asks
//! of the same event. Power levels, names and the number of members are those of the room as it is now:
//! counts are made when they are asked for, not when the event was sent.
//! Spec: client-server API, "Push Rules: Conditions".

use std::sync::{Arc, OnceLock};

use federation::room::Powers;
use futures_util::FutureExt as _;
use memchr::memmem::Finder;
use quick_cache::{Weighter, sync::Cache};
use ruma::{
    OwnedEventId, OwnedUserId, UInt, UserId,
    events::{
        AnySyncTimelineEvent, TimelineEventType,
        room::{
            member::MembershipState,
            power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource},
        },
    },
    push::{
        Action, AnyPushRuleRef, FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx,
        Ruleset,
    },
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

/// How much memory what the server's rules say of events may use, in bytes.
const COMMON_BYTES_MAX: u64 = 8 << 20;

/// The longest text of an event in which a name is looked for, in bytes; in a longer one, anybody may be named.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// What is kept for the next user who asks of the same event.
#[derive(Debug)]
pub struct Evaluating {
    wishes: Cache<UserNum, Arc<Wishes>>,
    events: Cache<(RoomNum, i64), Arc<FlattenedJson>>,
    common: Cache<(RoomNum, i64), Arc<Common>, WeighCommon>,
    nobody: OnceLock<(OwnedUserId, Ruleset)>,
    powers: Cache<(RoomNum, Option<OwnedEventId>), Arc<PushConditionPowerLevelsCtx>>,
}

impl Default for Evaluating {
    fn default() -> Self {
        Self {
            wishes: Cache::new(RULES_CACHED_MAX),
            events: Cache::new(EVENTS_CACHED_MAX),
            common: Cache::with_weighter(16_384, COMMON_BYTES_MAX, WeighCommon),
            nobody: OnceLock::new(),
            powers: Cache::new(POWERS_CACHED_MAX),
        }
    }
}

/// What the server's own rules say of an event to everybody who is not named in it.
///
/// Most users never changed a rule, and most events name few: so one evaluation serves nearly all of them.
#[derive(Debug)]
struct Common {
    /// For this number of members,
    joined: UInt,
    /// and by these power levels.
    levels: Option<OwnedEventId>,
    actions: Option<Arc<[Action]>>,
    /// What may name somebody, in lower case; `None` if it is too long to look through.
    text: Option<Box<str>>,
}

#[derive(Clone, Debug)]
struct WeighCommon;

impl Weighter<(RoomNum, i64), Arc<Common>> for WeighCommon {
    fn weight(&self, _: &(RoomNum, i64), common: &Arc<Common>) -> u64 {
        256 + common.text.as_ref().map_or(0, |text| text.len()) as u64
    }
}

/// When a user last changed their rules, and whom they ignore.
pub type Version = (Position, Position);

/// What a user wants to hear of, in any room.
#[derive(Debug)]
pub struct Wishes {
    /// Since when.
    pub version: Version,
    /// Of a user who never changed any they are made when one is named, which most are not: they are large.
    rules: OnceLock<Ruleset>,
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
    let rules = match version.0 {
        0 => OnceLock::new(),
        _ => rules::of_user(&app.store, user, user_id)?.global.into(),
    };
    let wishes = Arc::new(Wishes {
        version,
        rules,
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
    levels: Option<OwnedEventId>,
    /// By what an event may name the user, in lower case; `None` if that cannot be looked for, or if the
    /// user has rules of their own.
    names: Option<Vec<Finder<'static>>>,
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
        let names = [user_id.localpart(), &*name];
        let plain = wishes.version.0 == 0 && names.iter().all(|name| can_be_looked_for(name));
        let names = names.iter().filter(|name| !name.is_empty());
        let names = plain.then(|| names.map(|name| finder(name)).collect());
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
            levels: state.get("m.room.power_levels", "").cloned(),
            names,
        })
    }

    /// Whether the user has push rules that are not the server's.
    pub fn has_own_rules(&self) -> bool {
        self.wishes.version.0 != 0
    }

    /// What shall happen because of an event; `None` if the user is not to be told of it.
    ///
    /// Nobody is told of what they sent themselves, of what was redacted, or of what those say whom
    /// they ignore.
    pub fn actions(&self, event: &TimelineEvent) -> Option<Arc<[Action]>> {
        let pdu = &event.pdu;
        if *pdu.sender() == self.context.user_id
            || event.redacted_by.is_some()
            || self
                .wishes
                .ignored
                .iter()
                .any(|user_id| user_id == pdu.sender())
        {
            return None;
        }
        if self.is_ignored_invite(event).unwrap_or(false) {
            return None;
        }
        if let Some(names) = &self.names {
            let common = self.common(event)?;
            let text = common.text.as_deref();
            if text.is_some_and(|text| {
                !names
                    .iter()
                    .any(|name| name.find(text.as_bytes()).is_some())
            }) {
                return common.actions.clone();
            }
        }
        let made = || rules::defaults(&self.context.user_id);
        let rules = self.wishes.rules.get_or_init(made);
        applied(rules, &*flat(self.app, event)?, &self.context)
    }

    /// What the server's own rules say to whoever is not named in an event.
    fn common(&self, event: &TimelineEvent) -> Option<Arc<Common>> {
        let (key, evaluating) = ((event.room, event.order), &self.app.push.evaluating);
        let joined = self.context.member_count;
        let cached = evaluating.common.get(&key);
        if let Some(common) = cached
            && common.joined == joined
            && common.levels == self.levels
        {
            return Some(common);
        }
        let (nobody, rules) = evaluating.nobody.get_or_init(|| {
            // A name that nobody can guess, so nobody can name it.
            let name = format!("@{}:{}", self.app.entropy.text(20), self.app.server_name());
            let nobody = OwnedUserId::try_from(name.to_lowercase())
                .expect("letters, digits and the name of a server make a user ID");
            let rules = rules::defaults(&nobody);
            (nobody, rules)
        });
        let mut context = self.context.clone();
        context.user_id.clone_from(nobody);
        context.user_display_name.clear();
        let pdu = &event.pdu;
        let text = pdu.content().get();
        let text = (text.len() <= TEXT_BYTES_MAX).then(|| {
            let named = format!("{text}\n{}", pdu.state_key().unwrap_or_default());
            named.to_lowercase().into_boxed_str()
        });
        let common = Arc::new(Common {
            joined,
            levels: self.levels.clone(),
            actions: applied(rules, &*flat(self.app, event)?, &context),
            text,
        });
        evaluating.common.insert(key, common.clone());
        Some(common)
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

/// The actions of the first rule that applies, if they tell anybody of anything.
fn applied(
    rules: &Ruleset,
    flat: &FlattenedJson,
    context: &PushConditionRoomCtx,
) -> Option<Arc<[Action]>> {
    // Ready at once: only conditions that are not compiled in wait for anything.
    let applies =
        |rule: &AnyPushRuleRef<'_>| rule.applies(flat, context).now_or_never() == Some(true);
    let actions = rules.iter().find(applies)?.actions();
    let notify = actions.iter().any(Action::should_notify);
    notify.then(|| actions.into())
}

/// Whether a name, in lower case, is part of every event that names it as push rules have it.
///
/// Not if it stands otherwise in JSON, is a pattern, or has a sigma, whose lower case depends on what follows.
fn can_be_looked_for(name: &str) -> bool {
    let is_odd = |c: char| c.is_control() || matches!(c, '"' | '\\' | '*' | '?' | 'Σ' | 'σ' | 'ς');
    !name.contains(is_odd)
}

/// Looks for a name in lower case.
fn finder(name: &str) -> Finder<'static> {
    Finder::new(&name.to_lowercase()).into_owned()
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
    let create = create
        .map(|id| app.store.state_event(id))
        .transpose()?
        .flatten();
    let Some(create) = create else {
        return Ok(None);
    };
    let rules = &view.rules.authorization;
    let creators = Powers::new(rules, create.pdu.clone(), None)
        .creators()
        .to_vec();
    let levels = levels
        .map(|id| app.store.state_event(&id))
        .transpose()?
        .flatten();
    let levels: Option<RoomPowerLevelsEventContent> =
        levels.and_then(|event| event.pdu.content_as());
    let source = levels.map_or(RoomPowerLevelsSource::None, RoomPowerLevelsSource::Original);
    let powers = Arc::new(RoomPowerLevels::new(source, rules, creators).into());
    app.push.evaluating.powers.insert(key, Arc::clone(&powers));
    Ok(Some(powers))
}
