"""Encryption from one server to the other: real Olm and Megolm, by vodozemac, as the clients have it.

The servers carry keys and messages and never look into them; what they can break is the exchange of keys, that a
one-time key is given away once, and that everyone learns when somebody's devices change.
"""

import base64
import json

from vodozemac import (Account, AnyOlmMessage, Curve25519PublicKey, Ed25519PublicKey, Ed25519Signature, GroupSession,
                       InboundGroupSession, MegolmMessage, PreKeyMessage, SessionKey)

from client import Follower, equal, until

OLM = "m.olm.v1.curve25519-aes-sha2"
MEGOLM = "m.megolm.v1.aes-sha2"
ONE_TIME_KEYS = 5


def canonical(value):
    bare = {key: part for key, part in value.items() if key not in ("signatures", "unsigned")}
    return json.dumps(bare, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def signed(value, user, key, account):
    signature = account.sign(canonical(value)).to_base64()
    return {**value, "signatures": {user: {f"ed25519:{key}": signature}}}


def check(value, user, name, key):
    """Raises unless `key` has signed it for `user` under this name."""
    signature = Ed25519Signature.from_base64(value["signatures"][user][f"ed25519:{name}"])
    Ed25519PublicKey.from_base64(key).verify_signature(canonical(value), signature)


class Device:
    """A user's device with its keys. What it gets by itself is read by way of `follower`."""

    def __init__(self, user):
        self.user, self.account, self.sessions, self.rooms = user, Account(), {}, {}
        self.follower = Follower(user)
        keys = {"curve25519": self.account.curve25519_key, "ed25519": self.account.ed25519_key}
        self.keys = signed({
            "user_id": user.id, "device_id": user.device, "algorithms": [OLM, MEGOLM],
            "keys": {f"{name}:{user.device}": key.to_base64() for name, key in keys.items()},
        }, user.id, user.device, self.account)
        self.account.generate_one_time_keys(ONE_TIME_KEYS)
        one_time = {
            f"signed_curve25519:{name}": signed({"key": key.to_base64()}, user.id, user.device, self.account)
            for name, key in self.account.one_time_keys.items()
        }
        counts = user.call("POST", "/v3/keys/upload", {"device_keys": self.keys, "one_time_keys": one_time})
        assert counts["one_time_key_counts"]["signed_curve25519"] == ONE_TIME_KEYS, counts
        self.account.mark_keys_as_published()

    def key(self, name):
        return self.keys["keys"][f"{name}:{self.user.device}"]

    def claim(self, peer):
        """A one-time key of the device `peer`, with its ID."""
        body = {"one_time_keys": {peer.user.id: {peer.user.device: "signed_curve25519"}}}
        answer = self.user.call("POST", "/v3/keys/claim", body)
        assert not answer.get("failures"), answer
        [(name, key)] = answer["one_time_keys"][peer.user.id][peer.user.device].items()
        check(key, peer.user.id, peer.user.device, peer.key("ed25519"))
        return name, key["key"]

    def send_room_key(self, peer, room):
        """Makes a room key and sends it to the device, in an Olm session."""
        if peer.key("curve25519") not in self.sessions:
            # Its keys as the servers tell them, not as we know them.
            devices = self.user.call("POST", "/v3/keys/query", {"device_keys": {peer.user.id: []}})["device_keys"]
            keys = devices[peer.user.id][peer.user.device]
            assert keys["keys"] == peer.keys["keys"], keys
            check(keys, peer.user.id, peer.user.device, peer.key("ed25519"))
            identity, (_, one_time) = Curve25519PublicKey.from_base64(peer.key("curve25519")), self.claim(peer)
            session = self.account.create_outbound_session(identity, Curve25519PublicKey.from_base64(one_time))
            self.sessions[peer.key("curve25519")] = session
        self.outbound = GroupSession()
        inside = {"type": "m.room_key", "sender": self.user.id, "content": {
            "algorithm": MEGOLM, "room_id": room, "session_id": self.outbound.session_id,
            "session_key": self.outbound.session_key.to_base64()}}
        kind, text = self.sessions[peer.key("curve25519")].encrypt(json.dumps(inside).encode()).to_parts()
        content = {"algorithm": OLM, "sender_key": self.key("curve25519"), "ciphertext": {
            peer.key("curve25519"): {"type": kind, "body": base64.b64encode(text).decode().rstrip("=")}}}
        self.user.send_to_device("m.room.encrypted", content, peer.user, peer.user.device)

    def say(self, room, text):
        inside = {"type": "m.room.message", "room_id": room, "content": {"msgtype": "m.text", "body": text}}
        message = self.outbound.encrypt(json.dumps(inside).encode())
        return self.user.send(room, "m.room.encrypted", {
            "algorithm": MEGOLM, "session_id": self.outbound.session_id, "ciphertext": message.to_base64(),
            "sender_key": self.key("curve25519"), "device_id": self.user.device})

    def read_room_keys(self):
        for event in self.follower.sync().events:
            mine = event["content"]["ciphertext"][self.key("curve25519")]
            sender_key, body = event["content"]["sender_key"], mine["body"]
            if mine["type"] == 0:
                key, message = Curve25519PublicKey.from_base64(sender_key), PreKeyMessage.from_base64(body)
                self.sessions[sender_key], text = self.account.create_inbound_session(key, message)
            else:
                raw = base64.b64decode(body + "=" * (-len(body) % 4))
                text = self.sessions[sender_key].decrypt(AnyOlmMessage.from_parts(mine["type"], raw))
            inside = json.loads(text)
            assert inside["sender"] == event["sender"], event
            self.rooms[inside["content"]["session_id"]] = inside["content"]["session_key"]
        self.follower.events.clear()
        return self.rooms

    def hears(self, room, event):
        """The text of an encrypted message."""
        content = until("the message", lambda: self.user.event(room, event))["content"]
        until("the room key", lambda: content["session_id"] in self.read_room_keys())
        session = InboundGroupSession(SessionKey(self.rooms[content["session_id"]]))
        text = session.decrypt(MegolmMessage.from_base64(content["ciphertext"])).plaintext
        return json.loads(text)["content"]["body"]


def encrypted(one, other):
    """An encrypted room, and a message each way."""
    here, there = Device(one), Device(other)
    rule = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": MEGOLM}}
    room = one.create(preset="private_chat", invite=[other.id], initial_state=[rule])
    until("the invite", lambda: other.sync().get("rooms", {}).get("invite", {}).get(room))
    other.join(room)
    until("the join", lambda: one.membership(room, other) == "join")
    assert other.state(room, "m.room.encryption")["algorithm"] == MEGOLM

    here.send_room_key(there, room)
    assert there.hears(room, here.say(room, "to the other side")) == "to the other side"
    # In the session that the first message has opened; nothing is claimed.
    there.send_room_key(here, room)
    assert here.hears(room, there.say(room, "and back")) == "and back"
    counts = lambda user: user.sync()["device_one_time_keys_count"].get("signed_curve25519", 0)
    equal("the keys left", [ONE_TIME_KEYS, ONE_TIME_KEYS - 1], lambda: [counts(one), counts(other)])


def one_time_keys(one, other):
    """Each key is given away once, and then there are none."""
    here, there = Device(one), Device(other)
    names = {here.claim(there)[0] for _ in range(ONE_TIME_KEYS)}
    assert len(names) == ONE_TIME_KEYS, names
    body = {"one_time_keys": {other.id: {other.device: "signed_curve25519"}}}
    answer = one.call("POST", "/v3/keys/claim", body)
    assert not answer["one_time_keys"].get(other.id, {}).get(other.device), answer


def device_lists(one, other):
    """Who shares a room is told of a new device, of a new name, of keys that vouch for each other, of a logout."""
    room = one.create(preset="private_chat", invite=[other.id])
    until("the invite", lambda: other.sync().get("rooms", {}).get("invite", {}).get(room))
    follower = Follower(one)
    other.join(room)
    Device(other)
    query = lambda: one.call("POST", "/v3/keys/query", {"device_keys": {other.id: []}})
    devices = lambda: set(query()["device_keys"].get(other.id, {}))

    def told(what):
        until(f"word of {what}", lambda: other.id in follower.sync().changed)
        follower.changed.clear()

    told("the first device")
    equal("the devices", {other.device}, devices)

    second = other.on_another_device()
    Device(second)
    told("a second device")
    equal("the devices", {other.device, second.device}, devices)

    second.call("PUT", f"/v3/devices/{second.device}", {"display_name": "Renamed"})
    told("a new name")

    master, self_signing = Account(), Account()
    vouch(other, master, self_signing)
    told("cross-signing keys")
    public = master.ed25519_key.to_base64()
    masters = lambda: query()["master_keys"].get(other.id, {}).get("keys", {}).values()
    until("the master key", lambda: public in masters())
    keys = query()
    check(keys["self_signing_keys"][other.id], other.id, public, public)

    device = keys["device_keys"][other.id][second.device]
    name = self_signing.ed25519_key.to_base64()
    upload = signed({key: device[key] for key in ("user_id", "device_id", "algorithms", "keys")}, other.id, name,
                    self_signing)
    answer = other.call("POST", "/v3/keys/signatures/upload", {other.id: {second.device: upload}})
    assert not answer.get("failures"), answer
    told("a signature")
    signatures = lambda: query()["device_keys"][other.id][second.device]["signatures"][other.id]
    until("the signature", lambda: f"ed25519:{name}" in signatures())

    second.call("POST", "/v3/logout", {})
    told("the logout")
    equal("the devices", {other.device}, devices)

    other.act(room, "leave")
    until("word that no room is shared", lambda: other.id in follower.sync().left)


def vouch(user, master, self_signing):
    """Uploads cross-signing keys."""
    def key(account, usage):
        name = account.ed25519_key.to_base64()
        return {"user_id": user.id, "usage": [usage], "keys": {f"ed25519:{name}": name}}

    body = {
        "master_key": key(master, "master"),
        "self_signing_key": signed(key(self_signing, "self_signing"), user.id, master.ed25519_key.to_base64(), master),
    }
    body["auth"] = user.password()
    user.call("POST", "/v3/keys/device_signing/upload", body)


def to_device(one, other):
    """In order, once, also without a shared room, and to one device or all of them."""
    for number in range(10):
        one.send_to_device("org.guildhall.test", {"number": number}, other, other.device if number % 2 else "*")
    numbers = lambda: [event["content"]["number"] for event in other.to_device("org.guildhall.test")]
    equal("the messages", list(range(10)), numbers)
    assert {event["sender"] for event in other.to_device("org.guildhall.test")} == {one.id}


FLOWS = [encrypted, one_time_keys, device_lists, to_device]
