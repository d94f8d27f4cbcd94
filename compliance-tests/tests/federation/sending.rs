//! Server-server API, "Transactions", "PDUs": what other servers are sent, and when.

use compliance_tests::{Client, Network, World, segment};
use homeserver::rooms::members::To;
use serde_json::{Value, json};

use crate::inbox::{Inbox, NEVER, edus, join_remote, move_remote, pdus, texts};

const HOUR_MS: u64 = 3_600_000;

/// A server with a user in a room with a user of another server.
async fn shared() -> (Network, World, Client, Inbox, String) {
    let network = Network::new();
    let world = network.server("hs1").await;
    let inbox = Inbox::new(&network, "hs2");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    (network, world, alice, inbox, room)
}

/// What an admin sees of a destination.
async fn destination(admin: &Client, name: &str) -> Value {
    let path = format!("/_synapse/admin/v1/federation/destinations/{name}");
    admin.get(&path).await.ok()
}

/// Waits until an admin sees that a destination fails, or that it does not.
async fn until_failing(admin: &Client, name: &str, failing: bool) -> Value {
    for _ in 0..100_000 {
        // Before anything was sent there it is not known.
        let path = format!("/_synapse/admin/v1/federation/destinations/{name}");
        let shown = admin.get(&path).await;
        if shown.status == 200 && shown.json()["failure_ts"].is_null() != failing {
            return shown.json();
        }
        tokio::task::yield_now().await;
    }
    panic!("{name} fails: not {failing}");
}

#[tokio::test]
async fn what_a_user_says_goes_to_the_servers_in_the_room_as_it_was_signed() {
    let (_, _, alice, inbox, room) = shared().await;
    let event_id = alice.say(&room, "hello").await;
    let pdu = inbox.text("hello").await;
    assert_eq!(pdu["sender"], "@alice:hs1");
    assert!(pdu["signatures"]["hs1"].is_object());
    assert_eq!(pdu.get("event_id"), None, "IDs are computed, not sent");
    assert_eq!(pdu.get("unsigned"), None);
    assert!(event_id.starts_with('$'));
    let arrived = inbox.transactions(1).await;
    assert_eq!(arrived[0].body["origin"], "hs1");
    assert!(arrived[0].body["origin_server_ts"].is_u64());
}

#[tokio::test]
async fn what_a_user_of_another_server_says_is_not_sent_on() {
    let (_, _, alice, inbox, room) = shared().await;
    alice.say(&room, "mine").await;
    inbox.text("mine").await;
    let senders: Vec<Value> = pdus(&inbox.arrived())
        .iter()
        .map(|pdu| pdu["sender"].clone())
        .collect();
    assert_eq!(senders, ["@alice:hs1"], "not the join of bob");
}

#[tokio::test]
async fn a_room_without_users_of_other_servers_is_nobody_elses() {
    let (_, _, alice, inbox, room) = shared().await;
    let own = alice.public_room().await;
    alice.say(&own, "private").await;
    alice.say(&room, "shared").await;
    inbox.text("shared").await;
    assert_eq!(texts(&inbox.arrived()), ["shared"]);
}

#[tokio::test]
async fn a_server_is_sent_its_users_kick_and_nothing_after_it() {
    let (network, world, alice, inbox, room) = shared().await;
    let third = Inbox::new(&network, "hs3");
    join_remote(&world, &room, "@carol:hs3").await;
    let kick = json!({ "user_id": "@bob:hs2" });
    let path = format!("/v3/rooms/{}/kick", segment(&room));
    alice.post(&path, kick).await.ok();
    alice.say(&room, "after").await;
    third.text("after").await;
    let kicks = inbox
        .until("the kick", |arrived| {
            let pdus = pdus(arrived);
            let kick = |pdu: &&Value| pdu["content"]["membership"] == "leave";
            pdus.iter().any(|pdu| kick(&pdu)).then_some(pdus)
        })
        .await;
    assert_eq!(kicks.last().unwrap()["state_key"], "@bob:hs2");
    assert_eq!(texts(&inbox.arrived()), [] as [&str; 0]);
}

