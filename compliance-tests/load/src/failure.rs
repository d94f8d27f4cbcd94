//! What can go wrong in a run. A failure ends its scenario, is printed once and lands in the JSON
//! file; the other scenarios still run.

use std::fmt;
use std::io;

/// Why a scenario could not be measured.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is not one we understand.
    Usage(String),
    /// A file under `/proc`, the output or the socket could not be used.
    Io { what: String, source: io::Error },
    /// The connection broke in the middle of an exchange.
    Http { what: String, source: hyper::Error },
    /// The server answered, but not with success.
    Status {
        request: String,
        status: u16,
        body: String,
    },
    /// A success whose body lacks what the specification promises.
    Answer {
        request: String,
        lacks: &'static str,
    },
    /// Nothing came within the bound.
    Timeout { what: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(problem) => f.write_str(problem),
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Http { what, source } => write!(f, "{what}: {source}"),
            Self::Status {
                request,
                status,
                body,
            } => write!(f, "{request} was answered with {status}: {body}"),
            Self::Answer { request, lacks } => {
                write!(f, "the answer to {request} has no usable {lacks}")
            }
            Self::Timeout { what } => write!(f, "gave up waiting for {what}"),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// For `map_err`: an I/O error together with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
