//! What a kernel is given, as a command line says it: `x=f32[64,64]:normal`, `n=4096`,
//! `w=model.safetensors:w`.

use std::path::Path;

use safetensors::Dtype;

use super::tensor::{DTYPES, TensorData, bytes_of, is_float, read_tensors, size_of_dtype};
use crate::error::{Error, Result};
use crate::kernel::Parameter;
use crate::random::random;

/// A named argument.
#[derive(Debug, Clone)]
pub struct Argument {
    pub name: String,
    pub given: Given,
}

#[derive(Debug, Clone)]
pub enum Given {
    /// An array, and whether anything was said about what is in it.
    Array { tensor: TensorData, is_filled: bool },
    /// A number; its type is the parameter's, unless given.
    Number { text: String, dtype: Option<Dtype> },
}

/// What an array holds where nothing is said: NaN in every float type, -1 as an index.
const UNSET: u8 = 0xff;

impl Argument {
    /// # Errors
    /// What is not understood; a file that cannot be read.
    pub fn parse(text: &str, seed: u64) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format!("`arg` {text}: {why}"));
        let example =
            "an array is NAME=f32[64,64]:normal, a number NAME=4096, a file NAME=x.safetensors";
        let (name, value) = text.split_once('=').ok_or_else(|| wrong(example))?;
        let dtype_of =
            |name: &str| DTYPES.iter().find(|(known, _)| *known == name).map(|(_, d)| *d);
        let name = name.trim().to_owned();
        let given = if let Some((file, tensor)) = file_and_tensor(value) {
            let all = read_tensors(Path::new(file))?;
            let wanted = tensor.unwrap_or(&name);
            let names: Vec<_> = all.keys().cloned().collect();
            let tensor = all.get(wanted).cloned().ok_or_else(|| {
                wrong(&format!("{file} has no tensor {wanted}: it has {}", names.join(", ")))
            })?;
            Given::Array { tensor, is_filled: true }
        } else if let Some((kind, rest)) = value.split_once('[') {
            let (dims, fill) = rest.split_once(']').ok_or_else(|| wrong("no ] after the sizes"))?;
            let types = || DTYPES.map(|(name, _)| name).join(", ");
            let dtype = dtype_of(kind)
                .ok_or_else(|| wrong(&format!("no type {kind}: there are {}", types())))?;
            let shape = dims.split([',', 'x']).map(|size| size.trim().parse().ok());
            let shape: Option<Vec<usize>> = shape.collect();
            let shape = shape.filter(|shape| room(shape, dtype).is_some());
            let shape = shape
                .ok_or_else(|| wrong("its sizes are whole numbers, and 4 GiB in all at most"))?;
            let fill = fill.strip_prefix(':').filter(|fill| !fill.is_empty());
            let bytes =
                filled(dtype, &shape, fill, mixed(seed, &name)).map_err(|why| wrong(&why))?;
            Given::Array { tensor: TensorData { dtype, shape, bytes }, is_filled: fill.is_some() }
        } else {
            let (dtype, number) = match value.split_once(':') {
                Some((kind, number)) => {
                    (Some(dtype_of(kind).ok_or_else(|| wrong(example))?), number)
                }
                None => (None, value),
            };
            if number.parse::<f64>().is_err() && !["true", "false"].contains(&number) {
                return Err(wrong(example));
            }
            Given::Number { text: number.to_owned(), dtype }
        };
        Ok(Self { name, given })
    }

    /// The bytes of a number for a parameter.
    ///
    /// # Errors
    /// An array for a number; a number that the type does not have, or a type that is not known.
    pub fn number(&self, parameter: &Parameter) -> Result<Vec<u8>> {
        let Parameter { name, c_type, .. } = parameter;
        let Given::Number { text, dtype } = &self.given else {
            return Err(Error::usage(format!(
                "`arg` {name}: the parameter is one {c_type}, no array"
            )));
        };
        let dtype = dtype.or_else(|| dtype_of_c(c_type)).ok_or_else(|| {
            Error::usage(format!(
                "`arg` {name}: what a {c_type} is, is not known: say it, {name}=i32:{text}"
            ))
        })?;
        let misfit = || Error::usage(format!("`arg` {name}={text}: no {c_type}"));
        let number = match text.as_str() {
            "true" => 1.0,
            "false" => 0.0,
            text => text.parse().map_err(|_| misfit())?,
        };
        if is_float(dtype) || dtype == Dtype::BOOL {
            return Ok(bytes_of(dtype, number));
        }
        // 64-bit numbers have more digits than a float.
        let whole: i128 = match text.parse() {
            Ok(whole) => whole,
            Err(_) if number.fract() == 0.0 => number as i128,
            Err(_) => return Err(misfit()),
        };
        let bytes = whole.to_le_bytes()[..size_of_dtype(dtype)].to_vec();
        let bits = 8 * bytes.len() as u32;
        let fits = match dtype {
            Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 => {
                (-(1i128 << (bits - 1))..1i128 << (bits - 1)).contains(&whole)
            }
            _ => (0..1i128 << bits).contains(&whole),
        };
        fits.then_some(bytes).ok_or_else(misfit)
    }
}

