//! The queue, driven by a loop that is the network, the store and the clock.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, RoomVersionId, UInt,
    api::federation::transactions::edu::{PresenceUpdate, ReceiptData},
    events::receipt::{Receipt, ReceiptThread},
    presence::PresenceState,
};
use serde_json::{Value, json};

use super::*;
use crate::event::rules_of;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

fn event(position: u64, room: u64) -> QueuedEvent {
    let event = json!({
        "room_id": "!a:hs1",
        "sender": "@a:hs1",
        "type": "m.room.message",
        "content": { "body": position },
        "origin_server_ts": 1,
        "prev_events": [],
        "auth_events": [],
        "depth": position,
        "hashes": { "sha256": "" },
    });
    let object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
    let rules = rules_of(&RoomVersionId::V11).unwrap();
    QueuedEvent {
        position,
        place: position,
        room,
        pdu: Arc::new(Pdu::from_canonical(&object, &rules).unwrap()),
    }
}

fn typing(user: &str) -> Moment {
    Moment::Typing {
        room: "!a:hs1".try_into().unwrap(),
        user: user.try_into().unwrap(),
        typing: true,
    }
}

fn receipt(room: &str, user: &str, thread: Option<&str>) -> Moment {
    let mut data = Receipt::new(MilliSecondsSinceUnixEpoch(UInt::from(1_u32)));
    data.thread = ReceiptThread::try_from(thread).unwrap();
    Moment::Receipt {
        room: room.try_into().unwrap(),
        user: user.try_into().unwrap(),
        data: ReceiptData::new(data, vec!["$e".try_into().unwrap()]),
    }
}

const FAILED: Outcome = Outcome::Failed {
    retry_after_ms: None,
    jitter: 0,
};

/// A destination with everything around its queue.
#[derive(Default)]
struct World {
    now_ms: u64,
    queue: DestinationQueue,
    /// The store: rooms with the newest position that the destination has not got.
    rooms: BTreeMap<u64, u64>,
    /// The store: kept EDUs.
    kept: Vec<u64>,
    /// The last transaction: positions, kept EDUs.
    last: (Vec<u64>, Vec<u64>),
    /// What arrived: positions of events, and kept EDUs.
    arrived: Vec<u64>,
    arrived_kept: Vec<u64>,
    /// How often something was sent.
    attempts: usize,
}

impl World {
    fn tell(&mut self, input: Input) {
        self.queue.handle(self.now_ms, input);
        self.note_spilled();
    }

    fn note_spilled(&mut self) {
        self.rooms.extend(self.queue.take_spilled());
    }

    /// Does what the queue says until it waits; `answer` is the network. When it wants to be asked again.
    fn run(&mut self, mut answer: impl FnMut(&[u64]) -> Outcome) -> Option<u64> {
        loop {
            match self.queue.next(self.now_ms) {
                Next::Wait(until) => return until,
                Next::Again => {}
                Next::Send(batch) => {
                    let mut events: Vec<u64> =
                        batch.events.iter().map(|event| event.position).collect();
                    if batch.behind {
                        assert!(events.is_empty(), "rooms go before events");
                        events = self.rooms.values().copied().take(PDUS_MAX).collect();
                        self.rooms.retain(|_, position| !events.contains(position));
                    }
                    let kept = if batch.kept {
                        let count = self.kept.len().min(50);
                        self.kept.drain(..count).collect()
                    } else {
                        Vec::new()
                    };
                    self.last = (events, kept);
                    let input = Input::Made {
                        kept: !self.kept.is_empty(),
                        behind: !self.rooms.is_empty(),
                    };
                    self.tell(input);
                }
            }
            self.attempts += 1;
            let outcome = answer(&self.last.0);
            if outcome == Outcome::Taken {
                self.arrived.append(&mut self.last.0);
                self.arrived_kept.append(&mut self.last.1);
            }
            self.tell(Input::Done(outcome));
        }
    }

    fn up(&mut self) {
        assert_eq!(self.run(|_| Outcome::Taken), None);
    }

    fn down(&mut self) -> u64 {
        self.run(|_| FAILED).expect("there is a next attempt")
    }
}

