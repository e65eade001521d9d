//! What a kernel's source says about itself: its description, its arguments, what it exports.
//!
//! `build.rs` reads every kernel through this file and so does the crate. The form is narrow on
//! purpose: whatever is not understood is an error, with its line, and never a guess.

mod export;

use std::fmt;

use super::encoding::Encoding;
use export::exports;

/// One kernel file, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Of the file, and of the op.
    pub name: String,
    /// The header comment's first line, without the name.
    pub summary: String,
    /// The rest of the header comment, by line.
    pub description: Vec<String>,
    /// The architectures that it is made for, as compilers name them; none: all.
    pub archs: Vec<String>,
    /// Name of the argument struct: the file's, in camel case.
    pub arguments: String,
    /// The comment above the struct, by line: what the kernel computes.
    pub formula: Vec<String>,
    /// Whether the struct is a template over the type of the weights.
    pub generic: bool,
    pub fields: Vec<DeclaredField>,
    pub exports: Vec<DeclaredExport>,
}

/// One field of the argument struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredField {
    pub name: String,
    pub kind: FieldKind,
    /// Bytes from the start of the struct, as C lays it out.
    pub offset: usize,
    /// Shape first, where it is a pointer.
    pub comment: String,
}

/// What a field holds. Pointers are `written` where they are not to const.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// `const W*`
    Weight,
    /// A place in the state region.
    State {
        element: FieldElement,
        written: bool,
    },
    /// A matrix of weights or activations as TMA takes it.
    TensorMap,
    /// Where the kernel tells that it has begun: the executor fills it in. The last field, if it is there.
    Trace,
    Scalar(Scalar),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldElement {
    F32,
    U32,
    U64,
    F16,
    Bf16,
    /// An element of the KV cache.
    Kv,
    /// An activation in the weights' type.
    Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    U32,
    I32,
    F32,
}

/// One `extern "C"` function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredExport {
    pub name: String,
    /// Where it is made for weights of one encoding.
    pub weights: Option<Encoding>,
    /// 64 or 128, where it is made for one width of head.
    pub head_dim: Option<u32>,
    /// Threads of a block.
    pub threads: u32,
    /// In the file, from 1.
    pub line: usize,
}

/// What is wrong with a kernel's source, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// In the file, from 1.
    pub line: usize,
    pub message: String,
}

