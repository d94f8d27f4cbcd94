"""matrix-nio 0.26 with encryption against a homeserver: `python run.py BASE_URL`.

Two accounts, each with a running `sync_forever`, as bots have. Prints one line a check and `nio: N passed, N failed`.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import nio
from check import Suite, equal, expect, made, until
from png import png

PASSWORD = "correct horse battery staple 7!"
RUN = f"{time.time_ns() // 1_000_000:x}"


class Bot(nio.AsyncClient):
    """An nio client that keeps what its sync loop brings."""

    def __init__(self, base_url: str, name: str, store: Path) -> None:
        store.mkdir()
        config = nio.AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True, max_timeouts=1, max_limit_exceeded=5)
        super().__init__(base_url, name, store_path=str(store), config=config)
        self.texts: dict[str, nio.RoomMessageText] = {}
        self.typing: list[list[str]] = []
        self.receipts: list[nio.Receipt] = []
        self.to_device_events: list[nio.UnknownToDeviceEvent] = []
        self.presence_events: list[nio.PresenceEvent] = []
        self.fully_read: str | None = None
        self.left_rooms: set[str] = set()
        self.syncs = 0
        self.loop_task: asyncio.Task | None = None
        self.add_event_callback(self._on_text, nio.RoomMessageText)
        self.add_ephemeral_callback(self._on_typing, nio.TypingNoticeEvent)
        self.add_ephemeral_callback(self._on_receipts, nio.ReceiptEvent)
        self.add_to_device_callback(self._on_to_device_event, nio.UnknownToDeviceEvent)
        self.add_presence_callback(self._on_presence_event, nio.PresenceEvent)
        self.add_room_account_data_callback(self._on_fully_read, nio.FullyReadEvent)
        self.add_response_callback(self._on_synced, nio.SyncResponse)

    async def _on_text(self, _room: nio.MatrixRoom, event: nio.RoomMessageText) -> None:
        self.texts[event.event_id] = event

    async def _on_typing(self, _room: nio.MatrixRoom, event: nio.TypingNoticeEvent) -> None:
        self.typing.append(event.users)

    async def _on_receipts(self, _room: nio.MatrixRoom, event: nio.ReceiptEvent) -> None:
        self.receipts.extend(event.receipts)

    async def _on_to_device_event(self, event: nio.UnknownToDeviceEvent) -> None:
        self.to_device_events.append(event)

    async def _on_presence_event(self, event: nio.PresenceEvent) -> None:
        self.presence_events.append(event)

    async def _on_fully_read(self, _room: nio.MatrixRoom, event: nio.FullyReadEvent) -> None:
        self.fully_read = event.event_id

    async def _on_synced(self, response: nio.SyncResponse) -> None:
        self.syncs += 1
        self.left_rooms.update(response.rooms.leave)

    def start_loop(self) -> None:
        """Starts `sync_forever` in the background."""
        self.loop_task = asyncio.create_task(self.sync_forever(timeout=10_000, full_state=True, set_presence="online"))

    async def stop_loop(self) -> None:
        """Asks `sync_forever` to return, and waits until it has: a message to itself ends the long poll it is in."""
        if self.loop_task is not None:
            self.stop_sync_forever()
            await self.to_device(nio.ToDeviceMessage("org.guildhall.wake", self.user_id, self.device_id, {}))
            await self.loop_task
            self.loop_task = None

    async def say(self, room_id: str, body: str) -> str:
        """Sends a text and returns its event ID."""
        content = {"msgtype": "m.text", "body": body}
        answer = await self.room_send(room_id, "m.room.message", content, ignore_unverified_devices=True)
        return expect(nio.RoomSendResponse, answer).event_id

    async def heard(self, event_id: str) -> nio.RoomMessageText:
        """The text `event_id`, once the sync loop has brought it."""
        return await until(f"{self.user_id} has {event_id}", lambda: self.texts.get(event_id))


async def session_checks(suite: Suite, alice: Bot, bob: Bot) -> bool:
    """Registration, login, and the sync loop's start."""

    async def registers() -> None:
        for bot in (alice, bob):
            answer = expect(nio.RegisterResponse, await bot.register(bot.user, PASSWORD, "nio test"))
            assert answer.user_id.startswith(f"@{bot.user}:"), answer.user_id
            equal(expect(nio.WhoamiResponse, await bot.whoami()).device_id, answer.device_id)

    async def logs_in() -> None:
        flows = expect(nio.LoginInfoResponse, await alice.login_info()).flows
        assert "m.login.password" in flows, flows
        phone = nio.AsyncClient(alice.homeserver, alice.user_id)
        try:
            wrong = expect(nio.LoginError, await phone.login("not the password"))
            equal(wrong.status_code, "M_FORBIDDEN")
            expect(nio.LoginResponse, await phone.login(PASSWORD, device_name="nio again"))
            devices = expect(nio.DevicesResponse, await alice.devices()).devices
            names = {device.id: device.display_name for device in devices}
            equal(names, {alice.device_id: "nio test", phone.device_id: "nio again"})
            expect(nio.LogoutResponse, await phone.logout())
        finally:
            await phone.close()

    async def syncs() -> None:
        for bot in (alice, bob):
            bot.start_loop()
        for bot in (alice, bob):
            await until(f"{bot.user_id} has synced and published its keys", lambda bot=bot: bot.syncs and not bot.should_upload_keys)

    ready = await suite.check("two users register by the dummy stage", registers)
    await suite.check("a wrong password is refused, the right one makes a second device", logs_in)
    return await suite.check("both sync loops run and publish device keys", syncs) and ready


