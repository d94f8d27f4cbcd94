//! Whom an entry of the log concerns.

use std::{collections::BTreeSet, sync::Arc};

use federation::wire::queue::{Input, QueuedEvent};
use ruma::{
    EventId, OwnedServerName, ServerName, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use store::{
    keys::{Packed, Position, UserNum},
    log::{Change, LogEntry},
    rooms::TimelineEvent,
};

use super::Reader;
use crate::{
    error::ApiResult,
    keys::{lists, remote},
    peers::{
        edus,
        sender::{moments, rows},
    },
    rooms::members::MemberContent,
    server::App,
};

/// How many local members of a room a server that comes into it is told of.
const MEMBERS_TOLD_MAX: usize = 100;

/// Who came to share a room with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// Local users joined a room that the servers are in.
    Joined,
    /// The server came into a room that the users are in: it asks for their devices when it needs them. Only
    /// what it may still have from before has to be set right.
    Arrived,
}

impl Reader {
    /// What has to be sent because of an entry of the log.
    pub(super) async fn take(&mut self, position: Position, entry: &LogEntry) -> ApiResult<()> {
        let app = self.app.clone();
        match entry {
            LogEntry::Event(event) => self.event(position, event).await,
            LogEntry::Other(Change::Relay { event_id }) => self.relay(position, event_id),
            LogEntry::Other(Change::ToServer { server }) => self.tell(server, Input::Kept),
            LogEntry::Other(Change::DeviceList { user }) => {
                // What only one user sees of another's keys is told under the name of that user.
                if lists::stream_id(&app.store, *user)? < position {
                    return Ok(());
                }
                let to = moments::servers_of(&app, &mut self.servers, *user, self.position)?;
                for server in to {
                    self.owe_devices(&server, *user)?;
                }
                Ok(())
            }
            LogEntry::Other(Change::Receipt {
                room,
                user,
                private: false,
            }) => {
                let told = moments::receipts(&app, &mut self.servers, *room, *user, position)?;
                self.address(told)
            }
            LogEntry::Other(_) => Ok(()),
        }
    }

    async fn event(&mut self, position: Position, event: &Arc<TimelineEvent>) -> ApiResult<()> {
        let app = self.app.clone();
        if app.is_local(event.pdu.sender()) && !is_told_elsewhere(&app, event)? {
            let before = position.saturating_sub(1);
            let mut to = moments::others(&app, &mut self.servers, event.room, before)?;
            to.extend(target(&app, event));
            self.send_event(position, event, to)?;
        }
        let moved = self.servers.apply(&app, event)?;
        for user in moved.joined {
            let to = moments::others(&app, &mut self.servers, event.room, position)?;
            self.meet(Meeting::Joined, &to, [user])?;
        }
        for server in moved.arrived {
            let members = self.servers.at(&app, event.room, position)?;
            let local = members.get(app.server_name()).into_iter().flatten();
            let local: Vec<UserNum> = local.copied().take(MEMBERS_TOLD_MAX).collect();
            self.meet(Meeting::Arrived, &BTreeSet::from([server]), local)?;
        }
        for user in moved.left {
            remote::left(&app, user).await?;
        }
        edus::arrived(&app, event).await
    }

    /// An event of another server's user that this server passes on.
    fn relay(&mut self, position: Position, event_id: &EventId) -> ApiResult<()> {
        let app = self.app.clone();
        let Some(event) = app.store.event(event_id)? else {
            return Ok(());
        };
        let mut to = moments::others(&app, &mut self.servers, event.room, position)?;
        to.remove(event.pdu.sender().server_name());
        self.send_event(position, &event, to)
    }

    fn send_event(
        &mut self,
        position: Position,
        event: &Arc<TimelineEvent>,
        to: BTreeSet<OwnedServerName>,
    ) -> ApiResult<()> {
        for server in to {
            let queued = QueuedEvent {
                position,
                place: event.position(),
                room: event.room.0,
                pdu: event.pdu.clone(),
            };
            self.tell(&server, Input::Event(queued))?;
        }
        Ok(())
    }

    /// Local users share a room with servers that they may not have shared one with before.
    ///
    /// Spec: server-server API, "Device Management".
    fn meet(
        &mut self,
        meeting: Meeting,
        servers: &BTreeSet<OwnedServerName>,
        users: impl IntoIterator<Item = UserNum>,
    ) -> ApiResult<()> {
        let app = self.app.clone();
        for user in users {
            for server in servers {
                let told = rows::told(server, user);
                let was_told = self.unwritten.get(&app.store, told)?.is_some();
                if was_told == (meeting == Meeting::Arrived) {
                    self.owe_devices(server, user)?;
                }
            }
            if app.config.presence.enabled
                && let Some(moment) = moments::presence(&app, user)?
            {
                self.address(vec![(servers.clone(), moment)])?;
            }
        }
        Ok(())
    }

    /// A server has to be told of a user's devices.
    fn owe_devices(&mut self, server: &ServerName, user: UserNum) -> ApiResult<()> {
        self.unwritten.put(rows::user(server, user), Packed::new());
        self.tell(server, Input::Kept)
    }
}

/// Whether an event is a join by way of another server, which tells all others of it: it is built upon what
/// has no place here.
///
/// Spec: server-server API, "Joining Rooms".
fn is_told_elsewhere(app: &App, event: &TimelineEvent) -> ApiResult<bool> {
    let pdu = &event.pdu;
    if *pdu.kind() != TimelineEventType::RoomMember || pdu.prev_events().is_empty() {
        return Ok(false);
    }
    for id in pdu.prev_events() {
        if app.store.event(id)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The server of whoever is invited, kicked, banned or let go: it may have nobody in the room.
///
/// Spec: server-server API, "PDUs"; it wants them to be told, but says so only for invites.
fn target(app: &App, event: &TimelineEvent) -> Option<OwnedServerName> {
    let pdu = &event.pdu;
    if *pdu.kind() != TimelineEventType::RoomMember {
        return None;
    }
    let target = pdu.state_key().and_then(|key| UserId::parse(key).ok())?;
    let content: MemberContent = pdu.content_as()?;
    let told = matches!(
        content.membership,
        MembershipState::Invite | MembershipState::Leave | MembershipState::Ban
    );
    (told && !app.is_local(&target)).then(|| target.server_name().to_owned())
}
