"""Rooms of one server that users of another are in: how they get in and out, and what is said and done there."""

import time

from client import equal, quote, refused, sees, shared, until

VERSIONS = ["6", "7", "8", "9", "10", "11", "12"]


def messages(one, other):
    for version in VERSIONS:
        room = shared(one, other, room_version=version)
        sees(other, room, one.say(room, f"from its maker, version {version}"))
        sees(one, room, other.say(room, f"from who joined, version {version}"))


def alias(one, other):
    name = f"room-{time.monotonic_ns()}"
    room = one.create(preset="public_chat", room_alias_name=name)
    assert other.join(f"#{name}:{one.server.address}") == room
    sees(one, room, other.say(room, "by alias"))


def invite(one, other):
    room = one.create(preset="private_chat", name="Tea")
    refused(403, lambda: other.join(room, one))
    one.act(room, "invite", user_id=other.id)
    rooms = until("the invite", lambda: other.sync()["rooms"]["invite"].get(room))
    names = [e["content"].get("name") for e in rooms["invite_state"]["events"] if e["type"] == "m.room.name"]
    assert names == ["Tea"], names
    other.join(room)
    sees(one, room, other.say(room, "thanks"))
    sees(other, room, one.say(room, "welcome"))


def reject(one, other):
    room = one.create(preset="private_chat")
    one.act(room, "invite", user_id=other.id)
    until("the invite", lambda: other.sync()["rooms"]["invite"].get(room))
    other.act(room, "leave")
    until("the refusal", lambda: one.membership(room, other) == "leave")


def rescind(one, other):
    room = one.create(preset="private_chat")
    one.act(room, "invite", user_id=other.id)
    until("the invite", lambda: other.sync().get("rooms", {}).get("invite", {}).get(room))
    one.act(room, "kick", user_id=other.id)
    until("the end of the invite", lambda: room not in other.sync().get("rooms", {}).get("invite", {}))


def leave_and_return(one, other):
    room = shared(one, other)
    other.act(room, "leave")
    until("the leave", lambda: one.membership(room, other) == "leave")
    one.say(room, "while away")
    other.join(room, one)
    until("the return", lambda: one.membership(room, other) == "join")
    equal("what was said meanwhile", ["while away"], lambda: other.said(room, "while away"))
    sees(other, room, one.say(room, "back"))
    sees(one, room, other.say(room, "here"))


def moderation(one, other):
    room = shared(one, other)
    said = other.say(room, "regrettable")
    sees(one, room, said)
    one.redact(room, said)
    until("the redaction", lambda: "body" not in other.event(room, said)["content"])
    one.act(room, "kick", user_id=other.id)
    until("the kick", lambda: other.membership(room, other) in ("leave", None))
    refused(403, lambda: other.say(room, "still here?"))
    one.act(room, "ban", user_id=other.id)
    refused(403, lambda: other.join(room, one))
    one.act(room, "unban", user_id=other.id)
    other.join(room, one)
    sees(one, room, other.say(room, "forgiven"))


def power(one, other):
    """Who is given power by the maker has it on both sides, and who has none is held back by the own server."""
    room = shared(one, other)
    said = one.say(room, "to be redacted by a moderator")
    sees(other, room, said)
    refused(403, lambda: other.set_state(room, "m.room.topic", {"topic": "mine"}))
    levels = one.state(room, "m.room.power_levels")
    levels["users"][other.id] = 50
    one.set_state(room, "m.room.power_levels", levels)
    until("the power", lambda: other.state(room, "m.room.power_levels")["users"].get(other.id) == 50)
    other.set_state(room, "m.room.topic", {"topic": "ours"})
    equal("the topic", {"topic": "ours"}, lambda: {"topic": one.state(room, "m.room.topic")["topic"]})
    other.redact(room, said)
    until("the redaction", lambda: "body" not in one.event(room, said)["content"])


def relations(one, other):
    room = shared(one, other)
    said = one.say(room, "first")
    sees(other, room, said)
    edit = {"m.new_content": {"msgtype": "m.text", "body": "second"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": said}}
    sees(other, room, one.say(room, "* second", **edit))
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": "tea"}}
    sees(one, room, other.send(room, "m.reaction", reaction))
    answer = other.say(room, "in a thread", **{"m.relates_to": {"rel_type": "m.thread", "event_id": said}})
    sees(one, room, answer)
    thread = lambda: one.event(room, said)["unsigned"].get("m.relations", {}).get("m.thread", {}).get("count")
    until("the thread", lambda: thread() == 1)


def restricted(one, other):
    club = one.create(preset="public_chat", creation_content={"type": "m.space"})
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    room = one.create(initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}])
    refused(403, lambda: other.join(room, one))
    other.join(club, one)
    until("the club", lambda: one.membership(club, other) == "join")
    other.join(room, one)
    sees(one, room, other.say(room, "let in"))


