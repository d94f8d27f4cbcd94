//! What happened in a simulation, step by step, and what should not have.

use std::{
    cell::RefCell,
    fmt::Display,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use homeserver::seams::Clock;

/// The steps of a simulation, with the time of each.
#[derive(Debug)]
pub(crate) struct Trace {
    clock: Clock,
    began_ms: u64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    steps: Vec<String>,
    problems: Vec<String>,
}

impl Trace {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            began_ms: clock.now_ms(),
            clock,
            told: Mutex::default(),
        }
    }

    /// Something happened.
    pub(crate) fn note(&self, step: impl Display) {
        let ms = self.clock.now_ms() - self.began_ms;
        let line = format!("{:>6}.{:03} {step}", ms / 1_000, ms % 1_000);
        // Who wants to see it between what the servers log.
        tracing::info!(target: "simulation", "{line}");
        self.told().steps.push(line);
    }

    /// Something happened that must not.
    pub(crate) fn problem(&self, problem: impl Display) {
        self.note(format_args!("PROBLEM: {problem}"));
        self.told().problems.push(problem.to_string());
    }

    /// The steps, and the problems.
    pub(crate) fn take(&self) -> (Vec<String>, Vec<String>) {
        let told = std::mem::take(&mut *self.told());
        (told.steps, told.problems)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that two equal traces have in common, and others hardly ever.
pub(crate) fn digest(steps: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    steps.hash(&mut hasher);
    hasher.finish()
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes every panic, by the thread of its simulation: that of a background task is seen nowhere else.
pub(crate) fn watch_panics() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            before(panic);
        }));
    });
}

/// The panics of this thread since it was asked last.
pub(crate) fn panics() -> Vec<String> {
    PANICS.take()
}
