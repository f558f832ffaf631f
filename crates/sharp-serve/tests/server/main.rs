//! A server over real HTTP.

mod answers;
mod bodies;
mod connections;
mod harness;
mod hostile;
mod hosts;
mod life;
mod load;
mod memory;
mod refusals;
mod requests;
