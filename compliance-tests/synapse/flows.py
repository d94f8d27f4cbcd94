#!/usr/bin/env python3
"""What users of two servers do with each other, in both directions.

flows.py OURS THEIRS: base URLs. Each check prints a line; the exit code says whether all of them passed.
"""

import json
import ssl
import sys
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request

# How long something may take to reach the other server, in seconds.
PATIENCE = 20

TLS = ssl.create_default_context()
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


def quote(text):
    return urllib.parse.quote(text, safe="")


class User:
    """A user, by way of the client-server API."""

    count = 0

    def __init__(self, base, name):
        User.count += 1
        self.base, self.token, self.txn = base, None, 0
        body = {
            "username": f"{name}{User.count}",
            "password": "a long password",
            "auth": {"type": "m.login.dummy"},
        }
        answer = self.call("POST", "/v3/register", body)
        self.token, self.id, self.device = answer["access_token"], answer["user_id"], answer["device_id"]

    def call(self, method, path, body=None, root="/_matrix/client"):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.base + root + path, data, method=method)
        if self.token:
            request.add_header("Authorization", "Bearer " + self.token)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, context=TLS, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None

    def raw(self, path):
        request = urllib.request.Request(self.base + path)
        request.add_header("Authorization", "Bearer " + self.token)
        with urllib.request.urlopen(request, context=TLS, timeout=60) as answer:
            return answer.read()

    def create(self, **body):
        return self.call("POST", "/v3/createRoom", body)["room_id"]

    def join(self, room, via=None):
        query = f"?server_name={quote(via)}&via={quote(via)}" if via else ""
        return self.call("POST", f"/v3/join/{quote(room)}{query}", {})["room_id"]

    def act(self, room, action, **body):
        return self.call("POST", f"/v3/rooms/{quote(room)}/{action}", body)

    def send(self, room, kind, content):
        self.txn += 1
        return self.call("PUT", f"/v3/rooms/{quote(room)}/send/{kind}/{self.txn}", content)["event_id"]

    def say(self, room, text, **more):
        return self.send(room, "m.room.message", {"msgtype": "m.text", "body": text, **more})

    def set_state(self, room, kind, content, key=""):
        return self.call("PUT", f"/v3/rooms/{quote(room)}/state/{kind}/{quote(key)}", content)["event_id"]

    def state(self, room, kind, key=""):
        return self.call("GET", f"/v3/rooms/{quote(room)}/state/{kind}/{quote(key)}")

    def membership(self, room, user):
        try:
            return self.state(room, "m.room.member", user.id)["membership"]
        except Refused:
            return None

    def event(self, room, event):
        return self.call("GET", f"/v3/rooms/{quote(room)}/event/{quote(event)}")

    def sync(self, since=None):
        query = f"?timeout=0" + (f"&since={since}" if since else "")
        return self.call("GET", "/v3/sync" + query)


def until(what, look):
    """Waits until `look` gives something true."""
    deadline, last = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        try:
            found = look()
            if found:
                return found
            last = found
        except Refused as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{what}: not in {PATIENCE} s (last: {last})")


def sees(user, room, event):
    until(f"{user.id} sees {event}", lambda: user.event(room, event))


def refused(status, do):
    try:
        do()
    except Refused as error:
        assert error.status == status, error
        return
    raise AssertionError(f"was not refused with {status}")


def server(user):
    return user.id.split(":", 1)[1]


def shared(one, other, version="11"):
    """A room of `one` that `other` has joined."""
    room = one.create(preset="public_chat", room_version=version)
    other.join(room, server(one))
    until("the join", lambda: one.membership(room, other) == "join")
    return room


def messages(one, other):
    for version in ["6", "7", "8", "9", "10", "11", "12"]:
        room = shared(one, other, version)
        sees(other, room, one.say(room, f"from its maker, version {version}"))
        sees(one, room, other.say(room, f"from who joined, version {version}"))


def alias(one, other):
    name = f"room-{time.monotonic_ns()}"
    room = one.create(preset="public_chat", room_alias_name=name)
    assert other.join(f"#{name}:{server(one)}") == room
    sees(one, room, other.say(room, "by alias"))


def invite(one, other):
    room = one.create(preset="private_chat", name="Tea")
    refused(403, lambda: other.join(room, server(one)))
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
    other.join(room, server(one))
    until("the return", lambda: one.membership(room, other) == "join")
    sees(other, room, one.say(room, "back"))
    sees(one, room, other.say(room, "here"))


def moderation(one, other):
    room = shared(one, other)
    said = other.say(room, "regrettable")
    sees(one, room, said)
    one.txn += 1
    one.call("PUT", f"/v3/rooms/{quote(room)}/redact/{quote(said)}/{one.txn}", {})
    until("the redaction", lambda: "body" not in other.event(room, said)["content"])
    one.act(room, "kick", user_id=other.id)
    until("the kick", lambda: other.membership(room, other) in ("leave", None))
    refused(403, lambda: other.say(room, "still here?"))
    one.act(room, "ban", user_id=other.id)
    refused(403, lambda: other.join(room, server(one)))


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


