//! Kernels as data: what is read from a source, what becomes of arguments, what `kernels list` prints.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::tiny::TINY;
use chaski::encoding::{Encoding, Float};
use chaski::kernel::signature::Signature;
use chaski::kernel::{KERNELS, Kernel, RegionKind};
use chaski::memory::{Layout, Weight};
use serde_json::Value;
use tempfile::tempdir;

#[test]
fn a_signature_is_all_that_a_source_says_about_itself() {
    let tiny = Signature::parse("tiny", TINY).unwrap();
    assert_eq!((tiny.summary.as_str(), tiny.arguments.as_str()), ("y = a x.", "Tiny"));
    assert_eq!(tiny.description, ["One number a thread."]);
    assert_eq!(tiny.formula, ["y[i] = a x[i]"]);
    let fields = tiny.fields.iter();
    let fields: Vec<_> =
        fields.map(|f| (f.name.as_str(), f.kind.c_type(), f.kind.rust_type(), f.offset)).collect();
    let expected = [
        ("x", "const float*", "Slot<f32>", 0),
        ("a", "const W*", "Weight", 8),
        ("y", "Activation<W>*", "Slot<u8>", 16),
        ("count", "uint32_t", "u32", 24),
        ("cache", "kv_t*", "Slot<u8>", 32),
        ("eps", "float", "f32", 40),
    ];
    assert_eq!(fields, expected.map(|(a, b, c, d)| (a, b.to_owned(), c, d)));
    assert_eq!(tiny.fields[4].comment, "[N] wherever the star stands");
    assert_eq!(tiny.bytes(), 48);
    let [bf16, f16] = [Float::Bf16, Float::F16].map(Encoding::from);
    let exports: Vec<_> =
        tiny.exports.iter().map(|e| (e.weights, e.head_dim, e.threads, e.line)).collect();
    assert_eq!(exports, [(Some(bf16), None, 64, 21), (Some(f16), Some(64), 128, 22)]);
}

#[test]
fn what_is_not_understood_is_an_error_at_its_line() {
    let bad = [
        ("//! tiny: y = a x.", "// tiny", 1, "begins with its summary"),
        ("//! tiny: y = a x.", "//! small: y = a x.", 1, "begins with its summary"),
        ("struct Tiny {", "struct Small {", 1, "template <class W> struct Tiny {"),
        (
            "template <class W> struct Tiny {",
            "template <typename W> struct Tiny {",
            7,
            "arguments are needed",
        ),
        (
            "template <class W> struct Tiny {",
            "struct Tiny {",
            9,
            "W needs a struct that is a template",
        ),
        ("const float* x; // [N]", "const float* x;", 8, "x needs its shape"),
        ("const float* x; // [N]", "const float* x; // N of them", 8, "x needs its shape"),
        ("const float* x; // [N]", "const float *x, *z; // [N]", 8, "uint32_t or uint64_t, not to"),
        ("const float* x; // [N]", "const double* x; // [N]", 8, "not to \"double\""),
        ("const float* x; // [N]", "const float* type; // [N]", 8, "\"type\" cannot be the name"),
        ("const float* x; // [N]", "const float* X; // [N]", 8, "\"X\" cannot be the name"),
        ("const float* x; // [N]", "const float* a; // [N]", 9, "a second field a"),
        ("const float* x; // [N]", "const float* x // [N]", 8, "one field a line"),
        ("const float* x; // [N]", "// a comment alone", 8, "one field a line"),
        ("const W* a;", "W* a;", 9, "weights are only read"),
        ("uint32_t count;", "uint64_t count;", 11, "not \"uint64_t\""),
        ("uint32_t count; // N", "uint32_t count, more;", 11, "a number is"),
        ("__launch_bounds__(64, 2) ", "", 21, "an export is one line"),
        (
            "tiny_bf16(Tiny<bf16> args) {",
            "tiny_bf16(Tiny<bf16> args)\n{",
            21,
            "an export is one line",
        ),
        ("__launch_bounds__(64, 2)", "__launch_bounds__(THREADS)", 21, "not \"THREADS\""),
        ("__launch_bounds__(64, 2)", "__launch_bounds__(65)", 21, "a multiple of 32"),
        ("__launch_bounds__(64, 2)", "__launch_bounds__(2048)", 21, "a multiple of 32"),
        ("tiny_bf16(Tiny<bf16>", "tiny_bf16(Tiny<f16>", 21, "`Tiny<bf16> args`"),
        ("tiny_bf16(Tiny<bf16>", "tiny(Tiny<bf16>", 21, "needs a type"),
        ("tiny_bf16(", "tiny_d64_bf16(", 21, "is not tiny with"),
        ("tiny_f16_d64(", "tiny_f16_d96(", 22, "is not tiny with"),
        ("tiny_bf16(", "tiny_q9(", 21, "is not tiny with `_bf16` or `_f16`"),
        ("tiny_bf16(", "tinybf16(", 21, "is not tiny with"),
        ("tiny_f16_d64(Tiny<f16>", "tiny_bf16(Tiny<bf16>", 22, "a second tiny_bf16"),
    ];
    for (good, wrong, line, message) in bad {
        assert_eq!(TINY.matches(good).count(), 1, "{good}");
        let mistake = Signature::parse("tiny", &TINY.replace(good, wrong)).unwrap_err();
        assert!(mistake.message.contains(message), "{wrong}: {mistake}");
        assert_eq!(mistake.line, line, "{wrong}: {mistake}");
        assert!(
            mistake.at("kernels/tiny.cu").starts_with(&format!("kernels/tiny.cu:{line}: error: "))
        );
    }
    for (source, message) in [
        ("", "begins with its summary"),
        ("//! tiny: none\nstruct Tiny {\n};\n", "has arguments"),
        ("//! tiny: none\nstruct Tiny {\n    float a;\n", "does not end"),
        ("//! tiny: none\nstruct Tiny {\n    float a;\n};\n", "nothing is exported"),
    ] {
        let mistake = Signature::parse("tiny", source).unwrap_err();
        assert!(mistake.message.contains(message), "{source}: {mistake}");
    }
}

