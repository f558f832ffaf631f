//! What tests share.

use std::sync::{Mutex, MutexGuard, PoisonError};

static GENERATOR: Mutex<()> = Mutex::new(());

/// libtorch's generator, seeded, for as long as this is held: all threads draw from one, so that a test that
/// shared it would see other numbers in every run.
pub(crate) fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    guard
}
