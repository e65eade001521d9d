//! A CUDA file whose kernels take the place of a built-in one.

use std::path::Path;

use super::{CudaFile, Declared, Field, KERNELS, Kernel, Parameter};
use crate::error::{Error, Result, did_you_mean};

/// A file that is to run in place of a built-in kernel. It is ordinary CUDA: what binds it are the names of
/// the built-in kernel's exports and of their arguments.
#[derive(Debug, Clone)]
pub struct Replacement {
    pub kernel: &'static Kernel,
    pub file: CudaFile,
    /// In the order of the kernel's exports.
    pub functions: Vec<ReplacedExport>,
    /// Its kernels wait themselves, where they must, for the kernel before.
    pub waits: bool,
}

/// What a launch of a built-in kernel's export becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplacedExport {
    /// Threads of a block, where the file's `__launch_bounds__` says.
    pub threads: Option<u32>,
    /// It takes the fields of the argument struct one by one.
    pub is_apart: bool,
}

impl Replacement {
    /// Reads a file. Which kernel it replaces is seen from the kernels that it has.
    ///
    /// # Errors
    /// A file that cannot be read, or has not all of the kernel's exports; arguments other than the
    /// kernel's.
    pub fn read(path: &Path) -> Result<Self> {
        let file = CudaFile::read(path)?;
        let kernel = replaced_by(&file)?;
        let functions = kernel.exports.iter().map(|export| replaced(&file, kernel, export.name));
        let functions = functions.collect::<Result<_>>()?;
        let waits = file.own_texts().any(|text| text.contains("grid_dependency_wait"));
        Ok(Self { kernel, functions, file, waits })
    }

    /// For messages.
    pub fn path(&self) -> String {
        self.file.path.display().to_string()
    }
}

/// The built-in kernel one of whose exports the file has.
fn replaced_by(file: &CudaFile) -> Result<&'static Kernel> {
    let has = |kernel: &&Kernel| kernel.exports.iter().any(|export| file.has(export.name));
    let mut found = KERNELS.iter().filter(has);
    let path = file.path.display();
    match (found.next(), found.next()) {
        (Some(kernel), None) => Ok(kernel),
        (Some(one), Some(other)) => Err(Error::failed(format!(
            "{path} has kernels in place of {} and of {}: each is to have a file of its own",
            one.name, other.name
        ))),
        (None, _) => {
            let exports = || KERNELS.iter().flat_map(|kernel| kernel.exports);
            let meant = file
                .kernels
                .iter()
                .map(|kernel| did_you_mean(&kernel.name, exports().map(|export| export.name)));
            let meant = meant.into_iter().find(|meant| !meant.is_empty()).unwrap_or_default();
            let names: Vec<_> = file.kernels.iter().map(|kernel| &*kernel.name).collect();
            Err(Error::failed(format!(
                "{path} has {}, which is no built-in kernel's name, as rms_norm_bf16 is, that it could take \
                 the place of{meant}; `kernels list` shows them, `kernels run` runs any kernel",
                names.join(", ")
            )))
        }
    }
}

/// What the file has in place of `name`, an export of `kernel`.
fn replaced(file: &CudaFile, kernel: &'static Kernel, name: &str) -> Result<ReplacedExport> {
    let path = file.path.display();
    let Some(declared) = file.kernels.iter().find(|declared| declared.name == name) else {
        return Err(Error::failed(format!(
            "{path} has no {name}, which the built-in {} has",
            kernel.name
        )));
    };
    let at = format!("{}: {name}", declared.place);
    let (given, is_apart) = arguments(file, declared);
    let given = given.ok_or_else(|| {
        let c_type = &declared.parameters[0].c_type;
        Error::failed(format!(
            "{at}: struct {c_type} is not in this file: its fields are to be seen"
        ))
    })?;
    if let Some((ours, theirs)) = first_difference(kernel.fields, &given) {
        return Err(Error::failed(format!(
            "{at} takes {theirs} where the built-in kernel takes {ours}: the host fills the same \
             arguments for both"
        )));
    }
    let threads = match &declared.bounds {
        None => None,
        Some(bounds) => Some(file.threads(declared).ok_or_else(|| {
            Error::failed(format!(
                "{at}: how many threads __launch_bounds__({bounds}) are is to be seen: write the number"
            ))
        })?),
    };
    Ok(ReplacedExport { threads, is_apart })
}