#[test]
fn events_arrive_in_order_at_most_fifty_at_a_time_and_one_transaction_after_another() {
    let mut world = World::default();
    for position in 1..=120 {
        world.tell(Input::Event(event(position, 1)));
    }
    let mut sizes = Vec::new();
    world.run(|events| {
        sizes.push(events.len());
        Outcome::Taken
    });
    assert_eq!(sizes, [50, 50, 20]);
    assert_eq!(world.arrived, (1..=120).collect::<Vec<_>>());
    assert_eq!(world.queue.saved().acknowledged, 120);
    assert!(world.queue.is_idle());
}

#[test]
fn only_one_transaction_is_under_way() {
    let mut queue = DestinationQueue::default();
    queue.handle(0, Input::Event(event(1, 1)));
    assert!(matches!(queue.next(0), Next::Send(_)));
    queue.handle(0, Input::Event(event(2, 1)));
    queue.handle(0, Input::Kept);
    assert!(matches!(queue.next(0), Next::Wait(None)));
    assert_eq!(queue.oldest(), Some(1));
    queue.handle(0, Input::Done(Outcome::Taken));
    assert_eq!(queue.oldest(), Some(2));
    assert!(matches!(queue.next(0), Next::Send(batch) if batch.kept && batch.events.len() == 1));
}

#[test]
fn a_transaction_that_failed_is_sent_again_before_any_other() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    world.now_ms = world.down();
    world.tell(Input::Event(event(2, 1)));
    assert!(matches!(world.queue.next(world.now_ms), Next::Again));
    world.tell(Input::Done(Outcome::Taken));
    world.up();
    assert_eq!(world.last.0, [] as [u64; 0]);
    assert_eq!(world.arrived, [2], "the first one is what was sent again");
}

#[test]
fn waits_double_from_ten_seconds_to_an_hour() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    let mut waits = Vec::new();
    for _ in 0..12 {
        let at = world.down();
        waits.push((at - world.now_ms) / 1_000);
        world.now_ms = at;
    }
    assert_eq!(
        waits,
        [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]
    );
}

#[test]
fn who_is_gone_for_a_week_is_asked_once_a_day() {
    assert_eq!(backoff_ms(20, 6 * HOUR_MS), HOUR_MS);
    assert_eq!(backoff_ms(40, 14 * HOUR_MS), 2 * HOUR_MS);
    assert_eq!(backoff_ms(60, 7 * DAY_MS), DAY_MS);
    assert_eq!(backoff_ms(u32::MAX, 100 * DAY_MS), DAY_MS);
    assert_eq!(backoff_ms(1, 100 * DAY_MS), 10_000);
}

#[test]
fn a_month_of_absence_is_asked_for_fewer_than_a_hundred_times() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    while world.now_ms < 30 * DAY_MS {
        world.now_ms = world.down();
    }
    assert!(
        (50..100).contains(&world.attempts),
        "{} attempts",
        world.attempts
    );
}

#[test]
fn a_request_of_the_peer_ends_the_wait() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    for _ in 0..8 {
        world.now_ms = world.down();
    }
    assert!(world.down() > world.now_ms);
    world.tell(Input::Heard);
    world.up();
    assert_eq!(world.arrived, [1]);
    assert_eq!(world.queue.saved().failing_since_ms, None);
    // And a failure after that is the first one again.
    world.tell(Input::Event(event(2, 1)));
    assert_eq!(world.down() - world.now_ms, BACKOFF_MS_MIN);
}

#[test]
fn the_peer_may_ask_for_a_longer_wait_but_not_for_more_than_a_day() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    let limited = |retry_after_ms| Outcome::Failed {
        retry_after_ms: Some(retry_after_ms),
        jitter: 0,
    };
    let at = world.run(|_| limited(60_000)).unwrap();
    assert_eq!(at, 60_000);
    world.now_ms = at;
    let at = world.run(|_| limited(1)).unwrap();
    assert_eq!(at - world.now_ms, 20_000);
    world.now_ms = at;
    let at = world.run(|_| limited(u64::MAX)).unwrap();
    assert_eq!(at - world.now_ms, DAY_MS);
}

#[test]
fn jitter_adds_a_tenth_at_most() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    let at = world.run(|_| Outcome::Failed {
        retry_after_ms: None,
        jitter: u32::MAX,
    });
    assert_eq!(at, Some(11_000));
}