async def room_checks(suite: Suite, alice: Bot, bob: Bot, world: SimpleNamespace) -> None:
    """A room: membership, messages, state, history, typing, receipts."""

    async def makes_and_joins() -> None:
        answer = await alice.room_create(
            name=f"Nio {RUN}", topic="bots", alias=f"nio_{RUN}", preset=nio.RoomPreset.public_chat
        )
        world.room = room_id = expect(nio.RoomCreateResponse, answer).room_id
        expect(nio.RoomInviteResponse, await alice.room_invite(room_id, bob.user_id))
        invited = await until("bob is invited", lambda: bob.invited_rooms.get(room_id))
        equal(invited.inviter, alice.user_id)
        expect(nio.JoinResponse, await bob.join(room_id))
        room = await until("bob is in the room", lambda: bob.rooms.get(room_id))
        await until("the room has its name", lambda: room.display_name == f"Nio {RUN}")
        equal(room.topic, "bots")
        await until("bob sees both members", lambda: set(room.users) == {alice.user_id, bob.user_id})
        alias = f"#nio_{RUN}:{alice.user_id.split(':', 1)[1]}"
        equal(expect(nio.RoomResolveAliasResponse, await bob.room_resolve_alias(alias)).room_id, room_id)
        equal(room.canonical_alias, alias)
        assert room_id not in bob.invited_rooms

    async def talks() -> None:
        room_id = made("the room", world.room)
        for sender, listener, body in ((alice, bob, "hello"), (bob, alice, "hello yourself")):
            event = await listener.heard(await sender.say(room_id, body))
            equal((event.sender, event.body), (sender.user_id, body))

    async def resends() -> None:
        room_id = made("the room", world.room)
        content = {"msgtype": "m.text", "body": "only once"}
        ids = set()
        for _ in range(2):
            answer = await alice.room_send(room_id, "m.room.message", content, tx_id=f"once-{RUN}")
            ids.add(expect(nio.RoomSendResponse, answer).event_id)
        equal(len(ids), 1)

    async def reads_state() -> None:
        room_id = made("the room", world.room)
        name = expect(nio.RoomGetStateEventResponse, await bob.room_get_state_event(room_id, "m.room.name"))
        equal(name.content, {"name": f"Nio {RUN}"})
        missing = expect(nio.RoomGetStateEventError, await bob.room_get_state_event(room_id, "m.room.avatar"))
        equal(missing.status_code, "M_NOT_FOUND")
        refused = expect(nio.RoomPutStateError, await bob.room_put_state(room_id, "m.room.name", {"name": "Bob's"}))
        equal(refused.status_code, "M_FORBIDDEN")
        expect(nio.RoomPutStateResponse, await alice.room_put_state(room_id, "m.room.topic", {"topic": "still bots"}))
        await until("bob sees the topic", lambda: bob.rooms[room_id].topic == "still bots")
        events = expect(nio.RoomGetStateResponse, await bob.room_get_state(room_id)).events
        kinds = {event["type"] for event in events}
        wanted = {"m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.name", "m.room.topic"}
        assert wanted <= kinds, kinds
        equal(len([event for event in events if event["type"] == "m.room.member"]), 2)

    async def lists_members() -> None:
        room_id = made("the room", world.room)
        members = expect(nio.JoinedMembersResponse, await bob.joined_members(room_id)).members
        equal({member.user_id for member in members}, {alice.user_id, bob.user_id})
        assert room_id in expect(nio.JoinedRoomsResponse, await bob.joined_rooms()).rooms

    async def reads_history() -> None:
        room_id = made("the room", world.room)
        sent = [await alice.say(room_id, f"history {number}") for number in range(25)]
        await bob.heard(sent[-1])
        found: list[str] = []
        token: str | None = ""
        while token is not None:
            page = expect(nio.RoomMessagesResponse, await bob.room_messages(room_id, token, limit=10))
            found.extend(event.event_id for event in page.chunk)
            token = page.end
        equal(found[:25], sent[::-1])
        equal(len(set(found)), len(found))
        context = expect(nio.RoomContextResponse, await bob.room_context(room_id, sent[12], limit=4))
        equal(context.event.event_id, sent[12])
        equal([event.event_id for event in context.events_before], [sent[11], sent[10]])
        equal([event.event_id for event in context.events_after], [sent[13], sent[14]])

    async def redacts() -> None:
        room_id = made("the room", world.room)
        event_id = await alice.say(room_id, "regretted")
        await bob.heard(event_id)
        expect(nio.RoomRedactResponse, await alice.room_redact(room_id, event_id, "second thoughts"))
        event = expect(nio.RoomGetEventResponse, await bob.room_get_event(room_id, event_id)).event
        assert isinstance(event, nio.RedactedEvent), event
        equal((event.redacter, event.reason), (alice.user_id, "second thoughts"))

    async def types() -> None:
        room_id = made("the room", world.room)
        expect(nio.RoomTypingResponse, await bob.room_typing(room_id, True, 20_000))
        await until("alice sees bob typing", lambda: [bob.user_id] in alice.typing)
        expect(nio.RoomTypingResponse, await bob.room_typing(room_id, False))
        await until("alice sees bob stop", lambda: alice.typing and alice.typing[-1] == [])

    async def reads() -> None:
        room_id = made("the room", world.room)
        event_id = await alice.say(room_id, "read this")
        await bob.heard(event_id)
        await until("it is unread", lambda: bob.rooms[room_id].unread_notifications > 0)
        expect(nio.UpdateReceiptMarkerResponse, await bob.update_receipt_marker(room_id, event_id))
        receipt = await until(
            "alice sees the receipt", lambda: next((one for one in alice.receipts if one.event_id == event_id), None)
        )
        equal((receipt.user_id, receipt.receipt_type, receipt.thread_id), (bob.user_id, "m.read", "main"))
        await until("nothing is unread", lambda: bob.rooms[room_id].unread_notifications == 0)
        expect(nio.RoomReadMarkersResponse, await bob.room_read_markers(room_id, event_id, event_id))
        await until("bob's read marker is there", lambda: bob.fully_read == event_id)

    await suite.check("a room is made, the invited one joins it, and sees name, topic, alias and members", makes_and_joins)
    await suite.check("texts reach the other's sync loop, both ways", talks)
    await suite.check("a transaction ID used twice sends once", resends)
    await suite.check("state is read with and without a key, and written only with power", reads_state)
    await suite.check("joined members and joined rooms are listed", lists_members)
    await suite.check("history is paged back without gap or repetition, and opened in its context", reads_history)
    await suite.check("a redacted event says by whom and why", redacts)
    await suite.check("typing is shown, and stops", types)
    await suite.check("a receipt clears the count and is seen; the read marker follows", reads)


