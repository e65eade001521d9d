//! Which op a GPU is in. Each kernel, when it begins, writes that into a word of the GPU's memory, which
//! costs it one store; the host looks at the word when nothing gets on, through a stream of its own.
//!
//! Kernels that were compiled with stamps (`kernels/lib/stamps.cuh`) also tell when their blocks do what:
//! `CHASKI_STAMPS=FILE` makes room for that behind the word, and has it written to the file at the end.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::driver::Context;
use super::region::{Pinned, Region};
use super::stream::Stream;
use crate::error::{Error, Result};

/// How often it is asked whether the word has come, and how many times.
const GLANCE: Duration = Duration::from_millis(1);
const GLANCES: usize = 2000;

/// Behind the word: the records' capacity, their number, and the records of RECORD words.
const HEAD: usize = 24;
const RECORD: usize = 7;
const STAMPS: usize = 1 << 18;

pub(super) struct Trace {
    /// Where programs run.
    work: Arc<Stream>,
    /// Another one, past which what hangs there does not get in the way.
    beside: Stream,
    /// The number of the program, from 1 on, and of the op in it, from 0 on.
    word: Region,
    landing: Mutex<Pinned>,
    /// Where stamps are written, and the pinned memory that they come by.
    stamps: Option<Mutex<(File, Pinned)>>,
    /// The ops of all programs that have been run.
    programs: Mutex<Vec<Vec<Traced>>>,
}

/// An op: its name, and whether NCCL does its part before the op's kernel begins.
pub(super) type Traced = (&'static str, bool);

impl Trace {
    pub fn new(context: &Arc<Context>, work: &Arc<Stream>, stamps: Option<&Path>) -> Result<Self> {
        let beside = Stream::new(context)?;
        let stamps = stamps.map(|path| {
            let failed = |error| Error::failed(format!("cannot write {}: {error}", path.display()));
            let file = File::create(path).map_err(failed)?;
            Ok(Mutex::new((file, Pinned::allocate(context, HEAD + STAMPS * RECORD * 8)?)))
        });
        let stamps = stamps.transpose()?;
        let room = if stamps.is_some() { STAMPS } else { 0 };
        let word = Region::allocate(context, HEAD + room * RECORD * 8, "the trace of its ops")?;
        beside.copy_in(&word, 0, bytemuck::cast_slice(&[0, room as u64, 0]))?;
        beside.synchronize("cannot copy to the GPU")?;
        let landing = Mutex::new(Pinned::allocate(context, 8)?);
        let work = work.clone();
        Ok(Self { work, beside, word, landing, stamps, programs: Mutex::default() })
    }

    /// The address of the word, and what the first op of such a program writes there; each other one writes
    /// one more than the one before.
    pub fn of(&self, ops: Vec<Traced>) -> [u64; 2] {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = programs.iter().position(|known| *known == ops);
        let number = known.unwrap_or_else(|| {
            programs.push(ops);
            programs.len() - 1
        });
        [self.word.address(0..HEAD), (number as u64 + 1) << 32]
    }

    /// The op that the GPU is in; none if it has nothing to do. If NCCL may be waiting for other ranks, what
    /// it does is told, too.
    pub fn look(&self, nccl_waits: bool) -> Option<String> {
        if self.work.has_ended("").unwrap_or(true) {
            return None;
        }
        let Some(word) = self.word().ok()? else {
            return Some("an op of which it does not tell".to_owned());
        };
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let ops = programs.get((word >> 32).checked_sub(1)? as usize)?;
        let at = word as u32 as usize;
        let mut op = ops.get(at)?.0.to_owned();
        if let Some((next, true)) = ops.get(at + 1).filter(|_| nccl_waits) {
            op += &format!(" or {next}");
        }
        Some(format!("{op} (op {} of {})", at + 1, ops.len()))
    }

    /// Writes all stamps: one a line, op, number of the op in its program, multiprocessor, block and clocks.
    fn write_stamps(&mut self) -> Result<()> {
        let Some(stamps) = &mut self.stamps else { return Ok(()) };
        let (file, landing) = stamps.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.work.synchronize("the kernels did not finish")?;
        self.work.copy_out(&self.word, 0..HEAD + STAMPS * RECORD * 8, landing)?;
        let programs = self.programs.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let count = (landing.load(16) as usize).min(STAMPS);
        for number in 0..count {
            let words: [u64; RECORD] =
                std::array::from_fn(|at| landing.load(HEAD + (number * RECORD + at) * 8));
            let (program, at) = ((words[0] >> 32) as usize, words[0] as u32);
            let op =
                program.checked_sub(1).and_then(|program| programs.get(program)?.get(at as usize));
            let op = op.map_or("", |(op, _)| op);
            let (place, clocks) = (words[1], &words[2..]);
            text += &format!("{{\"op\": {op:?}, \"number\": {at}, \"clocks\": {clocks:?}, ");
            let (multiprocessor, block) = (place >> 32, place as u32);
            text += &format!("\"multiprocessor\": {multiprocessor}, \"block\": {block}}}\n");
        }
        file.write_all(text.as_bytes())
            .map_err(|error| Error::failed(format!("cannot write stamps: {error}")))
    }

    /// None: the GPU does not answer.
    fn word(&self) -> Result<Option<u64>> {
        let mut landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody else uses the memory, and it goes with `self`, after the stream.
        unsafe { self.beside.begin_copy_out(&self.word, 0..8, &mut landing) }?;
        for _ in 0..GLANCES {
            if self.beside.has_ended("")? {
                return Ok(Some(landing.load(0)));
            }
            thread::sleep(GLANCE);
        }
        Ok(None)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Whoever reads the file sees that there is nothing in it.
        let _ = self.write_stamps();
    }
}
