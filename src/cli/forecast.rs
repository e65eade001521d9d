//! The part of `chaski inspect` that looks ahead: the model split over GPUs that need not be here.

use serde_json::{Value, json};

use super::args::InspectArgs;
use super::output::with_flags;
use crate::bench::{DEPTH, Forecast, H100};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::engine::Split;
use crate::error::{Result, binary};
use crate::model::{Limit, PlanRequest};
use crate::op::Tuning;

/// Memory of a GPU unless `--memory` says otherwise.
const MEMORY_BYTES: usize = 80 << 30;

/// Blocks that attention spreads over on an H100, for the scratch it takes.
const ATTENTION_BLOCKS: usize = 2 * 132;

/// What is predicted of 1, 2, 4 and 8 ranks, and of as many as were asked for.
pub struct Outlook {
    memory_bytes: usize,
    /// By ranks and stages.
    forecasts: Vec<((usize, usize), Result<Forecast>)>,
}

impl Outlook {
    /// None, if the arguments ask for none.
    ///
    /// # Errors
    /// When the split that was asked for cannot be.
    pub fn new(
        args: &InspectArgs,
        split: &Split,
        config: &Config,
        checkpoint: &Checkpoint,
    ) -> Result<Option<Self>> {
        let dims = split.largest_share(config)?;
        let asked = (dims.world(), dims.stage.parts);
        if asked == (1, 1) && args.memory.is_none() {
            return Ok(None);
        }
        let memory_bytes = args.memory.unwrap_or(MEMORY_BYTES);
        let request = PlanRequest {
            context: args.model.context,
            chunk: args.model.prefill_chunk.unwrap_or(Tuning::DEFAULT.chunk),
            ..PlanRequest::default()
        };
        let request = request.on_gpu(checkpoint.encoding(), ATTENTION_BLOCKS);
        let forecast =
            |split| Forecast::new(config, checkpoint, split, (request, memory_bytes), &H100);
        forecast(asked)?;
        let mut splits = vec![(1, 1), (2, 1), (4, 1), (8, 1), asked];
        splits.sort_unstable();
        splits.dedup();
        let forecasts = splits.into_iter().map(|split| (split, forecast(split))).collect();
        Ok(Some(Self { memory_bytes, forecasts }))
    }

    pub fn json(&self) -> Value {
        let split = |((world, stages), forecast): &(_, Result<Forecast>)| match forecast {
            Err(error) => {
                json!({ "ranks": world, "pipeline_stages": stages, "error": with_flags(error) })
            }
            Ok(forecast) => json!({
                "ranks": world,
                "pipeline_stages": stages,
                "weight_bytes_per_rank": forecast.weight_bytes,
                "kv_bytes_per_token_per_rank": forecast.cache_bytes_per_token,
                "context": forecast.plan.as_ref().ok().map(|plan| plan.sizes.context),
                "does_not_fit": forecast.plan.as_ref().err().map(with_flags),
                "all_reduces_per_token": forecast.all_reduces,
                "link_bytes_per_token_per_rank": forecast.link_bytes,
                "predicted_seconds_per_token": forecast.seconds[0],
                "predicted_seconds_per_token_nccl": forecast.seconds[1],
                "predicted_seconds_per_token_at_depth": forecast.seconds[2],
            }),
        };
        json!({
            "machine": H100.name,
            "memory_bytes": self.memory_bytes,
            "depth": DEPTH,
            "splits": self.forecasts.iter().map(split).collect::<Vec<_>>(),
            "assumptions": assumptions(),
        })
    }

    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            String::new(),
            format!(
                "PREDICTION, not measured: split over GPUs ({}) of {} each, f16 KV cache",
                H100.name,
                binary(self.memory_bytes)
            ),
            format!(
                "  {:>6}{:>14}{:>13}{:>20}{:>13}{:>11}{:>11}{:>11}{:>11}",
                "ranks",
                "weights/rank",
                "KV/token",
                "context that fits",
                "sent/token",
                "ms/token",
                "tokens/s",
                "by NCCL",
                format!("at {DEPTH}"),
            ),
        ];
        for ((world, _), forecast) in &self.forecasts {
            lines.push(match forecast {
                Ok(forecast) => row(forecast),
                Err(error) => format!("  {world:>6}  {}", with_flags(error)),
            });
        }
        lines.push("  assuming".to_owned());
        lines.extend(assumptions().into_iter().map(|assumption| format!("  - {assumption}")));
        lines
    }
}

fn row(forecast: &Forecast) -> String {
    let context = match &forecast.plan {
        Ok(plan) if plan.limit == Limit::Model => format!("{}, all", plan.sizes.context),
        Ok(plan) => plan.sizes.context.to_string(),
        Err(_) => "does not fit".to_owned(),
    };
    let ranks = match (forecast.stages, forecast.parts) {
        (1, parts) => parts.to_string(),
        (stages, parts) => format!("{stages} x {parts}"),
    };
    let [ours, nccl, deep] = forecast.seconds;
    format!(
        "  {ranks:>6}{:>14}{:>13}{context:>20}{:>13}{:>11.2}{:>11.1}{:>11.1}{:>11.1}",
        binary(forecast.weight_bytes),
        binary(forecast.cache_bytes_per_token),
        binary(forecast.link_bytes as usize),
        ours * 1e3,
        1.0 / ours,
        1.0 / nccl,
        1.0 / deep,
    )
}

fn assumptions() -> Vec<String> {
    let us = |seconds: f64| seconds * 1e6;
    vec![
        format!(
            "weights and KV cache are read at {:.0}% of {:.2} TB/s, the target of our kernels",
            H100.attained * 100.0,
            H100.memory_bandwidth / 1e12
        ),
        format!(
            "{:.0} us from one kernel to the next in a graph; {:.0} us of attention a layer beyond its \
             bytes; {:.0} us a token for embedding, sampling and the way to the host",
            us(H100.gap),
            us(H100.attention),
            us(H100.ends)
        ),
        format!(
            "{:.0} us for an all-reduce of one token over peer memory (published: 4 to 8), {:.0} us by NCCL \
             (17 to 20)",
            us(H100.all_reduce),
            us(H100.nccl)
        ),
        format!(
            "each rank sends its f32 partial sums to every other at {:.0} GB/s (NVLink 4, one direction)",
            H100.link_bandwidth / 1e9
        ),
        format!(
            "stages (2 x 8: two of 8 ranks each) are a machine each, at work one after the other: {:.0} us \
             by NCCL to the next (31 to 34 are published for 8 KB) and back to the first, {:.0} GB/s a rank",
            us(H100.pass),
            H100.network_bandwidth / 1e9
        ),
    ]
}
