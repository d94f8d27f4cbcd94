//! What two people say and do in a room that both have opened.

use anyhow::{Context, Result, bail, ensure};
use matrix_sdk::{
    media::{MediaFormat, MediaRequestParameters},
    room::edit::EditedContent,
    ruma::{
        OwnedRoomId,
        api::client::{
            receipt::create_receipt::v3::ReceiptType,
            room::create_room::{self, v3::RoomPreset},
        },
        events::room::message::{
            MessageType, RoomMessageEventContent, RoomMessageEventContentWithoutRelation,
        },
    },
};
use matrix_sdk_ui::{
    Timeline,
    timeline::{
        AttachmentConfig, AttachmentSource, EventTimelineItem, LatestEventValue, Message, RoomExt,
        TimelineFocus, TimelineItemContent,
    },
};

use crate::{
    check::{so, until},
    phone::Phone,
};

/// Messages in the room that is paged back: more than two pages, and than the 20 of an opened room.
const HISTORY_LENGTH: usize = 50;
/// Events asked for at a time when paging back.
pub const PAGE: u16 = 20;

/// Encrypted messages, both ways.
pub async fn exchange(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    let timelines = [alice.open(room_id).await?, bob.open(room_id).await?];
    for (from, to, text) in [(0, 1, "over the hill"), (1, 0, "and far away")] {
        say(&timelines[from], text).await?;
        let event = heard(&timelines[to], text).await?;
        ensure!(event.encryption_info().is_some(), "it came encrypted");
        ensure!(!event.is_own(), "it is the other's");
    }
    Ok(())
}

/// Counts, the latest event and receipts.
pub async fn unread(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    let alices = alice.open(room_id).await?;
    let bobs = bob.open(room_id).await?;
    bobs.mark_as_read(ReceiptType::Read).await?;
    let count = || {
        bob.listed(room_id)
            .map(|room| (room.num_unread_messages(), room.num_unread_notifications()))
    };
    until("nothing is unread", async || so(count() == Some((0, 0)))).await?;
    say(&alices, "are you there").await?;
    until("one is unread", async || so(count() == Some((1, 1)))).await?;
    until("it is the latest in the list", async || {
        let latest = bob.room(room_id)?.latest_event().await;
        so(matches!(latest, LatestEventValue::Remote { content, .. } if text_of(&content) == Some("are you there".to_owned())))
    })
    .await?;
    heard(&bobs, "are you there").await?;
    bobs.mark_as_read(ReceiptType::Read).await?;
    until("nothing is unread", async || so(count() == Some((0, 0)))).await?;
    let bobs_id = bob.client.user_id().context("bob is logged in")?;
    until("alice sees that bob has read it", async || {
        let event = find(&alices, "are you there").await;
        so(event.is_some_and(|event| event.read_receipts().contains_key(bobs_id)))
    })
    .await
}

/// A reaction, an edit, a redaction.
pub async fn changes(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    let alices = alice.open(room_id).await?;
    let bobs = bob.open(room_id).await?;
    say(&alices, "a tpyo").await?;
    let event = heard(&bobs, "a tpyo").await?;
    bobs.toggle_reaction(&event.identifier(), "👍").await?;
    let bobs_id = bob.client.user_id().context("bob is logged in")?;
    let own = until("alice has the reaction", async || {
        let event = find(&alices, "a tpyo").await;
        Ok(event.filter(|event| {
            let reactions = event.content().reactions();
            reactions
                .and_then(|all| all.get("👍"))
                .is_some_and(|senders| senders.contains_key(bobs_id))
        }))
    })
    .await?;
    let text = RoomMessageEventContentWithoutRelation::text_plain("a typo");
    alices
        .edit(&own.identifier(), EditedContent::RoomMessage(text))
        .await?;
    let edited = heard(&bobs, "a typo").await?;
    ensure!(
        edited
            .content()
            .as_message()
            .is_some_and(Message::is_edited),
        "it is marked as edited"
    );
    alices
        .redact(&own.identifier(), Some("second thoughts"))
        .await?;
    let id = event.event_id().context("it has come from the server")?;
    until("bob sees it redacted", async || {
        so(bobs
            .item_by_event_id(id)
            .await
            .is_some_and(|event| event.content().is_redacted()))
    })
    .await
}

