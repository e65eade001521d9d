//! Several processes that run one model: they meet before any of them loads it.

use std::sync::Arc;

use sysinfo::System;

use super::Model;
use crate::comm::{Hello, ProcessLink, ProcessPlace, excuse, join};
use crate::error::{Error, Result};
use crate::executor::Hardware;
use crate::kernel::compile::hash;
use crate::model::{Plan, Sizes};

/// Joins the other processes of the run. They must mean the same; `plan` is what this one has room for.
///
/// # Errors
/// What keeps the processes from each other.
pub(super) fn meet(model: &Model, place: &ProcessPlace, plan: &Plan) -> Result<Arc<ProcessLink>> {
    let secret = place.secret();
    let ProcessPlace { process, processes, address, run, .. } = place.clone();
    let Model { config, checkpoint, dims, hardware, options, .. } = model;
    let sizes = Sizes { context: 0, threads: 0, ..plan.sizes };
    let tensors: Vec<_> = checkpoint.tensors().collect();
    let kernels = options.kernels.iter().flat_map(|kernel| kernel.file.own_texts());
    let kernels: Vec<_> = kernels.collect();
    let hash = hash([&*format!("{config:?}{sizes:?}{tensors:?}{kernels:?}")].into_iter());
    let machine = System::host_name().unwrap_or_else(|_| "a machine without a name".to_owned());
    let of_machine = |device: &Hardware| format!("{} of {machine}", device.name());
    let hello = Hello {
        version: env!("CHASKI_VERSION").to_owned(),
        run,
        process,
        processes,
        devices: hardware.iter().map(of_machine).collect(),
        model: format!(
            "{} layers {} in stages of {} ranks #{hash}",
            config.layers,
            checkpoint.types(),
            dims.share.parts
        ),
        context: plan.sizes.context,
    };
    join(hello, &address, &secret, options.timeout)
}

/// Tells the other processes of the run, if this is one of several, that it will not come.
pub(super) fn cannot_meet(place: Option<&ProcessPlace>, why: &Error) {
    if let Some(place @ ProcessPlace { process: process @ 1.., address, .. }) = place {
        excuse(*process, address, &place.secret(), why);
    }
}
