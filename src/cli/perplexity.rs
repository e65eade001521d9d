//! `chaski perplexity`, with llama.cpp's definition, so that figures compare.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::json;

use super::args::PerplexityArgs;
use super::open::{load, not_interrupted, options};
use super::output::{note, print, progress};
use super::text::{read_text, text_ids};
use crate::engine::{Engine, Model, Options};
use crate::error::{Error, Result, count};
use crate::model::Logits;
use crate::team::Team;

/// llama.cpp's window unless `--context` says otherwise.
const DEFAULT_WINDOW: usize = 512;

/// Tokens of a step: the logits of all of them are kept.
const CHUNK: usize = 64;

pub fn run(args: &PerplexityArgs) -> Result<()> {
    let window = args.model.context.unwrap_or(DEFAULT_WINDOW);
    // llama.cpp lengthens the window by half a stride.
    let length = args.stride.map_or(window, |stride| window + stride / 2);
    let options = Options {
        context: Some(length),
        prefill_chunk: Some(args.model.prefill_chunk.unwrap_or(CHUNK).min(CHUNK)),
        scored: usize::MAX,
        ..options(&args.model)?
    };
    let check = |model: &Model, text: String| {
        let ids = text_ids(model.tokenizer()?, &text)?;
        let mut windows = windows(ids.len(), length, args.stride)?;
        windows.truncate(args.chunks.unwrap_or(usize::MAX));
        Ok((ids, windows))
    };
    let (model, Engine { mut team, .. }, (ids, windows)) =
        load(&args.model, options, || read_text(&args.file), check)?;
    let tokenizer = model.tokenizer()?;

    let mut shown = Shown::new(args.json, windows.len(), length);
    let mut total = Total::default();
    for (i, window) in windows.iter().enumerate() {
        let mut window_ids = ids[window.start..window.start + length].to_vec();
        if let Some(bos) = tokenizer.before_text().first() {
            window_ids[0] = *bos;
        }
        score(&mut team, &window_ids, window.first, &mut total, &shown.bar)?;
        shown.window(i + 1, &total)?;
    }
    shown.end(&total, &model.source.to_string())
}

/// What is shown of the estimate while it becomes better, and at the end.
struct Shown {
    as_json: bool,
    windows: usize,
    length: usize,
    /// Counts tokens.
    bar: ProgressBar,
    begun: Instant,
    /// When a line told last of it, where no bar does.
    told: Instant,
}

/// Time between lines where there is no bar.
const PERIOD: Duration = Duration::from_secs(10);

impl Shown {
    fn new(as_json: bool, windows: usize, length: usize) -> Self {
        let (bar, now) = (progress((windows * length) as u64, "perplexity"), Instant::now());
        Self { as_json, windows, length, bar, begun: now, told: now }
    }

    /// So many windows have been scored.
    fn window(&mut self, done: usize, total: &Total) -> Result<()> {
        let (so_far, error) = (total.perplexity(), total.error());
        self.bar.set_message(format!("perplexity {so_far:.4}"));
        if self.as_json {
            let line = json!({
                "window": done,
                "perplexity": so_far,
                "standard_error": error,
                "tokens": total.count,
            });
            return print(&format!("{line}\n"));
        }
        if self.bar.is_hidden() && self.told.elapsed() > PERIOD {
            self.told = Instant::now();
            let windows = self.windows;
            note(format_args!("window {done} of {windows}: perplexity {so_far:.4} +/- {error:.5}"));
        }
        Ok(())
    }

    fn end(self, total: &Total, model: &str) -> Result<()> {
        let Self { as_json, windows, length, bar, begun, .. } = self;
        bar.finish_and_clear();
        let (perplexity, error) = (total.perplexity(), total.error());
        let (scored, of) = (count(total.count, "token"), count(windows, "window"));
        note(format_args!("{scored} scored in {of} of {length}"));
        if !as_json {
            return print(&format!("perplexity {perplexity:.4} +/- {error:.5}\n"));
        }
        let line = json!({
            "model": model,
            "perplexity": perplexity,
            "standard_error": error,
            "tokens": total.count,
            "windows": windows,
            "window_tokens": length,
            "seconds": begun.elapsed().as_secs_f64(),
        });
        print(&format!("{line}\n"))
    }
}

