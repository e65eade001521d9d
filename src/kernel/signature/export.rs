//! The functions that a kernel's source exports.

use super::super::encoding::Encoding;
use super::{DeclaredExport, Mistake, Result, mistake};

/// All of them, of the kernel `name` whose argument is a struct of this name. `kind`: whether that is a
/// template, and whether it has maps.
pub(super) fn exports(
    name: &str,
    arguments: &str,
    kind: (bool, bool),
    lines: &[&str],
) -> Result<Vec<DeclaredExport>> {
    let mut exports: Vec<DeclaredExport> = Vec::new();
    let code = |line: &str| line.split("//").next().unwrap_or_default().contains("__global__");
    for (number, line) in (1..).zip(lines).filter(|(_, line)| code(line)) {
        let export = export(name, arguments, kind, line);
        let export = export.map_err(|message| Mistake { line: number, message })?;
        if exports.iter().any(|other| other.name == export.name) {
            return mistake(number, format!("a second {}", export.name));
        }
        exports.push(DeclaredExport { line: number, ..export });
    }
    match exports.is_empty() {
        true => mistake(lines.len().max(1), "nothing is exported: `extern \"C\" __global__ ...`"),
        false => Ok(exports),
    }
}

/// `extern "C" __global__ void __launch_bounds__(256) name_bf16_d64(Name<bf16> args) { ... }`, where the
/// struct has maps, whose addresses are needed, `(const __grid_constant__ Name<bf16> args)`
fn export(
    kernel: &str,
    arguments: &str,
    (generic, with_maps): (bool, bool),
    line: &str,
) -> std::result::Result<DeclaredExport, String> {
    let parts = || {
        let rest = line.strip_prefix("extern \"C\" __global__ void __launch_bounds__(")?;
        let (bounds, rest) = rest.split_once(')')?;
        let (name, rest) = rest.trim_start().split_once('(')?;
        let (argument, body) = rest.split_once(')')?;
        (body.starts_with(" {") && body.ends_with('}')).then_some((bounds, name.trim(), argument))
    };
    let (bounds, name, argument) = parts().ok_or_else(|| {
        let parameter = if generic { format!("{arguments}<bf16>") } else { arguments.to_owned() };
        let suffix = if generic { "_bf16" } else { "" };
        format!(
            "an export is one line: `extern \"C\" __global__ void __launch_bounds__(256) \
             {kernel}{suffix}({parameter} args) {{ ... }}`"
        )
    })?;
    let threads = bounds.split(',').next().unwrap_or_default().trim();
    let threads = match threads.parse::<u32>() {
        Ok(threads) if (32..=1024).contains(&threads) && threads.is_multiple_of(32) => threads,
        _ => return Err(format!("threads are a multiple of 32 up to 1024, not {threads:?}")),
    };
    let (weights, head_dim) = suffixes(kernel, name).ok_or_else(|| {
        let types = types(|each| format!("`_{each}`"));
        format!("{name:?} is not {kernel} with {types}, then `_d64` or `_d128`, or neither")
    })?;
    let parameter = match weights.and_then(Encoding::kernel_type) {
        Some(weights) if generic => format!("{arguments}<{weights}> args"),
        Some(_) => return Err(format!("{arguments} is no template, so {name} has no type")),
        None if generic => {
            return Err(format!(
                "{name} needs a type: {}",
                types(|each| format!("{kernel}_{each}"))
            ));
        }
        None => format!("{arguments} args"),
    };
    let parameter = if with_maps { format!("{GRID_CONSTANT}{parameter}") } else { parameter };
    if argument != parameter {
        return Err(format!("the argument of {name} is `{parameter}`, not {argument:?}"));
    }
    Ok(DeclaredExport { name: name.to_owned(), weights, head_dim, threads, line: 0 })
}

/// Of an argument that stays where the launch has put it.
const GRID_CONSTANT: &str = "const __grid_constant__ ";

/// A name for each type of weights that there are kernels for, for people.
fn types(name: impl Fn(&str) -> String) -> String {
    Encoding::of_kernels().map(|(_, each)| name(each)).collect::<Vec<_>>().join(" or ")
}

/// What an export's name says after the kernel's: the weights, the width of head. None, where it says
/// anything else.
fn suffixes(kernel: &str, name: &str) -> Option<(Option<Encoding>, Option<u32>)> {
    let mut rest = name.strip_prefix(kernel)?;
    let mut strip = |suffix: &str| {
        let after = rest.strip_prefix('_').and_then(|rest| rest.strip_prefix(suffix));
        let after = after.filter(|after| after.is_empty() || after.starts_with('_'));
        rest = after.unwrap_or(rest);
        after.is_some()
    };
    let weights = Encoding::of_kernels().find(|(_, each)| strip(each)).map(|(each, _)| each);
    let head_dim = [64, 128].into_iter().find(|width| strip(&format!("d{width}")));
    rest.is_empty().then_some((weights, head_dim))
}
