//! The `guildhall` binary: arguments, configuration, logging, start, signals.

use std::process::ExitCode;

use homeserver::{
    config::{
        Config, LogFormat, Sources,
        arguments::{self, Action, Arguments},
    },
    seams::Seams,
    server::{Server, engine},
};
use tokio::signal::unix::{SignalKind, signal};

/// With 1,000 users in 100 rooms the process holds two thirds of the memory that it holds with that of glibc, and spends a
/// tenth less time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Why the process ends with an error.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = failure.to_string();
            let mut source = failure.source();
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            eprintln!("guildhall: {text}");
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what was asked for on the command line goes there"
)]
fn run() -> Result<(), Failure> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    match arguments.action {
        Action::Help => print!("{}", arguments::HELP),
        Action::Version => println!("{}", arguments::version()),
        Action::PrintConfig => print!("{}", load(&arguments)?.to_toml()),
        Action::Run => {
            let config = load(&arguments)?;
            start_logging(&config)?;
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(serve(config))?;
        }
    }
    Ok(())
}

fn load(arguments: &Arguments) -> Result<Config, Failure> {
    let sources = Sources {
        file: arguments.config_file.clone(),
        environment: std::env::vars_os().collect(),
        overrides: arguments.overrides.clone(),
    };
    Ok(Config::load(&sources)?)
}

fn start_logging(config: &Config) -> Result<(), Failure> {
    let mut filter = tracing_subscriber::EnvFilter::try_new(&config.logging.level)?;
    if !config.logging.level.contains("ruma_state_res") {
        // At `info` it writes several lines for each event.
        filter = filter.add_directive("ruma_state_res=warn".parse()?);
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.logging.format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn serve(config: Config) -> Result<(), Failure> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let engine = engine(&config);
    let server = Server::start(config, Seams::real()?, engine).await?;
    let listening = server.listen().await?;
    server.greet()?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    server.app.tasks.announce_stop();
    listening.ended().await;
    server.stop().await;
    Ok(())
}
