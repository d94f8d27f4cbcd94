"""A user of a homeserver by way of the client-server API, and how the flows wait for what they want to see."""

import copy
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

# How long something may take to reach the other server, in seconds.
PATIENCE = 20
PASSWORD = "a long password"

TLS = ssl.create_default_context()
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


def quote(text):
    return urllib.parse.quote(text, safe="")


def exchange(request):
    try:
        with urllib.request.urlopen(request, context=TLS, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode(errors="replace")) from None


class User:
    """A user with one device. `server` is where: see servers.py."""

    count = 0

    def __init__(self, server, name):
        User.count += 1
        self.server, self.token, self.txn = server, None, 0
        self.name = f"{name}{User.count}"
        body = {"username": self.name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        self.keep(self.call("POST", "/v3/register", body))

    def keep(self, answer):
        self.token, self.id, self.device = answer["access_token"], answer["user_id"], answer["device_id"]

    def password(self):
        identifier = {"type": "m.id.user", "user": self.name}
        return {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}

    def on_another_device(self):
        other = copy.copy(self)
        other.token = None
        other.keep(other.call("POST", "/v3/login", self.password()))
        return other

    def call(self, method, path, body=None, root="/_matrix/client"):
        data = json.dumps(body).encode() if body is not None else None
        return json.loads(self.raw(root + path, data, method) or b"{}")

    def raw(self, path, data=None, method="GET", kind="application/json"):
        request = urllib.request.Request(self.server.base + path, data, method=method)
        if self.token:
            request.add_header("Authorization", "Bearer " + self.token)
        request.add_header("Content-Type", kind)
        return exchange(request)

    def create(self, **body):
        return self.call("POST", "/v3/createRoom", body)["room_id"]

    def join(self, room, via=None):
        """`via` is a user whose server is asked."""
        query = f"?server_name={quote(via.server.address)}&via={quote(via.server.address)}" if via else ""
        return self.call("POST", f"/v3/join/{quote(room)}{query}", {})["room_id"]

    def act(self, room, action, **body):
        return self.call("POST", f"/v3/rooms/{quote(room)}/{action}", body)

    def send(self, room, kind, content):
        self.txn += 1
        return self.call("PUT", f"/v3/rooms/{quote(room)}/send/{kind}/{self.txn}", content)["event_id"]

    def say(self, room, text, **more):
        return self.send(room, "m.room.message", {"msgtype": "m.text", "body": text, **more})

    def redact(self, room, event):
        self.txn += 1
        return self.call("PUT", f"/v3/rooms/{quote(room)}/redact/{quote(event)}/{self.txn}", {})["event_id"]

    def send_to_device(self, kind, content, user, device="*"):
        body = {"messages": {user.id: {device: content}}}
        self.call("PUT", f"/v3/sendToDevice/{kind}/{time.monotonic_ns()}", body)

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

    def history(self, room):
        """Everything in the room, oldest first."""
        found, start = [], ""
        for _ in range(20):
            page = self.call("GET", f"/v3/rooms/{quote(room)}/messages?dir=b&limit=50{start}")
            found += page["chunk"]
            if "end" not in page:
                break
            start = "&from=" + quote(page["end"])
        return found[::-1]

    def said(self, room, prefix):
        """What messages that begin with `prefix` say, oldest first."""
        bodies = [event["content"].get("body", "") for event in self.history(room)]
        return [body for body in bodies if body.startswith(prefix)]

    def sync(self, since=None):
        query = "?timeout=0" + (f"&since={quote(since)}" if since else "")
        return self.call("GET", "/v3/sync" + query)

    def to_device(self, kind):
        events = self.sync().get("to_device", {}).get("events", [])
        return [event for event in events if event["type"] == kind]


class Follower:
    """What a client that syncs all the time is told, from now on."""

    def __init__(self, user):
        self.user, self.rooms, self.limited = user, {}, False
        self.changed, self.left, self.events = set(), set(), []
        self.since = user.sync()["next_batch"]

    def sync(self):
        answer = self.user.sync(self.since)
        self.since = answer["next_batch"]
        self.changed.update(answer.get("device_lists", {}).get("changed", []))
        self.left.update(answer.get("device_lists", {}).get("left", []))
        self.events += answer.get("to_device", {}).get("events", [])
        for room, part in answer.get("rooms", {}).get("join", {}).items():
            timeline = part.get("timeline", {})
            self.limited |= timeline.get("limited", False)
            self.rooms.setdefault(room, []).extend(timeline.get("events", []))
        return self

    def said(self, room, prefix):
        bodies = [event["content"].get("body", "") for event in self.rooms.get(room, [])]
        return [body for body in bodies if body.startswith(prefix)]


def until(what, look, patience=None):
    """Waits until `look` gives something true."""
    patience = patience or PATIENCE
    deadline, last = time.monotonic() + patience, None
    while time.monotonic() < deadline:
        try:
            found = look()
            if found:
                return found
            last = found
        except Refused as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{what}: not in {patience} s (last: {last})")


def equal(what, wanted, look):
    """Waits until `look` gives `wanted`."""
    last = []

    def same():
        last[:] = [look()]
        return last[0] == wanted

    try:
        until(what, same)
    except AssertionError as error:
        raise AssertionError(f"{what}: {last} instead of {wanted}") from error


def sees(user, room, event):
    until(f"{user.id} sees {event}", lambda: user.event(room, event))


def refused(status, do):
    try:
        do()
    except Refused as error:
        assert error.status == status, error
        return
    raise AssertionError(f"was not refused with {status}")


def shared(one, *others, **options):
    """A room of `one` that the others have joined."""
    room = one.create(**{"preset": "public_chat", "room_version": "11", **options})
    for other in others:
        other.join(room, one)
    for other in others:
        until("the join", lambda: one.membership(room, other) == "join")
    return room
