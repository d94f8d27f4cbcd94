//! Push rules: reading, adding, changing and deleting them.
//!
//! Spec: client-server API, "Push Rules: API".

use http::Method;
use ruma::push::{
    Action, InsertPushRuleError, NewConditionalPushRule, NewPatternedPushRule, NewPushRule,
    NewSimplePushRule, PushCondition, RemovePushRuleError, RuleKind,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Commit;

use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    push::rules::{self, PushRules},
    server::App,
};

/// How many rules a user may add.
const RULES_MAX: usize = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["r0", "v3"] {
        let all = format!("/_matrix/client/{prefix}/pushrules");
        let rule = format!("{all}/global/{{kind}}/{{rule_id}}");
        routes.raw(Method::GET, &all, get_all);
        routes.raw(Method::GET, &format!("{all}/"), get_all);
        routes.raw(Method::GET, &format!("{all}/global"), get_global);
        routes.raw(Method::GET, &format!("{all}/global/"), get_global);
        routes.raw(Method::GET, &rule, get_rule);
        routes.raw(Method::PUT, &rule, put_rule);
        routes.raw(Method::DELETE, &rule, delete_rule);
        routes.raw(Method::GET, &format!("{rule}/actions"), get_actions);
        routes.raw(Method::PUT, &format!("{rule}/actions"), put_actions);
        routes.raw(Method::GET, &format!("{rule}/enabled"), get_enabled);
        routes.raw(Method::PUT, &format!("{rule}/enabled"), put_enabled);
    }
}

fn unknown() -> ApiError {
    ApiError::not_found("there is no such push rule")
}

fn own(app: &App, caller: &Caller) -> ApiResult<PushRules> {
    Ok(rules::of_user(&app.store, caller.user, &caller.user_id)?)
}

/// Writes the caller's rules; their turn is held.
async fn write(app: &App, caller: &Caller, rules: &PushRules) -> ApiResult<Value> {
    let mut commit = Commit::new();
    rules::put(&app.store, &mut commit, caller.user, rules)?;
    app.store.commit(commit).await?;
    Ok(json!({}))
}

fn kind(request: &RawRequest) -> RuleKind {
    RuleKind::from(request.arg(0))
}

async fn get_all(app: App, caller: Caller, _: RawRequest) -> ApiResult<PushRules> {
    own(&app, &caller)
}

async fn get_global(app: App, caller: Caller, _: RawRequest) -> ApiResult<impl Serialize> {
    Ok(rules::whole(&own(&app, &caller)?.global))
}

async fn get_rule(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    use ruma::push::AnyPushRuleRef as Rule;
    let rules = own(&app, &caller)?.global;
    let rule = rules
        .get(kind(&request), request.arg(1))
        .ok_or_else(unknown)?;
    let json = match rule {
        Rule::Override(rule) | Rule::Underride(rule) => serde_json::to_value(rule),
        Rule::Content(rule) => serde_json::to_value(rule),
        Rule::Room(rule) => serde_json::to_value(rule),
        Rule::Sender(rule) => serde_json::to_value(rule),
        _ => return Err(unknown()),
    };
    json.map_err(|error| ApiError::internal(&error))
}

#[derive(Deserialize)]
struct NewRule {
    actions: Vec<Action>,
    #[serde(default)]
    conditions: Vec<PushCondition>,
    pattern: Option<String>,
}