/// `x.safetensors`, or `x.safetensors:TENSOR`.
fn file_and_tensor(value: &str) -> Option<(&str, Option<&str>)> {
    let ending = ".safetensors";
    let end = value.find(ending)? + ending.len();
    match &value[end..] {
        "" => Some((value, None)),
        rest => rest.strip_prefix(':').map(|tensor| (&value[..end], Some(tensor))),
    }
}

/// Bytes of an array, unless they are too many.
fn room(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size))?;
    count.checked_mul(size_of_dtype(dtype)).filter(|bytes| (1..=1 << 32).contains(bytes))
}

/// A seed for each name.
fn mixed(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The contents that a word asks for: zeros, ones, iota, normal, uniform, unset, or a number; with numbers
/// uniform(0,10) and normal(0,0.02).
fn filled(
    dtype: Dtype,
    shape: &[usize],
    fill: Option<&str>,
    seed: u64,
) -> std::result::Result<Vec<u8>, String> {
    let count: usize = shape.iter().product();
    let Some(fill) = fill else { return Ok(vec![UNSET; count * size_of_dtype(dtype)]) };
    let (word, numbers) = match fill.split_once('(') {
        Some((word, rest)) => (word, rest.strip_suffix(')').ok_or("no ) at its end")?),
        None => (fill, ""),
    };
    let numbers = numbers.split(',').map(str::trim).filter(|number| !number.is_empty());
    let numbers =
        numbers.map(|number| number.parse::<f64>().map_err(|_| format!("{number} is no number")));
    let numbers: Vec<f64> = numbers.collect::<std::result::Result<_, _>>()?;
    let pair = |usual: (f64, f64)| match numbers[..] {
        [] => Ok(usual),
        [a, b] => Ok((a, b)),
        _ => Err(format!("{word} takes two numbers")),
    };
    let unit = |at: u64| (random(seed, at) >> 11) as f64 / (1u64 << 53) as f64; // [0, 1)
    let value: Box<dyn Fn(u64) -> f64> = match word {
        "unset" => return Ok(vec![UNSET; count * size_of_dtype(dtype)]),
        "zeros" => Box::new(|_| 0.0),
        "ones" => Box::new(|_| 1.0),
        "iota" => Box::new(|at| at as f64),
        "uniform" => {
            let usual = if is_float(dtype) { (0.0, 1.0) } else { (0.0, 100.0) };
            let (from, to) = pair(usual)?;
            let whole = !is_float(dtype);
            Box::new(move |at| {
                let v = from + (to - from) * unit(at);
                if whole { v.floor() } else { v }
            })
        }
        "normal" if is_float(dtype) => {
            let (mean, deviation) = pair((0.0, 1.0))?;
            Box::new(move |at| {
                let radius = (-2.0 * (1.0 - unit(2 * at)).ln()).sqrt(); // Box and Muller
                mean + deviation * radius * (std::f64::consts::TAU * unit(2 * at + 1)).cos()
            })
        }
        "normal" => return Err("normal is for floats: write uniform(0,10)".into()),
        number => {
            let value: f64 = number.parse().map_err(|_| {
                format!("no contents {fill}: there are zeros, ones, iota, uniform, normal, unset and numbers")
            })?;
            Box::new(move |_| value)
        }
    };
    Ok((0..count as u64).flat_map(|at| bytes_of(dtype, value(at))).collect())
}

/// Of C's and CUDA's names for numbers.
fn dtype_of_c(c_type: &str) -> Option<Dtype> {
    Some(match c_type {
        "float" => Dtype::F32,
        "double" => Dtype::F64,
        "half" | "__half" | "f16" => Dtype::F16,
        "__nv_bfloat16" | "nv_bfloat16" | "bf16" => Dtype::BF16,
        "int" | "int32_t" | "signed" | "signed int" => Dtype::I32,
        "unsigned" | "unsigned int" | "uint32_t" | "uint" => Dtype::U32,
        "long" | "long int" | "long long" | "long long int" | "int64_t" | "ptrdiff_t" => Dtype::I64,
        "unsigned long" | "unsigned long long" | "uint64_t" | "size_t" => Dtype::U64,
        "short" | "short int" | "int16_t" => Dtype::I16,
        "unsigned short" | "uint16_t" | "ushort" => Dtype::U16,
        "char" | "signed char" | "int8_t" => Dtype::I8,
        "unsigned char" | "uint8_t" | "uchar" => Dtype::U8,
        "bool" => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(text: &str) -> TensorData {
        match Argument::parse(text, 7).unwrap().given {
            Given::Array { tensor, .. } => tensor,
            Given::Number { .. } => panic!("{text} is an array"),
        }
    }

    fn number(text: &str, c_type: &str) -> Result<Vec<u8>> {
        let (name, c_type) = ("n".to_owned(), c_type.to_owned());
        let parameter = Parameter { name, c_type, is_pointer: false, is_written: false };
        Argument::parse(text, 7)?.number(&parameter)
    }

    #[test]
    fn arrays_hold_what_is_said() {
        let values = |text| -> Vec<f64> { (0..4).map(|i| array(text).value(i)).collect() };
        assert_eq!(values("x=f32[2,2]:iota"), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(values("x=i8[4]:-3"), [-3.0; 4]);
        assert_eq!(values("x=bf16[2x2]:ones"), [1.0; 4]);
        assert!(values("x=f16[4]").iter().all(|v| v.is_nan()));
        assert_eq!(values("x=i32[4]:unset"), [-1.0; 4]);
        let x = array("x=f64[100,100]:normal(3,2)");
        let mean = (0..x.count()).map(|i| x.value(i)).sum::<f64>() / 1e4;
        let square = (0..x.count()).map(|i| (x.value(i) - mean).powi(2)).sum::<f64>() / 1e4;
        assert!((mean - 3.0).abs() < 0.1 && (square.sqrt() - 2.0).abs() < 0.1, "{mean} {square}");
        let ids = array("ids=u32[1000]:uniform(5,8)");
        assert!(
            (0..1000).all(|i| (5.0..8.0).contains(&ids.value(i)) && ids.value(i).fract() == 0.0)
        );
        assert_ne!(array("a=f32[8]:uniform"), array("b=f32[8]:uniform"));
    }

    #[test]
    fn numbers_are_of_the_parameters_type() {
        assert_eq!(number("n=4096", "int").unwrap(), 4096i32.to_le_bytes());
        assert_eq!(number("n=18446744073709551615", "size_t").unwrap(), [255; 8]);
        assert_eq!(number("n=1e3", "unsigned").unwrap(), 1000u32.to_le_bytes());
        assert_eq!(number("n=0.5", "float").unwrap(), 0.5f32.to_le_bytes());
        assert_eq!(number("n=f16:2", "T").unwrap(), [0, 0x40]);
        assert_eq!(number("n=true", "bool").unwrap(), [1]);
        for (text, c_type) in
            [("n=0.5", "int"), ("n=-1", "unsigned"), ("n=300", "uint8_t"), ("n=1", "T")]
        {
            assert!(number(text, c_type).is_err(), "{text} {c_type}");
        }
        for text in [
            "n",
            "n=",
            "n=f32",
            "n=f33[4]",
            "n=f32[4",
            "n=f32[-1]",
            "n=f32[4]:lots",
            "n=i32[4]:normal",
        ] {
            assert!(Argument::parse(text, 0).is_err(), "{text}");
        }
    }
}