async def encryption_checks(suite: Suite, alice: Bot, bob: Bot, world: SimpleNamespace) -> None:
    """Megolm both ways, and to-device messages."""

    async def encrypts() -> None:
        state = [nio.EnableEncryptionBuilder().as_dict()]
        answer = await alice.room_create(name=f"Nio secrets {RUN}", invite=[bob.user_id], initial_state=state)
        room_id = expect(nio.RoomCreateResponse, answer).room_id
        expect(nio.JoinResponse, await bob.join(room_id))
        for bot in (alice, bob):
            await until("both are in the encrypted room", lambda bot=bot: room_id in bot.rooms and bot.rooms[room_id].encrypted and len(bot.rooms[room_id].users) == 2)
        for sender, listener, body in ((alice, bob, "over the hill"), (bob, alice, "and far away")):
            event = await listener.heard(await sender.say(room_id, body))
            equal((event.body, event.decrypted, event.sender), (body, True, sender.user_id))

    async def to_device() -> None:
        message = nio.ToDeviceMessage("org.guildhall.test", bob.user_id, bob.device_id, {"run": RUN})
        expect(nio.ToDeviceResponse, await alice.to_device(message, tx_id=f"device-{RUN}"))
        expect(nio.ToDeviceResponse, await alice.to_device(message, tx_id=f"device-{RUN}"))
        marker = nio.ToDeviceMessage("org.guildhall.test", bob.user_id, bob.device_id, {"run": "last"})
        expect(nio.ToDeviceResponse, await alice.to_device(marker))
        await until("the last one is there", lambda: any(event.source["content"] == {"run": "last"} for event in bob.to_device_events))
        equal([event.source["content"] for event in bob.to_device_events], [{"run": RUN}, {"run": "last"}])
        equal({event.sender for event in bob.to_device_events}, {alice.user_id})

    await suite.check("encrypted texts are decrypted, both ways", encrypts)
    await suite.check("a to-device message arrives once and in order", to_device)


