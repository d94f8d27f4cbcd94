//! The load driver: one workload against any Matrix homeserver on loopback, so that two servers
//! can be compared by the same measure. It prints medians, rates, and the CPU time that the
//! server's processes used for each operation, which other load on the machine hardly changes.
//!
//! It starts and stops nothing: `bench/run.sh` does, and `bench/compare` puts runs side by side.
//! It checks little: that every request succeeds, and that everyone gets every message once.
//!
//! Reading order: `scenarios` (what is measured), `world` (users and rooms), `matrix` (requests),
//! `poll` (long-polls), `conn` (HTTP), `procs` (CPU and memory), `report` (what comes out).

mod args;
mod clock;
mod conn;
mod failure;
mod matrix;
mod poll;
mod procs;
mod report;
mod scenarios;
mod stats;
mod world;

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::task::LocalSet;

use crate::args::{Command, Run};
use crate::conn::Site;
use crate::failure::Failure;
use crate::procs::Meter;
use crate::report::Report;
use crate::scenarios::Scenario;
use crate::world::World;

/// How often a server that is starting is asked.
const UP_EVERY: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    match args::parse(std::env::args().skip(1)).and_then(obey) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::from(2)
        }
    }
}

fn obey(command: Command) -> Result<ExitCode, Failure> {
    // One thread: the driver must leave the other cores to the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("starting the runtime"))?;
    let local = LocalSet::new();
    match command {
        Command::Help => {
            let mut help = vec![args::USAGE.to_owned()];
            let line = |&(name, _, meaning): &Scenario| format!("  {name:<20}{meaning}");
            help.extend(scenarios::all(false).iter().map(line));
            help.push("\nScenarios between two servers:".to_owned());
            help.extend(scenarios::all(true).iter().map(line));
            print(&help.join("\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::WaitUntilUp { base, patience } => {
            local.block_on(&runtime, wait_until_up(&Site::parse(&base)?, patience))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(run) => {
            let report = local.block_on(&runtime, measure(&run))?;
            print(&report.table())?;
            Ok(if report.failed() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            })
        }
    }
}

async fn measure(run: &Run) -> Result<Report, Failure> {
    let site = Site::parse(&run.base)?;
    let mut report = Report {
        server: server_version(&site).await,
        scale: run.scale,
        outcomes: Vec::new(),
    };
    let world = World::new(site, Meter::new(&run.pids)?, run.scale);
    let peer = match &run.peer {
        Some((base, pids)) => Some(World::new(Site::parse(base)?, Meter::new(pids)?, run.scale)),
        None => None,
    };
    for name in &run.scenarios {
        // What the last scenario left behind is not this one's cost.
        world.meter.settle().await?;
        if let Some(peer) = &peer {
            peer.meter.settle().await?;
        }
        let begin = clock::now();
        let outcome = scenarios::run(name, &world, peer.as_ref()).await;
        let seconds = begin.elapsed().as_secs_f64();
        match &outcome {
            Ok(_) => eprintln!("load: {name} took {seconds:.1} s"),
            Err(failure) => eprintln!("load: {name} failed after {seconds:.1} s: {failure}"),
        }
        report.outcomes.push((name, outcome));
        // Now and not at the end: whoever stops a long run keeps what it has found.
        if let Some(path) = &run.json {
            fs::write(path, format!("{}\n", report.json()))
                .map_err(Failure::io(path.display().to_string()))?;
        }
    }
    Ok(report)
}

/// Who is measured, where the server tells.
async fn server_version(site: &Site) -> Option<Value> {
    let body = matrix::get(&mut site.conn(), "/_matrix/federation/v1/version", None)
        .await
        .ok()?;
    serde_json::from_slice::<Value>(&body)
        .ok()?
        .get("server")
        .cloned()
}

async fn wait_until_up(site: &Site, patience: Duration) -> Result<(), Failure> {
    let asking = async {
        let mut conn = site.conn();
        while let Err(failure) = matrix::get(&mut conn, "/_matrix/client/versions", None).await {
            match failure {
                // Nobody listens yet, or not for good.
                Failure::Io { .. } | Failure::Http { .. } | Failure::Status { .. } => {
                    tokio::time::sleep(UP_EVERY).await;
                }
                other => return Err(other),
            }
        }
        Ok(())
    };
    tokio::time::timeout(patience, asking)
        .await
        .map_err(|_| Failure::Timeout {
            what: "the server to answer /versions".to_owned(),
        })?
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{text}").map_err(Failure::io("standard output"))
}
