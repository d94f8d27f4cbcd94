//! What happens between two servers that federate: `home` has the rooms and sends, the users of
//! `peer` join and read. The figure `cpu_ms` is the CPU time of `peer`, `home_cpu_ms` that of `home`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::clock;
use crate::conn::Conn;
use crate::failure::Failure;
use crate::matrix::{self, Mark, User};
use crate::poll::Pollers;
use crate::report::{Outcome, Window};
use crate::stats::Samples;
use crate::world::{World, spread};

/// Rooms that are joined, each once. On a slow server it takes minutes to fill one.
const JOINED_ROOMS: u32 = 3;
/// Rooms in which messages are sent at once.
const FLOODED_ROOMS: u32 = 50;
/// The flood goes on for at least this long.
const FLOOD_LEAST: Duration = Duration::from_secs(10);
/// What is sent into a flooded room at most.
const FLOOD_MAX: u32 = 200;
/// How often the reader of a flood asks, so that asking is no great part of the cost.
const READ_EVERY: Duration = Duration::from_millis(250);
/// Events of a room in an answer to it.
const READ_EVENTS: u32 = 100;
/// A flood that has not arrived this long after its end will not.
const FLOOD_PATIENCE: Duration = Duration::from_mins(3);
/// How long the one who waits gets to ask again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The CPU time of both servers.
struct Windows<'a> {
    peer: Window<'a>,
    home: Window<'a>,
}

impl<'a> Windows<'a> {
    fn open(home: &'a World, peer: &'a World) -> Result<Self, Failure> {
        Ok(Self {
            peer: Window::open(&peer.meter)?,
            home: Window::open(&home.meter)?,
        })
    }

    /// Closes when both have done what they put off.
    async fn close(self, outcome: Outcome, operations: u32) -> Result<Outcome, Failure> {
        let peer = self.peer.close().await?;
        let home = Outcome::default().over(&self.home.close().await?, operations);
        let outcome = outcome.over(&peer, operations);
        Ok(match home.figures.get("cpu_ms") {
            Some(cpu) => outcome.with("home_cpu_ms", *cpu),
            None => outcome,
        })
    }
}

/// A user of `peer` waits in a long-poll, one of `home` sends.
pub(super) async fn deliver(home: &World, peer: &World) -> Result<Outcome, Failure> {
    let (sender, reader) = (one(home).await?, one(peer).await?);
    let mut conn = home.site.conn();
    let room = matrix::create_room(&mut conn, &sender).await?;
    matrix::join_from_afar(&mut peer.site.conn(), &reader, &room, &sender).await?;
    let mut pollers = Pollers::start(peer, &[reader]).await?;
    // Not measured: the connection is opened, presence is told.
    for _ in 0..2 {
        let mark = home.next_mark();
        matrix::send(&mut conn, &sender, &room, mark).await?;
        pollers.last_got(mark).await?;
    }
    let count = home.scaled(200, 10);
    let mut samples = Samples::default();
    let windows = Windows::open(home, peer)?;
    for _ in 0..count {
        let mark = home.next_mark();
        let from = clock::now();
        matrix::send(&mut conn, &sender, &room, mark).await?;
        samples.push(
            pollers
                .last_got(mark)
                .await?
                .saturating_duration_since(from),
        );
        tokio::time::sleep(ASK_AGAIN).await;
    }
    let mut outcome = windows.close(Outcome::timed(samples), count).await?;
    // Rounds are held apart on purpose, so their rate means nothing.
    outcome.figures.remove("rate");
    Ok(outcome)
}

