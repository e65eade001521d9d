//! Where the time goes.

use std::time::Duration;

use super::stream::StreamEvent;
use super::{Cuda, locked, nvtx};
use crate::error::Result;
use crate::executor::Startup;
use crate::op::Program;

impl Cuda {
    /// Runs `program` kernel by kernel, none beginning before the one before has ended, and returns how
    /// long each took. The events between them take time as well.
    ///
    /// # Errors
    /// What cannot be loaded or launched, or has failed.
    pub fn run_timed(&mut self, program: &Program) -> Result<Vec<Duration>> {
        self.guard(|cuda| {
            cuda.weights.wait(None)?;
            let launches = cuda.resolve(program)?;
            cuda.doing = super::names(&launches);
            let timed = |_| StreamEvent::timed(&cuda.context);
            let events: Vec<StreamEvent> =
                (0..=launches.len()).map(timed).collect::<Result<_>>()?;
            events[0].record(&cuda.stream)?;
            for ((launch, event), op) in launches.iter().zip(&events[1..]).zip(&program.ops) {
                let _range = nvtx::range(launch.name);
                cuda.comm.enter(op.name())?;
                launch.prepare(cuda)?;
                launch.queue(cuda, false)?;
                event.record(&cuda.stream)?;
            }
            cuda.comm.leave()?;
            cuda.wait(&cuda.failure())?;
            events.windows(2).map(|pair| pair[1].since(&pair[0])).collect()
        })
    }

    /// What getting ready has taken so far.
    pub fn startup(&self) -> Startup {
        let weights = self.weights.took().unwrap_or(self.startup.weights);
        Startup { modules: locked(&self.kernels).loading, weights, ..self.startup }
    }
}
