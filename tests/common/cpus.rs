//! Models split over ranks on the CPU.

use std::path::Path;
use std::time::{Duration, Instant};

use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, Dims};
use chaski::device::Hardware;
use chaski::error::Result;
use chaski::model::{Logits, Plan, Request, Room};
use chaski::sampler::SamplingOptions;
use chaski::team::{Options, Team};

use crate::golden::source;

/// The model of a golden case on `world` ranks, in as many stages as the options say.
pub fn team(case: &Path, world: usize, options: Options) -> Result<Team> {
    let source = source(case);
    let (config, checkpoint) = (Config::load(&source)?, Checkpoint::open(&source)?);
    let dims = Dims::in_stages(&config, world, options.stages)?.of_rank(world - 1);
    let request = Request { all_logits: true, ..Request::default() };
    let plan = Plan::new(&config, &dims, 0, request, Room::Host(1 << 30))?;
    Team::new(&config, checkpoint, &plan, &vec![Hardware::cpu().unwrap(); world], options, &|_| {
        Ok(())
    })
}

/// Runs until something fails, which ends the run for good; the error, and how long it took.
pub fn failure(mut team: Team) -> (String, Duration) {
    let start = Instant::now();
    let mut run = || -> Result<()> {
        team.begin(&SamplingOptions::default(), &[1, 2, 3])?;
        team.take(&[1, 2, 3], Logits::Last)?;
        team.choose()?;
        loop {
            team.advance()?;
        }
    };
    let error = run().unwrap_err().to_string();
    let took = start.elapsed();
    assert_eq!(team.decode(1).unwrap_err().to_string(), error);
    (error, took)
}
