//! A server over real HTTP.

mod answers;
mod bodies;
mod harness;
mod life;
mod load;
mod refusals;
mod requests;
