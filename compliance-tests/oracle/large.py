"""A large room with forks, for the time that a resolution takes: one line as `generate.py` writes it, with the times.

    large.py [--seed 1] [--members 10000] [--forks 20] [--version 11] | replay

From the state with all members several branches go on that do not hear of each other: in each some users leave, are
banned or change their names, and a few change the topic and the power levels. The state is then resolved from those
after all branches. The time of Synapse is that of its own code, with all events in memory: on a server its database comes on top.
"""

import argparse
import json
import time

from generate import Drafts, Room, state_json

TIMES = 5
STEPS_OF_A_FORK = 10


class Large(Room):
    def fill(self, members, forks):
        users = [f"@user{number}:{'abcd'[number % 4]}.example" for number in range(members)]
        self.users, self.federates, self.sparse, self.stringy = users, True, False, False
        creator = users[0]
        drafts = Drafts(self, {})
        content = {"room_version": self.version.identifier}
        if not self.version.implicit_room_creator:
            content["creator"] = creator
        last, _ = self.add(drafts.draft(creator, "m.room.create", content, ""), [])
        if self.version.msc4291_room_ids_as_hashes:
            self.room_id = "!" + last[1:]
        last = self.on(last, lambda drafts: drafts.draft(creator, "m.room.member", {"membership": "join"}, creator))
        levels = {"users": {user: 50 for user in users[1:21]}, "users_default": 0, "state_default": 50, "ban": 50}
        if not self.version.msc4289_creator_power_enabled:
            levels["users"][creator] = 100
        last = self.on(last, lambda drafts: drafts.draft(creator, "m.room.power_levels", levels, ""))
        last = self.on(last, lambda drafts: drafts.draft(creator, "m.room.join_rules", {"join_rule": "public"}, ""))
        for user in users[1:]:
            last = self.on(last, lambda drafts: drafts.draft(user, "m.room.member", {"membership": "join"}, user))
        self.tips = [self.branch(last, number) for number in range(forks)]

    def on(self, last, make, forget=True):
        """An event on another one, whose state nobody needs any more."""
        event_id, accepted = self.add(make(Drafts(self, self.after[last])), [last])
        assert accepted, self.steps[-1]
        if forget:
            del self.after[last]
        return event_id

    def branch(self, base, number):
        """What a moderator and some users do who do not hear of the other branches."""
        rng, last = self.rng, base
        moderator = self.users[1 + number % 20]
        creator = self.users[0]
        for step in range(STEPS_OF_A_FORK):
            user = rng.choice(self.users[21:])

            def make(drafts):
                if step == 3 and number % 4 == 0:
                    levels = drafts.content(("m.room.power_levels", ""))
                    levels["users"][user] = rng.choice([10, 25, 50])
                    return drafts.draft(creator, "m.room.power_levels", levels, "")
                if step == 6:
                    return drafts.draft(moderator, "m.room.topic", {"topic": f"{number}"}, "")
                if drafts.membership(user) != "join":
                    return drafts.draft(moderator, "m.room.name", {"name": f"{number}.{step}"}, "")
                if step % 3 == 0:
                    return drafts.draft(moderator, "m.room.member", {"membership": "ban"}, user)
                content = {"membership": "leave"} if step % 3 == 1 else {"membership": "join", "displayname": f"{step}"}
                return drafts.draft(user, "m.room.member", content, user)

            last = self.on(last, make, forget=last != base)
        return last

    def tamper(self, _draft, selected):
        return selected


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", default="1")
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--forks", type=int, default=20)
    parser.add_argument("--version", default="11")
    arguments = parser.parse_args()
    room = Large(arguments.seed, arguments.version)
    room.fill(arguments.members, arguments.forks)
    took_ms = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        state = room.resolve(room.tips)
        took_ms.append(1000 * (time.perf_counter() - begun))
    resolution = {"of": room.tips, "state": state_json(state), "took_ms": took_ms}
    line = {
        "seed": arguments.seed, "number": 0, "version": arguments.version,
        "events": room.steps, "resolutions": [resolution],
    }
    print(json.dumps(line, separators=(",", ":")))


if __name__ == "__main__":
    main()
