//! Sending without anyone listening: what an acknowledgement costs.

use std::time::Duration;

use crate::clock;
use crate::conn::Conn;
use crate::failure::Failure;
use crate::matrix::{self, User};
use crate::report::{Outcome, Window};
use crate::stats::Samples;
use crate::world::{World, spread};

const ROOMS: usize = 8;
const SENDERS_A_ROOM: usize = 4;
/// The concurrent senders go on for at least this long, since a fast server is done with the least
/// number before the CPU clock has ticked often enough.
const CONCURRENT_LEAST: Duration = Duration::from_secs(5);
/// What each concurrent sender sends at most.
const CONCURRENT_MAX: u32 = 2000;

/// One user sends in a room of two, the next message when the last was acknowledged.
pub(super) async fn sequential(world: &World) -> Result<Outcome, Failure> {
    let users = world.users(2).await?;
    let room = world.room_of(&users).await?;
    one_by_one(world, &users, &room).await
}

/// The same in the room of 1,000.
pub(super) async fn in_big_room(world: &World) -> Result<Outcome, Failure> {
    let crowd = world.crowd().await?;
    one_by_one(world, &crowd.users, &crowd.room).await
}

/// 32 users, four in each of 8 rooms, send as fast as they are acknowledged.
pub(super) async fn concurrent(world: &World) -> Result<Outcome, Failure> {
    let least = world.scaled(60, 2);
    all_at_once(
        world,
        least,
        CONCURRENT_LEAST.mul_f64(world.scale),
        CONCURRENT_MAX,
    )
    .await
}

/// The same until 100,000 messages are there.
pub(super) async fn fill(world: &World) -> Result<Outcome, Failure> {
    let each = world.scaled(100_000, 32).div_ceil(32);
    all_at_once(world, each, Duration::ZERO, each).await
}

async fn one_by_one(world: &World, members: &[User], room: &str) -> Result<Outcome, Failure> {
    let sender = members
        .first()
        .ok_or_else(|| Failure::Usage("a room without members".to_owned()))?;
    let mut conn = world.site.conn();
    for _ in 0..world.scaled(20, 2) {
        matrix::send(&mut conn, sender, room, world.next_mark()).await?;
    }
    let count = world.scaled(300, 10);
    let mut samples = Samples::default();
    let window = Window::open(&world.meter)?;
    for _ in 0..count {
        let from = clock::now();
        matrix::send(&mut conn, sender, room, world.next_mark()).await?;
        samples.push(from.elapsed());
    }
    let spent = window.close().await?;
    Ok(Outcome::timed(samples).over(&spent, count))
}

/// Each sends `least` messages, and goes on up to `most` until `time` is over.
async fn all_at_once(
    world: &World,
    least: u32,
    time: Duration,
    most: u32,
) -> Result<Outcome, Failure> {
    let mut senders = Vec::new();
    for _ in 0..ROOMS {
        let users = world.users(4).await?;
        debug_assert_eq!(users.len(), SENDERS_A_ROOM, "four in each room");
        let room = world.room_of(&users).await?;
        senders.extend(users.into_iter().map(|user| (user, room.clone())));
    }
    let marker = world.marker();
    let window = Window::open(&world.meter)?;
    let begin = clock::now();
    let samples: Samples = spread(
        &world.site,
        senders.len(),
        senders,
        async move |conn: &mut Conn, (user, room): (User, String)| {
            let mut times = Vec::new();
            for sent in 0..most {
                if sent >= least && begin.elapsed() >= time {
                    break;
                }
                let from = clock::now();
                matrix::send(conn, &user, &room, marker()).await?;
                times.push(from.elapsed());
            }
            Ok(times)
        },
    )
    .await?
    .into_iter()
    .flatten()
    .collect();
    let spent = window.close().await?;
    let count = u32::try_from(samples.all().len()).unwrap_or(u32::MAX);
    Ok(Outcome::timed(samples).over(&spent, count))
}
