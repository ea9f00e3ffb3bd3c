//! Compares Balsa with its peers; see the library's modules and `docs/comparing.md`.

use balsa_compare::bound::{grpc, node};
use balsa_compare::command_line::{CommandLine, Format, Hidden, Options};
use balsa_compare::failure::Failure;
use balsa_compare::outcome::Outcome;
use balsa_compare::run::run;
use balsa_compare::servers::{adopt_orphans, end_orphans};
use balsa_compare::table;
use clap::Parser;
use std::io::{self, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{signal, SignalKind};

const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let ended = match line.hidden {
        Some(hidden) => bound_node(hidden).map(|()| ExitCode::SUCCESS),
        None => compare(&line.options),
    };
    ended.unwrap_or_else(|failure| {
        eprintln!("balsa-compare: {}", failure.told());
        ExitCode::from(FAILED)
    })
}

fn bound_node(hidden: Hidden) -> Result<(), Failure> {
    let Hidden::BoundNode { listen, file, followers, grpc } = hidden;
    let listener = TcpListener::bind(listen).map_err(Failure::io(format!("listen on {listen}")))?;
    let ended = match <[_; 2]>::try_from(followers) {
        Ok(followers) if grpc => grpc::server::lead(listener, followers, file),
        Ok(followers) => node::lead(listener, followers, &file),
        Err(_) => node::follow(&listener, &file),
    };
    ended.map_err(Failure::io("go on as a node of the bound"))
}

fn compare(options: &Options) -> Result<ExitCode, Failure> {
    adopt_orphans()?;
    let runtime = Runtime::new().map_err(Failure::io("start the runtime"))?;
    let mut outcome = Outcome::default();
    // On this thread, not on one of the runtime's: servers die with the thread that starts them.
    let interrupted = runtime.block_on(async {
        tokio::select! {
            biased;
            () = stop_asked() => Ok(true),
            ended = run(options, &mut outcome) => ended.map(|()| false),
        }
    });
    // What still runs are clients whose servers are gone; nobody waits for them.
    runtime.shutdown_background();
    end_orphans();
    let interrupted = interrupted?;
    let text = match options.output {
        Format::Text => table::text(&outcome),
        Format::Json => format!("{}\n", outcome.json(options)),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::io("print the table"))?;
    Ok(match (interrupted, outcome.failed.is_empty()) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, false) => ExitCode::from(FAILED),
        (false, true) => ExitCode::SUCCESS,
    })
}

/// Returns on Ctrl-C and on SIGTERM.
async fn stop_asked() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("interrupted: stopping everything");
}
