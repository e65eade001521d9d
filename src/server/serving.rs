//! The model that is served, and what requests have in common that ask it something.

use std::sync::Arc;
use std::time::Instant;

use super::body::RequestBody;
use super::refusal::Refusal;
use super::task::{Task, TaskAnswers, TaskQueue};
use super::tools::CALL_TAG;
use crate::chat::Chat;
use crate::config::SamplingDefaults;
use crate::engine::Model;
use crate::error::Error;
use crate::random::random_seed;
use crate::sampler::{SamplingChoice, SamplingOptions};
use crate::session::{Stops, check_prompt};
use crate::tokenizer::Tokenizer;
use axum::http::StatusCode;
use serde_json::Value;

type Result<T> = std::result::Result<T, Refusal>;

/// Texts that end an answer, at most; OpenAI takes 4.
const MOST_STOPS: usize = 16;
/// Of the most probable tokens, at most.
const MOST_LOGPROBS: usize = 20;
/// Answers to one prompt, at most.
const MOST_ANSWERS: usize = 16;

/// A model in memory, as HTTP sees it.
pub struct Serving {
    pub model: Arc<Model>,
    /// How its conversations are written, or why they are not.
    pub chat: std::result::Result<Chat, Error>,
    /// What clients call it.
    pub name: String,
    /// S: tokens of a text, at most.
    pub context: usize,
    pub queue: TaskQueue,
}

/// What a request says of how it is to be answered, whatever it asks.
pub struct Manner {
    pub sampling: SamplingOptions,
    pub stops: Stops,
    pub max_tokens: usize,
    pub logprobs: Option<usize>,
    /// Whether an answer begins with its prompt.
    pub echo: bool,
    /// The names of the tools that the model may call.
    pub tools: Vec<String>,
    /// Answers to each prompt.
    pub answers: usize,
    pub stream: bool,
    pub include_usage: bool,
}

impl Serving {
    /// # Panics
    /// Where the model has none: it is not served then.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer().expect("it was asked for before the model was served")
    }

    pub fn chat(&self) -> Result<&Chat> {
        self.chat.as_ref().map_err(|error| Refusal::invalid(error.to_string()))
    }

    /// # Errors
    /// 404 for a model that is not this one.
    pub fn check_model(&self, body: &RequestBody) -> Result<()> {
        match body.text("model")? {
            None => Ok(()),
            Some(name) if name == self.name => Ok(()),
            Some(name) => {
                let message = format!("there is no model {name:?} here: this is {:?}", self.name);
                Err(Refusal::new(StatusCode::NOT_FOUND, message).with_code("model_not_found"))
            }
        }
    }

    /// How to answer. `models`: what the model's makers say of sampling; `max_tokens`: what holds where the
    /// request is silent; `logprobs`: so many are asked for.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn manner(
        &self,
        body: &RequestBody,
        models: &SamplingDefaults,
        max_tokens: Option<usize>,
        logprobs: Option<usize>,
    ) -> Result<Manner> {
        let config = &self.model.config;
        let choice = SamplingChoice {
            temperature: body.number("temperature")?,
            top_k: body.count("top_k")?,
            top_p: body.number("top_p")?,
            min_p: body.number("min_p")?,
            repeat_penalty: body.number("repeat_penalty")?.or(body.number("repetition_penalty")?),
            presence_penalty: body.number("presence_penalty")?,
            frequency_penalty: body.number("frequency_penalty")?,
            logit_bias: body
                .read("logit_bias", "an object of token ids and numbers", biases)?
                .unwrap_or_default(),
            seed: seed(body)?,
        };
        let mut stops = Stops::default();
        if !body.flag("ignore_eos")? {
            let of_chat = self.chat.as_ref().map(Chat::stop_ids).unwrap_or_default();
            (stops, _) = Stops::usual(&config.stop_ids, Some(self.tokenizer()), of_chat);
        }
        stops.ids.extend(body.ids("stop_token_ids")?);
        for text in body.texts("stop", MOST_STOPS)? {
            stops.add_text(&text, self.tokenizer())?;
        }
        let given = match body.count("max_completion_tokens")? {
            None => body.count("max_tokens")?,
            given => given,
        };
        if logprobs.is_some_and(|count| count > MOST_LOGPROBS) {
            let what = format!("of at most {MOST_LOGPROBS} tokens can be told");
            return Err(Refusal::field("logprobs", what));
        }
        let options = body.read("stream_options", "an object", Value::as_object)?;
        Ok(Manner {
            sampling: choice.options(models, config.vocab)?,
            stops,
            max_tokens: given.or(max_tokens).unwrap_or(usize::MAX),
            logprobs,
            echo: false,
            tools: Vec::new(),
            answers: body.within("n", 1..=MOST_ANSWERS)?.unwrap_or(1),
            stream: body.flag("stream")?,
            include_usage: options
                .is_some_and(|options| options.get("include_usage") == Some(&Value::Bool(true))),
        })
    }

    /// # Errors
    /// 400 for a prompt that is empty, too long, or has what is no token.
    pub fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        if prompt.len() > self.context {
            let message = format!(
                "this model's context holds {} tokens, and the prompt has {}",
                self.context,
                prompt.len()
            );
            return Err(Refusal::invalid(message).with_code("context_length_exceeded"));
        }
        check_prompt(prompt, self.context, self.model.config.vocab)?;
        Ok(())
    }

    /// Has `prompts` be continued, each as often as is asked for: the answers to the first come first.
    ///
    /// # Errors
    /// Where there is no room for them.
    pub fn ask(
        &self,
        endpoint: &'static str,
        arrived: Instant,
        prompts: &[Vec<u32>],
        manner: &Manner,
        answer: &TaskAnswers,
    ) -> Result<()> {
        let times = (0..manner.answers as u64).collect::<Vec<_>>();
        let asked = prompts.iter().flat_map(|prompt| times.iter().map(move |time| (prompt, time)));
        let call_tag = if manner.tools.is_empty() { None } else { self.tokenizer().id(CALL_TAG) };
        let task = |(index, (prompt, time)): (usize, (&Vec<u32>, &u64))| {
            let mut sampling = manner.sampling.clone();
            // Each of several answers is drawn by itself.
            sampling.seed = sampling.seed.wrapping_add(*time);
            Task {
                prompt: prompt.clone(),
                sampling,
                stop_ids: manner.stops.ids.clone(),
                stop_texts: manner.stops.texts.clone(),
                max_tokens: manner.max_tokens,
                logprobs: manner.logprobs,
                scores_prompt: manner.echo,
                call_tag,
                index,
                answer: answer.clone(),
                arrived,
                endpoint,
            }
        };
        self.queue.push(asked.enumerate().map(task).collect())
    }
}

/// The seed, of which those below 0 stand for a random one, as llama.cpp has it.
fn seed(body: &RequestBody) -> Result<u64> {
    let seed = |value: &Value| value.as_u64().map(Some).or_else(|| value.as_i64().map(|_| None));
    let given = body.read("seed", "a whole number", seed)?;
    Ok(given.flatten().unwrap_or_else(random_seed))
}

/// OpenAI's object of ids, as texts, and what is added to their logits.
fn biases(value: &Value) -> Option<Vec<(u32, f32)>> {
    let bias = |(id, bias): (&String, &Value)| Some((id.parse().ok()?, bias.as_f64()? as f32));
    value.as_object()?.iter().map(bias).collect()
}
