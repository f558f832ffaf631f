//! A fixed set of threads for short parallel regions.
//!
//! A token of a small model takes a few hundred microseconds and a hundred parallel regions, so starting one
//! must cost about as much as a cache miss: idle workers spin for some 30 microseconds, then give their
//! processor away between looks, and sleep after two milliseconds without work.
//!
//! Two rules keep a busy machine from stalling a region. Work is divided in advance, so that a thread meets
//! the same rows of a shared matrix in every layer and finds them in its own cache; but whoever has finished
//! takes over what others have not begun. And a worker that is not running when a region begins is not waited
//! for: it may join late or miss it.

use crate::{
    disjoint::DisjointSlice,
    error::{Error, Result},
    isa::Isa,
};
use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// Looks at the state word before a worker starts to yield; some 30 microseconds.
const SPINS: u32 = 2_000;
/// Time without work after which a worker sleeps.
const SLEEP_AFTER: Duration = Duration::from_millis(2);

const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// One thread's own counters, on cache lines of their own (two, because processors fetch lines in pairs).
#[repr(align(128))]
#[derive(Default)]
struct Claims {
    /// For both phases of a region: how many items of this thread's share are taken.
    next: [AtomicUsize; 2],
    /// Whether the thread sleeps.
    asleep: AtomicBool,
}

#[repr(align(128))]
struct State {
    /// Region number in the upper half, then whether it can be entered, then how many workers are inside.
    word: AtomicU64,
    job: UnsafeCell<Option<Job<'static>>>,
    stop: AtomicBool,
    panicked: AtomicBool,
    claims: Box<[Claims]>,
}

// SAFETY: `job` is written only by the leader while no region is open and no worker inside, and read only by
// workers that have entered; `word` orders the two.
unsafe impl Sync for State {}
// SAFETY: as above; the job itself is `Sync`.
unsafe impl Send for State {}

/// A fixed set of threads, the calling one among them.
///
/// Regions started from inside a region, or from several threads at once, are correct but run on the calling
/// thread alone. A panic in a region is passed on to the caller after every thread has left the region.
pub struct Team {
    state: Arc<State>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    lead: Mutex<()>,
    isa: Isa,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} threads, {})", self.threads(), self.isa)
    }
}

impl Team {
    /// A team of `threads` threads (0: as many as there are physical cores) with the instruction set of
    /// [`Isa::from_env`].
    ///
    /// # Errors
    /// Those of [`Isa::from_env`], and [`Error::Thread`].
    pub fn new(threads: usize) -> Result<Self> {
        Team::with_isa(threads, Isa::from_env()?)
    }