async fn put_rule(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let (before, after) = (request.query("before"), request.query("after"));
    let id = request.arg(1).to_owned();
    let no_id = |_| ApiError::invalid_param("the rule ID does not fit the kind of rule");
    let kind = kind(&request);
    if matches!(kind, RuleKind::_Custom(_)) {
        return Err(unknown());
    }
    let body: NewRule = request.json()?;
    let conditional =
        |id| NewConditionalPushRule::new(id, body.conditions.clone(), body.actions.clone());
    let rule = match kind {
        RuleKind::Override => NewPushRule::Override(conditional(id)),
        RuleKind::Underride => NewPushRule::Underride(conditional(id)),
        RuleKind::Content => {
            let pattern = body
                .pattern
                .ok_or_else(|| ApiError::missing_param("a content rule needs a `pattern`"))?;
            NewPushRule::Content(NewPatternedPushRule::new(id, pattern, body.actions))
        }
        RuleKind::Room => {
            let id = id.try_into().map_err(no_id)?;
            NewPushRule::Room(NewSimplePushRule::new(id, body.actions))
        }
        RuleKind::Sender => {
            let id = id.try_into().map_err(no_id)?;
            NewPushRule::Sender(NewSimplePushRule::new(id, body.actions))
        }
        _ => return Err(unknown()),
    };
    let _turn = app.account_data_turns.of(caller.user).await;
    let mut rules = own(&app, &caller)?;
    let (kind, id) = (rule.kind(), rule.rule_id().to_owned());
    if [&before, &after]
        .into_iter()
        .flatten()
        .any(|other| *other == id)
    {
        return Err(ApiError::invalid_param(
            "a rule cannot stand before or after itself",
        ));
    }
    let was_enabled = rules
        .global
        .get(kind.clone(), &id)
        .map(ruma::push::AnyPushRuleRef::enabled);
    if before.is_some() || after.is_some() {
        // A rule that is moved is taken out first: its own place counts no more.
        drop(rules.global.remove(kind.clone(), &id));
    }
    rules
        .global
        .insert(rule, after.as_deref(), before.as_deref())
        .map_err(|error| match error {
            InsertPushRuleError::UnknownRuleId => ApiError::not_found(error.to_string()),
            _ => ApiError::invalid_param(error.to_string()),
        })?;
    if let Some(enabled) = was_enabled {
        drop(rules.global.set_enabled(kind, &id, enabled));
    }
    if rules.global.iter().count() > RULES_MAX {
        let message = format!("a user has at most {RULES_MAX} push rules");
        return Err(ApiError::unknown(message));
    }
    write(&app, &caller, &rules).await
}

async fn delete_rule(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let _turn = app.account_data_turns.of(caller.user).await;
    let mut rules = own(&app, &caller)?;
    let removed = rules.global.remove(kind(&request), request.arg(1));
    removed.map_err(|error| match error {
        RemovePushRuleError::ServerDefault => ApiError::invalid_param(error.to_string()),
        _ => unknown(),
    })?;
    write(&app, &caller, &rules).await
}

async fn get_actions(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let rules = own(&app, &caller)?.global;
    let rule = rules
        .get(kind(&request), request.arg(1))
        .ok_or_else(unknown)?;
    Ok(json!({ "actions": rule.actions() }))
}

async fn get_enabled(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let rules = own(&app, &caller)?.global;
    let rule = rules
        .get(kind(&request), request.arg(1))
        .ok_or_else(unknown)?;
    Ok(json!({ "enabled": rule.enabled() }))
}

#[derive(Deserialize)]
struct Actions {
    actions: Vec<Action>,
}

async fn put_actions(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let Actions { actions } = request.json()?;
    let _turn = app.account_data_turns.of(caller.user).await;
    let mut rules = own(&app, &caller)?;
    let set = rules
        .global
        .set_actions(kind(&request), request.arg(1), actions);
    set.map_err(|_| unknown())?;
    write(&app, &caller, &rules).await
}

#[derive(Deserialize)]
struct Enabled {
    enabled: bool,
}

async fn put_enabled(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let Enabled { enabled } = request.json()?;
    let _turn = app.account_data_turns.of(caller.user).await;
    let mut rules = own(&app, &caller)?;
    let set = rules
        .global
        .set_enabled(kind(&request), request.arg(1), enabled);
    set.map_err(|_| unknown())?;
    write(&app, &caller, &rules).await
}
