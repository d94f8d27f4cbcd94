//! The command line.

use std::path::PathBuf;

use crate::config::arguments::{Action, ArgumentError, Arguments, HELP, version};

fn parse(line: &str) -> Result<Arguments, ArgumentError> {
    Arguments::parse(line.split_whitespace().map(Into::into))
}

#[test]
fn no_arguments_start_the_server_and_so_does_run() {
    assert_eq!(parse("").unwrap(), Arguments::default());
    assert_eq!(parse("").unwrap().action, Action::Run);
    assert_eq!(parse("run").unwrap(), Arguments::default());
}

#[test]
fn the_file_and_overrides_are_taken_in_every_usual_form() {
    let expected = Arguments {
        action: Action::Run,
        config_file: Some(PathBuf::from("a.toml")),
        overrides: vec!["x.y=1".to_owned(), "x.z=a=b".to_owned()],
    };
    for line in [
        "--config a.toml -O x.y=1 -O x.z=a=b",
        "run --config=a.toml -Ox.y=1 -Ox.z=a=b",
        "-O x.y=1 run -O x.z=a=b --config a.toml",
    ] {
        assert_eq!(parse(line).unwrap(), expected, "{line}");
    }
    let sources = expected.sources([("A".into(), "b".into())]);
    assert_eq!(sources.file, expected.config_file);
    assert_eq!(sources.overrides, expected.overrides);
    assert_eq!(sources.environment, [("A".into(), "b".into())]);
}

#[test]
fn printing_wins_over_running_and_help_over_everything() {
    assert_eq!(
        parse("run --print-config").unwrap().action,
        Action::PrintConfig
    );
    assert_eq!(
        parse("--version --print-config").unwrap().action,
        Action::Version
    );
    assert_eq!(parse("-V").unwrap().action, Action::Version);
    assert_eq!(parse("--help --version").unwrap().action, Action::Help);
    assert_eq!(parse("run -h").unwrap().action, Action::Help);
    assert_eq!(version(), "guildhall 0.1.0");
}

#[test]
fn a_mistake_gives_one_error_that_helps() {
    for (line, expected) in [
        (
            "--confg a",
            "unknown option `--confg`, did you mean `--config`?; see --help",
        ),
        (
            "--printconfig",
            "unknown option `--printconfig`, did you mean `--print-config`?; see --help",
        ),
        (
            "--verison",
            "unknown option `--verison`, did you mean `--version`?; see --help",
        ),
        ("--banana", "unknown option `--banana`; see --help"),
        ("--banana=5", "unknown option `--banana`; see --help"),
        (
            "rnu",
            "unknown command `rnu`, did you mean `run`?; see --help",
        ),
        ("a.toml", "unknown command `a.toml`; see --help"),
        (
            "--config",
            "--config needs a value: --config guildhall.toml",
        ),
        (
            "--config=",
            "--config needs a value: --config guildhall.toml",
        ),
        ("-O", "-O needs a value: -O limits.upload_mb=50"),
        ("--help=yes", "--help takes no value"),
        ("--config a --config b", "--config is given twice"),
        ("run run", "run is given twice"),
        ("--help --banana", "unknown option `--banana`; see --help"),
    ] {
        assert_eq!(parse(line).unwrap_err().to_string(), expected, "{line}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_name_need_not_be_text_but_everything_else_is() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

    let name = OsString::from_vec(vec![b'a', 0xff]);
    let parsed = Arguments::parse(["--config".into(), name.clone()]).unwrap();
    assert_eq!(parsed.config_file, Some(name.clone().into()));
    assert_eq!(
        Arguments::parse([name]).unwrap_err().to_string(),
        "a\u{fffd} is not valid UTF-8"
    );
}

#[test]
fn help_names_every_option() {
    for option in [
        "run",
        "--config",
        "-O",
        "--print-config",
        "--version",
        "--help",
        "GUILDHALL_CONFIG",
    ] {
        assert!(HELP.contains(option), "{option}");
    }
}
