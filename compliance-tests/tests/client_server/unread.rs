//! Unread counts: in `/sync`, by thread, in sliding sync; push rules; what was notified before.

use compliance_tests::{Client, World, segment};
use serde_json::{Value, json};

const BY_THREAD: &str = "filter=%7B%22room%22%3A%7B%22timeline%22%3A%7B%22unread_thread_notifications%22%3Atrue%7D%7D%7D";

async fn read(client: &Client, room: &str, event: &str, body: Value) {
    let path = format!(
        "/v3/rooms/{}/receipt/m.read/{}",
        segment(room),
        segment(event)
    );
    client.post(&path, body).await.ok();
}

/// Notifications and highlights of a room, as a first sync tells them.
async fn counts(client: &Client, room: &str) -> (u64, u64) {
    of(&client.sync(None, "").await["rooms"]["join"][room]["unread_notifications"])
}

fn of(counts: &Value) -> (u64, u64) {
    let count = |key: &str| counts[key].as_u64().unwrap();
    (count("notification_count"), count("highlight_count"))
}

async fn in_thread(client: &Client, room: &str, root: &str, text: &str) -> String {
    related(client, room, root, "m.thread", text).await
}

async fn related(client: &Client, room: &str, target: &str, rel: &str, text: &str) -> String {
    let relation = json!({ "rel_type": rel, "event_id": target });
    let content = json!({ "msgtype": "m.text", "body": text, "m.relates_to": relation });
    let reply = client.send(room, "m.room.message", content).await.ok();
    reply["event_id"].as_str().unwrap().to_owned()
}

async fn room_of(alice: &Client, bob: &Client) -> String {
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    room
}

#[tokio::test]
async fn messages_of_others_count_until_they_are_read_and_own_ones_never() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    assert_eq!(counts(&bob, &room).await, (0, 0));
    let first = alice.say(&room, "one").await;
    let second = alice.say(&room, "two").await;
    assert_eq!(counts(&bob, &room).await, (2, 0));
    assert_eq!(counts(&alice, &room).await, (0, 0));
    read(&bob, &room, &first, json!({})).await;
    assert_eq!(counts(&bob, &room).await, (1, 0));
    read(&bob, &room, &second, json!({})).await;
    assert_eq!(counts(&bob, &room).await, (0, 0));
    alice.say(&room, "three").await;
    bob.say(&room, "an answer reads what came before it").await;
    assert_eq!(counts(&bob, &room).await, (0, 0));
    assert_eq!(counts(&alice, &room).await, (1, 0));
}

#[tokio::test]
async fn a_receipt_wakes_its_own_user_even_one_who_wants_no_receipts() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    let event = alice.say(&room, "one").await;
    let none = "filter=%7B%22room%22%3A%7B%22ephemeral%22%3A%7B%22types%22%3A%5B%5D%7D%7D%7D";
    let first = bob.sync(None, none).await;
    let since = first["next_batch"].as_str().unwrap();
    let path = format!("/v3/sync?since={since}&timeout=30000&{none}");
    let waits = bob.get(&path);
    let reads = async {
        tokio::task::yield_now().await;
        let path = format!("/v3/rooms/{}/read_markers", segment(&room));
        bob.post(&path, json!({ "m.read.private": event }))
            .await
            .ok();
    };
    let (answer, ()) = tokio::join!(waits, reads);
    let joined = answer.ok()["rooms"]["join"][&room].clone();
    assert_eq!(of(&joined["unread_notifications"]), (0, 0));
}

