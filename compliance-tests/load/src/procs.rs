//! What the server's processes cost: CPU time and memory, read from `/proc`.
//!
//! The server is the processes named by `--pid`, the members of the process groups they lead, and
//! all descendants of these. That takes in a database's workers when its main process is named.
//! The driver itself is never counted.
//!
//! CPU time is `utime + stime` of what lives plus `cutime + cstime`, which is what children that
//! have ended left to their parent; together that loses nothing and counts nothing twice. The
//! kernel scales the first two from its exact run time, so the only error is the unit of 10 ms.
//! Memory is PSS: a page shared by n processes counts 1/n for each, so a sum over a database's
//! processes is right where a sum of RSS is not.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::failure::Failure;

/// `USER_HZ`: the unit of the times in `/proc/PID/stat`, 100 on every Linux architecture we know.
const TICK: Duration = Duration::from_millis(10);
/// A server that used at most one tick in this long is idle.
const IDLE_WINDOW: Duration = Duration::from_millis(50);
/// Windows in a row that have to be idle.
const IDLE_WINDOWS: u32 = 2;
/// Waiting for idleness ends here: a server that never rests is measured as it is.
const SETTLE_MAX: Duration = Duration::from_mins(1);

/// Reads what the server's processes cost.
pub(crate) struct Meter {
    roots: BTreeSet<u32>,
    /// The processes as of the last [`Meter::find`].
    known: RefCell<BTreeSet<u32>>,
}

/// The fields of `/proc/PID/stat` that we need.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    group: u32,
    ticks: u32,
}

impl Meter {
    /// # Errors
    /// One of `roots` is no process.
    pub(crate) fn new(roots: &[u32]) -> Result<Self, Failure> {
        let meter = Self {
            roots: roots.iter().copied().collect(),
            known: RefCell::default(),
        };
        meter.find()?;
        for root in roots {
            if !meter.known.borrow().contains(root) {
                return Err(Failure::Usage(format!("--pid {root}: no such process")));
            }
        }
        Ok(meter)
    }

    /// CPU time used by the server so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        self.find()?;
        Ok(self.cpu_of_known())
    }

    /// Proportional set size of the server now, in megabytes of 10⁶ bytes.
    pub(crate) fn pss_mb(&self) -> Result<f64, Failure> {
        self.find()?;
        let mut kib = 0;
        for pid in self.known.borrow().iter() {
            let path = format!("/proc/{pid}/smaps_rollup");
            match fs::read_to_string(&path) {
                Ok(rollup) => kib += pss_kib(&rollup).unwrap_or(0),
                // It ended since it was found, or is a zombie: it has no memory.
                Err(_) if !self.roots.contains(pid) => {}
                Err(source) => return Err(Failure::Io { what: path, source }),
            }
        }
        Ok(f64::from(kib) * 1024.0 / 1e6)
    }

    /// Waits until the server has nothing left to do.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        self.find()?;
        let mut idle = 0;
        let mut waited = Duration::ZERO;
        let mut before = self.cpu_of_known();
        while idle < IDLE_WINDOWS && waited < SETTLE_MAX {
            tokio::time::sleep(IDLE_WINDOW).await;
            waited += IDLE_WINDOW;
            let after = self.cpu_of_known();
            idle = if after.saturating_sub(before) <= TICK {
                idle + 1
            } else {
                0
            };
            before = after;
        }
        Ok(())
    }

    fn cpu_of_known(&self) -> Duration {
        let known = self.known.borrow();
        let ticks: u32 = known
            .iter()
            .filter_map(|pid| stat(*pid))
            .map(|s| s.ticks)
            .sum();
        TICK * ticks
    }

    fn find(&self) -> Result<(), Failure> {
        let own = std::process::id();
        let all: Vec<(u32, Stat)> = fs::read_dir("/proc")
            .map_err(Failure::io("/proc"))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own)
            .filter_map(|pid| Some((pid, stat(pid)?)))
            .collect();
        *self.known.borrow_mut() = family(&self.roots, &all);
        Ok(())
    }
}

/// CPU time of the driver itself so far.
pub(crate) fn own_cpu() -> Duration {
    stat(std::process::id()).map_or(Duration::ZERO, |stat| TICK * stat.ticks)
}

/// The roots that live, the members of the groups they lead, and all descendants.
fn family(roots: &BTreeSet<u32>, all: &[(u32, Stat)]) -> BTreeSet<u32> {
    let mut family: BTreeSet<u32> = all
        .iter()
        .filter(|(pid, stat)| roots.contains(pid) || roots.contains(&stat.group))
        .map(|(pid, _)| *pid)
        .collect();
    loop {
        let before = family.len();
        for (pid, stat) in all {
            if family.contains(&stat.parent) {
                family.insert(*pid);
            }
        }
        if family.len() == before {
            return family;
        }
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields as numbered by `proc(5)`: 4 ppid, 5 pgrp, 14 to 17 utime, stime, cutime, cstime.
fn parse_stat(line: &str) -> Option<Stat> {
    // The name (field 2) may itself hold spaces and parentheses.
    let (_, rest) = line.rsplit_once(") ")?;
    let field = |number: usize| rest.split(' ').nth(number - 3)?.parse::<u32>().ok();
    Some(Stat {
        parent: field(4)?,
        group: field(5)?,
        ticks: field(14)? + field(15)? + field(16)? + field(17)?,
    })
}

fn pss_kib(rollup: &str) -> Option<u32> {
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Meter, Stat, family, parse_stat, pss_kib};

    #[test]
    fn a_process_name_may_hold_spaces_and_parentheses() {
        let line = "42 (a) R (b) S 7 9 5193 0 -1 4194304 97 0 0 0 1 20 300 4000 20 0 1 0 130508";
        let expected = Stat {
            parent: 7,
            group: 9,
            ticks: 4321,
        };
        assert_eq!(parse_stat(line), Some(expected));
    }

    #[test]
    fn the_server_is_its_roots_their_groups_and_all_descendants() {
        let process = |pid, parent, group| {
            let ticks = 0;
            (
                pid,
                Stat {
                    parent,
                    group,
                    ticks,
                },
            )
        };
        let all = [
            process(30, 20, 30), // a grandchild in a group of its own, listed first
            process(10, 1, 10),
            process(20, 10, 20),
            process(11, 1, 10), // only the group ties it to 10
            process(40, 1, 40),
            process(41, 40, 40),
        ];
        assert_eq!(
            family(&BTreeSet::from([10]), &all),
            BTreeSet::from([10, 11, 20, 30])
        );
        // 41 leads no group, so its parent's group is not taken in.
        assert_eq!(family(&BTreeSet::from([41]), &all), BTreeSet::from([41]));
    }

    #[test]
    fn pss_is_read_and_not_its_parts() {
        assert_eq!(
            pss_kib("Rss:  1740 kB\nPss:    252 kB\nPss_Dirty:   112 kB\n"),
            Some(252)
        );
        assert_eq!(pss_kib("Rss:  1740 kB\n"), None);
    }

    #[test]
    fn a_pid_that_is_no_process_is_refused() {
        assert!(Meter::new(&[u32::MAX]).is_err());
    }
}
