//! `kill -9` at any moment, also while the store is made or opened: every acknowledged batch is
//! there, and no half of one.

use std::time::Duration;

use store::kv::{Engine, KvError, open};

use crate::workload;
use crate::writer::{Writer, with_store, write_if_started_by_a_test};
use crate::{random, setting};

#[test]
fn sled_keeps_what_it_acknowledged() {
    survives_kills(
        Engine::Sled {
            cache_bytes: 8 << 20,
        },
        "kill::sled_keeps_what_it_acknowledged",
    );
}

#[test]
fn fjall_keeps_what_it_acknowledged() {
    survives_kills(
        Engine::Fjall {
            cache_bytes: 8 << 20,
        },
        "kill::fjall_keeps_what_it_acknowledged",
    );
}

fn survives_kills(engine: Engine, test: &str) {
    write_if_started_by_a_test(engine);
    let rounds = setting("STORE_KILL_ROUNDS").unwrap_or(8);
    let mut seed = setting("STORE_SEED").unwrap_or(1);
    let place = tempfile::tempdir().expect("there is a temporary directory");

    // While the store is made, too: each of these rounds makes a new one.
    for round in 0..rounds {
        let directory = place.path().join(format!("new {round}"));
        let mut writer = Writer::start(test, &directory, 0);
        writer.run_for(Duration::from_millis(random(&mut seed) % 80));
        let acknowledged = writer.kill();
        with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
    }

    let directory = place.path().join("store");
    let mut acknowledged = 0;
    for round in 0..rounds {
        let mut writer = Writer::start(test, &directory, acknowledged);
        // Every third time while it is opening, as far as that can be hit.
        let mut range_ms = 80;
        if round % 3 != 0 {
            range_ms = 400;
            writer.wait_for_batches();
            let error = open(engine, &directory)
                .err()
                .expect("the writer has the store open");
            assert!(matches!(error, KvError::InUse { .. }), "{error:?}");
        }
        writer.run_for(Duration::from_millis(random(&mut seed) % range_ms));
        acknowledged = writer.kill();
        // Every other time the next writer finds the store as the kill has left it.
        if round % 2 == 1 {
            acknowledged = with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
        }
    }
    acknowledged = with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
    eprintln!("{test}: {acknowledged} batches, {rounds} kills");
    assert!(rounds < 2 || acknowledged > 0, "nothing was written");
}
