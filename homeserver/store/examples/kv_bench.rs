//! How fast the two disk engines are on this machine, measured as the server uses them:
//!
//! ```text
//! cargo run --release -p store --example kv_bench -- [directory] [events]
//! ```
//!
//! An event is a body of 1 KB under (room, order) and eight small index rows. *alone*: one event
//! a batch, each flushed before the next. *64 writers*: each waits for its event to be durable; a
//! committer takes what is queued (256 events at most), 16 events a batch, one flush. *back 50*:
//! the 50 events before a random one, right after the writing. The directory is made anew and
//! removed at the end.

#![expect(clippy::print_stdout, reason = "a benchmark is for reading")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use store::kv::{Direction, Engine, Kv, Row, open};

const ROOMS: u64 = 200;
const WRITERS: u64 = 64;
const GROUP_EVENTS_MAX: usize = 256;
const BATCH_EVENTS: usize = 16;
const CACHE_BYTES: u64 = 96 << 20;
const SCANS: u64 = 4_000;

fn main() {
    let mut arguments = env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(|| env::temp_dir().join("kv_bench"), PathBuf::from);
    let events = arguments
        .next()
        .map_or(40_000, |n| n.parse().expect("a number of events"));
    println!(
        "{:<6} {:>26} {:>24} {:>16} {:>10} {:>10}",
        "", "alone: ev/s, p50, p99", "64 writers: ev/s, p50", "back 50: p50", "reopen", "disk"
    );
    for engine in [
        Engine::Sled {
            cache_bytes: CACHE_BYTES,
        },
        Engine::Fjall {
            cache_bytes: CACHE_BYTES,
        },
    ] {
        measure(engine, &directory, events);
    }
}

fn measure(engine: Engine, directory: &Path, events: u64) {
    if directory.exists() {
        fs::remove_dir_all(directory).expect("the benchmark's directory is ours");
    }
    let kv = open(engine, directory).expect("the store opens");

    let alone_events = events / 10;
    let (mut waits, alone) = timed(|| {
        (0..alone_events)
            .map(|number| {
                let ((), wait) = timed(|| {
                    kv.apply(&event(number)).expect("applied");
                    kv.flush().expect("flushed");
                });
                wait
            })
            .collect::<Vec<_>>()
    });
    let (alone_p50, alone_p99) = (percentile(&mut waits, 50), percentile(&mut waits, 99));

    let (mut waits, group) = timed(|| grouped(&*kv, alone_events..events));
    let group_p50 = percentile(&mut waits, 50);

    let mut seed = 1;
    let mut waits: Vec<_> = (0..SCANS)
        .map(|_| {
            let number = random(&mut seed) % events;
            let (rows, wait) = timed(|| back_50(&*kv, number));
            assert!(rows > 0, "event {number} is there");
            wait
        })
        .collect();
    let scan_p50 = percentile(&mut waits, 50);

    drop(kv);
    let (kv, reopen) = timed(|| open(engine, directory).expect("the store opens again"));
    drop(kv);
    println!(
        "{:<6} {:>8.0} {:>8.2?} {:>8.2?} {:>14.0} {:>9.2?} {:>16.1?} {:>10.2?} {:>7} MB",
        engine.name(),
        rate(alone_events, alone),
        alone_p50,
        alone_p99,
        rate(events - alone_events, group),
        group_p50,
        scan_p50,
        reopen,
        disk_bytes(directory) / 1_000_000,
    );
    fs::remove_dir_all(directory).expect("the benchmark's directory is ours");
}

/// Sixty-four writers and a committer; how long each event took to be durable.
fn grouped(kv: &dyn Kv, numbers: std::ops::Range<u64>) -> Vec<Duration> {
    thread::scope(|scope| {
        let (queue, queued) = mpsc::channel::<(Vec<Row>, mpsc::SyncSender<()>)>();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (queue, numbers) = (queue.clone(), numbers.clone());
                scope.spawn(move || {
                    let (done, is_done) = mpsc::sync_channel(1);
                    let mut waits = Vec::new();
                    for number in numbers.filter(|number| number % WRITERS == writer) {
                        let rows = event(number);
                        let ((), wait) = timed(|| {
                            queue
                                .send((rows, done.clone()))
                                .expect("the committer listens");
                            is_done.recv().expect("the committer answers");
                        });
                        waits.push(wait);
                    }
                    waits
                })
            })
            .collect();
        drop(queue);
        while let Ok(first) = queued.recv() {
            let group: Vec<_> = std::iter::once(first)
                .chain(queued.try_iter())
                .take(GROUP_EVENTS_MAX)
                .collect();
            for events in group.chunks(BATCH_EVENTS) {
                let rows: Vec<Row> = events.iter().flat_map(|(rows, _)| rows.clone()).collect();
                kv.apply(&rows).expect("applied");
            }
            kv.flush().expect("flushed");
            for (_, done) in group {
                done.send(()).expect("the writer waits");
            }
        }
        writers
            .into_iter()
            .flat_map(|writer| writer.join().expect("the writer ends"))
            .collect()
    })
}

/// One event: the body under (room, order), eight index rows of about 40 bytes.
fn event(number: u64) -> Vec<Row> {
    let mut seed = number;
    let (room, order) = (number % ROOMS, number / ROOMS);
    let mut rows = vec![(timeline(room, order), Some(noise(&mut seed, 1_000)))];
    rows.extend((0..8_u8).map(|index| {
        let mut key = vec![16 + index];
        // Half of the indexes are by hash (event ids), half grow (positions, rooms).
        if index % 2 == 0 {
            key.extend(noise(&mut seed, 32));
        } else {
            key.extend(room.to_be_bytes());
            key.extend(number.to_be_bytes());
        }
        (key, Some(noise(&mut seed, 24)))
    }));
    rows
}

fn back_50(kv: &dyn Kv, number: u64) -> usize {
    let (room, order) = (number % ROOMS, number / ROOMS);
    let mut rows = 0;
    kv.scan(
        &timeline(room, 0),
        &timeline(room, order + 1),
        Direction::Descending,
        &mut |_key, _event| {
            rows += 1;
            if rows == 50 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    )
    .expect("the room can be read");
    rows
}

fn timeline(room: u64, order: u64) -> Vec<u8> {
    [&[1][..], &room.to_be_bytes(), &order.to_be_bytes()].concat()
}

/// Bytes that do not compress.
fn noise(seed: &mut u64, bytes: usize) -> Vec<u8> {
    let words = std::iter::repeat_with(|| random(seed).to_be_bytes());
    words.flatten().take(bytes).collect()
}

/// The next number of the splitmix64 sequence.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn percentile(waits: &mut [Duration], percent: usize) -> Duration {
    waits.sort_unstable();
    let index = waits.len() * percent / 100;
    waits.get(index).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "a rate for reading")]
fn rate(events: u64, time: Duration) -> f64 {
    events as f64 / time.as_secs_f64()
}

fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::symlink_metadata(path).expect("the store's files can be read");
    if !metadata.is_dir() {
        return metadata.blocks() * 512;
    }
    let entries = fs::read_dir(path).expect("the store's files can be read");
    entries
        .map(|entry| disk_bytes(&entry.expect("the store's files can be read").path()))
        .sum()
}
