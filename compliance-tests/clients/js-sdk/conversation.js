// A day in a room: messages, threads, reactions, edits, redactions, pictures, receipts, typing, counts, history.
//
// The room is not encrypted, so that what the server itself computes (counts, aggregations, search) is what is read.

import assert from "node:assert/strict";

import { Direction, EventType, MsgType, NotificationCountType, Preset, ReceiptType, RelationType } from "matrix-js-sdk";

import { made, rejection, until } from "../lib/check.js";
import { dimensions, png } from "../lib/png.js";
import { inRoom, received, RUN } from "./session.js";

/** Messages sent for the pagination check: more than two pages of `HISTORY_PAGE`. */
const HISTORY_LENGTH = 45;
const HISTORY_PAGE = 20;

/** Uses `world.alice` and `world.bob`; makes `world.openRoom` (both are in it, the room is public). */
export async function conversationChecks(suite, world) {
    const { alice, bob } = world;
    let root;

    await suite.check("a public room is made and joined, and both see name, topic and members", async () => {
        const { room_id: roomId } = await alice.createRoom({
            name: `Commons ${RUN}`,
            topic: "everything else",
            preset: Preset.PublicChat,
        });
        await bob.joinRoom(roomId);
        const room = await inRoom(bob, roomId);
        await until("bob has the name", () => room.name === `Commons ${RUN}`);
        const topic = room.currentState.getStateEvents(EventType.RoomTopic, "").getContent();
        assert.equal(topic.topic, "everything else");
        await room.loadMembersIfNeeded();
        assert.deepEqual(
            room.getJoinedMembers().map(({ userId }) => userId).sort(),
            [alice.getUserId(), bob.getUserId()].sort(),
        );
        await until("alice sees bob", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
        world.openRoom = roomId;
    });
    const say = (client, body, threadId = null) => client.sendTextMessage(made("the room", world.openRoom), threadId, body);
    const room = (client) => client.getRoom(made("the room", world.openRoom));

    await suite.check("a message comes down sync to the other, and to its sender with its transaction ID", async () => {
        const txnId = alice.makeTxnId();
        ({ event_id: root } = await alice.sendTextMessage(made("the room", world.openRoom), "first", txnId));
        const event = await received(bob, world.openRoom, root);
        assert.equal(event.getContent().body, "first");
        assert.equal(event.getSender(), alice.getUserId());
        assert.equal(event.getUnsigned().transaction_id, undefined);
        const own = await until("alice has the remote echo", () => {
            const echo = room(alice).findEventById(root);
            return echo?.getUnsigned().transaction_id ? echo : undefined;
        });
        assert.equal(own.getUnsigned().transaction_id, txnId);
    });

    await suite.check("a thread has its replies, its summary and its place in the thread list", async () => {
        const threadId = made("the first message", root);
        await say(bob, "in the thread", threadId);
        const { event_id: last } = await say(alice, "also in the thread", threadId);
        const thread = await until("bob has the thread", () => {
            const found = room(bob).getThread(threadId);
            return found?.length === 2 && found.replyToEvent?.getId() === last ? found : undefined;
        });
        assert.equal(thread.rootEvent.getId(), threadId);
        const listed = await bob.createThreadListMessagesRequest(world.openRoom, null, 10, Direction.Backward);
        assert.deepEqual(listed.chunk.map((event) => event.event_id), [threadId]);
        const summary = listed.chunk[0].unsigned["m.relations"]["m.thread"];
        assert.equal(summary.count, 2);
        assert.equal(summary.current_user_participated, true);
        assert.equal(summary.latest_event.event_id, last);
        const replies = await bob.relations(world.openRoom, threadId, RelationType.Thread, null, { dir: Direction.Backward });
        assert.deepEqual(replies.events.map((event) => event.getContent().body), ["also in the thread", "in the thread"]);
    });

    await suite.check("a reaction is counted once, and a second equal one is refused", async () => {
        const target = made("the first message", root);
        const content = { "m.relates_to": { rel_type: RelationType.Annotation, event_id: target, key: "👍" } };
        await bob.sendEvent(world.openRoom, EventType.Reaction, content);
        await until("alice has the reaction", () => {
            const reactions = room(alice).relations.getChildEventsForEvent(target, RelationType.Annotation, EventType.Reaction);
            const [[key, events] = []] = reactions?.getSortedAnnotationsByKey() ?? [];
            return key === "👍" && events.size === 1 && [...events][0].getSender() === bob.getUserId();
        });
        const error = await rejection("the same reaction again", () => bob.sendEvent(world.openRoom, EventType.Reaction, content));
        assert.equal(error.errcode, "M_DUPLICATE_ANNOTATION");
    });

    await suite.check("an edit replaces what the other sees, and is served with the event", async () => {
        const { event_id: eventId } = await say(alice, "tpyo");
        await received(bob, world.openRoom, eventId);
        const { event_id: editId } = await alice.sendEvent(world.openRoom, EventType.RoomMessage, {
            "msgtype": MsgType.Text,
            "body": "* typo",
            "m.new_content": { msgtype: MsgType.Text, body: "typo" },
            "m.relates_to": { rel_type: RelationType.Replace, event_id: eventId },
        });
        const event = await received(bob, world.openRoom, eventId);
        await until("bob sees the edit", () => event.getContent().body === "typo");
        const served = await bob.fetchRoomEvent(world.openRoom, eventId);
        assert.equal(served.unsigned["m.relations"]["m.replace"].event_id, editId);
    });

    await suite.check("a redaction empties the event for both", async () => {
        const { event_id: eventId } = await say(alice, "regretted");
        const event = await received(bob, world.openRoom, eventId);
        await alice.redactEvent(world.openRoom, eventId, undefined, { reason: "second thoughts" });
        await until("bob sees it redacted", () => event.isRedacted());
        assert.equal(event.getContent().body, undefined);
        const served = await bob.fetchRoomEvent(world.openRoom, eventId);
        assert.deepEqual(served.content, {});
        assert.equal(served.unsigned.redacted_because.content.reason, "second thoughts");
    });

    await suite.check("a picture is uploaded, sent, and downloaded and scaled only with a token", async () => {
        const bytes = png(320, 200, Date.now());
        const progress = [];
        const { content_uri: mxc } = await alice.uploadContent(new Blob([bytes], { type: "image/png" }), {
            name: "gradient.png",
            type: "image/png",
            progressHandler: ({ loaded }) => progress.push(loaded),
        });
        const { event_id: eventId } = await alice.sendImageMessage(made("the room", world.openRoom), mxc, {
            mimetype: "image/png",
            w: 320,
            h: 200,
            size: bytes.length,
        }, "gradient.png");
        const { url } = (await received(bob, world.openRoom, eventId)).getContent();
        assert.equal(url, mxc);

        const headers = { Authorization: `Bearer ${bob.getAccessToken()}` };
        const whole = bob.mxcUrlToHttp(url, undefined, undefined, undefined, false, true, true);
        assert.match(whole, /\/_matrix\/client\/v1\/media\/download\//);
        const download = await fetch(whole, { headers });
        assert.equal(download.status, 200);
        assert.equal(download.headers.get("content-type"), "image/png");
        assert.match(download.headers.get("content-disposition"), /gradient\.png/);
        assert.deepEqual(Buffer.from(await download.arrayBuffer()), bytes);
        assert.equal((await fetch(whole)).status, 401);

        const scaled = bob.mxcUrlToHttp(url, 96, 96, "crop", false, true, true);
        const thumbnail = await fetch(scaled, { headers });
        assert.equal(thumbnail.status, 200);
        const [width, height] = dimensions(Buffer.from(await thumbnail.arrayBuffer()));
        assert.equal(width, height, "a crop to a square is square");
        assert.ok(width >= 96 && width < 320, `it is ${width} wide`);
    });

    await suite.check("unread messages and mentions are counted, and a read receipt clears them and is seen", async () => {
        // The main timeline's: the thread above has its own.
        const count = (type) => room(bob).getRoomUnreadNotificationCount(type);
        await bob.sendReadReceipt(room(bob).getLastLiveEvent());
        await until("nothing is unread", () => count(NotificationCountType.Total) === 0);
        await say(alice, "one");
        const { event_id: eventId } = await alice.sendMessage(world.openRoom, {
            "msgtype": MsgType.Text,
            "body": "hello there",
            "m.mentions": { user_ids: [bob.getUserId()] },
        });
        const event = await received(bob, world.openRoom, eventId);
        await until("two are unread, one of them a mention", () =>
            count(NotificationCountType.Total) === 2 &&
            count(NotificationCountType.Highlight) === 1);
        await bob.sendReadReceipt(event);
        await until("nothing is unread", () =>
            count(NotificationCountType.Total) === 0 &&
            count(NotificationCountType.Highlight) === 0);
        await until("alice sees how far bob has read", () =>
            room(alice).getEventReadUpTo(bob.getUserId()) === eventId);
    });

    await suite.check("unread messages of a thread are counted apart, and a threaded receipt clears them", async () => {
        const threadId = made("the first message", root);
        const count = () => room(bob).getThreadUnreadNotificationCount(threadId, NotificationCountType.Total);
        const { event_id: eventId } = await say(alice, "news in the thread", threadId);
        await until("the thread has an unread message", () => count() > 0);
        assert.equal(room(bob).getRoomUnreadNotificationCount(NotificationCountType.Total), 0);
        const event = await until("bob has it", () => room(bob).getThread(threadId).findEventById(eventId));
        await bob.sendReadReceipt(event);
        await until("the thread is read", () => count() === 0);
    });

    await suite.check("a private receipt clears one's own count and is not shown to others", async () => {
        const before = room(alice).getEventReadUpTo(bob.getUserId());
        const { event_id: eventId } = await say(alice, "read in secret");
        await until("it is unread", () => room(bob).getUnreadNotificationCount(NotificationCountType.Total) > 0);
        await bob.sendReadReceipt(await received(bob, world.openRoom, eventId), ReceiptType.ReadPrivate);
        await until("it is read", () => room(bob).getUnreadNotificationCount(NotificationCountType.Total) === 0);
        // What bob says next reaches alice after whatever the receipt would have sent.
        const { event_id: marker } = await bob.sendEvent(world.openRoom, "org.guildhall.test", {});
        await received(alice, world.openRoom, marker);
        assert.notEqual(room(alice).getEventReadUpTo(bob.getUserId(), true), eventId);
        assert.ok(before);
    });

    await suite.check("the read marker follows the user", async () => {
        const { event_id: eventId } = await say(alice, "up to here");
        await received(bob, world.openRoom, eventId);
        await bob.setRoomReadMarkers(world.openRoom, eventId);
        await until("bob's marker is there", () =>
            room(bob).getAccountData(EventType.FullyRead)?.getContent().event_id === eventId);
    });

    await suite.check("typing is shown, and stops", async () => {
        const typing = () => room(alice).getMember(bob.getUserId())?.typing;
        await bob.sendTyping(made("the room", world.openRoom), true, 20_000);
        await until("alice sees bob typing", () => typing() === true);
        await bob.sendTyping(world.openRoom, false, 0);
        await until("alice sees bob stop", () => typing() === false);
    });

    await suite.check("history is paged back to the room's creation, with no gap and nothing twice", async () => {
        const sent = [];
        for (let number = 0; number < HISTORY_LENGTH; number += 1) {
            sent.push((await say(alice, `history ${number}`)).event_id);
        }
        const found = [];
        let from = null;
        do {
            const page = await bob.createMessagesRequest(world.openRoom, from, HISTORY_PAGE, Direction.Backward);
            found.push(...page.chunk);
            from = page.end;
        } while (from);
        assert.equal(new Set(found.map((event) => event.event_id)).size, found.length);
        assert.deepEqual(found.slice(0, HISTORY_LENGTH).map((event) => event.event_id), sent.toReversed());
        assert.equal(found.at(-1).type, EventType.RoomCreate);
    });

    await suite.check("an old event is opened in its context, and found by its time", async () => {
        const target = made("the first message", root);
        const timeline = await bob.getEventTimeline(room(bob).getUnfilteredTimelineSet(), target);
        assert.ok(timeline.getEvents().some((event) => event.getId() === target));
        const { origin_server_ts: sentAt } = await bob.fetchRoomEvent(world.openRoom, target);
        const nearest = await bob.timestampToEvent(world.openRoom, sentAt, Direction.Forward);
        assert.equal(nearest.event_id, target);
    });

    await suite.check("search finds a message by a word, with its context", async () => {
        const word = `needle${RUN}`;
        const { event_id: eventId } = await say(alice, `a ${word} in the hay`);
        await received(bob, world.openRoom, eventId);
        const found = await until("the message is found", async () => {
            const results = await bob.searchRoomEvents({ term: word });
            return results.count > 0 ? results : undefined;
        });
        assert.deepEqual(found.results.map((result) => result.context.getEvent().getId()), [eventId]);
        assert.ok(found.highlights.includes(word));
    });
}
