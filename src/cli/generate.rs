//! `chaski generate`

use super::args::GenerateArgs;
use super::interrupt::interrupt;
use super::lines::Lines;
use super::observer::note_load;
use super::open::{load, options};
use super::output::{Printer, note, note_timing, print};
use super::sampling::{sampling, stops};
use super::text::Prompt;
use crate::engine::{Model, Options};
use crate::error::{Error, Result};
use crate::session::{FinishReason, Next, Session, StopCriteria, check_prompt};
use crate::tokenizer::Tokenizer;

pub fn run(args: &GenerateArgs) -> Result<()> {
    let gives_ids = args.prompt.prompt.is_none() && args.prompt.file.is_none();
    let text = !(gives_ids && args.print_ids && args.stop.stop.is_empty());
    let prints_text = !args.print_ids && !args.json;
    let options = Options { text, ..options(&args.model)? };
    let read = || Prompt::read(&args.prompt);
    let check = |model: &Model, prompt: Prompt| {
        let config = &model.config;
        let prompt = prompt.ids(|| model.tokenizer(), config.vocab)?;
        check_prompt(&prompt, model.plan()?.sizes.context, config.vocab)?;
        let sampling = sampling(&args.sampling, config)?;
        let stops = stops(&args.stop, config, tokenizer(model, text), &[])?;
        if prints_text || !stops.texts.is_empty() {
            let hint = |error| Error::failed(format!("{error}; --print-ids works without"));
            model.tokenizer().map_err(hint)?;
        }
        Ok((prompt, sampling, stops))
    };
    let (model, engine, (prompt, sampling, stops)) = load(&args.model, options, read, check)?;
    let (load_time, tokenizer) = (engine.load_time.clone(), tokenizer(&model, text));
    let criteria = StopCriteria {
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stop_ids: &stops.ids,
        interrupt: interrupt()?,
    };
    let read = tokenizer.filter(|_| prints_text || !stops.texts.is_empty());
    let mut printer =
        read.map(|tokenizer| Printer::new(tokenizer, &stops.texts, prints_text, args.show_special));
    let mut session = engine.session();
    if args.json {
        let lines = Lines::new(tokenizer, args.logprobs);
        let answer = lines.generate(
            &mut session,
            &prompt,
            &sampling,
            criteria,
            printer.as_mut(),
            &load_time,
        )?;
        return finished(&session, answer.finish);
    }
    let mut first = true;
    let answer = session.generate(&prompt, &sampling, criteria, |id| {
        if args.print_ids {
            print_id(id, &mut first)?;
        }
        printer.as_mut().map_or(Ok(Next::Continue), |printer| printer.push(id))
    })?;
    let stop_id = answer.ids.last().filter(|_| answer.finish == FinishReason::StopId);
    if let Some(printer) = &mut printer {
        stop_id.map_or(Ok(()), |id| printer.push_stop(*id))?;
        printer.finish()?;
    }
    if args.print_ids {
        stop_id.map_or(Ok(()), |id| print_id(*id, &mut first))?;
        print("\n")?;
    }
    note_load(&load_time);
    note_timing(&answer.timing);
    finished(&session, answer.finish)
}

/// The model's tokenizer, where there is one that is needed.
fn tokenizer(model: &Model, is_needed: bool) -> Option<&Tokenizer> {
    is_needed.then(|| model.tokenizer().ok()).flatten()
}

fn finished(session: &Session, finish: FinishReason) -> Result<()> {
    match finish {
        FinishReason::Interrupted => Err(Error::Interrupted),
        FinishReason::Context => {
            note(format_args!("the context of {} tokens is full", session.context()));
            Ok(())
        }
        FinishReason::StopId | FinishReason::StopString | FinishReason::Length => Ok(()),
    }
}

fn print_id(id: u32, first: &mut bool) -> Result<()> {
    let comma = if std::mem::take(first) { "" } else { "," };
    print(&format!("{comma}{id}"))
}
