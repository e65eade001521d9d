//! `chaski qualify`, and what is done of it before a model runs on a GPU.

mod dialogue;
mod worker;

use std::time::Duration;

use serde_json::json;

use super::args::{ModelArgs, QualifyArgs};
use super::output::{note, print};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::device::Hardware;
use crate::device::cuda::{self, Card, Options};
use crate::error::{Error, Result};
use crate::qualify::{self, Check, Found, Identity, Record, Standing, Verdict, kernel_of};
use crate::source::Source;
use dialogue::Dialogue;

/// Finds out anew what a GPU computes, and prints it.
///
/// # Errors
/// When a kernel is wrong that nothing stands in for.
pub fn run(args: &QualifyArgs) -> Result<()> {
    if args.worker {
        return worker::work(args.device);
    }
    let card = Card::open(args.device)?;
    let options = Options::wanted()?.on(card.capability);
    let checks = match &args.model {
        None => qualify::all(&card, options),
        Some(model) => of_model(&card, options, model)?,
    };
    let mut record = Record::load(Identity::of(&card)?);
    let how = Doing { anew: true, thorough: args.thorough, limit: limit(args.time_limit) };
    let standing = find_out(&card, options, &checks, &mut record, how)?;
    match args.json {
        true => {
            let Standing { options, tuned, lines, faults } = &standing;
            let found = json!({
                "identity": record.identity,
                "date": record.date,
                "verdicts": record.verdicts,
                "graphs": options.graphs,
                "programmatic": options.programmatic,
                "tuning": tuned,
                "not_used": lines,
                "wrong": faults.iter().map(|(kernel, _)| kernel.name).collect::<Vec<_>>(),
                "file": record.path().ok(),
            });
            print(&format!("{found:#}\n"))?;
        }
        false => print(&table(&record, &standing))?,
    }
    usable(&card, &standing, &record)
}

/// The checks for a model of this name that is not split.
fn of_model(card: &Card, options: Options, name: &str) -> Result<Vec<Check>> {
    let source = Source::find(name)?;
    let config = Config::load(&source)?;
    let (dims, checkpoint) = (Dims::new(&config, 1)?, Checkpoint::open(&source)?);
    card.suits(&dims, &checkpoint)?;
    qualify::of_model(card, options, &config, &dims, &checkpoint)
}

fn table(record: &Record, standing: &Standing) -> String {
    let Identity { gpu, driver, .. } = &record.identity;
    let line = |Verdict { check, found, .. }: &Verdict| {
        let Found { cases, seconds, wrong, tuned } = found;
        let verdict = match (wrong, tuned) {
            (Some(wrong), _) => format!("WRONG\n    {wrong}"),
            (None, Some(tuned)) => tuned.to_string(),
            (None, None) => "right".to_owned(),
        };
        format!("{:<40} {cases:>4} cases {seconds:>7.2} s  {verdict}\n", check.to_string())
    };
    let lines: String = record.verdicts.iter().map(line).collect();
    let not_used: String = standing.lines.iter().map(|line| format!("{line}\n")).collect();
    format!("{gpu}, driver {driver}\n{lines}{not_used}{}\n", kept(record))
}

/// How checks are gone about.
#[derive(Clone, Copy)]
struct Doing {
    anew: bool,
    thorough: bool,
    /// For a case.
    limit: Duration,
}

fn limit(given: Option<f64>) -> Duration {
    let usual = if cuda::emulated().is_some() { 120.0 } else { 10.0 };
    Duration::from_secs_f64(given.unwrap_or(usual))
}

/// What is kept of the checks or else found out, and kept.
fn find_out(
    card: &Card,
    options: Options,
    checks: &[Check],
    record: &mut Record,
    Doing { anew, thorough, limit }: Doing,
) -> Result<Standing> {
    let mut dialogue = None;
    let mut is_new = false;
    let found = qualify::go_through(
        card,
        options,
        checks,
        record,
        (anew, thorough),
        &mut |order| {
            if !is_new {
                note(format_args!(
                    "qualifying   cuda:{} ({}), once for its driver and this version: do its kernels \
                     compute what they should?",
                    card.ordinal, card.name
                ));
                is_new = true;
            }
            Dialogue::perform(&mut dialogue, card.ordinal, order, limit)
        },
    );
    if is_new && !record.verdicts.is_empty() {
        // What cannot be kept is found out again.
        record.save().unwrap_or_else(|error| note(format_args!("qualifying   {error}")));
    }
    found
}