#[tokio::test]
async fn threads_are_counted_apart_when_asked_for_and_read_apart() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    let root = alice.say(&room, "hello").await;
    let start = in_thread(&alice, &room, &root, "start").await;
    in_thread(&alice, &room, &root, "@bob:hs1: look").await;
    let hello = alice.say(&room, "hello @bob:hs1!").await;
    in_thread(&alice, &room, &root, "end").await;
    let reference = related(&alice, &room, &root, "m.reference", "see").await;
    let relation = json!({ "rel_type": "m.annotation", "event_id": reference, "key": "x" });
    let reaction = alice
        .send(&room, "m.reaction", json!({ "m.relates_to": relation }))
        .await
        .ok();
    let apart = async || {
        let answer = bob.sync(None, BY_THREAD).await;
        let joined = &answer["rooms"]["join"][&room];
        let thread = &joined["unread_thread_notifications"][&root];
        let thread = (!thread.is_null()).then(|| of(thread));
        (of(&joined["unread_notifications"]), thread)
    };
    assert_eq!(counts(&bob, &room).await, (6, 2));
    assert_eq!(apart().await, ((3, 1), Some((3, 1))));
    read(&bob, &room, &root, json!({ "thread_id": "main" })).await;
    assert_eq!(counts(&bob, &room).await, (5, 2));
    assert_eq!(apart().await, ((2, 1), Some((3, 1))));
    read(&bob, &room, &start, json!({ "thread_id": root })).await;
    assert_eq!(apart().await, ((2, 1), Some((2, 1))));
    read(&bob, &room, &hello, json!({})).await;
    assert_eq!(apart().await, ((1, 0), Some((1, 0))));
    let reaction = reaction["event_id"].as_str().unwrap();
    read(&bob, &room, reaction, json!({ "thread_id": root })).await;
    assert_eq!(apart().await, ((1, 0), None));
    assert_eq!(counts(&bob, &room).await, (1, 0));
    in_thread(&alice, &room, &root, "once more").await;
    in_thread(
        &bob,
        &room,
        &root,
        "what I say in a thread reads that thread alone",
    )
    .await;
    assert_eq!(apart().await, ((1, 0), None));
}

#[tokio::test]
async fn what_is_redacted_or_said_by_the_ignored_counts_no_more() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    let event = alice.say(&room, "one").await;
    alice.say(&room, "two").await;
    assert_eq!(counts(&bob, &room).await, (2, 0));
    let path = format!(
        "/v3/rooms/{}/redact/{}/txn",
        segment(&room),
        segment(&event)
    );
    alice.put(&path, json!({})).await.ok();
    assert_eq!(counts(&bob, &room).await, (1, 0));
    let path = format!(
        "/v3/user/{}/account_data/m.ignored_user_list",
        segment(&bob.user_id)
    );
    bob.put(&path, json!({ "ignored_users": { "@alice:hs1": {} } }))
        .await
        .ok();
    assert_eq!(counts(&bob, &room).await, (0, 0));
}

#[tokio::test]
async fn a_mention_stands_out_by_the_way_its_sender_chose() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let name = format!("/v3/profile/{}/displayname", segment(&bob.user_id));
    bob.put(&name, json!({ "displayname": "Robert Tables" }))
        .await
        .ok();
    let room = room_of(&alice, &bob).await;
    let mut expected = (0, 0);
    let user = json!({ "user_ids": ["@bob:hs1"] });
    let cases = [
        ("hello bob", None, true),
        ("hello bobby", None, false),
        ("hello Robert Tables!", None, true),
        ("hello @room", None, true),
        // Who says whom they mention, mentions nobody else.
        ("hello bob, Robert Tables, @room", Some(json!({})), false),
        ("hello", Some(user), true),
        ("hello", Some(json!({ "room": true })), true),
    ];
    for (body, mentions, highlight) in cases {
        let mut content = json!({ "msgtype": "m.text", "body": body });
        if let Some(mentions) = mentions {
            content["m.mentions"] = mentions;
        }
        alice
            .send(&room, "m.room.message", content.clone())
            .await
            .ok();
        expected = (expected.0 + 1, expected.1 + u64::from(highlight));
        assert_eq!(counts(&bob, &room).await, expected, "{content}");
    }
    let carol = world.register("carol").await;
    carol.join(&room).await.ok();
    let everyone = json!({ "msgtype": "m.text", "body": "@room", "m.mentions": { "room": true } });
    carol.send(&room, "m.room.message", everyone).await.ok();
    expected.0 += 1;
    assert_eq!(
        counts(&bob, &room).await,
        expected,
        "carol may not call everyone"
    );
}

