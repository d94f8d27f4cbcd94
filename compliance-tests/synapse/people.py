"""What users of two servers see of each other besides messages: receipts, typing, presence, profiles, media."""

import json

from client import quote, sees, shared, until


def moments(one, other):
    room = shared(one, other)
    said = one.say(room, "read me")
    sees(other, room, said)
    other.act(room, f"receipt/m.read/{quote(said)}")
    typing = f"/v3/rooms/{quote(room)}/typing/{quote(other.id)}"
    other.call("PUT", typing, {"typing": True, "timeout": 20000})

    def ephemeral(kind):
        events = one.sync()["rooms"]["join"][room]["ephemeral"]["events"]
        return [e["content"] for e in events if e["type"] == kind]

    types = lambda: any(other.id in c["user_ids"] for c in ephemeral("m.typing"))
    until("the receipt", lambda: any(other.id in c.get(said, {}).get("m.read", {}) for c in ephemeral("m.receipt")))
    until("typing", types)
    other.call("PUT", typing, {"typing": False})
    until("the end of typing", lambda: not types())
    other.call("PUT", f"/v3/presence/{quote(other.id)}/status", {"presence": "online", "status_msg": "tea"})
    presence = lambda: one.call("GET", f"/v3/presence/{quote(other.id)}/status").get("status_msg")
    until("presence", lambda: presence() == "tea")


def profile(one, other):
    other.call("PUT", f"/v3/profile/{quote(other.id)}/displayname", {"displayname": "Käthe"})
    name = lambda: one.call("GET", f"/v3/profile/{quote(other.id)}").get("displayname")
    until("the profile", lambda: name() == "Käthe")
    room = shared(one, other)
    other.call("PUT", f"/v3/profile/{quote(other.id)}/displayname", {"displayname": "Otto"})
    member = lambda: one.state(room, "m.room.member", other.id).get("displayname")
    until("the name in the room", lambda: member() == "Otto")


def media(one, other):
    answer = one.raw("/_matrix/media/v3/upload", b"some bytes", "POST", "application/octet-stream")
    uri = json.loads(answer)["content_uri"]
    assert other.raw("/_matrix/client/v1/media/download/" + uri.removeprefix("mxc://")) == b"some bytes"


FLOWS = [moments, profile, media]
