//! The command line of `guildhall`, read by hand: it is small, and its errors can say what was meant.
//!
//! Nothing is carried out here; `main` does what [`Arguments::action`] says.

use std::{ffi::OsString, path::PathBuf};

use super::{sources::Sources, suggest};

/// What `--help` prints.
pub const HELP: &str = "\
Guildhall, a Matrix homeserver for communities.

Usage: guildhall [run] [OPTIONS]

Commands:
  run                  start the server; this is also what happens without a command

Options:
  --config FILE        the configuration file (TOML); guildhall.example.toml explains every key
  -O KEY=VALUE         set one key, such as -O limits.upload_mb=50; may be given more than once
  --print-config       print the configuration as it would be used, secrets masked, and stop
  --version            print the version and stop
  --help               print this and stop

Environment:
  GUILDHALL_CONFIG     the configuration file, if --config is not given
  GUILDHALL_<SECTION>__<KEY>
                       set one key, such as GUILDHALL_SERVER__NAME=example.org

The command line overrides the environment, and the environment overrides the file.
Without any configuration it is a trial server for this machine: it listens on 127.0.0.1:8008,
keeps its data in ./guildhall-data, and lets everyone on this machine register.
";

/// Every word that stands by itself; what looks like none of them is an error.
const COMMANDS: [&str; 1] = ["run"];

/// Every option, for suggestions.
const OPTIONS: [&str; 7] = [
    "--config",
    "-O",
    "--print-config",
    "--version",
    "-V",
    "--help",
    "-h",
];

/// What the command line asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub action: Action,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// The values of all `-O`, in order, not looked at yet.
    pub overrides: Vec<String>,
}

/// What to do; of several, the last one in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Start the server.
    #[default]
    Run,
    /// Print [`Config::to_toml`](super::Config::to_toml).
    PrintConfig,
    /// Print [`version`].
    Version,
    /// Print [`HELP`].
    Help,
}

/// Why a command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// An option that does not exist.
    #[error("unknown option `{option}`{}; see --help", hint(*suggestion))]
    UnknownOption {
        /// As given.
        option: String,
        /// The nearest one that exists, if one is near.
        suggestion: Option<&'static str>,
    },
    /// A command that does not exist.
    #[error("unknown command `{command}`{}; see --help", hint(*suggestion))]
    UnknownCommand {
        /// As given.
        command: String,
        /// The nearest one that exists, if one is near.
        suggestion: Option<&'static str>,
    },
    /// An option that needs a value has none.
    #[error("{option} needs a value: {form}")]
    NoValue {
        /// The option.
        option: &'static str,
        /// What it looks like with one.
        form: &'static str,
    },
    /// An option that takes no value has one.
    #[error("{option} takes no value")]
    UnwantedValue {
        /// The option.
        option: String,
    },
    /// Something that can be given once only.
    #[error("{option} is given twice")]
    Twice {
        /// The option or command.
        option: &'static str,
    },
    /// Text that the system cannot have meant.
    #[error("{shown} is not valid UTF-8")]
    NotText {
        /// As far as it can be shown.
        shown: String,
    },
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion
        .map(|known| format!(", did you mean `{known}`?"))
        .unwrap_or_default()
}

/// What `--version` prints.
pub fn version() -> String {
    format!("guildhall {}", env!("CARGO_PKG_VERSION"))
}

impl Arguments {
    /// Reads the arguments, the program's own name not among them.
    ///
    /// `--help` and `--version` win over everything that is right; what is wrong is an error all the same.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgumentError> {
        let mut parsed = Self::default();
        let mut command_given = false;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = text(argument)?;
            if let Some(value) = argument.strip_prefix("-O") {
                let value = if value.is_empty() {
                    arguments.next().map(text).transpose()?
                } else {
                    Some(value.into())
                };
                let form = "-O limits.upload_mb=50";
                let value = value.ok_or(ArgumentError::NoValue { option: "-O", form })?;
                parsed.overrides.push(value);
                continue;
            }
            let (option, value) = match argument.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(value)),
                _ => (argument.as_str(), None),
            };
            let action = match option {
                "--config" => {
                    let no_value = ArgumentError::NoValue {
                        option: "--config",
                        form: "--config guildhall.toml",
                    };
                    // A file name need not be text.
                    let file = value
                        .map(PathBuf::from)
                        .or_else(|| arguments.next().map(PathBuf::from));
                    let file = file
                        .filter(|file| !file.as_os_str().is_empty())
                        .ok_or(no_value)?;
                    if parsed.config_file.replace(file).is_some() {
                        return Err(ArgumentError::Twice { option: "--config" });
                    }
                    continue;
                }
                "--print-config" => Action::PrintConfig,
                "--version" | "-V" => Action::Version,
                "--help" | "-h" => Action::Help,
                "run" => {
                    if std::mem::replace(&mut command_given, true) {
                        return Err(ArgumentError::Twice { option: "run" });
                    }
                    continue;
                }
                _ if option.starts_with('-') => {
                    let suggestion = suggest::nearest(option, OPTIONS);
                    return Err(ArgumentError::UnknownOption {
                        option: option.to_owned(),
                        suggestion,
                    });
                }
                _ => {
                    let suggestion = suggest::nearest(option, COMMANDS);
                    return Err(ArgumentError::UnknownCommand {
                        command: option.to_owned(),
                        suggestion,
                    });
                }
            };
            if value.is_some() {
                return Err(ArgumentError::UnwantedValue {
                    option: option.to_owned(),
                });
            }
            parsed.action = parsed.action.max(action);
        }
        Ok(parsed)
    }

    /// The sources of the configuration, `environment` being the process's own.
    pub fn sources(&self, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Sources {
        Sources {
            file: self.config_file.clone(),
            environment: environment.into_iter().collect(),
            overrides: self.overrides.clone(),
        }
    }
}

fn text(argument: OsString) -> Result<String, ArgumentError> {
    argument
        .into_string()
        .map_err(|argument| ArgumentError::NotText {
            shown: argument.to_string_lossy().into_owned(),
        })
}