#[tokio::test] // What the server's rules say is found once for all whom an event does not name.
async fn a_mention_of_one_stands_out_to_nobody_else() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let names = [
        ("carol", ""),
        ("dave", "Käthe Σίσυφος"),
        ("erin", "Er\"in"),
        ("frank", "F*k"),
        ("grace", "GRACE Hopper"),
    ];
    let mut others = Vec::new();
    for (user, name) in names {
        let client = world.register(user).await;
        if !name.is_empty() {
            let path = format!("/v3/profile/{}/displayname", segment(&client.user_id));
            client.put(&path, json!({ "displayname": name })).await.ok();
        }
        client.join(&room).await.ok();
        others.push(client);
    }
    let mut expected = vec![(0, 0); others.len()];
    let named: [(&str, &[usize]); 8] = [
        ("nobody at all", &[]),
        ("hey CAROL!", &[0]),
        ("KÄTHE ΣΊΣΥΦΟΣ, carolina", &[1]),
        ("so said er\"in", &[2]),
        ("fork", &[3]),
        ("dear Grace hopper", &[4]),
        ("grace, carol: dave", &[0, 1, 4]),
        ("@room", &[0, 1, 2, 3, 4]),
    ];
    for (text, to) in named {
        alice.say(&room, text).await;
        for (at, client) in others.iter().enumerate() {
            expected[at].0 += 1;
            expected[at].1 += u64::from(to.contains(&at));
            assert_eq!(counts(client, &room).await, expected[at], "{text} to {at}");
        }
    }
}

#[tokio::test]
async fn rules_decide_what_counts_and_a_muted_room_counts_nothing() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    alice.say(&room, "one").await;
    let notice = json!({ "msgtype": "m.notice", "body": "two" });
    alice.send(&room, "m.room.message", notice).await.ok();
    let secret = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x" });
    alice.send(&room, "m.room.encrypted", secret).await.ok();
    let poll = json!({ "org.matrix.msc3381.poll.start": {} });
    alice
        .send(&room, "org.matrix.msc3381.poll.start", poll)
        .await
        .ok();
    let edit = alice.say(&room, "three").await;
    related(&alice, &room, &edit, "m.replace", "four").await;
    assert_eq!(counts(&bob, &room).await, (4, 0));
    let rule = format!("/v3/pushrules/global/room/{}", segment(&room));
    bob.put(&rule, json!({ "actions": [] })).await.ok();
    assert_eq!(counts(&bob, &room).await, (0, 0));
    bob.delete(&rule).await.ok();
    assert_eq!(counts(&bob, &room).await, (4, 0));
}

#[tokio::test]
async fn invites_and_what_was_before_a_join_do_not_count() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    alice.say(&room, "before").await;
    alice.invite(&room, &bob.user_id).await.ok();
    let invited = bob.sync(None, "").await;
    assert!(invited["rooms"]["invite"][&room]["unread_notifications"].is_null());
    bob.join(&room).await.ok();
    assert_eq!(counts(&bob, &room).await, (0, 0));
}

#[tokio::test]
async fn a_count_of_many_is_that_of_the_newest() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    let first = alice.say(&room, "0").await;
    for number in 1..1_001 {
        alice.say(&room, &number.to_string()).await;
    }
    assert_eq!(counts(&bob, &room).await, (1_000, 0));
    alice.say(&room, "one more").await;
    assert_eq!(counts(&bob, &room).await, (1_000, 0));
    read(&bob, &room, &first, json!({})).await;
    assert_eq!(counts(&bob, &room).await, (1_000, 0));
}

#[tokio::test]
async fn who_comes_and_goes_is_passed_by_unless_a_rule_of_ones_own_wants_it() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (carol, dave) = (world.register("carol").await, world.register("dave").await);
    let room = room_of(&alice, &bob).await;
    let wander = async || {
        // More than what a room has in memory.
        for _ in 0..20 {
            dave.join(&room).await.ok();
            dave.leave(&room).await.ok();
        }
    };
    let first = alice.say(&room, "hello bob").await;
    wander().await;
    carol.join(&room).await.ok();
    alice.say(&room, "two").await;
    wander().await;
    // She looks back less far than he does.
    assert_eq!(counts(&carol, &room).await, (1, 0));
    assert_eq!(counts(&bob, &room).await, (2, 1));
    let third = alice.say(&room, "three").await;
    wander().await;
    assert_eq!(counts(&carol, &room).await, (2, 0));
    assert_eq!(counts(&bob, &room).await, (3, 1));
    read(&bob, &room, &first, json!({})).await;
    assert_eq!(counts(&bob, &room).await, (2, 0));
    let redact = format!("/v3/rooms/{}/redact/{}/1", segment(&room), segment(&third));
    alice.put(&redact, json!({})).await.ok();
    let joined = json!({ "kind": "event_match", "key": "content.membership", "pattern": "join" });
    let rule = json!({ "actions": ["notify"], "conditions": [joined] });
    let path = "/v3/pushrules/global/override/arrivals";
    carol.put(path, rule).await.ok();
    assert_eq!(counts(&carol, &room).await, (41, 0));
    assert_eq!(counts(&bob, &room).await, (1, 0));
}

