//! `chaski diff`

use std::cell::OnceCell;

use super::args::DiffArgs;
use super::open::{check_alone, check_gpu, options, source};
use super::output::{note, print};
use super::text::Prompt;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::engine::{Device, Options, one, plan, weights};
use crate::error::{Error, Result};
use crate::executor::Hardware;
use crate::lab::{Difference, Pair};
use crate::tokenizer::Tokenizer;

/// Prints how far two executors are apart after every op.
///
/// # Errors
/// When they part; and whatever keeps them from running.
pub fn run(args: &DiffArgs) -> Result<()> {
    check_alone(&args.model, "diff")?;
    if args.model.device != Device::Auto || !args.model.split.devices.is_empty() {
        return Err(Error::usage("diff compares what --a and --b name: leave --device out"));
    }
    if [args.a, args.b].iter().any(|side| matches!(side, Device::Cuda(_))) {
        check_gpu()?;
    }
    let prompt = Prompt::read(&args.prompt)?;
    let source = source(&args.model)?;
    let config = Config::load(&source)?;
    let dims = Dims::new(&config, 1)?;
    let tokenizer = OnceCell::new();
    let load = || tokenizer.get_or_init(|| Tokenizer::load(&source)).as_ref().map_err(Clone::clone);
    let ids = prompt.ids(load, config.vocab)?;
    if ids.iter().any(|id| *id as usize >= config.vocab) || ids.is_empty() {
        let vocab = config.vocab;
        return Err(Error::failed(format!("the prompt needs at least one id, all below {vocab}")));
    }
    let context = Some(ids.len().max(args.model.context.unwrap_or(0)));
    let options = Options { context, ..options(&args.model)? };
    let (checkpoint, mut remarks) = weights(&source, &config, options.quantise)?;
    let mut side = |device, kernels| -> Result<(Hardware, Checkpoint)> {
        let on = Options { kernels, ..options.clone() };
        Ok((one(&on, device, &dims, &checkpoint, &mut remarks)?, checkpoint.clone()))
    };
    let sides = [side(args.a, Vec::new())?, side(args.b, options.kernels.clone())?];
    remarks.iter().for_each(note);
    // A GPU can do with less: the CPU does as it does.
    let leading = sides.iter().find(|(hardware, _)| matches!(hardware, Hardware::Gpu(_)));
    let (hardware, checkpoint) = leading.unwrap_or(&sides[0]);
    let plan = plan(&options, std::slice::from_ref(hardware), &config, &dims, checkpoint)?;
    let mut pair = Pair::new(&config, &plan, sides)?;
    let mut first = None;
    if !args.json {
        print("step     layer  op               result       alone     so far\n")?;
    }
    pair.run(&ids, &mut |difference| {
        let line = match args.json {
            true => serde_json::to_string(&difference).map_err(|e| Error::failed(e.to_string()))?,
            false => line(&difference),
        };
        print(&(line + "\n"))?;
        if first.is_none() && !difference.is_alike() {
            first = Some(difference);
        }
        Ok(())
    })?;
    match first {
        None => Ok(()),
        Some(Difference { step, layer, op, slot, alone, tolerance, .. }) => {
            let layer = layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
            Err(Error::failed(format!(
                "they diverge in {op}{layer} in {step}: {slot} is off by {alone:.1e}, where \
                 rounding explains {tolerance:.0e}"
            )))
        }
    }
}

fn line(difference: &Difference) -> String {
    let Difference { step, layer, op, slot, alone, so_far, .. } = difference;
    let layer = layer.map_or(String::new(), |layer| layer.to_string());
    let mark = if difference.is_alike() { "" } else { "  <-" };
    format!("{step:<8} {layer:>5}  {op:<16} {slot:<12} {alone:<9.1e} {so_far:.1e}{mark}")
}