impl Mistake {
    /// As compilers write it, for the file at `path`.
    pub fn at(&self, path: &str) -> String {
        format!("{path}:{}: error: {}", self.line, self.message)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

type Result<T> = std::result::Result<T, Mistake>;

fn mistake<T>(line: usize, message: impl Into<String>) -> Result<T> {
    Err(Mistake { line, message: message.into() })
}

impl Signature {
    /// Reads the source of the kernel `name`.
    ///
    /// # Errors
    /// The first thing that is not in the form which `kernels/README.md` describes.
    pub fn parse(name: &str, source: &str) -> Result<Self> {
        let lines: Vec<&str> = source.lines().map(str::trim_end).collect();
        let (summary, description) = header(name, &lines)?;
        let archs = description.iter().find_map(|line| line.strip_prefix("Architectures: "));
        let archs = archs.unwrap_or_default().split(", ").filter(|arch| !arch.is_empty());
        let archs = archs.map(str::to_owned).collect();
        let arguments = camel_case(name);
        let (at, generic) = find_struct(&arguments, &lines)?;
        let above = lines[..at].iter().rev().map_while(|line| line.strip_prefix("// "));
        let mut formula: Vec<String> = above.map(str::to_owned).collect();
        formula.reverse();
        let fields = fields(&lines, at, generic)?;
        let with_maps = fields.iter().any(|field| field.kind == FieldKind::TensorMap);
        let exports = exports(name, &arguments, (generic, with_maps), &lines)?;
        let name = name.to_owned();
        Ok(Self { name, summary, description, archs, arguments, formula, generic, fields, exports })
    }

    /// Size of the argument struct in bytes, as C pads it.
    pub fn bytes(&self) -> usize {
        let end = self.fields.last().map_or(0, |field| field.offset + field.kind.bytes());
        let alignment = self.fields.iter().map(|field| field.kind.bytes()).max().unwrap_or(1);
        end.next_multiple_of(alignment)
    }
}

impl FieldKind {
    /// Size and alignment.
    pub fn bytes(self) -> usize {
        match self {
            FieldKind::Scalar(_) => 4,
            FieldKind::Weight | FieldKind::State { .. } => 8,
            FieldKind::Trace => 16,
            FieldKind::TensorMap => 128,
        }
    }

    /// As the kernel writes it.
    pub fn c_type(self) -> String {
        match self {
            FieldKind::Weight => "const W*".to_owned(),
            FieldKind::State { element, written } => {
                format!("{}{}*", if written { "" } else { "const " }, element.c_type())
            }
            FieldKind::TensorMap => "TensorMap".to_owned(),
            FieldKind::Trace => "Trace".to_owned(),
            FieldKind::Scalar(Scalar::U32) => "uint32_t".to_owned(),
            FieldKind::Scalar(Scalar::I32) => "int32_t".to_owned(),
            FieldKind::Scalar(Scalar::F32) => "float".to_owned(),
        }
    }

    /// As the generated argument struct has it, if it does. The KV cache and activations in the weights' type
    /// are slots of bytes, because what their elements are is known only when a model is loaded.
    pub fn rust_type(self) -> &'static str {
        match self {
            FieldKind::Weight => "Weight",
            FieldKind::State { element: FieldElement::F32, .. } => "Slot<f32>",
            FieldKind::State { element: FieldElement::U32, .. } => "Slot<u32>",
            FieldKind::State { element: FieldElement::U64, .. } => "Slot<u64>",
            FieldKind::State { element: FieldElement::F16, .. } => "Slot<half::f16>",
            FieldKind::State { element: FieldElement::Bf16, .. } => "Slot<half::bf16>",
            FieldKind::State { element: FieldElement::Kv | FieldElement::Activation, .. } => {
                "Slot<u8>"
            }
            FieldKind::TensorMap => "TensorMap",
            FieldKind::Trace => "",
            FieldKind::Scalar(Scalar::U32) => "u32",
            FieldKind::Scalar(Scalar::I32) => "i32",
            FieldKind::Scalar(Scalar::F32) => "f32",
        }
    }

    fn parse(text: &str, generic: bool) -> std::result::Result<Self, String> {
        let Some(pointee) = text.strip_suffix('*') else {
            return match text {
                "uint32_t" => Ok(FieldKind::Scalar(Scalar::U32)),
                "int32_t" => Ok(FieldKind::Scalar(Scalar::I32)),
                "float" => Ok(FieldKind::Scalar(Scalar::F32)),
                "TensorMap" => Ok(FieldKind::TensorMap),
                "Trace" => Ok(FieldKind::Trace),
                _ => Err(format!("a number is uint32_t, int32_t or float, not {text:?}")),
            };
        };
        let (pointee, written) = match pointee.strip_prefix("const ") {
            Some(pointee) => (pointee, false),
            None => (pointee, true),
        };
        if matches!(pointee, "W" | "Activation<W>") && !generic {
            return Err("W needs a struct that is a template <class W>".to_owned());
        }
        match (pointee, written) {
            ("W", false) => return Ok(FieldKind::Weight),
            ("W", true) => {
                let message = "weights are only read: const W*; what a kernel writes in their type \
                               is an Activation<W>*";
                return Err(message.to_owned());
            }
            _ => {}
        }
        match FieldElement::ALL.into_iter().find(|element| element.c_type() == pointee) {
            Some(element) => Ok(FieldKind::State { element, written }),
            None => Err(format!(
                "a pointer is to W, Activation<W>, kv_t, float, f16, bf16, uint32_t or uint64_t, \
                 not to {pointee:?}"
            )),
        }
    }
}

impl FieldElement {
    const ALL: [FieldElement; 7] = [
        FieldElement::F32,
        FieldElement::U32,
        FieldElement::U64,
        FieldElement::F16,
        FieldElement::Bf16,
        FieldElement::Kv,
        FieldElement::Activation,
    ];

    fn c_type(self) -> &'static str {
        match self {
            FieldElement::F32 => "float",
            FieldElement::U32 => "uint32_t",
            FieldElement::U64 => "uint64_t",
            FieldElement::F16 => "f16",
            FieldElement::Bf16 => "bf16",
            FieldElement::Kv => "kv_t",
            FieldElement::Activation => "Activation<W>",
        }
    }
}

/// `norm_qkv` to `NormQkv`.
fn camel_case(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let mut letters = word.chars();
        letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
    });
    words.collect()
}

