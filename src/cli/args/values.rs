//! Values of arguments, from their text.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{Device, KernelFile, Seed};
use crate::kernel::{KERNELS, Kernel};

pub fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(number)) => Ok(Device::Cuda(number)),
            _ => Err("a device is auto, cpu, cuda or cuda:N".to_owned()),
        },
    }
}

/// The number of a GPU.
pub fn gpu(text: &str) -> Result<u32, String> {
    match device(text) {
        Ok(Device::Cuda(ordinal)) => Ok(ordinal),
        _ => Err("kernels run on a GPU: cuda or cuda:N".to_owned()),
    }
}

/// The name of a built-in kernel, as shells complete it.
pub fn kernel_name() -> impl TypedValueParser<Value = &'static Kernel> {
    let names = PossibleValuesParser::new(KERNELS.iter().map(|kernel| kernel.name));
    names.map(|name| Kernel::find(&name).expect("one of them"))
}

pub fn kernel(text: &str) -> Result<KernelFile, String> {
    let parts = text.split_once('=').map(|(name, file)| (name.to_owned(), file.into()));
    let (name, file) = parts.ok_or("NAME=FILE.cu is needed, as in rms_norm=mine.cu")?;
    Ok(KernelFile { name, file })
}

/// A number that other programs give as 0, -1 or -2 for "as usual".
pub fn unlimited(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(number) => Ok(usize::try_from(number).unwrap_or(usize::MAX)),
        Err(error) => Err(error.to_string()),
    }
}

/// A number of which 0, and what others give for it, is no limit.
pub fn off_at_zero(text: &str) -> Result<usize, String> {
    text.parse::<i64>()
        .map(|number| usize::try_from(number).unwrap_or(0))
        .map_err(|e| e.to_string())
}

/// A temperature; none is below 0, which others take as 0.
pub fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number < 0.0 => {
            Err("it is 0 or above; 0 always takes the most probable token".to_owned())
        }
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

/// A seed, or -1 for a random one.
pub fn seed(text: &str) -> Result<Seed, String> {
    match text.parse() {
        Ok(seed) => Ok(Seed::Given(seed)),
        Err(_) if text == "-1" => Ok(Seed::Random),
        Err(error) => Err(format!("{error}; a number from 0 on is needed, or -1 for a random one")),
    }
}

/// A text to stop at.
pub fn stop_text(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an empty text would end every answer at once: leave the option out".to_owned()),
        text => Ok(text.to_owned()),
    }
}

pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err(AT_LEAST_1.to_owned()),
        Ok(number) => Ok(number),
        Err(_) if text.parse::<i64>().is_ok() => Err(AT_LEAST_1.to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}

/// A number of tokens: whatever is made of it has room.
pub fn tokens(text: &str) -> Result<usize, String> {
    at_most(MOST_TOKENS, text.parse::<usize>().map_err(|error| error.to_string())?)
}

/// As [`tokens`], and at least one.
pub fn some_tokens(text: &str) -> Result<usize, String> {
    at_most(MOST_TOKENS, positive(text)?)
}

/// Sixteen times the longest context that a model of the family has.
const MOST_TOKENS: usize = 1 << 21;

/// How often something is done, and what has to be waited for.
pub fn repetitions(text: &str) -> Result<usize, String> {
    at_most(1_000_000, positive(text)?)
}

/// Of the CPU's: more than any machine has cores.
pub fn threads(text: &str) -> Result<usize, String> {
    at_most(4096, positive(text)?)
}

fn at_most(most: usize, number: usize) -> Result<usize, String> {
    if number <= most { Ok(number) } else { Err(format!("{most} is the most")) }
}

const AT_LEAST_1: &str = "at least 1 is needed; leave the option out for what is usual";

pub fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("ID=BIAS is needed, as in 128009=-2.5")?;
    let id = id.trim().parse().map_err(|_| format!("{id:?} is not a token id"))?;
    match bias.trim().parse::<f32>() {
        Ok(bias) if !bias.is_nan() => Ok((id, bias)),
        _ => Err(format!("{bias:?} is not a number")),
    }
}