    /// A team with an instruction set of the caller's choice.
    ///
    /// # Errors
    /// [`Error::Thread`] if the operating system refuses one.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        let threads = if threads == 0 { physical_cores() } else { threads.min(1024) };
        let state = Arc::new(State {
            word: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            claims: (0..threads).map(|_| Claims::default()).collect(),
        });
        let mut team = Team { state, workers: Vec::with_capacity(threads - 1), lead: Mutex::new(()), isa };
        for index in 1..threads {
            let state = Arc::clone(&team.state);
            let handle = thread::Builder::new()
                .name(format!("sharp-{index}"))
                .spawn(move || work(&state, index))
                .map_err(|e| Error::Thread { index, reason: e.to_string() })?;
            team.workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(team)
    }

    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.state.claims.len()
    }

    /// The instruction set of the kernels that this team runs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f(item)` once for every item `0..items`, on all threads, and returns when all calls have
    /// returned.
    ///
    /// Thread `t` of `n` begins with the items from `t * items / n` on, the same in every call.
    pub fn run(&self, items: usize, f: &(dyn Fn(usize) + Sync)) {
        self.phases(&[], &|_, _| {}, &|| {}, &[items], &|_, item, _| f(item));
    }

    /// Calls `f(i, part)` for every part of `slice` of `chunk` elements (the last may be shorter), on all
    /// threads.
    ///
    /// A `chunk` of 0 counts as 1.
    pub fn chunks_mut<T: Send>(&self, slice: &mut [T], chunk: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let chunk = chunk.max(1);
        let len = slice.len();
        let parts = DisjointSlice::new(slice);
        self.run(len.div_ceil(chunk), &|i| {
            let from = i * chunk;
            // SAFETY: items are distinct and each is run once, so the parts do not overlap; `slice` is
            // borrowed for the whole call.
            f(i, unsafe { parts.slice(from, chunk.min(len - from)) });
        });
    }

    /// Calls `f(i, item, rows)` for every item, on all threads, with row `i` of each of the slices, given
    /// with their widths.
    ///
    /// # Panics
    /// If a slice is not one row for each item.
    pub fn rows_mut<T: Send, U: Send, const N: usize>(
        &self,
        items: &mut [T],
        slices: [(&mut [U], usize); N],
        f: impl Fn(usize, &mut T, [&mut [U]; N]) + Sync,
    ) {
        let count = items.len();
        let items = DisjointSlice::new(items);
        let slices = slices.map(|(slice, width)| {
            assert_eq!(Some(slice.len()), count.checked_mul(width), "one row for each item");
            (DisjointSlice::new(slice), width)
        });
        self.run(count, &|i| {
            // SAFETY: each `i` is run once, so no two threads have the same item or rows; all is borrowed for
            // the whole call.
            let item = unsafe { &mut items.slice(i, 1)[0] };
            // SAFETY: as above.
            let rows = slices.map(|(slice, width)| unsafe { slice.slice(i * width, width) });
            f(i, item, rows);
        });
    }

    /// Runs a region of two phases without a barrier between them.
    ///
    /// Every item of `first` (segment, item) is claimed before any of `second`, and the thread that ends the
    /// last of them calls `finish` once. Items of `second` may run before that, and wait with [`Gate::wait`]
    /// where they need it. Waiting cannot deadlock: a thread reaches `second` only when all of `first` is
    /// claimed by threads that are running it.
    pub(crate) fn phases(
        &self,
        first: &[usize],
        f: &(dyn Fn(usize, usize) + Sync),
        finish: &(dyn Fn() + Sync),
        second: &[usize],
        g: &(dyn Fn(usize, usize, &Gate) + Sync),
    ) {
        let total: usize = first.iter().sum();
        let gate = Gate { left: AtomicUsize::new(total), open: AtomicBool::new(total == 0) };
        let gate = &gate;
        let one = |segment: usize, item: usize| {
            let _arrival = Arrival { gate, finish };
            f(segment, item);
        };
        let n = self.threads();
        let lead = match self.lead.try_lock() {
            Ok(lead) => Some(lead),
            Err(TryLockError::Poisoned(lead)) => Some(lead.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let items = total + second.iter().sum::<usize>();
        let Some(_lead) = lead.filter(|_| n > 1 && items > 1) else {
            each(first, &one);
            each(second, &|segment, item| g(segment, item, gate));
            return;
        };
        let claims = &self.state.claims;
        for c in claims {
            c.next[0].store(0, Ordering::Relaxed);
            c.next[1].store(0, Ordering::Relaxed);
        }
        self.broadcast(&|thread| {
            claim(claims, 0, thread, first, &one);
            claim(claims, 1, thread, second, &|segment, item| g(segment, item, gate));
        });
    }

    /// Runs `job(thread)` on the calling thread (0) and on every worker that comes in time.
    fn broadcast(&self, job: Job<'_>) {
        let state = &*self.state;
        let closed = state.word.load(Ordering::Relaxed);
        // SAFETY: only the lifetime changes. Workers use the job only between entering and leaving, and this
        // function does not return before the region is closed and empty, whatever panics.
        let job_static: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: the last region is closed and empty, and `lead` is held, so nobody reads or writes `job`
        // now.
        unsafe { *state.job.get() = Some(job_static) };
        let epoch = (closed >> 32).wrapping_add(1) << 32;
        state.word.store(epoch | OPEN, Ordering::SeqCst);
        for ((thread, _), claims) in self.workers.iter().zip(&state.claims[1..]) {
            if claims.asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| job(0)));
        state.word.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while state.word.load(Ordering::Acquire) & ACTIVE != 0 {
            relax(&mut looks);
        }
        let theirs = state.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!theirs, "a worker thread panicked in a parallel region");
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches the panics of its jobs, so there is none to pass on.
                let _ = handle.join();
            }
        }
    }
}