def space(one, other):
    """The rooms of a space on the other server, seen from outside, with the one that only members may enter."""
    club = one.create(preset="public_chat", name="Club", creation_content={"type": "m.space"})
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    hidden = one.create(name="Back room", initial_state=[
        {"type": "m.room.join_rules", "state_key": "", "content": rule}])
    hall = one.create(preset="public_chat", name="Hall")
    for room in (hall, hidden):
        one.set_state(club, "m.space.child", {"via": [one.server.address]}, room)

    def names():
        page = other.call("GET", f"/v1/rooms/{quote(club)}/hierarchy")
        return sorted(room.get("name", "") for room in page["rooms"])

    other.join(club, one)
    equal("the rooms", ["Back room", "Club", "Hall"], names)


def knock(one, other):
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = one.create(initial_state=[rule])
    via = quote(one.server.address)

    def knocks():
        other.call("POST", f"/v3/knock/{quote(room)}?server_name={via}&via={via}", {})
        until("the knock", lambda: one.membership(room, other) == "knock")

    knocks()
    # Synapse does not send this to the server of who has knocked: it learns of it by knocking again.
    one.act(room, "kick", user_id=other.id)
    assert one.membership(room, other) == "leave"
    knocks()
    one.act(room, "invite", user_id=other.id)
    until("the answer", lambda: other.sync()["rooms"].get("invite", {}).get(room))
    other.join(room)
    sees(one, room, other.say(room, "who's there"))


def history(one, other):
    room = one.create(preset="public_chat")
    said = [one.say(room, f"before {number}") for number in range(30)]
    # Backfilled or asked for by its time: the other server has neither.
    middle = one.event(room, said[15])["origin_server_ts"]
    other.join(room, one)
    at = f"/v1/rooms/{quote(room)}/timestamp_to_event?dir=f&ts={middle}"
    found = other.call("GET", at)["event_id"]
    assert found in said[14:17], f"{found} is not near the middle of {said}"
    equal("what was said before", [f"before {number}" for number in range(30)], lambda: other.said(room, "before"))


def joined_history(one, other):
    rule = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    room = one.create(preset="public_chat", initial_state=[rule])
    secret = one.say(room, "secret")
    other.join(room, one)
    sees(other, room, one.say(room, "open"))
    assert other.said(room, "secret") == []
    refused(404, lambda: other.event(room, secret))


def acl(one, other):
    room = shared(one, other)
    one.set_state(room, "m.room.server_acl", {"allow": ["*"], "deny": [other.server.address.split(":")[0]]})
    until("the list", lambda: other.state(room, "m.room.server_acl"))
    said = other.say(room, "unheard")
    sees(other, room, said)
    time.sleep(1)
    refused(404, lambda: one.event(room, said))


def directory(one, other):
    name = f"listed {time.monotonic_ns()}"
    room = one.create(preset="public_chat", visibility="public", name=name)
    body = {"filter": {"generic_search_term": name}}
    page = other.call("POST", f"/v3/publicRooms?server={quote(one.server.address)}", body)
    assert [entry["room_id"] for entry in page["chunk"]] == [room], page


def upgrade(one, other):
    """Who is on the other server follows the tombstone, twice."""
    name = f"upgraded-{time.monotonic_ns()}"
    room = shared(one, other, room_version="10", room_alias_name=name, name="Lasting")
    for version in ("11", "12"):
        last = one.say(room, "in the old room")
        sees(other, room, last)
        new = one.call("POST", f"/v3/rooms/{quote(room)}/upgrade", {"new_version": version})["replacement_room"]
        equal("the tombstone", new, lambda: other.state(room, "m.room.tombstone")["replacement_room"])
        until("the silence", lambda: one.state(room, "m.room.power_levels")["events_default"] > 0)
        until("the silence", lambda: other.state(room, "m.room.power_levels")["events_default"] > 0)
        refused(403, lambda: other.say(room, "too late"))
        other.join(new, one)
        create = other.state(new, "m.room.create")
        assert create["room_version"] == version, create
        assert create["predecessor"]["room_id"] == room, create
        assert other.state(new, "m.room.name")["name"] == "Lasting"
        found = other.call("GET", f"/v3/directory/room/{quote(f'#{name}:{one.server.address}')}")
        assert found["room_id"] == new, found
        sees(one, new, other.say(new, f"followed to version {version}"))
        sees(other, new, one.say(new, f"welcome to version {version}"))
        room = new


def creators(one, other):
    """In version 12 nobody takes power from who made the room, also not a creator on the other server."""
    room = one.create(preset="public_chat", room_version="12", creation_content={"additional_creators": [other.id]})
    assert ":" not in room, room
    other.join(room, one)
    other.set_state(room, "m.room.name", {"name": "as a creator"})
    until("the name", lambda: one.state(room, "m.room.name")["name"] == "as a creator")
    refused(403, lambda: other.act(room, "kick", user_id=one.id))
    levels = other.state(room, "m.room.power_levels")
    levels["users"] = {one.id: 100}
    refused(400, lambda: other.set_state(room, "m.room.power_levels", levels))


FLOWS = [messages, alias, invite, reject, rescind, leave_and_return, moderation, power, relations, restricted, space,
         knock, history, joined_history, acl, directory, upgrade, creators]
