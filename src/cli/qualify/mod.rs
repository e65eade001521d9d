//! `chaski qualify`, and what is done of it before a model runs on a GPU.

mod worker;

use std::time::Duration;

use serde_json::json;

use super::args::QualifyArgs;
use super::observer::observer;
use super::open::{check_gpu, checker, defaults};
use super::output::print;
use super::pull::cached;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::engine::{How, find_out, kept, usable};
use crate::error::{Result, count};
use crate::executor::cuda::{self, Gpu, LaunchOptions};
use crate::qualify::{self, Check, Found, Identity, PeerVerdict, Record, Standing, Verdict};

/// Finds out anew what a GPU computes, and prints it.
///
/// # Errors
/// When a kernel is wrong that nothing stands in for.
pub fn run(args: &QualifyArgs) -> Result<()> {
    if args.worker {
        return worker::work(args.device);
    }
    check_gpu()?;
    let gpu = Gpu::open_as(args.device, &defaults()?.cuda)?;
    let options = gpu.settings.wanted().on(gpu.capability);
    let checks = match &args.model {
        None => qualify::all(&gpu, options),
        Some(model) => of_model(&gpu, options, model)?,
    };
    let mut record = Record::load(Identity::of(&gpu)?, &gpu.settings.paths);
    record.peers.clear(); // ranks try it again
    let is_emulated = cuda::emulated().is_some();
    let limit = case_limit(args, is_emulated);
    // An emulated GPU minds the processor's time, and says where a kernel stands; what does not even do
    // that is ended.
    let (checker, limit) = match is_emulated {
        true => (checker(Some(limit))?, 10 * limit),
        false => (checker(None)?, limit),
    };
    let how = How { anew: true, thorough: args.thorough, limit, checker: Some(&checker) };
    let standing = find_out(&gpu, options, &checks, &mut record, how, &observer())?;
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
                "peers": record.peers,
                "not_used": lines,
                "wrong": faults.iter().map(|(kernel, _)| kernel.name).collect::<Vec<_>>(),
                "file": record.path().ok(),
            });
            print(&format!("{found:#}\n"))?;
        }
        false => print(&table(&record, &standing))?,
    }
    usable(&gpu, &standing, &record)
}

/// The checks for a model of this name that is not split.
fn of_model(gpu: &Gpu, options: LaunchOptions, name: &str) -> Result<Vec<Check>> {
    let source = cached(name)?;
    let config = Config::load(&source)?;
    let (dims, checkpoint) = (Dims::new(&config, 1)?, Checkpoint::open(&source)?);
    gpu.suits(&dims, &checkpoint)?;
    qualify::of_model(gpu, options, &config, &dims, &checkpoint)
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
        let cases = count(*cases, "case");
        format!("{:<40} {cases:>10} {seconds:>7.2} s  {verdict}\n", check.to_string())
    };
    let lines: String = record.verdicts.iter().map(line).collect();
    let not_used: String = standing.lines.iter().map(|line| format!("{line}\n")).collect();
    format!("{gpu}, driver {driver}\n{lines}{not_used}{}\n", kept(record))
}

/// How long a kernel may take over a case: on an emulated GPU of the processor's time.
fn case_limit(args: &QualifyArgs, is_emulated: bool) -> Duration {
    let usual = match (is_emulated, args.thorough) {
        (false, _) => 10.0,
        (true, false) => 20.0,
        (true, true) => 120.0,
    };
    Duration::from_secs_f64(args.time_limit.unwrap_or(usual))
}

/// What is known of a GPU, for people.
///
/// # Errors
/// When the driver does not answer.
pub fn state(gpu: &Gpu) -> Result<String> {
    let record = Record::load(Identity::of(gpu)?, &gpu.settings.paths);
    let is_wrong = |verdict: &&Verdict| verdict.found.wrong.is_some();
    let wrong: Vec<_> = record.verdicts.iter().filter(is_wrong).collect();
    let tuned = |Verdict { check, found, .. }: &Verdict| {
        found.tuned.as_ref().map(|tuned| format!("; {check}: {tuned}"))
    };
    let tuned: String = record.verdicts.iter().filter_map(tuned).collect();
    let own = gpu.uuid()?;
    let broken = |verdict: &&PeerVerdict| !verdict.works && verdict.gpus.contains(&own);
    let broken = record.peers.iter().filter(broken).map(|PeerVerdict { gpus, .. }| {
        format!("; peer memory between {} GPUs, of which it is one, does not work", gpus.len())
    });
    let broken: String = broken.collect();
    let checks = match (record.verdicts.len(), &wrong[..]) {
        (0, _) => {
            "not qualified yet: its kernels are checked when a model first runs on it".to_owned()
        }
        (all, []) => {
            format!("qualified: {} passed, the last at {}", count(all, "check"), record.date)
        }
        (all, wrong) => {
            let wrong: Vec<_> = wrong.iter().map(|verdict| verdict.check.to_string()).collect();
            format!(
                "qualified except for {} of {}: {}",
                wrong.len(),
                count(all, "check"),
                wrong.join(", ")
            )
        }
    };
    Ok(checks + &tuned + &broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_has_twenty_seconds_on_an_emulated_gpu() {
        let limit = |is_emulated, thorough, time_limit| {
            let args = QualifyArgs {
                model: None,
                device: 0,
                thorough,
                json: false,
                time_limit,
                worker: false,
            };
            case_limit(&args, is_emulated).as_secs_f64()
        };
        assert_eq!(limit(true, false, None), 20.0);
        assert_eq!(limit(true, true, None), 120.0);
        assert_eq!(limit(false, true, None), 10.0);
        assert_eq!(limit(true, false, Some(0.5)), 0.5);
    }
}
