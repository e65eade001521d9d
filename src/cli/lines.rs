//! What `generate --json` prints: a line for each token, and one at the end.

use std::time::Duration;

use serde_json::{Value, json};

use super::observer::note_load;
use super::output::{Printer, note_timing, print};
use crate::engine::LoadTime;
use crate::error::Result;
use crate::sampler::{Logprobs, SamplingOptions};
use crate::session::{Answer, FinishReason, Next, Session, Step, StopCriteria, Timing};
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
        criteria: StopCriteria<'_, '_>,
        mut stops: Option<&mut Printer<'_>>,
        load: &LoadTime,
    ) -> Result<Answer> {
        let wants_logits = self.logprobs.is_some();
        let mut generation = session.begin(prompt, sampling, criteria, wants_logits)?;
        while let Some(step) = generation.next(session)? {
            print(&format!("{}\n", self.token(&step)?))?;
            if let Some(stops) = stops.as_mut().filter(|_| !step.is_stop)
                && stops.push(step.id)? == Next::Stop
            {
                generation.stop();
            }
        }
        let answer = generation.answer();
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
            "timings": timings(&answer.timing, load.whole()),
        });
        print(&format!("{line}\n"))?;
        note_load(load);
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

fn finish(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::StopId => "stop_id",
        FinishReason::StopString => "stop_text",
        FinishReason::Length => "max_tokens",
        FinishReason::Context => "context",
        FinishReason::Interrupted => "interrupted",
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
