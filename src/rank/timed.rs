//! A step, op by op.

use std::time::Duration;

use super::{Rank, Sequence};
use crate::error::Result;
use crate::model::{self, Label, Logits};
use crate::op::Cost;

/// What one op of a step took.
#[derive(Debug, Clone)]
pub struct OpTime {
    pub op: &'static str,
    /// What of the model it works on.
    pub label: Label,
    pub cost: Cost,
    pub time: Duration,
}

impl Rank {
    /// As [`Self::forward`], op by op. Returns what each op had to do and how long it took.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_timed(
        &mut self,
        sequence: &Sequence,
        ids: &[u32],
        logits: Logits,
    ) -> Result<Vec<OpTime>> {
        self.start(sequence, ids)?;
        let built;
        let program = if ids.len() == 1 {
            self.decode.program()
        } else {
            built = model::prefill(&self.model, ids.len(), logits);
            &built
        };
        let times = self.device.run_timed(program)?;
        let ops = program.ops.iter().zip(self.model.labels(program)).zip(times);
        let times = ops.map(|((op, label), time)| OpTime {
            op: op.name(),
            label,
            cost: op.cost(sequence.position),
            time,
        });
        Ok(times.collect())
    }
}
