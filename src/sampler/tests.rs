//! The sampler against one written without regard to speed, in double precision.

use proptest::prelude::*;

use super::*;

fn sampler(options: SamplingOptions, vocab: usize) -> Sampler {
    Sampler::new(options, vocab).unwrap()
}

/// The ids that the draw is between, in ascending order.
fn kept(options: &SamplingOptions, logits: &[f32]) -> Vec<u32> {
    let highest = logits[highest(logits).token().unwrap() as usize];
    let keys = super::kept(options, &Weights { logits, highest, temperature: options.temperature });
    let mut ids: Vec<_> = keys.iter().map(|key| id(*key) as u32).collect();
    ids.sort_unstable();
    ids
}

/// Probabilities over all tokens, zero for those that the filters drop; `None` if a decision is too
/// close for two precisions to agree.
fn naive(options: &SamplingOptions, logits: &[f32]) -> Option<Vec<f64>> {
    let scaled: Vec<f64> =
        logits.iter().map(|l| f64::from(*l) / f64::from(options.temperature)).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if options.top_k > 0 {
        order.truncate(options.top_k);
    }
    let softmax = |order: &[usize]| {
        let weights: Vec<f64> =
            order.iter().map(|id| (scaled[*id] - scaled[order[0]]).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect::<Vec<f64>>()
    };
    let (top_p, min_p) = (f64::from(options.top_p), f64::from(options.min_p));
    let mut before = 0.0;
    let mut keep = Vec::new();
    for (id, p) in order.iter().zip(softmax(&order)) {
        if top_p < 1.0 && (before - top_p).abs() < 1e-5 {
            return None;
        }
        if top_p == 1.0 || before <= top_p {
            keep.push(*id);
        }
        before += p;
    }
    let relative: Vec<f64> = keep.iter().map(|id| (scaled[*id] - scaled[keep[0]]).exp()).collect();
    if relative.iter().any(|r| min_p > 0.0 && min_p < 1.0 && (r - min_p).abs() < 1e-5) {
        return None;
    }
    let last = relative.iter().take_while(|r| **r >= min_p).count();
    keep.truncate(last);
    let mut probabilities = vec![0.0; logits.len()];
    for (id, p) in keep.iter().zip(softmax(&keep)) {
        probabilities[*id] = p;
    }
    Some(probabilities)
}

/// Logits with ties among them.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-40i32..40).prop_map(|n| n as f32 / 4.0), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn filters_keep_what_the_naive_ones_keep(
        logits in any_logits(),
        temperature in prop::sample::select(vec![0.1f32, 0.7, 1.0, 3.0]),
        top_k in prop::sample::select(vec![0usize, 1, 2, 5, 40, 1000]),
        top_p in prop::sample::select(vec![0.01f32, 0.37, 0.9, 0.99, 1.0]),
        min_p in prop::sample::select(vec![0.0f32, 0.033, 0.3, 1.0]),
    ) {
        let options = SamplingOptions { temperature, top_k, top_p, min_p, ..Default::default() };
        if let Some(probabilities) = naive(&options, &logits) {
            let positive = (0..).zip(&probabilities).filter(|(_, p)| **p > 0.0);
            let expected: Vec<u32> = positive.map(|(id, _)| id).collect();
            prop_assert_eq!(kept(&options, &logits), expected);
        }
    }

    #[test]
    fn greedy_is_the_lowest_id_of_the_highest_logit(mut logits in any_logits()) {
        let options = SamplingOptions { temperature: 0.0, ..Default::default() };
        let last_first = logits.iter().enumerate().rev();
        let expected = last_first.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        let id = sampler(options, logits.len()).sample(&mut logits, 5).unwrap();
        prop_assert_eq!(id as usize, expected);
    }

    #[test]
    fn penalties_are_those_of_the_formulas(
        logits in prop::collection::vec(-5.0f32..5.0, 8),
        prompt in prop::collection::vec(0u32..8, 0..6),
        answer in prop::collection::vec(0u32..8, 0..6),
        bias in prop::collection::vec((0u32..8, -3.0f32..3.0), 0..3),
        repeat_penalty in 0.5f32..2.0,
        presence_penalty in -2.0f32..2.0,
        frequency_penalty in -2.0f32..2.0,
    ) {
        let options = SamplingOptions {
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: bias.clone(),
            ..Default::default()
        };
        let mut sampler = sampler(options, 8);
        sampler.accept_prompt(&prompt);
        answer.iter().for_each(|id| sampler.accept(*id));
        let mut adjusted = logits.clone();
        adjust(&sampler.options, &sampler.counts, &mut adjusted);
        for (id, (logit, adjusted)) in (0..).zip(logits.iter().zip(adjusted)) {
            let biases = bias.iter().filter(|(other, _)| *other == id);
            let bias: f32 = biases.map(|(_, bias)| bias).sum();
            let mut expected = logit + bias;
            if prompt.contains(&id) || answer.contains(&id) {
                expected *= if expected < 0.0 { repeat_penalty } else { 1.0 / repeat_penalty };
            }
            let count = answer.iter().filter(|other| **other == id).count();
            expected -= frequency_penalty * count as f32;
            expected -= if count > 0 { presence_penalty } else { 0.0 };
            prop_assert!((adjusted - expected).abs() < 1e-4, "{adjusted} {expected}");
        }
    }
}

