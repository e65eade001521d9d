//! `chaski devices`

use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, RefreshKind};

use super::open::defaults;
use super::output::{note, print};
use super::qualify::state;
use crate::engine::{available_memory_bytes, system};
use crate::error::{Result, binary, count};
use crate::executor::cuda::{self, Gpu};

use crate::vector;

/// Prints what there is, as text or as a JSON list.
pub fn run(json: bool) -> Result<()> {
    let gpus = match cuda::device_count() {
        Ok(count) => count,
        Err(error) => {
            note(format_args!("no GPU: {error}"));
            0
        }
    };
    let settings = defaults()?.cuda;
    let mut devices = vec![cpu()?];
    for ordinal in 0..gpus {
        devices.push(gpu(&Gpu::open_as(ordinal, &settings)?)?);
    }
    if json {
        let devices: Vec<&Value> = devices.iter().map(|(_, json)| json).collect();
        return print(&format!("{:#}\n", json!(devices)));
    }
    devices.iter().try_for_each(|(line, _)| print(line))
}

/// In a line, and as JSON.
fn cpu() -> Result<(String, Value)> {
    let system = system(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()))?;
    let name = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
    let (threads, instructions) = (vector::cores(), vector::instruction_set());
    let memory = available_memory_bytes()?;
    let line = format!(
        "cpu  {name}, {}, {instructions}, {} of memory available\n",
        count(threads, "thread"),
        binary(memory),
    );
    let json = json!({
        "device": "cpu",
        "name": name,
        "threads": threads,
        "instruction_set": instructions.to_string(),
        "free_bytes": memory,
    });
    Ok((line, json))
}

/// As [`cpu`].
fn gpu(gpu: &Gpu) -> Result<(String, Value)> {
    let Gpu { ordinal, name, multiprocessors, .. } = gpu;
    let ((free, total), (major, minor)) = (gpu.memory()?, gpu.capability);
    let state = state(gpu)?;
    let line = format!(
        "cuda:{ordinal}  {name}, compute capability {major}.{minor}, {}, {} of {} of memory free; \
         {state}\n",
        count(*multiprocessors as usize, "multiprocessor"),
        binary(free),
        binary(total),
    );
    let json = json!({
        "device": format!("cuda:{ordinal}"),
        "name": name,
        "compute_capability": format!("{major}.{minor}"),
        "multiprocessors": multiprocessors,
        "free_bytes": free,
        "total_bytes": total,
        "emulated": cuda::emulated().is_some(),
        "state": state,
    });
    Ok((line, json))
}