/// A thread, seen from both sides.
pub async fn thread(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    let bobs = bob.open(room_id).await?;
    say(&alice.open(room_id).await?, "the root").await?;
    let root = heard(&bobs, "the root")
        .await?
        .event_id()
        .context("it has come from the server")?
        .to_owned();
    let focus = || TimelineFocus::Thread {
        root_event_id: root.clone(),
    };
    let alices_thread = alice
        .room(room_id)?
        .timeline_builder()
        .with_focus(focus())
        .build()
        .await?;
    let bobs_thread = bob
        .room(room_id)?
        .timeline_builder()
        .with_focus(focus())
        .build()
        .await?;
    for timeline in [&alices_thread, &bobs_thread] {
        while !timeline.paginate_backwards(PAGE).await? {}
        heard(timeline, "the root").await?;
    }
    say(&bobs_thread, "in the thread").await?;
    for timeline in [&alices_thread, &bobs_thread] {
        heard(timeline, "in the thread").await?;
    }
    // The summary under the root is not asserted: the SDK updates it from two tasks and loses one now and then.
    Ok(())
}

/// Typing notices.
pub async fn typing(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    let (_guard, mut typing) = alice.room(room_id)?.subscribe_to_typing_notifications();
    let bobs_id = bob.client.user_id().context("bob is logged in")?;
    for (on, expected) in [(true, vec![bobs_id.to_owned()]), (false, vec![])] {
        bob.room(room_id)?.typing_notice(on).await?;
        until("alice is told", async || {
            so(typing.try_recv().is_ok_and(|users| users == expected))
        })
        .await?;
    }
    Ok(())
}

/// An encrypted attachment.
pub async fn file(alice: &Phone, bob: &Phone, room_id: &OwnedRoomId) -> Result<()> {
    let alices = alice.open(room_id).await?;
    let bobs = bob.open(room_id).await?;
    let bytes = format!("what is in the file of {room_id}").into_bytes();
    let source = AttachmentSource::Data {
        bytes: bytes.clone(),
        filename: "notes.bin".to_owned(),
    };
    alices
        .send_attachment(
            source,
            mime::APPLICATION_OCTET_STREAM,
            AttachmentConfig::default(),
        )
        .await?;
    let event = heard(&bobs, "notes.bin").await?;
    let message = event.content().as_message().context("it is a message")?;
    let MessageType::File(file) = message.msgtype() else {
        bail!("it is a {:?}", message.msgtype());
    };
    let request = MediaRequestParameters {
        source: file.source.clone(),
        format: MediaFormat::File,
    };
    let opened = bob
        .client
        .media()
        .get_media_content(&request, false)
        .await?;
    ensure!(
        opened == bytes,
        "{} bytes came of {}",
        opened.len(),
        bytes.len()
    );
    Ok(())
}

/// Back-pagination of an opened room.
pub async fn history(alice: &Phone, bob: &Phone, name: &str) -> Result<()> {
    let mut request = create_room::v3::Request::new();
    request.name = Some(name.to_owned());
    request.preset = Some(RoomPreset::PublicChat);
    let room = alice.client.create_room(request).await?;
    let mut texts = Vec::new();
    for number in 0..HISTORY_LENGTH {
        let text = format!("history {number}");
        room.send(RoomMessageEventContent::text_plain(text.as_str()))
            .await?;
        texts.push(text);
    }
    bob.client.join_room_by_id(room.room_id()).await?;
    until("the room is in bob's list", async || {
        so(bob.names().iter().any(|listed| listed == name))
    })
    .await?;
    let timeline = bob.open(room.room_id()).await?;
    let mut pages = 0;
    while !timeline.paginate_backwards(PAGE).await? {
        pages += 1;
        ensure!(pages < HISTORY_LENGTH, "paging back does not end");
    }
    until("all messages are there, once and in order", async || {
        let items = timeline.items().await;
        let shown: Vec<_> = items
            .iter()
            .filter_map(|item| text_of(item.as_event()?.content()))
            .collect();
        so(shown == texts)
    })
    .await
}

/// Sends a text; the send queue does the rest.
pub async fn say(timeline: &Timeline, text: &str) -> Result<()> {
    timeline
        .send(RoomMessageEventContent::text_plain(text).into())
        .await?;
    Ok(())
}

/// The message with `text`, once the timeline shows it and the server has confirmed it.
pub async fn heard(timeline: &Timeline, text: &str) -> Result<EventTimelineItem> {
    until(&format!("the timeline shows “{text}”"), async || {
        Ok(find(timeline, text)
            .await
            .filter(EventTimelineItem::is_remote_event))
    })
    .await
}

pub async fn find(timeline: &Timeline, text: &str) -> Option<EventTimelineItem> {
    let items = timeline.items().await;
    let mut events = items
        .iter()
        .rev()
        .filter_map(|item| item.as_event().cloned());
    events.find(|event| text_of(event.content()).is_some_and(|body| body == text))
}

/// The body of a message, as edited.
fn text_of(content: &TimelineItemContent) -> Option<String> {
    Some(content.as_message()?.body().to_owned())
}
