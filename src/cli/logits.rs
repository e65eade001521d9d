//! `chaski logits`

use super::args::LogitsArgs;
use super::file::Output;
use super::interrupt::interrupt;
use super::open::{load, not_interrupted, options};
use super::output::{note, progress};
use super::text::Prompt;
use crate::engine::{Engine, Model, Options};
use crate::error::Result;
use crate::model::Logits;
use crate::session::check_prompt;
use crate::team::Team;

/// Tokens of a step: the logits of all of them are kept, half a megabyte each for Llama 3.
const CHUNK: usize = 64;

pub fn run(args: &LogitsArgs) -> Result<()> {
    let prefill_chunk = Some(args.model.prefill_chunk.unwrap_or(CHUNK).min(CHUNK));
    let text = args.prompt.prompt.is_some() || args.prompt.file.is_some();
    let options = Options { prefill_chunk, scored: usize::MAX, text, ..options(&args.model)? };
    interrupt()?; // a file that has been begun goes with the run
    let check = |model: &Model, prompt: Prompt| {
        let vocab = model.config.vocab;
        let ids = prompt.ids(|| model.tokenizer(), vocab)?;
        check_prompt(&ids, model.plan()?.sizes.context, vocab)?;
        Ok((ids, Output::create(&args.out)?))
    };
    let read = || Prompt::read(&args.prompt);
    let (_, Engine { mut team, .. }, (ids, out)) = load(&args.model, options, read, check)?;
    write_logits(&mut team, &ids, out)?;
    note(format_args!("{}: logits f32 [{}, {}]", args.out.display(), ids.len(), team.vocab()));
    Ok(())
}

fn write_logits(team: &mut Team, ids: &[u32], mut out: Output) -> Result<()> {
    let bytes = ids.len() * team.vocab() * size_of::<f32>();
    out.write(&header(&[ids.len(), team.vocab()], bytes))?;
    let bar = progress(ids.len() as u64, "logits");
    team.expect(ids.len())?;
    for chunk in ids.chunks(team.chunk()) {
        not_interrupted()?;
        let logits = team.prefill(chunk, Logits::All)?;
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        out.write(&bytes)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    out.finish()
}

/// The beginning of a safetensors file that holds `logits` alone: the size of the JSON that follows,
/// which is padded so that the data is aligned.
fn header(shape: &[usize], bytes: usize) -> Vec<u8> {
    let json = serde_json::json!({
        "logits": { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] }
    });
    let mut json = json.to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().to_vec(), json].concat()
}
