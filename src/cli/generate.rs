//! `chaski generate`

use super::args::GenerateArgs;
use super::lines::Lines;
use super::load::{Loaded, load};
use super::model::{interrupt, needed, prompt_ids};
use super::output::{Printer, note, note_timing, print};
use super::sampling::{sampling, stops};
use crate::error::{Error, Result};
use crate::session::{Finish, Limits, Next, Session};

pub fn run(args: &GenerateArgs) -> Result<()> {
    let Loaded { config, team, tokenizer, load, .. } = load(&args.model, false, None)?;
    let prompt = prompt_ids(&args.prompt, &tokenizer, config.vocab)?;
    let sampling = sampling(&args.sampling, &config);
    sampling.validate(config.vocab)?;
    let stops = stops(&args.stop, &config, &tokenizer, &[])?;
    let limits = Limits {
        max_tokens: args.stop.max_tokens.unwrap_or(usize::MAX),
        stop_ids: &stops.ids,
        interrupt: interrupt()?,
    };
    let prints_text = !args.print_ids && !args.json;
    let mut printer = match prints_text || !stops.texts.is_empty() {
        false => None,
        true => {
            let hint = |error| Error::failed(format!("{error}; --print-ids works without"));
            let tokenizer = needed(&tokenizer).map_err(hint)?;
            Some(Printer::new(tokenizer, &stops.texts, prints_text, args.show_special))
        }
    };
    let mut session = Session::new(team);
    if args.json {
        let lines = Lines::new(tokenizer.as_ref().ok(), args.logprobs);
        let answer =
            lines.generate(&mut session, &prompt, &sampling, limits, printer.as_mut(), &load)?;
        return finished(&session, answer.finish);
    }
    let mut first = true;
    let answer = session.generate(&prompt, &sampling, limits, |id| {
        if args.print_ids {
            print_id(id, &mut first)?;
        }
        printer.as_mut().map_or(Ok(Next::Continue), |printer| printer.push(id))
    })?;
    let stop_id = answer.ids.last().filter(|_| answer.finish == Finish::StopId);
    if let Some(printer) = &mut printer {
        stop_id.map_or(Ok(()), |id| printer.push_stop(*id))?;
        printer.finish()?;
    }
    if args.print_ids {
        stop_id.map_or(Ok(()), |id| print_id(*id, &mut first))?;
        print("\n")?;
    }
    load.note();
    note_timing(&answer.timing);
    finished(&session, answer.finish)
}

fn finished(session: &Session, finish: Finish) -> Result<()> {
    match finish {
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
