//! While ranks are loaded: they may hang in a call that nothing wakes, before any of them waits for
//! another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Stuck;
use crate::comm::LocalGroup;

/// How long ranks have to notice that the run has ended.
const GRACE: Duration = Duration::from_secs(5);

/// How often the clocks are looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// The ranks of a room that have been loaded.
pub(super) struct Loading(Arc<[AtomicBool]>);

impl Loading {
    /// From now on a rank of the room that gets no further ends the run; `stuck` is called if a rank does
    /// not come out of what it is at then, for as long as they are loaded.
    pub(super) fn begin(room: &Arc<LocalGroup>, ranks: usize, stuck: Stuck) -> Self {
        let loaded: Arc<[_]> = (0..ranks).map(|_| AtomicBool::new(false)).collect();
        let (still, its_room) = (loaded.clone(), Arc::downgrade(room));
        room.on_failure(Box::new(move || {
            let (still, room, stuck) = (still.clone(), its_room.clone(), stuck.clone());
            thread::spawn(move || {
                thread::sleep(GRACE);
                if let Some(failure) = room.upgrade().and_then(|room| room.verdict())
                    && have_come(&still).contains(&false)
                {
                    stuck(&failure);
                }
            });
        }));
        let (still, its_room, began) = (loaded.clone(), Arc::downgrade(room), Instant::now());
        thread::spawn(move || {
            while let Some(room) = its_room.upgrade().filter(|room| room.failure().is_none()) {
                let have_come = have_come(&still);
                if !have_come.contains(&false) {
                    return;
                }
                room.patience(began, &have_come);
                drop(room);
                thread::sleep(GLANCE);
            }
        });
        Self(loaded)
    }

    /// A rank has been loaded, or cannot be.
    pub(super) fn ended(&self, rank: usize) {
        self.0[rank].store(true, Ordering::Relaxed);
    }
}

fn have_come(ranks: &[AtomicBool]) -> Vec<bool> {
    ranks.iter().map(|rank| rank.load(Ordering::Relaxed)).collect()
}
