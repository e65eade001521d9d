//! What is tuned on a GPU changes no bit.

use crate::emulated;
use crate::process::chaski;
use chaski::engine;
use chaski::error::Result;
use chaski::executor::cuda::LaunchOptions;
use chaski::op::{Prefetch, Trigger, Tuning};
use chaski::qualify::{Lengths, tune};
use chaski::source::Source;

/// Each tuning that is a candidate leaves a small model's bits as they are, and so does what a clock that
/// prefers some of them has chosen.
#[test]
fn a_small_model_says_the_same_under_each_tuning() {
    let small = || {
        let source = Source::find("synthetic:tiny").unwrap();
        let request = engine::Options {
            context: Some(64),
            prefill_chunk: Some(48),
            ..engine::Options::default()
        };
        emulated::rank(&source, request).unwrap()
    };
    let lengths = Lengths { prompts: &[3, 20], steps: &[48, 12, 20] };
    let wanted = |tuning: &Tuning| {
        let flow = (tuning.trigger, tuning.prefetch) == (Trigger::First, Prefetch::Paced);
        f64::from(flow) + f64::from(tuning.ahead == 2) + f64::from(tuning.chunk == 20)
    };
    let mut clock =
        |tuning: &Tuning, _: &mut dyn FnMut() -> Result<()>| Ok(1.0 - 0.2 * wanted(tuning));
    let mut begun = 0;
    let tuned =
        tune(small(), LaunchOptions::default(), lengths, &mut clock, &mut || begun += 1).unwrap();
    let (trigger, prefetch) = (Trigger::First, Prefetch::Paced);
    let chosen = Tuning { trigger, prefetch, ahead: 2, chunk: 20, tile: None };
    assert_eq!((tuned.tuning, begun), (chosen, 4));
    let gains = [tuned.token - 0.8 * 0.75, tuned.prompt - 0.4 / 0.6];
    assert!(gains.iter().all(|gain| gain.abs() < 1e-9), "{tuned}");
    // What is slower for all its trouble stays out.
    let mut clock = |tuning: &Tuning, _: &mut dyn FnMut() -> Result<()>| Ok(2.0 + wanted(tuning));
    let tuned = tune(small(), LaunchOptions::default(), lengths, &mut clock, &mut || ()).unwrap();
    let usual = Tuning { chunk: 48, ..Tuning::DEFAULT };
    assert_eq!((tuned.tuning, tuned.token, tuned.prompt), (usual, 1.0, 1.0));
}

/// Prompts whose last step would be one token, which would have the bits of decoding, too.
#[test]
fn an_answer_does_not_depend_on_the_length_of_steps() {
    let answer = |tokens: usize, steps: &str| {
        let ids: Vec<_> = (1..=tokens).map(|id| id.to_string()).collect();
        let ask = ["generate", "--emulate", "1", "-m", "synthetic:tiny", "--ids", &ids.join(",")];
        let more =
            ["-n", "2", "--temp", "0", "--json", "--logprobs", "3", "--prefill-chunk", steps];
        let (status, text, errors) = chaski(&[&ask[..], &more].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        text.lines().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    for (tokens, steps) in [(9, ["16", "8", "4", "3"]), (10, ["16", "9", "5", "3"])] {
        let [whole, others @ ..] = steps.map(|steps| answer(tokens, steps));
        assert!(whole.len() == 2 && whole[1].contains("top_logprobs"), "{whole:?}");
        others.iter().for_each(|other| assert_eq!(*other, whole, "{tokens} tokens"));
    }
}
