//! What must be true of all servers after a [simulation](crate::simulation), once all is well and quiet.
//!
//! - Servers that are in a room together agree on its whole current state, and so on who is in it.
//! - What a server has acknowledged is in its own timeline, once, whatever crashed.
//! - What a server's users sent is known to every server that has been in the room since before. It may be
//!   *soft-failed* there: that goes by the state at the moment in which an event comes, and events do not come to
//!   all in the same order. So the sets of events that are shown are not compared, but nothing may be missing,
//!   and nothing that one server accepts may be *rejected* by another.
//!   What is built upon events that a liar keeps to itself has no place elsewhere, and need not be known.
//! - No server shows an event of another that this one does not know.
//! - Nobody counts as joined whom the state bans, and the index of members says what the state says.
//! - The log has no gaps, and `/sync` has told everybody joined all that came since they joined.
//! - A server that does not keep to the rules has changed nothing but who of its own users is in a room.
//!
//! Two servers of which one does not count the other as in the room (it was kicked, and could not know) do not talk
//! any more, and need not agree: that is noted, not a problem.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use homeserver::server::App;
use ruma::{EventId, RoomId, UserId};
use serde_json::{Value, value::RawValue};
use store::{
    kv::Direction,
    rooms::{Membership, RoomView, Standing, TimelineEvent},
};

use crate::simulation::user::{Acknowledged, User};

/// What is checked.
pub(crate) struct Checked {
    /// Every server.
    pub(crate) apps: Vec<App>,
    /// Every room.
    pub(crate) rooms: Vec<String>,
    /// Every user.
    pub(crate) users: Vec<Arc<User>>,
    /// The server that does not keep to the rules, if there is one.
    pub(crate) liar: Option<&'static str>,
    /// Events that nobody may show.
    pub(crate) forbidden: BTreeSet<String>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What must not be.
    pub(crate) problems: Vec<String>,
    /// What may be, and is worth a line.
    pub(crate) notes: Vec<String>,
}

/// Checks everything.
pub(crate) fn check(checked: &Checked) -> Found {
    let mut found = Found::default();
    for app in &checked.apps {
        found.log(app);
    }
    for room_id in &checked.rooms {
        let views = checked.apps.iter();
        let views: Vec<Seen> = views.filter_map(|app| Seen::of(app, room_id)).collect();
        for view in &views {
            found.members(view);
            found.once(view);
            found.honest(view, &views, checked.liar);
            found.refused(view, &checked.forbidden);
        }
        for (index, one) in views.iter().enumerate() {
            for other in views.iter().skip(index + 1) {
                found.agreement(one, other);
            }
        }
        for one in &views {
            for other in &views {
                found.arrival(one, other, checked.liar.is_some());
            }
        }
    }
    for user in &checked.users {
        found.acknowledged(checked, user);
        found.synced(checked, user);
    }
    found
}

/// The IDs of a server's own users that are joined, as it sees it.
pub(crate) fn joined(app: &App, room_id: &str) -> BTreeSet<String> {
    view(app, room_id)
        .map(|view| joined_of(app, &view, app.server_name().as_str()))
        .unwrap_or_default()
}

fn view(app: &App, room_id: &str) -> Option<Arc<RoomView>> {
    let room_id: &RoomId = room_id.try_into().expect("a room ID");
    let room = app.store.find_room(room_id).expect("the store reads")?;
    app.store.room(room).expect("the store reads")
}

/// The joined users of a server.
fn joined_of(app: &App, view: &RoomView, server: &str) -> BTreeSet<String> {
    let members = view.head.members.iter();
    let joined = members.filter(|(_, membership)| **membership == Membership::Join);
    let ids = joined.map(|(user, _)| app.store.user_id(*user).expect("the store reads"));
    ids.filter(|id| id.server_name() == server)
        .map(|id| id.to_string())
        .collect()
}

/// A room as one server sees it.
struct Seen<'a> {
    app: &'a App,
    name: String,
    view: Arc<RoomView>,
    /// The timeline, oldest first.
    timeline: Vec<Arc<TimelineEvent>>,
    /// Type and key to event.
    state: BTreeMap<(String, String), String>,
}

impl<'a> Seen<'a> {
    fn of(app: &'a App, room_id: &str) -> Option<Self> {
        let view = view(app, room_id)?;
        let mut timeline = Vec::new();
        let all = (Bound::Unbounded, Bound::Unbounded);
        let walked = app
            .store
            .walk_timeline(view.room, all, Direction::Ascending, |event| {
                timeline.push(event);
                Ok(true)
            });
        walked.expect("the store reads");
        let state = view.head.state.iter();
        let state = state
            .map(|(kind, key, id)| ((kind.to_owned(), key.to_owned()), id.to_string()))
            .collect();
        Some(Self {
            app,
            name: app.server_name().to_string(),
            view,
            timeline,
            state,
        })
    }

    /// The joined users of a server.
    fn joined_of(&self, server: &str) -> BTreeSet<String> {
        joined_of(self.app, &self.view, server)
    }

