"""Random rooms, and what Synapse says of them: one JSON object a line, one room each.

    generate.py --seed 1 --count 100 [--first 0]

Every room follows from the seed and its number alone; versions 6 to 12 take turns. Of each event: whether it passes by
the auth events it names and by the state before it, which auth events that state selects, and, where it joins several
branches, what that state is. Besides, some states are resolved that no event stands on.

What is asked is Synapse itself: `event_auth` and `state.v2`. Only the auth difference and the conflicted subgraph, which
Synapse computes in its database, are written here as the specification defines them.

What Synapse is known to judge otherwise than the specification is not generated; each place says why ("Synapse:").
"""

import argparse
import hashlib
import json
import random
from types import SimpleNamespace

from signedjson.key import decode_signing_key_base64, encode_verify_key_base64, get_verify_key
from signedjson.sign import sign_json
from synapse import event_auth
from synapse.api.errors import SynapseError
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.crypto.event_signing import compute_content_hash
from synapse.events import make_event_from_dict
from synapse.state.v2 import resolve_events_with_store
from synapse.storage.databases.main.event_federation import StateDifference
from unpaddedbase64 import encode_base64

VERSIONS = ["6", "7", "8", "9", "10", "11", "12"]
CREATE, MEMBER = ("m.room.create", ""), "m.room.member"
POWER, JOIN_RULES = ("m.room.power_levels", ""), ("m.room.join_rules", "")
USERS = [
    "@alice:a.example", "@bob:b.example", "@carol:a.example", "@dave:c.example:8448",
    "@erin:b.example", "@frank:c.example:8448", "@grace:a.example", "@heidi:b.example",
]
LEVELS = [-1, 0, 0, 1, 25, 40, 49, 50, 50, 51, 60, 75, 99, 100, 100, 101]
DEFAULTS = {
    "users_default": 0, "events_default": 0, "state_default": 50,
    "ban": 50, "redact": 50, "kick": 50, "invite": 0,
}
BRANCHES_MAX = 8
# Two identity servers: one is in invites, the other signs what must not count.
IDENTITY_KEYS = [decode_signing_key_base64("ed25519", "0", encode_base64(bytes([n] * 32))) for n in (1, 2)]
# What Synapse says no with. The others are what its code stumbles over when a value has another type than it expects;
# the event is not accepted then either.
REFUSALS = (SynapseError, ValueError, TypeError, AttributeError, KeyError)


