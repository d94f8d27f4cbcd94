//! What the scenarios share: the server, how much of everything, and the users and rooms that are
//! expensive to make, made when first asked for.
//!
//! Counts are those of the table at scale 1; `--scale` shrinks them for a smoke run.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::task::JoinSet;

use crate::clock;
use crate::conn::{Conn, Site};
use crate::failure::Failure;
use crate::matrix::{self, Mark, User};
use crate::procs::Meter;
use crate::report::{Outcome, Window};
use crate::stats::Samples;

/// Joins to one room made at once; the table's row says 16.
const JOINS_AT_ONCE: usize = 16;
/// Preparations that are not measured by themselves run this wide.
const PREPARE_AT_ONCE: usize = 8;

/// See the module.
pub(crate) struct World {
    pub(crate) site: Site,
    pub(crate) meter: Meter,
    /// Over 0, at most 1.
    pub(crate) scale: f64,
    marks: Rc<Cell<Mark>>,
    names: Cell<u32>,
    population: OnceCell<Population>,
    crowd: OnceCell<Crowd>,
}

/// 1,000 users in 100 rooms. A tenth of them, the core, is in each of the first 50 rooms; everyone
/// else is in one of the other 50. Each room holds 20 messages. Nobody has synced.
pub(crate) struct Population {
    pub(crate) core: Vec<User>,
    /// The rooms of the core.
    pub(crate) core_rooms: Vec<String>,
}

/// 1,000 users of their own, all in one room and in no other. Nobody has synced.
pub(crate) struct Crowd {
    pub(crate) users: Vec<User>,
    pub(crate) room: String,
    /// How their registration went.
    pub(crate) registrations: Outcome,
    /// How it went when all but the first joined.
    pub(crate) joins: Outcome,
}

impl World {
    pub(crate) fn new(site: Site, meter: Meter, scale: f64) -> Self {
        Self {
            site,
            meter,
            scale,
            marks: Rc::default(),
            names: Cell::default(),
            population: OnceCell::new(),
            crowd: OnceCell::new(),
        }
    }