/// Pearson's statistic of `draws` draws at as many positions against exact probabilities, and the
/// degrees of freedom.
fn chi_squared(options: SamplingOptions, logits: &[f32], draws: u64) -> (f64, usize) {
    let probabilities = naive(&options, logits).unwrap();
    let mut sampler = sampler(options, logits.len());
    let mut counts = vec![0u32; logits.len()];
    for position in 0..draws {
        counts[sampler.sample(&mut logits.to_vec(), position).unwrap() as usize] += 1;
    }
    let mut statistic = 0.0;
    for (count, p) in counts.iter().zip(&probabilities) {
        assert!(*count == 0 || *p > 0.0, "a token that was filtered out");
        if *p > 0.0 {
            let expected = p * draws as f64;
            statistic += (f64::from(*count) - expected).powi(2) / expected;
        }
    }
    (statistic, probabilities.iter().filter(|p| **p > 0.0).count() - 1)
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [1.5, -0.5, 0.0, 2.0, 1.0, -2.0, 0.5, 1.5, -1.0, 0.25];
    let off = SamplingOptions::default();
    let filtered =
        SamplingOptions { temperature: 1.3, top_k: 8, top_p: 0.93, min_p: 0.12, ..off.clone() };
    for seed in 0..3 {
        for options in [&off, &filtered] {
            let options = SamplingOptions { seed, ..options.clone() };
            let (statistic, freedom) = chi_squared(options, &logits, 100_000);
            // The mean of the distribution is its degrees of freedom; with 5 to 9 of them one in
            // 10^5 lies above 40.
            assert!(freedom >= 5 && statistic < 40.0, "{statistic} with {freedom} degrees");
        }
    }
}

#[test]
fn seed_and_position_decide() {
    let options = SamplingOptions { seed: 7, top_p: 0.9, ..Default::default() };
    let logits: Vec<f32> = (0..500).map(|id| ((id * 37) % 101) as f32 / 25.0).collect();
    let text = |options: &SamplingOptions| -> Vec<u32> {
        let mut sampler = sampler(options.clone(), logits.len());
        (0..50).map(|position| sampler.sample(&mut logits.clone(), position).unwrap()).collect()
    };
    assert_eq!(text(&options), text(&options));
    assert_ne!(text(&options), text(&SamplingOptions { seed: 8, ..options.clone() }));
    // One position's draw needs none before it.
    let alone = sampler(options.clone(), 500).sample(&mut logits.clone(), 31).unwrap();
    assert_eq!(alone, text(&options)[31]);
}

#[test]
fn what_cannot_be_sampled_is_an_error() {
    for temperature in [0.0, 1.0] {
        let options = SamplingOptions { temperature, ..Default::default() };
        let sample = |logits: &[f32]| sampler(options.clone(), 3).sample(&mut logits.to_vec(), 0);
        let message = |result: Result<u32>| result.unwrap_err().to_string();
        assert!(message(sample(&[0.0, f32::NAN, 0.0])).contains("logit for the token 1 is NaN"));
        assert!(message(sample(&[0.0, 0.0, f32::INFINITY])).contains("token 2 is NaN or infinite"));
        assert!(message(sample(&[f32::NEG_INFINITY; 3])).contains("every token is ruled out"));
        assert_eq!(sample(&[f32::NEG_INFINITY, -1e38, f32::NEG_INFINITY]), Ok(1));
    }
}

#[test]
fn a_token_can_be_ruled_out() {
    let logit_bias = vec![(2, f32::NEG_INFINITY)];
    let options = SamplingOptions { logit_bias, ..Default::default() };
    let mut sampler = sampler(options, 3);
    let drawn = (0..1000).map(|position| sampler.sample(&mut [0.0, 0.0, 9.0], position).unwrap());
    assert!(drawn.collect::<Vec<_>>().iter().all(|id| *id < 2));
}

#[test]
fn top_p_sorts_as_far_as_it_must() {
    // Equal logits: the share decides how many are kept, far beyond the first part that is sorted.
    for (share, count) in [(0.001, 101), (0.25, 25_001), (0.999, 99_901)] {
        let options = SamplingOptions { top_p: share, ..Default::default() };
        let ids = kept(&options, &vec![0.5; 100_000]);
        assert!(ids.len().abs_diff(count) <= 1, "{} of {count}", ids.len());
        assert_eq!(*ids.last().unwrap() as usize, ids.len() - 1);
    }
}

#[test]
fn exp_is_exact_to_three_units() {
    for step in 0..=870_000 {
        let x = step as f32 * -1e-4;
        let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
        assert!((ours - exact).abs() <= 3.0 * exact * f64::from(f32::EPSILON), "exp({x}) = {ours}");
    }
    assert_eq!((exp(0.0), exp(-0.0), exp(-87.1), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
}
