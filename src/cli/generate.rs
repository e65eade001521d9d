//! `chaski generate`

use super::args::GenerateArgs;
use super::load::{Loaded, load};
use super::model::{interrupt, needed, prompt_ids, sampling, stop_ids};
use super::output::{Printer, note, note_timing, print};
use crate::error::{Error, Result};
use crate::session::{Finish, Limits, Next, Session};

pub fn run(args: &GenerateArgs) -> Result<()> {
    let Loaded { config, team, tokenizer, load, .. } = load(&args.model, false, None)?;
    let prompt = prompt_ids(&args.prompt, &tokenizer, config.vocab)?;
    let sampling = sampling(&args.sampling, &config)?;
    sampling.validate(config.vocab)?;
    let stop_ids = stop_ids(&args.stop, &config, &[]);
    let limits = Limits {
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stop_ids: &stop_ids,
        interrupt: interrupt()?,
    };
    let mut printer = match args.print_ids && args.stop.stop.is_empty() {
        true => None,
        false => {
            let hint = |error| Error::failed(format!("{error}; --print-ids works without"));
            let tokenizer = needed(&tokenizer).map_err(hint)?;
            Some(Printer::new(tokenizer, &args.stop.stop, !args.print_ids))
        }
    };
    let mut session = Session::new(team);
    let mut first = true;
    let answer = session.generate(&prompt, &sampling, limits, |id| {
        if args.print_ids {
            print_id(id, &mut first)?;
        }
        printer.as_mut().map_or(Ok(Next::Continue), |printer| printer.push(id))
    })?;
    if let Some(printer) = &mut printer {
        printer.finish()?;
    }
    if args.print_ids {
        if answer.finish == Finish::StopId {
            print_id(answer.ids[answer.ids.len() - 1], &mut first)?;
        }
        print("\n")?;
    }
    load.note();
    note_timing(&answer.timing);
    match answer.finish {
        Finish::Interrupted => Err(Error::Interrupted),
        Finish::Context => {
            note(format_args!("the context of {} tokens is full", session.context()));
            Ok(())
        }
        Finish::StopId | Finish::Receiver | Finish::MaxTokens => Ok(()),
    }
}

fn print_id(id: u32, first: &mut bool) -> Result<()> {
    let comma = if std::mem::take(first) { "" } else { "," };
    print(&format!("{comma}{id}"))
}
