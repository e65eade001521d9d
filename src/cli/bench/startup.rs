//! `chaski bench --startup`: from nothing to the second token.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::common_fields;
use crate::bench::{Row, Table};
use crate::cli::args::ModelArgs;
use crate::cli::observer::observer;
use crate::cli::open::{note_remarks, options, source};
use crate::cli::output::{note, print};
use crate::engine::{Event, Model, Observer, Options};
use crate::error::Result;
use crate::executor::Startup;
use crate::model::Logits;
use crate::team::Team;

/// What `ms` and `from ms` are.
const EXPLAINED: &str = "all on one clock, in which phases may overlap: the tokenizer is read beside \
    files and device, weights may still be copied to a GPU while the first token begins, and a phase \
    without a beginning is part of others";

/// Starts a model once, as it is in use, and prints when each phase began and how long it took; what took no
/// time has no row.
///
/// # Errors
/// Whatever keeps the model from being loaded, or from giving a token.
pub(super) fn startup(args: &ModelArgs, table: &mut Table) -> Result<()> {
    let clock = Clock::default();
    let source = source(args)?;
    let found = clock.now();
    let mut model = Model::of(source, Options { text: true, ..options(args)? })?;
    note_remarks(&model);
    let opening = model.opening;
    // Where there is none, nobody waits for one.
    let tokenizer = model.tokenizer().is_ok().then(|| model.tokenizer_time());
    let qualifying = clock.now();
    model.qualify(&observer())?;
    let planning = clock.now();
    // The CPU's references are what kernels are checked against.
    let qualify = model.qualified.as_ref().map_or(Duration::ZERO, |_| planning - qualifying);
    let mut team = model.load(&clock.observer())?.team;
    let loaded = clock.now();
    let mut take = || {
        let begun = clock.now();
        team.forward_and_finish(&[0], Logits::Last)?;
        Ok((begun, clock.now() - begun))
    };
    let [first, second] = [take()?, take()?];
    let end = second.0 + second.1;
    let Startup { allocate, weights, modules, graphs } = slowest(&mut team)?;
    let planned = clock.of("planned").unwrap_or(planning);
    let copying = clock.of("weights").unwrap_or(planned) + allocate;
    let from = |begun: Duration, took: Duration| (Some(begun), took);
    let phases = [
        ("files", from(Duration::ZERO, found + opening.files)),
        ("device", from(found + opening.files, opening.devices)),
        ("tokenizer", from(found, tokenizer.unwrap_or_default())),
        ("qualify", from(qualifying, qualify)),
        ("plan", from(planning, planned - planning)),
        ("allocate", from(planned, allocate)),
        ("copy", from(copying, weights)),
        ("load", from(planned, loaded - planned)),
        ("first token", from(first.0, first.1)),
        ("second token", from(second.0, second.1)),
        ("module load", (None, modules)),
        ("graph capture", (None, graphs)),
        ("total", from(Duration::ZERO, end)),
    ];
    note(EXPLAINED);
    let common = common_fields(&model, None)?;
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    for (phase, (begun, took)) in phases.into_iter().filter(|(_, (_, took))| *took >= LEAST) {
        let mut row = Row::new();
        row.insert("phase".to_owned(), json!(phase));
        row.insert("from_ms".to_owned(), json!(begun.map(ms)));
        row.insert("ms".to_owned(), json!(ms(took)));
        row.extend(common.clone());
        print(&table.row(&row))?;
    }
    Ok(())
}

/// What is shown of a time at least.
const LEAST: Duration = Duration::from_micros(1);

/// Runs from the beginning, and keeps when something happened first.
#[derive(Clone)]
struct Clock {
    begun: Instant,
    seen: Arc<Mutex<Vec<(&'static str, Duration)>>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { begun: Instant::now(), seen: Arc::default() }
    }
}

impl Clock {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// When this happened.
    fn of(&self, what: &str) -> Option<Duration> {
        let seen = self.seen.lock().expect("no panics in it");
        seen.iter().find(|(name, _)| *name == what).map(|(_, at)| *at)
    }

    /// Notes when what it is told of happens, and says it as usual.
    fn observer(&self) -> Observer {
        let (clock, usual) = (self.clone(), observer());
        Arc::new(move |event| {
            let name = match &event {
                Event::Planned { .. } => Some("planned"),
                Event::WeightsBegin(_) => Some("weights"),
                _ => None,
            };
            if let Some(name) = name {
                clock.seen.lock().expect("no panics in it").push((name, clock.now()));
            }
            usual(event)
        })
    }
}

/// What getting ready has taken so far, of the rank that took longest with each.
fn slowest(team: &mut Team) -> Result<Startup> {
    let times = team.each(|rank| Ok(rank.device_mut().startup()))?;
    Ok(times.into_iter().fold(Startup::default(), |a, b| Startup {
        allocate: a.allocate.max(b.allocate),
        weights: a.weights.max(b.weights),
        modules: a.modules.max(b.modules),
        graphs: a.graphs.max(b.graphs),
    }))
}
