//! The scenarios, one per line of the table, in the order in which they run: from a fresh
//! server to a full one, so that each memory figure is taken at the size that it names.

mod delivery;
mod remote;
mod send;
mod set_up;

use std::time::Duration;

use crate::failure::Failure;
use crate::report::Outcome;
use crate::world::World;

/// How long memory is left to calm down after the population is made.
const REST: Duration = Duration::from_secs(30);

/// Name and meaning. Those marked `false` run only when named with `--only`.
pub(crate) type Scenario = (&'static str, bool, &'static str);

/// Those on one server.
const ALONE: [Scenario; 16] = [
    ("memory-fresh", true, "memory before anything was asked"),
    ("send", true, "sequential send in a room of two"),
    ("concurrent", true, "32 senders in 8 rooms"),
    ("deliver", true, "send until the other's long-poll has it"),
    (
        "fanout-100",
        true,
        "send until the last of 100 long-polls has it",
    ),
    (
        "memory-population",
        true,
        "memory 30 s after 1,000 users in 100 rooms",
    ),
    ("initial-sync", true, "first sync of a user in 50 rooms"),
    ("many-rooms", true, "as fanout-100, each user in 50 rooms"),
    ("register", true, "registration, 8 at once"),
    ("join", true, "join one room, 16 at once"),
    ("big-send", true, "sequential send in a room of 1,000"),
    (
        "flood",
        true,
        "as deliver, while the room of 1,000 is flooded",
    ),
    (
        "big-fanout",
        true,
        "send until the last of 999 long-polls has it; memory then",
    ),
    ("create", true, "create rooms, one after the other"),
    ("create-8", true, "create rooms, 8 at once"),
    (
        "fill",
        false,
        "100,000 messages in 8 rooms, for the start-up with such a store",
    ),
];

/// Those between two servers; the second is the one that joins and reads.
const BETWEEN: [Scenario; 4] = [
    (
        "remote-deliver",
        true,
        "send until the long-poll on the other server has it",
    ),
    (
        "remote-flood",
        true,
        "messages in 50 rooms at once, until the other server has them",
    ),
    (
        "remote-join",
        true,
        "join a room of 1,000 on the other server, until a message is sent",
    ),
    ("remote-join-10k", false, "the same with 10,000"),
];

/// All that there are, on one server or between two.
pub(crate) fn all(between: bool) -> &'static [Scenario] {
    if between { &BETWEEN } else { &ALONE }
}

/// Runs the scenario called `name`, which is in [`all`].
pub(crate) async fn run(
    name: &str,
    world: &World,
    peer: Option<&World>,
) -> Result<Outcome, Failure> {
    if let Some(peer) = peer {
        return match name {
            "remote-deliver" => remote::deliver(world, peer).await,
            "remote-flood" => remote::flood(world, peer).await,
            "remote-join" => remote::join(world, peer, 1_000).await,
            "remote-join-10k" => remote::join(world, peer, 10_000).await,
            _ => Err(Failure::Usage(format!("--only {name}: no such scenario"))),
        };
    }
    match name {
        "memory-fresh" => {
            world.meter.settle().await?;
            memory(world)
        }
        "send" => send::sequential(world).await,
        "concurrent" => send::concurrent(world).await,
        "deliver" => delivery::to_one(world).await,
        "fanout-100" => delivery::to_hundred(world).await,
        "memory-population" => {
            world.population().await?;
            tokio::time::sleep(REST).await;
            memory(world)
        }
        "initial-sync" => set_up::initial_sync(world).await,
        "many-rooms" => delivery::to_hundred_in_many_rooms(world).await,
        "register" => Ok(world.crowd().await?.registrations.clone()),
        "join" => Ok(world.crowd().await?.joins.clone()),
        "big-send" => send::in_big_room(world).await,
        "flood" => delivery::beside_a_flood(world).await,
        "big-fanout" => delivery::to_a_crowd(world).await,
        "create" => set_up::create(world, 1).await,
        "create-8" => set_up::create(world, 8).await,
        "fill" => send::fill(world).await,
        _ => Err(Failure::Usage(format!("--only {name}: no such scenario"))),
    }
}

fn memory(world: &World) -> Result<Outcome, Failure> {
    Ok(Outcome::default().with("pss_mb", world.meter.pss_mb()?))
}