async def media_checks(suite: Suite, alice: Bot, bob: Bot, world: SimpleNamespace) -> None:
    """Upload, download, thumbnail, limits."""

    async def uploads() -> None:
        # Larger than the sizes that servers scale small requests to: a picture that fits is served as it is.
        world.picture = png(900, 600, time.time_ns())
        answer, keys = await alice.upload(
            lambda _throttled, _timeouts: io.BytesIO(world.picture), "image/png", "picture.png", filesize=len(world.picture)
        )
        equal(keys, None)
        world.mxc = expect(nio.UploadResponse, answer).content_uri
        assert world.mxc.startswith(f"mxc://{alice.user_id.split(':', 1)[1]}/"), world.mxc
        config = expect(nio.ContentRepositoryConfigResponse, await alice.content_repository_config())
        assert config.upload_size > len(world.picture), config

    async def downloads() -> None:
        answer = expect(nio.MemoryDownloadResponse, await bob.download(made("an upload", world.mxc)))
        equal((answer.body, answer.content_type, answer.filename), (world.picture, "image/png", "picture.png"))
        server, media_id = world.mxc.removeprefix("mxc://").split("/")
        missing = expect(nio.DownloadError, await bob.download(f"mxc://{server}/{media_id}x"))
        equal(missing.status_code, "M_NOT_FOUND")

    async def thumbnails() -> None:
        server, media_id = made("an upload", world.mxc).removeprefix("mxc://").split("/")
        for method in (nio.ResizingMethod.scale, nio.ResizingMethod.crop):
            answer = expect(nio.ThumbnailResponse, await bob.thumbnail(server, media_id, 64, 64, method))
            assert answer.content_type in {"image/png", "image/jpeg", "image/webp"}, answer.content_type
            assert 0 < len(answer.body) and answer.body != world.picture

    async def encrypted_file() -> None:
        answer, keys = await alice.upload(
            lambda _throttled, _timeouts: io.BytesIO(world.picture),
            "application/octet-stream",
            encrypt=True,
            filesize=len(world.picture),
        )
        mxc = expect(nio.UploadResponse, answer).content_uri
        body = expect(nio.MemoryDownloadResponse, await bob.download(mxc)).body
        assert body != world.picture, "the server holds the encrypted file"
        clear = nio.crypto.attachments.decrypt_attachment(body, keys["key"]["k"], keys["hashes"]["sha256"], keys["iv"])
        equal(clear, world.picture)

    await suite.check("a picture is uploaded", uploads)
    await suite.check("it is downloaded with its type and name; an unknown one is not found", downloads)
    await suite.check("it is scaled and cropped to thumbnails", thumbnails)
    await suite.check("an encrypted file goes up and comes down", encrypted_file)


