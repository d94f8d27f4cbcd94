//! What a store holds after the process was killed, the power was cut, or the disk was full. The
//! process that writes is this test binary once more, started by the test itself.
//!
//! | Variable | What | Unless set |
//! |---|---|---|
//! | `STORE_KILL_ROUNDS` | kills per engine | 8 |
//! | `STORE_POWER_ROUNDS` | power cuts per engine; if set, being unable to cut it is a failure | 3 |
//! | `STORE_SEED` | seed of the moments to strike at | 1 |
//!
//! Power cuts and the full disk need root, loop devices, `mkfs.ext4` and `xfs_io`; without them
//! those tests say that they were skipped.

mod disk;
mod full_disk;
mod kill;
mod power_loss;
mod workload;
mod writer;

use std::env;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {value}"))
    })
}

/// The next number of the splitmix64 sequence.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
