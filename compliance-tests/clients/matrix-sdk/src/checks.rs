//! All checks, in the order in which two people would come to them.
//!
//! Spec: simplified sliding sync (MSC4186, in the form `org.matrix.simplified_msc3575` that the SDK speaks).

use std::path::Path;

use crate::{
    check::Suite,
    conversation::{changes, exchange, file, history, thread, typing, unread},
    devices::{logs_out, recovers, restarts},
    phone::{self, Phone},
    room_list::{both_run, invited, leaves, long_list},
};

/// Runs all checks against the server at `base_url`, with the clients' stores in `folder`. `run` makes names unique.
pub async fn checks(suite: &mut Suite, base_url: &str, folder: &Path, run: &str) {
    let names = [format!("x_alice_{run}"), format!("x_bob_{run}")];
    let folders = [folder.join("alice"), folder.join("bob")];
    let started = suite.check("two users log in and find sliding sync", async {
        for name in &names {
            phone::register(base_url, name).await?;
        }
        let alice = Phone::log_in(base_url, &names[0], &folders[0]).await?;
        let bob = Phone::log_in(base_url, &names[1], &folders[1]).await?;
        Ok((alice, bob))
    });
    let Some((alice, bob)) = started.await else {
        return;
    };

    suite
        .check(
            "both sync services run, and an empty room list is loaded",
            both_run(&alice, &bob),
        )
        .await;
    let made = suite.check(
        "an invitation to an encrypted room is in the list by its name, and joined",
        async { invited(&alice, &bob, &format!("Secret {run}")).await },
    );
    let Some(secret) = made.await else { return };
    suite
        .check(
            "encrypted messages are decrypted in the opened room, both ways",
            exchange(&alice, &bob, &secret),
        )
        .await;
    suite
        .check(
            "the list shows news and its count; reading clears it, and is seen",
            async { unread(&alice, &bob, &secret).await },
        )
        .await;
    suite
        .check(
            "a reaction, an edit and a redaction change the other's timeline",
            changes(&alice, &bob, &secret),
        )
        .await;
    suite
        .check(
            "a reply in a thread is in the other's view of the thread",
            thread(&alice, &bob, &secret),
        )
        .await;
    suite
        .check("typing is shown, and stops", typing(&alice, &bob, &secret))
        .await;
    suite
        .check(
            "an encrypted file is sent and opened",
            file(&alice, &bob, &secret),
        )
        .await;
    suite
        .check("an opened room is paged back to its beginning", async {
            history(&alice, &bob, &format!("History {run}")).await
        })
        .await;
    suite
        .check(
            "a long list is loaded whole, and news moves a room to the top",
            async { long_list(&alice, &bob, run).await },
        )
        .await;
    let recovered = suite.check(
        "a second device recovers the keys from the backup and reads old messages",
        async {
            recovers(
                base_url,
                &bob,
                &names[1],
                &folder.join("bob again"),
                &secret,
            )
            .await
        },
    );
    recovered.await;
    let Some(bob) = suite
        .check(
            "a phone that was off restores its session and gets what it missed",
            async { restarts(base_url, &alice, bob, &folders[1], &secret).await },
        )
        .await
    else {
        return;
    };
    suite
        .check(
            "a room that is left goes from the list",
            leaves(&alice, &bob, &secret),
        )
        .await;
    suite.check("logout ends the session", logs_out(bob)).await;
}
