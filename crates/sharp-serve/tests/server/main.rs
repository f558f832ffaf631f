//! A server over real HTTP.

mod answers;
mod bodies;
mod connections;
mod harness;
mod hosts;
mod life;
mod load;
mod refusals;
mod requests;
