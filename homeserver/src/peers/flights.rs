//! About which servers something is being found out just now, so that nobody is asked twice at once.
//!
//! A [`Flight`] is taken for several servers together and given up one by one. Who finds one taken waits for it with
//! [`Flights::landed`], and only after its own are over, or not for long: so nobody waits in a circle for ever.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use ruma::{OwnedServerName, ServerName};
use tokio::sync::Semaphore;

type Taken = Arc<Mutex<BTreeMap<OwnedServerName, Arc<Semaphore>>>>;

/// Every flight there is.
#[derive(Debug, Default)]
pub(super) struct Flights(Taken);

/// The right and the duty to find something out about one server. Dropping it tells those who wait.
#[derive(Debug)]
pub(super) struct Flight {
    /// The server.
    pub(super) server: OwnedServerName,
    taken: Taken,
    landed: Arc<Semaphore>,
}

impl Flights {
    /// Takes the flight to `server`, if nobody has it.
    pub(super) fn take(&self, server: &ServerName) -> Option<Flight> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.contains_key(server) {
            return None;
        }
        // A semaphore without permits: who waits for one learns when it is closed.
        let landed = Arc::new(Semaphore::new(0));
        taken.insert(server.to_owned(), landed.clone());
        Some(Flight {
            server: server.to_owned(),
            taken: self.0.clone(),
            landed,
        })
    }

    /// Waits until who has the flight to `server` now has given it up.
    pub(super) async fn landed(&self, server: &ServerName) {
        let landed = {
            let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            taken.get(server).cloned()
        };
        if let Some(landed) = landed {
            // There is no permit, ever: this ends when the semaphore is closed.
            drop(landed.acquire().await);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&self.server);
        self.landed.close();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use ruma::server_name;

    use super::*;

    #[test]
    fn a_flight_is_taken_once_and_who_waits_learns_of_its_end() {
        let (flights, server) = (Flights::default(), server_name!("a"));
        let flight = flights.take(server).unwrap();
        assert!(flights.take(server).is_none());
        assert!(flights.take(server_name!("b")).is_some());
        let mut waiting = Box::pin(flights.landed(server));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(flight);
        assert!(waiting.now_or_never().is_some());
        assert!(flights.landed(server).now_or_never().is_some());
        assert!(flights.take(server).is_some());
    }
}
