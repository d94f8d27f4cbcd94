"""Three servers in one room: Synapse and two Guildhalls, which speak with each other as with anyone else.

The first makes the room, the second joins by way of it, and the third by way of the second, which has not made it.
"""

from client import Follower, equal, quote, refused, sees, shared, until


def room_of_three(maker, second, third, **options):
    room = shared(maker, second, **options)
    # Synapse helps nobody in before it knows the whole room itself.
    until("the join", lambda: third.join(room, second))
    for user in (maker, second, third):
        equal(f"the members for {user.id}", ["join"] * 3,
              lambda: [user.membership(room, who) for who in (maker, second, third)])
    return room


def all_see(users, room, event):
    for user in users:
        sees(user, room, event)


def conversation(*users):
    """What each says, changes and takes back, the others see."""
    for version in ("11", "12"):
        maker, *others = users
        room = room_of_three(*users, room_version=version)
        followers = [Follower(user) for user in users]
        levels = maker.state(room, "m.room.power_levels")
        levels["users"].update({other.id: 50 for other in others})
        event = maker.set_state(room, "m.room.power_levels", levels)
        all_see(users, room, event)
        for user in users:
            said = user.say(room, f"said by {user.id}")
            all_see(users, room, said)
            user.redact(room, said)
            for seeing in users:
                until(f"the redaction for {seeing.id}", lambda: "body" not in seeing.event(room, said)["content"])
            user.set_state(room, "m.room.topic", {"topic": f"by {user.id}"})
            for seeing in users:
                equal(f"the topic for {seeing.id}", f"by {user.id}",
                      lambda: seeing.state(room, "m.room.topic")["topic"])
        for follower in followers:
            until("the last topic in the timeline", lambda: [
                event for event in follower.sync().rooms.get(room, [])
                if event["type"] == "m.room.topic" and event["content"]["topic"] == f"by {users[-1].id}"])
            events = [event["event_id"] for event in follower.rooms[room]]
            assert len(set(events)) == len(events), f"{follower.user.id} was told of something twice: {events}"


def expulsion(maker, second, third):
    """A kick and a ban, by a moderator on a server that has not made the room, hold on all three."""
    room = room_of_three(maker, second, third)
    levels = maker.state(room, "m.room.power_levels")
    levels["users"][second.id] = 50
    sees(second, room, maker.set_state(room, "m.room.power_levels", levels))
    second.act(room, "kick", user_id=third.id)
    for user in (maker, second):
        until(f"the kick for {user.id}", lambda: user.membership(room, third) == "leave")
    # Not by /sync: while Synapse does not know the whole room it leaves it out there.
    out = lambda: third.membership(room, third) != "join"
    until("the kick for who is kicked", out)
    refused(403, lambda: third.say(room, "still here?"))
    third.join(room, maker)
    for user in (maker, second):
        until(f"the return for {user.id}", lambda: user.membership(room, third) == "join")
    second.act(room, "ban", user_id=third.id)
    for user in (maker, second):
        until(f"the ban for {user.id}", lambda: user.membership(room, third) == "ban")
    until("the ban for who is banned", out)
    for via in (maker, second):
        refused(403, lambda: third.join(room, via))


def maker_leaves(maker, second, third):
    """The room lives on between the two others, and who left comes back by way of either."""
    room = room_of_three(maker, second, third)
    maker.act(room, "leave")
    for user in (second, third):
        until(f"the leave for {user.id}", lambda: user.membership(room, maker) == "leave")
    sees(third, room, second.say(room, "without its maker"))
    sees(second, room, third.say(room, "and still"))
    maker.join(room, third)
    said = maker.say(room, "back")
    all_see((second, third), room, said)
    bodies = ["without its maker", "and still", "back"]
    equal("what was said meanwhile", bodies, lambda: [body for body in maker.said(room, "") if body])


def side_by_side(maker, second, third):
    """All three change the same and speak at the same time; in the end they agree."""
    room = room_of_three(maker, second, third)
    users = (maker, second, third)
    levels = maker.state(room, "m.room.power_levels")
    levels["users"].update({second.id: 50, third.id: 50})
    all_see(users, room, maker.set_state(room, "m.room.power_levels", levels))
    events = []
    for turn in range(5):
        for user in users:
            user.set_state(room, "m.room.topic", {"topic": f"{turn} by {user.id}"})
            events.append(user.say(room, f"{turn} by {user.id}"))
    for event in events:
        all_see(users, room, event)
    # Something that is built upon all of it.
    all_see(users, room, maker.say(room, "the end"))
    topics = lambda: {user.state(room, "m.room.topic")["topic"] for user in users}
    until("the same topic", lambda: len(topics()) == 1)


def receipts(maker, second, third):
    """Receipts reach servers that have joined by way of each other."""
    room = room_of_three(maker, second, third)
    said = maker.say(room, "read me")
    all_see((second, third), room, said)
    third.act(room, f"receipt/m.read/{quote(said)}")

    def read(user):
        events = user.sync()["rooms"]["join"][room]["ephemeral"]["events"]
        return any(third.id in event["content"].get(said, {}).get("m.read", {}) for event in events)

    for user in (maker, second):
        until(f"the receipt for {user.id}", lambda: read(user))


FLOWS = [conversation, expulsion, maker_leaves, side_by_side, receipts]