#[tokio::test]
async fn a_server_without_members_is_sent_the_invite_of_its_user() {
    let (network, _, alice, _, room) = shared().await;
    let third = Inbox::new(&network, "hs3");
    alice.invite(&room, "@carol:hs3").await.ok();
    alice.say(&room, "not for hs3").await;
    let arrived = third.transactions(1).await;
    let invite = &pdus(&arrived)[0];
    assert_eq!(invite["content"]["membership"], "invite");
    assert_eq!(invite["state_key"], "@carol:hs3");
    assert_eq!(texts(&third.arrived()), [] as [&str; 0]);
}

#[tokio::test]
async fn transactions_hold_fifty_events_at_most_and_keep_their_order() {
    let (network, _, alice, inbox, room) = shared().await;
    network.cut("hs1", "hs2");
    alice.say(&room, "first").await;
    network.heal("hs1", "hs2");
    let said: Vec<String> = (0..120).map(|number| format!("m{number}")).collect();
    for text in &said {
        alice.say(&room, text).await;
    }
    inbox.text("m119").await;
    for transaction in inbox.arrived() {
        assert!(transaction.body["pdus"].as_array().unwrap().len() <= 50);
    }
    let arrived = texts(&inbox.arrived());
    let order: Vec<&String> = said.iter().filter(|text| arrived.contains(text)).collect();
    let arrived: Vec<&String> = arrived.iter().filter(|text| *text != "first").collect();
    assert_eq!(arrived, order);
}