#[tokio::test]
async fn sliding_sync_tells_the_same_counts_and_when_they_change() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = room_of(&alice, &bob).await;
    let event = alice.say(&room, "hello bob").await;
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] });
    let body = json!({ "lists": { "all": list } });
    let path = "/unstable/org.matrix.simplified_msc3575/sync";
    let first = bob.post(path, body.clone()).await.ok();
    assert_eq!(of(&first["rooms"][&room]), (1, 1));
    read(&bob, &room, &event, json!({})).await;
    let next = format!("{path}?timeout=0&pos={}", first["pos"].as_str().unwrap());
    let second = bob.post(&next, body.clone()).await.ok();
    assert_eq!(of(&second["rooms"][&room]), (0, 0));
    let next = format!("{path}?timeout=0&pos={}", second["pos"].as_str().unwrap());
    let third = bob.post(&next, body).await.ok();
    assert!(third["rooms"][&room].is_null(), "{third}");
}

#[tokio::test]
async fn notifications_are_told_newest_first_page_by_page() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (one, two) = (room_of(&alice, &bob).await, room_of(&alice, &bob).await);
    let first = alice.say(&one, "hello").await;
    let second = alice.say(&two, "hello bob").await;
    let third = alice.say(&one, "bye").await;
    read(&bob, &one, &first, json!({})).await;
    let page = bob.get("/v3/notifications?limit=2").await.ok();
    let ids = |page: &Value| -> Vec<String> {
        let told = page["notifications"].as_array().unwrap().iter();
        told.map(|told| told["event"]["event_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&page), [&*third, &*second]);
    assert_eq!(page["notifications"][0]["read"], false);
    assert_eq!(page["notifications"][0]["room_id"], json!(one));
    assert_eq!(page["notifications"][1]["actions"][0], "notify");
    let next = page["next_token"].as_str().unwrap();
    let page = bob
        .get(&format!("/v3/notifications?limit=2&from={next}"))
        .await
        .ok();
    assert_eq!(ids(&page), [&*first]);
    assert_eq!(page["notifications"][0]["read"], true);
    assert!(page["next_token"].is_null());
    let page = bob.get("/v3/notifications?only=highlight").await.ok();
    assert_eq!(ids(&page), [&*second]);
    bob.get("/v3/notifications?limit=many")
        .await
        .fails(400, "M_INVALID_PARAM");
    bob.get("/v3/notifications?from=nowhere")
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn the_account_data_of_push_rules_is_what_the_rules_are() {
    let world = World::new().await;
    let bob = world.register("bob").await;
    let path = format!(
        "/v3/user/{}/account_data/m.push_rules",
        segment(&bob.user_id)
    );
    let rules = bob.get("/v3/pushrules/").await.ok();
    assert_eq!(bob.get(&path).await.ok(), rules);
    let ids = |kind: &str| -> Vec<&str> {
        let rules = rules["global"][kind].as_array().unwrap();
        rules
            .iter()
            .map(|rule| rule["rule_id"].as_str().unwrap())
            .collect()
    };
    let expected = [
        ".m.rule.master",
        ".m.rule.suppress_notices",
        ".m.rule.invite_for_me",
        ".m.rule.member_event",
        ".m.rule.is_user_mention",
        ".m.rule.contains_display_name",
        ".m.rule.is_room_mention",
        ".m.rule.roomnotif",
        ".m.rule.tombstone",
        ".m.rule.reaction",
        ".m.rule.room.server_acl",
        ".m.rule.suppress_edits",
        ".org.matrix.msc3930.rule.poll_response",
    ];
    assert_eq!(ids("override"), expected);
    assert_eq!(ids("content"), [".m.rule.contains_user_name"]);
    assert_eq!(
        ids("underride")[..2],
        [".m.rule.call", ".m.rule.encrypted_room_one_to_one"]
    );
    let since = bob.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.put(
        "/v3/pushrules/global/override/.m.rule.master/enabled",
        json!({ "enabled": true }),
    )
    .await
    .ok();
    let answer = bob.sync(Some(&since), "").await;
    let told = &answer["account_data"]["events"][0];
    assert_eq!(told["type"], "m.push_rules");
    assert_eq!(told["content"], bob.get(&path).await.ok());
    assert_eq!(told["content"]["global"]["override"][0]["enabled"], true);
}

#[tokio::test]
async fn tags_and_rules_set_at_the_same_time_are_all_kept() {
    let world = World::new().await;
    let bob = world.register("bob").await;
    let room = bob.public_room().await;
    let tags = format!(
        "/v3/user/{}/rooms/{}/tags",
        segment(&bob.user_id),
        segment(&room)
    );
    let one = |name: &'static str| {
        let (bob, tags) = (&bob, &tags);
        async move {
            bob.put(&format!("{tags}/u.{name}"), json!({})).await.ok();
            let rule = format!("/v3/pushrules/global/content/{name}");
            bob.put(&rule, json!({ "actions": [], "pattern": name }))
                .await
                .ok();
        }
    };
    tokio::join!(one("a"), one("b"), one("c"), one("d"));
    let set = bob.get(&tags).await.ok();
    assert_eq!(set["tags"].as_object().unwrap().len(), 4);
    let rules = bob.get("/v3/pushrules/global/").await.ok();
    assert_eq!(rules["content"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn whoever_follows_an_upgrade_takes_tags_direct_mark_and_rules_along() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let old = room_of(&alice, &bob).await;
    let of_bob = format!("/v3/user/{}", segment(&bob.user_id));
    let direct = format!("{of_bob}/account_data/m.direct");
    bob.put(&direct, json!({ "@alice:hs1": [old] })).await.ok();
    let tags = |room: &str| format!("{of_bob}/rooms/{}/tags", segment(room));
    let tag = format!("{}/m.favourite", tags(&old));
    bob.put(&tag, json!({ "order": 0.5 })).await.ok();
    let rule = |room: &str| format!("/v3/pushrules/global/room/{}", segment(room));
    bob.put(&rule(&old), json!({ "actions": [] })).await.ok();
    let next = async || {
        let create = json!({ "predecessor": { "room_id": old, "event_id": "$x" } });
        let body = json!({ "preset": "public_chat", "creation_content": create });
        alice.create_room(body).await
    };
    // One that only says so is no successor.
    let (false_one, new) = (next().await, next().await);
    let tombstone = json!({ "body": "moved", "replacement_room": new });
    alice
        .set_state(&old, "m.room.tombstone", "", tombstone)
        .await
        .ok();
    bob.join(&false_one).await.ok();
    bob.join(&new).await.ok();
    for _ in 0..1_000 {
        if bob.get(&rule(&new)).await.status == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(bob.get(&rule(&new)).await.ok()["actions"], json!([]));
    assert_eq!(
        bob.get(&tags(&new)).await.ok(),
        bob.get(&tags(&old)).await.ok()
    );
    assert_eq!(bob.get(&direct).await.ok()["@alice:hs1"], json!([old, new]));
    bob.get(&rule(&false_one)).await.fails(404, "M_NOT_FOUND");
    assert_eq!(bob.get(&tags(&false_one)).await.ok()["tags"], json!({}));
}

#[tokio::test] // MSC4102, "Threaded read receipts"
async fn of_two_receipts_on_one_event_the_one_without_a_thread_is_told() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let reply = in_thread(&alice, &room, &root, "reply").await;
    read(&alice, &room, &reply, json!({})).await;
    read(&alice, &room, &reply, json!({ "thread_id": root })).await;
    let sync = alice.sync(None, "").await;
    let ephemeral = &sync["rooms"]["join"][&room]["ephemeral"]["events"];
    let told = &ephemeral[0]["content"][&reply]["m.read"]["@alice:hs1"];
    assert!(
        told["ts"].is_u64() && told.get("thread_id").is_none(),
        "{ephemeral}"
    );
}