/// The header comment: summary and description.
fn header(name: &str, lines: &[&str]) -> Result<(String, Vec<String>)> {
    let start = format!("//! {name}: ");
    let summary = match lines.first().and_then(|line| line.strip_prefix(start.as_str())) {
        Some(summary) if !summary.is_empty() => summary.to_owned(),
        _ => return mistake(1, format!("a kernel begins with its summary: `{start}...`")),
    };
    let comment = lines[1..].iter().map_while(|line| line.strip_prefix("//!"));
    let description: Vec<String> =
        comment.map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned()).collect();
    let blank = description.iter().take_while(|line| line.is_empty()).count();
    Ok((summary, description[blank..].to_vec()))
}

/// Where the argument struct begins, from 0, and whether it is a template.
fn find_struct(arguments: &str, lines: &[&str]) -> Result<(usize, bool)> {
    let plain = format!("struct {arguments} {{");
    let generic = format!("template <class W> {plain}");
    let mut found = lines.iter().enumerate().filter_map(|(at, line)| {
        if *line == plain { Some((at, false)) } else { (*line == generic).then_some((at, true)) }
    });
    match (found.next(), found.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some((at, _))) => mistake(at + 1, format!("a second struct {arguments}")),
        (None, _) => {
            let close = lines.iter().position(|line| line.contains(&format!("struct {arguments}")));
            let message = format!("the kernel's arguments are needed: `{plain}` or `{generic}`");
            mistake(close.unwrap_or(0) + 1, message)
        }
    }
}

/// The fields of the struct that begins at line `at`, from 0.
fn fields(lines: &[&str], at: usize, generic: bool) -> Result<Vec<DeclaredField>> {
    let mut fields: Vec<DeclaredField> = Vec::new();
    for (number, line) in (at + 2..).zip(&lines[at + 1..]) {
        match line.trim() {
            "};" if fields.is_empty() => return mistake(number, "a kernel has arguments"),
            "};" => return Ok(fields),
            "" => continue,
            text => {
                let end = fields.last().map_or(0, |field| field.offset + field.kind.bytes());
                let field = field(text, end, generic);
                let field = field.map_err(|message| Mistake { line: number, message })?;
                if fields.last().is_some_and(|last| last.kind == FieldKind::Trace) {
                    return mistake(
                        number,
                        "a Trace is the last field: who replaces a kernel may leave it out",
                    );
                }
                if fields.iter().any(|other| other.name == field.name) {
                    return mistake(number, format!("a second field {}", field.name));
                }
                fields.push(field);
            }
        }
    }
    mistake(at + 1, "the struct does not end: `};` is needed")
}

/// `const float* x; // [T, C]`, to be placed from byte `end` on.
fn field(text: &str, end: usize, generic: bool) -> std::result::Result<DeclaredField, String> {
    let (declaration, comment) = match text.split_once("//") {
        Some((declaration, comment)) => (declaration.trim(), comment.trim()),
        None => (text, ""),
    };
    let declaration = declaration.strip_suffix(';').filter(|text| !text.contains(';'));
    let form = "one field a line, as in `const float* x; // [T, C]`";
    let declaration = declaration.ok_or_else(|| format!("{form}, not {text:?}"))?;
    let name_at = declaration.rfind(|c: char| !is_word(c)).map_or(0, |before| before + 1);
    let (kind, name) = declaration.split_at(name_at);
    // However the star stands: `float *x`, `float * x`.
    let kind = kind.split_whitespace().collect::<Vec<_>>().join(" ").replace(" *", "*");
    if kind.is_empty() {
        return Err(format!("{form}, not {text:?}"));
    }
    let kind = FieldKind::parse(&kind, generic)?;
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || KEYWORDS.contains(&name) {
        return Err(format!("{name:?} cannot be the name of a field in Rust too"));
    }
    if !matches!(kind, FieldKind::Scalar(_) | FieldKind::Trace) && !comment.starts_with('[') {
        return Err(format!("{name} needs its shape: `{declaration}; // [T, C]`"));
    }
    let offset = end.next_multiple_of(kind.bytes());
    Ok(DeclaredField { name: name.to_owned(), kind, offset, comment: comment.to_owned() })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Words of Rust that C++ takes for names.
const KEYWORDS: [&str; 26] = [
    "abstract", "as", "async", "await", "become", "crate", "dyn", "final", "fn", "gen", "impl",
    "in", "let", "loop", "match", "mod", "move", "mut", "override", "pub", "ref", "self", "super",
    "trait", "type", "use",
];
