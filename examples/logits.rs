//! The most probable tokens after a text: `cargo run --release --example logits -- "27 + 58 = " [MODEL]`

use chaski::engine::{Model, Options, silent};
use chaski::error::Result;
use chaski::model::Logits;

/// How many are listed.
const LISTED: usize = 5;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let text = arguments.next().unwrap_or_else(|| "27 + 58 = ".to_owned());
    let name = arguments.next().unwrap_or_else(|| "demo".to_owned());
    let variable = |name: &str| std::env::var_os(name);
    let model = Model::open(&name, Options::from_variables(&variable)?)?;
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.surround(tokenizer.encode(&text)?);
    let mut team = model.load(&silent())?.team;
    // `[V]`: of the last position.
    let mut logits = Vec::new();
    for step in prompt.chunks(team.chunk()) {
        logits = team.prefill(step, Logits::Last)?.to_vec();
    }
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    for id in &ids[..LISTED.min(ids.len())] {
        println!("{:8.3}  {:?}", logits[*id], tokenizer.decode(&[*id as u32], true)?);
    }
    Ok(())
}
