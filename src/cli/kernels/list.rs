//! `chaski kernels list`

use std::fmt::Write;

use serde_json::{Value, json};

use super::code::arch_named;
use crate::cli::args::CodeArgs;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::kernel::{Arch, Build, KERNELS, Kernel, Resources};

/// The ops whose chain a kernel computes, by names of `src/ops`.
const OPS: [(&str, &[&str]); 19] = [
    ("all_reduce", &["all_reduce"]),
    ("attend_decode", &["attend_decode"]),
    ("attend_prefill", &["attend_prefill"]),
    ("attend_prefill_hopper", &["attend_prefill"]),
    ("embed", &["embed"]),
    ("gate_up_swiglu", &["gate_up_swiglu"]),
    ("gate_up_swiglu_hopper", &["gate_up_swiglu"]),
    ("matmul", &["matmul"]),
    ("matmul_hopper", &["matmul"]),
    ("mma_peak", &["mma_peak"]),
    ("norm_gate_up", &["rms_norm", "gate_up_swiglu"]),
    ("norm_head", &["rms_norm", "matmul"]),
    ("norm_qkv", &["rms_norm", "matmul", "matmul", "matmul", "rope_append"]),
    ("project", &["matmul"]),
    ("read_all", &["read_all"]),
    ("rms_norm", &["rms_norm"]),
    ("rope_append", &["rope_append"]),
    ("sample", &["sample"]),
    ("synthesize", &["synthesize"]),
];

/// Prints the built-in kernels, or the one that is named, as text or as a JSON list.
pub fn list(args: &CodeArgs, json: bool) -> Result<()> {
    let kernels: Vec<&Kernel> = match args.name {
        Some(kernel) => vec![kernel],
        None => KERNELS.iter().collect(),
    };
    let arch = args.arch.as_deref().map(arch_named).transpose()?;
    let is_wanted = |build: &&Build| arch.is_none_or(|arch| build.arch == arch);
    if json {
        let kernels: Vec<Value> =
            kernels.iter().map(|kernel| as_json(kernel, &is_wanted)).collect();
        let text = serde_json::to_string_pretty(&kernels);
        let text = text.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        return print(&(text + "\n"));
    }
    let mut text = String::new();
    for kernel in &kernels {
        write_kernel(&mut text, kernel, &is_wanted).expect("a String takes any text");
    }
    if KERNELS.iter().any(|kernel| kernel.builds.is_empty()) {
        text += "Built without NVRTC: kernels are compiled at run time.\n";
    }
    print(&text)
}

fn ops(kernel: &Kernel) -> &'static [&'static str] {
    OPS.iter().find(|(name, _)| *name == kernel.name).map_or(&[], |(_, ops)| ops)
}

/// What the kernel's exports need on one architecture: of each number the worst.
struct Needs {
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    occupancy: f64,
}

impl Needs {
    fn of(build: &Build) -> Self {
        let worst = |number: fn(&Resources<&'static str>) -> u32| {
            build.resources.iter().map(number).max().unwrap_or(0)
        };
        Self {
            registers: worst(|each| each.registers),
            shared_bytes: worst(|each| each.shared_bytes),
            stack_bytes: worst(|each| each.stack_bytes),
            spill_bytes: worst(|each| each.spill_bytes),
            occupancy: (build.resources.iter())
                .map(|each| occupancy(build.arch, each))
                .fold(1.0, f64::min),
        }
    }
}

/// With the static shared memory alone: how much a launch adds is the launch's matter.
fn occupancy(arch: &Arch, resources: &Resources<&'static str>) -> f64 {
    arch.occupancy(resources.registers, resources.shared_bytes, resources.max_threads)
}

fn as_json(kernel: &Kernel, is_wanted: &dyn Fn(&&Build) -> bool) -> Value {
    let parameters = kernel.fields.iter().map(|field| {
        json!({
            "name": field.name,
            "type": field.c_type,
            "rust_type": field.rust_type,
            "written": field.written,
            "comment": field.comment,
        })
    });
    let exports = kernel.exports.iter().map(|export| {
        json!({
            "name": export.name,
            "weights": export.weights.map(|dtype| dtype.name()),
            "head_dim": export.head_dim,
            "threads": export.threads,
        })
    });
    json!({
        "name": kernel.name,
        "summary": kernel.summary,
        "ops": ops(kernel),
        "source_hash": kernel.source_hash,
        "parameters": parameters.collect::<Vec<_>>(),
        "exports": exports.collect::<Vec<_>>(),
        "ptx": kernel.ptx.iter().map(|ptx| ptx.arch.virtual_name()).collect::<Vec<_>>(),
        "builds": kernel.builds.iter().filter(is_wanted).map(build_as_json).collect::<Vec<_>>(),
    })
}

fn build_as_json(build: &Build) -> Value {
    let needs = Needs::of(build);
    let exports = build.resources.iter().map(|each| {
        json!({
            "name": each.export,
            "registers": each.registers,
            "shared_bytes": each.shared_bytes,
            "stack_bytes": each.stack_bytes,
            "spill_bytes": each.spill_bytes,
            "threads": each.max_threads,
            "occupancy": occupancy(build.arch, each),
        })
    });
    json!({
        "arch": build.arch.name,
        "registers": needs.registers,
        "shared_bytes": needs.shared_bytes,
        "stack_bytes": needs.stack_bytes,
        "spill_bytes": needs.spill_bytes,
        "occupancy": needs.occupancy,
        "cubin_bytes": build.cubin.len(),
        "exports": exports.collect::<Vec<_>>(),
    })
}

fn write_kernel(
    text: &mut String,
    kernel: &Kernel,
    is_wanted: &dyn Fn(&&Build) -> bool,
) -> std::fmt::Result {
    let exports: Vec<&str> = kernel.exports.iter().map(|export| export.name).collect();
    writeln!(text, "{}: {}", kernel.name, kernel.summary)?;
    writeln!(text, "  ops      {}", ops(kernel).join(", "))?;
    writeln!(text, "  source   {}", kernel.source_hash)?;
    writeln!(text, "  exports  {}", exports.join(", "))?;
    writeln!(text, "  takes")?;
    for field in kernel.fields {
        let line = format!("    {:<15}  {:<12}  {}", field.c_type, field.name, field.comment);
        writeln!(text, "{}", line.trim_end())?;
    }
    if !kernel.builds.is_empty() {
        writeln!(text, "  arch     registers  shared bytes  spill bytes  occupancy")?;
    }
    for build in kernel.builds.iter().filter(is_wanted) {
        let Needs { registers, shared_bytes, spill_bytes, occupancy, .. } = Needs::of(build);
        writeln!(
            text,
            "  {:<7}  {registers:>9}  {shared_bytes:>12}  {spill_bytes:>11}  {:>8.0}%",
            build.arch.name,
            100.0 * occupancy
        )?;
    }
    writeln!(text)
}
