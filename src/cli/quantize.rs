//! `chaski quantize`

use super::args::QuantizeArgs;
use super::file::Output;
use super::open::{not_interrupted, synthetic};
use super::output::{note, progress};
use super::pull;
use crate::config::Config;
use crate::encoding::Encoding;
use crate::engine::weights;
use crate::error::{Result, binary};
use crate::export::{GgufExport, file_type};
use crate::quantise::Quantisation;

pub fn run(args: &QuantizeArgs) -> Result<()> {
    let source = synthetic(pull::find(&args.model, args.offline)?, &args.synthetic)?;
    let config = Config::load(&source)?;
    let to = Quantisation::from(args.kind);
    let (plain, remarks) = weights(&source, &config, None)?;
    remarks.iter().for_each(note);
    let before: usize = plain.tensors().map(|(_, tensor)| tensor.bytes).sum();
    let checkpoint = plain.quantised(to)?;
    let number = file_type(Encoding::Blocks(to.blocks())).expect("llama.cpp has all that we make");
    let export = GgufExport::new(&source, &config, &checkpoint, number)?;
    let mut output = Output::create(&args.out)?;
    let bar = progress(export.tensor_bytes() as u64, "weights");
    checkpoint.read_ahead();
    export.write(&mut |piece| {
        not_interrupted()?;
        bar.inc(piece.len() as u64);
        output.write(piece)
    })?;
    bar.finish_and_clear();
    output.finish()?;
    let (path, after) = (args.out.display(), binary(export.tensor_bytes()));
    note(format_args!(
        "{path}: {}, {after} of weights, before {}",
        checkpoint.types(),
        binary(before)
    ));
    Ok(())
}
