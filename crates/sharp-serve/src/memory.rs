//! The memory that requests may take: what each needs is reserved before it is accepted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sharp_infer::{Model, Session};

use crate::error::Result;

/// The part of the memory that is left alone, and its bounds: what is small is not counted.
const SPARE: (u64, u64, u64) = (8, 64 << 20, 512 << 20);

/// How long an answer of the system stands: asking takes a good part of a short request's time.
const STANDS: Duration = Duration::from_millis(50);

/// Why memory was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) needed: u64,
    /// What there is for all requests together.
    pub(crate) room: u64,
    /// Whether it would be given if nothing else ran.
    pub(crate) later: bool,
}

/// What there is for requests, and what they have reserved.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Set by an option; nothing else is then looked at.
    fixed: Option<u64>,
    /// What the process held before the first request.
    resident: u64,
    /// The address space that was left then, where the process has a limit.
    addresses: Option<u64>,
    /// What the system said last, and when.
    seen: Mutex<Option<(Instant, u64)>>,
    reserved: AtomicU64,
    /// Of sessions that nobody uses: they are given up where a request needs their memory.
    idle: AtomicU64,
}

impl Memory {
    /// Looks at what there is now. With `fixed`, requests have so many bytes.
    pub(crate) fn new(fixed: Option<u64>) -> Self {
        Self {
            fixed,
            resident: sharp_host::resident_memory().unwrap_or(0),
            addresses: sharp_host::address_space_left(),
            seen: Mutex::new(None),
            reserved: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }

    /// Whether memory counts once it is asked for, though nothing is written there: where addresses are
    /// limited, and where the system gives large pages to all who ask.
    pub(crate) fn counts_unwritten(&self) -> bool {
        let pages = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        self.addresses.is_some() || pages.is_ok_and(|setting| setting.contains("[always]"))
    }

    /// Returns the bytes for all requests together, those that they hold included.
    pub(crate) fn room(&self) -> u64 {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((when, room)) if when.elapsed() < STANDS => room,
            _ => seen.insert((Instant::now(), self.look())).1,
        }
    }

    fn look(&self) -> u64 {
        let resident = sharp_host::resident_memory().unwrap_or(0);
        let held = resident.saturating_sub(self.resident);
        let free = sharp_host::available_memory().map_or(u64::MAX, |free| free.saturating_add(held));
        let room = self.addresses.map_or(free, |addresses| addresses.min(free));
        room.saturating_sub(spare(room))
    }

    /// Reserves memory, all of it or none.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, Shortage> {
        let room = self.room();
        let short = |later| Shortage { needed: bytes, room, later };
        if bytes > room {
            return Err(short(false));
        }
        if let Some(left) = self.addresses.and_then(|_| sharp_host::address_space_left()) {
            // The allocator and threads take addresses that nobody reserved.
            let free = left.saturating_add(self.idle.load(Ordering::Relaxed));
            if bytes.saturating_add(SPARE.1 / 2) > free {
                return Err(short(true));
            }
        }
        let taken = self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
            reserved.checked_add(bytes).filter(|all| *all <= room)
        });
        match taken {
            Ok(_) => Ok(Reservation { memory: self.clone(), bytes }),
            Err(_) => Err(short(true)),
        }
    }

    /// Says how much sessions hold that nobody uses.
    pub(crate) fn set_idle(&self, bytes: u64) {
        self.idle.store(bytes, Ordering::Relaxed);
    }

    /// Whether reservations leave no room for what idle sessions hold.
    pub(crate) fn is_short(&self) -> bool {
        let (reserved, idle) = (self.reserved.load(Ordering::Relaxed), self.idle.load(Ordering::Relaxed));
        idle > 0 && reserved.saturating_add(idle) > self.room()
    }
}

/// Says what a session of a server takes.
pub(crate) struct SessionCost {
    model: Model,
    context: usize,
    /// Whether its whole context counts, written or not.
    whole: bool,
}

impl SessionCost {
    pub(crate) fn new(model: &Model, context: usize, memory: &Memory) -> Self {
        Self { model: model.clone(), context, whole: memory.counts_unwritten() }
    }

    /// Returns the bytes of a session that has had `tokens`.
    pub(crate) fn bytes(&self, tokens: usize) -> Result<u64> {
        let tokens = if self.whole { self.context } else { tokens };
        Ok(Session::bytes(&self.model, self.context, tokens)?)
    }
}

fn spare(room: u64) -> u64 {
    let (part, least, most) = SPARE;
    (room / part).clamp(least, most)
}

/// Memory that is reserved until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Reservation {
    /// Takes a part out, which is then reserved for itself.
    pub(crate) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { memory: self.memory.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_what_there_is() {
        let memory = Arc::new(Memory::new(Some(100)));
        let first = memory.reserve(60).unwrap();
        let short = |needed, later| Shortage { needed, room: 100, later };
        assert_eq!(memory.reserve(41).unwrap_err(), short(41, true));
        assert_eq!(memory.reserve(101).unwrap_err(), short(101, false));
        let mut second = memory.reserve(40).unwrap();
        drop(second.split(10));
        let tenth = memory.reserve(10).unwrap();
        drop(first);
        let third = memory.reserve(60).unwrap();
        // Sessions that nobody uses make way.
        memory.set_idle(1);
        assert!(memory.is_short());
        drop((second, tenth, third));
        assert!(!memory.is_short());
    }

    #[test]
    fn what_the_machine_has_is_room() {
        let memory = Arc::new(Memory::new(None));
        let room = memory.room();
        assert!(room > 0 && room < sharp_host::total_memory().unwrap_or(u64::MAX));
        let held = memory.reserve(1 << 20).unwrap();
        assert!(!memory.reserve(u64::MAX).unwrap_err().later);
        drop(held);
    }
}