#[test]
fn argument_structs_are_laid_out_as_c_does() {
    let mut program = String::from("#include \"lib/types.cuh\"\n");
    for kernel in KERNELS {
        let lines: Vec<&str> = kernel.source.lines().collect();
        let begins = format!("struct {} {{", kernel.arguments);
        let first = lines.iter().position(|line| line.ends_with(&begins)).unwrap();
        let last = first + lines[first..].iter().position(|line| *line == "};").unwrap();
        program += &(lines[first..=last].join("\n") + "\n");
        let generic = lines[first].starts_with("template");
        let name = format!("{}{}", kernel.arguments, if generic { "<bf16>" } else { "" });
        let asserts = kernel.fields.iter().map(|field| {
            let (at, field) = (field.offset, field.name);
            format!("static_assert(__builtin_offsetof({name}, {field}) == {at}, \"{field}\");\n")
        });
        program.extend(asserts);
        program += &format!("static_assert(sizeof({name}) == {}, \"\");\n", kernel.argument_bytes);
    }
    let folder = tempdir().unwrap();
    let path = folder.path().join("layout.cpp");
    fs::write(&path, program).unwrap();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-fsyntax-only", "-I", "kernels"]).arg(&path);
    let output = compiler.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn arguments_are_the_bytes_of_the_struct_and_places_for_addresses() {
    let mut layout = Layout::default();
    let skipped = layout.slot::<u8>(&[3]);
    let (ids, x) = (layout.slot::<u32>(&[4]), layout.slot::<f32>(&[4, 16]));
    let table = Weight::whole(Float::Bf16.into(), 4096, 100, 16);
    let embed = chaski::kernel::Embed {
        ids,
        table,
        x: x.part(16, 16),
        tokens: 3,
        width: 16,
        rows: 100,
        first_id: 5,
    };
    let arguments = embed.arguments();
    let places: Vec<_> = arguments
        .pointers()
        .iter()
        .map(|p| (p.offset, p.region, p.region_offset, p.bytes))
        .collect();
    let (ids_at, x_at) = (256, 512 + 16 * 4); // after the skipped slot
    assert_eq!(skipped.offset(), 0);
    let expected = [
        (0, RegionKind::State, ids_at, 4 * 4),
        (8, RegionKind::Weights, 4096, 100 * 16 * 2),
        (16, RegionKind::State, x_at, 16 * 4),
    ];
    assert_eq!(places, expected);
    let words = |bytes: &[u8]| -> Vec<u64> {
        bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
    };
    let [numbers, more] =
        [[3u32, 16], [100, 5]].map(|pair| u64::from_ne_bytes(bytemuck::cast(pair)));
    // A pair of words at a multiple of 16 bytes, for the executor.
    assert_eq!(arguments.trace(), Some(48));
    assert_eq!(words(arguments.bytes()), [0, 0, 0, numbers, more, 0, 0, 0]);
    let resolved = arguments.resolve(|region| match region {
        RegionKind::Weights => 1 << 40,
        RegionKind::State => 1 << 41,
    });
    let state = |at: usize| (1 << 41) + at as u64;
    let expected = [state(ids_at), (1 << 40) + 4096, state(x_at), numbers, more, 0, 0, 0];
    assert_eq!(words(resolved.bytes()), expected);
}

#[test]
fn an_export_is_found_by_weights_and_head() {
    use Float::{Bf16, F16, F32};
    let name = |kernel: &str, float: Float, head_dim| {
        Kernel::find(kernel).unwrap().export(float.into(), head_dim).map(|export| export.name)
    };
    assert_eq!(name("norm_qkv", Bf16, 128), Some("norm_qkv_bf16_d128"));
    assert_eq!(name("norm_qkv", F16, 64), Some("norm_qkv_f16_d64"));
    assert_eq!(name("norm_qkv", F16, 96), None);
    assert_eq!(name("norm_qkv", F32, 64), None);
    assert_eq!(name("project", Bf16, 96), Some("project_bf16"));
    assert_eq!(name("sample", F32, 96), Some("sample"));
}

fn list(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    let output = command.args(["kernels", "list"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn kernels_list_tells_everything_as_json() {
    let kernels: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let kernels = kernels.as_array().unwrap();
    assert_eq!(kernels.len(), KERNELS.len());
    for (listed, kernel) in kernels.iter().zip(KERNELS) {
        assert_eq!(listed["name"], kernel.name);
        let hash = listed["source_hash"].as_str().unwrap();
        assert!(hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hash}");
        for op in listed["ops"].as_array().unwrap() {
            let op = op.as_str().unwrap();
            assert!(Path::new("src/ops").join(format!("{op}.rs")).is_file(), "{op}");
        }
        assert!(!listed["ops"].as_array().unwrap().is_empty(), "{}", kernel.name);
        let parameters = listed["parameters"].as_array().unwrap();
        assert_eq!(parameters.len(), kernel.fields.len());
        assert!(parameters.iter().all(|parameter| parameter["type"].is_string()));
        let builds = listed["builds"].as_array().unwrap();
        assert_eq!(builds.len(), kernel.builds.len());
        for (listed, build) in builds.iter().zip(kernel.builds) {
            assert_eq!(listed["arch"], build.arch.name);
            let worst = build.resources.iter().map(|resources| resources.registers).max();
            assert_eq!(listed["registers"].as_u64(), worst.map(u64::from));
            assert!(listed["shared_bytes"].is_u64());
            assert_eq!(listed["spill_bytes"], 0);
            let occupancy = listed["occupancy"].as_f64().unwrap();
            assert!(0.0 < occupancy && occupancy <= 1.0, "{occupancy}");
            assert_eq!(listed["exports"].as_array().unwrap().len(), kernel.exports.len());
        }
    }
}

#[test]
fn kernels_list_tells_everything_as_text() {
    let text = list(&[]);
    for kernel in KERNELS {
        assert!(text.contains(&format!("\n{}: ", kernel.name)) || text.starts_with(kernel.name));
        assert!(text.contains(kernel.source_hash));
    }
    let compiled = KERNELS.iter().map(|kernel| kernel.builds.len()).sum::<usize>();
    assert_eq!(text.lines().filter(|line| line.starts_with("  sm_")).count(), compiled);
}
