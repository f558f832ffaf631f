//! A slice that several threads write, each at places of its own.

use std::marker::PhantomData;

/// A mutable slice without its borrow, from which threads take disjoint parts.
pub(crate) struct DisjointSlice<T> {
    start: *mut T,
    len: usize,
    marker: PhantomData<T>,
}

impl<T> Clone for DisjointSlice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DisjointSlice<T> {}

// SAFETY: a `DisjointSlice` only hands out parts through `slice`, whose contract forbids overlapping use.
unsafe impl<T: Send> Send for DisjointSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointSlice<T> {}

impl<T> DisjointSlice<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        DisjointSlice { start: slice.as_mut_ptr(), len: slice.len(), marker: PhantomData }
    }

    /// Elements `from..from + count`; panics if they do not exist.
    ///
    /// # Safety
    /// The slice given to `new` must still be borrowed by whoever holds this, and no other reference to any
    /// of these elements may exist while the result lives.
    #[allow(clippy::mut_from_ref, reason = "threads share it; the contract forbids overlapping parts")]
    pub(crate) unsafe fn slice<'a>(&self, from: usize, count: usize) -> &'a mut [T] {
        assert!(from <= self.len && count <= self.len - from, "part outside its slice");
        // SAFETY: inside the slice, as just checked; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), count) }
    }
}