async def account_checks(suite: Suite, alice: Bot, bob: Bot, world: SimpleNamespace) -> None:
    """Profile, presence, filters, push rules, leaving, stopping, logout."""

    async def profile() -> None:
        room_id = made("the room", world.room)
        expect(nio.ProfileSetDisplayNameResponse, await bob.set_displayname(f"Bot {RUN}"))
        equal(expect(nio.ProfileGetDisplayNameResponse, await alice.get_displayname(bob.user_id)).displayname, f"Bot {RUN}")
        await until("alice sees it in the room", lambda: alice.rooms[room_id].users[bob.user_id].display_name == f"Bot {RUN}")
        mxc = made("an upload", world.mxc)
        expect(nio.ProfileSetAvatarResponse, await bob.set_avatar(mxc))
        answer = expect(nio.ProfileGetResponse, await alice.get_profile(bob.user_id))
        equal((answer.displayname, answer.avatar_url), (f"Bot {RUN}", mxc))

    async def presence() -> None:
        expect(nio.PresenceSetResponse, await bob.set_presence("online", f"busy {RUN}"))
        await until(
            "alice sees it",
            lambda: any(one.user_id == bob.user_id and one.status_msg == f"busy {RUN}" for one in alice.presence_events),
        )
        equal(expect(nio.PresenceGetResponse, await alice.get_presence(bob.user_id)).status_msg, f"busy {RUN}")

    async def filters() -> None:
        room_id = made("the room", world.room)
        answer = expect(nio.UploadFilterResponse, await bob.upload_filter(room={"rooms": [room_id], "timeline": {"limit": 3}}))
        other = nio.AsyncClient(bob.homeserver, bob.user_id)
        other.access_token, other.user_id, other.device_id = bob.access_token, bob.user_id, bob.device_id
        try:
            first = expect(nio.SyncResponse, await other.sync(0, sync_filter=answer.filter_id, full_state=True))
            equal([one for one, room in first.rooms.join.items() if room.timeline.events], [room_id])
            timeline = first.rooms.join[room_id].timeline
            equal((len(timeline.events), timeline.limited), (3, True))
        finally:
            await other.close()

    async def push_rules() -> None:
        room_id = made("the room", world.room)
        word = f"kumquat{RUN}"
        answer = await bob.set_pushrule(
            "global", nio.PushRuleKind.content, word, pattern=word, actions=[nio.PushNotify(), nio.PushSetTweak("highlight")]
        )
        expect(nio.SetPushRuleResponse, answer)
        await bob.heard(await alice.say(room_id, f"a {word}"))
        await until("it is highlighted", lambda: bob.rooms[room_id].unread_highlights == 1)
        expect(nio.DeletePushRuleResponse, await bob.delete_pushrule("global", nio.PushRuleKind.content, word))

    async def leaves() -> None:
        room_id = made("the room", world.room)
        expect(nio.RoomLeaveResponse, await bob.room_leave(room_id))
        await until("bob's loop has it as left", lambda: room_id in bob.left_rooms)
        await until("alice sees him gone", lambda: bob.user_id not in alice.rooms[room_id].users)
        expect(nio.RoomForgetResponse, await bob.room_forget(room_id))
        refused = expect(nio.RoomMessagesError, await bob.room_messages(room_id, ""))
        equal(refused.status_code, "M_FORBIDDEN")

    async def resumes() -> None:
        await bob.stop_loop()
        room_id = expect(nio.RoomCreateResponse, await alice.room_create(invite=[bob.user_id])).room_id
        assert room_id not in bob.invited_rooms
        bob.start_loop()
        await until("what happened meanwhile is there", lambda: bob.invited_rooms.get(room_id))

    async def logs_out() -> None:
        for bot in (alice, bob):
            await bot.stop_loop()
        expect(nio.LogoutResponse, await bob.logout())
        equal(bob.logged_in, False)
        token = alice.access_token
        expect(nio.LogoutResponse, await alice.logout(all_devices=True))
        alice.access_token = token
        equal(expect(nio.WhoamiError, await alice.whoami()).status_code, "M_UNKNOWN_TOKEN")

    await suite.check("a display name and an avatar are set and seen", profile)
    await suite.check("presence with a message is set and seen", presence)
    await suite.check("a stored filter narrows a sync to one room and three events", filters)
    await suite.check("a keyword rule makes a highlight", push_rules)
    await suite.check("a room left comes as left in the loop, and once forgotten is closed", leaves)
    await suite.check("a stopped sync loop goes on where it was", resumes)
    await suite.check("logout of one device and of all ends their tokens", logs_out)


async def main(base_url: str) -> int:
    """Runs every group of checks in order."""
    logging.getLogger("nio").setLevel(logging.CRITICAL)
    suite = Suite("nio")
    world = SimpleNamespace(room=None, mxc=None, picture=None)
    with tempfile.TemporaryDirectory() as folder:
        alice = Bot(base_url, f"nio_alice_{RUN}", Path(folder, "alice"))
        bob = Bot(base_url, f"nio_bob_{RUN}", Path(folder, "bob"))
        try:
            if await session_checks(suite, alice, bob):
                await room_checks(suite, alice, bob, world)
                await encryption_checks(suite, alice, bob, world)
                await media_checks(suite, alice, bob, world)
                await account_checks(suite, alice, bob, world)
        finally:
            for bot in (alice, bob):
                if bot.loop_task is not None:
                    bot.loop_task.cancel()
                await bot.close()
    return suite.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python run.py BASE_URL")
    sys.exit(asyncio.run(main(sys.argv[1])))
