//! Power cuts: what was not synced is gone, what was acknowledged is not.
//!
//! The writer is frozen before the power goes: otherwise it could acknowledge what it was told
//! was synced a moment before, and the order of the two would be anyone's guess.

use std::time::Duration;

use store::kv::Engine;

use crate::disk::disk_or_skip;
use crate::workload;
use crate::writer::{Writer, with_store, write_if_started_by_a_test};
use crate::{random, setting};

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
    let directory = disk.path().join("store");
    let mut acknowledged = 0;
    for round in 0..rounds {
        let mut writer = Writer::start(test, &directory, acknowledged);
        // Every third time while it is opening, as far as that can be hit.
        let range_ms = if round % 3 == 0 { 100 } else { 700 };
        writer.run_for(Duration::from_millis(random(&mut seed) % range_ms));
        writer.freeze();
        disk.cut_power();
        acknowledged = writer.kill();
        disk.restart();
        if round % 2 == 1 {
            acknowledged = with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
        }
    }
    acknowledged = with_store(engine, &directory, |kv| workload::check(kv, acknowledged));
    assert!(
        rounds < 3 || acknowledged > rounds,
        "only {acknowledged} batches were written"
    );
}
