//! From a model that is opened to one in memory.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{Event, Model, Observer, devices, join, peers, qualify};
use crate::comm::{ProcessLink, SingleRank};
use crate::error::Result;
use crate::executor::cuda::{Cuda, Gpu};
use crate::executor::{Blueprint, Executor, Hardware};
use crate::model::Plan;
use crate::rank::{Rank, RankSpec};
use crate::session::Session;
use crate::team::{self, Team};

/// A model in memory, or on its way there.
pub struct Engine {
    /// Its ranks.
    pub team: Team,
    pub plan: Plan,
    pub load_time: LoadTime,
}

impl Engine {
    /// What answers prompts.
    pub fn session(self) -> Session {
        Session::new(self.team)
    }
}

/// How long loading takes.
#[derive(Debug, Clone)]
pub struct LoadTime {
    /// From the first look at the files to readiness for a prompt.
    pub ready: Duration,
    /// Until the last weight was there, which may be later; set when it is.
    last_weight: Arc<OnceLock<Duration>>,
}

impl LoadTime {
    /// From the first look at the files to the last weight, once a prompt has been taken.
    pub fn whole(&self) -> Duration {
        self.last_weight.get().copied().unwrap_or_default().max(self.ready)
    }
}

impl Model {
    /// Lays out and allocates the state, and brings the weights to where they are read. What one GPU copies
    /// may still be on its way afterwards. Of several processes all but the first are to [`Team::serve`]
    /// it.
    ///
    /// # Errors
    /// What does not fit, or cannot be loaded; what `observer` returns.
    pub fn load(&self, observer: &Observer) -> Result<Engine> {
        let start = Instant::now();
        let place = self.options.split.process.as_ref();
        let mut hardware = self.hardware.clone();
        if self.qualified.is_none() {
            let model = (&self.config, &self.dims, &self.checkpoint);
            qualify::qualify(&self.options, model, &mut hardware, observer)
                .inspect_err(|why| join::cannot_meet(place, why))?;
        }
        let met = self.meet(&hardware, observer);
        let (plan, link) = met.inspect_err(|why| join::cannot_meet(place, why))?;
        self.checkpoint.read_ahead();
        let last_weight = Arc::new(OnceLock::new());
        let since = start - self.opening.files - self.opening.devices;
        let team = match (&hardware[..], &link) {
            ([Hardware::Gpu(gpu)], None) => {
                self.begin(gpu, &plan, observer, (since, &last_weight))?
            }
            _ => self.team(&plan, &hardware, link, observer)?,
        };
        Ok(Engine { team, plan, load_time: LoadTime { ready: since.elapsed(), last_weight } })
    }

    /// The plan, with which weights are read ahead, for who lays them out otherwise than [`Self::load`].
    ///
    /// # Errors
    /// What does not fit; what `observer` returns.
    pub fn ready(&self, observer: &Observer) -> Result<Plan> {
        let plan = self.plan()?;
        let devices = devices(&self.hardware);
        observer(Event::Planned { model: self, plan: &plan, devices: &devices })?;
        self.checkpoint.read_ahead();
        Ok(plan)
    }

    /// The plan, when this process has joined the others of the run, if it is one of several: they have
    /// room for as much.
    fn meet(
        &self,
        hardware: &[Hardware],
        observer: &Observer,
    ) -> Result<(Plan, Option<Arc<ProcessLink>>)> {
        let mut plan = self.plan_on(hardware, self.options.context)?;
        let Some(place) = &self.options.split.process else {
            let devices = devices(hardware);
            observer(Event::Planned { model: self, plan: &plan, devices: &devices })?;
            return Ok((plan, None));
        };
        let link = join::meet(self, place, &plan)?;
        if link.context() < plan.sizes.context {
            plan = self.plan_on(hardware, Some(link.context()))?;
        }
        if link.is_first() {
            observer(Event::Planned { model: self, plan: &plan, devices: &link.devices() })?;
        }
        Ok((plan, Some(link)))
    }

    /// All ranks of this process, with their weights.
    fn team(
        &self,
        plan: &Plan,
        hardware: &[Hardware],
        link: Option<Arc<ProcessLink>>,
        observer: &Observer,
    ) -> Result<Team> {
        let is_first = link.as_ref().is_none_or(|link| link.is_first());
        let tell = |event| if is_first { observer(event) } else { Ok(()) };
        tell(Event::WeightsBegin((plan.weight_bytes * hardware.len()) as u64))?;
        let timeout = self.options.timeout;
        let hears = observer.clone();
        let stuck: team::Stuck = Arc::new(move |why| {
            // There is nobody to return an error to.
            let _ = hears(Event::Stuck(why));
        });
        let options = team::TeamOptions { timeout, fault: None, link, stuck };
        let on_progress = |bytes| tell(Event::Weights(bytes));
        let team = Team::new(self.rank_spec(plan), hardware, options, &on_progress);
        tell(Event::WeightsEnd)?;
        let mut team = team?;
        if !self.options.trust_kernels {
            peers::keep(&mut team, hardware, self.dims.share.parts, observer)?;
        }
        if team.leads()
            && let Some(Some(link)) = team.each(|rank| Ok(rank.device_mut().link()))?.first()
        {
            observer(Event::ProcessLink(link))?;
        }
        Ok(team)
    }

    /// A model on one GPU, to which weights may still be on their way.
    fn begin(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        observer: &Observer,
        (since, last_weight): (Instant, &Arc<OnceLock<Duration>>),
    ) -> Result<Team> {
        observer(Event::WeightsBegin(plan.weight_bytes as u64))?;
        let coming = Coming { observer: observer.clone(), since, last_weight: last_weight.clone() };
        let on_progress = Box::new(move |bytes| (coming.observer)(Event::Weights(bytes)));
        let rank = Rank::new(self.rank_spec(plan), |blueprint| {
            let comm = Arc::new(SingleRank { timeout: self.options.timeout });
            let blueprint = Blueprint { comm, ..blueprint };
            let cuda = Cuda::while_loading(gpu, &blueprint, on_progress)?;
            Ok(Executor::Cuda(Box::new(cuda)))
        });
        Ok(rank?.into())
    }

    /// The rank with the largest share.
    fn rank_spec<'a>(&'a self, plan: &'a Plan) -> RankSpec<'a> {
        let Self { config, dims, checkpoint, .. } = self;
        RankSpec { config, dims: *dims, checkpoint: checkpoint.clone(), plan }
    }
}

/// Weights come, until it is dropped.
struct Coming {
    observer: Observer,
    since: Instant,
    last_weight: Arc<OnceLock<Duration>>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        // Nobody is left who could end the loading.
        let _ = (self.observer)(Event::WeightsEnd);
        // There is one of it: nobody has set it before.
        let _ = self.last_weight.set(self.since.elapsed());
    }
}
