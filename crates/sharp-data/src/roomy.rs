//! A stack for what untrusted files make deep: values within values, and long expressions.

use std::cell::Cell;

use crate::error::{Error, Result};

/// The system gives the memory only as the stack grows.
const STACK: usize = 256 << 20;

thread_local! {
    static ROOMY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread with a large stack: this one, where it has one already.
pub(crate) fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    if ROOMY.get() {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        let roomy = || {
            ROOMY.set(true);
            work()
        };
        let thread = std::thread::Builder::new().name("sharp-template".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, roomy) {
            Ok(thread) => Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            Err(e) => Err(Error::Template { what: format!("the system gave no thread to run it on: {e}") }),
        }
    })
}
