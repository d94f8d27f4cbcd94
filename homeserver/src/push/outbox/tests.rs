//! The queues, without any gateway.

use store::keys::UserNum;

use super::*;

fn key(user: u64) -> PusherKey {
    PusherKey {
        user: UserNum(user),
        app_id: "app".to_owned(),
        pushkey: "key".to_owned(),
    }
}

fn item(position: Position) -> Item {
    Item {
        room: RoomNum(1),
        position,
        actions: Vec::new(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test needs some instant to begin at"
)]
fn now() -> Instant {
    Instant::now()
}

fn position(task: Option<(PusherKey, Task)>) -> Option<Position> {
    match task?.1 {
        Task::Event(item) => Some(item.position),
        Task::Badge => Some(0),
    }
}

#[test]
fn a_pusher_is_told_one_thing_at_a_time_and_in_order() {
    let (mut outbox, now) = (Outbox::default(), now());
    outbox.add(&key(1), item(1));
    outbox.add(&key(1), item(2));
    outbox.add(&key(2), item(3));
    assert_eq!(outbox.oldest(), Some(1));
    assert_eq!(position(outbox.next(now)), Some(1));
    assert_eq!(position(outbox.next(now)), Some(3));
    assert_eq!(position(outbox.next(now)), None);
    outbox.sent(&key(1));
    assert_eq!(outbox.oldest(), Some(2));
    assert_eq!(position(outbox.next(now)), Some(2));
}

#[test]
fn a_failure_is_tried_again_later_and_later_and_at_last_given_up() {
    let (mut outbox, begin) = (Outbox::default(), now());
    outbox.add(&key(1), item(1));
    let mut now = begin;
    let mut last = Duration::ZERO;
    let mut tries = 0;
    while position(outbox.next(now)) == Some(1) {
        tries += 1;
        outbox.failed(&key(1), now, 0.0);
        let at = outbox.wake_at().unwrap();
        assert_eq!(position(outbox.next(at - Duration::from_millis(1))), None);
        let wait = at - now;
        assert!(
            wait >= last && wait <= BACKOFF_MAX,
            "{wait:?} after {last:?}"
        );
        (last, now) = (wait, at);
    }
    assert!(tries > 100, "{tries}");
    assert!(now - begin >= GIVE_UP && now - begin < GIVE_UP + 2 * BACKOFF_MAX);
    assert_eq!(outbox.oldest(), None);
    assert_eq!(outbox.take_dropped(), 1);
}

#[test]
fn a_full_queue_drops_its_oldest_but_not_what_is_under_way() {
    let (mut outbox, now) = (Outbox::default(), now());
    for position in 1..=QUEUE_MAX as u64 {
        outbox.add(&key(1), item(position));
    }
    assert_eq!(outbox.take_dropped(), 0);
    assert_eq!(position(outbox.next(now)), Some(1));
    outbox.add(&key(1), item(1_000));
    assert_eq!(outbox.take_dropped(), 1);
    assert_eq!(outbox.oldest(), Some(1));
    outbox.sent(&key(1));
    assert_eq!(position(outbox.next(now)), Some(3));
}

#[test]
fn an_event_tells_the_count_too_and_a_skipped_one_does_not() {
    let (mut outbox, now) = (Outbox::default(), now());
    outbox.badge(&key(1));
    outbox.badge(&key(1));
    outbox.add(&key(1), item(1));
    assert_eq!(position(outbox.next(now)), Some(1));
    outbox.sent(&key(1));
    assert_eq!(position(outbox.next(now)), None);
    outbox.badge(&key(1));
    outbox.add(&key(1), item(2));
    assert_eq!(position(outbox.next(now)), Some(2));
    outbox.skipped(&key(1));
    assert_eq!(position(outbox.next(now)), Some(0));
    outbox.sent(&key(1));
    assert_eq!(position(outbox.next(now)), None);
}

#[test]
fn no_more_than_so_many_are_told_at_once_and_the_forgotten_make_room() {
    let (mut outbox, now) = (Outbox::default(), now());
    for user in 0..=SENDING_MAX as u64 {
        outbox.add(&key(user), item(user + 1));
    }
    for _ in 0..SENDING_MAX {
        assert!(outbox.next(now).is_some());
    }
    assert!(outbox.next(now).is_none());
    outbox.forget(&key(0));
    assert_eq!(position(outbox.next(now)), Some(SENDING_MAX as u64 + 1));
    // What comes back for the forgotten changes nothing.
    outbox.sent(&key(0));
    outbox.failed(&key(0), now, 0.5);
    assert!(outbox.next(now).is_none());
}
