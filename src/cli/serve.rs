//! `chaski serve`

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::args::ServeArgs;
use super::interrupt::at_interrupt;
use super::observer::observer;
use super::open::{load_observed, options};
use super::output::{note, print};
use super::text::{chat_format, read_text};
use crate::cli::leave;
use crate::engine::{Model, Options};
use crate::error::{Error, Result};
use crate::server::{ServeOptions, Server, ServerStop};

/// Positions of a prompt whose logits are looked at together, where they are asked for: enough for the
/// weights that are read once for all to cost little, and 32 MiB of logits with Llama 3's vocabulary.
const SCORED: usize = 64;

pub fn run(args: &ServeArgs) -> Result<()> {
    let (sequences, scored) = (args.sequences, SCORED);
    let options = Options { sequences, scored, ..options(&args.model)? };
    let start = || Server::start(&serve_options(args)?, Arc::new(|line: &str| note(line)));
    let check = |model: &Model, server: Server| {
        model.tokenizer()?;
        let chat = chat_format(&args.style, |style| model.chat(style));
        if let Err(why) = &chat {
            note(format_args!("texts can be continued, and no conversations: {why}"));
        }
        Ok((server, chat))
    };
    let (model, mut engine, (server, chat)) =
        load_observed(&args.model, options, start, check, |checked| match checked {
            None => observer(),
            Some((server, _)) => server.observer(observer()),
        })?;
    // Who is told that all is ready does not wait for weights.
    engine.team.each(|rank| rank.device_mut().finish_loading())?;
    let address = server.address();
    let server = server.ready(name(args), Arc::new(model), chat, engine)?;
    end_at_signals(&server.stopper())?;
    print(&format!("listening on {}\n", url(address)))?;
    server.run()
}

fn serve_options(args: &ServeArgs) -> Result<ServeOptions> {
    let key = match &args.api_key_file {
        None => args.api_key.clone(),
        Some(file) => Some(read_text(file)?.trim().to_owned()),
    };
    if key.as_ref().is_some_and(String::is_empty) {
        return Err(Error::usage("the key is empty: it would keep nobody out"));
    }
    Ok(ServeOptions {
        host: args.host.clone(),
        port: args.port,
        key,
        cors: args.cors.clone(),
        queue: args.queue,
    })
}

/// What clients call the model.
fn name(args: &ServeArgs) -> String {
    let model = &args.model.model;
    let of_path = || {
        let path = Path::new(model);
        Some(path.exists().then(|| path.canonicalize().ok())??.file_name()?.to_str()?.to_owned())
    };
    args.name.clone().or_else(of_path).unwrap_or_else(|| model.clone())
}

/// As a person on this machine would open it.
fn url(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => format!("http://{address}"),
    }
}

/// Ctrl-C and SIGTERM end the server, a second one the process.
fn end_at_signals(stop: &ServerStop) -> Result<()> {
    let stopped = stop.clone();
    at_interrupt(move || stopped.stop())?;
    #[cfg(unix)]
    end_at_terminate(stop.clone())?;
    Ok(())
}

#[cfg(unix)]
fn end_at_terminate(stop: ServerStop) -> Result<()> {
    use tokio::runtime::Builder;
    use tokio::signal::unix::{SignalKind, signal};

    let cannot = |error| Error::failed(format!("cannot watch for SIGTERM: {error}"));
    let runtime = Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let mut signals = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate()).map_err(cannot)?
    };
    thread::spawn(move || {
        runtime.block_on(signals.recv());
        stop.stop();
        runtime.block_on(signals.recv());
        leave(130)
    });
    Ok(())
}
