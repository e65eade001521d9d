//! A conversation at the terminal, each answer as its tokens come:
//! `cargo run --release --example chat [MODEL]`

use std::io::{BufRead, Write, stdin, stdout};

use chaski::chat::ChatStyle;
use chaski::engine::{Model, Options, silent};
use chaski::error::{Error, Result};
use chaski::sampler::SamplingOptions;
use chaski::session::{AnswerText, Conversation, StopCriteria};

fn main() -> Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "demo".to_owned());
    let variable = |name: &str| std::env::var_os(name);
    let model = Model::open(&name, Options::from_variables(&variable)?)?;
    let mut session = model.load(&silent())?.session();
    let (tokenizer, chat) = (model.tokenizer()?, model.chat(ChatStyle::Auto)?);
    let mut conversation = Conversation::new(tokenizer, &chat);
    for line in stdin().lock().lines() {
        conversation.ask(line.map_err(|error| Error::failed(error.to_string()))?);
        let prompt = conversation.prompt()?;
        let stop = StopCriteria { stop_ids: chat.stop_ids(), ..StopCriteria::default() };
        let (mut text, mut whole) = (AnswerText::new(tokenizer, &[], false), String::new());
        let mut say = |more: &str| {
            whole.push_str(more);
            print!("{more}");
            stdout().flush().map_err(|error| Error::failed(error.to_string()))
        };
        let answer = session.generate(&prompt, &SamplingOptions::default(), stop, |id| {
            let (more, next) = text.push(id)?;
            say(&more)?;
            Ok(next)
        })?;
        say(&text.finish()?)?;
        println!();
        conversation.answered(&prompt, &answer, &whole);
    }
    Ok(())
}
