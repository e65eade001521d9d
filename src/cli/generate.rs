//! `chaski generate`

use super::args::GenerateArgs;
use super::interrupt::interrupt;
use super::lines::Lines;
use super::observer::note_load;
use super::open::{load, options};
use super::output::{Printer, note, note_timing, print};
use super::sampling::{sampling, stops};
use super::text::prompt_ids;
use crate::engine::Options;
use crate::error::{Error, Result};
use crate::session::{FinishReason, Next, Session, StopCriteria};

pub fn run(args: &GenerateArgs) -> Result<()> {
    let gives_ids = args.prompt.prompt.is_none() && args.prompt.file.is_none();
    let text = !(gives_ids && args.print_ids && args.stop.stop.is_empty());
    let (model, engine) = load(&args.model, Options { text, ..options(&args.model)? })?;
    let (config, load_time) = (&model.config, engine.load_time.clone());
    let prompt = prompt_ids(&args.prompt, || model.tokenizer(), config.vocab)?;
    let sampling = sampling(&args.sampling, config);
    sampling.validate(config.vocab)?;
    let tokenizer = text.then(|| model.tokenizer());
    let tokenizer = tokenizer.as_ref().and_then(|tokenizer| tokenizer.as_ref().ok().copied());
    let stops = stops(&args.stop, config, tokenizer, &[])?;
    let criteria = StopCriteria {
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stop_ids: &stops.ids,
        interrupt: interrupt()?,
    };
    let prints_text = !args.print_ids && !args.json;
    let mut printer = match prints_text || !stops.texts.is_empty() {
        false => None,
        true => {
            let hint = |error| Error::failed(format!("{error}; --print-ids works without"));
            let tokenizer = model.tokenizer().map_err(hint)?;
            Some(Printer::new(tokenizer, &stops.texts, prints_text, args.show_special))
        }
    };
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