#[test]
fn what_a_peer_refuses_is_dropped_and_the_rest_goes_on() {
    let mut world = World::default();
    for position in 1..=60 {
        world.tell(Input::Event(event(position, 1)));
    }
    let mut refused = false;
    let until = world.run(|_| {
        let outcome = if refused {
            Outcome::Taken
        } else {
            Outcome::Refused
        };
        refused = true;
        outcome
    });
    assert_eq!(until, None);
    assert_eq!(world.arrived, (51..=60).collect::<Vec<_>>());
}

#[test]
fn after_an_outage_the_newest_event_of_each_room_is_sent_and_no_other() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    world.now_ms = world.down();
    for position in 2..=1_000 {
        world.tell(Input::Event(event(position, position % 3)));
    }
    assert_eq!(world.queue.condition(), Condition::Down);
    assert_eq!(world.queue.oldest(), None, "nothing waits in memory");
    world.up();
    assert_eq!(world.arrived, [1, 999, 1_000, 998]);
    assert_eq!(world.queue.condition(), Condition::Up);
    // And then it is as before.
    world.tell(Input::Event(event(1_001, 1)));
    world.tell(Input::Event(event(1_002, 1)));
    world.up();
    assert_eq!(world.arrived[4..], [1_001, 1_002]);
}

#[test]
fn events_that_come_while_the_last_rooms_are_sent_are_all_sent() {
    let mut world = World {
        rooms: BTreeMap::from([(1, 5)]),
        ..World::default()
    };
    world.tell(Input::Behind);
    let Next::Send(batch) = world.queue.next(0) else {
        panic!("there is something to send");
    };
    assert!(batch.behind);
    world.tell(Input::Made {
        kept: false,
        behind: false,
    });
    world.rooms.clear();
    for position in 6..=8 {
        world.tell(Input::Event(event(position, 1)));
    }
    world.tell(Input::Done(Outcome::Taken));
    world.up();
    assert_eq!(world.arrived, [6, 7, 8]);
}

#[test]
fn many_rooms_take_several_transactions() {
    let mut world = World {
        rooms: (1..=120).map(|room| (room, room)).collect(),
        ..World::default()
    };
    world.tell(Input::Behind);
    world.up();
    assert_eq!(world.attempts, 3);
    assert_eq!(world.arrived.len(), 120);
}

#[test]
fn a_peer_that_does_not_keep_up_falls_behind_instead_of_filling_the_memory() {
    let mut queue = DestinationQueue::default();
    queue.handle(0, Input::Event(event(1, 1)));
    assert!(matches!(queue.next(0), Next::Send(_)));
    for position in 2..=1 + EVENTS_MAX as u64 {
        queue.handle(0, Input::Event(event(position, 2)));
    }
    assert_eq!(queue.take_spilled(), BTreeMap::new());
    queue.handle(0, Input::Event(event(500, 3)));
    assert_eq!(
        queue.take_spilled(),
        BTreeMap::from([(2, 1 + EVENTS_MAX as u64), (3, 500)])
    );
    queue.handle(0, Input::Done(Outcome::Taken));
    assert!(matches!(queue.next(0), Next::Send(batch) if batch.behind && batch.events.is_empty()));
}

#[test]
fn an_outage_loses_moments_but_nothing_that_is_kept() {
    let mut world = World {
        kept: vec![1, 2],
        ..World::default()
    };
    world.tell(Input::Kept);
    world.now_ms = world.down();
    world.tell(Input::Moment(typing("@a:hs1")));
    world.kept = (3..=120).collect();
    world.tell(Input::Kept);
    let mut moments = 0;
    loop {
        match world.queue.next(world.now_ms) {
            Next::Wait(_) => break,
            Next::Again => {}
            Next::Send(batch) => {
                moments += batch.moments.len();
                assert!(batch.kept);
                let count = world.kept.len().min(50);
                world.last.1 = world.kept.drain(..count).collect();
                let kept = !world.kept.is_empty();
                world.tell(Input::Made {
                    kept,
                    behind: false,
                });
            }
        }
        world.arrived_kept.append(&mut world.last.1);
        world.tell(Input::Done(Outcome::Taken));
    }
    assert_eq!(world.arrived_kept, (1..=120).collect::<Vec<_>>());
    assert_eq!(moments, 0);
}