#[tokio::test]
async fn a_transaction_whose_answer_is_lost_is_sent_again_as_it_was() {
    let (network, world, alice, inbox, room) = shared().await;
    alice.say(&room, "before").await;
    inbox.text("before").await;
    world.make_admin(&alice).await;
    until_failing(&alice, "hs2", false).await;
    let count = inbox.arrived().len();
    network.lose_replies("hs1", "hs2", 1);
    alice.say(&room, "lost").await;
    let first = inbox.transactions(count + 1).await;
    until_failing(&alice, "hs2", true).await;
    network.pass_ms(11_000);
    alice.say(&room, "wakes the sender").await;
    let again = inbox.transactions(count + 2).await;
    let (first, again) = (&first[count], &again[count + 1]);
    assert_eq!(first.txn_id, again.txn_id);
    assert_eq!(first.body, again.body);
    inbox.text("wakes the sender").await;
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_for_ten_seconds_and_then_twice_as_long() {
    let (network, world, alice, _, room) = shared().await;
    world.make_admin(&alice).await;
    network.cut("hs1", "hs2");
    alice.say(&room, "unheard").await;
    let shown = until_failing(&alice, "hs2", true).await;
    let since = shown["failure_ts"].as_u64().unwrap();
    assert_eq!(since, network.now_ms());
    assert!((10_000..=11_000).contains(&shown["retry_interval"].as_u64().unwrap()));
    let attempts = network.count("hs1", "hs2", "/send/");
    network.pass_ms(9_000);
    alice.say(&room, "too early").await;
    let later = destination(&alice, "hs2").await;
    assert_eq!(later["retry_last_ts"], since);
    assert_eq!(network.count("hs1", "hs2", "/send/"), attempts);
    network.pass_ms(2_000);
    alice.say(&room, "in time").await;
    let shown = loop {
        let shown = destination(&alice, "hs2").await;
        if shown["retry_last_ts"] != since {
            break shown;
        }
        tokio::task::yield_now().await;
    };
    assert!((20_000..=22_000).contains(&shown["retry_interval"].as_u64().unwrap()));
    assert_eq!(shown["failure_ts"], since);
}

#[tokio::test]
async fn a_request_of_the_server_ends_the_wait() {
    let (network, world, alice, inbox, room) = shared().await;
    world.make_admin(&alice).await;
    network.cut("hs1", "hs2");
    alice.say(&room, "missed").await;
    until_failing(&alice, "hs2", true).await;
    network.heal("hs1", "hs2");
    let hs2 = ruma::ServerName::parse("hs2").unwrap();
    assert!(world.server().app.outgoing.heard(&hs2));
    inbox.text("missed").await;
    let shown = until_failing(&alice, "hs2", false).await;
    assert_eq!(
        (&shown["retry_last_ts"], &shown["retry_interval"]),
        (&json!(0), &json!(0))
    );
    assert!(!world.server().app.outgoing.heard(&hs2));
}

#[tokio::test]
async fn an_admin_may_end_the_wait() {
    let (network, world, alice, inbox, room) = shared().await;
    let reset = "/_synapse/admin/v1/federation/destinations/hs2/reset_connection";
    alice.post(reset, json!({})).await.fails(403, "M_FORBIDDEN");
    world.make_admin(&alice).await;
    network.cut("hs1", "hs2");
    alice.say(&room, "missed").await;
    until_failing(&alice, "hs2", true).await;
    network.heal("hs1", "hs2");
    alice.post(reset, json!({})).await.ok();
    inbox.text("missed").await;
    until_failing(&alice, "hs2", false).await;
    alice.post(reset, json!({})).await.fails(400, "M_UNKNOWN");
}

#[tokio::test]
async fn admins_see_every_destination_page_by_page() {
    let (network, world, alice, inbox, room) = shared().await;
    let third = Inbox::new(&network, "hs3");
    join_remote(&world, &room, "@carol:hs3").await;
    alice.say(&room, "both").await;
    inbox.text("both").await;
    third.text("both").await;
    let list = "/_synapse/admin/v1/federation/destinations";
    alice.get(list).await.fails(403, "M_FORBIDDEN");
    world.make_admin(&alice).await;
    let all = alice.get(list).await.ok();
    let names: Vec<&Value> = all["destinations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shown| &shown["destination"])
        .collect();
    assert_eq!(names, ["hs2", "hs3"]);
    assert_eq!((&all["total"], all.get("next_token")), (&json!(2), None));
    let first = alice.get(&format!("{list}?limit=1&dir=b")).await.ok();
    assert_eq!(first["destinations"][0]["destination"], "hs3");
    assert_eq!(first["next_token"], "1");
    let one = alice.get(&format!("{list}?destination=S2")).await.ok();
    assert_eq!(one["total"], 1);
    let unknown = alice.get(&format!("{list}/hs4")).await;
    unknown.fails(404, "M_NOT_FOUND");
    let odd = alice.get(&format!("{list}?order_by=color")).await;
    odd.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn after_an_outage_the_newest_event_of_each_room_is_sent() {
    let (network, world, alice, inbox, room) = shared().await;
    let other = alice.public_room().await;
    join_remote(&world, &other, "@bob:hs2").await;
    world.make_admin(&alice).await;
    network.cut("hs1", "hs2");
    alice.say(&room, "fails").await;
    until_failing(&alice, "hs2", true).await;
    for number in 0..10 {
        alice.say(&room, &format!("a{number}")).await;
        alice.say(&other, &format!("b{number}")).await;
    }
    network.heal("hs1", "hs2");
    network.pass_ms(24 * HOUR_MS);
    alice.say(&room, "last").await;
    inbox.text("last").await;
    inbox.text("b9").await;
    let mut arrived = texts(&inbox.arrived());
    arrived.sort();
    assert_eq!(arrived, ["b9", "fails", "last"]);
    until_failing(&alice, "hs2", false).await;
    // And then everything again.
    for text in ["one", "two", "three"] {
        alice.say(&room, text).await;
    }
    inbox.text("three").await;
    assert_eq!(texts(&inbox.arrived())[3..], ["one", "two", "three"]);
}

#[tokio::test]
async fn what_is_refused_is_dropped_and_the_rest_goes_on() {
    let (_, world, alice, inbox, room) = shared().await;
    world.make_admin(&alice).await;
    inbox.answer(400, json!({ "errcode": "M_BAD_JSON", "error": "no" }));
    alice.say(&room, "refused").await;
    inbox.text("refused").await;
    alice.say(&room, "taken").await;
    inbox.text("taken").await;
    let shown = until_failing(&alice, "hs2", false).await;
    assert_eq!(shown["failure_ts"], Value::Null);
    assert_eq!(texts(&inbox.arrived()), ["refused", "taken"]);
}

#[tokio::test]
async fn a_server_may_say_how_long_it_wants_to_be_left_alone() {
    let (_, world, alice, inbox, room) = shared().await;
    world.make_admin(&alice).await;
    let busy = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "no", "retry_after_ms": 600_000 });
    inbox.answer(429, busy);
    alice.say(&room, "busy").await;
    let shown = until_failing(&alice, "hs2", true).await;
    assert!((600_000..=660_000).contains(&shown["retry_interval"].as_u64().unwrap()));
}

#[tokio::test]
async fn a_server_that_is_denied_is_sent_nothing_and_remembered_nowhere() {
    let network = Network::new();
    let world = network
        .server_with("hs1", |config| {
            config.federation.deny_servers = vec!["hs2".to_owned()];
        })
        .await;
    let denied = Inbox::new(&network, "hs2");
    let allowed = Inbox::new(&network, "hs3");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    join_remote(&world, &room, "@carol:hs3").await;
    for text in ["one", "two"] {
        alice.say(&room, text).await;
        allowed.text(text).await;
    }
    assert_eq!(denied.arrived().len(), 0);
    world.make_admin(&alice).await;
    let list = "/_synapse/admin/v1/federation/destinations";
    let all = alice.get(list).await.ok();
    assert_eq!(all["total"], 1, "{all}");
}

#[tokio::test]
async fn nothing_is_sent_by_a_server_that_does_not_federate() {
    let network = Network::new();
    let world = network
        .server_with("hs1", |config| config.federation.enabled = false)
        .await;
    Inbox::new(&network, "hs2");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    alice.say(&room, "hello").await;
    let messages = json!({ "messages": { "@bob:hs2": { "*": { "a": 1 } } } });
    let path = "/v3/sendToDevice/org.test/t1";
    alice.put(path, messages).await.ok();
    assert_eq!(network.requests("hs1", "hs2"), [] as [&str; 0]);
    let rows = [
        store::keys::Keyspace::DESTINATION,
        store::keys::Keyspace::DESTINATION_MESSAGE,
    ];
    for keyspace in rows {
        let mut found = 0;
        let prefix = store::keys::Packed::key(keyspace);
        let store = &world.server().app.store;
        store
            .visit(&prefix, store::kv::Direction::Ascending, |_, _| {
                found += 1;
                Ok(true)
            })
            .unwrap();
        assert_eq!(found, 0, "{keyspace:?}");
    }
}

#[tokio::test]
async fn what_was_not_taken_is_sent_after_a_restart() {
    let network = Network::new();
    let world = network.server_on_disk("hs1", |_| {}).await;
    let inbox = Inbox::new(&network, "hs2");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    world.make_admin(&alice).await;
    network.cut("hs1", "hs2");
    alice.say(&room, "before").await;
    until_failing(&alice, "hs2", true).await;
    let messages = json!({ "messages": { "@bob:hs2": { "*": { "a": 1 } } } });
    alice
        .put("/v3/sendToDevice/org.test/t1", messages)
        .await
        .ok();
    alice.say(&room, "missed").await;
    alice.say(&room, "newest").await;
    network.heal("hs1", "hs2");
    network.pass_ms(11_000);
    // Who has the old router has the old store.
    drop(alice);
    let world = world.restart(|_| {}).await;
    inbox.text("before").await;
    inbox.text("newest").await;
    inbox.edu("m.direct_to_device", |_| true).await;
    let messages = edus(&inbox.arrived(), "m.direct_to_device");
    assert_eq!(messages.len(), 1);
    drop(world);
}

#[tokio::test]
async fn what_was_under_way_when_the_server_was_stopped_is_sent_again() {
    let network = Network::new();
    let world = network.server_on_disk("hs1", |_| {}).await;
    let inbox = Inbox::new(&network, "hs2");
    let third = Inbox::new(&network, "hs3");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    alice.say(&room, "before").await;
    inbox.text("before").await;
    world.make_admin(&alice).await;
    until_failing(&alice, "hs2", false).await;
    inbox.answer(NEVER, json!({}));
    alice.say(&room, "under way").await;
    inbox.text("under way").await;
    // What goes on meanwhile is written down, as is how far the sender is.
    let other = alice.public_room().await;
    join_remote(&world, &other, "@carol:hs3").await;
    for number in 0..2 {
        let messages = json!({ "messages": { "@carol:hs3": { "*": { "n": number } } } });
        let path = format!("/v3/sendToDevice/org.test/{number}");
        alice.put(&path, messages).await.ok();
        third
            .edu("m.direct_to_device", |edu| {
                edu["messages"]["@carol:hs3"]["*"]["n"] == number
            })
            .await;
    }
    drop(alice);
    let world = world.restart(|_| {}).await;
    inbox
        .until("the event, again", |arrived| {
            let texts = texts(arrived);
            let found = texts.iter().filter(|text| *text == "under way").count();
            (found == 2).then_some(())
        })
        .await;
    drop(world);
}

#[tokio::test]
async fn what_was_said_while_nothing_was_sent_goes_to_those_who_were_there_then() {
    let network = Network::new();
    let world = network.server_on_disk("hs1", |_| {}).await;
    let inbox = Inbox::new(&network, "hs2");
    let third = Inbox::new(&network, "hs3");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    alice.say(&room, "before").await;
    inbox.text("before").await;
    drop(alice);
    let world = world
        .restart(|config| config.federation.enabled = false)
        .await;
    let alice = world.log_in("alice").await;
    alice.say(&room, "bob is here").await;
    move_remote(&world, &room, "@bob:hs2", To::Leave).await;
    alice.say(&room, "nobody is here").await;
    join_remote(&world, &room, "@carol:hs3").await;
    alice.say(&room, "carol is here").await;
    drop(alice);
    let world = world
        .restart(|config| config.federation.enabled = true)
        .await;
    inbox.text("bob is here").await;
    third.text("carol is here").await;
    let alice = world.log_in("alice").await;
    join_remote(&world, &room, "@bob:hs2").await;
    alice.say(&room, "both are here").await;
    inbox.text("both are here").await;
    third.text("both are here").await;
    let heard = |inbox: &Inbox| {
        let mut texts = texts(&inbox.arrived());
        texts.dedup();
        texts
    };
    // What was sent right before a restart may be sent again.
    let of_hs2 = heard(&inbox);
    assert_eq!(of_hs2, ["before", "bob is here", "both are here"]);
    assert_eq!(heard(&third), ["carol is here", "both are here"]);
}

#[tokio::test]
async fn an_event_that_this_server_was_given_for_the_room_is_passed_on_to_the_others() {
    let (network, world, alice, inbox, room) = shared().await;
    let third = Inbox::new(&network, "hs3");
    join_remote(&world, &room, "@carol:hs3").await;
    let path = format!("/v3/rooms/{}/state", segment(&room));
    let state = alice.get(&path).await.ok();
    let join = state
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["state_key"] == "@carol:hs3")
        .unwrap();
    let event_id: ruma::OwnedEventId = join["event_id"].as_str().unwrap().try_into().unwrap();
    let mut commit = store::Commit::new();
    homeserver::peers::sender::also(&mut commit, &event_id);
    world.server().app.store.commit(commit).await.unwrap();
    let passed = inbox
        .until("the join", |arrived| {
            let joins = pdus(arrived);
            joins
                .into_iter()
                .find(|pdu| pdu["state_key"] == "@carol:hs3")
        })
        .await;
    assert_eq!(passed["sender"], "@carol:hs3");
    alice.say(&room, "after").await;
    third.text("after").await;
    let kinds: Vec<Value> = pdus(&third.arrived())
        .iter()
        .map(|pdu| pdu["type"].clone())
        .collect();
    assert_eq!(kinds, ["m.room.message"], "it is not sent back");
}

