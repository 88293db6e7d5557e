//! A peer in Rust, on rdkafka.
//!
//!     BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… softmax-peer library|raw
//!
//! It keeps key, partition, order, timestamp and headers, and commits what is acknowledged: at-least-once.

mod kafka;
mod library;
mod raw;

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).expect("signals can be handled");
    }
    let done = match std::env::args().nth(1).as_deref() {
        Some("library") => library::run(&stop),
        Some("raw") => raw::run(&stop),
        _ => Err("usage: softmax-peer library|raw".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
