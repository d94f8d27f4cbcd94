use super::*;

#[test]
fn a_server_that_fails_is_left_alone_for_longer_and_longer_unless_it_shows_itself() {
    let over = |times, seconds: u64, hurry| {
        let failure = Failure { last_ms: 5, times };
        failure.is_over(5 + seconds * 1_000, hurry)
    };
    for (times, seconds) in [(1, 60), (2, 120), (3, 240), (7, 3_600), (u32::MAX, 3_600)] {
        assert!(!over(times, seconds - 1, Hurry::Perhaps), "{times}");
        assert!(over(times, seconds, Hurry::Perhaps), "{times}");
        assert!(!over(times, 9, Hurry::Alive), "{times}");
        assert!(over(times, 10, Hurry::Alive), "{times}");
    }
}

#[test]
fn the_servers_that_failed_are_remembered_within_a_bound() {
    let keys = Keys::default();
    for number in 0..FAILURES_MAX + 10 {
        let name = ServerName::parse(format!("s{number}")).unwrap();
        keys.failed(&name, 1);
    }
    assert_eq!(keys.failures().len(), FAILURES_MAX);
}
