//! What ranks add up through, over each other's memory.

use crate::config::Shard;
use crate::error::Result;
use crate::executor::Executor;
use crate::model::State;
use crate::op::Program;
use crate::ops::{self, AllReduce, Mailbox};

/// Makes ready what the ranks of a stage, if they are several, add up through, and has them add up
/// something before they rely on it.
///
/// # Errors
/// When the GPU or another rank fails.
pub(super) fn connect(device: &mut Executor, state: &State) -> Result<()> {
    let Some(mailbox) = state.mailbox else { return Ok(()) };
    device.write(state.partial, &vec![0.0; state.partial.len()])?;
    device.write(mailbox.rounds, &[0; 3])?;
    device.connect(mailbox.slots, ops::EMPTY, mailbox.addresses)?;
    try_peers(device, state, mailbox)
}

/// Adds up something.
fn try_peers(device: &mut Executor, state: &State, mailbox: Mailbox) -> Result<()> {
    const COUNT: usize = 1024;
    let Shard { part, parts } = mailbox.share;
    let count = state.x.len().min(COUNT) / 4 * 4;
    let [partial, x] = [state.partial, state.x].map(|slot| slot.part(0, count));
    let number = |part: usize, i: usize| (1 + part * count + i) as f32;
    let own: Vec<f32> = (0..count).map(|i| number(part, i)).collect();
    let sum = |i| (0..parts).map(|part| number(part, i)).sum();
    let right: Vec<f32> = (0..count).map(sum).collect();
    let mut program = Program::default();
    let mailbox = Some(mailbox);
    program.push(AllReduce { partial, residual: false, x, world: parts, mailbox });
    device.write(partial, &own)?;
    device.try_peers(&program, x, &right)?;
    device.write(partial, &vec![0.0; count])
}
