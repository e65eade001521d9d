//! Two executors side by side, op by op: where they part.

use bytemuck::Pod;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::encoding::Float;
use crate::error::Result;
use crate::executor::{Blueprint, Executor, Hardware};
use crate::memory::Slot;
use crate::model::{self, Label, Llama, Logits, Plan, State, Weights};
use crate::op::Program;
use crate::vector::widened;

/// How far apart the results of one op are: the relative L2 over all numbers that either executor has
/// changed.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// `prefill` or `decode`.
    pub step: &'static str,
    /// None for what is before the first layer or after the last.
    pub layer: Option<usize>,
    pub op: &'static str,
    /// What the op has written.
    pub slot: String,
    /// When both begin with the first executor's numbers: the op's own doing.
    pub alone: f64,
    /// When each goes on with its own: what has come together since the first op.
    pub so_far: f64,
    /// How large `alone` may be by arithmetic in the types at hand.
    pub tolerance: f64,
}

impl Difference {
    pub fn is_alike(&self) -> bool {
        self.alone <= self.tolerance
    }
}

/// Sums in f32, in one order or another.
const F32_TOLERANCE: f64 = 1e-4;
/// A result of 16 bits that is rounded to one side or the other; probabilities of 16 bits.
const HALF_TOLERANCE: f64 = 5e-3;

/// Two executors with the same model, whose states are laid out alike.
pub struct Pair {
    model: Llama,
    chunk: usize,
    /// All state that is not shared with the host.
    whole: Slot<u64>,
    devices: [Executor; 2],
}

impl Pair {
    /// Loads the model twice. `plan` suits both executors.
    ///
    /// # Errors
    /// Tensors that do not suit the config; memory that there is not; a device that fails.
    pub fn new(config: &Config, plan: &Plan, sides: [(Hardware, Checkpoint); 2]) -> Result<Self> {
        let dims = Dims::new(config, 1)?;
        let weights = Weights::locate(&sides[0].1, &dims)?;
        let matrices: Vec<_> = weights.matrices().collect();
        let (model, layout) = Llama::lay_out(config, dims, weights, plan.sizes);
        let load = |(hardware, checkpoint): (Hardware, Checkpoint)| -> Result<Executor> {
            let initial = model.initial_state(config, &checkpoint)?;
            let blueprint = Blueprint::new(checkpoint, &matrices, &layout);
            let mut device = Executor::new(&hardware, blueprint)?;
            device.write(layout.whole(), &vec![0; layout.whole().len()])?;
            for (slot, bytes) in initial {
                device.write(slot, &bytes)?;
            }
            Ok(device)
        };
        let [a, b] = sides.map(load);
        Ok(Self { devices: [a?, b?], whole: layout.whole().cast(), chunk: plan.sizes.chunk, model })
    }

    /// Runs the prompt `ids`, all but its last token as prefill and that as a decode step. `on_difference`
    /// hears of every result of every op.
    ///
    /// # Errors
    /// A device that fails, or what `on_difference` returns.
    pub fn run(
        &mut self,
        ids: &[u32],
        on_difference: &mut dyn FnMut(Difference) -> Result<()>,
    ) -> Result<()> {
        let [a, b] = &mut self.devices;
        let mut states = [a.read(self.whole)?.to_vec(), b.read(self.whole)?.to_vec()];
        let Some((last, before)) = ids.split_last() else { return Ok(()) };
        let mut position = 0;
        for ids in before.chunks(self.chunk) {
            let program = model::prefill(&self.model, ids.len(), Logits::None);
            self.step("prefill", program, ids, position, &mut states, on_difference)?;
            position += ids.len();
        }
        let program = model::decode(&self.model, 1);
        self.step("decode", program, &[*last], position, &mut states, on_difference)
    }

