//! Helps tests that draw random numbers.

use std::sync::{Mutex, MutexGuard, PoisonError};

static GENERATOR: Mutex<()> = Mutex::new(());

/// Seeds libtorch's generator and keeps other tests from it until the guard is dropped. All threads draw from
/// one generator, so tests that run at the same time would change each other's numbers.
pub(crate) fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    guard
}
