//! What sanitizers write on standard error, in words of ours: what is wrong, and the kernel's lines.

/// Every report in `text` about a kernel, of whose source `files` are the names and texts: the headers, and
/// last the source itself.
pub fn read(text: &str, files: &[(String, String)]) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let reports = lines.iter().enumerate().filter_map(|(at, line)| {
        if let Some((place, what)) = line.split_once(": runtime error: ") {
            return Some(quoted(&frame(place)?, what, files));
        }
        let (_, kind) = line.split_once("Sanitizer: ")?;
        if line.starts_with("SUMMARY") {
            return None;
        }
        let end = lines[at + 1..].iter().position(|line| line.starts_with("SUMMARY"));
        let rest = &lines[at + 1..][..end.unwrap_or(lines.len() - at - 1)];
        Some(accesses(kind, rest, files))
    });
    reports.collect()
}

/// A report that is made of accesses, each with the stack of its thread.
fn accesses(kind: &str, lines: &[&str], files: &[(String, String)]) -> String {
    let kind = kind.split(" on ").next().unwrap_or(kind);
    let kind = kind.split(" (pid").next().unwrap_or(kind);
    // Between what the op was given, the memory is poisoned.
    let kind = if kind == "use-after-poison" { "out of bounds" } else { kind };
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let line = line.trim_start();
        let words = ["read", "write", "caused by a read", "caused by a write"];
        let lower = line.to_lowercase();
        let lower = lower.strip_prefix("previous ").unwrap_or(&lower);
        let by_signal = lower.split_once("the signal is ").map_or(lower, |(_, rest)| rest);
        if !words.iter().any(|word| by_signal.starts_with(word)) {
            continue;
        }
        let stack = lines[at + 1..].iter().map(|line| line.trim_start());
        let stack = stack.take_while(|line| line.starts_with('#')).filter_map(frame_of_stack);
        let places: Vec<Frame> = stack.collect();
        let Some(first) = places.first() else { continue };
        let verb = if by_signal.contains("write") { "written" } else { "read" };
        let callers: Vec<_> = places[1..].iter().map(Frame::to_string).collect();
        let callers = match callers.first() {
            Some(caller) => format!(", called at {caller}"),
            None => String::new(),
        };
        let what = match text.is_empty() {
            true => format!("{kind}: {verb} here{callers}"),
            false => format!("{verb} here by another thread, in no order with it{callers}"),
        };
        text += &quoted(first, &what, files);
    }
    if text.is_empty() { kind.to_owned() } else { text }
}

/// A line of a kernel.
struct Frame {
    file: String,
    line: usize,
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// `#1 0x7fbff7564e95 in rms_norm(...) kernels/rms_norm.cu:56 (module+0x12)`, if it is a kernel's.
fn frame_of_stack(line: &str) -> Option<Frame> {
    let places = line.split(' ').filter(|word| !word.starts_with('('));
    places.rev().find_map(frame)
}

/// `kernels/rms_norm.cu:56:25`, if it is a kernel's; the emulator's own headers are none.
fn frame(place: &str) -> Option<Frame> {
    let mut parts = place.trim().split(':');
    let (file, line) = (parts.next()?, parts.next()?.parse().ok()?);
    let is_kernel = file.ends_with(".cu") || file.ends_with(".cuh");
    (is_kernel && !file.contains("/include/")).then(|| Frame { file: file.to_owned(), line })
}

/// A message as compilers write it, with the line of the source below.
fn quoted(frame: &Frame, what: &str, files: &[(String, String)]) -> String {
    let name = frame.file.rsplit('/').next().unwrap_or_default();
    let named = files.iter().find(|(path, _)| path.rsplit('/').next() == Some(name));
    let Some((path, text)) = named.or(files.last()) else { return what.to_owned() };
    let line = text.lines().nth(frame.line - 1).unwrap_or_default().trim();
    format!("{path}:{}: {what}\n  {:>4} | {line}\n", frame.line, frame.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Kernel, KernelSource};

    fn reports(text: &str) -> Vec<String> {
        read(text, &KernelSource::from(Kernel::find("rms_norm").expect("a kernel")).texts())
    }

    #[test]
    fn a_race_has_two_lines() {
        let text = "==================
WARNING: ThreadSanitizer: data race (pid=1682)
  Write of size 4 at 0x7f394e980000 by thread T8:
    #0 float block_sum<8>(float) lib/reduce.cuh:3 (f95a.so+0x1cec)
    #1 void rms_norm<bf16>(RmsNorm<bf16> const&) rms_norm.cu:42 (f95a.so+0x1cec)
    #2 emulator::Trampoline<&f>::run(void* const*) /x/include/device.h:38 (f95a.so+0x1dea)

  Previous read of size 4 at 0x7f394e980000 by thread T39:
    #0 float block_sum<8>(float) lib/reduce.cuh:4 (f95a.so+0x1d0c)

  Thread T8 (tid=0, running) created by thread T7 at:
    #0 emulator::sanitizer::create() /x/src/sanitizer.h:37 (libcuda.so.1+0x1acef)

SUMMARY: ThreadSanitizer: data race lib/reduce.cuh:3 in float block_sum<8>(float)
";
        let [report] = &reports(text)[..] else { panic!("one report") };
        let lines: Vec<&str> = report.lines().collect();
        assert_eq!(lines[0], "lib/reduce.cuh:3: data race: written here, called at rms_norm.cu:42");
        assert!(lines[1].starts_with("     3 | "), "{report}");
        assert_eq!(lines[2], "lib/reduce.cuh:4: read here by another thread, in no order with it");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn an_access_out_of_bounds_has_the_kernels_line() {
        let text = "==2613==ERROR: AddressSanitizer: SEGV on unknown address 0x62 (pc 0x7f T0)
==2613==The signal is caused by a WRITE memory access.
    #0 0x7f in store16(void*, uint4, emulator::Site) /x/include/lib/ptx.cuh:86
    #1 0x7f in void rms_norm<bf16>(RmsNorm<bf16> const&) rms_norm.cu:56
SUMMARY: AddressSanitizer: SEGV
";
        let [report] = &reports(text)[..] else { panic!("one report") };
        assert!(report.starts_with("kernels/rms_norm.cu:56: SEGV: written here\n"), "{report}");
        let text = "==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1 at pc 0x2
READ of size 16 at 0x1 thread T0
    #0 0x7f in rms_norm kernels/rms_norm.cu:40
";
        let [report] = &reports(text)[..] else { panic!("one report") };
        assert!(report.starts_with("kernels/rms_norm.cu:40: heap-buffer-overflow: read here\n"));
    }

    #[test]
    fn undefined_behaviour_has_the_kernels_line() {
        let text =
            "lib/reduce.cuh:23:29: runtime error: index 8 out of bounds for type 'float [8]'";
        let [report] = &reports(text)[..] else { panic!("one report") };
        assert!(report.starts_with("lib/reduce.cuh:23: index 8 out of bounds for type"));
        assert!(reports("all is well\n").is_empty());
    }
}