    /// `full` at this run's scale, but never under `least`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the scale is over 0 and at most 1, so the product is a u32"
    )]
    pub(crate) fn scaled(&self, full: u32, least: u32) -> u32 {
        ((f64::from(full) * self.scale).round() as u32).max(least)
    }

    /// The number of a message that has not been sent yet.
    pub(crate) fn next_mark(&self) -> Mark {
        next(&self.marks)
    }

    /// As [`World::next_mark`], for tasks that outlive the borrow.
    pub(crate) fn marker(&self) -> impl Fn() -> Mark + Clone + 'static {
        let marks = Rc::clone(&self.marks);
        move || next(&marks)
    }

    /// Registers `count` new users.
    pub(crate) async fn users(&self, count: u32) -> Result<Vec<User>, Failure> {
        Ok(self.registered(count).await?.0)
    }

    /// A room with these members; the first creates it.
    pub(crate) async fn room_of(&self, members: &[User]) -> Result<String, Failure> {
        Ok(self.joined(members).await?.0)
    }

    /// See [`Population`].
    pub(crate) async fn population(&self) -> Result<&Population, Failure> {
        if let Some(population) = self.population.get() {
            return Ok(population);
        }
        let users = self.users(self.scaled(1000, 20)).await?;
        let half = self.scaled(50, 2) as usize;
        let (core, others) = users.split_at(users.len() / 10);
        let creators: Vec<User> = core.iter().cycle().take(half).cloned().collect();
        let core_rooms = self.rooms_by(creators).await?;
        let other_creators: Vec<User> = others.iter().take(half).cloned().collect();
        let other_rooms = self.rooms_by(other_creators.clone()).await?;

        // User by user and room by room, so that what runs at once is in different rooms.
        let mut joins = Vec::new();
        for (number, user) in core.iter().enumerate() {
            for (room_number, room) in core_rooms.iter().enumerate() {
                if room_number % core.len() != number {
                    joins.push((user.clone(), room.clone()));
                }
            }
        }
        for (user, room) in others.iter().skip(half).zip(other_rooms.iter().cycle()) {
            joins.push((user.clone(), room.clone()));
        }
        spread(
            &self.site,
            PREPARE_AT_ONCE,
            joins,
            async |conn: &mut Conn, (user, room): (User, String)| {
                matrix::join(conn, &user, &room).await
            },
        )
        .await?;

        let mut messages = Vec::new();
        for _ in 0..self.scaled(20, 2) {
            for (room, user) in core_rooms.iter().zip(core.iter().cycle()) {
                messages.push((user.clone(), room.clone(), self.next_mark()));
            }
            for (room, user) in other_rooms.iter().zip(&other_creators) {
                messages.push((user.clone(), room.clone(), self.next_mark()));
            }
        }
        spread(
            &self.site,
            PREPARE_AT_ONCE,
            messages,
            async |conn: &mut Conn, (user, room, mark): (User, String, Mark)| {
                matrix::send(conn, &user, &room, mark).await
            },
        )
        .await?;
        let core = core.to_vec();
        Ok(self
            .population
            .get_or_init(|| Population { core, core_rooms }))
    }

    /// See [`Crowd`].
    pub(crate) async fn crowd(&self) -> Result<&Crowd, Failure> {
        if let Some(crowd) = self.crowd.get() {
            return Ok(crowd);
        }
        let (users, registrations) = self.registered(self.scaled(1000, 10)).await?;
        let (room, joins) = self.joined(&users).await?;
        Ok(self.crowd.get_or_init(|| Crowd {
            users,
            room,
            registrations,
            joins,
        }))
    }

    async fn registered(&self, count: u32) -> Result<(Vec<User>, Outcome), Failure> {
        let run = std::process::id();
        let names: Vec<String> = (0..count)
            .map(|_| format!("load{run}x{}", next(&self.names)))
            .collect();
        let window = Window::open(&self.meter)?;
        let registered = spread(
            &self.site,
            PREPARE_AT_ONCE,
            names,
            async |conn: &mut Conn, name: String| {
                let from = clock::now();
                let user = matrix::register(conn, &name).await?;
                Ok((user, from.elapsed()))
            },
        )
        .await?;
        let spent = window.close().await?;
        let (users, times): (Vec<_>, Vec<_>) = registered.into_iter().unzip();
        Ok((
            users,
            Outcome::timed(times.into_iter().collect()).over(&spent, count),
        ))
    }

    async fn joined(&self, members: &[User]) -> Result<(String, Outcome), Failure> {
        let Some((creator, others)) = members.split_first() else {
            return Err(Failure::Usage("a room needs a creator".to_owned()));
        };
        let room = matrix::create_room(&mut self.site.conn(), creator).await?;
        let window = Window::open(&self.meter)?;
        let joined_room = room.clone();
        let times: Samples = spread(
            &self.site,
            JOINS_AT_ONCE,
            others.to_vec(),
            async move |conn: &mut Conn, user: User| {
                let from = clock::now();
                matrix::join(conn, &user, &joined_room).await?;
                Ok(from.elapsed())
            },
        )
        .await?
        .into_iter()
        .collect();
        let count = u32::try_from(others.len()).unwrap_or(u32::MAX);
        let spent = window.close().await?;
        Ok((room, Outcome::timed(times).over(&spent, count)))
    }

    async fn rooms_by(&self, creators: Vec<User>) -> Result<Vec<String>, Failure> {
        spread(
            &self.site,
            PREPARE_AT_ONCE,
            creators.into_iter().collect(),
            async |conn: &mut Conn, user: User| matrix::create_room(conn, &user).await,
        )
        .await
    }
}

/// Does `work` for every item, `at_once` items at a time, each worker on a connection of its own.
/// The results come in the order of the items.
///
/// # Errors
/// The first that occurs; the other workers are then stopped.
pub(crate) async fn spread<T, R>(
    site: &Site,
    at_once: usize,
    items: Vec<T>,
    work: impl AsyncFn(&mut Conn, T) -> Result<R, Failure> + 'static,
) -> Result<Vec<R>, Failure>
where
    T: 'static,
    R: 'static,
{
    let queue: Rc<RefCell<VecDeque<(usize, T)>>> =
        Rc::new(RefCell::new(items.into_iter().enumerate().collect()));
    let work = Rc::new(work);
    let mut workers = JoinSet::new();
    for _ in 0..at_once {
        let queue = Rc::clone(&queue);
        let work = Rc::clone(&work);
        let mut conn = site.conn();
        workers.spawn_local(async move {
            let mut done = Vec::new();
            loop {
                // A statement of its own: the borrow must not last over the await below.
                let item = queue.borrow_mut().pop_front();
                let Some((number, item)) = item else {
                    return Ok(done);
                };
                done.push((number, work(&mut conn, item).await?));
            }
        });
    }
    let mut all = Vec::new();
    while let Some(finished) = workers.join_next().await {
        all.extend(finished.expect("a worker neither panics nor is aborted while it is joined")?);
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

fn next(counter: &Cell<u32>) -> u32 {
    let next = counter.get() + 1;
    counter.set(next);
    next
}
