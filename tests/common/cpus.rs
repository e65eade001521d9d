//! Models split over ranks on the CPU.

use std::path::Path;
use std::time::{Duration, Instant};

use chaski::engine::{self, Model, Split};
use chaski::error::Result;
use chaski::model::Logits;
use chaski::rank::RankSpec;
use chaski::sampler::SamplingOptions;
use chaski::team::{Team, TeamOptions};

use crate::golden::source;

/// The model of a golden case in so many stages of so many parts.
pub fn team(case: &Path, [stages, parts]: [usize; 2], options: TeamOptions) -> Result<Team> {
    let split =
        Split { tensor_parallel: Some(parts), pipeline_parallel: Some(stages), ..Split::default() };
    let device = engine::Device::Cpu;
    let asked = engine::Options { device, split, scored: usize::MAX, ..engine::Options::default() };
    let model = Model::of(source(case), asked)?;
    let (plan, Model { config, dims, checkpoint, hardware, .. }) = (model.plan()?, model);
    let spec = RankSpec { config: &config, dims, checkpoint, plan: &plan };
    Team::new(spec, &hardware, options, &|_| Ok(()))
}

/// Runs until something fails, which ends the run for good; the error, and how long it took.
pub fn failure(mut team: Team) -> (String, Duration) {
    let start = Instant::now();
    let mut run = || -> Result<()> {
        team.begin(&SamplingOptions::default(), &[1, 2, 3])?;
        team.forward(&[1, 2, 3], Logits::Last)?;
        team.sample()?;
        loop {
            team.decode_step()?;
        }
    };
    let error = run().unwrap_err().to_string();
    let took = start.elapsed();
    assert_eq!(team.decode(1).unwrap_err().to_string(), error);
    (error, took)
}
