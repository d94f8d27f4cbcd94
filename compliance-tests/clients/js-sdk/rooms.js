// Rooms as things to find, enter, govern and leave: directory, spaces, knocking, power, tags, upgrade, forgetting.

import assert from "node:assert/strict";

import { EventType, JoinRule, Preset, RoomCreateTypeField, RoomType, Visibility } from "matrix-js-sdk";

import { made, rejection, until } from "../lib/check.js";
import { inRoom, received, RUN } from "./session.js";

/** Uses `world.alice`, `world.bob` and `world.openRoom`; makes rooms of its own. */
export async function roomChecks(suite, world) {
    const { alice, bob } = world;
    const serverName = alice.getDomain();

    await suite.check("a published room is found in the directory, by its alias and by its summary", async () => {
        const localpart = `market_${RUN}`;
        const alias = `#${localpart}:${serverName}`;
        const { room_id: roomId } = await alice.createRoom({
            name: `Market ${RUN}`,
            preset: Preset.PublicChat,
            visibility: Visibility.Public,
            room_alias_name: localpart,
        });
        const listed = await until("the directory has it", async () => {
            const { chunk } = await bob.publicRooms({ limit: 5, filter: { generic_search_term: `Market ${RUN}` } });
            return chunk.find((room) => room.room_id === roomId);
        });
        assert.equal(listed.canonical_alias, alias);
        assert.equal(listed.num_joined_members, 1);
        assert.equal((await bob.getRoomIdForAlias(alias)).room_id, roomId);
        const summary = await bob.getRoomSummary(alias);
        assert.equal(summary.room_id, roomId);
        assert.equal(summary.name, `Market ${RUN}`);
        assert.equal(summary.membership, "leave");
        await bob.joinRoom(alias);
        await inRoom(bob, roomId);
        await alice.setRoomDirectoryVisibility(roomId, Visibility.Private);
        const { chunk } = await bob.publicRooms({ filter: { generic_search_term: `Market ${RUN}` } });
        assert.equal(chunk.length, 0);
    });

    await suite.check("a space shows its rooms, and a restricted room lets the space's members in", async () => {
        const { room_id: spaceId } = await alice.createRoom({
            name: `Space ${RUN}`,
            preset: Preset.PublicChat,
            creation_content: { [RoomCreateTypeField]: RoomType.Space },
        });
        const { room_id: roomId } = await alice.createRoom({
            name: `Inside ${RUN}`,
            preset: Preset.PrivateChat,
            initial_state: [
                {
                    type: EventType.RoomJoinRules,
                    state_key: "",
                    content: {
                        join_rule: JoinRule.Restricted,
                        allow: [{ type: "m.room_membership", room_id: spaceId }],
                    },
                },
            ],
        });
        await alice.sendStateEvent(spaceId, EventType.SpaceChild, { via: [serverName] }, roomId);
        assert.equal((await rejection("joining from outside", () => bob.joinRoom(roomId))).errcode, "M_FORBIDDEN");
        await bob.joinRoom(spaceId);
        const { rooms } = await bob.getRoomHierarchy(spaceId, 10);
        assert.deepEqual(rooms.map((room) => room.room_id), [spaceId, roomId]);
        assert.equal(rooms[0].room_type, RoomType.Space);
        assert.deepEqual(rooms[0].children_state.map((event) => event.state_key), [roomId]);
        assert.equal((await inRoom(bob, spaceId)).isSpaceRoom(), true);
        await bob.joinRoom(roomId);
        await inRoom(bob, roomId);
    });

    await suite.check("a knock is seen and answered by an invitation", async () => {
        const { room_id: roomId } = await alice.createRoom({
            name: `Door ${RUN}`,
            preset: Preset.PrivateChat,
            initial_state: [{ type: EventType.RoomJoinRules, state_key: "", content: { join_rule: JoinRule.Knock } }],
        });
        await bob.knockRoom(roomId, { reason: "it rains" });
        assert.equal((await inRoom(bob, roomId, "knock")).name, `Door ${RUN}`);
        const knock = await until("alice sees the knock", () => {
            const member = alice.getRoom(roomId)?.getMember(bob.getUserId());
            return member?.membership === "knock" ? member : undefined;
        });
        assert.equal(knock.events.member.getContent().reason, "it rains");
        await alice.invite(roomId, bob.getUserId());
        await inRoom(bob, roomId, "invite");
        await bob.joinRoom(roomId);
        await inRoom(bob, roomId);
    });

    await suite.check("power levels rule: refused without, allowed with; then kicked, banned, unbanned", async () => {
        const { room_id: roomId } = await alice.createRoom({ preset: Preset.PublicChat });
        await bob.joinRoom(roomId);
        const refused = await rejection("naming the room", () => bob.setRoomName(roomId, "bob's"));
        assert.equal(refused.errcode, "M_FORBIDDEN");
        await inRoom(alice, roomId);
        await alice.setPowerLevel(roomId, bob.getUserId(), 50);
        await bob.setRoomName(roomId, "bob's");
        await until("alice sees the name", () => alice.getRoom(roomId).name === "bob's");
        await alice.kick(roomId, bob.getUserId(), "enough");
        const out = await inRoom(bob, roomId, "leave");
        assert.equal(out.getMember(bob.getUserId()).events.member.getContent().reason, "enough");
        await alice.ban(roomId, bob.getUserId());
        assert.equal((await rejection("joining when banned", () => bob.joinRoom(roomId))).httpStatus, 403);
        await alice.unban(roomId, bob.getUserId());
        await bob.joinRoom(roomId);
        await inRoom(bob, roomId);
    });

    await suite.check("a room tag and room account data follow the user by sync", async () => {
        const roomId = made("the room", world.openRoom);
        const room = bob.getRoom(roomId);
        await bob.setRoomTag(roomId, "m.favourite", { order: 0.5 });
        await until("the tag is there", () => room.tags["m.favourite"]?.order === 0.5);
        await bob.setRoomAccountData(roomId, "org.guildhall.test", { run: RUN });
        await until("the data is there", () => room.getAccountData("org.guildhall.test")?.getContent().run === RUN);
        await bob.deleteRoomTag(roomId, "m.favourite");
        await until("the tag is gone", () => room.tags["m.favourite"] === undefined);
    });

    await suite.check("an upgraded room points to its successor, which the user joins", async () => {
        const { room_id: oldId } = await alice.createRoom({ name: `Old ${RUN}`, preset: Preset.PublicChat, room_version: "10" });
        await bob.joinRoom(oldId);
        const { replacement_room: newId } = await alice.upgradeRoom(oldId, "11");
        const tombstone = await until("bob sees the tombstone", () =>
            bob.getRoom(oldId)?.currentState.getStateEvents(EventType.RoomTombstone, ""));
        assert.equal(tombstone.getContent().replacement_room, newId);
        await bob.joinRoom(newId);
        const room = await inRoom(bob, newId);
        assert.equal(room.getVersion(), "11");
        assert.equal(room.name, `Old ${RUN}`);
        assert.equal(room.findPredecessor().roomId, oldId);
        assert.equal((await rejection("speaking in the old room", () => bob.sendTextMessage(oldId, "hello?"))).errcode, "M_FORBIDDEN");
    });

    await suite.check("a room left is seen to be left, and once forgotten its history is closed", async () => {
        const { room_id: roomId } = await alice.createRoom({ preset: Preset.PublicChat });
        await bob.joinRoom(roomId);
        await inRoom(bob, roomId);
        const { event_id: before } = await alice.sendTextMessage(roomId, "while bob is here");
        await received(bob, roomId, before);
        assert.equal((await rejection("forgetting while joined", () => bob.forget(roomId, false))).httpStatus, 400);
        await bob.leave(roomId);
        await inRoom(bob, roomId, "leave");
        await until("alice sees bob leave", () => alice.getRoom(roomId).getMember(bob.getUserId())?.membership === "leave");
        assert.equal((await bob.getJoinedRooms()).joined_rooms.includes(roomId), false);
        const { event_id: after } = await alice.sendTextMessage(roomId, "bob is gone");
        const history = await bob.createMessagesRequest(roomId, null, 20, "b");
        const ids = history.chunk.map((event) => event.event_id);
        assert.equal(ids.includes(before), true);
        assert.equal(ids.includes(after), false);
        await bob.forget(roomId);
        assert.equal(bob.getRoom(roomId), null);
        const closed = await rejection("the forgotten history", () => bob.createMessagesRequest(roomId, null, 20, "b"));
        assert.equal(closed.errcode, "M_FORBIDDEN");
    });

    await suite.check("an invitation is declined", async () => {
        const { room_id: roomId } = await alice.createRoom({ preset: Preset.PrivateChat, invite: [bob.getUserId()] });
        await inRoom(bob, roomId, "invite");
        await bob.leave(roomId);
        await inRoom(bob, roomId, "leave");
        await until("alice sees it declined", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "leave");
    });

    await suite.check("a delayed event waits, is restarted, cancelled, sent at once, and sent by time", async () => {
        const { room_id: roomId } = await alice.createRoom({ preset: Preset.PublicChat });
        await bob.joinRoom(roomId);
        await inRoom(bob, roomId);
        await inRoom(alice, roomId);
        const type = "org.guildhall.test.delayed";
        const delayed = (delay, stateKey) =>
            alice._unstable_sendDelayedStateEvent(roomId, { delay }, type, { run: RUN }, stateKey);
        const state = (stateKey) => bob.getRoom(roomId).currentState.getStateEvents(type, stateKey);

        const { delay_id: cancelled } = await delayed(60_000, "cancelled");
        const { delay_id: restarted } = await delayed(60_000, "restarted");
        const { delay_id: sent } = await delayed(60_000, "sent");
        await alice._unstable_restartScheduledDelayedEvent(restarted);
        await alice._unstable_cancelScheduledDelayedEvent(cancelled);
        await alice._unstable_sendScheduledDelayedEvent(sent);
        await until("the one sent at once is there", () => state("sent")?.getContent().run === RUN);
        await delayed(200, "timed");
        await until("the one sent by time is there", () => state("timed")?.getContent().run === RUN);
        assert.equal(state("cancelled"), null);
        assert.equal(state("restarted"), null);
        const again = await rejection("sending a cancelled one", () => alice._unstable_sendScheduledDelayedEvent(cancelled));
        assert.ok([404, 409].includes(again.httpStatus), `the status is ${again.httpStatus}`);
        await alice._unstable_cancelScheduledDelayedEvent(restarted);
    });
}