/// Tokens `start..start + length` of the text, of which those after `first` are scored.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    start: usize,
    /// The first position of the window whose prediction counts.
    first: usize,
}

/// Windows side by side, each scored in its second half; or every `stride`, scored in its last
/// `stride` positions.
fn windows(tokens: usize, length: usize, stride: Option<usize>) -> Result<Vec<Window>> {
    if length < 2 || stride.is_some_and(|stride| stride >= length) {
        return Err(Error::failed(format!(
            "a window of {length} tokens has nothing to score: raise --context or lower --stride"
        )));
    }
    if tokens < 2 * length {
        return Err(Error::failed(format!(
            "windows of {length} tokens need a text of {} and this one has {tokens}: give a longer one \
             or a smaller --context",
            2 * length
        )));
    }
    let (count, step, first) = match stride {
        None => (tokens / length, length, length / 2),
        Some(stride) => ((tokens - length).div_ceil(stride), stride, length - stride - 1),
    };
    Ok((0..count).map(|i| Window { start: i * step, first }).collect())
}

/// Sums of the negative log likelihoods.
#[derive(Debug, Default)]
struct Total {
    nll: f64,
    nll_squared: f64,
    count: usize,
}

impl Total {
    fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.nll_squared += nll * nll;
        self.count += 1;
    }

    fn perplexity(&self) -> f64 {
        (self.nll / self.count as f64).exp()
    }

    /// The standard error of the perplexity, to first order.
    fn error(&self) -> f64 {
        let mean = self.nll / self.count as f64;
        let variance = self.nll_squared / self.count as f64 - mean * mean;
        (variance.max(0.0) / (self.count as f64 - 1.0).max(1.0)).sqrt() * mean.exp()
    }
}

/// Scores how each position from `first` on predicts the next token of the window.
fn score(
    team: &mut Team,
    ids: &[u32],
    first: usize,
    total: &mut Total,
    bar: &ProgressBar,
) -> Result<()> {
    team.rewind(0)?;
    team.expect(ids.len())?;
    let vocab = team.vocab();
    for start in (0..ids.len()).step_by(team.chunk()) {
        not_interrupted()?;
        let chunk = &ids[start..ids.len().min(start + team.chunk())];
        let wanted = if start + chunk.len() > first { Logits::All } else { Logits::None };
        for (i, logits) in team.prefill(chunk, wanted)?.chunks(vocab).enumerate() {
            if let Some(next) = ids.get(start + i + 1).filter(|_| start + i >= first) {
                total.add(negative_log_likelihood(logits, *next));
            }
        }
        bar.inc(chunk.len() as u64);
    }
    Ok(())
}

/// `-log softmax(logits)[id]`
fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    sum.ln() + f64::from(max - logits[id as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_as_llama_cpp_lays_them() {
        let starts = |tokens, length, stride| -> Vec<(usize, usize)> {
            let windows = windows(tokens, length, stride).unwrap();
            windows.iter().map(|window| (window.start, window.first)).collect()
        };
        assert_eq!(starts(35, 10, None), [(0, 5), (10, 5), (20, 5)]);
        assert_eq!(starts(20, 10, Some(4)), [(0, 5), (4, 5), (8, 5)]);
        assert!(windows(19, 10, None).is_err());
        assert!(windows(40, 10, Some(10)).is_err());
    }

    #[test]
    fn the_total_is_the_exponential_of_the_mean_with_its_standard_error() {
        let mut total = Total::default();
        [1.0, 2.0, 3.0].into_iter().for_each(|nll| total.add(nll));
        assert!((total.perplexity() - 2f64.exp()).abs() < 1e-12);
        assert!((total.error() - (2.0 / 3.0 / 2.0f64).sqrt() * 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn the_likelihood_is_of_the_softmax() {
        let nll = negative_log_likelihood(&[1000.0, 1001.0], 1);
        assert!((nll - (1.0 + (-1f64).exp()).ln()).abs() < 1e-6);
    }
}
