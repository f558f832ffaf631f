//! Perplexity, KL divergence and multiple-choice accuracy: the next piece of work; nothing is here yet.
#![forbid(unsafe_code)]
