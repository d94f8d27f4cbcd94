//! Power cuts: what was not synced is gone, what was acknowledged is not.
//!
//! The writer is frozen before the power goes: otherwise it could acknowledge what it was told
//! was synced a moment before, and the order of the two would be anyone's guess.

use std::fs;
use std::time::Duration;

use store::kv::Engine;

use crate::disk::disk_or_skip;
use crate::workload;
use crate::writer::{Writer, with_store, write_if_started_by_a_test};
use crate::{random, setting};

/// After so many power cuts in one store, the next is made. Even: the last one is checked.
const NEW_STORE_EVERY: u64 = 10;

#[test]
fn sled_keeps_what_it_acknowledged() {
    survives_power_cuts(
        Engine::Sled {
            cache_bytes: 8 << 20,
        },
        "power_loss::sled_keeps_what_it_acknowledged",
    );
}

#[test]
fn fjall_keeps_what_it_acknowledged() {
    survives_power_cuts(
        Engine::Fjall {
            cache_bytes: 8 << 20,
        },
        "power_loss::fjall_keeps_what_it_acknowledged",
    );
}

fn survives_power_cuts(engine: Engine, test: &str) {
    write_if_started_by_a_test(engine);
    let wanted = setting("STORE_POWER_ROUNDS");
    let rounds = wanted.unwrap_or(3);
    let mut seed = setting("STORE_SEED").unwrap_or(1);
    let Some(mut disk) = disk_or_skip(test, 1 << 30, wanted.is_some()) else {
        return;
    };
    let disk_path = disk.path();
    let (mut acknowledged, mut batches) = (0, 0);
    let store = |round: u64| disk_path.join(format!("store {}", round / NEW_STORE_EVERY));
    for round in 0..rounds {
        let directory = store(round);
        if round > 0 && round % NEW_STORE_EVERY == 0 {
            batches += acknowledged;
            acknowledged = 0;
            fs::remove_dir_all(store(round - 1)).expect("the last store can be removed");
        }
        let mut writer = Writer::start(test, &directory, acknowledged);
        // Every fifth time while it is made or opened, as far as that can be hit.
        let mut range_ms = 100;
        if round % 5 != 0 {
            range_ms = 700;
            writer.wait_for_batches();
        }
        writer.run_for(Duration::from_millis(random(&mut seed) % range_ms));
        writer.freeze();
        disk.cut_power();
        acknowledged = writer.kill();
        disk.restart();
        if round % 2 == 1 {
            acknowledged = with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
        }
    }
    let directory = store(rounds.saturating_sub(1));
    batches += with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
    eprintln!("{test}: {batches} batches, {rounds} power cuts");
    assert!(rounds < 2 || batches > 0, "nothing was written");
}
