//! What happens on the way to a model in memory, as lines and bars on standard error.

use std::sync::{Arc, Mutex};

use indicatif::ProgressBar;

use super::open::not_interrupted;
use super::output::{note, progress, tell};
use crate::cli::leave;
use crate::engine::{Event, LoadTime, Model, Observer};
use crate::error::{binary, count};
use crate::model::{Limit, Plan};

/// Says what happens, and ends the loading of weights at Ctrl-C; what comes before, that ends by itself.
pub fn observer() -> Observer {
    let bar = Mutex::new(ProgressBar::hidden());
    Arc::new(move |event| {
        let is_loading = matches!(event, Event::WeightsBegin(_) | Event::Weights(_));
        let mut bar = bar.lock().expect("no panics in it");
        match event {
            Event::Planned { model, plan, devices } => describe(model, plan, devices),
            Event::WeightsBegin(bytes) => *bar = progress(bytes, "weights"),
            Event::Weights(bytes) => bar.inc(bytes),
            Event::WeightsEnd => bar.finish_and_clear(),
            Event::ProcessLink(link) => note(link),
            Event::Stuck(why) => {
                tell(format_args!("chaski: {why}"));
                leave(why.exit_status());
            }
            Event::Qualifying(gpu) => note(format_args!(
                "qualifying   cuda:{} ({}), once for its driver and this version: do its kernels \
                 compute what they should?",
                gpu.ordinal, gpu.name
            )),
            Event::NotKept(error) => note(format_args!("qualifying   {error}")),
            Event::NotUsed { gpu, what } => note(format_args!("cuda:{:<8}{what}", gpu.ordinal)),
            Event::NotQualified { gpu, why } => {
                note(format_args!("cuda:{:<8}not qualified: {why}", gpu.ordinal));
            }
        }
        if is_loading { not_interrupted() } else { Ok(()) }
    })
}

/// Says what is about to be loaded on which devices.
fn describe(model: &Model, plan: &Plan, devices: &str) {
    let Model { source, config, checkpoint, dims, options, .. } = model;
    let ranks = dims.world();
    note(format_args!(
        "{source}: {}, {} {}, on {devices}; context {} ({}), KV cache {}{}",
        count(config.layers, "layer"),
        binary(plan.weight_bytes * ranks),
        checkpoint.types(),
        plan.sizes.context,
        match plan.limit {
            Limit::Request => "as asked",
            Limit::Model => "the model's limit",
            Limit::Memory => "what fits the memory",
        },
        binary(plan.cache_bytes * ranks),
        if plan.sizes.decode_as_prefill { "; activations in bf16" } else { "" },
    ));
    let (stages, parts) = (dims.stage.parts, dims.share.parts);
    if stages > 1 {
        let why = match options.split.pipeline_parallel {
            Some(_) => String::new(),
            None => format!(
                ", one for each machine, since {ranks} ranks are more than the model's {}; \
                 --tensor-parallel {ranks} avoids that",
                count(config.kv_heads, "KV head")
            ),
        };
        note(format_args!(
            "{stages} stages, {} and up to {} in each{why}",
            count(parts, "rank"),
            count(dims.layers, "layer")
        ));
    }
}

/// Tells how long loading took, once a prompt has been taken.
pub fn note_load(time: &LoadTime) {
    let (ready, whole) = (time.ready.as_secs_f64(), time.whole().as_secs_f64());
    match whole > ready {
        false => note(format_args!("load         {ready:.3} s")),
        true => note(format_args!(
            "load         {ready:.3} s, of which the last {:.3} s overlapped the prefill",
            whole - ready
        )),
    }
}