#[tokio::test]
async fn who_joins_and_leaves_again_hears_nothing_of_what_follows() {
    let (network, world, alice, inbox, room) = shared().await;
    let third = Inbox::new(&network, "hs3");
    join_remote(&world, &room, "@carol:hs3").await;
    alice.say(&room, "one").await;
    third.text("one").await;
    move_remote(&world, &room, "@carol:hs3", To::Leave).await;
    alice.say(&room, "two").await;
    inbox.text("two").await;
    join_remote(&world, &room, "@carol:hs3").await;
    alice.say(&room, "three").await;
    third.text("three").await;
    assert_eq!(texts(&third.arrived()), ["one", "three"]);
}

#[tokio::test]
async fn metrics_count_transactions_by_outcome_and_destinations_by_condition() {
    let network = Network::new();
    let world = network.server("hs1").await;
    let inbox = Inbox::new(&network, "hs2");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    alice.say(&room, "hello").await;
    inbox.text("hello").await;
    network.cut("hs1", "hs2");
    world.make_admin(&alice).await;
    alice.say(&room, "lost").await;
    until_failing(&alice, "hs2", true).await;
    let page = homeserver::metrics::render(&world.server().app).await;
    for line in [
        "guildhall_federation_transactions_total{outcome=\"failed\"} 1",
        "guildhall_federation_destinations{condition=\"down\"} 1",
        "guildhall_federation_destinations{condition=\"up\"} 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    assert!(!page.contains("guildhall_federation_transactions_total{outcome=\"taken\"} 0"));
}
