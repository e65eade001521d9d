//! Ranks on GPUs have everything ready before any of them runs: see `Cuda::waits_for_peers`.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::gpus;
use chaski::engine;
use chaski::model::Logits;
use chaski::rank::Rank;
use chaski::sampler::SamplingOptions;
use chaski::source::Source;

/// The emulator reads it when it starts.
const HOLD: &str = "CHASKI_EMULATE_HOLD";

/// The second rank comes when the kernels of the first wait for it.
fn late(rank: &mut Rank) {
    if rank.device_mut().comm().rank() == 1 {
        thread::sleep(Duration::from_millis(300));
    }
}

/// The driver may keep it from loading anything then, from allocating or from making a graph.
#[test]
fn a_rank_that_is_late_has_everything_ready() {
    if std::env::var_os(HOLD).is_none() {
        let test = "ready::a_rank_that_is_late_has_everything_ready";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", test, "--nocapture"]).env(HOLD, "on");
        return assert!(again.status().unwrap().success());
    }
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa8-hd64-f16");
    let request =
        engine::Options { context: Some(64), prefill_chunk: Some(8), ..engine::Options::default() };
    let mut team = gpus::team(&Source::find(model).unwrap(), request, 1, &[0, 1]).unwrap();
    let ids = [1, 2, 3];
    team.begin(&SamplingOptions::default(), &ids).unwrap();
    let take = move |rank: &mut Rank| {
        late(rank);
        rank.take(&ids, Logits::Last)?;
        rank.finish()
    };
    team.each(take).unwrap();
    let choose = |rank: &mut Rank| {
        late(rank);
        rank.choose()
    };
    team.each(choose).unwrap();
    for _ in 0..3 {
        let advance = |rank: &mut Rank| {
            late(rank);
            rank.advance()
        };
        let chosen = team.each(advance).unwrap();
        assert_eq!(chosen[0], chosen[1]);
    }
}
