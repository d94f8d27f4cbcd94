//! Compares what this server says of rooms with what Synapse says of them, as `generate.py` writes it.
//!
//! Reads one room a line from the standard input and judges, selects and resolves with the functions that the server
//! uses. Of each room the first difference is told, with the command that makes the room again.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    io::BufRead as _,
    process::ExitCode,
    sync::Arc,
};

use federation::{
    event::{Draft, Pdu, rules_of},
    room::{
        StateMap,
        auth::{
            AuthRejection, Verdict, allowed_by_auth_events, allowed_by_state, judge,
            select_auth_events,
        },
        resolve::resolve,
    },
};
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, RoomVersionId, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;

/// How many differences are told in full.
const TOLD_MAX: usize = 10;

/// One line of the input.
#[derive(Deserialize)]
struct Dag {
    seed: String,
    number: u64,
    version: RoomVersionId,
    events: Vec<Step>,
    resolutions: Vec<Resolution>,
}

/// An event, and what Synapse says of it.
#[derive(Deserialize)]
struct Step {
    id: OwnedEventId,
    pdu: CanonicalJsonObject,
    /// Why it does not pass by the auth events it names.
    by_auth_events: Option<String>,
    /// Why it does not pass by the state before it.
    by_state: Option<String>,
    /// The auth events that the state before it selects.
    selected: Vec<OwnedEventId>,
    /// The state before it, if that had to be resolved.
    before: Option<Entries>,
}

/// The state that follows from those after some events.
#[derive(Deserialize)]
struct Resolution {
    of: Vec<OwnedEventId>,
    state: Entries,
    /// How long it took Synapse, in milliseconds, if that was measured; it is measured here as often then.
    #[serde(default)]
    took_ms: Vec<f64>,
}

/// Type, state key and event of each entry of a state.
type Entries = Vec<(String, String, OwnedEventId)>;

/// What is not as Synapse says.
type Difference = String;

fn main() -> ExitCode {
    let (mut rooms, mut different) = (BTreeMap::<String, usize>::new(), 0);
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("the standard input can be read");
        let dag: Dag = serde_json::from_str(&line).expect("a line is a room");
        *rooms.entry(dag.version.to_string()).or_default() += 1;
        if let Err(difference) = Replay::new(&dag).run(&dag) {
            different += 1;
            if different <= TOLD_MAX {
                eprintln!(
                    "\nroom version {}, generate.py --seed {} --first {} --count 1:\n{difference}",
                    dag.version, dag.seed, dag.number
                );
            }
        }
    }
    eprintln!("rooms of each version: {rooms:?}, different: {different}");
    if different == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A room as far as it was replayed.
struct Replay {
    rules: RoomVersionRules,
    events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    after: BTreeMap<OwnedEventId, StateMap>,
}

impl Replay {
    fn new(dag: &Dag) -> Self {
        Self {
            rules: rules_of(&dag.version).expect("the version is served"),
            events: BTreeMap::new(),
            after: BTreeMap::new(),
        }
    }

    fn run(&mut self, dag: &Dag) -> Result<(), Difference> {
        for step in &dag.events {
            self.step(step)?;
        }
        for resolution in &dag.resolutions {
            let resolved = self.resolve(&resolution.of)?;
            self.compare_states(&resolution.of, &resolved, &resolution.state)?;
            if !resolution.took_ms.is_empty() {
                self.compare_times(resolution)?;
            }
        }
        Ok(())
    }

