//! What `generate --json` prints: a line for each token, and one at the end.

use std::time::Duration;

use serde_json::{Value, json};

use super::load::Load;
use super::output::{Printer, note_timing, print};
use crate::error::Result;
use crate::sampler::SamplingOptions;
use crate::session::{Answer, Finish, Limits, Next, Session, Step, Timing};
use crate::tokenizer::{TextStream, Tokenizer};

/// Writes tokens as JSON, each with what text it completes, control tokens' included. Without a
/// tokenizer there is no text.
pub struct Lines<'t> {
    tokenizer: Option<&'t Tokenizer>,
    stream: Option<TextStream<'t>>,
    /// So many of the most probable tokens stand beside the one that was chosen.
    logprobs: Option<usize>,
}

impl<'t> Lines<'t> {
    pub fn new(tokenizer: Option<&'t Tokenizer>, logprobs: Option<usize>) -> Self {
        let stream = tokenizer.map(|tokenizer| TextStream::new(tokenizer, true));
        Self { tokenizer, stream, logprobs }
    }

    /// Generates an answer; `stops` watches it for stop strings.
    pub fn generate(
        mut self,
        session: &mut Session,
        prompt: &[u32],
        sampling: &SamplingOptions,
        limits: Limits<'_>,
        mut stops: Option<&mut Printer<'_>>,
        load: &Load,
    ) -> Result<Answer> {
        let wants_logits = self.logprobs.is_some();
        let answer = session.generate_steps(prompt, sampling, limits, wants_logits, |step| {
            print(&format!("{}\n", self.token(&step)?))?;
            match &mut stops {
                Some(stops) if !step.is_stop => stops.push(step.id),
                _ => Ok(Next::Continue),
            }
        })?;
        let text = match (stops, self.tokenizer) {
            (Some(stops), _) => {
                stops.finish()?;
                Some(std::mem::take(&mut stops.text))
            }
            (None, Some(tokenizer)) => Some(decode(tokenizer, &answer.ids)?),
            (None, None) => None,
        };
        let line = json!({
            "text": text,
            "finish": finish(answer.finish),
            "prompt_tokens": prompt.len(),
            "tokens": answer.ids.len(),
            "seed": sampling.seed,
            "timings": timings(&answer.timing, load.time()),
        });
        print(&format!("{line}\n"))?;
        load.note();
        note_timing(&answer.timing);
        Ok(answer)
    }

    fn token(&mut self, step: &Step<'_>) -> Result<Value> {
        let text = self.stream.as_mut().map(|stream| stream.push(step.id)).transpose()?;
        let mut line = json!({ "id": step.id, "text": text });
        if let Some(count) = self.logprobs {
            let logprobs = Logprobs::new(step.logits);
            line["logprob"] = json!(logprobs.of(step.id));
            let top = logprobs.top(count).into_iter().map(|id| {
                let text = self.tokenizer.filter(|tokenizer| tokenizer.is_token(id));
                let text = text.map(|tokenizer| tokenizer.decode(&[id], true)).transpose()?;
                Ok(json!({ "id": id, "text": text, "logprob": logprobs.of(id) }))
            });
            line["top_logprobs"] = Value::Array(top.collect::<Result<_>>()?);
        }
        Ok(line)
    }
}

/// The text of an answer, without control tokens; ids that are no tokens have none.
fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let ids: Vec<u32> = ids.iter().copied().filter(|id| tokenizer.is_token(*id)).collect();
    tokenizer.decode(&ids, false)
}

fn finish(finish: Finish) -> &'static str {
    match finish {
        Finish::StopId => "stop_id",
        Finish::Receiver => "stop_text",
        Finish::MaxTokens => "max_tokens",
        Finish::Context => "context",
        Finish::Interrupted => "interrupted",
    }
}

/// In seconds.
fn timings(timing: &Timing, load: Duration) -> Value {
    json!({
        "load": load.as_secs_f64(),
        "prefill_tokens": timing.prefill_tokens,
        "prefill": timing.prefill.as_secs_f64(),
        "first_token": timing.first_token.as_secs_f64(),
        "decode_tokens": timing.decode_tokens,
        "decode": timing.decode.as_secs_f64(),
    })
}

/// log softmax(logits)
struct Logprobs<'l> {
    /// `[V]`
    logits: &'l [f32],
    /// log sum exp(logits)
    normaliser: f64,
}

impl<'l> Logprobs<'l> {
    fn new(logits: &'l [f32]) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
        Self { logits, normaliser: max + sum.ln() }
    }

    fn of(&self, id: u32) -> f64 {
        f64::from(self.logits[id as usize]) - self.normaliser
    }

    /// The `count` most probable ids, the most probable one first; the lower one of equals.
    fn top(&self, count: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| {
            let logit = |id: &u32| self.logits[*id as usize];
            logit(b).total_cmp(&logit(a)).then(a.cmp(b))
        };
        if count < ids.len() {
            ids.select_nth_unstable_by(count, order);
            ids.truncate(count);
        }
        ids.sort_unstable_by(order);
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_are_first_and_probabilities_sum_to_one() {
        let logits = [1.0, 3.0, -2.0, 3.0, 0.0];
        let logprobs = Logprobs::new(&logits);
        assert_eq!(logprobs.top(3), [1, 3, 0]);
        assert_eq!(logprobs.top(9), [1, 3, 0, 4, 2]);
        assert!(logprobs.top(0).is_empty());
        let sum: f64 = (0..5).map(|id| logprobs.of(id).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}
