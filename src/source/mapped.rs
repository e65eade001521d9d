//! A mapped file. Should it become shorter, reading what is no longer there raises SIGBUS, of which a process
//! dies without a word; [`tell_of_shortened_files`] has it say which file that was.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A file, open and mapped.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    pub file: File,
    #[cfg(unix)]
    entry: Option<&'static handler::Entry>,
}

impl MappedFile {
    /// Maps `file`, called `name` in messages.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: File, name: &str) -> io::Result<Self> {
        // SAFETY: the map is read-only and private to this struct, which hands out shared slices only.
        // Nobody guarantees that no other process writes to or truncates the file meanwhile: as
        // with every mapped model, the user must not change a model's files under a running
        // program.
        let map = unsafe { Mmap::map(&file) }?;
        #[cfg(unix)]
        let entry = handler::enter(map.as_ptr().addr(), map.len(), name);
        #[cfg(not(unix))]
        let _ = name;
        Ok(Self {
            map,
            file,
            #[cfg(unix)]
            entry,
        })
    }

    /// Asks the system to read the file ahead of use. A system that cannot do it reads on first use, so
    /// its answer does not matter.
    pub fn read_ahead(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(unix)]
impl Drop for MappedFile {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            entry.leave();
        }
    }
}

/// From now on the process ends with a line and exit status 1 when a mapped file has become shorter.
///
/// # Errors
/// What the system says.
pub fn tell_of_shortened_files() -> io::Result<()> {
    #[cfg(unix)]
    handler::install()?;
    Ok(())
}

#[cfg(unix)]
mod handler {
    use std::io;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    /// Files that are mapped at once, at most: those beyond are not told of.
    const ENTRIES: usize = 1024;

    /// A mapped file, as a signal handler can look it up: without a lock.
    #[derive(Debug)]
    pub struct Entry {
        /// 0 for none.
        start: AtomicUsize,
        end: AtomicUsize,
        /// What to say of it. Never freed: the handler may be reading it.
        message: AtomicPtr<String>,
    }

    static TABLE: [Entry; ENTRIES] = [const {
        Entry {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            message: AtomicPtr::new(ptr::null_mut()),
        }
    }; ENTRIES];

    /// What dealt with SIGBUS before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// Notes a map of `len` bytes at `start`.
    pub fn enter(start: usize, len: usize, name: &str) -> Option<&'static Entry> {
        /// Being written.
        const TAKEN: usize = usize::MAX;
        let take = |entry: &&Entry| {
            entry.start.compare_exchange(0, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let entry = TABLE.iter().find(take)?;
        let message = format!("chaski: {name} became shorter while it was read\n");
        entry.message.store(Box::leak(Box::new(message)), Ordering::Relaxed);
        entry.end.store(start + len, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Some(entry)
    }

    impl Entry {
        pub fn leave(&self) {
            self.end.store(0, Ordering::Relaxed);
            self.start.store(0, Ordering::Release);
        }

        fn holds(&self, address: usize) -> bool {
            (self.start.load(Ordering::Acquire)..self.end.load(Ordering::Relaxed))
                .contains(&address)
        }
    }

    pub fn install() -> io::Result<()> {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_bus_error;
        let mut before = MaybeUninit::uninit();
        // SAFETY: a zeroed sigaction is one without flags and mask; the handler calls nothing that may not be
        // called in one; `before` is as long as what is written there.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, before.as_mut_ptr()) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has succeeded, and has written it.
        let _ = BEFORE.set(unsafe { before.assume_init() });
        Ok(())
    }

    extern "C" fn on_bus_error(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        _: *mut libc::c_void,
    ) {
        // SAFETY: the system hands in what it knows of the signal.
        let address = unsafe { (*info).si_addr() }.addr();
        if let Some(entry) = TABLE.iter().find(|entry| entry.holds(address)) {
            // SAFETY: an entry that holds something has a message, which is never freed. Neither function
            // needs anything of this process that a signal might have found half done.
            unsafe {
                let message = &*entry.message.load(Ordering::Relaxed);
                libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
                libc::_exit(1)
            }
        }
        // None of ours: as if we were not here.
        if let Some(before) = BEFORE.get() {
            // SAFETY: what was there before is put back, and comes next.
            unsafe {
                libc::sigaction(signal, before, ptr::null_mut());
                libc::raise(signal);
            }
        }
    }
}