    /// Whether it counts a server as in the room.
    fn has(&self, server: &str) -> bool {
        !self.joined_of(server).is_empty()
    }

    fn are_together(one: &Self, other: &Self) -> bool {
        let of_both = [&one.name, &other.name];
        of_both.iter().all(|name| one.has(name) && other.has(name))
    }

    /// Where in its timeline an event is.
    fn order_of(&self, event_id: &str) -> Option<i64> {
        let mut timeline = self.timeline.iter();
        let event = timeline.find(|event| event.pdu.event_id() == event_id)?;
        Some(event.order)
    }

    /// How users of a server came and went, as its timeline has it.
    fn comings(&self, server: &str) -> Comings {
        let (mut joined, mut comings) = (BTreeSet::new(), Comings::default());
        for event in &self.timeline {
            let pdu = &event.pdu;
            let of_server = pdu
                .state_key()
                .and_then(|key| <&UserId>::try_from(key).ok())
                .is_some_and(|user| user.server_name() == server);
            if pdu.kind().to_string() != "m.room.member" || !of_server {
                continue;
            }
            if is_join(pdu.content()) {
                if joined.is_empty() {
                    comings.last = Some(event.order);
                    let first = || (event.order, pdu.event_id().to_string());
                    comings.first.get_or_insert_with(first);
                }
                joined.insert(pdu.state_key());
            } else if joined.remove(&pdu.state_key()) && joined.is_empty() {
                comings.went = true;
            }
        }
        comings
    }

    /// What this server knows of an event.
    fn knows(&self, event_id: &EventId) -> Knowledge {
        let store = &self.app.store;
        if store.event(event_id).expect("reads").is_some() {
            return Knowledge::Shown;
        }
        match store.aside(event_id).expect("reads") {
            Some(aside) => Knowledge::Aside(aside.standing),
            None => Knowledge::Nothing,
        }
    }
}

/// How the users of a server came into a room, and went.
#[derive(Debug, Default)]
struct Comings {
    /// Where the first one came, and by which event.
    first: Option<(i64, String)>,
    /// Where one came last when there was none.
    last: Option<i64>,
    /// Whether all of them went.
    went: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Knowledge {
    Shown,
    Aside(Standing),
    Nothing,
}

fn is_join(content: &RawValue) -> bool {
    let content: Value = serde_json::from_str(content.get()).unwrap_or_default();
    content["membership"] == "join"
}

impl Found {
    fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// That the log has no gaps.
    fn log(&mut self, app: &App) {
        let (mut last, published) = (0, app.store.published());
        while last < published {
            let entries = app.store.log(last, 1_000).expect("the store reads");
            for (position, _) in &entries {
                if *position != last + 1 {
                    let name = app.server_name();
                    self.problem(format!("the log of {name} goes from {last} to {position}"));
                }
                last = *position;
            }
            if entries.is_empty() {
                let name = app.server_name();
                return self.problem(format!("the log of {name} ends at {last} of {published}"));
            }
        }
    }

    /// That the index of members says what the state says.
    fn members(&mut self, seen: &Seen<'_>) {
        let head = &seen.view.head;
        let mut joined = 0;
        for (key, id) in head.state.of_kind("m.room.member") {
            let pdu = seen.app.store.pdu(id).expect("the store reads");
            let joins = pdu.is_some_and(|pdu| is_join(pdu.content()));
            joined += u64::from(joins);
            let user = <&UserId>::try_from(key).expect("a user ID");
            let user = seen.app.store.find_user(user).expect("the store reads");
            let counts = user.map(|user| head.membership(user)) == Some(Membership::Join);
            if joins != counts {
                let (name, room) = (&seen.name, &seen.view.room_id);
                self.problem(format!(
                    "{key} is joined in {room} by the state of {name}: {joins}, by its index: {counts}"
                ));
            }
        }
        if joined != head.joined_count {
            let (name, room, count) = (&seen.name, &seen.view.room_id, head.joined_count);
            self.problem(format!(
                "{name} counts {count} of {joined} joined in {room}"
            ));
        }
    }

    /// That no event is in the timeline twice.
    fn once(&mut self, seen: &Seen<'_>) {
        let mut ids = BTreeSet::new();
        for event in &seen.timeline {
            if !ids.insert(event.pdu.event_id()) {
                let (name, id) = (&seen.name, event.pdu.event_id());
                self.problem(format!("{name} has {id} twice"));
            }
        }
    }

    /// That two servers that are in a room together agree on its state.
    fn agreement(&mut self, one: &Seen<'_>, other: &Seen<'_>) {
        let room = &one.view.room_id;
        let (a, b) = (&one.name, &other.name);
        if !Seen::are_together(one, other) {
            if one.has(a) && other.has(b) {
                self.notes.push(format!("{a} and {b} are apart in {room}"));
            }
            return;
        }
        for key in one.state.keys().chain(other.state.keys()) {
            let (ours, theirs) = (one.state.get(key), other.state.get(key));
            if ours != theirs {
                self.problem(format!(
                    "{key:?} in {room} is {ours:?} on {a}, {theirs:?} on {b}"
                ));
            }
        }
    }

