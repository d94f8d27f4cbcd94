//! What a run found: a line per scenario for people, JSON with every sample for `bench/compare`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::clock;
use crate::failure::Failure;
use crate::procs::{Meter, own_cpu};
use crate::stats::{Samples, ms};

/// The figures of one scenario. Keys name the unit; `n` is how often the operation was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) figures: BTreeMap<&'static str, f64>,
    /// One per operation, in milliseconds.
    pub(crate) samples: Samples,
}

impl Outcome {
    /// Median and 99th percentile of `samples`.
    pub(crate) fn timed(samples: Samples) -> Self {
        let mut outcome = Self::default();
        for (key, percent) in [("p50_ms", 50), ("p99_ms", 99)] {
            if let Some(figure) = samples.percentile(percent) {
                outcome.figures.insert(key, figure);
            }
        }
        outcome.samples = samples;
        outcome
    }

    /// Adds a figure.
    pub(crate) fn with(mut self, key: &'static str, figure: f64) -> Self {
        self.figures.insert(key, figure);
        self
    }

    fn cell(&self, (key, _, decimals): (&str, &str, usize)) -> String {
        self.figures
            .get(key)
            .map_or_else(|| "-".to_owned(), |figure| format!("{figure:.decimals$}"))
    }

    /// Adds what `window` saw for `operations` operations: how many there were, how many a second,
    /// and CPU milliseconds of the server and of the driver for each.
    pub(crate) fn over(mut self, window: &Spent, operations: u32) -> Self {
        let each = f64::from(operations.max(1));
        self.figures.insert("n", f64::from(operations));
        self.figures
            .insert("rate", each / window.wall.as_secs_f64());
        self.figures.insert("cpu_ms", ms(window.server) / each);
        self.figures
            .insert("driver_cpu_ms", ms(window.driver) / each);
        self
    }
}

/// A span of time over which CPU is counted.
pub(crate) struct Window<'a> {
    meter: &'a Meter,
    server: Duration,
    driver: Duration,
    from: Instant,
}

/// What a [`Window`] saw.
pub(crate) struct Spent {
    server: Duration,
    driver: Duration,
    wall: Duration,
}

impl<'a> Window<'a> {
    pub(crate) fn open(meter: &'a Meter) -> Result<Self, Failure> {
        Ok(Self {
            meter,
            server: meter.cpu()?,
            driver: own_cpu(),
            from: clock::now(),
        })
    }

    /// Takes the wall clock now, and the CPU time once the server has done what it put off.
    pub(crate) async fn close(self) -> Result<Spent, Failure> {
        let wall = self.from.elapsed();
        let driver = own_cpu();
        self.meter.settle().await?;
        Ok(Spent {
            server: self.meter.cpu()?.saturating_sub(self.server),
            driver: driver.saturating_sub(self.driver),
            wall,
        })
    }
}

/// All scenarios of one run.
pub(crate) struct Report {
    /// Name and version as the server gives them.
    pub(crate) server: Option<Value>,
    pub(crate) scale: f64,
    pub(crate) outcomes: Vec<(&'static str, Result<Outcome, Failure>)>,
}

/// Columns of the table: key, heading, decimals.
const COLUMNS: [(&str, &str, usize); 7] = [
    ("n", "n", 0),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("rate", "rate/s", 1),
    ("cpu_ms", "CPU ms each", 3),
    ("driver_cpu_ms", "driver ms", 3),
    ("pss_mb", "PSS MB", 0),
];

impl Report {
    pub(crate) fn failed(&self) -> bool {
        self.outcomes.iter().any(|(_, outcome)| outcome.is_err())
    }

    /// One row per scenario.
    pub(crate) fn table(&self) -> String {
        let headings = COLUMNS.map(|(_, heading, _)| heading.to_owned());
        let mut rows = vec![row("scenario", &headings)];
        for (name, outcome) in &self.outcomes {
            rows.push(match outcome {
                Ok(outcome) => row(name, &COLUMNS.map(|column| outcome.cell(column))),
                Err(failure) => format!("{name:<18} {failure}"),
            });
        }
        rows.join("\n")
    }

    /// The whole run, for other programs.
    pub(crate) fn json(&self) -> Value {
        let scenarios: Map<String, Value> = self
            .outcomes
            .iter()
            .map(|(name, outcome)| {
                let value = match outcome {
                    Ok(outcome) => json!({
                        "figures": outcome.figures,
                        "samples_ms": outcome.samples.all(),
                    }),
                    Err(failure) => json!({ "error": failure.to_string() }),
                };
                ((*name).to_owned(), value)
            })
            .collect();
        json!({ "server": self.server, "scale": self.scale, "scenarios": scenarios })
    }
}

fn row(name: &str, cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>12}")).collect();
    format!("{name:<18} {}", cells.join(" "))
}