/// Opens when the first phase of a region has ended.
pub(crate) struct Gate {
    left: AtomicUsize,
    open: AtomicBool,
}

impl Gate {
    /// Returns when the first phase has ended and its `finish` has returned.
    pub(crate) fn wait(&self) {
        let mut looks = 0;
        while !self.open.load(Ordering::Acquire) {
            relax(&mut looks);
        }
    }
}

/// Counts an item of the first phase as ended when dropped, also by a panic, so that nobody waits for ever.
struct Arrival<'a> {
    gate: &'a Gate,
    finish: &'a (dyn Fn() + Sync),
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        struct Opener<'a>(&'a Gate);
        impl Drop for Opener<'_> {
            fn drop(&mut self) {
                self.0.open.store(true, Ordering::Release);
            }
        }
        if self.gate.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _opener = Opener(self.gate);
            if !thread::panicking() {
                (self.finish)();
            }
        }
    }
}

fn relax(looks: &mut u32) {
    *looks += 1;
    if *looks < SPINS {
        std::hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

fn each(segments: &[usize], f: &dyn Fn(usize, usize)) {
    for (segment, &items) in segments.iter().enumerate() {
        for item in 0..items {
            f(segment, item);
        }
    }
}

/// Runs items of the thread's own part of every segment, then items left over from the others' parts.
fn claim(claims: &[Claims], phase: usize, thread: usize, segments: &[usize], f: &dyn Fn(usize, usize)) {
    let n = claims.len();
    let share = |t: usize, items: usize| (t * items / n, (t + 1) * items / n);
    for offset in 0..n {
        let owner = (thread + offset) % n;
        let total: usize = segments.iter().map(|&i| share(owner, i)).map(|(from, to)| to - from).sum();
        let next = &claims[owner].next[phase];
        loop {
            // A look first: counters of exhausted shares are not written to, and cannot run away.
            if next.load(Ordering::Relaxed) >= total {
                break;
            }
            let mut k = next.fetch_add(1, Ordering::Relaxed);
            if k >= total {
                break;
            }
            for (segment, &items) in segments.iter().enumerate() {
                let (from, to) = share(owner, items);
                if k < to - from {
                    f(segment, from + k);
                    break;
                }
                k -= to - from;
            }
        }
    }
}

/// Runs regions as they open, until the team stops: the main function of a worker thread.
fn work(state: &State, index: usize) {
    let asleep = &state.claims[index].asleep;
    let mut seen = 0;
    let mut looks = 0;
    let mut idle_since: Option<Instant> = None;
    loop {
        let word = state.word.load(Ordering::Acquire);
        if word & OPEN != 0 && word >> 32 != seen {
            // Entering fails if the region closes or another worker enters at the same moment: look again.
            if state.word.compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                seen = word >> 32;
                // SAFETY: this thread has entered, so the leader keeps the job alive and unchanged until it
                // leaves.
                let job = unsafe { *state.job.get() };
                if let Some(job) = job
                    && catch_unwind(AssertUnwindSafe(|| job(index))).is_err()
                {
                    state.panicked.store(true, Ordering::Relaxed);
                }
                state.word.fetch_sub(1, Ordering::AcqRel);
                looks = 0;
                idle_since = None;
            }
            continue;
        }
        if state.stop.load(Ordering::Relaxed) {
            return;
        }
        relax(&mut looks);
        if looks < SPINS || looks % 16 != 0 {
            continue;
        }
        if idle_since.get_or_insert_with(Instant::now).elapsed() < SLEEP_AFTER {
            continue;
        }
        asleep.store(true, Ordering::SeqCst);
        // Either this load sees a region opened meanwhile, or the leader's look at `asleep` comes later and
        // sees true.
        let word = state.word.load(Ordering::SeqCst);
        if (word & OPEN == 0 || word >> 32 == seen) && !state.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
        looks = 0;
        idle_since = None;
    }
}

/// Cores of this machine that this process may use, hyper-threads of one core counted once where the system
/// tells.
pub fn physical_cores() -> usize {
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0..4096 {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => break,
        };
    }
    if cores.is_empty() { usable } else { usable.min(cores.len()) }
}