/// Users of `home` send into 50 rooms as fast as they are acknowledged, and a user of `peer` is in
/// all of them. The rate is that of the arrival there, from the first send until the last is there.
pub(super) async fn flood(home: &World, peer: &World) -> Result<Outcome, Failure> {
    let senders = home.users(home.scaled(FLOODED_ROOMS, 3)).await?;
    let reader = one(peer).await?;
    let mut conn = peer.site.conn();
    let mut rooms = Vec::new();
    for sender in senders {
        let room = matrix::create_room(&mut home.site.conn(), &sender).await?;
        matrix::join_from_afar(&mut conn, &reader, &room, &sender).await?;
        rooms.push((sender, room));
    }
    let filter = matrix::store_filter(&mut conn, &reader, READ_EVENTS).await?;
    let first = matrix::sync(&mut conn, &reader, &filter, None).await?;
    let mut since = matrix::next_batch(&first)?;
    peer.meter.settle().await?;
    home.meter.settle().await?;

    let windows = Windows::open(home, peer)?;
    let begin = clock::now();
    let sending = send_everywhere(home, rooms.clone(), begin);
    tokio::pin!(sending);
    let mut sent: Option<Vec<Sent>> = None;
    let (mut seen, mut twice) = (BTreeSet::new(), 0_u32);
    let mut last = begin;
    loop {
        tokio::select! {
            biased;
            all = &mut sending, if sent.is_none() => {
                sent = Some(all?);
                continue;
            }
            () = tokio::time::sleep(READ_EVERY) => {}
        }
        let body = matrix::sync(&mut conn, &reader, &filter, Some(&since)).await?;
        for mark in matrix::marks(&body) {
            last = clock::now();
            twice += u32::from(!seen.insert(mark));
        }
        since = matrix::next_batch(&body)?;
        if let Some(sent) = &sent {
            // What was skipped on the way does not come by /sync any more.
            let newest = sent.iter().filter_map(|room| room.marks.last());
            if newest.into_iter().all(|mark| seen.contains(mark)) {
                break;
            }
            if begin.elapsed() > longest(sent) + FLOOD_PATIENCE {
                return Err(Failure::Timeout {
                    what: format!("the flood: {} messages have arrived", seen.len()),
                });
            }
        }
    }
    let sent = sent.unwrap_or_default();
    let count = figure(sent.iter().map(|room| room.marks.len()).sum());
    let outcome = windows.close(Outcome::default(), count).await?;
    let skipped = count.saturating_sub(figure(seen.len()));
    // Whoever scrolls back finds what was skipped.
    for (_, room) in &rooms {
        seen.extend(matrix::history(&mut conn, &reader, room).await?);
    }
    let lost = count.saturating_sub(figure(seen.len()));
    Ok(outcome
        .with("rate", f64::from(count) / (last - begin).as_secs_f64())
        .with("send_rate", f64::from(count) / longest(&sent).as_secs_f64())
        .with("skipped", f64::from(skipped))
        .with("lost", f64::from(lost))
        .with("twice", f64::from(twice)))
}

/// What was sent into a room, oldest first, and how long after the begin it all was.
struct Sent {
    marks: Vec<Mark>,
    after: Duration,
}

fn longest(sent: &[Sent]) -> Duration {
    sent.iter().map(|room| room.after).max().unwrap_or_default()
}

async fn send_everywhere(
    home: &World,
    rooms: Vec<(User, String)>,
    begin: Instant,
) -> Result<Vec<Sent>, Failure> {
    let (least, most) = (home.scaled(20, 2), home.scaled(FLOOD_MAX, 4));
    let time = FLOOD_LEAST.mul_f64(home.scale);
    let marker = home.marker();
    spread(
        &home.site,
        rooms.len(),
        rooms,
        async move |conn: &mut Conn, (user, room): (User, String)| {
            let mut marks = Vec::new();
            for sent in 0..most {
                if sent >= least && begin.elapsed() >= time {
                    break;
                }
                let mark = marker();
                matrix::send(conn, &user, &room, mark).await?;
                marks.push(mark);
            }
            Ok(Sent {
                marks,
                after: begin.elapsed(),
            })
        },
    )
    .await
}

/// A user of `peer` joins rooms of so many members of `home`, each once and one after the other. A
/// sample ends when the first message is sent there.
pub(super) async fn join(home: &World, peer: &World, members: u32) -> Result<Outcome, Failure> {
    let users = home.users(home.scaled(members, 10)).await?;
    let joiner = one(peer).await?;
    let mut conn = peer.site.conn();
    let Some(maker) = users.first() else {
        return Err(Failure::Usage("a room without members".to_owned()));
    };
    // Not measured: a first join, by which the servers get to know each other.
    let small = matrix::create_room(&mut home.site.conn(), maker).await?;
    matrix::join_from_afar(&mut conn, &joiner, &small, maker).await?;
    let mut rooms = Vec::new();
    for _ in 0..JOINED_ROOMS {
        rooms.push(home.room_of(&users).await?);
    }
    peer.meter.settle().await?;
    home.meter.settle().await?;

    let (mut samples, mut joins) = (Samples::default(), Samples::default());
    let windows = Windows::open(home, peer)?;
    for room in &rooms {
        let from = clock::now();
        matrix::join_from_afar(&mut conn, &joiner, room, maker).await?;
        joins.push(from.elapsed());
        matrix::send(&mut conn, &joiner, room, peer.next_mark()).await?;
        samples.push(from.elapsed());
        // What is done after a join must not make the next one slower.
        peer.meter.settle().await?;
        home.meter.settle().await?;
    }
    let mut outcome = windows.close(Outcome::timed(samples), JOINED_ROOMS).await?;
    outcome.figures.remove("rate");
    // Of three there is no such thing.
    outcome.figures.remove("p99_ms");
    Ok(match joins.percentile(50) {
        Some(median) => outcome.with("join_ms", median),
        None => outcome,
    })
}

async fn one(world: &World) -> Result<User, Failure> {
    let mut users = world.users(1).await?;
    users
        .pop()
        .ok_or_else(|| Failure::Usage("a scenario without users".to_owned()))
}

fn figure(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
