//! Machine code as NVIDIA's disassembler prints it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chaski::kernel::nvrtc::target_folder;
use tempfile::tempdir;

/// What Cargo gave the build script of this very build to write into.
const OUT: &str = env!("OUT_DIR");

/// One instruction: `@!P0 LDG.E.128 R4, desc[UR4][R2.64+0x10] ;`
pub struct Instruction {
    /// Of those who jump to it.
    pub labels: Vec<String>,
    /// `LDG`, `E`, `128`
    pub words: Vec<String>,
    pub operands: Vec<String>,
    /// The scoreboard, one of six, that counts it until what it writes is there.
    pub counted_by: Option<u64>,
    /// A bit for each scoreboard that must have counted down to nothing before it begins.
    pub waits: u64,
}

impl Instruction {
    /// `/*0070*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;   /* 0x... */`
    fn parse(line: &str) -> Option<Self> {
        let code = line.split_once("*/")?.1.split(';').next()?.trim();
        let code = if code.starts_with('@') { code.split_once(' ')?.1.trim() } else { code };
        let (name, operands) = code.split_once(' ').unwrap_or((code, ""));
        let words = name.split('.').map(str::to_owned).collect();
        let operands = operands.split(',').map(|operand| operand.trim().to_owned()).collect();
        Some(Self { labels: Vec::new(), words, operands, counted_by: None, waits: 0 })
    }

    /// The high half of the instruction, `/* 0x... */` in a line of its own, ends with what the hardware
    /// waits for.
    fn control(&mut self, line: &str) -> Option<()> {
        let line = line.trim().strip_prefix("/* 0x")?.strip_suffix(" */")?;
        let word = u64::from_str_radix(line, 16).ok()?;
        self.counted_by = Some(word >> 46 & 7).filter(|scoreboard| *scoreboard < 6);
        self.waits = word >> 52 & 63;
        Some(())
    }

    /// Whether it is `LDG.128`, which `LDG.E.NA.LTC256B.128.CONSTANT` is too.
    pub fn is(&self, wanted: &str) -> bool {
        let mut parts = wanted.split('.');
        self.words[0] == parts.next().unwrap()
            && parts.all(|part| self.words.iter().any(|w| w == part))
    }

    /// The general registers in its operands but the first, which most instructions write.
    pub fn reads(&self) -> impl Iterator<Item = u32> {
        let skipped = usize::from(!self.words[0].starts_with("ST"));
        self.operands.iter().skip(skipped).flat_map(|operand| {
            let words = operand.split(|c: char| !c.is_ascii_alphanumeric());
            words.filter_map(|word| word.strip_prefix('R')?.parse().ok())
        })
    }

    pub fn first_written(&self) -> Option<u32> {
        self.operands[0].strip_prefix('R')?.parse().ok()
    }
}

pub type Function = Vec<Instruction>;

/// NVIDIA's disassembler, fetched once into the target folder, its hash checked.
pub fn disassembler() -> Option<PathBuf> {
    let folder = target_folder(Path::new(OUT)).unwrap_or(Path::new(OUT)).join("disassembler");
    let program = folder.join("nvidia/cu13/bin/nvdisasm");
    if !program.is_file() {
        let unfinished = folder.with_extension(std::process::id().to_string());
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--require-hashes", "--only-binary", ":all:", "-r", "tests/disassembler.txt"]);
        let fetched = pip.arg("--target").arg(&unfinished).output();
        if !fetched.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: pip cannot fetch the disassembler");
            return None;
        }
        fs::rename(&unfinished, &folder).unwrap();
    }
    Some(program)
}

/// The functions of a cubin by name.
pub fn disassemble(nvdisasm: &Path, cubin: &[u8]) -> BTreeMap<String, Function> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("cubin");
    fs::write(&path, cubin).unwrap();
    let output = Command::new(nvdisasm).arg("-hex").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut functions = BTreeMap::new();
    let (mut name, mut labels) = (None, Vec::new());
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some(label) = line.strip_prefix(".text.") {
            name = label.strip_suffix(':').map(str::to_owned);
        } else if let Some(name) = &name {
            let function: &mut Function = functions.entry(name.clone()).or_default();
            if let Some(label) = line.strip_prefix(".L").and_then(|line| line.strip_suffix(':')) {
                labels.push(format!(".L{label}"));
            } else if line.trim_start().starts_with("/* 0x") {
                function.last_mut().and_then(|last| last.control(line)).expect("a word of 64 bits");
            } else if let Some(instruction) = Instruction::parse(line) {
                function.push(Instruction { labels: std::mem::take(&mut labels), ..instruction });
            }
        }
    }
    functions
}
