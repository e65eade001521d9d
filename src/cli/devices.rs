//! `chaski devices`

use sysinfo::{CpuRefreshKind, RefreshKind};

use super::model::{available_memory_bytes, system};
use super::output::print;
use crate::error::Result;
use crate::model::gib;
use crate::vector;

pub fn run() -> Result<()> {
    let system = system(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()))?;
    let name = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
    print(&format!(
        "cpu  {name}, {} threads, {}, {} of memory available\n",
        rayon::current_num_threads(),
        vector::instruction_set(),
        gib(available_memory_bytes()?),
    ))
}