/// What it takes: its parameters, or the fields of the one struct that it has; none where that is not here.
fn arguments(file: &CudaFile, declared: &Declared) -> (Option<Vec<Parameter>>, bool) {
    match &*declared.parameters {
        [Parameter { c_type, is_pointer: false, .. }] if !is_number(c_type) => {
            (file.fields_of(c_type), false)
        }
        parameters => (Some(parameters.to_vec()), true),
    }
}

const WHOLE: [&str; 6] = ["uint32_t", "int32_t", "unsigned int", "unsigned", "uint", "int"];

fn is_number(c_type: &str) -> bool {
    WHOLE.contains(&c_type) || c_type == "float"
}

/// The first place where what is taken differs from the fields of ours, in words. The last of ours, where it
/// is the executor's own, may be missing.
fn first_difference(ours: &'static [Field], theirs: &[Parameter]) -> Option<(String, String)> {
    let places = 0..ours.len().max(theirs.len());
    let name = |item: Option<String>| item.map_or("nothing".to_owned(), |item| format!("`{item}`"));
    places.map(|place| (ours.get(place), theirs.get(place))).find_map(|pair| match pair {
        (Some(ours), Some(theirs)) if fits(ours, theirs) => None,
        (Some(Field { c_type: "Trace", .. }), None) => None,
        (ours, theirs) => Some((
            name(ours.map(|field| format!("{} {}", field.c_type, field.name))),
            name(theirs.map(Parameter::declaration)),
        )),
    })
}

/// What a pointer points to is the author's to know: a type has many names.
fn fits(ours: &Field, theirs: &Parameter) -> bool {
    let is_pointer = ours.c_type.ends_with('*');
    ours.name == theirs.name
        && is_pointer == theirs.is_pointer
        && match is_pointer {
            true => ours.written == theirs.is_written,
            false if WHOLE.contains(&ours.c_type) => WHOLE.contains(&&*theirs.c_type),
            false => ours.c_type == theirs.c_type,
        }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Replacement> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.cu");
        fs::write(&path, text).unwrap();
        Replacement::read(&path)
    }

    /// One function of `embed`, as ordinary CUDA.
    fn embed(bounds: &str, suffix: &str, first: &str) -> String {
        format!(
            "extern \"C\" __global__ void {bounds} embed_{suffix}({first}, const half* table, float *x, \
             unsigned tokens, unsigned width, unsigned rows, unsigned first_id) {{}}\n"
        )
    }

    #[test]
    fn ordinary_cuda_takes_a_kernels_place() {
        let text = "constexpr int kThreads = 64;\n".to_owned()
            + &embed("__launch_bounds__(kThreads)", "bf16", "const uint32_t* ids")
            + &embed("", "f16", "const unsigned* __restrict__ ids");
        let read = read(&text).unwrap();
        assert_eq!((read.kernel.name, read.waits), ("embed", false));
        let expected = [Some(64), None].map(|threads| ReplacedExport { threads, is_apart: true });
        assert_eq!(read.functions, expected);
    }

    #[test]
    fn every_built_in_kernel_takes_its_own_place() {
        for kernel in KERNELS {
            let read = read(kernel.source).unwrap();
            assert_eq!(read.kernel.name, kernel.name);
            for (export, function) in kernel.exports.iter().zip(&read.functions) {
                let own = ReplacedExport { threads: Some(export.threads), is_apart: false };
                assert_eq!(*function, own, "{}", export.name);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let both = |first: &str, bounds: &str| {
            embed(bounds, "bf16", first) + &embed("", "f16", "const uint32_t* ids")
        };
        for (text, told) in [
            (both("const uint32_t* tokens", ""), "takes `const uint32_t* tokens` where"),
            (
                both("uint32_t* ids", ""),
                "takes `uint32_t* ids` where the built-in kernel takes `const",
            ),
            (both("const uint32_t* ids, int more", ""), "takes `int more` where"),
            (both("const uint32_t* ids", "__launch_bounds__(N)"), "__launch_bounds__(N) are"),
            (
                embed("", "bf16", "const uint32_t* ids"),
                "has no embed_f16, which the built-in embed",
            ),
            (embed("", "bf17", "const uint32_t* ids"), "did you mean embed_bf16?"),
            (
                "__global__ void embed_bf16(Embed args) {}".into(),
                "struct Embed is not in this file",
            ),
            (
                both("const uint32_t* ids", "") + "__global__ void sample(float* x) {}",
                "in place of embed and of sample",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}\n{error}");
        }
    }
}
