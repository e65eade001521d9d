//! Values of arguments, from their text.

use super::{Device, KernelFile};

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

pub fn kernel(text: &str) -> Result<KernelFile, String> {
    let parts = text.split_once('=').map(|(name, file)| (name.to_owned(), file.into()));
    let (name, file) = parts.ok_or("NAME=FILE.cu is needed, as in rms_norm=mine.cu")?;
    Ok(KernelFile { name, file })
}

pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 is needed".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

pub fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("ID=BIAS is needed, as in 128009=-2.5")?;
    let id = id.trim().parse().map_err(|_| format!("{id:?} is not a token id"))?;
    match bias.trim().parse::<f32>() {
        Ok(bias) if !bias.is_nan() => Ok((id, bias)),
        _ => Err(format!("{bias:?} is not a number")),
    }
}
