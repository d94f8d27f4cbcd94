"""One server is not there for a while, and the other goes on without it: what was missed arrives, in order and once.

Servers keep little for one that is down: when it is back they send it the newest event of each room, and it asks for
the rest. So a room is read whole here, as a client does that scrolls back.
"""

from client import Follower, User, equal, quote, shared, until

# More than the fifty events of a transaction, and more than are asked for at a time when they are missing.
MANY = 75
FEW = 5


def miss(one, other, third):
    """What the server of `other` misses while it is down, in three rooms; a function that waits until it has it."""
    busy, quiet, changed = (shared(one, other) for _ in range(3))
    third.join(changed)
    kicked = User(other.server, "kicked")
    kicked.join(changed, one)
    until("the join", lambda: one.membership(changed, kicked) == "join")
    equal("the members", ["join", "join"], lambda: [other.membership(changed, who) for who in (third, kicked)])

    def happen():
        for number in range(MANY):
            one.say(busy, f"missed {number}")
        for number in range(FEW):
            one.say(quiet, f"missed {number}")
        one.set_state(changed, "m.room.topic", {"topic": "what was missed"})
        one.act(changed, "kick", user_id=kicked.id)
        third.act(changed, "leave")
        one.say(changed, "missed 0")
        one.send_to_device("org.guildhall.missed", {}, other)

    def arrived():
        equal("a busy room", [f"missed {number}" for number in range(MANY)], lambda: other.said(busy, "missed"))
        equal("a quiet room", [f"missed {number}" for number in range(FEW)], lambda: other.said(quiet, "missed"))
        equal("a changed room", ["missed 0"], lambda: other.said(changed, "missed"))
        assert other.state(changed, "m.room.topic")["topic"] == "what was missed"
        equal("who left", ["leave", "leave"], lambda: [other.membership(changed, who) for who in (third, kicked)])
        equal("the message to a device", 1, lambda: len(other.to_device("org.guildhall.missed")))
        for room in (busy, quiet, changed):
            kept = other.history(room)
            assert len({event["event_id"] for event in kept}) == len(kept), "an event is there twice"

    return busy, happen, arrived


def outage(one, other):
    """It is killed and comes back, and an admin of the other one says so."""
    _, happen, arrived = miss(one, other, User(one.server, "third"))
    with other.server.away():
        happen()
        until("a failure", lambda: one.server.leaves_alone(other.server))
    one.server.expect(other.server)
    arrived()


def return_with_a_word(one, other):
    """It comes back and says something, which is built upon what it knows and tells the other one that it is back."""
    room, happen, arrived = miss(one, other, User(one.server, "third"))
    with other.server.away():
        happen()
    follower = Follower(one)
    other.say(room, "back again")
    arrived()
    equal("the word", ["back again"], lambda: follower.sync().said(room, "back again"))
    # Both sides agree on what came of it.
    topic = one.set_state(room, "m.room.topic", {"topic": "one again"})
    until("the topic", lambda: other.event(room, topic))
    assert other.state(room, "m.room.topic")["topic"] == "one again"


def sender_restarts(one, other):
    """The server that sends ends, too, with a queue that nobody took. Of what it had only in memory, the newest event
    of the room is sent, and the other server asks for the rest in more than one request, or when somebody scrolls back.
    """
    room = shared(one, other)
    with other.server.away():
        for number in range(MANY):
            one.say(room, f"missed {number}")
        one.send_to_device("org.guildhall.missed", {}, other)
        one.server.stop()
    one.server.start()
    one.server.wait_until_up()
    one.say(room, "missed no more")
    wanted = [f"missed {number}" for number in range(MANY)] + ["missed no more"]
    equal("what was said", wanted, lambda: other.said(room, "missed"))
    equal("the message to a device", 1, lambda: len(other.to_device("org.guildhall.missed")))


def pause(one, other):
    """It answers nothing for a moment: a queue builds up that takes more than a transaction, and nothing is lost."""
    room = shared(one, other)
    follower = Follower(other)
    with other.server.frozen():
        for number in range(MANY):
            one.say(room, f"late {number}")
        one.act(room, "receipt/m.read/" + quote(one.set_state(room, "m.room.topic", {"topic": "late"})))
    wanted = [f"late {number}" for number in range(MANY)]
    equal("what was said", wanted, lambda: other.said(room, "late"))
    until("the topic", lambda: other.state(room, "m.room.topic")["topic"] == "late")
    # A client that was waiting is told of nothing twice.
    told = follower.sync().said(room, "late")
    assert len(set(told)) == len(told) and (follower.limited or told == wanted), told


FLOWS = [pause, outage, return_with_a_word, sender_restarts]
