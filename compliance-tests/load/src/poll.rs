//! Users who wait: each holds one `/sync` long-poll, and asks again as soon as it is answered, as
//! clients do. What arrives is told to the one who measures, with the time of arrival.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::clock;
use crate::conn::Conn;
use crate::failure::Failure;
use crate::matrix::{self, Mark, User};
use crate::world::{World, spread};

/// Arrivals that may wait to be counted; a poller that finds the queue full waits.
const ARRIVALS_MAX: usize = 8192;
/// A message that has not reached everyone by then will not.
const DELIVERY_MAX: Duration = Duration::from_mins(5);
/// Events of a room in an answer, as Element Web asks for them.
pub(crate) const TIMELINE: u32 = 20;
/// First syncs made at once while the pollers get ready.
const FIRST_SYNCS_AT_ONCE: usize = 8;

/// Some users' long-polls. Dropping it hangs up.
pub(crate) struct Pollers {
    count: usize,
    arrivals: mpsc::Receiver<Result<Arrival, Failure>>,
    _tasks: JoinSet<()>,
}

struct Arrival {
    poller: usize,
    mark: Mark,
    at: Instant,
}

struct Poller {
    conn: Conn,
    user: User,
    filter_id: String,
    since: String,
}

impl Pollers {
    /// Makes the first sync of every user, then leaves each waiting in a long-poll.
    pub(crate) async fn start(world: &World, users: &[User]) -> Result<Self, Failure> {
        let site = world.site.clone();
        let ready = spread(
            &world.site,
            FIRST_SYNCS_AT_ONCE,
            users.to_vec(),
            async move |conn: &mut Conn, user: User| {
                let filter_id = matrix::store_filter(conn, &user, TIMELINE).await?;
                let body = matrix::sync(conn, &user, &filter_id, None).await?;
                Ok(Poller {
                    conn: site.conn(),
                    user,
                    filter_id,
                    since: matrix::next_batch(&body)?,
                })
            },
        )
        .await?;
        let count = ready.len();
        let (tell, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let mut tasks = JoinSet::new();
        for (number, poller) in ready.into_iter().enumerate() {
            let tell = tell.clone();
            tasks.spawn_local(async move {
                if let Err(failure) = poller.run(number, &tell).await {
                    // Nobody listens any more: then nobody needs to know.
                    drop(tell.send(Err(failure)).await);
                }
            });
        }
        world.meter.settle().await?;
        Ok(Self {
            count,
            arrivals,
            _tasks: tasks,
        })
    }

    /// When the last poller got the message `mark`.
    ///
    /// # Errors
    /// It did not reach everyone within [`DELIVERY_MAX`], it reached someone twice, or a poller
    /// broke.
    pub(crate) async fn last_got(&mut self, mark: Mark) -> Result<Instant, Failure> {
        let mut got = vec![false; self.count];
        let mut last = clock::now();
        for so_far in 0..self.count {
            let arrival = tokio::time::timeout(DELIVERY_MAX, self.arrival_of(mark))
                .await
                .map_err(|_| Failure::Timeout {
                    what: format!("message {mark}: {so_far} of {} have it", self.count),
                })??;
            match got.get_mut(arrival.poller) {
                Some(already) if !*already => *already = true,
                _ => {
                    return Err(Failure::Answer {
                        request: format!("/sync, which delivered message {mark} twice,"),
                        lacks: "next_batch",
                    });
                }
            }
            last = arrival.at;
        }
        Ok(last)
    }

    async fn arrival_of(&mut self, mark: Mark) -> Result<Arrival, Failure> {
        loop {
            let arrival = self
                .arrivals
                .recv()
                .await
                .ok_or_else(|| Failure::Timeout {
                    what: "pollers, which have all ended".to_owned(),
                })??;
            if arrival.mark == mark {
                return Ok(arrival);
            }
        }
    }
}

impl Poller {
    async fn run(
        mut self,
        number: usize,
        tell: &mpsc::Sender<Result<Arrival, Failure>>,
    ) -> Result<(), Failure> {
        loop {
            let body = matrix::sync(
                &mut self.conn,
                &self.user,
                &self.filter_id,
                Some(&self.since),
            )
            .await?;
            let at = clock::now();
            for mark in matrix::marks(&body) {
                let arrival = Arrival {
                    poller: number,
                    mark,
                    at,
                };
                if tell.send(Ok(arrival)).await.is_err() {
                    return Ok(());
                }
            }
            self.since = matrix::next_batch(&body)?;
        }
    }
}