    /// Runs one program, `states` being what each executor's own run has come to.
    fn step(
        &mut self,
        step: &'static str,
        program: Program,
        ids: &[u32],
        position: usize,
        states: &mut [Vec<u64>; 2],
        on_difference: &mut dyn FnMut(Difference) -> Result<()>,
    ) -> Result<()> {
        let State { ids: ids_slot, placement, .. } = self.model.state;
        for state in &mut *states {
            put(state, ids_slot, ids);
            put(state, placement.positions, &[position as u32]);
        }
        let labels = self.model.labels(&program);
        for (op, Label { layer, .. }) in program.ops.into_iter().zip(labels) {
            let (name, op) = (op.name(), Program { ops: vec![op] });
            let [a, b] = &mut self.devices;
            let alone = run(b, self.whole, &op, &states[0])?;
            let after =
                [run(a, self.whole, &op, &states[0])?, run(b, self.whole, &op, &states[1])?];
            for (slot, numbers) in self.model.state.numbers() {
                let read = |state| widened(numbers, bytes(state, numbers.bytes));
                let first = (&*read(&states[0]), &*read(&after[0]));
                let (Some(alone), Some(so_far)) = (
                    apart(first, (first.0, &read(&alone))),
                    apart(first, (&read(&states[1]), &read(&after[1]))),
                ) else {
                    continue;
                };
                let tolerance = match numbers.dtype {
                    Float::F32 => F32_TOLERANCE,
                    _ => HALF_TOLERANCE,
                };
                on_difference(Difference {
                    step,
                    layer,
                    op: name,
                    slot,
                    alone,
                    so_far,
                    tolerance,
                })?;
            }
            states.clone_from(&after);
        }
        Ok(())
    }
}

/// What is in memory once `program` has run on `state`.
fn run(
    device: &mut Executor,
    whole: Slot<u64>,
    program: &Program,
    state: &[u64],
) -> Result<Vec<u64>> {
    device.write(whole, state)?;
    device.run(program)?;
    Ok(device.read(whole)?.to_vec())
}

/// The bytes of `slot` in a copy of the state.
fn bytes<T: Pod>(state: &[u64], slot: Slot<T>) -> &[u8] {
    &bytemuck::cast_slice(state)[slot.offset()..][..slot.bytes()]
}

fn put<T: Pod>(state: &mut [u64], slot: Slot<T>, values: &[T]) {
    let state: &mut [u8] = bytemuck::cast_slice_mut(state);
    let values: &[u8] = bytemuck::cast_slice(values);
    state[slot.offset()..][..values.len()].copy_from_slice(values);
}

/// The relative L2 between what two runs left, over the numbers that either has changed; none, if there
/// are no such. A run is what it began with and what it left. What is no number in one of them alone is
/// infinitely far off.
fn apart(first: (&[f32], &[f32]), second: (&[f32], &[f32])) -> Option<f64> {
    let (mut error, mut norm, mut count) = (0f64, 0f64, 0usize);
    let runs = first.0.iter().zip(first.1).zip(second.0.iter().zip(second.1));
    for (first, second) in runs {
        let changed = |(before, after): (&f32, &f32)| before.to_bits() != after.to_bits();
        if !changed(first) && !changed(second) {
            continue;
        }
        count += 1;
        norm += f64::from(*first.1).powi(2);
        let same = first.1.to_bits() == second.1.to_bits();
        error += if same { 0.0 } else { f64::from(first.1 - second.1).powi(2) };
    }
    let relative = if error == 0.0 { 0.0 } else { (error / norm).sqrt() };
    (count > 0).then_some(if relative.is_nan() { f64::INFINITY } else { relative })
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_changes_is_compared() {
        let apart = |before: &[f32], first: &[f32], second: &[f32]| {
            super::apart((before, first), (before, second))
        };
        assert_eq!(apart(&[1.0, 2.0], &[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(apart(&[1.0, 2.0], &[1.0, 5.0], &[1.0, 5.0]), Some(0.0));
        assert_eq!(apart(&[9.0, 0.0, 0.0], &[9.0, 3.0, 4.0], &[9.0, 3.0, 4.5]), Some(0.1));
        // What the second has not written, and what it should not have.
        assert_eq!(apart(&[1.0, 0.0], &[1.0, 2.0], &[1.0, 0.0]), Some(1.0));
        assert_eq!(apart(&[0.0, 2.0], &[1.0, 2.0], &[1.0, 2.5]), Some((0.25f64 / 5.0).sqrt()));
        assert_eq!(apart(&[0.0], &[1.0], &[f32::NAN]), Some(f64::INFINITY));
    }

    #[test]
    fn what_was_off_before_and_is_left_alone_is_no_news() {
        let (first, second) = (([1.0, 0.0], [1.0, 2.0]), ([7.0, 0.0], [7.0, 2.0]));
        assert_eq!(super::apart((&first.0, &first.1), (&second.0, &second.1)), Some(0.0));
    }
}
