//! A server over real HTTP.

mod answers;
mod harness;
mod life;
mod load;
mod refusals;