def run(coroutine):
    """What a coroutine returns that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("nothing here waits")


def refusal(check, *arguments):
    """Why a check of Synapse refuses; None if it does not."""
    try:
        result = check(*arguments)
        if result is not None:
            run(result)
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"


class Clock:
    async def sleep(self, _duration):
        pass


class Store:
    """The events of one room, as Synapse asks its database for them."""

    def __init__(self):
        self.events = {}
        # Of each event: itself, and all that its auth_events lead to.
        self.chains = {}

    def add(self, event):
        event_id = event.event_id
        self.events[event_id] = event
        self.chains[event_id] = {event_id}.union(*(self.chains[auth] for auth in event.auth_event_ids()))

    async def get_events(self, event_ids, redact_behaviour=None, get_prev_content=False, allow_rejected=False):
        found = {event_id: self.events[event_id] for event_id in event_ids if event_id in self.events}
        return {i: event for i, event in found.items() if allow_rejected or event.rejected_reason is None}

    async def get_auth_chain_difference(self, _room_id, state_sets, conflicted, _more):
        """Room version 2, "Auth difference"; room version 12, "Conflicted state subgraph"."""
        chains = [set().union(*(self.chains[event_id] for event_id in state)) for state in state_sets]
        difference = set.union(*chains) - set.intersection(*chains)
        subgraph = None
        if conflicted is not None:
            below = set().union(*(self.chains[event_id] for event_id in conflicted))
            subgraph = {event_id for event_id in below if not self.chains[event_id].isdisjoint(conflicted)}
        return StateDifference(auth_difference=difference, conflicted_subgraph=subgraph)


class Room:
    """A room that grows event by event, as several servers would build it that do not always hear of each other."""

    def __init__(self, name, version):
        self.rng = random.Random(name)
        self.version = KNOWN_ROOM_VERSIONS[version]
        self.room_id = "!room:a.example"
        self.store = Store()
        self.after = {}
        self.order = []
        self.tips = []
        self.steps = []
        self.tokens = 0
        rng = self.rng
        self.users = USERS[: rng.randint(4, len(USERS))]
        self.branches_max = rng.randint(2, BRANCHES_MAX)
        self.federates = rng.random() > 0.05
        # Whether levels are left out of m.room.power_levels; see `power`.
        self.sparse = rng.random() < 0.5
        self.stringy = not self.version.enforce_int_power_levels and rng.random() < 0.3

    # Asking Synapse.

    def resolve(self, event_ids):
        """The state that follows from those after several events."""
        states = [self.after[event_id] for event_id in event_ids]
        if len(states) == 1:
            return states[0]
        return dict(run(resolve_events_with_store(Clock(), self.room_id, self.version, states, None, self.store)))

    def select(self, draft, state):
        """The auth events of a draft, without the create event where the room ID implies it."""
        types = event_auth.auth_types_for_event(self.version, draft)
        if self.version.msc4291_room_ids_as_hashes:
            types.discard(CREATE)
        return [state[key] for key in sorted(types) if key in state]

    def level(self, state, user):
        events = {key: self.store.events[state[key]] for key in (CREATE, POWER) if key in state}
        return event_auth.get_user_power_level(user, events)

    # Growing.

    def add(self, draft, prev_events):
        """Makes an event of a draft, judges it, and notes both. Gives its ID, and whether it was accepted."""
        rng, events = self.rng, self.store.events
        before = self.resolve(prev_events) if prev_events else {}
        selected = self.select(draft, before)
        auth_events = selected
        if self.tips and rng.random() < 0.08:
            auth_events = self.tamper(draft, selected)
        # Few times, so that event IDs decide often.
        ts = 1_700_000_000_000 + rng.randrange(4) + (len(self.order) // 8 if rng.random() < 0.3 else 0)
        pdu = {
            "type": draft.type, "sender": draft.sender, "content": draft.content,
            "origin_server_ts": ts, "depth": 1 + max((events[prev].depth for prev in prev_events), default=0),
            "prev_events": prev_events, "auth_events": auth_events, "signatures": {},
        }
        if draft.state_key is not None:
            pdu["state_key"] = draft.state_key
        if draft.type != "m.room.create" or not self.version.msc4291_room_ids_as_hashes:
            pdu["room_id"] = self.room_id
        pdu["hashes"] = {"sha256": encode_base64(compute_content_hash(pdu, hashlib.sha256)[1])}
        event = make_event_from_dict(pdu, self.version)
        by_auth_events = refusal(event_auth.check_state_independent_auth_rules, self.store, event) or refusal(
            event_auth.check_state_dependent_auth_rules, event, [events[auth] for auth in event.auth_event_ids()]
        )
        by_state = refusal(event_auth.check_state_dependent_auth_rules, event, self.needed(draft, before))
        rejected = by_auth_events or by_state
        if rejected:
            event = make_event_from_dict(pdu, self.version, rejected_reason=rejected)
        self.store.add(event)
        self.order.append(event.event_id)
        self.after[event.event_id] = before
        if not rejected and draft.state_key is not None:
            self.after[event.event_id] = before | {(draft.type, draft.state_key): event.event_id}
        step = {"id": event.event_id, "pdu": pdu, "by_auth_events": by_auth_events, "by_state": by_state}
        step["selected"] = selected
        if len(prev_events) > 1:
            step["before"] = state_json(before)
        self.steps.append(step)
        return event.event_id, not rejected

    def needed(self, draft, state):
        types = event_auth.auth_types_for_event(self.version, draft)
        return [self.store.events[state[key]] for key in types if key in state]

    def tamper(self, draft, selected):
        """Auth events that are not those that the state before selects."""
        rng, events = self.rng, self.store.events
        kind = rng.randrange(-3, 5)
        if kind <= 0:
            # Those of another place in the room.
            return self.select(draft, self.after[rng.choice(self.order)])
        if kind == 1:
            dropped = rng.choice(selected) if selected else None
            return [auth for auth in selected if auth != dropped]
        create = self.order[0]
        others = [other for other in self.order if other != create and events[other].is_state()]
        if kind == 2:
            types = event_auth.auth_types_for_event(self.version, draft)
            others = [other for other in others if (events[other].type, events[other].state_key) in types]
        if kind == 3:
            others = [other for other in others if events[other].rejected_reason]
        return selected + [rng.choice(others)] if others else selected

    def grow(self):
        """One more event: in a branch, in a new one, or where several meet."""
        rng = self.rng
        chance = rng.random()
        prev_events = [rng.choice(self.tips)]
        if chance < 0.2 and len(self.tips) > 1:
            prev_events = rng.sample(self.tips, rng.randint(2, len(self.tips)))
        elif chance < 0.5 and len(self.tips) < self.branches_max:
            prev_events = [rng.choice(self.order)]
        state = self.resolve(prev_events)
        draft = Drafts(self, state).random()
        event_id, accepted = self.add(draft, prev_events)
        if accepted or rng.random() < 0.2:
            self.tips = [tip for tip in self.tips if tip not in prev_events] + [event_id]

    def fill(self):
        """A room from its creation to a few dozen events."""
        rng = self.rng
        drafts = Drafts(self, {})
        create, accepted = self.add(drafts.create(), [])
        if not accepted:
            return
        if self.version.msc4291_room_ids_as_hashes:
            self.room_id = "!" + create[1:]
        creator = drafts.creator
        last, _ = self.add(drafts.member(creator, creator, "join"), [create])
        rule = "public" if rng.random() < 0.6 else None
        if rng.random() < 0.95:
            last, _ = self.add(Drafts(self, self.after[last]).join_rules(creator, rule), [last])
        if rng.random() < 0.9:
            event_id, accepted = self.add(Drafts(self, self.after[last]).power(creator), [last])
            last = event_id if accepted else last
        for user in self.users:
            if rng.random() < 0.5:
                join = Drafts(self, self.after[last]).member(user, user, "join")
                event_id, accepted = self.add(join, [last])
                last = event_id if accepted else last
        self.tips = [last]
        for _ in range(rng.randint(10, 40)):
            self.grow()

    def resolutions(self):
        """States resolved from those after a few events, whether anything is built upon them or not."""
        found = []
        for _ in range(8 if len(self.order) > 1 else 0):
            several = self.rng.sample(self.order, min(len(self.order), self.rng.randint(2, 6)))
            found.append({"of": several, "state": state_json(self.resolve(several))})
        return found


class Drafts:
    """What somebody might send in a given state: mostly what they may, often enough what they may not."""

    def __init__(self, room, state):
        self.room, self.state, self.rng = room, state, room.rng

    def draft(self, sender, kind, content, state_key=None):
        return SimpleNamespace(sender=sender, type=kind, content=content, state_key=state_key)

    def content(self, key):
        return json.loads(json.dumps(dict(self.event(key).content), default=dict)) if key in self.state else None

    def event(self, key):
        return self.room.store.events[self.state[key]]

    def membership(self, user):
        return self.event((MEMBER, user)).membership if (MEMBER, user) in self.state else "leave"

    def joined(self):
        return [user for user in self.room.users if self.membership(user) == "join"]

    def actor(self):
        """Somebody, mostly one who is in the room, and rather one who may do something."""
        joined = self.joined()
        if not joined or self.rng.random() < 0.08:
            return self.rng.choice(self.room.users)
        some = self.rng.choices(joined, k=self.rng.randint(1, 4))
        return max(some, key=lambda user: self.room.level(self.state, user))

    def target(self, sender):
        # Synapse: in a room that does not federate, it also refuses what happens to a foreign user; the specification
        # only what a foreign user does.
        users = [user for user in self.room.users if self.room.federates or user.endswith(":a.example")]
        return self.rng.choice(users or [sender])

    def random(self):
        kinds = {
            self.message: 4, self.other_state: 14, self.join: 18, self.leave: 4, self.knock: 4, self.invite: 8,
            self.kick: 8, self.ban: 8, self.unban: 4, self.power: 16, self.join_rules: 9,
            self.third_party_invite: 2, self.redeem: 3, self.odd: 3,
        }
        return self.rng.choices(list(kinds), list(kinds.values()))[0]()

    def create(self):
        rng, room = self.rng, self.room
        sender = room.users[0]
        self.creator = sender
        content = {"room_version": room.version.identifier}
        if not room.federates:
            content["m.federate"] = False
        elif rng.random() < 0.1:
            content["m.federate"] = True
        if not room.version.implicit_room_creator:
            self.creator = rng.choice(room.users) if rng.random() < 0.1 and room.federates else sender
            content["creator"] = self.creator
        if rng.random() < 0.4:
            content["additional_creators"] = rng.sample(room.users, rng.randint(0, 2))
        if rng.random() < 0.02:
            # Not a create event of this version, or an odd one that is.
            content.pop("creator", None)
            content["additional_creators"] = rng.choice([["nobody"], "@bob:b.example", {}, [1], [sender, sender]])
        if rng.random() < 0.01:
            room.room_id = "!room:b.example"
        return self.draft(sender, "m.room.create", content, "")

    def member(self, sender, target, membership):
        content = {"membership": membership}
        if self.rng.random() < 0.3:
            content["displayname"] = self.rng.choice(["A", "B"])
        return self.draft(sender, MEMBER, content, target)

    def join(self):
        rng = self.rng
        user = rng.choice(self.room.users)
        rule = (self.content(JOIN_RULES) or {}).get("join_rule", "")
        invited = [user for user in self.room.users if self.membership(user) in ("invite", "join")]
        if rule != "public" and invited and rng.random() < 0.5:
            user = rng.choice(invited)
        target = user if rng.random() < 0.97 else self.target(user)
        draft = self.member(user, target, "join")
        if rng.random() < (0.8 if "restricted" in rule else 0.05):
            draft.content["join_authorised_via_users_server"] = self.actor()
        return draft

    def leave(self):
        user = self.rng.choice(self.joined() or self.room.users) if self.rng.random() < 0.6 else self.actor()
        return self.member(user, user, "leave")

    def knock(self):
        user = self.rng.choice(self.room.users)
        return self.member(user, user if self.rng.random() < 0.95 else self.target(user), "knock")

    def invite(self):
        sender = self.actor()
        return self.member(sender, self.target(sender), "invite")

    def kick(self):
        sender = self.actor()
        return self.member(sender, self.target(sender), "leave")

    def ban(self):
        sender = self.actor()
        return self.member(sender, self.target(sender), "ban")

    def unban(self):
        sender = self.actor()
        banned = [user for user in self.room.users if self.membership(user) == "ban"]
        if not self.room.federates:
            banned = [user for user in banned if user.endswith(":a.example")]
        return self.member(sender, self.rng.choice(banned) if banned else self.target(sender), "leave")

    def message(self):
        kind = self.rng.choice(["m.room.message", "m.room.redaction", "org.example.thing"])
        content = {"body": str(len(self.room.order))}
        if kind == "m.room.redaction":
            content["redacts"] = self.rng.choice(self.room.order)
        return self.draft(self.actor(), kind, content)

    def other_state(self):
        rng, sender = self.rng, self.actor()
        kind = rng.choice(["m.room.topic", "m.room.topic", "m.room.name", "org.example.thing", "m.room.aliases"])
        key = rng.choice(["", "", "", "a", sender, rng.choice(self.room.users)])
        return self.draft(sender, kind, {"value": len(self.room.order)}, key)

    def join_rules(self, sender=None, rule=None):
        rules = ["public", "invite", "knock", "restricted", "knock_restricted"] * 3 + ["private", "org.example.rule"]
        rule = rule or self.rng.choice(rules)
        content = {"join_rule": rule}
        if "restricted" in rule:
            content["allow"] = [{"type": "m.room_membership", "room_id": "!other:a.example"}]
        if self.rng.random() < 0.05:
            del content["join_rule"]
        return self.draft(sender or self.actor(), "m.room.join_rules", content, "")

    def value(self):
        level = self.rng.choice(LEVELS)
        if not self.room.stringy or self.rng.random() < 0.5:
            return level
        texts = [str(level), f" {level} ", f"+{level}" if level >= 0 else str(level), f"{'-' * (level < 0)}0{abs(level)}"]
        return self.rng.choice(texts)

    def power(self, sender=None):
        """The levels that are in force, with a few of them changed."""
        rng, room = self.rng, self.room
        sender = sender or self.actor()
        content = self.content(POWER)
        first = content is None
        if first:
            content = {"users": {}} | ({} if room.sparse else dict(DEFAULTS))
            if not room.version.msc4289_creator_power_enabled:
                content["users"][sender] = 100
            content["events"] = {"m.room.power_levels": rng.choice([50, 75, 100])}
        for _ in range(rng.randint(1, 3) + (2 if first else 0)):
            place = rng.random()
            if place < 0.5:
                self.change_user(content["users"], sender)
            elif place < 0.7:
                self.change_property(content)
            elif place < 0.9:
                self.change_event(content["events"])
            else:
                notifications = content.setdefault("notifications", {})
                notifications[rng.choice(["room", "other"])] = self.value()
                if rng.random() < 0.3:
                    del content["notifications"]
        if rng.random() < 0.06:
            self.spoil(content)
        return self.draft(sender, "m.room.power_levels", content, "")

    def change_user(self, users, sender):
        rng, room = self.rng, self.room
        user = sender if rng.random() < 0.1 else rng.choice(room.users)
        if room.version.msc4289_creator_power_enabled and rng.random() < 0.95:
            create = self.event(CREATE)
            if user == create.sender or user in create.content.get("additional_creators", []):
                return
        if rng.random() < 0.2:
            users.pop(user, None)
        else:
            users[user] = self.value()

    def change_property(self, content):
        name = self.rng.choice(list(DEFAULTS))
        # Synapse: does not compare a property that is left out; the specification infers it from its default. The two
        # agree while nobody may send m.room.power_levels with less than the highest default, 50, so properties are left
        # out only in rooms where that is so.
        if self.room.sparse and self.rng.random() < 0.3:
            content.pop(name, None)
        else:
            content[name] = self.value()

    def change_event(self, events):
        rng = self.rng
        kind = rng.choice(["m.room.power_levels", "m.room.topic", "m.room.join_rules", "m.room.message", "m.room.redaction"])
        if kind == "m.room.power_levels" and self.room.sparse:
            events[kind] = rng.choice([50, 50, 75, 100])
        elif rng.random() < 0.2:
            events.pop(kind, None)
        else:
            events[kind] = self.value()
        if not self.room.sparse and rng.random() < 0.1:
            events.pop("m.room.power_levels", None)

    def spoil(self, content):
        """Makes levels that no version takes, or that version 10 no longer takes."""
        rng = self.rng
        user = rng.choice(self.room.users)
        spoilt = rng.randrange(6)
        if spoilt == 0:
            content["users"] = rng.choice([[], None, 7, "users"])
        elif spoilt == 1:
            content["users"][rng.choice(["nobody", "@nobody", "nobody:a.example", "!room:a.example"])] = 0
        elif spoilt == 2:
            # Synapse: to Python, `true` is an integer; in the specification it is not, so it is not generated.
            content["users"][user] = rng.choice(["", "abc", "1.5", None, [], {}])
        elif self.room.version.enforce_int_power_levels:
            odd = rng.choice(["50", " 50 ", None, True, [], {}])
            if spoilt == 3:
                content[rng.choice(list(DEFAULTS))] = odd
            elif spoilt == 4:
                content[rng.choice(["events", "notifications"])] = rng.choice([[], None, "50", {"room": odd}])
            else:
                content["users"][user] = odd

    def third_party_invite(self):
        self.room.tokens += 1
        key = encode_verify_key_base64(get_verify_key(IDENTITY_KEYS[0]))
        content = {"display_name": "somebody", "key_validity_url": "https://id.example/valid", "public_key": key}
        if self.rng.random() < 0.3:
            content = {"display_name": "somebody", "public_keys": [{"public_key": key}]}
        return self.draft(self.actor(), "m.room.third_party_invite", content, f"token{self.room.tokens}")

    def redeem(self):
        """An invite that a third-party invite has become."""
        rng = self.rng
        invites = [key for key in self.state if key[0] == "m.room.third_party_invite"]
        if not invites:
            return self.third_party_invite()
        key = rng.choice(sorted(invites))
        sender = self.event(key).sender if rng.random() < 0.8 else self.actor()
        target = self.target(sender)
        signed = {"mxid": target, "token": key[1] if rng.random() < 0.95 else "token0"}
        if rng.random() < 0.1:
            signed["mxid"] = rng.choice(self.room.users)
        signed = sign_json(signed, "id.example", rng.choice(IDENTITY_KEYS[:1] * 9 + IDENTITY_KEYS[1:]))
        draft = self.member(sender, target, "invite")
        draft.content["third_party_invite"] = {"display_name": "somebody", "signed": signed}
        return draft

    def odd(self):
        rng, sender = self.rng, self.actor()
        draft = self.member(sender, sender, rng.choice(["joined", "", "knocked"]))
        if rng.random() < 0.3 and not self.room.version.msc4291_room_ids_as_hashes:
            draft = self.draft(sender, "m.room.create", {"creator": sender}, "")
        elif rng.random() < 0.5:
            draft = self.member(sender, rng.choice(["nobody", ""]), "invite")
        return draft


def state_json(state):
    return sorted([kind, key, event_id] for (kind, key), event_id in state.items())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    for number in range(arguments.first, arguments.first + arguments.count):
        version = VERSIONS[number % len(VERSIONS)]
        room = Room(f"{arguments.seed}/{number}", version)
        room.fill()
        line = {
            "seed": arguments.seed, "number": number, "version": version,
            "events": room.steps, "resolutions": room.resolutions(),
        }
        # Not `json.dump`, which encodes in Python.
        print(json.dumps(line, separators=(",", ":")))


if __name__ == "__main__":
    main()
