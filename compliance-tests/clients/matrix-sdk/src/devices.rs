//! One user, several runs and devices: recovery from the key backup, a restart, logout.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use matrix_sdk::{encryption::recovery::RecoveryState, ruma::OwnedRoomId};

use crate::{
    check::{so, until},
    conversation::{PAGE, find, heard, say},
    phone::Phone,
};

/// Key backup: a new device of the same user reads what was said before it came.
pub async fn recovers(
    base_url: &str,
    bob: &Phone,
    username: &str,
    folder: &Path,
    room_id: &OwnedRoomId,
) -> Result<()> {
    let key = bob
        .client
        .encryption()
        .recovery()
        .enable()
        .wait_for_backups_to_upload()
        .await?;
    let again = Phone::log_in(base_url, username, folder).await?;
    until("the room is in the new device's list", async || {
        so(again.listed(room_id).is_some())
    })
    .await?;
    let timeline = again.open(room_id).await?;
    timeline.paginate_backwards(PAGE).await?;
    until("old messages cannot be read yet", async || {
        so(timeline.items().await.iter().any(|item| {
            item.as_event()
                .is_some_and(|event| event.content().is_unable_to_decrypt())
        }))
    })
    .await?;
    again.client.encryption().recovery().recover(&key).await?;
    until("recovery is complete", async || {
        so(again.client.encryption().recovery().state() == RecoveryState::Enabled)
    })
    .await?;
    while !timeline.paginate_backwards(PAGE).await? {}
    for text in ["over the hill", "and far away"] {
        heard(&timeline, text).await?;
    }
    let own = again
        .client
        .encryption()
        .get_own_device()
        .await?
        .context("the device is known")?;
    ensure!(
        own.is_cross_signed_by_owner(),
        "the new device has signed itself"
    );
    again.client.matrix_auth().logout().await?;
    again.stop().await?;
    Ok(())
}

/// A phone is switched off, misses a message and its key, and is switched on again. Gives that phone.
pub async fn restarts(
    base_url: &str,
    alice: &Phone,
    bob: Phone,
    folder: &Path,
    room_id: &OwnedRoomId,
) -> Result<Phone> {
    let device = bob
        .client
        .device_id()
        .context("bob is logged in")?
        .to_owned();
    let session = bob.stop().await?;
    // A new session of the room, so that its key travels by to-device message while bob is away.
    alice.room(room_id)?.discard_room_key().await?;
    say(&alice.open(room_id).await?, "while you were away").await?;
    until("it is sent", async || {
        let sent = find(&alice.open(room_id).await?, "while you were away").await;
        so(sent.is_some_and(|event| event.is_remote_event()))
    })
    .await?;
    let bob = Phone::restore(base_url, folder, session).await?;
    ensure!(
        bob.client.device_id() == Some(&*device),
        "it is the same device"
    );
    ensure!(
        bob.client.get_room(room_id).is_some(),
        "the room is known before the first sync"
    );
    let timeline = bob.open(room_id).await?;
    heard(&timeline, "while you were away").await?;
    say(&timeline, "back again").await?;
    heard(&alice.open(room_id).await?, "back again").await?;
    Ok(bob)
}

/// The end of a session.
pub async fn logs_out(bob: Phone) -> Result<()> {
    bob.sync.stop().await;
    bob.client.matrix_auth().logout().await?;
    let error = bob
        .client
        .whoami()
        .await
        .err()
        .context("the token still works")?;
    ensure!(
        error
            .client_api_error_kind()
            .is_some_and(|kind| format!("{kind:?}").starts_with("UnknownToken")),
        "the error is {error}"
    );
    Ok(())
}