    /// That what users of `one` sent is known to `other`, if that has been in the room since before.
    fn arrival(&mut self, one: &Seen<'_>, other: &Seen<'_>, excused: bool) {
        let (a, b) = (&one.name, &other.name);
        let (seen, own) = (one.comings(b), other.comings(b));
        let stayed = own.first.is_some() && !seen.went && !own.went;
        if a == b || !stayed || !Seen::are_together(one, other) {
            return;
        }
        // Whose join was answered in vain came later by its own account. Who came before this server did has no
        // coming here.
        let by_own = own.first.and_then(|(_, id)| one.order_of(&id));
        let came = by_own.or(seen.first.map(|(order, _)| order));
        // Who goes and comes again begins anew, and nothing is built upon what it sent before any more.
        let began = one.comings(a);
        let began = began.last.filter(|_| began.went);
        let sent = one.timeline.iter().filter(|event| {
            let by_own = event.pdu.sender().server_name() == one.app.server_name();
            let is_later = |than: Option<i64>| than.is_none_or(|than| event.order > than);
            is_later(came) && is_later(began) && by_own
        });
        for event in sent {
            let pdu = &event.pdu;
            let knowledge = other.knows(pdu.event_id());
            let fine = match knowledge {
                Knowledge::Shown | Knowledge::Aside(Standing::SoftFailed) => true,
                Knowledge::Aside(Standing::Rejected) => false,
                Knowledge::Aside(Standing::Outlier) | Knowledge::Nothing => excused,
            };
            if !fine {
                let (kind, id, room) = (pdu.kind(), pdu.event_id(), &one.view.room_id);
                self.problem(format!(
                    "{kind} {id} of {a} in {room} is on {b}: {knowledge:?}"
                ));
            }
        }
    }

    /// That a server shows nothing that its sender's server does not know, and that liars have changed nothing.
    fn honest(&mut self, seen: &Seen<'_>, all: &[Seen<'_>], liar: Option<&str>) {
        let (name, room) = (&seen.name, &seen.view.room_id);
        for event in &seen.timeline {
            let pdu = &event.pdu;
            let (id, kind) = (pdu.event_id(), pdu.kind().to_string());
            let sender = pdu.sender();
            if Some(sender.server_name().as_str()) == liar {
                let own = pdu.state_key().is_none_or(|key| key == sender.as_str());
                if !own {
                    self.problem(format!("{name} takes {kind} {id} of {sender} in {room}"));
                }
                continue;
            }
            // A server that lets a user in has the event before the user's own has it, which may crash then.
            let mut homes = all.iter();
            let home = homes.find(|home| sender.server_name() == home.name.as_str());
            if kind != "m.room.member"
                && home.is_some_and(|home| home.knows(id) == Knowledge::Nothing)
            {
                self.problem(format!("{name} has {kind} {id}, which {sender} never sent"));
            }
        }
    }

    /// That nothing is shown that its sender had no right to.
    fn refused(&mut self, seen: &Seen<'_>, forbidden: &BTreeSet<String>) {
        for event in &seen.timeline {
            if forbidden.contains(event.pdu.event_id().as_str()) {
                let (name, id, kind) = (&seen.name, event.pdu.event_id(), event.pdu.kind());
                self.problem(format!("{name} shows {kind} {id}, which is not allowed"));
            }
        }
    }

    /// That what a server has acknowledged is in its timeline.
    fn acknowledged(&mut self, checked: &Checked, user: &User) {
        for Acknowledged {
            server,
            room_id,
            event_id,
        } in user.acknowledged()
        {
            let mut apps = checked.apps.iter();
            let app = apps.find(|app| app.server_name() == server.as_str());
            let app = app.expect("a server of the simulation");
            let id = (&*event_id).try_into().expect("an event ID");
            if app.store.event(id).expect("the store reads").is_none() {
                self.problem(format!(
                    "{server} has acknowledged {event_id} in {room_id}, and does not have it"
                ));
            }
        }
    }

    /// That a joined user was told of everything since the join.
    fn synced(&mut self, checked: &Checked, user: &User) {
        let mut apps = checked.apps.iter();
        let app = apps.find(|app| app.server_name() == user.host.name());
        let app = app.expect("a server of the simulation");
        for room_id in &checked.rooms {
            let Some(seen) = Seen::of(app, room_id) else {
                continue;
            };
            let key = ("m.room.member".to_owned(), user.id.clone());
            let Some(join) = seen.state.get(&key) else {
                continue;
            };
            let joined = seen.joined_of(user.host.name()).contains(&user.id);
            let mut timeline = seen.timeline.iter();
            let at = timeline.find(|event| event.pdu.event_id() == join.as_str());
            let (Some(at), true) = (at, joined) else {
                continue;
            };
            let told = user.seen(room_id);
            for event in &seen.timeline {
                let event_id = event.pdu.event_id();
                if event.order >= at.order && !told.contains(event_id.as_str()) {
                    let (id, event) = (&user.id, event_id);
                    self.problem(format!("{id} was never told of {event} in {room_id}"));
                }
            }
        }
    }
}