def moments(one, other):
    room = shared(one, other)
    said = one.say(room, "read me")
    sees(other, room, said)
    other.act(room, f"receipt/m.read/{quote(said)}")
    other.call("PUT", f"/v3/rooms/{quote(room)}/typing/{quote(other.id)}", {"typing": True, "timeout": 20000})

    def ephemeral(kind):
        events = one.sync()["rooms"]["join"][room]["ephemeral"]["events"]
        return [e["content"] for e in events if e["type"] == kind]

    until("the receipt", lambda: any(other.id in c.get(said, {}).get("m.read", {}) for c in ephemeral("m.receipt")))
    until("typing", lambda: any(other.id in c["user_ids"] for c in ephemeral("m.typing")))
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


def restricted(one, other):
    club = one.create(preset="public_chat")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    room = one.create(initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}])
    refused(403, lambda: other.join(room, server(one)))
    other.join(club, server(one))
    until("the club", lambda: one.membership(club, other) == "join")
    other.join(room, server(one))
    sees(one, room, other.say(room, "let in"))


def knock(one, other):
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = one.create(initial_state=[rule])
    other.call("POST", f"/v3/knock/{quote(room)}?server_name={quote(server(one))}&via={quote(server(one))}", {})
    until("the knock", lambda: one.membership(room, other) == "knock")
    one.act(room, "invite", user_id=other.id)
    until("the answer", lambda: other.sync()["rooms"].get("invite", {}).get(room))
    other.join(room)
    sees(one, room, other.say(room, "who's there"))


def devices(one, other):
    shared(one, other)
    keys = {"user_id": other.id, "device_id": other.device, "algorithms": ["m.olm.v1"],
            "keys": {f"ed25519:{other.device}": "YWJj"}, "signatures": {other.id: {f"ed25519:{other.device}": "YWJj"}}}
    other.call("POST", "/v3/keys/upload", {"device_keys": keys})
    query = lambda: one.call("POST", "/v3/keys/query", {"device_keys": {other.id: []}})
    until("the device", lambda: query()["device_keys"].get(other.id, {}).get(other.device))
    content = {"messages": {other.id: {"*": {"hello": "you"}}}}
    one.call("PUT", f"/v3/sendToDevice/org.guildhall.test/{time.monotonic_ns()}", content)
    to_device = lambda: [e for e in other.sync().get("to_device", {}).get("events", []) if e["type"] == "org.guildhall.test"]
    assert until("the message", to_device)[0]["sender"] == one.id


def media(one, other):
    request = urllib.request.Request(one.base + "/_matrix/media/v3/upload", b"some bytes", method="POST")
    request.add_header("Authorization", "Bearer " + one.token)
    request.add_header("Content-Type", "application/octet-stream")
    with urllib.request.urlopen(request, context=TLS) as answer:
        uri = json.loads(answer.read())["content_uri"]
    assert other.raw("/_matrix/client/v1/media/download/" + uri.removeprefix("mxc://")) == b"some bytes"


def history(one, other):
    room = one.create(preset="public_chat")
    said = [one.say(room, f"before {number}") for number in range(30)]
    other.join(room, server(one))
    found, start = [], ""
    for _ in range(10):
        page = other.call("GET", f"/v3/rooms/{quote(room)}/messages?dir=b&limit=20{start}")
        found += [event["event_id"] for event in page["chunk"]]
        if "end" not in page:
            break
        start = "&from=" + quote(page["end"])
    assert set(said) <= set(found), f"{len(set(said) & set(found))} of {len(said)}"


def acl(one, other):
    room = shared(one, other)
    one.set_state(room, "m.room.server_acl", {"allow": ["*"], "deny": [server(other).split(":")[0]]})
    until("the list", lambda: other.state(room, "m.room.server_acl"))
    said = other.say(room, "unheard")
    sees(other, room, said)
    time.sleep(1)
    try:
        one.event(room, said)
    except Refused:
        return
    raise AssertionError("who is shut out was heard")


def directory(one, other):
    name = f"listed {time.monotonic_ns()}"
    room = one.create(preset="public_chat", visibility="public", name=name)
    page = other.call("POST", f"/v3/publicRooms?server={quote(server(one))}", {"filter": {"generic_search_term": name}})
    assert [entry["room_id"] for entry in page["chunk"]] == [room], page


FLOWS = [messages, alias, invite, reject, rescind, leave_and_return, moderation, relations, moments, profile,
         restricted, knock, devices, media, history, acl, directory]


def main():
    ours, theirs = sys.argv[1:3]
    wanted = set(sys.argv[3:])
    for base in (ours, theirs):
        until(f"{base} is up", lambda: up(base))
    failed = 0
    for flow in FLOWS:
        for direction, first, second in (("from ours", ours, theirs), ("from theirs", theirs, ours)):
            name = f"{flow.__name__} {direction}"
            if wanted and flow.__name__ not in wanted:
                continue
            try:
                flow(User(first, "one"), User(second, "other"))
                print(f"ok    {name}", flush=True)
            except Exception as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
                if not isinstance(error, (AssertionError, Refused)):
                    traceback.print_exc()
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


def up(base):
    try:
        urllib.request.urlopen(base + "/_matrix/client/versions", context=TLS, timeout=5)
        return True
    except OSError:
        return False


main()