/// That nothing is wrong that the GPU needs.
fn usable(card: &Card, standing: &Standing, record: &Record) -> Result<()> {
    let Some((kernel, wrong)) = standing.faults.first() else { return Ok(()) };
    Err(Error::failed(format!(
        "kernel {} is wrong on cuda:{} ({}), and has no fallback: {}: {}; the verdicts are {}, for an issue; \
         --device cpu does without, --trust-kernels runs it all the same",
        kernel.name,
        card.ordinal,
        card.name,
        wrong.case,
        wrong.how.trim_end().replace('\n', " "),
        kept(record)
    )))
}

/// Where the verdicts are.
fn kept(record: &Record) -> String {
    match record.path() {
        Ok(path) => format!("kept in {}", path.display()),
        Err(error) => format!("not kept: {error}"),
    }
}

/// Whether kernels are taken as they are, as the user says.
fn trusts(args: &ModelArgs) -> bool {
    args.trust_kernels || std::env::var("CHASKI_TRUST_KERNELS").is_ok_and(|given| given == "on")
}

/// Sees to it that each GPU is given what is right on it, for a rank of this model. Returns what rows of
/// measurements say of that.
///
/// # Errors
/// When a kernel of the model's is wrong that nothing stands in for.
pub fn qualify(
    args: &ModelArgs,
    (config, dims, checkpoint): (&Config, &Dims, &Checkpoint),
    hardware: &mut [Hardware],
) -> Result<Option<String>> {
    let cards = hardware.iter_mut().filter_map(|hardware| match hardware {
        Hardware::Cpu => None,
        Hardware::Gpu(card) => Some(card),
    });
    let mut qualified = None;
    for card in cards {
        if trusts(args) {
            qualified = Some("trusted".to_owned());
            continue;
        }
        let options = Options::wanted()?.on(card.capability);
        let mut checks = qualify::of_model(card, options, config, dims, checkpoint)?;
        checks.retain(|check| !is_replaced(check, args));
        let mut record = Record::load(Identity::of(card)?);
        let how = Doing { anew: false, thorough: false, limit: args.split.timeout() };
        match find_out(card, options, &checks, &mut record, how) {
            Ok(standing) => {
                usable(card, &standing, &record)?;
                for line in &standing.lines {
                    note(format_args!("cuda:{:<8}{line}", card.ordinal));
                }
                card.options = standing.options;
                let is_whole = standing.lines.is_empty();
                let how = if is_whole { "yes".to_owned() } else { standing.lines.join("; ") };
                qualified.get_or_insert(how);
            }
            Err(error) => {
                note(format_args!("cuda:{:<8}not qualified: {error}", card.ordinal));
                qualified.get_or_insert("no".to_owned());
            }
        }
    }
    Ok(qualified)
}

/// What the user has put in the place of a kernel is for the user to judge.
fn is_replaced(check: &Check, args: &ModelArgs) -> bool {
    let Check::Kernel(export) = check else { return false };
    let kernel = kernel_of(export);
    kernel.is_some_and(|kernel| args.kernel.iter().any(|file| file.name == kernel.name))
}

/// What is known of a GPU, for people.
///
/// # Errors
/// When the driver does not answer.
pub fn state(card: &Card) -> Result<String> {
    let record = Record::load(Identity::of(card)?);
    let is_wrong = |verdict: &&Verdict| verdict.found.wrong.is_some();
    let wrong: Vec<_> = record.verdicts.iter().filter(is_wrong).collect();
    let tuned = |Verdict { check, found, .. }: &Verdict| {
        found.tuned.as_ref().map(|tuned| format!("; {check}: {tuned}"))
    };
    let tuned: String = record.verdicts.iter().filter_map(tuned).collect();
    let checks = match (record.verdicts.len(), &wrong[..]) {
        (0, _) => {
            "not qualified yet: its kernels are checked when a model first runs on it".to_owned()
        }
        (all, []) => format!("qualified: {all} checks passed, the last at {}", record.date),
        (all, wrong) => {
            let wrong: Vec<_> = wrong.iter().map(|verdict| verdict.check.to_string()).collect();
            format!("qualified except for {} of {all} checks: {}", wrong.len(), wrong.join(", "))
        }
    };
    Ok(checks + &tuned)
}
