//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::failure::Failure;
use crate::scenarios::{self, Scenario};

/// How to call the driver.
pub(crate) const USAGE: &str = "\
load --base http://127.0.0.1:8008 --pid PID[,PID...] [--only SCENARIO,...] [--scale S] [--json FILE]
load --base URL --pid PID[,PID...] --peer http://127.0.0.1:8009 --peer-pid PID[,PID...] [as above]
load --base http://127.0.0.1:8008 --wait-until-up SECONDS

Puts a Matrix homeserver on loopback under load and prints medians and CPU time per operation.
The server needs open registration without rate limits. See bench/README.md.
With a peer the scenarios are those between two servers, which federate with each other.

  --base URL              the server, plain HTTP on a loopback address
  --pid PID,...           the server's processes, its database's main process included
  --peer URL              the other server, whose users join and read
  --peer-pid PID,...      its processes
  --only SCENARIO,...     these scenarios instead of all
  --scale S               counts are multiplied with S, over 0 and at most 1 (default 1)
  --json FILE             write everything, with every sample, to FILE
  --wait-until-up SECONDS only wait until the server answers /versions

Scenarios:";

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Help,
    WaitUntilUp { base: String, patience: Duration },
    Run(Run),
}

/// A run of scenarios.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) base: String,
    pub(crate) pids: Vec<u32>,
    /// The other server and its processes, for what happens between two.
    pub(crate) peer: Option<(String, Vec<u32>)>,
    /// In the order in which they run.
    pub(crate) scenarios: Vec<&'static str>,
    pub(crate) scale: f64,
    pub(crate) json: Option<PathBuf>,
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// An unknown option or scenario, a missing or unreadable value.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, Failure> {
    let mut base = None;
    let mut pids = Vec::new();
    let mut peer = None;
    let mut peer_pids = Vec::new();
    let mut only: Vec<String> = Vec::new();
    let mut scale = 1.0;
    let mut json = None;
    let mut patience = None;
    let mut args = args.into_iter();
    while let Some(option) = args.next() {
        if option == "--help" || option == "-h" {
            return Ok(Command::Help);
        }
        let value = args
            .next()
            .ok_or_else(|| Failure::Usage(format!("{option} needs a value")))?;
        let unreadable = || Failure::Usage(format!("{option} {value}: not readable"));
        match option.as_str() {
            "--base" => base = Some(value),
            "--peer" => peer = Some(value),
            "--pid" | "--peer-pid" => {
                let those = value
                    .split(',')
                    .map(|pid| pid.parse().map_err(|_| unreadable()))
                    .collect::<Result<_, _>>()?;
                if option == "--pid" {
                    pids = those;
                } else {
                    peer_pids = those;
                }
            }
            "--only" => only = value.split(',').map(str::to_owned).collect(),
            "--scale" => {
                scale = value.parse().map_err(|_| unreadable())?;
                if !(scale > 0.0 && scale <= 1.0) {
                    return Err(unreadable());
                }
            }
            "--json" => json = Some(PathBuf::from(value)),
            "--wait-until-up" => {
                let seconds = value.parse().map_err(|_| unreadable())?;
                patience = Some(Duration::from_secs(seconds));
            }
            _ => return Err(Failure::Usage(format!("{option} is no option; try --help"))),
        }
    }
    let base = base.ok_or_else(|| Failure::Usage("--base is missing".to_owned()))?;
    if let Some(patience) = patience {
        return Ok(Command::WaitUntilUp { base, patience });
    }
    if pids.is_empty() {
        return Err(Failure::Usage("--pid is missing".to_owned()));
    }
    if peer.is_some() && peer_pids.is_empty() {
        return Err(Failure::Usage("--peer-pid is missing".to_owned()));
    }
    let scenarios = chosen(scenarios::all(peer.is_some()), &only)?;
    Ok(Command::Run(Run {
        base,
        pids,
        peer: peer.map(|base| (base, peer_pids)),
        scenarios,
        scale,
        json,
    }))
}

fn chosen(all: &[Scenario], only: &[String]) -> Result<Vec<&'static str>, Failure> {
    for name in only {
        if !all.iter().any(|(known, ..)| known == name) {
            return Err(Failure::Usage(format!("--only {name}: no such scenario")));
        }
    }
    Ok(all
        .iter()
        .filter(|(name, by_default, _)| {
            if only.is_empty() {
                *by_default
            } else {
                only.iter().any(|chosen| chosen == name)
            }
        })
        .map(|(name, ..)| *name)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::{Command, parse};

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn scenarios_run_in_their_own_order_and_only_those_named() {
        let Ok(Command::Run(run)) =
            parsed("--base http://127.0.0.1:1 --pid 1,2 --only fill,create,send --scale 0.5")
        else {
            panic!("this is a run");
        };
        assert_eq!(run.scenarios, ["send", "create", "fill"]);
        assert_eq!(run.pids, [1, 2]);
    }

    #[test]
    fn without_only_the_filling_is_left_out() {
        let Ok(Command::Run(run)) = parsed("--base http://127.0.0.1:1 --pid 1") else {
            panic!("this is a run");
        };
        assert!(run.scenarios.contains(&"big-fanout"));
        assert!(!run.scenarios.contains(&"fill"));
    }

    #[test]
    fn with_a_peer_it_is_what_happens_between_two_servers() {
        let Ok(Command::Run(run)) = parsed("--base x --pid 1 --peer y --peer-pid 2,3") else {
            panic!("this is a run");
        };
        assert_eq!(run.peer, Some(("y".to_owned(), vec![2, 3])));
        assert!(run.scenarios.contains(&"remote-join"));
        assert!(!run.scenarios.contains(&"send"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, named) in [
            ("--base x", "--pid"),
            ("--pid 1", "--base"),
            ("--base x --pid one", "--pid one"),
            ("--base x --pid 1 --only nothing", "nothing"),
            ("--base x --pid 1 --only remote-join", "remote-join"),
            ("--base x --pid 1 --peer y", "--peer-pid"),
            ("--base x --pid 1 --peer y --peer-pid 2 --only send", "send"),
            ("--base x --pid 1 --scale 0", "--scale 0"),
            ("--base x --pid 1 --scale 1.5", "--scale 1.5"),
            ("--base x --pid", "--pid"),
            ("--bass x", "--bass"),
        ] {
            let refusal = parsed(line).unwrap_err();
            assert!(refusal.contains(named), "{line}: {refusal}");
        }
    }
}
