//! What happens once for a user or a room: the first sync, creating a room.

use std::time::Duration;

use crate::clock;
use crate::conn::Conn;
use crate::failure::Failure;
use crate::matrix::{self, User};
use crate::poll::TIMELINE;
use crate::report::{Outcome, Window};
use crate::stats::Samples;
use crate::world::{World, spread};

/// Creating goes on for at least this long, since a fast server is done with the least number
/// before the CPU clock has ticked often enough.
const CREATE_LEAST: Duration = Duration::from_secs(3);
/// What each user creates at most.
const CREATE_MAX: u32 = 1000;

/// The first sync of users who are in 50 rooms each, one user after the other.
pub(super) async fn initial_sync(world: &World) -> Result<Outcome, Failure> {
    let population = world.population().await?;
    let count = world.scaled(40, 2);
    let mut conn = world.site.conn();
    let mut samples = Samples::default();
    let mut bytes = 0;
    let window = Window::open(&world.meter)?;
    for user in population.core.iter().take(count as usize) {
        let filter_id = matrix::store_filter(&mut conn, user, TIMELINE).await?;
        let from = clock::now();
        let body = matrix::sync(&mut conn, user, &filter_id, None).await?;
        samples.push(from.elapsed());
        bytes += body.len();
    }
    let spent = window.close().await?;
    let count = u32::try_from(samples.all().len()).unwrap_or(u32::MAX);
    let each = u32::try_from(bytes).unwrap_or(u32::MAX) / count.max(1);
    Ok(Outcome::timed(samples)
        .over(&spent, count)
        .with("body_bytes", f64::from(each)))
}

/// `at_once` users create public rooms, each the next when the last is there.
pub(super) async fn create(world: &World, at_once: u32) -> Result<Outcome, Failure> {
    let users = world.users(at_once).await?;
    let least = world.scaled(24, 2);
    let time = CREATE_LEAST.mul_f64(world.scale);
    let window = Window::open(&world.meter)?;
    let begin = clock::now();
    let samples: Samples = spread(
        &world.site,
        users.len(),
        users,
        async move |conn: &mut Conn, user: User| {
            let mut times = Vec::new();
            for created in 0..CREATE_MAX {
                if created >= least && begin.elapsed() >= time {
                    break;
                }
                let from = clock::now();
                matrix::create_room(conn, &user).await?;
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
