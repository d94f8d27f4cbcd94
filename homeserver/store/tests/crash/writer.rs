//! The process that writes until it is stopped, and the handle its parent has on it.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use store::kv::{Engine, Kv, open};

use crate::workload;

const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const ACKNOWLEDGED: &str = "STORE_CRASH_ACKNOWLEDGED";
/// What an acknowledgement looks like on the pipe, among what the test harness prints.
const ACK: &str = "acknowledged ";

/// How long anything may take that should take no time.
const PATIENCE: Duration = Duration::from_mins(1);

/// In the process that a test has started to write: checks the store, then writes to it and
/// acknowledges until it is killed. In the test itself: nothing.
pub(crate) fn write_if_started_by_a_test(engine: Engine) {
    let Ok(directory) = env::var(DIRECTORY) else {
        return;
    };
    let acknowledged = crate::setting(ACKNOWLEDGED).expect("set together with the directory");
    let kv = open(engine, &PathBuf::from(directory)).expect("the store opens");
    let mut last = workload::check(&*kv, acknowledged);
    let mut pipe = io::stdout();
    loop {
        // Not `print`: the harness would keep it to itself. When the test is gone, so is the pipe.
        let written = writeln!(pipe, "{ACK}{last}").and_then(|()| pipe.flush());
        written.expect("the test listens");
        last = workload::write_group(&*kv, last + 1).expect("the batch can be written");
    }
}

/// A process that writes.
pub(crate) struct Writer {
    process: Child,
    acknowledgements: Receiver<u64>,
    /// The last batch that was acknowledged: by this process, or before it started.
    acknowledged: u64,
}

impl Writer {
    /// Starts this binary again for `test` alone, which must begin with
    /// [`write_if_started_by_a_test`].
    pub(crate) fn start(test: &str, directory: &Path, acknowledged: u64) -> Writer {
        let mut process = start(
            Command::new(env::current_exe().expect("this test has a file"))
                .args([test, "--exact", "--nocapture"])
                .env(DIRECTORY, directory)
                .env(ACKNOWLEDGED, acknowledged.to_string())
                .stdout(Stdio::piped()),
        )
        .expect("the writer starts");
        let pipe = BufReader::new(process.stdout.take().expect("it was asked for"));
        let (send, acknowledgements) = mpsc::channel();
        thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                let Some(number) = line.strip_prefix(ACK) else {
                    continue;
                };
                let number = number.parse().expect("an acknowledgement is a number");
                if send.send(number).is_err() {
                    break;
                }
            }
        });
        Writer {
            process,
            acknowledgements,
            acknowledged,
        }
    }

    /// Lets it write for a while. It must not end by itself.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let deadline = now() + time;
        loop {
            let left = deadline.saturating_duration_since(now());
            match self.acknowledgements.recv_timeout(left) {
                Ok(number) => self.acknowledged = number,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the writer has failed: see above"),
            }
        }
    }

    /// Waits until it has opened the store and written to it.
    pub(crate) fn wait_for_batches(&mut self) {
        // It acknowledges once when it has opened the store, and then each group of batches.
        for _ in 0..2 {
            let number = self.acknowledgements.recv_timeout(PATIENCE);
            self.acknowledged = number.expect("the writer opens the store and writes");
        }
    }

    /// Stops it where it is: from when this returns it changes nothing and acknowledges nothing.
    pub(crate) fn freeze(&self) {
        let process = self.process.id();
        run("kill", &["-STOP", &process.to_string()]).expect("a process can be stopped");
        // A thread within a system call finishes that first.
        until("the writer stands still", || {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it is there");
            tasks.map_while(Result::ok).all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                let state = stat
                    .rsplit_once(") ")
                    .and_then(|(_name, rest)| rest.chars().next());
                state == Some('T')
            })
        });
    }

    /// Kills it, as `kill -9` does. Returns the last batch it has acknowledged.
    pub(crate) fn kill(mut self) -> u64 {
        self.process.kill().expect("a process can be killed");
        self.process.wait().expect("a killed process ends");
        // The pipe still holds what was acknowledged shortly before.
        self.acknowledgements
            .iter()
            .last()
            .unwrap_or(self.acknowledged)
    }
}

/// Opens a store in this process, with `work` for it, and closes it for good.
pub(crate) fn with_store<T>(
    engine: Engine,
    directory: &Path,
    work: impl FnOnce(&dyn Kv) -> T,
) -> T {
    let kv = open(engine, directory).expect("the store opens");
    let result = work(&*kv);
    drop(kv);
    // A process that another test was just starting has our files, and so our locks, until it
    // has become the program it is to be.
    drop(STARTING.lock().unwrap_or_else(PoisonError::into_inner));
    result
}

/// Held while a process is started.
static STARTING: Mutex<()> = Mutex::new(());

fn start(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Runs a program; says what it said if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = start(&mut command)
        .and_then(Child::wait_with_output)
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {}",
        arguments.join(" "),
        said.trim()
    ))
}

/// Waits until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = now() + PATIENCE;
    while !is_so() {
        assert!(now() < deadline, "waited in vain until {what}");
        thread::yield_now();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "real processes and disks take real time"
)]
fn now() -> Instant {
    Instant::now()
}
