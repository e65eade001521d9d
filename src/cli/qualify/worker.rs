//! The process in which checks are performed: whatever a broken kernel does to it, the one that started it
//! goes on. It takes orders from standard input and reports on standard output, in lines of JSON.

use std::io;
use std::sync::mpsc;
use std::thread;

use crate::cli::leave;
use crate::cli::open::defaults;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::executor::cuda::Gpu;
use crate::qualify::{CheckOrder, Phase, Reply, perform};

fn tell(reply: &Reply) -> Result<()> {
    let line = serde_json::to_string(reply);
    let line = line.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
    print(&(line + "\n"))
}

/// Performs checks on the GPU of this number, as long as there are orders.
///
/// # Errors
/// A GPU that cannot be used.
pub fn work(device: u32) -> Result<()> {
    let (ordered, orders) = mpsc::channel();
    let gpu = Gpu::open_as(device, &defaults()?.cuda)?;
    // Even when a kernel does not end, the process does when nobody has orders any more.
    thread::spawn(move || {
        let lines = io::stdin().lines().map_while(|line| line.ok());
        let mut orders = lines.filter_map(|line| serde_json::from_str::<CheckOrder>(&line).ok());
        let _ = orders.try_for_each(|order| ordered.send(order));
        leave(0)
    });
    tell(&Reply::Ready)?;
    for order in orders {
        let mut unheard = Ok(());
        let found = perform(&order, &gpu, &mut |phase| {
            let told = tell(&match phase {
                Phase::Loading => Reply::Loading,
                Phase::Case(name) => Reply::Case(name.to_owned()),
            });
            if unheard.is_ok() {
                unheard = told;
            }
        });
        unheard?;
        tell(&Reply::Ended(found))?;
    }
    Ok(())
}
