//! What the room list shows, and how rooms come into it and go.

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    RoomState,
    encryption::CrossSigningStatus,
    ruma::{
        OwnedRoomId,
        api::client::room::create_room::{self, v3::RoomPreset},
        events::{
            AnyInitialStateEvent, InitialStateEvent,
            direct::DirectEventContent,
            room::{
                encryption::{InitialRoomEncryptionEvent, RoomEncryptionEventContent},
                message::RoomMessageEventContent,
            },
        },
        serde::Raw,
    },
};
use matrix_sdk_ui::{room_list_service::RoomListLoadingState, sync_service::State};

use crate::{
    check::{so, until},
    phone::Phone,
};

/// Rooms of the long list: more than the 20 of the list's first window.
const LONG_LIST: usize = 24;

/// Both connections of both phones are up, and there is no room yet.
pub async fn both_run(alice: &Phone, bob: &Phone) -> Result<()> {
    for phone in [alice, bob] {
        let list = phone.sync.room_list_service().all_rooms().await?;
        until("the list is loaded", async || {
            so(matches!(
                list.loading_state().get(),
                RoomListLoadingState::Loaded {
                    maximum_number_of_rooms: Some(0)
                }
            ))
        })
        .await?;
        ensure!(
            matches!(phone.sync.state().get(), State::Running),
            "the state is {:?}",
            phone.sync.state().get()
        );
        until("cross-signing is set up", async || {
            Ok(phone
                .client
                .encryption()
                .cross_signing_status()
                .await
                .filter(CrossSigningStatus::is_complete))
        })
        .await?;
    }
    Ok(())
}

/// An invitation is in the list, accepted, and both phones then list the room. Gives the room.
pub async fn invited(alice: &Phone, bob: &Phone, name: &str) -> Result<OwnedRoomId> {
    let mut request = create_room::v3::Request::new();
    request.name = Some(name.to_owned());
    request.preset = Some(RoomPreset::TrustedPrivateChat);
    request.invite = vec![bob.client.user_id().context("bob is logged in")?.to_owned()];
    request.is_direct = true;
    request.initial_state = vec![encryption()];
    let room_id = alice
        .client
        .create_room(request)
        .await?
        .room_id()
        .to_owned();

    until("bob's list has the invitation", async || {
        so(bob.names() == [name]
            && bob
                .listed(&room_id)
                .is_some_and(|room| room.state() == RoomState::Invited))
    })
    .await?;
    let room = bob.room(&room_id)?;
    let inviter = room.invite_details().await?.inviter_id;
    ensure!(
        inviter == alice.client.user_id().context("alice is logged in")?,
        "the inviter is {inviter}"
    );
    room.join().await?;
    for phone in [alice, bob] {
        until(
            "the room is joined, encrypted and named in the list",
            async || {
                let Some(room) = phone.listed(&room_id) else {
                    return Ok(None);
                };
                so(phone.names() == [name]
                    && room.state() == RoomState::Joined
                    && room.encryption_state().is_encrypted()
                    && room.joined_members_count() == 2)
            },
        )
        .await?;
        until(
            "the room is among the direct ones in the account data",
            async || {
                let direct = phone
                    .client
                    .account()
                    .account_data::<DirectEventContent>()
                    .await?;
                let Some(direct) = direct.map(|raw| raw.deserialize()).transpose()? else {
                    return Ok(None);
                };
                so(direct.values().flatten().any(|one| *one == room_id))
            },
        )
        .await?;
    }
    Ok(room_id)
}

/// The list grows beyond its first window, and is sorted by what is new.
pub async fn long_list(alice: &Phone, bob: &Phone, run: &str) -> Result<()> {
    let before = alice.rooms().len();
    let mut made = Vec::new();
    for number in 0..LONG_LIST {
        let mut request = create_room::v3::Request::new();
        request.name = Some(format!("Room {number} of {run}"));
        request.preset = Some(RoomPreset::PublicChat);
        made.push(
            alice
                .client
                .create_room(request)
                .await?
                .room_id()
                .to_owned(),
        );
    }
    until("all rooms are in alice's list", async || {
        let names = alice.names();
        let all = (0..LONG_LIST).all(|number| names.contains(&format!("Room {number} of {run}")));
        so(all && names.len() == before + LONG_LIST)
    })
    .await?;
    let room = bob.client.join_room_by_id(&made[0]).await?;
    room.send(RoomMessageEventContent::text_plain("up with it"))
        .await?;
    until("the room with news is at the top", async || {
        so(alice
            .names()
            .first()
            .is_some_and(|name| *name == format!("Room 0 of {run}")))
    })
    .await
}

/// A room left goes from the list.
pub async fn leaves(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    bob.room(room_id)?.leave().await?;
    until("bob's list has lost it", async || {
        so(bob.listed(room_id).is_none())
    })
    .await?;
    until("alice sees it", async || {
        so(alice
            .listed(room_id)
            .is_some_and(|room| room.joined_members_count() == 1))
    })
    .await
}

fn encryption() -> Raw<AnyInitialStateEvent> {
    let content = RoomEncryptionEventContent::with_recommended_defaults();
    let event: InitialRoomEncryptionEvent = InitialStateEvent::with_empty_state_key(content);
    event.to_raw_any()
}
