//! `chaski kernels bench all_reduce`: between GPUs, at sizes of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::check::passed;
use super::watch::time_limit;
use super::watchdog::Watchdog;
use crate::bench::{Row, Table, watched};
use crate::cli::args::KernelBenchArgs;
use crate::cli::open::{options, source as model_source};
use crate::cli::output::{note, print};
use crate::config::Config;
use crate::engine::Device;
use crate::error::{Error, Result};
use crate::executor::cuda::{Gpu, Nvml, Settings, device_count};
use crate::kernel::{Kernel, Replacement};
use crate::lab::{
    AllReduceTimes, SHARED_SUM_COLUMNS, SUM_BYTES, SUM_COLUMNS, shares_gpu, size_name, sum_rows,
    time_sums,
};
use crate::ops::Mailbox;

/// Of the kernel.
pub const NAME: &str = "all_reduce";

/// The kernel adds up over no more ranks; more than one are between GPUs.
const RANKS: [u32; 3] = [2, 4, 8];

/// Times sums over all ranks, and prints a row for each size and number of ranks.
///
/// # Errors
/// GPUs that are not there; a sum that is wrong; a rank that fails.
pub fn bench(
    args: &KernelBenchArgs,
    wanted: &[&Kernel],
    source: Option<&Replacement>,
    interrupt: &'static AtomicBool,
    emulated: Option<u32>,
) -> Result<()> {
    check(args, wanted)?;
    let places = places(args)?;
    let model = model_source(&args.model)?;
    let token_bytes = Config::load(&model)?.width * size_of::<f32>();
    let mut sizes: Vec<usize> = SUM_BYTES.into_iter().chain([token_bytes]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if let (Some(source), Some(ordinals)) = (source, places.first()) {
        passed(source, ordinals[0], emulated, args.time_limit)?;
    }
    let limit = time_limit(args.time_limit, emulated);
    let watchdog = Watchdog::new(limit, interrupt);
    let begins = || match interrupt.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted),
        false => {
            watchdog.watch(NAME);
            Ok(())
        }
    };
    let settings = options(&args.model)?.cuda;
    let mut table = None;
    let mut each = places.into_iter().map(|ordinals| {
        let gpus = gpus(&ordinals, source, &settings)?;
        let columns = if shares_gpu(&gpus) { SHARED_SUM_COLUMNS } else { SUM_COLUMNS };
        let table = table.get_or_insert_with(|| Table::new(args.output.into(), NAME, columns));
        let nvml = gpus[0].nvml();
        let subject = subject(&model.to_string(), &gpus[0], nvml.as_ref(), source);
        let timed = || time_sums(&gpus, &sizes, args.repetitions, limit, &begins);
        let ((sums, result), conditions) = watched(nvml.as_ref(), timed);
        watchdog.rest();
        for row in sum_rows(&sums, &gpus, token_bytes, &conditions, &subject) {
            print(&table.row(&row))?;
        }
        watchdog.ends_with(table.end());
        result?;
        conclude(&sums, gpus.len());
        Ok(())
    });
    // Whatever ends it, what was measured is a whole table.
    let result = each.try_for_each(|result| result);
    drop(each);
    print(table.map_or("", |table| table.end()))?;
    result
}

/// That nothing is asked for which plays no part.
fn check(args: &KernelBenchArgs, wanted: &[&Kernel]) -> Result<()> {
    let trouble = if wanted.len() > 1 {
        "at sizes of its own: name it alone"
    } else if args.against.is_some() || args.tune.is_some() {
        "and takes turns with NCCL anyway: leave --against and --tune out"
    } else if args.model.device != Device::Cuda(0) {
        "which --devices 0,1 names: leave --device out"
    } else if args.model.split.join.is_some() {
        "of one process: leave --join out"
    } else {
        return Ok(());
    };
    Err(Error::usage(format!("{NAME} is timed between GPUs, {trouble}")))
}

/// The GPUs of each of the ranks that are to add up.
fn places(args: &KernelBenchArgs) -> Result<Vec<Vec<u32>>> {
    let split = &args.model.split;
    let given = !split.devices.is_empty() || split.tensor_parallel.is_some();
    if given {
        let ranks = options(&args.model)?.split.world()? as u32;
        return match ranks {
            1 => Err(Error::usage(format!("{NAME}: a rank alone has nothing to add up"))),
            _ if split.devices.is_empty() => Ok(vec![(0..ranks).collect()]),
            _ => Ok(vec![split.devices.clone()]),
        };
    }
    let count = device_count()?;
    if count < RANKS[0] {
        let there = match count {
            0 => "none",
            _ => "one: --devices 0,0 times ranks that share it, for which the hosts add up",
        };
        return Err(Error::failed(format!("{NAME} is timed between GPUs, and there is {there}")));
    }
    let ranks = RANKS.into_iter().filter(|ranks| *ranks <= count);
    Ok(ranks.map(|ranks| (0..ranks).collect()).collect())
}

fn gpus(
    ordinals: &[u32],
    source: Option<&Replacement>,
    settings: &Arc<Settings>,
) -> Result<Vec<Gpu>> {
    let open = |ordinal: &u32| {
        let gpu = Gpu::open_as(*ordinal, settings)?;
        source.into_iter().for_each(|source| gpu.replace_kernel(source.clone()));
        Ok(gpu)
    };
    ordinals.iter().map(open).collect()
}

/// What all rows have in common.
fn subject(model: &str, gpu: &Gpu, nvml: Option<&Nvml>, source: Option<&Replacement>) -> Row {
    let Value::Object(row) = json!({
        "model": model,
        "device": gpu.name,
        "source": source.map_or("built-in".to_owned(), Replacement::path),
        "driver": nvml.and_then(Nvml::driver),
        "commit": env!("CHASKI_VERSION"),
        "date": jiff::Timestamp::now().to_string(),
    }) else {
        unreachable!("json! of braces is an object");
    };
    row
}

/// Says which way is for which sizes.
fn conclude(sums: &AllReduceTimes, ranks: usize) {
    let mut line = format!("{ranks} ranks: {}", sums.link);
    if sums.has_both() {
        let found = match sums.nccl_from() {
            Some(bytes) => format!("faster from {} on", size_name(bytes)),
            None => "not faster at the largest size".to_owned(),
        };
        let assumed = size_name(Mailbox::MOST_BYTES);
        line += &format!("; NCCL is {found}, and is taken above {assumed}");
    }
    note(line);
}
