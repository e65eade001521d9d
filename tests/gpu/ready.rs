//! Ranks on GPUs have everything ready before any of them runs: see `Cuda::waits_for_peers`.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::gpus;
use chaski::engine;
use chaski::model::Logits;
use chaski::rank::{Rank, Sequence};
use chaski::sampler::SamplingOptions;
use chaski::source::Source;

/// Tokens whose sums are too large for peer memory.
const LONG: usize = 272;

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
    let (context, prefill_chunk) = (Some(512), Some(LONG));
    let request = engine::Options { context, prefill_chunk, ..engine::Options::default() };
    let source = Source::find("synthetic:tiny").unwrap();
    let mut team = gpus::team(&source, request, 1, &[0, 1]).unwrap();
    let ids = [1, 2, 3];
    team.begin(&SamplingOptions::default(), &ids).unwrap();
    let mut sequence = team.sequence().clone();
    let begun = sequence.clone();
    let take = move |rank: &mut Rank| {
        late(rank);
        rank.forward(&begun, &ids, Logits::Last)?;
        rank.finish()
    };
    team.each(take).unwrap();
    sequence.position = ids.len();
    let taken = sequence.clone();
    let choose = move |rank: &mut Rank| {
        late(rank);
        rank.choice(&taken)?.token()
    };
    team.each(choose).unwrap();
    for _ in 0..3 {
        let taken = sequence.clone();
        let advance = move |rank: &mut Rank| {
            late(rank);
            rank.next_choice(&taken)?.token()
        };
        let chosen = team.each(advance).unwrap();
        assert_eq!(chosen[0], chosen[1]);
        sequence.position += 1;
    }
    // NCCL's first sum of a prompt that is long, behind a short one's over peer memory.
    let begun = Sequence { position: 0, ..sequence };
    let take = move |rank: &mut Rank| {
        late(rank);
        rank.forward(&begun, &ids, Logits::None)?;
        let short = Sequence { position: ids.len(), ..begun.clone() };
        rank.forward(&short, &[1; LONG], Logits::Last)?;
        rank.finish()
    };
    team.each(take).unwrap();
}