    /// Tells how long a resolution takes, beside the time that it took Synapse.
    #[expect(
        clippy::disallowed_methods,
        reason = "the time is what is measured, and nothing depends on it"
    )]
    fn compare_times(&self, resolution: &Resolution) -> Result<(), Difference> {
        let mut ours = Vec::new();
        for _ in &resolution.took_ms {
            let begun = std::time::Instant::now();
            self.resolve(&resolution.of)?;
            ours.push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
        let (ours, theirs) = (median(ours), median(resolution.took_ms.clone()));
        eprintln!(
            "a state of {} entries from those after {} events: here {ours:.1} ms, Synapse {theirs:.1} ms, {:.1} times as long",
            resolution.state.len(),
            resolution.of.len(),
            theirs / ours
        );
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Difference> {
        let pdu = Pdu::from_canonical(&step.pdu, &self.rules)
            .map_err(|error| format!("{:?} is not an event: {error}", step.pdu))?;
        if pdu.event_id() != step.id {
            let (ours, theirs) = (pdu.event_id(), &step.id);
            return Err(format!("the ID of {} is {ours}, not {theirs}", pdu.json()));
        }
        let before = self.resolve(pdu.prev_events())?;
        if let Some(theirs) = &step.before {
            self.compare_states(pdu.prev_events(), &before, theirs)?;
        }
        self.compare_selection(&pdu, &before, &step.selected)?;
        let accepted = self.compare_verdicts(&pdu, &before, step)?;
        let mut after = before;
        let pdu = if accepted { pdu } else { pdu.as_rejected() };
        if let (true, Some(state_key)) = (accepted, pdu.state_key()) {
            after.insert(&pdu.kind().to_string(), state_key, step.id.clone());
        }
        self.events.insert(step.id.clone(), Arc::new(pdu));
        self.after.insert(step.id.clone(), after);
        Ok(())
    }

    /// Whether the event is accepted, by both servers.
    fn compare_verdicts(
        &self,
        pdu: &Pdu,
        before: &StateMap,
        step: &Step,
    ) -> Result<bool, Difference> {
        let rules = &self.rules.authorization;
        let in_state = |kind: &str, key: &str| self.event(before.get(kind, key)?);
        let by_auth_events = allowed_by_auth_events(pdu, rules, |id| self.event(id));
        let by_state = allowed_by_state(pdu, rules, in_state);
        let verdict = judge(pdu, rules, before, before, |id| self.event(id));
        let accepted = matches!(verdict, Verdict::Accepted);
        let checks = [
            ("its auth events", &by_auth_events, &step.by_auth_events),
            ("the state before it", &by_state, &step.by_state),
        ];
        for (by, ours, theirs) in checks {
            if ours.is_ok() != theirs.is_none() {
                let mut told = format!("by {by}, this event is\n  here: {}\n", Told::ours(ours));
                _ = writeln!(told, "  Synapse: {}", Told::theirs(theirs.as_ref()));
                _ = writeln!(told, "{}\nits auth events:", line_of(pdu));
                told += &self.lines_of(pdu.auth_events());
                told += "what the state before it selects:\n";
                return Err(told + &self.lines_of(&step.selected));
            }
        }
        if accepted != (by_auth_events.is_ok() && by_state.is_ok()) {
            return Err(format!("the verdict is {verdict:?}: {}", line_of(pdu)));
        }
        Ok(accepted)
    }

    /// Whether an event of our own would name what Synapse would.
    fn compare_selection(
        &self,
        pdu: &Pdu,
        before: &StateMap,
        theirs: &[OwnedEventId],
    ) -> Result<(), Difference> {
        let draft = Draft {
            kind: pdu.kind().to_string(),
            state_key: pdu.state_key().map(str::to_owned),
            content: pdu.content().to_owned(),
            redacts: None,
        };
        let mut ours = select_auth_events(&draft, pdu.sender(), before, &self.rules)
            .map_err(|error| format!("no auth events for {}: {error}", line_of(pdu)))?;
        let mut theirs = theirs.to_vec();
        ours.sort();
        theirs.sort();
        if ours == theirs {
            return Ok(());
        }
        Err(format!(
            "the auth events for {} are\n  here:\n{}  Synapse:\n{}",
            line_of(pdu),
            self.lines_of(&ours),
            self.lines_of(&theirs)
        ))
    }

    /// The state that follows from those after some events.
    fn resolve(&self, after: &[OwnedEventId]) -> Result<StateMap, Difference> {
        let state = |id| {
            let state = self.after.get(id);
            state
                .expect("events stand behind those before them")
                .clone()
        };
        let states: Vec<StateMap> = after.iter().map(state).collect();
        resolve(&self.rules, &states, |id| self.event(id))
            .map_err(|error| format!("no state from those after {after:?}: {error}"))
    }

    fn compare_states(
        &self,
        of: &[OwnedEventId],
        ours: &StateMap,
        theirs: &Entries,
    ) -> Result<(), Difference> {
        let mut expected = StateMap::new();
        for (kind, key, id) in theirs {
            expected.insert(kind, key, id.clone());
        }
        let changes = ours.changes_since(&expected);
        if changes.is_empty() {
            return Ok(());
        }
        let mut told = format!("the state after\n{}differs:\n", self.lines_of(of));
        for change in changes {
            let (kind, key) = (&*change.kind, &*change.state_key);
            let entry = |state: &StateMap| match state.get(kind, key) {
                Some(id) => self.line(id),
                None => "nothing".to_owned(),
            };
            _ = writeln!(told, "  ({kind}, {key})\n    here: {}", entry(ours));
            _ = writeln!(told, "    Synapse: {}", entry(&expected));
            for (id, state) in of.iter().filter_map(|id| Some((id, self.after.get(id)?))) {
                _ = writeln!(told, "    after {id}: {}", entry(state));
            }
        }
        Err(told)
    }

    fn event(&self, id: &EventId) -> Option<Arc<Pdu>> {
        self.events.get(id).cloned()
    }

    fn line(&self, id: &EventId) -> String {
        let event = self.event(id);
        event.map_or_else(|| format!("{id} (not known)"), |event| line_of(&event))
    }

    fn lines_of(&self, ids: &[OwnedEventId]) -> String {
        ids.iter().fold(String::new(), |mut lines, id| {
            _ = writeln!(lines, "    {}", self.line(id));
            lines
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(values.len() / 2)
        .copied()
        .expect("there is a value")
}

/// An event on one line.
fn line_of(pdu: &Pdu) -> String {
    let state_key = pdu
        .state_key()
        .map_or_else(String::new, |key| format!(" {key:?}"));
    let rejected = if pdu.is_rejected() { " (rejected)" } else { "" };
    format!(
        "{}{rejected} at {}: {} {}{state_key} {}",
        pdu.event_id(),
        pdu.origin_server_ts().get(),
        pdu.sender(),
        pdu.kind(),
        pdu.content()
    )
}

/// One side's verdict.
enum Told<'a> {
    Allowed,
    Refused(&'a dyn fmt::Display),
}

impl<'a> Told<'a> {
    fn ours(verdict: &'a Result<(), AuthRejection>) -> Self {
        match verdict {
            Ok(()) => Self::Allowed,
            Err(rejection) => Self::Refused(rejection),
        }
    }

    fn theirs(refusal: Option<&'a String>) -> Self {
        refusal.map_or(Self::Allowed, |refusal| Self::Refused(refusal))
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}
