//! `chaski devices`

use sysinfo::{CpuRefreshKind, RefreshKind};

use super::open::defaults;
use super::output::{note, print};
use super::qualify::state;
use crate::engine::{available_memory_bytes, system};
use crate::error::{Result, binary};
use crate::executor::cuda::{self, Gpu};

use crate::vector;

pub fn run() -> Result<()> {
    let mut list = cpu()?;
    let count = match cuda::device_count() {
        Ok(count) => count,
        Err(error) => {
            note(format_args!("no GPU: {error}"));
            0
        }
    };
    let settings = defaults()?.cuda;
    for ordinal in 0..count {
        let card = Gpu::open_as(ordinal, &settings)?;
        let ((free, total), (major, minor)) = (card.memory()?, card.capability);
        list += &format!(
            "cuda:{ordinal}  {}, compute capability {major}.{minor}, {} multiprocessors, {} of {} of \
             memory free; {}\n",
            card.name,
            card.multiprocessors,
            binary(free),
            binary(total),
            state(&card)?,
        );
    }
    print(&list)
}

fn cpu() -> Result<String> {
    let system = system(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()))?;
    let name = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
    Ok(format!(
        "cpu  {name}, {} threads, {}, {} of memory available\n",
        vector::cores(),
        vector::instruction_set(),
        binary(available_memory_bytes()?),
    ))
}
