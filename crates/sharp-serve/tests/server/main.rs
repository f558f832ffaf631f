//! A server over real HTTP.

mod answers;
mod bodies;
mod harness;
mod hosts;
mod life;
mod load;
mod refusals;
mod requests;
