//! Sending while others wait in long-polls. A sample is the time from before the send until the
//! last of those who wait holds the whole answer with the message in it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::clock;
use crate::failure::Failure;
use crate::matrix::{self, User};
use crate::poll::Pollers;
use crate::report::{Outcome, Window};
use crate::stats::Samples;
use crate::world::World;

/// What a flooding user sends at most.
const FLOOD_MAX: u32 = 200_000;
/// How long those who wait get to ask again, when waiting for an idle server is not possible.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// When the next round may begin.
#[derive(Clone, Copy)]
enum Between {
    /// When the server is idle, so that everyone waits again.
    Settle,
    /// After this long.
    Sleep(Duration),
}

/// One waits.
pub(super) async fn to_one(world: &World) -> Result<Outcome, Failure> {
    let users = world.users(2).await?;
    let room = world.room_of(&users).await?;
    let (sender, waiting) = first_and_rest(&users)?;
    let mut pollers = Pollers::start(world, waiting).await?;
    let count = world.scaled(200, 10);
    rounds(
        world,
        sender,
        &room,
        &mut pollers,
        count,
        Between::Sleep(ASK_AGAIN),
    )
    .await
}

/// A hundred wait.
pub(super) async fn to_hundred(world: &World) -> Result<Outcome, Failure> {
    let users = world.users(world.scaled(100, 5) + 1).await?;
    let room = world.room_of(&users).await?;
    let (sender, waiting) = first_and_rest(&users)?;
    let mut pollers = Pollers::start(world, waiting).await?;
    let count = world.scaled(30, 3);
    rounds(world, sender, &room, &mut pollers, count, Between::Settle).await
}

/// A hundred wait, and each is in 50 rooms.
pub(super) async fn to_hundred_in_many_rooms(world: &World) -> Result<Outcome, Failure> {
    let population = world.population().await?;
    let (sender, _) = first_and_rest(&population.core)?;
    let room = population
        .core_rooms
        .first()
        .ok_or_else(|| Failure::Usage("a population without rooms".to_owned()))?;
    let mut pollers = Pollers::start(world, &population.core).await?;
    let count = world.scaled(20, 3);
    rounds(world, sender, room, &mut pollers, count, Between::Settle).await
}

/// All 999 others of the room of 1,000 wait. Memory is taken while they wait once more.
pub(super) async fn to_a_crowd(world: &World) -> Result<Outcome, Failure> {
    let crowd = world.crowd().await?;
    let (sender, waiting) = first_and_rest(&crowd.users)?;
    let mut pollers = Pollers::start(world, waiting).await?;
    let count = world.scaled(10, 2);
    let outcome = rounds(
        world,
        sender,
        &crowd.room,
        &mut pollers,
        count,
        Between::Settle,
    )
    .await?;
    Ok(outcome.with("pss_mb", world.meter.pss_mb()?))
}

/// One waits in a room of two, while a member of the room of 1,000 sends there without pause.
pub(super) async fn beside_a_flood(world: &World) -> Result<Outcome, Failure> {
    let crowd = world.crowd().await?;
    let users = world.users(2).await?;
    let room = world.room_of(&users).await?;
    let (sender, waiting) = first_and_rest(&users)?;
    let mut pollers = Pollers::start(world, waiting).await?;

    let (flooder, _) = first_and_rest(&crowd.users)?;
    let sent = Rc::new(Cell::new(0_u32));
    let mut flood = JoinSet::new();
    flood.spawn_local({
        let mut conn = world.site.conn();
        let (flooder, room) = (flooder.clone(), crowd.room.clone());
        let (marker, sent) = (world.marker(), Rc::clone(&sent));
        async move {
            while sent.get() < FLOOD_MAX {
                matrix::send(&mut conn, &flooder, &room, marker()).await?;
                sent.set(sent.get() + 1);
            }
            Ok::<_, Failure>(())
        }
    });
    let begin = clock::now();
    let count = world.scaled(100, 5);
    let samples = sample(
        world,
        sender,
        &room,
        &mut pollers,
        count,
        Between::Sleep(ASK_AGAIN),
    )
    .await?;
    let rate = f64::from(sent.get()) / begin.elapsed().as_secs_f64();
    if let Some(Ok(ended)) = flood.try_join_next() {
        ended?;
        return Err(Failure::Timeout {
            what: format!("deliveries, with the flood over after {FLOOD_MAX} messages"),
        });
    }
    Ok(Outcome::timed(samples)
        .with("n", f64::from(count))
        .with("flood_rate", rate))
}

/// [`sample`], with what a round costs. CPU time covers that everyone asks again, too.
async fn rounds(
    world: &World,
    sender: &User,
    room: &str,
    pollers: &mut Pollers,
    count: u32,
    between: Between,
) -> Result<Outcome, Failure> {
    // Not measured: the first message to fresh long-polls also tells of everyone's presence.
    sample(world, sender, room, pollers, 1, Between::Settle).await?;
    let window = Window::open(&world.meter)?;
    let samples = sample(world, sender, room, pollers, count, between).await?;
    let spent = window.close().await?;
    let mut outcome = Outcome::timed(samples).over(&spent, count);
    // Rounds are held apart on purpose, so their rate means nothing.
    outcome.figures.remove("rate");
    Ok(outcome)
}

/// Sends `count` messages one by one, and times the last arrival of each.
async fn sample(
    world: &World,
    sender: &User,
    room: &str,
    pollers: &mut Pollers,
    count: u32,
    between: Between,
) -> Result<Samples, Failure> {
    let mut conn = world.site.conn();
    let mut samples = Samples::default();
    for _ in 0..count {
        let mark = world.next_mark();
        let from = clock::now();
        matrix::send(&mut conn, sender, room, mark).await?;
        let last = pollers.last_got(mark).await?;
        samples.push(last.saturating_duration_since(from));
        match between {
            Between::Settle => world.meter.settle().await?,
            Between::Sleep(pause) => tokio::time::sleep(pause).await,
        }
    }
    Ok(samples)
}

fn first_and_rest(users: &[User]) -> Result<(&User, &[User]), Failure> {
    users
        .split_first()
        .ok_or_else(|| Failure::Usage("a scenario without users".to_owned()))
}
