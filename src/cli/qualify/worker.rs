//! The process in which checks are performed: whatever a broken kernel does to it, the one that started it
//! goes on. It takes orders from standard input and reports on standard output, in lines of JSON.

use std::io;
use std::sync::mpsc;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::cli::output::print;
use crate::device::cuda::{Card, leave};
use crate::error::{Error, Result};
use crate::qualify::{Found, Order, Phase, perform};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The GPU is there.
    Ready,
    /// Something begins that may take long.
    Loading,
    /// This case begins.
    Case(String),
    Ended(Found),
}

impl Event {
    fn tell(&self) -> Result<()> {
        let line = serde_json::to_string(self);
        let line = line.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        print(&(line + "\n"))
    }
}

/// Performs checks on the GPU of this number, as long as there are orders.
///
/// # Errors
/// A GPU that cannot be used.
pub fn work(device: u32) -> Result<()> {
    let (ordered, orders) = mpsc::channel();
    let card = Card::open(device)?;
    // Even when a kernel does not end, the process does when nobody has orders any more.
    thread::spawn(move || {
        let lines = io::stdin().lines().map_while(|line| line.ok());
        let mut orders = lines.filter_map(|line| serde_json::from_str::<Order>(&line).ok());
        let _ = orders.try_for_each(|order| ordered.send(order));
        leave(0)
    });
    Event::Ready.tell()?;
    for order in orders {
        let mut unheard = Ok(());
        let found = perform(&order, &card, &mut |phase| {
            let event = match phase {
                Phase::Loading => Event::Loading,
                Phase::Case(name) => Event::Case(name.to_owned()),
            };
            let told = event.tell();
            if unheard.is_ok() {
                unheard = told;
            }
        });
        unheard?;
        Event::Ended(found).tell()?;
    }
    Ok(())
}