#[test]
fn the_wait_outlives_a_restart() {
    let mut world = World::default();
    world.tell(Input::Event(event(1, 1)));
    for _ in 0..4 {
        world.now_ms = world.down();
    }
    let at = world.down();
    let saved = serde_json::to_string(world.queue.saved()).unwrap();
    world.queue = DestinationQueue::restore(serde_json::from_str(&saved).unwrap());
    assert!(matches!(world.queue.next(at - 1), Next::Wait(Some(until)) if until == at));
    assert!(matches!(world.queue.next(at), Next::Again));
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_a_peer() {
    let mut queue = DestinationQueue::restore(Saved {
        failures: 3,
        retry_at_ms: 100 * DAY_MS,
        again: true,
        ..Saved::default()
    });
    assert!(matches!(queue.next(DAY_MS), Next::Again));
}

#[test]
fn what_was_taken_before_a_restart_is_not_queued_again() {
    let mut world = World {
        queue: DestinationQueue::restore(Saved {
            acknowledged: 7,
            ..Saved::default()
        }),
        ..World::default()
    };
    world.tell(Input::Event(event(7, 1)));
    assert!(world.queue.is_idle());
    world.tell(Input::Event(event(8, 1)));
    world.up();
    assert_eq!(world.arrived, [8]);
}

/// The EDUs of the moments that were told to an idle queue.
fn edus(moments: impl IntoIterator<Item = Moment>) -> Vec<Value> {
    let mut queue = DestinationQueue::default();
    for moment in moments {
        queue.handle(0, Input::Moment(moment));
    }
    match queue.next(0) {
        Next::Send(batch) => batch
            .moments
            .iter()
            .map(|edu| serde_json::from_str(edu.get()).unwrap())
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn receipts_of_many_users_and_rooms_are_one_edu_and_threads_need_more() {
    let told = edus([
        receipt("!a:hs1", "@a:hs1", None),
        receipt("!a:hs1", "@b:hs1", None),
        receipt("!b:hs1", "@a:hs1", None),
    ]);
    assert_eq!(told.len(), 1);
    let content = &told[0]["content"];
    assert_eq!(content["!a:hs1"]["m.read"].as_object().unwrap().len(), 2);
    assert_eq!(
        content["!b:hs1"]["m.read"]["@a:hs1"],
        json!({ "data": { "ts": 1 }, "event_ids": ["$e"] })
    );
    let told = edus([
        receipt("!a:hs1", "@a:hs1", None),
        receipt("!a:hs1", "@a:hs1", Some("main")),
        receipt("!a:hs1", "@a:hs1", Some("$root")),
    ]);
    let threads: Vec<&Value> = told
        .iter()
        .map(|edu| &edu["content"]["!a:hs1"]["m.read"]["@a:hs1"]["data"]["thread_id"])
        .collect();
    assert_eq!(threads, [&Value::Null, &json!("$root"), &json!("main")]);
}

#[test]
fn presence_is_told_of_fifty_users_at_a_time_and_only_the_latest() {
    let update = |user: usize, state| {
        let user = format!("@u{user}:hs1").try_into().unwrap();
        Moment::Presence(PresenceUpdate::new(user, state, UInt::from(1_u32)))
    };
    let mut moments: Vec<Moment> = (0..51)
        .map(|user| update(user, PresenceState::Online))
        .collect();
    moments.push(update(0, PresenceState::Offline));
    let told = edus(moments);
    let sizes: Vec<usize> = told
        .iter()
        .map(|edu| edu["content"]["push"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [50, 1]);
    assert_eq!(told[0]["content"]["push"][0]["presence"], "offline");
}

#[test]
fn moments_take_half_a_transaction_and_a_bounded_memory() {
    let told = edus((0..2_000).map(|user| typing(&format!("@u{user}:hs1"))));
    assert_eq!(told.len(), EDUS_OF_MOMENTS_MAX);
    let mut queue = DestinationQueue::default();
    for user in 0..2_000 {
        queue.handle(0, Input::Moment(typing(&format!("@u{user}:hs1"))));
    }
    let mut sent = 0;
    while let Next::Send(batch) = queue.next(0) {
        sent += batch.moments.len();
        queue.handle(0, Input::Done(Outcome::Taken));
    }
    assert_eq!(sent, MOMENTS_MAX);
}
